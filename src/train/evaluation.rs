//! From predictions to figures: what an evaluation says.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    alter::Alteration,
    check::confounding,
    folds::patient_folds,
    groups::{Group, group_of},
    predict::{Prediction, Scored},
    sample::{Sample, Split},
    statistics::{
        Confusion, CurvePoint, Estimate, Paired, PrecisionRecall, Reliability, Roc, Undefined, bootstrap, brier,
        delong, delong_paired, negative_log_likelihood, out_of_fold_scores, predictive_values, products,
    },
};
use crate::{
    imaging::heat::ENOUGH_IN_LUNGS,
    types::{BundleIdentity, BundleStatus, UNTRAINED_NOTICE, wilson_interval},
};

/// Change of the output that a hidden corner may make (`models.md`, shortcut tests).
const SMALL_CHANGE: f64 = 0.05;
/// How far from 0.5 an area may be to be taken for that of a guess.
const GUESS: f64 = 0.1;
/// Of figures on the images that a training validated on.
const CHOSE_THE_EPOCH: &str = "these images chose the epoch of weights that judged them, so that the figures flatter; with \
                               `optimisation.monitor = \"none\"` they choose nothing";
/// Images that the classifier of sites looks at, at most: its cost grows with their third power.
const MOST_OF_SITES: usize = 2000;
/// Folds of the classifier of sites.
const SITE_FOLDS: usize = 5;
/// Bars of the histogram of outputs.
const BARS: usize = 20;

/// A figure, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Figure {
    /// With interval and n.
    Known(Estimate),
    /// In words.
    Unknown {
        /// Why not.
        not_computed: String,
    },
}

impl From<Result<Estimate, Undefined>> for Figure {
    fn from(found: Result<Estimate, Undefined>) -> Self {
        match found {
            Ok(estimate) => Self::Known(estimate),
            Err(undefined) => Self::Unknown { not_computed: undefined.to_string() },
        }
    }
}

impl Figure {
    /// The estimate, if there is one.
    #[must_use]
    pub const fn known(&self) -> Option<&Estimate> {
        match self {
            Self::Known(estimate) => Some(estimate),
            Self::Unknown { .. } => None,
        }
    }

    /// `0.905 (0.853 to 0.940; n = 179)`, or the reason.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Known(Estimate { value, interval: [low, high], n, .. }) => {
                format!("{value:.3} ({low:.3} to {high:.3}; n = {n})")
            }
            Self::Unknown { not_computed } => format!("not computed: {not_computed}"),
        }
    }
}

/// What is known of whom a bundle was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrainedOn {
    /// Other patients than those of the images, or nobody.
    Others,
    /// Nothing.
    Unknown,
    /// The very list that is looked at.
    ThisList,
}

impl TrainedOn {
    /// What that means for figures; `None` where it means nothing.
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Others => None,
            Self::Unknown => Some(
                "whom the bundle was trained on is not known here, as it does not lie in the folder of its training: if \
                 patients of these images were among them, the figures flatter",
            ),
            Self::ThisList => Some(
                "the bundle was trained on this very list: figures on it say nothing of others; `--cross-validated` judges \
                 each image by networks that do not know its patient",
            ),
        }
    }

    /// The same in the few words of a figure's source.
    #[must_use]
    pub const fn of_figures(self) -> &'static str {
        match self {
            Self::Others => "",
            Self::Unknown => " (whether it was trained on them is not known)",
            Self::ThisList => " (which it was trained on)",
        }
    }
}

/// What is evaluated, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The bundle.
    pub bundle: BundleIdentity,
    /// Name of the list's file.
    pub list: String,
    /// SHA-256 of list and files.
    pub data_sha256: String,
    /// The split that was looked at; `None` for all images.
    pub split: Option<Split>,
    /// What labels were taken for, in words.
    pub labels: Vec<String>,
    /// Folds of a cross-validation; `None` when the bundle itself judged.
    pub folds: Option<usize>,
    /// Whether the images chose the epoch of the weights that judged them.
    pub chose_the_epoch: bool,
    /// What is known of whom the weights that judged them were trained on.
    pub trained_on: TrainedOn,
    /// Whether gates stopped images.
    pub gates_enforced: bool,
    /// Prevalences that predictive values are given for.
    pub prevalences: Vec<f64>,
    /// Resamples of every bootstrap.
    pub resamples: usize,
    /// Of resamples and folds.
    pub seed: u64,
    /// Today, as YYYY-MM-DD.
    pub date: String,
}

