//! Learning curves: lines of JSON, and a picture as SVG and PNG.

use std::{fmt::Write as _, path::Path};

use image::{ExtendedColorType, ImageEncoder as _, Rgb, RgbImage, codecs::png::PngEncoder};
use serde::Serialize;

use super::{
    checkpoint::{EpochRecord, Progress, replace},
    error::TrainError,
    fit::json_lines,
};
use crate::imaging::TextFont;

/// The loss of one change of the weights.
#[derive(Serialize)]
struct StepLoss {
    step: usize,
    loss: f64,
}

/// Writes `epochs.jsonl`, `steps.jsonl`, `curves.svg` and `curves.png` into a training's folder.
pub(super) fn write(folder: &Path, name: &str, progress: &Progress) -> Result<(), TrainError> {
    json_lines(&folder.join("epochs.jsonl"), &progress.history)?;
    let steps: Vec<StepLoss> =
        (1..).zip(&progress.step_losses).map(|(step, loss)| StepLoss { step, loss: *loss }).collect();
    json_lines(&folder.join("steps.jsonl"), &steps)?;
    let shapes = drawing(name, &progress.history);
    replace(&folder.join("curves.svg"), svg(&shapes).as_bytes())?;
    replace(&folder.join("curves.png"), &png(&shapes)?)
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
/// Of a panel: its left edge, and the size of its plot.
const PANELS: [f64; 2] = [60.0, 440.0];
const PLOT: (f64, f64) = (290.0, 210.0);
const TOP: f64 = 50.0;
const FONT_SIZE: f64 = 12.0;
const BLACK: [u8; 3] = [0; 3];
const PALE: [u8; 3] = [0xDD; 3];
const COLOURS: [[u8; 3]; 2] = [[0x1F, 0x6F, 0x8B], [0xC8, 0x55, 0x3D]];

/// Pixels of the PNG for a unit of the drawing.
const SCALE: f64 = 2.0;

/// What is drawn, in units from the left and the top.
enum Shape {
    Line {
        points: Vec<(f64, f64)>,
        width: f64,
        colour: [u8; 3],
    },
    /// Its baseline begins here, or ends here.
    Text {
        at: (f64, f64),
        ends_here: bool,
        words: String,
        colour: [u8; 3],
    },
}

/// Loss at the left, score at the right; training and validation.
fn drawing(name: &str, history: &[EpochRecord]) -> Vec<Shape> {
    let series = |of: &dyn Fn(&EpochRecord) -> Option<f64>| -> Vec<(f64, f64)> {
        history.iter().filter_map(|record| Some((f64::from(record.epoch), of(record)?))).collect()
    };
    let loss = [series(&|of| Some(of.training_loss)), series(&|of| of.validation.map(|tried| tried.loss))];
    let score = [series(&|of| Some(of.training_score)), series(&|of| of.validation.map(|tried| tried.score))];
    let last_epoch = history.last().map_or(1.0, |record| f64::from(record.epoch)).max(2.0);
    let highest = loss.iter().flatten().map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9);
    let panels = PANELS.into_iter().zip([("loss", &loss, highest), ("score", &score, 1.0)]);
    panels
        .flat_map(|(left, (of, lines, most))| panel(left, &format!("{name}: {of}"), lines, last_epoch, most))
        .collect()
}

fn panel(left: f64, title: &str, lines: &[Vec<(f64, f64)>; 2], last_epoch: f64, most: f64) -> Vec<Shape> {
    let (width, height) = PLOT;
    let x = |epoch: f64| left + (epoch - 1.0) / (last_epoch - 1.0) * width;
    let y = |value: f64| TOP + (1.0 - (value / most).clamp(0.0, 1.0)) * height;
    let text =
        |at: (f64, f64), ends_here: bool, words: String, colour: [u8; 3]| Shape::Text { at, ends_here, words, colour };
    let mut shapes = vec![text((left, 20.0), false, title.to_owned(), BLACK)];
    for tick in 0..=4 {
        let value = most * f64::from(tick) / 4.0;
        let points = vec![(left, y(value)), (left + width, y(value))];
        shapes.push(Shape::Line { points, width: 1.0, colour: PALE });
        shapes.push(text((left - 6.0, y(value) + 4.0), true, format!("{value:.3}"), BLACK));
    }
    let below = TOP + height + 18.0;
    shapes.push(text((left, below), false, "1".to_owned(), BLACK));
    shapes.push(text((left + width, below), true, format!("epoch {last_epoch}"), BLACK));
    let named = lines.iter().zip(COLOURS).zip(["training", "validation"]).zip([0.0, 90.0]);
    for (((series, colour), meaning), shift) in named.filter(|(((series, _), _), _)| !series.is_empty()) {
        let points = series.iter().map(|(epoch, value)| (x(*epoch), y(*value))).collect();
        shapes.push(Shape::Line { points, width: 1.8, colour });
        shapes.push(text((left + shift, 38.0), false, meaning.to_owned(), colour));
    }
    shapes
}

