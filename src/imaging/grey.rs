//! Pixel Data to grey values: stored values, Modality LUT, VOI, polarity.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use dicom_core::value::Value;
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::transfer_syntax::{Codec, TransferSyntaxIndex};
use dicom_object::DefaultDicomObject;
use dicom_pixeldata::PixelDecoder;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use image::GrayImage;

use super::{
    ImagingError, Plane,
    canvas::percentile_scale,
    codestream::{CodestreamInfo, read_jpeg, read_jpeg_2000},
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

/// Decodes the single grey frame of `object` into modality units.
///
/// # Errors
/// [`ImagingError`] names what is missing, unsupported, too large, cut short or refused by the codec. Codecs that
/// panic are caught.
pub fn decode_grey(object: &DefaultDicomObject, limits: DecodeLimits) -> Result<GreyImage, ImagingError> {
    let header = ImageHeader::from_object(object);
    let layout = PixelLayout::of(&header)?;
    layout.check_size(limits)?;
    let pixels = frame_bytes(object, &header, &layout, limits)?;
    let modality = ModalityTransform::of(object, &header);
    let voi = Voi::of(object, &header, &modality);
    let padding_range = padding_range(object, &layout);

    let stored = layout.stored_values(&pixels);
    let by_stored: Vec<f32> =
        (0..1_u32 << layout.bits_stored).map(|bits| modality.apply(layout.interpret(bits))).collect();
    let values = stored.iter().map(|&bits| by_stored.get(bits as usize).copied().unwrap_or(0.0)).collect();
    let padding = match padding_range {
        None => Vec::new(),
        Some((low, high)) => {
            let is_padding = |&bits: &u32| (low..=high).contains(&layout.interpret(bits));
            let padding: Vec<bool> = stored.iter().map(is_padding).collect();
            if padding.contains(&true) { padding } else { Vec::new() }
        }
    };
    Ok(GreyImage {
        values: Plane { rows: layout.rows as usize, columns: layout.columns as usize, values },
        padding,
        voi,
        inverted: header.is_inverted(),
    })
}

/// How the pixels of one frame lie in the bytes.
#[derive(Debug, Clone, Copy)]
struct PixelLayout {
    rows: u32,
    columns: u32,
    bits_allocated: u16,
    bits_stored: u16,
    /// Unused low bits below the stored ones, in native and RLE data whose High Bit is not Bits Stored - 1.
    low_bits: u32,
    is_signed: bool,
}

impl PixelLayout {
    fn of(header: &ImageHeader) -> Result<Self, ImagingError> {
        let missing = |name, tag| ImagingError::MissingAttribute { name, tag };
        let photometric_interpretation =
            header.photometric_interpretation.as_deref().ok_or(missing("Photometric Interpretation", "(0028,0004)"))?;
        let samples_per_pixel = header.samples_per_pixel.unwrap_or(1);
        if !matches!(photometric_interpretation, "MONOCHROME1" | "MONOCHROME2") || samples_per_pixel != 1 {
            return Err(ImagingError::UnsupportedImage {
                what: format!("a {photometric_interpretation} image with {samples_per_pixel} samples per pixel"),
                expected: "grey images (MONOCHROME1 or MONOCHROME2) are",
            });
        }
        if header.number_of_frames != 1 {
            return Err(ImagingError::UnsupportedImage {
                what: format!("an image of {} frames", header.number_of_frames),
                expected: "single-frame images are",
            });
        }
        let bits_allocated = header.bits_allocated.ok_or(missing("Bits Allocated", "(0028,0100)"))?;
        if !matches!(bits_allocated, 8 | 16) {
            return Err(ImagingError::UnsupportedImage {
                what: format!("Bits Allocated (0028,0100) of {bits_allocated}"),
                expected: "8 and 16 bits are",
            });
        }
        let bits_stored = header.bits_stored.unwrap_or(bits_allocated);
        if bits_stored == 0 || bits_stored > bits_allocated {
            return Err(ImagingError::BadAttribute {
                name: "Bits Stored",
                tag: "(0028,0101)",
                value: bits_stored.to_string(),
                expected: format!("1 to {bits_allocated}"),
            });
        }
        let high_bit = header.high_bit.unwrap_or(bits_stored - 1);
        if high_bit >= bits_allocated || high_bit + 1 < bits_stored {
            return Err(ImagingError::BadAttribute {
                name: "High Bit",
                tag: "(0028,0102)",
                value: high_bit.to_string(),
                expected: format!("{} to {}", bits_stored - 1, bits_allocated - 1),
            });
        }
        Ok(Self {
            rows: header.rows.ok_or(missing("Rows", "(0028,0010)"))?,
            columns: header.columns.ok_or(missing("Columns", "(0028,0011)"))?,
            bits_allocated,
            bits_stored,
            low_bits: u32::from(high_bit + 1 - bits_stored),
            is_signed: header.is_signed,
        })
    }

    fn pixels(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.columns)
    }

    fn frame_bytes(&self) -> u64 {
        self.pixels() * u64::from(self.bits_allocated / 8)
    }

    fn check_size(&self, limits: DecodeLimits) -> Result<(), ImagingError> {
        let (needed_bytes, limit_bytes) = (self.frame_bytes(), limits.max_decoded_bytes);
        if needed_bytes > limit_bytes { Err(ImagingError::TooLarge { needed_bytes, limit_bytes }) } else { Ok(()) }
    }

    /// The stored bits of each pixel, without what lies above them (overlays of old) or below them.
    fn stored_values(&self, pixels: &FrameBytes<'_>) -> Vec<u32> {
        let mask = (1_u32 << self.bits_stored) - 1;
        let shift = if pixels.follows_high_bit { self.low_bits } else { 0 };
        if self.bits_allocated == 8 {
            pixels.bytes.iter().map(|&byte| (u32::from(byte) >> shift) & mask).collect()
        } else {
            let words = pixels.bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            words.map(|word| (u32::from(word) >> shift) & mask).collect()
        }
    }

    /// Stored bits as a number: sign-extended when Pixel Representation says so.
    fn interpret(&self, bits: u32) -> i32 {
        if self.is_signed {
            let unused = 32 - u32::from(self.bits_stored);
            ((bits << unused) as i32) >> unused
        } else {
            bits as i32
        }
    }
}

