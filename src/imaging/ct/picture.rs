//! The overlay of a CT: a few sections side by side, lungs outlined, dense parts coloured, words above and below.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use image::{ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage, codecs::png::PngEncoder};

use super::{
    super::{
        heat::{HOT, sample},
        text::TextFont,
    },
    BAND_LIMITS_HU, Volume,
    segment::{AIRWAY, BACKGROUND, LEFT_LUNG, LungLabels, RIGHT_LUNG},
};
use crate::types::{CtPlane, CtSection, HeatMap};

/// Where the axial sections lie: shares of the height of the lungs, from the top.
const AXIAL_HEIGHTS: [f64; 3] = [0.25, 0.5, 0.75];
/// Lung window: what is black and what is white, in Hounsfield units.
const WINDOW_HU: (f32, f32) = (-1350.0, 150.0);
/// Side of the square that a section is fitted into, in pixels.
const CELL_PIXELS: u32 = 512;
const FONT_PIXELS: f32 = 16.0;
const MARGIN: u32 = 10;

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const BLACK: Rgb<u8> = Rgb([0, 0, 0]);
const GREY: Rgb<u8> = Rgb([190, 190, 190]);
const AMBER: Rgb<u8> = Rgb([255, 191, 0]);
const RIGHT_COLOUR: Rgb<u8> = Rgb([0, 200, 255]);
const LEFT_COLOUR: Rgb<u8> = Rgb([120, 255, 90]);
const AIRWAY_COLOUR: Rgb<u8> = Rgb([150, 150, 255]);
const OPACITY_COLOUR: Rgb<u8> = Rgb([255, 170, 0]);
const CONSOLIDATION_COLOUR: Rgb<u8> = Rgb([255, 40, 40]);
const HEAT_COLOUR: Rgb<u8> = Rgb([255, 80, 255]);
/// Length of the white and of the black dashes of a lesion's outline, in pixels: a pattern that every eye tells from colours.
const DASH_PIXELS: u32 = 4;
/// Share of a colour over grey: anatomy stays visible below it.
const COLOUR_SHARE: f32 = 0.45;

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
    /// The vendored font cannot be read: the binary is damaged.
    #[error("the built-in font is damaged: reinstall the program")]
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

