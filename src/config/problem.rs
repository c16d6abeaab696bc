//! What is wrong with a configuration, and where.

use std::{fmt, path::PathBuf};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A place in a file.
    File {
        /// The file as it was named by the caller.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
    },
    /// A file as a whole.
    WholeFile {
        /// The file as it was named by the caller.
        path: PathBuf,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// Nobody gave the value: it is the built-in default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::WholeFile { path } => write!(f, "{}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

/// One thing that is wrong, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Where the value was given.
    pub origin: Origin,
    /// The key with its section, such as `dicom.listen`; empty for a syntax error.
    pub key: String,
    /// What is wrong. Never shows a secret.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, reason, remedy } = self;
        if key.is_empty() {
            write!(f, "{origin}: {reason}; {remedy}")
        } else {
            write!(f, "{origin}: `{key}`: {reason}; {remedy}")
        }
    }
}

/// Everything that is wrong with a configuration: in the order of the file, then the environment. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// What the configuration is of, such as `the node's configuration`.
    pub subject: &'static str,
    /// The problems.
    pub problems: Vec<ConfigProblem>,
}

impl ConfigErrors {
    /// `Ok(value)` when there is no problem.
    pub(super) fn check<T>(
        subject: &'static str,
        mut problems: Vec<ConfigProblem>,
        value: Option<T>,
    ) -> Result<T, Self> {
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => {
                problems.sort_by(|one, other| one.origin.cmp(&other.origin));
                Err(Self { subject, problems })
            }
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "{} has a problem:", self.subject)?,
            count => write!(f, "{} has {count} problems:", self.subject)?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}
