//! Every file of the packages `pydicom` and `pydicom-data` goes through a node: stored or refused with a reason, and
//! what is stored as a radiograph is analysed or says why not. Nothing crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use dicom_dictionary_std::{tags, uids};
use dicom_object::{OpenFileOptions, file::ReadPreamble};
use serde_json::Value;

use super::{
    hostile::{CR_STORAGE, RawPeer},
    support::{Node, PATIENCE, Site, StoreScp, fresh_uid, package_files, text, wait_for},
};

/// A file cut into what travels: with no file meta information, all of it is the data set.
struct Travelling {
    sop_class: String,
    sop_instance: String,
    transfer_syntax: String,
    data_set: Vec<u8>,
}

impl Travelling {
    fn read(path: &Path) -> Self {
        let bytes = fs_err::read(path).expect("a file");
        let unreadable = |data_set| Self {
            sop_class: CR_STORAGE.to_owned(),
            sop_instance: fresh_uid(),
            transfer_syntax: uids::EXPLICIT_VR_LITTLE_ENDIAN.to_owned(),
            data_set,
        };
        let Some(length) = bytes.get(140..144).filter(|_| bytes.get(128..132) == Some(b"DICM")) else {
            return unreadable(bytes);
        };
        let start = 144 + u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let data_set = bytes.get(start..).unwrap_or_default().to_vec();
        let mut reader = &bytes[128..];
        let Ok(meta) = dicom_object::FileMetaTable::from_reader(&mut reader) else { return unreadable(data_set) };
        Self {
            sop_class: plain(&meta.media_storage_sop_class_uid),
            sop_instance: plain(&meta.media_storage_sop_instance_uid),
            transfer_syntax: plain(&meta.transfer_syntax),
            data_set,
        }
    }

    /// The same object as Computed Radiography in a study of its own; `None` when its identifiers are not found.
    fn as_radiograph(&self, study: &str) -> Option<Self> {
        let sop_instance = fresh_uid();
        let mut data_set = self.data_set.clone();
        for (tag, uid) in [([0x08, 0x16], CR_STORAGE), ([0x08, 0x18], &sop_instance), ([0x20, 0x0D], study)] {
            data_set = self.with_element(&data_set, tag, *b"UI", uid)?;
        }
        let modality = [0x08, 0x60];
        data_set = self.with_element(&data_set, modality, *b"CS", "CR").unwrap_or_else(|| {
            // Out of its order, which readers forgive.
            [self.encoded(modality, *b"CS", "CR"), data_set].concat()
        });
        let transfer_syntax = self.transfer_syntax.clone();
        Some(Self { sop_class: CR_STORAGE.to_owned(), sop_instance, transfer_syntax, data_set })
    }

    fn tag_and_vr(&self, [group, element]: [u8; 2], vr: [u8; 2]) -> Vec<u8> {
        let tag = if self.is_big_endian() { [0, group, 0, element] } else { [group, 0, element, 0] };
        if self.is_implicit() { tag.to_vec() } else { [&tag[..], &vr].concat() }
    }

    fn is_big_endian(&self) -> bool {
        self.transfer_syntax == "1.2.840.10008.1.2.2"
    }

    fn is_implicit(&self) -> bool {
        self.transfer_syntax == uids::IMPLICIT_VR_LITTLE_ENDIAN
    }

    fn encoded(&self, tag: [u8; 2], vr: [u8; 2], value: &str) -> Vec<u8> {
        let mut value = value.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(0);
        }
        let length = u16::try_from(value.len()).expect("short");
        let length = match (self.is_implicit(), self.is_big_endian()) {
            (true, _) => u32::from(length).to_le_bytes().to_vec(),
            (_, true) => length.to_be_bytes().to_vec(),
            _ => length.to_le_bytes().to_vec(),
        };
        [self.tag_and_vr(tag, vr), length, value].concat()
    }

    /// Replaces the first element of this tag, without parsing what surrounds it.
    fn with_element(&self, data_set: &[u8], tag: [u8; 2], vr: [u8; 2], value: &str) -> Option<Vec<u8>> {
        let head = self.tag_and_vr(tag, vr);
        let at = data_set.windows(head.len()).position(|bytes| bytes == head)?;
        let (n_length_bytes, old) = match data_set.get(at + head.len()..)? {
            [a, b, c, d, ..] if self.is_implicit() => (4, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            [a, b, ..] if self.is_big_endian() => (2, usize::from(u16::from_be_bytes([*a, *b]))),
            [a, b, ..] => (2, usize::from(u16::from_le_bytes([*a, *b]))),
            _ => return None,
        };
        let rest = data_set.get(at + head.len() + n_length_bytes + old..)?;
        Some([&data_set[..at], &self.encoded(tag, vr, value), rest].concat())
    }
}

fn plain(uid: &str) -> String {
    uid.trim_end_matches(['\0', ' ']).to_owned()
}

