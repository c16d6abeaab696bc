//! `hilum cases`: the reference library of similar cases.

mod files;
mod import;
mod list;
mod map;
mod measure;

use clap::{Args, Subcommand};

use super::Global;
use crate::{db::case::CaseFilter, types::Sha256Digest};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds images to the library: runs the networks of a bundle on them and keeps the embeddings
    Import(import::Options),
    /// Counts the cases by bundle, cohort and label
    List(list::Options),
    /// Removes cases; a running node stops finding them at once
    Remove(RemoveOptions),
    /// Draws the library of one bundle as an SVG picture: its first two principal components
    Map(map::Options),
    /// Measures a search in a library of random vectors
    #[command(hide = true)]
    Measure(measure::Options),
}

/// Which cases a command is about.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Selection {
    /// Only this cohort
    #[arg(long)]
    cohort: Option<String>,
    /// Only this label
    #[arg(long)]
    label: Option<String>,
    /// Only of the bundle with this digest, as `hilum cases list` shows it
    #[arg(long, value_name = "SHA256")]
    bundle_digest: Option<Sha256Digest>,
}

impl Selection {
    fn filter(self) -> CaseFilter {
        CaseFilter { case_ids: None, cohort: self.cohort, label: self.label, bundle_digest: self.bundle_digest }
    }
}

#[derive(Debug, Args)]
pub(super) struct RemoveOptions {
    /// Numbers of single cases, such as LIB-0123456789ABCDEF
    #[arg(value_name = "CASE")]
    case_ids: Vec<String>,
    #[command(flatten)]
    selection: Selection,
    /// Remove every case of every bundle
    #[arg(long, conflicts_with_all = ["case_ids", "cohort", "label", "bundle_digest"])]
    all: bool,
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Import(options) => import::run(global, options).await,
        Action::List(options) => list::run(global, options).await,
        Action::Remove(options) => list::remove(global, options).await,
        Action::Map(options) => map::run(global, options).await,
        Action::Measure(options) => measure::run(&options),
    }
}
