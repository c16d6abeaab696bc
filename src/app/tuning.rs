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
    pub threads: usize,
    /// The bundle that it was measured with, and its digest.
    pub bundle: String,
    /// The same.
    pub bundle_digest: String,
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
pub fn network_threads(config: &Config) -> usize {
    threads(&config.inference, Tuning::load(&Tuning::path(config)), &Machine::this())
}

fn threads(settings: &InferenceConfig, tuning: Option<Tuning>, machine: &Machine) -> usize {
    match (settings.threads, tuning) {
        (Some(0), _) => machine.cores,
        (Some(threads), _) => threads,
        (None, Some(tuning)) if tuning.machine == *machine => tuning.threads.clamp(1, machine.cores.max(1)),
        (None, _) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_goes_before_the_tuning_and_another_machines_tuning_is_not_used() {
        let machine = Machine { processor: "Ours".to_owned(), cores: 8 };
        let tuned = |processor: &str| {
            let machine = Machine { processor: processor.to_owned(), cores: 8 };
            Some(Tuning { machine, threads: 4, bundle: "cxr".to_owned(), bundle_digest: "00".to_owned() })
        };
        let with = |threads| InferenceConfig { threads, ..InferenceConfig::default() };
        assert_eq!(threads(&with(None), None, &machine), 1);
        assert_eq!(threads(&with(None), tuned("Ours"), &machine), 4);
        assert_eq!(threads(&with(None), tuned("Theirs"), &machine), 1);
        assert_eq!(threads(&with(Some(2)), tuned("Ours"), &machine), 2);
        assert_eq!(threads(&with(Some(0)), tuned("Ours"), &machine), 8);
    }

    #[test]
    fn a_tuning_is_kept_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::defaults_for_dev(folder.path());
        let threads = Machine::this().cores;
        let tuning =
            Tuning { machine: Machine::this(), threads, bundle: "cxr".to_owned(), bundle_digest: "00".to_owned() };
        let path = tuning.save(&config).unwrap();
        assert_eq!(Tuning::load(&path), Some(tuning));
        assert_eq!(network_threads(&config), threads);
        fs_err::write(&path, "{").unwrap();
        assert_eq!(network_threads(&config), 1);
    }
}
