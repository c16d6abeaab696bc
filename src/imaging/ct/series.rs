//! From the headers of a study's images to the stacks that make a volume, or to the reasons why there is none.
//!
//! Start at [`choose_stacks`]. Their order is by rule, never by order of arrival: most slices, then the smallest distance
//! between them, then the softest kernel, then the lowest UID.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use super::SliceHeader;
use crate::types::ReasonCode;

/// Fewest slices of a stack.
pub const MINIMUM_SLICES: usize = 20;
/// Largest volume, in voxels.
pub const MAXIMUM_VOXELS: usize = 400_000_000;
/// Largest distance between slices, in millimetres.
const MAXIMUM_SLICE_SPACING_MM: f64 = 10.0;
/// Least height of a stack, in millimetres: less is no chest.
const MINIMUM_HEIGHT_MM: f64 = 100.0;
/// Distances between slices may differ from their median by this share, or by [`SPACING_TOLERANCE_MM`].
const SPACING_TOLERANCE: f64 = 0.05;
const SPACING_TOLERANCE_MM: f64 = 0.06;
/// Slices closer than this lie at the same position.
const SAME_POSITION_MM: f64 = 0.01;
/// Distances from this share of the median up are gaps.
const GAP_FROM: f64 = 1.5;
/// Slices thinner than this share of their distance leave most of what lies between them out.
const LEAST_COVERAGE: f64 = 0.7;
/// Least cosine between the normal of the slices and the patient's long axis: 10 degrees.
const AXIAL_COSINE: f64 = 0.985;
/// Orientations that differ less are the same.
const SAME_ORIENTATION: f64 = 1e-3;
/// Sideways shift for each millimetre of advance that makes a stack sheared: about 1 degree.
const SHEAR: f64 = 0.0175;
/// A stated tilt of the gantry below this is none, in degrees.
const NO_TILT_DEGREES: f64 = 0.5;

/// A stack of slices that makes a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// Indices into the headers, from the feet to the head.
    pub slices: Vec<usize>,
    /// Pairs at the same position: the slice that is in the stack, the one that is not. To be left out if their pixels
    /// are the same; otherwise the stack cannot be used.
    pub doubles: Vec<(usize, usize)>,
    /// Acquisition Number, when the series has several and one was chosen.
    pub acquisition_number: Option<i32>,
    /// Rows and columns.
    pub matrix: [u32; 2],
    /// Distances between columns, rows and slices in millimetres.
    pub spacing_mm: [f64; 3],
    /// Thickness of the slices in millimetres, where stated.
    pub slice_thickness_mm: Option<f64>,
    /// Convolution kernel, where stated.
    pub convolution_kernel: Option<String>,
    /// The stored columns run towards the patient's right.
    pub columns_reversed: bool,
    /// The stored rows run towards the front.
    pub rows_reversed: bool,
}

impl Stack {
    /// Columns, rows and slices.
    #[must_use]
    pub fn size(&self) -> [usize; 3] {
        [self.matrix[1] as usize, self.matrix[0] as usize, self.slices.len()]
    }
}

/// Why something is not part of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Coded reason.
    pub reason: ReasonCode,
    /// One sentence without patient data.
    pub words: String,
}

impl Refusal {
    fn new(reason: ReasonCode, words: impl Into<String>) -> Self {
        Self { reason, words: words.into() }
    }
}

/// A series of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherSeries {
    /// (0020,000E)
    pub series_instance_uid: String,
    /// Its number of images, those that cannot be read included.
    pub images: usize,
    /// Why it is not measured.
    pub refusal: Refusal,
}

/// A series that makes a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// (0020,000E)
    pub series_instance_uid: String,
    /// Its number of images.
    pub images: usize,
    /// The volume.
    pub stack: Stack,
    /// Images of the series that are not in the stack, by index.
    pub left_out: Vec<(usize, Refusal)>,
}

impl Candidate {
    fn refused(&self, refusal: Refusal) -> OtherSeries {
        OtherSeries { series_instance_uid: self.series_instance_uid.clone(), images: self.images, refusal }
    }
}

/// What a study has to measure. Headers do not tell all: a candidate may be refused for its pixels or its lungs, and the
/// next one is tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The series that make a volume, the best first.
    pub candidates: Vec<Candidate>,
    /// Every other series.
    pub other_series: Vec<OtherSeries>,
}

impl Choice {
    /// Why the candidate after those that were `refused` is the one that is measured, and why each other series is not.
    /// `None` without such a candidate.
    #[must_use]
    pub fn explain(&self, refused: &[Refusal]) -> Option<(String, Vec<OtherSeries>)> {
        let chosen = self.candidates.get(refused.len())?;
        let described = describe(&chosen.stack);
        let mut why = if self.candidates.len() == 1 {
            format!("the only series that makes a volume: {described}")
        } else {
            format!(
                "of {} series that make a volume the one with most slices, then the smallest distance between them, \
                 then the softest kernel: {described}",
                self.candidates.len()
            )
        };
        if !refused.is_empty() {
            why.push_str("; ");
            why.push_str(&refused.len().to_string());
            why.push_str(" that came before it could not be measured or judged");
        }
        let tried = self.candidates.iter().zip(refused).map(|(other, refusal)| other.refused(refusal.clone()));
        let untried = self.candidates.iter().skip(refused.len() + 1).map(|other| {
            let words = format!("another series was chosen: it has {described}, this one {}", describe(&other.stack));
            other.refused(Refusal::new(ReasonCode::OtherSeriesChosen, words))
        });
        Some((why, self.other_series.iter().cloned().chain(tried).chain(untried).collect()))
    }

