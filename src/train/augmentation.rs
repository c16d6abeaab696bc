//! Random changes of a training picture, the same of picture and mask, from a counter-based stream: the same seed, epoch
//! and image give the same changes on every machine and after every resume.

use serde::{Deserialize, Serialize};

use crate::{imaging::Plane, nn::seeded, types::Placement};

/// How far training pictures are changed; 0 leaves out a change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// Share of the pictures that are mirrored left to right, 0 to 1.
    pub flip_probability: f64,
    /// Turned by up to this angle either way, 0 to 180 degrees.
    pub rotation_degrees: f64,
    /// Made larger or smaller by up to this share, 0 to 0.5.
    pub scale_fraction: f64,
    /// Moved by up to this share of the side, in each direction, 0 to 0.5.
    pub shift_fraction: f64,
    /// Added to the grey values (0 to 1), up to this much either way, 0 to 0.5.
    pub brightness: f64,
    /// Contrast about middle grey is multiplied by 1 plus or minus up to this, 0 to 0.9.
    pub contrast: f64,
    /// The grey values are raised to a power from 1 / (1 + this) to 1 + this, 0 to 2.
    pub gamma: f64,
    /// Standard deviation of the noise that is added to each pixel, 0 to 0.2.
    pub noise: f64,
    /// Largest displacement by the elastic deformation (Simard et al., ICDAR 2003, on a coarse grid), as a share of the
    /// side, 0 to 0.1.
    pub elastic_fraction: f64,
    /// Cells of the elastic deformation's grid in each direction, 2 to 32.
    pub elastic_cells: u32,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            flip_probability: 0.5,
            rotation_degrees: 10.0,
            scale_fraction: 0.1,
            shift_fraction: 0.05,
            brightness: 0.1,
            contrast: 0.2,
            gamma: 0.2,
            noise: 0.01,
            elastic_fraction: 0.0,
            elastic_cells: 6,
        }
    }
}

impl Augmentation {
    /// No change at all.
    pub const NONE: Self = Self {
        flip_probability: 0.0,
        rotation_degrees: 0.0,
        scale_fraction: 0.0,
        shift_fraction: 0.0,
        brightness: 0.0,
        contrast: 0.0,
        gamma: 0.0,
        noise: 0.0,
        elastic_fraction: 0.0,
        elastic_cells: 6,
    };

    /// What is wrong, each with its remedy.
    pub(super) fn problems(&self) -> Vec<String> {
        let ranges = [
            ("flip_probability", self.flip_probability, 1.0),
            ("rotation_degrees", self.rotation_degrees, 180.0),
            ("scale_fraction", self.scale_fraction, 0.5),
            ("shift_fraction", self.shift_fraction, 0.5),
            ("brightness", self.brightness, 0.5),
            ("contrast", self.contrast, 0.9),
            ("gamma", self.gamma, 2.0),
            ("noise", self.noise, 0.2),
            ("elastic_fraction", self.elastic_fraction, 0.1),
        ];
        let mut problems: Vec<String> = ranges
            .into_iter()
            .filter(|(_, value, most)| !(0.0..=*most).contains(value))
            .map(|(key, value, most)| format!("`augmentation.{key}` is {value}: give 0 to {most}"))
            .collect();
        if !(2..=32).contains(&self.elastic_cells) {
            problems.push(format!("`augmentation.elastic_cells` is {}: give 2 to 32", self.elastic_cells));
        }
        problems
    }

