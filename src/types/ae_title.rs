//! Application Entity titles (PS3.5 section 6.2, VR AE).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An Application Entity title: 1 to 16 characters of the default repertoire without backslash or control
/// characters, not spaces only; leading and trailing spaces are not significant and are removed (PS3.5, VR AE).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AeTitle(String);

/// Why a text is not an AE title.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AeTitleError {
    /// Nothing but spaces.
    #[error("an AE title must not be empty: give 1 to 16 characters")]
    Empty,
    /// More than 16 characters.
    #[error("AE title `{0}` has {1} characters: at most 16 are allowed")]
    TooLong(String, usize),
    /// A character outside the repertoire.
    #[error("AE title {0:?} contains {1:?}: only printable ASCII characters except backslash are allowed")]
    BadCharacter(String, char),
}

impl AeTitle {
    /// Validates `text`, ignoring leading and trailing spaces and trailing NULs.
    pub fn new(text: &str) -> Result<Self, AeTitleError> {
        let trimmed = text.trim_end_matches('\0').trim_matches(' ');
        if trimmed.is_empty() {
            return Err(AeTitleError::Empty);
        }
        if let Some(bad) = trimmed.chars().find(|c| !(' '..='~').contains(c) || *c == '\\') {
            return Err(AeTitleError::BadCharacter(trimmed.to_owned(), bad));
        }
        if trimmed.len() > 16 {
            return Err(AeTitleError::TooLong(trimmed.to_owned(), trimmed.len()));
        }
        Ok(Self(trimmed.to_owned()))
    }

    /// The title without padding.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AeTitle {
    type Err = AeTitleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for AeTitle {
    type Error = AeTitleError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<AeTitle> for String {
    fn from(title: AeTitle) -> Self {
        title.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_not_significant() {
        assert_eq!(AeTitle::new("  CT01 \0").unwrap().as_str(), "CT01");
        assert_eq!(AeTitle::new("A B").unwrap().as_str(), "A B");
    }

    #[test]
    fn bad_titles_are_explained() {
        assert_eq!(AeTitle::new("   "), Err(AeTitleError::Empty));
        assert!(AeTitle::new("SEVENTEEN_LETTERS").unwrap_err().to_string().contains("at most 16"));
        assert!(AeTitle::new("A\\B").unwrap_err().to_string().contains("backslash"));
        assert!(AeTitle::new("Ä").is_err());
        assert!(AeTitle::new("A\nB").is_err());
    }
}
