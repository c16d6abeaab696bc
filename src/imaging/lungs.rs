//! From a lung segmenter's output to two lungs, with the measurements that the quality gate asks for.
//!
//! The right lung is at the left side of the picture, as radiographs are shown.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::Plane;
use crate::types::Placement;

/// Output from which a pixel counts as lung.
pub const MASK_THRESHOLD: f32 = 0.5;
/// Outputs that say neither lung nor background.
pub const DOUBTFUL: std::ops::Range<f32> = 0.25..0.75;
/// Objects and holes smaller than this share of the image are cleaned away.
pub const MINIMUM_OBJECT_FRACTION: f64 = 0.02;

/// Label of a background pixel.
pub const BACKGROUND: u8 = 0;
/// Label of the right lung.
pub const RIGHT_LUNG: u8 = 1;
/// Label of the left lung.
pub const LEFT_LUNG: u8 = 2;

/// A cleaned lung mask on the segmenter's canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct Lungs {
    /// Canvas side in pixels.
    pub side: usize,
    /// `side * side` labels, row by row.
    pub labels: Vec<u8>,
    /// What was measured on it.
    pub measurements: LungMeasurements,
}

/// What the quality gate judges a mask by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LungMeasurements {
    /// Objects of at least [`MINIMUM_OBJECT_FRACTION`] before the two largest were kept.
    pub component_count: usize,
    /// Share of the image (not of its padding) that is lung, 0 to 1.
    pub area_fraction: f64,
    /// Area of the left lung divided by that of the right; `None` unless both are there.
    pub left_right_area_ratio: Option<f64>,
    /// The centres of the lungs lie side by side: the right lung's left of the left lung's, with a gap of at least a
    /// tenth of the width, neither far beyond the midline, and no more than a third of the height apart.
    pub is_side_by_side: bool,
    /// How the two lungs stand; `None` unless both are there.
    pub stance: Option<LungStance>,
    /// Share of the outermost pixels of the image (not of its padding) that are lung, 0 to 1.
    pub border_share: f64,
    /// Pixels of the image about which the segmenter is in doubt, [`DOUBTFUL`], divided by those that are lung; `None`
    /// without lung.
    pub doubtful_ratio: Option<f64>,
}

/// How two lungs stand beside each other: high, upright and level in a frontal chest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LungStance {
    /// Height of the lower of the two as a share of the image's, 0 to 1.
    pub least_height_fraction: f64,
    /// Rows that both lungs reach as a share of those of the lower one, 0 to 1.
    pub level_fraction: f64,
    /// Height divided by width of the less upright one.
    pub least_height_to_width: f64,
}

impl Lungs {
    /// Thresholds and cleans a square map of lung probabilities.
    ///
    /// Padding never counts. Objects and holes below [`MINIMUM_OBJECT_FRACTION`] of the image are removed and filled,
    /// the two largest objects are kept and told apart by their centres; lungs that touch are split at their common
    /// centre column.
    #[must_use]
    pub fn from_probabilities(probabilities: &Plane, placement: &Placement) -> Self {
        let side = probabilities.columns;
        let image = ImageArea::of(placement, side, probabilities.rows);
        let minimum_pixels = ((image.pixels() as f64 * MINIMUM_OBJECT_FRACTION).ceil() as usize).max(1);
        let mut is_lung: Vec<bool> = probabilities
            .values
            .iter()
            .enumerate()
            .map(|(index, &value)| value >= MASK_THRESHOLD && image.contains(index / side.max(1), index % side.max(1)))
            .collect();
        fill_small_holes(&mut is_lung, side, minimum_pixels);

        let mut objects = components(&is_lung, side, true);
        objects.retain(|object| object.pixels.len() >= minimum_pixels);
        objects.sort_by(|a, b| b.pixels.len().cmp(&a.pixels.len()).then(a.pixels.cmp(&b.pixels)));
        let component_count = objects.len();
        objects.truncate(2);

        let mut labels = vec![BACKGROUND; probabilities.values.len()];
        let (right, left) = tell_apart(&objects, side, &image);
        for (pixels, label) in [(&right, RIGHT_LUNG), (&left, LEFT_LUNG)] {
            for &pixel in pixels {
                labels[pixel] = label;
            }
        }
        let area = right.len() + left.len();
        let is_both = !right.is_empty() && !left.is_empty();
        let measurements = LungMeasurements {
            component_count,
            area_fraction: area as f64 / image.pixels().max(1) as f64,
            left_right_area_ratio: is_both.then(|| left.len() as f64 / right.len() as f64),
            is_side_by_side: is_both && is_side_by_side(&right, &left, side, &image),
            stance: is_both.then(|| stance(&right, &left, side, &image)),
            border_share: image.border_share(|row, column| labels[row * side + column] != BACKGROUND),
            doubtful_ratio: (area > 0).then(|| {
                let is_doubtful = |(pixel, value): &(usize, &f32)| {
                    image.contains(pixel / side, pixel % side) && DOUBTFUL.contains(*value)
                };
                probabilities.values.iter().enumerate().filter(is_doubtful).count() as f64 / area as f64
            }),
        };
        Self { side, labels, measurements }
    }

