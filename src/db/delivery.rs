//! Deliveries: one result to one destination, and a row for each attempt.
//!
//! ```text
//! waiting ─► sending ─► delivered ─► waiting (sent once more, when the destination does not keep it)
//!    ▲          ├─► waiting (retry at) …
//!    │          ├─► dead(reason)            everything but delivered ─► cancelled (superseded; what is sent in vain first)
//!    │          └─► replaced, and the next alternative: spare ─► waiting
//!    └──── restart by a person ────┘        spare ─► unneeded (another alternative is delivered)
//! ```
//!
//! The deliveries of one run, destination and chain are alternatives: one of them arrives. Within a run and a destination
//! lower send orders go first, and a segmentation that has to wait holds back what comes after it.

use std::time::Duration;

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Result, event, workup};
use crate::types::CommitmentUse;

/// A result that a destination is owed.
#[derive(Debug, Clone, Copy)]
pub struct NewDelivery<'a> {
    /// The result.
    pub result_id: Uuid,
    /// Name of the destination.
    pub destination: &'a str,
    /// Lower goes first within a run.
    pub send_order: i32,
    /// What is owed; its alternatives have the same.
    pub chain: &'a str,
    /// Place among the alternatives, from 0.
    pub rank: i32,
    /// Before all others that are due.
    pub urgent: bool,
}

/// Owes a result to a destination; one row however often it is called. Lower `send_order` goes first. Of the results
/// with the same `chain` one is to arrive: `rank` 0 is tried first, the next when the destination does not take its SOP
/// class.
pub async fn insert(connection: &mut Connection, new: &NewDelivery<'_>) -> Result<()> {
    sqlx::query(
        "insert into delivery (id, result_id, run_id, destination, send_order, chain, rank, urgent, state)
         select $1, x.id, x.run_id, $3, $4, $5, $6, $7, case when $6 = 0 then 'waiting' else 'spare' end
         from result x where x.id = $2
         on conflict (result_id, destination) do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(new.result_id)
    .bind(new.destination)
    .bind(new.send_order)
    .bind(new.chain)
    .bind(new.rank)
    .bind(new.urgent)
    .execute(connection)
    .await?;
    Ok(())
}

/// A delivery with what sending it needs.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct DueDelivery {
    /// The delivery.
    pub id: Uuid,
    /// The run whose result it is.
    pub run_id: Uuid,
    /// The workup it answers.
    pub workup_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Who sent the study.
    pub sender_ae_title: String,
    /// Whom the study was sent to.
    pub local_ae_title: String,
    /// (0008,0016)
    pub sop_class_uid: String,
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// Transfer syntax of the file.
    pub transfer_syntax_uid: String,
    /// Where the archive keeps the file.
    pub archive_key: String,
    /// Lower goes first.
    pub send_order: i32,
    /// What is owed; its alternatives have the same.
    pub chain: String,
    /// Place among the alternatives.
    pub rank: i32,
    /// Before all others that are due.
    pub urgent: bool,
    /// Attempts so far.
    pub attempts: i32,
    /// Those of them that reached the destination, in vain.
    pub refusals: i32,
    /// Its last attempt ended the association, or the connection.
    pub broke: bool,
    /// When it was first owed, took the place of another form, or was restarted by a person.
    pub created_at: OffsetDateTime,
}

/// Selects [`DueDelivery`] from delivery `d`, result `x`, run `r` and workup `w`; conditions follow.
macro_rules! select_due {
    ($conditions:literal) => {
        concat!(
            "select d.id, d.run_id, r.workup_id, w.study_instance_uid, w.calling_ae_title as sender_ae_title,
                    w.local_ae_title, x.sop_class_uid, x.sop_instance_uid, x.transfer_syntax_uid, x.archive_key,
                    d.send_order, d.chain, d.rank, d.urgent, d.attempts, d.refusals, d.broke, d.created_at
             from delivery d join result x on x.id = d.result_id join run r on r.id = d.run_id
             join workup w on w.id = r.workup_id ",
            $conditions
        )
    };
}

/// Results with a lower order are referred to by later ones: segmentations, by reports.
macro_rules! referred_to_below {
    () => {
        15
    };
}

/// Refusals after which nothing waits for a result any more: a report without its segmentation is better than none.
macro_rules! patience_in_refusals {
    () => {
        5
    };
}

/// Whether a result that has to wait after this many refusals holds back what comes after it in its run.
#[must_use]
pub const fn holds_back(send_order: i32, refusals: i32) -> bool {
    send_order < referred_to_below!() && refusals < patience_in_refusals!()
}

/// A delivery `d` that is open and does not wait behind another one of its run, as [`holds_back`] has it. What the destination
/// does not take holds nothing back: a PACS without segmentations still gets its reports. A `sending` row is one whose process
/// died: the queue lets only one job work on a destination at a time.
macro_rules! next_in_order {
    () => {
        concat!(
            "d.state in ('waiting', 'sending') and not exists
                (select from delivery e where e.run_id = d.run_id and e.destination = d.destination
                 and e.send_order < d.send_order and e.state in ('waiting', 'sending') and e.next_attempt_at > now()
                 and not e.not_taken and e.send_order < ",
            referred_to_below!(),
            " and e.refusals < ",
            patience_in_refusals!(),
            ")"
        )
    };
}

/// What is due for a destination, urgent studies first, then the oldest, and in send order within each; what waits behind
/// another result of its run is not due. Runs with an object at which the association broke go after others that are as
/// urgent: it may be the object.
pub async fn due(connection: &mut Connection, destination: &str, limit: i64) -> Result<Vec<DueDelivery>> {
    // The first few are chosen before their files are looked up: a backlog of days has hundreds of thousands of rows.
    const QUERY: &str = concat!(
        select_due!(
            "join unnest(array(select d.id from delivery d join run r on r.id = d.run_id
                                where d.destination = $1 and d.next_attempt_at <= now() and "
        ),
        next_in_order!(),
        "   order by d.urgent desc,
                     exists (select from delivery e where e.run_id = d.run_id and e.destination = d.destination
                             and e.broke and e.state in ('waiting', 'sending')),
                     r.queued_at, d.run_id, d.send_order, d.id limit $2
         )) with ordinality as first (id, place) on first.id = d.id
         order by first.place"
    );
    Ok(sqlx::query_as(QUERY).bind(destination).bind(limit).fetch_all(connection).await?)
}

