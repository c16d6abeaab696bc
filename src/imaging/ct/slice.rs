//! One CT image: what its header says of its place, and its pixels in Hounsfield units.

use std::ops::RangeInclusive;

use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, InMemDicomObject};

use super::super::{
    DecodeLimits, ImageHeader, ImagingError,
    frame::decode_frame,
    grey::stored_padding_range,
    header::{first_item, integer, numbers, text, texts},
};

/// What the pixels outside of the reconstruction (Pixel Padding) count as: air.
pub const PADDING_HU: i16 = -1024;

/// Most rows and columns: what a CT image writes them as (US) can say, and what the segmentation counts with.
const MAXIMUM_SIDE: u32 = 65_535;
/// Distance between neighbouring pixels, in millimetres: wider than what scanners reconstruct, from a micro CT's to a
/// survey's. Anything else is a mistake, and areas and discs in pixels would follow it.
const PIXEL_SPACING_MM: RangeInclusive<f64> = 0.05..=5.0;

/// Facts of one CT image that decide whether and where it belongs into a volume. Absent and impossible values are `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceHeader {
    /// SOP Class UID (0008,0016).
    pub sop_class_uid: String,
    /// Series Instance UID (0020,000E).
    pub series_instance_uid: String,
    /// Acquisition Number (0020,0012).
    pub acquisition_number: Option<i32>,
    /// Frame of Reference UID (0020,0052).
    pub frame_of_reference_uid: Option<String>,
    /// Image Type (0008,0008).
    pub image_type: Vec<String>,
    /// Number of Frames (0028,0008), 1 when absent.
    pub number_of_frames: u32,
    /// Rows (0028,0010) and Columns (0028,0011).
    pub matrix: Option<[u32; 2]>,
    /// Pixel Spacing (0028,0030): between rows, between columns, in millimetres.
    pub pixel_spacing_mm: Option<[f64; 2]>,
    /// Image Orientation (Patient) (0020,0037): direction of the rows, direction of the columns.
    pub orientation: Option<[[f64; 3]; 2]>,
    /// Image Position (Patient) (0020,0032), in millimetres.
    pub position_mm: Option<[f64; 3]>,
    /// Gantry/Detector Tilt (0018,1120) in degrees.
    pub gantry_tilt_degrees: Option<f64>,
    /// Slice Thickness (0018,0050) in millimetres.
    pub slice_thickness_mm: Option<f64>,
    /// Convolution Kernel (0018,1210), ASCII, at most 16 characters of it.
    pub convolution_kernel: Option<String>,
    /// Rescale Type (0028,1054), such as `HU`.
    pub rescale_type: Option<String>,
}

impl SliceHeader {
    /// Reads the header of `object`. Nothing is required.
    #[must_use]
    pub fn from_object(object: &DefaultDicomObject) -> Self {
        let header = ImageHeader::from_object(object);
        let triple = |values: &[f64]| <[f64; 3]>::try_from(values).ok();
        let orientation = numbers(object, tags::IMAGE_ORIENTATION_PATIENT);
        Self {
            sop_class_uid: header.sop_class_uid,
            series_instance_uid: text(object, tags::SERIES_INSTANCE_UID).unwrap_or_default(),
            acquisition_number: integer(object, tags::ACQUISITION_NUMBER),
            frame_of_reference_uid: text(object, tags::FRAME_OF_REFERENCE_UID),
            image_type: texts(object, tags::IMAGE_TYPE).iter().map(|value| value.to_ascii_uppercase()).collect(),
            number_of_frames: header.number_of_frames,
            matrix: header
                .rows
                .zip(header.columns)
                .map(|(rows, columns)| [rows, columns])
                .filter(|matrix| matrix.iter().all(|side| *side <= MAXIMUM_SIDE)),
            // Imager Pixel Spacing is no distance within the patient.
            pixel_spacing_mm: match numbers(object, tags::PIXEL_SPACING).as_slice() {
                &[row, column] if [row, column].iter().all(|mm| PIXEL_SPACING_MM.contains(mm)) => Some([row, column]),
                _ => None,
            },
            orientation: match orientation.len() {
                6 => triple(&orientation[..3]).zip(triple(&orientation[3..])).map(|(row, column)| [row, column]),
                _ => None,
            },
            position_mm: triple(&numbers(object, tags::IMAGE_POSITION_PATIENT)),
            gantry_tilt_degrees: numbers(object, tags::GANTRY_DETECTOR_TILT).first().copied(),
            slice_thickness_mm: numbers(object, tags::SLICE_THICKNESS).first().copied().filter(|&mm| mm > 0.0),
            convolution_kernel: text(object, tags::CONVOLUTION_KERNEL).map(|kernel| short_ascii(&kernel)),
            rescale_type: text(object, tags::RESCALE_TYPE).map(|kind| short_ascii(&kind)),
        }
    }

    /// Whether this is a CT image of the classic kind, a frame each.
    #[must_use]
    pub fn is_ct_image(&self) -> bool {
        self.sop_class_uid == uids::CT_IMAGE_STORAGE
    }
}

