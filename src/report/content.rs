//! Content items of a Structured Report (PS3.3 section C.17.3).
//!
//! Restricted to what Enhanced SR allows: no by-reference relationships and no coordinates. Every item carries
//! a Concept Name, images too: viewers fail without it.

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::{
    codes::{self, Concept},
    dataset::{Build, Identity, code_item},
    source::Element,
    text::decimal_string,
    texts::Texts,
};
use crate::types::{SourceImage, Uid};

/// Relationship of an item to its parent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Relation {
    Contains,
    ConceptModifier,
    ObservationContext,
    AcquisitionContext,
    InferredFrom,
    HasProperties,
}
pub(super) use Relation::{
    AcquisitionContext, ConceptModifier, Contains, HasProperties, InferredFrom, ObservationContext,
};

impl Relation {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Contains => "CONTAINS",
            Self::ConceptModifier => "HAS CONCEPT MOD",
            Self::ObservationContext => "HAS OBS CONTEXT",
            Self::AcquisitionContext => "HAS ACQ CONTEXT",
            Self::InferredFrom => "INFERRED FROM",
            Self::HasProperties => "HAS PROPERTIES",
        }
    }
}

/// One content item with its children.
pub(super) type Item = InMemDicomObject;

fn item(relation: Option<Relation>, value_type: &str, concept: Concept) -> Item {
    let mut item = Item::new_empty();
    if let Some(relation) = relation {
        item.put_text(tags::RELATIONSHIP_TYPE, VR::CS, relation.as_str());
    }
    item.put_text(tags::VALUE_TYPE, VR::CS, value_type);
    item.put_code(tags::CONCEPT_NAME_CODE_SEQUENCE, concept);
    item
}

/// Gives an item its children.
pub(super) fn with(mut item: Item, children: Vec<Item>) -> Item {
    if !children.is_empty() {
        item.put_items(tags::CONTENT_SEQUENCE, children);
    }
    item
}

pub(super) fn text(relation: Relation, concept: Concept, value: &str) -> Item {
    let mut item = item(Some(relation), "TEXT", concept);
    item.put_text(tags::TEXT_VALUE, VR::UT, value);
    item
}

pub(super) fn code(relation: Relation, concept: Concept, value: Concept) -> Item {
    let mut item = item(Some(relation), "CODE", concept);
    item.put_code(tags::CONCEPT_CODE_SEQUENCE, value);
    item
}

/// A code that was copied from the source.
pub(super) fn copied_code(relation: Relation, concept: Concept, value: InMemDicomObject) -> Item {
    let mut item = item(Some(relation), "CODE", concept);
    item.put_items(tags::CONCEPT_CODE_SEQUENCE, vec![value]);
    item
}

pub(super) fn uid_reference(relation: Relation, concept: Concept, uid: &Uid) -> Item {
    let mut item = item(Some(relation), "UIDREF", concept);
    item.put_uid(tags::UID, uid);
    item
}

/// A DATE with the bytes of a copied DA element.
pub(super) fn copied_date(relation: Relation, concept: Concept, date: &Element) -> Item {
    let mut item = item(Some(relation), "DATE", concept);
    item.put(DataElement::new(tags::DATE, VR::DA, date.value().clone()));
    item
}

/// A TIME with the bytes of a copied TM element.
pub(super) fn copied_time(relation: Relation, concept: Concept, time: &Element) -> Item {
    let mut item = item(Some(relation), "TIME", concept);
    item.put(DataElement::new(tags::TIME, VR::TM, time.value().clone()));
    item
}

/// A measurement; `None` when the value is not finite, which DICOM cannot carry.
pub(super) fn number(relation: Relation, concept: Concept, value: f64, unit: Concept) -> Option<Item> {
    let mut measured = InMemDicomObject::new_empty();
    measured.put_text(tags::NUMERIC_VALUE, VR::DS, &decimal_string(value)?);
    measured.put(DataElement::new(tags::FLOATING_POINT_VALUE, VR::FD, PrimitiveValue::from(value)));
    measured.put_items(tags::MEASUREMENT_UNITS_CODE_SEQUENCE, vec![code_item(unit)]);
    let mut item = item(Some(relation), "NUM", concept);
    item.put_items(tags::MEASURED_VALUE_SEQUENCE, vec![measured]);
    Some(item)
}

/// A measurement with children, or a sentence that says why there is none.
pub(super) fn number_or_comment(
    texts: Texts<'_>,
    concept: Concept,
    value: f64,
    unit: Concept,
    children: Vec<Item>,
) -> Item {
    if let Some(number) = number(Contains, concept, value, unit) {
        return with(number, children);
    }
    let words = texts.say("not-a-finite-number", &[("concept", concept.meaning.into())]);
    text(Contains, codes::COMMENT, &words)
}

pub(super) fn image(relation: Relation, concept: Concept, source: &SourceImage) -> Item {
    let mut item = item(Some(relation), "IMAGE", concept);
    item.put_items(tags::REFERENCED_SOP_SEQUENCE, vec![reference(&source.sop_class_uid, &source.sop_instance_uid)]);
    item
}

/// A segment of one of our segmentations (TID 1501 row 10b).
pub(super) fn segment(concept: Concept, segmentation: &Identity, number: u16) -> Item {
    let mut referenced = reference(&segmentation.sop_class_uid, &segmentation.sop_instance_uid);
    referenced.put_u16(tags::REFERENCED_SEGMENT_NUMBER, number);
    let mut item = item(Some(Contains), "IMAGE", concept);
    item.put_items(tags::REFERENCED_SOP_SEQUENCE, vec![referenced]);
    item
}

pub(super) fn container(relation: Option<Relation>, concept: Concept, children: Vec<Item>) -> Item {
    let mut item = item(relation, "CONTAINER", concept);
    item.put_text(tags::CONTINUITY_OF_CONTENT, VR::CS, "SEPARATE");
    with(item, children)
}

/// An item that names a SOP Instance.
pub(super) fn reference(sop_class_uid: &Uid, sop_instance_uid: &Uid) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    item.put_uid(tags::REFERENCED_SOP_CLASS_UID, sop_class_uid);
    item.put_uid(tags::REFERENCED_SOP_INSTANCE_UID, sop_instance_uid);
    item
}
