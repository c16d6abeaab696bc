//! `[input.gates]` of a manifest: what a radiograph or a chest CT must satisfy. What each gate measures, and where its default
//! comes from, is told in `docs/gates.md`.

use serde::{Deserialize, Serialize};

use super::manifest::{Problems, is_plain_name};
use crate::types::Sha256Digest;

/// What the input must satisfy; reported for all bundles, enforced unless the bundle is untrained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// Youngest patient in years.
    pub minimum_age_years: u32,
    /// View Positions (0018,5101) that are read, such as `PA`; an empty text accepts an absent one.
    pub accepted_views: Vec<String>,
    /// Smallest share of the image that the lungs may cover, 0 to 1.
    pub minimum_lung_area_fraction: f64,
    /// Largest share of the image that the lungs may cover, 0 to 1.
    pub maximum_lung_area_fraction: f64,
    /// Smallest ratio of left to right lung area.
    pub minimum_lung_area_ratio: f64,
    /// Largest ratio of left to right lung area.
    pub maximum_lung_area_ratio: f64,
    /// Fewest rows of the source image.
    pub minimum_rows: u32,
    /// Fewest columns of the source image.
    pub minimum_columns: u32,
    /// Largest difference between the members' outputs for the target class, 0 to 1; 1 lets everything pass.
    #[serde(default = "Gates::default_member_spread", skip_serializing_if = "Gates::is_default_member_spread")]
    pub maximum_member_spread: f64,
    /// What becomes of images of a kind that may or may not be meant.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policies: GatePolicies,
    /// Limits of the picture's grey values.
    #[serde(default, skip_serializing_if = "is_default")]
    pub picture: PictureLimits,
    /// Limits of the lung mask's shape.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lungs: LungLimits,
    /// Limits of the distance from the training images; `hilum gate fit` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<FeatureGate>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What becomes of images of a certain kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// They are analysed.
    Accept,
    /// They are refused.
    Refuse,
}

/// What becomes of images of a kind that may or may not be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatePolicies {
    /// First value of Image Type (0008,0008) DERIVED: most radiographs are, processed for viewing.
    pub derived: Policy,
    /// Second value of Image Type (0008,0008) SECONDARY: made after the examination, as screenshots are.
    pub secondary: Policy,
    /// Photometric Interpretation (0028,0004) of colour.
    pub colour: Policy,
    /// Burned In Annotation (0028,0301) YES.
    pub burned_in_annotation: Policy,
}

impl Default for GatePolicies {
    fn default() -> Self {
        Self {
            derived: Policy::Accept,
            secondary: Policy::Refuse,
            colour: Policy::Refuse,
            burned_in_annotation: Policy::Accept,
        }
    }
}

/// Limits of the picture's grey values, as `imaging::quality` measures them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PictureLimits {
    /// Smallest ratio of columns to rows.
    pub minimum_aspect_ratio: f64,
    /// Largest ratio of columns to rows.
    pub maximum_aspect_ratio: f64,
    /// Largest share of black pixels, 0 to 1.
    pub maximum_black_share: f64,
    /// Largest share of white pixels, 0 to 1.
    pub maximum_white_share: f64,
    /// Largest share of empty border, 0 to 1.
    pub maximum_border_share: f64,
    /// Least entropy of the grey values, 0 to 8 bits.
    pub minimum_entropy_bits: f64,
    /// Least variance of the Laplacian relative to that of the grey values.
    pub minimum_sharpness: f64,
    /// Largest variance of the Laplacian relative to that of the grey values.
    pub maximum_sharpness: f64,
    /// Least brightness of the middle against its surroundings, -2 to 2.
    pub minimum_polarity: f64,
}

impl Default for PictureLimits {
    fn default() -> Self {
        Self {
            minimum_aspect_ratio: 0.5,
            maximum_aspect_ratio: 2.0,
            maximum_black_share: 0.5,
            maximum_white_share: 0.2,
            maximum_border_share: 0.45,
            minimum_entropy_bits: 5.5,
            minimum_sharpness: 0.004,
            maximum_sharpness: 0.35,
            minimum_polarity: -0.2,
        }
    }
}

/// Limits of the lung mask's shape, as `imaging::lungs` measures it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LungLimits {
    /// Least height of each lung as a share of the image's, 0 to 1.
    pub minimum_height_fraction: f64,
    /// Least share of the lower lung's rows that both reach, 0 to 1.
    pub minimum_level_fraction: f64,
    /// Least height of each lung divided by its width.
    pub minimum_height_to_width: f64,
    /// Largest share of the image's outermost pixels that may be lung, 0 to 1.
    pub maximum_border_share: f64,
    /// Least brightness of what lies between the lungs against the lungs, -1 to 1.
    pub minimum_contrast: f64,
    /// Most pixels in doubt for each pixel of lung.
    pub maximum_doubtful_ratio: f64,
}

