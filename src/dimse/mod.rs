//! DICOM message exchange: the association acceptor and requestor, with our own negotiation, state machine and
//! limits on top of dicom-ul's PDU codec.
//!
//! Start at [`Acceptor`] (we are called: implement [`AssociationHandler`]) or [`AssociationRequestor`] (we call).
//! Inside, from the wire upwards: `pdu_io` frames PDUs, `state` is PS3.8 table 9-10 as data, `upper_layer` drives
//! it, `message` cuts and joins DIMSE messages, [`command`] is the command set, [`negotiation`] chooses
//! presentation contexts. Each further service has a file: `find` (query), `commitment` (Storage Commitment);
//! `data_set` reads and writes the small data sets that their messages carry, `refusal` turns errors into statuses.
//!
//! Architecture invariant: this room knows no database, no HTTP, no models and no archive, and it holds no object
//! in memory: data sets of objects pass through as fragments no longer than one PDU.

mod acceptor;
pub mod command;
mod commitment;
mod data_set;
mod find;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod identifier;
mod message;
mod names;
pub mod negotiation;
mod open_associations;
mod own_thread;
mod pdu_io;
mod quota;
mod refusal;
mod rejection;
mod requestor;
#[cfg(test)]
mod service_tests;
mod state;
pub mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
#[cfg(test)]
mod tls_tests;
mod upper_layer;

pub use acceptor::{
    Acceptor, AcceptorOptions, AssociationEnd, AssociationHandler, AssociationRequest, DataSetStream, FailedStep,
    NotEstablished, RefusedObject, RefusedOperation, RequestedTitle, StoreFailure, StoreRequest, StreamError, Unheard,
};
pub use command::{MoveOriginator, Priority};
pub use commitment::{CommitmentResponse, ReceivedReport};
pub use find::{CountError, CountSource, FindEnd, FindLimits, FindMatches, StudyCount, count_study_instances};
pub use identifier::{FindQuery, Identifier, QueryLevel};
pub use message::{EndReason, TimeLimit};
pub use names::{named_transfer_syntaxes, sop_class_name, transfer_syntax_name};
pub use negotiation::{
    Admission, ContextOutcome, NegotiatedContext, NegotiationPolicy, PeerImplementation, ProposedContext, UserIdentity,
    UserIdentityKind, storage_policy,
};
pub use open_associations::OpenAssociations;
pub use quota::Quota;
pub use refusal::ServiceFailure;
pub use rejection::{RejectReason, RejectResult, Rejection};
pub use requestor::{
    Association, AssociationRequestor, GrantedRoles, RequestError, RequestorTimeouts, StoreResponse, StoreSource,
};
pub use tls::{Security, TlsClient, TlsServer};

/// Our Implementation Class UID (PS3.7 D.3.3.2): UUID 868697ad-cc87-4ed5-9025-d922df42e61a, made once for Hilum.
pub const IMPLEMENTATION_CLASS_UID: &str = "2.25.178815395627843179514629119654028830234";

/// Our Implementation Version Name (PS3.7 D.3.3.2), at most 16 characters, such as `HILUM_0_1_0`.
pub const IMPLEMENTATION_VERSION_NAME: &str = concat!(
    "HILUM_",
    env!("CARGO_PKG_VERSION_MAJOR"),
    "_",
    env!("CARGO_PKG_VERSION_MINOR"),
    "_",
    env!("CARGO_PKG_VERSION_PATCH")
);

const _: () = assert!(IMPLEMENTATION_VERSION_NAME.len() <= 16, "PS3.7 D.3.3.2.4: 1 to 16 characters");

/// The DICOM application context name (PS3.7 annex A).
pub const APPLICATION_CONTEXT_NAME: &str = "1.2.840.10008.3.1.1.1";
