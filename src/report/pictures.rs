//! What pictures have in common: Secondary Capture images (PS3.3 section A.8.1) in the form that a destination wants.

use dicom_core::{
    DataElement, PrimitiveValue, VR,
    value::{PixelFragmentSequence, Value},
};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::{
    PictureForm, RenderedObject, ReportError, ResultKind, codes,
    content::reference,
    dataset::{Build, Identity, write_as},
    modules::{Frame, MODEL_NAME},
    source::SourceHeader,
    text::decimal_string,
};
use crate::{
    imaging::{jpeg_baseline, rle_lossless},
    types::{PictureCompression, PictureModality, ResultProfile, SourceImage, Uid},
};

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

impl From<image::RgbImage> for RgbPixels {
    fn from(picture: image::RgbImage) -> Self {
        Self { width: picture.width(), height: picture.height(), bytes: picture.into_raw() }
    }
}

impl Default for PictureForm {
    /// That of a destination that is told nothing else.
    fn default() -> Self {
        let profile = ResultProfile::default();
        Self {
            modality: profile.picture_modality,
            compression: profile.picture_compression,
            longest_side: profile.picture_longest_side,
            language: profile.language,
        }
    }
}

/// The identity of picture number `n` (from 1) of a role, in this form: every form has UIDs of its own, and so have the
/// sentences of a site. Those of the default form are as they were before there were others.
pub(super) fn identity(frame: &Frame<'_>, role: &str, form: &PictureForm, n: usize) -> Result<Identity, ReportError> {
    let sop_class_uid = Uid::new(uids::SECONDARY_CAPTURE_IMAGE_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let mut role = role.to_owned();
    if *form != PictureForm::default() {
        let modality = match form.modality {
            PictureModality::Other => "other",
            PictureModality::Source => "source",
        };
        let compression = match form.compression {
            PictureCompression::None => "none",
            PictureCompression::RleLossless => "rle",
            PictureCompression::JpegBaseline => "jpeg",
        };
        role = format!("{role}/{modality}/{compression}/{}/{}", form.longest_side, form.language);
    }
    if let Some(file) = frame.options.texts.language(&form.language).file() {
        role = format!("{role} of {file}");
    }
    Ok(frame.identity(&role, &sop_class_uid, n))
}

/// (0008,0060): `OT`, or that of the image that is shown.
pub(super) fn modality(form: &PictureForm, shown: &SourceHeader) -> String {
    let of_source = || shown.ascii(tags::MODALITY).filter(|modality| modality.len() <= 16);
    match form.modality {
        PictureModality::Other => None,
        PictureModality::Source => of_source(),
    }
    .unwrap_or_else(|| "OT".to_owned())
}

/// (columns, rows), checked against the number of bytes.
pub(super) fn dimensions(picture: &RgbPixels) -> Result<(u16, u16), ReportError> {
    let RgbPixels { width, height, ref bytes } = *picture;
    let expected = 3 * u64::from(width) * u64::from(height);
    match (u16::try_from(width), u16::try_from(height)) {
        (Ok(columns @ 1..), Ok(rows @ 1..)) if bytes.len() as u64 == expected => Ok((columns, rows)),
        _ => Err(ReportError::Overlay { width, height, bytes: bytes.len() }),
    }
}

/// Adds the pixels and what is said about them to `data_set` and finishes the object. `shown` are the images whose pixels
/// are in the picture.
pub(super) fn finish(
    frame: &Frame<'_>,
    mut data_set: InMemDicomObject,
    form: &PictureForm,
    picture: &RgbPixels,
    shown: &[&SourceHeader],
    identity: Identity,
) -> Result<RenderedObject, ReportError> {
    let (columns, rows) = dimensions(picture)?;
    put_annotation(&mut data_set, shown);
    put_equipment(&mut data_set, frame);
    let (transfer_syntax_uid, ratio) = put_pixels(&mut data_set, form.compression, (rows, columns), &picture.bytes)?;
    put_lossy(&mut data_set, shown, ratio);
    frame.put_coding_schemes(&mut data_set);
    let (encoding, ids) = (&frame.encoding, &frame.options.file_meta);
    write_as(data_set, encoding, ids, ResultKind::Sc, identity, transfer_syntax_uid)
}

pub(super) fn put_body_part(data_set: &mut InMemDicomObject, header: &SourceHeader) {
    match header.element(tags::BODY_PART_EXAMINED) {
        Some(body_part) if super::source::ascii(body_part).is_some() => data_set.copy(Some(body_part)),
        // The pipelines read chest images only; without a body part Laterality would be required.
        _ => data_set.put_text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
    }
}

/// What one of the images that are shown has burned in, the picture has.
fn put_annotation(data_set: &mut InMemDicomObject, shown: &[&SourceHeader]) {
    let burned_in = shown.iter().any(|header| header.ascii(tags::BURNED_IN_ANNOTATION).as_deref() == Some("YES"));
    data_set.put_text(tags::BURNED_IN_ANNOTATION, VR::CS, if burned_in { "YES" } else { "NO" });
    data_set.put_text(tags::RECOGNIZABLE_VISUAL_FEATURES, VR::CS, "NO");
}

fn put_equipment(data_set: &mut InMemDicomObject, frame: &Frame<'_>) {
    data_set.put_text(tags::CONVERSION_TYPE, VR::CS, "WSD");
    data_set.put_text(tags::SECONDARY_CAPTURE_DEVICE_MANUFACTURER, VR::LO, &frame.options.manufacturer);
    data_set.put_text(tags::SECONDARY_CAPTURE_DEVICE_MANUFACTURER_MODEL_NAME, VR::LO, MODEL_NAME);
    data_set.put_text(tags::SECONDARY_CAPTURE_DEVICE_SOFTWARE_VERSIONS, VR::LO, &frame.options.software_version);
    data_set.put_text(tags::DATE_OF_SECONDARY_CAPTURE, VR::DA, &frame.moment.date());
    data_set.put_text(tags::TIME_OF_SECONDARY_CAPTURE, VR::TM, &frame.moment.time());
}

/// An image that the picture is made of, and whether each of its pixels is one of the picture at the same place.
pub(super) fn derived_from(source: &SourceImage, same_grid: bool) -> InMemDicomObject {
    let mut derived_from = reference(&source.sop_class_uid, &source.sop_instance_uid);
    derived_from.put_code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, codes::SOURCE_IMAGE);
    derived_from.put_text(tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, if same_grid { "YES" } else { "NO" });
    derived_from
}

