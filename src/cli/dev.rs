//! `hilum dev`: a complete node for trying out.

use std::path::PathBuf;

use clap::Args;

/// What `hilum dev` is told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Folder for everything that the node keeps: Postgres, archive, models, the built-in destination
    #[arg(long, value_name = "DIR", default_value = "data/dev")]
    pub data_dir: PathBuf,
    /// A DICOM file (CR or DX) that is sent to the node once it is up, with fresh UIDs
    #[arg(long, value_name = "FILE")]
    pub demo_image: Option<PathBuf>,
    /// Stop when the results of the demo image have arrived; fails when they do not
    #[arg(long, requires = "demo_image")]
    pub once: bool,
    /// Port of the DICOM listener on loopback; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 11112)]
    pub dicom_port: u16,
    /// Port of the status page on loopback; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8088)]
    pub http_port: u16,
    /// Log lines to show: off, error, warn, info, debug, trace, or directives such as info,hilum::dimse=debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: String,
}

/// Runs the node until Ctrl-C, or with `once` until the results are there.
pub async fn run(_options: Options) -> anyhow::Result<()> {
    anyhow::bail!("`hilum dev` is not part of this build")
}
