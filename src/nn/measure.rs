//! How fast the networks of a bundle are on this machine: what `hilum bench` shows and `hilum bench --tune` chooses by.

use std::time::Instant;

use serde::Serialize;

use super::{Bundle, EnsembleOptions, NnError, probe::Probe};

/// Times of one bundle under one set of options, in milliseconds, each the median of the repetitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Threads that each classifier computes with.
    pub threads: usize,
    /// Threads that the lung segmenter computes with.
    pub segmenter_threads: usize,
    /// Images that were asked at the same time; of a CT bundle the slices of a scan.
    pub batch: usize,
    /// Lung segmenter, then all classifiers at once, for each image.
    pub whole_milliseconds: f64,
    /// All classifiers at once, for each image.
    pub ensemble_milliseconds: f64,
    /// Each network alone, for each image.
    pub networks: Vec<(String, f64)>,
    /// What each network computes with, in the same order: devices and precision, such as `cuda:0 float16`.
    pub computing: Vec<String>,
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
        let probe = Probe::load(bundle, EnsembleOptions { max_batch: batch.max(1), ..options.clone() }).await?;
        let names = probe.names();
        let batch = batch.max(1);
        // The first answers may still be compiled.
        everything(&probe, batch).await?;
        let mut times = vec![Vec::new(); names.len() + 2];
        for _ in 0..repetitions.max(1) {
            let mut columns = times.iter_mut();
            for (network_idx, column) in (0..names.len()).zip(columns.by_ref()) {
                column.push(timed(async { probe.ask(network_idx, 1, batch).await.map(drop) }).await?);
            }
            if let Some(column) = columns.next() {
                column.push(timed(probe.ask_members(1, batch)).await?);
            }
            if let Some(column) = columns.next() {
                column.push(timed(everything(&probe, batch)).await?);
            }
        }
        let mut medians = times.into_iter().map(|times| median(times) / batch as f64);
        measured.push(Measured {
            threads: options.intra_op_threads.max(1),
            segmenter_threads: options.segmenter_threads.max(1),
            batch,
            computing: probe.computing(),
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

/// The lung segmenter, then all classifiers at once.
async fn everything(probe: &Probe, batch: usize) -> Result<(), NnError> {
    for network_idx in 0..probe.n_segmenters() {
        probe.ask(network_idx, 1, batch).await?;
    }
    probe.ask_members(1, batch).await
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
            assert_eq!(of.computing, vec!["cpu float32"; 5]);
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