    /// How much brighter what lies between the two lungs is than the lungs, on the segmenter's canvas (0 to 1): -1 to 1,
    /// below 0 in negatives. `None` unless both lungs are there with something between them, or when the canvas has
    /// another size.
    #[must_use]
    pub fn mediastinal_contrast(&self, canvas: &Plane) -> Option<f64> {
        if canvas.values.len() != self.labels.len() || canvas.columns != self.side {
            return None;
        }
        let pixels_of =
            |lung: u8| -> Vec<usize> { (0..self.labels.len()).filter(|&pixel| self.labels[pixel] == lung).collect() };
        let (right, left) = (pixels_of(RIGHT_LUNG), pixels_of(LEFT_LUNG));
        if right.is_empty() || left.is_empty() {
            return None;
        }
        let columns = centroid(&right, self.side).1..centroid(&left, self.side).1;
        let rows_of = |lung: &[usize]| extent(lung.iter().map(|pixel| pixel / self.side));
        let ((right_first, right_last), (left_first, left_last)) = (rows_of(&right), rows_of(&left));
        let rows = right_first.max(left_first)..=right_last.min(left_last);
        let between = (0..self.labels.len()).filter(|pixel| {
            self.labels[*pixel] == BACKGROUND
                && rows.contains(&(pixel / self.side))
                && columns.contains(&((pixel % self.side) as f64))
        });
        Some(mean(canvas, between)? - mean(canvas, right.into_iter().chain(left))?)
    }

    /// First and last row, first and last column that hold lung; `None` without lungs.
    #[must_use]
    pub fn bounds(&self) -> Option<(usize, usize, usize, usize)> {
        let lung = |(idx, label): (usize, &u8)| (*label != BACKGROUND).then_some((idx / self.side, idx % self.side));
        self.labels.iter().enumerate().filter_map(lung).fold(None, |bounds, (row, column)| {
            let (first_row, last_row, first_column, last_column) = bounds.unwrap_or((row, row, column, column));
            Some((first_row.min(row), last_row.max(row), first_column.min(column), last_column.max(column)))
        })
    }

    /// The labels as an 8-bit grey PNG; empty when the encoder fails, which needs a mask without pixels.
    #[must_use]
    pub fn to_png(&self) -> Vec<u8> {
        let rows = self.labels.len().checked_div(self.side).unwrap_or(0);
        let mut png = Vec::new();
        let encoded =
            PngEncoder::new(&mut png).write_image(&self.labels, self.side as u32, rows as u32, ExtendedColorType::L8);
        if encoded.is_ok() { png } else { Vec::new() }
    }
}

/// The part of the canvas that is image and not padding, in canvas pixels.
#[derive(Debug, Clone, Copy)]
struct ImageArea {
    top: usize,
    bottom: usize,
    left: usize,
    right: usize,
}

impl ImageArea {
    fn of(placement: &Placement, columns: usize, rows: usize) -> Self {
        let scale = |length: u32, canvas: usize| {
            (f64::from(length) * canvas as f64 / f64::from(placement.side.max(1))).round() as usize
        };
        Self {
            top: scale(placement.pad_top, rows).min(rows),
            bottom: scale(placement.pad_top + placement.source_rows, rows).min(rows),
            left: scale(placement.pad_left, columns).min(columns),
            right: scale(placement.pad_left + placement.source_columns, columns).min(columns),
        }
    }

    const fn width(&self) -> usize {
        self.right - self.left
    }

    const fn height(&self) -> usize {
        self.bottom - self.top
    }

    const fn pixels(&self) -> usize {
        self.width() * self.height()
    }

    const fn contains(&self, row: usize, column: usize) -> bool {
        row >= self.top && row < self.bottom && column >= self.left && column < self.right
    }