/// Draws the sections two by two with their outlines, and the words above and below.
///
/// `size` and `spacing_mm` are of the volume. `notice` stands above in amber, `above`
/// and `below` are wrapped to the picture.
///
/// # Errors
/// [`SectionError`] when sections and pixels do not belong together.
pub fn render_sections(
    shown: &[ShownSection<'_>],
    size: [usize; 3],
    spacing_mm: [f64; 3],
    notice: &str,
    above: &str,
    below: &[String],
) -> Result<RgbImage, SectionError> {
    let font = TextFont::load().ok_or(SectionError::Font)?;
    let width = 2 * CELL_PIXELS;
    let line_height = font.line_height(FONT_PIXELS);
    let wrapped = |text: &str| font.wrap(text, FONT_PIXELS, width - 2 * MARGIN);
    let banner: Vec<(String, Rgb<u8>)> = wrapped(notice)
        .into_iter()
        .map(|line| (line, AMBER))
        .chain(wrapped(above).into_iter().map(|line| (line, WHITE)))
        .collect();
    let footer: Vec<String> = below.iter().flat_map(|text| wrapped(text)).collect();
    let banner_height = banner.len() as u32 * line_height + 2 * MARGIN;
    let cells_height = shown.len().div_ceil(2) as u32 * CELL_PIXELS;
    let legend = legend(
        shown.iter().any(|shown| shown.heat.is_some()),
        shown.iter().any(|shown| shown.section.lesions_png_base64.is_some()),
    );
    let footer_height = (footer.len() + legend.len().div_ceil(2)) as u32 * line_height + 3 * MARGIN;
    let mut picture = RgbImage::new(width, banner_height + cells_height + footer_height);

    let mut y = MARGIN;
    for (line, colour) in &banner {
        font.draw(&mut picture, line, (MARGIN, y), FONT_PIXELS, *colour);
        y += line_height;
    }
    // One scale for all, so that sections can be compared.
    let extents = shown.iter().flat_map(|ShownSection { section, .. }| {
        let [_, vertical] = step_mm(section.plane, spacing_mm);
        let rows = if section.plane == CtPlane::Axial { size[1] } else { size[2] };
        [size[0] as f64 * spacing_mm[0], rows as f64 * vertical]
    });
    let mm_per_pixel = extents.fold(1.0, f64::max) / f64::from(CELL_PIXELS);
    for (number, shown) in shown.iter().enumerate() {
        let section = shown.section;
        let corner = (number as u32 % 2 * CELL_PIXELS, banner_height + number as u32 / 2 * CELL_PIXELS);
        draw_section(&mut picture, *shown, step_mm(section.plane, spacing_mm), mm_per_pixel, corner)?;
        let name = match section.plane {
            CtPlane::Axial => format!("axial, slice {} of {} from the feet", section.index + 1, size[2]),
            CtPlane::Coronal => format!("coronal, row {} of {} from the front", section.index + 1, size[1]),
        };
        font.draw(&mut picture, &name, (corner.0 + 2 * MARGIN, corner.1 + 4), FONT_PIXELS, GREY);
        let middle = corner.1 + CELL_PIXELS / 2;
        font.draw(&mut picture, "R", (corner.0 + 4, middle), 1.5 * FONT_PIXELS, WHITE);
        let right_edge = corner.0 + CELL_PIXELS - font.width("L", 1.5 * FONT_PIXELS) - 4;
        font.draw(&mut picture, "L", (right_edge, middle), 1.5 * FONT_PIXELS, WHITE);
    }
    y = banner_height + cells_height + MARGIN;
    for (number, (words, ink)) in legend.iter().enumerate() {
        let at = (MARGIN + number as u32 % 2 * CELL_PIXELS, y + number as u32 / 2 * line_height);
        for (dx, dy) in (0..12).flat_map(|dx| (0..12).map(move |dy| (dx, dy))) {
            if let Some(pixel) = picture.get_pixel_mut_checked(at.0 + dx, at.1 + dy + 3) {
                *pixel = ink.at(dx, dy);
            }
        }
        font.draw(&mut picture, words, (at.0 + 20, at.1), FONT_PIXELS, GREY);
    }
    y += legend.len().div_ceil(2) as u32 * line_height + MARGIN;
    for line in &footer {
        font.draw(&mut picture, line, (MARGIN, y), FONT_PIXELS, WHITE);
        y += line_height;
    }
    Ok(picture)
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

fn legend(has_heat: bool, has_lesions: bool) -> Vec<(String, Ink)> {
    let [_, well_aerated_to, _, consolidation_from] = BAND_LIMITS_HU;
    let plain = |words: &str, colour: Rgb<u8>| (words.to_owned(), Ink::Plain(colour));
    let mut legend = vec![
        plain("outline: right lung", RIGHT_COLOUR),
        plain("outline: left lung", LEFT_COLOUR),
        plain(&format!("in a lung, {well_aerated_to} HU and above (vessels too)"), OPACITY_COLOUR),
        plain(&format!("in a lung, {consolidation_from} HU and above (vessels too)"), CONSOLIDATION_COLOUR),
        plain("outline: trachea and main bronchi, not measured", AIRWAY_COLOUR),
    ];
    legend.extend(has_heat.then(|| plain("outline: heat of the networks, half its maximum and above", HEAT_COLOUR)));
    legend.extend(has_lesions.then(|| ("dashed outline: lesion by the networks".to_owned(), Ink::Dashed)));
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
    corner: (u32, u32),
) -> Result<(), SectionError> {
    let labels = from_png(section, &section.labels_png_base64)?;
    let lesions = section.lesions_png_base64.as_ref().map(|png| from_png(section, png)).transpose()?;
    let SectionPixels { rows, columns, ref hu } = *pixels;
    for labels in [Some(&labels), lesions.as_ref()].into_iter().flatten().map(Vec::len) {
        if labels != hu.len() || hu.len() != rows * columns {
            return Err(SectionError::SizeMismatch { index: section.index, pixels: hu.len(), labels });
        }
    }
    let shown = |count: usize, step: f64| ((count as f64 * step / mm_per_pixel).round() as u32).clamp(1, CELL_PIXELS);
    let (width, height) = (shown(columns, step_mm[0]), shown(rows, step_mm[1]));
    let (left, top) = (corner.0 + (CELL_PIXELS - width) / 2, corner.1 + (CELL_PIXELS - height) / 2);
    // The voxel that is shown at a pixel: the nearest.
    let at = |x: u32, y: u32| {
        let column = (x as usize * columns / width as usize).min(columns - 1);
        let row = (y as usize * rows / height as usize).min(rows - 1);
        row * columns + column
    };
    let is_hot = |x: u32, y: u32| {
        let place = |pixel: u32, length: u32| (f64::from(pixel) + 0.5) / f64::from(length);
        heat.is_some_and(|heat| sample(heat, place(x, width), place(y, height)) >= HOT)
    };
    let is_lesion = |x: u32, y: u32| lesions.as_ref().is_some_and(|lesions| lesions[at(x, y)] != 0);
    // Two pixels wide, within what it surrounds.
    let is_border = |inside: &dyn Fn(u32, u32) -> bool, x: u32, y: u32| {
        inside(x, y)
            && [(x.saturating_sub(2), y), (x + 2, y), (x, y.saturating_sub(2)), (x, y + 2)]
                .into_iter()
                .any(|(x, y)| !inside(x.min(width - 1), y.min(height - 1)))
    };
    for y in 0..height {
        for x in 0..width {
            let (voxel, label) = (at(x, y), labels[at(x, y)]);
            let beside = [at((x + 1).min(width - 1), y), at(x, (y + 1).min(height - 1))];
            let edge = beside.iter().map(|&other| labels[other]).find(|other| *other != label);
            let grey = ((f32::from(hu[voxel]) - WINDOW_HU.0) / (WINDOW_HU.1 - WINDOW_HU.0) * 255.0).clamp(0.0, 255.0);
            let colour = match edge {
                Some(other) => outline(if label == BACKGROUND { other } else { label }),
                None => inside(label, hu[voxel], grey),
            };
            let colour = if is_border(&is_lesion, x, y) {
                Ink::Dashed.at(x, y)
            } else if is_border(&is_hot, x, y) {
                HEAT_COLOUR
            } else {
                colour
            };
            picture.put_pixel(left + x, top + y, colour);
        }
    }
    Ok(())
}

const fn outline(label: u8) -> Rgb<u8> {
    match label {
        RIGHT_LUNG => RIGHT_COLOUR,
        LEFT_LUNG => LEFT_COLOUR,
        AIRWAY => AIRWAY_COLOUR,
        _ => GREY,
    }
}

/// Grey, in a lung coloured where it is dense.
fn inside(label: u8, hu: i16, grey: f32) -> Rgb<u8> {
    let [_, opacity_from, _, consolidation_from] = BAND_LIMITS_HU;
    let colour = match label {
        RIGHT_LUNG | LEFT_LUNG if hu >= consolidation_from => CONSOLIDATION_COLOUR,
        RIGHT_LUNG | LEFT_LUNG if hu >= opacity_from => OPACITY_COLOUR,
        _ => return Rgb([grey.round() as u8; 3]),
    };
    Rgb(colour.0.map(|ink| (grey * (1.0 - COLOUR_SHARE) + f32::from(ink) * COLOUR_SHARE).round() as u8))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{phantom::Phantom, segment},
        *,
    };

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
        let mut values = vec![0.0; 64];
        values[2 * 8 + 2] = 1.0;
        let heat = HeatMap { rows: 8, columns: 8, values, maximum_activation: 1.0, method: "cam".to_owned() };
        let mut shown = shown(&sections, &pixels);
        shown[4].heat = Some(&heat);
        let picture = render_sections(&shown, volume.size, volume.spacing_mm, "", "title", &[]).unwrap();
        let hot: Vec<(u32, u32)> = picture
            .enumerate_pixels()
            .filter(|(_, y, pixel)| **pixel == HEAT_COLOUR && *y < 3 * CELL_PIXELS)
            .map(|(x, y, _)| (x, y))
            .collect();
        assert!(hot.len() > 50, "{} pixels of outline", hot.len());
        let mean = |of: fn(&(u32, u32)) -> u32| f64::from(hot.iter().map(of).sum::<u32>()) / hot.len() as f64;
        // The cell of the fifth section begins at the left in the third row; the slice is 360 x 280 mm in 512 pixels.
        let (x, y) = (mean(|at| at.0), mean(|at| at.1));
        assert!((x - 2.5 / 8.0 * 512.0).abs() < 8.0, "{x}");
        let top = hot.iter().map(|at| at.1).min().unwrap();
        assert!(y > 1024.0 && f64::from(top) > 1024.0, "{y}");
        assert!(picture.height() > 3 * CELL_PIXELS);
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
        let draw = || {
            let below = ["right: 1 ml".to_owned()];
            render_sections(&shown(&sections, &pixels), volume.size, volume.spacing_mm, "", "title", &below).unwrap()
        };
        let picture = draw();
        assert_eq!(picture.width(), 2 * CELL_PIXELS);
        assert!(picture == draw(), "the same pixels every time");
        let columns_of = |colour: Rgb<u8>| -> Vec<u32> {
            // The cells alone: the legend has these colours too.
            let cells = picture.enumerate_pixels().filter(|(_, y, _)| *y > 60 && *y < 1060);
            cells.filter(|(_, _, pixel)| **pixel == colour).map(|(x, _, _)| x % CELL_PIXELS).collect()
        };
        let mean = |columns: &[u32]| f64::from(columns.iter().sum::<u32>()) / columns.len() as f64;
        let (right, left) = (columns_of(RIGHT_COLOUR), columns_of(LEFT_COLOUR));
        assert!(right.len() > 500 && left.len() > 500, "{} and {} pixels of outline", right.len(), left.len());
        assert!(mean(&right) < 230.0 && mean(&left) > 280.0, "{} and {}", mean(&right), mean(&left));
        let dense = inside(RIGHT_LUNG, 30, (30.0 - WINDOW_HU.0) / (WINDOW_HU.1 - WINDOW_HU.0) * 255.0);
        assert!(dense.0[0] > dense.0[1] && dense.0[0] > dense.0[2], "consolidation is red: {dense:?}");
        assert_eq!(inside(BACKGROUND, 30, 200.0), Rgb([200; 3]), "outside of the lungs all is grey");
    }

    /// A block of lesion in one slice: its outline lies in that slice's cell and, one line high, in the coronal one.
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
        let draw = |sections: &[CtSection]| {
            render_sections(&shown(sections, &pixels), volume.size, volume.spacing_mm, "", "title", &[]).unwrap()
        };
        let with = draw(&sections);
        let bare: Vec<CtSection> =
            sections.iter().map(|section| CtSection { lesions_png_base64: None, ..section.clone() }).collect();
        let without = draw(&bare);
        let changed: Vec<(u32, u32)> = with
            .enumerate_pixels()
            .filter(|(x, y, pixel)| *y < without.height().min(3 * CELL_PIXELS) && without.get_pixel(*x, *y) != *pixel)
            .map(|(x, y, _)| (x, y))
            .collect();
        let inks = |ink: Rgb<u8>| changed.iter().filter(|(x, y)| *with.get_pixel(*x, *y) == ink).count();
        assert!(inks(WHITE) > 100 && inks(BLACK) > 100, "{} white, {} black", inks(WHITE), inks(BLACK));
        // The cell of the fifth section begins at the left in the third row, its picture in the middle of it: 180 columns in
        // 512 pixels, 140 rows in 398, 57 below the cell's top.
        let in_cell: Vec<&(u32, u32)> = changed.iter().filter(|(x, y)| *x < 512 && *y > 2 * CELL_PIXELS + 60).collect();
        let (low, high) = (in_cell.iter().map(|at| at.0).min().unwrap(), in_cell.iter().map(|at| at.0).max().unwrap());
        assert!(low.abs_diff(30 * 512 / 180) <= 2 && high.abs_diff(60 * 512 / 180) <= 2, "{low} to {high}");
        let tall = in_cell.iter().map(|at| at.1).max().unwrap() - in_cell.iter().map(|at| at.1).min().unwrap();
        assert!(tall.abs_diff(20 * 512 / 180) <= 2, "{tall}");
        // No other axial section has any of it.
        assert!(changed.iter().all(|(x, y)| *y > 2 * CELL_PIXELS || (*x > 512 && *y > CELL_PIXELS)), "{changed:?}");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (volume, _) = Phantom::default().make();
        let sections = choose_sections(&volume, &segment(&volume).unwrap(), None, &[]).unwrap();
        let mut wrong = pixels(&volume, &sections);
        wrong[1].hu.pop();
        let refused = render_sections(&shown(&sections, &wrong), volume.size, volume.spacing_mm, "", "", &[]);
        assert!(matches!(refused, Err(SectionError::SizeMismatch { .. })), "{refused:?}");
        let mut damaged = sections.clone();
        damaged[0].lesions_png_base64 = Some(to_png(&[0; 6], 3, 2).unwrap());
        let of_others = pixels(&volume, &sections);
        let refused = render_sections(&shown(&damaged, &of_others), volume.size, volume.spacing_mm, "", "", &[]);
        assert!(matches!(refused, Err(SectionError::SizeMismatch { labels: 6, .. })), "{refused:?}");
        damaged[0].labels_png_base64 = "AAAA".to_owned();
        let pixels = pixels(&volume, &sections);
        let refused = render_sections(&shown(&damaged, &pixels), volume.size, volume.spacing_mm, "", "", &[]);
        assert!(matches!(refused, Err(SectionError::Labels { .. })), "{refused:?}");
        let (empty, _) = Phantom { without_lungs: true, bowel_gas: false, ..Phantom::default() }.make();
        assert!(choose_sections(&empty, &segment(&empty).unwrap(), None, &[]).unwrap().is_empty());
    }
}
