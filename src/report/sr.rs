//! The report: TID 1500 with one TID 1501 group for each class, member and lung, as Comprehensive, Enhanced or
//! Comprehensive 3D SR; what is the same for the report in sentences too.
//!
//! The tree is restricted to what Enhanced SR allows, so that it is the same in all three classes. Where it differs from
//! TID 1500 as others write it, there is a reason:
//!
//! * Only the target class has an operating point and a decision: the bundle has none for the others.
//! * The summary says "with" or "without findings" only where every decision is made; a bundle that is not validated
//!   makes none, and its analysis has a status instead.
//! * An earlier image of the patient has no IMAGE item: what is known of it names neither its SOP class nor its series,
//!   and a reference that is in no evidence sequence is unreadable to viewers.
//! * A rejection names the algorithm among the qualitative evaluations, having no measurements that would name it.

use std::{borrow::Cow, collections::BTreeSet};

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ReportForm, ResultKind, Shown, Sources, basic_text,
    codes::{self, Concept},
    content::{
        AcquisitionContext, ConceptModifier, Contains, HasProperties, InferredFrom, Item, ObservationContext, code,
        container, copied_code, copied_date, copied_time, image, number, number_or_comment, reference, segment, text,
        uid_reference, with,
    },
    ct, ct_words,
    dataset::{Build, Identity, write},
    modules::{Frame, MODEL_NAME, Series, header_of},
    segments::{Segment, segment_number, segmentation_identity},
    source::ascii,
    texts::{ENGLISH, Texts},
    wording,
};
use crate::types::{
    BundleIdentity, BundleStatus, CxrAnalysis, Decision, GateResult, ImageAnalysis, MemberScore, NotAnalysed,
    PredecessorDocument, ReasonCode, ReportClass, RunOutcome, RunRecord, SimilarCases, SourceImage, Uid,
    cosine_of_distance,
};

/// A report being made.
pub(super) struct Report<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) sources: Sources<'a>,
    /// Every image that was read, each once: the analysed ones first.
    pub(super) images: Vec<SourceImage>,
    with_segmentation: bool,
}

impl<'a> Report<'a> {
    fn new(
        record: &'a RunRecord,
        sources: Sources<'a>,
        form: &ReportForm,
        options: &'a RenderOptions,
    ) -> Result<Self, ReportError> {
        Ok(Self {
            frame: Frame::new(record, sources, options)?.in_language(&form.language),
            sources,
            images: images_read(record, sources)?,
            with_segmentation: form.with_segmentation,
        })
    }

    pub(super) fn texts(&self) -> Texts<'a> {
        self.frame.texts
    }

    /// The segment that a group measures; `None` in a report without segmentation, or when there is no such segment.
    pub(super) fn segment(&self, shown: Shown, of: Segment) -> Result<Option<Item>, ReportError> {
        match segment_number(self.frame.record, shown, of) {
            Some(number) if self.with_segmentation => {
                Ok(Some(segment(codes::SOURCE, &segmentation_identity(&self.frame, shown)?, number)))
            }
            _ => Ok(None),
        }
    }

    /// What the tree may refer to: the images that were read, and our segmentations.
    fn instances(&self) -> Result<Vec<Identity>, ReportError> {
        let mut instances: Vec<Identity> = self
            .images
            .iter()
            .map(|image| Identity {
                sop_class_uid: image.sop_class_uid.clone(),
                sop_instance_uid: image.sop_instance_uid.clone(),
                series_instance_uid: image.series_instance_uid.clone(),
            })
            .collect();
        let shown = match &self.frame.record.outcome {
            RunOutcome::Analysed(analysis) => (0..analysis.images.len()).map(Shown::Radiograph).collect(),
            RunOutcome::CtMeasured(_) => vec![Shown::Ct],
            RunOutcome::NotAnalysed(_) => Vec::new(),
        };
        for shown in shown {
            instances.push(segmentation_identity(&self.frame, shown)?);
        }
        Ok(instances)
    }
}

/// Renders the report of a run in a form: scores, or why there are none.
///
/// `sources` are in the order of arrival: the last one gives patient and study. The headers of all analysed
/// images are needed; those of other images may be missing. Each form has SOP Instance UIDs of its own.
///
/// # Errors
/// [`ReportError`] when headers are missing or foreign, or the record contradicts itself.
pub fn render_report(
    record: &RunRecord,
    sources: Sources<'_>,
    form: &ReportForm,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let report = Report::new(record, sources, form, options)?;
    let tree = match form.class {
        ReportClass::BasicText => basic_text::content_tree(&report),
        ReportClass::Comprehensive | ReportClass::Enhanced | ReportClass::Comprehensive3d => content_tree(&report)?,
    };
    finish(&report, form, &Place { role: "sr", number: "9001", kind: ResultKind::Sr }, tree)
}

/// Renders the report in sentences that accompanies the one with measurements, in a series of its own. The class of the
/// form does not matter: it is always Basic Text SR.
///
/// # Errors
/// Those of [`render_report`].
pub fn render_text_companion(
    record: &RunRecord,
    sources: Sources<'_>,
    form: &ReportForm,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let form = ReportForm { class: ReportClass::BasicText, ..form.clone() };
    let report = Report::new(record, sources, &form, options)?;
    let tree = basic_text::content_tree(&report);
    finish(&report, &form, &Place { role: "sr_text", number: "9002", kind: ResultKind::SrText }, tree)
}

/// Where a report stands among the results.
struct Place {
    role: &'static str,
    /// (0020,0011)
    number: &'static str,
    kind: ResultKind,
}

