//! Workups: one study for one local AE, for which we owe an answer.
//!
//! ```text
//! receiving ─► complete ─► analysing ─► answered        (late image: back to receiving, revision + 1)
//!                  └────► not_routed                    parked when its run is parked
//! ```

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Connection, Result, event,
    instance::{DueWorkup, Patience},
    run, sender_habit,
};
use crate::types::{LateImages, SeriesFacts};

/// Objects that came for a workup in one batch.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who sent the first of them.
    pub calling_ae_title: String,
    /// Receipt of the first.
    pub first_at: OffsetDateTime,
    /// Receipt of the last.
    pub last_at: OffsetDateTime,
    /// How many.
    pub object_count: usize,
    /// How long to wait for more.
    pub patience: Patience,
}

/// Notes that objects came: makes the workup, or keeps it `receiving`, or takes it back to `receiving` with the
/// next revision, which supersedes its runs. The caller gives what it teaches to [`sender_habit::learn`] after all
/// workups of its transaction: locks are taken in that order everywhere.
pub async fn objects_arrived(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: &str,
    arrival: &Arrival,
) -> Result<Arrived> {
    let existing: Option<Existing> = sqlx::query_as(
        "select id, state, revision, first_object_at, last_object_at, completed_at from workup
         where study_instance_uid = $1 and local_ae_title = $2 for update",
    )
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(existing) = existing else {
        let due = begin(connection, study_instance_uid, local_ae_title, arrival).await?;
        return Ok(Arrived { due: Some(due), late_gap_seconds: None });
    };
    if existing.state == "receiving" {
        let due_at = arrival.due_at(existing.first_object_at);
        sqlx::query(
            "update workup set last_object_at = greatest(last_object_at, $2), due_at = $3, updated_at = now()
             where id = $1 and state = 'receiving'",
        )
        .bind(existing.id)
        .bind(arrival.last_at)
        .bind(due_at)
        .execute(connection)
        .await?;
        return Ok(Arrived { due: Some(DueWorkup { workup_id: existing.id, due_at }), late_gap_seconds: None });
    }
    let gap = arrival.first_at - existing.last_object_at;
    // Longer ones are no pause of the sender: the study was continued another time.
    let is_pause = gap.is_positive() && gap <= arrival.patience.maximum_wait;
    let late_gap_seconds = is_pause.then(|| gap.as_seconds_f64());
    if let Some(reason) = existing.ignores_late(arrival) {
        let words = format!(
            "{} late object(s) from {} are kept and not analysed: {reason}",
            arrival.object_count, arrival.calling_ae_title
        );
        let data = json!({ "revision": existing.revision, "objects": arrival.object_count });
        event::append(connection, event::Subject::Workup, existing.id, "late_objects_ignored", &words, data).await?;
        other_receipt(connection, study_instance_uid, local_ae_title, arrival.last_at).await?;
        return Ok(Arrived { due: None, late_gap_seconds });
    }
    let due = begin_again(connection, &existing, arrival).await?;
    Ok(Arrived { due: Some(due), late_gap_seconds })
}

