//! Which files there are, what their file meta information says, and which of them share an association.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, BufReader, Read, Seek},
    path::{Path, PathBuf},
};

use dicom_dictionary_std::uids;
use dicom_object::FileMetaTable;

use super::SkippedFile;
use crate::types::Uid;

/// Presentation contexts that one association holds: their ids are the odd numbers of one byte (PS3.8 9.3.2.2).
pub(super) const MAX_CONTEXTS: usize = 128;

/// File meta information that is worth reading; real ones have a few hundred bytes.
const MAX_META_BYTES: u64 = 1 << 20;

/// What a presentation context is about: a SOP class in the one transfer syntax that its files have.
pub(super) type Context = (Uid, Uid);

/// A file that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct DicomFile {
    pub(in crate::cli) path: PathBuf,
    pub(in crate::cli) sop_class_uid: Uid,
    pub(in crate::cli) sop_instance_uid: Uid,
    pub(super) transfer_syntax_uid: Uid,
    /// Where the data set begins.
    pub(super) data_set_offset: u64,
    pub(super) data_set_bytes: u64,
}

impl DicomFile {
    pub(super) fn context(&self) -> Context {
        (self.sop_class_uid.clone(), self.transfer_syntax_uid.clone())
    }
}

/// What was found under the paths.
#[derive(Debug, Default)]
pub(in crate::cli) struct Found {
    pub(in crate::cli) files: Vec<DicomFile>,
    /// In folders: what is not for sending.
    pub(super) skipped: Vec<SkippedFile>,
    /// Named by the user, and not for sending.
    pub(in crate::cli) unusable: Vec<SkippedFile>,
}

/// Finds the DICOM files under `paths`: files in the given order, folders in the order of their names, links to
/// folders inside folders not followed. Fails when a given path does not exist.
pub(in crate::cli) fn find(paths: &[PathBuf]) -> io::Result<Found> {
    let mut found = Found::default();
    for path in paths {
        if fs_err::metadata(path)?.is_dir() {
            find_below(path, &mut found);
        } else {
            match read(path) {
                Ok(file) => found.files.push(file),
                Err(reason) => found.unusable.push(SkippedFile { path: path.clone(), reason }),
            }
        }
    }
    Ok(found)
}

fn find_below(folder: &Path, found: &mut Found) {
    let mut waiting = VecDeque::from([folder.to_owned()]);
    while let Some(folder) = waiting.pop_front() {
        let mut entries: Vec<PathBuf> = match fs_err::read_dir(&folder) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(error) => {
                found.skipped.push(SkippedFile { path: folder, reason: error.to_string() });
                continue;
            }
        };
        entries.sort();
        for path in entries {
            if path.is_dir() {
                if !path.is_symlink() {
                    waiting.push_back(path);
                }
                continue;
            }
            match read(&path) {
                Ok(file) => found.files.push(file),
                Err(reason) => found.skipped.push(SkippedFile { path, reason }),
            }
        }
    }
}

/// Reads the file meta information. The error says why the file is not for sending.
pub(super) fn read(path: &Path) -> Result<DicomFile, String> {
    let metadata = fs_err::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a file".to_owned());
    }
    let mut reader = BufReader::new(fs_err::File::open(path).map_err(|error| error.to_string())?);
    let mut preamble = [0; 128];
    reader.read_exact(&mut preamble).map_err(|_| "not a DICOM file: shorter than 132 bytes".to_owned())?;
    let meta = {
        let mut head = (&mut reader).take(MAX_META_BYTES);
        let mut prefix = [0; 4];
        head.read_exact(&mut prefix).map_err(|_| "not a DICOM file: shorter than 132 bytes".to_owned())?;
        if prefix != *b"DICM" {
            return Err("not a DICOM file: no `DICM` after the preamble".to_owned());
        }
        FileMetaTable::from_reader(prefix.chain(head))
            .map_err(|error| format!("the file meta information is unreadable: {error}"))?
    };
    let data_set_offset = reader.stream_position().map_err(|error| error.to_string())?;
    let uid = |text: &str, what: &str| Uid::new(text).map_err(|error| format!("{what}: {error}"));
    let sop_class_uid = uid(meta.media_storage_sop_class_uid(), "Media Storage SOP Class UID (0002,0002)")?;
    if sop_class_uid.as_str() == uids::MEDIA_STORAGE_DIRECTORY_STORAGE {
        return Err("a DICOMDIR, which stays with its files".to_owned());
    }
    let data_set_bytes = metadata.len().saturating_sub(data_set_offset);
    if data_set_bytes == 0 {
        return Err("has no data set".to_owned());
    }
    Ok(DicomFile {
        path: path.to_owned(),
        sop_class_uid,
        sop_instance_uid: uid(meta.media_storage_sop_instance_uid(), "Media Storage SOP Instance UID (0002,0003)")?,
        transfer_syntax_uid: uid(meta.transfer_syntax(), "Transfer Syntax UID (0002,0010)")?,
        data_set_offset,
        data_set_bytes,
    })
}

/// Files that can share an association, with the contexts they need: at most [`MAX_CONTEXTS`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) contexts: BTreeSet<Context>,
    pub(in crate::cli) files: Vec<DicomFile>,
}

/// Splits the files where one association cannot hold all their contexts. Each context is in one group only, so
/// that as few associations as possible are needed; within a group the files keep their order.
pub(super) fn group(files: Vec<DicomFile>) -> Vec<Group> {
    let mut group_of: BTreeMap<Context, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for file in files {
        let n_known = group_of.len();
        let group_idx = *group_of.entry(file.context()).or_insert(n_known / MAX_CONTEXTS);
        if group_idx == groups.len() {
            groups.push(Group { contexts: BTreeSet::new(), files: Vec::new() });
        }
        if let Some(group) = groups.get_mut(group_idx) {
            group.contexts.insert(file.context());
            group.files.push(file);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(class: usize, syntax: usize, instance: usize) -> DicomFile {
        let uid = |text: String| Uid::new(&text).unwrap();
        DicomFile {
            path: format!("{instance}.dcm").into(),
            sop_class_uid: uid(format!("1.2.{class}")),
            sop_instance_uid: uid(format!("1.3.{instance}")),
            transfer_syntax_uid: uid(format!("1.4.{syntax}")),
            data_set_offset: 300,
            data_set_bytes: 10,
        }
    }

    #[test]
    fn files_of_few_kinds_share_one_association() {
        let files: Vec<_> = (0..100).map(|instance| file(instance % 3, instance % 2, instance)).collect();
        let groups = group(files.clone());
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].files, files);
        assert_eq!(groups[0].contexts.len(), 6);
        assert!(group(Vec::new()).is_empty());
    }

    #[test]
    fn more_contexts_than_an_association_holds_are_split() {
        // Each kind twice, far apart: a kind must not be proposed in two groups.
        let files: Vec<_> = (0..600).map(|instance| file(instance % 300, 1, instance)).collect();
        let groups = group(files);
        let sizes: Vec<_> = groups.iter().map(|group| (group.contexts.len(), group.files.len())).collect();
        assert_eq!(sizes, [(128, 256), (128, 256), (44, 88)]);
        assert!(groups[0].contexts.is_disjoint(&groups[1].contexts));
        for group in &groups {
            assert!(group.files.iter().all(|file| group.contexts.contains(&file.context())));
        }
    }
}
