//! Which objects a destination gets of a run: its profile applied to what was found.

use dicom_dictionary_std::uids;

use super::{pictures, segments::segments, sr};
use crate::types::{
    BundleStatus, CtSlicePictures, Decision, PictureCompression, PictureModality, Pipeline, PredecessorDocument,
    Predecessors, ReportClass, ResultProfile, RunOutcome, RunRecord, SegmentationFor,
};

/// What a segmentation or a picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shown {
    /// Analysed radiograph number so much, from 0.
    Radiograph(usize),
    /// The measured series of a CT.
    Ct,
}

/// The form of a picture.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PictureForm {
    /// (0008,0060)
    pub modality: PictureModality,
    /// Encoding of the pixels.
    pub compression: PictureCompression,
    /// Longest side at most, in pixels.
    pub longest_side: u32,
    /// Language of the words that are burnt in.
    pub language: String,
}

/// The form of a report.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReportForm {
    /// Its SOP class.
    pub class: ReportClass,
    /// Language of its texts.
    pub language: String,
    /// The report refers to the segmentation, which goes to the same destination.
    pub with_segmentation: bool,
    /// The report that it replaces, which went to the same destination.
    pub predecessor: Option<PredecessorDocument>,
}

/// Everything that determines the bytes of a result besides the run, its images and the settings of the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ResultSpec {
    /// Segments of the lungs, for CT of the opacities too.
    Segmentation(Shown),
    /// Outlines of the lungs of a radiograph.
    PresentationState {
        /// Number of the analysed image, from 0.
        image_idx: usize,
        /// Language of its label.
        language: String,
    },
    /// The heat map over a radiograph.
    HeatMap {
        /// Number of the analysed image, from 0.
        image_idx: usize,
        /// How it looks.
        form: PictureForm,
    },
    /// The numbers of a CT with a montage of sections.
    CtSummary(PictureForm),
    /// One slice of a CT.
    CtSlice {
        /// Its number in the measured series, from 0.
        slice: usize,
        /// How it looks.
        form: PictureForm,
    },
    /// The report.
    Report(ReportForm),
    /// The report as sentences, beside the one with measurements.
    TextCompanion(ReportForm),
    /// The images that a validated bundle calls present, for a worklist that shows key images first.
    KeyObjects {
        /// Language of its description.
        language: String,
    },
}

impl ResultSpec {
    /// Lower is sent first: what is referred to goes before what refers to it.
    #[must_use]
    pub const fn send_order(&self) -> i32 {
        match self {
            Self::Segmentation(_) => 10,
            Self::PresentationState { .. } => 15,
            Self::CtSummary(_) | Self::HeatMap { .. } => 20,
            Self::CtSlice { .. } => 21,
            Self::Report(_) => 30,
            Self::TextCompanion(_) => 31,
            Self::KeyObjects { .. } => 40,
        }
    }

    /// The form of a picture; `None` of anything else.
    #[must_use]
    pub const fn picture_form(&self) -> Option<&PictureForm> {
        match self {
            Self::HeatMap { form, .. } | Self::CtSummary(form) | Self::CtSlice { form, .. } => Some(form),
            _ => None,
        }
    }

    /// A report: everything else of a run accompanies it.
    #[must_use]
    pub const fn is_report(&self) -> bool {
        matches!(self, Self::Report(_) | Self::TextCompanion(_))
    }

    /// What it is, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self {
            Self::Segmentation(_) => "segmentation".to_owned(),
            Self::PresentationState { image_idx, .. } => format!("presentation state of image {}", image_idx + 1),
            Self::HeatMap { image_idx, .. } => format!("heat map of image {}", image_idx + 1),
            Self::CtSummary(_) => "summary picture".to_owned(),
            Self::CtSlice { slice, .. } => format!("picture of slice {}", slice + 1),
            Self::Report(_) => "report".to_owned(),
            Self::TextCompanion(_) => "report in sentences".to_owned(),
            Self::KeyObjects { .. } => "key object selection".to_owned(),
        }
    }
}

/// What a destination is owed: the first of the alternatives that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// At least one, the preferred one first.
    pub alternatives: Vec<ResultSpec>,
}

impl Owed {
    fn one(spec: ResultSpec) -> Self {
        Self { alternatives: vec![spec] }
    }
}

