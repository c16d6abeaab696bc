//! The loop: batches, gradients, weights, checkpoints.
//!
//! Two copies of the network: one whose variables want gradients, which is trained, and a frozen one, which is what will
//! work. After each epoch the second gets the weights of the first (or their moving average) and is tried on the
//! validation images; the weights of the best epoch are kept.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::mpsc::sync_channel,
};

use serde::Serialize;
use tch::{Kind, Reduction, Tensor};

use super::{
    augmentation::Stream,
    checkpoint::{Checkpoint, EpochRecord, Progress, Sums, Tried, replace},
    curves,
    error::TrainError,
    optimiser::{LossScale, MovingAverage, Optimiser, number},
    plan::{Loss, Monitor, TrainPlan},
    sampling::{Group, batches, order},
};
use crate::nn::{NetworkPlan, Storage, Trainable, read_tensors};

/// Name of the file with the weights of the best epoch in the training's folder.
const BEST_FILE_NAME: &str = "best.safetensors";

/// Batches that are prepared ahead.
const AHEAD: usize = 2;

/// What a network learns from: prepared images.
pub(super) trait Examples: Sync {
    /// Channels, rows and columns of an input.
    fn shape(&self) -> [i64; 3];

    /// An image, changed as the stream wants it.
    fn augmented(&self, image: usize, stream: Stream) -> Result<Example, TrainError>;

    /// An image as it is at work.
    fn plain(&self, image: usize) -> Result<Example, TrainError>;
}

/// An image and what the network shall say of it.
pub(super) struct Example {
    /// `channels * rows * columns` numbers.
    pub(super) input: Vec<f32>,
    pub(super) target: Target,
}

/// What a network shall say of an image.
pub(super) enum Target {
    /// Index of an output.
    Output(usize),
    /// 1 where lung is, else 0; `rows * columns` numbers.
    Mask(Vec<f32>),
}

/// What targets mean.
pub(super) enum Objective {
    /// Masks.
    Lungs,
    /// The class of each output, and the weight of each output in the loss.
    Classes { class_of_output: Vec<usize>, weights: Vec<f32> },
}

/// One network to be trained.
pub(super) struct Fit<'a> {
    pub(super) plan: &'a TrainPlan,
    /// For people.
    pub(super) name: &'a str,
    pub(super) network: NetworkPlan,
    pub(super) frozen: &'a [String],
    pub(super) learning_rate: f64,
    pub(super) examples: &'a dyn Examples,
    pub(super) objective: Objective,
    /// Indices of the images that it is trained on, and what is known of each.
    pub(super) training: Vec<(usize, Group)>,
    /// Of those that it is tried on.
    pub(super) validation: Vec<usize>,
    pub(super) folder: PathBuf,
}

