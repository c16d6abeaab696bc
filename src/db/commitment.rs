//! Storage Commitment: what peers asked us to keep and what we reported; what we asked peers and what they reported.
//!
//! ```text
//! waiting ─► reporting ─► reported
//!    ▲           ├─► waiting (again at) …
//!    └───────────┘─► dead(reason)
//! ```

use std::collections::BTreeMap;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, DbError, Result, delivery, event, workup};
use crate::types::{CommitmentReport, CommitmentRequest, FailureReason, SopReference, Uid};

/// Where a request comes from.
#[derive(Debug, Clone)]
pub struct Asker<'a> {
    /// The association that carried it.
    pub association_id: Uuid,
    /// Who asks.
    pub calling_ae_title: &'a str,
    /// Whom it asks.
    pub local_ae_title: &'a str,
    /// Where it asks from.
    pub peer_address: &'a str,
}

/// Keeps a request; the caller commits before it answers. The same list under the same Transaction UID, asked again
/// while its report is still owed, is no new request. Returns the request's id.
pub async fn insert(connection: &mut Connection, asker: &Asker<'_>, request: &CommitmentRequest) -> Result<Uuid> {
    let transaction_uid = request.transaction_uid.as_str();
    let digest = list_digest(&request.instances);
    // Two associations may bring the same Transaction UID at the same time.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2, 0))")
        .bind(asker.calling_ae_title)
        .bind(transaction_uid)
        .execute(&mut *connection)
        .await?;
    let earlier: Vec<(Uuid, bool, bool)> = sqlx::query_as(
        "select id, instances_sha256 = $3, state in ('waiting', 'reporting') from commitment_request
         where calling_ae_title = $1 and transaction_uid = $2",
    )
    .bind(asker.calling_ae_title)
    .bind(transaction_uid)
    .bind(&digest[..])
    .fetch_all(&mut *connection)
    .await?;
    if let Some((id, ..)) = earlier.iter().find(|(_, is_same, is_open)| *is_same && *is_open) {
        return Ok(*id);
    }
    let is_duplicate = earlier.iter().any(|(_, is_same, _)| !is_same);
    let id = Uuid::now_v7();
    sqlx::query(
        "insert into commitment_request (id, transaction_uid, association_id, calling_ae_title, local_ae_title,
             peer_address, instances_sha256, duplicate_transaction, state)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 'waiting')",
    )
    .bind(id)
    .bind(transaction_uid)
    .bind(asker.association_id)
    .bind(asker.calling_ae_title)
    .bind(asker.local_ae_title)
    .bind(asker.peer_address)
    .bind(&digest[..])
    .bind(is_duplicate)
    .execute(&mut *connection)
    .await?;
    let classes: Vec<&str> = request.instances.iter().map(|one| one.sop_class_uid.as_str()).collect();
    let instances: Vec<&str> = request.instances.iter().map(|one| one.sop_instance_uid.as_str()).collect();
    sqlx::query(
        "insert into commitment_instance (commitment_request_id, ordinal, sop_class_uid, sop_instance_uid)
         select $1, ordinality::integer, sop_class_uid, sop_instance_uid
         from unnest($2::text[], $3::text[]) with ordinality as listed (sop_class_uid, sop_instance_uid, ordinality)",
    )
    .bind(id)
    .bind(&classes)
    .bind(&instances)
    .execute(&mut *connection)
    .await?;
    let words =
        format!("`{}` asks whether {} instance(s) are in safe keeping", asker.calling_ae_title, instances.len());
    let data = json!({ "transaction_uid": transaction_uid, "association_id": asker.association_id });
    event::append(connection, event::Subject::Commitment, id, "requested", &words, data).await?;
    Ok(id)
}

/// Of the list, whatever its order.
fn list_digest(instances: &[SopReference]) -> [u8; 32] {
    let mut sorted: Vec<&SopReference> = instances.iter().collect();
    sorted.sort();
    let mut digest = Sha256::new();
    for one in sorted {
        digest.update(one.sop_class_uid.as_str());
        digest.update(b" ");
        digest.update(one.sop_instance_uid.as_str());
        digest.update(b"\n");
    }
    digest.finalize().into()
}

