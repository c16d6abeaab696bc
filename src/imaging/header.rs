//! What the header says about an image, as far as the pipelines ask.

use dicom_core::{
    Tag, VR,
    value::{PrimitiveValue, Value},
};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, InMemDicomObject, mem::InMemElement};

/// Facts of one image object. Texts are trimmed; absent, empty and impossible values are `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageHeader {
    /// SOP Class UID (0008,0016).
    pub sop_class_uid: String,
    /// Transfer Syntax UID (0002,0010).
    pub transfer_syntax_uid: String,
    /// Modality (0008,0060), such as `DX`.
    pub modality: Option<String>,
    /// Image Type (0008,0008), such as `DERIVED`, `PRIMARY`.
    pub image_type: Vec<String>,
    /// Presentation Intent Type (0008,0068), `FOR PRESENTATION` or `FOR PROCESSING`.
    pub presentation_intent_type: Option<String>,
    /// Photometric Interpretation (0028,0004), such as `MONOCHROME2`.
    pub photometric_interpretation: Option<String>,
    /// Samples per Pixel (0028,0002).
    pub samples_per_pixel: Option<u16>,
    /// Rows (0028,0010).
    pub rows: Option<u32>,
    /// Columns (0028,0011).
    pub columns: Option<u32>,
    /// Bits Allocated (0028,0100).
    pub bits_allocated: Option<u16>,
    /// Bits Stored (0028,0101).
    pub bits_stored: Option<u16>,
    /// High Bit (0028,0102).
    pub high_bit: Option<u16>,
    /// Pixel Representation (0028,0103) is 1: stored values are two's complement.
    pub is_signed: bool,
    /// Number of Frames (0028,0008), 1 when absent.
    pub number_of_frames: u32,
    /// View Position (0018,5101) and View Code Sequence (0054,0220), read together.
    pub view: View,
    /// First value of Patient Orientation (0020,0020): the direction of the rows, such as `L`.
    pub row_direction: Option<String>,
    /// Age of the patient at the study.
    pub patient_age: Option<PatientAge>,
    /// Body Part Examined (0018,0015).
    pub body_part_examined: Option<String>,
    /// What the first item of Anatomic Region Sequence (0008,2218) says, when it says anything.
    pub anatomic_region: Option<AnatomicRegion>,
    /// First Window Center (0028,1050) and Window Width (0028,1051).
    pub window: Option<(f64, f64)>,
    /// Rescale Slope (0028,1053) and Rescale Intercept (0028,1052).
    pub rescale: Option<(f64, f64)>,
    /// VOI LUT Sequence (0028,3010) has an item.
    pub has_voi_lut_sequence: bool,
    /// Modality LUT Sequence (0028,3000) has an item.
    pub has_modality_lut_sequence: bool,
    /// Presentation LUT Shape (2050,0020), `IDENTITY` or `INVERSE`.
    pub presentation_lut_shape: Option<String>,
    /// Row and column spacing in millimetres, of Pixel Spacing (0028,0030), else Imager Pixel Spacing (0018,1164).
    pub pixel_spacing_mm: Option<(f64, f64)>,
    /// Burned In Annotation (0028,0301): `Some(true)` for YES.
    pub burned_in_annotation: Option<bool>,
}

/// Age in whole years. The exact number never leaves the node: say [`PatientAge::is_at_least`] instead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PatientAge {
    years: u32,
}

impl std::fmt::Debug for PatientAge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PatientAge(..)")
    }
}

impl PatientAge {
    /// An age of `years` whole years.
    #[must_use]
    pub const fn from_years(years: u32) -> Self {
        Self { years }
    }

    /// Whether the patient is at least `years` old.
    #[must_use]
    pub const fn is_at_least(self, years: u32) -> bool {
        self.years >= years
    }
}

/// From which side the picture was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Postero-anterior, `PA`.
    PosteroAnterior,
    /// Antero-posterior, `AP`.
    AnteroPosterior,
    /// Any other stated view: the code or text of the header, limited to 16 characters of a code string.
    Other(String),
    /// The header does not say.
    NotStated,
}

impl View {
    /// `PA`, `AP`, the stated text, or `not stated`.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::PosteroAnterior => "PA",
            Self::AnteroPosterior => "AP",
            Self::Other(text) => text,
            Self::NotStated => "not stated",
        }
    }
}