impl Place {
    /// The role in UIDs: reports of different forms never share one, nor do those of a site's different sentences. The
    /// plain form has the role of former versions.
    fn role(&self, form: &ReportForm, texts: Texts<'_>) -> String {
        let ReportForm { class, language, with_segmentation, predecessor } = form;
        let mut role = self.role.to_owned();
        // The classes of a report are one series, but for the sentences: their series says that it is of text.
        if *class == ReportClass::BasicText && self.kind == ResultKind::Sr {
            role.push_str(" in sentences");
        }
        if language != ENGLISH {
            role.extend([" in ", language]);
        }
        if let Some(file) = texts.file() {
            role.extend([" of ".to_owned(), file.to_string()]);
        }
        if *with_segmentation {
            role.push_str(" with segmentation");
        }
        if let Some(predecessor) = predecessor {
            role.extend([" after ", predecessor.sop_instance_uid.as_str()]);
        }
        role
    }
}

/// (0008,0016)
pub(super) const fn sop_class(class: ReportClass) -> &'static str {
    match class {
        ReportClass::Comprehensive => uids::COMPREHENSIVE_SR_STORAGE,
        ReportClass::Enhanced => uids::ENHANCED_SR_STORAGE,
        ReportClass::Comprehensive3d => uids::COMPREHENSIVE3_DSR_STORAGE,
        ReportClass::BasicText => uids::BASIC_TEXT_SR_STORAGE,
    }
}

/// The document around a tree.
fn finish(report: &Report<'_>, form: &ReportForm, place: &Place, tree: Item) -> Result<RenderedObject, ReportError> {
    let Report { frame, .. } = report;
    let record = frame.record;
    let sop_class_uid = Uid::new(sop_class(form.class))
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let identity = frame.identity(&place.role(form, frame.texts), &sop_class_uid, 1);
    let analysed = !matches!(record.outcome, RunOutcome::NotAnalysed(_));
    let is_text = form.class == ReportClass::BasicText;
    let series = Series {
        modality: "SR",
        number: place.number,
        description: wording::report_series(frame.texts, &record.bundle, analysed, is_text),
        instance_number: 1,
    };
    let mut instances = report.instances()?;
    let mut referenced = BTreeSet::new();
    referenced_instances(&tree, &mut referenced);
    instances.retain(|instance| referenced.contains(instance.sop_instance_uid.as_str()));
    let mut data_set = frame.data_set(&identity, &series, frame.newest);
    put_document(&mut data_set, frame, &instances, form.predecessor.as_ref());
    for element in tree {
        data_set.put(element);
    }
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &frame.options.file_meta, place.kind, identity)
}

/// The SOP Instance UIDs that a tree refers to.
fn referenced_instances(item: &Item, found: &mut BTreeSet<String>) {
    fn items(item: &Item, tag: Tag) -> &[Item] {
        item.get(tag).and_then(|element| element.items()).unwrap_or_default()
    }
    for referenced in items(item, tags::REFERENCED_SOP_SEQUENCE) {
        let uid = referenced.get(tags::REFERENCED_SOP_INSTANCE_UID).and_then(|element| element.to_str().ok());
        found.extend(uid.map(Cow::into_owned));
    }
    for child in items(item, tags::CONTENT_SEQUENCE) {
        referenced_instances(child, found);
    }
}

/// Every image that was read, each once: the analysed ones first.
fn images_read(record: &RunRecord, sources: Sources<'_>) -> Result<Vec<SourceImage>, ReportError> {
    let named: Vec<&SourceImage> = match &record.outcome {
        RunOutcome::Analysed(analysis) => {
            if let Some(image) = analysis.images.iter().find(|image| header_of(sources, &image.source).is_none()) {
                return Err(ReportError::SourceMissing { sop_instance_uid: image.source.sop_instance_uid.clone() });
            }
            let analysed = analysis.images.iter().map(|image| &image.source);
            analysed.chain(analysis.excluded.iter().map(|excluded| &excluded.source)).collect()
        }
        RunOutcome::CtMeasured(analysis) => {
            analysis.series.images.iter().chain(analysis.excluded.iter().map(|excluded| &excluded.source)).collect()
        }
        // A report without evidence is unreadable to viewers: what was received is what was looked at.
        RunOutcome::NotAnalysed(not_analysed) if not_analysed.sources.is_empty() => {
            sources.iter().map(|(source, _)| source).collect()
        }
        RunOutcome::NotAnalysed(not_analysed) => not_analysed.sources.iter().collect(),
    };
    let mut images: Vec<SourceImage> = Vec::new();
    for image in named {
        if !images.iter().any(|known| known.sop_instance_uid == image.sop_instance_uid) {
            images.push(image.clone());
        }
    }
    Ok(images)
}

/// SR Document Series and SR Document General. `instances` are those that the tree refers to.
fn put_document(
    data_set: &mut InMemDicomObject,
    frame: &Frame<'_>,
    instances: &[Identity],
    predecessor: Option<&PredecessorDocument>,
) {
    let record = frame.record;
    let (flag, description) = completion(frame.texts, &record.outcome);
    data_set.put_text(tags::COMPLETION_FLAG, VR::CS, flag);
    if let Some(description) = description {
        data_set.put_text(tags::COMPLETION_FLAG_DESCRIPTION, VR::LO, &description);
    }
    data_set.put_text(tags::VERIFICATION_FLAG, VR::CS, "UNVERIFIED");
    data_set.put_items(tags::REFERENCED_PERFORMED_PROCEDURE_STEP_SEQUENCE, Vec::new());
    data_set.put_items(tags::PERFORMED_PROCEDURE_CODE_SEQUENCE, Vec::new());
    data_set.put_items(tags::AUTHOR_OBSERVER_SEQUENCE, vec![author(frame)]);
    data_set.put_items(tags::REFERENCED_REQUEST_SEQUENCE, vec![request(frame)]);
    let evidence = evidence(&record.study_instance_uid, instances);
    data_set.put_items(tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE, vec![evidence]);
    if let Some(predecessor) = predecessor {
        let items = vec![predecessor_item(&record.study_instance_uid, predecessor)];
        data_set.put_items(tags::PREDECESSOR_DOCUMENTS_SEQUENCE, items);
    }
}

