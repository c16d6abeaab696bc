//! Room on the disk: who may still write, and how long it lasts.
//!
//! ```text
//! free space   receiving                       results        sending
//! plenty       yes                             yes            yes
//! below stop   no, until it is above resume    yes            yes
//! below the    no                              no, they wait  yes: it only reads
//! reserve
//! ```

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{Archive, ArchiveError};

impl Archive {
    /// Free bytes on the archive's file system for this user.
    pub fn free_bytes(&self) -> Result<u64, ArchiveError> {
        let stat = rustix::fs::statvfs(&self.inner.root).map_err(io::Error::from)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Fails when a result of `size_bytes` would not leave the reserve free.
    pub(super) fn check_reserve(&self, size_bytes: u64) -> Result<(), ArchiveError> {
        let (free_bytes, reserve_bytes) = (self.free_bytes()?, self.inner.results_reserve_bytes);
        if free_bytes >= size_bytes.saturating_add(reserve_bytes) {
            return Ok(());
        }
        let words = format!(
            "No space left on device for a result of {size_bytes} bytes: {free_bytes} are free, and results leave \
             archive.results_minimum_free_bytes = {reserve_bytes}; it waits for space"
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, words).into())
    }
}

/// Where receiving stops and where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLines {
    /// Free bytes below which nothing more is received.
    pub stop_bytes: u64,
    /// Free bytes above which receiving goes on; at least `stop_bytes`.
    pub resume_bytes: u64,
}

impl DiskLines {
    /// Whether receiving is stopped with so much free, when it was `stopped` before.
    #[must_use]
    pub const fn is_stopped(self, stopped: bool, free_bytes: u64) -> bool {
        if stopped { free_bytes < self.resume_bytes } else { free_bytes < self.stop_bytes }
    }
}

/// What a look at the disk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskState {
    /// For this user.
    pub free_bytes: u64,
    /// Nothing more is received.
    pub stopped: bool,
}

/// Decides whether there is room to receive. Shared by all who receive, so that they stop and go on together.
#[derive(Debug)]
pub struct DiskGuard {
    archive: Archive,
    lines: DiskLines,
    /// What the last look found; changed under `looking`.
    stopped: AtomicBool,
    looking: Mutex<()>,
}

impl DiskGuard {
    /// A guard that has not looked yet and lets everybody through.
    #[must_use]
    pub const fn new(archive: Archive, lines: DiskLines) -> Self {
        Self { archive, lines, stopped: AtomicBool::new(false), looking: Mutex::new(()) }
    }

    /// The lines.
    #[must_use]
    pub const fn lines(&self) -> DiskLines {
        self.lines
    }

    /// Whether receiving was stopped at the last look. Does not block.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Looks at the disk; a change is logged once. Blocks.
    pub fn look(&self) -> Result<DiskState, ArchiveError> {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let free_bytes = self.archive.free_bytes()?;
        let before = self.is_stopped();
        let stopped = self.lines.is_stopped(before, free_bytes);
        self.stopped.store(stopped, Ordering::Relaxed);
        let DiskLines { stop_bytes, resume_bytes } = self.lines;
        match (before, stopped) {
            (false, true) => tracing::error!(
                free_bytes,
                stop_bytes,
                resume_bytes,
                "the archive's disk is nearly full: objects are refused with 0xA700 and new associations are rejected \
                 transiently until there is room; results are still made and sent; make room or enlarge the disk"
            ),
            (true, false) => {
                tracing::info!(free_bytes, resume_bytes, "the archive's disk has room again: receiving goes on");
            }
            _ => {}
        }
        Ok(DiskState { free_bytes, stopped })
    }
}

/// How fast the disk fills, smoothed over minutes.
#[derive(Debug, Clone, Copy, Default)]
pub struct FillRate {
    last: Option<(Duration, u64)>,
    bytes_per_second: f64,
}

impl FillRate {
    /// Older rates weigh less than 1/e after so many seconds.
    const MEMORY_SECONDS: f64 = 600.0;
    /// Slower is noise.
    const MINIMUM_BYTES_PER_SECOND: f64 = 1024.0;

