//! From trained networks to a bundle.

use std::path::Path;

use super::{
    error::TrainError,
    fit::Trained,
    plan::{Monitor, Start, Task, TrainPlan, TrainedMember, Validation},
    record::RunRecord,
};
use crate::{
    nn::{
        BatchNormMode, Bundle, Calibration, Classification, Input, Manifest, Member, MemberArchitecture,
        MemberExplanation, NetworkPrecision, OutputKind, Segmenter, SegmenterArchitecture, SegmenterNormalisation,
        write_trained_bundle,
    },
    types::{BundleIdentity, BundleStatus, Sha256Digest},
};

/// Set when the bundle is written.
const UNKNOWN: Sha256Digest = Sha256Digest([0; 32]);

/// Writes the bundle of a lung segmenter.
pub(super) fn export_segmenter(
    plan: &TrainPlan,
    record: &RunRecord,
    trained: &Trained,
    (width, input_side_pixels): (f64, u32),
    folder: &Path,
) -> Result<BundleIdentity, TrainError> {
    let file_name = "segmenter.safetensors".to_owned();
    let segmenter = Segmenter {
        architecture: SegmenterArchitecture::Unet,
        width,
        input_side_pixels,
        normalisation: SegmenterNormalisation::ImageZScore,
        weights: file_name.clone(),
        sha256: UNKNOWN,
        version: plan.bundle.version.clone(),
        precision: NetworkPrecision::default(),
    };
    let manifest = Manifest { segmenter: Some(segmenter), ..manifest(plan, record) };
    let weights = trained.network.to_safetensors(plan.bundle.weights.into())?;
    Ok(write_trained_bundle(folder, manifest, vec![(file_name, weights)])?)
}

/// Writes the bundle of classifiers with the lung segmenter of another bundle.
pub(super) fn export_classifiers(
    plan: &TrainPlan,
    record: &RunRecord,
    trained: &[(&TrainedMember, Trained)],
    segmenter_bundle: &Bundle,
    folder: &Path,
) -> Result<BundleIdentity, TrainError> {
    let Task::Classifier { classes, target_class_idx, threshold, fusion, sub_classes, .. } = &plan.task else {
        return Err(TrainError::Internal("classifiers are trained for classes".to_owned()));
    };
    let n_sub_classes = *sub_classes as usize;
    let label_map = (0..classes.len()).flat_map(|class| std::iter::repeat_n(class, n_sub_classes)).collect();
    let mut weights = Vec::new();
    let segmenter = segmenter_bundle.manifest().segmenter.clone().map(|segmenter| {
        let file = segmenter_bundle.folder().join(&segmenter.weights);
        (Segmenter { weights: "segmenter.safetensors".to_owned(), ..segmenter }, file)
    });
    let segmenter = match segmenter {
        Some((segmenter, file)) => {
            weights.push((segmenter.weights.clone(), fs_err::read(file)?));
            Some(segmenter)
        }
        None => None,
    };
    let mut members = Vec::new();
    for (member, trained) in trained {
        let file_name = format!("{}.safetensors", member.name);
        weights.push((file_name.clone(), trained.network.to_safetensors(plan.bundle.weights.into())?));
        members.push(Member {
            name: member.name.clone(),
            architecture: MemberArchitecture::Known(member.architecture),
            width: member.width,
            inputs: Vec::new(),
            weights: file_name,
            sha256: UNKNOWN,
            version: plan.bundle.version.clone(),
            batch_norm: BatchNormMode::default(),
            output: OutputKind::Softmax,
            explanation: member.explanation.map(MemberExplanation::By),
            attention: member.attention,
            precision: NetworkPrecision::default(),
        });
    }
    let classification = Classification {
        target_class_idx: *target_class_idx,
        threshold: *threshold,
        grey_zone: None,
        fusion: *fusion,
        label_map: (n_sub_classes > 1).then_some(label_map),
        calibration: Calibration::None {},
        prior: None,
        classes: classes.iter().map(super::plan::Class::definition).collect(),
    };
    // What holds random weights is untrained, whatever else was trained.
    let status = if segmenter.as_ref().is_some_and(Segmenter::is_untrained) {
        BundleStatus::Untrained
    } else {
        BundleStatus::Unvalidated
    };
    let classification = Some(classification);
    let manifest = Manifest { status, classification, segmenter, members, ..manifest(plan, record) };
    Ok(write_trained_bundle(folder, manifest, weights)?)
}

/// What all bundles of trainings say.
fn manifest(plan: &TrainPlan, record: &RunRecord) -> Manifest {
    let words = &plan.bundle;
    Manifest {
        name: words.name.clone(),
        version: words.version.clone(),
        status: BundleStatus::Unvalidated,
        description: words.description.clone(),
        licence: words.licence.clone(),
        training_data: format!("{}\n{}", words.training_data.trim_end(), facts(plan, record)),
        reference_performance: String::new(),
        performance: Vec::new(),
        input: Input::Image2d { preprocessing: plan.preprocessing.clone(), gates: plan.gates.clone() },
        classification: None,
        similar_cases: None,
        segmenter: None,
        members: Vec::new(),
    }
}

/// The facts of the training.
fn facts(plan: &TrainPlan, record: &RunRecord) -> String {
    let RunRecord { hilum, command, list_sha256, training_images, validation_images, .. } = record;
    let (patients, tried_patients) = (record.training_patients.len(), record.validation_patients.len());
    let chosen = if plan.optimisation.monitor == Monitor::None {
        "the weights of the last epoch, tried on"
    } else {
        "the epoch chosen by"
    };
    let validation = match plan.data.validation {
        Validation::None => "no validation, the weights of the last epoch".to_owned(),
        Validation::List => {
            format!("{chosen} {validation_images} images of {tried_patients} patients of the list's split")
        }
        Validation::Fold { folds, fold } => format!(
            "{chosen} {validation_images} images of {tried_patients} patients, fold {fold} of {folds} by patient"
        ),
    };
    let started = match &plan.task {
        Task::Lungs { start, .. } => vec![start_words("segmenter", start)],
        Task::Classifier { members, .. } => {
            members.iter().map(|member| start_words(&member.name, &member.start)).collect()
        }
    };
    let segmenters = if record.segmenters.is_empty() {
        String::new()
    } else {
        let short: Vec<&str> = record.segmenters.iter().map(|digest| digest.get(..12).unwrap_or(digest)).collect();
        format!(" Lungs predicted by the segmenters of the bundles {}.", short.join(", "))
    };
    format!(
        "Trained by hilum {hilum} on {training_images} images of {patients} patients, {validation}; list and files SHA-256 \
         {list_sha256}; seed {}. Start: {}.{segmenters} Command: {command}",
        plan.compute.seed,
        started.join(", ")
    )
}

fn start_words(name: &str, start: &Start) -> String {
    match start {
        Start::Scratch => format!("{name} from random numbers"),
        Start::Bundle { folder, .. } => {
            let bundle = folder.file_name().unwrap_or_default().to_string_lossy();
            format!("{name} from the bundle {bundle}")
        }
        Start::Checkpoint { file } => {
            format!("{name} from the checkpoint {}", file.file_name().unwrap_or_default().to_string_lossy())
        }
    }
}
