//! The C-STORE handler: streams objects into the archive and answers when they are durable.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use dicom_dictionary_std::uids;
use time::OffsetDateTime;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::JoinError,
};
use uuid::Uuid;

use super::{
    IndexQueue, RefusalLog, SiteSnapshot,
    admission::calling_peer,
    admit, commitment,
    explain::{self, Caller},
    identity,
    known_objects::{KnownObjects, Verdict},
};
use crate::{
    archive::{Archive, ArchiveError, CheckedObject, DiskGuard, DiskLines, ObjectMeta},
    db::{Db, association, instance::DuplicateRefusal},
    dimse::{
        Admission, AssociationEnd, AssociationHandler, AssociationRequest, DataSetStream, EndReason, FailedStep,
        NegotiatedContext, NegotiationPolicy, NotEstablished, RefusedObject, RefusedOperation, RejectReason, Rejection,
        ServiceFailure, StoreFailure, StoreRequest, Unheard,
    },
    telemetry::{AssociationEnd as CountedEnd, Label as _, Metrics, RejectionReason, events},
    types::{
        AeTitle, AssociationPolicy, CommitmentReport, CommitmentRequest, Duplicates, ObjectOrigin, Refusal,
        RefusalKind, StoredObject, UserIdentityPolicy,
    },
};

/// Passcodes that are checked at the same time: each check takes 19 MiB of memory and tens of milliseconds of a core.
const CONCURRENT_IDENTITY_CHECKS: usize = 2;

/// Bytes of an object between two looks at the free space.
const ROOM_CHECK_BYTES: u64 = 1024 * 1024;

/// Limits of receiving.
#[derive(Debug, Clone)]
pub struct ReceiverSettings {
    /// Our name for this node.
    pub node: String,
    /// Longest data set that is stored, in bytes.
    pub maximum_object_bytes: u64,
    /// What associations may do where neither the local AE title nor the peer says otherwise.
    pub policy: AssociationPolicy,
}

/// What receiving works with.
pub struct ReceiverParts {
    /// Who may associate.
    pub site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
    /// Where objects are kept.
    pub archive: Archive,
    /// Whether there is room for them.
    pub disk: Arc<DiskGuard>,
    /// Where they are handed on to.
    pub index: IndexQueue,
    /// Where refusals are explained.
    pub refusals: RefusalLog,
    /// Keeps Storage Commitment messages, and is asked for duplicates of peers that may send none; objects do not need it.
    pub db: Db,
    /// The runtime of `db`. Associations have their own, and a connection of the pool must not end with one of them.
    pub runtime: Handle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Receives objects.
pub struct Receiver {
    settings: ReceiverSettings,
    site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
    archive: Archive,
    disk: Arc<DiskGuard>,
    known: KnownObjects,
    index: IndexQueue,
    refusals: RefusalLog,
    db: Db,
    runtime: Handle,
    metrics: Arc<Metrics>,
    identity_checks: Semaphore,
}

impl Receiver {
    /// A receiver within these limits, of these parts.
    #[must_use]
    pub fn new(settings: ReceiverSettings, parts: ReceiverParts) -> Self {
        let ReceiverParts { site, archive, disk, index, refusals, db, runtime, metrics } = parts;
        let identity_checks = Semaphore::new(CONCURRENT_IDENTITY_CHECKS);
        let known = KnownObjects::new(db.clone());
        Self { settings, site, archive, disk, known, index, refusals, db, runtime, metrics, identity_checks }
    }

    fn start_of(&self, request: &AssociationRequest) -> association::AssociationStart {
        association::AssociationStart {
            id: request.association_id,
            node: self.settings.node.clone(),
            peer_address: request.peer_address.ip().to_canonical(),
            calling_ae_title: request.calling_ae_title.to_string(),
            called_ae_title: request.called_ae_title.to_string(),
            peer_implementation_class_uid: request.implementation.class_uid.clone(),
            peer_implementation_version_name: request.implementation.version_name.clone(),
            started_at: OffsetDateTime::now_utc(),
        }
    }

