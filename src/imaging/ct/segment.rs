//! Lungs in a chest CT without any trained weights: threshold, connected components, and knowledge of the chest.
//!
//! The plan is that of Hu, Hoffman, Reinhardt: Automatic lung segmentation for accurate quantitation of volumetric X-ray
//! CT images. IEEE Trans Med Imaging 2001;20(6):490-498 (optimal threshold, components, airways taken out, lungs that
//! touch told apart by the brightest path between them, smoothing at the hilum). The airways are grown as far as they do
//! not leak into the lung, as Mori and others do (1996).
//!
//! What it cannot do: air is what it finds. A lobe without air, a large effusion or a mass wider than the closing disc is
//! left out, and the lung is measured too small.

use super::{
    Volume,
    morphology::{Components, SliceDistance, close, dilate, erode, fill_holes, open},
};

/// Label of everything else.
pub const BACKGROUND: u8 = 0;
/// Label of the patient's right lung.
pub const RIGHT_LUNG: u8 = 1;
/// Label of the patient's left lung.
pub const LEFT_LUNG: u8 = 2;
/// Label of trachea and main bronchi.
pub const AIRWAY: u8 = 3;

/// Name and version of the method, as results record it; to be raised with every change of what it finds.
pub const METHOD: &str = "hilum-lung-threshold 1";

/// Where the threshold between air and body may lie, in Hounsfield units.
const THRESHOLD_RANGE_HU: (i16, i16) = (-600, -350);
/// Disc that tables and clothes are thinner than, and the wall of the chest is not.
const BODY_OPENING_MM: f64 = 2.5;
/// Area of a trachea in a slice.
const TRACHEA_MM2: std::ops::RangeInclusive<f64> = 40.0..=900.0;
/// Shortest piece of trachea to start from.
const TRACHEA_LENGTH_MM: f64 = 15.0;
/// No airways are larger than this.
const MAX_AIRWAY_ML: f64 = 150.0;
/// Growth by this factor from one threshold to the next is a leak into the lung.
const LEAK_FACTOR: f64 = 1.6;
/// Wall that is taken out with an airway.
const AIRWAY_WALL_MM: f64 = 1.5;
/// Airways wider than twice this are trachea or main bronchi and never part of a lung.
const MAIN_BRONCHUS_RADIUS_MM: f64 = 3.5;
/// Smallest object that can be a lung.
const MIN_LUNG_ML: f64 = 80.0;
/// Least share of an object on either side of the middle that makes it two lungs which touch.
const TOUCHING_SHARE: f64 = 0.15;
/// Disc that closes what lesions and vessels cut out of a lung's border.
const CLOSING_MM: f64 = 12.0;
/// Hole of a slice that is always filled: a vessel.
const VESSEL_MM2: f64 = 250.0;
/// Largest hole that is filled when it lies on what was filled before: a lesion; neither the heart nor the dome of the
/// diaphragm.
const LESION_MM2: f64 = 2500.0;
/// Pieces of a lung smaller than this are dropped.
const MIN_PIECE_ML: f64 = 2.0;

/// The lungs of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct LungLabels {
    /// One of [`BACKGROUND`], [`RIGHT_LUNG`], [`LEFT_LUNG`], [`AIRWAY`] for each voxel, in the order of the volume.
    pub labels: Vec<u8>,
    /// Air is below this, in Hounsfield units; chosen for the volume.
    pub threshold_hu: i16,
    /// Trachea and main bronchi were found and taken out.
    pub airway_found: bool,
    /// Both lungs were one object and were told apart.
    pub touching: bool,
    /// Pixels of the lungs at the border of the images, where they may be cut off.
    pub border_pixels: usize,
}

/// Finds the lungs. Never fails: what is not there is not labelled.
#[must_use]
pub fn segment(volume: &Volume) -> LungLabels {
    let threshold_hu = optimal_threshold(volume);
    let mut labels = vec![BACKGROUND; volume.hu.len()];
    // From here on a voxel of the chest's air is 1, everything else 0.
    mark_enclosed_air(volume, threshold_hu, &mut labels);
    let airway = grow_airway(volume, &labels);
    for &voxel in &airway.with_wall {
        labels[voxel] = BACKGROUND;
    }
    let touching = keep_lungs(volume, &mut labels);
    finish(volume, &airway.main, &mut labels);
    drop_islands(volume, &mut labels);
    let border_pixels = count_at_border(volume, &labels);
    for &voxel in &airway.main {
        labels[voxel] = AIRWAY;
    }
    LungLabels { labels, threshold_hu, airway_found: !airway.main.is_empty(), touching, border_pixels }
}