/// What became of a file on its way in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Stored,
    /// The status of C-STORE.
    Refused(u16),
    /// The result of the presentation context.
    NoContext(u8),
}

fn send(node: &Node, object: &Travelling) -> Outcome {
    let (mut peer, result) =
        RawPeer::negotiate(node.dicom_port, "SCANNER", "HILUM", &object.sop_class, &object.transfer_syntax);
    let outcome = match result {
        0 => match peer.store(&object.sop_class, &object.sop_instance, &object.data_set) {
            0x0000 => Outcome::Stored,
            status => Outcome::Refused(status),
        },
        reason => Outcome::NoContext(reason),
    };
    assert_eq!(peer.echo(), 0x0000, "the association has suffered");
    peer.release();
    outcome
}

/// What distinguishes a picture for a decoder; files that cannot be read are each a kind of their own.
fn kind_of_picture(path: &Path, object: &Travelling) -> String {
    let options = OpenFileOptions::new().read_preamble(ReadPreamble::Always).read_until(tags::PIXEL_DATA);
    let Ok(header) = options.open_file(path) else { return path.display().to_string() };
    let attributes = [
        tags::PHOTOMETRIC_INTERPRETATION,
        tags::SAMPLES_PER_PIXEL,
        tags::PLANAR_CONFIGURATION,
        tags::BITS_ALLOCATED,
        tags::BITS_STORED,
        tags::PIXEL_REPRESENTATION,
    ];
    let words = attributes.map(|tag| text(&header, tag));
    let frames = text(&header, tags::NUMBER_OF_FRAMES).parse().unwrap_or(1) > 1;
    format!("{} {words:?} {frames}", object.transfer_syntax)
}

#[test]
fn heavy_every_file_of_the_packages_is_stored_or_refused_with_a_reason() {
    let pacs = StoreScp::start();
    let mut node = Node::start(&Site::usual(pacs.port));
    let inference = node.inference_process_id().expect("the inference process runs");
    let mut outcomes: BTreeMap<Outcome, Vec<String>> = BTreeMap::new();
    let mut kinds = BTreeSet::new();
    let mut radiographs: Vec<(String, String)> = Vec::new();
    for path in package_files() {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let object = Travelling::read(&path);
        outcomes.entry(send(&node, &object)).or_default().push(name.clone());
        // One of each kind goes again as a radiograph, in a study of its own: the decoders see them all.
        if let Some(radiograph) =
            object.as_radiograph(&fresh_uid()).filter(|_| kinds.insert(kind_of_picture(&path, &object)))
        {
            let outcome = send(&node, &radiograph);
            if outcome == Outcome::Stored {
                radiographs.push((radiograph.sop_instance, name.clone()));
            }
            outcomes.entry(outcome).or_default().push(format!("{name} as CR"));
        }
    }
    for (outcome, names) in &outcomes {
        println!("{outcome:?}: {} {names:?}", names.len());
        match outcome {
            Outcome::Stored => {}
            // PS3.4 B.2.3: the data set cannot be understood, or is not what the command announces.
            Outcome::Refused(status) => assert!([0xC000, 0xA900].contains(status), "{status:#06X}: {names:?}"),
            // PS3.8 table 9-18: abstract syntax or transfer syntaxes not supported.
            Outcome::NoContext(result) => assert!([3, 4].contains(result), "{result}: {names:?}"),
        }
    }
    assert!(outcomes[&Outcome::Stored].len() > 60, "{} stored", outcomes[&Outcome::Stored].len());

    // Every study ends: analysed, not analysed with a coded reason, or no route takes it (CT).
    wait_for("every study has its end", PATIENCE * 4, || {
        let open = "select 1 from workup where state not in ('answered', 'not_routed', 'parked')";
        (node.database.count(open) == 0).then_some(())
    });
    let query = "select i.sop_instance_uid, w.state as workup, r.state, r.reason, r.words from instance i \
                 join workup w on w.study_instance_uid = i.study_instance_uid \
                 left join run r on r.workup_id = w.id and r.revision = w.revision";
    let ends: BTreeMap<String, Value> = node
        .database
        .rows(query)
        .into_iter()
        .map(|row| (row["sop_instance_uid"].as_str().expect("a UID").to_owned(), row))
        .collect();
    for (sop_instance, name) in &radiographs {
        let end = &ends[sop_instance];
        println!("{name}: {} {} {}", end["state"], end["reason"], end["words"]);
        match end["state"].as_str() {
            Some("succeeded") => {}
            Some("not_analysed") => assert!(!end["reason"].is_null() && !end["words"].is_null(), "{name}: {end}"),
            _ => panic!("{name}: {end}"),
        }
    }
    assert!(ends.values().all(|end| end["workup"] != "parked"), "{ends:#?}");
    assert!(radiographs.len() > 40, "only {} radiographs", radiographs.len());
    assert_eq!(node.inference_process_id(), Some(inference), "the inference process died");
    node.wait_until_ready();
    node.assert_clean_log();
}
