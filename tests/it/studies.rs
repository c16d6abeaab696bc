//! What becomes of a study: revisions, studies that no pipeline takes, gates, decisions, and our own results.

use dicom_core::VR;
use dicom_dictionary_std::{tags, uids};

use crate::support::*;

/// A radiograph that passes every gate of the header.
fn radiograph() -> Radiograph {
    Radiograph { rows: 640, columns: 600, ..Radiograph::default() }
}

/// The texts of a report, as dcmtk's `dsrdump` shows it.
fn report_text(orthanc: &Orthanc, report: &ReceivedInstance) -> String {
    let folder = temporary_folder();
    let file = folder.path().join("report.dcm");
    fs_err::write(&file, orthanc.file(report)).expect("a file");
    let output =
        run(std::process::Command::new("dsrdump").args(["--print-long-values", "--print-instance-uid"]).arg(&file));
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The reports with measurements.
fn reports(received: &[ReceivedInstance]) -> Vec<ReceivedInstance> {
    let class = uids::COMPREHENSIVE_SR_STORAGE;
    received.iter().filter(|one| one.tag("SOPClassUID") == class).cloned().collect()
}

fn by_modality(received: &[ReceivedInstance], modality: &str) -> Vec<ReceivedInstance> {
    received.iter().filter(|one| one.tag("Modality") == modality).cloned().collect()
}

#[test]
fn heavy_a_late_image_makes_a_second_revision_that_names_the_first() {
    let orthanc = Orthanc::start();
    let node = Node::start(&Site::usual(orthanc.dicom_port));
    let (first, sent) = (radiograph(), node.scratch("sent"));
    let sample = first.write(&sent);
    let study = &sample.study_instance_uid;
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.wait_for_workup(study, "answered");
    let before = orthanc.instances_of(study);
    let first_report = reports(&before).remove(0);
    assert_eq!(before.len(), SENT_OF_A_RADIOGRAPH);

    // The route leads nowhere now: who has the first report is told of the second all the same.
    let nowhere = Site::new("HILUM").sender("SCANNER").pacs("pacs", "PACS", orthanc.dicom_port);
    node.apply(&nowhere.route("cxr-untrained", 1, &[]));
    let late = first.sibling().write(&sent);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&late.path]);
    node.database.wait_for_rows(1, "select id from workup where revision = 2 and state = 'answered'");
    let after = orthanc.instances_of(study);
    let reports = reports(&after);
    assert_eq!(reports.len(), 2, "both reports are in the PACS");
    let why = "select 1 from event where kind = 'rule' and words = 'also to pacs, which has the report of an earlier revision'";
    assert_eq!(node.database.count(why), 1);
    let second = reports.iter().find(|one| one.id != first_report.id).expect("two reports");
    let predecessor = second.sequence("PredecessorDocumentsSequence");
    let named = &predecessor[0]["ReferencedSeriesSequence"][0]["ReferencedSOPSequence"][0]["ReferencedSOPInstanceUID"];
    assert_eq!(*named, first_report.tag("SOPInstanceUID"), "{predecessor:#?}");
    assert!(first_report.sequence("PredecessorDocumentsSequence").is_empty());
    // One heat map of revision 1, two of revision 2.
    assert_eq!(by_modality(&after, "OT").len(), 3);
    let text = report_text(&orthanc, second);
    assert!(text.contains("revision=2"), "{text}");
    assert!(text.contains(&sample.sop_instance_uid) && text.contains(&late.sop_instance_uid), "{text}");

    let kinds: Vec<String> = node
        .database
        .rows("select kind from event where subject_kind = 'workup' order by id")
        .iter()
        .map(|row| row["kind"].as_str().expect("a kind").to_owned())
        .collect();
    let round = ["complete", "analysing", "answered"];
    let expected: Vec<&str> = ["receiving"].into_iter().chain(round).chain(["late_objects"]).chain(round).collect();
    assert_eq!(kinds, expected);
    node.assert_clean_log();
}

