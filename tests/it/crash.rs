//! What `kill -9` and SIGTERM must not cost: an acknowledged object, a result, a delivery, somebody else's study.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use hilum::types::Sha256Digest;

use super::support::{
    Node, NodeOptions, Orthanc, PATIENCE, Radiograph, Sample, Site, StoreScp, ct_slices, data_set_bytes, fresh_uid,
    http, is_running, pynetdicom_sender, signal, wait_for,
};

/// The same numbers for the same seed, so that a failure can be repeated.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// `studies` synthetic studies of `images` small radiographs each.
pub(crate) fn radiographs(folder: &Path, studies: u32, images: u32, seed: u32) -> Vec<Sample> {
    let mut samples = Vec::new();
    for study in 0..studies {
        let first = Radiograph {
            rows: 160,
            columns: 144,
            study_instance_uid: fresh_uid(),
            seed: seed + study * images,
            ..Radiograph::default()
        };
        let mut next = first;
        for _ in 0..images {
            samples.push(next.write(folder));
            next = next.sibling();
        }
    }
    samples
}

/// Starts `hilum send` for the files of a folder, with the log of what the node acknowledged.
pub(crate) fn start_sending(node: &Node, folder: &Path, acknowledged: &Path) -> Child {
    let to = format!("127.0.0.1:{}", node.dicom_port);
    let output = fs_err::File::create(acknowledged.with_extension("sender.log")).expect("a log file").into_file();
    node.command(&["send", "--to", &to, "--called", "HILUM", "--calling", "SCANNER", "--associations", "2"])
        .arg("--log-acknowledged")
        .arg(acknowledged)
        .arg(folder)
        .stdout(output.try_clone().expect("a log file"))
        .stderr(output)
        .spawn()
        .expect("hilum send")
}

/// The SOP Instance UIDs that a sender has logged as acknowledged.
pub(crate) fn acknowledged(log: &Path) -> BTreeSet<String> {
    let text = fs_err::read_to_string(log).unwrap_or_default();
    let whole_lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole_lines.lines().map(str::to_owned).collect()
}

