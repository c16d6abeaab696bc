//! A PNG or JPEG picture as a digital radiograph in memory, so that it takes the same way as DICOM files.

use std::io::Cursor;

use anyhow::Context as _;
use dicom_core::{PrimitiveValue, VR, dicom_value};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, mem::InMemElement};
use image::{DynamicImage, ImageReader, Limits};

/// Memory that decoding a picture may take.
const MAX_DECODED_BYTES: u64 = 512 << 20;
/// The networks see shades of grey; this much difference between the channels is compression, not colour.
const MAX_CHANNEL_DIFFERENCE: u8 = 40;

/// Whether the bytes are a Part 10 file of DICOM: a preamble of 128 bytes and `DICM`.
pub(in crate::cli) fn is_part10(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM")
}

/// The picture as a Part 10 file: MONOCHROME2, 8 or 16 bits, for presentation. `view` such as `PA`, may be empty.
///
/// # Errors
/// The bytes are no PNG or JPEG, too large, or a picture in colour.
pub(in crate::cli) fn as_radiograph(bytes: &[u8], view: &str, sop_instance_uid: &str) -> anyhow::Result<Vec<u8>> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let picture = reader.decode().context("it is neither DICOM nor a PNG or JPEG picture")?;
    let (columns, rows) = (u16::try_from(picture.width())?, u16::try_from(picture.height())?);
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
            anyhow::ensure!(
                colourful.count() * 100 <= rgb.as_raw().len() / 3,
                "it is a picture in colour; a radiograph in shades of grey is expected"
            );
            let mut grey = picture.to_luma8().into_raw();
            if grey.len() % 2 == 1 {
                grey.push(0);
            }
            (8, InMemElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(grey.into())))
        }
    };
    let number = |tag, value: u16| InMemElement::new(tag, VR::US, dicom_value!(U16, [value]));
    let text = |tag, vr, value: &str| InMemElement::new(tag, vr, PrimitiveValue::from(value));
    let object = InMemDicomObject::from_element_iter([
        text(tags::SOP_CLASS_UID, VR::UI, uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION),
        text(tags::SOP_INSTANCE_UID, VR::UI, sop_instance_uid),
        text(tags::MODALITY, VR::CS, "DX"),
        text(tags::PRESENTATION_INTENT_TYPE, VR::CS, "FOR PRESENTATION"),
        text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
        text(tags::VIEW_POSITION, VR::CS, view),
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
    object.with_meta(meta)?.write_all(&mut part10)?;
    Ok(part10)
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, ImageFormat, Luma, RgbImage};

    use super::*;
    use crate::imaging::{DecodeLimits, decode_grey, read_object};

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_grey_picture_keeps_its_pixels() {
        let picture = GrayImage::from_fn(33, 21, |x, y| Luma([(x * 7 + y) as u8]));
        let part10 = as_radiograph(&encoded(picture.clone(), ImageFormat::Png), "PA", "2.25.1").unwrap();
        let plane = decode_grey(&read_object(&part10).unwrap(), DecodeLimits::default()).unwrap().presentation(false);
        assert_eq!((plane.rows, plane.columns), (21, 33));
        let expected: Vec<f32> = picture.into_raw().into_iter().map(f32::from).collect();
        assert_eq!(plane.values, expected);
    }

    #[test]
    fn jpeg_is_read_and_colour_and_rubbish_are_refused() {
        let grey = GrayImage::from_fn(32, 32, |x, _| Luma([(x * 8) as u8]));
        assert!(as_radiograph(&encoded(grey, ImageFormat::Jpeg), "", "2.25.1").is_ok());
        let red = RgbImage::from_pixel(8, 8, image::Rgb([200, 10, 10]));
        let error = as_radiograph(&encoded(red, ImageFormat::Png), "", "2.25.1").unwrap_err();
        assert!(error.to_string().contains("in colour"), "{error}");
        assert!(as_radiograph(b"no picture at all", "", "2.25.1").is_err());
    }
}
