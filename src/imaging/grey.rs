//! Stored values to grey values: Modality LUT, VOI, polarity, luminance of colour.

use dicom_dictionary_std::tags;
use dicom_object::DefaultDicomObject;
use image::GrayImage;

use super::{
    ImagingError, Plane,
    canvas::percentile_scale,
    color::{Color, Palette},
    frame::{PixelLayout, stored_bits},
    guard::read_object,
    header::{ImageHeader, integer},
    lut::{ModalityTransform, Voi},
};

/// Percentiles that [`display_image`] shows from black to white when the object has no window.
const DISPLAY_PERCENTILES: (f64, f64) = (0.5, 99.5);

/// How much memory decoding may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the decoded picture as stored values, checked before a decoder runs.
    pub max_decoded_bytes: u64,
}

impl Default for DecodeLimits {
    /// 512 MiB.
    fn default() -> Self {
        Self { max_decoded_bytes: 512 << 20 }
    }
}

/// A decoded radiograph in modality units.
#[derive(Debug, Clone, PartialEq)]
pub struct GreyImage {
    /// Values after the Modality LUT; where [`GreyImage::padding`] is set, of no meaning.
    pub values: Plane,
    /// Pixels that are Pixel Padding (0028,0120); empty when there are none.
    pub padding: Vec<bool>,
    /// What the object says about showing them.
    pub voi: Voi,
    /// Low values are shown bright. Applies after VOI.
    pub inverted: bool,
}

impl GreyImage {
    /// The values as they are meant to be seen: VOI if wanted and there (0 to 1, otherwise modality units), then the
    /// polarity, so that larger is always brighter (for radiographs: denser). Padding becomes the darkest value.
    #[must_use]
    pub fn presentation(&self, use_voi: bool) -> Plane {
        let mut plane = self.values.clone();
        let has_voi = use_voi && self.voi != Voi::None;
        if has_voi {
            for value in &mut plane.values {
                *value = self.voi.apply(*value).unwrap_or(*value);
            }
        }
        if self.inverted {
            for value in &mut plane.values {
                *value = if has_voi { 1.0 - *value } else { -*value };
            }
        }
        if !self.padding.is_empty() {
            let seen = plane.values.iter().zip(&self.padding).filter(|(_, padding)| !**padding);
            let darkest = seen.map(|(value, _)| *value).fold(f32::INFINITY, f32::min);
            let darkest = if darkest.is_finite() { darkest } else { 0.0 };
            for (value, padding) in plane.values.iter_mut().zip(&self.padding) {
                if *padding {
                    *value = darkest;
                }
            }
        }
        plane
    }

    /// The picture for people, 8 bits: the object's window when it has one, otherwise percentiles.
    #[must_use]
    pub fn display(&self) -> GrayImage {
        let shown = self.presentation(true);
        let scaled = if self.voi == Voi::None {
            percentile_scale(&shown, DISPLAY_PERCENTILES.0, DISPLAY_PERCENTILES.1)
        } else {
            shown
        };
        let bytes = scaled.values.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
        GrayImage::from_raw(scaled.columns as u32, scaled.rows as u32, bytes).unwrap_or_default()
    }
}

/// Decodes a whole Part 10 file for display, 8 bits, full size, larger is brighter.
///
/// # Errors
/// As [`read_object`] and [`decode_grey`].
pub fn display_image(part10: &[u8], limits: DecodeLimits) -> Result<GrayImage, ImagingError> {
    display_object(&read_object(part10)?, limits)
}

/// As [`display_image`], for an object that is already parsed.
///
/// # Errors
/// As [`decode_grey`].
pub fn display_object(object: &DefaultDicomObject, limits: DecodeLimits) -> Result<GrayImage, ImagingError> {
    Ok(decode_grey(object, limits)?.display())
}