/// Halfway between the means of what lies below and above, repeated until it stays (Ridler and Calvard 1978).
fn optimal_threshold(volume: &Volume) -> i16 {
    const LOWEST: i16 = -1024;
    const HIGHEST: i16 = 300;
    let mut histogram = vec![0_u64; (HIGHEST - LOWEST) as usize + 1];
    for hu in &volume.hu {
        if (LOWEST..=HIGHEST).contains(hu) {
            histogram[(hu - LOWEST) as usize] += 1;
        }
    }
    let mean = |range: std::ops::Range<usize>| {
        let first = range.start;
        let (mut sum, mut count) = (0.0, 0.0);
        for (idx, voxels) in histogram[range].iter().enumerate() {
            sum += (first + idx) as f64 * *voxels as f64;
            count += *voxels as f64;
        }
        if count > 0.0 { Some(sum / count + f64::from(LOWEST)) } else { None }
    };
    let mut threshold = -500.0;
    for _ in 0..50 {
        let at = ((threshold - f64::from(LOWEST)).round() as usize).clamp(1, histogram.len() - 1);
        let (Some(air), Some(body)) = (mean(0..at), mean(at..histogram.len())) else { break };
        let next = f64::midpoint(air, body);
        if (next - threshold).abs() < 0.5 {
            break;
        }
        threshold = next;
    }
    (threshold.round() as i16).clamp(THRESHOLD_RANGE_HU.0, THRESHOLD_RANGE_HU.1)
}

/// Marks the air that the body encloses: tissue, opened so that table and clothes fall off, its largest component, and
/// everything that is not reached from the border of a slice around it. On every other pixel, which is fine enough for
/// the skin.
fn mark_enclosed_air(volume: &Volume, threshold_hu: i16, labels: &mut [u8]) {
    let [columns, rows, slices] = volume.size;
    let (half_columns, half_rows) = (columns.div_ceil(2), rows.div_ceil(2));
    let half_pixels = half_columns * half_rows;
    let mut body = vec![false; half_pixels * slices];
    let spacing = [volume.spacing_mm[0] * 2.0, volume.spacing_mm[1] * 2.0];
    let mut distance = SliceDistance::new(half_columns, half_rows, spacing);
    for (slice, body) in body.chunks_exact_mut(half_pixels).enumerate() {
        let hu = volume.slice(slice);
        for (row, line) in body.chunks_exact_mut(half_columns).enumerate() {
            for (column, is_tissue) in line.iter_mut().enumerate() {
                *is_tissue = hu[2 * row * columns + 2 * column] >= threshold_hu;
            }
        }
        erode(body, BODY_OPENING_MM, &mut distance);
    }
    let size = [half_columns, half_rows, slices];
    let row_of = |slice: usize, row: usize| slice * half_pixels + row * half_columns..;
    let pieces =
        Components::of(size, false, |slice, row, line| line.copy_from_slice(&body[row_of(slice, row)][..half_columns]));
    let Some(largest) = pieces.largest() else { return };
    body.fill(false);
    for (piece, voxels) in pieces.voxel_runs() {
        if piece == largest {
            body[voxels].fill(true);
        }
    }
    for body in body.chunks_exact_mut(half_pixels) {
        dilate(body, BODY_OPENING_MM, &mut distance);
    }
    // What is not body is outside where it touches the border of its slice.
    let gaps = Components::of(size, true, |slice, row, line| {
        for (is_gap, is_body) in line.iter_mut().zip(&body[row_of(slice, row)]) {
            *is_gap = !*is_body;
        }
    });
    let mut is_outside = vec![false; gaps.voxels.len()];
    for (gap, _, row, line) in gaps.runs() {
        if row == 0 || row + 1 == half_rows || line.start == 0 || line.end == half_columns {
            is_outside[gap] = true;
        }
    }
    for (gap, slice, half_row, line) in gaps.runs() {
        if is_outside[gap] {
            continue;
        }
        for row in 2 * half_row..(2 * half_row + 2).min(rows) {
            let first = slice * columns * rows + row * columns;
            let wide = first + 2 * line.start..first + (2 * line.end).min(columns);
            for voxel in wide {
                labels[voxel] = u8::from(volume.hu[voxel] < threshold_hu);
            }
        }
    }
}

