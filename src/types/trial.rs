//! A second bundle beside that of a route, and what two bundles said of the same studies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BundleStatus, Sha256Digest, wilson_interval};

/// A bundle that a route tries beside its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Name of the bundle folder under `models/`.
    pub bundle: String,
    /// What becomes of its results.
    pub mode: TrialMode,
    /// How many of the route's studies it gets, in percent, 1 to 100.
    pub share_percent: u32,
}

/// What becomes of the results of a bundle that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialMode {
    /// They stay internal: the route's own bundle answers every study.
    Shadow,
    /// They are what is sent of its share of the studies; there the results of the route's own bundle stay internal.
    Canary,
}

impl TrialMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Shadow, Self::Canary];

    /// The name used in configuration and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// What a run is to its study.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunRole {
    /// Its results are the answer, by the route's own bundle.
    #[default]
    Live,
    /// Its results stay internal, and nothing waits for it.
    Shadow,
    /// Its results are the answer, by the bundle that is tried.
    Canary,
}

impl RunRole {
    /// The name used in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
            Self::Canary => "canary",
        }
    }

    /// What is said of a run that has another role than `live`.
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Live => None,
            Self::Shadow => Some("as a shadow: its results stay internal, nothing was sent"),
            Self::Canary => Some("as a canary: a bundle that is tried gives the results that are sent"),
        }
    }

    /// The role of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Live, Self::Shadow, Self::Canary].into_iter().find(|role| role.name() == name)
    }
}

impl Trial {
    /// Whether a study of the route is among the share. The same study always is or is not, whatever revision it has.
    #[must_use]
    pub fn takes(&self, route_name: &str, study_instance_uid: &str) -> bool {
        let digest = Sha256Digest::of(format!("{route_name}\0{}\0{study_instance_uid}", self.bundle).as_bytes());
        let number = digest.0.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        number % 100 < u64::from(self.share_percent)
    }
}

/// What one bundle said of one study.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrialSide {
    /// Why it was not analysed, or was measured and not judged; `None` when it was.
    pub reason: Option<String>,
    /// What was said of each image, or of the series of a CT; empty where the bundle only measures.
    pub judged: Vec<Judged>,
    /// Time of the attempt in seconds.
    pub seconds: f64,
}

/// Outputs of one image or series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// SOP Instance UID of the image, or Series Instance UID of the CT series.
    pub uid: String,
    /// Fused output per class of the bundle, 0 to 1.
    pub fused: Vec<f64>,
}

/// One study as both bundles saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialPair {
    /// (0020,000D)
    pub study_instance_uid: String,
    /// By the route's own bundle.
    pub own: TrialSide,
    /// By the one that is tried.
    pub tried: TrialSide,
}

/// What two bundles of a route said of the same studies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The route.
    pub route: String,
    /// The bundle that the other is compared with.
    pub own: Option<ComparedBundle>,
    /// The one that is tried.
    pub tried: Option<ComparedBundle>,
    /// Label of the class that outputs are compared of; `None` where the bundles have none in common.
    pub class_label: Option<String>,
    /// Runs of the tried bundle that have not ended with an outcome, by state.
    pub unfinished: BTreeMap<String, i64>,
    /// How they agree.
    pub comparison: TrialComparison,
}

/// A version of a bundle as its newest run knew it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedBundle {
    /// Name of its folder.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How far to believe it.
    pub status: BundleStatus,
    /// Digest over manifest and weights: only runs with it are compared.
    pub digest: Sha256Digest,
}

impl Compared {
    /// Whether a bundle of the two is untrained.
    #[must_use]
    pub fn is_untrained(&self) -> bool {
        [&self.own, &self.tried].into_iter().flatten().any(|bundle| bundle.status == BundleStatus::Untrained)
    }
}

/// Where each bundle has the class that is compared, and its threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ComparedClass {
    /// Index into the outputs.
    pub class_idx: usize,
    /// Operating threshold of the bundle, 0 to 1.
    pub threshold: f64,
}

