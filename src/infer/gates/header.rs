//! What the header alone tells. Headers are often empty and sometimes wrong: what is not stated passes with these words and
//! proves nothing, and no later gate is spared for what is.

use super::{super::settings::GateSettings, Gates};
use crate::{
    imaging::{ImageHeader, View, names_chest},
    nn::Policy,
    types::ReasonCode,
};

/// Modalities (0008,0060) of radiographs; the last two are retired or used by mistake.
const MODALITIES: [&str; 4] = ["CR", "DX", "DR", "RG"];

impl Gates {
    /// All gates of the header.
    pub(in super::super) fn check_header(&mut self, header: &ImageHeader, settings: &GateSettings) {
        self.check_modality(header);
        self.check_body_part(header);
        self.check_anatomic_region(header);
        self.check_view(header, settings);
        self.check_orientation(header);
        self.check_age(header, settings);
        self.check_image_type(header, settings);
        self.check_colour(header, settings);
        self.check_burned_in_annotation(header, settings);
    }

    fn check_modality(&mut self, header: &ImageHeader) {
        let (passed, words) = match header.modality.as_deref() {
            None => (true, "modality not stated".to_owned()),
            Some(modality) => (
                MODALITIES.contains(&modality),
                format!("Modality (0008,0060) is {modality}, one of {} expected", MODALITIES.join(", ")),
            ),
        };
        self.add("header.modality", passed, ReasonCode::UnsupportedImage, words);
    }

    fn check_body_part(&mut self, header: &ImageHeader) {
        let (passed, words) = match header.body_part_examined.as_deref() {
            None => (true, "body part not stated".to_owned()),
            Some(part) => (names_chest(part), format!("Body Part Examined (0018,0015) is {part}, expected CHEST")),
        };
        self.add("header.body_part", passed, ReasonCode::NoSuitableImage, words);
    }

    fn check_anatomic_region(&mut self, header: &ImageHeader) {
        let (passed, words) = match &header.anatomic_region {
            None => (true, "anatomic region not stated".to_owned()),
            Some(region) => (
                region.is_chest,
                format!("Anatomic Region Sequence (0008,2218) says {}, the chest expected", region.meaning),
            ),
        };
        self.add("header.anatomic_region", passed, ReasonCode::NoSuitableImage, words);
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

    /// A mirrored picture would exchange the lungs in the report; one whose rows run towards the front is a lateral.
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
            Some(direction) if direction.starts_with(['A', 'P', 'H', 'F']) => (
                false,
                format!(
                    "Patient Orientation (0020,0020) starts with {direction}: the picture is lateral or turned, expected \
                     rows towards the patient's left"
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

    fn check_image_type(&mut self, header: &ImageHeader, settings: &GateSettings) {
        let is =
            |idx: usize, value: &str| header.image_type.get(idx).is_some_and(|found| found.eq_ignore_ascii_case(value));
        let is_localizer = header.image_type.iter().any(|value| value.eq_ignore_ascii_case("LOCALIZER"));
        let refuses = |kind: bool, policy: Policy| kind && policy == Policy::Refuse;
        let expected = if is_localizer {
            Some((ReasonCode::Localizer, "no localizer"))
        } else if refuses(is(0, "DERIVED"), settings.policies.derived) {
            Some((ReasonCode::UnsupportedImage, "ORIGINAL pixels"))
        } else if refuses(is(1, "SECONDARY"), settings.policies.secondary) {
            Some((ReasonCode::UnsupportedImage, "PRIMARY: a picture of the examination itself"))
        } else {
            None
        };
        let words = if header.image_type.iter().all(String::is_empty) {
            "image type not stated".to_owned()
        } else {
            let values: Vec<String> =
                header.image_type.iter().take(4).map(|value| value.chars().take(16).collect()).collect();
            let expected = expected.map_or_else(String::new, |(_, expected)| format!(", expected {expected}"));
            format!("Image Type (0008,0008) is {}{expected}", values.join(", "))
        };
        let reason = expected.map_or(ReasonCode::UnsupportedImage, |(reason, _)| reason);
        self.add("header.image_type", expected.is_none(), reason, words);
    }

    fn check_colour(&mut self, header: &ImageHeader, settings: &GateSettings) {
        let (passed, words) = match header.photometric_interpretation.as_deref() {
            None => (true, "photometric interpretation not stated".to_owned()),
            Some(found) if found.starts_with("MONOCHROME") => (true, "the picture is in shades of grey".to_owned()),
            Some(found) => (
                settings.policies.colour == Policy::Accept,
                format!("Photometric Interpretation (0028,0004) is {found}, shades of grey expected"),
            ),
        };
        self.add("header.colour", passed, ReasonCode::UnsupportedImage, words);
    }

    fn check_burned_in_annotation(&mut self, header: &ImageHeader, settings: &GateSettings) {
        let (passed, words) = match header.burned_in_annotation {
            None => (true, "burned-in annotation not stated"),
            Some(false) => (true, "Burned In Annotation (0028,0301) is NO"),
            Some(true) => (
                settings.policies.burned_in_annotation == Policy::Accept,
                "Burned In Annotation (0028,0301) is YES: the picture may show who the patient is",
            ),
        };
        self.add("header.burned_in_annotation", passed, ReasonCode::UnsupportedImage, words.to_owned());
    }
}
