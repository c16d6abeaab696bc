//! Lungs by a network that looks at slices, lungmask's R231 (Hofmanninger et al., Eur Radiol Exp 2020;4:50): what it takes
//! of a slice, and how its labels become the lungs of the volume.

use super::{
    Volume,
    morphology::{Components, SliceDistance, TooManyPieces, close, dilate, erode, fill_holes},
    segment::{BACKGROUND, LEFT_LUNG, LungLabels, RIGHT_LUNG, count_at_border},
};

/// Name and version of the way from slices to lungs, as results record it; to be raised with every change of what it finds.
pub const NETWORK_METHOD: &str = "hilum-lung-r231 1";

/// Hounsfield units that become 0 and 1.
const WINDOW_HU: (i16, i16) = (-1024, 600);
/// Side of the picture on which the body is looked for, in pixels.
const BODY_SIDE: usize = 128;
/// Denser than this is body.
const BODY_HU: i16 = -500;
/// Rim that is taken off before the largest object is chosen, and put back, in pixels of that picture.
const RIM_PIXELS: f64 = 2.0;

/// The part of a slice that the network sees, in pixels; behind the last ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyBox {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

/// One slice as the network takes it, `side` x `side` samples from 0 to 1, and which part of the slice it is: the body,
/// scaled to the square.
#[must_use]
pub fn lung_network_slice(volume: &Volume, slice: usize, side: usize) -> (Vec<f32>, BodyBox) {
    let [columns, rows, _] = volume.size;
    let hu = volume.slice(slice);
    let body = body_box(hu, columns, rows);
    let (low, high) = (f32::from(WINDOW_HU.0), f32::from(WINDOW_HU.1));
    let sample = |row: usize, column: usize| {
        let hu = hu.get(row * columns + column).copied().unwrap_or(WINDOW_HU.0);
        f32::from(hu.clamp(WINDOW_HU.0, WINDOW_HU.1))
    };
    let mut values = Vec::with_capacity(side * side);
    for y in 0..side {
        let (row, next_row, down) = between(y, side, body.top, body.bottom);
        for x in 0..side {
            let (column, next_column, across) = between(x, side, body.left, body.right);
            let above = sample(row, column) * (1.0 - across) + sample(row, next_column) * across;
            let below = sample(next_row, column) * (1.0 - across) + sample(next_row, next_column) * across;
            values.push((above * (1.0 - down) + below * down - low) / (high - low));
        }
    }
    (values, body)
}

/// Puts the labels of one slice (`side` x `side`) back into their place among `slice_labels`, by the nearest.
pub fn paste_lung_labels(labels: &[u8], side: usize, body: BodyBox, columns: usize, slice_labels: &mut [u8]) {
    for row in body.top..body.bottom {
        let y = nearest(row - body.top, body.bottom - body.top, side);
        for column in body.left..body.right {
            let x = nearest(column - body.left, body.right - body.left, side);
            if let (Some(target), Some(label)) =
                (slice_labels.get_mut(row * columns + column), labels.get(y * side + x))
            {
                *target = *label;
            }
        }
    }
}

/// The first and the last pixel of both grids lie upon each other: the pixel before the place of `position`, the next
/// one, and how far it lies towards that.
fn between(position: usize, side: usize, first: usize, end: usize) -> (usize, usize, f32) {
    let length = end - first;
    let place = position as f64 * (length - 1) as f64 / (side.max(2) - 1) as f64;
    let before = (place.floor() as usize).min(length - 1);
    (first + before, first + (before + 1).min(length - 1), place.fract() as f32)
}

fn nearest(position: usize, length: usize, side: usize) -> usize {
    let place = position as f64 * (side - 1) as f64 / (length.max(2) - 1) as f64;
    (place.round() as usize).min(side - 1)
}

