//! Class-activation maps: scaling, fusion, sampling.

use super::{
    Plane,
    lungs::{BACKGROUND, LEFT_LUNG, Lungs, RIGHT_LUNG},
};
use crate::types::{Frame, HeatMap};

/// Heat, relative to the maximum, from which a place counts as hot.
pub const HOT: f32 = 0.5;
/// Share of the heat that should lie in the lungs: with less, the output may rest on something else.
pub const ENOUGH_IN_LUNGS: f64 = 0.5;
/// `method` of a fused map.
pub const FUSED_METHOD: &str = "mean of members";

/// Scales the positive part of an activation map to 0 to 1 and remembers its maximum: a map stretched from next to
/// nothing must be recognisable as such. Values that are not finite count as 0. `frame` is what the network saw.
#[must_use]
pub fn heat_map(activation: &Plane, method: &str, frame: Frame) -> HeatMap {
    let positive = |value: f32| if value.is_finite() { value.max(0.0) } else { 0.0 };
    let maximum = activation.values.iter().map(|&value| positive(value)).fold(0.0, f32::max);
    let scale = |value: f32| if maximum > 0.0 { (positive(value) / maximum).min(1.0) } else { 0.0 };
    HeatMap {
        rows: activation.rows,
        columns: activation.columns,
        values: activation.values.iter().map(|&value| scale(value)).collect(),
        maximum_activation: maximum,
        method: method.to_owned(),
        frame,
    }
}

/// The mean of the members' maps, weighted by their output for the class, scaled to 0 to 1. Its
/// `maximum_activation` is the largest weighted mean: 1 where all members agree on the place, less otherwise.
///
/// Maps of different grids are sampled on the finest one; where members saw different parts of the canvas, on one of half
/// its cells over all of them. Without maps, or when all weights are 0, the map is empty (a single 0).
#[must_use]
pub fn fuse(maps: &[(&HeatMap, f64)]) -> HeatMap {
    let Grid { rows, columns, frame, parts } = common_grid(&maps.iter().map(|(map, _)| *map));
    let weight_of = |weight: f64| if weight.is_finite() { weight.max(0.0) } else { 0.0 };
    let total: f64 = maps.iter().map(|(_, weight)| weight_of(*weight)).sum();
    let mut mean = Plane::filled(rows, columns, 0.0);
    if total > 0.0 {
        for (index, value) in mean.values.iter_mut().enumerate() {
            let places = (0..parts * parts).map(|part| {
                let along = |cell: usize, part: usize| cell as f64 + (part as f64 + 0.5) / parts as f64;
                let y = frame.top + along(index / columns, part / parts) / rows as f64 * frame.height;
                let x = frame.left + along(index % columns, part % parts) / columns as f64 * frame.width;
                maps.iter().map(|(map, weight)| f64::from(sample(map, x, y)) * weight_of(*weight)).sum::<f64>()
            });
            *value = (places.sum::<f64>() / total / (parts * parts) as f64) as f32;
        }
    }
    heat_map(&mean, FUSED_METHOD, frame)
}

/// A grid over a part of the canvas. Each cell is the mean over `parts` x `parts` places of it.
struct Grid {
    rows: usize,
    columns: usize,
    frame: Frame,
    parts: usize,
}

/// A grid that loses little of each map.
fn common_grid<'a>(maps: &(impl Iterator<Item = &'a HeatMap> + Clone)) -> Grid {
    let rows = maps.clone().map(|map| map.rows).max().unwrap_or(1).max(1);
    let columns = maps.clone().map(|map| map.columns).max().unwrap_or(1).max(1);
    let frame = maps.clone().map(|map| map.frame).next().unwrap_or_default();
    if maps.clone().all(|map| map.frame == frame) {
        return Grid { rows, columns, frame, parts: 1 };
    }
    let least = |of: fn(&HeatMap) -> f64| maps.clone().map(of).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&HeatMap) -> f64| maps.clone().map(of).fold(f64::NEG_INFINITY, f64::max);
    let (left, top) = (least(|map| map.frame.left), least(|map| map.frame.top));
    let width = most(|map| map.frame.left + map.frame.width) - left;
    let height = most(|map| map.frame.top + map.frame.height) - top;
    let wanted = |length: f64, cell: f64| ((2.0 * length / cell).ceil() as usize).max(1);
    let rows = wanted(height, least(|map| map.frame.height / map.rows.max(1) as f64));
    let columns = wanted(width, least(|map| map.frame.width / map.columns.max(1) as f64));
    let parts = rows.max(columns).div_ceil(MOST_CELLS).min(MOST_PARTS);
    Grid {
        rows: rows.min(MOST_CELLS),
        columns: columns.min(MOST_CELLS),
        frame: Frame { left, top, width, height },
        parts,
    }
}

