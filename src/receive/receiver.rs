//! The C-STORE handler: streams objects into the archive and answers when they are durable.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use time::OffsetDateTime;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    IndexQueue, RefusalLog, SiteSnapshot, admit,
    explain::{self, Caller},
};
use crate::{
    archive::{Archive, ArchiveError, IncomingObject, ObjectMeta},
    db::association,
    dimse::{
        AssociationEnd, AssociationHandler, AssociationRequest, DataSetStream, EndReason, NegotiatedContext,
        NegotiationPolicy, NotEstablished, RefusedObject, RejectReason, Rejection, StoreFailure, StoreRequest, Unheard,
    },
    telemetry::{AssociationEnd as CountedEnd, Label as _, Metrics, RejectionReason, events},
    types::{AeTitle, ObjectOrigin, Refusal, RefusalKind, StoredObject},
};

/// Bytes that are collected before they go to the file: one hop to a blocking thread for each. A CT slice fits in.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Limits of receiving.
#[derive(Debug, Clone)]
pub struct ReceiverSettings {
    /// Our name for this node.
    pub node: String,
    /// Longest data set that is stored, in bytes.
    pub maximum_object_bytes: u64,
    /// Free bytes below which objects are refused with 0xA700.
    pub minimum_free_bytes: u64,
}

/// Receives objects.
pub struct Receiver {
    settings: ReceiverSettings,
    site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
    archive: Archive,
    index: IndexQueue,
    refusals: RefusalLog,
    metrics: Arc<Metrics>,
}

impl Receiver {
    /// A receiver that admits by `site`, stores into `archive`, hands on to `index` and explains to `refusals`.
    #[must_use]
    pub fn new(
        settings: ReceiverSettings,
        site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
        archive: Archive,
        index: IndexQueue,
        refusals: RefusalLog,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { settings, site, archive, index, refusals, metrics }
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
        data: &mut DataSetStream<'_>,
    ) -> Result<StoredObject, StoreFailure> {
        let meta = ObjectMeta {
            sop_class_uid: request.affected_sop_class_uid.clone(),
            sop_instance_uid: request.affected_sop_instance_uid.clone(),
            transfer_syntax_uid: request.transfer_syntax_uid.clone(),
            origin,
        };
        let minimum_free_bytes = self.settings.minimum_free_bytes;
        let mut object = Object::Announced { archive: self.archive.clone(), minimum_free_bytes, meta };
        let mut chunk = BytesMut::new();
        let mut received_bytes = 0_u64;
        while let Some(fragment) = data.next().await? {
            received_bytes += fragment.len() as u64;
            if received_bytes > self.settings.maximum_object_bytes {
                let limit = self.settings.maximum_object_bytes;
                // Not transient: the same object would come again and again.
                return Err(StoreFailure::cannot_understand(format!(
                    "object is longer than dicom.max_object_bytes = {limit}"
                ))
                .with_remedy("raise `max_object_bytes` in section [dicom] of hilum.toml, or send smaller objects"));
            }
            chunk.extend_from_slice(&fragment);
            if chunk.len() >= CHUNK_BYTES {
                object = append(object, chunk.split().freeze()).await?;
            }
        }
        let rest = chunk.freeze();
        blocking(move || {
            let mut incoming = object.begin()?;
            incoming.write(&rest).map_err(|error| failure(&error))?;
            incoming.finish().map_err(|error| failure(&error))
        })
        .await
    }
}

/// An object on its way. Its file is made with its first bytes, so that a short object costs one hop only.
enum Object {
    Announced { archive: Archive, minimum_free_bytes: u64, meta: ObjectMeta },
    Begun(IncomingObject),
}

impl Object {
    /// Makes the file, if there is room and it is not there yet. Blocks.
    fn begin(self) -> Result<IncomingObject, StoreFailure> {
        let (archive, minimum_free_bytes, meta) = match self {
            Self::Begun(incoming) => return Ok(incoming),
            Self::Announced { archive, minimum_free_bytes, meta } => (archive, minimum_free_bytes, meta),
        };
        let free_bytes = archive.free_bytes().map_err(|error| failure(&error))?;
        if free_bytes < minimum_free_bytes {
            return Err(StoreFailure::out_of_resources(format!("{} MiB free on the archive's disk", free_bytes >> 20)));
        }
        archive.begin(meta).map_err(|error| failure(&error))
    }
}

