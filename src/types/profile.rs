//! What a destination gets of the results, and in which form.

use serde::{Deserialize, Serialize};

/// The SOP class of a report (PS3.4 section B.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportClass {
    /// 1.2.840.10008.5.1.4.1.1.88.33
    Comprehensive,
    /// 1.2.840.10008.5.1.4.1.1.88.22
    Enhanced,
    /// 1.2.840.10008.5.1.4.1.1.88.34
    #[serde(rename = "comprehensive_3d")]
    Comprehensive3d,
    /// 1.2.840.10008.5.1.4.1.1.88.11: another, flat tree of sentences.
    BasicText,
}

impl ReportClass {
    /// All of them, in the order in which they are tried unless told otherwise.
    pub const ALL: [Self; 4] = [Self::Comprehensive, Self::Enhanced, Self::Comprehensive3d, Self::BasicText];

    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Comprehensive => "comprehensive",
            Self::Enhanced => "enhanced",
            Self::Comprehensive3d => "comprehensive_3d",
            Self::BasicText => "basic_text",
        }
    }
}

/// (0008,0060) of pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureModality {
    /// `OT`: stays out of the hanging protocols for the images themselves.
    #[default]
    Other,
    /// That of the image that is shown, for a PACS that hides `OT`.
    Source,
}

/// How the pixels of pictures are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureCompression {
    /// Explicit VR Little Endian.
    #[default]
    None,
    /// RLE Lossless (PS3.5 annex G).
    RleLossless,
    /// JPEG Baseline, which loses; the object says so.
    JpegBaseline,
}

/// Which slices of a CT are sent as pictures of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CtSlicePictures {
    /// Those with lung.
    #[default]
    Lung,
    /// Every one of the series.
    All,
    /// None: the summary alone.
    None,
}

/// Which studies get a segmentation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentationFor {
    /// Chest CT.
    #[default]
    Ct,
    /// Chest CT and radiographs.
    All,
    /// None.
    None,
}

/// What a destination gets of the results, and in which form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResultProfile {
    /// SOP classes of the report, the preferred one first; the next is tried when the destination takes none before it.
    /// An empty list sends no report.
    pub report_classes: Vec<ReportClass>,
    /// Sends the report as sentences too (Basic Text SR), for viewers that show no measurements.
    pub text_companion: bool,
    /// Sends pictures: heat maps of radiographs, the summary of a CT.
    pub pictures: bool,
    /// Which slices of a CT are pictures too.
    pub ct_slices: CtSlicePictures,
    /// (0008,0060) of pictures.
    pub picture_modality: PictureModality,
    /// Encoding of pictures.
    pub picture_compression: PictureCompression,
    /// Longest side of pictures in pixels, [`ResultProfile::PICTURE_SIDE`].
    pub picture_longest_side: u32,
    /// Which studies get a segmentation of the lungs, and for CT of the opacities.
    pub segmentation: SegmentationFor,
    /// Sends outlines of the lungs as a presentation state of the radiograph; some PACS apply the newest by themselves.
    pub presentation_state: bool,
    /// Sends a Key Object Selection "Of Interest" for what a validated bundle calls present.
    pub key_objects: bool,
    /// Language of the texts, such as `en` or `zh`.
    pub language: String,
}

impl Default for ResultProfile {
    fn default() -> Self {
        Self {
            report_classes: ReportClass::ALL.to_vec(),
            text_companion: true,
            pictures: true,
            ct_slices: CtSlicePictures::default(),
            picture_modality: PictureModality::default(),
            picture_compression: PictureCompression::default(),
            picture_longest_side: 1536,
            segmentation: SegmentationFor::default(),
            presentation_state: false,
            key_objects: false,
            language: "en".to_owned(),
        }
    }
}

impl ResultProfile {
    /// Allowed longest sides of pictures in pixels.
    pub const PICTURE_SIDE: std::ops::RangeInclusive<u32> = 512..=8192;

    /// What is wrong with it and the remedy, in words.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, &'static str)> {
        let mut problems = Vec::new();
        let mut classes = self.report_classes.clone();
        classes.sort_unstable();
        classes.dedup();
        if classes.len() < self.report_classes.len() {
            problems.push(("lists a class of the report twice".to_owned(), "list each of results.report_classes once"));
        }
        if !Self::PICTURE_SIDE.contains(&self.picture_longest_side) {
            problems.push((
                format!("has results.picture_longest_side = {}", self.picture_longest_side),
                "give 512 to 8192 pixels",
            ));
        }
        let is_tag =
            |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !self.language.split('-').all(is_tag) {
            problems.push((
                format!("has results.language = {:?}", self.language),
                "give a language tag such as \"en\" or \"zh\"",
            ));
        }
        if self.report_classes.is_empty() && !self.text_companion && !self.pictures {
            problems.push((
                "gets neither report nor pictures".to_owned(),
                "list a class in results.report_classes, or set results.text_companion or results.pictures",
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_its_problems_are_told() {
        let profile: ResultProfile =
            toml::from_str("report_classes = ['comprehensive_3d', 'basic_text']\nlanguage = 'zh'").unwrap();
        assert_eq!(profile.report_classes, [ReportClass::Comprehensive3d, ReportClass::BasicText]);
        assert_eq!(profile.problems(), []);
        assert_eq!(ResultProfile::default().problems(), []);
        assert!(toml::from_str::<ResultProfile>("colour = 'red'").is_err());
        let broken: ResultProfile =
            toml::from_str("report_classes = ['enhanced', 'enhanced']\npicture_longest_side = 100\nlanguage = '../en'")
                .unwrap();
        assert_eq!(broken.problems().len(), 3, "{:?}", broken.problems());
        let nothing = ResultProfile {
            report_classes: Vec::new(),
            text_companion: false,
            pictures: false,
            ..ResultProfile::default()
        };
        assert_eq!(nothing.problems().len(), 1);
    }

    #[test]
    fn classes_are_named_as_in_configuration() {
        for class in ReportClass::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }
}
