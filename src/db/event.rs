//! The timeline: one row for every step in the life of a workup, run, delivery or association.

use serde_json::Value;

use super::{Connection, Result};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// An association, by id.
    Association,
    /// A stored object, by id.
    Instance,
    /// A workup, by id.
    Workup,
    /// A run, by id.
    Run,
    /// A delivery, by id.
    Delivery,
    /// A Storage Commitment: a peer's request by id, one of ours by Transaction UID.
    Commitment,
    /// The site configuration.
    Site,
    /// This node, by name.
    Node,
}

impl Subject {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Association => "association",
            Self::Instance => "instance",
            Self::Workup => "workup",
            Self::Run => "run",
            Self::Delivery => "delivery",
            Self::Commitment => "commitment",
            Self::Site => "site",
            Self::Node => "node",
        }
    }
}

/// Appends an event. `words` is one sentence without patient data.
pub async fn append(
    connection: &mut Connection,
    subject: Subject,
    subject_id: impl ToString,
    kind: &str,
    words: &str,
    data: Value,
) -> Result<()> {
    sqlx::query("insert into event (subject_kind, subject_id, kind, words, data) values ($1, $2, $3, $4, $5)")
        .bind(subject.as_str())
        .bind(subject_id.to_string())
        .bind(kind)
        .bind(words)
        .bind(data)
        .execute(connection)
        .await?;
    Ok(())
}
