//! Maps of regions that a person asks for after a run: by another method, of another class, of one member or another slice.

use std::sync::Arc;

use tokio::task::{JoinError, spawn_blocking};

use super::{
    CtPipeline, CxrPipeline, InferError, LoadedImage, NnModels,
    ct::ScanInputs,
    ct_networks::heat_in_lungs,
    cxr::{StageTimes, Verdict},
};
use crate::{
    imaging::{Plane, Planes, classifier_input::Frame, ct::choose_sections, heat},
    nn::{self, Bundle, Explanation, IntegratedGradientsOptions, NnError},
    types::{CtAnalysis, CtKeySlice, CtPlane, Errand, HeatMap, ImageAnalysis, SourceImage},
};

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct MapWish {
    /// Of which member only; of all without one.
    pub member: Option<String>,
    /// Index of the class that the map is about.
    pub class_idx: usize,
    /// By which method; each member's own without one.
    pub method: Option<Explanation>,
    /// The way of Integrated Gradients.
    pub integrated_gradients: IntegratedGradientsOptions,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum OnDemandError {
    /// The images cannot be prepared.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A network has no such map, or fails.
    #[error(transparent)]
    Network(#[from] NnError),
    /// The wish does not suit the bundle or the images.
    #[error("{0}")]
    Refused(String),
    /// The worker thread died.
    #[error("the worker that asks the networks stopped: {0}")]
    Worker(#[from] JoinError),
}

/// What a member says of an input: its outputs, that for the class, and the map on the canvas.
struct MemberMap {
    name: String,
    outputs: Vec<f64>,
    output: f64,
    map: HeatMap,
}

/// Asks the members that are wished for, one after the other: each is loaded for it. `inputs` has the first input of each
/// member, and the part of the canvas that it shows.
async fn ask(
    bundle: &Arc<Bundle>,
    inputs: Vec<(Planes, Frame)>,
    wish: &MapWish,
) -> Result<Vec<MemberMap>, OnDemandError> {
    let names: Vec<String> = bundle.manifest().members.iter().map(|member| member.name.clone()).collect();
    if let Some(wanted) = &wish.member
        && !names.contains(wanted)
    {
        return Err(OnDemandError::Refused(format!(
            "the bundle has no member `{wanted}`; it has {}",
            names.join(", ")
        )));
    }
    let mut maps = Vec::new();
    let mut not_offered = None;
    for (member_idx, (name, (input, frame))) in names.into_iter().zip(inputs).enumerate() {
        if wish.member.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let (bundle, asked) = (Arc::clone(bundle), wish.clone());
        let Planes { channels, rows, columns, values } = input;
        let input = nn::Planes { channels, rows, columns, values };
        let explained = spawn_blocking(move || {
            nn::explain_input(&bundle, member_idx, &input, asked.class_idx, asked.method, asked.integrated_gradients)
                .map(|explained| (explained, asked.class_idx))
        });
        let (explained, class_idx) = match explained.await? {
            // Others have one: the picture names the members that it is made of.
            Err(error @ NnError::NotOffered { .. }) if wish.member.is_none() => {
                not_offered.get_or_insert(error);
                continue;
            }
            explained => explained?,
        };
        let map = explained.map;
        let plane = Plane { rows: map.rows, columns: map.columns, values: map.values };
        let outputs: Vec<f64> = explained.probabilities.into_iter().map(f64::from).collect();
        maps.push(MemberMap {
            name,
            output: outputs.get(class_idx).copied().unwrap_or(0.0),
            outputs,
            map: heat::heat_map(&plane, map.method, frame),
        });
    }
    match not_offered {
        Some(error) if maps.is_empty() => Err(error.into()),
        _ => Ok(maps),
    }
}

/// The maps as one, members weighted by their output.
fn fused(maps: &[MemberMap]) -> HeatMap {
    let weighted: Vec<(&HeatMap, f64)> = maps.iter().map(|of| (&of.map, of.output)).collect();
    heat::fuse(&weighted)
}

impl CxrPipeline<NnModels> {
    /// The analysis of an image with the maps that are wished for in the place of its own, and with a member's outputs where
    /// one member is; everything else stays.
    ///
    /// # Errors
    /// [`OnDemandError`], with what the network offers instead.
    pub async fn explain_on_demand(
        &self,
        bundle: &Arc<Bundle>,
        image: LoadedImage,
        analysis: &ImageAnalysis,
        wish: &MapWish,
    ) -> Result<ImageAnalysis, OnDemandError> {
        let inputs = match self.inputs(image.bytes, &Errand::default(), &mut StageTimes::default()).await? {
            Verdict::Goes(inputs) => inputs,
            Verdict::Excluded(exclusion) => return Err(OnDemandError::Refused(exclusion.refused.words)),
        };
        let of_members =
            inputs.of_members.into_iter().filter_map(|(inputs, frame)| Some((inputs.into_iter().next()?, frame)));
        let maps = ask(bundle, of_members.collect(), wish).await?;
        let heat_map = fused(&maps);
        let (right_lung_heat_fraction, left_lung_heat_fraction) = heat::hot_fractions(&heat_map, &inputs.lungs);
        let lung_heat_fraction = heat::lung_share(&heat_map, &inputs.lungs);
        let fused = match maps.as_slice() {
            [only] if wish.member.is_some() => only.outputs.clone(),
            _ => analysis.fused.clone(),
        };
        Ok(ImageAnalysis {
            fused,
            heat_map,
            member_heat_maps: maps.into_iter().map(|of| (of.name, of.map)).collect(),
            right_lung_heat_fraction,
            left_lung_heat_fraction,
            lung_heat_fraction,
            ..analysis.clone()
        })
    }
}

impl CtPipeline {
    /// The analysis of a scan with the map of one slice (counted from the feet, from 0) in the place of its key slices, and
    /// that slice as its only section.
    ///
    /// # Errors
    /// [`OnDemandError`], with what the network offers instead, or the slices that the networks see.
    pub async fn explain_on_demand<R, F>(
        &self,
        bundle: &Arc<Bundle>,
        analysis: &CtAnalysis,
        slice: usize,
        wish: &MapWish,
        read: R,
    ) -> Result<CtAnalysis, OnDemandError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let Some(classification) = &analysis.classification else {
            return Err(OnDemandError::Refused(
                "the run has no classification, so there is nothing to explain".to_owned(),
            ));
        };
        let ScanInputs { volume, labels, input } = match self.inputs(analysis.series.images.clone(), read).await? {
            Ok(inputs) => inputs,
            Err(refusal) => return Err(OnDemandError::Refused(refusal.words)),
        };
        let Some(idx) = input.slices.iter().position(|seen| *seen == slice) else {
            return Err(OnDemandError::Refused(not_seen(slice, &input.slices)));
        };
        let samples = input.channels * input.rows * input.columns;
        let values = input.values.get(idx * samples..(idx + 1) * samples).unwrap_or_default().to_vec();
        let planes = Planes { channels: input.channels, rows: input.rows, columns: input.columns, values };
        let inputs = vec![(planes, input.frame); bundle.manifest().members.len()];
        let maps = ask(bundle, inputs, wish).await?;
        let heat_map = fused(&maps);
        let outputs: Vec<f64> = maps.iter().map(|of| of.output).collect();
        let (lung_heat_fraction, sections) = spawn_blocking({
            let heat_map = heat_map.clone();
            move || {
                (heat_in_lungs(&volume, &labels, slice, &heat_map), choose_sections(&volume, &labels, None, &[slice]))
            }
        })
        .await?;
        let mut sections = sections.map_err(|error| InferError::Sections(error.to_string()))?;
        sections.retain(|section| section.plane == CtPlane::Axial && section.index == slice);
        let key_slice = CtKeySlice { slice, output: nn::pooling::mean(&outputs), lung_heat_fraction, heat_map };
        let mut explained = analysis.clone();
        explained.sections = sections;
        explained.classification =
            Some(crate::types::CtClassification { key_slices: vec![key_slice], ..classification.clone() });
        Ok(explained)
    }
}

/// Which slices are there instead, counted from 1 as reports do.
fn not_seen(slice: usize, seen: &[usize]) -> String {
    let nearest = seen.iter().min_by_key(|seen| seen.abs_diff(slice));
    let (first, last) = (seen.iter().min(), seen.iter().max());
    match (nearest, first, last) {
        (Some(nearest), Some(first), Some(last)) => format!(
            "the networks see {} slices from {} to {}, counted from the feet, and {} is not among them: the nearest is {}",
            seen.len(),
            first + 1,
            last + 1,
            slice + 1,
            nearest + 1
        ),
        _ => "the networks see no slice of this scan".to_owned(),
    }
}
