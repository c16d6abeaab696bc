//! The same object again, and other bytes under a known SOP Instance UID.

use dicom_core::VR;
use dicom_dictionary_std::tags;

use crate::support::*;

#[test]
fn heavy_the_same_object_twice_is_one() {
    let site = Site::new("HILUM").sender("SCANNER").route("cxr-untrained", 1, &[]);
    let node = Node::start(&site);
    let sample = Radiograph::default().write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");

    // Another association, another sender: both get Success.
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.send("SCANNER", &[&sample.path]);
    let associations = node.database.wait_for_rows(
        3,
        "select objects_stored, objects_refused from association where ended_at is not null and end_kind = 'released'",
    );
    assert!(associations.iter().all(|row| row["objects_stored"] == 1 && row["objects_refused"] == 0));
    wait_for("the duplicates are counted", PATIENCE, || {
        (node.metric("hilum_objects_duplicate_total") >= 2.0).then_some(())
    });

    let instance = node.database.row("select * from instance");
    assert_eq!(instance["version"], 1);
    let key = instance["archive_key"].as_str().expect("a key");
    let only_that = || (node.archived_objects() == [node.archived(key)]).then_some(());
    wait_for("the second copies are gone", PATIENCE, only_that);
    assert!(data_set_bytes(&node.archived(key)) == sample.data_set_bytes());
    let workup = node.database.row("select * from workup");
    assert_eq!((&workup["revision"], &workup["state"]), (&1.into(), &"answered".into()), "{workup}");
    assert_eq!(node.database.count("select id from run"), 1);
    node.assert_clean_log();
}

/// A file that was lost, with a disk or in a restored backup, is mended by sending the object again.
#[test]
fn an_object_that_comes_again_replaces_its_lost_file() {
    let node = Node::start(&Site::new("HILUM").sender("SCANNER"));
    let sample = Radiograph::default().write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    let lost = node.database.wait_for_rows(1, "select archive_key from instance").remove(0);
    fs_err::remove_file(node.archived(lost["archive_key"].as_str().expect("a key"))).expect("its file");
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    let told = node.database.wait_for_rows(1, "select words from event where kind = 'file_replaced'").remove(0);
    assert!(told["words"].as_str().is_some_and(|words| words.contains(&sample.sop_instance_uid)), "{told}");
    let row = node.database.row("select archive_key, version from instance");
    let kept = node.archived(row["archive_key"].as_str().expect("a key"));
    assert_eq!((node.archived_objects(), &row["version"]), (vec![kept.clone()], &1.into()));
    assert!(data_set_bytes(&kept) == sample.data_set_bytes());
}

#[test]
fn heavy_other_bytes_under_a_known_uid_are_a_second_version() {
    let site = Site::new("HILUM").sender("SCANNER").route("cxr-untrained", 1, &[]);
    let node = Node::start(&site);
    let folder = node.scratch("sent");
    let first = Radiograph::default().write(&folder);
    let first_bytes = first.data_set_bytes();
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");

    let mut corrected = first.object();
    corrected.put_str(tags::IMAGE_COMMENTS, VR::LT, "corrected");
    let second = Sample::write(&corrected, &node.scratch("corrected"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&second.path]);

    let versions = node.database.wait_for_rows(2, "select * from instance order by version");
    assert_eq!((&versions[0]["version"], &versions[1]["version"]), (&1.into(), &2.into()));
    for (row, bytes) in versions.iter().zip([first_bytes, second.data_set_bytes()]) {
        assert_eq!(row["sop_instance_uid"], first.sop_instance_uid);
        assert!(data_set_bytes(&node.archived(row["archive_key"].as_str().expect("a key"))) == bytes);
    }
    let event = node.database.row(&format!(
        "select * from event where subject_kind = 'instance' and subject_id = '{}'",
        versions[1]["id"].as_str().expect("an id")
    ));
    assert_eq!(event["kind"], "version");
    let words = event["words"].as_str().expect("words");
    assert!(words.contains(&first.sop_instance_uid) && words.contains("version 2"), "{words}");
    assert!((node.metric("hilum_objects_version_conflict_total") - 1.0).abs() < 1e-9);

    // The answer is made anew, from the newer bytes.
    let workup = node.database.wait_for_rows(1, "select * from workup where revision = 2 and state = 'answered'");
    assert_eq!(workup[0]["study_instance_uid"], first.study_instance_uid);
    assert_eq!(node.archived_objects().len(), 2);
    node.assert_clean_log();
}

