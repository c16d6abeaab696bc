//! What a peer accepts, as found out by asking it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The roles that a peer agreed to for one SOP class (PS3.7 D.3.3.4), seen from us as the requestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbedRoles {
    /// We may be SCU.
    pub scu: bool,
    /// We may be SCP.
    pub scp: bool,
}

/// The outcome of `hilum peer probe`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerProbe {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Called AE title.
    pub called_ae_title: String,
    /// Calling AE title.
    pub calling_ae_title: String,
    /// Where it was called.
    pub host: String,
    /// Where it was called.
    pub port: u16,
    /// PS3.7 D.3.3.2, escaped.
    pub implementation_class_uid: Option<String>,
    /// PS3.7 D.3.3.2, escaped.
    pub implementation_version_name: Option<String>,
    /// Longest P-DATA-TF that it accepts, in bytes; 0 means unlimited.
    pub max_pdu_length_bytes: u32,
    /// Its status for C-ECHO; `None` when it did not accept Verification or did not answer.
    pub echo_status: Option<u16>,
    /// Milliseconds from the C-ECHO request to its response.
    pub echo_milliseconds: Option<f64>,
    /// For each SOP class UID that it accepts, the transfer syntax UIDs in the order in which they were proposed.
    pub accepted: BTreeMap<String, Vec<String>>,
    /// For each SOP class UID that it accepts in none of the proposed transfer syntaxes, its answer in words.
    pub refused: BTreeMap<String, String>,
    /// The answers to our role selections, by SOP class UID; it need not answer.
    pub roles: BTreeMap<String, ProbedRoles>,
    /// Presentation contexts that were proposed, over all associations.
    pub proposed_contexts: usize,
    /// Why parts of the question have no answer: rejected, aborted, silent.
    pub failures: Vec<String>,
}
