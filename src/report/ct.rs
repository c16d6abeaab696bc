//! The results of a chest CT: measurement groups of the report.

use super::{
    ReportError, Shown,
    codes::{self, Concept},
    content::{
        ConceptModifier, Contains, HasProperties, InferredFrom, Item, ObservationContext, code, container, image,
        number_or_comment, text, uid_reference, with,
    },
    ct_words,
    modules::Frame,
    segments::Segment,
    sr::{Groups, Report, Subject, algorithm, comments, quality, summary},
    texts::Texts,
    wording,
};
use crate::types::{
    BundleIdentity, CtAnalysis, CtDensities, CtKeySlice, CtLesions, CtLung, CtLungLesions, Decision, Side,
};

/// What was measured, line by line, as the status page shows it.
#[must_use]
pub fn ct_measurement_lines(bundle: &BundleIdentity, analysis: &CtAnalysis) -> Vec<String> {
    ct_words::lines(Texts::english(), bundle, analysis)
}

/// The bands with the messages that say their bounds, in the order of the fractions.
const BANDS: [(&str, Concept<'static>); 5] = [
    ("ct-band-1", codes::BAND_EMPHYSEMA),
    ("ct-band-2", codes::BAND_AERATED),
    ("ct-band-3", codes::BAND_GROUND_GLASS),
    ("ct-band-4", codes::BAND_POORLY_AERATED),
    ("ct-band-5", codes::BAND_CONSOLIDATION),
];

/// The Imaging Measurements container: a TID 1501 group for each lung and each third of it.
pub(super) fn measurements(report: &Report<'_>, analysis: &CtAnalysis) -> Result<Item, ReportError> {
    let frame = &report.frame;
    let bundle = &frame.record.bundle;
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    let has_networks = bundle.networks().next().is_some();
    let family = if has_networks { codes::ARTIFICIAL_INTELLIGENCE } else { codes::MORPHOLOGICAL_OPERATIONS };
    let mut items = algorithm(&bundle.name, &bundle.version, &parameters, family);
    for lung in &analysis.lungs {
        let segment = match lung.side {
            Side::Right => Segment::RightLung,
            Side::Left => Segment::LeftLung,
        };
        items.push(whole_lung(frame, analysis, lung, report.segment(Shown::Ct, segment)?));
        items
            .extend(THIRDS.iter().zip(&lung.thirds).map(|(of, densities)| third(frame, analysis, lung, of, densities)));
    }
    if let Some(scan) = &analysis.classification {
        let subject = Subject::Series(&analysis.series.series_instance_uid);
        let groups = Groups { frame, subject, scores: scan.into(), name: None };
        items.extend(groups.scores());
        items
            .extend(scan.key_slices.iter().enumerate().filter_map(|(idx, key)| key_slice(&groups, analysis, idx, key)));
    }
    if let Some(lesions) = &analysis.lesions {
        items.push(all_lesions(frame, analysis, lesions, report.segment(Shown::Ct, Segment::Lesion)?));
        for lung in &lesions.lungs {
            items.push(lung_lesions(frame, analysis, lung, report.segment(Shown::Ct, Segment::Lesion)?));
        }
    }
    Ok(container(Some(Contains), codes::MEASUREMENTS, items))
}

/// All that was outlined, the rule and the decision.
fn all_lesions(frame: &Frame<'_>, analysis: &CtAnalysis, lesions: &CtLesions, segment: Option<Item>) -> Item {
    let bundle = &frame.record.bundle;
    let texts = frame.texts;
    let mut items = head(frame, analysis, &texts.say("track-lesions", &[]), "Lesions", Vec::new());
    items.extend(finding(bundle));
    items.extend(segment);
    items.push(number_or_comment(texts, codes::VOLUME, lesions.volume_ml, codes::MILLILITRE, Vec::new()));
    items.push(text(Contains, codes::LESION_RULE, &lesions.rule));
    for (concept, count) in
        [(codes::LESION_SLICES, lesions.slices_with_lesion), (codes::LESION_LONGEST, lesions.longest_run)]
    {
        items.push(number_or_comment(texts, concept, count as f64, codes::SLICES, Vec::new()));
    }
    let first = lesions.run.and_then(|run| analysis.series.images.get(run.first_slice));
    let first = first.map(|source| image(InferredFrom, codes::SOURCE_OF_MEASUREMENT, source)).into_iter().collect();
    items.push(with(text(Contains, codes::LESION_RUN, &ct_words::run(texts, lesions.run.as_ref())), first));
    let decision = wording::allowed_decision(bundle, lesions.decision);
    items.push(code(Contains, codes::PRESENCE, codes::decision(decision)));
    let operating_point = [wording::rule_decision(texts, bundle, lesions), texts.say("ct-lesion-limits", &[])];
    let operating_point = wording::sentences(texts, &operating_point);
    items.push(text(Contains, codes::OPERATING_POINT_DESCRIPTION, &operating_point));
    for (member_idx, member) in lesions.members.iter().enumerate() {
        let state = if member.failure.is_some() { codes::FAILED } else { codes::SUCCEEDED };
        let arguments = [
            ("number", (member_idx + 1).into()),
            ("all", lesions.members.len().into()),
            ("member", member.name.as_str().into()),
        ];
        let mut about = vec![text(HasProperties, codes::COMMENT, &texts.say("member-name", &arguments))];
        about.extend(member.failure.as_ref().map(|words| text(HasProperties, codes::COMMENT, words)));
        items.push(with(code(Contains, codes::MODEL_STATUS, state), about));
    }
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

/// What was outlined in one lung.
fn lung_lesions(frame: &Frame<'_>, analysis: &CtAnalysis, lung: &CtLungLesions, segment: Option<Item>) -> Item {
    let texts = frame.texts;
    let site = vec![code(ConceptModifier, codes::LATERALITY, laterality(lung.side))];
    let (tracking, tracked) = match lung.side {
        Side::Right => ("track-lesions-right", "Lesions, right lung"),
        Side::Left => ("track-lesions-left", "Lesions, left lung"),
    };
    let mut items = head(frame, analysis, &texts.say(tracking, &[]), tracked, site);
    items.extend(finding(&frame.record.bundle));
    items.extend(segment);
    items.push(number_or_comment(texts, codes::VOLUME, lung.volume_ml, codes::MILLILITRE, Vec::new()));
    let share = lung.fraction.unwrap_or(f64::NAN);
    items.push(number_or_comment(texts, codes::LESION_SHARE, share * 100.0, codes::PERCENT, Vec::new()));
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

/// The bundle's target class.
fn finding(bundle: &BundleIdentity) -> Option<Item> {
    let class = bundle.classes.get(bundle.target_class_idx)?;
    Some(code(Contains, codes::FINDING, (&class.code).into()))
}

/// A slice that speaks for the target class, with its image.
fn key_slice(groups: &Groups<'_>, analysis: &CtAnalysis, idx: usize, key: &CtKeySlice) -> Option<Item> {
    let texts = groups.frame.texts;
    let source = || Some(image(InferredFrom, codes::SOURCE_OF_MEASUREMENT, analysis.series.images.get(key.slice)?));
    let words = [wording::full_stop(texts, &ct_words::key_slice(texts, key)), texts.say("ct-slice-heat", &[])];
    let words = wording::sentences(texts, &words);
    let mut items = vec![with(text(Contains, codes::KEY_SLICE, &words), vec![source()?])];
    if let Some(output) = key.output {
        let meaning = text(ConceptModifier, codes::MEANING, &texts.say("ct-key-slice-meaning", &[]));
        let about = vec![meaning, source()?];
        items.push(number_or_comment(texts, codes::CERTAINTY, output * 100.0, codes::PERCENT, about));
    }
    if let Some(share) = key.lung_heat_fraction {
        let about = vec![source()?];
        items.push(number_or_comment(texts, codes::HEAT_IN_LUNGS, share * 100.0, codes::PERCENT, about));
    }
    let target = groups.frame.record.bundle.target_class_idx;
    let tracking = texts.say("track-key-slice", &[("number", (idx + 1).into())]);
    Some(groups.group(tracking, &format!("Key slice {}", idx + 1), target, None, items))
}

const fn laterality(side: Side) -> Concept<'static> {
    match side {
        Side::Right => codes::RIGHT,
        Side::Left => codes::LEFT,
    }
}

/// What a measurement group of this name begins with: its tracking identity, the lung as its site, the series. `tracked`
/// is the name in every language.
fn head(frame: &Frame<'_>, analysis: &CtAnalysis, tracking: &str, tracked: &str, site: Vec<Item>) -> Vec<Item> {
    let series = &analysis.series.series_instance_uid;
    vec![
        text(ObservationContext, codes::TRACKING_ID, tracking),
        uid_reference(ObservationContext, codes::TRACKING_UID, &frame.tracking_uid(series, tracked)),
        with(code(ConceptModifier, codes::FINDING_SITE, codes::LUNG), site),
        uid_reference(Contains, codes::SOURCE_SERIES, series),
    ]
}

/// Where a third of a lung lies, the message that says it and its name in every language.
const THIRDS: [(Concept<'static>, &str, &str); 3] = [
    (codes::UPPER, "third-superior", "superior"),
    (codes::MIDDLE, "third-middle", "middle"),
    (codes::LOWER, "third-inferior", "inferior"),
];

/// A lung. Its thirds have no segments of their own.
fn whole_lung(frame: &Frame<'_>, analysis: &CtAnalysis, lung: &CtLung, segment: Option<Item>) -> Item {
    let tracking = ct_words::lung_name(frame.texts, lung.side);
    let tracked = ct_words::lung_name(Texts::english(), lung.side);
    let site = vec![code(ConceptModifier, codes::LATERALITY, laterality(lung.side))];
    let mut items = head(frame, analysis, &tracking, &tracked, site);
    items.extend(segment);
    items.extend(density_items(frame, analysis, &lung.whole));
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

fn third(
    frame: &Frame<'_>,
    analysis: &CtAnalysis,
    lung: &CtLung,
    (concept, message, english): &(Concept<'static>, &str, &str),
    densities: &CtDensities,
) -> Item {
    let texts = frame.texts;
    let arguments = [("lung", ct_words::lung_name(texts, lung.side).into()), ("third", texts.say(message, &[]).into())];
    let tracking = texts.say("track-third", &arguments);
    let tracked = format!("{}, {english} third", ct_words::lung_name(Texts::english(), lung.side));
    let site = vec![
        code(ConceptModifier, codes::LATERALITY, laterality(lung.side)),
        code(ConceptModifier, codes::TOPOGRAPHICAL_MODIFIER, *concept),
    ];
    let mut items = head(frame, analysis, &tracking, &tracked, site);
    items.extend(density_items(frame, analysis, densities));
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

/// Volume and densities.
fn density_items(frame: &Frame<'_>, analysis: &CtAnalysis, densities: &CtDensities) -> Vec<Item> {
    let texts = frame.texts;
    let method = text(ConceptModifier, codes::METHOD_TEXT, &analysis.method.segmentation);
    let densitometry = || text(ConceptModifier, codes::METHOD_TEXT, &analysis.method.densitometry);
    let density = |concept: Concept, value: Option<f64>, about: Vec<Item>| {
        number_or_comment(texts, concept, value.unwrap_or(f64::NAN), codes::HOUNSFIELD, about)
    };
    let share = |concept: Concept, share: f64, message: &str| {
        let meaning = text(ConceptModifier, codes::MEANING, &texts.say(message, &[]));
        number_or_comment(texts, concept, share * 100.0, codes::PERCENT, vec![meaning, densitometry()])
    };
    let mean = vec![code(ConceptModifier, codes::DERIVATION, codes::MEAN), densitometry()];
    let mut items = vec![
        number_or_comment(texts, codes::VOLUME, densities.volume_ml, codes::MILLILITRE, vec![method]),
        density(codes::ATTENUATION, densities.mean_hu, mean),
        density(codes::PERCENTILE_15, densities.percentile_15_hu, vec![densitometry()]),
    ];
    items.extend(
        BANDS.iter().zip(densities.band_fractions).map(|((message, concept), of)| share(*concept, of, message)),
    );
    items.push(share(codes::OPACITY_SHARE, densities.opacity_fraction(), "ct-opacity-meaning"));
    items
}

/// Qualitative Evaluations of a measured CT.
pub(super) fn evaluations(frame: &Frame<'_>, analysis: &CtAnalysis) -> Item {
    let bundle = &frame.record.bundle;
    let texts = frame.texts;
    let decisions: Vec<Decision> = [
        analysis.classification.as_ref().map(|scan| scan.decision),
        analysis.lesions.as_ref().map(|lesions| lesions.decision),
    ]
    .into_iter()
    .flatten()
    .collect();
    let complete = ct_words::failed_members(analysis).0 == 0 && analysis.not_judged.is_none();
    let mut items = vec![summary(bundle, &decisions, complete)];
    items.extend(quality(bundle, analysis.gates.iter()));
    items.extend(analysis.gates.iter().map(|gate| text(Contains, codes::GATE, &wording::gate(texts, gate))));
    items.push(text(Contains, codes::COMMENT, &ct_words::series(texts, analysis)));
    items.extend(analysis.excluded_series.iter().zip(ct_words::excluded_series(texts, analysis)).map(
        |(series, words)| {
            let reason = code(HasProperties, codes::REJECT_REASON, codes::reason(series.reason));
            with(text(Contains, codes::EXCLUDED_SERIES, &words), vec![reason])
        },
    ));
    items.extend(analysis.excluded.iter().map(|excluded| {
        with(
            text(Contains, codes::EXCLUDED_IMAGE, &wording::excluded(texts, excluded)),
            vec![
                code(HasProperties, codes::REJECT_REASON, codes::reason(excluded.reason)),
                image(InferredFrom, codes::SOURCE, &excluded.source),
            ],
        )
    }));
    items.push(text(Contains, codes::CONCLUSION, &ct_words::conclusion(texts, bundle, analysis)));
    items.extend(comments(frame));
    container(Some(Contains), codes::EVALUATIONS, items)
}
