//! `hilum apply`: the site configuration from a file.

use std::path::PathBuf;

use clap::Args;

use super::{Global, output::print, site};
use crate::config::load_site;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The site file; config/site.example.toml explains every key
    #[arg(value_name = "SITE.toml")]
    file: PathBuf,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let wanted = load_site(&options.file)?;
    site::check_bundles(&global.load()?, &wanted.routes)?;
    let diff = site::change_diff(global, options.dry_run, move |site| {
        *site = wanted;
        Ok(())
    })
    .await?;
    print(&site::describe(&diff, options.dry_run))
}
