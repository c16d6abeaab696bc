//! The pictures of a CT: a summary of a few sections with all numbers, and each slice for itself. Lungs are outlined, dense
//! parts coloured.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use image::{ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage, codecs::png::PngEncoder};

use super::{
    super::{
        heat::{HOT, sample},
        inks::{
            self, AIRWAY_INK, AMBER, BLACK, CONSOLIDATION_INK, GREY, HEAT_INK, LEFT_LUNG_INK, OPACITY_INK,
            RIGHT_LUNG_INK, WHITE,
        },
        overlay::shrunk,
        text::TextFont,
    },
    BAND_LIMITS_HU, Volume,
    segment::{AIRWAY, LEFT_LUNG, LungLabels, RIGHT_LUNG},
};
use crate::types::{CtPlane, CtSection, HeatMap, VoxelLabels};

/// Where the axial sections lie: shares of the height of the lungs, from the top.
const AXIAL_HEIGHTS: [f64; 3] = [0.25, 0.5, 0.75];
/// Lung window: what is black and what is white, in Hounsfield units.
const WINDOW_HU: (f32, f32) = (-1350.0, 150.0);
/// Largest and smallest side of the square that a section is fitted into, in pixels.
const CELL_PIXELS: (u32, u32) = (512, 128);
/// Sections side by side at most.
const MOST_COLUMNS: u32 = 4;
/// Narrowest summary: words need room.
const MINIMUM_WIDTH: u32 = 512;
const MARGIN: u32 = 10;

/// Length of the white and of the black dashes of a lesion's outline, in pixels: a pattern that every eye tells from colours.
const DASH_PIXELS: u32 = 4;
/// Width of the outline of lesions and heat, in pixels.
const OUTLINE_PIXELS: u32 = 2;

/// Beside those of [`VoxelLabels`]: trachea and main bronchi, and half the maximum of heat or more.
const AIRWAY_BIT: u8 = 32;
const HOT_BIT: u8 = 64;

/// Why there is no picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// Labels and pixels of a section are not of the same size.
    #[error("section {index} has {pixels} pixels and {labels} labels: the record is not of these images")]
    SizeMismatch {
        /// Index of the section in its volume.
        index: usize,
        /// Number of pixels.
        pixels: usize,
        /// Number of labels.
        labels: usize,
    },
    /// The labels cannot be read.
    #[error("the labels of section {index} cannot be read: {reason}")]
    Labels {
        /// Index of the section in its volume.
        index: usize,
        /// What the decoder said.
        reason: String,
    },
    /// The labels cannot be written.
    #[error("the labels of a section cannot be written as PNG: {0}")]
    Png(String),
    /// A vendored font cannot be read: the binary is damaged.
    #[error("a built-in font is damaged: reinstall the program")]
    Font,
}

/// The grey values of a section in Hounsfield units, in the order in which the section is shown: the patient's right at
/// the left; front above in axial sections, head above in coronal ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionPixels {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Row after row.
    pub hu: Vec<i16>,
}

/// A section as it is drawn.
#[derive(Debug, Clone, Copy)]
pub struct ShownSection<'a> {
    /// Which one, with its lungs.
    pub section: &'a CtSection,
    /// Its grey values.
    pub pixels: &'a SectionPixels,
    /// Heat over it, outlined where it is at least half its maximum.
    pub heat: Option<&'a HeatMap>,
}

/// The words of the summary, in one language.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SummaryWords {
    /// Stands above everything, in amber; empty unless the bundle is untrained.
    pub notice: String,
    /// The title.
    pub above: String,
    /// The name of each section, in their order.
    pub sections: Vec<String>,
    /// What the inks are.
    pub legend: LegendWords,
    /// What was measured, and what it is not.
    pub below: Vec<String>,
}

/// What the inks of a CT are, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LegendWords {
    /// Outline.
    pub right_lung: String,
    /// Outline.
    pub left_lung: String,
    /// Filled, from the second of the band limits on.
    pub opacity: String,
    /// Filled, from the last of the band limits on.
    pub consolidation: String,
    /// Outline.
    pub airway: String,
    /// Outline.
    pub heat: String,
    /// Dashed outline.
    pub lesion: String,
}

/// The words on a slice, in one language.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceWords {
    /// In amber; empty unless the bundle is untrained.
    pub notice: String,
    /// Short: they stand on the picture.
    pub lines: Vec<String>,
}

/// A slice as it is drawn: its pixels as the image stores them, what is known of them in the order of the volume.
#[derive(Debug, Clone, Copy)]
pub struct ShownSlice<'a> {
    /// Number from the feet, from 0.
    pub index: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Hounsfield units as stored, row after row.
    pub hu: &'a [i16],
    /// The bits of [`VoxelLabels`].
    pub labels: &'a [u8],
    /// Heat over it, outlined where it is at least half its maximum.
    pub heat: Option<&'a HeatMap>,
    /// The stored columns run towards the patient's right.
    pub columns_reversed: bool,
    /// The stored rows run towards the front.
    pub rows_reversed: bool,
}

