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

/// The same for Secondary Capture, which has the Image Plane and Frame of Reference modules since 2024: its build of 2022
/// does not know that.
const ALLOWED_BY_DCIODVFY_OF_PICTURES: [&str; 6] = [
    "Attribute is not present in standard DICOM IOD - (0x0018,0x0050)",
    "Attribute is not present in standard DICOM IOD - (0x0020,0x0032)",
    "Attribute is not present in standard DICOM IOD - (0x0020,0x0037)",
    "Attribute is not present in standard DICOM IOD - (0x0020,0x0052)",
    "Attribute is not present in standard DICOM IOD - (0x0020,0x1040)",
    "Attribute is not present in standard DICOM IOD - (0x0020,0x1041)",
];

/// The same for `dsrdump`: it reads these sets but does not check values in them.
const ALLOWED_BY_DSRDUMP: [&str; 1] = ["The VR checker does not support this Specific Character Set"];

/// Reads every file with pydicom and highdicom and prints, for each report with measurements, its groups and
/// how many of them hold a number. Reports in sentences, which highdicom does not know, are read by pydicom; no text may
/// hold what its character set cannot say. Beside a segmentation `x.dcm` there may be `x.masks`: for each image that it
/// refers to, row after row, a byte for each pixel with bit n - 1 for segment n; every pixel must be so.
const READ_WITH_HIGHDICOM: &str = r#"
import sys, pathlib, numpy as np, pydicom, highdicom as hd
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.dcm")):
    data_set = pydicom.dcmread(path)
    if data_set.Modality == "SR":
        texts = [element.value for element in data_set.iterall() if element.VR in ("LO", "SH", "ST", "LT", "UT")]
        assert not any("\ufffd" in str(text) for text in texts), path
    if data_set.get("SOPClassUID") == "1.2.840.10008.5.1.4.1.1.88.11":
        containers = [item for item in data_set.ContentSequence if item.ValueType == "CONTAINER"]
        types = [item.ValueType for container in containers for item in container.ContentSequence]
        assert len(containers) == 2 and "IMAGE" in types and "TEXT" in types and "NUM" not in types, (path, types)
        print("SR", path.name, "no measurements")
    elif data_set.Modality == "SR":
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
    elif data_set.Modality == "SEG":
        seg = hd.seg.segread(path)
        uids = [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
        pixels = seg.get_pixels_by_source_instance(
            uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
        assert pixels.shape == (len(uids), seg.Rows, seg.Columns, seg.number_of_segments), (path, pixels.shape)
        assert pixels.any(axis=(0, 1, 2)).all(), path
        masks = path.with_suffix(".masks")
        if masks.exists():
            bits = np.fromfile(masks, np.uint8).reshape(pixels.shape[:3])
            for n in range(seg.number_of_segments):
                assert np.array_equal(pixels[..., n] != 0, bits >> n & 1 != 0), (path, n + 1)
        print("SEG", path.name, seg.number_of_segments)
    elif data_set.Modality == "PR":
        for item in data_set.GraphicAnnotationSequence:
            for graphic in item.GraphicObjectSequence:
                points = np.array(graphic.GraphicData).reshape(-1, 2)
                assert len(points) == graphic.NumberOfGraphicPoints and (points[0] == points[-1]).all(), path
                area = data_set.DisplayedAreaSelectionSequence[0].DisplayedAreaBottomRightHandCorner
                assert (points >= 0).all() and (points <= np.array(area)).all(), path
        print("PR", path.name)
    elif data_set.Modality == "KO":
        document = hd.ko.KeyObjectSelectionDocument.from_dataset(data_set)
        images = document.content.get_references(value_type=hd.sr.ValueTypeValues.IMAGE)
        assert len(images) > 0, path
        for image in images:
            study, series, instance = document.resolve_reference(image.referenced_sop_instance_uid)
            assert study == data_set.StudyInstanceUID, path
        print("KO", path.name, len(images))
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
        if modality(file) == "SR" {
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
    assert!(files.iter().any(|file| modality(file) == "SR"), "no report in {}", folder.display());
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// What `dciodvfy` says beyond the allowed; its exit code says nothing.
fn dciodvfy(file: &Path) -> Vec<String> {
    let output = run(Command::new("dciodvfy").arg(file));
    let of_pictures: &[&str] = if ["SR", "SEG", "PR", "KO"].contains(&modality(file).as_str()) {
        &[]
    } else {
        &ALLOWED_BY_DCIODVFY_OF_PICTURES
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    said.lines()
        .filter(|line| line.starts_with("Error") || line.starts_with("Warning"))
        .filter(|line| !ALLOWED_BY_DCIODVFY.iter().chain(of_pictures).any(|allowed| line.contains(allowed)))
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
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !["Imaging Measurement Report", "Diagnostic imaging study"].iter().any(|title| printed.contains(title)) {
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

/// (0008,0060)
fn modality(file: &Path) -> String {
    let object = dicom_object::OpenFileOptions::new()
        .read_until(dicom_dictionary_std::tags::PATIENT_NAME)
        .open_file(file)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    let modality = object.element(dicom_dictionary_std::tags::MODALITY);
    modality.ok().and_then(|modality| modality.to_str().ok()).map(|text| text.trim().to_owned()).unwrap_or_default()
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
