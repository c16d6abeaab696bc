//! Pixel Data to the stored values of one frame: layout, codecs, limits.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use dicom_core::value::{PixelFragmentSequence, Value};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::transfer_syntax::{Codec, TransferSyntaxIndex};
use dicom_object::DefaultDicomObject;
use dicom_pixeldata::PixelDecoder;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use super::{
    DecodeLimits, ImagingError,
    codestream::{CodestreamInfo, read_jpeg, read_jpeg_2000},
    color::Color,
    header::{ImageHeader, integer},
    jpeg12,
};

/// The stored values of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFrame {
    /// Rows (0028,0010).
    pub rows: usize,
    /// Columns (0028,0011).
    pub columns: usize,
    /// 1 for grey and palette images, 3 for colour.
    pub samples_per_pixel: usize,
    /// Row by row; the samples of a pixel side by side, colour always as RGB. Sign-extended where Pixel Representation
    /// (0028,0103) says so; bits that are not stored are left out.
    pub values: Vec<i32>,
}

/// Decodes the frame with this number, counted from 0.
///
/// # Errors
/// [`ImagingError`] names what is missing, unsupported, too large, cut short or refused by the codec. Codecs that
/// panic are caught.
pub fn decode_frame(
    object: &DefaultDicomObject,
    frame_idx: u32,
    limits: DecodeLimits,
) -> Result<StoredFrame, ImagingError> {
    let header = ImageHeader::from_object(object);
    let layout = PixelLayout::of(object, &header)?;
    if frame_idx >= header.number_of_frames {
        return Err(ImagingError::UnsupportedImage {
            what: format!("frame {} of an image of {}", frame_idx + 1, header.number_of_frames),
            expected: "frames that the image has are",
        });
    }
    let stored = stored_bits(object, &header, &layout, frame_idx, limits)?;
    Ok(StoredFrame {
        rows: layout.rows as usize,
        columns: layout.columns as usize,
        samples_per_pixel: usize::from(layout.color.samples_per_pixel()),
        values: stored.into_iter().map(|bits| layout.interpret(bits)).collect(),
    })
}

/// The stored bits of each sample of a frame, colour as RGB.
pub(super) fn stored_bits(
    object: &DefaultDicomObject,
    header: &ImageHeader,
    layout: &PixelLayout,
    frame_idx: u32,
    limits: DecodeLimits,
) -> Result<Vec<u32>, ImagingError> {
    layout.check_size(limits)?;
    let frame = frame_bytes(object, header, layout, frame_idx, limits)?;
    let mut samples = layout.samples(&frame);
    if frame.is_by_plane {
        samples = interleaved(&samples);
    }
    if frame.is_subsampled && layout.columns % 2 == 1 {
        return Err(ImagingError::BadAttribute {
            name: "Columns",
            tag: "(0028,0011)",
            value: layout.columns.to_string(),
            expected: "an even number, as YBR_FULL_422 has".to_owned(),
        });
    }
    if frame.is_subsampled {
        samples = Color::full_resolution(&samples);
    }
    if !frame.is_rgb {
        layout.color.make_rgb(&mut samples, layout.bits_stored);
    }
    Ok(samples)
}

/// Planes of red, green and blue to pixels (Planar Configuration (0028,0006) of 1 to 0).
fn interleaved(planes: &[u32]) -> Vec<u32> {
    let plane = planes.len() / 3;
    let (red, rest) = planes.split_at(plane);
    let (green, blue) = rest.split_at(plane);
    red.iter().zip(green).zip(blue).flat_map(|((red, green), blue)| [*red, *green, *blue]).collect()
}

/// How the pixels of one frame lie in the bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct PixelLayout {
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) bits_allocated: u16,
    pub(super) bits_stored: u16,
    /// Unused low bits below the stored ones, in native and RLE data whose High Bit is not Bits Stored - 1.
    low_bits: u32,
    is_signed: bool,
    pub(super) color: Color,
    /// Planar Configuration (0028,0006) is 1: a plane for each colour. Compressed data has its own order.
    is_by_plane: bool,
}

