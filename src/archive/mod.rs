//! Durable object files.
//!
//! ```text
//! <root>/incoming/<uuid>.part                      being received; removed when the node starts
//! <root>/objects/2026/11/22/09/<uuid>.dcm          received objects, by the hour (UTC) of their receipt
//! <root>/results/2026/11/22/09/<run>-sr-<uid>.dcm  rendered results and their previews (-sc-<uid>.dcm, -sc-<uid>.png), by the hour
//!                                                  (UTC) of the analysis
//! ```
//!
//! A file appears under its final name only after its bytes are on the disk: unique temporary name → fdatasync →
//! rename → fsync of the folder. Names are ours: a peer's UID is never a path. The Part 10 file meta carries the
//! origin of the object, so the index can be rebuilt from the files alone.
//!
//! Architecture invariant: no DICOM networking, no SQL. Calls block; async callers use `spawn_blocking`.
//! Entry type: [`Archive`].

mod disk;
mod header;
mod object_file;
mod part10;
mod retention;
mod watched;

use std::{
    io::{self, Write},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex},
};

use fs_err as fs;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

pub use disk::{DiskGuard, DiskLines, DiskState, FillRate};
pub use header::{HeaderError, read_header};
pub use part10::{ImplementationIds, ObjectMeta};

use crate::types::{ObjectHeader, ObjectOrigin, Sha256Digest, StoredObject, Uid};
use object_file::{Buffers, ObjectFile};

/// Bytes of a data set that are kept in memory until its header is read: nearly every header ends in them.
const HEAD_BYTES: usize = 64 * 1024;

/// What can go wrong with the archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk said no.
    #[error("archive: {0}")]
    Io(#[from] io::Error),
    /// The data set is not what it should be.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A key that this archive did not make.
    #[error("`{0}` is not an archive key")]
    BadKey(String),
}

impl ArchiveError {
    /// Whether the disk, the quota or the file limit is exhausted: the sender should try again later.
    #[must_use]
    pub fn is_out_of_resources(&self) -> bool {
        match self {
            Self::Io(error) => {
                matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
                ) || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
            }
            _ => false,
        }
    }
}

/// The archive folder of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    ids: ImplementationIds,
    /// Free bytes that results leave on the disk.
    results_reserve_bytes: u64,
    /// The folder made last, so that not every file asks whether its folder exists.
    last_folder: Mutex<Option<PathBuf>>,
    /// For objects that are being received.
    buffers: Buffers,
}

