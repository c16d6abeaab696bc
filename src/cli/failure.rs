//! Errors that mean something to [`super::report`].

use std::fmt;

/// The arguments contradict each other in a way that only the command itself can see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// An error with a remedy of its own, shown as a `hint:` line.
#[derive(Debug)]
pub(super) struct Hinted {
    error: anyhow::Error,
    pub(super) hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole chain, also without `#`: this error stands for all of it.
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Hinted {}

/// Gives `error` a remedy.
pub(super) fn hinted(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { error: error.into(), hint: hint.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_keeps_the_whole_chain() {
        let error = hinted(anyhow::anyhow!("connection refused").context("open the database"), "start Postgres");
        assert_eq!(format!("{error:#}"), "open the database: connection refused");
        assert_eq!(error.downcast_ref::<Hinted>().unwrap().hint, "start Postgres");
    }
}
