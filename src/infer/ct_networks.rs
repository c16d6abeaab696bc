//! The networks of a bundle for chest CT: lungs by a network, and what classifiers say of a scan; `ct_lesions.rs` has what
//! others outline.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{
    InferError, ModelError,
    adapter::{model_error, resize_mode},
    ct_lesions::LesionOutlining,
    room::Placed,
    scores::{decide, member_spread, surviving},
    thread::on_thread,
};
use crate::{
    imaging::{
        Plane, PlaneError,
        ct::{
            Channel, LEFT_LUNG, LungLabels, RIGHT_LUNG, Refusal, ScanInput, ScanRecipe, TooManyPieces, Volume,
            lung_network_slice, network_lungs, paste_lung_labels, scan_input,
        },
        heat,
    },
    nn::{self, Bundle, Classification, EnsembleOptions, Input, ScanChannel, ScanEnsemble, ScanOutput, Slices},
    types::{BundleIdentity, CtClassification, CtKeySlice, Errand, HeatMap, MemberScore, ReasonCode},
};

/// Slices that are handed to the lung segmenter at once: one portion is in memory beside the volume.
const SLICES_AT_ONCE: usize = 16;

/// Slices that are shown because they speak most for the target class.
const KEY_SLICES: usize = 3;

/// The networks of one bundle for chest CT.
#[derive(Clone)]
pub struct CtNetworks {
    pub(super) ensemble: ScanEnsemble,
    /// Side of the lung segmenter's input in pixels, where there is one.
    segmenter_side: Option<usize>,
    classifiers: Option<Arc<Classifiers>>,
    pub(super) outlining: Option<Arc<LesionOutlining>>,
}

struct Classifiers {
    recipe: ScanRecipe,
    /// One output for each class: members give probabilities of classes.
    classification: Classification,
    aggregation: String,
}

impl CtNetworks {
    /// Loads the networks of a bundle; `None` where it has none. Blocks for seconds.
    ///
    /// # Errors
    /// As [`ScanEnsemble::load`].
    pub fn load(bundle: &Bundle, options: EnsembleOptions) -> Result<Option<Self>, nn::NnError> {
        let manifest = bundle.manifest();
        if manifest.segmenter.is_none() && manifest.members.is_empty() {
            return Ok(None);
        }
        let classifiers = manifest.input.scan().zip(manifest.classification.clone()).map(|(preprocessing, of)| {
            let aggregation = match &manifest.input {
                Input::Slices2d { aggregation, .. } => aggregation.words(),
                _ => "the network judges the scan as a whole".to_owned(),
            };
            let classification = Classification { label_map: None, ..of };
            Arc::new(Classifiers { recipe: recipe(preprocessing), classification, aggregation })
        });
        Ok(Some(Self {
            ensemble: ScanEnsemble::load(bundle, options)?,
            segmenter_side: manifest.segmenter.as_ref().map(|segmenter| segmenter.input_side_pixels as usize),
            classifiers,
            outlining: LesionOutlining::of(&manifest.input).map(Arc::new),
        }))
    }

    /// The lungs by the bundle's network; `None` where it brings none. The inner error is what is wrong with the images.
    ///
    /// # Errors
    /// [`InferError`] when the network or the worker fails.
    pub(super) async fn lungs(
        &self,
        volume: &Arc<Placed<Volume>>,
        errand: &Errand,
    ) -> Result<Option<Result<LungLabels, TooManyPieces>>, InferError> {
        let Some(side) = self.segmenter_side else { return Ok(None) };
        let [columns, _, n_slices] = volume.size;
        let pixels = volume.slice_pixels();
        let mut labels = vec![0_u8; volume.hu.len()];
        for first in (0..n_slices).step_by(SLICES_AT_ONCE) {
            let count = SLICES_AT_ONCE.min(n_slices - first);
            let of_volume = Arc::clone(volume);
            let (values, boxes) = on_thread(&errand.progress, move || {
                let mut values = Vec::with_capacity(count * side * side);
                let mut boxes = Vec::with_capacity(count);
                for slice in first..first + count {
                    let (of_slice, body) = lung_network_slice(&of_volume, slice, side);
                    values.extend(of_slice);
                    boxes.push(body);
                }
                (values, boxes)
            })
            .await?;
            let slices = Slices { count, channels: 1, rows: side, columns: side, values };
            let found = self.ensemble.segment(slices, errand).await;
            let found = found.map_err(|error| InferError::Segmenter(model_error(&error)))?;
            if found.len() != count * side * side {
                return Err(PlaneError::Shape { rows: side, columns: side, values: found.len() / count }.into());
            }
            for ((slice, body), found) in (first..).zip(boxes).zip(found.chunks_exact(side * side)) {
                if let Some(of_slice) = labels.get_mut(slice * pixels..(slice + 1) * pixels) {
                    paste_lung_labels(found, side, body, columns, of_slice);
                }
            }
        }
        let volume = Arc::clone(volume);
        Ok(Some(on_thread(&errand.progress, move || network_lungs(&volume, labels)).await?))
    }

