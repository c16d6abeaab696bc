//! A node: the real binary as `hilum serve`, set up with the commands that an operator uses.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Database, PATIENCE, Site, free_port, http, run, said, shared_folder, signal, spawn, tail, temporary_folder,
    wait_for,
};

/// What differs from a usual node.
#[derive(Debug, Default)]
pub(crate) struct NodeOptions {
    /// The database; by default a new one on the shared server.
    pub database: Option<Database>,
    /// Settings by their names in the environment, such as `HILUM__DICOM__MAX_ASSOCIATIONS`.
    pub settings: BTreeMap<String, String>,
    /// The archive and everything else of an earlier node.
    pub data_folder: Option<PathBuf>,
}

impl NodeOptions {
    pub(crate) fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.insert(name.to_owned(), value.to_string());
        self
    }
}

/// A node with a folder, ports and a database of its own. Ends with the value.
#[derive(Debug)]
pub(crate) struct Node {
    pub dicom_port: u16,
    pub http_port: u16,
    pub database: Database,
    /// `node.data_dir`: the archive and the site snapshot.
    pub data_folder: PathBuf,
    /// `inference.models_dir`, with the bundle `cxr-untrained`.
    pub models_folder: PathBuf,
    pub log_file: PathBuf,
    config_file: PathBuf,
    settings: BTreeMap<String, String>,
    process: Option<Child>,
    folder: TempDir,
}

impl Node {
    /// A node with this site, running and ready.
    #[track_caller]
    pub(crate) fn start(site: &Site) -> Self {
        Self::start_with(site, NodeOptions::default())
    }

    /// The same with options.
    #[track_caller]
    pub(crate) fn start_with(site: &Site, options: NodeOptions) -> Self {
        let mut node = Self::prepare(options);
        node.hilum_ok(&["migrate"]);
        node.apply(site);
        node.run();
        node.wait_until_ready();
        node
    }

    /// A configuration and its folders; nothing runs yet and the database is empty.
    #[track_caller]
    pub(crate) fn prepare(options: NodeOptions) -> Self {
        let folder = temporary_folder();
        let data_folder = options.data_folder.unwrap_or_else(|| folder.path().join("data"));
        let models_folder = folder.path().join("models");
        fs_err::create_dir_all(&data_folder).expect("a folder");
        fs_err::create_dir_all(&models_folder).expect("a folder");
        copy_folder(&untrained_bundle(), &models_folder.join("cxr-untrained"));
        copy_folder(
            &untrained_bundle().with_file_name("ct-lung-measurement"),
            &models_folder.join("ct-lung-measurement"),
        );
        let database = options.database.unwrap_or_else(Database::fresh);
        let (dicom_port, http_port) = (free_port(), free_port());
        let config_file = folder.path().join("hilum.toml");
        let text = format!(
            "[node]\nname = \"TESTNODE\"\ndata_dir = {data_folder:?}\ninstitution_name = \"Test Hospital\"\n\
             shutdown_grace_seconds = 10\n\n\
             [database]\nurl = {:?}\n\n[dicom]\nlisten = \"127.0.0.1:{dicom_port}\"\n\n\
             [archive]\nminimum_free_bytes = \"64 MiB\"\n\n[assemble]\nreconcile_seconds = 2\n\n\
             [inference]\nmodels_dir = {models_folder:?}\nthreads = 1\n\n\
             [deliver]\ninitial_backoff_seconds = 1\nmaximum_backoff_seconds = 2\n\n\
             [http]\nlisten = \"127.0.0.1:{http_port}\"\n",
            database.url
        );
        fs_err::write(&config_file, text).expect("a configuration file");
        Self {
            dicom_port,
            http_port,
            database,
            data_folder,
            models_folder,
            log_file: folder.path().join("hilum.log"),
            config_file,
            settings: options.settings,
            process: None,
            folder,
        }
    }