/// Notes that something came that opens no revision, so that retention counts from it; nothing where there is no workup.
pub(super) async fn other_receipt(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: &str,
    received_at: OffsetDateTime,
) -> Result<()> {
    sqlx::query(
        "update workup set last_other_receipt_at = greatest(last_other_receipt_at, $3)
         where study_instance_uid = $1 and local_ae_title = $2",
    )
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .bind(received_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// What an arrival did.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// When to look at the workup; `None` when the route ignores late objects and these are late.
    pub due: Option<DueWorkup>,
    /// The pause of the sender, in seconds, that was longer than the study waited.
    pub late_gap_seconds: Option<f64>,
}

impl Arrival {
    /// The first look: when the silence of the route has passed, unless more comes.
    fn due_at(&self, first_object_at: OffsetDateTime) -> OffsetDateTime {
        (self.last_at + self.patience.quiet).min(first_object_at + self.patience.maximum_wait)
    }
}

#[derive(FromRow)]
struct Existing {
    id: Uuid,
    state: String,
    revision: i32,
    first_object_at: OffsetDateTime,
    last_object_at: OffsetDateTime,
    completed_at: Option<OffsetDateTime>,
}

impl Existing {
    /// Why objects that came now are not analysed; `None` when they are. A study that no route took is always
    /// looked at again: what came late may be what a route waits for.
    fn ignores_late(&self, arrival: &Arrival) -> Option<String> {
        if self.state == "not_routed" {
            return None;
        }
        match (arrival.patience.late_images, arrival.patience.late_images_within) {
            (LateImages::Ignore, _) => Some("the route has late_images = \"ignore\"".to_owned()),
            (LateImages::NewRevision, Some(within)) => {
                let late = self.completed_at.is_some_and(|completed_at| arrival.first_at > completed_at + within);
                late.then(|| format!("they came later than late_images_within_seconds = {}", within.as_secs()))
            }
            (LateImages::NewRevision, None) => None,
        }
    }
}

/// The first objects of a study at a local AE.
async fn begin(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: &str,
    arrival: &Arrival,
) -> Result<DueWorkup> {
    let workup_id = Uuid::now_v7();
    let due_at = arrival.due_at(arrival.first_at);
    sqlx::query(
        "insert into workup (id, study_instance_uid, local_ae_title, state, state_words, revision,
             calling_ae_title, first_object_at, last_object_at, due_at)
         values ($1, $2, $3, 'receiving', 'objects are arriving', 1, $4, $5, $6, $7)",
    )
    .bind(workup_id)
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .bind(&arrival.calling_ae_title)
    .bind(arrival.first_at)
    .bind(arrival.last_at)
    .bind(due_at)
    .execute(&mut *connection)
    .await?;
    let words = format!("first object from {}", arrival.calling_ae_title);
    event::append(connection, event::Subject::Workup, workup_id, "receiving", &words, json!({ "revision": 1 })).await?;
    Ok(DueWorkup { workup_id, due_at })
}

/// Late objects: the next revision.
async fn begin_again(connection: &mut Connection, existing: &Existing, arrival: &Arrival) -> Result<DueWorkup> {
    let due_at = arrival.due_at(arrival.first_at);
    let revision = existing.revision + 1;
    sqlx::query(
        "update workup set state = 'receiving', state_words = 'objects arrived late', revision = $2,
             calling_ae_title = $3, first_object_at = $4, last_object_at = $5, due_at = $6, waiting_kind = null,
             forced_by = null, source_asked_at = null, source_count = null, source_words = null, updated_at = now()
         where id = $1 and state = $7",
    )
    .bind(existing.id)
    .bind(revision)
    .bind(&arrival.calling_ae_title)
    .bind(arrival.first_at)
    .bind(arrival.last_at)
    .bind(due_at)
    .bind(&existing.state)
    .execute(&mut *connection)
    .await?;
    let words = format!("late objects from {} start revision {revision}", arrival.calling_ae_title);
    let data = json!({ "revision": revision, "from_state": existing.state });
    event::append(connection, event::Subject::Workup, existing.id, "late_objects", &words, data).await?;
    run::supersede_earlier(connection, existing.id, revision).await?;
    Ok(DueWorkup { workup_id: existing.id, due_at })
}

/// What the decision "is this study complete?" is made from.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The workup.
    pub id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Our AE title that it was sent to.
    pub local_ae_title: String,
    /// The sender of the newest revision's first object.
    pub calling_ae_title: String,
    /// Its state.
    pub state: String,
    /// Its revision.
    pub revision: i32,
    /// Receipt of the revision's first object.
    pub first_object_at: OffsetDateTime,
    /// Receipt of the newest object.
    pub last_object_at: OffsetDateTime,
    /// The study's series as they are here, own results left out.
    pub series: Vec<SeriesFacts>,
    /// The associations that stored to this revision.
    pub associations: Vec<AssociationFacts>,
    /// The newest Storage Commitment request for objects of this revision.
    pub commitment: Option<CommitmentFacts>,
    /// The sender's answer to "how many instances?".
    pub source: Option<SourceAnswer>,
    /// Longest silence between two associations in seconds, of each of the sender's newest studies.
    pub longest_gap_seconds: Vec<f64>,
    /// Who wants it complete now.
    pub forced_by: Option<String>,
    /// Why it waits, as noted at the last look.
    pub waiting_kind: Option<String>,
    /// The database's clock.
    pub now: OffsetDateTime,
}

impl Facts {
    /// How many objects there are, own results left out.
    #[must_use]
    pub fn object_count(&self) -> u64 {
        self.series.iter().map(|series| series.instances).sum()
    }

