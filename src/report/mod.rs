//! From a run record to DICOM bytes: the TID 1500 Structured Report and the Secondary Capture heat map.
//!
//! Start at [`render_report`] and [`render_heat_map`]; both take a [`crate::types::RunRecord`] and the
//! [`SourceHeader`]s of its images. Rendering the same record with the same [`RenderOptions`] gives the same
//! bytes, so a result is rendered once, kept, and resent unchanged for ever.
//!
//! Architecture invariant: pure functions. This room knows no network, no database, no files, no clock and no
//! tensors. Patient data passes through it byte for byte and is never put into an error or a log.
//!
//! The encoding follows `docs/architecture.md` and PS3.3 (Comprehensive SR, Secondary Capture Image), PS3.16
//! (TID 1500, 1501, 4019).

mod basic_text;
mod codes;
mod content;
mod ct;
mod ct_pictures;
mod ct_words;
mod dataset;
mod describe;
mod heat_map;
mod key_objects;
#[cfg(test)]
mod matrix;
mod modules;
#[cfg(test)]
mod object_tests;
mod picture_words;
mod pictures;
mod plan;
mod presentation_state;
#[cfg(test)]
pub mod samples;
mod segmentation;
mod segments;
mod source;
mod sr;
#[cfg(test)]
mod tests;
mod text;
mod texts;
mod trial;
mod uids;
mod when;
mod wording;

pub use ct::ct_measurement_lines;
pub use ct_pictures::{render_ct_slice, render_ct_summary};
pub use describe::describe;
pub use heat_map::render_heat_map;
pub use key_objects::render_key_objects;
pub use picture_words::{ct_overlay_words, ct_slice_words, overlay_words, overlay_words_on_demand};
pub use pictures::RgbPixels;
pub use plan::{Owed, PictureForm, ReportForm, ResultForm, ResultSpec, Shown, forms, owed};
pub use presentation_state::render_presentation_state;
pub use segmentation::render_segmentation;
pub use source::{SourceHeader, SourceHeaderError};
pub use sr::{render_report, render_text_companion};
pub use texts::{Catalogue, Texts, TextsError};
pub use trial::{NO_TRUTH, describe_comparison, describe_trial};
pub use uids::{result_key, uid};
pub use wording::{NOT_FOR_DIAGNOSTIC_USE, heat_elsewhere, is_without_map, why_undetermined};

use dicom_dictionary_std::uids as sop_classes;
use time::UtcOffset;

use crate::types::{Sha256Digest, SourceImage, Uid};

/// SOP classes of the objects that this room makes.
pub const CREATED_SOP_CLASSES: &[&str] = &[
    sop_classes::SECONDARY_CAPTURE_IMAGE_STORAGE,
    sop_classes::SEGMENTATION_STORAGE,
    sop_classes::GRAYSCALE_SOFTCOPY_PRESENTATION_STATE_STORAGE,
    sop_classes::KEY_OBJECT_SELECTION_DOCUMENT_STORAGE,
    sop_classes::BASIC_TEXT_SR_STORAGE,
    sop_classes::ENHANCED_SR_STORAGE,
    sop_classes::COMPREHENSIVE_SR_STORAGE,
    sop_classes::COMPREHENSIVE3_DSR_STORAGE,
];

/// Who wrote the file, as the file meta information says it (PS3.10 section 7.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMetaIds {
    /// (0002,0012)
    pub implementation_class_uid: Uid,
    /// (0002,0013), cut to 16 characters.
    pub implementation_version_name: String,
}

/// What rendering needs besides the record and the source headers. Part of what determines the bytes.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Who wrote the file.
    pub file_meta: FileMetaIds,
    /// Offset of the site's wall clock from UTC, used when the source carries no (0008,0201).
    ///
    /// (0008,0201) applies to every date and time of an object, the copied study date too. So when the source
    /// has it, it is copied and generated times are expressed in it. Otherwise this offset is written and used.
    /// With `None` there is no (0008,0201), and generated times are the wall clock of the offset that
    /// `RunRecord::started_at` carries.
    pub site_utc_offset: Option<UtcOffset>,
    /// (0008,0005) for sources that have bytes above 7FH and no (0008,0005).
    pub assumed_character_set: String,
    /// (0008,0070) of the installation.
    pub manufacturer: String,
    /// (0018,1020): the version of Hilum.
    pub software_version: String,
    /// The languages that there are.
    pub texts: Catalogue,
}

