//! Read models for the command line and the status page. No patient identity leaves this file.

use sqlx::{FromRow, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Result};
use crate::types::{BundleIdentity, RunOutcome};

/// One workup in a list.
#[derive(Debug, Clone, FromRow)]
pub struct WorkupRow {
    /// The workup.
    pub id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Our AE title that the study was sent to.
    pub local_ae_title: String,
    /// Who sent it.
    pub calling_ae_title: String,
    /// Its state.
    pub state: String,
    /// The state in words.
    pub state_words: String,
    /// Its revision.
    pub revision: i32,
    /// The route that took it.
    pub route_name: Option<String>,
    /// Distinct modalities of its objects.
    pub modalities: Vec<String>,
    /// Objects, counting a SOP Instance UID once.
    pub object_count: i64,
    /// Receipt of the newest object.
    pub last_object_at: OffsetDateTime,
}

/// The newest workups first; only `study_instance_uid` when given.
pub async fn workups(
    connection: &mut Connection,
    study_instance_uid: Option<&str>,
    limit: i64,
) -> Result<Vec<WorkupRow>> {
    Ok(sqlx::query_as(
        "select w.id, w.study_instance_uid, w.local_ae_title, w.calling_ae_title, w.state, w.state_words, w.revision,
                w.route_name, w.last_object_at,
                coalesce(array_agg(distinct i.modality) filter (where i.modality is not null), '{}') as modalities,
                count(distinct i.sop_instance_uid) as object_count
         from (select * from workup where $1::text is null or study_instance_uid = $1
               order by updated_at desc limit $2) w
         left join instance i on i.study_instance_uid = w.study_instance_uid and i.local_ae_title = w.local_ae_title
         group by w.id, w.study_instance_uid, w.local_ae_title, w.calling_ae_title, w.state, w.state_words,
                  w.revision, w.route_name, w.last_object_at, w.updated_at
         order by w.updated_at desc",
    )
    .bind(study_instance_uid)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// One run in a list.
#[derive(Debug, Clone, FromRow)]
pub struct RunRow {
    /// The run.
    pub id: Uuid,
    /// Its workup.
    pub workup_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Its revision.
    pub revision: i32,
    /// Name of the bundle folder.
    pub bundle: String,
    /// `live`, `shadow` or `canary`.
    pub role: String,
    /// `untrained`, `unvalidated` or `validated`; known when an attempt has ended with an outcome.
    pub bundle_status: Option<String>,
    /// Its state.
    pub state: String,
    /// Reason code when it did not succeed.
    pub reason: Option<String>,
    /// The state in words.
    pub words: String,
    /// Attempts so far.
    pub attempt: i32,
    /// Attempts before it is parked.
    pub maximum_attempts: i32,
    /// When it was queued.
    pub queued_at: OffsetDateTime,
    /// When the last attempt ended.
    pub finished_at: Option<OffsetDateTime>,
    /// Time of each stage in milliseconds.
    pub stage_milliseconds: Option<serde_json::Value>,
}

/// The newest runs first; only those of `workup_id` when given.
pub async fn runs(connection: &mut Connection, workup_id: Option<Uuid>, limit: i64) -> Result<Vec<RunRow>> {
    Ok(sqlx::query_as(
        "select r.id, r.workup_id, w.study_instance_uid, r.revision, r.bundle, r.role,
                r.bundle_identity ->> 'status' as bundle_status, r.state, r.reason, r.words, r.attempt,
                r.maximum_attempts, r.queued_at, r.finished_at, r.stage_milliseconds
         from run r join workup w on w.id = r.workup_id
         where $1::uuid is null or r.workup_id = $1 order by r.queued_at desc limit $2",
    )
    .bind(workup_id)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// One run; `None` when there is no such run.
pub async fn run(connection: &mut Connection, run_id: Uuid) -> Result<Option<RunRow>> {
    Ok(sqlx::query_as(
        "select r.id, r.workup_id, w.study_instance_uid, r.revision, r.bundle, r.role,
                r.bundle_identity ->> 'status' as bundle_status, r.state, r.reason, r.words, r.attempt,
                r.maximum_attempts, r.queued_at, r.finished_at, r.stage_milliseconds
         from run r join workup w on w.id = r.workup_id where r.id = $1",
    )
    .bind(run_id)
    .fetch_optional(connection)
    .await?)
}

/// What a run found, for showing.
#[derive(Debug, Clone)]
pub struct RunFindings {
    /// With which algorithm.
    pub bundle: BundleIdentity,
    /// Each network with devices and precision; empty without networks.
    pub computed_with: Vec<String>,
    /// What it found.
    pub outcome: RunOutcome,
}

/// What a run found; `None` while it has not ended with an outcome.
pub async fn findings(connection: &mut Connection, run_id: Uuid) -> Result<Option<RunFindings>> {
    let row: Option<(Json<BundleIdentity>, Vec<String>, Json<RunOutcome>)> = sqlx::query_as(
        "select bundle_identity, computed_with, outcome from run
         where id = $1 and outcome is not null and bundle_identity is not null",
    )
    .bind(run_id)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(bundle, computed_with, outcome)| RunFindings { bundle: bundle.0, computed_with, outcome: outcome.0 }))
}

/// One result with its delivery to one destination; results without a delivery have no destination.
#[derive(Debug, Clone, FromRow)]
pub struct DeliveryRow {
    /// The result.
    pub result_id: Uuid,
    /// Its run.
    pub run_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// `sr` or `sc`.
    pub kind: String,
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// Where the archive keeps the DICOM file.
    pub archive_key: String,
    /// Where the archive keeps a PNG of it.
    pub preview_key: Option<String>,
    /// Destination.
    pub destination: Option<String>,
    /// State of the delivery.
    pub state: Option<String>,
    /// Attempts so far.
    pub attempts: Option<i32>,
    /// Last DICOM status, if the destination answered one.
    pub last_status: Option<i32>,
    /// Last answer in words.
    pub last_words: Option<String>,
    /// When the next attempt is due.
    pub next_attempt_at: Option<OffsetDateTime>,
    /// The delivery.
    pub delivery_id: Option<Uuid>,
    /// What is owed: deliveries with the same one are alternatives.
    pub chain: Option<String>,
    /// Place among the alternatives, from 0.
    pub rank: Option<i32>,
    /// `wanted`, `asked`, `committed`, `failed`, `unanswered` or `unsupported`, where Storage Commitment is used.
    pub commitment: Option<String>,
    /// The same in words.
    pub commitment_words: Option<String>,
}

/// The newest results with their deliveries first; only those of `workup_id` when given.
pub async fn deliveries(connection: &mut Connection, workup_id: Option<Uuid>, limit: i64) -> Result<Vec<DeliveryRow>> {
    Ok(sqlx::query_as(
        "select x.id as result_id, x.run_id, w.study_instance_uid, x.kind, x.sop_instance_uid, x.archive_key,
                case when x.removed_at is null then x.preview_key end as preview_key, d.destination, d.state, d.attempts, d.last_status, d.last_words, d.next_attempt_at,
                d.id as delivery_id, d.chain, d.rank, d.commitment, d.commitment_words
         from result x join run r on r.id = x.run_id join workup w on w.id = r.workup_id
         left join delivery d on d.result_id = x.id
         where $1::uuid is null or r.workup_id = $1
         order by x.created_at desc, d.send_order, d.destination limit $2",
    )
    .bind(workup_id)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// One delivery with its result; `None` when there is no such delivery.
pub async fn delivery(connection: &mut Connection, delivery_id: Uuid) -> Result<Option<DeliveryRow>> {
    Ok(sqlx::query_as(
        "select x.id as result_id, x.run_id, w.study_instance_uid, x.kind, x.sop_instance_uid, x.archive_key,
                case when x.removed_at is null then x.preview_key end as preview_key, d.destination, d.state,
                d.attempts, d.last_status, d.last_words, d.next_attempt_at, d.id as delivery_id, d.chain, d.rank,
                d.commitment, d.commitment_words
         from delivery d join result x on x.id = d.result_id join run r on r.id = d.run_id
         join workup w on w.id = r.workup_id where d.id = $1",
    )
    .bind(delivery_id)
    .fetch_optional(connection)
    .await?)
}

/// Where the archive keeps the PNG of a result.
pub async fn preview_key(connection: &mut Connection, result_id: Uuid) -> Result<Option<String>> {
    let key: Option<Option<String>> =
        sqlx::query_scalar("select preview_key from result where id = $1 and removed_at is null")
            .bind(result_id)
            .fetch_optional(connection)
            .await?;
    Ok(key.flatten())
}

/// One step of a timeline.
#[derive(Debug, Clone, FromRow)]
pub struct EventRow {
    /// When.
    pub at: OffsetDateTime,
    /// What it is about.
    pub subject_kind: String,
    /// What happened.
    pub kind: String,
    /// In words.
    pub words: String,
}

/// The timeline of a workup with its objects, runs and deliveries, oldest first.
pub async fn timeline(connection: &mut Connection, workup_id: Uuid) -> Result<Vec<EventRow>> {
    Ok(sqlx::query_as(
        // Joined to the few subjects: with `or` and sub-queries Postgres would read the whole timeline of the node.
        "select e.at, e.subject_kind, e.kind, e.words
         from (select 'workup' as subject_kind, $1::text as subject_id
               union all
               select 'run', r.id::text from run r where r.workup_id = $1
               union all
               select 'delivery', d.id::text
               from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id
               where r.workup_id = $1
               union all
               select 'instance', i.id::text
               from instance i join workup w on w.study_instance_uid = i.study_instance_uid
                    and w.local_ae_title = i.local_ae_title
               where w.id = $1) s
         join event e on e.subject_kind = s.subject_kind and e.subject_id = s.subject_id
         order by e.id",
    )
    .bind(workup_id)
    .fetch_all(connection)
    .await?)
}

/// How many rows are in each open state: what the gauges show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub struct Backlog {
    /// Workups still receiving.
    pub workups_receiving: i64,
    /// Runs queued, running or to be tried again.
    pub runs_open: i64,
    /// Runs that a person has to look at.
    pub runs_parked: i64,
    /// Deliveries waiting or being sent.
    pub deliveries_open: i64,
    /// Deliveries that a person has to look at.
    pub deliveries_dead: i64,
    /// Delivered results that their destination does not promise to keep.
    pub deliveries_not_committed: i64,
    /// Destinations that are left alone.
    pub destinations_open: i64,
    /// Storage Commitment requests of peers that are not reported on yet.
    pub commitments_open: i64,
    /// Networks that failed in a run of the last ten minutes, while others of their bundle answered.
    pub networks_failing: i64,
}

/// The failures of networks in the runs of the last ten minutes: of each its bundle, run, name and reason.
const FAILURES: &str = "select r.bundle, r.id as run_id, m ->> 'name' as network, m ->> 'failure' as words, r.finished_at
    from run r, jsonb_path_query(r.outcome, 'lax $.*.members[*] ? (@.failure != null)') m
    where r.state = 'succeeded' and r.queued_at > now() - interval '1 day' and r.finished_at > now() - interval '10 minutes'";

/// Counts the open rows.
pub async fn backlog(connection: &mut Connection) -> Result<Backlog> {
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select (select count(*) from workup where state = 'receiving') as workups_receiving,
                (select count(*) from run where state in ('queued', 'running', 'failed')) as runs_open,
                (select count(*) from run where state = 'parked' and role <> 'shadow') as runs_parked,
                (select count(*) from delivery where state in ('waiting', 'sending')) as deliveries_open,
                (select count(*) from delivery where state = 'dead') as deliveries_dead,
                (select count(*) from delivery where commitment in ('failed', 'unanswered')) as deliveries_not_committed,
                (select count(*) from destination_state where state = 'open') as destinations_open,
                (select count(*) from commitment_request where state in ('waiting', 'reporting')) as commitments_open,
                (select count(distinct (f.bundle, f.network)) from ({FAILURES}) f) as networks_failing"
    )))
    .fetch_one(connection)
    .await?)
}

