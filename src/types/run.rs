//! What one run found: the record that is kept in Postgres and rendered into DICOM results.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{CtAnalysis, Sha256Digest, SimilarCases, Uid};

/// What everything touched by an `untrained` bundle says.
pub const UNTRAINED_NOTICE: &str = "UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING";

/// A coded concept (PS3.3 section 8.8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// Code Value; longer than 16 characters it is written as Long Code Value.
    pub value: String,
    /// Coding Scheme Designator.
    pub scheme: String,
    /// Code Meaning, at most 64 characters.
    pub meaning: String,
}

/// How far a bundle's weights may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BundleStatus {
    /// Random weights: gates are reported only, everything says [`UNTRAINED_NOTICE`].
    Untrained,
    /// Trained, not validated at this site: gates are enforced, the decision is Undetermined.
    Unvalidated,
    /// Validated: may say Present or Absent.
    Validated,
}

/// How urgent a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPriority {
    /// In the order of arrival.
    #[default]
    Routine,
    /// Before everything that is routine.
    Stat,
}

impl RunPriority {
    /// The name used in configuration and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routine => "routine",
            Self::Stat => "stat",
        }
    }

    /// The priority of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Routine, Self::Stat].into_iter().find(|priority| priority.name() == name)
    }
}

/// One class of a bundle's classifiers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassDefinition {
    /// Short label for people, such as `COVID-19`.
    pub label: String,
    /// Finding code of the class.
    pub code: Code,
}

/// One network of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberIdentity {
    /// Unique in the bundle, such as `resnet50`.
    pub name: String,
    /// Architecture, such as `resnet50`, `vgg16`, `unet`.
    pub architecture: String,
    /// Version of the weights.
    pub version: String,
    /// Digest of the weights file.
    pub weights_sha256: Sha256Digest,
}

/// Which algorithm made a result, as recorded with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleIdentity {
    /// Bundle name.
    pub name: String,
    /// Bundle version.
    pub version: String,
    /// How far to believe it.
    pub status: BundleStatus,
    /// Digest over manifest and weights.
    pub digest: Sha256Digest,
    /// Classes, in the order of the networks' outputs.
    pub classes: Vec<ClassDefinition>,
    /// Index into `classes` of the class that threshold, decision and heat map are about.
    pub target_class_idx: usize,
    /// Operating threshold on the fused output of the target class, 0 to 1. Of a bundle that outlines lesions that output is
    /// 1 where its rule is satisfied and 0 elsewhere.
    pub threshold: f64,
    /// Of a bundle that outlines lesions: the output, 0 to 1, from which on a pixel is lesion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixel_threshold: Option<f64>,
    /// Outputs from the first to below the second number decide nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grey_zone: Option<[f64; 2]>,
    /// Fusion rule, such as `mean_prob`.
    pub fusion: String,
    /// Calibration id, `None` when uncalibrated.
    pub calibration: Option<String>,
    /// Cited performance of the reference publication, with n and interval; empty when there is none.
    pub reference_performance: String,
    /// The lung segmenter; `None` where a method without weights finds the lungs.
    pub segmenter: Option<MemberIdentity>,
    /// The classifiers; none in a bundle that only measures.
    pub members: Vec<MemberIdentity>,
}

impl BundleIdentity {
    /// Every network that has weights, the segmenter first.
    pub fn networks(&self) -> impl Iterator<Item = &MemberIdentity> {
        self.segmenter.iter().chain(&self.members)
    }

    /// Whether an output of the target class lies where nothing is decided.
    #[must_use]
    pub fn is_in_grey_zone(&self, output: f64) -> bool {
        self.grey_zone.is_some_and(|[low, high]| low <= output && output < high)
    }
}

/// One source image, as the analysis and the results need to name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceImage {
    /// (0008,0016)
    pub sop_class_uid: Uid,
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// (0020,000E)
    pub series_instance_uid: Uid,
    /// (0008,0060), such as `DX`
    pub modality: String,
    /// Where the archive keeps it.
    pub archive_key: String,
    /// Digest of the data set as received.
    pub sha256: Sha256Digest,
}

/// Why an image, or a whole study, was not analysed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// No image of a kind the pipeline reads.
    NoSuitableImage,
    /// SOP class, photometric interpretation or presentation intent the pipeline does not read.
    UnsupportedImage,
    /// The pixel data could not be decoded.
    Undecodable,
    /// Not a frontal view.
    ViewNotFrontal,
    /// Younger than the bundle allows.
    AgeOutOfScope,
    /// The lung mask failed its quality check.
    LungMask,
    /// Not enough contrast or pixels.
    ImageQuality,
    /// Unlike the images that the bundle was trained on.
    OutOfDistribution,
    /// The members of the ensemble contradict one another.
    MemberDisagreement,
    /// A localizer of a CT examination.
    Localizer,
    /// Position, orientation or spacing of a CT image is not stated.
    GeometryMissing,
    /// CT images of one series differ in matrix, spacing, orientation or frame of reference.
    MixedGeometry,
    /// CT images are not axial.
    NotAxial,
    /// The gantry was tilted: the stack is sheared.
    GantryTilt,
    /// Slices are missing in a CT series.
    SliceGap,
    /// CT images lie at the same position and differ.
    DuplicatePosition,
    /// The same CT image is there twice.
    IdenticalImage,
    /// The distances between CT slices vary.
    UnevenSpacing,
    /// Too few CT slices, or too low a stack, for a chest.
    TooFewSlices,
    /// Another series or acquisition of the study was measured.
    OtherSeriesChosen,
    /// The analysis failed for a technical reason after all its attempts.
    ProcessingFailure,
}

