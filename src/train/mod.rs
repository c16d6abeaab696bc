//! Data sets, training, evaluation and calibration: how weights come to be, and what may be said of them.
//!
//! Start from [`DataSet::read`] (a list of images, read and checked) and [`train`] (from a [`TrainPlan`] to a bundle).
//!
//! Architecture invariant: with `nn` the only room that names `tch`. It knows no network and no database; files of a
//! data set and of a bundle are all that it reads and writes.

mod augmentation;
mod checkpoint;
mod curves;
mod dataset;
mod decomposition;
mod error;
mod examples;
mod export;
mod fit;
mod folds;
mod optimiser;
mod plan;
mod record;
mod run;
mod sample;
mod sampling;

pub use augmentation::Augmentation;
pub use checkpoint::{EpochRecord, Tried};
pub use dataset::{DataSetError, patients_on_two_sides};
pub use error::TrainError;
pub use fit::{Event, Observer};
pub use folds::{FoldError, patient_folds, patient_split};
pub use optimiser::{Method, Schedule};
pub use plan::{
    Balance, BundleWords, Class, Compute, Data, Loss, Monitor, Optimisation, PlanProblems, Sampling, Start, Task,
    TrainPlan, TrainedMember, Validation, WeightsKind, read_plan,
};
pub use record::RunRecord;
pub use run::{Outcome, train};
pub use sample::{DataSet, Sample, SampleError, Split};
