//! The networks of a bundle, ready to use.

use std::{sync::Arc, time::Duration};

use tch::{TchError, Tensor};

use super::{
    architecture::Architecture,
    bundle::Bundle,
    classifier::{Classifier, ClassifierOptions},
    cuda::require_devices,
    error::NnError,
    fusion::class_probabilities,
    load::{LoadPlan, Network, batch, gather, only, rows_of, upload},
    manifest::{Input, Manifest, MemberArchitecture},
    owner::{Model, Step},
    plane::{Plane, Planes},
    runner::{Forward, Runner},
    script::ScriptModel,
    unet::UNet,
};
use crate::types::{Device, Errand};

/// How networks are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsembleOptions {
    /// Where: a copy of every network is loaded onto each device. None counts as the processor.
    pub devices: Vec<Device>,
    /// Most images in one batch; 0 counts as 1.
    pub max_batch: usize,
    /// How long a batch waits for more images after its first. Pays where a batch costs little more than one image, as
    /// on GPUs.
    pub gather: Duration,
    /// Whether networks are recorded, frozen and optimised for the processor. Without effect on other devices.
    pub optimise: bool,
    /// Whether the members are loaded, or the lung segmenter alone.
    pub members: bool,
    /// Whether classifiers give activation maps.
    pub explain: bool,
    /// Requests that may wait for one network before askers do; 0 counts as 1.
    pub queue_length: usize,
    /// Threads that one network uses for one operation; 0 counts as 1. All networks of an ensemble may run at
    /// the same time, so 1 is right when other work shares the processor. With more, start the process with
    /// `OMP_WAIT_POLICY=passive`: OpenMP's spinning threads slow each other down tenfold on shared cores.
    pub intra_op_threads: usize,
    /// The same of the lung segmenter, which computes before the others; 0 counts as 1.
    pub segmenter_threads: usize,
}

impl Default for EnsembleOptions {
    fn default() -> Self {
        Self {
            devices: vec![Device::Cpu],
            max_batch: 8,
            gather: Duration::ZERO,
            optimise: true,
            members: true,
            explain: true,
            queue_length: 32,
            intra_op_threads: 1,
            segmenter_threads: 1,
        }
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
    /// `cam` (sum over channels of class weight times feature map), `hirescam` (sum over channels of the logit's gradient
    /// times feature map), `attention` (where an attention network looked, the same for every class), another
    /// [`Explanation`](super::Explanation), or `own` (made by the TorchScript file itself).
    pub method: &'static str,
}

/// What one member says of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberOutput {
    /// One per network output.
    pub logits: Vec<f32>,
    /// One per class, 0 to 1, not calibrated: softmax of the logits, summed over the outputs of a class.
    pub probabilities: Vec<f32>,
    /// Features before the last linear layer: global average pool (ResNets) or fc7 after ReLU (VGG-16). Empty when a
    /// TorchScript file gives none.
    pub embedding: Vec<f32>,
    /// Of the class that was asked for; `None` when a TorchScript file gives none.
    pub activation_map: Option<ActivationMap>,
}

impl EnsembleOptions {
    /// How many members of a bundle are loaded.
    pub(super) fn n_members(&self, manifest: &Manifest) -> usize {
        if self.members { manifest.members.len() } else { 0 }
    }
}

/// The networks of one bundle, each owned by its thread. Cloning gives another handle on the same networks;
/// dropping the last one ends the threads and blocks until the batches that run are done.
#[derive(Clone)]
pub struct Ensemble {
    networks: Arc<Networks>,
}

struct Networks {
    segmenter: Network<Plane, Plane>,
    members: Vec<Network<ClassifierQuestion, MemberOutput>>,
    n_classes: usize,
}

/// What a classifier is asked.
pub(super) struct ClassifierQuestion {
    pub(super) inputs: Vec<Planes>,
    pub(super) target_class_idx: usize,
}

