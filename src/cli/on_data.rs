//! A bundle beside a data set, as `evaluate`, `calibrate` and `threshold` want them.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use time::{OffsetDateTime, macros::format_description};

use super::{Global, output::visible};
use crate::{
    app::tuning::network_threads,
    imaging::DecodeLimits,
    infer::{CxrPipeline, NnModels, lung_settings},
    nn::{Bundle, Classification, Ensemble, EnsembleOptions, MANIFEST_FILE_NAME},
    train::{
        ClassMap, DataSet, Prediction, Questions, RunRecord, Sample, Split, TrainedOn, patients_on_two_sides, predict,
    },
    types::BundleStatus,
};

/// Which bundle, which images, and what their labels mean.
#[derive(Debug, Args)]
pub(super) struct Subject {
    /// Name of the bundle, or its folder
    pub(super) bundle: String,
    /// The list of images in CSV, or the folder that holds it
    #[arg(long, value_name = "LIST")]
    pub(super) data: PathBuf,
    /// Folder of the bundles [default: the configured one]
    #[arg(long, value_name = "DIR")]
    pub(super) models_dir: Option<PathBuf>,
    /// What a label of the list means, where it is not the name of a class: LABEL=CLASS; `*=CLASS` for all others, `LABEL=`
    /// to leave its images out
    #[arg(long = "map", value_name = "LABEL=CLASS", value_parser = pair)]
    map: Vec<(String, String)>,
    /// Leave out images that a gate refuses, as in service; otherwise gates are only looked at
    #[arg(long)]
    pub(super) enforce_gates: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (label, class) = text.split_once('=').ok_or("expected LABEL=CLASS")?;
    Ok((label.trim().to_owned(), class.trim().to_owned()))
}

/// A split by its name, or all images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SplitChoice {
    All,
    Only(Split),
}

impl std::str::FromStr for SplitChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("all") {
            return Ok(Self::All);
        }
        text.parse().map(Self::Only).map_err(|words: String| format!("{words}, or `all`"))
    }
}

impl SplitChoice {
    pub(super) const fn split(self) -> Option<Split> {
        match self {
            Self::All => None,
            Self::Only(split) => Some(split),
        }
    }
}

/// The list, read, of which no patient is in two splits.
pub(super) fn open_data(subject: &Subject) -> anyhow::Result<DataSet> {
    let data = DataSet::read(&subject.data)?;
    let on_two_sides = patients_on_two_sides(&data.samples);
    anyhow::ensure!(
        on_two_sides.is_empty(),
        "{} patient(s) of the list are in more than one split: figures would be about patients that the weights were fitted \
         on; `hilum dataset check` names them",
        on_two_sides.len()
    );
    Ok(data)
}

/// A bundle with its networks loaded.
pub(super) struct Opened {
    pub(super) bundle: Bundle,
    pub(super) pipeline: CxrPipeline<NnModels>,
}

/// The folder of a bundle that is named, or given as a folder.
pub(super) fn bundle_folder(global: &Global, subject: &Subject, bundle: &str) -> anyhow::Result<PathBuf> {
    let as_path = Path::new(bundle);
    if as_path.join(MANIFEST_FILE_NAME).is_file() {
        return Ok(as_path.to_owned());
    }
    anyhow::ensure!(
        as_path.file_name().is_some_and(|name| name == bundle),
        "`{}` is neither the name of a bundle nor a folder with `{MANIFEST_FILE_NAME}`",
        visible(bundle)
    );
    let models_dir = match &subject.models_dir {
        Some(models_dir) => models_dir.clone(),
        None => global.load()?.inference.models_dir,
    };
    Ok(models_dir.join(bundle))
}

/// Opens a bundle and loads its networks; `adjust` may change what their outputs mean.
pub(super) async fn open_bundle(
    global: &Global,
    subject: &Subject,
    name: &str,
    adjust: impl FnOnce(&mut Classification),
) -> anyhow::Result<Opened> {
    let config = global.load()?;
    let bundle = Bundle::open(&bundle_folder(global, subject, name)?)
        .with_context(|| format!("open bundle `{}`; `hilum model list` names those there are", visible(name)))?;
    let decode_limits = DecodeLimits { max_decoded_bytes: config.inference.max_decoded_bytes.bytes() };
    let settings = lung_settings(&bundle, decode_limits)?;
    let mut classification = bundle.manifest().classification.clone();
    if let Some(classification) = &mut classification {
        adjust(classification);
    }
    let has_classifiers = classification.is_some();
    let threads = network_threads(&config);
    let options = EnsembleOptions {
        // One image at a time: one device is enough.
        devices: config.inference.devices.as_slice().iter().take(1).copied().collect(),
        optimise: config.inference.optimise,
        intra_op_threads: threads.classifiers,
        segmenter_threads: threads.segmenter,
        ..EnsembleOptions::default()
    };
    let (models, bundle) = tokio::task::spawn_blocking(move || {
        let models = NnModels::new(Ensemble::load(&bundle, options)?, classification);
        anyhow::Ok((models, bundle))
    })
    .await??;
    let identity = bundle.identity();
    let pipeline = if has_classifiers {
        CxrPipeline::new(models, identity, settings)?
    } else {
        CxrPipeline::of_lungs(models, identity, settings)?
    };
    Ok(Opened { bundle, pipeline })
}