/// A network that fails while others of its bundle answer.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct FailingNetwork {
    /// Its bundle.
    pub bundle: String,
    /// Its name in the bundle.
    pub network: String,
    /// In how many runs of the last ten minutes it failed.
    pub runs: i64,
    /// Why, the last time.
    pub words: String,
}

/// The networks that failed in runs of the last ten minutes.
pub async fn failing_networks(connection: &mut Connection) -> Result<Vec<FailingNetwork>> {
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select f.bundle, f.network, count(distinct f.run_id) as runs,
                (array_agg(f.words order by f.finished_at desc))[1] as words
         from ({FAILURES}) f group by f.bundle, f.network order by f.bundle, f.network"
    )))
    .fetch_all(connection)
    .await?)
}

/// One step of a run, with what an operator wants to know of it.
#[derive(Debug, Clone, FromRow)]
pub struct RunStep {
    /// Number of the event, rising.
    pub event_id: i64,
    /// `running`, `succeeded`, `not_analysed`, `superseded`, `failed` or `parked`.
    pub kind: String,
    /// The step in words.
    pub words: String,
    /// The run.
    pub run_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Name of the bundle folder.
    pub bundle: String,
    /// `live`, `shadow` or `canary`.
    pub role: String,
    /// The run's attempts so far.
    pub attempt: i32,
    /// Attempts before it is parked.
    pub maximum_attempts: i32,
    /// Reason code of the run, if it has one.
    pub reason: Option<String>,
    /// Length of the attempt in seconds, when it has ended.
    pub seconds: Option<f64>,
    /// Time of each stage in milliseconds.
    pub stage_milliseconds: Option<serde_json::Value>,
}