    /// Why nothing is measured, when the first candidates were `refused`: what is wrong with the best one, else with the
    /// series of most images.
    #[must_use]
    pub fn refusal(&self, refused: &[Refusal]) -> Refusal {
        let series = self.candidates.len() + self.other_series.len();
        let (which, Refusal { reason, words }) = match refused.first() {
            Some(first) => ("best", first),
            None => {
                match self.other_series.iter().max_by_key(|other| (other.images, Reverse(&other.series_instance_uid))) {
                    Some(largest) => ("largest", &largest.refusal),
                    None => return Refusal::new(ReasonCode::NoSuitableImage, "the study has no CT image"),
                }
            }
        };
        if series == 1 {
            return Refusal::new(*reason, words);
        }
        let untried = match self.candidates.len().saturating_sub(refused.len()) {
            0 => String::new(),
            untried => format!(" ({untried} more that make a volume were not tried)"),
        };
        let words = format!("none of {series} series can be measured{untried}; the {which}: {words}");
        Refusal::new(*reason, words)
    }
}

/// Finds the stacks of a study that can be measured. `unreadable` are the images whose headers cannot be read: the Series
/// Instance UID of each, and why. Nobody knows where they belong, so their series cannot be told to be whole.
#[must_use]
pub fn choose_stacks(headers: &[SliceHeader], unreadable: &[(String, Refusal)]) -> Choice {
    let mut by_series: BTreeMap<&str, (Vec<usize>, Vec<&Refusal>)> = BTreeMap::new();
    for (idx, header) in headers.iter().enumerate() {
        by_series.entry(&header.series_instance_uid).or_default().0.push(idx);
    }
    for (uid, refusal) in unreadable {
        by_series.entry(uid).or_default().1.push(refusal);
    }
    let mut candidates = Vec::new();
    let mut other_series = Vec::new();
    for (uid, (readable, unreadable)) in by_series {
        let series_instance_uid = uid.to_owned();
        let images = readable.len() + unreadable.len();
        let stack = match unreadable.first() {
            Some(first) => Err(of_some(unreadable.len(), images, "cannot be read", first)),
            None => stack_of_series(headers, &readable),
        };
        match stack {
            Ok((stack, left_out)) => candidates.push(Candidate { series_instance_uid, images, stack, left_out }),
            Err(refusal) => other_series.push(OtherSeries { series_instance_uid, images, refusal }),
        }
    }
    candidates.sort_by(|a, b| {
        (b.stack.slices.len().cmp(&a.stack.slices.len()))
            .then(a.stack.spacing_mm[2].total_cmp(&b.stack.spacing_mm[2]))
            .then(hardness(&a.stack).cmp(&hardness(&b.stack)))
            .then(a.series_instance_uid.cmp(&b.series_instance_uid))
    });
    Choice { candidates, other_series }
}

/// A series of `images` images that is refused for some of them, the first of which says why.
fn of_some(count: usize, images: usize, what: &str, first: &Refusal) -> Refusal {
    Refusal::new(first.reason, format!("{count} of {images} image(s) of the series {what}, the first: {}", first.words))
}

fn describe(stack: &Stack) -> String {
    let kernel = stack.convolution_kernel.as_ref().map_or_else(String::new, |kernel| format!(", kernel {kernel}"));
    format!("{} slices {:.2} mm apart{kernel}", stack.slices.len(), stack.spacing_mm[2])
}

/// 0 for kernels made for soft tissue, 2 for those made for lung and bone, 1 for what is not known. Sharp kernels add
/// noise, which widens every density band.
fn hardness(stack: &Stack) -> u8 {
    let Some(kernel) = &stack.convolution_kernel else { return 1 };
    let kernel = kernel.to_ascii_uppercase();
    let digits: String = kernel.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let number: Option<u32> = digits.parse().ok();
    if ["LUNG", "BONE", "EDGE", "DETAIL", "SHARP"].iter().any(|word| kernel.contains(word)) {
        return 2;
    }
    if ["SOFT", "STANDARD", "STD", "SMOOTH"].iter().any(|word| kernel.contains(word)) {
        return 0;
    }
    match (kernel.chars().next(), number) {
        // Siemens: B30f, Br40, I31f, Bl57; Canon: FC03, FC51; Philips: one letter, A to C soft.
        (Some('B' | 'I' | 'Q'), Some(number)) => {
            if number <= 45 {
                0
            } else {
                2
            }
        }
        (Some('F'), Some(number)) => {
            if number < 30 {
                0
            } else {
                2
            }
        }
        (Some('A'..='C'), None) if kernel.len() == 1 => 0,
        (Some('D' | 'E' | 'L' | 'Y'), None) if kernel.len() <= 2 => 2,
        _ => 1,
    }
}

type StackOrRefusal = Result<(Stack, Vec<(usize, Refusal)>), Refusal>;

