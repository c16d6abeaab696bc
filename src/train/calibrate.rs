//! Fitting what a bundle's manifest says of its outputs: calibration and operating point.

use serde::Serialize;

use super::statistics::{
    Confusion, Estimate, Reliability, Undefined, brier, fit_platt, fit_temperature, negative_log_likelihood,
    threshold_for,
};
use crate::nn::{Calibration, Classification, calibrated, platt_logit};

/// Which calibration is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalibrationMethod {
    /// One number that divides all logits: the order of classes and images stays.
    Temperature,
    /// Slope and intercept of the target class's logit: the prevalence of the data goes in.
    Platt,
}

/// How well outputs fit the truth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// Mean squared distance of the target class's output from the truth.
    pub brier: f64,
    /// Expected calibration error, 15 bins.
    pub expected_calibration_error: f64,
    /// Mean negative log-likelihood of the true class.
    pub negative_log_likelihood: f64,
}

/// A calibration and what it changes on the images that it was fitted on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibrated {
    /// For the manifest.
    pub calibration: Calibration,
    /// Without it.
    pub before: Fit,
    /// With it.
    pub after: Fit,
}

/// Fits a calibration to fused outputs that are not calibrated, of images whose classes are known. `id` names data and site,
/// `date` is YYYY-MM-DD; both go into the calibration.
///
/// # Errors
/// [`Undefined`] when a class is missing, or no calibration is best.
pub fn calibrate(
    outputs: &[Vec<f64>],
    classes: &[usize],
    target_class_idx: usize,
    method: CalibrationMethod,
    (id, date): (&str, &str),
) -> Result<Calibrated, Undefined> {
    let truths: Vec<bool> = classes.iter().map(|class_idx| *class_idx == target_class_idx).collect();
    let (id, date, n) = (id.to_owned(), date.to_owned(), outputs.len() as u64);
    let calibration = match method {
        CalibrationMethod::Temperature => {
            let outputs: Vec<&[f64]> = outputs.iter().map(Vec::as_slice).collect();
            let temperature = fit_temperature(&outputs, classes)?;
            Calibration::Temperature { temperature, id, n, date }
        }
        CalibrationMethod::Platt => {
            let logits: Option<Vec<f64>> =
                outputs.iter().map(|outputs| platt_logit(outputs, target_class_idx)).collect();
            let logits = logits.ok_or_else(|| Undefined("the target class has no output".to_owned()))?;
            let (slope, intercept) = fit_platt(&logits, &truths)?;
            Calibration::Platt { slope, intercept, id, n, date }
        }
    };
    let fit = |outputs: &[Vec<f64>]| -> Result<Fit, Undefined> {
        let of_target: Vec<f64> =
            outputs.iter().map(|outputs| outputs.get(target_class_idx).copied().unwrap_or(0.0)).collect();
        let outputs: Vec<&[f64]> = outputs.iter().map(Vec::as_slice).collect();
        Ok(Fit {
            brier: brier(&of_target, &truths)?,
            expected_calibration_error: Reliability::of(&of_target, &truths)?.expected_calibration_error,
            negative_log_likelihood: negative_log_likelihood(&outputs, classes)?,
        })
    };
    let after: Vec<Vec<f64>> = outputs.iter().map(|fused| apply(fused, target_class_idx, &calibration)).collect();
    Ok(Calibrated { before: fit(outputs)?, after: fit(&after)?, calibration })
}

/// The outputs with this calibration and no prior, as service gives them.
fn apply(fused: &[f64], target_class_idx: usize, calibration: &Calibration) -> Vec<f64> {
    let rules = Classification {
        target_class_idx,
        threshold: 0.5,
        grey_zone: None,
        fusion: crate::nn::Fusion::MeanProb,
        label_map: None,
        calibration: calibration.clone(),
        prior: None,
        classes: Vec::new(),
    };
    calibrated(&rules, fused.to_vec())
}

/// What a threshold is chosen for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// At least this share of the images with the target class is positive.
    Sensitivity(f64),
    /// At least this share of the images without it is negative.
    Specificity(f64),
}

/// A threshold and what it reaches on the images that it was chosen on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// From this output on an image is positive.
    pub threshold: f64,
    /// Reached on these images.
    pub sensitivity: Estimate,
    /// Reached on these images.
    pub specificity: Estimate,
    /// Outputs that had better decide nothing: where the aim is reached at the lower, and not yet at the upper end of its
    /// interval. `None` where no such zone lies around the threshold.
    pub grey_zone: Option<[f64; 2]>,
}

