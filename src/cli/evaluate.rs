//! `hilum evaluate`: how good a bundle is on a data set, and what it looks at.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    Global,
    on_data::{Opened, SplitChoice, Subject, images_of, open_bundle, open_data, today},
    output::{Table, print},
};
use crate::{
    nn::{Edit, Input, MANIFEST_FILE_NAME, Manifest, Performance, Whose, edit_manifest, radiograph_gates},
    train::{
        ClassMap, Evaluation, Figure, Plan, Prediction, Questions, RunRecord, Sample, Split, TrainedOn,
        predictions_csv, replace,
    },
    types::{BundleStatus, Sha256Digest, UNTRAINED_NOTICE},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    subject: Subject,
    /// Which images: train, validation, test or all [default: test, if the list has such images, else all]
    #[arg(long)]
    split: Option<SplitChoice>,
    /// Another bundle that judges the same images
    #[arg(long, value_name = "BUNDLE")]
    compare: Option<String>,
    /// Folder of the trainings that `hilum train --fold all/N` made with the bundle's recipe: each image is judged by the
    /// networks that were not trained on its patient
    #[arg(long, value_name = "FOLDER", conflicts_with = "compare")]
    cross_validated: Option<PathBuf>,
    /// Folder for report.json, report.html and predictions.csv [default: evaluation-<BUNDLE>]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Leave out the tests of what the classifier looks at, which judge every image six times more
    #[arg(long)]
    without_shortcut_tests: bool,
    /// Prevalences that predictive values are given for, between 0 and 1
    #[arg(long, value_name = "SHARE", value_delimiter = ',', default_values_t = [0.01, 0.05, 0.2], value_parser = share)]
    prevalence: Vec<f64>,
    /// Resamples of every bootstrap
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    resamples: u32,
    /// Of resamples and folds
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Keep the main figures in the bundle's manifest, for its model card
    #[arg(long)]
    write: bool,
    /// Whose figures `--write` says they are: yours as the makers of the bundle, or your site's
    #[arg(long, value_name = "WHOSE", default_value = "site", value_parser = ["makers", "site"])]
    whose: String,
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a number between 0 and 1".to_owned()),
    }
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let Options { subject, .. } = &options;
    let data = open_data(subject)?;
    let has_test = data.of(Some(Split::Test)).next().is_some();
    let default = if has_test { SplitChoice::Only(Split::Test) } else { SplitChoice::All };
    let split = options.split.unwrap_or(default).split();
    // Folds are made of everything but the test.
    let in_folds_only = options.cross_validated.is_some() && options.split.is_none();
    let split = if in_folds_only { None } else { split };
    let mut samples = images_of(&data, split)?;
    samples.retain(|sample| !in_folds_only || sample.split != Some(Split::Test));
    let opened = open_bundle(global, subject, &subject.bundle, |_| {}).await?;
    let classes = opened.classes(subject, &samples)?;
    let questions = Questions { enforce_gates: subject.enforce_gates, alterations: !options.without_shortcut_tests };
    let judged = match &options.cross_validated {
        Some(folder) => in_folds(global, subject, folder, &opened, &samples, (&classes, questions)).await?,
        None => ByNetworks {
            predictions: opened.predict(&samples, &classes, questions).await?,
            folds: None,
            chose_the_epoch: opened.was_chosen_by(&samples)?,
            trained_on: opened.trained_on(&data)?,
        },
    };
    let predictions = judged.predictions;
    let identity = opened.pipeline.bundle().clone();
    let other: Option<(Opened, Vec<Prediction<'_>>)> = match &options.compare {
        None => None,
        Some(name) => {
            let other = open_bundle(global, subject, name, |_| {}).await?;
            let target = |opened: &Opened| {
                let bundle = opened.pipeline.bundle();
                bundle.classes.get(bundle.target_class_idx).map(|class| class.label.clone())
            };
            anyhow::ensure!(
                target(&other) == target(&opened),
                "the two bundles are about different classes (`{}` and `{}`): their outputs cannot be compared",
                target(&opened).unwrap_or_default(),
                target(&other).unwrap_or_default()
            );
            let classes = other.classes(subject, &samples)?;
            let questions = Questions { alterations: false, ..questions };
            let predictions = other.predict(&samples, &classes, questions).await?;
            Some((other, predictions))
        }
    };
    let (other_chosen, other_trained_on) = match &other {
        Some((other, _)) => (other.was_chosen_by(&samples)?, other.trained_on(&data)?),
        None => (false, TrainedOn::Others),
    };
    let plan = Plan {
        bundle: identity.clone(),
        list: file_name(&data.list),
        data_sha256: data.sha256.clone(),
        split,
        labels: classes.words(&identity.classes),
        folds: judged.folds,
        chose_the_epoch: judged.chose_the_epoch || other_chosen,
        trained_on: judged.trained_on.max(other_trained_on),
        gates_enforced: subject.enforce_gates,
        prevalences: options.prevalence.clone(),
        resamples: options.resamples as usize,
        seed: options.seed,
        date: today(),
    };
    let compared = other.as_ref().map(|(other, predictions)| (other.pipeline.bundle(), predictions.as_slice()));
    let evaluation = Evaluation::of(&plan, &predictions, compared);
    let out = options.out.clone().unwrap_or_else(|| format!("evaluation-{}", identity.name).into());
    write_report(&out, &evaluation, &predictions, identity.target_class_idx)?;
    print(&summary(&evaluation, &out))?;
    if options.write {
        let whose = if options.whose == "makers" { Whose::Makers } else { Whose::Site };
        let figures = performance(&evaluation, judged.trained_on, whose);
        let edits: Vec<Edit> = figures.into_iter().map(Edit::Performance).collect();
        edit_manifest(opened.bundle.folder(), &edits)?;
        print(&format!(
            "{} figures are in the manifest of `{}`, which has another digest now; `hilum model card` shows them",
            edits.len(),
            opened.bundle.folder().display()
        ))?;
    }
    Ok(())
}