impl PixelLayout {
    pub(super) fn of(object: &DefaultDicomObject, header: &ImageHeader) -> Result<Self, ImagingError> {
        let missing = |name, tag| ImagingError::MissingAttribute { name, tag };
        let photometric_interpretation =
            header.photometric_interpretation.as_deref().ok_or(missing("Photometric Interpretation", "(0028,0004)"))?;
        let samples_per_pixel = header.samples_per_pixel.unwrap_or(1);
        let color =
            Color::of(photometric_interpretation, samples_per_pixel).ok_or_else(|| ImagingError::UnsupportedImage {
                what: format!("a {photometric_interpretation} image with {samples_per_pixel} samples per pixel"),
                expected: "MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB and YBR images are",
            })?;
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
            color,
            is_by_plane: color.samples_per_pixel() == 3
                && integer::<u16>(object, tags::PLANAR_CONFIGURATION) == Some(1),
        })
    }

    /// Bytes of one frame with so many samples per pixel; no overflow: each factor has 16 bits, at most.
    fn frame_bytes(&self, samples_per_pixel: u16) -> u64 {
        let samples = u64::from(self.rows) * u64::from(self.columns) * u64::from(samples_per_pixel);
        samples * u64::from(self.bits_allocated / 8)
    }

    fn check_size(&self, limits: DecodeLimits) -> Result<(), ImagingError> {
        // Networks take a square of 32-bit numbers: of a strip of pixels that is thousands of times as much.
        let side = u64::from(self.rows.max(self.columns));
        let needed_bytes = self.frame_bytes(self.color.samples_per_pixel()).max(side * side * 4);
        let limit_bytes = limits.max_decoded_bytes;
        if needed_bytes > limit_bytes { Err(ImagingError::TooLarge { needed_bytes, limit_bytes }) } else { Ok(()) }
    }

    /// The stored bits of each sample, without what lies above them (overlays of old) or below them.
    fn samples(&self, pixels: &FrameBytes<'_>) -> Vec<u32> {
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
    pub(super) fn interpret(&self, bits: u32) -> i32 {
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
    /// Each colour's plane by itself.
    is_by_plane: bool,
    /// Two pixels share their chrominance (YBR_FULL_422 without compression).
    is_subsampled: bool,
    /// Colour has been converted by the codec.
    is_rgb: bool,
}

fn frame_bytes<'a>(
    object: &'a DefaultDicomObject,
    header: &ImageHeader,
    layout: &PixelLayout,
    frame_idx: u32,
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
        (Value::Primitive(value), Codec::None | Codec::Dataset(_)) => native_frame(value.to_bytes(), layout, frame_idx),
        (Value::PixelSequence(sequence), Codec::None | Codec::EncapsulatedPixelData(None, _))
            if uid == uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN =>
        {
            native_frame(Cow::Owned(frame_fragments(sequence, header, frame_idx)?), layout, 0)
        }
        (Value::PixelSequence(sequence), Codec::EncapsulatedPixelData(Some(_), _)) => {
            let name = transfer_syntax.name();
            let samples_per_pixel = layout.color.samples_per_pixel();
            let picture = frame_fragments(sequence, header, frame_idx)?;
            let depth = check_codestream(uid, name, &picture, layout, limits)?;
            let is_native_depth = matches!(
                uid,
                uids::RLE_LOSSLESS
                    | uids::ENCAPSULATED_UNCOMPRESSED_EXPLICIT_VR_LITTLE_ENDIAN
                    | uids::DEFLATED_IMAGE_FRAME_COMPRESSION
            );
            let decoded = if uid == uids::JPEG_EXTENDED12_BIT && depth == Some(12) {
                let samples = jpeg12::decode(&picture, layout.rows as usize, layout.columns as usize);
                let samples = samples.map_err(|message| codec_failure(name, message.to_owned()))?;
                samples.into_iter().flat_map(u16::to_le_bytes).collect()
            } else {
                decode_with_codec(object, name, frame_idx)?
            };
            Ok(FrameBytes {
                bytes: exactly(Cow::Owned(decoded), layout, samples_per_pixel, 0)?,
                follows_high_bit: is_native_depth,
                is_by_plane: false,
                is_subsampled: false,
                is_rgb: !is_native_depth,
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

fn native_frame<'a>(
    bytes: Cow<'a, [u8]>,
    layout: &PixelLayout,
    frame_idx: u32,
) -> Result<FrameBytes<'a>, ImagingError> {
    let is_subsampled = layout.color == Color::YbrFull422;
    let samples_per_pixel = if is_subsampled { 2 } else { layout.color.samples_per_pixel() };
    Ok(FrameBytes {
        bytes: exactly(bytes, layout, samples_per_pixel, frame_idx)?,
        follows_high_bit: true,
        is_by_plane: layout.is_by_plane && !is_subsampled,
        is_subsampled,
        is_rgb: false,
    })
}

/// The compressed bytes of one frame: all fragments of a single frame, otherwise those that the Basic Offset Table or
/// one fragment for each frame tell (PS3.5 section A.4).
fn frame_fragments(
    sequence: &PixelFragmentSequence<Vec<u8>>,
    header: &ImageHeader,
    frame_idx: u32,
) -> Result<Vec<u8>, ImagingError> {
    let (fragments, offsets, index) = (sequence.fragments(), sequence.offset_table(), frame_idx as usize);
    let n_frames = header.number_of_frames as usize;
    if n_frames == 1 {
        return Ok(fragments.concat());
    }
    if fragments.len() == n_frames {
        return Ok(fragments.get(index).cloned().unwrap_or_default());
    }
    let start = offsets.get(index).copied().filter(|_| offsets.len() == n_frames);
    let start = start.ok_or_else(|| ImagingError::BadAttribute {
        name: "Pixel Data",
        tag: "(7FE0,0010)",
        value: format!("in {} fragments with {} offsets", fragments.len(), offsets.len()),
        expected: format!("a fragment or an offset for each of {n_frames} frames"),
    })?;
    let end = offsets.get(index + 1).map_or(u64::MAX, |end| u64::from(*end));
    let mut position = 0_u64;
    let mut picture = Vec::new();
    for fragment in fragments {
        if (u64::from(start)..end).contains(&position) {
            picture.extend_from_slice(fragment);
        }
        // An item has a tag and a length of four bytes each.
        position += 8 + fragment.len() as u64;
    }
    Ok(picture)
}

/// The bytes of one frame, without what follows it; too little is an error.
fn exactly<'a>(
    bytes: Cow<'a, [u8]>,
    layout: &PixelLayout,
    samples_per_pixel: u16,
    frame_idx: u32,
) -> Result<Cow<'a, [u8]>, ImagingError> {
    let frame_bytes = layout.frame_bytes(samples_per_pixel);
    let start = frame_bytes.saturating_mul(u64::from(frame_idx));
    let needed_bytes = start.saturating_add(frame_bytes);
    if (bytes.len() as u64) < needed_bytes {
        return Err(ImagingError::ShortPixelData {
            found_bytes: bytes.len() as u64,
            needed_bytes,
            rows: layout.rows,
            columns: layout.columns,
        });
    }
    let range = start as usize..needed_bytes as usize;
    Ok(match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
        Cow::Owned(mut bytes) => {
            bytes.truncate(range.end);
            bytes.drain(..range.start);
            Cow::Owned(bytes)
        }
    })
}

