//! What a bundle says of the images of a data set, by the pipeline that studies take.

use serde::Serialize;

use super::{
    alter::{Alteration, label_at},
    sample::{Sample, SampleError},
};
use crate::{
    imaging::{
        Plane, heat,
        lungs::{BACKGROUND, Lungs},
    },
    infer::{CxrPipeline, Examination, Examined, InferError, Judgement, Models},
    types::Placement,
};

/// What is asked of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Questions {
    /// Whether gates that fail stop an image, as in service.
    pub enforce_gates: bool,
    /// Whether every image is judged again in each of [`Alteration::ALL`].
    pub alterations: bool,
}

/// One image and what became of it.
#[derive(Debug, Clone)]
pub struct Prediction<'a> {
    /// The image.
    pub sample: &'a Sample,
    /// Class that its label means; `None` where it means none.
    pub class_idx: Option<usize>,
    /// Identifiers of the gates that it failed.
    pub failed_gates: Vec<String>,
    /// What the bundle says, or in words why it says nothing.
    pub scored: Result<Scored, String>,
}

/// What a bundle says of one image; of one without classifiers only where the lungs are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// Fused output per class, 0 to 1.
    pub outputs: Vec<f64>,
    /// Of each member, for the target class.
    pub member_outputs: Vec<f64>,
    /// Of length 1; `None` when the networks give none.
    pub embedding: Option<Vec<f32>>,
    /// Share of the heat that lies in the lungs, 0 to 1; `None` for a map without heat.
    pub heat_in_lungs: Option<f64>,
    /// Agreement of the segmented lungs with the list's mask; `None` where it has none.
    pub dice: Option<f64>,
    /// Output of the target class for the altered pictures, in the order of [`Alteration::ALL`]; empty if not asked for.
    pub altered: Vec<f64>,
    /// Whose networks judged it: the fold, 0 without cross-validation. Embeddings of different networks cannot be compared.
    pub fold: usize,
}

/// A fault that ends an evaluation: of the networks, not of an image.
#[derive(Debug, thiserror::Error)]
#[error("`{file}` could not be judged: {error}")]
pub struct PredictError {
    /// Of which image.
    pub file: String,
    /// What failed.
    pub error: InferError,
}

