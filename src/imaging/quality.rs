//! What a radiograph's grey values tell of its quality, on a reduced picture: the measurements that the quality gates
//! judge by (`docs/gates.md`).
//!
//! The networks see a few hundred pixels in each direction, so that what cannot be seen on [`REDUCED_SIDE`] pixels does
//! not reach them either.

use super::{Plane, PlaneError, canvas};

/// Longest side of the reduced picture in pixels; smaller pictures are not enlarged.
pub const REDUCED_SIDE: usize = 256;

/// Grey levels of the histogram.
const GREY_LEVELS: usize = 256;
/// A row or column is empty border when this share of it ...
const BORDER_SHARE: f64 = 0.97;
/// ... differs by no more than this from its median: markers and noise are allowed for.
const BORDER_TOLERANCE: f32 = 0.03;
/// What remains within the border has at least so many rows and columns.
const LEAST_INNER_SIDE: usize = 8;
/// Grey values this close to 0 or 1 are black or white: half a level of 256.
const END_TOLERANCE: f32 = 0.002;

/// What was measured on a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureMeasurements {
    /// Columns divided by rows.
    pub aspect_ratio: f64,
    /// Share of black pixels, 0 to 1; 0.005 are black by the scaling alone when the darkest half percent is cut off.
    pub black_share: f64,
    /// Share of white pixels, 0 to 1.
    pub white_share: f64,
    /// Share of the picture that is empty border on its four sides (collimation, padding), 0 to 1.
    pub border_share: f64,
    /// Shannon entropy of the grey values within the border, on 256 levels: 0 (one level) to 8 bits.
    pub entropy_bits: f64,
    /// Variance of the Laplacian (4 neighbours) divided by the variance of the grey values, within the border: near 0
    /// when nothing is sharp, about 20 for noise (after Pech-Pacheco et al., ICPR 2000, made independent of contrast).
    pub sharpness: f64,
    /// How much brighter the middle of the picture is than what is beside it: mediastinum minus lungs, plus middle minus
    /// both edges, -2 to 2. Frontal chests are positive, their negatives negative, whatever the exposure.
    pub polarity: f64,
}

impl PictureMeasurements {
    /// Measures a picture whose grey values were scaled to 0 to 1, larger is brighter.
    ///
    /// # Errors
    /// [`PlaneError`] for a plane without pixels.
    pub fn of(scaled: &Plane) -> Result<Self, PlaneError> {
        let reduced = reduce(scaled)?;
        let n_pixels = reduced.values.len().max(1) as f64;
        let share = |is_counted: fn(f32) -> bool| {
            reduced.values.iter().filter(|value| is_counted(**value)).count() as f64 / n_pixels
        };
        let inner = within_border(&reduced);
        Ok(Self {
            aspect_ratio: scaled.columns as f64 / scaled.rows.max(1) as f64,
            black_share: share(|value| value <= END_TOLERANCE),
            white_share: share(|value| value >= 1.0 - END_TOLERANCE),
            border_share: 1.0 - inner.values.len() as f64 / n_pixels,
            entropy_bits: entropy_bits(&inner),
            sharpness: sharpness(&inner),
            polarity: polarity(&inner),
        })
    }
}

fn reduce(scaled: &Plane) -> Result<Plane, PlaneError> {
    let longest = scaled.rows.max(scaled.columns);
    if longest <= REDUCED_SIDE {
        scaled.check()?;
        return Ok(scaled.clone());
    }
    let side = |length: usize| ((length * REDUCED_SIDE) as f64 / longest as f64).round().max(1.0) as usize;
    canvas::resize(scaled, side(scaled.rows), side(scaled.columns))
}