/// What networks said, and which.
struct ByNetworks<'a> {
    predictions: Vec<Prediction<'a>>,
    /// Folds of a cross-validation.
    folds: Option<usize>,
    /// Whether the images chose the epoch of the networks that judged them.
    chose_the_epoch: bool,
    /// Whom they were trained on.
    trained_on: TrainedOn,
}

/// Judges each image by the networks of the fold that was tried on its patient.
async fn in_folds<'a>(
    global: &Global,
    subject: &Subject,
    folder: &Path,
    opened: &Opened,
    samples: &[&'a Sample],
    (classes, questions): (&ClassMap, Questions),
) -> anyhow::Result<ByNetworks<'a>> {
    let folds = RunRecord::read_folds(folder)?;
    // A segmenter is trained, and judged, by masks alone.
    let finds_lungs_only = opened.pipeline.bundle().members.is_empty();
    let samples: Vec<&'a Sample> =
        samples.iter().copied().filter(|sample| !finds_lungs_only || sample.mask.is_some()).collect();
    let of_fold = |record: &RunRecord| -> Vec<&'a Sample> {
        samples.iter().copied().filter(|sample| record.validation_patients.contains(&sample.patient)).collect()
    };
    let known: usize = folds.iter().map(|(_, record)| of_fold(record).len()).sum();
    anyhow::ensure!(
        known == samples.len(),
        "{} of the {} images are of patients that no fold in `{}` was tried on: leave them out, or train the folds with this \
         list",
        samples.len() - known,
        samples.len(),
        folder.display()
    );
    let mut predictions = Vec::with_capacity(samples.len());
    for (fold, (training, record)) in folds.iter().enumerate() {
        let bundle = training.join("bundle");
        anyhow::ensure!(
            bundle.join(MANIFEST_FILE_NAME).is_file(),
            "the training in `{}` is not finished: give its `hilum train` command again",
            training.display()
        );
        let of_this = open_bundle(global, subject, &bundle.display().to_string(), |_| {}).await?;
        anyhow::ensure!(
            recipe(of_this.bundle.manifest()) == recipe(opened.bundle.manifest()),
            "`{}` has other classes, networks, preprocessing, fusion, threshold or calibration than `{}`: it is no fold of the \
             same recipe",
            bundle.display(),
            opened.bundle.folder().display()
        );
        let samples = of_fold(record);
        // Also of images that the list itself calls `train`: folds are made of them.
        let of_networks = record.known_patients();
        let known = samples
            .iter()
            .filter(|sample| [&of_networks, &record.segmenter_patients].iter().any(|of| of.contains(&sample.patient)))
            .count();
        anyhow::ensure!(
            known == 0,
            "networks or lung segmenter of `{}` were trained on patients of {known} of the images that it was tried on: train \
             segmenters and classifiers in the same folds of the same list, with the same seed",
            bundle.display()
        );
        for mut prediction in of_this.predict(&samples, classes, questions).await? {
            if let Ok(scored) = &mut prediction.scored {
                scored.fold = fold;
            }
            predictions.push(prediction);
        }
    }
    let chose_the_epoch = folds.iter().any(|(_, record)| record.chose_the_epoch());
    Ok(ByNetworks { predictions, folds: Some(folds.len()), chose_the_epoch, trained_on: TrainedOn::Others })
}

