//! `manifest.toml`: what a bundle says of itself. Every key is described in `models/README.md`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    architecture::Architecture,
    attention_vgg::AttentionOptions,
    classifier::ClassifierOptions,
    covnet::BatchNormMode,
    explain::Explanation,
    gates::{CtGates, Gates},
    load::MAX_INPUT,
    precision::{MAX_TOLERANCE, NetworkPrecision, Precision},
    r231,
    scan_manifest::{Aggregation, LesionRule, ScanArchitecture, ScanPreprocessing, is_default_batch_norm},
    unet,
};
use crate::types::{BundleStatus, ClassDefinition, Sha256Digest};

/// A validated manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Bundle name: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Bundle version, at most 64 characters.
    pub version: String,
    /// How far the weights may be believed.
    pub status: BundleStatus,
    /// What the bundle is, in one or two sentences.
    pub description: String,
    /// Licence of the weights.
    pub licence: String,
    /// Which data trained the weights, with their known biases.
    pub training_data: String,
    /// Published performance with n and interval, and whose it is; may be empty.
    pub reference_performance: String,
    /// Measured performance, each figure with its n and interval; may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub performance: Vec<Performance>,
    /// What the bundle reads, and how an image becomes its networks' input.
    pub input: Input,
    /// What the outputs mean; absent in bundles that only measure or segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// How similar cases are found; `image2d` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similar_cases: Option<SimilarCasesSection>,
    /// The lung segmenter; absent where a method without weights finds the lungs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmenter: Option<Segmenter>,
    /// The classifiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
}

/// How similar cases are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimilarCasesSection {
    /// The classifier whose features are compared; without it those of all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// How many cases of the reference library are named, 1 to 20.
    #[serde(default = "SimilarCasesSection::default_count")]
    pub count: u32,
}

impl SimilarCasesSection {
    const fn default_count() -> u32 {
        4
    }
}

/// A measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Performance {
    /// Such as `sensitivity`, `specificity`, `roc_auc`, `dice`.
    pub measure: String,
    /// The figure, 0 to 1.
    pub value: f64,
    /// Lower and upper end of its interval, 0 to 1.
    pub interval: [f64; 2],
    /// Confidence of the interval in percent, such as 95.
    pub confidence_percent: f64,
    /// Patients or images that it was measured on.
    pub n: u64,
    /// What was counted, of which data: `images of 2 hospitals, patients not seen in training`.
    pub data: String,
    /// Whose figure it is.
    pub whose: Whose,
    /// Where it is written: a citation, a report of `hilum evaluate`.
    pub reference: String,
}

/// Whose figure a performance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// Of a publication, measured with its own weights.
    Publication,
    /// Measured with these weights by those who made the bundle.
    Makers,
    /// Measured with these weights at the site that uses them.
    Site,
}

/// What a bundle reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Single frontal chest radiographs.
    Image2d {
        /// How an image becomes the classifiers' input.
        preprocessing: Preprocessing,
        /// What the input must satisfy.
        gates: Gates,
    },
    /// A CT series that is measured: lung volumes and densities, with a network for the lungs or without any.
    CtMeasurement {
        /// What the scan must satisfy.
        #[serde(default, skip_serializing_if = "CtGates::is_default")]
        gates: CtGates,
    },
    /// The slices of a chest CT, one by one through networks, beside the measurements.
    Slices2d {
        /// What a network sees of each slice.
        preprocessing: ScanPreprocessing,
        /// How slices become one output; COVNet has its own rule.
        aggregation: Aggregation,
        /// What the scan must satisfy.
        #[serde(default, skip_serializing_if = "CtGates::is_default")]
        gates: CtGates,
    },
    /// A chest CT as one volume, beside the measurements.
    Volume3d {
        /// What a network sees of the volume.
        preprocessing: ScanPreprocessing,
        /// What the scan must satisfy.
        #[serde(default, skip_serializing_if = "CtGates::is_default")]
        gates: CtGates,
    },
    /// The slices of a chest CT, in which networks outline lesions one by one, beside the measurements.
    Seg2d {
        /// What a network sees of each slice.
        preprocessing: ScanPreprocessing,
        /// How lesions become an answer about the scan.
        rule: LesionRule,
        /// What is outlined: the only class.
        lesion: ClassDefinition,
        /// What the scan must satisfy.
        #[serde(default, skip_serializing_if = "CtGates::is_default")]
        gates: CtGates,
    },
}

impl Input {
    /// The name used in manifests.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Image2d { .. } => "image2d",
            Self::CtMeasurement { .. } => "ct_measurement",
            Self::Slices2d { .. } => "slices2d",
            Self::Volume3d { .. } => "volume3d",
            Self::Seg2d { .. } => "seg2d",
        }
    }

    /// Whether it reads chest CT.
    #[must_use]
    pub const fn is_ct(&self) -> bool {
        !matches!(self, Self::Image2d { .. })
    }

    /// What networks see of a chest CT.
    #[must_use]
    pub const fn scan(&self) -> Option<&ScanPreprocessing> {
        match self {
            Self::Slices2d { preprocessing, .. }
            | Self::Volume3d { preprocessing, .. }
            | Self::Seg2d { preprocessing, .. } => Some(preprocessing),
            Self::Image2d { .. } | Self::CtMeasurement { .. } => None,
        }
    }

    /// What a chest CT must satisfy.
    #[must_use]
    pub const fn ct_gates(&self) -> Option<&CtGates> {
        match self {
            Self::Image2d { .. } => None,
            Self::CtMeasurement { gates }
            | Self::Slices2d { gates, .. }
            | Self::Volume3d { gates, .. }
            | Self::Seg2d { gates, .. } => Some(gates),
        }
    }
}