/// Where the body lies; the whole slice where there is none.
fn body_box(hu: &[i16], columns: usize, rows: usize) -> BodyBox {
    let whole = BodyBox { left: 0, top: 0, right: columns, bottom: rows };
    let at = |pixel: usize, length: usize| pixel * length / BODY_SIDE;
    let mut mask: Vec<bool> = (0..BODY_SIDE * BODY_SIDE)
        .map(|pixel| {
            let (row, column) = (at(pixel / BODY_SIDE, rows), at(pixel % BODY_SIDE, columns));
            hu.get(row * columns + column).is_some_and(|hu| *hu > BODY_HU)
        })
        .collect();
    let size = [BODY_SIDE, BODY_SIDE];
    let mut distance = SliceDistance::new(BODY_SIDE, BODY_SIDE, [1.0, 1.0]);
    close(&mut mask, 1.0, &mut distance);
    // A picture this small has never too many pieces.
    let _ = fill_holes(&mut mask, size, usize::MAX, usize::MAX, &[]);
    erode(&mut mask, RIM_PIXELS, &mut distance);
    let objects = Components::of([BODY_SIDE, BODY_SIDE, 1], true, |_, row, line| {
        line.copy_from_slice(&mask[row * BODY_SIDE..(row + 1) * BODY_SIDE]);
    });
    let Ok(objects) = objects else { return whole };
    let Some(largest) = objects.largest() else { return whole };
    let mut body = vec![false; BODY_SIDE * BODY_SIDE];
    for (object, pixels) in objects.voxel_runs() {
        if object == largest {
            body[pixels].fill(true);
        }
    }
    dilate(&mut body, RIM_PIXELS, &mut distance);
    let is_in_row = |row: &usize| body[row * BODY_SIDE..(row + 1) * BODY_SIDE].contains(&true);
    let is_in_column = |column: &usize| (0..BODY_SIDE).any(|row| body[row * BODY_SIDE + column]);
    let (Some(top), Some(bottom), Some(left), Some(right)) = (
        (0..BODY_SIDE).find(is_in_row),
        (0..BODY_SIDE).rfind(is_in_row),
        (0..BODY_SIDE).find(is_in_column),
        (0..BODY_SIDE).rfind(is_in_column),
    ) else {
        return whole;
    };
    let found = BodyBox {
        left: at(left, columns),
        top: at(top, rows),
        right: at(right + 1, columns).max(at(left, columns) + 1),
        bottom: at(bottom + 1, rows).max(at(top, rows) + 1),
    };
    BodyBox { right: found.right.min(columns), bottom: found.bottom.min(rows), ..found }
}

/// The lungs of a volume from the labels of its slices: the largest piece of each lung stays, smaller ones go to the lung
/// that they touch or vanish, and what a lung encloses within a slice belongs to it.
///
/// # Errors
/// [`TooManyPieces`] when the labels are noise.
pub fn network_lungs(volume: &Volume, mut labels: Vec<u8>) -> Result<LungLabels, TooManyPieces> {
    for (lung, other) in [(RIGHT_LUNG, LEFT_LUNG), (LEFT_LUNG, RIGHT_LUNG)] {
        settle_pieces(volume, lung, other, &mut labels)?;
    }
    fill_slices(volume, &mut labels)?;
    let border_pixels = count_at_border(volume, &labels);
    Ok(LungLabels {
        labels,
        threshold_hu: None,
        airway_found: false,
        touching: false,
        border_pixels,
        dropped_voxels: 0,
    })
}

/// All pieces of `lung` but the largest become `other` where they touch it, else background.
fn settle_pieces(volume: &Volume, lung: u8, other: u8, labels: &mut [u8]) -> Result<(), TooManyPieces> {
    let [columns, rows, _] = volume.size;
    let pixels = volume.slice_pixels();
    let pieces = Components::of(volume.size, false, |slice, row, line| {
        for (is_lung, label) in line.iter_mut().zip(&labels[slice * pixels + row * columns..]) {
            *is_lung = *label == lung;
        }
    })?;
    let Some(largest) = pieces.largest() else { return Ok(()) };
    let mut touches = vec![false; pieces.voxels.len()];
    for (piece, voxels) in pieces.voxel_runs() {
        if piece == largest || touches[piece] {
            continue;
        }
        let is_other = |voxel: Option<usize>| voxel.and_then(|voxel| labels.get(voxel)) == Some(&other);
        let row = voxels.start / columns % rows.max(1);
        let start_of_row = voxels.start - voxels.start % columns;
        touches[piece] = (voxels.start > start_of_row && is_other(voxels.start.checked_sub(1)))
            || (voxels.end < start_of_row + columns && is_other(Some(voxels.end)))
            || voxels.clone().any(|voxel| {
                (row > 0 && is_other(voxel.checked_sub(columns)))
                    || (row + 1 < rows && is_other(Some(voxel + columns)))
                    || is_other(voxel.checked_sub(pixels))
                    || is_other(Some(voxel + pixels))
            });
    }
    for (piece, voxels) in pieces.voxel_runs() {
        if piece != largest {
            labels[voxels].fill(if touches[piece] { other } else { BACKGROUND });
        }
    }
    Ok(())
}