fn svg(shapes: &[Shape]) -> String {
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"{FONT_SIZE}\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let hex = |[red, green, blue]: [u8; 3]| format!("#{red:02x}{green:02x}{blue:02x}");
    for shape in shapes {
        // Writing to a text does not fail.
        let _ = match shape {
            Shape::Line { points, width, colour } => {
                let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let (points, colour) = (points.join(" "), hex(*colour));
                writeln!(
                    picture,
                    "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
                )
            }
            Shape::Text { at: (x, y), ends_here, words, colour } => {
                let anchor = if *ends_here { "end" } else { "start" };
                let words = words.replace('&', "&amp;").replace('<', "&lt;");
                let colour = hex(*colour);
                writeln!(
                    picture,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"
                )
            }
        };
    }
    picture + "</svg>\n"
}

fn png(shapes: &[Shape]) -> Result<Vec<u8>, TrainError> {
    let failed = |error: String| TrainError::Internal(error);
    let font = TextFont::load().ok_or_else(|| failed("the font is damaged".to_owned()))?;
    let mut picture = RgbImage::from_pixel((WIDTH * SCALE) as u32, (HEIGHT * SCALE) as u32, Rgb([255; 3]));
    for shape in shapes {
        match shape {
            Shape::Line { points, width, colour } => {
                for pair in points.windows(2) {
                    let [(x0, y0), (x1, y1)] = *pair else { continue };
                    let n_dots = ((x1 - x0).hypot(y1 - y0) * SCALE * 2.0).ceil().max(1.0);
                    for dot in 0..=n_dots as u32 {
                        let share = f64::from(dot) / n_dots;
                        dab(&mut picture, (x0 + share * (x1 - x0), y0 + share * (y1 - y0)), *width, Rgb(*colour));
                    }
                }
            }
            Shape::Text { at: (x, y), ends_here, words, colour } => {
                let size = (FONT_SIZE * SCALE) as f32;
                let length = if *ends_here { f64::from(font.width(words, size)) } else { 0.0 };
                // The font is drawn from its top.
                let (left, top) = ((x * SCALE - length).max(0.0), ((y - 0.95 * FONT_SIZE) * SCALE).max(0.0));
                font.draw(&mut picture, words, (left as u32, top as u32), size, Rgb(*colour));
            }
        }
    }
    let mut bytes = Vec::new();
    let (columns, rows) = picture.dimensions();
    PngEncoder::new(&mut bytes)
        .write_image(picture.as_raw(), columns, rows, ExtendedColorType::Rgb8)
        .map_err(|error| failed(error.to_string()))?;
    Ok(bytes)
}

/// A square dot.
fn dab(picture: &mut RgbImage, (x, y): (f64, f64), width: f64, colour: Rgb<u8>) {
    let half = width * SCALE / 2.0;
    let pixels =
        |middle: f64| ((middle * SCALE - half).round().max(0.0) as u32)..((middle * SCALE + half).round() as u32);
    for row in pixels(y) {
        for column in pixels(x) {
            if let Some(pixel) = picture.get_pixel_mut_checked(column, row) {
                *pixel = colour;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::checkpoint::Tried, *};

    #[test]
    fn the_picture_has_a_line_for_each_series() {
        let record = |epoch: u32, validation| EpochRecord {
            epoch,
            steps: epoch as i32 * 10,
            learning_rate: 0.1,
            training_loss: 1.0 / f64::from(epoch),
            training_score: 0.5,
            validation,
        };
        let tried = Tried { images: 3, loss: 0.7, score: 0.6 };
        let shapes = drawing("a<b", &[record(1, Some(tried)), record(2, Some(tried))]);
        let with = svg(&shapes);
        assert_eq!((with.matches("stroke-width=\"1.8\"").count(), with.matches("a&lt;b").count()), (4, 2));
        assert_eq!(svg(&drawing("x", &[record(1, None)])).matches("stroke-width=\"1.8\"").count(), 2);
        assert!(!svg(&drawing("x", &[])).contains("NaN"));

        let picture = image::load_from_memory(&png(&shapes).unwrap()).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (1520, 600));
        for colour in COLOURS.into_iter().chain([BLACK]) {
            assert!(picture.pixels().any(|pixel| pixel.0 == colour), "{colour:?}");
        }
    }
}
