//! Shapes in voxels: connected components by runs, distances in millimetres, discs, holes.

/// Most runs and most components of one mask: ten times what a large and noisy chest has. At 20 and 8 bytes each they
/// take less than half a gigabyte.
const MAXIMUM_RUNS: usize = 20_000_000;
const MAXIMUM_COMPONENTS: usize = 4_000_000;

/// A volume falls into so many pieces that it is noise, and listing them would take more memory than the volume itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "air and tissue are in more than {MAXIMUM_COMPONENTS} pieces or {MAXIMUM_RUNS} runs: this is noise and no chest; a \
     smoother reconstruction is expected"
)]
pub struct TooManyPieces;

/// A run of set voxels in one row.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Row number counted through all slices.
    row: u32,
    start: u16,
    /// Behind the last.
    end: u16,
}

/// The connected components of a mask, neighbours sharing a face. Takes time and memory for runs, not for voxels.
#[derive(Debug, Clone)]
pub(super) struct Components {
    size: [usize; 3],
    runs: Vec<Run>,
    /// Component number of each run.
    of_run: Vec<u32>,
    /// Voxels of each component.
    pub(super) voxels: Vec<usize>,
}

impl Components {
    /// Finds the components of what `is_set` says of each row: (slice, row, its voxels to fill in). Slices are not
    /// connected with one another when `by_slice`.
    ///
    /// # Errors
    /// [`TooManyPieces`] above [`MAXIMUM_RUNS`] and [`MAXIMUM_COMPONENTS`].
    pub(super) fn of(
        size: [usize; 3],
        by_slice: bool,
        mut row_of: impl FnMut(usize, usize, &mut [bool]),
    ) -> Result<Self, TooManyPieces> {
        let [columns, rows, slices] = size;
        let mut runs: Vec<Run> = Vec::new();
        let mut first_of_row: Vec<usize> = Vec::with_capacity(rows * slices + 1);
        let mut row_buffer = vec![false; columns];
        for slice in 0..slices {
            for row in 0..rows {
                first_of_row.push(runs.len());
                row_buffer.fill(false);
                row_of(slice, row, &mut row_buffer);
                let mut column = 0;
                while column < columns {
                    if !row_buffer[column] {
                        column += 1;
                        continue;
                    }
                    let start = column;
                    while column < columns && row_buffer[column] {
                        column += 1;
                    }
                    runs.push(Run { row: (slice * rows + row) as u32, start: start as u16, end: column as u16 });
                }
                if runs.len() > MAXIMUM_RUNS {
                    return Err(TooManyPieces);
                }
            }
        }
        first_of_row.push(runs.len());

        let mut parent: Vec<u32> = (0..runs.len() as u32).collect();
        for line in 0..rows * slices {
            if line % rows > 0 {
                join_rows(&runs, &first_of_row, line - 1, line, &mut parent);
            }
            if !by_slice && line >= rows {
                join_rows(&runs, &first_of_row, line - rows, line, &mut parent);
            }
        }
        let mut number = vec![u32::MAX; runs.len()];
        let mut voxels: Vec<usize> = Vec::new();
        let mut of_run = Vec::with_capacity(runs.len());
        for (idx, run) in runs.iter().enumerate() {
            let root = root(&mut parent, idx as u32) as usize;
            if number[root] == u32::MAX {
                if voxels.len() == MAXIMUM_COMPONENTS {
                    return Err(TooManyPieces);
                }
                number[root] = voxels.len() as u32;
                voxels.push(0);
            }
            voxels[number[root] as usize] += usize::from(run.end - run.start);
            of_run.push(number[root]);
        }
        Ok(Self { size, runs, of_run, voxels })
    }

    /// Every run: component, slice, row, columns.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize, usize, std::ops::Range<usize>)> {
        let rows = self.size[1].max(1);
        self.runs.iter().zip(&self.of_run).map(move |(run, component)| {
            let row = run.row as usize;
            (*component as usize, row / rows, row % rows, usize::from(run.start)..usize::from(run.end))
        })
    }

    /// The same with the indices of the voxels in place of slice, row and columns.
    pub(super) fn voxel_runs(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let columns = self.size[0];
        self.runs.iter().zip(&self.of_run).map(move |(run, component)| {
            let first = run.row as usize * columns;
            (*component as usize, first + usize::from(run.start)..first + usize::from(run.end))
        })
    }

    /// Number of the largest component.
    pub(super) fn largest(&self) -> Option<usize> {
        (0..self.voxels.len()).max_by_key(|&component| (self.voxels[component], std::cmp::Reverse(component)))
    }
}

