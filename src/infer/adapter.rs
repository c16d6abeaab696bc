//! The networks of `nn/` behind the trait [`Models`], and a bundle's manifest as pipeline settings.

use std::{sync::Arc, time::Duration};

use super::{
    ActivationMap, EmbeddingMethod, FeatureGateSettings, GateSettings, MemberOutput, ModelError, Models,
    PipelineSettings, SettingsProblem, SimilarCaseSettings, pipeline::OpenError,
};
use crate::{
    imaging::{
        DecodeLimits, Plane, Planes,
        classifier_input::{MaskMode, Recipe, ResizeMode},
        equalise::Equalisation,
    },
    nn::{self, Bundle, Classification, Ensemble, Input, Manifest, Preprocessing, VoiMode},
    types::Errand,
};

/// The networks of a loaded bundle.
#[derive(Clone)]
pub struct NnModels {
    ensemble: Ensemble,
    classification: Option<Classification>,
}

impl NnModels {
    /// The networks with what their outputs mean; nothing where there are no classifiers.
    #[must_use]
    pub fn new(ensemble: Ensemble, classification: impl Into<Option<Classification>>) -> Self {
        Self { ensemble, classification: classification.into() }
    }
}

impl NnModels {
    /// What each network computes with, the segmenter first.
    pub(super) fn computing(&self) -> Vec<String> {
        self.ensemble.computing()
    }
}

pub(super) fn model_error(error: &nn::NnError) -> ModelError {
    let words = error.to_string();
    match error {
        nn::NnError::TakenOut { seconds, .. } => ModelError::TakenOut { wait: Duration::from_secs(*seconds), words },
        _ => ModelError::Failed(words),
    }
}

impl Models for NnModels {
    async fn segment(&self, canvas: Plane, errand: &Errand) -> Result<Plane, ModelError> {
        let canvas = nn::Plane { rows: canvas.rows, columns: canvas.columns, values: canvas.values };
        let lungs = self.ensemble.segment(canvas, errand).await.map_err(|error| model_error(&error))?;
        Ok(Plane { rows: lungs.rows, columns: lungs.columns, values: lungs.values })
    }

    async fn classify(
        &self,
        member_idx: usize,
        inputs: Vec<Planes>,
        target_class_idx: usize,
        errand: &Errand,
    ) -> Result<MemberOutput, ModelError> {
        let inputs = inputs
            .into_iter()
            .map(|Planes { channels, rows, columns, values }| nn::Planes { channels, rows, columns, values })
            .collect();
        let output = self.ensemble.classify(member_idx, inputs, target_class_idx, errand).await;
        let output = output.map_err(|error| model_error(&error))?;
        Ok(MemberOutput {
            logits: output.logits,
            probabilities: output.probabilities,
            embedding: output.embedding,
            activation_map: output.activation_map.map(|map| ActivationMap {
                rows: map.rows,
                columns: map.columns,
                values: map.values,
                method: map.method.to_owned(),
            }),
        })
    }

    fn fuse(&self, member_logits: &[&[f32]]) -> Option<Vec<f64>> {
        nn::fuse(self.classification.as_ref()?, member_logits)
    }
}

/// What a bundle for radiographs prescribes, as the pipeline wants it. Reads the feature space of its gate, if it has one.
///
/// # Errors
/// [`OpenError`] when the bundle is of another kind, has no classifiers, or its feature space cannot be used.
pub fn pipeline_settings(
    bundle: &Bundle,
    decode_limits: DecodeLimits,
) -> Result<(PipelineSettings, Classification), OpenError> {
    let settings = lung_settings(bundle, decode_limits)?;
    let classification = bundle.manifest().classification.clone().ok_or_else(|| SettingsProblem {
        setting: "classification",
        value: "missing".to_owned(),
        expected: "there, with members: this bundle only finds lungs",
    })?;
    Ok((settings, classification))
}

