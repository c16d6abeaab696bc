//! What a bundle for chest CT says of its networks: which ones, what they see of a scan, and how slices become one output
//! or one answer.

use serde::{Deserialize, Serialize};

use super::{
    covnet::BatchNormMode,
    decovnet, dre_net,
    explain::Explanation,
    manifest::{ChannelNormalisation, MEAN, Problems, ResizeMode, STD, check_range},
    pooling::ClassPooling,
    unet_plus_plus,
};

/// Most samples of a scan's input, at four bytes each.
const MAX_SAMPLES: u64 = 150_000_000;

/// A network that looks at chest CT only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScanArchitecture {
    /// Hu et al.'s weakly supervised multi-scale network: one slice, one channel.
    MultiScale,
    /// COVNet: all slices of a scan, the largest value of each feature.
    Covnet,
    /// DRE-Net: one slice, and the squares of it that the network asks to see larger.
    DreNet,
    /// DeCoVNet: the volume and its lung mask.
    DeCoVNet,
    /// UNet++ with a ResNet-50 encoder: outlines lesions in one slice.
    UNetPlusPlus,
}

impl ScanArchitecture {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::MultiScale, Self::Covnet, Self::DreNet, Self::DeCoVNet, Self::UNetPlusPlus];

    /// The name used in manifests and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MultiScale => "multi_scale",
            Self::Covnet => "covnet",
            Self::DreNet => "dre_net",
            Self::DeCoVNet => "decovnet",
            Self::UNetPlusPlus => "unet_plus_plus",
        }
    }

    /// The maps of regions that it offers, the default first; DRE-Net has none but the squares that it asks for, UNet++ none
    /// but its answer.
    #[must_use]
    pub const fn explanations(self) -> &'static [Explanation] {
        use Explanation::{Cam, ClassMaps, GradCam, GradCamPlusPlus, HiResCam, IntegratedGradients};
        match self {
            Self::MultiScale => &[ClassMaps, IntegratedGradients],
            Self::Covnet => &[Cam],
            Self::DreNet | Self::UNetPlusPlus => &[],
            Self::DeCoVNet => &[HiResCam, GradCam, GradCamPlusPlus],
        }
    }

    /// The kind of input of the bundles that hold it.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::MultiScale | Self::Covnet | Self::DreNet => "slices2d",
            Self::DeCoVNet => "volume3d",
            Self::UNetPlusPlus => "seg2d",
        }
    }

    /// The name of the default map.
    #[must_use]
    pub const fn activation_map_method(self) -> &'static str {
        match (self, self.explanations()) {
            (_, [default, ..]) => default.name(),
            (Self::UNetPlusPlus, []) => "mask",
            (_, []) => "squares",
        }
    }

    /// Number of channels that it takes.
    #[must_use]
    pub const fn channels(self) -> usize {
        match self {
            Self::MultiScale => 1,
            Self::Covnet | Self::DreNet | Self::UNetPlusPlus => 3,
            Self::DeCoVNet => 2,
        }
    }

    /// The least side of a slice in pixels that it can look at.
    #[must_use]
    pub const fn minimum_side_pixels(self) -> u32 {
        32
    }

    /// The only side of a slice in pixels that it can look at, where there is only one.
    #[must_use]
    pub const fn fixed_side_pixels(self) -> Option<u32> {
        match self {
            Self::DreNet => Some(dre_net::FINE_SIDE_PIXELS as u32),
            Self::MultiScale | Self::Covnet | Self::DeCoVNet | Self::UNetPlusPlus => None,
        }
    }

    /// The sides of a slice in pixels are multiples of this.
    #[must_use]
    pub const fn side_multiple(self) -> u32 {
        match self {
            Self::UNetPlusPlus => unet_plus_plus::SIDE_MULTIPLE as u32,
            Self::MultiScale | Self::Covnet | Self::DreNet | Self::DeCoVNet => 1,
        }
    }

    /// Whether a checkpoint's tensor of this name plays no part in inference and may be there or not.
    #[must_use]
    pub fn ignores_tensor(self, name: &str) -> bool {
        name.ends_with(".num_batches_tracked")
            || match self {
                Self::DeCoVNet => decovnet::DeCoVNet::ignores(name),
                Self::DreNet => dre_net::DreNet::ignores(name),
                Self::MultiScale | Self::Covnet | Self::UNetPlusPlus => false,
            }
    }
}

