//! `hilum threshold`: from which output on an image is positive.

use clap::Args;
use serde::Serialize;

use super::{
    Global,
    evaluate::share,
    on_data::{SplitChoice, Subject, images_of, open_bundle, open_data},
    output::{print, print_json},
};
use crate::{
    nn::{Edit, edit_manifest},
    train::{Aim, Chosen, DataSet, Figure, Prediction, Questions, Split, choose_threshold, statistics::Confusion},
};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("aim").required(true))]
pub(super) struct Options {
    #[command(flatten)]
    subject: Subject,
    /// At least this share of the images with the target class shall be positive
    #[arg(long, value_name = "SHARE", value_parser = share, group = "aim")]
    sensitivity: Option<f64>,
    /// At least this share of the images without the target class shall be negative
    #[arg(long, value_name = "SHARE", value_parser = share, group = "aim")]
    specificity: Option<f64>,
    /// Which images it is chosen on: train, validation, test or all
    #[arg(long, default_value = "validation")]
    split: SplitChoice,
    /// Put the threshold into the bundle's manifest
    #[arg(long)]
    write: bool,
    /// With --write: the suggested grey zone as well, in which outputs decide nothing
    #[arg(long, requires = "write")]
    grey_zone: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was chosen and what it reaches.
#[derive(Debug, Serialize)]
struct Report {
    chosen: Chosen,
    /// Sensitivity and specificity on the test split; absent where the list has none, or it was the one chosen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_test: Option<(Figure, Figure)>,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let Options { subject, .. } = &options;
    let data = open_data(subject)?;
    let opened = open_bundle(global, subject, &subject.bundle, |_| {}).await?;
    opened.require_classifiers()?;
    let target = opened.pipeline.bundle().target_class_idx;
    let questions = Questions { enforce_gates: subject.enforce_gates, alterations: false };

    let samples = images_of(&data, options.split.split())?;
    let classes = opened.classes(subject, &samples)?;
    let (scores, truths) = scores(&opened.predict(&samples, &classes, questions).await?, target);
    let aim = match (options.sensitivity, options.specificity) {
        (Some(share), _) => Aim::Sensitivity(share),
        (None, Some(share)) => Aim::Specificity(share),
        (None, None) => anyhow::bail!("give --sensitivity or --specificity"),
    };
    let chosen = choose_threshold(aim, &scores, &truths)?;
    let on_test = match test_images(&data, options.split) {
        None => None,
        Some(samples) => {
            let classes = opened.classes(subject, &samples)?;
            let (scores, truths) = self::scores(&opened.predict(&samples, &classes, questions).await?, target);
            let counts = Confusion::at(chosen.threshold, &scores, &truths);
            Some((counts.sensitivity().into(), counts.specificity().into()))
        }
    };
    let edit =
        Edit::OperatingPoint { threshold: chosen.threshold, grey_zone: chosen.grey_zone.filter(|_| options.grey_zone) };
    let report = Report { chosen, on_test };
    if options.json {
        print_json(&report)?;
    } else {
        print(&words(&report, options.split.split()))?;
    }
    if options.write {
        edit_manifest(opened.bundle.folder(), &[edit])?;
        if !options.json {
            print(&format!(
                "the manifest of `{}` has it, and the bundle another digest",
                opened.bundle.folder().display()
            ))?;
        }
    }
    Ok(())
}

/// The images of the test split, unless they are those that the threshold was chosen on.
fn test_images(data: &DataSet, chosen_on: SplitChoice) -> Option<Vec<&crate::train::Sample>> {
    let is_other = matches!(chosen_on, SplitChoice::Only(split) if split != Split::Test);
    let samples: Vec<_> = data.of(Some(Split::Test)).collect();
    (is_other && !samples.is_empty()).then_some(samples)
}

fn scores(predictions: &[Prediction<'_>], target: usize) -> (Vec<f64>, Vec<bool>) {
    let known = |of: &Prediction<'_>| Some((*of.scored.as_ref().ok()?.outputs.get(target)?, of.class_idx? == target));
    predictions.iter().filter_map(known).unzip()
}

fn words(report: &Report, split: Option<Split>) -> String {
    let Chosen { threshold, sensitivity, specificity, grey_zone } = &report.chosen;
    let on = |name: &str, sensitivity: &Figure, specificity: &Figure| {
        format!("on {name}: sensitivity {}, specificity {}", sensitivity.text(), specificity.text())
    };
    let split = split.map_or_else(|| "all images".to_owned(), |split| format!("split {split}"));
    let mut lines = vec![
        format!("threshold {threshold:.4}, chosen on {split}"),
        on(&split, &Figure::Known(sensitivity.clone()), &Figure::Known(specificity.clone())),
    ];
    match &report.on_test {
        Some((sensitivity, specificity)) => lines.push(on("split test", sensitivity, specificity)),
        None => lines.push(
            "these figures are of the images that it was chosen on; there is no other test split to report it on"
                .to_owned(),
        ),
    }
    lines.push(match grey_zone {
        Some([low, high]) => format!(
            "suggested grey zone {low:.4} to {high:.4}: within the interval of what was reached, these images do not tell on \
             which side of the aim an output is"
        ),
        None => "no grey zone can be suggested from these images".to_owned(),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::statistics::Estimate;

    #[test]
    fn what_was_chosen_and_reached_is_said() {
        let of = |value| Estimate { value, interval: [value - 0.1, value + 0.05], n: 40, method: "Wilson" };
        let chosen =
            Chosen { threshold: 0.3125, sensitivity: of(0.9), specificity: of(0.8), grey_zone: Some([0.25, 0.4]) };
        let text = words(&Report { chosen: chosen.clone(), on_test: None }, Some(Split::Validation));
        insta::assert_snapshot!(text, @r"
        threshold 0.3125, chosen on split validation
        on split validation: sensitivity 0.900 (0.800 to 0.950; n = 40), specificity 0.800 (0.700 to 0.850; n = 40)
        these figures are of the images that it was chosen on; there is no other test split to report it on
        suggested grey zone 0.2500 to 0.4000: within the interval of what was reached, these images do not tell on which side of the aim an output is
        ");
        let on_test = Some((Figure::Known(of(0.85)), Figure::Unknown { not_computed: "there are none".to_owned() }));
        let text = words(&Report { chosen: Chosen { grey_zone: None, ..chosen }, on_test }, None);
        assert!(text.contains(
            "on split test: sensitivity 0.850 (0.750 to 0.900; n = 40), specificity not computed: there are none"
        ));
        assert!(text.contains("no grey zone"));
    }
}
