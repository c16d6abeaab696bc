//! `hilum gate fit`: the distance from the training images, with limits set on other patients.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{
    super::{
        Global,
        output::{count, print, visible},
    },
    Which,
};
use crate::{
    nn::{FeatureDistances, FeatureSpace, FittedGate, MAX_COMPONENTS, write_feature_gate},
    train::{
        DataSet, FitOptions, Sample, Shrinkage, Split, fit_feature_space, patient_folds, patients_on_two_sides,
        quantile,
    },
    types::Errand,
};

/// Where a list gives no split, the patients are dealt out to so many folds ...
const FOLDS: usize = 10;
/// ... of which these are held out to set the limits on.
const HELD_OUT_FOLDS: usize = 3;
/// Fewest held-out images: the highest quantile of fewer is their farthest.
const MINIMUM_HELD_OUT: usize = 10;

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    which: Which,
    /// The training images: a list in CSV with the columns file, label, patient and perhaps split: `train` is fitted, the limits
    /// are set on `validation`, `test` is left alone; without it three tenths of the patients are held out
    #[arg(long, value_name = "CSV")]
    data: PathBuf,
    /// The classifier whose features are compared [default: the first]
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Most principal components that are kept
    #[arg(long, default_value_t = FitOptions::default().components, value_parser = components)]
    components: usize,
    /// How the covariance is shrunk: `ledoit-wolf`, or a share from 0 to 1
    #[arg(long, default_value = "ledoit-wolf", value_parser = shrinkage)]
    shrinkage: Shrinkage,
    /// Which of the nearest training images the second distance is to
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    neighbours: u32,
    /// Share of the held-out images that each limit lets pass, from 0.5 to 1
    #[arg(long, default_value_t = 0.99, value_parser = share)]
    quantile: f64,
}

fn components(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_COMPONENTS).contains(number));
    number.ok_or_else(|| format!("expected 1 to {MAX_COMPONENTS}"))
}

