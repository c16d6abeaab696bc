//! From a volume and its lungs to what a network takes: slices, or the volume resampled, cut to the lungs or whole; and from
//! what it says of the pixels of its slices back to the volume.

use std::ops::Range;

use super::{
    Volume,
    segment::{LEFT_LUNG, LungLabels, RIGHT_LUNG},
};
use crate::imaging::{
    Plane, PlaneError, canvas,
    classifier_input::{Frame, Rectangle, ResizeMode, spread, z_scored},
};

/// How slices become a network's input, in the order in which it happens.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanRecipe {
    /// Hounsfield units that become 0 and 1.
    pub window_hu: [f64; 2],
    /// Whether everything outside the lungs is black.
    pub outside_lungs_black: bool,
    /// Whether slices are cut to the box of both lungs.
    pub crop_to_lungs: bool,
    /// Margin around that box in millimetres.
    pub crop_margin_mm: f64,
    /// How what is seen becomes rows and columns: [`ResizeMode::Pad`] or [`ResizeMode::Stretch`].
    pub resize: ResizeMode,
    /// Rows of the input.
    pub rows: usize,
    /// Columns of the input.
    pub columns: usize,
    /// What each channel shows.
    pub channels: Vec<Channel>,
    /// Whether grey values are made relative to the slice's own mean and standard deviation.
    pub z_score: bool,
    /// What 0 and 1 of the grey values become before `mean` and `std`.
    pub range: Option<[f32; 2]>,
    /// Subtracted from each channel.
    pub mean: Vec<f32>,
    /// Divides each channel; above 0.
    pub std: Vec<f32>,
    /// Slices with less lung are left out, in square centimetres.
    pub minimum_lung_cm2: f64,
    /// Distance of the slices in millimetres; `None` takes the scan's own.
    pub slice_spacing_mm: Option<f64>,
    /// Most slices.
    pub maximum_slices: usize,
}

/// What a channel shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The slice.
    Slice,
    /// The slice, black outside the lungs.
    MaskedSlice,
    /// 1 in the lungs and 0 elsewhere.
    LungMask,
    /// The next slice towards the feet.
    Below,
    /// The next slice towards the head.
    Above,
}

/// What a network takes of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanInput {
    /// The scan's slice (counted from the feet) that each slice of the input shows, or is nearest to.
    pub slices: Vec<usize>,
    /// Channels of each slice.
    pub channels: usize,
    /// Rows of each channel.
    pub rows: usize,
    /// Columns of each channel.
    pub columns: usize,
    /// Slice after slice, channel after channel, row after row.
    pub values: Vec<f32>,
    /// The part of a slice that is seen, in shares of its columns and rows.
    pub frame: Frame,
}

/// Makes the input of a network from a volume and its lungs; `None` where no slice holds enough lung.
///
/// # Errors
/// [`PlaneError`] when a slice cannot be resampled.
pub fn scan_input(volume: &Volume, lungs: &LungLabels, recipe: &ScanRecipe) -> Result<Option<ScanInput>, PlaneError> {
    let Some(plan) = ScanPlan::of(volume, lungs, recipe) else { return Ok(None) };
    plan.input(volume, lungs, recipe, 0..plan.places.len()).map(Some)
}

/// Which slices a network sees of a scan, and which part of each.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanPlan {
    /// From the feet.
    places: Vec<Place>,
    /// How many there would be without the recipe's limit.
    wanted: usize,
    is_resampled: bool,
    seen: Rectangle,
    /// Columns and rows of a slice of the scan.
    size: [usize; 2],
}

impl ScanPlan {
    /// Of a volume and its lungs; `None` where no slice holds enough lung.
    #[must_use]
    pub fn of(volume: &Volume, lungs: &LungLabels, recipe: &ScanRecipe) -> Option<Self> {
        let extent = Extent::of(volume, lungs, recipe.minimum_lung_cm2)?;
        let [columns, rows, _] = volume.size;
        let whole = Rectangle { left: 0, top: 0, width: columns as i64, height: rows as i64 };
        let wanted = if recipe.crop_to_lungs { extent.with_margin(volume, recipe.crop_margin_mm) } else { whole };
        let seen = match recipe.resize {
            ResizeMode::Pad | ResizeMode::Crop => wanted.square(wanted.width.max(wanted.height)),
            ResizeMode::Stretch => wanted,
        };
        Some(Self {
            places: extent.places(volume, recipe),
            wanted: extent.wanted(volume, recipe),
            is_resampled: recipe.slice_spacing_mm.is_some(),
            seen,
            size: [columns, rows],
        })
    }