/// (0040,A491) and (0040,A492).
fn completion(texts: Texts<'_>, outcome: &RunOutcome) -> (&'static str, Option<String>) {
    let say = |message: &str| Some(texts.say(message, &[]));
    let of_members = |(failed, all): (usize, usize)| {
        Some(texts.say("members-runs-failed", &[("failed", failed.into()), ("all", all.into())]))
    };
    match outcome {
        RunOutcome::Analysed(analysis) => match wording::failed_members(analysis) {
            (0, _) => ("COMPLETE", None),
            failed => ("PARTIAL", of_members(failed)),
        },
        RunOutcome::CtMeasured(analysis) => match ct_words::failed_members(analysis) {
            (0, _) if analysis.not_judged.is_some() => ("PARTIAL", say("measured-not-judged")),
            (0, _) => ("COMPLETE", None),
            failed => ("PARTIAL", of_members(failed)),
        },
        RunOutcome::NotAnalysed(NotAnalysed { reason: ReasonCode::ProcessingFailure, .. }) => {
            ("COMPLETE", say("processing-failed"))
        }
        RunOutcome::NotAnalysed(_) => ("COMPLETE", say("input-rejected")),
    }
}

fn author(frame: &Frame<'_>) -> InMemDicomObject {
    let installation = &frame.record.installation;
    let mut author = InMemDicomObject::new_empty();
    author.put_text(tags::OBSERVER_TYPE, VR::CS, "DEV");
    author.put_text(tags::STATION_NAME, VR::SH, &installation.station_name);
    author.put_uid(tags::DEVICE_UID, &installation.device_uid);
    author.put_text(tags::MANUFACTURER, VR::LO, &frame.options.manufacturer);
    author.put_text(tags::MANUFACTURER_MODEL_NAME, VR::LO, MODEL_NAME);
    author.put_text(tags::INSTITUTION_NAME, VR::LO, &installation.institution_name);
    author.put_items(tags::INSTITUTION_CODE_SEQUENCE, Vec::new());
    author
}

/// The request that the study answers, as far as the image names it.
pub(super) fn request(frame: &Frame<'_>) -> InMemDicomObject {
    let newest = frame.newest;
    let attributes = newest.items(tags::REQUEST_ATTRIBUTES_SEQUENCE).first();
    let copied = |tag: Tag| attributes.and_then(|item| item.get(tag)).or_else(|| newest.element(tag));
    let mut request = InMemDicomObject::new_empty();
    request.put_uid(tags::STUDY_INSTANCE_UID, &frame.record.study_instance_uid);
    request.put_items(tags::REFERENCED_STUDY_SEQUENCE, Vec::new());
    request.copy_or_empty(tags::ACCESSION_NUMBER, VR::SH, newest.element(tags::ACCESSION_NUMBER));
    request.copy(newest.element(tags::ISSUER_OF_ACCESSION_NUMBER_SEQUENCE));
    for (tag, vr) in [
        (tags::PLACER_ORDER_NUMBER_IMAGING_SERVICE_REQUEST, VR::LO),
        (tags::FILLER_ORDER_NUMBER_IMAGING_SERVICE_REQUEST, VR::LO),
        (tags::REQUESTED_PROCEDURE_ID, VR::SH),
        (tags::REQUESTED_PROCEDURE_DESCRIPTION, VR::LO),
        (tags::REQUESTED_PROCEDURE_CODE_SEQUENCE, VR::SQ),
    ] {
        match copied(tag) {
            Some(element) => request.copy(Some(element)),
            None if vr == VR::SQ => request.put_items(tag, Vec::new()),
            None => request.copy_or_empty(tag, vr, None),
        }
    }
    request
}

/// Study, series, instances (PS3.3 table C.17-3).
pub(super) fn evidence(study_instance_uid: &Uid, instances: &[Identity]) -> InMemDicomObject {
    let series = by_series(instances, |instance| &instance.series_instance_uid)
        .into_iter()
        .map(|(series_instance_uid, instances)| {
            let references = instances
                .into_iter()
                .map(|instance| reference(&instance.sop_class_uid, &instance.sop_instance_uid))
                .collect();
            series_item(series_instance_uid, references)
        })
        .collect();
    study_item(study_instance_uid, series)
}

fn predecessor_item(study_instance_uid: &Uid, document: &PredecessorDocument) -> InMemDicomObject {
    let references = vec![reference(&document.sop_class_uid, &document.sop_instance_uid)];
    study_item(study_instance_uid, vec![series_item(&document.series_instance_uid, references)])
}

fn series_item(series_instance_uid: &Uid, references: Vec<InMemDicomObject>) -> InMemDicomObject {
    let mut series = InMemDicomObject::new_empty();
    series.put_uid(tags::SERIES_INSTANCE_UID, series_instance_uid);
    series.put_items(tags::REFERENCED_SOP_SEQUENCE, references);
    series
}

