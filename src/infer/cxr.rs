//! The chest radiograph pipeline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::task::{JoinError, JoinSet};

use super::{
    gates::Gates,
    models::{MemberOutput, ModelError, Models},
    nearest::normalised,
    scores::{decide, member_spread, spread, surviving},
    settings::{EmbeddingMethod, PipelineSettings, SettingsProblem, SimilarCaseSettings},
    thread::on_thread,
};
use crate::{
    imaging::{
        ImageHeader, ImagingError, Plane, PlaneError, Planes, canvas,
        classifier_input::{self, Frame, Recipe},
        decode_grey, heat,
        lungs::Lungs,
        quality::PictureMeasurements,
        read_object,
    },
    types::{
        BundleIdentity, BundleStatus, CxrAnalysis, Errand, ExcludedImage, GateResult, HeatMap, ImageAnalysis, LungMask,
        MemberScore, NotAnalysed, Placement, Progress, ReasonCode, RunOutcome, SourceImage, VoxelLabels,
    },
};

/// An image of the study, read from the archive.
#[derive(Clone)]
pub struct LoadedImage {
    /// Which one.
    pub source: SourceImage,
    /// The whole Part 10 file.
    pub bytes: Vec<u8>,
}

/// What a run found, and how long its stages took.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// Scores and maps, or the reason why there are none.
    pub outcome: RunOutcome,
    /// Of a measured CT: what each voxel is.
    pub masks: Option<VoxelLabels>,
    /// The embedding of each analysed image, of length 1, or in words why there is none; in the order of the outcome's
    /// images.
    pub embeddings: Vec<Result<Vec<f32>, String>>,
    /// Milliseconds per stage, summed over the images; metrics count them by the names of `telemetry::RunStage`.
    pub stage_milliseconds: Vec<(String, f64)>,
}

/// Why a run has no outcome: a fault of the node, not of the images.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The bundle cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsProblem),
    /// The lung segmenter failed.
    #[error("the lung segmenter fails: {0}")]
    Segmenter(#[source] ModelError),
    /// No classifier gave an answer for an image.
    #[error("all {} classifiers of the bundle fail; the first says: {first}", failures.len())]
    AllMembersFailed {
        /// What each said, in the bundle's order.
        failures: Vec<String>,
        /// The first of them.
        first: String,
        /// Until one of them may be asked again, when none was: all were taken out.
        wait: Option<Duration>,
    },
    /// An image cannot be read from where it is kept.
    #[error("{0}")]
    Read(String),
    /// What the overlay of a CT needs cannot be encoded.
    #[error("the sections of the CT cannot be kept: {0}")]
    Sections(String),
    /// Planes of the wrong size: segmenter and manifest contradict each other.
    #[error("the lung segmenter's output cannot be used: {0}")]
    Plane(#[from] PlaneError),
    /// It is a shadow and was in the way of live work.
    #[error("it gives way to a study that somebody waits for")]
    GivesWay,
    /// The worker thread died.
    #[error("the worker that prepares images stopped: {0}")]
    Worker(#[from] JoinError),
}

impl InferError {
    /// Whether another attempt may succeed. A bundle that contradicts itself stays so.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        !matches!(self, Self::Settings(_))
    }

    /// The members answered, and what they said makes no sense together.
    pub(super) fn not_fused() -> Self {
        let first = "the outputs of the classifiers cannot be fused".to_owned();
        Self::AllMembersFailed { failures: vec![first.clone()], first, wait: None }
    }

    /// How long to wait for networks that were taken out before this run came, or for others to finish: it is not its
    /// fault. `None` for everything that the run itself may have caused.
    #[must_use]
    pub const fn wait(&self) -> Option<Duration> {
        match self {
            Self::Segmenter(error) => error.wait(),
            Self::AllMembersFailed { wait, .. } => *wait,
            Self::GivesWay => Some(Duration::from_secs(10)),
            _ => None,
        }
    }
}

/// The chest radiograph pipeline of one bundle.
pub struct CxrPipeline<M> {
    models: Arc<M>,
    bundle: BundleIdentity,
    settings: Arc<PipelineSettings>,
}

/// A decoded image on its canvas, ready for the networks.
struct Prepared {
    gates: Gates,
    placement: Placement,
    /// 0 to 1, padded to a square, in source pixels.
    canvas: Plane,
    /// The same at the segmenter's side.
    segmenter_canvas: Plane,
}

/// An image on its canvas with its lungs, before the classifiers.
pub(super) struct Seen {
    pub(super) gates: Gates,
    pub(super) placement: Placement,
    /// As [`Prepared::canvas`].
    pub(super) canvas: Plane,
    pub(super) lungs: Lungs,
}

/// What the members say together.
pub(super) struct Fused {
    /// Output per class, 0 to 1.
    pub(super) outputs: Vec<f64>,
    /// Of the target class.
    pub(super) output: f64,
    pub(super) members: Vec<MemberScore>,
    pub(super) heat_map: HeatMap,
    pub(super) member_heat_maps: Vec<(String, HeatMap)>,
}

/// What the members see of an image.
pub(super) struct Inputs {
    gates: Gates,
    placement: Placement,
    pub(super) lungs: Lungs,
    /// The inputs of each member, and the part of the canvas that its first input shows.
    pub(super) of_members: Vec<(Vec<Planes>, Frame)>,
}

/// What the members said of an image, all gates passed or not enforced.
struct Answered {
    gates: Gates,
    placement: Placement,
    lungs: Lungs,
    /// The part of the canvas that each member's first input shows.
    frames: Vec<Frame>,
    outputs: Vec<Result<MemberOutput, String>>,
}

/// An image that is left out.
pub(super) struct Exclusion {
    pub(super) refused: Refused,
    /// The checks up to there.
    gates: Vec<GateResult>,
}

/// Why an image is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The gate that stopped it, else [`Refused::FILE`] or [`Refused::SOP_CLASS`].
    pub gate: String,
    /// Coded reason.
    pub reason: ReasonCode,
    /// One sentence without patient data.
    pub words: String,
}