/// What the networks' outputs mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classification {
    /// Index into `classes` of the class that threshold, decision and heat map are about.
    pub target_class_idx: usize,
    /// Operating threshold on the fused, calibrated output of the target class, 0 to 1.
    pub threshold: f64,
    /// Outputs from the first to below the second number decide nothing; the threshold lies between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grey_zone: Option<[f64; 2]>,
    /// How the members' outputs become one.
    pub fusion: Fusion,
    /// The class of each network output, many to one (class decomposition, as DeTraC's); absent: one output for each
    /// class, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_map: Option<Vec<usize>>,
    /// How the fused output is calibrated.
    pub calibration: Calibration,
    /// Shift from the prevalence at training to that of the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<Prior>,
    /// The classes, at least two.
    pub classes: Vec<ClassDefinition>,
}

impl Classification {
    /// How many outputs each network has.
    #[must_use]
    pub fn n_outputs(&self) -> usize {
        self.label_map.as_ref().map_or(self.classes.len(), Vec::len)
    }

    /// The class of each network output.
    #[must_use]
    pub fn class_of_output(&self) -> Vec<usize> {
        self.label_map.clone().unwrap_or_else(|| (0..self.classes.len()).collect())
    }
}

/// How the members' outputs become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// Mean of the members' probabilities.
    MeanProb,
    /// Softmax of the mean of the members' logits.
    MeanLogit,
    /// Share of the members whose largest output is the class; when the most voted classes tie, as `mean_prob`.
    Vote,
}

impl Fusion {
    /// The name used in manifests and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MeanProb => "mean_prob",
            Self::MeanLogit => "mean_logit",
            Self::Vote => "vote",
        }
    }
}

/// How the fused output is calibrated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibration {
    /// Not at all.
    None {},
    /// Temperature scaling (Guo et al. 2017, arXiv:1706.04599) of the fused output.
    Temperature {
        /// Divides the fused logits; above 0.
        temperature: f64,
        /// Names the data and the site of the fit, for the records.
        id: String,
        /// Images that it was fitted on.
        n: u64,
        /// When, as YYYY-MM-DD.
        date: String,
    },
    /// Platt scaling of the target class against the rest: sigmoid of `slope` times the logit of the fused output, plus
    /// `intercept`. The other classes keep their proportions.
    Platt {
        /// Above 0.
        slope: f64,
        /// Any number.
        intercept: f64,
        /// Names the data and the site of the fit, for the records.
        id: String,
        /// Images that it was fitted on.
        n: u64,
        /// When, as YYYY-MM-DD.
        date: String,
    },
}

impl Calibration {
    /// The calibration id, `None` when uncalibrated.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::None {} => None,
            Self::Temperature { id, .. } | Self::Platt { id, .. } => Some(id),
        }
    }
}

/// Shift from the prevalence at training to that of the site: the odds of the target class are multiplied by the ratio of
/// the two prevalences' odds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    /// Prevalence of the target class at training, between 0 and 1.
    pub training_prevalence: f64,
    /// Prevalence of the target class at the site, between 0 and 1.
    pub site_prevalence: f64,
}

/// How an image becomes the classifiers' input, in the order of the keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Whether the VOI LUT or window of the object is applied.
    pub voi: VoiMode,
    /// Percentile of the samples that becomes 0.
    pub percentile_low: f64,
    /// Percentile of the samples that becomes 1.
    pub percentile_high: f64,
    /// Contrast equalisation.
    #[serde(default)]
    pub equalisation: Equalisation,
    /// Share of the rows that is cut off at the top, 0 to 0.5.
    #[serde(default)]
    pub top_crop_fraction: f64,
    /// How the picture becomes a square.
    #[serde(default)]
    pub resize: ResizeMode,
    /// Side of the square input in pixels, 32 to 1024.
    pub image_side_pixels: u32,
    /// What the lung mask does to the input.
    pub mask_mode: MaskMode,
    /// Margin around the lungs with `mask_mode = "crop"`, as a share of their box, 0 to 1.
    #[serde(default = "Preprocessing::default_crop_margin")]
    pub crop_margin_fraction: f64,
    /// How the channels are normalised.
    #[serde(default)]
    pub normalisation: ChannelNormalisation,
    /// What 0 and 1 of the grey values become before `mean` and `std`; they stay without it, as a lung mask does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f32; 2]>,
    /// Subtracted from each channel.
    pub mean: [f32; 3],
    /// Divides each channel; above 0.
    pub std: [f32; 3],
    /// Order in which the network takes the channels.
    #[serde(default)]
    pub channel_order: ChannelOrder,
    /// Whether the network takes the first channel only.
    #[serde(default)]
    pub single_channel: bool,
}

impl Preprocessing {
    const fn default_crop_margin() -> f64 {
        0.05
    }

    /// Whether both begin with the same grey values.
    #[expect(clippy::float_cmp, reason = "the same number written twice")]
    fn is_same_picture(&self, other: &Self) -> bool {
        self.voi == other.voi
            && self.percentile_low == other.percentile_low
            && self.percentile_high == other.percentile_high
    }

    /// Number of channels, rows and columns of the input.
    #[must_use]
    pub const fn shape(&self) -> [usize; 3] {
        let side = self.image_side_pixels as usize;
        [if self.single_channel { 1 } else { 3 }, side, side]
    }
}

/// Contrast equalisation of the picture, after the percentiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Equalisation {
    /// None.
    #[default]
    None,
    /// Of the whole picture's histogram, on 256 grey levels.
    Histogram,
    /// Contrast limited, by tiles, on 256 grey levels, as OpenCV defines it.
    Clahe {
        /// Limit of a histogram bin relative to a flat histogram, above 0 up to 40.
        clip_limit: f64,
        /// Tiles in each direction, 1 to 64.
        tiles: u32,
    },
}

/// How the picture becomes a square.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// Black at the shorter sides.
    #[default]
    Pad,
    /// The middle square.
    Crop,
    /// Both sides scaled to fit: chests are distorted.
    Stretch,
}

/// How the channels are normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelNormalisation {
    /// Minus `mean`, divided by `std`.
    #[default]
    MeanStd,
    /// Grey minus the picture's own mean, divided by its own standard deviation, before `mean` and `std`.
    ImageZScore,
}

