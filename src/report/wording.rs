//! Every sentence of a result, said the same way in the report, the heat map and the terminal.
//!
//! The rules: a score is a "model output", calibrated or not, above or below the operating threshold. It is
//! never a verdict about the patient, and what was not validated makes no decision.

use crate::types::{
    BundleIdentity, BundleStatus, CtClassification, CtLesions, CxrAnalysis, Decision, ExcludedImage, GateResult,
    ImageAnalysis, MemberScore, NotAnalysed, PriorImage, RunOutcome, SimilarCase, SimilarCases, UNTRAINED_NOTICE,
    neighbours_caution,
};

/// What members and ensemble said of an image or of a scan.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    pub(super) members: &'a [MemberScore],
    pub(super) fused: &'a [f64],
    pub(super) member_spread: f64,
    pub(super) decision: Decision,
    pub(super) localised: bool,
}

impl<'a> From<&'a ImageAnalysis> for Scores<'a> {
    fn from(image: &'a ImageAnalysis) -> Self {
        let ImageAnalysis { members, fused, member_spread, decision, localised, .. } = image;
        Self { members, fused, member_spread: *member_spread, decision: *decision, localised: *localised }
    }
}

impl<'a> From<&'a CtClassification> for Scores<'a> {
    fn from(scan: &'a CtClassification) -> Self {
        let CtClassification { members, fused, member_spread, decision, localised, .. } = scan;
        Self { members, fused, member_spread: *member_spread, decision: *decision, localised: *localised }
    }
}

/// Stands on everything.
pub const NOT_FOR_DIAGNOSTIC_USE: &str = "NOT FOR DIAGNOSTIC USE";

fn is_untrained(bundle: &BundleIdentity) -> bool {
    bundle.status == BundleStatus::Untrained
}

/// The notice that a series description ends with: 22 or 44 characters.
fn notice(bundle: &BundleIdentity) -> &'static str {
    if is_untrained(bundle) { UNTRAINED_NOTICE } else { NOT_FOR_DIAGNOSTIC_USE }
}

/// Series Description of the report, at most 64 characters.
pub(super) fn report_series(bundle: &BundleIdentity, analysed: bool) -> String {
    format!("{} - {}", if analysed { "AI result" } else { "AI not analysed" }, notice(bundle))
}

/// Series Description of the heat maps, at most 64 characters.
pub(super) fn heat_map_series(bundle: &BundleIdentity) -> String {
    format!("AI heat map - {}", notice(bundle))
}

/// Series Description of the overlay of a CT, at most 64 characters.
pub(super) fn ct_overlay_series(bundle: &BundleIdentity) -> String {
    format!("AI CT lungs - {}", notice(bundle))
}

/// Image Comments of a heat map.
pub(super) fn heat_map_comment(bundle: &BundleIdentity) -> String {
    with_notice(bundle, format!("AI heat map overlay. {NOT_FOR_DIAGNOSTIC_USE}. {HEAT_MAP_MEANING}"))
}

/// Derivation Description of a heat map.
pub(super) fn heat_map_derivation(bundle: &BundleIdentity, image: &ImageAnalysis) -> String {
    let target = target_label(bundle);
    let words = format!(
        "{NOT_FOR_DIAGNOSTIC_USE}. Class activation heat map for class {target} of {} {} (bundle sha256:{}) blended \
         over the windowed source image. {} {}.",
        bundle.name,
        bundle.version,
        bundle.digest,
        heat_map_method(image),
        localisation(image.into()),
    );
    with_notice(bundle, words)
}

/// The text, behind the notice of an untrained bundle.
pub(super) fn with_notice(bundle: &BundleIdentity, words: String) -> String {
    if is_untrained(bundle) { format!("{UNTRAINED_NOTICE}. {words}") } else { words }
}

/// What a heat map is.
const HEAT_MAP_MEANING: &str = "Shows regions that influenced the score, not lesion outlines.";

