//! The header of a source image, kept as bytes.

use std::{collections::BTreeMap, io::Read};

use dicom_core::{
    DataElement, PrimitiveValue, Tag, VR,
    header::{HasLength, Header},
    value::DataSetSequence,
};
use dicom_dictionary_std::tags;
use dicom_encoding::{Codec, Endianness, TransferSyntaxIndex, transfer_syntax::TransferSyntax};
use dicom_object::{FileMetaTable, InMemDicomObject};
use dicom_parser::{
    DataSetReader,
    dataset::{
        DataToken,
        read::{DataSetReaderOptions, ValueReadStrategy},
    },
};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use crate::types::{ObjectHeader, Uid, UidError};

/// An element of the data sets that this room builds.
pub(super) type Element = DataElement<InMemDicomObject>;

/// Nothing that is copied or read comes after this group; reading stops there, well before the pixel data.
const LAST_GROUP: u16 = 0x0040;

/// The largest single value that reading a compressed (deflated) header may allocate.
const MAX_INFLATED_VALUE_BYTES: usize = 64 << 20;

/// What results copy byte for byte from a source image, and the few values that rendering reads.
///
/// Text is never decoded: dicom-rs knows only the first value of Specific Character Set and splits values at
/// byte 5CH before it decodes them, which destroys GB18030 and ISO 2022 names. So every value is kept as the
/// bytes that the modality wrote and goes out as those bytes, together with the modality's own (0008,0005).
#[derive(Clone, PartialEq)]
pub struct SourceHeader {
    sop_instance_uid: Uid,
    study_instance_uid: Uid,
    transfer_syntax_uid: String,
    elements: BTreeMap<Tag, Element>,
}

/// Why the header of a source image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceHeaderError {
    /// Not a DICOM file.
    #[error("the source is not a DICOM file: {0}; pass the whole Part 10 file")]
    NotPart10(String),
    /// The transfer syntax is unknown here.
    #[error("the source is in transfer syntax {0}, which cannot be read; exclude it from the analysis")]
    TransferSyntax(String),
    /// The data set is damaged.
    #[error("the data set of the source is damaged: {0}; ask the sender to send it again")]
    Damaged(String),
    /// An attribute without which there is no result.
    #[error("attribute {tag} of the source is unusable: {source}; ask the sender to correct the image")]
    Uid {
        /// The attribute.
        tag: Tag,
        /// What is wrong with it.
        source: UidError,
    },
}

impl std::fmt::Debug for SourceHeader {
    /// Names the image only: the rest is patient data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceHeader").field("sop_instance_uid", &self.sop_instance_uid).finish_non_exhaustive()
    }
}

impl SourceHeader {
    /// Reads the header of a DICOM file, up to the end of group 0040H; the rest of the file may be missing.
    ///
    /// The caller has checked the nesting depth of the data set: a sequence that is nested thousands deep
    /// overflows the stack when it is dropped.
    pub fn from_part10(bytes: &[u8]) -> Result<Self, SourceHeaderError> {
        let not_part10 = |reason: &dyn std::fmt::Display| SourceHeaderError::NotPart10(reason.to_string());
        let mut data_set = bytes.get(128..).ok_or_else(|| not_part10(&"it is shorter than 132 bytes"))?;
        let meta = FileMetaTable::from_reader(&mut data_set).map_err(|error| not_part10(&error))?;
        let transfer_syntax_uid = meta.transfer_syntax().to_owned();
        let transfer_syntax = TransferSyntaxRegistry
            .get(&transfer_syntax_uid)
            .ok_or_else(|| SourceHeaderError::TransferSyntax(transfer_syntax_uid.clone()))?;
        Self::from_data_set(data_set, transfer_syntax)
    }

    /// The same from a data set without Part 10 header.
    pub fn from_data_set(data_set: &[u8], transfer_syntax: &TransferSyntax) -> Result<Self, SourceHeaderError> {
        let (reader, max_value_bytes): (Box<dyn Read + '_>, usize) = match transfer_syntax.codec() {
            Codec::Dataset(Some(adapter)) => {
                (adapter.adapt_reader(Box::new(std::io::Cursor::new(data_set.to_vec()))), MAX_INFLATED_VALUE_BYTES)
            }
            Codec::Dataset(None) => {
                return Err(SourceHeaderError::TransferSyntax(transfer_syntax.uid().to_owned()));
            }
            Codec::None | Codec::EncapsulatedPixelData(..) => (Box::new(data_set), data_set.len()),
        };
        let elements = read_elements(reader, transfer_syntax, max_value_bytes)?;
        let uid = |tag: Tag| {
            let text = elements.get(&tag).and_then(ascii).unwrap_or_default();
            Uid::new(&text).map_err(|source| SourceHeaderError::Uid { tag, source })
        };
        Ok(Self {
            sop_instance_uid: uid(tags::SOP_INSTANCE_UID)?,
            study_instance_uid: uid(tags::STUDY_INSTANCE_UID)?,
            transfer_syntax_uid: transfer_syntax.uid().to_owned(),
            elements,
        })
    }

