//! Runs: one execution of one bundle on one revision of a workup.
//!
//! ```text
//! queued ─► running ─► succeeded | not_analysed
//!              ├─► superseded
//!              ├─► failed ─► running …  ─► parked      (the attempt is committed before the work starts)
//!              └─► queued                              (its networks are taken out: the attempt is given back)
//! ```
//!
//! One run of a revision answers it, by its role `live` or `canary`. A `shadow` is never rendered or sent, and nothing
//! waits for it; it takes over from a canary that is parked.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{FromRow, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, DbError, Result, delivery, event, masks::PackedMasks, workup};
use crate::types::{
    BundleIdentity, Installation, Pipeline, PredecessorDocument, Predecessors, ResultRule, RunOutcome, RunPriority,
    RunRecord, RunRole, Sha256Digest, Uid,
};

/// A run to be made.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    /// For which workup.
    pub workup_id: Uuid,
    /// Of which revision.
    pub revision: i32,
    /// Name of the bundle folder.
    pub bundle: &'a str,
    /// What it is to its study.
    pub role: RunRole,
    /// What its route says that the bundle is for.
    pub pipeline: Pipeline,
    /// How urgent it is.
    pub priority: RunPriority,
    /// Names of the destinations that get the results.
    pub destinations: &'a [String],
    /// Where they go besides, and how soon, because of what was found.
    pub rules: &'a [ResultRule],
    /// Attempts before it is parked, at least 1.
    pub maximum_attempts: i32,
}

/// Queues a run; returns its id, or `None` when this workup revision has one of that bundle and role already.
pub async fn insert(connection: &mut Connection, new: &NewRun<'_>) -> Result<Option<Uuid>> {
    let id = Uuid::now_v7();
    let done = sqlx::query(
        "insert into run (id, workup_id, revision, role, bundle, destinations, state, words, attempt,
                          maximum_attempts, next_attempt_at, priority, pipeline, rules)
         values ($1, $2, $3, $9, $4, $5, 'queued', 'waiting for the inference process', 0, $6, now(), $7, $8, $10)
         on conflict (workup_id, revision, bundle, role) do nothing",
    )
    .bind(id)
    .bind(new.workup_id)
    .bind(new.revision)
    .bind(new.bundle)
    .bind(new.destinations)
    .bind(new.maximum_attempts.max(1))
    .bind(new.priority.name())
    .bind(new.pipeline.name())
    .bind(new.role.name())
    .bind(Json(new.rules))
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    let words = match new.role {
        RunRole::Live => format!("run of bundle `{}` queued", new.bundle),
        RunRole::Shadow => format!("run of bundle `{}` queued as a shadow: its results stay internal", new.bundle),
        RunRole::Canary => format!("run of bundle `{}` queued as a canary: its results are sent", new.bundle),
    };
    event::append(connection, event::Subject::Run, id, "queued", &words, json!({ "revision": new.revision })).await?;
    Ok(Some(id))
}

/// A claimed run: this attempt is committed, whatever happens next.
#[derive(Debug, Clone, FromRow)]
pub struct ClaimedRun {
    /// The run.
    pub id: Uuid,
    /// Its workup.
    pub workup_id: Uuid,
    /// The workup's revision.
    pub revision: i32,
    /// Name of the bundle folder.
    pub bundle: String,
    /// Number of this attempt, from 1; fences every later update.
    pub attempt: i32,
    /// When it was claimed. Tells this attempt from one that was given back and has the same number.
    pub started_at: OffsetDateTime,
    /// Attempts before it is parked.
    pub maximum_attempts: i32,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Our AE title that the study was sent to.
    pub local_ae_title: String,
    pipeline: Option<String>,
}

impl ClaimedRun {
    /// What its route says that the bundle is for; `None` for runs of versions that did not note it.
    #[must_use]
    pub fn pipeline(&self) -> Option<Pipeline> {
        self.pipeline.as_deref().and_then(Pipeline::from_name)
    }
}

/// How urgent a run is and what it is to its study; routine and live when there is no such run.
pub async fn urgency(connection: &mut Connection, run_id: Uuid) -> Result<(RunPriority, RunRole)> {
    let names: Option<(String, String)> =
        sqlx::query_as("select priority, role from run where id = $1").bind(run_id).fetch_optional(connection).await?;
    let names = names.as_ref();
    Ok((
        names.and_then(|(priority, _)| RunPriority::from_name(priority)).unwrap_or_default(),
        names.and_then(|(_, role)| RunRole::from_name(role)).unwrap_or_default(),
    ))
}

/// What claiming a run came to.
#[derive(Debug, Clone)]
pub enum Claim {
    /// Go ahead.
    Claimed(ClaimedRun),
    /// Nothing to do: it is finished, superseded, parked, or not yet due.
    Nothing,
    /// Somebody works on it, and has said so a moment ago: nothing was changed.
    WorkedOn,
    /// Its last attempt ended without a word (a crash), and there are no more.
    Parked,
}

/// How long a run is taken for one that is worked on after its worker has last said so.
pub const LEASE: Duration = Duration::from_secs(30);

/// Whether an attempt of the run, or a rendering of it, was begun and has not ended in order. One that is worked on has not
/// ended.
pub async fn was_interrupted(connection: &mut Connection, run_id: Uuid) -> Result<bool> {
    let interrupted: Option<bool> = sqlx::query_scalar(
        "select (state = 'running' or rendered_at is null and render_attempts > 0) and coalesce(alive_until <= now(), true)
         from run where id = $1",
    )
    .bind(run_id)
    .fetch_optional(connection)
    .await?;
    Ok(interrupted.unwrap_or(false))
}

