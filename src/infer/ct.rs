//! The CT pipeline: from the images of a study to the measurements of two lungs, without any network.

use std::{collections::HashMap, ops::RangeInclusive, time::Instant};

use tokio::task::spawn_blocking;

use super::{
    cxr::{Analysis, InferError, LoadedImage, StageTimes},
    settings::SettingsProblem,
};
use crate::{
    imaging::{
        DecodeLimits, ImageHeader, ImagingError, PatientAge,
        ct::{
            BACKGROUND, BAND_LIMITS_HU, DENSITOMETRY_METHOD, HuSlice, LEFT_LUNG, LungLabels, RIGHT_LUNG, Refusal,
            SEGMENTATION_METHOD, SectionError, SliceHeader, Stack, Volume, choose_sections, choose_stack, decode_hu,
            measure, segment,
        },
        read_object,
    },
    types::{
        BundleIdentity, BundleStatus, CtAnalysis, CtLung, CtMethod, CtSeries, ExcludedImage, ExcludedSeries,
        GateResult, NotAnalysed, ReasonCode, RunOutcome, SourceImage,
    },
};

/// Largest volume: at three bytes a voxel about 1.2 GB.
const MAXIMUM_VOXELS: usize = 400_000_000;
/// Youngest patient: the limits below are those of adults.
const MINIMUM_AGE_YEARS: u32 = 18;
/// Volume of one lung, in millilitres.
const LUNG_ML: RangeInclusive<f64> = 300.0..=6000.0;
/// Volume of the left lung divided by that of the right.
const LUNG_RATIO: RangeInclusive<f64> = 0.4..=1.6;
/// Mean density of one lung, in Hounsfield units.
const LUNG_MEAN_HU: RangeInclusive<f64> = -960.0..=-400.0;
/// Largest area of lung in the first and in the last slice, in square centimetres: more is a scan that ends in the lung.
const CUT_CM2: f64 = 15.0;
/// Largest volume of lung at the sides of the images, in millilitres: more is a field of view that cuts the lung off.
const BORDER_ML: f64 = 1.0;

/// The CT pipeline of one bundle.
pub struct CtPipeline {
    bundle: BundleIdentity,
    decode_limits: DecodeLimits,
}

/// An object of the study with what its header says.
struct Read {
    source: SourceImage,
    header: SliceHeader,
    patient_age: Option<PatientAge>,
}

/// The volume of a stack, and what filling it left out.
struct Filled {
    volume: Volume,
    identical: Vec<usize>,
}

impl CtPipeline {
    /// Binds the method to the bundle that it runs for.
    ///
    /// # Errors
    /// [`SettingsProblem`] when the bundle has networks, which this pipeline would ignore.
    pub fn new(bundle: BundleIdentity, decode_limits: DecodeLimits) -> Result<Self, SettingsProblem> {
        if bundle.networks().next().is_some() {
            let value = bundle.networks().count().to_string();
            return Err(SettingsProblem { setting: "networks", value, expected: "none in a `ct_measurement` bundle" });
        }
        Ok(Self { bundle, decode_limits })
    }

    /// Which bundle this pipeline runs.
    #[must_use]
    pub const fn bundle(&self) -> &BundleIdentity {
        &self.bundle
    }

