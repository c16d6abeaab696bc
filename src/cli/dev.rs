//! `hilum dev`: a complete node for trying out, on its own Postgres, with a built-in destination.

use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Address,
    output::print,
    send::{self, SendOptions},
    serve::{child_command, signalled, with_database},
};
use crate::{
    app::{App, DemoPacs, installation},
    archive::{Archive, ImplementationIds},
    config::Config,
    db::{self, Db, status},
    dimse::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME},
    jobs, nn, report,
    types::{
        AeTitle, BundleIdentity, BundleStatus, Destination, LateImages, LocalAe, Peer, Pipeline, Route, SiteConfig,
        UNTRAINED_NOTICE, Uid,
    },
};

const LOCAL_AE_TITLE: &str = "HILUM";
const DEMO_SENDER: &str = "DEMO_SCANNER";
const DEMO_PACS: &str = "DEMOPACS";

/// How long the demo waits for its results.
const PATIENCE: Duration = Duration::from_mins(5);

/// What `hilum dev` is told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Folder for everything that the node keeps: Postgres, archive, models, the built-in destination
    #[arg(long, value_name = "DIR", default_value = "data/dev")]
    pub data_dir: PathBuf,
    /// A DICOM file (CR or DX) that is sent to the node once it is up, with fresh UIDs
    #[arg(long, value_name = "FILE")]
    pub demo_image: Option<PathBuf>,
    /// Folder of a bundle, which is copied into the node's own and analyses studies [default: random test weights]
    #[arg(long, value_name = "FOLDER")]
    pub bundle: Option<PathBuf>,
    /// Stop when the results of the demo image have arrived; fails when they do not
    #[arg(long, requires = "demo_image")]
    pub once: bool,
    /// Port of the DICOM listener on loopback; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 11112)]
    pub dicom_port: u16,
    /// Port of the status page on loopback; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8088)]
    pub http_port: u16,
    /// Port of the built-in destination DEMOPACS on loopback; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 11113)]
    pub pacs_port: u16,
    /// Log lines to show: off, error, warn, info, debug, trace, or directives such as info,hilum::dimse=debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: String,
}

/// Runs the node until Ctrl-C, or with `once` until the results are there.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        signalled().await;
        stop.cancel();
        // Whoever asks again does not want to wait; `make` and a terminal may both pass on the first time. What is
        // left running is taken over by the next start.
        tokio::time::sleep(Duration::from_secs(1)).await;
        signalled().await;
        std::process::exit(130);
    });

    let mut config = Config::defaults_for_dev(&options.data_dir);
    config.dicom.listen.set_port(options.dicom_port);
    config.http.listen.set_port(options.http_port);
    say("private Postgres", &format!("starting below {}", options.data_dir.display()));
    let (mut config, postgres, mut environment) = with_database(config).await?;
    config.inference.models_dir = config.node.data_dir.join("models");
    for (key, value) in [
        ("HILUM__NODE__DATA_DIR", config.node.data_dir.as_os_str()),
        ("HILUM__INFERENCE__MODELS_DIR", config.inference.models_dir.as_os_str()),
        ("HILUM__LOG__LEVEL", options.log_level.as_ref()),
        // An empty file: neither HILUM_CONFIG nor a config/hilum.toml of the working folder is about this node.
        ("HILUM_CONFIG", "/dev/null".as_ref()),
    ] {
        environment.push((key.into(), value.to_owned()));
    }
    let outcome = run_node(&options, &config, environment, &shutdown).await;
    if let Some(postgres) = postgres
        // A server that ran before us may belong to the node that turned us away.
        && (outcome.is_ok() || !postgres.adopted())
    {
        postgres.stop().await.context("stop the private Postgres")?;
    }
    outcome
}

