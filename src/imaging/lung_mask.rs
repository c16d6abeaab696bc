//! The lungs of a radiograph as its run keeps them, brought back to the pixels of the image.

use base64::{Engine, engine::general_purpose::STANDARD};
use image::ImageFormat;

use crate::types::{LungMask, Placement};

/// A kept mask that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LungMaskError {
    /// Not the picture that it should be.
    #[error("the lung mask cannot be read: {0}; analyse the study again")]
    Unreadable(String),
    /// The picture has another size than the record says.
    #[error("the lung mask has {found} pixels and {expected} are expected; analyse the study again")]
    Size {
        /// Pixels that there are.
        found: usize,
        /// Pixels that the record names.
        expected: usize,
    },
    /// The placement cannot be one of an image on a canvas.
    #[error("the image does not lie on its canvas; analyse the study again")]
    Placement,
}

/// The label of each pixel of the source image ([`super::lungs::RIGHT_LUNG`], [`super::lungs::LEFT_LUNG`], else 0), row
/// after row: what the mask has where the centre of the pixel lies.
///
/// # Errors
/// [`LungMaskError`] when the record is damaged.
pub fn lungs_over_source(mask: &LungMask, placement: &Placement) -> Result<Vec<u8>, LungMaskError> {
    let unreadable = |error: &dyn std::fmt::Display| LungMaskError::Unreadable(error.to_string());
    let png = STANDARD.decode(&mask.png_base64).map_err(|error| unreadable(&error))?;
    let picture = image::load_from_memory_with_format(&png, ImageFormat::Png).map_err(|error| unreadable(&error))?;
    let labels = picture.into_luma8().into_raw();
    let side = mask.side_pixels as usize;
    if labels.len() != side * side || side == 0 {
        return Err(LungMaskError::Size { found: labels.len(), expected: side * side });
    }
    let rows = along(placement.source_rows, placement.pad_top, placement.side, mask.side_pixels)?;
    let columns = along(placement.source_columns, placement.pad_left, placement.side, mask.side_pixels)?;
    let of_row = |row: usize| {
        let line = labels.get(row * side..(row + 1) * side).unwrap_or_default();
        columns.iter().map(|column| line.get(*column).copied().unwrap_or_default())
    };
    Ok(rows.iter().flat_map(|row| of_row(*row)).collect())
}