impl ReasonCode {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::NoSuitableImage,
        Self::UnsupportedImage,
        Self::Undecodable,
        Self::ViewNotFrontal,
        Self::AgeOutOfScope,
        Self::LungMask,
        Self::ImageQuality,
        Self::OutOfDistribution,
        Self::MemberDisagreement,
        Self::Localizer,
        Self::GeometryMissing,
        Self::MixedGeometry,
        Self::NotAxial,
        Self::GantryTilt,
        Self::SliceGap,
        Self::DuplicatePosition,
        Self::IdenticalImage,
        Self::UnevenSpacing,
        Self::TooFewSlices,
        Self::OtherSeriesChosen,
        Self::ProcessingFailure,
    ];

    /// The reason with this [`id`](Self::id).
    #[must_use]
    pub fn from_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.id() == id)
    }

    /// The machine-readable id that reports and the status page show.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::NoSuitableImage => "input.no_suitable_image",
            Self::UnsupportedImage => "input.unsupported_image",
            Self::Undecodable => "input.undecodable",
            Self::ViewNotFrontal => "input.view.not_frontal",
            Self::AgeOutOfScope => "input.age.out_of_scope",
            Self::LungMask => "quality.lung_mask",
            Self::ImageQuality => "quality.image",
            Self::OutOfDistribution => "input.out_of_distribution",
            Self::MemberDisagreement => "ensemble.disagreement",
            Self::Localizer => "input.ct.localizer",
            Self::GeometryMissing => "input.ct.geometry_missing",
            Self::MixedGeometry => "input.ct.mixed_geometry",
            Self::NotAxial => "input.ct.not_axial",
            Self::GantryTilt => "input.ct.gantry_tilt",
            Self::SliceGap => "input.ct.slice_gap",
            Self::DuplicatePosition => "input.ct.duplicate_position",
            Self::IdenticalImage => "input.ct.identical_image",
            Self::UnevenSpacing => "input.ct.uneven_spacing",
            Self::TooFewSlices => "input.ct.too_few_slices",
            Self::OtherSeriesChosen => "input.ct.other_series_chosen",
            Self::ProcessingFailure => "processing.failure",
        }
    }
}

/// A run that shows no score, with its reason: a result in its own right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotAnalysed {
    /// Coded reason.
    pub reason: ReasonCode,
    /// What was expected, what was found; one sentence without patient data.
    pub words: String,
    /// The images that were looked at.
    pub sources: Vec<SourceImage>,
}

/// An image of the study that was left out, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedImage {
    /// Which one.
    pub source: SourceImage,
    /// Coded reason.
    pub reason: ReasonCode,
    /// One sentence without patient data.
    pub words: String,
}

/// One check of the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateResult {
    /// Such as `lung_mask.area`, `header.view`, `header.age`.
    pub id: String,
    /// The check's verdict.
    pub passed: bool,
    /// Whether failing it stops the analysis (`false` for `untrained` bundles).
    pub enforced: bool,
    /// The reason that applies when it fails.
    pub reason: ReasonCode,
    /// What was measured against which limit, without patient data.
    pub words: String,
}

/// What one classifier said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberScore {
    /// Name of the member in the bundle.
    pub name: String,
    /// Output per class, 0 to 1; empty when the member failed.
    pub probabilities: Vec<f64>,
    /// Why it failed.
    pub failure: Option<String>,
}

impl MemberScore {
    /// Whether all that did not fail give every class the same output, as networks do that do not know.
    #[must_use]
    pub fn say_nothing(members: &[Self]) -> bool {
        let mut answered =
            members.iter().filter(|member| member.failure.is_none() && member.probabilities.len() > 1).peekable();
        let says_nothing = |member: &Self| member.probabilities.windows(2).all(|pair| pair.first() == pair.last());
        answered.peek().is_some() && answered.all(says_nothing)
    }
}

/// The part of the canvas (or slice) that a network saw, in units of its sides, from its left and top edge. It may reach
/// beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// Left edge.
    pub left: f64,
    /// Top edge.
    pub top: f64,
    /// Width, above 0.
    pub width: f64,
    /// Height, above 0.
    pub height: f64,
}

impl Frame {
    /// The whole canvas.
    pub const WHOLE: Self = Self { left: 0.0, top: 0.0, width: 1.0, height: 1.0 };

    fn is_whole(&self) -> bool {
        *self == Self::WHOLE
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::WHOLE
    }
}