/// The decoded bytes of the frame, little endian, exactly as long as the frame.
struct FrameBytes<'a> {
    bytes: Cow<'a, [u8]>,
    /// Whether samples lie where High Bit says; codecs that know the depth themselves deliver them at bit 0.
    follows_high_bit: bool,
}

fn frame_bytes<'a>(
    object: &'a DefaultDicomObject,
    header: &ImageHeader,
    layout: &PixelLayout,
    limits: DecodeLimits,
) -> Result<FrameBytes<'a>, ImagingError> {
    let uid = header.transfer_syntax_uid.as_str();
    let transfer_syntax = TransferSyntaxRegistry.get(uid).ok_or_else(|| ImagingError::UnsupportedTransferSyntax {
        uid: uid.to_owned(),
        name: "unknown".to_owned(),
        remedy: "have the sender choose one of the conformance statement's transfer syntaxes",
    })?;
    let element = object
        .get(tags::PIXEL_DATA)
        .ok_or(ImagingError::MissingAttribute { name: "Pixel Data", tag: "(7FE0,0010)" })?;
    match (element.value(), transfer_syntax.codec()) {
        (Value::Primitive(value), Codec::None | Codec::Dataset(_)) => {
            Ok(FrameBytes { bytes: exactly(value.to_bytes(), layout)?, follows_high_bit: true })
        }
        (Value::PixelSequence(sequence), Codec::None | Codec::EncapsulatedPixelData(None, _))
            if uid == uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN =>
        {
            let joined = sequence.fragments().concat();
            Ok(FrameBytes { bytes: exactly(Cow::Owned(joined), layout)?, follows_high_bit: true })
        }
        (Value::PixelSequence(sequence), Codec::EncapsulatedPixelData(Some(_), _)) => {
            check_codestream(uid, transfer_syntax.name(), sequence.fragments(), layout, limits)?;
            let decoded = decode_with_codec(object, transfer_syntax.name())?;
            Ok(FrameBytes {
                bytes: exactly(Cow::Owned(decoded), layout)?,
                follows_high_bit: matches!(
                    uid,
                    uids::RLE_LOSSLESS
                        | uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN
                        | uids::DEFLATED_IMAGE_FRAME_COMPRESSION
                ),
            })
        }
        (Value::PixelSequence(_), Codec::EncapsulatedPixelData(None, _)) => {
            Err(ImagingError::UnsupportedTransferSyntax {
                uid: uid.to_owned(),
                name: transfer_syntax.name().to_owned(),
                remedy: "have the sender choose one of the conformance statement's transfer syntaxes",
            })
        }
        (Value::Sequence(_), _) => Err(ImagingError::BadAttribute {
            name: "Pixel Data",
            tag: "(7FE0,0010)",
            value: "a sequence of items".to_owned(),
            expected: "pixels".to_owned(),
        }),
        (value, _) => Err(ImagingError::BadAttribute {
            name: "Pixel Data",
            tag: "(7FE0,0010)",
            value: if matches!(value, Value::Primitive(_)) { "not encapsulated" } else { "encapsulated" }.to_owned(),
            expected: format!("what transfer syntax {uid} ({}) prescribes", transfer_syntax.name()),
        }),
    }
}

