//! The modules that every result has: Patient, General Study, Patient Study, General Equipment, SOP Common.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, ReportError, Sources,
    codes::{self, PRIVATE_SCHEME},
    dataset::{Build, Identity, schemes_used},
    source::{Element, SourceHeader},
    text::TextEncoding,
    texts::{ENGLISH, Texts},
    uids::uid,
    when::Moment,
};
use crate::types::{RunOutcome, RunRecord, SourceImage, Uid};

/// Patient and study attributes that every result has, empty when the source lacks them (type 2).
const REQUIRED: [(Tag, VR); 9] = [
    (tags::PATIENT_NAME, VR::PN),
    (tags::PATIENT_ID, VR::LO),
    (tags::PATIENT_BIRTH_DATE, VR::DA),
    (tags::PATIENT_SEX, VR::CS),
    (tags::STUDY_DATE, VR::DA),
    (tags::STUDY_TIME, VR::TM),
    (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
    (tags::STUDY_ID, VR::SH),
    (tags::ACCESSION_NUMBER, VR::SH),
];

/// Patient, study and visit attributes that are copied when the source has them.
const OPTIONAL: [Tag; 30] = [
    tags::ISSUER_OF_PATIENT_ID,
    tags::TYPE_OF_PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID_QUALIFIERS_SEQUENCE,
    tags::PATIENT_BIRTH_TIME,
    tags::QUALITY_CONTROL_SUBJECT,
    tags::OTHER_PATIENT_NAMES,
    tags::OTHER_PATIENT_I_DS_SEQUENCE,
    // Ethnic Group, retired since 2023 and still sent.
    Tag(0x0010, 0x2160),
    tags::PATIENT_COMMENTS,
    tags::PATIENT_IDENTITY_REMOVED,
    tags::DEIDENTIFICATION_METHOD,
    tags::DEIDENTIFICATION_METHOD_CODE_SEQUENCE,
    tags::ISSUER_OF_ACCESSION_NUMBER_SEQUENCE,
    tags::STUDY_DESCRIPTION,
    tags::PROCEDURE_CODE_SEQUENCE,
    tags::PHYSICIANS_OF_RECORD,
    tags::ADMITTING_DIAGNOSES_DESCRIPTION,
    tags::ADMITTING_DIAGNOSES_CODE_SEQUENCE,
    tags::PATIENT_AGE,
    tags::PATIENT_SIZE,
    tags::PATIENT_WEIGHT,
    tags::ADMISSION_ID,
    tags::ISSUER_OF_ADMISSION_ID_SEQUENCE,
    tags::PATIENT_STATE,
    tags::MEDICAL_ALERTS,
    tags::ALLERGIES,
    tags::SMOKING_STATUS,
    tags::PREGNANCY_STATUS,
    tags::ADDITIONAL_PATIENT_HISTORY,
    tags::OCCUPATION,
];

/// What the results of one run have in common.
pub(super) struct Frame<'a> {
    pub(super) record: &'a RunRecord,
    pub(super) options: &'a RenderOptions,
    /// Patient and study come from here: the newest source.
    pub(super) newest: &'a SourceHeader,
    pub(super) moment: Moment,
    pub(super) encoding: TextEncoding,
    /// The sentences, English unless told otherwise.
    pub(super) texts: Texts<'a>,
}

impl<'a> Frame<'a> {
    pub(super) fn new(
        record: &'a RunRecord,
        sources: Sources<'a>,
        options: &'a RenderOptions,
    ) -> Result<Self, ReportError> {
        let study_instance_uid = &record.study_instance_uid;
        if let Some((source, _)) = sources.iter().find(|(source, header)| {
            header.study_instance_uid() != study_instance_uid || header.sop_instance_uid() != &source.sop_instance_uid
        }) {
            return Err(ReportError::OtherStudy {
                sop_instance_uid: source.sop_instance_uid.clone(),
                study_instance_uid: study_instance_uid.clone(),
            });
        }
        let (_, newest) =
            sources.last().ok_or_else(|| ReportError::NoSource { study_instance_uid: study_instance_uid.clone() })?;
        check(record)?;
        let copied = REQUIRED.iter().map(|(tag, _)| *tag).chain(OPTIONAL).chain(EQUIPMENT);
        let beyond_ascii = copied.filter_map(|tag| newest.element(tag)).any(|element| !is_ascii(element));
        Ok(Self {
            record,
            options,
            newest,
            moment: Moment::new(record.started_at, newest, options),
            encoding: TextEncoding::of_source(newest, beyond_ascii, &options.assumed_character_set),
            texts: options.texts.language(ENGLISH),
        })
    }

    /// The same with the sentences of another language; English where nobody knows it.
    pub(super) fn in_language(self, tag: &str) -> Self {
        Self { texts: self.options.texts.language(tag), ..self }
    }