/// Which part of the body an image shows, as a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnatomicRegion {
    /// Code Meaning, else Code Value, at most 64 characters.
    pub meaning: String,
    /// Whether it is the chest or a part of it.
    pub is_chest: bool,
}

/// Whether a text that names parts of the body names the chest, as Body Part Examined does: `CHEST`, `THORAX`, `LUNG`, …
#[must_use]
pub fn names_chest(body_part: &str) -> bool {
    let body_part = body_part.to_ascii_uppercase();
    ["CHEST", "THORA", "LUNG", "PULMO"].iter().any(|word| body_part.contains(word))
}

impl ImageHeader {
    /// Reads the header of `object`. Nothing is required: what is missing or makes no sense is `None`.
    #[must_use]
    pub fn from_object(object: &DefaultDicomObject) -> Self {
        let meta_class = object.meta().media_storage_sop_class_uid.as_str();
        Self {
            sop_class_uid: text(object, tags::SOP_CLASS_UID).unwrap_or_else(|| trimmed(meta_class).to_owned()),
            transfer_syntax_uid: trimmed(object.meta().transfer_syntax()).to_owned(),
            modality: code(object, tags::MODALITY),
            image_type: texts(object, tags::IMAGE_TYPE),
            presentation_intent_type: code(object, tags::PRESENTATION_INTENT_TYPE),
            photometric_interpretation: code(object, tags::PHOTOMETRIC_INTERPRETATION),
            samples_per_pixel: integer(object, tags::SAMPLES_PER_PIXEL),
            rows: integer(object, tags::ROWS).filter(|&rows: &u32| rows > 0),
            columns: integer(object, tags::COLUMNS).filter(|&columns: &u32| columns > 0),
            bits_allocated: integer(object, tags::BITS_ALLOCATED),
            bits_stored: integer(object, tags::BITS_STORED),
            high_bit: integer(object, tags::HIGH_BIT),
            is_signed: integer(object, tags::PIXEL_REPRESENTATION) == Some(1_u16),
            number_of_frames: integer(object, tags::NUMBER_OF_FRAMES).filter(|&frames: &u32| frames > 0).unwrap_or(1),
            view: view(object),
            row_direction: texts(object, tags::PATIENT_ORIENTATION)
                .into_iter()
                .next()
                .filter(|direction| !direction.is_empty())
                .map(|direction| direction.to_ascii_uppercase()),
            patient_age: patient_age(object),
            body_part_examined: code(object, tags::BODY_PART_EXAMINED),
            anatomic_region: anatomic_region(object),
            window: numbers(object, tags::WINDOW_CENTER)
                .first()
                .copied()
                .zip(numbers(object, tags::WINDOW_WIDTH).first().copied().filter(|&width| width > 0.0)),
            rescale: rescale(object),
            has_voi_lut_sequence: first_item(object, tags::VOILUT_SEQUENCE).is_some(),
            has_modality_lut_sequence: first_item(object, tags::MODALITY_LUT_SEQUENCE).is_some(),
            presentation_lut_shape: code(object, tags::PRESENTATION_LUT_SHAPE),
            pixel_spacing_mm: spacing(object, tags::PIXEL_SPACING)
                .or_else(|| spacing(object, tags::IMAGER_PIXEL_SPACING)),
            burned_in_annotation: match code(object, tags::BURNED_IN_ANNOTATION).as_deref() {
                Some("YES") => Some(true),
                Some("NO") => Some(false),
                _ => None,
            },
        }
    }

    /// Why the object is not a computed or digital radiograph made for viewing; `None` when it is.
    #[must_use]
    pub fn why_not_a_radiograph(&self) -> Option<String> {
        if self.sop_class_uid == uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PROCESSING
            || self.presentation_intent_type.as_deref() == Some("FOR PROCESSING")
        {
            return Some("the image is FOR PROCESSING, expected FOR PRESENTATION".to_owned());
        }
        let is_radiograph = matches!(
            self.sop_class_uid.as_str(),
            uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE | uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION
        );
        (!is_radiograph).then(|| {
            format!("SOP class {} is not a computed or digital radiograph for presentation", self.sop_class_uid)
        })
    }