/// Trachea and bronchi.
#[derive(Debug, Default)]
struct Airway {
    /// The tree as far as it was grown, with its wall.
    with_wall: Vec<usize>,
    /// Trachea and main bronchi.
    main: Vec<usize>,
}

/// A round patch of air in one slice.
#[derive(Debug, Clone, Copy)]
struct Patch {
    center: (f64, f64),
    component: usize,
}

fn grow_airway(volume: &Volume, air: &[u8]) -> Airway {
    let Some((patches, seed)) = trachea(volume, air) else { return Airway::default() };
    let [columns, rows, _] = volume.size;
    let seed: Vec<usize> = patches
        .runs()
        .filter(|(component, ..)| *component == seed.component)
        .flat_map(|(_, slice, row, line)| line.map(move |column| (slice * rows + row) * columns + column))
        .collect();
    let mut best: Vec<usize> = Vec::new();
    let max_voxels = (MAX_AIRWAY_ML / volume.voxel_ml()) as usize;
    for limit_hu in (-980..=-820).step_by(20) {
        let Some(grown) = grow(volume, air, &seed, limit_hu, max_voxels) else { break };
        let leaks = !best.is_empty()
            && best.len() as f64 * volume.voxel_ml() > 10.0
            && grown.len() as f64 > best.len() as f64 * LEAK_FACTOR;
        if leaks {
            break;
        }
        best = grown;
    }
    with_wall(volume, &best)
}

/// The longest chain of round patches of air near the middle, from the top down; its patch in the middle.
fn trachea(volume: &Volume, air: &[u8]) -> Option<(Components, Patch)> {
    let [columns, _, slices] = volume.size;
    let [sx, sy, sz] = volume.spacing_mm;
    let pixels = volume.slice_pixels();
    let patches = Components::of(volume.size, true, |slice, row, line| {
        for (is_air, label) in line.iter_mut().zip(&air[slice * pixels + row * columns..]) {
            *is_air = *label == 1;
        }
    });
    // Bounding box, sum of positions, slice of each patch.
    let mut boxes = vec![(usize::MAX, 0_usize, usize::MAX, 0_usize, 0.0, 0.0, 0_usize); patches.voxels.len()];
    let (mut left, mut right) = (columns, 0);
    for (component, slice, row, line) in patches.runs() {
        let patch = &mut boxes[component];
        patch.0 = patch.0.min(line.start);
        patch.1 = patch.1.max(line.end);
        patch.2 = patch.2.min(row);
        patch.3 = patch.3.max(row + 1);
        patch.4 += line.clone().map(|column| column as f64).sum::<f64>();
        patch.5 += (row * line.len()) as f64;
        patch.6 = slice;
        if patches.voxels[component] as f64 * sx * sy > *TRACHEA_MM2.end() {
            left = left.min(line.start);
            right = right.max(line.end);
        }
    }
    if left >= right {
        return None;
    }
    let (middle, reach) = ((left + right) as f64 / 2.0 * sx, (right - left) as f64 * sx * 0.2);
    let mut by_slice: Vec<Vec<Patch>> = vec![Vec::new(); slices];
    for (component, (x0, x1, y0, y1, sum_x, sum_y, slice)) in boxes.into_iter().enumerate() {
        let count = patches.voxels[component] as f64;
        let (width, height) = ((x1 - x0) as f64 * sx, (y1 - y0) as f64 * sy);
        let center = (sum_x / count * sx, sum_y / count * sy);
        let is_round = width < 2.2 * height && height < 2.2 * width && count * sx * sy > 0.45 * width * height;
        if TRACHEA_MM2.contains(&(count * sx * sy)) && is_round && (center.0 - middle).abs() < reach {
            by_slice[slice].push(Patch { center, component });
        }
    }
    let mut longest: Vec<Patch> = Vec::new();
    // Chains start at every patch that none above leads to.
    let mut taken: std::collections::HashSet<usize> = std::collections::HashSet::new();
    for slice in (0..slices).rev() {
        for start in by_slice[slice].clone() {
            if !taken.insert(start.component) {
                continue;
            }
            let mut chain = vec![start];
            let mut below = slice;
            while below > 0 {
                below -= 1;
                let last = chain[chain.len() - 1].center;
                let apart = |patch: &Patch| (patch.center.0 - last.0).hypot(patch.center.1 - last.1);
                let next = by_slice[below].iter().min_by(|a, b| apart(a).total_cmp(&apart(b)));
                match next {
                    Some(next) if apart(next) < 4.0 + 1.5 * sz && taken.insert(next.component) => chain.push(*next),
                    _ => break,
                }
            }
            if chain.len() > longest.len() {
                longest = chain;
            }
        }
    }
    let is_long = longest.len() as f64 * sz >= TRACHEA_LENGTH_MM;
    longest.get(longest.len() / 2).filter(|_| is_long).copied().map(|seed| (patches, seed))
}

