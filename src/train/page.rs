//! An evaluation as one page of HTML that needs nothing beside it.

use askama::Template;

use super::{
    evaluation::{Evaluation, Figures},
    plots,
};

/// The look of all of Hilum's pages.
const STYLE: &str = include_str!("../../templates/style.css");

#[derive(Template)]
#[template(path = "evaluation.html")]
struct Page<'a> {
    of: &'a Evaluation,
    style: &'static str,
    roc: Option<String>,
    precision_recall: Option<String>,
    reliability: Option<String>,
    histogram: String,
}

impl Evaluation {
    /// The report as a page.
    ///
    /// # Errors
    /// [`askama::Error`] when the page cannot be written to memory.
    pub fn html(&self) -> Result<String, askama::Error> {
        Page {
            of: self,
            style: STYLE,
            roc: self.roc.as_ref().map(|roc| plots::roc(&roc.points)),
            precision_recall: self
                .precision_recall
                .as_ref()
                .map(|curve| plots::precision_recall(&curve.points, curve.prevalence)),
            reliability: self.calibration.reliability.as_ref().map(plots::reliability),
            histogram: plots::histogram(&self.histogram, self.threshold),
        }
        .render()
    }
}

/// Name and text of each figure of some images.
fn lines(figures: &Figures) -> Vec<(String, String)> {
    let named = |name: &str, text: String| (name.to_owned(), text);
    let mut lines = vec![
        named(
            "Images, patients, with the target class",
            format!("{}, {}, {}", figures.images, figures.patients, figures.positives),
        ),
        named("Area under the ROC curve (bootstrap by patient)", figures.roc_area.text()),
        named("The same, DeLong, images taken for independent", figures.roc_area_delong.text()),
        named("Average precision (bootstrap by patient)", figures.average_precision.text()),
        named("Sensitivity (Wilson)", figures.sensitivity.text()),
        named("Specificity (Wilson)", figures.specificity.text()),
        named("Accuracy (Wilson)", figures.accuracy.text()),
        named("PPV in these images (Wilson)", figures.ppv.text()),
        named("NPV in these images (Wilson)", figures.npv.text()),
    ];
    for at in &figures.at_prevalences {
        let percent = at.prevalence * 100.0;
        lines.push((format!("PPV where {percent} % have it"), at.ppv.text()));
        lines.push((format!("NPV where {percent} % have it"), at.npv.text()));
    }
    lines
}

/// What the threshold made of the images, in words.
fn decided(figures: &Figures) -> String {
    let counts = &figures.confusion;
    format!(
        "{} true positive, {} false positive, {} true negative, {} false negative",
        counts.true_positive, counts.false_positive, counts.true_negative, counts.false_negative
    )
}
