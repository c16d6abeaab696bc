//! The index that follows the files: batches what the archive has made durable into Postgres, and finds what was
//! missed by scanning the archive.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{SiteSnapshot, receiver::DRAIN_GRACE};
use crate::{
    archive::{Archive, ArchiveError, hour_folder},
    db::{
        self, Db, DbError, archive_watermark, association,
        instance::{self, Indexed, Patience},
    },
    jobs::{self, Job},
    telemetry::{Metrics, events},
    types::{LateImages, SiteConfig, StoredObject, Uid},
};

/// Steps that wait for the index at most. Objects beyond are found by a scan; they are on the disk.
const QUEUE_LENGTH: usize = 10_000;

/// How long a study waits when no route says so.
const DEFAULT_PATIENCE: Patience = Patience {
    quiet: Duration::from_secs(10),
    maximum_wait: Duration::from_mins(10),
    late_images: LateImages::NewRevision,
    late_images_within: None,
};

/// How long a batch waits for more objects. Long enough for hundreds of CT slices, too short for anybody to notice.
const GATHERING: Duration = Duration::from_millis(500);

/// How long the end of an association, which is written at once, may wait in the queue meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

enum Step {
    Accepted(association::AssociationStart),
    Stored(Box<StoredObject>),
    DuplicateRefused(instance::DuplicateRefusal),
    Ended(association::AssociationEnd),
}

/// The way into the index: never waits, never fails.
#[derive(Clone)]
pub struct IndexQueue {
    sender: mpsc::Sender<(Instant, Step)>,
    waiting: Arc<AtomicUsize>,
    /// A step did not fit: the archive has to be scanned.
    missed: Arc<AtomicBool>,
}

impl IndexQueue {
    fn push(&self, step: Step) {
        match self.sender.try_send((Instant::now(), step)) {
            Ok(()) => {
                self.waiting.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                if !self.missed.swap(true, Ordering::SeqCst) {
                    tracing::warn!(
                        queue_length = QUEUE_LENGTH,
                        "the index cannot follow (is Postgres down?); objects stay safe in the archive and are indexed by a scan later"
                    );
                }
            }
        }
    }

    /// An association was accepted.
    pub fn association_accepted(&self, start: association::AssociationStart) {
        self.push(Step::Accepted(start));
    }

    /// An association has ended.
    pub fn association_ended(&self, end: association::AssociationEnd) {
        self.push(Step::Ended(end));
    }

    /// Other bytes under a known SOP Instance UID were refused.
    pub fn duplicate_refused(&self, refusal: instance::DuplicateRefusal) {
        self.push(Step::DuplicateRefused(refusal));
    }

    /// An object is durable.
    pub fn stored(&self, object: StoredObject) {
        self.push(Step::Stored(Box::new(object)));
    }
}

/// How the indexer works.
#[derive(Debug, Clone)]
pub struct IndexerSettings {
    /// Our name for this node.
    pub node: String,
    /// This installation's Device UID, for the loop guard.
    pub own_device_uid: Uid,
    /// Steps in one transaction at most.
    pub batch_size: usize,
}

/// What a scan of the archive did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanSummary {
    /// Files that were looked at.
    pub files: usize,
    /// Files that were not in the index and are now.
    pub indexed: usize,
    /// Files that were copies of others and were removed.
    pub duplicates: usize,
    /// Files that are no objects, or whose values Postgres refuses; they stay where they are and are named in the log.
    pub unreadable: usize,
    /// Keys of files that the disk did not give, or that the process could not open. They may be read another time.
    pub not_given: Vec<String>,
}

/// Files that the disk did not give in a scan: they hold up nothing but the watermark, and are looked at again, more and more
/// seldom.
struct NotGiven {
    keys: Vec<String>,
    pause: Duration,
    again_at: tokio::time::Instant,
}

