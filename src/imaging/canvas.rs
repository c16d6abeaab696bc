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

/// Three planes of the same size, one after the other: the input of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane3 {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `3 * rows * columns` values, channel by channel, row by row.
    pub values: Vec<f32>,
}

/// What the third channel of a classifier's input holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskMode {
    /// Grey in all three channels.
    None,
    /// Grey, grey, lung mask.
    Channel3,
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
    /// Two planes that belong together differ in size.
    #[error("planes of {first_rows} x {first_columns} and {second_rows} x {second_columns} do not belong together")]
    Mismatch {
        /// Rows of the first.
        first_rows: usize,
        /// Columns of the first.
        first_columns: usize,
        /// Rows of the second.
        second_rows: usize,
        /// Columns of the second.
        second_columns: usize,
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

    fn check(&self) -> Result<(), PlaneError> {
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
    resample(plane, rows, columns, ResizeAlg::Convolution(FilterType::Bilinear))
}

/// Resamples by taking the nearest pixel: for masks.
///
/// # Errors
/// As [`resize`].
pub fn resize_nearest(plane: &Plane, rows: usize, columns: usize) -> Result<Plane, PlaneError> {
    resample(plane, rows, columns, ResizeAlg::Nearest)
}

fn resample(plane: &Plane, rows: usize, columns: usize, algorithm: ResizeAlg) -> Result<Plane, PlaneError> {
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
    let options = ResizeOptions::new().resize_alg(algorithm);
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| failed(&error))?;
    let values = target
        .buffer()
        .chunks_exact(4)
        .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    Ok(Plane { rows, columns, values })
}

/// Grey (0 to 1) and mask (0 or 1) as the three normalised channels `(value - mean) / std` of a classifier.
///
/// # Errors
/// [`PlaneError`] when a plane is empty or the two differ in size.
pub fn compose_channels(
    grey: &Plane,
    mask: &Plane,
    mask_mode: MaskMode,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<Plane3, PlaneError> {
    grey.check()?;
    if mask_mode == MaskMode::Channel3 {
        mask.check()?;
        if (grey.rows, grey.columns) != (mask.rows, mask.columns) {
            return Err(PlaneError::Mismatch {
                first_rows: grey.rows,
                first_columns: grey.columns,
                second_rows: mask.rows,
                second_columns: mask.columns,
            });
        }
    }
    let third = if mask_mode == MaskMode::Channel3 { mask } else { grey };
    let values = [grey, grey, third]
        .into_iter()
        .zip(mean.into_iter().zip(std))
        .flat_map(|(plane, (mean, std))| plane.values.iter().map(move |value| (value - mean) / std))
        .collect();
    Ok(Plane3 { rows: grey.rows, columns: grey.columns, values })
}
