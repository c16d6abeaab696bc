//! Something that the node needs is away: the PACS, Postgres, disk space, the queue's memory. Receiving goes on, and
//! what was owed is done when it is back.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use dicom_dictionary_std::uids;

use super::{
    crash::{
        acknowledged, assert_archive_is_clean, assert_kept, files_below, radiographs, start_sending, wait_for_end,
        wait_until_all_answered,
    },
    hostile::{CR_STORAGE, RawPeer, plain_header},
    support::{
        Node, NodeOptions, Orthanc, PATIENCE, PrivatePostgres, Radiograph, SENT_OF_A_RADIOGRAPH, Site, StoreScp,
        fresh_uid, http, run, said, storescu, wait_for,
    },
};

/// A PACS that is down delays nobody else, and gets everything once when it is back.
#[test]
fn heavy_results_wait_for_a_pacs_that_is_down() {
    let mut orthanc = Orthanc::start();
    orthanc.stop();
    let second = StoreScp::start();
    let site = Site::new("HILUM")
        .sender("SCANNER")
        .pacs("pacs", "PACS", orthanc.dicom_port)
        .pacs("second", "SECOND", second.port)
        .route("cxr-untrained", 1, &["pacs", "second"]);
    let node = Node::start(&site);
    let folder = node.scratch("studies");
    let samples = radiographs(&folder, 3, 1, 1);
    let sent_at = Instant::now();
    node.send("SCANNER", &[&folder]);
    let to_second = "select 1 from delivery where destination = 'second' and state = 'delivered'";
    let owed = 3 * SENT_OF_A_RADIOGRAPH;
    node.database.wait_for_rows(owed, to_second);
    let second_has_it_after = sent_at.elapsed();
    assert_eq!(second.files().len(), owed);

    // The first destination has failed until it is left alone; then nothing costs an attempt any more.
    let failed = node.database.wait_for_rows(
        1,
        "select words, next_probe_at - now() < interval '3 seconds' as soon from destination_state \
         where destination = 'pacs' and state = 'open' and failures > 5",
    );
    let words = failed[0]["words"].as_str().expect("words");
    assert!(words.contains(&orthanc.dicom_port.to_string()) && words.contains("connect"), "{words}");
    assert_eq!(failed[0]["soon"], true, "maximum_backoff_seconds = 2 is not kept: {failed:?}");
    let waiting = node.database.rows("select attempts from delivery where destination = 'pacs' and state = 'waiting'");
    assert_eq!(waiting.len(), owed);
    assert!(
        waiting.iter().all(|delivery| delivery["attempts"].as_i64().is_some_and(|count| count <= 5)),
        "{waiting:?}"
    );
    assert_eq!(node.database.count("select 1 from workup where state = 'answered'"), 0);
    assert!(second_has_it_after < Duration::from_secs(60), "the other destination waited {second_has_it_after:?}");

    orthanc.start_again();
    let back = Instant::now();
    for sample in &samples {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
        assert_eq!(orthanc.instances_of(&sample.study_instance_uid).len(), SENT_OF_A_RADIOGRAPH);
    }
    assert!(back.elapsed() < Duration::from_secs(30), "it took {:?} after the PACS was back", back.elapsed());
    assert_eq!(orthanc.instances().len(), owed);
    assert_eq!(second.files().len(), owed, "the destination that worked got something again");
}