impl Opened {
    /// For those who need outputs.
    pub(super) fn require_classifiers(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.pipeline.bundle().members.is_empty(),
            "bundle `{}` only finds lungs: it has no outputs; `hilum evaluate` compares its lungs with masks",
            self.pipeline.bundle().name
        );
        Ok(())
    }

    /// What the labels of these images mean to the bundle.
    pub(super) fn classes(&self, subject: &Subject, samples: &[&Sample]) -> anyhow::Result<ClassMap> {
        let labels: BTreeSet<&str> = samples.iter().filter_map(|sample| sample.label.as_deref()).collect();
        let labels: Vec<&str> = labels.into_iter().collect();
        Ok(ClassMap::new(&self.pipeline.bundle().classes, &labels, &subject.map)?)
    }

    /// The record of the bundle's training, when it lies in its folder.
    fn record(&self) -> anyhow::Result<Option<RunRecord>> {
        Ok(self.bundle.folder().parent().map(RunRecord::read).transpose()?.flatten())
    }

    /// Whether some of these images chose the epoch of the bundle's weights.
    pub(super) fn was_chosen_by(&self, samples: &[&Sample]) -> anyhow::Result<bool> {
        let Some(record) = self.record()?.filter(RunRecord::chose_the_epoch) else { return Ok(false) };
        Ok(samples.iter().any(|sample| record.validation_patients.contains(&sample.patient)))
    }

    /// What is known of whom the bundle was trained on; without its training's folder by what its manifest says.
    pub(super) fn trained_on(&self, data: &DataSet) -> anyhow::Result<TrainedOn> {
        let manifest = self.bundle.manifest();
        Ok(if manifest.status == BundleStatus::Untrained || self.record()?.is_some() {
            TrainedOn::Others
        } else if manifest.training_data.contains(&data.sha256) {
            TrainedOn::ThisList
        } else {
            TrainedOn::Unknown
        })
    }

    /// When the bundle lies in the folder of its training, whom it was trained on is known. Images that the list itself calls
    /// `train` may be looked at.
    fn require_other_patients(&self, samples: &[&Sample]) -> anyhow::Result<()> {
        let Some(record) = self.record()? else { return Ok(()) };
        let among = |patients: &BTreeSet<String>| -> usize {
            let known = samples.iter().filter(|sample| sample.split != Some(Split::Train));
            known
                .map(|sample| &sample.patient)
                .filter(|patient| patients.contains(*patient))
                .collect::<BTreeSet<_>>()
                .len()
        };
        let of_segmenter = among(&record.segmenter_patients);
        anyhow::ensure!(
            of_segmenter == 0,
            "the lung segmenter of bundle `{}` was trained on {of_segmenter} patient(s) of these images: its masks are better \
             there than at work; train segmenters and classifiers in the same folds of the same list, with the same seed",
            self.pipeline.bundle().name
        );
        let known = among(&record.known_patients());
        anyhow::ensure!(
            known == 0,
            "bundle `{}`, or what its training started from, was trained on {} patient(s) of these images: figures on them \
             say nothing of others; leave them out (`validation.csv` beside the bundle has those that it was not trained \
             on), or call them `train` in the column `split`",
            self.pipeline.bundle().name,
            known
        );
        Ok(())
    }

    /// Judges the images with a bar that says how far it is.
    pub(super) async fn predict<'a>(
        &self,
        samples: &[&'a Sample],
        classes: &ClassMap,
        questions: Questions,
    ) -> anyhow::Result<Vec<Prediction<'a>>> {
        self.require_other_patients(samples)?;
        // An image whose label is left out, or that has a mask only, still tells of gates and lungs.
        let asked: Vec<(&Sample, Option<usize>)> =
            samples.iter().map(|sample| (*sample, classes.class_of(sample.label.as_deref()))).collect();
        let bar = progress_bar(asked.len(), &self.pipeline.bundle().name);
        let predictions = predict(&self.pipeline, &asked, questions, |_| bar.inc(1)).await?;
        bar.finish_and_clear();
        Ok(predictions)
    }
}

/// A bar on standard error; hidden where nobody looks.
pub(super) fn progress_bar(length: usize, name: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length as u64);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} images, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(visible(name));
    bar
}

/// The images of a split; an error that names the remedy when there are none.
pub(super) fn images_of(data: &DataSet, split: Option<Split>) -> anyhow::Result<Vec<&Sample>> {
    let samples: Vec<&Sample> = data.of(split).collect();
    anyhow::ensure!(
        !samples.is_empty(),
        "the list has no image in split `{}`: fill its column `split`, or give `--split all`",
        split.map_or("all", Split::name)
    );
    Ok(samples)
}

/// Today in UTC, as YYYY-MM-DD.
pub(super) fn today() -> String {
    let today = OffsetDateTime::now_utc().date();
    today.format(format_description!("[year]-[month]-[day]")).unwrap_or_else(|_| today.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_mapped_by_pairs_and_splits_by_name() {
        assert_eq!(pair("covid = COVID-19").unwrap(), ("covid".to_owned(), "COVID-19".to_owned()));
        assert_eq!(pair("unsure=").unwrap(), ("unsure".to_owned(), String::new()));
        assert!(pair("covid").is_err());
        assert_eq!("all".parse::<SplitChoice>().unwrap().split(), None);
        assert_eq!("val".parse::<SplitChoice>().unwrap().split(), Some(Split::Validation));
        assert!("tset".parse::<SplitChoice>().unwrap_err().contains("or `all`"));
    }
}
