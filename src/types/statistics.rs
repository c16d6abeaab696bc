//! Intervals that more than one room states.

/// The standard normal distribution's 97.5 % quantile: half of a two-sided 95 % interval.
pub const NORMAL_QUANTILE_975: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share of `count` in `n`, 0 to 1; everything for an `n` of 0 (Wilson, J Am Stat Assoc
/// 1927;22:209-212).
#[must_use]
pub fn wilson_interval(count: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (n, share, z) = (n as f64, count as f64 / n as f64, NORMAL_QUANTILE_975);
    let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let margin = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    [(middle - margin).max(0.0), (middle + margin).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 316 of 350 is the accuracy of Keidar et al.; the values come from the formula in another program.
    #[rstest::rstest]
    #[case(10, 10, [0.722_467, 1.0])]
    #[case(0, 10, [0.0, 0.277_533])]
    #[case(316, 350, [0.867_318, 0.929_649])]
    #[case(0, 0, [0.0, 1.0])]
    fn intervals_are_wilson_s(#[case] count: usize, #[case] n: usize, #[case] expected: [f64; 2]) {
        let found = wilson_interval(count, n);
        assert!((found[0] - expected[0]).abs() < 1e-6 && (found[1] - expected[1]).abs() < 1e-6, "{found:?}");
    }
}