async fn run_node(
    options: &Options,
    config: &Config,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (models_dir, given) = (config.inference.models_dir.clone(), options.bundle.clone());
    let identity = tokio::task::spawn_blocking(move || match given {
        Some(given) => copy_bundle(&given, &models_dir),
        None => untrained_bundle(&models_dir),
    })
    .await??;
    let status = match identity.status {
        BundleStatus::Untrained => UNTRAINED_NOTICE,
        BundleStatus::Unvalidated => "unvalidated: nothing is decided by it",
        BundleStatus::Validated => "validated",
    };
    say("model bundle", &format!("{} {}: {status}", identity.name, identity.version));

    let pacs_listener =
        TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], options.pacs_port))).await.with_context(|| {
            format!(
                "listen on port {} for {DEMO_PACS}: is another `hilum dev` running? Stop it, or give another --pacs-port",
                options.pacs_port
            )
        })?;
    let pacs_address = pacs_listener.local_addr()?;
    let pacs_folder = config.node.data_dir.join("demopacs");
    let pacs_archive = Archive::open(
        &pacs_folder,
        ImplementationIds {
            class_uid: Uid::new(IMPLEMENTATION_CLASS_UID)?,
            version_name: IMPLEMENTATION_VERSION_NAME.to_owned(),
        },
        0,
    )?;
    let pacs = DemoPacs::new(pacs_listener, pacs_archive);

    let db = Db::connect_lazy(&database_url(config)?, 4)?;
    db.migrate().await.context("apply the migrations")?;
    jobs::migrate(&db).await.context("apply the job queue's migrations")?;
    configure_demo_site(&db, pacs_address, identity.name).await?;

    let app = App::build(config.clone(), child_command(None, environment)?).await?;
    let (dicom_address, http_address) = (app.dicom_address(), app.http_address());
    say("DICOM", &format!("AE title {LOCAL_AE_TITLE} on {dicom_address}"));
    say(
        "destination",
        &format!("AE title {DEMO_PACS} on {pacs_address}, keeps what it gets in {}", pacs_folder.display()),
    );
    say("status page", &format!("http://{http_address}/"));

    let stop_pacs = CancellationToken::new();
    let pacs_task = tokio::spawn(pacs.run(stop_pacs.clone()));
    let app_task = tokio::spawn(app.run(shutdown.clone()));

    let demo = async {
        match &options.demo_image {
            None => Ok(()),
            Some(image) => {
                let demo = Demo { db: &db, config, dicom_address, http_address, pacs_folder: &pacs_folder };
                demo.run(image).await
            }
        }
    };
    let outcome = tokio::select! {
        outcome = demo => outcome,
        () = shutdown.cancelled() => Ok(()),
    };
    let failed = outcome.is_err();
    if !options.once && !failed && !shutdown.is_cancelled() {
        tell("\nHilum is running. Send it images with storescu, a scanner, or `hilum send`; stop it with Ctrl-C.");
        shutdown.cancelled().await;
    }
    if options.once && shutdown.is_cancelled() && outcome.is_ok() {
        // Interrupted before the results came.
        shutdown.cancel();
        app_task.await??;
        bail!("interrupted before the results had arrived");
    }
    tell("\nstopping");
    shutdown.cancel();
    app_task.await??;
    stop_pacs.cancel();
    pacs_task.await?;
    db.close().await;
    outcome
}

/// Random weights in the right shapes. A bundle that is whole stays, also one that an earlier version made.
fn untrained_bundle(models_dir: &Path) -> anyhow::Result<BundleIdentity> {
    let folder = models_dir.join(nn::UNTRAINED_BUNDLE_NAME);
    if let Ok(bundle) = nn::Bundle::open(&folder) {
        return Ok(bundle.identity());
    }
    nn::init_untrained_bundle(&folder, nn::UntrainedOptions::default())
        .context("make the bundle of untrained test weights")
}

/// The bundle in `given` among the node's own. One of its name stays as it is, since somebody may have calibrated it.
fn copy_bundle(given: &Path, models_dir: &Path) -> anyhow::Result<BundleIdentity> {
    let about = || format!("take the bundle in `{}`", given.display());
    let bundle = nn::Bundle::open(given).with_context(about)?;
    anyhow::ensure!(
        matches!(bundle.manifest().input, nn::Input::Image2d { .. }) && !bundle.manifest().members.is_empty(),
        "the bundle in `{}` does not classify radiographs, which is what the demonstration sends: give one that does",
        given.display()
    );
    let identity = bundle.identity();
    let folder = models_dir.join(&identity.name);
    match nn::Bundle::open(&folder) {
        Ok(kept) if kept.identity().digest == identity.digest => Ok(identity),
        Ok(kept) => {
            say(
                "model bundle",
                &format!("{} differs from {} and stays; remove it to take that one", folder.display(), given.display()),
            );
            Ok(kept.identity())
        }
        // Not there, or damaged; what is something else is refused and stays.
        Err(_) => nn::copy_bundle(given, &folder).with_context(about),
    }
}

/// Tells a step; that nobody reads it any more is no reason to stop.
fn say(what: &str, words: &str) {
    tell(&format!("{what:>17}  {words}"));
}