/// The series and those of its images that the picture refers to.
pub(super) fn put_series<'a>(
    data_set: &mut InMemDicomObject,
    series_instance_uid: &Uid,
    images: impl Iterator<Item = &'a SourceImage>,
) {
    let mut series = InMemDicomObject::new_empty();
    series.put_uid(tags::SERIES_INSTANCE_UID, series_instance_uid);
    let instances = images.map(|image| reference(&image.sop_class_uid, &image.sop_instance_uid)).collect();
    series.put_items(tags::REFERENCED_INSTANCE_SEQUENCE, instances);
    data_set.put_items(tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
}

/// Once lossy, always lossy (PS3.3 section C.7.6.1.1.5), also where one of the images that are shown was. `ratio` is that of
/// our own compression; each that lost something has a value, the earlier first.
pub(super) fn put_lossy(data_set: &mut InMemDicomObject, shown: &[&SourceHeader], ratio: Option<f64>) {
    let is_lossy = |header: &&&SourceHeader| {
        [uids::JPEG_BASELINE8_BIT, uids::JPEG_EXTENDED12_BIT, uids::JPEGLS_NEAR_LOSSLESS]
            .contains(&header.transfer_syntax_uid())
            || header.ascii(tags::LOSSY_IMAGE_COMPRESSION).as_deref() == Some("01")
    };
    let lossy = shown.iter().find(is_lossy);
    let is_01 = lossy.is_some() || ratio.is_some();
    data_set.put_text(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, if is_01 { "01" } else { "00" });
    let of_source = [tags::LOSSY_IMAGE_COMPRESSION_RATIO, tags::LOSSY_IMAGE_COMPRESSION_METHOD];
    let Some(ratio) = ratio else {
        for tag in of_source {
            data_set.copy(lossy.and_then(|header| header.element(tag)));
        }
        return;
    };
    let own = [decimal_string((ratio * 100.0).round() / 100.0).unwrap_or_default(), "ISO_10918_1".to_owned()];
    // A ratio without its method, or the reverse, cannot be continued: values correspond.
    let earlier = of_source.map(|tag| lossy.and_then(|header| header.ascii(tag)));
    let correspond = |texts: &[Option<String>; 2]| match texts {
        [Some(ratios), Some(methods)] => ratios.split('\\').count() == methods.split('\\').count(),
        _ => false,
    };
    let earlier = Some(earlier).filter(correspond).unwrap_or_default();
    for (((tag, vr), own), earlier) in of_source.into_iter().zip([VR::DS, VR::CS]).zip(own).zip(earlier) {
        let values = earlier.map_or_else(|| own.clone(), |earlier| format!("{earlier}\\{own}"));
        data_set.put_text(tag, vr, &values);
    }
}

/// The transfer syntax of a picture.
pub(super) const fn transfer_syntax(compression: PictureCompression) -> &'static str {
    match compression {
        PictureCompression::None => uids::EXPLICIT_VR_LITTLE_ENDIAN,
        PictureCompression::RleLossless => uids::RLE_LOSSLESS,
        PictureCompression::JpegBaseline => uids::JPEG_BASELINE8_BIT,
    }
}

