//! What peers accepted when they were probed.

use sqlx::types::Json;

use super::{Connection, Result};
use crate::types::PeerProbe;

/// Keeps the outcome for the peer of this name, and the one before it. Returns the one before.
pub async fn keep(connection: &mut Connection, peer: &str, probe: &PeerProbe) -> Result<Option<PeerProbe>> {
    let previous: Option<Json<PeerProbe>> = sqlx::query_scalar(
        "insert into peer_probe (peer, outcome) values ($1, $2)
         on conflict (peer) do update set previous = peer_probe.outcome, outcome = excluded.outcome
         returning previous",
    )
    .bind(peer)
    .bind(Json(probe))
    .fetch_one(connection)
    .await?;
    Ok(previous.map(|previous| previous.0))
}

/// The last outcome for the peer of this name; `None` when it was never probed.
pub async fn latest(connection: &mut Connection, peer: &str) -> Result<Option<PeerProbe>> {
    let outcome: Option<Json<PeerProbe>> = sqlx::query_scalar("select outcome from peer_probe where peer = $1")
        .bind(peer)
        .fetch_optional(connection)
        .await?;
    Ok(outcome.map(|outcome| outcome.0))
}
