//! `hilum explain`: where a network looked, as a picture, by the method that a person asks for.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use clap::{Args, builder::PossibleValuesParser};
use uuid::Uuid;

use super::{
    Global,
    output::print,
    rerun::{self, open_pipeline},
    store::Store,
};
use crate::{
    app::open_archive,
    archive::Archive,
    imaging::{DecodeLimits, OverlayOptions},
    infer::{MapWish, Pipeline, pictures, worker},
    nn::{Bundle, Explanation, IntegratedGradientsOptions},
    report::{self, Catalogue, NOT_FOR_DIAGNOSTIC_USE, PictureForm},
    types::{BundleIdentity, CtAnalysis, CxrAnalysis, ImageAnalysis, RunOutcome, RunRecord},
};

/// The command line speaks English, and so do its pictures.
const LANGUAGE: &str = "en";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The run, as `hilum runs` lists it
    run_id: Uuid,
    /// Where the PNG goes; a file that is there is not replaced
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// How the map is made [default: as in the run]
    #[arg(long, value_name = "METHOD", value_parser = PossibleValuesParser::new(Explanation::ALL.map(Explanation::name)))]
    method: Option<String>,
    /// Of this member of the bundle only [default: all, weighted by their output]
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// About this class, by its label [default: the bundle's target class]
    #[arg(long, value_name = "LABEL")]
    class: Option<String>,
    /// Of a radiograph study: which image, from 1 in the order of the report
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    image: u32,
    /// Of a CT: which slice, from 1 at the feet, as reports count [default: the one that speaks most for the target class]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    slice: Option<u32>,
    /// Integrated Gradients: points on the way, both ends included
    #[arg(long, value_name = "NUMBER", default_value_t = 25, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Integrated Gradients: every sample of the image where the way begins, in the units of the normalised input
    #[arg(long, value_name = "VALUE", default_value_t = -1.0, allow_negative_numbers = true)]
    baseline: f32,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let config = global.load()?;
    anyhow::ensure!(!options.output.exists(), is_there(&options.output));
    let store = Store::open(&config).await?;
    let record = rerun::record(&store, &config, options.run_id).await;
    store.close().await?;
    let (bundle_name, mut record) = record?;
    let wish = wish(&options, &record.bundle)?;
    record.bundle.target_class_idx = wish.class_idx;

    let started = Instant::now();
    // The members that are asked are loaded one after the other, with their gradients.
    let pipeline = open_pipeline(&config, &bundle_name, &record, false).await?;
    let folder = config.inference.models_dir.join(&bundle_name);
    let bundle = Arc::new(tokio::task::spawn_blocking(move || Bundle::open(&folder)).await??);
    let archive = open_archive(&config)?;
    let limits = DecodeLimits { max_decoded_bytes: config.inference.max_decoded_bytes.bytes() };
    let catalogue = Catalogue::new(&[])?;
    let png = match (&pipeline, &record.outcome) {
        (Pipeline::Cxr(pipeline), RunOutcome::Analysed(analysis)) => {
            let image = image_of(analysis, options.image)?;
            let loaded = worker::load(&archive, image.source.clone()).await?;
            let explained = pipeline.explain_on_demand(&bundle, loaded, image, &wish).await?;
            let words = report::overlay_words_on_demand(&record.bundle, &explained, catalogue.language(LANGUAGE));
            let picture = OverlayOptions { on_demand: true, ..OverlayOptions::default() };
            tokio::task::spawn_blocking(move || {
                pictures::radiograph_overlay(&archive, &explained, &words, picture, limits)
            })
            .await??
            .1
        }
        (Pipeline::Ct(pipeline), RunOutcome::CtMeasured(analysis)) => {
            let slice = slice_of(analysis, options.slice, options.class.is_some())?;
            let read = |source| worker::load(&archive, source);
            let explained = pipeline.explain_on_demand(&bundle, analysis, slice, &wish, read).await?;
            ct_picture(&archive, &record, &catalogue, explained, limits).await?
        }
        _ => anyhow::bail!("run {} was not analysed: there is nothing to explain", record.run_id),
    };
    write_new(&options.output, &png)?;
    print(&format!(
        "{} written in {:.1} s; nothing was stored or sent",
        options.output.display(),
        started.elapsed().as_secs_f64()
    ))
}

