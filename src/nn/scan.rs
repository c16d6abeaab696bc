//! The networks of a bundle for chest CT, ready to use: a segmenter of the lungs, and classifiers that see a scan slice
//! by slice or as one volume, or networks that outline lesions. Each is owned by one thread, which works on one scan at a time.

use std::{cell::Cell, sync::Arc};

use futures_util::future::try_join_all;
use tch::{TchError, Tensor};

use super::{
    bundle::Bundle,
    covnet::{BatchNormMode, Covnet},
    cuda::require_devices,
    decovnet::DeCoVNet,
    dre_net::{self, DreNet, Square},
    ensemble::{
        ActivationMap, ClassifierModel, ClassifierQuestion, EnsembleOptions, MemberOutput, input_batch, member_outputs,
        target_output,
    },
    error::NnError,
    explain::Explanation,
    fusion::class_probabilities,
    lesions,
    load::{LoadPlan, Network, batch, gather, only, rows_of, upload},
    manifest::{Input, Member, MemberArchitecture},
    multi_scale::MultiScale,
    owner::{Model, Step},
    plane::Planes,
    pooling::{ClassPooling, pool_slices},
    r231::{N_CLASSES, R231},
    runner::{Forward, Runner},
    scan_manifest::ScanArchitecture,
    script::{ScriptModel, ScriptVolume},
    unet_plus_plus::UNetPlusPlus,
};
use crate::types::Errand;

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
    pub(super) const fn shape(&self) -> [usize; 3] {
        [self.channels, self.rows, self.columns]
    }

    pub(super) fn slices(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.shape().iter().product::<usize>().max(1))
    }

    /// As many parts as wanted, or as there are slices, of about as many slices each, in their order.
    fn parts(self: Arc<Self>, wanted: usize) -> Vec<Arc<Self>> {
        let each = self.count.div_ceil(wanted.max(1)).max(1);
        if self.count <= each {
            return vec![self];
        }
        let samples = each * self.shape().iter().product::<usize>();
        let part = |(idx, values): (usize, &[f32])| {
            let count = each.min(self.count - idx * each);
            Arc::new(Self { count, values: values.to_vec(), ..*self })
        };
        self.values.chunks(samples.max(1)).enumerate().map(part).collect()
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
    members: Vec<ScanMember>,
    /// The members of a bundle that outlines lesions, which has no classifiers.
    outliners: Vec<Network<Arc<Slices>, Vec<f32>>>,
    n_classes: usize,
}

/// A classifier.
enum ScanMember {
    /// It sees every slice by itself, and the scan is what pooling by these rules makes of its answers.
    BySlice(Network<ScanQuestion, Vec<MemberOutput>>, Vec<ClassPooling>),
    /// It sees the scan.
    Whole(Network<ScanQuestion, ScanOutput>),
}

impl ScanMember {
    fn computing(&self) -> String {
        match self {
            Self::BySlice(network, _) => network.computing(),
            Self::Whole(network) => network.computing(),
        }
    }

    /// Of copies that are alike, begins with another one.
    fn begin_with(&mut self, number: usize) {
        match self {
            Self::BySlice(network, _) => network.copies.begin_with(number),
            Self::Whole(network) => network.copies.begin_with(number),
        }
    }

    /// What it says of a scan of at least one slice; the copies of a network that sees slices share them.
    async fn ask(&self, slices: Arc<Slices>, target_class_idx: usize, errand: &Errand) -> Result<ScanOutput, NnError> {
        let question = |slices| ScanQuestion { slices, target_class_idx };
        match self {
            Self::Whole(network) => {
                check(network, &slices)?;
                network.copies.ask(question(slices), errand).await
            }
            Self::BySlice(network, rules) => {
                check(network, &slices)?;
                let parts = slices.parts(network.copies.count());
                let outputs = parts.into_iter().map(|part| network.copies.ask(question(part), errand));
                pooled(&network.name, try_join_all(outputs).await?.concat(), rules, target_class_idx)
            }
        }
    }
}

pub(super) struct ScanQuestion {
    /// All members see the same.
    pub(super) slices: Arc<Slices>,
    pub(super) target_class_idx: usize,
}