impl Archive {
    /// Opens the archive at `root`, making its folders. Results are not stored when less than
    /// `results_reserve_bytes` would stay free.
    pub fn open(root: &Path, ids: ImplementationIds, results_reserve_bytes: u64) -> Result<Self, ArchiveError> {
        for folder in ["incoming", "objects", "results"] {
            fs::create_dir_all(root.join(folder))?;
        }
        sync_folder(root)?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                ids,
                results_reserve_bytes,
                last_folder: Mutex::new(None),
                buffers: Buffers::default(),
            }),
        })
    }

    /// Removes what a killed process left half received: none of it was acknowledged. Only the process that
    /// receives may call this, before it listens. Returns how many files there were.
    pub fn remove_unfinished(&self) -> Result<usize, ArchiveError> {
        let mut removed = 0;
        for entry in fs::read_dir(self.inner.root.join("incoming"))? {
            fs::remove_file(entry?.path())?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Begins to store an object. Nothing is visible until [`IncomingObject::finish`].
    pub fn begin(&self, meta: ObjectMeta) -> Result<IncomingObject, ArchiveError> {
        let id = Uuid::now_v7();
        let temporary = self.inner.root.join("incoming").join(format!("{id}.part"));
        let part10_header = part10::header(&meta, &self.inner.ids)?;
        let file = fs::OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        let mut incoming = IncomingObject {
            archive: self.clone(),
            id,
            header_bytes: part10_header.len() as u64,
            head: Vec::with_capacity(HEAD_BYTES),
            size_bytes: 0,
            digest: Sha256::new(),
            meta,
            temporary: TemporaryFile { path: temporary, armed: true },
            file: ObjectFile::new(file, &self.inner.buffers),
        };
        incoming.file.append(&part10_header)?;
        Ok(incoming)
    }

    /// Stores the bytes of a rendered result durably. Returns its key. It is made of the run, the start of its analysis and
    /// the `part` (such as `sr-0.dcm`) alone: a rendering that is repeated writes the same file again, not a second one.
    pub fn store_result(
        &self,
        bytes: &[u8],
        run_id: Uuid,
        analysed_at: OffsetDateTime,
        part: &str,
    ) -> Result<String, ArchiveError> {
        self.check_reserve(bytes.len() as u64)?;
        let temporary = self.inner.root.join("incoming").join(format!("result-{}.part", Uuid::now_v7()));
        let mut guard = TemporaryFile { path: temporary.clone(), armed: true };
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.write_all(bytes)?;
        let key = format!("results/{}/{run_id}-{part}", hour_folder(analysed_at));
        self.publish(&file, &temporary, &key)?;
        guard.armed = false;
        Ok(key)
    }

    /// fdatasync → rename → fsync of the folder.
    fn publish(&self, file: &fs::File, temporary: &Path, key: &str) -> Result<(), ArchiveError> {
        file.sync_data()?;
        let path = self.inner.root.join(key);
        let folder = path.parent().ok_or_else(|| ArchiveError::BadKey(key.to_owned()))?;
        self.make_folder(folder)?;
        fs::rename(temporary, &path)?;
        sync_folder(folder).inspect_err(|_| {
            // Nobody will ask for it: a copy comes again. What cannot be removed now is found by the next scan.
            let _ = fs::remove_file(&path);
        })?;
        Ok(())
    }

    /// Makes a folder below the root with its parents, each durable in its parent. A folder that exists may have
    /// been made by a process that was killed before it was durable, so each is made so once by every process.
    fn make_folder(&self, folder: &Path) -> Result<(), ArchiveError> {
        let mut last = self.inner.last_folder.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.as_deref() == Some(folder) {
            return Ok(());
        }
        fs::create_dir_all(folder)?;
        for parent in folder.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.inner.root)) {
            sync_folder(parent)?;
        }
        *last = Some(folder.to_owned());
        Ok(())
    }

    /// The path of a key that this archive made.
    pub fn path(&self, key: &str) -> Result<PathBuf, ArchiveError> {
        let relative = Path::new(key);
        let ours = relative.components().all(|component| matches!(component, Component::Normal(_)))
            && (key.starts_with("objects/") || key.starts_with("results/"));
        if ours { Ok(self.inner.root.join(relative)) } else { Err(ArchiveError::BadKey(key.to_owned())) }
    }

    /// The whole file of a key.
    pub fn read(&self, key: &str) -> Result<Vec<u8>, ArchiveError> {
        Ok(fs::read(self.path(key)?)?)
    }

    /// Removes a received object that is kept under another key. Returns `false`, and removes nothing, when the kept file is
    /// not there.
    pub fn remove_duplicate(&self, key: &str, kept_key: &str) -> Result<bool, ArchiveError> {
        if key == kept_key {
            return Err(ArchiveError::BadKey(kept_key.to_owned()));
        }
        if !self.path(kept_key)?.try_exists()? {
            return Ok(false);
        }
        match fs::remove_file(self.path(key)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(true),
        }
    }

    /// The hour folders that hold received objects, oldest first, from `from` on (such as `2026/11/22/09`).
    pub fn hours(&self, from: Option<&str>) -> Result<Vec<String>, ArchiveError> {
        let mut hours = hours_below(&self.inner.root.join("objects"))?;
        hours.retain(|hour| from.is_none_or(|from| hour.as_str() >= from));
        Ok(hours)
    }

    /// The keys of the objects in an hour folder, oldest first.
    pub fn keys_of_hour(&self, hour: &str) -> Result<Vec<String>, ArchiveError> {
        let mut keys = self.keys_in(&format!("objects/{hour}"))?;
        keys.retain(|key| Path::new(key).extension().is_some_and(|extension| extension == "dcm"));
        Ok(keys)
    }

    /// The keys of all files in a folder of ours, sorted.
    fn keys_in(&self, folder: &str) -> Result<Vec<String>, ArchiveError> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(self.path(folder)?)? {
            if let Some(name) = entry?.file_name().to_str() {
                keys.push(format!("{folder}/{name}"));
            }
        }
        keys.sort();
        Ok(keys)
    }

    /// Everything that is known of a received object, read back from its file alone: origin, header, digest.
    pub fn read_stored(&self, key: &str) -> Result<StoredObject, ArchiveError> {
        watched::reading(fs::File::open(self.path(key)?)?, |file| {
            let (transfer_syntax_uid, origin) = part10::read_meta(file)?;
            let data_set_start = io::Seek::stream_position(file)?;
            let header = header::read(file, &transfer_syntax_uid)?;
            io::Seek::seek(file, io::SeekFrom::Start(data_set_start))?;
            let mut digest = Sha256::new();
            let size_bytes = io::copy(file, &mut digest)?;
            Ok(StoredObject {
                archive_key: key.to_owned(),
                sha256: Sha256Digest(digest.finalize().into()),
                size_bytes,
                transfer_syntax_uid,
                origin,
                header,
            })
        })
    }

    /// The length in bytes of the data set in a received object's file, behind preamble and file meta group; `None` when
    /// there is no such file.
    pub fn data_set_bytes(&self, key: &str) -> Result<Option<u64>, ArchiveError> {
        let mut file = match fs::File::open(self.path(key)?) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let header_bytes = part10::header_bytes(&mut file)?;
        Ok(Some(file.metadata()?.len().saturating_sub(header_bytes)))
    }
}

