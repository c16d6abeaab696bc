//! Is this node ready? Each check answers in words.

use std::{fmt, sync::Arc};

use serde::Serialize;
use tokio::time::timeout;

use super::{AdminState, DATABASE_PATIENCE};
use crate::archive::{DiskGuard, DiskLines, DiskState};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOutcome {
    /// Whether it passed.
    pub passed: bool,
    /// What was found; when it failed, also what to do. One sentence without a full stop.
    pub words: String,
}

impl CheckOutcome {
    /// The check passed.
    pub fn passed(words: impl Into<String>) -> Self {
        Self { passed: true, words: words.into() }
    }

    /// The check failed: the node is not ready.
    pub fn failed(words: impl Into<String>) -> Self {
        Self { passed: false, words: words.into() }
    }
}

type Check = Box<dyn Fn() -> CheckOutcome + Send + Sync>;

/// The checks of a node. Postgres, its schema and the free disk are always checked; the parts of the node that only
/// the application knows are added by [`Readiness::with`].
pub struct Readiness {
    disk: Arc<DiskGuard>,
    checks: Vec<(&'static str, Check)>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.checks.iter().map(|(name, _)| name).collect();
        f.debug_struct("Readiness").field("disk", &self.disk.lines()).field("checks", &names).finish()
    }
}

impl Readiness {
    /// A disk without room to receive makes the node not ready.
    #[must_use]
    pub fn new(disk: Arc<DiskGuard>) -> Self {
        Self { disk, checks: Vec::new() }
    }

    /// Adds a check, such as `site_configuration`, `dicom_listener` or `infer_process`. It is asked for every request
    /// and must answer at once: it reads a flag or a watch channel.
    #[must_use]
    pub fn with(mut self, name: &'static str, check: impl Fn() -> CheckOutcome + Send + Sync + 'static) -> Self {
        self.checks.push((name, Box::new(check)));
        self
    }
}

/// A check with its name.
#[derive(Debug, Serialize)]
pub(super) struct NamedCheck {
    pub(super) name: &'static str,
    pub(super) passed: bool,
    pub(super) words: String,
}

impl NamedCheck {
    /// For people.
    pub(super) fn title(&self) -> String {
        self.name.replace('_', " ")
    }
}

/// Asks every check.
pub(super) async fn check(state: &AdminState) -> Vec<NamedCheck> {
    let (postgres, schema) = database(state).await;
    let own = [("postgres", postgres), ("schema", schema), ("free_disk", free_disk(state).await)];
    let added = state.readiness.checks.iter().map(|(name, check)| (*name, check()));
    own.into_iter()
        .chain(added)
        .map(|(name, outcome)| NamedCheck { name, passed: outcome.passed, words: outcome.words })
        .collect()
}

/// Whether Postgres answers, and whether its schema is the one of this program.
async fn database(state: &AdminState) -> (CheckOutcome, CheckOutcome) {
    let reason = match timeout(DATABASE_PATIENCE, state.db.ping()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", DATABASE_PATIENCE.as_secs())),
    };
    if let Some(reason) = reason {
        let words =
            format!("Postgres cannot be used ({reason}); receiving goes on, start Postgres to process what came");
        return (CheckOutcome::failed(words), CheckOutcome::failed("unknown while Postgres cannot be used"));
    }
    let schema = match timeout(DATABASE_PATIENCE, state.db.check_schema()).await {
        Ok(Ok(())) => CheckOutcome::passed("the schema is the one of this program"),
        Ok(Err(error)) => CheckOutcome::failed(error.to_string()),
        Err(_) => CheckOutcome::failed(format!("no answer within {} s", DATABASE_PATIENCE.as_secs())),
    };
    (CheckOutcome::passed("Postgres answers"), schema)
}

async fn free_disk(state: &AdminState) -> CheckOutcome {
    let disk = Arc::clone(&state.readiness.disk);
    let DiskLines { stop_bytes, resume_bytes } = disk.lines();
    let found = match tokio::task::spawn_blocking(move || disk.look()).await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(DiskState { free_bytes, stopped: false }) => CheckOutcome::passed(format!("{} free", gibibytes(free_bytes))),
        Ok(DiskState { free_bytes, stopped: true }) => CheckOutcome::failed(format!(
            "{} free on the archive's disk: receiving stopped below {} and goes on above {}; results are still made and \
             sent; make room or enlarge the disk",
            gibibytes(free_bytes),
            gibibytes(stop_bytes),
            gibibytes(resume_bytes)
        )),
        Err(error) => CheckOutcome::failed(format!("the free space of the archive's disk is not known: {error}")),
    }
}

/// Bytes for people.
pub(super) fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
