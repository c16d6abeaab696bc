//! What the studies of a sender have taught us about its pauses.

use super::{Connection, Result};

/// Studies that are remembered of each sender.
const STUDIES: i32 = 200;

/// The longest silence between two associations in seconds, of each of the sender's newest studies, the newest last.
pub async fn longest_gaps(connection: &mut Connection, calling_ae_title: &str) -> Result<Vec<f64>> {
    let gaps: Option<Vec<f64>> =
        sqlx::query_scalar("select longest_gap_seconds from sender_habit where calling_ae_title = $1")
            .bind(calling_ae_title)
            .fetch_optional(connection)
            .await?;
    Ok(gaps.unwrap_or_default())
}

/// Remembers a study's longest silence; the oldest is forgotten when there are enough.
pub async fn learn(connection: &mut Connection, calling_ae_title: &str, gap_seconds: f64) -> Result<()> {
    sqlx::query(
        "insert into sender_habit (calling_ae_title, longest_gap_seconds) values ($1, array[$2::float8])
         on conflict (calling_ae_title) do update set updated_at = now(),
             longest_gap_seconds = (sender_habit.longest_gap_seconds || $2::float8)
                 [greatest(1, cardinality(sender_habit.longest_gap_seconds) + 2 - $3):]",
    )
    .bind(calling_ae_title)
    .bind(gap_seconds)
    .bind(STUDIES)
    .execute(connection)
    .await?;
    Ok(())
}
