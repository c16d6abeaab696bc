//! Who may do what: refusals with their remedies, configuration, and nodes without Postgres.

use std::time::Duration;

use crate::support::*;

const AT_ONCE: Duration = Duration::from_secs(10);

fn quiet_site() -> Site {
    Site::new("HILUM").sender("SCANNER").route("cxr-untrained", 1, &[])
}

#[test]
fn heavy_a_refusal_names_its_remedy_which_works_without_a_restart() {
    let node = Node::start(&quiet_site().sender_at("ELSEWHERE", "192.0.2.9"));
    let port = node.dicom_port;
    let process = node.process_id();
    assert!(echoscu(port, "SCANNER", "HILUM").status.success());

    for (calling, called, reason) in [
        ("STRANGER", "HILUM", "Calling AE Title Not Recognized"),
        ("SCANNER", "HILLUM", "Called AE Title Not Recognized"),
        ("ELSEWHERE", "HILUM", "Calling AE Title Not Recognized"),
    ] {
        let output = echoscu(port, calling, called);
        let words = said(&output);
        assert!(!output.status.success(), "{calling} to {called} is accepted");
        assert!(words.contains("Rejected Permanent") && words.contains(reason), "{calling} to {called}:\n{words}");
    }
    let refused = node.database.wait_for_rows(3, "select * from refusal order by last_at");
    for (row, (expected, received, remedy)) in refused.iter().zip([
        (
            "`SCANNER`",
            "`STRANGER` at 127.0.0.1",
            "hilum peer add NAME --ae-title STRANGER --host 127.0.0.1 --may-store",
        ),
        ("`HILUM`", "`HILLUM`", "the nearest known is `HILUM`"),
        ("`192.0.2.9`", "127.0.0.1", "correct the host of that peer"),
    ]) {
        for (column, part) in [("expected", expected), ("received", received), ("remedy", remedy)] {
            assert!(row[column].as_str().is_some_and(|words| words.contains(part)), "{column} of {row:#}");
        }
    }
    let listed = node.hilum_ok(&["refusals"]);
    assert_eq!(listed.lines().count(), 4, "{listed}");
    for part in ["STRANGER", "HILLUM", "ELSEWHERE", "hilum peer add NAME"] {
        assert!(listed.contains(part), "{part} is not in\n{listed}");
    }
    assert!((node.metric("hilum_associations_rejected_total") - 3.0).abs() < 1e-9);

    // The remedy as it was told, and back again.
    node.hilum_ok(&["peer", "add", "stranger", "--ae-title", "STRANGER", "--host", "127.0.0.1", "--may-store"]);
    wait_for("the new peer is admitted", AT_ONCE, || echoscu(port, "STRANGER", "HILUM").status.success().then_some(()));
    let sample = Radiograph::default().write(&node.scratch("sent"));
    storescu_ok(port, "STRANGER", "HILUM", &[], &[&sample.path]);
    node.hilum_ok(&["peer", "remove", "stranger"]);
    wait_for("the removed peer is refused", AT_ONCE, || {
        (!echoscu(port, "STRANGER", "HILUM").status.success()).then_some(())
    });
    let again = storescu(port, "STRANGER", "HILUM", &[], &[&sample.path]);
    assert!(!again.status.success() && said(&again).contains("Calling AE Title Not Recognized"), "{}", said(&again));
    assert_eq!(node.process_id(), process);
    node.assert_clean_log();
}

#[test]
fn heavy_what_is_no_chest_image_is_refused_in_negotiation() {
    let mut node = Node::start(&quiet_site());
    let sample = mr_image(&node.scratch("sent"));
    let output = storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    let words = said(&output);
    assert!(!output.status.success(), "MR is accepted:\n{words}");
    assert!(words.to_lowercase().contains("presentation context"), "{words}");
    node.terminate();
    assert_eq!(node.database.count("select id from instance"), 0);
    assert!(node.archived_objects().is_empty());
}