impl NotGiven {
    /// The pause before the second look, and the longest one.
    const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
    /// Files that are looked at again within this may only have been unlucky; the scan is not done without them.
    const SOON: Duration = Duration::from_mins(1);
    /// Files that the log names at each look.
    const NAMED: usize = 10;

    fn nothing() -> Self {
        Self { keys: Vec::new(), pause: Self::PAUSES.0, again_at: tokio::time::Instant::now() }
    }

    /// What a scan of everything has left.
    fn of_scan(keys: Vec<String>) -> Self {
        let pause = Self::PAUSES.0;
        Self { keys, pause, again_at: tokio::time::Instant::now() + pause }
    }

    /// What another look has left.
    fn after_look(&mut self, keys: Vec<String>) {
        self.keys = keys;
        self.pause = (self.pause * 2).min(Self::PAUSES.1);
        self.again_at = tokio::time::Instant::now() + self.pause;
    }

    fn may_come_soon(&self) -> bool {
        !self.keys.is_empty() && self.pause < Self::SOON
    }
}

/// Whether writing a batch may move the watermark: not while other steps of the batch are unwritten, which may be hours
/// old and would not be scanned again after a kill.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watermark {
    MayAdvance,
    Stays,
}

/// What the indexer must get done, whatever Postgres does meanwhile.
enum Duty<'a> {
    CloseAssociations,
    Scan,
    LookAgain,
    Write(&'a [(Instant, Step)]),
}

impl fmt::Display for Duty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CloseAssociations => "close the associations of the earlier process",
            Self::Scan => "scan the archive",
            Self::LookAgain => "look again at files that could not be read",
            Self::Write(_) => "write the index",
        })
    }
}

/// Writes the index.
pub struct Indexer {
    settings: IndexerSettings,
    db: Db,
    archive: Archive,
    site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
    metrics: Arc<Metrics>,
    receiver: mpsc::Receiver<(Instant, Step)>,
    waiting: Arc<AtomicUsize>,
    missed: Arc<AtomicBool>,
    /// The archive is being scanned, or will be before anything else, or files that the disk did not give are looked at again
    /// soon.
    scanning: Arc<AtomicBool>,
    not_given: NotGiven,
}

