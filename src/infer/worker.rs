//! The jobs `run_bundle` and `render_run`, which run in the inference process: the only piece of this room that
//! touches rows and files. A run's attempt is counted and committed before any pixel is decoded, so that a crash
//! is charged to the study that caused it.

use std::{
    collections::BTreeSet,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use time::{OffsetDateTime, UtcOffset};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Analysis, CxrPipeline, InferError, LoadedImage, NnModels, Pipeline, SimilarCaseSettings,
    library::CaseLibrary,
    loaded::LoadedBundles,
    room::{Place, Room},
    thread::on_thread,
};
use crate::{
    archive::Archive,
    db::{
        self, Db, case,
        instance::{self, Instance},
        masks::PackedMasks,
        run::{self, AfterFailure, Claim, ClaimedRun, Pending},
        site,
    },
    imaging::DecodeLimits,
    jobs::{self, Job, JobHandler},
    nn::EnsembleOptions,
    report::{self, RenderOptions},
    telemetry::{Label as _, RunStage},
    types::{Errand, Installation, Progress, Route, RunOutcome, RunRole, Sha256Digest, SourceImage, Uid, Urgency},
};

/// What the inference process needs.
#[derive(Clone)]
pub struct WorkerSettings {
    /// Folder of the bundles.
    pub models_dir: PathBuf,
    /// Who we are.
    pub installation: Installation,
    /// Digest of the configuration that influences results.
    pub configuration_sha256: Sha256Digest,
    /// How results are encoded.
    pub render: RenderOptions,
    /// The machine's offset from UTC at an instant: generated times are local, as the study's own are.
    pub machine_utc_offset: fn(OffsetDateTime) -> UtcOffset,
    /// How networks are run.
    pub ensemble: EnsembleOptions,
    /// What decoding may take.
    pub decode_limits: DecodeLimits,
    /// Longest time in which an attempt gets on by no step. Waiting for what other runs have does not count.
    pub run_timeout: Duration,
    /// Our name for this node: its inference process is the one that works on a run.
    pub node: String,
}

pub(super) struct Inner {
    pub(super) db: Db,
    pub(super) archive: Archive,
    pub(super) settings: WorkerSettings,
    library: CaseLibrary,
    bundles: LoadedBundles,
    /// Work that may have killed the process before takes all places, all other work takes one.
    company: Room,
}

/// More places than there can be jobs.
const PLACES: usize = 1 << 16;

/// How often the bundles in memory are compared with those that routes name.
const LOOK_AT_ROUTES: Duration = Duration::from_mins(1);

/// How often a run says that it is worked on.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// One that is not heard costs nothing.
const _: () = assert!(HEARTBEAT.as_secs() * 2 < run::LEASE.as_secs());

/// When it says so again after it could not.
const HEARTBEAT_AGAIN: Duration = Duration::from_secs(1);

/// The pauses after which the end of an attempt is written again, when that fails.
const CLOSING_PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// How long one of them may take: with the pauses a minute at most, while the run keeps its place.
const CLOSING_LIMIT: Duration = Duration::from_secs(9);

/// How often it is looked whether the threads of an attempt have ended.
const LOOK_AT_THREADS: Duration = Duration::from_millis(50);

/// Executes runs.
#[derive(Clone)]
pub struct RunBundle(Arc<Inner>);

/// Renders results.
#[derive(Clone)]
pub struct RenderRun(Arc<Inner>);

/// The two handlers of the inference process.
#[must_use]
pub fn handlers(db: Db, archive: Archive, settings: WorkerSettings) -> (RunBundle, RenderRun) {
    let inner = Arc::new(Inner {
        library: CaseLibrary::new(db.clone(), SimilarCaseSettings::default().maximum_index_bytes),
        db,
        archive,
        settings,
        bundles: LoadedBundles::default(),
        company: Room::new(PLACES),
    });
    (RunBundle(Arc::clone(&inner)), RenderRun(inner))
}

impl RunBundle {
    /// Every now and then lets go of the bundles that no route names any more, until `shutdown`.
    pub async fn let_go_regularly(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_AT_ROUTES) => {}
            }
            match self.0.named_bundles().await {
                Ok(named) => self.0.bundles.let_go(&named, Instant::now()).await,
                Err(error) => tracing::debug!(%error, "cannot see which bundles routes name; looking again later"),
            }
        }
    }
}