impl ScanEnsemble {
    /// Loads every network of `bundle` onto every device, each copy onto a thread of its own, one after the other; the error
    /// names every problem of every network. Blocks for seconds: call it from `spawn_blocking` or a thread.
    pub fn load(bundle: &Bundle, options: EnsembleOptions) -> Result<Self, NnError> {
        require_devices(&options.devices)?;
        let manifest = bundle.manifest();
        let load_error = |problems| NnError::Load { bundle: manifest.name.clone(), problems };
        if !manifest.input.is_ct() {
            let kind = manifest.input.kind();
            return Err(load_error(vec![format!("a bundle of the kind `{kind}` has no networks of chest CT")]));
        }
        // A question is a whole scan.
        let options = EnsembleOptions { gather: std::time::Duration::ZERO, ..options };
        let mut plans = manifest.networks().map(|entry| LoadPlan::new(bundle, &entry, options.clone()));
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
                let (network, _store) =
                    plan.load(|path| R231::new(path, width), |name| architecture.ignores_tensor(name))?;
                let forward: Forward = Box::new(move |inputs| Ok(vec![network.forward(only(inputs)?)?]));
                let runner = plan.runner(forward, [1, side as i64, side as i64], 1)?;
                Ok(LungModel { name: plan.name.clone(), runner, device: plan.device, portion })
            });
            segmenter = gather(started, &mut problems)?;
        }
        let (mut members, mut outliners) = (Vec::new(), Vec::new());
        let n_members = options.n_members(manifest);
        for (number, (member, plan)) in manifest.members.iter().zip(plans).take(n_members).enumerate() {
            if matches!(manifest.input, Input::Seg2d { .. }) {
                outliners.extend(gather(lesions::start(bundle, member, plan), &mut problems)?);
            } else if let Some(mut started) = gather(start_member(bundle, member, plan), &mut problems)? {
                started.begin_with(number);
                members.push(started);
            }
        }
        if problems.is_empty() {
            let n_classes = manifest.classification.as_ref().map_or(0, |of| of.classes.len());
            Ok(Self { networks: Arc::new(Networks { segmenter, members, outliners, n_classes }) })
        } else {
            Err(load_error(problems))
        }
    }

    /// Number of classifiers.
    #[must_use]
    pub fn n_members(&self) -> usize {
        self.networks.members.len()
    }

    /// What each network computes with, the segmenter first: devices and precision.
    #[must_use]
    pub fn computing(&self) -> Vec<String> {
        let Networks { segmenter, members, outliners, .. } = self.networks.as_ref();
        let members = members.iter().map(ScanMember::computing);
        let members = members.chain(outliners.iter().map(Network::computing));
        segmenter.iter().map(Network::computing).chain(members).collect()
    }

    /// The label of each pixel of slices of the segmenter's input side, with samples from -1024 (0) to 600 Hounsfield units
    /// (1): 0 background, 1 right lung, 2 left lung. The patient's right is at the left of a slice, the front above.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn segment(&self, slices: Slices, errand: &Errand) -> Result<Vec<u8>, NnError> {
        let network = "lung segmenter".to_owned();
        let segmenter = self.networks.segmenter.as_ref().ok_or(NnError::Stopped { network })?;
        check(segmenter, &slices)?;
        let parts = Arc::new(slices).parts(segmenter.copies.count());
        let labels = parts.into_iter().map(|part| segmenter.copies.ask(Arc::unwrap_or_clone(part), errand));
        Ok(try_join_all(labels).await?.concat())
    }

    /// Runs one member on a scan of at least one slice, of the shape that the manifest gives, already normalised. Weights
    /// and activation maps are about the class `target_class_idx`.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn classify(
        &self,
        member_idx: usize,
        slices: Arc<Slices>,
        target_class_idx: usize,
        errand: &Errand,
    ) -> Result<ScanOutput, NnError> {
        let n_members = self.networks.members.len();
        let member = self.networks.members.get(member_idx).ok_or(NnError::NoSuchMember { member_idx, n_members })?;
        let n_classes = self.networks.n_classes;
        if target_class_idx >= n_classes {
            return Err(NnError::NoSuchClass { class_idx: target_class_idx, n_classes });
        }
        member.ask(slices, target_class_idx, errand).await
    }

    /// The probability of lesion, 0 to 1, of each pixel of slices (at least one, of the shape that the manifest gives,
    /// already normalised) by one member of a bundle that outlines lesions: slice after slice, row after row.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn outline(&self, member_idx: usize, slices: Arc<Slices>, errand: &Errand) -> Result<Vec<f32>, NnError> {
        let n_members = self.networks.outliners.len();
        let member = self.networks.outliners.get(member_idx).ok_or(NnError::NoSuchMember { member_idx, n_members })?;
        check(member, &slices)?;
        let parts = slices.parts(member.copies.count());
        Ok(try_join_all(parts.into_iter().map(|part| member.copies.ask(part, errand))).await?.concat())
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
fn start_member(bundle: &Bundle, member: &Member, mut plan: LoadPlan) -> Result<ScanMember, NnError> {
    let manifest = bundle.manifest();
    let class_of_output = manifest.class_of_output();
    let n_classes = manifest.classification.as_ref().map_or(0, |of| of.classes.len());
    let shape = manifest.input.scan().map_or([0; 3], super::ScanPreprocessing::shape);
    let rules = match &manifest.input {
        Input::Slices2d { aggregation, .. } => aggregation.rules(n_classes),
        _ => Vec::new(),
    };
    let (width, batch_norm, portion) = (member.width, member.batch_norm, plan.by_portions());
    let (options, explanation) = (member.classifier_options(), member.method());
    let n_outputs = class_of_output.len() as i64;
    match member.architecture {
        MemberArchitecture::Known(architecture) => Ok(ScanMember::BySlice(
            plan.start(&member.name, vec![shape], move |plan| {
                let network = ClassifierModel::load(plan, architecture, (width, options), shape, class_of_output)?;
                Ok(BySlice { name: plan.name.clone(), network, portion })
            })?,
            rules,
        )),
        MemberArchitecture::TorchScript if matches!(manifest.input, Input::Volume3d { .. }) => {
            Ok(ScanMember::Whole(plan.start(&member.name, vec![shape], move |plan| {
                ScriptModel::load_planned(plan, class_of_output).map(ScriptVolume::of)
            })?))
        }
        MemberArchitecture::TorchScript => Ok(ScanMember::BySlice(
            plan.start(&member.name, vec![shape], move |plan| {
                let network = ScriptModel::load_planned(plan, class_of_output)?;
                Ok(BySlice { name: plan.name.clone(), network, portion })
            })?,
            rules,
        )),
        MemberArchitecture::Scan(architecture @ ScanArchitecture::MultiScale) => Ok(ScanMember::BySlice(
            plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) = plan
                    .load(|path| MultiScale::new(path, width, n_outputs), |name| architecture.ignores_tensor(name))?;
                let method = architecture.activation_map_method();
                let forward = multi_scale_forward(network, plan.options.explain);
                let network = ClassifierModel::of(plan, forward, shape, method, class_of_output)?;
                Ok(BySlice { name: plan.name.clone(), network, portion })
            })?,
            rules,
        )),
        MemberArchitecture::Scan(architecture @ ScanArchitecture::Covnet) => {
            Ok(ScanMember::Whole(plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) = plan.load(
                    |path| Covnet::new(path, width, n_outputs, batch_norm),
                    |name| architecture.ignores_tensor(name),
                )?;
                Ok(CovnetModel {
                    name: plan.name.clone(),
                    network,
                    batch_norm,
                    class_of_output,
                    explain: plan.options.explain,
                    device: plan.device,
                    portion,
                })
            })?))
        }
        MemberArchitecture::Scan(architecture @ ScanArchitecture::DreNet) => Ok(ScanMember::BySlice(
            plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) =
                    plan.load(|path| DreNet::new(path, width, n_outputs), |name| architecture.ignores_tensor(name))?;
                let (name, explain) = (plan.name.clone(), plan.options.explain);
                let network = DreNetModel { name, network, class_of_output, explain, device: plan.device };
                Ok(BySlice { name: plan.name.clone(), network, portion })
            })?,
            rules,
        )),
        MemberArchitecture::Scan(architecture @ ScanArchitecture::DeCoVNet) => {
            Ok(ScanMember::Whole(plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) =
                    plan.load(|path| DeCoVNet::new(path, width, n_outputs), |name| architecture.ignores_tensor(name))?;
                let explanation = explanation.unwrap_or(Explanation::HiResCam);
                Ok(DeCoVNetModel {
                    name: plan.name.clone(),
                    network,
                    explanation,
                    class_of_output,
                    explain: plan.options.explain,
                    device: plan.device,
                })
            })?))
        }
        MemberArchitecture::Scan(architecture @ ScanArchitecture::UNetPlusPlus) => {
            plan.name.clone_from(&member.name);
            Err(plan.problems(&[format!("`{}` outlines lesions and classifies nothing", architecture.name())]))
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
        ScanArchitecture::DreNet => DreNet::new(path, width, n_outputs).map(drop),
        ScanArchitecture::DeCoVNet => DeCoVNet::new(path, width, n_outputs).map(drop),
        ScanArchitecture::UNetPlusPlus => UNetPlusPlus::new(path, width, n_outputs).map(drop),
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
    pub(super) fn by_portions(&mut self) -> Portion {
        Portion::of(std::mem::replace(&mut self.options.max_batch, 1))
    }
}