/// A request whose report is being made.
#[derive(Debug, Clone, FromRow)]
pub struct OpenRequest {
    /// The request.
    pub id: Uuid,
    /// (0008,1195)
    pub transaction_uid: String,
    /// The association on which it came.
    pub association_id: Uuid,
    /// Who asked.
    pub calling_ae_title: String,
    /// Whom it asked.
    pub local_ae_title: String,
    /// Where it asked from.
    pub peer_address: String,
    /// Another request of the peer has the same Transaction UID.
    pub duplicate_transaction: bool,
    /// Number of this attempt, from 1.
    pub attempts: i32,
    /// When the list was compared with the archive.
    pub evaluated_at: Option<OffsetDateTime>,
    /// When it was asked.
    pub created_at: OffsetDateTime,
}

/// Counts an attempt: `waiting` → `reporting`, or again after the death of the process that reported. `None` when the
/// request is closed or not due. The caller commits before it does anything.
pub async fn start(connection: &mut Connection, id: Uuid) -> Result<Option<OpenRequest>> {
    Ok(sqlx::query_as(
        "update commitment_request set state = 'reporting', attempts = attempts + 1
         where id = $1 and state in ('waiting', 'reporting') and next_attempt_at <= now()
         returning id, transaction_uid, association_id, calling_ae_title, local_ae_title, peer_address,
                   duplicate_transaction, attempts, evaluated_at, created_at",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?)
}

/// An instance of a request beside one that the index knows under its SOP Instance UID, if any.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Candidate {
    /// Its place in the list, from 1.
    pub ordinal: i32,
    /// As asked.
    pub listed_sop_class_uid: String,
    /// As stored.
    pub stored_sop_class_uid: Option<String>,
    /// Where the archive keeps it.
    pub archive_key: Option<String>,
    /// Length of its data set as received.
    pub size_bytes: Option<i64>,
}

/// Every instance of the list, in order, with each object that has its UID, whichever local AE title and version.
pub async fn candidates(connection: &mut Connection, id: Uuid) -> Result<Vec<Candidate>> {
    Ok(sqlx::query_as(
        "select c.ordinal, c.sop_class_uid as listed_sop_class_uid, i.sop_class_uid as stored_sop_class_uid,
                i.archive_key, i.size_bytes
         from commitment_instance c left join instance i on i.sop_instance_uid = c.sop_instance_uid
         where c.commitment_request_id = $1 order by c.ordinal, i.version",
    )
    .bind(id)
    .fetch_all(connection)
    .await?)
}

/// Keeps what the comparison found: `failures` by ordinal, everything else is committed. Fenced by attempt.
pub async fn evaluated(
    connection: &mut Connection,
    request: &OpenRequest,
    failures: &BTreeMap<i32, FailureReason>,
    n_instances: usize,
) -> Result<bool> {
    let done = sqlx::query(
        "update commitment_request set evaluated_at = now()
         where id = $1 and attempts = $2 and state = 'reporting' and evaluated_at is null",
    )
    .bind(request.id)
    .bind(request.attempts)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        let ordinals: Vec<i32> = failures.keys().copied().collect();
        let reasons: Vec<i32> = failures.values().map(|reason| i32::from(reason.0)).collect();
        sqlx::query(
            "update commitment_instance c set failure_reason = failed.reason
             from unnest($2::integer[], $3::integer[]) as failed (ordinal, reason)
             where c.commitment_request_id = $1 and c.ordinal = failed.ordinal",
        )
        .bind(request.id)
        .bind(&ordinals)
        .bind(&reasons)
        .execute(&mut *connection)
        .await?;
        let words = format!("{} of {n_instances} instance(s) are in safe keeping", n_instances - failures.len());
        let data = json!({ "failed": failures.len(), "instances": n_instances });
        event::append(connection, event::Subject::Commitment, request.id, "evaluated", &words, data).await?;
    }
    Ok(done)
}