    /// Draws the changes of one picture.
    #[must_use]
    pub fn draw(&self, stream: &mut Stream) -> Changes {
        let mut either_way = |most: f64| most * (2.0 * stream.unit() - 1.0);
        let degrees = either_way(self.rotation_degrees);
        let scale = 1.0 + either_way(self.scale_fraction);
        let shift = [either_way(self.shift_fraction), either_way(self.shift_fraction)];
        let brightness = either_way(self.brightness) as f32;
        let contrast = (1.0 + either_way(self.contrast)) as f32;
        let gamma = (1.0 + self.gamma).powf(either_way(1.0)) as f32;
        let flip = stream.unit() < self.flip_probability;
        let cells = if self.elastic_fraction > 0.0 { self.elastic_cells as usize } else { 0 };
        let elastic = (0..2 * cells * cells).map(|_| self.elastic_fraction * (2.0 * stream.unit() - 1.0)).collect();
        let noise_seed = stream.next_u64();
        Changes {
            radians: degrees.to_radians(),
            scale,
            shift,
            flip,
            elastic,
            elastic_cells: cells,
            brightness,
            contrast,
            gamma,
            noise: self.noise as f32,
            noise_seed,
        }
    }
}

/// The changes of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    radians: f64,
    scale: f64,
    shift: [f64; 2],
    flip: bool,
    /// Displacements of the grid's corners, first all to the right, then all down.
    elastic: Vec<f64>,
    elastic_cells: usize,
    brightness: f32,
    contrast: f32,
    gamma: f32,
    noise: f32,
    noise_seed: u64,
}

impl Changes {
    /// Moves what a square plane shows; bilinear, black where nothing comes from.
    #[must_use]
    pub fn warp(&self, plane: &Plane) -> Plane {
        self.moved(plane, |plane, x, y| {
            let (left, top) = (x.floor(), y.floor());
            let (right_share, lower_share) = ((x - left) as f32, (y - top) as f32);
            let at = |x: f64, y: f64| value_at(plane, x, y).unwrap_or(0.0);
            let upper = at(left, top) * (1.0 - right_share) + at(left + 1.0, top) * right_share;
            let lower = at(left, top + 1.0) * (1.0 - right_share) + at(left + 1.0, top + 1.0) * right_share;
            upper * (1.0 - lower_share) + lower * lower_share
        })
    }

    /// Moves labels in a square: the nearest, 0 where nothing comes from.
    #[must_use]
    pub fn warp_labels(&self, labels: &[u8], side: usize) -> Vec<u8> {
        let plane = Plane { rows: side, columns: side, values: labels.iter().map(|label| f32::from(*label)).collect() };
        let moved = self.moved(&plane, |plane, x, y| value_at(plane, x.round(), y.round()).unwrap_or(0.0));
        moved.values.into_iter().map(|label| label as u8).collect()
    }

    fn moved(&self, plane: &Plane, sample: impl Fn(&Plane, f64, f64) -> f32) -> Plane {
        let (rows, columns) = (plane.rows as f64, plane.columns as f64);
        let (sine, cosine) = self.radians.sin_cos();
        let mut values = Vec::with_capacity(plane.values.len());
        for row in 0..plane.rows {
            // From the middle, in shares of the side.
            let y = (row as f64 + 0.5) / rows - 0.5 - self.shift[1];
            for column in 0..plane.columns {
                let x = (column as f64 + 0.5) / columns - 0.5 - self.shift[0];
                let (mut from_x, mut from_y) =
                    ((cosine * x + sine * y) / self.scale, (cosine * y - sine * x) / self.scale);
                if self.elastic_cells > 0 {
                    from_x += self.displacement(0, from_x + 0.5, from_y + 0.5);
                    from_y += self.displacement(1, from_x + 0.5, from_y + 0.5);
                }
                if self.flip {
                    from_x = -from_x;
                }
                values.push(sample(plane, (from_x + 0.5) * columns - 0.5, (from_y + 0.5) * rows - 0.5));
            }
        }
        Plane { rows: plane.rows, columns: plane.columns, values }
    }

    /// Of the elastic grid at a place in shares of the side; smooth between the corners.
    fn displacement(&self, direction: usize, x: f64, y: f64) -> f64 {
        let last = self.elastic_cells - 1;
        let (x, y) = (x.clamp(0.0, 1.0) * last as f64, y.clamp(0.0, 1.0) * last as f64);
        let (left, top) = ((x as usize).min(last - 1), (y as usize).min(last - 1));
        let ease = |share: f64| share * share * (3.0 - 2.0 * share);
        let (right_share, lower_share) = (ease(x - left as f64), ease(y - top as f64));
        let at = |column: usize, row: usize| {
            let corner = (direction * self.elastic_cells + row) * self.elastic_cells + column;
            self.elastic.get(corner).copied().unwrap_or(0.0)
        };
        let upper = at(left, top) * (1.0 - right_share) + at(left + 1, top) * right_share;
        let lower = at(left, top + 1) * (1.0 - right_share) + at(left + 1, top + 1) * right_share;
        upper * (1.0 - lower_share) + lower * lower_share
    }