/// Image Pixel module (PS3.3 section C.7.6.3). Returns the transfer syntax and, of a compression that loses, its ratio.
fn put_pixels(
    data_set: &mut InMemDicomObject,
    compression: PictureCompression,
    (rows, columns): (u16, u16),
    rgb: &[u8],
) -> Result<(&'static str, Option<f64>), ReportError> {
    let transfer_syntax_uid = transfer_syntax(compression);
    let (photometric, planar, frame) = match compression {
        PictureCompression::None => ("RGB", 0, None),
        // The segments are planes (PS3.5 sections 8.2.2 and G.2).
        PictureCompression::RleLossless => ("RGB", 1, Some(rle_lossless(rgb, columns))),
        PictureCompression::JpegBaseline => {
            let jpeg = jpeg_baseline(rgb, columns, rows)
                .map_err(|error| ReportError::Encode { what: "picture", reason: error.to_string() })?;
            ("YBR_FULL_422", 0, Some(jpeg))
        }
    };
    data_set.put_u16(tags::SAMPLES_PER_PIXEL, 3);
    data_set.put_text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, photometric);
    data_set.put_u16(tags::PLANAR_CONFIGURATION, planar);
    data_set.put_u16(tags::ROWS, rows);
    data_set.put_u16(tags::COLUMNS, columns);
    data_set.put_u16(tags::BITS_ALLOCATED, 8);
    data_set.put_u16(tags::BITS_STORED, 8);
    data_set.put_u16(tags::HIGH_BIT, 7);
    data_set.put_u16(tags::PIXEL_REPRESENTATION, 0);
    let even = |mut bytes: Vec<u8>| {
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
        bytes
    };
    let Some(frame) = frame else {
        let bytes = PrimitiveValue::from(even(rgb.to_vec()));
        data_set.put(DataElement::new(tags::PIXEL_DATA, VR::OB, bytes));
        return Ok((transfer_syntax_uid, None));
    };
    let ratio = rgb.len() as f64 / frame.len().max(1) as f64;
    let is_lossy = compression == PictureCompression::JpegBaseline;
    // One frame, which begins at the first byte.
    let fragments = PixelFragmentSequence::new(vec![0_u32], vec![even(frame)]);
    data_set.put(DataElement::new(tags::PIXEL_DATA, VR::OB, Value::PixelSequence(fragments)));
    Ok((transfer_syntax_uid, is_lossy.then_some(ratio)))
}
