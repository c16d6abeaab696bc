//! The vocabulary that all rooms share: validated names, identities, and the facts of a received object, a
//! site configuration and a run.
//!
//! Architecture invariant: plain data and its validation only. This room knows no network, no database, no
//! files and no tensors, and names no other room.

mod ae_title;
mod character_set;
mod commitment;
mod ct;
mod destination;
mod device;
mod errand;
mod object;
mod policy;
mod probe;
mod profile;
mod refusal;
mod requirement;
mod rules;
mod run;
mod sha256;
mod similar;
mod site;
mod statistics;
mod trial;
mod uid;

pub use ae_title::{AeTitle, AeTitleError};
pub use character_set::decode_text;
pub use commitment::{CommitmentReport, CommitmentRequest, FailureReason, SopReference};
pub use ct::{
    CtAnalysis, CtClassification, CtDensities, CtKeySlice, CtLesionMember, CtLesionRun, CtLesions, CtLung,
    CtLungLesions, CtMethod, CtPlane, CtQuadrant, CtSection, CtSeries, ExcludedSeries, NotJudged, Side, VoxelLabels,
};
pub use destination::{CommitmentUse, Destination, DestinationKind, WebAuthentication};
pub use device::{Device, DeviceError, Devices, DevicesError};
pub use errand::{Errand, Progress, Urgency};
pub use object::{ObjectHeader, ObjectOrigin, StoredObject};
pub use policy::{
    AssociationPolicy, IdentityUser, PasscodeHash, PasscodeHashError, RequiredIdentity, UserIdentityPolicy,
};
pub use probe::{PeerProbe, ProbedRoles};
pub use profile::{CtSlicePictures, PictureCompression, PictureModality, ReportClass, ResultProfile, SegmentationFor};
pub use refusal::{OfferedContext, PeerOffer, Refusal, RefusalKey, RefusalKind};
pub use requirement::{Requirement, RequirementError, SeriesFacts};
pub use rules::{DeliveryPriority, ResultCondition, ResultRule, Ruling};
pub use run::{
    BundleIdentity, BundleStatus, ClassDefinition, Code, CxrAnalysis, Decision, ExcludedImage, Frame, GateResult,
    HeatMap, ImageAnalysis, Installation, LungMask, MemberIdentity, MemberScore, NotAnalysed, Placement,
    PredecessorDocument, Predecessors, ReasonCode, RunOutcome, RunPriority, RunRecord, SourceImage, UNTRAINED_NOTICE,
};
pub use sha256::{Sha256Digest, Sha256DigestError};
pub use similar::{
    CaseLibraryVersion, PriorImage, Pseudonym, PseudonymKey, SimilarCase, SimilarCases, cosine_of_distance,
    neighbours_caution,
};
pub use site::{Duplicates, LateImages, LocalAe, Peer, Pipeline, Route, SiteConfig, SiteProblem};
pub use statistics::{NORMAL_QUANTILE_975, wilson_interval};
pub use trial::{
    Compared, ComparedBundle, ComparedClass, FurthestStudy, Judged, OutputComparison, RunRole, Trial, TrialComparison,
    TrialMode, TrialPair, TrialSide,
};
pub use uid::{Uid, UidError};
