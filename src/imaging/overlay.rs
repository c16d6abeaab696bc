//! The heat-map picture: grey base, colours where the map is hot, burnt-in words.
//!
//! Words stand on strips above and below the radiograph, so that nothing hides anatomy.

use image::{GrayImage, ImageFormat, Rgb, RgbImage};

use super::{Plane, canvas, heat, text::TextFont};
use crate::types::{BundleIdentity, BundleStatus, ImageAnalysis, UNTRAINED_NOTICE};

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const GREY: Rgb<u8> = Rgb([190, 190, 190]);
const AMBER: Rgb<u8> = Rgb([255, 191, 0]);
/// Narrowest picture: below it the words would take more room than the radiograph.
const MINIMUM_WIDTH_PIXELS: u32 = 512;
/// Smallest font that stays readable on a diagnostic display.
const MINIMUM_FONT_PIXELS: f32 = 13.0;
/// Strongest share of colour over grey: anatomy stays visible below it.
const MAXIMUM_OPACITY: f32 = 0.55;

/// How to render.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OverlayOptions {
    /// Longest side of the whole picture in pixels, at least 512.
    pub long_side_max: u32,
    /// Heat (0 to 1 of the maximum) below which nothing is coloured.
    pub transparent_below: f32,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        Self { long_side_max: 1536, transparent_below: 0.3 }
    }
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
    /// The vendored font cannot be read: the binary is damaged.
    #[error("the built-in font is damaged: reinstall the program")]
    Font,
    /// The picture cannot be encoded.
    #[error("the picture cannot be written as PNG: {0}")]
    Png(String),
    /// The base picture cannot be resampled.
    #[error(transparent)]
    Plane(#[from] canvas::PlaneError),
}

/// One line of burnt-in text.
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

/// Renders the fused heat map of `analysis` over `base`, the displayed source image in full size.
///
/// Colours appear only when the analysis is localised (output at or above the threshold); otherwise the picture says
/// "no localisation". Everything of an untrained bundle says [`UNTRAINED_NOTICE`] above and below the radiograph.
///
/// # Errors
/// [`OverlayError`] when base, analysis and heat map do not belong together.
pub fn render_overlay(
    base: &GrayImage,
    analysis: &ImageAnalysis,
    bundle: &BundleIdentity,
    options: &OverlayOptions,
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
    let map = &analysis.heat_map;
    if map.rows == 0 || map.columns == 0 || map.rows.checked_mul(map.columns) != Some(map.values.len()) {
        return Err(OverlayError::HeatMap { rows: map.rows, columns: map.columns, values: map.values.len() });
    }
    let font = TextFont::load().ok_or(OverlayError::Font)?;
    let layout = Layout::fit(base, options, &font, |width| words(analysis, bundle, &font, width));

    let mut picture = RgbImage::new(layout.width, layout.banner + layout.rows + layout.footer);
    let grey = scaled_base(base, layout.rows, layout.width)?;
    let is_coloured = analysis.localised && map.values.iter().any(|&value| value > 0.0);
    for (index, &value) in grey.values.iter().enumerate() {
        let (row, column) = (index as u32 / layout.width, index as u32 % layout.width);
        let grey = value.round().clamp(0.0, 255.0) as u8;
        let heat = if is_coloured { heat_at(analysis, &layout, row, column) } else { 0.0 };
        picture.put_pixel(column, row + layout.banner, blend(grey, heat, options.transparent_below));
    }

    let mut y = layout.margin;
    for line in &layout.words.above {
        font.draw(&mut picture, &line.text, (layout.margin, y), line.size, line.colour);
        y += font.line_height(line.size);
    }
    y = layout.banner + layout.rows + layout.margin;
    if is_coloured {
        y += draw_legend(&mut picture, &font, &layout, y, options.transparent_below);
    }
    for line in &layout.words.below {
        font.draw(&mut picture, &line.text, (layout.margin, y), line.size, line.colour);
        y += font.line_height(line.size);
    }
    Ok(picture)
}

