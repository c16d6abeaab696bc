//! Contrast equalisation of pictures with 256 grey levels, bit for bit as OpenCV 4 computes it (`equalizeHist`,
//! `createCLAHE`): networks are trained with it, and must see the same at work. Method: Zuiderveld, "Contrast limited
//! adaptive histogram equalization", Graphics Gems IV (1994), 474-485.

use super::Plane;

const LEVELS: usize = 256;

type Histogram = [u32; LEVELS];

/// Contrast equalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Equalisation {
    /// None.
    None,
    /// Of the whole picture's histogram.
    Histogram,
    /// Contrast limited, by tiles.
    Clahe {
        /// Limit of a histogram bin relative to a flat histogram.
        clip_limit: f64,
        /// Tiles in each direction, at least 1.
        tiles: usize,
    },
}

/// Equalises a picture with values 0 to 1, which are rounded to 256 grey levels first. A picture without pixels stays.
#[must_use]
pub fn equalise(picture: &Plane, equalisation: Equalisation) -> Plane {
    if picture.values.is_empty() || equalisation == Equalisation::None {
        return picture.clone();
    }
    let levels: Vec<u8> = picture.values.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
    let equal = match equalisation {
        Equalisation::None | Equalisation::Histogram => equalise_histogram(&levels),
        Equalisation::Clahe { clip_limit, tiles } => {
            clahe(&levels, picture.rows, picture.columns, clip_limit, tiles.max(1))
        }
    };
    let values = equal.into_iter().map(|level| f32::from(level) / 255.0).collect();
    Plane { rows: picture.rows, columns: picture.columns, values }
}

fn equalise_histogram(levels: &[u8]) -> Vec<u8> {
    let mut histogram: Histogram = [0; LEVELS];
    for level in levels {
        histogram[usize::from(*level)] += 1;
    }
    let darkest = histogram.iter().position(|count| *count > 0).unwrap_or(0);
    let rest = levels.len() as u32 - histogram[darkest];
    if rest == 0 {
        return levels.to_vec();
    }
    let scale = 255.0 / rest as f32;
    let mut table = [0_u8; LEVELS];
    let mut sum = 0;
    for level in darkest + 1..LEVELS {
        sum += histogram[level];
        table[level] = to_level(sum as f32 * scale);
    }
    levels.iter().map(|level| table[usize::from(*level)]).collect()
}

/// OpenCV rounds halves to the even neighbour.
fn to_level(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, 255.0) as u8
}

fn clahe(levels: &[u8], rows: usize, columns: usize, clip_limit: f64, tiles: usize) -> Vec<u8> {
    // A picture that the tiles do not divide is extended by mirroring without repeating the edge, in both directions
    // even when one fits.
    let fits = rows.is_multiple_of(tiles) && columns.is_multiple_of(tiles);
    let extended = |length: usize| if fits { length } else { length + tiles - length % tiles };
    let (tile_rows, tile_columns) = (extended(rows) / tiles, extended(columns) / tiles);
    let area = tile_rows * tile_columns;
    let limit = ((clip_limit * area as f64 / LEVELS as f64) as u32).max(1);

    let mut tables = Vec::with_capacity(tiles * tiles);
    for tile_y in 0..tiles {
        for tile_x in 0..tiles {
            let mut histogram: Histogram = [0; LEVELS];
            for y in tile_y * tile_rows..(tile_y + 1) * tile_rows {
                let row = mirrored(y, rows) * columns;
                for x in tile_x * tile_columns..(tile_x + 1) * tile_columns {
                    histogram[usize::from(levels[row + mirrored(x, columns)])] += 1;
                }
            }
            clip(&mut histogram, limit);
            tables.push(cumulative(&histogram, area));
        }
    }

    let places_x: Vec<Between> = (0..columns).map(|x| Between::new(x, tile_columns, tiles)).collect();
    let mut equal = Vec::with_capacity(levels.len());
    for (y, row) in levels.chunks_exact(columns).enumerate() {
        let in_y = Between::new(y, tile_rows, tiles);
        for (level, in_x) in row.iter().zip(&places_x) {
            let at = |tile_y: usize, tile_x: usize| f32::from(tables[tile_y * tiles + tile_x][usize::from(*level)]);
            let first = at(in_y.first, in_x.first) * (1.0 - in_x.share) + at(in_y.first, in_x.second) * in_x.share;
            let second = at(in_y.second, in_x.first) * (1.0 - in_x.share) + at(in_y.second, in_x.second) * in_x.share;
            equal.push(to_level(first * (1.0 - in_y.share) + second * in_y.share));
        }
    }
    equal
}

