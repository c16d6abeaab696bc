//! What is trained, on what and how: `train.toml`, read and checked. Every key is described in
//! `config/train.example.toml`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    augmentation::Augmentation,
    optimiser::{Method, OptimiserOptions, Schedule},
};
use crate::{
    nn::{
        Architecture, AttentionOptions, Explanation, Fusion, Gates, NetworkPlan, Preprocessing, Storage,
        radiograph_gates, radiograph_preprocessing,
    },
    types::{ClassDefinition, Code, Device},
};

/// A checked configuration of `hilum train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// The networks and what they learn.
    pub task: Task,
    /// The images.
    pub data: Data,
    /// How an image becomes the networks' input; goes into the bundle.
    #[serde(default = "radiograph_preprocessing", deserialize_with = "preprocessing")]
    pub preprocessing: Preprocessing,
    /// What images must satisfy at work; goes into the bundle, and leaves out no training image.
    #[serde(default = "radiograph_gates", deserialize_with = "gates")]
    pub gates: Gates,
    /// How weights follow their gradients.
    #[serde(default)]
    pub optimisation: Optimisation,
    /// What is made small.
    #[serde(default)]
    pub loss: Loss,
    /// How often each image comes.
    #[serde(default)]
    pub sampling: Sampling,
    /// How training pictures are changed.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// Where, with how many threads, with which random numbers.
    #[serde(default)]
    pub compute: Compute,
    /// What the bundle says of itself.
    pub bundle: BundleWords,
}

/// The networks and what they learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// A U-Net learns the masks of the list.
    Lungs {
        /// Factor on every channel count, above 0 up to 2.
        width: f64,
        /// Side of the square input in pixels, a multiple of 16 from 32 to 1024.
        side_pixels: u32,
        /// Where the weights come from.
        #[serde(default)]
        start: Start,
        /// Stages that do not change: `down1` to `down5`, `up4` to `up1`, `out`.
        #[serde(default)]
        frozen: Vec<String>,
    },
    /// Classifiers learn the labels of the list, with lungs that a segmenter predicts.
    Classifier {
        /// The classes, at least two.
        classes: Vec<Class>,
        /// Index of the class that threshold, decision and heat map are about.
        #[serde(default)]
        target_class_idx: usize,
        /// On the fused output of the target class; between 0 and 1.
        #[serde(default = "half")]
        threshold: f64,
        /// How the members' outputs become one.
        #[serde(default = "mean_of_probabilities")]
        fusion: Fusion,
        /// Bundles with a lung segmenter, or folders of runs of `hilum train` that trained one. Each image is masked by one
        /// that was not trained on its patient.
        segmenters: Vec<PathBuf>,
        /// The one that goes into the bundle; the first of `segmenters` without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        segmenter_of_bundle: Option<PathBuf>,
        /// Into how many sub-classes each class is divided before training, 1 to 8 (DeTraC: PCA and k-means of the
        /// starting network's embeddings).
        #[serde(default = "one")]
        sub_classes: u32,
        /// The networks.
        members: Vec<TrainedMember>,
    },
}

/// A class and the labels that mean it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// For people, such as `COVID-19`.
    pub label: String,
    /// Finding code.
    pub code: Code,
    /// Labels of the list that mean this class.
    pub of_list: Vec<String>,
}

/// A classifier that is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedMember {
    /// Unique in the bundle.
    pub name: String,
    /// Which network.
    pub architecture: Architecture,
    /// Factor on every channel count, above 0 up to 2.
    #[serde(default = "full_width")]
    pub width: f64,
    /// Where the weights come from.
    #[serde(default)]
    pub start: Start,
    /// Stages that do not change.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Instead of `optimisation.learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Of `attention_vgg16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionOptions>,
    /// How its map of regions is computed, instead of by its architecture's first method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// Where weights come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum Start {
    /// Seeded random numbers.
    #[default]
    Scratch,
    /// A bundle of Hilum.
    Bundle {
        /// Its folder.
        folder: PathBuf,
        /// Which classifier of it; the first of the architecture without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        member: Option<String>,
    },
    /// A checkpoint with torchvision's names: a file of `torch.save`, or safetensors.
    Checkpoint {
        /// The file.
        file: PathBuf,
    },
}