    /// The slice of the scan that each slice of the input shows, or is nearest to, counted from the feet.
    #[must_use]
    pub fn slices(&self) -> Vec<usize> {
        self.places.iter().map(|place| place.nearest()).collect()
    }

    /// How many slices there would be without the recipe's limit.
    #[must_use]
    pub const fn wanted(&self) -> usize {
        self.wanted
    }

    /// The input of some slices, by their places in [`slices`](Self::slices), of the same volume, lungs and recipe.
    ///
    /// # Errors
    /// [`PlaneError`] when a slice cannot be resampled.
    pub fn input(
        &self,
        volume: &Volume,
        lungs: &LungLabels,
        recipe: &ScanRecipe,
        range: Range<usize>,
    ) -> Result<ScanInput, PlaneError> {
        let places = self.places.get(range).unwrap_or_default();
        let slicer = Slicer { volume, lungs, recipe, seen: self.seen };
        let mut values = Vec::with_capacity(places.len() * recipe.channels.len() * recipe.rows * recipe.columns);
        for place in places {
            slicer.append(*place, &mut values)?;
        }
        let [columns, rows] = self.size;
        Ok(ScanInput {
            slices: places.iter().map(|place| place.nearest()).collect(),
            channels: recipe.channels.len(),
            rows: recipe.rows,
            columns: recipe.columns,
            values,
            frame: self.seen.frame(columns, rows),
        })
    }

    /// What was said of the pixels of an input slice, at the pixels of the whole slice of the scan: resized as the input was,
    /// 0 where the network saw nothing.
    ///
    /// # Errors
    /// [`PlaneError`] when the plane is none.
    pub fn over_slice(&self, said: &Plane) -> Result<Plane, PlaneError> {
        let part = canvas::resize(said, self.seen.height.max(0) as usize, self.seen.width.max(0) as usize)?;
        let [columns, rows] = self.size;
        let whole =
            Rectangle { left: -self.seen.left, top: -self.seen.top, width: columns as i64, height: rows as i64 };
        whole.cut(&part)
    }

    /// The slices of the scan that an input slice, by its place in [`slices`](Self::slices), speaks for: its own; of a
    /// resampled volume those that it is the nearest to.
    #[must_use]
    pub fn slices_of(&self, number: usize) -> Range<usize> {
        let (Some(place), Some(first), Some(last)) = (self.places.get(number), self.places.first(), self.places.last())
        else {
            return 0..0;
        };
        if !self.is_resampled {
            return place.slice..place.slice + 1;
        }
        let steps = (self.places.len() - 1) as f64;
        let height = (last.slice - first.slice) as f64;
        let nearest = |slice: usize| {
            let share = if height > 0.0 { (slice - first.slice) as f64 / height } else { 0.0 };
            (share * steps).round() as usize
        };
        let from = (first.slice..=last.slice).find(|&slice| nearest(slice) >= number);
        let to = (first.slice..=last.slice).rfind(|&slice| nearest(slice) <= number);
        match (from, to) {
            (Some(from), Some(to)) if from <= to => from..to + 1,
            _ => 0..0,
        }
    }
}

/// A height in the volume: between a slice and the next.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    slice: usize,
    /// 0 at the slice, towards 1 at the next one.
    share: f64,
}

impl Place {
    fn nearest(self) -> usize {
        self.slice + usize::from(self.share >= 0.5)
    }
}

/// Where the lungs are.
struct Extent {
    /// Slices with enough lung, from the feet.
    slices: Vec<usize>,
    first_row: usize,
    last_row: usize,
    first_column: usize,
    last_column: usize,
}

