//! DeLong's variance of areas under ROC curves (DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837-845), by ranks
//! (Sun and Xu, IEEE Signal Process Lett 2014;21:1389-1393).
//!
//! It takes images for independent. Where patients have several, the interval is too narrow: the bootstrap by patient is
//! given beside it.

use serde::Serialize;

use super::{Undefined, both_classes};
use crate::types::NORMAL_QUANTILE_975;

/// An area with its variance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DeLong {
    /// Area under the ROC curve.
    pub area: f64,
    /// Its variance.
    pub variance: f64,
    /// Area minus and plus 1.96 standard errors, within 0 to 1.
    pub interval: [f64; 2],
}

/// Two scores of the same images compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Area of the first.
    pub first: f64,
    /// Area of the second.
    pub second: f64,
    /// First minus second.
    pub difference: f64,
    /// Of the difference.
    pub interval: [f64; 2],
    /// Difference divided by its standard error.
    pub z: f64,
    /// Two-sided.
    pub p_value: f64,
}

/// The area under the ROC curve with its interval.
///
/// # Errors
/// [`Undefined`] when a class is missing or has one image only, or when the scores separate the classes completely: then
/// the variance is 0 and would claim certainty.
pub fn delong(scores: &[f64], truths: &[bool]) -> Result<DeLong, Undefined> {
    let components = Components::of(scores, truths)?;
    let variance = components.covariance(&components);
    if variance <= 0.0 {
        return Err(Undefined::because(format!(
            "the area is {} without variance: DeLong's interval would have no width; more images are needed",
            components.area
        )));
    }
    let margin = NORMAL_QUANTILE_975 * variance.sqrt();
    let interval = [(components.area - margin).max(0.0), (components.area + margin).min(1.0)];
    Ok(DeLong { area: components.area, variance, interval })
}

/// DeLong's test of two correlated areas.
///
/// # Errors
/// [`Undefined`] as [`delong`], and when both order all images alike: then there is nothing to test.
pub fn delong_paired(first: &[f64], second: &[f64], truths: &[bool]) -> Result<Paired, Undefined> {
    let (one, other) = (Components::of(first, truths)?, Components::of(second, truths)?);
    let variance = one.covariance(&one) + other.covariance(&other) - 2.0 * one.covariance(&other);
    if variance <= 1e-18 {
        return Err(Undefined::because("both order the images alike: the difference has no variance to test"));
    }
    let (difference, error) = (one.area - other.area, variance.sqrt());
    let z = difference / error;
    let margin = NORMAL_QUANTILE_975 * error;
    Ok(Paired {
        first: one.area,
        second: other.area,
        difference,
        interval: [difference - margin, difference + margin],
        z,
        p_value: libm::erfc(z.abs() / std::f64::consts::SQRT_2),
    })
}

/// For each image of a class, the share of the other class that it is ordered rightly against.
struct Components {
    area: f64,
    of_positives: Vec<f64>,
    of_negatives: Vec<f64>,
}

impl Components {
    fn of(scores: &[f64], truths: &[bool]) -> Result<Self, Undefined> {
        let (positive, negative) = both_classes(truths)?;
        if positive < 2 || negative < 2 {
            return Err(Undefined::because("a class has one image only: a variance needs two"));
        }
        let of = |wanted: bool| -> Vec<f64> {
            scores.iter().zip(truths).filter(|(_, truth)| **truth == wanted).map(|(score, _)| *score).collect()
        };
        let (positives, negatives) = (of(true), of(false));
        let all: Vec<f64> = positives.iter().chain(&negatives).copied().collect();
        let (among_all, among_positives, among_negatives) = (ranks(&all), ranks(&positives), ranks(&negatives));
        let of_positives: Vec<f64> =
            among_all.iter().zip(&among_positives).map(|(all, own)| (all - own) / negative as f64).collect();
        let of_negatives: Vec<f64> = among_all
            .iter()
            .skip(positive)
            .zip(&among_negatives)
            .map(|(all, own)| 1.0 - (all - own) / positive as f64)
            .collect();
        let area = of_positives.iter().sum::<f64>() / positive as f64;
        Ok(Self { area, of_positives, of_negatives })
    }

    fn covariance(&self, other: &Self) -> f64 {
        covariance(&self.of_positives, &other.of_positives) / self.of_positives.len() as f64
            + covariance(&self.of_negatives, &other.of_negatives) / self.of_negatives.len() as f64
    }
}

fn covariance(one: &[f64], other: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_one, mean_other) = (mean(one), mean(other));
    let products = one.iter().zip(other).map(|(a, b)| (a - mean_one) * (b - mean_other));
    products.sum::<f64>() / (one.len() as f64 - 1.0)
}

/// Ranks from 1 on, in the order of the values; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let value = |idx: &usize| values.get(*idx).copied().unwrap_or(f64::NAN);
    order.sort_by(|one, other| value(one).total_cmp(&value(other)));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|one, other| value(one).total_cmp(&value(other)).is_eq()) {
        let shared = before as f64 + f64::midpoint(tied.len() as f64, 1.0);
        for idx in tied {
            if let Some(rank) = ranks.get_mut(*idx) {
                *rank = shared;
            }
        }
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    }

    #[test]
    fn certainty_is_not_claimed() {
        let truths = [true, true, false, false];
        assert!(delong(&[0.9, 0.8, 0.2, 0.1], &truths).unwrap_err().to_string().contains("no width"));
        assert!(delong(&[0.9, 0.8, 0.2], &truths[..3]).unwrap_err().to_string().contains("one image only"));
        let scores = [0.9, 0.3, 0.5, 0.1];
        assert!(delong_paired(&scores, &scores, &truths).unwrap_err().to_string().contains("alike"));
    }
}