/// What is below a limit and connected with the seed; `None` when there is nothing or too much.
fn grow(volume: &Volume, air: &[u8], seed: &[usize], limit_hu: i16, max_voxels: usize) -> Option<Vec<usize>> {
    let [columns, rows, slices] = volume.size;
    let pixels = columns * rows;
    let mut seen: std::collections::HashSet<usize> = std::collections::HashSet::new();
    let mut grown: Vec<usize> = Vec::new();
    for &voxel in seed {
        if volume.hu[voxel] < limit_hu && seen.insert(voxel) {
            grown.push(voxel);
        }
    }
    let mut next = 0;
    while next < grown.len() {
        if grown.len() > max_voxels {
            return None;
        }
        let voxel = grown[next];
        next += 1;
        let (column, row, slice) = (voxel % columns, voxel / columns % rows, voxel / pixels);
        let neighbours = [
            (column > 0).then(|| voxel - 1),
            (column + 1 < columns).then_some(voxel + 1),
            (row > 0).then(|| voxel - columns),
            (row + 1 < rows).then_some(voxel + columns),
            (slice > 0).then(|| voxel - pixels),
            (slice + 1 < slices).then_some(voxel + pixels),
        ];
        for neighbour in neighbours.into_iter().flatten() {
            if air[neighbour] == 1 && volume.hu[neighbour] < limit_hu && seen.insert(neighbour) {
                grown.push(neighbour);
            }
        }
    }
    Some(grown)
}

/// Adds the wall, and tells trachea and main bronchi from the finer tree, slice by slice.
fn with_wall(volume: &Volume, tree: &[usize]) -> Airway {
    let pixels = volume.slice_pixels();
    let slices = volume.size[2];
    let mut by_slice: Vec<Vec<usize>> = vec![Vec::new(); slices];
    for &voxel in tree {
        by_slice[voxel / pixels].push(voxel % pixels);
    }
    let mut airway = Airway::default();
    let mut window = Window::new(volume, 10.0);
    for (slice, inside) in by_slice.iter().enumerate() {
        if !window.frame(inside.iter().copied()) {
            continue;
        }
        for &pixel in inside {
            window.set(pixel);
        }
        let mut lumen = window.mask.clone();
        dilate(&mut window.mask, AIRWAY_WALL_MM, &mut window.distance);
        airway.with_wall.extend(window.pixels(&window.mask).map(|pixel| slice * pixels + pixel));
        // A lumen whose voxels at the wall are too bright for the tree is that much wider.
        dilate(&mut lumen, AIRWAY_WALL_MM, &mut window.distance);
        open(&mut lumen, MAIN_BRONCHUS_RADIUS_MM + AIRWAY_WALL_MM, &mut window.distance);
        airway.main.extend(window.pixels(&lumen).map(|pixel| slice * pixels + pixel));
    }
    airway
}

/// A part of a slice with a margin around what is looked at, so that shapes never meet the border.
struct Window {
    slice_columns: usize,
    slice_rows: usize,
    spacing_mm: [f64; 2],
    margin: [usize; 2],
    /// First column and row; may lie outside of the slice.
    first: [isize; 2],
    columns: usize,
    rows: usize,
    mask: Vec<bool>,
    distance: SliceDistance,
}

impl Window {
    fn new(volume: &Volume, margin_mm: f64) -> Self {
        let spacing_mm = [volume.spacing_mm[0], volume.spacing_mm[1]];
        Self {
            slice_columns: volume.size[0],
            slice_rows: volume.size[1],
            spacing_mm,
            margin: spacing_mm.map(|spacing| (margin_mm / spacing).ceil() as usize + 2),
            first: [0, 0],
            columns: 0,
            rows: 0,
            mask: Vec::new(),
            distance: SliceDistance::new(0, 0, spacing_mm),
        }
    }