    /// Distinct modalities of the study's objects, own results left out.
    #[must_use]
    pub fn modalities(&self) -> Vec<String> {
        let mut modalities: Vec<String> = self.series.iter().filter_map(|series| series.modality.clone()).collect();
        modalities.sort();
        modalities.dedup();
        modalities
    }
}

/// An association that stored to a study.
#[derive(Debug, Clone, FromRow)]
pub struct AssociationFacts {
    /// Which.
    pub id: Uuid,
    /// Who called.
    pub calling_ae_title: String,
    /// Its request; `None` when no row tells of it.
    pub started_at: Option<OffsetDateTime>,
    /// Its end; `None` while it is open.
    pub ended_at: Option<OffsetDateTime>,
    /// `released`, or how else it ended.
    pub end_kind: Option<String>,
}

/// A Storage Commitment request that names objects of a study (PS3.4 annex J).
#[derive(Debug, Clone, FromRow)]
pub struct CommitmentFacts {
    /// When it came.
    pub requested_at: OffsetDateTime,
    /// The association that it came on.
    pub association_id: Uuid,
    /// Instances that it lists.
    pub listed: i64,
    /// Of these, how many are here.
    pub stored: i64,
    /// Objects of this revision that it does not list.
    pub unlisted: i64,
}

/// What the sender said when it was asked for the number of instances of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceAnswer {
    /// When.
    pub asked_at: OffsetDateTime,
    /// The number, or why there is none.
    pub outcome: std::result::Result<u64, String>,
}

#[derive(FromRow)]
struct FactsRow {
    study_instance_uid: String,
    local_ae_title: String,
    calling_ae_title: String,
    state: String,
    revision: i32,
    first_object_at: OffsetDateTime,
    last_object_at: OffsetDateTime,
    forced_by: Option<String>,
    waiting_kind: Option<String>,
    source_asked_at: Option<OffsetDateTime>,
    source_count: Option<i64>,
    source_words: Option<String>,
    now: OffsetDateTime,
}

/// Reads and locks a workup with what the completeness decision needs; `None` when it does not exist.
pub async fn lock_facts(connection: &mut Connection, workup_id: Uuid) -> Result<Option<Facts>> {
    let row: Option<FactsRow> = sqlx::query_as(
        "select study_instance_uid, local_ae_title, calling_ae_title, state, revision, first_object_at,
                last_object_at, forced_by, waiting_kind, source_asked_at, source_count, source_words,
                clock_timestamp() as now
         from workup where id = $1 for update",
    )
    .bind(workup_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let series = series_of(connection, &row.study_instance_uid, &row.local_ae_title).await?;
    let associations = sqlx::query_as(
        "select i.association_id as id, i.calling_ae_title, a.started_at, a.ended_at, a.end_kind
         from (select distinct association_id, calling_ae_title from instance
               where study_instance_uid = $1 and local_ae_title = $2 and not own_output and received_at >= $3) i
         left join association a on a.id = i.association_id",
    )
    .bind(&row.study_instance_uid)
    .bind(&row.local_ae_title)
    .bind(row.first_object_at)
    .fetch_all(&mut *connection)
    .await?;
    let commitment = commitment_of(connection, &row).await?;
    let longest_gap_seconds = sender_habit::longest_gaps(connection, &row.calling_ae_title).await?;
    let source = row.source_asked_at.map(|asked_at| SourceAnswer {
        asked_at,
        outcome: match row.source_count {
            Some(count) => Ok(u64::try_from(count).unwrap_or_default()),
            None => Err(row.source_words.unwrap_or_default()),
        },
    });
    Ok(Some(Facts {
        id: workup_id,
        study_instance_uid: row.study_instance_uid,
        local_ae_title: row.local_ae_title,
        calling_ae_title: row.calling_ae_title,
        state: row.state,
        revision: row.revision,
        first_object_at: row.first_object_at,
        last_object_at: row.last_object_at,
        series,
        associations,
        commitment,
        source,
        longest_gap_seconds,
        forced_by: row.forced_by,
        waiting_kind: row.waiting_kind,
        now: row.now,
    }))
}

/// Modality, description, number, instances.
type SeriesRow = (Option<String>, Option<String>, Option<i64>, i64);

async fn series_of(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: &str,
) -> Result<Vec<SeriesFacts>> {
    let rows: Vec<SeriesRow> = sqlx::query_as(
        // The modality is the objects' own: a Series Instance UID may have been given to another study before.
        "select i.modality, s.series_description, s.series_number, i.instances
         from (select series_instance_uid, modality, count(distinct sop_instance_uid) as instances from instance
               where study_instance_uid = $1 and local_ae_title = $2 and not own_output and removed_at is null
               group by series_instance_uid, modality) i
         left join series s on s.series_instance_uid = i.series_instance_uid and s.study_instance_uid = $1",
    )
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .fetch_all(connection)
    .await?;
    let series = rows.into_iter().map(|(modality, description, number, instances)| SeriesFacts {
        modality,
        description,
        number,
        instances: u64::try_from(instances).unwrap_or_default(),
    });
    Ok(series.collect())
}

/// The newest request of the sender that lists an object of this revision. The cases that matter are few: a modality
/// asks once for all it has sent.
async fn commitment_of(connection: &mut Connection, row: &FactsRow) -> Result<Option<CommitmentFacts>> {
    Ok(sqlx::query_as(
        "with newest as (
             select r.id, r.created_at, r.association_id from commitment_request r
             where r.calling_ae_title = $4 and r.local_ae_title = $2 and r.created_at >= $3 and exists (
                 select from commitment_instance c join instance i on i.sop_instance_uid = c.sop_instance_uid
                 where c.commitment_request_id = r.id and i.study_instance_uid = $1 and i.local_ae_title = $2
                   and i.received_at >= $3)
             order by r.created_at desc limit 1)
         select n.created_at as requested_at, n.association_id,
                (select count(*) from commitment_instance c where c.commitment_request_id = n.id) as listed,
                (select count(*) from commitment_instance c where c.commitment_request_id = n.id and exists (
                     select from instance i where i.sop_instance_uid = c.sop_instance_uid
                     and i.local_ae_title = $2 and i.removed_at is null)) as stored,
                (select count(distinct i.sop_instance_uid) from instance i
                 where i.study_instance_uid = $1 and i.local_ae_title = $2 and not i.own_output
                   and i.received_at >= $3 and not exists (select from commitment_instance c
                     where c.commitment_request_id = n.id and c.sop_instance_uid = i.sop_instance_uid)) as unlisted
         from newest n",
    )
    .bind(&row.study_instance_uid)
    .bind(&row.local_ae_title)
    .bind(row.first_object_at)
    .bind(&row.calling_ae_title)
    .fetch_optional(connection)
    .await?)
}