/// Everything that an evaluation says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Of every figure here.
    pub notice: &'static str,
    /// [`UNTRAINED_NOTICE`] for an untrained bundle.
    pub untrained_notice: Option<&'static str>,
    /// Name and version.
    pub bundle: String,
    /// `untrained`, `unvalidated` or `validated`.
    pub status: BundleStatus,
    /// SHA-256 over manifest and weights.
    pub bundle_sha256: String,
    /// Label of the class that figures are about.
    pub target_class: String,
    /// Labels of all classes.
    pub classes: Vec<String>,
    /// Output from which an image is positive.
    pub threshold: f64,
    /// Identifier of the calibration; `None` when outputs are as the networks give them.
    pub calibration_id: Option<String>,
    /// Name of the list's file.
    pub list: String,
    /// SHA-256 of list and files.
    pub data_sha256: String,
    /// The split that was looked at.
    pub split: Option<Split>,
    /// What labels were taken for.
    pub labels: Vec<String>,
    /// Folds of a cross-validation, in which each image was judged by networks that were not trained on its patient; `None`
    /// when the bundle itself judged.
    pub folds: Option<usize>,
    /// What was chosen by these very images, in words; `None` when nothing was.
    pub selection: Option<&'static str>,
    /// Why figures flatter, or may, because of whom the bundle was trained on; `None` when on others.
    pub trained_on: Option<&'static str>,
    /// Day of the evaluation.
    pub date: String,
    /// Of resamples and folds.
    pub seed: u64,
    /// Resamples of every bootstrap.
    pub resamples: usize,
    /// Images that were looked at.
    pub images: usize,
    /// Their patients.
    pub patients: usize,
    /// Images without a score, with the reason.
    pub not_scored: Vec<NotScored>,
    /// Whether gates stopped images.
    pub gates_enforced: bool,
    /// How many images failed each gate, of those that reached the gates.
    pub failed_gates: Vec<(String, usize)>,
    /// What makes figures over all images say little, in words.
    pub cautions: Vec<String>,
    /// The first figures: within each site that has both classes.
    pub within_site: Vec<GroupFigures>,
    /// Sites that have one class only, in words.
    pub sites_of_one_class: Vec<String>,
    /// Over all images.
    pub pooled: Figures,
    /// By view, sex and age (and site, also those of one class).
    pub groups: Vec<GroupTable>,
    /// Whether outputs mean what they say.
    pub calibration: CalibrationFigures,
    /// Over all images; `None` when a class is missing.
    pub roc: Option<Roc>,
    /// Over all images; `None` when a class is missing.
    pub precision_recall: Option<PrecisionRecall>,
    /// Images in each twentieth of the outputs, without and with the target class.
    pub histogram: Vec<[usize; 2]>,
    /// Agreement of the segmented lungs with masks; `None` where the list has none.
    pub lungs: Option<LungFigures>,
    /// What the classifier looks at; `None` when not asked for.
    pub shortcuts: Option<Shortcuts>,
    /// Beside another bundle, on the images that both scored.
    pub comparison: Option<Comparison>,
}

/// An image without a score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotScored {
    /// Its file.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// The figures of some images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Scored images.
    pub images: usize,
    /// Their patients.
    pub patients: usize,
    /// With the target class.
    pub positives: usize,
    /// Area under the ROC curve, interval by resampling patients.
    pub roc_area: Figure,
    /// The same with DeLong's interval, which takes images for independent.
    pub roc_area_delong: Figure,
    /// Average precision, interval by resampling patients.
    pub average_precision: Figure,
    /// At the bundle's threshold, intervals by Wilson, which take images for independent.
    pub confusion: Confusion,
    /// Share decided rightly.
    pub accuracy: Figure,
    /// Share of positives found.
    pub sensitivity: Figure,
    /// Share of negatives found.
    pub specificity: Figure,
    /// At the prevalence of these images.
    pub ppv: Figure,
    /// At the prevalence of these images.
    pub npv: Figure,
    /// At other prevalences.
    pub at_prevalences: Vec<AtPrevalence>,
}

/// Predictive values where so many have the target class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AtPrevalence {
    /// 0 to 1.
    pub prevalence: f64,
    /// Of positive images.
    pub ppv: Figure,
    /// Of negative images.
    pub npv: Figure,
}

/// The figures of one group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupFigures {
    /// Its value of the column.
    pub value: String,
    /// Of its images.
    pub figures: Figures,
}

/// The figures by one column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupTable {
    /// `site`, `view`, `sex`, `age`.
    pub column: &'static str,
    /// For each of its values.
    pub groups: Vec<GroupFigures>,
}

/// Whether outputs mean what they say; intervals by resampling patients.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrationFigures {
    /// Mean squared distance from the truth.
    pub brier: Figure,
    /// Expected calibration error, 15 bins.
    pub expected_calibration_error: Figure,
    /// Mean negative log-likelihood of the true class.
    pub negative_log_likelihood: Figure,
    /// Bins; `None` without images.
    pub reliability: Option<Reliability>,
}

