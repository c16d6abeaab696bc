//! `hilum rerun`: does an analysis come out the same?

use std::{fmt::Write as _, time::Instant};

use anyhow::Context as _;
use clap::Args;
use uuid::Uuid;

use super::{Global, output::print, store::Store};
use crate::{
    app::{installation_named, open_archive, tuning::network_threads},
    config::Config,
    db::{installation, run},
    imaging::DecodeLimits,
    infer::{
        Pipeline,
        compare::{Comparison, compare},
        worker::repeat,
    },
    nn::EnsembleOptions,
    types::{RunOutcome, RunRecord},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The run, as `hilum runs` lists it
    run_id: Uuid,
    /// Fail unless the outcome is the same: bit for bit, or every number within 1e-5
    #[arg(long)]
    verify: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let config = global.load()?;
    let store = Store::open(&config).await?;
    let record = record(&store, &config, options.run_id).await;
    store.close().await?;
    let (bundle_name, record) = record?;

    let pipeline = open_pipeline(&config, &bundle_name, &record, true).await?;
    let started = Instant::now();
    let archive = open_archive(&config)?;
    let now = repeat(&archive, &pipeline, &record.outcome).await?.outcome;
    let seconds = started.elapsed().as_secs_f64();
    let now = as_measured_then(&record.outcome, without_similar_cases(&now));
    let comparison = compare(&without_similar_cases(&record.outcome), &now);
    let mut text = words(&record, &comparison, seconds);
    let computing = pipeline.computed_with(&ensemble_options(&config, true));
    if !record.computed_with.is_empty() && record.computed_with != computing {
        let (then, now) = (record.computed_with.join("; "), computing.join("; "));
        // Writing to a text does not fail.
        let _ = write!(text, "\nComputed then with {then}; now with {now}.");
    }
    if record.configuration_sha256 != config.results_digest() {
        text += "\nThe configuration that influences results is another one than at the run.";
    }
    print(&text)?;
    anyhow::ensure!(
        !options.verify || !matches!(comparison, Comparison::Different { .. }),
        "run {} does not come out the same",
        record.run_id
    );
    Ok(())
}

/// The pipeline of the bundle that a run used, if it is still the same; with its `members`, or with the lung segmenter alone.
pub(super) async fn open_pipeline(
    config: &Config,
    bundle_name: &str,
    record: &RunRecord,
    members: bool,
) -> anyhow::Result<Pipeline> {
    let folder = config.inference.models_dir.join(bundle_name);
    let ensemble = ensemble_options(config, members);
    let limits = DecodeLimits { max_decoded_bytes: config.inference.max_decoded_bytes.bytes() };
    let pipeline = tokio::task::spawn_blocking(move || Pipeline::open(&folder, ensemble, limits))
        .await?
        .with_context(|| format!("load bundle `{bundle_name}`"))?;
    anyhow::ensure!(
        pipeline.bundle().digest == record.bundle.digest,
        "run {} used bundle `{bundle_name}` with digest {}; the one in `{}` has {}: put the bundle of then back to repeat it",
        record.run_id,
        record.bundle.digest,
        config.inference.models_dir.display(),
        pipeline.bundle().digest
    );
    Ok(pipeline)
}

/// One question at a time: one device is enough, and the node needs its memory.
fn ensemble_options(config: &Config, members: bool) -> EnsembleOptions {
    let threads = network_threads(config);
    EnsembleOptions {
        devices: config.inference.devices.as_slice().iter().take(1).copied().collect(),
        optimise: config.inference.optimise,
        members,
        intra_op_threads: threads.classifiers,
        segmenter_threads: threads.segmenter,
        ..EnsembleOptions::default()
    }
}

/// The bundle's name and what the run found.
pub(super) async fn record(store: &Store, config: &Config, run_id: Uuid) -> anyhow::Result<(String, RunRecord)> {
    let mut connection = store.db.acquire().await?;
    let row = crate::db::status::run(&mut connection, run_id).await?;
    let row = row.with_context(|| format!("there is no run {run_id}; `hilum runs` lists them"))?;
    let id = installation::id_or_insert(&mut connection, Uuid::now_v7()).await?;
    let finished = run::finished(&mut connection, run_id, &installation_named(config, id)).await?;
    let finished = finished.with_context(|| format!("run {run_id} is {}: there is no outcome to repeat", row.state))?;
    Ok((row.bundle, finished.record))
}

/// Similar cases are those of the library of the day.
fn without_similar_cases(outcome: &RunOutcome) -> RunOutcome {
    let mut outcome = outcome.clone();
    if let RunOutcome::Analysed(analysis) = &mut outcome {
        for image in &mut analysis.images {
            image.similar_cases = None;
        }
    }
    outcome
}

/// Without what the version of then did not measure: the map that it is measured in is compared.
fn as_measured_then(then: &RunOutcome, mut now: RunOutcome) -> RunOutcome {
    if let (RunOutcome::Analysed(then), RunOutcome::Analysed(now)) = (then, &mut now) {
        for (then, now) in then.images.iter().zip(&mut now.images) {
            now.lung_heat_fraction = now.lung_heat_fraction.filter(|_| then.lung_heat_fraction.is_some());
        }
    }
    if let (RunOutcome::CtMeasured(then), RunOutcome::CtMeasured(now)) = (then, &mut now)
        && let (Some(then), Some(now)) = (&then.classification, &mut now.classification)
    {
        now.without_maps &= then.without_maps;
    }
    now
}

fn words(record: &RunRecord, comparison: &Comparison, seconds: f64) -> String {
    let head = format!(
        "run {} of bundle {} {} repeated in {seconds:.2} s; nothing was stored",
        record.run_id, record.bundle.name, record.bundle.version
    );
    let verdict = match comparison {
        Comparison::Identical => "identical, bit for bit".to_owned(),
        Comparison::WithinTolerance { numbers, largest } => format!(
            "the same: {} within {largest:.1e} (another batch, number of threads or processor), everything else identical",
            super::output::count(*numbers, "number")
        ),
        Comparison::Different { listed, count } => {
            format!("different in {}:\n  {}", super::output::count(*count, "place"), listed.join("\n  "))
        }
    };
    format!("{head}\n{verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::samples,
        types::{BundleStatus, ImageAnalysis},
    };

    #[test]
    fn what_the_version_of_then_did_not_measure_is_not_compared() {
        let with = |change: fn(&mut ImageAnalysis)| {
            let mut outcome =
                samples::analysed(BundleStatus::Unvalidated, &samples::SampleSource::new("1.2.3")).outcome;
            let RunOutcome::Analysed(analysis) = &mut outcome else { panic!("analysed") };
            analysis.images.iter_mut().for_each(change);
            outcome
        };
        let now = with(|_| {});
        let earlier = with(|image| image.lung_heat_fraction = None);
        assert_eq!(compare(&earlier, &as_measured_then(&earlier, now.clone())), Comparison::Identical);
        let other = with(|image| image.lung_heat_fraction = Some(0.1));
        let compared = compare(&other, &as_measured_then(&other, now));
        assert!(matches!(compared, Comparison::Different { count: 1, .. }), "{compared:?}");
    }
}