impl Refused {
    /// The file cannot be used.
    pub const FILE: &'static str = "file";
    /// No computed or digital radiograph for presentation.
    pub const SOP_CLASS: &'static str = "header.sop_class";

    /// By a gate that failed.
    #[must_use]
    pub fn by(gate: &GateResult) -> Self {
        Self { gate: gate.id.clone(), reason: gate.reason, words: gate.words.clone() }
    }
}

/// What all gates say of one image, without scores.
#[derive(Debug, Clone, PartialEq)]
pub struct GateCheck {
    /// Every check that was made, in order.
    pub gates: Vec<GateResult>,
    /// Why a run would leave the image out; the checks end there.
    pub refused: Option<Refused>,
    /// The embedding of each member, of length 1, or in words why there is none; empty unless all checks were made.
    pub embeddings: Vec<Result<Vec<f32>, String>>,
}

pub(super) enum Verdict<T> {
    Goes(T),
    Excluded(Exclusion),
}

/// What was found on an image, and its embedding or why it has none.
type Embedded = (ImageAnalysis, Result<Vec<f32>, String>);

/// Milliseconds per stage.
#[derive(Default)]
pub(super) struct StageTimes {
    pub(super) stages: Vec<(String, f64)>,
    /// Renewed with every stage.
    pub(super) progress: Progress,
}

impl StageTimes {
    pub(super) fn of(errand: &Errand) -> Self {
        Self { stages: Vec::new(), progress: errand.progress.clone() }
    }

    pub(super) fn add(&mut self, stage: &str, since: Instant) {
        self.progress.renew();
        let milliseconds = since.elapsed().as_secs_f64() * 1000.0;
        match self.stages.iter_mut().find(|(name, _)| name == stage) {
            Some((_, sum)) => *sum += milliseconds,
            None => self.stages.push((stage.to_owned(), milliseconds)),
        }
    }
}

impl<M: Models> CxrPipeline<M> {
    /// Binds networks to the bundle that they are of.
    ///
    /// # Errors
    /// [`SettingsProblem`] when no image could be analysed with this bundle.
    pub fn new(models: M, bundle: BundleIdentity, settings: PipelineSettings) -> Result<Self, SettingsProblem> {
        settings.check()?;
        let problem = |setting, value: String, expected| Err(SettingsProblem { setting, value, expected });
        if bundle.target_class_idx >= bundle.classes.len() {
            return problem("target_class_idx", bundle.target_class_idx.to_string(), "the index of a class");
        }
        if bundle.members.is_empty() {
            return problem("members", "empty".to_owned(), "at least one classifier");
        }
        if settings.member_inputs.len() != bundle.members.len() || settings.member_inputs.iter().any(Vec::is_empty) {
            let n_inputs = settings.member_inputs.iter().filter(|inputs| !inputs.is_empty()).count();
            return problem("members", format!("{n_inputs} with an input"), "an input for each member");
        }
        if let EmbeddingMethod::Member(name) = &settings.similar_cases.method
            && !bundle.members.iter().any(|member| member.name == *name)
        {
            return problem("similar_cases.method", name.clone(), "the name of a classifier of the bundle");
        }
        if !(0.0..=1.0).contains(&bundle.threshold) {
            return problem("threshold", bundle.threshold.to_string(), "0 to 1");
        }
        Ok(Self { models: Arc::new(models), bundle, settings: Arc::new(settings) })
    }

