//! Size, contrast and composition of the decoded picture.

use super::{super::settings::GateSettings, Gates, percent, two_decimals};
use crate::{
    imaging::{Plane, quality::PictureMeasurements},
    types::ReasonCode,
};

/// Fewest distinct grey values of a radiograph; flat, blank and two-tone pictures have fewer.
const MINIMUM_GREY_LEVELS: usize = 32;
/// How far the values between the percentiles must spread, as a share of the whole range: below it the picture is one
/// flat area with a few outliers.
const MINIMUM_CONTRAST_SHARE: f32 = 0.01;

impl Gates {
    /// Size and contrast of the decoded picture, before anything is scaled.
    pub(in super::super) fn check_quality(
        &mut self,
        shown: &Plane,
        percentiles: Option<(f32, f32)>,
        settings: &GateSettings,
    ) {
        let (rows, columns) = (settings.minimum_rows, settings.minimum_columns);
        self.add(
            "quality.size",
            shown.rows >= rows as usize && shown.columns >= columns as usize,
            ReasonCode::ImageQuality,
            format!("{} x {} pixels, at least {rows} x {columns} expected", shown.rows, shown.columns),
        );
        let levels = count_levels(&shown.values);
        let contrast = match (shown.range(), percentiles) {
            (Some((low, high)), Some((black, white))) if high > low => (white - black) / (high - low),
            _ => 0.0,
        };
        let found = if levels < MINIMUM_GREY_LEVELS { levels.to_string() } else { format!("{levels} or more") };
        self.add(
            "quality.dynamic_range",
            levels >= MINIMUM_GREY_LEVELS && contrast >= MINIMUM_CONTRAST_SHARE,
            ReasonCode::ImageQuality,
            format!(
                "{found} grey levels, at least {MINIMUM_GREY_LEVELS} expected; {:.1} % of the range is in use, at \
                 least {:.0} % expected",
                contrast * 100.0,
                MINIMUM_CONTRAST_SHARE * 100.0
            ),
        );
    }

    /// Composition of the scaled picture.
    pub(in super::super) fn check_picture(&mut self, measured: &PictureMeasurements, settings: &GateSettings) {
        let (limits, reason) = (&settings.picture, ReasonCode::ImageQuality);
        let (no_least, no_most) = (f64::NEG_INFINITY, f64::INFINITY);
        self.add_range(
            "quality.aspect_ratio",
            reason,
            measured.aspect_ratio,
            (limits.minimum_aspect_ratio, limits.maximum_aspect_ratio),
            two_decimals,
            |found| format!("the picture is {found} times as wide as high"),
        );
        self.add_range(
            "quality.border",
            reason,
            measured.border_share,
            (no_least, limits.maximum_border_share),
            percent,
            |found| format!("{found} of the picture are empty border"),
        );
        self.add_range(
            "quality.black",
            reason,
            measured.black_share,
            (no_least, limits.maximum_black_share),
            percent,
            |found| format!("{found} of the picture are black"),
        );
        self.add_range(
            "quality.white",
            reason,
            measured.white_share,
            (no_least, limits.maximum_white_share),
            percent,
            |found| format!("{found} of the picture are white"),
        );
        self.add_range(
            "quality.entropy",
            reason,
            measured.entropy_bits,
            (limits.minimum_entropy_bits, no_most),
            |bits| format!("{bits:.1} bits"),
            |found| format!("the grey values have an entropy of {found}"),
        );
        self.add_range(
            "quality.sharpness",
            reason,
            measured.sharpness,
            (limits.minimum_sharpness, limits.maximum_sharpness),
            |value| format!("{value:.4}"),
            |found| format!("the sharpness (variance of the Laplacian by that of the grey values) is {found}"),
        );
        self.add_range(
            "quality.polarity",
            reason,
            measured.polarity,
            (limits.minimum_polarity, no_most),
            two_decimals,
            |found| {
                format!("the middle against lungs and edges is brighter by {found}: below the limit it is a negative")
            },
        );
    }
}

/// Distinct values, counted up to [`MINIMUM_GREY_LEVELS`].
fn count_levels(values: &[f32]) -> usize {
    let mut seen: Vec<u32> = Vec::with_capacity(MINIMUM_GREY_LEVELS);
    for value in values {
        let bits = value.to_bits();
        if !seen.contains(&bits) {
            seen.push(bits);
            if seen.len() == MINIMUM_GREY_LEVELS {
                break;
            }
        }
    }
    seen.len()
}
