//! The networks of a bundle of any kind, asked with made-up input: for trying out and for measuring.

use std::sync::Arc;

use super::{
    Bundle, Ensemble, EnsembleOptions, Input, NnError, Plane, Planes, Preprocessing, ScanEnsemble, Slices, seeded,
};
use crate::types::Errand;

/// A loaded bundle.
pub(super) struct Probe {
    bundle: Bundle,
    networks: Networks,
}

enum Networks {
    /// Of radiographs.
    Pictures(Ensemble),
    /// Of chest CT.
    Scans(ScanEnsemble),
}

/// What a network answered.
pub(super) struct Said {
    /// What must differ from picture to picture.
    pub(super) numbers: Vec<f32>,
    /// Such as `2 logits, 512 features, map 7 x 7 (cam)`.
    pub(super) gave: String,
}

impl Probe {
    /// Loads the networks of a bundle that has some.
    pub(super) async fn load(bundle: &Bundle, options: EnsembleOptions) -> Result<Self, NnError> {
        let to_load = bundle.clone();
        let networks = tokio::task::spawn_blocking(move || {
            if to_load.manifest().input.is_ct() {
                ScanEnsemble::load(&to_load, options).map(Networks::Scans)
            } else {
                Ensemble::load(&to_load, options).map(Networks::Pictures)
            }
        })
        .await
        .map_err(|error| NnError::Panic { network: "every one".to_owned(), words: error.to_string() })??;
        Ok(Self { bundle: bundle.clone(), networks })
    }

    /// The segmenter first, where there is one.
    pub(super) fn names(&self) -> Vec<String> {
        self.bundle.identity().networks().map(|network| network.name.clone()).collect()
    }

    /// What each of them computes with: devices and precision, such as `cuda:0 float16`.
    pub(super) fn computing(&self) -> Vec<String> {
        match &self.networks {
            Networks::Pictures(ensemble) => ensemble.computing(),
            Networks::Scans(ensemble) => ensemble.computing(),
        }
    }

    /// How many of them are segmenters: none or one.
    pub(super) fn n_segmenters(&self) -> usize {
        usize::from(self.bundle.manifest().segmenter.is_some())
    }

    /// Asks one network, by its place in [`names`](Self::names), about that many pictures at the same time, or about a scan
    /// of that many slices (two at least). The answer is that about the first.
    pub(super) async fn ask(&self, network_idx: usize, seed: u64, images: usize) -> Result<Said, NnError> {
        match (&self.networks, network_idx.checked_sub(self.n_segmenters())) {
            (Networks::Pictures(ensemble), None) => self.lungs_of_pictures(ensemble, seed, images).await,
            (Networks::Pictures(ensemble), Some(member_idx)) => self.pictures(ensemble, member_idx, seed, images).await,
            (Networks::Scans(ensemble), None) => {
                let side = self.bundle.manifest().segmenter.as_ref().map_or(0, |of| of.input_side_pixels as usize);
                let slices = slices([1, side, side], seed, images, (0.0, 1.0));
                let labels = ensemble.segment(slices, &Errand::default()).await?;
                let numbers = labels.into_iter().map(f32::from).collect();
                Ok(Said { numbers, gave: format!("{side} x {side} labels of each slice") })
            }
            (Networks::Scans(ensemble), Some(member_idx)) => {
                let shape = self.bundle.manifest().input.scan().map_or([0; 3], super::ScanPreprocessing::shape);
                let scan = slices(shape, seed, images.max(2), (-2.0, 2.0));
                if matches!(self.bundle.manifest().input, Input::Seg2d { .. }) {
                    let numbers = ensemble.outline(member_idx, Arc::new(scan), &Errand::default()).await?;
                    let [_, rows, columns] = shape;
                    return Ok(Said {
                        numbers,
                        gave: format!("{rows} x {columns} probabilities of lesion of each slice"),
                    });
                }
                let output = ensemble.classify(member_idx, Arc::new(scan), 0, &Errand::default()).await?;
                let map = map_words(output.slices.first().and_then(|slice| slice.activation_map.as_ref()));
                let (classes, features) = (output.probabilities.len(), output.embedding.len());
                Ok(Said {
                    numbers: output.probabilities,
                    gave: format!("{classes} classes of a scan, {features} features, {map} of each slice"),
                })
            }
        }
    }

    /// All classifiers at the same time.
    pub(super) async fn ask_members(&self, seed: u64, images: usize) -> Result<(), NnError> {
        let members = self.n_segmenters()..self.names().len();
        all(members.map(|network_idx| self.ask(network_idx, seed, images))).await.map(drop)
    }

    async fn lungs_of_pictures(&self, ensemble: &Ensemble, seed: u64, images: usize) -> Result<Said, NnError> {
        let side = self.bundle.manifest().segmenter.as_ref().map_or(0, |of| of.input_side_pixels as usize);
        let errand = Errand::default();
        let ask = |image: usize| {
            let values = seeded::uniform(seed + image as u64, "picture", side * side, 0.0, 1.0);
            ensemble.segment(Plane { rows: side, columns: side, values }, &errand)
        };
        let numbers = all((0..images.max(1)).map(ask)).await?.swap_remove(0).values;
        Ok(Said { numbers, gave: format!("{side} x {side} probabilities") })
    }

    async fn pictures(
        &self,
        ensemble: &Ensemble,
        member_idx: usize,
        seed: u64,
        images: usize,
    ) -> Result<Said, NnError> {
        let manifest = self.bundle.manifest();
        let errand = Errand::default();
        let ask = |image: usize| {
            let member = manifest.members.get(member_idx);
            let shapes = member.into_iter().flat_map(|member| manifest.inputs_of(member)).map(Preprocessing::shape);
            let inputs = shapes
                .map(|[channels, rows, columns]| {
                    let n_values = channels * rows * columns;
                    let values = seeded::uniform(seed + image as u64, "picture", n_values, -2.0, 2.0);
                    Planes { channels, rows, columns, values }
                })
                .collect();
            ensemble.classify(member_idx, inputs, 0, &errand)
        };
        let output = all((0..images.max(1)).map(ask)).await?.swap_remove(0);
        let map = map_words(output.activation_map.as_ref());
        let gave = format!("{} logits, {} features, {map}", output.logits.len(), output.embedding.len());
        Ok(Said { numbers: output.logits, gave })
    }
}

fn map_words(map: Option<&super::ActivationMap>) -> String {
    map.map_or_else(|| "no map".to_owned(), |map| format!("map {} x {} ({})", map.rows, map.columns, map.method))
}

fn slices([channels, rows, columns]: [usize; 3], seed: u64, count: usize, (low, high): (f32, f32)) -> Slices {
    let values = seeded::uniform(seed, "picture", count * channels * rows * columns, low, high);
    Slices { count, channels, rows, columns, values }
}

/// All at the same time; the first error, after all have ended.
async fn all<T>(work: impl Iterator<Item = impl Future<Output = Result<T, NnError>>>) -> Result<Vec<T>, NnError> {
    futures_util::future::join_all(work).await.into_iter().collect()
}
