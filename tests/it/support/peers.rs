//! Other people's DICOM programs: dcmtk, Orthanc, pynetdicom.

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{PATIENCE, cache, free_port, http, run, said, spawn, tail, temporary_folder, wait_for};

/// Orthanc as a PACS, with its REST interface. Keeps what it gets over a stop and a start.
#[derive(Debug)]
pub(crate) struct Orthanc {
    pub dicom_port: u16,
    pub http_port: u16,
    folder: TempDir,
    settings: Value,
    /// What its REST interface wants to see, as HTTP header.
    authorization: Option<&'static str>,
    process: Option<Child>,
}

impl Orthanc {
    /// Answers to any AE title and takes from anybody; loopback only for HTTP.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::start_with(json!({}))
    }

    /// The same with further settings of Orthanc's configuration.
    #[track_caller]
    pub(crate) fn start_with(settings: Value) -> Self {
        Self::start_for(settings, None)
    }

    /// With its DICOMweb plugin at `/dicom-web`, for the user `hilum` with the password `s3cret`.
    #[track_caller]
    pub(crate) fn start_dicomweb() -> Self {
        let settings = json!({
            "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
            "DicomWeb": { "Enable": true, "Root": "/dicom-web/" },
            "AuthenticationEnabled": true,
            "RegisteredUsers": { "hilum": "s3cret" },
        });
        Self::start_for(settings, Some("Basic aGlsdW06czNjcmV0"))
    }

    #[track_caller]
    fn start_for(settings: Value, authorization: Option<&'static str>) -> Self {
        let mut orthanc = Self {
            dicom_port: free_port(),
            http_port: free_port(),
            folder: temporary_folder(),
            settings,
            authorization,
            process: None,
        };
        orthanc.start_again();
        orthanc
    }

    /// Starts it on its ports and waits until it answers.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.is_none(), "Orthanc runs already");
        let storage = self.folder.path().join("storage");
        let mut config = json!({
            "Name": "Hilum tests",
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "Plugins": [],
            "DicomServerEnabled": true,
            "DicomAet": "PACS",
            "DicomCheckCalledAet": false,
            "DicomPort": self.dicom_port,
            "DicomAlwaysAllowStore": true,
            "DicomAlwaysAllowEcho": true,
            "DicomAlwaysAllowFind": true,
            "HttpServerEnabled": true,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": false,
            "AuthenticationEnabled": false,
            "OverwriteInstances": false,
        });
        let settings = self.settings.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(settings);
        let file = self.folder.path().join("orthanc.json");
        fs_err::write(&file, config.to_string()).expect("a configuration file");
        let log = fs_err::File::create(self.log_file()).expect("a log file").into_file();
        let program = if Path::new("/usr/sbin/Orthanc").exists() { "/usr/sbin/Orthanc" } else { "Orthanc" };
        let mut command = Command::new(program);
        command.arg(&file).stdin(Stdio::null()).stdout(log.try_clone().expect("a log file")).stderr(log);
        self.process = Some(spawn(&mut command));
        wait_for("Orthanc answers", PATIENCE, || {
            let process = self.process.as_mut().expect("just started");
            if let Some(status) = process.try_wait().expect("our own child") {
                panic!("Orthanc ended with {status}:\n{}", tail(&self.folder.path().join("orthanc.log"), 20));
            }
            http::send_as(self.http_port, "GET", "/system", "", self.authorization)
                .filter(|answer| answer.status == 200)?;
            TcpStream::connect(("127.0.0.1", self.dicom_port)).ok().map(drop)
        });
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("orthanc.log")
    }

    /// Kills it; what it has acknowledged stays.
    pub(crate) fn stop(&mut self) {
        end(&mut self.process);
    }

    /// GETs JSON from its REST interface.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Value {
        self.bytes(path, |answer| answer.json())
    }

    /// Sends JSON to its REST interface; it must be taken.
    #[track_caller]
    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> http::Answer {
        let answer = http::send(self.http_port, method, path, &body.to_string()).expect("Orthanc answers");
        assert_eq!(answer.status, 200, "Orthanc answers {method} {path} with:\n{}", answer.text());
        answer
    }

    /// Tells it where to call `ae_title`.
    #[track_caller]
    pub(crate) fn knows(&self, ae_title: &str, port: u16) {
        self.send("PUT", "/modalities/hilum", &json!([ae_title, "127.0.0.1", port]));
    }

    #[track_caller]
    fn bytes<T>(&self, path: &str, take: impl FnOnce(http::Answer) -> T) -> T {
        let answer = http::send_as(self.http_port, "GET", path, "", self.authorization)
            .unwrap_or_else(|| panic!("Orthanc does not answer GET {path}"));
        assert_eq!(answer.status, 200, "Orthanc answers GET {path} with:\n{}", answer.text());
        take(answer)
    }

    /// Everything it has, in no order.
    #[track_caller]
    pub(crate) fn instances(&self) -> Vec<ReceivedInstance> {
        let list = self.get("/instances");
        let ids = list.as_array().expect("a list").iter().map(|id| id.as_str().expect("a text").to_owned());
        ids.map(|id| ReceivedInstance { tags: self.get(&format!("/instances/{id}/simplified-tags")), id }).collect()
    }

    /// What it has of a study.
    #[track_caller]
    pub(crate) fn instances_of(&self, study_instance_uid: &str) -> Vec<ReceivedInstance> {
        self.instances().into_iter().filter(|one| one.tag("StudyInstanceUID") == study_instance_uid).collect()
    }

    /// The DICOM file of an instance.
    #[track_caller]
    pub(crate) fn file(&self, instance: &ReceivedInstance) -> Vec<u8> {
        self.bytes(&format!("/instances/{}/file", instance.id), |answer| answer.body)
    }

    /// Orthanc's own picture of an instance, as PNG.
    #[track_caller]
    pub(crate) fn preview(&self, instance: &ReceivedInstance) -> Vec<u8> {
        self.bytes(&format!("/instances/{}/preview", instance.id), |answer| answer.body)
    }
}