/// How two bundles agree. It says how they differ, not which of them is right: nobody has told what is true.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrialComparison {
    /// Studies that both bundles have finished.
    pub studies: usize,
    /// Of these, analysed by both. What networks did not judge counts as not analysed.
    pub both_analysed: usize,
    /// Analysed by the route's own bundle only.
    pub only_own_analysed: usize,
    /// Analysed by the tried bundle only.
    pub only_tried_analysed: usize,
    /// Analysed by neither.
    pub neither_analysed: usize,
    /// Of the outputs; `None` where there is no pair of them to compare.
    pub outputs: Option<OutputComparison>,
    /// Median over the studies of the tried bundle's time divided by the own one's; `None` without studies.
    pub median_time_ratio: Option<f64>,
    /// The studies whose outputs differ most, the furthest apart first.
    pub furthest: Vec<FurthestStudy>,
}

/// How the outputs of two bundles for one class agree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputComparison {
    /// Images, or series of CT, with an output of both.
    pub n: usize,
    /// Mean of tried minus own.
    pub mean_difference: f64,
    /// Mean difference minus and plus 1.96 standard deviations (Bland and Altman, Lancet 1986;327:307-310); `None`
    /// with fewer than two.
    pub limits_of_agreement: Option<[f64; 2]>,
    /// Largest magnitude of a difference.
    pub largest_difference: f64,
    /// Both at or above their thresholds.
    pub both_above: usize,
    /// Only the own bundle at or above its threshold.
    pub only_own_above: usize,
    /// Only the tried bundle at or above its threshold.
    pub only_tried_above: usize,
    /// Both below.
    pub both_below: usize,
    /// Share on the same side of the thresholds, 0 to 1.
    pub agreement: f64,
    /// Its 95 % interval (Wilson, J Am Stat Assoc 1927;22:209-212).
    pub agreement_interval: [f64; 2],
    /// Cohen's kappa; `None` where chance alone would agree always.
    pub kappa: Option<f64>,
}

/// A study whose outputs differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FurthestStudy {
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Output of the own bundle.
    pub own: f64,
    /// Output of the tried bundle.
    pub tried: f64,
}

/// Studies that are named.
const FURTHEST: usize = 10;

impl TrialComparison {
    /// Compares what both bundles said; `class` tells where the own and the tried bundle have the class that is compared,
    /// if both have it.
    #[must_use]
    pub fn of(pairs: &[TrialPair], class: Option<(ComparedClass, ComparedClass)>) -> Self {
        let count = |own: bool, tried: bool| {
            pairs.iter().filter(|pair| (pair.own.reason.is_none(), pair.tried.reason.is_none()) == (own, tried)).count()
        };
        let outputs: Vec<Outputs<'_>> =
            class.map(|class| pairs.iter().flat_map(|pair| pair.outputs(class)).collect()).unwrap_or_default();
        let mut ratios: Vec<f64> = pairs
            .iter()
            .filter(|pair| pair.own.seconds > 0.0 && pair.tried.seconds > 0.0)
            .map(|pair| pair.tried.seconds / pair.own.seconds)
            .collect();
        Self {
            studies: pairs.len(),
            both_analysed: count(true, true),
            only_own_analysed: count(true, false),
            only_tried_analysed: count(false, true),
            neither_analysed: count(false, false),
            outputs: class.and_then(|class| OutputComparison::of(&outputs, class)),
            median_time_ratio: median(&mut ratios),
            furthest: furthest(outputs),
        }
    }
}

/// Both outputs of one image or series.
struct Outputs<'a> {
    study_instance_uid: &'a str,
    own: f64,
    tried: f64,
}

impl Outputs<'_> {
    fn difference(&self) -> f64 {
        self.tried - self.own
    }
}

