//! The checks of the input. Each gives a verdict in words; whether failing one stops the analysis is the bundle's
//! status.

use std::ops::RangeInclusive;

use super::settings::GateSettings;
use crate::{
    imaging::{ImageHeader, Plane, View, lungs::LungMeasurements},
    types::{GateResult, ReasonCode},
};

/// Fewest distinct grey values of a radiograph; flat, blank and two-tone pictures have fewer.
const MINIMUM_GREY_LEVELS: usize = 32;
/// How far the values between the percentiles must spread, as a share of the whole range: below it the picture is one
/// flat area with a few outliers.
const MINIMUM_CONTRAST_SHARE: f32 = 0.01;

/// Collects verdicts.
pub(super) struct Gates {
    results: Vec<GateResult>,
    enforced: bool,
}

impl Gates {
    pub(super) const fn new(enforced: bool) -> Self {
        Self { results: Vec::new(), enforced }
    }

    fn add(&mut self, id: &str, passed: bool, reason: ReasonCode, words: String) {
        self.results.push(GateResult { id: id.to_owned(), passed, enforced: self.enforced, reason, words });
    }

    /// The first failed gate that stops the analysis.
    pub(super) fn stopping(&self) -> Option<&GateResult> {
        self.results.iter().find(|gate| gate.enforced && !gate.passed)
    }

    pub(super) fn into_results(self) -> Vec<GateResult> {
        self.results
    }

    /// What the header alone tells.
    pub(super) fn check_header(&mut self, header: &ImageHeader, settings: &GateSettings) {
        self.check_body_part(header);
        self.check_view(header, settings);
        self.check_orientation(header);
        self.check_age(header, settings);
    }

    fn check_body_part(&mut self, header: &ImageHeader) {
        let (passed, words) = match header.body_part_examined.as_deref() {
            None => (true, "body part not stated".to_owned()),
            Some(part) => {
                let is_chest = ["CHEST", "THORA", "LUNG"].iter().any(|word| part.contains(word));
                (is_chest, format!("Body Part Examined (0018,0015) is {part}, expected CHEST"))
            }
        };
        self.add("header.body_part", passed, ReasonCode::NoSuitableImage, words);
    }

    fn check_view(&mut self, header: &ImageHeader, settings: &GateSettings) {
        let accepts = |view: &str| settings.accepted_views.iter().any(|accepted| accepted.eq_ignore_ascii_case(view));
        let (passed, words) = match &header.view {
            View::NotStated => (accepts(""), "view not stated".to_owned()),
            View::Other(view) => (false, format!("the view is {view}, expected a frontal one")),
            view => (accepts(view.label()), format!("the view is {}", view.label())),
        };
        self.add("header.view", passed, ReasonCode::ViewNotFrontal, words);
    }

    /// A mirrored picture would exchange the lungs in the report.
    fn check_orientation(&mut self, header: &ImageHeader) {
        let (passed, words) = match header.row_direction.as_deref() {
            None => (true, "orientation not stated".to_owned()),
            Some(direction) if direction.starts_with('R') => (
                false,
                format!(
                    "Patient Orientation (0020,0020) starts with {direction}: the picture is mirrored, expected rows \
                     towards the patient's left"
                ),
            ),
            Some(direction) => (true, format!("Patient Orientation (0020,0020) starts with {direction}")),
        };
        self.add("header.orientation", passed, ReasonCode::ViewNotFrontal, words);
    }

    fn check_age(&mut self, header: &ImageHeader, settings: &GateSettings) {
        let minimum = settings.minimum_age_years;
        let (passed, words) = match header.patient_age {
            None => (true, "age not stated".to_owned()),
            Some(age) if age.is_at_least(minimum) => (true, format!("the patient is at least {minimum} years old")),
            Some(_) => (false, format!("the patient is younger than {minimum} years")),
        };
        self.add("header.age", passed, ReasonCode::AgeOutOfScope, words);
    }

    /// Size and contrast of the decoded picture.
    pub(super) fn check_quality(&mut self, shown: &Plane, percentiles: Option<(f32, f32)>, settings: &GateSettings) {
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

    /// Whether what was segmented can be two lungs.
    pub(super) fn check_lungs(&mut self, measured: &LungMeasurements, settings: &GateSettings) {
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
}

fn percent_range(range: &RangeInclusive<f64>) -> String {
    format!("{:.0} to {:.0} %", range.start() * 100.0, range.end() * 100.0)
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
