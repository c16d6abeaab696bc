//! Checks the structure of a Part 10 file before dicom-object sees it.
//!
//! dicom-object builds nested data sets by recursion and overflows the stack (an abort, not an error) at a depth of
//! about 1500, and reserves a declared value length before it knows whether the bytes are there. This walk is
//! iterative, allocates nothing by declared lengths, and reads element headers with the same decoder as
//! dicom-object, so that both see the same structure.

use std::{borrow::Cow, io::Read};

use dicom_core::{
    Tag, VR,
    header::{DataElementHeader, Header, Length, SequenceItemHeader},
};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::{
    decode::{DecodeFrom, explicit_le::ExplicitVRLittleEndianDecoder},
    transfer_syntax::{DynDecoder, TransferSyntaxIndex},
};
use dicom_object::{DefaultDicomObject, OpenFileOptions, file::ReadPreamble};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use flate2::read::DeflateDecoder;

use super::ImagingError;

const PREAMBLE_BYTES: usize = 128;
const MAGIC: &[u8; 4] = b"DICM";

/// How much structure a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardLimits {
    /// Deepest nesting of sequences; real objects stay below 10.
    pub max_sequence_depth: usize,
    /// Data elements and sequence items in total: each costs memory that its 8 bytes in the file do not show.
    pub max_elements: usize,
    /// Bytes of text elements in total: a byte of a backslash-separated text can cost 24 in memory.
    pub max_text_bytes: u64,
    /// Bytes of an inflated (Deflated Explicit VR Little Endian) data set.
    pub max_inflated_bytes: u64,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self { max_sequence_depth: 64, max_elements: 1_000_000, max_text_bytes: 8 << 20, max_inflated_bytes: 1 << 30 }
    }
}

/// Why a file is refused before it is parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// No `DICM` after 128 bytes.
    #[error("the file is not a DICOM Part 10 file: `DICM` is missing at byte 128")]
    NotPart10,
    /// The file meta group is malformed.
    #[error("the file meta information is malformed at byte {offset}: {reason}")]
    FileMeta {
        /// Byte offset in the file.
        offset: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// No decoder for the data set's encoding.
    #[error("transfer syntax {0:?} is unknown: the data set cannot be read")]
    UnknownTransferSyntax(String),
    /// A value reaches beyond the end of its file, sequence or item.
    #[error("element {tag} at byte {offset} declares {declared_bytes} bytes where {available_bytes} are left")]
    LengthBeyondEnd {
        /// Tag of the element or item.
        tag: Tag,
        /// Byte offset of its value in the data set.
        offset: usize,
        /// Declared value length.
        declared_bytes: u64,
        /// Bytes that are there.
        available_bytes: u64,
    },
    /// Nested deeper than allowed.
    #[error("sequences are nested deeper than {limit} at byte {offset}: no valid object is")]
    TooDeep {
        /// The limit.
        limit: usize,
        /// Byte offset in the data set.
        offset: usize,
    },
    /// More elements than allowed.
    #[error("the data set has more than {limit} elements and items")]
    TooManyElements {
        /// The limit.
        limit: usize,
    },
    /// More text than allowed.
    #[error("the text elements of the data set take more than {limit_bytes} bytes")]
    TooMuchText {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The compressed data set inflates to more than allowed, or not at all.
    #[error("the deflated data set {0}")]
    Deflate(String),
    /// Something that is not a data element or item.
    #[error("the data set is malformed at byte {offset}: {reason}")]
    Malformed {
        /// Byte offset in the data set.
        offset: usize,
        /// What is wrong.
        reason: String,
    },
}

/// Parses the bytes of a Part 10 file, after checking that doing so is safe.
///
/// # Errors
/// [`ImagingError::Guard`] for a structure that must not be parsed, [`ImagingError::Parse`] for one that cannot be.
pub fn read_object(part10: &[u8]) -> Result<DefaultDicomObject, ImagingError> {
    check_part10(part10, &GuardLimits::default())?;
    OpenFileOptions::new()
        .read_preamble(ReadPreamble::Always)
        .from_reader(part10)
        .map_err(|error| ImagingError::Parse(snafu_chain(&error)))
}

/// The message of an error and of its causes. dicom-rs puts no values of text elements into its messages other than
/// the malformed ones of dates and numbers, so only the outermost two are taken.
fn snafu_chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Checks nesting depth, declared lengths and counts of a Part 10 file without parsing values.
///
/// # Errors
/// The first problem found.
pub fn check_part10(part10: &[u8], limits: &GuardLimits) -> Result<(), GuardError> {
    if part10.get(PREAMBLE_BYTES..PREAMBLE_BYTES + 4) != Some(MAGIC) {
        return Err(GuardError::NotPart10);
    }
    let (transfer_syntax_uid, data_set_offset) = read_file_meta(part10)?;
    let transfer_syntax = TransferSyntaxRegistry
        .get(&transfer_syntax_uid)
        .ok_or_else(|| GuardError::UnknownTransferSyntax(transfer_syntax_uid.clone()))?;
    let encoded = part10.get(data_set_offset..).unwrap_or_default();
    let data_set = if transfer_syntax.uid() == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        Cow::Owned(inflate(encoded, limits.max_inflated_bytes)?)
    } else if transfer_syntax.can_decode_dataset() && !is_data_set_adapter(transfer_syntax) {
        Cow::Borrowed(encoded)
    } else {
        return Err(GuardError::UnknownTransferSyntax(transfer_syntax_uid));
    };
    let decoder: DynDecoder<&[u8]> =
        transfer_syntax.decoder_for().ok_or(GuardError::UnknownTransferSyntax(transfer_syntax_uid))?;
    Walk::new(&data_set, &decoder, limits).run()
}

