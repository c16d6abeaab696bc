//! The networks of a bundle for chest CT, ready to use: a segmenter of the lungs, and classifiers that see a scan slice
//! by slice or as one volume. Each is owned by one thread, which works on one scan at a time.

use std::{cell::Cell, sync::Arc};

use tch::{TchError, Tensor};

use super::{
    bundle::Bundle,
    covnet::{BatchNormMode, Covnet},
    decovnet::DeCoVNet,
    ensemble::{ActivationMap, ClassifierModel, ClassifierQuestion, EnsembleOptions, MemberOutput, target_output},
    error::NnError,
    explain::Explanation,
    fusion::class_probabilities,
    load::{LoadPlan, Network, batch, gather, only, rows_of, torch_device},
    manifest::{Input, Member, MemberArchitecture},
    multi_scale::MultiScale,
    owner::Model,
    plane::Planes,
    pooling::{ClassPooling, pool_slices},
    r231::{N_CLASSES, R231},
    runner::{Forward, Runner},
    scan_manifest::ScanArchitecture,
    script::ScriptModel,
};
use crate::types::RunPriority;

/// Slices of a scan as the networks take them, from the feet to the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Slices {
    /// Number of slices.
    pub count: usize,
    /// Number of channels of each slice.
    pub channels: usize,
    /// Rows of each channel.
    pub rows: usize,
    /// Columns of each channel.
    pub columns: usize,
    /// `count * channels * rows * columns` samples: slice after slice, channel after channel, row after row.
    pub values: Vec<f32>,
}

impl Slices {
    const fn shape(&self) -> [usize; 3] {
        [self.channels, self.rows, self.columns]
    }

    fn slices(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.shape().iter().product::<usize>().max(1))
    }
}

/// What one member says of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanOutput {
    /// One per class, 0 to 1, adding up to 1, not calibrated.
    pub probabilities: Vec<f32>,
    /// Features before the last layer: the mean over the slices, or the network's own of the scan.
    pub embedding: Vec<f32>,
    /// What it says of each slice, in their order.
    pub slices: Vec<SliceOutput>,
}

/// What one member says of one slice.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceOutput {
    /// One per class; empty where the network judges the scan only.
    pub probabilities: Vec<f32>,
    /// How much the slice speaks for the class that was asked for, 0 or more; comparable within one member only.
    pub weight: f32,
    /// Of the class that was asked for.
    pub activation_map: Option<ActivationMap>,
}

/// The networks of one bundle for chest CT. Cloning gives another handle on the same networks; dropping the last one ends
/// the threads and blocks until the scans that run are done.
#[derive(Clone)]
pub struct ScanEnsemble {
    networks: Arc<Networks>,
}

struct Networks {
    segmenter: Option<Network<Slices, Vec<u8>>>,
    members: Vec<Network<ScanQuestion, ScanOutput>>,
    n_classes: usize,
}

struct ScanQuestion {
    slices: Slices,
    target_class_idx: usize,
}

impl ScanEnsemble {
    /// Loads every network of `bundle` onto a thread of its own, one after the other; the error names every problem of every
    /// network. Blocks for seconds: call it from `spawn_blocking` or a thread.
    pub fn load(bundle: &Bundle, options: EnsembleOptions) -> Result<Self, NnError> {
        let device = torch_device(options.device)?;
        let manifest = bundle.manifest();
        let load_error = |problems| NnError::Load { bundle: manifest.name.clone(), problems };
        if !manifest.input.is_ct() {
            let kind = manifest.input.kind();
            return Err(load_error(vec![format!("a bundle of the kind `{kind}` has no networks of chest CT")]));
        }
        // A question is a whole scan.
        let options = EnsembleOptions { gather: std::time::Duration::ZERO, ..options };
        let mut plans = manifest.networks().map(|entry| LoadPlan::new(bundle, &entry, device, options));
        let mut problems = Vec::new();
        let mut segmenter = None;
        if let Some(of_manifest) = &manifest.segmenter
            && let Some(mut plan) = plans.next()
        {
            plan.options.intra_op_threads = options.segmenter_threads;
            let (architecture, width) = (of_manifest.architecture, of_manifest.width);
            let side = of_manifest.input_side_pixels as usize;
            let portion = plan.by_portions();
            let started = plan.start("lung segmenter", vec![[1, side, side]], move |plan| {
                let (network, _store) = plan.load(|path| R231::new(path, width), |name| architecture.ignores_tensor(name))?;
                let forward: Forward = Box::new(move |inputs| Ok(vec![network.forward(only(inputs)?)?]));
                let runner = plan.runner(forward, [1, side as i64, side as i64], 1)?;
                Ok(LungModel { name: plan.name.clone(), runner, device: plan.device, portion })
            });
            segmenter = gather(started, &mut problems)?;
        }
        let mut members = Vec::new();
        for (member, plan) in manifest.members.iter().zip(plans) {
            members.extend(gather(start_member(bundle, member, plan), &mut problems)?);
        }
        if problems.is_empty() {
            let n_classes = manifest.classification.as_ref().map_or(0, |of| of.classes.len());
            Ok(Self { networks: Arc::new(Networks { segmenter, members, n_classes }) })
        } else {
            Err(load_error(problems))
        }
    }

