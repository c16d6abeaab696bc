//! The CT pipeline: from the images of a study to the measurements of two lungs, and to what networks say of them, if the
//! bundle has some.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc, time::Instant};

use super::{
    CtNetworks,
    ct_lesions::Outlined,
    cxr::{Analysis, InferError, LoadedImage, StageTimes},
    room::{Hold, Placed, Room},
    settings::SettingsProblem,
    thread::on_thread,
};
use crate::{
    imaging::{
        DecodeLimits, ImageHeader, ImagingError, PatientAge,
        ct::{
            BACKGROUND, BAND_LIMITS_HU, Candidate, Choice, DENSITOMETRY_METHOD, HuSlice, LEFT_LUNG, LungLabels,
            NETWORK_METHOD, OtherSeries, RIGHT_LUNG, Refusal, SEGMENTATION_METHOD, ScanInput, SectionError,
            SliceHeader, Stack, Volume, choose_sections, choose_stacks, decode_hu, measure, segment, voxel_labels,
        },
        read_object,
    },
    nn::CtGates,
    types::{
        BundleIdentity, BundleStatus, CtAnalysis, CtClassification, CtLesions, CtLung, CtMethod, CtSection, CtSeries,
        Errand, ExcludedImage, ExcludedSeries, GateResult, NotAnalysed, NotJudged, ReasonCode, RunOutcome, SourceImage,
        Urgency, VoxelLabels,
    },
};

/// Series of a study that are tried, from the best on: each takes a minute.
const MAXIMUM_TRIES: usize = 4;
/// Volume of the left lung divided by that of the right.
const LUNG_RATIO: RangeInclusive<f64> = 0.4..=1.6;
/// Mean density of one lung, in Hounsfield units.
const LUNG_MEAN_HU: RangeInclusive<f64> = -960.0..=-400.0;
/// Largest area of lung in the first and in the last slice, in square centimetres: more is a scan that ends in the lung.
const CUT_CM2: f64 = 15.0;
/// Largest volume of lung at the sides of the images, in millilitres: more is a field of view that cuts the lung off.
const BORDER_ML: f64 = 1.0;
/// Largest volume of what looks like a piece of lung and lies where none is expected, in millilitres: more is a lung that
/// was not found whole.
const DROPPED_ML: f64 = 100.0;

/// The CT pipeline of one bundle.
pub struct CtPipeline {
    bundle: BundleIdentity,
    gates: CtGates,
    networks: Option<CtNetworks>,
    decode_limits: DecodeLimits,
    /// For one volume, which holds its place as long as a thread has it.
    memory: Room,
}

/// What the headers of a study say.
#[derive(Default)]
struct Headers {
    images: Vec<Read>,
    /// Of each of the images.
    slices: Vec<SliceHeader>,
    /// The Series Instance UID of every other image, and why it cannot be read.
    unreadable: Vec<(String, Refusal)>,
}

/// An object of the study whose header can be read.
struct Read {
    source: SourceImage,
    patient_age: Option<PatientAge>,
    body_part: Option<String>,
}

/// The volume of a stack, and what filling it left out.
struct Filled {
    volume: Volume,
    identical: Vec<usize>,
}

/// What the classifiers see of a scan.
pub(super) struct ScanInputs {
    pub(super) volume: Arc<Placed<Volume>>,
    pub(super) labels: Arc<LungLabels>,
    pub(super) input: ScanInput,
}

/// The order in which the images of a study are looked at: a repetition gets them in another than the run did.
fn in_order(a: &SourceImage, b: &SourceImage) -> std::cmp::Ordering {
    a.sop_instance_uid.as_str().cmp(b.sop_instance_uid.as_str()).then(a.sha256.0.cmp(&b.sha256.0))
}

