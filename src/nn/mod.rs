//! Networks: the lung segmenter, the classifiers, their class-activation maps, and the bundles that hold
//! their weights.
//!
//! Start from [`Bundle::open`] (a folder with `manifest.toml` and weights, checked) and [`Ensemble::load`] (its
//! networks, each owned by one thread). [`init_untrained_bundle`] writes a bundle with seeded weights.
//!
//! Architecture invariant: with `train` the only room that names `tch`; no tensor leaves it, what goes in and
//! out is plain data ([`Plane`], [`Planes`], [`MemberOutput`]). It knows nothing of DICOM, of studies, or of the
//! database.

mod architecture;
mod bundle;
mod classifier;
mod ensemble;
mod error;
mod fusion;
#[cfg(test)]
mod golden_tests;
mod import;
mod init;
mod layers;
mod manifest;
mod optimised;
mod owner;
mod plane;
mod resnet;
mod script;
pub mod seeded;
mod unet;
mod verify;
mod vgg;
mod weights;

pub use architecture::{Architecture, scaled_channels};
pub use bundle::{Bundle, BundleError, MANIFEST_FILE_NAME, MAX_MANIFEST_BYTES, MAX_WEIGHTS_BYTES};
pub use ensemble::{ActivationMap, Ensemble, EnsembleOptions, MemberOutput};
pub use error::NnError;
pub use fusion::fuse;
pub use import::{ImportError, ImportTarget, Imported, import};
pub use init::{
    CT_BUNDLE_NAME, InitError, UNTRAINED_BUNDLE_NAME, UntrainedOptions, init_ct_bundle, init_untrained_bundle,
};
pub use manifest::{
    Calibration, ChannelNormalisation, ChannelOrder, Classification, Equalisation, Fusion, Gates, Input, Manifest,
    MaskMode, Member, MemberArchitecture, Performance, Preprocessing, Prior, ResizeMode, Segmenter,
    SegmenterArchitecture, SegmenterNormalisation, VoiMode, Whose,
};
pub use plane::{Device, DeviceError, Plane, Planes};
pub use verify::{Tried, try_out};