/// Waits until a sender has at least `count` acknowledgements, or has ended.
fn wait_for_acknowledged(sender: &mut Child, log: &Path, count: usize) {
    let started = Instant::now();
    while acknowledged(log).len() < count && sender.try_wait().expect("our own child").is_none() {
        assert!(started.elapsed() < PATIENCE, "the sender has no {count} acknowledgements after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a sender, however it ends.
pub(crate) fn wait_for_end(sender: &mut Child) -> std::process::ExitStatus {
    wait_for("the sender ends", PATIENCE, || sender.try_wait().expect("our own child"))
}

/// Every acknowledged object is in the archive, bit for bit, and once in the index.
#[track_caller]
pub(crate) fn assert_kept(node: &Node, samples: &[Sample], acknowledged: &BTreeSet<String>) {
    let by_uid: BTreeMap<&str, &Sample> =
        samples.iter().map(|sample| (sample.sop_instance_uid.as_str(), sample)).collect();
    let rows = wait_for("every acknowledged object is in the index", PATIENCE, || {
        let rows = node
            .database
            .rows("select sop_instance_uid, encode(sha256, 'hex') as sha256, archive_key, version from instance");
        let indexed: BTreeSet<&str> = rows.iter().filter_map(|row| row["sop_instance_uid"].as_str()).collect();
        acknowledged.iter().all(|uid| indexed.contains(uid.as_str())).then_some(rows)
    });
    let mut seen = BTreeSet::new();
    for row in &rows {
        let uid = row["sop_instance_uid"].as_str().expect("a UID");
        let sample = by_uid.get(uid).unwrap_or_else(|| panic!("{uid} was never sent"));
        let sent = sample.data_set_bytes();
        assert_eq!(row["sha256"], Sha256Digest::of(&sent).to_string(), "digest of {uid}");
        let file = node.archived(row["archive_key"].as_str().expect("a key"));
        assert!(data_set_bytes(&file) == sent, "{} differs from what was sent", file.display());
        assert!(seen.insert(uid.to_owned()), "{uid} is in the index twice");
    }
    assert!(acknowledged.iter().all(|uid| seen.contains(uid)));
}

/// The files below a folder of the archive, with this extension.
pub(crate) fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files
}

/// Nothing half received is left, and every object file has its row.
#[track_caller]
pub(crate) fn assert_archive_is_clean(node: &Node) {
    let archive = node.data_folder.join("archive");
    wait_for("every file of the archive has its row and none is a copy", PATIENCE, || {
        let files = files_below(&archive.join("objects"), "dcm").len();
        (files == node.database.count("select 1 from instance")).then_some(())
    });
    let unfinished = files_below(&archive.join("incoming"), "part");
    assert!(unfinished.is_empty(), "half received objects are left: {unfinished:?}");
}

/// Waits until every workup is answered; one that is parked or stuck fails.
#[track_caller]
pub(crate) fn wait_until_all_answered(node: &Node, patience: Duration) {
    let started = Instant::now();
    loop {
        let open = node.database.rows(
            "select w.study_instance_uid, w.state, w.state_words, w.revision, w.due_at, r.state as run, r.attempt, r.words \
             from workup w left join run r on r.workup_id = w.id and r.revision = w.revision \
             where w.state <> 'answered'",
        );
        if open.is_empty() {
            return;
        }
        let parked = open.iter().find(|row| row["state"] == "parked");
        assert!(parked.is_none(), "a healthy study is parked: {parked:#?}");
        let seconds = patience.as_secs();
        assert!(started.elapsed() < patience, "{} studies without an answer after {seconds} s: {open:#?}", open.len());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Every result that was to be delivered is in the PACS once, and nothing else is; each study has one report and
/// one heat map for each image in its newest revision.
#[track_caller]
fn assert_pacs_has_each_result_once(node: &Node, pacs: &Orthanc) {
    let undelivered =
        node.database.rows("select * from delivery where state not in ('delivered', 'cancelled', 'unneeded')");
    assert!(undelivered.is_empty(), "deliveries are not closed: {undelivered:#?}");
    let twice = node.database.rows("select run_id, kind, ordinal from result group by 1, 2, 3 having count(*) > 1");
    assert!(twice.is_empty(), "results were rendered twice: {twice:#?}");
    let delivered = node.database.rows(
        "select x.sop_instance_uid, w.study_instance_uid from delivery d join result x on x.id = d.result_id \
         join run r on r.id = x.run_id join workup w on w.id = r.workup_id where d.state = 'delivered'",
    );
    let expected: BTreeSet<(String, String)> = delivered
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().expect("a UID").to_owned();
            (text("study_instance_uid"), text("sop_instance_uid"))
        })
        .collect();
    assert_eq!(expected.len(), delivered.len(), "a result is delivered twice to one destination");
    let instances = pacs.instances();
    let found: BTreeSet<(String, String)> =
        instances.iter().map(|one| (one.tag("StudyInstanceUID"), one.tag("SOPInstanceUID"))).collect();
    assert_eq!(found.len(), instances.len(), "the PACS has a result twice");
    assert_eq!(found, expected, "the PACS and the ledger disagree");

    let wrong = node.database.rows(
        "select * from ( \
           select w.study_instance_uid, w.revision, \
             (select count(*) from instance i where i.study_instance_uid = w.study_instance_uid) as images, \
             (select count(*) from result x join run r on r.id = x.run_id join delivery d on d.result_id = x.id \
              where r.workup_id = w.id and r.revision = w.revision and x.kind = 'sr' and d.state = 'delivered') as reports, \
             (select count(*) from result x join run r on r.id = x.run_id join delivery d on d.result_id = x.id \
              where r.workup_id = w.id and r.revision = w.revision and x.kind = 'sc' and d.state = 'delivered') as heat_maps \
           from workup w) answers where reports <> 1 or heat_maps <> images",
    );
    assert!(wrong.is_empty(), "studies have too few or too many results: {wrong:#?}");
}

const ROUNDS: u32 = 10;

/// Ten times: 50 radiographs of ten studies are on their way, and the node dies at a random point.
#[test]
fn heavy_kill_9_ten_times_loses_and_doubles_nothing() {
    let orthanc = Orthanc::start();
    let mut node = Node::start(&Site::usual(orthanc.dicom_port));
    let mut random = Random::new(0x4849_4C55_4D01);
    let (mut samples, mut all_acknowledged) = (Vec::new(), BTreeSet::new());
    let mut cut_off = 0;
    for round in 0..ROUNDS {
        let folder = node.scratch(&format!("round-{round}"));
        let sent = radiographs(&folder, 10, 5, round * 1000);
        let log = node.scratch("logs").join(format!("acknowledged-{round}"));
        let mut sender = if round == 4 {
            let files: Vec<&Path> = sent.iter().map(|sample| sample.path.as_path()).collect();
            pynetdicom_sender(node.dicom_port, "SCANNER", "HILUM", &log, &files)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("pynetdicom")
        } else {
            start_sending(&node, &folder, &log)
        };
        let kill_after = 1 + random.below(46) as usize;
        wait_for_acknowledged(&mut sender, &log, kill_after);
        std::thread::sleep(Duration::from_micros(random.below(8000)));
        node.kill_9_at_once();
        let at_death = acknowledged(&log).len();
        cut_off += u32::from(at_death < sent.len());
        // The sender goes on trying while the node starts again: what was stored but not acknowledged comes twice.
        node.start_again();
        wait_for_end(&mut sender);
        all_acknowledged.extend(acknowledged(&log));
        samples.extend(sent);
    }
    assert!(cut_off >= ROUNDS - 1, "only {cut_off} of {ROUNDS} sends were cut off");
    assert!(all_acknowledged.len() >= 100, "only {} objects were acknowledged", all_acknowledged.len());

    assert_kept(&node, &samples, &all_acknowledged);
    wait_until_all_answered(&node, Duration::from_secs(240));
    assert_archive_is_clean(&node);
    assert_pacs_has_each_result_once(&node, &orthanc);
    let open = node.database.rows("select * from association where ended_at is null");
    assert!(open.is_empty(), "associations of dead processes are open: {open:#?}");
    // Once more, at rest: a restart finds nothing to do.
    let before = node.database.row("select (select count(*) from instance) as i, (select count(*) from result) as r");
    node.terminate();
    node.start_again();
    assert_archive_is_clean(&node);
    let after = node.database.row("select (select count(*) from instance) as i, (select count(*) from result) as r");
    assert_eq!(before, after);
}

/// The states of the run of a study, newest revision.
fn run_of(node: &Node, study_instance_uid: &str) -> Option<serde_json::Value> {
    node.database
        .rows(&format!(
            "select r.id, r.state, r.attempt, r.words, r.reason from run r join workup w on w.id = r.workup_id \
             where w.study_instance_uid = '{study_instance_uid}' order by r.revision desc limit 1"
        ))
        .pop()
}

/// Waits until the run of a study is `running` in its attempt number `attempt` or a later one.
fn wait_until_running(node: &Node, study_instance_uid: &str, attempt: i64) {
    let started = Instant::now();
    loop {
        let run = run_of(node, study_instance_uid);
        if run.as_ref().is_some_and(|run| run["state"] == "running" && run["attempt"].as_i64() >= Some(attempt)) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "attempt {attempt} of the run does not start: {run:#?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn heavy_killing_the_inference_process_costs_an_attempt_and_nothing_else() {
    let pacs = StoreScp::start();
    let mut node = Node::start(&Site::usual(pacs.port));
    let folder = node.scratch("study");
    let study = radiographs(&folder, 1, 12, 1);
    let uid = study[0].study_instance_uid.clone();
    let queued = radiographs(&node.scratch("queued"), 3, 1, 500);
    node.send("SCANNER", &[&folder, &node.scratch("queued")]);
    wait_until_running(&node, &uid, 1);

    // Images arrive all the while; CT studies are kept and need no inference.
    let slices_folder = node.scratch("slices");
    let slices = ct_slices(&slices_folder, 200);
    let log = node.scratch("logs").join("acknowledged");
    let mut sender = start_sending(&node, &slices_folder, &log);
    let inference = node.inference_process_id().expect("the inference process runs");
    signal(inference, "KILL");
    let status = wait_for_end(&mut sender);
    assert!(
        status.success(),
        "receiving stumbled: {}",
        fs_err::read_to_string(log.with_extension("sender.log")).unwrap()
    );
    assert_eq!(acknowledged(&log).len(), slices.len());

    let restarted = wait_for("the inference process is started again", PATIENCE, || {
        node.inference_process_id().filter(|id| *id != inference && is_running(*id))
    });
    node.wait_for_workup(&uid, "answered");
    for sample in &queued {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
    }
    let run = run_of(&node, &uid).expect("a run");
    assert_eq!((run["state"].as_str(), run["attempt"].as_i64()), (Some("succeeded"), Some(2)), "{run:#?}");
    let told = node.database.rows(&format!(
        "select words from event where subject_kind = 'run' and subject_id = '{}' and kind = 'running' order by id",
        run["id"].as_str().expect("an id")
    ));
    assert_eq!(told[1]["words"], "attempt 2 of 3 starts; the one before ended without an answer");
    assert_eq!(node.inference_process_id(), Some(restarted), "it did not stay up");
    assert!(node.log().contains("inference process"), "the log does not tell of the crash");
    assert_kept(&node, &[study, queued, slices].concat(), &acknowledged(&log));
    let deliveries = node.database.count("select 1 from delivery where state = 'delivered'");
    assert_eq!(pacs.files().len(), deliveries, "storescp got something twice, or not at all");
    node.wait_until_ready();
}

/// A study that kills the process at every attempt is parked with the reason; its neighbour, whose run is cut off
/// beside it the first time, is answered, and so is the next one.
#[test]
fn heavy_a_study_that_always_kills_the_inference_process_is_parked_alone() {
    let pacs = StoreScp::start();
    let options = NodeOptions::default()
        .setting("HILUM__INFERENCE__MAXIMUM_ATTEMPTS", 2)
        .setting("HILUM__INFERENCE__RESTART_BACKOFF_MAXIMUM_SECONDS", 1);
    let mut node = Node::start_with(&Site::usual(pacs.port), options);
    let (poison_folder, neighbour_folder) = (node.scratch("poison"), node.scratch("neighbour"));
    let poison = radiographs(&poison_folder, 1, 16, 1)[0].study_instance_uid.clone();
    let neighbour = radiographs(&neighbour_folder, 1, 16, 100)[0].study_instance_uid.clone();
    node.send("SCANNER", &[&poison_folder, &neighbour_folder]);
    wait_until_running(&node, &neighbour, 1);
    for attempt in 1..=2 {
        wait_until_running(&node, &poison, attempt);
        signal(node.inference_process_id().expect("the inference process runs"), "KILL");
        let finished = run_of(&node, &poison).expect("a run");
        assert_ne!(finished["state"], "succeeded", "the run was too quick to be killed");
    }
    let parked =
        wait_for("the run is parked", PATIENCE, || run_of(&node, &poison).filter(|run| run["state"] == "parked"));
    assert_eq!((parked["attempt"].as_i64(), parked["reason"].as_str()), (Some(2), Some("crash")));
    let words = parked["words"].as_str().expect("words");
    assert!(words.contains("attempt 2 of 2 ended without an answer: the inference process died"), "{words}");
    let workup =
        node.database.row(&format!("select state, state_words from workup where study_instance_uid = '{poison}'"));
    assert_eq!((workup["state"].as_str(), workup["state_words"].as_str()), (Some("parked"), Some(words)));

    node.wait_for_workup(&neighbour, "answered");
    let next = Radiograph::default().write(&node.scratch("next"));
    node.send("SCANNER", &[&next.path]);
    node.wait_for_workup(&next.study_instance_uid, "answered");
    node.wait_until_ready();
    assert_eq!(node.database.count("select 1 from run where state = 'parked'"), 1);
}

/// Results that can never be rendered end in the parking place with the reason, and rendering does not go on for ever.
#[test]
fn heavy_a_run_that_cannot_be_rendered_is_parked_with_its_reason() {
    let pacs = StoreScp::start();
    let mut node = Node::start(&Site::usual(pacs.port));
    wait_for("the inference process has opened the archive", PATIENCE, || {
        node.log().contains("the inference process is ready").then_some(())
    });
    let results = node.data_folder.join("archive/results");
    fs_err::remove_dir(&results).expect("an empty folder");
    fs_err::write(&results, b"in the way").expect("a file");
    let sample = Radiograph::default().write(&node.scratch("study"));
    node.send("SCANNER", &[&sample.path]);
    let parked = wait_for("the run is parked", PATIENCE, || {
        run_of(&node, &sample.study_instance_uid).filter(|run| run["state"] == "parked")
    });
    let words = parked["words"].as_str().expect("words");
    assert!(words.contains("the results cannot be rendered, after 3 attempts"), "{words}");
    assert_eq!(node.database.count("select 1 from workup where state = 'parked'"), 1);
    assert!(pacs.files().is_empty());

    fs_err::remove_file(&results).expect("our file");
    fs_err::create_dir(&results).expect("a folder");
    let next = Radiograph::default().write(&node.scratch("next"));
    node.send("SCANNER", &[&next.path]);
    node.wait_for_workup(&next.study_instance_uid, "answered");
    node.wait_until_ready();
}

/// SIGTERM in the middle of a send and of a run: the node stops in order and in time, and nothing is lost.
#[test]
fn heavy_sigterm_during_a_send_stops_in_order_and_loses_nothing() {
    let pacs = StoreScp::start();
    let mut node = Node::start(&Site::usual(pacs.port));
    let running_folder = node.scratch("running");
    let running = radiographs(&running_folder, 1, 12, 1);
    let uid = running[0].study_instance_uid.clone();
    node.send("SCANNER", &[&running_folder]);
    wait_until_running(&node, &uid, 1);

    let folder = node.scratch("sending");
    let sent = radiographs(&folder, 10, 5, 1000);
    let log = node.scratch("logs").join("acknowledged");
    let mut sender = start_sending(&node, &folder, &log);
    wait_for_acknowledged(&mut sender, &log, 10);
    let asked = Instant::now();
    node.terminate();
    // shutdown_grace_seconds = 10 for associations, and again for the jobs that they feed.
    assert!(asked.elapsed() < Duration::from_secs(25), "the stop took {:?}", asked.elapsed());
    wait_for_end(&mut sender);
    let before = acknowledged(&log);
    assert!(before.len() < sent.len(), "everything was sent before the stop");
    assert!(files_below(&node.data_folder.join("archive/incoming"), "part").is_empty());
    let open = node.database.rows("select * from association where ended_at is null");
    assert!(open.is_empty(), "the stop left associations open: {open:#?}");

    node.start_again();
    assert!(start_sending(&node, &folder, &log).wait().expect("our own child").success(), "the second send fails");
    let all = acknowledged(&log);
    assert_eq!(all.len(), sent.len());
    let mut expected = all;
    expected.extend(running.iter().map(|sample| sample.sop_instance_uid.clone()));
    assert_kept(&node, &[sent, running].concat(), &expected);
    wait_until_all_answered(&node, PATIENCE * 2);
    assert_archive_is_clean(&node);
    assert_eq!(pacs.files().len(), node.database.count("select 1 from delivery where state = 'delivered'"));
    node.assert_clean_log();
}

/// A second node on the same data folder is told off before it touches anything.
#[test]
fn a_second_node_on_the_same_data_folder_is_refused() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    let part = node.data_folder.join("archive/incoming/of-the-first.part");
    fs_err::write(&part, b"half").expect("a file");
    let second = node.hilum(&["serve"]);
    let said = super::support::said(&second);
    assert!(!second.status.success(), "{said}");
    assert!(said.contains("another Hilum works in"), "{said}");
    assert!(part.exists(), "the second node removed what the first was receiving");
    assert_eq!(http::get(node.http_port, "/readyz").map(|answer| answer.status), Some(200));
}