/// Whether the data set as a whole is encoded by something other than plain deflate (JPIP referenced deflate).
fn is_data_set_adapter(transfer_syntax: &dicom_encoding::transfer_syntax::TransferSyntax) -> bool {
    matches!(transfer_syntax.codec(), dicom_encoding::transfer_syntax::Codec::Dataset(_))
}

/// Walks group 2 and returns the Transfer Syntax UID and the offset of the data set.
fn read_file_meta(part10: &[u8]) -> Result<(String, usize), GuardError> {
    let meta_error = |offset, reason| GuardError::FileMeta { offset, reason };
    let decoder = ExplicitVRLittleEndianDecoder::default();
    let mut offset = PREAMBLE_BYTES + MAGIC.len();
    let mut transfer_syntax_uid = None;
    let mut end = None;
    // dicom-object wants the group length first and believes it; so does this walk.
    while end.is_none_or(|end| offset < end) {
        let mut rest = part10.get(offset..).unwrap_or_default();
        let (header, header_bytes) = DecodeFrom::<&[u8]>::decode_header(&decoder, &mut rest)
            .map_err(|_| meta_error(offset, "an element header is cut off"))?;
        if header.tag.group() != 2 {
            return Err(meta_error(offset, "an element of another group lies inside the declared group length"));
        }
        let length = header.len.get().ok_or_else(|| meta_error(offset, "an element has undefined length"))? as usize;
        let value =
            rest.get(..length).ok_or_else(|| meta_error(offset, "an element reaches beyond the end of the file"))?;
        offset += header_bytes + length;
        match (header.tag, end) {
            (tags::FILE_META_INFORMATION_GROUP_LENGTH, None) => {
                let bytes: [u8; 4] =
                    value.try_into().map_err(|_| meta_error(offset, "the group length is not 4 bytes"))?;
                end = Some(offset.saturating_add(u32::from_le_bytes(bytes) as usize));
            }
            (_, None) => return Err(meta_error(offset, "the group length (0002,0000) is not the first element")),
            (tags::TRANSFER_SYNTAX_UID, Some(_)) => {
                let text = String::from_utf8_lossy(value);
                transfer_syntax_uid = Some(text.trim_end_matches(['\0', ' ']).to_owned());
            }
            _ => {}
        }
    }
    let uid = transfer_syntax_uid.ok_or_else(|| meta_error(offset, "Transfer Syntax UID (0002,0010) is missing"))?;
    Ok((uid, offset))
}

fn inflate(encoded: &[u8], max_bytes: u64) -> Result<Vec<u8>, GuardError> {
    let mut inflated = Vec::new();
    DeflateDecoder::new(encoded)
        .take(max_bytes + 1)
        .read_to_end(&mut inflated)
        .map_err(|error| GuardError::Deflate(format!("cannot be inflated: {error}")))?;
    if inflated.len() as u64 > max_bytes {
        return Err(GuardError::Deflate(format!("inflates to more than {max_bytes} bytes")));
    }
    Ok(inflated)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Sequence,
    Item,
}

/// An open sequence or item.
#[derive(Debug, Clone, Copy)]
struct Open {
    level: Level,
    /// Where it ends, `None` for undefined length.
    end: Option<usize>,
    /// Part of encapsulated pixel data.
    pixel_data: bool,
}

