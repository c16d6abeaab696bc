//! When is a study complete? By evidence, which is told.

use serde_json::Value;

use super::{
    hostile::{CR_STORAGE, RawPeer},
    support::*,
};

const DX_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.1.1";

fn one_second() -> String {
    "quiet_seconds = 1".to_owned()
}

fn workup_of(node: &Node, sample: &Sample) -> Value {
    node.database.row(&format!("select * from workup where study_instance_uid = '{}'", sample.study_instance_uid))
}

fn words(row: &Value, column: &str) -> String {
    row[column].as_str().unwrap_or_default().to_owned()
}

/// Waits until a study waits for something that is worth a line of its timeline.
fn wait_until_it_waits_for(node: &Node, sample: &Sample, kind: &str) -> String {
    let query = format!(
        "select e.words from event e join workup w on w.id::text = e.subject_id \
         where e.kind = 'waiting' and e.data ->> 'kind' = '{kind}' and w.study_instance_uid = '{}'",
        sample.study_instance_uid
    );
    words(&node.database.wait_for_rows(1, &query)[0], "words")
}

#[test]
fn heavy_the_same_study_sent_to_two_titles_is_two_workups() {
    let site = Site::new("HILUM")
        .local_ae("RESEARCH")
        .sender("SCANNER")
        .route_with("HILUM", "cxr-untrained", &one_second())
        .route_with("RESEARCH", "cxr-untrained", &one_second());
    let node = Node::start(&site);
    let radiograph = Radiograph::default();
    let sample = radiograph.write(&node.scratch("sent"));
    for called in ["HILUM", "RESEARCH"] {
        storescu_ok(node.dicom_port, "SCANNER", called, &[], &[&sample.path]);
    }
    let workups =
        node.database.wait_for_rows(2, "select * from workup where state = 'answered' order by local_ae_title");
    assert_eq!(
        (words(&workups[0], "local_ae_title"), words(&workups[1], "local_ae_title")),
        ("HILUM".into(), "RESEARCH".into())
    );
    assert_ne!(workups[0]["route_name"], workups[1]["route_name"]);
    assert_eq!(node.database.count("select distinct workup_id from run where state = 'succeeded'"), 2);
    let rendered = node.database.count("select distinct sop_instance_uid from result");
    assert_eq!(rendered, 4, "without destinations a report and a heat map are kept of each, and they share no UID");
    assert_eq!(node.database.count("select id from instance where version = 1"), 2, "each title has its own version 1");

    // A late image at one of them is none of the other's business.
    let late = radiograph.sibling().write(&node.scratch("late"));
    storescu_ok(node.dicom_port, "SCANNER", "RESEARCH", &[], &[&late.path]);
    let again = node.database.wait_for_rows(1, "select * from workup where revision = 2 and state = 'answered'");
    assert_eq!(words(&again[0], "local_ae_title"), "RESEARCH");
    assert_eq!(node.database.count("select id from workup where revision = 1 and state = 'answered'"), 1);
    node.assert_clean_log();
}

#[test]
fn heavy_a_lost_association_is_waited_for_and_a_release_is_enough() {
    let keys = "quiet_seconds = 200\nreleased_quiet_seconds = 1\nlost_quiet_seconds = 300";
    let site = Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", keys);
    let node = Node::start(&site);
    let folder = node.scratch("sent");
    let radiograph = Radiograph { modality: "CR", ..Radiograph::default() };
    let first = radiograph.write(&folder);
    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    assert_eq!(peer.store(CR_STORAGE, &first.sop_instance_uid, &first.data_set_bytes()), 0x0000);
    drop(peer);
    let told = wait_until_it_waits_for(&node, &first, "lost");
    assert!(
        told.contains("1 association(s) lost and not made again") && told.contains("lost_quiet_seconds = 300"),
        "{told}"
    );
    let waiting =
        node.database.row("select extract(epoch from due_at - last_object_at)::int as seconds, * from workup");
    assert_eq!((waiting["seconds"].as_i64(), words(&waiting, "state")), (Some(300), "receiving".into()));
    assert!(node.hilum_ok(&["studies"]).contains("lost and not made again"));
    assert!(node.get("/").text().contains("lost and not made again"), "the page does not say why it waits");

    // The sender comes again, with one image more, and is released.
    let second = radiograph.sibling().write(&folder);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path, &second.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    let workup = workup_of(&node, &first);
    assert_eq!(words(&workup, "completeness_kind"), "released", "{workup:#}");
    assert!(words(&workup, "completeness_reason").contains("released_quiet_seconds = 1"), "{workup:#}");
    assert_eq!(workup["completeness_data"]["objects"], 2);
    assert_eq!(node.database.count("select 1 from event where kind = 'duplicate'"), 1);
    let habit =
        node.database.row("select calling_ae_title, cardinality(longest_gap_seconds) as studies from sender_habit");
    assert_eq!((words(&habit, "calling_ae_title"), habit["studies"].as_i64()), ("SCANNER".into(), Some(1)));
}