fn study_item(study_instance_uid: &Uid, series: Vec<InMemDicomObject>) -> InMemDicomObject {
    let mut study = InMemDicomObject::new_empty();
    study.put_uid(tags::STUDY_INSTANCE_UID, study_instance_uid);
    study.put_items(tags::REFERENCED_SERIES_SEQUENCE, series);
    study
}

/// The members of each series, in the order in which the series first occur.
pub(super) fn by_series<T>(all: &[T], series_of: impl Fn(&T) -> &Uid) -> Vec<(&Uid, Vec<&T>)> {
    let mut series: Vec<(&Uid, Vec<&T>)> = Vec::new();
    for one in all {
        let uid = series_of(one);
        match series.iter_mut().find(|(known, _)| *known == uid) {
            Some((_, members)) => members.push(one),
            None => series.push((uid, vec![one])),
        }
    }
    series
}

/// The root container; its attributes stand at the top level of the data set.
fn content_tree(report: &Report<'_>) -> Result<Item, ReportError> {
    let Report { frame, images, .. } = report;
    let mut children = context(frame);
    children.push(procedure_reported(frame, images));
    children.push(image_library(report));
    match &frame.record.outcome {
        RunOutcome::Analysed(analysis) => {
            children.push(measurements(report, analysis)?);
            children.push(evaluations(frame, analysis));
        }
        RunOutcome::CtMeasured(analysis) => {
            children.push(ct::measurements(report, analysis)?);
            children.push(ct::evaluations(frame, analysis));
        }
        RunOutcome::NotAnalysed(not_analysed) => children.push(rejection(frame, not_analysed)),
    }
    let mut root = container(None, codes::REPORT, children);
    let mut template = InMemDicomObject::new_empty();
    template.put_text(tags::MAPPING_RESOURCE, VR::CS, "DCMR");
    template.put_text(tags::TEMPLATE_IDENTIFIER, VR::CS, "1500");
    root.put_items(tags::CONTENT_TEMPLATE_SEQUENCE, vec![template]);
    Ok(root)
}

/// In which language, and who observed.
pub(super) fn context(frame: &Frame<'_>) -> Vec<Item> {
    let meaning = frame.texts.language_name();
    let mut items = vec![code(ConceptModifier, codes::LANGUAGE, codes::language(frame.texts.tag(), &meaning))];
    items.extend(observer(frame));
    items
}

/// TID 1001: who observed.
fn observer(frame: &Frame<'_>) -> Vec<Item> {
    let installation = &frame.record.installation;
    let mut items = vec![
        code(ObservationContext, codes::OBSERVER_TYPE, codes::DEVICE),
        uid_reference(ObservationContext, codes::OBSERVER_UID, &installation.device_uid),
    ];
    for (concept, value) in [
        (codes::OBSERVER_NAME, installation.station_name.as_str()),
        (codes::OBSERVER_MANUFACTURER, frame.options.manufacturer.as_str()),
        (codes::OBSERVER_MODEL, MODEL_NAME),
        (codes::OBSERVER_SERIAL, &installation.id.to_string()),
    ] {
        // A TEXT item must have a value.
        if !value.trim().is_empty() {
            items.push(text(ObservationContext, concept, value));
        }
    }
    items
}

/// The imaging procedure, as the source codes it.
fn procedure_reported(frame: &Frame<'_>, images: &[SourceImage]) -> Item {
    let of_source = frame.newest.items(tags::PROCEDURE_CODE_SEQUENCE).first().and_then(|item| {
        let value = item.get(tags::CODE_VALUE).or_else(|| item.get(tags::LONG_CODE_VALUE));
        let complete = [value, item.get(tags::CODING_SCHEME_DESIGNATOR), item.get(tags::CODE_MEANING)]
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .filter(|elements| elements.iter().all(|element| ascii(element).is_some()))?;
        let version = item.get(tags::CODING_SCHEME_VERSION);
        let mut code = InMemDicomObject::new_empty();
        complete.into_iter().chain(version).for_each(|element| code.copy(Some(element)));
        Some(code)
    });
    if let Some(procedure) = of_source {
        return copied_code(ConceptModifier, codes::PROCEDURE_REPORTED, procedure);
    }
    let ct = images.first().is_some_and(|image| image.modality == "CT");
    let procedure = if ct { codes::CHEST_CT } else { codes::CHEST_RADIOGRAPHY };
    code(ConceptModifier, codes::PROCEDURE_REPORTED, procedure)
}

/// TID 1600: every image that was read, a group for each series.
fn image_library(report: &Report<'_>) -> Item {
    let Report { frame, sources, images, .. } = report;
    let names: Vec<(&Uid, String)> = match &frame.record.outcome {
        RunOutcome::Analysed(analysis) if images.len() > 1 => {
            let analysed = analysis.images.iter().map(|image| &image.source);
            let read = analysed.chain(analysis.excluded.iter().map(|excluded| &excluded.source));
            read.enumerate()
                .map(|(idx, image)| (&image.sop_instance_uid, wording::image_name(frame.texts, idx)))
                .collect()
        }
        _ => Vec::new(),
    };
    let groups = by_series(images, |image| &image.series_instance_uid)
        .into_iter()
        .map(|(_, images)| {
            let modality = images.first().and_then(|image| codes::modality(&image.modality));
            let mut items: Vec<Item> =
                modality.map(|modality| code(AcquisitionContext, codes::MODALITY, modality)).into_iter().collect();
            items.push(code(AcquisitionContext, codes::TARGET_REGION, codes::CHEST));
            items.extend(frame_of_reference(sources, &images));
            items.extend(images.into_iter().map(|source| {
                let mut context = acquisition_context(sources, source);
                let name = names.iter().find(|(uid, _)| *uid == &source.sop_instance_uid);
                context.extend(name.map(|(_, name)| text(AcquisitionContext, codes::IMAGE_LABEL, name)));
                with(image(Contains, codes::SOURCE, source), context)
            }));
            container(Some(Contains), codes::IMAGE_LIBRARY_GROUP, items)
        })
        .collect();
    container(Some(Contains), codes::IMAGE_LIBRARY, groups)
}