/// The workups that still receive and have objects in a Storage Commitment request: their completeness may have
/// changed with it.
pub async fn receiving_of_commitment(connection: &mut Connection, commitment_request_id: Uuid) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select distinct w.id from commitment_request r
         join commitment_instance c on c.commitment_request_id = r.id
         join instance i on i.sop_instance_uid = c.sop_instance_uid and i.local_ae_title = r.local_ae_title
         join workup w on w.study_instance_uid = i.study_instance_uid and w.local_ae_title = i.local_ae_title
         where r.id = $1 and w.state = 'receiving'",
    )
    .bind(commitment_request_id)
    .fetch_all(connection)
    .await?)
}

/// Workups that still receive and whose sender has asked for a commitment since the last look, for `reconcile`: a
/// process that died may not have asked for one.
pub async fn with_new_commitment(connection: &mut Connection) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select distinct w.id from workup w
         join instance i on i.study_instance_uid = w.study_instance_uid and i.local_ae_title = w.local_ae_title
         join commitment_instance c on c.sop_instance_uid = i.sop_instance_uid
         join commitment_request r on r.id = c.commitment_request_id and r.local_ae_title = w.local_ae_title
         where w.state = 'receiving' and r.created_at > w.updated_at",
    )
    .fetch_all(connection)
    .await?)
}

/// Why a workup waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Until then, unless something happens before.
    pub until: OffsetDateTime,
    /// What it waits for, where that is worth a line of the timeline.
    pub kind: Option<&'static str>,
    /// In words.
    pub words: String,
}

/// Puts the next look at a workup off and says why. A new kind of waiting is an event.
pub async fn wait(connection: &mut Connection, facts: &Facts, waiting: &Waiting) -> Result<()> {
    let done = sqlx::query(
        "update workup set due_at = $2, state_words = $3, waiting_kind = $4, updated_at = now()
         where id = $1 and state = 'receiving' and revision = $5",
    )
    .bind(facts.id)
    .bind(waiting.until)
    .bind(&waiting.words)
    .bind(waiting.kind)
    .bind(facts.revision)
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 1
        && let Some(kind) = waiting.kind
        && facts.waiting_kind.as_deref() != Some(kind)
    {
        let data = json!({ "revision": facts.revision, "kind": kind });
        event::append(connection, event::Subject::Workup, facts.id, "waiting", &waiting.words, data).await?;
    }
    Ok(())
}

