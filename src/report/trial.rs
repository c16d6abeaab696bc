//! What a comparison of two bundles says, in words for people.

use super::wording::{self, percent};
use crate::types::{Compared, ComparedBundle, OutputComparison, Trial, TrialMode, UNTRAINED_NOTICE};

/// What stands below every comparison.
pub const NO_TRUTH: &str = "This tells how the two bundles differ, not which of them is right: what is true of these studies is not known here.";

/// A trial in words: ``bundle `new` is tried as a shadow on 10 % of the studies; its results stay internal``.
#[must_use]
pub fn describe_trial(trial: &Trial) -> String {
    let Trial { bundle, mode, share_percent } = trial;
    match mode {
        TrialMode::Shadow => {
            format!(
                "bundle `{bundle}` is tried as a shadow on {share_percent} % of the studies; its results stay internal"
            )
        }
        TrialMode::Canary => format!(
            "bundle `{bundle}` is tried as a canary: of {share_percent} % of the studies its results are sent, and those of \
             the route's own bundle stay internal"
        ),
    }
}

/// The lines of a comparison; the last is [`NO_TRUTH`].
#[must_use]
pub fn describe_comparison(compared: &Compared) -> Vec<String> {
    let version = |of: &ComparedBundle| {
        let digest: String = of.digest.to_string().chars().take(12).collect();
        format!("{} {} ({}, sha256 {digest}…)", of.name, of.version, wording::status(of.status))
    };
    let mut lines = Vec::new();
    if compared.is_untrained() {
        lines.push(UNTRAINED_NOTICE.to_owned());
    }
    match (&compared.own, &compared.tried) {
        (Some(own), Some(tried)) => lines.push(format!("own: {}; tried: {}", version(own), version(tried))),
        (own, tried) => {
            let missing = [(own, "the bundle that it is compared with"), (tried, "the tried bundle")];
            for (_, which) in missing.iter().filter(|(of, _)| of.is_none()) {
                lines.push(format!("{which} has finished no run on route `{}` yet", compared.route));
            }
        }
    }
    let of = &compared.comparison;
    lines.push(format!(
        "{} studies finished by both: {} analysed by both, {} by the own bundle only, {} by the tried one only, {} by neither",
        of.studies, of.both_analysed, of.only_own_analysed, of.only_tried_analysed, of.neither_analysed
    ));
    if !compared.unfinished.is_empty() {
        let counts: Vec<String> = compared.unfinished.iter().map(|(state, count)| format!("{count} {state}")).collect();
        lines.push(format!("runs of the tried bundle without an outcome: {}", counts.join(", ")));
    }
    match (&of.outputs, &compared.class_label) {
        _ if compared.own.is_none() || compared.tried.is_none() => {}
        (Some(outputs), Some(label)) => lines.extend(output_lines(outputs, label)),
        (None, Some(_)) => lines.push("there are no outputs to compare".to_owned()),
        (_, None) => lines.push("the bundles have no target class in common: no outputs are compared".to_owned()),
    }
    if let Some(ratio) = of.median_time_ratio {
        lines.push(format!("time of the tried bundle divided by the own one's, median: {ratio:.2}"));
    }
    lines.push(NO_TRUTH.to_owned());
    lines
}

