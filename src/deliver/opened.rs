//! The associations that we open, on the timeline: what the peer says of itself is where many riddles end.

use serde_json::json;
use uuid::Uuid;

use crate::{
    db::{Db, event},
    dimse::{NegotiatedContext, PeerImplementation},
};

/// Records an association with the peer `peer_name` with its implementation (PS3.7 section D.3.3.2). A failure costs
/// the record only.
pub(super) async fn opened(db: &Db, peer_name: &str, peer: &PeerImplementation, contexts: &[NegotiatedContext]) {
    let n_accepted = contexts.iter().filter(|context| context.transfer_syntax_uid().is_some()).count();
    let words = format!("association with peer `{peer_name}`: implementation {peer}");
    // Postgres text cannot hold NUL, which a hostile peer may send.
    let storable = |text: &Option<String>| text.as_deref().map(|text| text.replace('\0', "\u{fffd}"));
    let data = json!({
        "peer": peer_name,
        "implementation_class_uid": storable(&peer.class_uid),
        "implementation_version_name": storable(&peer.version_name),
        "maximum_pdu_length": peer.max_pdu_length,
        "accepted_contexts": n_accepted,
        "proposed_contexts": contexts.len(),
    });
    let record = async {
        let mut connection = db.acquire().await?;
        event::append(&mut connection, event::Subject::Association, Uuid::now_v7(), "opened", &words, data).await
    };
    if let Err(error) = record.await {
        tracing::debug!(%error, "an association that we opened is not recorded");
    }
}