/// The same state machine as dicom-parser's `DataSetReader`, without values.
struct Walk<'a, 'd> {
    data: &'a [u8],
    offset: usize,
    decoder: &'d DynDecoder<&'a [u8]>,
    limits: &'d GuardLimits,
    open: Vec<Open>,
    expects_item: bool,
    elements: usize,
    text_bytes: u64,
}

impl<'a, 'd> Walk<'a, 'd> {
    fn new(data: &'a [u8], decoder: &'d DynDecoder<&'a [u8]>, limits: &'d GuardLimits) -> Self {
        Self { data, offset: 0, decoder, limits, open: Vec::new(), expects_item: false, elements: 0, text_bytes: 0 }
    }

    fn run(mut self) -> Result<(), GuardError> {
        loop {
            self.close_finished()?;
            let is_at_end = self.data.len() - self.offset < 4;
            if is_at_end {
                return self.check_end();
            }
            self.elements += 1;
            if self.elements > self.limits.max_elements {
                return Err(GuardError::TooManyElements { limit: self.limits.max_elements });
            }
            if self.expects_item { self.item()? } else { self.element()? }
        }
    }

    /// A file may end after any element outside of sequences, and after any fragment of pixel data (files whose
    /// last delimiter is missing occur and decode).
    fn check_end(&self) -> Result<(), GuardError> {
        match self.open.last() {
            Some(open) if !open.pixel_data => Err(self.malformed("the file ends inside a sequence")),
            _ => Ok(()),
        }
    }

    fn close_finished(&mut self) -> Result<(), GuardError> {
        while let Some(Open { level, end: Some(end), .. }) = self.open.last().copied() {
            if self.offset < end {
                break;
            }
            if self.offset > end {
                return Err(self.malformed("an element reaches beyond the end of its sequence or item"));
            }
            self.open.pop();
            self.expects_item = level == Level::Item;
        }
        Ok(())
    }

    fn item(&mut self) -> Result<(), GuardError> {
        let mut rest = self.data.get(self.offset..).unwrap_or_default();
        let header = self
            .decoder
            .decode_item_header(&mut rest)
            .map_err(|_| self.malformed("a sequence item or delimiter is expected"))?;
        self.offset += 8;
        match header {
            SequenceItemHeader::Item { len } => {
                let pixel_data = self.open.last().is_some_and(|open| open.pixel_data);
                let end = self.end_of(header.tag(), len)?;
                if pixel_data {
                    self.offset = end.ok_or_else(|| self.malformed("a pixel data fragment has undefined length"))?;
                } else {
                    self.open.push(Open { level: Level::Item, end, pixel_data });
                    self.expects_item = false;
                }
            }
            SequenceItemHeader::ItemDelimiter => {
                self.open.pop();
                self.expects_item = true;
                if self.open.is_empty() {
                    return Err(self.malformed("an item delimiter stands outside of a sequence"));
                }
            }
            SequenceItemHeader::SequenceDelimiter => {
                self.open.pop();
                self.expects_item = false;
            }
        }
        Ok(())
    }

    fn element(&mut self) -> Result<(), GuardError> {
        let mut rest = self.data.get(self.offset..).unwrap_or_default();
        let (header, header_bytes) =
            self.decoder.decode_header(&mut rest).map_err(|_| self.malformed("an element header is cut off"))?;
        self.offset += header_bytes;
        if header.tag == Tag(0xFFFE, 0xE00D) {
            if self.open.pop().is_some() {
                self.expects_item = true;
            }
            return Ok(());
        }
        if header.vr == VR::SQ || header.len.is_undefined() {
            return self.sequence(&header);
        }
        let end = self.end_of(header.tag, header.len)?.unwrap_or(self.offset);
        if is_multi_valued_text(header.vr) {
            self.text_bytes += (end - self.offset) as u64;
            if self.text_bytes > self.limits.max_text_bytes {
                return Err(GuardError::TooMuchText { limit_bytes: self.limits.max_text_bytes });
            }
        }
        self.offset = end;
        Ok(())
    }

    fn sequence(&mut self, header: &DataElementHeader) -> Result<(), GuardError> {
        let pixel_data = header.is_encapsulated_pixeldata();
        let end = self.end_of(header.tag, header.len)?;
        let depth = self.open.iter().filter(|open| open.level == Level::Sequence).count();
        if depth >= self.limits.max_sequence_depth {
            return Err(GuardError::TooDeep { limit: self.limits.max_sequence_depth, offset: self.offset });
        }
        self.open.push(Open { level: Level::Sequence, end, pixel_data });
        self.expects_item = true;
        Ok(())
    }

