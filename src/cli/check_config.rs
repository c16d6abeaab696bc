//! `hilum check-config`.

use clap::Args;

use super::{Global, output::print};
use crate::config::effective_toml;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Show what is in force: file, environment and defaults together, secrets redacted
    #[arg(long)]
    print: bool,
}

pub(super) fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let config = global.load()?;
    if options.print {
        return print(&effective_toml(&config));
    }
    let read = match global.config_file() {
        Some(file) if global.dev.is_none() => format!("`{}`", file.display()),
        _ => "built-in defaults".to_owned(),
    };
    print(&format!("the configuration is good ({read} and environment variables HILUM__SECTION__KEY)"))
}