/// Cells in a direction of a fused map, where its members saw different parts of the canvas.
const MOST_CELLS: usize = 256;
/// Places in a direction of such a cell: a member that saw next to nothing would ask for thousands.
const MOST_PARTS: usize = 8;

/// The heat at `x`, `y` of the canvas (0 to 1 from its left and top edge), bilinear between the centres of the grid's
/// cells, constant beyond the outermost ones as far as the network saw, and nothing beyond that.
#[must_use]
pub fn sample(map: &HeatMap, x: f64, y: f64) -> f32 {
    let Frame { left, top, width, height } = map.frame;
    let (x, y) = ((x - left) / width, (y - top) / height);
    if !(0.0..=1.0).contains(&x) || !(0.0..=1.0).contains(&y) {
        return 0.0;
    }
    let (x0, x1, x_share) = neighbours(x, map.columns);
    let (y0, y1, y_share) = neighbours(y, map.rows);
    let at = |row: usize, column: usize| map.values.get(row * map.columns + column).copied().unwrap_or(0.0);
    let top = at(y0, x0) * (1.0 - x_share) + at(y0, x1) * x_share;
    let bottom = at(y1, x0) * (1.0 - x_share) + at(y1, x1) * x_share;
    top * (1.0 - y_share) + bottom * y_share
}

fn neighbours(position: f64, cells: usize) -> (usize, usize, f32) {
    let last = cells.saturating_sub(1);
    let cell = (position * cells as f64 - 0.5).clamp(0.0, last as f64);
    let first = cell.floor() as usize;
    (first, (first + 1).min(last), cell.fract() as f32)
}

/// Share of the right and of the left lung where the map is at least [`HOT`]; `None` for a lung that is not there.
#[must_use]
pub fn hot_fractions(map: &HeatMap, lungs: &Lungs) -> (Option<f64>, Option<f64>) {
    let rows = lungs.labels.len().checked_div(lungs.side).unwrap_or(0);
    let mut counts = [(0_u64, 0_u64); 3];
    for (index, &label) in lungs.labels.iter().enumerate() {
        let Some((all, hot)) = counts.get_mut(usize::from(label)) else { continue };
        *all += 1;
        let y = ((index / lungs.side) as f64 + 0.5) / rows as f64;
        let x = ((index % lungs.side) as f64 + 0.5) / lungs.side as f64;
        *hot += u64::from(label != 0 && sample(map, x, y) >= HOT);
    }
    let fraction = |label: u8| {
        let (all, hot) = counts[usize::from(label)];
        (all > 0).then(|| hot as f64 / all as f64)
    };
    (fraction(RIGHT_LUNG), fraction(LEFT_LUNG))
}