    /// Whether low values are shown bright: MONOCHROME1, or Presentation LUT Shape INVERSE.
    ///
    /// A DX image must say both consistently (PS3.3 C.8.11.3.1.2: MONOCHROME1 goes with INVERSE), so that either is
    /// enough and both together mean one inversion.
    #[must_use]
    pub fn is_inverted(&self) -> bool {
        self.photometric_interpretation.as_deref() == Some("MONOCHROME1")
            || self.presentation_lut_shape.as_deref() == Some("INVERSE")
    }
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0')
}

/// The bytes of an element whose VR was lost on the way: nodes that do not know an attribute pass it on as UN
/// (PS3.5 section 6.2.2), which says nothing of numbers or text.
fn unknown_bytes(element: &InMemElement) -> Option<&[u8]> {
    match element.value() {
        Value::Primitive(PrimitiveValue::U8(bytes)) if element.vr() == VR::UN => Some(bytes),
        _ => None,
    }
}

/// Trimmed text of an element, `None` when absent, empty, or not text.
pub(super) fn text(object: &InMemDicomObject, tag: Tag) -> Option<String> {
    let element = object.get(tag)?;
    let value = match unknown_bytes(element) {
        Some(bytes) => std::str::from_utf8(bytes).ok()?.into(),
        None => element.to_str().ok()?,
    };
    let value = trimmed(&value);
    (!value.is_empty()).then(|| value.to_owned())
}

fn code(object: &InMemDicomObject, tag: Tag) -> Option<String> {
    text(object, tag).map(|text| text.to_ascii_uppercase())
}

pub(super) fn texts(object: &InMemDicomObject, tag: Tag) -> Vec<String> {
    let Some(element) = object.get(tag) else { return Vec::new() };
    if let Some(bytes) = unknown_bytes(element) {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        return text.split('\\').map(|value| trimmed(value).to_owned()).collect();
    }
    match element.to_multi_str() {
        Ok(values) => values.iter().map(|value| trimmed(value).to_owned()).collect(),
        Err(_) => Vec::new(),
    }
}

pub(super) fn integer<T>(object: &InMemDicomObject, tag: Tag) -> Option<T>
where
    T: TryFrom<i64>,
{
    let element = object.get(tag)?;
    let value: i64 = match unknown_bytes(element) {
        // The integers that are read here are US or SS.
        Some(&[low, high]) => i64::from(u16::from_le_bytes([low, high])),
        Some(_) => return None,
        None => element.to_int().ok()?,
    };
    T::try_from(value).ok()
}

/// Finite numbers of an element; empty when any value is not a number.
pub(super) fn numbers(object: &InMemDicomObject, tag: Tag) -> Vec<f64> {
    let Some(element) = object.get(tag) else { return Vec::new() };
    let values = if unknown_bytes(element).is_some() {
        texts(object, tag).iter().map(|text| text.parse().unwrap_or(f64::NAN)).collect()
    } else {
        element.to_multi_float64().unwrap_or_default()
    };
    if values.iter().all(|value| value.is_finite()) { values } else { Vec::new() }
}

pub(super) fn first_item(object: &InMemDicomObject, tag: Tag) -> Option<&InMemDicomObject> {
    match object.get(tag)?.value() {
        Value::Sequence(sequence) => sequence.items().first(),
        _ => None,
    }
}

fn rescale(object: &InMemDicomObject) -> Option<(f64, f64)> {
    let slope = numbers(object, tags::RESCALE_SLOPE).first().copied();
    let intercept = numbers(object, tags::RESCALE_INTERCEPT).first().copied();
    if slope.is_none() && intercept.is_none() {
        return None;
    }
    // A slope of zero would make every pixel equal: it is written by mistake for "no rescaling".
    let slope = slope.filter(|&slope| slope != 0.0).unwrap_or(1.0);
    Some((slope, intercept.unwrap_or(0.0)))
}

fn spacing(object: &InMemDicomObject, tag: Tag) -> Option<(f64, f64)> {
    match numbers(object, tag).as_slice() {
        [row, column, ..] if *row > 0.0 && *column > 0.0 => Some((*row, *column)),
        _ => None,
    }
}

/// Chest, thorax and lung in SNOMED CT and in the retired SRT form (PS3.16 CID 4009 "DX Anatomy Imaged" and CID 4031
/// "Common Anatomic Region").
const CHEST_CODES: [&str; 5] = ["816094009", "51185008", "39607008", "T-D3000", "T-28000"];

