//! Every sentence of a result, said the same way in the report, the heat map and the terminal.
//!
//! The rules: a score is a "model output", calibrated or not, above or below the operating threshold. It is
//! never a verdict about the patient, and what was not validated makes no decision. The sentences themselves are
//! messages in `texts/`; this module chooses them and formats their numbers.

use super::texts::{Argument, Texts};
use crate::{
    imaging::heat::ENOUGH_IN_LUNGS,
    types::{
        BundleIdentity, BundleStatus, CtClassification, CtLesions, CxrAnalysis, Decision, ExcludedImage, GateResult,
        ImageAnalysis, MemberScore, NotAnalysed, PriorImage, ReasonCode, RunOutcome, SimilarCase, SimilarCases,
        UNTRAINED_NOTICE,
    },
};

/// What members and ensemble said of an image or of a scan.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    pub(super) members: &'a [MemberScore],
    pub(super) fused: &'a [f64],
    pub(super) member_spread: f64,
    pub(super) decision: Decision,
    pub(super) localised: bool,
    pub(super) without_maps: bool,
}

impl<'a> From<&'a ImageAnalysis> for Scores<'a> {
    fn from(image: &'a ImageAnalysis) -> Self {
        let ImageAnalysis { members, fused, member_spread, decision, localised, .. } = image;
        let without_maps = is_without_map(image);
        Self { members, fused, member_spread: *member_spread, decision: *decision, localised: *localised, without_maps }
    }
}

impl<'a> From<&'a CtClassification> for Scores<'a> {
    fn from(scan: &'a CtClassification) -> Self {
        let CtClassification { members, fused, member_spread, decision, localised, without_maps, .. } = scan;
        let (localised, without_maps) = (*localised, *without_maps);
        Self { members, fused, member_spread: *member_spread, decision: *decision, localised, without_maps }
    }
}

/// Stands on everything.
pub const NOT_FOR_DIAGNOSTIC_USE: &str = "NOT FOR DIAGNOSTIC USE";

fn is_untrained(bundle: &BundleIdentity) -> bool {
    bundle.status == BundleStatus::Untrained
}

/// The notice that a series description ends with: 22 or 44 characters in English.
pub(super) fn notice(texts: Texts<'_>, bundle: &BundleIdentity) -> String {
    texts.say(if is_untrained(bundle) { "untrained-notice" } else { "not-for-diagnostic-use" }, &[])
}

/// Series Description of a report, at most 64 characters. `is_text` is the one of sentences beside that with measurements.
pub(super) fn report_series(texts: Texts<'_>, bundle: &BundleIdentity, analysed: bool, is_text: bool) -> String {
    let message = match (analysed, is_text) {
        (true, false) => "report-series",
        (true, true) => "report-series-text",
        (false, _) => "report-series-not-analysed",
    };
    texts.say(message, &[("notice", notice(texts, bundle).into())])
}

/// Series Description of the heat maps, at most 64 characters.
pub(super) fn heat_map_series(bundle: &BundleIdentity) -> String {
    format!("AI heat map - {}", notice(Texts::english(), bundle))
}

/// Series Description of the overlay of a CT, at most 64 characters.
pub(super) fn ct_overlay_series(bundle: &BundleIdentity) -> String {
    format!("AI CT lungs - {}", notice(Texts::english(), bundle))
}

/// Series Description of the slices of a CT, at most 64 characters.
pub(super) fn ct_slices_series(bundle: &BundleIdentity) -> String {
    format!("AI CT slices - {}", notice(Texts::english(), bundle))
}

/// Image Comments of a heat map.
pub(super) fn heat_map_comment(bundle: &BundleIdentity, image: &ImageAnalysis) -> String {
    if is_without_map(image) {
        return with_notice(bundle, format!("AI overlay without a heat map. {NOT_FOR_DIAGNOSTIC_USE}"));
    }
    with_notice(bundle, format!("AI heat map overlay. {NOT_FOR_DIAGNOSTIC_USE}. {HEAT_MAP_MEANING}"))
}

