//! Pictures of what a run found, painted from the stored images: each image is read again, one at a time.

use anyhow::{Context as _, anyhow};

use crate::{
    archive::Archive,
    imaging::{
        self, DecodeLimits, OverlayOptions, OverlayWords,
        ct::{
            SectionPixels, ShownSection, ShownSlice, SliceWords, SummaryWords, decode_hu, render_sections, render_slice,
        },
    },
    report::{self, PictureForm, ResultSpec, RgbPixels, Texts},
    types::{
        CtAnalysis, CtPlane, CtSection, CtSeries, HeatMap, ImageAnalysis, PictureCompression, PictureModality,
        RunOutcome, RunRecord, VoxelLabels,
    },
};

/// A picture, and the PNG file of it that the status page shows.
pub type Painted = (RgbPixels, Option<Vec<u8>>);

/// The picture of `spec` with words in the language of `texts`. Slices of a CT are so many that they have no preview: the
/// summary has. `masks` are what the run found at each voxel; only slices need them. Blocks.
///
/// # Errors
/// When the run has no such picture, or an image is gone or does not belong to the run.
pub fn paint(
    spec: &ResultSpec,
    record: &RunRecord,
    masks: Option<&VoxelLabels>,
    archive: &Archive,
    limits: DecodeLimits,
    texts: Texts<'_>,
) -> anyhow::Result<Painted> {
    match (spec, &record.outcome) {
        (ResultSpec::HeatMap { image_idx, form }, RunOutcome::Analysed(analysis)) => {
            let image = analysis.images.get(*image_idx).with_context(|| {
                format!("the run has no analysed image number {image_idx}: it has {}", analysis.images.len())
            })?;
            let words = report::overlay_words(record, image, texts);
            let options = OverlayOptions { long_side_max: form.longest_side, ..OverlayOptions::default() };
            let (pixels, png) = radiograph_overlay(archive, image, &words, options, limits)?;
            Ok((pixels, Some(png)))
        }
        (ResultSpec::CtSummary(form), RunOutcome::CtMeasured(analysis)) => {
            let words = report::ct_overlay_words(record, analysis, texts);
            let (pixels, png) = ct_overlay(archive, analysis, &words, form.longest_side, limits)?;
            Ok((pixels, Some(png)))
        }
        (ResultSpec::CtSlice { slice, .. }, RunOutcome::CtMeasured(analysis)) => {
            let masks = masks.with_context(|| {
                format!("run {} has no masks of its lungs, from before they were kept; run it again", record.run_id)
            })?;
            let words = report::ct_slice_words(record, analysis, *slice, texts);
            Ok((ct_slice(archive, analysis, *slice, masks, &words, limits)?, None))
        }
        _ => Err(anyhow!("run {} has no such picture: {spec:?}", record.run_id)),
    }
}

/// `spec` without what is not seen: the pixels of two pictures with the same are the same, so that they need be painted
/// once. Modality and compression are never seen, and slices are as large as their images.
#[must_use]
pub fn painted_as(spec: &ResultSpec) -> ResultSpec {
    let seen = |form: &PictureForm| PictureForm {
        modality: PictureModality::default(),
        compression: PictureCompression::default(),
        ..form.clone()
    };
    match spec {
        ResultSpec::HeatMap { image_idx, form } => ResultSpec::HeatMap { image_idx: *image_idx, form: seen(form) },
        ResultSpec::CtSummary(form) => ResultSpec::CtSummary(seen(form)),
        ResultSpec::CtSlice { slice, form } => {
            let PictureForm { longest_side, .. } = PictureForm::default();
            ResultSpec::CtSlice { slice: *slice, form: PictureForm { longest_side, ..seen(form) } }
        }
        other => other.clone(),
    }
}

/// The picture of an analysed radiograph, and the same as a PNG file. Blocks.
///
/// # Errors
/// When the image is gone or does not belong to the analysis.
pub fn radiograph_overlay(
    archive: &Archive,
    image: &ImageAnalysis,
    words: &OverlayWords,
    options: OverlayOptions,
    limits: DecodeLimits,
) -> anyhow::Result<(RgbPixels, Vec<u8>)> {
    let bytes = archive.read(&image.source.archive_key)?;
    let base = imaging::display_image(&bytes, limits)?;
    let overlay = imaging::render_overlay(&base, image, words, options)?;
    let png = imaging::encode_png(&overlay)?;
    Ok((overlay.into(), png))
}