pub(super) fn anatomic_region(object: &InMemDicomObject) -> Option<AnatomicRegion> {
    let item = first_item(object, tags::ANATOMIC_REGION_SEQUENCE)?;
    let value = text(item, tags::CODE_VALUE);
    let is_chest_code = value.as_deref().is_some_and(|value| CHEST_CODES.contains(&value));
    let meaning = text(item, tags::CODE_MEANING).or(value)?;
    Some(AnatomicRegion {
        is_chest: is_chest_code || names_chest(&meaning),
        meaning: meaning.chars().take(64).collect(),
    })
}

/// Codes of CID 4010 "DX View" in SNOMED CT and in the retired SRT form.
const POSTERO_ANTERIOR_CODES: [&str; 2] = ["399148005", "R-10214"];
const ANTERO_POSTERIOR_CODES: [&str; 2] = ["399348003", "R-10206"];

fn view(object: &InMemDicomObject) -> View {
    let position = code(object, tags::VIEW_POSITION).map(|position| view_of_position(&position));
    let coded = first_item(object, tags::VIEW_CODE_SEQUENCE).map(view_of_code);
    match (position, coded) {
        // A view that is not frontal wins: it is the one that must not be overlooked.
        (Some(View::Other(text)), _) | (_, Some(View::Other(text))) => View::Other(text),
        (Some(view), None | Some(View::NotStated)) | (None | Some(View::NotStated), Some(view)) => view,
        (Some(_), Some(coded)) => coded,
        (None, None) => View::NotStated,
    }
}

fn view_of_position(position: &str) -> View {
    let first_word = position.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| !word.is_empty());
    let has_other_word = ["LAT", "LATERAL", "LL", "RL", "OBL", "OBLIQUE", "LLD", "RLD", "DECUB", "DECUBITUS"]
        .iter()
        .any(|other| position.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == *other));
    match first_word {
        None => View::NotStated,
        Some("PA") if !has_other_word => View::PosteroAnterior,
        Some("AP") if !has_other_word => View::AnteroPosterior,
        Some(_) => View::Other(position.chars().take(16).collect()),
    }
}

fn view_of_code(item: &InMemDicomObject) -> View {
    let value = text(item, tags::CODE_VALUE).unwrap_or_default();
    let meaning = text(item, tags::CODE_MEANING).unwrap_or_default();
    if POSTERO_ANTERIOR_CODES.contains(&value.as_str()) {
        return View::PosteroAnterior;
    }
    if ANTERO_POSTERIOR_CODES.contains(&value.as_str()) {
        return View::AnteroPosterior;
    }
    let letters: String = meaning.to_ascii_lowercase().chars().filter(char::is_ascii_alphabetic).collect();
    match letters.as_str() {
        "" if value.is_empty() => View::NotStated,
        "posteroanterior" | "posteroanteriorprojection" | "pa" => View::PosteroAnterior,
        "anteroposterior" | "anteroposteriorprojection" | "ap" => View::AnteroPosterior,
        "" => View::Other(value.chars().take(16).collect()),
        _ => View::Other(meaning.chars().take(64).collect()),
    }
}

fn patient_age(object: &InMemDicomObject) -> Option<PatientAge> {
    text(object, tags::PATIENT_AGE)
        .and_then(|age| years_of_age_string(&age))
        .or_else(|| {
            let birth = date(&text(object, tags::PATIENT_BIRTH_DATE)?)?;
            let taken = [tags::STUDY_DATE, tags::ACQUISITION_DATE, tags::CONTENT_DATE]
                .into_iter()
                .find_map(|tag| date(&text(object, tag)?))?;
            years_between(birth, taken)
        })
        .map(PatientAge::from_years)
}

/// An AS value (PS3.5 table 6.2-1) such as `045Y`; months, weeks and days count as the years that are complete.
fn years_of_age_string(age: &str) -> Option<u32> {
    let unit = age.chars().last()?;
    let count: u32 = age.strip_suffix(unit)?.trim().parse().ok()?;
    match unit.to_ascii_uppercase() {
        'Y' => (count < 150).then_some(count),
        'M' => Some(count / 12),
        'W' => Some(count * 7 / 365),
        'D' => Some(count / 365),
        _ => None,
    }
}

