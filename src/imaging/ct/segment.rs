//! Lungs in a chest CT without any trained weights: threshold, connected components, and knowledge of the chest.
//!
//! The plan is that of Hu, Hoffman, Reinhardt: Automatic lung segmentation for accurate quantitation of volumetric X-ray
//! CT images. IEEE Trans Med Imaging 2001;20(6):490-498 (optimal threshold, components, airways taken out, lungs that
//! touch told apart by the brightest path between them, smoothing at the hilum). The airways are grown as far as they do
//! not leak into the lung, as Mori and others do (1996).
//!
//! What it cannot do: air is what it finds. A lobe without air, a large effusion or a mass wider than the closing disc is
//! left out, and the lung is measured too small.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Volume,
    morphology::{Components, SliceDistance, TooManyPieces, close, dilate, erode, fill_holes, open},
};

/// Label of everything else.
pub const BACKGROUND: u8 = 0;
/// Label of the patient's right lung.
pub const RIGHT_LUNG: u8 = 1;
/// Label of the patient's left lung.
pub const LEFT_LUNG: u8 = 2;
/// Label of trachea and main bronchi.
pub const AIRWAY: u8 = 3;
/// Label of the chest's air as long as nobody knows whose it is.
const AIR: u8 = 4;
/// Label of lungs that touch, until they are told apart.
const BOTH_LUNGS: u8 = 5;

/// Name and version of the method, as results record it; to be raised with every change of what it finds.
pub const METHOD: &str = "hilum-lung-threshold 2";

/// Where the threshold between air and body may lie, in Hounsfield units.
const THRESHOLD_RANGE_HU: (i16, i16) = (-600, -350);
/// Disc that tables and clothes are thinner than, and the wall of the chest is not.
const BODY_OPENING_MM: f64 = 2.5;
/// Air below this is that of the room, of the bowel or of the airways: no lung's mean is lower.
const FREE_AIR_HU: i16 = -960;
/// Smallest area of a lung in a slice whose edge cuts it; less is the room between an arm and the chest.
const CUT_LUNG_MM2: f64 = 200.0;
/// Area of a trachea in a slice.
const TRACHEA_MM2: std::ops::RangeInclusive<f64> = 40.0..=900.0;
/// Shortest piece of trachea to start from.
const TRACHEA_LENGTH_MM: f64 = 15.0;
/// No airways are larger than this, in millilitres and, where voxels are tiny, in voxels.
const MAX_AIRWAY_ML: f64 = 150.0;
const MAX_AIRWAY_VOXELS: usize = 10_000_000;
/// Growth by this factor from one threshold to the next is a leak into the lung, of trees from [`LEAK_FACTOR_FROM_ML`] on;
/// those that only begin may grow faster.
const LEAK_FACTOR: f64 = 1.6;
const LEAK_FACTOR_FROM_ML: f64 = 10.0;
/// So is growth by more than this beyond the trachea and the tree of before.
const LEAK_ML: f64 = 30.0;
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
    /// Air is below this, in Hounsfield units; chosen for the volume. `None` where a network found the lungs.
    pub threshold_hu: Option<i16>,
    /// Trachea and main bronchi were found and taken out.
    pub airway_found: bool,
    /// Both lungs were one object and were told apart.
    pub touching: bool,
    /// Pixels of the lungs at the border of the images, or of a round reconstruction, where they are cut off.
    pub border_pixels: usize,
    /// Voxels of pieces that are as large and as dense as a lung's, but lie where none is expected.
    pub dropped_voxels: usize,
}