/// The frame of reference of a CT series.
fn frame_of_reference(sources: Sources<'_>, images: &[&SourceImage]) -> Option<Item> {
    let image = images.iter().find(|image| image.modality == "CT")?;
    let uid = header_of(sources, image)?.ascii(tags::FRAME_OF_REFERENCE_UID)?;
    Some(uid_reference(AcquisitionContext, codes::FRAME_OF_REFERENCE, &Uid::new(&uid).ok()?))
}

/// What is known of an image; nothing when its header was not readable.
fn acquisition_context(sources: Sources<'_>, source: &SourceImage) -> Vec<Item> {
    let Some(header) = header_of(sources, source) else { return Vec::new() };
    let filled = |tag: Tag| header.element(tag).filter(|element| ascii(element).is_some());
    let pixels = |tag: Tag, concept: Concept| {
        number(AcquisitionContext, concept, f64::from(header.unsigned_16(tag)?), codes::PIXELS)
    };
    [
        filled(tags::STUDY_DATE).map(|date| copied_date(AcquisitionContext, codes::STUDY_DATE, date)),
        filled(tags::STUDY_TIME).map(|time| copied_time(AcquisitionContext, codes::STUDY_TIME, time)),
        pixels(tags::ROWS, codes::ROWS),
        pixels(tags::COLUMNS, codes::COLUMNS),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The Imaging Measurements container.
fn measurements(report: &Report<'_>, analysis: &CxrAnalysis) -> Result<Item, ReportError> {
    let frame = &report.frame;
    let bundle = &frame.record.bundle;
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    let mut items = algorithm(&bundle.name, &bundle.version, &parameters, codes::ARTIFICIAL_INTELLIGENCE);
    let names = wording::image_names(frame.texts, analysis);
    for (image_idx, (analysed, name)) in analysis.images.iter().zip(names).enumerate() {
        let subject = Subject::Image(&analysed.source);
        let groups = Groups { frame, subject, scores: analysed.into(), name };
        items.extend(groups.scores());
        for lung in [HeatInLung::right(analysed), HeatInLung::left(analysed)] {
            let segment = report.segment(Shown::Radiograph(image_idx), lung.segment)?;
            items.push(groups.lung(analysed, &lung, segment));
        }
        items.extend(groups.heat_in_lungs(analysed));
        items.extend(analysed.similar_cases.iter().flat_map(|similar| groups.similar(similar)));
    }
    Ok(container(Some(Contains), codes::MEASUREMENTS, items))
}

/// The share of one lung field that the heat map covers.
struct HeatInLung {
    segment: Segment,
    side: Concept<'static>,
    /// Its name in every language.
    tracked: &'static str,
    /// The message that names it.
    tracking: &'static str,
    fraction: Option<f64>,
}

impl HeatInLung {
    fn right(analysed: &ImageAnalysis) -> Self {
        Self {
            segment: Segment::RightLung,
            side: codes::RIGHT,
            tracked: "Heat map extent, right lung",
            tracking: "track-heat-right",
            fraction: analysed.right_lung_heat_fraction,
        }
    }

    fn left(analysed: &ImageAnalysis) -> Self {
        Self {
            segment: Segment::LeftLung,
            side: codes::LEFT,
            tracked: "Heat map extent, left lung",
            tracking: "track-heat-left",
            fraction: analysed.left_lung_heat_fraction,
        }
    }
}

/// TID 4019.
pub(super) fn algorithm(name: &str, version: &str, parameters: &[String], family: Concept) -> Vec<Item> {
    let mut items = vec![
        text(ConceptModifier, codes::ALGORITHM_NAME, name),
        text(ConceptModifier, codes::ALGORITHM_VERSION, version),
    ];
    items.extend(parameters.iter().map(|words| text(ConceptModifier, codes::ALGORITHM_PARAMETERS, words)));
    items.push(code(ConceptModifier, codes::ALGORITHM_FAMILY, family));
    items
}

/// What groups are about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// One image.
    Image(&'a SourceImage),
    /// A scan: the images of this series.
    Series(&'a Uid),
}

/// The TID 1501 groups of one image or scan.
pub(super) struct Groups<'a> {
    pub(super) frame: &'a Frame<'a>,
    pub(super) subject: Subject<'a>,
    pub(super) scores: wording::Scores<'a>,
    /// `Image n` when the study has several.
    pub(super) name: Option<String>,
}

impl Groups<'_> {
    fn bundle(&self) -> &BundleIdentity {
        &self.frame.record.bundle
    }

    fn texts(&self) -> Texts<'_> {
        self.frame.texts
    }

    /// A group with its tracking identity, its finding and the lung as its site. `tracking` names it in the language of
    /// the report; `tracked` stays whatever other languages and revisions call it.
    pub(super) fn group(
        &self,
        tracking: String,
        tracked: &str,
        class_idx: usize,
        laterality: Option<Concept>,
        items: Vec<Item>,
    ) -> Item {
        let subject_uid = match self.subject {
            Subject::Image(image) => &image.sop_instance_uid,
            Subject::Series(uid) => uid,
        };
        let identifier = wording::of_image(self.texts(), self.name.as_deref(), tracking);
        let mut children = vec![
            text(ObservationContext, codes::TRACKING_ID, &identifier),
            uid_reference(ObservationContext, codes::TRACKING_UID, &self.frame.tracking_uid(subject_uid, tracked)),
        ];
        children.extend(
            self.bundle().classes.get(class_idx).map(|class| code(Contains, codes::FINDING, (&class.code).into())),
        );
        let side = laterality.map(|side| code(ConceptModifier, codes::LATERALITY, side)).into_iter().collect();
        children.push(with(code(ConceptModifier, codes::FINDING_SITE, codes::LUNG), side));
        if let Subject::Series(uid) = self.subject {
            children.push(uid_reference(Contains, codes::SOURCE_SERIES, uid));
        }
        children.extend(items);
        container(Some(Contains), codes::MEASUREMENT_GROUP, children)
    }

    /// A group for each class of the ensemble, and for each class of each member.
    pub(super) fn scores(&self) -> Vec<Item> {
        let n_classes = self.bundle().classes.len();
        let ensemble = (0..n_classes).map(|class_idx| self.ensemble(class_idx));
        let members = self.scores.members.iter().enumerate().flat_map(|(member_idx, member)| {
            (0..n_classes).map(move |class_idx| self.member(member_idx, member, class_idx))
        });
        ensemble.chain(members).collect()
    }

    /// A group for each similar case and each prior image. No reference leads to another patient: cases have the
    /// library's numbers only.
    fn similar(&self, similar: &SimilarCases) -> Vec<Item> {
        let status = self.bundle().status;
        let texts = self.texts();
        let numbered = |message: &str, idx: usize| texts.say(message, &[("number", (idx + 1).into())]);
        let cases = similar.cases.iter().enumerate().map(|(idx, case)| {
            let class_idx = self.bundle().classes.iter().position(|class| class.label == case.label);
            let rank = number(InferredFrom, codes::NEIGHBOUR_RANK, (idx + 1) as f64, codes::NO_UNITS);
            let items = self.neighbour(rank, case.distance, &wording::similar_case(texts, status, case));
            let tracked = format!("Similar case {}", case.case_id);
            let tracking = numbered("track-similar-case", idx);
            self.group(tracking, &tracked, class_idx.unwrap_or(usize::MAX), None, items)
        });
        // In the order of their dates, which is no rank.
        let priors = similar.priors.iter().enumerate().map(|(idx, prior)| {
            let items = self.neighbour(None, prior.distance, &wording::prior_image(texts, status, prior));
            let tracked = format!("Prior image {}", prior.sop_instance_uid);
            self.group(numbered("track-prior-image", idx), &tracked, usize::MAX, None, items)
        });
        cases.chain(priors).collect()
    }

    fn neighbour(&self, rank: Option<Item>, distance: f64, words: &str) -> Vec<Item> {
        let about = rank.into_iter().chain(self.source()).collect();
        vec![
            number_or_comment(self.texts(), codes::SIMILARITY, cosine_of_distance(distance), codes::NO_UNITS, about),
            text(Contains, codes::COMMENT, words),
        ]
    }

    fn label(&self, class_idx: usize) -> &str {
        self.bundle().classes.get(class_idx).map_or("", |class| class.label.as_str())
    }

    /// The image that a number was taken from; of a scan the group names the series.
    fn source(&self) -> Option<Item> {
        match self.subject {
            Subject::Image(source) => Some(image(InferredFrom, codes::SOURCE_OF_MEASUREMENT, source)),
            Subject::Series(_) => None,
        }
    }

    fn meaning(words: &str) -> Item {
        text(ConceptModifier, codes::MEANING, words)
    }

    /// The fused output for a class; for the target class with threshold, decision and spread.
    fn ensemble(&self, class_idx: usize) -> Item {
        let bundle = self.bundle();
        let label = self.label(class_idx);
        let output = self.scores.fused.get(class_idx).copied().unwrap_or(f64::NAN);
        let texts = self.texts();
        let meaning = texts.say(
            "ensemble-meaning",
            &[("class", label.into()), ("calibration", wording::calibration(texts, bundle).into())],
        );
        let mut about = vec![Self::meaning(&meaning)];
        let derivation = [("mean", codes::MEAN), ("median", codes::MEDIAN)]
            .into_iter()
            .find(|(rule, _)| bundle.fusion.split('_').any(|part| part == *rule));
        about.extend(derivation.map(|(_, derivation)| code(ConceptModifier, codes::DERIVATION, derivation)));
        about.extend(self.source());
        let mut items = vec![number_or_comment(texts, codes::CERTAINTY, output * 100.0, codes::PERCENT, about)];
        if class_idx == bundle.target_class_idx {
            items.push(number_or_comment(
                texts,
                codes::OPERATING_POINT,
                bundle.threshold * 100.0,
                codes::PERCENT,
                vec![Self::meaning(&texts.say("threshold-meaning", &[]))],
            ));
            let decision = wording::allowed_decision(bundle, self.scores.decision);
            items.push(code(Contains, codes::PRESENCE, codes::decision(decision)));
            let words = wording::operating_point(texts, bundle, self.scores);
            items.push(text(Contains, codes::OPERATING_POINT_DESCRIPTION, &words));
            items.push(number_or_comment(
                texts,
                codes::MEMBER_SPREAD,
                self.scores.member_spread * 100.0,
                codes::PERCENT,
                Vec::new(),
            ));
        }
        let tracking = texts.say("track-ensemble", &[("class", label.into())]);
        self.group(tracking, &format!("Ensemble: {label}"), class_idx, None, items)
    }

    /// The output of one member for a class, or why there is none.
    fn member(&self, member_idx: usize, member: &MemberScore, class_idx: usize) -> Item {
        let members = self.scores.members;
        let network = self.bundle().members.iter().find(|network| network.name == member.name);
        let version = network.map_or("unknown", |network| network.version.as_str());
        let parameters: Vec<String> = network
            .map(|network| {
                vec![
                    format!("architecture={}", network.architecture),
                    format!("weights=sha256:{}", network.weights_sha256),
                ]
            })
            .unwrap_or_default();
        let mut items = algorithm(&member.name, version, &parameters, codes::ARTIFICIAL_INTELLIGENCE);
        items.extend(self.member_output(member, class_idx));
        let label = self.label(class_idx);
        let tracked = format!("Member {}/{} {} {version}: {label}", member_idx + 1, members.len(), member.name);
        let arguments = [
            ("number", (member_idx + 1).into()),
            ("all", members.len().into()),
            ("member", member.name.as_str().into()),
            ("version", version.into()),
            ("class", label.into()),
        ];
        self.group(self.texts().say("track-member", &arguments), &tracked, class_idx, None, items)
    }

    fn member_output(&self, member: &MemberScore, class_idx: usize) -> Vec<Item> {
        match wording::output_of(member, class_idx) {
            Some(output) => {
                let arguments = [("class", self.label(class_idx).into()), ("member", member.name.as_str().into())];
                let meaning = self.texts().say("member-meaning", &arguments);
                let about = [Self::meaning(&meaning)].into_iter().chain(self.source()).collect();
                vec![number_or_comment(self.texts(), codes::CERTAINTY, output * 100.0, codes::PERCENT, about)]
            }
            // No NUM without a value: it is legal, but highdicom cannot open a document that has one.
            None => vec![
                code(Contains, codes::MODEL_STATUS, codes::FAILED),
                text(
                    Contains,
                    codes::COMMENT,
                    &wording::member_failure(self.texts(), &member.name, member.failure.as_deref()),
                ),
            ],
        }
    }

    /// The share of one lung field that the heat map covers.
    fn lung(&self, analysed: &ImageAnalysis, lung: &HeatInLung, segment: Option<Item>) -> Item {
        let texts = self.texts();
        let mut items: Vec<Item> = segment.into_iter().collect();
        match lung.fraction {
            _ if wording::is_without_map(analysed) => {}
            Some(fraction) => items.extend([
                number_or_comment(
                    texts,
                    codes::HEAT_FRACTION,
                    fraction * 100.0,
                    codes::PERCENT,
                    self.about_heat(analysed),
                ),
                number_or_comment(
                    texts,
                    codes::HEAT_THRESHOLD,
                    0.5,
                    codes::NO_UNITS,
                    vec![Self::meaning(&texts.say("heat-threshold-meaning", &[]))],
                ),
            ]),
            None => items.push(text(Contains, codes::COMMENT, &texts.say("heat-no-lung", &[]))),
        }
        items.push(self.heat_map_comment(analysed));
        let tracking = texts.say(lung.tracking, &[]);
        self.group(tracking, lung.tracked, self.bundle().target_class_idx, Some(lung.side), items)
    }

    /// The share of the heat that lies in the lungs, and what it means where it is little; nothing without heat.
    fn heat_in_lungs(&self, analysed: &ImageAnalysis) -> Option<Item> {
        let texts = self.texts();
        let share = analysed.lung_heat_fraction?;
        let about = self.about_heat(analysed);
        let mut items = vec![number_or_comment(texts, codes::HEAT_IN_LUNGS, share * 100.0, codes::PERCENT, about)];
        items.extend(wording::elsewhere(texts, analysed).map(|words| text(Contains, codes::COMMENT, &words)));
        items.push(self.heat_map_comment(analysed));
        let tracking = texts.say("track-heat-in-lungs", &[]);
        Some(self.group(tracking, "Heat in the lungs", self.bundle().target_class_idx, None, items))
    }

    /// How the map was made that a number was taken from, and of which image.
    fn about_heat(&self, analysed: &ImageAnalysis) -> Vec<Item> {
        let methods: Vec<&str> = analysed.member_heat_maps.iter().map(|(_, map)| map.method.as_str()).collect();
        // Only what is one of them has a code.
        let method = if !methods.is_empty() && methods.iter().all(|method| *method == "cam") {
            Some(codes::CLASS_ACTIVATION)
        } else if methods.iter().any(|method| method.contains("cam"))
            && methods.iter().all(|method| method.contains("cam"))
        {
            Some(codes::GRADIENT_CLASS_ACTIVATION)
        } else {
            None
        };
        let method = method.map_or_else(
            || text(ConceptModifier, codes::METHOD_TEXT, &methods.join(", ")),
            |method| code(ConceptModifier, codes::METHOD, method),
        );
        [method].into_iter().chain(self.source()).collect()
    }

    fn heat_map_comment(&self, analysed: &ImageAnalysis) -> Item {
        let texts = self.texts();
        let words = [wording::heat_map_method(texts, analysed), wording::localisation(texts, self.scores)];
        text(Contains, codes::COMMENT, &wording::sentences(texts, &words))
    }
}