/// Postgres stops in the middle of a send; the node is even killed and started again without it.
#[test]
fn heavy_images_are_acknowledged_while_postgres_is_down() {
    let mut postgres = PrivatePostgres::start(true);
    let pacs = StoreScp::start();
    let options = NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() };
    let mut node = Node::start_with(&Site::usual(pacs.port), options);
    let log = node.scratch("logs").join("acknowledged");
    let (first_folder, second_folder, third_folder) =
        (node.scratch("first"), node.scratch("second"), node.scratch("third"));
    let first = radiographs(&first_folder, 6, 5, 1);
    let second = radiographs(&second_folder, 3, 1, 1000);
    let third = radiographs(&third_folder, 3, 1, 2000);

    let mut sender = start_sending(&node, &first_folder, &log);
    wait_for("some objects are acknowledged", PATIENCE, || (acknowledged(&log).len() >= 5).then_some(()));
    postgres.stop();
    assert!(wait_for_end(&mut sender).success(), "{}", sender_log(&log));
    assert_eq!(acknowledged(&log).len(), first.len(), "Postgres being down was felt by the sender");
    assert_eq!(http::get(node.http_port, "/healthz").map(|answer| answer.status), Some(200));
    assert_eq!(http::get(node.http_port, "/readyz").map(|answer| answer.status), Some(503));
    assert!(
        start_sending(&node, &second_folder, &log).wait().expect("our own child").success(),
        "{}",
        sender_log(&log)
    );

    // On the snapshot of the site configuration. One file is there that the disk does not give: to read a folder fails like that.
    node.kill_9();
    let objects = node.archived_objects();
    let unreadable = objects[0].with_file_name("00000000-0000-7000-8000-000000000000.dcm");
    fs_err::create_dir(&unreadable).expect("a folder");
    node.run();
    node.wait_until_listening();
    assert!(start_sending(&node, &third_folder, &log).wait().expect("our own child").success(), "{}", sender_log(&log));
    let all = [first, second, third].concat();
    assert_eq!(acknowledged(&log).len(), all.len());

    postgres.start_again();
    node.wait_until_ready();
    // It holds up nothing else, is told, and is looked at again.
    node.database.wait_for_rows(all.len(), "select id from instance");
    let unread = || node.metric("hilum_archive_unreadable_files");
    assert!((unread() - 1.0).abs() < 1e-9, "{}", unread());
    assert!(node.log().contains("a file of the archive cannot be read"), "the log does not say so");
    fs_err::remove_dir(&unreadable).expect("our own folder");
    wait_for("it is looked at again", PATIENCE, || (unread() < 0.5).then_some(()));
    assert_kept(&node, &all, &acknowledged(&log));
    wait_until_all_answered(&node, PATIENCE * 2);
    assert_archive_is_clean(&node);
    let deliveries = node.database.count("select 1 from delivery where state = 'delivered'");
    assert_eq!(pacs.files().len(), deliveries, "storescp got something twice, or not at all");
}

fn sender_log(acknowledged: &std::path::Path) -> String {
    fs_err::read_to_string(acknowledged.with_extension("sender.log")).unwrap_or_default()
}

/// Postgres dies while runs are under way: they are answered all the same, without anybody's help.
#[test]
fn heavy_a_crash_of_postgres_in_the_middle_of_runs_costs_nothing() {
    let mut postgres = PrivatePostgres::start(true);
    let pacs = StoreScp::start();
    let options = NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() };
    let node = Node::start_with(&Site::usual(pacs.port), options);
    let folder = node.scratch("studies");
    let samples = radiographs(&folder, 6, 3, 1);
    node.send("SCANNER", &[&folder]);
    let running = "select 1 from run where state = 'running'";
    wait_for("a run is under way", PATIENCE, || (node.database.count(running) > 0).then_some(()));
    postgres.crash();
    std::thread::sleep(Duration::from_secs(1));
    postgres.start_again();
    for sample in samples.iter().step_by(3) {
        wait_for("Postgres answers", PATIENCE, || node.database.try_rows("select 1 as one").ok());
        node.wait_for_workup(&sample.study_instance_uid, "answered");
    }
    let delivered = node.database.count("select 1 from delivery where state = 'delivered'");
    assert_eq!(delivered, 6 * (SENT_OF_A_RADIOGRAPH + 2), "two images more are two heat maps more");
    let unique: std::collections::BTreeSet<Vec<u8>> =
        pacs.files().iter().map(|file| fs_err::read(file).expect("a file")).collect();
    assert_eq!(unique.len(), delivered, "the PACS lacks a result");
}

/// The queue is a hint: with all its rows gone again and again, everything is done.
#[test]
fn heavy_everything_completes_when_the_queue_forgets_its_jobs() {
    let pacs = StoreScp::start();
    let options = NodeOptions::default().setting("HILUM__ASSEMBLE__RECONCILE_SECONDS", 1);
    let node = Node::start_with(&Site::usual(pacs.port), options);
    let folder = node.scratch("studies");
    let samples = radiographs(&folder, 5, 2, 1);
    node.send("SCANNER", &[&folder]);
    let until = Instant::now() + Duration::from_secs(8);
    let mut forgotten = 0;
    while Instant::now() < until {
        forgotten += node.database.rows("select id from graphile_worker._private_jobs").len();
        node.database.execute("delete from graphile_worker._private_jobs");
        std::thread::sleep(Duration::from_millis(150));
    }
    assert!(forgotten > 0, "there never was a job to forget");
    for sample in samples.iter().step_by(2) {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
    }
    // A job that was removed while it was sending may have been repeated; the PACS knows the object by its UID.
    let unique: std::collections::BTreeSet<Vec<u8>> =
        pacs.files().iter().map(|file| fs_err::read(file).expect("a file")).collect();
    let owed = 5 * (SENT_OF_A_RADIOGRAPH + 1);
    assert_eq!(unique.len(), owed, "two heat maps for two images");
    assert_eq!(node.database.count("select 1 from delivery where state = 'delivered'"), owed);
}

