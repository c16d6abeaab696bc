//! The heat-map picture: grey base, colours where the map is hot, burnt-in words.
//!
//! From above: a banner of words, the radiograph, the scale of the colours, a strip with the map of each member of the
//! ensemble, more words. Nothing stands on the radiograph, so that nothing hides anatomy.

use image::{GrayImage, ImageFormat, Rgb, RgbImage, imageops};

use super::{
    Plane, canvas,
    heat::{self, HOT},
    inks::{self, AMBER, FAINTEST_HEAT, GREY, WHITE},
    text::TextFont,
};
use crate::types::{HeatMap, ImageAnalysis, Placement};

/// Narrowest picture: a narrower radiograph stands in the middle of black, so that the words have room.
const MINIMUM_WIDTH_PIXELS: u32 = 512;
/// Smallest font that stays readable on a diagnostic display.
const MINIMUM_FONT_PIXELS: f32 = 13.0;
/// Words below, relative to those above.
const SMALL: f32 = 0.85;
/// The banner is at least the 25th part of the picture's height.
const BANNER_PART: u32 = 25;
/// Members side by side: at least so many places, so that a few do not become large, and so wide at least.
const MINIMUM_PLACES: u32 = 4;
const PLACE_PIXELS: u32 = 180;
/// Highest map of a member, relative to the width of its place.
const TALLEST_MAP: f64 = 1.25;
/// The radiograph is drawn at this share, at least, of the size that it would have without maps of members; else they are
/// words alone.
const SHARE_WITH_MAPS: f64 = 0.75;

/// How to render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Longest side of the whole picture in pixels, at least 512.
    pub long_side_max: u32,
    /// A person asked for this map: it is coloured whatever the output is.
    pub on_demand: bool,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        Self { long_side_max: 1536, on_demand: false }
    }
}

/// The words of the picture, in one language.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayWords {
    /// Stands above everything in amber, and below as well; empty unless the bundle is untrained.
    pub notice: String,
    /// Title and facts.
    pub above: Vec<String>,
    /// What limits them, in amber.
    pub reservations: Vec<String>,
    /// What stands below the radiograph.
    pub below: Vec<String>,
    /// At the scale of the colours.
    pub scale: ScaleWords,
    /// Above the strip of the members.
    pub members_title: String,
    /// For each member of the ensemble its name in the bundle and what is written of it.
    pub members: Vec<MemberWords>,
}

/// The words at the scale of the colours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScaleWords {
    /// At its faint end, [`FAINTEST_HEAT`].
    pub faintest: String,
    /// At its strong end, the maximum.
    pub strongest: String,
    /// What the line on the radiograph is.
    pub outline: String,
}

/// The words of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberWords {
    /// Its name in the bundle: that of its map.
    pub name: String,
    /// What is written below its map.
    pub words: String,
}

/// Why there is no picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// Base picture and analysis are not of the same image.
    #[error("the base picture has {base_rows} x {base_columns} pixels, the analysis is of {rows} x {columns}")]
    SizeMismatch {
        /// Rows of the base picture.
        base_rows: u32,
        /// Columns of the base picture.
        base_columns: u32,
        /// Rows of the analysed image.
        rows: u32,
        /// Columns of the analysed image.
        columns: u32,
    },
    /// The heat map's grid and values do not agree.
    #[error("the heat map of {rows} x {columns} has {values} values")]
    HeatMap {
        /// Grid rows.
        rows: usize,
        /// Grid columns.
        columns: usize,
        /// Number of values.
        values: usize,
    },
    /// A vendored font cannot be read: the binary is damaged.
    #[error("a built-in font is damaged: reinstall the program")]
    Font,
    /// The picture cannot be encoded.
    #[error("the picture cannot be written as PNG: {0}")]
    Png(String),
    /// The base picture cannot be resampled.
    #[error(transparent)]
    Plane(#[from] canvas::PlaneError),
}

/// One line of burnt-in text.
#[derive(Debug, Clone)]
struct Line {
    text: String,
    size: f32,
    colour: Rgb<u8>,
}

/// The picture as a PNG file.
///
/// # Errors
/// [`OverlayError::Png`] when the encoder refuses it.
pub fn encode_png(picture: &RgbImage) -> Result<Vec<u8>, OverlayError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(|error| OverlayError::Png(error.to_string()))?;
    Ok(bytes.into_inner())
}

