//! The corpus on stable Rust: seeds, regressions and the files of the pydicom packages through every target, whole and
//! damaged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::{prelude::*, sample::Index};

use super::*;

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Hand-made seeds and what a fuzzer has found once.
fn committed_seeds(target: &str) -> Vec<Vec<u8>> {
    let folders = ["fuzz/seeds", "fuzz/regressions"].map(|folder| repository().join(folder).join(target));
    folders.iter().flat_map(|folder| files_below(folder)).map(|path| fs::read(path).unwrap()).collect()
}

fn package_files() -> Vec<PathBuf> {
    let fixtures = std::env::var_os("HILUM_TEST_FIXTURES").map(PathBuf::from);
    let fixtures = fixtures.expect("HILUM_TEST_FIXTURES names the folder of the test files: run `make test`");
    let folders = ["pydicom-3.0.2/pydicom/data", "pydicom-data-1.0.0/data_store/data"];
    let files: Vec<PathBuf> = folders.iter().flat_map(|folder| files_below(&fixtures.join(folder))).collect();
    assert!(files.len() > 250, "only {} files below {}", files.len(), fixtures.display());
    files
}

/// The bytes behind the file meta information, where there is one.
fn data_set_of(file: &[u8]) -> &[u8] {
    let group_length = file.get(140..144).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
    group_length.and_then(|length| file.get(144 + length as usize..)).unwrap_or(file)
}

#[test]
fn each_target_has_its_file_and_its_seeds() {
    let mut named: Vec<String> = files_below(&repository().join("fuzz/fuzz_targets"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    named.sort();
    let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(named, targets);
    for name in targets {
        assert!(!committed_seeds(name).is_empty(), "{name} has no seed in fuzz/seeds/{name}");
    }
}

#[test]
fn seeds_and_regressions_pass() {
    for (name, target) in TARGETS {
        for seed in committed_seeds(name) {
            target(&seed);
        }
    }
}

/// Seeds are worth something when the reader goes deep into them.
#[test]
fn seeds_are_understood() {
    assert!(committed_seeds("pdu").iter().any(|seed| crate::dimse::fuzzing::receive_all(seed) >= 4));
    let pictures = committed_seeds("jpeg_12_bit");
    let decodes = |seed: &Vec<u8>| {
        let (rows, columns) = (usize::from(seed[0]) + 1, usize::from(seed[1]) + 1);
        imaging::decode_jpeg_12_bit(&seed[2..], rows, columns).is_ok()
    };
    assert!(pictures.iter().any(decodes));
}

#[test]
fn every_file_of_the_packages_passes_whole_and_cut() {
    for path in package_files() {
        let file = fs::read(path).unwrap();
        for end in [file.len(), file.len() / 2, file.len().min(1000), file.len().min(400)] {
            part10_file(&file[..end]);
            data_set_header(data_set_of(&file[..end]));
        }
    }
}

/// One way to damage a file.
#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Cut(Index),
    Remove(Index, u8),
    Repeat(Index, u8),
    /// All bits of a 16- or 32-bit length.
    Enlarge(Index, bool),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => any::<Index>().prop_map(Damage::Cut),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, count)| Damage::Remove(at, count)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, count)| Damage::Repeat(at, count)),
        2 => (any::<Index>(), any::<bool>()).prop_map(|(at, long)| Damage::Enlarge(at, long)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        let until = |at: usize, count: usize| at..length.min(at + count);
        match damage {
            Damage::Set(at, byte) => bytes[at.index(length)] = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Remove(at, count) => drop(bytes.drain(until(at.index(length), usize::from(*count)))),
            Damage::Repeat(at, count) => {
                let range = until(at.index(length), usize::from(*count));
                let piece = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, piece);
            }
            Damage::Enlarge(at, long) => {
                bytes[until(at.index(length), if *long { 4 } else { 2 })].fill(0xFF);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }

    #[test]
    fn damaged_seeds_pass(seed: Index, damages in prop::collection::vec(damage(), 1..8)) {
        for (name, target) in TARGETS {
            let seeds = committed_seeds(name);
            target(&damaged(seed.get(&seeds).clone(), &damages));
        }
    }

    #[test]
    fn damaged_files_of_the_packages_pass(file: Index, damages in prop::collection::vec(damage(), 1..8)) {
        let file = fs::read(file.get(&package_files())).unwrap();
        // Damage to the pixels is not for these readers.
        let file = damaged(file[..file.len().min(4000)].to_vec(), &damages);
        part10_file(&file);
        data_set_header(data_set_of(&file));
    }
}