    /// Moves to these pixels and clears the mask; `false` when there are none.
    fn frame(&mut self, pixels: impl Iterator<Item = usize>) -> bool {
        let (mut x0, mut x1, mut y0, mut y1) = (usize::MAX, 0, usize::MAX, 0);
        for pixel in pixels {
            let (column, row) = (pixel % self.slice_columns, pixel / self.slice_columns);
            (x0, x1) = (x0.min(column), x1.max(column));
            (y0, y1) = (y0.min(row), y1.max(row));
        }
        if x0 > x1 {
            return false;
        }
        self.first = [x0 as isize - self.margin[0] as isize, y0 as isize - self.margin[1] as isize];
        self.columns = x1 - x0 + 1 + 2 * self.margin[0];
        self.rows = y1 - y0 + 1 + 2 * self.margin[1];
        self.mask = vec![false; self.columns * self.rows];
        self.distance = SliceDistance::new(self.columns, self.rows, self.spacing_mm);
        true
    }

    fn set(&mut self, pixel: usize) {
        let column = (pixel % self.slice_columns) as isize - self.first[0];
        let row = (pixel / self.slice_columns) as isize - self.first[1];
        let index = row as usize * self.columns + column as usize;
        if let Some(is_set) = self.mask.get_mut(index) {
            *is_set = true;
        }
    }

    /// What a slice holds of a label, seen through this window.
    fn view(&self, labels: &[u8], label: u8) -> Vec<bool> {
        let mut seen = vec![false; self.mask.len()];
        for (pixel, _) in labels.iter().enumerate().filter(|(_, found)| **found == label) {
            let column = (pixel % self.slice_columns) as isize - self.first[0];
            let row = (pixel / self.slice_columns) as isize - self.first[1];
            if (0..self.columns as isize).contains(&column) && (0..self.rows as isize).contains(&row) {
                seen[row as usize * self.columns + column as usize] = true;
            }
        }
        seen
    }

    /// The pixels of the slice that a mask of this window holds.
    fn pixels<'a>(&'a self, mask: &'a [bool]) -> impl Iterator<Item = usize> + 'a {
        mask.iter().enumerate().filter(|(_, is_set)| **is_set).filter_map(move |(index, _)| {
            let column = self.first[0] + (index % self.columns) as isize;
            let row = self.first[1] + (index / self.columns) as isize;
            let is_inside =
                column >= 0 && row >= 0 && (column as usize) < self.slice_columns && (row as usize) < self.slice_rows;
            is_inside.then(|| row as usize * self.slice_columns + column as usize)
        })
    }
}

/// One connected piece of air that may be a lung.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    component: usize,
    voxels: usize,
    /// Sum of the columns and of the slices of its voxels.
    sum_column: f64,
    sum_slice: f64,
    top_slice: usize,
    columns: (usize, usize),
}

impl Candidate {
    fn center_column(&self) -> f64 {
        self.sum_column / self.voxels as f64
    }

    fn center_slice(&self) -> f64 {
        self.sum_slice / self.voxels as f64
    }
}

/// Labels the lungs in what was air; returns whether they touched.
fn keep_lungs(volume: &Volume, labels: &mut [u8]) -> bool {
    let columns = volume.size[0];
    let pixels = volume.slice_pixels();
    let pieces = Components::of(volume.size, false, |slice, row, line| {
        for (is_air, label) in line.iter_mut().zip(&labels[slice * pixels + row * columns..]) {
            *is_air = *label == 1;
        }
    });
    labels.fill(BACKGROUND);
    let minimum = (MIN_LUNG_ML / volume.voxel_ml()) as usize;
    let mut candidates: Vec<Candidate> = candidates(&pieces, minimum.max(1));
    // The largest is a lung or both; a second one must lie beside it, and reach up as lungs do and bowel does not.
    candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.voxels), candidate.component));
    let Some(&first) = candidates.first() else { return false };
    let middle = middle_column(volume, &first, &candidates);
    let on_right: usize = pieces
        .runs()
        .filter(|(component, ..)| *component == first.component)
        .map(|(_, _, _, line)| line.end.min(middle.max(line.start)) - line.start)
        .sum();
    let share = on_right as f64 / first.voxels as f64;
    let touching = (TOUCHING_SHARE..=1.0 - TOUCHING_SHARE).contains(&share);
    let mut side_of = vec![BACKGROUND; pieces.voxels.len()];
    if touching {
        side_of[first.component] = u8::MAX;
    } else {
        let side = |candidate: &Candidate| {
            if candidate.center_column() < middle as f64 { RIGHT_LUNG } else { LEFT_LUNG }
        };
        side_of[first.component] = side(&first);
        let second = candidates
            .iter()
            .skip(1)
            .find(|candidate| side(candidate) != side(&first) && candidate.top_slice as f64 > first.center_slice());
        if let Some(second) = second {
            side_of[second.component] = side(second);
        }
    }
    for (component, voxels) in pieces.voxel_runs() {
        if side_of[component] != BACKGROUND {
            labels[voxels].fill(side_of[component]);
        }
    }
    if touching {
        part_lungs(volume, labels, middle, first.columns);
    }
    touching
}