/// The images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The list (CSV), or a folder with one.
    pub list: PathBuf,
    /// Only images of these sites; of all without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// Which images the network is tried on after each epoch.
    #[serde(default)]
    pub validation: Validation,
}

/// Which images a network is tried on after each epoch; it is never trained on their patients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Validation {
    /// One fold of several, by patient.
    Fold {
        /// How many folds, 2 to 50.
        folds: u32,
        /// Which, counted from 0.
        fold: u32,
    },
    /// As the list's column `split` says; what it calls `test` is not looked at.
    List,
    /// None: all images train, and the weights of the last epoch are kept.
    None,
}

impl Default for Validation {
    fn default() -> Self {
        Self::Fold { folds: 5, fold: 0 }
    }
}

/// How weights follow their gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimisation {
    /// `adam`, `adam_w` or `sgd`.
    pub method: Method,
    /// At its highest, above 0 up to 10.
    pub learning_rate: f64,
    /// Of `sgd`, 0 to below 1.
    pub momentum: f64,
    /// 0 to 1.
    pub weight_decay: f64,
    /// Images of one step of the network, 1 to 512.
    pub batch_size: u32,
    /// Batches whose gradients are summed up before the weights change, 1 to 256.
    pub accumulate: u32,
    /// Times that all images are gone through, 1 to 10000.
    pub epochs: u32,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Epochs in which the learning rate rises from 0, 0 to 100.
    pub warm_up_epochs: f64,
    /// Most length of all gradients together; unbounded without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_length: Option<f64>,
    /// Share of features that is left out where the publication has dropout (VGG, the Inceptions), 0 to below 1.
    pub dropout: f64,
    /// Decay of the moving average of the weights, 0.5 to below 1; the weights themselves without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_decay: Option<f64>,
    /// Epochs without improvement after which training ends; never without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_epochs: Option<u32>,
    /// What improvement is.
    pub monitor: Monitor,
    /// Half precision where it does no harm, on GPUs only. Never tried: no GPU was to be had.
    pub mixed_precision: bool,
    /// Steps from one checkpoint to the next within an epoch; without, there is one after each epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<u64>,
}

impl Default for Optimisation {
    fn default() -> Self {
        Self {
            method: Method::Adam,
            learning_rate: 1e-3,
            momentum: 0.9,
            weight_decay: 0.0,
            batch_size: 8,
            accumulate: 1,
            epochs: 30,
            schedule: Schedule::Cosine,
            warm_up_epochs: 1.0,
            clip_length: None,
            dropout: 0.5,
            average_decay: None,
            patience_epochs: None,
            monitor: Monitor::Loss,
            mixed_precision: false,
            checkpoint_steps: None,
        }
    }
}

/// What improvement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Monitor {
    /// A smaller loss on the validation images.
    Loss,
    /// A larger score on them: the mean of the classes' sensitivities (balanced accuracy), or Dice.
    Score,
    /// Nothing: the weights of the last epoch are kept, so that figures on the validation images flatter nobody.
    None,
}

/// What is made small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// Of classifiers: exponent of the focal loss (Lin et al., ICCV 2017), 0 or 1 to 10; 0 is cross-entropy.
    pub focal_gamma: f64,
    /// Of classifiers: whether classes count inversely to how often they are.
    pub balanced_classes: bool,
    /// Of classifiers: share of the target that is spread over all classes, 0 to 0.5.
    pub label_smoothing: f64,
    /// Of segmenters: weight of 1 minus Dice beside the binary cross-entropy, 0 to 100.
    pub dice_weight: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Self { focal_gamma: 0.0, balanced_classes: false, label_smoothing: 0.0, dice_weight: 1.0 }
    }
}

