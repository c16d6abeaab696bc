//! Data sets on the command line: exported from the archive, checked, evaluated, calibrated.

use std::fmt::Write as _;

use crate::support::*;

/// Ten films of ten patients in the archive, and what people say of them.
fn labelled(node: &Node) -> (Vec<Sample>, String) {
    let sent = node.scratch("sent");
    let mut labels = "uid,label,split\n".to_owned();
    let mut samples = Vec::new();
    for number in 0..10 {
        let patient_id: &'static str =
            ["PAT-0", "PAT-1", "PAT-2", "PAT-3", "PAT-4", "PAT-5", "PAT-6", "PAT-7", "PAT-8", "PAT-9"][number];
        let film = Radiograph { rows: 600, columns: 560, patient_id, seed: number as u32 + 1, ..Radiograph::default() };
        let sample = film.write(&sent);
        // By study or by image.
        let uid = if number.is_multiple_of(2) { &sample.study_instance_uid } else { &sample.sop_instance_uid };
        let label = if number.is_multiple_of(3) { "covid" } else { "normal" };
        writeln!(labels, "{uid},{label},{}", if number < 5 { "validation" } else { "test" }).unwrap();
        samples.push(sample);
    }
    let files: Vec<&std::path::Path> = samples.iter().map(|sample| sample.path.as_path()).collect();
    node.send("SCANNER", &files);
    node.database.wait_for_rows(10, "select 1 from instance where not own_output");
    (samples, labels)
}

#[test]
fn heavy_a_data_set_is_exported_checked_evaluated_and_calibrated_on() {
    let node = Node::start(&Site::usual(free_port()));
    let (samples, labels) = labelled(&node);
    let folder = node.scratch("work");
    let at = |name: &str| folder.join(name).to_str().expect("a plain path").to_owned();

    // A label of what is not there is named, and everything else is exported.
    fs_err::write(at("labels.csv"), format!("{labels}1.2.3.4,covid,test\n")).unwrap();
    let output = node.hilum(&["dataset", "export", "--labels", &at("labels.csv"), "--out", &at("half")]);
    assert!(!output.status.success() && said(&output).contains("1.2.3.4: no radiograph of it"), "{}", said(&output));
    fs_err::write(at("labels.csv"), &labels).unwrap();
    let words = node.hilum_ok(&["dataset", "export", "--labels", &at("labels.csv"), "--out", &at("set")]);
    assert!(words.contains("10 images in"), "{words}");
    let list = fs_err::read_to_string(at("set/list.csv")).unwrap();
    assert_eq!(list.lines().count(), 11, "{list}");
    let names: Vec<String> =
        samples.iter().flat_map(|of| [of.study_instance_uid.clone(), of.sop_instance_uid.clone()]).collect();
    for secret in names.iter().map(String::as_str).chain(["PAT-"]) {
        assert!(!list.contains(secret), "{secret} is in {list}");
    }
    let again = node.hilum(&["dataset", "export", "--labels", &at("labels.csv"), "--out", &at("set")]);
    assert!(said(&again).contains("is not empty"), "{}", said(&again));

    let words = node.hilum_ok(&["dataset", "check", &at("set")]);
    assert!(words.contains("10 images of 10 patients") && words.contains("by site"), "{words}");

    // The labels are no classes of the bundle, and the error says how to go on.
    let data = at("set");
    let evaluate = ["evaluate", "cxr-untrained", "--data", &data, "--resamples", "100", "--out"];
    let out = at("report");
    let map = ["--map", "covid=COVID-19", "--map", "*=No COVID-19 pattern"];
    let output = node.hilum(&[&evaluate[..], &[&out]].concat());
    assert!(said(&output).contains("--map \"covid=CLASS\""), "{}", said(&output));
    node.bundle("other", &[]);
    let words = node.hilum_ok(&[&evaluate[..], &[&out, "--compare", "other", "--write"], &map[..]].concat());
    for expected in
        ["UNTRAINED TEST WEIGHTS", "5 images of 5 patients", "within SCANNER", "figures are in the manifest"]
    {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    let report: serde_json::Value = serde_json::from_slice(&fs_err::read(at("report/report.json")).unwrap()).unwrap();
    assert_eq!((report["split"].as_str(), report["pooled"]["images"].as_u64()), (Some("test"), Some(5)), "{report}");
    assert_eq!(report["shortcuts"]["altered"].as_array().unwrap().len(), 6);
    assert!(report["comparison"]["not_computed"].as_str().unwrap().contains("alike"), "the same weights twice");
    let page = fs_err::read_to_string(at("report/report.html")).unwrap();
    assert!(page.contains("UNTRAINED TEST WEIGHTS") && page.contains("<svg") && !page.contains("NaN"));
    assert_eq!(fs_err::read_to_string(at("report/predictions.csv")).unwrap().lines().count(), 6);
    let card = node.hilum_ok(&["model", "card", "cxr-untrained"]);
    assert!(card.contains("| brier |") && card.contains("within SCANNER: list.csv, test"), "{card}");

    // Calibration and threshold go into the manifest, and the bundle stays sound.
    let calibrate = ["calibrate", "cxr-untrained", "--data", &data, "--method", "platt", "--split", "all", "--write"];
    let words = said(&node.hilum(&[&calibrate[..], &map[..]].concat()));
    // Random networks may well order the films the wrong way round.
    assert!(words.contains("the manifest of") || words.contains("turn them round"), "{words}");
    let words = node.hilum_ok(
        &[&["threshold", "cxr-untrained", "--data", &data, "--sensitivity", "0.9", "--write"][..], &map[..]].concat(),
    );
    assert!(words.contains("on split test: sensitivity"), "{words}");
    assert!(node.hilum_ok(&["model", "verify", "cxr-untrained"]).contains("is sound"));
    let none = node.hilum(
        &[&["threshold", "cxr-untrained", "--data", &data, "--sensitivity", "0.9", "--split", "train"][..], &map[..]]
            .concat(),
    );
    assert!(said(&none).contains("no image in split `train`"), "{}", said(&none));
}