impl Ensemble {
    /// Loads every network of `bundle` onto every device, each copy onto a thread of its own, one after the other; the error names every
    /// problem of every network. Blocks for seconds: call it from `spawn_blocking` or a thread.
    pub fn load(bundle: &Bundle, options: EnsembleOptions) -> Result<Self, NnError> {
        require_devices(&options.devices)?;
        let manifest = bundle.manifest();
        let load_error = |problems| NnError::Load { bundle: manifest.name.clone(), problems };
        let (Input::Image2d { .. }, Some(segmenter)) = (&manifest.input, &manifest.segmenter) else {
            let kind = manifest.input.kind();
            return Err(load_error(vec![format!("a bundle of the kind `{kind}` has no networks of radiographs")]));
        };
        let class_of_output = manifest.class_of_output();
        let (segmenter_threads, n_members) = (options.segmenter_threads, options.n_members(manifest));
        let mut entries = manifest.networks().map(move |entry| LoadPlan::new(bundle, &entry, options.clone()));
        let mut problems = Vec::new();

        let (width, side) = (segmenter.width, segmenter.input_side_pixels as usize);
        let lungs = entries.next().map(|mut plan| {
            plan.options.intra_op_threads = segmenter_threads;
            plan.start("lung segmenter", vec![[1, side, side]], move |plan| {
                let (network, _store) = plan.load(|path| UNet::new(path, width), |_| false)?;
                let forward: Forward = Box::new(move |inputs| Ok(vec![network.forward(only(inputs)?)?]));
                let runner = plan.runner(forward, [1, side as i64, side as i64], 1)?;
                Ok(SegmenterModel { name: plan.name.clone(), runner, device: plan.device })
            })
        });
        let lungs = lungs.and_then(|lungs| gather(lungs, &mut problems).transpose()).transpose()?;
        let mut members = Vec::new();
        for (member, plan) in manifest.members.iter().zip(entries).take(n_members) {
            let shapes = manifest.inputs_of(member).into_iter().map(super::Preprocessing::shape).collect();
            let class_of_output = class_of_output.clone();
            let network = match member.architecture {
                MemberArchitecture::Known(architecture) => {
                    let chosen = (member.width, member.classifier_options());
                    let input = manifest.inputs_of(member).first().map_or([0; 3], |of| of.shape());
                    plan.start(&member.name, shapes, move |plan| {
                        ClassifierModel::load(plan, architecture, chosen, input, class_of_output)
                    })
                }
                MemberArchitecture::TorchScript => {
                    plan.start(&member.name, shapes, move |plan| ScriptModel::load_planned(plan, class_of_output))
                }
                MemberArchitecture::Scan(architecture) => Err(load_error(vec![format!(
                    "{}: {} does not look at radiographs",
                    member.name,
                    architecture.name()
                )])),
            };
            if let Some(mut network) = gather(network, &mut problems)? {
                network.copies.begin_with(members.len());
                members.push(network);
            }
        }
        match lungs {
            Some(segmenter_network) if problems.is_empty() => Ok(Self {
                networks: Arc::new(Networks {
                    segmenter: segmenter_network,
                    members,
                    n_classes: manifest.classification.as_ref().map_or(0, |of| of.classes.len()),
                }),
            }),
            _ => Err(load_error(problems)),
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
        let Networks { segmenter, members, .. } = self.networks.as_ref();
        [segmenter.computing()].into_iter().chain(members.iter().map(Network::computing)).collect()
    }

    /// Probability of lung, 0 to 1, for each sample of a square canvas of the segmenter's input side with
    /// samples 0 to 1. The normalisation that the manifest names is done here: minus the canvas's mean, divided
    /// by its (population) standard deviation; a canvas of one value becomes all 0.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn segment(&self, canvas: Plane, errand: &Errand) -> Result<Plane, NnError> {
        let segmenter = &self.networks.segmenter;
        segmenter.check_inputs(&[([1, canvas.rows, canvas.columns], &canvas.values)])?;
        let values = z_score(&canvas.values);
        segmenter.copies.ask(Plane { values, ..canvas }, errand).await
    }

    /// Runs one member on its inputs (one; a TorchScript file may take two), of the shapes that the manifest gives, already
    /// normalised. The activation map is about the class `target_class_idx`.
    ///
    /// Cancel safety: dropping the future withdraws the request.
    pub async fn classify(
        &self,
        member_idx: usize,
        inputs: Vec<Planes>,
        target_class_idx: usize,
        errand: &Errand,
    ) -> Result<MemberOutput, NnError> {
        let n_members = self.networks.members.len();
        let member = self.networks.members.get(member_idx).ok_or(NnError::NoSuchMember { member_idx, n_members })?;
        let n_classes = self.networks.n_classes;
        if target_class_idx >= n_classes {
            return Err(NnError::NoSuchClass { class_idx: target_class_idx, n_classes });
        }
        let shapes: Vec<([usize; 3], &[f32])> =
            inputs.iter().map(|input| ([input.channels, input.rows, input.columns], input.values.as_slice())).collect();
        member.check_inputs(&shapes)?;
        member.copies.ask(ClassifierQuestion { inputs, target_class_idx }, errand).await
    }
}