    /// The same of a bundle without classifiers: its images can be examined and not judged.
    ///
    /// # Errors
    /// [`SettingsProblem`] when no image could be examined with this bundle.
    pub fn of_lungs(models: M, bundle: BundleIdentity, settings: PipelineSettings) -> Result<Self, SettingsProblem> {
        settings.check()?;
        Ok(Self { models: Arc::new(models), bundle, settings: Arc::new(settings) })
    }

    pub(super) fn models(&self) -> &M {
        &self.models
    }

    /// Which bundle this pipeline runs.
    pub const fn bundle(&self) -> &BundleIdentity {
        &self.bundle
    }

    /// Analyses the images of a study one after the other; `read` gets each when its turn comes, so that one at a time
    /// is in memory.
    ///
    /// Images that cannot or must not be analysed are left out with a reason; when none is left, the outcome is
    /// [`RunOutcome::NotAnalysed`]. A failing classifier is recorded and the rest are fused.
    ///
    /// # Errors
    /// [`InferError`] when the networks or the worker fail.
    ///
    /// Cancel safety: dropping the future loses the analysis and nothing else; a decoding that runs is finished on its
    /// thread and thrown away, and until then the errand's progress is shared.
    pub async fn analyse<R, F>(
        &self,
        sources: Vec<SourceImage>,
        errand: &Errand,
        mut read: R,
    ) -> Result<Analysis, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let mut times = StageTimes::of(errand);
        let mut analysed = Vec::new();
        let mut embeddings = Vec::new();
        let mut excluded = Vec::new();
        for source in sources {
            let started = Instant::now();
            let LoadedImage { source, bytes } = read(source).await?;
            times.add("read", started);
            match self.analyse_image(&source, bytes, errand, &mut times).await? {
                Verdict::Goes((analysis, embedding)) => {
                    analysed.push(analysis);
                    embeddings.push(embedding);
                }
                Verdict::Excluded(Exclusion { refused: Refused { reason, words, .. }, .. }) => {
                    excluded.push(ExcludedImage { source, reason, words });
                }
            }
        }
        let outcome = if analysed.is_empty() {
            RunOutcome::NotAnalysed(not_analysed(excluded))
        } else {
            RunOutcome::Analysed(CxrAnalysis { images: analysed, excluded })
        };
        Ok(Analysis { outcome, masks: None, embeddings, stage_milliseconds: times.stages })
    }

    async fn analyse_image(
        &self,
        source: &SourceImage,
        bytes: Vec<u8>,
        errand: &Errand,
        times: &mut StageTimes,
    ) -> Result<Verdict<Embedded>, InferError> {
        let Answered { gates, placement, lungs, frames, outputs } = match self.answers(bytes, errand, times).await? {
            Verdict::Goes(answered) => answered,
            Verdict::Excluded(exclusion) => return Ok(Verdict::Excluded(exclusion)),
        };
        let started = Instant::now();
        let embedding = self.embedding(&outputs);
        let analysis = self.explain(source, placement, gates, &lungs, outputs, frames)?;
        times.add("explain", started);
        Ok(Verdict::Goes((analysis, embedding)))
    }

    /// What all gates say of one image, and its embeddings: for the tables of gates and for fitting them.
    ///
    /// # Errors
    /// [`InferError`] when the networks or the worker fail.
    ///
    /// Cancel safety: as [`CxrPipeline::analyse`].
    pub async fn check_gates(&self, bytes: Vec<u8>, errand: &Errand) -> Result<GateCheck, InferError> {
        let answered = match self.answers(bytes, errand, &mut StageTimes::default()).await? {
            Verdict::Goes(answered) => answered,
            Verdict::Excluded(Exclusion { refused, gates }) => {
                return Ok(GateCheck { gates, refused: Some(refused), embeddings: Vec::new() });
            }
        };
        let embeddings = self.bundle.members.iter().zip(&answered.outputs);
        Ok(GateCheck {
            gates: answered.gates.into_results(),
            refused: None,
            embeddings: embeddings.map(|(member, output)| embedding_of(&member.name, output)).collect(),
        })
    }

    /// From a file to the members' answers, with all gates on the way.
    async fn answers(
        &self,
        bytes: Vec<u8>,
        errand: &Errand,
        times: &mut StageTimes,
    ) -> Result<Verdict<Answered>, InferError> {
        let Inputs { mut gates, placement, lungs, of_members } = match self.inputs(bytes, errand, times).await? {
            Verdict::Goes(inputs) => inputs,
            Verdict::Excluded(exclusion) => return Ok(Verdict::Excluded(exclusion)),
        };
        let started = Instant::now();
        let frames = of_members.iter().map(|(_, frame)| *frame).collect();
        let outputs = self.classify(of_members.into_iter().map(|(inputs, _)| inputs).collect(), errand).await?;
        self.check_answers(&mut gates, &outputs);
        times.add("classify", started);
        Ok(match gates.stopping().map(Refused::by) {
            Some(refused) => Verdict::Excluded(Exclusion { refused, gates: gates.into_results() }),
            None => Verdict::Goes(Answered { gates, placement, lungs, frames, outputs }),
        })
    }

    /// Whether the image is like those of the training, and whether the members agree.
    fn check_answers(&self, gates: &mut Gates, outputs: &[Result<MemberOutput, String>]) {
        if let Some(gate) = &self.settings.gates.features {
            let mut members = self.bundle.members.iter().zip(outputs);
            let embedding = match members.find(|(member, _)| member.name == gate.member) {
                Some((member, output)) => embedding_of(&member.name, output),
                None => Err("the bundle has no such member".to_owned()),
            };
            gates.check_features(gate, embedding.as_deref().map_err(Clone::clone));
        }
        let target = self.bundle.target_class_idx;
        let of_target = outputs.iter().flatten().filter_map(|output| output.probabilities.get(target));
        gates.check_spread(spread(of_target.map(|output| f64::from(*output))), &self.settings.gates);
    }

    /// From a file to what the members see of it, with the gates on the way.
    pub(super) async fn inputs(
        &self,
        bytes: Vec<u8>,
        errand: &Errand,
        times: &mut StageTimes,
    ) -> Result<Verdict<Inputs>, InferError> {
        let enforced = self.bundle.status != BundleStatus::Untrained;
        let Seen { gates, placement, canvas, lungs } = match self.see(bytes, enforced, errand, times).await? {
            Verdict::Goes(seen) => seen,
            Verdict::Excluded(exclusion) => return Ok(Verdict::Excluded(exclusion)),
        };
        let started = Instant::now();
        let (of_members, lungs) = self.compose(canvas, placement, lungs, errand).await?;
        times.add("classify", started);
        Ok(Verdict::Goes(Inputs { gates, placement, lungs, of_members }))
    }

    /// From a file to its canvas and lungs; gates that fail stop it if they are `enforced`.
    pub(super) async fn see(
        &self,
        bytes: Vec<u8>,
        enforced: bool,
        errand: &Errand,
        times: &mut StageTimes,
    ) -> Result<Verdict<Seen>, InferError> {
        let started = Instant::now();
        let settings = Arc::clone(&self.settings);
        let prepared = on_thread(&errand.progress, move || prepare(&bytes, &settings, enforced)).await??;
        times.add("decode", started);
        let Prepared { mut gates, placement, canvas, segmenter_canvas } = match prepared {
            Verdict::Goes(prepared) => prepared,
            Verdict::Excluded(exclusion) => return Ok(Verdict::Excluded(exclusion)),
        };

        let started = Instant::now();
        let side = segmenter_canvas.rows;
        let probabilities =
            self.models.segment(segmenter_canvas.clone(), errand).await.map_err(InferError::Segmenter)?;
        if (probabilities.rows, probabilities.columns, probabilities.values.len()) != (side, side, side * side) {
            return Err(PlaneError::Shape {
                rows: probabilities.rows,
                columns: probabilities.columns,
                values: probabilities.values.len(),
            }
            .into());
        }
        let (lungs, contrast) = on_thread(&errand.progress, move || {
            let lungs = Lungs::from_probabilities(&probabilities, &placement);
            let contrast = lungs.mediastinal_contrast(&segmenter_canvas);
            (lungs, contrast)
        })
        .await?;
        gates.check_lungs(&lungs.measurements, contrast, &self.settings.gates);
        times.add("segment", started);
        if let Some(refused) = gates.stopping().map(Refused::by) {
            return Ok(Verdict::Excluded(Exclusion { refused, gates: gates.into_results() }));
        }
        Ok(Verdict::Goes(Seen { gates, placement, canvas, lungs }))
    }

    /// The inputs of each member with the part of the canvas that its first input shows, on a thread for heavy work.
    pub(super) async fn compose(
        &self,
        canvas: Plane,
        placement: Placement,
        lungs: Lungs,
        errand: &Errand,
    ) -> Result<(Vec<(Vec<Planes>, Frame)>, Lungs), InferError> {
        let settings = Arc::clone(&self.settings);
        let composed = on_thread(&errand.progress, move || {
            classifier_inputs(&settings.member_inputs, &canvas, &placement, &lungs).map(|inputs| (inputs, lungs))
        });
        Ok(composed.await??)
    }

    /// Runs all members at the same time; one entry each, in the bundle's order.
    pub(super) async fn classify(
        &self,
        inputs: Vec<Vec<Planes>>,
        errand: &Errand,
    ) -> Result<Vec<Result<MemberOutput, String>>, InferError> {
        let n_classes = self.bundle.classes.len();
        let target_class_idx = self.bundle.target_class_idx;
        let mut tasks = JoinSet::new();
        for (member_idx, inputs) in inputs.into_iter().enumerate() {
            let (models, errand) = (Arc::clone(&self.models), errand.clone());
            tasks.spawn(
                async move { (member_idx, models.classify(member_idx, inputs, target_class_idx, &errand).await) },
            );
        }
        let mut outputs: Vec<Result<MemberOutput, ModelError>> =
            vec![Err(ModelError::Failed("it stopped without an answer".to_owned())); self.bundle.members.len()];
        while let Some(joined) = tasks.join_next().await {
            // A task that panicked leaves the words above.
            let Ok((member_idx, output)) = joined else { continue };
            if let Some(slot) = outputs.get_mut(member_idx) {
                *slot = output.and_then(|output| checked(output, n_classes).map_err(ModelError::Failed));
            }
        }
        surviving(&self.bundle, outputs)
    }

    /// The vector that similar images are found by. A member that failed leaves none: the vectors of an ensemble with
    /// and without it cannot be compared.
    pub(super) fn embedding(&self, outputs: &[Result<MemberOutput, String>]) -> Result<Vec<f32>, String> {
        let mut parts: Vec<f32> = Vec::new();
        for (member, output) in self.bundle.members.iter().zip(outputs) {
            if let EmbeddingMethod::Member(name) = &self.settings.similar_cases.method
                && *name != member.name
            {
                continue;
            }
            parts.extend(embedding_of(&member.name, output)?);
        }
        normalised(&parts).ok_or_else(|| "the members gave no embedding".to_owned())
    }

    /// How this pipeline searches for similar cases.
    pub fn similar_cases(&self) -> &SimilarCaseSettings {
        &self.settings.similar_cases
    }

    /// Fuses outputs and maps and decides.
    fn explain(
        &self,
        source: &SourceImage,
        placement: Placement,
        gates: Gates,
        lungs: &Lungs,
        outputs: Vec<Result<MemberOutput, String>>,
        frames: Vec<Frame>,
    ) -> Result<ImageAnalysis, InferError> {
        let Fused { outputs: fused, output, members, heat_map, member_heat_maps } = self.fused(outputs, frames)?;
        let said_nothing = MemberScore::say_nothing(&members);
        let (right_lung_heat_fraction, left_lung_heat_fraction) = heat::hot_fractions(&heat_map, lungs);
        let lung_heat_fraction = heat::lung_share(&heat_map, lungs);
        Ok(ImageAnalysis {
            source: source.clone(),
            placement,
            gates: gates.into_results(),
            decision: decide(&self.bundle, output, &members),
            member_spread: member_spread(&members, self.bundle.target_class_idx),
            members,
            fused,
            localised: output >= self.bundle.threshold && !said_nothing,
            heat_map,
            member_heat_maps,
            lung_mask: LungMask {
                side_pixels: lungs.side as u32,
                png_base64: STANDARD.encode(lungs.to_png()),
                area_fraction: lungs.measurements.area_fraction,
            },
            right_lung_heat_fraction,
            left_lung_heat_fraction,
            lung_heat_fraction,
            similar_cases: None,
        })
    }

    /// The members' outputs and maps as one.
    pub(super) fn fused(
        &self,
        outputs: Vec<Result<MemberOutput, String>>,
        frames: Vec<Frame>,
    ) -> Result<Fused, InferError> {
        let target = self.bundle.target_class_idx;
        let logits: Vec<&[f32]> = outputs.iter().flatten().map(|output| output.logits.as_slice()).collect();
        let fused = self.models.fuse(&logits).filter(|fused| fused.iter().all(|output| output.is_finite()));
        let Some((fused, output)) = fused.and_then(|fused| fused.get(target).copied().map(|output| (fused, output)))
        else {
            return Err(InferError::not_fused());
        };

        let mut members = Vec::new();
        let mut member_heat_maps: Vec<(String, HeatMap)> = Vec::new();
        let mut map_weights = Vec::new();
        for ((member, frame), output) in self.bundle.members.iter().zip(frames).zip(outputs) {
            let name = member.name.clone();
            match output {
                Ok(MemberOutput { probabilities, activation_map, .. }) => {
                    let probabilities: Vec<f64> = probabilities.into_iter().map(f64::from).collect();
                    let output_of_target = probabilities.get(target).copied().unwrap_or(0.0);
                    if let Some(map) = activation_map {
                        let plane = Plane { rows: map.rows, columns: map.columns, values: map.values };
                        let map = heat::heat_map(&plane, &map.method, frame);
                        member_heat_maps.push((name.clone(), map));
                        map_weights.push(output_of_target);
                    }
                    members.push(MemberScore { name, probabilities, failure: None });
                }
                Err(failure) => members.push(MemberScore { name, probabilities: Vec::new(), failure: Some(failure) }),
            }
        }
        let weighted: Vec<(&HeatMap, f64)> = member_heat_maps.iter().map(|(_, map)| map).zip(map_weights).collect();
        let heat_map = heat::fuse(&weighted);
        Ok(Fused { outputs: fused, output, members, heat_map, member_heat_maps })
    }
}

