//! Where results go, and how soon, because of what was found.

use serde::{Deserialize, Serialize};

use super::{BundleStatus, ReasonCode, RunOutcome, RunRecord};

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultCondition {
    /// An input check failed, enforced or reported only, or the study was not analysed.
    GateFailed,
    /// The ensemble's members differ for the target class.
    Disagreement,
    /// The output for the target class. Of validated bundles only.
    Score,
}

/// How soon results are sent: (0000,0700) of C-STORE and their place in the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryPriority {
    /// MEDIUM, in turn.
    #[default]
    Medium,
    /// HIGH, before all others that are due.
    High,
}

impl DeliveryPriority {
    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// A rule of a route over results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultRule {
    /// What it looks at.
    pub when: ResultCondition,
    /// With `gate_failed`: only this reason, such as `quality.lung_mask`; any when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With `disagreement`: largest minus smallest output of the members; with `score`: the output; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Destinations that get the results besides those of the route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
    /// How soon all results of the study are sent.
    #[serde(default)]
    pub priority: DeliveryPriority,
}

/// What a rule says of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// It applies, because of this.
    Applies(String),
    /// It would look at scores that nobody may act on.
    Withheld(String),
    /// It does not apply.
    No,
}

impl ResultRule {
    /// The keys that contradict each other, and the remedy.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, &'static str)> {
        let mut problems = Vec::new();
        match (self.when, self.at_least) {
            (ResultCondition::GateFailed, Some(_)) => {
                problems.push(("has a rule gate_failed with at_least".to_owned(), "remove at_least"));
            }
            (ResultCondition::Disagreement | ResultCondition::Score, None) => {
                problems.push(("has a rule without at_least".to_owned(), "give at_least, 0 to 1"));
            }
            (_, Some(at_least)) if !(0.0..=1.0).contains(&at_least) => {
                problems.push((format!("has a rule with at_least = {at_least}"), "give 0 to 1"));
            }
            _ => {}
        }
        match (self.when, &self.reason) {
            (ResultCondition::GateFailed, Some(reason)) if ReasonCode::from_id(reason).is_none() => problems.push((
                format!("has a rule for reason `{reason}`, which does not exist"),
                "give one of docs/gates.md, or leave it out",
            )),
            (ResultCondition::Disagreement | ResultCondition::Score, Some(_)) => {
                problems.push(("has a rule with a reason that is not gate_failed".to_owned(), "remove reason"));
            }
            _ => {}
        }
        if self.destinations.is_empty() && self.priority == DeliveryPriority::Medium {
            problems
                .push(("has a rule that changes nothing".to_owned(), "give it destinations or priority = \"high\""));
        }
        problems
    }

    /// Whether it applies to a run, and why.
    #[must_use]
    pub fn ruling(&self, record: &RunRecord) -> Ruling {
        match self.when {
            ResultCondition::GateFailed => {
                let reason = reasons(&record.outcome)
                    .into_iter()
                    .find(|reason| self.reason.as_ref().is_none_or(|wanted| wanted == reason.id()));
                reason.map_or(Ruling::No, |reason| Ruling::Applies(format!("an input check failed: {}", reason.id())))
            }
            ResultCondition::Disagreement => self
                .reached(spreads(&record.outcome), |spread| format!("the members differ by {:.1} %", spread * 100.0)),
            ResultCondition::Score => {
                let ruling = self.reached(outputs(record), |output| format!("the output is {:.1} %", output * 100.0));
                match ruling {
                    Ruling::Applies(_) if record.bundle.status != BundleStatus::Validated => Ruling::Withheld(format!(
                        "a rule by score does not apply: bundle `{}` is not validated",
                        record.bundle.name
                    )),
                    other => other,
                }
            }
        }
    }

    fn reached(&self, values: Vec<f64>, words: impl Fn(f64) -> String) -> Ruling {
        let largest = values.into_iter().filter(|value| value.is_finite()).fold(f64::NEG_INFINITY, f64::max);
        match self.at_least {
            Some(at_least) if largest >= at_least => {
                Ruling::Applies(format!("{}, at least {:.1} %", words(largest), at_least * 100.0))
            }
            _ => Ruling::No,
        }
    }
}

