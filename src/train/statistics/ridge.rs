//! A linear classifier of embeddings, scored on patients that it was not fitted on.

use super::{Undefined, both_classes};

/// Ridge penalty, as a share of the mean squared length of the centred vectors.
const PENALTY: f64 = 0.1;

/// The products of all pairs of vectors: all that ridge regression needs of them.
///
/// # Errors
/// [`Undefined`] when vectors are missing or have different lengths.
pub fn products(vectors: &[&[f32]]) -> Result<Vec<Vec<f64>>, Undefined> {
    let length = vectors.first().map_or(0, |vector| vector.len());
    if length == 0 || vectors.iter().any(|vector| vector.len() != length) {
        return Err(Undefined::because("the embeddings are missing or of different lengths"));
    }
    let mut products: Vec<Vec<f64>> = vec![Vec::with_capacity(vectors.len()); vectors.len()];
    for (row, one) in vectors.iter().enumerate() {
        for column in 0..vectors.len() {
            // The other half is known already.
            let known = products.get(column).filter(|_| column < row).and_then(|values| values.get(row)).copied();
            let value = known.unwrap_or_else(|| vectors.get(column).map_or(0.0, |other| product(one, other)));
            if let Some(values) = products.get_mut(row) {
                values.push(value);
            }
        }
    }
    Ok(products)
}

/// A score for each vector, higher where it looks like one with a `true`: ridge regression (Hoerl and Kennard 1970) of the
/// truths on the centred vectors, in each fold by what was fitted on the others. In its dual form, from the vectors'
/// [`products`], so that long vectors cost no more than short ones.
///
/// # Errors
/// [`Undefined`] when a class is missing in the images that a fold is fitted on, or all vectors are the same.
pub fn out_of_fold_scores(products: &[Vec<f64>], truths: &[bool], folds: &[usize]) -> Result<Vec<f64>, Undefined> {
    let n = products.len();
    let at = |row: usize, column: usize| products.get(row).and_then(|row| row.get(column)).copied().unwrap_or(0.0);
    let mut scores = vec![0.0; n];
    let mut all_folds = folds.to_vec();
    all_folds.sort_unstable();
    all_folds.dedup();
    for fold in all_folds {
        let fitted: Vec<usize> = (0..n).filter(|idx| folds.get(*idx) != Some(&fold)).collect();
        let targets: Vec<bool> = fitted.iter().filter_map(|idx| truths.get(*idx).copied()).collect();
        let (positive, negative) = both_classes(&targets).map_err(|_| {
            Undefined::because("the images that a fold is fitted on are all of one kind: there are too few")
        })?;
        let count = fitted.len() as f64;
        // Centring the vectors is centring their products.
        let mean_with = |idx: usize| fitted.iter().map(|other| at(idx, *other)).sum::<f64>() / count;
        let means: Vec<f64> = fitted.iter().map(|idx| mean_with(*idx)).collect();
        let mean = means.iter().sum::<f64>() / count;
        let mut gram: Vec<Vec<f64>> = fitted
            .iter()
            .zip(&means)
            .map(|(row, row_mean)| {
                fitted
                    .iter()
                    .zip(&means)
                    .map(|(column, column_mean)| at(*row, *column) - row_mean - column_mean + mean)
                    .collect()
            })
            .collect();
        let trace: f64 = gram.iter().enumerate().filter_map(|(idx, row)| row.get(idx)).sum();
        if trace <= 1e-12 {
            return Err(Undefined::because("all embeddings are the same"));
        }
        for (idx, row) in gram.iter_mut().enumerate() {
            if let Some(diagonal) = row.get_mut(idx) {
                *diagonal += PENALTY * trace / count;
            }
        }
        // Both classes weigh the same, however many they are.
        let wanted: Vec<f64> = targets
            .iter()
            .map(|truth| if *truth { count / (2.0 * positive as f64) } else { -count / (2.0 * negative as f64) })
            .collect();
        let weights = solve(gram, wanted).ok_or_else(|| Undefined::because("the embeddings cannot be told apart"))?;
        for (idx, score) in scores.iter_mut().enumerate().filter(|(idx, _)| folds.get(*idx) == Some(&fold)) {
            let own_mean = mean_with(idx);
            *score = fitted
                .iter()
                .zip(&means)
                .zip(&weights)
                .map(|((other, other_mean), weight)| weight * (at(idx, *other) - own_mean - other_mean + mean))
                .sum();
        }
    }
    Ok(scores)
}

