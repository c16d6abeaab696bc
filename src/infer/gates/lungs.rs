//! Whether what was segmented can be the two lungs of a frontal chest.

use std::ops::RangeInclusive;

use super::{super::settings::GateSettings, Gates, percent, two_decimals};
use crate::{imaging::lungs::LungMeasurements, types::ReasonCode};

impl Gates {
    /// The gates of the mask and, from its shape alone, of the view. `contrast` is how much brighter it is between the lungs
    /// than in them.
    pub(in super::super) fn check_lungs(
        &mut self,
        measured: &LungMeasurements,
        contrast: Option<f64>,
        settings: &GateSettings,
    ) {
        self.check_mask(measured, settings);
        self.check_certainty(measured, contrast, settings);
        self.check_stance(measured, settings);
    }

    fn check_mask(&mut self, measured: &LungMeasurements, settings: &GateSettings) {
        let count = measured.component_count;
        self.add(
            "lung_mask.components",
            (1..=2).contains(&count),
            ReasonCode::LungMask,
            format!("{count} lung fields found, 1 or 2 expected"),
        );
        let area = measured.area_fraction;
        let allowed = &settings.lung_area_fraction;
        self.add(
            "lung_mask.area",
            allowed.contains(&area),
            ReasonCode::LungMask,
            format!("lungs cover {:.1} % of the image, {} expected", area * 100.0, percent_range(allowed)),
        );
        let allowed = &settings.lung_area_ratio;
        let expected = format!("{:.1} to {:.1} expected", allowed.start(), allowed.end());
        let (passed, words) = match measured.left_right_area_ratio {
            Some(ratio) => {
                (allowed.contains(&ratio), format!("the left lung is {ratio:.2} times the right, {expected}"))
            }
            None => (false, format!("not both lungs were found; a ratio of areas of {expected}")),
        };
        self.add("lung_mask.ratio", passed, ReasonCode::LungMask, words);
        let words = if measured.is_side_by_side {
            "the lungs lie side by side"
        } else {
            "no two lungs side by side, as a frontal chest has"
        };
        self.add("lung_mask.position", measured.is_side_by_side, ReasonCode::LungMask, words.to_owned());
    }

    fn check_certainty(&mut self, measured: &LungMeasurements, contrast: Option<f64>, settings: &GateSettings) {
        let limits = &settings.lungs;
        // Without lungs there is no doubt about them either; the gates above have failed.
        self.add_range(
            "lung_mask.doubt",
            ReasonCode::LungMask,
            measured.doubtful_ratio.unwrap_or(0.0),
            (f64::NEG_INFINITY, limits.maximum_doubtful_ratio),
            two_decimals,
            |found| format!("the segmenter doubts {found} pixels for each pixel of lung"),
        );
        match contrast {
            Some(contrast) => self.add_range(
                "lung_mask.contrast",
                ReasonCode::ImageQuality,
                contrast,
                (limits.minimum_contrast, f64::INFINITY),
                two_decimals,
                |found| format!("between the lungs it is brighter than in them by {found}"),
            ),
            // A limit that nothing falls below asks for no lungs either.
            None => self.add(
                "lung_mask.contrast",
                limits.minimum_contrast <= -1.0,
                ReasonCode::ImageQuality,
                "nothing lies between two lungs, whose brightness could be compared".to_owned(),
            ),
        }
    }

    /// Laterals and limbs have no two high, upright, level fields that keep away from the image's border.
    fn check_stance(&mut self, measured: &LungMeasurements, settings: &GateSettings) {
        let (limits, reason) = (&settings.lungs, ReasonCode::ViewNotFrontal);
        self.add_range(
            "view.border",
            reason,
            measured.border_share,
            (f64::NEG_INFINITY, limits.maximum_border_share),
            percent,
            |found| format!("{found} of the image's outermost pixels are lung"),
        );
        let Some(stance) = &measured.stance else {
            let words = "not both lungs were found, as a frontal chest has".to_owned();
            self.add("view.lungs", false, reason, words);
            return;
        };
        self.add_range(
            "view.height",
            reason,
            stance.least_height_fraction,
            (limits.minimum_height_fraction, f64::INFINITY),
            percent,
            |found| format!("the lower lung takes {found} of the image's height"),
        );
        self.add_range(
            "view.level",
            reason,
            stance.level_fraction,
            (limits.minimum_level_fraction, f64::INFINITY),
            percent,
            |found| format!("the lungs share {found} of the lower one's rows"),
        );
        self.add_range(
            "view.upright",
            reason,
            stance.least_height_to_width,
            (limits.minimum_height_to_width, f64::INFINITY),
            two_decimals,
            |found| format!("the less upright lung is {found} times as high as wide"),
        );
    }
}

fn percent_range(range: &RangeInclusive<f64>) -> String {
    format!("{:.0} to {:.0} %", range.start() * 100.0, range.end() * 100.0)
}