/// Share of the map's heat that lies in the lungs, 0 to 1; `None` for a cold map.
#[must_use]
pub fn lung_share(map: &HeatMap, lungs: &Lungs) -> Option<f64> {
    let rows = lungs.labels.len().checked_div(lungs.side).unwrap_or(0);
    let (mut all, mut inside) = (0.0, 0.0);
    for (index, &label) in lungs.labels.iter().enumerate() {
        let y = ((index / lungs.side) as f64 + 0.5) / rows as f64;
        let x = ((index % lungs.side) as f64 + 0.5) / lungs.side as f64;
        let heat = f64::from(sample(map, x, y).max(0.0));
        all += heat;
        inside += if label == BACKGROUND { 0.0 } else { heat };
    }
    (all > 0.0).then(|| inside / all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::canvas::placement;

    fn plane(rows: usize, columns: usize, values: &[f32]) -> Plane {
        Plane { rows, columns, values: values.to_vec() }
    }

    #[test]
    fn only_the_positive_part_is_scaled() {
        let map = heat_map(&plane(1, 4, &[-3.0, 0.5, 2.0, f32::NAN]), "cam", Frame::WHOLE);
        assert_eq!(map.values, [0.0, 0.25, 1.0, 0.0]);
        assert!((map.maximum_activation - 2.0).abs() < f32::EPSILON);
        let cold = heat_map(&plane(1, 2, &[-1.0, -2.0]), "cam", Frame::WHOLE);
        assert_eq!(cold.values, [0.0, 0.0]);
        assert!(cold.maximum_activation.abs() < f32::EPSILON);
    }

    #[test]
    fn fusion_weights_members_by_their_output() {
        let first = heat_map(&plane(1, 2, &[4.0, 0.0]), "cam", Frame::WHOLE);
        let second = heat_map(&plane(1, 2, &[0.0, 9.0]), "hirescam", Frame::WHOLE);
        let fused = fuse(&[(&first, 0.9), (&second, 0.3)]);
        // Weighted means 0.75 and 0.25, then scaled to the larger.
        assert!((fused.values[0] - 1.0).abs() < 1e-6 && (fused.values[1] - 1.0 / 3.0).abs() < 1e-6);
        assert!((fused.maximum_activation - 0.75).abs() < 1e-6);
        assert_eq!(fused.method, FUSED_METHOD);
    }

    #[test]
    fn a_member_that_saw_next_to_nothing_costs_no_time() {
        let sliver = Frame { left: 0.5, top: 0.5, width: 1e-4, height: 1e-4 };
        let first = heat_map(&plane(1, 2, &[1.0, 0.0]), "cam", sliver);
        let second = heat_map(&plane(1, 2, &[0.0, 1.0]), "cam", Frame::WHOLE);
        let Grid { rows, columns, parts, .. } = common_grid(&[&first, &second].into_iter());
        assert_eq!((rows, columns, parts), (MOST_CELLS, MOST_CELLS, MOST_PARTS));
        assert_eq!(fuse(&[(&first, 0.5), (&second, 0.5)]).values.len(), MOST_CELLS * MOST_CELLS);
    }

    #[test]
    fn fusion_of_nothing_is_empty() {
        assert_eq!(fuse(&[]).values, [0.0]);
        let map = heat_map(&plane(1, 2, &[4.0, 0.0]), "cam", Frame::WHOLE);
        assert_eq!(fuse(&[(&map, 0.0)]).values, [0.0, 0.0]);
    }

    #[test]
    fn sampling_is_bilinear_between_cell_centres() {
        let map = heat_map(&plane(2, 2, &[0.0, 1.0, 0.0, 1.0]), "cam", Frame::WHOLE);
        for (x, expected) in [(0.0, 0.0), (0.25, 0.0), (0.5, 0.5), (0.625, 0.75), (0.75, 1.0), (1.0, 1.0)] {
            assert!((sample(&map, x, 0.5) - expected).abs() < 1e-6, "at {x}");
        }
    }

    #[test]
    fn hot_fractions_count_per_lung() {
        let mut probabilities = Plane::filled(40, 40, 0.0);
        for row in 4..36 {
            probabilities.values[row * 40 + 4..row * 40 + 16].fill(1.0);
            probabilities.values[row * 40 + 24..row * 40 + 36].fill(1.0);
        }
        let lungs = Lungs::from_probabilities(&probabilities, &placement(40, 40));
        // Hot in the whole left half of the picture: the right lung.
        let map = heat_map(&plane(1, 2, &[1.0, 0.0]), "cam", Frame::WHOLE);
        let (right, left) = hot_fractions(&map, &lungs);
        assert!((right.unwrap() - 1.0).abs() < 1e-9);
        assert!(left.unwrap().abs() < 1e-9);
        // A lung of 32 by 12 cells of a picture of 40 by 40.
        let everywhere = heat_map(&plane(1, 1, &[1.0]), "cam", Frame::WHOLE);
        assert!((lung_share(&everywhere, &lungs).unwrap() - 2.0 * 32.0 * 12.0 / 1600.0).abs() < 1e-6);
        assert_eq!(lung_share(&heat_map(&plane(1, 1, &[-1.0]), "cam", Frame::WHOLE), &lungs), None);
    }
}