    /// The status for duplicates of the peer that calls, if it may send none.
    fn refuse_duplicates(&self, request: &AssociationRequest) -> Option<u16> {
        let snapshot = self.site.borrow().clone()?;
        let peer = calling_peer(&snapshot.site, request, |peer| snapshot.addresses(peer))?;
        (peer.duplicates == Duplicates::Refuse).then(|| peer.duplicate_status())
    }

    fn tell_rejection(&self, request: &AssociationRequest, reason: RejectionReason, words: &str, remedy: &str) {
        events::AssociationRejected {
            association_id: request.association_id,
            calling_ae_title: &request.calling_ae_title.to_string(),
            called_ae_title: &request.called_ae_title.to_string(),
            peer_address: request.peer_address.ip().to_canonical(),
            reason,
            words,
            remedy,
        }
        .emit(&self.metrics);
    }

    /// Looks at the user identity on a thread that may block.
    async fn verify_identity(
        &self,
        required: UserIdentityPolicy,
        request: &AssociationRequest,
        subject: String,
    ) -> Result<(), Rejection> {
        let given = request.user_identity.clone();
        let _permit = self.identity_checks.acquire().await;
        let checked = tokio::task::spawn_blocking(move || identity::verify(&required, given.as_ref(), &subject)).await;
        checked.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at a user identity panicked");
            Err(Rejection::temporary_congestion(
                "a user identity that can be looked at",
                "one that cannot: this is a fault of the node",
                "try again, and report the node's log to its maintainers",
            ))
        })
    }

    /// Writes down an association that did not come to be.
    fn keep_refusal(
        &self,
        caller: &Caller,
        reason: RejectionReason,
        [expected, received, remedy]: [String; 3],
        harmless: bool,
    ) {
        self.refusals.refused([Refusal {
            key: caller.key(RefusalKind::Association, reason.as_str(), ""),
            expected,
            received,
            remedy,
            harmless,
            example: None,
            at: OffsetDateTime::now_utc(),
        }]);
    }

    /// Whether a peer with the caller's title may store, but not from the caller's address.
    fn is_known_elsewhere(&self, request: &AssociationRequest) -> bool {
        let title = request.calling_ae_title.title.as_ref();
        self.site.borrow().as_deref().is_some_and(|snapshot| {
            snapshot.site.peers.iter().any(|peer| peer.may_store && Some(&peer.ae_title) == title)
        })
    }

    /// Tells of every context that was refused.
    fn explain_contexts(
        &self,
        caller: &Caller,
        request: &AssociationRequest,
        policy: &NegotiationPolicy,
        negotiated: &[NegotiatedContext],
    ) {
        let refused = explain::contexts(caller, request, policy, negotiated, OffsetDateTime::now_utc());
        if refused.is_empty() {
            return;
        }
        let outcomes = negotiated.iter().map(|context| &context.outcome);
        let reasons: Vec<_> = outcomes.filter_map(explain::context_refusal).collect();
        let words: Vec<_> = refused.iter().take(5).map(|refusal| refusal.received.as_str()).collect();
        events::ContextsRefused { association_id: request.association_id, reasons: &reasons, words: &words.join("; ") }
            .emit(&self.metrics);
        self.refusals.refused(refused);
    }

    async fn store_object(
        &self,
        origin: ObjectOrigin,
        request: &StoreRequest,
        refuse_duplicates: Option<u16>,
        data: &mut DataSetStream<'_>,
    ) -> Result<StoredObject, NotStored> {
        let called_ae_title = origin.called_ae_title.clone();
        let meta = ObjectMeta {
            sop_class_uid: request.affected_sop_class_uid.clone(),
            sop_instance_uid: request.affected_sop_instance_uid.clone(),
            transfer_syntax_uid: request.transfer_syntax_uid.clone(),
            origin,
        };
        check_room(&self.disk)?;
        let mut incoming = self.archive.begin(meta).map_err(|error| failure(&error))?;
        let mut received_bytes = 0_u64;
        let mut look_again_at_bytes = ROOM_CHECK_BYTES;
        while let Some(fragment) = data.next().await? {
            received_bytes += fragment.len() as u64;
            if received_bytes > self.settings.maximum_object_bytes {
                let limit = self.settings.maximum_object_bytes;
                // Not transient: the same object would come again and again.
                let words = format!("object is longer than dicom.max_object_bytes = {limit}");
                let remedy = "raise `max_object_bytes` in section [dicom] of hilum.toml, or send smaller objects";
                return Err(StoreFailure::cannot_understand(words).with_remedy(remedy).into());
            }
            if received_bytes >= look_again_at_bytes {
                check_room(&self.disk)?;
                look_again_at_bytes = received_bytes + ROOM_CHECK_BYTES;
            }
            incoming.write(&fragment).map_err(|error| failure(&error))?;
        }
        let publish = |checked: CheckedObject| checked.publish().map_err(|error| failure(&error));
        let checked = incoming.check().map_err(|error| failure(&error))?;
        let Some(status) = refuse_duplicates else {
            let stored = publish(checked)?;
            self.known.stored(&stored);
            return Ok(stored);
        };
        let sha256 = checked.sha256();
        let (known, sop_instance_uid) = (self.known.clone(), request.affected_sop_instance_uid.clone());
        let asked = self.runtime.spawn(async move { known.ask(&sop_instance_uid, &called_ae_title, sha256).await });
        let verdict = asked.await.unwrap_or_else(|error| Verdict::Unknown { reason: error.to_string() });
        match &verdict {
            Verdict::OtherBytes => {
                let failure = StoreFailure::new(status, "this SOP Instance UID is known with other bytes");
                return Err(NotStored { failure, duplicate: true });
            }
            Verdict::New { .. } => {}
            Verdict::Unknown { reason } => tracing::warn!(
                sop_instance_uid = %request.affected_sop_instance_uid,
                reason,
                "Postgres cannot be asked for a duplicate, which this peer may not send: if it is one, it is kept as a version"
            ),
        }
        // The claim on the UID is held until the object is there.
        let stored = publish(checked)?;
        self.known.stored(&stored);
        drop(verdict);
        Ok(stored)
    }
}

