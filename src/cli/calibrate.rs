//! `hilum calibrate`: makes a bundle's outputs mean what they say.

use clap::{Args, ValueEnum};

use super::{
    Global,
    on_data::{SplitChoice, Subject, images_of, open_bundle, open_data, today},
    output::{Table, count, print, print_json},
};
use crate::{
    nn::{Calibration, Edit, edit_manifest},
    train::{Calibrated, CalibrationMethod, Fit, Questions, Split, calibrate},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    subject: Subject,
    /// Which images: train, validation, test or all
    #[arg(long, default_value = "validation")]
    split: SplitChoice,
    /// temperature keeps the order of all outputs; platt moves the target class's output to the prevalence of these images
    #[arg(long, value_enum, default_value_t = Method::Temperature)]
    method: Method,
    /// Names data and site, for the records [default: the list's digest]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Put the calibration into the bundle's manifest
    #[arg(long)]
    write: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Temperature,
    Platt,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let Options { subject, .. } = &options;
    let data = open_data(subject)?;
    let samples = images_of(&data, options.split.split())?;
    // What is fitted is fitted to outputs that nothing has calibrated or shifted before.
    let opened = open_bundle(global, subject, &subject.bundle, |classification| {
        classification.calibration = Calibration::None {};
        classification.prior = None;
    })
    .await?;
    opened.require_classifiers()?;
    let classes = opened.classes(subject, &samples)?;
    let questions = Questions { enforce_gates: subject.enforce_gates, alterations: false };
    let predictions = opened.predict(&samples, &classes, questions).await?;
    let (outputs, truth): (Vec<Vec<f64>>, Vec<usize>) =
        predictions.iter().filter_map(|of| Some((of.scored.as_ref().ok()?.outputs.clone(), of.class_idx?))).unzip();
    let method = match options.method {
        Method::Temperature => CalibrationMethod::Temperature,
        Method::Platt => CalibrationMethod::Platt,
    };
    let digest = data.sha256.get(..12).unwrap_or_default();
    let id = options
        .id
        .clone()
        .unwrap_or_else(|| format!("{} sha256:{digest}", options.split.split().map_or("all", Split::name)));
    let target = opened.pipeline.bundle().target_class_idx;
    let found = calibrate(&outputs, &truth, target, method, (&id, &today()))?;
    if options.json {
        print_json(&found)?;
    } else {
        print(&words(&found, predictions.len() - outputs.len()))?;
    }
    if options.write {
        edit_manifest(opened.bundle.folder(), &[Edit::Calibration(found.calibration)])?;
        if !options.json {
            print(&format!(
                "the manifest of `{}` has it, and the bundle another digest; choose the threshold anew with `hilum threshold`",
                opened.bundle.folder().display()
            ))?;
        }
    }
    Ok(())
}

fn words(found: &Calibrated, left_out: usize) -> String {
    let (what, n) = match &found.calibration {
        Calibration::None {} => ("no calibration".to_owned(), 0),
        Calibration::Temperature { temperature, n, .. } => (format!("temperature {temperature:.4}"), *n),
        Calibration::Platt { slope, intercept, n, .. } => {
            (format!("Platt scaling, slope {slope:.4}, intercept {intercept:.4}"), *n)
        }
    };
    let mut table = Table::new(&["ON THESE IMAGES", "BEFORE", "AFTER"]);
    let mut row = |name: &str, figure: fn(&Fit) -> f64| {
        table.row([name.to_owned(), format!("{:.4}", figure(&found.before)), format!("{:.4}", figure(&found.after))]);
    };
    row("negative log-likelihood", |fit| fit.negative_log_likelihood);
    row("Brier score", |fit| fit.brier);
    row("expected calibration error", |fit| fit.expected_calibration_error);
    format!(
        "{what}, fitted on {} ({} left out)\n{}These figures are of the images of the fit; `hilum evaluate --split test` has those of \
         others.",
        count(n as usize, "image"),
        left_out,
        table.render("nothing")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_and_after_stand_beside_each_other() {
        let fit = |value| Fit { brier: value, expected_calibration_error: value, negative_log_likelihood: value };
        let calibration =
            Calibration::Temperature { temperature: 1.5, id: "x".to_owned(), n: 1, date: "2026-11-29".to_owned() };
        let text = words(&Calibrated { calibration, before: fit(0.5), after: fit(0.25) }, 2);
        assert!(text.starts_with("temperature 1.5000, fitted on 1 image (2 left out)\n"), "{text}");
        assert!(text.contains("Brier score                 0.5000  0.2500"), "{text}");
    }
}
