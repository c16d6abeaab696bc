//! Whether outputs mean what they say, and the two fits that make them.

use serde::Serialize;

use super::{Undefined, both_classes};
use crate::types::wilson_interval;

/// Bins of the reliability table (Guo et al. 2017, arXiv:1706.04599).
const BINS: usize = 15;

/// Range in which a temperature or a slope is believed; manifests allow the same.
const SCALE: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// Outputs this near to 0 or 1 count as that far from it, or one of them would decide the likelihood.
const NEAREST: f64 = 1e-12;

/// Mean squared distance of the target class's output from the truth (Brier 1950), 0 to 1.
///
/// # Errors
/// [`Undefined`] without images.
pub fn brier(scores: &[f64], truths: &[bool]) -> Result<f64, Undefined> {
    if scores.is_empty() {
        return Err(Undefined::because("there are no images"));
    }
    let distances = scores.iter().zip(truths).map(|(score, truth)| (score - f64::from(u8::from(*truth))).powi(2));
    Ok(distances.sum::<f64>() / scores.len() as f64)
}

/// Mean negative logarithm of the output that the true class got; `outputs` are of all classes.
///
/// # Errors
/// [`Undefined`] without images, or when a class has no output.
pub fn negative_log_likelihood(outputs: &[&[f64]], classes: &[usize]) -> Result<f64, Undefined> {
    if outputs.is_empty() {
        return Err(Undefined::because("there are no images"));
    }
    let mut sum = 0.0;
    for (outputs, class_idx) in outputs.iter().zip(classes) {
        let output = outputs.get(*class_idx).ok_or_else(|| Undefined::because("a class has no output"))?;
        sum -= output.max(NEAREST).ln();
    }
    Ok(sum / outputs.len() as f64)
}

/// How outputs of the target class and what is true agree, bin by bin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reliability {
    /// Expected calibration error: the distance of mean output and share of positives, weighted by the bins' images.
    pub expected_calibration_error: f64,
    /// The bins that have images, from the lowest output on.
    pub bins: Vec<ReliabilityBin>,
}

/// Images of like output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// Outputs from here (exclusive; the first bin includes 0)
    pub low: f64,
    /// to here (inclusive).
    pub high: f64,
    /// Images.
    pub n: usize,
    /// Mean output.
    pub mean_output: f64,
    /// Share with the target class.
    pub share_positive: f64,
    /// Its 95 % interval (Wilson).
    pub interval: [f64; 2],
}