/// Qualitative Evaluations of an analysis.
fn evaluations(frame: &Frame<'_>, analysis: &CxrAnalysis) -> Item {
    let bundle = &frame.record.bundle;
    let texts = frame.texts;
    let decisions: Vec<Decision> = analysis.images.iter().map(|image| image.decision).collect();
    let mut items = vec![summary(bundle, &decisions, wording::failed_members(analysis).0 == 0)];
    items.extend(quality(bundle, analysis.images.iter().flat_map(|image| &image.gates)));
    for (analysed, name) in analysis.images.iter().zip(wording::image_names(texts, analysis)) {
        items.extend(analysed.gates.iter().map(|gate| {
            let words = wording::of_image(texts, name.as_deref(), wording::gate(texts, gate));
            with(text(Contains, codes::GATE, &words), vec![image(InferredFrom, codes::SOURCE, &analysed.source)])
        }));
        items.extend(analysed.similar_cases.as_ref().map(|similar| {
            let words = wording::similar_cases(texts, bundle.status, similar);
            text(Contains, codes::SIMILAR_CASES, &wording::of_image(texts, name.as_deref(), words))
        }));
    }
    items.extend(analysis.excluded.iter().enumerate().map(|(idx, excluded)| {
        let name = wording::image_name(texts, analysis.images.len() + idx);
        let words = wording::of_image(texts, Some(&name), wording::excluded(texts, excluded));
        with(
            text(Contains, codes::EXCLUDED_IMAGE, &words),
            vec![
                code(HasProperties, codes::REJECT_REASON, codes::reason(excluded.reason)),
                image(InferredFrom, codes::SOURCE, &excluded.source),
            ],
        )
    }));
    items.push(text(Contains, codes::CONCLUSION, &wording::conclusion(texts, bundle, analysis)));
    items.extend(comments(frame));
    container(Some(Contains), codes::EVALUATIONS, items)
}