/// The hour folders below `objects` or `results`, oldest first.
fn hours_below(kind: &Path) -> io::Result<Vec<String>> {
    let mut hours = Vec::new();
    for year in sub_folders(kind)? {
        for month in sub_folders(&kind.join(&year))? {
            for day in sub_folders(&kind.join(&year).join(&month))? {
                for hour in sub_folders(&kind.join(&year).join(&month).join(&day))? {
                    hours.push(format!("{year}/{month}/{day}/{hour}"));
                }
            }
        }
    }
    hours.sort();
    Ok(hours)
}

fn sub_folders(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Some(name) = entry.file_name().to_str()
            && name.bytes().all(|byte| byte.is_ascii_digit())
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The folder of an instant's hour in UTC, such as `2026/11/22/09`; text order is time order.
#[must_use]
pub fn hour_folder(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!("{:04}/{:02}/{:02}/{:02}", at.year(), u8::from(at.month()), at.day(), at.hour())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Removes the file when dropped, until disarmed.
#[derive(Debug)]
struct TemporaryFile {
    path: PathBuf,
    armed: bool,
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if self.armed {
            // What cannot be removed now is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// An object that is being received. Dropping it discards it.
pub struct IncomingObject {
    archive: Archive,
    id: Uuid,
    meta: ObjectMeta,
    /// Preamble and file meta group.
    header_bytes: u64,
    /// The first [`HEAD_BYTES`] of the data set.
    head: Vec<u8>,
    size_bytes: u64,
    digest: Sha256,
    temporary: TemporaryFile,
    file: ObjectFile,
}

impl IncomingObject {
    /// Appends data set bytes, unchanged.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(bytes.get(..missing).unwrap_or_default());
        self.digest.update(bytes);
        self.size_bytes += bytes.len() as u64;
        Ok(self.file.append(bytes)?)
    }

    /// Reads the header, from the file if its first bytes do not hold all of it, and checks it against the announced
    /// UIDs.
    pub fn check(self) -> Result<CheckedObject, ArchiveError> {
        let Self { archive, id, meta, header_bytes, head, size_bytes, digest, temporary, file } = self;
        let file = file.finish()?;
        let header = if head.len() as u64 == size_bytes {
            header::read_header(&head, &meta.transfer_syntax_uid)?
        } else if let Some(header) = header::read_beginning(&head, &meta.transfer_syntax_uid) {
            header
        } else {
            watched::reading(fs::File::open(&temporary.path)?, |reader| {
                io::Seek::seek(reader, io::SeekFrom::Start(header_bytes))?;
                Ok(header::read(reader, &meta.transfer_syntax_uid)?)
            })?
        };
        check_announced(&header, &meta)?;
        let sha256 = Sha256Digest(digest.finalize().into());
        Ok(CheckedObject { archive, id, meta, size_bytes, temporary, file, header, sha256 })
    }

    /// [`IncomingObject::check`] and [`CheckedObject::publish`].
    pub fn finish(self) -> Result<StoredObject, ArchiveError> {
        self.check()?.publish()
    }
}

/// An object that has come whole and is what was announced, but is not durable yet. Dropping it discards it.
#[derive(Debug)]
pub struct CheckedObject {
    archive: Archive,
    id: Uuid,
    meta: ObjectMeta,
    size_bytes: u64,
    temporary: TemporaryFile,
    file: fs::File,
    header: ObjectHeader,
    sha256: Sha256Digest,
}

impl CheckedObject {
    /// Digest of its data set.
    #[must_use]
    pub const fn sha256(&self) -> Sha256Digest {
        self.sha256
    }

    /// Makes the object durable. When this returns `Ok`, it survives a power failure and may be acknowledged.
    pub fn publish(self) -> Result<StoredObject, ArchiveError> {
        let Self { archive, id, meta, size_bytes, mut temporary, file, header, sha256 } = self;
        let archive_key = format!("objects/{}/{id}.dcm", hour_folder(OffsetDateTime::now_utc()));
        archive.publish(&file, &temporary.path, &archive_key)?;
        temporary.armed = false;
        let ObjectMeta { transfer_syntax_uid, origin, .. } = meta;
        Ok(StoredObject { archive_key, sha256, size_bytes, transfer_syntax_uid, origin, header })
    }
}

fn check_announced(header: &ObjectHeader, meta: &ObjectMeta) -> Result<(), HeaderError> {
    let differ = |what: &'static str, announced: &Uid, found: &Uid| HeaderError::Announced {
        what,
        announced: announced.clone(),
        found: found.clone(),
    };
    if header.sop_class_uid != meta.sop_class_uid {
        return Err(differ("SOP Class UID", &meta.sop_class_uid, &header.sop_class_uid));
    }
    if header.sop_instance_uid != meta.sop_instance_uid {
        return Err(differ("SOP Instance UID", &meta.sop_instance_uid, &header.sop_instance_uid));
    }
    Ok(())
}

/// The origin in a Part 10 file's meta group, for tests and tools.
pub fn origin_of(part10: &[u8]) -> Result<ObjectOrigin, ArchiveError> {
    let mut reader = io::Cursor::new(part10);
    Ok(part10::read_meta(&mut reader)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::AeTitle;

    fn ids() -> ImplementationIds {
        ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".into() }
    }

    fn meta(sop_instance_uid: &str) -> ObjectMeta {
        ObjectMeta {
            sop_class_uid: Uid::new("1.2.840.10008.5.1.4.1.1.1").unwrap(),
            sop_instance_uid: Uid::new(sop_instance_uid).unwrap(),
            transfer_syntax_uid: Uid::new("1.2.840.10008.1.2.1").unwrap(),
            origin: ObjectOrigin {
                calling_ae_title: AeTitle::new("CR01").unwrap(),
                called_ae_title: AeTitle::new("HILUM").unwrap(),
                peer_address: "127.0.0.1".parse().unwrap(),
                association_id: Uuid::from_u128(7),
                received_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            },
        }
    }

    fn element(tag: (u16, u16), vr: &[u8; 2], value: &str) -> Vec<u8> {
        let mut value = value.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(if vr == b"UI" { 0 } else { b' ' });
        }
        let mut bytes = Vec::new();
        bytes.extend(tag.0.to_le_bytes());
        bytes.extend(tag.1.to_le_bytes());
        bytes.extend(vr);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn data_set(sop_instance_uid: &str) -> Vec<u8> {
        [
            element((0x0008, 0x0016), b"UI", "1.2.840.10008.5.1.4.1.1.1"),
            element((0x0008, 0x0018), b"UI", sop_instance_uid),
            element((0x0008, 0x0060), b"CS", "CR"),
            element((0x0010, 0x0010), b"PN", "Name^Test"),
            element((0x0020, 0x000D), b"UI", "1.2.3"),
            element((0x0020, 0x000E), b"UI", "1.2.3.4"),
        ]
        .concat()
    }

    #[test]
    fn an_object_is_kept_bit_for_bit_and_can_be_read_back_with_its_origin() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(folder.path(), ids(), 0).unwrap();
        let bytes = data_set("1.2.3.4.5");
        let mut incoming = archive.begin(meta("1.2.3.4.5")).unwrap();
        for chunk in bytes.chunks(7) {
            incoming.write(chunk).unwrap();
        }
        let stored = incoming.finish().unwrap();
        assert_eq!(stored.size_bytes, bytes.len() as u64);
        assert_eq!(stored.sha256, Sha256Digest::of(&bytes));
        assert!(archive.read(&stored.archive_key).unwrap().ends_with(&bytes));
        assert_eq!(archive.read_stored(&stored.archive_key).unwrap(), stored);
        let hours = archive.hours(None).unwrap();
        assert_eq!(hours.len(), 1);
        assert_eq!(archive.keys_of_hour(&hours[0]).unwrap(), std::slice::from_ref(&stored.archive_key));
        assert!(archive.hours(Some("9999/01/01/00")).unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
        // dicom-object, an independent reader, agrees on the file.
        let object = dicom_object::open_file(archive.path(&stored.archive_key).unwrap()).unwrap();
        assert_eq!(object.meta().sending_application_entity_title().unwrap().trim(), "CR01");
        assert_eq!(object.meta().receiving_application_entity_title().unwrap().trim(), "HILUM");
    }

    #[test]
    fn a_long_object_with_a_long_header_is_kept_bit_for_bit() {
        // On a disk, where /tmp may be none: long objects are written directly there.
        let folder = tempfile::tempdir_in(".").unwrap();
        let archive = Archive::open(folder.path(), ids(), 0).unwrap();
        let long = |tag: (u16, u16), length: u32| {
            let value: Vec<u8> = (0..length).map(|index| (index * 7 + index / 251) as u8).collect();
            let (group, element) = (tag.0.to_le_bytes(), tag.1.to_le_bytes());
            [&group[..], &element, b"OB\0\0", &length.to_le_bytes(), &value].concat()
        };
        for private_bytes in [16, HEAD_BYTES as u32, 400_000] {
            let whole = data_set("1.2.3.4.5");
            // Behind (0008,xxxx), in front of the patient and the UIDs of study and series.
            let patient = whole.windows(4).position(|bytes| bytes == [0x10, 0, 0x10, 0]).unwrap();
            let (first, second) = whole.split_at(patient);
            let bytes =
                [first, &long((0x0009, 0x1001), private_bytes), second, &long((0x7FE0, 0x0010), 700_000)].concat();
            let mut incoming = archive.begin(meta("1.2.3.4.5")).unwrap();
            for chunk in bytes.chunks(131_060) {
                incoming.write(chunk).unwrap();
            }
            let stored = incoming.finish().unwrap();
            assert_eq!(stored.header.series_instance_uid.as_str(), "1.2.3.4", "behind {private_bytes} bytes");
            assert!(archive.read(&stored.archive_key).unwrap().ends_with(&bytes), "{private_bytes}");
            assert_eq!(archive.read_stored(&stored.archive_key).unwrap(), stored);
        }
    }

    #[test]
    fn a_dropped_object_leaves_nothing_and_a_half_file_is_removed_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(folder.path(), ids(), 0).unwrap();
        let mut incoming = archive.begin(meta("1.2.3.4.5")).unwrap();
        incoming.write(b"half").unwrap();
        drop(incoming);
        assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
        fs::write(folder.path().join("incoming/left.part"), b"x").unwrap();
        assert_eq!(archive.remove_unfinished().unwrap(), 1);
    }

    #[test]
    fn another_uid_than_announced_is_refused_with_both() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(folder.path(), ids(), 0).unwrap();
        let mut incoming = archive.begin(meta("1.2.3.4.6")).unwrap();
        incoming.write(&data_set("1.2.3.4.5")).unwrap();
        let error = incoming.finish().unwrap_err().to_string();
        assert!(error.contains("1.2.3.4.6") && error.contains("1.2.3.4.5"), "{error}");
        assert!(archive.hours(None).unwrap().is_empty());
    }

    #[test]
    fn keys_cannot_leave_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(folder.path(), ids(), 0).unwrap();
        assert!(archive.remove_result("objects/2026/11/22/09/x.dcm").is_err());
        for key in ["../x", "objects/../../x", "/etc/passwd", "incoming/x.part"] {
            assert!(archive.path(key).is_err(), "{key}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_a_bad_object() {
        assert!(ArchiveError::Io(io::Error::from_raw_os_error(libc::ENOSPC)).is_out_of_resources());
        assert!(!ArchiveError::Io(io::Error::from_raw_os_error(libc::EIO)).is_out_of_resources());
    }
}