fn candidates(pieces: &Components, minimum: usize) -> Vec<Candidate> {
    let empty = |component| Candidate {
        component,
        voxels: 0,
        sum_column: 0.0,
        sum_slice: 0.0,
        top_slice: 0,
        columns: (usize::MAX, 0),
    };
    let mut all: Vec<Candidate> = (0..pieces.voxels.len()).map(empty).collect();
    for (component, slice, _, line) in pieces.runs() {
        let candidate = &mut all[component];
        let count = line.len();
        candidate.voxels += count;
        candidate.sum_column += (line.start + line.end - 1) as f64 / 2.0 * count as f64;
        candidate.sum_slice += (slice * count) as f64;
        candidate.top_slice = candidate.top_slice.max(slice);
        candidate.columns = (candidate.columns.0.min(line.start), candidate.columns.1.max(line.end));
    }
    all.retain(|candidate| candidate.voxels >= minimum);
    all
}

/// The column between the lungs: the middle of the trunk, which is that of the tissue around the first candidate.
fn middle_column(volume: &Volume, first: &Candidate, candidates: &[Candidate]) -> usize {
    let [columns, rows, _] = volume.size;
    let slice = first.center_slice().round() as usize;
    let hu = volume.slice(slice);
    let mut extent = (columns, 0);
    // The trunk in the slice at the lung's middle: rows through the middle half of the image.
    for line in hu.chunks_exact(columns).take(rows * 3 / 4).skip(rows / 4) {
        let is_bone = |hu: &i16| *hu > 150;
        if let (Some(start), Some(end)) = (line.iter().position(is_bone), line.iter().rposition(is_bone)) {
            extent = (extent.0.min(start), extent.1.max(end));
        }
    }
    let lungs = candidates
        .iter()
        .take(2)
        .fold(first.columns, |all, candidate| (all.0.min(candidate.columns.0), all.1.max(candidate.columns.1)));
    // Without ribs in sight the lungs themselves tell.
    let (start, end) = if extent.0 < lungs.0 && extent.1 > lungs.1 { extent } else { lungs };
    usize::midpoint(start, end)
}

/// Tells lungs apart that touch: in each slice along the path from front to back between them that crosses as little
/// lung as it can, and where it must cross, its brightest line.
fn part_lungs(volume: &Volume, labels: &mut [u8], middle: usize, extent: (usize, usize)) {
    const MAX_STEP: usize = 2;
    let columns = volume.size[0];
    let pixels = volume.slice_pixels();
    // The path may leave the middle as far as the heart pushes it.
    let reach = (extent.1 - extent.0) / 4;
    let (first, last) = (middle.saturating_sub(reach), (middle + reach).min(columns - 1));
    let width = last - first + 1;
    for (slice, labels) in labels.chunks_exact_mut(pixels).enumerate() {
        if !labels.contains(&u8::MAX) {
            continue;
        }
        let hu = volume.slice(slice);
        let mut cost = vec![0.0_f32; width];
        let mut steps: Vec<i8> = Vec::with_capacity(pixels / columns * width);
        for (row, line) in labels.chunks_exact(columns).enumerate() {
            let mut next = vec![f32::INFINITY; width];
            for (column, next) in next.iter_mut().enumerate() {
                let pixel = first + column;
                // Darker lung costs more; tissue costs a trifle, more so far from the middle.
                let here = if line[pixel] == u8::MAX {
                    1.0 + ((-300.0 - f32::from(hu[row * columns + pixel])) / 100.0).clamp(0.0, 7.0) * 2.0
                } else {
                    0.02 + 0.03 * pixel.abs_diff(middle) as f32 / reach.max(1) as f32
                };
                let mut best = (f32::INFINITY, 0_i8);
                let from = column.saturating_sub(MAX_STEP)..=(column + MAX_STEP).min(width - 1);
                for before in from {
                    let slant = 0.02 * before.abs_diff(column) as f32;
                    if cost[before] + slant < best.0 {
                        best = (cost[before] + slant, (before as isize - column as isize) as i8);
                    }
                }
                *next = best.0 + here;
                steps.push(best.1);
            }
            cost = next;
        }
        let mut column = (0..width).min_by(|&a, &b| cost[a].total_cmp(&cost[b])).unwrap_or(0);
        for (row, line) in labels.chunks_exact_mut(columns).enumerate().rev() {
            for (pixel, label) in line.iter_mut().enumerate() {
                if *label == u8::MAX {
                    *label = if pixel < first + column { RIGHT_LUNG } else { LEFT_LUNG };
                }
            }
            column = column.saturating_add_signed(isize::from(steps[row * width + column]));
        }
    }
}