/// The picture, made smaller where a side is longer than `longest`. For pictures whose words alone need more than that.
pub(super) fn shrunk(picture: RgbImage, longest: u32) -> RgbImage {
    let side = picture.width().max(picture.height());
    if side <= longest {
        return picture;
    }
    let shorter = |length: u32| (u64::from(length) * u64::from(longest) / u64::from(side)).max(1) as u32;
    let (width, height) = (shorter(picture.width()), shorter(picture.height()));
    imageops::resize(&picture, width, height, imageops::FilterType::Triangle)
}

/// Renders the fused heat map of `analysis` over `base`, the displayed source image in full size, with `words` above and
/// below and the maps of the members small in a row.
///
/// Colours appear only when the analysis is localised (output at or above the threshold) or a person asked for the map.
///
/// # Errors
/// [`OverlayError`] when base, analysis and heat maps do not belong together.
pub fn render_overlay(
    base: &GrayImage,
    analysis: &ImageAnalysis,
    words: &OverlayWords,
    options: OverlayOptions,
) -> Result<RgbImage, OverlayError> {
    let placement = &analysis.placement;
    if (base.height(), base.width()) != (placement.source_rows, placement.source_columns) {
        return Err(OverlayError::SizeMismatch {
            base_rows: base.height(),
            base_columns: base.width(),
            rows: placement.source_rows,
            columns: placement.source_columns,
        });
    }
    let maps = std::iter::once(&analysis.heat_map).chain(analysis.member_heat_maps.iter().map(|(_, map)| map));
    for map in maps {
        if map.rows == 0 || map.columns == 0 || map.rows.checked_mul(map.columns) != Some(map.values.len()) {
            return Err(OverlayError::HeatMap { rows: map.rows, columns: map.columns, values: map.values.len() });
        }
    }
    let font = TextFont::load().ok_or(OverlayError::Font)?;
    let is_coloured =
        (analysis.localised || options.on_demand) && analysis.heat_map.values.iter().any(|&value| value > 0.0);
    let layout = Layout::fit(&Content { base, words, is_coloured, font: &font }, options.long_side_max);

    let mut picture = RgbImage::new(layout.width, layout.height());
    let plane = plane_of(base);
    let heat = is_coloured.then_some(&analysis.heat_map);
    let film = canvas::resize(&plane, layout.rows as usize, layout.columns as usize)?;
    draw_film(&mut picture, &film, heat, placement, (layout.left, layout.banner));

    draw_lines(&mut picture, &font, &layout.above, (layout.margin, layout.margin));
    let mut y = layout.banner + layout.rows + layout.margin;
    if is_coloured {
        draw_scale(&mut picture, &font, &layout, &words.scale, y);
    }
    y += layout.scale;
    draw_lines(&mut picture, &font, &layout.strip.title, (layout.margin, y));
    let top = y + layout.strip.title_height;
    for (number, (member, lines)) in words.members.iter().zip(&layout.strip.words).enumerate() {
        let (x, y) = layout.strip.place(number as u32, layout.margin, top);
        if let Some((rows, columns)) = layout.strip.map {
            let small = canvas::resize(&plane, rows as usize, columns as usize)?;
            let map = analysis.member_heat_maps.iter().find(|(name, _)| *name == member.name).map(|(_, map)| map);
            draw_film(&mut picture, &small, map, placement, (x, y));
        }
        draw_lines(&mut picture, &font, lines, (x, y + layout.strip.map_height));
    }
    y += layout.strip.height();
    draw_lines(&mut picture, &font, &layout.below, (layout.margin, y));
    Ok(shrunk(picture, options.long_side_max.max(MINIMUM_WIDTH_PIXELS)))
}

/// What is laid out.
struct Content<'a> {
    base: &'a GrayImage,
    words: &'a OverlayWords,
    is_coloured: bool,
    font: &'a TextFont,
}

