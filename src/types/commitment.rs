//! Storage Commitment (PS3.4 annex J): what is asked and what is answered.

use super::Uid;

/// An instance by its UIDs (PS3.3 table 10-11).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SopReference {
    /// (0008,1150)
    pub sop_class_uid: Uid,
    /// (0008,1155)
    pub sop_instance_uid: Uid,
}

/// The question: whether all these are in safe keeping (PS3.4 table J.3-1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitmentRequest {
    /// (0008,1195), chosen by who asks
    pub transaction_uid: Uid,
    /// (0008,1199), at least one
    pub instances: Vec<SopReference>,
}

/// The answer (PS3.4 table J.3-2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitmentReport {
    /// (0008,1195) of the question
    pub transaction_uid: Uid,
    /// (0008,1199): in safe keeping
    pub committed: Vec<SopReference>,
    /// (0008,1198) with (0008,1197): not, and why
    pub failed: Vec<(SopReference, FailureReason)>,
}

/// Failure Reason (0008,1197) (PS3.3 section C.14.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FailureReason(pub u16);

impl FailureReason {
    /// 0110H: the instance is there, but not as it should be.
    pub const PROCESSING_FAILURE: Self = Self(0x0110);
    /// 0112H: there is no such instance.
    pub const NO_SUCH_OBJECT_INSTANCE: Self = Self(0x0112);
    /// 0119H: the instance is there with another SOP class.
    pub const CLASS_INSTANCE_CONFLICT: Self = Self(0x0119);
    /// 0131H: the Transaction UID names another request.
    pub const DUPLICATE_TRANSACTION_UID: Self = Self(0x0131);

    /// The standard's words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self.0 {
            0x0110 => "processing failure",
            0x0112 => "no such object instance",
            0x0119 => "class/instance conflict",
            0x0122 => "referenced SOP class not supported",
            0x0131 => "duplicate Transaction UID",
            0x0213 => "resource limitation",
            _ => "a reason that the standard does not know",
        }
    }
}

impl std::fmt::Display for FailureReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#06X} ({})", self.0, self.meaning())
    }
}