/// Why an object is not stored.
struct NotStored {
    failure: StoreFailure,
    /// Other bytes are kept under its UID, and its peer may send no duplicates.
    duplicate: bool,
}

impl<E: Into<StoreFailure>> From<E> for NotStored {
    fn from(failure: E) -> Self {
        Self { failure: failure.into(), duplicate: false }
    }
}

/// Receiving never takes what is kept free for results. Blocks.
fn check_room(disk: &DiskGuard) -> Result<(), StoreFailure> {
    let state = disk.look().map_err(|error| failure(&error))?;
    if state.stopped {
        return Err(StoreFailure::out_of_resources(format!(
            "{} MiB free on the archive's disk",
            state.free_bytes >> 20
        )));
    }
    Ok(())
}

/// The status for an archive error: transient for the disk, permanent for the object (PS3.4 B.2.3).
fn failure(error: &ArchiveError) -> StoreFailure {
    use crate::archive::HeaderError;
    let comment = error.to_string();
    match error {
        // Our paths are for our own log.
        ArchiveError::Io(_) if error.is_out_of_resources() => {
            tracing::error!(error = comment, "the archive has no room");
            StoreFailure::out_of_resources("the archive has no room")
        }
        ArchiveError::Io(_) | ArchiveError::BadKey(_) => {
            tracing::error!(error = comment, "the archive cannot store an object");
            StoreFailure::processing_failure("the archive cannot store the object")
        }
        ArchiveError::Header(HeaderError::Announced { .. } | HeaderError::Missing(_) | HeaderError::BadUid { .. }) => {
            StoreFailure::data_set_does_not_match(comment)
        }
        ArchiveError::Header(HeaderError::Malformed(_) | HeaderError::FileMeta(_)) => {
            StoreFailure::cannot_understand(comment)
        }
    }
}

/// A task of ours has panicked.
fn internal_error(error: &JoinError) -> ServiceFailure {
    tracing::error!(%error, "a message cannot be served");
    ServiceFailure::processing_failure("internal error")
}

/// One accepted association.
#[derive(Clone)]
pub struct ReceivingAssociation {
    id: Uuid,
    calling_ae_title: Option<AeTitle>,
    called_ae_title: Option<AeTitle>,
    peer_address: std::net::IpAddr,
    /// The status for other bytes under a known SOP Instance UID; `None` when they are kept.
    refuse_duplicates: Option<u16>,
    started: Instant,
    caller: Caller,
}