/// Sizes of the parts of the picture, in its pixels.
struct Layout {
    width: u32,
    banner: u32,
    /// Rows and columns of the radiograph, and the black at its left.
    rows: u32,
    columns: u32,
    left: u32,
    /// Height of the scale of the colours; 0 without colours.
    scale: u32,
    scale_bar: u32,
    /// The words about the line have a line of their own.
    outline_is_below: bool,
    strip: Strip,
    footer: u32,
    margin: u32,
    font_size: f32,
    above: Vec<Line>,
    below: Vec<Line>,
}

/// The members side by side, in as many rows as it takes.
struct Strip {
    title: Vec<Line>,
    title_height: u32,
    /// Places in a row, and the width of one.
    places: u32,
    place_width: u32,
    /// Rows and columns of a map.
    map: Option<(u32, u32)>,
    /// Height of a map with the space below it; 0 without maps.
    map_height: u32,
    words: Vec<Vec<Line>>,
    row_height: u32,
    margin: u32,
}

impl Strip {
    fn rows(&self) -> u32 {
        (self.words.len() as u32).div_ceil(self.places)
    }

    fn height(&self) -> u32 {
        self.title_height + self.rows() * self.row_height
    }

    /// Top left corner of a member's place.
    fn place(&self, number: u32, left: u32, top: u32) -> (u32, u32) {
        let (row, column) = (number / self.places, number % self.places);
        (left + column * (self.place_width + self.margin), top + row * self.row_height)
    }
}

impl Layout {
    /// The largest scale at which all parts together keep within the longest side; only radiographs narrower than
    /// [`MINIMUM_WIDTH_PIXELS`] are enlarged. Without the maps of the members where they would take too much.
    fn fit(content: &Content<'_>, long_side_max: u32) -> Self {
        let long_side = long_side_max.max(MINIMUM_WIDTH_PIXELS);
        let without = Self::largest(content, long_side, false);
        if content.words.members.is_empty() || !content.is_coloured {
            return without;
        }
        let with = Self::largest(content, long_side, true);
        let keeps_size = f64::from(with.columns) >= SHARE_WITH_MAPS * f64::from(without.columns);
        if keeps_size && with.height() <= long_side { with } else { without }
    }

    fn largest(content: &Content<'_>, long_side: u32, with_maps: bool) -> Self {
        let base = content.base;
        let aspect = f64::from(base.height().max(1)) / f64::from(base.width().max(1));
        let of_columns = |columns: u32| {
            let rows = (f64::from(columns) * aspect).round().max(1.0) as u32;
            Self::new(rows, columns, content, with_maps)
        };
        let largest = base.width().clamp(MINIMUM_WIDTH_PIXELS, long_side);
        let mut layout = of_columns(largest);
        if layout.height() <= long_side {
            return layout;
        }
        let (mut fitting, mut too_large) = (1, largest);
        layout = of_columns(fitting);
        while too_large - fitting > 1 {
            let middle = fitting.midpoint(too_large);
            let candidate = of_columns(middle);
            if candidate.height() <= long_side {
                (fitting, layout) = (middle, candidate);
            } else {
                too_large = middle;
            }
        }
        layout
    }

    fn height(&self) -> u32 {
        self.banner + self.rows + self.scale + self.strip.height() + self.footer
    }

    fn new(rows: u32, columns: u32, content: &Content<'_>, with_maps: bool) -> Self {
        let Content { words, font, .. } = *content;
        let width = columns.max(MINIMUM_WIDTH_PIXELS);
        let margin = (width / 80).max(6);
        let font_size = (width as f32 / 60.0).clamp(MINIMUM_FONT_PIXELS, 26.0);
        let room = width - 2 * margin;
        let lines = |texts: &[String], size: f32, colour: Rgb<u8>| {
            texts.iter().flat_map(|text| wrapped(font, text, size, room, colour)).collect::<Vec<Line>>()
        };
        let notice = std::slice::from_ref(&words.notice);
        let above = [
            lines(notice, font_size * 1.3, AMBER),
            lines(&words.above, font_size, WHITE),
            lines(&words.reservations, font_size, AMBER),
        ]
        .concat();
        let below = [lines(&words.below, font_size * SMALL, GREY), lines(notice, font_size * SMALL, AMBER)].concat();
        let scale_bar = (width / 4).max(80);
        let of_scale = [&words.scale.faintest, &words.scale.strongest, &words.scale.outline];
        let scale_width = of_scale.iter().map(|text| font.width(text, font_size)).sum::<u32>() + scale_bar + 8 * margin;
        let outline_is_below = scale_width > width;
        let scale_lines = if content.is_coloured { 1 + u32::from(outline_is_below) } else { 0 };
        let scale = scale_lines * (font.line_height(font_size) + margin / 2);
        let strip = strip(content, width, margin, font_size, with_maps);
        let footer = height_of(font, &below) + 2 * margin;
        let rest = rows + scale + strip.height() + footer;
        let banner = (height_of(font, &above) + 2 * margin).max(rest.div_ceil(BANNER_PART - 1));
        let left = (width - columns) / 2;
        Self {
            width,
            banner,
            rows,
            columns,
            left,
            scale,
            scale_bar,
            outline_is_below,
            strip,
            footer,
            margin,
            font_size,
            above,
            below,
        }
    }
}

