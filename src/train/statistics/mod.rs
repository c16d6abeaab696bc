//! The figures of an evaluation, as pure functions over scores, labels and patients.
//!
//! What cannot be computed is an [`Undefined`] with its reason, never a NaN. Every figure that is shown is an
//! [`Estimate`]: with its interval and what it was measured on.
//!
//! Architecture invariant: numbers in, numbers out. These modules know no files, no networks and no images.

mod association;
mod bootstrap;
mod calibration;
mod confusion;
mod curves;
mod delong;
mod ridge;

pub use association::{CrossTable, site_guess};
pub use bootstrap::{Bootstrap, bootstrap};
pub use calibration::{Reliability, ReliabilityBin, brier, fit_platt, fit_temperature, negative_log_likelihood};
pub use confusion::{Confusion, predictive_values, threshold_for};
pub use curves::{CurvePoint, PrecisionRecall, Roc};
pub use delong::{DeLong, Paired, delong, delong_paired};
pub use ridge::{out_of_fold_scores, products};

use serde::Serialize;

/// A figure with its interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower and upper end of its 95 % interval.
    pub interval: [f64; 2],
    /// What it was measured on: images, patients, as the figure says.
    pub n: usize,
    /// How the interval was made.
    pub method: &'static str,
}

/// Why a figure cannot be had from these data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undefined(pub String);

impl Undefined {
    fn because(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

/// Counts both classes.
///
/// # Errors
/// [`Undefined`] when one of them is missing.
fn both_classes(truths: &[bool]) -> Result<(usize, usize), Undefined> {
    let positive = truths.iter().filter(|truth| **truth).count();
    match (positive, truths.len() - positive) {
        (0, 0) => Err(Undefined::because("there are no images")),
        (0, _) => Err(Undefined::because("there are no images with the target class")),
        (_, 0) => Err(Undefined::because("there are no images without the target class")),
        counts => Ok(counts),
    }
}

#[cfg(test)]
mod golden_tests;