fn output_lines(outputs: &OutputComparison, label: &str) -> Vec<String> {
    let points = |difference: f64| format!("{:+.1}", difference * 100.0);
    let limits = outputs.limits_of_agreement.map_or_else(String::new, |[low, high]| {
        format!(", 95 % limits of agreement {} to {}", points(low), points(high))
    });
    let [low, high] = outputs.agreement_interval;
    let kappa = outputs.kappa.map_or_else(
        || "Cohen's kappa cannot be given, as both always say the same".to_owned(),
        |kappa| format!("Cohen's kappa {kappa:.2}"),
    );
    vec![
        format!(
            "output for class {label}, tried minus own, in percentage points, n = {} images or series (not patients): mean \
             {}{limits}, largest {:.1}",
            outputs.n,
            points(outputs.mean_difference),
            outputs.largest_difference * 100.0
        ),
        format!(
            "at each bundle's threshold: both above {}, only own {}, only tried {}, both below {}",
            outputs.both_above, outputs.only_own_above, outputs.only_tried_above, outputs.both_below
        ),
        format!(
            "on the same side {} (95 % interval {} to {}, n = {}); {kappa}",
            percent(outputs.agreement),
            percent(low),
            percent(high),
            outputs.n
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::{BundleStatus, ComparedClass, Judged, Sha256Digest, TrialComparison, TrialPair, TrialSide};

    fn compared(pairs: &[TrialPair]) -> Compared {
        let class = ComparedClass { class_idx: 0, threshold: 0.5 };
        let bundle = |name: &str| ComparedBundle {
            name: name.to_owned(),
            version: "1".to_owned(),
            status: BundleStatus::Unvalidated,
            digest: Sha256Digest([7; 32]),
        };
        Compared {
            route: "chest".to_owned(),
            own: Some(bundle("cxr")),
            tried: Some(bundle("next")),
            class_label: Some("COVID-19".to_owned()),
            unfinished: BTreeMap::from([("parked".to_owned(), 2)]),
            comparison: TrialComparison::of(pairs, Some((class, class))),
        }
    }

    fn pair(own: f64, tried: f64) -> TrialPair {
        let side = |output, seconds| TrialSide {
            reason: None,
            judged: vec![Judged { uid: "1".to_owned(), fused: vec![output] }],
            seconds,
        };
        TrialPair { study_instance_uid: "1.2".to_owned(), own: side(own, 2.0), tried: side(tried, 1.0) }
    }

    #[test]
    fn a_comparison_in_words() {
        let lines = describe_comparison(&compared(&[pair(0.9, 0.8), pair(0.6, 0.4), pair(0.1, 0.2)]));
        insta::assert_snapshot!(lines.join("\n"), @"
        own: cxr 1 (unvalidated, sha256 070707070707…); tried: next 1 (unvalidated, sha256 070707070707…)
        3 studies finished by both: 3 analysed by both, 0 by the own bundle only, 0 by the tried one only, 0 by neither
        runs of the tried bundle without an outcome: 2 parked
        output for class COVID-19, tried minus own, in percentage points, n = 3 images or series (not patients): mean -6.7, 95 % limits of agreement -36.6 to +23.3, largest 20.0
        at each bundle's threshold: both above 1, only own 1, only tried 0, both below 1
        on the same side 66.7 % (95 % interval 20.8 % to 93.9 %, n = 3); Cohen's kappa 0.40
        time of the tried bundle divided by the own one's, median: 0.50
        This tells how the two bundles differ, not which of them is right: what is true of these studies is not known here.
        ");
    }

    #[test]
    fn nothing_to_compare_is_said() {
        let mut nothing = compared(&[]);
        (nothing.tried, nothing.unfinished) = (None, BTreeMap::new());
        insta::assert_snapshot!(describe_comparison(&nothing).join("\n"), @"
        the tried bundle has finished no run on route `chest` yet
        0 studies finished by both: 0 analysed by both, 0 by the own bundle only, 0 by the tried one only, 0 by neither
        This tells how the two bundles differ, not which of them is right: what is true of these studies is not known here.
        ");
        (nothing.tried, nothing.class_label) = (nothing.own.clone(), None);
        assert!(describe_comparison(&nothing)[2].contains("no target class in common"));
        nothing.own.as_mut().unwrap().status = BundleStatus::Untrained;
        assert_eq!(describe_comparison(&nothing)[0], UNTRAINED_NOTICE);
    }

    #[test]
    fn trials_in_words() {
        let trial = |mode| Trial { bundle: "next".to_owned(), mode, share_percent: 10 };
        insta::assert_snapshot!(describe_trial(&trial(TrialMode::Shadow)), @"bundle `next` is tried as a shadow on 10 % of the studies; its results stay internal");
        insta::assert_snapshot!(describe_trial(&trial(TrialMode::Canary)), @"bundle `next` is tried as a canary: of 10 % of the studies its results are sent, and those of the route's own bundle stay internal");
    }
}