fn strip(content: &Content<'_>, width: u32, margin: u32, font_size: f32, with_maps: bool) -> Strip {
    let Content { base, words, font, .. } = *content;
    let members = words.members.len() as u32;
    let places = members.max(MINIMUM_PLACES).min((width / PLACE_PIXELS).max(MINIMUM_PLACES));
    let place_width = (width - margin) / places - margin;
    let map = with_maps.then(|| {
        let (rows, columns) = (f64::from(base.height().max(1)), f64::from(base.width().max(1)));
        let scale = (f64::from(place_width) / columns).min(TALLEST_MAP * f64::from(place_width) / rows);
        ((rows * scale).round().max(1.0) as u32, (columns * scale).round().max(1.0) as u32)
    });
    let map_height = map.map_or(0, |(rows, _)| rows + margin / 2);
    let of_member = |member: &MemberWords| wrapped(font, &member.words, font_size * SMALL, place_width, WHITE);
    let of_members: Vec<Vec<Line>> = words.members.iter().map(of_member).collect();
    let tallest = of_members.iter().map(|lines| height_of(font, lines)).max().unwrap_or(0);
    let title = match members {
        0 => Vec::new(),
        _ => wrapped(font, &words.members_title, font_size * SMALL, width - 2 * margin, GREY),
    };
    let title_height = if title.is_empty() { 0 } else { height_of(font, &title) + margin / 2 };
    let row_height = if members == 0 { 0 } else { map_height + tallest + margin / 2 };
    Strip { title, title_height, places, place_width, map, map_height, words: of_members, row_height, margin }
}

fn wrapped(font: &TextFont, text: &str, size: f32, room: u32, colour: Rgb<u8>) -> Vec<Line> {
    font.wrap(text, size, room).into_iter().map(|text| Line { text, size, colour }).collect()
}

fn height_of(font: &TextFont, lines: &[Line]) -> u32 {
    lines.iter().map(|line| font.line_height(line.size)).sum()
}

fn draw_lines(picture: &mut RgbImage, font: &TextFont, lines: &[Line], (x, mut y): (u32, u32)) {
    for line in lines {
        font.draw(picture, &line.text, (x, y), line.size, line.colour);
        y += font.line_height(line.size);
    }
}

fn plane_of(base: &GrayImage) -> Plane {
    let values = base.as_raw().iter().map(|&grey| f32::from(grey)).collect();
    Plane { rows: base.height() as usize, columns: base.width() as usize, values }
}

/// The radiograph with its top left corner at `corner`, coloured by a map.
fn draw_film(
    picture: &mut RgbImage,
    film: &Plane,
    map: Option<&HeatMap>,
    placement: &Placement,
    (left, top): (u32, u32),
) {
    let (rows, columns) = (film.rows as u32, film.columns as u32);
    let heat: Vec<f32> = match map {
        Some(map) => (0..rows * columns)
            .map(|index| heat_at(map, placement, (rows, columns), (index / columns, index % columns)))
            .collect(),
        None => vec![0.0; film.values.len()],
    };
    let at = |row: u32, column: u32| heat[(row * columns + column) as usize];
    let is_hot = |row: u32, column: u32| at(row.min(rows - 1), column.min(columns - 1)) >= HOT;
    // As wide as it is visible on the whole picture.
    let line = (columns / 500).max(1);
    for (index, &value) in film.values.iter().enumerate() {
        let (row, column) = (index as u32 / columns, index as u32 % columns);
        let is_line = is_hot(row, column)
            && !(is_hot(row.saturating_sub(line), column)
                && is_hot(row + line, column)
                && is_hot(row, column.saturating_sub(line))
                && is_hot(row, column + line));
        let grey = value.round().clamp(0.0, 255.0) as u8;
        let ink = if is_line { inks::hot_line_ink() } else { inks::heated(grey, at(row, column)) };
        picture.put_pixel(left + column, top + row, ink);
    }
}

