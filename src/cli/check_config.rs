//! `hilum check-config`.

use anyhow::Context as _;
use clap::Args;
use time::OffsetDateTime;

use super::{Global, output::print};
use crate::{
    app::{texts, tls_settings},
    config::effective_toml,
    tls::{TlsMaterial, expiry_words},
};

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
    let languages = texts::languages(config.node.texts_dir.as_deref()).context("section [node]")?;
    if config.node.texts_dir.is_some() {
        print(&format!("languages of results: {}", languages.tags().collect::<Vec<_>>().join(", ")))?;
        for words in texts::not_in_pictures(&languages) {
            print(&format!("warning: {words}"))?;
        }
    }
    let material = TlsMaterial::load(&tls_settings(&config.tls)).context("section [tls]")?;
    if let Some(certificate) = material.certificate() {
        let words = expiry_words(certificate, OffsetDateTime::now_utc());
        let words = words.unwrap_or_else(|| format!("valid until {}", certificate.not_after.date()));
        print(&format!("TLS: {certificate}; {words}"))?;
    }
    print(&format!("the configuration is good ({read} and environment variables HILUM__SECTION__KEY)"))
}