fn tell(words: &str) {
    if let Err(error) = print(words) {
        tracing::debug!(%error, "cannot write to standard output");
    }
}

fn database_url(config: &Config) -> anyhow::Result<String> {
    match &config.database.source {
        crate::config::DatabaseSource::External { url, .. } => Ok(url.expose().clone()),
        crate::config::DatabaseSource::Managed => bail!("the private Postgres is not started"),
    }
}

/// What the demo needs, where a person has not configured it otherwise.
async fn configure_demo_site(db: &Db, pacs_address: SocketAddr, bundle: String) -> anyhow::Result<()> {
    let local = AeTitle::new(LOCAL_AE_TITLE)?;
    let (sender_title, pacs_title) = (AeTitle::new(DEMO_SENDER)?, AeTitle::new(DEMO_PACS)?);
    db::site::change(db, false, move |site: &mut SiteConfig| {
        if !site.local_aes.iter().any(|ae| ae.ae_title == local) {
            let description = "made by `hilum dev`".to_owned();
            site.local_aes.push(LocalAe { description, ..LocalAe::new(local.clone()) });
        }
        let peer = |name: &str, ae_title: &AeTitle, port, may_store| Peer {
            port,
            may_store,
            contact: "made by `hilum dev`".to_owned(),
            ..Peer::new(name, ae_title.clone(), "127.0.0.1")
        };
        // The destination's port may be another at every start.
        site.peers.retain(|peer| peer.name != "demopacs");
        site.peers.push(peer("demopacs", &pacs_title, Some(pacs_address.port()), false));
        if !site.peers.iter().any(|peer| peer.name == "demo-scanner") {
            site.peers.push(peer("demo-scanner", &sender_title, None, true));
        }
        if !site.destinations.iter().any(|destination| destination.name == "demopacs") {
            site.destinations.push(Destination {
                send_not_analysed: true,
                ..Destination::dicom("demopacs", "demopacs", local.clone())
            });
        }
        if site.routes.is_empty() {
            site.routes.push(Route {
                name: "chest".to_owned(),
                order: 10,
                enabled: true,
                called_ae_title: local,
                calling_ae_titles: Vec::new(),
                modalities: vec!["CR".to_owned(), "DX".to_owned()],
                pipeline: Pipeline::ChestRadiograph,
                bundle: bundle.clone(),
                priority: crate::types::RunPriority::Routine,
                quiet_seconds: 2,
                max_wait_seconds: 60,
                released_quiet_seconds: None,
                lost_quiet_seconds: None,
                required: None,
                late_images: LateImages::NewRevision,
                late_images_within_seconds: None,
                destinations: vec!["demopacs".to_owned()],
                rules: Vec::new(),
                trial: None,
            });
        }
        if let Some(route) = site.routes.iter_mut().find(|route| route.name == "chest") {
            if route.bundle == nn::UNTRAINED_BUNDLE_NAME {
                // Of an earlier start, when there were only test weights.
                route.bundle = bundle;
            } else if route.bundle != bundle {
                say("route", &format!("`chest` goes on with the bundle `{}`, as it was configured", route.bundle));
            }
        }
        Ok(())
    })
    .await?;
    Ok(())
}

struct Demo<'a> {
    db: &'a Db,
    config: &'a Config,
    dicom_address: SocketAddr,
    http_address: SocketAddr,
    pacs_folder: &'a Path,
}