/// Chooses what is shown: axial sections at a quarter, half and three quarters of the lungs' height, the coronal section
/// with most lung, and the axial sections `key_slices` (counted from the feet). None without lungs. Of `lesions` (1 for each
/// voxel of lesion, 0 elsewhere, in the order of the volume) each section keeps its part.
///
/// # Errors
/// [`SectionError::Png`] when the labels cannot be encoded.
pub fn choose_sections(
    volume: &Volume,
    lungs: &LungLabels,
    lesions: Option<&[u8]>,
    key_slices: &[usize],
) -> Result<Vec<CtSection>, SectionError> {
    let [columns, rows, slices] = volume.size;
    let is_lung = |label: &u8| *label == RIGHT_LUNG || *label == LEFT_LUNG;
    let slice_labels = |slice: usize| &lungs.labels[slice * columns * rows..(slice + 1) * columns * rows];
    let mut holding = (0..slices).filter(|&slice| slice_labels(slice).iter().any(is_lung));
    let Some(lowest) = holding.next() else { return Ok(Vec::new()) };
    let highest = holding.next_back().unwrap_or(lowest);
    let mut sections = Vec::new();
    let mut axial: Vec<usize> =
        AXIAL_HEIGHTS.iter().map(|share| highest - ((highest - lowest) as f64 * share).round() as usize).collect();
    axial.dedup();
    let axial_section = |index: usize| -> Result<CtSection, SectionError> {
        let labels_png_base64 = to_png(slice_labels(index), columns, rows)?;
        let of_slice =
            |lesions: &[u8]| to_png(&lesions[index * columns * rows..(index + 1) * columns * rows], columns, rows);
        let lesions_png_base64 = lesions.map(of_slice).transpose()?;
        Ok(CtSection { plane: CtPlane::Axial, index, labels_png_base64, lesions_png_base64 })
    };
    for &index in &axial {
        sections.push(axial_section(index)?);
    }
    let mut by_row = vec![0_usize; rows];
    for (line, labels) in lungs.labels.chunks_exact(columns.max(1)).enumerate() {
        by_row[line % rows] += labels.iter().filter(|label| is_lung(label)).count();
    }
    // Of several with as much lung the one in front.
    let index = (0..rows).max_by_key(|&row| (by_row[row], std::cmp::Reverse(row))).unwrap_or(0);
    let coronal = |of_volume: &[u8]| {
        let line = |slice: usize| &of_volume[(slice * rows + index) * columns..(slice * rows + index + 1) * columns];
        let pixels: Vec<u8> = (0..slices).rev().flat_map(|slice| line(slice).iter().copied()).collect();
        to_png(&pixels, columns, slices)
    };
    sections.push(CtSection {
        plane: CtPlane::Coronal,
        index,
        labels_png_base64: coronal(&lungs.labels)?,
        lesions_png_base64: lesions.map(coronal).transpose()?,
    });
    for &index in key_slices.iter().filter(|index| !axial.contains(index) && **index < slices) {
        sections.push(axial_section(index)?);
    }
    Ok(sections)
}

fn to_png(labels: &[u8], columns: usize, rows: usize) -> Result<String, SectionError> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(labels, columns as u32, rows as u32, ExtendedColorType::L8)
        .map_err(|error| SectionError::Png(error.to_string()))?;
    Ok(BASE64.encode(png))
}

/// `png_base64` is one of the section's pictures.
fn from_png(section: &CtSection, png_base64: &str) -> Result<Vec<u8>, SectionError> {
    let refused = |reason: String| SectionError::Labels { index: section.index, reason };
    let png = BASE64.decode(png_base64).map_err(|error| refused(error.to_string()))?;
    let picture =
        image::load_from_memory_with_format(&png, ImageFormat::Png).map_err(|error| refused(error.to_string()))?;
    Ok(picture.into_luma8().into_raw())
}

