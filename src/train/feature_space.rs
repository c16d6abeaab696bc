//! Fits a feature space to the embeddings of training images: what the gate on the distance from them compares with.

use tch::{Kind, Tensor};

use crate::nn::{FeatureSpace, MAX_COMPONENTS, Matrix};

/// How a covariance of few images is kept from fitting their noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shrinkage {
    /// As much as Ledoit and Wolf's estimator finds best (J Multivariate Anal 2004;88:365-411).
    LedoitWolf,
    /// This share, 0 to 1, of a multiple of the identity with the same trace.
    Fixed(f64),
}

/// Choices of a fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitOptions {
    /// Most principal components that are kept, 1 to [`MAX_COMPONENTS`]; of few images fewer are.
    pub components: usize,
    /// Of the covariance that the classes share.
    pub shrinkage: Shrinkage,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { components: 64, shrinkage: Shrinkage::LedoitWolf }
    }
}

/// Why nothing can be fitted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Too few images.
    #[error("{images} image(s) of {classes} class(es) to fit on, at least {classes} + 2 expected: give a longer list")]
    TooFew {
        /// Images.
        images: usize,
        /// Classes among them.
        classes: usize,
    },
    /// Embeddings of different lengths, without numbers, or with numbers that are none.
    #[error("embedding {idx} has {found} finite numbers, {expected} expected: are all of the same member?")]
    Uneven {
        /// Which, from 0.
        idx: usize,
        /// Its finite numbers.
        found: usize,
        /// Those of the first.
        expected: usize,
    },
    /// An option out of its range.
    #[error("{option} is {value}: give {expected}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it is.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// All images are the same to the network.
    #[error("the embeddings do not differ: are the weights those of a trained network?")]
    Alike,
    /// libtorch fails.
    #[error("libtorch fails: {0}")]
    Torch(String),
}

/// Fits the space of the training images' `embeddings` (of length 1), each with the number of its class.
///
/// The embeddings are centred and reduced to their principal components; the covariance is that of the components within
/// the classes (maximum likelihood, about each class's mean), shrunk.
///
/// # Errors
/// [`FitError`], with its remedy.
pub fn fit_feature_space(
    embeddings: &[Vec<f32>],
    classes: &[usize],
    options: &FitOptions,
) -> Result<FeatureSpace, FitError> {
    check_options(options)?;
    let features = embeddings.first().map_or(0, Vec::len);
    for (idx, embedding) in embeddings.iter().enumerate() {
        let found = embedding.iter().filter(|value| value.is_finite()).count();
        if found != features || embedding.len() != features || features == 0 {
            return Err(FitError::Uneven { idx, found, expected: features.max(1) });
        }
    }
    let mut class_numbers = classes.to_vec();
    class_numbers.sort_unstable();
    class_numbers.dedup();
    let images = embeddings.len().min(classes.len());
    if images < class_numbers.len() + 2 {
        return Err(FitError::TooFew { images, classes: class_numbers.len() });
    }

    let rows: Vec<Vec<f64>> =
        embeddings.iter().map(|embedding| embedding.iter().map(|value| f64::from(*value)).collect()).collect();
    let centre = mean(rows.iter());
    let centred: Vec<f64> = rows.iter().flat_map(|row| row.iter().zip(&centre).map(|(one, mean)| one - mean)).collect();
    let components = principal_components(&centred, images, features, options.components)?;
    let reduced: Vec<Vec<f64>> = centred
        .chunks_exact(features)
        .map(|row| components.chunks_exact(features).map(|component| dot(component, row)).collect())
        .collect();
    let kept = components.len() / features;

    let mut means = Vec::new();
    let mut residuals: Vec<Vec<f64>> = Vec::new();
    for class in class_numbers {
        let of_class = || reduced.iter().zip(classes).filter(move |(_, of)| **of == class).map(|(row, _)| row);
        let class_mean = mean(of_class());
        residuals.extend(of_class().map(|row| row.iter().zip(&class_mean).map(|(one, mean)| one - mean).collect()));
        means.extend(class_mean);
    }
    let covariance = shrunk_covariance(&residuals, options.shrinkage);
    let precision = inverse(&covariance, kept)?;
    Ok(FeatureSpace {
        centre,
        components: Matrix { columns: features, values: components },
        class_means: Matrix { columns: kept, values: means },
        precision: Matrix { columns: kept, values: precision },
        vectors: Matrix { columns: kept, values: reduced.into_iter().flatten().collect() },
    })
}