/// Chooses the threshold by calibrated outputs of the target class.
///
/// The suggested grey zone reaches from the threshold that would be chosen if the aim were as far above as the lower end of
/// Wilson's interval is below what was reached, to the one that would be chosen at that lower end: within it, these images do
/// not tell on which side of the right threshold an output is.
///
/// # Errors
/// [`Undefined`] when a class is missing or no threshold reaches the aim.
pub fn choose_threshold(aim: Aim, scores: &[f64], truths: &[bool]) -> Result<Chosen, Undefined> {
    let (target, of_positives) = match aim {
        Aim::Sensitivity(target) => (target, true),
        Aim::Specificity(target) => (target, false),
    };
    let threshold = threshold_for(target, of_positives, scores, truths)?;
    let counts = Confusion::at(threshold, scores, truths);
    let (sensitivity, specificity) = (counts.sensitivity()?, counts.specificity()?);
    let reached = if of_positives { &sensitivity } else { &specificity };
    let doubt = reached.value - reached.interval[0];
    let at = |target: f64| threshold_for(target.clamp(0.0, 1.0), of_positives, scores, truths).ok();
    let grey_zone = at(target + doubt).zip(at(target - doubt)).map(|(one, other)| [one.min(other), one.max(other)]);
    let grey_zone = grey_zone.filter(|[low, high]| *low <= threshold && threshold <= *high && low < high);
    Ok(Chosen { threshold, sensitivity, specificity, grey_zone })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outputs that are too sure: the logit is three times what the truth warrants.
    fn images() -> (Vec<Vec<f64>>, Vec<usize>) {
        let mut outputs = Vec::new();
        let mut classes = Vec::new();
        for idx in 0..400 {
            let draw = crate::nn::seeded::uniform(5, &format!("image {idx}"), 2, 0.0, 1.0);
            let logit = 4.0 * f64::from(draw[0]) - 2.0;
            let surer = 1.0 / (1.0 + (-3.0 * logit).exp());
            outputs.push(vec![surer, 1.0 - surer]);
            classes.push(usize::from(f64::from(draw[1]) >= 1.0 / (1.0 + (-logit).exp())));
        }
        (outputs, classes)
    }

    #[test]
    fn both_methods_make_outputs_that_are_too_sure_less_so() {
        let (outputs, classes) = images();
        let of = ("here", "2026-11-29");
        let temperature = calibrate(&outputs, &classes, 0, CalibrationMethod::Temperature, of).unwrap();
        let Calibration::Temperature { temperature: found, n, ref id, .. } = temperature.calibration else { panic!() };
        assert!((2.4..3.8).contains(&found) && n == 400 && id == "here", "{found}");
        let platt = calibrate(&outputs, &classes, 0, CalibrationMethod::Platt, of).unwrap();
        let Calibration::Platt { slope, intercept, .. } = platt.calibration else { panic!() };
        assert!((slope - 1.0 / found).abs() < 0.05 && intercept.abs() < 0.4, "{slope} {intercept}");
        for found in [temperature, platt] {
            assert!(found.after.negative_log_likelihood < found.before.negative_log_likelihood - 0.1, "{found:?}");
            assert!(found.after.brier < found.before.brier, "{found:?}");
            assert!(found.after.expected_calibration_error < found.before.expected_calibration_error, "{found:?}");
        }
    }

    #[test]
    fn a_threshold_reaches_its_aim_and_its_grey_zone_lies_around_it() {
        let (outputs, classes) = images();
        let scores: Vec<f64> = outputs.iter().map(|outputs| outputs[0]).collect();
        let truths: Vec<bool> = classes.iter().map(|class_idx| *class_idx == 0).collect();
        let sensitive = choose_threshold(Aim::Sensitivity(0.9), &scores, &truths).unwrap();
        assert!(sensitive.sensitivity.value >= 0.9 && sensitive.sensitivity.value < 0.92, "{sensitive:?}");
        let [low, high] = sensitive.grey_zone.unwrap();
        assert!(low < sensitive.threshold && sensitive.threshold < high, "{sensitive:?}");
        let specific = choose_threshold(Aim::Specificity(0.9), &scores, &truths).unwrap();
        assert!(specific.specificity.value >= 0.9 && specific.threshold > sensitive.threshold, "{specific:?}");
        let [low, high] = specific.grey_zone.unwrap();
        assert!(low < specific.threshold && specific.threshold < high, "{specific:?}");
    }

    #[test]
    fn one_class_is_refused_in_words() {
        let error = choose_threshold(Aim::Sensitivity(0.9), &[0.1, 0.2], &[true, true]).unwrap_err();
        assert!(error.to_string().contains("without the target class"), "{error}");
        let outputs = vec![vec![0.3, 0.7]; 3];
        let error = calibrate(&outputs, &[0, 0, 0], 0, CalibrationMethod::Platt, ("x", "2026-11-29")).unwrap_err();
        assert!(error.to_string().contains("without the target class"), "{error}");
    }
}