/// Order in which the network takes the channels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelOrder {
    /// First, second, third.
    #[default]
    Rgb,
    /// Third, second, first, as OpenCV reads pictures; `mean` and `std` stay with their channels.
    Bgr,
}

/// Whether the VOI LUT or window of the object is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoiMode {
    /// Ignored.
    None,
    /// Applied when the object has one.
    Window,
}

/// What the lung mask does to the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskMode {
    /// Nothing: three equal grey channels.
    None,
    /// It is the third channel.
    Channel3,
    /// Grey outside the lungs is halved: a soft crop.
    Overlay,
    /// Grey outside the lungs is black.
    Multiply,
    /// The picture is cut to the lungs' box with a margin, and padded to a square.
    Crop,
}

/// The lung segmenter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segmenter {
    /// Which network.
    pub architecture: SegmenterArchitecture,
    /// Factor on every channel count, above 0 up to 2.
    pub width: f64,
    /// Side of the square input in pixels: a multiple of 16, 32 to 1024.
    pub input_side_pixels: u32,
    /// How its input is normalised.
    pub normalisation: SegmenterNormalisation,
    /// Weights file, a plain name in the bundle's folder.
    pub weights: String,
    /// Digest of the weights file.
    pub sha256: Sha256Digest,
    /// Version of the weights.
    pub version: String,
    /// With which numbers it computes on GPUs.
    #[serde(default, skip_serializing_if = "NetworkPrecision::is_default")]
    pub precision: NetworkPrecision,
}

impl Segmenter {
    /// Whether its weights are random numbers.
    #[must_use]
    pub fn is_untrained(&self) -> bool {
        self.version.starts_with(UNTRAINED_VERSION)
    }
}

/// Which network segments the lungs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmenterArchitecture {
    /// U-Net, layers and names as in `models/README.md`, of radiographs.
    Unet,
    /// lungmask's R231 (Hofmanninger et al. 2020), of CT slices.
    R231,
}

impl SegmenterArchitecture {
    /// The name used in manifests and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::R231 => "r231",
        }
    }

    /// The sides of its input are multiples of this.
    const fn side_multiple(self) -> usize {
        match self {
            Self::Unet => unet::SIDE_MULTIPLE,
            Self::R231 => r231::SIDE_MULTIPLE as usize,
        }
    }

    /// Whether a checkpoint's tensor of this name plays no part in inference and may be there or not.
    #[must_use]
    pub fn ignores_tensor(self, name: &str) -> bool {
        name.ends_with(".num_batches_tracked") || (self == Self::R231 && r231::R231::ignores(name))
    }

    /// How its input is normalised.
    pub(super) const fn normalisation(self) -> SegmenterNormalisation {
        match self {
            Self::Unet => SegmenterNormalisation::ImageZScore,
            Self::R231 => SegmenterNormalisation::HuRange,
        }
    }
}

/// How the segmenter's input is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmenterNormalisation {
    /// Minus the image's mean, divided by its standard deviation.
    ImageZScore,
    /// -1024 to 600 Hounsfield units become 0 to 1.
    HuRange,
}

/// One classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Unique in the bundle: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Which network.
    pub architecture: MemberArchitecture,
    /// Factor on every channel count, above 0 up to 2; 1.0 is the published network. TorchScript files have none.
    #[serde(default = "Member::full_width", skip_serializing_if = "Member::is_full_width")]
    pub width: f64,
    /// Its own preprocessing instead of the bundle's; a TorchScript file may take two inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Preprocessing>,
    /// Weights file, a plain name in the bundle's folder.
    pub weights: String,
    /// Digest of the weights file.
    pub sha256: Sha256Digest,
    /// Version of the weights.
    pub version: String,
    /// Whose mean and variance batch normalisation uses; COVNet only.
    #[serde(default, skip_serializing_if = "is_default_batch_norm")]
    pub batch_norm: BatchNormMode,
    /// What its outputs are.
    #[serde(default, skip_serializing_if = "OutputKind::is_default")]
    pub output: OutputKind,
    /// How its map of regions is computed, instead of by its architecture's first method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<MemberExplanation>,
    /// What the publication leaves open; `attention_vgg16` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionOptions>,
    /// With which numbers it computes on GPUs.
    #[serde(default, skip_serializing_if = "NetworkPrecision::is_default")]
    pub precision: NetworkPrecision,
}

impl Member {
    /// What it chooses of a classifier.
    pub(super) fn classifier_options(&self) -> ClassifierOptions {
        ClassifierOptions { attention: self.attention.unwrap_or_default(), explanation: self.method() }
    }

    /// The method that it names for its map.
    pub(super) const fn method(&self) -> Option<Explanation> {
        match self.explanation {
            Some(MemberExplanation::By(method)) => Some(method),
            Some(MemberExplanation::None) | None => None,
        }
    }

    /// Whether maps of it may be shown.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.explanation != Some(MemberExplanation::None)
    }

    const fn full_width() -> f64 {
        1.0
    }

    #[expect(clippy::trivially_copy_pass_by_ref, clippy::float_cmp, reason = "serde's signature; 1.0 is exact")]
    fn is_full_width(width: &f64) -> bool {
        *width == 1.0
    }
}

/// What the outputs of a member are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// A logit for each class, or for each entry of the label map: softmax makes probabilities of them.
    #[default]
    Softmax,
    /// One logit: its sigmoid is the probability of the target class, the rest that of the other one of two.
    Sigmoid,
}

impl OutputKind {
    /// The name used in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::Sigmoid => "sigmoid",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a member is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberExplanation {
    /// Not at all: no map of it is made or shown.
    None,
    /// By a map of this method.
    By(Explanation),
}

impl MemberExplanation {
    /// The name used in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::By(method) => method.name(),
        }
    }
}