#[test]
fn heavy_a_route_requires_what_must_be_there_and_a_person_may_insist() {
    let keys = format!("{}\nrequired = 'modality = \"DX\" and instances >= 2'", one_second());
    let site = Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", &keys);
    let node = Node::start(&site);
    let folder = node.scratch("sent");
    let radiograph = Radiograph::default();
    let first = radiograph.write(&folder);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    let told = wait_until_it_waits_for(&node, &first, "required");
    assert!(told.ends_with("with 1 object(s) the route still requires instances >= 2"), "{told}");
    let second = radiograph.sibling().write(&folder);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&second.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    assert_eq!(words(&workup_of(&node, &first), "completeness_kind"), "released");

    let alone = Radiograph::default().write(&folder);
    let study = alone.study_instance_uid.as_str();
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&alone.path]);
    wait_until_it_waits_for(&node, &alone, "required");
    let nobody = node.hilum(&["study", "complete", study, "--local-ae", "OTHER"]);
    assert!(!nobody.status.success() && said(&nobody).contains("it is receiving at `HILUM`"), "{}", said(&nobody));
    assert!(node.hilum_ok(&["study", "complete", study]).contains("1 workup taken as complete"));
    node.wait_for_workup(study, "answered");
    let workup = workup_of(&node, &alone);
    assert_eq!(words(&workup, "completeness_kind"), "forced", "{workup:#}");
    assert!(words(&workup, "completeness_reason").contains("hilum study complete"), "{workup:#}");
    let timeline = node.hilum_ok(&["timeline", study]);
    assert!(
        timeline.contains("the route still requires instances >= 2") && timeline.contains("wants it complete"),
        "{timeline}"
    );
    let again = node.hilum(&["study", "complete", study]);
    assert!(!again.status.success() && said(&again).contains("complete already"), "{}", said(&again));
    let unknown = node.hilum(&["study", "complete", "1.2.3"]);
    assert!(!unknown.status.success() && said(&unknown).contains("there is no study 1.2.3"));
}

#[test]
fn heavy_late_images_may_be_ignored() {
    let keys = format!("{}\nlate_images = \"ignore\"", one_second());
    let site = Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", &keys);
    let node = Node::start(&site);
    let radiograph = Radiograph::default();
    let first = radiograph.write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    let late = radiograph.sibling().write(&node.scratch("late"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&late.path]);
    let event = node.database.wait_for_rows(1, "select words from event where kind = 'late_objects_ignored'").remove(0);
    let told = words(&event, "words");
    assert!(told.contains("1 late object(s) from SCANNER") && told.contains("late_images = \"ignore\""), "{told}");
    assert_eq!(node.database.count("select id from instance"), 2, "it is kept");
    let workup = workup_of(&node, &first);
    assert_eq!((workup["revision"].as_i64(), words(&workup, "state")), (Some(1), "answered".into()));

    // Within a time: the study counts as complete for longer than that.
    let keys = format!("{}\nlate_images_within_seconds = 3600", one_second());
    node.apply(&Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", &keys));
    node.database.execute("update workup set completed_at = now() - interval '2 hours'");
    let later = radiograph.sibling().sibling().write(&node.scratch("later"));
    wait_for("the node knows the new route", PATIENCE, || {
        (node.log().matches("site configuration read").count() >= 2).then_some(())
    });
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&later.path]);
    node.database.wait_for_rows(2, "select words from event where kind = 'late_objects_ignored'");
    node.database.execute("update workup set completed_at = now()");
    let in_time = radiograph.sibling().sibling().sibling().write(&node.scratch("in-time"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&in_time.path]);
    node.database.wait_for_rows(1, "select id from workup where revision = 2 and state = 'answered'");
}