    /// Measures the lungs in the best series among `sources`. `read` gets each object twice, first for its header, then,
    /// if it belongs to the chosen series, for its pixels: one file and one volume are in memory.
    ///
    /// # Errors
    /// [`InferError`] when an object cannot be read or the worker fails; what is wrong with the images is an outcome.
    ///
    /// Cancel safety: dropping the future loses the analysis and nothing else.
    pub async fn analyse<R, F>(&self, sources: Vec<SourceImage>, mut read: R) -> Result<Analysis, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let mut times = StageTimes::default();
        let outcome = self.outcome(sources, &mut read, &mut times).await?;
        Ok(Analysis { outcome, embeddings: Vec::new(), stage_milliseconds: times.stages })
    }

    async fn outcome<R, F>(
        &self,
        sources: Vec<SourceImage>,
        read: &mut R,
        times: &mut StageTimes,
    ) -> Result<RunOutcome, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let refused = |refusal: Refusal, sources: Vec<SourceImage>| {
            let Refusal { reason, words } = refusal;
            Ok(RunOutcome::NotAnalysed(NotAnalysed { reason, words, sources }))
        };
        let (images, unreadable) = read_headers(sources.clone(), read, times).await?;
        let headers: Vec<SliceHeader> = images.iter().map(|image| image.header.clone()).collect();
        let choice = choose_stack(&headers);
        let Some((stack, why_chosen)) = &choice.chosen else {
            let refusal = match unreadable.first() {
                Some(first) if images.is_empty() => Refusal { reason: first.reason, words: first.words.clone() },
                _ => choice.refusal(&headers),
            };
            return refused(refusal, sources);
        };
        let stacked: Vec<SourceImage> = stack.slices.iter().map(|&idx| images[idx].source.clone()).collect();
        let filled = match self.fill(&images, stack, read, times).await? {
            Ok(filled) => filled,
            Err(refusal) => return refused(refusal, stacked),
        };
        let Filled { volume, identical } = filled;
        let started = Instant::now();
        let (volume, lungs) = spawn_blocking(move || {
            let lungs = segment(&volume);
            (volume, lungs)
        })
        .await?;
        times.add("segment", started);
        let started = Instant::now();
        let age = stack.slices.first().and_then(|&idx| images[idx].patient_age);
        let enforced = self.bundle.status != BundleStatus::Untrained;
        let (measured, gates, sections, threshold_hu) = spawn_blocking(move || {
            let measured = measure(&volume, &lungs);
            let gates = check(&volume, &lungs, &measured, age, enforced);
            let sections = choose_sections(&volume, &lungs);
            (measured, gates, sections, lungs.threshold_hu)
        })
        .await?;
        times.add("measure", started);
        if let Some(gate) = gates.iter().find(|gate| gate.enforced && !gate.passed) {
            return refused(Refusal { reason: gate.reason, words: gate.words.clone() }, stacked);
        }
        let sections = sections.map_err(|error: SectionError| InferError::Sections(error.to_string()))?;
        let mut excluded: Vec<ExcludedImage> = choice
            .left_out
            .iter()
            .map(|(idx, refusal)| (*idx, refusal.clone()))
            .chain(identical.into_iter().map(|idx| {
                let words = "the image lies at the position of another and has the same pixels".to_owned();
                (idx, Refusal { reason: ReasonCode::IdenticalImage, words })
            }))
            .map(|(idx, Refusal { reason, words })| ExcludedImage { source: images[idx].source.clone(), reason, words })
            .collect();
        excluded.extend(unreadable);
        Ok(RunOutcome::CtMeasured(Box::new(CtAnalysis {
            series: series(&stacked, stack, why_chosen),
            gates,
            method: CtMethod {
                segmentation: SEGMENTATION_METHOD.to_owned(),
                densitometry: DENSITOMETRY_METHOD.to_owned(),
                threshold_hu,
                band_limits_hu: BAND_LIMITS_HU,
            },
            lungs: measured,
            sections,
            excluded_series: excluded_series(&images, choice.other_series),
            excluded,
        })))
    }

    /// Decodes the stack slice by slice. The inner error is what is wrong with the images.
    async fn fill<R, F>(
        &self,
        images: &[Read],
        stack: &Stack,
        read: &mut R,
        times: &mut StageTimes,
    ) -> Result<Result<Filled, Refusal>, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let size = stack.size();
        let voxels = size.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
        let Some(voxels) = voxels.filter(|voxels| *voxels <= MAXIMUM_VOXELS) else {
            let [columns, rows, slices] = size;
            let words = format!("{columns} x {rows} x {slices} voxels, at most {MAXIMUM_VOXELS} are read");
            return Ok(Err(Refusal { reason: ReasonCode::UnsupportedImage, words }));
        };
        let doubles: HashMap<usize, Vec<usize>> =
            stack.doubles.iter().fold(HashMap::new(), |mut doubles, &(kept, double)| {
                doubles.entry(kept).or_insert_with(Vec::new).push(double);
                doubles
            });
        let mut hu = Vec::with_capacity(voxels);
        let mut identical = Vec::new();
        for (number, &idx) in stack.slices.iter().enumerate() {
            let slice = match self.decode(&images[idx], stack, read, times).await? {
                Ok(slice) => slice,
                Err(error) => return Ok(Err(undecodable(&error, number, stack))),
            };
            for &double in doubles.get(&idx).into_iter().flatten() {
                let same = match self.decode(&images[double], stack, read, times).await? {
                    Ok(other) => other == slice,
                    Err(error) => return Ok(Err(undecodable(&error, number, stack))),
                };
                if !same {
                    let words = format!(
                        "two images of one series lie at the position of slice {} of {} and differ",
                        number + 1,
                        stack.slices.len()
                    );
                    return Ok(Err(Refusal { reason: ReasonCode::DuplicatePosition, words }));
                }
                identical.push(double);
            }
            hu.extend_from_slice(&slice.hu);
        }
        Ok(Ok(Filled { volume: Volume { size, spacing_mm: stack.spacing_mm, hu }, identical }))
    }

    /// One slice, turned to the patient's axes.
    async fn decode<R, F>(
        &self,
        image: &Read,
        stack: &Stack,
        read: &mut R,
        times: &mut StageTimes,
    ) -> Result<Result<HuSlice, ImagingError>, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let started = Instant::now();
        let LoadedImage { bytes, .. } = read(image.source.clone()).await?;
        times.add("read", started);
        let started = Instant::now();
        let limits = self.decode_limits;
        let (columns_reversed, rows_reversed) = (stack.columns_reversed, stack.rows_reversed);
        let slice = spawn_blocking(move || {
            let mut slice = decode_hu(&read_object(&bytes)?, limits)?;
            slice.turn(columns_reversed, rows_reversed);
            Ok(slice)
        })
        .await?;
        times.add("decode", started);
        Ok(slice)
    }
}