async fn append(object: Object, bytes: Bytes) -> Result<Object, StoreFailure> {
    blocking(move || {
        let mut incoming = object.begin()?;
        incoming.write(&bytes).map_err(|error| failure(&error))?;
        Ok(Object::Begun(incoming))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreFailure> + Send + 'static,
) -> Result<T, StoreFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(%error, "storing an object panicked");
            Err(StoreFailure::processing_failure("internal error while storing"))
        }
    }
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

/// One accepted association.
pub struct ReceivingAssociation {
    id: Uuid,
    calling_ae_title: Option<AeTitle>,
    called_ae_title: Option<AeTitle>,
    peer_address: std::net::IpAddr,
    started: Instant,
    caller: Caller,
}

impl AssociationHandler for Receiver {
    type Association = ReceivingAssociation;

    fn admit(&self, request: &AssociationRequest) -> Result<NegotiationPolicy, Rejection> {
        let snapshot = self.site.borrow().clone();
        let site = snapshot.as_deref();
        admit(site.map(|snapshot| &snapshot.site), request, |peer| {
            site.map(|snapshot| snapshot.addresses(peer)).unwrap_or_default()
        })
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
            _ => RejectionReason::NotReady,
        };
        let words = format!("expected {}, received {}", rejection.expected, rejection.received);
        self.tell_rejection(request, reason, &words, &rejection.remedy);
        let words = [&rejection.expected, &rejection.received, &rejection.remedy].map(Clone::clone);
        self.keep_refusal(&Caller::of(request), reason, words, false);
    }

    fn not_established(&self, failure: &NotEstablished) {
        let reason = match failure.reason {
            EndReason::TimedOut(_) => RejectionReason::RequestTimeout,
            _ => RejectionReason::MalformedRequest,
        };
        let remedy =
            "look at the peer's own log: what it sent is no complete association request (PS3.8 section 9.3.2)";
        let words = failure.reason.to_string();
        let caller = match &failure.request {
            Some(request) => Caller::of(request),
            None => Caller::unknown(failure.peer_address.ip().to_canonical()),
        };
        let told = ["a complete association request".to_owned(), words.clone(), remedy.to_owned()];
        self.keep_refusal(&caller, reason, told, false);
        let Some(request) = &failure.request else {
            events::AssociationRejected {
                association_id: failure.association_id,
                calling_ae_title: "",
                called_ae_title: "",
                peer_address: failure.peer_address.ip().to_canonical(),
                reason,
                words: &words,
                remedy,
            }
            .emit(&self.metrics);
            return;
        };
        self.tell_rejection(request, reason, &words, remedy);
    }

    fn unheard(&self, peer_address: SocketAddr, why: Unheard) {
        let peer_address = peer_address.ip().to_canonical();
        let (reason, expected, received, remedy) = match why {
            Unheard::Silent => (
                RejectionReason::NoRequest,
                "an association request".to_owned(),
                "a connection that was closed without a word",
                "nothing to mend if that is a load balancer, a monitor or a port scan of yours",
            ),
            Unheard::TooMany { limit } => (
                RejectionReason::LimitReached,
                format!("at most {limit} connections at once"),
                "one more, which was closed at once",
                "let the peers reuse their associations, or raise `max_associations` in section [dicom] of hilum.toml",
            ),
        };
        events::ConnectionUnheard { peer_address, reason, words: received }.emit(&self.metrics);
        let told = [expected, received.to_owned(), remedy.to_owned()];
        self.keep_refusal(&Caller::unknown(peer_address), reason, told, why == Unheard::Silent);
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
        let (Some(calling_ae_title), Some(called_ae_title)) =
            (association.calling_ae_title.clone(), association.called_ae_title.clone())
        else {
            return Err(StoreFailure::processing_failure("the association has no valid AE titles"));
        };
        let origin = ObjectOrigin {
            calling_ae_title,
            called_ae_title,
            peer_address: association.peer_address,
            association_id: association.id,
            received_at: OffsetDateTime::now_utc(),
        };
        let started = Instant::now();
        let stored = self.store_object(origin, &request, data).await?;
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
