//! Results as files: `FOLDER/STUDY_INSTANCE_UID/SOP_INSTANCE_UID.dcm`, each whole or not there.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{
    Verdict,
    way::{Answer, Carrier},
};
use crate::{db::delivery::DueDelivery, types::Uid};

/// A folder that gets results.
pub(super) struct FolderWay {
    folder: PathBuf,
}

impl FolderWay {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder must be there: it is never made.
    pub(super) async fn open(folder: PathBuf) -> Result<Self, String> {
        let way = Self::new(folder);
        let looking = way.folder.clone();
        blocking(move || check(&looking)).await.map_err(|error| way.explain(&error))?;
        Ok(way)
    }

    /// Writes a file and removes it.
    pub(super) async fn probe(&self) -> Result<String, String> {
        let folder = self.folder.clone();
        let tried = blocking(move || {
            check(&folder)?;
            let probe = folder.join(format!(".hilum-probe-{}", std::process::id()));
            let written = write(&probe, &mut b"hilum\n".as_slice());
            let removed = fs_err::remove_file(&probe);
            written.and(removed)
        });
        tried.await.map_err(|error| self.explain(&error))?;
        Ok(format!("`{}` can be written to", self.folder.display()))
    }

    pub(super) async fn send(&mut self, carrier: &Carrier, delivery: &DueDelivery) -> Answer {
        // Valid UIDs have digits and dots only, and no name of a folder above.
        let uids = (Uid::new(&delivery.study_instance_uid), Uid::new(&delivery.sop_instance_uid));
        let (Ok(study), Ok(object)) = uids else {
            return Answer::new(Verdict::Dead, "the result has no valid UID to name a file by".to_owned());
        };
        let mut source = match carrier.open(delivery).await {
            Ok(source) => source.file.into_std().await,
            Err(answer) => return answer,
        };
        let folder = self.folder.clone();
        match blocking(move || keep(&folder, study.as_str(), object.as_str(), &mut source)).await {
            Ok(()) => Answer::new(Verdict::Delivered, "written".to_owned()),
            Err(error) => Answer::broken(self.explain(&error)),
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there",
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "create the folder, or mount it",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "let the user of Hilum write to it",
            _ => "look at that disk or share",
        };
        format!("cannot write to `{}`: {error}; {remedy}", self.folder.display())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn check(folder: &Path) -> io::Result<()> {
    let is_folder = fs_err::metadata(folder)?.is_dir();
    is_folder.then_some(()).ok_or_else(|| io::Error::from(io::ErrorKind::NotADirectory))
}

/// Writes a new file and makes it durable.
fn write(path: &Path, source: &mut impl io::Read) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs_err::File::options().write(true).create_new(true).open(path)?;
    io::copy(source, &mut file)?;
    file.flush()?;
    file.sync_all()
}

/// Keeps a file under its final name only when it is whole and durable.
fn keep(folder: &Path, study: &str, object: &str, source: &mut impl io::Read) -> io::Result<()> {
    check(folder)?;
    let of_study = folder.join(study);
    match fs_err::create_dir(&of_study) {
        Ok(()) => sync_folder(folder)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    // A link would lead out of the folder.
    if !fs_err::symlink_metadata(&of_study)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("`{study}` is no folder")));
    }
    let unfinished = of_study.join(format!(".{object}.part"));
    if let Err(error) = write(&unfinished, source) {
        // It takes room that is wanted; what cannot be removed is overwritten next time.
        let _ = fs_err::remove_file(&unfinished);
        return Err(error);
    }
    fs_err::rename(&unfinished, of_study.join(format!("{object}.dcm")))?;
    sync_folder(&of_study)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs_err::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_and_again_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            keep(folder.path(), "1.2", "1.2.3", &mut b"whole".as_slice()).unwrap();
        }
        assert_eq!(fs_err::read(folder.path().join("1.2/1.2.3.dcm")).unwrap(), b"whole");
        assert_eq!(fs_err::read_dir(folder.path().join("1.2")).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn what_cannot_be_read_to_its_end_leaves_nothing() {
        struct Broken;
        impl io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let error = keep(folder.path(), "1.2", "1.2.3", &mut Broken).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(FolderWay::new("/srv".into()).explain(&error).contains("make room"));
        assert_eq!(fs_err::read_dir(folder.path().join("1.2")).unwrap().count(), 0);
    }

    #[test]
    fn a_link_or_a_missing_folder_is_refused() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("1.2")).unwrap();
        let error = keep(folder.path(), "1.2", "1.2.3", &mut b"x".as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(fs_err::read_dir(elsewhere.path()).unwrap().count(), 0);
        let missing = folder.path().join("not-mounted");
        let error = keep(&missing, "1.2", "1.2.3", &mut b"x".as_slice()).unwrap_err();
        assert!(FolderWay::new(missing.clone()).explain(&error).contains("or mount it"));
        assert!(!missing.exists());
    }

    #[tokio::test]
    async fn a_probe_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(FolderWay::new(folder.path().to_owned()).probe().await.is_ok());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
        let missing = FolderWay::new(folder.path().join("x")).probe().await.unwrap_err();
        assert!(missing.contains("create the folder"), "{missing}");
    }
}
