//! One process for each role of a data folder: the kernel holds the lock and lets it go when the process dies,
//! however it dies.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

/// The lock of the process that receives.
const NODE_LOCK: &str = "hilum.lock";
/// The lock of the inference process.
const INFERENCE_LOCK: &str = "infer.lock";

/// Held as long as the value lives.
#[derive(Debug)]
pub(super) struct SoleUse {
    _file: File,
}

impl SoleUse {
    /// Takes the data folder for receiving, or says who has it: a second node would remove the half received objects
    /// of the first and write to the same index.
    pub(super) fn of_node(data_dir: &Path) -> anyhow::Result<Self> {
        let file = open(&data_dir.join(NODE_LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another Hilum works in {}; stop it first, or give this one a `node.data_dir` of its own",
                data_dir.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).context("lock the data folder"),
        }
    }

    /// Waits for the inference process of a killed node to finish its run and end, so that the run is not charged
    /// with a second attempt; `None` when `shutdown` comes first.
    pub(super) async fn of_inference(data_dir: &Path, shutdown: &CancellationToken) -> anyhow::Result<Option<Self>> {
        let file = open(&data_dir.join(INFERENCE_LOCK))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self { _file: file })),
                Err(TryLockError::WouldBlock) if !told => {
                    tracing::info!("the inference process of an earlier node is still finishing its run");
                    told = true;
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).context("lock the data folder for inference"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(None),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(file.into_parts().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_data_folder_has_one_node_and_one_inference_process() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let first = SoleUse::of_node(folder.path()).unwrap();
        let inference = SoleUse::of_inference(folder.path(), &shutdown).await.unwrap().unwrap();
        let refused = SoleUse::of_node(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("another Hilum works in"), "{refused}");
        drop(first);
        SoleUse::of_node(folder.path()).unwrap();

        let stop = shutdown.clone();
        let waiting = tokio::spawn({
            let folder = folder.path().to_owned();
            async move { SoleUse::of_inference(&folder, &stop).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        drop(inference);
        assert!(waiting.await.unwrap().is_some());
    }
}