type ReadInfo = fn(&[u8]) -> Option<CodestreamInfo>;

/// Compares what the codestream announces with the header, before a decoder allocates for it; returns its depth in bits
/// where it announces one.
fn check_codestream(
    uid: &str,
    transfer_syntax_name: &str,
    picture: &[u8],
    layout: &PixelLayout,
    limits: DecodeLimits,
) -> Result<Option<u8>, ImagingError> {
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
        _ => return Ok(None),
    };
    let info = read(picture).ok_or_else(|| {
        codec_failure(transfer_syntax_name, "the pixel data holds no picture of this kind".to_owned())
    })?;
    let announced = u64::from(info.rows) * u64::from(info.columns) * u64::from(info.components.max(1)) * 4;
    let samples_per_pixel = layout.color.samples_per_pixel();
    if (info.rows, info.columns, info.components) != (layout.rows, layout.columns, samples_per_pixel) {
        return Err(ImagingError::CodestreamMismatch {
            codec,
            found: format!("{} x {} with {} components", info.rows, info.columns, info.components),
            expected: format!("{} x {} with {samples_per_pixel}", layout.rows, layout.columns),
        });
    }
    if announced > limits.max_decoded_bytes.saturating_mul(2) {
        return Err(ImagingError::TooLarge { needed_bytes: announced, limit_bytes: limits.max_decoded_bytes });
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
    Ok(Some(info.bits_per_sample))
}

fn codec_failure(transfer_syntax_name: &str, message: String) -> ImagingError {
    ImagingError::Codec { codec: transfer_syntax_name.to_owned(), message }
}

/// Runs the codec. Several of them index by what the compressed data says, so a panic counts as a failure.
fn decode_with_codec(
    object: &DefaultDicomObject,
    transfer_syntax_name: &str,
    frame_idx: u32,
) -> Result<Vec<u8>, ImagingError> {
    let failed = |message| codec_failure(transfer_syntax_name, message);
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        object.decode_pixel_data_frame(frame_idx).map(dicom_pixeldata::DecodedPixelData::into_data)
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