impl Drop for Orthanc {
    fn drop(&mut self) {
        end(&mut self.process);
        if std::thread::panicking() {
            eprintln!("--- end of Orthanc's log ---\n{}\n---", tail(&self.log_file(), 15));
        }
    }
}

/// An instance in Orthanc.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedInstance {
    /// Orthanc's own identifier.
    pub id: String,
    tags: Value,
}

impl ReceivedInstance {
    /// The text of an attribute by its keyword; empty when it is not there.
    pub(crate) fn tag(&self, keyword: &str) -> String {
        self.tags[keyword].as_str().unwrap_or_default().to_owned()
    }

    /// A sequence by its keyword.
    pub(crate) fn sequence(&self, keyword: &str) -> Vec<Value> {
        self.tags[keyword].as_array().cloned().unwrap_or_default()
    }
}

/// dcmtk's `storescp`: one file for each object that it gets, even for one that it has.
#[derive(Debug)]
pub(crate) struct StoreScp {
    pub port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl StoreScp {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let mut peer = Self { port: free_port(), folder: temporary_folder(), process: None };
        peer.start_again();
        peer
    }

    /// Starts it on its port and waits until it answers.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.is_none(), "storescp runs already");
        let files = self.folder.path().join("files");
        fs_err::create_dir_all(&files).expect("a folder");
        let log = fs_err::File::create(self.folder.path().join("log")).expect("a log file").into_file();
        let mut command = Command::new("storescp");
        command
            .args(["--unique-filenames", "--filename-extension", ".dcm", "--output-directory"])
            .arg(&files)
            .arg(self.port.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        self.process = Some(spawn(&mut command));
        wait_for("storescp listens", PATIENCE, || TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop));
    }

    pub(crate) fn stop(&mut self) {
        end(&mut self.process);
    }

    /// The folder of its files.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// What it got, in the order of the file names.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = fs_err::read_dir(self.folder()).expect("a folder");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder").path()).collect();
        files.sort();
        files
    }
}

