//! From the members' logits to one calibrated output.

use super::manifest::{Calibration, Fusion};

/// Output per class, 0 to 1, summing to 1, of members that each gave one logit per class. A calibration
/// temperature divides the logarithm of the fused output (`mean_prob`) or the mean logits (`mean_logit`), and a
/// softmax follows. `None` when there is no member or their numbers of classes differ.
#[must_use]
pub fn fuse(fusion: Fusion, calibration: &Calibration, member_logits: &[&[f32]]) -> Option<Vec<f64>> {
    let n_classes = member_logits.first()?.len();
    if n_classes == 0 || member_logits.iter().any(|logits| logits.len() != n_classes) {
        return None;
    }
    let members = member_logits.iter().map(|logits| logits.iter().map(|logit| f64::from(*logit)).collect::<Vec<_>>());
    let mean = |members: Vec<Vec<f64>>| {
        (0..n_classes)
            .map(|class_idx| members.iter().map(|member| member[class_idx]).sum::<f64>() / members.len() as f64)
            .collect::<Vec<_>>()
    };
    let temperature = match calibration {
        Calibration::None {} => None,
        Calibration::Temperature { temperature, .. } => Some(*temperature),
    };
    Some(match fusion {
        Fusion::MeanProb => {
            let fused = mean(members.map(|logits| softmax(&logits, 1.0)).collect());
            match temperature {
                None => fused,
                Some(temperature) => {
                    softmax(&fused.iter().map(|p| p.max(f64::MIN_POSITIVE).ln()).collect::<Vec<_>>(), temperature)
                }
            }
        }
        Fusion::MeanLogit => softmax(&mean(members.collect()), temperature.unwrap_or(1.0)),
    })
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

    const UNCALIBRATED: Calibration = Calibration::None {};

    fn temperature(temperature: f64) -> Calibration {
        Calibration::Temperature { temperature, id: "test".to_owned() }
    }

    fn close(found: &[f64], expected: &[f64]) -> bool {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn probabilities_and_logits_are_averaged_differently() {
        // Members saying 0.9 and 0.5 for the first class.
        let sure = [9f32.ln(), 0.0];
        let unsure = [0.0, 0.0];
        let members: [&[f32]; 2] = [&sure, &unsure];
        let mean_prob = fuse(Fusion::MeanProb, &UNCALIBRATED, &members).unwrap();
        assert!((mean_prob[0] - 0.7).abs() < 1e-6);
        let mean_logit = fuse(Fusion::MeanLogit, &UNCALIBRATED, &members).unwrap();
        assert!((mean_logit[0] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn temperature_one_changes_nothing_and_two_moves_towards_the_middle() {
        let members: [&[f32]; 2] = [&[2.0, -1.0, 0.3], &[0.1, 0.2, 0.3]];
        for fusion in [Fusion::MeanProb, Fusion::MeanLogit] {
            let plain = fuse(fusion, &UNCALIBRATED, &members).unwrap();
            assert!(close(&fuse(fusion, &temperature(1.0), &members).unwrap(), &plain));
            let softer = fuse(fusion, &temperature(2.0), &members).unwrap();
            assert!(softer[0] < plain[0] && softer[0] > 1.0 / 3.0);
            assert!((softer.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let fused = fuse(Fusion::MeanProb, &temperature(0.5), &[&[3e38, -3e38]]).unwrap();
        assert!(close(&fused, &[1.0, 0.0]), "{fused:?}");
    }

    #[test]
    fn nothing_to_fuse_is_not_a_number_out_of_thin_air() {
        assert_eq!(fuse(Fusion::MeanProb, &UNCALIBRATED, &[]), None);
        assert_eq!(fuse(Fusion::MeanProb, &UNCALIBRATED, &[&[]]), None);
        assert_eq!(fuse(Fusion::MeanProb, &UNCALIBRATED, &[&[0.0, 1.0], &[0.0]]), None);
    }
}