/// How often each image comes; of classifiers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// How often the classes come.
    pub classes: Balance,
    /// Whether within a class all sites come equally often.
    pub equal_sites: bool,
}

/// How often the classes come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// As often as they are.
    #[default]
    AsListed,
    /// As often as the largest: images of the others come repeatedly.
    Oversample,
    /// As often as the smallest: images of the others are left out, others in each epoch.
    Undersample,
}

/// Where, with how many threads, with which random numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compute {
    /// `cpu`, or `cuda:0` and so on.
    pub device: String,
    /// Threads of libtorch on the processor, 1 to 256. Bits depend on it.
    pub threads: u32,
    /// Chooses starting weights, order, augmentation, dropout and folds.
    pub seed: u64,
    /// Side of the pictures that augmentation works on, as a multiple of the classifiers' side, 1 to 4.
    pub working_scale: f64,
}

impl Default for Compute {
    fn default() -> Self {
        Self { device: "cpu".to_owned(), threads: 1, seed: 1, working_scale: 1.5 }
    }
}

/// What the bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleWords {
    /// Its name: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Its version and that of its weights.
    #[serde(default = "first_version")]
    pub version: String,
    /// What it is, in one or two sentences.
    pub description: String,
    /// Licence of the weights.
    pub licence: String,
    /// The training data with their licences, attributions and known biases.
    pub training_data: String,
    /// With how many bits weights are written.
    #[serde(default = "half_precision")]
    pub weights: WeightsKind,
}

/// With how many bits weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsKind {
    /// 16.
    Float16,
    /// 32.
    Float32,
}

impl From<WeightsKind> for Storage {
    fn from(kind: WeightsKind) -> Self {
        match kind {
            WeightsKind::Float16 => Self::Float16,
            WeightsKind::Float32 => Self::Float32,
        }
    }
}

/// Of the words about the training data; the facts of the training are added to them.
const MAX_DATA_CHARACTERS: usize = 3000;

/// A section over its defaults: keys that it leaves out are those of the untrained bundle.
fn over<'de, D, T>(deserializer: D, defaults: &T) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Serialize + serde::de::DeserializeOwned,
{
    let given = toml::Table::deserialize(deserializer)?;
    let mut all = toml::Table::try_from(defaults).map_err(serde::de::Error::custom)?;
    all.extend(given);
    all.try_into().map_err(serde::de::Error::custom)
}

fn preprocessing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Preprocessing, D::Error> {
    over(deserializer, &radiograph_preprocessing())
}

fn gates<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Gates, D::Error> {
    over(deserializer, &radiograph_gates())
}

const fn half() -> f64 {
    0.5
}

const fn mean_of_probabilities() -> Fusion {
    Fusion::MeanProb
}

const fn one() -> u32 {
    1
}

const fn full_width() -> f64 {
    1.0
}

fn first_version() -> String {
    "1".to_owned()
}