impl Reliability {
    /// Fifteen bins of equal width.
    ///
    /// # Errors
    /// [`Undefined`] without images.
    pub fn of(scores: &[f64], truths: &[bool]) -> Result<Self, Undefined> {
        if scores.is_empty() {
            return Err(Undefined::because("there are no images"));
        }
        let mut bins = vec![(0, 0, 0.0); BINS];
        for (score, truth) in scores.iter().zip(truths) {
            let bin_idx = ((score * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            if let Some((n, positive, sum)) = bins.get_mut(bin_idx) {
                *n += 1;
                *positive += usize::from(*truth);
                *sum += score;
            }
        }
        let bins: Vec<ReliabilityBin> = bins
            .into_iter()
            .enumerate()
            .filter(|(_, (n, _, _))| *n > 0)
            .map(|(bin_idx, (n, positive, sum))| ReliabilityBin {
                low: bin_idx as f64 / BINS as f64,
                high: (bin_idx + 1) as f64 / BINS as f64,
                n,
                mean_output: sum / n as f64,
                share_positive: positive as f64 / n as f64,
                interval: wilson_interval(positive, n),
            })
            .collect();
        let gap = |bin: &ReliabilityBin| bin.n as f64 * (bin.mean_output - bin.share_positive).abs();
        let expected_calibration_error = bins.iter().map(gap).sum::<f64>() / scores.len() as f64;
        Ok(Self { expected_calibration_error, bins })
    }
}

/// The temperature that minimises the negative log-likelihood of fused outputs: each logarithm is divided by it before a
/// softmax, as in service. The likelihood is concave in its inverse, so that bisection of the derivative finds it.
///
/// # Errors
/// [`Undefined`] when every image is on its right side, or outputs say nothing: no temperature from 0.01 to 100 is best.
pub fn fit_temperature(outputs: &[&[f64]], classes: &[usize]) -> Result<f64, Undefined> {
    if outputs.is_empty() {
        return Err(Undefined::because("there are no images"));
    }
    let logits: Vec<Vec<f64>> = outputs
        .iter()
        .map(|outputs| outputs.iter().map(|output| output.max(f64::MIN_POSITIVE).ln()).collect())
        .collect();
    // Derivative of the mean log-likelihood in the inverse temperature: true logit minus expected logit.
    let slope = |inverse: f64| -> f64 {
        let of = |(logits, class_idx): (&Vec<f64>, &usize)| {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = logits.iter().map(|logit| ((logit - largest) * inverse).exp()).collect();
            let total: f64 = weights.iter().sum();
            let expected: f64 = logits.iter().zip(&weights).map(|(logit, weight)| logit * weight / total).sum();
            logits.get(*class_idx).copied().unwrap_or(expected) - expected
        };
        logits.iter().zip(classes).map(of).sum::<f64>()
    };
    let (mut low, mut high) = (1.0 / SCALE.end(), 1.0 / SCALE.start());
    if slope(low) <= 0.0 {
        return Err(Undefined::because(
            "the outputs say nothing about the classes of these images: no temperature up to 100 is best",
        ));
    }
    if slope(high) >= 0.0 {
        return Err(Undefined::because(
            "the largest output is the true class for every image: no temperature from 0.01 on is best; more, or harder, \
             images are needed",
        ));
    }
    for _ in 0..200 {
        let middle = (low * high).sqrt();
        if slope(middle) > 0.0 { low = middle } else { high = middle }
    }
    Ok(1.0 / (low * high).sqrt())
}

/// Slope and intercept of Platt's scaling of the target class's logit, with Platt's targets instead of 0 and 1 (Platt
/// 1999; Lin, Lin and Weng, Mach Learn 2007;68:267-276), by Newton's method.
///
/// # Errors
/// [`Undefined`] when a class is missing, or the best slope is not from 0.01 to 100: then higher outputs do not mean more.
pub fn fit_platt(logits: &[f64], truths: &[bool]) -> Result<(f64, f64), Undefined> {
    let (positive, negative) = both_classes(truths)?;
    let (high, low) = ((positive as f64 + 1.0) / (positive as f64 + 2.0), 1.0 / (negative as f64 + 2.0));
    let images = || logits.iter().zip(truths).map(|(logit, truth)| (*logit, if *truth { high } else { low }));
    let loss = |slope: f64, intercept: f64| -> f64 {
        let of = |(logit, target): (f64, f64)| {
            let value = slope * logit + intercept;
            // ln(1 + e^value) - target * value, without overflow.
            value.max(0.0) + (-value.abs()).exp().ln_1p() - target * value
        };
        images().map(of).sum()
    };
    let (mut slope, mut intercept) = (0.0, ((positive as f64 + 1.0) / (negative as f64 + 1.0)).ln());
    let mut now = loss(slope, intercept);
    for _ in 0..100 {
        let (mut by_slope, mut by_intercept) = (0.0, 0.0);
        let (mut slope_slope, mut slope_intercept, mut intercept_intercept) = (1e-12, 0.0, 1e-12);
        for (logit, target) in images() {
            let p = 1.0 / (1.0 + (-(slope * logit + intercept)).exp());
            let weight = p * (1.0 - p);
            by_slope += (p - target) * logit;
            by_intercept += p - target;
            slope_slope += weight * logit * logit;
            slope_intercept += weight * logit;
            intercept_intercept += weight;
        }
        if by_slope.abs() < 1e-11 && by_intercept.abs() < 1e-11 {
            break;
        }
        let determinant = slope_slope * intercept_intercept - slope_intercept * slope_intercept;
        let step_slope = -(intercept_intercept * by_slope - slope_intercept * by_intercept) / determinant;
        let step_intercept = -(slope_slope * by_intercept - slope_intercept * by_slope) / determinant;
        // Half of the step, and half of that, until it is one downwards.
        let better = (0..40).map(|halvings| 0.5_f64.powi(halvings)).find_map(|share| {
            let (slope, intercept) = (slope + share * step_slope, intercept + share * step_intercept);
            let loss = loss(slope, intercept);
            // Near the minimum a step changes the loss by less than it is known to.
            (loss <= now + 1e-12 * now.abs()).then_some((slope, intercept, loss))
        });
        let Some(better) = better else { break };
        (slope, intercept, now) = better;
    }
    if !SCALE.contains(&slope) || !(-100.0..=100.0).contains(&intercept) {
        return Err(Undefined::because(format!(
            "the best slope is {slope:.4} and the best intercept {intercept:.4}: higher outputs do not mean more of the \
             target class on these images, so that Platt scaling would turn them round"
        )));
    }
    Ok((slope, intercept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_bins_are_theirs() {
        let found = Reliability::of(&[0.0, 1.0 / 15.0, 0.5, 1.0], &[false, false, true, true]).unwrap();
        let counts: Vec<(f64, usize)> = found.bins.iter().map(|bin| (bin.high * 15.0, bin.n)).collect();
        assert_eq!(counts.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [2, 1, 1]);
        assert!((counts[0].0 - 1.0).abs() < 1e-12 && (counts[1].0 - 8.0).abs() < 1e-12);
    }

    #[test]
    fn a_temperature_that_was_put_in_comes_out() {
        // Outputs that are right as often as they say, made twice as sure by a temperature of one half.
        let mut outputs = Vec::new();
        let mut classes = Vec::new();
        for share in 1..20 {
            let p: f64 = f64::from(share) / 20.0;
            let surer = p.powi(2) / (p.powi(2) + (1.0 - p).powi(2));
            for of_hundred in 0..100 {
                outputs.push([1.0 - surer, surer]);
                classes.push(usize::from(of_hundred < share * 5));
            }
        }
        let outputs: Vec<&[f64]> = outputs.iter().map(<[f64; 2]>::as_slice).collect();
        let temperature = fit_temperature(&outputs, &classes).unwrap();
        assert!((temperature - 2.0).abs() < 1e-6, "{temperature}");
    }

    #[test]
    fn fits_that_mean_nothing_are_refused() {
        let outputs: [&[f64]; 2] = [&[0.1, 0.9], &[0.9, 0.1]];
        assert!(fit_temperature(&outputs, &[1, 0]).unwrap_err().to_string().contains("every image"));
        assert!(fit_temperature(&outputs, &[0, 1]).unwrap_err().to_string().contains("say nothing"));
        assert!(fit_temperature(&[], &[]).is_err());
        let wrong_way = fit_platt(&[2.0, 1.0, -1.0, -2.0], &[false, false, true, true]).unwrap_err();
        assert!(wrong_way.to_string().contains("turn them round"), "{wrong_way}");
        assert!(fit_platt(&[2.0], &[true]).is_err());
        // Classes that are apart do not make an endless slope.
        let (slope, _) = fit_platt(&[2.0, 1.0, -1.0, -2.0], &[true, true, false, false]).unwrap();
        assert!(slope > 0.1 && slope < 10.0, "{slope}");
    }
}