pub(super) fn z_score(values: &[f32]) -> Vec<f32> {
    let n_values = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n_values;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n_values;
    let std = variance.sqrt();
    if std < 1e-6 {
        return vec![0.0; values.len()];
    }
    values.iter().map(|value| ((f64::from(*value) - mean) / std) as f32).collect()
}

/// Logits, embedding and (if `explain`) map of a classifier, of the images and the output that each image's map is about.
fn classifier_forward(network: Classifier, explain: bool) -> Forward {
    Box::new(move |inputs| {
        let targets = inputs.get(1).ok_or_else(|| TchError::Shape("there are no targets".to_owned()))?;
        let output = network.forward(only(inputs)?, targets)?;
        let mut outputs = vec![output.logits, output.embedding];
        if explain {
            outputs.push(output.activation_map);
        }
        Ok(outputs)
    })
}

struct SegmenterModel {
    name: String,
    runner: Runner,
    device: tch::Device,
}

impl Model for SegmenterModel {
    type Question = Plane;
    type Answer = Plane;

    fn answer(&self, canvases: &[&Plane], _: Step<'_>) -> Result<Vec<Plane>, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let samples = canvases.iter().map(|canvas| canvas.values.as_slice());
        let (rows, columns) = canvases.first().map_or((0, 0), |canvas| (canvas.rows, canvas.columns));
        let input = batch(samples, [1, rows, columns], self.device).map_err(torch)?;
        let targets = Tensor::f_zeros([canvases.len() as i64], (tch::Kind::Int64, self.device)).map_err(torch)?;
        let [probabilities] = self.runner.run_for(&[input, targets])?;
        rows_of(&self.name, &probabilities)?.into_iter().map(|values| Ok(Plane { rows, columns, values })).collect()
    }
}

/// A classifier of pictures on its thread.
pub(super) struct ClassifierModel {
    name: String,
    runner: Runner,
    method: &'static str,
    class_of_output: Vec<usize>,
    device: tch::Device,
}

impl ClassifierModel {
    /// Loads a classifier whose input has this shape (channels, rows, columns).
    pub(super) fn load(
        plan: &LoadPlan,
        architecture: Architecture,
        (width, options): (f64, ClassifierOptions),
        input: [usize; 3],
        class_of_output: Vec<usize>,
    ) -> Result<Self, NnError> {
        let n_outputs = class_of_output.len() as i64;
        let (network, _store) = plan.load(
            |path| Classifier::new(path, architecture, width, n_outputs, options),
            |name| architecture.ignores_tensor(name),
        )?;
        let forward = classifier_forward(network, plan.options.explain);
        let method = options.explanation.unwrap_or(architecture.explanation()).name();
        Self::of(plan, forward, input, method, class_of_output)
    }

    /// A network whose `forward` gives logits, embedding and (if there is one) map of the outputs that are its second input.
    pub(super) fn of(
        plan: &LoadPlan,
        forward: Forward,
        input: [usize; 3],
        method: &'static str,
        class_of_output: Vec<usize>,
    ) -> Result<Self, NnError> {
        let runner = plan.runner(forward, input.map(|side| side as i64), class_of_output.len())?;
        Ok(Self { name: plan.name.clone(), runner, method, class_of_output, device: plan.device })
    }

    /// Logits, embedding and, if wanted, maps about the outputs `targets`.
    fn run(&self, input: &Tensor, targets: &[i64]) -> Result<(Tensor, Tensor, Option<Tensor>), NnError> {
        let targets = Tensor::f_from_slice(targets).and_then(|targets| upload(&targets, self.device));
        let targets = targets.map_err(|error| NnError::torch(&self.name, &error))?;
        let mut outputs = self.runner.run(&[input.shallow_clone(), targets])?.into_iter();
        let (Some(logits), Some(embedding)) = (outputs.next(), outputs.next()) else {
            let words = "it gives neither logits nor an embedding".to_owned();
            return Err(NnError::Torch { network: self.name.clone(), words });
        };
        Ok((logits, embedding, outputs.next()))
    }
}

impl Model for ClassifierModel {
    type Question = ClassifierQuestion;
    type Answer = MemberOutput;

