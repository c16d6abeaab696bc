//! Data sets, training, evaluation and calibration: how weights come to be, and what may be said of them.
//!
//! Start from [`DataSet`] (a list of images, read and checked).
//!
//! Architecture invariant: with `nn` the only room that names `tch`. It knows no network and no database; files of a
//! data set and of a bundle are all that it reads and writes.

mod feature_space;
mod sample;

pub use feature_space::{FitError, FitOptions, Shrinkage, fit_feature_space, quantile};
pub use sample::{DataSet, Sample, Split};
