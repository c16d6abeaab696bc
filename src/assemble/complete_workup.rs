//! The job `complete_workup`: decides on a workup and hands it to a run.

use std::{borrow::Cow, future::Future, pin::Pin};

use anyhow::Context as _;
use uuid::Uuid;

use super::{Completeness, NotRouted, Rules, SourceQuestion, StudyToRoute, choose_route, completeness};
use crate::{
    db::{
        self, Db, event, run, site, trial,
        workup::{self, Facts},
    },
    jobs::{self, Job, JobHandler},
    types::{AeTitle, Route, RunPriority, RunRole, SiteConfig, TrialMode},
};

/// Shadows of a bundle that may wait for their turn: on a node that cannot keep up, more of them would never be computed.
const MAXIMUM_WAITING_SHADOWS: i64 = 200;

/// Decides whether a workup is complete and which route takes it.
#[derive(Clone)]
pub struct CompleteWorkup {
    /// Where the rows are.
    pub db: Db,
    /// Attempts of a run before it is parked.
    pub maximum_attempts: u32,
}

impl CompleteWorkup {
    async fn decide(&self, workup_id: Uuid) -> anyhow::Result<()> {
        if self.look(workup_id).await?.is_some() {
            let mut connection = self.db.acquire().await?;
            jobs::queue(&mut connection, &self.db, &Job::AskSource(workup_id), None).await?;
        }
        Ok(())
    }

    /// Decides on what is known; returns the question when the sender has to be asked first.
    pub(super) async fn look(&self, workup_id: Uuid) -> anyhow::Result<Option<SourceQuestion>> {
        let mut tx = self.db.begin().await?;
        let Some(facts) = workup::lock_facts(&mut tx, workup_id).await? else { return Ok(None) };
        if facts.state != "receiving" {
            return Ok(None);
        }
        let site = site::load(&mut tx).await?;
        let modalities = facts.modalities();
        let study = StudyToRoute {
            local_ae_title: &facts.local_ae_title,
            calling_ae_title: &facts.calling_ae_title,
            modalities: &modalities,
        };
        let route = choose_route(&site, &study);
        let question = question(&site, &facts);
        let rules = match &route {
            Ok(route) => Rules::of(route, question.is_some()),
            Err(_) => Rules::without_route(),
        };
        match completeness(&facts, &rules) {
            Completeness::AskSource => return Ok(question),
            Completeness::Wait(waiting) => {
                workup::wait(&mut tx, &facts, &waiting).await?;
                jobs::queue(&mut tx, &self.db, &Job::CompleteWorkup(workup_id), Some(waiting.until)).await?;
                commit(tx).await?;
            }
            Completeness::Complete(evidence) => {
                workup::complete(&mut tx, &facts, &evidence).await?;
                self.hand_on(tx, &facts, route, &evidence.words).await?;
            }
        }
        Ok(None)
    }

    /// Gives a complete study to its route's pipeline.
    async fn hand_on(
        &self,
        mut tx: db::Tx,
        facts: &Facts,
        route: Result<&Route, NotRouted>,
        reason: &str,
    ) -> anyhow::Result<()> {
        let (workup_id, revision) = (facts.id, facts.revision);
        let study_instance_uid = facts.study_instance_uid.as_str();
        match route {
            Err(not_routed) => {
                workup::not_routed(&mut tx, workup_id, revision, &not_routed.0).await?;
                commit(tx).await?;
                tracing::info!(%workup_id, study_instance_uid, reason = not_routed.0, "study kept, not routed");
            }
            Ok(route) => {
                workup::analysing(&mut tx, workup_id, revision, &route.name).await?;
                let route = without_hopeless_trial(&mut tx, route, workup_id).await?;
                for (bundle, role) in route.runs_of(study_instance_uid) {
                    let internal = role == RunRole::Shadow;
                    let new = run::NewRun {
                        workup_id,
                        revision,
                        bundle,
                        role,
                        pipeline: route.pipeline,
                        priority: if internal { RunPriority::Routine } else { route.priority },
                        destinations: if internal { &[] } else { &route.destinations },
                        rules: if internal { &[] } else { &route.rules },
                        maximum_attempts: i32::try_from(self.maximum_attempts).unwrap_or(i32::MAX),
                    };
                    if let Some(run_id) = run::insert(&mut tx, &new).await? {
                        jobs::queue(&mut tx, &self.db, &Job::RunBundle(run_id), None).await?;
                    }
                }
                commit(tx).await?;
                tracing::info!(%workup_id, study_instance_uid, route = route.name, reason, "study complete");
            }
        }
        Ok(())
    }
}

/// The route, without its trial where that leads nowhere: a bundle that fails on every study is not run on more of them, and
/// where too many shadows wait, a study has the route's own bundle alone. A canary without its shadow would have nobody to
/// take over from it.
async fn without_hopeless_trial<'a>(
    tx: &mut db::Tx,
    route: &'a Route,
    workup_id: Uuid,
) -> anyhow::Result<Cow<'a, Route>> {
    let Some(trial) = &route.trial else { return Ok(Cow::Borrowed(route)) };
    let shadow = match trial.mode {
        TrialMode::Shadow => &trial.bundle,
        TrialMode::Canary => &route.bundle,
    };
    let why = if trial::is_suspended(tx, &route.name, &trial.bundle).await? {
        "its last runs on this route are all parked; restart one with `hilum run restart` when it is mended"
    } else if run::waiting_shadows(tx, shadow).await? >= MAXIMUM_WAITING_SHADOWS {
        "too many runs that stay internal wait for their turn"
    } else {
        return Ok(Cow::Borrowed(route));
    };
    let bundle = &trial.bundle;
    let words = format!("bundle `{bundle}` is not tried on this study: {why}");
    event::append(tx, event::Subject::Workup, workup_id, "not_tried", &words, serde_json::json!({})).await?;
    tracing::warn!(%workup_id, bundle, why, "a bundle is not tried on a study");
    Ok(Cow::Owned(Route { trial: None, ..route.clone() }))
}

/// The question to the sender of a study, if it is a peer that wants to be asked.
fn question(site: &SiteConfig, facts: &Facts) -> Option<SourceQuestion> {
    let peer = site
        .peers
        .iter()
        .find(|peer| peer.count_at_source && peer.may_store && peer.ae_title.as_str() == facts.calling_ae_title)?;
    Some(SourceQuestion {
        peer: peer.clone(),
        calling_ae_title: AeTitle::new(&facts.local_ae_title).ok()?,
        study_instance_uid: facts.study_instance_uid.clone(),
    })
}

async fn commit(tx: db::Tx) -> anyhow::Result<()> {
    tx.commit().await.context("commit")
}

impl JobHandler for CompleteWorkup {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.decide(id.parse().context("read the workup id")?).await })
    }
}