fn product(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Solves a symmetric positive definite system by Cholesky's factors; `None` when it is none.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    for row in 0..n {
        let (done, rest) = matrix.split_at_mut(row);
        let current = rest.first_mut()?;
        for (column, factor) in done.iter().enumerate() {
            let known: f64 = current.iter().zip(factor).take(column).map(|(a, b)| a * b).sum();
            let value = current.get_mut(column)?;
            *value = (*value - known) / factor.get(column)?;
        }
        let squares: f64 = current.iter().take(row).map(|value| value * value).sum();
        let diagonal = current.get_mut(row)?;
        let rest = *diagonal - squares;
        if !(rest.is_finite() && rest > 0.0) {
            return None;
        }
        *diagonal = rest.sqrt();
    }
    for row in 0..n {
        let factor = matrix.get(row)?;
        let known: f64 = factor.iter().zip(&right).take(row).map(|(a, b)| a * b).sum();
        let value = right.get_mut(row)?;
        *value = (*value - known) / factor.get(row)?;
    }
    for row in (0..n).rev() {
        let mut known = 0.0;
        for later in row + 1..n {
            known += matrix.get(later)?.get(row)? * right.get(later)?;
        }
        let value = right.get_mut(row)?;
        *value = (*value - known) / matrix.get(row)?.get(row)?;
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::{super::Roc, *};

    #[test]
    fn systems_are_solved() {
        let matrix = vec![vec![4.0, 2.0, 0.6], vec![2.0, 5.0, 1.0], vec![0.6, 1.0, 3.0]];
        let solution = solve(matrix.clone(), vec![1.0, 2.0, 3.0]).unwrap();
        for (row, right) in matrix.iter().zip([1.0, 2.0, 3.0]) {
            let left: f64 = row.iter().zip(&solution).map(|(a, b)| a * b).sum();
            assert!((left - right).abs() < 1e-12, "{solution:?}");
        }
        assert_eq!(solve(vec![vec![0.0]], vec![1.0]), None);
    }

    #[test]
    fn what_embeddings_tell_is_found_and_nothing_else() {
        let truths: Vec<bool> = (0..60).map(|idx| idx % 3 == 0).collect();
        let folds: Vec<usize> = (0..60).map(|idx| idx / 12).collect();
        let vectors = |strength: f32| -> Vec<Vec<f32>> {
            (0..60)
                .map(|idx| {
                    let mut vector = crate::nn::seeded::uniform(3, &format!("vector {idx}"), 200, -1.0, 1.0);
                    vector[7] += if truths[idx] { strength } else { 0.0 };
                    vector
                })
                .collect()
        };
        let area = |strength: f32| {
            let vectors = vectors(strength);
            let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
            Roc::of(&out_of_fold_scores(&products(&vectors).unwrap(), &truths, &folds).unwrap(), &truths).unwrap().area
        };
        assert!(area(20.0) > 0.98, "{}", area(20.0));
        assert!((0.25..0.75).contains(&area(0.0)), "{}", area(0.0));
    }

    #[test]
    fn embeddings_that_cannot_be_used_are_refused() {
        let same: [&[f32]; 4] = [&[1.0, 0.0]; 4];
        let truths = [true, false, true, false];
        let same = products(&same).unwrap();
        assert!(out_of_fold_scores(&same, &truths, &[0, 0, 1, 1]).unwrap_err().to_string().contains("the same"));
        assert!(out_of_fold_scores(&same, &truths, &[0, 1, 0, 1]).is_err(), "a fold is fitted on one class");
        assert!(products(&[&[1.0], &[1.0, 2.0]]).is_err() && products(&[]).is_err());
    }
}
