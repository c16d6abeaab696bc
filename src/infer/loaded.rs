//! The bundles that are in memory: loaded when they are first used, loaded anew when their manifest changes, and let go
//! when no route names them any more.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::Mutex;

use super::{Pipeline, thread::on_thread};
use crate::{
    imaging::DecodeLimits,
    nn::{EnsembleOptions, MANIFEST_FILE_NAME},
    types::{Progress, Sha256Digest},
};

/// How long a bundle stays in memory that no route names, as its own or on trial: a route that changes back soon finds it
/// there.
const KEPT_UNNAMED: Duration = Duration::from_mins(10);

/// Bundles by name, each with a lock of its own: one that takes long to load holds up no run of another.
#[derive(Default)]
pub(super) struct LoadedBundles(Mutex<HashMap<String, Arc<Mutex<Option<Loaded>>>>>);

/// A loaded bundle and the digest of the manifest it was loaded from.
struct Loaded {
    manifest_sha256: Sha256Digest,
    pipeline: Arc<Pipeline>,
    /// Since when no route names it, as far as was seen.
    unnamed_since: Option<Instant>,
}

impl LoadedBundles {
    /// The pipeline of the bundle `name` in `models_dir`, loaded when it is first used or its manifest has changed.
    ///
    /// Cancel safety: what is being loaded at that moment is there for the next that asks.
    pub(super) async fn pipeline(
        &self,
        models_dir: &Path,
        name: &str,
        (options, decode_limits): (EnsembleOptions, DecodeLimits),
        progress: &Progress,
    ) -> anyhow::Result<Arc<Pipeline>> {
        anyhow::ensure!(
            Path::new(name).file_name().is_some_and(|file_name| file_name == name),
            "`{name}` is not the name of a bundle folder"
        );
        let folder = models_dir.join(name);
        let manifest = folder.join(MANIFEST_FILE_NAME);
        let manifest_sha256 = Sha256Digest::of(&fs_err::read(&manifest).with_context(|| {
            format!("bundle `{name}` is not in {}; run `hilum model init` or copy it there", models_dir.display())
        })?);
        let slot = Arc::clone(self.0.lock().await.entry(name.to_owned()).or_default());
        let mut slot = progress.waiting(slot.lock_owned()).await;
        if let Some(loaded) = slot.as_ref()
            && loaded.manifest_sha256 == manifest_sha256
        {
            return Ok(Arc::clone(&loaded.pipeline));
        }
        // The thread has the slot: it fills it, whether or not anybody waits for it still.
        let load = move || {
            let pipeline = Arc::new(Pipeline::open(&folder, options, decode_limits)?);
            *slot = Some(Loaded { manifest_sha256, pipeline: Arc::clone(&pipeline), unnamed_since: None });
            anyhow::Ok(pipeline)
        };
        let pipeline = on_thread(progress, load).await?.with_context(|| format!("load bundle `{name}`"))?;
        progress.renew();
        tracing::info!(
            bundle = name,
            digest = %pipeline.bundle().digest,
            status = ?pipeline.bundle().status,
            "bundle loaded"
        );
        Ok(pipeline)
    }

    /// Lets go of what is not among the `named` and has not been for a while, unless a run uses it.
    pub(super) async fn let_go(&self, named: &BTreeSet<String>, now: Instant) {
        let slots: Vec<_> = self.0.lock().await.iter().map(|(name, slot)| (name.clone(), Arc::clone(slot))).collect();
        for (name, slot) in slots {
            // One that is being loaded is about to be used.
            let Ok(mut slot) = slot.try_lock() else { continue };
            let Some(loaded) = slot.as_mut() else { continue };
            if named.contains(&name) {
                loaded.unnamed_since = None;
                continue;
            }
            let since = *loaded.unnamed_since.get_or_insert(now);
            // Nobody gets another handle while the slot is locked.
            if now.saturating_duration_since(since) < KEPT_UNNAMED || Arc::strong_count(&loaded.pipeline) > 1 {
                continue;
            }
            let gone = slot.take();
            drop(slot);
            // Waits for the threads of its networks.
            if tokio::task::spawn_blocking(move || drop(gone)).await.is_ok() {
                tracing::info!(bundle = name, "no route names the bundle any more: it is no longer in memory");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{CT_BUNDLE_NAME, init_ct_bundle};

    #[tokio::test]
    async fn a_bundle_whose_run_is_cancelled_while_it_is_loaded_stays() {
        let models = tempfile::tempdir().unwrap();
        init_ct_bundle(&models.path().join(CT_BUNDLE_NAME)).unwrap();
        let loaded = LoadedBundles::default();
        let options = || (EnsembleOptions::default(), DecodeLimits::default());
        let progress = Progress::default();
        {
            let mut load = std::pin::pin!(loaded.pipeline(models.path(), CT_BUNDLE_NAME, options(), &progress));
            // Until the thread has the slot, if it is not through already.
            while !progress.is_shared() {
                let poll = std::future::poll_fn(|context| std::task::Poll::Ready(load.as_mut().poll(context)));
                if poll.await.is_ready() {
                    break;
                }
            }
        }
        let slot = Arc::clone(&loaded.0.lock().await[CT_BUNDLE_NAME]);
        let kept = slot.lock().await.as_ref().map(|of_slot| Arc::clone(&of_slot.pipeline)).unwrap();
        let next = loaded.pipeline(models.path(), CT_BUNDLE_NAME, options(), &progress).await.unwrap();
        assert!(Arc::ptr_eq(&kept, &next), "it is not loaded again");
    }

    #[tokio::test]
    async fn a_bundle_that_no_route_names_is_let_go_unless_it_is_used() {
        let models = tempfile::tempdir().unwrap();
        init_ct_bundle(&models.path().join(CT_BUNDLE_NAME)).unwrap();
        let loaded = LoadedBundles::default();
        let options = || (EnsembleOptions::default(), DecodeLimits::default());
        let progress = Progress::default();
        let load = async || loaded.pipeline(models.path(), CT_BUNDLE_NAME, options(), &progress).await.unwrap();
        let in_memory = async || {
            let slot = Arc::clone(&loaded.0.lock().await[CT_BUNDLE_NAME]);
            slot.lock().await.is_some()
        };
        let (named, unnamed) = (BTreeSet::from([CT_BUNDLE_NAME.to_owned()]), BTreeSet::new());
        let used = load().await;
        assert!(Arc::ptr_eq(&used, &load().await), "it is loaded once");
        let start = Instant::now();
        let later = |minutes| start + Duration::from_mins(minutes);

        loaded.let_go(&unnamed, later(0)).await;
        loaded.let_go(&unnamed, later(11)).await;
        assert!(in_memory().await, "a run uses it");
        drop(used);
        loaded.let_go(&named, later(12)).await;
        loaded.let_go(&unnamed, later(13)).await;
        loaded.let_go(&unnamed, later(22)).await;
        assert!(in_memory().await, "a route named it ten minutes ago");
        loaded.let_go(&unnamed, later(23)).await;
        assert!(!in_memory().await);
        assert_eq!(load().await.bundle().name, CT_BUNDLE_NAME, "a run that comes after all loads it anew");
    }
}