/// How many slices go through a network together.
#[derive(Clone)]
pub(super) struct Portion(Cell<usize>);

impl Portion {
    /// Of that many slices, one at least.
    pub(super) fn of(slices: usize) -> Self {
        Self(Cell::new(slices.max(1)))
    }

    /// Runs `work` on the slices from one index to before another until all `count` are through, with a `step` in
    /// between; where memory does not suffice portions become smaller and stay so.
    pub(super) fn each<T>(
        &self,
        network: &str,
        count: usize,
        step: Step<'_>,
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
                    if first < count {
                        step()?;
                    }
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
    fn labels(&self, slices: &Slices, step: Step<'_>) -> Result<Vec<u8>, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        self.portion.each(&self.name, slices.count, step, |range| {
            let n = range.len() as i64;
            let input = batch(slices.slices().skip(range.start).take(range.len()), slices.shape(), self.device)
                .map_err(torch)?;
            let targets = Tensor::f_zeros([n], (tch::Kind::Int64, self.device)).map_err(torch)?;
            let [scores] = self.runner.run_for(&[input, targets])?;
            if scores.size().get(1) != Some(&N_CLASSES) {
                let words = format!("its output has the shape {:?}", scores.size());
                return Err(NnError::Torch { network: self.name.clone(), words });
            }
            // A NaN would win the comparison unseen.
            rows_of(&self.name, &scores)?;
            let labels =
                scores.f_argmax(1, false).and_then(|labels| labels.f_to_kind(tch::Kind::Uint8)).map_err(torch)?;
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

    fn answer(&self, questions: &[&Slices], step: Step<'_>) -> Result<Vec<Vec<u8>>, NnError> {
        questions.iter().map(|slices| self.labels(slices, step)).collect()
    }
}

/// A classifier of pictures that sees every slice by itself.
struct BySlice<M> {
    name: String,
    network: M,
    portion: Portion,
}

impl<M: Model<Question = ClassifierQuestion, Answer = MemberOutput>> BySlice<M> {
    fn slices(&self, scan: &ScanQuestion, step: Step<'_>) -> Result<Vec<MemberOutput>, NnError> {
        let slices = &scan.slices;
        self.portion.each(&self.name, slices.count, step, |range| {
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
            self.network.answer(&questions.iter().collect::<Vec<_>>(), step)
        })
    }
}

/// What a network says of a scan by what it says of its slices.
fn pooled(
    network: &str,
    outputs: Vec<MemberOutput>,
    rules: &[ClassPooling],
    target_class_idx: usize,
) -> Result<ScanOutput, NnError> {
    let of_slices: Vec<Vec<f64>> =
        outputs.iter().map(|output| output.probabilities.iter().copied().map(f64::from).collect()).collect();
    // Where all its maps are empty, the multi-scale network gives every class the same probability: it does not know. Such a
    // slice must not count for the class that is rare.
    let says_something = |slice: &&Vec<f64>| slice.windows(2).any(|pair| pair.first() != pair.last());
    let telling: Vec<Vec<f64>> = of_slices.iter().filter(says_something).cloned().collect();
    let of_scan = pool_slices(if telling.is_empty() { &of_slices } else { &telling }, rules)
        .map_err(|error| NnError::Torch { network: network.to_owned(), words: error.to_string() })?;
    Ok(ScanOutput {
        probabilities: of_scan.into_iter().map(|p| p as f32).collect(),
        embedding: mean_embedding(&outputs),
        slices: outputs
            .into_iter()
            .map(|output| SliceOutput {
                weight: output.probabilities.get(target_class_idx).copied().unwrap_or(0.0),
                probabilities: output.probabilities,
                activation_map: output.activation_map,
            })
            .collect(),
    })
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
    type Answer = Vec<MemberOutput>;

    fn answer(&self, scans: &[&ScanQuestion], step: Step<'_>) -> Result<Vec<Vec<MemberOutput>>, NnError> {
        scans.iter().map(|scan| self.slices(scan, step)).collect()
    }
}

/// COVNet, which judges the scan by the largest value of each feature.
struct CovnetModel {
    name: String,
    network: Covnet,
    batch_norm: BatchNormMode,
    class_of_output: Vec<usize>,
    explain: bool,
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
    /// stronger one. What speaks for slices, and where in them, is left out unless `explain`.
    fn answer(
        (class_of_output, explain): (&[usize], bool),
        scan: &ScanQuestion,
        run: impl Fn(i64) -> Result<Self, NnError>,
    ) -> Result<ScanOutput, NnError> {
        let first = target_output(class_of_output, scan.target_class_idx, None);
        let mut found = run(first)?;
        let strongest = target_output(class_of_output, scan.target_class_idx, Some(&found.logits));
        if strongest != first && explain {
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
                    weight: if explain { weight.max(0.0) } else { 0.0 },
                    activation_map: explain.then_some(map),
                })
                .collect(),
        })
    }
}

impl CovnetModel {
    fn run(&self, slices: &Slices, target: i64, step: Step<'_>) -> Result<WholeScan, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let last_map = |range: std::ops::Range<usize>| {
            let portion = slices.slices().skip(range.start).take(range.len());
            let portion = batch(portion, slices.shape(), self.device).map_err(torch)?;
            Ok(vec![self.network.last_map(&portion).map_err(torch)?])
        };
        let maps = match self.batch_norm {
            BatchNormMode::Running => self.portion.each(&self.name, slices.count, step, last_map)?,
            BatchNormMode::Batch => last_map(0..slices.count)?,
        };
        let output = self.network.judge(&maps, target).map_err(torch)?;
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
                    let method = ScanArchitecture::Covnet.activation_map_method();
                    (weight, ActivationMap::new(rows as usize, columns as usize, map, method))
                })
                .collect(),
        })
    }
}

