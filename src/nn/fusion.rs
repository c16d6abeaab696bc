//! From the members' logits to one calibrated output.

use super::manifest::{Calibration, Classification, Fusion, Prior};

/// Output per class, 0 to 1, summing to 1, of members that each gave one logit per network output.
///
/// First the members become one (`mean_prob`, `mean_logit`, `vote`) and the outputs of a class are summed, then the
/// calibration is applied, then the shift of the prior. A temperature divides the logarithm of the fused output (or, with
/// `mean_logit` and one output per class, the mean logits), and a softmax follows. `None` when there is no member or their
/// numbers of outputs are not the manifest's.
#[must_use]
pub fn fuse(classification: &Classification, member_logits: &[&[f32]]) -> Option<Vec<f64>> {
    let class_of_output = classification.class_of_output();
    if member_logits.is_empty() || member_logits.iter().any(|logits| logits.len() != class_of_output.len()) {
        return None;
    }
    let n_classes = classification.classes.len();
    let by_class = |probabilities: &[f64]| {
        let mut sums = vec![0.0; n_classes];
        for (probability, class_idx) in probabilities.iter().zip(&class_of_output) {
            if let Some(sum) = sums.get_mut(*class_idx) {
                *sum += probability;
            }
        }
        sums
    };
    let members: Vec<Vec<f64>> =
        member_logits.iter().map(|logits| logits.iter().map(|logit| f64::from(*logit)).collect()).collect();
    let mean = |members: &[Vec<f64>]| -> Vec<f64> {
        let n_values = members.first().map_or(0, Vec::len);
        (0..n_values)
            .map(|idx| members.iter().filter_map(|member| member.get(idx)).sum::<f64>() / members.len() as f64)
            .collect()
    };
    let probabilities: Vec<Vec<f64>> = members.iter().map(|logits| by_class(&softmax(logits, 1.0))).collect();
    let fused = match classification.fusion {
        Fusion::MeanProb => mean(&probabilities),
        Fusion::MeanLogit => by_class(&softmax(&mean(&members), 1.0)),
        Fusion::Vote => vote(&probabilities).unwrap_or_else(|| mean(&probabilities)),
    };
    Some(calibrated(classification, fused))
}

/// The calibration and the shift of the prior, of outputs per class that are fused already.
#[must_use]
pub fn calibrated(classification: &Classification, fused: Vec<f64>) -> Vec<f64> {
    let calibrated = calibrate(fused, &classification.calibration, classification.target_class_idx);
    match classification.prior {
        None => calibrated,
        Some(prior) => shift(calibrated, prior, classification.target_class_idx),
    }
}

/// The logit that Platt scaling takes of fused outputs: of the target class against all others. `None` when there is no such
/// class.
#[must_use]
pub fn platt_logit(fused: &[f64], target_class_idx: usize) -> Option<f64> {
    let p = fused.get(target_class_idx)?;
    // Not `1 - p`, which is 0 long before the others are.
    let others: f64 = fused.iter().enumerate().filter(|(idx, _)| *idx != target_class_idx).map(|(_, p)| p).sum();
    Some(p.max(f64::MIN_POSITIVE).ln() - others.max(f64::MIN_POSITIVE).ln())
}

/// Probability per class of one member: softmax of its logits, summed over the outputs of a class.
pub(super) fn class_probabilities(logits: &[f32], class_of_output: &[usize]) -> Vec<f32> {
    let probabilities = softmax(&logits.iter().map(|logit| f64::from(*logit)).collect::<Vec<_>>(), 1.0);
    let n_classes = class_of_output.iter().max().map_or(0, |largest| largest + 1);
    let mut sums = vec![0.0_f64; n_classes];
    for (probability, class_idx) in probabilities.iter().zip(class_of_output) {
        sums[*class_idx] += probability;
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The share of the members whose largest output is the class; `None` when the most voted classes tie.
fn vote(members: &[Vec<f64>]) -> Option<Vec<f64>> {
    let n_classes = members.first()?.len();
    let mut votes = vec![0_u32; n_classes];
    for member in members {
        let winner = member.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)))?.0;
        *votes.get_mut(winner)? += 1;
    }
    let most = votes.iter().max()?;
    let is_tie = votes.iter().filter(|count| *count == most).count() > 1;
    (!is_tie).then(|| votes.iter().map(|count| f64::from(*count) / members.len() as f64).collect())
}