/// Why checks failed.
fn reasons(outcome: &RunOutcome) -> Vec<ReasonCode> {
    match outcome {
        RunOutcome::Analysed(analysis) => {
            let gates = analysis.images.iter().flat_map(|image| &image.gates).filter(|gate| !gate.passed);
            gates.map(|gate| gate.reason).chain(analysis.excluded.iter().map(|excluded| excluded.reason)).collect()
        }
        RunOutcome::CtMeasured(analysis) => {
            let gates = analysis.gates.iter().filter(|gate| !gate.passed).map(|gate| gate.reason);
            gates.chain(analysis.not_judged.iter().map(|not_judged| not_judged.reason)).collect()
        }
        RunOutcome::NotAnalysed(not_analysed) => vec![not_analysed.reason],
    }
}

fn spreads(outcome: &RunOutcome) -> Vec<f64> {
    match outcome {
        RunOutcome::Analysed(analysis) => analysis.images.iter().map(|image| image.member_spread).collect(),
        RunOutcome::CtMeasured(analysis) => analysis.classification.iter().map(|scan| scan.member_spread).collect(),
        RunOutcome::NotAnalysed(_) => Vec::new(),
    }
}

fn outputs(record: &RunRecord) -> Vec<f64> {
    let target = |fused: &[f64]| fused.get(record.bundle.target_class_idx).copied();
    match &record.outcome {
        RunOutcome::Analysed(analysis) => analysis.images.iter().filter_map(|image| target(&image.fused)).collect(),
        RunOutcome::CtMeasured(analysis) => {
            analysis.classification.iter().filter_map(|scan| target(&scan.fused)).collect()
        }
        RunOutcome::NotAnalysed(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::samples::{self, SampleSource},
        types::NotAnalysed,
    };

    fn rule(text: &str) -> ResultRule {
        toml::from_str(text).unwrap()
    }

    fn applies(text: &str, record: &RunRecord) -> bool {
        matches!(rule(text).ruling(record), Ruling::Applies(_))
    }

    #[test]
    fn rules_by_score_are_for_validated_bundles_only() {
        let record = |status| samples::analysed(status, &SampleSource::new("1.2.3"));
        let text = "when = 'score'\nat_least = 0.01\npriority = 'high'";
        assert!(applies(text, &record(BundleStatus::Validated)));
        for status in [BundleStatus::Unvalidated, BundleStatus::Untrained] {
            let Ruling::Withheld(words) = rule(text).ruling(&record(status)) else { panic!("{status:?}") };
            assert!(words.contains("is not validated"), "{words}");
        }
        assert_eq!(rule("when = 'score'\nat_least = 1.0").ruling(&record(BundleStatus::Unvalidated)), Ruling::No);
    }

    #[test]
    fn gates_and_disagreement_apply_whatever_the_bundle_is() {
        let mut record = samples::analysed(BundleStatus::Untrained, &SampleSource::new("1.2.3"));
        let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
        analysis.images[0].member_spread = 0.3;
        for gate in &mut analysis.images[0].gates {
            gate.passed = true;
        }
        assert!(applies("when = 'disagreement'\nat_least = 0.3", &record));
        assert!(!applies("when = 'disagreement'\nat_least = 0.31", &record));
        assert!(!applies("when = 'gate_failed'", &record));
        record.outcome = RunOutcome::NotAnalysed(NotAnalysed {
            reason: ReasonCode::LungMask,
            words: "no lungs".to_owned(),
            sources: Vec::new(),
        });
        assert!(applies("when = 'gate_failed'", &record));
        assert!(applies("when = 'gate_failed'\nreason = 'quality.lung_mask'", &record));
        assert!(!applies("when = 'gate_failed'\nreason = 'quality.image'", &record));
    }

    #[rstest::rstest]
    #[case("when = 'gate_failed'\npriority = 'high'", "")]
    #[case("when = 'score'\nat_least = 0.5\ndestinations = ['x']", "")]
    #[case("when = 'score'\npriority = 'high'", "without at_least")]
    #[case("when = 'score'\nat_least = 2.0\npriority = 'high'", "at_least = 2")]
    #[case("when = 'gate_failed'\nreason = 'x'\npriority = 'high'", "does not exist")]
    #[case("when = 'gate_failed'\nat_least = 0.5\npriority = 'high'", "gate_failed with at_least")]
    #[case("when = 'disagreement'\nat_least = 0.5\nreason = 'quality.image'\npriority = 'high'", "not gate_failed")]
    #[case("when = 'gate_failed'", "changes nothing")]
    fn what_contradicts_itself_is_told(#[case] text: &str, #[case] words: &str) {
        let problems = rule(text).problems();
        assert_eq!(problems.len(), usize::from(!words.is_empty()), "{problems:?}");
        assert!(problems.iter().all(|(problem, _)| problem.contains(words)), "{problems:?}");
    }
}
