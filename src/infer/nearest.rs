//! Exact search for the nearest of many vectors of length 1, in memory.
//!
//! For vectors of length 1 the order by cosine is the order by Euclidean distance: `|a - b|² = 2 - 2 a·b`. The first
//! pass computes every dot product in 32 bits, in lanes that the compiler vectorises; it is bounded by the memory's
//! speed. Whatever the rounding of that pass could hide is then measured in 64 bits: what comes out is what a search
//! in 64 bits would give.

use std::{cmp::Ordering, thread};

/// Partial sums that are carried side by side.
const LANES: usize = 16;
/// More threads would take cores from the networks and find the memory busy.
const MAX_THREADS: usize = 2;
/// Rows below which a second thread costs more than it brings.
const MIN_ROWS_FOR_THREADS: usize = 4096;

/// Vectors of one length, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorTable {
    dimensions: usize,
    values: Vec<f32>,
}

impl VectorTable {
    /// An empty table of vectors with `dimensions` numbers, at least 1.
    #[must_use]
    pub fn new(dimensions: usize) -> Self {
        Self { dimensions: dimensions.max(1), values: Vec::new() }
    }

    /// Numbers of each vector.
    #[must_use]
    pub const fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// How many vectors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.dimensions
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Makes room for `rows` more, exactly.
    pub fn reserve(&mut self, rows: usize) {
        self.values.reserve_exact(rows.saturating_mul(self.dimensions));
    }

    /// Appends a vector of length 1; returns whether it has the table's number of dimensions (else nothing changes).
    pub fn push(&mut self, vector: &[f32]) -> bool {
        let fits = vector.len() == self.dimensions;
        if fits {
            self.values.extend_from_slice(vector);
        }
        fits
    }

    /// Removes row `row_idx`; the last row takes its place. No effect beyond the end.
    pub fn swap_remove(&mut self, row_idx: usize) {
        let Some(last_idx) = self.len().checked_sub(1) else { return };
        if row_idx > last_idx {
            return;
        }
        let last = last_idx * self.dimensions;
        self.values.copy_within(last.., row_idx * self.dimensions);
        self.values.truncate(last);
    }

    /// The vector of row `row_idx`.
    #[must_use]
    pub fn row(&self, row_idx: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.dimensions).nth(row_idx)
    }

    /// The `count` eligible rows nearest to `query` (length 1), nearest first, with their Euclidean distance (0 to 2)
    /// in 64 bits. Rows at the same distance are in the order of `tie`. Empty when the number of dimensions differs.
    pub fn nearest(
        &self,
        query: &[f32],
        count: usize,
        eligible: impl Fn(usize) -> bool,
        tie: impl Fn(usize, usize) -> Ordering,
    ) -> Vec<(usize, f64)> {
        if query.len() != self.dimensions || count == 0 || self.is_empty() {
            return Vec::new();
        }
        let mut candidates: Vec<(usize, f32)> =
            self.dots(query).into_iter().enumerate().filter(|(row_idx, _)| eligible(*row_idx)).collect();
        if let Some(beyond) = candidates.len().checked_sub(count).filter(|beyond| *beyond > 0) {
            // Ascending: the count-th best stands at index `beyond`.
            let (_, &mut (_, worst), _) =
                candidates.select_nth_unstable_by(beyond, |one, other| one.1.total_cmp(&other.1));
            let line = worst - 2.0 * dot_error(self.dimensions);
            candidates.retain(|(_, dot)| *dot >= line);
        }
        let mut measured: Vec<(usize, f64)> = candidates
            .into_iter()
            .filter_map(|(row_idx, _)| Some((row_idx, distance(query, self.row(row_idx)?))))
            .collect();
        measured.sort_by(|one, other| one.1.total_cmp(&other.1).then_with(|| tie(one.0, other.0)));
        measured.truncate(count);
        measured
    }

    /// The dot product of `query` with every row.
    fn dots(&self, query: &[f32]) -> Vec<f32> {
        let rows = self.len();
        let mut dots = vec![0.0; rows];
        let fill = |dots: &mut [f32], values: &[f32]| {
            for (dot_out, row) in dots.iter_mut().zip(values.chunks_exact(self.dimensions)) {
                *dot_out = dot(query, row);
            }
        };
        let cores = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let threads = if rows < MIN_ROWS_FOR_THREADS { 1 } else { cores.min(MAX_THREADS) };
        let share = rows.div_ceil(threads).max(1);
        if threads == 1 {
            fill(&mut dots, &self.values);
        } else {
            thread::scope(|scope| {
                for (dots, values) in dots.chunks_mut(share).zip(self.values.chunks(share * self.dimensions)) {
                    scope.spawn(move || fill(dots, values));
                }
            });
        }
        dots
    }
}

/// The dot product of two vectors of one length, summed in 32 bits.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (chunks, other_chunks) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest: f32 = chunks.remainder().iter().zip(other_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in chunks.zip(other_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Upper bound of the error of [`dot`] for vectors of length 1: `n u / (1 - n u)` for the longest chain of `n`
/// roundings (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and Cauchy-Schwarz. Vectors that
/// are of length 1 only to the last bits are covered by the two extra lanes.
fn dot_error(dimensions: usize) -> f32 {
    let roundings = (dimensions / LANES + 4 * LANES) as f32;
    let unit = f32::EPSILON / 2.0;
    roundings * unit / (1.0 - roundings * unit) * 1.01
}

