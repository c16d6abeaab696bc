//! A whole training: from a configuration and a list to a bundle.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{
    checkpoint::{EpochRecord, Progress, replace},
    decomposition::sub_classes,
    error::TrainError,
    examples::{ClassExamples, LungExamples, Segmenters, embeddings, open_bundle},
    export::{export_classifiers, export_segmenter},
    fit::{Event, Examples, Fit, Objective, Observer, Trained},
    folds::patient_folds,
    plan::{Class, Start, Task, TrainPlan, TrainedMember, Validation},
    record::{BUNDLE_FOLDER, RunRecord, write_list},
    sample::{DataSet, Sample, Split},
    sampling::Group,
};
use crate::{
    nn::{Bundle, NetworkPlan, Segmenter, Trainable},
    types::{BundleIdentity, Sha256Digest},
};

/// What a training left.
#[derive(Debug)]
pub struct Outcome {
    /// The bundle.
    pub bundle: BundleIdentity,
    /// For each network the epoch whose weights are kept.
    pub kept: Vec<(String, EpochRecord)>,
}

/// Trains what `plan` says into `folder`, which then holds:
///
/// | | |
/// | --- | --- |
/// | `bundle/` | the bundle |
/// | `<network>/` | its checkpoint, `epochs.jsonl`, `steps.jsonl`, `curves.svg`, `curves.png` |
/// | `train.toml`, `run.json` | configuration; patients, digests, command |
/// | `training.csv`, `validation.csv` | the images, as `hilum evaluate --data` takes them |
/// | `predictions.csv` | what the classifiers say of the validation images |
///
/// A training that was interrupted goes on from its last checkpoint; on the processor with the same number of threads it
/// ends with the very bits of one that was not.
///
/// # Errors
/// [`TrainError`], naming what is wrong and the remedy.
pub fn train(plan: &TrainPlan, folder: &Path, command: &str, observer: Observer<'_>) -> Result<Outcome, TrainError> {
    tch::set_num_threads(i32::try_from(plan.compute.threads).unwrap_or(1));
    fs_err::create_dir_all(folder)?;
    let _lock = lock(folder)?;
    let set = DataSet::read(&plan.data.list)?;
    let chosen = Chosen::of(plan, &set, observer)?;
    let segmenters = match &plan.task {
        Task::Lungs { .. } => Segmenters::load(&[], plan.device())?,
        Task::Classifier { segmenters, .. } => Segmenters::load(segmenters, plan.device())?,
    };
    let of_bundle = chosen.segmenter_of_bundle(plan, observer)?;
    let record = RunRecord {
        hilum: env!("CARGO_PKG_VERSION").to_owned(),
        command: command.to_owned(),
        plan: plan.clone(),
        list_sha256: set.sha256.clone(),
        segmenters: segmenters.digests(),
        starts: starts(plan)?,
        start_patients: start_patients(plan)?,
        segmenter_patients: of_bundle.iter().flat_map(|(_, patients)| patients.clone()).collect(),
        training_images: chosen.training.len(),
        validation_images: chosen.validation.len(),
        training_patients: chosen.patients(&chosen.training),
        validation_patients: chosen.patients(&chosen.validation),
    };
    let training = Training { plan, folder, chosen: &chosen, record: &record };
    match RunRecord::read(folder)? {
        Some(before) if training.fingerprint_of(&before)? != training.fingerprint_of(&record)? => {
            return Err(TrainError::OtherTraining(folder.to_owned()));
        }
        Some(_) => {
            // Whatever the command was called that finished it, and whatever was calibrated since.
            if let Ok(bundle) = Bundle::open(&folder.join(BUNDLE_FOLDER)) {
                observer(Event::Note(
                    "this training is finished; remove its folder `bundle` to have the bundle written anew",
                ));
                return Ok(Outcome { bundle: bundle.identity(), kept: Vec::new() });
            }
        }
        None => {
            chosen.require_unknown_to(plan)?;
            training.require_own_folder()?;
            training.leave_record()?;
        }
    }
    match &plan.task {
        Task::Lungs { width, side_pixels, start, frozen } => {
            training.lungs(*width, *side_pixels, start, frozen, observer)
        }
        Task::Classifier { .. } => {
            let (of_bundle, _) = of_bundle.ok_or_else(|| TrainError::Internal("there is no segmenter".to_owned()))?;
            training.classifiers(&segmenters, &of_bundle, observer)
        }
    }
}

