//! `hilum gate`: what a bundle's gates refuse, and fitting the gate on the distance from the training images.

mod fit;
mod measure;
mod table;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    Global,
    model::{Folder, bundle_name},
};
use crate::{
    app::tuning::network_threads,
    imaging::DecodeLimits,
    infer::{CxrPipeline, NnModels, PipelineSettings, pipeline_settings},
    nn::{Bundle, Classification, Ensemble, EnsembleOptions},
};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Runs files through a bundle's gates and prints which gate refuses which, with false refusals and acceptances
    Table(table::Options),
    /// Fits the gate on the distance from the training images and writes it into the bundle
    Fit(fit::Options),
    /// Measures what the gates on the picture cost
    #[command(hide = true)]
    Measure(measure::Options),
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Table(options) => table::run(global, options).await,
        Action::Fit(options) => fit::run(global, options).await,
        Action::Measure(options) => measure::run(&options),
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