impl Model for CovnetModel {
    type Question = ScanQuestion;
    type Answer = ScanOutput;

    fn answer(&self, scans: &[&ScanQuestion], step: Step<'_>) -> Result<Vec<ScanOutput>, NnError> {
        let one = |scan: &&ScanQuestion| {
            let run = |target| self.run(&scan.slices, target, step);
            WholeScan::answer((&self.class_of_output, self.explain), scan, run)
        };
        scans.iter().map(one).collect()
    }
}

/// DRE-Net, which looks at a slice, and at the squares of it that it asks for.
struct DreNetModel {
    name: String,
    network: DreNet,
    class_of_output: Vec<usize>,
    explain: bool,
    device: tch::Device,
}

impl DreNetModel {
    /// One slice at a time: what is cut out differs from slice to slice.
    fn one(&self, question: &ClassifierQuestion) -> Result<MemberOutput, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let fine = input_batch(&[question], 0, self.device).map_err(torch)?;
        let side = dre_net::INPUT_SIDE_PIXELS;
        let slice = fine.f_internal_upsample_bilinear2d_aa([side, side], false, None, None).map_err(torch)?;
        let output = self.network.forward(&slice, &fine).map_err(torch)?;
        let logits = rows_of(&self.name, &output.logits)?;
        let of_squares: Vec<f32> = rows_of(&self.name, &output.square_logits)?
            .iter()
            .map(|logits| class_probabilities(logits, &self.class_of_output))
            .map(|probabilities| probabilities.get(question.target_class_idx).copied().unwrap_or(0.0))
            .collect();
        let map = self.explain.then(|| squares_map(&output.squares, &of_squares));
        let embedding = rows_of(&self.name, &output.embedding)?;
        let mut answers = member_outputs(&self.class_of_output, logits, embedding, vec![map]);
        answers.pop().ok_or_else(|| NnError::Torch { network: self.name.clone(), words: "it gave nothing".to_owned() })
    }
}

/// The mean of what is said of the squares that cover a cell, on a grid of 28 x 28 cells of 16 pixels.
fn squares_map(squares: &[Square], said: &[f32]) -> ActivationMap {
    const CELL_PIXELS: i64 = 16;
    let side = dre_net::INPUT_SIDE_PIXELS / CELL_PIXELS;
    let value = |cell: i64| {
        let middle = |cell: i64| cell * CELL_PIXELS + CELL_PIXELS / 2;
        let (row, column) = (middle(cell / side), middle(cell % side));
        let covers = |square: &Square| {
            (square.row..square.row + square.side).contains(&row)
                && (square.column..square.column + square.side).contains(&column)
        };
        let said: Vec<f32> = squares.iter().zip(said).filter(|(square, _)| covers(square)).map(|(_, p)| *p).collect();
        if said.is_empty() { 0.0 } else { said.iter().sum::<f32>() / said.len() as f32 }
    };
    let method = ScanArchitecture::DreNet.activation_map_method();
    ActivationMap::new(side as usize, side as usize, (0..side * side).map(value).collect(), method)
}

impl Model for DreNetModel {
    type Question = ClassifierQuestion;
    type Answer = MemberOutput;

    fn answer(&self, questions: &[&ClassifierQuestion], _: Step<'_>) -> Result<Vec<MemberOutput>, NnError> {
        questions.iter().map(|question| self.one(question)).collect()
    }
}

/// A scan as one tensor `1 x channels x slices x rows x columns`.
pub(super) fn volume_of(slices: &Slices, device: tch::Device) -> Result<Tensor, TchError> {
    batch(slices.slices(), slices.shape(), device)?.f_transpose(0, 1)?.f_contiguous()?.f_unsqueeze(0)
}

/// DeCoVNet, which sees the volume.
struct DeCoVNetModel {
    name: String,
    network: DeCoVNet,
    explanation: Explanation,
    class_of_output: Vec<usize>,
    explain: bool,
    device: tch::Device,
}

impl DeCoVNetModel {
    fn run(&self, slices: &Slices, target: i64) -> Result<WholeScan, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let volume = volume_of(slices, self.device).map_err(torch)?;
        let targets =
            Tensor::f_from_slice(&[target]).and_then(|targets| upload(&targets, self.device)).map_err(torch)?;
        let explained = self.network.forward(&volume, &targets, self.explanation).map_err(torch)?;
        let (_, depth, rows, columns) = explained.map.size4().map_err(torch)?;
        let maps = explained.map.f_squeeze_dim(0).map_err(torch)?;
        let maps = rows_of(&self.name, &maps)?;
        let of_slice = |slice: usize| {
            // The network sees half as many slices from its second stage on.
            let map = maps.get((slice * depth as usize / slices.count).min(depth as usize - 1)).cloned();
            let map = map.unwrap_or_default();
            let weight = map.iter().map(|value| value.max(0.0)).sum::<f32>() / map.len().max(1) as f32;
            let method = self.explanation.name();
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

    fn answer(&self, scans: &[&ScanQuestion], _: Step<'_>) -> Result<Vec<ScanOutput>, NnError> {
        let one = |scan: &&ScanQuestion| {
            let run = |target| self.run(&scan.slices, target);
            WholeScan::answer((&self.class_of_output, self.explain), scan, run)
        };
        scans.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Architecture, ImportTarget, MANIFEST_FILE_NAME, MAX_TOLERANCE, ScanOptions, import, init_ct_bundle,
            init_untrained_scan_bundle,
            lesions::script_of_shape,
            owner::GO_ON,
            precision::{Comparable as _, NetworkPrecision, Precision},
            seeded,
        },
        *,
    };

    const OPTIONS: EnsembleOptions = EnsembleOptions {
        devices: Vec::new(),
        max_batch: 3,
        gather: std::time::Duration::ZERO,
        optimise: true,
        members: true,
        explain: true,
        queue_length: 2,
        intra_op_threads: 1,
        segmenter_threads: 1,
    };

