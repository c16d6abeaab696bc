//! The coded concepts that results use (PS3.16, and private codes of scheme `99HILUM`).

use crate::types::{Code, Decision, ReasonCode};

/// Scheme of Hilum's private codes.
pub(super) const PRIVATE_SCHEME: &str = "99HILUM";

/// A coded concept by reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Concept<'a> {
    pub(super) value: &'a str,
    pub(super) scheme: &'a str,
    pub(super) meaning: &'a str,
}

impl<'a> From<&'a Code> for Concept<'a> {
    fn from(code: &'a Code) -> Self {
        Self { value: &code.value, scheme: &code.scheme, meaning: &code.meaning }
    }
}

const fn dcm(value: &'static str, meaning: &'static str) -> Concept<'static> {
    Concept { value, scheme: "DCM", meaning }
}
const fn sct(value: &'static str, meaning: &'static str) -> Concept<'static> {
    Concept { value, scheme: "SCT", meaning }
}
const fn ucum(value: &'static str, meaning: &'static str) -> Concept<'static> {
    Concept { value, scheme: "UCUM", meaning }
}
const fn radlex(value: &'static str, meaning: &'static str) -> Concept<'static> {
    Concept { value, scheme: "RADLEX", meaning }
}
const fn private(value: &'static str, meaning: &'static str) -> Concept<'static> {
    Concept { value, scheme: PRIVATE_SCHEME, meaning }
}

pub(super) const REPORT: Concept = dcm("126000", "Imaging Measurement Report");
pub(super) const LANGUAGE: Concept = dcm("121049", "Language of Content Item and Descendants");
pub(super) const OBSERVER_TYPE: Concept = dcm("121005", "Observer Type");
pub(super) const DEVICE: Concept = dcm("121007", "Device");
pub(super) const OBSERVER_UID: Concept = dcm("121012", "Device Observer UID");
pub(super) const OBSERVER_NAME: Concept = dcm("121013", "Device Observer Name");
pub(super) const OBSERVER_MANUFACTURER: Concept = dcm("121014", "Device Observer Manufacturer");
pub(super) const OBSERVER_MODEL: Concept = dcm("121015", "Device Observer Model Name");
pub(super) const OBSERVER_SERIAL: Concept = dcm("121016", "Device Observer Serial Number");
pub(super) const PROCEDURE_REPORTED: Concept = dcm("121058", "Procedure reported");
pub(super) const CHEST_RADIOGRAPHY: Concept = sct("399208008", "Plain X-ray of chest");
pub(super) const CHEST_CT: Concept = sct("169069000", "Computed tomography of chest");

pub(super) const IMAGE_LIBRARY: Concept = dcm("111028", "Image Library");
pub(super) const IMAGE_LIBRARY_GROUP: Concept = dcm("126200", "Image Library Group");
pub(super) const MODALITY: Concept = dcm("121139", "Modality");
pub(super) const TARGET_REGION: Concept = dcm("123014", "Target Region");
pub(super) const CHEST: Concept = sct("816094009", "Chest");
pub(super) const SOURCE: Concept = sct("260753009", "Source");
pub(super) const STUDY_DATE: Concept = dcm("111060", "Study Date");
pub(super) const STUDY_TIME: Concept = dcm("111061", "Study Time");
pub(super) const ROWS: Concept = dcm("110910", "Pixel Data Rows");
pub(super) const COLUMNS: Concept = dcm("110911", "Pixel Data Columns");
pub(super) const IMAGE_LABEL: Concept = private("IMAGE-LABEL", "Image label");
pub(super) const FRAME_OF_REFERENCE: Concept = dcm("112227", "Frame of Reference UID");

