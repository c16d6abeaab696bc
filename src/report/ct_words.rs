//! The sentences about a chest CT.

use super::{
    texts::{Argument, Texts},
    wording::{self, full_stop, list, percent_or_none, sentences},
};
use crate::types::{
    BundleIdentity, CtAnalysis, CtClassification, CtKeySlice, CtLesionRun, CtLesions, CtLung, CtLungLesions,
    CtQuadrant, CtSeries, Side,
};

/// `2700 ml`, with one decimal for small volumes of lesions.
fn millilitres(volume_ml: f64, decimals: usize) -> String {
    format!("{volume_ml:.decimals$} ml")
}

fn hounsfield(texts: Texts<'_>, value: Option<f64>) -> String {
    value.map_or_else(|| texts.say("no-value", &[]), |value| format!("{value:.0} HU"))
}

/// `Right lung` or `Left lung`.
pub(super) fn lung_name(texts: Texts<'_>, side: Side) -> String {
    let message = match side {
        Side::Right => "right-lung",
        Side::Left => "left-lung",
    };
    texts.say(message, &[])
}

/// A lung in one line.
pub(super) fn lung(texts: Texts<'_>, lung: &CtLung) -> String {
    let whole = &lung.whole;
    let arguments = [
        ("lung", lung_name(texts, lung.side).into()),
        ("volume", millilitres(whole.volume_ml, 0).into()),
        ("mean", hounsfield(texts, whole.mean_hu).into()),
        ("percentile", hounsfield(texts, whole.percentile_15_hu).into()),
        ("opacity", percent_or_none(texts, Some(whole.opacity_fraction())).into()),
        ("consolidation", percent_or_none(texts, Some(whole.consolidation_fraction())).into()),
        ("emphysema", percent_or_none(texts, Some(whole.band_fractions[0])).into()),
    ];
    texts.say("ct-lung", &arguments)
}

/// The thirds of a lung in one line each.
pub(super) fn thirds(texts: Texts<'_>, lung: &CtLung) -> Vec<String> {
    let names = ["third-upper", "third-middle", "third-lower"];
    let line = |(name, third): (&str, &crate::types::CtDensities)| {
        let arguments = [
            ("third", texts.say(name, &[]).into()),
            ("volume", millilitres(third.volume_ml, 0).into()),
            ("mean", hounsfield(texts, third.mean_hu).into()),
            ("opacity", percent_or_none(texts, Some(third.opacity_fraction())).into()),
            ("consolidation", percent_or_none(texts, Some(third.consolidation_fraction())).into()),
        ];
        texts.say("ct-third", &arguments)
    };
    names.into_iter().zip(&lung.thirds).map(line).collect()
}

/// The thirds of a lung in one line each, which names the lung.
pub(super) fn thirds_of_lung(texts: Texts<'_>, lung: &CtLung) -> Vec<String> {
    let name = lung_name(texts, lung.side);
    let line =
        |third: String| texts.say("ct-third-of-lung", &[("lung", name.as_str().into()), ("third", third.into())]);
    thirds(texts, lung).into_iter().map(line).collect()
}

/// Which series was measured, in one sentence.
pub(super) fn series(texts: Texts<'_>, analysis: &CtAnalysis) -> String {
    let series = &analysis.series;
    let [columns, rows, slices] = series.size;
    let [x, y, z] = series.spacing_mm;
    let (thickness, kernel) = thickness_and_kernel(texts, series);
    let arguments = [
        ("series", series.series_instance_uid.as_str().into()),
        ("size", format!("{columns} x {rows} x {slices}").into()),
        ("spacing", format!("{x:.3} x {y:.3} x {z:.3}").into()),
        ("thickness", thickness.into()),
        ("kernel", kernel.into()),
        ("why", series.why_chosen.as_str().into()),
    ];
    texts.say("ct-series", &arguments)
}

/// What is stated of the thickness of the slices and of the kernel, to be appended; empty where nothing is.
pub(super) fn thickness_and_kernel(texts: Texts<'_>, series: &CtSeries) -> (String, String) {
    let thickness = series
        .slice_thickness_mm
        .map_or_else(String::new, |mm| texts.say("ct-thickness", &[("millimetres", format!("{mm:.2}").into())]));
    let kernel = series
        .convolution_kernel
        .as_deref()
        .map_or_else(String::new, |kernel| texts.say("ct-kernel", &[("kernel", kernel.into())]));
    (thickness, kernel)
}