/// Derivation Description of a heat map.
pub(super) fn heat_map_derivation(bundle: &BundleIdentity, image: &ImageAnalysis) -> String {
    let target = target_label(bundle);
    let english = Texts::english();
    let what = if is_without_map(image) {
        ("Output", "written around")
    } else {
        ("Class activation heat map", "blended over")
    };
    let words = format!(
        "{NOT_FOR_DIAGNOSTIC_USE}. {} for class {target} of {} {} (bundle sha256:{}) {} the windowed source image. {} {}.",
        what.0,
        bundle.name,
        bundle.version,
        bundle.digest,
        what.1,
        heat_map_method(english, image),
        localisation(english, image.into()),
    );
    with_notice(bundle, words)
}

/// The English text, behind the notice of an untrained bundle.
pub(super) fn with_notice(bundle: &BundleIdentity, words: String) -> String {
    if is_untrained(bundle) { format!("{UNTRAINED_NOTICE}. {words}") } else { words }
}

/// The text, behind the notice of an untrained bundle.
pub(super) fn behind_notice(texts: Texts<'_>, bundle: &BundleIdentity, words: String) -> String {
    if !is_untrained(bundle) {
        return words;
    }
    texts.say("notice-first", &[("notice", notice(texts, bundle).into()), ("words", words.into())])
}

/// What a heat map is.
const HEAT_MAP_MEANING: &str = "Shows regions that influenced the score, not lesion outlines.";

/// Sentences one after the other.
pub(super) fn sentences(texts: Texts<'_>, parts: &[String]) -> String {
    parts.join(&texts.say("join-sentences", &[]))
}

/// Members of a list.
pub(super) fn list(texts: Texts<'_>, parts: &[String]) -> String {
    parts.join(&texts.say("join-list", &[]))
}

/// Parts of a sentence.
pub(super) fn clauses(texts: Texts<'_>, parts: &[String]) -> String {
    parts.join(&texts.say("join-clauses", &[]))
}

/// Words that end a sentence.
pub(super) fn full_stop(texts: Texts<'_>, words: &str) -> String {
    texts.say("full-stop", &[("words", words.into())])
}

/// Whether no network that answered gave a map of the image.
#[must_use]
pub fn is_without_map(image: &ImageAnalysis) -> bool {
    image.member_heat_maps.is_empty()
}

/// How the heat map of an image was made.
pub(super) fn heat_map_method(texts: Texts<'_>, image: &ImageAnalysis) -> String {
    if is_without_map(image) {
        return texts.say("heat-map-none", &[]);
    }
    let map = &image.heat_map;
    let mut methods: Vec<&str> = image.member_heat_maps.iter().map(|(_, map)| map.method.as_str()).collect();
    methods.sort_unstable();
    methods.dedup();
    let of_members = if methods.is_empty() { String::new() } else { format!(" ({})", methods.join(", ")) };
    texts.say(
        "heat-map-method",
        &[
            ("method", format!("{}{of_members}", map.method).into()),
            ("rows", map.rows.into()),
            ("columns", map.columns.into()),
            ("maximum", format!("{:.4}", map.maximum_activation).into()),
        ],
    )
}

/// Whether the heat map may be read as an indication.
pub(super) fn localisation(texts: Texts<'_>, scores: Scores<'_>) -> String {
    let message = match (scores.without_maps, scores.localised) {
        (true, _) => "not-localised-without-map",
        (false, true) => "localised",
        (false, false) => "not-localised",
    };
    texts.say(message, &[])
}

/// The lines that a report ends with; those about scores only where there are some.
pub(super) fn disclaimer(texts: Texts<'_>, bundle: &BundleIdentity, outcome: &RunOutcome) -> Vec<String> {
    let say = |id: &str| texts.say(id, &[]);
    let mut lines = Vec::new();
    if is_untrained(bundle) {
        lines.push(texts.say("disclaimer-untrained", &[("notice", notice(texts, bundle).into())]));
    }
    lines.extend([say("disclaimer-research"), say("disclaimer-unreviewed")]);
    match outcome {
        RunOutcome::NotAnalysed(_) => return lines,
        RunOutcome::CtMeasured(analysis) => {
            lines.extend(super::ct_words::disclaimer(texts, analysis));
            if analysis.classification.is_none() {
                lines.push(performance(texts, bundle));
                lines.extend(analysis.lesions.is_some().then(|| say("disclaimer-not-specific")));
                return lines;
            }
        }
        RunOutcome::Analysed(_) => {}
    }
    lines.push(say("disclaimer-score"));
    lines.push(performance(texts, bundle));
    lines.extend([say("disclaimer-not-specific"), say("disclaimer-heat-map")]);
    lines
}