impl RenderOptions {
    /// The defaults: no site offset, `ISO_IR 100` assumed, manufacturer `Hilum`, this build's version.
    #[must_use]
    pub fn new(file_meta: FileMetaIds, texts: Catalogue) -> Self {
        Self {
            file_meta,
            site_utc_offset: None,
            assumed_character_set: "ISO_IR 100".to_owned(),
            manufacturer: "Hilum".to_owned(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            texts,
        }
    }
}

/// What kind of result an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResultKind {
    /// Structured Report with measurements.
    Sr,
    /// Structured Report of sentences that accompanies it.
    SrText,
    /// Secondary Capture picture.
    Sc,
    /// Segmentation.
    Seg,
    /// Presentation state.
    Pr,
    /// Key Object Selection.
    Ko,
}

impl ResultKind {
    /// The name that the database, file names and the status page use, such as `sr`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sr => "sr",
            Self::SrText => "sr_text",
            Self::Sc => "sc",
            Self::Seg => "seg",
            Self::Pr => "pr",
            Self::Ko => "ko",
        }
    }
}

/// One result, encoded and ready to be kept and sent.
#[derive(Clone, PartialEq, Eq)]
pub struct RenderedObject {
    /// (0008,0016)
    pub sop_class_uid: Uid,
    /// (0008,0018), deterministic.
    pub sop_instance_uid: Uid,
    /// (0020,000E), deterministic.
    pub series_instance_uid: Uid,
    /// Explicit VR Little Endian; that of its pixels for a picture that is compressed.
    pub transfer_syntax_uid: Uid,
    /// The whole file: preamble, file meta information, data set.
    pub part10: Vec<u8>,
    /// Digest of `part10`.
    pub sha256: Sha256Digest,
    /// What it is.
    pub kind: ResultKind,
}

impl std::fmt::Debug for RenderedObject {
    /// Leaves the bytes out: they hold patient data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RenderedObject")
            .field("kind", &self.kind)
            .field("sop_instance_uid", &self.sop_instance_uid)
            .field("size_bytes", &self.part10.len())
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

/// Why a record cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No header to copy patient and study from.
    #[error("the results of study {study_instance_uid} need the header of at least one source image; pass one")]
    NoSource {
        /// The study.
        study_instance_uid: Uid,
    },
    /// A header that the record needs was not passed.
    #[error("the header of analysed image {sop_instance_uid} is missing; pass the headers of all analysed images")]
    SourceMissing {
        /// The image.
        sop_instance_uid: Uid,
    },
    /// The header belongs to another study.
    #[error("image {sop_instance_uid} is not of study {study_instance_uid}; pass headers of that study only")]
    OtherStudy {
        /// The image.
        sop_instance_uid: Uid,
        /// The study of the record.
        study_instance_uid: Uid,
    },
    /// There is no such analysed image.
    #[error("the run has no analysed image number {image_idx}: it has {analysed}")]
    NoSuchImage {
        /// Counted from 0.
        image_idx: usize,
        /// How many there are.
        analysed: usize,
    },
    /// The record contradicts itself.
    #[error("the run record is inconsistent: {0}; fix what wrote it")]
    Inconsistent(String),
    /// Nothing would be in the object.
    #[error("the {what} would be empty: {why}; make none")]
    Empty {
        /// Which object.
        what: &'static str,
        /// Why there is nothing for it.
        why: String,
    },
    /// What a source image does not say of itself.
    #[error(
        "image {sop_instance_uid} does not say its {attribute}, without which the {what} cannot be made; make none"
    )]
    AttributeMissing {
        /// The image.
        sop_instance_uid: Uid,
        /// Name and tag.
        attribute: &'static str,
        /// Which object.
        what: &'static str,
    },
    /// The lung mask of the record cannot be used.
    #[error(transparent)]
    LungMask(#[from] crate::imaging::LungMaskError),
    /// The overlay cannot be an image.
    #[error(
        "the overlay of {width} x {height} pixels with {bytes} bytes is not an RGB image; 3 bytes for each of 1 to 65535 columns and rows are expected"
    )]
    Overlay {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Bytes given.
        bytes: usize,
    },
    /// The encoder refused.
    #[error("cannot encode the {what}: {reason}")]
    Encode {
        /// Which part.
        what: &'static str,
        /// The encoder's words.
        reason: String,
    },
}

/// The source images of a run with their headers, in the order of their arrival: the last one is the newest,
/// and its patient and study attributes are the ones that results carry.
pub type Sources<'a> = &'a [(SourceImage, SourceHeader)];