    /// What the classifiers say of a scan; `None` where the bundle has none. The inner error is what is wrong with the
    /// images.
    ///
    /// # Errors
    /// [`InferError`] when all classifiers or the worker fail.
    pub(super) async fn classify(
        &self,
        bundle: &BundleIdentity,
        volume: &Arc<Placed<Volume>>,
        lungs: &Arc<LungLabels>,
        errand: &Errand,
    ) -> Result<Option<Result<CtClassification, Refusal>>, InferError> {
        let Some(classifiers) = self.classifiers.clone() else { return Ok(None) };
        let input = match self.input(volume, lungs, errand).await? {
            Ok(input) => input,
            Err(refusal) => return Ok(Some(Err(refusal))),
        };
        let (input, outputs) = self.ask(bundle, input, errand).await?;
        let logits: Vec<Vec<f32>> = outputs.iter().flatten().map(|output| logarithms(&output.probabilities)).collect();
        let logits: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
        let target = bundle.target_class_idx;
        let fused = nn::fuse(&classifiers.classification, &logits)
            .filter(|fused| fused.iter().all(|output| output.is_finite()))
            .ok_or_else(InferError::not_fused)?;
        let output = fused.get(target).copied().ok_or_else(InferError::not_fused)?;
        let key_slices = {
            let (volume, lungs) = (Arc::clone(volume), Arc::clone(lungs));
            let outputs: Vec<ScanOutput> = outputs.iter().flatten().cloned().collect();
            let slices = input.slices.clone();
            on_thread(&errand.progress, move || key_slices(&volume, &lungs, &input, &outputs, target))
                .await
                .map(|keys| (slices, keys))
        }?;
        let (slices, key_slices) = key_slices;
        let of_slices = outputs.iter().flatten().flat_map(|output| &output.slices);
        let without_maps = of_slices.into_iter().all(|slice| slice.activation_map.is_none());
        let members: Vec<MemberScore> = bundle
            .members
            .iter()
            .zip(outputs)
            .map(|(member, output)| match output {
                Ok(output) => MemberScore {
                    name: member.name.clone(),
                    probabilities: output.probabilities.into_iter().map(f64::from).collect(),
                    failure: None,
                },
                Err(failure) => {
                    MemberScore { name: member.name.clone(), probabilities: Vec::new(), failure: Some(failure) }
                }
            })
            .collect();
        Ok(Some(Ok(CtClassification {
            aggregation: classifiers.aggregation.clone(),
            slices,
            member_spread: member_spread(&members, target),
            decision: decide(bundle, output, &members),
            localised: output >= bundle.threshold && !MemberScore::say_nothing(&members),
            members,
            fused,
            without_maps,
            key_slices,
        })))
    }

    /// What the classifiers see of a scan. The inner error is what is wrong with the images.
    ///
    /// # Errors
    /// [`InferError`] when the worker fails.
    pub(super) async fn input(
        &self,
        volume: &Arc<Placed<Volume>>,
        lungs: &Arc<LungLabels>,
        errand: &Errand,
    ) -> Result<Result<ScanInput, Refusal>, InferError> {
        let Some(classifiers) = self.classifiers.clone() else {
            let words = "the bundle has no classifiers".to_owned();
            return Ok(Err(Refusal { reason: ReasonCode::NoSuitableImage, words }));
        };
        let minimum_lung_cm2 = classifiers.recipe.minimum_lung_cm2;
        let (volume, lungs) = (Arc::clone(volume), Arc::clone(lungs));
        let input = on_thread(&errand.progress, move || scan_input(&volume, &lungs, &classifiers.recipe)).await??;
        Ok(input.ok_or_else(|| {
            let words =
                format!("no slice holds {minimum_lung_cm2} cm2 of lung, which the networks of the bundle ask for");
            Refusal { reason: ReasonCode::LungMask, words }
        }))
    }

    /// Asks all members at the same time; one entry each, in the bundle's order. Gives the input back without its samples.
    async fn ask(
        &self,
        bundle: &BundleIdentity,
        mut input: ScanInput,
        errand: &Errand,
    ) -> Result<(ScanInput, Vec<Result<ScanOutput, String>>), InferError> {
        let slices = Arc::new(Slices {
            count: input.slices.len(),
            channels: input.channels,
            rows: input.rows,
            columns: input.columns,
            values: std::mem::take(&mut input.values),
        });
        let target_class_idx = bundle.target_class_idx;
        let mut tasks = JoinSet::new();
        for member_idx in 0..bundle.members.len() {
            let (ensemble, slices, errand) = (self.ensemble.clone(), Arc::clone(&slices), errand.clone());
            tasks.spawn(
                async move { (member_idx, ensemble.classify(member_idx, slices, target_class_idx, &errand).await) },
            );
        }
        drop(slices);
        let stopped = || ModelError::Failed("it stopped without an answer".to_owned());
        let mut outputs: Vec<Result<ScanOutput, ModelError>> = bundle.members.iter().map(|_| Err(stopped())).collect();
        while let Some(joined) = tasks.join_next().await {
            // A task that panicked leaves the words above.
            let Ok((member_idx, output)) = joined else { continue };
            if let Some(slot) = outputs.get_mut(member_idx) {
                *slot = output.map_err(|error| model_error(&error));
            }
        }
        Ok((input, surviving(bundle, outputs)?))
    }
}