impl Drop for StoreScp {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Destinations that do what they are told: tests/it/support/destination.py explains the script.
#[derive(Debug)]
pub(crate) struct ScriptedDestinations {
    folder: TempDir,
    script: Value,
    process: Option<Child>,
}

impl ScriptedDestinations {
    /// One server for each entry of the script.
    #[track_caller]
    pub(crate) fn start(script: Value) -> Self {
        let mut peers = Self { folder: temporary_folder(), script, process: None };
        peers.start_again();
        peers
    }

    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.is_none(), "the scripted destinations run already");
        let file = self.folder.path().join("script.json");
        fs_err::write(&file, self.script.to_string()).expect("a script");
        let output = self.folder.path().join("output");
        let log = fs_err::File::create(&output).expect("a log file").into_file();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/destination.py");
        let mut command = Command::new(peers_python());
        command.arg(script).arg(&file).arg(self.folder.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        self.process = Some(spawn(&mut command));
        wait_for("the scripted destinations are ready", PATIENCE, || {
            fs_err::read_to_string(&output).expect("a log file").contains("ready").then_some(())
        });
    }

    pub(crate) fn stop(&mut self) {
        end(&mut self.process);
    }

    /// Gives a server other rules from now on.
    #[track_caller]
    pub(crate) fn tell(&self, server: &str, rules: Value) {
        let told = json!({ server: { "id": uuid::Uuid::now_v7().to_string(), "rules": rules } });
        let (file, unfinished) = (self.folder.path().join("rules.json"), self.folder.path().join("rules.new"));
        fs_err::write(&unfinished, told.to_string()).expect("rules");
        fs_err::rename(unfinished, file).expect("rules");
    }

    /// What a server has noted of `did`, or everything, in order.
    #[track_caller]
    pub(crate) fn log(&self, server: &str, did: &str) -> Vec<Value> {
        let text = fs_err::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        lines.filter(|line| line["server"] == server && (did.is_empty() || line["did"] == did)).collect()
    }

    /// The SOP classes of what a server keeps, in the order of their coming.
    #[track_caller]
    pub(crate) fn kept(&self, server: &str) -> Vec<String> {
        let text = |line: &Value| line["class"].as_str().unwrap_or_default().to_owned();
        self.log(server, "kept").iter().map(text).collect()
    }
}

impl Drop for ScriptedDestinations {
    fn drop(&mut self) {
        end(&mut self.process);
        if std::thread::panicking() {
            eprintln!(
                "--- end of the scripted destinations' output ---\n{}\n---",
                tail(&self.folder.path().join("output"), 15)
            );
        }
    }
}

/// dcmtk's `dcmqrscp`: an archive that answers C-STORE and C-FIND as `ARCHIVE`.
#[derive(Debug)]
pub(crate) struct QueryScp {
    pub port: u16,
    _folder: TempDir,
    process: Option<Child>,
}

impl QueryScp {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (port, folder) = (free_port(), temporary_folder());
        let files = folder.path().join("files");
        fs_err::create_dir_all(&files).expect("a folder");
        let config = folder.path().join("dcmqrscp.cfg");
        let text = format!(
            "NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n\
             VendorTable BEGIN\nVendorTable END\nAETable BEGIN\nARCHIVE {} RW (200, 1024mb) ANY\nAETable END\n",
            files.display()
        );
        fs_err::write(&config, text).expect("a configuration file");
        let log = fs_err::File::create(folder.path().join("log")).expect("a log file").into_file();
        let mut command = Command::new("dcmqrscp");
        command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(log.try_clone().expect("a log file")).stderr(log);
        let process = Some(spawn(&mut command));
        wait_for("dcmqrscp listens", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
        Self { port, _folder: folder, process }
    }
}