    /// What the archive could read of an object whose data set is damaged or nested too deep to be read here: enough
    /// for a report that says so. Texts go out as UTF-8.
    #[must_use]
    pub fn from_archive(header: &ObjectHeader, transfer_syntax_uid: &Uid) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let elements = [
            (tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192".to_owned()),
            (tags::SOP_CLASS_UID, VR::UI, header.sop_class_uid.to_string()),
            (tags::SOP_INSTANCE_UID, VR::UI, header.sop_instance_uid.to_string()),
            (tags::STUDY_DATE, VR::DA, text(&header.study_date)),
            (tags::STUDY_TIME, VR::TM, text(&header.study_time)),
            (tags::ACCESSION_NUMBER, VR::SH, text(&header.accession_number)),
            (tags::MODALITY, VR::CS, text(&header.modality)),
            (tags::STUDY_DESCRIPTION, VR::LO, text(&header.study_description)),
            (tags::PATIENT_NAME, VR::PN, text(&header.patient_name)),
            (tags::PATIENT_ID, VR::LO, text(&header.patient_id)),
            (tags::PATIENT_BIRTH_DATE, VR::DA, text(&header.patient_birth_date)),
            (tags::PATIENT_SEX, VR::CS, text(&header.patient_sex)),
            (tags::STUDY_INSTANCE_UID, VR::UI, header.study_instance_uid.to_string()),
            (tags::SERIES_INSTANCE_UID, VR::UI, header.series_instance_uid.to_string()),
        ];
        let element = |(tag, vr, text): (Tag, VR, String)| {
            let value = little_endian(PrimitiveValue::U8(text.into_bytes().into()), vr, false);
            (tag, DataElement::new(tag, vr, value))
        };
        Self {
            sop_instance_uid: header.sop_instance_uid.clone(),
            study_instance_uid: header.study_instance_uid.clone(),
            transfer_syntax_uid: transfer_syntax_uid.to_string(),
            elements: elements.into_iter().map(element).collect(),
        }
    }

    /// (0008,0018)
    #[must_use]
    pub fn sop_instance_uid(&self) -> &Uid {
        &self.sop_instance_uid
    }

    /// (0020,000D)
    #[must_use]
    pub fn study_instance_uid(&self) -> &Uid {
        &self.study_instance_uid
    }

    /// The transfer syntax the image arrived in.
    pub(super) fn transfer_syntax_uid(&self) -> &str {
        &self.transfer_syntax_uid
    }

    /// An element as the modality wrote it.
    pub(super) fn element(&self, tag: Tag) -> Option<&Element> {
        self.elements.get(&tag)
    }

    /// The value of a text element whose character set does not matter (CS, DA, TM, DS, IS, UI …), trimmed;
    /// `None` when it is absent or empty.
    pub(super) fn ascii(&self, tag: Tag) -> Option<String> {
        self.elements.get(&tag).and_then(ascii)
    }

    /// An unsigned 16-bit value.
    pub(super) fn unsigned_16(&self, tag: Tag) -> Option<u16> {
        match self.elements.get(&tag)?.value().primitive()? {
            PrimitiveValue::U8(bytes) => Some(u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?])),
            _ => None,
        }
    }

    /// The items of a sequence; empty when it is absent.
    pub(super) fn items(&self, tag: Tag) -> &[InMemDicomObject] {
        self.elements.get(&tag).and_then(|element| element.value().items()).unwrap_or_default()
    }

    /// Specific Character Set as written; `None` when it is absent or empty.
    pub(super) fn character_set(&self) -> Option<String> {
        self.ascii(tags::SPECIFIC_CHARACTER_SET)
    }
}