    /// Where a value that starts here ends; an error if that is beyond what encloses it.
    fn end_of(&self, tag: Tag, length: Length) -> Result<Option<usize>, GuardError> {
        let Some(length) = length.get() else { return Ok(None) };
        let enclosing_end = self.open.iter().rev().find_map(|open| open.end).unwrap_or(self.data.len());
        let available = enclosing_end.saturating_sub(self.offset);
        if length as usize > available {
            return Err(GuardError::LengthBeyondEnd {
                tag,
                offset: self.offset,
                declared_bytes: u64::from(length),
                available_bytes: available as u64,
            });
        }
        Ok(Some(self.offset + length as usize))
    }

    fn malformed(&self, reason: &str) -> GuardError {
        GuardError::Malformed { offset: self.offset, reason: reason.to_owned() }
    }
}

const fn is_multi_valued_text(vr: VR) -> bool {
    matches!(
        vr,
        VR::AE
            | VR::AS
            | VR::CS
            | VR::DA
            | VR::DS
            | VR::DT
            | VR::IS
            | VR::LO
            | VR::PN
            | VR::SH
            | VR::TM
            | VR::UC
            | VR::UI
    )
}

#[cfg(test)]
mod tests {
    use dicom_core::VR;
    use dicom_object::InMemDicomObject;
    use dicom_object::mem::InMemElement;
    use flate2::{Compression, write::DeflateEncoder};
    use std::io::Write;

    use super::*;
    use crate::imaging::testing::{part10, part10_as, radiograph, set_fragment, text};

    /// A Part 10 file with these data-set bytes.
    fn file_with(data_set: &[u8], transfer_syntax_uid: &str) -> Vec<u8> {
        let mut file = vec![0; PREAMBLE_BYTES];
        file.extend(MAGIC);
        let mut uid = transfer_syntax_uid.as_bytes().to_vec();
        if uid.len() % 2 == 1 {
            uid.push(0);
        }
        file.extend([0x02, 0x00, 0x00, 0x00, b'U', b'L', 4, 0]);
        file.extend((8 + uid.len() as u32).to_le_bytes());
        file.extend([0x02, 0x00, 0x10, 0x00, b'U', b'I']);
        file.extend((uid.len() as u16).to_le_bytes());
        file.extend(uid);
        file.extend(data_set);
        file
    }

    fn check(data_set: &[u8], transfer_syntax_uid: &str) -> Result<(), GuardError> {
        check_part10(&file_with(data_set, transfer_syntax_uid), &GuardLimits::default())
    }

    /// `depth` sequences of undefined length inside each other, never closed.
    fn nested_explicit(depth: usize) -> Vec<u8> {
        let level = [
            0x08, 0x00, 0x40, 0x11, b'S', b'Q', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, // a sequence of undefined length
            0xFE, 0xFF, 0x00, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF, // an item of undefined length
        ];
        level.repeat(depth)
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let explicit = nested_explicit(100_000);
        for uid in [uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::JPEG2000_LOSSLESS] {
            assert!(matches!(check(&explicit, uid), Err(GuardError::TooDeep { limit: 64, .. })), "{uid}");
        }
        let implicit_level =
            [0x08, 0x00, 0x40, 0x11, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0x00, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF];
        let implicit = implicit_level.repeat(100_000);
        assert!(matches!(check(&implicit, uids::IMPLICIT_VR_LITTLE_ENDIAN), Err(GuardError::TooDeep { .. })));
        assert!(read_object(&file_with(&explicit, uids::EXPLICIT_VR_LITTLE_ENDIAN)).is_err());
    }

