//! `hilum serve`: a node in production.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{App, ChildCommand},
    config::{Config, DatabaseSource, Redacted},
    db::managed::{ManagedPostgres, ManagedPostgresOptions},
};

/// Runs a node until SIGINT or SIGTERM. `config_file` is handed on to the inference process.
pub(super) async fn run(config: Config, config_file: Option<PathBuf>) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let (config, postgres, environment) = with_database(config).await?;
    let outcome = run_node(config, child_command(config_file, environment)?, shutdown).await;
    if let Some(postgres) = postgres
        // A server that ran before us may belong to the node that turned us away.
        && (outcome.is_ok() || !postgres.adopted())
    {
        postgres.stop().await.context("stop the private Postgres")?;
    }
    outcome
}

async fn run_node(config: Config, child: ChildCommand, shutdown: CancellationToken) -> anyhow::Result<()> {
    let app = App::build(config, child).await?;
    let stop = shutdown.clone();
    tokio::spawn(async move {
        signalled().await;
        notify(&[sd_notify::NotifyState::Stopping]);
        stop.cancel();
    });
    notify(&[sd_notify::NotifyState::Ready]);
    app.run(shutdown).await
}

/// Starts the managed Postgres if the configuration asks for it. Returns the configuration with its URL, and
/// what the inference process needs in its environment to find it.
pub(super) async fn with_database(
    mut config: Config,
) -> anyhow::Result<(Config, Option<ManagedPostgres>, Vec<(OsString, OsString)>)> {
    if config.database.source != DatabaseSource::Managed {
        return Ok((config, None, Vec::new()));
    }
    let data_dir = &config.node.data_dir;
    fs_err::create_dir_all(data_dir)?;
    let data_dir = fs_err::canonicalize(data_dir)?;
    tracing::info!(data_dir = %data_dir.display(), "starting the private Postgres");
    let postgres = ManagedPostgres::start(&ManagedPostgresOptions::durable(&data_dir)).await?;
    if postgres.adopted() {
        tracing::info!(
            process_id = postgres.process_id(),
            "took over the Postgres that an earlier process left running"
        );
    }
    let url = postgres.connection_url();
    config.node.data_dir = data_dir;
    config.database.source = DatabaseSource::External { url: Redacted::new(url.clone()), url_file: None };
    let environment =
        vec![("HILUM__DATABASE__URL".into(), url.into()), ("HILUM__DATABASE__MANAGED".into(), "false".into())];
    Ok((config, Some(postgres), environment))
}

/// The inference process: this binary again.
pub(super) fn child_command(
    config_file: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
) -> anyhow::Result<ChildCommand> {
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(file) = config_file {
        arguments.push("--config".into());
        arguments.push(fs_err::canonicalize(file)?.into());
    }
    arguments.push("infer-child".into());
    let program = std::env::current_exe().context("find our own binary")?;
    Ok(ChildCommand { program, arguments, environment })
}

/// Completes at the first SIGINT or SIGTERM.
pub(super) async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => {
            // Without handlers the default action ends the process; nothing to wait for.
            std::future::pending::<()>().await;
        }
    }
}

/// Tells systemd, if it is there.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd is not told");
    }
}