/// Joins overlapping runs of two rows.
fn join_rows(runs: &[Run], first_of_row: &[usize], above: usize, below: usize, parent: &mut [u32]) {
    let (mut a, mut b) = (first_of_row[above], first_of_row[below]);
    while a < first_of_row[above + 1] && b < first_of_row[below + 1] {
        if runs[a].start < runs[b].end && runs[b].start < runs[a].end {
            let (one, other) = (root(parent, a as u32), root(parent, b as u32));
            parent[one.max(other) as usize] = one.min(other);
        }
        if runs[a].end < runs[b].end { a += 1 } else { b += 1 }
    }
}

fn root(parent: &mut [u32], mut idx: u32) -> u32 {
    while parent[idx as usize] != idx {
        let above = parent[parent[idx as usize] as usize];
        parent[idx as usize] = above;
        idx = above;
    }
    idx
}

/// Distances in one slice, with its buffers.
///
/// Exact Euclidean distances by the lower envelope of parabolas (Felzenszwalb, Huttenlocher: Distance Transforms of
/// Sampled Functions. Theory of Computing 2012;8:415-428), in millimetres.
#[derive(Debug)]
pub(super) struct SliceDistance {
    columns: usize,
    rows: usize,
    spacing_mm: [f32; 2],
    /// Squared distance of each pixel to the nearest set one; infinite without any.
    pub(super) squared_mm: Vec<f32>,
    column: Vec<f32>,
    vertices: Vec<usize>,
    limits: Vec<f32>,
}

impl SliceDistance {
    pub(super) fn new(columns: usize, rows: usize, spacing_mm: [f64; 2]) -> Self {
        Self {
            columns,
            rows,
            spacing_mm: spacing_mm.map(|spacing| spacing as f32),
            squared_mm: vec![f32::INFINITY; columns * rows],
            column: vec![0.0; rows],
            vertices: vec![0; rows],
            limits: vec![0.0; rows + 1],
        }
    }

    /// Measures from the pixels of `mask` that are `wanted`.
    pub(super) fn measure(&mut self, mask: &[bool], wanted: bool) {
        let columns = self.columns;
        for row in 0..self.rows {
            let line = row * columns..(row + 1) * columns;
            along_row(&mask[line.clone()], wanted, self.spacing_mm[0], &mut self.squared_mm[line]);
        }
        for column in 0..columns {
            self.along_column(column);
        }
    }

    /// The lower envelope of the parabolas over one column.
    fn along_column(&mut self, column: usize) {
        let (columns, rows, step) = (self.columns, self.rows, self.spacing_mm[1]);
        for row in 0..rows {
            self.column[row] = self.squared_mm[row * columns + column];
        }
        let mut n_parabolas = 0;
        for row in 0..rows {
            let height = self.column[row];
            if height == f32::INFINITY {
                continue;
            }
            let at = row as f32 * step;
            let mut from = f32::NEG_INFINITY;
            while n_parabolas > 0 {
                let vertex = self.vertices[n_parabolas - 1];
                let other = vertex as f32 * step;
                let crossing = ((height + at * at) - (self.column[vertex] + other * other)) / (2.0 * (at - other));
                if crossing > self.limits[n_parabolas - 1] {
                    from = crossing;
                    break;
                }
                n_parabolas -= 1;
            }
            self.vertices[n_parabolas] = row;
            self.limits[n_parabolas] = from;
            n_parabolas += 1;
        }
        if n_parabolas == 0 {
            return;
        }
        let mut parabola = 0;
        for row in 0..rows {
            let at = row as f32 * step;
            while parabola + 1 < n_parabolas && self.limits[parabola + 1] < at {
                parabola += 1;
            }
            let vertex = self.vertices[parabola];
            let distance = at - vertex as f32 * step;
            self.squared_mm[row * columns + column] = distance * distance + self.column[vertex];
        }
    }
}

