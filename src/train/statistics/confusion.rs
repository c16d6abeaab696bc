//! What a threshold makes of scores.

use serde::Serialize;

use super::{Estimate, Undefined, both_classes};
use crate::types::wilson_interval;

/// Images by truth and decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Confusion {
    /// With the target class, at or above the threshold.
    pub true_positive: usize,
    /// Without it, at or above.
    pub false_positive: usize,
    /// Without it, below.
    pub true_negative: usize,
    /// With it, below.
    pub false_negative: usize,
}

impl Confusion {
    /// Counts; a score at the threshold is positive, as in service.
    #[must_use]
    pub fn at(threshold: f64, scores: &[f64], truths: &[bool]) -> Self {
        let mut counts = Self::default();
        for (score, truth) in scores.iter().zip(truths) {
            let count = match (*truth, *score >= threshold) {
                (true, true) => &mut counts.true_positive,
                (false, true) => &mut counts.false_positive,
                (false, false) => &mut counts.true_negative,
                (true, false) => &mut counts.false_negative,
            };
            *count += 1;
        }
        counts
    }

    /// Images.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.true_positive + self.false_positive + self.true_negative + self.false_negative
    }

    /// Share that was decided rightly.
    ///
    /// # Errors
    /// [`Undefined`] without images.
    pub fn accuracy(&self) -> Result<Estimate, Undefined> {
        share(self.true_positive + self.true_negative, self.n(), "there are no images")
    }

    /// Share of the images with the target class that are positive.
    ///
    /// # Errors
    /// [`Undefined`] without such images.
    pub fn sensitivity(&self) -> Result<Estimate, Undefined> {
        let n = self.true_positive + self.false_negative;
        share(self.true_positive, n, "there are no images with the target class")
    }

    /// Share of the images without the target class that are negative.
    ///
    /// # Errors
    /// [`Undefined`] without such images.
    pub fn specificity(&self) -> Result<Estimate, Undefined> {
        let n = self.true_negative + self.false_positive;
        share(self.true_negative, n, "there are no images without the target class")
    }

    /// Share of the positive images that have the target class, at the prevalence of these data.
    ///
    /// # Errors
    /// [`Undefined`] when nothing is positive.
    pub fn ppv(&self) -> Result<Estimate, Undefined> {
        share(self.true_positive, self.true_positive + self.false_positive, "no image is at or above the threshold")
    }

    /// Share of the negative images that do not have the target class, at the prevalence of these data.
    ///
    /// # Errors
    /// [`Undefined`] when nothing is negative.
    pub fn npv(&self) -> Result<Estimate, Undefined> {
        share(self.true_negative, self.true_negative + self.false_negative, "no image is below the threshold")
    }
}

fn share(count: usize, n: usize, without: &str) -> Result<Estimate, Undefined> {
    if n == 0 {
        return Err(Undefined::because(without));
    }
    Ok(Estimate { value: count as f64 / n as f64, interval: wilson_interval(count, n), n, method: "Wilson" })
}

/// PPV and NPV where a share `prevalence` of the images has the target class: Bayes' rule with the sensitivity and
/// specificity that were measured. Each interval goes from both lower to both upper ends of theirs, and is therefore
/// somewhat too wide. `None` where nothing would be positive, or negative.
#[must_use]
pub fn predictive_values(
    sensitivity: &Estimate,
    specificity: &Estimate,
    prevalence: f64,
) -> (Option<Estimate>, Option<Estimate>) {
    let ratio = |for_it: f64, against: f64| (for_it + against > 0.0).then(|| for_it / (for_it + against));
    let ppv =
        |sensitivity: f64, specificity: f64| ratio(sensitivity * prevalence, (1.0 - specificity) * (1.0 - prevalence));
    let npv =
        |sensitivity: f64, specificity: f64| ratio(specificity * (1.0 - prevalence), (1.0 - sensitivity) * prevalence);
    let estimate = |of: &dyn Fn(f64, f64) -> Option<f64>| {
        let value = of(sensitivity.value, specificity.value)?;
        let low = of(sensitivity.interval[0], specificity.interval[0])?;
        let high = of(sensitivity.interval[1], specificity.interval[1])?;
        let n = sensitivity.n + specificity.n;
        Some(Estimate { value, interval: [low, high], n, method: "ends of the Wilson intervals" })
    };
    (estimate(&ppv), estimate(&npv))
}

