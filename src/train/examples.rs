//! From a data set to what networks learn from: pictures in memory, prepared as they are at work.
//!
//! A picture is decoded, scaled and put on its canvas once. For training it is changed at a smaller working size and then
//! composed with the very recipe of inference; for validation the input of inference itself is kept. The lungs of a
//! classifier's picture are always a segmenter's, never the list's: masks that only some films have would tell the label.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
};

use tch::Tensor;

use super::{
    augmentation::{Augmentation, Stream},
    error::TrainError,
    fit::{Event, Example, Examples, Observer, Target},
    record::{BUNDLE_FOLDER, RunRecord},
    sample::Sample,
};
use crate::{
    imaging::{
        Plane, PlaneError, canvas,
        classifier_input::{Recipe, compose},
        lungs::{BACKGROUND, Lungs},
    },
    nn::{Bundle, Preprocessing, Trainable, VoiMode, segmenter_input},
    types::{Device, Placement},
};

/// A picture on its canvas at source size, and at the side that a network or augmentation works on.
struct Canvas {
    whole: Plane,
    placement: Placement,
    small: Plane,
    small_placement: Placement,
}

impl Canvas {
    /// As the pipeline prepares a picture.
    fn of(sample: &Sample, preprocessing: &Preprocessing, side: usize) -> Result<Self, TrainError> {
        let shown = sample.grey(preprocessing.voi == VoiMode::Window)?;
        let plane = |error| TrainError::Plane { file: sample.file.clone(), error };
        let scaled = canvas::percentile_scale(&shown, preprocessing.percentile_low, preprocessing.percentile_high);
        let (whole, placement) = canvas::pad_to_square(&scaled).map_err(plane)?;
        let small = canvas::resize(&whole, side, side).map_err(plane)?;
        Ok(Self { whole, placement, small, small_placement: scaled_placement(&placement, side) })
    }
}

/// Where the picture lies on its canvas after the canvas was resized.
fn scaled_placement(placement: &Placement, side: usize) -> Placement {
    let factor = side as f64 / f64::from(placement.side.max(1));
    let scaled = |length: u32| (f64::from(length) * factor).round() as u32;
    let (pad_top, pad_left) = (scaled(placement.pad_top), scaled(placement.pad_left));
    Placement {
        source_rows: scaled(placement.source_rows).clamp(1, side as u32 - pad_top.min(side as u32 - 1)),
        source_columns: scaled(placement.source_columns).clamp(1, side as u32 - pad_left.min(side as u32 - 1)),
        side: side as u32,
        pad_top,
        pad_left,
    }
}

