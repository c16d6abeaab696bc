//! The outlines of the lungs of a radiograph as a Grayscale Softcopy Presentation State (PS3.3 section A.33.1).

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, Sources,
    content::reference,
    dataset::{Build, write},
    modules::{Frame, Series},
    pictures::put_body_part,
    segmentation::{check_size, needed_header, radiograph},
    source::SourceHeader,
    texts::{ENGLISH, Texts},
    wording,
};
use crate::{
    imaging::{
        lungs::{LEFT_LUNG, RIGHT_LUNG},
        lungs_over_source,
        outline::{Corner, outlines, simplified},
    },
    types::{RunRecord, Uid},
};

/// How far an outline may be from the mask's, in pixels of the source.
const TOLERANCE_PIXELS: f64 = 1.0;

/// Points of one outline: Graphic Data (0070,0022) has a length of 16 bits in Explicit VR, and 8 bytes for each point.
const MAXIMUM_POINTS: usize = 8191;

/// Name of the one layer.
const LAYER: &str = "AI";

/// Renders the outlines of both lungs of analysed image number `image_idx` (from 0), with a line that says what they are, in
/// `language`, or in English where nobody knows that.
///
/// The image looks as it does without the presentation state: Modality LUT, window and polarity are copied. `sources` are in
/// the order of arrival: the last one gives patient and study.
///
/// # Errors
/// [`ReportError::Empty`] without lungs.
pub fn render_presentation_state(
    record: &RunRecord,
    image_idx: usize,
    language: &str,
    sources: Sources<'_>,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let image = radiograph(record, image_idx)?;
    let header = needed_header(sources, &image.source)?;
    let (rows, columns) = (image.placement.source_rows as usize, image.placement.source_columns as usize);
    let [rows_16, columns_16] = check_size(header, rows, columns)?;
    let labels = lungs_over_source(&image.lung_mask, &image.placement)?;
    let graphics: Vec<InMemDicomObject> = [RIGHT_LUNG, LEFT_LUNG]
        .into_iter()
        .flat_map(|lung| outlines(&labels, columns, lung))
        .map(|outline| to_fit(&outline))
        // What is thinner than the tolerance encloses nothing.
        .filter(|outline| outline.len() > 3)
        .map(|outline| graphic_object(&outline))
        .collect();
    if graphics.is_empty() {
        return Err(ReportError::Empty { what: "presentation state", why: "no lung was found".to_owned() });
    }

    let frame = Frame::new(record, sources, options)?.in_language(language);
    let (texts, bundle) = (frame.texts, &record.bundle);
    let sop_class_uid = Uid::new(uids::GRAYSCALE_SOFTCOPY_PRESENTATION_STATE_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let identity = frame.identity(&role_in("pr", texts), &sop_class_uid, image_idx + 1);
    let series = Series {
        modality: "PR",
        number: "9006",
        description: texts.say("outlines-series", &[("notice", wording::notice(texts, bundle).into())]),
        instance_number: image_idx + 1,
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    // A presentation state has dates of its own.
    data_set.remove_element(tags::CONTENT_DATE);
    data_set.remove_element(tags::CONTENT_TIME);
    data_set.put_text(tags::PRESENTATION_CREATION_DATE, VR::DA, &frame.moment.date());
    data_set.put_text(tags::PRESENTATION_CREATION_TIME, VR::TM, &frame.moment.time());
    data_set.put_text(tags::CONTENT_LABEL, VR::CS, "AI_LUNG_OUTLINES");
    let description = texts.say("outlines-text", &[("notice", wording::notice(texts, bundle).into())]);
    data_set.put_text(tags::CONTENT_DESCRIPTION, VR::LO, &description);
    data_set.put_text(tags::CONTENT_CREATOR_NAME, VR::PN, "");
    put_body_part(&mut data_set, header);

    let mut of_series = InMemDicomObject::new_empty();
    of_series.put_uid(tags::SERIES_INSTANCE_UID, &image.source.series_instance_uid);
    let reference = reference(&image.source.sop_class_uid, &image.source.sop_instance_uid);
    of_series.put_items(tags::REFERENCED_IMAGE_SEQUENCE, vec![reference]);
    data_set.put_items(tags::REFERENCED_SERIES_SEQUENCE, vec![of_series]);

    data_set.put_items(tags::GRAPHIC_LAYER_SEQUENCE, vec![graphic_layer()]);
    let mut annotation = InMemDicomObject::new_empty();
    annotation.put_text(tags::GRAPHIC_LAYER, VR::CS, LAYER);
    annotation.put_items(tags::GRAPHIC_OBJECT_SEQUENCE, graphics);
    let use_of_it = texts.say("not-for-diagnostic-use", &[]);
    let words = texts.say("outlines-text", &[("notice", use_of_it.into())]);
    let words = wording::behind_notice(texts, bundle, words);
    annotation.put_items(tags::TEXT_OBJECT_SEQUENCE, vec![text_object(&words)]);
    data_set.put_items(tags::GRAPHIC_ANNOTATION_SEQUENCE, vec![annotation]);
    data_set.put_items(tags::DISPLAYED_AREA_SELECTION_SEQUENCE, vec![displayed_area(header, rows_16, columns_16)]);
    put_grey_scale(&mut data_set, header);
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &options.file_meta, ResultKind::Pr, identity)
}

/// The role in UIDs of an object with sentences: those of other languages, or of a site's own file, never share one.
pub(super) fn role_in(role: &str, texts: Texts<'_>) -> String {
    let mut role = role.to_owned();
    if texts.tag() != ENGLISH {
        role.extend([" in ", texts.tag()]);
    }
    if let Some(file) = texts.file() {
        role.extend([" of ".to_owned(), file.to_string()]);
    }
    role
}

/// The outline with as few points as [`TOLERANCE_PIXELS`] allows, and fewer where they would not fit into one element.
fn to_fit(outline: &[Corner]) -> Vec<Corner> {
    let mut tolerance = TOLERANCE_PIXELS;
    loop {
        let simple = simplified(outline, tolerance);
        if simple.len() <= MAXIMUM_POINTS {
            return simple;
        }
        tolerance *= 2.0;
    }
}

/// A closed polygon (PS3.3 section C.10.5): in PIXEL units the corner of the first pixel is 0\0 and that of the last
/// Columns\Rows.
fn graphic_object(outline: &[Corner]) -> InMemDicomObject {
    let mut object = InMemDicomObject::new_empty();
    object.put_text(tags::GRAPHIC_ANNOTATION_UNITS, VR::CS, "PIXEL");
    object.put_u16(tags::GRAPHIC_DIMENSIONS, 2);
    object.put_u16(tags::NUMBER_OF_GRAPHIC_POINTS, outline.len() as u16);
    let values: Vec<f32> = outline.iter().flatten().map(|at| *at as f32).collect();
    object.put(DataElement::new(tags::GRAPHIC_DATA, VR::FL, PrimitiveValue::F32(values.into())));
    object.put_text(tags::GRAPHIC_TYPE, VR::CS, "POLYLINE");
    object.put_text(tags::GRAPHIC_FILLED, VR::CS, "N");
    object
}

/// A line at the top of what is shown.
fn text_object(words: &str) -> InMemDicomObject {
    let mut object = InMemDicomObject::new_empty();
    object.put_text(tags::BOUNDING_BOX_ANNOTATION_UNITS, VR::CS, "DISPLAY");
    object.put_text(tags::UNFORMATTED_TEXT_VALUE, VR::ST, words);
    let corner = |tag: Tag, at: [f32; 2]| DataElement::new(tag, VR::FL, PrimitiveValue::from(at));
    object.put(corner(tags::BOUNDING_BOX_TOP_LEFT_HAND_CORNER, [0.02, 0.02]));
    object.put(corner(tags::BOUNDING_BOX_BOTTOM_RIGHT_HAND_CORNER, [0.98, 0.06]));
    object.put_text(tags::BOUNDING_BOX_TEXT_HORIZONTAL_JUSTIFICATION, VR::CS, "LEFT");
    object
}

fn graphic_layer() -> InMemDicomObject {
    let mut layer = InMemDicomObject::new_empty();
    layer.put_text(tags::GRAPHIC_LAYER, VR::CS, LAYER);
    layer.put_text(tags::GRAPHIC_LAYER_ORDER, VR::IS, "1");
    layer.put_u16(tags::GRAPHIC_LAYER_RECOMMENDED_DISPLAY_GRAYSCALE_VALUE, u16::MAX);
    let sky_blue = PrimitiveValue::from([45400_u16, 28579, 23766]);
    layer.put(DataElement::new(tags::GRAPHIC_LAYER_RECOMMENDED_DISPLAY_CIE_LAB_VALUE, VR::US, sky_blue));
    layer
}

/// The whole image (PS3.3 section C.10.4); here pixels are counted from 1.
fn displayed_area(header: &SourceHeader, rows: u16, columns: u16) -> InMemDicomObject {
    let mut area = InMemDicomObject::new_empty();
    let corner = |tag: Tag, at: [i32; 2]| DataElement::new(tag, VR::SL, PrimitiveValue::from(at));
    area.put(corner(tags::DISPLAYED_AREA_TOP_LEFT_HAND_CORNER, [1, 1]));
    area.put(corner(tags::DISPLAYED_AREA_BOTTOM_RIGHT_HAND_CORNER, [i32::from(columns), i32::from(rows)]));
    area.put_text(tags::PRESENTATION_SIZE_MODE, VR::CS, "SCALE TO FIT");
    let numbers = |tag: Tag| -> Option<[f64; 2]> {
        let text = header.ascii(tag)?;
        let numbers: Vec<f64> = text.split('\\').filter_map(|part| part.trim().parse().ok()).collect();
        numbers.try_into().ok()
    };
    let is_length = |length: &f64| length.is_finite() && *length > 0.0;
    let spacing = numbers(tags::PIXEL_SPACING).filter(|spacing| spacing.iter().all(is_length));
    let element = header.element(tags::PIXEL_SPACING).filter(|_| spacing.is_some());
    if let Some(element) = element {
        let spacing = DataElement::new(tags::PRESENTATION_PIXEL_SPACING, VR::DS, element.value().clone());
        area.put(spacing);
    } else {
        let ratio = numbers(tags::PIXEL_ASPECT_RATIO).filter(|ratio| ratio.iter().all(is_length)).unwrap_or([1.0, 1.0]);
        let [vertical, horizontal] = ratio.map(|length| length.round().max(1.0));
        area.put_text(tags::PRESENTATION_PIXEL_ASPECT_RATIO, VR::IS, &format!("{vertical}\\{horizontal}"));
    }
    area
}

/// Modality LUT, Softcopy VOI LUT and Softcopy Presentation LUT (PS3.3 sections C.11.1, C.11.8, C.11.6), as the image itself
/// has them: a presentation state replaces all three, also by nothing.
fn put_grey_scale(data_set: &mut InMemDicomObject, header: &SourceHeader) {
    let filled = |tag: Tag| header.element(tag).filter(|element| super::source::ascii(element).is_some());
    let modality_lut = header.items(tags::MODALITY_LUT_SEQUENCE).first();
    if let Some((item, mut table)) = modality_lut.and_then(|item| Some((item, look_up_table(item)?))) {
        let kind = item.get(tags::MODALITY_LUT_TYPE).and_then(super::source::ascii).filter(|kind| kind.is_ascii());
        table.put_text(tags::MODALITY_LUT_TYPE, VR::LO, kind.as_deref().unwrap_or("US"));
        data_set.put_items(tags::MODALITY_LUT_SEQUENCE, vec![table]);
    } else if let (Some(intercept), Some(slope)) = (filled(tags::RESCALE_INTERCEPT), filled(tags::RESCALE_SLOPE)) {
        data_set.copy(Some(intercept));
        data_set.copy(Some(slope));
        let kind = header.ascii(tags::RESCALE_TYPE).filter(|kind| kind.is_ascii());
        data_set.put_text(tags::RESCALE_TYPE, VR::LO, kind.as_deref().unwrap_or("US"));
    }

    let mut voi = InMemDicomObject::new_empty();
    // Of several windows an image is shown with the first.
    let first =
        |tag: Tag| header.ascii(tag).and_then(|text| text.split('\\').next().map(|part| part.trim().to_owned()));
    if let Some(table) = header.items(tags::VOILUT_SEQUENCE).first().and_then(look_up_table) {
        voi.put_items(tags::VOILUT_SEQUENCE, vec![table]);
    } else if let (Some(center), Some(width)) = (first(tags::WINDOW_CENTER), first(tags::WINDOW_WIDTH)) {
        voi.put_text(tags::WINDOW_CENTER, VR::DS, &center);
        voi.put_text(tags::WINDOW_WIDTH, VR::DS, &width);
        voi.copy(filled(tags::VOILUT_FUNCTION));
    }
    if voi.iter().next().is_some() {
        data_set.put_items(tags::SOFTCOPY_VOILUT_SEQUENCE, vec![voi]);
    }

    let is_inverse = header.ascii(tags::PHOTOMETRIC_INTERPRETATION).as_deref() == Some("MONOCHROME1");
    data_set.put_text(tags::PRESENTATION_LUT_SHAPE, VR::CS, if is_inverse { "INVERSE" } else { "IDENTITY" });
}

/// Descriptor and data of a look-up table, without its explanation, which may be in any character set.
fn look_up_table(item: &InMemDicomObject) -> Option<InMemDicomObject> {
    let (descriptor, data) = (item.get(tags::LUT_DESCRIPTOR)?, item.get(tags::LUT_DATA)?);
    let mut table = InMemDicomObject::new_empty();
    table.copy(Some(descriptor));
    // As words: the length of other representations has 16 bits.
    table.put(DataElement::new(tags::LUT_DATA, VR::OW, data.value().clone()));
    Some(table)
}