/// The features of one member, of length 1.
fn embedding_of(member: &str, output: &Result<MemberOutput, String>) -> Result<Vec<f32>, String> {
    let Ok(output) = output else {
        return Err(format!("member {member} failed, so that the image has no embedding"));
    };
    normalised(&output.embedding).ok_or_else(|| format!("the embedding of member {member} has no direction"))
}

/// A member's output, if it is one: a number per class, and a map that is one.
fn checked(output: MemberOutput, n_classes: usize) -> Result<MemberOutput, String> {
    if output.probabilities.len() != n_classes {
        return Err(format!("it gave {} outputs for {n_classes} classes", output.probabilities.len()));
    }
    let map_values = output.activation_map.iter().flat_map(|map| &map.values);
    let numbers = output.logits.iter().chain(&output.probabilities).chain(map_values);
    if !numbers.into_iter().all(|number| number.is_finite()) {
        return Err("it gave numbers that are not finite".to_owned());
    }
    if let Some(map) = &output.activation_map
        && (map.rows == 0 || map.rows.checked_mul(map.columns) != Some(map.values.len()))
    {
        return Err(format!("its activation map of {} x {} has {} values", map.rows, map.columns, map.values.len()));
    }
    Ok(output)
}

/// As [`CxrPipeline::check_gates`] with the gates on header and picture alone, which ask no network. Blocks while it decodes.
///
/// # Errors
/// [`InferError`] when the picture has no pixels.
pub fn check_gates_before_networks(
    bytes: &[u8],
    status: BundleStatus,
    settings: &PipelineSettings,
) -> Result<GateCheck, InferError> {
    let (gates, refused) = match prepare(bytes, settings, status != BundleStatus::Untrained)? {
        Verdict::Goes(prepared) => (prepared.gates.into_results(), None),
        Verdict::Excluded(Exclusion { refused, gates }) => (gates, Some(refused)),
    };
    Ok(GateCheck { gates, refused, embeddings: Vec::new() })
}