    fn answer(&self, questions: &[&ClassifierQuestion], _: Step<'_>) -> Result<Vec<MemberOutput>, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let input = input_batch(questions, 0, self.device).map_err(torch)?;
        let first_targets = target_outputs(questions, &self.class_of_output, None);
        let (mut logits, mut embedding, mut map) = self.run(&input, &first_targets)?;
        // Of a class with several outputs the map is about the strongest, which is known only now.
        let targets = target_outputs(questions, &self.class_of_output, Some(&rows_of(&self.name, &logits)?));
        if targets != first_targets && map.is_some() {
            (logits, embedding, map) = self.run(&input, &targets)?;
        }
        let mut maps = vec![None; questions.len()];
        if let Some(map) = map {
            let (_, rows, columns) = map.size3().map_err(torch)?;
            for (slot, values) in maps.iter_mut().zip(rows_of(&self.name, &map)?) {
                *slot = Some(ActivationMap::new(rows as usize, columns as usize, values, self.method));
            }
        }
        let (logits, embeddings) = (rows_of(&self.name, &logits)?, rows_of(&self.name, &embedding)?);
        Ok(member_outputs(&self.class_of_output, logits, embeddings, maps))
    }
}

/// What a classifier said of each image.
pub(super) fn member_outputs(
    class_of_output: &[usize],
    logits: Vec<Vec<f32>>,
    embeddings: Vec<Vec<f32>>,
    maps: Vec<Option<ActivationMap>>,
) -> Vec<MemberOutput> {
    logits
        .into_iter()
        .zip(embeddings.into_iter().zip(maps))
        .map(|(logits, (embedding, activation_map))| MemberOutput {
            probabilities: class_probabilities(&logits, class_of_output),
            logits,
            embedding,
            activation_map,
        })
        .collect()
}

impl ActivationMap {
    pub(super) fn new(rows: usize, columns: usize, values: Vec<f32>, method: &'static str) -> Self {
        Self { rows, columns, maximum_activation: values.iter().copied().fold(0.0, f32::max), values, method }
    }
}

/// The network output that each question's map is about, as [`target_output`].
pub(super) fn target_outputs(
    questions: &[&ClassifierQuestion],
    class_of_output: &[usize],
    logits: Option<&[Vec<f32>]>,
) -> Vec<i64> {
    let output_of = |(question_idx, question): (usize, &&ClassifierQuestion)| {
        let logits = logits.and_then(|of_all| of_all.get(question_idx)).map(Vec::as_slice);
        target_output(class_of_output, question.target_class_idx, logits)
    };
    questions.iter().enumerate().map(output_of).collect()
}

/// Of the outputs of a class the one with the largest of `logits`, the first without them.
pub(super) fn target_output(class_of_output: &[usize], target_class_idx: usize, logits: Option<&[f32]>) -> i64 {
    let logit = |output: usize| logits.and_then(|of_all| of_all.get(output)).copied().unwrap_or(f32::NEG_INFINITY);
    let of_class = (0..class_of_output.len()).filter(|output| class_of_output[*output] == target_class_idx);
    // Of equals the first.
    of_class.max_by(|a, b| logit(*a).total_cmp(&logit(*b)).then(b.cmp(a))).unwrap_or(0) as i64
}

