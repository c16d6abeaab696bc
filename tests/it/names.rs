//! Names in every character set: what the modality wrote is what the results carry, and the index can read it.

use std::{collections::BTreeMap, process::Command};

use dicom_core::{DataElement, PrimitiveValue, VR, header::Header};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::{
    support::{
        Node, Orthanc, Radiograph, SENT_OF_A_RADIOGRAPH, Sample, Site, StoreScp, package_files, run, said, storescu_ok,
    },
    validators::peers_python,
};

/// Prints for each file its SOP Instance UID, Study Instance UID, (0008,0005) and the bytes of the name as hexadecimal,
/// and the name as pydicom decodes it.
const READ_NAMES: &str = r#"
import sys, pydicom
for path in sys.argv[1:]:
    raw = pydicom.dcmread(path)
    name = bytes(raw.get_item("PatientName").value).rstrip(b" \0").hex()
    character_set = raw.get_item("SpecificCharacterSet")
    sets = "" if character_set is None else character_set.value or ""
    sets = sets.decode() if isinstance(sets, bytes) else sets if isinstance(sets, str) else "\\".join(sets)
    sets = sets.rstrip(" \0")
    decoded = pydicom.dcmread(path)
    print(decoded.StudyInstanceUID, decoded.Modality, sets, name, str(decoded.PatientName).rstrip(" "), sep="\t")
"#;

/// One line of [`READ_NAMES`].
#[derive(Debug)]
struct Name {
    study: String,
    modality: String,
    character_set: String,
    bytes: String,
    decoded: String,
}

