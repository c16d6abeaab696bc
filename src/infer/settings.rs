//! What a bundle's manifest prescribes for the pipeline.

use std::ops::RangeInclusive;

use super::gates::FeatureGateSettings;
use crate::{
    imaging::{DecodeLimits, classifier_input::Recipe},
    nn::{GatePolicies, LungLimits, PictureLimits},
};

/// How images are prepared and judged; from the bundle's manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineSettings {
    /// How each input of each member is made, in the bundle's order of members.
    pub member_inputs: Vec<Vec<Recipe>>,
    /// Side of the segmenter's square input in pixels.
    pub segmenter_side_pixels: u32,
    /// Percentile (0 to 100) of the grey values that becomes 0.
    pub percentile_low: f64,
    /// Percentile (0 to 100) of the grey values that becomes 1.
    pub percentile_high: f64,
    /// Whether the object's VOI window or table is applied before.
    pub use_voi_window: bool,
    /// Limits of the gates.
    pub gates: GateSettings,
    /// Memory that decoding one image may take.
    pub decode_limits: DecodeLimits,
    /// How similar cases are found.
    pub similar_cases: SimilarCaseSettings,
}

/// How similar cases are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimilarCaseSettings {
    /// What the vectors are made of.
    pub method: EmbeddingMethod,
    /// How many cases of the reference library are named, 1 to 20.
    pub count: usize,
    /// Memory that the vectors of the reference libraries may take together.
    pub maximum_index_bytes: u64,
}

impl Default for SimilarCaseSettings {
    /// All members, 4 cases, 2 GiB.
    fn default() -> Self {
        Self { method: EmbeddingMethod::AllMembers, count: 4, maximum_index_bytes: 2 << 30 }
    }
}

/// What an embedding is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingMethod {
    /// The features of every member, each scaled to length 1, one after the other, scaled again.
    AllMembers,
    /// The features of the member of this name, scaled to length 1.
    Member(String),
}

impl EmbeddingMethod {
    /// The name that is kept with every vector: those of different names are never compared.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::AllMembers => "all-members".to_owned(),
            Self::Member(name) => format!("member:{name}"),
        }
    }
}

/// Limits of the input checks.
#[derive(Debug, Clone, PartialEq)]
pub struct GateSettings {
    /// Youngest patient in years.
    pub minimum_age_years: u32,
    /// Views that are read, such as `PA`; an empty text accepts images that do not state theirs.
    pub accepted_views: Vec<String>,
    /// Share of the image that the lungs may cover, 0 to 1.
    pub lung_area_fraction: RangeInclusive<f64>,
    /// Area of the left lung divided by that of the right.
    pub lung_area_ratio: RangeInclusive<f64>,
    /// Fewest rows of the source image.
    pub minimum_rows: u32,
    /// Fewest columns of the source image.
    pub minimum_columns: u32,
    /// What becomes of images of a kind that may or may not be meant.
    pub policies: GatePolicies,
    /// Limits of the picture's grey values.
    pub picture: PictureLimits,
    /// Limits of the lung mask's shape.
    pub lungs: LungLimits,
    /// Largest difference between the members' outputs for the target class; 1 lets everything pass.
    pub maximum_member_spread: f64,
    /// The distance from the training images that is let pass; `None` when nothing is compared.
    pub features: Option<FeatureGateSettings>,
}

/// Settings that no image could be analysed with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the bundle's manifest cannot be used: {setting} is {value}, expected {expected}")]
pub struct SettingsProblem {
    /// Which setting.
    pub setting: &'static str,
    /// What it is.
    pub value: String,
    /// What it must be.
    pub expected: &'static str,
}

impl PipelineSettings {
    /// Checks what would otherwise fail image by image.
    ///
    /// # Errors
    /// The first problem found.
    pub fn check(&self) -> Result<(), SettingsProblem> {
        let problem = |setting, value: String, expected| Err(SettingsProblem { setting, value, expected });
        let recipes = || self.member_inputs.iter().flatten();
        let classifiers = recipes().map(|recipe| ("image_side_pixels", recipe.side_pixels));
        for (setting, side) in classifiers.chain([("segmenter_side_pixels", self.segmenter_side_pixels as usize)]) {
            if !(16..=4096).contains(&side) {
                return problem(setting, side.to_string(), "16 to 4096");
            }
        }
        if !(1..=20).contains(&self.similar_cases.count) {
            return problem("similar_cases.count", self.similar_cases.count.to_string(), "1 to 20");
        }
        let (low, high) = (self.percentile_low, self.percentile_high);
        if !(0.0 <= low && low < high && high <= 100.0) {
            return problem("percentile_low to percentile_high", format!("{low} to {high}"), "rising, within 0 to 100");
        }
        for Recipe { mean, std, .. } in recipes() {
            if std.iter().any(|std| !(std.is_finite() && *std > 0.0)) || mean.iter().any(|mean| !mean.is_finite()) {
                return problem("mean, std", format!("{mean:?}, {std:?}"), "finite, std above 0");
            }
        }
        Ok(())
    }
}
