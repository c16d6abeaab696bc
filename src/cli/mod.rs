//! The command line: one file for each sub-command.
//!
//! Start at [`parse`] and [`run`]; [`report`] says what went wrong, once, and gives the exit code: 0 done, 1 failed,
//! 2 wrong usage, 64 bad configuration.
//!
//! Architecture invariant: with `app` the only room that may use every other, and the only one that talks to a
//! terminal. Client commands never print patient data: studies are named by UID, files by the path that was given.

#![allow(clippy::print_stdout, reason = "the command line talks to people on standard output")]

mod address;
mod apply;
mod bench;
mod calibrate;
mod cases;
mod check_config;
mod commit;
mod commitments;
mod dataset;
mod deliveries;
mod destination;
pub mod dev;
mod doctor;
pub mod echo;
mod evaluate;
mod explain;
mod failure;
mod gate;
mod hash_passcode;
mod infer;
mod local_ae;
mod migrate;
mod model;
mod on_data;
mod output;
mod peer;
#[cfg(test)]
mod postgres_tests;
mod probe;
mod query;
mod refusals;
mod reindex;
mod rerun;
mod retention;
mod route;
mod runs;
pub mod send;
mod serve;
mod site;
mod store;
mod studies;
mod study;
#[cfg(test)]
mod tests;
mod threshold;
mod timeline;
mod tls;
mod train;
mod trial;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigErrors, DatabaseSource, LogFormat, ProcessEnvironment, Redacted},
    telemetry,
};

pub use address::Address;
use failure::{Hinted, Usage};

/// The file that is read when none is named and it exists.
const DEFAULT_CONFIG_FILE: &str = "config/hilum.toml";