impl Serialize for MemberExplanation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for MemberExplanation {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == Self::None.name() {
            return Ok(Self::None);
        }
        Explanation::named(&name).map(Self::By).ok_or_else(|| {
            let names: Vec<&str> = Explanation::ALL.into_iter().map(Explanation::name).collect();
            serde::de::Error::custom(format!(
                "unknown explanation `{name}`: give `none` or one of {}",
                names.join(", ")
            ))
        })
    }
}

/// Which network a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberArchitecture {
    /// One that Hilum defines; the file holds its tensors.
    Known(Architecture),
    /// One that Hilum defines and that looks at chest CT only.
    Scan(ScanArchitecture),
    /// A TorchScript file (`torch.jit.save`) that holds network and weights.
    TorchScript,
}

impl MemberArchitecture {
    /// The name used in manifests and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Known(architecture) => architecture.name(),
            Self::Scan(architecture) => architecture.name(),
            Self::TorchScript => "torch_script",
        }
    }

    /// The maps of regions that it offers, the default first; a TorchScript file gives its own or none.
    #[must_use]
    pub const fn explanations(self) -> &'static [Explanation] {
        match self {
            Self::Known(architecture) => architecture.explanations(),
            Self::Scan(architecture) => architecture.explanations(),
            Self::TorchScript => &[],
        }
    }

    /// All of them.
    fn all() -> impl Iterator<Item = Self> {
        let known = Architecture::ALL.into_iter().map(Self::Known);
        known.chain(ScanArchitecture::ALL.into_iter().map(Self::Scan)).chain([Self::TorchScript])
    }

    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::all().map(Self::name)
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|architecture| architecture.name() == name)
    }

    /// How the name of its weights file must end.
    const fn extension(self) -> &'static str {
        match self {
            Self::Known(_) | Self::Scan(_) => ".safetensors",
            Self::TorchScript => ".pt",
        }
    }
}

impl Serialize for MemberArchitecture {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for MemberArchitecture {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            serde::de::Error::custom(format!("unknown architecture `{name}`: give one of {}", names.join(", ")))
        })
    }
}

/// Largest width factor: four times torchvision's parameters.
const MAX_WIDTH: f64 = 2.0;

/// What may be subtracted from a channel of values from 0 to 1, and what may divide it: an input beyond a million is
/// refused.
pub(super) const MEAN: std::ops::RangeInclusive<f32> = -500.0..=500.0;
pub(super) const STD: std::ops::RangeInclusive<f32> = 0.001..=1000.0;

/// What grey values from 0 to 1 may become.
const RANGE: std::ops::RangeInclusive<f32> = -100_000.0..=100_000.0;

/// Begins the version of weights that are random numbers.
pub(super) const UNTRAINED_VERSION: &str = "untrained-";

/// Largest number of members and of classes.
const MAX_ENTRIES: usize = 64;

