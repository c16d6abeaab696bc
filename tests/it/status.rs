//! What the node shows of itself, and that no patient is in it.

use std::time::Duration;

use crate::support::*;

const NAME: &str = "Quartermain^Zebulon";
const PATIENT_ID: &str = "ZQ-90817263";

#[test]
fn heavy_pages_metrics_and_logs_tell_the_story_without_the_patient() {
    let orthanc = Orthanc::start();
    let options = NodeOptions::default().setting("HILUM__LOG__LEVEL", "debug");
    let mut node = Node::start_with(&Site::usual(orthanc.dicom_port), options);
    let before: Vec<f64> = COUNTED.iter().map(|(name, _)| node.metric(name)).collect();
    let radiograph =
        Radiograph { rows: 640, columns: 600, patient_name: NAME, patient_id: PATIENT_ID, ..Radiograph::default() };
    let sample = radiograph.write(&node.scratch("sent"));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    node.wait_for_deliveries(&sample.study_instance_uid, SENT_OF_A_RADIOGRAPH);
    // Who is refused is told, too.
    assert!(!echoscu(node.dicom_port, "STRANGER", "HILUM").status.success());

    let study = &sample.study_instance_uid;
    let page = format!("/studies/{study}");
    let api = format!("/api/studies/{study}");
    let front = node.get("/");
    assert_eq!(front.status, 200);
    let text = front.text();
    for part in [study.as_str(), ">answered<", ">analysed<", "SCANNER", "cxr-untrained"] {
        assert!(text.contains(part), "{part} is not on the front page:\n{text}");
    }
    let shown = node.get(&page).text();
    for part in [study.as_str(), "UNTRAINED TEST WEIGHTS", "route-10", "pacs", "first object from SCANNER"] {
        assert!(shown.contains(part), "{part} is not on the page of the study:\n{shown}");
    }
    assert_eq!(node.get(&api).json()["study_instance_uid"], *study);
    assert_eq!(node.get("/studies/1.2.3.4").status, 404);
    assert_eq!(node.get("/healthz").status, 200);
    let preview = shown.split('"').find(|part| part.starts_with("/results/")).expect("the heat map is shown");
    let png = node.get(preview);
    assert!(png.head.contains("image/png") && png.body.starts_with(b"\x89PNG"), "{}", png.head);

    for ((name, more), before) in COUNTED.iter().zip(before) {
        // Runs happen in another process and are counted a moment later.
        let moved = || ((node.metric(name) - before - more).abs() < 1e-9).then_some(());
        wait_for(&format!("{name}, which was {before}, has grown by {more}"), Duration::from_secs(10), moved);
    }

    let printed: Vec<(String, String)> =
        [vec!["studies"], vec!["runs"], vec!["deliveries"], vec!["timeline", study], vec!["refusals"]]
            .iter()
            .map(|arguments| (arguments.join(" "), node.hilum_ok(arguments)))
            .collect();
    let mut everything: Vec<(String, String)> =
        ["/", &page, &api, "/api/studies", "/api/runs", "/api/backlog", "/api/doctor", "/metrics"]
            .iter()
            .map(|path| ((*path).to_owned(), node.get(path).text()))
            .collect();
    everything.push(("/studies/1.2.3.4".to_owned(), node.get("/studies/1.2.3.4").text()));
    everything.extend(printed);
    node.terminate();
    everything.push(("the log".to_owned(), node.log()));
    everything.push(("names in the archive".to_owned(), format!("{:?}", node.archived_objects())));
    for (what, text) in everything {
        for secret in ["Quartermain", "Zebulon", PATIENT_ID, "19800101", "ACC-0815"] {
            assert!(!text.contains(secret), "{what} shows {secret}:\n{text}");
        }
    }
    // The patient is where it belongs: the search above would have found it.
    let received = orthanc.instances_of(study);
    assert!(received.iter().all(|one| one.tag("PatientName") == NAME && one.tag("PatientID") == PATIENT_ID));
    node.assert_clean_log();
}

/// Counters, and how far one analysed radiograph and one refusal move them.
const COUNTED: [(&str, f64); 7] = [
    ("hilum_associations_accepted_total", 1.0),
    ("hilum_associations_rejected_total", 1.0),
    ("hilum_objects_stored_total", 1.0),
    ("hilum_runs_started_total", 1.0),
    ("hilum_runs_ended_total", 1.0),
    ("hilum_deliveries_ended_total", SENT_OF_A_RADIOGRAPH as f64),
    ("hilum_infer_restarts_total", 0.0),
];
