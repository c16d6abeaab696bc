//! A radiograph without anything that leads to its patient: only what its picture needs is taken over.

use anyhow::Context as _;
use dicom_core::{PrimitiveValue, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, mem::InMemElement};

use crate::imaging::read_object;

/// What is taken over: how pixels are stored and shown, and from which side they were taken. None of these names a person,
/// a place, a device or a time. Texts burned into the pixels stay.
const KEPT: [Tag; 42] = [
    tags::SOP_CLASS_UID,
    tags::MODALITY,
    tags::IMAGE_TYPE,
    tags::PRESENTATION_INTENT_TYPE,
    tags::BODY_PART_EXAMINED,
    tags::VIEW_POSITION,
    tags::VIEW_CODE_SEQUENCE,
    tags::PATIENT_ORIENTATION,
    tags::BURNED_IN_ANNOTATION,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::PLANAR_CONFIGURATION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::PIXEL_SPACING,
    tags::IMAGER_PIXEL_SPACING,
    tags::PIXEL_ASPECT_RATIO,
    tags::BITS_ALLOCATED,
    tags::BITS_STORED,
    tags::HIGH_BIT,
    tags::PIXEL_REPRESENTATION,
    tags::PIXEL_PADDING_VALUE,
    tags::PIXEL_PADDING_RANGE_LIMIT,
    tags::SMALLEST_IMAGE_PIXEL_VALUE,
    tags::LARGEST_IMAGE_PIXEL_VALUE,
    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::MODALITY_LUT_SEQUENCE,
    tags::RESCALE_INTERCEPT,
    tags::RESCALE_SLOPE,
    tags::RESCALE_TYPE,
    tags::VOILUT_SEQUENCE,
    tags::VOILUT_FUNCTION,
    tags::WINDOW_CENTER,
    tags::WINDOW_WIDTH,
    tags::PRESENTATION_LUT_SHAPE,
    tags::PIXEL_DATA,
];

/// Ages above this are written as it, as is usual where ages must not lead to a person.
pub(super) const HIGHEST_AGE_YEARS: u32 = 89;

/// An image without its patient.
pub(super) struct Anonymous {
    /// The whole Part 10 file, in the transfer syntax of the original.
    pub(super) part10: Vec<u8>,
    /// Age at the study in whole years, at most [`HIGHEST_AGE_YEARS`].
    pub(super) age_years: Option<u32>,
    /// `F`, `M` or `O`.
    pub(super) sex: Option<String>,
    /// View Position (0018,5101).
    pub(super) view: Option<String>,
}

/// Takes over what the picture needs, under another SOP Instance UID.
pub(super) fn anonymous(part10: &[u8], sop_instance_uid: &str) -> anyhow::Result<Anonymous> {
    // What the parser says may quote the data set.
    let object = read_object(part10).map_err(|_| anyhow::anyhow!("the data set cannot be parsed"))?;
    let text = |tag| {
        let element = object.element_opt(tag).ok().flatten()?;
        let text = element.to_str().ok()?.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_ascii_uppercase();
        (!text.is_empty()).then_some(text)
    };
    let header = crate::imaging::ImageHeader::from_object(&object);
    let age_years =
        header.patient_age.and_then(|age| (0..=HIGHEST_AGE_YEARS).rev().find(|years| age.is_at_least(*years)));
    let sex = text(tags::PATIENT_SEX).filter(|sex| ["F", "M", "O"].contains(&sex.as_str()));
    let view = text(tags::VIEW_POSITION);

    let mut kept: Vec<InMemElement> = Vec::new();
    for tag in KEPT {
        kept.extend(object.element_opt(tag).ok().flatten().cloned());
    }
    let put = |tag, vr, value: &str| InMemElement::new(tag, vr, PrimitiveValue::from(value));
    kept.push(put(tags::SOP_INSTANCE_UID, VR::UI, sop_instance_uid));
    kept.extend(age_years.map(|years| put(tags::PATIENT_AGE, VR::AS, &format!("{years:03}Y"))));
    kept.push(put(tags::PATIENT_IDENTITY_REMOVED, VR::CS, "YES"));
    kept.push(put(tags::DEIDENTIFICATION_METHOD, VR::LO, "attributes of the picture only, by Hilum"));
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(header.sop_class_uid.as_str())
        .media_storage_sop_instance_uid(sop_instance_uid)
        .transfer_syntax(header.transfer_syntax_uid.as_str());
    let mut written = Vec::new();
    InMemDicomObject::from_element_iter(kept)
        .with_meta(meta)
        .context("the picture cannot be written")?
        .write_all(&mut written)
        .context("the picture cannot be written")?;
    Ok(Anonymous { part10: written, age_years, sex, view })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::{
        DecodeLimits, decode_grey,
        testing::{part10, radiograph, text},
    };

    #[test]
    fn the_picture_stays_and_the_patient_goes() {
        let mut object = radiograph(2, 3, &[5, 10, 20, 40, 80, 160]);
        for (tag, vr, value) in [
            (tags::PATIENT_NAME, VR::PN, "Doe^Jane"),
            (tags::PATIENT_ID, VR::LO, "SECRET-1"),
            (tags::PATIENT_AGE, VR::AS, ""),
            (tags::PATIENT_BIRTH_DATE, VR::DA, "19200101"),
            (tags::STUDY_DATE, VR::DA, "20200601"),
            (tags::PATIENT_SEX, VR::CS, "F"),
            (tags::VIEW_POSITION, VR::CS, "PA"),
            (tags::INSTITUTION_NAME, VR::LO, "SECRET-2"),
            (tags::STUDY_INSTANCE_UID, VR::UI, "1.2.3.4711"),
        ] {
            object.put(text(tag, vr, value));
        }
        let original = part10(object);
        let found = anonymous(&original, "2.25.99").unwrap();
        assert_eq!((found.age_years, found.sex.as_deref(), found.view.as_deref()), (Some(89), Some("F"), Some("PA")));
        let bytes = String::from_utf8_lossy(&found.part10).into_owned();
        for secret in ["Doe", "SECRET", "19200101", "20200601", "4711"] {
            assert!(!bytes.contains(secret), "{secret}");
        }
        let grey = |part10: &[u8]| decode_grey(&read_object(part10).unwrap(), DecodeLimits::default()).unwrap();
        assert_eq!(grey(&found.part10), grey(&original));
        assert!(anonymous(b"rubbish", "2.25.1").is_err());
    }

    #[test]
    fn ages_are_whole_years_and_the_highest_are_one() {
        for (age, expected) in
            [("000D", Some(0)), ("062Y", Some(62)), ("088Y", Some(88)), ("101Y", Some(89)), ("", None)]
        {
            let mut object = radiograph(1, 2, &[0, 1]);
            object.put(text(tags::PATIENT_AGE, VR::AS, age));
            assert_eq!(anonymous(&part10(object), "2.25.1").unwrap().age_years, expected, "{age}");
        }
    }
}