/// Year, month, day of a DA value, also in the retired form with dots.
fn date(text: &str) -> Option<(u32, u32, u32)> {
    let digits: String = text.chars().filter(|&c| c != '.').collect();
    if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |range: std::ops::Range<usize>| digits.get(range)?.parse::<u32>().ok();
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    (year > 1800 && (1..=12).contains(&month) && (1..=31).contains(&day)).then_some((year, month, day))
}

fn years_between(birth: (u32, u32, u32), taken: (u32, u32, u32)) -> Option<u32> {
    let had_no_birthday = (taken.1, taken.2) < (birth.1, birth.2);
    let years = taken.0.checked_sub(birth.0)?.checked_sub(u32::from(had_no_birthday))?;
    (years < 150).then_some(years)
}

#[cfg(test)]
mod tests {
    use dicom_core::value::DataSetSequence;
    use rstest::rstest;

    use super::*;
    use crate::imaging::testing::{radiograph, text as text_element, with_meta};

    fn header_with(elements: Vec<InMemElement>, without: &[Tag]) -> ImageHeader {
        let mut object = radiograph(2, 3, &[0; 6]);
        for tag in without {
            object.remove_element(*tag);
        }
        for element in elements {
            object.put(element);
        }
        ImageHeader::from_object(&with_meta(object, uids::EXPLICIT_VR_LITTLE_ENDIAN))
    }