/// What happens while a network is trained.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Images are read.
    Reading {
        /// So many are.
        done: usize,
        /// Of so many.
        of: usize,
    },
    /// Training begins or goes on.
    Began {
        /// Of which network.
        network: &'a str,
        /// In all.
        epochs: u32,
        /// Batches of an epoch.
        batches: usize,
        /// Epochs that were done before.
        done: u32,
    },
    /// A batch is done.
    Batch {
        /// Counted from 1.
        epoch: u32,
        /// Counted from 1.
        batch: usize,
        /// Its mean loss.
        loss: f64,
    },
    /// An epoch is done.
    Epoch(&'a EpochRecord),
    /// Something that is worth knowing.
    Note(&'a str),
}

/// Who is told.
pub type Observer<'a> = &'a mut dyn FnMut(Event<'_>);

/// Numbers of a batch, on their way to a tensor.
struct Batch {
    inputs: Vec<f32>,
    outputs: Vec<i64>,
    masks: Vec<f32>,
    images: usize,
}

impl Fit<'_> {
    /// Trains, or goes on where a checkpoint ends, and returns the network with the weights that are kept, frozen.
    pub(super) fn run(
        &self,
        start: impl FnOnce(&Trainable) -> Result<(), TrainError>,
        observer: Observer<'_>,
    ) -> Result<Trained, TrainError> {
        fs_err::create_dir_all(&self.folder)?;
        let device = self.plan.device();
        let network = Trainable::declare(self.network, device)?;
        let frozen: Vec<&str> = self.frozen.iter().map(String::as_str).collect();
        network.freeze(&frozen);
        let working = Trainable::declare(self.network, device)?;
        working.freeze(&self.network.stages());

        let variables = network.variables();
        let mut optimiser = Optimiser::new(network.variables(), self.plan.optimiser())?;
        let average = |values: &BTreeMap<String, Tensor>| {
            let decay = self.plan.optimisation.average_decay;
            decay.map(|decay| MovingAverage::new(values, decay)).transpose()
        };
        let mut state = if let Some(kept) = Checkpoint::read(&self.folder)? {
            network.copy_from(&kept.part("weights"))?;
            let steps = kept.progress.steps - kept.progress.steps_left_out;
            optimiser.restore(&on_device(kept.part("optimiser"), &network)?, steps)?;
            let mut average = average(&variables)?;
            if let Some(average) = &mut average {
                average.values = on_device(kept.part("average"), &network)?;
            }
            State { progress: kept.progress, average }
        } else {
            start(&network)?;
            State { progress: Self::beginning(self.plan), average: average(&variables)? }
        };

        let (epochs, n_batches) = (self.plan.optimisation.epochs, self.epoch(0).len());
        observer(Event::Began { network: self.name, epochs, batches: n_batches, done: state.progress.epoch });
        while !state.progress.is_finished {
            self.train_epoch(&network, &mut optimiser, &mut state, observer)?;
            self.end_epoch(&network, &working, &optimiser, &mut state, observer)?;
        }
        let best = fs_err::read(self.folder.join(BEST_FILE_NAME))?;
        let (weights, _) = read_tensors(&best)
            .map_err(|reason| TrainError::Checkpoint { file: self.folder.join(BEST_FILE_NAME), reason })?;
        working.copy_from(&weights)?;
        Ok(Trained { network: working, progress: state.progress })
    }

    fn beginning(plan: &TrainPlan) -> Progress {
        Progress {
            epoch: 0,
            batch: 0,
            sums: Sums::default(),
            steps: 0,
            steps_left_out: 0,
            loss_scale: LossScale::new(plan.optimisation.mixed_precision),
            step_losses: Vec::new(),
            history: Vec::new(),
            best: None,
            is_finished: false,
        }
    }

    /// The batches of an epoch: indices into `training`.
    fn epoch(&self, epoch: u32) -> Vec<Vec<usize>> {
        let groups: Vec<Group> = self.training.iter().map(|(_, group)| group.clone()).collect();
        let order = order(&groups, self.plan.sampling, self.plan.compute.seed, u64::from(epoch));
        batches(&order, self.plan.optimisation.batch_size as usize)
    }

    fn train_epoch(
        &self,
        network: &Trainable,
        optimiser: &mut Optimiser,
        state: &mut State,
        observer: Observer<'_>,
    ) -> Result<(), TrainError> {
        let epoch = state.progress.epoch;
        let batches = self.epoch(epoch);
        let first = state.progress.batch;
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(AHEAD);
            let to_prepare = batches.get(first..).unwrap_or_default();
            scope.spawn(move || {
                for batch in to_prepare {
                    // Nobody receives any more when training has failed.
                    if sender.send(self.prepare(batch, epoch)).is_err() {
                        return;
                    }
                }
            });
            let accumulate = self.plan.optimisation.accumulate as usize;
            let mut step_loss = 0.0;
            for batch_idx in first..batches.len() {
                let batch = receiver.recv().map_err(|_| TrainError::Internal("no batch is prepared".to_owned()))??;
                let in_step = accumulate.min(batches.len() - batch_idx / accumulate * accumulate);
                if batch_idx % accumulate == 0 {
                    optimiser.zero_gradients()?;
                    step_loss = 0.0;
                }
                tch::manual_seed(
                    Stream::new(self.plan.compute.seed, u64::from(epoch), batch_idx as u64 ^ DROPOUT).next_u64() as i64,
                );
                let (loss, score) =
                    self.gradients(network, &batch, state.progress.loss_scale.scale / in_step as f64)?;
                if !loss.is_finite() {
                    return Err(TrainError::Diverged { network: self.name.to_owned(), epoch: epoch + 1 });
                }
                step_loss += loss / in_step as f64;
                let sums = &mut state.progress.sums;
                sums.images += batch.images;
                sums.loss += loss * batch.images as f64;
                sums.score += score;
                observer(Event::Batch { epoch: epoch + 1, batch: batch_idx + 1, loss });
                state.progress.batch = batch_idx + 1;
                if (batch_idx + 1) % accumulate == 0 || batch_idx + 1 == batches.len() {
                    self.step(network, optimiser, state, step_loss, batches.len())?;
                }
            }
            Ok(())
        })
    }

    fn prepare(&self, batch: &[usize], epoch: u32) -> Result<Batch, TrainError> {
        // An image that comes twice in a batch is changed in two ways.
        let mut examples = Vec::new();
        for (place, item) in batch.iter().enumerate() {
            let Some((image, _)) = self.training.get(*item) else { continue };
            let item = (*item as u64) << 16 | place as u64;
            let stream = Stream::new(self.plan.compute.seed, u64::from(epoch), item);
            examples.push(self.examples.augmented(*image, stream)?);
        }
        Ok(Batch::of(examples))
    }

    /// Adds the gradients of a batch, times `scale`. Returns the mean loss and the sum of the images' scores.
    fn gradients(&self, network: &Trainable, batch: &Batch, scale: f64) -> Result<(f64, f64), TrainError> {
        let optimisation = &self.plan.optimisation;
        let (input, targets) = self.tensors(batch, network.device())?;
        let logits =
            tch::autocast(optimisation.mixed_precision, || network.training_logits(&input, optimisation.dropout))?;
        let logits = logits.f_to_kind(Kind::Float)?;
        let loss = self.loss(&logits, &targets)?;
        loss.f_mul_scalar(scale)?.f_backward()?;
        let score = self.scores(&logits.f_detach()?, &targets)?.into_iter().sum();
        Ok((number(&loss)?, score))
    }

    /// Changes the weights by the gradients that were summed up, and writes a checkpoint when one is due.
    fn step(
        &self,
        network: &Trainable,
        optimiser: &mut Optimiser,
        state: &mut State,
        step_loss: f64,
        n_batches: usize,
    ) -> Result<(), TrainError> {
        let optimisation = &self.plan.optimisation;
        let scale = state.progress.loss_scale.scale;
        let length = if optimisation.mixed_precision || optimisation.clip_length.is_some() {
            optimiser.scale_and_clip(1.0 / scale, optimisation.clip_length)?
        } else {
            1.0
        };
        let rate = self.rate(state.progress.steps, n_batches);
        if state.progress.loss_scale.accept(optimisation.mixed_precision, length) {
            optimiser.step(rate)?;
            if let Some(average) = &mut state.average {
                average.follow(&network.variables(), optimiser.steps)?;
            }
        } else {
            state.progress.steps_left_out += 1;
        }
        state.progress.steps += 1;
        state.progress.step_losses.push(step_loss);
        // The end of an epoch writes its own.
        let is_due =
            optimisation.checkpoint_steps.is_some_and(|every| (state.progress.steps as u64).is_multiple_of(every));
        if is_due && state.progress.batch < n_batches {
            self.keep(network, optimiser, state)?;
        }
        Ok(())
    }

    fn rate(&self, steps: i32, n_batches: usize) -> f64 {
        let optimisation = &self.plan.optimisation;
        let per_epoch = n_batches.div_ceil(optimisation.accumulate as usize) as u64;
        let warm_up = (optimisation.warm_up_epochs * per_epoch as f64).round() as u64;
        self.learning_rate * optimisation.schedule.factor(steps as u64, per_epoch, optimisation.epochs, warm_up)
    }

    fn keep(&self, network: &Trainable, optimiser: &Optimiser, state: &State) -> Result<(), TrainError> {
        let mut checkpoint = Checkpoint::new(state.progress.clone())
            .with("weights", &network.variables())
            .with("optimiser", &optimiser.state());
        if let Some(average) = &state.average {
            checkpoint = checkpoint.with("average", &average.values);
        }
        checkpoint.write(&self.folder)
    }

    /// Tries the network, keeps its weights when they are the best so far, writes checkpoint and curves.
    fn end_epoch(
        &self,
        network: &Trainable,
        working: &Trainable,
        optimiser: &Optimiser,
        state: &mut State,
        observer: Observer<'_>,
    ) -> Result<(), TrainError> {
        let weights = state.average.as_ref().map_or_else(|| network.variables(), |average| copies(&average.values));
        working.copy_from(&weights)?;
        let validation = if self.validation.is_empty() { None } else { Some(self.try_on_validation(working)?) };
        let progress = &mut state.progress;
        if validation.is_some_and(|tried| !tried.loss.is_finite() || !tried.score.is_finite()) {
            return Err(TrainError::Diverged { network: self.name.to_owned(), epoch: progress.epoch + 1 });
        }
        let n_batches = self.epoch(progress.epoch).len();
        let sums = progress.sums;
        let record = EpochRecord {
            epoch: progress.epoch + 1,
            steps: progress.steps,
            learning_rate: self.rate(progress.steps.saturating_sub(1), n_batches),
            training_loss: sums.loss / sums.images.max(1) as f64,
            training_score: sums.score / sums.images.max(1) as f64,
            validation,
        };
        let reached = validation.and_then(|tried| match self.plan.optimisation.monitor {
            Monitor::Loss => Some(-tried.loss),
            Monitor::Score => Some(tried.score),
            Monitor::None => None,
        });
        let is_best = match (reached, progress.best) {
            (Some(reached), Some((_, best))) => reached > best,
            // Where nothing says which are better, the last weights are kept.
            _ => true,
        };
        if is_best {
            let bytes = working.to_safetensors(Storage::Float32)?;
            replace(&self.folder.join(BEST_FILE_NAME), &bytes)?;
            progress.best = Some((record.epoch, reached.unwrap_or(0.0)));
        }
        let since_best = progress.best.map_or(0, |(best, _)| record.epoch - best);
        progress.is_finished = record.epoch >= self.plan.optimisation.epochs
            || self.plan.optimisation.patience_epochs.is_some_and(|patience| since_best >= patience);
        progress.epoch = record.epoch;
        progress.batch = 0;
        progress.sums = Sums::default();
        progress.history.push(record.clone());
        self.keep(network, optimiser, state)?;
        curves::write(&self.folder, self.name, &state.progress)?;
        observer(Event::Epoch(&record));
        Ok(())
    }

    fn try_on_validation(&self, working: &Trainable) -> Result<Tried, TrainError> {
        let (mut loss, mut scores) = (0.0, Vec::new());
        let mut classes = Vec::new();
        for images in self.validation.chunks(self.plan.optimisation.batch_size as usize) {
            let examples = images.iter().map(|image| self.examples.plain(*image)).collect::<Result<Vec<_>, _>>()?;
            let batch = Batch::of(examples);
            let (input, targets) = self.tensors(&batch, working.device())?;
            let (logits, _) = working.logits_and_embedding(&input)?;
            loss += number(&tch::no_grad(|| self.loss(&logits, &targets))?)? * batch.images as f64;
            scores.extend(self.scores(&logits, &targets)?);
            if let Objective::Classes { class_of_output, .. } = &self.objective {
                let class = |output: &i64| class_of_output.get(*output as usize).copied().unwrap_or(0);
                classes.extend(batch.outputs.iter().map(class));
            }
        }
        let images = self.validation.len();
        let score = match &self.objective {
            Objective::Lungs => mean(&scores),
            Objective::Classes { .. } => balanced(&scores, &classes),
        };
        Ok(Tried { images, loss: loss / images as f64, score })
    }

    fn tensors(&self, batch: &Batch, device: tch::Device) -> Result<(Tensor, Tensor), TrainError> {
        let [channels, rows, columns] = self.examples.shape();
        let input = Tensor::f_from_slice(&batch.inputs)?.f_view([-1, channels, rows, columns])?.f_to(device)?;
        let targets = match &self.objective {
            Objective::Lungs => Tensor::f_from_slice(&batch.masks)?.f_view([-1, rows, columns])?,
            Objective::Classes { .. } => Tensor::f_from_slice(&batch.outputs)?,
        };
        Ok((input, targets.f_to(device)?))
    }

    /// Mean loss of a batch.
    fn loss(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor, TrainError> {
        match &self.objective {
            Objective::Lungs => lung_loss(logits, targets, self.plan.loss.dice_weight),
            Objective::Classes { weights, .. } => {
                let weights = Tensor::f_from_slice(weights)?.f_to(logits.device())?;
                class_loss(logits, targets, &weights, self.plan.loss)
            }
        }
    }

    /// Of each image: 1 for the right class, else 0; or Dice.
    fn scores(&self, logits: &Tensor, targets: &Tensor) -> Result<Vec<f64>, TrainError> {
        let scores = match &self.objective {
            Objective::Lungs => dice(&logits.f_gt(0.0)?.f_to_kind(Kind::Float)?, targets, 0.0)?,
            Objective::Classes { class_of_output, .. } => {
                let class = class_of_output.iter().map(|class| *class as i64).collect::<Vec<_>>();
                let class = Tensor::f_from_slice(&class)?.f_to(logits.device())?;
                let said = class.f_index_select(0, &logits.f_argmax(1, false)?)?;
                said.f_eq_tensor(&class.f_index_select(0, targets)?)?.f_to_kind(Kind::Float)?
            }
        };
        Ok(Vec::<f64>::try_from(scores.f_to_kind(Kind::Double)?.f_to(tch::Device::Cpu)?)?)
    }
}