/// For each pixel of the source along one axis the pixel of the mask that its centre lies in.
fn along(source: u32, pad: u32, canvas: u32, mask: u32) -> Result<Vec<usize>, LungMaskError> {
    let end = source.checked_add(pad).filter(|end| source > 0 && *end <= canvas).ok_or(LungMaskError::Placement)?;
    let (canvas, mask) = (u64::from(canvas), u64::from(mask));
    // The centre lies half a pixel on, so everything is counted in halves.
    Ok((pad..end).map(|at| ((2 * u64::from(at) + 1) * mask / (2 * canvas)) as usize).collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::imaging::{
        Plane, canvas,
        lungs::{LEFT_LUNG, Lungs, RIGHT_LUNG},
    };

    /// A lung of the image, in shares of its width and height: first and last column, first and last row.
    const RIGHT: [f64; 4] = [0.1, 0.4, 0.2, 0.8];
    const LEFT: [f64; 4] = [0.6, 0.9, 0.25, 0.85];

    fn is_in([from_x, to_x, from_y, to_y]: [f64; 4], x: f64, y: f64) -> bool {
        (from_x..to_x).contains(&x) && (from_y..to_y).contains(&y)
    }

    /// What the pipeline keeps of an image of this size whose segmenter finds these two lungs.
    fn kept(rows: usize, columns: usize, side: usize) -> (LungMask, Placement) {
        let placement = canvas::placement(rows, columns);
        let mut probabilities = Plane::filled(side, side, 0.0);
        for (pixel, value) in probabilities.values.iter_mut().enumerate() {
            let on_canvas = |at: usize| (at as f64 + 0.5) / side as f64 * f64::from(placement.side);
            let x = (on_canvas(pixel % side) - f64::from(placement.pad_left)) / columns as f64;
            let y = (on_canvas(pixel / side) - f64::from(placement.pad_top)) / rows as f64;
            *value = f32::from(u8::from(is_in(RIGHT, x, y) || is_in(LEFT, x, y)));
        }
        let lungs = Lungs::from_probabilities(&probabilities, &placement);
        let mask = LungMask {
            side_pixels: side as u32,
            png_base64: STANDARD.encode(lungs.to_png()),
            area_fraction: lungs.measurements.area_fraction,
        };
        (mask, placement)
    }

    /// Padding at the sides, above and below, none, and odd; masks coarser and finer than the image.
    #[rstest]
    #[case::portrait(700, 500, 256)]
    #[case::landscape(500, 701, 256)]
    #[case::square(600, 600, 512)]
    #[case::smaller_than_the_mask(130, 97, 512)]
    #[case::as_large_as_the_mask(512, 512, 512)]
    fn every_pixel_has_the_label_of_where_it_lies(#[case] rows: usize, #[case] columns: usize, #[case] side: usize) {
        let (mask, placement) = kept(rows, columns, side);
        let found = lungs_over_source(&mask, &placement).unwrap();
        assert_eq!(found.len(), rows * columns);
        // A pixel of the mask, in pixels of the image.
        let cell = f64::from(placement.side) / side as f64;
        let mut counts = [0_usize; 3];
        for (pixel, label) in found.iter().enumerate() {
            counts[usize::from(*label)] += 1;
            let (x, y) = ((pixel % columns) as f64 + 0.5, (pixel / columns) as f64 + 0.5);
            let expected = |dx: f64, dy: f64| {
                let (x, y) = ((x + dx) / columns as f64, (y + dy) / rows as f64);
                if is_in(RIGHT, x, y) {
                    RIGHT_LUNG
                } else if is_in(LEFT, x, y) {
                    LEFT_LUNG
                } else {
                    0
                }
            };
            // Within a pixel of the mask from an edge either is right.
            let reach = cell.max(1.0);
            let near = [-reach, 0.0, reach].map(|dy| [-reach, 0.0, reach].map(|dx| expected(dx, dy)));
            let may_be = near.as_flattened();
            assert!(may_be.contains(label), "pixel {x} {y} is {label}");
        }
        // No lung is shifted: both have the share of the image that they were drawn with.
        for (label, [from_x, to_x, from_y, to_y]) in [(RIGHT_LUNG, RIGHT), (LEFT_LUNG, LEFT)] {
            let share = counts[usize::from(label)] as f64 / found.len() as f64;
            let drawn = (to_x - from_x) * (to_y - from_y);
            assert!((share - drawn).abs() < 0.01, "{share} of the image and not {drawn}");
        }
    }

    #[test]
    fn the_pixels_of_the_mask_are_found_at_centres() {
        // Four pixels, one before and one after them, on a mask of three.
        assert_eq!(along(4, 1, 6, 3).unwrap(), [0, 1, 1, 2]);
        assert_eq!(along(2, 0, 2, 4).unwrap(), [1, 3]);
        assert_eq!(along(3, 0, 3, 3).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn damaged_records_are_told() {
        let (mask, placement) = kept(40, 32, 64);
        let with = |mask: &LungMask, placement: &Placement| lungs_over_source(mask, placement).unwrap_err();
        let other = LungMask { side_pixels: 63, ..mask.clone() };
        assert_eq!(with(&other, &placement), LungMaskError::Size { found: 64 * 64, expected: 63 * 63 });
        let other = LungMask { png_base64: String::new(), ..mask.clone() };
        assert!(matches!(with(&other, &placement), LungMaskError::Unreadable(_)));
        assert_eq!(with(&mask, &Placement { pad_left: 9, ..placement }), LungMaskError::Placement);
        assert_eq!(with(&mask, &Placement { source_rows: 0, ..placement }), LungMaskError::Placement);
    }
}