    /// Changes the grey values (0 to 1) of the picture on a canvas; they stay between 0 and 1, and the padding stays.
    pub fn shade(&self, canvas: &mut Plane, placement: &Placement) {
        let mut noise = Stream::new(self.noise_seed, 0, 0);
        let columns = placement.pad_left as usize..(placement.pad_left + placement.source_columns) as usize;
        let rows = canvas.values.chunks_exact_mut(canvas.columns.max(1));
        for row in rows.skip(placement.pad_top as usize).take(placement.source_rows as usize) {
            for value in row.get_mut(columns.clone()).unwrap_or_default() {
                let raised = value.clamp(0.0, 1.0).powf(self.gamma);
                let shaded = (raised - 0.5) * self.contrast + 0.5 + self.brightness;
                let noisy = if self.noise > 0.0 { shaded + self.noise * noise.bell() } else { shaded };
                *value = noisy.clamp(0.0, 1.0);
            }
        }
    }
}

fn value_at(plane: &Plane, x: f64, y: f64) -> Option<f32> {
    let is_inside = x >= 0.0 && y >= 0.0 && x < plane.columns as f64 && y < plane.rows as f64;
    if is_inside { plane.values.get(y as usize * plane.columns + x as usize).copied() } else { None }
}

/// Random numbers of one picture in one epoch (SplitMix64, Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The stream of `item` in `round` under a seed.
    #[must_use]
    pub const fn new(seed: u64, round: u64, item: u64) -> Self {
        let state = mix(mix(mix(seed).wrapping_add(round)).wrapping_add(item));
        Self { state }
    }

    /// 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        (((u128::from(self.next_u64())) * (end as u128)) >> 64) as usize
    }

    /// Nearly normal with mean 0 and standard deviation 1: the sum of four uniform numbers.
    pub fn bell(&mut self) -> f32 {
        let bits = self.next_u64();
        let sum: u32 = [0, 16, 32, 48].into_iter().map(|shift| ((bits >> shift) & 0xFFFF) as u32).sum();
        // Of a sum of four the standard deviation is the square root of four twelfths.
        (sum as f32 / 65_536.0 - 2.0) * 3.0_f32.sqrt()
    }

    /// Puts the items into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// One step of SplitMix64: far apart for neighbouring numbers.