/// Draws the sections side by side with their outlines, their legend and the words above and below.
///
/// `size` and `spacing_mm` are of the volume. Sections are as large as the longest side of the whole, `long_side_max`, allows.
///
/// # Errors
/// [`SectionError`] when sections and pixels do not belong together.
pub fn render_sections(
    shown: &[ShownSection<'_>],
    size: [usize; 3],
    spacing_mm: [f64; 3],
    words: &SummaryWords,
    long_side_max: u32,
) -> Result<RgbImage, SectionError> {
    let font = TextFont::load().ok_or(SectionError::Font)?;
    let long_side = long_side_max.max(MINIMUM_WIDTH);
    let legend = legend(
        &words.legend,
        shown.iter().any(|shown| shown.heat.is_some()),
        shown.iter().any(|shown| shown.section.lesions_png_base64.is_some()),
    );
    let layout = Layout::fit(shown.len() as u32, words, &legend, &font, long_side);
    let mut picture = RgbImage::new(layout.width, layout.height());

    let mut y = MARGIN;
    for (line, colour) in &layout.banner {
        font.draw(&mut picture, line, (MARGIN, y), layout.font_size, *colour);
        y += layout.line_height;
    }
    // One scale for all, so that sections can be compared.
    let extents = shown.iter().flat_map(|ShownSection { section, .. }| {
        let [_, vertical] = step_mm(section.plane, spacing_mm);
        let rows = if section.plane == CtPlane::Axial { size[1] } else { size[2] };
        [size[0] as f64 * spacing_mm[0], rows as f64 * vertical]
    });
    let mm_per_pixel = extents.fold(1.0, f64::max) / f64::from(layout.cell);
    for (number, shown) in shown.iter().enumerate() {
        let corner = layout.corner(number as u32);
        let section = shown.section;
        draw_section(&mut picture, *shown, step_mm(section.plane, spacing_mm), mm_per_pixel, (corner, layout.cell))?;
        let name = words.sections.get(number).map_or("", String::as_str);
        let marks = 1.5 * layout.font_size;
        let room = layout.cell - 2 * MARGIN;
        for (row, line) in font.wrap(name, layout.font_size, room).into_iter().enumerate() {
            let at = (corner.0 + MARGIN, corner.1 + 4 + row as u32 * layout.line_height);
            draw_edged(&mut picture, &font, &line, at, (layout.font_size, GREY));
        }
        let middle = corner.1 + layout.cell / 2;
        draw_edged(&mut picture, &font, "R", (corner.0 + 4, middle), (marks, WHITE));
        let right_edge = corner.0 + layout.cell - font.width("L", marks) - 4;
        draw_edged(&mut picture, &font, "L", (right_edge, middle), (marks, WHITE));
    }
    y = layout.banner_height() + layout.cell_rows * layout.cell + MARGIN;
    for row in layout.legend.chunks(layout.legend_columns) {
        let mut tallest = 0;
        for (number, (lines, ink)) in row.iter().enumerate() {
            let x = MARGIN + number as u32 * (layout.width / layout.legend_columns as u32);
            for (dx, dy) in (0..12).flat_map(|dx| (0..12).map(move |dy| (dx, dy))) {
                if let Some(pixel) = picture.get_pixel_mut_checked(x + dx, y + dy + 3) {
                    *pixel = ink.at(dx, dy);
                }
            }
            for (row, line) in lines.iter().enumerate() {
                let at = (x + SAMPLE_ROOM, y + row as u32 * layout.line_height);
                font.draw(&mut picture, line, at, layout.font_size, GREY);
            }
            tallest = tallest.max(lines.len());
        }
        y += tallest as u32 * layout.line_height;
    }
    y += MARGIN;
    for line in &layout.footer {
        font.draw(&mut picture, line, (MARGIN, y), layout.font_size, WHITE);
        y += layout.line_height;
    }
    Ok(shrunk(picture, long_side))
}

/// Room for the sample of an ink beside its words.
const SAMPLE_ROOM: u32 = 20;

/// Sizes of the parts of the summary, in its pixels.
struct Layout {
    width: u32,
    font_size: f32,
    line_height: u32,
    banner: Vec<(String, Rgb<u8>)>,
    /// Side of the square of a section; how many side by side, and rows of them.
    cell: u32,
    cell_columns: u32,
    cell_rows: u32,
    legend: Vec<(Vec<String>, Ink)>,
    legend_columns: usize,
    footer: Vec<String>,
}

impl Layout {
    /// The arrangement with the largest sections that keeps within the longest side; with the smallest ones where the words
    /// alone need more.
    fn fit(sections: u32, words: &SummaryWords, legend: &[(String, Ink)], font: &TextFont, long_side: u32) -> Self {
        let (largest, smallest) = CELL_PIXELS;
        let arranged = |columns: u32, cell: u32| Self::new(sections, (columns, cell), words, legend, font);
        let mut best = arranged(MOST_COLUMNS, smallest);
        for columns in 1..=MOST_COLUMNS.min(sections.max(1)) {
            // From large to small; the first that fits is the largest of this number of columns.
            let cells = (smallest..=largest).rev().step_by(32);
            let fitting = cells.map(|cell| arranged(columns, cell)).find(|layout| layout.longest() <= long_side);
            if let Some(layout) = fitting
                && (best.longest() > long_side || (layout.cell, best.longest()) > (best.cell, layout.longest()))
            {
                best = layout;
            }
        }
        best
    }

    fn new(
        sections: u32,
        (columns, cell): (u32, u32),
        words: &SummaryWords,
        legend: &[(String, Ink)],
        font: &TextFont,
    ) -> Self {
        let width = (columns * cell).max(MINIMUM_WIDTH);
        let font_size = (width as f32 / 64.0).clamp(13.0, 16.0);
        let wrapped = |text: &str, room: u32| font.wrap(text, font_size, room);
        let room = width - 2 * MARGIN;
        let inked = |text: &str, ink: Rgb<u8>| wrapped(text, room).into_iter().map(move |line| (line, ink));
        let legend_columns = if width >= 2 * MINIMUM_WIDTH { 2 } else { 1 };
        let of_ink = |(words, ink): &(String, Ink)| {
            let room = width / legend_columns - SAMPLE_ROOM - 2 * MARGIN;
            (wrapped(words, room), *ink)
        };
        Self {
            width,
            font_size,
            line_height: font.line_height(font_size),
            banner: inked(&words.notice, AMBER).chain(inked(&words.above, WHITE)).collect(),
            cell,
            cell_columns: columns,
            cell_rows: sections.div_ceil(columns),
            legend: legend.iter().map(of_ink).collect(),
            legend_columns: legend_columns as usize,
            footer: words.below.iter().flat_map(|text| wrapped(text, room)).collect(),
        }
    }

    fn banner_height(&self) -> u32 {
        self.banner.len() as u32 * self.line_height + 2 * MARGIN
    }

    fn height(&self) -> u32 {
        let of_row = |row: &[(Vec<String>, Ink)]| row.iter().map(|(lines, _)| lines.len()).max().unwrap_or(0);
        let legend: usize = self.legend.chunks(self.legend_columns).map(of_row).sum();
        let lines = (legend + self.footer.len()) as u32;
        self.banner_height() + self.cell_rows * self.cell + lines * self.line_height + 3 * MARGIN
    }

    fn longest(&self) -> u32 {
        self.width.max(self.height())
    }

    /// Top left corner of a section; rows stand in the middle of a picture that is wider than they are.
    fn corner(&self, number: u32) -> (u32, u32) {
        let left = (self.width - self.cell_columns * self.cell) / 2;
        let (row, column) = (number / self.cell_columns, number % self.cell_columns);
        (left + column * self.cell, self.banner_height() + row * self.cell)
    }
}

/// What something is drawn with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ink {
    Plain(Rgb<u8>),
    /// White and black in turn.
    Dashed,
}

impl Ink {
    fn at(self, x: u32, y: u32) -> Rgb<u8> {
        match self {
            Self::Plain(colour) => colour,
            Self::Dashed if (x / DASH_PIXELS + y / DASH_PIXELS).is_multiple_of(2) => WHITE,
            Self::Dashed => BLACK,
        }
    }
}

fn legend(words: &LegendWords, has_heat: bool, has_lesions: bool) -> Vec<(String, Ink)> {
    let plain = |words: &String, ink: Rgb<u8>| (words.clone(), Ink::Plain(ink));
    let mut legend = vec![
        plain(&words.right_lung, RIGHT_LUNG_INK),
        plain(&words.left_lung, LEFT_LUNG_INK),
        plain(&words.opacity, OPACITY_INK),
        plain(&words.consolidation, CONSOLIDATION_INK),
        plain(&words.airway, AIRWAY_INK),
    ];
    legend.extend(has_heat.then(|| plain(&words.heat, HEAT_INK)));
    legend.extend(has_lesions.then(|| (words.lesion.clone(), Ink::Dashed)));
    legend
}

