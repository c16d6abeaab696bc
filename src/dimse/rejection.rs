//! Why an association is refused, in the codes of PS3.8 section 9.3.4 and in words, and the reasons of A-ABORT
//! (section 9.3.8).

use std::fmt;

/// Whether trying again may help (PS3.8 table 9-21, Result).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectResult {
    /// Trying again unchanged will fail again.
    Permanent,
    /// Trying again later may succeed.
    Transient,
}

/// Source and Reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Service user: no reason given.
    NoReasonGiven,
    /// Service user: application context name not supported.
    ApplicationContextNotSupported,
    /// Service user: calling AE title not recognized.
    CallingAeTitleNotRecognized,
    /// Service user: called AE title not recognized.
    CalledAeTitleNotRecognized,
    /// Service provider (ACSE): no reason given.
    ProviderGivesNoReason,
    /// Service provider (ACSE): protocol version not supported.
    ProtocolVersionNotSupported,
    /// Service provider (presentation): temporary congestion.
    TemporaryCongestion,
    /// Service provider (presentation): local limit exceeded.
    LocalLimitExceeded,
    /// Anything else that a peer may send.
    Other {
        /// Source byte.
        source: u8,
        /// Reason byte.
        reason: u8,
    },
}

impl RejectResult {
    /// The byte on the wire.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Permanent => 1,
            Self::Transient => 2,
        }
    }

    /// From the byte on the wire; what the standard does not define counts as permanent.
    pub(crate) const fn from_code(code: u8) -> Self {
        match code {
            2 => Self::Transient,
            _ => Self::Permanent,
        }
    }
}

impl fmt::Display for RejectResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permanent => "permanent",
            Self::Transient => "transient",
        })
    }
}

impl RejectReason {
    /// Source and reason bytes on the wire.
    pub const fn codes(self) -> (u8, u8) {
        match self {
            Self::NoReasonGiven => (1, 1),
            Self::ApplicationContextNotSupported => (1, 2),
            Self::CallingAeTitleNotRecognized => (1, 3),
            Self::CalledAeTitleNotRecognized => (1, 7),
            Self::ProviderGivesNoReason => (2, 1),
            Self::ProtocolVersionNotSupported => (2, 2),
            Self::TemporaryCongestion => (3, 1),
            Self::LocalLimitExceeded => (3, 2),
            Self::Other { source, reason } => (source, reason),
        }
    }

    /// From the bytes on the wire.
    pub const fn from_codes(source: u8, reason: u8) -> Self {
        match (source, reason) {
            (1, 1) => Self::NoReasonGiven,
            (1, 2) => Self::ApplicationContextNotSupported,
            (1, 3) => Self::CallingAeTitleNotRecognized,
            (1, 7) => Self::CalledAeTitleNotRecognized,
            (2, 1) => Self::ProviderGivesNoReason,
            (2, 2) => Self::ProtocolVersionNotSupported,
            (3, 1) => Self::TemporaryCongestion,
            (3, 2) => Self::LocalLimitExceeded,
            _ => Self::Other { source, reason },
        }
    }

    /// Who rejects, in the standard's words.
    pub const fn source(self) -> &'static str {
        match self.codes().0 {
            1 => "service user",
            2 => "service provider (ACSE)",
            3 => "service provider (presentation)",
            _ => "unknown source",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReasonGiven | Self::ProviderGivesNoReason => f.write_str("no reason given"),
            Self::ApplicationContextNotSupported => f.write_str("application context name not supported"),
            Self::CallingAeTitleNotRecognized => f.write_str("calling AE title not recognized"),
            Self::CalledAeTitleNotRecognized => f.write_str("called AE title not recognized"),
            Self::ProtocolVersionNotSupported => f.write_str("protocol version not supported"),
            Self::TemporaryCongestion => f.write_str("temporary congestion"),
            Self::LocalLimitExceeded => f.write_str("local limit exceeded"),
            Self::Other { source, reason } => write!(f, "reserved reason {reason} of source {source}"),
        }
    }
}

/// Our refusal of an association: what goes on the wire, and what people need to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Permanent or transient.
    pub result: RejectResult,
    /// Source and reason.
    pub reason: RejectReason,
    /// What would have been accepted.
    pub expected: String,
    /// What the peer sent.
    pub received: String,
    /// What somebody can do about it.
    pub remedy: String,
}

impl Rejection {
    fn new(
        result: RejectResult,
        reason: RejectReason,
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { result, reason, expected: expected.into(), received: received.into(), remedy: remedy.into() }
    }

    /// Permanent: nobody knows the caller, or not from this address.
    pub fn calling_ae_title_not_recognized(
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(RejectResult::Permanent, RejectReason::CallingAeTitleNotRecognized, expected, received, remedy)
    }

    /// Permanent: we do not answer to that title.
    pub fn called_ae_title_not_recognized(
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(RejectResult::Permanent, RejectReason::CalledAeTitleNotRecognized, expected, received, remedy)
    }

    /// Permanent: not the DICOM application context.
    pub fn application_context_not_supported(
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(RejectResult::Permanent, RejectReason::ApplicationContextNotSupported, expected, received, remedy)
    }