/// The alternatives that are left for deliveries, the preferred one first in each chain.
pub async fn spares(connection: &mut Connection, deliveries: &[Uuid]) -> Result<Vec<DueDelivery>> {
    const QUERY: &str = select_due!(
        "join delivery f on f.run_id = d.run_id and f.destination = d.destination and f.chain = d.chain
         where f.id = any($1) and d.state = 'spare' and d.rank > f.rank order by d.rank, d.id"
    );
    Ok(sqlx::query_as(QUERY).bind(deliveries).fetch_all(connection).await?)
}

/// When something may be to be done for a destination: a delivery, or Storage Commitment; `None` when nothing waits. What
/// waits behind another result counts when its own time comes, and not before that.
pub async fn next_due_at(connection: &mut Connection, destination: &str) -> Result<Option<OffsetDateTime>> {
    const QUERY: &str = concat!(
        "select least(
             (select now() where exists (select from delivery d where d.destination = $1 and d.next_attempt_at <= now() and ",
        next_in_order!(),
        ")),
             (select min(d.next_attempt_at) from delivery d
              where d.destination = $1 and d.state in ('waiting', 'sending') and d.next_attempt_at > now()),
             (select min(d.commitment_due_at) from delivery d
              where d.destination = $1 and d.commitment in ('wanted', 'asked')))"
    );
    Ok(sqlx::query_scalar(QUERY).bind(destination).fetch_one(connection).await?)
}

/// Locks the workup of a delivery, which comes before its deliveries everywhere. Returns its newer revision, if there is one:
/// the delivery is not owed any more then.
async fn newer_revision(connection: &mut Connection, delivery: &DueDelivery) -> Result<Option<i32>> {
    workup::lock(&mut *connection, &[delivery.workup_id]).await?;
    Ok(sqlx::query_scalar(
        "select w.revision from run r join workup w on w.id = r.workup_id where r.id = $1 and r.revision < w.revision",
    )
    .bind(delivery.run_id)
    .fetch_optional(connection)
    .await?)
}

/// Counts an attempt: `waiting` → `sending`, fenced by the attempts so far. Returns the attempt's number, or
/// `None` when the delivery was cancelled or taken meanwhile, or belongs to an earlier revision and is `cancelled` now. The
/// caller commits before it sends.
pub async fn start(connection: &mut Connection, delivery: &DueDelivery) -> Result<Option<i32>> {
    if let Some(revision) = newer_revision(connection, delivery).await? {
        // One whose process died while it was sent.
        sqlx::query("update delivery set state = 'waiting' where id = $1 and attempts = $2 and state = 'sending'")
            .bind(delivery.id)
            .bind(delivery.attempts)
            .execute(&mut *connection)
            .await?;
        supersede(connection, delivery.workup_id, revision).await?;
        return Ok(None);
    }
    let number: Option<i32> = sqlx::query_scalar(
        "update delivery set state = 'sending', attempts = attempts + 1,
                first_attempt_at = coalesce(first_attempt_at, now())
         where id = $1 and attempts = $2 and state in ('waiting', 'sending') returning attempts",
    )
    .bind(delivery.id)
    .bind(delivery.attempts)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(number) = number {
        sqlx::query("insert into delivery_attempt (delivery_id, number) values ($1, $2) on conflict do nothing")
            .bind(delivery.id)
            .bind(number)
            .execute(connection)
            .await?;
    }
    Ok(number)
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its number.
    pub attempt: i32,
    /// The destination's DICOM status, if it answered one.
    pub status: Option<u16>,
    /// In words.
    pub words: &'a str,
    /// The destination accepts no such object, until somebody changes that.
    pub not_taken: bool,
    /// The association, or the connection, ended at it.
    pub broke: bool,
}

/// Ends an attempt, fenced by its number: `sending` → `state`. Writes the ledger and the event `kind`.
async fn end(
    connection: &mut Connection,
    delivery: &DueDelivery,
    answer: Answer<'_>,
    state: &str,
    kind: &str,
    next_attempt_at: Option<OffsetDateTime>,
) -> Result<bool> {
    let status = answer.status.map(i32::from);
    let done = sqlx::query(
        "update delivery set state = $3, last_status = $4, last_words = $5,
                next_attempt_at = coalesce($6, next_attempt_at), not_taken = $7, broke = $8,
                refusals = refusals + case when $3 = 'waiting' and ($4 is not null or $8) then 1 else 0 end,
                delivered_at = case when $3 = 'delivered' then now() else delivered_at end
         where id = $1 and attempts = $2 and state = 'sending'",
    )
    .bind(delivery.id)
    .bind(answer.attempt)
    .bind(state)
    .bind(status)
    .bind(answer.words)
    .bind(next_attempt_at)
    .bind(answer.not_taken)
    .bind(answer.broke)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        sqlx::query(
            "update delivery_attempt set ended_at = now(), state = $3, status = $4, words = $5
             where delivery_id = $1 and number = $2",
        )
        .bind(delivery.id)
        .bind(answer.attempt)
        .bind(state)
        .bind(status)
        .bind(answer.words)
        .execute(&mut *connection)
        .await?;
        let data = json!({ "attempt": answer.attempt, "status": answer.status });
        event::append(connection, event::Subject::Delivery, delivery.id, kind, answer.words, data).await?;
    }
    Ok(done)
}

/// `sending` → `delivered`, fenced by attempt; what was kept in its place becomes `unneeded`. With `commitment` the
/// destination is to be asked to keep it, unless a newer revision of the study has come meanwhile.
pub async fn delivered(
    connection: &mut Connection,
    delivery: &DueDelivery,
    answer: Answer<'_>,
    commitment: CommitmentUse,
) -> Result<bool> {
    let is_owed = newer_revision(connection, delivery).await?.is_none();
    let commitment = if is_owed { commitment } else { CommitmentUse::Off };
    if !end(connection, delivery, answer, "delivered", "delivered", None).await? {
        return Ok(false);
    }
    sqlx::query(
        "update delivery set commitment = case when $3 then 'wanted' end, commitment_required = $2, commitment_words = '',
                commitment_asks = 0, commitment_transaction_uid = null,
                commitment_due_at = case when $3 then now() end, commitment_since = case when $3 then now() end
         where id = $1",
    )
    .bind(delivery.id)
    .bind(commitment == CommitmentUse::Required)
    .bind(commitment != CommitmentUse::Off)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update delivery d set state = 'unneeded', last_words = 'another form of it is delivered'
         from delivery f where f.id = $1 and d.run_id = f.run_id and d.destination = f.destination
           and d.chain = f.chain and d.state = 'spare'",
    )
    .bind(delivery.id)
    .execute(&mut *connection)
    .await?;
    workup::answer_if_done(connection, delivery.workup_id).await?;
    Ok(true)
}