/// The Euclidean distance of two vectors in 64 bits.
#[must_use]
pub fn distance(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// The vector scaled to length 1; `None` when it has no direction: all zero, empty, or not finite.
#[must_use]
pub fn normalised(values: &[f32]) -> Option<Vec<f32>> {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    (length.is_finite() && length > 0.0)
        .then(|| values.iter().map(|value| (f64::from(*value) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every distance in 64 bits, sorted.
    fn naive(rows: &[Vec<f32>], query: &[f32], count: usize, eligible: impl Fn(usize) -> bool) -> Vec<(usize, f64)> {
        let mut all: Vec<(usize, f64)> = rows
            .iter()
            .enumerate()
            .filter(|(row_idx, _)| eligible(*row_idx))
            .map(|(row_idx, row)| (row_idx, distance(query, row)))
            .collect();
        all.sort_by(|one, other| one.1.total_cmp(&other.1).then(one.0.cmp(&other.0)));
        all.truncate(count);
        all
    }

    fn table(rows: &[Vec<f32>]) -> VectorTable {
        let mut table = VectorTable::new(rows[0].len());
        for row in rows {
            assert!(table.push(row));
        }
        table
    }

    /// Vectors of length 1; `spread` small makes them nearly the same, so that 32 bits cannot order them.
    fn vectors(dimensions: usize, spread: f32) -> impl Strategy<Value = Vec<Vec<f32>>> {
        let vector = prop::collection::vec(-1.0_f32..1.0, dimensions).prop_map(move |noise| {
            let values: Vec<f32> =
                noise.iter().enumerate().map(|(idx, noise)| 1.0 + (idx % 7) as f32 + spread * noise).collect();
            normalised(&values).unwrap()
        });
        prop::collection::vec(vector, 2..60)
    }

    proptest! {
        #[test]
        fn the_search_is_exact_also_where_32_bits_cannot_tell(
            rows in prop_oneof![vectors(37, 20.0), vectors(64, 1e-4), vectors(300, 3e-6)],
            count in 1_usize..8,
            left_out in 0_usize..5,
        ) {
            let (query, rows) = rows.split_first().unwrap();
            let eligible = |row_idx: usize| row_idx % 5 != left_out;
            let found = table(rows).nearest(query, count, eligible, |one, other| one.cmp(&other));
            prop_assert_eq!(found, naive(rows, query, count, eligible));
        }

        #[test]
        fn sums_in_32_bits_stay_within_their_bound(
            pair in prop::collection::vec((-1.0_f32..1.0, -1.0_f32..1.0), 1..3000),
        ) {
            let (one, other): (Vec<f32>, Vec<f32>) = pair.into_iter().unzip();
            prop_assume!(normalised(&one).is_some() && normalised(&other).is_some());
            let (one, other) = (normalised(&one).unwrap(), normalised(&other).unwrap());
            let exact: f64 = one.iter().zip(&other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            prop_assert!((f64::from(dot(&one, &other)) - exact).abs() <= f64::from(dot_error(one.len())));
        }
    }

    #[test]
    fn several_threads_find_what_one_finds() {
        let rows: Vec<Vec<f32>> = (0..MIN_ROWS_FOR_THREADS * 2 + 3)
            .map(|row| normalised(&[(row as f32 * 0.7).sin(), (row as f32 * 1.3).cos(), 0.5]).unwrap())
            .collect();
        let query = normalised(&[0.3, -0.2, 0.9]).unwrap();
        assert_eq!(
            table(&rows).nearest(&query, 9, |_| true, |one, other| one.cmp(&other)),
            naive(&rows, &query, 9, |_| true)
        );
    }

    #[test]
    fn ties_are_in_the_given_order_and_all_of_them_compete() {
        let rows = vec![vec![1.0, 0.0]; 10];
        let found = table(&rows).nearest(&[0.0, 1.0], 3, |_| true, |one, other| other.cmp(&one));
        let indices: Vec<usize> = found.iter().map(|(row_idx, _)| *row_idx).collect();
        assert_eq!(indices, [9, 8, 7]);
        assert!((found[0].1 - 2.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn rows_can_be_taken_out_and_unfit_vectors_are_refused() {
        let mut table = table(&[vec![1.0, 0.0], vec![0.0, 1.0], vec![-1.0, 0.0]]);
        table.swap_remove(0);
        table.swap_remove(7);
        assert_eq!((table.len(), table.row(0), table.row(1)), (2, Some(&[-1.0, 0.0][..]), Some(&[0.0, 1.0][..])));
        assert!(!table.push(&[1.0]));
        assert!(table.nearest(&[1.0], 1, |_| true, |one, other| one.cmp(&other)).is_empty());
        table.swap_remove(1);
        table.swap_remove(0);
        assert!(table.is_empty());
        table.swap_remove(0);
        assert!(table.nearest(&[1.0, 0.0], 1, |_| true, |one, other| one.cmp(&other)).is_empty());
    }

    #[test]
    fn what_has_no_direction_is_not_normalised() {
        for values in [&[][..], &[0.0, 0.0], &[f32::NAN], &[f32::INFINITY, 1.0]] {
            assert_eq!(normalised(values), None);
        }
        assert_eq!(normalised(&[3.0, 4.0]), Some(vec![0.6, 0.8]));
        assert_eq!(normalised(&[1e-30, 0.0]), Some(vec![1.0, 0.0]));
    }
}
