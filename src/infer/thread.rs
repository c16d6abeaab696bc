//! Heavy work on threads of its own.

use tokio::task::{JoinError, spawn_blocking};

use crate::types::Progress;

/// Does `work` on a thread for heavy work, on behalf of whoever has `progress`, which is shared until the thread is done
/// with it ([`Progress::is_shared`]).
///
/// # Errors
/// [`JoinError`] when the work panics.
///
/// Cancel safety: dropping the future throws the answer away; the thread goes on to its end.
pub(super) async fn on_thread<T: Send + 'static>(
    progress: &Progress,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let shared = progress.clone();
    spawn_blocking(move || {
        let done = work();
        // After everything that the work has held.
        drop(shared);
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_thread_that_nobody_waits_for_is_seen_until_it_ends() {
        let progress = Progress::default();
        let (open, gate) = mpsc::channel::<()>();
        let work = on_thread(&progress, move || gate.recv());
        assert!(tokio::time::timeout(Duration::from_millis(20), work).await.is_err());
        assert!(progress.is_shared());
        drop(open);
        while progress.is_shared() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let panics = on_thread(&progress, || panic!("it cannot")).await;
        assert!(panics.is_err() && !progress.is_shared());
    }
}
