//! The networks of a bundle, ready to use.

use std::sync::Arc;

use tch::{Kind, Tensor, nn::VarStore};

use super::{
    bundle::{self, Bundle, MAX_WEIGHTS_BYTES},
    classifier::Classifier,
    error::NnError,
    manifest::{NetworkEntry, SegmenterNormalisation},
    owner::{Model, Owner, OwnerLimits},
    plane::{Device, Plane, Plane3},
    unet::UNet,
    weights,
};
use crate::types::Sha256Digest;

/// How networks are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnsembleOptions {
    /// Where.
    pub device: Device,
    /// Most images in one batch; 0 counts as 1.
    pub max_batch: usize,
    /// Requests that may wait for one network before askers do; 0 counts as 1.
    pub queue_length: usize,
    /// Threads that one network uses for one operation; 0 counts as 1. All networks of an ensemble may run at
    /// the same time, so 1 is right when other work shares the processor.
    pub intra_op_threads: usize,
}

impl Default for EnsembleOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, max_batch: 8, queue_length: 32, intra_op_threads: 1 }
    }
}

/// Which regions of the input raise (positive) or lower (negative) the logit of a class, on the grid of the
/// last feature map.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationMap {
    /// Grid rows.
    pub rows: usize,
    /// Grid columns.
    pub columns: usize,
    /// `rows * columns` values, row-major, signed, not scaled.
    pub values: Vec<f32>,
    /// Largest positive value; 0 when nothing is positive.
    pub maximum_activation: f32,
    /// `cam` (sum over channels of class weight times feature map) or `hirescam` (sum over channels of the
    /// logit's gradient times feature map).
    pub method: &'static str,
}

/// What one member says of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberOutput {
    /// One per class.
    pub logits: Vec<f32>,
    /// Softmax of the logits: one per class, 0 to 1, not calibrated.
    pub probabilities: Vec<f32>,
    /// Features before the last linear layer: global average pool (ResNets) or fc7 after ReLU (VGG-16).
    pub embedding: Vec<f32>,
    /// Of the class that was asked for.
    pub activation_map: ActivationMap,
}

/// The networks of one bundle, each owned by its thread. Cloning gives another handle on the same networks;
/// dropping the last one ends the threads, waiting for the batches that run.
#[derive(Clone)]
pub struct Ensemble {
    networks: Arc<Networks>,
}

struct Networks {
    segmenter: Network<Plane, Plane>,
    normalisation: SegmenterNormalisation,
    members: Vec<Network<ClassifierQuestion, MemberOutput>>,
    n_classes: usize,
}

struct Network<Q, A> {
    name: String,
    input_side: usize,
    owner: Owner<Q, A>,
}

struct ClassifierQuestion {
    input: Plane3,
    target_class_idx: usize,
}

impl Ensemble {
    /// Loads every network of `bundle` onto a thread of its own, one after the other; the error names every
    /// problem of every network. Blocks for seconds: call it from `spawn_blocking` or a thread.
    pub fn load(bundle: &Bundle, options: EnsembleOptions) -> Result<Self, NnError> {
        let device = torch_device(options.device)?;
        let manifest = bundle.manifest();
        let mut problems = Vec::new();
        let mut segmenter = None;
        let mut members = Vec::new();
        for (network_idx, entry) in manifest.networks().enumerate() {
            let plan = LoadPlan::new(bundle, &entry, device, options);
            let result = match network_idx.checked_sub(1).map(|member_idx| &manifest.members[member_idx]) {
                None => {
                    let width = manifest.segmenter.width;
                    plan.start("lung segmenter", manifest.segmenter.input_side_pixels, move |plan| {
                        let (network, _store) = plan.load(|path| UNet::new(path, width))?;
                        Ok(SegmenterModel { name: plan.name.clone(), network, device: plan.device })
                    })
                    .map(|network| segmenter = Some(network))
                }
                Some(member) => {
                    let (architecture, width) = (member.architecture, member.width);
                    let n_classes = manifest.classes.len() as i64;
                    plan.start(&member.name, manifest.preprocessing.image_side_pixels, move |plan| {
                        let (network, _store) =
                            plan.load(|path| Classifier::new(path, architecture, width, n_classes))?;
                        let method = architecture.activation_map_method();
                        Ok(ClassifierModel { name: plan.name.clone(), network, method, device: plan.device })
                    })
                    .map(|network| members.push(network))
                }
            };
            match result {
                Ok(()) => (),
                Err(NnError::Load { problems: more, .. }) => problems.extend(more),
                Err(other) => return Err(other),
            }
        }
        match segmenter {
            Some(segmenter) if problems.is_empty() => Ok(Self {
                networks: Arc::new(Networks {
                    segmenter,
                    normalisation: manifest.segmenter.normalisation,
                    members,
                    n_classes: manifest.classes.len(),
                }),
            }),
            _ => Err(NnError::Load { bundle: manifest.name.clone(), problems }),
        }
    }