/// Reads every header; what cannot be parsed is told with its reason.
async fn read_headers<R, F>(
    sources: Vec<SourceImage>,
    read: &mut R,
    times: &mut StageTimes,
) -> Result<(Vec<Read>, Vec<ExcludedImage>), InferError>
where
    R: FnMut(SourceImage) -> F,
    F: Future<Output = Result<LoadedImage, InferError>>,
{
    let mut images = Vec::new();
    let mut unreadable = Vec::new();
    for source in sources {
        let started = Instant::now();
        let LoadedImage { source, bytes } = read(source).await?;
        times.add("read", started);
        let started = Instant::now();
        let facts = spawn_blocking(move || {
            let object = read_object(&bytes)?;
            let age = ImageHeader::from_object(&object).patient_age;
            Ok::<_, ImagingError>((SliceHeader::from_object(&object), age))
        })
        .await?;
        times.add("headers", started);
        match facts {
            Ok((mut header, patient_age)) => {
                // The index knows the series of every object, also where a copy of the header is damaged.
                source.series_instance_uid.as_str().clone_into(&mut header.series_instance_uid);
                images.push(Read { source, header, patient_age });
            }
            Err(error) => {
                let (reason, words) = error.reason_and_words();
                unreadable.push(ExcludedImage { source, reason, words });
            }
        }
    }
    Ok((images, unreadable))
}

fn undecodable(error: &ImagingError, number: usize, stack: &Stack) -> Refusal {
    let (reason, words) = error.reason_and_words();
    Refusal { reason, words: format!("slice {} of {} has no pixels: {words}", number + 1, stack.slices.len()) }
}

fn series(stacked: &[SourceImage], stack: &Stack, why_chosen: &str) -> CtSeries {
    CtSeries {
        // A stack has slices.
        series_instance_uid: stacked[0].series_instance_uid.clone(),
        acquisition_number: stack.acquisition_number,
        images: stacked.to_vec(),
        why_chosen: why_chosen.to_owned(),
        size: stack.size(),
        spacing_mm: stack.spacing_mm,
        slice_thickness_mm: stack.slice_thickness_mm,
        convolution_kernel: stack.convolution_kernel.clone(),
        columns_reversed: stack.columns_reversed,
        rows_reversed: stack.rows_reversed,
    }
}

fn excluded_series(images: &[Read], other_series: Vec<(String, Refusal)>) -> Vec<ExcludedSeries> {
    let of = |uid: &str| {
        let uid = uid.to_owned();
        images.iter().filter(move |image| image.source.series_instance_uid.as_str() == uid)
    };
    other_series
        .into_iter()
        .filter_map(|(uid, Refusal { reason, words })| {
            let first = of(&uid).next()?;
            Some(ExcludedSeries {
                series_instance_uid: first.source.series_instance_uid.clone(),
                modality: first.source.modality.clone(),
                images: of(&uid).count(),
                reason,
                words,
            })
        })
        .collect()
}