/// Distance between columns and between rows of a section, in millimetres.
const fn step_mm(plane: CtPlane, spacing_mm: [f64; 3]) -> [f64; 2] {
    match plane {
        CtPlane::Axial => [spacing_mm[0], spacing_mm[1]],
        CtPlane::Coronal => [spacing_mm[0], spacing_mm[2]],
    }
}

fn draw_section(
    picture: &mut RgbImage,
    ShownSection { section, pixels, heat }: ShownSection<'_>,
    step_mm: [f64; 2],
    mm_per_pixel: f64,
    (corner, cell): ((u32, u32), u32),
) -> Result<(), SectionError> {
    let labels = from_png(section, &section.labels_png_base64)?;
    let lesions = section.lesions_png_base64.as_ref().map(|png| from_png(section, png)).transpose()?;
    let SectionPixels { rows, columns, ref hu } = *pixels;
    for labels in [Some(&labels), lesions.as_ref()].into_iter().flatten().map(Vec::len) {
        if labels != hu.len() || hu.len() != rows * columns {
            return Err(SectionError::SizeMismatch { index: section.index, pixels: hu.len(), labels });
        }
    }
    let shown = |count: usize, step: f64| ((count as f64 * step / mm_per_pixel).round() as u32).clamp(1, cell);
    let (width, height) = (shown(columns, step_mm[0]), shown(rows, step_mm[1]));
    let (left, top) = (corner.0 + (cell - width) / 2, corner.1 + (cell - height) / 2);
    let at = |x: u32, y: u32| {
        // The voxel that is shown at a pixel: the nearest.
        let column = (x as usize * columns / width as usize).min(columns - 1);
        let row = (y as usize * rows / height as usize).min(rows - 1);
        let voxel = row * columns + column;
        let is_lesion = lesions.as_ref().is_some_and(|lesions| lesions[voxel] != 0);
        let place = |pixel: u32, length: u32| (f64::from(pixel) + 0.5) / f64::from(length);
        let is_hot = heat.is_some_and(|heat| sample(heat, place(x, width), place(y, height)) >= HOT);
        let bits = section_bits(labels[voxel], hu[voxel])
            | if is_lesion { VoxelLabels::LESION } else { 0 }
            | if is_hot { HOT_BIT } else { 0 };
        (hu[voxel], bits)
    };
    draw_labelled(picture, (left, top), (width, height), at);
    Ok(())
}

/// What the labels of a section and the grey value say of a voxel.
const fn section_bits(label: u8, hu: i16) -> u8 {
    let [_, opacity_from, _, consolidation_from] = BAND_LIMITS_HU;
    let lung = match label {
        RIGHT_LUNG => VoxelLabels::RIGHT_LUNG,
        LEFT_LUNG => VoxelLabels::LEFT_LUNG,
        AIRWAY => return AIRWAY_BIT,
        _ => return 0,
    };
    let opacity = if hu >= opacity_from { VoxelLabels::OPACITY } else { 0 };
    let consolidation = if hu >= consolidation_from { VoxelLabels::CONSOLIDATION } else { 0 };
    lung | opacity | consolidation
}

/// Draws one slice in its own geometry: each pixel of the image is one of the picture, at the same place. Lungs are outlined,
/// dense parts and what networks outlined are as in the summary, and `words` stand in the corner that has the least of the
/// body.
///
/// # Errors
/// [`SectionError`] when labels and pixels do not belong together.
pub fn render_slice(slice: &ShownSlice<'_>, words: &SliceWords) -> Result<RgbImage, SectionError> {
    let ShownSlice { index, rows, columns, hu, labels, heat, .. } = *slice;
    if labels.len() != hu.len() || hu.len() != rows * columns || hu.is_empty() {
        return Err(SectionError::SizeMismatch { index, pixels: hu.len(), labels: labels.len() });
    }
    let font = TextFont::load().ok_or(SectionError::Font)?;
    let (width, height) = (columns as u32, rows as u32);
    let at = |x: u32, y: u32| {
        // Where the pixel lies in the volume.
        let column = if slice.columns_reversed { width - 1 - x } else { x };
        let row = if slice.rows_reversed { height - 1 - y } else { y };
        let place = |pixel: u32, length: u32| (f64::from(pixel) + 0.5) / f64::from(length);
        let is_hot = heat.is_some_and(|heat| sample(heat, place(column, width), place(row, height)) >= HOT);
        let bits = labels[row as usize * columns + column as usize] | if is_hot { HOT_BIT } else { 0 };
        (hu[y as usize * columns + x as usize], bits)
    };
    let mut picture = RgbImage::new(width, height);
    draw_labelled(&mut picture, (0, 0), (width, height), at);

    let size = (columns as f32 / 40.0).clamp(SLICE_FONT_PIXELS.0, SLICE_FONT_PIXELS.1);
    let room = if width / 2 > SLICE_WORDS_PIXELS { width / 2 } else { width.saturating_sub(4).max(1) };
    let lines: Vec<(String, Rgb<u8>)> = std::iter::once((&words.notice, AMBER))
        .chain(words.lines.iter().map(|line| (line, WHITE)))
        .flat_map(|(text, ink)| font.wrap(text, size, room).into_iter().map(move |line| (line, ink)))
        .collect();
    let line_height = font.line_height(size);
    let widest = lines.iter().map(|(line, _)| font.width(line, size)).max().unwrap_or(0);
    let tall = lines.len() as u32 * line_height;
    let (right, bottom) = (width.saturating_sub(widest + 2), height.saturating_sub(tall + 2));
    let corners = [(2, 2), (right, 2), (2, bottom), (right, bottom)];
    let hidden = |corner: &(u32, u32)| {
        let places = (corner.1..(corner.1 + tall).min(height))
            .flat_map(|y| (corner.0..(corner.0 + widest).min(width)).map(move |x| (x, y)));
        places.filter(|(x, y)| is_body(at(*x, *y))).count()
    };
    // Of several as good as one another the first: words should not jump from slice to slice.
    let (x, mut y) = corners.into_iter().min_by_key(hidden).unwrap_or_default();
    for (line, ink) in &lines {
        draw_edged(&mut picture, &font, line, (x, y), (size, *ink));
        y += line_height;
    }
    Ok(picture)
}

