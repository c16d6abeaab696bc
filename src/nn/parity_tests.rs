//! Every network against PyTorch over eight inputs, by the golden files that `deploy/golden/make_parity.py` wrote;
//! `make parity` prints the table.
//!
//! For each network: logits, embeddings and maps differ nowhere by more than [`TOLERANCE`] times the largest magnitude
//! in the golden output (sums over what was not sampled likewise); the logits vary from input to input, and a changed
//! input (two channels swapped, or the image flipped where there is one channel) fails the very same comparison: a dead
//! network cannot pass.

use std::{fmt::Write as _, path::PathBuf, time::Instant};

use serde::Deserialize;
use tch::{Device, Kind, TchError, Tensor, nn::VarStore};

use super::{
    architecture::Architecture,
    attention_vgg::AttentionOptions,
    classifier::{Classifier, ClassifierOptions},
    covnet::{BatchNormMode, Covnet},
    decovnet::DeCoVNet,
    dre_net::DreNet,
    explain::{Explanation, IntegratedGradientsOptions},
    multi_scale::MultiScale,
    r231::R231,
    seeded::{self, seeded_values},
    unet::UNet,
    unet_plus_plus::UNetPlusPlus,
};

const TOLERANCE: f64 = 1e-4;

/// Of Integrated Gradients: the gradient of a ReLU jumps at 0, so that the last bit of a sum, which depends on the
/// processor, decides whether a path counts. Seen: 3e-4 with ResNet-152 on a processor without AVX-512, 2e-6 on one with it.
const TOLERANCE_OF_GRADIENTS: f64 = 1e-3;

/// Standard deviation of the logits over the inputs, averaged over classes (and pixels), that a live network exceeds.
const MINIMUM_SPREAD: f64 = 0.05;

const N_INPUTS: i64 = 8;

/// Of the golden files.
const INTEGRATED_GRADIENTS: IntegratedGradientsOptions =
    IntegratedGradientsOptions { steps: 9, baseline: -1.0, max_batch: 4 };

/// All golden files. A network without one fails `every_golden_file_is_compared`.
const NETWORKS: [&str; 20] = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg16",
    "vgg19",
    "inception_v3",
    "inception_resnet_v2",
    "detrac_resnet50",
    "attention_vgg16",
    "attention_vgg16_sigmoid",
    "multi_scale",
    "covnet",
    "covnet_batch",
    "decovnet",
    "unet_plus_plus",
    "unet",
    "r231",
    "dre_net",
];

#[derive(Deserialize)]
struct Golden {
    seed: u64,
    network: String,
    width: f64,
    n_classes: i64,
    input: Vec<i64>,
    n_parameters: usize,
    attention: Option<AttentionOptions>,
    bn_mode: Option<BatchNormMode>,
    outputs: Vec<GoldenOutput>,
}

#[derive(Deserialize)]
struct GoldenOutput {
    name: String,
    shape: Vec<i64>,
    every_nth: i64,
    values: Vec<f32>,
    sum: f64,
    sum_of_squares: f64,
}

type Outputs = Vec<(String, Tensor)>;
type Run = Box<dyn Fn(&Golden, &Tensor, Ask) -> Result<Outputs, TchError>>;

/// What is asked of a network; maps take most of the time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Everything,
    /// No map that needs a run of its own.
    Logits,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nn/parity")
}