/// Fills what each lung encloses, slice by slice.
fn fill_slices(volume: &Volume, labels: &mut [u8]) -> Result<(), TooManyPieces> {
    let [columns, rows, _] = volume.size;
    for slice in labels.chunks_exact_mut(volume.slice_pixels().max(1)) {
        for lung in [RIGHT_LUNG, LEFT_LUNG] {
            let mut mask: Vec<bool> = slice.iter().map(|label| *label == lung).collect();
            if !mask.contains(&true) {
                continue;
            }
            fill_holes(&mut mask, [columns, rows], usize::MAX, usize::MAX, &[])?;
            for (label, is_lung) in slice.iter_mut().zip(mask) {
                if is_lung && *label == BACKGROUND {
                    *label = lung;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::phantom::{Phantom, dice},
        *,
    };

    fn small() -> (Volume, Vec<u8>) {
        Phantom { size: [90, 70, 40], spacing_mm: [4.0, 4.0, 8.0], ..Phantom::default() }.make()
    }

    #[test]
    fn a_slice_is_cut_to_the_body_and_scaled_between_its_pixels() {
        let (volume, _) = small();
        let (values, body) = lung_network_slice(&volume, 20, 64);
        assert_eq!(values.len(), 64 * 64);
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        // The trunk is 320 mm wide in an image of 360 mm, its table behind it is cut off or not.
        assert!((3..=7).contains(&body.left) && (83..=87).contains(&body.right), "{body:?}");
        // Air of -1000 HU in a corner of the box, tissue of 40 HU and lung of -850 HU somewhere.
        assert!((values[0] - 24.0 / 1624.0).abs() < 1e-3, "{}", values[0]);
        let near = |hu: f32| values.iter().any(|value| (value - (hu + 1024.0) / 1624.0).abs() < 0.02);
        assert!(near(40.0) && near(-850.0));

        let ramp = Volume { size: [3, 1, 1], spacing_mm: [1.0; 3], hu: vec![-1024, -800, -576] };
        let (values, body) = lung_network_slice(&ramp, 0, 5);
        assert_eq!(body, BodyBox { left: 0, top: 0, right: 3, bottom: 1 }, "without a body the whole slice");
        for (value, expected) in values.iter().zip([-1024.0, -912.0, -800.0, -688.0, -576.0]) {
            assert!((value - (expected + 1024.0) / 1624.0).abs() < 1e-6, "{values:?}");
        }
    }

    /// True labels at the network's grid, put back and finished, are the true lungs but for the coarser grid.
    #[test]
    fn labels_come_back_to_their_place() {
        let (volume, truth) = small();
        let [columns, rows, slices] = volume.size;
        let pixels = columns * rows;
        let side = 128;
        let mut labels = vec![BACKGROUND; volume.hu.len()];
        for slice in 0..slices {
            let (_, body) = lung_network_slice(&volume, slice, side);
            // What a perfect network would say: the nearest true label of each of its pixels.
            let said: Vec<u8> = (0..side * side)
                .map(|pixel| {
                    let place = |position: usize, first: usize, end: usize| {
                        first + (position * (end - first - 1) + (side - 1) / 2) / (side - 1)
                    };
                    let row = place(pixel / side, body.top, body.bottom);
                    let column = place(pixel % side, body.left, body.right);
                    let label = truth[slice * pixels + row * columns + column];
                    if label == RIGHT_LUNG || label == LEFT_LUNG { label } else { BACKGROUND }
                })
                .collect();
            paste_lung_labels(&said, side, body, columns, &mut labels[slice * pixels..(slice + 1) * pixels]);
        }
        let found = network_lungs(&volume, labels).unwrap();
        for lung in [RIGHT_LUNG, LEFT_LUNG] {
            let dice = dice(&found.labels, &truth, lung);
            assert!(dice > 0.99, "lung {lung}: Dice {dice}");
        }
        assert_eq!((found.threshold_hu, found.border_pixels), (None, 0));
    }

    #[test]
    fn islands_go_to_their_neighbour_and_holes_are_filled() {
        let volume = Volume { size: [12, 7, 1], spacing_mm: [1.0; 3], hu: vec![0; 84] };
        let picture = [
            "1111..222222", //
            "1..1..222222",
            "1..1..221122",
            "1111..222222",
            "......22...1",
            "............",
            "..11.......1",
        ];
        let labels = picture.iter().flat_map(|row| row.bytes().map(|byte| if byte == b'.' { 0 } else { byte - b'0' }));
        let found = network_lungs(&volume, labels.collect()).unwrap();
        let text: Vec<String> = found
            .labels
            .chunks(12)
            .map(|row| row.iter().map(|label| if *label == 0 { '.' } else { char::from(b'0' + label) }).collect())
            .collect();
        let expected = [
            "1111..222222", //
            "1111..222222",
            "1111..222222",
            "1111..222222",
            "......22...2",
            "............",
            "............",
        ];
        assert_eq!(text, expected);
    }
}