impl Extent {
    /// `None` where no slice holds enough lung.
    fn of(volume: &Volume, lungs: &LungLabels, minimum_lung_cm2: f64) -> Option<Self> {
        let [columns, rows, slices] = volume.size;
        let pixel_cm2 = volume.spacing_mm[0] * volume.spacing_mm[1] / 100.0;
        let mut extent =
            Self { slices: Vec::new(), first_row: rows, last_row: 0, first_column: columns, last_column: 0 };
        for slice in 0..slices {
            let labels = slice_labels(volume, lungs, slice);
            let mut count = 0_usize;
            for (row, line) in labels.chunks_exact(columns.max(1)).enumerate() {
                let mut of_lung =
                    line.iter().enumerate().filter(|(_, label)| is_lung(**label)).map(|(column, _)| column);
                let Some(first) = of_lung.next() else { continue };
                let (last, more) = of_lung.fold((first, 0), |(_, n), column| (column, n + 1));
                count += 1 + more;
                extent.first_row = extent.first_row.min(row);
                extent.last_row = extent.last_row.max(row);
                extent.first_column = extent.first_column.min(first);
                extent.last_column = extent.last_column.max(last);
            }
            if count > 0 && count as f64 * pixel_cm2 >= minimum_lung_cm2 {
                extent.slices.push(slice);
            }
        }
        (!extent.slices.is_empty()).then_some(extent)
    }

    fn with_margin(&self, volume: &Volume, margin_mm: f64) -> Rectangle {
        let [columns, rows, _] = volume.size;
        let margin = |spacing_mm: f64| (margin_mm / spacing_mm).round() as i64;
        let (across, down) = (margin(volume.spacing_mm[0]), margin(volume.spacing_mm[1]));
        let left = (self.first_column as i64 - across).max(0);
        let top = (self.first_row as i64 - down).max(0);
        let right = (self.last_column as i64 + 1 + across).min(columns as i64);
        let bottom = (self.last_row as i64 + 1 + down).min(rows as i64);
        Rectangle { left, top, width: right - left, height: bottom - top }
    }

    /// How many slices the recipe asks for, but for its limit.
    fn wanted(&self, volume: &Volume, recipe: &ScanRecipe) -> usize {
        let (Some(&first), Some(&last)) = (self.slices.first(), self.slices.last()) else { return 0 };
        recipe.slice_spacing_mm.map_or(self.slices.len(), |spacing_mm| {
            let length_mm = (last - first) as f64 * volume.spacing_mm[2];
            ((length_mm / spacing_mm).round() as usize + 1).max(2)
        })
    }

    /// The heights that the network sees.
    fn places(&self, volume: &Volume, recipe: &ScanRecipe) -> Vec<Place> {
        let most = recipe.maximum_slices.max(1);
        let (Some(&first), Some(&last)) = (self.slices.first(), self.slices.last()) else { return Vec::new() };
        let wanted = self.wanted(volume, recipe);
        if recipe.slice_spacing_mm.is_none() {
            let n = wanted.min(most);
            // In the middle of n equal parts.
            let chosen = (0..n).filter_map(|number| self.slices.get((2 * number + 1) * self.slices.len() / (2 * n)));
            return chosen.map(|&slice| Place { slice, share: 0.0 }).collect();
        }
        let n = wanted.min(most.max(2));
        (0..n)
            .map(|number| {
                let height = (last - first) as f64 * number as f64 / (n - 1) as f64;
                Place { slice: first + height.floor() as usize, share: height.fract() }
            })
            .collect()
    }
}

const fn is_lung(label: u8) -> bool {
    label == RIGHT_LUNG || label == LEFT_LUNG
}

fn slice_labels<'a>(volume: &Volume, lungs: &'a LungLabels, slice: usize) -> &'a [u8] {
    let pixels = volume.slice_pixels();
    lungs.labels.get(slice * pixels..(slice + 1) * pixels).unwrap_or_default()
}

struct Slicer<'a> {
    volume: &'a Volume,
    lungs: &'a LungLabels,
    recipe: &'a ScanRecipe,
    seen: Rectangle,
}