/// The input `input_idx` of all questions as one tensor.
pub(super) fn input_batch(
    questions: &[&ClassifierQuestion],
    input_idx: usize,
    device: tch::Device,
) -> Result<Tensor, tch::TchError> {
    let inputs = questions.iter().filter_map(|question| question.inputs.get(input_idx));
    let shape = inputs.clone().next().map_or([0; 3], |input| [input.channels, input.rows, input.columns]);
    batch(inputs.map(|input| input.values.as_slice()), shape, device)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            bundle::MANIFEST_FILE_NAME,
            import::{ImportTarget, import},
            init::test_bundle,
            owner::GO_ON,
            seeded,
        },
        *,
    };

    const SIDE: usize = 64;
    const OPTIONS: EnsembleOptions = EnsembleOptions {
        devices: Vec::new(),
        max_batch: 4,
        gather: Duration::ZERO,
        optimise: true,
        members: true,
        explain: true,
        queue_length: 8,
        intra_op_threads: 1,
        segmenter_threads: 1,
    };

    fn ensemble() -> Ensemble {
        let folder = test_bundle();
        Ensemble::load(&Bundle::open(folder.path()).unwrap(), OPTIONS).unwrap()
    }

    fn input(name: &str) -> Planes {
        Planes { channels: 3, rows: SIDE, columns: SIDE, values: seeded::uniform(5, name, 3 * SIDE * SIDE, -2.0, 2.0) }
    }

    fn canvas(name: &str) -> Plane {
        Plane { rows: SIDE, columns: SIDE, values: seeded::uniform(5, name, SIDE * SIDE, 0.0, 1.0) }
    }

    fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let magnitude = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
        let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(difference <= 1e-5 * magnitude, "{what}: off by {difference} at a magnitude of {magnitude}");
    }

    fn map_values(output: &MemberOutput) -> Vec<f32> {
        output.activation_map.as_ref().unwrap().values.clone()
    }

    /// A classifier of the test bundle, loaded on this thread.
    fn classifier(bundle: &Bundle, member_idx: usize) -> ClassifierModel {
        let entry = bundle.manifest().networks().nth(member_idx + 1).unwrap();
        let mut plan = LoadPlan::new(bundle, &entry, OPTIONS);
        bundle.manifest().members[member_idx].name.clone_into(&mut plan.name);
        let member = &bundle.manifest().members[member_idx];
        let MemberArchitecture::Known(architecture) = member.architecture else { panic!("of ours") };
        let chosen = (member.width, member.classifier_options());
        tch::no_grad(|| ClassifierModel::load(&plan, architecture, chosen, [3, SIDE, SIDE], vec![0, 1])).unwrap()
    }

    #[test]
    fn of_a_decomposed_class_the_map_is_about_the_strongest_output() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let question = ClassifierQuestion { inputs: vec![input("a")], target_class_idx: 0 };
        for member_idx in 0..4 {
            let mut model = classifier(&bundle, member_idx);
            let answer = |model: &ClassifierModel, target_class_idx| {
                let question = ClassifierQuestion { inputs: question.inputs.clone(), target_class_idx };
                tch::no_grad(|| model.answer(&[&question], GO_ON)).unwrap().remove(0)
            };
            let of_outputs = [answer(&model, 0), answer(&model, 1)];
            let strongest = usize::from(of_outputs[0].logits[1] > of_outputs[0].logits[0]);
            model.class_of_output = vec![0, 0];
            let of_class = answer(&model, 0);
            assert_eq!(of_class.activation_map, of_outputs[strongest].activation_map);
            assert_eq!(of_class.probabilities, [1.0], "both outputs are the class's");
        }
    }

    /// With a pooled linear head Grad-CAM is the positive part of CAM, but for scale.
    #[test]
    fn the_manifest_chooses_how_a_member_is_explained() {
        let folder = test_bundle();
        let file = folder.path().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&file).unwrap();
        let question = ClassifierQuestion { inputs: vec![input("a")], target_class_idx: 0 };
        let map = |explanation: &str| {
            let weights = "weights = \"resnet34.safetensors\"";
            fs_err::write(&file, text.replace(weights, &format!("{explanation}{weights}"))).unwrap();
            let model = classifier(&Bundle::open(folder.path()).unwrap(), 0);
            assert!(model.runner.is_optimised());
            tch::no_grad(|| model.answer(&[&question], GO_ON)).unwrap().remove(0).activation_map
        };
        assert_eq!(map("explanation = \"none\"\n"), None);
        let map = |explanation: &str| map(explanation).unwrap();
        let (cam, gradcam) = (map(""), map("explanation = \"gradcam\"\n"));
        assert_eq!((cam.method, gradcam.method), ("cam", "gradcam"));
        let cells = cam.values.len() as f32;
        let positive: Vec<f32> = cam.values.iter().map(|value| value.max(0.0) / cells).collect();
        assert!(cam.values.iter().any(|value| *value < 0.0), "{cam:?}");
        assert_close("gradcam", &gradcam.values, &positive);
    }

    #[test]
    fn every_network_can_be_optimised() {
        // Its warning tells why one cannot.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        for member_idx in 0..4 {
            assert!(classifier(&bundle, member_idx).runner.is_optimised(), "member {member_idx}");
        }
    }

    /// The same input gives the same bits, from the first run on, as long as the batch has the same shape.
    #[test]
    fn repeated_runs_are_equal_bit_for_bit() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let question = |name| ClassifierQuestion { inputs: vec![input(name)], target_class_idx: 0 };
        for member_idx in 0..4 {
            let model = classifier(&bundle, member_idx);
            let (a, b) = (question("a"), question("b"));
            let first = tch::no_grad(|| model.answer(&[&a], GO_ON)).unwrap();
            let pair = tch::no_grad(|| model.answer(&[&a, &b], GO_ON)).unwrap();
            for _ in 0..4 {
                assert_eq!(tch::no_grad(|| model.answer(&[&a], GO_ON)).unwrap(), first);
                assert_eq!(tch::no_grad(|| model.answer(&[&a, &b], GO_ON)).unwrap(), pair);
            }
            // Loaded anew, as another process would.
            let again = classifier(&bundle, member_idx);
            assert_eq!(tch::no_grad(|| again.answer(&[&a], GO_ON)).unwrap(), first);
        }
    }

    #[tokio::test]
    async fn two_copies_of_every_network_answer_as_one_does() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let devices = vec![Device::Cpu, Device::Cpu];
        let (one, two) = (ensemble(), Ensemble::load(&bundle, EnsembleOptions { devices, ..OPTIONS }).unwrap());
        assert_eq!(one.computing(), vec!["cpu float32"; 5]);
        assert_eq!(two.computing(), vec!["cpu float32, cpu float32"; 5]);
        for member_idx in 0..4 {
            let ask = |of: &Ensemble, name| {
                let of = of.clone();
                async move { of.classify(member_idx, vec![input(name)], 0, &Errand::default()).await.unwrap() }
            };
            let (a, b, again) = tokio::join!(ask(&two, "a"), ask(&two, "b"), ask(&two, "a"));
            for (found, expected) in [(&a, ask(&one, "a").await), (&b, ask(&one, "b").await)] {
                assert_close("logits", &found.logits, &expected.logits);
            }
            assert_close("another copy, or another batch", &again.logits, &a.logits);
        }
        let lungs = two.segment(canvas("a"), &Errand::default()).await.unwrap();
        assert_close("lungs", &lungs.values, &one.segment(canvas("a"), &Errand::default()).await.unwrap().values);
    }

    /// What runs on GPUs in another order of memory gives the same numbers; tried on the processor, as there is no GPU.
    #[test]
    fn channels_innermost_change_no_answer() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let question = ClassifierQuestion { inputs: vec![input("a")], target_class_idx: 0 };
        for (member, entry) in bundle.manifest().members.iter().zip(bundle.manifest().networks().skip(1)) {
            let MemberArchitecture::Known(architecture) = member.architecture else { panic!("of ours") };
            let answer = |as_on_gpu| {
                let mut plan = LoadPlan::new(&bundle, &entry, EnsembleOptions { optimise: false, ..OPTIONS });
                plan.as_on_gpu = as_on_gpu;
                let shape = [3, SIDE, SIDE];
                let load = || {
                    let chosen = (member.width, member.classifier_options());
                    ClassifierModel::load(&plan, architecture, chosen, shape, vec![0, 1])?.answer(&[&question], GO_ON)
                };
                tch::no_grad(load).unwrap().remove(0)
            };
            let (found, expected) = (answer(true), answer(false));
            assert_close(&member.name, &found.logits, &expected.logits);
            assert_close(&member.name, &found.embedding, &expected.embedding);
            assert_close(&member.name, &map_values(&found), &map_values(&expected));
        }
    }

    #[tokio::test]
    async fn every_member_answers_and_tells_images_apart() {
        let ensemble = ensemble();
        assert_eq!(ensemble.n_members(), 4);
        for (member_idx, (n_features, method)) in
            [(32, "cam"), (128, "cam"), (128, "cam"), (128, "hirescam")].into_iter().enumerate()
        {
            let first = ensemble.classify(member_idx, vec![input("a")], 0, &Errand::default()).await.unwrap();
            let again = ensemble.classify(member_idx, vec![input("a")], 0, &Errand::default()).await.unwrap();
            let other = ensemble.classify(member_idx, vec![input("b")], 0, &Errand::default()).await.unwrap();
            assert_eq!(first, again);
            assert_ne!(first.probabilities, other.probabilities);
            assert_eq!(first.logits.len(), 2);
            assert!((first.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!(first.probabilities.iter().all(|p| (0.01..0.99).contains(p)), "{:?}", first.probabilities);
            assert_eq!(first.embedding.len(), n_features);
            let map = first.activation_map.as_ref().unwrap();
            assert_eq!((map.rows, map.columns, map.values.len(), map.method), (2, 2, 4, method));
            let largest = map.values.iter().copied().fold(0f32, f32::max);
            assert_eq!(map.maximum_activation.to_bits(), largest.to_bits());

            // The two classes have weights of their own, hence maps of their own.
            let map_of_other_class = ensemble
                .classify(member_idx, vec![input("a")], 1, &Errand::default())
                .await
                .unwrap()
                .activation_map
                .unwrap();
            assert_ne!(map_of_other_class.values, map.values);
        }
    }

    #[test]
    fn a_batch_gives_what_single_images_give() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let questions: Vec<ClassifierQuestion> = ["a", "b", "c", "d", "e"]
            .into_iter()
            .enumerate()
            .map(|(idx, name)| ClassifierQuestion { inputs: vec![input(name)], target_class_idx: idx % 2 })
            .collect();
        for member_idx in 0..4 {
            let model = classifier(&bundle, member_idx);
            let together = tch::no_grad(|| model.answer(&questions.iter().collect::<Vec<_>>(), GO_ON)).unwrap();
            assert_eq!(together.len(), questions.len());
            for (question, in_batch) in questions.iter().zip(&together) {
                let alone = &tch::no_grad(|| model.answer(&[question], GO_ON)).unwrap()[0];
                assert_close("logits", &in_batch.logits, &alone.logits);
                assert_close("probabilities", &in_batch.probabilities, &alone.probabilities);
                assert_close("embedding", &in_batch.embedding, &alone.embedding);
                assert_close("map", &map_values(in_batch), &map_values(alone));
            }
        }
    }

    #[tokio::test]
    async fn concurrent_requests_get_their_own_answers() {
        let ensemble = ensemble();
        let tasks: Vec<_> = (0..24)
            .map(|task_idx| {
                let ensemble = ensemble.clone();
                tokio::spawn(async move {
                    ensemble
                        .classify(
                            task_idx % 4,
                            vec![input(&format!("image {}", task_idx / 4))],
                            task_idx % 2,
                            &Errand::default(),
                        )
                        .await
                })
            })
            .collect();
        for (task_idx, task) in tasks.into_iter().enumerate() {
            let found = task.await.unwrap().unwrap();
            let name = format!("image {}", task_idx / 4);
            let expected =
                ensemble.classify(task_idx % 4, vec![input(&name)], task_idx % 2, &Errand::default()).await.unwrap();
            assert_close(&name, &found.logits, &expected.logits);
            assert_close(&name, &map_values(&found), &map_values(&expected));
        }
    }

    #[tokio::test]
    async fn segmentation_gives_probabilities_and_ignores_brightness_and_contrast() {
        let ensemble = ensemble();
        let mask = ensemble.segment(canvas("a"), &Errand::default()).await.unwrap();
        assert_eq!((mask.rows, mask.columns, mask.values.len()), (SIDE, SIDE, SIDE * SIDE));
        assert!(mask.values.iter().all(|p| (0.0..=1.0).contains(p)));
        assert!(mask.values.iter().any(|p| *p > 0.5) && mask.values.iter().any(|p| *p < 0.5));
        assert_ne!(mask, ensemble.segment(canvas("b"), &Errand::default()).await.unwrap());

        let mut paler = canvas("a");
        paler.values.iter_mut().for_each(|sample| *sample = 0.25 + *sample * 0.5);
        let difference = ensemble
            .segment(paler, &Errand::default())
            .await
            .unwrap()
            .values
            .iter()
            .zip(&mask.values)
            .fold(0f32, |largest, (a, b)| largest.max((a - b).abs()));
        assert!(difference < 1e-4, "{difference}");
    }

    #[tokio::test]
    async fn a_blank_canvas_is_not_divided_by_zero() {
        let blank = Plane { rows: SIDE, columns: SIDE, values: vec![0.3; SIDE * SIDE] };
        assert_eq!(z_score(&blank.values), vec![0.0; SIDE * SIDE]);
        assert!(ensemble().segment(blank, &Errand::default()).await.is_ok());
    }

    #[tokio::test]
    async fn unfit_input_is_an_error_that_names_the_network() {
        let ensemble = ensemble();
        let mut nan = input("a");
        nan.values[7] = f32::NAN;
        let error = ensemble.classify(1, vec![nan], 0, &Errand::default()).await.unwrap_err();
        assert_eq!(error, NnError::InputNotFinite { network: "resnet50".to_owned(), sample_idx: 7 });
        let mut infinite = canvas("a");
        infinite.values[9] = f32::INFINITY;
        let error = ensemble.segment(infinite, &Errand::default()).await.unwrap_err();
        assert_eq!(error, NnError::InputNotFinite { network: "lung segmenter".to_owned(), sample_idx: 9 });

        let small = Planes { channels: 3, rows: 32, columns: 32, values: vec![0.0; 3 * 32 * 32] };
        let error = ensemble.classify(0, vec![small], 0, &Errand::default()).await.unwrap_err().to_string();
        assert!(error.contains("`resnet34` takes 3 x 64 x 64"), "{error}");
        let torn = Plane { values: vec![0.0; 5], ..canvas("a") };
        assert!(matches!(ensemble.segment(torn, &Errand::default()).await, Err(NnError::InputSize { .. })));

        let error = ensemble.classify(4, vec![input("a")], 0, &Errand::default()).await.unwrap_err();
        assert_eq!(error, NnError::NoSuchMember { member_idx: 4, n_members: 4 });
        let error = ensemble.classify(0, vec![input("a")], 2, &Errand::default()).await.unwrap_err();
        assert_eq!(error, NnError::NoSuchClass { class_idx: 2, n_classes: 2 });
    }

    /// Optimised networks may turn an overflow into a number (oneDNN's ReLU makes 0 of what is not one): values that could
    /// overflow are not let in.
    #[tokio::test]
    async fn input_beyond_all_measure_is_refused() {
        let ensemble = ensemble();
        let huge = Planes { channels: 3, rows: SIDE, columns: SIDE, values: vec![-3e6; 3 * SIDE * SIDE] };
        let error = ensemble.classify(2, vec![huge], 0, &Errand::default()).await.unwrap_err();
        assert_eq!(error, NnError::InputNotFinite { network: "resnet152".to_owned(), sample_idx: 0 });
        assert!(error.to_string().contains("1000000"), "{error}");
    }

    #[tokio::test]
    async fn overflow_inside_a_network_is_an_error_and_the_network_lives_on() {
        let folder = test_bundle();
        let ruined = test_bundle();
        for member in ["resnet34", "resnet50", "resnet152", "vgg16"] {
            // Every weight is nearly as large as a number can be.
            let file = ruined.path().join(format!("{member}.safetensors"));
            let bytes = fs_err::read(&file).unwrap();
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let huge: Vec<u8> =
                std::iter::repeat_n(3e38_f32.to_le_bytes(), (bytes.len() - header) / 4).flatten().collect();
            fs_err::write(&file, [&bytes[..header], &huge].concat()).unwrap();
            let target = ImportTarget::Member { name: member.to_owned(), architecture: None, width: None };
            import(folder.path(), &file, &target, "ruined").unwrap();
        }
        let ensemble = Ensemble::load(&Bundle::open(folder.path()).unwrap(), OPTIONS).unwrap();
        for member_idx in 0..4 {
            let error = ensemble.classify(member_idx, vec![input("a")], 0, &Errand::default()).await.unwrap_err();
            assert!(matches!(error, NnError::OutputNotFinite { .. }), "{error}");
        }
    }

    #[test]
    fn errors_of_libtorch_are_passed_on_without_tensors() {
        let folder = test_bundle();
        let model = classifier(&Bundle::open(folder.path()).unwrap(), 3);
        // Too small for five max pools.
        let tiny = Planes { channels: 3, rows: 8, columns: 8, values: vec![0.0; 3 * 8 * 8] };
        let question = ClassifierQuestion { inputs: vec![tiny], target_class_idx: 0 };
        let error = tch::no_grad(|| model.answer(&[&question], GO_ON)).unwrap_err();
        let NnError::Torch { network, words } = error else { panic!("{error}") };
        assert_eq!(network, "vgg16");
        assert!(words.chars().count() <= super::super::error::MAX_ERROR_CHARACTERS + 2, "{words}");
    }

    #[test]
    fn weights_that_do_not_fit_are_named_for_all_networks() {
        let folder = test_bundle();
        let manifest = folder.path().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&manifest).unwrap();
        let third = "\n[[classification.classes]]\nlabel = \"Other\"\n\
                     [classification.classes.code]\nvalue = \"74964007\"\nscheme = \"SCT\"\nmeaning = \"Other\"\n";
        fs_err::write(&manifest, text + third).unwrap();
        let bundle = Bundle::open(folder.path()).unwrap();
        let error = Ensemble::load(&bundle, OPTIONS).err().unwrap().to_string();
        for part in [
            "bundle `cxr-untrained`",
            "resnet34 (resnet34.safetensors): unfit tensors: `fc.bias` has shape [2], expected [3]",
            "resnet50 (",
            "resnet152 (",
            "vgg16 (vgg16.safetensors): unfit tensors: `classifier.6.bias` has shape [2], expected [3]",
            "check `architecture`, `width` and the number of classes",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("lung segmenter"), "{error}");
    }

    #[test]
    fn weights_that_change_after_opening_are_not_loaded() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let path = folder.path().join("resnet34.safetensors");
        let mut bytes = fs_err::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs_err::write(&path, bytes).unwrap();
        let error = Ensemble::load(&bundle, OPTIONS).err().unwrap().to_string();
        assert!(error.contains("`resnet34.safetensors` has SHA-256"), "{error}");
    }

    #[test]
    fn an_absent_device_is_explained() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let options = EnsembleOptions { devices: vec![Device::Cuda(63)], ..OPTIONS };
        let error = Ensemble::load(&bundle, options).err().unwrap().to_string();
        assert!(error.starts_with("device `cuda:63` is not available") && error.contains("`cpu`"), "{error}");
        // Here and in CI for want of the library; where there are GPUs, there are fewer.
        assert!(error.contains("libtorch_cuda.so") || error.contains("CUDA devices, counted from 0"), "{error}");
    }
}