/// Of the stream that seeds dropout, so that it is none of the images' own.
const DROPOUT: u64 = 1 << 63;

/// A network that was trained.
pub(super) struct Trained {
    /// With the weights that are kept, frozen.
    pub(super) network: Trainable,
    pub(super) progress: Progress,
}

struct State {
    progress: Progress,
    average: Option<MovingAverage>,
}

impl Batch {
    fn of(examples: Vec<Example>) -> Self {
        let mut batch = Self { inputs: Vec::new(), outputs: Vec::new(), masks: Vec::new(), images: examples.len() };
        for example in examples {
            batch.inputs.extend(example.input);
            match example.target {
                Target::Output(output) => batch.outputs.push(output as i64),
                Target::Mask(mask) => batch.masks.extend(mask),
            }
        }
        batch
    }
}

/// Binary cross-entropy of each pixel, and 1 minus the soft Dice of each image.
fn lung_loss(logits: &Tensor, masks: &Tensor, dice_weight: f64) -> Result<Tensor, TrainError> {
    let none = None::<&Tensor>;
    let entropy = logits.f_binary_cross_entropy_with_logits(masks, none, none, Reduction::Mean)?;
    let overlap = dice(&logits.f_sigmoid()?, masks, 1.0)?.f_mean(Kind::Float)?;
    Ok(entropy.f_sub(&overlap.f_sub_scalar(1.0)?.f_mul_scalar(dice_weight)?)?)
}

