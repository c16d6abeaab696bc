//! The association doctor: every refusal is a row with its remedy, which `hilum doctor` carries out; and what peers
//! accept is found out and kept.

use std::{io::Write as _, net::TcpStream, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    hostile::{RawPeer, plain_header},
    support::*,
};

const CR: &str = "1.2.840.10008.5.1.4.1.1.1";
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const MR: &str = "1.2.840.10008.5.1.4.1.1.4";
const SR: &str = "1.2.840.10008.5.1.4.1.1.88.33";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const MPEG2: &str = "1.2.840.10008.1.2.4.100";

fn quiet_site() -> Site {
    Site::new("HILUM").sender("SCANNER").route("cxr-untrained", 1, &[])
}

/// `hilum doctor --json`, which ends with 1 when it has found something.
#[track_caller]
fn doctor(node: &Node, arguments: &[&str]) -> (Value, bool) {
    let output = node.hilum(&[&["doctor", "--json"], arguments].concat());
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    (found, output.status.success())
}

fn check<'a>(found: &'a Value, name: &str) -> &'a Value {
    let checks = found["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {found:#}"))
}

fn propose(port: u16, calling: &str, contexts: &[String]) -> String {
    let python = std::env::var_os("HILUM_PEERS_PYTHON").expect("`make setup` and `make test` set HILUM_PEERS_PYTHON");
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/propose.py");
    let output = run(Command::new(python).arg(script).args([&port.to_string(), "HILUM", calling]).args(contexts));
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn heavy_who_was_refused_is_one_cause_and_the_doctor_lets_him_in() {
    let node = Node::start(&quiet_site());
    let (found, well) = doctor(&node, &[]);
    assert!(well, "nothing is wrong with a new node: {found:#}");
    for _ in 0..5 {
        assert!(!echoscu(node.dicom_port, "SCANNER2", "HILUM").status.success());
    }
    let counted = "select * from refusal where calling_ae_title = 'SCANNER2' and count = 5";
    let row = node.database.wait_for_rows(1, counted).remove(0);
    assert_eq!((row["kind"].as_str(), row["reason"].as_str()), (Some("association"), Some("calling_ae_title")));
    assert_eq!(node.database.count("select id from refusal"), 1);
    let remedy = row["remedy"].as_str().expect("words");
    for part in ["the nearest known is `SCANNER` from 127.0.0.1", "hilum peer add NAME --ae-title SCANNER2"] {
        assert!(remedy.contains(part), "{remedy}");
    }
    assert_eq!(node.database.count("select id from association where calling_ae_title = 'SCANNER2'"), 0);

    let told = node.hilum(&["doctor", "--since", "1h"]);
    let words = said(&told);
    assert_eq!(told.status.code(), Some(1), "{words}");
    for part in ["open ", "5 × association from `SCANNER2` at 127.0.0.1 calling `HILUM`", "remedy ", "1 problem found"]
    {
        assert!(words.contains(part), "{part:?} is not in\n{words}");
    }
    let id = row["id"].to_string();
    let allowed = node.hilum_ok(&["doctor", "allow", &id]);
    assert!(allowed.contains("+ peer `scanner2`"), "{allowed}");
    let audit = node.database.row("select words, data from event where subject_kind = 'site' and kind = 'allowed'");
    assert!(audit["words"].as_str().expect("words").contains("+ peer `scanner2`"), "{audit}");
    assert!(audit["data"]["by"].as_str().expect("words").contains("uid "), "{audit}");
    let again = node.hilum(&["doctor", "allow", &id]);
    assert!(!again.status.success() && said(&again).contains("allowed already"), "{}", said(&again));
    let unknown = node.hilum(&["doctor", "allow", "4711"]);
    assert!(said(&unknown).contains("there is no refusal 4711"), "{}", said(&unknown));

    wait_for("the new peer is admitted", PATIENCE, || {
        echoscu(node.dicom_port, "SCANNER2", "HILUM").status.success().then_some(())
    });
    let (found, well) = doctor(&node, &[]);
    assert!(well && found["problems"] == 0, "it is mended: {found:#}");
    assert_eq!(found["causes"][0]["refusals"][0]["mended"], true);
    node.assert_clean_log();
}

#[test]
fn heavy_refused_contexts_and_objects_say_what_would_be_taken() {
    let node = Node::start(&quiet_site());
    let accepted = propose(
        node.dicom_port,
        "SCANNER",
        &[
            format!("{MR}={EXPLICIT}"),
            format!("{CT}={MPEG2}"),
            format!("{CT}={EXPLICIT}"),
            format!("{CR}={MPEG2}"),
            format!("1.2.3.4.5={EXPLICIT}"),
        ],
    );
    assert_eq!(accepted, "1");
    let rows = node.database.wait_for_rows(4, "select * from refusal where kind = 'context' order by sop_class_uid");
    let of = |uid: &str| rows.iter().find(|row| row["sop_class_uid"] == uid).expect("a row for each");
    assert_eq!(of(MR)["reason"], "abstract_syntax");
    assert!(of(MR)["received"].as_str().is_some_and(|words| words.starts_with("MR Image Storage (")), "{}", of(MR));
    assert!(of(MR)["expected"].as_str().is_some_and(|words| words.contains("CT Image Storage")), "{}", of(MR));
    assert_eq!((&of(CR)["reason"], &of(CR)["harmless"]), (&"transfer_syntaxes".into(), &false.into()));
    assert!(of(CR)["remedy"].as_str().is_some_and(|words| words.contains("convert to Explicit VR")), "{}", of(CR));
    assert_eq!(of(CT)["harmless"], true, "CT is accepted in another context");
    assert!((node.metric("hilum_contexts_refused_total") - 4.0).abs() < 1e-9);
    // What it offered is kept for `hilum peer probe`.
    let offer = node.database.row("select contexts from peer_offer where calling_ae_title = 'SCANNER'");
    assert_eq!(offer["contexts"].as_array().map(Vec::len), Some(5), "{offer}");
    let shown = said(&node.hilum(&["peer", "probe", "scanner"]));
    for part in ["its latest request to us", "MR Image Storage", "refused", "only calls us"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }

    // Another UID in the data set than in the command; and a UID that is none, which no handler ever sees.
    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    let uid = fresh_uid();
    assert_eq!(peer.store(CR, &uid, &plain_header(CR, &fresh_uid())), 0xA900);
    assert_eq!(peer.store(CR, "../../etc/passwd", &plain_header(CR, &uid)), 0x0117);
    let rows = node.database.wait_for_rows(2, "select * from refusal where kind = 'object' order by reason");
    assert_eq!((&rows[0]["reason"], &rows[1]["reason"]), (&"0x0117".into(), &"0xA900".into()));
    assert_eq!(rows[1]["example"], uid);
    assert!(rows[1]["remedy"].as_str().is_some_and(|words| words.contains("repair the object")), "{}", rows[1]);
    assert!((node.metric("hilum_objects_refused_total") - 2.0).abs() < 1e-9);

    let api = node.get("/api/doctor").json();
    assert_eq!(api["problems"], 4, "two reasons for contexts, two for objects: {api:#}");
    let page = node.get("/").text();
    let listed = said(&node.hilum(&["doctor", "--peer", "scanner"]));
    for part in ["MR Image Storage", "repair the object", "0xA900"] {
        assert!(page.contains(part) && listed.contains(part), "{part} is missing in\n{page}\nor\n{listed}");
    }
    node.assert_clean_log();
}

#[test]
fn heavy_a_port_scan_is_a_row_and_costs_nobody_anything() {
    let node = Node::start(&quiet_site());
    for _ in 0..30 {
        drop(TcpStream::connect(("127.0.0.1", node.dicom_port)).expect("the node listens"));
    }
    for _ in 0..20 {
        let mut stream = TcpStream::connect(("127.0.0.1", node.dicom_port)).expect("the node listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("the node reads");
        // Until the node has hung up.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    node.database.wait_for_rows(1, "select id from refusal where reason = 'no_request' and count = 30 and harmless");
    node.database.wait_for_rows(1, "select id from refusal where reason = 'malformed_request' and count = 20");
    assert_eq!(node.database.count("select id from refusal"), 2);
    let (found, _) = doctor(&node, &[]);
    assert_eq!(found["causes"].as_array().map(Vec::len), Some(2), "{found:#}");
    assert_eq!(found["problems"], 1, "who sends nothing has lost nothing: {found:#}");
    let text = said(&node.hilum(&["doctor", "allow", &found["causes"][0]["refusals"][0]["id"].to_string()]));
    assert!(text.contains("cannot be allowed by a change here"), "{text}");
    node.assert_clean_log();
}

#[test]
fn heavy_refusals_wait_for_postgres_and_none_is_lost_or_doubled() {
    let mut postgres = PrivatePostgres::start(true);
    let options = NodeOptions { database: Some(postgres.fresh_database()), ..NodeOptions::default() };
    let mut node = Node::start_with(&quiet_site(), options);
    postgres.stop();
    for _ in 0..7 {
        assert!(said(&echoscu(node.dicom_port, "STRANGER", "HILUM")).contains("Rejected Permanent"));
    }
    let output = node.hilum(&["doctor"]);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("problem  postgres:") && words.contains("node, dicom listener"), "{words}");
    postgres.start_again();
    node.database.wait_for_rows(1, "select id from refusal where calling_ae_title = 'STRANGER' and count = 7");
    assert!(node.metric("hilum_refusals_dropped_total").abs() < 1e-9);
    node.terminate();
}

#[test]
fn heavy_the_doctor_tells_which_part_is_ill() {
    let dead_port = free_port();
    let mut node = Node::start(&quiet_site().pacs("pacs", "PACS", dead_port));
    let (found, well) = doctor(&node, &[]);
    assert!(!well);
    let pacs = check(&found, "peer `pacs`");
    assert_eq!(pacs["state"], "problem");
    assert!(pacs["words"].as_str().is_some_and(|words| words.contains("check that the peer is running")), "{pacs}");
    assert_eq!(check(&found, "peer `scanner`")["state"], "note");
    for name in ["configuration", "postgres", "archive", "bundle `cxr-untrained`", "node, dicom listener", "open work"]
    {
        assert_eq!(check(&found, name)["state"], "ok", "{found:#}");
    }
    assert_eq!(found["problems"], 1, "{found:#}");

    let weights = node.models_folder.join("cxr-untrained/manifest.toml");
    fs_err::write(weights, "name = 5").expect("a manifest");
    node.terminate();
    let (found, _) = doctor(&node, &[]);
    assert_eq!(check(&found, "bundle `cxr-untrained`")["state"], "problem");
    let stopped = check(&found, "node");
    assert!(stopped["words"].as_str().is_some_and(|words| words.contains("hilum serve")), "{stopped}");
    let unknown = said(&node.hilum(&["doctor", "--peer", "nobody"]));
    assert!(unknown.contains("there is no peer `nobody`; known: `pacs`, `scanner`"), "{unknown}");
}

#[test]
fn heavy_a_destination_that_takes_no_reports_is_found_out() {
    // dcmtk's storescp that answers to what a profile names.
    let folder = temporary_folder();
    let profile = folder.path().join("storescp.cfg");
    fs_err::write(
        &profile,
        "[[TransferSyntaxes]]\n[Uncompressed]\nTransferSyntax1 = LittleEndianExplicit\n\
         [[PresentationContexts]]\n[Images]\n\
         PresentationContext1 = VerificationSOPClass\\Uncompressed\n\
         PresentationContext2 = SecondaryCaptureImageStorage\\Uncompressed\n\
         [[Profiles]]\n[Default]\nPresentationContexts = Images\n",
    )
    .expect("a file");
    let port = free_port();
    let mut storescp = Command::new("storescp")
        .args(["--config-file", profile.to_str().expect("a plain path"), "Default", "--output-directory"])
        .arg(folder.path())
        .arg(port.to_string())
        .spawn()
        .expect("storescp is installed");
    wait_for("storescp listens", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
    let node = Node::start(&quiet_site().pacs("pacs", "PACS", port));
    let (found, _) = doctor(&node, &["--peer", "pacs"]);
    storescp.kill().expect("our own child");
    storescp.wait().expect("our own child");
    let pacs = check(&found, "peer `pacs`");
    let words = pacs["words"].as_str().expect("words");
    assert!(words.starts_with("does not take Comprehensive SR Storage (1.2.840.10008.5.1.4.1.1.88.33)"), "{pacs}");
}

#[test]
fn heavy_what_peers_accept_is_found_out_kept_and_compared() {
    let orthanc = Orthanc::start();
    let storescp = StoreScp::start();
    let node = Node::start(&quiet_site().pacs("pacs", "PACS", orthanc.dicom_port));
    let output = node.hilum_ok(&["peer", "probe", "pacs", "--json"]);
    let found: Value = serde_json::from_str(&output).expect("JSON");
    let probe = &found["probe"];
    let in_sr = probe["accepted"][SR].as_array().expect("Orthanc takes reports");
    assert!(in_sr.contains(&EXPLICIT.into()), "{probe:#}");
    assert_eq!((&probe["echo_status"], &probe["failures"]), (&0.into(), &Value::Array(Vec::new())));
    assert!(
        probe["implementation_version_name"].as_str().is_some_and(|name| name.starts_with("OFFIS_DCMTK_")),
        "{probe:#}"
    );
    assert!(probe["proposed_contexts"].as_u64().is_some_and(|count| count > 256), "several associations: {probe:#}");
    assert_eq!(found["changes"], Value::Null, "there was none before");
    let words = node.hilum_ok(&["peer", "probe", "pacs"]);
    for part in ["C-ECHO: 0x0000 (success)", "Comprehensive SR Storage", "nothing has changed since the last probe"] {
        assert!(words.contains(part), "{part} is not in\n{words}");
    }
    // Another program in its place.
    let port = storescp.port.to_string();
    let words = node.hilum_ok(&["peer", "probe", "pacs", "--port", &port]);
    for part in ["since the last probe:", "- CT Image Storage (1.2.840.10008.5.1.4.1.1.2) in JPEG 2000"] {
        assert!(words.contains(part), "{part} is not in\n{words}");
    }
    assert_eq!(node.database.count("select peer from peer_probe where previous is not null"), 1);
    node.assert_clean_log();
}

#[test]
fn heavy_peers_that_reject_break_off_or_keep_silent_are_explained() {
    let node = Node::start(&quiet_site().pacs("pacs", "PACS", 104));
    let probe = |port: u16| {
        let output = node.hilum(&["peer", "probe", "pacs", "--port", &port.to_string(), "--timeout", "1"]);
        assert_eq!(output.status.code(), Some(1));
        said(&output)
    };
    // Hilum itself answers to HILUM only.
    let words = probe(node.dicom_port);
    assert!(words.contains("does not answer to the called AE title `PACS`"), "{words}");
    assert!(probe(free_port()).contains("connection refused"));

    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let words = probe(silent.local_addr().expect("a port").port());
    assert!(words.contains("does not answer the association request within 1 s"), "{words}");

    let rude = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = rude.local_addr().expect("a port").port();
    let hanging_up = std::thread::spawn(move || {
        for stream in rude.incoming().take(5) {
            let mut stream = stream.expect("a connection");
            stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            // A-ABORT by the service provider (PS3.8 section 9.3.8).
            let _ = stream.write_all(&[7, 0, 0, 0, 0, 4, 0, 0, 2, 0]);
        }
    });
    let words = probe(port);
    assert!(words.contains("ended during the association request: aborted by the service provider"), "{words}");
    hanging_up.join().expect("it ends after it was asked in halves");
    assert_eq!(node.database.count("select peer from peer_probe"), 0, "nothing was found out");
    let unknown = said(&node.hilum(&["peer", "probe", "nobody"]));
    assert!(unknown.contains("there is no peer `nobody`"), "{unknown}");
}
