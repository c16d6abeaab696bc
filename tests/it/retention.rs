//! Retention removes what nobody needs any more, and nothing else.

use std::path::PathBuf;

use super::support::*;

/// Makes everything of a study so many days older.
fn age(node: &Node, sample: &Sample, days: u32) {
    let study = &sample.study_instance_uid;
    let by = format!("interval '{days} days'");
    for statement in [
        format!("update instance set received_at = received_at - {by} where study_instance_uid = '{study}'"),
        format!(
            "update workup set first_object_at = first_object_at - {by}, last_object_at = last_object_at - {by} \
             where study_instance_uid = '{study}'"
        ),
        format!(
            "update result x set created_at = created_at - {by} from run r, workup w \
             where r.id = x.run_id and w.id = r.workup_id and w.study_instance_uid = '{study}'"
        ),
        format!(
            "update event e set at = at - {by} from workup w \
             where e.subject_id = w.id::text and w.study_instance_uid = '{study}'"
        ),
    ] {
        node.database.execute(&statement);
    }
}

fn object_of(node: &Node, sample: &Sample) -> PathBuf {
    let row = node
        .database
        .row(&format!("select archive_key from instance where sop_instance_uid = '{}'", sample.sop_instance_uid));
    node.archived(row["archive_key"].as_str().expect("a key"))
}

fn results_of(node: &Node, sample: &Sample) -> Vec<PathBuf> {
    let rows = node.database.rows(&format!(
        "select unnest(array_remove(array[x.archive_key, x.preview_key], null)) as key from result x \
         join run r on r.id = x.run_id join workup w on w.id = r.workup_id where w.study_instance_uid = '{}'",
        sample.study_instance_uid
    ));
    rows.iter().map(|row| node.archived(row["key"].as_str().expect("a key"))).collect()
}