impl Manifest {
    /// Parses and validates. The error lists every problem with its remedy; of syntax errors, unknown keys and
    /// wrong types the TOML parser reports the first, with its line.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let manifest: Self = toml::from_str(text).map_err(|error| vec![error.to_string().trim_end().to_owned()])?;
        let problems = manifest.problems();
        if problems.is_empty() { Ok(manifest) } else { Err(problems) }
    }

    /// Everything that is wrong with the values.
    fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        problems.name("name", &self.name);
        problems.text("version", &self.version, 64, false);
        problems.text("description", &self.description, 4096, true);
        problems.text("licence", &self.licence, 1024, false);
        problems.text("training_data", &self.training_data, 4096, false);
        problems.text("reference_performance", &self.reference_performance, 4096, true);
        for (idx, performance) in self.performance.iter().enumerate() {
            performance.check(&format!("performance[{idx}]"), &mut problems);
        }
        match &self.input {
            Input::Image2d { preprocessing, gates } => {
                preprocessing.check("input.preprocessing", &mut problems);
                let members: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
                gates.check(&members, &mut problems);
                problems.check(self.segmenter.is_some(), || {
                    "`segmenter` is missing: bundles of the kind `image2d` bring their lung segmenter".to_owned()
                });
                // A lung segmenter alone finds lungs and classifies nothing.
                if self.classification.is_some() || !self.members.is_empty() {
                    self.check_members(&mut problems);
                }
            }
            Input::CtMeasurement { .. } => {
                for (key, is_there) in
                    [("classification", self.classification.is_some()), ("members", !self.members.is_empty())]
                {
                    problems.check(!is_there, || {
                        format!(
                            "`{key}` is there: a bundle of the kind `ct_measurement` has no classifiers; leave it out"
                        )
                    });
                }
            }
            Input::Slices2d { preprocessing, .. } | Input::Volume3d { preprocessing, .. } => {
                preprocessing.check(&mut problems);
                preprocessing.check_memory(&mut problems);
                self.check_members(&mut problems);
            }
            Input::Seg2d { preprocessing, rule, lesion, .. } => {
                preprocessing.check(&mut problems);
                rule.check(preprocessing.maximum_slices, &mut problems);
                problems.class("input.lesion", lesion);
                problems.check(self.classification.is_none(), || {
                    "`classification` is there: a bundle of the kind `seg2d` classifies nothing, `input.lesion` says what it \
                     outlines and `input.rule` what that means; leave it out"
                        .to_owned()
                });
                self.check_number_of_members(&mut problems);
                let misses_dense_lung = rule.lungs_only && self.segmenter.is_none();
                problems.check(!(misses_dense_lung && self.status == BundleStatus::Validated), || {
                    "`input.rule.lungs_only` is true, `status` `validated`, and there is no `[segmenter]`: lungs that are \
                     found by threshold leave out what holds no air, so that the densest lesions would not count; set it to \
                     false, or bring a network for the lungs"
                        .to_owned()
                });
            }
        }
        if let Some(gates) = self.input.ct_gates() {
            gates.check(&mut problems);
        }
        if let (Input::Slices2d { aggregation, .. }, Some(classification)) = (&self.input, &self.classification) {
            aggregation.check(classification.target_class_idx, &mut problems);
        }
        if let Some(classification) = &self.classification {
            classification.check(&mut problems);
        }
        if let Some(similar_cases) = &self.similar_cases {
            self.check_similar_cases(similar_cases, &mut problems);
        }
        self.check_networks(&mut problems);
        problems.0
    }

    fn check_similar_cases(&self, similar_cases: &SimilarCasesSection, problems: &mut Problems) {
        problems.check(!self.input.is_ct(), || {
            let kind = self.input.kind();
            format!("`similar_cases` is there: bundles of the kind `{kind}` find none; leave it out")
        });
        problems.check((1..=20).contains(&similar_cases.count), || {
            format!("`similar_cases.count` is {}: give 1 to 20", similar_cases.count)
        });
        if let Some(name) = &similar_cases.member {
            problems.check(self.members.iter().any(|member| member.name == *name), || {
                let names: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
                format!("`similar_cases.member` is `{name}`: give one of {}, or leave it out", names.join(", "))
            });
        }
    }

    /// Bundles with classifiers have some, and say what their outputs mean.
    fn check_members(&self, problems: &mut Problems) {
        problems.check(self.classification.is_some(), || {
            let kind = self.input.kind();
            format!("`classification` is missing: bundles of the kind `{kind}` say what their outputs mean")
        });
        self.check_number_of_members(problems);
    }

    fn check_number_of_members(&self, problems: &mut Problems) {
        problems.check((1..=MAX_ENTRIES).contains(&self.members.len()), || {
            format!("`members` has {} entries: give 1 to {MAX_ENTRIES}", self.members.len())
        });
    }

    fn check_segmenter(&self, segmenter: &Segmenter, problems: &mut Problems) {
        let (side, multiple) = (segmenter.input_side_pixels, segmenter.architecture.side_multiple());
        problems.check((32..=1024).contains(&side) && (side as usize).is_multiple_of(multiple), || {
            format!("`segmenter.input_side_pixels` is {side}: give a multiple of {multiple} from 32 to 1024")
        });
        let expected = if self.input.is_ct() { SegmenterArchitecture::R231 } else { SegmenterArchitecture::Unet };
        problems.check(segmenter.architecture == expected, || {
            format!(
                "`segmenter.architecture` is `{}`: the lungs in a bundle of the kind `{}` are found by `{}`",
                segmenter.architecture.name(),
                self.input.kind(),
                expected.name()
            )
        });
        problems.check(segmenter.normalisation == segmenter.architecture.normalisation(), || {
            format!("`segmenter.normalisation` is not what `{}` was made for", segmenter.architecture.name())
        });
    }

    /// Whether a member can look at what the bundle reads.
    fn check_architecture(&self, key: &str, member: &Member, problems: &mut Problems) {
        let fits = match (&self.input, member.architecture) {
            (
                Input::Image2d { .. } | Input::Slices2d { .. },
                MemberArchitecture::Known(_) | MemberArchitecture::TorchScript,
            )
            | (Input::Volume3d { .. } | Input::Seg2d { .. }, MemberArchitecture::TorchScript) => true,
            (input, MemberArchitecture::Scan(architecture)) => architecture.kind() == input.kind(),
            _ => false,
        };
        let (name, kind) = (member.architecture.name(), self.input.kind());
        problems.check(fits, || format!("`{key}` is `{name}`, which has no use for the input of the kind `{kind}`"));
        problems.check(
            member.batch_norm == BatchNormMode::Running
                || member.architecture == MemberArchitecture::Scan(ScanArchitecture::Covnet),
            || format!("`{key}` is `{name}`: only `covnet` has a `batch_norm`; leave it out"),
        );
        problems.check(
            member.attention.is_none()
                || member.architecture == MemberArchitecture::Known(Architecture::AttentionVgg16),
            || format!("`{key}` is `{name}`: only `attention_vgg16` has `attention`; leave it out"),
        );
        if let Some(explanation) = member.method() {
            let offered: Vec<&str> = member
                .architecture
                .explanations()
                .iter()
                .filter(|method| method.is_routine())
                .map(|method| method.name())
                .collect();
            problems.check(offered.contains(&explanation.name()), || {
                let remedy = match offered.as_slice() {
                    [] => "leave it out".to_owned(),
                    offered => format!("give one of {}, or leave it out", offered.join(", ")),
                };
                format!("`{key}` is `{name}`, which has no `explanation` `{explanation}` for every image: {remedy}")
            });
        }
        problems.check(member.is_explained() || !matches!(self.input, Input::Seg2d { .. }), || {
            format!("`{key}` outlines lesions: there are no maps beside its masks; leave `explanation` out")
        });
        let Some(scan) = self.input.scan() else { return };
        problems.check(member.inputs.is_empty(), || {
            format!("`{key}` has `inputs`: all members of a bundle of the kind `{kind}` see the same; leave it out")
        });
        let (channels, least, only) = match member.architecture {
            MemberArchitecture::Known(of) => (3, of.minimum_side_pixels(), of.fixed_side_pixels()),
            MemberArchitecture::Scan(of) => (of.channels(), of.minimum_side_pixels(), of.fixed_side_pixels()),
            MemberArchitecture::TorchScript => return,
        };
        if let Some(only) = only {
            problems.check(scan.rows == only && scan.columns == only, || {
                format!("`{key}` takes {only} rows and columns, not {} and {}", scan.rows, scan.columns)
            });
        }
        problems.check(scan.channels.len() == channels, || {
            format!(
                "`{key}` takes {channels} channel(s), and `input.preprocessing.channels` has {}",
                scan.channels.len()
            )
        });
        problems.check(scan.rows >= least && scan.columns >= least, || {
            format!("`{key}` takes slices of {least} pixels or more, not {} x {}", scan.rows, scan.columns)
        });
        if let MemberArchitecture::Scan(of) = member.architecture {
            let multiple = of.side_multiple();
            problems.check(scan.rows.is_multiple_of(multiple) && scan.columns.is_multiple_of(multiple), || {
                let (rows, columns) = (scan.rows, scan.columns);
                format!(
                    "`{key}` halves slices five times, and `input.preprocessing.rows` and `columns` are {rows} and {columns}: \
                     give multiples of {multiple}"
                )
            });
        }
    }

    /// Whether one output of a member can be what the bundle asks about.
    fn check_output(&self, key: &str, member: &Member, problems: &mut Problems) {
        if member.output == OutputKind::Softmax {
            return;
        }
        let is = format!("`{key}` is `{}`", member.output.name());
        if let Input::Seg2d { .. } = self.input {
            problems.check(false, || {
                format!("{is}: a network that outlines lesions has one output for each pixel anyway; leave it out")
            });
        }
        if let MemberArchitecture::Scan(architecture) = member.architecture {
            problems.check(false, || {
                format!(
                    "{is}, and `{}` is defined with an output for each class: leave it out, or bring the network in as \
                     TorchScript",
                    architecture.name()
                )
            });
        }
        let Some(classification) = &self.classification else { return };
        let n_classes = classification.classes.len();
        problems.check(n_classes == 2, || {
            format!(
                "{is} and `classification.classes` has {n_classes} entries: one output tells two classes apart; give two \
                 classes, or `softmax` and a network with an output for each"
            )
        });
        problems.check(classification.label_map.is_none(), || {
            format!(
                "{is} and `classification.label_map` is there: one output is the target class's; leave one of the two out"
            )
        });
    }

    fn check_networks(&self, problems: &mut Problems) {
        if let Some(segmenter) = &self.segmenter {
            self.check_segmenter(segmenter, problems);
        }
        let mut names = BTreeSet::new();
        for (member_idx, member) in self.members.iter().enumerate() {
            let key = |field: &str| format!("members[{member_idx}].{field}");
            problems.name(&key("name"), &member.name);
            problems.check(names.insert(&member.name), || {
                format!("`{}` repeats `{}`: give every member its own name", key("name"), member.name)
            });
            self.check_architecture(&key("architecture"), member, problems);
            self.check_output(&key("output"), member, problems);
            let most_inputs = if member.architecture == MemberArchitecture::TorchScript { 2 } else { 1 };
            problems.check(member.inputs.len() <= most_inputs, || {
                format!("`{}` has {} entries: give at most {most_inputs}", key("inputs"), member.inputs.len())
            });
            for (input_idx, input) in member.inputs.iter().enumerate() {
                let key = key(&format!("inputs[{input_idx}]"));
                input.check(&key, problems);
                if let Input::Image2d { preprocessing, .. } = &self.input {
                    problems.check(input.is_same_picture(preprocessing), || {
                        format!(
                            "`{key}` has another `voi`, `percentile_low` or `percentile_high` than `input.preprocessing`: \
                             give the same, the picture is decoded once for all members"
                        )
                    });
                }
            }
            if let MemberArchitecture::Known(architecture) = member.architecture {
                for input in self.inputs_of(member) {
                    let (side, least) = (input.image_side_pixels, architecture.minimum_side_pixels());
                    let fits = architecture.fixed_side_pixels().map_or(side >= least, |only| side == only);
                    problems.check(fits, || match architecture.fixed_side_pixels() {
                        Some(only) => format!("`{}` takes images of {only} pixels, not {side}", key("architecture")),
                        None => format!("`{}` takes images of {least} pixels or more, not {side}", key("architecture")),
                    });
                }
            }
            problems.check(
                member.architecture == MemberArchitecture::TorchScript
                    || !self.inputs_of(member).iter().any(|input| input.single_channel),
                || format!("`{}` takes three channels: leave `single_channel` out", key("architecture")),
            );
        }
        let mut files = BTreeSet::new();
        for network in self.networks() {
            let key = |field: &str| format!("{}.{field}", network.key);
            problems.check(network.width.is_finite() && 0.0 < network.width && network.width <= MAX_WIDTH, || {
                format!("`{}` is {}: give a number above 0 up to {MAX_WIDTH}", key("width"), network.width)
            });
            problems.text(&key("version"), network.version, 64, false);
            let NetworkPrecision { cuda, tolerance } = network.precision;
            problems.check(tolerance > 0.0 && tolerance <= MAX_TOLERANCE, || {
                format!("`{}` is {tolerance}: give a number above 0 up to {MAX_TOLERANCE}", key("precision.tolerance"))
            });
            problems.check(!network.is_program || matches!(cuda, Precision::Float32 | Precision::Tf32), || {
                format!(
                    "`{}` is `{}`: a TorchScript file chooses its 16-bit floats itself; give `float32` or `tf32`",
                    key("precision.cuda"),
                    cuda.name()
                )
            });
            problems.check(
                self.status == BundleStatus::Untrained || !network.version.starts_with(UNTRAINED_VERSION),
                || {
                    format!(
                        "`{}` is `{}` and `status` is not `untrained`: bring trained weights in with `hilum model import`, \
                         or take this network out of the manifest",
                        key("version"),
                        network.version
                    )
                },
            );
            problems.check(is_plain_name(network.weights) && network.weights.ends_with(network.extension), || {
                format!(
                    "`{}` is {:?}: give the plain name of a file in the bundle's folder (letters, digits, `.`, `_`, \
                     `-`) that ends in `{}`",
                    key("weights"),
                    shortened(network.weights),
                    network.extension
                )
            });
            problems.check(files.insert(network.weights), || {
                format!("`{}` repeats `{}`: give every network its own file", key("weights"), network.weights)
            });
        }
    }

    /// The bundle's preprocessing of radiographs.
    #[must_use]
    pub const fn preprocessing(&self) -> Option<&Preprocessing> {
        match &self.input {
            Input::Image2d { preprocessing, .. } => Some(preprocessing),
            Input::CtMeasurement { .. } | Input::Slices2d { .. } | Input::Volume3d { .. } | Input::Seg2d { .. } => None,
        }
    }

    /// The class of each output of a member; none in a bundle without members.
    #[must_use]
    pub fn class_of_output(&self) -> Vec<usize> {
        match (&self.classification, &self.input) {
            (Some(classification), _) => classification.class_of_output(),
            (None, Input::Seg2d { .. }) => vec![0],
            (None, _) => Vec::new(),
        }
    }

    /// The preprocessing of each input of a member: its own, or the bundle's.
    #[must_use]
    pub fn inputs_of<'a>(&'a self, member: &'a Member) -> Vec<&'a Preprocessing> {
        if member.inputs.is_empty() {
            self.preprocessing().into_iter().collect()
        } else {
            member.inputs.iter().collect()
        }
    }

    /// Segmenter and members, as far as they are alike.
    pub(super) fn networks(&self) -> impl Iterator<Item = NetworkEntry<'_>> {
        let segmenter = self.segmenter.iter().map(|segmenter| NetworkEntry {
            key: "segmenter".to_owned(),
            width: segmenter.width,
            weights: &segmenter.weights,
            extension: ".safetensors",
            sha256: segmenter.sha256,
            version: &segmenter.version,
            precision: segmenter.precision,
            is_program: false,
            is_explained: false,
            one_logit_of: None,
        });
        let target_class_idx = self.classification.as_ref().map_or(0, |of| of.target_class_idx);
        segmenter.chain(self.members.iter().enumerate().map(move |(member_idx, member)| NetworkEntry {
            key: format!("members[{member_idx}]"),
            width: member.width,
            weights: &member.weights,
            extension: member.architecture.extension(),
            sha256: member.sha256,
            version: &member.version,
            precision: member.precision,
            is_program: member.architecture == MemberArchitecture::TorchScript,
            is_explained: member.is_explained(),
            one_logit_of: (member.output == OutputKind::Sigmoid).then_some(target_class_idx),
        }))
    }
}

