//! The report in sentences: Basic Text SR (PS3.3 section A.35.1), whose tree has no numbers and no measurement groups.
//!
//! Viewers that show no TID 1500 measurements show this one. Text viewers print no children of other items, so nothing
//! is nested: findings with the images that they are about, then conclusions.

use super::{
    codes,
    content::{Contains, Item, container, image, text},
    ct_words,
    modules::Frame,
    sr::{Report, by_series, comments, context, reject_reason},
    texts::Texts,
    wording::{self, Scores},
};
use crate::types::{BundleIdentity, CtAnalysis, CxrAnalysis, ImageAnalysis, RunOutcome, SourceImage};

/// The root container; its attributes stand at the top level of the data set. It has no template.
pub(super) fn content_tree(report: &Report<'_>) -> Item {
    let frame = &report.frame;
    let bundle = &frame.record.bundle;
    let texts = report.texts();
    let (findings, conclusion) = match &frame.record.outcome {
        RunOutcome::Analysed(analysis) => {
            (of_radiographs(frame, analysis), wording::conclusion(texts, bundle, analysis))
        }
        RunOutcome::CtMeasured(analysis) => (of_ct(frame, analysis), ct_words::conclusion(texts, bundle, analysis)),
        RunOutcome::NotAnalysed(not_analysed) => {
            let mut findings = reject_reason(not_analysed.reason);
            findings.extend(one_of_each_series(&report.images));
            (findings, wording::not_analysed(texts, bundle, not_analysed))
        }
    };
    let mut conclusions = vec![
        text(Contains, codes::CONCLUSION, &conclusion),
        text(Contains, codes::ALGORITHM_NAME, &bundle.name),
        text(Contains, codes::ALGORITHM_VERSION, &bundle.version),
    ];
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    conclusions.extend(parameters.iter().map(|words| text(Contains, codes::ALGORITHM_PARAMETERS, words)));
    conclusions.extend(comments(frame));
    let mut children = context(frame);
    children.push(container(Some(Contains), codes::FINDINGS, findings));
    children.push(container(Some(Contains), codes::CONCLUSIONS, conclusions));
    container(None, codes::TEXT_REPORT, children)
}

fn finding(words: &str) -> Item {
    text(Contains, codes::FINDING, words)
}

fn source(source: &SourceImage) -> Item {
    image(Contains, codes::SOURCE, source)
}

/// A sentence for each class, those of the operating point and of members that failed.
fn of_scores(texts: Texts<'_>, bundle: &BundleIdentity, scores: Scores<'_>) -> Vec<String> {
    let mut words = Vec::new();
    for class_idx in 0..bundle.classes.len() {
        words.extend(wording::class_finding(texts, bundle, scores, class_idx));
    }
    words.push(wording::operating_point(texts, bundle, scores));
    words.extend(scores.members.iter().filter(|member| member.failure.is_some()).map(|member| {
        wording::full_stop(texts, &wording::member_failure(texts, &member.name, member.failure.as_deref()))
    }));
    words
}

fn of_radiographs(frame: &Frame<'_>, analysis: &CxrAnalysis) -> Vec<Item> {
    let texts = frame.texts;
    let mut items = Vec::new();
    for (analysed, name) in analysis.images.iter().zip(wording::image_names(texts, analysis)) {
        items.extend(of_radiograph(frame, analysed, name.as_deref()));
    }
    for (idx, excluded) in analysis.excluded.iter().enumerate() {
        let name = wording::image_name(texts, analysis.images.len() + idx);
        let words = wording::of_image(texts, Some(&name), wording::excluded(texts, excluded));
        items.extend([text(Contains, codes::EXCLUDED_IMAGE, &words), source(&excluded.source)]);
    }
    items
}

fn of_radiograph(frame: &Frame<'_>, analysed: &ImageAnalysis, name: Option<&str>) -> Vec<Item> {
    let bundle = &frame.record.bundle;
    let texts = frame.texts;
    let named = |words: String| wording::of_image(texts, name, words);
    let mut words = of_scores(texts, bundle, analysed.into());
    words.extend(wording::lung_heat(texts, analysed));
    words.push(wording::heat_map_method(texts, analysed));
    words.push(wording::full_stop(texts, &wording::localisation(texts, analysed.into())));
    let mut items: Vec<Item> = words.into_iter().map(|words| finding(&named(words))).collect();
    items.extend(analysed.similar_cases.as_ref().map(|similar| {
        text(Contains, codes::SIMILAR_CASES, &named(wording::similar_cases(texts, bundle.status, similar)))
    }));
    items.extend(analysed.gates.iter().map(|gate| text(Contains, codes::GATE, &named(wording::gate(texts, gate)))));
    items.push(source(&analysed.source));
    items
}

fn of_ct(frame: &Frame<'_>, analysis: &CtAnalysis) -> Vec<Item> {
    let bundle = &frame.record.bundle;
    let texts = frame.texts;
    let mut words = vec![ct_words::series(texts, analysis)];
    for lung in &analysis.lungs {
        words.push(ct_words::lung(texts, lung));
        words.extend(ct_words::thirds_of_lung(texts, lung));
    }
    if let Some(scan) = &analysis.classification {
        words.extend(of_scores(texts, bundle, scan.into()));
        words.extend(ct_words::classification_without_scores(texts, bundle, scan));
    }
    words.extend(analysis.lesions.iter().flat_map(|lesions| ct_words::lesions(texts, bundle, lesions)));
    words.extend(ct_words::not_judged(texts, analysis));
    let mut items: Vec<Item> = words.iter().map(|words| finding(words)).collect();
    items.extend(analysis.gates.iter().map(|gate| text(Contains, codes::GATE, &wording::gate(texts, gate))));
    items.extend(
        ct_words::excluded_series(texts, analysis).iter().map(|words| text(Contains, codes::EXCLUDED_SERIES, words)),
    );
    items.extend(analysis.excluded.iter().flat_map(|excluded| {
        [text(Contains, codes::EXCLUDED_IMAGE, &wording::excluded(texts, excluded)), source(&excluded.source)]
    }));
    items.extend(shown(analysis).into_iter().map(source));
    items
}

/// The images that stand for a series of hundreds: those that the sentences name, or the one in the middle.
fn shown(analysis: &CtAnalysis) -> Vec<&SourceImage> {
    let images = &analysis.series.images;
    let keys = analysis.classification.iter().flat_map(|scan| &scan.key_slices).map(|key| key.slice);
    let of_lesions = analysis.lesions.iter().filter_map(|lesions| lesions.largest_slice);
    let mut slices: Vec<usize> = keys.chain(of_lesions).filter(|slice| *slice < images.len()).collect();
    if slices.is_empty() {
        slices.push(images.len() / 2);
    }
    slices.sort_unstable();
    slices.dedup();
    slices.into_iter().filter_map(|slice| images.get(slice)).collect()
}

/// The first image of each series.
fn one_of_each_series(images: &[SourceImage]) -> Vec<Item> {
    by_series(images, |image| &image.series_instance_uid)
        .into_iter()
        .filter_map(|(_, images)| images.first().map(|image| source(image)))
        .collect()
}
