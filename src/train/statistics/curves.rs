//! ROC and precision–recall curves with their areas.

use serde::Serialize;

use super::{Undefined, both_classes};

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CurvePoint {
    /// False positive rate, or recall.
    pub x: f64,
    /// True positive rate, or precision.
    pub y: f64,
}

/// A receiver operating characteristic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Roc {
    /// From (0, 0) to (1, 1), one for each distinct score: images of the same score move together.
    pub points: Vec<CurvePoint>,
    /// By trapezoids: the share of pairs of an image with and one without the target class whose scores are in the right
    /// order, ties counted as half (Hanley and McNeil, Radiology 1982;143:29-36).
    pub area: f64,
}

impl Roc {
    /// The curve of scores against truths.
    ///
    /// # Errors
    /// [`Undefined`] when a class is missing.
    pub fn of(scores: &[f64], truths: &[bool]) -> Result<Self, Undefined> {
        let (positive, negative) = both_classes(truths)?;
        let mut points = vec![CurvePoint { x: 0.0, y: 0.0 }];
        points.extend(steps(scores, truths).into_iter().map(|(true_positive, false_positive)| CurvePoint {
            x: false_positive as f64 / negative as f64,
            y: true_positive as f64 / positive as f64,
        }));
        let area = trapezoids(&points);
        Ok(Self { points, area })
    }
}

/// A precision–recall curve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrecisionRecall {
    /// Recall and precision at each distinct score, from the highest on; before them (0, 1) by convention.
    pub points: Vec<CurvePoint>,
    /// Sum over the steps of recall of the precision that is reached there.
    pub average_precision: f64,
    /// By trapezoids, which is somewhat too much where few images are positive (Davis and Goadrich, ICML 2006).
    pub area: f64,
    /// The precision of a guess: the share of images with the target class.
    pub prevalence: f64,
}

impl PrecisionRecall {
    /// The curve of scores against truths.
    ///
    /// # Errors
    /// [`Undefined`] when a class is missing.
    pub fn of(scores: &[f64], truths: &[bool]) -> Result<Self, Undefined> {
        let (positive, _) = both_classes(truths)?;
        let mut points = vec![CurvePoint { x: 0.0, y: 1.0 }];
        points.extend(steps(scores, truths).into_iter().map(|(true_positive, false_positive)| CurvePoint {
            x: true_positive as f64 / positive as f64,
            y: true_positive as f64 / (true_positive + false_positive) as f64,
        }));
        let pairs = points.iter().zip(points.iter().skip(1));
        let average_precision = pairs.map(|(before, point)| (point.x - before.x) * point.y).sum();
        let prevalence = positive as f64 / truths.len() as f64;
        Ok(Self { average_precision, area: trapezoids(&points), points, prevalence })
    }
}

/// Images with and without the target class at or above each distinct score, from the highest on.
fn steps(scores: &[f64], truths: &[bool]) -> Vec<(usize, usize)> {
    let mut ranked: Vec<(f64, bool)> = scores.iter().copied().zip(truths.iter().copied()).collect();
    ranked.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut counts = (0, 0);
    let mut steps = Vec::new();
    for group in ranked.chunk_by(|one, other| one.0.total_cmp(&other.0).is_eq()) {
        let positive = group.iter().filter(|(_, truth)| *truth).count();
        counts = (counts.0 + positive, counts.1 + group.len() - positive);
        steps.push(counts);
    }
    steps
}

fn trapezoids(points: &[CurvePoint]) -> f64 {
    points.iter().zip(points.iter().skip(1)).map(|(one, other)| (other.x - one.x) * f64::midpoint(one.y, other.y)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half_and_extremes_are_exact() {
        let truths = [true, false, true, false];
        assert!((Roc::of(&[0.5; 4], &truths).unwrap().area - 0.5).abs() < 1e-15);
        assert!((Roc::of(&[0.9, 0.1, 0.8, 0.2], &truths).unwrap().area - 1.0).abs() < 1e-15);
        assert!(Roc::of(&[0.1, 0.9, 0.2, 0.8], &truths).unwrap().area.abs() < 1e-15);
        let flat = PrecisionRecall::of(&[0.5; 4], &truths).unwrap();
        assert!((flat.average_precision - 0.5).abs() < 1e-15 && (flat.prevalence - 0.5).abs() < 1e-15);
    }

    #[test]
    fn one_class_is_refused_in_words() {
        let error = Roc::of(&[0.5, 0.6], &[true, true]).unwrap_err();
        assert_eq!(error.to_string(), "there are no images without the target class");
        assert_eq!(PrecisionRecall::of(&[], &[]).unwrap_err().to_string(), "there are no images");
    }
}
