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
    /// the same time, so 1 is right when other work shares the processor. With more, start the process with
    /// `OMP_WAIT_POLICY=passive`: OpenMP's spinning threads slow each other down tenfold on shared cores.
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
/// dropping the last one ends the threads and blocks until the batches that run are done.
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
            // libtorch remembers the number for the process, OpenMP for the thread: every network's thread sets it.
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
    let mut samples = Vec::new();
    images.for_each(|image| samples.extend_from_slice(image));
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

#[cfg(test)]
mod tests {
    use super::{
        super::{bundle::MANIFEST_FILE_NAME, init::test_bundle, seeded},
        *,
    };

    const SIDE: usize = 64;
    const OPTIONS: EnsembleOptions =
        EnsembleOptions { device: Device::Cpu, max_batch: 4, queue_length: 8, intra_op_threads: 1 };

    fn ensemble() -> Ensemble {
        let folder = test_bundle();
        Ensemble::load(&Bundle::open(folder.path()).unwrap(), OPTIONS).unwrap()
    }

    fn input(name: &str) -> Plane3 {
        Plane3 { rows: SIDE, columns: SIDE, values: seeded::uniform(5, name, 3 * SIDE * SIDE, -2.0, 2.0) }
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

    /// A classifier of the test bundle, loaded on this thread.
    fn classifier(bundle: &Bundle, member_idx: usize) -> ClassifierModel {
        let entry = bundle.manifest().networks().nth(member_idx + 1).unwrap();
        let plan = LoadPlan::new(bundle, &entry, tch::Device::Cpu, OPTIONS);
        let member = &bundle.manifest().members[member_idx];
        let (network, _store) = plan.load(|path| Classifier::new(path, member.architecture, member.width, 2)).unwrap();
        let method = member.architecture.activation_map_method();
        ClassifierModel { name: member.name.clone(), network, method, device: tch::Device::Cpu }
    }

    #[tokio::test]
    async fn every_member_answers_and_tells_images_apart() {
        let ensemble = ensemble();
        assert_eq!(ensemble.n_members(), 4);
        for (member_idx, (n_features, method)) in
            [(32, "cam"), (128, "cam"), (128, "cam"), (128, "hirescam")].into_iter().enumerate()
        {
            let first = ensemble.classify(member_idx, input("a"), 0).await.unwrap();
            let again = ensemble.classify(member_idx, input("a"), 0).await.unwrap();
            let other = ensemble.classify(member_idx, input("b"), 0).await.unwrap();
            assert_eq!(first, again);
            assert_ne!(first.probabilities, other.probabilities);
            assert_eq!(first.logits.len(), 2);
            assert!((first.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!(first.probabilities.iter().all(|p| (0.01..0.99).contains(p)), "{:?}", first.probabilities);
            assert_eq!(first.embedding.len(), n_features);
            let map = &first.activation_map;
            assert_eq!((map.rows, map.columns, map.values.len(), map.method), (2, 2, 4, method));
            let largest = map.values.iter().copied().fold(0f32, f32::max);
            assert_eq!(map.maximum_activation.to_bits(), largest.to_bits());

            // The two classes have weights of their own, hence maps of their own.
            let map_of_other_class = ensemble.classify(member_idx, input("a"), 1).await.unwrap().activation_map;
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
            .map(|(idx, name)| ClassifierQuestion { input: input(name), target_class_idx: idx % 2 })
            .collect();
        for member_idx in 0..4 {
            let model = classifier(&bundle, member_idx);
            let together = tch::no_grad(|| model.answer(&questions.iter().collect::<Vec<_>>())).unwrap();
            assert_eq!(together.len(), questions.len());
            for (question, in_batch) in questions.iter().zip(&together) {
                let alone = &tch::no_grad(|| model.answer(&[question])).unwrap()[0];
                assert_close("logits", &in_batch.logits, &alone.logits);
                assert_close("probabilities", &in_batch.probabilities, &alone.probabilities);
                assert_close("embedding", &in_batch.embedding, &alone.embedding);
                assert_close("map", &in_batch.activation_map.values, &alone.activation_map.values);
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
                    ensemble.classify(task_idx % 4, input(&format!("image {}", task_idx / 4)), task_idx % 2).await
                })
            })
            .collect();
        for (task_idx, task) in tasks.into_iter().enumerate() {
            let found = task.await.unwrap().unwrap();
            let name = format!("image {}", task_idx / 4);
            let expected = ensemble.classify(task_idx % 4, input(&name), task_idx % 2).await.unwrap();
            assert_close(&name, &found.logits, &expected.logits);
            assert_close(&name, &found.activation_map.values, &expected.activation_map.values);
        }
    }

    #[tokio::test]
    async fn segmentation_gives_probabilities_and_ignores_brightness_and_contrast() {
        let ensemble = ensemble();
        let mask = ensemble.segment(canvas("a")).await.unwrap();
        assert_eq!((mask.rows, mask.columns, mask.values.len()), (SIDE, SIDE, SIDE * SIDE));
        assert!(mask.values.iter().all(|p| (0.0..=1.0).contains(p)));
        assert!(mask.values.iter().any(|p| *p > 0.5) && mask.values.iter().any(|p| *p < 0.5));
        assert_ne!(mask, ensemble.segment(canvas("b")).await.unwrap());

        let mut paler = canvas("a");
        paler.values.iter_mut().for_each(|sample| *sample = 0.25 + *sample * 0.5);
        let difference = ensemble
            .segment(paler)
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
        assert!(ensemble().segment(blank).await.is_ok());
    }

    #[tokio::test]
    async fn unfit_input_is_an_error_that_names_the_network() {
        let ensemble = ensemble();
        let mut nan = input("a");
        nan.values[7] = f32::NAN;
        let error = ensemble.classify(1, nan, 0).await.unwrap_err();
        assert_eq!(error, NnError::InputNotFinite { network: "resnet50".to_owned(), sample_idx: 7 });
        let mut infinite = canvas("a");
        infinite.values[9] = f32::INFINITY;
        let error = ensemble.segment(infinite).await.unwrap_err();
        assert_eq!(error, NnError::InputNotFinite { network: "lung segmenter".to_owned(), sample_idx: 9 });

        let small = Plane3 { rows: 32, columns: 32, values: vec![0.0; 3 * 32 * 32] };
        let error = ensemble.classify(0, small, 0).await.unwrap_err().to_string();
        assert!(error.contains("`resnet34` takes 3 x 64 x 64"), "{error}");
        let torn = Plane { values: vec![0.0; 5], ..canvas("a") };
        assert!(matches!(ensemble.segment(torn).await, Err(NnError::InputSize { .. })));

        let error = ensemble.classify(4, input("a"), 0).await.unwrap_err();
        assert_eq!(error, NnError::NoSuchMember { member_idx: 4, n_members: 4 });
        let error = ensemble.classify(0, input("a"), 2).await.unwrap_err();
        assert_eq!(error, NnError::NoSuchClass { class_idx: 2, n_classes: 2 });
    }

    #[tokio::test]
    async fn overflow_inside_a_network_is_an_error_and_the_network_lives_on() {
        let ensemble = ensemble();
        for member_idx in 0..4 {
            let huge = Plane3 { rows: SIDE, columns: SIDE, values: vec![3e38; 3 * SIDE * SIDE] };
            let error = ensemble.classify(member_idx, huge, 0).await.unwrap_err();
            assert!(matches!(error, NnError::OutputNotFinite { .. }), "{error}");
            ensemble.classify(member_idx, input("a"), 0).await.unwrap();
        }
    }

    #[test]
    fn errors_of_libtorch_are_passed_on_without_tensors() {
        let folder = test_bundle();
        let model = classifier(&Bundle::open(folder.path()).unwrap(), 3);
        // Too small for five max pools.
        let tiny = Plane3 { rows: 8, columns: 8, values: vec![0.0; 3 * 8 * 8] };
        let question = ClassifierQuestion { input: tiny, target_class_idx: 0 };
        let error = tch::no_grad(|| model.answer(&[&question])).unwrap_err();
        let NnError::Torch { network, words } = error else { panic!("{error}") };
        assert_eq!(network, "vgg16");
        assert!(words.chars().count() <= super::super::error::MAX_ERROR_CHARACTERS + 2, "{words}");
    }

    #[test]
    fn weights_that_do_not_fit_are_named_for_all_networks() {
        let folder = test_bundle();
        let manifest = folder.path().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&manifest).unwrap();
        let third = "\n[[classes]]\nlabel = \"Other\"\n\
                     [classes.code]\nvalue = \"74964007\"\nscheme = \"SCT\"\nmeaning = \"Other\"\n";
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
        let options = EnsembleOptions { device: Device::Cuda(63), ..OPTIONS };
        let error = Ensemble::load(&bundle, options).err().unwrap().to_string();
        assert!(error.starts_with("device `cuda:63` is not available") && error.contains("`cpu`"), "{error}");
    }
}