/// With or without findings is a verdict: only where every decision is made is it given, else the status of
/// the analysis alone. `complete` says that all members ran.
pub(super) fn summary(bundle: &BundleIdentity, decisions: &[Decision], complete: bool) -> Item {
    let decisions: Vec<Decision> =
        decisions.iter().map(|decision| wording::allowed_decision(bundle, *decision)).collect();
    let findings = if decisions.contains(&Decision::Present) {
        Some(true)
    } else {
        let all_absent = !decisions.is_empty() && decisions.iter().all(|decision| *decision == Decision::Absent);
        all_absent.then_some(false)
    };
    match (findings, complete) {
        (Some(true), true) => code(Contains, codes::SUMMARY, codes::ALL_WITH_FINDINGS),
        (Some(true), false) => code(Contains, codes::SUMMARY, codes::SOME_WITH_FINDINGS),
        (Some(false), true) => code(Contains, codes::SUMMARY, codes::ALL_WITHOUT_FINDINGS),
        (Some(false), false) => code(Contains, codes::SUMMARY, codes::SOME_WITHOUT_FINDINGS),
        (None, true) => code(Contains, codes::ANALYSIS_STATUS, codes::SUCCEEDED),
        (None, false) => code(Contains, codes::ANALYSIS_STATUS, codes::PARTIALLY_SUCCEEDED),
    }
}