pub(super) const MEASUREMENTS: Concept = dcm("126010", "Imaging Measurements");
pub(super) const MEASUREMENT_GROUP: Concept = dcm("125007", "Measurement Group");
pub(super) const TRACKING_ID: Concept = dcm("112039", "Tracking Identifier");
pub(super) const TRACKING_UID: Concept = dcm("112040", "Tracking Unique Identifier");
pub(super) const FINDING: Concept = dcm("121071", "Finding");
pub(super) const FINDING_SITE: Concept = sct("363698007", "Finding Site");
pub(super) const LUNG: Concept = sct("39607008", "Lung");
pub(super) const LATERALITY: Concept = sct("272741003", "Laterality");
pub(super) const RIGHT: Concept = sct("24028007", "Right");
pub(super) const LEFT: Concept = sct("7771000", "Left");
pub(super) const CERTAINTY: Concept = dcm("111012", "Certainty of Finding");
pub(super) const MEANING: Concept = dcm("121050", "Equivalent Meaning of Concept Name");
pub(super) const DERIVATION: Concept = dcm("121401", "Derivation");
pub(super) const MEAN: Concept = sct("373098007", "Mean");
pub(super) const MEDIAN: Concept = sct("373099004", "Median");
pub(super) const SOURCE_OF_MEASUREMENT: Concept = dcm("121112", "Source of Measurement");
pub(super) const OPERATING_POINT: Concept = dcm("111071", "CAD Operating Point");
pub(super) const OPERATING_POINT_DESCRIPTION: Concept = dcm("111081", "CAD Operating Point Description");
pub(super) const PRESENCE: Concept = sct("705057003", "Presence");
pub(super) const PRESENT: Concept = sct("52101004", "Present");
pub(super) const ABSENT: Concept = sct("272519000", "Absent");
pub(super) const UNDETERMINED: Concept = sct("373068000", "Undetermined");
pub(super) const METHOD: Concept = sct("370129005", "Measurement Method");
pub(super) const CLASS_ACTIVATION: Concept = dcm("130402", "Class activation");
pub(super) const GRADIENT_CLASS_ACTIVATION: Concept = dcm("130403", "Gradient-weighted class activation");
pub(super) const HEAT_FRACTION: Concept = private("HM-LUNG-FRAC", "Heat map fraction of lung field");
pub(super) const HEAT_THRESHOLD: Concept = private("HM-THRESHOLD", "Heat map activation threshold");
// Of CID 211.
pub(super) const UPPER: Concept = sct("264217000", "Superior");
pub(super) const MIDDLE: Concept = Concept { value: "C25569", scheme: "NCIt", meaning: "Middle" };
pub(super) const LOWER: Concept = sct("261089000", "Inferior");
pub(super) const TOPOGRAPHICAL_MODIFIER: Concept = sct("106233006", "Topographical modifier");
pub(super) const SOURCE_SERIES: Concept = dcm("121232", "Source series for segmentation");
pub(super) const VOLUME: Concept = sct("118565006", "Volume");
pub(super) const ATTENUATION: Concept = dcm("112031", "Attenuation Coefficient");
pub(super) const PERCENTILE_15: Concept = private("LUNG-PERC15", "15th percentile of lung density");
pub(super) const METHOD_TEXT: Concept = private("METHOD", "Method name and version");
pub(super) const BAND_EMPHYSEMA: Concept = private("BAND-1", "Emphysema-like density, share of volume");
pub(super) const BAND_AERATED: Concept = private("BAND-2", "Well aerated density, share of volume");
pub(super) const BAND_GROUND_GLASS: Concept = private("BAND-3", "Ground-glass-like density, share of volume");
pub(super) const BAND_POORLY_AERATED: Concept = private("BAND-4", "Poorly aerated density, share of volume");
pub(super) const BAND_CONSOLIDATION: Concept = private("BAND-5", "Consolidation-like density, share of volume");
pub(super) const OPACITY_SHARE: Concept = private("BAND-3-TO-5", "Density above well aerated, share of volume");
pub(super) const EXCLUDED_SERIES: Concept = private("EXCLUDED-SERIES", "Series not analysed");
pub(super) const KEY_SLICE: Concept = private("KEY-SLICE", "Slice that speaks for the class");
pub(super) const HEAT_IN_LUNGS: Concept = private("HEAT-IN-LUNGS", "Share of the heat that lies in the lungs");
pub(super) const LESION_SHARE: Concept = private("LESION-SHARE", "Lesion, share of the lung's volume");
pub(super) const LESION_SLICES: Concept = private("LESION-SLICES", "Slices with lesion");
pub(super) const LESION_LONGEST: Concept = private("LESION-LONGEST", "Longest run of slices with lesion");
pub(super) const LESION_RUN: Concept = private("LESION-RUN", "Consecutive slices with lesion in one quadrant");
pub(super) const LESION_RULE: Concept = private("LESION-RULE", "Rule from lesions to a decision");
pub(super) const CT_OVERLAY: Concept = private("CT-OVERLAY", "Lung segmentation overlay");
pub(super) const MODEL_STATUS: Concept = private("MODEL-STATUS", "Model status");
pub(super) const MEMBER_SPREAD: Concept = private("MEMBER-SPREAD", "Largest minus smallest member output");

pub(super) const SIMILARITY: Concept = private("KNN-COSINE", "Similarity (cosine) of image embedding");
pub(super) const NEIGHBOUR_RANK: Concept = private("KNN-RANK", "Neighbour rank");
pub(super) const SIMILAR_CASES: Concept = private("SIMILAR-CASES", "Similar cases");