#[test]
fn heavy_retention_removes_what_is_old_and_settled_and_it_can_come_again() {
    let (mut pacs, second) = (StoreScp::start(), StoreScp::start());
    let site = Site::new("HILUM")
        .sender("SCANNER")
        .local_ae("SLOW")
        .pacs("pacs", "PACS", pacs.port)
        .pacs("second", "SECOND", second.port)
        .route_with("HILUM", "cxr-untrained", "quiet_seconds = 1\ndestinations = [\"second\"]")
        .route_with("SLOW", "cxr-untrained", "quiet_seconds = 1\ndestinations = [\"pacs\", \"second\"]");
    let days = |options: NodeOptions, key: &str, days: u32| options.setting(&format!("HILUM__RETENTION__{key}"), days);
    let options = days(NodeOptions::default(), "OBJECTS_DAYS", 30);
    let options = days(options, "RESULTS_DAYS", 30);
    let options = days(options, "MINIMUM_AGE_DAYS", 3);
    let options = days(options, "HISTORY_DAYS", 30);
    let options = days(options, "ORPHAN_RESULTS_DAYS", 1);
    // Only what this test asks for.
    let options = options.setting("HILUM__RETENTION__INTERVAL_SECONDS", 86_400);
    let node = Node::start_with(&site, options);
    pacs.stop();
    let sent = node.scratch("sent");
    let (old, young, owed) =
        (Radiograph::default().write(&sent), Radiograph::default().write(&sent), Radiograph::default().write(&sent));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&old.path, &young.path]);
    storescu_ok(node.dicom_port, "SCANNER", "SLOW", &[], &[&owed.path]);
    for sample in [&old, &young] {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
    }
    let failed = "select id from delivery where destination = 'pacs' and state = 'waiting' and attempts > 0";
    wait_for("a delivery has failed", PATIENCE, || (node.database.count(failed) > 0).then_some(()));
    let ct = ct_slices(&sent, 1).remove(0);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&ct.path]);
    node.database.wait_for_rows(1, "select id from workup where state = 'not_routed'");
    for sample in [&old, &owed, &ct] {
        age(&node, sample, 40);
    }
    let (kept_objects, kept_results) = (
        [object_of(&node, &young), object_of(&node, &owed)],
        [results_of(&node, &young), results_of(&node, &owed)].concat(),
    );
    let with_preview = RENDERED_OF_A_RADIOGRAPH + 1;
    assert_eq!(kept_results.len(), 2 * with_preview);
    let (gone_objects, gone_results) = ([object_of(&node, &old), object_of(&node, &ct)], results_of(&node, &old));
    // Nobody's result, and one that a killed process had marked.
    let orphan = node.archived("results/2020/01/02/03/nobody.dcm");
    fs_err::create_dir_all(orphan.parent().expect("a folder")).expect("a folder");
    fs_err::write(&orphan, b"nobody's").expect("a file");
    let old_file = std::time::SystemTime::now() - std::time::Duration::from_hours(24 * 40);
    std::fs::File::options().write(true).open(&orphan).expect("a file").set_modified(old_file).expect("a time");
    let young_orphan = node.archived("results/2020/01/02/03/written-today.dcm");
    fs_err::write(&young_orphan, b"not committed yet").expect("a file");
    let marked = node.archived("results/2020/01/02/03/marked.png");
    fs_err::write(&marked, b"marked").expect("a file");
    node.database.execute("insert into file_to_remove (archive_key) values ('results/2020/01/02/03/marked.png')");

    let planned = node.hilum_ok(&["retention", "--dry-run"]);
    assert!(
        planned.contains("2 received objects of 2 studies,") && planned.contains("5 results of 1 study,"),
        "{planned}"
    );
    assert!(planned.contains("1 file without a row would be removed"), "{planned}");
    assert!(
        gone_objects.iter().chain(&gone_results).chain([&orphan, &marked]).all(|file| file.exists()),
        "a dry run removed something"
    );

    let told = node.hilum_ok(&["retention"]);
    assert!(told.contains("2 received objects of 2 studies,") && told.contains("5 results of 1 study,"), "{told}");
    for file in gone_objects.iter().chain(&gone_results).chain([&orphan, &marked]) {
        assert!(!file.exists(), "{} is still there", file.display());
    }
    for file in kept_objects.iter().chain(&kept_results).chain([&young_orphan]) {
        assert!(file.exists(), "{} is gone", file.display());
    }
    assert_eq!(node.database.count("select 1 from file_to_remove"), 0);
    let embeddings = |sample: &Sample| {
        node.database.count(&format!(
            "select 1 from image_embedding e join run r on r.id = e.run_id join workup w on w.id = r.workup_id \
             where w.study_instance_uid = '{}'",
            sample.study_instance_uid
        ))
    };
    assert_eq!((embeddings(&old), embeddings(&young)), (0, 1), "what was derived from an image goes with it");
    assert_eq!(node.database.count("select 1 from event where kind in ('objects_removed', 'results_removed')"), 3);
    let first_steps = |sample: &Sample| {
        node.database.count(&format!(
            "select 1 from event e join workup w on w.id::text = e.subject_id \
             where e.kind = 'receiving' and w.study_instance_uid = '{}'",
            sample.study_instance_uid
        ))
    };
    assert_eq!((first_steps(&old), first_steps(&owed), first_steps(&young)), (0, 1, 1), "history");
    let again = node.hilum_ok(&["retention"]);
    assert!(again.contains("0 received objects of 0 studies,") && again.contains("0 results of 0 studies,"), "{again}");

    // Listed still, with its story; no dead picture on its page.
    assert!(node.hilum_ok(&["studies"]).contains(&old.study_instance_uid));
    let page = node.get(&format!("/studies/{}", old.study_instance_uid)).text();
    assert!(page.contains("removed by retention: older than 30 day(s)") && !page.contains("preview.png"), "{page}");

    // The same bytes come again: stored again, analysed again.
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&old.path]);
    node.database.wait_for_rows(
        1,
        &format!(
            "select id from workup where revision = 2 and state = 'answered' and study_instance_uid = '{}'",
            old.study_instance_uid
        ),
    );
    assert!(data_set_bytes(&object_of(&node, &old)) == old.data_set_bytes());
    assert_eq!(node.database.count("select 1 from instance where removed_at is not null"), 1, "the CT slice");

    // What was owed is delivered, and may go then.
    pacs.start_again();
    node.wait_for_workup(&owed.study_instance_uid, "answered");
    assert_eq!(pacs.files().len(), SENT_OF_A_RADIOGRAPH);
    let told = node.hilum_ok(&["retention"]);
    assert!(told.contains("1 received object of 1 study,") && told.contains("5 results of 1 study,"), "{told}");
    node.assert_clean_log();
}