/// Whether what was found can be the lungs of an adult, all of them.
fn check(
    volume: &Volume,
    found: &LungLabels,
    lungs: &[CtLung],
    age: Option<PatientAge>,
    enforced: bool,
) -> Vec<GateResult> {
    let gate = |id: &str, passed: bool, reason: ReasonCode, words: String| GateResult {
        id: id.to_owned(),
        passed,
        enforced,
        reason,
        words,
    };
    let (is_adult, words) = match age {
        None => (true, "age not stated".to_owned()),
        Some(age) if age.is_at_least(MINIMUM_AGE_YEARS) => {
            (true, format!("the patient is at least {MINIMUM_AGE_YEARS} years old"))
        }
        Some(_) => (false, format!("the patient is younger than {MINIMUM_AGE_YEARS} years")),
    };
    let mut gates = vec![gate("header.age", is_adult, ReasonCode::AgeOutOfScope, words)];
    for lung in lungs {
        let side = lung.side.name();
        let ml = lung.whole.volume_ml;
        gates.push(gate(
            &format!("ct_lung.volume.{side}"),
            LUNG_ML.contains(&ml),
            ReasonCode::LungMask,
            format!("the {side} lung has {ml:.0} ml of air, {} to {} ml expected", LUNG_ML.start(), LUNG_ML.end()),
        ));
        let mean = lung.whole.mean_hu;
        let found = mean.map_or_else(|| "no value".to_owned(), |mean| format!("{mean:.0} HU"));
        gates.push(gate(
            &format!("ct_lung.density.{side}"),
            mean.is_some_and(|mean| LUNG_MEAN_HU.contains(&mean)),
            ReasonCode::LungMask,
            format!(
                "the mean of the {side} lung is {found}, {} to {} HU expected",
                LUNG_MEAN_HU.start(),
                LUNG_MEAN_HU.end()
            ),
        ));
    }
    let ratio = match lungs {
        [right, left] if right.whole.volume_ml > 0.0 => left.whole.volume_ml / right.whole.volume_ml,
        _ => 0.0,
    };
    gates.push(gate(
        "ct_lung.ratio",
        LUNG_RATIO.contains(&ratio),
        ReasonCode::LungMask,
        format!("the left lung is {ratio:.2} times the right, {} to {} expected", LUNG_RATIO.start(), LUNG_RATIO.end()),
    ));
    let pixel_cm2 = volume.spacing_mm[0] * volume.spacing_mm[1] / 100.0;
    let pixels = volume.slice_pixels().max(1);
    let lung_cm2 = |slice: Option<&[u8]>| {
        let lung = slice.unwrap_or_default().iter().filter(|label| [RIGHT_LUNG, LEFT_LUNG].contains(label));
        lung.count() as f64 * pixel_cm2
    };
    let (lowest, highest) =
        (lung_cm2(found.labels.chunks_exact(pixels).next()), lung_cm2(found.labels.chunks_exact(pixels).next_back()));
    gates.push(gate(
        "ct_lung.complete",
        lowest <= CUT_CM2 && highest <= CUT_CM2,
        ReasonCode::LungMask,
        format!(
            "{lowest:.0} cm2 of lung in the lowest slice, {highest:.0} in the highest, at most {CUT_CM2} expected: more \
             is a scan that ends within the lung"
        ),
    ));
    let border_ml = found.border_pixels as f64 * volume.voxel_ml();
    gates.push(gate(
        "ct_lung.field_of_view",
        border_ml <= BORDER_ML,
        ReasonCode::LungMask,
        format!("{border_ml:.1} ml of lung at the border of the images, at most {BORDER_ML} expected"),
    ));
    let labelled = found.labels.iter().any(|label| *label != BACKGROUND);
    let words = match (found.airway_found, labelled) {
        (true, _) => "trachea found and taken out",
        (false, true) => "no trachea found: the large airways may be part of the lungs",
        (false, false) => "neither trachea nor lungs found",
    };
    gates.push(GateResult {
        enforced: false,
        ..gate("ct_lung.airway", found.airway_found, ReasonCode::LungMask, words.to_owned())
    });
    gates
}
