//! A thread for each connection.
//!
//! Whatever a connection waits for, the network or the disk, it waits for on its own thread: a C-STORE is read, written,
//! synchronised and answered without a hand-over to another thread (which costs more than writing a CT slice does where
//! an idle core must be woken), and a disk that is slow for one association holds up no other. Their number is limited
//! by the acceptor.

use std::{io, thread};

use tokio::runtime::Builder;
use tokio_util::task::TaskTracker;

/// Runs what `make` makes on a new thread, on a runtime of its own; `tracker` counts it until it is done.
///
/// # Errors
/// When there cannot be a further thread; `make` is dropped then.
pub(crate) fn spawn<F: Future<Output = ()>>(
    tracker: &TaskTracker,
    make: impl FnOnce() -> F + Send + 'static,
) -> io::Result<()> {
    let token = tracker.token();
    thread::Builder::new().name("association".to_owned()).spawn(move || {
        match Builder::new_current_thread().enable_io().enable_time().build() {
            Ok(runtime) => runtime.block_on(async { make().await }),
            Err(error) => tracing::error!(%error, "a connection is closed: it cannot be served"),
        }
        drop(token);
    })?;
    Ok(())
}
