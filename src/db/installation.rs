//! The identity of this installation, made once.

use uuid::Uuid;

use super::{Connection, Result};

/// The installation id; `proposed` is kept when there is none yet.
pub async fn id_or_insert(connection: &mut Connection, proposed: Uuid) -> Result<Uuid> {
    sqlx::query("insert into installation (id) values ($1) on conflict do nothing")
        .bind(proposed)
        .execute(&mut *connection)
        .await?;
    Ok(sqlx::query_scalar("select id from installation").fetch_one(connection).await?)
}