/// What a stack came to, all enforced gates passed.
struct Measured {
    lungs: Vec<CtLung>,
    gates: Vec<GateResult>,
    sections: Vec<CtSection>,
    classification: Option<CtClassification>,
    lesions: Option<CtLesions>,
    /// Why the networks did not look at it.
    not_judged: Option<Refusal>,
    threshold_hu: Option<i16>,
    /// Images that are not in the volume since others have the same place and pixels.
    identical: Vec<usize>,
    masks: VoxelLabels,
}

impl CtPipeline {
    /// Binds the method to the bundle that it runs for, its gates, and its networks.
    ///
    /// # Errors
    /// [`SettingsProblem`] when the bundle has networks and they are not given.
    pub fn new(
        bundle: BundleIdentity,
        gates: CtGates,
        networks: Option<CtNetworks>,
        decode_limits: DecodeLimits,
    ) -> Result<Self, SettingsProblem> {
        if networks.is_none() && bundle.networks().next().is_some() {
            let value = bundle.networks().count().to_string();
            return Err(SettingsProblem { setting: "networks", value, expected: "those of the bundle, loaded" });
        }
        Ok(Self { bundle, gates, networks, decode_limits, memory: Room::new(1) })
    }

    /// Which bundle this pipeline runs.
    #[must_use]
    pub const fn bundle(&self) -> &BundleIdentity {
        &self.bundle
    }

    /// What each network computes with, in the order of [`BundleIdentity::networks`].
    pub(super) fn computing(&self) -> Vec<String> {
        self.networks.as_ref().map(|networks| networks.ensemble.computing()).unwrap_or_default()
    }