fn short_ascii(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(16).collect()
}

/// The pixels of one CT image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HuSlice {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Hounsfield units as stored, row after row; [`PADDING_HU`] where there is no picture.
    pub hu: Vec<i16>,
}

/// Decodes a CT image to Hounsfield units: stored values times Rescale Slope (0028,1053) plus Rescale Intercept
/// (0028,1052), each image with its own. Nothing is windowed or scaled.
///
/// # Errors
/// [`ImagingError`] names what is missing, of another unit, unsupported, too large, cut short or refused by the codec.
pub fn decode_hu(object: &DefaultDicomObject, limits: DecodeLimits) -> Result<HuSlice, ImagingError> {
    let header = ImageHeader::from_object(object);
    let unsupported = |what: String, expected| Err(ImagingError::UnsupportedImage { what, expected });
    if header.number_of_frames != 1 {
        return unsupported(format!("an image of {} frames", header.number_of_frames), "single-frame CT images are");
    }
    if header.photometric_interpretation.as_deref() != Some("MONOCHROME2") {
        let found = header.photometric_interpretation.unwrap_or_else(|| "no photometric interpretation".to_owned());
        return unsupported(format!("{found} in a CT image"), "MONOCHROME2 is");
    }
    if first_item(object, tags::MODALITY_LUT_SEQUENCE).is_some() {
        return unsupported("a Modality LUT in a CT image".to_owned(), "Rescale Slope and Intercept are");
    }
    if let Some(unit) = text(object, tags::RESCALE_TYPE)
        && !unit.eq_ignore_ascii_case("HU")
    {
        return unsupported(format!("Rescale Type (0028,1054) {}", short_ascii(&unit)), "Hounsfield units (HU) are");
    }
    let slope = rescale(object, tags::RESCALE_SLOPE, "Rescale Slope", "(0028,1053)")?;
    let intercept = rescale(object, tags::RESCALE_INTERCEPT, "Rescale Intercept", "(0028,1052)")?;
    if slope == 0.0 {
        return Err(ImagingError::BadAttribute {
            name: "Rescale Slope",
            tag: "(0028,1053)",
            value: "0".to_owned(),
            expected: "another number: every pixel would be the same".to_owned(),
        });
    }
    let padding = stored_padding_range(object, &header)?;
    let frame = decode_frame(object, 0, limits)?;
    let hu_of = |stored: i32| {
        if padding.is_some_and(|(low, high)| (low..=high).contains(&stored)) {
            return PADDING_HU;
        }
        // Saturates at the limits of i16, far beyond what tissue has.
        (f64::from(stored) * slope + intercept).round() as i16
    };
    let hu = frame.values.into_iter().map(hu_of).collect();
    Ok(HuSlice { rows: frame.rows, columns: frame.columns, hu })
}

fn rescale(
    object: &InMemDicomObject,
    tag: dicom_core::Tag,
    name: &'static str,
    written: &'static str,
) -> Result<f64, ImagingError> {
    numbers(object, tag).first().copied().ok_or(ImagingError::MissingAttribute { name, tag: written })
}