fn performance(texts: Texts<'_>, bundle: &BundleIdentity) -> String {
    let cited = sentence(&bundle.reference_performance);
    let say = |cited_as: &str, not_cited: &str| match cited {
        "" => texts.say(not_cited, &[]),
        cited => texts.say(cited_as, &[("cited", cited.into())]),
    };
    if bundle.networks().next().is_none() {
        return say("performance-no-weights-cited", "performance-no-weights");
    }
    let performance = say("performance-cited", "performance-none");
    match bundle.status {
        BundleStatus::Validated => performance,
        BundleStatus::Unvalidated | BundleStatus::Untrained => {
            texts.say("performance-not-validated", &[("performance", performance.into())])
        }
    }
}

/// Label of the class that threshold, decision and heat map are about.
pub(super) fn target_label(bundle: &BundleIdentity) -> &str {
    bundle.classes.get(bundle.target_class_idx).map_or("", |class| class.label.as_str())
}

/// `calibrated` or `uncalibrated`.
pub(super) fn calibration(texts: Texts<'_>, bundle: &BundleIdentity) -> String {
    texts.say(if bundle.calibration.is_some() { "calibrated" } else { "uncalibrated" }, &[])
}

/// A share of 1 as percent with one decimal, in English where there is none.
pub(super) fn percent(share: f64) -> String {
    percent_or_none(Texts::english(), Some(share))
}

/// A share of 1 as percent with one decimal.
pub(super) fn percent_or_none(texts: Texts<'_>, share: Option<f64>) -> String {
    match share {
        Some(share) if share.is_finite() => format!("{:.1} %", share * 100.0),
        _ => texts.say("no-value", &[]),
    }
}

/// Where the output of the target class lies.
pub(super) fn against_threshold(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let output = scores.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    let message = if output >= bundle.threshold {
        "at-or-above-threshold"
    } else if output < bundle.threshold {
        "below-threshold"
    } else {
        "not-comparable-with-threshold"
    };
    texts.say(message, &[])
}

/// How the operating point is to be read.
pub(super) fn operating_point(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let mut arguments: Vec<Argument<'_>> = vec![
        ("threshold", percent_or_none(texts, Some(bundle.threshold)).into()),
        ("class", target_label(bundle).into()),
        ("where", against_threshold(texts, bundle, scores).into()),
        ("decision", decision(texts, bundle, scores).into()),
    ];
    let zone = grey_zone(texts, bundle);
    let message = if zone.is_some() { "operating-point-grey" } else { "operating-point" };
    arguments.extend(zone.map(|zone| ("zone", zone.into())));
    texts.say(message, &arguments)
}

/// The outputs that decide nothing.
pub(super) fn grey_zone(texts: Texts<'_>, bundle: &BundleIdentity) -> Option<String> {
    let [low, high] = bundle.grey_zone?.map(|share| percent_or_none(texts, Some(share)));
    Some(texts.say("grey-zone", &[("low", low.into()), ("high", high.into())]))
}

/// Why a validated bundle left an image undetermined, in English; `None` for decisions and for bundles that never decide.
#[must_use]
pub fn why_undetermined(bundle: &BundleIdentity, image: &ImageAnalysis) -> Option<String> {
    why(Texts::english(), bundle, image.into())
}

fn why(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> Option<String> {
    if (bundle.status, scores.decision) != (BundleStatus::Validated, Decision::Undetermined) {
        return None;
    }
    let output = scores.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    let grey = grey_zone(texts, bundle).filter(|_| bundle.is_in_grey_zone(output));
    let failed = scores.members.iter().filter(|member| member.failure.is_some()).count();
    let reasons = [
        grey.map(|zone| texts.say("why-grey-zone", &[("zone", zone.into())])),
        (failed > 0).then(|| members_failed(texts, failed, scores.members.len())),
        MemberScore::say_nothing(scores.members).then(|| texts.say("why-nothing-said", &[])),
    ];
    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| clauses(texts, &reasons))
}