/// What segmenter and members have in common.
pub(super) struct NetworkEntry<'a> {
    /// Where it stands in the manifest.
    pub(super) key: String,
    width: f64,
    pub(super) weights: &'a str,
    extension: &'static str,
    pub(super) sha256: Sha256Digest,
    version: &'a str,
    pub(super) precision: NetworkPrecision,
    /// Whether its file is a program.
    is_program: bool,
    /// Whether maps of it may be shown.
    pub(super) is_explained: bool,
    /// The class that its only logit is of; `None` where there is one for each output.
    pub(super) one_logit_of: Option<usize>,
}

impl Performance {
    fn check(&self, key: &str, problems: &mut Problems) {
        problems.text(&format!("{key}.measure"), &self.measure, 64, false);
        problems.text(&format!("{key}.data"), &self.data, 1024, false);
        problems.text(&format!("{key}.reference"), &self.reference, 1024, false);
        let [low, high] = self.interval;
        problems.check(0.0 <= low && low <= self.value && self.value <= high && high <= 1.0, || {
            format!(
                "`{key}.value` is {} with the interval {low} to {high}: give 0 <= low <= value <= high <= 1",
                self.value
            )
        });
        problems.check(50.0 <= self.confidence_percent && self.confidence_percent < 100.0, || {
            format!("`{key}.confidence_percent` is {}: give 50 to below 100", self.confidence_percent)
        });
        problems.check(self.n > 0, || format!("`{key}.n` is 0: give the number that the figure was measured on"));
    }
}

