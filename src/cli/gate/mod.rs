//! `hilum gate`: what a bundle's gates refuse, and fitting the gate on the distance from the training images.

mod fit;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{
    Global,
    cases::{files::Listed, picture},
    model::{Folder, bundle_name},
};
use crate::{
    app::tuning::network_threads,
    imaging::DecodeLimits,
    infer::{CxrPipeline, NnModels, PipelineSettings, pipeline_settings},
    nn::{Bundle, Classification, Ensemble, EnsembleOptions},
    types::Sha256Digest,
};

/// Larger files are no radiographs.
const MAX_FILE_BYTES: u64 = 1 << 30;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Runs files through a bundle's gates and prints which gate refuses which, with false refusals and acceptances
    Table(table::Options),
    /// Fits the gate on the distance from the training images and writes it into the bundle
    Fit(fit::Options),
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Table(options) => table::run(global, options).await,
        Action::Fit(options) => fit::run(global, options).await,
    }
}

/// Which bundle a command is about.
#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    folder: Folder,
    /// Name of the bundle
    #[arg(value_parser = bundle_name)]
    bundle: String,
}

/// A bundle for radiographs, opened, its networks not loaded.
struct Opened {
    folder: PathBuf,
    bundle: Bundle,
    settings: PipelineSettings,
    classification: Classification,
    ensemble: EnsembleOptions,
}

impl Which {
    fn open(self, global: &Global) -> anyhow::Result<Opened> {
        let config = global.load()?;
        let folder = self.folder.resolve(global)?.join(self.bundle);
        let bundle = Bundle::open(&folder)?;
        let decode_limits = DecodeLimits { max_decoded_bytes: config.inference.max_decoded_bytes.bytes() };
        let (settings, classification) = pipeline_settings(&bundle, decode_limits)?;
        let threads = network_threads(&config);
        let ensemble = EnsembleOptions {
            devices: config.inference.devices.as_slice().iter().take(1).copied().collect(),
            optimise: config.inference.optimise,
            intra_op_threads: threads.classifiers,
            segmenter_threads: threads.segmenter,
            ..EnsembleOptions::default()
        };
        Ok(Opened { folder, bundle, settings, classification, ensemble })
    }
}

impl Opened {
    /// Loads the networks.
    async fn pipeline(self) -> anyhow::Result<CxrPipeline<NnModels>> {
        let Self { bundle, settings, classification, ensemble, .. } = self;
        let identity = bundle.identity();
        let models = tokio::task::spawn_blocking(move || {
            anyhow::Ok(NnModels::new(Ensemble::load(&bundle, ensemble)?, classification))
        })
        .await??;
        Ok(CxrPipeline::new(models, identity, settings)?)
    }
}

/// A file as a Part 10 file: as it is, or a picture with the header of a radiograph around it.
fn part10(file: &Listed) -> anyhow::Result<Vec<u8>> {
    let size = fs_err::metadata(&file.path)?.len();
    anyhow::ensure!(size <= MAX_FILE_BYTES, "it has {size} bytes and at most {MAX_FILE_BYTES} are read");
    let bytes = fs_err::read(&file.path)?;
    if picture::is_part10(&bytes) {
        return Ok(bytes);
    }
    let uid = crate::report::uid("gate", &[&Sha256Digest::of(&bytes).to_string()]);
    picture::as_radiograph(&bytes, file.view.as_deref().unwrap_or_default(), uid.as_str())
}

/// The name of a file without its folders.
fn file_name(path: &Path) -> anyhow::Result<String> {
    Ok(path.file_name().with_context(|| format!("{} names no file", path.display()))?.to_string_lossy().into_owned())
}