/// What the folds of a recipe and the bundle that is made with it have in common: everything but weights, words, figures and
/// gates.
fn recipe(manifest: &Manifest) -> Manifest {
    let mut recipe = manifest.clone();
    recipe.status = BundleStatus::Unvalidated;
    for words in
        [&mut recipe.description, &mut recipe.licence, &mut recipe.training_data, &mut recipe.reference_performance]
    {
        words.clear();
    }
    recipe.performance.clear();
    recipe.similar_cases = None;
    if let Input::Image2d { gates, .. } = &mut recipe.input {
        *gates = radiograph_gates();
    }
    let digests = recipe.members.iter_mut().map(|member| &mut member.sha256);
    for digest in digests.chain(recipe.segmenter.iter_mut().map(|segmenter| &mut segmenter.sha256)) {
        *digest = Sha256Digest([0; 32]);
    }
    recipe
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn write_report(
    out: &Path,
    evaluation: &Evaluation,
    predictions: &[Prediction<'_>],
    target_class_idx: usize,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        !out.join("run.json").exists(),
        "`{}` is the folder of a training, whose files would be overwritten: give another one with --out",
        out.display()
    );
    fs_err::create_dir_all(out)?;
    let json = serde_json::to_string_pretty(evaluation)? + "\n";
    replace(&out.join("report.json"), json.as_bytes())?;
    replace(&out.join("report.html"), evaluation.html()?.as_bytes())?;
    let csv = predictions_csv(predictions, &evaluation.classes, target_class_idx)?;
    replace(&out.join("predictions.csv"), &csv)?;
    Ok(())
}

/// The first figures are those within each site.
fn summary(evaluation: &Evaluation, out: &Path) -> String {
    let mut lines = Vec::new();
    lines.extend(evaluation.untrained_notice.map(|_| UNTRAINED_NOTICE.to_owned()));
    lines.push(format!(
        "{}: {} images of {} patients, {} without score",
        evaluation.bundle,
        evaluation.images,
        evaluation.patients,
        evaluation.not_scored.len()
    ));
    lines.extend(evaluation.folds.map(|folds| {
        format!("cross-validation: each image judged by networks of {folds} folds that were not trained on its patient")
    }));
    lines.extend(evaluation.trained_on.map(|trained_on| format!("caution: {trained_on}")));
    lines.extend(evaluation.selection.map(|selection| format!("caution: {selection}")));
    lines.extend(evaluation.cautions.iter().map(|caution| format!("caution: {caution}")));
    let mut table = Table::new(&["IMAGES", "ROC AREA (95 %; PATIENTS)", "SENSITIVITY", "SPECIFICITY"]);
    let groups = evaluation.within_site.iter().map(|group| (format!("within {}", group.value), &group.figures));
    for (name, figures) in groups.chain([("all together".to_owned(), &evaluation.pooled)]) {
        table.row([name, figures.roc_area.text(), figures.sensitivity.text(), figures.specificity.text()]);
    }
    if !evaluation.classes.is_empty() {
        lines.push(table.render("no images").trim_end().to_owned());
    }
    lines.extend(evaluation.sites_of_one_class.iter().cloned());
    if let Some(lungs) = &evaluation.lungs {
        lines.push(format!("lungs: mean Dice {}", lungs.mean_dice.text()));
    }
    if let Some(shortcuts) = &evaluation.shortcuts {
        lines.extend(shortcuts.warnings.iter().map(|warning| format!("shortcut: {warning}")));
    }
    if let Some(paired) = evaluation.comparison.as_ref().and_then(|comparison| comparison.pooled) {
        lines.push(format!(
            "difference of the areas {:.3} ({:.3} to {:.3}), p = {:.4} (DeLong)",
            paired.difference, paired.interval[0], paired.interval[1], paired.p_value
        ));
    }
    lines.push(format!("the whole report is in `{}`", out.join("report.html").display()));
    lines.join("\n")
}

/// The figures for the model card: those within sites first, pooled ones with what makes them doubtful.
fn performance(evaluation: &Evaluation, trained_on: TrainedOn, whose: Whose) -> Vec<Performance> {
    let split = evaluation.split.map_or("all images", Split::name);
    let by = match (evaluation.folds, evaluation.selection) {
        (Some(folds), None) => format!(", cross-validation in {folds} folds by patient"),
        (Some(folds), Some(_)) => format!(", cross-validation in {folds} folds by patient (which chose the epoch)"),
        (None, Some(_)) => " (which chose the epoch)".to_owned(),
        (None, None) => trained_on.of_figures().to_owned(),
    };
    let data =
        format!("{}, {split}{by}, sha256:{}", evaluation.list, evaluation.data_sha256.get(..12).unwrap_or_default());
    let reference = format!("hilum evaluate, {}", evaluation.date);
    let one = |measure: &str, figure: &Figure, data: String| {
        let known = figure.known()?;
        let clamp = |value: f64| value.clamp(0.0, 1.0);
        Some(Performance {
            measure: measure.to_owned(),
            value: clamp(known.value),
            interval: known.interval.map(clamp),
            confidence_percent: 95.0,
            n: known.n as u64,
            data,
            whose,
            reference: format!("{reference}, {}", known.method),
        })
    };
    let mut figures = Vec::new();
    for group in &evaluation.within_site {
        let data = || format!("within {}: {data}", group.value);
        figures.extend(one("roc_auc", &group.figures.roc_area, data()));
        figures.extend(one("sensitivity", &group.figures.sensitivity, data()));
        figures.extend(one("specificity", &group.figures.specificity, data()));
    }
    let pooled = || {
        let doubt = if evaluation.cautions.is_empty() { "" } else { " (confounded, see its report)" };
        format!("pooled{doubt}: {data}")
    };
    for (measure, figure) in [
        ("roc_auc", &evaluation.pooled.roc_area),
        ("sensitivity", &evaluation.pooled.sensitivity),
        ("specificity", &evaluation.pooled.specificity),
        ("brier", &evaluation.calibration.brier),
        ("expected_calibration_error", &evaluation.calibration.expected_calibration_error),
    ] {
        figures.extend(one(measure, figure, pooled()));
    }
    if let Some(lungs) = &evaluation.lungs {
        figures.extend(one("dice", &lungs.mean_dice, format!("lungs: {data}")));
    }
    if let Some(shortcuts) = &evaluation.shortcuts {
        for altered in &shortcuts.altered {
            let (measure, figure) = if altered.leaves_nothing {
                ("roc_auc (0.5 is expected)", &altered.roc_area)
            } else {
                ("mean change of the output", &altered.mean_change)
            };
            figures.extend(one(measure, figure, format!("with {}: {data}", altered.words)));
        }
        figures.extend(one("share of the heat in the lungs", &shortcuts.heat_in_lungs, data.clone()));
        for site in &shortcuts.sites {
            let among = format!("{} by the embeddings, among {}: {data}", site.site, site.among);
            figures.extend(one("roc_auc of the site", &site.roc_area, among));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_between_nothing_and_all() {
        assert!(share("0.05").is_ok());
        for bad in ["0", "1", "5", "x", "NaN"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