/// What a network sees of a scan, in the order of the keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanPreprocessing {
    /// Hounsfield units that become 0 and 1; what lies beyond is cut off.
    pub window_hu: [f64; 2],
    /// Whether everything outside the lungs is black.
    #[serde(default)]
    pub outside_lungs_black: bool,
    /// Whether slices are cut to the box of both lungs; the same box for all slices.
    #[serde(default)]
    pub crop_to_lungs: bool,
    /// Margin around the box with `crop_to_lungs`, in millimetres, 0 to 100.
    #[serde(default)]
    pub crop_margin_mm: f64,
    /// How what is seen becomes an input of `rows` and `columns`: `pad` keeps the proportions, `stretch` does not.
    #[serde(default = "ScanPreprocessing::default_resize")]
    pub resize: ResizeMode,
    /// Rows of the input, 32 to 1024.
    pub rows: u32,
    /// Columns of the input, 32 to 1024.
    pub columns: u32,
    /// What each channel shows, 1 to 4.
    pub channels: Vec<ScanChannel>,
    /// How channels of grey values are normalised.
    #[serde(default)]
    pub normalisation: ChannelNormalisation,
    /// What 0 and 1 of the grey values become before `mean` and `std`; they stay without it, as a lung mask does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f32; 2]>,
    /// Subtracted from each channel, one number for each.
    pub mean: Vec<f32>,
    /// Divides each channel, one number above 0 for each.
    pub std: Vec<f32>,
    /// Slices with less lung than this are left out, in square centimetres, 0 to 100.
    #[serde(default)]
    pub minimum_lung_cm2: f64,
    /// Distance of the slices that the network sees, in millimetres; without it the scan's own slices are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice_spacing_mm: Option<f64>,
    /// Most slices, 1 to 1000: of more, as many are chosen at equal distances.
    pub maximum_slices: u32,
}

/// What a channel shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanChannel {
    /// The slice.
    Slice,
    /// The slice, black outside the lungs.
    MaskedSlice,
    /// 1 in the lungs and 0 elsewhere.
    LungMask,
    /// The next slice towards the feet.
    Below,
    /// The next slice towards the head.
    Above,
}

impl ScanPreprocessing {
    const fn default_resize() -> ResizeMode {
        ResizeMode::Stretch
    }