/// The series that were not measured, a sentence each.
pub(super) fn excluded_series(texts: Texts<'_>, analysis: &CtAnalysis) -> Vec<String> {
    let words = |series: &crate::types::ExcludedSeries| {
        let mut arguments = wording::about_reason(texts, series.reason, &series.words).to_vec();
        arguments.extend([
            ("series", series.series_instance_uid.as_str().to_owned().into()),
            ("modality", series.modality.clone().into()),
            ("count", series.images.into()),
        ]);
        texts.say("ct-excluded-series", &arguments)
    };
    analysis.excluded_series.iter().map(words).collect()
}

/// Name and version of the segmentation, with the threshold where there is one.
pub(super) fn segmentation(analysis: &CtAnalysis) -> String {
    let method = &analysis.method;
    match method.threshold_hu {
        Some(threshold_hu) => format!("{}, threshold {threshold_hu} HU", method.segmentation),
        None => method.segmentation.clone(),
    }
}

/// What the networks said of a scan, in sentences.
pub(super) fn classification(texts: Texts<'_>, bundle: &BundleIdentity, scan: &CtClassification) -> String {
    let mut parts = vec![
        wording::outputs(texts, bundle, scan.into()),
        wording::operating_point(texts, bundle, scan.into()),
        wording::members(texts, bundle, scan.into()),
    ];
    parts.extend(classification_without_scores(texts, bundle, scan));
    sentences(texts, &parts)
}

/// What the networks looked at and what speaks for the target class, in sentences.
pub(super) fn classification_without_scores(
    texts: Texts<'_>,
    bundle: &BundleIdentity,
    scan: &CtClassification,
) -> [String; 3] {
    let target = || -> Argument<'_> { ("class", wording::target_label(bundle).into()) };
    let keys: Vec<String> = scan.key_slices.iter().map(|key| key_slice(texts, key)).collect();
    let keys = if keys.is_empty() {
        // Who gives no maps of a scan that is judged as a whole does not say that no slice speaks for it.
        texts.say(if scan.without_maps { "ct-slices-not-named" } else { "ct-no-key-slice" }, &[target()])
    } else {
        texts.say("ct-key-slices", &[target(), ("slices", wording::clauses(texts, &keys).into())])
    };
    let seen = [("count", scan.slices.len().into()), ("aggregation", scan.aggregation.as_str().into())];
    [texts.say("ct-slices-seen", &seen), keys, full_stop(texts, &wording::localisation(texts, scan.into()))]
}

/// A slice by its number from the feet, as the overlay names it.
pub(super) fn key_slice(texts: Texts<'_>, key: &CtKeySlice) -> String {
    let share = |message: &str, name: &'static str, share: Option<f64>| {
        share
            .map_or_else(String::new, |share| texts.say(message, &[(name, percent_or_none(texts, Some(share)).into())]))
    };
    let arguments = [
        ("slice", (key.slice + 1).into()),
        ("output", share("ct-key-slice-output", "output", key.output).into()),
        ("heat", share("ct-key-slice-heat", "share", key.lung_heat_fraction).into()),
    ];
    texts.say("ct-key-slice", &arguments)
}

/// What the networks outlined and what the rule makes of it, in a few lines.
pub(super) fn lesions(texts: Texts<'_>, bundle: &BundleIdentity, lesions: &CtLesions) -> Vec<String> {
    let of_lungs: Vec<String> = lesions.lungs.iter().map(|lung| lung_lesions(texts, lung)).collect();
    let all = [
        ("class", wording::target_label(bundle).into()),
        ("volume", millilitres(lesions.volume_ml, 1).into()),
        ("lungs", list(texts, &of_lungs).into()),
    ];
    let slices = [
        ("with", lesions.slices_with_lesion.into()),
        ("seen", lesions.slices.len().into()),
        ("longest", lesions.longest_run.into()),
    ];
    let of_rule = [
        run(texts, lesions.run.as_ref()),
        texts.say("ct-lesion-slices", &slices),
        wording::rule_decision(texts, bundle, lesions),
    ];
    let mut lines = vec![
        texts.say("ct-lesions", &all),
        texts.say("ct-lesion-rule", &[("rule", lesions.rule.as_str().into())]),
        sentences(texts, &of_rule),
    ];
    lines.extend(
        lesions
            .members
            .iter()
            .filter(|member| member.failure.is_some())
            .map(|member| full_stop(texts, &wording::member_failure(texts, &member.name, member.failure.as_deref()))),
    );
    lines
}

fn lung_lesions(texts: Texts<'_>, lung: &CtLungLesions) -> String {
    let message = match lung.side {
        Side::Right => "ct-lesions-right",
        Side::Left => "ct-lesions-left",
    };
    let arguments =
        [("volume", millilitres(lung.volume_ml, 1).into()), ("share", percent_or_none(texts, lung.fraction).into())];
    texts.say(message, &arguments)
}

