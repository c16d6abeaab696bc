//! DICOM unique identifiers (PS3.5 chapter 9).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A DICOM UID: digits and dots, at most 64 characters.
///
/// Leading zeros in a component break PS3.5 section 9.1 but occur in the field; they are accepted so that no
/// image is refused for them. A UID from a peer is never used as a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(String);

/// Why a text is not a UID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UidError {
    /// Nothing there.
    #[error("the UID is empty")]
    Empty,
    /// More than 64 characters.
    #[error("UID `{0}` has {1} characters: at most 64 are allowed (PS3.5 section 9.1)")]
    TooLong(String, usize),
    /// Not digits separated by single dots.
    #[error("UID {0:?} is malformed: only digits in dot-separated components are allowed (PS3.5 section 9.1)")]
    Malformed(String),
}

impl Uid {
    /// Validates `text`, ignoring the trailing NUL or space padding of the wire format.
    pub fn new(text: &str) -> Result<Self, UidError> {
        let trimmed = text.trim_end_matches(['\0', ' ']);
        if trimmed.is_empty() {
            return Err(UidError::Empty);
        }
        if trimmed.len() > 64 {
            let shown = trimmed.chars().take(64).collect();
            return Err(UidError::TooLong(shown, trimmed.len()));
        }
        let well_formed =
            trimmed.split('.').all(|component| !component.is_empty() && component.bytes().all(|b| b.is_ascii_digit()));
        if !well_formed {
            return Err(UidError::Malformed(trimmed.to_owned()));
        }
        Ok(Self(trimmed.to_owned()))
    }

    /// The UID `2.25.<decimal of the UUID>` (PS3.5 section B.2); at most 44 characters.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(format!("2.25.{}", uuid.as_u128()))
    }

    /// The UID without padding.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Uid {
    type Err = UidError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for Uid {
    type Error = UidError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> Self {
        uid.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_removed_and_bad_uids_are_explained() {
        assert_eq!(Uid::new("1.2.840.10008.1.1\0").unwrap().as_str(), "1.2.840.10008.1.1");
        assert_eq!(Uid::new(""), Err(UidError::Empty));
        assert!(matches!(Uid::new("../../etc/passwd"), Err(UidError::Malformed(_))));
        assert!(matches!(Uid::new("1..2"), Err(UidError::Malformed(_))));
        assert!(matches!(Uid::new(&"1.".repeat(40)), Err(UidError::TooLong(_, 80))));
    }

    #[test]
    fn uuid_derived_uids_are_short_enough() {
        let uid = Uid::from_uuid(Uuid::from_u128(u128::MAX));
        assert!(uid.as_str().len() <= 44);
        assert_eq!(Uid::new(uid.as_str()).unwrap(), uid);
    }
}
