//! Planes of grey values and what is done to them on the way to a network.

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::Image};

use crate::types::Placement;

/// A row-major plane of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `rows * columns` values, row by row.
    pub values: Vec<f32>,
}

/// Planes of the same size, one after the other: the input of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct Planes {
    /// Number of planes.
    pub channels: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `channels * rows * columns` values, channel by channel, row by row.
    pub values: Vec<f32>,
}

/// A plane that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// Dimensions and values do not agree, or there are no pixels.
    #[error("a plane of {rows} x {columns} with {values} values is not a picture")]
    Shape {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Number of values.
        values: usize,
    },
    /// The resampler refused.
    #[error("the plane cannot be resampled: {0}")]
    Resample(String),
}

impl Plane {
    /// A plane of one value.
    #[must_use]
    pub fn filled(rows: usize, columns: usize, value: f32) -> Self {
        Self { rows, columns, values: vec![value; rows * columns] }
    }

    /// Smallest and largest finite value; `None` when there is none.
    #[must_use]
    pub fn range(&self) -> Option<(f32, f32)> {
        let finite = self.values.iter().copied().filter(|value| value.is_finite());
        let (low, high) =
            finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        (low <= high).then_some((low, high))
    }

    pub(super) fn check(&self) -> Result<(), PlaneError> {
        let (rows, columns, values) = (self.rows, self.columns, self.values.len());
        if rows == 0 || columns == 0 || rows.checked_mul(columns) != Some(values) {
            return Err(PlaneError::Shape { rows, columns, values });
        }
        Ok(())
    }
}

/// The values at the `low` and `high` percentiles (0 to 100, linear interpolation between ranks, as numpy does).
/// Values that are not finite do not count; `None` when nothing is left.
#[must_use]
pub fn percentiles(plane: &Plane, low: f64, high: f64) -> Option<(f32, f32)> {
    let mut finite: Vec<f32> = plane.values.iter().copied().filter(|value| value.is_finite()).collect();
    let last = finite.len().checked_sub(1)?;
    let mut at = |percent: f64| {
        let rank = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
        let (below, share) = (rank.floor() as usize, rank.fract());
        let (_, &mut lower, above) = finite.select_nth_unstable_by(below.min(last), f32::total_cmp);
        let upper = above.iter().copied().min_by(f32::total_cmp).unwrap_or(lower);
        (f64::from(lower) + (f64::from(upper) - f64::from(lower)) * share) as f32
    };
    Some((at(low), at(high)))
}

/// Maps the `low` percentile to 0 and the `high` one to 1, and clamps. A plane without contrast becomes all 0.
#[must_use]
pub fn percentile_scale(plane: &Plane, low: f64, high: f64) -> Plane {
    let (black, white) = percentiles(plane, low, high).unwrap_or((0.0, 0.0));
    let span = f64::from(white) - f64::from(black);
    let scale = |value: f32| {
        if span > 0.0 && value.is_finite() {
            ((f64::from(value) - f64::from(black)) / span).clamp(0.0, 1.0) as f32
        } else {
            0.0
        }
    };
    Plane { rows: plane.rows, columns: plane.columns, values: plane.values.iter().map(|&value| scale(value)).collect() }
}

/// How an image of `rows` by `columns` lies in the middle of its square canvas; odd padding is larger below and at
/// the right.
#[must_use]
pub fn placement(rows: usize, columns: usize) -> Placement {
    let side = rows.max(columns);
    Placement {
        source_rows: rows as u32,
        source_columns: columns as u32,
        side: side as u32,
        pad_top: ((side - rows) / 2) as u32,
        pad_left: ((side - columns) / 2) as u32,
    }
}

/// Puts the plane in the middle of a black (0) square: chests are never stretched.
///
/// # Errors
/// [`PlaneError::Shape`] for a plane without pixels.
pub fn pad_to_square(plane: &Plane) -> Result<(Plane, Placement), PlaneError> {
    plane.check()?;
    let placement = placement(plane.rows, plane.columns);
    let side = placement.side as usize;
    let (top, left) = (placement.pad_top as usize, placement.pad_left as usize);
    let mut canvas = Plane::filled(side, side, 0.0);
    for (row, values) in plane.values.chunks_exact(plane.columns).enumerate() {
        let start = (row + top) * side + left;
        canvas.values[start..start + plane.columns].copy_from_slice(values);
    }
    Ok((canvas, placement))
}