/// Agreement with masks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LungFigures {
    /// Mean over the images, interval by resampling patients.
    pub mean_dice: Figure,
    /// Least, median and largest.
    pub spread: [f64; 3],
    /// The mean of each group: column, value, figure.
    pub groups: Vec<(&'static str, String, Figure)>,
}

/// What the classifier looks at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shortcuts {
    /// One for each altered picture.
    pub altered: Vec<Altered>,
    /// Mean share of the heat that lies in the lungs.
    pub heat_in_lungs: Figure,
    /// Share of the images with less than half of it there.
    pub little_heat_in_lungs: Figure,
    /// How well a linear classifier tells sites by the embeddings.
    pub sites: Vec<SiteArea>,
    /// Why there is no such classifier.
    pub sites_not_computed: Option<String>,
    /// What is not as it should be, in words.
    pub warnings: Vec<String>,
}

/// What became of the output when a picture was altered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Altered {
    /// Of the alteration.
    pub name: &'static str,
    /// For people.
    pub words: &'static str,
    /// Whether nothing is left that could tell the classes apart, so that an area of 0.5 is expected.
    pub leaves_nothing: bool,
    /// Area under the ROC curve with the altered pictures.
    pub roc_area: Figure,
    /// Mean magnitude of the change of the output.
    pub mean_change: Figure,
    /// Share of the images whose output changes by more than 0.05.
    pub large_changes: Figure,
}

/// How well one site is told from the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteArea {
    /// The site.
    pub site: String,
    /// Among all images, or those of one label.
    pub among: String,
    /// Area under the ROC curve, on patients that the classifier was not fitted on.
    pub roc_area: Figure,
}

/// Two bundles on the same images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Name and version of the other bundle.
    pub other: String,
    /// Its digest.
    pub other_sha256: String,
    /// Images that both scored.
    pub images: usize,
    /// DeLong's test over all images; `None` with the reason in `not_computed`.
    pub pooled: Option<Paired>,
    /// Why there is none.
    pub not_computed: Option<String>,
    /// The same within each site that has both classes.
    pub within_site: Vec<(String, Paired)>,
    /// Figures of the other bundle over all images, at its own threshold.
    pub other_figures: Figures,
}

/// Scores and truths of some images.
struct Judged<'a> {
    of: Vec<(&'a Sample, usize, &'a Scored)>,
    scores: Vec<f64>,
    truths: Vec<bool>,
}

impl<'a> Judged<'a> {
    fn of(of: Vec<(&'a Sample, usize, &'a Scored)>, target: usize) -> Self {
        let output = |scored: &Scored| scored.outputs.get(target).copied().unwrap_or(0.0);
        let scores = of.iter().map(|(_, _, scored)| output(scored)).collect();
        let truths = of.iter().map(|(_, class_idx, _)| *class_idx == target).collect();
        Self { of, scores, truths }
    }

    fn patients(&self) -> Vec<&'a str> {
        self.of.iter().map(|(sample, _, _)| sample.patient.as_str()).collect()
    }

    fn n_patients(&self) -> usize {
        self.patients().into_iter().collect::<BTreeSet<_>>().len()
    }

    /// Patients with an image of the target class, or with one of the others.
    fn n_patients_of(&self, is_target: bool) -> usize {
        let of_class = self.patients().into_iter().zip(&self.truths).filter(|(_, truth)| **truth == is_target);
        of_class.map(|(patient, _)| patient).collect::<BTreeSet<_>>().len()
    }

    /// Those whose sample satisfies this.
    fn only(&self, target: usize, wanted: impl Fn(&Sample) -> bool) -> Self {
        Self::of(self.of.iter().copied().filter(|(sample, _, _)| wanted(sample)).collect(), target)
    }
}