fn members_failed(texts: Texts<'_>, failed: usize, all: usize) -> String {
    texts.say("why-members-failed", &[("failed", failed.into()), ("all", all.into())])
}

fn undetermined_because(texts: Texts<'_>, why: String) -> String {
    texts.say("decision-undetermined-because", &[("why", why.into())])
}

/// The decision in a sentence.
fn decision(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    if let Some(why) = why(texts, bundle, scores) {
        return undetermined_because(texts, why);
    }
    let message = match (bundle.status, scores.decision) {
        (BundleStatus::Validated, Decision::Present) => "decision-present",
        (BundleStatus::Validated, Decision::Absent) => "decision-absent",
        (BundleStatus::Validated, Decision::Undetermined) => "decision-undetermined",
        (BundleStatus::Unvalidated | BundleStatus::Untrained, _) => withheld(bundle),
    };
    texts.say(message, &[])
}

/// The decision of a rule over lesions in a sentence.
pub(super) fn rule_decision(texts: Texts<'_>, bundle: &BundleIdentity, lesions: &CtLesions) -> String {
    let failed = lesions.members.iter().filter(|member| member.failure.is_some()).count();
    let message = match (bundle.status, lesions.decision) {
        (BundleStatus::Validated, Decision::Present) => "rule-decision-present",
        (BundleStatus::Validated, Decision::Absent) => "rule-decision-absent",
        (BundleStatus::Validated, Decision::Undetermined) if failed > 0 => {
            return undetermined_because(texts, members_failed(texts, failed, lesions.members.len()));
        }
        (BundleStatus::Validated, Decision::Undetermined) => "decision-undetermined",
        (BundleStatus::Unvalidated | BundleStatus::Untrained, _) => withheld(bundle),
    };
    texts.say(message, &[])
}

/// Why a bundle that is not validated decides nothing: the message that says it.
fn withheld(bundle: &BundleIdentity) -> &'static str {
    if is_untrained(bundle) { "withheld-untrained" } else { "withheld-unvalidated" }
}

/// The decision that a report may carry: only validated bundles decide, whatever the record says.
pub(super) fn allowed_decision(bundle: &BundleIdentity, decision: Decision) -> Decision {
    if bundle.status == BundleStatus::Validated { decision } else { Decision::Undetermined }
}

/// The outputs of an image in one sentence.
pub(super) fn outputs(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let outputs: Vec<String> = bundle
        .classes
        .iter()
        .zip(scores.fused)
        .map(|(class, output)| {
            let output = percent_or_none(texts, Some(*output));
            texts.say("class-output", &[("class", class.label.as_str().into()), ("output", output.into())])
        })
        .collect();
    texts.say(
        "outputs",
        &[("calibration", calibration(texts, bundle).into()), ("outputs", list(texts, &outputs).into())],
    )
}

/// What ensemble and members said about a class, in one sentence; `None` when there is no such class.
pub(super) fn class_finding(
    texts: Texts<'_>,
    bundle: &BundleIdentity,
    scores: Scores<'_>,
    class_idx: usize,
) -> Option<String> {
    let class = bundle.classes.get(class_idx)?;
    let output = percent_or_none(texts, scores.fused.get(class_idx).copied());
    let arguments = [
        ("class", class.label.as_str().into()),
        ("calibration", calibration(texts, bundle).into()),
        ("output", output.into()),
        ("members", member_outputs(texts, scores, class_idx).into()),
    ];
    Some(texts.say("class-finding", &arguments))
}

/// What each member said about a class.
fn member_outputs(texts: Texts<'_>, scores: Scores<'_>, class_idx: usize) -> String {
    let of_members: Vec<String> = scores
        .members
        .iter()
        .map(|member| {
            let output = match output_of(member, class_idx) {
                Some(output) => percent_or_none(texts, Some(output)),
                None => texts.say("failed", &[]),
            };
            texts.say("member-output", &[("member", member.name.as_str().into()), ("output", output.into())])
        })
        .collect();
    list(texts, &of_members)
}

