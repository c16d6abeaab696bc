//! Reports to peers on the associations that they have opened themselves: from whoever has something to report to the
//! task that serves the association.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use uuid::Uuid;

use super::commitment::CommitmentResponse;
use crate::types::CommitmentReport;

/// The open associations of an [`super::Acceptor`] on which Storage Commitment was accepted. Cheap to clone.
#[derive(Clone, Default)]
pub struct OpenAssociations {
    senders: Arc<Mutex<HashMap<Uuid, mpsc::Sender<Outgoing>>>>,
}

/// A report on its way to the task of its association.
pub(crate) struct Outgoing {
    pub(crate) report: CommitmentReport,
    /// Dropped without an answer when the association ends first.
    pub(crate) answer: oneshot::Sender<CommitmentResponse>,
}

impl OpenAssociations {
    /// Whether the association is still open and takes reports.
    #[must_use]
    pub fn contains(&self, association_id: Uuid) -> bool {
        self.with(|senders| senders.contains_key(&association_id))
    }

    /// Sends `report` on the association that the peer has opened, between two of its messages, and waits for the
    /// answer. `None` when the association is not open, ends, or brings no answer within `patience`: the peer may or may
    /// not have seen the report then.
    pub async fn report(
        &self,
        association_id: Uuid,
        report: CommitmentReport,
        patience: Duration,
    ) -> Option<CommitmentResponse> {
        let sender = self.with(|senders| senders.get(&association_id).cloned())?;
        let (answer, answered) = oneshot::channel();
        sender.try_send(Outgoing { report, answer }).ok()?;
        drop(sender);
        timeout(patience, answered).await.ok()?.ok()
    }

    /// Makes an association known until the value is dropped.
    pub(crate) fn register(&self, association_id: Uuid) -> Registered {
        // One report at a time: the next one waits for its turn as a job, not here.
        let (sender, outgoing) = mpsc::channel(1);
        self.with(|senders| senders.insert(association_id, sender));
        Registered { all: self.clone(), association_id, outgoing }
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<Uuid, mpsc::Sender<Outgoing>>) -> T) -> T {
        work(&mut self.senders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An association's entry.
pub(crate) struct Registered {
    all: OpenAssociations,
    association_id: Uuid,
    outgoing: mpsc::Receiver<Outgoing>,
}

impl Registered {
    /// The next report to send; never ends. Cancel safety: cancel-safe.
    pub(crate) async fn next(&mut self) -> Outgoing {
        match self.outgoing.recv().await {
            Some(outgoing) => outgoing,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.with(|senders| senders.remove(&self.association_id));
    }
}
