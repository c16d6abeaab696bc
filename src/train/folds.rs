//! Dividing a data set so that no patient is on two sides and every label is in each part in its share.

use std::collections::{BTreeMap, BTreeSet};

use super::sample::{Sample, Split};
use crate::nn::seeded;

/// Why a data set cannot be divided as wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// Fewer than two parts, or shares that are none.
    #[error("{0} cannot be divided into: give at least two parts, each with a share above 0")]
    Shares(String),
    /// Fewer patients than parts.
    #[error("there are {patients} patients for {parts} parts: give fewer parts, or more patients")]
    TooFewPatients {
        /// Patients that there are.
        patients: usize,
        /// Parts that were asked for.
        parts: usize,
    },
}

/// The fold, 0 to `n_folds` - 1, of each sample: folds of like size, in each of which every label has its share as far as
/// patients let it. Images of one patient are in one fold. The same samples and seed give the same folds.
///
/// # Errors
/// [`FoldError`] for fewer than two folds or fewer patients than folds.
pub fn patient_folds(samples: &[&Sample], n_folds: usize, seed: u64) -> Result<Vec<usize>, FoldError> {
    divide(samples, &vec![1.0; n_folds], seed)
}

/// A split for each sample: these shares of the images for validation and test, the rest for training; by patient and
/// label as [`patient_folds`].
///
/// # Errors
/// [`FoldError`] for shares that leave nothing to train on, or too few patients.
pub fn patient_split(samples: &[&Sample], validation: f64, test: f64, seed: u64) -> Result<Vec<Split>, FoldError> {
    let shares = [1.0 - validation - test, validation, test];
    let parts = divide(samples, &shares, seed)?;
    let splits = [Split::Train, Split::Validation, Split::Test];
    Ok(parts.into_iter().filter_map(|part| splits.get(part).copied()).collect())
}