/// The quality that the gates found. Untrained networks say nothing about the quality of an image.
pub(super) fn quality<'g>(bundle: &BundleIdentity, mut gates: impl Iterator<Item = &'g GateResult>) -> Option<Item> {
    if bundle.status == BundleStatus::Untrained {
        return None;
    }
    let all_passed = gates.all(|gate| gate.passed);
    let quality = if all_passed { codes::DIAGNOSTIC_QUALITY } else { codes::LIMITED_QUALITY };
    Some(code(Contains, codes::QUALITY, quality))
}

/// Qualitative Evaluations of a run without scores.
fn rejection(frame: &Frame<'_>, not_analysed: &NotAnalysed) -> Item {
    let bundle = &frame.record.bundle;
    let mut items = vec![code(Contains, codes::SUMMARY, codes::NONE_SUCCEEDED)];
    items.extend(reject_reason(not_analysed.reason));
    items.push(text(Contains, codes::CONCLUSION, &wording::not_analysed(frame.texts, bundle, not_analysed)));
    items.push(text(Contains, codes::ALGORITHM_NAME, &bundle.name));
    items.push(text(Contains, codes::ALGORITHM_VERSION, &bundle.version));
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    items.extend(parameters.iter().map(|words| text(Contains, codes::ALGORITHM_PARAMETERS, words)));
    items.extend(comments(frame));
    container(Some(Contains), codes::EVALUATIONS, items)
}

/// Why nothing was analysed, in codes.
pub(super) fn reject_reason(reason: ReasonCode) -> Vec<Item> {
    let mut items = vec![code(Contains, codes::REJECT_REASON, codes::reason(reason))];
    if codes::is_quality(reason) {
        items.push(code(Contains, codes::QUALITY, codes::NON_DIAGNOSTIC_QUALITY));
    }
    items.extend(codes::quality_finding(reason).map(|finding| code(Contains, codes::QUALITY_FINDING, finding)));
    items
}

/// What every report ends with.
pub(super) fn comments(frame: &Frame<'_>) -> Vec<Item> {
    let record = frame.record;
    wording::disclaimer(frame.texts, &record.bundle, &record.outcome)
        .iter()
        .map(|line| text(Contains, codes::COMMENT, line))
        .collect()
}