/// The threshold at which at least this share of the images with the target class is positive (`of_positives`), or of
/// those without it negative, and which is best for the other class: the highest such threshold, or the lowest. It lies
/// midway to the next score, so that rounding moves no image across.
///
/// # Errors
/// [`Undefined`] when a class is missing, or the scores of both classes leave no such threshold between 0 and 1.
pub fn threshold_for(target: f64, of_positives: bool, scores: &[f64], truths: &[bool]) -> Result<f64, Undefined> {
    both_classes(truths)?;
    let mut levels = scores.to_vec();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    let between = levels.windows(2).filter_map(|pair| Some(f64::midpoint(*pair.first()?, *pair.last()?)));
    let ends = [levels.first().map(|lowest| lowest / 2.0), levels.last().map(|highest| f64::midpoint(*highest, 1.0))];
    let reaches = |threshold: &f64| {
        let counts = Confusion::at(*threshold, scores, truths);
        let reached = if of_positives { counts.sensitivity() } else { counts.specificity() };
        reached.is_ok_and(|reached| reached.value >= target - 1e-12)
    };
    let candidates = between
        .chain(ends.into_iter().flatten())
        .filter(|threshold| *threshold > 0.0 && *threshold < 1.0)
        .filter(reaches);
    let best = if of_positives { candidates.max_by(f64::total_cmp) } else { candidates.min_by(f64::total_cmp) };
    best.ok_or_else(|| {
        Undefined::because(format!(
            "no threshold between 0 and 1 reaches a {} of {target}",
            if of_positives { "sensitivity" } else { "specificity" }
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_words() {
        let only_positive = Confusion::at(0.5, &[0.2, 0.7], &[true, true]);
        assert!((only_positive.sensitivity().unwrap().value - 0.5).abs() < 1e-12);
        assert!(only_positive.specificity().unwrap_err().to_string().contains("without the target class"));
        assert!(Confusion::default().accuracy().is_err());
        assert!(Confusion::at(0.9, &[0.2, 0.7], &[true, false]).ppv().unwrap_err().to_string().contains("above"));
        assert!(Confusion::at(0.1, &[0.2, 0.7], &[true, false]).npv().unwrap_err().to_string().contains("below"));
    }

    #[test]
    fn a_score_at_the_threshold_is_positive() {
        assert_eq!(Confusion::at(0.5, &[0.5], &[true]).true_positive, 1);
    }

    /// models.md: at 0.9 and 0.9 the PPV is 0.32 at a prevalence of 5 %.
    #[test]
    fn predictive_values_follow_bayes() {
        let of = |value: f64| Estimate { value, interval: [value - 0.1, value + 0.1], n: 100, method: "Wilson" };
        let (ppv, npv) = predictive_values(&of(0.9), &of(0.9), 0.05);
        let (ppv, npv) = (ppv.unwrap(), npv.unwrap());
        assert!((ppv.value - 0.045 / (0.045 + 0.095)).abs() < 1e-12, "{ppv:?}");
        assert!((npv.value - 0.855 / (0.855 + 0.005)).abs() < 1e-12, "{npv:?}");
        assert!(ppv.interval[0] < ppv.value && (ppv.interval[1] - 1.0).abs() < 1e-12 && ppv.n == 200);
    }

    #[test]
    fn thresholds_reach_their_target_and_are_best_for_the_other_class() {
        let scores = [0.1, 0.4, 0.35, 0.8, 0.7, 0.2];
        let truths = [false, false, true, true, true, false];
        let all = threshold_for(1.0, true, &scores, &truths).unwrap();
        assert!((all - 0.275).abs() < 1e-12, "{all}");
        let two_thirds = threshold_for(0.6, true, &scores, &truths).unwrap();
        assert!((two_thirds - 0.55).abs() < 1e-12, "{two_thirds}");
        let specific = threshold_for(0.9, false, &scores, &truths).unwrap();
        assert!((specific - 0.55).abs() < 1e-12, "{specific}");
        assert!(threshold_for(0.9, true, &[0.3], &[true]).is_err());
        // A positive that scores 0 is positive at no threshold above 0.
        assert!(
            threshold_for(1.0, true, &[0.0, 0.0], &[true, false]).unwrap_err().to_string().contains("no threshold")
        );
    }
}