fn shrinkage(text: &str) -> Result<Shrinkage, String> {
    if text == "ledoit-wolf" {
        return Ok(Shrinkage::LedoitWolf);
    }
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.map(Shrinkage::Fixed).ok_or_else(|| "expected `ledoit-wolf` or a number from 0 to 1".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.5..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0.5 to 1".to_owned())
}

/// Embeddings of the images that the other gates let pass.
#[derive(Default)]
struct Embedded {
    fitted: Vec<Vec<f32>>,
    classes: Vec<usize>,
    held_out: Vec<Vec<f32>>,
    refused: BTreeMap<String, usize>,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let data = DataSet::read(&options.data)?;
    let parts = parts(&data.samples)?;
    let mut opened = options.which.open(global)?;
    // An older fit must not refuse what the new one is made of, nor members that disagree.
    opened.settings.gates.features = None;
    opened.settings.gates.maximum_member_spread = 1.0;
    let names: Vec<String> = opened.bundle.manifest().members.iter().map(|member| member.name.clone()).collect();
    let member_idx = match &options.member {
        None => 0,
        Some(member) => names.iter().position(|name| name == member).with_context(|| {
            format!("the bundle has no member `{}`: give one of {}", visible(member), names.join(", "))
        })?,
    };
    let member = names.get(member_idx).context("the bundle has no members")?.clone();
    let folder = opened.folder.clone();
    let pipeline = opened.pipeline().await?;

    let mut embedded = Embedded::default();
    let mut classes: BTreeMap<String, usize> = BTreeMap::new();
    for (sample, part) in data.samples.iter().zip(parts).filter(|(_, part)| *part != Split::Test) {
        let about = || format!("`{}`", sample.file.display());
        let label = sample.label.as_deref().with_context(about).context("an image has no label: give each one")?;
        let mut examined = pipeline.check_gates(sample.part10()?, &Errand::default()).await?;
        if let Some(refused) = examined.refused {
            *embedded.refused.entry(refused.gate).or_default() += 1;
            continue;
        }
        let embedding = examined.embeddings.swap_remove(member_idx).map_err(anyhow::Error::msg).with_context(about)?;
        if part == Split::Train {
            let next = classes.len();
            embedded.classes.push(*classes.entry(label.to_owned()).or_insert(next));
            embedded.fitted.push(embedding);
        } else {
            embedded.held_out.push(embedding);
        }
    }
    anyhow::ensure!(
        embedded.held_out.len() >= MINIMUM_HELD_OUT,
        "{} held out to set the limits on, at least {MINIMUM_HELD_OUT} expected: give a longer list",
        count(embedded.held_out.len(), "image")
    );
    let fit = FitOptions { components: options.components, shrinkage: options.shrinkage };
    let space = fit_feature_space(&embedded.fitted, &embedded.classes, &fit)?;
    let limits = limits(&space, &embedded.held_out, options.neighbours, options.quantile)?;
    let gate = FittedGate {
        member,
        neighbours: options.neighbours,
        limits,
        quantile: options.quantile,
        n_fitted: embedded.fitted.len() as u64,
        n_held_out: embedded.held_out.len() as u64,
    };
    let file_name = write_feature_gate(&folder, &space, &gate)?;
    print(&describe(&space, &gate, &embedded, classes.len(), &file_name))
}

/// The split of each sample: the list's, or three tenths of the patients for the limits.
fn parts(samples: &[Sample]) -> anyhow::Result<Vec<Split>> {
    let on_two_sides = patients_on_two_sides(samples);
    anyhow::ensure!(
        on_two_sides.is_empty(),
        "{} patient(s) of the list are in more than one split: the limits would not be set on other patients; \
         `hilum dataset check` names them",
        on_two_sides.len()
    );
    let stated: Option<Vec<Split>> = samples.iter().map(|sample| sample.split).collect();
    if let Some(stated) = stated {
        return Ok(stated);
    }
    anyhow::ensure!(
        samples.iter().all(|sample| sample.split.is_none()),
        "the list gives some images a split and others none: give all one, or leave the column out"
    );
    let folds = patient_folds(&samples.iter().collect::<Vec<_>>(), FOLDS, 0)?;
    let part = |fold| if fold < HELD_OUT_FOLDS { Split::Validation } else { Split::Train };
    Ok(folds.into_iter().map(part).collect())
}

/// The distances that the share `share` of the held-out images keep below, each by itself.
fn limits(
    space: &FeatureSpace,
    held_out: &[Vec<f32>],
    neighbours: u32,
    share: f64,
) -> anyhow::Result<FeatureDistances> {
    let distances: Option<Vec<FeatureDistances>> =
        held_out.iter().map(|embedding| space.distances(embedding, neighbours as usize)).collect();
    let distances = distances.context("the embeddings of the member have different lengths")?;
    let limit = |pick: fn(&FeatureDistances) -> f64| {
        let values: Vec<f64> = distances.iter().map(pick).collect();
        quantile(&values, share).context("no image was held out")
    };
    Ok(FeatureDistances {
        mahalanobis: limit(|distances| distances.mahalanobis)?,
        neighbour: limit(|distances| distances.neighbour)?,
    })
}

fn describe(space: &FeatureSpace, gate: &FittedGate, embedded: &Embedded, n_classes: usize, file_name: &str) -> String {
    let mut text = format!(
        "features of `{}`: {} numbers, {} components kept; {} of {} fitted, {} of other patients held out\nlimits at the \
         quantile {}: Mahalanobis {:.3}, neighbour {} {:.4}\nwrote `{file_name}` and `[input.gates.features]` of the \
         manifest",
        gate.member,
        space.features(),
        space.precision.columns,
        count(embedded.fitted.len(), "image"),
        if n_classes == 1 { "1 class".to_owned() } else { format!("{n_classes} classes") },
        embedded.held_out.len(),
        gate.quantile,
        gate.limits.mahalanobis,
        gate.neighbours,
        gate.limits.neighbour
    );
    for (refused_by, n) in &embedded.refused {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{} left out: refused by {refused_by}", count(*n, "image"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Matrix;

    #[test]
    fn options_are_read_and_refused() {
        assert_eq!(shrinkage("ledoit-wolf"), Ok(Shrinkage::LedoitWolf));
        assert_eq!(shrinkage("0.25"), Ok(Shrinkage::Fixed(0.25)));
        assert!(shrinkage("1.5").is_err() && shrinkage("NaN").is_err());
        assert!(share("0.4").is_err() && components("0").is_err() && components("129").is_err());
        assert_eq!((share("0.95"), components("128")), (Ok(0.95), Ok(128)));
    }

    fn sample(number: usize, split: Option<Split>) -> Sample {
        Sample {
            file: format!("{number}.png").into(),
            label: Some("normal".to_owned()),
            patient: format!("P{}", number / 2),
            view: None,
            mask: None,
            site: None,
            split,
            age_years: None,
            sex: None,
        }
    }

    #[test]
    fn three_tenths_of_the_patients_are_held_out_unless_the_list_says_who() {
        let samples: Vec<Sample> = (0..80).map(|number| sample(number, None)).collect();
        let dealt = parts(&samples).unwrap();
        assert_eq!(dealt.iter().filter(|part| **part == Split::Validation).count(), 24);
        assert!(dealt.chunks(2).all(|pair| pair[0] == pair[1]), "a patient is on two sides");
        let stated: Vec<Sample> = [0, 2, 4]
            .into_iter()
            .zip([Split::Test, Split::Train, Split::Validation])
            .map(|(number, split)| sample(number, Some(split)))
            .collect();
        assert_eq!(parts(&stated).unwrap(), [Split::Test, Split::Train, Split::Validation]);
        let on_two_sides = [sample(0, Some(Split::Train)), sample(1, Some(Split::Validation))];
        assert!(
            parts(&on_two_sides).unwrap_err().to_string().contains("1 patient(s) of the list are in more than one")
        );
        let some = [sample(0, None), sample(2, Some(Split::Train))];
        assert!(parts(&some).unwrap_err().to_string().contains("leave the column out"));
    }

    #[test]
    fn limits_are_quantiles_of_the_held_out_images() {
        let matrix = |values: &[f64]| Matrix { columns: 1, values: values.to_vec() };
        let space = FeatureSpace {
            centre: vec![0.0],
            components: matrix(&[1.0]),
            class_means: matrix(&[0.0]),
            precision: matrix(&[4.0]),
            vectors: matrix(&[0.0, 1.0]),
        };
        let held_out: Vec<Vec<f32>> = (0..=10).map(|tenths| vec![tenths as f32 / 10.0]).collect();
        let found = limits(&space, &held_out, 2, 0.9).unwrap();
        assert!((found.mahalanobis - 1.8).abs() < 1e-6, "{found:?}");
        // The farther of the two training images is 0.5 to 1 away, twice each but for 0.5: rank 9 of 0 to 10.
        assert!((found.neighbour - 1.0).abs() < 1e-6 || (found.neighbour - 0.9).abs() < 1e-6, "{found:?}");
        assert!(limits(&space, &[vec![0.0, 1.0]], 2, 0.9).is_err());
    }
}