impl HuSlice {
    /// Turns the picture so that columns run to the patient's left and rows to the back.
    pub fn turn(&mut self, columns_reversed: bool, rows_reversed: bool) {
        if columns_reversed {
            self.hu.chunks_exact_mut(self.columns.max(1)).for_each(<[i16]>::reverse);
        }
        if rows_reversed {
            for row in 0..self.rows / 2 {
                let (above, below) = self.hu.split_at_mut((self.rows - 1 - row) * self.columns);
                above[row * self.columns..(row + 1) * self.columns].swap_with_slice(&mut below[..self.columns]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dicom_core::{VR, dicom_value};
    use dicom_object::mem::InMemElement;

    use super::*;
    use crate::imaging::testing::{number, radiograph, set_bits_stored, text as element, with_meta};

    /// A CT image of one row of 16-bit words.
    fn image(words: &[u16]) -> InMemDicomObject {
        let mut object = radiograph(1, words.len() as u16, words);
        object.put(element(tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE));
        object.put(element(tags::RESCALE_SLOPE, VR::DS, "1"));
        object.put(element(tags::RESCALE_INTERCEPT, VR::DS, "-1024"));
        object
    }

    fn decode(object: InMemDicomObject) -> Result<Vec<i16>, ImagingError> {
        let object = with_meta(object, uids::EXPLICIT_VR_LITTLE_ENDIAN);
        decode_hu(&object, DecodeLimits::default()).map(|slice| slice.hu)
    }

    #[test]
    fn stored_values_become_hounsfield_units_by_each_images_own_rescaling() {
        assert_eq!(decode(image(&[0, 24, 1024, 4095])).unwrap(), [-1024, -1000, 0, 3071]);
        let mut other = image(&[0, 24, 1024, 4095]);
        other.put(element(tags::RESCALE_SLOPE, VR::DS, "0.5"));
        other.put(element(tags::RESCALE_INTERCEPT, VR::DS, "-1000.25"));
        assert_eq!(decode(other).unwrap(), [-1000, -988, -488, 1047]);
        let mut signed = image(&[0xFC18, 0x0032]);
        set_bits_stored(&mut signed, 16, true);
        signed.put(element(tags::RESCALE_INTERCEPT, VR::DS, "0"));
        signed.put(element(tags::WINDOW_CENTER, VR::DS, "40"));
        signed.put(element(tags::WINDOW_WIDTH, VR::DS, "400"));
        assert_eq!(decode(signed).unwrap(), [-1000, 50], "a window changes nothing");
        let mut far = image(&[65_535]);
        far.put(element(tags::RESCALE_SLOPE, VR::DS, "10"));
        assert_eq!(decode(far).unwrap(), [i16::MAX], "what no tissue has saturates");
    }

    #[test]
    fn padding_is_air() {
        let mut padded = image(&[63_536, 1024, 100]);
        set_bits_stored(&mut padded, 16, true);
        padded.put(number(tags::PIXEL_PADDING_VALUE, 63_536));
        assert_eq!(decode(padded.clone()).unwrap(), [PADDING_HU, 0, -924]);
        padded.put(number(tags::PIXEL_PADDING_RANGE_LIMIT, 100));
        assert_eq!(decode(padded).unwrap(), [PADDING_HU, 0, PADDING_HU]);
    }

    #[test]
    fn what_is_not_in_hounsfield_units_is_refused() {
        let refused = |change: &dyn Fn(&mut InMemDicomObject)| {
            let mut object = image(&[1, 2]);
            change(&mut object);
            decode(object).unwrap_err().to_string()
        };
        let words = refused(&|object| {
            object.remove_element(tags::RESCALE_INTERCEPT);
        });
        assert!(words.contains("Rescale Intercept (0028,1052) is missing"), "{words}");
        let words = refused(&|object| {
            object.put(element(tags::RESCALE_SLOPE, VR::DS, "0"));
        });
        assert!(words.contains("Rescale Slope (0028,1053) is 0"), "{words}");
        let words = refused(&|object| {
            object.put(element(tags::RESCALE_TYPE, VR::LO, "US"));
        });
        assert!(words.contains("Rescale Type (0028,1054) US"), "{words}");
        let words = refused(&|object| {
            object.put(element(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1"));
        });
        assert!(words.contains("MONOCHROME1"), "{words}");
        let words = refused(&|object| {
            object.put(element(tags::NUMBER_OF_FRAMES, VR::IS, "2"));
        });
        assert!(words.contains("2 frames"), "{words}");
    }

    #[test]
    fn sizes_that_no_scanner_writes_count_as_absent() {
        let header = |element: InMemElement| {
            let mut object = image(&[1, 2]);
            object.put(self::element(tags::PIXEL_SPACING, VR::DS, "0.8\\0.7"));
            object.put(element);
            SliceHeader::from_object(&with_meta(object, uids::EXPLICIT_VR_LITTLE_ENDIAN))
        };
        let side = |value: u32| InMemElement::new(tags::COLUMNS, VR::UL, dicom_value!(U32, [value]));
        assert_eq!(header(side(65_535)).matrix, Some([1, 65_535]));
        assert_eq!(header(side(70_000)).matrix, None);
        for spacing in ["1e-300\\0.7", "0.7\\0.04", "0.7\\5.1", "-1\\0.7", "0\\0"] {
            assert_eq!(header(element(tags::PIXEL_SPACING, VR::DS, spacing)).pixel_spacing_mm, None, "{spacing}");
        }
        assert_eq!(header(element(tags::PIXEL_SPACING, VR::DS, "0.05\\5")).pixel_spacing_mm, Some([0.05, 5.0]));
    }

    #[test]
    fn headers_are_read_and_pictures_turned() {
        let mut object = image(&[1, 2]);
        object.put(element(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "-1\\0\\0\\0\\-1\\0"));
        object.put(element(tags::IMAGE_POSITION_PATIENT, VR::DS, "180.5\\170\\-12.25"));
        object.put(element(tags::PIXEL_SPACING, VR::DS, "0.8\\0.7"));
        object.put(element(tags::CONVOLUTION_KERNEL, VR::SH, "I30f\\3"));
        let header = SliceHeader::from_object(&with_meta(object, uids::EXPLICIT_VR_LITTLE_ENDIAN));
        assert!(header.is_ct_image());
        assert_eq!(header.orientation, Some([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]));
        assert_eq!(header.position_mm, Some([180.5, 170.0, -12.25]));
        assert_eq!(header.pixel_spacing_mm, Some([0.8, 0.7]));
        assert_eq!(header.matrix, Some([1, 2]));
        let slice = HuSlice { rows: 3, columns: 2, hu: vec![1, 2, 3, 4, 5, 6] };
        let turned = |columns, rows| {
            let mut slice = slice.clone();
            slice.turn(columns, rows);
            slice.hu
        };
        assert_eq!(turned(true, false), [2, 1, 4, 3, 6, 5]);
        assert_eq!(turned(false, true), [5, 6, 3, 4, 1, 2]);
        assert_eq!(turned(true, true), [6, 5, 4, 3, 2, 1]);
    }
}