/// Whether the peer may have something else to say than objects: reports on what it keeps of our results must come in while
/// the disk is full, or retention could not make room.
fn wants_commitment(request: &AssociationRequest) -> bool {
    request.proposed_contexts.iter().any(|context| context.abstract_syntax == uids::STORAGE_COMMITMENT_PUSH_MODEL)
}

/// A transient rejection: whoever may call learns it as well as strangers, and both come back later.
fn no_room(lines: DiskLines) -> Rejection {
    Rejection::local_limit_exceeded(
        format!("more than {} MiB free on the archive's disk", lines.resume_bytes >> 20),
        "an association while there is less",
        "make room on the archive's disk or enlarge it; the peer tries again by itself",
    )
}

impl ReceivingAssociation {
    pub(super) const fn id(&self) -> Uuid {
        self.id
    }

    pub(super) const fn peer_address(&self) -> std::net::IpAddr {
        self.peer_address
    }

    /// Calling and called AE title.
    pub(super) fn titles(&self) -> Result<(AeTitle, AeTitle), StoreFailure> {
        match (&self.calling_ae_title, &self.called_ae_title) {
            (Some(calling), Some(called)) => Ok((calling.clone(), called.clone())),
            _ => Err(StoreFailure::processing_failure("the association has no valid AE titles")),
        }
    }
}

impl AssociationHandler for Receiver {
    type Association = ReceivingAssociation;

    async fn admit(&self, request: &AssociationRequest) -> Result<Admission, Rejection> {
        let snapshot = self.site.borrow().clone();
        let site = snapshot.as_deref();
        if self.disk.is_stopped() && !wants_commitment(request) {
            return Err(no_room(self.disk.lines()));
        }
        let admitted = admit(site.map(|snapshot| &snapshot.site), &self.settings.policy, request, |peer| {
            site.map(|snapshot| snapshot.addresses(peer)).unwrap_or_default()
        })?;
        let Some(required) = admitted.required_identity else { return Ok(admitted.admission) };
        self.verify_identity(required, request, admitted.subject).await?;
        Ok(Admission { identity_accepted: true, ..admitted.admission })
    }

    fn rejected(&self, request: &AssociationRequest, rejection: &Rejection) {
        let reason = match rejection.reason {
            RejectReason::CallingAeTitleNotRecognized if self.is_known_elsewhere(request) => {
                RejectionReason::PeerAddress
            }
            RejectReason::CallingAeTitleNotRecognized => RejectionReason::CallingAeTitle,
            RejectReason::CalledAeTitleNotRecognized => RejectionReason::CalledAeTitle,
            RejectReason::ApplicationContextNotSupported => RejectionReason::ApplicationContext,
            RejectReason::ProtocolVersionNotSupported => RejectionReason::ProtocolVersion,
            RejectReason::LocalLimitExceeded => RejectionReason::LimitReached,
            RejectReason::ProviderGivesNoReason => RejectionReason::Security,
            _ => RejectionReason::NotReady,
        };
        let words = format!("expected {}, received {}", rejection.expected, rejection.received);
        self.tell_rejection(request, reason, &words, &rejection.remedy);
        let words = [&rejection.expected, &rejection.received, &rejection.remedy].map(Clone::clone);
        self.keep_refusal(&Caller::of(request), reason, words, false);
    }

    fn not_established(&self, failure: &NotEstablished) {
        let reason = match (failure.step, &failure.reason) {
            (FailedStep::Tls, _) => RejectionReason::Security,
            (FailedStep::Request, EndReason::TimedOut(_)) => RejectionReason::RequestTimeout,
            (FailedStep::Request, _) => RejectionReason::MalformedRequest,
        };
        let (received, words) = match (failure.step, &failure.reason) {
            (FailedStep::Tls, EndReason::ProtocolError { words }) => {
                (words.clone(), format!("expected {}, received {words}", failure.expected))
            }
            (_, reason) => (reason.to_string(), reason.to_string()),
        };
        let caller = match &failure.request {
            Some(request) => Caller::of(request),
            None => Caller::unknown(failure.peer_address.ip().to_canonical()),
        };
        self.keep_refusal(&caller, reason, [failure.expected.clone(), received, failure.remedy.clone()], false);
        let title = |of: fn(&AssociationRequest) -> String| failure.request.as_ref().map(of).unwrap_or_default();
        events::AssociationRejected {
            association_id: failure.association_id,
            calling_ae_title: &title(|request| request.calling_ae_title.to_string()),
            called_ae_title: &title(|request| request.called_ae_title.to_string()),
            peer_address: failure.peer_address.ip().to_canonical(),
            reason,
            words: &words,
            remedy: &failure.remedy,
        }
        .emit(&self.metrics);
    }