/// Everything that needs the file: header gates, decoding, picture gates, canvas. Heavy: runs on a blocking thread.
fn prepare(part10: &[u8], settings: &PipelineSettings, enforced: bool) -> Result<Verdict<Prepared>, PlaneError> {
    let stopped = |refused, gates: Gates| Ok(Verdict::Excluded(Exclusion { refused, gates: gates.into_results() }));
    let mut gates = Gates::new(enforced);
    let object = match read_object(part10) {
        Ok(object) => object,
        Err(error) => return stopped(unusable(&error), gates),
    };
    let header = ImageHeader::from_object(&object);
    if let Some(words) = header.why_not_a_radiograph() {
        return stopped(
            Refused { gate: Refused::SOP_CLASS.to_owned(), reason: ReasonCode::UnsupportedImage, words },
            gates,
        );
    }
    gates.check_header(&header, &settings.gates);
    if let Some(refused) = gates.stopping().map(Refused::by) {
        return stopped(refused, gates);
    }
    let grey = match decode_grey(&object, settings.decode_limits) {
        Ok(grey) => grey,
        Err(error) => return stopped(unusable(&error), gates),
    };
    drop(object);
    let shown = grey.presentation(settings.use_voi_window);
    let percentiles = canvas::percentiles(&shown, settings.percentile_low, settings.percentile_high);
    gates.check_quality(&shown, percentiles, &settings.gates);
    if let Some(refused) = gates.stopping().map(Refused::by) {
        return stopped(refused, gates);
    }
    let scaled = canvas::percentile_scale(&shown, settings.percentile_low, settings.percentile_high);
    gates.check_picture(&PictureMeasurements::of(&scaled)?, &settings.gates);
    if let Some(refused) = gates.stopping().map(Refused::by) {
        return stopped(refused, gates);
    }
    let (canvas, placement) = canvas::pad_to_square(&scaled)?;
    let side = settings.segmenter_side_pixels as usize;
    let segmenter_canvas = canvas::resize(&canvas, side, side)?;
    Ok(Verdict::Goes(Prepared { gates, placement, canvas, segmenter_canvas }))
}