impl JobHandler for RunBundle {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.0.run_bundle(id.parse().context("read the run id")?).await })
    }
}

impl JobHandler for RenderRun {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.0.render_run(id.parse().context("read the run id")?).await })
    }
}

/// Why an attempt failed, as recorded with the run.
struct Failure {
    reason: &'static str,
    words: String,
    /// The attempt is given back and repeated after so long: the run has no part in the failure.
    wait: Option<Duration>,
}

impl Failure {
    fn new(reason: &'static str, words: impl Into<String>) -> Self {
        Self { reason, words: words.into(), wait: None }
    }

    fn technical(error: &anyhow::Error) -> Self {
        let wait = error.downcast_ref::<InferError>().and_then(InferError::wait);
        Self { wait, ..Self::new("processing.failure", format!("{error:#}")) }
    }
}

impl Inner {
    /// Work whose last attempt ended without a word is repeated alone: if it kills the process again, no innocent
    /// study beside it is charged with the crash.
    ///
    /// Routine work that comes later waits for it, and must: in a busy room nobody would ever be alone otherwise, and the
    /// study never be answered. That is bounded: what is urgent passes while it waits, a shadow lets everybody pass and
    /// gives its places up, each turn costs one of few attempts and ends when nothing gets on for the time limit, and a crash
    /// makes no more of its kind than there were jobs at work.
    async fn company(&self, run_id: Uuid) -> anyhow::Result<(Urgency, Place)> {
        let (urgency, is_suspect) = {
            let mut connection = self.db.acquire().await?;
            let (priority, role) = run::urgency(&mut connection, run_id).await?;
            (Urgency::of(priority, role), run::was_interrupted(&mut connection, run_id).await?)
        };
        let place =
            if is_suspect { self.company.enter_alone(urgency).await } else { self.company.enter(urgency).await };
        Ok((urgency, place))
    }

    /// The bundles that routes have or try.
    async fn named_bundles(&self) -> anyhow::Result<BTreeSet<String>> {
        let site = site::load(&mut *self.db.acquire().await?).await?;
        let of_route = |route: Route| [Some(route.bundle), route.trial.map(|trial| trial.bundle)];
        Ok(site.routes.into_iter().flat_map(of_route).flatten().collect())
    }

    async fn run_bundle(&self, run_id: Uuid) -> anyhow::Result<()> {
        let (urgency, mut company) = self.company(run_id).await?;
        let claimed = {
            let mut tx = self.db.begin().await?;
            let claim = run::claim(&mut tx, run_id, &self.settings.node).await?;
            if matches!(claim, Claim::Parked) {
                self.queue_answering(&mut tx, run_id).await?;
            }
            tx.commit().await.context("commit the attempt")?;
            match claim {
                Claim::Claimed(claimed) => claimed,
                Claim::WorkedOn => {
                    tracing::debug!(%run_id, "another worker is at the run: this job has nothing to do");
                    return Ok(());
                }
                Claim::Nothing | Claim::Parked => return Ok(()),
            }
        };
        let span = tracing::info_span!(
            "run",
            run_id = %claimed.id,
            study_instance_uid = claimed.study_instance_uid,
            bundle = claimed.bundle,
            attempt = claimed.attempt
        );
        tracing::Instrument::instrument(self.execute(&claimed, urgency, &mut company), span).await
    }

