//! What a training leaves beside its bundle: who was trained on, and with what.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::replace,
    error::TrainError,
    plan::{Data, Monitor, TrainPlan, Validation},
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
    /// Digests of the starting weights that were not random.
    #[serde(default)]
    pub starts: Vec<String>,
    /// Whose images the starting weights were trained on, where that is known.
    #[serde(default)]
    pub start_patients: BTreeSet<String>,
    /// Whose images the segmenter in the bundle was trained on, where that is known.
    #[serde(default)]
    pub segmenter_patients: BTreeSet<String>,
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

    /// The trainings of a cross-validation: the folders `fold-0`, `fold-1`, … below `folder`, in this order.
    ///
    /// # Errors
    /// When there are none, one cannot be used, or two were tried on the same patient.
    pub fn read_folds(folder: &Path) -> Result<Vec<(PathBuf, Self)>, TrainError> {
        let mut folds: Vec<(PathBuf, Self)> = Vec::new();
        loop {
            let of_fold = folder.join(format!("fold-{}", folds.len()));
            let Some(record) = Self::read(&of_fold)? else { break };
            let before = folds.iter().flat_map(|(_, before)| &before.validation_patients);
            if let Some(patient) = before.into_iter().find(|patient| record.validation_patients.contains(*patient)) {
                return Err(TrainError::Data(format!(
                    "`{}` has more than one fold that was tried on patient `{patient}`: give the folder of one `hilum train \
                     --fold all/N`",
                    folder.display()
                )));
            }
            if let Some((_, first)) = folds.first() {
                let same = |record: &Self| TrainPlan {
                    data: Data { list: PathBuf::new(), validation: Validation::None, ..record.plan.data.clone() },
                    bundle: first.plan.bundle.clone(),
                    ..record.plan.clone()
                };
                if same(first) != same(&record) || first.list_sha256 != record.list_sha256 {
                    return Err(TrainError::Data(format!(
                        "`{}` was trained by another configuration or on another list than `fold-0` beside it: they are no folds \
                         of one training",
                        of_fold.display()
                    )));
                }
            }
            folds.push((of_fold, record));
        }
        if folds.is_empty() {
            return Err(TrainError::Data(format!(
                "`{}` has no trainings in `fold-0` and so on: give the folder that `hilum train --fold all/N` was told with \
                 --out",
                folder.display()
            )));
        }
        Ok(folds)
    }

    /// Whose images the networks of this training know: those that it trained on, and those that its starting weights had been
    /// trained on.
    #[must_use]
    pub fn known_patients(&self) -> BTreeSet<String> {
        self.training_patients.union(&self.start_patients).cloned().collect()
    }

    /// Whether the validation images chose which epoch's weights were kept.
    #[must_use]
    pub fn chose_the_epoch(&self) -> bool {
        !self.validation_patients.is_empty() && self.plan.optimisation.monitor != Monitor::None
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| TrainError::Internal(error.to_string()))?;
        replace(&folder.join(RECORD_FILE_NAME), &text)
    }
}

/// Writes a list of images as `hilum evaluate` reads it, with paths that mean the same from every folder. All are of `split`:
/// what the list itself called them does not count where folds did.
pub(super) fn write_list(path: &Path, samples: &[&Sample], split: Split) -> Result<(), TrainError> {
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
            split.name().to_owned(),
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