/// What the members said about the target class, in one sentence.
pub(super) fn members(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> String {
    let arguments = [
        ("class", target_label(bundle).into()),
        ("outputs", member_outputs(texts, scores, bundle.target_class_idx).into()),
        ("spread", percent_or_none(texts, Some(scores.member_spread)).into()),
    ];
    texts.say("members", &arguments)
}

/// Output of a member for a class; `None` when the member failed.
pub(super) fn output_of(member: &MemberScore, class_idx: usize) -> Option<f64> {
    if member.failure.is_some() { None } else { member.probabilities.get(class_idx).copied() }
}

/// Why a member has no output.
pub(super) fn member_failure(texts: Texts<'_>, name: &str, failure: Option<&str>) -> String {
    match failure {
        Some(words) => texts.say("member-failure", &[("member", name.into()), ("words", sentence(words).into())]),
        None => texts.say("member-without-output", &[("member", name.into())]),
    }
}

/// The heat in each lung and in both, in sentences.
pub(super) fn lung_heat(texts: Texts<'_>, image: &ImageAnalysis) -> Vec<String> {
    if is_without_map(image) {
        return Vec::new();
    }
    let arguments = [
        ("right", percent_or_none(texts, image.right_lung_heat_fraction).into()),
        ("left", percent_or_none(texts, image.left_lung_heat_fraction).into()),
    ];
    let mut words = vec![texts.say("lung-heat", &arguments)];
    words.extend(image.lung_heat_fraction.map(|share| {
        let share = percent_or_none(texts, Some(share));
        texts.say("heat-in-lungs", &[("share", share.into())])
    }));
    words.extend(elsewhere(texts, image));
    words
}

/// The share of the heat that lies in the lungs where it is less than it should be.
pub(super) fn little_heat_in_lungs(image: &ImageAnalysis) -> Option<f64> {
    image.lung_heat_fraction.filter(|share| *share < ENOUGH_IN_LUNGS)
}

/// What too little heat in the lungs means, in English; `None` where there is enough or where it was not measured.
#[must_use]
pub fn heat_elsewhere(image: &ImageAnalysis) -> Option<String> {
    elsewhere(Texts::english(), image)
}

pub(super) fn elsewhere(texts: Texts<'_>, image: &ImageAnalysis) -> Option<String> {
    little_heat_in_lungs(image).map(|_| texts.say("heat-elsewhere", &[]))
}

/// What messages about a reason need: its sentence, its identifier, the words of the run.
pub(super) fn about_reason(texts: Texts<'_>, reason: ReasonCode, words: &str) -> [Argument<'static>; 3] {
    let message = format!("reason-{}", reason.id().replace(['.', '_'], "-"));
    [
        ("reason", texts.say(&message, &[]).into()),
        ("id", reason.id().into()),
        ("words", sentence(words).to_owned().into()),
    ]
}

/// One input check.
pub(super) fn gate(texts: Texts<'_>, gate: &GateResult) -> String {
    let verdict = match (gate.passed, gate.enforced) {
        (true, true) => "gate-passed",
        (true, false) => "gate-passed-reported",
        (false, true) => "gate-failed-enforced",
        (false, false) => "gate-failed-reported",
    };
    let mut arguments = about_reason(texts, gate.reason, "").to_vec();
    arguments.retain(|(name, _)| *name != "words");
    arguments.extend([
        ("gate", gate.id.as_str().into()),
        ("verdict", texts.say(verdict, &[]).into()),
        ("words", gate.words.as_str().into()),
    ]);
    texts.say(if gate.passed { "gate" } else { "gate-not-passed" }, &arguments)
}

/// Why an image was left out.
pub(super) fn excluded(texts: Texts<'_>, image: &ExcludedImage) -> String {
    texts.say("excluded", &about_reason(texts, image.reason, &image.words))
}

/// Name of image number `idx` (from 0) of an analysis: the analysed images come first, then the excluded ones.
pub(super) fn image_name(texts: Texts<'_>, idx: usize) -> String {
    texts.say("image-name", &[("number", (idx + 1).into())])
}

/// Words about an image that has a name.
pub(super) fn of_image(texts: Texts<'_>, name: Option<&str>, words: String) -> String {
    match name {
        Some(name) => texts.say("of-image", &[("image", name.into()), ("words", words.into())]),
        None => words,
    }
}

/// The conclusion of a run without scores.
pub(super) fn not_analysed(texts: Texts<'_>, bundle: &BundleIdentity, not_analysed: &NotAnalysed) -> String {
    let words = texts.say("not-analysed", &about_reason(texts, not_analysed.reason, &not_analysed.words));
    behind_notice(texts, bundle, words)
}

/// The conclusion of an analysis: every number in sentences.
pub(super) fn conclusion(texts: Texts<'_>, bundle: &BundleIdentity, analysis: &CxrAnalysis) -> String {
    let mut parts = vec![texts.say("conclusion", &[])];
    for (image, name) in analysis.images.iter().zip(image_names(texts, analysis)) {
        parts.extend(name.map(|name| texts.say("named", &[("name", name.into())])));
        parts.push(outputs(texts, bundle, image.into()));
        parts.push(operating_point(texts, bundle, image.into()));
        parts.push(members(texts, bundle, image.into()));
        parts.extend(lung_heat(texts, image));
        parts.push(full_stop(texts, &localisation(texts, image.into())));
    }
    if !analysis.excluded.is_empty() {
        parts.push(texts.say("images-not-analysed", &[("count", analysis.excluded.len().into())]));
    }
    behind_notice(texts, bundle, sentences(texts, &parts))
}

/// `Image n` for each analysed image, nothing when there is only one.
pub(super) fn image_names(texts: Texts<'_>, analysis: &CxrAnalysis) -> impl Iterator<Item = Option<String>> {
    let several = analysis.images.len() > 1;
    (0..analysis.images.len()).map(move |idx| several.then(|| image_name(texts, idx)))
}

/// (failed, all) member runs of an analysis.
pub(super) fn failed_members(analysis: &CxrAnalysis) -> (usize, usize) {
    let members = || analysis.images.iter().flat_map(|image| &image.members);
    (members().filter(|member| member.failure.is_some() || member.probabilities.is_empty()).count(), members().count())
}

/// What distances of embeddings do not say.
fn caution(texts: Texts<'_>, status: BundleStatus) -> String {
    texts.say(if status == BundleStatus::Untrained { "caution-untrained" } else { "caution" }, &[])
}

/// What the search for similar cases saw, and what its answers do not say.
pub(super) fn similar_cases(texts: Texts<'_>, status: BundleStatus, similar: &SimilarCases) -> String {
    let library = match &similar.library {
        None => texts.say("similar-no-library", &[]),
        Some(library) => {
            let digest = library.sha256.to_string();
            texts.say("similar-library", &[("count", library.n_cases.into()), ("digest", digest.into())])
        }
    };
    let found = match &similar.reason {
        Some(reason) => texts.say("similar-none", &[("words", sentence(reason).into())]),
        None => texts.say("similar-found", &[("count", similar.cases.len().into())]),
    };
    let arguments = [
        ("library", library.into()),
        ("found", found.into()),
        ("priors", texts.say("similar-priors", &[("count", similar.priors.len().into())]).into()),
        ("method", similar.method.as_str().into()),
        ("caution", caution(texts, status).into()),
    ];
    texts.say("similar-cases", &arguments)
}

/// One line about a case of another patient.
pub(super) fn similar_case(texts: Texts<'_>, status: BundleStatus, case: &SimilarCase) -> String {
    let arguments = [
        ("case", case.case_id.as_str().into()),
        ("class", case.label.as_str().into()),
        ("cohort", case.cohort.as_str().into()),
        ("distance", format!("{:.4}", case.distance).into()),
        ("caution", caution(texts, status).into()),
    ];
    texts.say("similar-case", &arguments)
}

/// One line about an earlier image of the same patient.
pub(super) fn prior_image(texts: Texts<'_>, status: BundleStatus, prior: &PriorImage) -> String {
    let date = prior.study_date.as_deref().map_or_else(|| texts.say("unknown-date", &[]), written_date);
    let arguments = [
        ("date", date.into()),
        ("study", prior.study_instance_uid.as_str().into()),
        ("distance", format!("{:.4}", prior.distance).into()),
        ("caution", caution(texts, status).into()),
    ];
    texts.say("prior-image", &arguments)
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
        parameters.extend(super::ct_words::parameters(analysis));
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
pub(super) fn sentence(words: &str) -> &str {
    words.trim().trim_end_matches('.')
}