    async fn execute(&self, claimed: &ClaimedRun, urgency: Urgency, company: &mut Place) -> anyhow::Result<()> {
        let started = Instant::now();
        let errand = Errand { urgency, progress: Progress::default() };
        let limit = self.settings.run_timeout;
        let timeout = || {
            let words = format!("nothing got on within inference.run_timeout_seconds = {}", limit.as_secs());
            Failure::new("processing.timeout", words)
        };
        let mut hangs = false;
        // `None` when the attempt no longer counts.
        let mut analysis = tokio::select! {
            analysis = self.analyse(claimed, &errand) => Some(analysis),
            () = stall(&errand.progress, limit) => {
                hangs = true;
                Some(Err(timeout()))
            }
            () = company.wanted() => Some(Err(Failure::technical(&anyhow!(InferError::GivesWay)))),
            () = self.stays_ours(claimed) => None,
        };
        // What was cancelled goes on to the end of its step. Until then it may hang or kill the process, and this run is who
        // is to be charged with that: no attempt is given back, and no neighbour let in, before.
        let is_cut_off = !hangs && !matches!(analysis, Some(Ok(_)));
        if is_cut_off && beside(self.stays_ours(claimed), hang_behind(&errand.progress, limit)).await {
            hangs = true;
            analysis = analysis.map(|_| Err(timeout()));
        }
        let closed = if let Some(analysis) = &analysis {
            self.close(claimed, analysis, started).await
        } else {
            tracing::info!("another revision or worker has taken over: the attempt ends");
            Ok(())
        };
        // A codec or network that hangs cannot be stopped, only left behind.
        if hangs {
            let not_told = closed.err().map(|error| format!("{error:#}"));
            let words = timeout().words;
            tracing::error!(
                words,
                not_told,
                "the inference process ends, to be rid of what hangs; it is started again"
            );
            std::process::exit(1);
        }
        closed
    }