#[test]
fn heavy_the_sender_is_asked_how_many_instances_it_has() {
    let mut source = Orthanc::start();
    let peer = format!("port = {}\ncount_at_source = true", source.dicom_port);
    let site = Site::new("HILUM").sender_with("SCANNER", &peer).route_with("HILUM", "cxr-untrained", &one_second());
    let node = Node::start(&site);
    let folder = node.scratch("sent");
    let radiograph = Radiograph::default();
    let (first, second) = (radiograph.write(&folder), radiograph.sibling().write(&folder));
    storescu_ok(source.dicom_port, "SCANNER", "PACS", &[], &[&first.path, &second.path]);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    let told = wait_until_it_waits_for(&node, &first, "source_count");
    assert_eq!(told, "waiting: `SCANNER` has 2 instance(s) of the study, 1 are here");
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&second.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    let workup = workup_of(&node, &first);
    assert_eq!(words(&workup, "completeness_kind"), "source_count", "{workup:#}");
    assert_eq!(workup["completeness_data"]["source_count"], 2);

    // It does not know this one; then it cannot be reached at all. Silence decides, and that is said.
    let unknown = Radiograph::default().write(&folder);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&unknown.path]);
    node.wait_for_workup(&unknown.study_instance_uid, "answered");
    let reason = words(&workup_of(&node, &unknown), "completeness_reason");
    assert!(reason.contains("could not be asked how many instances it has: it does not know the study"), "{reason}");
    source.stop();
    let unheard = Radiograph::default().write(&folder);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&unheard.path]);
    node.wait_for_workup(&unheard.study_instance_uid, "answered");
    let workup = workup_of(&node, &unheard);
    assert_eq!(words(&workup, "completeness_kind"), "released", "{workup:#}");
    assert!(words(&workup, "completeness_reason").contains("cannot connect"), "{workup:#}");
}

#[test]
fn heavy_a_commitment_request_lists_what_must_come() {
    let site = Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", "quiet_seconds = 300");
    let node = Node::start(&site);
    let folder = node.scratch("sent");
    let radiograph = Radiograph::default();
    let (first, second) = (radiograph.write(&folder), radiograph.sibling().write(&folder));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&first.path]);
    node.database.wait_for_rows(1, "select id from association where end_kind = 'released'");
    // pynetdicom asks whether both are kept, and holds its association open for the answer.
    let (port, transaction) = (node.dicom_port.to_string(), fresh_uid());
    let listed = [DX_STORAGE, &first.sop_instance_uid, DX_STORAGE, &second.sop_instance_uid];
    let mut arguments = vec!["scu", &port, "HILUM", "SCANNER", "0", "same", &transaction];
    arguments.extend(listed);
    let asking = commitment_script(&arguments).stdout(std::process::Stdio::piped()).spawn().expect("pynetdicom");
    let told = wait_until_it_waits_for(&node, &first, "commitment");
    assert_eq!(told, "waiting: the sender's commitment request lists 2 instance(s), 1 are here");
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&second.path]);
    node.wait_for_workup(&first.study_instance_uid, "answered");
    let workup = workup_of(&node, &first);
    assert_eq!(words(&workup, "completeness_kind"), "commitment", "{workup:#}");
    assert_eq!(words(&workup, "completeness_reason"), "all 2 instance(s) of the sender's commitment request are here");
    let answer = asking.wait_with_output().expect("our own child");
    let both = format!("report 1 {},{} -", first.sop_instance_uid, second.sop_instance_uid);
    assert!(String::from_utf8_lossy(&answer.stdout).contains(&both), "{}", said(&answer));
}

/// Twenty studies that pause teach the node that the next one may pause as well.
#[test]
fn heavy_the_quiet_time_adapts_to_a_sender_that_pauses() {
    let keys = "quiet_seconds = 10\nlost_quiet_seconds = 300";
    let node = Node::start(&Site::new("HILUM").sender("SCANNER").route_with("HILUM", "cxr-untrained", keys));
    let (before, after, next) = (node.scratch("before"), node.scratch("after"), node.scratch("next"));
    for _ in 0..20 {
        let radiograph = Radiograph::default();
        radiograph.write(&before);
        radiograph.sibling().write(&after);
    }
    node.send("SCANNER", &[&before]);
    std::thread::sleep(std::time::Duration::from_secs(6));
    node.send("SCANNER", &[&after]);
    node.database.wait_for_rows(20, "select id from workup where state <> 'receiving'");
    let habit = "select 1 from sender_habit where calling_ae_title = 'SCANNER' and cardinality(longest_gap_seconds) >= 20 \
                 and longest_gap_seconds[20] >= 6";
    node.database.wait_for_rows(1, habit);

    let sample = Radiograph::default().write(&next);
    node.send("SCANNER", &[&next]);
    let complete = "select * from workup where completeness_kind = 'learned'";
    let workup = node.database.wait_for_rows(1, complete).remove(0);
    assert_eq!(words(&workup, "study_instance_uid"), sample.study_instance_uid);
    let reason = words(&workup, "completeness_reason");
    assert!(reason.contains("which `SCANNER` needs by its last 20 studies"), "{reason}");
    let waited = node.database.row(
        "select extract(epoch from completed_at - last_object_at)::float8 as seconds from workup \
         where completeness_kind = 'learned'",
    );
    assert!(waited["seconds"].as_f64().is_some_and(|seconds| seconds > 12.9), "{waited}");
}
