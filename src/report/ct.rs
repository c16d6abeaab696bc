//! The results of a chest CT: measurement groups of the report, the overlay as a Secondary Capture image, and every
//! sentence about them.

use dicom_core::VR;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, RgbPixels, Shown, Sources,
    codes::{self, Concept},
    content::{
        ConceptModifier, Contains, HasProperties, InferredFrom, Item, ObservationContext, code, container, image,
        number_or_comment, reference, text, uid_reference, with,
    },
    ct_words,
    dataset::{Build, write},
    heat_map::{dimensions, put_annotation, put_body_part, put_equipment, put_lossy, put_pixels},
    modules::{Frame, Series, header_of},
    segments::Segment,
    source::SourceHeader,
    sr::{Groups, Report, Subject, algorithm, comments, quality, summary},
    texts::Texts,
    wording,
};
use crate::types::{
    BundleIdentity, BundleStatus, CtAnalysis, CtClassification, CtDensities, CtKeySlice, CtLesions, CtLung,
    CtLungLesions, CtPlane, Decision, RunOutcome, RunRecord, Side, SourceImage, Uid,
};

/// The words of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayWords {
    /// Stands above everything; empty unless the bundle is untrained.
    pub notice: String,
    /// The title.
    pub above: String,
    /// What was measured, and what it is not.
    pub below: Vec<String>,
}

/// What is written above and below the sections of a CT.
#[must_use]
pub fn ct_overlay_words(record: &RunRecord, analysis: &CtAnalysis) -> OverlayWords {
    let bundle = &record.bundle;
    let untrained = bundle.status == BundleStatus::Untrained;
    let mut below: Vec<String> = analysis.lungs.iter().map(lung_words).collect();
    below.extend(analysis.classification.iter().map(|scan| classification_words(bundle, scan)));
    below.extend(analysis.lesions.iter().flat_map(|lesions| lesion_lines(bundle, lesions)));
    below.extend(not_judged_words(analysis));
    below.push(LIMITS.to_owned());
    below.push(format!(
        "RESEARCH, UNVERIFIED. {} {} ({}), {}",
        bundle.name,
        bundle.version,
        wording::status(bundle.status),
        segmentation_words(analysis),
    ));
    OverlayWords {
        notice: if untrained { crate::types::UNTRAINED_NOTICE.to_owned() } else { String::new() },
        above: format!("AI chest CT lung measurement · {}", wording::NOT_FOR_DIAGNOSTIC_USE),
        below,
    }
}

/// What the bands are not.
const LIMITS: &str = "Density bands say how dense a voxel is, not what it is: vessels, airway walls, breathing depth, \
                      gravity, contrast medium, kernel and slice thickness change them.";

/// What the heat over slices is.
const SLICE_HEAT: &str = "Heat over slices shows regions that influenced the output, not lesion outlines.";

/// What outlines of lesions are.
const LESION_LIMITS: &str = "Lesions are what networks outlined, not what was seen by a reader; a slice that the networks \
                             did not see counts as one without lesion.";

/// The sentences of pictures, which are English.
fn segmentation_words(analysis: &CtAnalysis) -> String {
    ct_words::segmentation(analysis)
}

fn lung_words(lung: &CtLung) -> String {
    ct_words::lung(Texts::english(), lung)
}

fn classification_words(bundle: &BundleIdentity, scan: &CtClassification) -> String {
    ct_words::classification(Texts::english(), bundle, scan)
}

fn lesion_lines(bundle: &BundleIdentity, lesions: &CtLesions) -> Vec<String> {
    ct_words::lesions(Texts::english(), bundle, lesions)
}

fn not_judged_words(analysis: &CtAnalysis) -> Option<String> {
    ct_words::not_judged(Texts::english(), analysis)
}

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

