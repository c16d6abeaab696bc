//! `manifest.toml`: what a bundle says of itself. Every key is described in `models/README.md`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{architecture::Architecture, unet};
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
    /// Index into `classes` of the class that threshold, decision and heat map are about.
    pub target_class_idx: usize,
    /// Operating threshold on the fused, calibrated output of the target class, 0 to 1.
    pub threshold: f64,
    /// How the members' outputs become one.
    pub fusion: Fusion,
    /// How the fused output is calibrated.
    pub calibration: Calibration,
    /// Classes in the order of the networks' outputs, at least two.
    pub classes: Vec<ClassDefinition>,
    /// How an image becomes the classifiers' input.
    pub preprocessing: Preprocessing,
    /// What the input must satisfy.
    pub gates: Gates,
    /// The lung segmenter.
    pub segmenter: Segmenter,
    /// The classifiers, at least one.
    pub members: Vec<Member>,
}

/// How the members' outputs become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// Mean of the members' probabilities.
    MeanProb,
    /// Softmax of the mean of the members' logits.
    MeanLogit,
}

impl Fusion {
    /// The name used in manifests and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MeanProb => "mean_prob",
            Self::MeanLogit => "mean_logit",
        }
    }
}

/// How the fused output is calibrated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibration {
    /// Not at all.
    None {},
    /// Temperature scaling (Guo et al. 2017) of the fused output.
    Temperature {
        /// Divides the fused logits; above 0.
        temperature: f64,
        /// Names data, date and site of the fit, for the records.
        id: String,
    },
}

impl Calibration {
    /// The calibration id, `None` when uncalibrated.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::None {} => None,
            Self::Temperature { id, .. } => Some(id),
        }
    }
}

/// How an image becomes the classifiers' input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Side of the square input in pixels, 32 to 1024.
    pub image_side_pixels: u32,
    /// Percentile of the samples that becomes 0.
    pub percentile_low: f64,
    /// Percentile of the samples that becomes 1.
    pub percentile_high: f64,
    /// Whether the VOI LUT or window of the object is applied.
    pub voi: VoiMode,
    /// What the lung mask does to the input.
    pub mask_mode: MaskMode,
    /// Subtracted from each channel.
    pub mean: [f32; 3],
    /// Divides each channel; above 0.
    pub std: [f32; 3],
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
}

/// What the input must satisfy; reported for all bundles, enforced unless the bundle is untrained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// Youngest patient in years.
    pub minimum_age_years: u32,
    /// View Positions (0018,5101) that are read, such as `PA`; an empty text accepts an absent one.
    pub accepted_views: Vec<String>,
    /// Smallest share of the image that the lungs may cover, 0 to 1.
    pub minimum_lung_area_fraction: f64,
    /// Largest share of the image that the lungs may cover, 0 to 1.
    pub maximum_lung_area_fraction: f64,
    /// Smallest ratio of left to right lung area.
    pub minimum_lung_area_ratio: f64,
    /// Largest ratio of left to right lung area.
    pub maximum_lung_area_ratio: f64,
    /// Fewest rows of the source image.
    pub minimum_rows: u32,
    /// Fewest columns of the source image.
    pub minimum_columns: u32,
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
}

/// Which network segments the lungs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmenterArchitecture {
    /// U-Net, layers and names as in `models/README.md`.
    Unet,
}

/// How the segmenter's input is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmenterNormalisation {
    /// Minus the image's mean, divided by its standard deviation.
    ImageZScore,
}

/// One classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Unique in the bundle: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Which network.
    pub architecture: Architecture,
    /// Factor on every channel count, above 0 up to 2; 1.0 is torchvision's network.
    pub width: f64,
    /// Weights file, a plain name in the bundle's folder.
    pub weights: String,
    /// Digest of the weights file.
    pub sha256: Sha256Digest,
    /// Version of the weights.
    pub version: String,
}