impl Preprocessing {
    fn check(&self, key: &str, problems: &mut Problems) {
        problems.check((32..=1024).contains(&self.image_side_pixels), || {
            format!("`{key}.image_side_pixels` is {}: give 32 to 1024", self.image_side_pixels)
        });
        let (low, high) = (self.percentile_low, self.percentile_high);
        problems.check(0.0 <= low && low < high && high <= 100.0, || {
            format!("`{key}.percentile_low` is {low} and `percentile_high` {high}: give 0 <= low < high <= 100")
        });
        problems.check(self.mean.iter().all(|mean| MEAN.contains(mean)), || {
            format!("`{key}.mean` is {:?}: give three numbers from {} to {}", self.mean, MEAN.start(), MEAN.end())
        });
        problems.check(self.std.iter().all(|std| STD.contains(std)), || {
            format!("`{key}.std` is {:?}: give three numbers from {} to {}", self.std, STD.start(), STD.end())
        });
        check_range(key, self.range, self.normalisation, (&self.mean, &self.std), problems);
        problems.check((0.0..=0.5).contains(&self.top_crop_fraction), || {
            format!("`{key}.top_crop_fraction` is {}: give 0 to 0.5", self.top_crop_fraction)
        });
        problems.check((0.0..=1.0).contains(&self.crop_margin_fraction), || {
            format!("`{key}.crop_margin_fraction` is {}: give 0 to 1", self.crop_margin_fraction)
        });
        if let Equalisation::Clahe { clip_limit, tiles } = self.equalisation {
            problems.check(clip_limit > 0.0 && clip_limit <= 40.0, || {
                format!("`{key}.equalisation.clip_limit` is {clip_limit}: give a number above 0 up to 40")
            });
            problems
                .check((1..=64).contains(&tiles), || format!("`{key}.equalisation.tiles` is {tiles}: give 1 to 64"));
        }
    }
}

/// Whether grey values may become these, with the preprocessing `key` whose channels `mean` and `std` normalise.
pub(super) fn check_range(
    key: &str,
    range: Option<[f32; 2]>,
    normalisation: ChannelNormalisation,
    (mean, std): (&[f32], &[f32]),
    problems: &mut Problems,
) {
    let Some([low, high]) = range else { return };
    let is_range = RANGE.contains(&low) && RANGE.contains(&high) && low < high;
    problems.check(is_range, || {
        let (least, most) = (RANGE.start(), RANGE.end());
        format!("`{key}.range` is {low} to {high}: give two rising numbers from {least} to {most}")
    });
    problems.check(normalisation == ChannelNormalisation::MeanStd, || {
        format!(
            "`{key}.range` is {low} to {high} and `normalisation` is `image_z_score`, which gives every picture its own \
             range: leave one of the two out"
        )
    });
    let ends = mean.iter().zip(std).flat_map(|(mean, std)| [low, high].map(|end| ((end - mean) / std).abs()));
    let largest = ends.fold(0.0, f32::max);
    problems.check(!is_range || largest <= MAX_INPUT, || {
        format!(
            "`{key}.range`, `mean` and `std` make values of {largest}, networks are given {MAX_INPUT} at most: narrow \
             `range`, or raise `std`"
        )
    });
}

