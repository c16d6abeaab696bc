//! What lesions measure that networks outlined in a volume.

use super::{
    Volume,
    segment::{LEFT_LUNG, LungLabels, RIGHT_LUNG},
};
use crate::types::{CtLungLesions, Side};

/// Volume of the lesions, in millilitres, and of those of the right and of the left lung. `lesions` has 1 for each voxel of
/// lesion and 0 elsewhere, in the order of the volume.
#[must_use]
pub fn measure_lesions(volume: &Volume, lungs: &LungLabels, lesions: &[u8]) -> (f64, Vec<CtLungLesions>) {
    let voxel_ml = volume.voxel_ml();
    let is_lesion = |lesion: &u8| *lesion != 0;
    let of_lungs = [(RIGHT_LUNG, Side::Right), (LEFT_LUNG, Side::Left)].map(|(label, side)| {
        let within = || lungs.labels.iter().zip(lesions).filter(|(found, _)| **found == label);
        let (voxels, of_lesion) = (within().count(), within().filter(|(_, lesion)| is_lesion(lesion)).count());
        CtLungLesions {
            side,
            volume_ml: of_lesion as f64 * voxel_ml,
            fraction: (voxels > 0).then(|| of_lesion as f64 / voxels as f64),
        }
    });
    (lesions.iter().filter(|lesion| is_lesion(lesion)).count() as f64 * voxel_ml, of_lungs.to_vec())
}

/// The slice with the most lesion, counted from the feet, the lowest of several; `None` without lesions.
#[must_use]
pub fn slice_with_most_lesion(volume: &Volume, lesions: &[u8]) -> Option<usize> {
    let of_slices = lesions.chunks_exact(volume.slice_pixels().max(1));
    let counts = of_slices.map(|slice| slice.iter().filter(|lesion| **lesion != 0).count());
    let (slice, count) = counts.enumerate().max_by_key(|(slice, count)| (*count, std::cmp::Reverse(*slice)))?;
    (count > 0).then_some(slice)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "sums of few halves")]
mod tests {
    use super::*;

    #[test]
    fn lesions_are_measured_by_lung_and_slice() {
        // Two slices of 4 x 1 pixels, half a millilitre each voxel.
        let volume = Volume { size: [4, 1, 2], spacing_mm: [10.0, 10.0, 5.0], hu: vec![0; 8] };
        let mut lungs = LungLabels {
            labels: vec![RIGHT_LUNG, RIGHT_LUNG, LEFT_LUNG, 0, RIGHT_LUNG, RIGHT_LUNG, 0, 0],
            threshold_hu: None,
            airway_found: false,
            touching: false,
            border_pixels: 0,
            dropped_voxels: 0,
        };
        let lesions = [1, 0, 0, 0, 1, 1, 0, 1];
        let (volume_ml, of_lungs) = measure_lesions(&volume, &lungs, &lesions);
        assert_eq!(volume_ml, 2.0, "one voxel lies beyond the lungs");
        assert_eq!(of_lungs[0], CtLungLesions { side: Side::Right, volume_ml: 1.5, fraction: Some(0.75) });
        assert_eq!(of_lungs[1], CtLungLesions { side: Side::Left, volume_ml: 0.0, fraction: Some(0.0) });
        assert_eq!(slice_with_most_lesion(&volume, &lesions), Some(1));
        assert_eq!(slice_with_most_lesion(&volume, &[1, 0, 0, 0, 0, 0, 1, 0]), Some(0));
        assert_eq!(slice_with_most_lesion(&volume, &[0; 8]), None);
        lungs.labels = vec![0; 8];
        assert_eq!(measure_lesions(&volume, &lungs, &lesions).1[0].fraction, None);
    }
}
