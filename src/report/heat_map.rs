//! The heat map over a radiograph as a Secondary Capture image (PS3.3 section A.8.1).

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::{
    PictureForm, RenderOptions, RenderedObject, ReportError, RgbPixels, Sources, codes,
    dataset::Build,
    modules::{Frame, Series, header_of},
    pictures::{derived_from, dimensions, finish, identity, modality, put_body_part, put_series},
    source::SourceHeader,
    text::decimal_string,
    wording,
};
use crate::types::{ImageAnalysis, RunOutcome, RunRecord};

/// Renders the overlay of analysed image number `image_idx` (from 0) as a Secondary Capture image of its study, in the form
/// that a destination wants.
///
/// `picture` shows the whole source image, possibly resized, with whatever is burnt in; nothing is drawn here. `sources` are
/// in the order of arrival: the last one gives patient and study.
///
/// # Errors
/// [`ReportError`] when there is no such image, its header was not passed, or the picture is none.
pub fn render_heat_map(
    record: &RunRecord,
    image_idx: usize,
    form: &PictureForm,
    sources: Sources<'_>,
    picture: &RgbPixels,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let images = match &record.outcome {
        RunOutcome::Analysed(analysis) => analysis.images.as_slice(),
        RunOutcome::CtMeasured(_) | RunOutcome::NotAnalysed(_) => &[],
    };
    let image = images.get(image_idx).ok_or(ReportError::NoSuchImage { image_idx, analysed: images.len() })?;
    let (columns, rows) = dimensions(picture)?;
    let header = header_of(sources, &image.source)
        .ok_or_else(|| ReportError::SourceMissing { sop_instance_uid: image.source.sop_instance_uid.clone() })?;

    let frame = Frame::new(record, sources, options)?;
    let identity = identity(&frame, "sc", form, image_idx + 1)?;
    let series = Series {
        modality: &modality(form, header),
        number: "9004",
        description: wording::heat_map_series(&record.bundle),
        instance_number: image_idx + 1,
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    put_image(&mut data_set, record, image, header);
    let same_grid = header.unsigned_16(tags::ROWS) == Some(rows) && header.unsigned_16(tags::COLUMNS) == Some(columns);
    data_set.put_items(tags::SOURCE_IMAGE_SEQUENCE, vec![derived_from(&image.source, same_grid)]);
    put_series(&mut data_set, &image.source.series_instance_uid, std::iter::once(&image.source));
    put_spacing(&mut data_set, &frame, header, rows, columns);
    finish(&frame, data_set, form, picture, &[header], identity)
}

fn put_image(data_set: &mut InMemDicomObject, record: &RunRecord, image: &ImageAnalysis, header: &SourceHeader) {
    data_set.put_text(tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY\\AI_HEATMAP");
    data_set.copy_or_empty(tags::PATIENT_ORIENTATION, VR::CS, header.element(tags::PATIENT_ORIENTATION));
    put_body_part(data_set, header);
    data_set.put_text(tags::IMAGE_COMMENTS, VR::LT, &wording::heat_map_comment(&record.bundle, image));
    data_set.put_text(tags::DERIVATION_DESCRIPTION, VR::ST, &wording::heat_map_derivation(&record.bundle, image));
    data_set.put_code(tags::DERIVATION_CODE_SEQUENCE, codes::HEAT_MAP_OVERLAY);
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
