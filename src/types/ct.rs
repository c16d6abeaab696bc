//! What the CT pipeline found in a study: measurements of the lungs, and what networks said of the scan.

use serde::{Deserialize, Serialize};

use super::{Decision, ExcludedImage, GateResult, HeatMap, MemberScore, ReasonCode, SourceImage, Uid};

/// What was measured in a chest CT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtAnalysis {
    /// The series that was measured.
    pub series: CtSeries,
    /// Every check of series and lungs.
    pub gates: Vec<GateResult>,
    /// How the lungs were found and measured.
    pub method: CtMethod,
    /// The right lung, then the left.
    pub lungs: Vec<CtLung>,
    /// What the overlay shows, in its order: axial sections from head to feet, then coronal ones.
    pub sections: Vec<CtSection>,
    /// What the bundle's classifiers said; `None` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<CtClassification>,
    /// The lesions that the bundle's networks outlined; `None` where it has none for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lesions: Option<CtLesions>,
    /// Why the bundle's networks did not judge the scan; `None` where they did, or it has none for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_judged: Option<NotJudged>,
    /// The other series of the study.
    pub excluded_series: Vec<ExcludedSeries>,
    /// Images of the measured series that were left out.
    pub excluded: Vec<ExcludedImage>,
}

/// Why networks did not look at a scan that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotJudged {
    /// Coded reason.
    pub reason: ReasonCode,
    /// One sentence without patient data.
    pub words: String,
}

/// A series whose images make one volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtSeries {
    /// (0020,000E)
    pub series_instance_uid: Uid,
    /// Acquisition Number (0020,0012), where the series has several and one was chosen.
    pub acquisition_number: Option<i32>,
    /// The images, from the feet to the head.
    pub images: Vec<SourceImage>,
    /// Why this series and no other.
    pub why_chosen: String,
    /// Columns, rows and slices.
    pub size: [usize; 3],
    /// Distances between columns, rows and slices, in millimetres.
    pub spacing_mm: [f64; 3],
    /// Slice Thickness (0018,0050) in millimetres, where stated.
    pub slice_thickness_mm: Option<f64>,
    /// Convolution Kernel (0018,1210), where stated.
    pub convolution_kernel: Option<String>,
    /// The stored columns run towards the patient's right.
    pub columns_reversed: bool,
    /// The stored rows run towards the front.
    pub rows_reversed: bool,
}

/// How the lungs were found and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtMethod {
    /// Name and version of the segmentation.
    pub segmentation: String,
    /// Name and version of the measurements.
    pub densitometry: String,
    /// Threshold between air and tissue that was found for this volume, in Hounsfield units; `None` where a network found
    /// the lungs.
    pub threshold_hu: Option<i16>,
    /// Limits of the density bands, in Hounsfield units, rising.
    pub band_limits_hu: [i16; 4],
}

/// What the classifiers of a bundle said of a scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtClassification {
    /// How the outputs of slices became those of the scan, in words.
    pub aggregation: String,
    /// The slices that the networks saw, counted from the feet, from 0; of a resampled volume the nearest ones.
    pub slices: Vec<usize>,
    /// Every member, failed or not, in the bundle's order.
    pub members: Vec<MemberScore>,
    /// Fused output per class, 0 to 1.
    pub fused: Vec<f64>,
    /// Largest minus smallest member output for the target class.
    pub member_spread: f64,
    /// The decision at the threshold; Undetermined unless the bundle is validated.
    pub decision: Decision,
    /// `false` when the fused output is below the threshold: the maps are then not an indication.
    pub localised: bool,
    /// Whether no network that answered gave a map of any slice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_maps: bool,
    /// The slices that speak most for the target class, the strongest first.
    pub key_slices: Vec<CtKeySlice>,
}

/// A slice that speaks for the target class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtKeySlice {
    /// Counted from the feet, from 0.
    pub slice: usize,
    /// Mean output for the target class of the members that judge slices, 0 to 1.
    pub output: Option<f64>,
    /// Fused map of the target class over the whole slice.
    pub heat_map: HeatMap,
    /// Share of the heat that lies in the lungs, 0 to 1; `None` without heat.
    pub lung_heat_fraction: Option<f64>,
}

/// The lesions that the networks of a bundle outlined, and what its rule makes of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtLesions {
    /// The rule, in words.
    pub rule: String,
    /// Every member, failed or not, in the bundle's order; what is outlined is the mean of those that did not fail.
    pub members: Vec<CtLesionMember>,
    /// The slices that the networks saw, counted from the feet, from 0; of a resampled volume the nearest ones.
    pub slices: Vec<usize>,
    /// How many of them hold enough lesion in a quadrant.
    pub slices_with_lesion: usize,
    /// The most consecutive slices with enough lesion in one quadrant.
    pub longest_run: usize,
    /// The first slices that satisfied the rule; `None` where none did.
    pub run: Option<CtLesionRun>,
    /// Whether the rule was satisfied, as far as the bundle may say so; Undetermined unless it is validated.
    pub decision: Decision,
    /// All that counts as lesion, in millilitres: within the lungs, and beyond them unless the rule counts lungs only.
    pub volume_ml: f64,
    /// What lies in the right lung, then in the left.
    pub lungs: Vec<CtLungLesions>,
    /// The slice with the most lesion, counted from the feet, from 0; `None` without lesions.
    pub largest_slice: Option<usize>,
}

/// A network that outlines lesions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtLesionMember {
    /// Name of the member in the bundle.
    pub name: String,
    /// Why it failed.
    pub failure: Option<String>,
}