/// Closes and fills each lung slice by slice.
fn finish(volume: &Volume, main_airway: &[usize], labels: &mut [u8]) {
    let pixels = volume.slice_pixels();
    let pixel_mm2 = volume.spacing_mm[0] * volume.spacing_mm[1];
    let (small, large) = ((VESSEL_MM2 / pixel_mm2) as usize, (LESION_MM2 / pixel_mm2) as usize);
    let mut window = Window::new(volume, CLOSING_MM);
    for &voxel in main_airway {
        labels[voxel] = AIRWAY;
    }
    for slice in 0..volume.size[2] {
        let (before, from_here) = labels.split_at_mut(slice * pixels);
        let before = before.get(before.len().saturating_sub(pixels)..).unwrap_or_default();
        let Some(labels) = from_here.get_mut(..pixels) else { continue };
        for lung in [RIGHT_LUNG, LEFT_LUNG] {
            let inside: Vec<usize> = (0..pixels).filter(|&pixel| labels[pixel] == lung).collect();
            if !window.frame(inside.iter().copied()) {
                continue;
            }
            for &pixel in &inside {
                window.set(pixel);
            }
            let below = window.view(before, lung);
            let size = [window.columns, window.rows];
            fill_holes(&mut window.mask, size, small, large, &below);
            close(&mut window.mask, CLOSING_MM, &mut window.distance);
            fill_holes(&mut window.mask, size, small, large, &below);
            for pixel in window.pixels(&window.mask) {
                if labels[pixel] == BACKGROUND {
                    labels[pixel] = lung;
                }
            }
        }
    }
    for &voxel in main_airway {
        labels[voxel] = BACKGROUND;
    }
}

/// Drops the small pieces that parting and taking out the airways leave behind.
fn drop_islands(volume: &Volume, labels: &mut [u8]) {
    let columns = volume.size[0];
    let pixels = volume.slice_pixels();
    let minimum = MIN_PIECE_ML / volume.voxel_ml();
    for lung in [RIGHT_LUNG, LEFT_LUNG] {
        let pieces = Components::of(volume.size, false, |slice, row, line| {
            for (is_lung, label) in line.iter_mut().zip(&labels[slice * pixels + row * columns..]) {
                *is_lung = *label == lung;
            }
        });
        for (component, voxels) in pieces.voxel_runs() {
            if (pieces.voxels[component] as f64) < minimum {
                labels[voxels].fill(BACKGROUND);
            }
        }
    }
}