fn check_options(options: &FitOptions) -> Result<(), FitError> {
    if !(1..=MAX_COMPONENTS).contains(&options.components) {
        let (value, expected) = (options.components.to_string(), format!("1 to {MAX_COMPONENTS}"));
        return Err(FitError::Option { option: "the number of components", value, expected });
    }
    match options.shrinkage {
        Shrinkage::Fixed(share) if !(0.0..=1.0).contains(&share) => Err(FitError::Option {
            option: "the shrinkage",
            value: share.to_string(),
            expected: "0 to 1, or `ledoit-wolf`".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The first right singular vectors of the centred rows, one after the other; directions in which nothing differs are left
/// out.
fn principal_components(centred: &[f64], rows: usize, features: usize, most: usize) -> Result<Vec<f64>, FitError> {
    /// Singular values below this share of the largest are rounding.
    const ROUNDING: f64 = 1e-6;
    let torch = |error: tch::TchError| FitError::Torch(error.to_string().chars().take(300).collect());
    let matrix = Tensor::from_slice(centred).f_view([rows as i64, features as i64]).map_err(torch)?;
    let (_, singular, components) = matrix.f_svd(true, true).map_err(torch)?;
    let singular = numbers(&singular).map_err(torch)?;
    let largest = singular.first().copied().unwrap_or(0.0);
    if largest < ROUNDING {
        return Err(FitError::Alike);
    }
    let kept = singular.iter().take_while(|value| **value > ROUNDING * largest).take(most).count();
    let mut components = components.f_transpose(0, 1).and_then(|rows| numbers(&rows)).map_err(torch)?;
    components.truncate(kept * features);
    Ok(components)
}

/// The covariance of rows whose mean is 0, shrunk; row by row.
fn shrunk_covariance(rows: &[Vec<f64>], shrinkage: Shrinkage) -> Vec<f64> {
    let (n, columns) = (rows.len().max(1) as f64, rows.first().map_or(0, Vec::len));
    let mut covariance = vec![0.0; columns * columns];
    for row in rows {
        for (one, sums) in row.iter().zip(covariance.chunks_exact_mut(columns.max(1))) {
            for (sum, other) in sums.iter_mut().zip(row) {
                *sum += one * other / n;
            }
        }
    }
    let diagonal: f64 = covariance.iter().step_by(columns + 1).sum();
    let mean_variance = diagonal / columns.max(1) as f64;
    let share = match shrinkage {
        Shrinkage::Fixed(share) => share,
        Shrinkage::LedoitWolf => {
            // The publication's d² and b², times the number of columns: how far the covariance is from the target, and how
            // far it is from the truth by chance.
            let squares: f64 = covariance.iter().map(|value| value * value).sum();
            let distance = squares - 2.0 * mean_variance * diagonal + columns as f64 * mean_variance.powi(2);
            let fourth_powers: f64 = rows.iter().map(|row| dot(row, row).powi(2)).sum();
            let chance = (fourth_powers / n - squares) / n;
            if distance > 0.0 { chance.min(distance).max(0.0) / distance } else { 0.0 }
        }
    };
    for (idx, value) in covariance.iter_mut().enumerate() {
        let target = if idx % (columns + 1) == 0 { mean_variance } else { 0.0 };
        *value = (1.0 - share) * *value + share * target;
    }
    covariance
}

/// Of a symmetric matrix; where it has no inverse, the pseudo-inverse.
fn inverse(matrix: &[f64], side: usize) -> Result<Vec<f64>, FitError> {
    let torch = |error: tch::TchError| FitError::Torch(error.to_string().chars().take(300).collect());
    let matrix = Tensor::from_slice(matrix).f_view([side as i64, side as i64]).map_err(torch)?;
    let inverse = matrix.f_linalg_pinv(1e-15, true).map_err(torch)?;
    numbers(&inverse).map_err(torch)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>, tch::TchError> {
    let flat = tensor.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?;
    Vec::<f64>::try_from(&flat)
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn mean<'a>(rows: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut sums: Vec<f64> = Vec::new();
    let mut n = 0.0;
    for row in rows {
        sums.resize(row.len(), 0.0);
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
        n += 1.0;
    }
    sums.into_iter().map(|sum| sum / n).collect()
}

/// The value below which the share `quantile` (0 to 1) of the values lies, linear between ranks, as numpy's default;
/// `None` of none.
#[must_use]
pub fn quantile(values: &[f64], quantile: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = quantile.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let below = sorted.get(rank.floor() as usize)?;
    let above = sorted.get(rank.ceil() as usize)?;
    Some(below + (above - below) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        embeddings: Vec<Vec<f32>>,
        classes: Vec<usize>,
        queries: Vec<Vec<f32>>,
        neighbour: usize,
        cases: Vec<Case>,
        numbers: Vec<f64>,
        quantiles: Vec<(f64, f64)>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        components: usize,
        fixed: Option<f64>,
        mahalanobis: Vec<f64>,
        neighbour: Vec<f64>,
    }

    /// Of `deploy/golden/make_feature_space.py`, with scikit-learn itself.
    fn golden() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/feature_space.json");
        serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
    }

    #[track_caller]
    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} is not {expected}");
    }

    #[test]
    fn distances_are_scikit_learns() {
        let golden = golden();
        for case in &golden.cases {
            let shrinkage = case.fixed.map_or(Shrinkage::LedoitWolf, Shrinkage::Fixed);
            let options = FitOptions { components: case.components, shrinkage };
            let space = fit_feature_space(&golden.embeddings, &golden.classes, &options).unwrap();
            for ((query, mahalanobis), neighbour) in golden.queries.iter().zip(&case.mahalanobis).zip(&case.neighbour) {
                let found = space.distances(query, golden.neighbour).unwrap();
                assert_close(found.mahalanobis, *mahalanobis);
                assert_close(found.neighbour, *neighbour);
            }
        }
    }

    #[test]
    fn quantiles_are_numpys() {
        let golden = golden();
        for (share, expected) in golden.quantiles {
            assert_close(quantile(&golden.numbers, share).unwrap(), expected);
        }
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn what_lies_apart_from_the_training_images_is_far_by_both_distances() {
        let golden = golden();
        let space = fit_feature_space(&golden.embeddings, &golden.classes, &FitOptions::default()).unwrap();
        let farthest = |pick: fn(crate::nn::FeatureDistances) -> f64| {
            golden.embeddings.iter().map(|known| pick(space.distances(known, 2).unwrap())).fold(0.0, f64::max)
        };
        // The direction in which the training images vary least.
        let mut strange = vec![0.0; 12];
        strange[11] = 1.0;
        let found = space.distances(&strange, 2).unwrap();
        assert!(found.mahalanobis > farthest(|distances| distances.mahalanobis), "{found:?}");
        assert!(found.neighbour > farthest(|distances| distances.neighbour), "{found:?}");
    }

    #[test]
    fn of_few_images_few_components_are_kept_and_the_space_can_be_written() {
        let golden = golden();
        let space = fit_feature_space(&golden.embeddings[..6], &golden.classes[..6], &FitOptions::default()).unwrap();
        assert_eq!(space.precision.columns, 5, "six centred images span five directions");
        assert!(FeatureSpace::from_bytes(&space.to_bytes().unwrap()).unwrap() == space);
    }

    #[test]
    fn what_cannot_be_fitted_is_told_with_its_remedy() {
        let fit = |embeddings: &[Vec<f32>], classes: &[usize], options: &FitOptions| {
            fit_feature_space(embeddings, classes, options).unwrap_err().to_string()
        };
        let default = FitOptions::default();
        assert!(fit(&[], &[], &default).contains("at least 0 + 2"));
        assert!(fit(&[vec![1.0], vec![0.5], vec![0.0]], &[0, 1, 0], &default).contains("of 2 class(es)"));
        assert!(fit(&[vec![1.0, 0.0], vec![0.5]], &[0, 0], &default).contains("embedding 1 has 1"));
        assert!(fit(&[vec![1.0, f32::NAN], vec![0.5, 0.0]], &[0, 0], &default).contains("embedding 0 has 1"));
        assert!(fit(&vec![vec![0.6, 0.8]; 5], &[0; 5], &default).contains("do not differ"));
        assert!(fit(&[], &[], &FitOptions { components: 129, ..default }).contains("1 to 128"));
        let fixed = FitOptions { shrinkage: Shrinkage::Fixed(1.5), ..default };
        assert!(fit(&[], &[], &fixed).contains("the shrinkage is 1.5"));
    }
}