    /// Number of classifiers.
    #[must_use]
    pub fn n_members(&self) -> usize {
        self.networks.members.len()
    }

    /// Probability of lung, 0 to 1, for each sample of a square canvas of the segmenter's input side with
    /// samples 0 to 1. The normalisation that the manifest names is done here: minus the canvas's mean, divided
    /// by its (population) standard deviation; a canvas of one value becomes all 0.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn segment(&self, canvas: Plane) -> Result<Plane, NnError> {
        let segmenter = &self.networks.segmenter;
        segmenter.check_input(1, canvas.rows, canvas.columns, &canvas.values)?;
        let values = match self.networks.normalisation {
            SegmenterNormalisation::ImageZScore => z_score(&canvas.values),
        };
        segmenter.owner.ask(Plane { values, ..canvas }).await
    }

    /// Runs one member on an input of the manifest's image side, already normalised with the manifest's mean and
    /// std. The activation map is about the class `target_class_idx`.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn classify(
        &self,
        member_idx: usize,
        input: Plane3,
        target_class_idx: usize,
    ) -> Result<MemberOutput, NnError> {
        let n_members = self.networks.members.len();
        let member = self.networks.members.get(member_idx).ok_or(NnError::NoSuchMember { member_idx, n_members })?;
        let n_classes = self.networks.n_classes;
        if target_class_idx >= n_classes {
            return Err(NnError::NoSuchClass { class_idx: target_class_idx, n_classes });
        }
        member.check_input(3, input.rows, input.columns, &input.values)?;
        member.owner.ask(ClassifierQuestion { input, target_class_idx }).await
    }
}

impl<Q, A> Network<Q, A> {
    fn check_input(&self, channels: usize, rows: usize, columns: usize, values: &[f32]) -> Result<(), NnError> {
        let side = self.input_side;
        if (rows, columns) != (side, side) || values.len() != channels * side * side {
            return Err(NnError::InputSize {
                network: self.name.clone(),
                expected: format!("{channels} x {side} x {side}"),
                found: format!("{} for {channels} x {rows} x {columns}", values.len()),
            });
        }
        match values.iter().position(|sample| !sample.is_finite()) {
            Some(sample_idx) => Err(NnError::InputNotFinite { network: self.name.clone(), sample_idx }),
            None => Ok(()),
        }
    }
}

/// What a network's thread needs to load it.
struct LoadPlan {
    bundle: String,
    name: String,
    file_name: String,
    file: std::path::PathBuf,
    sha256: Sha256Digest,
    device: tch::Device,
    options: EnsembleOptions,
}

impl LoadPlan {
    fn new(bundle: &Bundle, entry: &NetworkEntry<'_>, device: tch::Device, options: EnsembleOptions) -> Self {
        Self {
            bundle: bundle.manifest().name.clone(),
            name: String::new(),
            file_name: entry.weights.to_owned(),
            file: bundle.folder().join(entry.weights),
            sha256: entry.sha256,
            device,
            options,
        }
    }

    fn start<M>(
        mut self,
        name: &str,
        input_side_pixels: u32,
        load: impl FnOnce(&Self) -> Result<M, NnError> + Send + 'static,
    ) -> Result<Network<M::Question, M::Answer>, NnError>
    where
        M: Model,
    {
        name.clone_into(&mut self.name);
        let limits = OwnerLimits { max_batch: self.options.max_batch, queue_length: self.options.queue_length };
        let owner = Owner::start(name, limits, move || {
            // OpenMP keeps this per thread: it holds for this network only.
            tch::set_num_threads(i32::try_from(self.options.intra_op_threads.max(1)).unwrap_or(i32::MAX));
            load(&self)
        })?;
        Ok(Network { name: name.to_owned(), input_side: input_side_pixels as usize, owner })
    }

    /// Declares a network and fills it from the weights file, whose digest is checked on the very bytes that
    /// are used.
    fn load<N>(
        &self,
        declare: impl FnOnce(&tch::nn::Path<'_>) -> Result<N, tch::TchError>,
    ) -> Result<(N, VarStore), NnError> {
        let problem = |problems: Vec<String>| NnError::Load {
            bundle: self.bundle.clone(),
            problems: problems.iter().map(|problem| format!("{} ({}): {problem}", self.name, self.file_name)).collect(),
        };
        let bytes = bundle::read_bounded(&self.file, MAX_WEIGHTS_BYTES).map_err(|reason| problem(vec![reason]))?;
        if let Some(mismatch) = bundle::digest_problem(&self.file_name, self.sha256, Sha256Digest::of(&bytes)) {
            return Err(problem(vec![mismatch]));
        }
        let mut store = VarStore::new(self.device);
        let network = declare(&store.root()).map_err(|error| NnError::torch(&self.name, &error))?;
        weights::fill(&mut store, &bytes).map_err(problem)?;
        Ok((network, store))
    }
}

fn torch_device(device: Device) -> Result<tch::Device, NnError> {
    match device {
        Device::Cpu => Ok(tch::Device::Cpu),
        Device::Cuda(device_idx) => {
            let n_devices = tch::Cuda::device_count();
            if (device_idx as i64) < n_devices {
                return Ok(tch::Device::Cuda(device_idx));
            }
            let reason = if n_devices > 0 {
                format!("this machine has {n_devices} CUDA devices, counted from 0")
            } else {
                "libtorch finds no CUDA device (none is there, or its CUDA library is not loaded)".to_owned()
            };
            Err(NnError::Device { device: device.to_string(), reason })
        }
    }
}

fn z_score(values: &[f32]) -> Vec<f32> {
    let n_values = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n_values;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n_values;
    let std = variance.sqrt();
    if std < 1e-6 {
        return vec![0.0; values.len()];
    }
    values.iter().map(|value| ((f64::from(*value) - mean) / std) as f32).collect()
}

struct SegmenterModel {
    name: String,
    network: UNet,
    device: tch::Device,
}

impl Model for SegmenterModel {
    type Question = Plane;
    type Answer = Plane;

