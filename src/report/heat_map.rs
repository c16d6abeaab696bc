//! The heat map as a Secondary Capture image (PS3.3 section A.8.1).

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, Sources, codes,
    content::reference,
    dataset::{Build, write},
    modules::{Frame, MODEL_NAME, Series, header_of},
    source::SourceHeader,
    text::decimal_string,
    wording,
};
use crate::types::{ImageAnalysis, RunOutcome, RunRecord, Uid};

/// An RGB image: 8 bits each, pixel after pixel, row after row from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbPixels {
    /// Columns, 1 to 65535.
    pub width: u32,
    /// Rows, 1 to 65535.
    pub height: u32,
    /// `3 * width * height` bytes.
    pub bytes: Vec<u8>,
}

/// Renders the overlay of analysed image number `image_idx` (from 0) as a Secondary Capture image of its study.
///
/// `overlay_rgb` shows the whole source image, possibly resized, with whatever is burnt in; nothing is drawn
/// here. `sources` are in the order of arrival: the last one gives patient and study.
pub fn render_heat_map(
    record: &RunRecord,
    image_idx: usize,
    sources: Sources<'_>,
    overlay_rgb: &RgbPixels,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let images = match &record.outcome {
        RunOutcome::Analysed(analysis) => analysis.images.as_slice(),
        RunOutcome::CtMeasured(_) | RunOutcome::NotAnalysed(_) => &[],
    };
    let image = images.get(image_idx).ok_or(ReportError::NoSuchImage { image_idx, analysed: images.len() })?;
    let (columns, rows) = dimensions(overlay_rgb)?;
    let header = header_of(sources, &image.source)
        .ok_or_else(|| ReportError::SourceMissing { sop_instance_uid: image.source.sop_instance_uid.clone() })?;

    let frame = Frame::new(record, sources, options)?;
    let sop_class_uid = Uid::new(uids::SECONDARY_CAPTURE_IMAGE_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let identity = frame.identity("sc", &sop_class_uid, image_idx + 1);
    let series = Series {
        modality: "OT",
        number: "9004",
        description: wording::heat_map_series(&record.bundle),
        instance_number: image_idx + 1,
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    put_image(&mut data_set, record, image, header);
    put_equipment(&mut data_set, &frame);
    let same_grid = header.unsigned_16(tags::ROWS) == Some(rows) && header.unsigned_16(tags::COLUMNS) == Some(columns);
    put_references(&mut data_set, image, same_grid);
    put_spacing(&mut data_set, &frame, header, rows, columns);
    put_pixels(&mut data_set, rows, columns, &overlay_rgb.bytes);
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &options.file_meta, ResultKind::Sc, identity)
}

/// (columns, rows), checked against the number of bytes.
pub(super) fn dimensions(overlay: &RgbPixels) -> Result<(u16, u16), ReportError> {
    let RgbPixels { width, height, ref bytes } = *overlay;
    let expected = 3 * u64::from(width) * u64::from(height);
    match (u16::try_from(width), u16::try_from(height)) {
        (Ok(columns @ 1..), Ok(rows @ 1..)) if bytes.len() as u64 == expected => Ok((columns, rows)),
        _ => Err(ReportError::Overlay { width, height, bytes: bytes.len() }),
    }
}

fn put_image(data_set: &mut InMemDicomObject, record: &RunRecord, image: &ImageAnalysis, header: &SourceHeader) {
    data_set.put_text(tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY\\AI_HEATMAP");
    data_set.copy_or_empty(tags::PATIENT_ORIENTATION, VR::CS, header.element(tags::PATIENT_ORIENTATION));
    put_body_part(data_set, header);
    put_annotation(data_set, &[header]);
    put_lossy(data_set, &[header]);
    data_set.put_text(tags::IMAGE_COMMENTS, VR::LT, &wording::heat_map_comment(&record.bundle));
    data_set.put_text(tags::DERIVATION_DESCRIPTION, VR::ST, &wording::heat_map_derivation(&record.bundle, image));
    data_set.put_code(tags::DERIVATION_CODE_SEQUENCE, codes::HEAT_MAP_OVERLAY);
}

pub(super) fn put_body_part(data_set: &mut InMemDicomObject, header: &SourceHeader) {
    match header.element(tags::BODY_PART_EXAMINED) {
        Some(body_part) if super::source::ascii(body_part).is_some() => data_set.copy(Some(body_part)),
        // The pipelines read chest images only; without a body part Laterality would be required.
        _ => data_set.put_text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
    }
}

/// What one of the images that are shown has burned in, the picture has.
pub(super) fn put_annotation(data_set: &mut InMemDicomObject, shown: &[&SourceHeader]) {
    let burned_in = shown.iter().any(|header| header.ascii(tags::BURNED_IN_ANNOTATION).as_deref() == Some("YES"));
    data_set.put_text(tags::BURNED_IN_ANNOTATION, VR::CS, if burned_in { "YES" } else { "NO" });
    data_set.put_text(tags::RECOGNIZABLE_VISUAL_FEATURES, VR::CS, "NO");
}

/// Once lossy, always lossy (PS3.3 section C.7.6.1.1.5), also where one of the images that are shown was.
pub(super) fn put_lossy(data_set: &mut InMemDicomObject, shown: &[&SourceHeader]) {
    let is_lossy = |header: &&&SourceHeader| {
        [uids::JPEG_BASELINE8_BIT, uids::JPEG_EXTENDED12_BIT, uids::JPEGLS_NEAR_LOSSLESS]
            .contains(&header.transfer_syntax_uid())
            || header.ascii(tags::LOSSY_IMAGE_COMPRESSION).as_deref() == Some("01")
    };
    let lossy = shown.iter().find(is_lossy);
    data_set.put_text(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, if lossy.is_some() { "01" } else { "00" });
    if let Some(header) = lossy {
        data_set.copy(header.element(tags::LOSSY_IMAGE_COMPRESSION_RATIO));
        data_set.copy(header.element(tags::LOSSY_IMAGE_COMPRESSION_METHOD));
    }
}

pub(super) fn put_equipment(data_set: &mut InMemDicomObject, frame: &Frame<'_>) {
    data_set.put_text(tags::CONVERSION_TYPE, VR::CS, "WSD");
    data_set.put_text(tags::SECONDARY_CAPTURE_DEVICE_MANUFACTURER, VR::LO, &frame.options.manufacturer);
    data_set.put_text(tags::SECONDARY_CAPTURE_DEVICE_MANUFACTURER_MODEL_NAME, VR::LO, MODEL_NAME);
    data_set.put_text(tags::SECONDARY_CAPTURE_DEVICE_SOFTWARE_VERSIONS, VR::LO, &frame.options.software_version);
    data_set.put_text(tags::DATE_OF_SECONDARY_CAPTURE, VR::DA, &frame.moment.date());
    data_set.put_text(tags::TIME_OF_SECONDARY_CAPTURE, VR::TM, &frame.moment.time());
}

fn put_references(data_set: &mut InMemDicomObject, image: &ImageAnalysis, same_grid: bool) {
    let source = &image.source;
    let mut derived_from = reference(&source.sop_class_uid, &source.sop_instance_uid);
    derived_from.put_code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, codes::SOURCE_IMAGE);
    derived_from.put_text(tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, if same_grid { "YES" } else { "NO" });
    data_set.put_items(tags::SOURCE_IMAGE_SEQUENCE, vec![derived_from]);

    let mut series = InMemDicomObject::new_empty();
    series.put_uid(tags::SERIES_INSTANCE_UID, &source.series_instance_uid);
    let instance = reference(&source.sop_class_uid, &source.sop_instance_uid);
    series.put_items(tags::REFERENCED_INSTANCE_SEQUENCE, vec![instance]);
    data_set.put_items(tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
}

/// Scanners write zero when they know no spacing; DICOM has no zero spacing.
const POSSIBLE_SPACING_MILLIMETRES: std::ops::RangeInclusive<f64> = 1e-4..=1e3;

/// Pixel Spacing of the overlay, when the source has a calibrated one and the overlay shows exactly its field
/// of view. Imager Pixel Spacing is never renamed to it.
fn put_spacing(data_set: &mut InMemDicomObject, frame: &Frame<'_>, header: &SourceHeader, rows: u16, columns: u16) {
    let spacing: Vec<f64> = header
        .ascii(tags::PIXEL_SPACING)
        .map(|text| text.split('\\').filter_map(|part| part.trim().parse().ok()).collect::<Vec<f64>>())
        .filter(|spacing| spacing.iter().all(|millimetres| POSSIBLE_SPACING_MILLIMETRES.contains(millimetres)))
        .unwrap_or_default();
    let ([between_rows, between_columns], Some(source_rows), Some(source_columns)) =
        (spacing.as_slice(), header.unsigned_16(tags::ROWS), header.unsigned_16(tags::COLUMNS))
    else {
        return;
    };
    let row_scale = f64::from(source_rows) / f64::from(rows);
    let column_scale = f64::from(source_columns) / f64::from(columns);
    // A resized image rounds to whole pixels; a larger difference means that something was added or cut off.
    let same_field_of_view = (row_scale / column_scale - 1.0).abs() <= 1.0 / f64::from(rows.min(columns));
    let scaled = (decimal_string(between_rows * row_scale), decimal_string(between_columns * column_scale));
    if let (true, (Some(between_rows), Some(between_columns))) = (same_field_of_view, scaled) {
        data_set.put_text(tags::PIXEL_SPACING, VR::DS, &format!("{between_rows}\\{between_columns}"));
        let calibration: [Tag; 2] = [tags::PIXEL_SPACING_CALIBRATION_TYPE, tags::PIXEL_SPACING_CALIBRATION_DESCRIPTION];
        // The description is required with the type, so both or none.
        let elements = calibration.map(|tag| frame.copyable(header, tag));
        if elements.iter().all(Option::is_some) {
            for element in elements {
                data_set.copy(element);
            }
        }
    }
}

pub(super) fn put_pixels(data_set: &mut InMemDicomObject, rows: u16, columns: u16, rgb: &[u8]) {
    data_set.put_u16(tags::SAMPLES_PER_PIXEL, 3);
    data_set.put_text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB");
    data_set.put_u16(tags::PLANAR_CONFIGURATION, 0);
    data_set.put_u16(tags::ROWS, rows);
    data_set.put_u16(tags::COLUMNS, columns);
    data_set.put_u16(tags::BITS_ALLOCATED, 8);
    data_set.put_u16(tags::BITS_STORED, 8);
    data_set.put_u16(tags::HIGH_BIT, 7);
    data_set.put_u16(tags::PIXEL_REPRESENTATION, 0);
    let mut bytes = rgb.to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    data_set.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(bytes)));
}