impl Indexer {
    /// An indexer and the queue that feeds it.
    #[must_use]
    pub fn new(
        settings: IndexerSettings,
        db: Db,
        archive: Archive,
        site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
        metrics: Arc<Metrics>,
    ) -> (Self, IndexQueue) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (missed, scanning) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let queue = IndexQueue { sender, waiting: Arc::clone(&waiting), missed: Arc::clone(&missed) };
        let not_given = NotGiven::nothing();
        (Self { settings, db, archive, site, metrics, receiver, waiting, missed, scanning, not_given }, queue)
    }

    /// Tells whether files of the archive may be unknown to the index until a scan is done.
    pub fn owes_scan(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let flags = [Arc::clone(&self.missed), Arc::clone(&self.scanning)];
        move || flags.iter().any(|flag| flag.load(Ordering::SeqCst))
    }

    /// Catches up with the archive, then follows the queue until `shutdown`, then empties it for a few seconds.
    /// What is left then is found by the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.start_over(&shutdown).await;
        let mut batch = Vec::with_capacity(self.settings.batch_size);
        loop {
            batch.clear();
            let count = tokio::select! {
                () = shutdown.cancelled() => break,
                count = self.receiver.recv_many(&mut batch, self.settings.batch_size) => count,
                () = tokio::time::sleep(Duration::from_secs(1)), if self.missed.load(Ordering::SeqCst) => 0,
                () = tokio::time::sleep_until(self.not_given.again_at), if !self.not_given.keys.is_empty() => 0,
            };
            let count = if count == 0 { 0 } else { count + self.gather(&mut batch).await };
            if count > 0 {
                self.until_done(Duty::Write(&batch), &shutdown).await;
                let waiting = self.waiting.fetch_sub(count, Ordering::Relaxed).saturating_sub(count);
                if waiting == 0 {
                    self.metrics.set_index_backlog(0, Duration::ZERO);
                }
            }
            // The flag is cleared before the scan: what is missed during the scan sets it again.
            if self.receiver.is_empty() && self.missed.load(Ordering::SeqCst) {
                self.scanning.store(true, Ordering::SeqCst);
                self.missed.store(false, Ordering::SeqCst);
                self.until_done(Duty::Scan, &shutdown).await;
            }
            if !self.not_given.keys.is_empty() && tokio::time::Instant::now() >= self.not_given.again_at {
                self.until_done(Duty::LookAgain, &shutdown).await;
            }
        }
        self.receiver.close();
        let drain = async {
            loop {
                batch.clear();
                if self.receiver.recv_many(&mut batch, self.settings.batch_size).await == 0 {
                    break;
                }
                if let Err(error) = self.write(&batch, Watermark::MayAdvance).await {
                    tracing::warn!(%error, "the index is left behind at shutdown; the next start catches up");
                    break;
                }
            }
        };
        if tokio::time::timeout(DRAIN_GRACE, drain).await.is_err() {
            tracing::warn!("the index is left behind at shutdown; the next start catches up");
        }
    }

    /// Waits a moment for more, unless an association has ended: a transaction for a hundred objects costs little more
    /// than one for a single object, and its commit competes with receiving for the disk. Looks into the queue now and
    /// then instead of being woken by every object. Returns how many steps were added.
    async fn gather(&mut self, batch: &mut Vec<(Instant, Step)>) -> usize {
        let first = batch.len();
        let deadline = tokio::time::Instant::now() + GATHERING;
        let ended = |(_, step): &(Instant, Step)| matches!(step, Step::Ended(_));
        let mut urgent = batch.iter().any(ended);
        loop {
            while batch.len() < self.settings.batch_size
                && let Ok(step) = self.receiver.try_recv()
            {
                urgent |= ended(&step);
                batch.push(step);
            }
            if urgent || batch.len() >= self.settings.batch_size || tokio::time::Instant::now() >= deadline {
                return batch.len() - first;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// What a killed process left: its associations have ended, and the archive is ahead of the index.
    async fn start_over(&mut self, shutdown: &CancellationToken) {
        // In this order: a study whose last objects are not indexed yet must not look complete.
        self.until_done(Duty::Scan, shutdown).await;
        self.until_done(Duty::CloseAssociations, shutdown).await;
    }

    /// Repeats a duty until it succeeds; gives up only at shutdown, and then leaves the watermark where it is, so
    /// that the next start scans for what was not written. Everything repeated here is idempotent.
    async fn until_done(&mut self, duty: Duty<'_>, shutdown: &CancellationToken) {
        let mut pause = Duration::from_millis(100);
        let mut told = false;
        loop {
            match self.attempt(&duty).await {
                Ok(()) => {
                    if told {
                        tracing::info!("Postgres is back: could {duty}");
                    }
                    return;
                }
                Err(error) if !told => {
                    tracing::warn!(error = format!("{error:#}"), "cannot {duty}; receiving goes on, trying again");
                    told = true;
                }
                Err(error) => tracing::debug!(error = format!("{error:#}"), "still cannot {duty}"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.missed.store(true, Ordering::SeqCst);
                    return;
                }
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    async fn attempt(&mut self, duty: &Duty<'_>) -> anyhow::Result<()> {
        match duty {
            Duty::CloseAssociations => {
                let mut connection = self.db.acquire().await?;
                let closed = association::end_all_of_node(&mut connection, &self.settings.node).await?;
                if closed > 0 {
                    tracing::info!(closed, "associations of the earlier process count as ended");
                }
            }
            Duty::Scan => {
                let summary = self.scan_from_watermark().await?;
                let ScanSummary { files, indexed, duplicates, unreadable, not_given } = summary;
                if indexed + duplicates + unreadable + not_given.len() > 0 {
                    let not_given = not_given.len();
                    tracing::info!(
                        files,
                        indexed,
                        duplicates,
                        unreadable,
                        not_given,
                        "the index has caught up with the archive"
                    );
                }
                self.not_given = NotGiven::of_scan(not_given);
                self.scanned();
            }
            Duty::LookAgain => {
                let mut summary = ScanSummary::default();
                for keys in self.not_given.keys.chunks(self.settings.batch_size.max(1)) {
                    self.scan_batch(keys, &mut summary).await?;
                }
                if summary.not_given.len() < self.not_given.keys.len() {
                    tracing::info!(
                        indexed = summary.indexed,
                        still_not_given = summary.not_given.len(),
                        "files of the archive that could not be read are there, or have been removed"
                    );
                }
                self.not_given.after_look(summary.not_given);
                self.scanned();
            }
            Duty::Write(batch) => {
                // Told at every attempt, so that the lag grows while Postgres is away.
                let oldest = batch.first().map_or(Duration::ZERO, |(queued, _)| queued.elapsed());
                self.metrics.set_index_backlog(self.waiting.load(Ordering::Relaxed), oldest);
                match self.write(batch, Watermark::MayAdvance).await {
                    Err(error) if is_about_the_data(&error) => self.write_one_by_one(batch).await?,
                    outcome => outcome?,
                }
            }
        }
        Ok(())
    }

    /// Tells what a scan, or another look, has left.
    fn scanned(&self) {
        let count = self.not_given.keys.len();
        self.metrics.set_archive_unreadable_files(count);
        self.scanning.store(self.not_given.may_come_soon(), Ordering::SeqCst);
        if count > 0 {
            tracing::error!(
                count,
                again_in_seconds = self.not_given.pause.as_secs(),
                "files of the archive cannot be read and are not in the index, the others are: look into the system's log for the \
                 archive's disk"
            );
        }
    }

    /// One step that Postgres will never take must not hold up the others: it is left out, loudly. Its file stays.
    async fn write_one_by_one(&self, batch: &[(Instant, Step)]) -> anyhow::Result<()> {
        for step in batch {
            match self.write(std::slice::from_ref(step), Watermark::Stays).await {
                Err(error) if is_about_the_data(&error) => tracing::error!(
                    error = format!("{error:#}"),
                    archive_key = match &step.1 {
                        Step::Stored(object) => Some(object.archive_key.as_str()),
                        _ => None,
                    },
                    "Postgres refuses the values of one step; it is left out of the index, the file stays in the archive"
                ),
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn write(&self, batch: &[(Instant, Step)], watermark: Watermark) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        let mut objects = Vec::new();
        for (_, step) in batch {
            match step {
                Step::Accepted(start) => association::insert(&mut tx, start).await?,
                Step::Stored(object) => objects.push((**object).clone()),
                Step::DuplicateRefused(_) | Step::Ended(_) => {}
            }
        }
        let outcomes = self.index(&mut tx, &objects).await?;
        for (_, step) in batch {
            match step {
                Step::DuplicateRefused(refusal) => instance::duplicate_refused(&mut tx, refusal).await?,
                Step::Ended(end) => {
                    association::end(&mut tx, end).await?;
                    // Its studies may be complete now: look at once instead of at the next due time.
                    for workup_id in association::workups_of(&mut tx, end.id).await? {
                        jobs::queue(&mut tx, &self.db, &Job::CompleteWorkup(workup_id), None).await?;
                    }
                }
                _ => {}
            }
        }
        let hour = hour_folder(OffsetDateTime::now_utc() - time::Duration::hours(1));
        let is_behind =
            self.missed.load(Ordering::SeqCst) || !self.receiver.is_empty() || !self.not_given.keys.is_empty();
        if watermark == Watermark::MayAdvance && !is_behind {
            archive_watermark::advance(&mut tx, &self.settings.node, &hour).await?;
        }
        tx.commit().await.map_err(db::DbError::from)?;
        self.after_commit(&objects, &outcomes).await;
        Ok(())
    }

    /// Indexes objects and queues the look at their workups, in the caller's transaction.
    async fn index(&self, tx: &mut db::Tx, objects: &[StoredObject]) -> anyhow::Result<Vec<Indexed>> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let snapshot = self.site.borrow().clone();
        let patience = |object: &StoredObject| {
            snapshot.as_deref().map_or(DEFAULT_PATIENCE, |snapshot| patience_for(&snapshot.site, object))
        };
        let (outcomes, due) = instance::index(tx, objects, &self.settings.own_device_uid, patience).await?;
        for workup in due {
            jobs::queue(tx, &self.db, &Job::CompleteWorkup(workup.workup_id), Some(workup.due_at)).await?;
        }
        Ok(outcomes)
    }

    async fn index_now(&self, objects: &[StoredObject]) -> anyhow::Result<Vec<Indexed>> {
        let mut tx = self.db.begin().await?;
        let outcomes = self.index(&mut tx, objects).await?;
        tx.commit().await.map_err(DbError::from)?;
        Ok(outcomes)
    }

    /// Tells of what came, and removes second copies of the same bytes.
    async fn after_commit(&self, objects: &[StoredObject], outcomes: &[Indexed]) {
        for (object, outcome) in objects.iter().zip(outcomes) {
            match outcome {
                Indexed::New { version, .. } if *version > 1 => events::ObjectVersionConflict {
                    sop_instance_uid: &object.header.sop_instance_uid,
                    study_instance_uid: &object.header.study_instance_uid,
                    versions: u32::try_from(*version).unwrap_or(u32::MAX),
                }
                .emit(&self.metrics),
                Indexed::New { .. } | Indexed::Known => {}
                Indexed::Duplicate { kept_archive_key } => {
                    events::ObjectDuplicate {
                        association_id: object.origin.association_id,
                        sop_instance_uid: &object.header.sop_instance_uid,
                        size_bytes: object.size_bytes,
                    }
                    .emit(&self.metrics);
                    if let Err(error) = self.keep_one(object, kept_archive_key).await {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            archive_key = object.archive_key,
                            "cannot remove a second copy; the next scan tries again"
                        );
                    }
                }
            }
        }
    }

    /// Removes the second copy of an object, unless the first is not there any more: then it takes its place.
    async fn keep_one(&self, object: &StoredObject, kept_archive_key: &str) -> anyhow::Result<()> {
        let (archive, key, kept) = (self.archive.clone(), object.archive_key.clone(), kept_archive_key.to_owned());
        if tokio::task::spawn_blocking(move || archive.remove_duplicate(&key, &kept)).await?? {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        instance::replace_lost_file(&mut tx, object, kept_archive_key).await?;
        tx.commit().await.map_err(DbError::from)?;
        tracing::warn!(
            lost_archive_key = kept_archive_key,
            archive_key = object.archive_key,
            "the file of an object was gone from the archive; the object came again, and the new file takes its place"
        );
        Ok(())
    }

    /// Indexes every file from the last fully indexed hour on.
    async fn scan_from_watermark(&self) -> anyhow::Result<ScanSummary> {
        let started_hour = hour_folder(OffsetDateTime::now_utc() - time::Duration::hours(1));
        let watermark = {
            let mut connection = self.db.acquire().await?;
            archive_watermark::get(&mut connection, &self.settings.node).await?
        };
        let summary = self.scan(watermark.as_deref()).await?;
        if summary.not_given.is_empty() {
            let mut connection = self.db.acquire().await?;
            archive_watermark::advance(&mut connection, &self.settings.node, &started_hour).await?;
        }
        Ok(summary)
    }

    /// Indexes every file of the archive from the hour folder `from` on; all of it when `None` (`hilum reindex`).
    pub async fn scan(&self, from: Option<&str>) -> anyhow::Result<ScanSummary> {
        let mut summary = ScanSummary::default();
        let (archive, from) = (self.archive.clone(), from.map(str::to_owned));
        let hours = tokio::task::spawn_blocking(move || archive.hours(from.as_deref())).await??;
        for hour in hours {
            let archive = self.archive.clone();
            let keys = tokio::task::spawn_blocking(move || archive.keys_of_hour(&hour)).await??;
            for keys in keys.chunks(self.settings.batch_size.max(1)) {
                self.scan_batch(keys, &mut summary).await?;
            }
        }
        Ok(summary)
    }

    async fn scan_batch(&self, keys: &[String], summary: &mut ScanSummary) -> anyhow::Result<()> {
        let (files, unreadable, n_not_given) = (summary.files, summary.unreadable, summary.not_given.len());
        summary.files += keys.len();
        let known = {
            let mut connection = self.db.acquire().await?;
            instance::known_keys(&mut connection, keys).await?
        };
        let unknown: Vec<String> = keys.iter().filter(|key| !known.contains(key)).cloned().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let archive = self.archive.clone();
        let read = tokio::task::spawn_blocking(move || {
            unknown.into_iter().map(|key| (archive.read_stored(&key), key)).collect::<Vec<_>>()
        })
        .await?;
        let mut objects = Vec::with_capacity(read.len());
        for (object, key) in read {
            match object {
                Ok(object) => objects.push(object),
                // It has been removed meanwhile.
                Err(ArchiveError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                // The disk or the process may do better later; the watermark must not pass this file before.
                Err(ArchiveError::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    if summary.not_given.len() < NotGiven::NAMED {
                        tracing::error!(archive_key = key, %error, "a file of the archive cannot be read now");
                    }
                    summary.not_given.push(key);
                }
                Err(error) => {
                    summary.unreadable += 1;
                    tracing::error!(archive_key = key, %error, "a file in the archive cannot be read; it stays where it is");
                }
            }
        }
        let outcomes = match self.index_now(&objects).await {
            Err(error) if is_about_the_data(&error) && objects.len() > 1 => {
                // One by one, and counted anew.
                (summary.files, summary.unreadable) = (files, unreadable);
                summary.not_given.truncate(n_not_given);
                for key in keys {
                    Box::pin(self.scan_batch(std::slice::from_ref(key), summary)).await?;
                }
                return Ok(());
            }
            Err(error) if is_about_the_data(&error) => {
                summary.unreadable += 1;
                tracing::error!(archive_key = ?keys, error = format!("{error:#}"), "Postgres refuses the values of a file; it stays where it is");
                return Ok(());
            }
            outcomes => outcomes?,
        };
        summary.indexed += outcomes.iter().filter(|outcome| matches!(outcome, Indexed::New { .. })).count();
        summary.duplicates += outcomes.iter().filter(|outcome| matches!(outcome, Indexed::Duplicate { .. })).count();
        self.after_commit(&objects, &outcomes).await;
        Ok(())
    }
}

fn is_about_the_data(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match (cause.downcast_ref::<DbError>(), cause.downcast_ref::<jobs::JobError>()) {
        (Some(error), _) | (None, Some(jobs::JobError::Db(error))) => error.is_about_the_data(),
        _ => false,
    })
}

/// The patience of the route that will probably take the object: the first that fits its titles, and its modality
/// if any does.
fn patience_for(site: &SiteConfig, object: &StoredObject) -> Patience {
    let fits = |route: &&crate::types::Route| {
        route.enabled
            && route.called_ae_title == object.origin.called_ae_title
            && (route.calling_ae_titles.is_empty() || route.calling_ae_titles.contains(&object.origin.calling_ae_title))
    };
    let mut routes: Vec<_> = site.routes.iter().filter(fits).collect();
    routes.sort_by_key(|route| route.order);
    let by_modality = routes
        .iter()
        .find(|route| object.header.modality.as_ref().is_some_and(|modality| route.modalities.contains(modality)));
    by_modality.or(routes.first()).map_or(DEFAULT_PATIENCE, |route| Patience {
        quiet: Duration::from_secs(route.quiet_seconds.into()),
        maximum_wait: Duration::from_secs(route.max_wait_seconds.into()),
        late_images: route.late_images,
        late_images_within: route.late_images_within_seconds.map(|seconds| Duration::from_secs(seconds.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::ImplementationIds;

    fn indexer(folder: &std::path::Path, batch_size: usize) -> (Indexer, IndexQueue) {
        let uid = |text: &str| Uid::new(text).unwrap();
        let ids = ImplementationIds { class_uid: uid("2.25.1"), version_name: "HILUM_TEST".into() };
        Indexer::new(
            IndexerSettings { node: "test".into(), own_device_uid: uid("2.25.2"), batch_size },
            Db::connect_lazy("postgres://nobody@127.0.0.1:1/none", 1).unwrap(),
            Archive::open(folder, ids, 0).unwrap(),
            watch::channel(None).1,
            Arc::new(Metrics::new()),
        )
    }

    fn accepted() -> association::AssociationStart {
        association::AssociationStart {
            id: uuid::Uuid::from_u128(1),
            node: "test".into(),
            peer_address: "127.0.0.1".parse().unwrap(),
            calling_ae_title: "CT01".into(),
            called_ae_title: "HILUM".into(),
            peer_implementation_class_uid: None,
            peer_implementation_version_name: None,
            started_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn ended() -> association::AssociationEnd {
        association::AssociationEnd {
            id: uuid::Uuid::from_u128(1),
            kind: "released",
            words: String::new(),
            objects_stored: 0,
            objects_refused: 0,
            bytes_received: 0,
            ended_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn what_the_disk_does_not_give_is_asked_for_more_and_more_seldom() {
        let mut not_given = NotGiven::of_scan(vec!["a".into(), "b".into()]);
        let mut pauses = vec![not_given.pause.as_secs()];
        for _ in 0..11 {
            not_given.after_look(vec!["b".into()]);
            assert!(not_given.again_at > tokio::time::Instant::now());
            assert_eq!(not_given.may_come_soon(), not_given.pause < Duration::from_mins(1));
            pauses.push(not_given.pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        let mut given = NotGiven::of_scan(vec!["a".into()]);
        given.after_look(Vec::new());
        assert!(!given.may_come_soon() && !NotGiven::nothing().may_come_soon());
    }

    #[tokio::test]
    async fn a_batch_gathers_until_an_association_ends_or_it_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let (mut indexer, queue) = indexer(folder.path(), 4);
        for _ in 0..2 {
            queue.association_accepted(accepted());
        }
        queue.association_ended(ended());
        for _ in 0..6 {
            queue.association_accepted(accepted());
        }
        let mut batch = Vec::new();
        assert_eq!(indexer.gather(&mut batch).await, 4, "what waits already goes into one batch");
        assert!(batch.iter().any(|(_, step)| matches!(step, Step::Ended(_))));
        batch.clear();
        assert_eq!(indexer.gather(&mut batch).await, 4, "a full batch is written");
        queue.association_ended(ended());
        batch.clear();
        let started = Instant::now();
        assert_eq!(indexer.gather(&mut batch).await, 2);
        assert!(started.elapsed() < GATHERING, "the end of an association is not kept waiting");
        queue.association_accepted(accepted());
        queue.association_accepted(accepted());
        batch.clear();
        let started = Instant::now();
        assert_eq!(indexer.gather(&mut batch).await, 2);
        assert!(started.elapsed() >= GATHERING, "the rest waits for more");
    }
}