fn count_at_border(volume: &Volume, labels: &[u8]) -> usize {
    let [columns, rows, _] = volume.size;
    let is_lung = |label: &&u8| **label != BACKGROUND;
    labels
        .chunks_exact(columns)
        .enumerate()
        .map(|(line, labels)| {
            let row = line % rows;
            if row == 0 || row + 1 == rows {
                labels.iter().filter(is_lung).count()
            } else {
                labels.first().iter().chain(labels.last().iter()).filter(|label| is_lung(label)).count()
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::{
        super::phantom::{Phantom, dice},
        *,
    };

    fn millilitres(volume: &Volume, labels: &[u8], label: u8) -> f64 {
        labels.iter().map(|found| f64::from(*found == label)).sum::<f64>() * volume.voxel_ml()
    }

    #[track_caller]
    fn assert_lungs(found: &LungLabels, truth: &[u8], least: f64) {
        for lung in [RIGHT_LUNG, LEFT_LUNG] {
            let dice = dice(&found.labels, truth, lung);
            assert!(dice >= least, "lung {lung}: Dice {dice:.4}, at least {least} expected; {}", found.threshold_hu);
        }
    }

    #[test]
    fn two_lungs_are_found_without_airways_bowel_and_table() {
        let (volume, truth) = Phantom::default().make();
        let found = segment(&volume);
        assert_lungs(&found, &truth, 0.97);
        assert!(found.airway_found && !found.touching);
        assert!(THRESHOLD_RANGE_HU.0 <= found.threshold_hu && found.threshold_hu <= THRESHOLD_RANGE_HU.1);
        assert_eq!(found.border_pixels, 0);
        // No gas, foam or air outside became lung, and the trachea is told.
        let wrong = found.labels.iter().zip(&truth).zip(&volume.hu);
        let wrong = wrong.filter(|((found, truth), hu)| {
            [RIGHT_LUNG, LEFT_LUNG].contains(found) && ![RIGHT_LUNG, LEFT_LUNG].contains(truth) && **hu < -500
        });
        assert!(wrong.count() as f64 * volume.voxel_ml() < 6.0);
        let tracheal = dice(&found.labels, &truth, AIRWAY);
        assert!(tracheal > 0.6, "Dice of the airway {tracheal}");
    }

    #[test]
    fn lungs_that_touch_in_front_are_parted_at_the_pleura() {
        let (volume, truth) = Phantom { touching: true, ..Phantom::default() }.make();
        let found = segment(&volume);
        assert!(found.touching);
        assert_lungs(&found, &truth, 0.96);
        // The pleura itself, a voxel on either side, is nobody's.
        let exchanged = found.labels.iter().zip(&truth).zip(&volume.hu).filter(|((found, truth), hu)| {
            **found + **truth == RIGHT_LUNG + LEFT_LUNG && **found != BACKGROUND && **truth != BACKGROUND && **hu < -700
        });
        assert!(exchanged.count() as f64 * volume.voxel_ml() < 15.0);
    }

    #[test]
    fn a_dense_lesion_at_the_pleura_belongs_to_its_lung() {
        let plain = Phantom { size: [360, 280, 80], spacing_mm: [1.0, 1.0, 4.0], ..Phantom::default() };
        let (volume, truth) = Phantom { pleural_lesion_mm: Some(6.0), ..plain }.make();
        let (before, _) = plain.make();
        let found = segment(&volume);
        let lesion = |labels: &[u8]| {
            let dense =
                labels.iter().zip(&truth).zip(&volume.hu).zip(&before.hu).filter(|(((label, truth), hu), before)| {
                    **label == RIGHT_LUNG && **truth == RIGHT_LUNG && **hu > -100 && **before < -500
                });
            dense.count()
        };
        let (kept, all) = (lesion(&found.labels), lesion(&truth));
        assert!(all > 200 && kept * 10 >= all * 7, "{kept} of {all} voxels of the lesion are lung");
    }

    #[test]
    fn the_result_does_not_depend_on_the_grid() {
        let fine = Phantom { size: [360, 280, 64], spacing_mm: [1.0, 1.0, 5.0], ..Phantom::default() };
        let coarse = Phantom { size: [120, 100, 160], spacing_mm: [3.0, 2.8, 2.0], ..Phantom::default() };
        for phantom in [fine, coarse] {
            let (volume, truth) = phantom.make();
            let found = segment(&volume);
            assert_lungs(&found, &truth, 0.95);
            for lung in [RIGHT_LUNG, LEFT_LUNG] {
                let (found, truth) = (millilitres(&volume, &found.labels, lung), millilitres(&volume, &truth, lung));
                assert!((found / truth - 1.0).abs() < 0.06, "{found:.0} of {truth:.0} ml");
            }
        }
    }

    #[test]
    fn without_lungs_there_are_none() {
        let (volume, _) = Phantom { without_lungs: true, bowel_gas: false, ..Phantom::default() }.make();
        let found = segment(&volume);
        assert!(found.labels.iter().all(|label| *label == BACKGROUND));
        let air = Volume { size: [32, 32, 20], spacing_mm: [5.0, 5.0, 5.0], hu: vec![-1000; 32 * 32 * 20] };
        assert!(segment(&air).labels.iter().all(|label| *label == BACKGROUND));
        let tissue = Volume { hu: vec![40; 32 * 32 * 20], ..air };
        assert!(segment(&tissue).labels.iter().all(|label| *label == BACKGROUND));
    }
}
