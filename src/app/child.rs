//! The inference process: the same binary, started with its OpenMP environment and restarted with backoff.
//!
//! It meets this process only in Postgres and the archive, so whatever libtorch or a codec does to it, receiving
//! goes on. Its standard input is a pipe that we hold open: when we die, even by `kill -9`, it reads the end of
//! file and stops.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    process::{Child, ChildStdin, Command},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::InferenceConfig,
    telemetry::{Metrics, events},
};

/// How to start the inference process.
#[derive(Debug, Clone)]
pub struct ChildCommand {
    /// Our own binary.
    pub program: PathBuf,
    /// Such as `--config FILE infer-child`.
    pub arguments: Vec<OsString>,
    /// What differs from our own environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// What the inference process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChildState {
    /// It has been started.
    Running,
    /// It ended; it is started again after a pause.
    Waiting {
        /// How it ended.
        exit: String,
    },
}

/// A run that lasted this long counts as healthy: the next pause is short again.
const HEALTHY: Duration = Duration::from_mins(1);

/// Keeps the process running until `shutdown`; its state can be watched.
pub(super) fn supervise(
    command: ChildCommand,
    settings: &InferenceConfig,
    network_threads: usize,
    grace: Duration,
    metrics: Arc<Metrics>,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> watch::Receiver<ChildState> {
    let (pause_at_first, longest_pause) = (settings.restart_backoff_minimum, settings.restart_backoff_maximum);
    let (sender, receiver) = watch::channel(ChildState::Waiting { exit: "not started yet".into() });
    tasks.spawn(async move {
        let mut pause = pause_at_first;
        while !shutdown.is_cancelled() {
            let started = Instant::now();
            let exit = match start(&command, network_threads) {
                Ok(mut child) => {
                    // `wait` would close the pipe, which tells the child to stop.
                    let pipe = child.stdin.take();
                    sender.send_replace(ChildState::Running);
                    let ended = tokio::select! {
                        ended = child.wait() => Some(ended),
                        () = shutdown.cancelled() => None,
                    };
                    match ended {
                        None => return stop(child, pipe, grace).await,
                        Some(Ok(status)) => status.to_string(),
                        Some(Err(error)) => error.to_string(),
                    }
                }
                Err(error) => format!("cannot be started: {error}"),
            };
            if started.elapsed() > HEALTHY {
                pause = pause_at_first;
            }
            events::InferChildExited { exit: &exit, restart_in: pause }.emit(&metrics);
            sender.send_replace(ChildState::Waiting { exit });
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(longest_pause);
        }
    });
    receiver
}

fn start(command: &ChildCommand, network_threads: usize) -> std::io::Result<Child> {
    let mut process = Command::new(&command.program);
    process
        .args(&command.arguments)
        .envs(command.environment.iter().map(|(key, value)| (key, value)))
        // libgomp reads these when it is loaded. Its spinning barriers collapse on cores that others use too.
        .env("OMP_WAIT_POLICY", "passive")
        .env("OMP_NUM_THREADS", network_threads.to_string())
        .stdin(Stdio::piped())
        .kill_on_drop(true);
    // A Ctrl-C on the terminal is for us; the child is stopped in its turn.
    process.process_group(0);
    process.spawn()
}

/// Asks by closing the pipe, then insists.
async fn stop(mut child: Child, pipe: Option<ChildStdin>, grace: Duration) {
    drop(pipe);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        tracing::warn!("the inference process did not stop in time and is killed; its run is taken up again later");
        let _ = child.kill().await;
    }
}