/// The picture without its empty border.
fn within_border(picture: &Plane) -> Plane {
    let pixel = |row: usize, column: usize| picture.values[row * picture.columns + column];
    let (mut top, mut bottom, mut left, mut right) = (0, picture.rows, 0, picture.columns);
    let row_is_empty = |row: usize| is_empty((0..picture.columns).map(|column| pixel(row, column)));
    while bottom - top > LEAST_INNER_SIDE && row_is_empty(top) {
        top += 1;
    }
    while bottom - top > LEAST_INNER_SIDE && row_is_empty(bottom - 1) {
        bottom -= 1;
    }
    let column_is_empty =
        |column: usize, (top, bottom): (usize, usize)| is_empty((top..bottom).map(|row| pixel(row, column)));
    while right - left > LEAST_INNER_SIDE && column_is_empty(left, (top, bottom)) {
        left += 1;
    }
    while right - left > LEAST_INNER_SIDE && column_is_empty(right - 1, (top, bottom)) {
        right -= 1;
    }
    let values = (top..bottom).flat_map(|row| (left..right).map(move |column| pixel(row, column))).collect();
    Plane { rows: bottom - top, columns: right - left, values }
}

fn is_empty(line: impl Iterator<Item = f32>) -> bool {
    let mut values: Vec<f32> = line.collect();
    let middle = values.len() / 2;
    if values.is_empty() {
        return true;
    }
    let (_, &mut median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    let alike = values.iter().filter(|value| (**value - median).abs() <= BORDER_TOLERANCE).count();
    alike as f64 >= BORDER_SHARE * values.len() as f64
}

fn entropy_bits(picture: &Plane) -> f64 {
    let mut histogram = [0_u32; GREY_LEVELS];
    for value in &picture.values {
        let level = (value.clamp(0.0, 1.0) * (GREY_LEVELS - 1) as f32) as usize;
        histogram[level.min(GREY_LEVELS - 1)] += 1;
    }
    let n_pixels = picture.values.len().max(1) as f64;
    let shares = histogram.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / n_pixels);
    shares.map(|share| -share * share.log2()).sum::<f64>().max(0.0)
}

fn variance(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
    values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n
}

fn sharpness(picture: &Plane) -> f64 {
    let columns = picture.columns;
    let mut laplacian = Vec::with_capacity(picture.values.len());
    for rows in picture.values.chunks_exact(columns.max(1)).collect::<Vec<_>>().windows(3) {
        let [above, row, below] = rows else { continue };
        for column in 1..columns.saturating_sub(1) {
            let around = above[column] + below[column] + row[column - 1] + row[column + 1];
            laplacian.push(around - 4.0 * row[column]);
        }
    }
    let contrast = variance(&picture.values);
    if contrast > 0.0 { variance(&laplacian) / contrast } else { 0.0 }
}

/// A box of a picture in shares of its height and width: top, bottom, left, right.
type Region = [f64; 4];

/// Between the lungs of a frontal chest.
const MEDIASTINUM: Region = [0.30, 0.70, 0.43, 0.57];
const LUNGS: [Region; 2] = [[0.25, 0.65, 0.15, 0.38], [0.25, 0.65, 0.62, 0.85]];
/// The spine and what is before it.
const MIDDLE: Region = [0.20, 0.90, 0.42, 0.58];
/// Beside the patient.
const EDGES: [Region; 2] = [[0.05, 0.95, 0.0, 0.06], [0.05, 0.95, 0.94, 1.0]];

fn polarity(picture: &Plane) -> f64 {
    let beside = |regions: &[Region; 2]| regions.iter().map(|region| mean_of(picture, region)).sum::<f64>() / 2.0;
    mean_of(picture, &MEDIASTINUM) - beside(&LUNGS) + mean_of(picture, &MIDDLE) - beside(&EDGES)
}

