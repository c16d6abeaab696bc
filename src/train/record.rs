//! What a training leaves beside its bundle: who was trained on, and with what.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::replace,
    error::TrainError,
    plan::TrainPlan,
    sample::{Sample, Split},
};

/// Name of the record in the folder of a training.
pub(super) const RECORD_FILE_NAME: &str = "run.json";

/// Name of the bundle's folder in that of a training.
pub(super) const BUNDLE_FOLDER: &str = "bundle";

/// What a training was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of the program.
    pub hilum: String,
    /// The command line.
    pub command: String,
    /// The configuration.
    pub plan: TrainPlan,
    /// SHA-256 of the list and its files.
    pub list_sha256: String,
    /// Digests of the bundles whose segmenters found the lungs.
    pub segmenters: Vec<String>,
    /// Images that were trained on.
    pub training_images: usize,
    /// Images that the epoch was chosen by.
    pub validation_images: usize,
    /// Whose images were trained on, as the list names them.
    pub training_patients: BTreeSet<String>,
    /// Whose images the epoch was chosen by.
    pub validation_patients: BTreeSet<String>,
}

impl RunRecord {
    /// The record of a folder, when a training has left one.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let file = folder.join(RECORD_FILE_NAME);
        match fs_err::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| TrainError::Checkpoint { file, reason: error.to_string() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| TrainError::Internal(error.to_string()))?;
        replace(&folder.join(RECORD_FILE_NAME), &text)
    }
}

/// Writes a list of images as `hilum evaluate` reads it, with paths that mean the same from every folder.
pub(super) fn write_list(path: &Path, samples: &[&Sample]) -> Result<(), TrainError> {
    let failed = |error: &dyn std::fmt::Display| TrainError::Internal(error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    let columns = ["file", "label", "patient", "view", "mask", "site", "split", "age", "sex"];
    writer.write_record(columns).map_err(|error| failed(&error))?;
    for sample in samples {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let record = [
            absolute(&sample.file),
            text(&sample.label),
            sample.patient.clone(),
            text(&sample.view),
            sample.mask.as_ref().map(|mask| absolute(mask)).unwrap_or_default(),
            text(&sample.site),
            sample.split.map(Split::name).unwrap_or_default().to_owned(),
            sample.age_years.map(|age| age.to_string()).unwrap_or_default(),
            text(&sample.sex),
        ];
        writer.write_record(record).map_err(|error| failed(&error))?;
    }
    replace(path, &writer.into_inner().map_err(|error| failed(&error))?)
}

fn absolute(path: &Path) -> String {
    let path: PathBuf = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    path.display().to_string()
}
