//! The results of a chest CT: measurement groups of the report, the overlay as a Secondary Capture image, and every
//! sentence about them.

use dicom_core::VR;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, RgbPixels, Sources,
    codes::{self, Concept},
    content::{
        ConceptModifier, Contains, HasProperties, InferredFrom, Item, ObservationContext, code, container, image,
        number_or_comment, reference, text, uid_reference, with,
    },
    dataset::{Build, write},
    heat_map::{dimensions, put_annotation, put_body_part, put_equipment, put_lossy, put_pixels},
    modules::{Frame, Series, header_of},
    source::SourceHeader,
    sr::{Groups, Subject, algorithm, comments},
    uids::uid,
    wording,
};
use crate::types::{
    BundleIdentity, BundleStatus, CtAnalysis, CtClassification, CtDensities, CtKeySlice, CtLesionRun, CtLesions,
    CtLung, CtLungLesions, CtPlane, NotJudged, RunOutcome, RunRecord, Side, SourceImage, Uid,
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

/// How the lungs were found.
const TECHNIQUE: &str = "Lungs by threshold and connected components without trained weights (after Hu, Hoffman, \
                         Reinhardt, IEEE TMI 2001;20:490-498); trachea and main bronchi taken out, vessels within the \
                         lungs included. Consolidated lobes, effusions and masses that reach the pleura over more than \
                         about 2 cm are not found and make a lung measure too small.";

/// How the lungs were found, with a network.
const NETWORK_TECHNIQUE: &str = "Lungs by a network that looks at slices (after Hofmanninger et al., Eur Radiol Exp \
                                 2020;4:50), its largest piece on each side, vessels within the lungs included.";

/// What the heat over slices is.
const SLICE_HEAT: &str = "Heat over slices shows regions that influenced the output, not lesion outlines.";

/// What outlines of lesions are.
const LESION_LIMITS: &str = "Lesions are what networks outlined, not what was seen by a reader; a slice that the networks \
                             did not see counts as one without lesion.";

/// Name and version of the segmentation, with the threshold where there is one.
fn segmentation_words(analysis: &CtAnalysis) -> String {
    let method = &analysis.method;
    match method.threshold_hu {
        Some(threshold_hu) => format!("{}, threshold {threshold_hu} HU", method.segmentation),
        None => method.segmentation.clone(),
    }
}

/// What the networks said of a scan, in sentences.
pub(super) fn classification_words(bundle: &BundleIdentity, scan: &CtClassification) -> String {
    let keys: Vec<String> = scan.key_slices.iter().map(key_slice_words).collect();
    let keys = if keys.is_empty() {
        format!("No slice speaks for class {}.", wording::target_label(bundle))
    } else {
        format!("Slices that speak most for class {}: {}.", wording::target_label(bundle), keys.join("; "))
    };
    format!(
        "{} {} {} {} slice(s) seen, {}. {keys} {}.",
        wording::outputs(bundle, scan.into()),
        wording::operating_point(bundle, scan.into()),
        wording::members(bundle, scan.into()),
        scan.slices.len(),
        scan.aggregation,
        wording::localisation(scan.into()),
    )
}

/// What the networks outlined and what the rule makes of it, in a few lines.
pub(super) fn lesion_lines(bundle: &BundleIdentity, lesions: &CtLesions) -> Vec<String> {
    let of_lungs: Vec<String> = lesions.lungs.iter().map(lung_lesion_words).collect();
    let mut lines = vec![
        format!(
            "Outlined by networks, class {}: {:.1} ml in all; {}.",
            wording::target_label(bundle),
            lesions.volume_ml,
            of_lungs.join(", ")
        ),
        format!("Rule: {}.", lesions.rule),
        format!(
            "{} {} of {} slice(s) seen hold that much lesion, at most {} of them in a run. {}",
            run_words(lesions.run.as_ref()),
            lesions.slices_with_lesion,
            lesions.slices.len(),
            lesions.longest_run,
            wording::rule_decision(bundle, lesions)
        ),
    ];
    lines.extend(lesions.members.iter().filter_map(|member| {
        let words = member.failure.as_deref()?;
        Some(format!("Member {} failed: {words}.", member.name))
    }));
    lines
}

/// Why the networks said nothing of a scan that was measured; `None` where they judged it or there are none.
pub(super) fn not_judged_words(analysis: &CtAnalysis) -> Option<String> {
    let NotJudged { reason, words } = analysis.not_judged.as_ref()?;
    Some(format!(
        "The networks of the bundle did not judge the scan because {} ({}).",
        words.trim_end_matches('.'),
        reason.id()
    ))
}

fn lung_lesion_words(lung: &CtLungLesions) -> String {
    let share = lung.fraction.map_or_else(|| "no value".to_owned(), wording::percent);
    format!("{:.1} ml in the {} lung ({share} of it)", lung.volume_ml, lung.side.name())
}

/// Whether the rule is satisfied, and where.
fn run_words(run: Option<&CtLesionRun>) -> String {
    run.map_or_else(
        || "The rule is not satisfied: there is no such run of slices.".to_owned(),
        |run| {
            format!(
                "The rule is satisfied first by {} slice(s), {} to {} from the feet, {} quadrant of the image.",
                run.slices,
                run.first_slice + 1,
                run.last_slice + 1,
                run.quadrant.name()
            )
        },
    )
}

/// A slice by its number from the feet, as the overlay names it.
fn key_slice_words(key: &CtKeySlice) -> String {
    let output = key.output.map_or_else(String::new, |output| format!(", output {}", wording::percent(output)));
    let heat = key
        .lung_heat_fraction
        .map_or_else(String::new, |share| format!(", {} of its heat in the lungs", wording::percent(share)));
    format!("slice {} from the feet{output}{heat}", key.slice + 1)
}

/// (band, its code, its bounds) in the order of the fractions.
fn bands() -> [(&'static str, Concept<'static>); 5] {
    [
        ("emphysema-like, below -950 HU", codes::BAND_EMPHYSEMA),
        ("well aerated, -950 to -700 HU", codes::BAND_AERATED),
        ("ground-glass-like, -700 to -500 HU", codes::BAND_GROUND_GLASS),
        ("poorly aerated, -500 to -100 HU", codes::BAND_POORLY_AERATED),
        ("consolidation-like, -100 HU and above", codes::BAND_CONSOLIDATION),
    ]
}

fn hounsfield(value: Option<f64>) -> String {
    value.map_or_else(|| "no value".to_owned(), |value| format!("{value:.0} HU"))
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Right => "Right lung",
        Side::Left => "Left lung",
    }
}

