//! What a destination's answer means for a delivery: pure decisions.

use std::time::Duration;

/// What becomes of a delivery after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The peer has it.
    Delivered,
    /// Not now: try again later.
    Retry,
    /// Never like this: a person has to look.
    Dead,
}

/// The verdict for a C-STORE status (PS3.4 table B.2-1, PS3.7 annex C).
///
/// A duplicate means that an earlier attempt arrived and its answer was lost: the object with this UID is ours,
/// byte for byte. Refusals for resources and authorisation end when somebody acts; the rest is about the object.
#[must_use]
pub const fn verdict(status: u16) -> Verdict {
    match status {
        // Success, a duplicate, and warnings, with which the object is stored.
        0x0000 | 0x0001 | 0x0107 | 0x0111 | 0x0116 | 0xB000..=0xBFFF => Verdict::Delivered,
        // Processing failure, not authorised, resource limitation, out of resources.
        0x0110 | 0x0124 | 0x0213 | 0xA700..=0xA7FF => Verdict::Retry,
        _ => Verdict::Dead,
    }
}

/// The pause after failed attempt number `attempt` (from 1): doubles from `initial` up to `maximum`, and differs
/// by up to a quarter between deliveries (`spread`, 0 to 1) so that they do not all come back at once.
#[must_use]
pub fn backoff(attempt: i32, initial: Duration, maximum: Duration, spread: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).clamp(0, 30);
    let pause = initial.saturating_mul(1 << doublings).min(maximum);
    pause.mul_f64(1.0 - 0.25 * spread.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(0x0000, Verdict::Delivered)]
    #[case(0x0111, Verdict::Delivered)]
    #[case(0xB000, Verdict::Delivered)]
    #[case(0xB006, Verdict::Delivered)]
    #[case(0xB007, Verdict::Delivered)]
    #[case(0xA700, Verdict::Retry)]
    #[case(0xA7FF, Verdict::Retry)]
    #[case(0x0124, Verdict::Retry)]
    #[case(0x0110, Verdict::Retry)]
    #[case(0x0122, Verdict::Dead)]
    #[case(0xA900, Verdict::Dead)]
    #[case(0xC000, Verdict::Dead)]
    fn statuses(#[case] status: u16, #[case] expected: Verdict) {
        assert_eq!(verdict(status), expected, "0x{status:04X}");
    }

    #[test]
    fn pauses_grow_to_the_maximum_and_spread() {
        let pause = |attempt, spread| backoff(attempt, Duration::from_secs(10), Duration::from_hours(1), spread);
        assert_eq!(pause(1, 0.0), Duration::from_secs(10));
        assert_eq!(pause(3, 0.0), Duration::from_secs(40));
        assert_eq!(pause(1000, 0.0), Duration::from_hours(1));
        assert_eq!(pause(1, 1.0), Duration::from_millis(7500));
    }
}