/// Claims a run for the inference process of `node` and counts the attempt. Times are the clock's, not the transaction's,
/// which may have waited for the workup. The caller commits before it touches pixels or
/// libtorch, so that a crash is charged to this run; from then on it says with [`keep_alive`] that it works.
pub async fn claim(connection: &mut Connection, run_id: Uuid, node: &str) -> Result<Claim> {
    lock_workup_of(connection, run_id).await?;
    let row: Option<(Uuid, i32, i32, String, i32, i32, bool)> = sqlx::query_as(
        "select r.workup_id, r.revision, w.revision, r.state, r.attempt, r.maximum_attempts,
                r.state = 'running' and coalesce(r.alive_until > clock_timestamp(), false)
         from run r join workup w on w.id = r.workup_id
         where r.id = $1 and r.state in ('queued', 'running', 'failed') and r.next_attempt_at <= clock_timestamp() + interval '1 second'
         for update",
    )
    .bind(run_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((workup_id, revision, workup_revision, state, attempt, maximum_attempts, is_worked_on)) = row else {
        return Ok(Claim::Nothing);
    };
    if revision != workup_revision {
        supersede_earlier(connection, workup_id, workup_revision).await?;
        return Ok(Claim::Nothing);
    }
    if is_worked_on {
        return Ok(Claim::WorkedOn);
    }
    if attempt >= maximum_attempts {
        let words = format!(
            "attempt {attempt} of {maximum_attempts} ended without an answer: the inference process died; parked for a person to look at"
        );
        park(connection, run_id, attempt, workup_id, revision, "crash", &words).await?;
        return Ok(Claim::Parked);
    }
    let claimed: Option<ClaimedRun> = sqlx::query_as(
        "update run r set state = 'running', attempt = r.attempt + 1, started_at = clock_timestamp(), finished_at = null,
                worked_on_by = $4, alive_until = clock_timestamp() + make_interval(secs => $5),
                words = 'attempt ' || (r.attempt + 1) || ' of ' || r.maximum_attempts
         from workup w
         where r.id = $1 and r.state = $2 and r.attempt = $3 and w.id = r.workup_id
         returning r.id, r.workup_id, r.revision, r.bundle, r.attempt, r.started_at, r.maximum_attempts,
                   w.study_instance_uid, w.local_ae_title, r.pipeline",
    )
    .bind(run_id)
    .bind(&state)
    .bind(attempt)
    .bind(node)
    .bind(LEASE.as_secs_f64())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(claimed) = claimed else { return Ok(Claim::Nothing) };
    let words = if state == "running" {
        format!("attempt {} of {maximum_attempts} starts; the one before ended without an answer", claimed.attempt)
    } else {
        format!("attempt {} of {maximum_attempts} starts", claimed.attempt)
    };
    event::append(connection, event::Subject::Run, run_id, "running", &words, json!({ "attempt": claimed.attempt }))
        .await?;
    Ok(Claim::Claimed(claimed))
}

/// Says that a claimed run is still worked on. Returns whether the attempt still counts.
pub async fn keep_alive(connection: &mut Connection, claimed: &ClaimedRun) -> Result<bool> {
    let done = sqlx::query(
        "update run set alive_until = clock_timestamp() + make_interval(secs => $3)
         where id = $1 and started_at = $2 and state = 'running'",
    )
    .bind(claimed.id)
    .bind(claimed.started_at)
    .bind(LEASE.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Nobody works any more on a claimed run, and how its attempt ended could not be written: its next job need not wait. Fenced
/// by the time of the claim.
pub async fn end_lease(connection: &mut Connection, claimed: &ClaimedRun) -> Result<()> {
    sqlx::query("update run set alive_until = null where id = $1 and started_at = $2 and state = 'running'")
        .bind(claimed.id)
        .bind(claimed.started_at)
        .execute(connection)
        .await?;
    Ok(())
}

/// Nobody works any more on what the inference process of `node` has claimed, to analyse or to render it. Called when that
/// process starts: all earlier ones are dead.
pub async fn release_dead(connection: &mut Connection, node: &str) -> Result<()> {
    sqlx::query("update run set alive_until = null where worked_on_by = $1 and alive_until > clock_timestamp()")
        .bind(node)
        .execute(connection)
        .await?;
    Ok(())
}

/// Locks the workup of a run, as everybody does before they change runs: whoever holds it may be about to change others.
async fn lock_workup_of(connection: &mut Connection, run_id: Uuid) -> Result<()> {
    sqlx::query("select from workup where id = (select workup_id from run where id = $1) for update")
        .bind(run_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// What a finished attempt leaves behind.
#[derive(Debug, Clone)]
pub struct Finished<'a> {
    /// How it ended.
    pub outcome: &'a RunOutcome,
    /// Which algorithm, exactly.
    pub bundle: &'a BundleIdentity,
    /// Digest of the configuration it used.
    pub configuration_sha256: Sha256Digest,
    /// Identity of its results.
    pub result_key: Sha256Digest,
    /// Time of each stage in milliseconds.
    pub stage_milliseconds: &'a [(String, f64)],
    /// Each network with devices and precision; empty without networks.
    pub computed_with: &'a [String],
    /// Of a measured CT: what each voxel is.
    pub masks: Option<&'a PackedMasks>,
}

/// `running` → `succeeded` or `not_analysed`, fenced by attempt. Returns what the run is to its study by now; `None` when
/// this attempt no longer counted.
pub async fn finish(
    connection: &mut Connection,
    run_id: Uuid,
    attempt: i32,
    finished: &Finished<'_>,
) -> Result<Option<RunRole>> {
    let (state, reason, words) = match finished.outcome {
        RunOutcome::Analysed(analysis) => (
            "succeeded",
            None,
            format!("{} image(s) analysed, {} left out", analysis.images.len(), analysis.excluded.len()),
        ),
        RunOutcome::CtMeasured(analysis) => (
            "succeeded",
            None,
            format!(
                "a CT series of {} slices measured, {} series and {} image(s) left out",
                analysis.series.images.len(),
                analysis.excluded_series.len(),
                analysis.excluded.len()
            ),
        ),
        RunOutcome::NotAnalysed(not_analysed) => {
            ("not_analysed", Some(not_analysed.reason.id()), not_analysed.words.clone())
        }
    };
    let stages: serde_json::Map<String, Value> =
        finished.stage_milliseconds.iter().map(|(stage, ms)| (stage.clone(), json!(ms))).collect();
    let role: Option<String> = sqlx::query_scalar(
        "update run set state = $3, reason = $4, words = $5, outcome = $6, bundle_identity = $7, bundle_digest = $8,
                configuration_sha256 = $9, result_key = $10, stage_milliseconds = $11, finished_at = now(),
                alive_until = null, computed_with = $12, judged = coalesce(run_judged($6), 'null'), masks = $13
         where id = $1 and attempt = $2 and state = 'running' returning role",
    )
    .bind(run_id)
    .bind(attempt)
    .bind(state)
    .bind(reason)
    .bind(&words)
    .bind(Json(finished.outcome))
    .bind(Json(finished.bundle))
    .bind(&finished.bundle.digest.0[..])
    .bind(&finished.configuration_sha256.0[..])
    .bind(&finished.result_key.0[..])
    .bind(Value::Object(stages))
    .bind(finished.computed_with)
    .bind(finished.masks.map(PackedMasks::as_bytes))
    .fetch_optional(&mut *connection)
    .await?;
    let Some(role) = role else { return Ok(None) };
    event::append(connection, event::Subject::Run, run_id, state, &words, json!({ "attempt": attempt })).await?;
    RunRole::from_name(&role).map(Some).ok_or_else(|| DbError::unreadable("role of a run", role.as_str()))
}

/// What follows a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterFailure {
    /// Try again then.
    RetryAt(OffsetDateTime),
    /// No more attempts: parked, and its workup with it.
    Parked,
    /// Another attempt or revision has taken over; nothing was changed.
    Fenced,
}

/// `running` → `failed` with the next attempt's time, or `parked`, fenced by attempt. `words` holds no patient data.
pub async fn fail(
    connection: &mut Connection,
    claimed: &ClaimedRun,
    reason: &str,
    words: &str,
) -> Result<AfterFailure> {
    let words = format!("attempt {} of {}: {words}", claimed.attempt, claimed.maximum_attempts);
    if claimed.attempt >= claimed.maximum_attempts {
        let parked =
            park(connection, claimed.id, claimed.attempt, claimed.workup_id, claimed.revision, reason, &words).await?;
        return Ok(if parked { AfterFailure::Parked } else { AfterFailure::Fenced });
    }
    // 5 s, 10 s, 20 s … up to 5 min.
    let backoff_seconds = (5.0 * 2.0_f64.powi(claimed.attempt - 1)).min(300.0);
    let retry_at: Option<OffsetDateTime> = sqlx::query_scalar(
        "update run set state = 'failed', reason = $3, words = $4, finished_at = now(),
                next_attempt_at = now() + make_interval(secs => $5)
         where id = $1 and attempt = $2 and state = 'running' returning next_attempt_at",
    )
    .bind(claimed.id)
    .bind(claimed.attempt)
    .bind(reason)
    .bind(&words)
    .bind(backoff_seconds)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(retry_at) = retry_at else { return Ok(AfterFailure::Fenced) };
    event::append(connection, event::Subject::Run, claimed.id, "failed", &words, json!({ "attempt": claimed.attempt }))
        .await?;
    Ok(AfterFailure::RetryAt(retry_at))
}

/// `running` → `queued` again after `wait`, fenced by the time of the claim, and the attempt is given back: what it met, it would have
/// met with any other study too. Returns when it is due; `None` when another attempt or revision has taken over. `words`
/// holds no patient data.
pub async fn return_attempt(
    connection: &mut Connection,
    claimed: &ClaimedRun,
    wait: Duration,
    words: &str,
) -> Result<Option<OffsetDateTime>> {
    let words = format!("waits, without an attempt less: {words}");
    // The number may be given again. The caller may ask a second time, when it was not told of the first.
    let due_at: Option<OffsetDateTime> = sqlx::query_scalar(
        "update run set state = 'queued', attempt = attempt - 1, reason = null, words = $3, started_at = null,
                next_attempt_at = now() + make_interval(secs => $4)
         where id = $1 and started_at = $2 and state = 'running' returning next_attempt_at",
    )
    .bind(claimed.id)
    .bind(claimed.started_at)
    .bind(&words)
    .bind(wait.as_secs_f64())
    .fetch_optional(&mut *connection)
    .await?;
    if due_at.is_some() {
        event::append(connection, event::Subject::Run, claimed.id, "waiting", &words, json!({})).await?;
    }
    Ok(due_at)
}

async fn park(
    connection: &mut Connection,
    run_id: Uuid,
    attempt: i32,
    workup_id: Uuid,
    revision: i32,
    reason: &str,
    words: &str,
) -> Result<bool> {
    // The runs of a revision are parked one after the other: of two at once, each would take the other for its successor.
    lock_workup_of(connection, run_id).await?;
    let role: Option<String> = sqlx::query_scalar(
        "update run set state = 'parked', reason = $3, words = $4, finished_at = now()
         where id = $1 and attempt = $2 and (state in ('queued', 'running', 'failed')
               or state in ('succeeded', 'not_analysed') and rendered_at is null)
         returning role",
    )
    .bind(run_id)
    .bind(attempt)
    .bind(reason)
    .bind(words)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(role) = role else { return Ok(false) };
    event::append(connection, event::Subject::Run, run_id, "parked", words, json!({ "attempt": attempt })).await?;
    let answered_by_another = match RunRole::from_name(&role) {
        Some(RunRole::Shadow) => true,
        Some(RunRole::Canary) => hand_over(connection, run_id, workup_id, revision).await?,
        Some(RunRole::Live) | None => false,
    };
    if !answered_by_another {
        workup::park(connection, workup_id, revision, words).await?;
    }
    Ok(true)
}

/// The run that answers the revision of another one, and what is to be done for it; `None` when nothing is.
pub async fn answering(connection: &mut Connection, run_id: Uuid) -> Result<Option<(Uuid, Pending)>> {
    let found: Option<(Uuid, String, OffsetDateTime)> = sqlx::query_as(
        "select a.id, a.state, a.next_attempt_at from run r
         join run a on a.workup_id = r.workup_id and a.revision = r.revision and a.role <> 'shadow'
         where r.id = $1 and (a.state in ('queued', 'failed')
               or a.state in ('succeeded', 'not_analysed') and a.rendered_at is null)",
    )
    .bind(run_id)
    .fetch_optional(connection)
    .await?;
    Ok(found.map(|(id, state, due_at)| match state.as_str() {
        "queued" | "failed" => (id, Pending::Attempt { due_at }),
        _ => (id, Pending::Rendering),
    }))
}

/// What is to be done for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// An attempt.
    Attempt {
        /// Not before.
        due_at: OffsetDateTime,
    },
    /// Its results are to be rendered.
    Rendering,
}

/// How many shadows of a bundle wait for an attempt.
pub async fn waiting_shadows(connection: &mut Connection, bundle: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "select count(*) from run where state in ('queued', 'failed') and role = 'shadow' and bundle = $1",
    )
    .bind(bundle)
    .fetch_one(connection)
    .await?)
}