    /// Share of the outermost pixels that are `wanted`.
    fn border_share(&self, wanted: impl Fn(usize, usize) -> bool) -> f64 {
        let (mut n_pixels, mut n_wanted) = (0_usize, 0_usize);
        for row in self.top..self.bottom {
            let is_end = row == self.top || row + 1 == self.bottom;
            for column in self.left..self.right {
                if is_end || column == self.left || column + 1 == self.right {
                    n_pixels += 1;
                    n_wanted += usize::from(wanted(row, column));
                }
            }
        }
        n_wanted as f64 / n_pixels.max(1) as f64
    }
}

/// A set of connected pixels (indices into the canvas).
struct Component {
    pixels: Vec<usize>,
    touches_border: bool,
}

/// The 4-connected components of the pixels that are `wanted`.
fn components(mask: &[bool], columns: usize, wanted: bool) -> Vec<Component> {
    let rows = mask.len().checked_div(columns).unwrap_or(0);
    let mut seen = vec![false; mask.len()];
    let mut found = Vec::new();
    for start in 0..mask.len() {
        if seen[start] || mask[start] != wanted {
            continue;
        }
        seen[start] = true;
        let mut component = Component { pixels: vec![start], touches_border: false };
        let mut next = 0;
        while let Some(&pixel) = component.pixels.get(next) {
            next += 1;
            let (row, column) = (pixel / columns, pixel % columns);
            component.touches_border |= row == 0 || column == 0 || row + 1 == rows || column + 1 == columns;
            let neighbours = [
                (row > 0).then(|| pixel - columns),
                (row + 1 < rows).then(|| pixel + columns),
                (column > 0).then(|| pixel - 1),
                (column + 1 < columns).then(|| pixel + 1),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                if !seen[neighbour] && mask[neighbour] == wanted {
                    seen[neighbour] = true;
                    component.pixels.push(neighbour);
                }
            }
        }
        found.push(component);
    }
    found
}

fn fill_small_holes(mask: &mut [bool], columns: usize, minimum_pixels: usize) {
    for hole in components(mask, columns, false) {
        if !hole.touches_border && hole.pixels.len() < minimum_pixels {
            for pixel in hole.pixels {
                mask[pixel] = true;
            }
        }
    }
}

/// Pixels of the right and of the left lung.
fn tell_apart(objects: &[Component], columns: usize, image: &ImageArea) -> (Vec<usize>, Vec<usize>) {
    match objects {
        [] => (Vec::new(), Vec::new()),
        [one] => {
            let column_of = |pixel: &usize| pixel % columns;
            let first = one.pixels.iter().map(column_of).min().unwrap_or(0);
            let last = one.pixels.iter().map(column_of).max().unwrap_or(0);
            let share = |column: usize| column.saturating_sub(image.left) as f64 / image.width().max(1) as f64;
            let centre = centroid(&one.pixels, columns).1;
            if share(first) < 0.4 && share(last) > 0.6 {
                one.pixels.iter().partition(|&&pixel| ((pixel % columns) as f64) < centre)
            } else if share(centre as usize) < 0.5 {
                (one.pixels.clone(), Vec::new())
            } else {
                (Vec::new(), one.pixels.clone())
            }
        }
        [first, second, ..] => {
            if centroid(&first.pixels, columns).1 <= centroid(&second.pixels, columns).1 {
                (first.pixels.clone(), second.pixels.clone())
            } else {
                (second.pixels.clone(), first.pixels.clone())
            }
        }
    }
}

/// Mean row and column.
fn centroid(pixels: &[usize], columns: usize) -> (f64, f64) {
    let count = pixels.len().max(1) as f64;
    let (rows, cols) = pixels
        .iter()
        .fold((0.0, 0.0), |(rows, cols), &pixel| (rows + (pixel / columns) as f64, cols + (pixel % columns) as f64));
    (rows / count, cols / count)
}

fn is_side_by_side(right: &[usize], left: &[usize], columns: usize, image: &ImageArea) -> bool {
    let ((right_row, right_column), (left_row, left_column)) = (centroid(right, columns), centroid(left, columns));
    let (width, height) = (image.width() as f64, image.height() as f64);
    let share = |column: f64| (column - image.left as f64) / width;
    left_column - right_column >= 0.1 * width
        && share(right_column) < 0.6
        && share(left_column) > 0.4
        && (right_row - left_row).abs() <= height / 3.0
}