/// Finds the lungs. What is not there is not labelled.
///
/// # Errors
/// [`TooManyPieces`] when the volume is noise.
pub fn segment(volume: &Volume) -> Result<LungLabels, TooManyPieces> {
    let threshold_hu = optimal_threshold(volume);
    let mut labels = vec![BACKGROUND; volume.hu.len()];
    mark_enclosed_air(volume, threshold_hu, &mut labels)?;
    let airway_found = label_airway(volume, &mut labels)?;
    let Kept { touching, dropped_voxels } = keep_lungs(volume, &mut labels)?;
    finish(volume, &mut labels)?;
    drop_islands(volume, &mut labels)?;
    let border_pixels = count_at_border(volume, &labels);
    Ok(LungLabels { labels, threshold_hu: Some(threshold_hu), airway_found, touching, border_pixels, dropped_voxels })
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
/// the gaps in it. On every other pixel, which is fine enough for the skin.
fn mark_enclosed_air(volume: &Volume, threshold_hu: i16, labels: &mut [u8]) -> Result<(), TooManyPieces> {
    let [columns, rows, slices] = volume.size;
    let (half_columns, half_rows) = (columns.div_ceil(2), rows.div_ceil(2));
    let half_pixels = half_columns * half_rows;
    let mut body = vec![false; half_pixels * slices];
    let spacing = [volume.spacing_mm[0] * 2.0, volume.spacing_mm[1] * 2.0];
    let mut distance = SliceDistance::new(half_columns, half_rows, spacing);
    let sampled = |slice: usize| -> Vec<i16> {
        let lines = volume.slice(slice).chunks_exact(columns).step_by(2);
        lines.flat_map(|line| line.iter().step_by(2).copied()).collect()
    };
    for (slice, body) in body.chunks_exact_mut(half_pixels).enumerate() {
        for (is_tissue, hu) in body.iter_mut().zip(sampled(slice)) {
            *is_tissue = hu >= threshold_hu;
        }
        erode(body, BODY_OPENING_MM, &mut distance);
    }
    let size = [half_columns, half_rows, slices];
    let pieces = Components::of(size, false, |slice, row, line| {
        line.copy_from_slice(&body[slice * half_pixels + row * half_columns..][..half_columns]);
    })?;
    let Some(largest) = pieces.largest() else { return Ok(()) };
    body.fill(false);
    for (piece, voxels) in pieces.voxel_runs() {
        if piece == largest {
            body[voxels].fill(true);
        }
    }
    drop(pieces);
    for (slice, body) in body.chunks_exact_mut(half_pixels).enumerate() {
        dilate(body, BODY_OPENING_MM, &mut distance);
        let enclosed = enclosed_gaps(&sampled(slice), body, half_columns, spacing[0] * spacing[1])?;
        let first = slice * columns * rows;
        for (row, (hu, labels)) in
            volume.slice(slice).chunks_exact(columns).zip(labels[first..].chunks_exact_mut(columns)).enumerate()
        {
            let enclosed = &enclosed[row / 2 * half_columns..][..half_columns];
            for (column, (hu, label)) in hu.iter().zip(labels).enumerate() {
                if enclosed[column / 2] && *hu < threshold_hu {
                    *label = AIR;
                }
            }
        }
    }
    Ok(())
}

/// A gap in the body in one slice.
#[derive(Debug, Clone, Copy, Default)]
struct Gap {
    /// It reaches the edge of the picture.
    is_at_edge: bool,
    /// Pixels with body on both sides, and pixels of free air.
    between: usize,
    free: usize,
}

/// The gaps that belong to the body in one slice: those that it encloses, and those that it would enclose if the edge of
/// the picture did not cut it open. These hold lung, not free air, and lie between body and body, where neither the room
/// nor table and blankets do.
fn enclosed_gaps(hu: &[i16], body: &[bool], columns: usize, pixel_mm2: f64) -> Result<Vec<bool>, TooManyPieces> {
    let rows = hu.len() / columns;
    let padding = padding(hu, columns);
    let found = Components::of([columns, rows, 1], true, |_, row, line| {
        let pixels = row * columns..(row + 1) * columns;
        for ((is_gap, is_body), is_padding) in line.iter_mut().zip(&body[pixels.clone()]).zip(&padding[pixels]) {
            *is_gap = !*is_body && !*is_padding;
        }
    })?;
    // First and last body in each row and in each column.
    let mut in_row = vec![(columns, 0); rows];
    let mut in_column = vec![(rows, 0); columns];
    for (pixel, _) in body.iter().enumerate().filter(|(_, is_body)| **is_body) {
        let (row, column) = (pixel / columns, pixel % columns);
        in_row[row] = (column.min(in_row[row].0), column);
        in_column[column] = (row.min(in_column[column].0), row);
    }
    let mut gaps = vec![Gap::default(); found.voxels.len()];
    for (gap, _, row, line) in found.runs() {
        let gap = &mut gaps[gap];
        for column in line {
            let pixel = row * columns + column;
            gap.is_at_edge = gap.is_at_edge || is_at_edge(&padding, columns, pixel);
            let is_between = |at: usize, (first, last): (usize, usize)| first < at && at < last;
            gap.between += usize::from(is_between(column, in_row[row]) || is_between(row, in_column[column]));
            gap.free += usize::from(hu[pixel] < FREE_AIR_HU);
        }
    }
    let mut enclosed = vec![false; hu.len()];
    for (gap, pixels) in found.voxel_runs() {
        let (size, Gap { is_at_edge, between, free }) = (found.voxels[gap], gaps[gap]);
        let is_cut_lung = size as f64 * pixel_mm2 >= CUT_LUNG_MM2 && 2 * between > size && 2 * free < size;
        if !is_at_edge || is_cut_lung {
            enclosed[pixels].fill(true);
        }
    }
    Ok(enclosed)
}

/// What lies outside of a round reconstruction: the pixels that have the value of a corner, which is that of free air or
/// below, and are connected with it. Where the room is all of one value, the room.
fn padding(hu: &[i16], columns: usize) -> Vec<bool> {
    let mut is_padding = vec![false; hu.len()];
    let corners = [0, columns - 1, hu.len() - columns, hu.len() - 1];
    let mut reached: Vec<usize> = Vec::new();
    for corner in corners.into_iter().filter(|corner| hu[*corner] < FREE_AIR_HU) {
        if !std::mem::replace(&mut is_padding[corner], true) {
            reached.push(corner);
        }
        while let Some(pixel) = reached.pop() {
            for neighbour in slice_neighbours(pixel, columns, hu.len()).into_iter().flatten() {
                if hu[neighbour] == hu[corner] && !std::mem::replace(&mut is_padding[neighbour], true) {
                    reached.push(neighbour);
                }
            }
        }
    }
    is_padding
}

/// The pixels left, right, in front of and behind a pixel; `None` beyond the border.
fn slice_neighbours(pixel: usize, columns: usize, pixels: usize) -> [Option<usize>; 4] {
    let column = pixel % columns;
    [
        (column > 0).then(|| pixel - 1),
        (column + 1 < columns).then_some(pixel + 1),
        (pixel >= columns).then(|| pixel - columns),
        (pixel + columns < pixels).then_some(pixel + columns),
    ]
}

/// Whether a pixel lies at the border of the slice or of what is padded.
fn is_at_edge(padding: &[bool], columns: usize, pixel: usize) -> bool {
    let neighbours = slice_neighbours(pixel, columns, padding.len());
    neighbours.into_iter().any(|neighbour| neighbour.is_none_or(|neighbour| padding[neighbour]))
}

/// A round patch of air in one slice.
#[derive(Debug, Clone, Copy)]
struct Patch {
    center: (f64, f64),
    component: usize,
}

/// Where a patch of air lies.
#[derive(Debug, Clone, Copy)]
struct Shape {
    slice: usize,
    columns: (usize, usize),
    rows: (usize, usize),
    /// Sums over its pixels.
    sum_column: f64,
    sum_row: f64,
}

/// The air of a trachea.
struct Trachea {
    voxels: Vec<usize>,
    /// That of its slice in the middle.
    seed: Vec<usize>,
}

/// Grows trachea and bronchi as far as they do not leak into the lung, labels trachea and main bronchi, and takes the
/// finer tree out of the air. Returns whether there is an airway.
fn label_airway(volume: &Volume, labels: &mut [u8]) -> Result<bool, TooManyPieces> {
    let max_voxels = ((MAX_AIRWAY_ML / volume.voxel_ml()) as usize).min(MAX_AIRWAY_VOXELS);
    let Some(trachea) = trachea(volume, labels, max_voxels)? else { return Ok(false) };
    let ml = |voxels: usize| voxels as f64 * volume.voxel_ml();
    let mut tree: Vec<usize> = Vec::new();
    for limit_hu in (-980..=-820).step_by(20) {
        let Some(grown) = grow(volume, labels, &trachea.seed, limit_hu, max_voxels) else { break };
        let by_factor = ml(tree.len()) > LEAK_FACTOR_FROM_ML && grown.len() as f64 > tree.len() as f64 * LEAK_FACTOR;
        let at_once = ml(grown.len()) > ml(tree.len().max(trachea.voxels.len())) + LEAK_ML;
        if by_factor || at_once {
            break;
        }
        tree = grown;
    }
    // A tree that leaks before it has filled the trachea is none.
    if 2 * tree.len() < trachea.voxels.len() {
        tree = trachea.voxels;
    }
    Ok(label_tree(volume, tree, labels))
}

/// The longest chain of round patches of air near the middle, from the top down. `None` when it is too short, or larger
/// than any airway.
fn trachea(volume: &Volume, labels: &[u8], max_voxels: usize) -> Result<Option<Trachea>, TooManyPieces> {
    let [columns, rows, slices] = volume.size;
    let [sx, sy, sz] = volume.spacing_mm;
    let pixels = volume.slice_pixels();
    let patches = Components::of(volume.size, true, |slice, row, line| {
        for (is_air, label) in line.iter_mut().zip(&labels[slice * pixels + row * columns..]) {
            *is_air = *label == AIR;
        }
    })?;
    let area_mm2 = |component: usize| patches.voxels[component] as f64 * sx * sy;
    let mut shapes: BTreeMap<usize, Shape> = BTreeMap::new();
    let (mut left, mut right) = (columns, 0);
    for (component, slice, row, line) in patches.runs() {
        if area_mm2(component) > *TRACHEA_MM2.end() {
            left = left.min(line.start);
            right = right.max(line.end);
        } else if TRACHEA_MM2.contains(&area_mm2(component)) {
            let shape = shapes.entry(component).or_insert(Shape {
                slice,
                columns: (usize::MAX, 0),
                rows: (row, 0),
                sum_column: 0.0,
                sum_row: 0.0,
            });
            shape.columns = (shape.columns.0.min(line.start), shape.columns.1.max(line.end));
            shape.rows.1 = row + 1;
            shape.sum_row += (row * line.len()) as f64;
            shape.sum_column += line.map(|column| column as f64).sum::<f64>();
        }
    }
    if left >= right {
        return Ok(None);
    }
    let (middle, reach) = ((left + right) as f64 / 2.0 * sx, (right - left) as f64 * sx * 0.2);
    let mut by_slice: Vec<Vec<Patch>> = vec![Vec::new(); slices];
    for (component, Shape { slice, columns, rows, sum_column, sum_row }) in shapes {
        let count = patches.voxels[component] as f64;
        let (width, height) = ((columns.1 - columns.0) as f64 * sx, (rows.1 - rows.0) as f64 * sy);
        let center = (sum_column / count * sx, sum_row / count * sy);
        let is_round = width < 2.2 * height && height < 2.2 * width && area_mm2(component) > 0.45 * width * height;
        if is_round && (center.0 - middle).abs() < reach {
            by_slice[slice].push(Patch { center, component });
        }
    }
    let mut longest: Vec<Patch> = Vec::new();
    // Chains start at every patch that none above leads to.
    let mut taken: HashSet<usize> = HashSet::new();
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
    let size: usize = longest.iter().map(|patch| patches.voxels[patch.component]).sum();
    if (longest.len() as f64) * sz < TRACHEA_LENGTH_MM || size > max_voxels {
        return Ok(None);
    }
    let voxels_of = |chain: &[Patch]| -> Vec<usize> {
        let chain: HashSet<usize> = chain.iter().map(|patch| patch.component).collect();
        let runs = patches.runs().filter(|(component, ..)| chain.contains(component));
        runs.flat_map(|(_, slice, row, line)| line.map(move |column| (slice * rows + row) * columns + column)).collect()
    };
    let middle = longest.len() / 2;
    Ok(Some(Trachea { voxels: voxels_of(&longest), seed: voxels_of(&longest[middle..=middle]) }))
}

/// What is below a limit and connected with the seed; `None` when there is nothing or too much.
fn grow(volume: &Volume, labels: &[u8], seed: &[usize], limit_hu: i16, max_voxels: usize) -> Option<Vec<usize>> {
    let [columns, rows, slices] = volume.size;
    let pixels = columns * rows;
    let mut seen: HashSet<usize> = HashSet::new();
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
            if labels[neighbour] == AIR && volume.hu[neighbour] < limit_hu && seen.insert(neighbour) {
                grown.push(neighbour);
            }
        }
    }
    Some(grown)
}