/// Resamples with the triangle filter, widened when shrinking: bilinear with antialiasing, as PIL's `BILINEAR` and
/// torchvision's `antialias=True` do. Values of a 0 to 1 plane stay in 0 to 1.
///
/// # Errors
/// [`PlaneError`] for an empty plane or target.
pub fn resize(plane: &Plane, rows: usize, columns: usize) -> Result<Plane, PlaneError> {
    plane.check()?;
    let to_u32 = |length: usize| u32::try_from(length).map_err(|error| PlaneError::Resample(error.to_string()));
    let failed = |error: &dyn std::fmt::Display| PlaneError::Resample(error.to_string());
    if rows == 0 || columns == 0 {
        return Err(PlaneError::Shape { rows, columns, values: 0 });
    }
    let bytes = plane.values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let source = Image::from_vec_u8(to_u32(plane.columns)?, to_u32(plane.rows)?, bytes, PixelType::F32)
        .map_err(|error| failed(&error))?;
    let mut target = Image::new(to_u32(columns)?, to_u32(rows)?, PixelType::F32);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| failed(&error))?;
    let values = target
        .buffer()
        .chunks_exact(4)
        .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    Ok(Plane { rows, columns, values })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plane(rows: usize, columns: usize, values: &[f32]) -> Plane {
        Plane { rows, columns, values: values.to_vec() }
    }

    fn assert_close(values: &[f32], expected: &[f32]) {
        assert_eq!(values.len(), expected.len());
        for (value, expected) in values.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{values:?} is not {expected}");
        }
    }

    #[test]
    fn percentiles_interpolate_between_ranks() {
        let ramp: Vec<f32> = (0..=200).map(|value| value as f32).rev().collect();
        let (low, high) = percentiles(&plane(1, 201, &ramp), 0.5, 99.25).unwrap();
        assert_close(&[low, high], &[1.0, 198.5]);
        assert_eq!(percentiles(&plane(1, 1, &[f32::NAN]), 0.5, 99.5), None);
    }

    #[test]
    fn scaling_clamps_and_survives_flat_images() {
        let ramp: Vec<f32> = (0..=200).map(|value| value as f32).collect();
        let scaled = percentile_scale(&plane(1, 201, &ramp), 0.5, 99.5);
        assert_close(&[scaled.values[0], scaled.values[1], scaled.values[100]], &[0.0, 0.0, 0.5]);
        assert_close(&[scaled.values[199], scaled.values[200]], &[1.0, 1.0]);
        assert_eq!(percentile_scale(&plane(1, 3, &[5.0; 3]), 0.5, 99.5).values, [0.0; 3]);
    }

    #[test]
    fn padding_centres_and_says_where() {
        let (canvas, placement) = pad_to_square(&plane(2, 5, &[1.0; 10])).unwrap();
        assert_eq!((canvas.rows, canvas.columns), (5, 5));
        assert_eq!(placement, Placement { source_rows: 2, source_columns: 5, side: 5, pad_top: 1, pad_left: 0 });
        let sums: Vec<f32> = canvas.values.chunks(5).map(|row| row.iter().sum()).collect();
        assert_eq!(sums, [0.0, 5.0, 5.0, 0.0, 0.0]);
        assert!(pad_to_square(&plane(0, 5, &[])).is_err());
        assert!(pad_to_square(&plane(2, 2, &[1.0; 3])).is_err());
    }

    /// The triangle filter by its definition: support and scale widened by the ratio when shrinking, weights at pixel
    /// centres, normalised.
    fn triangle_1d(values: &[f32], target: usize) -> Vec<f32> {
        let ratio = values.len() as f64 / target as f64;
        let scale = ratio.max(1.0);
        (0..target)
            .map(|index| {
                let centre = (index as f64 + 0.5) * ratio;
                let weight = |at: usize| (1.0 - ((at as f64 + 0.5 - centre) / scale).abs()).max(0.0);
                let total: f64 = (0..values.len()).map(weight).sum();
                let sum: f64 = values.iter().enumerate().map(|(at, &value)| weight(at) * f64::from(value)).sum();
                (sum / total) as f32
            })
            .collect()
    }

    /// Computed by hand from PIL's definition, independent of any implementation.
    #[test]
    fn shrinking_antialiases_as_pil_does() {
        // 4 to 2: centres at 1 and 3, support 2. Weights at distance 0.5: 0.75, at 1.5: 0.25; inside, normalised
        // over the three or four pixels within reach.
        let shrunk = resize(&plane(1, 4, &[0.0, 1.0, 2.0, 3.0]), 1, 2).unwrap();
        let left = (0.75 * 0.0 + 0.75 * 1.0 + 0.25 * 2.0) / 1.75;
        let right = (0.25 * 1.0 + 0.75 * 2.0 + 0.75 * 3.0) / 1.75;
        assert_close(&shrunk.values, &[left, right]);
        // 2 to 4: half-pixel centres, clamped at the edges.
        let grown = resize(&plane(1, 2, &[0.0, 1.0]), 1, 4).unwrap();
        assert_close(&grown.values, &[0.0, 0.25, 0.75, 1.0]);
        let impulse = resize(&plane(4, 4, &[0., 0., 0., 0., 0., 16., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.]), 2, 2);
        let (near, far) = (0.75_f32 / 1.75, 0.25_f32 / 1.75);
        assert_close(&impulse.unwrap().values, &[near * near, near * far, far * near, far * far].map(|w| w * 16.0));
    }

    proptest! {
        #[test]
        fn resampling_equals_the_definition(
            values in proptest::collection::vec(0.0_f32..1.0, 1..60),
            target in 1_usize..60,
        ) {
            let resized = resize(&plane(1, values.len(), &values), 1, target).unwrap();
            for (value, expected) in resized.values.iter().zip(triangle_1d(&values, target)) {
                prop_assert!((value - expected).abs() < 1e-4, "{value} is not {expected}");
            }
        }
    }
}