/// Below the line objects are refused and new associations rejected, both transiently; above the line and a margin
/// receiving goes on. Sending never stops.
#[test]
fn heavy_too_little_free_space_stops_receiving_and_nothing_else() {
    let mut pacs = StoreScp::start();
    let options = NodeOptions::default().setting("HILUM__ARCHIVE__RESUME_MARGIN_BYTES", "16 MiB");
    let mut node = Node::prepare(options);
    let archive = node.data_folder.join("archive");
    fs_err::create_dir_all(&archive).expect("a folder");
    let disk = SmallDisk::mount(&archive, 128);
    node.hilum_ok(&["migrate"]);
    node.apply(&Site::usual(pacs.port));
    node.run();
    node.wait_until_ready();
    pacs.stop();
    let owed = Radiograph::default().write(&node.scratch("owed"));
    node.send("SCANNER", &[&owed.path]);
    let failed = "select id from delivery where state = 'waiting' and attempts > 0";
    wait_for("a delivery has failed", PATIENCE, || (node.database.count(failed) > 0).then_some(()));

    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    let filler = archive.join("filler");
    // Grows or shrinks in one step: the node must see nothing in between.
    let fill_to = |free_mebibytes: u64| {
        let file = fs_err::File::options().create(true).append(true).open(&filler).expect("our file");
        let stat = rustix::fs::statvfs(&archive).expect("a file system");
        let length = file.metadata().expect("our file").len();
        let wanted = length + stat.f_bavail * stat.f_frsize - (free_mebibytes << 20);
        if wanted < length {
            file.set_len(wanted).expect("our file");
        } else {
            let more = usize::try_from(wanted - length).expect("it fits");
            std::io::Write::write_all(&mut file.into_file(), &vec![0xAA; more]).expect("there is room");
        }
    };
    fill_to(50);
    let before = node.database.count("select id from instance");
    for _ in 0..2 {
        let uid = fresh_uid();
        assert_eq!(peer.store(CR_STORAGE, &uid, &plain_header(CR_STORAGE, &uid)), 0xA700);
    }
    assert_eq!(peer.echo(), 0x0000, "the association was not kept");
    let late = Radiograph::default().write(&node.scratch("late"));
    let rejected = storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&late.path]);
    let told = said(&rejected);
    assert!(!rejected.status.success() && told.contains("Rejected Transient"), "{told}");
    let refusal = node.database.wait_for_rows(1, "select * from refusal where kind = 'association'").remove(0);
    assert!(refusal["expected"].as_str().is_some_and(|words| words.contains("80 MiB free")), "{refusal:#}");
    let ready = node.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("receiving stopped below 0.1 GiB"), "{}", ready.text());
    assert!(node.get("/").text().contains("receiving stopped below"), "the page does not tell");
    wait_for("the metric tells", PATIENCE, || (node.metric("hilum_archive_receiving_stopped") > 0.5).then_some(()));

    // Who may have to report on our results is let in.
    let commitment = uids::STORAGE_COMMITMENT_PUSH_MODEL;
    let (mut reporter, answer) =
        RawPeer::negotiate(node.dicom_port, "SCANNER", "HILUM", commitment, uids::EXPLICIT_VR_LITTLE_ENDIAN);
    assert_eq!((answer, reporter.echo()), (0, 0));
    reporter.release();

    // Results are sent all the same.
    pacs.start_again();
    node.wait_for_workup(&owed.study_instance_uid, "answered");
    assert_eq!(pacs.files().len(), SENT_OF_A_RADIOGRAPH);

    // More than the first line, less than the second.
    fill_to(72);
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        !storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&late.path]).status.success(),
        "it went on too early"
    );
    fs_err::remove_file(&filler).expect("our file");
    wait_for("receiving goes on", PATIENCE, || {
        storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&late.path]).status.success().then_some(())
    });
    peer.release();
    node.wait_for_workup(&late.study_instance_uid, "answered");
    assert_eq!(node.database.count("select id from instance"), before + 1);
    let log = node.log();
    assert_eq!(log.matches("the archive's disk is nearly full").count(), 1, "once for each change");
    assert_eq!(log.matches("the archive's disk has room again").count(), 1, "once for each change");
    let released = node.database.wait_for_rows(1, "select * from association where objects_refused = 2").remove(0);
    assert_eq!(released["end_kind"], "released");
    node.terminate();
    drop(disk);
}

/// A file system of a few MiB, gone with the value.
pub(crate) struct SmallDisk {
    folder: std::path::PathBuf,
}

impl SmallDisk {
    pub(crate) fn mount(folder: &std::path::Path, mebibytes: u32) -> Self {
        let size = format!("size={mebibytes}m");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder));
        assert!(
            mounted.status.success(),
            "this test fills a disk of its own and needs root to mount it: {}",
            said(&mounted)
        );
        Self { folder: folder.to_owned() }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

