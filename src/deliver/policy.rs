//! What a destination's answer means for a delivery: pure decisions, and the tables that they come from.
//! `docs/operations.md` shows the tables; a test compares the two.

use std::time::Duration;

/// What becomes of a delivery after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The destination has it.
    Delivered,
    /// Not now: try again later.
    Retry,
    /// Not in this form: the next of its alternatives, and without one a person has to look.
    NextForm,
    /// Never like this: a person has to look.
    Dead,
}

impl Verdict {
    /// As in documents.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "tried again",
            Self::NextForm => "the next form, or dead",
            Self::Dead => "dead",
        }
    }
}

/// What statuses from `first` to `last` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusPolicy {
    /// The first status.
    pub first: u16,
    /// The last status.
    pub last: u16,
    /// What becomes of the delivery.
    pub verdict: Verdict,
    /// The meaning.
    pub words: &'static str,
    /// What a person does about it.
    pub remedy: &'static str,
}

const fn row(first: u16, last: u16, verdict: Verdict, words: &'static str, remedy: &'static str) -> StatusPolicy {
    StatusPolicy { first, last, verdict, words, remedy }
}

/// The policy by C-STORE status (PS3.4 table B.2-1, PS3.7 annex C), which STOW-RS gives as reasons too (PS3.18 table
/// I.2.2-1). The first row that holds a status decides.
///
/// A duplicate means that an earlier attempt arrived and its answer was lost: the object with this UID is ours, byte for
/// byte. Refusals for resources and authorisation end when somebody acts; the rest is about the object.
pub const STATUSES: &[StatusPolicy] = &[
    row(0x0000, 0x0000, Verdict::Delivered, "success", "nothing"),
    row(0x0001, 0x0001, Verdict::Delivered, "stored; optional attributes are not supported", "nothing"),
    row(0x0107, 0x0107, Verdict::Delivered, "stored; attribute list error", "nothing"),
    row(0x0110, 0x0110, Verdict::Retry, "processing failure", "look into the log of the destination"),
    row(0x0111, 0x0111, Verdict::Delivered, "it has the object already", "nothing"),
    row(0x0116, 0x0116, Verdict::Delivered, "stored; an attribute value is out of range", "nothing"),
    row(
        0x0117,
        0x0117,
        Verdict::Dead,
        "invalid SOP Instance UID",
        "let the destination take UIDs that begin with 2.25 (PS3.5 annex B.2)",
    ),
    row(
        0x0122,
        0x0122,
        Verdict::NextForm,
        "SOP class not supported",
        "enable the SOP class at the destination, or take it out of `results`",
    ),
    row(0x0124, 0x0124, Verdict::Retry, "not authorized", "let the destination take objects from our AE title"),
    row(0x0210, 0x0210, Verdict::Retry, "duplicate invocation", "look into the log of the destination"),
    row(0x0213, 0x0213, Verdict::Retry, "resource limitation", "make room at the destination"),
    row(0xA700, 0xA7FF, Verdict::Retry, "out of resources", "make room at the destination"),
    row(
        0xA900,
        0xA9FF,
        Verdict::Dead,
        "the data set does not match the SOP class",
        "ask the vendor of the destination what it misses, and tell us",
    ),
    row(
        0xB000,
        0xB000,
        Verdict::Delivered,
        "stored; attributes were changed",
        "nothing, unless links between results break",
    ),
    row(
        0xB006,
        0xB006,
        Verdict::Delivered,
        "stored; elements were discarded",
        "nothing, unless something is not shown",
    ),
    row(
        0xB007,
        0xB007,
        Verdict::Delivered,
        "stored; the data set does not match the SOP class",
        "nothing, unless something is not shown",
    ),
    row(0xB000, 0xBFFF, Verdict::Delivered, "stored; a warning of the destination's own", "nothing"),
    row(
        0xC000,
        0xCFFF,
        Verdict::Dead,
        "the destination cannot understand the object",
        "look into its log; another form may do (`results`)",
    ),
    OTHER_STATUS,
];

const OTHER_STATUS: StatusPolicy =
    row(0x0002, 0xFFFF, Verdict::Dead, "any other failure", "look into the log of the destination");

/// The row of a status.
#[must_use]
pub fn status_policy(status: u16) -> &'static StatusPolicy {
    STATUSES.iter().find(|row| (row.first..=row.last).contains(&status)).unwrap_or(&OTHER_STATUS)
}

/// The verdict for a C-STORE status.
#[must_use]
pub fn verdict(status: u16) -> Verdict {
    status_policy(status).verdict
}

/// What is at fault when a web server answers with an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, or the object.
    Object,
    /// The destination or what we know of it: every other object would fare the same.
    Destination,
}

/// What HTTP statuses from `first` to `last` mean for an object whose fate the answer does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpPolicy {
    /// The first status.
    pub first: u16,
    /// The last status.
    pub last: u16,
    /// What becomes of the delivery.
    pub verdict: Verdict,
    /// Whose fault it is.
    pub fault: Fault,
    /// The meaning.
    pub words: &'static str,
    /// What a person does about it.
    pub remedy: &'static str,
}

const fn http(
    first: u16,
    last: u16,
    verdict: Verdict,
    fault: Fault,
    words: &'static str,
    remedy: &'static str,
) -> HttpPolicy {
    HttpPolicy { first, last, verdict, fault, words, remedy }
}

