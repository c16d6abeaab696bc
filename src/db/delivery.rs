//! Deliveries: one result to one destination.
//!
//! ```text
//! waiting ─► sending ─► delivered
//!    ▲          ├─► waiting (retry at) …
//!    │          └─► dead(reason)            waiting ─► cancelled (superseded)
//!    └──── restart by a person ────┘
//! ```

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Result, event, workup};

/// Owes `result_id` to `destination`; one row however often it is called. Lower `send_order` goes first.
pub async fn insert(connection: &mut Connection, result_id: Uuid, destination: &str, send_order: i32) -> Result<()> {
    sqlx::query(
        "insert into delivery (id, result_id, destination, send_order, state) values ($1, $2, $3, $4, 'waiting')
         on conflict (result_id, destination) do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(result_id)
    .bind(destination)
    .bind(send_order)
    .execute(connection)
    .await?;
    Ok(())
}

/// A delivery that is due, with what sending it needs.
#[derive(Debug, Clone, FromRow)]
pub struct DueDelivery {
    /// The delivery.
    pub id: Uuid,
    /// The workup it answers.
    pub workup_id: Uuid,
    /// (0008,0016)
    pub sop_class_uid: String,
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// Transfer syntax of the file.
    pub transfer_syntax_uid: String,
    /// Where the archive keeps the file.
    pub archive_key: String,
    /// Attempts so far.
    pub attempts: i32,
    /// When it was first owed, or restarted by a person.
    pub created_at: OffsetDateTime,
}

/// What is due for a destination, oldest study first and in send order within it. A `sending` row is one whose
/// process died: the queue lets only one job work on a destination at a time.
pub async fn due(connection: &mut Connection, destination: &str, limit: i64) -> Result<Vec<DueDelivery>> {
    Ok(sqlx::query_as(
        "select d.id, r.workup_id, x.sop_class_uid, x.sop_instance_uid, x.transfer_syntax_uid, x.archive_key,
                d.attempts, d.created_at
         from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id
         where d.destination = $1 and d.state in ('waiting', 'sending') and d.next_attempt_at <= now()
         order by r.queued_at, d.send_order, d.id limit $2",
    )
    .bind(destination)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// When the next delivery for a destination is due; `None` when nothing waits.
pub async fn next_due_at(connection: &mut Connection, destination: &str) -> Result<Option<OffsetDateTime>> {
    Ok(sqlx::query_scalar(
        "select min(next_attempt_at) from delivery where destination = $1 and state in ('waiting', 'sending')",
    )
    .bind(destination)
    .fetch_one(connection)
    .await?)
}

/// Counts an attempt: `waiting` → `sending`, fenced by the attempts so far. Returns the attempt's number, or
/// `None` when the delivery was cancelled or taken meanwhile. The caller commits before it sends.
pub async fn start(connection: &mut Connection, delivery: &DueDelivery) -> Result<Option<i32>> {
    Ok(sqlx::query_scalar(
        "update delivery set state = 'sending', attempts = attempts + 1,
                first_attempt_at = coalesce(first_attempt_at, now())
         where id = $1 and attempts = $2 and state in ('waiting', 'sending') returning attempts",
    )
    .bind(delivery.id)
    .bind(delivery.attempts)
    .fetch_optional(connection)
    .await?)
}

/// `sending` → `delivered`, fenced by attempt.
pub async fn delivered(
    connection: &mut Connection,
    delivery: &DueDelivery,
    attempt: i32,
    status: u16,
    words: &str,
) -> Result<bool> {
    let done = sqlx::query(
        "update delivery set state = 'delivered', delivered_at = now(), last_status = $3, last_words = $4
         where id = $1 and attempts = $2 and state = 'sending'",
    )
    .bind(delivery.id)
    .bind(attempt)
    .bind(i32::from(status))
    .bind(words)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        let data = json!({ "attempt": attempt, "status": status });
        event::append(connection, event::Subject::Delivery, delivery.id, "delivered", words, data).await?;
        workup::answer_if_done(connection, delivery.workup_id).await?;
    }
    Ok(done)
}

/// `sending` → `waiting` until `retry_at`, fenced by attempt.
pub async fn retry(
    connection: &mut Connection,
    delivery: &DueDelivery,
    attempt: i32,
    status: Option<u16>,
    words: &str,
    retry_at: OffsetDateTime,
) -> Result<bool> {
    let done = sqlx::query(
        "update delivery set state = 'waiting', next_attempt_at = $3, last_status = $4, last_words = $5
         where id = $1 and attempts = $2 and state = 'sending'",
    )
    .bind(delivery.id)
    .bind(attempt)
    .bind(retry_at)
    .bind(status.map(i32::from))
    .bind(words)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        let data = json!({ "attempt": attempt, "status": status });
        event::append(connection, event::Subject::Delivery, delivery.id, "retry", words, data).await?;
    }
    Ok(done)
}

/// `sending` → `dead`, fenced by attempt: a person has to look.
pub async fn dead(
    connection: &mut Connection,
    delivery: &DueDelivery,
    attempt: i32,
    status: Option<u16>,
    words: &str,
) -> Result<bool> {
    let done = sqlx::query(
        "update delivery set state = 'dead', last_status = $3, last_words = $4
         where id = $1 and attempts = $2 and state = 'sending'",
    )
    .bind(delivery.id)
    .bind(attempt)
    .bind(status.map(i32::from))
    .bind(words)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        let data = json!({ "attempt": attempt, "status": status });
        event::append(connection, event::Subject::Delivery, delivery.id, "dead", words, data).await?;
        workup::answer_if_done(connection, delivery.workup_id).await?;
    }
    Ok(done)
}

/// Restarts the dead deliveries of a destination, by a person's wish: they are owed anew, with the whole patience.
/// Returns how many there were.
pub async fn restart_dead(connection: &mut Connection, destination: &str) -> Result<u64> {
    let restarted: Vec<Uuid> = sqlx::query_scalar(
        "update delivery set state = 'waiting', next_attempt_at = now(), created_at = now(),
                last_words = 'restarted by a person'
         where destination = $1 and state = 'dead' returning id",
    )
    .bind(destination)
    .fetch_all(&mut *connection)
    .await?;
    for delivery_id in &restarted {
        event::append(
            connection,
            event::Subject::Delivery,
            delivery_id,
            "restarted",
            "restarted by a person",
            json!({}),
        )
        .await?;
    }
    Ok(restarted.len() as u64)
}

/// Destinations with something due, for `reconcile`.
pub async fn due_destinations(connection: &mut Connection) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "select distinct destination from delivery where state in ('waiting', 'sending') and next_attempt_at <= now()",
    )
    .fetch_all(connection)
    .await?)
}