/// The stack of one series: of all its axial images, or, where these lie upon one another, of its longest acquisition.
fn stack_of_series(headers: &[SliceHeader], images: &[usize]) -> StackOrRefusal {
    if let Some(header) = images.iter().map(|&idx| &headers[idx]).find(|header| header.number_of_frames > 1) {
        let words = format!(
            "multi-frame CT of {} frames (SOP class {}) is not read; single-frame CT images are",
            header.number_of_frames, header.sop_class_uid
        );
        return Err(Refusal::new(ReasonCode::UnsupportedImage, words));
    }
    let mut left_out = Vec::new();
    let mut slices = Vec::new();
    for &idx in images {
        match why_no_slice(&headers[idx]) {
            Some(refusal) => left_out.push((idx, refusal)),
            None => slices.push(idx),
        }
    }
    // A slice that may belong anywhere may be missing anywhere.
    let mut placeless = left_out.iter().filter(|(_, refusal)| refusal.reason == ReasonCode::GeometryMissing);
    if let Some((_, first)) = placeless.next() {
        return Err(of_some(1 + placeless.count(), images.len(), "have no place", first));
    }
    if slices.is_empty() {
        return Err(match left_out.into_iter().next() {
            Some((_, refusal)) => refusal,
            None => Refusal::new(ReasonCode::NoSuitableImage, "the series has no image"),
        });
    }
    let whole = stack_of(headers, &slices);
    let by_acquisition = acquisitions(headers, &slices);
    match &whole {
        Err(Refusal { reason: ReasonCode::DuplicatePosition, .. }) => {}
        Ok(stack) if lie_upon_one_another(headers, &by_acquisition, &stack.doubles) => {}
        _ => return whole.map(|stack| (stack, left_out)),
    }
    // Scans before and after contrast medium share positions, not the acquisition.
    let best = by_acquisition
        .iter()
        .filter_map(|(number, slices)| Some((*number, slices, stack_of(headers, slices).ok()?)))
        .filter(|(_, _, stack)| stack.doubles.is_empty())
        .max_by_key(|(number, slices, _)| (slices.len(), Reverse(*number)));
    match best {
        Some((number, members, mut stack)) if by_acquisition.len() > 1 => {
            stack.acquisition_number = Some(number);
            let words = format!(
                "the series holds {} acquisitions at the same positions; acquisition {number} was chosen",
                by_acquisition.len()
            );
            let members: HashSet<usize> = members.iter().copied().collect();
            let others = slices.iter().filter(|idx| !members.contains(idx));
            left_out.extend(others.map(|&idx| (idx, Refusal::new(ReasonCode::OtherSeriesChosen, words.clone()))));
            Ok((stack, left_out))
        }
        _ => whole.map(|stack| (stack, left_out)),
    }
}

/// Whether two acquisitions scan the same: more than half of the smaller lies at positions of the other. Those that only
/// meet, in a slice or two, are one scan, and none of them may be thrown away.
fn lie_upon_one_another(
    headers: &[SliceHeader],
    by_acquisition: &BTreeMap<i32, Vec<usize>>,
    doubles: &[(usize, usize)],
) -> bool {
    let mut shared: BTreeMap<[i32; 2], usize> = BTreeMap::new();
    for &(kept, double) in doubles {
        let mut pair = [acquisition(&headers[kept]), acquisition(&headers[double])];
        pair.sort_unstable();
        if pair[0] != pair[1] {
            *shared.entry(pair).or_default() += 1;
        }
    }
    let size = |number: &i32| by_acquisition.get(number).map_or(0, Vec::len);
    shared.iter().any(|([one, other], positions)| 2 * positions > size(one).min(size(other)))
}

fn acquisition(header: &SliceHeader) -> i32 {
    header.acquisition_number.unwrap_or(0)
}

fn acquisitions(headers: &[SliceHeader], slices: &[usize]) -> BTreeMap<i32, Vec<usize>> {
    let mut by_number: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for &idx in slices {
        by_number.entry(acquisition(&headers[idx])).or_default().push(idx);
    }
    by_number
}