impl Default for LungLimits {
    fn default() -> Self {
        Self {
            minimum_height_fraction: 0.3,
            minimum_level_fraction: 0.6,
            minimum_height_to_width: 0.8,
            maximum_border_share: 0.35,
            minimum_contrast: 0.0,
            maximum_doubtful_ratio: 1.0,
        }
    }
}

/// The distance from the training images in the feature space of one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureGate {
    /// The classifier whose features are compared.
    pub member: String,
    /// File of the feature space, a plain name in the bundle's folder.
    pub file: String,
    /// Digest of the file.
    pub sha256: Sha256Digest,
    /// Which of the nearest training images the second distance is to, from 1.
    pub neighbours: u32,
    /// Largest Mahalanobis distance to the nearest class.
    pub maximum_mahalanobis_distance: f64,
    /// Largest distance to the training image that `neighbours` names.
    pub maximum_neighbour_distance: f64,
    /// Share of the held-out images that each limit lets pass.
    pub quantile: f64,
    /// Images that the feature space was fitted on.
    pub n_fitted: u64,
    /// Images of other patients that the limits were set on.
    pub n_held_out: u64,
}

impl Gates {
    const fn default_member_spread() -> f64 {
        1.0
    }

    #[expect(clippy::float_cmp, reason = "1.0 is exact")]
    fn is_default_member_spread(spread: &f64) -> bool {
        *spread == Self::default_member_spread()
    }

    /// `members` are the names of the bundle's classifiers.
    pub(super) fn check(&self, members: &[&str], problems: &mut Problems) {
        problems.check(!self.accepted_views.is_empty(), || {
            "`input.gates.accepted_views` is empty: list View Positions such as \"PA\", and \"\" for an absent one"
                .to_owned()
        });
        for view in &self.accepted_views {
            problems.check(view.len() <= 16 && view.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), || {
                format!("`input.gates.accepted_views` lists {view:?}: give capital letters and digits, at most 16, or \"\"")
            });
        }
        let (low, high) = (self.minimum_lung_area_fraction, self.maximum_lung_area_fraction);
        problems.check(0.0 <= low && low < high && high <= 1.0, || {
            format!(
                "`input.gates.minimum_lung_area_fraction` is {low} and `maximum_lung_area_fraction` {high}: \
                 give 0 <= minimum < maximum <= 1"
            )
        });
        let (low, high) = (self.minimum_lung_area_ratio, self.maximum_lung_area_ratio);
        problems.check(0.0 <= low && low < high && high.is_finite(), || {
            format!(
                "`input.gates.minimum_lung_area_ratio` is {low} and `maximum_lung_area_ratio` {high}: \
                 give 0 <= minimum < maximum"
            )
        });
        check_range("maximum_member_spread", self.maximum_member_spread, 0.0, 1.0, problems);
        self.picture.check(problems);
        self.lungs.check(problems);
        if let Some(features) = &self.features {
            features.check(members, problems);
        }
    }
}

/// What a chest CT must satisfy, as far as a bundle may say so; reported for all bundles, enforced unless the bundle is
/// untrained. What is left out is as for adults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CtGates {
    /// Youngest patient in years.
    pub minimum_age_years: u32,
    /// Words in capital letters: a stated body part holds one of them. An empty text accepts an absent one.
    pub accepted_body_parts: Vec<String>,
    /// Thickest slices in millimetres: thicker ones mix lung with what surrounds it.
    pub maximum_slice_thickness_mm: f64,
    /// Least volume of one lung in millilitres.
    pub minimum_lung_ml: f64,
    /// Largest volume of one lung in millilitres.
    pub maximum_lung_ml: f64,
}

impl Default for CtGates {
    fn default() -> Self {
        // Many examinations take in more than the chest.
        let body_parts = ["CHEST", "THORA", "LUNG", "PULMO", "BODY", "TRUNK", "TORSO", ""];
        Self {
            minimum_age_years: 18,
            accepted_body_parts: body_parts.map(str::to_owned).to_vec(),
            maximum_slice_thickness_mm: 10.0,
            minimum_lung_ml: 300.0,
            maximum_lung_ml: 6000.0,
        }
    }
}

