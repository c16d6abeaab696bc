//! How far each node's archive folder is known to be indexed.

use super::{Connection, Result};

/// The hour folder (such as `2026/11/22/09`) before which every file of `node` is indexed; `None` before the first.
pub async fn get(connection: &mut Connection, node: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar("select indexed_until from archive_watermark where node = $1")
        .bind(node)
        .fetch_optional(connection)
        .await?)
}

/// Moves the watermark of `node` forward to `hour`; never backward.
pub async fn advance(connection: &mut Connection, node: &str, hour: &str) -> Result<()> {
    sqlx::query(
        "insert into archive_watermark (node, indexed_until) values ($1, $2)
         on conflict (node) do update set indexed_until = greatest(archive_watermark.indexed_until, excluded.indexed_until)",
    )
    .bind(node)
    .bind(hour)
    .execute(connection)
    .await?;
    Ok(())
}
