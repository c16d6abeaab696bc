//! The entry points of the fuzz targets (`fuzz/`), and their replay on stable Rust.
//!
//! Each function takes bytes that a stranger may have written and must return: no panic, no unbounded memory or time.
//! What they find is for the fuzzer to see; results do not matter, except for what is asserted.

use std::path::Path;

use crate::{
    archive, config, dimse,
    imaging::{self, GuardLimits, ImageHeader},
    report::SourceHeader,
    types::{self, Uid},
};

/// A fuzz target: its name and what it calls.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by the names of their files in `fuzz/fuzz_targets/`.
pub const TARGETS: [Target; 7] = [
    ("pdu", pdu),
    ("command_set", command_set),
    ("data_set_header", data_set_header),
    ("part10_file", part10_file),
    ("character_set", character_set),
    ("configuration", configuration),
    ("jpeg_12_bit", jpeg_12_bit),
];

/// A stream of PDUs.
pub fn pdu(bytes: &[u8]) {
    dimse::fuzzing::receive_all(bytes);
}

/// A DIMSE command set.
pub fn command_set(bytes: &[u8]) {
    dimse::fuzzing::command_set(bytes);
}

/// A data set as the receiving process reads it, in each of its encodings.
pub fn data_set_header(bytes: &[u8]) {
    for transfer_syntax in ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]
    {
        if let Ok(uid) = Uid::new(transfer_syntax) {
            let _ = archive::read_header(bytes, &uid);
        }
    }
}

/// A file as the inference process reads it: whatever the guard lets pass, the parsers must survive.
pub fn part10_file(bytes: &[u8]) {
    let limits = GuardLimits { max_inflated_bytes: 16 << 20, ..GuardLimits::default() };
    if imaging::check_part10(bytes, &limits).is_err() {
        return;
    }
    if let Ok(object) = imaging::read_object(bytes) {
        let _ = ImageHeader::from_object(&object);
    }
    let _ = SourceHeader::from_part10(bytes);
}

/// The first byte is the length of (0008,0005), which follows; the rest is text in it.
pub fn character_set(bytes: &[u8]) {
    let (length, rest) = bytes.split_first().map_or((0, bytes), |(length, rest)| (usize::from(*length), rest));
    let (set, text) = rest.split_at(length.min(rest.len()));
    for is_person_name in [false, true] {
        let decoded = types::decode_text(Some(set), text, is_person_name);
        // The index bounds values before they are decoded: decoding must not multiply them.
        assert!(decoded.len() <= 3 * text.len(), "{} bytes became {}", text.len(), decoded.len());
    }
}

/// A configuration file, of the node and of the site.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    config::problems_of_text(&text);
    if let Err(errors) = config::parse_site(&text, Path::new("site.toml")) {
        assert!(!errors.to_string().is_empty(), "a problem without words");
    }
}

/// A picture of JPEG Extended with 12 bits; the first two bytes are its rows and columns.
pub fn jpeg_12_bit(bytes: &[u8]) {
    let Some((&[rows, columns], picture)) = bytes.split_first_chunk() else { return };
    let (rows, columns) = (usize::from(rows) + 1, usize::from(columns) + 1);
    if let Ok(samples) = imaging::decode_jpeg_12_bit(picture, rows, columns) {
        assert_eq!(samples.len(), rows * columns);
        assert!(samples.iter().all(|&sample| sample < 4096));
    }
}

#[cfg(test)]
mod tests;