    /// Number of channels, rows and columns of a slice's input.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        [self.channels.len(), self.rows as usize, self.columns as usize]
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        let key = |field: &str| format!("input.preprocessing.{field}");
        let [low, high] = self.window_hu;
        problems.check((-2000.0..high).contains(&low) && high <= 10_000.0, || {
            format!("`{}` is {low} to {high}: give two rising numbers of Hounsfield units", key("window_hu"))
        });
        problems.check((0.0..=100.0).contains(&self.crop_margin_mm), || {
            format!("`{}` is {}: give 0 to 100", key("crop_margin_mm"), self.crop_margin_mm)
        });
        problems.check(self.resize != ResizeMode::Crop, || {
            format!("`{}` is `crop`: give `pad` or `stretch`; a middle square would cut lungs off", key("resize"))
        });
        for (field, side) in [("rows", self.rows), ("columns", self.columns)] {
            problems.check((32..=1024).contains(&side), || format!("`{}` is {side}: give 32 to 1024", key(field)));
        }
        let n_channels = self.channels.len();
        problems.check((1..=4).contains(&n_channels), || {
            format!("`{}` has {n_channels} entries: give 1 to 4", key("channels"))
        });
        let fits =
            |numbers: &[f32], is_good: fn(&f32) -> bool| numbers.len() == n_channels && numbers.iter().all(is_good);
        problems.check(fits(&self.mean, |mean| MEAN.contains(mean)), || {
            let (low, high) = (MEAN.start(), MEAN.end());
            format!("`{}` is {:?}: give {n_channels} numbers from {low} to {high}", key("mean"), self.mean)
        });
        problems.check(fits(&self.std, |std| STD.contains(std)), || {
            let (low, high) = (STD.start(), STD.end());
            format!("`{}` is {:?}: give {n_channels} numbers from {low} to {high}", key("std"), self.std)
        });
        check_range("input.preprocessing", self.range, self.normalisation, (&self.mean, &self.std), problems);
        problems.check((0.0..=100.0).contains(&self.minimum_lung_cm2), || {
            format!("`{}` is {}: give 0 to 100", key("minimum_lung_cm2"), self.minimum_lung_cm2)
        });
        if let Some(spacing) = self.slice_spacing_mm {
            problems.check((0.2..=50.0).contains(&spacing), || {
                format!("`{}` is {spacing}: give 0.2 to 50, or leave it out", key("slice_spacing_mm"))
            });
        }
        problems.check((1..=1000).contains(&self.maximum_slices), || {
            format!("`{}` is {}: give 1 to 1000", key("maximum_slices"), self.maximum_slices)
        });
    }

    /// For networks that are given all slices of a scan at once.
    pub(super) fn check_memory(&self, problems: &mut Problems) {
        let samples = self
            .shape()
            .iter()
            .fold(u64::from(self.maximum_slices), |product, side| product.saturating_mul(*side as u64));
        problems.check(samples <= MAX_SAMPLES, || {
            format!(
                "`input.preprocessing` makes {samples} samples of a scan, at most {MAX_SAMPLES} fit into memory: lower \
                 `maximum_slices`, `rows` or `columns`"
            )
        });
    }
}

/// How the outputs of a scan's slices become those of the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Aggregation {
    /// Each class's highest slice.
    Max {},
    /// The mean of all slices.
    Mean {},
    /// The mean of each class's `k` highest slices.
    TopKMean {
        /// 1 to 100.
        k: u32,
    },
    /// Jin et al.'s (Nat Commun 2020;11:5088): the first class, which is no disease, by the mean of all slices, every
    /// other by the mean of its `k` highest.
    Jin {
        /// 1 to 100.
        k: u32,
    },
}

impl Aggregation {
    /// In words, for results: `mean of the 3 highest slices of each class`.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Max {} => "highest slice of each class".to_owned(),
            Self::Mean {} => "mean of all slices".to_owned(),
            Self::TopKMean { k } => format!("mean of the {k} highest slices of each class"),
            Self::Jin { k } => {
                format!("first class by the mean of all slices, others by the mean of their {k} highest")
            }
        }
    }

    /// The rule of each class.
    pub(super) fn rules(self, n_classes: usize) -> Vec<ClassPooling> {
        (0..n_classes)
            .map(|class_idx| match self {
                Self::Max {} => ClassPooling::Max,
                Self::Mean {} => ClassPooling::Mean,
                Self::Jin { .. } if class_idx == 0 => ClassPooling::Mean,
                Self::TopKMean { k } | Self::Jin { k } => ClassPooling::TopK(k as usize),
            })
            .collect()
    }

    pub(super) fn check(self, target_class_idx: usize, problems: &mut Problems) {
        if let Self::TopKMean { k } | Self::Jin { k } = self {
            problems.check((1..=100).contains(&k), || format!("`input.aggregation.k` is {k}: give 1 to 100"));
        }
        problems.check(!matches!(self, Self::Jin { .. }) || target_class_idx != 0, || {
            "`input.aggregation.method` is `jin` and `classification.target_class_idx` 0: with this rule the first class is \
             the one without disease"
                .to_owned()
        });
    }
}

