//! A PNG or JPEG picture as a digital radiograph in memory, so that it takes the same way as DICOM files.

use std::io::Cursor;

use dicom_core::{PrimitiveValue, VR, dicom_value};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, mem::InMemElement};
use image::{DynamicImage, ImageReader, Limits};

/// Memory that decoding a picture may take.
const MAX_DECODED_BYTES: u64 = 512 << 20;
/// The networks see shades of grey; this much difference between the channels is compression, not colour.
const MAX_CHANNEL_DIFFERENCE: u8 = 40;

/// What a picture does not say of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PictureFacts<'a> {
    /// View Position (0018,5101), such as `PA`; may be empty. More than 16 characters are no code string and left out.
    pub view: &'a str,
    /// Age of the patient in whole years.
    pub age_years: Option<u32>,
}

/// Why a picture cannot stand for a radiograph.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// No picture, a broken one, or one that takes too much memory.
    #[error("it is neither DICOM nor a PNG or JPEG picture that can be decoded: {0}")]
    Undecodable(#[from] image::ImageError),
    /// DICOM has 16 bits for rows and columns (PS3.3 C.7.6.3).
    #[error("it has {columns} x {rows} pixels; at most 65,535 rows and columns are possible")]
    TooLarge {
        /// Width in pixels.
        columns: u32,
        /// Height in pixels.
        rows: u32,
    },
    /// Colours.
    #[error("it is a picture in colour; a radiograph in shades of grey is expected")]
    Colour,
    /// The object cannot be written; it is made here, so that this does not happen.
    #[error("it cannot be wrapped as a DICOM object: {0}")]
    Wrap(String),
}

/// Whether a file is DICOM Part 10 (PS3.10 section 7.1) and no bare picture.
#[must_use]
pub fn is_part10(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM")
}

/// Decodes a PNG or JPEG file.
///
/// # Errors
/// [`PictureError::Undecodable`].
pub fn decode_picture(bytes: &[u8]) -> Result<DynamicImage, PictureError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(image::ImageError::IoError)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    Ok(reader.decode()?)
}

