//! The networks of `nn/` behind the trait [`Models`], and a bundle's manifest as pipeline settings.

use super::{ActivationMap, GateSettings, MemberOutput, ModelError, Models, PipelineSettings, SimilarCaseSettings};
use crate::{
    imaging::{DecodeLimits, MaskMode, Plane, Plane3},
    nn::{self, Calibration, Ensemble, Fusion, Manifest, VoiMode},
};

/// The networks of a loaded bundle.
#[derive(Clone)]
pub struct NnModels {
    ensemble: Ensemble,
    fusion: Fusion,
    calibration: Calibration,
}

impl NnModels {
    /// The networks with their bundle's way of fusing.
    #[must_use]
    pub fn new(ensemble: Ensemble, manifest: &Manifest) -> Self {
        Self { ensemble, fusion: manifest.fusion, calibration: manifest.calibration.clone() }
    }
}

fn model_error(error: &nn::NnError) -> ModelError {
    ModelError(error.to_string())
}

impl Models for NnModels {
    async fn segment(&self, canvas: Plane) -> Result<Plane, ModelError> {
        let canvas = nn::Plane { rows: canvas.rows, columns: canvas.columns, values: canvas.values };
        let lungs = self.ensemble.segment(canvas).await.map_err(|error| model_error(&error))?;
        Ok(Plane { rows: lungs.rows, columns: lungs.columns, values: lungs.values })
    }

    async fn classify(
        &self,
        member_idx: usize,
        input: Plane3,
        target_class_idx: usize,
    ) -> Result<MemberOutput, ModelError> {
        let input = nn::Plane3 { rows: input.rows, columns: input.columns, values: input.values };
        let output =
            self.ensemble.classify(member_idx, input, target_class_idx).await.map_err(|error| model_error(&error))?;
        let map = output.activation_map;
        Ok(MemberOutput {
            logits: output.logits,
            probabilities: output.probabilities,
            embedding: output.embedding,
            activation_map: ActivationMap {
                rows: map.rows,
                columns: map.columns,
                values: map.values,
                method: map.method.to_owned(),
            },
        })
    }

    fn fuse(&self, member_logits: &[&[f32]]) -> Option<Vec<f64>> {
        nn::fuse(self.fusion, &self.calibration, member_logits)
    }
}

/// What a manifest prescribes, as the pipeline wants it.
#[must_use]
pub fn pipeline_settings(manifest: &Manifest, decode_limits: DecodeLimits) -> PipelineSettings {
    let preprocessing = &manifest.preprocessing;
    let gates = &manifest.gates;
    PipelineSettings {
        image_side_pixels: preprocessing.image_side_pixels,
        segmenter_side_pixels: manifest.segmenter.input_side_pixels,
        percentile_low: preprocessing.percentile_low,
        percentile_high: preprocessing.percentile_high,
        use_voi_window: match preprocessing.voi {
            VoiMode::None => false,
            VoiMode::Window => true,
        },
        mask_mode: match preprocessing.mask_mode {
            nn::MaskMode::None => MaskMode::None,
            nn::MaskMode::Channel3 => MaskMode::Channel3,
        },
        mean: preprocessing.mean,
        std: preprocessing.std,
        gates: GateSettings {
            minimum_age_years: gates.minimum_age_years,
            accepted_views: gates.accepted_views.clone(),
            lung_area_fraction: gates.minimum_lung_area_fraction..=gates.maximum_lung_area_fraction,
            lung_area_ratio: gates.minimum_lung_area_ratio..=gates.maximum_lung_area_ratio,
            minimum_rows: gates.minimum_rows,
            minimum_columns: gates.minimum_columns,
        },
        decode_limits,
        similar_cases: SimilarCaseSettings::default(),
    }
}