    /// A folder of the test's own, gone with the node.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs_err::create_dir_all(&path).expect("a folder");
        path
    }

    /// A `hilum` command with this node's configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hilum"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"HILUM_")) {
            command.env_remove(name);
        }
        command.arg("--config").arg(&self.config_file).args(arguments).envs(&self.settings).stdin(Stdio::null());
        command
    }

    /// Runs a `hilum` command to its end.
    #[track_caller]
    pub(crate) fn hilum(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    /// The same; it must succeed. Returns its standard output.
    #[track_caller]
    pub(crate) fn hilum_ok(&self, arguments: &[&str]) -> String {
        let output = self.hilum(arguments);
        assert!(output.status.success(), "hilum {arguments:?} ended with {}:\n{}", output.status, said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Makes the site what the file says, by `hilum apply`.
    #[track_caller]
    pub(crate) fn apply(&self, site: &Site) {
        let file = self.folder.path().join("site.toml");
        fs_err::write(&file, site.text()).expect("a site file");
        self.hilum_ok(&["apply", file.to_str().expect("a plain path")]);
    }

    /// Sends files with `hilum send`; each must be accepted.
    #[track_caller]
    pub(crate) fn send(&self, calling: &str, files: &[&Path]) -> String {
        let to = format!("127.0.0.1:{}", self.dicom_port);
        let mut arguments = vec!["send", "--to", &to, "--called", "HILUM", "--calling", calling];
        arguments.extend(files.iter().map(|file| file.to_str().expect("a plain path")));
        self.hilum_ok(&arguments)
    }

    /// Starts `hilum serve` on this node's ports.
    #[track_caller]
    pub(crate) fn run(&mut self) {
        assert!(self.process.is_none(), "the node runs already");
        let log = fs_err::File::options().create(true).append(true).open(&self.log_file).expect("a log file");
        let log = log.into_file();
        let mut command = self.command(&["serve"]);
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        self.process = Some(spawn(&mut command));
    }

    /// Waits until `/readyz` says so.
    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        wait_for("the node is ready", PATIENCE, || {
            let process = self.process.as_mut().expect("the node was started");
            if let Some(status) = process.try_wait().expect("our own child") {
                panic!("`hilum serve` ended with {status} before it was ready:\n{}", tail(&self.log_file, 40));
            }
            http::get(self.http_port, "/readyz").filter(|answer| answer.status == 200).map(drop)
        });
    }

    /// Waits until the DICOM port answers, ready or not.
    #[track_caller]
    pub(crate) fn wait_until_listening(&mut self) {
        wait_for("the node listens", PATIENCE, || {
            let process = self.process.as_mut().expect("the node was started");
            if let Some(status) = process.try_wait().expect("our own child") {
                panic!("`hilum serve` ended with {status} before it listened:\n{}", tail(&self.log_file, 40));
            }
            http::get(self.http_port, "/healthz").filter(|answer| answer.status == 200).map(drop)
        });
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    /// The process that computes.
    pub(crate) fn inference_process_id(&self) -> Option<u32> {
        let parent = self.process.as_ref()?.id();
        child_of(parent)
    }

    /// `kill -9` of the main process. The inference process notices by the end of its standard input.
    #[track_caller]
    pub(crate) fn kill_9(&mut self) {
        let inference = self.inference_process_id();
        let mut process = self.process.take().expect("the node runs");
        process.kill().expect("our own child");
        process.wait().expect("our own child");
        if let Some(inference) = inference {
            wait_for("the orphaned inference process ends", PATIENCE, || (!is_running(inference)).then_some(()));
        }
    }

    /// The same, but the inference process is left to find out by itself while the test goes on.
    #[track_caller]
    pub(crate) fn kill_9_at_once(&mut self) {
        let mut process = self.process.take().expect("the node runs");
        process.kill().expect("our own child");
        process.wait().expect("our own child");
    }

    /// SIGTERM; the node must stop in order, in time and with exit code 0.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        let inference = self.inference_process_id();
        let mut process = self.process.take().expect("the node runs");
        signal(process.id(), "TERM");
        let status = wait_for("the node stops", Duration::from_secs(60), || process.try_wait().expect("our own child"));
        assert!(status.success(), "the node ended with {status}:\n{}", tail(&self.log_file, 40));
        assert!(inference.is_none_or(|id| !is_running(id)), "the inference process outlived the node");
        let last = tail(&self.log_file, 1);
        assert!(last.contains("stopped"), "the last log line is {last:?}");
    }

    /// Starts it again on the same ports and waits until it is ready.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.run();
        self.wait_until_ready();
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs_err::read(&self.log_file).expect("a log file")).into_owned()
    }

    /// Fails when the log has errors or panics.
    #[track_caller]
    pub(crate) fn assert_clean_log(&self) {
        let log = self.log();
        let bad: Vec<&str> =
            log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked at")).collect();
        assert!(bad.is_empty(), "the log has errors:\n{}", bad.join("\n"));
    }

    /// GETs a page of the status server.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> http::Answer {
        http::get(self.http_port, path).unwrap_or_else(|| panic!("nobody answers GET {path}"))
    }

    /// The value of a metric, all labels summed; 0 when it is not there.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until the workup of a study is in `state`; one that is parked or not routed instead fails at once.
    #[track_caller]
    pub(crate) fn wait_for_workup(&self, study_instance_uid: &str, state: &str) -> serde_json::Value {
        let query = format!("select * from workup where study_instance_uid = '{study_instance_uid}'");
        let mut last = None;
        let started = std::time::Instant::now();
        loop {
            let found = self.database.rows(&query).pop();
            if let Some(workup) = &found {
                if workup["state"] == state {
                    return workup.clone();
                }
                let final_state = ["parked", "not_routed"].contains(&workup["state"].as_str().unwrap_or_default());
                assert!(!final_state, "the study is {}: {}", workup["state"], workup["state_words"]);
            }
            last = found.or(last);
            assert!(started.elapsed() < PATIENCE * 2, "the study does not become {state}; it is {last:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until every delivery of a study's current results is delivered, `count` of them.
    #[track_caller]
    pub(crate) fn wait_for_deliveries(&self, study_instance_uid: &str, count: usize) -> Vec<serde_json::Value> {
        self.database.wait_for_rows(
            count,
            &format!(
                "select delivery.*, result.kind, result.sop_instance_uid, result.archive_key, result.preview_key, \
                 run.revision \
                 from delivery join result on result.id = result_id join run on run.id = result.run_id \
                 join workup on workup.id = workup_id \
                 where study_instance_uid = '{study_instance_uid}' and delivery.state = 'delivered' \
                 order by delivery.delivered_at"
            ),
        )
    }

    /// Makes a bundle `name` from the untrained one with these changes to its manifest.
    #[track_caller]
    pub(crate) fn bundle(&self, name: &str, changes: &[(&str, &str)]) {
        let folder = self.models_folder.join(name);
        copy_folder(&self.models_folder.join("cxr-untrained"), &folder);
        let file = folder.join("manifest.toml");
        let mut manifest = fs_err::read_to_string(&file).expect("a manifest");
        let own_name = format!("name = \"{name}\"");
        for (from, to) in changes.iter().chain(&[("name = \"cxr-untrained\"", own_name.as_str())]) {
            assert!(manifest.contains(from), "{from:?} is not in the manifest:\n{manifest}");
            manifest = manifest.replace(from, to);
        }
        if !manifest.contains("status = \"untrained\"") {
            // Random weights that pass for trained ones, as only a test may have them.
            manifest = manifest.replace("version = \"untrained-", "version = \"test-");
        }
        fs_err::write(&file, manifest).expect("a manifest");
    }

    /// The files of all received objects, sorted.
    pub(crate) fn archived_objects(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.data_folder.join("archive/objects")];
        while let Some(folder) = folders.pop() {
            for entry in fs_err::read_dir(folder).expect("a folder") {
                let path = entry.expect("a folder").path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }

    /// The file of an archive key.
    pub(crate) fn archived(&self, key: &str) -> PathBuf {
        self.data_folder.join("archive").join(key)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let inference = self.inference_process_id();
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if let Some(inference) = inference.filter(|id| is_running(*id)) {
            let _ = Command::new("kill").arg("-KILL").arg(inference.to_string()).stderr(Stdio::null()).status();
        }
        if std::thread::panicking() {
            eprintln!("--- end of the node's log ---\n{}\n---", tail(&self.log_file, 60));
        }
    }
}

/// The first child process of a process.
fn child_of(parent: u32) -> Option<u32> {
    let children = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten().find_map(|task| {
        let list = std::fs::read_to_string(task.path().join("children")).ok()?;
        list.split_whitespace().next().map(str::to_owned)
    })?;
    children.parse().ok()
}

/// Whether a process is there and is not a zombie.
pub(crate) fn is_running(process_id: u32) -> bool {
    Path::new(&format!("/proc/{process_id}/exe")).canonicalize().is_ok()
}

/// The untrained bundle, made once for a test run.
fn untrained_bundle() -> PathBuf {
    let models = shared_folder().join("models");
    let lock = fs_err::File::options()
        .create(true)
        .append(true)
        .open(shared_folder().join("models.lock"))
        .expect("the shared folder of the tests");
    lock.file().lock().expect("a lock");
    let bundle = models.join("cxr-untrained");
    let init = || run(Command::new(env!("CARGO_BIN_EXE_hilum")).args(["model", "init", "--models-dir"]).arg(&models));
    let mut made = init();
    if !made.status.success() && bundle.exists() {
        // Left by tests of another version, whose bundles were others.
        fs_err::remove_dir_all(&models).expect("old bundles of the tests");
        made = init();
    }
    assert!(made.status.success(), "hilum model init: {}", said(&made));
    bundle
}

/// Copies the files of a folder.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("a folder");
    for entry in fs_err::read_dir(from).expect("a folder") {
        let entry = entry.expect("a folder");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), target).expect("a copy");
        }
    }
}