/// Squared distances within one row.
fn along_row(mask: &[bool], wanted: bool, step: f32, squared: &mut [f32]) {
    let mut distance = f32::INFINITY;
    for (is_set, squared) in mask.iter().zip(squared.iter_mut()) {
        distance = if *is_set == wanted { 0.0 } else { distance + step };
        *squared = distance * distance;
    }
    distance = f32::INFINITY;
    for (is_set, squared) in mask.iter().zip(squared.iter_mut()).rev() {
        distance = if *is_set == wanted { 0.0 } else { distance + step };
        *squared = squared.min(distance * distance);
    }
}

/// Closes a mask with a disc: what a disc of this radius cannot roll into from outside becomes part of it. The mask must
/// stay farther than the radius from the border of the slice, or is closed as if it ended there.
pub(super) fn close(mask: &mut [bool], radius_mm: f64, distance: &mut SliceDistance) {
    let squared_radius = (radius_mm * radius_mm) as f32;
    distance.measure(mask, true);
    let near: Vec<bool> = distance.squared_mm.iter().map(|squared| *squared <= squared_radius).collect();
    distance.measure(&near, false);
    for (is_set, squared) in mask.iter_mut().zip(&distance.squared_mm) {
        *is_set |= *squared > squared_radius;
    }
}

/// Opens a mask with a disc: what is thinner than the disc goes.
pub(super) fn open(mask: &mut [bool], radius_mm: f64, distance: &mut SliceDistance) {
    erode(mask, radius_mm, distance);
    dilate(mask, radius_mm, distance);
}

/// Takes away what is within the radius of the outside.
pub(super) fn erode(mask: &mut [bool], radius_mm: f64, distance: &mut SliceDistance) {
    let squared_radius = (radius_mm * radius_mm) as f32;
    distance.measure(mask, false);
    for (is_set, squared) in mask.iter_mut().zip(&distance.squared_mm) {
        *is_set = *squared > squared_radius;
    }
}

/// Adds what is within the radius.
pub(super) fn dilate(mask: &mut [bool], radius_mm: f64, distance: &mut SliceDistance) {
    let squared_radius = (radius_mm * radius_mm) as f32;
    distance.measure(mask, true);
    for (is_set, squared) in mask.iter_mut().zip(&distance.squared_mm) {
        *is_set = *squared <= squared_radius;
    }
}

