//! Tells and counts what the inference process does: it writes its steps into the timeline, and this process,
//! whose log and metrics operators watch, reads them there.

use std::{collections::BTreeSet, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    db::{
        self, Db,
        status::{self, RunStep},
    },
    telemetry::{Label as _, Metrics, RunEnd, RunStage, events},
    types::{ReasonCode, RunRole, Uid},
};

const INTERVAL: Duration = Duration::from_secs(1);

/// How many numbers behind the newest a late commit may be.
const LOOK_BACK: usize = 200;

/// Follows the timeline from now on until `shutdown`.
pub(super) async fn follow(db: Db, metrics: std::sync::Arc<Metrics>, shutdown: CancellationToken) {
    let mut after = None;
    let mut told = BTreeSet::new();
    loop {
        match steps(&db, &mut after, &told).await {
            Ok(steps) => {
                for step in steps {
                    tell(&step, &metrics);
                    told.insert(step.event_id);
                }
                while told.len() > 2 * LOOK_BACK {
                    told.pop_first();
                }
            }
            // While Postgres is away nothing happens to runs; the next look goes on where this one stopped.
            Err(error) => tracing::debug!(%error, "cannot follow the runs"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// The steps after event number `after` (the end of the timeline at the first look) that are not `told`; moves `after`
/// on, so that each look reads only what is new.
async fn steps(db: &Db, after: &mut Option<i64>, told: &BTreeSet<i64>) -> db::Result<Vec<RunStep>> {
    let mut connection = db.acquire().await?;
    let newest = status::newest_event_id(&mut connection).await?;
    let Some(since) = *after else {
        *after = Some(newest);
        return Ok(Vec::new());
    };
    let steps = status::run_steps_after(&mut connection, since).await?;
    let reached = match steps.last() {
        Some(last) if steps.len() as i64 >= status::RUN_STEPS_LIMIT => last.event_id,
        _ => newest,
    };
    // Numbers are given before the commit: one lower than the last may appear later.
    *after = Some(since.max(reached - LOOK_BACK as i64));
    Ok(steps.into_iter().filter(|step| !told.contains(&step.event_id)).collect())
}

fn tell(step: &RunStep, metrics: &Metrics) {
    // What nobody is owed is neither counted with what is, nor an alarm.
    if step.role == RunRole::Shadow.name() {
        let RunStep { run_id, study_instance_uid, bundle, kind, words, .. } = step;
        if step.kind == "parked" {
            tracing::warn!(%run_id, study_instance_uid, bundle, words, "a run beside the one that answers is parked");
        } else {
            tracing::debug!(%run_id, study_instance_uid, bundle, kind, words, "a run beside the one that answers");
        }
        return;
    }
    let Ok(study_instance_uid) = Uid::new(&step.study_instance_uid) else { return };
    let end = match step.kind.as_str() {
        "running" => {
            return events::RunStarted {
                run_id: step.run_id,
                study_instance_uid: &study_instance_uid,
                bundle: &step.bundle,
                attempt: step.attempt.unsigned_abs(),
                maximum_attempts: step.maximum_attempts.unsigned_abs(),
            }
            .emit(metrics);
        }
        "succeeded" => RunEnd::Succeeded,
        "not_analysed" => RunEnd::NotAnalysed,
        "superseded" => RunEnd::Superseded,
        "failed" => RunEnd::Failed,
        "parked" => RunEnd::Parked,
        _ => return,
    };
    events::RunEnded {
        run_id: step.run_id,
        study_instance_uid: &study_instance_uid,
        end,
        reason: step.reason.as_deref().and_then(ReasonCode::from_id),
        words: &step.words,
        duration: Duration::try_from_secs_f64(step.seconds.unwrap_or_default()).unwrap_or_default(),
        stages: &stages(step),
    }
    .emit(metrics);
}

fn stages(step: &RunStep) -> Vec<(RunStage, Duration)> {
    let Some(stages) = step.stage_milliseconds.as_ref().and_then(serde_json::Value::as_object) else {
        return Vec::new();
    };
    RunStage::ALL
        .iter()
        .filter_map(|stage| {
            let milliseconds = stages.get(stage.as_str())?.as_f64()?;
            Some((*stage, Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?))
        })
        .collect()
}