/// Cuts padding after the frame; too little is an error.
fn exactly<'a>(bytes: Cow<'a, [u8]>, layout: &PixelLayout) -> Result<Cow<'a, [u8]>, ImagingError> {
    let needed_bytes = layout.frame_bytes();
    if (bytes.len() as u64) < needed_bytes {
        return Err(ImagingError::ShortPixelData {
            found_bytes: bytes.len() as u64,
            needed_bytes,
            rows: layout.rows,
            columns: layout.columns,
        });
    }
    let needed = needed_bytes as usize;
    Ok(match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..needed]),
        Cow::Owned(mut bytes) => {
            bytes.truncate(needed);
            Cow::Owned(bytes)
        }
    })
}

type ReadInfo = fn(&[u8]) -> Option<CodestreamInfo>;

/// Compares what the codestream announces with the header, before a decoder allocates for it.
fn check_codestream(
    uid: &str,
    transfer_syntax_name: &str,
    fragments: &[Vec<u8>],
    layout: &PixelLayout,
    limits: DecodeLimits,
) -> Result<(), ImagingError> {
    let (codec, read): (&'static str, ReadInfo) = match uid {
        uids::JPEG_BASELINE8_BIT | uids::JPEG_EXTENDED12_BIT | uids::JPEG_LOSSLESS | uids::JPEG_LOSSLESS_SV1 => {
            ("JPEG", read_jpeg)
        }
        uids::JPEGLS_LOSSLESS | uids::JPEGLS_NEAR_LOSSLESS => ("JPEG-LS", read_jpeg),
        uids::JPEG2000
        | uids::JPEG2000_LOSSLESS
        | uids::JPEG2000MC
        | uids::JPEG2000MC_LOSSLESS
        | uids::HTJ2K
        | uids::HTJ2K_LOSSLESS
        | uids::HTJ2K_LOSSLESS_RPCL => ("JPEG 2000", read_jpeg_2000),
        _ => return Ok(()),
    };
    // The header of the picture lies in the first fragment, unless that was cut very small.
    let first = fragments.first().map(Vec::as_slice).unwrap_or_default();
    let info = read(first).or_else(|| read(&fragments.concat())).ok_or_else(|| ImagingError::Codec {
        codec: transfer_syntax_name.to_owned(),
        message: "the pixel data holds no picture of this kind".to_owned(),
    })?;
    let announced = u64::from(info.rows) * u64::from(info.columns) * u64::from(info.components.max(1)) * 4;
    if (info.rows, info.columns, info.components) != (layout.rows, layout.columns, 1) {
        return Err(ImagingError::CodestreamMismatch {
            codec,
            found: format!("{} x {} with {} components", info.rows, info.columns, info.components),
            expected: format!("{} x {} with 1", layout.rows, layout.columns),
        });
    }
    if announced > limits.max_decoded_bytes.saturating_mul(2) {
        return Err(ImagingError::TooLarge { needed_bytes: announced, limit_bytes: limits.max_decoded_bytes });
    }
    if uid == uids::JPEG_EXTENDED12_BIT && info.bits_per_sample > 8 {
        return Err(ImagingError::UnsupportedTransferSyntax {
            uid: uid.to_owned(),
            name: format!("{transfer_syntax_name}, {} bits", info.bits_per_sample),
            remedy: "have the sender use JPEG Lossless, JPEG-LS, JPEG 2000 or no compression",
        });
    }
    if u16::from(info.bits_per_sample) > layout.bits_allocated
        || (info.bits_per_sample <= 8) != (layout.bits_allocated == 8) && codec != "JPEG 2000"
    {
        return Err(ImagingError::CodestreamMismatch {
            codec,
            found: format!("{} bits deep", info.bits_per_sample),
            expected: format!("{} bits allocated", layout.bits_allocated),
        });
    }
    Ok(())
}

/// Runs the codec. Several of them index by what the compressed data says, so a panic counts as a failure.
fn decode_with_codec(object: &DefaultDicomObject, transfer_syntax_name: &str) -> Result<Vec<u8>, ImagingError> {
    let failed = |message: String| ImagingError::Codec { codec: transfer_syntax_name.to_owned(), message };
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        object.decode_pixel_data_frame(0).map(dicom_pixeldata::DecodedPixelData::into_data)
    }));
    match decoded {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let mut message = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                message = cause.to_string();
                source = cause.source();
            }
            Err(failed(message))
        }
        Err(_) => Err(failed("it stopped on damaged data".to_owned())),
    }
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
        assert!(matches!(error, ImagingError::TooLarge { needed_bytes: 8_589_672_450, .. }), "{error}");

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
        assert!(matches!(error, ImagingError::UnsupportedTransferSyntax { .. }), "{error}");
        assert!(error.to_string().contains("12 bits"), "{error}");

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
    fn other_pictures_than_single_grey_frames_are_unsupported() {
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
