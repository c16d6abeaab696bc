//! Building data sets and writing them as Part 10 files.

use dicom_core::{DataElement, PrimitiveValue, Tag, VR, header::Header, value::DataSetSequence, value::Value};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

use super::{
    FileMetaIds, RenderedObject, ReportError, ResultKind,
    codes::Concept,
    source::Element,
    text::{TextEncoding, ascii, multi_line, single_line},
};
use crate::types::{Sha256Digest, Uid};

/// Data sets under construction: generated values are texts or numbers, copied values are bytes.
/// [`encode_texts`] turns the texts into bytes at the end, in the one character set of the object.
pub(super) trait Build {
    fn put_text(&mut self, tag: Tag, vr: VR, text: &str);
    fn put_uid(&mut self, tag: Tag, uid: &Uid);
    fn put_u16(&mut self, tag: Tag, value: u16);
    fn put_items(&mut self, tag: Tag, items: Vec<InMemDicomObject>);
    fn put_code(&mut self, tag: Tag, concept: Concept);
    fn copy(&mut self, element: Option<&Element>);
    fn copy_or_empty(&mut self, tag: Tag, vr: VR, element: Option<&Element>);
}

impl Build for InMemDicomObject {
    fn put_text(&mut self, tag: Tag, vr: VR, text: &str) {
        self.put(DataElement::new(tag, vr, PrimitiveValue::from(text)));
    }

    fn put_uid(&mut self, tag: Tag, uid: &Uid) {
        self.put_text(tag, VR::UI, uid.as_str());
    }

    fn put_u16(&mut self, tag: Tag, value: u16) {
        self.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }

    fn put_items(&mut self, tag: Tag, items: Vec<InMemDicomObject>) {
        self.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items)));
    }

    fn put_code(&mut self, tag: Tag, concept: Concept) {
        self.put_items(tag, vec![code_item(concept)]);
    }

    /// Copies the element as it is, if there is one.
    fn copy(&mut self, element: Option<&Element>) {
        if let Some(element) = element {
            self.put(element.clone());
        }
    }

    /// Copies a type 2 attribute: empty when the source does not have it.
    fn copy_or_empty(&mut self, tag: Tag, vr: VR, element: Option<&Element>) {
        self.put(element.cloned().unwrap_or_else(|| DataElement::empty(tag, vr)));
    }
}

/// An item of a code sequence (PS3.3 section 8.8).
pub(super) fn code_item(concept: Concept) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    if concept.value.chars().count() > 16 {
        item.put_text(tags::LONG_CODE_VALUE, VR::UC, concept.value);
    } else {
        item.put_text(tags::CODE_VALUE, VR::SH, concept.value);
    }
    item.put_text(tags::CODING_SCHEME_DESIGNATOR, VR::SH, concept.scheme);
    item.put_text(tags::CODE_MEANING, VR::LO, concept.meaning);
    item
}

/// The Coding Scheme Designators of all generated codes, in alphabetical order.
pub(super) fn schemes_used(data_set: &InMemDicomObject) -> Vec<String> {
    fn collect(data_set: &InMemDicomObject, schemes: &mut std::collections::BTreeSet<String>) {
        for element in data_set {
            if let Some(items) = element.value().items() {
                for item in items {
                    collect(item, schemes);
                }
            } else if element.tag() == tags::CODING_SCHEME_DESIGNATOR
                && let Some(PrimitiveValue::Str(scheme)) = element.value().primitive()
            {
                schemes.insert(scheme.clone());
            }
        }
    }
    let mut schemes = std::collections::BTreeSet::new();
    collect(data_set, &mut schemes);
    schemes.into_iter().collect()
}

/// The generated texts.
fn generated_texts<'a>(data_set: &'a InMemDicomObject, texts: &mut Vec<&'a str>) {
    for element in data_set {
        match element.value() {
            Value::Sequence(sequence) => sequence.items().iter().for_each(|item| generated_texts(item, texts)),
            Value::Primitive(PrimitiveValue::Str(text)) => texts.push(text),
            _ => {}
        }
    }
}

/// Replaces every generated text by its bytes, cut to what its value representation allows, and copied ones where the
/// object is in another character set than they. `item_set` is the character set of the item, where it has its own.
fn encode_texts(data_set: InMemDicomObject, encoding: &TextEncoding, item_set: Option<&[u8]>) -> InMemDicomObject {
    InMemDicomObject::from_element_iter(data_set.into_iter().map(|element| {
        let (header, value) = element.into_parts();
        let value = match value {
            Value::Sequence(sequence) => {
                let items = sequence.into_items().into_iter().map(|item| encode_item(item, encoding, item_set));
                Value::from(DataSetSequence::from(items.collect::<Vec<_>>()))
            }
            Value::Primitive(PrimitiveValue::U8(bytes)) if header.vr() != VR::DS && header.vr() != VR::IS => {
                match encoding.copied(&bytes, header.vr(), item_set) {
                    Some(decoded) => Value::from(padded(decoded, header.vr())),
                    None => Value::from(PrimitiveValue::U8(bytes)),
                }
            }
            // The writer takes the bytes of a DS or IS for numbers; as text they come out as they are.
            Value::Primitive(PrimitiveValue::U8(bytes)) if matches!(header.vr(), VR::DS | VR::IS) => {
                Value::from(PrimitiveValue::Str(bytes.iter().map(|byte| char::from(*byte)).collect()))
            }
            Value::Primitive(PrimitiveValue::Str(text)) if !matches!(header.vr(), VR::DS | VR::IS) => {
                Value::from(text_bytes(&text, header.vr(), encoding))
            }
            other => other,
        };
        DataElement::new(header.tag(), header.vr(), value)
    }))
}

