//! What every voxel of a measured volume is, kept beside the measurements for the objects that show it.

use super::{
    BAND_LIMITS_HU, Volume,
    segment::{LEFT_LUNG, LungLabels, RIGHT_LUNG},
};
use crate::types::VoxelLabels;

/// The bits of every voxel, by the bands of [`super::measure`]: what is labelled here is what was measured. `lesions` has 1
/// for each voxel of lesion and 0 elsewhere, in the order of the volume.
///
/// The bits take the place of the lungs' labels: no memory is needed beside them.
#[must_use]
pub fn voxel_labels(volume: &Volume, lungs: LungLabels, lesions: Option<&[u8]>) -> VoxelLabels {
    let [_, from_opacity, _, from_consolidation] = BAND_LIMITS_HU;
    let mut bits = lungs.labels;
    for (label, hu) in bits.iter_mut().zip(&volume.hu) {
        let side = match *label {
            RIGHT_LUNG => VoxelLabels::RIGHT_LUNG,
            LEFT_LUNG => VoxelLabels::LEFT_LUNG,
            _ => 0,
        };
        *label = match side {
            0 => 0,
            side if *hu >= from_consolidation => side | VoxelLabels::OPACITY | VoxelLabels::CONSOLIDATION,
            side if *hu >= from_opacity => side | VoxelLabels::OPACITY,
            side => side,
        };
    }
    for (label, lesion) in bits.iter_mut().zip(lesions.unwrap_or_default()) {
        if *lesion != 0 {
            *label |= VoxelLabels::LESION;
        }
    }
    VoxelLabels { size: volume.size, bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::ct::{AIRWAY, measure};

    #[test]
    fn the_labels_are_what_was_measured() {
        let hu = vec![-960, -701, -700, -101, -100, 50, -800, 50];
        let volume = Volume { size: [4, 1, 2], spacing_mm: [10.0, 10.0, 10.0], hu };
        let lungs = LungLabels {
            labels: vec![RIGHT_LUNG, RIGHT_LUNG, RIGHT_LUNG, LEFT_LUNG, LEFT_LUNG, 0, AIRWAY, 0],
            threshold_hu: None,
            airway_found: true,
            touching: false,
            border_pixels: 0,
            dropped_voxels: 0,
        };
        let measured = measure(&volume, &lungs);
        let lesions = [0, 0, 1, 0, 0, 0, 0, 1];
        let found = voxel_labels(&volume, lungs.clone(), Some(&lesions));
        let (right, left) = (VoxelLabels::RIGHT_LUNG, VoxelLabels::LEFT_LUNG);
        let (opacity, dense, lesion) = (VoxelLabels::OPACITY, VoxelLabels::CONSOLIDATION, VoxelLabels::LESION);
        let expected = [right, right, right | opacity | lesion, left | opacity, left | opacity | dense, 0, 0, lesion];
        assert_eq!((found.size, found.bits.as_slice()), ([4, 1, 2], &expected[..]));
        assert_eq!(found.slices_with(lesion), [0, 1]);
        assert_eq!(found.slices_with(left), [0, 1]);
        assert_eq!(found.slices_with(dense), [1]);

        // Each voxel has one millilitre.
        let ml = |wanted: u8| found.bits.iter().filter(|bits| **bits & wanted == wanted).count() as f64;
        for (lung, side) in measured.iter().zip([right, left]) {
            let whole = &lung.whole;
            assert!((whole.volume_ml - ml(side)).abs() < 1e-9);
            assert!((whole.opacity_fraction() * whole.volume_ml - ml(side | opacity)).abs() < 1e-9);
            assert!((whole.consolidation_fraction() * whole.volume_ml - ml(side | dense)).abs() < 1e-9);
        }
        assert!(voxel_labels(&volume, lungs, None).slices_with(lesion).is_empty());
    }
}