/// Takes the tree and its wall out of the air, and labels trachea and main bronchi, slice by slice. Returns whether there
/// are any.
fn label_tree(volume: &Volume, mut tree: Vec<usize>, labels: &mut [u8]) -> bool {
    let pixels = volume.slice_pixels();
    tree.sort_unstable();
    let mut found = false;
    let mut window = Window::new(volume, 10.0);
    for inside in tree.chunk_by(|one, other| one / pixels == other / pixels) {
        let first = inside[0] / pixels * pixels;
        window.frame(inside.iter().map(|voxel| voxel - first));
        for voxel in inside {
            window.set(voxel - first);
        }
        let mut lumen = window.mask.clone();
        dilate(&mut window.mask, AIRWAY_WALL_MM, &mut window.distance);
        for pixel in window.pixels(&window.mask) {
            labels[first + pixel] = BACKGROUND;
        }
        // A lumen whose voxels at the wall are too bright for the tree is that much wider.
        dilate(&mut lumen, AIRWAY_WALL_MM, &mut window.distance);
        open(&mut lumen, MAIN_BRONCHUS_RADIUS_MM + AIRWAY_WALL_MM, &mut window.distance);
        for pixel in window.pixels(&lumen) {
            labels[first + pixel] = AIRWAY;
            found = true;
        }
    }
    found
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
    /// Voxels of free air.
    free: usize,
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

/// What became of the candidates.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    touching: bool,
    dropped_voxels: usize,
}