impl Demo<'_> {
    /// Sends the radiograph, follows it, and shows what came of it.
    async fn run(&self, image: &Path) -> anyhow::Result<()> {
        if !image.exists() {
            bail!("{} does not exist; `make setup` fetches the demo radiograph", image.display());
        }
        tell("");
        say("sending", &format!("{} as {DEMO_SENDER}, with fresh UIDs", image.display()));
        let started = Instant::now();
        let to = Address { host: self.dicom_address.ip().to_string(), port: self.dicom_address.port() };
        let options = SendOptions {
            fresh_uids: true,
            ..SendOptions::new(to, AeTitle::new(LOCAL_AE_TITLE)?, AeTitle::new(DEMO_SENDER)?)
        };
        let summary = send::send_files(&[image.to_owned()], options, |_| {}).await?;
        if let Some(failed) = summary.failed.first() {
            bail!("{} is not accepted: {}", failed.path.display(), failed.reason);
        }
        let sent = summary.sent.first().context("nothing was sent")?;
        let study_instance_uid = sent.study_instance_uid.as_ref().context("the image has no Study Instance UID")?;
        let study_instance_uid = study_instance_uid.as_str();
        say(
            "acknowledged",
            &format!("after {:.1} s: the image is durable in the archive", started.elapsed().as_secs_f64()),
        );
        let workup = self.follow(study_instance_uid, started).await?;
        self.show(&workup, started).await
    }

    /// Follows the study until it is answered, with a progress display.
    async fn follow(&self, study_instance_uid: &str, started: Instant) -> anyhow::Result<status::WorkupRow> {
        let interactive = std::io::stderr().is_terminal();
        let spinner = if interactive { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        spinner.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        spinner.enable_steady_tick(Duration::from_millis(120));
        let mut told = String::new();
        let mut connection = self.db.acquire().await?;
        loop {
            let workup = status::workups(&mut connection, Some(study_instance_uid), 1).await?.pop();
            let words = match &workup {
                None => "waiting for the index".to_owned(),
                Some(workup) => format!("{}: {}", workup.state, self.words(&mut connection, workup).await?),
            };
            if words != told {
                spinner.set_message(words.clone());
                if !interactive {
                    say(&format!("{:.1} s", started.elapsed().as_secs_f64()), &words);
                }
                told = words;
            }
            if let Some(workup) = workup {
                match workup.state.as_str() {
                    "answered" => {
                        spinner.finish_and_clear();
                        return Ok(workup);
                    }
                    "parked" | "not_routed" => bail!("the study is {}: {}", workup.state, workup.state_words),
                    _ => {}
                }
            }
            if started.elapsed() > PATIENCE {
                bail!("no results after {} s; the last state was: {told}", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    async fn words(&self, connection: &mut db::Connection, workup: &status::WorkupRow) -> anyhow::Result<String> {
        let runs = status::runs(connection, Some(workup.id), 1).await?;
        Ok(match runs.first() {
            Some(run) if workup.state == "analysing" => format!("run {}, {}", run.state, run.words),
            _ => workup.state_words.clone(),
        })
    }

    /// Prints the report and says where everything is.
    async fn show(&self, workup: &status::WorkupRow, started: Instant) -> anyhow::Result<()> {
        let mut connection = self.db.acquire().await?;
        let runs = status::runs(&mut connection, Some(workup.id), 1).await?;
        let run = runs.first().context("the study is answered but has no run")?;
        let deliveries = status::deliveries(&mut connection, Some(workup.id), 100).await?;
        let delivered = |kind: &str| {
            deliveries
                .iter()
                .filter(|row| row.kind == kind && row.state.as_deref() == Some("delivered"))
                .cloned()
                .collect::<Vec<_>>()
        };
        let (reports, sentences, heat_maps) = (delivered("sr"), delivered("sr_text"), delivered("sc"));
        say("answered", &format!("after {:.1} s", started.elapsed().as_secs_f64()));
        let installed = installation(self.config, self.db).await?;
        let finished = db::run::finished(&mut connection, run.id, &installed.installation).await?;
        let record = finished.context("the run has no findings")?.record;
        tell(&format!("\n{}\n", report::describe(&record)));
        let archive = self.config.node.data_dir.join("archive");
        for heat_map in &heat_maps {
            if let Some(preview) = &heat_map.preview_key {
                say("heat map (PNG)", &archive.join(preview).display().to_string());
            }
            say("heat map (DICOM)", &archive.join(&heat_map.archive_key).display().to_string());
        }
        for report in &reports {
            say("report (DICOM SR)", &archive.join(&report.archive_key).display().to_string());
        }
        for sentences in &sentences {
            say("in sentences (SR)", &archive.join(&sentences.archive_key).display().to_string());
        }
        let n_delivered = reports.len() + sentences.len() + heat_maps.len();
        say("in the PACS", &format!("{} ({n_delivered} results delivered)", self.pacs_folder.display()));
        say("status page", &format!("http://{}/studies/{}", self.http_address, workup.study_instance_uid));
        if reports.is_empty() || heat_maps.is_empty() {
            let words = deliveries
                .iter()
                .map(|row| {
                    format!(
                        "{} {}: {}",
                        row.kind,
                        row.state.as_deref().unwrap_or("not sent"),
                        row.last_words.as_deref().unwrap_or_default()
                    )
                })
                .collect::<Vec<_>>()
                .join("; ");
            bail!("report and heat map have not both arrived in the PACS ({words})");
        }
        Ok(())
    }
}
