//! What was refused, in words: an association, a presentation context, an object or another request. And what a peer
//! offered.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// An association request, or a connection that never brought one.
    Association,
    /// A proposed presentation context of an accepted association (PS3.8 section 9.3.3.2).
    Context,
    /// A C-STORE request (PS3.4 section B.2.3).
    Object,
    /// Any other request on an accepted association: Storage Commitment (PS3.4 annex J), or what is not offered.
    Operation,
}

impl RefusalKind {
    /// As written in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Association => "association",
            Self::Context => "context",
            Self::Object => "object",
            Self::Operation => "operation",
        }
    }
}

/// What makes two refusals the same: they are counted in one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RefusalKey {
    /// What was refused.
    pub kind: RefusalKind,
    /// Why, as counted in the metrics: a closed set for each kind.
    pub reason: &'static str,
    /// From where.
    pub peer_address: IpAddr,
    /// As sent, escaped; empty when it did not get so far.
    pub calling_ae_title: String,
    /// As sent, escaped; empty when it did not get so far.
    pub called_ae_title: String,
    /// Of a context, an object or an operation the SOP class UID as sent, escaped; else empty.
    pub sop_class_uid: String,
}

/// One refusal with its words. None of them holds patient data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it has in common with others like it.
    pub key: RefusalKey,
    /// What would have been accepted.
    pub expected: String,
    /// What came.
    pub received: String,
    /// What to do.
    pub remedy: String,
    /// Nothing was lost by it, such as a context whose SOP class was accepted in another one.
    pub harmless: bool,
    /// SOP Instance UID of an object as sent, escaped.
    pub example: Option<String>,
    /// When.
    pub at: OffsetDateTime,
}

/// What a peer proposed in one presentation context, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedContext {
    /// Abstract syntax UID as sent, escaped.
    pub abstract_syntax: String,
    /// Transfer syntax UIDs as sent, escaped, in the peer's order.
    pub transfer_syntaxes: Vec<String>,
    /// The transfer syntax that was accepted.
    pub accepted: Option<String>,
}

/// The latest association request of an admitted peer: what it offers as a requestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerOffer {
    /// Its AE title: one offer is kept for each.
    pub calling_ae_title: String,
    /// From where.
    pub peer_address: IpAddr,
    /// Our AE title that it called.
    pub called_ae_title: String,
    /// PS3.7 D.3.3.2, as sent, escaped.
    pub implementation_class_uid: Option<String>,
    /// PS3.7 D.3.3.2, as sent, escaped.
    pub implementation_version_name: Option<String>,
    /// Longest P-DATA-TF that it accepts, in bytes; 0 means unlimited.
    pub max_pdu_length_bytes: u32,
    /// At most 128, as many as an association holds.
    pub contexts: Vec<OfferedContext>,
    /// When.
    pub at: OffsetDateTime,
}
