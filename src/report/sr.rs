//! The report as Comprehensive SR: TID 1500 with one TID 1501 group for each class, member and lung.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, Sources,
    codes::{self, Concept},
    content::{
        AcquisitionContext, ConceptModifier, Contains, HasProperties, InferredFrom, Item, ObservationContext, code,
        container, copied_code, copied_date, copied_time, image, number, number_or_comment, reference, text,
        uid_reference, with,
    },
    ct,
    dataset::{Build, write},
    modules::{Frame, MODEL_NAME, Series, header_of},
    source::ascii,
    uids::uid,
    wording,
};
use crate::types::{
    BundleIdentity, BundleStatus, CxrAnalysis, Decision, ImageAnalysis, MemberScore, NotAnalysed, PredecessorDocument,
    ReasonCode, RunOutcome, RunRecord, SimilarCases, SourceImage, Uid, cosine_of_distance,
};

/// Renders the report of a run: scores, or why there are none.
///
/// `sources` are in the order of arrival: the last one gives patient and study. The headers of all analysed
/// images are needed; those of other images may be missing.
pub fn render_sr(
    record: &RunRecord,
    sources: Sources<'_>,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let frame = Frame::new(record, sources, options)?;
    let sop_class_uid = Uid::new(uids::COMPREHENSIVE_SR_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let identity = frame.identity("sr", &sop_class_uid, 1);
    let analysed = !matches!(record.outcome, RunOutcome::NotAnalysed(_));
    let series = Series {
        modality: "SR",
        number: "9001",
        description: wording::report_series(&record.bundle, analysed),
        instance_number: 1,
    };
    let images = images_read(record, sources)?;
    let mut data_set = frame.data_set(&identity, &series, frame.newest);
    put_document(&mut data_set, &frame, &images);
    for element in content_tree(&frame, sources, &images) {
        data_set.put(element);
    }
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &options.file_meta, ResultKind::Sr, identity)
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

/// SR Document Series and SR Document General.
fn put_document(data_set: &mut InMemDicomObject, frame: &Frame<'_>, images: &[SourceImage]) {
    let record = frame.record;
    let (flag, description) = completion(&record.outcome);
    data_set.put_text(tags::COMPLETION_FLAG, VR::CS, flag);
    if let Some(description) = description {
        data_set.put_text(tags::COMPLETION_FLAG_DESCRIPTION, VR::LO, &description);
    }
    data_set.put_text(tags::VERIFICATION_FLAG, VR::CS, "UNVERIFIED");
    data_set.put_items(tags::REFERENCED_PERFORMED_PROCEDURE_STEP_SEQUENCE, Vec::new());
    data_set.put_items(tags::PERFORMED_PROCEDURE_CODE_SEQUENCE, Vec::new());
    data_set.put_items(tags::AUTHOR_OBSERVER_SEQUENCE, vec![author(frame)]);
    data_set.put_items(tags::REFERENCED_REQUEST_SEQUENCE, vec![request(frame)]);
    let evidence = evidence(&record.study_instance_uid, images);
    data_set.put_items(tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE, vec![evidence]);
    if let Some(predecessor) = &record.predecessor {
        let items = vec![predecessor_item(&record.study_instance_uid, predecessor)];
        data_set.put_items(tags::PREDECESSOR_DOCUMENTS_SEQUENCE, items);
    }
}

/// (0040,A491) and (0040,A492).
fn completion(outcome: &RunOutcome) -> (&'static str, Option<String>) {
    match outcome {
        RunOutcome::Analysed(analysis) => match wording::failed_members(analysis) {
            (0, _) => ("COMPLETE", None),
            (failed, all) => ("PARTIAL", Some(format!("{failed} of {all} ensemble member runs failed"))),
        },
        RunOutcome::CtMeasured(analysis) => {
            let classifiers =
                analysis.classification.iter().flat_map(|scan| &scan.members).map(|member| &member.failure);
            let outliners = analysis.lesions.iter().flat_map(|scan| &scan.members).map(|member| &member.failure);
            let members = || classifiers.clone().chain(outliners.clone());
            match members().filter(|failure| failure.is_some()).count() {
                0 if analysis.not_judged.is_some() => {
                    ("PARTIAL", Some("Measured; the networks did not judge the scan".to_owned()))
                }
                0 => ("COMPLETE", None),
                failed => ("PARTIAL", Some(format!("{failed} of {} ensemble member runs failed", members().count()))),
            }
        }
        RunOutcome::NotAnalysed(NotAnalysed { reason: ReasonCode::ProcessingFailure, .. }) => {
            ("COMPLETE", Some("Processing failed".to_owned()))
        }
        RunOutcome::NotAnalysed(_) => ("COMPLETE", Some("Input rejected".to_owned())),
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
fn request(frame: &Frame<'_>) -> InMemDicomObject {
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
fn evidence(study_instance_uid: &Uid, images: &[SourceImage]) -> InMemDicomObject {
    let series = by_series(images)
        .into_iter()
        .map(|(series_instance_uid, images)| {
            let references =
                images.into_iter().map(|image| reference(&image.sop_class_uid, &image.sop_instance_uid)).collect();
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

/// The images of each series, in the order in which the series first occur.
fn by_series(images: &[SourceImage]) -> Vec<(&Uid, Vec<&SourceImage>)> {
    let mut series: Vec<(&Uid, Vec<&SourceImage>)> = Vec::new();
    for image in images {
        match series.iter_mut().find(|(uid, _)| *uid == &image.series_instance_uid) {
            Some((_, members)) => members.push(image),
            None => series.push((&image.series_instance_uid, vec![image])),
        }
    }
    series
}

/// The root container; its attributes stand at the top level of the data set.
fn content_tree(frame: &Frame<'_>, sources: Sources<'_>, images: &[SourceImage]) -> Item {
    let mut children = vec![code(ConceptModifier, codes::LANGUAGE, codes::ENGLISH)];
    children.extend(observer(frame));
    children.push(procedure_reported(frame, images));
    children.push(image_library(frame, sources, images));
    match &frame.record.outcome {
        RunOutcome::Analysed(analysis) => {
            children.push(measurements(frame, analysis));
            children.push(evaluations(frame, analysis));
        }
        RunOutcome::CtMeasured(analysis) => {
            children.push(ct::measurements(frame, analysis));
            children.push(ct::evaluations(frame, analysis));
        }
        RunOutcome::NotAnalysed(not_analysed) => children.push(rejection(frame, not_analysed)),
    }
    let mut root = container(None, codes::REPORT, children);
    let mut template = InMemDicomObject::new_empty();
    template.put_text(tags::MAPPING_RESOURCE, VR::CS, "DCMR");
    template.put_text(tags::TEMPLATE_IDENTIFIER, VR::CS, "1500");
    root.put_items(tags::CONTENT_TEMPLATE_SEQUENCE, vec![template]);
    root
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
fn image_library(frame: &Frame<'_>, sources: Sources<'_>, images: &[SourceImage]) -> Item {
    let names: Vec<(&Uid, String)> = match &frame.record.outcome {
        RunOutcome::Analysed(analysis) if images.len() > 1 => {
            let analysed = analysis.images.iter().map(|image| &image.source);
            let read = analysed.chain(analysis.excluded.iter().map(|excluded| &excluded.source));
            read.enumerate().map(|(idx, image)| (&image.sop_instance_uid, wording::image_name(idx))).collect()
        }
        _ => Vec::new(),
    };
    let groups = by_series(images)
        .into_iter()
        .map(|(_, images)| {
            let modality = images.first().and_then(|image| codes::modality(&image.modality));
            let mut items: Vec<Item> =
                modality.map(|modality| code(AcquisitionContext, codes::MODALITY, modality)).into_iter().collect();
            items.push(code(AcquisitionContext, codes::TARGET_REGION, codes::CHEST));
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
fn measurements(frame: &Frame<'_>, analysis: &CxrAnalysis) -> Item {
    let bundle = &frame.record.bundle;
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    let mut items = algorithm(&bundle.name, &bundle.version, &parameters, codes::ARTIFICIAL_INTELLIGENCE);
    for (analysed, name) in analysis.images.iter().zip(wording::image_names(analysis)) {
        let subject = Subject::Image(&analysed.source);
        let groups = Groups { frame, subject, scores: analysed.into(), name };
        items.extend(groups.scores());
        items.push(groups.lung(analysed, "right lung", codes::RIGHT, analysed.right_lung_heat_fraction));
        items.push(groups.lung(analysed, "left lung", codes::LEFT, analysed.left_lung_heat_fraction));
        items.extend(analysed.similar_cases.iter().flat_map(|similar| groups.similar(similar)));
    }
    container(Some(Contains), codes::MEASUREMENTS, items)
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

    /// A group with its tracking identity, its finding and the lung as its site.
    pub(super) fn group(
        &self,
        tracking: &str,
        class_idx: usize,
        laterality: Option<Concept>,
        items: Vec<Item>,
    ) -> Item {
        self.group_of(tracking, tracking, class_idx, laterality, items)
    }

    /// The same of something that other revisions may call by another name: `tracked` stays.
    fn group_of(
        &self,
        tracking: &str,
        tracked: &str,
        class_idx: usize,
        laterality: Option<Concept>,
        items: Vec<Item>,
    ) -> Item {
        let record = self.frame.record;
        let identifier = match &self.name {
            Some(name) => format!("{name} - {tracking}"),
            None => tracking.to_owned(),
        };
        let subject_uid = match self.subject {
            Subject::Image(image) => &image.sop_instance_uid,
            Subject::Series(uid) => uid,
        };
        // The same for every revision that looks at this subject with a bundle of this name.
        let tracking_uid = uid(
            "tracking",
            &[
                &record.installation.id.to_string(),
                record.study_instance_uid.as_str(),
                subject_uid.as_str(),
                &self.bundle().name,
                tracked,
            ],
        );
        let mut children = vec![
            text(ObservationContext, codes::TRACKING_ID, &identifier),
            uid_reference(ObservationContext, codes::TRACKING_UID, &tracking_uid),
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
        let cases = similar.cases.iter().enumerate().map(|(idx, case)| {
            let class_idx = self.bundle().classes.iter().position(|class| class.label == case.label);
            let rank = number(InferredFrom, codes::NEIGHBOUR_RANK, (idx + 1) as f64, codes::NO_UNITS);
            let items = self.neighbour(rank, case.distance, &wording::similar_case(status, case));
            let tracked = format!("Similar case {}", case.case_id);
            self.group_of(&format!("Similar case {}", idx + 1), &tracked, class_idx.unwrap_or(usize::MAX), None, items)
        });
        // In the order of their dates, which is no rank.
        let priors = similar.priors.iter().enumerate().map(|(idx, prior)| {
            let items = self.neighbour(None, prior.distance, &wording::prior_image(status, prior));
            let tracked = format!("Prior image {}", prior.sop_instance_uid);
            self.group_of(&format!("Prior image {}", idx + 1), &tracked, usize::MAX, None, items)
        });
        cases.chain(priors).collect()
    }

    fn neighbour(&self, rank: Option<Item>, distance: f64, words: &str) -> Vec<Item> {
        let about = rank.into_iter().chain(self.source()).collect();
        vec![
            number_or_comment(codes::SIMILARITY, cosine_of_distance(distance), codes::NO_UNITS, about),
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
        let meaning = format!("Model output for class {label}, ensemble ({})", wording::calibration(bundle));
        let mut about = vec![Self::meaning(&meaning)];
        let derivation = [("mean", codes::MEAN), ("median", codes::MEDIAN)]
            .into_iter()
            .find(|(rule, _)| bundle.fusion.split('_').any(|part| part == *rule));
        about.extend(derivation.map(|(_, derivation)| code(ConceptModifier, codes::DERIVATION, derivation)));
        about.extend(self.source());
        let mut items = vec![number_or_comment(codes::CERTAINTY, output * 100.0, codes::PERCENT, about)];
        if class_idx == bundle.target_class_idx {
            items.push(number_or_comment(
                codes::OPERATING_POINT,
                bundle.threshold * 100.0,
                codes::PERCENT,
                vec![Self::meaning("Operating threshold of the ensemble")],
            ));
            let decision = wording::allowed_decision(bundle, self.scores.decision);
            items.push(code(Contains, codes::PRESENCE, codes::decision(decision)));
            let words = wording::operating_point(bundle, self.scores);
            items.push(text(Contains, codes::OPERATING_POINT_DESCRIPTION, &words));
            items.push(number_or_comment(
                codes::MEMBER_SPREAD,
                self.scores.member_spread * 100.0,
                codes::PERCENT,
                Vec::new(),
            ));
        }
        self.group(&format!("Ensemble: {label}"), class_idx, None, items)
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
        let tracking =
            format!("Member {}/{} {} {version}: {}", member_idx + 1, members.len(), member.name, self.label(class_idx));
        self.group(&tracking, class_idx, None, items)
    }

    fn member_output(&self, member: &MemberScore, class_idx: usize) -> Vec<Item> {
        match wording::output_of(member, class_idx) {
            Some(output) => {
                let meaning = format!("Model output for class {}, member {}", self.label(class_idx), member.name);
                let about = [Self::meaning(&meaning)].into_iter().chain(self.source()).collect();
                vec![number_or_comment(codes::CERTAINTY, output * 100.0, codes::PERCENT, about)]
            }
            // No NUM without a value: it is legal, but highdicom cannot open a document that has one.
            None => vec![
                code(Contains, codes::MODEL_STATUS, codes::FAILED),
                text(Contains, codes::COMMENT, &wording::member_failure(member)),
            ],
        }
    }

    /// The share of one lung field that the heat map covers.
    fn lung(&self, analysed: &ImageAnalysis, name: &str, side: Concept, fraction: Option<f64>) -> Item {
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
        let mut items = match fraction {
            Some(fraction) => vec![
                number_or_comment(
                    codes::HEAT_FRACTION,
                    fraction * 100.0,
                    codes::PERCENT,
                    [method].into_iter().chain(self.source()).collect(),
                ),
                number_or_comment(
                    codes::HEAT_THRESHOLD,
                    0.5,
                    codes::NO_UNITS,
                    vec![Self::meaning("Relative to the maximum activation")],
                ),
            ],
            None => vec![text(Contains, codes::COMMENT, "No value: this lung field was not found")],
        };
        let words = format!("{} {}", wording::heat_map_method(analysed), wording::localisation(self.scores));
        items.push(text(Contains, codes::COMMENT, &words));
        self.group(&format!("Heat map extent, {name}"), self.bundle().target_class_idx, Some(side), items)
    }
}

/// Qualitative Evaluations of an analysis.
fn evaluations(frame: &Frame<'_>, analysis: &CxrAnalysis) -> Item {
    let bundle = &frame.record.bundle;
    let mut items = vec![summary(bundle, analysis)];
    // Untrained networks say nothing about the quality of an image.
    if bundle.status != BundleStatus::Untrained {
        let all_passed = analysis.images.iter().flat_map(|image| &image.gates).all(|gate| gate.passed);
        let quality = if all_passed { codes::DIAGNOSTIC_QUALITY } else { codes::LIMITED_QUALITY };
        items.push(code(Contains, codes::QUALITY, quality));
    }
    for (analysed, name) in analysis.images.iter().zip(wording::image_names(analysis)) {
        let prefix = name.map(|name| format!("{name} - ")).unwrap_or_default();
        items.extend(analysed.gates.iter().map(|gate| {
            let words = format!("{prefix}{}", wording::gate(gate));
            with(text(Contains, codes::GATE, &words), vec![image(InferredFrom, codes::SOURCE, &analysed.source)])
        }));
        items.extend(analysed.similar_cases.as_ref().map(|similar| {
            let words = format!("{prefix}{}", wording::similar_cases(bundle.status, similar));
            text(Contains, codes::SIMILAR_CASES, &words)
        }));
    }
    items.extend(analysis.excluded.iter().enumerate().map(|(idx, excluded)| {
        let name = wording::image_name(analysis.images.len() + idx);
        with(
            text(Contains, codes::EXCLUDED_IMAGE, &format!("{name} - {}", wording::excluded(excluded))),
            vec![
                code(HasProperties, codes::REJECT_REASON, codes::reason(excluded.reason)),
                image(InferredFrom, codes::SOURCE, &excluded.source),
            ],
        )
    }));
    items.push(text(Contains, codes::CONCLUSION, &wording::conclusion(bundle, analysis)));
    items.extend(comments(frame.record));
    container(Some(Contains), codes::EVALUATIONS, items)
}

/// With or without findings is a verdict: only where every decision is made is it given, else the status of
/// the analysis alone.
fn summary(bundle: &BundleIdentity, analysis: &CxrAnalysis) -> Item {
    let decisions: Vec<Decision> =
        analysis.images.iter().map(|image| wording::allowed_decision(bundle, image.decision)).collect();
    let complete = wording::failed_members(analysis).0 == 0;
    let findings = if decisions.contains(&Decision::Present) {
        Some(true)
    } else {
        decisions.iter().all(|decision| *decision == Decision::Absent).then_some(false)
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

/// Qualitative Evaluations of a run without scores.
fn rejection(frame: &Frame<'_>, not_analysed: &NotAnalysed) -> Item {
    let bundle = &frame.record.bundle;
    let mut items = vec![
        code(Contains, codes::SUMMARY, codes::NONE_SUCCEEDED),
        code(Contains, codes::REJECT_REASON, codes::reason(not_analysed.reason)),
    ];
    if codes::is_quality(not_analysed.reason) {
        items.push(code(Contains, codes::QUALITY, codes::NON_DIAGNOSTIC_QUALITY));
    }
    if not_analysed.reason == ReasonCode::ViewNotFrontal {
        items.push(code(Contains, codes::QUALITY_FINDING, codes::POSITIONING));
    }
    items.push(text(Contains, codes::CONCLUSION, &wording::not_analysed(bundle, not_analysed)));
    // There is no Imaging Measurements container that would name the algorithm.
    items.push(text(Contains, codes::ALGORITHM_NAME, &bundle.name));
    items.push(text(Contains, codes::ALGORITHM_VERSION, &bundle.version));
    let parameters = wording::parameters(frame.record, &frame.options.software_version);
    items.extend(parameters.iter().map(|words| text(Contains, codes::ALGORITHM_PARAMETERS, words)));
    items.extend(comments(frame.record));
    container(Some(Contains), codes::EVALUATIONS, items)
}

pub(super) fn comments(record: &RunRecord) -> Vec<Item> {
    wording::disclaimer(&record.bundle, &record.outcome)
        .iter()
        .map(|line| text(Contains, codes::COMMENT, line))
        .collect()
}