fn calibrate(fused: Vec<f64>, calibration: &Calibration, target_class_idx: usize) -> Vec<f64> {
    match calibration {
        Calibration::None {} => fused,
        // Dividing mean logits by the temperature is dividing the logarithm of their softmax.
        Calibration::Temperature { temperature, .. } => {
            softmax(&fused.iter().map(|p| p.max(f64::MIN_POSITIVE).ln()).collect::<Vec<_>>(), *temperature)
        }
        Calibration::Platt { slope, intercept, .. } => {
            let Some(logit) = platt_logit(&fused, target_class_idx) else { return fused };
            with_target(fused, target_class_idx, 1.0 / (1.0 + (-(slope * logit + intercept)).exp()))
        }
    }
}

/// Bayes' rule with another prevalence of the target class.
fn shift(fused: Vec<f64>, prior: Prior, target_class_idx: usize) -> Vec<f64> {
    let Some(p) = fused.get(target_class_idx).copied() else { return fused };
    let for_target = p * prior.site_prevalence / prior.training_prevalence;
    let against = (1.0 - p) * (1.0 - prior.site_prevalence) / (1.0 - prior.training_prevalence);
    with_target(fused, target_class_idx, for_target / (for_target + against))
}

/// The same outputs with another one of the target class; the others keep their proportions.
fn with_target(mut fused: Vec<f64>, target_class_idx: usize, output: f64) -> Vec<f64> {
    let others: f64 = fused.iter().enumerate().filter(|(idx, _)| *idx != target_class_idx).map(|(_, p)| p).sum();
    let n_others = fused.len().saturating_sub(1).max(1) as f64;
    for (idx, p) in fused.iter_mut().enumerate() {
        *p = match idx == target_class_idx {
            true => output,
            false if others > 0.0 => *p / others * (1.0 - output),
            false => (1.0 - output) / n_others,
        };
    }
    fused
}

fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| ((logit - largest) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClassDefinition, Code};

    fn rules(n_classes: usize, fusion: Fusion) -> Classification {
        let class = |idx: usize| ClassDefinition {
            label: format!("class {idx}"),
            code: Code { value: idx.to_string(), scheme: "99TEST".to_owned(), meaning: "test".to_owned() },
        };
        Classification {
            target_class_idx: 0,
            threshold: 0.5,
            grey_zone: None,
            fusion,
            label_map: None,
            calibration: Calibration::None {},
            prior: None,
            classes: (0..n_classes).map(class).collect(),
        }
    }

    fn temperature(temperature: f64) -> Calibration {
        Calibration::Temperature { temperature, id: "test".to_owned(), n: 10, date: "2026-11-28".to_owned() }
    }

    fn close(found: &[f64], expected: &[f64]) -> bool {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    /// 1 - p is 0 from a gap of 37 on; the gap is known far beyond that.
    #[test]
    fn platt_scaling_does_not_jump_where_a_probability_rounds_to_one() {
        let calibration = Calibration::Platt {
            slope: 0.1,
            intercept: -3.0,
            id: "t".to_owned(),
            n: 10,
            date: "2026-11-28".to_owned(),
        };
        let rules = Classification { calibration, ..rules(2, Fusion::MeanProb) };
        for gap in [-80.0_f32, -37.0, 0.0, 36.0, 37.0, 38.0, 80.0] {
            let fused = fuse(&rules, &[&[gap, 0.0]]).unwrap();
            let expected = 1.0 / (1.0 + (-(0.1 * f64::from(gap) - 3.0)).exp());
            assert!(close(&fused, &[expected, 1.0 - expected]), "gap {gap}: {fused:?}, expected {expected}");
        }
    }

    #[test]
    fn probabilities_and_logits_are_averaged_differently() {
        // Members saying 0.9 and 0.5 for the first class.
        let sure = [9f32.ln(), 0.0];
        let unsure = [0.0, 0.0];
        let members: [&[f32]; 2] = [&sure, &unsure];
        let mean_prob = fuse(&rules(2, Fusion::MeanProb), &members).unwrap();
        assert!((mean_prob[0] - 0.7).abs() < 1e-6);
        let mean_logit = fuse(&rules(2, Fusion::MeanLogit), &members).unwrap();
        assert!((mean_logit[0] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn votes_are_counted_and_a_tie_is_decided_by_the_mean() {
        let (for_it, against, much_for_it): ([f32; 2], [f32; 2], [f32; 2]) = ([1.0, 0.0], [0.0, 1.0], [3.0, 0.0]);
        let fuse = |members: &[&[f32]]| fuse(&rules(2, Fusion::Vote), members).unwrap();
        assert!(close(&fuse(&[&for_it, &against, &for_it, &for_it]), &[0.75, 0.25]));
        let tie = fuse(&[&much_for_it, &against, &much_for_it, &against]);
        let expected = f64::midpoint(softmax(&[3.0, 0.0], 1.0)[0], softmax(&[0.0, 1.0], 1.0)[0]);
        assert!(close(&tie, &[expected, 1.0 - expected]), "{tie:?}");
    }

    #[test]
    fn outputs_of_a_class_are_summed_before_anything_is_compared() {
        // Two sub-classes of the first class, each weaker than the one output of the second.
        let logits = [1.0, 1.0, 1.5_f32];
        for fusion in [Fusion::MeanProb, Fusion::MeanLogit, Fusion::Vote] {
            let rules = Classification { label_map: Some(vec![0, 0, 1]), ..rules(2, fusion) };
            let fused = fuse(&rules, &[&logits]).unwrap();
            let all = 2.0 * 1_f64.exp() + 1.5_f64.exp();
            let expected = if fusion == Fusion::Vote { 1.0 } else { 2.0 * 1_f64.exp() / all };
            assert!((fused[0] - expected).abs() < 1e-9 && fused.len() == 2, "{fusion:?} {fused:?}");
            assert_eq!(fuse(&rules, &[&[0.0, 1.0]]), None, "two outputs are one too few");
        }
        let member = class_probabilities(&logits, &[0, 0, 1]);
        assert!(member[0] > member[1] && (member[0] + member[1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn temperature_one_changes_nothing_and_two_moves_towards_the_middle() {
        let members: [&[f32]; 2] = [&[2.0, -1.0, 0.3], &[0.1, 0.2, 0.3]];
        for fusion in [Fusion::MeanProb, Fusion::MeanLogit] {
            let plain = fuse(&rules(3, fusion), &members).unwrap();
            let with = |calibration| fuse(&Classification { calibration, ..rules(3, fusion) }, &members).unwrap();
            assert!(close(&with(temperature(1.0)), &plain));
            let softer = with(temperature(2.0));
            assert!(softer[0] < plain[0] && softer[0] > 1.0 / 3.0);
            assert!((softer.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        // Of mean logits: the same as dividing them.
        let mean = [1.05, -0.4, 0.3].map(|logit: f64| f64::from(logit as f32));
        let found = fuse(&Classification { calibration: temperature(2.0), ..rules(3, Fusion::MeanLogit) }, &members);
        assert!(found.unwrap().iter().zip(softmax(&mean, 2.0)).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn platt_and_prior_move_the_target_and_keep_the_proportions_of_the_others() {
        let members: [&[f32]; 1] = [&[0.0, 0.0, 2_f32.ln()]];
        let plain = fuse(&rules(3, Fusion::MeanProb), &members).unwrap();
        assert!((plain[0] - 0.25).abs() < 1e-6);
        let platt = Calibration::Platt {
            slope: 2.0,
            intercept: 1.0,
            id: "site".to_owned(),
            n: 5,
            date: "2026-01-02".to_owned(),
        };
        let calibrated = fuse(&Classification { calibration: platt, ..rules(3, Fusion::MeanProb) }, &members).unwrap();
        let expected = 1.0 / (1.0 + (-(2.0 * (1.0_f64 / 3.0).ln() + 1.0)).exp());
        assert!((calibrated[0] - expected).abs() < 1e-6, "{calibrated:?}");
        assert!((calibrated[2] / calibrated[1] - 2.0).abs() < 1e-6);
        assert!((calibrated.iter().sum::<f64>() - 1.0).abs() < 1e-12);

        // models.md: at sensitivity and specificity of 0.9 the PPV falls with the prevalence; Bayes by hand.
        let prior = Some(Prior { training_prevalence: 0.5, site_prevalence: 0.1 });
        let shifted = fuse(&Classification { prior, ..rules(3, Fusion::MeanProb) }, &members).unwrap();
        let odds = 0.25 / 0.75 * (0.1 / 0.9);
        assert!((shifted[0] - odds / (1.0 + odds)).abs() < 1e-6, "{shifted:?}");
        assert!((shifted[2] / shifted[1] - 2.0).abs() < 1e-6);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let rules = Classification { calibration: temperature(0.5), ..rules(2, Fusion::MeanProb) };
        let fused = fuse(&rules, &[&[3e38, -3e38]]).unwrap();
        assert!(close(&fused, &[1.0, 0.0]), "{fused:?}");
    }

    #[test]
    fn nothing_to_fuse_is_not_a_number_out_of_thin_air() {
        let rules = rules(2, Fusion::MeanProb);
        assert_eq!(fuse(&rules, &[]), None);
        assert_eq!(fuse(&rules, &[&[]]), None);
        assert_eq!(fuse(&rules, &[&[0.0, 1.0], &[0.0]]), None);
    }
}
