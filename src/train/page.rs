//! An evaluation as one page of HTML that needs nothing beside it.

use askama::Template;

use super::{
    evaluation::{Evaluation, Figure, Figures},
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

/// Name, value and kind of interval of each figure of some images.
fn lines(figures: &Figures) -> Vec<(String, String, &'static str)> {
    let Figures { images, patients, positives, .. } = figures;
    let counts = format!("{images}, {patients}, {positives}");
    let mut lines = vec![("Images, patients, with the target class".to_owned(), counts, "")];
    let mut line = |name: String, figure: &Figure| {
        lines.push((name, figure.text(), figure.known().map_or("", |known| known.method)));
    };
    for (name, figure) in [
        ("Area under the ROC curve", &figures.roc_area),
        ("The same, images taken for independent", &figures.roc_area_delong),
        ("Average precision", &figures.average_precision),
        ("Sensitivity", &figures.sensitivity),
        ("Specificity", &figures.specificity),
        ("Accuracy", &figures.accuracy),
        ("PPV in these images", &figures.ppv),
        ("NPV in these images", &figures.npv),
    ] {
        line(name.to_owned(), figure);
    }
    for at in &figures.at_prevalences {
        let percent = at.prevalence * 100.0;
        line(format!("PPV where {percent} % have it"), &at.ppv);
        line(format!("NPV where {percent} % have it"), &at.npv);
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