/// A canary that is parked changes roles with the shadow of the same revision, so that the study gets its answer from the
/// route's own bundle. Returns whether there is one that is not parked itself.
async fn hand_over(connection: &mut Connection, canary_id: Uuid, workup_id: Uuid, revision: i32) -> Result<bool> {
    let successor: Option<Uuid> = sqlx::query_scalar(
        "update run s set role = 'live', destinations = c.destinations, rules = c.rules, priority = c.priority
         from run c
         where c.id = $1 and s.workup_id = $2 and s.revision = $3 and s.role = 'shadow' and s.id <> c.id
           and s.state not in ('parked', 'superseded')
         returning s.id",
    )
    .bind(canary_id)
    .bind(workup_id)
    .bind(revision)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(successor) = successor else { return Ok(false) };
    sqlx::query("update run set role = 'shadow', destinations = '{}', rules = '[]' where id = $1")
        .bind(canary_id)
        .execute(&mut *connection)
        .await?;
    const TAKES_OVER: &str = "the canary is parked: this run answers the study, its results are sent";
    event::append(connection, event::Subject::Run, successor, "takes_over", TAKES_OVER, json!({})).await?;
    Ok(true)
}

/// Every run of an earlier revision that has not been rendered is `superseded`, and deliveries of earlier revisions that are
/// not sent are `cancelled`. The workup is locked.
pub async fn supersede_earlier(connection: &mut Connection, workup_id: Uuid, revision: i32) -> Result<()> {
    let words = format!("superseded by revision {revision}");
    let superseded: Vec<Uuid> = sqlx::query_scalar(
        "update run set state = 'superseded', words = $3, finished_at = coalesce(finished_at, now())
         where workup_id = $1 and revision < $2
           and (state in ('queued', 'running', 'failed', 'parked')
                or (state in ('succeeded', 'not_analysed') and rendered_at is null and role <> 'shadow'))
         returning id",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(&words)
    .fetch_all(&mut *connection)
    .await?;
    for run_id in superseded {
        event::append(connection, event::Subject::Run, run_id, "superseded", &words, json!({})).await?;
    }
    delivery::supersede(connection, workup_id, revision).await
}

/// A finished run with where its results go.
#[derive(Debug, Clone)]
pub struct FinishedRun {
    /// Its workup.
    pub workup_id: Uuid,
    /// Where the results go.
    pub destinations: Vec<String>,
    /// Where they go besides, and how soon, because of what was found.
    pub rules: Vec<ResultRule>,
    /// What it found; everything that rendering needs.
    pub record: RunRecord,
}

#[derive(FromRow)]
struct FinishedRow {
    workup_id: Uuid,
    revision: i32,
    study_instance_uid: String,
    started_at: OffsetDateTime,
    outcome: Json<RunOutcome>,
    bundle_identity: Json<BundleIdentity>,
    computed_with: Vec<String>,
    configuration_sha256: Vec<u8>,
    result_key: Vec<u8>,
    destinations: Vec<String>,
    rules: Json<Vec<ResultRule>>,
}

/// A counted attempt to render a run.
#[derive(Debug, Clone, FromRow)]
pub struct ClaimedRendering {
    /// The run.
    pub id: Uuid,
    /// Its workup.
    pub workup_id: Uuid,
    /// The workup's revision.
    pub revision: i32,
    /// The attempt of the run whose results are rendered.
    pub attempt: i32,
    /// Number of this rendering, from 1; more than the maximum when all are used up.
    pub render_attempts: i32,
    /// Renderings before the run is parked.
    pub maximum_attempts: i32,
}

/// Counts an attempt of the inference process of `node` to render a finished run of the workup's revision; `None` when there
/// is nothing to render, or somebody renders it. The caller commits before it touches pixels, as for [`claim`], and says
/// with [`keep_rendering_alive`] that it works. A run whose renderings are used up is parked here: the last one ended
/// without a word.
pub async fn claim_rendering(
    connection: &mut Connection,
    run_id: Uuid,
    node: &str,
) -> Result<Option<ClaimedRendering>> {
    lock_workup_of(connection, run_id).await?;
    let claimed: Option<ClaimedRendering> = sqlx::query_as(
        "update run r set render_attempts = r.render_attempts + 1, worked_on_by = $2,
                alive_until = clock_timestamp() + make_interval(secs => $3)
         from workup w
         where r.id = $1 and w.id = r.workup_id and r.revision = w.revision and r.rendered_at is null
               and r.state in ('succeeded', 'not_analysed') and r.role <> 'shadow'
               and coalesce(r.alive_until <= clock_timestamp(), true)
         returning r.id, r.workup_id, r.revision, r.attempt, r.render_attempts, r.maximum_attempts",
    )
    .bind(run_id)
    .bind(node)
    .bind(LEASE.as_secs_f64())
    .fetch_optional(&mut *connection)
    .await?;
    match claimed {
        Some(claimed) if claimed.render_attempts > claimed.maximum_attempts => {
            park_rendering(connection, &claimed, "crash", "the inference process died while rendering").await?;
            Ok(None)
        }
        claimed => Ok(claimed),
    }
}

/// Says that a claimed run is still rendered. Returns whether that attempt still counts.
pub async fn keep_rendering_alive(connection: &mut Connection, claimed: &ClaimedRendering) -> Result<bool> {
    let done = sqlx::query(
        "update run set alive_until = clock_timestamp() + make_interval(secs => $3)
         where id = $1 and render_attempts = $2 and rendered_at is null and state in ('succeeded', 'not_analysed')",
    )
    .bind(claimed.id)
    .bind(claimed.render_attempts)
    .bind(LEASE.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// A rendering has failed: its next job need not wait.
pub async fn end_rendering(connection: &mut Connection, claimed: &ClaimedRendering) -> Result<()> {
    sqlx::query("update run set alive_until = null where id = $1 and render_attempts = $2 and rendered_at is null")
        .bind(claimed.id)
        .bind(claimed.render_attempts)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes a rendering back that failed for want of resources: it says nothing about the run.
pub async fn return_rendering(connection: &mut Connection, claimed: &ClaimedRendering) -> Result<()> {
    sqlx::query(
        "update run set render_attempts = render_attempts - 1, alive_until = null where id = $1 and render_attempts = $2",
    )
    .bind(claimed.id)
    .bind(claimed.render_attempts)
    .execute(connection)
    .await?;
    Ok(())
}

/// `succeeded` or `not_analysed` → `parked`: it cannot be rendered. Returns whether it happened.
pub async fn park_rendering(
    connection: &mut Connection,
    claimed: &ClaimedRendering,
    reason: &str,
    words: &str,
) -> Result<bool> {
    let words = format!(
        "the results cannot be rendered, after {} attempts: {words}; parked for a person to look at",
        claimed.maximum_attempts
    );
    park(connection, claimed.id, claimed.attempt, claimed.workup_id, claimed.revision, reason, &words).await
}

/// A finished run that is not rendered yet and belongs to its workup's revision; `None` when there is nothing to do.
pub async fn to_render(
    connection: &mut Connection,
    run_id: Uuid,
    installation: &Installation,
) -> Result<Option<FinishedRun>> {
    let wanted: Option<Uuid> = sqlx::query_scalar(
        "select r.id from run r join workup w on w.id = r.workup_id
         where r.id = $1 and r.rendered_at is null and r.revision = w.revision",
    )
    .bind(run_id)
    .fetch_optional(&mut *connection)
    .await?;
    match wanted {
        Some(run_id) => finished(connection, run_id, installation).await,
        None => Ok(None),
    }
}

/// A run that has ended with an outcome; `None` when it has not.
pub async fn finished(
    connection: &mut Connection,
    run_id: Uuid,
    installation: &Installation,
) -> Result<Option<FinishedRun>> {
    let row: Option<FinishedRow> = sqlx::query_as(
        "select r.workup_id, r.revision, w.study_instance_uid, r.started_at, r.outcome, r.bundle_identity,
                r.computed_with, r.configuration_sha256, r.result_key, r.destinations, r.rules
         from run r join workup w on w.id = r.workup_id
         where r.id = $1 and r.state in ('succeeded', 'not_analysed')",
    )
    .bind(run_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(FinishedRun {
        workup_id: row.workup_id,
        destinations: row.destinations,
        rules: row.rules.0,
        record: RunRecord {
            run_id,
            study_instance_uid: uid(&row.study_instance_uid)?,
            revision: row.revision,
            result_key: super::digest_from_bytes(&row.result_key, "result key")?,
            configuration_sha256: super::digest_from_bytes(&row.configuration_sha256, "configuration digest")?,
            installation: installation.clone(),
            started_at: row.started_at,
            bundle: row.bundle_identity.0,
            computed_with: row.computed_with,
            outcome: row.outcome.0,
        },
    }))
}

/// What each voxel of the CT is that a run has measured; `None` where it measured none, where its images were removed, and of
/// runs of versions that did not keep it. It is megabytes: for rendering only.
pub async fn masks(connection: &mut Connection, run_id: Uuid) -> Result<Option<PackedMasks>> {
    let masks: Option<Option<Vec<u8>>> =
        sqlx::query_scalar("select masks from run where id = $1").bind(run_id).fetch_optional(connection).await?;
    Ok(masks.flatten().map(PackedMasks::from_bytes))
}

/// Destinations that have a report of an earlier revision, or may have: one whose process died while it was sent.
pub async fn told_before(connection: &mut Connection, workup_id: Uuid, revision: i32) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "select distinct d.destination from delivery d join result x on x.id = d.result_id join run r on r.id = d.run_id
         where r.workup_id = $1 and r.revision < $2 and x.kind in ('sr', 'sr_text')
           and (d.delivered_at is not null
                or exists (select from delivery_attempt a where a.delivery_id = d.id and a.ended_at is null))
         order by 1",
    )
    .bind(workup_id)
    .bind(revision)
    .fetch_all(connection)
    .await?)
}

/// The newest reports of earlier revisions that reached `destination`: what new ones replace there.
pub async fn predecessors(
    connection: &mut Connection,
    workup_id: Uuid,
    revision: i32,
    destination: &str,
) -> Result<Predecessors> {
    Ok(Predecessors {
        report: predecessor(connection, workup_id, revision, destination, "sr").await?,
        text_companion: predecessor(connection, workup_id, revision, destination, "sr_text").await?,
    })
}

async fn predecessor(
    connection: &mut Connection,
    workup_id: Uuid,
    revision: i32,
    destination: &str,
    kind: &str,
) -> Result<Option<PredecessorDocument>> {
    let row: Option<(String, String, String)> = sqlx::query_as(
        "select x.sop_class_uid, x.sop_instance_uid, x.series_instance_uid
         from result x join run r on r.id = x.run_id join delivery d on d.result_id = x.id
         where r.workup_id = $1 and r.revision < $2 and x.kind = $4 and d.delivered_at is not null and d.destination = $3
         order by r.revision desc limit 1",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(destination)
    .bind(kind)
    .fetch_optional(connection)
    .await?;
    row.map(|(class, instance, series)| {
        Ok(PredecessorDocument {
            sop_class_uid: uid(&class)?,
            sop_instance_uid: uid(&instance)?,
            series_instance_uid: uid(&series)?,
        })
    })
    .transpose()
}

fn uid(text: &str) -> Result<Uid> {
    Uid::new(text).map_err(|error| DbError::unreadable("UID", error))
}

/// What noting a rendering came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rendered {
    /// The results count: insert them in this transaction.
    Counts,
    /// Another rendering of the run was first; its results are there.
    Already,
    /// The workup has a newer revision.
    Superseded,
}

/// Notes that a run's results are inserted, if it still belongs to its workup's revision; locks the workup, so
/// that a late object and a rendering exclude each other.
pub async fn rendered(connection: &mut Connection, run_id: Uuid) -> Result<Rendered> {
    let found: Option<(bool, bool)> = sqlx::query_as(
        "select r.rendered_at is not null, w.revision = r.revision
         from workup w join run r on r.workup_id = w.id where r.id = $1 for update of w",
    )
    .bind(run_id)
    .fetch_optional(&mut *connection)
    .await?;
    match found {
        // First: what counted stays, whatever came since, and its files have the names of the caller's.
        Some((true, _)) => return Ok(Rendered::Already),
        Some((false, true)) => {}
        Some((false, false)) | None => return Ok(Rendered::Superseded),
    }
    let done = sqlx::query(
        "update run set rendered_at = now(), alive_until = null
         where id = $1 and rendered_at is null and state in ('succeeded', 'not_analysed') and role <> 'shadow'",
    )
    .bind(run_id)
    .execute(connection)
    .await?;
    Ok(if done.rows_affected() == 1 { Rendered::Counts } else { Rendered::Already })
}

/// Runs that are due and have not ended, for `reconcile`.
pub async fn due(connection: &mut Connection) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select id from run
         where state in ('queued', 'running', 'failed') and next_attempt_at <= now()
               and (state <> 'running' or coalesce(alive_until <= now(), true))
         order by role = 'shadow', next_attempt_at limit 1000",
    )
    .fetch_all(connection)
    .await?)
}

