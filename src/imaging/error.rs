//! Why pixels could not be had from an object.

use super::guard::GuardError;
use crate::types::ReasonCode;

/// Why an object's pixels could not be turned into grey values. No variant but [`Self::Parse`] carries patient data; see
/// [`Self::reason_and_words`].
#[derive(Debug, thiserror::Error)]
pub enum ImagingError {
    /// The file is not safe or not possible to parse.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The data set cannot be parsed although its structure is sound.
    #[error("the data set cannot be parsed: {0}")]
    Parse(String),
    /// A type 1 attribute is absent or empty.
    #[error("{name} {tag} is missing: the pixels cannot be interpreted without it")]
    MissingAttribute {
        /// Attribute name.
        name: &'static str,
        /// Tag as `(gggg,eeee)`.
        tag: &'static str,
    },
    /// An attribute has a value that makes no sense.
    #[error("{name} {tag} is {value}, expected {expected}")]
    BadAttribute {
        /// Attribute name.
        name: &'static str,
        /// Tag as `(gggg,eeee)`.
        tag: &'static str,
        /// What was found.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// A valid image of a kind that is not a single grey radiograph.
    #[error("{what} is not supported: {expected}")]
    UnsupportedImage {
        /// What was found.
        what: String,
        /// What is supported.
        expected: &'static str,
    },
    /// A transfer syntax without a decoder here.
    #[error("transfer syntax {uid} ({name}) has no decoder: {remedy}")]
    UnsupportedTransferSyntax {
        /// Transfer Syntax UID (0002,0010).
        uid: String,
        /// Its name.
        name: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Decoding would need more memory than allowed.
    #[error(
        "the decoded image, in the square that networks take, needs {needed_bytes} bytes, more than the limit of {limit_bytes}: \
         raise the limit if such images are expected"
    )]
    TooLarge {
        /// Bytes that the header or the codestream announces.
        needed_bytes: u64,
        /// The configured limit in bytes.
        limit_bytes: u64,
    },
    /// Fewer pixel bytes than the header announces.
    #[error(
        "Pixel Data (7FE0,0010) is cut short: {found_bytes} bytes, {needed_bytes} needed for {rows} x {columns} pixels"
    )]
    ShortPixelData {
        /// Bytes there.
        found_bytes: u64,
        /// Bytes needed.
        needed_bytes: u64,
        /// Rows (0028,0010).
        rows: u32,
        /// Columns (0028,0011).
        columns: u32,
    },
    /// The compressed picture does not agree with the header.
    #[error("the {codec} picture is {found}, the header says {expected}: the object contradicts itself")]
    CodestreamMismatch {
        /// Such as `JPEG 2000`.
        codec: &'static str,
        /// Size or depth in the codestream.
        found: String,
        /// Size or depth in the header.
        expected: String,
    },
    /// The codec failed.
    #[error("the {codec} decoder failed: {message}")]
    Codec {
        /// Such as `JPEG 2000 Image Compression (Lossless Only)`.
        codec: String,
        /// What it said.
        message: String,
    },
}

impl ImagingError {
    /// The coded reason under which an image with this problem is left out.
    #[must_use]
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::UnsupportedImage { .. } => ReasonCode::UnsupportedImage,
            _ => ReasonCode::Undecodable,
        }
    }

    /// The coded reason with the words that results and pages may carry. What the parser says may quote the data set and
    /// is left out; everything else names attributes and sizes only.
    #[must_use]
    pub fn reason_and_words(&self) -> (ReasonCode, String) {
        let words = match self {
            Self::Parse(_) => "the data set cannot be parsed".to_owned(),
            error => error.to_string(),
        };
        (self.reason(), words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parser_says_is_not_told() {
        let (reason, words) =
            ImagingError::Parse("invalid value Doe^Jane of Patient Name".to_owned()).reason_and_words();
        assert_eq!((reason, words.as_str()), (ReasonCode::Undecodable, "the data set cannot be parsed"));
        let too_large = ImagingError::TooLarge { needed_bytes: 9, limit_bytes: 8 };
        assert!(too_large.reason_and_words().1.contains("needs 9 bytes"));
    }
}
