//! The checks of the input, in the order of their cost: header, picture, lungs, and what the networks say. Each gives a
//! verdict in words; whether failing one stops the analysis is the bundle's status. `docs/gates.md` lists them.

mod answers;
mod header;
mod lungs;
mod picture;

pub use answers::FeatureGateSettings;

use crate::types::{GateResult, ReasonCode};

/// Collects verdicts.
#[derive(Debug)]
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

    /// Adds a verdict on a number that lies between two limits. `words` tells what was measured; `show` writes a number.
    fn add_range(
        &mut self,
        id: &str,
        reason: ReasonCode,
        value: f64,
        (least, most): (f64, f64),
        show: fn(f64) -> String,
        words: impl FnOnce(&str) -> String,
    ) {
        let expected = match (least > f64::NEG_INFINITY, most < f64::INFINITY) {
            (true, true) => format!("{} to {} expected", show(least), show(most)),
            (false, true) => format!("at most {} expected", show(most)),
            _ => format!("at least {} expected", show(least)),
        };
        let words = format!("{}, {expected}", words(&show(value)));
        self.add(id, least <= value && value <= most, reason, words);
    }

    /// The first failed gate that stops the analysis.
    pub(super) fn stopping(&self) -> Option<&GateResult> {
        self.results.iter().find(|gate| gate.enforced && !gate.passed)
    }

    pub(super) fn into_results(self) -> Vec<GateResult> {
        self.results
    }
}

/// A share as percent.
fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn two_decimals(value: f64) -> String {
    format!("{value:.2}")
}