/// dcmtk shows the class of a status, the node's log the status itself.
#[track_caller]
fn assert_refused(node: &Node, sent: &std::process::Output, status: &str) {
    let told = said(sent);
    assert!(told.contains("Received Store Response (") && !told.contains("(Success)"), "{told}");
    assert!(node.log().contains(&format!("status={status}")), "the log does not say {status}");
}

#[test]
fn heavy_a_peer_may_send_no_duplicates() {
    let site = Site::new("HILUM").sender_with("SCANNER", "duplicates = \"refuse\"").sender("OTHER").route(
        "cxr-untrained",
        1,
        &[],
    );
    let postgres = PrivatePostgres::start(true);
    let options = NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() };
    let node = Node::start_with(&site, options);
    let first = Radiograph::default().write(&node.scratch("sent"));
    let corrected = |words: &str, folder: &str| {
        let mut object = first.object();
        object.put_str(tags::IMAGE_COMMENTS, VR::LT, words);
        Sample::write(&object, &node.scratch(folder))
    };
    let (second, third) = (corrected("second", "second"), corrected("third", "third"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    // At once, perhaps before it is indexed; and the same bytes are no duplicate.
    let refused = storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&second.path]);
    assert_refused(&node, &refused, "0x0111");
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    let instance = node.database.row("select * from instance");
    assert!(data_set_bytes(&node.archived(instance["archive_key"].as_str().expect("a key"))) == first.data_set_bytes());

    // When it is indexed, and after a restart, Postgres knows.
    let refused = storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&third.path]);
    assert_refused(&node, &refused, "0x0111");
    let events = node.database.wait_for_rows(2, "select * from event where kind = 'duplicate_refused'");
    assert!(events.iter().all(|event| event["subject_id"] == instance["id"]), "{events:#?}");
    assert!((node.metric("hilum_objects_duplicate_refused_total") - 2.0).abs() < 1e-9);
    let timeline = node.hilum_ok(&["timeline", &first.study_instance_uid]);
    assert!(timeline.contains("with other bytes: refused with 0x0111"), "{timeline}");
    assert!(timeline.contains("again with the same bytes: stored once"), "{timeline}");
    let page = node.get(&format!("/studies/{}", first.study_instance_uid)).text();
    assert!(page.contains("refused with 0x0111"), "the page does not show the refusal");
    assert_eq!(node.database.count("select id from workup where revision = 1"), 1);

    // Another peer's policy is another's.
    storescu_ok(node.dicom_port, "OTHER", "HILUM", &[], &[&second.path]);
    node.database.wait_for_rows(2, "select id from instance");

    // A Postgres that is down stops nobody: what may be a duplicate is kept as a version, and the log says so.
    let mut node = node;
    node.terminate();
    node.start_again();
    postgres.stop();
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&third.path]);
    assert!(node.log().contains("Postgres cannot be asked for a duplicate"), "the log does not say so");
    let mut postgres = postgres;
    postgres.start_again();
    let versions = node.database.wait_for_rows(3, "select version from instance order by version");
    assert_eq!(versions[2]["version"], 3);
}

#[test]
fn heavy_another_status_for_duplicates_is_the_administrators_choice() {
    let keys = "duplicates = \"refuse\"\nduplicate_status = 0xC111";
    let node = Node::start(&Site::new("HILUM").sender_with("SCANNER", keys));
    let first = Radiograph::default().write(&node.scratch("sent"));
    let mut object = first.object();
    object.put_str(tags::IMAGE_COMMENTS, VR::LT, "corrected");
    let second = Sample::write(&object, &node.scratch("corrected"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    let refused = storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&second.path]);
    assert_refused(&node, &refused, "0xC111");
    assert_eq!(node.archived_objects().len(), 1);
}