/// `sending` → `waiting` until `retry_at`, fenced by attempt. `false` when it waits no more: a newer revision of the study has
/// come meanwhile, and it is `cancelled`, or another worker has it.
pub async fn retry(
    connection: &mut Connection,
    delivery: &DueDelivery,
    answer: Answer<'_>,
    retry_at: OffsetDateTime,
) -> Result<bool> {
    end_owed(connection, delivery, answer, "waiting", "retry", Some(retry_at)).await
}

/// `sending` → `dead`, fenced by attempt: a person has to look. `false` as of [`retry`].
pub async fn dead(connection: &mut Connection, delivery: &DueDelivery, answer: Answer<'_>) -> Result<bool> {
    let done = end_owed(connection, delivery, answer, "dead", "dead", None).await?;
    if done {
        workup::answer_if_done(connection, delivery.workup_id).await?;
    }
    Ok(done)
}

/// Ends an attempt in vain. What belongs to an earlier revision of its study is `cancelled` then: `false`.
async fn end_owed(
    connection: &mut Connection,
    delivery: &DueDelivery,
    answer: Answer<'_>,
    state: &str,
    kind: &str,
    next_attempt_at: Option<OffsetDateTime>,
) -> Result<bool> {
    let newer = newer_revision(connection, delivery).await?;
    if !end(connection, delivery, answer, state, kind, next_attempt_at).await? {
        return Ok(false);
    }
    let Some(revision) = newer else { return Ok(true) };
    supersede(connection, delivery.workup_id, revision).await?;
    Ok(false)
}

/// What belongs to revisions of a study before `revision`, and is not sent, is not owed any more, whether it waits or is
/// `dead`: it would come after what replaces it. Nor is a promise to keep what was sent. The workup is locked.
pub(super) async fn supersede(connection: &mut Connection, workup_id: Uuid, revision: i32) -> Result<()> {
    let words = format!("superseded by revision {revision}");
    let cancelled: Vec<Uuid> = sqlx::query_scalar(
        "update delivery d set state = 'cancelled', last_words = $3 from run r
         where r.id = d.run_id and r.workup_id = $1 and r.revision < $2 and d.state in ('waiting', 'spare', 'dead')
         returning d.id",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(&words)
    .fetch_all(&mut *connection)
    .await?;
    for delivery_id in cancelled {
        event::append(connection, event::Subject::Delivery, delivery_id, "cancelled", &words, json!({})).await?;
    }
    sqlx::query(
        "update delivery d set commitment = null, commitment_required = false, commitment_due_at = null,
                commitment_words = $3 from run r
         where r.id = d.run_id and r.workup_id = $1 and r.revision < $2
           and d.commitment in ('wanted', 'asked', 'failed', 'unanswered')",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(&words)
    .execute(connection)
    .await?;
    Ok(())
}

/// `sending` → `replaced`, fenced by attempt, and `next` of its alternatives is due; those between them are `replaced`
/// too. `false` when `next` is not there any more: nothing is changed then.
pub async fn replaced(
    connection: &mut Connection,
    delivery: &DueDelivery,
    answer: Answer<'_>,
    next: &DueDelivery,
) -> Result<bool> {
    let is_there: Option<bool> =
        sqlx::query_scalar("select true from delivery where id = $1 and state = 'spare' for update")
            .bind(next.id)
            .fetch_optional(&mut *connection)
            .await?;
    if is_there.is_none() || !end(connection, delivery, answer, "replaced", "replaced", None).await? {
        return Ok(false);
    }
    // It has the whole patience of its own.
    sqlx::query(
        "update delivery set state = 'waiting', next_attempt_at = now(), created_at = now(),
                last_words = 'in the place of a form that the destination does not take'
         where id = $1",
    )
    .bind(next.id)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update delivery d set state = 'replaced', last_words = $3
         from delivery f where f.id = $1 and d.run_id = f.run_id and d.destination = f.destination
           and d.chain = f.chain and d.state = 'spare' and d.rank < $2",
    )
    .bind(delivery.id)
    .bind(next.rank)
    .bind(answer.words)
    .execute(&mut *connection)
    .await?;
    Ok(true)
}

/// Studies that one transaction locks, of many.
pub(super) const PORTION: i64 = 20;

/// Gives up what has waited for a destination since before `before`, of a few studies. Returns how many; 0 when all is done.
pub async fn expire(
    connection: &mut Connection,
    destination: &str,
    before: OffsetDateTime,
    words: &str,
) -> Result<u64> {
    let workups: Vec<Uuid> = sqlx::query_scalar(
        "select distinct r.workup_id from delivery d join run r on r.id = d.run_id
         where d.destination = $1 and d.state = 'waiting' and d.created_at < $2 limit $3",
    )
    .bind(destination)
    .bind(before)
    .bind(PORTION)
    .fetch_all(&mut *connection)
    .await?;
    workup::lock(connection, &workups).await?;
    let given_up: Vec<Uuid> = sqlx::query_scalar(
        "update delivery d set state = 'dead', last_words = $3 from run r
         where r.id = d.run_id and r.workup_id = any($4) and d.destination = $1 and d.state = 'waiting'
           and d.created_at < $2 returning d.id",
    )
    .bind(destination)
    .bind(before)
    .bind(words)
    .bind(&workups)
    .fetch_all(&mut *connection)
    .await?;
    for delivery_id in &given_up {
        event::append(connection, event::Subject::Delivery, delivery_id, "dead", words, json!({})).await?;
    }
    for workup_id in workups {
        workup::answer_if_done(connection, workup_id).await?;
    }
    Ok(given_up.len() as u64)
}

/// Puts off for `pause` what is due for a destination that is not configured, without trying it, and says why; at most 1000
/// deliveries. Returns how many; 0 when nothing is due, or the destination is configured by now.
pub async fn suspend(connection: &mut Connection, destination: &str, words: &str, pause: Duration) -> Result<u64> {
    Ok(sqlx::query(
        "update delivery set state = 'waiting', last_words = $2, next_attempt_at = now() + make_interval(secs => $3)
         where id in (select id from delivery where destination = $1 and state in ('waiting', 'sending')
                                                and next_attempt_at <= now() limit 1000)
           and not exists (select from destination where name = $1)",
    )
    .bind(destination)
    .bind(words)
    .bind(pause.as_secs_f64())
    .execute(connection)
    .await?
    .rows_affected())
}

/// Makes everything due that waits for a destination only because it could not be reached; not what it broke at.
pub async fn hurry(connection: &mut Connection, destination: &str) -> Result<()> {
    sqlx::query(
        "update delivery set next_attempt_at = now()
         where destination = $1 and state = 'waiting' and last_status is null and not broke
           and next_attempt_at > now()",
    )
    .bind(destination)
    .execute(connection)
    .await?;
    Ok(())
}

/// A delivery `d` that a person may send again: it is given up, or the destination does not keep it.
macro_rules! is_dead {
    () => {
        "(d.state = 'dead' or d.state = 'delivered' and d.commitment in ('failed', 'unanswered'))"
    };
}

const RESTART: &str = "update delivery d set state = 'waiting', next_attempt_at = now(), created_at = now(),
        last_words = 'restarted by a person', not_taken = false, broke = false, refusals = 0, commitment = null,
        resent = false
        from run r join workup w on w.id = r.workup_id
        where r.id = d.run_id and r.revision = w.revision and ";

/// Restarts the dead deliveries of a destination, by a person's wish: they are owed anew, with the whole patience.
/// Returns how many there were. What a newer revision has replaced stays where it is.
pub async fn restart_dead(connection: &mut Connection, destination: &str) -> Result<u64> {
    let query = format!("{RESTART} d.destination = $1 and {} returning d.id", is_dead!());
    let restarted: Vec<Uuid> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(destination).fetch_all(&mut *connection).await?;
    for delivery_id in &restarted {
        note_restart(connection, *delivery_id).await?;
    }
    Ok(restarted.len() as u64)
}

/// Restarts one delivery that is dead or waits, by a person's wish. Returns its destination; `None` when there is no such
/// delivery, when it is in another state, or when a newer revision of its study has replaced it.
pub async fn restart(connection: &mut Connection, delivery_id: Uuid) -> Result<Option<String>> {
    let query = format!("{RESTART} d.id = $1 and (d.state = 'waiting' or {}) returning d.destination", is_dead!());
    let destination: Option<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(delivery_id).fetch_optional(&mut *connection).await?;
    if destination.is_some() {
        note_restart(connection, delivery_id).await?;
    }
    Ok(destination)
}

async fn note_restart(connection: &mut Connection, delivery_id: Uuid) -> Result<()> {
    let words = "restarted by a person";
    event::append(connection, event::Subject::Delivery, delivery_id, "restarted", words, json!({})).await
}

/// Destinations for which something is to be done, for `reconcile`; not those that are left alone for a while.
pub async fn due_destinations(connection: &mut Connection) -> Result<Vec<String>> {
    const QUERY: &str = concat!(
        "select destination from (
             select d.destination from delivery d where d.next_attempt_at <= now() and ",
        next_in_order!(),
        "    union
             select d.destination from delivery d
             where d.commitment in ('wanted', 'asked') and d.commitment_due_at <= now()) due
         where not exists (select from destination_state s
                           where s.destination = due.destination and s.next_probe_at > now())
         union
         select s.destination from destination_state s where s.state = 'open' and s.next_probe_at <= now()"
    );
    Ok(sqlx::query_scalar(QUERY).fetch_all(connection).await?)
}