/// Keeps what the sender answered when it was asked for the number of instances.
pub async fn source_answered(connection: &mut Connection, workup_id: Uuid, answer: &SourceAnswer) -> Result<()> {
    let count = answer.outcome.as_ref().ok().map(|count| i64::try_from(*count).unwrap_or(i64::MAX));
    sqlx::query(
        "update workup set source_asked_at = $2, source_count = $3, source_words = $4
         where id = $1 and state = 'receiving'",
    )
    .bind(workup_id)
    .bind(answer.asked_at)
    .bind(count)
    .bind(answer.outcome.as_ref().err())
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that a person wants the workups of a study complete that still receive, at one local AE or at all. Returns
/// them: each needs a look.
pub async fn force(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: Option<&str>,
    forced_by: &str,
) -> Result<Vec<Uuid>> {
    let forced: Vec<Uuid> = sqlx::query_scalar(
        "update workup set forced_by = $3, due_at = now(), updated_at = now()
         where study_instance_uid = $1 and ($2::text is null or local_ae_title = $2) and state = 'receiving'
         returning id",
    )
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .bind(forced_by)
    .fetch_all(&mut *connection)
    .await?;
    for workup_id in &forced {
        let words = format!("{forced_by} wants it complete now");
        event::append(connection, event::Subject::Workup, workup_id, "forced", &words, json!({})).await?;
    }
    Ok(forced)
}

/// What made a study complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// One of the kinds that the column `completeness_kind` allows.
    pub kind: &'static str,
    /// In words.
    pub words: String,
    /// What the decision was made from.
    pub data: serde_json::Value,
}

/// `receiving` → `complete` with its evidence. The study's longest silence is remembered for its sender's next ones.
/// Returns whether it happened.
pub async fn complete(connection: &mut Connection, facts: &Facts, evidence: &Evidence) -> Result<bool> {
    let done = sqlx::query(
        "update workup set state = 'complete', state_words = $3, completeness_reason = $3, completeness_kind = $4,
             completeness_data = $5, completed_at = now(), waiting_kind = null, updated_at = now()
         where id = $1 and state = 'receiving' and revision = $2",
    )
    .bind(facts.id)
    .bind(facts.revision)
    .bind(&evidence.words)
    .bind(evidence.kind)
    .bind(&evidence.data)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        let data = json!({ "revision": facts.revision, "kind": evidence.kind, "evidence": evidence.data });
        event::append(connection, event::Subject::Workup, facts.id, "complete", &evidence.words, data).await?;
        if facts.revision == 1 {
            let gap = longest_gap_seconds(connection, facts).await?;
            sender_habit::learn(connection, &facts.calling_ae_title, gap).await?;
        }
    }
    Ok(done)
}

/// The longest silence in seconds between objects of different associations: within one association there is nothing
/// to wait for, it is open. 0 when one association brought them all.
async fn longest_gap_seconds(connection: &mut Connection, facts: &Facts) -> Result<f64> {
    Ok(sqlx::query_scalar(
        "select coalesce(max(extract(epoch from received_at - before_at)), 0)::float8 from (
             select received_at, association_id, lag(received_at) over w as before_at,
                    lag(association_id) over w as before_id
             from instance where study_instance_uid = $1 and local_ae_title = $2 and not own_output
               and received_at >= $3
             window w as (order by received_at)) i
         where association_id <> before_id",
    )
    .bind(&facts.study_instance_uid)
    .bind(&facts.local_ae_title)
    .bind(facts.first_object_at)
    .fetch_one(connection)
    .await?)
}

/// One fenced change of a workup's state, with its event. Returns whether it happened.
async fn change_state(
    connection: &mut Connection,
    workup_id: Uuid,
    revision: i32,
    from: &[&str],
    to: &str,
    words: &str,
) -> Result<bool> {
    let done = sqlx::query(
        "update workup set state = $3, state_words = $4, updated_at = now()
         where id = $1 and revision = $2 and state = any($5)",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(to)
    .bind(words)
    .bind(from)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        event::append(connection, event::Subject::Workup, workup_id, to, words, json!({ "revision": revision }))
            .await?;
    }
    Ok(done)
}

