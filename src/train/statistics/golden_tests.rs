//! Every figure equals scikit-learn's, SciPy's or its published formula within 1e-9 (`tests/golden/statistics.json`, made
//! by `deploy/golden/make_statistics.py`).

use serde::Deserialize;

use super::*;
use crate::{train::dice, types::wilson_interval};

const GOLDEN: &str = include_str!("../../../tests/golden/statistics.json");

#[derive(Deserialize)]
struct Golden {
    seed: u64,
    resamples: usize,
    cases: Vec<Case>,
    wilson: Vec<Wilson>,
    cross_tables: Vec<Table>,
    ridge: Ridge,
    dice: Vec<Masks>,
}

#[derive(Deserialize)]
struct Case {
    scores: Vec<f64>,
    second: Vec<f64>,
    truths: Vec<bool>,
    patients: Vec<String>,
    confusion: [usize; 4],
    accuracy: f64,
    sensitivity: f64,
    specificity: f64,
    ppv: f64,
    npv: f64,
    roc_area: f64,
    false_positive_rate: Vec<f64>,
    true_positive_rate: Vec<f64>,
    average_precision: f64,
    precision_recall_area: f64,
    delong_variance: f64,
    delong_z: f64,
    delong_p_value: f64,
    bootstrap: Resampled,
    brier: f64,
    log_loss: f64,
    expected_calibration_error: f64,
    outputs: Vec<Vec<f64>>,
    classes: Vec<usize>,
    temperature: f64,
    platt: [f64; 2],
}

#[derive(Deserialize)]
struct Resampled {
    interval: [f64; 2],
    resamples: usize,
}

#[derive(Deserialize)]
struct Wilson {
    count: usize,
    n: usize,
    interval: [f64; 2],
}

#[derive(Deserialize)]
struct Table {
    counts: Vec<Vec<usize>>,
    v: f64,
}

#[derive(Deserialize)]
struct Ridge {
    vectors: Vec<Vec<f32>>,
    truths: Vec<bool>,
    folds: Vec<usize>,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct Masks {
    found: Vec<bool>,
    truth: Vec<bool>,
    dice: f64,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).unwrap()
}

#[track_caller]
fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

#[test]
fn confusion_tables_and_curves() {
    for case in golden().cases {
        let counts = Confusion::at(0.5, &case.scores, &case.truths);
        let found = [counts.true_negative, counts.false_positive, counts.false_negative, counts.true_positive];
        assert_eq!(found, case.confusion);
        for (found, expected) in [
            (counts.accuracy(), case.accuracy),
            (counts.sensitivity(), case.sensitivity),
            (counts.specificity(), case.specificity),
            (counts.ppv(), case.ppv),
            (counts.npv(), case.npv),
        ] {
            assert_close(found.unwrap().value, expected);
        }
        let roc = Roc::of(&case.scores, &case.truths).unwrap();
        assert_close(roc.area, case.roc_area);
        assert_eq!(roc.points.len(), case.false_positive_rate.len());
        for (point, (x, y)) in roc.points.iter().zip(case.false_positive_rate.iter().zip(&case.true_positive_rate)) {
            assert_close(point.x, *x);
            assert_close(point.y, *y);
        }
        let curve = PrecisionRecall::of(&case.scores, &case.truths).unwrap();
        assert_close(curve.average_precision, case.average_precision);
        assert_close(curve.area, case.precision_recall_area);
    }
}

#[test]
fn delong_and_the_bootstrap() {
    let golden = golden();
    for case in golden.cases {
        let single = delong(&case.scores, &case.truths).unwrap();
        assert_close(single.area, case.roc_area);
        assert_close(single.variance, case.delong_variance);
        let paired = delong_paired(&case.scores, &case.second, &case.truths).unwrap();
        assert_close(paired.z, case.delong_z);
        assert_close(paired.p_value, case.delong_p_value);
        let patients: Vec<&str> = case.patients.iter().map(String::as_str).collect();
        let found = bootstrap(&patients, golden.resamples, golden.seed, |images| {
            let of = |idx: &usize| (case.scores[*idx], case.truths[*idx]);
            let (scores, truths): (Vec<f64>, Vec<bool>) = images.iter().map(of).unzip();
            Some(Roc::of(&scores, &truths).ok()?.area)
        })
        .unwrap();
        assert_eq!(found.resamples, case.bootstrap.resamples);
        assert_close(found.interval[0], case.bootstrap.interval[0]);
        assert_close(found.interval[1], case.bootstrap.interval[1]);
    }
}

#[test]
fn calibration_and_its_fits() {
    for case in golden().cases {
        assert_close(brier(&case.scores, &case.truths).unwrap(), case.brier);
        let reliability = Reliability::of(&case.scores, &case.truths).unwrap();
        assert_close(reliability.expected_calibration_error, case.expected_calibration_error);
        assert_eq!(reliability.bins.iter().map(|bin| bin.n).sum::<usize>(), case.scores.len());
        let outputs: Vec<&[f64]> = case.outputs.iter().map(Vec::as_slice).collect();
        assert_close(negative_log_likelihood(&outputs, &case.classes).unwrap(), case.log_loss);
        assert_close(fit_temperature(&outputs, &case.classes).unwrap(), case.temperature);
        let logits: Vec<f64> = case.scores.iter().map(|score| (score / (1.0 - score)).ln()).collect();
        let (slope, intercept) = fit_platt(&logits, &case.truths).unwrap();
        assert_close(slope, case.platt[0]);
        assert_close(intercept, case.platt[1]);
    }
}

#[test]
fn intervals_associations_ridge_and_dice() {
    let golden = golden();
    for case in golden.wilson {
        let found = wilson_interval(case.count, case.n);
        assert_close(found[0], case.interval[0]);
        assert_close(found[1], case.interval[1]);
    }
    for case in golden.cross_tables {
        let names: Vec<String> = (0..9).map(|idx| idx.to_string()).collect();
        let table = CrossTable {
            rows: names.iter().take(case.counts.len()).map(String::as_str).collect(),
            columns: names.iter().take(case.counts[0].len()).map(String::as_str).collect(),
            counts: case.counts,
        };
        assert_close(table.cramers_v().unwrap(), case.v);
    }
    let Ridge { vectors, truths, folds, scores } = golden.ridge;
    let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    for (found, expected) in
        out_of_fold_scores(&products(&vectors).unwrap(), &truths, &folds).unwrap().iter().zip(&scores)
    {
        assert_close(*found, *expected);
    }
    for case in golden.dice {
        assert_close(dice(&case.found, &case.truth), case.dice);
    }
}