/// Dice of each image; `smoothing` is added above and below, and two empty masks agree.
fn dice(found: &Tensor, masks: &Tensor, smoothing: f64) -> Result<Tensor, TrainError> {
    let sum = |of: &Tensor| of.f_flatten(1, -1)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let both = sum(&found.f_mul(masks)?)?.f_mul_scalar(2.0)?.f_add_scalar(smoothing)?;
    let all = sum(found)?.f_add(&sum(masks)?)?.f_add_scalar(smoothing)?;
    let nothing = all.f_eq(0.0)?.f_to_kind(Kind::Float)?;
    Ok(both.f_add(&nothing)?.f_div(&all.f_add(&nothing)?)?)
}

/// Weighted cross-entropy with label smoothing, or focal loss (which smooths nothing).
fn class_loss(logits: &Tensor, targets: &Tensor, weights: &Tensor, loss: Loss) -> Result<Tensor, TrainError> {
    if loss.focal_gamma <= 0.0 {
        let smoothing = loss.label_smoothing;
        return Ok(logits.f_cross_entropy_loss(targets, Some(weights), Reduction::Mean, -100, smoothing)?);
    }
    let of_target = logits.f_log_softmax(1, Kind::Float)?.f_gather(1, &targets.f_unsqueeze(1)?, false)?;
    let of_target = of_target.f_squeeze_dim(1)?;
    let weights = weights.f_index_select(0, targets)?;
    let doubt =
        of_target.f_exp()?.f_neg()?.f_add_scalar(1.0)?.f_clamp_min(0.0)?.f_pow_tensor_scalar(loss.focal_gamma)?;
    let summed = doubt.f_mul(&of_target)?.f_mul(&weights)?.f_sum(Kind::Float)?.f_neg()?;
    Ok(summed.f_div(&weights.f_sum(Kind::Float)?)?)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Mean over the classes that are there of the share of right answers.
fn balanced(scores: &[f64], classes: &[usize]) -> f64 {
    let mut of_class: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (score, class) in scores.iter().zip(classes) {
        of_class.entry(*class).or_default().push(*score);
    }
    mean(&of_class.values().map(|scores| mean(scores)).collect::<Vec<_>>())
}

fn copies(values: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    values.iter().map(|(name, value)| (name.clone(), value.shallow_clone())).collect()
}

fn on_device(values: BTreeMap<String, Tensor>, network: &Trainable) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let device = network.device();
    let moved = values.into_iter().map(|(name, value)| Ok((name, value.f_to(device)?)));
    moved.collect::<Result<_, tch::TchError>>().map_err(TrainError::from)
}

