//! Data sets, training, evaluation and calibration: how weights come to be, and what may be said of them.
//!
//! Start from [`DataSet::read`] (a list of images, read and checked).
//!
//! Architecture invariant: with `nn` the only room that names `tch`. It knows no network and no database; files of a
//! data set and of a bundle are all that it reads and writes.

mod dataset;
mod folds;
mod sample;

pub use dataset::{DataSetError, patients_on_two_sides};
pub use folds::{FoldError, patient_folds, patient_split};
pub use sample::{DataSet, Sample, SampleError, Split};