#[test]
fn every_problem_of_a_configuration_is_told_at_once() {
    let node = Node::prepare(NodeOptions::default());
    let folder = node.scratch("bad");
    let file = folder.join("hilum.toml");
    fs_err::write(
        &file,
        "[dicom]\nmax_associations = 0\nlisten = \"nowhere\"\n\n[inference]\nmodel_dir = \"x\"\n\n[http]\n\
         listen = \"0.0.0.0:8088\"\n",
    )
    .expect("a file");
    for command in ["check-config", "serve"] {
        let output =
            run(std::process::Command::new(env!("CARGO_BIN_EXE_hilum")).arg("--config").arg(&file).arg(command));
        let words = said(&output);
        assert_eq!(output.status.code(), Some(64), "{command}:\n{words}");
        for part in ["dicom.max_associations", "dicom.listen", "model_dir", "http.listen"] {
            assert!(words.contains(part), "{command} does not tell of {part}:\n{words}");
        }
        assert!(words.contains("hilum.toml:2:"), "{command} does not give the line:\n{words}");
    }
    assert!(node.hilum_ok(&["check-config"]).contains("the configuration is good"));
    let printed = node.hilum_ok(&["check-config", "--print"]);
    assert!(printed.contains(&format!("127.0.0.1:{}", node.dicom_port)), "{printed}");
}

#[test]
fn apply_changes_what_it_says_and_nothing_on_a_dry_run() {
    let node = Node::prepare(NodeOptions::default());
    node.hilum_ok(&["migrate"]);
    let folder = node.scratch("sites");
    let file = folder.join("site.toml");
    fs_err::write(&file, quiet_site().sender("SECOND").text()).expect("a file");
    let path = file.to_str().expect("a plain path");

    let dry = node.hilum_ok(&["apply", path, "--dry-run"]);
    assert!(dry.contains("+ peer `second`") && dry.contains("nothing has been changed"), "{dry}");
    assert_eq!(node.database.count("select name from peer"), 0);
    let done = node.hilum_ok(&["apply", path]);
    assert!(done.contains("+ peer `second`") && done.contains("without a restart"), "{done}");
    assert_eq!(node.database.count("select name from peer"), 2);
    assert_eq!(node.database.count("select id from event where kind = 'changed'"), 1);
    let again = node.hilum_ok(&["apply", path]);
    assert!(again.contains("nothing changes"), "{again}");
    assert_eq!(node.database.count("select id from event where kind = 'changed'"), 1);

    let contradictory = quiet_site().pacs("pacs", "PACS", 104).route("cxr-untrained", 1, &["nowhere", "elsewhere"]);
    fs_err::write(&file, contradictory.text()).expect("a file");
    let output = node.hilum(&["apply", path]);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(64), "{words}");
    assert!(words.contains("nowhere") && words.contains("elsewhere"), "{words}");
    assert_eq!(node.database.count("select name from peer"), 2, "a refused site file changes nothing");
}

#[test]
fn serve_without_its_schema_says_which_command_is_missing() {
    let node = Node::prepare(NodeOptions::default());
    let output = node.hilum(&["serve"]);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("hilum migrate"), "{words}");
}

#[test]
fn heavy_without_postgres_the_last_known_site_is_served() {
    let mut postgres = PrivatePostgres::start(true);
    let options = NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() };
    let mut node = Node::start_with(&quiet_site(), options);
    node.terminate();
    postgres.stop();

    node.run();
    node.wait_until_listening();
    let ready = node.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().to_lowercase().contains("postgres"), "{}", ready.text());
    let sample = Radiograph::default().write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    let stranger = said(&echoscu(node.dicom_port, "STRANGER", "HILUM"));
    assert!(stranger.contains("Rejected Permanent"), "{stranger}");
    assert_eq!(node.archived_objects().len(), 1);

    postgres.start_again();
    node.wait_until_ready();
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    assert_eq!(node.archived_objects().len(), 1);
    node.terminate();
}

#[test]
fn heavy_without_postgres_and_site_everybody_is_asked_to_come_back() {
    let postgres = PrivatePostgres::start(false);
    let mut node = Node::prepare(NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() });
    postgres.stop();
    node.run();
    node.wait_until_listening();
    let words = said(&echoscu(node.dicom_port, "SCANNER", "HILUM"));
    assert!(words.contains("Rejected Transient") && words.contains("Temporary Congestion"), "{words}");
    let ready = node.get("/readyz").text();
    assert!(ready.contains("no site configuration was ever read"), "{ready}");
    node.terminate();
}
