//! Similar cases: a library is built, a study finds its cases, a patient never finds its own.

use std::{fmt::Write as _, path::Path, process::Command, time::Duration};

use dicom_dictionary_std::uids;

use crate::support::*;

fn radiograph(patient_id: &'static str, seed: u32) -> Radiograph {
    Radiograph { rows: 640, columns: 600, patient_id, seed, ..Radiograph::default() }
}

/// Files of five patients, the real radiograph among them under its own Patient ID, and a list of all.
fn library(folder: &Path) -> std::path::PathBuf {
    let mut list = "file,label,patient,view,source,licence\n".to_owned();
    for (seed, patient) in [(1, "PAT-ONE"), (2, "PAT-TWO"), (3, "PAT-THREE"), (4, "SYN-4711")] {
        let sample = radiograph(patient, seed).write(folder);
        let name = sample.path.file_name().unwrap().to_string_lossy().into_owned();
        let label = if seed % 2 == 0 { "COVID-19" } else { "normal" };
        writeln!(list, "{name},{label},{patient},PA,made by a test,CC0").unwrap();
    }
    let real = fresh_copy("RG1_UNCR.dcm", folder);
    let real_name = real.path.file_name().unwrap().to_string_lossy();
    writeln!(list, "{real_name},normal,,,pydicom-data,MIT").unwrap();
    let file = folder.join("list.csv");
    fs_err::write(&file, list).unwrap();
    file
}

fn import(list: &str) -> [&str; 7] {
    ["cases", "import", "--bundle", "cxr-untrained", "--cohort", "tests", list]
}

/// The first image of the newest run of a study, in the JSON of its page.
fn similar(node: &Node, study: &str) -> serde_json::Value {
    let outcome = node.database.row(&format!(
        "select outcome from run join workup on workup.id = run.workup_id where study_instance_uid = '{study}'"
    ));
    outcome["outcome"]["images"][0]["similar_cases"].clone()
}

fn send(node: &Node, sample: &Sample) {
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
}

