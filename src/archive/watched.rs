//! Reading with the disk's errors kept apart from the bytes': whoever parses a file words every failure as one of the
//! file, and a file that the disk could not give must not count as malformed.

use std::{
    cell::Cell,
    io::{self, BufReader, Read, Seek, SeekFrom},
};

use fs_err as fs;

use super::ArchiveError;

/// A file that remembers the first error of the operating system.
pub(super) struct Watched<'a> {
    file: fs::File,
    failed: &'a Cell<Option<i32>>,
}

impl Watched<'_> {
    fn noting<T>(&self, work: impl FnOnce(&std::fs::File) -> io::Result<T>) -> io::Result<T> {
        work(self.file.file()).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted && self.failed.get().is_none() {
                self.failed.set(error.raw_os_error());
            }
        })
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.noting(|mut file| file.read(buffer))
    }
}

impl Seek for Watched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.noting(|mut file| file.seek(to))
    }
}

/// What `work` makes of the file; when it fails after the disk has, the error is the disk's.
pub(super) fn reading<T>(
    file: fs::File,
    work: impl FnOnce(&mut BufReader<Watched<'_>>) -> Result<T, ArchiveError>,
) -> Result<T, ArchiveError> {
    let failed = Cell::new(None);
    let outcome = work(&mut BufReader::new(Watched { file, failed: &failed }));
    match (outcome, failed.get()) {
        (Err(ArchiveError::Header(_)), Some(code)) => Err(io::Error::from_raw_os_error(code).into()),
        (outcome, _) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::header;

    #[test]
    fn what_the_disk_cannot_give_is_not_malformed() {
        // To read a folder fails as a disk does: with an error of the operating system.
        let folder = tempfile::tempdir().unwrap();
        let syntax = crate::types::Uid::new("1.2.840.10008.1.2.1").unwrap();
        let read = |path: &std::path::Path| {
            reading(fs::File::open(path).unwrap(), |file| Ok(header::read(file, &syntax)?)).unwrap_err()
        };
        let error = read(folder.path());
        assert!(matches!(&error, ArchiveError::Io(error) if error.raw_os_error() == Some(libc::EISDIR)), "{error:?}");
        let cut = folder.path().join("cut");
        fs::write(&cut, [8, 0, 5]).unwrap();
        assert!(matches!(read(&cut), ArchiveError::Header(_)));
    }
}
