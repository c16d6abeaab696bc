//! Every picture of the packages `pydicom` and `pydicom-data` decodes as pydicom, GDCM, OpenJPEG and dcmtk decode it
//! (`tests/golden/pixels.json`, made by `make golden-pixels`).

use std::{collections::BTreeMap, path::PathBuf};

use dicom_dictionary_std::uids;
use serde::Deserialize;

use super::{DecodeLimits, ImagingError, decode_frame, decode_grey, read_object};
use crate::types::{ReasonCode, Sha256Digest};

const GOLDEN: &str = include_str!("../../tests/golden/pixels.json");

/// How far a lossy codec's values may be off: arithmetic differs between libraries.
const LOSSY_TOLERANCE: i32 = 1;
/// The same for the colour of JPEG, whose chrominance libraries enlarge by different filters.
const CHROMINANCE_TOLERANCE: i32 = 12;

/// What others guess and we refuse, with the words of the refusal: its data set is Implicit VR, its transfer syntax is
/// not.
const REFUSED: [(&str, &str); 1] =
    [("pydicom-3.0.2/pydicom/data/test_files/SC_rgb_jpeg.dcm", "declares 1230128452 bytes")];

#[derive(Deserialize)]
struct Picture {
    rows: usize,
    columns: usize,
    samples_per_pixel: usize,
    bits_allocated: u16,
    #[serde(default)]
    frames: Vec<Frame>,
    modality_sha256: Option<String>,
}

#[derive(Deserialize)]
struct Frame {
    index: u32,
    sha256: String,
    values: Vec<i32>,
}

fn fixtures() -> PathBuf {
    let folder = std::env::var_os("HILUM_TEST_FIXTURES");
    folder.map(PathBuf::from).expect("HILUM_TEST_FIXTURES names the folder of the test files: run `make test`")
}

fn is_lossy(transfer_syntax_uid: &str) -> bool {
    let lossy = [uids::JPEG_BASELINE8_BIT, uids::JPEG_EXTENDED12_BIT, uids::JPEGLS_NEAR_LOSSLESS, uids::JPEG2000];
    lossy.contains(&transfer_syntax_uid)
}

fn digest(values: impl Iterator<Item = [u8; 4]>) -> String {
    Sha256Digest::of(&values.flatten().collect::<Vec<u8>>()).to_string()
}

/// What is wrong with our decoding of one file; empty when nothing is.
fn compare(name: &str, golden: &Picture) -> Vec<String> {
    let bytes = std::fs::read(fixtures().join(name)).expect("the file is there");
    let object = match read_object(&bytes) {
        Ok(object) => object,
        Err(error) => {
            let is_known = REFUSED.iter().any(|(file, words)| *file == name && error.to_string().contains(words));
            return if is_known { Vec::new() } else { vec![format!("{name}: {error}")] };
        }
    };
    let limits = DecodeLimits::default();
    if !matches!(golden.bits_allocated, 8 | 16) {
        let is_refused = |error: ImagingError| error.reason() == ReasonCode::UnsupportedImage;
        let refused = decode_frame(&object, 0, limits).is_err_and(is_refused);
        return if refused { Vec::new() } else { vec![format!("{name}: is not refused")] };
    }
    let uid = object.meta().transfer_syntax().trim_end_matches('\0').to_owned();
    let tolerance = match (is_lossy(&uid), golden.samples_per_pixel) {
        (false, _) => 0,
        (true, 3) if uid == uids::JPEG_BASELINE8_BIT => CHROMINANCE_TOLERANCE,
        (true, _) => LOSSY_TOLERANCE,
    };
    let mut problems = Vec::new();
    for frame in &golden.frames {
        let decoded = match decode_frame(&object, frame.index, limits) {
            Ok(decoded) => decoded,
            Err(error) => {
                problems.push(format!("{name}, frame {}: {error}", frame.index));
                continue;
            }
        };
        let shape = (decoded.rows, decoded.columns, decoded.samples_per_pixel);
        if shape != (golden.rows, golden.columns, golden.samples_per_pixel) {
            problems.push(format!("{name}: the shape is {shape:?}"));
        }
        if digest(decoded.values.iter().map(|value| value.to_le_bytes())) == frame.sha256 {
            continue;
        }
        let last = decoded.values.len() - 1;
        let spread = (0..frame.values.len()).map(|step| step * last / (frame.values.len() - 1));
        let ours = spread.map(|position| decoded.values[position]);
        let worst = ours.zip(&frame.values).map(|(ours, golden)| (ours - golden).abs()).max().unwrap_or(i32::MAX);
        if worst > tolerance || tolerance == 0 {
            problems.push(format!("{name}, frame {}: differs by up to {worst}, allowed {tolerance}", frame.index));
        }
    }
    if let (Some(expected), true) = (&golden.modality_sha256, tolerance == 0) {
        match decode_grey(&object, limits) {
            Ok(grey) if digest(grey.values.values.iter().map(|value| value.to_le_bytes())) == *expected => {}
            Ok(_) => problems.push(format!("{name}: the values after the Modality LUT differ")),
            Err(error) => problems.push(format!("{name}: {error}")),
        }
    }
    problems
}

#[test]
fn every_picture_decodes_as_other_libraries_decode_it() {
    let golden: BTreeMap<String, Picture> = serde_json::from_str(GOLDEN).expect("a golden file");
    assert!(golden.len() > 160, "only {} pictures", golden.len());
    let problems: Vec<String> = golden.iter().flat_map(|(name, picture)| compare(name, picture)).collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