    /// Measures the lungs in the best series among `sources` that can be measured. `read` gets each object for its
    /// header, then those of the series that are tried for their pixels: one file of this study and one volume of all
    /// studies that come to this pipeline are in memory. The order of `sources` changes nothing.
    ///
    /// # Errors
    /// [`InferError`] when an object cannot be read or the worker fails; what is wrong with the images is an outcome.
    ///
    /// Cancel safety: dropping the future loses the analysis and nothing else. A thread that computes at that moment ends its
    /// step; until then it has the errand's progress and the place of its volume.
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
        let (outcome, masks) = self.outcome(sources, errand, &mut read, &mut times).await?;
        Ok(Analysis { outcome, masks, embeddings: Vec::new(), stage_milliseconds: times.stages })
    }

    async fn outcome<R, F>(
        &self,
        sources: Vec<SourceImage>,
        errand: &Errand,
        read: &mut R,
        times: &mut StageTimes,
    ) -> Result<(RunOutcome, Option<VoxelLabels>), InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let mut ordered = sources.clone();
        ordered.sort_by(in_order);
        let Headers { images, slices, unreadable } = read_headers(ordered.clone(), read, times).await?;
        let started = Instant::now();
        let choice = on_thread(&errand.progress, move || choose_stacks(&slices, &unreadable)).await?;
        times.add("headers", started);
        let mut place = errand.progress.waiting(self.memory.enter(errand.urgency)).await;
        let hold = place.hold();
        let work = async {
            let mut refused: Vec<Refusal> = Vec::new();
            // The best one that was measured and that the networks could not judge: they may judge a later one.
            let mut not_judged: Option<(usize, Measured)> = None;
            for candidate in choice.candidates.iter().take(MAXIMUM_TRIES) {
                match self.try_stack(&images, &candidate.stack, &hold, errand, read, times).await? {
                    Ok(measured) => match measured.not_judged.clone() {
                        None => return Ok(ct_measured(&images, &choice, &refused, measured, ordered)),
                        Some(refusal) => {
                            not_judged.get_or_insert((refused.len(), measured));
                            refused.push(refusal);
                        }
                    },
                    Err(refusal) => refused.push(refusal),
                }
                // The patient of the other series is the same.
                if refused.last().is_some_and(|refusal| refusal.reason == ReasonCode::AgeOutOfScope) {
                    break;
                }
            }
            if let Some((n_before, measured)) = not_judged {
                refused.truncate(n_before);
                return Ok(ct_measured(&images, &choice, &refused, measured, ordered));
            }
            let Refusal { reason, words } = choice.refusal(&refused);
            Ok((RunOutcome::NotAnalysed(NotAnalysed { reason, words, sources }), None))
        };
        tokio::select! {
            // What a thread computes at that moment is finished there and thrown away; only then the place is free.
            () = place.wanted() => Err(InferError::GivesWay),
            outcome = work => outcome,
        }
    }

    /// One stack from its pixels to its gates. The inner error is what is wrong with it: the next one may do.
    async fn try_stack<R, F>(
        &self,
        images: &[Read],
        stack: &Stack,
        hold: &Hold,
        errand: &Errand,
        read: &mut R,
        times: &mut StageTimes,
    ) -> Result<Result<Measured, Refusal>, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let Filled { volume, identical } = match self.fill(images, stack, read, times).await? {
            Ok(filled) => filled,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let started = Instant::now();
        let volume = Arc::new(hold.on(volume));
        let found = self.lungs(&volume, errand).await?;
        times.add("segment", started);
        let labels = match found {
            Ok(labels) => labels,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let started = Instant::now();
        let first = stack.slices.first().map(|&idx| &images[idx]);
        let enforced = self.bundle.status != BundleStatus::Untrained;
        let mut gates = check_headers(
            stack,
            first.and_then(|image| image.patient_age),
            first.and_then(|image| image.body_part.as_deref()),
            (&self.gates, enforced),
        );
        let (lungs, gates) = on_thread(&errand.progress, {
            let (volume, labels) = (Arc::clone(&volume), Arc::clone(&labels));
            let lung_ml = self.gates.minimum_lung_ml..=self.gates.maximum_lung_ml;
            move || {
                let lungs = measure(&volume, &labels);
                gates.extend(check_lungs(&volume, &labels, &lungs, (&lung_ml, enforced)));
                (lungs, gates)
            }
        })
        .await?;
        times.add("measure", started);
        if let Some(gate) = gates.iter().find(|gate| gate.enforced && !gate.passed) {
            return Ok(Err(Refusal { reason: gate.reason, words: gate.words.clone() }));
        }
        let (mut classification, mut outlined, mut not_judged) = (None, None, None);
        if let Some(networks) = &self.networks {
            let started = Instant::now();
            match networks.classify(&self.bundle, &volume, &labels, errand).await? {
                Some(Err(refusal)) => not_judged = Some(refusal),
                Some(Ok(of_scan)) => {
                    times.add("classify", started);
                    classification = Some(of_scan);
                }
                None => {}
            }
            let started = Instant::now();
            match networks.lesions(&self.bundle, &volume, &labels, errand).await? {
                Some(Err(refusal)) => not_judged = Some(refusal),
                Some(Ok(of_scan)) => {
                    times.add("lesions", started);
                    outlined = Some(of_scan);
                }
                None => {}
            }
        }
        let threshold_hu = labels.threshold_hu;
        let of_classes = classification.iter().flat_map(|scan| &scan.key_slices).map(|key| key.slice);
        let key_slices: Vec<usize> = of_classes.chain(outlined.iter().flat_map(Outlined::key_slices)).collect();
        let (lesions, mask) = outlined.map(|Outlined { lesions, mask }| (lesions, mask)).unzip();
        let keep = move || {
            let sections = choose_sections(&volume, &labels, mask.as_deref(), &key_slices)?;
            Ok::<_, SectionError>((sections, voxel_labels(&volume, Arc::unwrap_or_clone(labels), mask.as_deref())))
        };
        let kept = on_thread(&errand.progress, keep).await?;
        let (sections, masks) = kept.map_err(|error| InferError::Sections(error.to_string()))?;
        Ok(Ok(Measured { lungs, gates, sections, classification, lesions, not_judged, threshold_hu, identical, masks }))
    }

    /// The lungs, by the bundle's network or by threshold. The inner error is what is wrong with the images.
    async fn lungs(
        &self,
        volume: &Arc<Placed<Volume>>,
        errand: &Errand,
    ) -> Result<Result<Arc<LungLabels>, Refusal>, InferError> {
        let by_network = match &self.networks {
            Some(networks) => networks.lungs(volume, errand).await?,
            None => None,
        };
        let found = if let Some(lungs) = by_network {
            lungs
        } else {
            let volume = Arc::clone(volume);
            on_thread(&errand.progress, move || segment(&volume)).await?
        };
        let refusal =
            |error: &dyn std::error::Error| Refusal { reason: ReasonCode::ImageQuality, words: error.to_string() };
        Ok(found.map(Arc::new).map_err(|error| refusal(&error)))
    }

    /// The volume of a series that was measured before, with its lungs and what the classifiers see of it. The inner error
    /// is what is wrong with the images.
    ///
    /// # Errors
    /// As [`analyse`](Self::analyse).
    pub(super) async fn inputs<R, F>(
        &self,
        mut series: Vec<SourceImage>,
        mut read: R,
    ) -> Result<Result<ScanInputs, Refusal>, InferError>
    where
        R: FnMut(SourceImage) -> F,
        F: Future<Output = Result<LoadedImage, InferError>>,
    {
        let refusal = |words: &str| Refusal { reason: ReasonCode::NoSuitableImage, words: words.to_owned() };
        let Some(networks) = &self.networks else { return Ok(Err(refusal("the bundle has no networks"))) };
        let errand = Errand::default();
        let mut times = StageTimes::of(&errand);
        series.sort_by(in_order);
        let Headers { images, slices, unreadable } = read_headers(series, &mut read, &mut times).await?;
        let choice = on_thread(&errand.progress, move || choose_stacks(&slices, &unreadable)).await?;
        let place = self.memory.enter(Urgency::Routine).await;
        let Some(candidate) = choice.candidates.first() else { return Ok(Err(choice.refusal(&[]))) };
        let filled = self.fill(&images, &candidate.stack, &mut read, &mut times).await?;
        let volume = match filled {
            Ok(Filled { volume, .. }) => Arc::new(place.hold().on(volume)),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let labels = match self.lungs(&volume, &errand).await? {
            Ok(labels) => labels,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let input = networks.input(&volume, &labels, &errand).await?;
        Ok(input.map(|input| ScanInputs { volume, labels, input }))
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
        let doubles: HashMap<usize, Vec<usize>> =
            stack.doubles.iter().fold(HashMap::new(), |mut doubles, &(kept, double)| {
                doubles.entry(kept).or_insert_with(Vec::new).push(double);
                doubles
            });
        let mut hu = Vec::with_capacity(size.iter().product());
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
        let slice = on_thread(&times.progress, move || {
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
) -> Result<Headers, InferError>
where
    R: FnMut(SourceImage) -> F,
    F: Future<Output = Result<LoadedImage, InferError>>,
{
    let mut headers = Headers::default();
    for source in sources {
        let started = Instant::now();
        let LoadedImage { source, bytes } = read(source).await?;
        times.add("read", started);
        let started = Instant::now();
        let facts = on_thread(&times.progress, move || {
            let object = read_object(&bytes)?;
            let header = ImageHeader::from_object(&object);
            // The code says more than the old text, where both are there.
            let body_part = header.anatomic_region.map(|region| region.meaning).or(header.body_part_examined);
            Ok::<_, ImagingError>((SliceHeader::from_object(&object), header.patient_age, body_part))
        })
        .await?;
        times.add("headers", started);
        // The index knows the series of every object, also where a copy of the header is damaged.
        let series_instance_uid = source.series_instance_uid.as_str().to_owned();
        match facts {
            Ok((slice, patient_age, body_part)) => {
                headers.slices.push(SliceHeader { series_instance_uid, ..slice });
                headers.images.push(Read { source, patient_age, body_part });
            }
            Err(error) => {
                let (reason, words) = error.reason_and_words();
                let refusal = Refusal { reason, words };
                headers.unreadable.push((series_instance_uid, refusal));
            }
        }
    }
    Ok(headers)
}

fn undecodable(error: &ImagingError, number: usize, stack: &Stack) -> Refusal {
    let (reason, words) = error.reason_and_words();
    Refusal { reason, words: format!("slice {} of {} has no pixels: {words}", number + 1, stack.slices.len()) }
}

/// The outcome of the candidate after those that were `refused`, with what each voxel is; `sources` are all images of the
/// study.
fn ct_measured(
    images: &[Read],
    choice: &Choice,
    refused: &[Refusal],
    measured: Measured,
    sources: Vec<SourceImage>,
) -> (RunOutcome, Option<VoxelLabels>) {
    let (why_chosen, other_series) = choice.explain(refused).unwrap_or_default();
    let excluded_series = excluded_series(sources, other_series);
    let candidate = &choice.candidates[refused.len()];
    let (analysis, masks) = ct_analysis(images, candidate, why_chosen, measured, excluded_series);
    (RunOutcome::CtMeasured(Box::new(analysis)), Some(masks))
}

fn ct_analysis(
    images: &[Read],
    Candidate { stack, left_out, .. }: &Candidate,
    why_chosen: String,
    Measured { lungs, gates, sections, classification, lesions, not_judged, threshold_hu, identical, masks }: Measured,
    excluded_series: Vec<ExcludedSeries>,
) -> (CtAnalysis, VoxelLabels) {
    let stacked: Vec<SourceImage> = stack.slices.iter().map(|&idx| images[idx].source.clone()).collect();
    let identical = identical.into_iter().map(|idx| {
        let words = "the image lies at the position of another and has the same pixels".to_owned();
        (idx, Refusal { reason: ReasonCode::IdenticalImage, words })
    });
    let excluded = left_out
        .iter()
        .cloned()
        .chain(identical)
        .map(|(idx, Refusal { reason, words })| ExcludedImage { source: images[idx].source.clone(), reason, words })
        .collect();
    let analysis = CtAnalysis {
        series: CtSeries {
            // A stack has slices.
            series_instance_uid: stacked[0].series_instance_uid.clone(),
            acquisition_number: stack.acquisition_number,
            images: stacked,
            why_chosen,
            size: stack.size(),
            spacing_mm: stack.spacing_mm,
            slice_thickness_mm: stack.slice_thickness_mm,
            convolution_kernel: stack.convolution_kernel.clone(),
            columns_reversed: stack.columns_reversed,
            rows_reversed: stack.rows_reversed,
        },
        gates,
        method: CtMethod {
            segmentation: if threshold_hu.is_some() { SEGMENTATION_METHOD } else { NETWORK_METHOD }.to_owned(),
            densitometry: DENSITOMETRY_METHOD.to_owned(),
            threshold_hu,
            band_limits_hu: BAND_LIMITS_HU,
        },
        lungs,
        sections,
        classification,
        lesions,
        not_judged: not_judged.map(|Refusal { reason, words }| NotJudged { reason, words }),
        excluded_series,
        excluded,
    };
    (analysis, masks)
}

fn excluded_series(sources: Vec<SourceImage>, other_series: Vec<OtherSeries>) -> Vec<ExcludedSeries> {
    let mut by_series: HashMap<String, Vec<SourceImage>> = HashMap::new();
    for source in sources {
        by_series.entry(source.series_instance_uid.as_str().to_owned()).or_default().push(source);
    }
    other_series
        .into_iter()
        .filter_map(|OtherSeries { series_instance_uid, images, refusal: Refusal { reason, words } }| {
            let sources = by_series.remove(&series_instance_uid)?;
            let first = sources.first()?;
            Some(ExcludedSeries {
                series_instance_uid: first.series_instance_uid.clone(),
                modality: first.modality.clone(),
                images,
                reason,
                words,
                sources,
            })
        })
        .collect()
}

/// What the headers of the stack say of patient, body part and reconstruction.
fn check_headers(
    stack: &Stack,
    age: Option<PatientAge>,
    body_part: Option<&str>,
    (gates, enforced): (&CtGates, bool),
) -> Vec<GateResult> {
    let (minimum_age_years, maximum_mm) = (gates.minimum_age_years, gates.maximum_slice_thickness_mm);
    let gate = |id: &str, passed: bool, reason: ReasonCode, words: String| GateResult {
        id: id.to_owned(),
        passed,
        enforced,
        reason,
        words,
    };
    let (is_old_enough, words) = match age {
        None => (true, "age not stated".to_owned()),
        Some(age) if age.is_at_least(minimum_age_years) => {
            (true, format!("the patient is at least {minimum_age_years} years old"))
        }
        Some(_) => (false, format!("the patient is younger than {minimum_age_years} years")),
    };
    let age = gate("header.age", is_old_enough, ReasonCode::AgeOutOfScope, words);
    let accepted = &gates.accepted_body_parts;
    let expected = if *accepted == CtGates::default().accepted_body_parts {
        "one with the chest expected".to_owned()
    } else {
        let words: Vec<&str> = accepted.iter().filter(|word| !word.is_empty()).map(String::as_str).collect();
        format!("one with {} expected", words.join(" or "))
    };
    let (is_accepted, words) = match body_part {
        None if accepted.iter().any(String::is_empty) => (true, "body part not stated".to_owned()),
        None => (false, format!("body part not stated, {expected}")),
        Some(part) => (holds_one(part, accepted), format!("the body part is {part}, {expected}")),
    };
    let body_part = gate("header.body_part", is_accepted, ReasonCode::NoSuitableImage, words);
    let (is_thin, words) = match stack.slice_thickness_mm {
        None => (true, "one slice thickness is not stated".to_owned()),
        Some(mm) => (mm <= maximum_mm, format!("the slices are {mm:.2} mm thick, at most {maximum_mm} mm expected")),
    };
    let thickness = gate("header.slice_thickness", is_thin, ReasonCode::ImageQuality, words);
    vec![age, body_part, thickness]
}

/// Whether a body part, as a CT names it, has one of these words in it.
fn holds_one(body_part: &str, words: &[String]) -> bool {
    let part = body_part.to_ascii_uppercase();
    words.iter().any(|word| !word.is_empty() && part.contains(word))
}

/// Whether what was found can be two lungs of such a volume, all of them.
fn check_lungs(
    volume: &Volume,
    found: &LungLabels,
    lungs: &[CtLung],
    (lung_ml, enforced): (&RangeInclusive<f64>, bool),
) -> Vec<GateResult> {
    let gate = |id: &str, passed: bool, reason: ReasonCode, words: String| GateResult {
        id: id.to_owned(),
        passed,
        enforced,
        reason,
        words,
    };
    let mut gates = Vec::new();
    for lung in lungs {
        let side = lung.side.name();
        let ml = lung.whole.volume_ml;
        gates.push(gate(
            &format!("ct_lung.volume.{side}"),
            lung_ml.contains(&ml),
            ReasonCode::LungMask,
            format!("the {side} lung has {ml:.0} ml of air, {} to {} ml expected", lung_ml.start(), lung_ml.end()),
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
    let dropped_ml = found.dropped_voxels as f64 * volume.voxel_ml();
    gates.push(gate(
        "ct_lung.pieces",
        dropped_ml <= DROPPED_ML,
        ReasonCode::LungMask,
        format!(
            "{dropped_ml:.0} ml of what looks like lung lie apart from the lungs and are not measured, at most \
             {DROPPED_ML} expected"
        ),
    ));
    if found.threshold_hu.is_none() {
        return gates;
    }
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
