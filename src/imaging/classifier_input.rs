//! From a picture and its lungs to the channels that a classifier takes.

use super::{
    Plane, PlaneError, Planes, canvas,
    equalise::{Equalisation, equalise},
    lungs::{BACKGROUND, Lungs},
};
pub use crate::types::Frame;
use crate::types::Placement;

/// How a picture becomes a classifier's input, in the order in which it happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Contrast equalisation.
    pub equalisation: Equalisation,
    /// Share of the rows that is cut off at the top, 0 to 0.5.
    pub top_crop_fraction: f64,
    /// What the lung mask does.
    pub mask_mode: MaskMode,
    /// Margin around the lungs with [`MaskMode::Crop`], as a share of their box's longer side.
    pub crop_margin_fraction: f64,
    /// How the picture becomes a square.
    pub resize: ResizeMode,
    /// Side of the square in pixels.
    pub side_pixels: usize,
    /// Whether the grey values are first made relative to the picture's own mean and standard deviation.
    pub z_score: bool,
    /// What 0 and 1 of the grey values become before `mean` and `std`.
    pub range: Option<[f32; 2]>,
    /// Subtracted from each channel.
    pub mean: [f32; 3],
    /// Divides each channel; above 0.
    pub std: [f32; 3],
    /// Whether the network takes the channels in the reverse order.
    pub reverse_channels: bool,
    /// Whether the network takes the first channel only.
    pub single_channel: bool,
}

/// What the lung mask does to a classifier's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskMode {
    /// Grey in all three channels.
    None,
    /// Grey, grey, lung mask.
    Channel3,
    /// Grey outside the lungs is halved.
    Overlay,
    /// Grey outside the lungs is black.
    Multiply,
    /// The picture is cut to the lungs' box.
    Crop,
}

/// How a picture becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeMode {
    /// Black at the shorter sides.
    Pad,
    /// The middle square.
    Crop,
    /// Both sides scaled to fit.
    Stretch,
}

/// Makes the channels of one classifier from the `canvas` (0 to 1, the picture in a black square, in source pixels) and
/// its lungs, and says which part of the canvas they show.
///
/// # Errors
/// [`PlaneError`] when canvas and placement contradict each other or a picture is empty.
pub fn compose(
    canvas: &Plane,
    placement: &Placement,
    lungs: &Lungs,
    recipe: &Recipe,
) -> Result<(Planes, Frame), PlaneError> {
    let picture = Rectangle {
        left: i64::from(placement.pad_left),
        top: i64::from(placement.pad_top),
        width: i64::from(placement.source_columns),
        height: i64::from(placement.source_rows),
    };
    let equalised;
    let canvas = if recipe.equalisation == Equalisation::None {
        canvas
    } else {
        let equal = equalise(&picture.cut(canvas)?, recipe.equalisation);
        equalised = Rectangle { left: -picture.left, top: -picture.top, ..Rectangle::of(canvas) }.cut(&equal)?;
        &equalised
    };

    let cut_rows = (picture.height as f64 * recipe.top_crop_fraction).round() as i64;
    let below_top = Rectangle { top: picture.top + cut_rows, height: (picture.height - cut_rows).max(1), ..picture };
    let wanted = match recipe.mask_mode {
        MaskMode::Crop => below_top.around_lungs(lungs, canvas.rows, recipe.crop_margin_fraction),
        MaskMode::None | MaskMode::Channel3 | MaskMode::Overlay | MaskMode::Multiply => below_top,
    };
    let seen = match recipe.resize {
        ResizeMode::Pad => wanted.square(wanted.width.max(wanted.height)),
        ResizeMode::Crop => wanted.square(wanted.width.min(wanted.height)),
        ResizeMode::Stretch => wanted,
    };
    let side = recipe.side_pixels;
    // Rows that were cut off above must not come back as padding.
    let grey = canvas::resize(&seen.cut_within(canvas, &wanted)?, side, side)?;
    let frame = seen.frame(canvas.columns, canvas.rows);
    let mask = lung_mask(lungs, frame, side);

    let masked = |outside: f32| -> Vec<f32> {
        grey.values.iter().zip(&mask).map(|(grey, mask)| grey * (outside + (1.0 - outside) * mask)).collect()
    };
    let grey = match recipe.mask_mode {
        MaskMode::Overlay => masked(0.5),
        MaskMode::Multiply => masked(0.0),
        MaskMode::None | MaskMode::Crop | MaskMode::Channel3 => grey.values,
    };
    let grey = if recipe.z_score { z_scored(&grey) } else { grey };
    let grey = spread(grey, recipe.range);
    let third = if recipe.mask_mode == MaskMode::Channel3 { &mask } else { &grey };
    let mut channels: Vec<(&Vec<f32>, f32, f32)> = [&grey, &grey, third]
        .into_iter()
        .zip(recipe.mean.into_iter().zip(recipe.std))
        .map(|(channel, (mean, std))| (channel, mean, std))
        .collect();
    if recipe.reverse_channels {
        channels.reverse();
    }
    if recipe.single_channel {
        channels.truncate(1);
    }
    let values = channels
        .iter()
        .flat_map(|(channel, mean, std)| channel.iter().map(move |value| (value - mean) / std))
        .collect();
    Ok((Planes { channels: channels.len(), rows: side, columns: side, values }, frame))
}