    /// Writes how an attempt ended; again when that fails, and says meanwhile that the run is worked on. When it cannot be
    /// written at all the attempt is lost: the run is nobody's, so that the job, which the queue repeats, finds it so.
    async fn close(
        &self,
        claimed: &ClaimedRun,
        analysis: &Result<Finished, Failure>,
        started: Instant,
    ) -> anyhow::Result<()> {
        let write = async || {
            let written = Box::pin(self.write_end(claimed, analysis, started));
            let written = tokio::time::timeout(CLOSING_LIMIT, written).await;
            written.context("Postgres does not answer").flatten()
        };
        let write_again = async {
            for pause in CLOSING_PAUSES {
                match write().await {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::debug!(error, "cannot write how the attempt ended; trying again");
                    }
                }
                tokio::time::sleep(pause).await;
            }
            write().await
        };
        let closed = beside(self.stays_ours(claimed), write_again).await;
        if closed.is_err() {
            let ended = in_time(Box::pin(async { run::end_lease(&mut *self.db.acquire().await?, claimed).await }));
            if let Err(error) = ended.await {
                tracing::debug!(%error, "cannot say that nobody works on the run; that shows when its time has passed");
            }
        }
        closed.context("write how the attempt ended")
    }

    /// One transaction.
    async fn write_end(
        &self,
        claimed: &ClaimedRun,
        analysis: &Result<Finished, Failure>,
        started: Instant,
    ) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        match analysis {
            Ok(finished) => {
                let role = run::finish(
                    &mut tx,
                    claimed.id,
                    claimed.attempt,
                    &run::Finished {
                        outcome: &finished.outcome,
                        bundle: finished.pipeline.bundle(),
                        configuration_sha256: self.settings.configuration_sha256,
                        result_key: finished.result_key,
                        stage_milliseconds: &finished.stage_milliseconds,
                        computed_with: &finished.pipeline.computed_with(&self.settings.ensemble),
                        masks: finished.masks.as_ref(),
                    },
                )
                .await?;
                if let Some(role) = role {
                    for own in &finished.own_images {
                        case::keep_own(&mut tx, claimed.id, &own.sop_instance_uid, &own.method, &own.embedding).await?;
                    }
                    if role != RunRole::Shadow {
                        jobs::queue(&mut tx, &self.db, &Job::RenderRun(claimed.id), None).await?;
                    }
                }
                tx.commit().await.context("commit the outcome")?;
                tracing::debug!(
                    milliseconds = started.elapsed().as_millis() as u64,
                    outcome = match &finished.outcome {
                        RunOutcome::Analysed(_) => "analysed",
                        RunOutcome::CtMeasured(_) => "measured",
                        RunOutcome::NotAnalysed(not_analysed) => not_analysed.reason.id(),
                    },
                    role = role.map_or("superseded", RunRole::name),
                    "run finished"
                );
            }
            Err(Failure { words, wait: Some(wait), .. }) => {
                let due_at = run::return_attempt(&mut tx, claimed, *wait, words).await?;
                if let Some(due_at) = due_at {
                    jobs::queue(&mut tx, &self.db, &Job::RunBundle(claimed.id), Some(due_at)).await?;
                }
                tx.commit().await.context("commit that the run waits")?;
                tracing::warn!(words, seconds = wait.as_secs(), "the run waits, its attempt is given back");
            }
            Err(Failure { reason, words, wait: None }) => {
                let after = run::fail(&mut tx, claimed, reason, words).await?;
                match after {
                    AfterFailure::RetryAt(retry_at) => {
                        jobs::queue(&mut tx, &self.db, &Job::RunBundle(claimed.id), Some(retry_at)).await?;
                    }
                    AfterFailure::Parked => self.queue_answering(&mut tx, claimed.id).await?,
                    AfterFailure::Fenced => {}
                }
                tx.commit().await.context("commit the failure")?;
                match after {
                    // The node's process tells operators; see `app::follow_runs`.
                    AfterFailure::RetryAt(_) => tracing::debug!(reason, words, "the attempt failed and is repeated"),
                    AfterFailure::Parked => tracing::debug!(reason, words, "the last attempt failed"),
                    AfterFailure::Fenced => tracing::info!(reason, words, "a failed attempt no longer counts"),
                }
            }
        }
        Ok(())
    }

    /// Says again and again that the run is worked on; completes when the attempt no longer counts.
    async fn stays_ours(&self, claimed: &ClaimedRun) {
        let say = || in_time(Box::pin(async { run::keep_alive(&mut *self.db.acquire().await?, claimed).await }));
        while counts_until_next(say().await).await {}
    }

    /// A run that has taken over from a parked one is no longer the last in the queue.
    pub(super) async fn queue_answering(&self, tx: &mut db::Tx, parked: Uuid) -> anyhow::Result<()> {
        match run::answering(tx, parked).await? {
            Some((run_id, Pending::Attempt { due_at })) => {
                jobs::queue(tx, &self.db, &Job::RunBundle(run_id), Some(due_at)).await?;
            }
            Some((run_id, Pending::Rendering)) => jobs::queue(tx, &self.db, &Job::RenderRun(run_id), None).await?,
            None => {}
        }
        Ok(())
    }

    async fn analyse(&self, claimed: &ClaimedRun, errand: &Errand) -> Result<Finished, Failure> {
        let technical = |error: anyhow::Error| Failure::technical(&error);
        let pipeline = self
            .bundles
            .pipeline(
                &self.settings.models_dir,
                &claimed.bundle,
                (self.settings.ensemble.clone(), self.settings.decode_limits),
                &errand.progress,
            )
            .await
            .map_err(|error| Failure::new("bundle.unusable", format!("{error:#}")))?;
        if let Some(of_route) = claimed.pipeline() {
            let fits = pipeline.check_route(of_route);
            fits.map_err(|mismatch| Failure::new("bundle.unusable", mismatch.to_string()))?;
        }
        let instances = self.instances(claimed).await.map_err(technical)?;
        let sources: Vec<SourceImage> =
            instances.iter().map(source_image).collect::<Result<_, _>>().map_err(technical)?;
        let mut own_images = Vec::new();
        let analysis = pipeline.analyse(&sources, errand, |source| read(&self.archive, source, &errand.progress)).await;
        let mut analysis = analysis.map_err(|error| technical(anyhow!(error)))?;
        if let Pipeline::Cxr(pipeline) = pipeline.as_ref() {
            let started = Instant::now();
            own_images = self.compare(claimed, pipeline, &mut analysis).await;
            let stage = RunStage::Compare.as_str().to_owned();
            analysis.stage_milliseconds.push((stage, started.elapsed().as_secs_f64() * 1000.0));
        }
        let Analysis { outcome, masks, stage_milliseconds, .. } = analysis;
        let pack = move || masks.as_ref().map(PackedMasks::of).transpose();
        let masks = on_thread(&errand.progress, pack).await.map_err(|error| technical(anyhow!(error)))?;
        let masks = masks.map_err(|error| technical(anyhow!(error)))?;
        let result_key = report::result_key(
            self.settings.installation.id,
            claimed.workup_id,
            &sources,
            &pipeline.bundle().digest,
            &self.settings.configuration_sha256,
            claimed.revision,
        );
        Ok(Finished { outcome, masks, own_images, stage_milliseconds, result_key, pipeline })
    }

    /// Looks for similar cases of every analysed image, and returns what the images leave for later studies.
    async fn compare(
        &self,
        claimed: &ClaimedRun,
        pipeline: &CxrPipeline<NnModels>,
        analysis: &mut Analysis,
    ) -> Vec<OwnImage> {
        let RunOutcome::Analysed(analysed) = &mut analysis.outcome else { return Vec::new() };
        let settings = pipeline.similar_cases();
        let (method, bundle) = (settings.method.id(), pipeline.bundle().digest);
        let mut own_images = Vec::new();
        for (image, embedding) in analysed.images.iter_mut().zip(std::mem::take(&mut analysis.embeddings)) {
            let study = &claimed.study_instance_uid;
            let similar = self.library.similar_cases(study, bundle, &method, settings.count, &embedding).await;
            image.similar_cases = Some(similar);
            own_images.extend(embedding.ok().map(|embedding| OwnImage {
                sop_instance_uid: image.source.sop_instance_uid.to_string(),
                method: method.clone(),
                embedding,
            }));
        }
        own_images
    }

    async fn instances(&self, claimed: &ClaimedRun) -> anyhow::Result<Vec<Instance>> {
        let mut connection = self.db.acquire().await?;
        Ok(instance::of_study(&mut connection, &claimed.study_instance_uid, &claimed.local_ae_title).await?)
    }

    async fn render_run(&self, run_id: Uuid) -> anyhow::Result<()> {
        let (_, _company) = self.company(run_id).await?;
        let claimed = {
            let mut tx = self.db.begin().await?;
            let claimed = run::claim_rendering(&mut tx, run_id, &self.settings.node).await?;
            tx.commit().await.context("commit the attempt to render")?;
            claimed
        };
        let Some(claimed) = claimed else { return Ok(()) };
        let says_so = async {
            let say = || {
                in_time(Box::pin(async { run::keep_rendering_alive(&mut *self.db.acquire().await?, &claimed).await }))
            };
            while counts_until_next(say().await).await {}
        };
        let rendered = beside(says_so, Box::pin(self.render(&claimed))).await;
        if rendered.is_err() {
            let ended = in_time(Box::pin(async { run::end_rendering(&mut *self.db.acquire().await?, &claimed).await }));
            if let Err(error) = ended.await {
                tracing::debug!(%error, "cannot say that nobody renders the run; that shows when its time has passed");
            }
        }
        rendered
    }
}

