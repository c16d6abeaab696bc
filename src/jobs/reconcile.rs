//! The rows are the truth: whatever is due and has no job gets one.

use std::{collections::BTreeSet, time::Duration};

use sqlx::Row;
use tokio_util::sync::CancellationToken;

use super::{Job, JobError, queue};
use crate::db::{Db, DbError, commitment, delivery, run, workup};

/// How many jobs were missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Rows that were due.
    pub due: usize,
    /// Of those, rows that had no job and got one.
    pub queued: usize,
}

/// Queues every due, non-terminal row that has no job.
pub async fn reconcile(db: &Db) -> Result<Reconciled, JobError> {
    let mut tx = db.begin().await?;
    workup::answer_all_done(&mut tx).await?;
    // A queue that is locked by no job would hold its destination's deliveries back for ever. The queue's own
    // statements lock and release both at once, so this is left only when somebody removed a job that was running.
    sqlx::query(
        "update graphile_worker._private_job_queues q set locked_at = null, locked_by = null
         where q.locked_at < now() - interval '5 seconds' and not exists
             (select from graphile_worker._private_jobs j where j.job_queue_id = q.id and j.locked_at is not null)",
    )
    .execute(&mut *tx)
    .await
    .map_err(DbError::from)?;
    let mut jobs = Vec::new();
    jobs.extend(workup::due(&mut tx).await?.into_iter().map(Job::CompleteWorkup));
    jobs.extend(workup::with_new_commitment(&mut tx).await?.into_iter().map(Job::CompleteWorkup));
    jobs.extend(run::due(&mut tx).await?.into_iter().map(Job::RunBundle));
    jobs.extend(run::unrendered(&mut tx).await?.into_iter().map(Job::RenderRun));
    jobs.extend(delivery::due_destinations(&mut tx).await?.into_iter().map(Job::Deliver));
    jobs.extend(commitment::due(&mut tx).await?.into_iter().map(Job::ReportCommitment));
    let keys: Vec<String> = jobs.iter().map(Job::key).collect();
    // A job that has used up its attempts, or that the queue's own backoff has put off for hours, does not count:
    // queueing again replaces it.
    let existing: BTreeSet<String> = sqlx::query(
        "select key from graphile_worker._private_jobs
         where key = any($1) and attempts < max_attempts
           and (locked_at is not null or run_at <= now() + interval '10 seconds')",
    )
    .bind(&keys)
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::from)?
    .iter()
    .map(|row| row.try_get::<String, _>("key"))
    .collect::<Result<_, _>>()
    .map_err(DbError::from)?;
    let mut queued = 0;
    for (job, key) in jobs.iter().zip(&keys) {
        if !existing.contains(key) {
            queue(&mut tx, db, job, None).await?;
            queued += 1;
        }
    }
    tx.commit().await.map_err(DbError::from)?;
    Ok(Reconciled { due: jobs.len(), queued })
}

/// Reconciles at once and then at every `interval` until `shutdown`.
pub async fn reconcile_regularly(db: Db, interval: Duration, shutdown: CancellationToken) {
    loop {
        match reconcile(&db).await {
            Ok(Reconciled { queued: 0, .. }) => {}
            Ok(done) => tracing::info!(queued = done.queued, due = done.due, "queued due rows that had no job"),
            Err(error) => tracing::warn!(%error, "cannot reconcile rows and jobs; trying again later"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}