fn mirrored(position: usize, length: usize) -> usize {
    if length == 1 {
        return 0;
    }
    let period = 2 * (length - 1);
    let within = position % period;
    within.min(period - within)
}

/// Cuts the bins at `limit` and spreads what was cut off over all of them.
fn clip(histogram: &mut Histogram, limit: u32) {
    let mut excess = 0;
    for count in histogram.iter_mut() {
        excess += count.saturating_sub(limit);
        *count = (*count).min(limit);
    }
    let (each, rest) = (excess / LEVELS as u32, excess as usize % LEVELS);
    for count in histogram.iter_mut() {
        *count += each;
    }
    let step = LEVELS.checked_div(rest).unwrap_or(1).max(1);
    for count in histogram.iter_mut().step_by(step).take(rest) {
        *count += 1;
    }
}

fn cumulative(histogram: &Histogram, area: usize) -> [u8; LEVELS] {
    let scale = (LEVELS - 1) as f32 / area as f32;
    let mut sum = 0;
    histogram.map(|count| {
        sum += count;
        to_level(sum as f32 * scale)
    })
}

/// Where a pixel lies between the centres of two tiles.
struct Between {
    first: usize,
    second: usize,
    share: f32,
}

impl Between {
    fn new(position: usize, tile: usize, tiles: usize) -> Self {
        let place = position as f32 * (1.0 / tile as f32) - 0.5;
        let below = place.floor();
        let clamped = |tile: f32| (tile.max(0.0) as usize).min(tiles - 1);
        Self { first: clamped(below), second: clamped(below + 1.0), share: place - below }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        rows: usize,
        columns: usize,
        picture: Vec<u8>,
        histogram: Vec<u8>,
        clahe: Vec<GoldenClahe>,
    }

    #[derive(serde::Deserialize)]
    struct GoldenClahe {
        clip_limit: f64,
        tiles: usize,
        picture: Vec<u8>,
    }

    fn levels(plane: &Plane) -> Vec<u8> {
        plane.values.iter().map(|value| (value * 255.0).round() as u8).collect()
    }

    /// Of `deploy/golden/make_equalisation.py`, with OpenCV itself.
    #[test]
    fn every_pixel_is_as_opencv_computes_it() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/equalisation.json")).unwrap();
        assert!(golden.len() >= 4);
        for Golden { rows, columns, picture, histogram, clahe } in golden {
            let values = picture.iter().map(|level| f32::from(*level) / 255.0).collect();
            let picture = Plane { rows, columns, values };
            assert_eq!(levels(&equalise(&picture, Equalisation::Histogram)), histogram, "{rows} x {columns}");
            assert_eq!(equalise(&picture, Equalisation::None), picture);
            assert!(clahe.len() >= 3);
            for GoldenClahe { clip_limit, tiles, picture: expected } in clahe {
                let found = levels(&equalise(&picture, Equalisation::Clahe { clip_limit, tiles }));
                assert_eq!(found, expected, "{rows} x {columns}, clip limit {clip_limit}, {tiles} tiles");
            }
        }
    }

    #[test]
    fn flat_tiny_and_empty_pictures_survive() {
        for (rows, columns) in [(1, 1), (1, 7), (3, 1), (0, 0)] {
            let picture = Plane::filled(rows, columns, 0.5);
            for equalisation in [Equalisation::Histogram, Equalisation::Clahe { clip_limit: 2.0, tiles: 8 }] {
                assert_eq!(equalise(&picture, equalisation).values.len(), rows * columns);
            }
        }
    }
}
