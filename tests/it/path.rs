//! The path of an image: from a scanner to the results in two PACS, with every step in Postgres.

use std::path::Path;

use dicom_dictionary_std::{tags, uids};
use image::RgbImage;

use crate::{support::*, validators};

/// RG1's names are in the retired form, and results carry the patient's name as the source has it.
const ALLOWED_BY_SOURCE: &[(&str, &str)] = &[("", "Retired Person Name form")];

/// Who sends, and in which words it names itself.
#[derive(Debug, Clone, Copy)]
enum Sender {
    Dcmtk,
    Pynetdicom,
    Hilum,
}

impl Sender {
    fn send(self, node: &Node, sample: &Sample, syntax_option: &[&str]) {
        match self {
            Self::Dcmtk => storescu_ok(node.dicom_port, "SCANNER", "HILUM", syntax_option, &[&sample.path]),
            Self::Pynetdicom => pynetdicom_ok(node.dicom_port, "SCANNER", "HILUM", &[&sample.path]),
            Self::Hilum => {
                node.send("SCANNER", &[&sample.path]);
            }
        }
    }

    /// The data set as this sender puts it on the wire: dcmtk writes it anew, with explicit lengths of sequences and
    /// without Data Set Trailing Padding (FFFC,FFFC).
    fn wire_bytes(self, sample: &Sample) -> Vec<u8> {
        if !matches!(self, Self::Dcmtk) {
            return sample.data_set_bytes();
        }
        let folder = temporary_folder();
        let rewritten = folder.path().join("rewritten.dcm");
        let options = ["--write-xfer-same", "--length-explicit", "--padding-off"];
        let output = run(std::process::Command::new("dcmconv").args(options).arg(&sample.path).arg(&rewritten));
        assert!(output.status.success(), "dcmconv: {}", said(&output));
        data_set_bytes(&rewritten)
    }

    const fn implementation(self) -> &'static str {
        match self {
            Self::Dcmtk => "OFFIS_DCMTK_",
            Self::Pynetdicom => "PYNETDICOM_",
            Self::Hilum => "HILUM",
        }
    }
}

#[rstest::rstest]
#[case::dcmtk(Sender::Dcmtk)]
#[case::pynetdicom(Sender::Pynetdicom)]
#[case::hilum_send(Sender::Hilum)]
fn heavy_radiographs_go_all_the_way(#[case] sender: Sender) {
    let (orthanc, second) = (Orthanc::start(), StoreScp::start());
    let site = Site::new("HILUM")
        .sender("SCANNER")
        .pacs("pacs", "PACS", orthanc.dicom_port)
        .pacs("second", "SECOND", second.port)
        .route("cxr-untrained", 1, &["pacs", "second"]);
    let mut node = Node::start(&site);
    let sent = node.scratch("sent");
    let plain = fresh_copy("RG1_UNCR.dcm", &sent);
    let compressed = fresh_copy("RG1_J2KR.dcm", &sent);
    sender.send(&node, &plain, &["-xe"]);
    sender.send(&node, &compressed, &["-xv"]);

    for (sample, syntax) in [(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN), (&compressed, uids::JPEG2000_LOSSLESS)] {
        let workup = node.wait_for_workup(&sample.study_instance_uid, "answered");
        let deliveries = node.wait_for_deliveries(&sample.study_instance_uid, 2 * SENT_OF_A_RADIOGRAPH);
        check_archive(&node, sample, syntax, &sender.wire_bytes(sample));
        check_story(&node, sample, &workup, sender);
        check_pacs(&node, &orthanc, sample, &deliveries);
    }
    // dcmtk's storescp keeps a file for each object that comes, so the results of two studies are twice as many files.
    assert_eq!(second.files().len(), 2 * SENT_OF_A_RADIOGRAPH, "{:?}", second.files());
    validators::assert_valid(&second.folder(), ALLOWED_BY_SOURCE);
    node.terminate();
    node.assert_clean_log();
}

/// What came is what was sent, byte for byte, and the file says whose it is.
fn check_archive(node: &Node, sample: &Sample, syntax: &str, wire_bytes: &[u8]) {
    let instance =
        node.database.row(&format!("select * from instance where sop_instance_uid = '{}'", sample.sop_instance_uid));
    assert_eq!(instance["transfer_syntax_uid"], syntax);
    assert_eq!(instance["version"], 1);
    assert_eq!(instance["own_output"], false);
    let file = node.archived(instance["archive_key"].as_str().expect("a text"));
    assert!(data_set_bytes(&file) == wire_bytes, "the archived data set differs from the one sent");
    let meta = dicom_object::open_file(&file).expect("a DICOM file").meta().clone();
    let trimmed = |title: &Option<String>| title.as_deref().unwrap_or_default().trim().to_owned();
    assert_eq!(trimmed(&meta.source_application_entity_title), "SCANNER");
    assert_eq!(trimmed(&meta.sending_application_entity_title), "SCANNER");
    assert_eq!(trimmed(&meta.receiving_application_entity_title), "HILUM");
    assert_eq!(meta.transfer_syntax(), syntax);
}

