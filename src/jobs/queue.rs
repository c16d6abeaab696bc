//! Adding jobs, inside the transaction that makes them necessary.

use graphile_worker::{IntoTaskHandlerResult, JobKeyMode, JobSpec, TaskHandler, WorkerContext, WorkerUtils};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{JobError, worker::HandlerExtension};
use crate::{
    db::{Connection, Db, run},
    types::Urgency,
};

/// The schema that the queue owns in our database.
pub(super) const SCHEMA: &str = "graphile_worker";

/// Of urgent jobs; lower goes first, and routine jobs have 0.
const BEFORE_ROUTINE: i16 = -100;

/// What is to be done, and for which row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Decide whether a workup is complete, and route it.
    CompleteWorkup(Uuid),
    /// Ask the sender of a workup how many instances its study has.
    AskSource(Uuid),
    /// Execute a run.
    RunBundle(Uuid),
    /// Render the results of a finished run.
    RenderRun(Uuid),
    /// Drain the ledger of a destination.
    Deliver(String),
    /// Compare a peer's Storage Commitment request with the archive and report to it.
    ReportCommitment(Uuid),
}

/// The kinds of jobs; each has workers of its own, so that a dead PACS never takes the slots of inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// [`Job::CompleteWorkup`]
    CompleteWorkup,
    /// [`Job::AskSource`]
    AskSource,
    /// [`Job::RunBundle`]
    RunBundle,
    /// [`Job::RunBundle`] that is urgent: it waits for no place of others.
    RunStat,
    /// [`Job::RunBundle`] of a shadow: it takes no place from a run that somebody waits for.
    RunShadow,
    /// [`Job::RenderRun`]
    RenderRun,
    /// [`Job::Deliver`]
    Deliver,
    /// [`Job::ReportCommitment`]
    ReportCommitment,
}

impl JobKind {
    /// The queue's name for it.
    #[must_use]
    pub const fn task_name(self) -> &'static str {
        match self {
            Self::CompleteWorkup => CompleteWorkup::IDENTIFIER,
            Self::AskSource => AskSource::IDENTIFIER,
            Self::RunBundle => RunBundle::IDENTIFIER,
            Self::RunStat => RunStat::IDENTIFIER,
            Self::RunShadow => RunShadow::IDENTIFIER,
            Self::RenderRun => RenderRun::IDENTIFIER,
            Self::Deliver => Deliver::IDENTIFIER,
            Self::ReportCommitment => ReportCommitment::IDENTIFIER,
        }
    }
}

impl Job {
    /// One waiting job for each key: queueing again moves its time.
    pub(super) fn key(&self) -> String {
        match self {
            Self::CompleteWorkup(id) => format!("complete:{id}"),
            Self::AskSource(id) => format!("ask:{id}"),
            Self::RunBundle(id) => format!("run:{id}"),
            Self::RenderRun(id) => format!("render:{id}"),
            Self::Deliver(destination) => format!("deliver:{destination}"),
            Self::ReportCommitment(id) => format!("commitment:{id}"),
        }
    }
}

macro_rules! task {
    ($(#[$doc:meta])* $name:ident, $identifier:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        pub(super) struct $name {
            pub(super) id: String,
        }

        impl TaskHandler for $name {
            const IDENTIFIER: &'static str = $identifier;

            async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
                let Some(HandlerExtension(handler)) = context.get_ext::<HandlerExtension>() else {
                    return Err(format!("no handler is registered for {}", $identifier));
                };
                handler.run(self.id).await.map_err(|error| format!("{error:#}"))
            }
        }
    };
}

task!(CompleteWorkup, "complete_workup");
task!(AskSource, "ask_source");
task!(RunBundle, "run_bundle");
task!(RunStat, "run_stat");
task!(RunShadow, "run_shadow");
task!(RenderRun, "render_run");
task!(
    /// `id` is the destination's name; its jobs share a queue of their own and so never overlap.
    Deliver,
    "deliver"
);

task!(ReportCommitment, "report_commitment");

/// Creates or updates the queue's own tables.
pub async fn migrate(db: &Db) -> Result<(), JobError> {
    WorkerUtils::new(db.pool().clone(), SCHEMA).migrate().await.map_err(|error| JobError::Migrate(error.to_string()))
}

