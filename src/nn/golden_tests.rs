//! The networks against PyTorch and torchvision, by the golden files that `deploy/golden/make_golden.py` wrote.
//!
//! Two vectors agree when they differ nowhere by more than [`TOLERANCE`] times the largest magnitude in the
//! golden one: convolutions sum in another order on another processor, so single small elements may differ by
//! more than that fraction of themselves.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use tch::{Device, Tensor, nn::VarStore};

use super::{
    architecture::Architecture,
    classifier::{Classifier, ClassifierOptions, Output},
    runner::{Forward, Runner},
    seeded::{self, seeded_values},
    unet::UNet,
};

const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Streams {
    seed: u64,
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Stream {
    name: String,
    low: f32,
    high: f32,
    bits: Vec<u32>,
}

#[derive(Deserialize)]
struct Cases {
    seed: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    network: String,
    architecture: Architecture,
    width: f64,
    n_classes: i64,
    image_side_pixels: i64,
    target_class_idx: i64,
    n_parameters: usize,
    logits: Vec<f32>,
    logits_sum: f32,
    embedding: Vec<f32>,
    embedding_sum: f32,
    activation_map: GoldenMap,
}

#[derive(Deserialize)]
struct GoldenMap {
    rows: i64,
    columns: i64,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct UNetCase {
    seed: u64,
    network: String,
    width: f64,
    input_side_pixels: i64,
    n_parameters: usize,
    every_nth: i64,
    probabilities: Vec<f32>,
    probabilities_sum: f32,
}

fn golden<T: DeserializeOwned>(file_name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nn").join(file_name);
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn seed_weights(store: &mut VarStore, seed: u64, network: &str, architecture: Option<Architecture>) {
    for (name, mut variable) in store.variables() {
        let size = variable.size();
        let shape: Vec<usize> = size.iter().map(|side| *side as usize).collect();
        let values = seeded_values(seed, network, architecture, &name, &shape);
        tch::no_grad(|| variable.copy_(&Tensor::from_slice(&values).view(size.as_slice())));
    }
    store.freeze();
}

fn seeded_input(seed: u64, network: &str, channels: i64, side: i64) -> Tensor {
    let values = seeded::uniform(seed, &format!("{network}/input"), (channels * side * side) as usize, -2.0, 2.0);
    Tensor::from_slice(&values).view([1, channels, side, side])
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

/// Whether the first values are the golden ones, and the sum of all is the golden sum.
fn assert_agrees(what: &str, found: &[f32], expected: &[f32], expected_sum: f32) {
    assert!(found.len() >= expected.len() && !expected.is_empty(), "{what}: {} values", found.len());
    let magnitude = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    assert!(magnitude > 1e-3, "{what}: a golden vector of zeros proves nothing");
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(difference <= TOLERANCE * magnitude, "{what}: off by {difference} at a magnitude of {magnitude}");
    let sum = found.iter().map(|value| f64::from(*value)).sum::<f64>() as f32;
    let total: f32 = found.iter().map(|value| value.abs()).sum();
    assert!((sum - expected_sum).abs() <= TOLERANCE * total, "{what}: sum {sum}, expected {expected_sum}");
}

/// The network as it stands in the source, or as the processor runs it.
#[derive(Debug, Clone, Copy)]
enum Way {
    Plain,
    Optimised,
}

fn assert_case_agrees(seed: u64, case: &Case, way: Way) {
    let mut store = VarStore::new(Device::Cpu);
    let network =
        Classifier::new(&store.root(), case.architecture, case.width, case.n_classes, ClassifierOptions::default())
            .unwrap();
    let n_parameters: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
    assert_eq!(n_parameters, case.n_parameters, "{}", case.network);
    seed_weights(&mut store, seed, &case.network, Some(case.architecture));

    let input = seeded_input(seed, &case.network, 3, case.image_side_pixels);
    let targets = Tensor::from_slice(&[case.target_class_idx]);
    let forward: Forward = Box::new(move |inputs| {
        let Output { logits, embedding, activation_map, .. } = network.forward(&inputs[0], &inputs[1])?;
        Ok(vec![logits, embedding, activation_map])
    });
    let inputs = [input, targets];
    let runner = match way {
        Way::Plain => Runner::plain(&case.network, forward),
        Way::Optimised => {
            let [input, targets] = &inputs;
            let several = vec![input.repeat([2, 1, 1, 1]), targets.repeat([2])];
            let examples = [vec![input.shallow_clone(), targets.shallow_clone()], several];
            let runner = tch::no_grad(|| Runner::optimised(&case.network, forward, &examples));
            assert!(runner.is_optimised(), "{}", case.network);
            runner
        }
    };
    let [logits, embedding, activation_map] = tch::no_grad(|| runner.run_for(&inputs)).unwrap();
    assert_agrees(&format!("{} logits", case.network), &values(&logits), &case.logits, case.logits_sum);
    assert_agrees(&format!("{} embedding", case.network), &values(&embedding), &case.embedding, case.embedding_sum);
    let golden_map = &case.activation_map;
    assert_eq!(activation_map.size(), [1, golden_map.rows, golden_map.columns], "{}", case.network);
    let sum = golden_map.values.iter().sum();
    assert_agrees(&format!("{} map", case.network), &values(&activation_map), &golden_map.values, sum);
}

#[test]
fn the_generator_gives_the_same_bits_as_in_python() {
    let golden: Streams = golden("seeded.json");
    assert_eq!(golden.streams.len(), 3);
    for stream in golden.streams {
        let found = seeded::uniform(golden.seed, &stream.name, stream.bits.len(), stream.low, stream.high);
        assert_eq!(found.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), stream.bits, "{}", stream.name);
    }
}

/// Width 1/8, three classes, sides 224 and 320, where VGG's adaptive pool has something to do.
#[test]
fn narrow_classifiers_agree_with_torchvision() {
    let golden: Cases = golden("narrow.json");
    assert_eq!(golden.cases.len(), 8);
    golden.cases.iter().for_each(|case| assert_case_agrees(golden.seed, case, Way::Plain));
}

/// torchvision's own models, unchanged, 1000 classes, for images of 224 and 512 pixels.
#[rstest::rstest]
fn full_classifiers_agree_with_torchvision(
    #[values("full.json", "full_512.json")] file_name: &str,
    #[values(Way::Plain, Way::Optimised)] way: Way,
) {
    let golden: Cases = golden(file_name);
    assert_eq!(golden.cases.iter().map(|case| case.architecture).collect::<Vec<_>>(), Architecture::KEIDAR_ENSEMBLE);
    golden.cases.iter().for_each(|case| assert_case_agrees(golden.seed, case, way));
}

#[test]
fn the_segmenter_agrees_with_pytorch() {
    let case: UNetCase = golden("unet.json");
    let mut store = VarStore::new(Device::Cpu);
    let network = UNet::new(&store.root(), case.width).unwrap();
    let n_parameters: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
    assert_eq!(n_parameters, case.n_parameters);
    seed_weights(&mut store, case.seed, &case.network, None);

    let input = seeded_input(case.seed, &case.network, 1, case.input_side_pixels);
    let probabilities = tch::no_grad(|| network.forward(&input)).unwrap();
    let side = case.input_side_pixels;
    assert_eq!(probabilities.size(), [1, side, side]);
    let sampled = probabilities.slice(1, 0, side, case.every_nth).slice(2, 0, side, case.every_nth);
    assert_agrees("probabilities", &values(&sampled), &case.probabilities, case.probabilities.iter().sum());
    let sum = probabilities.sum(tch::Kind::Double).double_value(&[]) as f32;
    assert!((sum - case.probabilities_sum).abs() <= TOLERANCE * case.probabilities_sum, "{sum}");
}