fn golden(network: &str) -> Golden {
    let path = folder().join(format!("{network}.json"));
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn architecture(golden: &Golden) -> Option<Architecture> {
    let name = if golden.attention.is_some() { "attention_vgg16" } else { &golden.network };
    Architecture::ALL.into_iter().find(|architecture| architecture.name() == name)
}

/// Blocks of 16 x 16 whose contrast grows from input to input, under noise: `image` in make_parity.py.
fn image(golden: &Golden, network: &str, idx: i64, shape: &[i64]) -> Tensor {
    let [channels @ .., rows, columns] = shape else { panic!("{shape:?}") };
    let n_channels: i64 = channels.iter().product();
    let (block_rows, block_columns) = ((rows + 15) / 16, (columns + 15) / 16);
    let contrast = 0.5 + 0.75 * idx as f32;
    let uniform = |what: &str, size: [i64; 3], range: f32| {
        let n_elements = size.iter().product::<i64>() as usize;
        let values = seeded::uniform(golden.seed, &format!("{network}/input{idx}/{what}"), n_elements, -range, range);
        Tensor::from_slice(&values).view(size)
    };
    let coarse = uniform("coarse", [n_channels, block_rows, block_columns], contrast)
        .repeat_interleave_self_int(16, 1, None)
        .repeat_interleave_self_int(16, 2, None)
        .narrow(1, 0, *rows)
        .narrow(2, 0, *columns);
    (coarse + uniform("fine", [n_channels, *rows, *columns], 0.5)).view(shape)
}

fn images(golden: &Golden, network: &str, shape: &[i64]) -> Tensor {
    Tensor::stack(&(0..N_INPUTS).map(|idx| image(golden, network, idx, shape)).collect::<Vec<_>>(), 0)
}

/// A class for each input, in turn.
fn targets(golden: &Golden) -> Tensor {
    Tensor::from_slice(&(0..N_INPUTS).map(|idx| idx % golden.n_classes).collect::<Vec<_>>())
}

fn named<const N: usize>(outputs: [(&str, Tensor); N]) -> Outputs {
    outputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// Runs something on each entry of the first dimension and stacks what it gives.
fn each(input: &Tensor, run: impl Fn(i64, &Tensor) -> Result<Outputs, TchError>) -> Result<Outputs, TchError> {
    let mut collected: Vec<(String, Vec<Tensor>)> = Vec::new();
    for idx in 0..N_INPUTS {
        for (output_idx, (name, tensor)) in run(idx, &input.select(0, idx))?.into_iter().enumerate() {
            if idx == 0 {
                collected.push((name, Vec::new()));
            }
            collected[output_idx].1.push(tensor);
        }
    }
    collected.into_iter().map(|(name, tensors)| Ok((name, Tensor::f_stack(&tensors, 0)?))).collect()
}

fn build(golden: &Golden, store: &VarStore) -> Run {
    let path = store.root();
    let (width, n_classes) = (golden.width, golden.n_classes);
    if let Some(architecture) = architecture(golden) {
        let options = ClassifierOptions { attention: golden.attention.unwrap_or_default(), explanation: None };
        let network = Classifier::new(&path, architecture, width, n_classes, options).unwrap();
        return Box::new(move |golden, input, ask| run_classifier(golden, &network, architecture, input, ask));
    }
    match golden.network.as_str() {
        "multi_scale" => {
            let network = MultiScale::new(&path, width, n_classes).unwrap();
            let targets = targets(golden);
            Box::new(move |_, input, ask| {
                let output = network.forward(input)?;
                let class_map = output.class_map(&targets)?;
                let mut outputs =
                    named([("logits", output.logits), ("embedding", output.embedding), ("class_map", class_map)]);
                for ((level, logits), maps) in (3..).zip(output.level_logits).zip(output.class_maps) {
                    outputs.push((format!("logits{level}"), logits));
                    outputs.push((format!("class_maps{level}"), maps));
                }
                if ask == Ask::Everything {
                    let last = input.narrow(0, N_INPUTS - 1, 1);
                    let saliency = network.joint_saliency(&last, 2, INTEGRATED_GRADIENTS)?;
                    outputs.push(("joint_saliency".to_owned(), saliency));
                }
                Ok(outputs)
            })
        }
        "covnet" | "covnet_batch" => {
            let network = Covnet::new(&path, width, n_classes, golden.bn_mode.unwrap()).unwrap();
            Box::new(move |_, input, _| {
                each(input, |idx, scan| {
                    let output = network.forward(scan, idx % n_classes, None)?;
                    Ok(named([
                        ("logits", output.logits.squeeze()),
                        ("embedding", output.embedding.squeeze()),
                        ("slice_contributions", output.slice_contributions),
                        ("cam", output.activation_maps),
                    ]))
                })
            })
        }
        "decovnet" => {
            let network = DeCoVNet::new(&path, width, n_classes).unwrap();
            Box::new(move |_, input, ask| {
                each(input, |idx, volume| {
                    let target = Tensor::from_slice(&[idx % n_classes]);
                    let explained = |method| network.forward(&volume.unsqueeze(0), &target, method);
                    let hirescam = explained(Explanation::HiResCam)?;
                    let mut outputs = named([
                        ("logits", hirescam.logits.select(0, 0)),
                        ("embedding", hirescam.embedding.select(0, 0)),
                        ("hirescam", hirescam.map.select(0, 0)),
                    ]);
                    if ask == Ask::Everything {
                        for method in [Explanation::GradCam, Explanation::GradCamPlusPlus] {
                            outputs.push((method.name().to_owned(), explained(method)?.map.select(0, 0)));
                        }
                    }
                    Ok(outputs)
                })
            })
        }
        "unet_plus_plus" => {
            let network = UNetPlusPlus::new(&path, width, n_classes).unwrap();
            Box::new(move |_, input, _| Ok(named([("logits", network.forward(input)?)])))
        }
        "unet" => {
            let network = UNet::new(&path, width).unwrap();
            Box::new(move |_, input, _| Ok(named([("probabilities", network.forward(input)?)])))
        }
        "r231" => {
            let network = R231::new(&path, width).unwrap();
            Box::new(move |_, input, _| Ok(named([("logits", network.forward(input)?)])))
        }
        "dre_net" => {
            let network = DreNet::new(&path, width, n_classes).unwrap();
            Box::new(move |golden, input, _| {
                each(input, |idx, slice| {
                    let fine = image(golden, "dre_net/fine", idx, &[3, 600, 600]).unsqueeze(0);
                    let output = network.forward(&slice.unsqueeze(0), &fine)?;
                    let squares: Vec<f32> = output
                        .squares
                        .iter()
                        .flat_map(|square| [square.row, square.column, square.side].map(|pixels| pixels as f32))
                        .collect();
                    Ok(named([
                        ("logits", output.logits.select(0, 0)),
                        ("embedding", output.embedding.select(0, 0)),
                        ("squares", Tensor::from_slice(&squares).view([6, 3])),
                        ("square_logits", output.square_logits),
                    ]))
                })
            })
        }
        other => panic!("no network of the name {other}"),
    }
}

fn run_classifier(
    golden: &Golden,
    network: &Classifier,
    architecture: Architecture,
    input: &Tensor,
    ask: Ask,
) -> Result<Outputs, TchError> {
    let targets = targets(golden);
    let output = network.forward(input, &targets)?;
    let mut outputs = named([("logits", output.logits), ("embedding", output.embedding)]);
    for (level, map) in (1..).zip(output.attention) {
        outputs.push((format!("attention{level}"), map));
    }
    if ask == Ask::Logits {
        return Ok(outputs);
    }
    for method in architecture.explanations() {
        let map = if *method == Explanation::IntegratedGradients {
            let last = input.narrow(0, N_INPUTS - 1, 1);
            network.integrated_gradients(&last, 1, INTEGRATED_GRADIENTS)?.select(0, 0)
        } else {
            network.explained(input, &targets, *method)?.activation_map
        };
        outputs.push((method.name().to_owned(), map));
    }
    Ok(outputs)
}

fn seed_weights(golden: &Golden, store: &mut VarStore) {
    for (name, mut variable) in store.variables() {
        let size = variable.size();
        let shape: Vec<usize> = size.iter().map(|side| *side as usize).collect();
        let values = seeded_values(golden.seed, &golden.network, architecture(golden), &name, &shape);
        tch::no_grad(|| variable.copy_(&Tensor::from_slice(&values).view(size.as_slice())));
    }
    store.freeze();
}

/// Largest difference, as a fraction of the largest magnitude in the golden output; of the sums, as a fraction of the
/// sum of magnitudes. Infinite where the shapes differ or nothing is there to compare.
fn difference(found: &Tensor, expected: &GoldenOutput) -> f64 {
    if found.size() != expected.shape || expected.values.is_empty() {
        return f64::INFINITY;
    }
    let flat = found.to_kind(Kind::Double).flatten(0, -1);
    let sampled = flat.slice(0, 0, None, expected.every_nth);
    let golden = Tensor::from_slice(&expected.values).to_kind(Kind::Double);
    if sampled.size() != golden.size() {
        return f64::INFINITY;
    }
    let magnitude = golden.abs().max().double_value(&[]);
    let of_values = (sampled - &golden).abs().max().double_value(&[]) / magnitude;
    let total = flat.abs().sum(Kind::Double).double_value(&[]);
    let of_sum = (flat.sum(Kind::Double).double_value(&[]) - expected.sum).abs() / total;
    let of_squares = (flat.square().sum(Kind::Double).double_value(&[]) / expected.sum_of_squares - 1.0).abs() / 2.0;
    // A golden output of zeros gives NaN, which is no agreement either.
    [of_values, of_sum, of_squares]
        .into_iter()
        .fold(0.0, |largest: f64, value| if value.is_nan() { f64::INFINITY } else { largest.max(value) })
}

/// Largest difference of each kind of output, where there is one: logits, embeddings, maps and whatever else.
fn differences(found: &Outputs, golden: &Golden) -> [Option<f64>; 3] {
    let mut largest = [None; 3];
    assert_eq!(found.len(), golden.outputs.len(), "{}", golden.network);
    for expected in &golden.outputs {
        let Some((_, tensor)) = found.iter().find(|(name, _)| *name == expected.name) else {
            panic!("{}: no output of the name {}", golden.network, expected.name);
        };
        let kind = match expected.name.as_str() {
            name if name.contains("logits") || name == "probabilities" => 0,
            "embedding" => 1,
            _ => 2,
        };
        let difference = difference(tensor, expected);
        largest[kind] = Some(largest[kind].map_or(difference, |other: f64| other.max(difference)));
    }
    largest
}

/// Two channels swapped; the columns turned round where there is only one.
fn changed(input: &Tensor) -> Tensor {
    let channel_dim = if input.dim() == 5 && input.size()[2] == 3 { 2 } else { 1 };
    match input.size()[channel_dim as usize] {
        1 => input.flip([-1]),
        n_channels => {
            let order: Vec<i64> = [1, 0].into_iter().chain(2..n_channels).collect();
            input.index_select(channel_dim, &Tensor::from_slice(&order))
        }
    }
}

struct Verdict {
    row: String,
    problems: Vec<String>,
}

fn compare(network: &str, fill: fn(&Golden, &mut VarStore)) -> Verdict {
    // OpenMP's spinning threads slow each other down tenfold where tests share the processor.
    tch::set_num_threads(1);
    let start = Instant::now();
    let golden = golden(network);
    let mut store = VarStore::new(Device::Cpu);
    let run = build(&golden, &store);
    let n_parameters: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
    fill(&golden, &mut store);
    let input = images(&golden, network, &golden.input[1..]);
    let found = tch::no_grad(|| run(&golden, &input, Ask::Everything)).unwrap();
    let of_kinds = differences(&found, &golden);
    let spread = found[0].1.std_dim([0i64].as_slice(), true, false).mean(Kind::Double).double_value(&[]);
    let of_changed = tch::no_grad(|| run(&golden, &changed(&input), Ask::Logits)).unwrap();
    let of_changed = difference(&of_changed[0].1, &golden.outputs[0]);

    let mut problems = Vec::new();
    if n_parameters != golden.n_parameters {
        problems.push(format!("{network}: {n_parameters} parameters, expected {}", golden.n_parameters));
    }
    for expected in &golden.outputs {
        let (name, tensor) = found.iter().find(|(name, _)| *name == expected.name).unwrap();
        let difference = difference(tensor, expected);
        let is_gradient = ["integrated_gradients", "saliency"].iter().any(|part| expected.name.contains(part));
        if difference > if is_gradient { TOLERANCE_OF_GRADIENTS } else { TOLERANCE } {
            let (size, shape) = (tensor.size(), &expected.shape);
            problems.push(format!("{network}: {name} {size:?}, expected {shape:?}, differs by {difference:.2e}"));
        }
    }
    if spread < MINIMUM_SPREAD {
        problems.push(format!("{network}: the logits vary by {spread:.4} only: it is as good as dead"));
    }
    if of_changed <= 100.0 * TOLERANCE {
        problems.push(format!("{network}: a changed input gives the same answers but for {of_changed:.2e}"));
    }
    let [logits, embedding, maps] =
        of_kinds.map(|difference| difference.map_or_else(|| "-".to_owned(), |difference| format!("{difference:.1e}")));
    let row = format!(
        "{network:<24} {n_parameters:>9} {logits:>9} {embedding:>10} {maps:>9} {spread:>8.3} {of_changed:>9.1e} \
         {:>8.1}",
        start.elapsed().as_secs_f64()
    );
    Verdict { row, problems }
}

#[test]
fn every_network_agrees_with_pytorch() {
    let mut table = format!(
        "\n{:<24} {:>9} {:>9} {:>10} {:>9} {:>8} {:>9} {:>8}\n",
        "network", "weights", "logits", "embedding", "maps", "spread", "changed", "seconds"
    );
    let mut problems = Vec::new();
    for network in NETWORKS {
        let verdict = compare(network, seed_weights);
        writeln!(table, "{}", verdict.row).unwrap();
        problems.extend(verdict.problems);
    }
    println!(
        "{table}\nLargest difference from PyTorch over {N_INPUTS} inputs, as a fraction of the largest magnitude; at most \
         {TOLERANCE:.0e}, of Integrated Gradients {TOLERANCE_OF_GRADIENTS:.0e}.\nspread: standard deviation of the logits over the inputs. changed: difference of the logits \
         when two channels are swapped or the input is flipped.\n"
    );
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// One of each way to be dead: all weights 0, and all weights those of another network.
#[test]
fn a_dead_network_does_not_pass() {
    let dead = compare("resnet18", |_, store| store.freeze()).problems.join("\n");
    assert!(dead.contains("logits [8, 3]") && dead.contains("vary by 0.0000"), "{dead}");
    assert!(dead.contains("cam [8, 3, 4]"), "{dead}");
    let other = compare("resnet18", |golden, store| {
        seed_weights(&Golden { seed: golden.seed + 1, ..self::golden("resnet18") }, store);
    });
    assert!(other.problems.join("\n").contains("logits [8, 3]"), "{:?}", other.problems);
}

#[test]
fn every_golden_file_is_compared() {
    let mut files: Vec<String> =
        fs_err::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let mut networks: Vec<String> = NETWORKS.iter().map(|network| format!("{network}.json")).collect();
    networks.sort();
    assert_eq!(files, networks);
    for architecture in Architecture::ALL {
        assert!(NETWORKS.contains(&architecture.name()), "{architecture}");
    }
}
