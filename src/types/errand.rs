//! On whose behalf something is computed: how urgent that is, and whether it gets on.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{RunPriority, RunRole};

/// What goes first when several wait for the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Before everything else.
    Stat,
    /// In the order of arrival.
    #[default]
    Routine,
    /// After everything that somebody waits for: the results stay internal.
    Shadow,
}

impl Urgency {
    /// From the most urgent on.
    pub const ALL: [Self; 3] = [Self::Stat, Self::Routine, Self::Shadow];

    /// That of a run.
    #[must_use]
    pub const fn of(priority: RunPriority, role: RunRole) -> Self {
        match (role, priority) {
            (RunRole::Shadow, _) => Self::Shadow,
            (_, RunPriority::Stat) => Self::Stat,
            (_, RunPriority::Routine) => Self::Routine,
        }
    }
}

/// What is computed for somebody.
#[derive(Debug, Clone, Default)]
pub struct Errand {
    /// What goes first.
    pub urgency: Urgency,
    /// Renewed by whoever computes, with every step that is done.
    pub progress: Progress,
}

/// When something last got on. Clones are of the same thing: every thread that computes for it has one.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Mutex<Pace>>);

#[derive(Debug)]
struct Pace {
    last: Instant,
    n_steps: u64,
    /// For how many things it waits that others have.
    n_waits: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Pace { last: Instant::now(), n_steps: 0, n_waits: 0 })))
    }
}

impl Progress {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step is done.
    pub fn renew(&self) {
        let mut pace = self.pace();
        pace.last = Instant::now();
        pace.n_steps += 1;
    }

    /// How many steps were done.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.pace().n_steps
    }

    /// How long no step was done; nothing while it waits for others.
    #[must_use]
    pub fn idle(&self) -> Duration {
        let pace = self.pace();
        if pace.n_waits > 0 { Duration::ZERO } else { pace.last.elapsed() }
    }

    /// Whether somebody else has it too: a thread that computes, or is about to, also where nobody waits for its answer
    /// any more.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Waits for what others have: that time is not idle.
    ///
    /// Cancel safety: as `wait`.
    pub async fn waiting<T>(&self, wait: impl Future<Output = T>) -> T {
        let _waiting = Waiting::begin(self);
        wait.await
    }
}

struct Waiting<'a>(&'a Progress);

impl<'a> Waiting<'a> {
    fn begin(progress: &'a Progress) -> Self {
        progress.pace().n_waits += 1;
        Self(progress)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pace = self.0.pace();
        pace.n_waits -= 1;
        pace.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_comes_last_however_urgent_its_route_is() {
        let shadow = Urgency::of(RunPriority::Stat, RunRole::Shadow);
        let mut all =
            [shadow, Urgency::of(RunPriority::Routine, RunRole::Live), Urgency::of(RunPriority::Stat, RunRole::Canary)];
        all.sort_unstable();
        assert_eq!(all, Urgency::ALL);
    }

    #[tokio::test]
    async fn waiting_for_others_is_not_idle() {
        let progress = Progress::default();
        let seen = progress.clone();
        let pause = Duration::from_millis(20);
        std::thread::sleep(pause);
        assert!(progress.idle() >= pause);
        progress.waiting(async { assert_eq!(seen.idle(), Duration::ZERO) }).await;
        assert!(progress.idle() < pause, "it begins anew");
        std::thread::sleep(pause);
        assert!(seen.idle() >= pause);
        seen.renew();
        assert!(progress.idle() < pause);
    }
}
