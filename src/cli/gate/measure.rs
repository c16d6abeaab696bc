//! `hilum gate measure`: what the gates on the picture cost beside decoding it.

use std::{path::PathBuf, time::Instant};

use clap::Args;

use super::super::output::print;
use crate::imaging::{DecodeLimits, canvas, decode_grey, quality::PictureMeasurements, read_object};

/// Percentiles that a picture is scaled between, as bundles do.
const PERCENTILES: (f64, f64) = (0.5, 99.5);

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// A DICOM radiograph
    file: PathBuf,
    /// Repetitions
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let bytes = fs_err::read(&options.file)?;
    let (mut decoding, mut measuring) = (Vec::new(), Vec::new());
    let mut shape = (0, 0);
    for _ in 0..options.repeats {
        let started = Instant::now();
        let grey = decode_grey(&read_object(&bytes)?, DecodeLimits::default())?;
        let scaled = canvas::percentile_scale(&grey.presentation(true), PERCENTILES.0, PERCENTILES.1);
        decoding.push(started.elapsed().as_secs_f64() * 1000.0);
        let started = Instant::now();
        let measured = PictureMeasurements::of(&scaled)?;
        measuring.push(started.elapsed().as_secs_f64() * 1000.0);
        anyhow::ensure!(measured.entropy_bits.is_finite(), "the picture cannot be measured");
        shape = (scaled.columns, scaled.rows);
    }
    let line = |name: &str, milliseconds: &mut Vec<f64>| {
        milliseconds.sort_by(f64::total_cmp);
        let at =
            |share: f64| milliseconds.get(((milliseconds.len() - 1) as f64 * share) as usize).copied().unwrap_or(0.0);
        format!("{name}: median {:.2} ms, fastest {:.2} ms, slowest {:.2} ms", at(0.5), at(0.0), at(1.0))
    };
    print(&format!(
        "{} x {} pixels, {} repetitions\n{}\n{}",
        shape.0,
        shape.1,
        options.repeats,
        line("decoding and scaling", &mut decoding),
        line("gates on the picture", &mut measuring)
    ))
}
