//! The file of an object that is being received: whole buffers go to the disk past the page cache.
//!
//! A received object is not read again for seconds at least, so its pages in the cache would only cost: each has to be
//! found, filled by a copy and written back when the file is synchronised. Direct writes leave no more than the last,
//! partly filled buffer to that moment. Where the file system has no direct writes (tmpfs), or wants other alignments
//! than ours, everything goes through the cache.

use std::{
    fmt,
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use fs_err as fs;
use rustix::fs::OFlags;

/// Bytes that are collected before they are written. Half a CT slice: while one half is written, the peer sends the
/// other.
const BUFFER_BYTES: usize = 256 * 1024;

/// Direct writes want addresses, offsets and lengths in multiples of the disk's block, 4 KiB at most in practice.
const ALIGNMENT: usize = 4096;

/// Buffers that wait for their next file at most: more are needed in bursts only.
const SPARE_BUFFERS: usize = 16;

/// Memory for the files of an archive, used again: to get it fresh from the kernel for each object costs more than to
/// fill it. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// Without what is in them: bytes of patients.
impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buffers")
    }
}

impl Buffers {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<Vec<u8>>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self) -> Vec<u8> {
        self.with(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES + ALIGNMENT])
    }

    fn give_back(&self, memory: Vec<u8>) {
        self.with(|spare| {
            if spare.len() < SPARE_BUFFERS {
                spare.push(memory);
            }
        });
    }
}

/// A file that is written from its beginning to its end.
pub(super) struct ObjectFile {
    file: fs::File,
    buffers: Buffers,
    /// [`BUFFER_BYTES`] of it, from the first aligned byte on, are used.
    memory: Vec<u8>,
    start: usize,
    filled: usize,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing has been written yet.
    New,
    Direct,
    Cached,
}

impl ObjectFile {
    pub(super) fn new(file: fs::File, buffers: &Buffers) -> Self {
        let memory = buffers.take();
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { file, buffers: buffers.clone(), memory, start, filled: 0, mode: Mode::New }
    }

    /// Appends bytes.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.memory.get_mut(self.start + self.filled..self.start + BUFFER_BYTES).unwrap_or_default();
            let count = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            if let Some(room) = room.get_mut(..count) {
                room.copy_from_slice(now);
            }
            self.filled += count;
            bytes = later;
            if self.filled == BUFFER_BYTES {
                self.write_buffer()?;
            }
        }
        Ok(())
    }

    /// Writes what is left. The file is complete then, but not durable.
    pub(super) fn finish(mut self) -> io::Result<fs::File> {
        self.write_through_cache()?;
        self.buffers.give_back(self.memory);
        Ok(self.file)
    }

    fn buffered(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.filled).unwrap_or_default()
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        if self.mode == Mode::New {
            self.mode = if set_direct(&self.file, true).is_ok() { Mode::Direct } else { Mode::Cached };
        }
        if self.mode == Mode::Direct {
            match self.write_directly() {
                // Another alignment is wanted: no error of the disk.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                outcome => return outcome,
            }
        }
        self.write_through_cache()
    }

    /// Writes the buffer; what a failure leaves unwritten stays in it.
    fn write_directly(&mut self) -> io::Result<()> {
        let mut written = 0;
        let mut outcome = Ok(());
        while let Some(rest) = self.buffered().get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.file().write(rest) {
                Ok(0) => outcome = Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => outcome = Err(error),
            }
            if outcome.is_err() {
                break;
            }
        }
        self.memory.copy_within(self.start + written..self.start + self.filled, self.start);
        self.filled -= written;
        outcome
    }

    fn write_through_cache(&mut self) -> io::Result<()> {
        if self.mode == Mode::Direct {
            set_direct(&self.file, false)?;
        }
        self.mode = Mode::Cached;
        let Self { file, memory, start, filled, .. } = self;
        file.write_all(memory.get(*start..*start + *filled).unwrap_or_default())?;
        self.filled = 0;
        Ok(())
    }
}

fn set_direct(file: &fs::File, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
    }

    fn written(folder: &std::path::Path, lengths: &[usize]) -> (Vec<u8>, Vec<u8>, Mode) {
        let path = folder.join("object");
        let options = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
        let mut file = ObjectFile::new(options, &Buffers::default());
        let bytes = pattern(lengths.iter().sum());
        let mut rest = &bytes[..];
        for length in lengths {
            let (now, later) = rest.split_at(*length);
            file.append(now).unwrap();
            rest = later;
        }
        let mode = file.mode;
        file.finish().unwrap();
        (fs::read(&path).unwrap(), bytes, mode)
    }

    #[test]
    fn every_length_arrives_byte_for_byte_with_and_without_direct_writes() {
        let disk = tempfile::tempdir_in(".").unwrap();
        // A file system without direct writes in older kernels, and with them in newer ones.
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let around = [BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1];
        for folder in [disk.path(), memory.path()] {
            for lengths in
                [&[][..], &[1], &around, &[582, 131_060, 131_060, 131_060, 131_060, 482], &[3 * BUFFER_BYTES + 7]]
            {
                let (found, expected, _) = written(folder, lengths);
                assert!(found == expected, "{lengths:?} in {}", folder.display());
            }
        }
    }

    #[test]
    fn a_used_buffer_leaves_nothing_in_the_next_file() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let buffers = Buffers::default();
        for (name, bytes) in [("long", pattern(2 * BUFFER_BYTES - 1)), ("short", b"short".to_vec())] {
            let path = folder.path().join(name);
            let file = fs::OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
            let mut file = ObjectFile::new(file, &buffers);
            file.append(&bytes).unwrap();
            file.finish().unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "{name}");
        }
        assert_eq!(buffers.with(|spare| spare.len()), 1, "one served both");
    }

    #[test]
    fn only_long_objects_are_written_directly() {
        let folder = tempfile::tempdir_in(".").unwrap();
        assert_eq!(written(folder.path(), &[BUFFER_BYTES - 1]).2, Mode::New);
        assert_ne!(written(folder.path(), &[BUFFER_BYTES]).2, Mode::New);
    }

    #[test]
    fn what_a_direct_write_refuses_goes_through_the_cache() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("object");
        let file = fs::OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        let mut file = ObjectFile::new(file, &Buffers::default());
        // As on a disk that wants larger blocks than ours: the address is off.
        file.start += 1;
        file.memory.push(0);
        let bytes = pattern(2 * BUFFER_BYTES + 5);
        file.append(&bytes).unwrap();
        assert_eq!(file.mode, Mode::Cached);
        file.finish().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    }
}