    fn bundle_of(architecture: MemberArchitecture) -> (tempfile::TempDir, Bundle) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scan");
        let is_free = architecture != MemberArchitecture::Scan(ScanArchitecture::DreNet);
        let options = ScanOptions { seed: 1, architecture, width: 0.0625, size_pixels: is_free.then_some([64, 64]) };
        init_untrained_scan_bundle(&path, options).unwrap();
        let bundle = Bundle::open(&path).unwrap();
        (folder, bundle)
    }

    fn architectures() -> impl Iterator<Item = MemberArchitecture> {
        let known = [Architecture::ResNet18, Architecture::AttentionVgg16].map(MemberArchitecture::Known);
        let of_scans = ScanArchitecture::ALL.into_iter().filter(|of| *of != ScanArchitecture::UNetPlusPlus);
        of_scans.map(MemberArchitecture::Scan).chain(known)
    }

    fn slices(bundle: &Bundle, seed: u64, count: usize) -> Slices {
        let [channels, rows, columns] = bundle.manifest().input.scan().unwrap().shape();
        let values = seeded::uniform(seed, "scan", count * channels * rows * columns, -1.0, 1.0);
        Slices { count, channels, rows, columns, values }
    }

    async fn classify(ensemble: &ScanEnsemble, slices: Slices) -> ScanOutput {
        ensemble.classify(0, Arc::new(slices), 0, &Errand::default()).await.unwrap()
    }

    fn near(found: &[f32], expected: &[f32]) -> bool {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    #[tokio::test]
    async fn every_network_of_scans_answers_and_tells_scans_apart() {
        for architecture in architectures() {
            let (_folder, bundle) = bundle_of(architecture);
            let name = architecture.name();
            let ensemble = ScanEnsemble::load(&bundle, OPTIONS).unwrap();
            let found = classify(&ensemble, slices(&bundle, 1, 7)).await;
            assert_eq!((found.probabilities.len(), found.slices.len()), (2, 7), "{name}");
            assert!((found.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{name}: {:?}", found.probabilities);
            for slice in &found.slices {
                let map = slice.activation_map.as_ref().expect(name);
                assert!(map.rows > 0 && map.rows * map.columns == map.values.len(), "{name}");
                assert!(slice.weight >= 0.0 && slice.weight.is_finite(), "{name}");
            }
            assert_eq!(found, classify(&ensemble, slices(&bundle, 1, 7)).await, "{name}: bit for bit");
            let other = classify(&ensemble, slices(&bundle, 2, 7)).await;
            assert_ne!(found.probabilities, other.probabilities, "{name}");
        }
    }

    /// As on GPUs, but for the GPU: the channels of the weights innermost, and reduced precision where it is good enough.
    #[tokio::test]
    async fn networks_of_scans_run_as_on_gpus() {
        // More than a manifest may allow: COVNet, which takes the largest of many numbers, is off by more with these weights.
        const FAR: f64 = 5.0 * MAX_TOLERANCE;
        for architecture in architectures() {
            let (_folder, bundle) = bundle_of(architecture);
            let manifest = bundle.manifest();
            let start = |as_on_gpu, cuda| {
                let entry = manifest.networks().last().unwrap();
                let mut plan = LoadPlan::new(&bundle, &entry, EnsembleOptions { optimise: false, ..OPTIONS });
                plan.as_on_gpu = as_on_gpu;
                plan.precision = NetworkPrecision { cuda, tolerance: FAR };
                start_member(&bundle, &manifest.members[0], plan).unwrap()
            };
            let scan = Arc::new(slices(&bundle, 1, 5));
            let ask = async |member: &ScanMember| member.ask(Arc::clone(&scan), 0, &Errand::default()).await.unwrap();
            let name = architecture.name();
            let expected = ask(&start(false, Precision::Bfloat16)).await;
            let network = start(true, Precision::Float32);
            assert_eq!(network.computing(), "cpu float32");
            let found = ask(&network).await;
            assert!(near(&found.probabilities, &expected.probabilities), "{name}");
            assert!(near(&found.embedding, &expected.embedding), "{name}");
            let network = start(true, Precision::Bfloat16);
            let found = ask(&network).await;
            let difference = found.difference(&expected);
            assert_eq!(network.computing(), "cpu bfloat16", "{name}");
            assert!(difference < FAR, "{name}: {difference}");
            assert_ne!(found.embedding, expected.embedding, "{name}");
        }
    }

    /// Where the manifest wants no maps there are none, and networks that see the scan as a whole name no slices either.
    #[tokio::test]
    async fn a_member_without_maps_answers_as_one_with_them() {
        for architecture in architectures() {
            let (_folder, bundle) = bundle_of(architecture);
            let expected = classify(&ScanEnsemble::load(&bundle, OPTIONS).unwrap(), slices(&bundle, 1, 5)).await;
            let (path, named) = (bundle.folder().join(MANIFEST_FILE_NAME), "version = \"untrained-seed1\"\n");
            let text = fs_err::read_to_string(&path).unwrap();
            fs_err::write(&path, text.replace(named, &format!("{named}explanation = \"none\"\n"))).unwrap();
            let silent = Bundle::open(bundle.folder()).unwrap();
            let found = classify(&ScanEnsemble::load(&silent, OPTIONS).unwrap(), slices(&bundle, 1, 5)).await;
            let name = architecture.name();
            assert!(near(&found.probabilities, &expected.probabilities), "{name}");
            assert!(near(&found.embedding, &expected.embedding), "{name}");
            assert_eq!(found.slices.len(), 5, "{name}");
            for (found, expected) in found.slices.iter().zip(&expected.slices) {
                assert_eq!((&found.activation_map, expected.activation_map.is_some()), (&None, true), "{name}");
                assert!(near(&found.probabilities, &expected.probabilities), "{name}");
                assert!(!found.probabilities.is_empty() || found.weight == 0.0, "{name}");
            }
        }
    }

    /// Of a site that has its own network of volumes: here the means of both channels as logits, or their difference as the only
    /// one.
    #[tokio::test]
    async fn a_program_of_the_site_judges_a_volume() {
        let (folder, bundle) = bundle_of(MemberArchitecture::Scan(ScanArchitecture::DeCoVNet));
        let means = |volume: &Tensor| volume.mean_dim([2i64, 3, 4].as_slice(), false, None);
        let file = folder.path().join("own.pt");
        let import_bytes = |bytes: &[u8], name: &str| {
            fs_err::write(&file, bytes).unwrap();
            let target = ImportTarget::Member { name: name.to_owned(), architecture: None, width: None };
            import(bundle.folder(), &file, &target, "1")
        };
        let import_of = |forward: &dyn Fn(&Tensor) -> Tensor, name: &str| {
            import_bytes(&script_of_shape(&[1, 2, 4, 64, 64], forward), name)
        };
        import_bytes(include_bytes!("../../tests/golden/checkpoints/volume_means.pt"), "own").unwrap();
        // Three logits of a bundle with two classes; a row for each slice.
        let three = |volume: &Tensor| means(volume).repeat([1, 2]).narrow(1, 0, 3);
        let by_slice =
            |volume: &Tensor| volume.mean_dim([3i64, 4].as_slice(), false, None).squeeze_dim(0).transpose(0, 1);
        let of_three = "of 2 slices: network `other` fails: its logits have the shape [1, 3] for 1 input(s), the \
                        manifest's classes want [1, 2]";
        for (error, words) in [
            (import_of(&three, "other"), of_three),
            (import_of(&by_slice, "other"), "its logits have the shape [2, 2] for 1 input(s)"),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let path = bundle.folder().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&path).unwrap();
        let named = "name = \"decovnet\"\n";
        fs_err::write(&path, text.replace(named, &format!("{named}output = \"sigmoid\"\n"))).unwrap();
        let error = super::super::Manifest::parse(&fs_err::read_to_string(&path).unwrap()).unwrap_err().join("\n");
        assert!(
            error.contains("`members[0].output` is `sigmoid`, and `decovnet` is defined with an output for each class"),
            "{error}"
        );
        let script = text.replace(
            "architecture = \"decovnet\"\nwidth = 0.0625\n",
            "architecture = \"torch_script\"\noutput = \"sigmoid\"\n",
        );
        let script = script.replace("decovnet.safetensors", "decovnet.pt");
        fs_err::write(&path, script).unwrap();
        import_of(&|volume| means(volume).narrow(1, 0, 1) - means(volume).narrow(1, 1, 1), "decovnet").unwrap();

        let bundle = Bundle::open(bundle.folder()).unwrap();
        let ensemble = ScanEnsemble::load(&bundle, OPTIONS).unwrap();
        for count in [1, 2, 7] {
            let scan = slices(&bundle, 1, count);
            let [first, second] = [0, 1].map(|channel: usize| {
                let of_channel = scan.slices().flat_map(|slice| &slice[channel * 64 * 64..(channel + 1) * 64 * 64]);
                of_channel.sum::<f32>() / (count * 64 * 64) as f32
            });
            let p = 1.0 / (1.0 + (second - first).exp());
            let scan = Arc::new(scan);
            for member_idx in [0, 1] {
                let found = ensemble.classify(member_idx, Arc::clone(&scan), 0, &Errand::default()).await.unwrap();
                assert!((found.probabilities[0] - p).abs() < 1e-5, "{member_idx}: {:?}, {p}", found.probabilities);
                assert_eq!(found.embedding.len(), if member_idx == 0 { 0 } else { 2 });
                let nothing = SliceOutput { probabilities: Vec::new(), weight: 0.0, activation_map: None };
                assert_eq!(found.slices, vec![nothing; count]);
            }
        }
        let tried = super::super::try_out(&bundle, OPTIONS).await.unwrap();
        assert!(tried.iter().all(|tried| tried.tells_pictures_apart), "{tried:?}");
        assert_eq!(tried[1].gave, "2 classes of a scan, 2 features, no map of each slice");
    }

    #[tokio::test]
    async fn one_output_judges_slices_as_two_do() {
        let (folder, bundle) = bundle_of(MemberArchitecture::Known(Architecture::ResNet18));
        let path = bundle.folder().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&path).unwrap();
        let known = "architecture = \"resnet18\"\nwidth = 0.0625\n";
        assert!(text.contains(known), "{text}");
        let text = text.replace(known, "architecture = \"torch_script\"\noutput = \"sigmoid\"\n");
        fs_err::write(&path, text.replace("resnet18.safetensors", "resnet18.pt")).unwrap();
        let file = folder.path().join("own.pt");
        let mean = |slices: &Tensor| slices.mean_dim([1i64, 2, 3].as_slice(), false, None).unsqueeze(1) * 40.0;
        fs_err::write(&file, script_of_shape(&[1, 3, 64, 64], mean)).unwrap();
        let target = ImportTarget::Member { name: "resnet18".to_owned(), architecture: None, width: None };
        import(bundle.folder(), &file, &target, "1").unwrap();
        let bundle = Bundle::open(bundle.folder()).unwrap();
        let scan = slices(&bundle, 1, 4);
        let found = classify(&ScanEnsemble::load(&bundle, OPTIONS).unwrap(), scan.clone()).await;
        for (slice, values) in found.slices.iter().zip(scan.slices()) {
            let z = values.iter().sum::<f32>() / values.len() as f32 * 40.0;
            let p = 1.0 / (1.0 + (-z).exp());
            assert!((slice.probabilities[0] - p).abs() < 1e-4 && (slice.weight - p).abs() < 1e-4, "{slice:?}, {p}");
            assert_eq!(slice.activation_map, None);
        }
        assert!((found.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    /// How many slices go through together must not change the answer.
    #[tokio::test]
    async fn portions_change_nothing() {
        for architecture in architectures() {
            let (_folder, bundle) = bundle_of(architecture);
            let small = ScanEnsemble::load(&bundle, EnsembleOptions { max_batch: 2, ..OPTIONS }).unwrap();
            let large = ScanEnsemble::load(&bundle, EnsembleOptions { max_batch: 16, ..OPTIONS }).unwrap();
            let (small, large) =
                (classify(&small, slices(&bundle, 3, 5)).await, classify(&large, slices(&bundle, 3, 5)).await);
            assert!(near(&small.probabilities, &large.probabilities), "{}", architecture.name());
            assert!(near(&small.embedding, &large.embedding), "{}", architecture.name());
        }
    }

    #[tokio::test]
    async fn a_scan_is_what_pooling_makes_of_its_slices() {
        let (_folder, bundle) = bundle_of(MemberArchitecture::Scan(ScanArchitecture::MultiScale));
        let ensemble = ScanEnsemble::load(&bundle, OPTIONS).unwrap();
        let scan = slices(&bundle, 4, 5);
        let found = classify(&ensemble, scan.clone()).await;
        let mut alone = Vec::new();
        for values in scan.slices() {
            let slice = Slices { count: 1, values: values.to_vec(), ..scan.clone() };
            alone.push(classify(&ensemble, slice).await.probabilities);
        }
        for (slice, expected) in found.slices.iter().zip(&alone) {
            assert!(near(&slice.probabilities, expected));
            assert!((slice.weight - expected[0]).abs() < 1e-4);
        }
        // The mean of the three highest of each class, brought to a sum of 1.
        let highest = |class: usize| {
            let mut of_class: Vec<f32> = alone.iter().map(|slice| slice[class]).collect();
            of_class.sort_by(|a, b| b.total_cmp(a));
            of_class[..3].iter().sum::<f32>() / 3.0
        };
        let sum = highest(0) + highest(1);
        assert!(near(&found.probabilities, &[highest(0) / sum, highest(1) / sum]));
    }

    /// Slices of a scan are not interchangeable for a network of volumes, and they are for the others.
    #[tokio::test]
    async fn only_a_volume_has_an_order() {
        for architecture in architectures() {
            let (_folder, bundle) = bundle_of(architecture);
            let ensemble = ScanEnsemble::load(&bundle, OPTIONS).unwrap();
            let scan = slices(&bundle, 5, 6);
            let values = scan.slices().rev().flatten().copied().collect();
            let (found, turned) =
                (classify(&ensemble, scan.clone()).await, classify(&ensemble, Slices { values, ..scan }).await);
            let is_volume = architecture == MemberArchitecture::Scan(ScanArchitecture::DeCoVNet);
            assert_ne!(near(&found.probabilities, &turned.probabilities), is_volume, "{}", architecture.name());
        }
    }

    #[tokio::test]
    async fn wrong_scans_are_refused() {
        let (_folder, bundle) = bundle_of(MemberArchitecture::Scan(ScanArchitecture::Covnet));
        let ensemble = ScanEnsemble::load(&bundle, OPTIONS).unwrap();
        let ask = async |slices: Slices| ensemble.classify(0, Arc::new(slices), 0, &Errand::default()).await;
        let good = slices(&bundle, 6, 2);
        let none = Slices { count: 0, values: Vec::new(), ..good.clone() };
        assert!(matches!(ask(none).await, Err(NnError::InputSize { .. })));
        assert!(matches!(ask(Slices { count: 3, ..good.clone() }).await, Err(NnError::InputSize { .. })));
        let mut torn = good.clone();
        torn.values[7] = f32::NAN;
        assert!(matches!(ask(torn).await, Err(NnError::InputNotFinite { sample_idx: 7, .. })));
        let class = ensemble.classify(0, Arc::new(good.clone()), 2, &Errand::default()).await;
        assert!(matches!(class, Err(NnError::NoSuchClass { class_idx: 2, n_classes: 2 })));
        let member = ensemble.classify(1, Arc::new(good), 0, &Errand::default()).await;
        assert!(matches!(member, Err(NnError::NoSuchMember { member_idx: 1, n_members: 1 })));
    }

    #[tokio::test]
    async fn a_lung_network_is_imported_into_a_bundle_that_measures() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ct");
        init_ct_bundle(&path).unwrap();
        let checkpoint = folder.path().join("r231.safetensors");
        let weights = super::super::init::seeded_weights(1, "r231", None, |path| R231::new(path, 1.0 / 32.0).map(drop));
        fs_err::write(&checkpoint, weights.unwrap()).unwrap();
        let refused = import(&path, &checkpoint, &ImportTarget::Segmenter, "1").unwrap_err().to_string();
        assert!(refused.contains("down_path.0.block.0.weight"), "the full width is expected: {refused}");

        let manifest = path.join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&manifest).unwrap();
        let weights = super::super::init::seeded_weights(1, "r231", None, |path| R231::new(path, 1.0).map(drop));
        fs_err::write(&checkpoint, weights.unwrap()).unwrap();
        import(&path, &checkpoint, &ImportTarget::Segmenter, "lungmask-0.2.17").unwrap();
        let changed = fs_err::read_to_string(&manifest).unwrap();
        assert!(
            changed.contains("architecture = \"r231\"") && changed.contains("normalisation = \"hu_range\""),
            "{changed}"
        );
        assert!(!text.contains("r231"));

        let bundle = Bundle::open(&path).unwrap();
        assert_eq!(bundle.identity().segmenter.unwrap().version, "lungmask-0.2.17");
        let ensemble = ScanEnsemble::load(&bundle, OPTIONS).unwrap();
        let values = seeded::uniform(1, "lungs", 2 * 256 * 256, 0.0, 1.0);
        let slices = Slices { count: 2, channels: 1, rows: 256, columns: 256, values };
        let labels = ensemble.segment(slices, &Errand::default()).await.unwrap();
        assert_eq!(labels.len(), 2 * 256 * 256);
        assert!(labels.iter().all(|label| *label <= 2));
    }

    #[tokio::test]
    async fn the_copies_of_a_network_of_slices_share_a_scan() {
        let two = EnsembleOptions { devices: vec![crate::types::Device::Cpu; 2], ..OPTIONS };
        for architecture in [ScanArchitecture::MultiScale, ScanArchitecture::Covnet] {
            let (_folder, bundle) = bundle_of(MemberArchitecture::Scan(architecture));
            let scan = slices(&bundle, 3, 7);
            let expected = classify(&ScanEnsemble::load(&bundle, OPTIONS).unwrap(), scan.clone()).await;
            let shared = ScanEnsemble::load(&bundle, two.clone()).unwrap();
            let found = classify(&shared, scan).await;
            assert_eq!(found.slices.len(), 7);
            assert!(near(&found.probabilities, &expected.probabilities) && near(&found.embedding, &expected.embedding));
            for (found, expected) in found.slices.iter().zip(&expected.slices) {
                assert!((found.weight - expected.weight).abs() < 1e-4, "in the order of the slices");
            }
        }
        let scan = Arc::new(Slices {
            count: 7,
            channels: 1,
            rows: 1,
            columns: 2,
            values: (0..14_u8).map(f32::from).collect(),
        });
        let parts = |wanted| Arc::clone(&scan).parts(wanted);
        let counts = |wanted| parts(wanted).iter().map(|part| part.count).collect::<Vec<_>>();
        assert_eq!((counts(1), counts(2), counts(3), counts(9)), (vec![7], vec![4, 3], vec![3, 3, 1], vec![1; 7]));
        assert_eq!(parts(3)[1].values, [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
    }

    #[test]
    fn work_that_nobody_waits_for_ends_with_its_portion() {
        let portion = Portion(Cell::new(2));
        let worked = Cell::new(0);
        let gone = || if worked.get() < 2 { Ok(()) } else { Err(NnError::Withdrawn { network: "n".to_owned() }) };
        let work = |range: std::ops::Range<usize>| {
            worked.set(worked.get() + 1);
            Ok(range.collect::<Vec<_>>())
        };
        assert!(matches!(portion.each("n", 9, &gone, work), Err(NnError::Withdrawn { .. })));
        assert_eq!(worked.get(), 2);
        worked.set(0);
        assert_eq!(portion.each("n", 4, &gone, work), Ok(vec![0, 1, 2, 3]), "what is whole is kept");
    }

    #[test]
    fn squares_become_a_map_of_what_is_said_of_them() {
        let square = |row, column, side| Square { row, column, side };
        let map = squares_map(&[square(0, 0, 48), square(16, 16, 96), square(-96, 400, 192)], &[0.2, 0.8, 0.5]);
        assert_eq!((map.rows, map.columns, map.method), (28, 28, "squares"));
        let at = |row: usize, column: usize| map.values[row * 28 + column];
        assert!((at(0, 0) - 0.2).abs() < 1e-6 && (at(1, 1) - 0.5).abs() < 1e-6 && (at(5, 5) - 0.8).abs() < 1e-6);
        assert!((at(0, 27) - 0.5).abs() < 1e-6, "a square over the border");
        assert_eq!((at(27, 0), at(7, 7)), (0.0, 0.0));
    }

    #[test]
    fn memory_that_does_not_suffice_makes_portions_smaller() {
        let portion = Portion(Cell::new(8));
        let asked = std::cell::RefCell::new(Vec::new());
        let work = |range: std::ops::Range<usize>| {
            asked.borrow_mut().push(range.clone());
            if range.len() > 2 {
                return Err(NnError::Torch { network: "n".to_owned(), words: "out of memory".to_owned() });
            }
            Ok(range.collect())
        };
        assert_eq!(portion.each("n", 5, GO_ON, work), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(*asked.borrow(), [0..5, 0..2, 2..4, 4..5]);
        let broken = |_: std::ops::Range<usize>| -> Result<Vec<usize>, NnError> {
            Err(NnError::OutputNotFinite { network: "n".to_owned() })
        };
        assert!(matches!(portion.each("n", 1, GO_ON, broken), Err(NnError::OutputNotFinite { .. })));
    }

    #[test]
    fn a_manifest_that_contradicts_its_networks_is_refused() {
        let text = |architecture: ScanArchitecture| {
            let (_folder, bundle) = bundle_of(MemberArchitecture::Scan(architecture));
            fs_err::read_to_string(bundle.folder().join(MANIFEST_FILE_NAME)).unwrap()
        };
        let (covnet, decovnet) = (text(ScanArchitecture::Covnet), text(ScanArchitecture::DeCoVNet));
        let dre_net = text(ScanArchitecture::DreNet);
        for (text, from, to, words) in [
            (
                &covnet,
                "architecture = \"covnet\"",
                "architecture = \"decovnet\"",
                "no use for the input of the kind `slices2d`",
            ),
            (&covnet, "architecture = \"covnet\"", "architecture = \"multi_scale\"", "takes 1 channel(s)"),
            (&covnet, "method = \"top_k_mean\"", "method = \"jin\"", "the one without disease"),
            (&covnet, "k = 3", "k = 0", "give 1 to 100"),
            (
                &covnet,
                "version = \"untrained-seed1\"",
                "version = \"untrained-seed1\"\noutput = \"sigmoid\"",
                "`members[0].output` is `sigmoid`, and `covnet` is defined with an output for each class: leave it out",
            ),
            (
                &covnet,
                "std = [1.0, 1.0, 1.0]",
                "std = [1.0, 1.0, 1.0]\nrange = [5, -5]",
                "`input.preprocessing.range` is 5 to -5: give two rising numbers",
            ),
            (
                &decovnet,
                "kind = \"volume3d\"",
                "kind = \"volume3d\"\ngates = { minimum_age_years = 121 }",
                "`input.gates.minimum_age_years` is 121: give 0 to 120",
            ),
            (
                &decovnet,
                "kind = \"volume3d\"",
                "kind = \"volume3d\"\ngates = { accepted_body_parts = [\"\"] }",
                "`input.gates.accepted_body_parts` names none: list words such as \"CHEST\"",
            ),
            (
                &decovnet,
                "kind = \"volume3d\"",
                "kind = \"volume3d\"\ngates = { accepted_body_parts = [\"chest\"] }",
                "`input.gates.accepted_body_parts` lists \"chest\": give capital letters",
            ),
            (
                &decovnet,
                "kind = \"volume3d\"",
                "kind = \"volume3d\"\ngates = { maximum_slice_thickness_mm = 0.0 }",
                "`input.gates.maximum_slice_thickness_mm` is 0: give a number from 0.1 to 20",
            ),
            (
                &decovnet,
                "kind = \"volume3d\"",
                "kind = \"volume3d\"\ngates = { minimum_lung_ml = 7000.0 }",
                "`input.gates.minimum_lung_ml` is 7000 and `maximum_lung_ml` 6000: give 0 <= minimum < maximum",
            ),
            (
                &decovnet,
                "kind = \"volume3d\"",
                "kind = \"volume3d\"\ngates = { minimum_age = 0 }",
                "unknown field `minimum_age`",
            ),
            (&covnet, "window_hu = [-1250.0, 250.0]", "window_hu = [250.0, -1250.0]", "two rising numbers"),
            (&covnet, "maximum_slices = 64", "maximum_slices = 0", "give 1 to 1000"),
            (&dre_net, "maximum_slices = 64", "maximum_slices = 1000", "at most 150000000 fit into memory"),
            (&covnet, "std = [1.0, 1.0, 1.0]", "std = [1.0, 1.0]", "give 3 numbers"),
            (&covnet, "resize = \"stretch\"", "resize = \"crop\"", "would cut lungs off"),
            (&covnet, "status = \"untrained\"", "status = \"unvalidated\"", "bring trained weights in"),
            (
                &decovnet,
                "architecture = \"decovnet\"",
                "architecture = \"resnet50\"",
                "no use for the input of the kind `volume3d`",
            ),
            (
                &decovnet,
                "version = \"untrained-seed1\"",
                "version = \"1\"\nbatch_norm = \"batch\"",
                "only `covnet` has",
            ),
        ] {
            assert!(text.contains(from), "{from}\n{text}");
            let problems = super::super::Manifest::parse(&text.replacen(from, to, 1)).unwrap_err();
            assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:?}");
        }
        let batch =
            covnet.replace("version = \"untrained-seed1\"", "version = \"untrained-seed1\"\nbatch_norm = \"batch\"");
        assert!(super::super::Manifest::parse(&batch).is_ok());
    }
}