/// Scored images whose label means a class.
fn scores_of<'a>(predictions: &'a [Prediction<'a>], target: usize) -> Judged<'a> {
    let known = |of: &'a Prediction<'a>| Some((of.sample, of.class_idx?, of.scored.as_ref().ok()?));
    Judged::of(predictions.iter().filter_map(known).collect(), target)
}

impl Evaluation {
    /// Computes everything. `other` is another bundle with its predictions of the same samples, in the same order.
    #[must_use]
    pub fn of(
        plan: &Plan,
        predictions: &[Prediction<'_>],
        other: Option<(&BundleIdentity, &[Prediction<'_>])>,
    ) -> Self {
        let bundle = &plan.bundle;
        let target = bundle.target_class_idx;
        let scores = scores_of(predictions, target);
        let classes: Vec<String> = bundle.classes.iter().map(|class| class.label.clone()).collect();
        // What gives the target class away, whatever labels stand for it and for the rest.
        let as_told_apart = |(sample, class_idx, _): &(&Sample, usize, &Scored)| Sample {
            label: Some(if *class_idx == target { "target class" } else { "rest" }.to_owned()),
            ..(*sample).clone()
        };
        let samples: Vec<Sample> = scores.of.iter().map(as_told_apart).collect();
        let untrained = bundle.status == BundleStatus::Untrained;
        let (within_site, sites_of_one_class) = within_sites(plan, &scores);
        let groups = Group::ALL.into_iter().map(|group| group_table(plan, &scores, group)).collect();
        let mut failed: BTreeMap<String, usize> = BTreeMap::new();
        for gate in predictions.iter().flat_map(|of| &of.failed_gates) {
            *failed.entry(gate.clone()).or_default() += 1;
        }
        let cautions = Group::ALL.into_iter().filter_map(|group| confounding(&samples, group)).collect();
        let mut histogram = vec![[0, 0]; BARS];
        for (score, truth) in scores.scores.iter().zip(&scores.truths) {
            let bar = ((score * BARS as f64) as usize).min(BARS - 1);
            if let Some(count) = histogram.get_mut(bar).and_then(|bar| bar.get_mut(usize::from(*truth))) {
                *count += 1;
            }
        }
        Self {
            notice: "Research use only. These figures are about these images and not about clinical performance.",
            untrained_notice: untrained.then_some(UNTRAINED_NOTICE),
            bundle: format!("{} {}", bundle.name, bundle.version),
            status: bundle.status,
            bundle_sha256: bundle.digest.to_string(),
            target_class: classes.get(target).cloned().unwrap_or_default(),
            classes,
            threshold: bundle.threshold,
            calibration_id: bundle.calibration.clone(),
            list: plan.list.clone(),
            data_sha256: plan.data_sha256.clone(),
            split: plan.split,
            labels: plan.labels.clone(),
            folds: plan.folds,
            selection: plan.chose_the_epoch.then_some(CHOSE_THE_EPOCH),
            trained_on: plan.trained_on.words(),
            date: plan.date.clone(),
            seed: plan.seed,
            resamples: plan.resamples,
            images: predictions.len(),
            patients: predictions.iter().map(|of| of.sample.patient.as_str()).collect::<BTreeSet<_>>().len(),
            not_scored: predictions
                .iter()
                .filter_map(|of| {
                    let reason = of.scored.as_ref().err()?.clone();
                    Some(NotScored { file: of.sample.file.display().to_string(), reason })
                })
                .collect(),
            gates_enforced: plan.gates_enforced,
            failed_gates: failed.into_iter().collect(),
            cautions,
            within_site,
            sites_of_one_class,
            pooled: figures(plan, &scores, bundle.threshold),
            groups,
            calibration: calibration(plan, &scores),
            roc: Roc::of(&scores.scores, &scores.truths).ok(),
            precision_recall: PrecisionRecall::of(&scores.scores, &scores.truths).ok(),
            histogram,
            lungs: lungs(plan, predictions),
            shortcuts: shortcuts(plan, &scores),
            comparison: other.map(|(identity, others)| compare(plan, predictions, identity, others)),
        }
    }

    /// The areas of both curves as points, for those who draw them.
    #[must_use]
    pub fn roc_points(&self) -> &[CurvePoint] {
        self.roc.as_ref().map_or(&[], |roc| &roc.points)
    }
}

/// A figure of the images with its interval by resampling patients.
fn resampled(
    plan: &Plan,
    scores: &Judged<'_>,
    figure: impl Fn(&[usize]) -> Result<f64, Undefined>,
) -> Result<Estimate, Undefined> {
    let all: Vec<usize> = (0..scores.scores.len()).collect();
    let value = figure(&all)?;
    let found = bootstrap(&scores.patients(), plan.resamples, plan.seed, |images| figure(images).ok())?;
    let interval = [found.interval[0].min(value), found.interval[1].max(value)];
    Ok(Estimate { value, interval, n: found.patients, method: "bootstrap by patient" })
}

/// The picked scores and truths.
fn picked(scores: &[f64], truths: &[bool], images: &[usize]) -> (Vec<f64>, Vec<bool>) {
    images.iter().filter_map(|idx| Some((*scores.get(*idx)?, *truths.get(*idx)?))).unzip()
}

/// The area under the ROC curve, with its interval by resampling patients.
///
/// Where too many resamples lack a class, the interval is DeLong's. Where no resample differs, which is no certainty: the share of
/// the rarer class' patients that is ordered rightly against all of the other (or against none) bounds the area, and has
/// Wilson's interval.
fn roc_area(plan: &Plan, scores: &Judged<'_>, values: &[f64]) -> Result<Estimate, Undefined> {
    let area = Roc::of(values, &scores.truths)?.area;
    let resampled = resampled(plan, scores, |images| {
        let (scores, truths) = picked(values, &scores.truths, images);
        Ok(Roc::of(&scores, &truths)?.area)
    });
    let rarer = scores.n_patients_of(true).min(scores.n_patients_of(false));
    let bounded = match area {
        area if area > 1.0 - 1e-12 => Some(wilson_interval(rarer, rarer)),
        area if area < 1e-12 => Some(wilson_interval(0, rarer)),
        _ => None,
    };
    match (resampled, bounded) {
        (_, Some(interval)) => Ok(Estimate {
            value: area,
            interval,
            n: scores.n_patients(),
            method: "Wilson over the patients of the rarer class",
        }),
        (Ok(estimate), None) => Ok(estimate),
        (Err(undefined), None) => match delong(values, &scores.truths) {
            Ok(found) => Ok(Estimate {
                value: found.area,
                interval: found.interval,
                n: scores.n_patients(),
                method: "DeLong, as too many resamples lack a class",
            }),
            Err(_) => Err(undefined),
        },
    }
}

fn figures(plan: &Plan, scores: &Judged<'_>, threshold: f64) -> Figures {
    let Judged { scores: values, truths, .. } = scores;
    let confusion = Confusion::at(threshold, values, truths);
    let (sensitivity, specificity) = (confusion.sensitivity(), confusion.specificity());
    let at = |prevalence: f64| {
        let (ppv, npv) = match (&sensitivity, &specificity) {
            (Ok(sensitivity), Ok(specificity)) => predictive_values(sensitivity, specificity, prevalence),
            _ => (None, None),
        };
        let or_why =
            |found: Option<Estimate>| found.ok_or_else(|| Undefined("a class or a decision is missing".to_owned()));
        AtPrevalence { prevalence, ppv: or_why(ppv).into(), npv: or_why(npv).into() }
    };
    let at_prevalences = plan.prevalences.iter().map(|prevalence| at(*prevalence)).collect();
    let by_delong = delong(values, truths).map(|found| Estimate {
        value: found.area,
        interval: found.interval,
        n: values.len(),
        method: "DeLong",
    });
    let average_precision = resampled(plan, scores, |images| {
        let (values, truths) = picked(values, truths, images);
        Ok(PrecisionRecall::of(&values, &truths)?.average_precision)
    });
    Figures {
        images: values.len(),
        patients: scores.n_patients(),
        positives: truths.iter().filter(|truth| **truth).count(),
        roc_area: roc_area(plan, scores, values).into(),
        roc_area_delong: by_delong.into(),
        average_precision: average_precision.into(),
        confusion,
        accuracy: confusion.accuracy().into(),
        sensitivity: sensitivity.into(),
        specificity: specificity.into(),
        ppv: confusion.ppv().into(),
        npv: confusion.npv().into(),
        at_prevalences,
    }
}

/// The sites that have both classes, each for itself, and the others in words.
fn within_sites(plan: &Plan, scores: &Judged<'_>) -> (Vec<GroupFigures>, Vec<String>) {
    let (mut within, mut of_one_class) = (Vec::new(), Vec::new());
    for (value, of_group) in by_group(plan, scores, Group::Site) {
        let positives = of_group.truths.iter().filter(|truth| **truth).count();
        let negatives = of_group.truths.len() - positives;
        if positives == 0 || negatives == 0 {
            let which = if positives == 0 { "without" } else { "with" };
            of_one_class
                .push(format!("site `{value}` has {} image(s), all {which} the target class", of_group.truths.len()));
        } else {
            within.push(GroupFigures { figures: figures(plan, &of_group, plan.bundle.threshold), value });
        }
    }
    (within, of_one_class)
}

fn by_group<'a>(plan: &Plan, scores: &Judged<'a>, group: Group) -> Vec<(String, Judged<'a>)> {
    let values: BTreeSet<String> = scores.of.iter().filter_map(|(sample, _, _)| group_of(sample, group)).collect();
    let target = plan.bundle.target_class_idx;
    let only = |value: &String| scores.only(target, |sample| group_of(sample, group).as_ref() == Some(value));
    values.into_iter().map(|value| (value.clone(), only(&value))).collect()
}

fn group_table(plan: &Plan, scores: &Judged<'_>, group: Group) -> GroupTable {
    let groups = by_group(plan, scores, group)
        .into_iter()
        .map(|(value, of_group)| GroupFigures { figures: figures(plan, &of_group, plan.bundle.threshold), value })
        .collect();
    GroupTable { column: group.name(), groups }
}

fn calibration(plan: &Plan, scores: &Judged<'_>) -> CalibrationFigures {
    let Judged { scores: values, truths, of } = scores;
    let of_scores = |figure: fn(&[f64], &[bool]) -> Result<f64, Undefined>| {
        resampled(plan, scores, |images| {
            let (values, truths) = picked(values, truths, images);
            figure(&values, &truths)
        })
    };
    let expected = |values: &[f64], truths: &[bool]| Ok(Reliability::of(values, truths)?.expected_calibration_error);
    let likelihood = resampled(plan, scores, |images| {
        let picked = images.iter().filter_map(|idx| of.get(*idx));
        let (outputs, classes): (Vec<&[f64]>, Vec<usize>) =
            picked.map(|(_, class_idx, scored)| (scored.outputs.as_slice(), *class_idx)).unzip();
        negative_log_likelihood(&outputs, &classes)
    });
    CalibrationFigures {
        brier: of_scores(brier).into(),
        expected_calibration_error: of_scores(expected).into(),
        negative_log_likelihood: likelihood.into(),
        reliability: Reliability::of(values, truths).ok(),
    }
}

/// Of all images with a mask, whatever their label.
fn lungs(plan: &Plan, predictions: &[Prediction<'_>]) -> Option<LungFigures> {
    let with_mask: Vec<(&Sample, f64)> =
        predictions.iter().filter_map(|of| Some((of.sample, of.scored.as_ref().ok()?.dice?))).collect();
    let mean_of = |wanted: &dyn Fn(&Sample) -> bool| -> Figure {
        let wanted = with_mask.iter().filter(|(sample, _)| wanted(sample));
        let (patients, values): (Vec<&str>, Vec<f64>) =
            wanted.map(|(sample, dice)| (sample.patient.as_str(), *dice)).unzip();
        mean(plan, &patients, &values).into()
    };
    let mut sorted: Vec<f64> = with_mask.iter().map(|(_, dice)| *dice).collect();
    sorted.sort_by(f64::total_cmp);
    let (least, largest) = (*sorted.first()?, *sorted.last()?);
    let median = f64::midpoint(*sorted.get((sorted.len() - 1) / 2)?, *sorted.get(sorted.len() / 2)?);
    let mut groups = Vec::new();
    for group in Group::ALL {
        let values: BTreeSet<String> = with_mask.iter().filter_map(|(sample, _)| group_of(sample, group)).collect();
        for value in values {
            let figure = mean_of(&|sample| group_of(sample, group).as_ref() == Some(&value));
            groups.push((group.name(), value, figure));
        }
    }
    Some(LungFigures { mean_dice: mean_of(&|_| true), spread: [least, median, largest], groups })
}

/// A mean over images, interval by resampling patients.
fn mean(plan: &Plan, patients: &[&str], values: &[f64]) -> Result<Estimate, Undefined> {
    let of = |images: &[usize]| {
        let sum: f64 = images.iter().filter_map(|idx| values.get(*idx)).sum();
        (!images.is_empty()).then(|| sum / images.len() as f64)
    };
    let all: Vec<usize> = (0..values.len()).collect();
    let value = of(&all).ok_or_else(|| Undefined("there are no images".to_owned()))?;
    let found = bootstrap(patients, plan.resamples, plan.seed, of)?;
    Ok(Estimate { value, interval: found.interval, n: values.len(), method: "bootstrap by patient" })
}

fn share(count: usize, n: usize) -> Result<Estimate, Undefined> {
    if n == 0 {
        return Err(Undefined("there are no images".to_owned()));
    }
    Ok(Estimate { value: count as f64 / n as f64, interval: wilson_interval(count, n), n, method: "Wilson" })
}

/// Whether an area is far from 0.5, on either side, and its interval leaves that out.
fn is_no_guess(area: &Estimate) -> bool {
    let [low, high] = area.interval;
    (area.value - 0.5).abs() > GUESS && !(low..=high).contains(&0.5)
}

fn shortcuts(plan: &Plan, scores: &Judged<'_>) -> Option<Shortcuts> {
    if scores.of.is_empty() || scores.of.iter().any(|(_, _, scored)| scored.altered.is_empty()) {
        return None;
    }
    let mut warnings = Vec::new();
    let mut altered = Vec::new();
    for (idx, alteration) in Alteration::ALL.into_iter().enumerate() {
        let outputs: Vec<f64> =
            scores.of.iter().map(|(_, _, scored)| scored.altered.get(idx).copied().unwrap_or(0.0)).collect();
        let changes: Vec<f64> =
            outputs.iter().zip(&scores.scores).map(|(after, before)| (after - before).abs()).collect();
        let large = changes.iter().filter(|change| **change > SMALL_CHANGE).count();
        let found = Altered {
            name: alteration.name(),
            words: alteration.words(),
            leaves_nothing: alteration.leaves_nothing(),
            roc_area: roc_area(plan, scores, &outputs).into(),
            mean_change: mean(plan, &scores.patients(), &changes).into(),
            large_changes: share(large, changes.len()).into(),
        };
        if let Some(area) = found.roc_area.known().filter(|area| alteration.leaves_nothing() && is_no_guess(area)) {
            warnings.push(format!(
                "with {} the classes are still told apart with an area of {:.3}, where 0.5 is expected: the classifier reads \
                 something other than the lungs",
                alteration.words(),
                area.value
            ));
        }
        if let Some(change) =
            found.mean_change.known().filter(|change| !alteration.leaves_nothing() && change.value > SMALL_CHANGE)
        {
            warnings.push(format!(
                "with {} the output changes by {:.3} on average, more than {SMALL_CHANGE}: the classifier depends on it",
                alteration.words(),
                change.value
            ));
        }
        altered.push(found);
    }
    let heats: Vec<(&str, f64)> = scores
        .of
        .iter()
        .filter_map(|(sample, _, scored)| Some((sample.patient.as_str(), scored.heat_in_lungs?)))
        .collect();
    let (patients, heats): (Vec<&str>, Vec<f64>) = heats.into_iter().unzip();
    let heat_in_lungs = mean(plan, &patients, &heats);
    if let Ok(heat) = &heat_in_lungs
        && heat.value < ENOUGH_IN_LUNGS
    {
        warnings.push(format!(
            "{:.0} % of the heat lies in the lungs, less than {:.0} %: the maps point elsewhere",
            heat.value * 100.0,
            ENOUGH_IN_LUNGS * 100.0
        ));
    }
    let little = heats.iter().filter(|heat| **heat < ENOUGH_IN_LUNGS).count();
    let (sites, sites_not_computed) = match site_areas(plan, scores) {
        Ok(sites) => (sites, None),
        Err(undefined) => (Vec::new(), Some(undefined.to_string())),
    };
    for site in &sites {
        if let Some(area) = site.roc_area.known().filter(|area| is_no_guess(area)) {
            warnings.push(format!(
                "among {} the embeddings tell site `{}` from the others with an area of {:.3}: where label and site go together, \
                 the classifier can use the site",
                site.among, site.site, area.value
            ));
        }
    }
    Some(Shortcuts {
        altered,
        heat_in_lungs: heat_in_lungs.into(),
        little_heat_in_lungs: share(little, heats.len()).into(),
        sites,
        sites_not_computed,
        warnings,
    })
}

/// Each site against the others, among all images and among those of each label.
fn site_areas(plan: &Plan, scores: &Judged<'_>) -> Result<Vec<SiteArea>, Undefined> {
    let target = plan.bundle.target_class_idx;
    let mut of_sites = scores.only(target, |sample| sample.site.is_some());
    if of_sites.of.len() > MOST_OF_SITES {
        let every = |idx: usize| idx * of_sites.of.len() / MOST_OF_SITES;
        let some = (0..MOST_OF_SITES).filter_map(|idx| of_sites.of.get(every(idx)).copied()).collect();
        of_sites = Judged::of(some, target);
    }
    let labels: BTreeSet<&str> = of_sites.of.iter().filter_map(|(sample, _, _)| sample.label.as_deref()).collect();
    let sites = |of: &Judged<'_>| -> BTreeSet<String> {
        of.of.iter().filter_map(|(sample, _, _)| sample.site.clone()).collect()
    };
    if sites(&of_sites).len() < 2 {
        return Err(Undefined("the images are of fewer than two sites".to_owned()));
    }
    let mut areas = site_areas_among(plan, &of_sites, "all images", &sites(&of_sites));
    for label in labels {
        let of_label = of_sites.only(target, |sample| sample.label.as_deref() == Some(label));
        let sites = sites(&of_label);
        if sites.len() >= 2 {
            areas.extend(site_areas_among(plan, &of_label, &format!("images labelled `{label}`"), &sites));
        }
    }
    Ok(areas)
}

/// Scalar products of the embeddings of some images.
type Products = Result<Vec<Vec<f64>>, Undefined>;

fn site_areas_among(plan: &Plan, of: &Judged<'_>, among: &str, sites: &BTreeSet<String>) -> Vec<SiteArea> {
    // Of two sites, one against the other says it all.
    let named = if sites.len() == 2 { 1 } else { sites.len() };
    let target = plan.bundle.target_class_idx;
    let folds: BTreeSet<usize> = of.of.iter().map(|(_, _, scored)| scored.fold).collect();
    let of_folds: Vec<(Judged<'_>, Products)> = folds
        .into_iter()
        .map(|fold| {
            let of_fold = Judged::of(of.of.iter().copied().filter(|(_, _, by)| by.fold == fold).collect(), target);
            let embeddings: Option<Vec<&[f32]>> =
                of_fold.of.iter().map(|(_, _, scored)| scored.embedding.as_deref()).collect();
            let products = embeddings
                .ok_or_else(|| Undefined("some images have no embedding".to_owned()))
                .and_then(|embeddings| products(&embeddings));
            (of_fold, products)
        })
        .collect();
    sites
        .iter()
        .take(named)
        .map(|site| {
            let (roc_area, n_used) = site_area(plan, &of_folds, site);
            let of_all = match (plan.folds, n_used) {
                (Some(folds), used) if used > 0 && used < folds => {
                    format!(" (in {used} of {folds} folds, the others have too few of a site)")
                }
                _ => String::new(),
            };
            SiteArea { site: site.clone(), among: format!("{among}{of_all}"), roc_area: roc_area.into() }
        })
        .collect()
}

/// One site against the others, by a classifier for each fold's networks: embeddings of different networks are not compared.
/// Says of how many folds: one with too few patients of the site or of the others says nothing.
fn site_area(plan: &Plan, of_folds: &[(Judged<'_>, Products)], site: &str) -> (Result<Estimate, Undefined>, usize) {
    let mut together = Judged { of: Vec::new(), scores: Vec::new(), truths: Vec::new() };
    let mut n_used = 0;
    let mut why_not = Undefined("there are no images".to_owned());
    for (of_fold, products) in of_folds {
        let is_site = |sample: &Sample| sample.site.as_deref() == Some(site);
        let truths: Vec<bool> = of_fold.of.iter().map(|(sample, _, _)| is_site(sample)).collect();
        // Folds by site: each is fitted on some of both.
        let labelled: Vec<Sample> = of_fold
            .of
            .iter()
            .map(|(sample, _, _)| Sample { label: Some(is_site(sample).to_string()), ..(*sample).clone() })
            .collect();
        let labelled: Vec<&Sample> = labelled.iter().collect();
        let scores = products.as_ref().map_err(Undefined::clone).and_then(|products| {
            let parts =
                patient_folds(&labelled, SITE_FOLDS, plan.seed).map_err(|error| Undefined(error.to_string()))?;
            out_of_fold_scores(products, &truths, &parts)
        });
        match scores {
            Ok(scores) => {
                n_used += 1;
                together.scores.extend(scores);
                together.of.extend(&of_fold.of);
                together.truths.extend(truths);
            }
            Err(undefined) => why_not = undefined,
        }
    }
    if n_used == 0 {
        return (Err(why_not), 0);
    }
    (roc_area(plan, &together, &together.scores), n_used)
}

fn compare(
    plan: &Plan,
    predictions: &[Prediction<'_>],
    other: &BundleIdentity,
    others: &[Prediction<'_>],
) -> Comparison {
    let (target, other_target) = (plan.bundle.target_class_idx, other.target_class_idx);
    let both: Vec<(&Sample, usize, &Scored, &Scored)> = predictions
        .iter()
        .zip(others)
        .filter_map(|(own, other)| {
            Some((own.sample, own.class_idx?, own.scored.as_ref().ok()?, other.scored.as_ref().ok()?))
        })
        .collect();
    let own = Judged::of(both.iter().map(|(sample, class_idx, own, _)| (*sample, *class_idx, *own)).collect(), target);
    let mut theirs = Judged::of(
        both.iter().map(|(sample, class_idx, _, other)| (*sample, *class_idx, *other)).collect(),
        other_target,
    );
    // The same truth for both, also where the classes stand in another order.
    theirs.truths.clone_from(&own.truths);
    let tested = |wanted: &dyn Fn(&Sample) -> bool| {
        let kept: Vec<usize> =
            both.iter().enumerate().filter(|(_, (sample, ..))| wanted(sample)).map(|(idx, _)| idx).collect();
        let (first, truths) = picked(&own.scores, &own.truths, &kept);
        let (second, _) = picked(&theirs.scores, &own.truths, &kept);
        delong_paired(&first, &second, &truths)
    };
    let (pooled, not_computed) = match tested(&|_| true) {
        Ok(paired) => (Some(paired), None),
        Err(undefined) => (None, Some(undefined.to_string())),
    };
    let sites: BTreeSet<&str> = both.iter().filter_map(|(sample, ..)| sample.site.as_deref()).collect();
    let within_site = sites
        .into_iter()
        .filter_map(|site| Some((site.to_owned(), tested(&|sample| sample.site.as_deref() == Some(site)).ok()?)))
        .collect();
    Comparison {
        other: format!("{} {}", other.name, other.version),
        other_sha256: other.digest.to_string(),
        images: both.len(),
        pooled,
        not_computed,
        within_site,
        other_figures: figures(plan, &theirs, other.threshold),
    }
}