#[test]
fn heavy_a_study_without_a_pipeline_is_kept_and_said_so() {
    let node = Node::start(&Site::new("HILUM").sender("SCANNER").route("cxr-untrained", 1, &[]));
    let slices = ct_slices(&node.scratch("sent"), 5);
    let files: Vec<&std::path::Path> = slices.iter().map(|slice| slice.path.as_path()).collect();
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &files);
    let study = &slices[0].study_instance_uid;
    let workup = node.database.wait_for_rows(1, "select * from workup where state = 'not_routed'").remove(0);
    assert_eq!(workup["study_instance_uid"], *study);
    let words = workup["state_words"].as_str().expect("words");
    assert!(words.contains("no enabled route of local AE `HILUM` takes a study with CT"), "{words}");
    assert_eq!(node.archived_objects().len(), 5);
    assert_eq!(node.database.count("select id from run"), 0);
    assert!(node.get(&format!("/studies/{study}")).text().contains("takes a study with CT"));
    assert!(node.hilum_ok(&["studies"]).contains(study.as_str()));
    node.assert_clean_log();
}

#[test]
fn heavy_a_lateral_view_is_not_analysed_unless_the_weights_are_untrained() {
    let (wants_all, wants_answers) = (Orthanc::start(), StoreScp::start());
    let mut node = Node::prepare(NodeOptions::default());
    node.bundle("unvalidated", &[("status = \"untrained\"", "status = \"unvalidated\"")]);
    node.hilum_ok(&["migrate"]);
    let site = |bundle: &str| {
        Site::new("HILUM")
            .sender("SCANNER")
            .pacs_for_everything("all", "ALL", wants_all.dicom_port)
            .pacs("answers", "ANSWERS", wants_answers.port)
            .route(bundle, 1, &["all", "answers"])
    };
    node.apply(&site("unvalidated"));
    node.start_again();
    let sent = node.scratch("sent");
    let lateral = Radiograph { view_position: "LL", ..radiograph() }.write(&sent);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&lateral.path]);
    node.wait_for_workup(&lateral.study_instance_uid, "answered");
    let run = node.database.row("select * from run");
    assert_eq!(run["state"], "not_analysed");
    assert_eq!(run["reason"], "input.view.not_frontal");
    assert!(run["words"].as_str().is_some_and(|words| words.contains("LL") || words.contains("frontal")), "{run:#}");
    node.wait_for_deliveries(&lateral.study_instance_uid, 2);
    let received = wants_all.instances_of(&lateral.study_instance_uid);
    assert_eq!(received.len(), 2, "a report with its sentences and no heat map");
    let text = report_text(&wants_all, &reports(&received)[0]);
    for part in ["AI did not analyse this study", "input.view.not_frontal", "\"Reason for not processing\""] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("Certainty of Finding"), "a study that was not analysed has no score:\n{text}");
    assert!(wants_answers.files().is_empty(), "this destination wants answers only");

    // Untrained weights have no scope: the same image is analysed, and the report says what failed.
    node.apply(&site("cxr-untrained"));
    let again = Radiograph { view_position: "LL", ..radiograph() }.write(&sent);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&again.path]);
    node.wait_for_workup(&again.study_instance_uid, "answered");
    node.wait_for_deliveries(&again.study_instance_uid, 2 * SENT_OF_A_RADIOGRAPH);
    let received = wants_all.instances_of(&again.study_instance_uid);
    let text = report_text(&wants_all, &reports(&received)[0]);
    assert!(text.contains("Certainty of Finding"), "{text}");
    assert!(text.contains("expected a frontal one") || text.contains("header.view"), "the gate is not told:\n{text}");
    assert!(text.contains("Undetermined"), "{text}");
    assert_eq!(wants_answers.files().len(), SENT_OF_A_RADIOGRAPH);
    node.assert_clean_log();
}