/// Labels the lungs in what was air.
fn keep_lungs(volume: &Volume, labels: &mut [u8]) -> Result<Kept, TooManyPieces> {
    let columns = volume.size[0];
    let pixels = volume.slice_pixels();
    let pieces = Components::of(volume.size, false, |slice, row, line| {
        for (is_air, label) in line.iter_mut().zip(&labels[slice * pixels + row * columns..]) {
            *is_air = *label == AIR;
        }
    })?;
    for label in labels.iter_mut().filter(|label| **label == AIR) {
        *label = BACKGROUND;
    }
    let minimum = (MIN_LUNG_ML / volume.voxel_ml()).max(1.0) as usize;
    let mut candidates: Vec<Candidate> = candidates(volume, &pieces, minimum);
    // The largest is a lung or both. The others are lungs, or parts of them that a band without air cuts off, if they
    // reach up as lungs do and bowel does not.
    candidates.sort_by_key(|candidate| (std::cmp::Reverse(candidate.voxels), candidate.component));
    let Some(&first) = candidates.first() else { return Ok(Kept::default()) };
    let (kept, dropped): (Vec<Candidate>, Vec<Candidate>) =
        candidates.into_iter().partition(|candidate| candidate.top_slice as f64 > first.center_slice());
    let middle = middle_column(volume, &first, &kept);
    let mut on_right: HashMap<usize, usize> = kept.iter().map(|candidate| (candidate.component, 0)).collect();
    for (component, _, _, line) in pieces.runs() {
        if let Some(on_right) = on_right.get_mut(&component) {
            *on_right += line.end.min(middle.max(line.start)) - line.start;
        }
    }
    let label_of = |candidate: &Candidate| {
        let on_right = on_right.get(&candidate.component).copied().unwrap_or_default();
        if (TOUCHING_SHARE..=1.0 - TOUCHING_SHARE).contains(&(on_right as f64 / candidate.voxels as f64)) {
            BOTH_LUNGS
        } else if candidate.center_column() < middle as f64 {
            RIGHT_LUNG
        } else {
            LEFT_LUNG
        }
    };
    let label_of: HashMap<usize, u8> =
        kept.iter().map(|candidate| (candidate.component, label_of(candidate))).collect();
    for (component, voxels) in pieces.voxel_runs() {
        if let Some(label) = label_of.get(&component) {
            labels[voxels].fill(*label);
        }
    }
    let of_both = kept.iter().filter(|candidate| label_of.get(&candidate.component) == Some(&BOTH_LUNGS));
    let extent =
        of_both.map(|candidate| candidate.columns).reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
    if let Some(extent) = extent {
        part_lungs(volume, labels, middle, extent);
    }
    let dropped_voxels = dropped.iter().map(|candidate| candidate.voxels).sum();
    Ok(Kept { touching: extent.is_some(), dropped_voxels })
}

