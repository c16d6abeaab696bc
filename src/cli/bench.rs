//! `hilum bench`: how fast the networks of a bundle are here, and with how many threads they are fastest.

use std::{
    path::PathBuf,
    process::{Command, ExitStatus},
};

use anyhow::Context as _;
use clap::Args;

use super::{
    Global,
    output::{Table, print, print_json},
};
use crate::{
    app::tuning::{Machine, Threads, Tuning},
    nn::{Bundle, EnsembleOptions, Measured, UNTRAINED_BUNDLE_NAME, measure},
    types::{Device, Devices},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Name of the bundle
    #[arg(default_value = UNTRAINED_BUNDLE_NAME)]
    bundle: String,
    /// Folder of the bundles [default: the configured one]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Images at once; several numbers are measured one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: Vec<u16>,
    /// Threads that one network computes with; several numbers are measured one after the other [default: 1, 2, 4, … up to
    /// the cores]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Threads that the lung segmenter computes with [default: as --threads]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    segmenter_threads: Option<u16>,
    /// Devices that compute, such as cuda:0; each gets a copy of every network [default: the configured ones]
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    device: Vec<Device>,
    /// Repetitions; the median is shown
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repetitions: u16,
    /// Run the networks as they are, without optimising them for the processor
    #[arg(long)]
    plain: bool,
    /// Leave the activation maps out
    #[arg(long)]
    without_explanation: bool,
    /// Keep the fastest number of threads in the data folder, for the node to use when its configuration names none
    #[arg(long)]
    tune: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What libgomp must find in the environment before it is loaded, as in the node's own inference process.
const WAIT_POLICY: (&str, &str) = ("OMP_WAIT_POLICY", "passive");

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    if std::env::var_os(WAIT_POLICY.0).is_none() {
        let status = again().await?;
        anyhow::ensure!(status.success(), "the measurement failed ({status})");
        return Ok(());
    }
    let config = global.load()?;
    let models_dir = options.models_dir.clone().unwrap_or_else(|| config.inference.models_dir.clone());
    let bundle = Bundle::open(&models_dir.join(&options.bundle))?;
    anyhow::ensure!(
        bundle.identity().networks().next().is_some(),
        "bundle `{}` has no networks: there is nothing to measure",
        options.bundle
    );
    let machine = Machine::this();
    let threads = if options.threads.is_empty() {
        layouts(machine.cores)
    } else {
        options.threads.iter().map(|threads| usize::from(*threads)).collect()
    };
    let segmenter = options.segmenter_threads.map(usize::from);
    let batches: Vec<usize> = options.batch.iter().map(|batch| usize::from(*batch)).collect();
    let devices =
        if options.device.is_empty() { config.inference.devices.clone() } else { Devices::new(options.device)? };
    let mut measured = Vec::new();
    for threads in threads {
        let ensemble = EnsembleOptions {
            devices: devices.as_slice().to_vec(),
            intra_op_threads: threads,
            segmenter_threads: segmenter.unwrap_or(threads),
            optimise: !options.plain,
            explain: !options.without_explanation,
            ..EnsembleOptions::default()
        };
        measured.extend(measure(&bundle, ensemble, &batches, usize::from(options.repetitions)).await?);
    }
    if options.json {
        print_json(&measured)?;
    } else {
        print(&format!("{} cores, {}\n{}", machine.cores, machine.processor, table(&measured)))?;
    }
    if options.tune {
        let tuning = Tuning {
            machine,
            threads: fastest(&measured).context("nothing was measured")?,
            bundle: options.bundle,
            bundle_digest: bundle.identity().digest.to_string(),
        };
        let path = tuning.save(&config)?;
        let words = format!(
            "fastest here: {} for the lung segmenter, {} for each classifier; kept in {}, used from the next start on unless \
             `inference.threads` is set",
            super::output::count(tuning.threads.segmenter, "thread"),
            super::output::count(tuning.threads.classifiers, "thread"),
            path.display()
        );
        if !options.json {
            print(&words)?;
        }
    }
    Ok(())
}