const fn half_precision() -> WeightsKind {
    WeightsKind::Float16
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration of the training cannot be used:\n{}", .0.join("\n"))]
pub struct PlanProblems(pub Vec<String>);

impl TrainPlan {
    /// Reads and checks a configuration, after `changes` such as `optimisation.epochs=3`: a key with dots, and a value as
    /// TOML writes it (a text may go without quotation marks). Relative paths are those of the folder that is worked in.
    ///
    /// # Errors
    /// [`PlanProblems`] with everything that is wrong; of unknown keys and wrong types the first, with its line.
    pub fn parse(text: &str, changes: &[String]) -> Result<Self, PlanProblems> {
        let only = |problem: String| PlanProblems(vec![problem]);
        let plan: Self = if changes.is_empty() {
            toml::from_str(text).map_err(|error| only(error.to_string().trim_end().to_owned()))?
        } else {
            let mut table: toml::Table =
                toml::from_str(text).map_err(|error| only(error.to_string().trim_end().to_owned()))?;
            for change in changes {
                apply(&mut table, change).map_err(only)?;
            }
            table.try_into().map_err(|error: toml::de::Error| only(error.to_string().trim_end().to_owned()))?
        };
        let problems = plan.problems();
        if problems.is_empty() { Ok(plan) } else { Err(PlanProblems(problems)) }
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.compute.device.parse().unwrap_or_default()
    }

    /// The constants of the optimiser.
    #[must_use]
    pub(super) const fn optimiser(&self) -> OptimiserOptions {
        let Optimisation { method, momentum, weight_decay, .. } = self.optimisation;
        OptimiserOptions { method, momentum, weight_decay }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Problems(Vec::new());
        match &self.task {
            Task::Lungs { width, side_pixels, frozen, .. } => {
                problems.width("task.width", *width);
                problems.check((32..=1024).contains(side_pixels) && side_pixels.is_multiple_of(16), || {
                    format!("`task.side_pixels` is {side_pixels}: give a multiple of 16 from 32 to 1024")
                });
                problems.stages("task.frozen", frozen, NetworkPlan::Segmenter { width: *width });
            }
            Task::Classifier { classes, target_class_idx, threshold, segmenters, sub_classes, members, .. } => {
                problems.classes(classes, *target_class_idx);
                problems.check(*threshold > 0.0 && *threshold < 1.0, || {
                    format!("`task.threshold` is {threshold}: give a number between 0 and 1")
                });
                problems.check(!segmenters.is_empty(), || {
                    "`task.segmenters` is empty: give the folder of a bundle with a lung segmenter, or of a run of `hilum \
                     train` that trained one"
                        .to_owned()
                });
                problems.check((1..=8).contains(sub_classes), || {
                    format!("`task.sub_classes` is {sub_classes}: give 1 to 8")
                });
                problems.members(members, self.preprocessing.image_side_pixels);
                problems.check(!self.preprocessing.single_channel, || {
                    "`preprocessing.single_channel` is true: these networks take three channels".to_owned()
                });
            }
        }
        if let Validation::Fold { folds, fold } = self.data.validation {
            problems.check((2..=50).contains(&folds) && fold < folds, || {
                format!(
                    "`data.validation` is fold {fold} of {folds}: give 2 to 50 folds, and one of them, counted from 0"
                )
            });
        }
        self.optimisation.check(self.data.validation, &mut problems);
        let Loss { focal_gamma, label_smoothing, dice_weight, .. } = self.loss;
        problems.check((0.0..=0.0).contains(&focal_gamma) || (1.0..=10.0).contains(&focal_gamma), || {
            format!("`loss.focal_gamma` is {focal_gamma}: give 0, or 1 to 10; in between its gradient has no bound")
        });
        problems.range("loss.label_smoothing", label_smoothing, 0.0, 0.5);
        problems.range("loss.dice_weight", dice_weight, 0.0, 100.0);
        problems.0.extend(self.augmentation.problems());
        match self.compute.device.parse::<Device>() {
            Err(error) => problems.0.push(format!("`compute.device`: {error}")),
            Ok(Device::Cpu) => problems.check(!self.optimisation.mixed_precision, || {
                "`optimisation.mixed_precision` is true and `compute.device` is `cpu`: processors compute in single \
                 precision; set it to false"
                    .to_owned()
            }),
            Ok(Device::Cuda(_)) => {}
        }
        problems.check((1..=256).contains(&self.compute.threads), || {
            format!("`compute.threads` is {}: give 1 to 256", self.compute.threads)
        });
        problems.range("compute.working_scale", self.compute.working_scale, 1.0, 4.0);
        problems.check(crate::nn::is_plain_name(&self.bundle.name), || {
            format!("`bundle.name` is {:?}: give 1 to 64 letters, digits, `.`, `_` or `-`", self.bundle.name)
        });
        problems.check(self.bundle.training_data.chars().count() <= MAX_DATA_CHARACTERS, || {
            format!("`bundle.training_data` is longer than {MAX_DATA_CHARACTERS} characters: shorten it")
        });
        problems.0
    }
}

impl Optimisation {
    fn check(&self, validation: Validation, problems: &mut Problems) {
        let within = |value: f64, low: f64, high: f64| value > low && value <= high;
        problems.check(within(self.learning_rate, 0.0, 10.0), || {
            format!("`optimisation.learning_rate` is {}: give a number above 0 up to 10", self.learning_rate)
        });
        for (key, value) in [("momentum", self.momentum), ("dropout", self.dropout)] {
            problems
                .check((0.0..1.0).contains(&value), || format!("`optimisation.{key}` is {value}: give 0 to below 1"));
        }
        problems.range("optimisation.weight_decay", self.weight_decay, 0.0, 1.0);
        problems.range("optimisation.warm_up_epochs", self.warm_up_epochs, 0.0, 100.0);
        for (key, value, most) in [
            ("batch_size", self.batch_size, 512),
            ("accumulate", self.accumulate, 256),
            ("epochs", self.epochs, 10_000),
        ] {
            problems
                .check((1..=most).contains(&value), || format!("`optimisation.{key}` is {value}: give 1 to {most}"));
        }
        if let Schedule::Step { every_epochs, factor } = self.schedule {
            problems.check(every_epochs > 0 && within(factor, 0.0, 1.0), || {
                format!(
                    "`optimisation.schedule` multiplies by {factor} every {every_epochs} epochs: give a factor above 0 up to \
                     1, and at least 1 epoch"
                )
            });
        }
        problems.check(self.clip_length.is_none_or(|length| length > 0.0 && length.is_finite()), || {
            "`optimisation.clip_length` is not above 0: give a length, or leave it out".to_owned()
        });
        problems.check(self.average_decay.is_none_or(|decay| (0.5..1.0).contains(&decay)), || {
            "`optimisation.average_decay` is not from 0.5 to below 1: give such a number, or leave it out".to_owned()
        });
        problems.check(self.patience_epochs.is_none() || validation != Validation::None, || {
            "`optimisation.patience_epochs` is there and `data.validation` is `none`: without validation nothing shows \
             improvement; leave one of the two out"
                .to_owned()
        });
        problems.check(self.patience_epochs.is_none() || self.monitor != Monitor::None, || {
            "`optimisation.patience_epochs` is there and `optimisation.monitor` is `none`: nothing shows improvement; leave one of \
             the two out"
                .to_owned()
        });
        problems.check(self.checkpoint_steps != Some(0), || {
            "`optimisation.checkpoint_steps` is 0: give 1 or more, or leave it out".to_owned()
        });
    }
}

/// What is wrong, each with its remedy.
struct Problems(Vec<String>);

impl Problems {
    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(problem());
        }
    }

    fn range(&mut self, key: &str, value: f64, low: f64, high: f64) {
        self.check((low..=high).contains(&value), || format!("`{key}` is {value}: give {low} to {high}"));
    }

    fn width(&mut self, key: &str, width: f64) {
        self.check(width > 0.0 && width <= 2.0, || format!("`{key}` is {width}: give a number above 0 up to 2"));
    }

    fn stages(&mut self, key: &str, frozen: &[String], plan: NetworkPlan) {
        let stages = plan.stages();
        for stage in frozen {
            self.check(stages.contains(&stage.as_str()), || {
                format!("`{key}` lists `{stage}`: give stages of the network: {}", stages.join(", "))
            });
        }
        self.check(stages.iter().any(|stage| !frozen.iter().any(|of| of == stage)), || {
            format!("`{key}` lists every stage: nothing would be trained; leave one out")
        });
    }

    fn classes(&mut self, classes: &[Class], target_class_idx: usize) {
        self.check((2..=16).contains(&classes.len()), || {
            format!("`task.classes` has {} entries: give 2 to 16", classes.len())
        });
        self.check(target_class_idx < classes.len(), || {
            format!(
                "`task.target_class_idx` is {target_class_idx}: give the index of one of the {} classes, counted from 0",
                classes.len()
            )
        });
        let mut seen = BTreeSet::new();
        for (class_idx, class) in classes.iter().enumerate() {
            self.check(!class.of_list.is_empty(), || {
                format!(
                    "`task.classes[{class_idx}].of_list` is empty: give the labels of the list that mean this class"
                )
            });
            for label in &class.of_list {
                self.check(seen.insert(label), || {
                    format!("`task.classes[{class_idx}].of_list` repeats `{label}`: a label means one class")
                });
            }
        }
    }

    fn members(&mut self, members: &[TrainedMember], side_pixels: u32) {
        self.check((1..=16).contains(&members.len()), || {
            format!("`task.members` has {} entries: give 1 to 16", members.len())
        });
        let mut names = BTreeSet::new();
        for (member_idx, member) in members.iter().enumerate() {
            let key = |field: &str| format!("task.members[{member_idx}].{field}");
            self.check(crate::nn::is_plain_name(&member.name), || {
                format!("`{}` is {:?}: give 1 to 64 letters, digits, `.`, `_` or `-`", key("name"), member.name)
            });
            self.check(names.insert(&member.name), || {
                format!("`{}` repeats `{}`: give every member its own name", key("name"), member.name)
            });
            self.width(&key("width"), member.width);
            self.stages(&key("frozen"), &member.frozen, member.network(2));
            self.check(member.learning_rate.is_none_or(|rate| rate > 0.0 && rate <= 10.0), || {
                format!("`{}` is not above 0 up to 10: give such a number, or leave it out", key("learning_rate"))
            });
            let (least, only) = (member.architecture.minimum_side_pixels(), member.architecture.fixed_side_pixels());
            self.check(only.map_or(side_pixels >= least, |only| side_pixels == only), || {
                format!(
                    "`preprocessing.image_side_pixels` is {side_pixels} and `{}` is `{}`, which takes {} pixels",
                    key("architecture"),
                    member.architecture,
                    only.map_or_else(|| format!("at least {least}"), |only| only.to_string())
                )
            });
            self.check(member.attention.is_none() || member.architecture == Architecture::AttentionVgg16, || {
                format!("`{}` is there: only `attention_vgg16` has it; leave it out", key("attention"))
            });
        }
    }
}