    #[test]
    fn deep_nesting_inside_deflate_is_found() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&nested_explicit(100_000)).unwrap();
        let deflated = encoder.finish().unwrap();
        let checked = check(&deflated, uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN);
        assert!(matches!(checked, Err(GuardError::TooDeep { .. })));
    }

    #[test]
    fn a_deflate_bomb_is_stopped_at_the_limit() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 4 << 20]).unwrap();
        let file = file_with(&encoder.finish().unwrap(), uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN);
        let limits = GuardLimits { max_inflated_bytes: 1 << 20, ..GuardLimits::default() };
        assert!(matches!(check_part10(&file, &limits), Err(GuardError::Deflate(_))));
        let garbage = file_with(&[0xFF; 64], uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN);
        assert!(matches!(check_part10(&garbage, &limits), Err(GuardError::Deflate(_))));
    }

    #[test]
    fn a_length_beyond_the_end_is_named() {
        let four_gigabytes = [0xE0, 0x7F, 0x10, 0x00, b'O', b'W', 0, 0, 0xFC, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4];
        assert_eq!(
            check(&four_gigabytes, uids::EXPLICIT_VR_LITTLE_ENDIAN),
            Err(GuardError::LengthBeyondEnd {
                tag: tags::PIXEL_DATA,
                offset: 12,
                declared_bytes: 0xFFFF_FFFC,
                available_bytes: 4,
            })
        );
        // A value that reaches beyond its item, although the file goes on.
        let beyond_item = [
            0x08, 0x00, 0x40, 0x11, b'S', b'Q', 0, 0, 16, 0, 0, 0, // sequence of 16 bytes
            0xFE, 0xFF, 0x00, 0xE0, 8, 0, 0, 0, // item of 8 bytes
            0x08, 0x00, 0x60, 0x00, b'C', b'S', 4, 0, b'D', b'X', b' ', b' ', // an element of 12
        ];
        let checked = check(&beyond_item, uids::EXPLICIT_VR_LITTLE_ENDIAN);
        assert!(matches!(checked, Err(GuardError::LengthBeyondEnd { available_bytes: 0, .. })), "{checked:?}");
    }

    #[test]
    fn counts_of_elements_and_text_are_limited() {
        let empty_element = [0x09, 0x00, 0x10, 0x00, b'L', b'O', 0, 0];
        let limits = GuardLimits { max_elements: 10, max_text_bytes: 8, ..GuardLimits::default() };
        let many = file_with(&empty_element.repeat(11), uids::EXPLICIT_VR_LITTLE_ENDIAN);
        assert_eq!(check_part10(&many, &limits), Err(GuardError::TooManyElements { limit: 10 }));
        let long = [&[0x09, 0x00, 0x10, 0x00, b'L', b'O', 10, 0][..], &[b'\\'; 10]].concat();
        let long = file_with(&long, uids::EXPLICIT_VR_LITTLE_ENDIAN);
        assert_eq!(check_part10(&long, &limits), Err(GuardError::TooMuchText { limit_bytes: 8 }));
    }

    #[test]
    fn what_is_not_a_part_10_file_is_refused() {
        assert_eq!(check_part10(b"", &GuardLimits::default()), Err(GuardError::NotPart10));
        assert_eq!(check_part10(&[0; 200], &GuardLimits::default()), Err(GuardError::NotPart10));
        let no_meta = [&[0; PREAMBLE_BYTES][..], MAGIC].concat();
        assert!(matches!(check_part10(&no_meta, &GuardLimits::default()), Err(GuardError::FileMeta { .. })));
        let unknown = file_with(&[], "1.2.3.4.5");
        assert_eq!(
            check_part10(&unknown, &GuardLimits::default()),
            Err(GuardError::UnknownTransferSyntax("1.2.3.4.5".to_owned()))
        );
    }

    /// Every prefix and many corruptions of a real object: an error or an object, never a panic.
    #[test]
    fn damaged_files_never_panic() {
        let mut object = radiograph(2, 2, &[1, 2, 3, 4]);
        let item = InMemDicomObject::from_element_iter([text(tags::CODE_VALUE, VR::SH, "399348003")]);
        object.put(InMemElement::new(
            tags::VIEW_CODE_SEQUENCE,
            VR::SQ,
            dicom_core::value::DataSetSequence::from(vec![item]),
        ));
        let native = part10(object.clone());
        set_fragment(&mut object, vec![0xFF; 10]);
        let encapsulated = part10_as(object, uids::JPEG2000_LOSSLESS);
        for file in [native, encapsulated] {
            assert!(read_object(&file).is_ok());
            for end in 0..file.len() {
                let _ = read_object(&file[..end]);
            }
            for position in PREAMBLE_BYTES..file.len() {
                for value in [0x00, 0x7F, 0xFE, 0xFF] {
                    let mut damaged = file.clone();
                    damaged[position] = value;
                    let _ = read_object(&damaged);
                }
            }
        }
    }

    #[test]
    fn sound_objects_pass_in_every_encoding() {
        let object = radiograph(2, 2, &[1, 2, 3, 4]);
        for uid in [
            uids::IMPLICIT_VR_LITTLE_ENDIAN,
            uids::EXPLICIT_VR_LITTLE_ENDIAN,
            "1.2.840.10008.1.2.2", // Explicit VR Big Endian, retired
            uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        ] {
            let read = read_object(&part10_as(object.clone(), uid));
            assert_eq!(read.unwrap().element(tags::ROWS).unwrap().to_int::<u16>().unwrap(), 2, "{uid}");
        }
    }
}