impl Classification {
    fn check(&self, problems: &mut Problems) {
        let n_classes = self.classes.len();
        problems.check((2..=MAX_ENTRIES).contains(&n_classes), || {
            format!("`classification.classes` has {n_classes} entries: give 2 to {MAX_ENTRIES}")
        });
        problems.check(self.target_class_idx < n_classes, || {
            format!(
                "`classification.target_class_idx` is {}: give the index of one of the {n_classes} classes, counted from 0",
                self.target_class_idx
            )
        });
        let mut labels = BTreeSet::new();
        for (class_idx, class) in self.classes.iter().enumerate() {
            let key = format!("classification.classes[{class_idx}]");
            problems.class(&key, class);
            problems.check(labels.insert(&class.label), || {
                format!("`{key}.label` repeats `{}`: give every class its own label", class.label)
            });
        }
        let threshold = self.threshold;
        problems.check(threshold.is_finite() && 0.0 < threshold && threshold < 1.0, || {
            format!("`classification.threshold` is {threshold}: give a number between 0 and 1")
        });
        if let Some([low, high]) = self.grey_zone {
            problems.check(0.0 <= low && low <= threshold && threshold <= high && high <= 1.0 && low < high, || {
                format!(
                    "`classification.grey_zone` is {low} to {high} around the threshold {threshold}: \
                     give 0 <= low <= threshold <= high <= 1"
                )
            });
        }
        if let Some(label_map) = &self.label_map {
            let all_there = (0..n_classes).all(|class_idx| label_map.contains(&class_idx));
            let all_known = label_map.iter().all(|class_idx| *class_idx < n_classes);
            problems.check(all_there && all_known && label_map.len() <= MAX_ENTRIES, || {
                format!(
                    "`classification.label_map` is {label_map:?}: give the class index (0 to {}) of each network output, \
                     each class at least once, at most {MAX_ENTRIES} outputs",
                    n_classes.saturating_sub(1)
                )
            });
        }
        self.calibration.check(problems);
        problems.check(self.fusion != Fusion::Vote || !matches!(self.calibration, Calibration::Platt { .. }), || {
            "`classification.calibration.method` is `platt` and `fusion` is `vote`: the share of votes is often 0 or 1, which \
             Platt scaling cannot tell apart; give another one of the two"
                .to_owned()
        });
        if let Some(prior) = self.prior {
            for (field, prevalence) in
                [("training_prevalence", prior.training_prevalence), ("site_prevalence", prior.site_prevalence)]
            {
                problems.check(prevalence.is_finite() && 0.0 < prevalence && prevalence < 1.0, || {
                    format!("`classification.prior.{field}` is {prevalence}: give a number between 0 and 1")
                });
            }
        }
    }
}

impl Calibration {
    fn check(&self, problems: &mut Problems) {
        let key = |field: &str| format!("classification.calibration.{field}");
        let (id, n, date) = match self {
            Self::None {} => return,
            Self::Temperature { temperature, id, n, date } => {
                problems.check((0.01..=100.0).contains(temperature), || {
                    format!("`{}` is {temperature}: give a number from 0.01 to 100", key("temperature"))
                });
                (id, n, date)
            }
            Self::Platt { slope, intercept, id, n, date } => {
                problems.check((0.01..=100.0).contains(slope), || {
                    format!("`{}` is {slope}: give a number from 0.01 to 100", key("slope"))
                });
                problems.check((-100.0..=100.0).contains(intercept), || {
                    format!("`{}` is {intercept}: give a number from -100 to 100", key("intercept"))
                });
                (id, n, date)
            }
        };
        problems.text(&key("id"), id, 64, false);
        problems.check(*n > 0, || format!("`{}` is 0: give the number of images of the fit", key("n")));
        let format = time::macros::format_description!("[year]-[month]-[day]");
        problems.check(time::Date::parse(date, &format).is_ok(), || {
            format!("`{}` is {:?}: give a date as YYYY-MM-DD", key("date"), shortened(date))
        });
    }
}

/// What is wrong, each with its remedy.
#[derive(Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    pub(super) fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(problem());
        }
    }

    fn name(&mut self, key: &str, name: &str) {
        self.check(is_plain_name(name), || {
            format!(
                "`{key}` is {:?}: give 1 to 64 letters, digits, `.`, `_` or `-`, not starting with a dot",
                shortened(name)
            )
        });
    }

    fn class(&mut self, key: &str, class: &ClassDefinition) {
        self.text(&format!("{key}.label"), &class.label, 64, false);
        self.text(&format!("{key}.code.value"), &class.code.value, 64, false);
        self.text(&format!("{key}.code.scheme"), &class.code.scheme, 16, false);
        self.text(&format!("{key}.code.meaning"), &class.code.meaning, 64, false);
    }

    fn text(&mut self, key: &str, text: &str, max_characters: usize, may_be_empty: bool) {
        let n_characters = text.chars().count();
        self.check(may_be_empty || !text.trim().is_empty(), || format!("`{key}` is empty: give a text"));
        self.check(n_characters <= max_characters, || {
            format!("`{key}` has {n_characters} characters: give at most {max_characters}")
        });
        self.check(text.chars().all(|c| !c.is_control() || c == '\n'), || {
            format!("`{key}` holds a control character: give plain text")
        });
    }
}

/// Letters, digits, `.`, `_`, `-`; not starting with a dot; at most 64 characters. Such a name cannot leave its
/// folder.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
