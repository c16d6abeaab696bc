//! Storage Commitment as SCU (PS3.4 annex J): asks destinations to keep what they got.
//!
//! What is asked is a row before it is asked. The report comes on the association of the request, if the peer is quick, or on
//! one that the peer opens (`receive/commitment.rs`); either way `db::commitment::answered` settles the deliveries.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Deliver, way::Target};
use crate::{
    db::commitment::{self, Wanted},
    dimse::{Association, CommitmentResponse, RequestError, ServiceFailure, status},
    types::{AeTitle, CommitmentRequest, CommitmentUse, Destination, Peer, SiteConfig, SopReference, Uid},
};

/// Instances in one request.
const LIST_LENGTH: i64 = 500;
/// How long the association is held open for a report on it.
const ON_THE_SAME_ASSOCIATION: Duration = Duration::from_millis(1500);
/// The pause before a peer that could not be asked is asked again, at most.
const PAUSE: Duration = Duration::from_mins(10);

/// Why a request was not taken.
struct NotAsked {
    words: String,
    /// The peer does not offer the service.
    unsupported: bool,
    /// The request may have reached it, so that its report may come.
    may_have_arrived: bool,
}

impl NotAsked {
    fn for_now(words: String) -> Self {
        Self { words, unsupported: false, may_have_arrived: false }
    }
}

impl Deliver {
    /// Asks about everything that is to be asked now, and ends the waiting for reports that are overdue.
    pub(super) async fn ask(&self, destination: &Destination, site: &SiteConfig) -> anyhow::Result<()> {
        let name = &destination.name;
        match destination.commitment {
            CommitmentUse::Off => return self.let_go(name, false).await,
            CommitmentUse::Optional => self.let_go(name, true).await?,
            CommitmentUse::Required => {}
        }
        let mut tx = self.db.begin().await?;
        let overdue = commitment::overdue(&mut tx, name, destination.commitment_timeout_seconds).await?;
        tx.commit().await.context("commit")?;
        if overdue.unanswered > 0 {
            tracing::error!(
                destination = name,
                results = overdue.unanswered,
                "the destination does not say whether it keeps results: look into its log, then `hilum deliveries`"
            );
        }
        loop {
            let wanted = commitment::wanted(&mut *self.db.acquire().await?, name, LIST_LENGTH).await?;
            if wanted.is_empty() {
                return Ok(());
            }
            // A peer is asked about what went to it.
            let mut by_peer = BTreeMap::<(String, String), Vec<Wanted>>::new();
            for one in wanted {
                let whom = match destination.kind {
                    crate::types::DestinationKind::ReturnToSender => {
                        (one.sender_ae_title.clone(), one.local_ae_title.clone())
                    }
                    _ => (String::new(), String::new()),
                };
                by_peer.entry(whom).or_default().push(one);
            }
            for ((sender, local), wanted) in by_peer {
                let target = Target::of(site, destination, &sender, &local);
                self.ask_about(destination, target, &wanted).await?;
            }
        }
    }

    /// Lets go what waits for promises that nobody wants any more, or, of one that `is_asked`, needs any more.
    pub(super) async fn let_go(&self, name: &str, is_asked: bool) -> anyhow::Result<()> {
        loop {
            let mut tx = self.db.begin().await?;
            let is_more = commitment::let_go(&mut tx, name, is_asked).await?;
            tx.commit().await.context("commit")?;
            if !is_more {
                return Ok(());
            }
        }
    }

