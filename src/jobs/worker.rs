//! Running jobs: one supervised graphile_worker for each kind.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use graphile_worker::{WorkerOptions, WorkerStart, WorkerUtils};
use tokio_util::sync::CancellationToken;

use super::{
    JobError, JobKind,
    queue::{AskSource, CompleteWorkup, Deliver, RenderRun, ReportCommitment, RunBundle, RunShadow, RunStat, SCHEMA},
};
use crate::db::{Db, queue_worker};

/// Does the work of one kind of job. An error is logged, and the job is tried again by the queue; outcomes that
/// belong to a run or delivery are recorded in its row instead, and the handler answers `Ok`.
pub trait JobHandler: Send + Sync + 'static {
    /// Works on the row with this id (for `deliver`: the destination's name).
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>>;
}

/// The handler as graphile_worker wants it.
#[derive(Clone)]
pub(super) struct HandlerExtension(pub(super) Arc<dyn JobHandler>);

impl std::fmt::Debug for HandlerExtension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandlerExtension")
    }
}

/// How a worker runs.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// What it works on.
    pub kind: JobKind,
    /// How many jobs at once.
    pub concurrency: usize,
    /// Our name for this node: a restart gives back the jobs that its dead workers held.
    pub node: String,
    /// How long jobs may go on after a shutdown begins.
    pub shutdown_grace: Duration,
}

/// Gives back the jobs that the earlier workers of this node and these kinds still hold. Called when a role starts,
/// before [`supervise`], and by it after a worker has ended: whatever they were, those workers are dead.
pub async fn release_dead_workers(db: &Db, node: &str, kinds: &[JobKind]) -> Result<(), JobError> {
    let mut tx = db.begin().await?;
    let mut dead = Vec::new();
    for kind in kinds {
        dead.extend(queue_worker::take(&mut tx, node, kind.task_name()).await?);
    }
    if !dead.is_empty() {
        let names: Vec<&str> = dead.iter().map(String::as_str).collect();
        WorkerUtils::new(db.pool().clone(), SCHEMA).with_executor(&mut *tx).force_unlock_workers(&names).await?;
        tracing::info!(workers = dead.len(), "gave back the jobs of workers that have ended");
    }
    tx.commit().await.map_err(crate::db::DbError::from)?;
    Ok(())
}

/// Runs a worker until `shutdown`, starting it again with a growing pause when it ends, as it does whenever
/// Postgres restarts.
pub async fn supervise(db: Db, settings: WorkerSettings, handler: Arc<dyn JobHandler>, shutdown: CancellationToken) {
    let mut pause = Duration::from_millis(250);
    while !shutdown.is_cancelled() {
        let started = std::time::Instant::now();
        match run_once(&db, &settings, Arc::clone(&handler), shutdown.clone()).await {
            Ok(()) if shutdown.is_cancelled() => return,
            Ok(()) => tracing::warn!(kind = settings.kind.task_name(), "the job worker ended; starting it again"),
            Err(error) => {
                tracing::warn!(kind = settings.kind.task_name(), %error, "the job worker ended; starting it again");
            }
        }
        if started.elapsed() > Duration::from_mins(1) {
            pause = Duration::from_millis(250);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(10));
        // The worker has let its handlers finish before it ended; what it could not give back is free again.
        if let Err(error) = release_dead_workers(&db, &settings.node, &[settings.kind]).await {
            tracing::debug!(%error, "cannot give back the jobs of the worker that ended; they come back by heartbeat");
        }
    }
}

async fn run_once(
    db: &Db,
    settings: &WorkerSettings,
    handler: Arc<dyn JobHandler>,
    shutdown: CancellationToken,
) -> Result<(), JobError> {
    let remembered_in = db.clone();
    let (node, role) = (settings.node.clone(), settings.kind.task_name());
    let options = WorkerOptions::default()
        .pg_pool(db.pool().clone())
        .schema(SCHEMA)
        .concurrency(settings.concurrency.max(1))
        // What is due at a time is found by looking; what is queued for now announces itself.
        .poll_interval(Duration::from_millis(500))
        .heartbeat_interval(Duration::from_secs(5))
        .sweep_interval(Duration::from_secs(15))
        .sweep_threshold(Duration::from_secs(45))
        .recovery_delay(Duration::ZERO)
        .listen_os_shutdown_signals(false)
        .shutdown_signal(async move { shutdown.cancelled().await })
        .shutdown_grace_period(settings.shutdown_grace)
        .shutdown_interrupted_job_retry_delay(Duration::ZERO)
        .add_extension(HandlerExtension(handler))
        .on(WorkerStart, move |context: graphile_worker::WorkerStartContext| {
            let (db, node) = (remembered_in.clone(), node.clone());
            async move {
                let remember = async {
                    let mut connection = db.acquire().await?;
                    queue_worker::insert(&mut connection, &context.worker_id, &node, role).await
                };
                if let Err(error) = remember.await {
                    tracing::warn!(%error, "cannot remember a job worker; its jobs come back by heartbeat if it dies");
                }
            }
        });
    let options = match settings.kind {
        JobKind::CompleteWorkup => options.define_job::<CompleteWorkup>(),
        JobKind::AskSource => options.define_job::<AskSource>(),
        JobKind::RunBundle => options.define_job::<RunBundle>(),
        JobKind::RunStat => options.define_job::<RunStat>(),
        JobKind::RunShadow => options.define_job::<RunShadow>(),
        JobKind::RenderRun => options.define_job::<RenderRun>(),
        JobKind::Deliver => options.define_job::<Deliver>(),
        JobKind::ReportCommitment => options.define_job::<ReportCommitment>(),
    };
    let worker = options.init().await.map_err(|error| JobError::Worker(error.to_string()))?;
    worker.run().await.map_err(|error| JobError::Worker(error.to_string()))
}