fn read_names(files: &[std::path::PathBuf]) -> Vec<Name> {
    let output =
        run(Command::new(peers_python()).args(["-W", "ignore", "-c", READ_NAMES]).args(files).env("PYTHONUTF8", "1"));
    assert!(output.status.success(), "pydicom: {}", said(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let of_line = |line: &str| {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [study, modality, character_set, bytes, decoded] = fields.try_into().expect("five fields");
        Name { study, modality, character_set, bytes, decoded }
    };
    text.lines().map(of_line).collect()
}

/// The value of a short element of the first 4 KiB of a file, by its bytes.
fn raw_value(file: &[u8], group: u16, element: u16, vr: [u8; 2]) -> Option<Vec<u8>> {
    let file = &file[..file.len().min(4096)];
    let tag = [group.to_le_bytes(), element.to_le_bytes()].concat();
    let explicit = [tag.clone(), vr.to_vec()].concat();
    let find = |head: &[u8]| file.windows(head.len()).position(|bytes| bytes == head).map(|at| at + head.len());
    let (start, length) = if let Some(at) = find(&explicit) {
        (at + 2, usize::from(u16::from_le_bytes([file[at], file[at + 1]])))
    } else {
        let at = find(&tag)?;
        (at + 4, u32::from_le_bytes(file[at..at + 4].try_into().ok()?) as usize)
    };
    file.get(start..start + length).map(<[u8]>::to_vec)
}

/// A radiograph whose name has these bytes in this character set.
fn radiograph(character_set: Option<&[u8]>, name: &[u8], folder: &std::path::Path) -> Sample {
    let even = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if bytes.len() % 2 == 1 {
            bytes.push(b' ');
        }
        PrimitiveValue::U8(bytes.into())
    };
    // As bytes, in a data set made anew: a changed one would be written in the character set of the library's choice.
    let object = Radiograph::default().object();
    let meta = object.meta().clone();
    let replaced = [tags::SPECIFIC_CHARACTER_SET, tags::PATIENT_NAME];
    let others = object.into_inner().into_iter().filter(|element| !replaced.contains(&element.tag()));
    let character_set = character_set.map(|set| DataElement::new(tags::SPECIFIC_CHARACTER_SET, VR::CS, even(set)));
    let name = DataElement::new(tags::PATIENT_NAME, VR::PN, even(name));
    let object = InMemDicomObject::from_element_iter(others.chain(character_set).chain([name]));
    Sample::write(&object.with_exact_meta(meta), folder)
}

#[test]
fn heavy_names_in_every_character_set_survive_into_results_and_index() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    let folder = node.scratch("names");
    let mut samples = Vec::new();
    // The names of `chrSQEncoding` lie in sequence items with character sets of their own, which nothing copies.
    let is_sample = |path: &&std::path::PathBuf| {
        path.parent().is_some_and(|parent| parent.ends_with("charset_files"))
            && !path.to_string_lossy().contains("chrSQEncoding")
    };
    let files = package_files();
    for path in files.iter().filter(is_sample) {
        let file = fs_err::read(path).expect("a file");
        if let Some(name) = raw_value(&file, 0x0010, 0x0010, *b"PN").filter(|name| !name.is_empty()) {
            let character_set = raw_value(&file, 0x0008, 0x0005, *b"CS");
            samples.push(radiograph(character_set.as_deref(), &name, &folder));
        }
    }
    assert!(samples.len() >= 14, "only {} of pydicom's samples have a name", samples.len());
    // Where a second byte is 5CH, the delimiter of values, pydicom cuts the character in two: it is no judge.
    let mut beyond_pydicom = BTreeMap::new();
    for (character_set, name, decoded) in [
        ("GB18030", &b"Wang=\xD5\x5C^\xD5\x5C"[..], "Wang=誠^誠"),
        ("GBK", b"\xD5\x5C^\xCD\xF5", "誠^王"),
        ("\\ISO 2022 IR 87", b"A^B=\x1B$B@\\\x1B(B^\x1B$B%=\x1B(B", "A^B=接^ソ"),
        ("ISO_IR 166", b"\xCA\xC1\xAA\xD2\xC2", "สมชาย"),
        ("\\ISO 2022 IR 58", b"Zhang=\x1B$)A\xD5\xC5^\x1B$)A\xD0\xA1\xB6\xAB", "Zhang=张^小东"),
        ("ISO_IR 192", "Ωmega^Ünïcode=王^小东".as_bytes(), "Ωmega^Ünïcode=王^小东"),
    ] {
        let sample = radiograph(Some(character_set.as_bytes()), name, &folder);
        beyond_pydicom.insert(sample.study_instance_uid.clone(), decoded);
        samples.push(sample);
    }
    // No character set, and bytes beyond ASCII all the same.
    samples.push(radiograph(None, b"Buc^J\xE9r\xF4me", &folder));

    let sources = read_names(&samples.iter().map(|sample| sample.path.clone()).collect::<Vec<_>>());
    node.send("SCANNER", &[&folder]);
    for sample in &samples {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
        node.wait_for_deliveries(&sample.study_instance_uid, SENT_OF_A_RADIOGRAPH);
    }
    let results = read_names(&pacs.files());
    let log = node.log();
    let mut misread = Vec::new();
    for source in &sources {
        let of_study: Vec<&Name> = results.iter().filter(|result| result.study == source.study).collect();
        let modalities: Vec<&str> = of_study.iter().map(|result| result.modality.as_str()).collect();
        assert!(modalities.contains(&"SR") && modalities.len() == SENT_OF_A_RADIOGRAPH, "{source:?}: {modalities:?}");
        for result in of_study {
            assert_eq!(result.bytes, source.bytes, "{source:?}");
            let assumed = if source.character_set.is_empty() && !source.decoded.is_ascii() { "ISO_IR 100" } else { "" };
            let expected = if assumed.is_empty() { &source.character_set } else { assumed };
            assert_eq!(result.character_set, expected, "{source:?}");
        }
        let row =
            node.database.row(&format!("select patient_name from study where study_instance_uid = '{}'", source.study));
        let indexed = row["patient_name"].as_str().expect("a name");
        let decoded = beyond_pydicom.get(&source.study).copied().unwrap_or(&source.decoded);
        // pydicom leaves empty component groups at the end out.
        if indexed.trim_end_matches('=') != decoded.trim_end_matches('=') {
            misread.push(format!("{source:?}: {indexed:?} in the index, expected {decoded:?}"));
        }
        let words = decoded.split(['^', '=', ' ', ',']).filter(|word| word.chars().count() > 2);
        for word in words {
            assert!(!log.contains(word), "{word:?} is in the log");
        }
    }
    assert!(misread.is_empty(), "{}", misread.join("\n"));
}

/// The image with the corrected name is received last; its UID is the lowest, so that it is the first in every other order.
#[test]
fn heavy_a_name_that_was_corrected_reaches_the_results() {
    let orthanc = Orthanc::start();
    let node = Node::start(&Site::usual(orthanc.dicom_port));
    let folder = node.scratch("sent");
    let wrong =
        Radiograph { patient_name: "Wrong^Name", sop_instance_uid: "2.25.99".to_owned(), ..Radiograph::default() };
    let right = Radiograph { patient_name: "Right^Name", sop_instance_uid: "2.25.11".to_owned(), ..wrong.sibling() };
    let (wrong, right) = (wrong.write(&folder), right.write(&folder));
    storescu_ok(node.dicom_port, "SCANNER", "HILUM", &[], &[&wrong.path, &right.path]);
    let study = &wrong.study_instance_uid;
    node.wait_for_workup(study, "answered");
    let results = orthanc.instances_of(study);
    assert!(!results.is_empty());
    for result in results {
        assert_eq!(result.tag("PatientName"), "Right^Name", "{}", result.tag("Modality"));
    }
    node.assert_clean_log();
}