const fn mix(state: u64) -> u64 {
    seeded::mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::canvas::placement;

    /// A white square of 20 at row 40, column 60 of a side of 100.
    fn square() -> Plane {
        let mut plane = Plane::filled(100, 100, 0.0);
        for row in 40..60 {
            plane.values[row * 100 + 60..row * 100 + 80].fill(1.0);
        }
        plane
    }

    fn centre(plane: &Plane) -> (f64, f64) {
        let mut sums = (0.0, 0.0, 0.0);
        for (idx, value) in plane.values.iter().enumerate() {
            let value = f64::from(*value);
            sums.0 += value;
            sums.1 += value * (idx / plane.columns) as f64;
            sums.2 += value * (idx % plane.columns) as f64;
        }
        (sums.1 / sums.0, sums.2 / sums.0)
    }

    fn still() -> Changes {
        Augmentation::NONE.draw(&mut Stream::new(1, 2, 3))
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "the same arithmetic gives the same bits")]
    fn nothing_changes_nothing() {
        let mut same = still().warp(&square());
        still().shade(&mut same, &placement(100, 100));
        assert!(same.values.iter().zip(&square().values).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(still().gamma, 1.0);
    }

    #[test]
    fn pictures_move_as_they_are_told_and_masks_with_them() {
        let labels: Vec<u8> = square().values.iter().map(|value| *value as u8 * 2).collect();
        for (changes, expected) in [
            (Changes { flip: true, ..still() }, (49.5, 29.5)),
            (Changes { shift: [0.1, -0.2], ..still() }, (29.5, 79.5)),
            // A quarter turn: from the right of the middle to below it.
            (Changes { radians: std::f64::consts::FRAC_PI_2, ..still() }, (69.5, 49.5)),
            (Changes { scale: 1.5, ..still() }, (49.5, 79.5)),
        ] {
            let (row, column) = centre(&changes.warp(&square()));
            assert!((row - expected.0).abs() < 0.6 && (column - expected.1).abs() < 0.6, "{row} {column} {expected:?}");
            let moved = changes.warp_labels(&labels, 100);
            assert!(moved.iter().all(|label| [0, 2].contains(label)));
            let mask = Plane { rows: 100, columns: 100, values: moved.iter().map(|label| f32::from(*label)).collect() };
            let (mask_row, mask_column) = centre(&mask);
            assert!((row - mask_row).abs() < 0.6 && (column - mask_column).abs() < 0.6);
        }
    }

    #[test]
    fn elastic_deformation_moves_smoothly_and_not_too_far() {
        let options = Augmentation { elastic_fraction: 0.04, ..Augmentation::NONE };
        let changes = options.draw(&mut Stream::new(5, 0, 0));
        let mut most: f64 = 0.0;
        for step in 0..100 {
            let here = changes.displacement(0, f64::from(step) / 100.0, 0.3);
            let next = changes.displacement(0, f64::from(step + 1) / 100.0, 0.3);
            assert!(here.abs() <= 0.04 && (here - next).abs() < 0.01, "{here} {next}");
            most = most.max(here.abs());
        }
        assert!(most > 0.005, "{most}");
        assert_ne!(changes.warp(&square()), square());
    }

    #[test]
    fn grey_values_change_within_their_range() {
        let mut plane = Plane::filled(50, 50, 0.5);
        Changes { brightness: 0.2, noise: 0.05, noise_seed: 9, ..still() }.shade(&mut plane, &placement(50, 50));
        let mean = plane.values.iter().sum::<f32>() / 2500.0;
        let variance = plane.values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 2500.0;
        assert!((mean - 0.7).abs() < 0.01 && (variance.sqrt() - 0.05).abs() < 0.005, "{mean} {variance}");
        let mut bright = Plane::filled(4, 4, 0.9);
        Changes { contrast: 1.5, ..still() }.shade(&mut bright, &placement(2, 4));
        let expected = [[0.9; 4], [1.0; 4], [1.0; 4], [0.9; 4]].concat();
        assert!(
            bright.values.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6),
            "{bright:?}"
        );
    }

    #[test]
    fn streams_are_the_same_again_and_differ_by_round_and_item() {
        let numbers = |seed, round, item| {
            let mut stream = Stream::new(seed, round, item);
            [stream.next_u64(), stream.next_u64()]
        };
        assert_eq!(numbers(1, 2, 3), numbers(1, 2, 3));
        let all = [numbers(1, 2, 3), numbers(2, 2, 3), numbers(1, 3, 3), numbers(1, 2, 4), numbers(1, 3, 2)];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        let mut stream = Stream::new(1, 0, 0);
        let drawn: Vec<usize> = (0..10_000).map(|_| stream.below(7)).collect();
        assert!((0..7).all(|value| (1300..1560).contains(&drawn.iter().filter(|found| **found == value).count())));
    }

    #[test]
    fn impossible_amounts_are_named() {
        let bad = Augmentation { rotation_degrees: 270.0, noise: f64::NAN, elastic_cells: 1, ..Augmentation::NONE };
        let problems = bad.problems().join("\n");
        for key in ["rotation_degrees` is 270", "noise` is NaN", "elastic_cells` is 1"] {
            assert!(problems.contains(key), "{problems}");
        }
        assert!(Augmentation::default().problems().is_empty());
    }
}
