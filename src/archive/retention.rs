//! Removing files that no row needs any more.

use std::io;

use fs_err as fs;
use time::OffsetDateTime;

use super::{Archive, ArchiveError, hours_below};

impl Archive {
    /// Removes the file of a key. One that is gone already is no error.
    pub fn remove(&self, key: &str) -> Result<(), ArchiveError> {
        match fs::remove_file(self.path(key)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes a result that no row names. One that is gone already is no error.
    pub fn remove_result(&self, key: &str) -> Result<(), ArchiveError> {
        if !key.starts_with("results/") {
            return Err(ArchiveError::BadKey(key.to_owned()));
        }
        self.remove(key)
    }

    /// The hour folders that hold results, oldest first, before `until` (such as `2026/11/22/09`).
    pub fn result_hours(&self, until: &str) -> Result<Vec<String>, ArchiveError> {
        let mut hours = hours_below(&self.inner.root.join("results"))?;
        hours.retain(|hour| hour.as_str() < until);
        Ok(hours)
    }

    /// The keys of the result files in an hour folder, reports and pictures, that were written before `until`: an analysis
    /// of long ago can be rendered today.
    pub fn result_keys_of_hour(&self, hour: &str, until: OffsetDateTime) -> Result<Vec<String>, ArchiveError> {
        let mut keys = Vec::new();
        for key in self.keys_in(&format!("results/{hour}"))? {
            match fs::metadata(self.path(&key)?) {
                Ok(metadata) if OffsetDateTime::from(metadata.modified()?) < until => keys.push(key),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::{archive::ImplementationIds, types::Uid};

    #[test]
    fn files_are_removed_by_key_and_results_are_listed_by_hour() {
        let folder = tempfile::tempdir().unwrap();
        let ids = ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".into() };
        let archive = Archive::open(folder.path(), ids, 0).unwrap();
        let run_id = uuid::Uuid::from_u128(7);
        let store = |bytes| archive.store_result(bytes, run_id, datetime!(2026-11-22 09:59 UTC), "sr-0.dcm").unwrap();
        let (key, hour) = (store(b"SR"), "2026/11/22/09".to_owned());
        assert_eq!(key, format!("results/{hour}/{run_id}-sr-0.dcm"));
        assert_eq!(store(b"SR again"), key, "a rendering that is repeated writes the same file");
        assert_eq!(archive.read(&key).unwrap(), b"SR again");
        assert_eq!(archive.result_hours("9999").unwrap(), std::slice::from_ref(&hour));
        assert!(archive.result_hours(&hour).unwrap().is_empty(), "the hour itself is not before it");
        let (now, minute) = (OffsetDateTime::now_utc(), time::Duration::minutes(1));
        let keys = |until| archive.result_keys_of_hour(&hour, until).unwrap();
        assert_eq!(keys(now + minute), std::slice::from_ref(&key));
        assert!(keys(now - minute).is_empty(), "a young file in an old folder is not old");
        archive.remove(&key).unwrap();
        archive.remove(&key).unwrap();
        assert!(keys(now + minute).is_empty());
        assert!(archive.remove("results/../../etc/passwd").is_err());
        assert!(archive.remove_result("objects/2026/11/22/09/x.dcm").is_err());
    }
}