/// What Postgres answers to a word, which nobody waits for longer than until the next: a connection that a firewall has
/// forgotten never answers.
async fn in_time<T>(asked: impl Future<Output = db::Result<T>>) -> anyhow::Result<T> {
    let answered = tokio::time::timeout(HEARTBEAT, asked).await;
    Ok(answered.context("Postgres does not answer")??)
}

/// Waits until it is to be said again that something is worked on. Returns whether that still counts.
async fn counts_until_next(said: anyhow::Result<bool>) -> bool {
    let pause = match said {
        Ok(true) => HEARTBEAT,
        Ok(false) => return false,
        Err(error) => {
            tracing::debug!(%error, "cannot say that the run is worked on; saying it again soon");
            HEARTBEAT_AGAIN
        }
    };
    tokio::time::sleep(pause).await;
    true
}

/// Does `work`, and as long as that takes what `says_so`: that it is worked on. Goes on when it no longer counts, since what
/// is written then is fenced.
async fn beside<T>(says_so: impl Future<Output = ()>, work: impl Future<Output = T>) -> T {
    let says_so = async {
        says_so.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        done = work => done,
        never = says_so => never,
    }
}

/// Waits for the threads that still compute for an attempt that was cut off. Returns whether they get on no more.
async fn hang_behind(progress: &Progress, limit: Duration) -> bool {
    let ended = async {
        while progress.is_shared() {
            tokio::time::sleep(LOOK_AT_THREADS).await;
        }
    };
    tokio::select! {
        biased;
        () = ended => false,
        () = stall(progress, limit) => true,
    }
}