/// What is written above and below the radiograph.
struct Words {
    above: Vec<Line>,
    below: Vec<Line>,
    has_legend: bool,
}

/// Sizes of the parts of the picture, in its pixels.
struct Layout {
    width: u32,
    banner: u32,
    rows: u32,
    footer: u32,
    margin: u32,
    font_size: f32,
    words: Words,
}

impl Layout {
    /// The largest scale (not enlarging, unless the picture would be narrower than [`MINIMUM_WIDTH_PIXELS`]) at which
    /// radiograph and strips together keep within the longest side.
    fn fit(base: &GrayImage, options: &OverlayOptions, font: &TextFont, words: impl Fn(u32) -> Words) -> Self {
        let long_side = options.long_side_max.max(MINIMUM_WIDTH_PIXELS);
        let aspect = f64::from(base.height()) / f64::from(base.width().max(1));
        let mut width = base.width().clamp(MINIMUM_WIDTH_PIXELS, long_side);
        loop {
            let layout = Self::of_width(width, (f64::from(width) * aspect).round().max(1.0) as u32, font, words(width));
            let excess = layout.height().saturating_sub(long_side);
            if excess == 0 || width <= MINIMUM_WIDTH_PIXELS.min(base.width().max(64)) {
                return layout;
            }
            // The strips hardly change with the width, so that this converges from above in a few steps.
            let step = ((f64::from(excess) / aspect).ceil() as u32).max(1);
            width = width.saturating_sub(step).max(MINIMUM_WIDTH_PIXELS.min(base.width().max(64)));
        }
    }

    fn of_width(width: u32, rows: u32, font: &TextFont, words: Words) -> Self {
        let margin = margin(width);
        let height_of = |lines: &[Line]| lines.iter().map(|line| font.line_height(line.size)).sum::<u32>();
        let font_size = font_size(width);
        let legend = if words.has_legend { font.line_height(font_size) + margin / 2 } else { 0 };
        let banner = (height_of(&words.above) + 2 * margin).max(rows / 25);
        let footer = height_of(&words.below) + legend + 2 * margin;
        Self { width, banner, rows, footer, margin, font_size, words }
    }

    const fn height(&self) -> u32 {
        self.banner + self.rows + self.footer
    }
}

fn margin(width: u32) -> u32 {
    (width / 80).max(6)
}

fn font_size(width: u32) -> f32 {
    (width as f32 / 60.0).clamp(MINIMUM_FONT_PIXELS, 26.0)
}

fn words(analysis: &ImageAnalysis, bundle: &BundleIdentity, font: &TextFont, width: u32) -> Words {
    let size = font_size(width);
    let room = width - 2 * margin(width);
    let lines = |text: &str, size: f32, colour: Rgb<u8>| -> Vec<Line> {
        font.wrap(text, size, room).into_iter().map(|text| Line { text, size, colour }).collect()
    };
    let class = bundle.classes.get(bundle.target_class_idx).map_or("target class", |class| class.label.as_str());
    let output = match analysis.fused.get(bundle.target_class_idx) {
        Some(output) => format!("{:.1} %", output * 100.0),
        None => "no output".to_owned(),
    };
    let mut above = Vec::new();
    if bundle.status == BundleStatus::Untrained {
        above.extend(lines(UNTRAINED_NOTICE, size * 1.3, AMBER));
    }
    above.extend(lines(&format!("AI heat map · {class} {output} · NOT FOR DIAGNOSTIC USE"), size, WHITE));
    if !analysis.localised {
        let threshold = bundle.threshold * 100.0;
        above.extend(lines(
            &format!("no localisation: the output is below the threshold of {threshold:.1} %"),
            size,
            AMBER,
        ));
    } else if !analysis.heat_map.values.iter().any(|&value| value > 0.0) {
        above.extend(lines("no localisation: no region raised the output", size, AMBER));
    }

    let map = &analysis.heat_map;
    let cell = f64::from(analysis.placement.side) / map.rows.max(map.columns).max(1) as f64;
    let mut below = lines(
        &format!(
            "grid {}x{}: one cell = {cell:.0} px of the source image. Shows regions that influenced the output, not \
             lesion outlines. A result below the threshold does not exclude infection.",
            map.rows, map.columns
        ),
        size * 0.85,
        GREY,
    );
    let status = match bundle.status {
        BundleStatus::Untrained => UNTRAINED_NOTICE,
        BundleStatus::Unvalidated => "these weights are not validated",
        BundleStatus::Validated => "validated weights",
    };
    let digest: String = bundle.digest.to_string().chars().take(16).collect();
    let colour = if bundle.status == BundleStatus::Untrained { AMBER } else { GREY };
    below.extend(lines(
        &format!("RESEARCH, UNVERIFIED. {} {} (sha256 {digest}): {status}", bundle.name, bundle.version),
        size * 0.85,
        colour,
    ));
    let has_legend = analysis.localised && map.values.iter().any(|&value| value > 0.0);
    Words { above, below, has_legend }
}