    /// Permanent: the peer does not offer version 1 of the upper layer protocol.
    pub fn protocol_version_not_supported(
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(RejectResult::Permanent, RejectReason::ProtocolVersionNotSupported, expected, received, remedy)
    }

    /// Permanent: the peer's certificate or user identity is not the one that is asked for. The standard has no reason
    /// of its own for it.
    pub fn not_authorized(expected: impl Into<String>, received: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(RejectResult::Permanent, RejectReason::ProviderGivesNoReason, expected, received, remedy)
    }

    /// Transient: as many associations as we allow are open.
    pub fn local_limit_exceeded(
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(RejectResult::Transient, RejectReason::LocalLimitExceeded, expected, received, remedy)
    }

    /// Transient: we cannot serve at the moment (starting, stopping, out of disk).
    pub fn temporary_congestion(
        expected: impl Into<String>,
        received: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(RejectResult::Transient, RejectReason::TemporaryCongestion, expected, received, remedy)
    }

    /// Who rejects, in the standard's words.
    pub const fn source(&self) -> &'static str {
        self.reason.source()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rejected {} by {}: {}; expected {}, received {}; {}",
            self.result,
            self.source(),
            self.reason,
            self.expected,
            self.received,
            self.remedy
        )
    }
}

/// Reason of an A-ABORT by the service provider (PS3.8 table 9-26), as far as we send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AbortReason {
    UnrecognizedPdu,
    UnexpectedPdu,
    InvalidPduParameter,
}

impl AbortReason {
    const fn code(self) -> u8 {
        match self {
            Self::UnrecognizedPdu => 1,
            Self::UnexpectedPdu => 2,
            Self::InvalidPduParameter => 6,
        }
    }
}

/// Who aborts an association, as in an A-ABORT PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AbortSource {
    /// The application.
    ServiceUser,
    /// The protocol machine.
    ServiceProvider(AbortReason),
}

impl AbortSource {
    /// Source and reason bytes on the wire.
    pub(crate) const fn codes(self) -> (u8, u8) {
        match self {
            Self::ServiceUser => (0, 0),
            Self::ServiceProvider(reason) => (2, reason.code()),
        }
    }
}

/// A received A-ABORT in words.
pub(crate) fn abort_words(source: u8, reason: u8) -> String {
    match (source, reason) {
        (0, _) => "by the service user (the peer's application)".to_owned(),
        (2, reason) => {
            let words = match reason {
                0 => "reason not specified",
                1 => "unrecognized PDU",
                2 => "unexpected PDU",
                4 => "unrecognized PDU parameter",
                5 => "unexpected PDU parameter",
                6 => "invalid PDU parameter value",
                _ => return format!("by the service provider: reserved reason {reason}"),
            };
            format!("by the service provider: {words}")
        }
        (source, reason) => format!("by reserved source {source}, reason {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reject_codes_are_those_of_the_standard() {
        // PS3.8 table 9-21
        for (reason, codes, source) in [
            (RejectReason::NoReasonGiven, (1, 1), "service user"),
            (RejectReason::ApplicationContextNotSupported, (1, 2), "service user"),
            (RejectReason::CallingAeTitleNotRecognized, (1, 3), "service user"),
            (RejectReason::CalledAeTitleNotRecognized, (1, 7), "service user"),
            (RejectReason::ProviderGivesNoReason, (2, 1), "service provider (ACSE)"),
            (RejectReason::ProtocolVersionNotSupported, (2, 2), "service provider (ACSE)"),
            (RejectReason::TemporaryCongestion, (3, 1), "service provider (presentation)"),
            (RejectReason::LocalLimitExceeded, (3, 2), "service provider (presentation)"),
            (RejectReason::Other { source: 9, reason: 99 }, (9, 99), "unknown source"),
        ] {
            assert_eq!(reason.codes(), codes);
            assert_eq!(RejectReason::from_codes(codes.0, codes.1), reason);
            assert_eq!(reason.source(), source);
        }
        assert_eq!(RejectResult::from_code(RejectResult::Transient.code()), RejectResult::Transient);
        assert_eq!(RejectResult::from_code(RejectResult::Permanent.code()), RejectResult::Permanent);
    }

    #[test]
    fn a_rejection_reads_as_a_sentence() {
        let rejection = Rejection::called_ae_title_not_recognized("`HILUM`", "`HILLUM`", "correct the title");
        assert_eq!(
            rejection.to_string(),
            "rejected permanent by service user: called AE title not recognized; \
             expected `HILUM`, received `HILLUM`; correct the title"
        );
    }

    #[test]
    fn aborts_have_words_even_for_codes_that_the_standard_reserves() {
        assert_eq!(abort_words(0, 7), "by the service user (the peer's application)");
        assert_eq!(abort_words(2, 6), "by the service provider: invalid PDU parameter value");
        assert_eq!(abort_words(2, 3), "by the service provider: reserved reason 3");
        assert_eq!(abort_words(77, 3), "by reserved source 77, reason 3");
    }
}