/// The heat under a pixel of the radiograph: picture → source image → square canvas → grid.
fn heat_at(map: &HeatMap, placement: &Placement, (rows, columns): (u32, u32), (row, column): (u32, u32)) -> f32 {
    let along = |index: u32, pixels: u32, source: u32, pad: u32| {
        let source_position = (f64::from(index) + 0.5) / f64::from(pixels) * f64::from(source);
        (source_position + f64::from(pad)) / f64::from(placement.side.max(1))
    };
    heat::sample(
        map,
        along(column, columns, placement.source_columns, placement.pad_left),
        along(row, rows, placement.source_rows, placement.pad_top),
    )
}

/// A bar from the first coloured heat to the maximum with words at both ends, and what the line is.
fn draw_scale(picture: &mut RgbImage, font: &TextFont, layout: &Layout, words: &ScaleWords, y: u32) {
    let Layout { margin, font_size: size, scale_bar: bar, .. } = *layout;
    let line_height = font.line_height(size);
    let write = |picture: &mut RgbImage, text: &str, (x, y): (u32, u32)| {
        font.draw(picture, text, (x, y), size, WHITE);
        x + font.width(text, size) + margin
    };
    let mut x = write(picture, &words.faintest, (margin, y));
    for column in 0..bar {
        let ink = inks::heat_ink(FAINTEST_HEAT + (1.0 - FAINTEST_HEAT) * column as f32 / bar as f32);
        fill(picture, (x + column, y + line_height / 5), (1, line_height * 3 / 5), ink);
    }
    x = write(picture, &words.strongest, (x + bar + margin, y)) + margin;
    let mut y = y;
    if layout.outline_is_below {
        (x, y) = (margin, y + line_height + margin / 2);
    }
    fill(picture, (x, y + line_height / 2), (2 * margin, 2), inks::hot_line_ink());
    write(picture, &words.outline, (x + 3 * margin, y));
}