/// Why an image is no slice of any volume.
fn why_no_slice(header: &SliceHeader) -> Option<Refusal> {
    let has = |value: &str| header.image_type.iter().any(|found| found == value);
    if !header.is_ct_image() {
        let words = format!("SOP class {} is not CT Image Storage", header.sop_class_uid);
        return Some(Refusal::new(ReasonCode::UnsupportedImage, words));
    }
    if has("LOCALIZER") {
        return Some(Refusal::new(ReasonCode::Localizer, "the image is a localizer"));
    }
    for (value, name) in [("MIP", "maximum"), ("MAXIMUM", "maximum"), ("MINIP", "minimum"), ("MINIMUM", "minimum")] {
        if has(value) {
            let words = format!("the image is a {name} intensity projection, whose values are no densities");
            return Some(Refusal::new(ReasonCode::UnsupportedImage, words));
        }
    }
    if let Some(unit) = header.rescale_type.as_deref().filter(|unit| !unit.eq_ignore_ascii_case("HU")) {
        let words = format!("the values are in {unit}, Hounsfield units (HU) expected");
        return Some(Refusal::new(ReasonCode::UnsupportedImage, words));
    }
    let missing = [
        (header.matrix.is_none(), "Rows (0028,0010) or Columns (0028,0011)"),
        (header.pixel_spacing_mm.is_none(), "Pixel Spacing (0028,0030)"),
        (header.orientation.is_none_or(|axes| !are_axes(axes)), "a valid Image Orientation (Patient) (0020,0037)"),
        (header.position_mm.is_none(), "Image Position (Patient) (0020,0032)"),
    ];
    let missing = missing.into_iter().find(|(is_missing, _)| *is_missing)?;
    Some(Refusal::new(ReasonCode::GeometryMissing, format!("{} is missing: its place is not known", missing.1)))
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn minus(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// Two unit vectors at a right angle.
fn are_axes([row, column]: [[f64; 3]; 2]) -> bool {
    let is_unit = |axis| (dot(axis, axis) - 1.0).abs() < 0.01;
    is_unit(row) && is_unit(column) && dot(row, column).abs() < 0.01
}

/// The place of a slice, all of it stated.
struct Placed {
    idx: usize,
    matrix: [u32; 2],
    pixel_spacing_mm: [f64; 2],
    axes: [[f64; 3]; 2],
    position_mm: [f64; 3],
    /// Along the normal of the stack, towards the head.
    height_mm: f64,
}

fn stack_of(headers: &[SliceHeader], slices: &[usize]) -> Result<Stack, Refusal> {
    let mut placed: Vec<Placed> = slices
        .iter()
        .filter_map(|&idx| {
            let header = &headers[idx];
            Some(Placed {
                idx,
                matrix: header.matrix?,
                pixel_spacing_mm: header.pixel_spacing_mm?,
                axes: header.orientation?,
                position_mm: header.position_mm?,
                height_mm: 0.0,
            })
        })
        .collect();
    let Some(first) = placed.first() else {
        return Err(Refusal::new(ReasonCode::NoSuitableImage, "the series has no image"));
    };
    let (matrix, pixel_spacing, axes) = (first.matrix, first.pixel_spacing_mm, first.axes);
    check_alike(headers, &placed)?;
    let [row, column] = axes;
    let mut normal = cross(row, column);
    check_axial(row, column, normal)?;
    if normal[2] < 0.0 {
        normal = normal.map(|part| -part);
    }
    if placed.len() < MINIMUM_SLICES {
        let words = format!("{} slices, at least {MINIMUM_SLICES} expected", placed.len());
        return Err(Refusal::new(ReasonCode::TooFewSlices, words));
    }
    for slice in &mut placed {
        slice.height_mm = dot(slice.position_mm, normal);
    }
    placed.sort_by(|a, b| a.height_mm.total_cmp(&b.height_mm).then(a.idx.cmp(&b.idx)));
    let mut doubles = Vec::new();
    let mut stack: Vec<&Placed> = Vec::new();
    for slice in &placed {
        match stack.last() {
            Some(last) if slice.height_mm - last.height_mm < SAME_POSITION_MM => doubles.push((last.idx, slice.idx)),
            _ => stack.push(slice),
        }
    }
    check_tilt(headers, &stack, [row, column])?;
    let slice_spacing = check_spacing(&stack, doubles.len())?;
    let header = |slice: &Placed| &headers[slice.idx];
    check_size(matrix, stack.len())?;
    check_coverage(stack.iter().filter_map(|slice| header(slice).slice_thickness_mm), slice_spacing)?;
    let one_of = |values: Vec<Option<f64>>| {
        values.first().copied().flatten().filter(|_| values.windows(2).all(|pair| pair[0] == pair[1]))
    };
    Ok(Stack {
        slices: stack.iter().map(|slice| slice.idx).collect(),
        doubles,
        acquisition_number: None,
        matrix,
        spacing_mm: [pixel_spacing[1], pixel_spacing[0], slice_spacing],
        slice_thickness_mm: one_of(stack.iter().map(|slice| header(slice).slice_thickness_mm).collect()),
        convolution_kernel: stack.first().and_then(|slice| header(slice).convolution_kernel.clone()),
        columns_reversed: row[0] < 0.0,
        rows_reversed: column[1] < 0.0,
    })
}

/// One matrix, pixel spacing, orientation and frame of reference for all: those of the first, so that no small steps add
/// up.
fn check_alike(headers: &[SliceHeader], placed: &[Placed]) -> Result<(), Refusal> {
    let mixed = |words: String| Err(Refusal::new(ReasonCode::MixedGeometry, words));
    let Some((one, others)) = placed.split_first() else { return Ok(()) };
    for other in others {
        if one.matrix != other.matrix {
            let ([rows, columns], [other_rows, other_columns]) = (one.matrix, other.matrix);
            return mixed(format!(
                "images of {columns} x {rows} and of {other_columns} x {other_rows} pixels in one series"
            ));
        }
        let differs = |axis: usize| (one.pixel_spacing_mm[axis] - other.pixel_spacing_mm[axis]).abs() > 1e-4;
        if differs(0) || differs(1) {
            return mixed(format!(
                "pixels of {:.4} x {:.4} mm and of {:.4} x {:.4} mm in one series",
                one.pixel_spacing_mm[0], one.pixel_spacing_mm[1], other.pixel_spacing_mm[0], other.pixel_spacing_mm[1]
            ));
        }
        let turned =
            |axis: usize| (0..3).any(|part| (one.axes[axis][part] - other.axes[axis][part]).abs() > SAME_ORIENTATION);
        if turned(0) || turned(1) {
            return mixed("images of different orientations in one series".to_owned());
        }
        if headers[one.idx].frame_of_reference_uid != headers[other.idx].frame_of_reference_uid {
            return mixed("images of different frames of reference in one series".to_owned());
        }
    }
    Ok(())
}

fn check_axial(row: [f64; 3], column: [f64; 3], normal: [f64; 3]) -> Result<(), Refusal> {
    if normal[2].abs() < AXIAL_COSINE {
        let plane = if normal[1].abs() > 0.8 {
            "coronal"
        } else if normal[0].abs() > 0.8 {
            "sagittal"
        } else {
            "oblique"
        };
        let degrees = normal[2].abs().min(1.0).acos().to_degrees();
        let words = format!("the images are {plane}, {degrees:.0} degrees from axial; at most 10 expected");
        return Err(Refusal::new(ReasonCode::NotAxial, words));
    }
    if row[0].abs() < AXIAL_COSINE || column[1].abs() < AXIAL_COSINE {
        let degrees = row[0].abs().min(1.0).acos().to_degrees();
        let words = format!("the images are turned by {degrees:.0} degrees about the long axis; at most 10 expected");
        return Err(Refusal::new(ReasonCode::NotAxial, words));
    }
    Ok(())
}

/// A gantry that is tilted shifts every slice against the one before: the stack is no box.
fn check_tilt(headers: &[SliceHeader], stack: &[&Placed], [row, column]: [[f64; 3]; 2]) -> Result<(), Refusal> {
    let (Some(first), Some(last)) = (stack.first(), stack.last()) else { return Ok(()) };
    let way = minus(last.position_mm, first.position_mm);
    let height = last.height_mm - first.height_mm;
    let aside = dot(way, row).hypot(dot(way, column));
    let stated = stack
        .iter()
        .filter_map(|slice| headers[slice.idx].gantry_tilt_degrees)
        .find(|tilt| tilt.abs() > NO_TILT_DEGREES);
    if height > 0.0 && aside > SHEAR * height {
        let stated =
            stated.map_or_else(String::new, |tilt| format!(", Gantry/Detector Tilt (0018,1120) is {tilt:.1} degrees"));
        let words = format!(
            "the slices are shifted against one another by {aside:.1} mm over {height:.0} mm (a tilt of {:.1} \
             degrees{stated}): the stack is sheared, a straight one is expected",
            aside.atan2(height).to_degrees()
        );
        return Err(Refusal::new(ReasonCode::GantryTilt, words));
    }
    // Shifts that come and go do not add up, whether they come at once or little by little.
    let aside = |one: &Placed, other: &Placed| {
        let step = minus(other.position_mm, one.position_mm);
        dot(step, row).hypot(dot(step, column))
    };
    let steps = stack.windows(2).map(|pair| (aside(pair[0], pair[1]), 1.0, "its neighbour"));
    let drifts = stack.iter().map(|slice| (aside(first, slice), (SHEAR * height).max(1.0), "the first"));
    match steps.chain(drifts).find(|(aside, most, _)| aside > most) {
        Some((aside, most, other)) => {
            let words =
                format!("a slice is shifted sideways by {aside:.1} mm against {other}, at most {most:.1} mm expected");
            Err(Refusal::new(ReasonCode::GantryTilt, words))
        }
        None => Ok(()),
    }
}

/// The distance between the slices, when it is one.
fn check_spacing(stack: &[&Placed], doubles: usize) -> Result<f64, Refusal> {
    if stack.len() < MINIMUM_SLICES {
        // Many slices at few positions: that is what to tell.
        let words = format!("{doubles} slices lie at positions of others, {} positions remain", stack.len());
        return Err(Refusal::new(ReasonCode::DuplicatePosition, words));
    }
    let steps: Vec<f64> = stack.windows(2).map(|pair| pair[1].height_mm - pair[0].height_mm).collect();
    let mut sorted = steps.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let gaps: Vec<usize> = (0..steps.len()).filter(|&idx| steps[idx] >= GAP_FROM * median).collect();
    if let Some(&gap) = gaps.first() {
        let words = format!(
            "{} gap(s) in the stack: slices {} and {} of {} are {:.2} mm apart, the others {median:.2} mm",
            gaps.len(),
            gap + 1,
            gap + 2,
            stack.len(),
            steps[gap]
        );
        return Err(Refusal::new(ReasonCode::SliceGap, words));
    }
    let tolerance = (SPACING_TOLERANCE * median).max(SPACING_TOLERANCE_MM);
    if let (Some(least), Some(most)) = (sorted.first(), sorted.last())
        && (median - least > tolerance || most - median > tolerance)
    {
        let words = format!("slices are {least:.2} to {most:.2} mm apart, one distance is expected");
        return Err(Refusal::new(ReasonCode::UnevenSpacing, words));
    }
    if median > MAXIMUM_SLICE_SPACING_MM {
        let words = format!("slices are {median:.1} mm apart, at most {MAXIMUM_SLICE_SPACING_MM} mm expected");
        return Err(Refusal::new(ReasonCode::TooFewSlices, words));
    }
    let height = stack[stack.len() - 1].height_mm - stack[0].height_mm;
    if height < MINIMUM_HEIGHT_MM {
        let words = format!("the stack is {height:.0} mm high, at least {MINIMUM_HEIGHT_MM} mm expected of a chest");
        return Err(Refusal::new(ReasonCode::TooFewSlices, words));
    }
    Ok(height / (stack.len() - 1) as f64)
}

fn check_size([rows, columns]: [u32; 2], slices: usize) -> Result<(), Refusal> {
    let voxels = (rows as usize).checked_mul(columns as usize).and_then(|pixels| pixels.checked_mul(slices));
    if voxels.is_some_and(|voxels| voxels <= MAXIMUM_VOXELS) {
        return Ok(());
    }
    let words = format!("{columns} x {rows} x {slices} voxels, at most {MAXIMUM_VOXELS} are read");
    Err(Refusal::new(ReasonCode::UnsupportedImage, words))
}

/// Slices that lie apart, as of a high-resolution CT of one thin slice every centimetre, are samples and no volume.
fn check_coverage(thicknesses_mm: impl Iterator<Item = f64>, spacing_mm: f64) -> Result<(), Refusal> {
    match thicknesses_mm.min_by(f64::total_cmp) {
        Some(thickness_mm) if thickness_mm < LEAST_COVERAGE * spacing_mm => {
            let words = format!(
                "slices of {thickness_mm:.2} mm lie {spacing_mm:.2} mm apart: what is between them was not scanned; \
                 slices that adjoin are expected"
            );
            Err(Refusal::new(ReasonCode::SliceGap, words))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slices 2 mm apart from the feet up, supine, head first.
    fn series(uid: &str, count: usize) -> Vec<SliceHeader> {
        (0..count)
            .map(|slice| SliceHeader {
                sop_class_uid: dicom_dictionary_std::uids::CT_IMAGE_STORAGE.to_owned(),
                series_instance_uid: uid.to_owned(),
                acquisition_number: Some(1),
                frame_of_reference_uid: Some("1.2.3".to_owned()),
                image_type: ["ORIGINAL", "PRIMARY", "AXIAL"].map(str::to_owned).to_vec(),
                number_of_frames: 1,
                matrix: Some([512, 512]),
                pixel_spacing_mm: Some([0.8, 0.7]),
                orientation: Some([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
                position_mm: Some([-180.0, -170.0, -300.0 + 2.0 * slice as f64]),
                gantry_tilt_degrees: Some(0.0),
                slice_thickness_mm: Some(2.5),
                convolution_kernel: Some("B30f".to_owned()),
                rescale_type: Some("HU".to_owned()),
            })
            .collect()
    }

    #[track_caller]
    fn refusal(headers: &[SliceHeader]) -> Refusal {
        let choice = choose_stacks(headers, &[]);
        assert!(choice.candidates.is_empty(), "{choice:?}");
        choice.refusal(&[])
    }

    #[track_caller]
    fn chosen(headers: &[SliceHeader]) -> (Stack, Choice) {
        let choice = choose_stacks(headers, &[]);
        let best = choice.candidates.first().unwrap_or_else(|| panic!("{choice:?}"));
        (best.stack.clone(), choice)
    }

    fn reasons(other_series: &[OtherSeries]) -> Vec<(&str, ReasonCode)> {
        other_series.iter().map(|other| (other.series_instance_uid.as_str(), other.refusal.reason)).collect()
    }

    #[test]
    fn shuffled_slices_are_sorted_from_the_feet() {
        let mut headers = series("1.1", 100);
        headers.reverse();
        headers.swap(3, 77);
        headers.swap(10, 11);
        let (stack, choice) = chosen(&headers);
        let heights: Vec<f64> = stack.slices.iter().map(|&idx| headers[idx].position_mm.unwrap()[2]).collect();
        assert!(heights.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(stack.size(), [512, 512, 100]);
        assert_eq!(stack.spacing_mm.map(|mm| (mm * 1000.0).round() as u32), [700, 800, 2000]);
        assert_eq!(stack.slice_thickness_mm, Some(2.5));
        assert!(!stack.columns_reversed && !stack.rows_reversed);
        assert_eq!(
            choice.explain(&[]).unwrap().0,
            "the only series that makes a volume: 100 slices 2.00 mm apart, kernel B30f"
        );
    }

    #[test]
    fn prone_and_flipped_images_are_turned_and_the_normal_points_to_the_head() {
        for (row, column, columns_reversed, rows_reversed) in [
            ([-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], true, true),
            ([-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], true, false),
            ([1.0, 0.0, 0.0], [0.0, -1.0, 0.0], false, true),
        ] {
            let mut headers = series("1.1", 60);
            for header in &mut headers {
                header.orientation = Some([row, column]);
            }
            let (stack, _) = chosen(&headers);
            assert_eq!((stack.columns_reversed, stack.rows_reversed), (columns_reversed, rows_reversed));
            assert_eq!(stack.slices[0], 0, "the first slice is at the feet whatever way the images are turned");
        }
    }

    #[test]
    fn every_defect_of_geometry_has_its_reason() {
        let with = |change: &dyn Fn(usize, &mut SliceHeader)| {
            let mut headers = series("1.1", 100);
            for (idx, header) in headers.iter_mut().enumerate() {
                change(idx, header);
            }
            refusal(&headers)
        };
        let mut with_gap = series("1.1", 100);
        with_gap.remove(40);
        let gap = refusal(&with_gap);
        assert_eq!(gap.reason, ReasonCode::SliceGap);
        assert_eq!(gap.words, "1 gap(s) in the stack: slices 40 and 41 of 99 are 4.00 mm apart, the others 2.00 mm");

        let tilted = with(&|idx, header| {
            header.position_mm = Some([-180.0, -170.0 + 0.4 * idx as f64, 2.0 * idx as f64]);
            header.gantry_tilt_degrees = Some(-11.3);
        });
        assert_eq!(tilted.reason, ReasonCode::GantryTilt);
        assert!(
            tilted.words.contains("a tilt of 11.3 degrees, Gantry/Detector Tilt (0018,1120) is -11.3"),
            "{tilted:?}"
        );

        let uneven = with(&|idx, header| {
            header.position_mm = Some([0.0, 0.0, 2.0 * idx as f64 + if idx % 2 == 0 { 0.0 } else { 0.3 }]);
        });
        assert_eq!(uneven.reason, ReasonCode::UnevenSpacing, "{uneven:?}");
        let coronal = with(&|idx, header| {
            header.orientation = Some([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]);
            header.position_mm = Some([0.0, 2.0 * idx as f64, 0.0]);
        });
        assert_eq!(coronal.reason, ReasonCode::NotAxial);
        assert!(coronal.words.contains("coronal, 90 degrees from axial"), "{coronal:?}");
        let turned = with(&|_, header| header.orientation = Some([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]));
        assert!(turned.reason == ReasonCode::NotAxial && turned.words.contains("about the long axis"), "{turned:?}");
        let matrix = with(&|idx, header| {
            if idx == 50 {
                header.matrix = Some([512, 256]);
            }
        });
        assert!(matrix.reason == ReasonCode::MixedGeometry && matrix.words.contains("256 x 512"), "{matrix:?}");
        let orientation = with(&|idx, header| {
            if idx == 50 {
                header.orientation = Some([[0.999, 0.0447, 0.0], [-0.0447, 0.999, 0.0]]);
            }
        });
        assert_eq!(orientation.reason, ReasonCode::MixedGeometry);
        let spacing = with(&|idx, header| {
            if idx > 50 {
                header.pixel_spacing_mm = Some([0.8, 0.9]);
            }
        });
        assert_eq!(spacing.reason, ReasonCode::MixedGeometry);
        let frames = with(&|idx, header| {
            if idx > 50 {
                header.frame_of_reference_uid = None;
            }
        });
        assert_eq!(frames.reason, ReasonCode::MixedGeometry);
        let no_place = with(&|_, header| header.position_mm = None);
        assert!(no_place.reason == ReasonCode::GeometryMissing && no_place.words.contains("(0020,0032)"));
        let multi_frame = with(&|_, header| header.number_of_frames = 300);
        assert!(multi_frame.reason == ReasonCode::UnsupportedImage && multi_frame.words.contains("300 frames"));
        let unit = with(&|_, header| header.rescale_type = Some("US".to_owned()));
        assert_eq!(unit.reason, ReasonCode::UnsupportedImage);
        assert_eq!(refusal(&series("1.1", 12)).reason, ReasonCode::TooFewSlices);
        assert_eq!(refusal(&series("1.1", 40)).reason, ReasonCode::TooFewSlices, "78 mm are no chest");
        assert_eq!(refusal(&[]).reason, ReasonCode::NoSuitableImage);
    }

    #[test]
    fn a_series_that_is_too_large_gives_way_to_the_next() {
        let mut huge = series("1.1", 100);
        for header in &mut huge {
            header.matrix = Some([4096, 4096]);
        }
        let (_, choice) = chosen(&[huge, series("1.2", 60)].concat());
        assert_eq!(choice.candidates[0].series_instance_uid, "1.2");
        assert_eq!(reasons(&choice.other_series), [("1.1", ReasonCode::UnsupportedImage)]);
        let words = &choice.other_series[0].refusal.words;
        assert!(words.starts_with("4096 x 4096 x 100 voxels"), "{words}");
    }

    #[test]
    fn a_series_with_an_image_that_nobody_can_place_is_not_measured() {
        let unreadable = |uid: &str| (uid.to_owned(), Refusal::new(ReasonCode::Undecodable, "cut short"));
        let headers = [series("1.1", 100), series("1.2", 60)].concat();
        let choice = choose_stacks(&headers, &[unreadable("1.1"), unreadable("1.3")]);
        assert_eq!(choice.candidates.len(), 1);
        assert_eq!(choice.candidates[0].series_instance_uid, "1.2");
        let images: Vec<usize> = choice.other_series.iter().map(|other| other.images).collect();
        assert_eq!(images, [101, 1]);
        assert_eq!(reasons(&choice.other_series), [("1.1", ReasonCode::Undecodable), ("1.3", ReasonCode::Undecodable)]);
        let words = &choice.other_series[0].refusal.words;
        assert_eq!(words, "1 of 101 image(s) of the series cannot be read, the first: cut short");

        // Every second slice without a place would leave a stack of twice the distance.
        let mut gapped = series("1.1", 100);
        for header in gapped.iter_mut().step_by(2) {
            header.position_mm = None;
        }
        let refused = refusal(&gapped);
        assert_eq!(refused.reason, ReasonCode::GeometryMissing);
        assert!(refused.words.starts_with("50 of 100 image(s) of the series have no place"), "{refused:?}");
        // A localizer needs none.
        let mut headers = series("1.1", 80);
        headers[0].image_type[2] = "LOCALIZER".to_owned();
        headers[0].position_mm = None;
        assert_eq!(chosen(&headers).0.slices.len(), 79);
    }

    #[test]
    fn acquisitions_that_meet_in_one_slice_stay_one_stack() {
        let mut headers = series("1.1", 100);
        for header in &mut headers[60..] {
            header.acquisition_number = Some(2);
        }
        // The second begins where the first ends.
        let mut again = headers[59].clone();
        again.acquisition_number = Some(2);
        headers.push(again);
        let (stack, choice) = chosen(&headers);
        assert_eq!((stack.slices.len(), stack.acquisition_number), (100, None));
        assert_eq!(stack.doubles, [(59, 100)], "the pixels decide");
        assert!(choice.candidates[0].left_out.is_empty());
        // Turns of the gantry with a number each, and one of them twice, are not told apart either.
        let mut stepped = series("1.1", 80);
        stepped.push(stepped[30].clone());
        for (idx, header) in stepped.iter_mut().enumerate() {
            header.acquisition_number = Some(idx as i32);
        }
        assert_eq!(chosen(&stepped).0.doubles, [(30, 80)]);
    }

    #[test]
    fn small_steps_do_not_add_up() {
        let drifting = |change: &dyn Fn(f64, &mut SliceHeader)| {
            let mut headers = series("1.1", 100);
            for (idx, header) in headers.iter_mut().enumerate() {
                change(idx as f64, header);
            }
            refusal(&headers).reason
        };
        // A hundredth of a millimetre of pixel spacing in all, and five degrees, in steps too small to be told.
        let spacing = drifting(&|idx, header| header.pixel_spacing_mm = Some([0.8, 0.7 + 0.00009 * idx]));
        assert_eq!(spacing, ReasonCode::MixedGeometry);
        let orientation = drifting(&|idx, header| {
            let (sine, cosine) = (0.0009 * idx).sin_cos();
            header.orientation = Some([[cosine, sine, 0.0], [-sine, cosine, 0.0]]);
        });
        assert_eq!(orientation, ReasonCode::MixedGeometry);
        // A stack that bends to one side and comes back.
        let position = drifting(&|idx, header| {
            let aside = 0.5 * (50.0 - (idx - 50.0).abs());
            header.position_mm = Some([-180.0 + aside, -170.0, 2.0 * idx]);
        });
        assert_eq!(position, ReasonCode::GantryTilt);
    }

    #[test]
    fn thin_slices_far_apart_are_no_volume() {
        let every = |spacing_mm: f64, thickness_mm: Option<f64>| {
            let mut headers = series("1.1", 60);
            for (idx, header) in headers.iter_mut().enumerate() {
                header.position_mm = Some([0.0, 0.0, spacing_mm * idx as f64]);
                header.slice_thickness_mm = thickness_mm;
            }
            headers
        };
        let refused = refusal(&every(10.0, Some(1.0)));
        assert_eq!(refused.reason, ReasonCode::SliceGap);
        assert!(refused.words.starts_with("slices of 1.00 mm lie 10.00 mm apart"), "{refused:?}");
        assert_eq!(refusal(&every(5.0, Some(3.4))).reason, ReasonCode::SliceGap);
        for (spacing_mm, thickness_mm) in [(5.0, Some(3.6)), (5.0, Some(5.0)), (2.0, Some(5.0)), (5.0, None)] {
            chosen(&every(spacing_mm, thickness_mm));
        }
    }

    #[test]
    fn localizers_are_dropped_and_a_series_of_them_is_refused() {
        let mut headers = series("1.1", 80);
        headers[0].image_type[2] = "LOCALIZER".to_owned();
        headers[0].matrix = Some([800, 300]);
        let (stack, choice) = chosen(&headers);
        assert_eq!(stack.slices.len(), 79);
        let left_out: Vec<(usize, ReasonCode)> =
            choice.candidates[0].left_out.iter().map(|(idx, refusal)| (*idx, refusal.reason)).collect();
        assert_eq!(left_out, [(0, ReasonCode::Localizer)]);
        for header in &mut headers {
            header.image_type[2] = "LOCALIZER".to_owned();
        }
        assert_eq!(refusal(&headers).reason, ReasonCode::Localizer);
    }

    #[test]
    fn doubles_are_told_for_the_pixels_to_decide() {
        let mut headers = series("1.1", 80);
        headers.push(headers[30].clone());
        let (stack, _) = chosen(&headers);
        assert_eq!(stack.doubles, [(30, 80)]);
        assert_eq!(stack.slices.len(), 80);
    }

    #[test]
    fn acquisitions_at_the_same_positions_are_told_apart() {
        let mut headers = series("1.1", 80);
        let mut late = series("1.1", 70);
        for header in &mut late {
            header.acquisition_number = Some(2);
        }
        headers.extend(late);
        let (stack, choice) = chosen(&headers);
        assert_eq!(stack.acquisition_number, Some(1));
        assert_eq!(stack.slices, (0..80).collect::<Vec<_>>());
        assert_eq!(choice.candidates[0].left_out.len(), 70);
        // Scanners that number every turn of the gantry: one stack all the same.
        let mut stepped = series("1.1", 80);
        for (idx, header) in stepped.iter_mut().enumerate() {
            header.acquisition_number = Some(idx as i32);
        }
        assert_eq!(chosen(&stepped).0.acquisition_number, None);
    }

    #[test]
    fn the_choice_is_most_slices_then_thinnest_then_softest_whatever_comes_first() {
        let mut thick = series("1.1", 60);
        for (idx, header) in thick.iter_mut().enumerate() {
            header.position_mm = Some([0.0, 0.0, 5.0 * idx as f64]);
            header.slice_thickness_mm = Some(5.0);
        }
        let soft = series("1.2", 100);
        let mut sharp = series("1.0", 100);
        for header in &mut sharp {
            header.convolution_kernel = Some("B70f".to_owned());
        }
        let mut broken = series("1.3", 300);
        for header in &mut broken {
            header.orientation = None;
        }
        let headers: Vec<SliceHeader> = [broken, thick, sharp, soft].concat();
        let (stack, choice) = chosen(&headers);
        assert_eq!(headers[stack.slices[0]].series_instance_uid, "1.2");
        let (why, other_series) = choice.explain(&[]).unwrap();
        assert!(why.starts_with("of 3 series that make a volume") && why.ends_with("kernel B30f"), "{why}");
        assert_eq!(
            reasons(&other_series),
            [
                ("1.3", ReasonCode::GeometryMissing),
                ("1.0", ReasonCode::OtherSeriesChosen),
                ("1.1", ReasonCode::OtherSeriesChosen)
            ]
        );
        // The second is measured when the pixels of the first are no good.
        let undecodable = Refusal::new(ReasonCode::Undecodable, "slice 3 of 100 has no pixels");
        let (why, other_series) = choice.explain(std::slice::from_ref(&undecodable)).unwrap();
        assert!(why.ends_with("kernel B70f; 1 that came before it could not be measured or judged"), "{why}");
        assert_eq!(
            reasons(&other_series),
            [
                ("1.3", ReasonCode::GeometryMissing),
                ("1.2", ReasonCode::Undecodable),
                ("1.1", ReasonCode::OtherSeriesChosen)
            ]
        );
        let none = choice.refusal(&[undecodable]);
        assert_eq!(none.reason, ReasonCode::Undecodable);
        assert_eq!(
            none.words,
            "none of 4 series can be measured (2 more that make a volume were not tried); the best: slice 3 of 100 has \
             no pixels"
        );
        let mut reversed = headers.clone();
        reversed.reverse();
        let (again, _) = chosen(&reversed);
        assert_eq!(reversed[again.slices[0]].series_instance_uid, "1.2");
    }

    #[test]
    fn kernels_by_their_makers_names() {
        let hardness_of = |kernel: &str| {
            let mut headers = series("1.1", 60);
            for header in &mut headers {
                header.convolution_kernel = Some(kernel.to_owned());
            }
            hardness(&chosen(&headers).0)
        };
        assert!(
            ["B30f", "Br40d", "I31f", "STANDARD", "SOFT", "FC03", "B"].iter().all(|kernel| hardness_of(kernel) == 0)
        );
        assert!(["B70f", "Bl57", "LUNG", "BONEPLUS", "FC51", "YA"].iter().all(|kernel| hardness_of(kernel) == 2));
        assert_eq!(hardness_of("UNHEARD"), 1);
    }
}
