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