/// Judges the samples one after the other; each comes with the class that its label means. `progress` is called once after
/// each.
///
/// # Errors
/// [`PredictError`] when the networks fail. An image that cannot be read, is refused by a gate, or that a member fails on has
/// the reason in its prediction.
///
/// Cancel safety: dropping the future loses the predictions and nothing else.
pub async fn predict<'a, M: Models>(
    pipeline: &CxrPipeline<M>,
    samples: &[(&'a Sample, Option<usize>)],
    questions: Questions,
    mut progress: impl FnMut(&Prediction<'a>),
) -> Result<Vec<Prediction<'a>>, PredictError> {
    let mut predictions = Vec::with_capacity(samples.len());
    for (sample, class_idx) in samples {
        let (failed_gates, scored) = predict_one(pipeline, sample, questions)
            .await
            .map_err(|error| PredictError { file: sample.file.display().to_string(), error })?;
        let prediction = Prediction { sample, class_idx: *class_idx, failed_gates, scored };
        progress(&prediction);
        predictions.push(prediction);
    }
    Ok(predictions)
}

async fn predict_one<M: Models>(
    pipeline: &CxrPipeline<M>,
    sample: &Sample,
    questions: Questions,
) -> Result<(Vec<String>, Result<Scored, String>), InferError> {
    let part10 = match sample.part10() {
        Ok(part10) => part10,
        Err(error) => return Ok((Vec::new(), Err(error.to_string()))),
    };
    let seen = match pipeline.examine(part10, questions.enforce_gates).await? {
        Examined::Ready(seen) => *seen,
        Examined::Excluded { reason, words } => return Ok((Vec::new(), Err(format!("{words} ({})", reason.id())))),
    };
    let failed_gates = seen.gates.iter().filter(|gate| !gate.passed).map(|gate| gate.id.clone()).collect();
    let dice = match dice_of(sample, &seen.lungs, &seen.placement, &seen.canvas) {
        Ok(dice) => dice,
        Err(error) => return Ok((failed_gates, Err(error.to_string()))),
    };
    if pipeline.bundle().members.is_empty() {
        let nothing = Scored { dice, ..Scored::default() };
        return Ok((failed_gates, Ok(nothing)));
    }
    let target = pipeline.bundle().target_class_idx;
    let judged = pipeline.judge(seen.canvas.clone(), seen.placement, seen.lungs.clone()).await?;
    if let Some((name, failure)) = failed_member(&judged) {
        return Ok((failed_gates, Err(format!("member {name} failed: {failure}"))));
    }
    let altered = if questions.alterations { altered_outputs(pipeline, &seen, target).await? } else { Vec::new() };
    let Judgement { fused, members, embedding, heat_map } = judged;
    let scored = Scored {
        outputs: fused,
        member_outputs: members.iter().filter_map(|member| member.probabilities.get(target).copied()).collect(),
        embedding: embedding.ok(),
        heat_in_lungs: heat::lung_share(&heat_map, &seen.lungs),
        dice,
        altered,
        fold: 0,
    };
    Ok((failed_gates, Ok(scored)))
}

/// A partial ensemble is another one than the bundle's.
fn failed_member(judged: &Judgement) -> Option<(&str, &str)> {
    judged.members.iter().find_map(|member| Some((member.name.as_str(), member.failure.as_deref()?)))
}

async fn altered_outputs<M: Models>(
    pipeline: &CxrPipeline<M>,
    seen: &Examination,
    target: usize,
) -> Result<Vec<f64>, InferError> {
    let mut outputs = Vec::with_capacity(Alteration::ALL.len());
    for alteration in Alteration::ALL {
        let (canvas, placement, lungs) = alteration.apply(seen);
        let judged = pipeline.judge(canvas, placement, lungs).await?;
        outputs.push(judged.fused.get(target).copied().unwrap_or(0.0));
    }
    Ok(outputs)
}

/// Dice of the segmented lungs and the list's mask, at the image's own resolution.
fn dice_of(sample: &Sample, lungs: &Lungs, placement: &Placement, canvas: &Plane) -> Result<Option<f64>, SampleError> {
    let (rows, columns) = (placement.source_rows as usize, placement.source_columns as usize);
    let Some(mask) = sample.lung_mask(rows, columns)? else { return Ok(None) };
    let (top, left) = (placement.pad_top as usize, placement.pad_left as usize);
    let found: Vec<bool> = (0..rows * columns)
        .map(|idx| label_at(lungs, canvas, idx / columns + top, idx % columns + left) != BACKGROUND)
        .collect();
    let truth: Vec<bool> = mask.values.iter().map(|value| *value > 0.5).collect();
    Ok(Some(dice(&found, &truth)))
}

/// Overlap of two sets of pixels (Dice, Ecology 1945;26:297-302): twice the common ones divided by the sum of both, 0 to 1;
/// 1 for two empty sets.
#[must_use]
pub fn dice(found: &[bool], truth: &[bool]) -> f64 {
    let count = |mask: &[bool]| mask.iter().filter(|pixel| **pixel).count();
    let common = found.iter().zip(truth).filter(|(found, truth)| **found && **truth).count();
    match count(found) + count(truth) {
        0 => 1.0,
        both => 2.0 * common as f64 / both as f64,
    }
}

/// A line of `predictions.csv`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    file: String,
    patient: &'a str,
    label: &'a str,
    split: &'static str,
    site: &'a str,
    class: &'a str,
    output: String,
    outputs: String,
    members: String,
    heat_in_lungs: String,
    dice: String,
    failed_gates: String,
    not_scored: &'a str,
}

/// The predictions as CSV, with nothing about patients but what the list says: outputs per class and member are separated
/// by spaces.
///
/// # Errors
/// None in practice: the lines are written to memory.
pub fn predictions_csv(
    predictions: &[Prediction<'_>],
    classes: &[String],
    target_class_idx: usize,
) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let number = |value: f64| format!("{value:.6}");
    let numbers = |values: &[f64]| values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(" ");
    for prediction in predictions {
        let Prediction { sample, class_idx, failed_gates, scored } = prediction;
        let known = scored.as_ref().ok();
        writer.serialize(Line {
            file: sample.file.display().to_string(),
            patient: &sample.patient,
            label: sample.label.as_deref().unwrap_or_default(),
            split: sample.split.map_or("", super::Split::name),
            site: sample.site.as_deref().unwrap_or_default(),
            class: class_idx.and_then(|idx| classes.get(idx)).map_or("", String::as_str),
            output: known.and_then(|of| of.outputs.get(target_class_idx)).map_or_else(String::new, |of| number(*of)),
            outputs: known.map_or_else(String::new, |of| numbers(&of.outputs)),
            members: known.map_or_else(String::new, |of| numbers(&of.member_outputs)),
            heat_in_lungs: known.and_then(|of| of.heat_in_lungs).map_or_else(String::new, number),
            dice: known.and_then(|of| of.dice).map_or_else(String::new, number),
            failed_gates: failed_gates.join(" "),
            not_scored: scored.as_ref().err().map_or("", String::as_str),
        })?;
    }
    writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_goes_from_nothing_to_everything() {
        let (all, none, half) = ([true; 4], [false; 4], [true, true, false, false]);
        assert!((dice(&all, &all) - 1.0).abs() < 1e-12 && dice(&all, &none).abs() < 1e-12);
        assert!((dice(&all, &half) - 4.0 / 6.0).abs() < 1e-12);
        assert!((dice(&none, &none) - 1.0).abs() < 1e-12);
    }
}