/// Smallest and largest font of the words on a slice.
const SLICE_FONT_PIXELS: (f32, f32) = (9.0, 16.0);
/// Words on a slice take half its width, where that is this much; else all of it.
const SLICE_WORDS_PIXELS: u32 = 160;

/// Denser than air, or in a lung.
const fn is_body((hu, bits): (i16, u8)) -> bool {
    hu > -700 || bits & (VoxelLabels::RIGHT_LUNG | VoxelLabels::LEFT_LUNG) != 0
}

/// Words with a dark edge, readable over whatever lies below.
fn draw_edged(picture: &mut RgbImage, font: &TextFont, text: &str, (x, y): (u32, u32), (size, ink): (f32, Rgb<u8>)) {
    for (x, y) in [(x.saturating_sub(1), y), (x + 1, y), (x, y.saturating_sub(1)), (x, y + 1)] {
        font.draw(picture, text, (x, y), size, BLACK);
    }
    font.draw(picture, text, (x, y), size, ink);
}

/// Draws what `at` says of each pixel: its Hounsfield units and the bits of what it is.
fn draw_labelled(
    picture: &mut RgbImage,
    (left, top): (u32, u32),
    (width, height): (u32, u32),
    at: impl Fn(u32, u32) -> (i16, u8),
) {
    let pixels: Vec<(i16, u8)> =
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| at(x, y)).collect();
    let bits = |x: u32, y: u32| pixels[(y.min(height - 1) * width + x.min(width - 1)) as usize].1;
    // Within what it surrounds, `line` pixels wide.
    let is_border = |bit: u8, x: u32, y: u32, line: u32| {
        bits(x, y) & bit != 0
            && [(x.saturating_sub(line), y), (x + line, y), (x, y.saturating_sub(line)), (x, y + line)]
                .into_iter()
                .any(|(x, y)| bits(x, y) & bit == 0)
    };
    for (index, &(hu, of_pixel)) in pixels.iter().enumerate() {
        let (x, y) = (index as u32 % width, index as u32 / width);
        let ink = if is_border(VoxelLabels::LESION, x, y, OUTLINE_PIXELS) {
            Ink::Dashed.at(x, y)
        } else if is_border(HOT_BIT, x, y, OUTLINE_PIXELS) {
            HEAT_INK
        } else if is_border(VoxelLabels::RIGHT_LUNG, x, y, 1) {
            RIGHT_LUNG_INK
        } else if is_border(VoxelLabels::LEFT_LUNG, x, y, 1) {
            LEFT_LUNG_INK
        } else if is_border(AIRWAY_BIT, x, y, 1) {
            AIRWAY_INK
        } else {
            inside(of_pixel, grey_of(hu))
        };
        picture.put_pixel(left + x, top + y, ink);
    }
}

/// In the lung window.
fn grey_of(hu: i16) -> u8 {
    ((f32::from(hu) - WINDOW_HU.0) / (WINDOW_HU.1 - WINDOW_HU.0) * 255.0).round().clamp(0.0, 255.0) as u8
}