/// A folder is one training's at a time; the lock ends with the handle. The folder itself is locked while its bundle is
/// written.
fn lock(folder: &Path) -> Result<fs_err::File, TrainError> {
    let handle = fs_err::File::create(folder.join(".lock"))?;
    match handle.file().try_lock() {
        Ok(()) => Ok(handle),
        Err(std::fs::TryLockError::WouldBlock) => Err(TrainError::Data(format!(
            "another training runs in `{}`: wait for it, or give another folder with --out",
            folder.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

/// The images of a list that take part.
struct Chosen<'a> {
    samples: Vec<&'a Sample>,
    /// Class of each; 0 without classes.
    classes: Vec<usize>,
    training: Vec<usize>,
    validation: Vec<usize>,
}

impl<'a> Chosen<'a> {
    fn of(plan: &TrainPlan, set: &'a DataSet, observer: Observer<'_>) -> Result<Self, TrainError> {
        let of_site = |sample: &&Sample| {
            plan.data.sites.is_empty() || sample.site.as_ref().is_some_and(|site| plan.data.sites.contains(site))
        };
        let class_of = |sample: &Sample| match &plan.task {
            Task::Lungs { .. } => sample.mask.as_ref().map(|_| 0),
            Task::Classifier { classes, .. } => {
                let label = sample.label.as_ref()?;
                classes.iter().position(|class| class.of_list.contains(label))
            }
        };
        let (kept, of_test): (Vec<&Sample>, Vec<&Sample>) =
            set.samples.iter().filter(of_site).partition(|sample| sample.split != Some(Split::Test));
        if !of_test.is_empty() {
            observer(Event::Note(&format!("{} images are left out: the list keeps them for the test", of_test.len())));
        }
        // The folds are the list's and not the task's: a segmenter and a classifier that are trained with one list and seed
        // are tried on the same patients.
        let split_of: Vec<Option<Split>> = match plan.data.validation {
            Validation::None => vec![Some(Split::Train); kept.len()],
            Validation::List => kept.iter().map(|sample| sample.split).collect(),
            Validation::Fold { folds, fold } => {
                let folds = patient_folds(&kept, folds as usize, plan.compute.seed)?;
                let split = |of: usize| if of == fold as usize { Split::Validation } else { Split::Train };
                folds.into_iter().map(|of| Some(split(of))).collect()
            }
        };
        let (mut samples, mut classes, mut splits) = (Vec::new(), Vec::new(), Vec::new());
        for (sample, split) in kept.into_iter().zip(split_of) {
            let Some(class) = class_of(sample) else { continue };
            samples.push(sample);
            classes.push(class);
            splits.push(split);
        }
        let left_out = set.samples.len() - samples.len() - of_test.len();
        if left_out > 0 {
            let why = match &plan.task {
                Task::Lungs { .. } => "they have no mask, or are of other sites",
                Task::Classifier { .. } => "their label means no class, or they are of other sites",
            };
            observer(Event::Note(&format!("{left_out} of {} images are left out: {why}", set.samples.len())));
        }
        let of = |wanted: Split| -> Vec<usize> {
            splits.iter().enumerate().filter(|(_, split)| **split == Some(wanted)).map(|(image, _)| image).collect()
        };
        let chosen = Self { samples, classes, training: of(Split::Train), validation: of(Split::Validation) };
        chosen.check(plan)?;
        Ok(chosen)
    }

    fn check(&self, plan: &TrainPlan) -> Result<(), TrainError> {
        let list = plan.data.list.display();
        if self.training.len() < 2 {
            let n = self.training.len();
            return Err(TrainError::Data(format!(
                "`{list}` leaves {n} images to train on: give a list with more, and look at `data.sites`, the classes' \
                 `of_list` and the column `split`"
            )));
        }
        if self.validation.is_empty() && plan.data.validation != Validation::None {
            return Err(TrainError::Data(format!(
                "`{list}` leaves no image for validation: give some `validation` in the column `split`, use folds, or set \
                 `data.validation` to `{{ by = \"none\" }}`"
            )));
        }
        let both: Vec<String> =
            self.patients(&self.training).intersection(&self.patients(&self.validation)).cloned().collect();
        if let Some(patient) = both.first() {
            return Err(TrainError::Data(format!(
                "patient `{patient}` is in training and validation ({} patients are): correct the column `split`, or use \
                 folds",
                both.len()
            )));
        }
        let Task::Classifier { classes, .. } = &plan.task else { return Ok(()) };
        for (class_idx, class) in classes.iter().enumerate() {
            if !self.training.iter().any(|image| self.classes.get(*image) == Some(&class_idx)) {
                return Err(TrainError::Data(format!(
                    "no training image is of the class `{}` (labels {}): correct its `of_list`, or the list",
                    class.label,
                    class.of_list.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// Starting weights that were trained on a validation patient would choose the epoch by what they know.
    fn require_unknown_to(&self, plan: &TrainPlan) -> Result<(), TrainError> {
        let validation = self.patients(&self.validation);
        for start in plan.starts() {
            let Start::Bundle { folder, .. } = start else { continue };
            let (_, Some(record)) = open_bundle(folder)? else { continue };
            let n_known = validation.intersection(&record.known_patients()).count();
            if n_known > 0 {
                return Err(TrainError::Data(format!(
                    "the starting weights in `{}` were trained on {n_known} of the {} validation patients: start from the same \
                     fold's training, or train without validation",
                    folder.display(),
                    validation.len()
                )));
            }
        }
        Ok(())
    }

    /// The segmenter that goes into the bundle, and whom it was trained on: one that knows no validation patient, if there is
    /// one, so that the bundle can be judged on them as a whole. `None` where segmenters are what is trained.
    fn segmenter_of_bundle(
        &self,
        plan: &TrainPlan,
        observer: Observer<'_>,
    ) -> Result<Option<(Bundle, BTreeSet<String>)>, TrainError> {
        let Task::Classifier { segmenters, segmenter_of_bundle, .. } = &plan.task else { return Ok(None) };
        let validation = self.patients(&self.validation);
        let (mut unknown, mut known) = (None, None);
        for folder in segmenter_of_bundle.iter().chain(segmenters) {
            match open_bundle(folder)? {
                (bundle, Some(record)) => {
                    let patients = record.known_patients();
                    if patients.is_disjoint(&validation) {
                        return Ok(Some((bundle, patients)));
                    }
                    known.get_or_insert((bundle, patients));
                }
                // Without validation the one that is wished for.
                (bundle, None) if validation.is_empty() => return Ok(Some((bundle, BTreeSet::new()))),
                (bundle, None) => drop(unknown.get_or_insert((bundle, BTreeSet::new()))),
            }
        }
        observer(Event::Note(if unknown.is_some() {
            "whom the segmenter was trained on is not known: figures on validation patients may flatter"
        } else {
            "every segmenter was trained on some validation patient: `hilum evaluate` will not judge the bundle on them; train \
             segmenters and classifiers in the same folds of the same list, with the same seed"
        }));
        Ok(unknown.or(known))
    }

    fn of_images(&self, images: &[usize]) -> Vec<&'a Sample> {
        images.iter().filter_map(|image| self.samples.get(*image).copied()).collect()
    }

    fn patients(&self, images: &[usize]) -> BTreeSet<String> {
        self.of_images(images).into_iter().map(|sample| sample.patient.clone()).collect()
    }

    fn groups(&self) -> Vec<(usize, Group)> {
        let group = |image: &usize| {
            let site = self.samples.get(*image).and_then(|sample| sample.site.clone());
            (*image, Group { class: self.classes.get(*image).copied().unwrap_or(0), site })
        };
        self.training.iter().map(group).collect()
    }
}

struct Training<'a> {
    plan: &'a TrainPlan,
    folder: &'a Path,
    chosen: &'a Chosen<'a>,
    record: &'a RunRecord,
}

impl Training<'_> {
    /// Of everything that the weights depend on; the command line and the words about the bundle are free to change.
    fn fingerprint_of(&self, record: &RunRecord) -> Result<String, TrainError> {
        let mut relevant = record.clone();
        relevant.command.clear();
        relevant.hilum.clear();
        // They follow from the segmenters and the starts.
        relevant.segmenter_patients.clear();
        relevant.start_patients.clear();
        relevant.plan.bundle = self.plan.bundle.clone();
        // The same images, wherever they lie.
        relevant.plan.data.list.clone_from(&self.plan.data.list);
        let text = serde_json::to_vec(&relevant).map_err(|error| TrainError::Internal(error.to_string()))?;
        Ok(Sha256Digest(Sha256::digest(text).into()).to_string())
    }

    /// Nothing of somebody else's is overwritten.
    fn require_own_folder(&self) -> Result<(), TrainError> {
        let names = ["train.toml", "training.csv", "validation.csv", "predictions.csv", BUNDLE_FOLDER];
        match names.into_iter().find(|name| self.folder.join(name).exists()) {
            None => Ok(()),
            Some(name) => Err(TrainError::Data(format!(
                "`{}` has a `{name}` and no record of a training: give another folder with --out",
                self.folder.display()
            ))),
        }
    }

    fn leave_record(&self) -> Result<(), TrainError> {
        let text = toml::to_string(self.plan).map_err(|error| TrainError::Internal(error.to_string()))?;
        replace(&self.folder.join("train.toml"), text.as_bytes())?;
        write_list(&self.folder.join("training.csv"), &self.chosen.of_images(&self.chosen.training), Split::Train)?;
        if !self.chosen.validation.is_empty() {
            let validation = self.chosen.of_images(&self.chosen.validation);
            write_list(&self.folder.join("validation.csv"), &validation, Split::Validation)?;
        }
        self.record.write(self.folder)
    }

    fn fit<'a>(
        &'a self,
        name: &'a str,
        network: NetworkPlan,
        examples: &'a dyn Examples,
        objective: Objective,
    ) -> Fit<'a> {
        Fit {
            plan: self.plan,
            name,
            network,
            frozen: &[],
            learning_rate: self.plan.optimisation.learning_rate,
            examples,
            objective,
            training: self.chosen.groups(),
            validation: self.chosen.validation.clone(),
            folder: self.folder.join(name),
        }
    }

    fn lungs(
        &self,
        width: f64,
        side_pixels: u32,
        start: &Start,
        frozen: &[String],
        observer: Observer<'_>,
    ) -> Result<Outcome, TrainError> {
        let (plan, side) = (self.plan, side_pixels as usize);
        let examples =
            LungExamples::read(&self.chosen.samples, &plan.preprocessing, side, plan.augmentation, observer)?;
        let network = NetworkPlan::Segmenter { width };
        let fit = Fit { frozen, ..self.fit("segmenter", network, &examples, Objective::Lungs) };
        let begin = |network: &Trainable| begin(network, "segmenter", start, plan.compute.seed, &mut |_| {});
        let trained = fit.run(begin, observer)?;
        let bundle =
            export_segmenter(plan, self.record, &trained, (width, side_pixels), &self.folder.join(BUNDLE_FOLDER))?;
        Ok(Outcome { bundle, kept: kept_epoch("segmenter", &trained.progress).into_iter().collect() })
    }

    fn classifiers(
        &self,
        segmenters: &Segmenters,
        of_bundle: &Bundle,
        observer: Observer<'_>,
    ) -> Result<Outcome, TrainError> {
        let plan = self.plan;
        let Task::Classifier { classes, sub_classes: n_sub_classes, members, .. } = &plan.task else {
            return Err(TrainError::Internal("classifiers are trained for classes".to_owned()));
        };
        let n_sub_classes = *n_sub_classes as usize;
        let class_of_output: Vec<usize> =
            (0..classes.len() * n_sub_classes).map(|output| output / n_sub_classes).collect();
        if of_bundle.manifest().segmenter.as_ref().is_some_and(Segmenter::is_untrained) {
            let words =
                "the segmenter of the bundle is random numbers: the bundle will be `untrained`, whatever it learns";
            observer(Event::Note(words));
        }
        let augmentation = (plan.augmentation, plan.compute.working_scale);
        let mut examples = ClassExamples::read(
            &self.chosen.samples,
            self.chosen.classes.clone(),
            &plan.preprocessing,
            augmentation,
            segmenters,
            observer,
        )?;
        let weights = self.output_weights(classes.len(), &class_of_output);
        let mut trained: Vec<(&TrainedMember, Trained)> = Vec::new();
        for member in members {
            let network = member.network(class_of_output.len());
            let mut notes = Vec::new();
            examples.outputs.clone_from(&self.chosen.classes);
            if n_sub_classes > 1 {
                examples.outputs = self.sub_classes(member, network, &examples, n_sub_classes)?;
            }
            let objective = Objective::Classes { class_of_output: class_of_output.clone(), weights: weights.clone() };
            let fit = Fit {
                frozen: &member.frozen,
                learning_rate: member.learning_rate.unwrap_or(plan.optimisation.learning_rate),
                ..self.fit(&member.name, network, &examples, objective)
            };
            let begin = |network: &Trainable| {
                begin(network, &member.name, &member.start, plan.compute.seed, &mut |note| notes.push(note))
            };
            let member_trained = fit.run(begin, observer)?;
            for note in notes {
                observer(Event::Note(&note));
            }
            trained.push((member, member_trained));
        }
        self.leave_predictions(classes, &class_of_output, &examples, &trained)?;
        let bundle = export_classifiers(plan, self.record, &trained, of_bundle, &self.folder.join(BUNDLE_FOLDER))?;
        let kept = trained.iter().filter_map(|(member, trained)| kept_epoch(&member.name, &trained.progress)).collect();
        Ok(Outcome { bundle, kept })
    }

    /// The weight of each output in the loss.
    fn output_weights(&self, n_classes: usize, class_of_output: &[usize]) -> Vec<f32> {
        if !self.plan.loss.balanced_classes {
            return vec![1.0; class_of_output.len()];
        }
        let n_training = self.chosen.training.len() as f32;
        let of_class = |class: usize| {
            let in_class = |image: &&usize| self.chosen.classes.get(**image) == Some(&class);
            let n = self.chosen.training.iter().filter(in_class).count().max(1) as f32;
            n_training / (n_classes as f32 * n)
        };
        class_of_output.iter().map(|class| of_class(*class)).collect()
    }

    fn sub_classes(
        &self,
        member: &TrainedMember,
        network: NetworkPlan,
        examples: &ClassExamples,
        n_sub_classes: usize,
    ) -> Result<Vec<usize>, TrainError> {
        let starting = Trainable::declare(network, self.plan.device())?;
        begin(&starting, &member.name, &member.start, self.plan.compute.seed, &mut |_| {})?;
        starting.freeze(&network.stages());
        let images: Vec<usize> = (0..self.chosen.samples.len()).collect();
        let embeddings = embeddings(&starting, examples, &images)?;
        let (classes, training) = (&self.chosen.classes, &self.chosen.training);
        sub_classes(&embeddings, classes, training, n_sub_classes, self.plan.compute.seed)
    }

    /// What each network says of the validation images, with the weights that are kept.
    fn leave_predictions(
        &self,
        classes: &[Class],
        class_of_output: &[usize],
        examples: &ClassExamples,
        trained: &[(&TrainedMember, Trained)],
    ) -> Result<(), TrainError> {
        if self.chosen.validation.is_empty() {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| TrainError::Internal(error.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        let facts = ["file", "patient", "site", "label", "class"].map(str::to_owned);
        let of_members = trained
            .iter()
            .flat_map(|(member, _)| classes.iter().map(move |class| format!("{}: {}", member.name, class.label)));
        writer.write_record(facts.into_iter().chain(of_members)).map_err(|error| failed(&error))?;
        let [channels, rows, columns] = examples.shape();
        for image in &self.chosen.validation {
            let (Some(sample), Some(class)) = (self.chosen.samples.get(*image), self.chosen.classes.get(*image)) else {
                continue;
            };
            let label = classes.get(*class).map(|class| class.label.clone()).unwrap_or_default();
            let file = sample.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let mut record = vec![file, sample.patient.clone(), text(&sample.site), text(&sample.label), label];
            let input = tch::Tensor::f_from_slice(&examples.plain(*image)?.input)?;
            let input = input.f_view([1, channels, rows, columns])?;
            for (_, trained) in trained {
                let (logits, _) = trained.network.logits_and_embedding(&input.f_to(trained.network.device())?)?;
                let outputs = logits.f_softmax(1, tch::Kind::Double)?.f_flatten(0, -1)?.f_to(tch::Device::Cpu)?;
                let mut of_class: BTreeMap<usize, f64> = BTreeMap::new();
                for (class, probability) in class_of_output.iter().zip(Vec::<f64>::try_from(outputs)?) {
                    *of_class.entry(*class).or_default() += probability;
                }
                record.extend(of_class.values().map(|probability| format!("{probability:.6}")));
            }
            writer.write_record(record).map_err(|error| failed(&error))?;
        }
        replace(&self.folder.join("predictions.csv"), &writer.into_inner().map_err(|error| failed(&error))?)
    }
}

/// Digests of the starting weights that come from elsewhere: other bytes under the same name are another training.
fn starts(plan: &TrainPlan) -> Result<Vec<String>, TrainError> {
    let digest = |start: &Start| match start {
        Start::Scratch => Ok(None),
        Start::Bundle { folder, .. } => Ok(Some(open_bundle(folder)?.0.identity().digest.to_string())),
        Start::Checkpoint { file } => Ok(Some(Sha256Digest::of(&fs_err::read(file)?).to_string())),
    };
    let digests: Result<Vec<Option<String>>, TrainError> = plan.starts().into_iter().map(digest).collect();
    Ok(digests?.into_iter().flatten().collect())
}

/// Whose images the starting weights were trained on, by the trainings that they come from.
fn start_patients(plan: &TrainPlan) -> Result<BTreeSet<String>, TrainError> {
    let mut patients = BTreeSet::new();
    for start in plan.starts() {
        if let Start::Bundle { folder, .. } = start
            && let (_, Some(record)) = open_bundle(folder)?
        {
            patients.extend(record.known_patients());
        }
    }
    Ok(patients)
}

/// Gives a network its starting weights; what is made anew is noted.
fn begin(
    network: &Trainable,
    name: &str,
    start: &Start,
    seed: u64,
    note: &mut dyn FnMut(String),
) -> Result<(), TrainError> {
    // Members of one architecture start differently.
    let of_name = name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    network.initialise(of_name)?;
    let anew = match start {
        Start::Scratch => return Ok(()),
        Start::Checkpoint { file } => network.start_from(file),
        Start::Bundle { folder, member } => network.start_from_bundle(&open_bundle(folder)?.0, member.as_deref()),
    };
    let anew = anew.map_err(|problems| TrainError::Start { network: name.to_owned(), problems })?;
    if !anew.is_empty() {
        note(format!("{name}: another number of classes, the last layer is made anew ({})", anew.join(", ")));
    }
    Ok(())
}

fn kept_epoch(name: &str, progress: &Progress) -> Option<(String, EpochRecord)> {
    let (epoch, _) = progress.best?;
    let record = progress.history.iter().find(|record| record.epoch == epoch)?;
    Some((name.to_owned(), record.clone()))
}