/// Exit code for bad usage, as clap gives it too.
const EXIT_USAGE: u8 = 2;
/// Exit code for a bad configuration (EX_USAGE of sysexits.h, which supervisors can be told not to restart on).
const EXIT_CONFIGURATION: u8 = 64;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "hilum", version, about, infer_long_args = false, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 64 bad configuration.")]
pub struct CommandLine {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that say which node a command is about.
#[derive(Debug, Clone, Default, Args)]
struct Global {
    /// The node's configuration file [default: config/hilum.toml if it exists, else built-in defaults]
    #[arg(long, global = true, value_name = "FILE", env = "HILUM_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Postgres to use instead of the configured one; others on this machine can read it in the process list, so
    /// put a URL with a password into the configuration
    #[arg(long, global = true, value_name = "URL", value_parser = database_url)]
    database_url: Option<String>,
    /// The node that `hilum dev --data-dir DIR` runs, instead of a configured one
    #[arg(long, global = true, value_name = "DIR", conflicts_with_all = ["config", "database_url"])]
    dev: Option<PathBuf>,
}

impl Global {
    fn config_file(&self) -> Option<PathBuf> {
        let default = || Path::new(DEFAULT_CONFIG_FILE).exists().then(|| PathBuf::from(DEFAULT_CONFIG_FILE));
        self.config.clone().or_else(default)
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        if let Some(data_dir) = &self.dev {
            return Ok(Config::defaults_for_dev(data_dir));
        }
        let mut config = Config::load(self.config_file().as_deref(), &ProcessEnvironment)?;
        if let Some(url) = &self.database_url {
            config.database.source = DatabaseSource::External { url: Redacted::new(url.clone()), url_file: None };
        }
        Ok(config)
    }
}

fn database_url(text: &str) -> Result<String, String> {
    if ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
        Ok(text.to_owned())
    } else {
        Err("expected a URL such as postgres://hilum@db.example.org/hilum".to_owned())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the node: receives, analyses, delivers
    Serve,
    /// Runs a complete node for trying out, with its own Postgres and a built-in destination
    Dev(dev::Options),
    /// Computes; started by `serve` and `dev` as a child process
    #[command(hide = true)]
    InferChild,
    /// Checks the configuration file and reports every problem
    CheckConfig(check_config::Options),
    /// Creates or updates the tables in Postgres
    Migrate,
    /// Makes AE titles, peers, destinations and routes what a site file says
    Apply(apply::Options),
    /// AE titles that this node answers to
    #[command(subcommand)]
    LocalAe(local_ae::Action),
    /// Other DICOM nodes
    #[command(subcommand)]
    Peer(peer::Action),
    /// Where results go
    #[command(subcommand)]
    Destination(destination::Action),
    /// Prints the salted hash of a passcode from standard input, for `policy.user_identity`
    HashPasscode,
    /// Which studies get which analysis
    #[command(subcommand)]
    Route(route::Action),
    /// Lists studies, newest first
    Studies(studies::Options),
    /// Does something to one study
    #[command(subcommand)]
    Study(study::Action),
    /// Lists runs, newest first
    Runs(runs::Options),
    /// Shows one run
    #[command(subcommand)]
    Run(runs::RunAction),
    /// Repeats the analysis of a run from the stored images and compares
    Rerun(rerun::Options),
    /// Writes a picture of where a network looked, by another method, of another class, member or slice
    Explain(explain::Options),
    /// Lists results and their deliveries, newest first
    Deliveries(deliveries::Options),
    /// Finds what is wrong with the node, its peers and what it refused, with remedies
    Doctor(doctor::Options),
    /// Lists refused associations, contexts and objects with their remedies, newest first
    Refusals(refusals::Options),
    /// Tells the story of a study, oldest first
    Timeline(timeline::Options),
    /// Verifies a DICOM peer with C-ECHO
    Echo(echo::Options),
    /// Sends DICOM files with C-STORE
    Send(send::Options),
    /// Asks a peer which studies, series or instances it has, with C-FIND
    Query(query::Options),
    /// Asks a peer whether it keeps objects, with Storage Commitment
    Commit(commit::Options),
    /// Lists what peers have asked us to keep, newest first
    Commitments(commitments::Options),
    /// Rebuilds the index in Postgres from the files of the archive
    Reindex,
    /// Removes what section [retention] of the configuration lets go, as the node does by itself
    Retention(retention::Options),
    /// Measures how fast the networks of a bundle are on this machine
    Bench(bench::Options),
    /// Bundles: networks with their weights and manifest
    #[command(subcommand)]
    Model(model::Action),
    /// Gates: what a bundle refuses to look at, and why
    #[command(subcommand)]
    Gate(gate::Action),
    /// Trains a lung segmenter or classifiers and writes a bundle
    Train(train::Options),
    /// The reference library of similar cases
    #[command(subcommand)]
    Cases(cases::Action),
    /// Lists of labelled images, for training and evaluation
    #[command(subcommand)]
    Dataset(dataset::Action),
    /// Says how good a bundle is on a data set, with intervals, and what it looks at
    Evaluate(evaluate::Options),
    /// Fits the calibration of a bundle's outputs on a data set
    Calibrate(calibrate::Options),
    /// Chooses a bundle's threshold for a sensitivity or specificity on a data set
    Threshold(threshold::Options),
}

/// Reads the command line; on wrong usage, `--help` and `--version` it says so and ends the process.
#[must_use]
pub fn parse() -> CommandLine {
    CommandLine::parse()
}

/// Does what the command line says.
pub fn run(command_line: CommandLine) -> anyhow::Result<()> {
    let CommandLine { global, command } = command_line;
    match command {
        Command::Serve | Command::InferChild => {}
        Command::Dev(ref options) => telemetry::init_logging(LogFormat::Human, &options.log_level)?,
        // Client commands do one thing, say what came of it, and end.
        _ => telemetry::init_logging(LogFormat::Human, "warn")?,
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run_command(&global, command))
}

async fn run_command(global: &Global, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve => serve::run(load_for_service(global)?, global.config_file()).await,
        Command::InferChild => Box::pin(infer::run(load_for_service(global)?)).await,
        Command::Dev(options) => dev::run(options).await,
        Command::CheckConfig(options) => check_config::run(global, &options),
        Command::Migrate => migrate::run(global).await,
        Command::Apply(options) => apply::run(global, options).await,
        Command::LocalAe(action) => local_ae::run(global, action).await,
        Command::Peer(action) => peer::run(global, action).await,
        Command::Destination(action) => destination::run(global, action).await,
        Command::HashPasscode => hash_passcode::run(),
        Command::Route(action) => route::run(global, action).await,
        Command::Studies(options) => studies::run(global, &options).await,
        Command::Study(action) => study::run(global, action).await,
        Command::Runs(options) => runs::run(global, &options).await,
        Command::Run(runs::RunAction::Show { run_id }) => runs::show(global, run_id).await,
        Command::Run(runs::RunAction::Restart { run_id }) => runs::restart(global, run_id).await,
        Command::Rerun(options) => rerun::run(global, options).await,
        Command::Explain(options) => Box::pin(explain::run(global, options)).await,
        Command::Deliveries(options) => deliveries::run(global, &options).await,
        Command::Doctor(options) => doctor::run(global, options).await,
        Command::Refusals(options) => refusals::run(global, &options).await,
        Command::Timeline(options) => timeline::run(global, &options).await,
        Command::Echo(options) => echo::run(&options).await,
        Command::Send(options) => send::run(options).await,
        Command::Query(options) => query::run(global, &options).await,
        Command::Commit(options) => commit::run(global, &options).await,
        Command::Commitments(options) => commitments::run(global, &options).await,
        Command::Reindex => reindex::run(global).await,
        Command::Retention(options) => retention::run(global, &options).await,
        Command::Bench(options) => bench::run(global, options).await,
        Command::Model(action) => model::run(global, action).await,
        Command::Gate(action) => gate::run(global, action).await,
        Command::Train(options) => {
            tokio::task::spawn_blocking(move || train::run(&options)).await.context("run the training")?
        }
        Command::Cases(action) => cases::run(global, action).await,
        Command::Dataset(action) => dataset::run(global, action).await,
        Command::Evaluate(options) => Box::pin(evaluate::run(global, options)).await,
        Command::Calibrate(options) => Box::pin(calibrate::run(global, options)).await,
        Command::Threshold(options) => Box::pin(threshold::run(global, options)).await,
    }
}

/// Who runs the command, as the operating system knows it.
fn user() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let plain = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != '`');
    name.filter(plain).unwrap_or_else(|| format!("number {}", rustix::process::getuid().as_raw()))
}

fn load_for_service(global: &Global) -> anyhow::Result<Config> {
    let config = global.load()?;
    telemetry::init_logging(config.log.format, &config.log.level)?;
    Ok(config)
}

/// Says once on standard error what went wrong and what to do, and gives the exit code.
#[must_use]
pub fn report(error: &anyhow::Error) -> ExitCode {
    let hint = error.downcast_ref::<Hinted>().map(|hinted| hinted.hint.as_str());
    output::print_error(&format!("{error:#}"), hint);
    ExitCode::from(exit_code(error))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(<dyn Error>::is::<ConfigErrors>) {
        EXIT_CONFIGURATION
    } else if error.chain().any(<dyn Error>::is::<Usage>) {
        EXIT_USAGE
    } else {
        1
    }
}
