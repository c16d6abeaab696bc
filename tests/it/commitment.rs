//! Storage Commitment with real peers, in both roles, over the death of the node and without Postgres.

use std::path::Path;

use serde_json::json;

use crate::support::*;

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

fn paths(samples: &[Sample]) -> Vec<&Path> {
    samples.iter().map(|sample| sample.path.as_path()).collect()
}

/// pynetdicom asks for these (class, instance); returns what it printed.
fn ask(node: &Node, listen: u16, mode: &str, transaction: &str, instances: &[(&str, &str)]) -> String {
    let (port, listen) = (node.dicom_port.to_string(), listen.to_string());
    let mut arguments = vec!["scu", &port, "HILUM", "SCANNER", &listen, mode, transaction];
    arguments.extend(instances.iter().flat_map(|(class, instance)| [*class, *instance]));
    let output = run(&mut commitment_script(&arguments));
    assert!(output.status.success(), "pynetdicom ended with {}:\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn request_row(node: &Node, transaction: &str, state: &str) -> serde_json::Value {
    let query =
        format!("select * from commitment_request where transaction_uid = '{transaction}' and state = '{state}'");
    node.database.wait_for_rows(1, &query).remove(0)
}

#[rstest::rstest]
#[case::same_association("same")]
#[case::new_association("new")]
fn a_scanner_is_told_what_the_files_say(#[case] mode: &str) {
    let listen = free_port();
    let node = Node::start(&Site::new("HILUM").partner("scanner", "SCANNER", listen));
    let slices = ct_slices(&node.scratch("slices"), 4);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &paths(&slices));
    let uids: Vec<&str> = slices.iter().map(|slice| slice.sop_instance_uid.as_str()).collect();

    let transaction = fresh_uid();
    let heard = ask(&node, listen, mode, &transaction, &[(CT, uids[0]), (CT, uids[1]), (CT, uids[2])]);
    assert_eq!(heard, format!("asked 0000\nreport 1 {} -\n", uids[..3].join(",")));
    let row = request_row(&node, &transaction, "reported");
    assert_eq!(row["calling_ae_title"], "SCANNER");
    assert_eq!(row["local_ae_title"], "HILUM");
    let association = row["association_id"].as_str().expect("an id");
    node.database.wait_for_rows(1, &format!("select 1 from association where id = '{association}'"));

    // One file is cut, one is of another class: both are said, whatever the index says.
    let key = |uid: &str| {
        let row = node.database.row(&format!("select archive_key from instance where sop_instance_uid = '{uid}'"));
        node.archived(row["archive_key"].as_str().expect("a text"))
    };
    let cut = key(uids[0]);
    let length = fs_err::metadata(&cut).expect("a file").len();
    fs_err::OpenOptions::new().write(true).open(&cut).expect("a file").file().set_len(length - 2).expect("shorter");
    let transaction = fresh_uid();
    let mr = "1.2.840.10008.5.1.4.1.1.4";
    let heard = ask(&node, listen, mode, &transaction, &[(CT, uids[0]), (mr, uids[1]), (CT, uids[2])]);
    assert_eq!(heard, format!("asked 0000\nreport 2 {} {}=0110,{}=0119\n", uids[2], uids[0], uids[1]));

    // The same Transaction UID with another list is a mistake; with the same list it is the same question again.
    let heard = ask(&node, listen, mode, &transaction, &[(CT, uids[3])]);
    assert_eq!(heard, format!("asked 0000\nreport 2 - {}=0131\n", uids[3]));

    let story = node.database.rows(&format!(
        "select kind from event where subject_kind = 'commitment' and subject_id = '{}' order by id",
        row["id"].as_str().expect("an id")
    ));
    assert_eq!(story, [json!({"kind": "requested"}), json!({"kind": "evaluated"}), json!({"kind": "reported"})]);
    let list = node.hilum_ok(&["commitments"]);
    assert!(list.contains("reported") && list.contains("SCANNER"), "{list}");
}

