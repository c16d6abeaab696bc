//! The inference process itself: what `hilum infer-child` runs.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use time::{OffsetDateTime, UtcOffset};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    installation, open_archive, open_database, sole_use::SoleUse, texts, tuning::network_threads, wait_for_schema,
};
use crate::{
    config::Config,
    db,
    dimse::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME},
    imaging::DecodeLimits,
    infer::worker::{self, WorkerSettings as InferSettings},
    jobs::{self, JobHandler, JobKind, WorkerSettings},
    nn::{EnsembleOptions, require_devices},
    report::{FileMetaIds, RenderOptions},
    types::Uid,
};

/// Works on runs until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(_sole_use) = SoleUse::of_inference(&config.node.data_dir, &shutdown).await? else { return Ok(()) };
    let db = open_database(&config)?;
    let archive = open_archive(&config)?;
    if !wait_for_schema(&Config { database: without_migrations(&config), ..config.clone() }, &db, &shutdown).await {
        return Ok(());
    }
    // Before any run is claimed: a missing GPU is no study's fault.
    let devices = config.inference.devices.as_slice().to_vec();
    let to_check = devices.clone();
    tokio::task::spawn_blocking(move || require_devices(&to_check))
        .await?
        .context("check what `inference.device` names")?;
    let threads = network_threads(&config);
    let node = config.node.name.to_string();
    let installed = installation(&config, &db).await?;
    let settings = InferSettings {
        models_dir: config.inference.models_dir.clone(),
        installation: installed.installation,
        configuration_sha256: config.results_digest(),
        render: render_options(&config)?,
        machine_utc_offset,
        ensemble: EnsembleOptions {
            devices,
            max_batch: config.inference.max_batch,
            gather: Duration::from_millis(config.inference.batch_wait_milliseconds),
            optimise: config.inference.optimise,
            intra_op_threads: threads.classifiers,
            segmenter_threads: threads.segmenter,
            ..EnsembleOptions::default()
        },
        run_timeout: config.inference.run_timeout,
        node: node.clone(),
        decode_limits: DecodeLimits { max_decoded_bytes: config.inference.max_decoded_bytes.bytes() },
    };
    let site = db::site::load(&mut *db.acquire().await?).await.context("read the site configuration")?;
    let languages = &settings.render.texts;
    for words in [texts::without_language(&site, languages), texts::not_in_pictures(languages)].concat() {
        tracing::warn!("{words}");
    }
    let kinds = [JobKind::RunBundle, JobKind::RunStat, JobKind::RunShadow, JobKind::RenderRun];
    jobs::release_dead_workers(&db, &node, &kinds).await.context("give back the jobs of dead workers")?;
    db::run::release_dead(&mut *db.acquire().await?, &node).await.context("give back the runs of a dead process")?;
    // A crash cut runs off in the middle: their jobs are free again, and their rows say so.
    jobs::reconcile(&db).await.context("reconcile")?;
    let (run_bundle, render_run) = worker::handlers(db.clone(), archive, settings);
    let worker_settings = |kind| WorkerSettings {
        kind,
        concurrency: if kind == JobKind::RunShadow { 1 } else { config.inference.concurrent_runs },
        node: node.clone(),
        shutdown_grace: config.node.shutdown_grace,
    };
    tracing::info!("the inference process is ready");
    let bundles = run_bundle.clone();
    let run_bundle: Arc<dyn JobHandler> = Arc::new(run_bundle);
    let render_run: Arc<dyn JobHandler> = Arc::new(render_run);
    tokio::join!(
        jobs::supervise(db.clone(), worker_settings(JobKind::RunBundle), Arc::clone(&run_bundle), shutdown.clone()),
        jobs::supervise(db.clone(), worker_settings(JobKind::RunStat), Arc::clone(&run_bundle), shutdown.clone()),
        jobs::supervise(db.clone(), worker_settings(JobKind::RunShadow), run_bundle, shutdown.clone()),
        jobs::supervise(db.clone(), worker_settings(JobKind::RenderRun), render_run, shutdown.clone()),
        bundles.let_go_regularly(shutdown.clone()),
    );
    db.close().await;
    Ok(())
}

/// The parent migrates; this process only waits for it.
fn without_migrations(config: &Config) -> crate::config::DatabaseConfig {
    crate::config::DatabaseConfig { migrate_on_start: false, ..config.database.clone() }
}

fn render_options(config: &Config) -> anyhow::Result<RenderOptions> {
    let file_meta = FileMetaIds {
        implementation_class_uid: Uid::new(IMPLEMENTATION_CLASS_UID)?,
        implementation_version_name: IMPLEMENTATION_VERSION_NAME.to_owned(),
    };
    let mut options = RenderOptions::new(file_meta, texts::languages(config.node.texts_dir.as_deref())?);
    options.site_utc_offset = config.node.utc_offset;
    if let Some(manufacturer) = &config.node.manufacturer_name {
        options.manufacturer = manufacturer.to_string();
    }
    Ok(options)
}

/// The machine's offset from UTC at an instant, by its time zone's rules for that day.
fn machine_utc_offset(at: OffsetDateTime) -> UtcOffset {
    use chrono::{Offset as _, TimeZone as _};
    let offset_seconds = match chrono::Local.timestamp_opt(at.unix_timestamp(), 0) {
        chrono::LocalResult::Single(local) => local.offset().fix().local_minus_utc(),
        _ => 0,
    };
    UtcOffset::from_whole_seconds(offset_seconds).unwrap_or(UtcOffset::UTC)
}

/// Completes when the parent closes our standard input, by will or by dying.
pub async fn parent_is_gone() {
    let mut stdin = tokio::io::stdin();
    let mut nothing = [0; 64];
    while let Ok(count) = stdin.read(&mut nothing).await {
        if count == 0 {
            return;
        }
    }
}