    /// Number of classifiers.
    #[must_use]
    pub fn n_members(&self) -> usize {
        self.networks.members.len()
    }

    /// The label of each pixel of slices of the segmenter's input side, with samples from -1024 (0) to 600 Hounsfield units
    /// (1): 0 background, 1 right lung, 2 left lung. The patient's right is at the left of a slice, the front above.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn segment(&self, slices: Slices, priority: RunPriority) -> Result<Vec<u8>, NnError> {
        let network = "lung segmenter".to_owned();
        let segmenter = self.networks.segmenter.as_ref().ok_or(NnError::Stopped { network })?;
        check(segmenter, &slices)?;
        segmenter.owner.ask(slices, priority).await
    }

    /// Runs one member on a scan of at least one slice, of the shape that the manifest gives, already normalised. Weights
    /// and activation maps are about the class `target_class_idx`.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn classify(
        &self,
        member_idx: usize,
        slices: Slices,
        target_class_idx: usize,
        priority: RunPriority,
    ) -> Result<ScanOutput, NnError> {
        let n_members = self.networks.members.len();
        let member = self.networks.members.get(member_idx).ok_or(NnError::NoSuchMember { member_idx, n_members })?;
        let n_classes = self.networks.n_classes;
        if target_class_idx >= n_classes {
            return Err(NnError::NoSuchClass { class_idx: target_class_idx, n_classes });
        }
        check(member, &slices)?;
        member.owner.ask(ScanQuestion { slices, target_class_idx }, priority).await
    }
}

/// Every slice must be one that the network takes.
fn check<Q, A>(network: &Network<Q, A>, slices: &Slices) -> Result<(), NnError> {
    if slices.count == 0 || slices.slices().len() != slices.count {
        return network.check_inputs(&[]);
    }
    slices.slices().try_for_each(|slice| network.check_inputs(&[(slices.shape(), slice)]))
}

/// Loads one classifier onto its thread.
fn start_member(
    bundle: &Bundle,
    member: &Member,
    mut plan: LoadPlan,
) -> Result<Network<ScanQuestion, ScanOutput>, NnError> {
    let manifest = bundle.manifest();
    let classification = manifest.classification.as_ref();
    let class_of_output = classification.map(super::Classification::class_of_output).unwrap_or_default();
    let n_classes = classification.map_or(0, |of| of.classes.len());
    let shape = manifest.input.scan().map_or([0; 3], super::ScanPreprocessing::shape);
    let rules = match &manifest.input {
        Input::Slices2d { aggregation, .. } => aggregation.rules(n_classes),
        _ => Vec::new(),
    };
    let (width, batch_norm, portion) = (member.width, member.batch_norm, plan.by_portions());
    let n_outputs = class_of_output.len() as i64;
    match member.architecture {
        MemberArchitecture::Known(architecture) => plan.start(&member.name, vec![shape], move |plan| {
            let network = ClassifierModel::load(plan, architecture, width, shape, class_of_output)?;
            Ok(BySlice { name: plan.name.clone(), network, rules, portion })
        }),
        MemberArchitecture::TorchScript => plan.start(&member.name, vec![shape], move |plan| {
            let network = ScriptModel::load_planned(plan, class_of_output)?;
            Ok(BySlice { name: plan.name.clone(), network, rules, portion })
        }),
        MemberArchitecture::Scan(architecture @ ScanArchitecture::MultiScale) => {
            plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) = plan.load(
                    |path| MultiScale::new(path, width, n_outputs),
                    |name| architecture.ignores_tensor(name),
                )?;
                let method = architecture.explanation().name();
                let forward = multi_scale_forward(network, plan.options.explain);
                let network = ClassifierModel::of(plan, forward, shape, method, class_of_output)?;
                Ok(BySlice { name: plan.name.clone(), network, rules, portion })
            })
        }
        MemberArchitecture::Scan(architecture @ ScanArchitecture::Covnet) => {
            plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) = plan.load(
                    |path| Covnet::new(path, width, n_outputs, batch_norm),
                    |name| architecture.ignores_tensor(name),
                )?;
                Ok(CovnetModel {
                    name: plan.name.clone(),
                    network,
                    batch_norm,
                    class_of_output,
                    device: plan.device,
                    portion,
                })
            })
        }
        MemberArchitecture::Scan(architecture @ ScanArchitecture::DeCoVNet) => {
            plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) = plan.load(
                    |path| DeCoVNet::new(path, width, n_outputs),
                    |name| architecture.ignores_tensor(name),
                )?;
                Ok(DeCoVNetModel { name: plan.name.clone(), network, class_of_output, device: plan.device })
            })
        }
    }
}

