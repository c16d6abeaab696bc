//! What a run found, in the words that results may use: a score is a "model output", calibrated or not, above or
//! below the operating threshold, and never a verdict about the patient.

use std::fmt;

use serde::Serialize;

use crate::{
    db::status::RunFindings,
    report,
    types::{
        BundleIdentity, BundleStatus, Decision, ExcludedImage, GateResult, ImageAnalysis, RunOutcome, SimilarCases,
        neighbours_caution,
    },
};

/// A share of 1: a number in JSON, percent in pages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Share(pub(super) f64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_finite() { write!(f, "{:.1} %", self.0 * 100.0) } else { f.write_str("no value") }
    }
}

/// What a run found.
#[derive(Debug, Serialize)]
pub(super) struct FindingsView {
    pub(super) bundle_name: String,
    pub(super) bundle_version: String,
    pub(super) bundle_status: BundleStatus,
    /// SHA-256 over manifest and weights.
    pub(super) bundle_digest: String,
    /// Each network with devices and precision.
    pub(super) computed_with: Vec<String>,
    pub(super) calibrated: bool,
    pub(super) fusion: String,
    pub(super) target_class: String,
    pub(super) threshold: Share,
    pub(super) not_analysed: Option<ReasonView>,
    /// What was measured in a CT, line by line; empty for radiographs.
    pub(super) measurements: Vec<String>,
    /// Checks of a measured CT.
    pub(super) measurement_gates: Vec<GateView>,
    /// Whether networks outlined lesions in the CT.
    pub(super) has_lesions: bool,
    pub(super) images: Vec<ImageView>,
    pub(super) excluded: Vec<ReasonView>,
}

/// Why something was not analysed.
#[derive(Debug, Serialize)]
pub(super) struct ReasonView {
    /// Such as `input.view.not_frontal`.
    pub(super) reason: &'static str,
    pub(super) words: String,
    /// The images that it is about.
    pub(super) sop_instance_uids: Vec<String>,
}

/// What was found on one image.
#[derive(Debug, Serialize)]
pub(super) struct ImageView {
    pub(super) sop_instance_uid: String,
    pub(super) modality: String,
    /// Names of the members, in the order of every row's `members`.
    pub(super) member_names: Vec<String>,
    pub(super) outputs: Vec<OutputView>,
    /// Why members have no output.
    pub(super) member_failures: Vec<String>,
    /// Largest minus smallest member output for the target class.
    pub(super) member_spread: Share,
    pub(super) operating_point: String,
    pub(super) decision: String,
    pub(super) localisation: &'static str,
    pub(super) heat_map: String,
    pub(super) right_lung_heat_fraction: Option<Share>,
    pub(super) left_lung_heat_fraction: Option<Share>,
    /// Of the heat; `None` without heat and in runs of versions that did not measure it.
    pub(super) lung_heat_fraction: Option<Share>,
    /// Where that is little.
    pub(super) heat_caution: Option<String>,
    pub(super) gates: Vec<GateView>,
    /// `None` in runs of versions that did not search.
    pub(super) similar_cases: Option<SimilarView>,
}

/// The outputs for one class.
#[derive(Debug, Serialize)]
pub(super) struct OutputView {
    pub(super) class: String,
    pub(super) ensemble: Option<Share>,
    pub(super) members: Vec<Option<Share>>,
}

/// What the search for similar cases gave.
#[derive(Debug, Serialize)]
pub(super) struct SimilarView {
    #[serde(flatten)]
    pub(super) found: SimilarCases,
    /// What the distances do not say.
    pub(super) caution: &'static str,
    /// For the page.
    #[serde(skip)]
    pub(super) rows: Vec<NeighbourRow>,
}

/// A similar case, or an earlier image of the patient, on the page.
#[derive(Debug)]
pub(super) struct NeighbourRow {
    pub(super) name: String,
    pub(super) distance: String,
    pub(super) label: String,
    pub(super) cohort: String,
}

