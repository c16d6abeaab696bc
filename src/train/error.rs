//! Why a training stops.

use std::path::PathBuf;

use super::{dataset::DataSetError, folds::FoldError, plan::PlanProblems, sample::SampleError};
use crate::{
    imaging::PlaneError,
    nn::{BundleError, InitError, NnError},
};

/// Why a training does not begin or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Its configuration.
    #[error(transparent)]
    Plan(#[from] PlanProblems),
    /// Its list.
    #[error(transparent)]
    DataSet(#[from] DataSetError),
    /// An image.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Its folds.
    #[error(transparent)]
    Folds(#[from] FoldError),
    /// Images and configuration contradict each other.
    #[error("{0}")]
    Data(String),
    /// A picture cannot be resampled.
    #[error("`{}`: {error}", file.display())]
    Plane {
        /// Of which image.
        file: PathBuf,
        /// Why not.
        error: PlaneError,
    },
    /// A bundle that it starts from or segments with.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Weights that it starts from.
    #[error("the weights to start `{network}` from do not fit:\n{}", problems.join("\n"))]
    Start {
        /// Which network.
        network: String,
        /// Everything that is wrong, each with its remedy.
        problems: Vec<String>,
    },
    /// A network fails.
    #[error(transparent)]
    Network(#[from] NnError),
    /// libtorch refuses.
    #[error("libtorch refuses: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
    /// The loss is no number any more.
    #[error(
        "the loss of `{network}` in epoch {epoch} is not finite: lower `optimisation.learning_rate`, or set \
         `optimisation.clip_length`"
    )]
    Diverged {
        /// Which network.
        network: String,
        /// Counted from 1.
        epoch: u32,
    },
    /// A checkpoint cannot be used.
    #[error("`{}` cannot be taken up: {reason}; remove it to start anew", file.display())]
    Checkpoint {
        /// Which.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The folder belongs to another training.
    #[error(
        "`{}` holds a training with another configuration or other images: give another folder with --out, or remove that \
         one if it is no longer needed",
        .0.display()
    )]
    OtherTraining(PathBuf),
    /// The bundle cannot be written.
    #[error(transparent)]
    Export(#[from] InitError),
    /// Files.
    #[error("{0}; check the path, space and permissions")]
    Io(#[from] std::io::Error),
    /// A fault of this program.
    #[error("the training fails by a fault of its own: {0}")]
    Internal(String),
}