/// A lung in one line.
pub(super) fn lung_words(lung: &CtLung) -> String {
    let whole = &lung.whole;
    format!(
        "{}: {:.0} ml, mean {}, 15th percentile {}; -700 HU and above {}, -100 HU and above {}, below -950 HU {}.",
        side_name(lung.side),
        whole.volume_ml,
        hounsfield(whole.mean_hu),
        hounsfield(whole.percentile_15_hu),
        wording::percent(whole.opacity_fraction()),
        wording::percent(whole.consolidation_fraction()),
        wording::percent(whole.band_fractions[0])
    )
}

/// The thirds of a lung in one line each.
pub(super) fn third_words(lung: &CtLung) -> Vec<String> {
    let names = ["upper", "middle", "lower"];
    names
        .iter()
        .zip(&lung.thirds)
        .map(|(name, third)| {
            format!(
                "{} third: {:.0} ml, mean {}; -700 HU and above {}, -100 HU and above {}",
                name,
                third.volume_ml,
                hounsfield(third.mean_hu),
                wording::percent(third.opacity_fraction()),
                wording::percent(third.consolidation_fraction())
            )
        })
        .collect()
}

/// Which series was measured, in one sentence.
pub(super) fn series_words(analysis: &CtAnalysis) -> String {
    let series = &analysis.series;
    let [columns, rows, slices] = series.size;
    let [x, y, z] = series.spacing_mm;
    let thickness = series.slice_thickness_mm.map_or_else(String::new, |mm| format!(", slices {mm:.2} mm thick"));
    let kernel = series.convolution_kernel.as_ref().map_or_else(String::new, |kernel| format!(", kernel {kernel}"));
    format!(
        "Measured series {}: {columns} x {rows} x {slices} voxels of {x:.3} x {y:.3} x {z:.3} mm{thickness}{kernel}; \
         chosen: {}.",
        series.series_instance_uid, series.why_chosen
    )
}