/// Finished runs whose results are not rendered, and are not being rendered, for `reconcile`.
pub async fn unrendered(connection: &mut Connection) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select id from run where rendered_at is null and state in ('succeeded', 'not_analysed') and role <> 'shadow'
               and coalesce(alive_until <= now(), true)
         order by finished_at limit 1000",
    )
    .fetch_all(connection)
    .await?)
}

/// `parked` → `queued` by a person's wish, with as many attempts again; its workup goes back to `analysing`. The
/// attempts so far stay counted: they fence. What its route says of the same bundle by now counts. A shadow is nothing that
/// its workup waits for, unless the run that should answer is parked: then the two change roles. Returns whether there was
/// such a run of the workup's revision.
pub async fn restart(connection: &mut Connection, run_id: Uuid) -> Result<bool> {
    const WORDS: &str = "restarted by a person";
    lock_workup_of(connection, run_id).await?;
    let restarted: Option<(Uuid, String)> = sqlx::query_as(
        "update run r set state = 'queued', maximum_attempts = r.attempt + r.maximum_attempts, render_attempts = 0,
                reason = null, words = $2, next_attempt_at = now(), finished_at = null,
                pipeline = coalesce((select t.pipeline from route t where t.name = w.route_name and r.bundle in (t.bundle, t.trial_bundle)),
                                    r.pipeline)
         from workup w
         where r.id = $1 and r.state = 'parked' and w.id = r.workup_id and w.revision = r.revision
         returning r.workup_id, r.role",
    )
    .bind(run_id)
    .bind(WORDS)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((workup_id, role)) = restarted else { return Ok(false) };
    event::append(connection, event::Subject::Run, run_id, "restarted", WORDS, json!({})).await?;
    if RunRole::from_name(&role) != Some(RunRole::Shadow) || replace_parked(connection, run_id).await? {
        workup::unpark(connection, workup_id, WORDS).await?;
    }
    Ok(true)
}

