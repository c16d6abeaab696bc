//! How destinations do: after failures in a row nothing is sent to one until it answers again.
//!
//! ```text
//! closed ─► open ─► half_open ─► closed
//!             ▲         │
//!             └─────────┘ the first association failed again
//! ```

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;

use super::{Connection, Result, delivery, event};

/// The state of a destination that has failed.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct DestinationState {
    /// Its name.
    pub destination: String,
    /// `closed`: it is sent to; `open`: it is left alone; `half_open`: it has answered, the next association decides.
    pub state: String,
    /// Failures in a row.
    pub failures: i32,
    /// Since when it is in this state.
    pub since: OffsetDateTime,
    /// Nothing is tried before.
    pub next_probe_at: Option<OffsetDateTime>,
    /// The last failure in words.
    pub words: String,
}

impl DestinationState {
    /// Nothing is sent to it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == "open"
    }
}

/// Of one destination; `None` when it has not failed.
pub async fn get(connection: &mut Connection, destination: &str) -> Result<Option<DestinationState>> {
    Ok(sqlx::query_as("select * from destination_state where destination = $1")
        .bind(destination)
        .fetch_optional(connection)
        .await?)
}

/// Of every destination that has failed, by name.
pub async fn all(connection: &mut Connection) -> Result<Vec<DestinationState>> {
    Ok(sqlx::query_as("select * from destination_state order by destination").fetch_all(connection).await?)
}

/// Counts a failure. The destination is `open` from failure number `until_open` on, and at the first one after it was
/// `half_open`: but not when it failed `again` at an object that had failed before, as it is there and the object may be at
/// fault. Returns the state.
pub async fn failed(
    connection: &mut Connection,
    destination: &str,
    until_open: i32,
    words: &str,
    again: bool,
) -> Result<DestinationState> {
    sqlx::query(
        "insert into destination_state (destination, state, failures, words) values ($1, 'closed', 0, '')
         on conflict do nothing",
    )
    .bind(destination)
    .execute(&mut *connection)
    .await?;
    let before: String = sqlx::query_scalar("select state from destination_state where destination = $1 for update")
        .bind(destination)
        .fetch_one(&mut *connection)
        .await?;
    let state: DestinationState = sqlx::query_as(
        "update destination_state s set failures = failures + 1, words = $3, state = new.state,
                since = case when new.state <> s.state or s.failures = 0 then now() else s.since end
         from (select case when state = 'half_open' and $4 then state
                           when failures + 1 >= $2 or state <> 'closed' then 'open' else 'closed' end as state
               from destination_state where destination = $1) new
         where destination = $1 returning s.*",
    )
    .bind(destination)
    .bind(until_open)
    .bind(words)
    .bind(again)
    .fetch_one(&mut *connection)
    .await?;
    if state.is_open() && before != "open" {
        let words = format!("destination `{destination}` is left alone until it answers: {words}");
        event::append(connection, event::Subject::Site, destination, "destination_open", &words, json!({})).await?;
    }
    Ok(state)
}

/// A destination whose failures say nothing of it any more.
pub async fn forget(connection: &mut Connection, destination: &str) -> Result<()> {
    sqlx::query("delete from destination_state where destination = $1").bind(destination).execute(connection).await?;
    Ok(())
}

/// Nothing is tried before `at`.
pub async fn pause_until(connection: &mut Connection, destination: &str, at: OffsetDateTime) -> Result<()> {
    sqlx::query("update destination_state set next_probe_at = $2 where destination = $1")
        .bind(destination)
        .bind(at)
        .execute(connection)
        .await?;
    Ok(())
}

/// `open` → `half_open`: it is there, and everything that waits for it is due.
pub async fn answered_probe(connection: &mut Connection, destination: &str) -> Result<()> {
    let changed = sqlx::query(
        "update destination_state set state = 'half_open', since = now(), next_probe_at = null
         where destination = $1 and state = 'open'",
    )
    .bind(destination)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if changed > 0 {
        delivery::hurry(connection, destination).await?;
    }
    Ok(())
}

/// → `closed`: it has answered a delivery.
pub async fn works(connection: &mut Connection, destination: &str) -> Result<()> {
    let before: Option<String> =
        sqlx::query_scalar("select state from destination_state where destination = $1 for update")
            .bind(destination)
            .fetch_optional(&mut *connection)
            .await?;
    let Some(before) = before else { return Ok(()) };
    forget(connection, destination).await?;
    if before != "closed" {
        let words = format!("destination `{destination}` works again");
        event::append(connection, event::Subject::Site, destination, "destination_closed", &words, json!({})).await?;
    }
    delivery::hurry(connection, destination).await
}

/// Forgets the pause, by a person's wish: the destination is tried at once.
pub async fn try_now(connection: &mut Connection, destination: &str) -> Result<()> {
    sqlx::query("update destination_state set next_probe_at = now() where destination = $1 and next_probe_at > now()")
        .bind(destination)
        .execute(connection)
        .await?;
    Ok(())
}

/// Forgets destinations that are not configured any more.
pub async fn forget_unknown(connection: &mut Connection) -> Result<()> {
    sqlx::query(
        "delete from destination_state s where not exists (select from destination where name = s.destination)",
    )
    .execute(connection)
    .await?;
    Ok(())
}