/// The newest event's number, 0 when there is none.
pub async fn newest_event_id(connection: &mut Connection) -> Result<i64> {
    Ok(sqlx::query_scalar("select coalesce(max(id), 0) from event").fetch_one(connection).await?)
}

/// Steps that [`run_steps_after`] gives at most.
pub const RUN_STEPS_LIMIT: i64 = 500;

/// The steps of runs after event number `after`, in order, at most [`RUN_STEPS_LIMIT`].
pub async fn run_steps_after(connection: &mut Connection, after: i64) -> Result<Vec<RunStep>> {
    Ok(sqlx::query_as(
        "select e.id as event_id, e.kind, e.words, r.id as run_id, w.study_instance_uid, r.bundle, r.role,
                r.attempt, r.maximum_attempts, r.reason, extract(epoch from r.finished_at - r.started_at)::float8 as seconds,
                r.stage_milliseconds
         from event e join run r on r.id = e.subject_id::uuid join workup w on w.id = r.workup_id
         where e.subject_kind = 'run' and e.id > $1 order by e.id limit $2",
    )
    .bind(after)
    .bind(RUN_STEPS_LIMIT)
    .fetch_all(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{
        run,
        testing::{TestDatabase, new_run, workup},
    };

    #[tokio::test]
    async fn networks_that_fail_beside_others_are_named_for_ten_minutes() {
        let database = TestDatabase::start("failing_networks").await;
        let mut connection = database.db.acquire().await.unwrap();
        let radiograph = r#"{"kind": "analysed", "images": [
            {"members": [{"name": "a", "failure": null}, {"name": "b", "failure": "no memory"}]},
            {"members": [{"name": "a", "failure": null}, {"name": "b", "failure": "no memory"}]}]}"#;
        let scan = r#"{"kind": "ct_measured", "lungs": [], "classification": {"members": [{"name": "c", "failure": "a panic"}]},
            "lesions": {"members": [{"name": "d", "failure": null}]}}"#;
        for (study, outcome, minutes_ago) in [("1.2.1", radiograph, 1), ("1.2.2", radiograph, 2), ("1.2.3", scan, 30)] {
            let workup_id = workup(&database.db, study).await;
            let run_id = run::insert(&mut connection, &new_run(workup_id)).await.unwrap().unwrap();
            sqlx::query(
                "update run set state = 'succeeded', outcome = $2::jsonb, finished_at = now() - make_interval(mins => $3)
                 where id = $1",
            )
            .bind(run_id)
            .bind(outcome)
            .bind(minutes_ago)
            .execute(&mut *connection)
            .await
            .unwrap();
        }
        let of = |network: &str, runs: i64, words: &str| FailingNetwork {
            bundle: new_run(Uuid::nil()).bundle.to_owned(),
            network: network.to_owned(),
            runs,
            words: words.to_owned(),
        };
        assert_eq!(failing_networks(&mut connection).await.unwrap(), [of("b", 2, "no memory")]);
        assert_eq!(backlog(&mut connection).await.unwrap().networks_failing, 1);
        sqlx::query("update run set finished_at = now()").execute(&mut *connection).await.unwrap();
        let failing = failing_networks(&mut connection).await.unwrap();
        assert_eq!(failing, [of("b", 2, "no memory"), of("c", 1, "a panic")]);
        drop(connection);
        database.stop().await;
    }
}