fn stance(right: &[usize], left: &[usize], columns: usize, image: &ImageArea) -> LungStance {
    let length = |(first, last): (usize, usize)| (last + 1).saturating_sub(first) as f64;
    let rows_of = |lung: &[usize]| extent(lung.iter().map(|pixel| pixel / columns));
    let upright = |lung: &[usize]| length(rows_of(lung)) / length(extent(lung.iter().map(|pixel| pixel % columns)));
    let (of_right, of_left) = (rows_of(right), rows_of(left));
    let least_height = length(of_right).min(length(of_left));
    let level = length((of_right.0.max(of_left.0), of_right.1.min(of_left.1)));
    LungStance {
        least_height_fraction: least_height / image.height().max(1) as f64,
        level_fraction: level / least_height.max(1.0),
        least_height_to_width: upright(right).min(upright(left)),
    }
}

/// First and last; 0 and 0 of nothing.
fn extent(mut values: impl Iterator<Item = usize>) -> (usize, usize) {
    let first = values.next().unwrap_or(0);
    values.fold((first, first), |(least, most), value| (least.min(value), most.max(value)))
}

/// Of some of a plane's pixels; `None` of none.
fn mean(plane: &Plane, pixels: impl Iterator<Item = usize>) -> Option<f64> {
    let (sum, n) = pixels
        .filter_map(|pixel| plane.values.get(pixel))
        .fold((0.0, 0_usize), |(sum, n), value| (sum + f64::from(*value), n + 1));
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::canvas::placement;

    /// A plane of `side` with rectangles `(top, left, bottom, right)` of lung.
    fn mask(side: usize, rectangles: &[(usize, usize, usize, usize)]) -> Plane {
        let mut plane = Plane::filled(side, side, 0.1);
        for &(top, left, bottom, right) in rectangles {
            for row in top..bottom {
                plane.values[row * side + left..row * side + right].fill(0.9);
            }
        }
        plane
    }

    #[test]
    fn two_lungs_are_labelled_by_side_of_the_picture() {
        let lungs =
            Lungs::from_probabilities(&mask(100, &[(20, 10, 80, 40), (20, 60, 80, 85)]), &placement(1000, 1000));
        assert_eq!(lungs.labels[50 * 100 + 20], RIGHT_LUNG);
        assert_eq!(lungs.labels[50 * 100 + 70], LEFT_LUNG);
        assert_eq!(lungs.labels[50 * 100 + 50], BACKGROUND);
        let measured = lungs.measurements;
        assert_eq!(measured.component_count, 2);
        assert!((measured.area_fraction - 0.33).abs() < 1e-9);
        assert!((measured.left_right_area_ratio.unwrap() - 1500.0 / 1800.0).abs() < 1e-9);
        assert!(measured.is_side_by_side);
    }

    #[test]
    fn specks_go_and_small_holes_are_filled() {
        let mut plane = mask(100, &[(20, 10, 80, 40), (20, 60, 80, 85), (2, 2, 6, 6)]);
        for row in 40..45 {
            plane.values[row * 100 + 20..row * 100 + 25].fill(0.0);
        }
        let lungs = Lungs::from_probabilities(&plane, &placement(10, 10));
        assert_eq!(lungs.measurements.component_count, 2);
        assert_eq!(lungs.labels[4 * 100 + 4], BACKGROUND);
        assert_eq!(lungs.labels[42 * 100 + 22], RIGHT_LUNG);
    }

    #[test]
    fn a_third_large_object_is_counted_but_not_kept() {
        let plane = mask(100, &[(20, 10, 80, 40), (20, 60, 80, 85), (85, 10, 95, 50)]);
        let lungs = Lungs::from_probabilities(&plane, &placement(10, 10));
        assert_eq!(lungs.measurements.component_count, 3);
        assert_eq!(lungs.labels[90 * 100 + 20], BACKGROUND);
    }

    #[test]
    fn touching_lungs_are_split_and_a_single_lung_is_not() {
        let joined = Lungs::from_probabilities(&mask(100, &[(20, 10, 80, 90)]), &placement(10, 10));
        assert_eq!(joined.measurements.component_count, 1);
        assert!((joined.measurements.left_right_area_ratio.unwrap() - 1.0).abs() < 0.05);
        assert!(joined.measurements.is_side_by_side);

        let single = Lungs::from_probabilities(&mask(100, &[(20, 60, 80, 85)]), &placement(10, 10));
        assert_eq!(single.labels[50 * 100 + 70], LEFT_LUNG);
        assert_eq!(single.measurements.left_right_area_ratio, None);
        assert!(!single.measurements.is_side_by_side);
    }

    #[test]
    fn stacked_objects_are_not_side_by_side() {
        let stacked = Lungs::from_probabilities(&mask(100, &[(5, 40, 45, 60), (55, 40, 95, 60)]), &placement(10, 10));
        assert_eq!(stacked.measurements.component_count, 2);
        assert!(!stacked.measurements.is_side_by_side);
    }

    #[test]
    fn padding_counts_neither_as_lung_nor_as_image() {
        // A portrait image, half as wide as high: columns 0..25 and 75..100 of the canvas are padding.
        let plane = mask(100, &[(0, 0, 100, 25), (20, 30, 80, 45), (20, 55, 80, 70)]);
        let lungs = Lungs::from_probabilities(&plane, &placement(2000, 1000));
        assert_eq!(lungs.labels[50 * 100 + 10], BACKGROUND);
        assert!((lungs.measurements.area_fraction - 1800.0 / 5000.0).abs() < 1e-9);
    }

    #[test]
    fn stance_border_and_doubt_are_measured() {
        // Portrait, columns 25 to 75 of the canvas. The right lung is 60 rows high and 15 wide, the left one 40 and 20.
        let mut plane = mask(100, &[(20, 30, 80, 45), (30, 50, 70, 70)]);
        plane.values[10 * 100 + 30..10 * 100 + 60].fill(0.5);
        plane.values[10 * 100..10 * 100 + 20].fill(0.5);
        let measured = Lungs::from_probabilities(&plane, &placement(2000, 1000)).measurements;
        let stance = measured.stance.unwrap();
        assert!((stance.least_height_fraction - 0.4).abs() < 1e-9, "{stance:?}");
        assert!((stance.level_fraction - 1.0).abs() < 1e-9, "{stance:?}");
        assert!((stance.least_height_to_width - 2.0).abs() < 1e-9, "{stance:?}");
        assert!(measured.border_share.abs() < 1e-9);
        // The doubt in the padding does not count.
        assert!((measured.doubtful_ratio.unwrap() - 30.0 / 1700.0).abs() < 1e-9, "{measured:?}");

        let apart = Lungs::from_probabilities(&mask(100, &[(0, 0, 50, 30), (40, 70, 100, 100)]), &placement(10, 10));
        assert!((apart.measurements.stance.unwrap().level_fraction - 0.2).abs() < 1e-9);
        // 50 + 29 and 60 + 29 of 396 outermost pixels.
        assert!((apart.measurements.border_share - 168.0 / 396.0).abs() < 1e-9, "{:?}", apart.measurements);
        let never_level =
            Lungs::from_probabilities(&mask(100, &[(0, 0, 30, 30), (40, 70, 100, 100)]), &placement(10, 10));
        assert!(never_level.measurements.stance.unwrap().level_fraction.abs() < 1e-9);
    }

    #[test]
    fn between_the_lungs_it_is_bright_unless_the_picture_is_a_negative() {
        let lungs =
            Lungs::from_probabilities(&mask(100, &[(20, 10, 80, 40), (20, 60, 80, 85)]), &placement(1000, 1000));
        let mut canvas = Plane::filled(100, 100, 0.8);
        for (value, label) in canvas.values.iter_mut().zip(&lungs.labels) {
            if *label != BACKGROUND {
                *value = 0.3;
            }
        }
        assert!((lungs.mediastinal_contrast(&canvas).unwrap() - 0.5).abs() < 1e-6);
        let negative = Plane { values: canvas.values.iter().map(|value| 1.0 - value).collect(), ..canvas };
        assert!((lungs.mediastinal_contrast(&negative).unwrap() + 0.5).abs() < 1e-6);
        assert_eq!(lungs.mediastinal_contrast(&Plane::filled(64, 64, 0.0)), None);
        let single = Lungs::from_probabilities(&mask(100, &[(20, 60, 80, 85)]), &placement(10, 10));
        assert_eq!(single.mediastinal_contrast(&negative), None);
    }

    #[test]
    fn nothing_segmented_gives_nothing() {
        let lungs = Lungs::from_probabilities(&Plane::filled(64, 64, 0.0), &placement(10, 10));
        let expected = LungMeasurements {
            component_count: 0,
            area_fraction: 0.0,
            left_right_area_ratio: None,
            is_side_by_side: false,
            stance: None,
            border_share: 0.0,
            doubtful_ratio: None,
        };
        assert_eq!(lungs.measurements, expected);
        assert!(lungs.labels.iter().all(|&label| label == BACKGROUND));
        let png = image::load_from_memory(&lungs.to_png()).unwrap();
        assert_eq!((png.width(), png.height()), (64, 64));
    }
}