/// `complete` → `not_routed`: kept, shown, never silent.
pub async fn not_routed(connection: &mut Connection, workup_id: Uuid, revision: i32, words: &str) -> Result<bool> {
    change_state(connection, workup_id, revision, &["complete"], "not_routed", words).await
}

/// `complete` → `analysing` by a route.
pub async fn analysing(connection: &mut Connection, workup_id: Uuid, revision: i32, route_name: &str) -> Result<bool> {
    sqlx::query("update workup set route_name = $2 where id = $1")
        .bind(workup_id)
        .bind(route_name)
        .execute(&mut *connection)
        .await?;
    let words = format!("route `{route_name}`");
    change_state(connection, workup_id, revision, &["complete"], "analysing", &words).await
}

/// `analysing` → `parked`: a person has to look.
pub async fn park(connection: &mut Connection, workup_id: Uuid, revision: i32, words: &str) -> Result<bool> {
    change_state(connection, workup_id, revision, &["analysing"], "parked", words).await
}

/// `parked` → `analysing`: a person restarts its run.
pub async fn unpark(connection: &mut Connection, workup_id: Uuid, words: &str) -> Result<bool> {
    let revision: i32 = sqlx::query_scalar("select revision from workup where id = $1")
        .bind(workup_id)
        .fetch_one(&mut *connection)
        .await?;
    change_state(connection, workup_id, revision, &["parked"], "analysing", words).await
}

/// Locks workups in the order of the index's own locks, so that the two never wait for each other. Their deliveries are locked
/// after them, everywhere.
pub(super) async fn lock(connection: &mut Connection, ids: &[Uuid]) -> Result<()> {
    sqlx::query("select from workup where id = any($1) order by study_instance_uid, local_ae_title for update")
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(())
}

/// `analysing` → `answered` when every run of the revision but shadows is terminal and rendered, and every delivery closed.
pub async fn answer_if_done(connection: &mut Connection, workup_id: Uuid) -> Result<bool> {
    // Locked by a statement of its own: the next one then sees what others committed while this one waited. In one
    // statement, the last two deliveries of a study that close at once would each see the other one open.
    lock(connection, &[workup_id]).await?;
    let open: Option<(i32, bool)> = sqlx::query_as(
        "select w.revision,
                exists (select from run r where r.workup_id = w.id and r.revision = w.revision
                        and r.role <> 'shadow'
                        and (r.state not in ('succeeded', 'not_analysed') or r.rendered_at is null))
             or exists (select from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id
                        where r.workup_id = w.id and r.revision = w.revision
                        and (d.state in ('waiting', 'sending')
                             or d.state = 'delivered' and d.commitment_required
                                and d.commitment is distinct from 'committed'))
         from workup w where w.id = $1 and w.state = 'analysing'",
    )
    .bind(workup_id)
    .fetch_optional(&mut *connection)
    .await?;
    match open {
        Some((revision, false)) => {
            change_state(
                connection,
                workup_id,
                revision,
                &["analysing"],
                "answered",
                "every result is delivered or closed",
            )
            .await
        }
        _ => Ok(false),
    }
}

/// Workups that are due and still `receiving`, for `reconcile`.
pub async fn due(connection: &mut Connection) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select id from workup where state = 'receiving' and due_at <= now() order by due_at limit 1000",
    )
    .fetch_all(connection)
    .await?)
}

/// Closes workups whose last delivery was closed by a process that died before saying so.
pub async fn answer_all_done(connection: &mut Connection) -> Result<u64> {
    // Only those that look done: locking every study that waits for a PACS would hold up the index. In the order of
    // the index's own locks, so that the two never wait for each other.
    let candidates: Vec<Uuid> = sqlx::query_scalar(
        "select w.id from workup w
         where w.state = 'analysing' and w.updated_at < now() - interval '1 minute'
           and not exists (select from run r where r.workup_id = w.id and r.revision = w.revision
                           and r.role <> 'shadow'
                           and (r.state not in ('succeeded', 'not_analysed') or r.rendered_at is null))
           and not exists (select from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id
                           where r.workup_id = w.id and r.revision = w.revision
                           and (d.state in ('waiting', 'sending')
                                or d.state = 'delivered' and d.commitment_required
                                   and d.commitment is distinct from 'committed'))
         order by w.study_instance_uid, w.local_ae_title limit 1000",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut answered = 0;
    for workup_id in candidates {
        answered += u64::from(answer_if_done(connection, workup_id).await?);
    }
    Ok(answered)
}