/// The policy by HTTP status of a STOW-RS answer (PS3.18 table 10.5.3-1, RFC 9110 section 15). The first row that holds a
/// status decides.
pub const HTTP_STATUSES: &[HttpPolicy] = &[
    http(
        202,
        202,
        Verdict::Retry,
        Fault::Object,
        "accepted, without a word on the object",
        "look into the log of the server",
    ),
    http(200, 299, Verdict::Delivered, Fault::Object, "stored", "nothing"),
    http(
        300,
        399,
        Verdict::Retry,
        Fault::Destination,
        "the service is elsewhere",
        "give the destination the `url` that the server names",
    ),
    http(
        401,
        401,
        Verdict::Retry,
        Fault::Destination,
        "the server does not know who we are",
        "check `authentication` and the files that it names",
    ),
    http(403, 403, Verdict::Retry, Fault::Destination, "we may not store", "let the server take objects from our user"),
    http(
        404,
        405,
        Verdict::Retry,
        Fault::Destination,
        "there is no such service",
        "check `url`; it ends before /studies",
    ),
    http(407, 407, Verdict::Retry, Fault::Destination, "a proxy wants to know who we are", "let us pass the proxy"),
    http(408, 408, Verdict::Retry, Fault::Destination, "the server has waited too long", "check the network"),
    http(
        413,
        413,
        Verdict::Dead,
        Fault::Object,
        "the object is too large for the server",
        "raise its limit, or lower `results.picture_longest_side`",
    ),
    http(425, 425, Verdict::Retry, Fault::Destination, "too early", "nothing"),
    http(
        429,
        429,
        Verdict::Retry,
        Fault::Destination,
        "too many requests",
        "lower `maximum_associations`, or raise the limit of the server",
    ),
    http(500, 599, Verdict::Retry, Fault::Destination, "the server has failed", "look into its log"),
    OTHER_HTTP,
];

const OTHER_HTTP: HttpPolicy =
    http(400, 499, Verdict::Dead, Fault::Object, "the server refuses the object", "look into its log");

/// The row of an HTTP status.
#[must_use]
pub fn http_policy(status: u16) -> &'static HttpPolicy {
    HTTP_STATUSES.iter().find(|row| (row.first..=row.last).contains(&status)).unwrap_or(&OTHER_HTTP)
}

/// The pause after failed attempt number `attempt` (from 1): doubles from `initial` up to `maximum`, and differs
/// by up to a quarter between deliveries (`spread`, 0 to 1) so that they do not all come back at once.
#[must_use]
pub fn backoff(attempt: i32, initial: Duration, maximum: Duration, spread: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).clamp(0, 30);
    let pause = initial.saturating_mul(1 << doublings).min(maximum);
    pause.mul_f64(1.0 - 0.25 * spread.clamp(0.0, 1.0))
}

/// Failures in a row after which a destination is left alone until it answers a question.
pub const FAILURES_UNTIL_OPEN: i32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(0x0000, Verdict::Delivered)]
    #[case(0x0111, Verdict::Delivered)]
    #[case(0xB000, Verdict::Delivered)]
    #[case(0xB006, Verdict::Delivered)]
    #[case(0xB007, Verdict::Delivered)]
    #[case(0xBABE, Verdict::Delivered)]
    #[case(0xA700, Verdict::Retry)]
    #[case(0xA7FF, Verdict::Retry)]
    #[case(0x0124, Verdict::Retry)]
    #[case(0x0110, Verdict::Retry)]
    #[case(0x0122, Verdict::NextForm)]
    #[case(0xA900, Verdict::Dead)]
    #[case(0xC000, Verdict::Dead)]
    #[case(0x0211, Verdict::Dead)]
    #[case(0xFE00, Verdict::Dead)]
    fn statuses(#[case] status: u16, #[case] expected: Verdict) {
        assert_eq!(verdict(status), expected, "0x{status:04X}");
    }

    #[rstest::rstest]
    #[case(200, Verdict::Delivered, Fault::Object)]
    #[case(202, Verdict::Retry, Fault::Object)]
    #[case(301, Verdict::Retry, Fault::Destination)]
    #[case(400, Verdict::Dead, Fault::Object)]
    #[case(401, Verdict::Retry, Fault::Destination)]
    #[case(409, Verdict::Dead, Fault::Object)]
    #[case(413, Verdict::Dead, Fault::Object)]
    #[case(429, Verdict::Retry, Fault::Destination)]
    #[case(503, Verdict::Retry, Fault::Destination)]
    #[case(700, Verdict::Dead, Fault::Object)]
    fn http_statuses(#[case] status: u16, #[case] expected: Verdict, #[case] fault: Fault) {
        assert_eq!((http_policy(status).verdict, http_policy(status).fault), (expected, fault), "{status}");
    }

    #[test]
    fn the_document_says_the_same() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
        let document = fs_err::read_to_string(path).unwrap();
        let range = |first: String, last: String| if first == last { first } else { format!("{first}–{last}") };
        let dicom = STATUSES.iter().map(|row| {
            let status = range(format!("{:#06X}", row.first), format!("{:#06X}", row.last));
            format!("| `{status}` | {} | {} | {} |", row.verdict.words(), row.words, row.remedy)
        });
        let web = HTTP_STATUSES.iter().map(|row| {
            let status = range(row.first.to_string(), row.last.to_string());
            format!("| HTTP {status} | {} | {} | {} |", row.verdict.words(), row.words, row.remedy)
        });
        for line in dicom.chain(web) {
            assert!(document.lines().any(|written| written == line), "docs/operations.md lacks\n{line}");
        }
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