/// The pieces that are as large as a part of a lung, and no free air.
fn candidates(volume: &Volume, pieces: &Components, minimum: usize) -> Vec<Candidate> {
    let [columns, rows, _] = volume.size;
    let mut all: BTreeMap<usize, Candidate> = BTreeMap::new();
    for (component, slice, row, line) in pieces.runs().filter(|(component, ..)| pieces.voxels[*component] >= minimum) {
        let candidate = all.entry(component).or_insert(Candidate {
            component,
            voxels: pieces.voxels[component],
            free: 0,
            sum_column: 0.0,
            sum_slice: 0.0,
            top_slice: 0,
            columns: (usize::MAX, 0),
        });
        let count = line.len();
        let first = (slice * rows + row) * columns;
        let hu = &volume.hu[first + line.start..first + line.end];
        candidate.free += hu.iter().filter(|hu| **hu < FREE_AIR_HU).count();
        candidate.sum_column += (line.start + line.end - 1) as f64 / 2.0 * count as f64;
        candidate.sum_slice += (slice * count) as f64;
        candidate.top_slice = candidate.top_slice.max(slice);
        candidate.columns = (candidate.columns.0.min(line.start), candidate.columns.1.max(line.end));
    }
    all.into_values().filter(|candidate| 2 * candidate.free < candidate.voxels).collect()
}