/// Fills what is enclosed in one slice: holes of at most `small_pixels`, and those of at most `max_pixels` of which at
/// least half lies on what `below` says of the slice before.
///
/// # Errors
/// [`TooManyPieces`] when there are too many holes.
pub(super) fn fill_holes(
    mask: &mut [bool],
    [columns, rows]: [usize; 2],
    small_pixels: usize,
    max_pixels: usize,
    below: &[bool],
) -> Result<(), TooManyPieces> {
    let holes = Components::of([columns, rows, 1], true, |_, row, line| {
        for (is_set, pixel) in line.iter_mut().zip(&mask[row * columns..]) {
            *is_set = !*pixel;
        }
    })?;
    let mut is_enclosed = vec![true; holes.voxels.len()];
    let mut on_below = vec![0_usize; holes.voxels.len()];
    for (hole, _, row, line) in holes.runs() {
        if row == 0 || row + 1 == rows || line.start == 0 || line.end == columns {
            is_enclosed[hole] = false;
        }
        let pixels = row * columns + line.start..row * columns + line.end;
        on_below[hole] += below.get(pixels).map_or(0, |below| below.iter().filter(|is_set| **is_set).count());
    }
    for (hole, pixels) in holes.voxel_runs() {
        let size = holes.voxels[hole];
        let is_filled = size <= small_pixels || (size <= max_pixels && 2 * on_below[hole] >= size);
        if is_enclosed[hole] && is_filled {
            mask[pixels].fill(true);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> Vec<bool> {
        rows.iter().flat_map(|row| row.bytes().map(|byte| byte == b'#')).collect()
    }

    #[test]
    fn components_share_faces_and_are_counted_in_voxels() {
        let shapes = mask(&["##..#", "..#.#", "..#..", "#####", "....."]);
        let of = |by_slice| {
            Components::of([5, 1, 5], by_slice, |slice, _, line| {
                line.copy_from_slice(&shapes[slice * 5..slice * 5 + 5]);
            })
            .unwrap()
        };
        let mut sizes = of(false).voxels;
        sizes.sort_unstable();
        assert_eq!(sizes, [2, 2, 7]);
        assert_eq!(of(true).voxels.len(), 6, "each slice by itself");
        assert_eq!(of(false).voxels[of(false).largest().unwrap()], 7);
        let covered: usize = of(false).voxel_runs().map(|(_, run)| run.len()).sum();
        assert_eq!(covered, 11);
    }

    #[test]
    fn more_pieces_than_a_chest_has_are_refused_before_they_take_memory() {
        let comb = |_, _, line: &mut [bool]| line.iter_mut().step_by(2).for_each(|is_set| *is_set = true);
        assert_eq!(Components::of([40_000, 1, 1_001], false, comb).unwrap_err(), TooManyPieces, "too many runs");
        assert_eq!(Components::of([40_000, 1, 201], true, comb).unwrap_err(), TooManyPieces, "too many components");
        assert_eq!(Components::of([40_000, 1, 200], true, comb).unwrap().voxels.len(), MAXIMUM_COMPONENTS);
    }

    #[test]
    fn distances_are_exact_on_a_grid_of_unequal_spacing() {
        let (columns, rows, spacing) = (17, 13, [0.7, 1.9]);
        let seeds = [(3, 2), (12, 11), (5, 7)];
        let mut shape = vec![false; columns * rows];
        for (column, row) in seeds {
            shape[row * columns + column] = true;
        }
        let mut distance = SliceDistance::new(columns, rows, spacing);
        distance.measure(&shape, true);
        for row in 0..rows {
            for column in 0..columns {
                let expected = seeds
                    .iter()
                    .map(|&(x, y)| {
                        let dx = (column as f64 - x as f64) * spacing[0];
                        let dy = (row as f64 - y as f64) * spacing[1];
                        dx * dx + dy * dy
                    })
                    .fold(f64::INFINITY, f64::min);
                let found = f64::from(distance.squared_mm[row * columns + column]);
                assert!((found - expected).abs() < 1e-3, "{column}, {row}: {found}, {expected}");
            }
        }
        distance.measure(&vec![false; columns * rows], true);
        assert!(distance.squared_mm.iter().all(|squared| *squared == f32::INFINITY));
    }

    #[test]
    fn closing_fills_a_bay_and_leaves_a_wide_one() {
        let mut shape = vec![false; 60 * 60];
        for row in 20..40 {
            for column in 20..40 {
                let narrow = column < 24 && (28..31).contains(&row);
                let wide = column >= 35 && (22..38).contains(&row);
                shape[row * 60 + column] = !narrow && !wide;
            }
        }
        let before = shape.clone();
        close(&mut shape, 4.0, &mut SliceDistance::new(60, 60, [1.0, 1.0]));
        assert!(shape[29 * 60 + 22], "the bay of 3 mm is closed");
        assert!(!shape[30 * 60 + 38], "the bay of 16 mm stays open");
        assert!(before.iter().zip(&shape).all(|(before, after)| !before || *after), "closing takes nothing away");
    }

    #[test]
    fn holes_are_filled_up_to_a_size() {
        let mut shape = mask(&["........", ".#####..", ".#.#.#..", ".#####..", ".#...##.", ".#####..", "........"]);
        fill_holes(&mut shape, [8, 7], 2, 2, &[]).unwrap();
        let filled = mask(&["........", ".#####..", ".#####..", ".#####..", ".#...##.", ".#####..", "........"]);
        assert_eq!(shape, filled);
        fill_holes(&mut shape, [8, 7], 2, 3, &[false; 56]).unwrap();
        assert_eq!(shape, filled, "nothing below carries the larger hole");
        fill_holes(&mut shape, [8, 7], 2, 3, &[true; 56]).unwrap();
        assert!(shape[4 * 8 + 3]);
    }
}
