//! Key Object Selection "Of Interest" of what a validated bundle calls present (PS3.3 section A.35.4; PS3.16 TID 2010).

use dicom_core::VR;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, Sources, codes,
    content::{Contains, Item, container, reference, text},
    dataset::{Build, Identity, write},
    modules::{Frame, Series},
    presentation_state::role_in,
    segmentation::needed_header,
    sr::{context, evidence, request},
    texts::Texts,
    wording,
};
use crate::types::{BundleStatus, CtAnalysis, Decision, RunOutcome, RunRecord, SourceImage, Uid};

/// What is named in errors.
const WHAT: &str = "key object selection";

/// Renders the images that a validated bundle calls present as key objects: the radiographs, or the slices of a CT that speak
/// for it. The description is in `language`, or in English where nobody knows that.
///
/// `sources` are in the order of arrival: the last one gives patient and study.
///
/// # Errors
/// [`ReportError::Empty`] for bundles that are not validated, and where nothing is present.
pub fn render_key_objects(
    record: &RunRecord,
    language: &str,
    sources: Sources<'_>,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let empty = |why: &str| ReportError::Empty { what: WHAT, why: why.to_owned() };
    if record.bundle.status != BundleStatus::Validated {
        return Err(empty("only a validated bundle may say that something is present"));
    }
    let frame = Frame::new(record, sources, options)?.in_language(language);
    let texts = frame.texts;
    let Present { images, findings } = present(record, texts);
    if images.is_empty() {
        return Err(empty("nothing is present"));
    }
    for image in &images {
        needed_header(sources, image)?;
    }

    let sop_class_uid = Uid::new(uids::KEY_OBJECT_SELECTION_DOCUMENT_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let identity = frame.identity(&role_in("ko", texts), &sop_class_uid, 1);
    let series = Series {
        modality: "KO",
        number: "9007",
        description: texts.say("key-objects-series", &[("notice", wording::notice(texts, &record.bundle).into())]),
        instance_number: 1,
    };
    let mut data_set = frame.data_set(&identity, &series, frame.newest);
    data_set.put_items(tags::REFERENCED_PERFORMED_PROCEDURE_STEP_SEQUENCE, Vec::new());
    data_set.put_items(tags::REFERENCED_REQUEST_SEQUENCE, vec![request(&frame)]);
    let instances: Vec<Identity> = images
        .iter()
        .map(|image| Identity {
            sop_class_uid: image.sop_class_uid.clone(),
            sop_instance_uid: image.sop_instance_uid.clone(),
            series_instance_uid: image.series_instance_uid.clone(),
        })
        .collect();
    let evidence = evidence(&record.study_instance_uid, &instances);
    data_set.put_items(tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE, vec![evidence]);

    let words = texts.say(
        "key-objects-text",
        &[("findings", findings.join("; ").into()), ("notice", wording::notice(texts, &record.bundle).into())],
    );
    let mut children = context(&frame);
    children.push(text(Contains, codes::KEY_OBJECT_DESCRIPTION, &words));
    children.extend(images.iter().map(key_image));
    let mut root = container(None, codes::OF_INTEREST, children);
    let mut template = InMemDicomObject::new_empty();
    template.put_text(tags::MAPPING_RESOURCE, VR::CS, "DCMR");
    template.put_text(tags::TEMPLATE_IDENTIFIER, VR::CS, "2010");
    root.put_items(tags::CONTENT_TEMPLATE_SEQUENCE, vec![template]);
    for element in root {
        data_set.put(element);
    }
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &options.file_meta, ResultKind::Ko, identity)
}

/// An image that is referred to; row 8 of TID 2010 gives it no Concept Name.
fn key_image(image: &SourceImage) -> Item {
    let mut item = Item::new_empty();
    item.put_text(tags::RELATIONSHIP_TYPE, VR::CS, "CONTAINS");
    item.put_text(tags::VALUE_TYPE, VR::CS, "IMAGE");
    item.put_items(tags::REFERENCED_SOP_SEQUENCE, vec![reference(&image.sop_class_uid, &image.sop_instance_uid)]);
    item
}

/// What is present, and where.
#[derive(Default)]
struct Present {
    images: Vec<SourceImage>,
    /// A sentence without its end for each.
    findings: Vec<String>,
}

fn present(record: &RunRecord, texts: Texts<'_>) -> Present {
    let bundle = &record.bundle;
    let class = bundle.classes.get(bundle.target_class_idx).map_or("", |class| class.label.as_str());
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let of_output = |fused: &[f64]| {
        let output = fused.get(bundle.target_class_idx).copied().unwrap_or_default();
        texts.say(
            "key-objects-output",
            &[
                ("class", class.into()),
                ("output", percent(output).into()),
                ("threshold", percent(bundle.threshold).into()),
            ],
        )
    };
    let mut present = Present::default();
    match &record.outcome {
        RunOutcome::Analysed(analysis) => {
            for image in analysis.images.iter().filter(|image| image.decision == Decision::Present) {
                present.images.push(image.source.clone());
                present.findings.push(of_output(&image.fused));
            }
        }
        RunOutcome::CtMeasured(analysis) => {
            if let Some(scan) = analysis.classification.as_ref().filter(|scan| scan.decision == Decision::Present) {
                present.findings.push(of_output(&scan.fused));
            }
            if let Some(lesions) = analysis.lesions.as_ref().filter(|lesions| lesions.decision == Decision::Present) {
                let arguments = [("class", class.into()), ("rule", lesions.rule.as_str().into())];
                present.findings.push(texts.say("key-objects-rule", &arguments));
            }
            let slices = key_slices(analysis);
            present.images = slices.iter().filter_map(|slice| analysis.series.images.get(*slice)).cloned().collect();
        }
        RunOutcome::NotAnalysed(_) => {}
    }
    present
}

/// The slices of a CT that speak for what is present, from the feet: of the networks' outputs those that they name, of
/// lesions the one with most of them and the middle of the run that satisfies the rule. Where none is named, all that the
/// networks saw.
fn key_slices(analysis: &CtAnalysis) -> Vec<usize> {
    let scan = analysis.classification.as_ref().filter(|scan| scan.decision == Decision::Present);
    let lesions = analysis.lesions.as_ref().filter(|lesions| lesions.decision == Decision::Present);
    let of_scan = scan.iter().flat_map(|scan| &scan.key_slices).map(|key| key.slice);
    let of_lesions = lesions.iter().flat_map(|lesions| {
        let of_run = lesions.run.map(|run| usize::midpoint(run.first_slice, run.last_slice));
        lesions.largest_slice.into_iter().chain(of_run)
    });
    let mut slices: Vec<usize> = of_scan.chain(of_lesions).collect();
    if slices.is_empty() {
        let seen = scan.map(|scan| &scan.slices).into_iter().chain(lesions.map(|lesions| &lesions.slices));
        slices.extend(seen.flatten());
    }
    slices.sort_unstable();
    slices.dedup();
    slices
}
