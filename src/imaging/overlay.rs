//! The heat-map picture: grey base, colours where the map is hot, burnt-in words.
//!
//! Words stand on strips above and below the radiograph, so that nothing hides anatomy.

use image::{GrayImage, ImageFormat, Rgb, RgbImage};

use super::{Plane, canvas, heat, text::TextFont};
use crate::types::{BundleIdentity, BundleStatus, ImageAnalysis, UNTRAINED_NOTICE};

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const GREY: Rgb<u8> = Rgb([190, 190, 190]);
const AMBER: Rgb<u8> = Rgb([255, 191, 0]);
/// Narrowest picture: a narrower radiograph stands in the middle of black, so that the words have room.
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
    /// A person asked for this map: it is coloured whatever the output is, and neither threshold nor decision, which are
    /// about the bundle's own class, are spoken of.
    pub on_demand: bool,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        Self { long_side_max: 1536, transparent_below: 0.3, on_demand: false }
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
/// Colours appear only when the analysis is localised (output at or above the threshold) or a person asked for the map;
/// otherwise the picture says "no localisation". Everything of an untrained bundle says [`UNTRAINED_NOTICE`] above and below the radiograph.
///
/// # Errors
/// [`OverlayError`] when base, analysis and heat map do not belong together.
pub fn render_overlay(
    base: &GrayImage,
    analysis: &ImageAnalysis,
    bundle: &BundleIdentity,
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
    let map = &analysis.heat_map;
    if map.rows == 0 || map.columns == 0 || map.rows.checked_mul(map.columns) != Some(map.values.len()) {
        return Err(OverlayError::HeatMap { rows: map.rows, columns: map.columns, values: map.values.len() });
    }
    let font = TextFont::load().ok_or(OverlayError::Font)?;
    let layout = Layout::fit(base, options, &font, |width| words(analysis, bundle, options, &font, width));

    let mut picture = RgbImage::new(layout.width, layout.height());
    let grey = scaled_base(base, layout.rows, layout.columns)?;
    let is_coloured = is_coloured(analysis, options);
    for (index, &value) in grey.values.iter().enumerate() {
        let (row, column) = (index as u32 / layout.columns, index as u32 % layout.columns);
        let grey = value.round().clamp(0.0, 255.0) as u8;
        let heat = if is_coloured { heat_at(analysis, &layout, row, column) } else { 0.0 };
        let ink = blend(grey, heat, options.transparent_below);
        picture.put_pixel(column + layout.left, row + layout.banner, ink);
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

fn is_coloured(analysis: &ImageAnalysis, options: OverlayOptions) -> bool {
    (analysis.localised || options.on_demand) && analysis.heat_map.values.iter().any(|&value| value > 0.0)
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
    /// Rows and columns of the radiograph, and the black at its left.
    rows: u32,
    columns: u32,
    left: u32,
    footer: u32,
    margin: u32,
    font_size: f32,
    words: Words,
}

impl Layout {
    /// The largest scale at which radiograph and strips together keep within the longest side; only radiographs
    /// narrower than [`MINIMUM_WIDTH_PIXELS`] are enlarged.
    fn fit(base: &GrayImage, options: OverlayOptions, font: &TextFont, words: impl Fn(u32) -> Words) -> Self {
        let long_side = options.long_side_max.max(MINIMUM_WIDTH_PIXELS);
        let aspect = f64::from(base.height().max(1)) / f64::from(base.width().max(1));
        let of_columns = |columns: u32| {
            let rows = (f64::from(columns) * aspect).round().max(1.0) as u32;
            Self::new(rows, columns, font, &words)
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

    const fn height(&self) -> u32 {
        self.banner + self.rows + self.footer
    }

    fn new(rows: u32, columns: u32, font: &TextFont, words: impl Fn(u32) -> Words) -> Self {
        let width = columns.max(MINIMUM_WIDTH_PIXELS);
        let words = words(width);
        let margin = margin(width);
        let height_of = |lines: &[Line]| lines.iter().map(|line| font.line_height(line.size)).sum::<u32>();
        let font_size = font_size(width);
        let legend = if words.has_legend { font.line_height(font_size) + margin / 2 } else { 0 };
        let banner = (height_of(&words.above) + 2 * margin).max(rows / 25);
        let footer = height_of(&words.below) + legend + 2 * margin;
        Self { width, banner, rows, columns, left: (width - columns) / 2, footer, margin, font_size, words }
    }
}

fn margin(width: u32) -> u32 {
    (width / 80).max(6)
}

fn font_size(width: u32) -> f32 {
    (width as f32 / 60.0).clamp(MINIMUM_FONT_PIXELS, 26.0)
}

fn words(
    analysis: &ImageAnalysis,
    bundle: &BundleIdentity,
    options: OverlayOptions,
    font: &TextFont,
    width: u32,
) -> Words {
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
    if options.on_demand {
        let made: Vec<String> =
            analysis.member_heat_maps.iter().map(|(member, map)| format!("{} of {member}", map.method)).collect();
        above.extend(lines(&format!("made on demand: {}", made.join(", ")), size, WHITE));
        above.extend(lines("a map made on demand is no indication, whatever the output is", size, AMBER));
    } else if !analysis.localised {
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
    Words { above, below, has_legend: is_coloured(analysis, options) }
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
        along(column, layout.columns, placement.source_columns, placement.pad_left),
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::types::{
        ClassDefinition, Code, Decision, HeatMap, LungMask, MemberIdentity, Sha256Digest, SourceImage, Uid,
    };

    fn bundle(status: BundleStatus, label: &str) -> BundleIdentity {
        let digest = Sha256Digest::of(b"weights");
        let member = MemberIdentity {
            name: "unet".to_owned(),
            architecture: "unet".to_owned(),
            version: "1".to_owned(),
            weights_sha256: digest,
        };
        let code = Code { value: "1".to_owned(), scheme: "99X".to_owned(), meaning: "x".to_owned() };
        BundleIdentity {
            name: "cxr".to_owned(),
            version: "1.0".to_owned(),
            status,
            digest,
            classes: vec![ClassDefinition { label: label.to_owned(), code }],
            target_class_idx: 0,
            threshold: 0.5,
            pixel_threshold: None,
            fusion: "mean_prob".to_owned(),
            calibration: None,
            reference_performance: String::new(),
            grey_zone: None,
            segmenter: Some(member),
            members: Vec::new(),
        }
    }

    /// Hot in the cell at row 5, column 1 of 7 x 7.
    fn analysis(rows: u32, columns: u32, localised: bool) -> ImageAnalysis {
        let mut values = vec![0.0; 49];
        values[5 * 7 + 1] = 1.0;
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
            heat_map: HeatMap { rows: 7, columns: 7, values, maximum_activation: 1.0, method: "cam".to_owned() },
            member_heat_maps: Vec::new(),
            lung_mask: LungMask { side_pixels: 1, png_base64: String::new(), area_fraction: 0.3 },
            right_lung_heat_fraction: None,
            left_lung_heat_fraction: None,
            similar_cases: None,
        }
    }

    fn base(rows: u32, columns: u32) -> GrayImage {
        GrayImage::from_pixel(columns, rows, image::Luma([100]))
    }

    fn words_of(analysis: &ImageAnalysis, bundle: &BundleIdentity, width: u32) -> (String, String) {
        let words = words(analysis, bundle, OverlayOptions::default(), &TextFont::load().unwrap(), width);
        let join = |lines: Vec<Line>| lines.into_iter().map(|line| line.text).collect::<Vec<_>>().join(" ");
        (join(words.above), join(words.below))
    }

    fn has_colour(pixel: Rgb<u8>) -> bool {
        let [red, green, blue] = pixel.0;
        red.abs_diff(green) > 20 || green.abs_diff(blue) > 20
    }

    #[rstest]
    #[case(1955, 1841, 1536)]
    #[case(4280, 3520, 1024)]
    #[case(299, 299, 1536)]
    #[case(3000, 500, 1536)]
    #[case(500, 3000, 1536)]
    #[case(64, 64, 512)]
    #[case(3000, 20, 1536)]
    fn pictures_keep_within_the_longest_side_and_words_within_the_width(
        #[case] rows: u32,
        #[case] columns: u32,
        #[case] long_side_max: u32,
    ) {
        let options = OverlayOptions { long_side_max, ..OverlayOptions::default() };
        let label = "a class with an unreasonably long label that nobody would write into a manifest";
        let (base, analysis, bundle) =
            (base(rows, columns), analysis(rows, columns, true), bundle(BundleStatus::Untrained, label));
        let picture = render_overlay(&base, &analysis, &bundle, options).unwrap();
        assert!(picture.width().max(picture.height()) <= long_side_max, "{:?}", picture.dimensions());
        assert!(picture.width() >= 512);

        let font = TextFont::load().unwrap();
        let layout = Layout::fit(&base, options, &font, |width| words(&analysis, &bundle, options, &font, width));
        for line in layout.words.above.iter().chain(&layout.words.below) {
            assert!(line.size >= MINIMUM_FONT_PIXELS * 0.85);
            assert!(layout.margin + font.width(&line.text, line.size) <= layout.width, "{}", line.text);
        }
        // The radiograph keeps its proportions within a pixel.
        let expected = f64::from(layout.columns) * f64::from(rows) / f64::from(columns);
        assert!((f64::from(layout.rows) - expected).abs() <= 1.0);
    }

    #[test]
    fn colour_lies_over_the_hot_cell_and_nowhere_else() {
        // Portrait: 700 rows, 560 columns, 70 columns of padding at each side of the square of 700.
        let (rows, columns) = (700, 560);
        let analysis = analysis(rows, columns, true);
        let bundle = bundle(BundleStatus::Validated, "COVID-19");
        let picture = render_overlay(&base(rows, columns), &analysis, &bundle, OverlayOptions::default()).unwrap();
        let banner = (0..picture.height()).find(|&y| picture.get_pixel(5, y).0 == [100; 3]).unwrap();
        // Cell (5, 1) has its centre at canvas (550, 150): source column 80.
        assert!(has_colour(*picture.get_pixel(80, banner + 550)));
        for (x, y) in [(480, 550), (80, 150), (280, 350)] {
            assert_eq!(picture.get_pixel(x, banner + y).0, [100; 3], "at {x}, {y}");
        }
    }

    #[test]
    fn without_localisation_there_is_no_colour_and_the_words_say_so() {
        let (bundle, cold) = (bundle(BundleStatus::Validated, "COVID-19"), analysis(600, 600, false));
        let picture = render_overlay(&base(600, 600), &cold, &bundle, OverlayOptions::default()).unwrap();
        let banner = (0..picture.height()).find(|&y| picture.get_pixel(3, y).0 == [100; 3]).unwrap();
        assert!((banner..banner + 600).all(|y| (0..600).all(|x| picture.get_pixel(x, y).0 == [100; 3])));
        let (above, _) = words_of(&cold, &bundle, 600);
        assert!(above.contains("no localisation"), "{above}");
        assert!(above.contains("20.0 %"), "{above}");
    }

    #[test]
    fn a_map_on_demand_is_coloured_whatever_the_output_is_and_speaks_of_no_threshold() {
        let (bundle, mut cold) = (bundle(BundleStatus::Validated, "COVID-19"), analysis(600, 600, false));
        cold.member_heat_maps = vec![("resnet50".to_owned(), cold.heat_map.clone())];
        let options = OverlayOptions { on_demand: true, ..OverlayOptions::default() };
        let picture = render_overlay(&base(600, 600), &cold, &bundle, options).unwrap();
        assert!(picture.pixels().any(|pixel| has_colour(*pixel) && *pixel != AMBER));
        let words = words(&cold, &bundle, options, &TextFont::load().unwrap(), 600);
        let above = words.above.into_iter().map(|line| line.text).collect::<Vec<_>>().join(" ");
        assert!(above.contains("made on demand: cam of resnet50"), "{above}");
        assert!(above.contains("no indication") && !above.contains("threshold"), "{above}");
    }

    #[test]
    fn the_words_name_class_output_purpose_and_grid() {
        let (above, below) = words_of(&analysis(1400, 1400, true), &bundle(BundleStatus::Validated, "COVID-19"), 1400);
        assert_eq!(above, "AI heat map · COVID-19 87.3 % · NOT FOR DIAGNOSTIC USE");
        assert!(below.contains("grid 7x7: one cell = 200 px"), "{below}");
        assert!(below.contains("RESEARCH, UNVERIFIED. cxr 1.0"), "{below}");
        assert!(!below.contains(UNTRAINED_NOTICE));
    }

    #[test]
    fn everything_of_an_untrained_bundle_says_so_twice() {
        let (above, below) = words_of(&analysis(1400, 1400, true), &bundle(BundleStatus::Untrained, "COVID-19"), 512);
        assert!(above.starts_with(UNTRAINED_NOTICE), "{above}");
        assert!(below.contains(UNTRAINED_NOTICE), "{below}");
        let (_, below) = words_of(&analysis(1400, 1400, true), &bundle(BundleStatus::Unvalidated, "x"), 512);
        assert!(below.contains("not validated"), "{below}");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let bundle = bundle(BundleStatus::Validated, "COVID-19");
        let options = OverlayOptions::default();
        let mismatch = render_overlay(&base(10, 20), &analysis(20, 10, true), &bundle, options);
        assert!(matches!(mismatch, Err(OverlayError::SizeMismatch { base_rows: 10, rows: 20, .. })));
        let mut broken = analysis(20, 10, true);
        broken.heat_map.values.pop();
        let broken = render_overlay(&base(20, 10), &broken, &bundle, options);
        assert!(matches!(broken, Err(OverlayError::HeatMap { values: 48, .. })));
    }
}