impl CtGates {
    pub(super) fn is_default(&self) -> bool {
        is_default(self)
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        let age = self.minimum_age_years;
        problems.check(age <= 120, || format!("`input.gates.minimum_age_years` is {age}: give 0 to 120"));
        problems.check(self.accepted_body_parts.iter().any(|word| !word.is_empty()), || {
            "`input.gates.accepted_body_parts` names none: list words such as \"CHEST\", and \"\" for an absent one"
                .to_owned()
        });
        for word in &self.accepted_body_parts {
            let is_plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b' ' || b == b'_';
            problems.check(word.len() <= 64 && word.trim() == word && word.bytes().all(is_plain), || {
                format!(
                    "`input.gates.accepted_body_parts` lists {word:?}: give capital letters, digits, spaces and `_`, at most \
                     64, or \"\""
                )
            });
        }
        check_range("maximum_slice_thickness_mm", self.maximum_slice_thickness_mm, 0.1, 20.0, problems);
        let (low, high) = (self.minimum_lung_ml, self.maximum_lung_ml);
        problems.check(0.0 <= low && low < high && high <= 20_000.0, || {
            format!(
                "`input.gates.minimum_lung_ml` is {low} and `maximum_lung_ml` {high}: give 0 <= minimum < maximum <= 20000"
            )
        });
    }
}

/// `key` below `input.gates` has a `value` from `least` to `most`.
fn check_range(key: &str, value: f64, least: f64, most: f64, problems: &mut Problems) {
    problems.check((least..=most).contains(&value), || {
        format!("`input.gates.{key}` is {value}: give a number from {least} to {most}")
    });
}

impl PictureLimits {
    fn check(&self, problems: &mut Problems) {
        for (key, value, least, most) in [
            ("minimum_aspect_ratio", self.minimum_aspect_ratio, 0.01, 1.0),
            ("maximum_aspect_ratio", self.maximum_aspect_ratio, 1.0, 100.0),
            ("maximum_black_share", self.maximum_black_share, 0.0, 1.0),
            ("maximum_white_share", self.maximum_white_share, 0.0, 1.0),
            ("maximum_border_share", self.maximum_border_share, 0.0, 1.0),
            ("minimum_entropy_bits", self.minimum_entropy_bits, 0.0, 8.0),
            ("minimum_sharpness", self.minimum_sharpness, 0.0, 100.0),
            ("maximum_sharpness", self.maximum_sharpness, 0.0, 100.0),
            ("minimum_polarity", self.minimum_polarity, -2.0, 2.0),
        ] {
            check_range(&format!("picture.{key}"), value, least, most, problems);
        }
        let (low, high) = (self.minimum_sharpness, self.maximum_sharpness);
        problems.check(low < high, || {
            format!(
                "`input.gates.picture.minimum_sharpness` is {low} and `maximum_sharpness` {high}: give minimum < maximum"
            )
        });
    }
}

impl LungLimits {
    fn check(&self, problems: &mut Problems) {
        for (key, value, least, most) in [
            ("minimum_height_fraction", self.minimum_height_fraction, 0.0, 1.0),
            ("minimum_level_fraction", self.minimum_level_fraction, 0.0, 1.0),
            ("minimum_height_to_width", self.minimum_height_to_width, 0.0, 10.0),
            ("maximum_border_share", self.maximum_border_share, 0.0, 1.0),
            ("minimum_contrast", self.minimum_contrast, -1.0, 1.0),
            ("maximum_doubtful_ratio", self.maximum_doubtful_ratio, 0.0, 1000.0),
        ] {
            check_range(&format!("lungs.{key}"), value, least, most, problems);
        }
    }
}