fn scaled_base(base: &GrayImage, rows: u32, columns: u32) -> Result<Plane, canvas::PlaneError> {
    let values = base.as_raw().iter().map(|&grey| f32::from(grey)).collect();
    let plane = Plane { rows: base.height() as usize, columns: base.width() as usize, values };
    canvas::resize(&plane, rows as usize, columns as usize)
}

/// The heat under a pixel of the radiograph: picture → source image → square canvas → grid.
fn heat_at(analysis: &ImageAnalysis, layout: &Layout, row: u32, column: u32) -> f32 {
    let placement = &analysis.placement;
    let along = |index: u32, pixels: u32, source: u32, pad: u32| {
        let source_position = (f64::from(index) + 0.5) / f64::from(pixels) * f64::from(source);
        (source_position + f64::from(pad)) / f64::from(placement.side.max(1))
    };
    heat::sample(
        &analysis.heat_map,
        along(column, layout.width, placement.source_columns, placement.pad_left),
        along(row, layout.rows, placement.source_rows, placement.pad_top),
    )
}

/// Colour over grey: nothing below the threshold, from there more opaque with the heat.
fn blend(grey: u8, heat: f32, transparent_below: f32) -> Rgb<u8> {
    if heat < transparent_below || heat <= 0.0 {
        return Rgb([grey; 3]);
    }
    let above = ((heat - transparent_below) / (1.0 - transparent_below).max(f32::EPSILON)).clamp(0.0, 1.0);
    let opacity = MAXIMUM_OPACITY * (0.35 + 0.65 * above);
    let ink = colour_of(heat);
    Rgb(ink.map(|channel| (f32::from(grey) * (1.0 - opacity) + f32::from(channel) * opacity).round() as u8))
}

fn colour_of(heat: f32) -> [u8; 3] {
    let colour = colorous::TURBO.eval_continuous(f64::from(heat.clamp(0.0, 1.0)));
    [colour.r, colour.g, colour.b]
}

/// A bar from the first coloured value to the maximum, with words at both ends; returns the height it takes.
fn draw_legend(picture: &mut RgbImage, font: &TextFont, layout: &Layout, y: u32, transparent_below: f32) -> u32 {
    let size = layout.font_size;
    let line_height = font.line_height(size);
    let from = format!("activation {:.0} %", transparent_below * 100.0);
    let to = "maximum";
    font.draw(picture, &from, (layout.margin, y), size, WHITE);
    let bar_left = layout.margin + font.width(&from, size) + layout.margin;
    let bar_width = (layout.width / 4).max(80);
    for column in 0..bar_width {
        let share = column as f32 / bar_width as f32;
        let colour = Rgb(colour_of(transparent_below + (1.0 - transparent_below) * share));
        for row in line_height / 5..line_height * 4 / 5 {
            if let Some(pixel) = picture.get_pixel_mut_checked(bar_left + column, y + row) {
                *pixel = colour;
            }
        }
    }
    font.draw(picture, to, (bar_left + bar_width + layout.margin, y), size, WHITE);
    line_height + layout.margin / 2
}
