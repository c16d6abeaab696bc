//! Pipelines: from the stored images of a study to a finding, or to a reason why there is none.
//!
//! Start from [`CtPipeline`] for CT (series → volume → lungs → measurements → networks, if the bundle has some), from [`CxrPipeline`] for
//! radiographs: header gates → decoding → picture gates → lungs → lung gates → ensemble → gates on its answers → heat maps →
//! decision. The networks come in behind the trait [`Models`].
//!
//! Architecture invariant: this room knows no SQL, writes no DICOM and holds no tensors. What it says about an image
//! (`words`) holds no patient data: never a name, a date or an exact age.

mod adapter;
pub mod compare;
mod ct;
mod ct_lesions;
mod ct_networks;
#[cfg(test)]
mod ct_tests;
mod cxr;
mod examine;
mod gates;
pub mod library;
mod loaded;
mod models;
pub mod nearest;
mod on_demand;
pub mod pictures;
pub mod pipeline;
mod rendering;
mod room;
mod scores;
mod settings;
#[cfg(test)]
mod tests;
mod thread;
pub mod worker;

pub use adapter::{NnModels, lung_settings, pipeline_settings, recipe};
pub use ct::CtPipeline;
pub use ct_networks::CtNetworks;
pub use cxr::{Analysis, CxrPipeline, GateCheck, InferError, LoadedImage, Refused, check_gates_before_networks};
pub use examine::{Examination, Examined, Judgement};
pub use gates::FeatureGateSettings;
pub use models::{ActivationMap, MemberOutput, ModelError, Models};
pub use on_demand::{MapWish, OnDemandError};
pub use pipeline::Pipeline;
pub use settings::{EmbeddingMethod, GateSettings, PipelineSettings, SettingsProblem, SimilarCaseSettings};
