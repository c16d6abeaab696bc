//! The harness: a node as an operator runs it, the peers around it, and the objects that travel between them.
//!
//! Everything has its own temporary folder, its own ports and its own database, and ends with the test. What is
//! missing on the machine fails a test with words; nothing is skipped.
#![allow(dead_code, reason = "a harness offers more than each theme takes")]

pub(crate) mod http;
mod node;
mod objects;
mod peers;
mod ports;
mod postgres;
mod site;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

pub(crate) use node::{Node, NodeOptions, is_running};
pub(crate) use objects::*;
pub(crate) use peers::*;
pub(crate) use ports::free_port;
pub(crate) use postgres::{Database, PrivatePostgres};
pub(crate) use site::Site;

/// How long anything may take that the machine is merely slow at.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What a destination that asks for nothing else gets of one radiograph: the report, its sentences and the heat map.
pub(crate) const SENT_OF_A_RADIOGRAPH: usize = 3;
/// What is rendered for it: the report in the three classes that can stand for one another, its sentences and the heat map.
pub(crate) const RENDERED_OF_A_RADIOGRAPH: usize = 5;

/// The runtime for the few asynchronous calls of the harness.
pub(crate) fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    })
}

/// Polls until `look` finds something. Fails with `what` after `patience`.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < patience, "waited {} s in vain until {what}", patience.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A temporary folder that goes with the value.
pub(crate) fn temporary_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("hilum-test-").tempdir().expect("a temporary folder")
}

/// The cache that `make setup` fills.
pub(crate) fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").expect("HOME is set");
    PathBuf::from(home).join(".cache/hilum")
}

/// A folder that all tests of one run share: Postgres, the bundle, claimed ports. Everybody may enter it, because
/// Postgres does not run as root.
pub(crate) fn shared_folder() -> PathBuf {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let folder = std::env::var_os("HILUM_TEST_POSTGRES_FOLDER").map_or_else(
        || {
            let user = fs_err::metadata("/proc/self").expect("/proc is mounted").uid();
            PathBuf::from(format!("/tmp/hilum-test.user-{user}"))
        },
        PathBuf::from,
    );
    fs_err::create_dir_all(&folder).expect("the shared folder of the tests");
    let open = std::fs::Permissions::from_mode(0o755);
    fs_err::set_permissions(&folder, open).expect("the shared folder of the tests is ours");
    folder
}

/// Runs a program to its end; a missing one fails with the remedy.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().unwrap_or_else(|error| panic!("cannot run `{program}`: {error}; `make setup` installs it"))
}

/// Starts a program; a missing one fails with the remedy.
#[track_caller]
pub(crate) fn spawn(command: &mut Command) -> Child {
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().unwrap_or_else(|error| panic!("cannot start `{program}`: {error}; `make setup` installs it"))
}

/// What a program said, both streams.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends a signal by name (`TERM`, `STOP`, `CONT`, `KILL`) to one process.
pub(crate) fn signal(process_id: u32, name: &str) {
    let done = run(Command::new("kill").arg(format!("-{name}")).arg(process_id.to_string()));
    assert!(done.status.success(), "kill -{name} {process_id}: {}", said(&done));
}

/// The last lines of a text file.
fn tail(file: &Path, lines: usize) -> String {
    let text = fs_err::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
