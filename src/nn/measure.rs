//! How fast the networks of a bundle are on this machine: what `hilum bench` shows and `hilum bench --tune` chooses by.

use std::time::Instant;

use serde::Serialize;

use super::{Bundle, Ensemble, EnsembleOptions, NnError, Plane, Planes, seeded};
use crate::types::RunPriority;

/// Times of one bundle under one set of options, in milliseconds, each the median of the repetitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Threads that each classifier computes with.
    pub threads: usize,
    /// Threads that the lung segmenter computes with.
    pub segmenter_threads: usize,
    /// Images that were asked at the same time.
    pub batch: usize,
    /// Lung segmenter, then all classifiers at once, for each image.
    pub whole_milliseconds: f64,
    /// All classifiers at once, for each image.
    pub ensemble_milliseconds: f64,
    /// Each network alone, for each image.
    pub networks: Vec<(String, f64)>,
}

/// Loads the bundle once with these options and measures each batch size.
///
/// # Errors
/// As [`Ensemble::load`] and [`Ensemble::classify`].
pub async fn measure(
    bundle: &Bundle,
    options: EnsembleOptions,
    batches: &[usize],
    repetitions: usize,
) -> Result<Vec<Measured>, NnError> {
    let largest = batches.iter().copied().max().unwrap_or(1);
    let gather = if largest > 1 { std::time::Duration::from_millis(200) } else { options.gather };
    let options = EnsembleOptions { max_batch: largest, gather, ..options };
    let mut measured = Vec::new();
    for &batch in batches {
        let options = EnsembleOptions { max_batch: batch.max(1), ..options };
        let to_load = bundle.clone();
        let ensemble = tokio::task::spawn_blocking(move || Ensemble::load(&to_load, options))
            .await
            .map_err(|error| NnError::Panic { network: "every one".to_owned(), words: error.to_string() })??;
        let asked = Asked { bundle: bundle.clone(), ensemble, batch: batch.max(1) };
        asked.everything().await?;
        let mut times = vec![Vec::new(); asked.n_networks() + 2];
        for _ in 0..repetitions.max(1) {
            let mut columns = times.iter_mut();
            for idx in 0..asked.n_networks() {
                if let Some(column) = columns.next() {
                    column.push(timed(asked.network(idx)).await?);
                }
            }
            if let Some(column) = columns.next() {
                column.push(timed(asked.members()).await?);
            }
            if let Some(column) = columns.next() {
                column.push(timed(asked.everything()).await?);
            }
        }
        let mut medians = times.into_iter().map(|times| median(times) / asked.batch as f64);
        let names = asked.names();
        measured.push(Measured {
            threads: options.intra_op_threads.max(1),
            segmenter_threads: options.segmenter_threads.max(1),
            batch: asked.batch,
            networks: names.into_iter().zip(medians.by_ref()).collect(),
            ensemble_milliseconds: medians.next().unwrap_or(f64::NAN),
            whole_milliseconds: medians.next().unwrap_or(f64::NAN),
        });
    }
    Ok(measured)
}

async fn timed(work: impl Future<Output = Result<(), NnError>>) -> Result<f64, NnError> {
    let started = Instant::now();
    work.await?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match (times.get(middle), times.len() % 2) {
        (Some(upper), 0) => (times.get(middle - 1).copied().unwrap_or(*upper) + upper) / 2.0,
        (Some(only), _) => *only,
        (None, _) => f64::NAN,
    }
}

/// A loaded bundle and how many images it is asked at once.
struct Asked {
    bundle: Bundle,
    ensemble: Ensemble,
    batch: usize,
}

impl Asked {
    fn names(&self) -> Vec<String> {
        self.bundle.identity().networks().map(|network| network.name.clone()).collect()
    }

    fn n_networks(&self) -> usize {
        self.bundle.identity().networks().count()
    }

    /// The segmenter first.
    async fn network(&self, idx: usize) -> Result<(), NnError> {
        match idx.checked_sub(usize::from(self.bundle.manifest().segmenter.is_some())) {
            None => self.segment().await,
            Some(member_idx) => self.member(member_idx).await,
        }
    }

    async fn segment(&self) -> Result<(), NnError> {
        let Some(segmenter) = &self.bundle.manifest().segmenter else { return Ok(()) };
        let side = segmenter.input_side_pixels as usize;
        let ask = |image: usize| {
            let values = seeded::uniform(image as u64, "picture", side * side, 0.0, 1.0);
            self.ensemble.segment(Plane { rows: side, columns: side, values }, RunPriority::Routine)
        };
        all((0..self.batch).map(ask)).await
    }

    async fn member(&self, member_idx: usize) -> Result<(), NnError> {
        let Some(member) = self.bundle.manifest().members.get(member_idx) else { return Ok(()) };
        let ask = |image: usize| {
            let shapes = self.bundle.manifest().inputs_of(member).into_iter().map(super::Preprocessing::shape);
            let inputs = shapes
                .map(|[channels, rows, columns]| {
                    let n_values = channels * rows * columns;
                    let values = seeded::uniform(image as u64, "picture", n_values, -2.0, 2.0);
                    Planes { channels, rows, columns, values }
                })
                .collect();
            self.ensemble.classify(member_idx, inputs, 0, RunPriority::Routine)
        };
        all((0..self.batch).map(ask)).await
    }

    async fn members(&self) -> Result<(), NnError> {
        all((0..self.bundle.manifest().members.len()).map(|member_idx| self.member(member_idx))).await
    }

    async fn everything(&self) -> Result<(), NnError> {
        self.segment().await?;
        self.members().await
    }
}

/// All at the same time; the first error, after all have ended.
async fn all<T>(work: impl Iterator<Item = impl Future<Output = Result<T, NnError>>>) -> Result<(), NnError> {
    let done = futures_util::future::join_all(work).await;
    done.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
}

#[cfg(test)]
mod tests {
    use super::{super::init::test_bundle, *};

    #[tokio::test]
    async fn every_network_and_batch_is_measured() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let options = EnsembleOptions { intra_op_threads: 1, segmenter_threads: 2, ..EnsembleOptions::default() };
        let measured = measure(&bundle, options, &[1, 3], 2).await.unwrap();
        assert_eq!(measured.iter().map(|of| of.batch).collect::<Vec<_>>(), [1, 3]);
        for of in &measured {
            assert_eq!((of.threads, of.segmenter_threads), (1, 2));
            assert_eq!(of.networks.len(), 5);
            assert_eq!(of.networks[0].0, "lung segmenter");
            assert!(of.networks.iter().all(|(_, milliseconds)| *milliseconds > 0.0), "{of:?}");
            assert!(of.whole_milliseconds > 0.0 && of.ensemble_milliseconds > 0.0);
        }
    }

    #[test]
    fn medians_of_odd_even_and_no_times() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median(Vec::new()).is_nan());
    }
}