    /// Tracking Unique Identifier (0062,0021) of what is `tracked` in an image or a series: the same for every revision
    /// that looks at it with a bundle of this name, and in every language.
    pub(super) fn tracking_uid(&self, subject: &Uid, tracked: &str) -> Uid {
        let Self { record, .. } = self;
        let installation = record.installation.id.to_string();
        let study = record.study_instance_uid.as_str();
        uid("tracking", &[&installation, study, subject.as_str(), &record.bundle.name, tracked])
    }

    /// The UIDs of result number `n` (from 1) of a role.
    pub(super) fn identity(&self, role: &str, sop_class_uid: &Uid, n: usize) -> Identity {
        let key = self.record.result_key.to_string();
        let n = n.to_string();
        Identity {
            sop_class_uid: sop_class_uid.clone(),
            sop_instance_uid: uid("instance", &[role, sop_class_uid.as_str(), &key, &n]),
            series_instance_uid: uid("series", &[role, &key]),
        }
    }

    /// The common modules. `equipment` is the image whose acquisition equipment is named.
    pub(super) fn data_set(
        &self,
        identity: &Identity,
        series: &Series<'_>,
        equipment: &SourceHeader,
    ) -> InMemDicomObject {
        let installation = &self.record.installation;
        let mut data_set = InMemDicomObject::new_empty();
        for (tag, vr) in REQUIRED {
            data_set.copy_or_empty(tag, vr, self.newest.element(tag));
        }
        for tag in OPTIONAL {
            data_set.copy(self.newest.element(tag));
        }
        data_set.put_uid(tags::STUDY_INSTANCE_UID, &self.record.study_instance_uid);

        data_set.put_uid(tags::SERIES_INSTANCE_UID, &identity.series_instance_uid);
        data_set.put_text(tags::MODALITY, VR::CS, series.modality);
        data_set.put_text(tags::SERIES_NUMBER, VR::IS, series.number);
        data_set.put_text(tags::SERIES_DESCRIPTION, VR::LO, &series.description);
        data_set.put_text(tags::INSTANCE_NUMBER, VR::IS, &series.instance_number.to_string());

        data_set.put_text(tags::MANUFACTURER, VR::LO, &self.options.manufacturer);
        data_set.put_text(tags::MANUFACTURER_MODEL_NAME, VR::LO, MODEL_NAME);
        data_set.put_text(tags::DEVICE_SERIAL_NUMBER, VR::LO, &installation.id.to_string());
        data_set.put_text(tags::SOFTWARE_VERSIONS, VR::LO, &self.options.software_version);
        data_set.put_uid(tags::DEVICE_UID, &installation.device_uid);
        data_set.put_text(tags::INSTITUTION_NAME, VR::LO, &installation.institution_name);
        data_set.put_text(tags::STATION_NAME, VR::SH, &installation.station_name);

        data_set.put_uid(tags::SOP_CLASS_UID, &identity.sop_class_uid);
        data_set.put_uid(tags::SOP_INSTANCE_UID, &identity.sop_instance_uid);
        for (date, time) in [
            (tags::SERIES_DATE, tags::SERIES_TIME),
            (tags::CONTENT_DATE, tags::CONTENT_TIME),
            (tags::INSTANCE_CREATION_DATE, tags::INSTANCE_CREATION_TIME),
        ] {
            data_set.put_text(date, VR::DA, &self.moment.date());
            data_set.put_text(time, VR::TM, &self.moment.time());
        }
        if let Some(offset) = &self.moment.timezone_offset {
            data_set.put_text(tags::TIMEZONE_OFFSET_FROM_UTC, VR::SH, offset);
        }
        data_set.put_text(tags::CONTENT_QUALIFICATION, VR::CS, "RESEARCH");
        data_set.put_items(tags::CONTRIBUTING_EQUIPMENT_SEQUENCE, self.contributing_equipment(equipment));
        data_set
    }

