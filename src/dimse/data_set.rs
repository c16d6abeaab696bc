//! Small data sets that travel in messages: identifiers of C-FIND, the lists of Storage Commitment.
//!
//! dicom-object reads by recursion and believes lengths, so what peers send is walked here in a loop over bytes that
//! are already there: [`walk`] allocates nothing but the path it is on. What we send ourselves is encoded by
//! dicom-object. Pure.

use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::entries::{EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN};

/// How deep sequences may nest; real identifiers and lists have one or two.
const MAX_DEPTH: usize = 16;
const UNDEFINED_LENGTH: u32 = 0xFFFF_FFFF;
/// Sequences that we look into. Implicit VR does not say what is one, so others of defined length are skipped there.
const SEQUENCES: [Tag; 2] = [tags::REFERENCED_SOP_SEQUENCE, tags::FAILED_SOP_SEQUENCE];
const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);

/// How the data set of a message is encoded, as the presentation context says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    ImplicitLittleEndian,
    ExplicitLittleEndian,
}

impl Encoding {
    /// What we propose and accept for messages that are not images, the preferred one first.
    pub(crate) const TRANSFER_SYNTAXES: [&str; 2] = [uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN];

    /// `None` for any other than [`Encoding::TRANSFER_SYNTAXES`].
    pub(crate) fn of(transfer_syntax_uid: &str) -> Option<Self> {
        match transfer_syntax_uid {
            uids::IMPLICIT_VR_LITTLE_ENDIAN => Some(Self::ImplicitLittleEndian),
            uids::EXPLICIT_VR_LITTLE_ENDIAN => Some(Self::ExplicitLittleEndian),
            _ => None,
        }
    }