/// What is not there is waited for a little, then reported as not there.
#[test]
fn a_missing_instance_is_waited_for_and_then_named() {
    let listen = free_port();
    let node = Node::start(&Site::new("HILUM").partner("scanner", "SCANNER", listen));
    let slices = ct_slices(&node.scratch("slices"), 2);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&slices[0].path]);
    let (port, listen_text, transaction, missing) =
        (node.dicom_port.to_string(), listen.to_string(), fresh_uid(), fresh_uid());
    let late = slices[1].sop_instance_uid.as_str();
    let list = [CT, slices[0].sop_instance_uid.as_str(), CT, late, CT, &missing];
    let arguments = [&["scu", &port, "HILUM", "SCANNER", &listen_text, "new", &transaction][..], &list].concat();
    let mut command = commitment_script(&arguments);
    let asking = std::thread::spawn(move || run(&mut command));
    let waiting = format!(
        "select 1 from commitment_request where transaction_uid = '{transaction}' and last_words like '2 instance(s)%'"
    );
    node.database.wait_for_rows(1, &waiting);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&slices[1].path]);
    let waiting = waiting.replace("'2 inst", "'1 inst");
    node.database.wait_for_rows(1, &waiting);
    node.database.execute(&format!(
        "update commitment_request set created_at = created_at - interval '2 minutes' \
         where transaction_uid = '{transaction}'"
    ));
    let output = asking.join().expect("the peer");
    let heard = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = slices[0].sop_instance_uid.as_str();
    assert_eq!(heard, format!("asked 0000\nreport 2 {first},{late} {missing}=0112\n"), "{}", said(&output));
}

/// The report is owed over a `kill -9` and while the peer cannot be called.
#[test]
fn heavy_a_report_survives_the_node_and_a_wrong_port() {
    let (listen, nobody) = (free_port(), free_port());
    let mut node = Node::start(&Site::new("HILUM").partner("scanner", "SCANNER", nobody));
    let slices = ct_slices(&node.scratch("slices"), 1);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &paths(&slices));
    let (port, listen_text, transaction) = (node.dicom_port.to_string(), listen.to_string(), fresh_uid());
    let uid = slices[0].sop_instance_uid.clone();
    let mut command =
        commitment_script(&["scu", &port, "HILUM", "SCANNER", &listen_text, "new", &transaction, CT, &uid]);
    let asking = std::thread::spawn(move || run(&mut command));
    let failed = format!(
        "select last_words from commitment_request where transaction_uid = '{transaction}' and attempts >= 2 \
         and last_words like '%connect%'"
    );
    node.database.wait_for_rows(1, &failed);
    node.kill_9();
    node.start_again();
    node.apply(&Site::new("HILUM").partner("scanner", "SCANNER", listen));
    let output = asking.join().expect("the peer");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("asked 0000\nreport 1 {uid} -\n"), "{}", said(&output));
    request_row(&node, &transaction, "reported");
    let opened = "select data from event where subject_kind = 'association' and kind = 'opened'";
    let data = node.database.wait_for_rows(1, opened).remove(0);
    let implementation = data["data"]["implementation_version_name"].as_str().expect("a name");
    assert!(implementation.starts_with("PYNETDICOM"), "{implementation}");
    node.terminate();
}

/// Nothing is promised that could be forgotten.
#[test]
fn heavy_without_postgres_a_commitment_is_refused_for_now() {
    let mut postgres = PrivatePostgres::start(true);
    let options = NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() };
    let listen = free_port();
    let mut node = Node::start_with(&Site::new("HILUM").partner("scanner", "SCANNER", listen), options);
    let slices = ct_slices(&node.scratch("slices"), 1);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &paths(&slices));
    let uid = slices[0].sop_instance_uid.as_str();
    postgres.stop();
    let heard = ask(&node, listen, "same", &fresh_uid(), &[(CT, uid)]);
    assert!(heard.starts_with("asked 0110 the database cannot be reached: try again later"), "{heard}");
    postgres.start_again();
    node.wait_until_ready();
    let heard = ask(&node, listen, "same", &fresh_uid(), &[(CT, uid)]);
    assert_eq!(heard, format!("asked 0000\nreport 1 {uid} -\n"));

    // Both this refusal and that of a request that says nothing are rows for the administrator.
    let heard = ask(&node, listen, "same", &fresh_uid(), &[]);
    assert!(heard.starts_with("asked 0115 Referenced SOP Sequence is missing or empty"), "{heard}");
    let rows = node.database.wait_for_rows(2, "select * from refusal where kind = 'operation' order by reason");
    assert_eq!((&rows[0]["reason"], &rows[1]["reason"]), (&"bad_request".into(), &"not_kept".into()));
    assert_eq!(rows[0]["calling_ae_title"], "SCANNER");
    assert!(rows[1]["remedy"].as_str().is_some_and(|words| words.contains("Postgres answers")), "{}", rows[1]);
    let doctor = said(&node.hilum(&["doctor"]));
    for part in ["N-ACTION of Storage Commitment", "0x0115", "0x0110", "see to it that Postgres answers"] {
        assert!(doctor.contains(part), "{part} is not in\n{doctor}");
    }
    assert!((node.metric("hilum_operations_refused_total") - 2.0).abs() < 1e-9);
    node.terminate();
}