/// The column between the lungs: the middle of the trunk, which is that of the tissue around the first candidate.
fn middle_column(volume: &Volume, first: &Candidate, kept: &[Candidate]) -> usize {
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
    let lungs = kept
        .iter()
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
        if !labels.contains(&BOTH_LUNGS) {
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
                let here = if line[pixel] == BOTH_LUNGS {
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
                if *label == BOTH_LUNGS {
                    *label = if pixel < first + column { RIGHT_LUNG } else { LEFT_LUNG };
                }
            }
            column = column.saturating_add_signed(isize::from(steps[row * width + column]));
        }
    }
}

/// Closes and fills each lung slice by slice.
fn finish(volume: &Volume, labels: &mut [u8]) -> Result<(), TooManyPieces> {
    let pixels = volume.slice_pixels();
    let pixel_mm2 = volume.spacing_mm[0] * volume.spacing_mm[1];
    let (small, large) = ((VESSEL_MM2 / pixel_mm2) as usize, (LESION_MM2 / pixel_mm2) as usize);
    let mut window = Window::new(volume, CLOSING_MM);
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
            fill_holes(&mut window.mask, size, small, large, &below)?;
            close(&mut window.mask, CLOSING_MM, &mut window.distance);
            fill_holes(&mut window.mask, size, small, large, &below)?;
            for pixel in window.pixels(&window.mask) {
                if labels[pixel] == BACKGROUND {
                    labels[pixel] = lung;
                }
            }
        }
    }
    Ok(())
}

/// Drops the small pieces that parting and taking out the airways leave behind.
fn drop_islands(volume: &Volume, labels: &mut [u8]) -> Result<(), TooManyPieces> {
    let columns = volume.size[0];
    let pixels = volume.slice_pixels();
    let minimum = MIN_PIECE_ML / volume.voxel_ml();
    for lung in [RIGHT_LUNG, LEFT_LUNG] {
        let pieces = Components::of(volume.size, false, |slice, row, line| {
            for (is_lung, label) in line.iter_mut().zip(&labels[slice * pixels + row * columns..]) {
                *is_lung = *label == lung;
            }
        })?;
        for (component, voxels) in pieces.voxel_runs() {
            if (pieces.voxels[component] as f64) < minimum {
                labels[voxels].fill(BACKGROUND);
            }
        }
    }
    Ok(())
}

