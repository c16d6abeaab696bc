//! DIMSE status codes (PS3.7 annex C; PS3.4 table B.2-1 for storage, table C.4-1 for queries): constants, categories
//! and meanings.

use std::fmt;

/// Done.
pub const SUCCESS: u16 = 0x0000;
/// The SOP Instance UID is invalid or missing.
pub const INVALID_SOP_INSTANCE: u16 = 0x0117;
/// The handler failed.
pub const PROCESSING_FAILURE: u16 = 0x0110;
/// The SOP class is not the one of the presentation context.
pub const SOP_CLASS_NOT_SUPPORTED: u16 = 0x0122;
/// The peer may not do this.
pub const NOT_AUTHORIZED: u16 = 0x0124;
/// Not an operation that we offer.
pub const UNRECOGNIZED_OPERATION: u16 = 0x0211;
/// A parameter is missing or of the wrong type.
pub const MISTYPED_ARGUMENT: u16 = 0x0212;
/// The SOP instance is not one of the service.
pub const NO_SUCH_SOP_INSTANCE: u16 = 0x0112;
/// The event is not one of the SOP class.
pub const NO_SUCH_EVENT_TYPE: u16 = 0x0113;
/// A parameter has a value that cannot be acted upon.
pub const INVALID_ARGUMENT_VALUE: u16 = 0x0115;
/// The SOP class is not one that we know, for N-services.
pub const NO_SUCH_SOP_CLASS: u16 = 0x0118;
/// The action is not one of the SOP class.
pub const NO_SUCH_ACTION: u16 = 0x0123;
/// Not enough of something. Transient: try again later, or with less at once.
pub const RESOURCE_LIMITATION: u16 = 0x0213;
/// Refused: out of resources. Transient: the sender should try again later.
pub const OUT_OF_RESOURCES: u16 = 0xA700;
/// The data set does not match the SOP class.
pub const DATA_SET_DOES_NOT_MATCH_SOP_CLASS: u16 = 0xA900;
/// The data set cannot be understood.
pub const CANNOT_UNDERSTAND: u16 = 0xC000;

/// What a status says about the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// Done.
    Success,
    /// Done, with remarks.
    Warning,
    /// Not done.
    Failure,
    /// Ended at the requestor's wish.
    Cancel,
    /// Not final: more responses follow.
    Pending,
}

/// The category of a status (PS3.7 annex C).
pub const fn category(status: u16) -> Category {
    match status {
        SUCCESS => Category::Success,
        0x0001 | 0x0107 | 0x0116 | 0xB000..=0xBFFF => Category::Warning,
        0xFE00 => Category::Cancel,
        0xFF00 | 0xFF01 => Category::Pending,
        _ => Category::Failure,
    }
}

/// The meaning of a status in words.
pub const fn meaning(status: u16) -> &'static str {
    match status {
        SUCCESS => "success",
        0x0001 => "warning: requested optional attributes are not supported",
        0x0107 => "warning: attribute list error",
        PROCESSING_FAILURE => "processing failure",
        0x0111 => "duplicate SOP instance",
        NO_SUCH_SOP_INSTANCE => "no such SOP instance",
        NO_SUCH_EVENT_TYPE => "no such event type",
        0x0114 => "no such argument",
        INVALID_ARGUMENT_VALUE => "invalid argument value",
        0x0116 => "warning: attribute value out of range",
        NO_SUCH_SOP_CLASS => "no such SOP class",
        0x0119 => "class/instance conflict",
        0x0120 => "missing attribute",
        NO_SUCH_ACTION => "no such action",
        0x0131 => "duplicate Transaction UID",
        INVALID_SOP_INSTANCE => "invalid SOP Instance UID",
        SOP_CLASS_NOT_SUPPORTED => "SOP class not supported",
        NOT_AUTHORIZED => "not authorized",
        0x0210 => "duplicate invocation",
        UNRECOGNIZED_OPERATION => "unrecognized operation",
        MISTYPED_ARGUMENT => "mistyped argument",
        RESOURCE_LIMITATION => "resource limitation",
        0xA700..=0xA7FF => "refused: out of resources",
        0xA900..=0xA9FF => "data set does not match SOP class",
        0xB000 => "warning: coercion of data elements",
        0xB006 => "warning: elements discarded",
        0xB007 => "warning: data set does not match SOP class",
        0xC000..=0xCFFF => "cannot understand",
        0xFE00 => "cancelled",
        0xFF00 | 0xFF01 => "pending",
        _ => match category(status) {
            Category::Warning => "warning without a standard meaning",
            _ => "failure without a standard meaning",
        },
    }
}

/// A status for people: `0xA700 (refused: out of resources)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InWords(pub u16);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06X} ({})", self.0, meaning(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_and_meanings_follow_the_standard() {
        for (status, expected_category, words) in [
            (0x0000, Category::Success, "success"),
            (0x0110, Category::Failure, "processing failure"),
            (0x0122, Category::Failure, "SOP class not supported"),
            (0x0211, Category::Failure, "unrecognized operation"),
            (0xA700, Category::Failure, "refused: out of resources"),
            (0xA7FF, Category::Failure, "refused: out of resources"),
            (0xA9AB, Category::Failure, "data set does not match SOP class"),
            (0xB000, Category::Warning, "warning: coercion of data elements"),
            (0xB123, Category::Warning, "warning without a standard meaning"),
            (0xC123, Category::Failure, "cannot understand"),
            (0x0107, Category::Warning, "warning: attribute list error"),
            (0xFE00, Category::Cancel, "cancelled"),
            (0xFF00, Category::Pending, "pending"),
            (0x9999, Category::Failure, "failure without a standard meaning"),
        ] {
            assert_eq!(category(status), expected_category, "{status:#06X}");
            assert_eq!(meaning(status), words, "{status:#06X}");
        }
        assert_eq!(InWords(0xA700).to_string(), "0xA700 (refused: out of resources)");
    }
}
