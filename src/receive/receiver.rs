//! The C-STORE handler: streams objects into the archive and answers when they are durable.

use std::{sync::Arc, time::Duration};

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
        NegotiationPolicy, NotEstablished, Rejection, StoreFailure, StoreRequest,
    },
    telemetry::Metrics,
    types::{AeTitle, ObjectOrigin, StoredObject},
};

/// Bytes that are collected before they go to the file: one hop to a blocking thread for each.
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
        let archive = self.archive.clone();
        let minimum_free_bytes = self.settings.minimum_free_bytes;
        let mut incoming = blocking(move || {
            let free_bytes = archive.free_bytes().map_err(|error| failure(&error))?;
            if free_bytes < minimum_free_bytes {
                return Err(StoreFailure::out_of_resources(format!("{} MiB free on the archive's disk", free_bytes >> 20)));
            }
            archive.begin(meta).map_err(|error| failure(&error))
        })
        .await?;
        let mut chunk = BytesMut::new();
        let mut received_bytes: u64 = 0;
        while let Some(fragment) = data.next().await? {
            received_bytes += fragment.len() as u64;
            if received_bytes > self.settings.maximum_object_bytes {
                let limit = self.settings.maximum_object_bytes;
                return Err(StoreFailure::out_of_resources(format!("object is longer than dicom.max_object_bytes = {limit}")));
            }
            chunk.extend_from_slice(&fragment);
            if chunk.len() >= CHUNK_BYTES {
                incoming = append(incoming, chunk.split().freeze()).await?;
            }
        }
        let rest = chunk.freeze();
        blocking(move || {
            incoming.write(&rest).map_err(|error| failure(&error))?;
            incoming.finish().map_err(|error| failure(&error))
        })
        .await
    }
}

async fn append(mut incoming: IncomingObject, bytes: Bytes) -> Result<IncomingObject, StoreFailure> {
    blocking(move || {
        incoming.write(&bytes).map_err(|error| failure(&error))?;
        Ok(incoming)
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
        error if error.is_out_of_resources() => StoreFailure::out_of_resources(comment),
        ArchiveError::Io(_) | ArchiveError::BadKey(_) => StoreFailure::processing_failure(comment),
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
        self.metrics.association_rejected(&rejection.reason.to_string());
        let refusal = association::Refusal {
            expected: rejection.expected.clone(),
            received: rejection.received.clone(),
            remedy: rejection.remedy.clone(),
        };
        self.index.association_refused(self.start_of(request), refusal);
    }

    fn not_established(&self, failure: &NotEstablished) {
        self.metrics.association_rejected("not established");
        if let Some(request) = &failure.request {
            let refusal = association::Refusal {
                expected: "an association that is established".into(),
                received: failure.reason.to_string(),
                remedy: "look at the peer's own log; hilum's log names the PDU".into(),
            };
            self.index.association_refused(self.start_of(request), refusal);
        }
    }

    fn accepted(&self, request: &AssociationRequest, _: &[NegotiatedContext]) -> ReceivingAssociation {
        self.metrics.association_accepted();
        self.index.association_accepted(self.start_of(request));
        ReceivingAssociation {
            id: request.association_id,
            calling_ae_title: request.calling_ae_title.title.clone(),
            called_ae_title: request.called_ae_title.title.clone(),
            peer_address: request.peer_address.ip().to_canonical(),
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
        let started = std::time::Instant::now();
        match self.store_object(origin, &request, data).await {
            Ok(stored) => {
                self.metrics.object_stored(stored.size_bytes, started.elapsed());
                tracing::debug!(
                    sop_instance_uid = %stored.header.sop_instance_uid,
                    archive_key = stored.archive_key,
                    bytes = stored.size_bytes,
                    "object is durable"
                );
                self.index.stored(stored);
                Ok(())
            }
            Err(failure) => {
                self.metrics.object_refused(failure.status);
                tracing::warn!(
                    sop_instance_uid = %request.affected_sop_instance_uid,
                    status = format_args!("0x{:04X}", failure.status),
                    reason = failure.comment,
                    "object refused"
                );
                Err(failure)
            }
        }
    }

    fn ended(&self, association: ReceivingAssociation, end: AssociationEnd) {
        self.metrics.association_ended();
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
            words: end.reason.to_string(),
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
