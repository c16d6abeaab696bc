//! What a peer is asked: SOP classes, each in the transfer syntaxes that make sense for it.

use dicom_dictionary_std::uids;

use crate::{
    dimse::{named_transfer_syntaxes, negotiation::STORAGE_SOP_CLASSES},
    types::Uid,
};

/// One presentation context with one transfer syntax, so that the answer is exact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) sop_class: String,
    pub(super) transfer_syntax: &'static str,
}

/// Images beside those that this node takes.
const IMAGES: &[&str] = &[
    uids::SECONDARY_CAPTURE_IMAGE_STORAGE,
    uids::MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE_IMAGE_STORAGE,
    uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE,
    uids::MULTI_FRAME_TRUE_COLOR_SECONDARY_CAPTURE_IMAGE_STORAGE,
    uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PROCESSING,
    uids::DIGITAL_MAMMOGRAPHY_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION,
    uids::BREAST_TOMOSYNTHESIS_IMAGE_STORAGE,
    uids::ENHANCED_CT_IMAGE_STORAGE,
    uids::MR_IMAGE_STORAGE,
    uids::ENHANCED_MR_IMAGE_STORAGE,
    uids::ULTRASOUND_IMAGE_STORAGE,
    uids::ULTRASOUND_MULTI_FRAME_IMAGE_STORAGE,
    uids::NUCLEAR_MEDICINE_IMAGE_STORAGE,
    uids::POSITRON_EMISSION_TOMOGRAPHY_IMAGE_STORAGE,
    uids::X_RAY_ANGIOGRAPHIC_IMAGE_STORAGE,
    uids::X_RAY_RADIOFLUOROSCOPIC_IMAGE_STORAGE,
    uids::SEGMENTATION_STORAGE,
    uids::PARAMETRIC_MAP_STORAGE,
];

/// Reports, presentation states and other objects without pixels of their own.
const DOCUMENTS: &[&str] = &[
    uids::COMPREHENSIVE_SR_STORAGE,
    uids::COMPREHENSIVE3_DSR_STORAGE,
    uids::ENHANCED_SR_STORAGE,
    uids::BASIC_TEXT_SR_STORAGE,
    uids::CHEST_CADSR_STORAGE,
    uids::X_RAY_RADIATION_DOSE_SR_STORAGE,
    uids::KEY_OBJECT_SELECTION_DOCUMENT_STORAGE,
    uids::GRAYSCALE_SOFTCOPY_PRESENTATION_STATE_STORAGE,
    uids::COLOR_SOFTCOPY_PRESENTATION_STATE_STORAGE,
    uids::ENCAPSULATED_PDF_STORAGE,
];

/// Services without a storage object.
const SERVICES: &[&str] = &[
    uids::STORAGE_COMMITMENT_PUSH_MODEL,
    uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND,
    uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_MOVE,
    uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_GET,
    uids::PATIENT_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND,
    uids::MODALITY_WORKLIST_INFORMATION_MODEL_FIND,
    uids::MODALITY_PERFORMED_PROCEDURE_STEP,
    uids::INSTANCE_AVAILABILITY_NOTIFICATION,
];

const BASIC: &[&str] = &[uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN];
const WITHOUT_PIXELS: &[&str] = &[
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.2",
];

/// SOP classes for which both roles are asked for: the peer may tell us of a commitment, or send images by C-GET.
pub(super) const BOTH_ROLES: &[&str] =
    &[uids::STORAGE_COMMITMENT_PUSH_MODEL, uids::CT_IMAGE_STORAGE, uids::COMPREHENSIVE_SR_STORAGE];

/// Everything that a peer is asked, Verification first, what the user adds last.
pub(super) fn questions(added: &[Uid]) -> Vec<Question> {
    let every_syntax: Vec<&'static str> = named_transfer_syntaxes().collect();
    let mut list = Vec::new();
    let mut ask = |sop_classes: &[&str], transfer_syntaxes: &[&'static str]| {
        for &sop_class in sop_classes {
            for &transfer_syntax in transfer_syntaxes {
                let question = Question { sop_class: sop_class.to_owned(), transfer_syntax };
                if !list.contains(&question) {
                    list.push(question);
                }
            }
        }
    };
    ask(&[uids::VERIFICATION], BASIC);
    ask(SERVICES, BASIC);
    ask(DOCUMENTS, WITHOUT_PIXELS);
    ask(STORAGE_SOP_CLASSES, &every_syntax);
    ask(IMAGES, &every_syntax);
    ask(&added.iter().map(Uid::as_str).collect::<Vec<_>>(), &every_syntax);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_asked_once_and_ours_are_among_them() {
        let usual = questions(&[]);
        assert_eq!(usual[0].sop_class, uids::VERIFICATION);
        for sop_class in STORAGE_SOP_CLASSES.iter().chain(crate::report::CREATED_SOP_CLASSES) {
            assert!(usual.iter().any(|question| question.sop_class == *sop_class), "{sop_class}");
        }
        let [known, new] = [uids::CT_IMAGE_STORAGE, uids::RT_DOSE_STORAGE].map(|uid| Uid::new(uid).unwrap());
        let more = questions(&[known, new]);
        assert_eq!(more.len(), usual.len() + named_transfer_syntaxes().count());
        let mut once = std::collections::BTreeSet::new();
        assert!(more.iter().all(|question| once.insert((&question.sop_class, question.transfer_syntax))));
    }
}