/// A real full disk, 96 MiB: what does not fit is refused as 0xA700, what was acknowledged stays intact, and results
/// that cannot be written wait for space.
#[test]
fn heavy_a_full_disk_refuses_new_objects_and_keeps_the_old_ones() {
    let pacs = StoreScp::start();
    // Below the stop line there is room for the results of all that came before it: each takes twice its image.
    let options = NodeOptions::default()
        .setting("HILUM__ARCHIVE__MINIMUM_FREE_BYTES", "72 MiB")
        .setting("HILUM__ARCHIVE__RESUME_MARGIN_BYTES", 0)
        .setting("HILUM__ARCHIVE__RESULTS_MINIMUM_FREE_BYTES", "1 MiB");
    let mut node = Node::prepare(options);
    let archive = node.data_folder.join("archive");
    fs_err::create_dir_all(&archive).expect("a folder");
    let disk = SmallDisk::mount(&archive, 96);
    node.hilum_ok(&["migrate"]);
    node.apply(&Site::usual(pacs.port));
    node.run();
    node.wait_until_ready();

    let first = Radiograph::default().write(&node.scratch("first"));
    node.send("SCANNER", &[&first.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");

    // 120 MB do not fit: the disk is full in the middle of the object. Then the association goes on.
    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    let (big, small) = (fresh_uid(), fresh_uid());
    assert_eq!(peer.store_with_pixels(CR_STORAGE, &big, 120_000_000), 0xA700);
    assert!(files_below(&archive, "part").is_empty(), "the half object still takes its space");
    assert_eq!(peer.store(CR_STORAGE, &small, &plain_header(CR_STORAGE, &small)), 0x0000, "the disk has space again");

    // To the last byte, while results are to be written: they wait, however long.
    let late = Radiograph::default().write(&node.scratch("late"));
    node.send("SCANNER", &[&late.path]);
    let filler = archive.join("filler");
    fill(&filler);
    wait_for("rendering fails for want of space", PATIENCE, || {
        node.log().contains("No space left on device").then_some(())
    });
    // Longer than three renderings take to fail.
    std::thread::sleep(Duration::from_secs(10));
    let run = node.database.row(&format!(
        "select r.state, r.rendered_at from run r join workup w on w.id = r.workup_id \
         where w.study_instance_uid = '{}'",
        late.study_instance_uid
    ));
    assert_eq!((run["state"].as_str(), run["rendered_at"].is_null()), (Some("succeeded"), true), "{run}");
    let refused = fresh_uid();
    assert_eq!(peer.store(CR_STORAGE, &refused, &plain_header(CR_STORAGE, &refused)), 0xA700);
    let previews = files_below(&archive.join("results"), "png").len();
    assert!(previews <= 2, "renderings that were repeated left files of {previews} heat maps of two images");
    fs_err::remove_file(&filler).expect("our file");
    node.wait_for_workup(&late.study_instance_uid, "answered");
    peer.release();
    wait_for("the node receives again", PATIENCE, || {
        (node.metric("hilum_archive_receiving_stopped") < 0.5).then_some(())
    });

    // Many radiographs until less than minimum_free_bytes are left.
    let (folder, log) = (node.scratch("many"), node.scratch("logs").join("acknowledged"));
    let many: Vec<_> = (0..10)
        .map(|seed| Radiograph { rows: 1600, columns: 1600, seed, ..Radiograph::default() }.write(&folder))
        .collect();
    let status = start_sending(&node, &folder, &log).wait().expect("our own child");
    assert!(!status.success(), "50 MB found room in 24 MiB");
    let stored = acknowledged(&log);
    assert!(!stored.is_empty() && stored.len() < many.len(), "{} of 10 were acknowledged", stored.len());
    let refusals = sender_log(&log);
    assert!(refusals.to_lowercase().contains("a700"), "the sender was not told why:\n{refusals}");
    for sample in many.iter().filter(|sample| stored.contains(&sample.sop_instance_uid)) {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
    }

    let first_row = node
        .database
        .row(&format!("select archive_key from instance where sop_instance_uid = '{}'", first.sop_instance_uid));
    let file = node.archived(first_row["archive_key"].as_str().expect("a key"));
    assert!(super::support::data_set_bytes(&file) == first.data_set_bytes(), "an acknowledged object was damaged");
    let deliveries = node.database.count("select 1 from delivery where state = 'delivered'");
    assert_eq!(pacs.files().len(), deliveries);
    node.terminate();
    drop(disk);
}

/// Writes until the disk is full.
fn fill(file: &std::path::Path) {
    use std::io::Write as _;
    let mut file = fs_err::File::create(file).expect("a file");
    let block = vec![0xAA; 64 * 1024];
    let mut length = block.len();
    while length > 0 {
        // A part may be written before it fails; then the rest is tried in smaller pieces.
        if file.write_all(&block[..length]).is_err() {
            length /= 2;
        }
    }
}