/// Whether the rule is satisfied, and where.
pub(super) fn run(texts: Texts<'_>, run: Option<&CtLesionRun>) -> String {
    let Some(run) = run else { return texts.say("ct-rule-not-satisfied", &[]) };
    let quadrant = match run.quadrant {
        CtQuadrant::RightFront => "quadrant-right-front",
        CtQuadrant::LeftFront => "quadrant-left-front",
        CtQuadrant::RightBack => "quadrant-right-back",
        CtQuadrant::LeftBack => "quadrant-left-back",
    };
    let arguments = [
        ("slices", run.slices.into()),
        ("first", (run.first_slice + 1).into()),
        ("last", (run.last_slice + 1).into()),
        ("quadrant", texts.say(quadrant, &[]).into()),
    ];
    texts.say("ct-rule-satisfied", &arguments)
}

/// Why the networks said nothing of a scan that was measured; `None` where they judged it or there are none.
pub(super) fn not_judged(texts: Texts<'_>, analysis: &CtAnalysis) -> Option<String> {
    let not_judged = analysis.not_judged.as_ref()?;
    Some(texts.say("ct-not-judged", &wording::about_reason(texts, not_judged.reason, &not_judged.words)))
}

/// What a report about a CT ends with, after the lines that every report has.
pub(super) fn disclaimer(texts: Texts<'_>, analysis: &CtAnalysis) -> Vec<String> {
    let by_threshold = analysis.method.threshold_hu.is_some();
    let messages = [
        Some("ct-limits"),
        Some(if by_threshold { "ct-technique-threshold" } else { "ct-technique-network" }),
        analysis.classification.as_ref().map(|_| "ct-slice-heat"),
        analysis.lesions.as_ref().map(|_| "ct-lesion-limits"),
    ];
    messages.into_iter().flatten().map(|message| texts.say(message, &[])).collect()
}

/// What was measured and what networks said, line by line.
pub(super) fn lines(texts: Texts<'_>, bundle: &BundleIdentity, analysis: &CtAnalysis) -> Vec<String> {
    let mut lines = vec![series(texts, analysis)];
    for of_lung in &analysis.lungs {
        lines.push(lung(texts, of_lung));
        lines.extend(thirds_of_lung(texts, of_lung));
    }
    lines.extend(analysis.classification.iter().map(|scan| classification(texts, bundle, scan)));
    lines.extend(analysis.lesions.iter().flat_map(|of_lesions| lesions(texts, bundle, of_lesions)));
    lines.extend(not_judged(texts, analysis));
    lines.extend(excluded_series(texts, analysis));
    lines.push(texts.say("ct-limits", &[]));
    lines
}

/// Settings that determine the measurements.
pub(super) fn parameters(analysis: &CtAnalysis) -> Vec<String> {
    let limits: Vec<String> = analysis.method.band_limits_hu.iter().map(ToString::to_string).collect();
    let mut parameters = vec![
        match analysis.method.threshold_hu {
            Some(threshold_hu) => format!("segmentation={};threshold={threshold_hu} HU", analysis.method.segmentation),
            None => format!("segmentation={}", analysis.method.segmentation),
        },
        format!("densitometry={};bands={} HU", analysis.method.densitometry, limits.join("/")),
    ];
    parameters.extend(
        analysis
            .classification
            .iter()
            .map(|scan| format!("slices={};aggregation={}", scan.slices.len(), scan.aggregation)),
    );
    parameters.extend(
        analysis.lesions.iter().map(|lesions| format!("slices={};rule={}", lesions.slices.len(), lesions.rule)),
    );
    parameters
}

/// The conclusion: every number in sentences.
pub(super) fn conclusion(texts: Texts<'_>, bundle: &BundleIdentity, analysis: &CtAnalysis) -> String {
    let mut parts = vec![texts.say("ct-conclusion", &[])];
    parts.extend(analysis.lungs.iter().map(|of_lung| lung(texts, of_lung)));
    if let Some(scan) = &analysis.classification {
        parts.push(texts.say("conclusion", &[]));
        parts.push(classification(texts, bundle, scan));
    }
    if let Some(of_lesions) = &analysis.lesions {
        parts.push(texts.say("conclusion", &[]));
        parts.extend(lesions(texts, bundle, of_lesions));
    }
    parts.extend(not_judged(texts, analysis));
    wording::behind_notice(texts, bundle, sentences(texts, &parts))
}

/// (failed, all) member runs of a scan.
pub(super) fn failed_members(analysis: &CtAnalysis) -> (usize, usize) {
    let classifiers = analysis.classification.iter().flat_map(|scan| &scan.members).map(|member| &member.failure);
    let outliners = analysis.lesions.iter().flat_map(|scan| &scan.members).map(|member| &member.failure);
    let members = || classifiers.clone().chain(outliners.clone());
    (members().filter(|failure| failure.is_some()).count(), members().count())
}