/// The series that were not measured, a sentence each.
pub(super) fn excluded_series_words(analysis: &CtAnalysis) -> Vec<String> {
    analysis
        .excluded_series
        .iter()
        .map(|series| {
            format!(
                "Series {} ({}, {} image(s)) not measured: {} ({})",
                series.series_instance_uid,
                series.modality,
                series.images,
                series.words.trim_end_matches('.'),
                series.reason.id()
            )
        })
        .collect()
}

/// What was measured, line by line, as the status page shows it.
#[must_use]
pub fn ct_measurement_lines(bundle: &BundleIdentity, analysis: &CtAnalysis) -> Vec<String> {
    let mut lines = vec![series_words(analysis)];
    for lung in &analysis.lungs {
        lines.push(lung_words(lung));
        lines.extend(third_words(lung).into_iter().map(|third| format!("{}, {third}", side_name(lung.side))));
    }
    lines.extend(analysis.classification.iter().map(|scan| classification_words(bundle, scan)));
    lines.extend(analysis.lesions.iter().flat_map(|lesions| lesion_lines(bundle, lesions)));
    lines.extend(not_judged_words(analysis));
    lines.extend(excluded_series_words(analysis));
    lines.push(LIMITS.to_owned());
    lines
}

/// What a report about a CT ends with, after the lines that every report has.
pub(super) fn disclaimer(analysis: &CtAnalysis) -> Vec<String> {
    let technique = if analysis.method.threshold_hu.is_some() { TECHNIQUE } else { NETWORK_TECHNIQUE };
    let heat = analysis.classification.as_ref().map(|_| SLICE_HEAT.to_owned());
    let lesions = analysis.lesions.as_ref().map(|_| LESION_LIMITS.to_owned());
    [LIMITS.to_owned(), technique.to_owned()].into_iter().chain(heat).chain(lesions).collect()
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
pub(super) fn conclusion(bundle: &BundleIdentity, analysis: &CtAnalysis) -> String {
    let lungs: Vec<String> = analysis.lungs.iter().map(lung_words).collect();
    let mut words = format!("AI chest CT lung measurement. {}", lungs.join(" "));
    if let Some(scan) = &analysis.classification {
        words = format!("{words} AI: {}", classification_words(bundle, scan));
    }
    if let Some(lesions) = &analysis.lesions {
        words = format!("{words} AI: {}", lesion_lines(bundle, lesions).join(" "));
    }
    if let Some(not_judged) = not_judged_words(analysis) {
        words = format!("{words} {not_judged}");
    }
    wording::with_notice(bundle, words)
}

/// The Imaging Measurements container: a TID 1501 group for each lung and each third of it.
pub(super) fn measurements(frame: &Frame<'_>, analysis: &CtAnalysis) -> Item {
    let bundle = &frame.record.bundle;
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    let has_networks = bundle.networks().next().is_some();
    let family = if has_networks { codes::ARTIFICIAL_INTELLIGENCE } else { codes::MORPHOLOGICAL_OPERATIONS };
    let mut items = algorithm(&bundle.name, &bundle.version, &parameters, family);
    for lung in &analysis.lungs {
        items.push(group(frame, analysis, lung, None, &lung.whole));
        for (third, densities) in [codes::UPPER, codes::MIDDLE, codes::LOWER].into_iter().zip(&lung.thirds) {
            items.push(group(frame, analysis, lung, Some(third), densities));
        }
    }
    if let Some(scan) = &analysis.classification {
        let subject = Subject::Series(&analysis.series.series_instance_uid);
        let groups = Groups { frame, subject, scores: scan.into(), name: None };
        items.extend(groups.scores());
        items
            .extend(scan.key_slices.iter().enumerate().filter_map(|(idx, key)| key_slice(&groups, analysis, idx, key)));
    }
    if let Some(lesions) = &analysis.lesions {
        items.push(all_lesions(frame, analysis, lesions));
        items.extend(lesions.lungs.iter().map(|lung| lung_lesions(frame, analysis, lung)));
    }
    container(Some(Contains), codes::MEASUREMENTS, items)
}

/// All that was outlined, the rule and the decision.
fn all_lesions(frame: &Frame<'_>, analysis: &CtAnalysis, lesions: &CtLesions) -> Item {
    let bundle = &frame.record.bundle;
    let mut items = head(frame, analysis, "Lesions", Vec::new());
    items.extend(finding(bundle));
    items.push(number_or_comment(codes::VOLUME, lesions.volume_ml, codes::MILLILITRE, Vec::new()));
    items.push(text(Contains, codes::LESION_RULE, &lesions.rule));
    for (concept, count) in
        [(codes::LESION_SLICES, lesions.slices_with_lesion), (codes::LESION_LONGEST, lesions.longest_run)]
    {
        items.push(number_or_comment(concept, count as f64, codes::SLICES, Vec::new()));
    }
    let first = lesions.run.and_then(|run| analysis.series.images.get(run.first_slice));
    let first = first.map(|source| image(InferredFrom, codes::SOURCE_OF_MEASUREMENT, source)).into_iter().collect();
    items.push(with(text(Contains, codes::LESION_RUN, &run_words(lesions.run.as_ref())), first));
    let decision = wording::allowed_decision(bundle, lesions.decision);
    items.push(code(Contains, codes::PRESENCE, codes::decision(decision)));
    let operating_point = format!("{} {LESION_LIMITS}", wording::rule_decision(bundle, lesions));
    items.push(text(Contains, codes::OPERATING_POINT_DESCRIPTION, &operating_point));
    for (member_idx, member) in lesions.members.iter().enumerate() {
        let state = if member.failure.is_some() { codes::FAILED } else { codes::SUCCEEDED };
        let name = format!("Member {}/{} {}", member_idx + 1, lesions.members.len(), member.name);
        let mut about = vec![text(HasProperties, codes::COMMENT, &name)];
        about.extend(member.failure.as_ref().map(|words| text(HasProperties, codes::COMMENT, words)));
        items.push(with(code(Contains, codes::MODEL_STATUS, state), about));
    }
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

/// What was outlined in one lung.
fn lung_lesions(frame: &Frame<'_>, analysis: &CtAnalysis, lung: &CtLungLesions) -> Item {
    let site = vec![code(ConceptModifier, codes::LATERALITY, laterality(lung.side))];
    let mut items = head(frame, analysis, &format!("Lesions, {} lung", lung.side.name()), site);
    items.extend(finding(&frame.record.bundle));
    items.push(number_or_comment(codes::VOLUME, lung.volume_ml, codes::MILLILITRE, Vec::new()));
    let share = lung.fraction.unwrap_or(f64::NAN);
    items.push(number_or_comment(codes::LESION_SHARE, share * 100.0, codes::PERCENT, Vec::new()));
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

/// The bundle's target class.
fn finding(bundle: &BundleIdentity) -> Option<Item> {
    let class = bundle.classes.get(bundle.target_class_idx)?;
    Some(code(Contains, codes::FINDING, (&class.code).into()))
}

/// A slice that speaks for the target class, with its image.
fn key_slice(groups: &Groups<'_>, analysis: &CtAnalysis, idx: usize, key: &CtKeySlice) -> Option<Item> {
    let source = || Some(image(InferredFrom, codes::SOURCE_OF_MEASUREMENT, analysis.series.images.get(key.slice)?));
    let words = format!("{}. {SLICE_HEAT}", key_slice_words(key));
    let mut items = vec![with(text(Contains, codes::KEY_SLICE, &words), vec![source()?])];
    if let Some(output) = key.output {
        let meaning = text(ConceptModifier, codes::MEANING, "Mean output of the members for this slice");
        items.push(number_or_comment(codes::CERTAINTY, output * 100.0, codes::PERCENT, vec![meaning, source()?]));
    }
    if let Some(share) = key.lung_heat_fraction {
        items.push(number_or_comment(codes::HEAT_IN_LUNGS, share * 100.0, codes::PERCENT, vec![source()?]));
    }
    let target = groups.frame.record.bundle.target_class_idx;
    Some(groups.group(&format!("Key slice {}", idx + 1), target, None, items))
}

const fn laterality(side: Side) -> Concept<'static> {
    match side {
        Side::Right => codes::RIGHT,
        Side::Left => codes::LEFT,
    }
}

/// What a measurement group of this name begins with: its tracking identity, the lung as its site, the series.
fn head(frame: &Frame<'_>, analysis: &CtAnalysis, tracking: &str, site: Vec<Item>) -> Vec<Item> {
    let record = frame.record;
    let series = &analysis.series.series_instance_uid;
    // The same for every revision that measures this series with a bundle of this name.
    let tracking_uid = uid(
        "tracking",
        &[
            &record.installation.id.to_string(),
            record.study_instance_uid.as_str(),
            series.as_str(),
            &record.bundle.name,
            tracking,
        ],
    );
    vec![
        text(ObservationContext, codes::TRACKING_ID, tracking),
        uid_reference(ObservationContext, codes::TRACKING_UID, &tracking_uid),
        with(code(ConceptModifier, codes::FINDING_SITE, codes::LUNG), site),
        uid_reference(Contains, codes::SOURCE_SERIES, series),
    ]
}

fn group(
    frame: &Frame<'_>,
    analysis: &CtAnalysis,
    lung: &CtLung,
    third: Option<Concept>,
    densities: &CtDensities,
) -> Item {
    let tracking = match third {
        None => side_name(lung.side).to_owned(),
        Some(third) => format!("{}, {} third", side_name(lung.side), third.meaning.to_lowercase()),
    };
    let mut site = vec![code(ConceptModifier, codes::LATERALITY, laterality(lung.side))];
    site.extend(third.map(|third| code(ConceptModifier, codes::TOPOGRAPHICAL_MODIFIER, third)));
    let mut items = head(frame, analysis, &tracking, site);
    let method = || text(ConceptModifier, codes::METHOD_TEXT, &analysis.method.segmentation);
    items.push(number_or_comment(codes::VOLUME, densities.volume_ml, codes::MILLILITRE, vec![method()]));
    let density = |concept: Concept, value: Option<f64>, about: Vec<Item>| {
        number_or_comment(concept, value.unwrap_or(f64::NAN), codes::HOUNSFIELD, about)
    };
    let densitometry = || text(ConceptModifier, codes::METHOD_TEXT, &analysis.method.densitometry);
    let mean = vec![code(ConceptModifier, codes::DERIVATION, codes::MEAN), densitometry()];
    items.push(density(codes::ATTENUATION, densities.mean_hu, mean));
    items.push(density(codes::PERCENTILE_15, densities.percentile_15_hu, vec![densitometry()]));
    let meaning = |words: &str| text(ConceptModifier, codes::MEANING, words);
    let percent = |concept: Concept, share: f64, words: &str| {
        number_or_comment(concept, share * 100.0, codes::PERCENT, vec![meaning(words), densitometry()])
    };
    for ((words, concept), share) in bands().into_iter().zip(densities.band_fractions) {
        items.push(percent(concept, share, &format!("Share of the volume: {words}")));
    }
    items.push(percent(
        codes::OPACITY_SHARE,
        densities.opacity_fraction(),
        "Share of the volume at -700 HU and above, vessels included",
    ));
    container(Some(Contains), codes::MEASUREMENT_GROUP, items)
}

/// Qualitative Evaluations of a measured CT.
pub(super) fn evaluations(frame: &Frame<'_>, analysis: &CtAnalysis) -> Item {
    let bundle = &frame.record.bundle;
    let mut items = vec![code(Contains, codes::ANALYSIS_STATUS, codes::SUCCEEDED)];
    if bundle.status != BundleStatus::Untrained {
        let all_passed = analysis.gates.iter().all(|gate| gate.passed);
        let quality = if all_passed { codes::DIAGNOSTIC_QUALITY } else { codes::LIMITED_QUALITY };
        items.push(code(Contains, codes::QUALITY, quality));
    }
    items.extend(analysis.gates.iter().map(|gate| text(Contains, codes::GATE, &wording::gate(gate))));
    items.push(text(Contains, codes::COMMENT, &series_words(analysis)));
    items.extend(analysis.excluded_series.iter().zip(excluded_series_words(analysis)).map(|(series, words)| {
        let reason = code(HasProperties, codes::REJECT_REASON, codes::reason(series.reason));
        with(text(Contains, codes::EXCLUDED_SERIES, &words), vec![reason])
    }));
    items.extend(analysis.excluded.iter().map(|excluded| {
        with(
            text(Contains, codes::EXCLUDED_IMAGE, &wording::excluded(excluded)),
            vec![
                code(HasProperties, codes::REJECT_REASON, codes::reason(excluded.reason)),
                image(InferredFrom, codes::SOURCE, &excluded.source),
            ],
        )
    }));
    items.push(text(Contains, codes::CONCLUSION, &conclusion(bundle, analysis)));
    items.extend(comments(frame.record));
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
