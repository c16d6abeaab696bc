//! The C-STORE handler: streams objects into the archive and answers when they are durable.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use time::OffsetDateTime;
use tokio::sync::watch;
use uuid::Uuid;

use super::{IndexQueue, SiteSnapshot, admit};
use crate::{
    archive::{Archive, ArchiveError, IncomingObject, ObjectMeta},
    db::association,
    dimse::{
        AssociationEnd, AssociationHandler, AssociationRequest, DataSetStream, EndReason, NegotiatedContext,
        NegotiationPolicy, NotEstablished, RejectReason, Rejection, StoreFailure, StoreRequest,
    },
    telemetry::{AssociationEnd as CountedEnd, Metrics, RejectionReason, events},
    types::{AeTitle, ObjectOrigin, StoredObject},
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
    metrics: Arc<Metrics>,
}

impl Receiver {
    /// A receiver that admits by `site`, stores into `archive` and hands on to `index`.
    #[must_use]
    pub fn new(
        settings: ReceiverSettings,
        site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
        archive: Archive,
        index: IndexQueue,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { settings, site, archive, index, metrics }
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

    async fn store_object(
        &self,
        origin: ObjectOrigin,
        request: &StoreRequest,
        data: &mut DataSetStream<'_>,
        received_bytes: &mut u64,
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
        while let Some(fragment) = data.next().await? {
            *received_bytes += fragment.len() as u64;
            if *received_bytes > self.settings.maximum_object_bytes {
                let limit = self.settings.maximum_object_bytes;
                // Not transient: the same object would come again and again.
                return Err(StoreFailure::cannot_understand(format!(
                    "object is longer than dicom.max_object_bytes = {limit}"
                )));
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
            RejectReason::CallingAeTitleNotRecognized => RejectionReason::CallingAeTitle,
            RejectReason::CalledAeTitleNotRecognized => RejectionReason::CalledAeTitle,
            RejectReason::ApplicationContextNotSupported => RejectionReason::ApplicationContext,
            RejectReason::ProtocolVersionNotSupported => RejectionReason::ProtocolVersion,
            RejectReason::LocalLimitExceeded => RejectionReason::LimitReached,
            _ => RejectionReason::NotReady,
        };
        let words = format!("expected {}, received {}", rejection.expected, rejection.received);
        self.tell_rejection(request, reason, &words, &rejection.remedy);
        let refusal = association::Refusal {
            expected: rejection.expected.clone(),
            received: rejection.received.clone(),
            remedy: rejection.remedy.clone(),
        };
        self.index.association_refused(self.start_of(request), refusal);
    }

    fn not_established(&self, failure: &NotEstablished) {
        let reason = match failure.reason {
            EndReason::TimedOut(_) => RejectionReason::RequestTimeout,
            _ => RejectionReason::MalformedRequest,
        };
        let remedy =
            "look at the peer's own log: what it sent is no complete association request (PS3.8 section 9.3.2)";
        let words = failure.reason.to_string();
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
        let refusal = association::Refusal {
            expected: "a complete association request".into(),
            received: words,
            remedy: remedy.into(),
        };
        self.index.association_refused(self.start_of(request), refusal);
    }

    fn accepted(&self, request: &AssociationRequest, negotiated: &[NegotiatedContext]) -> ReceivingAssociation {
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
        self.index.association_accepted(self.start_of(request));
        ReceivingAssociation {
            id: request.association_id,
            calling_ae_title: request.calling_ae_title.title.clone(),
            called_ae_title: request.called_ae_title.title.clone(),
            peer_address: request.peer_address.ip().to_canonical(),
            started: Instant::now(),
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
        let mut received_bytes = 0;
        match self.store_object(origin, &request, data, &mut received_bytes).await {
            Ok(stored) => {
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
            Err(failure) => {
                events::ObjectRefused {
                    association_id: association.id,
                    sop_instance_uid: request.affected_sop_instance_uid.as_str(),
                    status: failure.status,
                    words: &failure.comment,
                    received_bytes,
                }
                .emit(&self.metrics);
                Err(failure)
            }
        }
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
