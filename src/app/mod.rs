//! Where everything is put together: from a [`Config`] to a running node.
//!
//! [`App::build`] binds the listeners, so that the addresses are known and a port in use is told at once;
//! [`App::run`] works until its token is cancelled and then stops in order: no new associations, the current
//! messages, the jobs, the index, the pool. The node starts without Postgres; what needs it waits for it.

mod ask_peer;
mod child;
#[cfg(test)]
mod conformance_tests;
mod demo_pacs;
mod follow_runs;
pub mod infer_process;
mod installation;
mod sole_use;
pub mod texts;
pub mod tuning;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio::{net::TcpListener, runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use ask_peer::AskPeer;
pub use child::ChildCommand;
use child::ChildState;
pub use demo_pacs::DemoPacs;
pub use installation::{Installed, installation, installation_named};
use sole_use::SoleUse;

use crate::{
    admin::{self, AdminState, CheckOutcome, Readiness},
    archive::{Archive, DiskGuard, DiskLines, FillRate, ImplementationIds},
    assemble::{AskSource, CompleteWorkup},
    config::{ByteSize, Config, DatabaseSource, RetentionConfig, TlsConfig},
    db::{Db, DbError},
    deliver::{Caller, Deliver, DeliverSettings, ReportCommitment, Tokens},
    dimse::{Acceptor, AcceptorOptions, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, OpenAssociations},
    jobs::{self, JobHandler, JobKind, WorkerSettings},
    receive::{
        Indexer, IndexerSettings, Receiver, ReceiverParts, ReceiverSettings, RefusalWriter, SiteSnapshot, SiteWatch,
    },
    retention::{Limits, Policy, Retention},
    telemetry::Metrics,
    tls::{TlsMaterial, TlsSettings, TlsWatch, expiry_words},
    types::{AssociationPolicy, Uid},
};

/// A node that is ready to run.
pub struct App {
    config: Config,
    db: Db,
    archive: Archive,
    disk: Arc<DiskGuard>,
    metrics: Arc<Metrics>,
    acceptor: Acceptor<Receiver>,
    dicom_address: SocketAddr,
    tls_address: Option<SocketAddr>,
    tls_watch: TlsWatch,
    tls: watch::Receiver<Arc<TlsMaterial>>,
    http: TcpListener,
    http_address: SocketAddr,
    site_watch: SiteWatch,
    site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
    indexer: Indexer,
    refusal_writer: RefusalWriter,
    child: ChildCommand,
    sole_use: SoleUse,
}

/// The archive of a node.
pub fn open_archive(config: &Config) -> anyhow::Result<Archive> {
    let folder = config.node.data_dir.join("archive");
    let ids = ImplementationIds {
        class_uid: Uid::new(IMPLEMENTATION_CLASS_UID)?,
        version_name: IMPLEMENTATION_VERSION_NAME.to_owned(),
    };
    let reserve_bytes = config.archive.results_minimum_free_bytes.bytes();
    Archive::open(&folder, ids, reserve_bytes).with_context(|| format!("open the archive in {}", folder.display()))
}

/// A pool for the database of `config`.
pub fn open_database(config: &Config) -> anyhow::Result<Db> {
    Ok(Db::connect_lazy(database_url(config)?, config.database.max_connections)?)
}

/// A pool for the status page.
fn open_page_database(config: &Config) -> anyhow::Result<Db> {
    Ok(Db::connect_lazy_limited(database_url(config)?, PAGE_CONNECTIONS, admin::RESPONSE_TIMEOUT)?)
}

fn database_url(config: &Config) -> anyhow::Result<&str> {
    match &config.database.source {
        DatabaseSource::External { url, .. } => Ok(url.expose()),
        DatabaseSource::Managed => {
            anyhow::bail!("the managed Postgres is not started yet: this command needs database.url")
        }
    }
}

/// The indexer of a node that does not run, for `hilum reindex`.
pub async fn open_for_reindex(config: &Config, db: Db) -> anyhow::Result<Indexer> {
    let archive = open_archive(config)?;
    let installed = installation(config, &db).await?;
    let file = config.node.data_dir.join(SITE_SNAPSHOT);
    let (site_watch, site) = tokio::task::spawn_blocking({
        let db = db.clone();
        move || SiteWatch::new(db, &file)
    })
    .await?;
    site_watch.refresh().await.context("read the site configuration")?;
    let (indexer, _) = Indexer::new(indexer_settings(config, &installed), db, archive, site, Arc::new(Metrics::new()));
    Ok(indexer)
}

/// Destinations that are served at the same time: slow ones must not hold up the others.
const CONCURRENT_DESTINATIONS: usize = 16;

/// Storage Commitment reports that go out at the same time.
const CONCURRENT_REPORTS: usize = 8;
/// Senders that are asked at once how many instances they have.
const CONCURRENT_QUESTIONS: usize = 4;

/// Connections for the status page.
const PAGE_CONNECTIONS: u32 = 4;

const SITE_SNAPSHOT: &str = "site-snapshot.json";

fn indexer_settings(config: &Config, installed: &Installed) -> IndexerSettings {
    IndexerSettings {
        node: config.node.name.to_string(),
        own_device_uid: installed.installation.device_uid.clone(),
        batch_size: config.archive.index_batch_size,
    }
}

impl App {
    /// Opens the archive, reads the site snapshot and binds the listeners. Postgres may be down; a schema that is
    /// not this program's is an error.
    pub async fn build(config: Config, child: ChildCommand) -> anyhow::Result<Self> {
        // Rendering reads them in the inference process: what cannot be read is told here, once.
        texts::languages(config.node.texts_dir.as_deref())?;
        let archive = open_archive(&config)?;
        let sole_use = SoleUse::of_node(&config.node.data_dir)?;
        let db = open_database(&config)?;
        prepare_schema_if_reachable(&config, &db).await?;
        let unfinished = archive.remove_unfinished().context("remove half received objects")?;
        if unfinished > 0 {
            tracing::info!(unfinished, "removed half received objects of an earlier process; none was acknowledged");
        }
        let installed = installation(&config, &db).await?;
        let metrics = Arc::new(Metrics::new());
        let (tls_watch, tls) = tokio::task::spawn_blocking({
            let (settings, metrics) = (tls_settings(&config.tls), Arc::clone(&metrics));
            move || TlsWatch::new(settings, metrics)
        })
        .await?
        .context("section [tls]")?;
        let snapshot_file = config.node.data_dir.join(SITE_SNAPSHOT);
        let (site_watch, site) = tokio::task::spawn_blocking({
            let db = db.clone();
            move || SiteWatch::new(db, &snapshot_file)
        })
        .await?;
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(10), site_watch.refresh()).await {
            tracing::debug!(error = format!("{error:#}"), "no fresh site configuration at start");
        }
        let (indexer, index) = Indexer::new(
            indexer_settings(&config, &installed),
            db.clone(),
            archive.clone(),
            site.clone(),
            Arc::clone(&metrics),
        );
        let disk = Arc::new(DiskGuard::new(archive.clone(), disk_lines(&config)));
        if let Err(error) = disk.look() {
            tracing::warn!(%error, "the free space of the archive's disk is not known");
        }
        let (refusal_writer, refusals) =
            RefusalWriter::new(db.clone(), config.node.name.to_string(), Arc::clone(&metrics));
        let receiver = Receiver::new(
            ReceiverSettings {
                node: config.node.name.to_string(),
                maximum_object_bytes: config.dicom.max_object_bytes.bytes(),
                policy: node_policy(&config),
            },
            ReceiverParts {
                site: site.clone(),
                archive: archive.clone(),
                disk: Arc::clone(&disk),
                index,
                refusals,
                db: db.clone(),
                runtime: Handle::current(),
                metrics: Arc::clone(&metrics),
            },
        );
        let dicom = bind(config.dicom.listen, "dicom.listen").await?;
        let http = bind(config.http.listen, "http.listen").await?;
        let options = AcceptorOptions {
            max_associations: config.dicom.max_associations,
            max_connections_per_address: config.dicom.max_connections_per_address,
            max_pdu_length: config.dicom.max_pdu_length_bytes,
            association_request_timeout: config.dicom.association_request_timeout,
            idle_timeout: config.dicom.idle_timeout,
            message_timeout: config.dicom.message_timeout,
            shutdown_grace: config.node.shutdown_grace,
            ..AcceptorOptions::default()
        };
        let (dicom_address, http_address) = (dicom.local_addr()?, http.local_addr()?);
        let mut acceptor = Acceptor::new(dicom, options, Arc::new(receiver));
        let mut tls_address = None;
        let server_config = tls.borrow().server();
        if let (Some(listen), Some(first)) = (config.tls.listen, server_config) {
            let listener = bind(listen, "tls.listen").await?;
            tls_address = Some(listener.local_addr()?);
            let material = tls.clone();
            acceptor = acceptor
                .with_tls(listener, Arc::new(move || material.borrow().server().unwrap_or_else(|| Arc::clone(&first))));
            if !config.tls.require_client_certificate {
                tracing::warn!(
                    "tls.require_client_certificate = false: callers over TLS need no certificate, so an AE title is no \
                     more than a name"
                );
            }
        }
        Ok(Self {
            config,
            db,
            archive,
            disk,
            metrics,
            acceptor,
            dicom_address,
            tls_address,
            tls_watch,
            tls,
            http,
            http_address,
            site_watch,
            site,
            indexer,
            refusal_writer,
            child,
            sole_use,
        })
    }