impl TrainPlan {
    /// The starting weights of every network that is trained.
    pub(super) fn starts(&self) -> Vec<&Start> {
        match &self.task {
            Task::Lungs { start, .. } => vec![start],
            Task::Classifier { members, .. } => members.iter().map(|member| &member.start).collect(),
        }
    }
}

impl TrainedMember {
    /// The network with this many outputs.
    #[must_use]
    pub fn network(&self, n_outputs: usize) -> NetworkPlan {
        NetworkPlan::Classifier {
            architecture: self.architecture,
            width: self.width,
            n_outputs,
            attention: self.attention.unwrap_or_default(),
        }
    }
}

impl Class {
    /// As manifests say it.
    #[must_use]
    pub fn definition(&self) -> ClassDefinition {
        ClassDefinition { label: self.label.clone(), code: self.code.clone() }
    }
}

/// Sets one key.
fn apply(table: &mut toml::Table, change: &str) -> Result<(), String> {
    let (key, value) = change
        .split_once('=')
        .ok_or_else(|| format!("`{change}` is not of the form KEY=VALUE, such as `optimisation.epochs=3`"))?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let (mut steps, mut at) = (key.trim().split('.').peekable(), table);
    while let Some(step) = steps.next() {
        if steps.peek().is_none() {
            at.insert(step.to_owned(), parsed);
            return Ok(());
        }
        at = at
            .entry(step)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("`{key}`: `{step}` is no section of keys"))?;
    }
    Err(format!("`{change}` names no key"))
}

