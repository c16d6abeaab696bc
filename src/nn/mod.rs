//! Networks: the lung segmenter, the classifiers, their class-activation maps, and the bundles that hold
//! their weights.
//!
//! Start from [`Bundle::open`] (a folder with `manifest.toml` and weights, checked) and [`Ensemble::load`] (its
//! networks of radiographs, each owned by one thread) or [`ScanEnsemble::load`] (of chest CT).
//! [`init_untrained_bundle`] and [`init_untrained_scan_bundle`] write bundles with seeded weights.
//!
//! Architecture invariant: with `train` the only room that names `tch`; no tensor leaves it but through [`Trainable`] to
//! `train`, what goes in and out is plain data ([`Plane`], [`Planes`], [`MemberOutput`]). It knows nothing of DICOM, of studies, or of the
//! database.

mod architecture;
mod attention_vgg;
mod bundle;
mod classifier;
mod covnet;
mod cuda;
mod decovnet;
mod detrac;
mod dre_net;
mod edit;
mod ensemble;
mod error;
mod explain;
mod feature_space;
mod fusion;
mod gates;
#[cfg(test)]
mod golden_tests;
mod import;
mod inception;
mod inception_resnet_v2;
mod inception_v3;
mod init;
mod jit;
mod layers;
mod lesions;
mod load;
mod manifest;
mod measure;
mod multi_scale;
mod on_demand;
mod owner;
#[cfg(test)]
mod parity_tests;
mod plane;
pub mod pooling;
mod precision;
mod probe;
pub mod quadrants;
mod queue;
mod r231;
mod replicas;
mod resnet;
mod runner;
mod scan;
mod scan_manifest;
mod script;
pub mod seeded;
mod trainable;
mod unet;
mod unet_plus_plus;
mod verify;
mod vgg;
mod weights;

pub use architecture::{Architecture, scaled_channels};
pub use attention_vgg::{AttentionFusion, AttentionNorm, AttentionOptions, AttentionTap};
pub use bundle::{Bundle, BundleError, MANIFEST_FILE_NAME, MAX_MANIFEST_BYTES, MAX_WEIGHTS_BYTES};
pub use covnet::BatchNormMode;
pub use cuda::require_devices;
pub use edit::{Edit, EditError, edit_manifest};
pub use ensemble::{ActivationMap, Ensemble, EnsembleOptions, MemberOutput};
pub use error::NnError;
pub use explain::{Explanation, IntegratedGradientsOptions};
pub use feature_space::{FeatureDistances, FeatureSpace, FittedGate, MAX_COMPONENTS, Matrix, write_feature_gate};
pub use fusion::{calibrated, fuse, platt_logit};
pub use gates::{CtGates, FeatureGate, GatePolicies, Gates, LungLimits, PictureLimits, Policy};
pub use import::{ImportError, ImportTarget, Imported, import};
pub use init::{
    CT_BUNDLE_NAME, InitError, ScanOptions, UNTRAINED_BUNDLE_NAME, UntrainedOptions, copy_bundle, init_ct_bundle,
    init_untrained_bundle, init_untrained_scan_bundle, radiograph_gates, radiograph_preprocessing,
    write_trained_bundle,
};
#[cfg(test)]
pub(crate) use lesions::{script_of, script_of_shape};
pub use manifest::{
    Calibration, ChannelNormalisation, ChannelOrder, Classification, Equalisation, Fusion, Input, Manifest, MaskMode,
    Member, MemberArchitecture, MemberExplanation, OutputKind, Performance, Preprocessing, Prior, ResizeMode,
    Segmenter, SegmenterArchitecture, SegmenterNormalisation, SimilarCasesSection, VoiMode, Whose, is_plain_name,
};
pub use measure::{Measured, measure};
pub use on_demand::{ExplainedInput, explain_input};
pub use plane::{Plane, Planes};
pub use precision::{MAX_TOLERANCE, NetworkPrecision, Precision};
#[cfg(test)]
pub(crate) use r231::threshold_weights;
pub use scan::{ScanEnsemble, ScanOutput, SliceOutput, Slices};
pub use scan_manifest::{Aggregation, LesionRule, LesionRuleMethod, ScanArchitecture, ScanChannel, ScanPreprocessing};
pub use trainable::{NetworkPlan, Storage, Trainable, device_of, read_tensors, segmenter_input, write_tensors};
pub use verify::{Tried, try_out};