fn is_there(output: &Path) -> String {
    format!("`{}` is there already: give another --output, or remove it", output.display())
}

/// Writes a file whole, or leaves none: one that has appeared since the command began is not replaced.
fn write_new(output: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = match fs_err::OpenOptions::new().write(true).create_new(true).open(output) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => anyhow::bail!(is_there(output)),
        Err(error) => return Err(error.into()),
    };
    file.write_all(bytes).inspect_err(|_| {
        // What is told is why it could not be written.
        let _ = fs_err::remove_file(output);
    })?;
    Ok(())
}

fn wish(options: &Options, bundle: &BundleIdentity) -> anyhow::Result<MapWish> {
    let class_idx = match &options.class {
        None => bundle.target_class_idx,
        Some(label) => bundle.classes.iter().position(|class| class.label == *label).with_context(|| {
            let labels: Vec<String> = bundle.classes.iter().map(|class| format!("`{}`", class.label)).collect();
            format!("the bundle has no class `{label}`; it has {}", labels.join(", "))
        })?,
    };
    Ok(MapWish {
        member: options.member.clone(),
        class_idx,
        method: options.method.as_deref().and_then(Explanation::named),
        integrated_gradients: IntegratedGradientsOptions {
            steps: options.steps,
            baseline: options.baseline,
            // The node needs its memory, and more at once is hardly quicker.
            max_batch: 1,
        },
    })
}

fn image_of(analysis: &CxrAnalysis, number: u32) -> anyhow::Result<&ImageAnalysis> {
    analysis
        .images
        .get(number as usize - 1)
        .with_context(|| format!("the run analysed {} image(s): there is no image {number}", analysis.images.len()))
}

/// Counted from 0.
fn slice_of(analysis: &CtAnalysis, wanted: Option<u32>, is_of_other_class: bool) -> anyhow::Result<usize> {
    anyhow::ensure!(
        wanted.is_some() || !is_of_other_class,
        "the run knows the slices that speak for its own class only: choose one with --slice as well"
    );
    let strongest = || analysis.classification.iter().flat_map(|of| &of.key_slices).map(|key| key.slice).next();
    wanted
        .map(|number| number as usize - 1)
        .or_else(strongest)
        .context("no slice speaks for the class: choose one with --slice")
}

async fn ct_picture(
    archive: &Archive,
    record: &RunRecord,
    catalogue: &Catalogue,
    explained: CtAnalysis,
    limits: DecodeLimits,
) -> anyhow::Result<Vec<u8>> {
    // Threshold, decision and key slices are the run's, and not about this map.
    let without_verdict = CtAnalysis { classification: None, ..explained.clone() };
    let mut words = report::ct_overlay_words(record, &without_verdict, catalogue.language(LANGUAGE));
    let key = explained.classification.iter().flat_map(|of| &of.key_slices).next();
    let output = key.and_then(|key| key.output).map_or_else(String::new, |output| format!(" {:.1} %", output * 100.0));
    let class = record.bundle.classes.get(record.bundle.target_class_idx).map_or("", |class| class.label.as_str());
    let (number, method) = key.map_or((0, ""), |key| (key.slice + 1, key.heat_map.method.as_str()));
    words.above = format!(
        "AI map of slice {number} from the feet, {method}, made on demand · {class}{output} · {NOT_FOR_DIAGNOSTIC_USE}"
    );
    let archive = archive.clone();
    let PictureForm { longest_side, .. } = PictureForm::default();
    let options = pictures::CtOverlayOptions { longest_side, on_demand: true };
    let paint = move || pictures::ct_overlay(&archive, &explained, &words, options, limits);
    Ok(tokio::task::spawn_blocking(paint).await??.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_appeared_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("map.png");
        write_new(&output, b"first").unwrap();
        let refused = write_new(&output, b"second").unwrap_err().to_string();
        assert!(refused.contains("is there already"), "{refused}");
        assert_eq!(fs_err::read(&output).unwrap(), b"first");
        let nowhere = write_new(&folder.path().join("no/map.png"), b"third").unwrap_err().to_string();
        assert!(nowhere.contains("no/map.png"), "{nowhere}");
    }
}