impl FeatureGate {
    fn check(&self, members: &[&str], problems: &mut Problems) {
        problems.check(members.contains(&self.member.as_str()), || {
            let (member, members) = (&self.member, members.join(", "));
            format!("`input.gates.features.member` is `{member}`: give one of {members}")
        });
        problems.check(is_plain_name(&self.file) && self.file.ends_with(".safetensors"), || {
            format!(
                "`input.gates.features.file` is {:?}: give the plain name of a file in the bundle's folder that ends in \
                 `.safetensors`, as `hilum gate fit` writes it",
                self.file.chars().take(80).collect::<String>()
            )
        });
        for (key, value) in [
            ("maximum_mahalanobis_distance", self.maximum_mahalanobis_distance),
            ("maximum_neighbour_distance", self.maximum_neighbour_distance),
        ] {
            problems.check(value.is_finite() && value > 0.0, || {
                format!("`input.gates.features.{key}` is {value}: give a number above 0")
            });
        }
        problems.check((1..=1000).contains(&self.neighbours), || {
            format!("`input.gates.features.neighbours` is {}: give 1 to 1000", self.neighbours)
        });
        check_range("features.quantile", self.quantile, 0.5, 1.0, problems);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Input, MANIFEST_FILE_NAME, Manifest, init::test_bundle},
        *,
    };

    /// The manifest of the test bundle with something put before its `[classification]`.
    fn parsed(added: &str) -> Result<Manifest, String> {
        let folder = test_bundle();
        let text = fs_err::read_to_string(folder.path().join(MANIFEST_FILE_NAME)).unwrap();
        assert!(text.contains("[classification]\n"));
        let text = text.replace("[classification]\n", &format!("{added}\n\n[classification]\n"));
        Manifest::parse(&text).map_err(|problems| problems.join("\n"))
    }

    fn gates(manifest: &Manifest) -> &Gates {
        let Input::Image2d { gates, .. } = &manifest.input else { panic!("the bundle is of radiographs") };
        gates
    }

    #[test]
    fn what_is_not_stated_has_its_default_and_what_is_stated_counts() {
        let plain = parsed("").unwrap();
        assert_eq!(gates(&plain).picture, PictureLimits::default());
        assert_eq!((gates(&plain).policies, gates(&plain).lungs), (GatePolicies::default(), LungLimits::default()));
        let changed = parsed(
            "[input.gates.policies]\nderived = \"refuse\"\n\n[input.gates.picture]\nminimum_entropy_bits = 6\n\n\
             [input.gates.lungs]\nminimum_contrast = 0.1",
        )
        .unwrap();
        assert_eq!(gates(&changed).policies, GatePolicies { derived: Policy::Refuse, ..GatePolicies::default() });
        assert_eq!(gates(&changed).picture, PictureLimits { minimum_entropy_bits: 6.0, ..PictureLimits::default() });
        assert_eq!(gates(&changed).lungs, LungLimits { minimum_contrast: 0.1, ..LungLimits::default() });
        let text = toml::to_string(&changed).unwrap();
        assert_eq!(Manifest::parse(&text).unwrap(), changed, "what is written is read again:\n{text}");
    }

    #[test]
    fn values_out_of_range_and_unknown_keys_are_named_with_their_remedy() {
        let features = |key: &str, value: &str| {
            let keys = [
                ("member", "\"resnet34\""),
                ("file", "\"f.safetensors\""),
                ("sha256", "\"0000000000000000000000000000000000000000000000000000000000000000\""),
                ("neighbours", "5"),
                ("maximum_mahalanobis_distance", "9.5"),
                ("maximum_neighbour_distance", "0.5"),
                ("quantile", "0.99"),
                ("n_fitted", "70"),
                ("n_held_out", "30"),
            ];
            let line = |(name, given): &(&str, &str)| format!("{name} = {}", if *name == key { value } else { given });
            format!("[input.gates.features]\n{}", keys.iter().map(line).collect::<Vec<_>>().join("\n"))
        };
        assert!(parsed(&features("", "")).is_ok());
        let of = |table: &str, line: &str| format!("[input.gates.{table}]\n{line}");
        for (added, expected) in [
            (
                of("picture", "minimum_polarity = 3.0"),
                "`input.gates.picture.minimum_polarity` is 3: give a number from -2 to 2",
            ),
            (of("picture", "maximum_black_share = 1.5"), "`input.gates.picture.maximum_black_share` is 1.5"),
            (of("picture", "minimum_entropy_bits = nan"), "`input.gates.picture.minimum_entropy_bits` is NaN"),
            (of("picture", "minimum_sharpness = 0.5"), "give minimum < maximum"),
            (of("picture", "minimum_blur = 0.5"), "minimum_blur"),
            (of("lungs", "minimum_level_fraction = -1.0"), "`input.gates.lungs.minimum_level_fraction` is -1"),
            (of("policies", "colour = \"perhaps\""), "accept"),
            (features("member", "\"nobody\""), "give one of resnet34, resnet50, resnet152, vgg16"),
            (features("file", "\"../f.safetensors\""), "`input.gates.features.file` is \"../f.safetensors\""),
            (features("neighbours", "0"), "`input.gates.features.neighbours` is 0: give 1 to 1000"),
            (features("maximum_neighbour_distance", "0.0"), "give a number above 0"),
            (features("quantile", "0.2"), "`input.gates.features.quantile` is 0.2: give a number from 0.5 to 1"),
        ] {
            let problems = parsed(&added).unwrap_err();
            assert!(problems.contains(expected), "{added}\n{problems}");
        }
    }
}