    /// Where DICOM associations are accepted.
    pub const fn dicom_address(&self) -> SocketAddr {
        self.dicom_address
    }

    /// Where the status page is.
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Works until `shutdown`, then stops in order within the configured grace.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            db,
            archive,
            disk,
            metrics,
            acceptor,
            tls_watch,
            tls,
            http,
            site_watch,
            site,
            indexer,
            refusal_writer,
            child,
            sole_use,
            ..
        } = self;
        tracing::info!(
            dicom = %self.dicom_address,
            dicom_over_tls = self.tls_address.map(tracing::field::display),
            http = %self.http_address,
            data_dir = %config.node.data_dir.display(),
            version = env!("CARGO_PKG_VERSION"),
            "hilum is listening"
        );
        // What stops first, second and third.
        let (receiving, working, indexing) =
            (shutdown.child_token(), CancellationToken::new(), CancellationToken::new());
        let (receivers, workers) = (TaskTracker::new(), TaskTracker::new());

        let (open_associations, index_is_behind) = (acceptor.open_associations(), Arc::new(indexer.owes_scan()));
        let mut accept_task = receivers.spawn(acceptor.run(receiving.clone()));
        let mut index_task = tokio::spawn(indexer.run(indexing.clone()));
        workers.spawn(site_watch.run(working.clone()));
        if config.tls.certificate_file.is_some() || !config.tls.ca_files.is_empty() {
            workers.spawn(tls_watch.run(working.clone()));
        }
        workers.spawn(refusal_writer.run(working.clone()));
        let child_state = child::supervise(
            child,
            &config.inference,
            tuning::network_threads(&config).most(),
            config.node.shutdown_grace,
            Arc::clone(&metrics),
            &workers,
            working.clone(),
        );
        let jobs = Jobs {
            config: config.clone(),
            db: db.clone(),
            archive: archive.clone(),
            open_associations,
            index_is_behind,
            metrics: Arc::clone(&metrics),
            tls: tls.clone(),
        };
        workers.spawn(jobs.run(working.clone()));
        workers.spawn(follow_runs::follow(db.clone(), Arc::clone(&metrics), working.clone()));
        workers.spawn(watch_backlog(db.clone(), Arc::clone(&metrics), working.clone()));
        workers.spawn(watch_disk(Arc::clone(&disk), Arc::clone(&metrics), working.clone()));
        workers.spawn(run_retention(
            config.clone(),
            db.clone(),
            archive.clone(),
            Arc::clone(&metrics),
            working.clone(),
        ));
        let state = AdminState {
            // A pool of its own: pages must not take the connections of the index.
            db: open_page_database(&config)?,
            archive: archive.clone(),
            metrics: Arc::clone(&metrics),
            readiness: readiness(disk, site, tls, child_state, shutdown.clone()),
            node_name: config.node.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let http_task = tokio::spawn(admin::serve(http, state, working.clone()));

        // A node that cannot receive or index any more must end, so that its supervisor starts it again.
        let broken = tokio::select! {
            // A stop ends accepting too: asked in order, it is never taken for a fault.
            biased;
            () = shutdown.cancelled() => None,
            _ = &mut accept_task => Some("accepting associations"),
            _ = &mut index_task => Some("indexing received objects"),
        };
        if let Some(what) = broken {
            tracing::error!("{what} has ended unexpectedly: stopping");
            shutdown.cancel();
        }
        let grace = config.node.shutdown_grace;
        tracing::info!(grace_seconds = grace.as_secs(), "stopping: no new associations; current messages finish");
        receivers.close();
        if tokio::time::timeout(grace + Duration::from_secs(2), receivers.wait()).await.is_err() {
            tracing::warn!(
                "associations did not end in time; what was not acknowledged will be sent again by the peer"
            );
        }
        working.cancel();
        workers.close();
        if tokio::time::timeout(grace + Duration::from_secs(2), workers.wait()).await.is_err() {
            tracing::warn!("jobs did not end in time; they are taken up again at the next start");
        }
        indexing.cancel();
        if !index_task.is_finished() {
            let _ = tokio::time::timeout(Duration::from_secs(10), index_task).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), http_task).await;
        let _ = tokio::time::timeout(Duration::from_secs(5), db.close()).await;
        drop(sole_use);
        tracing::info!("stopped");
        anyhow::ensure!(
            broken.is_none(),
            "{} ended unexpectedly, see the log; what was acknowledged is in the archive and is indexed at the next start",
            broken.unwrap_or_default()
        );
        Ok(())
    }
}

