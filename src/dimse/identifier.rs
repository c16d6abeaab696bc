//! What C-FIND asks and what it finds (PS3.4 annex C.4.1.1.3): keys with values out, attributes as text in. Pure.

use std::collections::BTreeMap;

use dicom_core::{DataDictionary as _, DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};
use dicom_object::InMemDicomObject;

use super::data_set::{DataSetError, Encoding, Part, plain_text, walk};

/// Longest value of an identifier that is kept, in bytes; what is longer is no key of a query.
const MAX_VALUE_BYTES: usize = 10 * 1024;

/// What one match of a query stands for (PS3.4 section C.6.2.1, Study Root).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryLevel {
    /// One match for each study.
    Study,
    /// One match for each series; needs the Study Instance UID.
    Series,
    /// One match for each instance; needs the Study and the Series Instance UID.
    Image,
}

impl QueryLevel {
    const fn code(self) -> &'static str {
        match self {
            Self::Study => "STUDY",
            Self::Series => "SERIES",
            Self::Image => "IMAGE",
        }
    }
}

/// A query of the Study Root model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindQuery {
    level: QueryLevel,
    keys: BTreeMap<Tag, String>,
}

impl FindQuery {
    /// A query that matches everything at `level`.
    #[must_use]
    pub fn new(level: QueryLevel) -> Self {
        Self { level, keys: BTreeMap::new() }
    }

    /// Only matches whose attribute is `value`; `*` and `?` are wildcards except in UIDs (PS3.4 section C.2.2.2).
    #[must_use]
    pub fn matching(mut self, tag: Tag, value: &str) -> Self {
        self.keys.insert(tag, value.to_owned());
        self
    }

    /// The attribute is wanted in each match (universal matching).
    #[must_use]
    pub fn returning(self, tag: Tag) -> Self {
        self.matching(tag, "")
    }

    pub(crate) fn encode(&self, encoding: Encoding) -> Result<Vec<u8>, String> {
        let mut elements: Vec<DataElement<InMemDicomObject>> = self
            .keys
            .iter()
            .map(|(&tag, value)| {
                let vr = StandardDataDictionary.by_tag(tag).map_or(VR::UN, |entry| entry.vr.relaxed());
                DataElement::new(tag, vr, PrimitiveValue::from(value.as_str()))
            })
            .collect();
        let level = PrimitiveValue::from(self.level.code());
        elements.push(DataElement::new(tags::QUERY_RETRIEVE_LEVEL, VR::CS, level));
        if !self.keys.values().all(|value| value.is_ascii()) {
            let utf_8 = PrimitiveValue::from("ISO_IR 192");
            elements.push(DataElement::new(tags::SPECIFIC_CHARACTER_SET, VR::CS, utf_8));
        }
        encoding.encode(elements)
    }
}

/// One match: the attributes at the top level of the identifier, as text. Sequences are left out.
///
/// It may name a patient, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Identifier {
    values: BTreeMap<Tag, String>,
}

impl Identifier {
    pub(crate) fn decode(bytes: &[u8], encoding: Encoding) -> Result<Self, DataSetError> {
        let mut raw: BTreeMap<Tag, &[u8]> = BTreeMap::new();
        walk(bytes, encoding, |path, part| {
            if let Part::Value(tag, value) = part
                && path.is_empty()
                && value.len() <= MAX_VALUE_BYTES
            {
                raw.insert(tag, value);
            }
        })?;
        let character_set = raw.get(&tags::SPECIFIC_CHARACTER_SET).map(|value| plain_text(value));
        let character_set = character_set
            .and_then(|codes| codes.split('\\').map(str::trim).find(|code| !code.is_empty()).map(str::to_owned))
            .and_then(|code| SpecificCharacterSet::from_code(&code));
        let text = |value: &[u8]| {
            let decoded = match &character_set {
                Some(character_set) => character_set.decode(value).ok(),
                None => std::str::from_utf8(value).ok().map(str::to_owned),
            };
            // Bytes that the declared set does not know are shown as Latin-1.
            let decoded = decoded.unwrap_or_else(|| value.iter().copied().map(char::from).collect());
            decoded.trim_matches(['\0', ' ']).to_owned()
        };
        Ok(Self { values: raw.into_iter().map(|(tag, value)| (tag, text(value))).collect() })
    }

    /// The value without padding; `None` when the attribute is absent or empty. Several values stay joined by `\`.
    pub fn text(&self, tag: Tag) -> Option<&str> {
        self.values.get(&tag).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// The value of an IS attribute that counts something.
    pub fn count(&self, tag: Tag) -> Option<u64> {
        self.text(tag)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_in_order_with_its_level() {
        let query = FindQuery::new(QueryLevel::Study)
            .returning(tags::NUMBER_OF_STUDY_RELATED_INSTANCES)
            .matching(tags::STUDY_INSTANCE_UID, "1.2.3");
        let bytes = query.encode(Encoding::ImplicitLittleEndian).unwrap();
        let expected = [
            &[8, 0, 0x52, 0, 6, 0, 0, 0][..],
            b"STUDY ",
            &[0x20, 0, 0x0D, 0, 6, 0, 0, 0],
            b"1.2.3\0",
            &[0x20, 0, 0x08, 0x12, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, expected);
        let explicit = query.encode(Encoding::ExplicitLittleEndian).unwrap();
        assert_eq!(&explicit[4..6], b"CS");
        assert!(explicit.ends_with(&[0x20, 0, 0x08, 0x12, b'I', b'S', 0, 0]));
    }

    #[test]
    fn names_travel_in_their_character_set() {
        let query = FindQuery::new(QueryLevel::Study).matching(tags::PATIENT_ID, "Ä-7");
        let bytes = query.encode(Encoding::ExplicitLittleEndian).unwrap();
        let identifier = Identifier::decode(&bytes, Encoding::ExplicitLittleEndian).unwrap();
        assert_eq!(identifier.text(tags::PATIENT_ID), Some("Ä-7"));
        assert_eq!(identifier.text(tags::SPECIFIC_CHARACTER_SET), Some("ISO_IR 192"));
        let cyrillic = [&[8, 0, 5, 0, 10, 0, 0, 0][..], b"ISO_IR 144", &[0x10, 0, 0x10, 0, 2, 0, 0, 0, 0xBB, 0x20]];
        let identifier = Identifier::decode(&cyrillic.concat(), Encoding::ImplicitLittleEndian).unwrap();
        assert_eq!(identifier.text(tags::PATIENT_NAME), Some("Л"));
    }

    #[test]
    fn counts_are_numbers_or_nothing() {
        for (value, expected) in [(&b"12"[..], Some(12)), (b" 7 ", Some(7)), (b"", None), (b"-1", None), (b"x1", None)]
        {
            let length = (value.len() as u32).to_le_bytes();
            let bytes = [&[0x20, 0, 0x08, 0x12][..], &length, value].concat();
            let identifier = Identifier::decode(&bytes, Encoding::ImplicitLittleEndian).unwrap();
            assert_eq!(identifier.count(tags::NUMBER_OF_STUDY_RELATED_INSTANCES), expected, "{value:?}");
        }
    }
}