/// The inputs of each member, and the part of the canvas that its first input shows. Members that want the same share
/// the work. Heavy, as [`prepare`]: cut-outs and equalisation at full resolution.
fn classifier_inputs(
    member_inputs: &[Vec<Recipe>],
    canvas: &Plane,
    placement: &Placement,
    lungs: &Lungs,
) -> Result<Vec<(Vec<Planes>, Frame)>, PlaneError> {
    let mut made: Vec<(&Recipe, Planes, Frame)> = Vec::new();
    let mut of_members = Vec::new();
    for recipes in member_inputs {
        let mut inputs = Vec::new();
        let mut first_frame = Frame::WHOLE;
        for (input_idx, recipe) in recipes.iter().enumerate() {
            let known = made.iter().find(|(known, _, _)| *known == recipe);
            let (input, frame) = if let Some((_, input, frame)) = known {
                (input.clone(), *frame)
            } else {
                let (input, frame) = classifier_input::compose(canvas, placement, lungs, recipe)?;
                made.push((recipe, input.clone(), frame));
                (input, frame)
            };
            if input_idx == 0 {
                first_frame = frame;
            }
            inputs.push(input);
        }
        of_members.push((inputs, first_frame));
    }
    Ok(of_members)
}

/// The canvas that an image becomes, for tests of the preparation.
#[cfg(test)]
pub(super) fn prepared_canvas(part10: &[u8], settings: &PipelineSettings) -> Option<Plane> {
    match prepare(part10, settings, false) {
        Ok(Verdict::Goes(prepared)) => Some(prepared.canvas),
        _ => None,
    }
}

fn unusable(error: &ImagingError) -> Refused {
    let (reason, words) = error.reason_and_words();
    Refused { gate: Refused::FILE.to_owned(), reason, words }
}

/// The reason of a study without any suitable image: that of its images when they agree.
fn not_analysed(excluded: Vec<ExcludedImage>) -> NotAnalysed {
    let first = excluded.first().map(|image| image.reason);
    let reason = match first {
        Some(first) if excluded.iter().all(|image| image.reason == first) => first,
        _ => ReasonCode::NoSuitableImage,
    };
    let mut words: Vec<&str> = Vec::new();
    for image in &excluded {
        if !words.contains(&image.words.as_str()) {
            words.push(&image.words);
        }
    }
    let words = if words.is_empty() { "the study holds no radiograph".to_owned() } else { words.join("; ") };
    NotAnalysed { reason, words, sources: excluded.into_iter().map(|image| image.source).collect() }
}