impl SimilarView {
    fn new(status: BundleStatus, found: &SimilarCases) -> Self {
        let cases = found.cases.iter().map(|case| NeighbourRow {
            name: case.case_id.clone(),
            distance: format!("{:.4}", case.distance),
            label: case.label.clone(),
            cohort: case.cohort.clone(),
        });
        let priors = found.priors.iter().map(|prior| NeighbourRow {
            name: format!("same patient, study {}", prior.study_instance_uid),
            distance: format!("{:.4}", prior.distance),
            label: prior.study_date.clone().unwrap_or_else(|| "no date".to_owned()),
            cohort: "this node".to_owned(),
        });
        Self { rows: cases.chain(priors).collect(), found: found.clone(), caution: neighbours_caution(status) }
    }

    /// Which library was searched.
    pub(super) fn library_words(&self) -> String {
        self.found.library.as_ref().map_or_else(
            || "no reference library was searched".to_owned(),
            |library| format!("reference library of {} cases, sha256:{}", library.n_cases, library.sha256),
        )
    }
}

/// One check of the input.
#[derive(Debug, Serialize)]
pub(super) struct GateView {
    pub(super) id: String,
    pub(super) passed: bool,
    pub(super) enforced: bool,
    /// When it failed.
    pub(super) reason: Option<&'static str>,
    pub(super) words: String,
}

impl From<&RunFindings> for FindingsView {
    fn from(findings: &RunFindings) -> Self {
        let bundle = &findings.bundle;
        let (not_analysed, images, excluded) = match &findings.outcome {
            RunOutcome::Analysed(analysis) => (
                None,
                analysis.images.iter().map(|image| ImageView::new(bundle, image)).collect(),
                analysis.excluded.iter().map(ReasonView::from).collect(),
            ),
            RunOutcome::CtMeasured(analysis) => {
                (None, Vec::new(), analysis.excluded.iter().map(ReasonView::from).collect())
            }
            RunOutcome::NotAnalysed(outcome) => {
                let uids = outcome.sources.iter().map(|source| source.sop_instance_uid.to_string()).collect();
                let reason =
                    ReasonView { reason: outcome.reason.id(), words: outcome.words.clone(), sop_instance_uids: uids };
                (Some(reason), Vec::new(), Vec::new())
            }
        };
        let (measurements, measurement_gates) = match &findings.outcome {
            RunOutcome::CtMeasured(analysis) => {
                (report::ct_measurement_lines(bundle, analysis), analysis.gates.iter().map(GateView::from).collect())
            }
            RunOutcome::Analysed(_) | RunOutcome::NotAnalysed(_) => (Vec::new(), Vec::new()),
        };
        let has_lesions = matches!(&findings.outcome, RunOutcome::CtMeasured(analysis) if analysis.lesions.is_some());
        Self {
            bundle_name: bundle.name.clone(),
            bundle_version: bundle.version.clone(),
            bundle_status: bundle.status,
            bundle_digest: bundle.digest.to_string(),
            computed_with: findings.computed_with.clone(),
            calibrated: bundle.calibration.is_some(),
            fusion: bundle.fusion.clone(),
            target_class: target_class(bundle).to_owned(),
            threshold: Share(bundle.threshold),
            not_analysed,
            measurements,
            measurement_gates,
            has_lesions,
            images,
            excluded,
        }
    }
}

impl FindingsView {
    pub(super) fn status_words(&self) -> &'static str {
        match self.bundle_status {
            BundleStatus::Untrained => "untrained",
            BundleStatus::Unvalidated => "unvalidated",
            BundleStatus::Validated => "validated",
        }
    }

    pub(super) fn calibration_words(&self) -> &'static str {
        if self.calibrated { "calibrated" } else { "uncalibrated" }
    }
}

impl From<&ExcludedImage> for ReasonView {
    fn from(excluded: &ExcludedImage) -> Self {
        Self {
            reason: excluded.reason.id(),
            words: excluded.words.clone(),
            sop_instance_uids: vec![excluded.source.sop_instance_uid.to_string()],
        }
    }
}

