//! How much one column of a list tells of another.

use std::collections::{BTreeMap, BTreeSet};

use super::Undefined;

/// How often each pair of values occurs.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossTable<'a> {
    /// Values of the first column, sorted.
    pub rows: Vec<&'a str>,
    /// Values of the second column, sorted.
    pub columns: Vec<&'a str>,
    /// Counts, row by row.
    pub counts: Vec<Vec<usize>>,
}

impl<'a> CrossTable<'a> {
    /// Counts pairs.
    #[must_use]
    pub fn of(pairs: &[(&'a str, &'a str)]) -> Self {
        let counted = pairs.iter().fold(BTreeMap::new(), |mut counts: BTreeMap<(&str, &str), usize>, pair| {
            *counts.entry(*pair).or_default() += 1;
            counts
        });
        let distinct = |values: BTreeSet<&'a str>| values.into_iter().collect::<Vec<_>>();
        let rows = distinct(pairs.iter().map(|(row, _)| *row).collect());
        let columns = distinct(pairs.iter().map(|(_, column)| *column).collect());
        let count = |row: &'a str, column: &'a str| counted.get(&(row, column)).copied().unwrap_or(0);
        let counts = rows.iter().map(|row| columns.iter().map(|column| count(row, column)).collect()).collect();
        Self { rows, columns, counts }
    }

    /// Cramér's V with Bergsma's correction of its bias (J Korean Stat Soc 2013;42:323-328): 0 where one column tells
    /// nothing of the other, 1 where it tells all.
    ///
    /// # Errors
    /// [`Undefined`] when a column has one value only, or there are too few pairs for the number of values.
    pub fn cramers_v(&self) -> Result<f64, Undefined> {
        let n: usize = self.counts.iter().flatten().sum();
        let (n_rows, n_columns) = (self.rows.len() as f64, self.columns.len() as f64);
        if self.rows.len() < 2 || self.columns.len() < 2 {
            return Err(Undefined::because("one of the two columns has one value only"));
        }
        let n = n as f64;
        let row_sums: Vec<f64> = self.counts.iter().map(|row| row.iter().sum::<usize>() as f64).collect();
        let column_sum = |idx: usize| self.counts.iter().filter_map(|row| row.get(idx)).sum::<usize>() as f64;
        let mut chi_squared = 0.0;
        for (row, row_sum) in self.counts.iter().zip(&row_sums) {
            for (idx, count) in row.iter().enumerate() {
                let expected = row_sum * column_sum(idx) / n;
                chi_squared += (*count as f64 - expected).powi(2) / expected;
            }
        }
        let phi_squared = (chi_squared / n - (n_rows - 1.0) * (n_columns - 1.0) / (n - 1.0)).max(0.0);
        let corrected = |count: f64| count - (count - 1.0).powi(2) / (n - 1.0);
        let smaller = corrected(n_rows).min(corrected(n_columns)) - 1.0;
        if !(n > 1.0 && smaller > 1e-9) {
            return Err(Undefined::because("there are too few images for so many values"));
        }
        Ok((phi_squared / smaller).sqrt().min(1.0))
    }
}

/// Shares, 0 to 1, of the pairs whose first value is right when guessed: always the most frequent one, and the most
/// frequent one of each second value. The distance of the two is what the second column gives away.
///
/// # Errors
/// [`Undefined`] without pairs.
pub fn site_guess(table: &CrossTable<'_>) -> Result<(f64, f64), Undefined> {
    let n: usize = table.counts.iter().flatten().sum();
    if n == 0 {
        return Err(Undefined::because("there are no images"));
    }
    let always = table.counts.iter().map(|row| row.iter().sum::<usize>()).max().unwrap_or(0);
    let by_column: usize = (0..table.columns.len())
        .map(|idx| table.counts.iter().filter_map(|row| row.get(idx)).copied().max().unwrap_or(0))
        .sum();
    Ok((always as f64 / n as f64, by_column as f64 / n as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_tells_the_label_is_seen() {
        let pairs: Vec<(&str, &str)> =
            (0..40).map(|idx| if idx % 2 == 0 { ("covid", "web") } else { ("normal", "hospital") }).collect();
        let table = CrossTable::of(&pairs);
        assert!((table.cramers_v().unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(site_guess(&table).unwrap(), (0.5, 1.0));
        let independent: Vec<(&str, &str)> =
            (0..40).map(|idx| (["covid", "normal"][idx % 2], ["web", "hospital"][idx / 2 % 2])).collect();
        let table = CrossTable::of(&independent);
        assert!(table.cramers_v().unwrap() < 1e-12);
        assert_eq!(site_guess(&table).unwrap(), (0.5, 0.5));
    }

    #[test]
    fn one_value_is_no_association() {
        assert!(CrossTable::of(&[("a", "x"), ("b", "x")]).cramers_v().unwrap_err().to_string().contains("one value"));
        assert!(CrossTable::of(&[("a", "x"), ("b", "y")]).cramers_v().unwrap_err().to_string().contains("too few"));
        assert!(site_guess(&CrossTable::of(&[])).is_err());
    }
}
