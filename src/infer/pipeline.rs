//! A bundle's pipeline, chosen by its kind of input.

use std::{future::Future, path::Path};

use super::{
    Analysis, CtNetworks, CtPipeline, CxrPipeline, InferError, LoadedImage, NnModels, SettingsProblem,
    adapter::pipeline_settings,
};
use crate::{
    imaging::DecodeLimits,
    nn::{Bundle, BundleError, Ensemble, EnsembleOptions, Manifest, NnError},
    types::{self, BundleIdentity, Errand, NotAnalysed, ReasonCode, RunOutcome, SourceImage},
};

/// SOP classes that the chest radiograph pipeline reads: Computed Radiography, Digital X-Ray for presentation.
const RADIOGRAPH_SOP_CLASSES: [&str; 2] = ["1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"];

/// SOP classes that the CT pipeline looks at. It reads CT Image Storage; the multi-frame ones (Enhanced, Legacy Converted)
/// it refuses with their reason.
const CT_SOP_CLASSES: [&str; 3] =
    ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"];

/// What a bundle's kind of input asks for.
pub enum Pipeline {
    /// Single chest radiographs.
    Cxr(CxrPipeline<NnModels>),
    /// A chest CT: measured, and judged by networks if the bundle has some.
    Ct(CtPipeline),
}

/// Why a bundle has no pipeline.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is no sound bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its networks cannot be loaded.
    #[error(transparent)]
    Networks(#[from] NnError),
    /// Its manifest contradicts itself.
    #[error(transparent)]
    Settings(#[from] SettingsProblem),
}

/// A route names a bundle that its pipeline cannot run: every study would be "not analysed".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "bundle `{bundle}` belongs to pipeline `{}` and its route says `{}`; give the route the pipeline of its bundle, or \
     another bundle (`hilum route add` replaces it, `hilum model list` names the bundles)",
    of_bundle.name(),
    of_route.name()
)]
pub struct PipelineMismatch {
    bundle: String,
    of_bundle: types::Pipeline,
    of_route: types::Pipeline,
}

/// Compares what a route says with what its bundle is for: `image2d` for radiographs, every other kind of input for CT.
///
/// # Errors
/// [`PipelineMismatch`], with the remedy.
pub fn check_pipeline(manifest: &Manifest, bundle: &str, of_route: types::Pipeline) -> Result<(), PipelineMismatch> {
    agree(bundle, !manifest.input.is_ct(), of_route)
}

fn agree(bundle: &str, reads_radiographs: bool, of_route: types::Pipeline) -> Result<(), PipelineMismatch> {
    let of_bundle = if reads_radiographs { types::Pipeline::ChestRadiograph } else { types::Pipeline::ChestCt };
    if of_bundle == of_route {
        Ok(())
    } else {
        Err(PipelineMismatch { bundle: bundle.to_owned(), of_bundle, of_route })
    }
}

impl Pipeline {
    /// Whether a route may give studies of `of_route` to this.
    ///
    /// # Errors
    /// [`PipelineMismatch`], with the remedy.
    pub fn check_route(&self, of_route: types::Pipeline) -> Result<(), PipelineMismatch> {
        agree(&self.bundle().name, matches!(self, Self::Cxr(_)), of_route)
    }

    /// Opens the bundle in `folder` and loads its networks. Blocks for seconds.
    ///
    /// # Errors
    /// [`OpenError`], with every problem and its remedy.
    pub fn open(folder: &Path, options: EnsembleOptions, decode_limits: DecodeLimits) -> Result<Self, OpenError> {
        let bundle = Bundle::open(folder)?;
        if bundle.manifest().input.is_ct() {
            let networks = CtNetworks::load(&bundle, options)?;
            let gates = bundle.manifest().input.ct_gates().cloned().unwrap_or_default();
            return Ok(Self::Ct(CtPipeline::new(bundle.identity(), gates, networks, decode_limits)?));
        }
        let (settings, classification) = pipeline_settings(&bundle, decode_limits)?;
        let models = NnModels::new(Ensemble::load(&bundle, options)?, classification);
        Ok(Self::Cxr(CxrPipeline::new(models, bundle.identity(), settings)?))
    }

    /// Which bundle it is of.
    #[must_use]
    pub const fn bundle(&self) -> &BundleIdentity {
        match self {
            Self::Cxr(pipeline) => pipeline.bundle(),
            Self::Ct(pipeline) => pipeline.bundle(),
        }
    }

    /// Each network of the bundle with what it computes with: devices and precision.
    #[must_use]
    pub fn computing(&self) -> Vec<String> {
        let computing = match self {
            Self::Cxr(pipeline) => pipeline.models().computing(),
            Self::Ct(pipeline) => pipeline.computing(),
        };
        let networks = self.bundle().networks().zip(computing);
        networks.map(|(network, computing)| format!("{} {computing}", network.name)).collect()
    }

    /// [`Pipeline::computing`] with what else decides about the last bits: this program, the processor and the threads of each
    /// network, as `options` give them.
    #[must_use]
    pub fn computed_with(&self, options: &EnsembleOptions) -> Vec<String> {
        let EnsembleOptions { intra_op_threads, segmenter_threads, .. } = options;
        let program = format!("hilum {} on {}", env!("CARGO_PKG_VERSION"), processor());
        let threads =
            format!("{segmenter_threads} thread(s) for the lung segmenter, {intra_op_threads} for each other network");
        let threads = (self.bundle().networks().next().is_some()).then_some(threads);
        self.computing().into_iter().chain([program]).chain(threads).collect()
    }

    /// Analyses the objects of a study that it reads; `read` gets each when its turn comes.
    ///
    /// # Errors
    /// [`InferError`] when the networks or the worker fail.
    ///
    /// Cancel safety: as [`CxrPipeline::analyse`].
    pub async fn analyse<R, F>(&self, sources: &[SourceImage], errand: &Errand, read: R) -> Result<Analysis, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let (sop_classes, expected): (&[&str], _) = match self {
            Self::Cxr(_) => (&RADIOGRAPH_SOP_CLASSES, "a Computed Radiography or Digital X-Ray image for presentation"),
            Self::Ct(_) => (&CT_SOP_CLASSES, "a CT image"),
        };
        let images: Vec<SourceImage> =
            sources.iter().filter(|source| sop_classes.contains(&source.sop_class_uid.as_str())).cloned().collect();
        if images.is_empty() {
            let words = format!("none of the study's {} object(s) is {expected}", sources.len());
            let sources = sources.to_vec();
            return Ok(Analysis {
                outcome: RunOutcome::NotAnalysed(NotAnalysed { reason: ReasonCode::NoSuitableImage, words, sources }),
                masks: None,
                embeddings: Vec::new(),
                stage_milliseconds: Vec::new(),
            });
        }
        match self {
            Self::Cxr(pipeline) => pipeline.analyse(images, errand, read).await,
            Self::Ct(pipeline) => pipeline.analyse(images, errand, read).await,
        }
    }
}
/// What the networks' arithmetic depends on.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::is_x86_feature_detected!("avx512f") {
        " with AVX-512"
    } else if std::is_x86_feature_detected!("avx2") {
        " with AVX2"
    } else {
        ""
    };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "";
    format!("{}{vectors}", std::env::consts::ARCH)
}
