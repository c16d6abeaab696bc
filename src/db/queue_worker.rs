//! Which queue workers belong to which node and role, so that a restart can give back the jobs of the dead ones.

use super::{Connection, Result};

/// Remembers a worker that has just started.
pub async fn insert(connection: &mut Connection, worker_id: &str, node: &str, role: &str) -> Result<()> {
    sqlx::query("insert into queue_worker (worker_id, node, role) values ($1, $2, $3) on conflict do nothing")
        .bind(worker_id)
        .bind(node)
        .bind(role)
        .execute(connection)
        .await?;
    Ok(())
}

/// Forgets and returns every worker of `node` and `role`: called when that role starts, all earlier ones are dead.
pub async fn take(connection: &mut Connection, node: &str, role: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("delete from queue_worker where node = $1 and role = $2 returning worker_id")
        .bind(node)
        .bind(role)
        .fetch_all(connection)
        .await?)
}
