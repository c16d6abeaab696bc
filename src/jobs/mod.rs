//! The job queue: typed jobs on graphile_worker, their supervision, and `reconcile`.
//!
//! Architecture invariant: only this room knows graphile_worker. A job carries an id and nothing else; the rows
//! of `db/` are the truth and the queue is a hint, so a job that is lost, doubled or late does no harm:
//! [`reconcile`] queues every due row again, and every handler is fenced by its row.

mod queue;
mod reconcile;
mod worker;

pub use queue::{Job, JobKind, migrate, queue};
pub use reconcile::{Reconciled, reconcile, reconcile_regularly};
pub use worker::{JobHandler, WorkerSettings, release_dead_workers, supervise};

/// What can go wrong with the queue.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Queueing failed.
    #[error("queue a job: {0}")]
    Queue(#[from] graphile_worker::errors::GraphileWorkerError),
    /// The queue's own schema cannot be migrated.
    #[error("migrate the job queue: {0}")]
    Migrate(String),
    /// A worker cannot be built or has ended.
    #[error("job worker: {0}")]
    Worker(String),
    /// Our own tables failed.
    #[error(transparent)]
    Db(#[from] crate::db::DbError),
}