/// Consecutive slices with lesions in one quadrant of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtLesionRun {
    /// The lowest of them, counted from the feet, from 0.
    pub first_slice: usize,
    /// The highest of them.
    pub last_slice: usize,
    /// How many the networks saw from the one to the other.
    pub slices: usize,
    /// Where in the image.
    pub quadrant: CtQuadrant,
}

/// A quarter of an axial image, by the patient's sides. The middle row or column of an odd number belongs to the back or
/// to the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CtQuadrant {
    /// The patient's right, front.
    RightFront,
    /// The patient's left, front.
    LeftFront,
    /// The patient's right, back.
    RightBack,
    /// The patient's left, back.
    LeftBack,
}

impl CtQuadrant {
    /// All of them: upper left, upper right, lower left, lower right of an image seen from the feet, front above.
    pub const ALL: [Self; 4] = [Self::RightFront, Self::LeftFront, Self::RightBack, Self::LeftBack];

    /// Such as `right front`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RightFront => "right front",
            Self::LeftFront => "left front",
            Self::RightBack => "right back",
            Self::LeftBack => "left back",
        }
    }
}

/// The lesions of one lung.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CtLungLesions {
    /// Which lung.
    pub side: Side,
    /// In millilitres.
    pub volume_ml: f64,
    /// Share of the lung's volume, 0 to 1; `None` of an empty lung.
    pub fraction: Option<f64>,
}

/// Which side of the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The patient's right.
    Right,
    /// The patient's left.
    Left,
}

impl Side {
    /// `right` or `left`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Left => "left",
        }
    }
}

/// One lung.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtLung {
    /// Which one.
    pub side: Side,
    /// All of it.
    pub whole: CtDensities,
    /// Upper, middle and lower third of its height.
    pub thirds: [CtDensities; 3],
}

/// Volume and densities of a part of a lung, vessels and airway walls within it included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CtDensities {
    /// Volume in millilitres.
    pub volume_ml: f64,
    /// Mean in Hounsfield units; `None` of an empty part.
    pub mean_hu: Option<f64>,
    /// The value that 15 percent of the voxels lie below or at, in Hounsfield units.
    pub percentile_15_hu: Option<f64>,
    /// Share of each density band, 0 to 1: below the first limit, between each and the next, from the last up.
    pub band_fractions: [f64; 5],
}

impl CtDensities {
    /// Share at -700 HU and above, 0 to 1: all bands that are denser than well aerated lung.
    #[must_use]
    pub fn opacity_fraction(&self) -> f64 {
        let [_, _, ground_glass, poorly_aerated, consolidation] = self.band_fractions;
        ground_glass + poorly_aerated + consolidation
    }

    /// Share at -100 HU and above, 0 to 1.
    #[must_use]
    pub const fn consolidation_fraction(&self) -> f64 {
        self.band_fractions[4]
    }
}

/// The plane of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CtPlane {
    /// Seen from the feet, front above.
    Axial,
    /// Seen from the front, head above.
    Coronal,
}

/// The lungs in one section of the volume. In either plane the patient's right is at the left of the picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtSection {
    /// Which plane.
    pub plane: CtPlane,
    /// Axial: slice number from the feet; coronal: row number from the front. From 0.
    pub index: usize,
    /// 8-bit grey PNG in base64, one pixel for each voxel: 0 background, 1 right lung, 2 left lung, 3 airway.
    pub labels_png_base64: String,
    /// The same of lesions: 0 none, 1 lesion; `None` where no network outlines them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lesions_png_base64: Option<String>,
}

/// A series of the study that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedSeries {
    /// (0020,000E)
    pub series_instance_uid: Uid,
    /// (0008,0060)
    pub modality: String,
    /// Its number of images.
    pub images: usize,
    /// Coded reason.
    pub reason: ReasonCode,
    /// One sentence without patient data.
    pub words: String,
    /// Its images, so that the analysis can be repeated; empty in records of before they were kept.
    #[serde(default)]
    pub sources: Vec<SourceImage>,
}

/// What every voxel of the measured series is, one byte of bits each: columns run fastest, then rows, then slices, in the
/// order of [`CtSeries::images`] and with their rows and columns turned as the series says, like the sections.
#[derive(Clone, PartialEq, Eq)]
pub struct VoxelLabels {
    /// Columns, rows, slices.
    pub size: [usize; 3],
    /// `columns * rows * slices` bytes.
    pub bits: Vec<u8>,
}

impl VoxelLabels {
    /// In the right lung.
    pub const RIGHT_LUNG: u8 = 1;
    /// In the left lung.
    pub const LEFT_LUNG: u8 = 2;
    /// In a lung, at -700 HU and above: ground glass, poorly aerated, consolidated, vessels included.
    pub const OPACITY: u8 = 4;
    /// In a lung, in the densest of the measured bands.
    pub const CONSOLIDATION: u8 = 8;
    /// Outlined as lesion by networks.
    pub const LESION: u8 = 16;

    /// The labels of a slice; empty when there is no such slice.
    #[must_use]
    pub fn slice(&self, slice: usize) -> &[u8] {
        let [columns, rows, _] = self.size;
        let pixels = columns * rows;
        self.bits.get(slice * pixels..(slice + 1) * pixels).unwrap_or_default()
    }

    /// The numbers of the slices where a voxel has one of `bits`.
    #[must_use]
    pub fn slices_with(&self, bits: u8) -> Vec<usize> {
        (0..self.size[2]).filter(|slice| self.slice(*slice).iter().any(|label| label & bits != 0)).collect()
    }
}

impl std::fmt::Debug for VoxelLabels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VoxelLabels").field("size", &self.size).finish_non_exhaustive()
    }
}
