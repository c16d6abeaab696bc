//! Whether an analysis that was repeated came out the same.

use serde_json::Value;

use crate::types::RunOutcome;

/// How far a number may be from the one of before, relative to its magnitude where that is above 1: what another batch
/// shape or another processor may do to a score.
pub const TOLERANCE: f64 = 1e-5;

/// Differences that are listed; the rest is counted.
const MAX_LISTED: usize = 20;

/// How two outcomes compare.
#[derive(Debug, Clone, PartialEq)]
pub enum Comparison {
    /// Every bit.
    Identical,
    /// No number further away than [`TOLERANCE`], and everything else the same.
    WithinTolerance {
        /// Numbers that differ.
        numbers: usize,
        /// The largest difference, relative as [`TOLERANCE`] is.
        largest: f64,
    },
    /// Something else.
    Different {
        /// Where, with both values; at most [`MAX_LISTED`].
        listed: Vec<String>,
        /// How many there are.
        count: usize,
    },
}

/// Compares the outcome of a run with that of its repetition.
#[must_use]
pub fn compare(before: &RunOutcome, now: &RunOutcome) -> Comparison {
    let json = |outcome: &RunOutcome| serde_json::to_value(outcome).unwrap_or(Value::Null);
    let mut walk = Walk { near: 0, largest: 0.0, different: Vec::new() };
    walk.values("", &json(before), &json(now));
    let count = walk.different.len();
    if count > 0 {
        walk.different.truncate(MAX_LISTED);
        Comparison::Different { listed: walk.different, count }
    } else if walk.near > 0 {
        Comparison::WithinTolerance { numbers: walk.near, largest: walk.largest }
    } else {
        Comparison::Identical
    }
}

struct Walk {
    near: usize,
    largest: f64,
    different: Vec<String>,
}

impl Walk {
    fn values(&mut self, path: &str, before: &Value, now: &Value) {
        match (before, now) {
            (Value::Object(before), Value::Object(now)) => {
                for (key, value) in before {
                    self.values(&format!("{path}.{key}"), value, now.get(key).unwrap_or(&Value::Null));
                }
                for (key, value) in now.iter().filter(|(key, _)| !before.contains_key(*key)) {
                    self.values(&format!("{path}.{key}"), &Value::Null, value);
                }
            }
            (Value::Array(before), Value::Array(now)) if before.len() == now.len() => {
                for (idx, (before, now)) in before.iter().zip(now).enumerate() {
                    self.values(&format!("{path}[{idx}]"), before, now);
                }
            }
            (Value::Number(one), Value::Number(other)) if one != other => match (one.as_f64(), other.as_f64()) {
                (Some(one), Some(other)) => self.numbers(path, one, other),
                _ => self.differ(path, before, now),
            },
            _ if before == now => {}
            _ => self.differ(path, before, now),
        }
    }

    fn numbers(&mut self, path: &str, before: f64, now: f64) {
        let difference = (before - now).abs() / before.abs().max(1.0);
        if difference <= TOLERANCE {
            self.near += 1;
            self.largest = self.largest.max(difference);
        } else {
            self.different.push(format!("{}: {before} before, {now} now", path.trim_start_matches('.')));
        }
    }

    fn differ(&mut self, path: &str, before: &Value, now: &Value) {
        let path = path.trim_start_matches('.');
        if path.ends_with("png_base64") && before.is_string() && now.is_string() {
            // The first characters of two pictures are alike.
            self.different.push(format!("{path}: another picture now"));
            return;
        }
        let short = |value: &Value| value.to_string().chars().take(60).collect::<String>();
        self.different.push(format!("{path}: {} before, {} now", short(before), short(now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NotAnalysed, ReasonCode};

    fn compare_json(before: &Value, now: &Value) -> (usize, f64, Vec<String>) {
        let mut walk = Walk { near: 0, largest: 0.0, different: Vec::new() };
        walk.values("", before, now);
        (walk.near, walk.largest, walk.different)
    }

    #[test]
    fn numbers_may_be_near_and_nothing_else_may_differ() {
        use serde_json::json;
        let before = json!({ "images": [{ "fused": [0.25, 0.75], "decision": "present", "volume_ml": 2000.0 }] });
        assert_eq!(compare_json(&before, &before), (0, 0.0, Vec::new()));
        let near = json!({ "images": [{ "fused": [0.250_001, 0.75], "decision": "present", "volume_ml": 2000.01 }] });
        let (count, largest, different) = compare_json(&before, &near);
        assert_eq!((count, different.len()), (2, 0));
        assert!((4e-6..6e-6).contains(&largest), "{largest}");
        let far = json!({ "images": [{ "fused": [0.26, 0.75], "decision": "absent", "more": 1 }] });
        let (_, _, different) = compare_json(&before, &far);
        assert_eq!(different.len(), 4, "{different:?}");
        assert_eq!(different[0], "images[0].fused[0]: 0.25 before, 0.26 now");
        assert!(different.iter().any(|line| line.starts_with("images[0].decision: \"present\" before")));
    }

    #[test]
    fn pictures_are_compared_whole() {
        use serde_json::json;
        let section = |png: &str| json!({ "sections": [{ "index": 3, "lesions_png_base64": png }] });
        assert_eq!(compare_json(&section("iVBORw0KGgoAAA"), &section("iVBORw0KGgoAAA")).2, Vec::<String>::new());
        let (_, _, different) = compare_json(&section("iVBORw0KGgoAAA"), &section("iVBORw0KGgoAAB"));
        assert_eq!(different, ["sections[0].lesions_png_base64: another picture now"]);
        let (_, _, different) = compare_json(&section("iVBORw0KGgoAAA"), &json!({ "sections": [{ "index": 3 }] }));
        assert_eq!(different.len(), 1, "none any more: {different:?}");
    }

    #[test]
    fn numbers_survive_being_kept_bit_for_bit() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 11) as f64 / (1_u64 << 53) as f64;
            let kept: f64 = serde_json::from_str(&serde_json::to_string(&number).unwrap()).unwrap();
            assert_eq!(kept.to_bits(), number.to_bits(), "{number}");
        }
    }

    #[test]
    fn outcomes_are_compared_as_a_whole() {
        let outcome = |words: &str| {
            RunOutcome::NotAnalysed(NotAnalysed {
                reason: ReasonCode::ImageQuality,
                words: words.to_owned(),
                sources: Vec::new(),
            })
        };
        assert_eq!(compare(&outcome("flat"), &outcome("flat")), Comparison::Identical);
        let Comparison::Different { listed, count: 1 } = compare(&outcome("flat"), &outcome("round")) else {
            panic!("one difference")
        };
        assert_eq!(listed, ["words: \"flat\" before, \"round\" now"]);
    }
}