/// Decodes the single frame of `object` into modality units. A colour picture becomes its luminance, which has no
/// Modality LUT (PS3.3 C.11.1), window or padding.
///
/// # Errors
/// [`ImagingError`] names what is missing, unsupported, too large, cut short or refused by the codec. Codecs that
/// panic are caught.
pub fn decode_grey(object: &DefaultDicomObject, limits: DecodeLimits) -> Result<GreyImage, ImagingError> {
    let header = ImageHeader::from_object(object);
    if header.number_of_frames != 1 {
        return Err(ImagingError::UnsupportedImage {
            what: format!("an image of {} frames", header.number_of_frames),
            expected: "single-frame images are",
        });
    }
    let layout = PixelLayout::of(object, &header)?;
    let stored = stored_bits(object, &header, &layout, 0, limits)?;
    let plane = |values| Plane { rows: layout.rows as usize, columns: layout.columns as usize, values };
    let luminance = match layout.color {
        Color::Grey => None,
        Color::Palette => Some(Palette::of(object, layout.bits_stored)?.luminance(&stored)),
        Color::Rgb | Color::Ybr | Color::YbrFull422 => Some(Color::luminance(&stored)),
    };
    if let Some(luminance) = luminance {
        return Ok(GreyImage { values: plane(luminance), padding: Vec::new(), voi: Voi::None, inverted: false });
    }

    let modality = ModalityTransform::of(object, &header);
    let voi = Voi::of(object, &header, &modality);
    let by_stored: Vec<f32> =
        (0..1_u32 << layout.bits_stored).map(|bits| modality.apply(layout.interpret(bits))).collect();
    let values = stored.iter().map(|&bits| by_stored.get(bits as usize).copied().unwrap_or(0.0)).collect();
    let padding = match padding_range(object, &layout) {
        None => Vec::new(),
        Some((low, high)) => {
            let is_padding = |&bits: &u32| (low..=high).contains(&layout.interpret(bits));
            let padding: Vec<bool> = stored.iter().map(is_padding).collect();
            if padding.contains(&true) { padding } else { Vec::new() }
        }
    };
    Ok(GreyImage { values: plane(values), padding, voi, inverted: header.is_inverted() })
}

/// The stored values that are Pixel Padding, of an image that can be decoded.
pub(super) fn stored_padding_range(
    object: &DefaultDicomObject,
    header: &ImageHeader,
) -> Result<Option<(i32, i32)>, ImagingError> {
    Ok(padding_range(object, &PixelLayout::of(object, header)?))
}

/// Pixel Padding Value (0028,0120) to Pixel Padding Range Limit (0028,0121), as stored values.
fn padding_range(object: &DefaultDicomObject, layout: &PixelLayout) -> Option<(i32, i32)> {
    let mask = (1_u32 << layout.bits_stored) - 1;
    let read = |tag| integer::<i32>(object, tag).map(|value| layout.interpret(value as u32 & mask));
    let value = read(tags::PIXEL_PADDING_VALUE)?;
    let limit = read(tags::PIXEL_PADDING_RANGE_LIMIT).unwrap_or(value);
    Some((value.min(limit), value.max(limit)))
}

#[cfg(test)]
mod tests {
    use dicom_core::{Tag, VR, dicom_value, value::DataSetSequence};
    use dicom_dictionary_std::uids;
    use dicom_object::{InMemDicomObject, mem::InMemElement};

    use super::*;
    use crate::imaging::testing::{number, part10, radiograph, set_bits_stored, set_fragment, text, with_meta};
    use crate::types::ReasonCode;

    fn decode(object: InMemDicomObject) -> Result<GreyImage, ImagingError> {
        decode_as(object, uids::EXPLICIT_VR_LITTLE_ENDIAN)
    }

    fn decode_as(object: InMemDicomObject, uid: &str) -> Result<GreyImage, ImagingError> {
        decode_grey(&with_meta(object, uid), DecodeLimits::default())
    }