    fn answer(&self, canvases: &[&Plane]) -> Result<Vec<Plane>, NnError> {
        let torch = |error: tch::TchError| NnError::torch(&self.name, &error);
        let samples = canvases.iter().map(|canvas| canvas.values.as_slice());
        let (rows, columns) = canvases.first().map_or((0, 0), |canvas| (canvas.rows, canvas.columns));
        let input = batch(samples, [1, rows, columns], self.device).map_err(torch)?;
        let probabilities = self.network.forward(&input).map_err(torch)?;
        rows_of(&self.name, &probabilities)?.into_iter().map(|values| Ok(Plane { rows, columns, values })).collect()
    }
}

struct ClassifierModel {
    name: String,
    network: Classifier,
    method: &'static str,
    device: tch::Device,
}

impl Model for ClassifierModel {
    type Question = ClassifierQuestion;
    type Answer = MemberOutput;

    fn answer(&self, questions: &[&ClassifierQuestion]) -> Result<Vec<MemberOutput>, NnError> {
        let torch = |error: tch::TchError| NnError::torch(&self.name, &error);
        let samples = questions.iter().map(|question| question.input.values.as_slice());
        let (rows, columns) = questions.first().map_or((0, 0), |first| (first.input.rows, first.input.columns));
        let input = batch(samples, [3, rows, columns], self.device).map_err(torch)?;
        let targets: Vec<i64> = questions.iter().map(|question| question.target_class_idx as i64).collect();
        let targets = Tensor::f_from_slice(&targets).and_then(|targets| targets.f_to(self.device)).map_err(torch)?;

        let output = self.network.forward(&input, &targets).map_err(torch)?;
        let probabilities = output.logits.f_softmax(-1, Kind::Float).map_err(torch)?;
        let (_, rows, columns) = output.activation_map.size3().map_err(torch)?;
        let logits = rows_of(&self.name, &output.logits)?;
        let probabilities = rows_of(&self.name, &probabilities)?;
        let embeddings = rows_of(&self.name, &output.embedding)?;
        let maps = rows_of(&self.name, &output.activation_map)?;
        Ok(logits
            .into_iter()
            .zip(probabilities)
            .zip(embeddings.into_iter().zip(maps))
            .map(|((logits, probabilities), (embedding, values))| MemberOutput {
                logits,
                probabilities,
                embedding,
                activation_map: ActivationMap {
                    rows: rows as usize,
                    columns: columns as usize,
                    maximum_activation: values.iter().copied().fold(0.0, f32::max),
                    values,
                    method: self.method,
                },
            })
            .collect())
    }
}

/// One tensor `n x channels x rows x columns` of n images.
fn batch<'a>(
    images: impl Iterator<Item = &'a [f32]>,
    shape: [usize; 3],
    device: tch::Device,
) -> Result<Tensor, tch::TchError> {
    let samples: Vec<f32> = images.flatten().copied().collect();
    let [channels, rows, columns] = shape.map(|side| side as i64);
    Tensor::f_from_slice(&samples)?.f_view([-1, channels, rows, columns])?.f_to(device)
}

/// The elements of each entry of the first dimension; an error when one is not finite.
fn rows_of(network: &str, tensor: &Tensor) -> Result<Vec<Vec<f32>>, NnError> {
    let torch = |error: tch::TchError| NnError::torch(network, &error);
    let n_rows = tensor.size().first().copied().unwrap_or(0) as usize;
    let tensor = tensor.f_contiguous().and_then(|tensor| tensor.f_to(tch::Device::Cpu)).map_err(torch)?;
    let mut values = vec![0f32; tensor.numel()];
    let n_values = values.len();
    tensor.f_copy_data(&mut values, n_values).map_err(torch)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(NnError::OutputNotFinite { network: network.to_owned() });
    }
    Ok(values.chunks_exact((n_values / n_rows.max(1)).max(1)).map(<[f32]>::to_vec).collect())
}