/// In pixels of the canvas; may reach beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rectangle {
    pub(super) left: i64,
    pub(super) top: i64,
    pub(super) width: i64,
    pub(super) height: i64,
}

impl Rectangle {
    fn of(plane: &Plane) -> Self {
        Self { left: 0, top: 0, width: plane.columns as i64, height: plane.rows as i64 }
    }

    /// The part of the plane, black beyond it.
    pub(super) fn cut(&self, plane: &Plane) -> Result<Plane, PlaneError> {
        self.cut_within(plane, &Self::of(plane))
    }

    /// The part of the plane, black beyond it and outside of `picture`.
    fn cut_within(&self, plane: &Plane, picture: &Self) -> Result<Plane, PlaneError> {
        if self.width <= 0 || self.height <= 0 || plane.rows * plane.columns != plane.values.len() {
            return Err(PlaneError::Shape {
                rows: self.height.max(0) as usize,
                columns: self.width.max(0) as usize,
                values: plane.values.len(),
            });
        }
        let mut part = Plane::filled(self.height as usize, self.width as usize, 0.0);
        let first = self.left.max(picture.left).max(0);
        let last = (self.left + self.width).min(picture.left + picture.width).min(plane.columns as i64);
        for (row_idx, row) in part.values.chunks_exact_mut(self.width as usize).enumerate() {
            let y = self.top + row_idx as i64;
            let is_inside = y >= picture.top.max(0) && y < (picture.top + picture.height).min(plane.rows as i64);
            if is_inside && first < last {
                let start = y as usize * plane.columns;
                let source = plane.values.get(start + first as usize..start + last as usize).unwrap_or_default();
                let target = (first - self.left) as usize;
                row[target..target + source.len()].copy_from_slice(source);
            }
        }
        Ok(part)
    }

    /// The square of this side with the same middle; what does not halve is larger below and at the right.
    pub(super) fn square(&self, side: i64) -> Self {
        Self {
            left: self.left - (side - self.width).div_euclid(2),
            top: self.top - (side - self.height).div_euclid(2),
            width: side,
            height: side,
        }
    }