/// The part of each sample. Patients are taken one after the other, those with most images first and otherwise in an order
/// that the seed shuffles; each goes where it brings the labels nearest to their shares.
fn divide(samples: &[&Sample], shares: &[f64], seed: u64) -> Result<Vec<usize>, FoldError> {
    let total: f64 = shares.iter().sum();
    if shares.len() < 2 || shares.iter().any(|share| !(share.is_finite() && *share > 0.0)) {
        return Err(FoldError::Shares(format!("the shares {shares:?}")));
    }
    let shares: Vec<f64> = shares.iter().map(|share| share / total).collect();
    let labels: BTreeSet<Option<&str>> = samples.iter().map(|sample| sample.label.as_deref()).collect();
    let labels: Vec<Option<&str>> = labels.into_iter().collect();
    let label_idx = |sample: &Sample| labels.binary_search(&sample.label.as_deref()).unwrap_or(0);

    let mut patients: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut totals = vec![0.0; labels.len()];
    for sample in samples {
        let counts = patients.entry(&sample.patient).or_insert_with(|| vec![0.0; labels.len()]);
        for counts in [counts, &mut totals] {
            if let Some(count) = counts.get_mut(label_idx(sample)) {
                *count += 1.0;
            }
        }
    }
    if patients.len() < shares.len() {
        return Err(FoldError::TooFewPatients { patients: patients.len(), parts: shares.len() });
    }
    let order = seeded::uniform(seed, "folds", patients.len(), 0.0, 1.0);
    let mut queue: Vec<(&str, Vec<f64>, f32)> =
        patients.into_iter().zip(order).map(|((patient, counts), order)| (patient, counts, order)).collect();
    let size = |counts: &[f64]| counts.iter().sum::<f64>();
    queue.sort_by(|one, other| size(&other.1).total_cmp(&size(&one.1)).then(one.2.total_cmp(&other.2)));

    let mut parts = vec![vec![0.0; labels.len()]; shares.len()];
    let mut part_of: BTreeMap<&str, usize> = BTreeMap::new();
    for (patient, counts, _) in queue {
        // How much the sum of squared distances from the shares changes.
        let cost = |part: &[f64], share: f64| -> f64 {
            let change = |((count, more), total): ((&f64, &f64), &f64)| {
                let distance = |count: f64| (count / total - share).powi(2);
                distance(count + more) - distance(*count)
            };
            part.iter().zip(&counts).zip(&totals).map(change).sum()
        };
        let cheapest = parts
            .iter()
            .zip(&shares)
            .map(|(part, share)| (cost(part, *share), size(part) / share))
            .enumerate()
            .min_by(|(_, one), (_, other)| {
                let by_cost =
                    if (one.0 - other.0).abs() < 1e-12 { std::cmp::Ordering::Equal } else { one.0.total_cmp(&other.0) };
                by_cost.then(one.1.total_cmp(&other.1))
            })
            .map_or(0, |(part, _)| part);
        if let Some(part) = parts.get_mut(cheapest) {
            for (count, more) in part.iter_mut().zip(&counts) {
                *count += more;
            }
        }
        part_of.insert(patient, cheapest);
    }
    Ok(samples.iter().filter_map(|sample| part_of.get(sample.patient.as_str()).copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 60 patients with one to four images, every third of them with the label `covid`.
    fn samples() -> Vec<Sample> {
        (0..60)
            .flat_map(|patient| (0..=patient % 4).map(move |image| (patient, image)))
            .map(|(patient, image)| Sample {
                file: format!("{patient}-{image}.png").into(),
                label: Some(if patient % 3 == 0 { "covid" } else { "normal" }.to_owned()),
                patient: format!("p{patient}"),
                view: None,
                mask: None,
                site: None,
                split: None,
                age_years: None,
                sex: None,
            })
            .collect()
    }

    fn share_of_covid(samples: &[&Sample], parts: &[usize], part: usize) -> (usize, f64) {
        let of_part: Vec<&&Sample> =
            samples.iter().zip(parts).filter(|(_, found)| **found == part).map(|(sample, _)| sample).collect();
        let covid = of_part.iter().filter(|sample| sample.label.as_deref() == Some("covid")).count();
        (of_part.len(), covid as f64 / of_part.len() as f64)
    }

    #[test]
    fn folds_keep_patients_together_and_labels_in_their_shares() {
        let all = samples();
        let samples: Vec<&Sample> = all.iter().collect();
        let folds = patient_folds(&samples, 5, 1).unwrap();
        assert_eq!(folds.len(), 150);
        let mut fold_of = BTreeMap::new();
        for (sample, fold) in samples.iter().zip(&folds) {
            assert_eq!(*fold_of.entry(&sample.patient).or_insert(*fold), *fold, "{}", sample.patient);
        }
        let whole = samples.iter().filter(|sample| sample.label.as_deref() == Some("covid")).count() as f64 / 150.0;
        for fold in 0..5 {
            let (n, share) = share_of_covid(&samples, &folds, fold);
            assert!((27..=33).contains(&n) && (share - whole).abs() < 0.05, "fold {fold}: {n}, {share} of {whole}");
        }
        assert_eq!(folds, patient_folds(&samples, 5, 1).unwrap());
        assert_ne!(folds, patient_folds(&samples, 5, 2).unwrap());
    }

    #[test]
    fn a_split_has_its_shares() {
        let all = samples();
        let samples: Vec<&Sample> = all.iter().collect();
        let splits = patient_split(&samples, 0.15, 0.2, 7).unwrap();
        let count = |split| splits.iter().filter(|found| **found == split).count();
        let counts = [count(Split::Train), count(Split::Validation), count(Split::Test)];
        assert!(
            (95..=101).contains(&counts[0]) && (20..=25).contains(&counts[1]) && (27..=33).contains(&counts[2]),
            "{counts:?}"
        );
    }

    #[test]
    fn what_cannot_be_divided_is_refused() {
        let all = samples();
        let samples: Vec<&Sample> = all.iter().collect();
        assert!(patient_folds(&samples, 1, 0).unwrap_err().to_string().contains("at least two parts"));
        assert!(patient_split(&samples, 0.6, 0.4, 0).is_err());
        let error = patient_folds(&samples[..1], 2, 0).unwrap_err();
        assert_eq!(error, FoldError::TooFewPatients { patients: 1, parts: 2 });
    }
}
