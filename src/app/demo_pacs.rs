//! A stand-in for a PACS, so that `hilum dev` needs no other server: a storage SCP that keeps what it gets.

use std::sync::Arc;

use dicom_dictionary_std::uids;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    archive::{Archive, ArchiveError, ObjectMeta},
    dimse::{
        Acceptor, AcceptorOptions, Admission, AssociationEnd, AssociationHandler, AssociationRequest, DataSetStream,
        NegotiatedContext, NegotiationPolicy, NotEstablished, Rejection, StoreFailure, StoreRequest,
    },
    report,
    types::{AeTitle, ObjectOrigin},
};

/// Longest object, held in memory: results have a few megabytes.
const MAXIMUM_OBJECT_BYTES: usize = 64 * 1024 * 1024;

/// A storage SCP that accepts everybody and what Hilum sends.
pub struct DemoPacs {
    acceptor: Acceptor<Handler>,
}

struct Handler {
    archive: Archive,
}

impl DemoPacs {
    /// A stand-in that stores into `archive`.
    #[must_use]
    pub fn new(listener: TcpListener, archive: Archive) -> Self {
        Self { acceptor: Acceptor::new(listener, AcceptorOptions::default(), Arc::new(Handler { archive })) }
    }

    /// Accepts until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        self.acceptor.run(shutdown).await;
    }
}

/// Where an association comes from.
struct Peer {
    request: AssociationRequest,
}

impl AssociationHandler for Handler {
    type Association = Peer;

    async fn admit(&self, _: &AssociationRequest) -> Result<Admission, Rejection> {
        let syntaxes = [uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN];
        Ok(report::CREATED_SOP_CLASSES
            .iter()
            .chain(&[uids::VERIFICATION])
            .fold(NegotiationPolicy::new(), |policy, sop_class| policy.with(sop_class, &syntaxes))
            .into())
    }

    fn rejected(&self, _: &AssociationRequest, _: &Rejection) {}

    fn not_established(&self, _: &NotEstablished) {}

    fn accepted(&self, request: &AssociationRequest, _: &NegotiationPolicy, _: &[NegotiatedContext]) -> Peer {
        Peer { request: request.clone() }
    }

    async fn store(
        &self,
        association: &mut Peer,
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> Result<(), StoreFailure> {
        let title = |title: &Option<AeTitle>| {
            title.clone().ok_or_else(|| StoreFailure::processing_failure("the association has no valid AE titles"))
        };
        let from = &association.request;
        let meta = ObjectMeta {
            sop_class_uid: request.affected_sop_class_uid,
            sop_instance_uid: request.affected_sop_instance_uid,
            transfer_syntax_uid: request.transfer_syntax_uid,
            origin: ObjectOrigin {
                calling_ae_title: title(&from.calling_ae_title.title)?,
                called_ae_title: title(&from.called_ae_title.title)?,
                peer_address: from.peer_address.ip(),
                association_id: from.association_id,
                received_at: OffsetDateTime::now_utc(),
            },
        };
        let mut bytes = Vec::new();
        while let Some(fragment) = data.next().await? {
            if bytes.len() + fragment.len() > MAXIMUM_OBJECT_BYTES {
                return Err(StoreFailure::out_of_resources(format!("more than {MAXIMUM_OBJECT_BYTES} bytes")));
            }
            bytes.extend_from_slice(&fragment);
        }
        let store = || -> Result<(), ArchiveError> {
            let mut incoming = self.archive.begin(meta)?;
            incoming.write(&bytes)?;
            incoming.finish().map(drop)
        };
        store().map_err(|error| StoreFailure::processing_failure(format!("store: {error:#}")))
    }

    fn ended(&self, _: Peer, _: AssociationEnd) {}
}
