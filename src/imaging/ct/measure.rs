//! Densitometry: volume, mean, percentile and density bands of each lung and its thirds.

use super::{
    LungLabels, Volume,
    segment::{LEFT_LUNG, RIGHT_LUNG},
};
use crate::types::{CtDensities, CtLung, Side};

/// Name and version of the measurements, as results record it.
pub const DENSITOMETRY_METHOD: &str = "hilum-lung-densitometry 1";

/// Limits of the density bands in Hounsfield units.
///
/// | from | to | name here | where it comes from |
/// | --- | --- | --- | --- |
/// | | below -950 | emphysema-like | Gevenois et al., Am J Respir Crit Care Med 1996;154:187-192 (density mask) |
/// | -950 | below -700 | well aerated | Colombi et al., Radiology 2020;296:E86-E96 |
/// | -700 | below -500 | ground-glass-like | between well aerated and the compromised lung of Lanza et al. |
/// | -500 | below -100 | poorly aerated | Gattinoni et al., Am J Respir Crit Care Med 2001;164:1701-1711; Lanza et al., Eur Radiol 2020;30:6770-6778 |
/// | -100 | | consolidation-like | not aerated in Gattinoni et al.; vessels are here too |
///
/// A band says how dense a voxel is, not what it is: breathing depth, gravity, vessels, contrast medium, kernel and
/// slice thickness move voxels between bands.
pub const BAND_LIMITS_HU: [i16; 4] = [-950, -700, -500, -100];

/// Lowest and highest value of the histograms, in Hounsfield units; what lies beyond counts as these.
const LOWEST_HU: i16 = -1024;
const HIGHEST_HU: i16 = 3071;

/// Measures the right lung, then the left.
#[must_use]
pub fn measure(volume: &Volume, lungs: &LungLabels) -> Vec<CtLung> {
    [(Side::Right, RIGHT_LUNG), (Side::Left, LEFT_LUNG)]
        .into_iter()
        .map(|(side, label)| {
            let pixels = volume.slice_pixels().max(1);
            let mut holding = lungs.labels.chunks_exact(pixels).enumerate().filter(|(_, slice)| slice.contains(&label));
            let first = holding.next().map_or(0, |(slice, _)| slice);
            let end = holding.next_back().map_or(first, |(slice, _)| slice) + 1;
            // The slices of each third of its height, from the top; what is left over goes to the middle.
            let third = (end - first) / 3;
            let ranges = [end - third..end, first + third..end - third, first..first + third];
            let histograms = ranges.map(|slices| {
                let mut histogram = Histogram::new();
                let voxels = slices.start * pixels..slices.end * pixels;
                let labels = lungs.labels.get(voxels.clone()).unwrap_or_default();
                let hu = volume.hu.get(voxels).unwrap_or_default();
                labels.iter().zip(hu).filter(|(found, _)| **found == label).for_each(|(_, hu)| histogram.add(*hu));
                histogram
            });
            let mut whole = Histogram::new();
            for part in &histograms {
                whole.join(part);
            }
            let voxel_ml = volume.voxel_ml();
            CtLung { side, whole: whole.densities(voxel_ml), thirds: histograms.map(|part| part.densities(voxel_ml)) }
        })
        .collect()
}

/// How often each Hounsfield unit occurs.
struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    fn new() -> Self {
        Self { counts: vec![0; (HIGHEST_HU - LOWEST_HU) as usize + 1] }
    }

    fn add(&mut self, hu: i16) {
        self.counts[(hu.clamp(LOWEST_HU, HIGHEST_HU) - LOWEST_HU) as usize] += 1;
    }

    fn join(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }

    fn densities(&self, voxel_ml: f64) -> CtDensities {
        let total: u64 = self.counts.iter().sum();
        let with_hu = || self.counts.iter().zip(LOWEST_HU..).filter(|(count, _)| **count > 0);
        let mut bands = [0_u64; 5];
        for (count, hu) in with_hu() {
            bands[BAND_LIMITS_HU.iter().filter(|limit| hu >= **limit).count()] += count;
        }
        let sum: f64 = with_hu().map(|(count, hu)| *count as f64 * f64::from(hu)).sum();
        let mut seen = 0;
        // The nearest-rank percentile: the smallest value with at least 15 percent at or below it.
        let percentile = with_hu().find(|(count, _)| {
            seen += **count;
            seen * 100 >= total * 15
        });
        let share = |count: u64| if total == 0 { 0.0 } else { count as f64 / total as f64 };
        CtDensities {
            volume_ml: total as f64 * voxel_ml,
            mean_hu: (total > 0).then(|| sum / total as f64),
            percentile_15_hu: percentile.map(|(_, hu)| f64::from(hu)),
            band_fractions: bands.map(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lungs_of(labels: Vec<u8>) -> LungLabels {
        LungLabels {
            labels,
            threshold_hu: Some(-500),
            airway_found: true,
            touching: false,
            border_pixels: 0,
            dropped_voxels: 0,
        }
    }

    #[test]
    fn numbers_are_those_of_a_small_lung_by_hand() {
        let hu: Vec<i16> = vec![-960, -951, -950, -701, -700, -501, -500, -101, -100, 50];
        let volume = Volume { size: [10, 1, 1], spacing_mm: [1.0, 2.0, 5.0], hu };
        let measured = measure(&volume, &lungs_of(vec![RIGHT_LUNG; 10]));
        let right = measured[0].whole;
        assert_eq!((measured[0].side, measured[1].side), (Side::Right, Side::Left));
        assert!((right.volume_ml - 0.1).abs() < 1e-12);
        assert_eq!(right.mean_hu, Some(-541.4));
        assert_eq!(right.percentile_15_hu, Some(-951.0));
        let is_fifth = |share: &f64| (share - 0.2).abs() < 1e-12;
        assert!(right.band_fractions.iter().all(is_fifth), "each limit belongs to the band above it");
        assert!((right.opacity_fraction() - 0.6).abs() < 1e-12);
        assert!((right.consolidation_fraction() - 0.2).abs() < 1e-12);
        let left = measured[1].whole;
        assert_eq!((left.mean_hu, left.percentile_15_hu), (None, None));
        assert!(left.band_fractions.iter().all(|share| *share == 0.0));
    }

    #[test]
    fn thirds_follow_the_height_of_each_lung_from_the_top() {
        let slices = 9;
        let hu: Vec<i16> = (0..slices).flat_map(|slice| [-900 + 10 * slice, -800]).collect();
        let volume = Volume { size: [2, 1, slices as usize], spacing_mm: [10.0, 10.0, 10.0], hu };
        // The right lung fills slices 0 to 8, the left 2 to 4.
        let labels =
            (0..slices).flat_map(|slice| [RIGHT_LUNG, if (2..5).contains(&slice) { LEFT_LUNG } else { 0 }]).collect();
        let measured = measure(&volume, &lungs_of(labels));
        let means = measured[0].thirds.map(|third| third.mean_hu);
        assert_eq!(means, [Some(-830.0), Some(-860.0), Some(-890.0)]);
        assert!(measured[1].thirds.iter().all(|third| (third.volume_ml - 1.0).abs() < 1e-12));
        let sum: f64 = measured[0].thirds.iter().map(|third| third.volume_ml).sum();
        assert!((sum - measured[0].whole.volume_ml).abs() < 1e-12);
    }
}