    fn unheard(&self, peer_address: SocketAddr, why: Unheard) {
        let peer_address = peer_address.ip().to_canonical();
        let harmless = why == Unheard::Silent;
        let (reason, expected, received, remedy) = match why {
            Unheard::Silent => (
                RejectionReason::NoRequest,
                "an association request",
                "a connection that was closed without a word".to_owned(),
                "nothing to mend if that is a load balancer, a monitor or a port scan of yours",
            ),
            Unheard::TooMany { limit } => (
                RejectionReason::LimitReached,
                "room for one more connection",
                format!("one more, which was closed at once: {limit}"),
                "let the peers reuse their associations, or raise that limit in section [dicom] of hilum.toml",
            ),
        };
        events::ConnectionUnheard { peer_address, reason, words: &received }.emit(&self.metrics);
        let told = [expected.to_owned(), received, remedy.to_owned()];
        self.keep_refusal(&Caller::unknown(peer_address), reason, told, harmless);
    }

    fn refused(&self, association: &ReceivingAssociation, refused: &RefusedObject) {
        events::ObjectRefused {
            association_id: association.id,
            sop_instance_uid: &refused.affected_sop_instance_uid,
            status: refused.failure.status,
            words: &refused.failure.comment,
            received_bytes: refused.n_bytes,
        }
        .emit(&self.metrics);
        self.refusals.refused([explain::object(&association.caller, refused, OffsetDateTime::now_utc())]);
    }

    fn operation_refused(&self, association: &ReceivingAssociation, refused: &RefusedOperation) {
        events::OperationRefused {
            association_id: association.id,
            operation: &refused.operation,
            status: refused.failure.status,
            words: &refused.failure.comment,
        }
        .emit(&self.metrics);
        self.refusals.refused([explain::operation(&association.caller, refused, OffsetDateTime::now_utc())]);
    }

    fn accepted(
        &self,
        request: &AssociationRequest,
        policy: &NegotiationPolicy,
        negotiated: &[NegotiatedContext],
    ) -> ReceivingAssociation {
        let (caller, now) = (Caller::of(request), OffsetDateTime::now_utc());
        self.refusals.offered(explain::offer(&caller, request, negotiated, now));
        if let (Some(calling_ae_title), Some(called_ae_title)) =
            (&request.calling_ae_title.title, &request.called_ae_title.title)
        {
            events::AssociationAccepted {
                association_id: request.association_id,
                calling_ae_title,
                called_ae_title,
                peer_address: request.peer_address.ip().to_canonical(),
                accepted_contexts: negotiated.iter().filter(|context| context.transfer_syntax_uid().is_some()).count(),
                proposed_contexts: request.proposed_contexts.len(),
            }
            .emit(&self.metrics);
        }
        self.explain_contexts(&caller, request, policy, negotiated);
        self.index.association_accepted(self.start_of(request));
        ReceivingAssociation {
            id: request.association_id,
            calling_ae_title: request.calling_ae_title.title.clone(),
            called_ae_title: request.called_ae_title.title.clone(),
            peer_address: request.peer_address.ip().to_canonical(),
            refuse_duplicates: self.refuse_duplicates(request),
            started: Instant::now(),
            caller,
        }
    }