/// Pixels of the lungs at the edges of the pictures.
pub(super) fn count_at_border(volume: &Volume, labels: &[u8]) -> usize {
    let columns = volume.size[0];
    let is_lung = |label: u8| label == RIGHT_LUNG || label == LEFT_LUNG;
    let in_slice = |(slice, labels): (usize, &[u8])| {
        let mut lung =
            labels.iter().enumerate().filter(|(_, label)| is_lung(**label)).map(|(pixel, _)| pixel).peekable();
        // Most slices above and below the lungs have none.
        if lung.peek().is_none() {
            return 0;
        }
        let padding = padding(volume.slice(slice), columns);
        lung.filter(|pixel| is_at_edge(&padding, columns, *pixel)).count()
    };
    labels.chunks_exact(volume.slice_pixels()).enumerate().map(in_slice).sum()
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
            assert!(dice >= least, "lung {lung}: Dice {dice:.4}, at least {least} expected; {:?}", found.threshold_hu);
        }
    }

    #[test]
    fn two_lungs_are_found_without_airways_bowel_and_table() {
        let (volume, truth) = Phantom::default().make();
        let found = segment(&volume).unwrap();
        assert_lungs(&found, &truth, 0.97);
        assert!(found.airway_found && !found.touching);
        assert_eq!(found.dropped_voxels, 0, "bowel gas is no lung that was lost");
        let threshold_hu = found.threshold_hu.unwrap();
        assert!(THRESHOLD_RANGE_HU.0 <= threshold_hu && threshold_hu <= THRESHOLD_RANGE_HU.1);
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
        let found = segment(&volume).unwrap();
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
        let found = segment(&volume).unwrap();
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
            let found = segment(&volume).unwrap();
            assert_lungs(&found, &truth, 0.95);
            for lung in [RIGHT_LUNG, LEFT_LUNG] {
                let (found, truth) = (millilitres(&volume, &found.labels, lung), millilitres(&volume, &truth, lung));
                assert!((found / truth - 1.0).abs() < 0.06, "{found:.0} of {truth:.0} ml");
            }
        }
    }

    /// Millilitres of each lung found, over those that are there.
    fn shares(volume: &Volume, found: &LungLabels, truth: &[u8]) -> [f64; 2] {
        [RIGHT_LUNG, LEFT_LUNG].map(|lung| millilitres(volume, &found.labels, lung) / millilitres(volume, truth, lung))
    }

    fn border_ml(volume: &Volume, found: &LungLabels) -> f64 {
        found.border_pixels as f64 * volume.voxel_ml()
    }

    #[test]
    fn a_lung_that_the_border_cuts_is_kept_and_counted() {
        let (mut volume, mut truth) = Phantom::default().make();
        // 14 mm of the left lung are missing, and with them its wall in 29 slices.
        let columns = volume.size[0];
        let kept = columns - 29;
        volume.hu = volume.hu.chunks_exact(columns).flat_map(|line| line[..kept].to_vec()).collect();
        truth = truth.chunks_exact(columns).flat_map(|line| line[..kept].to_vec()).collect();
        volume.size[0] = kept;
        let found = segment(&volume).unwrap();
        let shares = shares(&volume, &found, &truth);
        assert!(shares.iter().all(|share| (0.96..1.04).contains(share)), "{shares:?}");
        assert!(border_ml(&volume, &found) > 5.0, "{} ml", border_ml(&volume, &found));
    }

    /// Pads what lies farther than this from the middle, as a round reconstruction is.
    fn round(volume: &mut Volume, truth: &mut [u8], radius_mm: f64) {
        let [columns, rows, _] = volume.size;
        let from_middle = |at: usize, count: usize, spacing: f64| (at as f64 - (count - 1) as f64 / 2.0) * spacing;
        for (voxel, (hu, label)) in volume.hu.iter_mut().zip(truth).enumerate() {
            let x = from_middle(voxel % columns, columns, volume.spacing_mm[0]);
            let y = from_middle(voxel / columns % rows, rows, volume.spacing_mm[1]);
            if x.hypot(y) > radius_mm {
                (*hu, *label) = (-1024, BACKGROUND);
            }
        }
    }

    #[test]
    fn a_lung_that_a_round_reconstruction_cuts_is_kept_and_counted() {
        let (mut volume, mut truth) = Phantom::default().make();
        round(&mut volume, &mut truth, 122.0);
        let found = segment(&volume).unwrap();
        let shares = shares(&volume, &found, &truth);
        assert!(shares.iter().all(|share| (0.96..1.04).contains(share)), "{shares:?}");
        assert!(border_ml(&volume, &found) > 5.0, "{} ml", border_ml(&volume, &found));
    }

    #[test]
    fn a_round_reconstruction_around_the_lungs_changes_nothing() {
        // The circle cuts through body, table and foam.
        let (mut volume, mut truth) = Phantom::default().make();
        let whole = segment(&volume).unwrap();
        round(&mut volume, &mut truth, 142.0);
        let found = segment(&volume).unwrap();
        assert_eq!((found.border_pixels, found.dropped_voxels), (0, 0));
        for lung in [RIGHT_LUNG, LEFT_LUNG] {
            let dice = dice(&found.labels, &whole.labels, lung);
            assert!(dice > 0.999, "Dice of lung {lung} with that of the whole picture {dice}");
        }
    }

    /// A phantom whose right lung has no air in one slice.
    fn with_airless_slice(slice: usize) -> (Volume, Vec<u8>) {
        let (mut volume, truth) = Phantom::default().make();
        let pixels = slice * volume.slice_pixels()..(slice + 1) * volume.slice_pixels();
        for (hu, label) in volume.hu[pixels.clone()].iter_mut().zip(&truth[pixels]) {
            if *label == RIGHT_LUNG {
                *hu = 40;
            }
        }
        (volume, truth)
    }

    #[test]
    fn a_lobe_behind_a_band_without_air_is_part_of_its_lung() {
        let (volume, truth) = with_airless_slice(55);
        let found = segment(&volume).unwrap();
        let shares = shares(&volume, &found, &truth);
        assert!(shares.iter().all(|share| (0.95..1.04).contains(share)), "{shares:?}");
        assert_eq!(found.dropped_voxels, 0);
        assert!(!found.touching);
    }

    #[test]
    fn a_piece_that_lies_where_no_lung_is_expected_is_counted() {
        let (volume, truth) = with_airless_slice(25);
        let found = segment(&volume).unwrap();
        let dropped_ml = found.dropped_voxels as f64 * volume.voxel_ml();
        let [right, _] = shares(&volume, &found, &truth);
        let lost_ml = (1.0 - right) * millilitres(&volume, &truth, RIGHT_LUNG);
        assert!(dropped_ml > 200.0 && (dropped_ml / lost_ml - 1.0).abs() < 0.3, "{dropped_ml} of {lost_ml} ml");
    }

    #[test]
    fn an_airway_that_leaks_before_it_has_grown_takes_no_lung() {
        // The trachea is dark enough for the first limit in a few slices, or throughout; from the second on, or at once,
        // it is connected with a part of the lung that is as thin.
        for (trachea_hu, lung_hu) in [(-970, -970), (-990, -990)] {
            let (mut volume, truth) = Phantom::default().make();
            let [columns, rows, _] = volume.size;
            let mut leak_ml = 0.0;
            for (voxel, (hu, label)) in volume.hu.iter_mut().zip(&truth).enumerate() {
                let at: [f64; 3] = std::array::from_fn(|axis| {
                    let index = [voxel % columns, voxel / columns % rows, voxel / columns / rows][axis];
                    (index as f64 - (volume.size[axis] - 1) as f64 / 2.0) * volume.spacing_mm[axis]
                });
                if *label == AIRWAY && !(70.0..90.0).contains(&at[2]) {
                    *hu = trachea_hu;
                }
                // A ball at the end of the right main bronchus.
                let from_center = (at[0] + 70.0).hypot(at[1] - 10.0).hypot(at[2]);
                if *label == RIGHT_LUNG && from_center < 27.0 {
                    *hu = lung_hu;
                    leak_ml += volume.spacing_mm.iter().product::<f64>() / 1000.0;
                }
            }
            assert!((60.0..90.0).contains(&leak_ml), "{leak_ml} ml");
            let found = segment(&volume).unwrap();
            assert!(found.airway_found);
            let right_in_ball = |label: u8| {
                let in_ball = volume.hu.iter().zip(&truth).zip(&found.labels);
                in_ball
                    .filter(|((hu, truth), found)| **hu == lung_hu && **truth == RIGHT_LUNG && **found == label)
                    .count()
            };
            let lost_ml = right_in_ball(AIRWAY) as f64 * volume.voxel_ml();
            assert!(lost_ml < 5.0, "{lost_ml} of {leak_ml} ml of lung are airway");
            assert_lungs(&found, &truth, 0.96);
        }
    }

    #[test]
    fn noise_is_refused() {
        // On every other pixel, as the body is looked for, tissue and air alternate in every direction.
        let size = [512, 512, 130];
        let hu = (0..size.iter().product())
            .map(|voxel| {
                let (column, row, slice) = (voxel % size[0], voxel / size[0] % size[1], voxel / size[0] / size[1]);
                if (column / 2 + row / 2 + slice) % 2 == 0 { 40 } else { -900 }
            })
            .collect();
        let volume = Volume { size, spacing_mm: [2.0, 2.0, 2.0], hu };
        assert_eq!(segment(&volume), Err(TooManyPieces));
    }

    #[test]
    fn without_lungs_there_are_none() {
        let (volume, _) = Phantom { without_lungs: true, bowel_gas: false, ..Phantom::default() }.make();
        let found = segment(&volume).unwrap();
        assert!(found.labels.iter().all(|label| *label == BACKGROUND));
        let air = Volume { size: [32, 32, 20], spacing_mm: [5.0, 5.0, 5.0], hu: vec![-1000; 32 * 32 * 20] };
        assert!(segment(&air).unwrap().labels.iter().all(|label| *label == BACKGROUND));
        let tissue = Volume { hu: vec![40; 32 * 32 * 20], ..air };
        assert!(segment(&tissue).unwrap().labels.iter().all(|label| *label == BACKGROUND));
    }
}