/// Declares the variables of a network, all zero, under `path`.
pub(super) fn declare(
    path: &tch::nn::Path<'_>,
    architecture: ScanArchitecture,
    width: f64,
    n_outputs: i64,
) -> Result<(), TchError> {
    match architecture {
        ScanArchitecture::MultiScale => MultiScale::new(path, width, n_outputs).map(drop),
        ScanArchitecture::Covnet => Covnet::new(path, width, n_outputs, BatchNormMode::Running).map(drop),
        ScanArchitecture::DeCoVNet => DeCoVNet::new(path, width, n_outputs).map(drop),
    }
}

/// Logits, embedding and (if `explain`) class map of the multi-scale network.
fn multi_scale_forward(network: MultiScale, explain: bool) -> Forward {
    Box::new(move |inputs| {
        let targets = inputs.get(1).ok_or_else(|| TchError::Shape("there are no targets".to_owned()))?;
        let output = network.forward(only(inputs)?)?;
        let map = explain.then(|| output.class_map(targets)).transpose()?;
        let mut outputs = vec![output.logits, output.embedding];
        outputs.extend(map);
        Ok(outputs)
    })
}

impl LoadPlan {
    /// Makes a question a whole scan, worked on in portions of as many slices as a batch may have images.
    fn by_portions(&mut self) -> Portion {
        Portion(Cell::new(std::mem::replace(&mut self.options.max_batch, 1).max(1)))
    }
}

/// How many slices go through a network together.
struct Portion(Cell<usize>);