/// An item of a sequence: its own character set goes where its texts no longer are in it.
fn encode_item(mut item: InMemDicomObject, encoding: &TextEncoding, item_set: Option<&[u8]>) -> InMemDicomObject {
    if encoding.keeps_copies() {
        return encode_texts(item, encoding, item_set);
    }
    match item.take_element(tags::SPECIFIC_CHARACTER_SET) {
        Ok(element) => match element.value().primitive() {
            Some(PrimitiveValue::U8(own)) => encode_texts(item, encoding, Some(own.as_slice())),
            _ => encode_texts(item, encoding, item_set),
        },
        Err(_) => encode_texts(item, encoding, item_set),
    }
}

fn text_bytes(text: &str, vr: VR, encoding: &TextEncoding) -> PrimitiveValue {
    let bytes = match vr {
        VR::LO => encoding.encode(&single_line(text, 64)),
        VR::SH => encoding.encode(&single_line(text, 16)),
        VR::UC => encoding.encode(&single_line(text, usize::MAX)),
        VR::ST => encoding.encode(&multi_line(text, 1024)),
        VR::LT => encoding.encode(&multi_line(text, 10240)),
        VR::UT => encoding.encode(&multi_line(text, usize::MAX)),
        _ => text.as_bytes().to_vec(),
    };
    padded(bytes, vr)
}

/// The bytes with an even length.
fn padded(mut bytes: Vec<u8>, vr: VR) -> PrimitiveValue {
    if bytes.len() % 2 == 1 {
        bytes.push(if vr == VR::UI { 0 } else { b' ' });
    }
    if bytes.is_empty() { PrimitiveValue::Empty } else { PrimitiveValue::U8(bytes.into()) }
}

/// Finishes an object in Explicit VR Little Endian.
pub(super) fn write(
    data_set: InMemDicomObject,
    encoding: &TextEncoding,
    ids: &FileMetaIds,
    kind: ResultKind,
    identity: Identity,
) -> Result<RenderedObject, ReportError> {
    write_as(data_set, encoding, ids, kind, identity, uids::EXPLICIT_VR_LITTLE_ENDIAN)
}

/// Finishes an object: texts in its character set or, where that lacks a character of them, in another one; file meta
/// information in front. The pixel data are in the transfer syntax already.
pub(super) fn write_as(
    mut data_set: InMemDicomObject,
    encoding: &TextEncoding,
    ids: &FileMetaIds,
    kind: ResultKind,
    identity: Identity,
    transfer_syntax_uid: &str,
) -> Result<RenderedObject, ReportError> {
    let mut generated = Vec::new();
    generated_texts(&data_set, &mut generated);
    let encoding = encoding.for_texts(&generated);
    data_set.copy(encoding.character_set.as_ref());
    // All texts are bytes from here on, so the writer's own idea of character sets never applies.
    let data_set = encode_texts(data_set, &encoding, None);
    let refused =
        |what: &'static str, reason: &dyn std::fmt::Display| ReportError::Encode { what, reason: reason.to_string() };
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(identity.sop_class_uid.as_str())
        .media_storage_sop_instance_uid(identity.sop_instance_uid.as_str())
        .transfer_syntax(transfer_syntax_uid)
        .implementation_class_uid(ids.implementation_class_uid.as_str())
        .implementation_version_name(single_line(&ascii(&ids.implementation_version_name), 16))
        .build()
        .map_err(|error| refused("file meta information", &error))?;
    let transfer_syntax_uid = Uid::new(transfer_syntax_uid).map_err(|error| refused("transfer syntax UID", &error))?;
    let mut part10 = Vec::new();
    data_set.with_exact_meta(meta).write_all(&mut part10).map_err(|error| refused("data set", &error))?;
    let sha256 = Sha256Digest::of(&part10);
    let Identity { sop_class_uid, sop_instance_uid, series_instance_uid } = identity;
    Ok(RenderedObject {
        sop_class_uid,
        sop_instance_uid,
        series_instance_uid,
        transfer_syntax_uid,
        part10,
        sha256,
        kind,
    })
}

/// The three UIDs of a result.
#[derive(Clone)]
#[allow(clippy::struct_field_names, reason = "DICOM's own names")]
pub(super) struct Identity {
    pub(super) sop_class_uid: Uid,
    pub(super) sop_instance_uid: Uid,
    pub(super) series_instance_uid: Uid,
}