/// A class-activation map on the grid of the last feature map, over the part of the model canvas that the network saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeatMap {
    /// Grid rows.
    pub rows: usize,
    /// Grid columns.
    pub columns: usize,
    /// Row-major, 0 to 1 relative to the maximum positive activation; all zero when nothing was positive.
    pub values: Vec<f32>,
    /// The maximum activation before scaling: a map of a tiny maximum shows noise.
    pub maximum_activation: f32,
    /// Such as `cam` or `hirescam`; for the fused map `mean of members`.
    pub method: String,
    /// Where on the canvas it lies: there is no heat beyond it.
    #[serde(default, skip_serializing_if = "Frame::is_whole")]
    pub frame: Frame,
}

/// The lung mask on the segmenter's canvas (the padded square, in the same frame as the heat map).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LungMask {
    /// Canvas side in pixels.
    pub side_pixels: u32,
    /// 8-bit grey PNG in base64: 0 background, 1 right lung (left side of the picture), 2 left lung.
    pub png_base64: String,
    /// Share of the image (not of the padding) that is lung, 0 to 1.
    pub area_fraction: f64,
}

/// How the source image lies on the square canvas of side 1: `canvas = (source + pad) / side`, in source pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Rows of the source image.
    pub source_rows: u32,
    /// Columns of the source image.
    pub source_columns: u32,
    /// Side of the padded square, in source pixels.
    pub side: u32,
    /// Rows of padding above.
    pub pad_top: u32,
    /// Columns of padding at the left.
    pub pad_left: u32,
}

/// What was found on one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageAnalysis {
    /// Which image.
    pub source: SourceImage,
    /// How it lies on the canvas.
    pub placement: Placement,
    /// Every check, passed or not.
    pub gates: Vec<GateResult>,
    /// Every member, failed or not, in the bundle's order.
    pub members: Vec<MemberScore>,
    /// Fused output per class, 0 to 1.
    pub fused: Vec<f64>,
    /// Largest minus smallest member output for the target class.
    pub member_spread: f64,
    /// The decision at the threshold; Undetermined unless the bundle is validated.
    pub decision: Decision,
    /// `false` when the fused output is below the threshold: the map is then not an indication.
    pub localised: bool,
    /// Fused map of the target class.
    pub heat_map: HeatMap,
    /// Map of each member that ran: (member name, map).
    pub member_heat_maps: Vec<(String, HeatMap)>,
    /// The lungs.
    pub lung_mask: LungMask,
    /// Share of the right lung field where the heat map is at least half its maximum, 0 to 1.
    pub right_lung_heat_fraction: Option<f64>,
    /// The same of the left lung field.
    pub left_lung_heat_fraction: Option<f64>,
    /// Share of the heat that lies in the lungs, 0 to 1; `None` without heat and in runs of versions that did not measure it.
    #[serde(default)]
    pub lung_heat_fraction: Option<f64>,
    /// Images like this one; `None` in runs of versions that did not search.
    #[serde(default)]
    pub similar_cases: Option<SimilarCases>,
}

/// The decision on one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// At or above the threshold, validated bundle.
    Present,
    /// Below the threshold, validated bundle.
    Absent,
    /// No decision is made.
    Undetermined,
}

/// What the chest radiograph pipeline found in a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CxrAnalysis {
    /// One entry for each analysed image, at least one.
    pub images: Vec<ImageAnalysis>,
    /// Images of the study that were left out.
    pub excluded: Vec<ExcludedImage>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunOutcome {
    /// Scores and maps.
    Analysed(CxrAnalysis),
    /// Measurements of a chest CT.
    CtMeasured(Box<CtAnalysis>),
    /// No score, and why.
    NotAnalysed(NotAnalysed),
}

/// Who this installation is, as results name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Made once, kept in the data folder and in Postgres.
    pub id: Uuid,
    /// (0018,1002): derived from `id`.
    pub device_uid: Uid,
    /// (0008,1010), at most 16 characters.
    pub station_name: String,
    /// (0008,0080); may be empty.
    pub institution_name: String,
}

/// The document that a new revision replaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PredecessorDocument {
    /// (0008,0016)
    pub sop_class_uid: Uid,
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// (0020,000E)
    pub series_instance_uid: Uid,
}

/// The reports of an earlier revision that a destination has: what new ones replace there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Predecessors {
    /// The report.
    pub report: Option<PredecessorDocument>,
    /// The same in sentences.
    pub text_companion: Option<PredecessorDocument>,
}

/// Everything that rendering needs besides the headers of the source images. Rendering the same record twice
/// gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run.
    pub run_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: Uid,
    /// Revision of the workup.
    pub revision: i32,
    /// Identity of the results: SHA-256 over installation, workup, sources, bundle, configuration, revision.
    pub result_key: Sha256Digest,
    /// Digest of the configuration the run used.
    pub configuration_sha256: Sha256Digest,
    /// Who we are.
    pub installation: Installation,
    /// Start of the analysis; every generated date and time in the results.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Which algorithm.
    pub bundle: BundleIdentity,
    /// What its networks computed with, in the bundle's order: name, devices and precision, such as `resnet50 cuda:0 float16`.
    /// Empty without networks, and of runs of versions that did not note it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub computed_with: Vec<String>,
    /// What it found.
    pub outcome: RunOutcome,
}