/// How the heat map of an image was made.
pub(super) fn heat_map_method(image: &ImageAnalysis) -> String {
    let map = &image.heat_map;
    let mut methods: Vec<&str> = image.member_heat_maps.iter().map(|(_, map)| map.method.as_str()).collect();
    methods.sort_unstable();
    methods.dedup();
    let of_members = if methods.is_empty() { String::new() } else { format!(" ({})", methods.join(", ")) };
    format!(
        "Heat map by {}{of_members}, grid {} x {}, maximum activation {:.4}; shows regions that influenced the score, \
         not lesion outlines.",
        map.method, map.rows, map.columns, map.maximum_activation
    )
}

/// Whether the heat map may be read as an indication.
pub(super) fn localisation(scores: Scores<'_>) -> &'static str {
    if scores.localised {
        "Localised: the output is at or above the operating threshold"
    } else {
        "No localisation: the output is below the operating threshold, the map is not an indication"
    }
}

/// The lines that a report ends with; those about scores only where there are some.
pub(super) fn disclaimer(bundle: &BundleIdentity, outcome: &RunOutcome) -> Vec<String> {
    let mut lines = Vec::new();
    if is_untrained(bundle) {
        lines.push(format!("{UNTRAINED_NOTICE}. The weights are random numbers; the outputs mean nothing."));
    }
    lines.push("Investigational / research use only. Not for diagnostic use. Not cleared or CE-marked.".to_owned());
    lines.push("Software output that no physician has reviewed; not for patient management.".to_owned());
    match outcome {
        RunOutcome::NotAnalysed(_) => return lines,
        RunOutcome::CtMeasured(analysis) => {
            lines.extend(super::ct::disclaimer(analysis));
            if analysis.classification.is_none() {
                lines.push(performance(bundle));
                lines.extend(analysis.lesions.is_some().then(|| NOT_SPECIFIC.to_owned()));
                return lines;
            }
        }
        RunOutcome::Analysed(_) => {}
    }
    lines.push(
        "A score is the model output for the pattern associated with its class in the training data; it does not say \
         how likely the patient has the disease."
            .to_owned(),
    );
    lines.push(performance(bundle));
    lines.push(NOT_SPECIFIC.to_owned());
    lines
        .push("Heat map: shows regions that influenced the score (on the grid named), not lesion outlines.".to_owned());
    lines
}

/// What no output can say.
const NOT_SPECIFIC: &str = "Does not distinguish other viral pneumonia; a result below threshold does not exclude \
                            infection; correlate clinically and with RT-PCR.";

fn performance(bundle: &BundleIdentity) -> String {
    if bundle.networks().next().is_none() {
        let cited = bundle.reference_performance.trim().trim_end_matches('.');
        let cited = if cited.is_empty() { String::new() } else { format!(" {cited}.") };
        return format!("No trained weights are used.{cited} The method is not validated.");
    }
    let reference = if bundle.reference_performance.trim().is_empty() {
        "No performance of a reference publication is cited.".to_owned()
    } else {
        format!("Reference publication: {}.", bundle.reference_performance.trim().trim_end_matches('.'))
    };
    match bundle.status {
        BundleStatus::Validated => reference,
        BundleStatus::Unvalidated | BundleStatus::Untrained => format!("{reference} These weights: not validated."),
    }
}

/// Label of the class that threshold, decision and heat map are about.
pub(super) fn target_label(bundle: &BundleIdentity) -> &str {
    bundle.classes.get(bundle.target_class_idx).map_or("", |class| class.label.as_str())
}

/// `calibrated` or `uncalibrated`.
pub(super) fn calibration(bundle: &BundleIdentity) -> &'static str {
    if bundle.calibration.is_some() { "calibrated" } else { "uncalibrated" }
}

/// A share of 1 as percent with one decimal.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { "no value".to_owned() }
}