/// How urgent what a job is for is.
async fn urgency(connection: &mut Connection, job: &Job) -> Result<Urgency, JobError> {
    let (Job::RunBundle(run_id) | Job::RenderRun(run_id)) = job else { return Ok(Urgency::Routine) };
    let (priority, role) = run::urgency(connection, *run_id).await?;
    Ok(Urgency::of(priority, role))
}

/// Queues a job in the caller's transaction, now or at `run_at`. A waiting job of the same row is replaced.
pub async fn queue(
    connection: &mut Connection,
    db: &Db,
    job: &Job,
    run_at: Option<OffsetDateTime>,
) -> Result<(), JobError> {
    let urgency = urgency(connection, job).await?;
    let priority = if urgency == Urgency::Stat { BEFORE_ROUTINE } else { 0 };
    let mut spec = JobSpec::builder().job_key(job.key()).priority(priority);
    if let Some(run_at) = run_at {
        let run_at = chrono::DateTime::from_timestamp(run_at.unix_timestamp(), run_at.nanosecond());
        if let Some(run_at) = run_at {
            spec = spec.run_at(run_at);
        }
    }
    if let Job::Deliver(_) = job {
        spec = spec.queue_name(job.key());
        if run_at.is_some() {
            // A look planned for later must not put off one that somebody has just asked for.
            spec = spec.job_key_mode(JobKeyMode::PreserveRunAt);
        }
    }
    let spec = spec.build();
    let mut utils = WorkerUtils::new(db.pool().clone(), SCHEMA).with_executor(connection);
    match job {
        Job::CompleteWorkup(id) => utils.add_job(CompleteWorkup { id: id.to_string() }, spec).await?,
        Job::AskSource(id) => utils.add_job(AskSource { id: id.to_string() }, spec).await?,
        Job::RunBundle(id) => match urgency {
            Urgency::Stat => utils.add_job(RunStat { id: id.to_string() }, spec).await?,
            Urgency::Routine => utils.add_job(RunBundle { id: id.to_string() }, spec).await?,
            Urgency::Shadow => utils.add_job(RunShadow { id: id.to_string() }, spec).await?,
        },
        Job::RenderRun(id) => utils.add_job(RenderRun { id: id.to_string() }, spec).await?,
        Job::Deliver(destination) => utils.add_job(Deliver { id: destination.clone() }, spec).await?,
        Job::ReportCommitment(id) => utils.add_job(ReportCommitment { id: id.to_string() }, spec).await?,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::testing::{TestDatabase, new_run, workup},
        types::{RunPriority, RunRole},
    };

    /// Workers of their own: an urgent run waits for no place of others, and a shadow takes none from a run that somebody
    /// waits for. One that takes over moves.
    #[tokio::test]
    async fn urgent_runs_and_shadows_have_jobs_of_their_own() {
        let database = TestDatabase::start("shadow_jobs").await;
        let db = &database.db;
        migrate(db).await.unwrap();
        let mut connection = db.acquire().await.unwrap();
        let workup_id = workup(db, "1.2.3").await;
        let (stat, live) = (RunPriority::Stat, new_run(workup_id));
        let live = run::NewRun { priority: stat, ..live };
        let shadow = run::NewRun { role: RunRole::Shadow, bundle: "next", priority: stat, ..live.clone() };
        let jobs = async || -> Vec<(String, i16)> {
            let jobs = sqlx::query_as(
                "select t.identifier, j.priority from graphile_worker._private_jobs j
                 join graphile_worker._private_tasks t on t.id = j.task_id order by j.id",
            );
            jobs.fetch_all(db.pool()).await.unwrap()
        };
        let mut runs = Vec::new();
        for new in [&live, &shadow] {
            let run_id = run::insert(&mut connection, new).await.unwrap().unwrap();
            queue(&mut connection, db, &Job::RunBundle(run_id), None).await.unwrap();
            runs.push(run_id);
        }
        let of = |task: &str, priority: i16| (task.to_owned(), priority);
        assert_eq!(jobs().await, [of("run_stat", BEFORE_ROUTINE), of("run_shadow", 0)]);
        sqlx::query("update run set role = 'live' where id = $1").bind(runs[1]).execute(db.pool()).await.unwrap();
        queue(&mut connection, db, &Job::RunBundle(runs[1]), None).await.unwrap();
        assert_eq!(jobs().await, vec![of("run_stat", BEFORE_ROUTINE); 2], "and there is no second one");
        drop(connection);
        database.stop().await;
    }
}