/// Association, workup, run, results, deliveries and events tell the same story.
fn check_story(node: &Node, sample: &Sample, workup: &serde_json::Value, sender: Sender) {
    let study = &sample.study_instance_uid;
    assert_eq!(workup["calling_ae_title"], "SCANNER");
    assert_eq!(workup["local_ae_title"], "HILUM");
    assert_eq!(workup["route_name"], "route-10");
    assert_eq!(workup["revision"], 1);
    let reason = workup["completeness_reason"].as_str().expect("a reason");
    assert!(reason.contains("1 object(s)") && reason.contains("quiet_seconds = 1"), "{reason}");

    let of_object = format!(
        "select association.* from association join instance on association_id = association.id \
         where study_instance_uid = '{study}' and ended_at is not null"
    );
    let association = node.database.wait_for_rows(1, &of_object).remove(0);
    assert_eq!(association["calling_ae_title"], "SCANNER");
    assert_eq!(association["called_ae_title"], "HILUM");
    assert_eq!(association["end_kind"], "released");
    assert_eq!(association["objects_stored"], 1);
    assert_eq!(association["objects_refused"], 0);
    assert!(association["bytes_received"].as_u64() >= Some(sender.wire_bytes(sample).len() as u64));
    let implementation = association["peer_implementation_version_name"].as_str().expect("a name");
    assert!(implementation.starts_with(sender.implementation()), "{implementation}");

    let run = node.database.row(&format!(
        "select run.* from run join workup on workup.id = workup_id where study_instance_uid = '{study}'"
    ));
    assert_eq!(run["state"], "succeeded");
    assert_eq!(run["attempt"], 1);
    assert_eq!(run["bundle"], "cxr-untrained");
    assert_eq!(run["bundle_identity"]["status"], "untrained");
    let stages = run["stage_milliseconds"].as_object().expect("stages");
    assert!(["decode", "segment", "classify"].iter().all(|stage| stages.contains_key(*stage)), "{stages:?}");

    let results = node.database.rows(&format!(
        "select kind from result join run on run.id = run_id join workup on workup.id = workup_id \
         where study_instance_uid = '{study}' order by kind"
    ));
    assert_eq!(
        results.iter().map(|row| row["kind"].as_str().unwrap_or_default()).collect::<Vec<_>>(),
        ["sc", "sr", "sr", "sr", "sr_text"]
    );

    let stories: serde_json::Value =
        serde_json::from_str(&node.hilum_ok(&["timeline", study, "--json"])).expect("JSON");
    let told: Vec<String> = stories[0]["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| format!("{} {}", event["subject"].as_str().unwrap_or("?"), event["kind"].as_str().unwrap_or("?")))
        .collect();
    assert_eq!(
        told,
        [
            "workup receiving",
            "workup complete",
            "workup analysing",
            "run queued",
            "run running",
            "run succeeded",
            "delivery delivered",
            "delivery delivered",
            "delivery delivered",
            "delivery delivered",
            "delivery delivered",
            "delivery delivered",
            "workup answered"
        ]
    );
}

/// Orthanc has report, sentences and heat map once each, in series of their own, and shows the heat map as we do.
fn check_pacs(node: &Node, orthanc: &Orthanc, sample: &Sample, deliveries: &[serde_json::Value]) {
    let received = orthanc.instances_of(&sample.study_instance_uid);
    let mut modalities: Vec<String> = received.iter().map(|one| one.tag("Modality")).collect();
    modalities.sort();
    assert_eq!(modalities, ["OT", "SR", "SR"]);
    let find = |class: &str| received.iter().find(|one| one.tag("SOPClassUID") == class).expect("it was sent");
    let (report, heat_map) = (find(uids::COMPREHENSIVE_SR_STORAGE), find(uids::SECONDARY_CAPTURE_IMAGE_STORAGE));
    let sentences = find(uids::BASIC_TEXT_SR_STORAGE);
    assert_eq!((heat_map.tag("Modality"), report.tag("Modality")), ("OT".to_owned(), "SR".to_owned()));
    let series: std::collections::BTreeSet<String> = received.iter().map(|one| one.tag("SeriesInstanceUID")).collect();
    assert_eq!(series.len(), SENT_OF_A_RADIOGRAPH, "each has a series of its own");
    let source = sample.object();
    for (keyword, tag) in [
        ("PatientID", tags::PATIENT_ID),
        ("PatientName", tags::PATIENT_NAME),
        ("StudyDate", tags::STUDY_DATE),
        ("AccessionNumber", tags::ACCESSION_NUMBER),
    ] {
        for one in [report, heat_map, sentences] {
            assert_eq!(one.tag(keyword), text(&source, tag), "{keyword} of {}", one.tag("Modality"));
        }
    }
    for one in [report, heat_map, sentences] {
        let delivered = deliveries.iter().filter(|row| row["sop_instance_uid"] == one.tag("SOPInstanceUID"));
        assert_eq!(delivered.count(), 2, "each result is delivered to both destinations");
        assert_ne!(one.tag("SeriesInstanceUID"), sample.series_instance_uid);
    }

    let shown = decode(&orthanc.preview(heat_map));
    assert_eq!(shown.height().to_string(), heat_map.tag("Rows"));
    assert_eq!(shown.width().to_string(), heat_map.tag("Columns"));
    let ours = deliveries.iter().find_map(|row| row["preview_key"].as_str()).expect("the heat map has a preview");
    let ours = decode(&fs_err::read(node.archived(ours)).expect("the preview is in the archive"));
    assert!(shown == ours, "Orthanc shows another picture than our preview");
    check_heat_map(&shown);
}

/// Words above, a radiograph in the middle, and colour where the heat map is, or else at least a full grey scale.
fn check_heat_map(picture: &RgbImage) {
    let (width, height) = picture.dimensions();
    assert!(width >= 512 && height > 512, "{width} x {height}");
    let bright = |y: u32| (0..width).filter(|&x| picture.get_pixel(x, y).0.iter().max() > Some(&180)).count();
    assert!((0..height / 25).any(|y| bright(y) > 10), "there are no words in the banner");
    let mut levels: Vec<u8> = picture.pixels().map(|pixel| pixel.0[1]).collect();
    levels.sort_unstable();
    levels.dedup();
    assert!(levels.len() > 64, "only {} levels", levels.len());
}

fn decode(png: &[u8]) -> RgbImage {
    image::load_from_memory_with_format(png, image::ImageFormat::Png).expect("a PNG").to_rgb8()
}

/// What `make run ONCE=1` does, after a start with test weights in the same folder.
#[test]
fn heavy_the_demonstration_runs_by_itself_and_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = temporary_folder();
    fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("our own folder");
    let data = folder.path().join("data");
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cxr-covid-reference");
    let untrained = ["cxr-untrained 1: UNTRAINED TEST WEIGHTS", "Algorithm  cxr-untrained 1 (untrained)"];
    let trained = ["cxr-covid-reference 1: unvalidated", "Algorithm  cxr-covid-reference 1 (unvalidated)"];
    let of_all = ["acknowledged", "COVID-19", "Decision withheld (undetermined)", "(3 results delivered)"];
    for (round, bundle, of_bundle) in [("first", None, untrained), ("second", Some(reference), trained)] {
        let output = run(std::process::Command::new(env!("CARGO_BIN_EXE_hilum"))
            .args(["dev", "--once", "--dicom-port", "0", "--http-port", "0", "--pacs-port", "0", "--data-dir"])
            .arg(&data)
            .arg("--demo-image")
            .arg(fixture("RG1_UNCR.dcm"))
            .args(bundle.map(|bundle| ["--bundle", bundle]).into_iter().flatten())
            .stdin(std::process::Stdio::null()));
        assert!(output.status.success(), "the {round} time: {}\n{}", output.status, said(&output));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for words in of_all.into_iter().chain(of_bundle) {
            assert!(said.contains(words), "the {round} time, {words:?} is not in:\n{said}");
        }
        for what in ["heat map (PNG)", "heat map (DICOM)", "report (DICOM SR)", "in sentences (SR)"] {
            let line = said.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what} in:\n{said}"));
            let path = line.split(what).nth(1).expect("just found").trim();
            assert!(Path::new(path).is_file(), "{what}: {path} does not exist");
        }
        let running = fs_err::read_dir(data.join("postgres/cluster"))
            .map(|entries| entries.flatten().any(|entry| entry.file_name() == "postmaster.pid"))
            .expect("the cluster lies in the data folder");
        assert!(!running, "the {round} time: Postgres was left running");
    }
    let kept: Vec<_> = walk(&data.join("demopacs"));
    assert_eq!(
        kept.len(),
        2 * SENT_OF_A_RADIOGRAPH,
        "two rounds leave two reports, their sentences and two heat maps in the built-in PACS: {kept:?}"
    );
}

/// All `.dcm` files below a folder.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder).expect("a folder") {
        let path = entry.expect("a folder").path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.extension().is_some_and(|extension| extension == "dcm") {
            files.push(path);
        }
    }
    files
}
