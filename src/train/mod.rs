//! Data sets, training, evaluation and calibration: how weights come to be, and what may be said of them.
//!
//! Start from [`DataSet::read`] (a list of images, read and checked), [`check()`] (what is wrong with it), [`train`] (from a
//! [`TrainPlan`] to a bundle), [`predict()`] (what a bundle says of a list), [`Evaluation::of`] (what that is worth) and
//! [`calibrate()`].
//!
//! Architecture invariant: with `nn` the only room that names `tch`. It knows no network and no database; files of a
//! data set and of a bundle are all that it reads and writes.

mod alter;
mod augmentation;
mod calibrate;
mod check;
mod checkpoint;
mod curves;
mod dataset;
mod decomposition;
mod error;
mod evaluation;
mod examples;
mod export;
mod feature_space;
mod fit;
mod folds;
mod groups;
mod labels;
mod optimiser;
mod page;
mod plan;
mod plots;
mod predict;
mod record;
mod run;
mod sample;
mod sampling;
pub mod statistics;
#[cfg(test)]
mod tests;

pub use alter::Alteration;
pub use augmentation::Augmentation;
pub use calibrate::{Aim, Calibrated, CalibrationMethod, Chosen, Fit, calibrate, choose_threshold};
pub use check::{Duplicate, Findings, Table, check};
pub use checkpoint::{EpochRecord, Tried, replace};
pub use dataset::{DataSetError, patients_on_two_sides};
pub use error::TrainError;
pub use evaluation::{Evaluation, Figure, Figures, Plan, TrainedOn};
pub use feature_space::{FitError, FitOptions, Shrinkage, fit_feature_space, quantile};
pub use fit::{Event, Observer};
pub use folds::{FoldError, patient_folds, patient_split};
pub use groups::{Group, group_of};
pub use labels::{ClassMap, LabelError};
pub use optimiser::{Method, Schedule};
pub use plan::{
    Balance, BundleWords, Class, Compute, Data, Loss, Monitor, Optimisation, PlanProblems, Sampling, Start, Task,
    TrainPlan, TrainedMember, Validation, WeightsKind, read_plan,
};
pub use predict::{PredictError, Prediction, Questions, Scored, dice, predict, predictions_csv};
pub use record::RunRecord;
pub use run::{Outcome, train};
pub use sample::{DataSet, Sample, SampleError, Split};