    fn assert_close(values: &[f32], expected: &[f32]) {
        assert_eq!(values.len(), expected.len());
        for (value, expected) in values.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{values:?}");
        }
    }

    fn put_window(object: &mut InMemDicomObject, center: &str, width: &str, function: &str) {
        object.put(text(tags::WINDOW_CENTER, VR::DS, center));
        object.put(text(tags::WINDOW_WIDTH, VR::DS, width));
        object.put(text(tags::VOILUT_FUNCTION, VR::CS, function));
    }

    fn put_table(object: &mut InMemDicomObject, sequence: Tag, descriptor: [u16; 3], data: &[u16]) {
        let item = InMemDicomObject::from_element_iter([
            InMemElement::new(tags::LUT_DESCRIPTOR, VR::US, dicom_core::PrimitiveValue::U16(descriptor[..].into())),
            InMemElement::new(tags::LUT_DATA, VR::OW, dicom_core::PrimitiveValue::U16(data.into())),
        ]);
        object.put(InMemElement::new(sequence, VR::SQ, DataSetSequence::from(vec![item])));
    }

    #[test]
    fn overlay_bits_above_the_stored_ones_are_masked() {
        let mut object = radiograph(1, 4, &[0xF001, 0x1FFF, 0x0800, 0xA000]);
        set_bits_stored(&mut object, 12, false);
        assert_eq!(decode(object).unwrap().values.values, [1.0, 4095.0, 2048.0, 0.0]);
    }

    #[test]
    fn signed_12_bit_values_are_extended_and_rescaled() {
        // -1000 in 12 bits is 0xC18, here without sign extension and with it.
        let mut object = radiograph(1, 4, &[0x0C18, 0xFC18, 0x07FF, 0x0800]);
        set_bits_stored(&mut object, 12, true);
        assert_eq!(decode(object.clone()).unwrap().values.values, [-1000.0, -1000.0, 2047.0, -2048.0]);
        object.put(text(tags::RESCALE_SLOPE, VR::DS, "2"));
        object.put(text(tags::RESCALE_INTERCEPT, VR::DS, "-24.5"));
        assert_eq!(decode(object).unwrap().values.values, [-2024.5, -2024.5, 4069.5, -4120.5]);
    }

    #[test]
    fn a_high_bit_above_the_stored_bits_shifts_native_data() {
        let mut object = radiograph(1, 2, &[0xABC5, 0x0010]);
        object.put(number(tags::BITS_STORED, 12));
        object.put(number(tags::HIGH_BIT, 15));
        assert_eq!(decode(object).unwrap().values.values, [f32::from(0xABC_u16), 1.0]);
    }

    #[test]
    fn eight_bit_images_of_odd_size_ignore_the_padding_byte() {
        let mut object = radiograph(1, 3, &[]);
        object.put(number(tags::BITS_ALLOCATED, 8));
        set_bits_stored(&mut object, 8, false);
        object.put(InMemElement::new(tags::PIXEL_DATA, VR::OB, dicom_value!(U8, [7, 8, 9, 0])));
        assert_eq!(decode(object).unwrap().values.values, [7.0, 8.0, 9.0]);
    }

    #[test]
    fn monochrome1_is_inverted_after_the_window() {
        let mut object = radiograph(1, 3, &[0, 50, 100]);
        object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1"));
        put_window(&mut object, "100", "200", "LINEAR_EXACT");
        let image = decode(object.clone()).unwrap();
        assert!(image.inverted);
        assert_close(&image.presentation(true).values, &[1.0, 0.75, 0.5]);
        assert_close(&image.presentation(false).values, &[0.0, -50.0, -100.0]);
        // MONOCHROME1 and INVERSE say the same thing twice, as the DX IOD prescribes.
        object.put(text(tags::PRESENTATION_LUT_SHAPE, VR::CS, "INVERSE"));
        assert_close(&decode(object.clone()).unwrap().presentation(true).values, &[1.0, 0.75, 0.5]);
        object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"));
        object.put(text(tags::PRESENTATION_LUT_SHAPE, VR::CS, "IDENTITY"));
        assert_close(&decode(object).unwrap().presentation(true).values, &[0.0, 0.25, 0.5]);
    }

    /// The examples of PS3.3 C.11.2.1.2.1 and the formulas of C.11.2.1.3.
    #[test]
    fn window_functions_follow_the_standard() {
        let shown = |words: &[u16], center: &str, width: &str, function: &str| {
            let mut object = radiograph(1, words.len() as u16, words);
            put_window(&mut object, center, width, function);
            decode(object).unwrap().presentation(true).values
        };
        // c=2048, w=4096: 0 at 0, 1 at 4095; (x - 2047.5) / 4095 + 0.5 between.
        assert_close(&shown(&[0, 1024, 4095, 5000], "2048", "4096", "LINEAR"), &[0.0, 1024.0 / 4095.0, 1.0, 1.0]);
        // c=2048, w=1: a threshold; x <= 2047.5 is black.
        assert_close(&shown(&[2047, 2048], "2048", "1", "LINEAR"), &[0.0, 1.0]);
        assert_close(&shown(&[0, 100, 150, 300], "100", "200", "LINEAR_EXACT"), &[0.0, 0.5, 0.75, 1.0]);
        let at_edge = 1.0 / (1.0 + (-2.0_f32).exp());
        assert_close(&shown(&[100, 200], "100", "200", "SIGMOID"), &[0.5, at_edge]);
        // A width that the function does not allow is no window.
        assert_close(&shown(&[3, 4], "100", "0", "LINEAR"), &[3.0, 4.0]);
        assert_close(&shown(&[3, 4], "100", "0.5", "LINEAR"), &[3.0, 4.0]);
    }

    #[test]
    fn voi_tables_clamp_at_both_ends() {
        let mut object = radiograph(1, 5, &[0, 10, 11, 12, 500]);
        put_table(&mut object, tags::VOILUT_SEQUENCE, [3, 10, 8], &[0, 51, 255]);
        let image = decode(object.clone()).unwrap();
        assert_close(&image.presentation(true).values, &[0.0, 0.0, 0.2, 1.0, 1.0]);
        assert_close(&image.presentation(false).values, &[0.0, 10.0, 11.0, 12.0, 500.0]);
        // 8-bit entries packed two to a word.
        put_table(&mut object, tags::VOILUT_SEQUENCE, [4, 10, 8], &[0x3300, 0xFF66]);
        assert_close(&decode(object).unwrap().presentation(true).values, &[0.0, 0.0, 0.2, 0.4, 1.0]);
    }

    #[test]
    fn a_modality_table_replaces_the_values() {
        let mut object = radiograph(1, 4, &[0, 1, 2, 9]);
        put_table(&mut object, tags::MODALITY_LUT_SEQUENCE, [3, 0, 16], &[100, 1000, 40_000]);
        assert_eq!(decode(object).unwrap().values.values, [100.0, 1000.0, 40_000.0, 40_000.0]);
    }

    #[test]
    fn padding_becomes_the_darkest_value() {
        let mut object = radiograph(1, 4, &[65_535, 10, 20, 65_535]);
        object.put(number(tags::PIXEL_PADDING_VALUE, 65_535));
        assert_eq!(decode(object.clone()).unwrap().presentation(false).values, [10.0, 10.0, 20.0, 10.0]);
        object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1"));
        assert_eq!(decode(object).unwrap().presentation(false).values, [-20.0, -10.0, -20.0, -20.0]);
    }

    #[test]
    fn truncated_pixel_data_is_named() {
        let error = decode(radiograph(2, 3, &[1, 2, 3, 4, 5])).unwrap_err();
        assert!(
            matches!(error, ImagingError::ShortPixelData { found_bytes: 10, needed_bytes: 12, rows: 2, columns: 3 }),
            "{error}"
        );
        assert_eq!(error.reason(), ReasonCode::Undecodable);
    }

    #[test]
    fn a_decompression_bomb_is_refused_before_decoding() {
        let mut bomb = radiograph(65_535, 65_535, &[]);
        set_fragment(&mut bomb, vec![0xFF, 0x4F, 0xFF, 0x51]);
        let error = decode_as(bomb, uids::JPEG2000_LOSSLESS).unwrap_err();
        assert!(matches!(error, ImagingError::TooLarge { needed_bytes: 17_179_344_900, .. }), "{error}");
        // Few pixels, and a square of billions.
        let error = decode(radiograph(65_535, 2, &vec![0; 2 * 65_535])).unwrap_err();
        assert!(matches!(error, ImagingError::TooLarge { needed_bytes: 17_179_344_900, .. }), "{error}");

        // A modest header over a codestream that announces 65535 x 65535.
        let mut codestream = vec![0xFF, 0x4F, 0xFF, 0x51, 0, 41, 0, 0];
        for value in [65_535_u32, 65_535, 0, 0, 65_535, 65_535, 0, 0] {
            codestream.extend(value.to_be_bytes());
        }
        codestream.extend([0, 1, 15, 1, 1]);
        let mut hidden = radiograph(64, 64, &[]);
        set_fragment(&mut hidden, codestream);
        let error = decode_as(hidden, uids::JPEG2000_LOSSLESS).unwrap_err();
        assert!(matches!(error, ImagingError::CodestreamMismatch { .. }), "{error}");
    }

    #[test]
    fn damaged_and_unsupported_codestreams_are_errors() {
        let jpeg_12_bit = [0xFF, 0xD8, 0xFF, 0xC1, 0, 11, 12, 0, 8, 0, 8, 1, 1, 0x11, 0, 0];
        let mut object = radiograph(8, 8, &[]);
        set_bits_stored(&mut object, 12, false);
        set_fragment(&mut object, jpeg_12_bit.to_vec());
        let error = decode_as(object.clone(), uids::JPEG_EXTENDED12_BIT).unwrap_err();
        assert_eq!(error.reason(), ReasonCode::Undecodable);
        assert!(error.to_string().contains("it is cut off between its segments"), "{error}");

        for uid in [
            uids::JPEG_LOSSLESS_SV1,
            uids::JPEGLS_LOSSLESS,
            uids::JPEG2000_LOSSLESS,
            uids::RLE_LOSSLESS,
            uids::JPEG_BASELINE8_BIT,
        ] {
            set_fragment(&mut object, vec![0x00; 128]);
            let error = decode_as(object.clone(), uid).unwrap_err();
            assert_eq!(error.reason(), ReasonCode::Undecodable, "{uid}: {error}");
        }
    }

    #[test]
    fn several_frames_and_unknown_layouts_are_unsupported() {
        let cases = [
            text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB"),
            text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "PALETTE COLOR"),
            number(tags::SAMPLES_PER_PIXEL, 3),
            text(tags::NUMBER_OF_FRAMES, VR::IS, "2"),
            number(tags::BITS_ALLOCATED, 32),
        ];
        for element in cases {
            let mut object = radiograph(1, 2, &[1, 2]);
            object.put(element);
            let error = decode(object).unwrap_err();
            assert_eq!(error.reason(), ReasonCode::UnsupportedImage, "{error}");
        }
    }

    #[test]
    fn a_palette_becomes_its_luminance() {
        let mut object = radiograph(1, 4, &[0, 10, 11, 500]);
        object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "PALETTE COLOR"));
        assert_eq!(decode(object.clone()).unwrap_err().reason(), ReasonCode::UnsupportedImage);
        for (descriptor, data, entries) in [
            (
                tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                [100_u16, 0, 1000],
            ),
            (
                tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                [100, 1000, 1000],
            ),
            (
                tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                [100, 0, 1000],
            ),
        ] {
            object.put(InMemElement::new(descriptor, VR::US, dicom_value!(U16, [3, 10, 16])));
            object.put(InMemElement::new(data, VR::OW, dicom_core::PrimitiveValue::U16(entries[..].into())));
        }
        let image = decode(object).unwrap();
        assert_close(&image.values.values, &[100.0, 100.0, 587.0, 1000.0]);
        assert_eq!((image.inverted, &image.voi), (false, &Voi::None));
    }

    #[test]
    fn colour_becomes_its_luminance_whatever_its_order() {
        let mut object = radiograph(1, 2, &[]);
        object.put(number(tags::SAMPLES_PER_PIXEL, 3));
        object.put(number(tags::BITS_ALLOCATED, 8));
        set_bits_stored(&mut object, 8, false);
        object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB"));
        for (planar_configuration, bytes) in [(0, [200, 100, 0, 10, 10, 10]), (1, [200, 10, 100, 10, 0, 10])] {
            object.put(number(tags::PLANAR_CONFIGURATION, planar_configuration));
            object.put(InMemElement::new(tags::PIXEL_DATA, VR::OB, dicom_core::PrimitiveValue::U8(bytes[..].into())));
            let values = decode(object.clone()).unwrap().values.values;
            assert!((values[0] - 118.5).abs() < 1e-4 && (values[1] - 10.0).abs() < 1e-4, "{values:?}");
        }
    }

    #[test]
    fn frames_are_cut_where_they_are() {
        use crate::imaging::decode_frame;
        let mut object = radiograph(1, 2, &[1, 2, 3, 4]);
        object.put(text(tags::NUMBER_OF_FRAMES, VR::IS, "2"));
        let object = with_meta(object, uids::EXPLICIT_VR_LITTLE_ENDIAN);
        let frame = |index| decode_frame(&object, index, DecodeLimits::default());
        assert_eq!(frame(1).unwrap().values, [3, 4]);
        assert_eq!(frame(2).unwrap_err().reason(), ReasonCode::UnsupportedImage);
    }

    #[test]
    fn missing_and_contradicting_attributes_are_named() {
        for (tag, name) in [
            (tags::ROWS, "Rows"),
            (tags::COLUMNS, "Columns"),
            (tags::BITS_ALLOCATED, "Bits Allocated"),
            (tags::PHOTOMETRIC_INTERPRETATION, "Photometric Interpretation"),
            (tags::PIXEL_DATA, "Pixel Data"),
        ] {
            let mut object = radiograph(1, 2, &[1, 2]);
            object.remove_element(tag);
            assert!(decode(object).unwrap_err().to_string().starts_with(name));
        }
        let mut object = radiograph(1, 2, &[1, 2]);
        object.put(number(tags::BITS_STORED, 17));
        assert!(matches!(decode(object).unwrap_err(), ImagingError::BadAttribute { name: "Bits Stored", .. }));
        let error = decode_as(radiograph(1, 2, &[1, 2]), uids::JPEG2000_LOSSLESS).unwrap_err();
        assert!(error.to_string().contains("not encapsulated"), "{error}");
    }

    #[test]
    fn display_is_bright_where_values_are_high_and_uses_percentiles_without_a_window() {
        let words: Vec<u16> = (0..100).map(|value| value * 10).collect();
        let shown = display_image(&part10(radiograph(10, 10, &words)), DecodeLimits::default()).unwrap();
        assert_eq!((shown.get_pixel(0, 0).0[0], shown.get_pixel(9, 9).0[0]), (0, 255));
        assert!(shown.get_pixel(5, 5).0[0] > shown.get_pixel(5, 2).0[0]);
    }
}