/// Prepares every sample, on as many threads as the machine has, and takes the results in their order.
fn prepare_all<T: Send>(
    samples: &[&Sample],
    observer: Observer<'_>,
    prepare: impl Fn(usize, &Sample) -> Result<T, TrainError> + Sync,
    mut take: impl FnMut(usize, T) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(n_threads);
        for _ in 0..n_threads {
            let (sender, next, prepare) = (sender.clone(), &next, &prepare);
            scope.spawn(move || {
                loop {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    let Some(sample) = samples.get(idx) else { return };
                    if sender.send((idx, prepare(idx, sample))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (done, (idx, prepared)) in receiver.iter().enumerate() {
            take(idx, prepared?)?;
            observer(Event::Reading { done: done + 1, of: samples.len() });
        }
        Ok(())
    })
}

/// Pictures with the masks of the list.
pub(super) struct LungExamples {
    side: usize,
    augmentation: Augmentation,
    /// Canvas, where the picture lies, and 1 where lung is.
    pictures: Vec<(Plane, Placement, Plane)>,
}

impl LungExamples {
    /// # Errors
    /// Names the file that cannot be used.
    pub(super) fn read(
        samples: &[&Sample],
        preprocessing: &Preprocessing,
        side: usize,
        augmentation: Augmentation,
        observer: Observer<'_>,
    ) -> Result<Self, TrainError> {
        let mut pictures: Vec<Option<(Plane, Placement, Plane)>> = samples.iter().map(|_| None).collect();
        prepare_all(
            samples,
            observer,
            |_, sample| {
                let canvas = Canvas::of(sample, preprocessing, side)?;
                let plane = |error: PlaneError| TrainError::Plane { file: sample.file.clone(), error };
                let Placement { source_rows, source_columns, .. } = canvas.placement;
                let mask = sample.lung_mask(source_rows as usize, source_columns as usize)?;
                let mask = mask.ok_or_else(|| {
                    TrainError::Data(format!("`{}` has no mask: take it out of the list", sample.file.display()))
                })?;
                let (mask, _) = canvas::pad_to_square(&mask).map_err(plane)?;
                let mask = binary(canvas::resize(&mask, side, side).map_err(plane)?);
                Ok((canvas.small, canvas.small_placement, mask))
            },
            |idx, picture| {
                if let Some(slot) = pictures.get_mut(idx) {
                    *slot = Some(picture);
                }
                Ok(())
            },
        )?;
        Ok(Self { side, augmentation, pictures: pictures.into_iter().flatten().collect() })
    }

    fn picture(&self, image: usize) -> Result<&(Plane, Placement, Plane), TrainError> {
        self.pictures.get(image).ok_or_else(|| TrainError::Internal(format!("there is no picture {image}")))
    }
}

impl Examples for LungExamples {
    fn shape(&self) -> [i64; 3] {
        [1, self.side as i64, self.side as i64]
    }

    fn augmented(&self, image: usize, mut stream: Stream) -> Result<Example, TrainError> {
        let (canvas, placement, mask) = self.picture(image)?;
        let changes = self.augmentation.draw(&mut stream);
        let mut canvas = canvas.clone();
        changes.shade(&mut canvas, placement);
        let input = segmenter_input(&changes.warp(&canvas).values);
        Ok(Example { input, target: Target::Mask(binary(changes.warp(mask)).values) })
    }

    fn plain(&self, image: usize) -> Result<Example, TrainError> {
        let (canvas, _, mask) = self.picture(image)?;
        Ok(Example { input: segmenter_input(&canvas.values), target: Target::Mask(mask.values.clone()) })
    }
}

fn binary(mut mask: Plane) -> Plane {
    for value in &mut mask.values {
        *value = if *value >= 0.5 { 1.0 } else { 0.0 };
    }
    mask
}

/// Pictures with predicted lungs and a class.
pub(super) struct ClassExamples {
    recipe: Recipe,
    augmentation: Augmentation,
    pictures: Vec<ClassPicture>,
    /// The output of each picture that is to be learned; classes, until sub-classes are known.
    pub(super) outputs: Vec<usize>,
}

struct ClassPicture {
    canvas: Plane,
    placement: Placement,
    lungs: Lungs,
    /// The input of inference.
    plain: Vec<f32>,
}

impl ClassExamples {
    /// Reads every sample and finds its lungs with a segmenter that was not trained on its patient.
    ///
    /// # Errors
    /// Names the file that cannot be used, or the patient whom every segmenter knows.
    pub(super) fn read(
        samples: &[&Sample],
        outputs: Vec<usize>,
        preprocessing: &Preprocessing,
        (augmentation, working_scale): (Augmentation, f64),
        segmenters: &Segmenters,
        observer: Observer<'_>,
    ) -> Result<Self, TrainError> {
        let recipe = crate::infer::recipe(preprocessing);
        let side = (recipe.side_pixels as f64 * working_scale).round() as usize;
        let chosen = samples.iter().map(|sample| segmenters.choose(&sample.patient)).collect::<Result<Vec<_>, _>>()?;
        let sides: Vec<usize> = chosen.iter().map(|segmenter| segmenter.side).collect();
        let mut pictures: Vec<Option<ClassPicture>> = samples.iter().map(|_| None).collect();
        let mut without_lungs = 0;
        prepare_all(
            samples,
            observer,
            |idx, sample| {
                let canvas = Canvas::of(sample, preprocessing, side)?;
                let plane = |error| TrainError::Plane { file: sample.file.clone(), error };
                let side = sides.get(idx).copied().unwrap_or(side);
                let for_segmenter = canvas::resize(&canvas.whole, side, side).map_err(plane)?;
                Ok((canvas, for_segmenter))
            },
            |idx, (canvas, for_segmenter)| {
                let (Some(sample), Some(segmenter), Some(slot)) =
                    (samples.get(idx), chosen.get(idx), pictures.get_mut(idx))
                else {
                    return Ok(());
                };
                let lungs = segmenter.lungs(&for_segmenter, &canvas.placement)?;
                without_lungs += usize::from(lungs.labels.iter().all(|label| *label == BACKGROUND));
                let (plain, _) = compose(&canvas.whole, &canvas.placement, &lungs, &recipe)
                    .map_err(|error| TrainError::Plane { file: sample.file.clone(), error })?;
                *slot = Some(ClassPicture {
                    canvas: canvas.small,
                    placement: canvas.small_placement,
                    lungs,
                    plain: plain.values,
                });
                Ok(())
            },
        )?;
        if without_lungs > 0 {
            observer(Event::Note(&format!(
                "in {without_lungs} of {} images the segmenter finds no lungs: they are trained on as they are",
                samples.len()
            )));
        }
        Ok(Self { recipe, augmentation, pictures: pictures.into_iter().flatten().collect(), outputs })
    }

    fn picture(&self, image: usize) -> Result<(&ClassPicture, Target), TrainError> {
        match (self.pictures.get(image), self.outputs.get(image)) {
            (Some(picture), Some(output)) => Ok((picture, Target::Output(*output))),
            _ => Err(TrainError::Internal(format!("there is no picture {image}"))),
        }
    }
}

impl Examples for ClassExamples {
    fn shape(&self) -> [i64; 3] {
        let side = self.recipe.side_pixels as i64;
        [3, side, side]
    }

    fn augmented(&self, image: usize, mut stream: Stream) -> Result<Example, TrainError> {
        let (picture, target) = self.picture(image)?;
        let changes = self.augmentation.draw(&mut stream);
        let mut canvas = picture.canvas.clone();
        changes.shade(&mut canvas, &picture.placement);
        let canvas = changes.warp(&canvas);
        let Lungs { side, ref labels, measurements } = picture.lungs;
        let lungs = Lungs { side, labels: changes.warp_labels(labels, side), measurements };
        let (planes, _) = compose(&canvas, &picture.placement, &lungs, &self.recipe)
            .map_err(|error| TrainError::Internal(error.to_string()))?;
        Ok(Example { input: planes.values, target })
    }

    fn plain(&self, image: usize) -> Result<Example, TrainError> {
        let (picture, target) = self.picture(image)?;
        Ok(Example { input: picture.plain.clone(), target })
    }
}

/// Segmenters, each with the patients that it was trained on.
pub(super) struct Segmenters(Vec<KnownSegmenter>);

struct KnownSegmenter {
    network: Trainable,
    side: usize,
    trained_on: BTreeSet<String>,
    digest: String,
}

impl Segmenters {
    /// Of bundles, and of folders of trainings (whose patients are then known).
    ///
    /// # Errors
    /// Names the folder that has no segmenter.
    pub(super) fn load(folders: &[PathBuf], device: Device) -> Result<Self, TrainError> {
        let mut segmenters = Vec::new();
        for folder in folders {
            let (bundle, record) = open_bundle(folder)?;
            let (network, side) = Trainable::segmenter_of(&bundle, device)?;
            let trained_on = record.map(|record| record.known_patients()).unwrap_or_default();
            segmenters.push(KnownSegmenter { network, side, trained_on, digest: bundle.identity().digest.to_string() });
        }
        Ok(Self(segmenters))
    }

    /// Digests of all.
    pub(super) fn digests(&self) -> Vec<String> {
        self.0.iter().map(|segmenter| segmenter.digest.clone()).collect()
    }

    /// One that was not trained on the patient; of several, the one that the patient's name draws, so that which it is
    /// says nothing of the label.
    fn choose(&self, patient: &str) -> Result<&KnownSegmenter, TrainError> {
        let unknowing: Vec<&KnownSegmenter> =
            self.0.iter().filter(|segmenter| !segmenter.trained_on.contains(patient)).collect();
        let drawn = patient.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let idx = Stream::new(drawn, 0, 0).below(unknowing.len().max(1));
        unknowing.get(idx).copied().ok_or_else(|| {
            TrainError::Data(format!(
                "every segmenter was trained on patient `{patient}`: its masks would be better there than at work; train \
                 segmenters in folds (`hilum train --fold`) and give all of their folders"
            ))
        })
    }
}

impl KnownSegmenter {
    fn lungs(&self, canvas: &Plane, placement: &Placement) -> Result<Lungs, TrainError> {
        let side = self.side as i64;
        let input = Tensor::f_from_slice(&segmenter_input(&canvas.values))?.f_view([1, 1, side, side])?;
        let (logits, _) = self.network.logits_and_embedding(&input.f_to(self.network.device())?)?;
        let values = Vec::<f32>::try_from(logits.f_sigmoid()?.f_flatten(0, -1)?.f_to(tch::Device::Cpu)?)?;
        Ok(Lungs::from_probabilities(&Plane { rows: self.side, columns: self.side, values }, placement))
    }
}

/// The bundle in a folder, or of the training in it; of a training, also when its bundle's folder is named, its record.
pub(super) fn open_bundle(folder: &Path) -> Result<(Bundle, Option<RunRecord>), TrainError> {
    if let Some(record) = RunRecord::read(folder)? {
        return Ok((Bundle::open(&folder.join(BUNDLE_FOLDER))?, Some(record)));
    }
    let bundle = Bundle::open(folder)?;
    let record = match fs_err::canonicalize(folder)?.parent() {
        Some(training) if folder.ends_with(BUNDLE_FOLDER) => RunRecord::read(training)?,
        _ => None,
    };
    Ok((bundle, record))
}

/// The embeddings of pictures as a network sees them at work.
pub(super) fn embeddings(
    network: &Trainable,
    examples: &dyn Examples,
    images: &[usize],
) -> Result<Vec<Vec<f32>>, TrainError> {
    let [channels, rows, columns] = examples.shape();
    let mut found = Vec::new();
    for image in images {
        let input = Tensor::f_from_slice(&examples.plain(*image)?.input)?.f_view([1, channels, rows, columns])?;
        let (_, embedding) = network.logits_and_embedding(&input.f_to(network.device())?)?;
        let embedding = embedding.ok_or_else(|| TrainError::Internal("a segmenter has no embedding".to_owned()))?;
        found.push(Vec::<f32>::try_from(embedding.f_flatten(0, -1)?.f_to(tch::Device::Cpu)?)?);
    }
    Ok(found)
}
