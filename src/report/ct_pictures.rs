//! The pictures of a measured CT as Secondary Capture images: a summary, and slices in the geometry of their sources.

use dicom_core::VR;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::{
    PictureForm, RenderOptions, RenderedObject, ReportError, RgbPixels, Sources, Texts, codes, ct_words,
    dataset::Build,
    modules::{Frame, Series, header_of},
    pictures::{derived_from, dimensions, finish, identity, modality, put_body_part, put_series},
    source::SourceHeader,
    wording,
};
use crate::types::{CtAnalysis, CtPlane, RunOutcome, RunRecord, SourceImage};

/// Renders the summary of a measured CT as a Secondary Capture image of its study, in the form that a destination wants.
/// `sources` are in the order of arrival: the last one gives patient and study.
///
/// # Errors
/// [`ReportError`] when the record is of no CT, its images have no headers, or the picture is none.
pub fn render_ct_summary(
    record: &RunRecord,
    form: &PictureForm,
    sources: Sources<'_>,
    picture: &RgbPixels,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let analysis = measured(record, 0)?;
    dimensions(picture)?;
    let header = analysis
        .series
        .images
        .iter()
        .find_map(|image| header_of(sources, image))
        .ok_or_else(|| ReportError::NoSource { study_instance_uid: record.study_instance_uid.clone() })?;
    let frame = Frame::new(record, sources, options)?;
    let identity = identity(&frame, "sc", form, 1)?;
    let series = Series {
        modality: &modality(form, header),
        number: "9004",
        description: wording::ct_overlay_series(&record.bundle),
        instance_number: 1,
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    let shown: Vec<&SourceHeader> = shown_images(analysis).filter_map(|image| header_of(sources, image)).collect();
    put_image(&mut data_set, record, analysis, header, "Sections");
    let axial = analysis.sections.iter().filter(|section| section.plane == CtPlane::Axial);
    let axial = axial.filter_map(|section| analysis.series.images.get(section.index));
    data_set.put_items(tags::SOURCE_IMAGE_SEQUENCE, axial.map(|source| derived_from(source, false)).collect());
    put_series(&mut data_set, &analysis.series.series_instance_uid, analysis.series.images.iter());
    finish(&frame, data_set, form, picture, &shown, identity)
}

/// Renders slice number `slice` (from 0, from the feet) of a measured CT as a Secondary Capture image in the place and
/// orientation of its source (PS3.3 sections C.7.4.1 and C.7.6.2), so that viewers scroll both together. The slices of a run
/// and form are one series. `sources` are in the order of arrival: the last one gives patient and study.
///
/// # Errors
/// [`ReportError`] when the record is of no CT, there is no such slice, its header was not passed, or the picture has not its
/// rows and columns.
pub fn render_ct_slice(
    record: &RunRecord,
    slice: usize,
    form: &PictureForm,
    sources: Sources<'_>,
    picture: &RgbPixels,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let analysis = measured(record, slice)?;
    let images = &analysis.series.images;
    let source = images.get(slice).ok_or(ReportError::NoSuchImage { image_idx: slice, analysed: images.len() })?;
    let header = header_of(sources, source)
        .ok_or_else(|| ReportError::SourceMissing { sop_instance_uid: source.sop_instance_uid.clone() })?;
    let (columns, rows) = dimensions(picture)?;
    if (header.unsigned_16(tags::ROWS), header.unsigned_16(tags::COLUMNS)) != (Some(rows), Some(columns)) {
        return Err(ReportError::Inconsistent(format!(
            "the picture of slice {} has {rows} x {columns} pixels, which are not those of its image",
            slice + 1
        )));
    }
    let frame = Frame::new(record, sources, options)?;
    let identity = identity(&frame, "sc-slice", form, slice + 1)?;
    let series = Series {
        modality: &modality(form, header),
        number: "9005",
        description: wording::ct_slices_series(&record.bundle),
        instance_number: slice + 1,
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    put_image(&mut data_set, record, analysis, header, "Slice");
    put_geometry(&mut data_set, &frame, header);
    data_set.put_items(tags::SOURCE_IMAGE_SEQUENCE, vec![derived_from(source, true)]);
    put_series(&mut data_set, &analysis.series.series_instance_uid, std::iter::once(source));
    finish(&frame, data_set, form, picture, &[header], identity)
}

fn measured(record: &RunRecord, image_idx: usize) -> Result<&CtAnalysis, ReportError> {
    match &record.outcome {
        RunOutcome::CtMeasured(analysis) => Ok(analysis),
        RunOutcome::Analysed(_) | RunOutcome::NotAnalysed(_) => {
            Err(ReportError::NoSuchImage { image_idx, analysed: 0 })
        }
    }
}

/// The images whose pixels are in the summary: all of them where it has a coronal section.
fn shown_images(analysis: &CtAnalysis) -> impl Iterator<Item = &SourceImage> {
    let all = analysis.sections.iter().any(|section| section.plane == CtPlane::Coronal);
    analysis.series.images.iter().enumerate().filter_map(move |(index, image)| {
        (all || analysis.sections.iter().any(|section| section.index == index)).then_some(image)
    })
}

/// Frame of Reference and Image Plane modules as the slice has them.
fn put_geometry(data_set: &mut InMemDicomObject, frame: &Frame<'_>, header: &SourceHeader) {
    data_set.copy(header.element(tags::FRAME_OF_REFERENCE_UID));
    let indicator = frame.copyable(header, tags::POSITION_REFERENCE_INDICATOR);
    data_set.copy_or_empty(tags::POSITION_REFERENCE_INDICATOR, VR::LO, indicator);
    data_set.copy_or_empty(tags::SLICE_THICKNESS, VR::DS, header.element(tags::SLICE_THICKNESS));
    for tag in [
        tags::IMAGE_POSITION_PATIENT,
        tags::IMAGE_ORIENTATION_PATIENT,
        tags::PIXEL_SPACING,
        tags::SLICE_LOCATION,
        tags::PATIENT_POSITION,
    ] {
        data_set.copy(header.element(tag));
    }
}

/// `what` is shown, in a word.
fn put_image(
    data_set: &mut InMemDicomObject,
    record: &RunRecord,
    analysis: &CtAnalysis,
    header: &SourceHeader,
    what: &str,
) {
    data_set.put_text(tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY\\AI_OVERLAY");
    // Sections of two planes have no orientation in common, and Image Orientation says more of a slice.
    data_set.put_text(tags::PATIENT_ORIENTATION, VR::CS, "");
    put_body_part(data_set, header);
    // Attributes are English, as those of other modalities are; what is burnt in has the language of the destination.
    let says = |id: &str| Texts::english().say(id, &[]);
    let comment = format!("AI chest CT lung measurement. {}. {}", wording::NOT_FOR_DIAGNOSTIC_USE, says("ct-limits"));
    data_set.put_text(tags::IMAGE_COMMENTS, VR::LT, &wording::with_notice(&record.bundle, comment));
    let bundle = &record.bundle;
    let derivation = format!(
        "{}. {what} of the CT with the outlines of the lungs by {} of {} {} (bundle sha256:{}); coloured in the lungs: \
         -700 HU and above, -100 HU and above.{}",
        wording::NOT_FOR_DIAGNOSTIC_USE,
        ct_words::segmentation(analysis),
        bundle.name,
        bundle.version,
        bundle.digest,
        [
            analysis.classification.as_ref().map(|_| format!(" {}", says("ct-slice-heat"))),
            analysis
                .lesions
                .as_ref()
                .map(|_| format!(" Dashed outlines: lesions by networks. {}", says("ct-lesion-limits"))),
        ]
        .into_iter()
        .flatten()
        .collect::<String>(),
    );
    data_set.put_text(tags::DERIVATION_DESCRIPTION, VR::ST, &wording::with_notice(bundle, derivation));
    data_set.put_code(tags::DERIVATION_CODE_SEQUENCE, codes::CT_OVERLAY);
}