/// What is to be reported.
pub async fn report(connection: &mut Connection, request: &OpenRequest) -> Result<CommitmentReport> {
    let rows: Vec<(String, String, Option<i32>)> = sqlx::query_as(
        "select sop_class_uid, sop_instance_uid, failure_reason from commitment_instance
         where commitment_request_id = $1 order by ordinal",
    )
    .bind(request.id)
    .fetch_all(connection)
    .await?;
    let (mut committed, mut failed) = (Vec::new(), Vec::new());
    for (sop_class_uid, sop_instance_uid, reason) in rows {
        let reference = SopReference { sop_class_uid: uid(&sop_class_uid)?, sop_instance_uid: uid(&sop_instance_uid)? };
        match reason {
            None => committed.push(reference),
            Some(reason) => {
                let reason = u16::try_from(reason).map_err(|error| DbError::unreadable("failure reason", error))?;
                failed.push((reference, FailureReason(reason)));
            }
        }
    }
    Ok(CommitmentReport { transaction_uid: uid(&request.transaction_uid)?, committed, failed })
}

fn uid(text: &str) -> Result<Uid> {
    Uid::new(text).map_err(|error| DbError::unreadable("UID", error))
}

/// How an attempt to report ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptEnd {
    /// `reporting` → `reported`: the peer has it.
    Reported,
    /// `reporting` → `waiting`: again at this time.
    Again(OffsetDateTime),
    /// `reporting` → `dead`: given up.
    Dead,
}

/// Closes an attempt, fenced by its number.
pub async fn close(
    connection: &mut Connection,
    request: &OpenRequest,
    end: &AttemptEnd,
    status: Option<u16>,
    words: &str,
) -> Result<bool> {
    let (state, kind, again_at) = match end {
        AttemptEnd::Reported => ("reported", "reported", None),
        AttemptEnd::Again(at) => ("waiting", "retry", Some(*at)),
        AttemptEnd::Dead => ("dead", "dead", None),
    };
    let done = sqlx::query(
        "update commitment_request set state = $3, next_attempt_at = coalesce($4, next_attempt_at), last_status = $5,
                last_words = $6, reported_at = case when $3 = 'reported' then now() end
         where id = $1 and attempts = $2 and state = 'reporting'",
    )
    .bind(request.id)
    .bind(request.attempts)
    .bind(state)
    .bind(again_at)
    .bind(status.map(i32::from))
    .bind(words)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        let data = json!({ "attempt": request.attempts, "status": status });
        event::append(connection, event::Subject::Commitment, request.id, kind, words, data).await?;
    }
    Ok(done)
}

/// Requests whose report is due, for `reconcile`.
pub async fn due(connection: &mut Connection) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select id from commitment_request where state in ('waiting', 'reporting') and next_attempt_at <= now()",
    )
    .fetch_all(connection)
    .await?)
}

/// A request of a peer, for people.
#[derive(Debug, Clone, FromRow)]
pub struct RequestRow {
    /// The request.
    pub id: Uuid,
    /// (0008,1195)
    pub transaction_uid: String,
    /// Who asked.
    pub calling_ae_title: String,
    /// Whom it asked.
    pub local_ae_title: String,
    /// `waiting`, `reporting`, `reported` or `dead`.
    pub state: String,
    /// Attempts to report so far.
    pub attempts: i32,
    /// The outcome of the last attempt.
    pub last_words: String,
    /// When it was asked.
    pub created_at: OffsetDateTime,
    /// When the peer took the report.
    pub reported_at: Option<OffsetDateTime>,
    /// Length of the list.
    pub instances: i64,
    /// Instances of the list that are not in safe keeping; 0 before the evaluation.
    pub failed: i64,
}