#[test]
fn heavy_a_study_finds_similar_cases_of_other_patients_and_its_own_priors() {
    let orthanc = Orthanc::start();
    let node = Node::start(&Site::usual(orthanc.dicom_port));
    let sent = node.scratch("sent");

    let before = Radiograph { study_date: "20250102", ..radiograph("SYN-4711", 7) }.write(&sent);
    send(&node, &before);
    assert_eq!(
        similar(&node, &before.study_instance_uid)["reason"],
        "the reference library holds no case of this bundle"
    );

    let list = library(&node.scratch("library"));
    let list = list.to_str().unwrap();
    let said_first = node.hilum_ok(&import(list));
    assert!(said_first.contains("5 added, 0 there already, 0 refused"), "{said_first}");
    let said_again = node.hilum_ok(&import(list));
    assert!(said_again.contains("0 added, 5 there already, 0 refused"), "{said_again}");
    let counts: serde_json::Value = serde_json::from_str(&node.hilum_ok(&["cases", "list", "--json"])).unwrap();
    assert_eq!(counts.as_array().unwrap().iter().map(|row| row["cases"].as_u64().unwrap()).sum::<u64>(), 5);

    // The node is running: it takes the library over by itself.
    let now = radiograph("SYN-4711", 4).write(&sent);
    send(&node, &now);
    let study = &now.study_instance_uid;
    let found = similar(&node, study);
    let cases = found["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4, "the fifth is of the same patient: {found:#}");
    let distances: Vec<f64> = cases.iter().map(|case| case["distance"].as_f64().unwrap()).collect();
    assert!(distances.is_sorted() && distances[0] > 0.0, "{distances:?}");
    assert_eq!(found["library"]["n_cases"], 5);
    let own = node.database.row(
        "select case_id from similar_case where label = 'COVID-19' and case_id not in (
             select jsonb_array_elements(outcome->'images'->0->'similar_cases'->'cases')->>'case_id'
             from run where outcome->'images'->0->'similar_cases'->'library' <> 'null')",
    )["case_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let priors = found["priors"].as_array().unwrap();
    assert_eq!(priors.len(), 1, "{found:#}");
    assert_eq!(priors[0]["study_instance_uid"], *before.study_instance_uid);
    assert_eq!(priors[0]["study_date"], "20250102");

    // Report, page, JSON and command line name them, and say that untrained distances mean nothing.
    let nearest = cases[0]["case_id"].as_str().unwrap().to_owned();
    let report = orthanc
        .instances_of(study)
        .into_iter()
        .find(|one| one.tag("SOPClassUID") == uids::COMPREHENSIVE_SR_STORAGE)
        .expect("a report");
    let file = node.scratch("report").join("report.dcm");
    fs_err::write(&file, orthanc.file(&report)).unwrap();
    let dump = run(Command::new("dsrdump").args(["--print-long-values"]).arg(&file));
    assert!(dump.status.success(), "{}", said(&dump));
    let run_id = node.database.row(&format!(
        "select run.id from run join workup on workup.id = run.workup_id where study_instance_uid = '{study}'"
    ))["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let texts = [
        String::from_utf8_lossy(&dump.stdout).into_owned(),
        node.get(&format!("/studies/{study}")).text(),
        node.get(&format!("/api/studies/{study}")).text(),
        node.hilum_ok(&["run", "show", &run_id]),
    ];
    for text in &texts {
        assert!(text.contains(&nearest) && text.contains("these distances mean nothing"), "{text}");
        assert!(text.contains(&before.study_instance_uid), "the prior is named:\n{text}");
        assert!(!text.contains(&own), "the patient's own case is not named:\n{text}");
    }
    assert!(texts[0].contains("Similarity (cosine) of image embedding"), "{}", texts[0]);

    // What is removed is no longer found.
    node.hilum_ok(&["cases", "remove", &nearest]);
    let later = radiograph("ANOTHER", 5).write(&sent);
    send(&node, &later);
    let found = similar(&node, &later.study_instance_uid);
    let ids: Vec<&str> =
        found["cases"].as_array().unwrap().iter().map(|case| case["case_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 4, "{found:#}");
    assert!(!ids.contains(&nearest.as_str()) && ids.contains(&own.as_str()), "{found:#}");
    assert!(found["priors"].as_array().unwrap().is_empty(), "{found:#}");

    let map = node.scratch("map").join("map.svg");
    node.hilum_ok(&["cases", "map", "--output", map.to_str().unwrap()]);
    let picture = fs_err::read_to_string(&map).unwrap();
    assert!(picture.contains("n = 4;") && picture.contains("COVID-19 (n ="), "{picture}");
    node.assert_clean_log();
}

#[test]
fn heavy_an_import_that_is_killed_and_repeated_makes_no_case_twice() {
    let node = Node::prepare(NodeOptions::default());
    node.hilum_ok(&["migrate"]);
    let folder = node.scratch("library");
    let list = library(&folder);
    fs_err::write(folder.join("text.png"), "no picture").unwrap();
    let mut lines = fs_err::read_to_string(&list).unwrap();
    lines.push_str("text.png,normal,PAT-X,,,\n");
    fs_err::write(&list, lines).unwrap();
    let list = list.to_str().unwrap();

    let mut first = spawn(&mut node.command(&import(list)));
    wait_for("a first case", Duration::from_secs(120), || {
        (node.database.count("select case_id from similar_case") >= 1).then_some(())
    });
    first.kill().unwrap();
    first.wait().unwrap();
    let kept = node.database.count("select case_id from similar_case");

    let again = node.hilum(&import(list));
    let words = said(&again);
    assert!(!again.status.success(), "a file that is no picture is refused: {words}");
    assert!(words.contains("1 refused") && words.contains("neither DICOM nor a PNG or JPEG"), "{words}");
    assert!(words.contains(&format!("{} added, {kept} there already", 5 - kept)), "{kept} kept: {words}");
    assert_eq!(node.database.count("select case_id from similar_case"), 5);
    assert_eq!(node.database.count("select distinct file_sha256 from similar_case"), 5);

    // A file of a known case under another patient: a patient's own case must not become another's.
    let line = fs_err::read_to_string(list).unwrap().lines().nth(1).unwrap().replace("PAT-ONE", "PAT-OTHER");
    let corrected = folder.join("corrected.csv");
    fs_err::write(&corrected, format!("file,label,patient,view,source,licence\n{line}\n")).unwrap();
    let refused = node.hilum(&import(corrected.to_str().unwrap()));
    let words = said(&refused);
    assert!(!refused.status.success() && words.contains("Patient ID (0010,0020) differ"), "{words}");

    let everything = node.database.rows("select to_jsonb(c) - 'embedding' as row from similar_case c");
    let text = format!("{everything:?}");
    assert!(
        !text.contains("PAT-") && !text.contains("9RG1") && !text.contains("SYN-4711") && !text.contains("1.2.826"),
        "{text}"
    );
}