/// How the lesions of a scan's slices become an answer about the scan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LesionRule {
    /// Which rule.
    pub method: LesionRuleMethod,
    /// How many consecutive slices make the scan positive, 1 to 100.
    pub slices: u32,
    /// Smallest area of lesion in a quadrant of the image that counts, in square millimetres of the scan, 0 to 10000; one
    /// pixel at least.
    pub minimum_area_mm2: f64,
    /// A pixel from this probability on is lesion, between 0 and 1.
    pub probability: f64,
    /// Whether lesions count within the lungs only.
    pub lungs_only: bool,
}

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LesionRuleMethod {
    /// Chen et al.'s (Sci Rep 2020;10:19196): lesions in one quadrant of the image on consecutive slices. A slice that the
    /// networks did not see is one without lesion.
    ConsecutiveSlices,
}

impl LesionRule {
    /// In words, for results, of slices at `slice_spacing_mm` or of the scan's own.
    #[must_use]
    pub fn words(&self, slice_spacing_mm: Option<f64>) -> String {
        let Self { method: LesionRuleMethod::ConsecutiveSlices, slices, minimum_area_mm2, probability, lungs_only } =
            self;
        let spacing = slice_spacing_mm.map_or_else(|| "of the scan".to_owned(), |mm| format!("resampled to {mm} mm"));
        let lesion = if *minimum_area_mm2 > 0.0 {
            format!("at least {minimum_area_mm2} mm2 of lesion")
        } else {
            "lesion".to_owned()
        };
        let place = if *lungs_only { ", in the lungs only" } else { "" };
        format!(
            "{lesion} in one quadrant of the image on {slices} consecutive slices {spacing}; a pixel is lesion from an \
             output of {probability} on{place}"
        )
    }

    pub(super) fn check(&self, maximum_slices: u32, problems: &mut Problems) {
        let key = |field: &str| format!("input.rule.{field}");
        problems.check((1..=100).contains(&self.slices), || {
            format!("`{}` is {}: give 1 to 100", key("slices"), self.slices)
        });
        problems.check(self.slices <= maximum_slices, || {
            format!(
                "`{}` is {} and `input.preprocessing.maximum_slices` {maximum_slices}: no scan could ever satisfy the rule; \
                 lower the one or raise the other",
                key("slices"),
                self.slices
            )
        });
        problems.check((0.0..=10_000.0).contains(&self.minimum_area_mm2), || {
            format!("`{}` is {}: give 0 to 10000", key("minimum_area_mm2"), self.minimum_area_mm2)
        });
        let probability = self.probability;
        problems.check(probability.is_finite() && 0.0 < probability && probability < 1.0, || {
            format!("`{}` is {probability}: give a number between 0 and 1", key("probability"))
        });
    }
}

/// Whose mean and variance batch normalisation uses; COVNet's only.
pub(super) const fn is_default_batch_norm(mode: &BatchNormMode) -> bool {
    matches!(mode, BatchNormMode::Running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aggregation_has_a_rule_for_each_class() {
        assert_eq!(
            Aggregation::Jin { k: 5 }.rules(3),
            [ClassPooling::Mean, ClassPooling::TopK(5), ClassPooling::TopK(5)]
        );
        assert_eq!(Aggregation::Max {}.rules(2), [ClassPooling::Max; 2]);
        assert_eq!(Aggregation::TopKMean { k: 3 }.rules(1), [ClassPooling::TopK(3)]);
        assert_eq!(Aggregation::Mean {}.words(), "mean of all slices");
    }

    #[test]
    fn a_rule_says_which_slices_it_counts() {
        let rule = LesionRule {
            method: LesionRuleMethod::ConsecutiveSlices,
            slices: 3,
            minimum_area_mm2: 12.5,
            probability: 0.5,
            lungs_only: true,
        };
        assert_eq!(
            rule.words(None),
            "at least 12.5 mm2 of lesion in one quadrant of the image on 3 consecutive slices of the scan; a pixel is \
             lesion from an output of 0.5 on, in the lungs only"
        );
        let any = LesionRule { lungs_only: false, minimum_area_mm2: 0.0, ..rule };
        assert_eq!(
            any.words(Some(2.5)),
            "lesion in one quadrant of the image on 3 consecutive slices resampled to 2.5 mm; a pixel is lesion from an \
             output of 0.5 on"
        );
    }
}
