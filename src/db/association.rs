//! Associations: accepted, ended.

use std::net::IpAddr;

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Result, event, refusal, storable};

/// An association at its start.
#[derive(Debug, Clone)]
pub struct AssociationStart {
    /// Our id for it.
    pub id: Uuid,
    /// The node that accepted it.
    pub node: String,
    /// Where the peer connected from.
    pub peer_address: IpAddr,
    /// As sent, valid or not.
    pub calling_ae_title: String,
    /// As sent, valid or not.
    pub called_ae_title: String,
    /// PS3.7 D.3.3.2.
    pub peer_implementation_class_uid: Option<String>,
    /// PS3.7 D.3.3.2.
    pub peer_implementation_version_name: Option<String>,
    /// When it was requested.
    pub started_at: OffsetDateTime,
}

/// How an association ended.
#[derive(Debug, Clone)]
pub struct AssociationEnd {
    /// Our id for it.
    pub id: Uuid,
    /// `released`, `aborted`, `connection_lost`, `timed_out`, `shut_down`, `protocol_error`.
    pub kind: &'static str,
    /// One sentence.
    pub words: String,
    /// Objects answered with Success.
    pub objects_stored: u64,
    /// Objects answered with a failure.
    pub objects_refused: u64,
    /// Data set bytes of all objects.
    pub bytes_received: u64,
    /// When it ended.
    pub ended_at: OffsetDateTime,
}

/// Records an association, and that what was refused of the same caller is mended.
pub async fn insert(connection: &mut Connection, start: &AssociationStart) -> Result<()> {
    sqlx::query(
        "insert into association (id, node, peer_address, calling_ae_title, called_ae_title,
             peer_implementation_class_uid, peer_implementation_version_name, started_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (id) do nothing",
    )
    .bind(start.id)
    .bind(&start.node)
    .bind(start.peer_address.to_string())
    .bind(storable(&start.calling_ae_title))
    .bind(storable(&start.called_ae_title))
    .bind(start.peer_implementation_class_uid.as_deref().map(storable))
    .bind(start.peer_implementation_version_name.as_deref().map(storable))
    .bind(start.started_at)
    .execute(&mut *connection)
    .await?;
    refusal::mend(connection, start).await
}

/// Closes an association.
pub async fn end(connection: &mut Connection, end: &AssociationEnd) -> Result<()> {
    sqlx::query(
        "update association set ended_at = $2, end_kind = $3, end_words = $4, objects_stored = $5,
             objects_refused = $6, bytes_received = $7
         where id = $1 and ended_at is null",
    )
    .bind(end.id)
    .bind(end.ended_at)
    .bind(end.kind)
    .bind(storable(&end.words))
    .bind(i64::try_from(end.objects_stored).unwrap_or(i64::MAX))
    .bind(i64::try_from(end.objects_refused).unwrap_or(i64::MAX))
    .bind(i64::try_from(end.bytes_received).unwrap_or(i64::MAX))
    .execute(&mut *connection)
    .await?;
    if end.kind != "released" {
        event::append(connection, event::Subject::Association, end.id, end.kind, &storable(&end.words), json!({}))
            .await?;
    }
    Ok(())
}

/// Closes what a killed process of `node` left open. Returns how many there were.
pub async fn end_all_of_node(connection: &mut Connection, node: &str) -> Result<u64> {
    let done = sqlx::query(
        "update association set ended_at = now(), end_kind = 'restart', end_words = 'the node restarted'
         where node = $1 and ended_at is null",
    )
    .bind(node)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// The workups that an association has stored to: their completeness may have changed when it ends.
pub async fn workups_of(connection: &mut Connection, association_id: Uuid) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select distinct w.id from instance i
         join workup w on w.study_instance_uid = i.study_instance_uid and w.local_ae_title = i.local_ae_title
         where i.association_id = $1 and w.state = 'receiving'",
    )
    .bind(association_id)
    .fetch_all(connection)
    .await?)
}
