//! Other people's validators over a folder of result files: `dciodvfy` (dicom3tools), `dsrdump` (dcmtk) and
//! highdicom (Python of `HILUM_PEERS_PYTHON`, by default that of `~/.cache/hilum/peers-venv`).

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Messages of `dciodvfy` that are known and harmless; anything else fails.
const ALLOWED_BY_DCIODVFY: [&str; 3] = [
    // A private coding scheme is what the designator says.
    "Unrecognized defined term <99HILUM>",
    // (0018,1002) in General Equipment is newer than the tables of the tool.
    "Attribute is not present in standard DICOM IOD - (0x0018,0x1002) UI Device UID",
    "Dicom dataset contains attributes not present in standard DICOM IOD - this is a Standard Extended SOP Class",
];

/// The same for `dsrdump`: it reads these sets but does not check values in them.
const ALLOWED_BY_DSRDUMP: [&str; 1] = ["The VR checker does not support this Specific Character Set"];

/// Reads every file with pydicom and highdicom and prints, for each report with measurements, its groups and
/// how many of them hold a number.
const READ_WITH_HIGHDICOM: &str = r#"
import sys, pathlib, pydicom, highdicom as hd
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.dcm")):
    data_set = pydicom.dcmread(path)
    if data_set.Modality == "SR":
        report = hd.sr.srread(path)
        names = [item.ConceptNameCodeSequence[0].CodeValue for item in data_set.ContentSequence]
        if "126010" in names:
            groups = report.content.get_image_measurement_groups()
            measured = [group for group in groups if len(group.get_measurements()) > 0]
            assert all(group.tracking_uid for group in groups), path
            shares = [m.value for group in groups for m in group.get_measurements() if m.unit.value == "%"]
            assert all(0.0 <= share <= 100.0 for share in shares), (path, shares)
            print("SR", path.name, len(groups), len(measured))
        else:
            print("SR", path.name, "no measurements")
    else:
        pixels = data_set.pixel_array
        assert pixels.shape == (data_set.Rows, data_set.Columns, 3), (path, pixels.shape)
        print("SC", path.name, *pixels.shape)
"#;

/// Fails with every unexpected message of every validator about the DICOM files (`*.dcm`) in `folder` and its
/// sub-folders. There must be at least one report.
///
/// `allowed` names further messages that stem from the sources: (part of the file name, part of the message).
pub(crate) fn assert_valid(folder: &Path, allowed: &[(&str, &str)]) {
    let files = dicom_files(folder);
    assert!(!files.is_empty(), "no .dcm file in {}", folder.display());
    let mut problems = Vec::new();
    for file in &files {
        let name = file.strip_prefix(folder).unwrap_or(file).display();
        problems.extend(dciodvfy(file).into_iter().map(|line| format!("{name}: dciodvfy: {line}")));
        if is_report(file) {
            problems.extend(dsrdump(file).into_iter().map(|line| format!("{name}: dsrdump: {line}")));
        }
    }
    let read = run(Command::new(peers_python()).args(["-c", READ_WITH_HIGHDICOM]).arg(folder));
    let lines = String::from_utf8_lossy(&read.stdout);
    if !read.status.success() {
        problems.push(format!("highdicom: {}", String::from_utf8_lossy(&read.stderr).trim()));
    } else if lines.lines().count() != files.len() {
        problems.push(format!("highdicom read {} of {} files", lines.lines().count(), files.len()));
    }
    for line in lines.lines().filter(|line| line.starts_with("SR ")) {
        let words: Vec<&str> = line.split(' ').collect();
        if let [_, name, groups, measured] = words[..]
            && (groups == "0" || measured == "0")
        {
            problems.push(format!("{name}: highdicom finds {groups} groups, {measured} with measurements"));
        }
    }
    problems
        .retain(|problem| !allowed.iter().any(|(name, message)| problem.contains(name) && problem.contains(message)));
    assert!(files.iter().any(|file| is_report(file)), "no report in {}", folder.display());
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// What `dciodvfy` says beyond the allowed; its exit code says nothing.
fn dciodvfy(file: &Path) -> Vec<String> {
    let output = run(Command::new("dciodvfy").arg(file));
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    said.lines()
        .filter(|line| line.starts_with("Error") || line.starts_with("Warning"))
        .filter(|line| !ALLOWED_BY_DCIODVFY.iter().any(|allowed| line.contains(allowed)))
        .map(str::to_owned)
        .collect()
}

/// What `dsrdump` says beyond the allowed.
fn dsrdump(file: &Path) -> Vec<String> {
    let output = run(Command::new("dsrdump").arg(file));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut lines: Vec<String> = said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .filter(|line| !ALLOWED_BY_DSRDUMP.iter().any(|allowed| line.contains(allowed)))
        .map(str::to_owned)
        .collect();
    if !output.status.success() {
        lines.push(format!("ended with {}", output.status));
    }
    if !String::from_utf8_lossy(&output.stdout).contains("Imaging Measurement Report") {
        lines.push("printed no report".to_owned());
    }
    lines
}

fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().unwrap_or_else(|error| panic!("cannot run `{program}`: {error}; `make test` installs it"))
}

pub(crate) fn peers_python() -> PathBuf {
    std::env::var_os("HILUM_PEERS_PYTHON").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/hilum/peers-venv/bin/python"),
        PathBuf::from,
    )
}

fn is_report(file: &Path) -> bool {
    let object = dicom_object::OpenFileOptions::new()
        .read_until(dicom_dictionary_std::tags::PATIENT_NAME)
        .open_file(file)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    object
        .element(dicom_dictionary_std::tags::MODALITY)
        .is_ok_and(|modality| modality.to_str().is_ok_and(|modality| modality == "SR"))
}

fn dicom_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "dcm") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
