//! Synthetic DICOM objects for the tests of `imaging` and `infer`.

use dicom_core::{PrimitiveValue, Tag, VR, dicom_value, value::PixelFragmentSequence};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject, mem::InMemElement};

use super::Plane;

/// SOP Instance UID of every synthetic object.
pub(crate) const INSTANCE_UID: &str = "2.25.1234567890";

/// A frontal MONOCHROME2 DX image of 16-bit words, all bits stored.
pub(crate) fn radiograph(rows: u16, columns: u16, words: &[u16]) -> InMemDicomObject {
    InMemDicomObject::from_element_iter([
        text(tags::SOP_CLASS_UID, VR::UI, uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION),
        text(tags::SOP_INSTANCE_UID, VR::UI, INSTANCE_UID),
        text(tags::STUDY_DATE, VR::DA, "20260102"),
        text(tags::MODALITY, VR::CS, "DX"),
        text(tags::PRESENTATION_INTENT_TYPE, VR::CS, "FOR PRESENTATION"),
        text(tags::PATIENT_AGE, VR::AS, "045Y"),
        text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
        text(tags::VIEW_POSITION, VR::CS, "PA"),
        number(tags::SAMPLES_PER_PIXEL, 1),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        number(tags::ROWS, rows),
        number(tags::COLUMNS, columns),
        number(tags::BITS_ALLOCATED, 16),
        number(tags::BITS_STORED, 16),
        number(tags::HIGH_BIT, 15),
        number(tags::PIXEL_REPRESENTATION, 0),
        InMemElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(words.into())),
    ])
}

/// What a frontal chest looks like from afar, 0 to 1: dark air beside it, dark lungs, a bright middle and belly, and grain.
pub(crate) fn chest_plane(rows: usize, columns: usize) -> Plane {
    let mut state = 1_u32;
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let y = row as f32 / rows as f32;
        for column in 0..columns {
            let x = column as f32 / columns as f32;
            let from_middle = (x - 0.5).abs();
            let in_lung = (1.0 - ((from_middle - 0.24) / 0.17).powi(2) - ((y - 0.45) / 0.36).powi(2)) * 1.6;
            let (in_lung, in_air) = (in_lung.clamp(0.0, 1.0), ((from_middle - 0.36) / 0.12).clamp(0.0, 1.0));
            let body = 0.6 + 0.25 * y - 0.3 * from_middle;
            let ribs = 0.05 * (y * 30.0 + from_middle * 12.0).sin();
            let chest = body + in_lung * (ribs - 0.42 + 0.1 * y);
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let grain = ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.02;
            let value = chest * (1.0 - in_air) + in_air * (0.06 + 0.2 * y);
            values.push((value + grain).clamp(0.0, 1.0));
        }
    }
    Plane { rows, columns, values }
}

/// [`chest_plane`] as words of 12 bits.
pub(crate) fn chest_words(rows: u16, columns: u16) -> Vec<u16> {
    chest_plane(rows.into(), columns.into()).values.iter().map(|value| (value * 4095.0).round() as u16).collect()
}

/// A text element; values are separated by backslashes, as in a file.
pub(crate) fn text(tag: Tag, vr: VR, value: &str) -> InMemElement {
    let values: Vec<String> = value.split('\\').map(str::to_owned).collect();
    InMemElement::new(tag, vr, PrimitiveValue::Strs(values.into()))
}

pub(crate) fn number(tag: Tag, value: u16) -> InMemElement {
    InMemElement::new(tag, VR::US, dicom_value!(U16, [value]))
}

/// As 12 bits stored in the low bits of each word.
pub(crate) fn set_bits_stored(object: &mut InMemDicomObject, bits_stored: u16, signed: bool) {
    object.put(number(tags::BITS_STORED, bits_stored));
    object.put(number(tags::HIGH_BIT, bits_stored - 1));
    object.put(number(tags::PIXEL_REPRESENTATION, u16::from(signed)));
}

pub(crate) fn with_meta(object: InMemDicomObject, transfer_syntax_uid: &str) -> DefaultDicomObject {
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION)
        .media_storage_sop_instance_uid(INSTANCE_UID)
        .transfer_syntax(transfer_syntax_uid);
    object.with_meta(meta).unwrap()
}

/// The object as the bytes of a Part 10 file in Explicit VR Little Endian.
pub(crate) fn part10(object: InMemDicomObject) -> Vec<u8> {
    part10_as(object, uids::EXPLICIT_VR_LITTLE_ENDIAN)
}

pub(crate) fn part10_as(object: InMemDicomObject, transfer_syntax_uid: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    with_meta(object, transfer_syntax_uid).write_all(&mut bytes).unwrap();
    bytes
}

/// Replaces the pixels by one compressed fragment.
pub(crate) fn set_fragment(object: &mut InMemDicomObject, fragment: Vec<u8>) {
    let sequence: PixelFragmentSequence<Vec<u8>> = PixelFragmentSequence::new_fragments(vec![fragment]);
    object.put(InMemElement::new(tags::PIXEL_DATA, VR::OB, sequence));
}