    async fn ask_about(
        &self,
        destination: &Destination,
        target: Result<Target, String>,
        wanted: &[Wanted],
    ) -> anyhow::Result<()> {
        let instances: Result<Vec<SopReference>, _> = wanted
            .iter()
            .map(|one| {
                let sop_class_uid = Uid::new(&one.sop_class_uid)?;
                Ok::<_, crate::types::UidError>(SopReference {
                    sop_class_uid,
                    sop_instance_uid: Uid::new(&one.sop_instance_uid)?,
                })
            })
            .collect();
        let transaction_uid = Uid::from_uuid(Uuid::new_v4());
        let request = CommitmentRequest { transaction_uid: transaction_uid.clone(), instances: instances? };
        let ids: Vec<Uuid> = wanted.iter().map(|one| one.delivery_id).collect();
        let now = OffsetDateTime::now_utc();
        let due_at = now + Duration::from_secs(destination.commitment_timeout_seconds.into());
        let mut tx = self.db.begin().await?;
        if let Ok(Target::Peer { peer, calling }) = &target {
            let destination = Some(destination.name.as_str());
            commitment::ask(&mut tx, peer.ae_title.as_str(), calling.as_str(), destination, &request).await?;
        }
        commitment::asking(&mut tx, &ids, transaction_uid.as_str(), due_at).await?;
        tx.commit().await.context("commit")?;
        let asked = match &target {
            Ok(Target::Peer { peer, calling }) => self.ask_peer(peer, calling, &request).await,
            Ok(_) => Err(NotAsked { unsupported: true, ..NotAsked::for_now("it is no DICOM node".to_owned()) }),
            Err(words) => Err(NotAsked::for_now(words.clone())),
        };
        match asked {
            Ok(()) => {
                let instances = request.instances.len();
                tracing::info!(destination = destination.name, %transaction_uid, instances, "asked for storage commitment");
            }
            Err(NotAsked { words, unsupported, may_have_arrived }) => {
                // A peer that is to commit and offers it one day is asked again then.
                let gives_up = unsupported && destination.commitment == CommitmentUse::Optional;
                let again_at = (!gives_up).then(|| now + self.settings.maximum_backoff.min(PAUSE));
                tracing::warn!(destination = destination.name, words, "cannot ask for storage commitment");
                let mut tx = self.db.begin().await?;
                commitment::not_asked(&mut tx, transaction_uid.as_str(), again_at, &words, may_have_arrived).await?;
                tx.commit().await.context("commit")?;
            }
        }
        Ok(())
    }

    async fn ask_peer(&self, peer: &Peer, calling: &AeTitle, request: &CommitmentRequest) -> Result<(), NotAsked> {
        let requestor =
            self.caller.requestor(calling.clone(), peer).map_err(|error| NotAsked::for_now(format!("{error:#}")))?;
        let established = requestor.propose_commitment().establish().await;
        let mut association = established.map_err(|error| NotAsked::for_now(error.to_string()))?;
        match association.request_commitment(request).await {
            Ok(CommitmentResponse { status, .. }) if status::category(status) == status::Category::Failure => {
                let _ = association.release().await;
                // No such class, instance or action, or not this operation: it does not offer the service.
                let unsupported = matches!(status, 0x0112 | 0x0118 | 0x0122 | 0x0123 | 0x0211);
                let words = format!("`{}` answers N-ACTION with {}", peer.ae_title, status::InWords(status));
                Err(NotAsked { words, unsupported, may_have_arrived: false })
            }
            Ok(_) => {
                if let Err(error) = self.take_report(association, peer).await {
                    tracing::debug!(error = format!("{error:#}"), "no report on the association of the request");
                }
                Ok(())
            }
            Err(error @ RequestError::NoContext { .. }) => {
                let _ = association.release().await;
                Err(NotAsked { unsupported: true, ..NotAsked::for_now(error.to_string()) })
            }
            Err(error) => Err(NotAsked { may_have_arrived: true, ..NotAsked::for_now(error.to_string()) }),
        }
    }

    /// Waits a little for the report and ends the association.
    async fn take_report(&self, mut association: Association, peer: &Peer) -> anyhow::Result<()> {
        let Some(received) = association.next_report(ON_THE_SAME_ASSOCIATION).await? else {
            association.release().await?;
            return Ok(());
        };
        let kept = match received.read() {
            Ok(report) => {
                let kept = async {
                    let mut tx = self.db.begin().await?;
                    let is_known = commitment::answered(&mut tx, peer.ae_title.as_str(), report).await?;
                    tx.commit().await.context("commit")?;
                    anyhow::Ok(is_known)
                };
                match kept.await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(ServiceFailure::unknown_transaction()),
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "a storage commitment report cannot be kept");
                        Err(ServiceFailure::database_away())
                    }
                }
            }
            Err(failure) => Err(failure),
        };
        association.answer_report(received, kept).await?;
        association.release().await?;
        Ok(())
    }
}