/// The configuration in a file, after changes.
///
/// # Errors
/// The file cannot be read, or [`PlanProblems`], in words.
pub fn read_plan(file: &Path, changes: &[String]) -> Result<TrainPlan, PlanProblems> {
    let text = fs_err::read_to_string(file)
        .map_err(|error| PlanProblems(vec![format!("{error}; give the file of the training's configuration")]))?;
    TrainPlan::parse(&text, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../config/train.example.toml");

    /// Every key with its path; entries of arrays are one.
    fn keys(value: &toml::Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    keys(value, &format!("{path}.{key}"), found);
                }
            }
            toml::Value::Array(entries) => entries.iter().for_each(|entry| keys(entry, path, found)),
            _ => {}
        }
        found.insert(path.to_owned());
    }

    #[test]
    fn the_example_has_every_key_and_its_defaults() {
        let plan = TrainPlan::parse(EXAMPLE, &[]).unwrap();
        let (mut written, mut known) = (BTreeSet::new(), BTreeSet::new());
        keys(&toml::from_str(EXAMPLE).unwrap(), "", &mut written);
        keys(&toml::Value::try_from(&plan).unwrap(), "", &mut known);
        assert_eq!(known.difference(&written).collect::<Vec<_>>(), Vec::<&String>::new(), "not in the example");
        assert_eq!(written.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new(), "unknown");
        let defaults = Optimisation {
            clip_length: plan.optimisation.clip_length,
            average_decay: plan.optimisation.average_decay,
            patience_epochs: plan.optimisation.patience_epochs,
            checkpoint_steps: plan.optimisation.checkpoint_steps,
            ..Optimisation::default()
        };
        assert_eq!(plan.optimisation, defaults);
        assert_eq!((plan.loss, plan.sampling, plan.augmentation), Default::default());
        assert_eq!(plan.compute, Compute::default());
        assert_eq!(plan.preprocessing, radiograph_preprocessing());
        assert_eq!(plan.gates, radiograph_gates());
        assert_eq!(plan.data.validation, Validation::default());
        let lungs =
            EXAMPLE.lines().skip_while(|line| !line.starts_with("#   [task]")).take_while(|line| !line.is_empty());
        let lungs: Vec<&str> = lungs.filter_map(|line| line.strip_prefix("#   ")).collect();
        let rest = "[data]\nlist = \"x.csv\"\n[bundle]\nname = \"x\"\ndescription = \"\"\nlicence = \"x\"\ntraining_data = \"x\"\n";
        assert!(matches!(
            TrainPlan::parse(&format!("{}\n{rest}", lungs.join("\n")), &[]).unwrap().task,
            Task::Lungs { .. }
        ));
    }

    #[test]
    fn keys_are_changed_one_by_one() {
        let change = |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
            TrainPlan::parse(EXAMPLE, &changes)
        };
        let plan =
            change(&["optimisation.epochs=3", "compute.device = cuda:1", "data.validation={ by = \"list\" }"]).unwrap();
        assert_eq!((plan.optimisation.epochs, plan.device()), (3, Device::Cuda(1)));
        assert_eq!(plan.data.validation, Validation::List);
        let refused = |text: &str| change(&[text]).unwrap_err().to_string();
        assert!(refused("epochs").contains("KEY=VALUE"));
        assert!(refused("optimisation.epochs.more=3").contains("no section"));
        assert!(refused("optimisation.momentun=3").contains("momentun"));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let changes = [
            "task.threshold=1.5",
            "task.segmenters=[]",
            "optimisation.learning_rate=0",
            "optimisation.dropout=1.0",
            "optimisation.monitor=none",
            "loss.label_smoothing=0.9",
            "augmentation.noise=3.0",
            "compute.threads=0",
            "compute.device=tpu",
            "preprocessing.image_side_pixels=16",
        ];
        let changes: Vec<String> = changes.map(str::to_owned).to_vec();
        let problems = TrainPlan::parse(EXAMPLE, &changes).unwrap_err().0;
        for key in [
            "task.threshold",
            "task.segmenters",
            "optimisation.learning_rate",
            "optimisation.dropout",
            "optimisation.monitor",
            "loss.label_smoothing",
            "augmentation.noise",
            "compute.threads",
            "compute.device",
            "preprocessing.image_side_pixels",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(key)), "{key}: {problems:#?}");
        }
    }
}
