//! From the answers of a bundle's members to a decision, of radiographs and of scans alike.

use std::time::Duration;

use super::{InferError, ModelError};
use crate::types::{BundleIdentity, BundleStatus, Decision, MemberScore};

/// The answers of the members, one entry each in the bundle's order, with the words of those that failed.
///
/// # Errors
/// [`InferError::AllMembersFailed`] when none answered.
pub(super) fn surviving<T>(
    bundle: &BundleIdentity,
    outputs: Vec<Result<T, ModelError>>,
) -> Result<Vec<Result<T, String>>, InferError> {
    for (member, output) in bundle.members.iter().zip(&outputs) {
        if let Err(failure) = output {
            tracing::warn!(member = %member.name, %failure, "a classifier fails");
        }
    }
    if outputs.iter().all(Result::is_err) {
        let waits: Option<Vec<Duration>> =
            outputs.iter().map(|output| output.as_ref().err().and_then(ModelError::wait)).collect();
        let failures: Vec<String> =
            outputs.iter().filter_map(|output| output.as_ref().err().map(ToString::to_string)).collect();
        let first = failures.first().cloned().unwrap_or_default();
        let wait = waits.and_then(|waits| waits.into_iter().min());
        return Err(InferError::AllMembersFailed { failures, first, wait });
    }
    Ok(outputs.into_iter().map(|output| output.map_err(|error| error.to_string())).collect())
}

/// What the bundle decides at this fused output of its target class.
pub(super) fn decide(bundle: &BundleIdentity, output: f64, members: &[MemberScore]) -> Decision {
    if bundle.is_in_grey_zone(output) || MemberScore::say_nothing(members) {
        return Decision::Undetermined;
    }
    let is_whole = members.iter().all(|member| member.failure.is_none());
    decide_by_rule(bundle, output >= bundle.threshold, is_whole)
}

/// What the bundle decides where its rule says yes or no; `is_whole` when no member failed.
pub(super) fn decide_by_rule(bundle: &BundleIdentity, is_positive: bool, is_whole: bool) -> Decision {
    match bundle.status {
        // What was validated is the whole ensemble: what is left of it after a failure decides nothing.
        BundleStatus::Validated if is_whole && is_positive => Decision::Present,
        BundleStatus::Validated if is_whole => Decision::Absent,
        BundleStatus::Validated | BundleStatus::Untrained | BundleStatus::Unvalidated => Decision::Undetermined,
    }
}

/// Largest minus smallest output of the members for the target class; 0 of none.
pub(super) fn member_spread(members: &[MemberScore], target_class_idx: usize) -> f64 {
    spread(members.iter().filter_map(|member| member.probabilities.get(target_class_idx)).copied())
}

/// Largest minus smallest; 0 of none.
pub(super) fn spread(outputs: impl Iterator<Item = f64>) -> f64 {
    let (least, most) =
        outputs.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), output| (least.min(output), most.max(output)));
    (most - least).max(0.0)
}