    /// Encodes what we have made ourselves.
    pub(crate) fn encode(self, elements: Vec<DataElement<InMemDicomObject>>) -> Result<Vec<u8>, String> {
        let syntax = match self {
            Self::ImplicitLittleEndian => IMPLICIT_VR_LITTLE_ENDIAN.erased(),
            Self::ExplicitLittleEndian => EXPLICIT_VR_LITTLE_ENDIAN.erased(),
        };
        let mut bytes = Vec::new();
        InMemDicomObject::from_element_iter(elements)
            .write_dataset_with_ts(&mut bytes, &syntax)
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// Why bytes are not a data set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the data set is malformed at byte {at}: {problem}")]
pub(crate) struct DataSetError {
    at: usize,
    problem: &'static str,
}

/// What [`walk`] comes across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// An item of the innermost sequence begins.
    Item,
    /// An element that is no sequence, with its value as it stands there.
    Value(Tag, &'a [u8]),
}

/// A sequence or an item that is open.
struct Open {
    is_item: bool,
    /// Where it ends; `None` when a delimiter says so.
    end: Option<usize>,
    encoding: Encoding,
}

/// Walks over a data set from its beginning to its end. `visit` sees every part with the sequences around it, the
/// outermost first.
pub(crate) fn walk<'a>(
    bytes: &'a [u8],
    encoding: Encoding,
    mut visit: impl FnMut(&[Tag], Part<'a>),
) -> Result<(), DataSetError> {
    let mut open: Vec<Open> = Vec::new();
    let mut path: Vec<Tag> = Vec::new();
    let mut at = 0;
    loop {
        while open.last().is_some_and(|innermost| innermost.end == Some(at)) {
            if open.pop().is_some_and(|closed| !closed.is_item) {
                path.pop();
            }
        }
        let error = |problem| DataSetError { at, problem };
        let limit = open.iter().rev().find_map(|outer| outer.end).unwrap_or(bytes.len());
        if at == bytes.len() {
            return if open.is_empty() { Ok(()) } else { Err(error("it ends inside a sequence")) };
        }
        let innermost = open.last();
        let encoding = innermost.map_or(encoding, |innermost| innermost.encoding);
        let here = bytes.get(at..limit).unwrap_or_default();
        let header = Header::read(here, encoding).map_err(error)?;
        let start = at + header.n_bytes;
        let end = match header.length {
            UNDEFINED_LENGTH => None,
            length => Some(start + length as usize),
        };
        if end.is_some_and(|end| end > limit) {
            return Err(error("a value is longer than what holds it"));
        }
        let in_item = innermost.is_none_or(|innermost| innermost.is_item);
        at = match header.tag {
            ITEM if in_item => return Err(error("an item stands outside of a sequence")),
            ITEM => {
                visit(&path, Part::Item);
                open.push(Open { is_item: true, end, encoding });
                start
            }
            ITEM_END | SEQUENCE_END => {
                let expected = innermost
                    .is_some_and(|innermost| innermost.end.is_none() && innermost.is_item == (header.tag == ITEM_END));
                if !expected || header.length != 0 {
                    return Err(error("a delimiter stands where none belongs"));
                }
                if open.pop().is_some_and(|closed| !closed.is_item) {
                    path.pop();
                }
                start
            }
            _ if !in_item => return Err(error("an element stands between the items of a sequence")),
            tag if header.is_sequence(encoding) => {
                // An unknown value of undefined length is Implicit VR inside (PS3.5 section 6.2.2, note 4).
                let inside = if header.vr == Some(*b"UN") { Encoding::ImplicitLittleEndian } else { encoding };
                open.push(Open { is_item: false, end, encoding: inside });
                path.push(tag);
                start
            }
            tag => {
                let end = end.unwrap_or(start);
                visit(&path, Part::Value(tag, bytes.get(start..end).unwrap_or_default()));
                end
            }
        };
        if open.len() > MAX_DEPTH {
            return Err(DataSetError { at, problem: "its sequences are nested too deep" });
        }
    }
}

/// Tag, VR (where there is one) and length of an element.
struct Header {
    tag: Tag,
    vr: Option<[u8; 2]>,
    length: u32,
    n_bytes: usize,
}

impl Header {
    fn read(bytes: &[u8], encoding: Encoding) -> Result<Self, &'static str> {
        const CUT_OFF: &str = "it ends inside the header of an element";
        let &[g0, g1, e0, e1, a, b, c, d] = bytes.first_chunk::<8>().ok_or(CUT_OFF)?;
        let tag = Tag(u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
        if tag.group() == 0xFFFE || encoding == Encoding::ImplicitLittleEndian {
            return Ok(Self { tag, vr: None, length: u32::from_le_bytes([a, b, c, d]), n_bytes: 8 });
        }
        let vr = [a, b];
        if !vr.iter().all(u8::is_ascii_uppercase) {
            return Err("an element has no value representation, as if it were Implicit VR");
        }
        let long_form = matches!(
            &vr,
            b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV"
        );
        if !long_form {
            return Ok(Self { tag, vr: Some(vr), length: u32::from(u16::from_le_bytes([c, d])), n_bytes: 8 });
        }
        let &[_, _, _, _, _, _, _, _, l0, l1, l2, l3] = bytes.first_chunk::<12>().ok_or(CUT_OFF)?;
        Ok(Self { tag, vr: Some(vr), length: u32::from_le_bytes([l0, l1, l2, l3]), n_bytes: 12 })
    }

    fn is_sequence(&self, encoding: Encoding) -> bool {
        self.length == UNDEFINED_LENGTH
            || self.vr == Some(*b"SQ")
            || (encoding == Encoding::ImplicitLittleEndian && SEQUENCES.contains(&self.tag))
    }
}

/// A text value without its padding, bytes beyond ASCII replaced: for UIDs, codes and numbers.
pub(crate) fn plain_text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_matches(['\0', ' ']).to_owned()
}

/// A UI element, for [`Encoding::encode`].
pub(crate) fn uid_element(tag: Tag, uid: &str) -> DataElement<InMemDicomObject> {
    DataElement::new(tag, VR::UI, dicom_core::PrimitiveValue::from(uid))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SQ: Tag = tags::REFERENCED_SOP_SEQUENCE;

    fn element(tag: Tag, value: &[u8]) -> Vec<u8> {
        [&tag.group().to_le_bytes()[..], &tag.element().to_le_bytes(), &(value.len() as u32).to_le_bytes(), value]
            .concat()
    }

    fn undefined(tag: Tag) -> Vec<u8> {
        [&tag.group().to_le_bytes()[..], &tag.element().to_le_bytes(), &[0xFF; 4]].concat()
    }

    fn parts(bytes: &[u8], encoding: Encoding) -> Result<Vec<(usize, String)>, DataSetError> {
        let mut parts = Vec::new();
        walk(bytes, encoding, |path, part| {
            parts.push((
                path.len(),
                match part {
                    Part::Item => "item".to_owned(),
                    Part::Value(tag, value) => format!("{tag} {}", plain_text(value)),
                },
            ));
        })?;
        Ok(parts)
    }

    #[test]
    fn defined_and_undefined_lengths_are_the_same_list() {
        let uid = element(tags::REFERENCED_SOP_INSTANCE_UID, b"1.2\0");
        let defined = element(SQ, &[element(ITEM, &uid), element(ITEM, &uid)].concat());
        let undefined = [
            undefined(SQ),
            undefined(ITEM),
            uid.clone(),
            element(ITEM_END, b""),
            element(ITEM, &uid),
            element(SEQUENCE_END, b""),
        ]
        .concat();
        let after = element(tags::STUDY_ID, b"X");
        let expected = vec![
            (1, "item".to_owned()),
            (1, "(0008,1155) 1.2".to_owned()),
            (1, "item".to_owned()),
            (1, "(0008,1155) 1.2".to_owned()),
            (0, "(0020,0010) X".to_owned()),
        ];
        for list in [defined, undefined] {
            let bytes = [list, after.clone()].concat();
            assert_eq!(parts(&bytes, Encoding::ImplicitLittleEndian).unwrap(), expected);
        }
    }

    #[test]
    fn what_we_encode_is_what_we_read() {
        for encoding in [Encoding::ImplicitLittleEndian, Encoding::ExplicitLittleEndian] {
            let item = InMemDicomObject::from_element_iter([uid_element(tags::REFERENCED_SOP_CLASS_UID, "1.2.3")]);
            let list = DataElement::new(SQ, VR::SQ, dicom_core::value::DataSetSequence::from(vec![item]));
            let bytes = encoding.encode(vec![uid_element(tags::TRANSACTION_UID, "1.9"), list]).unwrap();
            let expected =
                [(0, "(0008,1195) 1.9".to_owned()), (1, "item".to_owned()), (1, "(0008,1150) 1.2.3".to_owned())];
            assert_eq!(parts(&bytes, encoding).unwrap(), expected);
        }
    }

    #[rstest::rstest]
    #[case::cut_header(vec![8, 0, 5], "ends inside the header")]
    #[case::too_long(vec![8, 0, 5, 0, 0xFE, 0xFF, 0xFF, 0xFF], "longer than what holds it")]
    #[case::longer_than_its_item(
        element(SQ, &[&element(ITEM, b"")[..4], &12u32.to_le_bytes(), &[8, 0, 5, 0, 9, 0, 0, 0, 1, 1, 1, 1]].concat()),
        "longer than what holds it")]
    #[case::open_end(undefined(SQ), "ends inside a sequence")]
    #[case::stray_item(element(ITEM, b""), "outside of a sequence")]
    #[case::stray_delimiter(element(SEQUENCE_END, b""), "where none belongs")]
    #[case::item_delimiter_in_a_sequence([undefined(SQ), element(ITEM_END, b"")].concat(), "where none belongs")]
    #[case::element_between_items([undefined(SQ), element(SQ, b"")].concat(), "between the items")]
    #[case::deep([undefined(SQ), undefined(ITEM)].concat().repeat(100_000), "nested too deep")]
    fn malformed_data_sets_are_told(#[case] bytes: Vec<u8>, #[case] words: &str) {
        let error = parts(&bytes, Encoding::ImplicitLittleEndian).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn explicit_sequences_that_nobody_asked_for_are_walked_over() {
        let private = [&[9, 0, 1, 16, b'U', b'N', 0, 0][..], &[0xFF; 4]].concat();
        let bytes = [
            private,
            undefined(ITEM),
            element(Tag(9, 0x1002), b"AB"),
            element(ITEM_END, b""),
            element(SEQUENCE_END, b""),
            vec![0x20, 0, 0x10, 0, b'S', b'H', 1, 0, b'X'],
        ]
        .concat();
        let expected = [(1, "item".to_owned()), (1, "(0009,1002) AB".to_owned()), (0, "(0020,0010) X".to_owned())];
        assert_eq!(parts(&bytes, Encoding::ExplicitLittleEndian).unwrap(), expected);
        let implicit = element(tags::STUDY_ID, b"X");
        assert!(parts(&implicit, Encoding::ExplicitLittleEndian).unwrap_err().to_string().contains("Implicit VR"));
    }

    proptest! {
        #[test]
        fn walking_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), explicit: bool) {
            let encoding = if explicit { Encoding::ExplicitLittleEndian } else { Encoding::ImplicitLittleEndian };
            let _ = parts(&bytes, encoding);
        }

        #[test]
        fn walking_damaged_lists_never_panics(at in 0usize..60, byte: u8) {
            let uid = element(tags::REFERENCED_SOP_INSTANCE_UID, b"1.2\0");
            let mut bytes = [undefined(SQ), element(ITEM, &uid), element(SEQUENCE_END, b"")].concat();
            let n_bytes = bytes.len();
            bytes[at % n_bytes] = byte;
            let _ = parts(&bytes, Encoding::ImplicitLittleEndian);
        }
    }
}