    async fn store(
        &self,
        association: &mut ReceivingAssociation,
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> Result<(), StoreFailure> {
        let (calling_ae_title, called_ae_title) = association.titles()?;
        let origin = ObjectOrigin {
            calling_ae_title,
            called_ae_title,
            peer_address: association.peer_address,
            association_id: association.id,
            received_at: OffsetDateTime::now_utc(),
        };
        let started = Instant::now();
        let (calling_ae_title, local_ae_title) = (origin.calling_ae_title.clone(), origin.called_ae_title.clone());
        let stored = match self.store_object(origin, &request, association.refuse_duplicates, data).await {
            Ok(stored) => stored,
            Err(NotStored { failure, duplicate }) => {
                if duplicate {
                    self.metrics.duplicate_refused();
                    self.index.duplicate_refused(DuplicateRefusal {
                        sop_instance_uid: request.affected_sop_instance_uid,
                        local_ae_title,
                        calling_ae_title,
                        association_id: association.id,
                        status: failure.status,
                    });
                }
                return Err(failure);
            }
        };
        events::ObjectStored {
            association_id: association.id,
            sop_instance_uid: &stored.header.sop_instance_uid,
            study_instance_uid: &stored.header.study_instance_uid,
            size_bytes: stored.size_bytes,
            duration: started.elapsed(),
        }
        .emit(&self.metrics);
        self.index.stored(stored);
        Ok(())
    }

    async fn commit(
        &self,
        association: &mut ReceivingAssociation,
        request: CommitmentRequest,
    ) -> Result<(), ServiceFailure> {
        let (db, association) = (self.db.clone(), association.clone());
        self.runtime
            .spawn(async move { commitment::keep_request(&db, &association, &request).await })
            .await
            .unwrap_or_else(|error| Err(internal_error(&error)))
    }

    async fn commitment_reported(
        &self,
        association: &mut ReceivingAssociation,
        report: CommitmentReport,
    ) -> Result<(), ServiceFailure> {
        let (db, association) = (self.db.clone(), association.clone());
        self.runtime
            .spawn(async move { commitment::keep_report(&db, &association, &report).await })
            .await
            .unwrap_or_else(|error| Err(internal_error(&error)))
    }

    fn ended(&self, association: ReceivingAssociation, end: AssociationEnd) {
        let words = end.reason.to_string();
        events::AssociationEnded {
            association_id: association.id,
            end: match &end.reason {
                EndReason::Released => CountedEnd::Released,
                EndReason::AbortedByPeer { .. } => CountedEnd::AbortedByPeer,
                EndReason::ConnectionLost { .. } => CountedEnd::ConnectionLost,
                EndReason::TimedOut(_) => CountedEnd::Timeout,
                EndReason::ShutDown => CountedEnd::Shutdown,
                EndReason::ProtocolError { .. } | EndReason::HandlerFailed => CountedEnd::ProtocolError,
            },
            words: &words,
            objects: end.n_objects_stored,
            received_bytes: end.n_bytes_received,
            duration: association.started.elapsed(),
        }
        .emit(&self.metrics);
        let kind = match &end.reason {
            EndReason::Released => "released",
            EndReason::AbortedByPeer { .. } => "aborted",
            EndReason::ConnectionLost { .. } => "connection_lost",
            EndReason::TimedOut(_) => "timed_out",
            EndReason::ShutDown => "shut_down",
            EndReason::ProtocolError { .. } => "protocol_error",
            EndReason::HandlerFailed => "handler_failed",
        };
        self.index.association_ended(association::AssociationEnd {
            id: association.id,
            kind,
            words,
            objects_stored: end.n_objects_stored,
            objects_refused: end.n_objects_failed,
            bytes_received: end.n_bytes_received,
            ended_at: OffsetDateTime::now_utc(),
        });
    }
}

/// How long the queue to the index may take to empty at shutdown.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{archive::HeaderError, dimse::status};

    #[test]
    fn the_disk_is_transient_and_the_object_is_not() {
        let full = ArchiveError::Io(std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(failure(&full).status, status::OUT_OF_RESOURCES);
        let bad = ArchiveError::Header(HeaderError::Malformed("it ends inside a value".into()));
        assert_eq!(failure(&bad).status, status::CANNOT_UNDERSTAND);
        let other = ArchiveError::Header(HeaderError::Missing("Study Instance UID (0020,000D)"));
        assert_eq!(failure(&other).status, status::DATA_SET_DOES_NOT_MATCH_SOP_CLASS);
    }
}