/// What a destination with `profile` is owed of a run, in the order of sending. `slices_with_lung` are the numbers of the
/// slices of a measured CT in which the lungs lie. `predecessors` are the reports of an earlier revision that this
/// destination has.
#[must_use]
pub fn owed(
    record: &RunRecord,
    profile: &ResultProfile,
    slices_with_lung: &[usize],
    predecessors: &Predecessors,
) -> Vec<Owed> {
    let language = profile.language.clone();
    let form = || PictureForm {
        modality: profile.picture_modality,
        compression: profile.picture_compression,
        longest_side: profile.picture_longest_side,
        language: language.clone(),
    };
    let mut specs = Vec::new();
    let mut with_segmentation = false;
    match &record.outcome {
        RunOutcome::Analysed(analysis) => {
            for image_idx in 0..analysis.images.len() {
                // Where no lung was found there is nothing to outline.
                let has_lungs = !segments(record, Shown::Radiograph(image_idx)).is_empty();
                if profile.segmentation == SegmentationFor::All && has_lungs {
                    specs.push(ResultSpec::Segmentation(Shown::Radiograph(image_idx)));
                    with_segmentation = true;
                }
                if profile.presentation_state && has_lungs {
                    specs.push(ResultSpec::PresentationState { image_idx, language: language.clone() });
                }
                if profile.pictures {
                    specs.push(ResultSpec::HeatMap { image_idx, form: form() });
                }
            }
        }
        RunOutcome::CtMeasured(analysis) => {
            // Runs of before there were segmentations have no masks: nothing says where their lungs are.
            if profile.segmentation != SegmentationFor::None
                && !slices_with_lung.is_empty()
                && !segments(record, Shown::Ct).is_empty()
            {
                specs.push(ResultSpec::Segmentation(Shown::Ct));
                with_segmentation = true;
            }
            if profile.pictures && !analysis.sections.is_empty() {
                specs.push(ResultSpec::CtSummary(form()));
                let slices = match profile.ct_slices {
                    _ if slices_with_lung.is_empty() => Vec::new(),
                    CtSlicePictures::None => Vec::new(),
                    CtSlicePictures::Lung => slices_with_lung.to_vec(),
                    CtSlicePictures::All => (0..analysis.series.images.len()).collect(),
                };
                specs.extend(slices.into_iter().map(|slice| ResultSpec::CtSlice { slice, form: form() }));
            }
        }
        RunOutcome::NotAnalysed(_) => {}
    }
    let report = |class, predecessor: &Option<PredecessorDocument>| ReportForm {
        class,
        language: language.clone(),
        with_segmentation,
        predecessor: predecessor.clone(),
    };
    let mut owed: Vec<Owed> = specs.into_iter().map(Owed::one).collect();
    let alternatives: Vec<ResultSpec> = report_classes(profile)
        .into_iter()
        .map(|class| ResultSpec::Report(report(class, &predecessors.report)))
        .collect();
    let is_text_only = profile.report_classes == [ReportClass::BasicText];
    if !alternatives.is_empty() {
        owed.push(Owed { alternatives });
    }
    if profile.text_companion && !is_text_only {
        let form = report(ReportClass::BasicText, &predecessors.text_companion);
        owed.push(Owed::one(ResultSpec::TextCompanion(form)));
    }
    if profile.key_objects && is_present(record) {
        owed.push(Owed::one(ResultSpec::KeyObjects { language }));
    }
    owed.sort_by_key(|owed| owed.alternatives.first().map_or(0, ResultSpec::send_order));
    owed
}

/// The classes of the report that can stand for one another. With the companion, which is the report in sentences already,
/// Basic Text is none of them unless it is the only one.
fn report_classes(profile: &ResultProfile) -> Vec<ReportClass> {
    let counts = |class: &&ReportClass| {
        **class != ReportClass::BasicText || !profile.text_companion || profile.report_classes.len() == 1
    };
    profile.report_classes.iter().filter(counts).copied().collect()
}

/// SOP class and transfer syntax in which a result is sent.
pub type ResultForm = (&'static str, &'static str);

/// The forms in which results of `pipeline` go to a destination with `profile`: of each list it has to take one.
#[must_use]
pub fn forms(profile: &ResultProfile, pipeline: Pipeline) -> Vec<Vec<ResultForm>> {
    let plain = |sop_class: &'static str| (sop_class, uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let is_ct = pipeline == Pipeline::ChestCt;
    let has_segmentation = match profile.segmentation {
        SegmentationFor::None => false,
        SegmentationFor::Ct => is_ct,
        SegmentationFor::All => true,
    };
    let picture = (uids::SECONDARY_CAPTURE_IMAGE_STORAGE, pictures::transfer_syntax(profile.picture_compression));
    let mut forms = Vec::new();
    forms.extend(has_segmentation.then(|| vec![plain(uids::SEGMENTATION_STORAGE)]));
    let presentation_state = uids::GRAYSCALE_SOFTCOPY_PRESENTATION_STATE_STORAGE;
    forms.extend((profile.presentation_state && !is_ct).then(|| vec![plain(presentation_state)]));
    forms.extend(profile.pictures.then(|| vec![picture]));
    let classes = report_classes(profile);
    if !classes.is_empty() {
        forms.push(classes.into_iter().map(|class| plain(sr::sop_class(class))).collect());
    }
    let is_text_only = profile.report_classes == [ReportClass::BasicText];
    forms.extend((profile.text_companion && !is_text_only).then(|| vec![plain(uids::BASIC_TEXT_SR_STORAGE)]));
    forms.extend(profile.key_objects.then(|| vec![plain(uids::KEY_OBJECT_SELECTION_DOCUMENT_STORAGE)]));
    forms
}

/// Whether a validated bundle calls its target present anywhere.
fn is_present(record: &RunRecord) -> bool {
    if record.bundle.status != BundleStatus::Validated {
        return false;
    }
    match &record.outcome {
        RunOutcome::Analysed(analysis) => analysis.images.iter().any(|image| image.decision == Decision::Present),
        RunOutcome::CtMeasured(analysis) => {
            let of_classes = analysis.classification.as_ref().map(|scan| scan.decision);
            let of_lesions = analysis.lesions.as_ref().map(|lesions| lesions.decision);
            [of_classes, of_lesions].contains(&Some(Decision::Present))
        }
        RunOutcome::NotAnalysed(_) => false,
    }
}