/// The trimmed text of an element, its bytes taken as ISO 8859-1; `None` when there is none.
pub(super) fn ascii(element: &Element) -> Option<String> {
    let PrimitiveValue::U8(bytes) = element.value().primitive()? else { return None };
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let trimmed = text.trim_matches(['\0', ' ']);
    (!trimmed.is_empty()).then(|| trimmed.to_owned())
}

/// The top-level elements up to the last group of interest, all values as little-endian bytes.
fn read_elements(
    reader: impl Read,
    transfer_syntax: &TransferSyntax,
    max_value_bytes: usize,
) -> Result<BTreeMap<Tag, Element>, SourceHeaderError> {
    let damaged = |reason: &dyn std::fmt::Display| SourceHeaderError::Damaged(reason.to_string());
    let big_endian = transfer_syntax.endianness() == Endianness::Big;
    let options = DataSetReaderOptions::default().value_read(ValueReadStrategy::Raw);
    let tokens = DataSetReader::new_with_ts_options(reader, transfer_syntax, options).map_err(|e| damaged(&e))?;

    let mut elements = BTreeMap::new();
    // The open sequences, outermost first: the tag, the items so far, and the item being read.
    let mut open: Vec<(Tag, Vec<InMemDicomObject>, Option<InMemDicomObject>)> = Vec::new();
    let mut header = None;
    // Compressed pixel data within a sequence, as in an icon, is skipped.
    let mut in_pixel_sequence = false;
    for token in tokens {
        let token = token.map_err(|e| damaged(&e))?;
        if in_pixel_sequence {
            in_pixel_sequence = !matches!(token, DataToken::SequenceEnd);
            continue;
        }
        let finished = match token {
            DataToken::ElementHeader(next) => {
                if open.is_empty() && next.tag().group() > LAST_GROUP {
                    break;
                }
                let declared = next.length().get().unwrap_or(u32::MAX) as usize;
                if declared > max_value_bytes {
                    let tag = next.tag();
                    return Err(damaged(&format_args!(
                        "attribute {tag} declares {declared} bytes, more than there are"
                    )));
                }
                header = Some(next);
                continue;
            }
            DataToken::PrimitiveValue(value) => {
                let Some(header) = header.take() else { return Err(damaged(&"a value has no element header")) };
                DataElement::new(header.tag(), header.vr(), little_endian(value, header.vr(), big_endian))
            }
            DataToken::SequenceStart { tag, .. } => {
                if open.is_empty() && tag.group() > LAST_GROUP {
                    break;
                }
                open.push((tag, Vec::new(), None));
                continue;
            }
            DataToken::ItemStart { .. } => {
                if let Some((_, _, item)) = open.last_mut() {
                    *item = Some(InMemDicomObject::new_empty());
                }
                continue;
            }
            DataToken::ItemEnd => {
                if let Some((_, items, item)) = open.last_mut() {
                    items.extend(item.take());
                }
                continue;
            }
            DataToken::SequenceEnd => {
                let Some((tag, items, _)) = open.pop() else {
                    return Err(damaged(&"a sequence ends that has not begun"));
                };
                DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
            }
            DataToken::PixelSequenceStart if open.is_empty() => break,
            DataToken::PixelSequenceStart | DataToken::ItemValue(_) | DataToken::OffsetTable(_) => {
                in_pixel_sequence = true;
                continue;
            }
        };
        match open.last_mut() {
            Some((_, _, Some(item))) => {
                item.put(finished);
            }
            Some((tag, _, None)) => {
                let tag = *tag;
                return Err(damaged(&format_args!("sequence {tag} has an element outside its items")));
            }
            None => {
                elements.insert(finished.tag(), finished);
            }
        }
    }
    Ok(elements)
}

/// The value with its words in little-endian order and an even length.
fn little_endian(value: PrimitiveValue, vr: VR, big_endian: bool) -> PrimitiveValue {
    let PrimitiveValue::U8(mut bytes) = value else { return value };
    let word_bytes = match vr {
        VR::US | VR::SS | VR::OW | VR::AT => 2,
        VR::UL | VR::SL | VR::FL | VR::OL | VR::OF => 4,
        VR::FD | VR::OD | VR::OV | VR::SV | VR::UV => 8,
        _ => 1,
    };
    if big_endian && word_bytes > 1 {
        bytes.chunks_exact_mut(word_bytes).for_each(<[u8]>::reverse);
    }
    if bytes.len() % 2 == 1 {
        bytes.push(if matches!(vr, VR::UI | VR::OB | VR::UN) { 0 } else { b' ' });
    }
    PrimitiveValue::U8(bytes)
}