    /// The box of the lungs with a margin, not beyond this rectangle; the whole rectangle without lungs.
    fn around_lungs(&self, lungs: &Lungs, canvas_side: usize, margin_fraction: f64) -> Self {
        let Some((first_row, last_row, first_column, last_column)) = lungs.bounds() else { return *self };
        let pixels = canvas_side as f64 / lungs.side as f64;
        let margin = ((last_row - first_row + 1).max(last_column - first_column + 1)) as f64 * pixels * margin_fraction;
        let edge = |cell: usize, margin: f64| (cell as f64 * pixels + margin).round() as i64;
        let left = edge(first_column, -margin).max(self.left);
        let top = edge(first_row, -margin).max(self.top);
        let right = edge(last_column + 1, margin).min(self.left + self.width);
        let bottom = edge(last_row + 1, margin).min(self.top + self.height);
        if left >= right || top >= bottom {
            return *self;
        }
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// In shares of a picture of this many columns and rows.
    pub(super) fn frame(&self, columns: usize, rows: usize) -> Frame {
        let (columns, rows) = (columns as f64, rows as f64);
        Frame {
            left: self.left as f64 / columns,
            top: self.top as f64 / rows,
            width: self.width as f64 / columns,
            height: self.height as f64 / rows,
        }
    }
}

/// 1 in the lungs and 0 elsewhere, by the nearest cell.
fn lung_mask(lungs: &Lungs, frame: Frame, side: usize) -> Vec<f32> {
    let cell = |pixel: usize, start: f64, length: f64| {
        let place = (start + (pixel as f64 + 0.5) / side as f64 * length) * lungs.side as f64;
        (place >= 0.0 && place < lungs.side as f64).then_some(place as usize)
    };
    let columns: Vec<Option<usize>> = (0..side).map(|x| cell(x, frame.left, frame.width)).collect();
    let mut mask = Vec::with_capacity(side * side);
    for y in 0..side {
        let row = cell(y, frame.top, frame.height);
        mask.extend(columns.iter().map(|column| {
            let label = row.zip(*column).and_then(|(row, column)| lungs.labels.get(row * lungs.side + column));
            f32::from(u8::from(label.is_some_and(|label| *label != BACKGROUND)))
        }));
    }
    mask
}

/// Minus the mean, divided by the population standard deviation; a flat picture becomes all 0.
pub(super) fn z_scored(values: &[f32]) -> Vec<f32> {
    let n = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n;
    let std = if variance.sqrt() < 1e-6 { 1.0 } else { variance.sqrt() };
    values.iter().map(|value| ((f64::from(*value) - mean) / std) as f32).collect()
}

/// Values from 0 to 1 over a range.
pub(super) fn spread(values: Vec<f32>, range: Option<[f32; 2]>) -> Vec<f32> {
    match range {
        None => values,
        Some([low, high]) => values.into_iter().map(|value| low + value * (high - low)).collect(),
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the same arithmetic gives the same bits")]
mod tests {
    use super::{super::heat, *};
    use crate::types::HeatMap;

    const SIDE: usize = 16;

    fn recipe() -> Recipe {
        Recipe {
            equalisation: Equalisation::None,
            top_crop_fraction: 0.0,
            mask_mode: MaskMode::None,
            crop_margin_fraction: 0.0,
            resize: ResizeMode::Pad,
            side_pixels: SIDE,
            z_score: false,
            range: None,
            mean: [0.0; 3],
            std: [1.0; 3],
            reverse_channels: false,
            single_channel: false,
        }
    }

    /// A picture of 60 rows and 100 columns, its two lungs 20 to 40 by 30 to 45 and 55 to 70.
    fn chest() -> (Plane, Placement, Lungs) {
        let (rows, columns) = (60, 100);
        let mut picture = Plane::filled(rows, columns, 0.0);
        for row in 0..rows {
            for column in 0..columns {
                picture.values[row * columns + column] = 0.2 + 0.5 * column as f32 / columns as f32;
            }
        }
        let (canvas, placement) = canvas::pad_to_square(&picture).unwrap();
        let mut probabilities = Plane::filled(100, 100, 0.0);
        for row in 40..60 {
            for column in (30..45).chain(55..70) {
                probabilities.values[row * 100 + column] = 1.0;
            }
        }
        (canvas, placement, Lungs::from_probabilities(&probabilities, &placement))
    }

    fn channel(planes: &Planes, idx: usize) -> &[f32] {
        &planes.values[idx * SIDE * SIDE..(idx + 1) * SIDE * SIDE]
    }

    #[test]
    fn channels_are_normalised_in_their_order() {
        let (canvas, placement, lungs) = chest();
        let plain = compose(&canvas, &placement, &lungs, &recipe()).unwrap();
        assert_eq!(plain.1, Frame::WHOLE);
        let whole = canvas::resize(&canvas, SIDE, SIDE).unwrap();
        assert_eq!(channel(&plain.0, 0), whole.values);
        assert_eq!(channel(&plain.0, 2), whole.values);

        let (mean, std) = ([0.5, 0.25, 0.125], [0.5, 0.25, 2.0]);
        let channel3 = Recipe { mask_mode: MaskMode::Channel3, mean, std, ..recipe() };
        let (found, _) = compose(&canvas, &placement, &lungs, &channel3).unwrap();
        let middle = 7 * SIDE + 5;
        let grey = whole.values[middle];
        assert_eq!(channel(&found, 0)[middle], (grey - 0.5) / 0.5);
        assert_eq!(channel(&found, 1)[middle], (grey - 0.25) / 0.25);
        assert_eq!(channel(&found, 2)[middle], (1.0 - 0.125) / 2.0, "a lung is there");
        assert_eq!(channel(&found, 2)[0], -0.125 / 2.0, "none is there");
        // As torchxrayvision's networks want it; the mask stays a mask.
        let ranged = Recipe { range: Some([-1024.0, 1024.0]), mean: [0.0; 3], std: [1.0; 3], ..channel3.clone() };
        let (ranged, _) = compose(&canvas, &placement, &lungs, &ranged).unwrap();
        assert_eq!((channel(&ranged, 0)[middle], channel(&ranged, 2)[middle]), (grey.mul_add(2048.0, -1024.0), 1.0));
        assert_eq!(channel(&ranged, 0)[0], -1024.0, "black");
        let (reversed, _) =
            compose(&canvas, &placement, &lungs, &Recipe { reverse_channels: true, ..channel3.clone() }).unwrap();
        assert_eq!(channel(&reversed, 0), channel(&found, 2));
        let (single, _) = compose(&canvas, &placement, &lungs, &Recipe { single_channel: true, ..channel3 }).unwrap();
        assert_eq!((single.channels, single.values.len()), (1, SIDE * SIDE));
    }

    #[test]
    fn masks_dim_blacken_and_z_scores_centre() {
        let (canvas, placement, lungs) = chest();
        let composed = |recipe| compose(&canvas, &placement, &lungs, &recipe).unwrap().0;
        let plain = composed(recipe());
        let overlay = composed(Recipe { mask_mode: MaskMode::Overlay, ..recipe() });
        let multiply = composed(Recipe { mask_mode: MaskMode::Multiply, ..recipe() });
        let (inside, outside) = (7 * SIDE + 5, 7 * SIDE + 14);
        assert_eq!([overlay.values[inside], multiply.values[inside]], [plain.values[inside]; 2]);
        assert!(plain.values[outside] > 0.1);
        assert_eq!([overlay.values[outside], multiply.values[outside]], [plain.values[outside] / 2.0, 0.0]);
        let scored = composed(Recipe { z_score: true, ..recipe() });
        let mean = channel(&scored, 0).iter().sum::<f32>() / (SIDE * SIDE) as f32;
        let square = channel(&scored, 0).iter().map(|value| value * value).sum::<f32>() / (SIDE * SIDE) as f32;
        assert!(mean.abs() < 1e-5 && (square - 1.0).abs() < 1e-4, "{mean} {square}");
        assert_eq!(z_scored(&[3.0; 4]), [0.0; 4]);
    }

    #[test]
    fn equalisation_knows_nothing_of_the_padding() {
        let (canvas, placement, lungs) = chest();
        let recipe = Recipe { equalisation: Equalisation::Histogram, side_pixels: 100, ..recipe() };
        let (found, _) = compose(&canvas, &placement, &lungs, &recipe).unwrap();
        let column = |x: usize| found.values[50 * 100 + x];
        // The ramp fills the whole range evenly; the black of the padding would have taken a third of it.
        assert!((column(50) - 0.5).abs() < 0.02 && column(99) > 0.99 && column(0) < 0.02, "{}", column(50));
        assert_eq!(found.values[10 * 100 + 50], 0.0, "padding stays black");
    }

    /// Every way to cut and scale: what the network sees at a place is what the source has there, and heat at that place of
    /// the network's map lands on the same source pixel, as hot as it was.
    #[rstest::rstest]
    #[case::pad(recipe())]
    #[case::middle(Recipe { resize: ResizeMode::Crop, ..recipe() })]
    #[case::stretch(Recipe { resize: ResizeMode::Stretch, ..recipe() })]
    #[case::without_top(Recipe { top_crop_fraction: 0.08, resize: ResizeMode::Crop, ..recipe() })]
    #[case::lungs(Recipe { mask_mode: MaskMode::Crop, crop_margin_fraction: 0.1, ..recipe() })]
    #[case::large(Recipe { mask_mode: MaskMode::Crop, side_pixels: 512, ..recipe() })]
    fn a_hot_spot_lands_where_it_was(#[case] recipe: Recipe, #[values(8, 224)] grid: usize) {
        let (_, placement, lungs) = chest();
        // A bright spot of 4 by 4 source pixels in the right lung, around row 50 and column 36 of the canvas.
        let mut canvas = Plane::filled(100, 100, 0.0);
        for row in 48..52 {
            for column in 34..38 {
                canvas.values[row * 100 + column] = 1.0;
            }
        }
        let (seen, frame) = compose(&canvas, &placement, &lungs, &recipe).unwrap();
        let side = recipe.side_pixels;
        let brightest = (0..side * side).max_by(|a, b| seen.values[*a].total_cmp(&seen.values[*b])).unwrap();
        assert!(seen.values[brightest] > 0.1);
        let (cell_row, cell_column) = (brightest / side * grid / side, brightest % side * grid / side);
        let mut activation = Plane::filled(grid, grid, -1.0);
        activation.values[cell_row * grid + cell_column] = 3.0;
        let map = heat::heat_map(&activation, "cam", frame);
        // In pixels of the canvas.
        let cell = (100.0 * frame.height / grid as f64, 100.0 * frame.width / grid as f64);
        let centre = (
            100.0 * frame.top + (cell_row as f64 + 0.5) * cell.0,
            100.0 * frame.left + (cell_column as f64 + 0.5) * cell.1,
        );
        let heat_at = |map: &HeatMap, row: f64, column: f64| heat::sample(map, column / 100.0, row / 100.0);
        // Fused with nothing, and with a cold map of a network that saw the whole canvas: on a coarser grid, perhaps.
        let cold = heat::heat_map(&Plane::filled(7, 7, 0.0), "cam", Frame::WHOLE);
        for (map, near, least) in [
            (map.clone(), 0.05, 0.99),
            (heat::fuse(&[(&map, 0.5)]), 0.05, 0.99),
            (heat::fuse(&[(&map, 0.5), (&cold, 0.5)]), 0.5, 0.75),
        ] {
            let around = |step: f64| (-40..=40).map(move |idx| f64::from(idx) * step);
            let places = around(near / 4.0).flat_map(|row| around(near / 4.0).map(move |column| (row, column)));
            let hottest = places.map(|(row, column)| heat_at(&map, centre.0 + row, centre.1 + column));
            let hottest = hottest.fold(0.0, f32::max);
            assert!(hottest > least, "{hottest} around {centre:?} with {frame:?}");
            // Further away than two cells there is nothing.
            for (row, column) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)] {
                let far = (centre.0 + row * (2.0 * cell.0 + 1.0), centre.1 + column * (2.0 * cell.1 + 1.0));
                assert!(heat_at(&map, far.0, far.1) < 1e-6, "{far:?} with {frame:?}");
            }
            // Nothing is hot where the network saw nothing.
            for (x, y) in [(frame.left - 0.05, 0.5), (0.5, frame.top - 0.05)] {
                let is_cold = heat::sample(&map, x, y) == 0.0;
                assert!(x <= 0.0 || y <= 0.0 || is_cold, "{x} {y} with {frame:?}");
            }
        }
        // The spot itself is in that cell, or in that pixel of the input where those are larger; it has two pixels to a side.
        let within = |cell: f64, extent: f64| cell.max(100.0 * extent / side as f64) + 2.0;
        assert!((50.0 - centre.0).abs() <= within(cell.0, frame.height), "row {} with {frame:?}", centre.0);
        assert!((36.0 - centre.1).abs() <= within(cell.1, frame.width), "column {} with {frame:?}", centre.1);
    }

    #[test]
    fn without_lungs_the_whole_picture_is_seen() {
        let (canvas, placement, _) = chest();
        let none = Lungs::from_probabilities(&Plane::filled(100, 100, 0.0), &placement);
        let recipe = Recipe { mask_mode: MaskMode::Crop, ..recipe() };
        assert_eq!(compose(&canvas, &placement, &none, &recipe).unwrap().1, Frame::WHOLE);
    }

    #[test]
    fn a_canvas_that_contradicts_itself_is_an_error() {
        let (_, placement, lungs) = chest();
        let torn = Plane { rows: 100, columns: 100, values: vec![0.0; 7] };
        assert!(compose(&torn, &placement, &lungs, &recipe()).is_err());
    }
}