/// Renders the overlay of a measured CT as a Secondary Capture image of its study. `sources` are in the order of arrival:
/// the last one gives patient and study.
///
/// # Errors
/// [`ReportError`] when the record is of no CT, its images have no headers, or the picture is none.
pub fn render_ct_overlay(
    record: &RunRecord,
    sources: Sources<'_>,
    overlay_rgb: &RgbPixels,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let RunOutcome::CtMeasured(analysis) = &record.outcome else {
        return Err(ReportError::NoSuchImage { image_idx: 0, analysed: 0 });
    };
    let (columns, rows) = dimensions(overlay_rgb)?;
    let images = &analysis.series.images;
    let header = images
        .iter()
        .find_map(|image| header_of(sources, image))
        .ok_or_else(|| ReportError::NoSource { study_instance_uid: record.study_instance_uid.clone() })?;
    let frame = Frame::new(record, sources, options)?;
    let sop_class_uid = Uid::new(uids::SECONDARY_CAPTURE_IMAGE_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let identity = frame.identity("sc", &sop_class_uid, 1);
    let series = Series {
        modality: "OT",
        number: "9004",
        description: wording::ct_overlay_series(&record.bundle),
        instance_number: 1,
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    let shown: Vec<&SourceHeader> = shown_images(analysis).filter_map(|image| header_of(sources, image)).collect();
    put_image(&mut data_set, record, analysis, header, &shown);
    put_equipment(&mut data_set, &frame);
    put_references(&mut data_set, analysis);
    put_pixels(&mut data_set, rows, columns, &overlay_rgb.bytes);
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &options.file_meta, ResultKind::Sc, identity)
}

/// The images whose pixels are in the overlay: all of them where it has a coronal section.
fn shown_images(analysis: &CtAnalysis) -> impl Iterator<Item = &SourceImage> {
    let all = analysis.sections.iter().any(|section| section.plane == CtPlane::Coronal);
    analysis.series.images.iter().enumerate().filter_map(move |(index, image)| {
        (all || analysis.sections.iter().any(|section| section.index == index)).then_some(image)
    })
}

fn put_image(
    data_set: &mut InMemDicomObject,
    record: &RunRecord,
    analysis: &CtAnalysis,
    header: &SourceHeader,
    shown: &[&SourceHeader],
) {
    data_set.put_text(tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY\\AI_OVERLAY");
    // Sections of two planes have no orientation in common.
    data_set.put_text(tags::PATIENT_ORIENTATION, VR::CS, "");
    put_body_part(data_set, header);
    put_annotation(data_set, shown);
    put_lossy(data_set, shown);
    let comment = format!("AI chest CT lung measurement. {}. {LIMITS}", wording::NOT_FOR_DIAGNOSTIC_USE);
    data_set.put_text(tags::IMAGE_COMMENTS, VR::LT, &wording::with_notice(&record.bundle, comment));
    let bundle = &record.bundle;
    let derivation = format!(
        "{}. Sections of the CT with the outlines of the lungs by {} of {} {} (bundle sha256:{}); coloured in the lungs: \
         -700 HU and above, -100 HU and above.{}",
        wording::NOT_FOR_DIAGNOSTIC_USE,
        segmentation_words(analysis),
        bundle.name,
        bundle.version,
        bundle.digest,
        [
            analysis.classification.as_ref().map(|_| format!(" {SLICE_HEAT}")),
            analysis.lesions.as_ref().map(|_| format!(" Dashed outlines: lesions by networks. {LESION_LIMITS}")),
        ]
        .into_iter()
        .flatten()
        .collect::<String>(),
    );
    data_set.put_text(tags::DERIVATION_DESCRIPTION, VR::ST, &wording::with_notice(bundle, derivation));
    data_set.put_code(tags::DERIVATION_CODE_SEQUENCE, codes::CT_OVERLAY);
}

/// The axial sections' images as sources, and the whole series.
fn put_references(data_set: &mut InMemDicomObject, analysis: &CtAnalysis) {
    let images = &analysis.series.images;
    let shown = analysis.sections.iter().filter(|section| section.plane == CtPlane::Axial);
    let sources = shown
        .filter_map(|section| images.get(section.index))
        .map(|source| {
            let mut derived_from = reference(&source.sop_class_uid, &source.sop_instance_uid);
            derived_from.put_code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, codes::SOURCE_IMAGE);
            derived_from.put_text(tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "NO");
            derived_from
        })
        .collect();
    data_set.put_items(tags::SOURCE_IMAGE_SEQUENCE, sources);
    let mut series = InMemDicomObject::new_empty();
    series.put_uid(tags::SERIES_INSTANCE_UID, &analysis.series.series_instance_uid);
    let instances = images.iter().map(|image| reference(&image.sop_class_uid, &image.sop_instance_uid)).collect();
    series.put_items(tags::REFERENCED_INSTANCE_SEQUENCE, instances);
    data_set.put_items(tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
}