#[rstest::rstest]
#[case::same_association("same")]
#[case::new_association("new")]
fn hilum_commit_hears_the_peer_whichever_way_it_answers(#[case] mode: &str) {
    let node = Node::prepare(NodeOptions::default());
    let peer = CommitmentScp::start("KEEPER", node.dicom_port, "HILUM", mode);
    node.hilum_ok(&["migrate"]);
    node.apply(&Site::new("HILUM").partner("keeper", "KEEPER", peer.port));
    let mut node = node;
    node.run();
    node.wait_until_ready();
    let slices = ct_slices(&node.scratch("slices"), 2);
    let file = |slice: &Sample| slice.path.to_str().expect("a plain path").to_owned();
    let (first, second) = (file(&slices[0]), file(&slices[1]));
    let table = node.hilum_ok(&["commit", "keeper", &first, &second]);
    assert!(table.lines().filter(|line| line.ends_with("kept")).count() == 2, "{table}\n{}", peer.log());
    wait_for("the peer hears our answer", PATIENCE, || peer.log().contains("reported 0000").then_some(()));

    let lost = ct_slice(&node.scratch("slices"), &fresh_uid(), &fresh_uid(), 1);
    let mut object = lost.object();
    set_uids(&mut object, &lost.study_instance_uid, &lost.series_instance_uid, "1.2.3.0");
    let lost = Sample::write(&object, &node.scratch("lost"));
    let output = node.hilum(&["commit", "keeper", &file(&lost)]);
    let words = said(&output);
    assert!(!output.status.success() && words.contains("0x0112 (no such object instance)"), "{words}");
    assert!(words.contains("does not keep 1 instance"), "{words}");
}

/// Orthanc asks us, and we ask Orthanc; it reports on associations of its own.
#[test]
fn orthanc_and_hilum_commit_to_each_other() {
    let orthanc = Orthanc::start();
    let node = Node::start(&Site::new("HILUM").partner("pacs", "PACS", orthanc.dicom_port));
    orthanc.knows("HILUM", node.dicom_port);
    let slices = ct_slices(&node.scratch("slices"), 3);
    storescu_ok(orthanc.dicom_port, "SCANNER", "PACS", &[], &paths(&slices));
    storescu_ok(node.dicom_port, "PACS", "HILUM", &[], &paths(&slices));

    let files: Vec<&str> = slices.iter().map(|slice| slice.path.to_str().expect("a plain path")).collect();
    let table = node.hilum_ok(&[&["commit", "pacs"][..], &files].concat());
    assert_eq!(table.lines().filter(|line| line.ends_with("kept")).count(), 3, "{table}");
    let study = slices[0].study_instance_uid.as_str();
    let table = node.hilum_ok(&["commit", "pacs", "--study", study]);
    assert_eq!(table.lines().filter(|line| line.ends_with("kept")).count(), 3, "{table}");
    let stranger = ct_slice(&node.scratch("stranger"), &fresh_uid(), &fresh_uid(), 1);
    let output = node.hilum(&["commit", "pacs", stranger.path.to_str().expect("a plain path")]);
    assert!(!output.status.success() && said(&output).contains("no such object instance"), "{}", said(&output));

    let listed: Vec<_> = slices.iter().map(|slice| json!([CT, slice.sop_instance_uid])).collect();
    let answer = orthanc.send("POST", "/modalities/hilum/storage-commitment", &json!({ "DicomInstances": listed }));
    let path = answer.json()["Path"].as_str().expect("a path").to_owned();
    let report = wait_for("Orthanc has our report", PATIENCE, || {
        Some(orthanc.get(&path)).filter(|report| report["Status"] != "Pending")
    });
    assert_eq!(report["Status"], "Success", "{report}");
    assert_eq!(report["Success"].as_array().map(Vec::len), Some(3), "{report}");
}
