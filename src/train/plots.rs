//! The plots of an evaluation as SVG: no script, no font, no link, readable on light and dark pages.

use std::fmt::Write as _;

use super::statistics::{CurvePoint, Reliability};

const SIDE: f64 = 320.0;
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 44.0;
const TOP: f64 = 14.0;

/// A plot of the unit square, or of 0 to 1 by counts.
struct Plot {
    text: String,
    /// What the upper edge stands for.
    y_most: f64,
}

impl Plot {
    /// The frame with five ticks on each axis.
    fn new(title: &str, x_name: &str, y_name: &str, y_most: f64) -> Self {
        let (width, height) = (LEFT + SIDE + 16.0, TOP + SIDE + BOTTOM);
        let mut plot = Self { text: String::new(), y_most };
        let text = &mut plot.text;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<svg class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\" font-family=\"sans-serif\" \
             font-size=\"11\" fill=\"currentColor\"><title>{title}</title>\
             <rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"none\" stroke=\"currentColor\" \
             stroke-opacity=\"0.5\"/>"
        );
        for tick in 0..=4 {
            let share = f64::from(tick) / 4.0;
            let (x, y) = (LEFT + SIDE * share, TOP + SIDE * (1.0 - share));
            let value = share * y_most;
            let digits = if y_most > 1.0 { 0 } else { 2 };
            let _ = write!(
                text,
                "<line x1=\"{x}\" x2=\"{x}\" y1=\"{TOP}\" y2=\"{0}\" stroke=\"currentColor\" stroke-opacity=\"0.12\"/>\
                 <line x1=\"{LEFT}\" x2=\"{1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"currentColor\" stroke-opacity=\"0.12\"/>\
                 <text x=\"{x}\" y=\"{2}\" text-anchor=\"middle\">{share:.2}</text>\
                 <text x=\"{3}\" y=\"{4}\" text-anchor=\"end\">{value:.digits$}</text>",
                TOP + SIDE,
                LEFT + SIDE,
                TOP + SIDE + 16.0,
                LEFT - 6.0,
                y + 4.0
            );
        }
        let (middle_x, middle_y) = (LEFT + SIDE / 2.0, TOP + SIDE / 2.0);
        let _ = write!(
            text,
            "<text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text>\
             <text transform=\"translate(13 {middle_y}) rotate(-90)\" text-anchor=\"middle\">{y_name}</text>",
            TOP + SIDE + 36.0
        );
        plot
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (LEFT + SIDE * x, TOP + SIDE * (1.0 - y / self.y_most))
    }

    fn line(&mut self, points: &[(f64, f64)], style: &str) {
        let places: Vec<String> = points
            .iter()
            .map(|(x, y)| {
                let (x, y) = self.place(*x, *y);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let _ = write!(self.text, "<polyline points=\"{}\" fill=\"none\" {style}/>", places.join(" "));
    }

    fn end(mut self) -> String {
        self.text.push_str("</svg>");
        self.text
    }
}

const STRONG: &str = "stroke=\"#1d7fb8\" stroke-width=\"2.5\"";
const FAINT: &str = "stroke=\"currentColor\" stroke-opacity=\"0.5\" stroke-dasharray=\"4 4\"";

/// A ROC curve with the diagonal of a guess.
pub(super) fn roc(points: &[CurvePoint]) -> String {
    let mut plot = Plot::new("ROC curve", "1 − specificity", "sensitivity", 1.0);
    plot.line(&[(0.0, 0.0), (1.0, 1.0)], FAINT);
    plot.line(&points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(), STRONG);
    plot.end()
}

/// A precision–recall curve with the line of a guess.
pub(super) fn precision_recall(points: &[CurvePoint], prevalence: f64) -> String {
    let mut plot = Plot::new("Precision–recall curve", "recall (sensitivity)", "precision (PPV)", 1.0);
    plot.line(&[(0.0, prevalence), (1.0, prevalence)], FAINT);
    plot.line(&points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(), STRONG);
    plot.end()
}

/// Mean output and share of positives of each bin with its interval; discs grow with the bins' images.
pub(super) fn reliability(found: &Reliability) -> String {
    let mut plot = Plot::new("Reliability", "mean output of the bin", "share with the target class", 1.0);
    plot.line(&[(0.0, 0.0), (1.0, 1.0)], FAINT);
    let most = found.bins.iter().map(|bin| bin.n).max().unwrap_or(1) as f64;
    for bin in &found.bins {
        plot.line(
            &[(bin.mean_output, bin.interval[0]), (bin.mean_output, bin.interval[1])],
            "stroke=\"#1d7fb8\" stroke-opacity=\"0.6\" stroke-width=\"1.5\"",
        );
        let (x, y) = plot.place(bin.mean_output, bin.share_positive);
        let radius = 3.0 + 7.0 * (bin.n as f64 / most).sqrt();
        let _ = write!(
            plot.text,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"#1d7fb8\" fill-opacity=\"0.75\">\
             <title>{} images, mean output {:.3}, share {:.3}</title></circle>",
            bin.n, bin.mean_output, bin.share_positive
        );
    }
    plot.end()
}

/// How many images of each class have which output: bars beside each other, the threshold as a line.
pub(super) fn histogram(bars: &[[usize; 2]], threshold: f64) -> String {
    let most = bars.iter().flatten().copied().max().unwrap_or(0).max(4);
    // A multiple of four, so that the ticks are whole numbers.
    let most = most.div_ceil(4) * 4;
    let mut plot = Plot::new("Outputs by class", "output of the target class", "images", most as f64);
    let width = SIDE / bars.len().max(1) as f64 / 2.0;
    for (idx, counts) in bars.iter().enumerate() {
        for (class, (count, fill)) in counts.iter().zip(["#8a97a0", "#d9730d"]).enumerate() {
            let (x, y) = plot.place(idx as f64 / bars.len() as f64, *count as f64);
            let height = TOP + SIDE - y;
            let _ = write!(
                plot.text,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>",
                x + class as f64 * width
            );
        }
    }
    plot.line(&[(threshold, 0.0), (threshold, most as f64)], FAINT);
    for (row, (name, fill)) in [("without the target class", "#8a97a0"), ("with it", "#d9730d")].into_iter().enumerate()
    {
        let y = TOP + 16.0 + 16.0 * row as f64;
        let _ = write!(
            plot.text,
            "<rect x=\"{}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{fill}\"/><text x=\"{}\" y=\"{y}\">{name}</text>",
            LEFT + SIDE - 150.0,
            y - 9.0,
            LEFT + SIDE - 134.0
        );
    }
    plot.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_whole_and_in_their_frame() {
        let points = [CurvePoint { x: 0.0, y: 0.0 }, CurvePoint { x: 0.5, y: 1.0 }, CurvePoint { x: 1.0, y: 1.0 }];
        let bins = Reliability::of(&[0.1, 0.8, 0.9], &[false, true, true]).unwrap();
        for (plot, expected) in [
            (roc(&points), "52.0,334.0 212.0,14.0 372.0,14.0"),
            (precision_recall(&points, 0.25), "52.0,254.0 372.0,254.0"),
            (reliability(&bins), "1 images, mean output 0.800, share 1.000"),
            (histogram(&[[3, 0], [1, 4]], 0.5), "height=\"320.0\""),
        ] {
            assert!(plot.starts_with("<svg") && plot.ends_with("</svg>"), "{plot}");
            assert!(plot.contains(expected), "{expected}: {plot}");
            assert!(!plot.contains("NaN") && !plot.contains("http"), "{plot}");
        }
    }
}
