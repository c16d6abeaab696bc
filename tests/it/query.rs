//! `hilum query` against archives that answer C-FIND.

use std::path::Path;

use crate::support::*;

#[derive(Debug, Clone, Copy)]
enum Archive {
    Dcmqrscp,
    Orthanc,
}

#[rstest::rstest]
#[case::dcmqrscp(Archive::Dcmqrscp)]
#[case::orthanc(Archive::Orthanc)]
fn studies_series_and_instances_are_found_without_names(#[case] archive: Archive) {
    let (dcmqrscp, orthanc);
    let port = match archive {
        Archive::Dcmqrscp => {
            dcmqrscp = QueryScp::start();
            dcmqrscp.port
        }
        Archive::Orthanc => {
            orthanc = Orthanc::start();
            orthanc.dicom_port
        }
    };
    let node = Node::prepare(NodeOptions::default());
    node.hilum_ok(&["migrate"]);
    node.apply(&Site::new("HILUM").partner("archive", "ARCHIVE", port));
    let slices = ct_slices(&node.scratch("slices"), 5);
    let files: Vec<&Path> = slices.iter().map(|slice| slice.path.as_path()).collect();
    storescu_ok(port, "SCANNER", "ARCHIVE", &[], &files);
    let study = slices[0].study_instance_uid.as_str();
    let series = slices[0].series_instance_uid.as_str();

    let table = node.hilum_ok(&["query", "archive", "--study-instance-uid", study]);
    assert!(table.contains(study) && !table.contains("Synthetic"), "{table}");
    for key in [["--patient-id", "SYN-4711"], ["--patient-id", "SYN-*"], ["--accession-number", "ACC-0815"]] {
        let found = json(&node, &["query", "archive", key[0], key[1], "--json"]);
        assert_eq!(found[0]["study_instance_uid"], study, "{key:?}: {found}");
        assert_eq!(found[0]["study_date"], "20260102");
    }
    let found = json(&node, &["query", "archive", "--study-instance-uid", study, "--level", "series", "--json"]);
    assert_eq!(found[0]["series_instance_uid"], series);
    assert_eq!(found[0]["modality"], "CT");
    let of_series = ["--study-instance-uid", study, "--series-instance-uid", series, "--level", "image"];
    let found = json(&node, &[&["query", "archive", "--json"][..], &of_series].concat());
    assert_eq!(found.as_array().map(Vec::len), Some(5), "{found}");
    let limited = node.hilum_ok(&[&["query", "archive", "--limit", "2"][..], &of_series].concat());
    assert!(limited.contains("there may be more matches"), "{limited}");
    assert_eq!(limited.lines().count(), 4, "{limited}");
    let nothing = node.hilum_ok(&["query", "archive", "--study-instance-uid", "1.2.3.4"]);
    assert!(nothing.contains("the peer has no match"), "{nothing}");

    // what decides on completeness asks the same peer
    let requestor = hilum::dimse::AssociationRequestor::new(
        "HILUM".parse().expect("a title"),
        "ARCHIVE".parse().expect("a title"),
        "127.0.0.1",
        port,
    );
    let count = |uid: &str| {
        let uid = uid.parse().expect("a UID");
        runtime().block_on(hilum::dimse::count_study_instances(requestor.clone(), &uid)).expect("a count")
    };
    assert_eq!(count(study).map(|count| count.instances), Some(5));
    assert_eq!(count("1.2.3.4"), None);
}

fn json(node: &Node, arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&node.hilum_ok(arguments)).expect("JSON")
}