impl ImageView {
    fn new(bundle: &BundleIdentity, image: &ImageAnalysis) -> Self {
        let member_output = |member: &crate::types::MemberScore, class_idx: usize| {
            if member.failure.is_some() { None } else { member.probabilities.get(class_idx).copied().map(Share) }
        };
        let outputs = bundle.classes.iter().enumerate().map(|(class_idx, class)| OutputView {
            class: class.label.clone(),
            ensemble: image.fused.get(class_idx).copied().map(Share),
            members: image.members.iter().map(|member| member_output(member, class_idx)).collect(),
        });
        let failures = image.members.iter().filter_map(|member| {
            member.failure.as_ref().map(|failure| format!("Member {} failed: {failure}", member.name))
        });
        let map = &image.heat_map;
        let has_map = !report::is_without_map(image);
        Self {
            sop_instance_uid: image.source.sop_instance_uid.to_string(),
            modality: image.source.modality.clone(),
            member_names: image.members.iter().map(|member| member.name.clone()).collect(),
            outputs: outputs.collect(),
            member_failures: failures.collect(),
            member_spread: Share(image.member_spread),
            operating_point: operating_point(bundle, image),
            decision: decision(bundle, image),
            localisation: if !has_map {
                "no localisation"
            } else if image.localised {
                "the heat map shows what the output comes from"
            } else {
                "no localisation: the output is below the operating threshold, the heat map is not an indication"
            },
            heat_map: if has_map {
                format!(
                    "{} on a grid of {} x {}, maximum activation {:.4}; it shows regions that influenced the score, not \
                     lesion outlines",
                    map.method, map.rows, map.columns, map.maximum_activation
                )
            } else {
                "there is none, the networks that answered give no map".to_owned()
            },
            right_lung_heat_fraction: image.right_lung_heat_fraction.filter(|_| has_map).map(Share),
            left_lung_heat_fraction: image.left_lung_heat_fraction.filter(|_| has_map).map(Share),
            lung_heat_fraction: image.lung_heat_fraction.map(Share),
            heat_caution: report::heat_elsewhere(image),
            gates: image.gates.iter().map(GateView::from).collect(),
            similar_cases: image.similar_cases.as_ref().map(|found| SimilarView::new(bundle.status, found)),
        }
    }

    /// The heat in each lung.
    pub(super) fn lung_words(&self) -> String {
        let words = |share: Option<Share>| share.map_or_else(|| "no value".to_owned(), |share| share.to_string());
        format!(
            "{} of the right lung field, {} of the left",
            words(self.right_lung_heat_fraction),
            words(self.left_lung_heat_fraction)
        )
    }
}

impl From<&GateResult> for GateView {
    fn from(gate: &GateResult) -> Self {
        Self {
            id: gate.id.clone(),
            passed: gate.passed,
            enforced: gate.enforced,
            reason: (!gate.passed).then(|| gate.reason.id()),
            words: gate.words.clone(),
        }
    }
}

impl GateView {
    pub(super) fn tone(&self) -> &'static str {
        if self.passed { "good" } else { "warn" }
    }

    pub(super) fn verdict(&self) -> &'static str {
        match (self.passed, self.enforced) {
            (true, true) => "passed",
            (true, false) => "passed, reported only",
            (false, true) => "failed, enforced",
            (false, false) => "failed, reported only",
        }
    }
}

fn target_class(bundle: &BundleIdentity) -> &str {
    bundle.classes.get(bundle.target_class_idx).map_or("", |class| class.label.as_str())
}

fn operating_point(bundle: &BundleIdentity, image: &ImageAnalysis) -> String {
    let output = image.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    let relation = if output >= bundle.threshold {
        "at or above"
    } else if output < bundle.threshold {
        "below"
    } else {
        "not comparable with"
    };
    let zone = bundle
        .grey_zone
        .map(|[low, high]| format!("; outputs from {} to below {} decide nothing", Share(low), Share(high)));
    format!(
        "the model output for class {} is {relation} the operating threshold of {}{}",
        target_class(bundle),
        Share(bundle.threshold),
        zone.unwrap_or_default()
    )
}

/// Only validated bundles decide, whatever the record says.
fn decision(bundle: &BundleIdentity, image: &ImageAnalysis) -> String {
    if let Some(why) = report::why_undetermined(bundle, image) {
        return format!("undetermined: {why}");
    }
    let words = match (bundle.status, image.decision) {
        (BundleStatus::Validated, Decision::Present) => "present, at the operating threshold",
        (BundleStatus::Validated, Decision::Absent) => "absent, at the operating threshold",
        (BundleStatus::Validated, Decision::Undetermined) => "undetermined",
        (BundleStatus::Unvalidated, _) => "withheld (undetermined): these weights are not validated",
        (BundleStatus::Untrained, _) => "withheld (undetermined): these weights are not trained",
    };
    words.to_owned()
}