impl TrialPair {
    fn outputs(&self, class: (ComparedClass, ComparedClass)) -> impl Iterator<Item = Outputs<'_>> {
        self.own.judged.iter().filter_map(move |own| {
            let tried = self.tried.judged.iter().find(|tried| tried.uid == own.uid)?;
            Some(Outputs {
                study_instance_uid: &self.study_instance_uid,
                own: *own.fused.get(class.0.class_idx)?,
                tried: *tried.fused.get(class.1.class_idx)?,
            })
        })
    }
}

impl OutputComparison {
    fn of(outputs: &[Outputs<'_>], class: (ComparedClass, ComparedClass)) -> Option<Self> {
        let n = outputs.len();
        if n == 0 {
            return None;
        }
        let share = |count: usize| count as f64 / n as f64;
        let mean_difference = outputs.iter().map(Outputs::difference).sum::<f64>() / n as f64;
        let squares: f64 = outputs.iter().map(|of| (of.difference() - mean_difference).powi(2)).sum();
        let limits_of_agreement = (n > 1).then(|| {
            let margin = 1.96 * (squares / (n - 1) as f64).sqrt();
            [mean_difference - margin, mean_difference + margin]
        });
        let count = |own: bool, tried: bool| {
            let sides = |of: &&Outputs<'_>| (of.own >= class.0.threshold, of.tried >= class.1.threshold);
            outputs.iter().filter(|of| sides(of) == (own, tried)).count()
        };
        let (both_above, both_below) = (count(true, true), count(false, false));
        let (only_own_above, only_tried_above) = (count(true, false), count(false, true));
        let agreement = share(both_above + both_below);
        let (own_above, tried_above) = (share(both_above + only_own_above), share(both_above + only_tried_above));
        let by_chance = own_above * tried_above + (1.0 - own_above) * (1.0 - tried_above);
        Some(Self {
            n,
            mean_difference,
            limits_of_agreement,
            largest_difference: outputs.iter().map(|of| of.difference().abs()).fold(0.0, f64::max),
            both_above,
            only_own_above,
            only_tried_above,
            both_below,
            agreement,
            agreement_interval: wilson_interval(both_above + both_below, n),
            kappa: (by_chance < 1.0).then(|| (agreement - by_chance) / (1.0 - by_chance)),
        })
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// One line for each study: its output with the largest difference.
fn furthest(mut outputs: Vec<Outputs<'_>>) -> Vec<FurthestStudy> {
    outputs.sort_by(|a, b| b.difference().abs().total_cmp(&a.difference().abs()));
    let mut studies: Vec<FurthestStudy> = Vec::new();
    for of in outputs {
        if studies.len() == FURTHEST || of.difference() == 0.0 {
            break;
        }
        if studies.iter().all(|study| study.study_instance_uid != of.study_instance_uid) {
            let study_instance_uid = of.study_instance_uid.to_owned();
            studies.push(FurthestStudy { study_instance_uid, own: of.own, tried: of.tried });
        }
    }
    studies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(share_percent: u32) -> Trial {
        Trial { bundle: "new".to_owned(), mode: TrialMode::Canary, share_percent }
    }

    #[test]
    fn a_share_takes_about_so_many_and_always_the_same() {
        let studies: Vec<String> = (0..2000).map(|number| format!("1.2.{number}")).collect();
        let taken =
            |trial: &Trial| -> Vec<&String> { studies.iter().filter(|uid| trial.takes("chest", uid)).collect() };
        assert!(taken(&trial(0)).is_empty());
        assert_eq!(taken(&trial(100)).len(), 2000);
        let tenth = taken(&trial(10));
        assert!((150..250).contains(&tenth.len()), "{}", tenth.len());
        assert_eq!(tenth, taken(&trial(10)));
        // A larger share holds the smaller one; another bundle draws anew.
        let half = taken(&trial(50));
        assert!(tenth.iter().all(|uid| half.contains(uid)));
        assert_ne!(tenth, taken(&Trial { bundle: "other".to_owned(), ..trial(10) }));
    }

    fn analysed(outputs: &[(&str, f64)], seconds: f64) -> TrialSide {
        let judged =
            outputs.iter().map(|(uid, output)| Judged { uid: (*uid).to_owned(), fused: vec![1.0 - output, *output] });
        TrialSide { reason: None, judged: judged.collect(), seconds }
    }

    fn refused() -> TrialSide {
        TrialSide { reason: Some("quality.image".to_owned()), ..TrialSide::default() }
    }

    fn pair(number: usize, own: TrialSide, tried: TrialSide) -> TrialPair {
        TrialPair { study_instance_uid: format!("1.2.{number}"), own, tried }
    }

    const CLASS: ComparedClass = ComparedClass { class_idx: 1, threshold: 0.5 };

    #[test]
    fn bundles_are_compared_image_by_image() {
        let pairs = [
            pair(1, analysed(&[("a", 0.9)], 1.0), analysed(&[("a", 0.8)], 2.0)),
            pair(2, analysed(&[("b", 0.6), ("c", 0.1)], 1.0), analysed(&[("c", 0.2), ("b", 0.4), ("d", 1.0)], 3.0)),
            pair(3, analysed(&[("e", 0.2)], 1.0), refused()),
            pair(4, refused(), analysed(&[("f", 0.2)], 1.0)),
            pair(5, refused(), refused()),
        ];
        let found = TrialComparison::of(&pairs, Some((CLASS, CLASS)));
        let counts = [
            found.studies,
            found.both_analysed,
            found.only_own_analysed,
            found.only_tried_analysed,
            found.neither_analysed,
        ];
        assert_eq!(counts, [5, 2, 1, 1, 1]);
        assert_eq!(found.median_time_ratio, Some(2.5));
        let outputs = found.outputs.unwrap();
        assert_eq!([outputs.n, outputs.both_above, outputs.only_own_above, outputs.both_below], [3, 1, 1, 1]);
        assert_eq!(outputs.only_tried_above, 0);
        // Differences -0.1, -0.2, 0.1: mean -1/15, standard deviation 0.152753.
        assert!((outputs.mean_difference + 1.0 / 15.0).abs() < 1e-9);
        let [low, high] = outputs.limits_of_agreement.unwrap();
        assert!((low + 0.366_062).abs() < 1e-5 && (high - 0.232_729).abs() < 1e-5, "{low} {high}");
        assert!((outputs.largest_difference - 0.2).abs() < 1e-9);
        // 2 of 3 agree; by chance (2/3 * 1/3 + 1/3 * 2/3) = 4/9.
        assert!((outputs.agreement - 2.0 / 3.0).abs() < 1e-9);
        assert!((outputs.kappa.unwrap() - 0.4).abs() < 1e-9);
        let furthest: Vec<&str> = found.furthest.iter().map(|study| study.study_instance_uid.as_str()).collect();
        assert_eq!(furthest, ["1.2.2", "1.2.1"]);
    }

    #[test]
    fn thresholds_are_each_bundle_s_own() {
        let pairs = [pair(1, analysed(&[("a", 0.4)], 1.0), analysed(&[("a", 0.4)], 1.0))];
        let low = ComparedClass { threshold: 0.3, ..CLASS };
        let outputs = TrialComparison::of(&pairs, Some((CLASS, low))).outputs.unwrap();
        assert_eq!((outputs.only_tried_above, outputs.limits_of_agreement), (1, None));
        assert_eq!(outputs.kappa, Some(0.0));
    }

    #[test]
    fn without_outputs_nothing_is_said_of_them() {
        let measured = TrialSide { seconds: 1.0, ..TrialSide::default() };
        let found = TrialComparison::of(&[pair(1, measured.clone(), measured)], Some((CLASS, CLASS)));
        assert_eq!((found.both_analysed, found.outputs, found.furthest.len()), (1, None, 0));
        let nothing = TrialComparison::of(&[], None);
        assert_eq!((nothing.studies, nothing.median_time_ratio), (0, None));
    }
}