fn fill(picture: &mut RgbImage, (left, top): (u32, u32), (width, height): (u32, u32), ink: Rgb<u8>) {
    for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (left + x, top + y))) {
        if let Some(pixel) = picture.get_pixel_mut_checked(x, y) {
            *pixel = ink;
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::types::{Decision, Frame, LungMask, Sha256Digest, SourceImage, Uid};

    fn map(rows: usize, columns: usize, hot: usize) -> HeatMap {
        let mut values = vec![0.0; rows * columns];
        values[hot] = 1.0;
        HeatMap { rows, columns, values, maximum_activation: 1.0, method: "cam".to_owned(), frame: Frame::WHOLE }
    }

    /// Hot in the cell at row 5, column 1 of 7 x 7. Of two members one is hot there, the other at row 1, column 5; the third
    /// failed.
    fn analysis(rows: u32, columns: u32, localised: bool) -> ImageAnalysis {
        ImageAnalysis {
            source: SourceImage {
                sop_class_uid: Uid::new("1.2").unwrap(),
                sop_instance_uid: Uid::new("1.2.3").unwrap(),
                series_instance_uid: Uid::new("1.2.4").unwrap(),
                modality: "DX".to_owned(),
                archive_key: "key".to_owned(),
                sha256: Sha256Digest::of(b"image"),
            },
            placement: canvas::placement(rows as usize, columns as usize),
            gates: Vec::new(),
            members: Vec::new(),
            fused: vec![if localised { 0.873 } else { 0.2 }],
            member_spread: 0.0,
            decision: Decision::Undetermined,
            localised,
            heat_map: map(7, 7, 5 * 7 + 1),
            member_heat_maps: vec![
                ("resnet50".to_owned(), map(7, 7, 5 * 7 + 1)),
                ("vgg16".to_owned(), map(14, 14, 3 * 14 + 11)),
            ],
            lung_mask: LungMask { side_pixels: 1, png_base64: String::new(), area_fraction: 0.3 },
            right_lung_heat_fraction: None,
            left_lung_heat_fraction: None,
            lung_heat_fraction: None,
            similar_cases: None,
        }
    }

    fn words() -> OverlayWords {
        let member = |name: &str, words: &str| MemberWords { name: name.to_owned(), words: words.to_owned() };
        OverlayWords {
            notice: String::new(),
            above: vec!["AI heat map · COVID-19 87.3 % · NOT FOR DIAGNOSTIC USE".to_owned()],
            reservations: Vec::new(),
            below: vec!["grid 7x7: shows regions that influenced the output, not lesion outlines.".to_owned()],
            scale: ScaleWords {
                faintest: "activation 30 %".to_owned(),
                strongest: "maximum".to_owned(),
                outline: "line: half the maximum".to_owned(),
            },
            members_title: "Members of the ensemble:".to_owned(),
            members: vec![
                member("resnet50", "resnet50 88.1 %"),
                member("vgg16", "vgg16 86.5 %"),
                member("xception", "xception failed"),
            ],
        }
    }

    /// Longer than anybody would write, and in the script that needs the second font.
    fn long_words() -> OverlayWords {
        let long = "未经训练的测试权重，无临床意义 (UNTRAINED TEST WEIGHTS) ".repeat(4);
        let words = words();
        OverlayWords {
            notice: long.clone(),
            above: vec![long.clone()],
            reservations: vec![long.clone()],
            below: vec![long.clone(), long],
            scale: ScaleWords { outline: "线条：最大值的一半，也就是半高处".to_owned(), ..words.scale },
            ..words
        }
    }

    fn base(rows: u32, columns: u32) -> GrayImage {
        GrayImage::from_pixel(columns, rows, image::Luma([100]))
    }

    fn layout_of(base: &GrayImage, words: &OverlayWords, is_coloured: bool, long_side: u32) -> Layout {
        Layout::fit(&Content { base, words, is_coloured, font: &TextFont::load().unwrap() }, long_side)
    }

    fn has_colour(pixel: Rgb<u8>) -> bool {
        let [red, green, blue] = pixel.0;
        red.abs_diff(green) > 20 || green.abs_diff(blue) > 20
    }

    /// All lines with the place where they are drawn.
    fn placed(layout: &Layout, font: &TextFont) -> Vec<(Line, u32, u32)> {
        let mut placed = Vec::new();
        let mut put = |lines: &[Line], x: u32, mut y: u32| {
            for line in lines {
                placed.push((line.clone(), x, y));
                y += font.line_height(line.size);
            }
        };
        put(&layout.above, layout.margin, layout.margin);
        let mut y = layout.banner + layout.rows + layout.margin + layout.scale;
        put(&layout.strip.title, layout.margin, y);
        for (number, lines) in layout.strip.words.iter().enumerate() {
            let (x, top) = layout.strip.place(number as u32, layout.margin, y + layout.strip.title_height);
            put(lines, x, top + layout.strip.map_height);
        }
        y += layout.strip.height();
        put(&layout.below, layout.margin, y);
        placed
    }

    #[rstest]
    #[case(1955, 1841, 1536)]
    #[case(4280, 3520, 1024)]
    #[case(299, 299, 1536)]
    #[case(3001, 501, 1536)]
    #[case(501, 3001, 1536)]
    #[case(64, 64, 512)]
    #[case(3000, 20, 1536)]
    #[case(1, 1, 1536)]
    #[case(2140, 1760, 8192)]
    fn every_part_has_its_place_and_no_word_lies_outside(
        #[case] rows: u32,
        #[case] columns: u32,
        #[case] longest: u32,
        #[values(false, true)] long: bool,
    ) {
        let words = if long { long_words() } else { words() };
        let (base, analysis) = (base(rows, columns), analysis(rows, columns, true));
        let options = OverlayOptions { long_side_max: longest, on_demand: false };
        let picture = render_overlay(&base, &analysis, &words, options).unwrap();
        assert!(picture.width().max(picture.height()) <= longest, "{:?}", picture.dimensions());
        let layout = layout_of(&base, &words, true, longest);
        // The radiograph keeps its proportions within a pixel, and is enlarged only for the words' sake.
        let expected = f64::from(layout.columns) * f64::from(rows) / f64::from(columns);
        assert!((f64::from(layout.rows) - expected).abs() <= 1.0);
        assert!(layout.columns <= columns.max(MINIMUM_WIDTH_PIXELS));
        assert!(layout.banner * BANNER_PART >= layout.height(), "{} of {}", layout.banner, layout.height());
        let font = TextFont::load().unwrap();
        for (line, x, y) in placed(&layout, &font) {
            assert!(line.size >= MINIMUM_FONT_PIXELS * SMALL);
            let (right, bottom) = (x + font.width(&line.text, line.size), y + font.line_height(line.size));
            assert!(right <= layout.width && bottom <= layout.height(), "{line:?} at {x}, {y}");
            let film = layout.banner..layout.banner + layout.rows;
            assert!(bottom <= film.start || y >= film.end, "{line:?} at {y} stands on the radiograph");
        }
        if layout.height() <= longest {
            assert_eq!(picture.dimensions(), (layout.width, layout.height()));
            // Beside a narrow radiograph all is black, and in its upper quarter, which is cold, nothing is drawn.
            for (x, y) in (0..layout.width).flat_map(|x| (0..layout.rows).map(move |y| (x, y))) {
                let pixel = picture.get_pixel(x, layout.banner + y).0;
                if x < layout.left || x >= layout.left + layout.columns {
                    assert_eq!(pixel, [0; 3], "at {x}, {y}");
                } else if y * 4 < layout.rows {
                    assert_eq!(pixel, [100; 3], "at {x}, {y}");
                }
            }
        } else {
            assert_eq!(picture.width().max(picture.height()), longest, "made smaller as a whole");
        }
    }

    #[test]
    fn colour_lies_over_the_hot_cell_and_nowhere_else() {
        // Portrait: 700 rows, 560 columns, 70 columns of padding at each side of the square of 700.
        let (rows, columns) = (700, 560);
        let (base, analysis) = (base(rows, columns), analysis(rows, columns, true));
        let picture = render_overlay(&base, &analysis, &words(), OverlayOptions::default()).unwrap();
        let layout = layout_of(&base, &words(), true, 1536);
        assert_eq!((layout.rows, layout.columns), (rows, columns));
        // Cell (5, 1) has its centre at canvas (550, 150): source column 80. It cools over one cell, 100 pixels.
        assert!(has_colour(*picture.get_pixel(80, layout.banner + 550)));
        for (x, y) in (0..columns).flat_map(|x| (0..rows).map(move |y| (x, y))) {
            let far = x.abs_diff(80).max(y.abs_diff(550)) > 100 * 7 / 10;
            let pixel = *picture.get_pixel(x, layout.banner + y);
            assert!(!far || pixel.0 == [100; 3], "{pixel:?} at {x}, {y}");
            let heat = heat_at(&analysis.heat_map, &analysis.placement, (rows, columns), (y, x));
            assert_eq!(heat < FAINTEST_HEAT, pixel.0 == [100; 3], "heat {heat} at {x}, {y}");
            assert!(pixel != inks::hot_line_ink() || heat >= HOT, "the line is within what it surrounds");
        }
        let line = picture.pixels().filter(|pixel| **pixel == inks::hot_line_ink()).count();
        assert!(line > 300, "{line} pixels of line");
    }

    #[test]
    fn each_member_has_its_own_map_in_the_strip() {
        let (rows, columns) = (1400, 1400);
        let (base, analysis) = (base(rows, columns), analysis(rows, columns, true));
        let picture = render_overlay(&base, &analysis, &words(), OverlayOptions::default()).unwrap();
        let layout = layout_of(&base, &words(), true, 1536);
        let (map_rows, map_columns) = layout.strip.map.unwrap();
        assert!(map_rows == map_columns && map_rows > 100, "{map_rows} x {map_columns}");
        let top = layout.banner + layout.rows + layout.margin + layout.scale + layout.strip.title_height;
        let coloured_in = |number: u32| {
            let (left, top) = layout.strip.place(number, layout.margin, top);
            let cells = (0..map_columns).flat_map(|x| (0..map_rows).map(move |y| (x, y)));
            let coloured: Vec<(u32, u32)> =
                cells.filter(|(x, y)| picture.get_pixel(left + x, top + y).0 != [100; 3]).collect();
            let mean = |of: fn(&(u32, u32)) -> u32| {
                f64::from(coloured.iter().map(of).sum::<u32>()) / (coloured.len() as f64 * f64::from(map_rows))
            };
            (!coloured.is_empty()).then(|| (mean(|at| at.0), mean(|at| at.1)))
        };
        let (x, y) = coloured_in(0).unwrap();
        assert!((x - 1.5 / 7.0).abs() < 0.02 && (y - 5.5 / 7.0).abs() < 0.02, "{x}, {y}");
        let (x, y) = coloured_in(1).unwrap();
        assert!((x - 11.5 / 14.0).abs() < 0.02 && (y - 3.5 / 14.0).abs() < 0.02, "{x}, {y}");
        assert_eq!(coloured_in(2), None, "the member that failed has the bare radiograph");
        // Its words stand below it.
        let (left, place) = layout.strip.place(2, layout.margin, top);
        let below = place + layout.strip.map_height;
        let inked = (left..left + layout.strip.place_width)
            .any(|x| (below..below + 20).any(|y| picture.get_pixel(x, y).0[0] > 200));
        assert!(inked);
        // Where the picture is small the maps give way to the radiograph.
        assert!(layout_of(&base, &words(), true, 512).strip.map.is_none());
    }

    #[test]
    fn without_localisation_there_is_no_colour_but_on_demand_there_is() {
        let cold = analysis(600, 600, false);
        let mut words = words();
        words.reservations = vec!["no localisation".to_owned()];
        let options = OverlayOptions::default();
        let picture = render_overlay(&base(600, 600), &cold, &words, options).unwrap();
        let layout = layout_of(&base(600, 600), &words, false, 1536);
        assert!(layout.strip.map.is_none() && layout.scale == 0);
        let film = |y: u32| (layout.banner..layout.banner + 600).contains(&y);
        for (x, y, pixel) in picture.enumerate_pixels() {
            assert!(!film(y) || pixel.0 == [100; 3], "{pixel:?} at {x}, {y}");
        }
        let options = OverlayOptions { on_demand: true, ..options };
        let on_demand = render_overlay(&base(600, 600), &cold, &words, options).unwrap();
        assert!(on_demand.pixels().any(|pixel| *pixel == inks::hot_line_ink()));
        // A map without any heat is as good as none.
        let mut nothing = analysis(600, 600, true);
        nothing.heat_map.values.fill(0.0);
        let picture = render_overlay(&base(600, 600), &nothing, &words, OverlayOptions::default()).unwrap();
        assert!(picture.enumerate_pixels().all(|(_, y, pixel)| !film(y) || pixel.0 == [100; 3]));
    }

    #[test]
    fn everything_of_an_untrained_bundle_says_so_twice() {
        let mut words = words();
        words.notice = "UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING".to_owned();
        let layout = layout_of(&base(1400, 1400), &words, true, 1536);
        assert_eq!(layout.above[0].text, words.notice);
        assert_eq!(layout.above[0].colour, AMBER);
        assert_eq!(layout.below.last().unwrap().text, words.notice);
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let options = OverlayOptions::default();
        let mismatch = render_overlay(&base(10, 20), &analysis(20, 10, true), &words(), options);
        assert!(matches!(mismatch, Err(OverlayError::SizeMismatch { base_rows: 10, rows: 20, .. })));
        let mut broken = analysis(20, 10, true);
        broken.heat_map.values.pop();
        let refused = render_overlay(&base(20, 10), &broken, &words(), options);
        assert!(matches!(refused, Err(OverlayError::HeatMap { values: 48, .. })));
        let mut broken = analysis(20, 10, true);
        broken.member_heat_maps[1].1.rows = 3;
        let refused = render_overlay(&base(20, 10), &broken, &words(), options);
        assert!(matches!(refused, Err(OverlayError::HeatMap { rows: 3, .. })));
    }
}
