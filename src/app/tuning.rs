//! What `hilum bench --tune` found out about this machine, kept in the data folder: how many threads a network computes
//! with when the configuration does not say.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, InferenceConfig};

/// File in the data folder.
const FILE_NAME: &str = "tuning.json";

/// The layout that was fastest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// What it was measured on.
    pub machine: Machine,
    /// Threads that one network computes with.
    pub threads: Threads,
    /// The bundle that it was measured with, and its digest.
    pub bundle: String,
    /// The same.
    pub bundle_digest: String,
}

/// Threads that one network computes with. The lung segmenter computes alone, the classifiers of a bundle all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// The lung segmenter.
    pub segmenter: usize,
    /// Each classifier.
    pub classifiers: usize,
}

impl Threads {
    /// The same for all.
    #[must_use]
    pub const fn all(threads: usize) -> Self {
        Self { segmenter: threads, classifiers: threads }
    }

    /// The larger number.
    #[must_use]
    pub fn most(self) -> usize {
        self.segmenter.max(self.classifiers)
    }
}

/// A processor. A tuning for another one is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name, as Linux knows it.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
}

impl Machine {
    /// The one that this process runs on.
    #[must_use]
    pub fn this() -> Self {
        let known = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name =
            known.lines().find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split(':').nth(1)));
        Self {
            processor: name.unwrap_or("unknown").trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Tuning {
    fn path(config: &Config) -> PathBuf {
        config.node.data_dir.join(FILE_NAME)
    }

    /// Keeps it in the data folder. Returns where.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, config: &Config) -> anyhow::Result<PathBuf> {
        let path = Self::path(config);
        fs_err::create_dir_all(&config.node.data_dir)?;
        let temporary = path.with_extension("part");
        fs_err::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs_err::rename(&temporary, &path)?;
        Ok(path)
    }

    fn load(path: &Path) -> Option<Self> {
        let text = fs_err::read(path).ok()?;
        match serde_json::from_slice(&text) {
            Ok(tuning) => Some(tuning),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the tuning cannot be read: run `hilum bench --tune` again");
                None
            }
        }
    }
}

/// Threads that one network computes with: what the configuration says, or what was found for this machine, or one.
#[must_use]
pub fn network_threads(config: &Config) -> Threads {
    threads(&config.inference, Tuning::load(&Tuning::path(config)), &Machine::this())
}

fn threads(settings: &InferenceConfig, tuning: Option<Tuning>, machine: &Machine) -> Threads {
    let within = |threads: usize| threads.clamp(1, machine.cores.max(1));
    match (settings.threads, tuning) {
        (Some(0), _) => Threads::all(machine.cores),
        (Some(threads), _) => Threads::all(threads),
        (None, Some(Tuning { machine: measured, threads, .. })) if measured == *machine => {
            Threads { segmenter: within(threads.segmenter), classifiers: within(threads.classifiers) }
        }
        (None, _) => Threads::all(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_goes_before_the_tuning_and_another_machines_tuning_is_not_used() {
        let machine = Machine { processor: "Ours".to_owned(), cores: 8 };
        let found = Threads { segmenter: 8, classifiers: 4 };
        let tuned = |processor: &str| {
            let machine = Machine { processor: processor.to_owned(), cores: 8 };
            Some(Tuning { machine, threads: found, bundle: "cxr".to_owned(), bundle_digest: "00".to_owned() })
        };
        let with = |threads| InferenceConfig { threads, ..InferenceConfig::default() };
        assert_eq!(threads(&with(None), None, &machine), Threads::all(1));
        assert_eq!(threads(&with(None), tuned("Ours"), &machine), found);
        assert_eq!(threads(&with(None), tuned("Theirs"), &machine), Threads::all(1));
        assert_eq!(threads(&with(Some(2)), tuned("Ours"), &machine), Threads::all(2));
        assert_eq!(threads(&with(Some(0)), tuned("Ours"), &machine), Threads::all(8));
        assert_eq!(found.most(), 8);
    }

    #[test]
    fn a_tuning_is_kept_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::defaults_for_dev(folder.path());
        let threads = Threads { segmenter: Machine::this().cores, classifiers: 1 };
        let tuning =
            Tuning { machine: Machine::this(), threads, bundle: "cxr".to_owned(), bundle_digest: "00".to_owned() };
        let path = tuning.save(&config).unwrap();
        assert_eq!(Tuning::load(&path), Some(tuning));
        assert_eq!(network_threads(&config), threads);
        fs_err::write(&path, "{").unwrap();
        assert_eq!(network_threads(&config), Threads::all(1));
    }
}
