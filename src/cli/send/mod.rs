//! `hilum send`: DICOM files to a peer.
//!
//! [`send_files`] is the whole of it; the command adds arguments, a progress display and the summary.

pub(super) mod files;
mod fresh_uids;
mod progress;
#[cfg(test)]
mod tests;
mod transfer;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;

use super::{
    Address,
    output::{bytes_text, count, print, visible},
};
use crate::{dimse::RequestorTimeouts, types::AeTitle};

pub use transfer::{FailedFile, SendEvent, SendOptions, SendSummary, SentFile, SkippedFile, send_files};

/// Files that the summary names at most, of each kind.
const MAX_NAMED: usize = 50;

/// What `hilum send` is told.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// DICOM files, and folders that are searched for them
    #[arg(required = true, value_name = "FILES|FOLDERS")]
    paths: Vec<PathBuf>,
    /// Where the peer listens
    #[arg(long, value_name = "HOST:PORT")]
    to: Address,
    /// AE title of the peer
    #[arg(long, value_name = "TITLE")]
    called: AeTitle,
    /// AE title that we call as
    #[arg(long, value_name = "TITLE", default_value = "HILUM")]
    calling: AeTitle,
    /// Associations at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    associations: u16,
    /// Give studies, series and instances new UIDs, the same new one for the same old one within this run; for demos
    /// and tests. Pixel data stay as they are; references to other objects keep the old UIDs
    #[arg(long)]
    fresh_uids: bool,
    /// Append each SOP Instance UID to this file as soon as the peer has answered Success for it
    #[arg(long, value_name = "FILE")]
    log_acknowledged: Option<PathBuf>,
    /// How long the peer may take to answer for one object
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let progress = Arc::new(progress::Progress::new());
    let shown = Arc::clone(&progress);
    let send_options = SendOptions {
        associations: usize::from(options.associations),
        fresh_uids: options.fresh_uids,
        log_acknowledged: options.log_acknowledged,
        timeouts: RequestorTimeouts { dimse: Duration::from_secs(options.timeout), ..RequestorTimeouts::default() },
        ..SendOptions::new(options.to, options.called, options.calling)
    };
    let summary = send_files(&options.paths, send_options, move |event| shown.show(event)).await;
    progress.finish();
    let summary = summary?;
    print(&describe(&summary))?;
    let total = summary.sent.len() + summary.failed.len();
    match summary.failed.len() {
        0 => Ok(()),
        failed => anyhow::bail!("{failed} of {} not sent", count(total, "file")),
    }
}

/// What came of it.
fn describe(summary: &SendSummary) -> String {
    let SendSummary { sent, failed, skipped, bytes, elapsed } = summary;
    let seconds = elapsed.as_secs_f64().max(1e-3);
    let mut lines = vec![format!(
        "sent {} of {} ({}) in {seconds:.1} s: {:.1} files/s, {}/s",
        sent.len(),
        count(sent.len() + failed.len(), "file"),
        bytes_text(*bytes),
        sent.len() as f64 / seconds,
        bytes_text((*bytes as f64 / seconds) as u64)
    )];
    let mut name = |heading: &str, all: Vec<String>| {
        let more = all.len().saturating_sub(MAX_NAMED);
        lines.extend(all.into_iter().take(MAX_NAMED).map(|line| format!("{heading}: {}", visible(&line))));
        if more > 0 {
            lines.push(format!("{heading}: and {more} more"));
        }
    };
    let remarks = sent.iter().filter_map(|file| Some(format!("{}: {}", file.path.display(), file.remark.as_ref()?)));
    name("remark", remarks.collect());
    name("skipped", skipped.iter().map(|file| format!("{}: {}", file.path.display(), file.reason)).collect());
    name("failed", failed.iter().map(|file| format!("{}: {}", file.path.display(), file.reason)).collect());
    lines.join("\n")
}