/// Grey, in a lung coloured where it is dense.
fn inside(bits: u8, grey: u8) -> Rgb<u8> {
    if bits & VoxelLabels::CONSOLIDATION != 0 {
        inks::filled(grey, CONSOLIDATION_INK)
    } else if bits & VoxelLabels::OPACITY != 0 {
        inks::filled(grey, OPACITY_INK)
    } else {
        Rgb([grey; 3])
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{phantom::Phantom, segment},
        *,
    };
    use crate::types::Frame;

    /// What the node reads again from the images: the grey values of each section.
    fn pixels(volume: &Volume, sections: &[CtSection]) -> Vec<SectionPixels> {
        let [columns, rows, slices] = volume.size;
        let of = |section: &CtSection| match section.plane {
            CtPlane::Axial => SectionPixels { rows, columns, hu: volume.slice(section.index).to_vec() },
            CtPlane::Coronal => SectionPixels {
                rows: slices,
                columns,
                hu: (0..slices)
                    .rev()
                    .flat_map(|slice| {
                        volume.slice(slice)[section.index * columns..(section.index + 1) * columns].to_vec()
                    })
                    .collect(),
            },
        };
        sections.iter().map(of).collect()
    }

    fn shown<'a>(sections: &'a [CtSection], pixels: &'a [SectionPixels]) -> Vec<ShownSection<'a>> {
        sections.iter().zip(pixels).map(|(section, pixels)| ShownSection { section, pixels, heat: None }).collect()
    }

    fn words(sections: usize) -> SummaryWords {
        let legend = ["right", "left", "opacity", "consolidation", "airway", "heat", "lesion"].map(str::to_owned);
        let [right_lung, left_lung, opacity, consolidation, airway, heat, lesion] = legend;
        SummaryWords {
            notice: String::new(),
            above: "AI chest CT lung measurement · NOT FOR DIAGNOSTIC USE".to_owned(),
            sections: (0..sections).map(|number| format!("section {number}")).collect(),
            legend: LegendWords { right_lung, left_lung, opacity, consolidation, airway, heat, lesion },
            below: vec!["Right lung: 2700 ml".to_owned(), "Left lung: 2400 ml".to_owned()],
        }
    }

    fn draw(shown: &[ShownSection<'_>], volume: &Volume) -> RgbImage {
        render_sections(shown, volume.size, volume.spacing_mm, &words(shown.len()), 4096).unwrap()
    }

    /// Large enough for the largest sections.
    fn layout_of(sections: usize, has_heat: bool, has_lesions: bool) -> Layout {
        let words = words(sections);
        let legend = legend(&words.legend, has_heat, has_lesions);
        let layout = Layout::fit(sections as u32, &words, &legend, &TextFont::load().unwrap(), 4096);
        assert_eq!(layout.cell, 512);
        layout
    }

    /// Places in the square of a section that have this ink, from its corner.
    fn inked(picture: &RgbImage, corner: (u32, u32), ink: Rgb<u8>) -> Vec<(u32, u32)> {
        let places = (0..512).flat_map(|y| (0..512).map(move |x| (x, y)));
        places.filter(|(x, y)| *picture.get_pixel(corner.0 + x, corner.1 + y) == ink).collect()
    }

    fn mean(places: &[(u32, u32)], of: fn(&(u32, u32)) -> u32) -> f64 {
        f64::from(places.iter().map(of).sum::<u32>()) / places.len() as f64
    }

    fn hot_at(row: usize, column: usize) -> HeatMap {
        let mut values = vec![0.0; 64];
        values[row * 8 + column] = 1.0;
        HeatMap { rows: 8, columns: 8, values, maximum_activation: 1.0, method: "cam".to_owned(), frame: Frame::WHOLE }
    }

    /// Hot in the middle of the upper left quarter.
    #[test]
    fn heat_is_outlined_where_it_lies_and_its_slice_is_shown() {
        let (volume, _) = Phantom::default().make();
        let lungs = segment(&volume).unwrap();
        let usual = choose_sections(&volume, &lungs, None, &[]).unwrap();
        let sections = choose_sections(&volume, &lungs, None, &[usual[0].index, 41]).unwrap();
        assert_eq!(sections.len(), 5, "what is shown anyway is not shown twice");
        assert_eq!((sections[4].plane, sections[4].index), (CtPlane::Axial, 41));
        let pixels = pixels(&volume, &sections);
        let heat = hot_at(2, 2);
        let mut shown = shown(&sections, &pixels);
        shown[4].heat = Some(&heat);
        let picture = draw(&shown, &volume);
        let layout = layout_of(5, true, false);
        let hot = inked(&picture, layout.corner(4), HEAT_INK);
        assert!(hot.len() > 50, "{} pixels of outline", hot.len());
        // The slice is 360 x 280 mm, so 512 x 398 pixels in the middle of its square.
        let (x, y) = (mean(&hot, |at| at.0), mean(&hot, |at| at.1));
        assert!((x - 2.5 / 8.0 * 512.0).abs() < 8.0, "{x}");
        assert!((y - (57.0 + 2.5 / 8.0 * 398.0)).abs() < 8.0, "{y}");
        for number in 0..4 {
            assert_eq!(inked(&picture, layout.corner(number), HEAT_INK), [], "section {number}");
        }
    }

    #[test]
    fn the_right_lung_is_drawn_at_the_left_and_dense_parts_are_coloured() {
        let (volume, _) = Phantom { pleural_lesion_mm: Some(12.0), ..Phantom::default() }.make();
        let lungs = segment(&volume).unwrap();
        let sections = choose_sections(&volume, &lungs, None, &[]).unwrap();
        let planes: Vec<CtPlane> = sections.iter().map(|section| section.plane).collect();
        assert_eq!(planes, [CtPlane::Axial, CtPlane::Axial, CtPlane::Axial, CtPlane::Coronal]);
        assert!(sections[0].index > sections[1].index && sections[1].index > sections[2].index, "from head to feet");
        let pixels = pixels(&volume, &sections);
        let picture = draw(&shown(&sections, &pixels), &volume);
        assert!(picture == draw(&shown(&sections, &pixels), &volume), "the same pixels every time");
        let layout = layout_of(4, false, false);
        assert_eq!((layout.cell_columns, picture.dimensions()), (2, (layout.width, layout.height())));
        for number in 0..4 {
            let corner = layout.corner(number);
            let (right, left) = (inked(&picture, corner, RIGHT_LUNG_INK), inked(&picture, corner, LEFT_LUNG_INK));
            assert!(right.len() > 100 && left.len() > 100, "{} and {} pixels of outline", right.len(), left.len());
            let (right, left) = (mean(&right, |at| at.0), mean(&left, |at| at.0));
            assert!(right < 230.0 && left > 280.0, "section {number}: {right} and {left}");
        }
        let [of_dense, of_denser] = [-300, 30].map(|hu| inside(section_bits(RIGHT_LUNG, hu), grey_of(hu)));
        assert_eq!(of_dense, inks::filled(grey_of(-300), OPACITY_INK));
        assert_eq!(of_denser, inks::filled(grey_of(30), CONSOLIDATION_INK));
        assert_eq!(inside(section_bits(RIGHT_LUNG, -800), 93), Rgb([93; 3]));
        assert_eq!(inside(section_bits(super::super::BACKGROUND, 30), 200), Rgb([200; 3]), "outside all is grey");
        assert_eq!((grey_of(-1350), grey_of(-600), grey_of(150), grey_of(3000)), (0, 128, 255, 255));
    }

    /// A block of lesion in one slice: its outline lies in that slice's square and, one line high, in the coronal one.
    #[test]
    fn lesions_are_outlined_in_dashes_where_they_lie() {
        let (volume, _) = Phantom::default().make();
        let lungs = segment(&volume).unwrap();
        let [columns, rows, _] = volume.size;
        let mut lesions = vec![0; volume.hu.len()];
        for row in 50..70 {
            let line = (41 * rows + row) * columns;
            lesions[line + 30..line + 60].fill(1);
        }
        let sections = choose_sections(&volume, &lungs, Some(&lesions), &[41]).unwrap();
        assert!(sections.iter().all(|section| section.lesions_png_base64.is_some()));
        let kept = from_png(&sections[4], sections[4].lesions_png_base64.as_ref().unwrap()).unwrap();
        assert_eq!(kept, lesions[41 * columns * rows..42 * columns * rows]);
        let pixels = pixels(&volume, &sections);
        let with = draw(&shown(&sections, &pixels), &volume);
        let bare: Vec<CtSection> =
            sections.iter().map(|section| CtSection { lesions_png_base64: None, ..section.clone() }).collect();
        let without = draw(&shown(&bare, &pixels), &volume);
        let layout = layout_of(5, false, true);
        let changed_in = |number: u32| -> Vec<(u32, u32)> {
            let corner = layout.corner(number);
            let places = (0..512).flat_map(|y| (0..512).map(move |x| (x, y)));
            let at = |picture: &RgbImage, (x, y): (u32, u32)| *picture.get_pixel(corner.0 + x, corner.1 + y);
            places.filter(|place| at(&with, *place) != at(&without, *place)).collect()
        };
        let changed = changed_in(4);
        let corner = layout.corner(4);
        let inks =
            |ink: Rgb<u8>| changed.iter().filter(|(x, y)| *with.get_pixel(corner.0 + x, corner.1 + y) == ink).count();
        assert!(inks(WHITE) > 50 && inks(BLACK) > 50, "{} white, {} black", inks(WHITE), inks(BLACK));
        // 180 columns in 512 pixels, 140 rows in 398, 57 below the square's top.
        let (low, high) = (changed.iter().map(|at| at.0).min().unwrap(), changed.iter().map(|at| at.0).max().unwrap());
        assert!(low.abs_diff(30 * 512 / 180) <= 2 && high.abs_diff(60 * 512 / 180) <= 2, "{low} to {high}");
        let (top, bottom) =
            (changed.iter().map(|at| at.1).min().unwrap(), changed.iter().map(|at| at.1).max().unwrap());
        assert!(
            top.abs_diff(57 + 50 * 398 / 140) <= 2 && bottom.abs_diff(57 + 70 * 398 / 140) <= 2,
            "{top} to {bottom}"
        );
        // No other axial section has any of it.
        for number in 0..3 {
            assert_eq!(changed_in(number), [], "section {number}");
        }
    }

    #[test]
    fn the_summary_keeps_within_the_longest_side_and_says_all() {
        let (volume, _) = Phantom::default().make();
        let lungs = segment(&volume).unwrap();
        let sections = choose_sections(&volume, &lungs, None, &[41, 30, 20]).unwrap();
        let pixels = pixels(&volume, &sections);
        let mut words = words(sections.len());
        words.notice = "未经训练的测试权重".to_owned();
        words.below = vec![
            "右肺：2700 ml，平均 -812 HU，第 15 百分位 -921 HU；-700 HU 及以上 10.0 %。".repeat(2);
            9
        ];
        let font = TextFont::load().unwrap();
        for longest in [512, 777, 1024, 1536, 8192] {
            let shown = shown(&sections, &pixels);
            let picture = render_sections(&shown, volume.size, volume.spacing_mm, &words, longest).unwrap();
            assert!(picture.width().max(picture.height()) <= longest, "{longest}: {:?}", picture.dimensions());
            let legend = legend(&words.legend, false, false);
            let layout = Layout::fit(sections.len() as u32, &words, &legend, &font, longest);
            for line in layout.footer.iter().chain(layout.banner.iter().map(|(line, _)| line)) {
                assert!(MARGIN + font.width(line, layout.font_size) <= layout.width, "{longest}: {line}");
            }
            assert_eq!(layout.footer.concat().replace(' ', ""), words.below.concat().replace(' ', ""));
        }
    }

    /// A slice of 60 rows and 90 columns of air, with a marker and a lung of 20 x 30.
    struct Slice {
        hu: Vec<i16>,
        labels: Vec<u8>,
    }

    const ROWS: usize = 60;
    const COLUMNS: usize = 90;

    impl Slice {
        fn new() -> Self {
            Self { hu: vec![-1000; ROWS * COLUMNS], labels: vec![0; ROWS * COLUMNS] }
        }

        fn shown(&self) -> ShownSlice<'_> {
            ShownSlice { rows: ROWS, columns: COLUMNS, hu: &self.hu, labels: &self.labels, ..NOTHING }
        }
    }

    const NOTHING: ShownSlice<'_> = ShownSlice {
        index: 0,
        rows: 0,
        columns: 0,
        hu: &[],
        labels: &[],
        heat: None,
        columns_reversed: false,
        rows_reversed: false,
    };

    #[test]
    fn every_pixel_of_a_slice_is_at_its_own_place() {
        let mut slice = Slice::new();
        slice.hu[37 * COLUMNS + 11] = 1000;
        slice.hu[2 * COLUMNS + 88] = -600;
        let picture = render_slice(&slice.shown(), &SliceWords::default()).unwrap();
        assert_eq!(picture.dimensions(), (COLUMNS as u32, ROWS as u32));
        for (x, y, pixel) in picture.enumerate_pixels() {
            let expected = match (x, y) {
                (11, 37) => 255,
                (88, 2) => 128,
                _ => grey_of(-1000),
            };
            assert_eq!(pixel.0, [expected; 3], "at {x}, {y}");
        }
    }

    #[test]
    fn labels_lie_on_the_pixels_that_they_are_of_however_the_image_is_stored() {
        for (columns_reversed, rows_reversed) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut slice = Slice::new();
            // In the volume: rows 10 to 29, columns 5 to 34, right lung; one dense voxel within, one beyond.
            for row in 10..30 {
                slice.labels[row * COLUMNS + 5..row * COLUMNS + 35].fill(VoxelLabels::RIGHT_LUNG);
            }
            slice.labels[20 * COLUMNS + 20] |= VoxelLabels::OPACITY;
            slice.labels[21 * COLUMNS + 20] |= VoxelLabels::OPACITY | VoxelLabels::CONSOLIDATION;
            let stored = |x: usize, y: usize| {
                let x = if columns_reversed { COLUMNS - 1 - x } else { x };
                let y = if rows_reversed { ROWS - 1 - y } else { y };
                (x as u32, y as u32)
            };
            let shown = ShownSlice { columns_reversed, rows_reversed, ..slice.shown() };
            let picture = render_slice(&shown, &SliceWords::default()).unwrap();
            let air = grey_of(-1000);
            for (x, y) in (0..COLUMNS).flat_map(|x| (0..ROWS).map(move |y| (x, y))) {
                let is_lung = (10..30).contains(&y) && (5..35).contains(&x);
                let is_edge = is_lung && (y == 10 || y == 29 || x == 5 || x == 34);
                let expected = match (x, y) {
                    (20, 20) => inks::filled(air, OPACITY_INK),
                    (20, 21) => inks::filled(air, CONSOLIDATION_INK),
                    _ if is_edge => RIGHT_LUNG_INK,
                    _ => Rgb([air; 3]),
                };
                let (column, row) = stored(x, y);
                assert_eq!(*picture.get_pixel(column, row), expected, "at {x}, {y} of the volume, {shown:?}");
            }
            // Heat lies where the volume has it as well.
            let heat = hot_at(1, 6);
            let hot = render_slice(&ShownSlice { heat: Some(&heat), ..shown }, &SliceWords::default()).unwrap();
            let places: Vec<(u32, u32)> =
                hot.enumerate_pixels().filter(|(.., pixel)| **pixel == HEAT_INK).map(|(x, y, _)| (x, y)).collect();
            let (x, y) = stored((6.5 / 8.0 * COLUMNS as f64) as usize, (1.5 / 8.0 * ROWS as f64) as usize);
            let (mean_x, mean_y) = (mean(&places, |at| at.0), mean(&places, |at| at.1));
            assert!((mean_x - f64::from(x)).abs() < 2.0 && (mean_y - f64::from(y)).abs() < 2.0, "{mean_x}, {mean_y}");
        }
    }

    #[test]
    fn the_words_of_a_slice_stand_where_the_body_is_not() {
        let words = SliceWords { notice: "UNTRAINED".to_owned(), lines: vec!["NOT FOR DIAGNOSTIC USE".to_owned()] };
        // 400 x 300, the body in all but one corner.
        let (rows, columns) = (300, 400);
        let labels = vec![0; rows * columns];
        for (free_left, free_top) in [(true, true), (false, true), (true, false), (false, false)] {
            let is_free = |x: usize, y: usize| (x < 230) == free_left && (y < 90) == free_top;
            let hu: Vec<i16> = (0..rows * columns)
                .map(|index| if is_free(index % columns, index / columns) { -1000 } else { 40 })
                .collect();
            let shown = ShownSlice { rows, columns, hu: &hu, labels: &labels, ..NOTHING };
            let picture = render_slice(&shown, &words).unwrap();
            let bare = render_slice(&shown, &SliceWords::default()).unwrap();
            let mut written = 0;
            for (x, y, pixel) in picture.enumerate_pixels() {
                if pixel != bare.get_pixel(x, y) {
                    written += 1;
                    assert!(is_free(x as usize, y as usize), "a word at {x}, {y} hides the body");
                }
            }
            assert!(written > 500, "{written} pixels of words");
            // Small letters are thinner than a pixel: few of them have the whole of their ink.
            let is_amber = |Rgb([red, green, blue]): &Rgb<u8>| *red > 150 && *green > 80 && *blue < *red / 2;
            assert!(picture.pixels().any(is_amber), "the notice is amber");
        }
        // In a tiny image the words are cut, and nothing fails.
        let tiny = ShownSlice { rows: 3, columns: 2, hu: &[-1000; 6], labels: &[0; 6], ..NOTHING };
        assert_eq!(render_slice(&tiny, &words).unwrap().dimensions(), (2, 3));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (volume, _) = Phantom::default().make();
        let sections = choose_sections(&volume, &segment(&volume).unwrap(), None, &[]).unwrap();
        let render = |shown: &[ShownSection<'_>]| {
            render_sections(shown, volume.size, volume.spacing_mm, &words(shown.len()), 1536)
        };
        let mut wrong = pixels(&volume, &sections);
        wrong[1].hu.pop();
        let refused = render(&shown(&sections, &wrong));
        assert!(matches!(refused, Err(SectionError::SizeMismatch { .. })), "{refused:?}");
        let mut damaged = sections.clone();
        damaged[0].lesions_png_base64 = Some(to_png(&[0; 6], 3, 2).unwrap());
        let pixels = pixels(&volume, &sections);
        let refused = render(&shown(&damaged, &pixels));
        assert!(matches!(refused, Err(SectionError::SizeMismatch { labels: 6, .. })), "{refused:?}");
        damaged[0].labels_png_base64 = "AAAA".to_owned();
        let refused = render(&shown(&damaged, &pixels));
        assert!(matches!(refused, Err(SectionError::Labels { .. })), "{refused:?}");
        let (empty, _) = Phantom { without_lungs: true, bowel_gas: false, ..Phantom::default() }.make();
        assert!(choose_sections(&empty, &segment(&empty).unwrap(), None, &[]).unwrap().is_empty());
        let slice = Slice::new();
        let refused = render_slice(&ShownSlice { rows: 59, ..slice.shown() }, &SliceWords::default());
        assert!(matches!(refused, Err(SectionError::SizeMismatch { .. })), "{refused:?}");
    }
}
