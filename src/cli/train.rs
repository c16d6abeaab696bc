//! `hilum train`: makes weights.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{count, no_color, print};
use crate::train::{EpochRecord, Event, TrainPlan, read_plan, train};

/// Trains a lung segmenter or classifiers, as a configuration says, and writes a bundle
///
/// A training that was interrupted goes on from its last checkpoint when the same command is given again.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The training's configuration; config/train.example.toml explains every key [default: only --set]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder that gets checkpoints, curves, predictions and the bundle
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Instead of what the configuration says, such as `optimisation.epochs=3`; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The list of images, instead of `data.list`
    #[arg(long, value_name = "LIST")]
    data: Option<PathBuf>,
    /// How many times all images are gone through, instead of `optimisation.epochs`
    #[arg(long)]
    epochs: Option<u32>,
    /// Chooses starting weights, order, augmentation and folds, instead of `compute.seed`
    #[arg(long)]
    seed: Option<u64>,
    /// What computes, such as cuda:0, instead of `compute.device`
    #[arg(long)]
    device: Option<String>,
    /// Threads on the processor, instead of `compute.threads`
    #[arg(long)]
    threads: Option<u32>,
    /// Validates on this fold, such as `0/5`: the first of five by patient; `all/5` trains once for each fold, in a folder of its own
    #[arg(long, value_name = "FOLD/FOLDS", value_parser = fold, conflicts_with = "without_validation")]
    fold: Option<Fold>,
    /// Trains on all images and keeps the weights of the last epoch
    #[arg(long)]
    without_validation: bool,
}

/// Which fold of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fold {
    /// All of them without a number.
    fold: Option<u32>,
    folds: u32,
}

fn fold(text: &str) -> Result<Fold, String> {
    let expected = || "expected a fold such as `0/5`, or `all/5`".to_owned();
    let (fold, folds) = text.split_once('/').ok_or_else(expected)?;
    let folds = folds.parse().map_err(|_| expected())?;
    let fold = if fold == "all" { None } else { Some(fold.parse().map_err(|_| expected())?) };
    if fold.is_some_and(|fold| fold >= folds) {
        return Err(format!("there are {folds} folds, counted from 0"));
    }
    Ok(Fold { fold, folds })
}

/// The command line as it goes into the bundle.
pub(super) fn command_line() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("hilum {}", words.join(" "))
}

/// Trains; blocks until all is done.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let trainings: Vec<(PathBuf, Vec<String>)> = match options.fold {
        Some(Fold { fold: None, folds }) => (0..folds)
            .map(|fold| (options.out.join(format!("fold-{fold}")), vec![validation_by_fold(fold, folds)]))
            .collect(),
        Some(Fold { fold: Some(fold), folds }) => {
            vec![(options.out.clone(), vec![validation_by_fold(fold, folds)])]
        }
        None if options.without_validation => {
            vec![(options.out.clone(), vec!["data.validation={ by = \"none\" }".to_owned()])]
        }
        None => vec![(options.out.clone(), Vec::new())],
    };
    for (folder, changes) in trainings {
        let plan = options.plan(&changes)?;
        print(&format!("training into `{}`", folder.display()))?;
        let mut display = Display::new();
        let outcome = train(&plan, &folder, &command_line(), &mut |event| display.show(event));
        display.finish();
        let outcome = outcome.with_context(|| format!("train into `{}`", folder.display()))?;
        for (network, epoch) in &outcome.kept {
            print(&format!("kept       {network}: {}", epoch_words(epoch)))?;
        }
        let bundle = outcome.bundle;
        print(&format!(
            "bundle     {} {} in `{}/bundle`, digest {}",
            bundle.name,
            bundle.version,
            folder.display(),
            bundle.digest
        ))?;
    }
    Ok(())
}

fn validation_by_fold(fold: u32, folds: u32) -> String {
    format!("data.validation={{ by = \"fold\", folds = {folds}, fold = {fold} }}")
}

impl Options {
    fn plan(&self, changes: &[String]) -> anyhow::Result<TrainPlan> {
        let mut all = self.set.clone();
        let text = |path: &PathBuf| format!("{:?}", path.display().to_string());
        all.extend(self.data.as_ref().map(|list| format!("data.list={}", text(list))));
        all.extend(self.epochs.map(|epochs| format!("optimisation.epochs={epochs}")));
        all.extend(self.seed.map(|seed| format!("compute.seed={seed}")));
        all.extend(self.device.as_ref().map(|device| format!("compute.device={device:?}")));
        all.extend(self.threads.map(|threads| format!("compute.threads={threads}")));
        all.extend_from_slice(changes);
        Ok(match &self.config {
            Some(file) => read_plan(file, &all)?,
            None => TrainPlan::parse("", &all)?,
        })
    }
}

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(20);

/// How far training is: a bar on a terminal, lines elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    last_line: Instant,
    batches: usize,
    epochs: u32,
}

impl Display {
    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::no_length);
        Self { bar, last_line: Instant::now(), batches: 0, epochs: 0 }
    }

    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Reading { done, of } => self.advance(of, done, "reading images".to_owned()),
            Event::Began { network, epochs, batches, done } => {
                (self.batches, self.epochs) = (batches, epochs);
                let before = if done > 0 {
                    format!(", {} of them done before", count(done as usize, "epoch"))
                } else {
                    String::new()
                };
                self.say(&format!("{network}: {epochs} epochs of {batches} batches{before}"));
            }
            Event::Batch { epoch, batch, loss } => {
                let (done, all) = (self.batches * (epoch as usize - 1) + batch, self.batches * self.epochs as usize);
                self.advance(all, done, format!("epoch {epoch} of {}, loss {loss:.4}", self.epochs));
            }
            Event::Epoch(record) => self.say(&epoch_words(record)),
            Event::Note(words) => self.say(words),
        }
    }

    fn advance(&mut self, all: usize, done: usize, words: String) {
        if let Some(bar) = &self.bar {
            bar.set_length(all as u64);
            bar.set_style(style());
            bar.set_position(done as u64);
            bar.set_message(words);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            // A terminal that has gone does not stop the training.
            let _ = print(&format!("{words} ({done} of {all})"));
        }
    }

    fn say(&self, words: &str) {
        match &self.bar {
            Some(bar) => bar.println(words),
            None => drop(print(words)),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn epoch_words(record: &EpochRecord) -> String {
    let EpochRecord { epoch, training_loss, training_score, .. } = record;
    let validation = record.validation.map_or_else(String::new, |tried| {
        format!("; validation (n = {}): loss {:.4}, score {:.4}", tried.images, tried.loss, tried.score)
    });
    format!("epoch {epoch}: training loss {training_loss:.4}, score {training_score:.4}{validation}")
}

fn style() -> ProgressStyle {
    let bar = if no_color() { "{bar:30}" } else { "{bar:30.cyan}" };
    let template = format!("{bar} {{pos}} of {{len}}, {{eta}} left, {{msg}}");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_read() {
        assert_eq!(fold("0/5"), Ok(Fold { fold: Some(0), folds: 5 }));
        assert_eq!(fold("all/10"), Ok(Fold { fold: None, folds: 10 }));
        for bad in ["5", "5/5", "x/5", "1/", "-1/5"] {
            assert!(fold(bad).is_err(), "{bad}");
        }
    }
}