/// An attempt, for people.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct AttemptRow {
    /// Of which delivery.
    pub delivery_id: Uuid,
    /// From 1.
    pub number: i32,
    /// When it began.
    pub started_at: OffsetDateTime,
    /// When it ended; none while it goes on, or when its process died.
    pub ended_at: Option<OffsetDateTime>,
    /// What the delivery became by it.
    pub state: Option<String>,
    /// The destination's DICOM status.
    pub status: Option<i32>,
    /// In words.
    pub words: String,
}

/// The newest attempts of each of these deliveries, at most `limit` of each, oldest first.
pub async fn attempts(connection: &mut Connection, deliveries: &[Uuid], limit: i64) -> Result<Vec<AttemptRow>> {
    Ok(sqlx::query_as(
        "select a.* from unnest($1::uuid[]) as wanted (id)
         cross join lateral (select delivery_id, number, started_at, ended_at, state, status, words
                             from delivery_attempt where delivery_id = wanted.id order by number desc limit $2) a
         order by a.delivery_id, a.number",
    )
    .bind(deliveries)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::{
            Db, commitment,
            commitment::Overdue,
            destination, result, retention, run, site,
            testing::{self, TestDatabase},
        },
        types::{CommitmentReport, CommitmentRequest, FailureReason, Sha256Digest, SopReference, Uid},
    };

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    /// A workup with a run.
    async fn new_run(db: &Db, study: &str) -> (Uuid, Uuid) {
        let workup_id = testing::workup(db, study).await;
        let run_id =
            run::insert(&mut db.acquire().await.unwrap(), &testing::new_run(workup_id)).await.unwrap().unwrap();
        sqlx::query("update run set state = 'succeeded', rendered_at = now() where id = $1")
            .bind(run_id)
            .execute(db.pool())
            .await
            .unwrap();
        (workup_id, run_id)
    }

    /// Owes a result of a run to `pacs`.
    async fn owe(db: &Db, run_id: Uuid, sop_instance_uid: &str, order: i32, chain: &str, rank: i32) -> Uuid {
        let new = result::NewResult {
            run_id,
            kind: "sr",
            ordinal: order * 10 + rank,
            sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.88.33"),
            sop_instance_uid: uid(sop_instance_uid),
            series_instance_uid: uid("2.25.1"),
            transfer_syntax_uid: uid("1.2.840.10008.1.2.1"),
            archive_key: format!("results/{sop_instance_uid}.dcm"),
            preview_key: None,
            sha256: Sha256Digest::of(b"result"),
            size_bytes: 1,
            device_uid: uid("2.25.2"),
        };
        let mut connection = db.acquire().await.unwrap();
        let result_id = result::insert_or_existing(&mut connection, &new).await.unwrap();
        for _ in 0..2 {
            let new = NewDelivery { result_id, destination: "pacs", send_order: order, chain, rank, urgent: false };
            insert(&mut connection, &new).await.unwrap();
        }
        sqlx::query_scalar("select id from delivery where result_id = $1")
            .bind(result_id)
            .fetch_one(db.pool())
            .await
            .unwrap()
    }

    async fn states(db: &Db) -> Vec<String> {
        sqlx::query_scalar(
            "select d.state from delivery d join result x on x.id = d.result_id order by x.sop_instance_uid",
        )
        .fetch_all(db.pool())
        .await
        .unwrap()
    }

    async fn workup_state(db: &Db, workup_id: Uuid) -> String {
        sqlx::query_scalar("select state from workup where id = $1").bind(workup_id).fetch_one(db.pool()).await.unwrap()
    }

    async fn due_uids(db: &Db) -> Vec<String> {
        let due = due(&mut db.acquire().await.unwrap(), "pacs", 50).await.unwrap();
        due.into_iter().map(|delivery| delivery.sop_instance_uid).collect()
    }

    async fn begin(db: &Db, sop_instance_uid: &str) -> (DueDelivery, i32) {
        let mut connection = db.acquire().await.unwrap();
        let all = due(&mut connection, "pacs", 50).await.unwrap();
        let delivery = all.into_iter().find(|delivery| delivery.sop_instance_uid == sop_instance_uid).unwrap();
        let attempt = start(&mut connection, &delivery).await.unwrap().unwrap();
        (delivery, attempt)
    }

    fn answer(attempt: i32, status: Option<u16>) -> Answer<'static> {
        Answer { attempt, status, words: "words", not_taken: false, broke: false }
    }

    #[tokio::test]
    async fn alternatives_take_turns() {
        let database = TestDatabase::start("alternatives").await;
        let db = &database.db;
        let (workup_id, run_id) = new_run(db, "1.2.3").await;
        for rank in 0..4 {
            owe(db, run_id, &format!("2.25.1{rank}"), 30, "report", rank).await;
        }
        owe(db, run_id, "2.25.20", 40, "keys", 0).await;
        assert_eq!(states(db).await, ["waiting", "spare", "spare", "spare", "waiting"]);
        assert_eq!(due_uids(db).await, ["2.25.10", "2.25.20"], "a spare is not due");

        let (first, attempt) = begin(db, "2.25.10").await;
        let mut connection = db.acquire().await.unwrap();
        let left = spares(&mut connection, &[first.id]).await.unwrap();
        assert_eq!(left.iter().map(|spare| spare.rank).collect::<Vec<_>>(), [1, 2, 3]);
        // The second is not taken either: the third goes.
        assert!(replaced(&mut connection, &first, answer(attempt, Some(0x0122)), &left[1]).await.unwrap());
        assert!(!replaced(&mut connection, &first, answer(attempt, None), &left[1]).await.unwrap(), "it is taken");
        assert_eq!(states(db).await, ["replaced", "replaced", "waiting", "spare", "waiting"]);
        let (third, attempt) = begin(db, "2.25.12").await;
        assert!(delivered(&mut connection, &third, answer(attempt, Some(0)), CommitmentUse::Off).await.unwrap());
        assert!(!delivered(&mut connection, &third, answer(attempt, Some(0)), CommitmentUse::Off).await.unwrap());
        assert_eq!(states(db).await, ["replaced", "replaced", "delivered", "unneeded", "waiting"]);
        assert_eq!(workup_state(db, workup_id).await, "analysing");
        let (keys, attempt) = begin(db, "2.25.20").await;
        assert!(dead(&mut connection, &keys, answer(attempt, Some(0xC000))).await.unwrap());
        assert_eq!(workup_state(db, workup_id).await, "answered");

        let ledger = attempts(&mut connection, &[first.id, third.id, keys.id], 10).await.unwrap();
        let told: Vec<(Option<&str>, Option<i32>)> =
            ledger.iter().map(|attempt| (attempt.state.as_deref(), attempt.status)).collect();
        let expected = [(Some("replaced"), Some(0x0122)), (Some("delivered"), Some(0)), (Some("dead"), Some(0xC000))];
        assert_eq!(told.len(), 3);
        assert!(expected.iter().all(|one| told.contains(one)), "{told:?}");

        assert_eq!(restart(&mut connection, third.id).await.unwrap(), None, "it is delivered");
        assert_eq!(restart(&mut connection, keys.id).await.unwrap().as_deref(), Some("pacs"));
        assert_eq!(begin(db, "2.25.20").await.1, 2, "attempts go on counting");
        // Old attempts go with the history, not those of what is still owed.
        let tomorrow = OffsetDateTime::now_utc() + Duration::from_hours(24);
        let kind = retention::History::Attempts;
        assert_eq!(retention::forget(&mut connection, kind, tomorrow, 100).await.unwrap(), 2);
        assert_eq!(attempts(&mut connection, &[first.id, third.id, keys.id], 10).await.unwrap().len(), 2);
        drop(connection);
        database.stop().await;
    }

    #[tokio::test]
    async fn what_waits_holds_back_what_comes_after_it() {
        let database = TestDatabase::start("order").await;
        let db = &database.db;
        let (_, run_id) = new_run(db, "1.2.3").await;
        for (order, name) in [(10, "2.25.1"), (20, "2.25.2"), (21, "2.25.3"), (21, "2.25.4"), (30, "2.25.5")] {
            owe(db, run_id, name, order, name, 0).await;
        }
        let (_, other_run) = new_run(db, "1.2.4").await;
        owe(db, other_run, "2.25.6", 30, "report", 0).await;
        assert_eq!(due_uids(db).await.len(), 6);
        let mut connection = db.acquire().await.unwrap();
        let later = OffsetDateTime::now_utc() + Duration::from_mins(1);
        let (slice, attempt) = begin(db, "2.25.3").await;
        assert!(retry(&mut connection, &slice, answer(attempt, Some(0xA700)), later).await.unwrap());
        assert_eq!(due_uids(db).await, ["2.25.1", "2.25.2", "2.25.4", "2.25.5", "2.25.6"], "no report refers to it");
        let (segments, attempt) = begin(db, "2.25.1").await;
        assert!(retry(&mut connection, &segments, answer(attempt, None), later).await.unwrap());
        assert_eq!(due_uids(db).await, ["2.25.6"]);
        let next = next_due_at(&mut connection, "pacs").await.unwrap().unwrap();
        assert!(next <= OffsetDateTime::now_utc(), "the other study is due");
        sqlx::query("update delivery set state = 'delivered' where run_id = $1")
            .bind(other_run)
            .execute(db.pool())
            .await
            .unwrap();
        let next = next_due_at(&mut connection, "pacs").await.unwrap().unwrap();
        assert!((next - later).abs() < Duration::from_millis(1), "what waits behind is not due at once");
        assert!(due_destinations(&mut connection).await.unwrap().is_empty());
        // An attempt that reached nobody is no refusal.
        let refusals = "select refusals from delivery where destination = 'pacs' and attempts = 1 order by refusals";
        let refusals: Vec<i32> = sqlx::query_scalar(refusals).fetch_all(db.pool()).await.unwrap();
        assert_eq!(refusals, [0, 1]);
        // What was only not reached is hurried; what was refused keeps its pause.
        hurry(&mut connection, "pacs").await.unwrap();
        assert_eq!(due_uids(db).await, ["2.25.1", "2.25.2", "2.25.4", "2.25.5"]);
        let (segments, attempt) = begin(db, "2.25.1").await;
        assert!(dead(&mut connection, &segments, answer(attempt, Some(0xC000))).await.unwrap());
        assert_eq!(due_uids(db).await, ["2.25.2", "2.25.4", "2.25.5"], "what is dead holds nothing back");
        assert_eq!(expire(&mut connection, "pacs", later, "too old").await.unwrap(), 4);
        assert_eq!(expire(&mut connection, "pacs", later, "too old").await.unwrap(), 0);
        assert!(due_uids(db).await.is_empty());
        assert_eq!(restart_dead(&mut connection, "pacs").await.unwrap(), 5);
        assert_eq!(due_uids(db).await, ["2.25.1", "2.25.2", "2.25.3", "2.25.4", "2.25.5"]);
        // A PACS that takes no segmentations gets everything else.
        let (segments, attempt) = begin(db, "2.25.1").await;
        let not_taken = Answer { not_taken: true, ..answer(attempt, None) };
        assert!(retry(&mut connection, &segments, not_taken, later).await.unwrap());
        assert_eq!(due_uids(db).await, ["2.25.2", "2.25.3", "2.25.4", "2.25.5"]);
        // Nor does one wait for ever for what is refused again and again.
        let refused = async |refusals: i32| {
            sqlx::query("update delivery set not_taken = false, refusals = $2 where id = $1")
                .bind(segments.id)
                .bind(refusals)
                .execute(db.pool())
                .await
                .unwrap();
            assert_eq!(due_uids(db).await.is_empty(), holds_back(10, refusals));
        };
        refused(4).await;
        refused(5).await;
        assert!(!holds_back(20, 1) && holds_back(10, 4) && !holds_back(10, 5));
        drop(connection);
        database.stop().await;
    }

    #[tokio::test]
    async fn what_was_superseded_while_it_was_sent_is_not_sent_again() {
        let database = TestDatabase::start("superseded").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let (workup_id, run_id) = new_run(db, "1.2.3").await;
        for (name, chain, rank) in [("2.25.1", "a", 0), ("2.25.2", "a", 1), ("2.25.3", "b", 0), ("2.25.4", "c", 0)] {
            owe(db, run_id, name, 30, chain, rank).await;
        }
        let (first, attempt) = begin(db, "2.25.1").await;
        let spare = spares(&mut connection, &[first.id]).await.unwrap().remove(0);
        let (other, other_attempt) = begin(db, "2.25.3").await;
        let (refused, refused_attempt) = begin(db, "2.25.4").await;
        sqlx::query("update workup set revision = 2 where id = $1").bind(workup_id).execute(db.pool()).await.unwrap();
        run::supersede_earlier(&mut connection, workup_id, 2).await.unwrap();
        assert_eq!(states(db).await, ["sending", "cancelled", "sending", "sending"]);
        // The other form is gone: nothing takes the place of what is not taken.
        assert!(!replaced(&mut connection, &first, answer(attempt, None), &spare).await.unwrap());
        let now = OffsetDateTime::now_utc();
        assert!(!retry(&mut connection, &first, answer(attempt, None), now).await.unwrap());
        assert!(!retry(&mut connection, &other, answer(other_attempt, Some(0xA700)), now).await.unwrap());
        assert!(!dead(&mut connection, &refused, answer(refused_attempt, Some(0xC000))).await.unwrap());
        assert_eq!(states(db).await, ["cancelled", "cancelled", "cancelled", "cancelled"]);
        assert_eq!(restart_dead(&mut connection, "pacs").await.unwrap(), 0, "it would come after what replaces it");
        assert_eq!(restart(&mut connection, refused.id).await.unwrap(), None);

        // Nothing of an earlier revision is left for a person: not what is dead, not what is not kept, not what a process
        // that died was sending.
        let (workup_id, run_id) = new_run(db, "1.2.4").await;
        for name in ["2.25.5", "2.25.6", "2.25.7"] {
            owe(db, run_id, name, 30, name, 0).await;
        }
        let (gone, attempt) = begin(db, "2.25.5").await;
        assert!(dead(&mut connection, &gone, answer(attempt, Some(0xC000))).await.unwrap());
        let (kept, attempt) = begin(db, "2.25.6").await;
        let required = CommitmentUse::Required;
        assert!(delivered(&mut connection, &kept, answer(attempt, Some(0)), required).await.unwrap());
        begin(db, "2.25.7").await;
        sqlx::query("update workup set revision = 2 where id = $1").bind(workup_id).execute(db.pool()).await.unwrap();
        run::supersede_earlier(&mut connection, workup_id, 2).await.unwrap();
        assert_eq!(states(db).await[4..], ["cancelled", "delivered", "sending"]);
        assert_eq!(commitments(db).await[5], None);
        let orphan = due(&mut connection, "pacs", 50).await.unwrap().remove(0);
        assert_eq!(start(&mut connection, &orphan).await.unwrap(), None);
        assert_eq!(states(db).await[6], "cancelled");
        drop(connection);
        database.stop().await;
    }

    #[tokio::test]
    async fn late_images_and_an_answer_at_the_same_time_wait_for_each_other_in_one_order() {
        let database = TestDatabase::start("locks").await;
        let db = &database.db;
        let (workup_id, run_id) = new_run(db, "1.2.3").await;
        for (name, rank) in [("2.25.1", 0), ("2.25.2", 1)] {
            owe(db, run_id, name, 30, "report", rank).await;
        }
        let (report, attempt) = begin(db, "2.25.1").await;
        let mut index = db.begin().await.unwrap();
        workup::lock(&mut index, &[workup_id]).await.unwrap();
        let drain = async {
            let mut tx = db.begin().await.unwrap();
            let required = CommitmentUse::Required;
            assert!(delivered(&mut tx, &report, answer(attempt, Some(0)), required).await.unwrap());
            tx.commit().await.unwrap();
        };
        let index = async {
            let waits = "select count(*) from pg_stat_activity
                         where datname = current_database() and wait_event_type = 'Lock'";
            while sqlx::query_scalar::<_, i64>(waits).fetch_one(db.pool()).await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sqlx::query("update workup set revision = 2 where id = $1")
                .bind(workup_id)
                .execute(&mut *index)
                .await
                .unwrap();
            run::supersede_earlier(&mut index, workup_id, 2).await.unwrap();
            index.commit().await.unwrap();
        };
        tokio::join!(drain, index);
        assert_eq!(states(db).await, ["delivered", "cancelled"]);
        assert_eq!(commitments(db).await, [None, None], "nobody is asked to keep what is replaced");
        database.stop().await;
    }

    #[tokio::test]
    async fn what_breaks_associations_goes_last() {
        let database = TestDatabase::start("broke").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let (_, run_id) = new_run(db, "1.2.3").await;
        owe(db, run_id, "2.25.1", 10, "a", 0).await;
        owe(db, run_id, "2.25.2", 30, "b", 0).await;
        let (_, later_run) = new_run(db, "1.2.4").await;
        owe(db, later_run, "2.25.3", 20, "a", 0).await;
        assert_eq!(due_uids(db).await, ["2.25.1", "2.25.2", "2.25.3"]);
        let (poison, attempt) = begin(db, "2.25.1").await;
        let broke = Answer { broke: true, ..answer(attempt, None) };
        let later = OffsetDateTime::now_utc() + Duration::from_hours(1);
        assert!(retry(&mut connection, &poison, broke, later).await.unwrap());
        assert_eq!(due_uids(db).await, ["2.25.3"], "what comes after it waits");
        hurry(&mut connection, "pacs").await.unwrap();
        assert_eq!(due_uids(db).await, ["2.25.3"], "that the destination answers says nothing of it");
        sqlx::query("update delivery set next_attempt_at = now()").execute(db.pool()).await.unwrap();
        assert_eq!(due_uids(db).await, ["2.25.3", "2.25.1", "2.25.2"]);
        assert!(due(&mut connection, "pacs", 10).await.unwrap()[1].broke);
        // An urgent study is still urgent.
        sqlx::query("update delivery set urgent = true where run_id = $1")
            .bind(run_id)
            .execute(db.pool())
            .await
            .unwrap();
        assert_eq!(due_uids(db).await, ["2.25.1", "2.25.2", "2.25.3"]);
        drop(connection);
        database.stop().await;
    }

    #[tokio::test]
    async fn a_destination_is_left_alone_and_comes_back() {
        let database = TestDatabase::start("destination").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let (_, run_id) = new_run(db, "1.2.3").await;
        owe(db, run_id, "2.25.1", 30, "report", 0).await;
        assert_eq!(due_destinations(&mut connection).await.unwrap(), ["pacs"]);
        let state = async || destination::get(&mut db.acquire().await.unwrap(), "pacs").await.unwrap();
        for failures in 1..=3 {
            let failed = destination::failed(&mut connection, "pacs", 3, "no answer", false).await.unwrap();
            assert_eq!((failed.failures, failed.is_open()), (failures, failures == 3));
        }
        let later = OffsetDateTime::now_utc() + Duration::from_mins(1);
        destination::pause_until(&mut connection, "pacs", later).await.unwrap();
        assert!(due_destinations(&mut connection).await.unwrap().is_empty());
        destination::try_now(&mut connection, "pacs").await.unwrap();
        assert_eq!(due_destinations(&mut connection).await.unwrap(), ["pacs"]);
        destination::answered_probe(&mut connection, "pacs").await.unwrap();
        assert_eq!(state().await.unwrap().state, "half_open");
        // The association after the question fails: open again at once.
        assert!(destination::failed(&mut connection, "pacs", 3, "aborted", false).await.unwrap().is_open());
        // But not at an object that had failed before: it is there, and others may go.
        destination::answered_probe(&mut connection, "pacs").await.unwrap();
        assert_eq!(destination::failed(&mut connection, "pacs", 3, "aborted", true).await.unwrap().state, "half_open");
        assert!(destination::failed(&mut connection, "pacs", 3, "aborted", false).await.unwrap().is_open());
        destination::answered_probe(&mut connection, "pacs").await.unwrap();
        destination::works(&mut connection, "pacs").await.unwrap();
        assert_eq!(state().await, None);
        let events: Vec<String> = sqlx::query_scalar("select kind from event where subject_id = 'pacs' order by id")
            .fetch_all(db.pool())
            .await
            .unwrap();
        assert_eq!(events, ["destination_open", "destination_open", "destination_open", "destination_closed"]);
        // One that is not configured: nothing is tried, and everything goes when it is.
        let hour = Duration::from_hours(1);
        for expected in [1, 0] {
            assert_eq!(suspend(&mut connection, "pacs", "not configured", hour).await.unwrap(), expected);
        }
        assert!(due_uids(db).await.is_empty());
        let next = next_due_at(&mut connection, "pacs").await.unwrap().unwrap();
        assert!(next > OffsetDateTime::now_utc() + hour / 2, "{next}");
        hurry(&mut connection, "pacs").await.unwrap();
        let due = due(&mut connection, "pacs", 1).await.unwrap();
        assert_eq!((due.len(), due[0].attempts), (1, 0));
        destination::failed(&mut connection, "gone", 3, "no answer", false).await.unwrap();
        destination::forget_unknown(&mut connection).await.unwrap();
        assert!(destination::all(&mut connection).await.unwrap().is_empty());
        assert!(site::load(&mut connection).await.unwrap().destinations.is_empty());
        drop(connection);
        database.stop().await;
    }

    async fn commitments(db: &Db) -> Vec<Option<String>> {
        sqlx::query_scalar(
            "select d.commitment from delivery d join result x on x.id = d.result_id order by x.sop_instance_uid",
        )
        .fetch_all(db.pool())
        .await
        .unwrap()
    }

    /// Asks about everything that is wanted. Returns the Transaction UID.
    async fn ask(db: &Db, number: u32, due_at: OffsetDateTime) -> (Uid, Vec<SopReference>) {
        let mut connection = db.acquire().await.unwrap();
        let wanted = commitment::wanted(&mut connection, "pacs", 10).await.unwrap();
        let instances: Vec<SopReference> = wanted
            .iter()
            .map(|one| SopReference {
                sop_class_uid: uid(&one.sop_class_uid),
                sop_instance_uid: uid(&one.sop_instance_uid),
            })
            .collect();
        let request = CommitmentRequest { transaction_uid: uid(&format!("2.25.9{number}")), instances };
        commitment::ask(&mut connection, "PACS", "HILUM", Some("pacs"), &request).await.unwrap();
        let ids: Vec<Uuid> = wanted.iter().map(|one| one.delivery_id).collect();
        commitment::asking(&mut connection, &ids, request.transaction_uid.as_str(), due_at).await.unwrap();
        (request.transaction_uid, request.instances)
    }

    #[tokio::test]
    async fn what_is_not_committed_is_sent_once_more_and_then_told() {
        let database = TestDatabase::start("commitment_of_deliveries").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let (workup_id, run_id) = new_run(db, "1.2.3").await;
        for name in ["2.25.1", "2.25.2"] {
            owe(db, run_id, name, 30, name, 0).await;
            let (delivery, attempt) = begin(db, name).await;
            let required = CommitmentUse::Required;
            assert!(delivered(&mut connection, &delivery, answer(attempt, Some(0)), required).await.unwrap());
        }
        assert_eq!(workup_state(db, workup_id).await, "analysing", "it waits for the promise");
        let soon = OffsetDateTime::now_utc() + Duration::from_hours(1);

        // Not asked: nothing counts, and it is asked again later.
        let (transaction, _) = ask(db, 0, soon).await;
        let now = OffsetDateTime::now_utc();
        commitment::not_asked(&mut connection, transaction.as_str(), Some(now), "no way", false).await.unwrap();

        let (transaction, instances) = ask(db, 1, soon).await;
        assert_eq!(instances.len(), 2);
        let failed = (instances[1].clone(), FailureReason::NO_SUCH_OBJECT_INSTANCE);
        let report = CommitmentReport {
            transaction_uid: transaction,
            committed: vec![instances[0].clone()],
            failed: vec![failed.clone()],
        };
        assert!(!commitment::answered(&mut connection, "OTHER", &report).await.unwrap(), "nobody else may answer");
        assert!(commitment::answered(&mut connection, "PACS", &report).await.unwrap());
        assert_eq!(commitments(db).await, [Some("committed".to_owned()), None]);
        assert_eq!(states(db).await, ["delivered", "waiting"]);

        let (again, attempt) = begin(db, "2.25.2").await;
        assert_eq!(attempt, 2);
        let duplicate = answer(attempt, Some(0x0111));
        assert!(delivered(&mut connection, &again, duplicate, CommitmentUse::Required).await.unwrap());
        let (transaction, instances) = ask(db, 2, soon).await;
        let failed = vec![(instances[0].clone(), FailureReason::NO_SUCH_OBJECT_INSTANCE)];
        let report = CommitmentReport { transaction_uid: transaction, committed: Vec::new(), failed };
        assert!(commitment::answered(&mut connection, "PACS", &report).await.unwrap());
        assert_eq!(commitments(db).await[1].as_deref(), Some("failed"));
        assert_eq!(workup_state(db, workup_id).await, "analysing");

        // A person takes it up; nobody answers, twice.
        assert_eq!(restart_dead(&mut connection, "pacs").await.unwrap(), 1);
        let (again, attempt) = begin(db, "2.25.2").await;
        assert!(delivered(&mut connection, &again, answer(attempt, Some(0)), CommitmentUse::Required).await.unwrap());
        for (number, expected) in [(3, Overdue { again: 1, unanswered: 0 }), (4, Overdue { again: 0, unanswered: 1 })] {
            ask(db, number, OffsetDateTime::now_utc() - Duration::from_secs(1)).await;
            assert_eq!(commitment::overdue(&mut connection, "pacs", 3600).await.unwrap(), expected);
        }
        assert_eq!(commitments(db).await[1].as_deref(), Some("unanswered"));

        // A report that comes late counts when it says that the result is kept.
        let late = |committed, failed| CommitmentReport { transaction_uid: uid("2.25.93"), committed, failed };
        let reference = instances[0].clone();
        let mut probe = db.begin().await.unwrap();
        let refused = late(Vec::new(), vec![(reference.clone(), FailureReason::NO_SUCH_OBJECT_INSTANCE)]);
        assert!(commitment::answered(&mut probe, "PACS", &refused).await.unwrap());
        drop(probe);
        assert_eq!(commitments(db).await[1].as_deref(), Some("unanswered"));
        let mut probe = db.begin().await.unwrap();
        assert!(commitment::answered(&mut probe, "PACS", &late(vec![reference], Vec::new())).await.unwrap());
        let kept: Option<String> = sqlx::query_scalar("select commitment from delivery where id = $1")
            .bind(again.id)
            .fetch_one(&mut *probe)
            .await
            .unwrap();
        assert_eq!(kept.as_deref(), Some("committed"));
        drop(probe);

        // Where nobody needs the promise any more, no study waits for it.
        let mut probe = db.begin().await.unwrap();
        assert!(commitment::let_go(&mut probe, "pacs", true).await.unwrap());
        assert!(!commitment::let_go(&mut probe, "pacs", true).await.unwrap());
        let state: String = sqlx::query_scalar("select state from workup where id = $1")
            .bind(workup_id)
            .fetch_one(&mut *probe)
            .await
            .unwrap();
        assert_eq!(state, "answered");
        drop(probe);

        // And again; this time it is kept.
        assert_eq!(restart_dead(&mut connection, "pacs").await.unwrap(), 1);
        let (again, attempt) = begin(db, "2.25.2").await;
        assert!(delivered(&mut connection, &again, answer(attempt, Some(0)), CommitmentUse::Required).await.unwrap());
        let (transaction_uid, committed) = ask(db, 5, soon).await;
        let report = CommitmentReport { transaction_uid, committed, failed: Vec::new() };
        assert!(commitment::answered(&mut connection, "PACS", &report).await.unwrap());
        assert_eq!(workup_state(db, workup_id).await, "answered");
        drop(connection);
        database.stop().await;
    }
}
