//! Data sets, training, evaluation and calibration: how weights come to be, and what may be said of them.
//!
//! Start from [`DataSet::read`] (a list of images, read and checked), [`check()`] (what is wrong with it), [`predict()`] (what a
//! bundle says of it), [`Evaluation::of`] (what that is worth) and [`calibrate()`].
//!
//! Architecture invariant: with `nn` the only room that names `tch`. It knows no network and no database; files of a
//! data set and of a bundle are all that it reads and writes.

mod alter;
mod calibrate;
mod check;
mod dataset;
mod evaluation;
mod folds;
mod groups;
mod labels;
mod page;
mod plots;
mod predict;
mod sample;
pub mod statistics;
#[cfg(test)]
mod tests;

pub use alter::Alteration;
pub use calibrate::{Aim, Calibrated, CalibrationMethod, Chosen, Fit, calibrate, choose_threshold};
pub use check::{Duplicate, Findings, Table, check};
pub use dataset::{DataSetError, patients_on_two_sides};
pub use evaluation::{Evaluation, Figure, Figures, Plan};
pub use folds::{FoldError, patient_folds, patient_split};
pub use groups::{Group, group_of};
pub use labels::{ClassMap, LabelError};
pub use predict::{PredictError, Prediction, Questions, Scored, dice, predict, predictions_csv};
pub use sample::{DataSet, Sample, SampleError, Split};