#[test]
fn heavy_only_validated_weights_decide() {
    let (orthanc, second) = (Orthanc::start(), Orthanc::start());
    let mut node = Node::prepare(NodeOptions::default());
    // The untrained networks see no lungs, so the bundles of this test ask for none.
    let open_gates = [
        ("minimum_lung_area_fraction = 0.1", "minimum_lung_area_fraction = 0.0"),
        ("maximum_lung_area_fraction = 0.6", "maximum_lung_area_fraction = 1.0"),
        ("minimum_lung_area_ratio = 0.4", "minimum_lung_area_ratio = 0.0"),
        ("maximum_lung_area_ratio = 2.5", "maximum_lung_area_ratio = 1000000.0"),
        (
            "[classification]\n",
            "[input.gates.lungs]\nminimum_height_fraction = 0.0\nminimum_level_fraction = 0.0\n\
             minimum_height_to_width = 0.0\nmaximum_border_share = 1.0\nminimum_contrast = -1.0\n\
             maximum_doubtful_ratio = 1000.0\n\n[classification]\n",
        ),
    ];
    for (name, status, threshold) in
        [("low", "validated", "0.000001"), ("high", "validated", "0.999999"), ("research", "unvalidated", "0.000001")]
    {
        let status = format!("status = \"{status}\"");
        let threshold = format!("threshold = {threshold}");
        let mut changes = vec![("status = \"untrained\"", status.as_str()), ("threshold = 0.5", &threshold)];
        changes.extend(open_gates);
        node.bundle(name, &changes);
    }
    node.hilum_ok(&["migrate"]);
    node.apply(&Site::usual(orthanc.dicom_port));
    node.start_again();
    for (bundle, decision) in [("low", "Present"), ("high", "Absent"), ("research", "Undetermined")] {
        let site = Site::new("HILUM")
            .sender("SCANNER")
            .pacs("pacs", "PACS", orthanc.dicom_port)
            .with("[destination.results]\nkey_objects = true")
            .pacs("second", "SECOND", second.dicom_port)
            .with(
                "[destination.results]\nreport_classes = [\"enhanced\"]\ntext_companion = false\nlanguage = \"zh\"\n\
                 picture_compression = \"rle_lossless\"",
            )
            .route_with(
                "HILUM",
                bundle,
                "quiet_seconds = 1\ndestinations = [\"pacs\"]\n\
                 rules = [{ when = \"score\", at_least = 0.0, destinations = [\"second\"], priority = \"high\" }]",
            );
        node.apply(&site);
        let sample = fresh_copy("RG1_UNCR.dcm", &node.scratch("sent"));
        storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
        node.wait_for_workup(&sample.study_instance_uid, "answered");
        let run = node.database.row(&format!(
            "select run.* from run join workup on workup.id = workup_id where study_instance_uid = '{}'",
            sample.study_instance_uid
        ));
        assert_eq!(run["state"], "succeeded", "{bundle}: {}", run["words"]);
        let received = orthanc.instances_of(&sample.study_instance_uid);
        let text = report_text(&orthanc, &reports(&received)[0]);
        let line = text.lines().find(|line| line.contains("\"Presence\"")).unwrap_or_else(|| panic!("none in {text}"));
        assert!(line.contains(&format!("\"{decision}\"")), "{bundle}: {line}");

        // Key objects say present; a rule over scores sends elsewhere, in another form, and hurries. Neither without validation.
        let study = &sample.study_instance_uid;
        assert_eq!(by_modality(&received, "KO").len(), usize::from(decision == "Present"), "{bundle}");
        let is_validated = bundle != "research";
        let of_run = format!(
            "select d.id from delivery d join run r on r.id = d.run_id join workup w on w.id = r.workup_id \
             where study_instance_uid = '{study}' and urgent = {is_validated}"
        );
        let owed = if is_validated { 5 + 2 + usize::from(decision == "Present") } else { 5 };
        assert_eq!(node.database.count(&of_run), owed, "{bundle}: alternatives of the report are rows, too");
        let timeline = node.hilum_ok(&["timeline", study]);
        let elsewhere = second.instances_of(study);
        if !is_validated {
            assert!(elsewhere.is_empty() && timeline.contains("is not validated"), "{bundle}: {timeline}");
            continue;
        }
        assert!(timeline.contains("priority high, also to second"), "{bundle}: {timeline}");
        assert_eq!(elsewhere.len(), 2, "{bundle}");
        let report = by_modality(&elsewhere, "SR").remove(0);
        assert_eq!(report.tag("SOPClassUID"), uids::ENHANCED_SR_STORAGE);
        assert!(report_text(&second, &report).contains("工作阈值"), "{bundle}: it is in Chinese");
        let picture = second.file(&by_modality(&elsewhere, "OT")[0]);
        let picture = dicom_object::from_reader(picture.as_slice()).expect("a DICOM file");
        assert_eq!(picture.meta().transfer_syntax(), uids::RLE_LOSSLESS);
    }
}