/// The picture as a Part 10 file: MONOCHROME2, 8 or 16 bits, for presentation.
///
/// # Errors
/// [`PictureError`]: the bytes are no PNG or JPEG, too large, or a picture in colour.
pub fn picture_as_radiograph(
    bytes: &[u8],
    facts: PictureFacts<'_>,
    sop_instance_uid: &str,
) -> Result<Vec<u8>, PictureError> {
    let picture = decode_picture(bytes)?;
    let (Ok(columns), Ok(rows)) = (u16::try_from(picture.width()), u16::try_from(picture.height())) else {
        return Err(PictureError::TooLarge { columns: picture.width(), rows: picture.height() });
    };
    let (bits, pixels) = match picture {
        DynamicImage::ImageLuma16(grey) => {
            (16, InMemElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(grey.into_raw().into())))
        }
        picture => {
            let rgb = picture.to_rgb8();
            let colourful = rgb.pixels().filter(|pixel| {
                let (least, most) = pixel.0.iter().fold((u8::MAX, 0), |(low, high), v| (low.min(*v), high.max(*v)));
                most - least > MAX_CHANNEL_DIFFERENCE
            });
            if colourful.count() * 100 > rgb.as_raw().len() / 3 {
                return Err(PictureError::Colour);
            }
            let mut grey = picture.to_luma8().into_raw();
            if grey.len() % 2 == 1 {
                grey.push(0);
            }
            (8, InMemElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(grey.into())))
        }
    };
    let number = |tag, value: u16| InMemElement::new(tag, VR::US, dicom_value!(U16, [value]));
    let text = |tag, vr, value: &str| InMemElement::new(tag, vr, PrimitiveValue::from(value));
    let view = if facts.view.len() <= 16 { facts.view.to_uppercase() } else { String::new() };
    let age = facts.age_years.map_or_else(String::new, |years| format!("{:03}Y", years.min(999)));
    let object = InMemDicomObject::from_element_iter([
        text(tags::SOP_CLASS_UID, VR::UI, uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION),
        text(tags::SOP_INSTANCE_UID, VR::UI, sop_instance_uid),
        text(tags::MODALITY, VR::CS, "DX"),
        text(tags::PRESENTATION_INTENT_TYPE, VR::CS, "FOR PRESENTATION"),
        text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
        text(tags::VIEW_POSITION, VR::CS, &view),
        text(tags::PATIENT_AGE, VR::AS, &age),
        number(tags::SAMPLES_PER_PIXEL, 1),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        number(tags::ROWS, rows),
        number(tags::COLUMNS, columns),
        number(tags::BITS_ALLOCATED, bits),
        number(tags::BITS_STORED, bits),
        number(tags::HIGH_BIT, bits - 1),
        number(tags::PIXEL_REPRESENTATION, 0),
        pixels,
    ]);
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION)
        .media_storage_sop_instance_uid(sop_instance_uid)
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let mut part10 = Vec::new();
    let object = object.with_meta(meta).map_err(|error| PictureError::Wrap(error.to_string()))?;
    object.write_all(&mut part10).map_err(|error| PictureError::Wrap(error.to_string()))?;
    Ok(part10)
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, ImageBuffer, ImageFormat, Luma, RgbImage};

    use super::*;
    use crate::imaging::{DecodeLimits, ImageHeader, PatientAge, View, decode_grey, read_object};

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_grey_picture_keeps_its_pixels() {
        let picture = GrayImage::from_fn(33, 21, |x, y| Luma([(x * 7 + y) as u8]));
        let facts = PictureFacts { view: "pa", age_years: Some(5) };
        let part10 = picture_as_radiograph(&encoded(picture.clone(), ImageFormat::Png), facts, "2.25.1").unwrap();
        assert!(is_part10(&part10) && !is_part10(b"short"));
        let object = read_object(&part10).unwrap();
        let header = ImageHeader::from_object(&object);
        assert_eq!((header.view, header.patient_age), (View::PosteroAnterior, Some(PatientAge::from_years(5))));
        let plane = decode_grey(&object, DecodeLimits::default()).unwrap().presentation(false);
        assert_eq!((plane.rows, plane.columns), (21, 33));
        let expected: Vec<f32> = picture.into_raw().into_iter().map(f32::from).collect();
        assert_eq!(plane.values, expected);
    }

    #[test]
    fn sixteen_bits_stay_sixteen_bits() {
        let picture = ImageBuffer::<Luma<u16>, _>::from_fn(5, 3, |x, y| Luma([(x * 9_000 + y) as u16]));
        let part10 =
            picture_as_radiograph(&encoded(picture.clone(), ImageFormat::Png), PictureFacts::default(), "2.25.1");
        let object = read_object(&part10.unwrap()).unwrap();
        assert_eq!(ImageHeader::from_object(&object).patient_age, None);
        let plane = decode_grey(&object, DecodeLimits::default()).unwrap().presentation(false);
        assert_eq!(plane.values, picture.into_raw().into_iter().map(f32::from).collect::<Vec<_>>());
    }

    #[test]
    fn jpeg_is_read_and_colour_and_rubbish_are_refused() {
        let grey = GrayImage::from_fn(32, 32, |x, _| Luma([(x * 8) as u8]));
        assert!(picture_as_radiograph(&encoded(grey, ImageFormat::Jpeg), PictureFacts::default(), "2.25.1").is_ok());
        let red = RgbImage::from_pixel(8, 8, image::Rgb([200, 10, 10]));
        let error =
            picture_as_radiograph(&encoded(red, ImageFormat::Png), PictureFacts::default(), "2.25.1").unwrap_err();
        assert!(error.to_string().contains("in colour"), "{error}");
        let error = picture_as_radiograph(b"no picture at all", PictureFacts::default(), "2.25.1").unwrap_err();
        assert!(error.to_string().contains("neither DICOM nor"), "{error}");
    }
}