impl Drop for QueryScp {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Option<Child>) {
    if let Some(mut process) = process.take() {
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// dcmtk's `storescu` from `calling` to `called` on this machine; `arguments` such as `-xv` (JPEG 2000) come first.
#[track_caller]
pub(crate) fn storescu(port: u16, calling: &str, called: &str, arguments: &[&str], files: &[&Path]) -> Output {
    run(Command::new("storescu")
        .args(["-v", "-aet", calling, "-aec", called])
        .args(arguments)
        .args(["127.0.0.1", &port.to_string()])
        .args(files))
}

/// The same; it must succeed.
#[track_caller]
pub(crate) fn storescu_ok(port: u16, calling: &str, called: &str, arguments: &[&str], files: &[&Path]) {
    let output = storescu(port, calling, called, arguments, files);
    assert!(output.status.success(), "storescu ended with {}:\n{}", output.status, said(&output));
}

/// dcmtk's `echoscu`.
#[track_caller]
pub(crate) fn echoscu(port: u16, calling: &str, called: &str) -> Output {
    run(Command::new("echoscu").args(["-v", "-aet", calling, "-aec", called, "127.0.0.1", &port.to_string()]))
}

/// Asks for an association with pynetdicom in an unusual way; tests/it/support/negotiate.py explains the modes.
#[track_caller]
pub(crate) fn negotiate(port: u16, calling: &str, called: &str, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/negotiate.py");
    let mut command = Command::new(peers_python());
    run(command.arg(script).args([&port.to_string(), called, calling]).args(arguments).stdin(Stdio::null()))
}

/// `tests/it/support/commitment.py` with these arguments.
pub(crate) fn commitment_script(arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/commitment.py");
    let mut command = Command::new(peers_python());
    command.arg(script).args(arguments).stdin(Stdio::null());
    command
}

/// pynetdicom as SCP of Storage Commitment: keeps every instance whose UID does not end with `.0`.
#[derive(Debug)]
pub(crate) struct CommitmentScp {
    pub port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl CommitmentScp {
    /// Reports to `report_title` at `report_to`, in the mode `same` or `new`.
    #[track_caller]
    pub(crate) fn start(title: &str, report_to: u16, report_title: &str, mode: &str) -> Self {
        let (port, folder) = (free_port(), temporary_folder());
        let log = fs_err::File::create(folder.path().join("log")).expect("a log file").into_file();
        let (listen, report_to) = (port.to_string(), report_to.to_string());
        let mut command = commitment_script(&["scp", &listen, title, &report_to, report_title, mode]);
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        let peer = Self { port, folder, process: Some(spawn(&mut command)) };
        wait_for("the commitment SCP is ready", PATIENCE, || peer.log().contains("ready").then_some(()));
        peer
    }

    pub(crate) fn log(&self) -> String {
        fs_err::read_to_string(self.folder.path().join("log")).expect("a log file")
    }
}

impl Drop for CommitmentScp {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// The Python that has pynetdicom.
fn peers_python() -> PathBuf {
    std::env::var_os("HILUM_PEERS_PYTHON").map_or_else(|| cache().join("peers-venv/bin/python"), PathBuf::from)
}

/// The command of a pynetdicom sender, which appends each acknowledged SOP Instance UID to `log`.
pub(crate) fn pynetdicom_sender(port: u16, calling: &str, called: &str, log: &Path, files: &[&Path]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/send.py");
    let mut command = Command::new(peers_python());
    command.arg(script).args([&port.to_string(), called, calling]).arg(log).args(files).stdin(Stdio::null());
    command
}

/// Sends with pynetdicom; each file must be stored.
#[track_caller]
pub(crate) fn pynetdicom_ok(port: u16, calling: &str, called: &str, files: &[&Path]) {
    let folder = temporary_folder();
    let output = run(&mut pynetdicom_sender(port, calling, called, &folder.path().join("acknowledged"), files));
    assert!(output.status.success(), "pynetdicom ended with {}:\n{}", output.status, said(&output));
}