#[test]
fn heavy_our_own_results_are_not_analysed_again() {
    let orthanc = Orthanc::start();
    let node = Node::start(&Site::usual(orthanc.dicom_port));
    let sent = node.scratch("sent");
    let sample = radiograph().write(&sent);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&sample.path]);
    node.wait_for_workup(&sample.study_instance_uid, "answered");
    let results = node.database.rows("select * from result");
    assert_eq!(results.len(), RENDERED_OF_A_RADIOGRAPH);

    // As they are: their SOP classes are not taken at all.
    for result in &results {
        let file = node.archived(result["archive_key"].as_str().expect("a key"));
        let output = storescu(node.dicom_port, "SCANNER", "HILUM", &[], &[&file]);
        assert!(!output.status.success(), "{} is accepted:\n{}", result["kind"], said(&output));
    }
    assert_eq!(node.database.count("select id from instance"), 1);

    // A result that somebody made a radiograph of keeps our Device UID.
    let device = results[0]["device_uid"].as_str().expect("a UID").to_owned();
    let mut disguised = Radiograph { modality: "CR", ..radiograph() }.object();
    disguised.put_str(tags::DEVICE_UID, VR::UI, device);
    let disguised = Sample::write(&disguised, &sent);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&disguised.path]);
    let found = node
        .database
        .wait_for_rows(1, &format!("select * from instance where sop_instance_uid = '{}'", disguised.sop_instance_uid));
    assert_eq!(found[0]["own_output"], true);
    let event = node.database.row("select * from event where kind = 'own_output'");
    assert_eq!(event["subject_id"], found[0]["id"]);

    // Another radiograph that came later is answered; the disguised one has no run even so.
    let other = radiograph().write(&sent);
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&other.path]);
    node.wait_for_workup(&other.study_instance_uid, "answered");
    let query = "select study_instance_uid from run join workup on workup.id = workup_id";
    let analysed = node.database.rows(query);
    assert_eq!(analysed.len(), 2);
    assert!(analysed.iter().all(|row| row["study_instance_uid"] != disguised.study_instance_uid));
    node.assert_clean_log();
}

/// Longer than a btree of Postgres takes, and than DICOM allows: it was acknowledged, so it is indexed, and so is what
/// comes after it.
#[test]
fn a_patient_id_of_any_length_is_indexed() {
    let node = Node::start(&Site::new("HILUM").sender("SCANNER"));
    let patient_id: String = (0..400).map(|_| fresh_uid()).collect();
    let mut object = radiograph().object();
    object.put_str(tags::PATIENT_ID, VR::LO, &*patient_id);
    let long = Sample::write(&object, &node.scratch("long"));
    let next = radiograph().write(&node.scratch("next"));
    node.send("SCANNER", &[&long.path]);
    node.send("SCANNER", &[&next.path]);
    node.database.wait_for_rows(2, "select id from workup where state = 'not_routed'");
    let kept = node
        .database
        .row(&format!("select patient_id from study where study_instance_uid = '{}'", long.study_instance_uid));
    assert!(kept["patient_id"].as_str().is_some_and(|kept| kept.len() > 8192 && patient_id.starts_with(kept)));
    node.assert_clean_log();
}