/// A file of lines of JSON.
pub(super) fn json_lines<T: Serialize>(path: &Path, entries: &[T]) -> Result<(), TrainError> {
    let mut text = String::new();
    for entry in entries {
        text += &serde_json::to_string(entry).map_err(|error| TrainError::Internal(error.to_string()))?;
        text.push('\n');
    }
    replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{
        super::optimiser::{Method, OptimiserOptions},
        *,
    };
    use crate::{
        nn::{Architecture, AttentionOptions, seeded},
        types::Device,
    };

    #[derive(Deserialize)]
    struct Golden {
        seed: u64,
        cases: Vec<GoldenCase>,
    }

    #[derive(Deserialize)]
    struct GoldenCase {
        network: String,
        architecture: String,
        width: f64,
        side_pixels: i64,
        n_images: i64,
        method: Method,
        learning_rate: f64,
        losses: Vec<f64>,
    }

    /// From the same weights with the same images: deploy/golden/make_training.py.
    #[test]
    fn twenty_steps_lose_what_pytorch_loses() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/nn/training.json");
        let golden: Golden = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        assert_eq!(golden.cases.len(), 5);
        for case in golden.cases {
            let found = losses(golden.seed, &case);
            assert_eq!(case.losses.len(), 20);
            assert!(case.losses[19] < 0.95 * case.losses[0], "{}: nothing is learned", case.network);
            assert_eq!(found.len(), 20);
            assert!(found.iter().all(|loss| loss.is_finite()), "{}: {found:?}", case.network);
            let most = found.iter().zip(&case.losses).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(most < 1e-3, "{}: {most}\n{found:?}\n{:?}", case.network, case.losses);
        }
    }

    fn losses(seed: u64, case: &GoldenCase) -> Vec<f64> {
        let architecture = Architecture::ALL.into_iter().find(|of| of.name() == case.architecture);
        let plan = match architecture {
            None => NetworkPlan::Segmenter { width: case.width },
            Some(architecture) => NetworkPlan::Classifier {
                architecture,
                width: case.width,
                n_outputs: 2,
                attention: AttentionOptions::default(),
            },
        };
        let network = Trainable::declare(plan, Device::Cpu).unwrap();
        let start = network.variables().into_iter().map(|(name, variable)| {
            let shape: Vec<usize> = variable.size().iter().map(|side| *side as usize).collect();
            let values = seeded::seeded_values(seed, &case.network, architecture, &name, &shape);
            (name, Tensor::from_slice(&values).view(variable.size().as_slice()))
        });
        network.copy_from(&start.collect()).unwrap();
        let uniform = |what: &str, shape: &[i64], most: f32| {
            let n_elements = shape.iter().product::<i64>() as usize;
            let values = seeded::uniform(seed, &format!("{}/{what}", case.network), n_elements, -most, most);
            Tensor::from_slice(&values).view(shape)
        };
        let (n, side) = (case.n_images, case.side_pixels);
        let channels = if architecture.is_none() { 1 } else { 3 };
        let images = uniform("images", &[n, channels, side, side], 2.0);
        let options = OptimiserOptions { method: case.method, momentum: 0.9, weight_decay: 1e-4 };
        let mut optimiser = Optimiser::new(network.variables(), options).unwrap();
        let step = |_| {
            optimiser.zero_gradients().unwrap();
            let logits = network.training_logits(&images, 0.0).unwrap();
            let loss = if architecture.is_none() {
                let masks = uniform("masks", &[n, side, side], 1.0).gt(0.0).to_kind(Kind::Float);
                lung_loss(&logits, &masks, 1.0).unwrap()
            } else {
                let targets = Tensor::arange(n, (Kind::Int64, tch::Device::Cpu)).remainder(2);
                let smoothed = Loss { label_smoothing: 0.1, ..Loss::default() };
                class_loss(&logits, &targets, &Tensor::from_slice(&[0.5f32, 2.0]), smoothed).unwrap()
            };
            loss.backward();
            optimiser.step(case.learning_rate).unwrap();
            number(&loss).unwrap()
        };
        (0..20).map(step).collect()
    }

    #[test]
    fn the_focal_loss_without_focus_is_cross_entropy() {
        let logits = Tensor::from_slice(&[1.0f32, -0.5, 0.2, 0.9, -2.0, 0.3]).view([3, 2]);
        let (targets, weights) = (Tensor::from_slice(&[0i64, 1, 1]), Tensor::from_slice(&[0.5f32, 2.0]));
        let of = |gamma| {
            let loss = Loss { focal_gamma: gamma, ..Loss::default() };
            number(&class_loss(&logits, &targets, &weights, loss).unwrap()).unwrap()
        };
        assert!((of(0.0) - of(1e-9)).abs() < 1e-6);
        // By hand: (1 - p)^2 of each, as weighted.
        let probabilities = [1.5f64, 0.7, 2.3].map(|off| 1.0 / (1.0 + (-off).exp()));
        let expected: f64 =
            probabilities.iter().zip([0.5, 2.0, 2.0]).map(|(p, w)| -w * (1.0 - p).powi(2) * p.ln()).sum();
        assert!((of(2.0) - expected / 4.5).abs() < 1e-6);
    }

    #[test]
    fn dice_and_balanced_accuracy_count_as_they_should() {
        let masks = Tensor::from_slice(&[1.0f32, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).view([2, 2, 2]);
        let found = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).view([2, 2, 2]);
        let scores = Vec::<f64>::try_from(dice(&found, &masks, 0.0).unwrap().to_kind(Kind::Double)).unwrap();
        assert!((scores[0] - 2.0 / 3.0).abs() < 1e-6 && (scores[1] - 1.0).abs() < 1e-6, "{scores:?}");
        let balance = balanced(&[1.0, 1.0, 1.0, 0.0, 0.0, 1.0], &[0, 0, 0, 0, 1, 1]);
        assert!((balance - 0.625).abs() < 1e-12);
    }
}