impl Slicer<'_> {
    /// All channels of one slice of the input.
    fn append(&self, place: Place, values: &mut Vec<f32>) -> Result<(), PlaneError> {
        let last = self.volume.size[2].saturating_sub(1);
        let mask = self.resized(&self.mask(place.nearest()))?;
        for ((channel, mean), std) in self.recipe.channels.iter().zip(&self.recipe.mean).zip(&self.recipe.std) {
            let black = self.recipe.outside_lungs_black || *channel == Channel::MaskedSlice;
            let grey = match channel {
                Channel::LungMask => {
                    let nearest = mask.values.iter().map(|share| f32::from(u8::from(*share >= 0.5)));
                    values.extend(nearest.map(|value| (value - mean) / std));
                    continue;
                }
                Channel::Slice | Channel::MaskedSlice => self.grey(place, black)?,
                Channel::Below => self.grey(Place { slice: place.nearest().saturating_sub(1), share: 0.0 }, black)?,
                Channel::Above => self.grey(Place { slice: (place.nearest() + 1).min(last), share: 0.0 }, black)?,
            };
            let grey = if self.recipe.z_score { z_scored(&grey) } else { grey };
            let grey = spread(grey, self.recipe.range);
            values.extend(grey.iter().map(|value| (value - mean) / std));
        }
        Ok(())
    }

    /// The grey values at a height, between two slices in proportion.
    fn grey(&self, place: Place, black_outside: bool) -> Result<Vec<f32>, PlaneError> {
        let below = self.resized(&self.window(place.slice, black_outside))?;
        if place.share <= 0.0 {
            return Ok(below.values);
        }
        let above = self.resized(&self.window(place.slice + 1, black_outside))?;
        let share = place.share as f32;
        Ok(below.values.iter().zip(&above.values).map(|(below, above)| below + (above - below) * share).collect())
    }

    fn window(&self, slice: usize, black_outside: bool) -> Plane {
        let [low, high] = self.recipe.window_hu;
        let [columns, rows, _] = self.volume.size;
        let grey = |hu: i16| (((f64::from(hu) - low) / (high - low)).clamp(0.0, 1.0)) as f32;
        let hu = self.volume.slice(slice);
        let values = if black_outside {
            let labels = slice_labels(self.volume, self.lungs, slice);
            hu.iter().zip(labels).map(|(hu, label)| if is_lung(*label) { grey(*hu) } else { 0.0 }).collect()
        } else {
            hu.iter().map(|hu| grey(*hu)).collect()
        };
        Plane { rows, columns, values }
    }

    fn mask(&self, slice: usize) -> Plane {
        let [columns, rows, _] = self.volume.size;
        let labels = slice_labels(self.volume, self.lungs, slice);
        Plane { rows, columns, values: labels.iter().map(|label| f32::from(u8::from(is_lung(*label)))).collect() }
    }

    fn resized(&self, plane: &Plane) -> Result<Plane, PlaneError> {
        canvas::resize(&self.seen.cut(plane)?, self.recipe.rows, self.recipe.columns)
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the same arithmetic gives the same bits")]
mod tests {
    use super::*;

    /// 8 x 6 x 5 voxels; lung in rows 2 and 3, columns 1 to 6, slices 1 to 3; the value is 100 times the slice.
    fn scan() -> (Volume, LungLabels) {
        let size = [8, 6, 5];
        let mut labels = vec![0; 240];
        let mut hu = Vec::new();
        for slice in 0..5_usize {
            for row in 0..6 {
                for column in 0..8 {
                    hu.push(100 * slice as i16);
                    if (1..=3).contains(&slice) && (2..=3).contains(&row) && (1..=6).contains(&column) {
                        labels[(slice * 6 + row) * 8 + column] = if column < 4 { RIGHT_LUNG } else { LEFT_LUNG };
                    }
                }
            }
        }
        let lungs = LungLabels {
            labels,
            threshold_hu: Some(-500),
            airway_found: true,
            touching: false,
            border_pixels: 0,
            dropped_voxels: 0,
        };
        (Volume { size, spacing_mm: [10.0, 10.0, 2.0], hu }, lungs)
    }

    fn recipe() -> ScanRecipe {
        ScanRecipe {
            window_hu: [0.0, 400.0],
            outside_lungs_black: false,
            crop_to_lungs: false,
            crop_margin_mm: 0.0,
            resize: ResizeMode::Stretch,
            rows: 6,
            columns: 8,
            channels: vec![Channel::Slice],
            z_score: false,
            range: None,
            mean: vec![0.0],
            std: vec![1.0],
            minimum_lung_cm2: 0.0,
            slice_spacing_mm: None,
            maximum_slices: 100,
        }
    }

    fn input(recipe: &ScanRecipe) -> ScanInput {
        let (volume, lungs) = scan();
        scan_input(&volume, &lungs, recipe).unwrap().unwrap()
    }

    #[test]
    fn slices_with_lung_are_taken_and_windowed() {
        let found = input(&recipe());
        assert_eq!(found.slices, [1, 2, 3]);
        assert_eq!((found.channels, found.rows, found.columns), (1, 6, 8));
        assert_eq!(found.frame, Frame::WHOLE);
        assert_eq!(found.values[0], 0.25);
        assert_eq!(found.values[2 * 48], 0.75);
        let (volume, lungs) = scan();
        let none = ScanRecipe { minimum_lung_cm2: 12.5, ..recipe() };
        assert_eq!(scan_input(&volume, &lungs, &none).unwrap(), None, "12 pixels of 1 cm2 are lung");
    }

    #[test]
    fn few_slices_are_chosen_at_equal_distances() {
        assert_eq!(input(&ScanRecipe { maximum_slices: 1, ..recipe() }).slices, [2]);
        assert_eq!(input(&ScanRecipe { maximum_slices: 2, ..recipe() }).slices, [1, 3]);
    }

    #[test]
    fn the_box_of_the_lungs_is_cut_out_and_says_where_it_is() {
        let cut = ScanRecipe { crop_to_lungs: true, rows: 2, columns: 6, ..recipe() };
        let found = input(&ScanRecipe { channels: vec![Channel::LungMask], ..cut.clone() });
        assert_eq!(found.frame, Frame { left: 0.125, top: 2.0 / 6.0, width: 0.75, height: 2.0 / 6.0 });
        assert!(found.values.iter().all(|value| *value == 1.0), "nothing but lung is left");
        let wider = input(&ScanRecipe { crop_margin_mm: 10.0, ..cut.clone() });
        assert_eq!(wider.frame, Frame { left: 0.0, top: 1.0 / 6.0, width: 1.0, height: 4.0 / 6.0 });
        let square = input(&ScanRecipe { resize: ResizeMode::Pad, columns: 6, rows: 6, ..cut });
        assert_eq!(square.frame, Frame { left: 0.125, top: 0.0, width: 0.75, height: 1.0 });
    }

    #[test]
    fn outside_of_the_lungs_can_be_black() {
        let found = input(&ScanRecipe {
            channels: vec![Channel::Slice, Channel::MaskedSlice],
            mean: vec![0.0; 2],
            std: vec![1.0; 2],
            ..recipe()
        });
        assert_eq!((found.values[0], found.values[48]), (0.25, 0.0));
        assert_eq!((found.values[2 * 8 + 1], found.values[48 + 2 * 8 + 1]), (0.25, 0.25));
        let black = input(&ScanRecipe { outside_lungs_black: true, ..recipe() });
        assert_eq!((black.values[0], black.values[17]), (0.0, 0.25));
    }

    #[test]
    fn neighbours_and_numbers_are_those_of_the_recipe() {
        let channels = vec![Channel::Below, Channel::Slice, Channel::Above];
        let found = input(&ScanRecipe { channels, mean: vec![0.0, 0.25, 0.0], std: vec![1.0, 0.5, 2.0], ..recipe() });
        assert_eq!((found.values[0], found.values[48], found.values[96]), (0.0, 0.0, 0.25));
        let flat = input(&ScanRecipe { z_score: true, ..recipe() });
        assert!(flat.values.iter().all(|value| value.abs() < 1e-6), "a flat slice has no contrast");
        // Hounsfield units again, and a mask that stays one.
        let range = Some([0.0, 400.0]);
        let channels = vec![Channel::Slice, Channel::LungMask];
        let units = input(&ScanRecipe { channels, range, mean: vec![0.0; 2], std: vec![1.0; 2], ..recipe() });
        assert_eq!((units.values[0], units.values[2 * 8 + 1]), (100.0, 100.0));
        assert!(units.values[48..96].iter().all(|value| [0.0, 1.0].contains(value)));
    }

    #[test]
    fn a_volume_is_resampled_between_its_slices() {
        // 4 mm of lung in steps of 1 mm.
        let found = input(&ScanRecipe { slice_spacing_mm: Some(1.0), ..recipe() });
        assert_eq!(found.slices, [1, 2, 2, 3, 3]);
        let heights: Vec<f32> = found.values.chunks_exact(48).map(|slice| slice[0]).collect();
        assert_eq!(heights, [0.25, 0.375, 0.5, 0.625, 0.75]);
        let thin = input(&ScanRecipe { slice_spacing_mm: Some(1.0), maximum_slices: 3, ..recipe() });
        assert_eq!(thin.slices, [1, 2, 3]);
    }

    fn plan(recipe: &ScanRecipe) -> ScanPlan {
        let (volume, lungs) = scan();
        ScanPlan::of(&volume, &lungs, recipe).unwrap()
    }

    #[test]
    fn portions_of_a_plan_are_the_whole_input() {
        let (volume, lungs) = scan();
        let cut = ScanRecipe { crop_to_lungs: true, rows: 4, columns: 6, ..recipe() };
        let (plan, whole) = (plan(&cut), input(&cut));
        assert_eq!((plan.slices(), plan.wanted()), (vec![1, 2, 3], 3));
        let parts = [0..2, 2..3].map(|range| plan.input(&volume, &lungs, &cut, range).unwrap());
        assert_eq!((&parts[0].slices[..], &parts[1].slices[..]), (&[1, 2][..], &[3][..]));
        assert_eq!([parts[0].values.clone(), parts[1].values.clone()].concat(), whole.values);
        assert_eq!(plan.input(&volume, &lungs, &cut, 2..9).unwrap().values.len(), 0, "beyond the end is nothing");
        let few = self::plan(&ScanRecipe { maximum_slices: 2, ..cut });
        assert_eq!((few.slices(), few.wanted()), (vec![1, 3], 3));
    }

    /// A mask of source pixels goes the way of the slice (cut to the lungs, made square, resized) and comes back to the very
    /// pixels that it came from.
    #[test]
    fn a_mask_comes_back_to_its_pixels() {
        // Pixels of the box of the lungs (rows 2 and 3, columns 1 to 6), and of the square around it.
        let lesion = [(2, 1), (2, 2), (3, 6)];
        for (resize, factor, sides) in [
            (ResizeMode::Stretch, 1, [2, 6]),
            (ResizeMode::Stretch, 4, [8, 24]),
            (ResizeMode::Pad, 1, [6, 6]),
            (ResizeMode::Pad, 3, [18, 18]),
        ] {
            let [rows, columns] = sides;
            let plan = plan(&ScanRecipe { crop_to_lungs: true, resize, rows, columns, ..recipe() });
            // The square reaches two rows above and below the box.
            let top = if resize == ResizeMode::Pad { 0 } else { 2 };
            let mut said = Plane::filled(rows, columns, 0.0);
            for (row, column) in lesion {
                for at in 0..factor * factor {
                    let (y, x) = ((row - top) * factor + at / factor, (column - 1) * factor + at % factor);
                    said.values[y * columns + x] = 1.0;
                }
            }
            let found = plan.over_slice(&said).unwrap();
            assert_eq!((found.rows, found.columns), (6, 8));
            let pixels: Vec<(usize, usize)> =
                (0..48).filter(|at| found.values[*at] >= 0.5).map(|at| (at / 8, at % 8)).collect();
            assert_eq!(pixels, lesion, "{resize:?} x {factor}");
        }
        let plan = plan(&recipe());
        assert!(plan.over_slice(&Plane { rows: 2, columns: 2, values: vec![0.0; 3] }).is_err());
    }

    #[test]
    fn every_slice_of_the_scan_belongs_to_one_slice_of_the_input() {
        let own = plan(&recipe());
        assert_eq!([0, 1, 2, 3].map(|number| own.slices_of(number)), [1..2, 2..3, 3..4, 0..0]);
        // Slices of 2 mm: at 1 mm every second one of the input lies between two, at 4 mm one of the input speaks for two.
        let fine = plan(&ScanRecipe { slice_spacing_mm: Some(1.0), ..recipe() });
        assert_eq!([0, 1, 2, 3, 4].map(|number| fine.slices_of(number)), [1..2, 0..0, 2..3, 0..0, 3..4]);
        let coarse = plan(&ScanRecipe { slice_spacing_mm: Some(4.0), ..recipe() });
        assert_eq!(coarse.slices(), [1, 3]);
        assert_eq!([0, 1].map(|number| coarse.slices_of(number)), [1..2, 2..4]);
    }
}
