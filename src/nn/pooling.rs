//! From the probabilities of a scan's slices to those of the scan.

/// The `k` highest of `values` (0 counts as 1; all of them where there are fewer), averaged. `None` without values.
#[must_use]
pub fn topk_mean(values: &[f64], k: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted.truncate(k.max(1));
    mean(&sorted)
}

/// The average. `None` without values.
#[must_use]
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

/// The highest. `None` without values.
#[must_use]
pub fn max(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// How one class's slices become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassPooling {
    /// The highest slice.
    Max,
    /// All slices alike.
    Mean,
    /// The mean of the highest slices, at most this many.
    TopK(usize),
}

impl ClassPooling {
    fn of(self, values: &[f64]) -> Option<f64> {
        match self {
            Self::Max => max(values),
            Self::Mean => mean(values),
            Self::TopK(k) => topk_mean(values, k),
        }
    }
}

/// Why slices cannot be pooled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolingError {
    /// No slice.
    #[error("the scan has no slice to pool: check which slices were left out, and why")]
    NoSlices,
    /// Slices or rules of unlike numbers of classes.
    #[error("slice {slice_idx} has {found} classes and there are pooling rules for {expected}: give one rule a class")]
    Classes {
        /// Index of the slice.
        slice_idx: usize,
        /// Its classes.
        found: usize,
        /// Number of rules.
        expected: usize,
    },
    /// A NaN or an infinity or a negative number.
    #[error("slice {slice_idx} has a probability that is none: {value}")]
    NotAProbability {
        /// Index of the slice.
        slice_idx: usize,
        /// As text.
        value: String,
    },
    /// Every pooled number is 0.
    #[error("all pooled probabilities are 0: the slices' probabilities do not add up to 1")]
    AllZero,
}

/// Pools the slices' probabilities (slices x classes) class by class, by a rule for each class, and divides by the sum
/// so that the scan's probabilities add up to 1.
pub fn pool_slices(slices: &[Vec<f64>], rules: &[ClassPooling]) -> Result<Vec<f64>, PoolingError> {
    for (slice_idx, probabilities) in slices.iter().enumerate() {
        if probabilities.len() != rules.len() {
            return Err(PoolingError::Classes { slice_idx, found: probabilities.len(), expected: rules.len() });
        }
        if let Some(value) = probabilities.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
            return Err(PoolingError::NotAProbability { slice_idx, value: value.to_string() });
        }
    }
    let pooled = rules
        .iter()
        .enumerate()
        .map(|(class_idx, rule)| {
            let of_class: Vec<f64> = slices.iter().filter_map(|slice| slice.get(class_idx).copied()).collect();
            rule.of(&of_class).ok_or(PoolingError::NoSlices)
        })
        .collect::<Result<Vec<f64>, _>>()?;
    let sum: f64 = pooled.iter().sum();
    if sum <= 0.0 {
        return Err(PoolingError::AllZero);
    }
    Ok(pooled.into_iter().map(|value| value / sum).collect())
}

/// The `k` of Jin et al.'s function; their command line has 5.
pub const JIN_K: usize = 3;

/// Jin et al.'s rule for a scan (Nat Commun 2020;11:5088): class 0 (no pneumonia) is the mean over all slices, every
/// other class the mean of its own `k` highest slices, and the numbers are divided by their sum. The scan's class is
/// the one with the highest.
pub fn jin_scan_probabilities(slices: &[Vec<f64>], k: usize) -> Result<Vec<f64>, PoolingError> {
    let n_classes = slices.first().map_or(0, Vec::len);
    if n_classes == 0 {
        return Err(PoolingError::NoSlices);
    }
    let rules: Vec<ClassPooling> = (0..n_classes)
        .map(|class_idx| if class_idx == 0 { ClassPooling::Mean } else { ClassPooling::TopK(k) })
        .collect();
    pool_slices(slices, &rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
    }

    #[test]
    fn jins_rule_by_hand() {
        let slices = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6], [0.4, 0.3, 0.1, 0.2], [0.2, 0.0, 0.0, 0.8]]
            .map(|slice| slice.to_vec());
        // Class 0: (0.7 + 0.1 + 0.4 + 0.2) / 4 = 0.35. Best two of each other class: 0.2, 0.15, 0.7. Sum 1.4.
        assert_close(&jin_scan_probabilities(&slices, 2).unwrap(), &[0.25, 0.2 / 1.4, 0.15 / 1.4, 0.5]);
        // More than there are slices: the mean of all.
        assert_close(&jin_scan_probabilities(&slices, 99).unwrap(), &[0.35, 0.125, 0.1, 0.425]);
        // 0 counts as 1: the maximum.
        assert_close(&jin_scan_probabilities(&slices[..1], 0).unwrap(), &[0.7, 0.1, 0.1, 0.1]);
    }

    #[test]
    fn each_class_has_its_own_rule() {
        let slices = [vec![0.8, 0.2], vec![0.2, 0.8], vec![0.5, 0.5]];
        let pooled = pool_slices(&slices, &[ClassPooling::Max, ClassPooling::TopK(2)]).unwrap();
        assert_close(&pooled, &[0.8 / 1.45, 0.65 / 1.45]);
        let pooled = pool_slices(&slices, &[ClassPooling::Mean, ClassPooling::Mean]).unwrap();
        assert_close(&pooled, &[0.5, 0.5]);
    }

    #[test]
    fn what_cannot_be_pooled_is_named() {
        let rules = [ClassPooling::Mean, ClassPooling::Max];
        assert_eq!(pool_slices(&[], &rules), Err(PoolingError::NoSlices));
        assert_eq!(jin_scan_probabilities(&[], 3), Err(PoolingError::NoSlices));
        assert_eq!(
            pool_slices(&[vec![0.5, 0.5], vec![1.0]], &rules),
            Err(PoolingError::Classes { slice_idx: 1, found: 1, expected: 2 })
        );
        let error = pool_slices(&[vec![0.5, f64::NAN]], &rules).unwrap_err();
        assert!(error.to_string().contains("slice 0 has a probability that is none: NaN"), "{error}");
        assert_eq!(pool_slices(&[vec![0.0, 0.0]], &rules), Err(PoolingError::AllZero));
        assert_eq!((max(&[]), mean(&[]), topk_mean(&[], 2)), (None, None, None));
    }
}