pub(super) const ALGORITHM_NAME: Concept = dcm("111001", "Algorithm Name");
pub(super) const ALGORITHM_VERSION: Concept = dcm("111003", "Algorithm Version");
pub(super) const ALGORITHM_PARAMETERS: Concept = dcm("111002", "Algorithm Parameters");
pub(super) const ALGORITHM_FAMILY: Concept = dcm("111000", "Algorithm Family");
pub(super) const MORPHOLOGICAL_OPERATIONS: Concept = dcm("123104", "Morphological Operations");
pub(super) const ARTIFICIAL_INTELLIGENCE: Concept = dcm("123110", "Artificial Intelligence");

pub(super) const EVALUATIONS: Concept =
    Concept { value: "C0034375", scheme: "UMLS", meaning: "Qualitative Evaluations" };
pub(super) const SUMMARY: Concept = dcm("111017", "CAD Processing and Findings Summary");
pub(super) const ALL_WITHOUT_FINDINGS: Concept = dcm("111241", "All algorithms succeeded; without findings");
pub(super) const ALL_WITH_FINDINGS: Concept = dcm("111242", "All algorithms succeeded; with findings");
pub(super) const SOME_WITHOUT_FINDINGS: Concept = dcm("111243", "Not all algorithms succeeded; without findings");
pub(super) const SOME_WITH_FINDINGS: Concept = dcm("111244", "Not all algorithms succeeded; with findings");
pub(super) const NONE_SUCCEEDED: Concept = dcm("111245", "No algorithms succeeded; without findings");
pub(super) const ANALYSIS_STATUS: Concept = private("ANALYSIS-STATUS", "Analysis status");
pub(super) const SUCCEEDED: Concept = dcm("111222", "Succeeded");
pub(super) const PARTIALLY_SUCCEEDED: Concept = dcm("111223", "Partially Succeeded");
pub(super) const FAILED: Concept = dcm("111224", "Failed");
pub(super) const QUALITY: Concept = dcm("111050", "Quality Assessment");
pub(super) const DIAGNOSTIC_QUALITY: Concept = radlex("RID12", "Diagnostic quality");
pub(super) const LIMITED_QUALITY: Concept = radlex("RID13", "Limited quality");
pub(super) const NON_DIAGNOSTIC_QUALITY: Concept = radlex("RID14", "Non-diagnostic quality");
pub(super) const QUALITY_FINDING: Concept = dcm("111052", "Quality Finding");
pub(super) const REJECT_REASON: Concept = private("REJECT-REASON", "Reason for not processing");
pub(super) const EXCLUDED_IMAGE: Concept = private("EXCLUDED-IMAGE", "Image not analysed");
pub(super) const GATE: Concept = private("INPUT-CHECK", "Input check");
pub(super) const CONCLUSION: Concept = dcm("121077", "Conclusion");
pub(super) const COMMENT: Concept = dcm("121106", "Comment");

pub(super) const TEXT_REPORT: Concept = Concept { value: "18748-4", scheme: "LN", meaning: "Diagnostic imaging study" };
pub(super) const FINDINGS: Concept = dcm("121070", "Findings");
pub(super) const CONCLUSIONS: Concept = dcm("121076", "Conclusions");

pub(super) const ACQUISITION_EQUIPMENT: Concept = dcm("109101", "Acquisition Equipment");
pub(super) const PROCESSING_EQUIPMENT: Concept = dcm("109102", "Processing Equipment");
pub(super) const SOURCE_IMAGE: Concept = dcm("121322", "Source image for image processing operation");
pub(super) const HEAT_MAP_OVERLAY: Concept = private("HEATMAP-OVERLAY", "Class activation heat map overlay");

pub(super) const PERCENT: Concept = ucum("%", "Percent");
pub(super) const MILLILITRE: Concept = ucum("ml", "milliliter");
pub(super) const HOUNSFIELD: Concept = ucum("[hnsf'U]", "Hounsfield unit");
pub(super) const NO_UNITS: Concept = ucum("1", "no units");
pub(super) const PIXELS: Concept = ucum("{pixels}", "pixels");
pub(super) const SLICES: Concept = ucum("{slices}", "slices");

