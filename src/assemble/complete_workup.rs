//! The job `complete_workup`: decides on a workup and hands it to a run.

use std::{future::Future, pin::Pin, time::Duration};

use anyhow::Context as _;
use uuid::Uuid;

use super::{Completeness, choose_route, completeness};
use crate::{
    db::{self, Db, run, site, workup},
    jobs::{self, Job, JobHandler},
};

/// Decides whether a workup is complete and which route takes it.
#[derive(Debug, Clone)]
pub struct CompleteWorkup {
    /// Where the rows are.
    pub db: Db,
    /// Attempts of a run before it is parked.
    pub maximum_attempts: u32,
}

/// How long to wait when no route fits.
const NO_ROUTE_QUIET: Duration = Duration::from_secs(10);
const NO_ROUTE_MAXIMUM_WAIT: Duration = Duration::from_mins(10);

impl CompleteWorkup {
    async fn decide(&self, workup_id: Uuid) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        let Some(facts) = workup::lock_facts(&mut tx, workup_id).await? else { return Ok(()) };
        if facts.state != "receiving" {
            return Ok(());
        }
        let site = site::load(&mut tx).await?;
        let route = choose_route(&site, &facts);
        let (quiet, maximum_wait) = match &route {
            Ok(route) => {
                (Duration::from_secs(route.quiet_seconds.into()), Duration::from_secs(route.max_wait_seconds.into()))
            }
            Err(_) => (NO_ROUTE_QUIET, NO_ROUTE_MAXIMUM_WAIT),
        };
        let reason = match completeness(&facts, quiet, maximum_wait) {
            Completeness::WaitUntil(due_at) => {
                workup::postpone(&mut tx, workup_id, due_at).await?;
                jobs::queue(&mut tx, &self.db, &Job::CompleteWorkup(workup_id), Some(due_at)).await?;
                return commit(tx).await;
            }
            Completeness::Complete { reason } => reason,
        };
        workup::complete(&mut tx, workup_id, facts.revision, &reason).await?;
        match route {
            Err(not_routed) => {
                workup::not_routed(&mut tx, workup_id, facts.revision, &not_routed.0).await?;
                commit(tx).await?;
                tracing::info!(%workup_id, study_instance_uid = facts.study_instance_uid, reason = not_routed.0, "study kept, not routed");
            }
            Ok(route) => {
                workup::analysing(&mut tx, workup_id, facts.revision, &route.name).await?;
                let new = run::NewRun {
                    workup_id,
                    revision: facts.revision,
                    bundle: &route.bundle,
                    destinations: &route.destinations,
                    maximum_attempts: i32::try_from(self.maximum_attempts).unwrap_or(i32::MAX),
                };
                let run_id = run::insert(&mut tx, &new).await?;
                if let Some(run_id) = run_id {
                    jobs::queue(&mut tx, &self.db, &Job::RunBundle(run_id), None).await?;
                }
                commit(tx).await?;
                tracing::info!(%workup_id, study_instance_uid = facts.study_instance_uid, route = route.name, reason, "study complete");
            }
        }
        Ok(())
    }
}

async fn commit(tx: db::Tx) -> anyhow::Result<()> {
    tx.commit().await.context("commit")
}

impl JobHandler for CompleteWorkup {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.decide(id.parse().context("read the workup id")?).await })
    }
}