/// Gives a shadow the role, destinations and priority of the run that should answer its revision and is parked. Returns
/// whether there is one.
async fn replace_parked(connection: &mut Connection, shadow_id: Uuid) -> Result<bool> {
    let replaced: Option<Uuid> = sqlx::query_scalar(
        "update run s set role = case a.role when 'canary' then 'live' else 'canary' end,
                destinations = a.destinations, rules = a.rules, priority = a.priority
         from run a
         where s.id = $1 and a.workup_id = s.workup_id and a.revision = s.revision and a.role <> 'shadow'
           and a.state = 'parked'
         returning a.id",
    )
    .bind(shadow_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(replaced) = replaced else { return Ok(false) };
    sqlx::query("update run set role = 'shadow', destinations = '{}', rules = '[]' where id = $1")
        .bind(replaced)
        .execute(&mut *connection)
        .await?;
    const TAKES_OVER: &str = "the run that should answer is parked: this one answers the study, its results are sent";
    event::append(connection, event::Subject::Run, shadow_id, "takes_over", TAKES_OVER, json!({})).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::{
            Db,
            testing::{self, TestDatabase, new_run},
        },
        report::samples::{SampleSource, analysed},
        types::BundleStatus,
    };

    async fn first_run(db: &Db) -> (Uuid, Uuid) {
        let workup_id = testing::workup(db, "1.2.3").await;
        (workup_id, insert(&mut db.acquire().await.unwrap(), &new_run(workup_id)).await.unwrap().unwrap())
    }

    async fn claimed(db: &Db, run_id: Uuid) -> ClaimedRun {
        match claim(&mut db.acquire().await.unwrap(), run_id, "node").await.unwrap() {
            Claim::Claimed(claimed) => claimed,
            other => panic!("{other:?}"),
        }
    }

    async fn state(db: &Db, run_id: Uuid) -> (String, i32) {
        let state = sqlx::query_as("select state, attempt from run where id = $1").bind(run_id);
        state.fetch_one(db.pool()).await.unwrap()
    }

    /// Ten times more often than there are attempts.
    async fn an_attempt_that_is_given_back_costs_nothing(db: &Db, run_id: Uuid) {
        let wait = Duration::from_millis(1);
        for _ in 0..30 {
            let claimed = claimed(db, run_id).await;
            assert_eq!((claimed.attempt, claimed.pipeline()), (1, Some(Pipeline::ChestRadiograph)));
            let mut connection = db.acquire().await.unwrap();
            assert!(return_attempt(&mut connection, &claimed, wait, "taken out").await.unwrap().is_some());
            assert!(return_attempt(&mut connection, &claimed, wait, "late").await.unwrap().is_none(), "fenced");
            assert!(!was_interrupted(&mut connection, run_id).await.unwrap());
        }
        assert_eq!(state(db, run_id).await, ("queued".to_owned(), 0));
        let claimed = claimed(db, run_id).await;
        let mut connection = db.acquire().await.unwrap();
        let failed = fail(&mut connection, &claimed, "processing.failure", "its own fault").await.unwrap();
        assert!(matches!(failed, AfterFailure::RetryAt(_)), "{failed:?}");
        assert_eq!(state(db, run_id).await, ("failed".to_owned(), 1));
        assert!(return_attempt(&mut connection, &claimed, wait, "late").await.unwrap().is_none(), "it has ended");
    }

    /// A second job of a run, here or on another node.
    async fn a_run_that_is_worked_on_is_left_alone(db: &Db) {
        let workup_id = testing::workup(db, "1.2.10").await;
        let new = NewRun { maximum_attempts: 1, ..new_run(workup_id) };
        let run_id = insert(&mut db.acquire().await.unwrap(), &new).await.unwrap().unwrap();
        let first = claimed(db, run_id).await;
        let mut connection = db.acquire().await.unwrap();
        let again = claim(&mut connection, run_id, "other").await.unwrap();
        assert!(matches!(again, Claim::WorkedOn), "{again:?}");
        assert_eq!(state(db, run_id).await, ("running".to_owned(), 1));
        assert!(!was_interrupted(&mut connection, run_id).await.unwrap());
        assert!(!due(&mut connection).await.unwrap().contains(&run_id), "it has no need of a job");

        // Another node's start says nothing of it; its time runs out unless it goes on.
        release_dead(&mut connection, "other").await.unwrap();
        let age = "update run set alive_until = alive_until - interval '29 seconds' where id = $1";
        sqlx::query(age).bind(run_id).execute(db.pool()).await.unwrap();
        assert!(keep_alive(&mut connection, &first).await.unwrap());
        let other = ClaimedRun { started_at: first.started_at - Duration::from_secs(1), ..first.clone() };
        assert!(!keep_alive(&mut connection, &other).await.unwrap(), "fenced");
        sqlx::query(age).bind(run_id).execute(db.pool()).await.unwrap();
        assert!(matches!(claim(&mut connection, run_id, "other").await.unwrap(), Claim::WorkedOn));

        release_dead(&mut connection, "node").await.unwrap();
        assert!(was_interrupted(&mut connection, run_id).await.unwrap());
        assert!(due(&mut connection).await.unwrap().contains(&run_id));
        let dead = claim(&mut connection, run_id, "other").await.unwrap();
        assert!(matches!(dead, Claim::Parked), "its one attempt ended without a word: {dead:?}");
        let record = analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.10"));
        assert_eq!(testing::finish(db, &first, &record).await, None, "what it says late no longer counts");

        // One whose worker is silent for too long is charged with a crash, too.
        let (_, [canary, _]) = canary_and_shadow(db, "1.2.11").await;
        claimed(db, canary).await;
        sqlx::query("update run set alive_until = now() where id = $1").bind(canary).execute(db.pool()).await.unwrap();
        assert!(matches!(claim(&mut connection, canary, "other").await.unwrap(), Claim::Parked));
    }

    /// Its end could not be written: the next job counts an attempt and need not wait, and nobody ends what that one holds.
    async fn a_lease_is_ended_by_nobody_else(db: &Db) {
        let workup_id = testing::workup(db, "1.2.12").await;
        let run_id = insert(&mut db.acquire().await.unwrap(), &new_run(workup_id)).await.unwrap().unwrap();
        let mut connection = db.acquire().await.unwrap();
        let wait = Duration::from_millis(1);
        let given_back = claimed(db, run_id).await;
        assert!(return_attempt(&mut connection, &given_back, wait, "it gives way").await.unwrap().is_some());
        let first = claimed(db, run_id).await;
        assert_eq!(first.attempt, given_back.attempt, "the number is given again");
        end_lease(&mut connection, &given_back).await.unwrap();
        assert!(return_attempt(&mut connection, &given_back, wait, "late").await.unwrap().is_none());
        assert!(!keep_alive(&mut connection, &given_back).await.unwrap());
        assert!(matches!(claim(&mut connection, run_id, "other").await.unwrap(), Claim::WorkedOn));
        end_lease(&mut connection, &first).await.unwrap();
        assert!(due(&mut connection).await.unwrap().contains(&run_id));
        assert_eq!(claimed(db, run_id).await.attempt, 2);
    }

    /// A second job of it, here or on another node.
    async fn what_is_being_rendered_is_left_alone(db: &Db) {
        let (_, [run_id, _]) = canary_and_shadow(db, "1.2.13").await;
        assert_eq!(finish_it(db, run_id).await, Some(RunRole::Canary));
        let mut connection = db.acquire().await.unwrap();
        let first = claim_rendering(&mut connection, run_id, "node").await.unwrap().unwrap();
        assert_eq!((first.render_attempts, first.maximum_attempts), (1, 1));
        assert!(claim_rendering(&mut connection, run_id, "other").await.unwrap().is_none());
        assert_eq!(standing(db, run_id).await.0, "succeeded", "it is not parked beside the one that works");
        assert!(!was_interrupted(&mut connection, run_id).await.unwrap());
        assert!(!unrendered(&mut connection).await.unwrap().contains(&run_id), "it has no need of a job");

        // Without resources it is given back; what comes late changes nothing of the next one's.
        return_rendering(&mut connection, &first).await.unwrap();
        let second = claim_rendering(&mut connection, run_id, "node").await.unwrap().unwrap();
        assert_eq!(second.render_attempts, 1);
        let late = ClaimedRendering { render_attempts: 2, ..second.clone() };
        assert!(!keep_rendering_alive(&mut connection, &late).await.unwrap());
        end_rendering(&mut connection, &late).await.unwrap();
        return_rendering(&mut connection, &late).await.unwrap();
        assert!(keep_rendering_alive(&mut connection, &second).await.unwrap());
        assert!(claim_rendering(&mut connection, run_id, "other").await.unwrap().is_none());

        // Its process dies; one attempt was all.
        release_dead(&mut connection, "other").await.unwrap();
        assert!(!was_interrupted(&mut connection, run_id).await.unwrap());
        release_dead(&mut connection, "node").await.unwrap();
        assert!(was_interrupted(&mut connection, run_id).await.unwrap());
        assert!(unrendered(&mut connection).await.unwrap().contains(&run_id));
        assert!(claim_rendering(&mut connection, run_id, "node").await.unwrap().is_none());
        assert_eq!(standing(db, run_id).await.0, "parked");
    }

    /// The second's files have the names of the first's: it must not be told to remove them.
    async fn a_second_rendering_is_told_of_the_first_whatever_came_since(db: &Db, workup_id: Uuid, run_id: Uuid) {
        let set =
            |sql: &'static str, id: Uuid| async move { sqlx::query(sql).bind(id).execute(db.pool()).await.unwrap() };
        let mut connection = db.acquire().await.unwrap();
        set("update run set state = 'succeeded' where id = $1", run_id).await;
        assert_eq!(rendered(&mut connection, run_id).await.unwrap(), Rendered::Counts);
        assert_eq!(rendered(&mut connection, run_id).await.unwrap(), Rendered::Already);
        set("update workup set revision = 2 where id = $1", workup_id).await;
        assert_eq!(rendered(&mut connection, run_id).await.unwrap(), Rendered::Already);
        set("update run set rendered_at = null where id = $1", run_id).await;
        assert_eq!(rendered(&mut connection, run_id).await.unwrap(), Rendered::Superseded);
    }

    /// A revision that a canary answers, with a run of the route's own bundle beside it. Both have one attempt.
    async fn canary_and_shadow(db: &Db, study: &str) -> (Uuid, [Uuid; 2]) {
        let workup_id = testing::workup(db, study).await;
        let mut connection = db.acquire().await.unwrap();
        let destinations = ["pacs".to_owned()];
        let canary = NewRun {
            bundle: "next",
            role: RunRole::Canary,
            destinations: &destinations,
            priority: RunPriority::Stat,
            maximum_attempts: 1,
            ..new_run(workup_id)
        };
        let shadow = NewRun { role: RunRole::Shadow, maximum_attempts: 1, ..new_run(workup_id) };
        let canary = insert(&mut connection, &canary).await.unwrap().unwrap();
        (workup_id, [canary, insert(&mut connection, &shadow).await.unwrap().unwrap()])
    }

    async fn park_it(db: &Db, run_id: Uuid) {
        let claimed = claimed(db, run_id).await;
        let after = fail(&mut db.acquire().await.unwrap(), &claimed, "processing.failure", "it cannot").await.unwrap();
        assert_eq!(after, AfterFailure::Parked);
    }

    async fn finish_it(db: &Db, run_id: Uuid) -> Option<RunRole> {
        let claimed = claimed(db, run_id).await;
        testing::finish(db, &claimed, &analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"))).await
    }

    /// State, role and destinations of a run, and the state of its workup.
    async fn standing(db: &Db, run_id: Uuid) -> (String, String, Vec<String>, String) {
        let row = sqlx::query_as(
            "select r.state, r.role, r.destinations, w.state from run r join workup w on w.id = r.workup_id where r.id = $1",
        );
        row.bind(run_id).fetch_one(db.pool()).await.unwrap()
    }

    async fn a_shadow_is_never_sent_and_holds_nothing_up(db: &Db) {
        let (workup_id, [canary, shadow]) = canary_and_shadow(db, "1.2.4").await;
        let mut connection = db.acquire().await.unwrap();
        assert_eq!(finish_it(db, canary).await, Some(RunRole::Canary));
        assert_eq!(unrendered(&mut connection).await.unwrap(), [canary]);
        assert!(claim_rendering(&mut connection, canary, "node").await.unwrap().is_some());
        assert_eq!(rendered(&mut connection, canary).await.unwrap(), Rendered::Counts);
        assert!(workup::answer_if_done(&mut connection, workup_id).await.unwrap(), "the shadow is not waited for");
        assert_eq!(finish_it(db, shadow).await, Some(RunRole::Shadow));
        assert!(unrendered(&mut connection).await.unwrap().is_empty());
        assert!(claim_rendering(&mut connection, shadow, "node").await.unwrap().is_none());
        // A late object: the finished shadow stays for the comparison.
        supersede_earlier(&mut connection, workup_id, 2).await.unwrap();
        assert_eq!(standing(db, shadow).await.0, "succeeded");
    }

    async fn a_parked_shadow_is_not_waited_for_when_restarted(db: &Db) {
        let (_, [_, shadow]) = canary_and_shadow(db, "1.2.5").await;
        park_it(db, shadow).await;
        assert_eq!(standing(db, shadow).await, ("parked".into(), "shadow".into(), vec![], "analysing".into()));
        assert!(restart(&mut db.acquire().await.unwrap(), shadow).await.unwrap());
        assert_eq!(standing(db, shadow).await.0, "queued");
    }

    async fn the_own_bundle_answers_when_the_canary_is_parked(db: &Db) {
        let (_, [canary, shadow]) = canary_and_shadow(db, "1.2.6").await;
        assert_eq!(finish_it(db, shadow).await, Some(RunRole::Shadow));
        park_it(db, canary).await;
        assert_eq!(standing(db, canary).await, ("parked".into(), "shadow".into(), vec![], "analysing".into()));
        let expected = ("succeeded".into(), "live".into(), vec!["pacs".to_owned()], "analysing".into());
        assert_eq!(standing(db, shadow).await, expected);
        let mut connection = db.acquire().await.unwrap();
        assert_eq!(unrendered(&mut connection).await.unwrap(), [shadow]);
        assert_eq!(urgency(&mut connection, shadow).await.unwrap(), (RunPriority::Stat, RunRole::Live));
        assert_eq!(answering(&mut connection, canary).await.unwrap(), Some((shadow, Pending::Rendering)));
    }

    async fn a_run_that_takes_over_while_it_works_is_sent(db: &Db) {
        let (_, [canary, shadow]) = canary_and_shadow(db, "1.2.7").await;
        let running = claimed(db, shadow).await;
        park_it(db, canary).await;
        let record = analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"));
        assert_eq!(testing::finish(db, &running, &record).await, Some(RunRole::Live));
    }

    async fn without_a_successor_the_study_is_parked(db: &Db) {
        let (_, [canary, shadow]) = canary_and_shadow(db, "1.2.8").await;
        park_it(db, shadow).await;
        park_it(db, canary).await;
        let expected = ("parked".into(), "canary".into(), vec!["pacs".to_owned()], "parked".into());
        assert_eq!(standing(db, canary).await, expected);
        assert!(restart(&mut db.acquire().await.unwrap(), canary).await.unwrap());
        assert_eq!(standing(db, canary).await.3, "analysing");
    }

    async fn the_restarted_own_bundle_answers_a_parked_study(db: &Db) {
        let (workup_id, [canary, shadow]) = canary_and_shadow(db, "1.2.9").await;
        park_it(db, shadow).await;
        park_it(db, canary).await;
        let mut connection = db.acquire().await.unwrap();
        assert!(restart(&mut connection, shadow).await.unwrap());
        let expected = ("queued".into(), "live".into(), vec!["pacs".to_owned()], "analysing".into());
        assert_eq!(standing(db, shadow).await, expected);
        assert_eq!(standing(db, canary).await, ("parked".into(), "shadow".into(), vec![], "analysing".into()));
        assert!(
            matches!(answering(&mut connection, canary).await.unwrap(), Some((id, Pending::Attempt { .. })) if id == shadow)
        );
        // Parked once more, it is the canary's turn again.
        park_it(db, shadow).await;
        assert!(restart(&mut connection, canary).await.unwrap());
        let expected = ("queued".into(), "canary".into(), vec!["pacs".to_owned()], "analysing".into());
        assert_eq!(standing(db, canary).await, expected);
        let roles: Vec<String> = sqlx::query_scalar("select role from run where workup_id = $1 order by role")
            .bind(workup_id)
            .fetch_all(db.pool())
            .await
            .unwrap();
        assert_eq!(roles, ["canary", "shadow"]);
    }

    #[tokio::test]
    async fn one_run_answers_a_study_whatever_becomes_of_a_trial() {
        let database = TestDatabase::start("trial_roles").await;
        a_shadow_is_never_sent_and_holds_nothing_up(&database.db).await;
        a_parked_shadow_is_not_waited_for_when_restarted(&database.db).await;
        the_own_bundle_answers_when_the_canary_is_parked(&database.db).await;
        a_run_that_takes_over_while_it_works_is_sent(&database.db).await;
        without_a_successor_the_study_is_parked(&database.db).await;
        the_restarted_own_bundle_answers_a_parked_study(&database.db).await;
        database.stop().await;
    }

    #[tokio::test]
    async fn runs_wait_and_are_rendered_once() {
        let database = TestDatabase::start("run").await;
        let (workup_id, run_id) = first_run(&database.db).await;
        an_attempt_that_is_given_back_costs_nothing(&database.db, run_id).await;
        a_second_rendering_is_told_of_the_first_whatever_came_since(&database.db, workup_id, run_id).await;
        a_run_that_is_worked_on_is_left_alone(&database.db).await;
        a_lease_is_ended_by_nobody_else(&database.db).await;
        what_is_being_rendered_is_left_alone(&database.db).await;
        database.stop().await;
    }
}