pub(super) const ANATOMICAL_STRUCTURE: Concept = sct("91723000", "Anatomical Structure");
pub(super) const ABNORMAL_STRUCTURE: Concept = sct("49755003", "Morphologically Abnormal Structure");
pub(super) const TISSUE: Concept = sct("85756007", "Tissue");
pub(super) const LESION: Concept = sct("52988006", "Lesion");
// A density and not a finding: vessels and airway walls have it too, so no code of a finding is right.
pub(super) const SEGMENT_OPACITY: Concept = private("SEGMENT-3-TO-5", "Lung voxels, density above well aerated");
pub(super) const SEGMENT_CONSOLIDATION: Concept = private("SEGMENT-5", "Lung voxels, consolidation-like density");
pub(super) const HISTOGRAM_ANALYSIS: Concept = dcm("123105", "Histogram Analysis");
pub(super) const SEGMENTATION: Concept = dcm("113076", "Segmentation");
pub(super) const OF_INTEREST: Concept = dcm("113000", "Of Interest");
pub(super) const KEY_OBJECT_DESCRIPTION: Concept = dcm("113012", "Key Object Description");

/// Code of a decision.
pub(super) const fn decision(decision: Decision) -> Concept<'static> {
    match decision {
        Decision::Present => PRESENT,
        Decision::Absent => ABSENT,
        Decision::Undetermined => UNDETERMINED,
    }
}

/// Code of a modality, for those that radiographs and chest CT come in.
pub(super) fn modality(modality: &str) -> Option<Concept<'static>> {
    match modality {
        "CR" => Some(dcm("CR", "Computed Radiography")),
        "DX" => Some(dcm("DX", "Digital Radiography")),
        "CT" => Some(dcm("CT", "Computed Tomography")),
        _ => None,
    }
}

/// Why something was not processed, as CID 9300, 9302 or 9303 has it.
pub(super) const fn reason(reason: ReasonCode) -> Concept<'static> {
    match reason {
        ReasonCode::NoSuitableImage
        | ReasonCode::UnsupportedImage
        | ReasonCode::AgeOutOfScope
        | ReasonCode::OutOfDistribution
        | ReasonCode::Localizer
        | ReasonCode::NotAxial
        | ReasonCode::GantryTilt
        | ReasonCode::MixedGeometry
        | ReasonCode::UnevenSpacing
        | ReasonCode::OtherSeriesChosen => dcm("110522", "Object Types not supported"),
        ReasonCode::SliceGap | ReasonCode::TooFewSlices => dcm("110523", "Object Set incomplete"),
        // What is doubled makes the series wrong, not one object.
        ReasonCode::DuplicatePosition
        | ReasonCode::IdenticalImage
        | ReasonCode::GeometryMissing
        | ReasonCode::Undecodable => dcm("110521", "Objects incorrectly formatted"),
        ReasonCode::ViewNotFrontal | ReasonCode::LungMask | ReasonCode::ImageQuality => {
            dcm("110531", "Insufficient quality for interpretation")
        }
        // No table has a code for an answer that is withheld: the words say why.
        ReasonCode::MemberDisagreement | ReasonCode::ProcessingFailure => {
            dcm("110513", "Discontinued for unspecified reason")
        }
    }
}

/// Whether a reason is one of image quality.
pub(super) const fn is_quality(reason: ReasonCode) -> bool {
    matches!(reason, ReasonCode::ViewNotFrontal | ReasonCode::LungMask | ReasonCode::ImageQuality)
}

/// What is wrong with the quality, as CID 6135 has it, where the reason says that.
pub(super) const fn quality_finding(reason: ReasonCode) -> Option<Concept<'static>> {
    match reason {
        ReasonCode::ViewNotFrontal => Some(dcm("111209", "Positioning")),
        ReasonCode::ProcessingFailure => Some(dcm("111218", "Software failure")),
        _ => None,
    }
}

/// A language as a value of [`LANGUAGE`] (CID 5000).
pub(super) const fn language<'a>(tag: &'a str, meaning: &'a str) -> Concept<'a> {
    Concept { value: tag, scheme: "RFC5646", meaning }
}

/// (Coding Scheme Designator, UID) of the schemes in the HL7 registry.
const REGISTERED_SCHEMES: [(&str, &str); 7] = [
    ("DCM", "1.2.840.10008.2.16.4"),
    ("SCT", "2.16.840.1.113883.6.96"),
    ("UCUM", "2.16.840.1.113883.6.8"),
    ("LN", "2.16.840.1.113883.6.1"),
    ("RADLEX", "2.16.840.1.113883.6.256"),
    ("UMLS", "2.16.840.1.113883.6.86"),
    ("NCIt", "2.16.840.1.113883.3.26.1.1"),
];

/// UID of a scheme in the HL7 registry.
pub(super) fn scheme_uid(scheme: &str) -> Option<&'static str> {
    REGISTERED_SCHEMES.iter().find(|(designator, _)| *designator == scheme).map(|(_, uid)| *uid)
}