/// The summary of a measured CT, and the same as a PNG file. Blocks.
///
/// # Errors
/// When an image is gone or does not belong to the analysis.
pub fn ct_overlay(
    archive: &Archive,
    analysis: &CtAnalysis,
    words: &SummaryWords,
    longest_side: u32,
    limits: DecodeLimits,
) -> anyhow::Result<(RgbPixels, Vec<u8>)> {
    let sections = section_pixels(analysis, archive, limits)?;
    let CtSeries { size, spacing_mm, .. } = analysis.series;
    let heat_of = |section: &CtSection| match section.plane {
        CtPlane::Axial => heat_over(analysis, section.index),
        CtPlane::Coronal => None,
    };
    let shown: Vec<ShownSection<'_>> = analysis
        .sections
        .iter()
        .zip(&sections)
        .map(|(section, pixels)| ShownSection { section, pixels, heat: heat_of(section) })
        .collect();
    let overlay = render_sections(&shown, size, spacing_mm, words, longest_side)?;
    let png = imaging::encode_png(&overlay)?;
    Ok((overlay.into(), png))
}

/// One slice of a measured CT in its own geometry.
fn ct_slice(
    archive: &Archive,
    analysis: &CtAnalysis,
    slice: usize,
    masks: &VoxelLabels,
    words: &SliceWords,
    limits: DecodeLimits,
) -> anyhow::Result<RgbPixels> {
    let series = &analysis.series;
    let source = series
        .images
        .get(slice)
        .with_context(|| format!("the measured series has no slice {slice}: it has {}", series.images.len()))?;
    let pixels = decode_hu(&imaging::read_object(&archive.read(&source.archive_key)?)?, limits)?;
    let shown = ShownSlice {
        index: slice,
        rows: pixels.rows,
        columns: pixels.columns,
        hu: &pixels.hu,
        labels: masks.slice(slice),
        heat: heat_over(analysis, slice),
        columns_reversed: series.columns_reversed,
        rows_reversed: series.rows_reversed,
    };
    Ok(render_slice(&shown, words)?.into())
}

/// The heat of a key slice.
fn heat_over(analysis: &CtAnalysis, slice: usize) -> Option<&HeatMap> {
    let key = analysis.classification.as_ref()?.key_slices.iter().find(|key| key.slice == slice)?;
    (key.heat_map.maximum_activation > 0.0).then_some(&key.heat_map)
}

/// The grey values of the sections that the summary shows, one slice in memory at a time.
fn section_pixels(
    analysis: &CtAnalysis,
    archive: &Archive,
    limits: DecodeLimits,
) -> anyhow::Result<Vec<SectionPixels>> {
    let series = &analysis.series;
    let [columns, rows, slices] = series.size;
    let mut sections: Vec<SectionPixels> = analysis
        .sections
        .iter()
        .map(|section| match section.plane {
            CtPlane::Axial => SectionPixels { rows, columns, hu: Vec::new() },
            CtPlane::Coronal => SectionPixels { rows: slices, columns, hu: Vec::new() },
        })
        .collect();
    let shows_coronal = analysis.sections.iter().any(|section| section.plane == CtPlane::Coronal);
    // From the head to the feet, as coronal sections are shown.
    for (number, source) in series.images.iter().enumerate().rev() {
        let is_shown = |section: &CtSection| section.plane == CtPlane::Axial && section.index == number;
        if !shows_coronal && !analysis.sections.iter().any(is_shown) {
            continue;
        }
        let mut slice = decode_hu(&imaging::read_object(&archive.read(&source.archive_key)?)?, limits)?;
        slice.turn(series.columns_reversed, series.rows_reversed);
        for (section, pixels) in analysis.sections.iter().zip(&mut sections) {
            match section.plane {
                CtPlane::Axial if section.index == number => pixels.hu.clone_from(&slice.hu),
                CtPlane::Axial => {}
                CtPlane::Coronal => {
                    let row = section.index * columns..(section.index + 1) * columns;
                    pixels.hu.extend_from_slice(slice.hu.get(row).context("the record is of other images")?);
                }
            }
        }
    }
    Ok(sections)
}