fn mean_of(picture: &Plane, [top, bottom, left, right]: &Region) -> f64 {
    let first = |share: f64, length: usize| ((share * length as f64) as usize).min(length.saturating_sub(1));
    let past = |share: f64, length: usize, first: usize| ((share * length as f64) as usize).clamp(first + 1, length);
    if picture.values.is_empty() {
        return 0.0;
    }
    let (top, left) = (first(*top, picture.rows), first(*left, picture.columns));
    let (bottom, right) = (past(*bottom, picture.rows, top), past(*right, picture.columns, left));
    let rows = picture.values.chunks_exact(picture.columns).skip(top).take(bottom - top);
    let sum: f64 = rows.flat_map(|row| &row[left..right]).map(|value| f64::from(*value)).sum();
    sum / ((bottom - top) * (right - left)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::testing::chest_plane;

    fn measured(plane: &Plane) -> PictureMeasurements {
        PictureMeasurements::of(plane).unwrap()
    }

    fn changed(plane: &Plane, change: impl Fn(usize, usize, f32) -> f32) -> Plane {
        let columns = plane.columns;
        let values = plane.values.iter().enumerate();
        Plane { values: values.map(|(idx, value)| change(idx / columns, idx % columns, *value)).collect(), ..*plane }
    }

    #[test]
    fn a_chest_is_sharp_bright_in_the_middle_and_without_a_border() {
        let found = measured(&chest_plane(240, 200));
        assert!((found.aspect_ratio - 200.0 / 240.0).abs() < 1e-9);
        assert!(found.border_share < 0.01 && found.black_share < 0.1 && found.white_share < 0.05, "{found:?}");
        assert!(found.entropy_bits > 6.0, "{found:?}");
        assert!((0.005..0.3).contains(&found.sharpness), "{found:?}");
        assert!(found.polarity > 0.3, "{found:?}");
    }

    #[test]
    fn a_negative_has_the_opposite_polarity_and_all_else_alike() {
        let chest = chest_plane(300, 300);
        let (one, other) = (measured(&chest), measured(&changed(&chest, |_, _, value| 1.0 - value)));
        assert!((one.polarity + other.polarity).abs() < 1e-6, "{one:?} {other:?}");
        assert!((one.sharpness - other.sharpness).abs() < 1e-4);
    }

    #[test]
    fn the_border_is_cut_off_with_its_markers() {
        let chest = chest_plane(200, 200);
        let collimated = changed(&chest, |row, column, value| match (row, column) {
            // A marker of 4 by 4 pixels in the border.
            (10..14, 20..24) => 1.0,
            (0..50, _) | (_, 0..40) => 0.0,
            _ => value,
        });
        let found = measured(&collimated);
        let expected = 1.0 - 150.0 * 160.0 / (200.0 * 200.0);
        assert!((found.border_share - expected).abs() < 0.02, "{found:?}");
        assert!(found.black_share > 0.35, "{found:?}");
    }

    #[test]
    fn blank_noise_and_blur_are_told_by_their_numbers() {
        let blank = measured(&Plane::filled(300, 300, 0.0));
        assert_eq!((blank.entropy_bits, blank.sharpness, blank.polarity), (0.0, 0.0, 0.0));
        assert!(blank.border_share > 0.99);

        let mut state = 1_u32;
        let noise = changed(&Plane::filled(256, 256, 0.0), |_, _, _| 0.0);
        let noise = Plane {
            values: noise
                .values
                .iter()
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 24) as f32
                })
                .collect(),
            ..noise
        };
        // Var(-4x + four neighbours) of independent pixels is 20 times that of one.
        assert!((measured(&noise).sharpness - 20.0).abs() < 1.0, "{:?}", measured(&noise));

        let chest = chest_plane(150, 150);
        let blurred = canvas::resize(&canvas::resize(&chest, 12, 12).unwrap(), 150, 150).unwrap();
        assert!(measured(&blurred).sharpness < measured(&chest).sharpness / 10.0, "{:?}", measured(&blurred));
    }

    #[test]
    fn the_smallest_pictures_are_measured_and_empty_ones_refused() {
        for (rows, columns) in [(1, 1), (1, 7), (9, 1), (3, 3)] {
            let found = measured(&Plane::filled(rows, columns, 0.5));
            assert!(found.sharpness.is_finite() && found.polarity.abs() < 1e-9, "{rows} x {columns}: {found:?}");
        }
        assert!(PictureMeasurements::of(&Plane { rows: 0, columns: 0, values: Vec::new() }).is_err());
    }
}