impl Portion {
    /// Runs `work` on the slices from one index to before another until all `count` are through; where memory does not
    /// suffice portions become smaller and stay so.
    fn each<T>(
        &self,
        network: &str,
        count: usize,
        work: impl Fn(std::ops::Range<usize>) -> Result<Vec<T>, NnError>,
    ) -> Result<Vec<T>, NnError> {
        let mut done = Vec::with_capacity(count);
        let mut first = 0;
        while first < count {
            let range = first..(first + self.0.get()).min(count);
            match work(range.clone()) {
                Ok(some) => {
                    done.extend(some);
                    first = range.end;
                }
                Err(error) if error.is_out_of_memory() && range.len() > 1 => {
                    self.0.set(range.len() / 2);
                    tracing::warn!(
                        network,
                        slices = range.len(),
                        portion = self.0.get(),
                        "not enough memory for the slices: fewer at once from now on"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// The lungs of slices.
struct LungModel {
    name: String,
    runner: Runner,
    device: tch::Device,
    portion: Portion,
}

impl LungModel {
    fn labels(&self, slices: &Slices) -> Result<Vec<u8>, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        self.portion.each(&self.name, slices.count, |range| {
            let n = range.len() as i64;
            let input =
                batch(slices.slices().skip(range.start).take(range.len()), slices.shape(), self.device).map_err(torch)?;
            let targets = Tensor::f_zeros([n], (tch::Kind::Int64, self.device)).map_err(torch)?;
            let [scores] = self.runner.run_for(&[input, targets])?;
            if scores.size().get(1) != Some(&N_CLASSES) {
                let words = format!("its output has the shape {:?}", scores.size());
                return Err(NnError::Torch { network: self.name.clone(), words });
            }
            // A NaN would win the comparison unseen.
            rows_of(&self.name, &scores)?;
            let labels = scores.f_argmax(1, false).and_then(|labels| labels.f_to_kind(tch::Kind::Uint8)).map_err(torch)?;
            let labels = labels.f_contiguous().and_then(|labels| labels.f_to(tch::Device::Cpu)).map_err(torch)?;
            let mut bytes = vec![0_u8; labels.numel()];
            let n_bytes = bytes.len();
            labels.f_copy_data(&mut bytes, n_bytes).map_err(torch)?;
            Ok(bytes)
        })
    }
}

impl Model for LungModel {
    type Question = Slices;
    type Answer = Vec<u8>;

    fn answer(&self, questions: &[&Slices]) -> Result<Vec<Vec<u8>>, NnError> {
        questions.iter().map(|slices| self.labels(slices)).collect()
    }
}

/// A classifier of pictures that sees every slice by itself; the scan is what pooling makes of its answers.
struct BySlice<M> {
    name: String,
    network: M,
    rules: Vec<ClassPooling>,
    portion: Portion,
}

impl<M: Model<Question = ClassifierQuestion, Answer = MemberOutput>> BySlice<M> {
    fn scan(&self, scan: &ScanQuestion) -> Result<ScanOutput, NnError> {
        let slices = &scan.slices;
        let outputs = self.portion.each(&self.name, slices.count, |range| {
            let questions: Vec<ClassifierQuestion> = slices
                .slices()
                .skip(range.start)
                .take(range.len())
                .map(|values| ClassifierQuestion {
                    inputs: vec![Planes {
                        channels: slices.channels,
                        rows: slices.rows,
                        columns: slices.columns,
                        values: values.to_vec(),
                    }],
                    target_class_idx: scan.target_class_idx,
                })
                .collect();
            self.network.answer(&questions.iter().collect::<Vec<_>>())
        })?;
        let of_slices: Vec<Vec<f64>> =
            outputs.iter().map(|output| output.probabilities.iter().copied().map(f64::from).collect()).collect();
        let pooled = pool_slices(&of_slices, &self.rules)
            .map_err(|error| NnError::Torch { network: self.name.clone(), words: error.to_string() })?;
        Ok(ScanOutput {
            probabilities: pooled.into_iter().map(|p| p as f32).collect(),
            embedding: mean_embedding(&outputs),
            slices: outputs
                .into_iter()
                .map(|output| SliceOutput {
                    weight: output.probabilities.get(scan.target_class_idx).copied().unwrap_or(0.0),
                    probabilities: output.probabilities,
                    activation_map: output.activation_map,
                })
                .collect(),
        })
    }
}

fn mean_embedding(outputs: &[MemberOutput]) -> Vec<f32> {
    let n_features = outputs.first().map_or(0, |output| output.embedding.len());
    let mut sums = vec![0.0_f64; n_features];
    for output in outputs {
        for (sum, value) in sums.iter_mut().zip(&output.embedding) {
            *sum += f64::from(*value);
        }
    }
    sums.into_iter().map(|sum| (sum / outputs.len().max(1) as f64) as f32).collect()
}

impl<M: Model<Question = ClassifierQuestion, Answer = MemberOutput>> Model for BySlice<M> {
    type Question = ScanQuestion;
    type Answer = ScanOutput;

    fn answer(&self, scans: &[&ScanQuestion]) -> Result<Vec<ScanOutput>, NnError> {
        scans.iter().map(|scan| self.scan(scan)).collect()
    }
}

/// COVNet, which judges the scan by the largest value of each feature.
struct CovnetModel {
    name: String,
    network: Covnet,
    batch_norm: BatchNormMode,
    class_of_output: Vec<usize>,
    device: tch::Device,
    portion: Portion,
}

/// What a network that sees a whole scan gave: logits, embedding, weight and map of each slice.
struct WholeScan {
    logits: Vec<f32>,
    embedding: Vec<f32>,
    slices: Vec<(f32, ActivationMap)>,
}

impl WholeScan {
    /// Runs the network about the first output of the target class, and again where another output of that class is the
    /// stronger one.
    fn answer(
        class_of_output: &[usize],
        scan: &ScanQuestion,
        run: impl Fn(i64) -> Result<Self, NnError>,
    ) -> Result<ScanOutput, NnError> {
        let first = target_output(class_of_output, scan.target_class_idx, None);
        let mut found = run(first)?;
        let strongest = target_output(class_of_output, scan.target_class_idx, Some(&found.logits));
        if strongest != first {
            found = run(strongest)?;
        }
        Ok(ScanOutput {
            probabilities: class_probabilities(&found.logits, class_of_output),
            embedding: found.embedding,
            slices: found
                .slices
                .into_iter()
                .map(|(weight, map)| SliceOutput {
                    probabilities: Vec::new(),
                    weight: weight.max(0.0),
                    activation_map: Some(map),
                })
                .collect(),
        })
    }
}

impl CovnetModel {
    fn run(&self, slices: &Slices, target: i64) -> Result<WholeScan, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let input = batch(slices.slices(), slices.shape(), self.device).map_err(torch)?;
        let portion = match self.batch_norm {
            BatchNormMode::Running => Some(self.portion.0.get() as i64),
            BatchNormMode::Batch => None,
        };
        let output = self.network.forward(&input, target, portion).map_err(torch)?;
        let (_, rows, columns) = output.activation_maps.size3().map_err(torch)?;
        let weights = rows_of(&self.name, &output.slice_contributions)?;
        let maps = rows_of(&self.name, &output.activation_maps)?;
        Ok(WholeScan {
            logits: rows_of(&self.name, &output.logits)?.concat(),
            embedding: rows_of(&self.name, &output.embedding)?.concat(),
            slices: weights
                .concat()
                .into_iter()
                .zip(maps)
                .map(|(weight, map)| {
                    let method = ScanArchitecture::Covnet.explanation().name();
                    (weight, ActivationMap::new(rows as usize, columns as usize, map, method))
                })
                .collect(),
        })
    }
}

impl Model for CovnetModel {
    type Question = ScanQuestion;
    type Answer = ScanOutput;

    fn answer(&self, scans: &[&ScanQuestion]) -> Result<Vec<ScanOutput>, NnError> {
        let one = |scan: &&ScanQuestion| {
            WholeScan::answer(&self.class_of_output, scan, |target| match self.run(&scan.slices, target) {
                Err(error)
                    if error.is_out_of_memory()
                        && self.batch_norm == BatchNormMode::Running
                        && self.portion.0.get() > 1 =>
                {
                    self.portion.0.set(1);
                    tracing::warn!(network = self.name, "not enough memory for the slices: one at a time from now on");
                    self.run(&scan.slices, target)
                }
                other => other,
            })
        };
        scans.iter().map(one).collect()
    }
}

/// DeCoVNet, which sees the volume.
struct DeCoVNetModel {
    name: String,
    network: DeCoVNet,
    class_of_output: Vec<usize>,
    device: tch::Device,
}

impl DeCoVNetModel {
    fn run(&self, slices: &Slices, target: i64) -> Result<WholeScan, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let volume = batch(slices.slices(), slices.shape(), self.device)
            .and_then(|slices| slices.f_transpose(0, 1)?.f_contiguous()?.f_unsqueeze(0))
            .map_err(torch)?;
        let targets = Tensor::f_from_slice(&[target]).and_then(|targets| targets.f_to(self.device)).map_err(torch)?;
        let explained = self.network.forward(&volume, &targets, Explanation::HiResCam).map_err(torch)?;
        let (_, depth, rows, columns) = explained.map.size4().map_err(torch)?;
        let maps = explained.map.f_squeeze_dim(0).map_err(torch)?;
        let maps = rows_of(&self.name, &maps)?;
        let of_slice = |slice: usize| {
            // The network sees half as many slices from its second stage on.
            let map = maps.get((slice * depth as usize / slices.count).min(depth as usize - 1)).cloned();
            let map = map.unwrap_or_default();
            let weight = map.iter().map(|value| value.max(0.0)).sum::<f32>() / map.len().max(1) as f32;
            let method = ScanArchitecture::DeCoVNet.explanation().name();
            (weight, ActivationMap::new(rows as usize, columns as usize, map, method))
        };
        Ok(WholeScan {
            logits: rows_of(&self.name, &explained.logits)?.concat(),
            embedding: rows_of(&self.name, &explained.embedding)?.concat(),
            slices: (0..slices.count).map(of_slice).collect(),
        })
    }
}

impl Model for DeCoVNetModel {
    type Question = ScanQuestion;
    type Answer = ScanOutput;

    fn answer(&self, scans: &[&ScanQuestion]) -> Result<Vec<ScanOutput>, NnError> {
        let one = |scan: &&ScanQuestion| {
            WholeScan::answer(&self.class_of_output, scan, |target| self.run(&scan.slices, target))
        };
        scans.iter().map(one).collect()
    }
}