#[test]
fn heavy_retention_by_size_takes_the_oldest_and_is_off_unless_told() {
    let off = Node::start(&Site::new("HILUM").sender("SCANNER"));
    assert!(off.hilum_ok(&["retention"]).contains("retention is off"));
    drop(off);
    let options = NodeOptions::default()
        .setting("HILUM__RETENTION__OBJECTS_MAXIMUM_BYTES", "1 MiB")
        .setting("HILUM__RETENTION__MINIMUM_AGE_DAYS", 1)
        .setting("HILUM__RETENTION__INTERVAL_SECONDS", 1);
    let node = Node::start_with(&Site::new("HILUM").sender("SCANNER"), options);
    let sent = node.scratch("sent");
    // 720 KB each, not routed: 2.2 MB of which 1.1 MB are too many.
    let large = || Radiograph { rows: 600, columns: 600, ..Radiograph::default() }.write(&sent);
    let samples = [large(), large(), large()];
    let files: Vec<&std::path::Path> = samples.iter().map(|sample| sample.path.as_path()).collect();
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &files);
    node.database.wait_for_rows(3, "select id from workup where state = 'not_routed'");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(node.archived_objects().len(), 3, "all are younger than the minimum age");
    // The oldest first: the node looks every second.
    for (sample, days) in [(&samples[1], 9), (&samples[2], 5), (&samples[0], 3)] {
        age(&node, sample, days);
    }
    let left = node.database.wait_for_rows(1, "select sop_instance_uid from instance where removed_at is null");
    assert_eq!(left[0]["sop_instance_uid"], samples[0].sop_instance_uid, "the youngest stays");
    wait_for("their files are gone", PATIENCE, || (node.archived_objects().len() == 1).then_some(()));
    assert!(node.metric("hilum_retention_removed_bytes_total") > 1_400_000.0);
    let words = node.database.rows("select words from event where kind = 'objects_removed'");
    assert!(
        words[0]["words"].as_str().is_some_and(|words| words.contains("take more than 1048576 bytes")),
        "{words:?}"
    );
}

/// They were acknowledged a moment ago, however long ago their study was answered.
#[test]
fn heavy_late_images_that_are_not_analysed_are_kept_as_long_as_others() {
    let keys = "quiet_seconds = 1\nlate_images = \"ignore\"";
    let options = NodeOptions::default()
        .setting("HILUM__RETENTION__OBJECTS_DAYS", 30)
        .setting("HILUM__RETENTION__MINIMUM_AGE_DAYS", 3)
        .setting("HILUM__RETENTION__INTERVAL_SECONDS", 86_400);
    let node =
        Node::start_with(&Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", keys), options);
    let radiograph = Radiograph::default();
    let first = radiograph.write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    age(&node, &first, 40);
    let late = radiograph.sibling().write(&node.scratch("late"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&late.path]);
    node.database.wait_for_rows(1, "select id from event where kind = 'late_objects_ignored'");
    let told = node.hilum_ok(&["retention"]);
    assert!(told.contains("0 received objects of 0 studies,"), "{told}");
    assert_eq!(node.archived_objects().len(), 2);
}

#[test]
fn an_object_that_came_again_is_kept_as_if_it_were_new() {
    let options = NodeOptions::default()
        .setting("HILUM__RETENTION__OBJECTS_DAYS", 30)
        .setting("HILUM__RETENTION__MINIMUM_AGE_DAYS", 3)
        .setting("HILUM__RETENTION__INTERVAL_SECONDS", 86_400);
    let node = Node::start_with(&Site::new("HILUM").sender("SCANNER"), options);
    let sample = Radiograph::default().write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.database.wait_for_rows(1, "select id from workup where state = 'not_routed'");
    age(&node, &sample, 40);
    // Acknowledged by the file that is there already.
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.database.wait_for_rows(1, "select id from event where kind = 'duplicate'");
    assert!(node.hilum_ok(&["retention"]).contains("0 received objects of 0 studies,"));
    assert!(object_of(&node, &sample).exists());
    // Another 40 days later it may go.
    node.database.execute("update workup set last_other_receipt_at = last_other_receipt_at - interval '40 days'");
    assert!(node.hilum_ok(&["retention"]).contains("1 received object of 1 study,"));
    wait_for("its file is gone", PATIENCE, || node.archived_objects().is_empty().then_some(()));
    node.assert_clean_log();
}
