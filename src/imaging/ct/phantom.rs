//! A chest made of ellipsoids, for tests: body, lungs, trachea with bronchi, table, bowel gas, on any grid.

use super::{AIRWAY, BACKGROUND, LEFT_LUNG, RIGHT_LUNG, Volume};

/// What the phantom has beside body and lungs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phantom {
    /// Columns, rows, slices.
    pub(crate) size: [usize; 3],
    pub(crate) spacing_mm: [f64; 3],
    /// The lungs meet in front of the heart, without tissue between them.
    pub(crate) touching: bool,
    /// A dense ball of this radius in millimetres at the pleura of the right lung.
    pub(crate) pleural_lesion_mm: Option<f64>,
    /// Gas below the left diaphragm.
    pub(crate) bowel_gas: bool,
    /// Without any lung: a water phantom.
    pub(crate) without_lungs: bool,
}

impl Default for Phantom {
    fn default() -> Self {
        Self {
            size: [180, 140, 80],
            spacing_mm: [2.0, 2.0, 4.0],
            touching: false,
            pleural_lesion_mm: None,
            bowel_gas: true,
            without_lungs: false,
        }
    }
}

const LUNG_HU: i16 = -850;

fn inside(at: [f64; 3], center: [f64; 3], radii: [f64; 3]) -> bool {
    (0..3).map(|axis| ((at[axis] - center[axis]) / radii[axis]).powi(2)).sum::<f64>() <= 1.0
}

impl Phantom {
    /// The volume, and which lung each voxel truly belongs to; the lesion belongs to its lung.
    pub(crate) fn make(&self) -> (Volume, Vec<u8>) {
        let [columns, rows, slices] = self.size;
        let mut hu = Vec::with_capacity(columns * rows * slices);
        let mut truth = Vec::with_capacity(hu.capacity());
        for slice in 0..slices {
            for row in 0..rows {
                for column in 0..columns {
                    let voxel = [column, row, slice];
                    // Millimetres from the middle: to the left, to the back, to the head.
                    let at: [f64; 3] = std::array::from_fn(|axis| {
                        (voxel[axis] as f64 - (self.size[axis] - 1) as f64 / 2.0) * self.spacing_mm[axis]
                    });
                    let (value, label) = self.voxel(at, voxel);
                    hu.push(value);
                    truth.push(label);
                }
            }
        }
        (Volume { size: self.size, spacing_mm: self.spacing_mm, hu }, truth)
    }

    fn voxel(&self, at: [f64; 3], voxel: [usize; 3]) -> (i16, u8) {
        let [x, y, z] = at;
        // Noise of +-20 HU that is the same on every machine.
        let noise = ((voxel[0] * 7919 + voxel[1] * 104_729 + voxel[2] * 1_299_709) % 41) as i16 - 20;
        // A table of a thin shell around foam, below the back.
        if (112.0..130.0).contains(&y) && x.abs() < 150.0 {
            let is_shell = !(115.0..127.0).contains(&y) || x.abs() > 147.0;
            return (if is_shell { 100 } else { -920 }, BACKGROUND);
        }
        if !inside([x, y, 0.0], [0.0, 0.0, 0.0], [160.0, 105.0, 1.0]) {
            return (-1000, BACKGROUND);
        }
        // Ribs give the trunk its width.
        if !inside([x, y, 0.0], [0.0, 0.0, 0.0], [150.0, 96.0, 1.0]) {
            return (300 + noise, BACKGROUND);
        }
        if !self.without_lungs {
            let airway = z > 0.0 && inside([x, y - 10.0, 0.0], [0.0; 3], [9.0, 9.0, 1.0])
                || (z.abs() < 8.0 && (y - 10.0).abs() < 6.0 && x.abs() < 45.0);
            if airway {
                return (-990, AIRWAY);
            }
            // Half shells that meet in the middle plane, or stand 10 mm apart.
            let apart = if self.touching && y < -40.0 { 0.0 } else { 8.0 };
            let heart = inside(at, [15.0, -10.0, -60.0], [52.0, 48.0, 60.0]);
            let wall = z > -5.0 && inside([x, y - 10.0, 0.0], [0.0; 3], [14.0, 14.0, 1.0]);
            let side = if x < 0.0 { RIGHT_LUNG } else { LEFT_LUNG };
            if x.abs() >= apart && !heart && !wall && inside(at, [0.0, 0.0, -10.0], [135.0, 82.0, 130.0]) {
                let lesion = self.pleural_lesion_mm.is_some_and(|radius| inside(at, [-130.0, 0.0, -10.0], [radius; 3]));
                let vessel = voxel[0] % 13 < 2 && voxel[1] % 11 < 2;
                // Where the lungs touch, the pleura is a little brighter.
                let pleura = self.touching && y < -40.0 && x.abs() < 2.5;
                let value = if lesion || vessel {
                    30
                } else if pleura {
                    -620
                } else {
                    LUNG_HU
                };
                return (value + noise, side);
            }
        }
        if self.bowel_gas && inside(at, [70.0, 0.0, -150.0], [45.0, 40.0, 12.0]) {
            return (-980, BACKGROUND);
        }
        (40 + noise, BACKGROUND)
    }
}

/// Overlap of a label in both: twice what they share over the sum of their sizes.
pub(crate) fn dice(found: &[u8], truth: &[u8], label: u8) -> f64 {
    let count = |labels: &[u8]| labels.iter().map(|found| f64::from(*found == label)).sum::<f64>();
    let both = found.iter().zip(truth).filter(|(found, truth)| **found == label && **truth == label).count() as f64;
    2.0 * both / (count(found) + count(truth))
}