/// Completes when nothing has got on for `limit`.
async fn stall(progress: &Progress, limit: Duration) {
    loop {
        let left = limit.saturating_sub(progress.idle());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// An embedding that is kept with the run.
struct OwnImage {
    sop_instance_uid: String,
    method: String,
    embedding: Vec<f32>,
}

struct Finished {
    outcome: RunOutcome,
    masks: Option<PackedMasks>,
    own_images: Vec<OwnImage>,
    stage_milliseconds: Vec<(String, f64)>,
    result_key: Sha256Digest,
    pipeline: Arc<Pipeline>,
}

fn source_image(instance: &Instance) -> anyhow::Result<SourceImage> {
    Ok(SourceImage {
        sop_class_uid: Uid::new(&instance.sop_class_uid)?,
        sop_instance_uid: Uid::new(&instance.sop_instance_uid)?,
        series_instance_uid: Uid::new(&instance.series_instance_uid)?,
        modality: instance.modality.clone().unwrap_or_else(|| "OT".to_owned()),
        archive_key: instance.archive_key.clone(),
        sha256: instance.sha256,
    })
}

/// Reads an image that was analysed from the archive.
///
/// # Errors
/// [`InferError::Read`] when it is gone.
pub async fn load(archive: &Archive, source: SourceImage) -> Result<LoadedImage, InferError> {
    read(archive, source, &Progress::default()).await
}

async fn read(archive: &Archive, source: SourceImage, progress: &Progress) -> Result<LoadedImage, InferError> {
    let archive = archive.clone();
    on_thread(progress, move || match archive.read(&source.archive_key) {
        Ok(bytes) => Ok(LoadedImage { source, bytes }),
        Err(error) => Err(InferError::Read(format!("read {} from the archive: {error}", source.archive_key))),
    })
    .await?
}

/// Analyses again what a run analysed, from the stored images, with the same pipeline. Nothing is kept.
///
/// # Errors
/// When an image is gone or the networks fail.
pub async fn repeat(archive: &Archive, pipeline: &Pipeline, before: &RunOutcome) -> anyhow::Result<Analysis> {
    Ok(pipeline.analyse(&all_sources_of(before), &Errand::default(), |source| load(archive, source)).await?)
}

/// Every image that the run of an outcome looked at: those of the series that it passed over as well, since they decide
/// which one is measured.
pub(super) fn all_sources_of(outcome: &RunOutcome) -> Vec<SourceImage> {
    let mut sources = sources_of(outcome);
    if let RunOutcome::CtMeasured(analysis) = outcome {
        sources.extend(analysis.excluded_series.iter().flat_map(|series| series.sources.iter().cloned()));
    }
    sources
}

/// The images that a record's results refer to.
pub(super) fn sources_of(outcome: &RunOutcome) -> Vec<SourceImage> {
    match outcome {
        RunOutcome::Analysed(analysis) => {
            let analysed = analysis.images.iter().map(|image| image.source.clone());
            analysed.chain(analysis.excluded.iter().map(|image| image.source.clone())).collect()
        }
        RunOutcome::CtMeasured(analysis) => {
            let excluded = analysis.excluded.iter().map(|image| image.source.clone());
            analysis.series.images.iter().cloned().chain(excluded).collect()
        }
        RunOutcome::NotAnalysed(not_analysed) => not_analysed.sources.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::ImplementationIds,
        db::testing::{self, TestDatabase},
        report::samples::{self, SampleSource},
        types::BundleStatus,
    };

    /// With a limit of 200 ms: what does a step every 10 ms for four times as long, or waits for what others have, goes on.
    #[tokio::test]
    async fn a_run_is_stopped_when_nothing_gets_on_and_only_then() {
        let limit = Duration::from_millis(200);
        let pause = || tokio::time::sleep(Duration::from_millis(10));
        let progress = Progress::default();
        let slow = async {
            for _ in 0..80 {
                pause().await;
                progress.renew();
            }
        };
        tokio::select! {
            () = stall(&progress, limit) => panic!("it got on"),
            () = slow => {}
        }
        tokio::select! {
            () = stall(&progress, limit) => panic!("it waited for others"),
            () = progress.waiting(tokio::time::sleep(3 * limit)) => {}
        }
        let began = Instant::now();
        tokio::select! {
            () = stall(&progress, limit) => assert!(began.elapsed() + Duration::from_millis(1) >= limit),
            () = std::future::pending() => {}
        }
    }

    /// What a run leaves behind that gives way, or that a newer revision supersedes.
    #[tokio::test]
    async fn an_attempt_that_is_cut_off_is_over_when_its_threads_are() {
        let limit = Duration::from_millis(200);
        let progress = Progress::default();
        let leave_behind = async |work: Box<dyn FnOnce() + Send>| {
            let cut_off = tokio::time::timeout(Duration::from_millis(1), on_thread(&progress, work)).await;
            assert!(cut_off.is_err());
        };
        assert!(!hang_behind(&progress, limit).await, "there are none");
        let gets_on = progress.clone();
        let began = Instant::now();
        leave_behind(Box::new(move || {
            for _ in 0..60 {
                std::thread::sleep(Duration::from_millis(10));
                gets_on.renew();
            }
        }))
        .await;
        assert!(!hang_behind(&progress, limit).await);
        assert!(began.elapsed() >= 3 * limit, "it is waited for as long as it gets on");
        let (open, gate) = std::sync::mpsc::channel::<()>();
        leave_behind(Box::new(move || assert!(gate.recv().is_err()))).await;
        assert!(hang_behind(&progress, limit).await);
        drop(open);
    }

    /// A worker that is given no work, and runs that it has claimed.
    async fn worker_with_runs(db: &Db, folder: &std::path::Path) -> (RunBundle, Vec<ClaimedRun>) {
        jobs::migrate(db).await.unwrap();
        let ids = ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".to_owned() };
        let record = samples::analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"));
        let settings = WorkerSettings {
            models_dir: folder.to_owned(),
            installation: record.installation,
            configuration_sha256: record.configuration_sha256,
            render: samples::options(),
            machine_utc_offset: |_| UtcOffset::UTC,
            ensemble: EnsembleOptions::default(),
            decode_limits: DecodeLimits::default(),
            run_timeout: Duration::from_mins(1),
            node: "node".to_owned(),
        };
        let (worker, _) = handlers(db.clone(), Archive::open(folder, ids, 0).unwrap(), settings);
        let mut connection = db.acquire().await.unwrap();
        let mut runs = Vec::new();
        for study in ["1.2.3", "1.2.4"] {
            let new = testing::new_run(testing::workup(db, study).await);
            let run_id = run::insert(&mut connection, &new).await.unwrap().unwrap();
            match run::claim(&mut connection, run_id, "node").await.unwrap() {
                Claim::Claimed(claimed) => runs.push(claimed),
                other => panic!("{other:?}"),
            }
        }
        (worker, runs)
    }

    /// Postgres refuses the end of one run for a moment, and that of another for ever.
    #[tokio::test]
    async fn the_end_of_an_attempt_is_written_again_and_the_run_left_when_it_cannot_be() {
        let database = TestDatabase::start("closing").await;
        let db = &database.db;
        let folder = tempfile::tempdir().unwrap();
        let (worker, runs) = worker_with_runs(db, folder.path()).await;
        let [soon, never] = runs.as_slice() else { panic!("{runs:?}") };
        sqlx::raw_sql(
            "create table refused (subject_id text);
             create function refuse() returns trigger language plpgsql as $$ begin
                 if exists (select from refused where subject_id = new.subject_id) then raise 'refused'; end if;
                 return new;
             end $$;
             create trigger refuse before insert on event for each row execute function refuse();
             insert into refused select id::text from run",
        )
        .execute(db.pool())
        .await
        .unwrap();
        let allow_soon = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let allow = sqlx::query("delete from refused where subject_id = $1").bind(soon.id.to_string());
            allow.execute(db.pool()).await.unwrap();
        };
        let failed = Err(Failure::new("processing.failure", "it cannot"));
        let close = |run| worker.0.close(run, &failed, Instant::now());
        let (of_soon, of_never, ()) = tokio::join!(close(soon), close(never), allow_soon);
        of_soon.unwrap();
        assert!(format!("{:#}", of_never.unwrap_err()).contains("refused"));
        let state = sqlx::query_scalar("select state from run where id = $1").bind(soon.id);
        let state: String = state.fetch_one(db.pool()).await.unwrap();
        assert_eq!(state, "failed");
        let mut connection = db.acquire().await.unwrap();
        assert!(run::was_interrupted(&mut connection, never.id).await.unwrap(), "it is nobody's");
        drop(connection);
        database.stop().await;
    }
}