/// The newest requests of peers, newest first.
pub async fn newest(connection: &mut Connection, limit: i64) -> Result<Vec<RequestRow>> {
    Ok(sqlx::query_as(
        "select r.id, r.transaction_uid, r.calling_ae_title, r.local_ae_title, r.state, r.attempts, r.last_words,
                r.created_at, r.reported_at, count(c.*) as instances, count(c.failure_reason) as failed
         from (select * from commitment_request order by created_at desc limit $1) r
         join commitment_instance c on c.commitment_request_id = r.id
         group by r.id, r.transaction_uid, r.calling_ae_title, r.local_ae_title, r.state, r.attempts, r.last_words,
                  r.created_at, r.reported_at
         order by r.created_at desc",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Reports again what was given up, by a person's wish. Returns the ids.
pub async fn restart_dead(connection: &mut Connection, calling_ae_title: &str) -> Result<Vec<Uuid>> {
    let restarted: Vec<Uuid> = sqlx::query_scalar(
        "update commitment_request set state = 'waiting', next_attempt_at = now(), created_at = now(),
                last_words = 'restarted by a person'
         where calling_ae_title = $1 and state = 'dead' returning id",
    )
    .bind(calling_ae_title)
    .fetch_all(&mut *connection)
    .await?;
    for id in &restarted {
        let words = "restarted by a person";
        event::append(connection, event::Subject::Commitment, id, "restarted", words, json!({})).await?;
    }
    Ok(restarted)
}

// What we asked peers -------------------------------------------------------------------------------------------

/// Notes what we are about to ask `peer_ae_title`, so that its report is recognised whichever way and whenever it comes.
/// `destination` is whose deliveries are asked about; `None` when a person asks.
pub async fn ask(
    connection: &mut Connection,
    peer_ae_title: &str,
    local_ae_title: &str,
    destination: Option<&str>,
    request: &CommitmentRequest,
) -> Result<()> {
    let transaction_uid = request.transaction_uid.as_str();
    sqlx::query(
        "insert into commitment_asked (transaction_uid, peer_ae_title, local_ae_title, destination, state)
         values ($1, $2, $3, $4, 'asked')",
    )
    .bind(transaction_uid)
    .bind(peer_ae_title)
    .bind(local_ae_title)
    .bind(destination)
    .execute(&mut *connection)
    .await?;
    let classes: Vec<&str> = request.instances.iter().map(|one| one.sop_class_uid.as_str()).collect();
    let instances: Vec<&str> = request.instances.iter().map(|one| one.sop_instance_uid.as_str()).collect();
    sqlx::query(
        "insert into commitment_asked_instance (transaction_uid, sop_class_uid, sop_instance_uid)
         select $1, sop_class_uid, sop_instance_uid
         from unnest($2::text[], $3::text[]) as listed (sop_class_uid, sop_instance_uid) on conflict do nothing",
    )
    .bind(transaction_uid)
    .bind(&classes)
    .bind(&instances)
    .execute(&mut *connection)
    .await?;
    let words = format!("asked `{peer_ae_title}` whether {} instance(s) are in safe keeping", instances.len());
    event::append(connection, event::Subject::Commitment, transaction_uid, "asked", &words, json!({})).await
}

/// Keeps a peer's report. `false` when nothing was asked of this peer under this Transaction UID; the same report once
/// more changes nothing. Instances that were not asked about are ignored; those that the report leaves out have no
/// answer.
pub async fn answered(connection: &mut Connection, peer_ae_title: &str, report: &CommitmentReport) -> Result<bool> {
    let transaction_uid = report.transaction_uid.as_str();
    let state: Option<String> = sqlx::query_scalar(
        "select state from commitment_asked where transaction_uid = $1 and peer_ae_title = $2 for update",
    )
    .bind(transaction_uid)
    .bind(peer_ae_title)
    .fetch_optional(&mut *connection)
    .await?;
    match state.as_deref() {
        None => return Ok(false),
        Some("asked") => {}
        Some(_) => return Ok(true),
    }
    let committed = report.committed.iter().map(|reference| (reference, None));
    let failed = report.failed.iter().map(|(reference, reason)| (reference, Some(i32::from(reason.0))));
    let (instances, reasons): (Vec<&str>, Vec<Option<i32>>) =
        committed.chain(failed).map(|(reference, reason)| (reference.sop_instance_uid.as_str(), reason)).unzip();
    sqlx::query(
        "update commitment_asked_instance asked
         set answer = case when told.reason is null then 'committed' else 'failed' end, failure_reason = told.reason
         from unnest($2::text[], $3::integer[]) as told (sop_instance_uid, reason)
         where asked.transaction_uid = $1 and asked.sop_instance_uid = told.sop_instance_uid",
    )
    .bind(transaction_uid)
    .bind(&instances)
    .bind(&reasons)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update commitment_asked set state = 'answered', answered_at = now()
         where transaction_uid = $1 and state = 'asked'",
    )
    .bind(transaction_uid)
    .execute(&mut *connection)
    .await?;
    let words =
        format!("`{peer_ae_title}` keeps {} instance(s) and refuses {}", report.committed.len(), report.failed.len());
    event::append(&mut *connection, event::Subject::Commitment, transaction_uid, "answered", &words, json!({})).await?;
    settle_deliveries(connection, peer_ae_title, transaction_uid).await?;
    Ok(true)
}

// What we sent and asked about ------------------------------------------------------------------------------------

/// How often a destination is asked before somebody has to look.
const MAXIMUM_ASKS: i32 = 2;

/// Moves the deliveries of an answered request: `committed`; or sent once more, and the second time `failed`. What the
/// report leaves out stays `asked` until it is overdue. That it is kept counts also when it is said late, or to an earlier
/// question; not to one from before the result was sent once more.
async fn settle_deliveries(connection: &mut Connection, peer_ae_title: &str, transaction_uid: &str) -> Result<()> {
    let workups: Vec<Uuid> = sqlx::query_scalar(
        "select distinct r.workup_id
         from commitment_asked_instance a join result x on x.sop_instance_uid = a.sop_instance_uid
         join run r on r.id = x.run_id where a.transaction_uid = $1",
    )
    .bind(transaction_uid)
    .fetch_all(&mut *connection)
    .await?;
    workup::lock(connection, &workups).await?;
    let answered: Vec<(Uuid, String, Option<i32>, bool)> = sqlx::query_as(
        "select d.id, a.answer, a.failure_reason, d.resent
         from commitment_asked_instance a join result x on x.sop_instance_uid = a.sop_instance_uid
         join commitment_asked c on c.transaction_uid = a.transaction_uid
         join delivery d on d.result_id = x.id and d.destination = c.destination
         where a.transaction_uid = $1 and a.answer is not null
           and (d.commitment = 'asked' and d.commitment_transaction_uid = $1
                or a.answer = 'committed' and c.asked_at >= d.delivered_at
                   and d.commitment in ('wanted', 'asked', 'unanswered', 'failed'))
         order by d.id for update of d",
    )
    .bind(transaction_uid)
    .fetch_all(&mut *connection)
    .await?;
    for (delivery_id, answer, reason, resent) in answered {
        let reason = reason.and_then(|reason| u16::try_from(reason).ok()).map(FailureReason);
        let refused = reason.map_or_else(
            || format!("`{peer_ae_title}` does not keep it"),
            |reason| format!("`{peer_ae_title}` does not keep it: {reason}"),
        );
        let (kind, words, change) = match (answer.as_str(), resent) {
            ("committed", _) => (
                "committed",
                format!("`{peer_ae_title}` keeps it"),
                "commitment = 'committed', commitment_due_at = null",
            ),
            (_, false) => (
                "sent_again",
                format!("{refused}; it is sent once more"),
                "state = 'waiting', resent = true, next_attempt_at = now(), created_at = now(), commitment = null,
                 commitment_due_at = null",
            ),
            (_, true) => (
                "not_committed",
                format!(
                    "{refused}, the second time; look into its log, then `hilum deliveries --restart {delivery_id}`"
                ),
                "commitment = 'failed', commitment_due_at = null",
            ),
        };
        sqlx::query(sqlx::AssertSqlSafe(format!("update delivery set commitment_words = $2, {change} where id = $1")))
            .bind(delivery_id)
            .bind(&words)
            .execute(&mut *connection)
            .await?;
        event::append(&mut *connection, event::Subject::Delivery, delivery_id, kind, &words, json!({})).await?;
    }
    answer_done(connection, workups).await
}

/// A delivery that the destination is to be asked about.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Wanted {
    /// The delivery.
    pub delivery_id: Uuid,
    /// (0008,0016)
    pub sop_class_uid: String,
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// Who sent the study.
    pub sender_ae_title: String,
    /// Whom the study was sent to.
    pub local_ae_title: String,
}

/// What is to be asked of a destination now.
pub async fn wanted(connection: &mut Connection, destination: &str, limit: i64) -> Result<Vec<Wanted>> {
    Ok(sqlx::query_as(
        "select d.id as delivery_id, x.sop_class_uid, x.sop_instance_uid, w.calling_ae_title as sender_ae_title,
                w.local_ae_title
         from delivery d join result x on x.id = d.result_id join run r on r.id = d.run_id
         join workup w on w.id = r.workup_id
         where d.destination = $1 and d.commitment = 'wanted' and d.commitment_due_at <= now()
         order by d.commitment_since, d.id limit $2",
    )
    .bind(destination)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// `wanted` → `asked` under this Transaction UID, with a report due at `due_at`. The caller commits before it asks.
pub async fn asking(
    connection: &mut Connection,
    deliveries: &[Uuid],
    transaction_uid: &str,
    due_at: OffsetDateTime,
) -> Result<()> {
    sqlx::query(
        "update delivery set commitment = 'asked', commitment_asks = commitment_asks + 1,
                commitment_transaction_uid = $2, commitment_due_at = $3, commitment_words = 'asked'
         where id = any($1) and commitment = 'wanted'",
    )
    .bind(deliveries)
    .bind(transaction_uid)
    .bind(due_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// The request did not reach the peer: `asked` → `wanted` again at `at`, and the asking does not count. Or, without a
/// time, → `unsupported`: the peer does not offer the service, and nothing waits for it. A request that `may_have_arrived` is
/// remembered: its report counts, if it comes.
pub async fn not_asked(
    connection: &mut Connection,
    transaction_uid: &str,
    again_at: Option<OffsetDateTime>,
    words: &str,
    may_have_arrived: bool,
) -> Result<()> {
    let workups: Vec<Uuid> = sqlx::query_scalar(
        "select distinct r.workup_id from delivery d join run r on r.id = d.run_id
         where d.commitment_transaction_uid = $1 and d.commitment = 'asked'",
    )
    .bind(transaction_uid)
    .fetch_all(&mut *connection)
    .await?;
    workup::lock(connection, &workups).await?;
    sqlx::query(
        "update delivery set commitment = case when $2::timestamptz is null then 'unsupported' else 'wanted' end,
                commitment_required = commitment_required and $2 is not null,
                commitment_asks = commitment_asks - 1, commitment_due_at = $2, commitment_words = $3
         where commitment_transaction_uid = $1 and commitment = 'asked'",
    )
    .bind(transaction_uid)
    .bind(again_at)
    .bind(words)
    .execute(&mut *connection)
    .await?;
    if again_at.is_none() {
        answer_done(connection, workups).await?;
    }
    if !may_have_arrived {
        sqlx::query("delete from commitment_asked where transaction_uid = $1 and state = 'asked'")
            .bind(transaction_uid)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// What waits for promises of a destination that nobody wants any more is let go, for the deliveries of a few studies: with
/// `is_asked` no study waits for its reports; without it none that failed to come holds anything either. What it has promised
/// stays promised. Returns whether there may be more.
pub async fn let_go(connection: &mut Connection, destination: &str, is_asked: bool) -> Result<bool> {
    let workups: Vec<Uuid> = sqlx::query_scalar(
        "select distinct r.workup_id from delivery d join run r on r.id = d.run_id
         where d.destination = $1
           and (d.commitment_required or d.commitment in ('wanted', 'asked', 'failed', 'unanswered'))
           and d.commitment is distinct from 'committed' and (d.commitment_required or not $2) limit $3",
    )
    .bind(destination)
    .bind(is_asked)
    .bind(delivery::PORTION)
    .fetch_all(&mut *connection)
    .await?;
    if workups.is_empty() {
        return Ok(false);
    }
    workup::lock(connection, &workups).await?;
    sqlx::query(
        "update delivery d set commitment_required = false, commitment = case when $2 then commitment end,
                commitment_due_at = case when $2 then commitment_due_at end
         from run r where r.id = d.run_id and d.destination = $1 and r.workup_id = any($3)
           and (d.commitment_required or d.commitment in ('wanted', 'asked', 'failed', 'unanswered'))
           and d.commitment is distinct from 'committed'",
    )
    .bind(destination)
    .bind(is_asked)
    .bind(&workups)
    .execute(&mut *connection)
    .await?;
    answer_done(connection, workups).await?;
    Ok(true)
}

/// A study may have waited for the promise alone.
async fn answer_done(connection: &mut Connection, workups: Vec<Uuid>) -> Result<()> {
    for workup_id in workups {
        workup::answer_if_done(connection, workup_id).await?;
    }
    Ok(())
}

/// What became of overdue reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Deliveries that the destination is asked about once more.
    pub again: u64,
    /// Deliveries that somebody has to look at.
    pub unanswered: u64,
}

/// Reports that are overdue: asked again, and after the second time → `unanswered`. What could not be asked for twice
/// `timeout_seconds` ends the same way.
pub async fn overdue(connection: &mut Connection, destination: &str, timeout_seconds: u32) -> Result<Overdue> {
    let again = sqlx::query(
        "update delivery set commitment = 'wanted', commitment_due_at = now(), commitment_since = now(),
                commitment_words = 'no report in time; asked again'
         where destination = $1 and commitment = 'asked' and commitment_due_at <= now() and commitment_asks < $2",
    )
    .bind(destination)
    .bind(MAXIMUM_ASKS)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let unanswered: Vec<(Uuid, String)> = sqlx::query_as(
        "update delivery set commitment = 'unanswered', commitment_due_at = null,
                commitment_words = case when commitment = 'asked'
                    then 'no report in time, ' || commitment_asks || ' times; look into the log of the destination'
                    else 'it could not be asked: ' || commitment_words end
         where destination = $1 and commitment_due_at <= now()
           and (commitment = 'asked' and commitment_asks >= $2
                or commitment = 'wanted' and commitment_since < now() - 2 * make_interval(secs => $3))
         returning id, commitment_words",
    )
    .bind(destination)
    .bind(MAXIMUM_ASKS)
    .bind(f64::from(timeout_seconds))
    .fetch_all(&mut *connection)
    .await?;
    for (delivery_id, words) in &unanswered {
        event::append(&mut *connection, event::Subject::Delivery, delivery_id, "not_committed", words, json!({}))
            .await?;
    }
    Ok(Overdue { again, unanswered: unanswered.len() as u64 })
}

/// Everything that the index has of a study: images and results.
pub async fn instances_of_study(connection: &mut Connection, study_instance_uid: &str) -> Result<Vec<SopReference>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select sop_class_uid, sop_instance_uid from instance where study_instance_uid = $1
         union
         select x.sop_class_uid, x.sop_instance_uid from result x
         join run r on r.id = x.run_id join workup w on w.id = r.workup_id where w.study_instance_uid = $1
         order by 2, 1",
    )
    .bind(study_instance_uid)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|(class, instance)| Ok(SopReference { sop_class_uid: uid(class)?, sop_instance_uid: uid(instance)? }))
        .collect()
}

/// An instance that we asked about.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct AskedInstance {
    /// (0008,1155)
    pub sop_instance_uid: String,
    /// `committed`, `failed`, or none yet.
    pub answer: Option<String>,
    /// (0008,1197) of a failed one.
    pub failure_reason: Option<i32>,
}

/// The peer's answer; `None` while there is none.
pub async fn answer(connection: &mut Connection, transaction_uid: &str) -> Result<Option<Vec<AskedInstance>>> {
    let is_answered: bool = sqlx::query_scalar(
        "select exists (select from commitment_asked where transaction_uid = $1 and state = 'answered')",
    )
    .bind(transaction_uid)
    .fetch_one(&mut *connection)
    .await?;
    if !is_answered {
        return Ok(None);
    }
    let rows = sqlx::query_as(
        "select sop_instance_uid, answer, failure_reason from commitment_asked_instance
         where transaction_uid = $1 order by sop_instance_uid",
    )
    .bind(transaction_uid)
    .fetch_all(connection)
    .await?;
    Ok(Some(rows))
}