/// The same command with the environment of the node's inference process.
async fn again() -> anyhow::Result<ExitStatus> {
    let program = std::env::current_exe().context("find our own program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(WAIT_POLICY.0, WAIT_POLICY.1);
    tokio::task::spawn_blocking(move || command.status()).await?.context("start the measurement")
}

/// 1, 2, 4, … and all cores.
fn layouts(cores: usize) -> Vec<usize> {
    let mut layouts: Vec<usize> =
        std::iter::successors(Some(1), |threads| Some(threads * 2)).take_while(|n| *n < cores).collect();
    layouts.push(cores.max(1));
    layouts
}

/// Of the smallest batch that was measured: single images are what a node mostly has. The segmenter's own time decides
/// for the segmenter, that of all classifiers together for the classifiers.
fn fastest(measured: &[Measured]) -> Option<Threads> {
    let smallest = measured.iter().map(|of| of.batch).min()?;
    let by = |milliseconds: fn(&Measured) -> f64| {
        let candidates = measured.iter().filter(|of| of.batch == smallest);
        candidates.min_by(|a, b| milliseconds(a).total_cmp(&milliseconds(b)))
    };
    Some(Threads {
        segmenter: by(|of| of.networks.first().map_or(f64::NAN, |(_, milliseconds)| *milliseconds))?.segmenter_threads,
        classifiers: by(|of| of.ensemble_milliseconds)?.threads,
    })
}

fn table(measured: &[Measured]) -> String {
    let names: Vec<String> =
        measured.first().into_iter().flat_map(|of| of.networks.iter().map(|(name, _)| name.to_uppercase())).collect();
    let mut head = vec!["THREADS", "SEGMENTER THREADS", "BATCH"];
    head.extend(names.iter().map(String::as_str));
    head.extend(["ENSEMBLE", "WITH LUNGS"]);
    let mut table = Table::new(&head);
    let milliseconds = |value: f64| format!("{value:.1}");
    for of in measured {
        let mut row = vec![of.threads.to_string(), of.segmenter_threads.to_string(), of.batch.to_string()];
        row.extend(of.networks.iter().map(|(_, value)| milliseconds(*value)));
        row.extend([milliseconds(of.ensemble_milliseconds), milliseconds(of.whole_milliseconds)]);
        table.row(row);
    }
    format!("milliseconds for each image\n{}{}", table.render("nothing was measured"), computing(measured))
}

/// What the networks computed with, unless that is the processor.
fn computing(measured: &[Measured]) -> String {
    let Some(of) = measured.first() else { return String::new() };
    let on_gpus = of.networks.iter().zip(&of.computing).filter(|(_, computing)| !computing.starts_with("cpu"));
    on_gpus.flat_map(|((name, _), computing)| ["\n", name, ": ", computing]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_double_up_to_the_cores() {
        assert_eq!(layouts(1), [1]);
        assert_eq!(layouts(2), [1, 2]);
        assert_eq!(layouts(12), [1, 2, 4, 8, 12]);
    }

    #[test]
    fn the_fastest_with_single_images_is_chosen() {
        let of = |threads, batch, segmenter, ensemble_milliseconds| Measured {
            threads,
            segmenter_threads: threads,
            batch,
            whole_milliseconds: segmenter + ensemble_milliseconds,
            ensemble_milliseconds,
            networks: vec![("lung segmenter".to_owned(), segmenter), ("resnet50".to_owned(), 0.5)],
            computing: vec!["cpu float32".to_owned(), "cuda:0 float16".to_owned()],
        };
        let measured = [of(1, 1, 30.0, 20.0), of(1, 8, 1.0, 1.0), of(2, 1, 20.0, 25.0), of(2, 8, 2.0, 2.0)];
        assert_eq!(fastest(&measured), Some(Threads { segmenter: 2, classifiers: 1 }));
        let segmenter_alone: Vec<Measured> =
            measured.iter().cloned().map(|of| Measured { segmenter_threads: 4, ..of }).collect();
        assert_eq!(fastest(&segmenter_alone), Some(Threads { segmenter: 4, classifiers: 1 }), "--segmenter-threads 4");
        let text = table(&measured);
        assert!(text.contains("RESNET50") && text.contains("30.0"), "{text}");
        assert!(text.ends_with("\nresnet50: cuda:0 float16"), "{text}");
    }
}
