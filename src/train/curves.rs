//! Learning curves: lines of JSON, and a picture as SVG.

use std::{fmt::Write as _, path::Path};

use serde::Serialize;

use super::{
    checkpoint::{EpochRecord, Progress, replace},
    error::TrainError,
    fit::json_lines,
};

/// The loss of one change of the weights.
#[derive(Serialize)]
struct StepLoss {
    step: usize,
    loss: f64,
}

/// Writes `epochs.jsonl`, `steps.jsonl` and `curves.svg` into a training's folder.
pub(super) fn write(folder: &Path, name: &str, progress: &Progress) -> Result<(), TrainError> {
    json_lines(&folder.join("epochs.jsonl"), &progress.history)?;
    let steps: Vec<StepLoss> =
        (1..).zip(&progress.step_losses).map(|(step, loss)| StepLoss { step, loss: *loss }).collect();
    json_lines(&folder.join("steps.jsonl"), &steps)?;
    replace(&folder.join("curves.svg"), svg(name, &progress.history).as_bytes())
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
/// Of a panel: its left edge, and the size of its plot.
const PANELS: [f64; 2] = [60.0, 440.0];
const PLOT: (f64, f64) = (290.0, 210.0);
const TOP: f64 = 50.0;
const COLOURS: [&str; 2] = ["#1f6f8b", "#c8553d"];

/// Loss at the left, score at the right; training and validation.
fn svg(name: &str, history: &[EpochRecord]) -> String {
    let series = |of: &dyn Fn(&EpochRecord) -> Option<f64>| -> Vec<(f64, f64)> {
        history.iter().filter_map(|record| Some((f64::from(record.epoch), of(record)?))).collect()
    };
    let loss = [series(&|of| Some(of.training_loss)), series(&|of| of.validation.map(|tried| tried.loss))];
    let score = [series(&|of| Some(of.training_score)), series(&|of| of.validation.map(|tried| tried.score))];
    let last_epoch = history.last().map_or(1.0, |record| f64::from(record.epoch)).max(2.0);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let highest = loss.iter().flatten().map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9);
    for (((left, title), lines), top_value) in
        PANELS.into_iter().zip(["loss", "score"]).zip([&loss, &score]).zip([highest, 1.0])
    {
        panel(&mut picture, left, &format!("{name}: {title}"), lines, last_epoch, top_value);
    }
    picture.push_str("</svg>\n");
    picture
}

fn panel(picture: &mut String, left: f64, title: &str, lines: &[Vec<(f64, f64)>; 2], last_epoch: f64, top_value: f64) {
    let (width, height) = PLOT;
    let x = |epoch: f64| left + (epoch - 1.0) / (last_epoch - 1.0) * width;
    let y = |value: f64| TOP + (1.0 - (value / top_value).clamp(0.0, 1.0)) * height;
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    // Writing to a text does not fail.
    let _ = writeln!(picture, "<text x=\"{left}\" y=\"20\" font-weight=\"bold\">{title}</text>");
    for tick in 0..=4 {
        let value = top_value * f64::from(tick) / 4.0;
        let _ = writeln!(
            picture,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{value:.3}</text>",
            left + width,
            y(value),
            y(value),
            left - 6.0,
            y(value) + 4.0
        );
    }
    let _ = writeln!(
        picture,
        "<text x=\"{left}\" y=\"{0}\">1</text>\n<text x=\"{1:.1}\" y=\"{0}\" text-anchor=\"end\">epoch {last_epoch}</text>",
        TOP + height + 18.0,
        left + width
    );
    for (line_idx, ((points, colour), meaning)) in lines.iter().zip(COLOURS).zip(["training", "validation"]).enumerate()
    {
        if points.is_empty() {
            continue;
        }
        let path: Vec<String> =
            points.iter().map(|(epoch, value)| format!("{:.1},{:.1}", x(*epoch), y(*value))).collect();
        let _ = writeln!(
            picture,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>\n<text x=\"{:.1}\" y=\"38\" \
             fill=\"{colour}\">{meaning}</text>",
            path.join(" "),
            left + 90.0 * line_idx as f64
        );
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
        let with = svg("a<b", &[record(1, Some(tried)), record(2, Some(tried))]);
        assert_eq!((with.matches("<polyline").count(), with.matches("a&lt;b").count()), (4, 2));
        assert_eq!(svg("x", &[record(1, None)]).matches("<polyline").count(), 2);
        assert!(!svg("x", &[]).contains("NaN"));
    }
}