/// The same of a bundle that may do without classifiers.
///
/// # Errors
/// [`OpenError`] when the bundle is of another kind, or its feature space cannot be used.
pub fn lung_settings(bundle: &Bundle, decode_limits: DecodeLimits) -> Result<PipelineSettings, OpenError> {
    let manifest = bundle.manifest();
    let (Input::Image2d { preprocessing, gates }, Some(segmenter)) = (&manifest.input, &manifest.segmenter) else {
        let value = manifest.input.kind().to_owned();
        let expected = "`image2d` with classifiers: a lung segmenter alone finds lungs and classifies nothing";
        return Err(SettingsProblem { setting: "input.kind", value, expected }.into());
    };
    let features = bundle.feature_space()?.zip(gates.features.as_ref()).map(|(space, gate)| FeatureGateSettings {
        member: gate.member.clone(),
        space: Arc::new(space),
        neighbours: gate.neighbours as usize,
        maximum_mahalanobis_distance: gate.maximum_mahalanobis_distance,
        maximum_neighbour_distance: gate.maximum_neighbour_distance,
    });
    Ok(PipelineSettings {
        member_inputs: manifest
            .members
            .iter()
            .map(|member| manifest.inputs_of(member).into_iter().map(recipe).collect())
            .collect(),
        segmenter_side_pixels: segmenter.input_side_pixels,
        percentile_low: preprocessing.percentile_low,
        percentile_high: preprocessing.percentile_high,
        use_voi_window: match preprocessing.voi {
            VoiMode::None => false,
            VoiMode::Window => true,
        },
        gates: GateSettings {
            minimum_age_years: gates.minimum_age_years,
            accepted_views: gates.accepted_views.clone(),
            lung_area_fraction: gates.minimum_lung_area_fraction..=gates.maximum_lung_area_fraction,
            lung_area_ratio: gates.minimum_lung_area_ratio..=gates.maximum_lung_area_ratio,
            minimum_rows: gates.minimum_rows,
            minimum_columns: gates.minimum_columns,
            policies: gates.policies,
            picture: gates.picture,
            lungs: gates.lungs,
            maximum_member_spread: gates.maximum_member_spread,
            features,
        },
        decode_limits,
        similar_cases: similar_cases(manifest),
    })
}

fn similar_cases(manifest: &Manifest) -> SimilarCaseSettings {
    let default = SimilarCaseSettings::default();
    let Some(section) = &manifest.similar_cases else { return default };
    SimilarCaseSettings {
        method: section.member.clone().map_or(EmbeddingMethod::AllMembers, EmbeddingMethod::Member),
        count: section.count as usize,
        ..default
    }
}

pub(super) const fn resize_mode(resize: nn::ResizeMode) -> ResizeMode {
    match resize {
        nn::ResizeMode::Pad => ResizeMode::Pad,
        nn::ResizeMode::Crop => ResizeMode::Crop,
        nn::ResizeMode::Stretch => ResizeMode::Stretch,
    }
}

/// How a picture becomes a classifier's input, as a manifest says it.
#[must_use]
pub fn recipe(preprocessing: &Preprocessing) -> Recipe {
    Recipe {
        equalisation: match preprocessing.equalisation {
            nn::Equalisation::None => Equalisation::None,
            nn::Equalisation::Histogram => Equalisation::Histogram,
            nn::Equalisation::Clahe { clip_limit, tiles } => Equalisation::Clahe { clip_limit, tiles: tiles as usize },
        },
        top_crop_fraction: preprocessing.top_crop_fraction,
        mask_mode: match preprocessing.mask_mode {
            nn::MaskMode::None => MaskMode::None,
            nn::MaskMode::Channel3 => MaskMode::Channel3,
            nn::MaskMode::Overlay => MaskMode::Overlay,
            nn::MaskMode::Multiply => MaskMode::Multiply,
            nn::MaskMode::Crop => MaskMode::Crop,
        },
        crop_margin_fraction: preprocessing.crop_margin_fraction,
        resize: resize_mode(preprocessing.resize),
        side_pixels: preprocessing.image_side_pixels as usize,
        z_score: preprocessing.normalisation == nn::ChannelNormalisation::ImageZScore,
        range: preprocessing.range,
        mean: preprocessing.mean,
        std: preprocessing.std,
        reverse_channels: preprocessing.channel_order == nn::ChannelOrder::Bgr,
        single_channel: preprocessing.single_channel,
    }
}