    /// Takes a measurement, `at` being the time since any fixed instant.
    pub fn observe(&mut self, at: Duration, free_bytes: u64) {
        if let Some((before_at, before_bytes)) = self.last {
            let seconds = at.saturating_sub(before_at).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            let rate = (before_bytes as f64 - free_bytes as f64) / seconds;
            let weight = 1.0 - (-seconds / Self::MEMORY_SECONDS).exp();
            self.bytes_per_second += weight * (rate - self.bytes_per_second);
        }
        self.last = Some((at, free_bytes));
    }

    /// Seconds until only `stop_bytes` are free at this rate; `None` when it does not fill.
    #[must_use]
    pub fn seconds_to_full(&self, stop_bytes: u64) -> Option<f64> {
        let (_, free_bytes) = self.last?;
        let room = free_bytes.saturating_sub(stop_bytes) as f64;
        (self.bytes_per_second >= Self::MINIMUM_BYTES_PER_SECOND).then(|| room / self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{archive::ImplementationIds, types::Uid};

    const MIB: u64 = 1 << 20;

    #[test]
    fn receiving_stops_below_one_line_and_goes_on_above_the_other() {
        let lines = DiskLines { stop_bytes: 100, resume_bytes: 120 };
        let mut stopped = false;
        let course = [(100, false), (99, true), (119, true), (120, false), (100, false), (99, true)];
        for (free_bytes, expected) in course {
            stopped = lines.is_stopped(stopped, free_bytes);
            assert_eq!(stopped, expected, "{free_bytes}");
        }
    }

    fn archive(folder: &std::path::Path, results_reserve_bytes: u64) -> Archive {
        let ids = ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".into() };
        Archive::open(folder, ids, results_reserve_bytes).unwrap()
    }

    #[test]
    fn a_guard_remembers_what_it_saw() {
        let folder = tempfile::tempdir().unwrap();
        let lines = |bytes| DiskLines { stop_bytes: bytes, resume_bytes: bytes };
        let guard = DiskGuard::new(archive(folder.path(), 0), lines(u64::MAX));
        assert!(!guard.is_stopped());
        assert!(guard.look().unwrap().stopped);
        assert!(guard.is_stopped());
        assert!(!DiskGuard::new(archive(folder.path(), 0), lines(1)).look().unwrap().stopped);
    }

    #[test]
    fn results_leave_their_reserve_free() {
        let folder = tempfile::tempdir().unwrap();
        let store = |reserve_bytes| {
            let archive = archive(folder.path(), reserve_bytes);
            archive.store_result(b"SR", uuid::Uuid::from_u128(7), time::OffsetDateTime::UNIX_EPOCH, "sr-0.dcm")
        };
        let error = store(u64::MAX).unwrap_err();
        assert!(error.is_out_of_resources(), "{error}");
        assert!(error.to_string().contains("results_minimum_free_bytes"), "{error}");
        assert!(store(MIB).is_ok());
    }

    #[test]
    fn time_to_full_follows_the_rate_and_is_absent_when_nothing_fills() {
        let mut rate = FillRate::default();
        assert_eq!(rate.seconds_to_full(0), None);
        let seconds = Duration::from_secs;
        for step in 0..600_u64 {
            rate.observe(seconds(10 * step), 10_000 * MIB - 10 * step * MIB);
        }
        // 1 MiB a second, 4,010 MiB left, of which 10 are not for receiving.
        let left = rate.seconds_to_full(10 * MIB).unwrap();
        assert!((left - 4000.0).abs() < 40.0, "{left}");
        assert!(rate.seconds_to_full(u64::MAX).unwrap().abs() < 1e-9);
        for step in 600..1200_u64 {
            rate.observe(seconds(10 * step), 4_010 * MIB);
        }
        assert_eq!(rate.seconds_to_full(0), None);
        rate.observe(seconds(12_000), 8_000 * MIB);
        assert_eq!(rate.seconds_to_full(0), None, "somebody made room");
    }
}