    #[test]
    fn plain_facts_are_read() {
        let header = header_with(
            vec![
                text_element(tags::WINDOW_CENTER, VR::DS, "2048\\100"),
                text_element(tags::WINDOW_WIDTH, VR::DS, "4096\\50"),
                text_element(tags::PIXEL_SPACING, VR::DS, "0\\0"),
                text_element(tags::IMAGER_PIXEL_SPACING, VR::DS, "0.143\\0.15"),
                text_element(tags::PATIENT_ORIENTATION, VR::CS, "L\\F"),
                text_element(tags::BURNED_IN_ANNOTATION, VR::CS, "NO"),
                text_element(tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY"),
            ],
            &[],
        );
        assert_eq!(header.sop_class_uid, uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION);
        assert_eq!((header.rows, header.columns, header.number_of_frames), (Some(2), Some(3), 1));
        assert_eq!(header.window, Some((2048.0, 4096.0)));
        assert_eq!(header.pixel_spacing_mm, Some((0.143, 0.15)));
        assert_eq!(header.row_direction.as_deref(), Some("L"));
        assert_eq!(header.burned_in_annotation, Some(false));
        assert_eq!(header.image_type, ["DERIVED", "PRIMARY"]);
        assert_eq!(header.rescale, None);
        assert!(!header.is_inverted() && !header.is_signed);
    }

    #[test]
    fn impossible_values_count_as_absent() {
        let header = header_with(
            vec![
                text_element(tags::WINDOW_CENTER, VR::DS, "abc"),
                text_element(tags::WINDOW_WIDTH, VR::DS, "0"),
                text_element(tags::RESCALE_SLOPE, VR::DS, "0"),
                text_element(tags::RESCALE_INTERCEPT, VR::DS, "-5"),
                text_element(tags::NUMBER_OF_FRAMES, VR::IS, "0"),
                crate::imaging::testing::number(tags::ROWS, 0),
                text_element(tags::PATIENT_AGE, VR::AS, "old"),
            ],
            &[],
        );
        assert_eq!(header.window, None);
        assert_eq!(header.rescale, Some((1.0, -5.0)));
        assert_eq!((header.rows, header.number_of_frames), (None, 1));
        assert_eq!(header.patient_age, None);
    }

    #[test]
    fn attributes_passed_on_as_unknown_are_read() {
        let unknown = |tag, bytes: &[u8]| InMemElement::new(tag, VR::UN, PrimitiveValue::U8(bytes.into()));
        let header = header_with(
            vec![
                unknown(tags::RESCALE_SLOPE, b"2 "),
                unknown(tags::RESCALE_INTERCEPT, b"-1"),
                unknown(tags::PIXEL_SPACING, b"0.2\\0.3 "),
                unknown(tags::BITS_STORED, &[12, 0]),
                unknown(tags::VIEW_POSITION, b"LL"),
                unknown(tags::WINDOW_CENTER, &[0xFF, 0xFE]),
            ],
            &[],
        );
        assert_eq!(header.rescale, Some((2.0, -1.0)));
        assert_eq!(header.pixel_spacing_mm, Some((0.2, 0.3)));
        assert_eq!((header.bits_stored, header.window), (Some(12), None));
        assert_eq!(header.view, View::Other("LL".to_owned()));
    }

    #[rstest]
    #[case("PA", View::PosteroAnterior)]
    #[case("AP", View::AnteroPosterior)]
    #[case("AP SUPINE", View::AnteroPosterior)]
    #[case("LL", View::Other("LL".to_owned()))]
    #[case("RL", View::Other("RL".to_owned()))]
    #[case("LATERAL", View::Other("LATERAL".to_owned()))]
    #[case("PA LLD", View::Other("PA LLD".to_owned()))]
    #[case("", View::NotStated)]
    fn view_positions(#[case] position: &str, #[case] expected: View) {
        let header = header_with(vec![text_element(tags::VIEW_POSITION, VR::CS, position)], &[]);
        assert_eq!(header.view, expected);
    }

    #[rstest]
    #[case("PA", "399348003", "antero-posterior", View::AnteroPosterior)]
    #[case("", "R-10214", "postero-anterior", View::PosteroAnterior)]
    #[case("", "X", "Postero-anterior", View::PosteroAnterior)]
    #[case("PA", "399173006", "left lateral", View::Other("left lateral".to_owned()))]
    #[case("LL", "399348003", "antero-posterior", View::Other("LL".to_owned()))]
    fn view_codes(#[case] position: &str, #[case] value: &str, #[case] meaning: &str, #[case] expected: View) {
        let item = InMemDicomObject::from_element_iter([
            text_element(tags::CODE_VALUE, VR::SH, value),
            text_element(tags::CODE_MEANING, VR::LO, meaning),
        ]);
        let sequence = InMemElement::new(tags::VIEW_CODE_SEQUENCE, VR::SQ, DataSetSequence::from(vec![item]));
        let header = header_with(vec![text_element(tags::VIEW_POSITION, VR::CS, position), sequence], &[]);
        assert_eq!(header.view, expected);
    }

    #[rstest]
    #[case("51185008", "Chest", Some(true))]
    #[case("816094009", "", Some(true))]
    #[case("T-D3000", "Brust", Some(true))]
    #[case("", "Thoracic structure", Some(true))]
    #[case("818981001", "Abdomen", Some(false))]
    #[case("818981001", "", Some(false))]
    #[case("", "", None)]
    fn anatomic_regions(#[case] value: &str, #[case] meaning: &str, #[case] is_chest: Option<bool>) {
        let item = InMemDicomObject::from_element_iter([
            text_element(tags::CODE_VALUE, VR::SH, value),
            text_element(tags::CODE_MEANING, VR::LO, meaning),
        ]);
        let sequence = InMemElement::new(tags::ANATOMIC_REGION_SEQUENCE, VR::SQ, DataSetSequence::from(vec![item]));
        let header = header_with(vec![sequence], &[]);
        assert_eq!(header.anatomic_region.map(|region| region.is_chest), is_chest);
        assert_eq!(header_with(Vec::new(), &[]).anatomic_region, None);
    }

    #[rstest]
    #[case("018Y", Some(18))]
    #[case("17Y", Some(17))]
    #[case("216M", Some(18))]
    #[case("003W", Some(0))]
    #[case("999Y", None)]
    #[case("Y", None)]
    #[case("", None)]
    fn ages(#[case] age: &str, #[case] years: Option<u32>) {
        assert_eq!(years_of_age_string(age).filter(|_| !age.is_empty()), years);
    }

    #[rstest]
    #[case("20080102", true)]
    #[case("20080103", false)]
    #[case("2008.01.01", true)]
    fn age_comes_from_the_birth_date_when_it_is_not_stated(#[case] birth: &str, #[case] is_adult: bool) {
        // The study was on 2026-01-02.
        let header = header_with(vec![text_element(tags::PATIENT_BIRTH_DATE, VR::DA, birth)], &[tags::PATIENT_AGE]);
        let age = header.patient_age.unwrap();
        assert_eq!(age.is_at_least(18), is_adult);
        assert_eq!(format!("{age:?}"), "PatientAge(..)", "an exact age must not reach a log");
    }
}