    /// The acquisition equipment, then each network.
    fn contributing_equipment(&self, image: &SourceHeader) -> Vec<InMemDicomObject> {
        let mut acquisition = InMemDicomObject::new_empty();
        acquisition.put_code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, codes::ACQUISITION_EQUIPMENT);
        acquisition.put_text(tags::MANUFACTURER, VR::LO, "Unknown");
        for tag in EQUIPMENT {
            acquisition.copy(self.copyable(image, tag).filter(|element| super::source::ascii(element).is_some()));
        }
        let bundle = &self.record.bundle;
        let networks = bundle.networks().map(|network| {
            let weights = network.weights_sha256.to_string();
            let mut item = InMemDicomObject::new_empty();
            item.put_code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, codes::PROCESSING_EQUIPMENT);
            item.put_text(tags::MANUFACTURER, VR::LO, &self.options.manufacturer);
            item.put_text(tags::MANUFACTURER_MODEL_NAME, VR::LO, &network.name);
            item.put_text(tags::SOFTWARE_VERSIONS, VR::LO, &network.version);
            item.put_uid(tags::DEVICE_UID, &uid("model", &[&network.name, &network.version, &weights]));
            item.put_text(tags::CONTRIBUTION_DATE_TIME, VR::DT, &self.moment.date_time());
            let message = match self.record.outcome {
                RunOutcome::Analysed(_) | RunOutcome::CtMeasured(_) => "contribution-used",
                RunOutcome::NotAnalysed(_) => "contribution-unused",
            };
            let arguments = [
                ("architecture", network.architecture.as_str().into()),
                ("version", network.version.as_str().into()),
                ("digest", weights.into()),
            ];
            let words = self.texts.say(message, &arguments);
            item.put_text(tags::CONTRIBUTION_DESCRIPTION, VR::ST, &words);
            item
        });
        std::iter::once(acquisition).chain(networks).collect()
    }

    /// An element of an image that can stand in this object: its text is ASCII or in the object's own
    /// character set.
    pub(super) fn copyable<'b>(&self, image: &'b SourceHeader, tag: Tag) -> Option<&'b Element> {
        image.element(tag).filter(|element| is_ascii(element) || image.character_set() == self.newest.character_set())
    }

    /// Names the coding schemes that the finished data set uses (SOP Common).
    pub(super) fn put_coding_schemes(&self, data_set: &mut InMemDicomObject) {
        let items = schemes_used(data_set)
            .into_iter()
            .filter_map(|scheme| {
                let mut item = InMemDicomObject::new_empty();
                item.put_text(tags::CODING_SCHEME_DESIGNATOR, VR::SH, &scheme);
                if scheme == PRIVATE_SCHEME {
                    item.put_text(tags::CODING_SCHEME_NAME, VR::ST, "Hilum private codes");
                    item.put_text(tags::CODING_SCHEME_VERSION, VR::SH, "1");
                    let organization = &self.options.manufacturer;
                    item.put_text(tags::CODING_SCHEME_RESPONSIBLE_ORGANIZATION, VR::ST, organization);
                } else {
                    item.put_text(tags::CODING_SCHEME_REGISTRY, VR::LO, "HL7");
                    item.put_text(tags::CODING_SCHEME_UID, VR::UI, codes::scheme_uid(&scheme)?);
                }
                Some(item)
            })
            .collect();
        data_set.put_items(tags::CODING_SCHEME_IDENTIFICATION_SEQUENCE, items);
    }
}

/// (0008,1090) of everything this software makes.
pub(super) const MODEL_NAME: &str = "Hilum";

/// What is copied of the acquisition equipment.
const EQUIPMENT: [Tag; 6] = [
    tags::MANUFACTURER,
    tags::MANUFACTURER_MODEL_NAME,
    tags::DEVICE_SERIAL_NUMBER,
    tags::SOFTWARE_VERSIONS,
    tags::STATION_NAME,
    tags::INSTITUTION_NAME,
];

/// What distinguishes the series of a result.
pub(super) struct Series<'a> {
    pub(super) modality: &'a str,
    pub(super) number: &'static str,
    pub(super) description: String,
    pub(super) instance_number: usize,
}

/// The header of an image, if it was passed.
pub(super) fn header_of<'a>(sources: Sources<'a>, image: &SourceImage) -> Option<&'a SourceHeader> {
    sources.iter().find(|(source, _)| source.sop_instance_uid == image.sop_instance_uid).map(|(_, header)| header)
}

fn is_ascii(element: &Element) -> bool {
    match element.value() {
        dicom_core::value::Value::Primitive(dicom_core::PrimitiveValue::U8(bytes)) => bytes.is_ascii(),
        value => value.items().unwrap_or_default().iter().all(|item| item.iter().all(is_ascii)),
    }
}

/// Whether the record can be rendered at all.
fn check(record: &RunRecord) -> Result<(), ReportError> {
    let bundle = &record.bundle;
    let inconsistent = |words: String| Err(ReportError::Inconsistent(words));
    // Bundles that only measure have no classes.
    let classifies = !bundle.classes.is_empty() || matches!(record.outcome, RunOutcome::Analysed(_));
    if classifies && bundle.classes.get(bundle.target_class_idx).is_none() {
        return inconsistent(format!(
            "bundle `{}` has {} classes and target class number {}",
            bundle.name,
            bundle.classes.len(),
            bundle.target_class_idx
        ));
    }
    if let RunOutcome::CtMeasured(analysis) = &record.outcome
        && analysis.series.images.is_empty()
    {
        return inconsistent("it is measured but names no image".to_owned());
    }
    if let RunOutcome::Analysed(analysis) = &record.outcome {
        if analysis.images.is_empty() {
            return inconsistent("it is analysed but names no image".to_owned());
        }
        for image in &analysis.images {
            if image.fused.len() != bundle.classes.len() {
                return inconsistent(format!(
                    "image {} has {} fused outputs for {} classes",
                    image.source.sop_instance_uid,
                    image.fused.len(),
                    bundle.classes.len()
                ));
            }
        }
    }
    Ok(())
}
