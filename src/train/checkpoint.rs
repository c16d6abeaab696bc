//! What a training needs to go on after `kill -9` as if nothing had been: one file that is replaced as a whole, so that
//! it is the old one or the new one at any moment.
//!
//! Random numbers need no state: order, augmentation and dropout are drawn from streams that seed, epoch and batch choose.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{error::TrainError, optimiser::LossScale};
use crate::nn::{Storage, read_tensors, write_tensors};

/// Name of the file in the training's folder.
pub(super) const CHECKPOINT_FILE_NAME: &str = "checkpoint.safetensors";

/// Where a training stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Epochs that are done.
    pub(super) epoch: u32,
    /// Batches of the next epoch that are done.
    pub(super) batch: usize,
    /// Sums over those batches.
    pub(super) sums: Sums,
    /// Steps so far, by which the learning rate goes.
    pub(super) steps: i32,
    /// Those that mixed precision left out, because their gradients were not finite: the optimiser counts without them.
    #[serde(default)]
    pub(super) steps_left_out: i32,
    /// Of mixed precision.
    pub(super) loss_scale: LossScale,
    /// The loss of each step.
    pub(super) step_losses: Vec<f64>,
    /// What each epoch gave.
    pub(super) history: Vec<EpochRecord>,
    /// The best epoch so far, counted from 1, and what it reached.
    pub(super) best: Option<(u32, f64)>,
    /// Whether there is nothing left to do.
    pub(super) is_finished: bool,
}

/// Sums over the batches of an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    /// Images.
    pub(super) images: usize,
    /// Loss times images.
    pub(super) loss: f64,
    /// Images whose class was right, or the sum of the images' Dice.
    pub(super) score: f64,
}

/// What an epoch gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: u32,
    /// Changes of the weights up to its end.
    pub steps: i32,
    /// Of its last step.
    pub learning_rate: f64,
    /// Mean over the training images as they came, augmented.
    pub training_loss: f64,
    /// Share of them whose class was right, or their mean Dice.
    pub training_score: f64,
    /// On the validation images, by the weights that would be kept; absent without validation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation: Option<Tried>,
}

/// How a network did on images that it was not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// How many images.
    pub images: usize,
    /// Mean loss.
    pub loss: f64,
    /// Mean of the classes' sensitivities (balanced accuracy), or mean Dice.
    pub score: f64,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) progress: Progress,
    /// By the part (`weights`, `average`, `optimiser`) and the name.
    tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    pub(super) const fn new(progress: Progress) -> Self {
        Self { progress, tensors: BTreeMap::new() }
    }

    /// Adds a part.
    pub(super) fn with(mut self, part: &str, tensors: &BTreeMap<String, Tensor>) -> Self {
        let named = tensors.iter().map(|(name, tensor)| (format!("{part}/{name}"), tensor.shallow_clone()));
        self.tensors.extend(named);
        self
    }

    /// A part of it.
    pub(super) fn part(&self, part: &str) -> BTreeMap<String, Tensor> {
        let in_part = |name: &str| name.strip_prefix(part)?.strip_prefix('/').map(str::to_owned);
        self.tensors.iter().filter_map(|(name, of)| Some((in_part(name)?, of.shallow_clone()))).collect()
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_string(&self.progress).map_err(|error| TrainError::Internal(error.to_string()))?;
        let bytes = write_tensors(&self.tensors, Storage::Float32, Some(text))?;
        replace(&folder.join(CHECKPOINT_FILE_NAME), &bytes)
    }

    /// The checkpoint of a training's folder, when there is one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let path = folder.join(CHECKPOINT_FILE_NAME);
        let unsound = |reason: String| TrainError::Checkpoint { file: path.clone(), reason };
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (tensors, text) = read_tensors(&bytes).map_err(unsound)?;
        let text = text.ok_or_else(|| unsound("it says nothing of the training".to_owned()))?;
        let progress = serde_json::from_str(&text).map_err(|error| unsound(error.to_string()))?;
        Ok(Some(Self { progress, tensors }))
    }
}

/// Writes a file so that it is the old one or the new one at any moment: beside it, to the disk, renamed, the folder to the disk.
///
/// # Errors
/// [`TrainError`] when the disk refuses.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.part"));
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs_err::rename(&temporary, path)?;
    fs_err::File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            epoch: 2,
            batch: 3,
            sums: Sums { images: 5, loss: 0.1 + 0.2, score: 4.0 },
            steps: 17,
            steps_left_out: 1,
            loss_scale: LossScale::new(false),
            step_losses: vec![0.1, 1.0 / 3.0],
            history: Vec::new(),
            best: Some((1, 0.7)),
            is_finished: false,
        }
    }

    #[test]
    fn what_was_written_is_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Checkpoint::read(folder.path()).unwrap().is_none());
        let weights = BTreeMap::from([("a.weight".to_owned(), Tensor::from_slice(&[0.1f32, f32::MIN_POSITIVE]))]);
        let moments = BTreeMap::from([("first/a.weight".to_owned(), Tensor::from_slice(&[3.0f32]))]);
        Checkpoint::new(progress()).with("weights", &weights).with("optimiser", &moments).write(folder.path()).unwrap();
        let read = Checkpoint::read(folder.path()).unwrap().unwrap();
        assert_eq!(read.progress, progress());
        assert_eq!(read.part("weights")["a.weight"], weights["a.weight"]);
        assert_eq!(read.part("optimiser").keys().collect::<Vec<_>>(), ["first/a.weight"]);
        assert!(read.part("average").is_empty());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "a part is left");
    }

    #[test]
    fn a_damaged_checkpoint_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(CHECKPOINT_FILE_NAME), b"half").unwrap();
        let error = Checkpoint::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("checkpoint.safetensors") && error.contains("start anew"), "{error}");
    }
}