/// The TLS settings of a node.
pub fn tls_settings(config: &TlsConfig) -> TlsSettings {
    TlsSettings {
        certificate_and_key: config.certificate_file.clone().zip(config.private_key_file.clone()),
        ca_files: config.ca_files.clone(),
        require_client_certificate: config.require_client_certificate,
    }
}

/// What holds for a peer that nothing is said of: half of the associations, so that it cannot keep the others out.
fn node_policy(config: &Config) -> AssociationPolicy {
    let half = u32::try_from(config.dicom.max_associations.div_ceil(2)).unwrap_or(u32::MAX);
    let max_associations = config.policy.max_associations.or(Some(half));
    AssociationPolicy { max_associations, ..config.policy.clone() }
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => {
                "another program, perhaps another Hilum, uses that port: stop it, or choose another one \
                 (`hilum dev` has --dicom-port and --http-port)"
            }
            ErrorKind::PermissionDenied => {
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE, see deploy/hilum.service"
            }
            ErrorKind::AddrNotAvailable => "this machine has no such address: give one that it has, or 0.0.0.0 for all",
            _ => "check the address",
        };
        anyhow::Error::new(error).context(format!("listen on {address} ({key}): {remedy}"))
    })
}

/// Migrates or checks the schema now if Postgres answers; otherwise [`run_jobs`] does it when it does.
async fn prepare_schema_if_reachable(config: &Config, db: &Db) -> anyhow::Result<()> {
    match prepare_schema(config, db).await {
        Ok(()) => Ok(()),
        Err(error) if is_unreachable(&error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "Postgres cannot be reached: receiving starts on the site snapshot, everything else waits"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn prepare_schema(config: &Config, db: &Db) -> anyhow::Result<()> {
    db.ping()
        .await
        .context("reach the Postgres of [database] (check that it runs, and user, host and database of `url`)")?;
    if config.database.migrate_on_start {
        db.migrate().await?;
        jobs::migrate(db).await?;
    }
    db.check_schema().await?;
    Ok(())
}

fn is_unreachable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<DbError>().is_some_and(DbError::is_unreachable)
}

/// What the job workers of this process work with.
struct Jobs {
    config: Config,
    db: Db,
    archive: Archive,
    open_associations: OpenAssociations,
    index_is_behind: Arc<dyn Fn() -> bool + Send + Sync>,
    metrics: Arc<Metrics>,
    tls: watch::Receiver<Arc<TlsMaterial>>,
}

impl Jobs {
    /// Runs them once Postgres is there.
    async fn run(self, shutdown: CancellationToken) {
        let Self { config, db, archive, open_associations, index_is_behind, metrics, tls } = self;
        let kinds = [JobKind::CompleteWorkup, JobKind::AskSource, JobKind::Deliver, JobKind::ReportCommitment];
        if !wait_for_schema(&config, &db, &shutdown).await {
            return;
        }
        let node = config.node.name.to_string();
        if let Err(error) = jobs::release_dead_workers(&db, &node, &kinds).await {
            tracing::warn!(%error, "cannot give back the jobs of dead workers; they come back by heartbeat");
        }
        let caller = Caller {
            connect_timeout: config.deliver.connect_timeout,
            response_timeout: config.deliver.response_timeout,
            tls,
        };
        let complete = CompleteWorkup { db: db.clone(), maximum_attempts: config.inference.maximum_attempts };
        let ask: Arc<dyn JobHandler> = Arc::new(AskSource::new(complete.clone(), Arc::new(AskPeer(caller.clone()))));
        let complete: Arc<dyn JobHandler> = Arc::new(complete);
        let delivering = DeliverSettings {
            maximum_age: config.deliver.maximum_age,
            initial_backoff: config.deliver.initial_backoff,
            maximum_backoff: config.deliver.maximum_backoff,
        };
        let report: Arc<dyn JobHandler> = Arc::new(ReportCommitment {
            db: db.clone(),
            archive: archive.clone(),
            settings: delivering,
            open_associations,
            caller: caller.clone(),
            metrics: Arc::clone(&metrics),
            index_is_behind,
        });
        let deliver: Arc<dyn JobHandler> = Arc::new(Deliver {
            db: db.clone(),
            archive,
            settings: delivering,
            caller,
            metrics,
            tokens: Tokens::default(),
        });
        let settings = |kind, concurrency| WorkerSettings {
            kind,
            concurrency,
            node: node.clone(),
            shutdown_grace: config.node.shutdown_grace,
        };
        tokio::join!(
            jobs::supervise(db.clone(), settings(JobKind::CompleteWorkup, 2), complete, shutdown.clone()),
            jobs::supervise(db.clone(), settings(JobKind::AskSource, CONCURRENT_QUESTIONS), ask, shutdown.clone()),
            jobs::supervise(db.clone(), settings(JobKind::Deliver, CONCURRENT_DESTINATIONS), deliver, shutdown.clone()),
            jobs::supervise(
                db.clone(),
                settings(JobKind::ReportCommitment, CONCURRENT_REPORTS),
                report,
                shutdown.clone()
            ),
            jobs::reconcile_regularly(db.clone(), config.assemble.reconcile_interval, shutdown.clone()),
        );
    }
}

/// Waits until Postgres answers with this program's schema; `false` when `shutdown` comes first.
pub(crate) async fn wait_for_schema(config: &Config, db: &Db, shutdown: &CancellationToken) -> bool {
    let mut told = None;
    loop {
        let problem = match prepare_schema(config, db).await {
            Ok(()) => return true,
            Err(error) => format!("{error:#}"),
        };
        if told.as_ref() != Some(&problem) {
            tracing::warn!(problem, "jobs wait for Postgres");
            told = Some(problem);
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Keeps the gauges near the truth.
async fn watch_backlog(db: Db, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    loop {
        if let Ok(mut connection) = db.acquire().await
            && let Ok(backlog) = crate::db::status::backlog(&mut connection).await
        {
            metrics.set_deliveries_waiting(u64::try_from(backlog.deliveries_open).unwrap_or_default());
            metrics.set_delivery_alarms(
                u64::try_from(backlog.deliveries_not_committed).unwrap_or_default(),
                u64::try_from(backlog.destinations_open).unwrap_or_default(),
            );
            metrics.set_commitments_waiting(u64::try_from(backlog.commitments_open).unwrap_or_default());
            metrics.set_networks_failing(u64::try_from(backlog.networks_failing).unwrap_or_default());
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
    }
}

/// Where receiving stops and goes on.
fn disk_lines(config: &Config) -> DiskLines {
    let stop_bytes = config.archive.minimum_free_bytes.bytes();
    DiskLines { stop_bytes, resume_bytes: stop_bytes.saturating_add(config.archive.resume_margin_bytes.bytes()) }
}

/// Looks at the disk every second, so that receiving stops and goes on also while nobody sends.
async fn watch_disk(disk: Arc<DiskGuard>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let started = Instant::now();
    let mut rate = FillRate::default();
    loop {
        let looking = Arc::clone(&disk);
        match tokio::task::spawn_blocking(move || looking.look()).await {
            Ok(Ok(state)) => {
                rate.observe(started.elapsed(), state.free_bytes);
                metrics.set_archive_free_bytes(state.free_bytes);
                metrics.set_archive_room(state.stopped, rate.seconds_to_full(disk.lines().stop_bytes));
            }
            Ok(Err(error)) => tracing::debug!(%error, "the free space of the archive's disk is not known"),
            Err(error) => tracing::error!(%error, "looking at the archive's disk panicked"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// What the configuration lets retention remove.
pub fn retention_policy(config: &RetentionConfig) -> Policy {
    let days = |days: u32| Duration::from_hours(24 * u64::from(days));
    let limits = |age: Option<u32>, maximum: Option<ByteSize>| Limits {
        age: age.map(days),
        maximum_bytes: maximum.map(ByteSize::bytes),
    };
    Policy {
        objects: limits(config.objects_days, config.objects_maximum_bytes),
        results: limits(config.results_days, config.results_maximum_bytes),
        minimum_age: days(config.minimum_age_days),
        history: config.history_days.map(days),
        orphan_results: config.orphan_results_days.map(days),
    }
}

async fn run_retention(config: Config, db: Db, archive: Archive, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    if wait_for_schema(&config, &db, &shutdown).await {
        let retention = Retention { db, archive, policy: retention_policy(&config.retention) };
        retention.remove_regularly(config.retention.interval, &metrics, shutdown).await;
    }
}

/// What `/readyz` asks beside Postgres and the disk.
fn readiness(
    disk: Arc<DiskGuard>,
    site: watch::Receiver<Option<Arc<SiteSnapshot>>>,
    tls: watch::Receiver<Arc<TlsMaterial>>,
    child: watch::Receiver<ChildState>,
    shutdown: CancellationToken,
) -> Readiness {
    Readiness::new(disk)
        .with("site_configuration", move || match site.borrow().as_deref() {
            Some(snapshot) if snapshot.site.local_aes.is_empty() => {
                CheckOutcome::failed("no local AE is configured; run `hilum apply config/site.toml`")
            }
            Some(snapshot) => CheckOutcome::passed(format!(
                "{} local AE titles, {} peers, {} routes",
                snapshot.site.local_aes.len(),
                snapshot.site.peers.len(),
                snapshot.site.routes.len()
            )),
            None => CheckOutcome::failed(
                "no site configuration was ever read; every association is rejected transiently until Postgres can be reached",
            ),
        })
        .with("dicom_listener", move || {
            if shutdown.is_cancelled() {
                CheckOutcome::failed("the node is stopping")
            } else {
                CheckOutcome::passed("associations are accepted")
            }
        })
        .with("tls_certificate", move || match tls.borrow().certificate() {
            None => CheckOutcome::passed("TLS is not used"),
            Some(certificate) => match expiry_words(certificate, OffsetDateTime::now_utc()) {
                // Associations without TLS still come: a warning does not make the node unready.
                Some(words) => CheckOutcome::passed(format!("warning: {words}")),
                None => CheckOutcome::passed(format!("valid until {}", certificate.not_after.date())),
            },
        })
        .with("inference_process", move || match &*child.borrow() {
            ChildState::Running => CheckOutcome::passed("running"),
            ChildState::Waiting { exit } => CheckOutcome::failed(format!(
                "not running ({exit}); it is started again by itself, receiving goes on"
            )),
        })
}
