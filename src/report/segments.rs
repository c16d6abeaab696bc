//! The segments of a segmentation: which there are, their numbers and the identity of the object that holds them. What
//! makes the segmentation and what refers to it both look here.

use dicom_dictionary_std::uids;

use super::{ReportError, Shown, dataset::Identity, modules::Frame};
use crate::types::{CtDensities, ImageAnalysis, RunOutcome, RunRecord, Side, Uid, VoxelLabels};

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
    /// The right lung.
    RightLung,
    /// The left lung.
    LeftLung,
    /// -700 HU and above in the lungs.
    Opacity,
    /// The densest of the measured bands in the lungs.
    Consolidation,
    /// What networks outlined.
    Lesion,
}

impl Segment {
    /// Segment Label (0062,0005).
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::RightLung => "Right lung",
            Self::LeftLung => "Left lung",
            Self::Opacity => "Opacity in the lungs, -700 HU and above",
            Self::Consolidation => "Consolidation-like density in the lungs, -100 HU and above",
            Self::Lesion => "Lesions outlined by networks",
        }
    }

    /// Which bit of [`VoxelLabels`] it is; of a radiograph's mask the lungs have the same numbers.
    pub(super) const fn voxel_bit(self) -> u8 {
        match self {
            Self::RightLung => VoxelLabels::RIGHT_LUNG,
            Self::LeftLung => VoxelLabels::LEFT_LUNG,
            Self::Opacity => VoxelLabels::OPACITY,
            Self::Consolidation => VoxelLabels::CONSOLIDATION,
            Self::Lesion => VoxelLabels::LESION,
        }
    }
}

/// The segments of what is shown, in the order of their Segment Numbers (0062,0004), which count from 1 without gaps
/// (PS3.3 section C.8.20.4.1). What is empty is no segment.
pub(super) fn segments(record: &RunRecord, shown: Shown) -> Vec<Segment> {
    let is_there: [(Segment, bool); 5] = match (&record.outcome, shown) {
        (RunOutcome::Analysed(analysis), Shown::Radiograph(image_idx)) => {
            let image = analysis.images.get(image_idx);
            // A lung that is not in the mask has no share of heat.
            let has = |heat: fn(&ImageAnalysis) -> Option<f64>| image.and_then(heat).is_some();
            [
                (Segment::RightLung, has(|image| image.right_lung_heat_fraction)),
                (Segment::LeftLung, has(|image| image.left_lung_heat_fraction)),
                (Segment::Opacity, false),
                (Segment::Consolidation, false),
                (Segment::Lesion, false),
            ]
        }
        (RunOutcome::CtMeasured(analysis), Shown::Ct) => {
            let mut lungs = analysis.lungs.iter().filter(|lung| lung.whole.volume_ml > 0.0);
            let any = |share: fn(&CtDensities) -> f64| lungs.clone().any(|lung| share(&lung.whole) > 0.0);
            let (opacity, consolidation) =
                (any(CtDensities::opacity_fraction), any(CtDensities::consolidation_fraction));
            let (right, left) =
                (lungs.clone().any(|lung| lung.side == Side::Right), lungs.any(|lung| lung.side == Side::Left));
            let lesions = analysis.lesions.as_ref().is_some_and(|lesions| lesions.volume_ml > 0.0);
            [
                (Segment::RightLung, right),
                (Segment::LeftLung, left),
                (Segment::Opacity, opacity),
                (Segment::Consolidation, consolidation),
                (Segment::Lesion, lesions),
            ]
        }
        _ => return Vec::new(),
    };
    is_there.into_iter().filter_map(|(segment, is_there)| is_there.then_some(segment)).collect()
}

/// The Segment Number of a segment; `None` when there is no such segment.
pub(super) fn segment_number(record: &RunRecord, shown: Shown, segment: Segment) -> Option<u16> {
    let index = segments(record, shown).iter().position(|of| *of == segment)?;
    u16::try_from(index + 1).ok()
}

/// The UIDs of the segmentation of what is shown. All segmentations of a run are one series.
pub(super) fn segmentation_identity(frame: &Frame<'_>, shown: Shown) -> Result<Identity, ReportError> {
    let sop_class_uid = Uid::new(uids::SEGMENTATION_STORAGE)
        .map_err(|error| ReportError::Encode { what: "SOP Class UID", reason: error.to_string() })?;
    let number = match shown {
        Shown::Radiograph(image_idx) => image_idx + 1,
        Shown::Ct => 1,
    };
    Ok(frame.identity("seg", &sop_class_uid, number))
}