/// Logits that have these probabilities.
fn logarithms(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.max(f32::MIN_POSITIVE).ln()).collect()
}

/// The slices that speak most for the target class, the strongest first, each with its heat. Every member's slices are
/// weighed against its strongest one, and members by their output.
fn key_slices(
    volume: &Volume,
    lungs: &LungLabels,
    input: &ScanInput,
    outputs: &[ScanOutput],
    target_class_idx: usize,
) -> Vec<CtKeySlice> {
    let output_of = |output: &ScanOutput| f64::from(output.probabilities.get(target_class_idx).copied().unwrap_or(0.0));
    let mut weights = vec![0.0_f64; input.slices.len()];
    for output in outputs {
        let strongest = output.slices.iter().map(|slice| slice.weight).fold(0.0, f32::max);
        if strongest > 0.0 {
            for (weight, slice) in weights.iter_mut().zip(&output.slices) {
                *weight += f64::from(slice.weight / strongest) * output_of(output);
            }
        }
    }
    // Several slices of a resampled volume may show one slice of the scan.
    let mut order: Vec<usize> = (0..weights.len()).filter(|idx| weights[*idx] > 0.0).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    let mut keys: Vec<CtKeySlice> = Vec::new();
    for idx in order {
        let slice = input.slices[idx];
        if keys.iter().any(|key| key.slice == slice) {
            continue;
        }
        let maps: Vec<(HeatMap, f64)> = outputs
            .iter()
            .filter_map(|output| {
                let map = output.slices.get(idx)?.activation_map.as_ref()?;
                let plane = Plane { rows: map.rows, columns: map.columns, values: map.values.clone() };
                Some((heat::heat_map(&plane, map.method, input.frame), output_of(output)))
            })
            .collect();
        let maps: Vec<(&HeatMap, f64)> = maps.iter().map(|(map, weight)| (map, *weight)).collect();
        let heat_map = heat::fuse(&maps);
        let of_members: Vec<f64> = outputs
            .iter()
            .filter_map(|output| output.slices.get(idx)?.probabilities.get(target_class_idx).copied())
            .map(f64::from)
            .collect();
        keys.push(CtKeySlice {
            slice,
            output: nn::pooling::mean(&of_members),
            lung_heat_fraction: heat_in_lungs(volume, lungs, slice, &heat_map),
            heat_map,
        });
        if keys.len() == KEY_SLICES {
            break;
        }
    }
    keys
}

/// Share of the heat of a slice that lies in its lungs; `None` without heat.
pub(super) fn heat_in_lungs(volume: &Volume, lungs: &LungLabels, slice: usize, map: &HeatMap) -> Option<f64> {
    let [columns, rows, _] = volume.size;
    let pixels = volume.slice_pixels();
    let labels = lungs.labels.get(slice * pixels..(slice + 1) * pixels)?;
    let (mut all, mut within) = (0.0_f64, 0.0_f64);
    for (pixel, label) in labels.iter().enumerate() {
        let x = ((pixel % columns) as f64 + 0.5) / columns as f64;
        let y = ((pixel / columns) as f64 + 0.5) / rows as f64;
        let heat = f64::from(heat::sample(map, x, y));
        all += heat;
        if *label == RIGHT_LUNG || *label == LEFT_LUNG {
            within += heat;
        }
    }
    (all > 0.0).then(|| within / all)
}

pub(super) fn recipe(preprocessing: &nn::ScanPreprocessing) -> ScanRecipe {
    ScanRecipe {
        window_hu: preprocessing.window_hu,
        outside_lungs_black: preprocessing.outside_lungs_black,
        crop_to_lungs: preprocessing.crop_to_lungs,
        crop_margin_mm: preprocessing.crop_margin_mm,
        resize: resize_mode(preprocessing.resize),
        rows: preprocessing.rows as usize,
        columns: preprocessing.columns as usize,
        channels: preprocessing
            .channels
            .iter()
            .map(|channel| match channel {
                ScanChannel::Slice => Channel::Slice,
                ScanChannel::MaskedSlice => Channel::MaskedSlice,
                ScanChannel::LungMask => Channel::LungMask,
                ScanChannel::Below => Channel::Below,
                ScanChannel::Above => Channel::Above,
            })
            .collect(),
        z_score: preprocessing.normalisation == nn::ChannelNormalisation::ImageZScore,
        range: preprocessing.range,
        mean: preprocessing.mean.clone(),
        std: preprocessing.std.clone(),
        minimum_lung_cm2: preprocessing.minimum_lung_cm2,
        slice_spacing_mm: preprocessing.slice_spacing_mm,
        maximum_slices: preprocessing.maximum_slices as usize,
    }
}