/// Largest width factor: four times torchvision's parameters.
const MAX_WIDTH: f64 = 2.0;

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
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &dyn Fn() -> String| {
            if !holds {
                problems.push(problem());
            }
        };

        check(is_plain_name(&self.name), &|| plain_name_problem("name", &self.name));
        check_text(&mut check, "version", &self.version, 64, false);
        check_text(&mut check, "description", &self.description, 4096, true);
        check_text(&mut check, "licence", &self.licence, 1024, false);
        check_text(&mut check, "training_data", &self.training_data, 4096, false);
        check_text(&mut check, "reference_performance", &self.reference_performance, 4096, true);

        check((2..=MAX_ENTRIES).contains(&self.classes.len()), &|| {
            format!("`classes` has {} entries: give 2 to {MAX_ENTRIES}", self.classes.len())
        });
        check(self.target_class_idx < self.classes.len(), &|| {
            format!(
                "`target_class_idx` is {}: give the index of one of the {} classes, counted from 0",
                self.target_class_idx,
                self.classes.len()
            )
        });
        let mut labels = BTreeSet::new();
        for (class_idx, class) in self.classes.iter().enumerate() {
            let key = |field: &str| format!("classes[{class_idx}].{field}");
            check_text(&mut check, &key("label"), &class.label, 64, false);
            check_text(&mut check, &key("code.value"), &class.code.value, 64, false);
            check_text(&mut check, &key("code.scheme"), &class.code.scheme, 16, false);
            check_text(&mut check, &key("code.meaning"), &class.code.meaning, 64, false);
            check(labels.insert(&class.label), &|| {
                format!("`{}` repeats `{}`: give every class its own label", key("label"), class.label)
            });
        }
        check(self.threshold.is_finite() && 0.0 < self.threshold && self.threshold < 1.0, &|| {
            format!("`threshold` is {}: give a number between 0 and 1", self.threshold)
        });
        if let Calibration::Temperature { temperature, id } = &self.calibration {
            check((0.01..=100.0).contains(temperature), &|| {
                format!("`calibration.temperature` is {temperature}: give a number from 0.01 to 100")
            });
            check_text(&mut check, "calibration.id", id, 64, false);
        }

        let preprocessing = &self.preprocessing;
        check((32..=1024).contains(&preprocessing.image_side_pixels), &|| {
            format!("`preprocessing.image_side_pixels` is {}: give 32 to 1024", preprocessing.image_side_pixels)
        });
        let (low, high) = (preprocessing.percentile_low, preprocessing.percentile_high);
        check(0.0 <= low && low < high && high <= 100.0, &|| {
            format!("`preprocessing.percentile_low` is {low} and `percentile_high` {high}: give 0 <= low < high <= 100")
        });
        check(preprocessing.mean.iter().all(|mean| mean.is_finite()), &|| {
            format!("`preprocessing.mean` is {:?}: give three finite numbers", preprocessing.mean)
        });
        check(preprocessing.std.iter().all(|std| std.is_finite() && *std > 0.0), &|| {
            format!("`preprocessing.std` is {:?}: give three finite numbers above 0", preprocessing.std)
        });

        let gates = &self.gates;
        check(!gates.accepted_views.is_empty(), &|| {
            "`gates.accepted_views` is empty: list View Positions such as \"PA\", and \"\" for an absent one".to_owned()
        });
        for view in &gates.accepted_views {
            check(view.len() <= 16 && view.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), &|| {
                format!("`gates.accepted_views` lists {view:?}: give capital letters and digits, at most 16, or \"\"")
            });
        }
        let (low, high) = (gates.minimum_lung_area_fraction, gates.maximum_lung_area_fraction);
        check(0.0 <= low && low < high && high <= 1.0, &|| {
            format!(
                "`gates.minimum_lung_area_fraction` is {low} and `maximum_lung_area_fraction` {high}: \
                 give 0 <= minimum < maximum <= 1"
            )
        });
        let (low, high) = (gates.minimum_lung_area_ratio, gates.maximum_lung_area_ratio);
        check(0.0 <= low && low < high && high.is_finite(), &|| {
            format!(
                "`gates.minimum_lung_area_ratio` is {low} and `maximum_lung_area_ratio` {high}: \
                 give 0 <= minimum < maximum"
            )
        });

        let side = self.segmenter.input_side_pixels;
        check((32..=1024).contains(&side) && (side as usize).is_multiple_of(unet::SIDE_MULTIPLE), &|| {
            format!(
                "`segmenter.input_side_pixels` is {side}: give a multiple of {} from 32 to 1024",
                unet::SIDE_MULTIPLE
            )
        });
        check((1..=MAX_ENTRIES).contains(&self.members.len()), &|| {
            format!("`members` has {} entries: give 1 to {MAX_ENTRIES}", self.members.len())
        });
        let mut names = BTreeSet::new();
        for (member_idx, member) in self.members.iter().enumerate() {
            let key = format!("members[{member_idx}].name");
            check(is_plain_name(&member.name), &|| plain_name_problem(&key, &member.name));
            check(names.insert(&member.name), &|| {
                format!("`{key}` repeats `{}`: give every member its own name", member.name)
            });
        }
        let mut files = BTreeSet::new();
        for network in self.networks() {
            let key = |field: &str| format!("{}.{field}", network.key);
            check(network.width.is_finite() && 0.0 < network.width && network.width <= MAX_WIDTH, &|| {
                format!("`{}` is {}: give a number above 0 up to {MAX_WIDTH}", key("width"), network.width)
            });
            check_text(&mut check, &key("version"), network.version, 64, false);
            check(is_plain_name(network.weights) && network.weights.ends_with(".safetensors"), &|| {
                format!(
                    "`{}` is {:?}: give the plain name of a file in the bundle's folder (letters, digits, `.`, `_`, \
                     `-`) that ends in `.safetensors`",
                    key("weights"),
                    shortened(network.weights)
                )
            });
            check(files.insert(network.weights), &|| {
                format!("`{}` repeats `{}`: give every network its own file", key("weights"), network.weights)
            });
        }
        problems
    }

    /// Segmenter and members, as far as they are alike.
    pub(super) fn networks(&self) -> impl Iterator<Item = NetworkEntry<'_>> {
        let segmenter = &self.segmenter;
        let first = NetworkEntry {
            key: "segmenter".to_owned(),
            width: segmenter.width,
            weights: &segmenter.weights,
            sha256: segmenter.sha256,
            version: &segmenter.version,
        };
        std::iter::once(first).chain(self.members.iter().enumerate().map(|(member_idx, member)| NetworkEntry {
            key: format!("members[{member_idx}]"),
            width: member.width,
            weights: &member.weights,
            sha256: member.sha256,
            version: &member.version,
        }))
    }
}

/// What segmenter and members have in common.
pub(super) struct NetworkEntry<'a> {
    /// Where it stands in the manifest.
    pub(super) key: String,
    width: f64,
    pub(super) weights: &'a str,
    pub(super) sha256: Sha256Digest,
    version: &'a str,
}

/// Letters, digits, `.`, `_`, `-`; not starting with a dot; at most 64 characters. Such a name cannot leave its
/// folder.
fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn plain_name_problem(key: &str, name: &str) -> String {
    format!("`{key}` is {:?}: give 1 to 64 letters, digits, `.`, `_` or `-`, not starting with a dot", shortened(name))
}

fn check_text(
    check: &mut impl FnMut(bool, &dyn Fn() -> String),
    key: &str,
    text: &str,
    max_characters: usize,
    may_be_empty: bool,
) {
    let n_characters = text.chars().count();
    check(may_be_empty || !text.trim().is_empty(), &|| format!("`{key}` is empty: give a text"));
    check(n_characters <= max_characters, &|| {
        format!("`{key}` has {n_characters} characters: give at most {max_characters}")
    });
    check(text.chars().all(|c| !c.is_control() || c == '\n'), &|| {
        format!("`{key}` holds a control character: give plain text")
    });
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