/// Where the output of the target class lies.
pub(super) fn against_threshold(bundle: &BundleIdentity, scores: Scores<'_>) -> &'static str {
    let output = scores.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    if output >= bundle.threshold {
        "at or above the operating threshold"
    } else if output < bundle.threshold {
        "below the operating threshold"
    } else {
        "not comparable with the operating threshold"
    }
}

/// How the operating point is to be read.
pub(super) fn operating_point(bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let threshold = percent(bundle.threshold);
    let target = target_label(bundle);
    let zone = grey_zone(bundle).map(|zone| format!(" (grey zone {zone})")).unwrap_or_default();
    format!(
        "Operating threshold {threshold}{zone} on the model output for class {target}; the output is {}. {}",
        against_threshold(bundle, scores),
        decision(bundle, scores),
    )
}

/// The outputs that decide nothing.
fn grey_zone(bundle: &BundleIdentity) -> Option<String> {
    bundle.grey_zone.map(|[low, high]| format!("{} to below {}", percent(low), percent(high)))
}

/// Why a validated bundle left an image undetermined; `None` for decisions and for bundles that never decide.
#[must_use]
pub fn why_undetermined(bundle: &BundleIdentity, image: &ImageAnalysis) -> Option<String> {
    why(bundle, image.into())
}

fn why(bundle: &BundleIdentity, scores: Scores<'_>) -> Option<String> {
    if (bundle.status, scores.decision) != (BundleStatus::Validated, Decision::Undetermined) {
        return None;
    }
    let output = scores.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    let grey = grey_zone(bundle).filter(|_| bundle.is_in_grey_zone(output));
    let failed = scores.members.iter().filter(|member| member.failure.is_some()).count();
    let reasons = [
        grey.map(|zone| format!("the output lies in the grey zone, {zone}")),
        (failed > 0).then(|| format!("{failed} of {} members failed", scores.members.len())),
    ];
    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The decision in a sentence.
fn decision(bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    if let Some(why) = why(bundle, scores) {
        return format!("Decision: undetermined, because {why}.");
    }
    match (bundle.status, scores.decision) {
        (BundleStatus::Validated, Decision::Present) => "Decision at the threshold: present.".to_owned(),
        (BundleStatus::Validated, Decision::Absent) => "Decision at the threshold: absent.".to_owned(),
        (BundleStatus::Validated, Decision::Undetermined) => "Decision: undetermined.".to_owned(),
        (BundleStatus::Unvalidated | BundleStatus::Untrained, _) => withheld(bundle).to_owned(),
    }
}

/// The decision of a rule over lesions in a sentence.
pub(super) fn rule_decision(bundle: &BundleIdentity, lesions: &CtLesions) -> String {
    let failed = lesions.members.iter().filter(|member| member.failure.is_some()).count();
    match (bundle.status, lesions.decision) {
        (BundleStatus::Validated, Decision::Present) => "Decision by the rule: present.".to_owned(),
        (BundleStatus::Validated, Decision::Absent) => "Decision by the rule: absent.".to_owned(),
        (BundleStatus::Validated, Decision::Undetermined) if failed > 0 => {
            format!("Decision: undetermined, because {failed} of {} members failed.", lesions.members.len())
        }
        (BundleStatus::Validated, Decision::Undetermined) => "Decision: undetermined.".to_owned(),
        (BundleStatus::Unvalidated | BundleStatus::Untrained, _) => withheld(bundle).to_owned(),
    }
}

/// Why a bundle that is not validated decides nothing.
fn withheld(bundle: &BundleIdentity) -> &'static str {
    if is_untrained(bundle) {
        "Decision withheld (undetermined): these weights are not trained."
    } else {
        "Decision withheld (undetermined): these weights are not validated."
    }
}

/// The decision that a report may carry: only validated bundles decide, whatever the record says.
pub(super) fn allowed_decision(bundle: &BundleIdentity, decision: Decision) -> Decision {
    if bundle.status == BundleStatus::Validated { decision } else { Decision::Undetermined }
}

/// The outputs of an image in one sentence.
pub(super) fn outputs(bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let scores: Vec<String> = bundle
        .classes
        .iter()
        .zip(scores.fused)
        .map(|(class, output)| format!("{} {}", class.label, percent(*output)))
        .collect();
    format!("Model output ({}): {}.", calibration(bundle), scores.join(", "))
}

/// What the members said about the target class, in one sentence.
pub(super) fn members(bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let of_members: Vec<String> = scores
        .members
        .iter()
        .map(|member| {
            let score = output_of(member, bundle.target_class_idx).map_or_else(|| "failed".to_owned(), percent);
            format!("{} {score}", member.name)
        })
        .collect();
    format!(
        "Members for class {}: {}; largest minus smallest {}.",
        target_label(bundle),
        of_members.join(", "),
        percent(scores.member_spread)
    )
}

/// Output of a member for a class; `None` when the member failed.
pub(super) fn output_of(member: &MemberScore, class_idx: usize) -> Option<f64> {
    if member.failure.is_some() { None } else { member.probabilities.get(class_idx).copied() }
}

/// Why a member has no output.
pub(super) fn member_failure(member: &MemberScore) -> String {
    let words = member.failure.as_deref().unwrap_or("it gave no output for this class");
    format!("Member {} failed: {words}", member.name)
}

/// The heat in each lung, in one sentence.
pub(super) fn lung_fractions(image: &ImageAnalysis) -> String {
    let fraction = |share: Option<f64>| share.map_or_else(|| "no value".to_owned(), percent);
    format!(
        "Heat map at half its maximum or more: {} of the right lung field, {} of the left.",
        fraction(image.right_lung_heat_fraction),
        fraction(image.left_lung_heat_fraction)
    )
}

/// One input check.
pub(super) fn gate(gate: &GateResult) -> String {
    let verdict = match (gate.passed, gate.enforced) {
        (true, true) => "passed",
        (true, false) => "passed, reported only",
        (false, true) => "failed, enforced",
        (false, false) => "failed, reported only",
    };
    let reason = if gate.passed { String::new() } else { format!(" ({})", gate.reason.id()) };
    format!("{}: {verdict}{reason}; {}", gate.id, gate.words)
}

/// Why an image was left out.
pub(super) fn excluded(image: &ExcludedImage) -> String {
    format!("not analysed: {} ({})", sentence(&image.words), image.reason.id())
}

/// Name of image number `idx` (from 0) of an analysis: the analysed images come first, then the excluded ones.
pub(super) fn image_name(idx: usize) -> String {
    format!("Image {}", idx + 1)
}

/// The conclusion of a run without scores.
pub(super) fn not_analysed(bundle: &BundleIdentity, not_analysed: &NotAnalysed) -> String {
    let words =
        format!("AI did not analyse this study: {} ({}).", sentence(&not_analysed.words), not_analysed.reason.id());
    with_notice(bundle, words)
}

/// The conclusion of an analysis: every number in sentences.
pub(super) fn conclusion(bundle: &BundleIdentity, analysis: &CxrAnalysis) -> String {
    let mut parts = vec!["AI:".to_owned()];
    for (image, name) in analysis.images.iter().zip(image_names(analysis)) {
        if let Some(name) = name {
            parts.push(format!("{name}:"));
        }
        parts.push(outputs(bundle, image.into()));
        parts.push(operating_point(bundle, image.into()));
        parts.push(members(bundle, image.into()));
        parts.push(lung_fractions(image));
        parts.push(format!("{}.", localisation(image.into())));
    }
    if !analysis.excluded.is_empty() {
        parts.push(format!("Images not analysed: {}.", analysis.excluded.len()));
    }
    with_notice(bundle, parts.join(" "))
}

/// `Image n` for each analysed image, nothing when there is only one.
pub(super) fn image_names(analysis: &CxrAnalysis) -> impl Iterator<Item = Option<String>> {
    let several = analysis.images.len() > 1;
    (0..analysis.images.len()).map(move |idx| several.then(|| image_name(idx)))
}

/// (failed, all) member runs of an analysis.
pub(super) fn failed_members(analysis: &CxrAnalysis) -> (usize, usize) {
    let members = || analysis.images.iter().flat_map(|image| &image.members);
    (members().filter(|member| member.failure.is_some() || member.probabilities.is_empty()).count(), members().count())
}

/// What the search for similar cases saw, and what its answers do not say.
pub(super) fn similar_cases(status: BundleStatus, similar: &SimilarCases) -> String {
    let library = similar.library.as_ref().map_or_else(
        || "No reference library was searched".to_owned(),
        |library| format!("Reference library of {} cases, sha256:{}", library.n_cases, library.sha256),
    );
    let found = match &similar.reason {
        Some(reason) => format!("no similar case: {}", sentence(reason)),
        None => format!("the {} nearest of other patients are named", similar.cases.len()),
    };
    let priors = format!("{} image(s) of earlier studies of this patient", similar.priors.len());
    format!("{library}; {found}; {priors}; embedding {}. {}", similar.method, neighbours_caution(status))
}

/// One line about a case of another patient.
pub(super) fn similar_case(status: BundleStatus, case: &SimilarCase) -> String {
    format!(
        "Reference library case {} of another patient: label {}, cohort {}, distance {:.4}. {}",
        case.case_id,
        case.label,
        case.cohort,
        case.distance,
        neighbours_caution(status)
    )
}

/// One line about an earlier image of the same patient.
pub(super) fn prior_image(status: BundleStatus, prior: &PriorImage) -> String {
    let date = prior.study_date.as_deref().map_or_else(|| "unknown date".to_owned(), written_date);
    format!(
        "Same patient, study of {date} (Study Instance UID {}), distance {:.4}. {}",
        prior.study_instance_uid,
        prior.distance,
        neighbours_caution(status)
    )
}

/// `20260102` as `2026-01-02`; anything else as it is.
fn written_date(date: &str) -> String {
    match (date.get(..4), date.get(4..6), date.get(6..8), date.len()) {
        (Some(year), Some(month), Some(day), 8) => format!("{year}-{month}-{day}"),
        _ => date.to_owned(),
    }
}

/// The settings that determine the outputs, one Algorithm Parameters item each.
pub(super) fn parameters(record: &crate::types::RunRecord, software_version: &str) -> Vec<String> {
    let bundle = &record.bundle;
    let mut parameters = vec![format!("status={}", status(bundle.status)), format!("bundle=sha256:{}", bundle.digest)];
    if !bundle.classes.is_empty() {
        parameters.push(format!(
            "members={};fusion={};calibration={}",
            bundle.members.len(),
            bundle.fusion,
            bundle.calibration.as_deref().unwrap_or("none")
        ));
        let zone = bundle.grey_zone.map(|[low, high]| format!(";grey_zone={low:.4} to {high:.4}")).unwrap_or_default();
        parameters.push(match bundle.pixel_threshold {
            Some(of_pixel) => format!("target={};decision=by rule;pixel_threshold={of_pixel:.4}", target_label(bundle)),
            None => format!("target={};threshold={:.4}{zone}", target_label(bundle), bundle.threshold),
        });
    }
    parameters.push(bundle.segmenter.as_ref().map_or_else(
        || "segmenter=none".to_owned(),
        |network| {
            format!(
                "segmenter={} {} ({});weights=sha256:{}",
                network.name, network.version, network.architecture, network.weights_sha256
            )
        },
    ));
    if let RunOutcome::CtMeasured(analysis) = &record.outcome {
        parameters.extend(super::ct::parameters(analysis));
    }
    if !record.computed_with.is_empty() {
        parameters.push(format!("computed_with={}", record.computed_with.join("; ")));
    }
    parameters.push(format!("configuration=sha256:{}", record.configuration_sha256));
    parameters.push(format!("hilum={software_version};run={};revision={}", record.run_id, record.revision));
    parameters
}

/// A bundle's status as manifests write it.
pub(super) const fn status(status: BundleStatus) -> &'static str {
    match status {
        BundleStatus::Untrained => "untrained",
        BundleStatus::Unvalidated => "unvalidated",
        BundleStatus::Validated => "validated",
    }
}

/// Without a full stop, to be continued.
fn sentence(words: &str) -> &str {
    words.trim().trim_end_matches('.')
}
