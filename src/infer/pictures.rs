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

/// The picture of `spec` with words in the language of `texts`, or in English where pictures cannot show it. Slices of a
/// CT are so many that they have no preview: the summary has. `masks` are what the run found at each voxel; only slices
/// need them. Blocks.
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
            let options = CtOverlayOptions { longest_side: form.longest_side, on_demand: false };
            let (pixels, png) = ct_overlay(archive, analysis, &words, options, limits)?;
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

/// How the summary of a CT is drawn.
#[derive(Debug, Clone, Copy)]
pub struct CtOverlayOptions {
    /// Of the picture, in pixels.
    pub longest_side: u32,
    /// A person asked for the map: it is shown whatever the output is.
    pub on_demand: bool,
}

/// The summary of a measured CT, and the same as a PNG file. Colours appear only when the scan is localised (output at or
/// above the threshold) or a person asked for the map. Blocks.
///
/// # Errors
/// When an image is gone or does not belong to the analysis.
pub fn ct_overlay(
    archive: &Archive,
    analysis: &CtAnalysis,
    words: &SummaryWords,
    options: CtOverlayOptions,
    limits: DecodeLimits,
) -> anyhow::Result<(RgbPixels, Vec<u8>)> {
    let sections = section_pixels(analysis, archive, limits)?;
    let CtSeries { size, spacing_mm, .. } = analysis.series;
    let heat_of = |section: &CtSection| match section.plane {
        CtPlane::Axial => heat_over(analysis, section.index, options.on_demand),
        CtPlane::Coronal => None,
    };
    let shown: Vec<ShownSection<'_>> = analysis
        .sections
        .iter()
        .zip(&sections)
        .map(|(section, pixels)| ShownSection { section, pixels, heat: heat_of(section) })
        .collect();
    let overlay = render_sections(&shown, size, spacing_mm, words, options.longest_side)?;
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
        heat: heat_over(analysis, slice, false),
        columns_reversed: series.columns_reversed,
        rows_reversed: series.rows_reversed,
    };
    Ok(render_slice(&shown, words)?.into())
}

/// The heat of a key slice, where it is an indication or wanted all the same.
fn heat_over(analysis: &CtAnalysis, slice: usize, on_demand: bool) -> Option<&HeatMap> {
    let classification = analysis.classification.as_ref().filter(|of| of.localised || on_demand)?;
    let key = classification.key_slices.iter().find(|key| key.slice == slice)?;
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

#[cfg(test)]
mod tests {
    use dicom_core::VR;
    use dicom_dictionary_std::tags;
    use uuid::Uuid;

    use super::*;
    use crate::{
        archive::ImplementationIds,
        imaging::testing::{part10, radiograph, text},
        report::{
            Catalogue,
            samples::{self, SampleSource},
        },
        types::{BundleStatus, Uid},
    };

    struct Kept {
        folder: tempfile::TempDir,
        archive: Archive,
    }

    impl Kept {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let class_uid = Uid::new("2.25.1").unwrap();
            let ids = ImplementationIds { class_uid, version_name: "HILUM_TEST".to_owned() };
            let archive = Archive::open(folder.path(), ids, 0).unwrap();
            Self { folder, archive }
        }

        /// The key under which the image is kept.
        fn keep(&self, image: dicom_object::InMemDicomObject, name: &str) -> String {
            let at = time::OffsetDateTime::UNIX_EPOCH;
            self.archive.store_result(&part10(image), Uuid::from_u128(1), at, name).unwrap()
        }
    }

    fn painted(
        spec: &ResultSpec,
        record: &RunRecord,
        masks: Option<&VoxelLabels>,
        archive: &Archive,
    ) -> anyhow::Result<Painted> {
        let catalogue = Catalogue::new(&[])?;
        paint(spec, record, masks, archive, DecodeLimits::default(), catalogue.language("en"))
    }

    fn image_idx_0() -> ResultSpec {
        ResultSpec::HeatMap { image_idx: 0, form: PictureForm::default() }
    }

    fn pixel(picture: &RgbPixels, x: u32, y: u32) -> [u8; 3] {
        let at = 3 * (y * picture.width + x) as usize;
        [picture.bytes[at], picture.bytes[at + 1], picture.bytes[at + 2]]
    }

    #[test]
    fn a_radiograph_that_is_stored_inverted_looks_like_any_other() {
        let kept = Kept::new();
        let mut record = samples::analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"));
        let words: Vec<u16> = (0..40 * 32).map(|index| (index % 32 * 50 + index / 32 * 20) as u16).collect();
        let mut pictures = Vec::new();
        for inverted in [false, true] {
            let stored: Vec<u16> = words.iter().map(|word| if inverted { 4095 - word } else { *word }).collect();
            let mut image = radiograph(40, 32, &stored);
            if inverted {
                image.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1"));
            }
            let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("analysed") };
            analysis.images[0].source.archive_key = kept.keep(image, &format!("{inverted}.dcm"));
            let (pixels, preview) = painted(&image_idx_0(), &record, None, &kept.archive).unwrap();
            let preview = image::load_from_memory(&preview.unwrap()).unwrap().into_rgb8();
            assert_eq!(RgbPixels::from(preview), pixels, "the preview is the picture");
            pictures.push(pixels);
        }
        let far = pictures[0].bytes.iter().zip(&pictures[1].bytes).map(|(one, other)| one.abs_diff(*other)).max();
        assert!(far.unwrap() <= 1, "{far:?}");
    }

    /// A slice whose columns are stored from the left: what the run knows of a voxel lies on the pixel that shows it.
    #[test]
    fn a_voxel_of_a_slice_is_at_the_pixel_of_its_image() {
        let kept = Kept::new();
        let sources = samples::ct_sources();
        let mut record = samples::ct_measured(BundleStatus::Untrained, &sources);
        let (rows, columns) = (240_usize, 200_usize);
        let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!("measured") };
        analysis.series.size = [columns, rows, 2];
        analysis.series.columns_reversed = true;
        for (number, source) in analysis.series.images.iter_mut().enumerate() {
            // 0 HU everywhere, 2000 HU in one pixel.
            let mut stored = vec![1024_u16; rows * columns];
            stored[150 * columns + 30 + number] = 3024;
            let mut image = radiograph(rows as u16, columns as u16, &stored);
            for (tag, value) in [(tags::RESCALE_SLOPE, "1"), (tags::RESCALE_INTERCEPT, "-1024")] {
                image.put(text(tag, VR::DS, value));
            }
            source.archive_key = kept.keep(image, &format!("{number}.dcm"));
        }
        let mut masks = VoxelLabels { size: [columns, rows, 2], bits: vec![0; 2 * rows * columns] };
        let voxel = |slice: usize, x: usize, y: usize| (slice * rows + y) * columns + x;
        // In the volume the marked pixel of slice 1 is column 200 - 1 - 31; to its left a dense voxel of lung.
        masks.bits[voxel(1, 167, 150)] = VoxelLabels::CONSOLIDATION;
        let slice = |slice: usize| ResultSpec::CtSlice { slice, form: PictureForm::default() };
        let (picture, preview) = painted(&slice(1), &record, Some(&masks), &kept.archive).unwrap();
        assert_eq!((picture.width, picture.height, preview), (200, 240, None));
        let grey = 230;
        assert_eq!(pixel(&picture, 31, 150), [255; 3]);
        assert_eq!(pixel(&picture, 30, 150), [grey; 3]);
        let [red, green, blue] = pixel(&picture, 32, 150);
        assert!(red > green && red > blue, "{red}, {green}, {blue}");
        // Everything else is grey, but for the words in the corner.
        for (x, y) in (0..200).flat_map(|x| (110..240).map(move |y| (x, y))) {
            let is_marked = y == 150 && (31..=32).contains(&x);
            assert!(is_marked || pixel(&picture, x, y) == [grey; 3], "{:?} at {x}, {y}", pixel(&picture, x, y));
        }
        let (other, _) = painted(&slice(0), &record, Some(&masks), &kept.archive).unwrap();
        assert_eq!(pixel(&other, 30, 150), [255; 3]);
        assert_eq!(pixel(&other, 32, 150), [grey; 3]);

        let refused = |spec: &ResultSpec, masks: Option<&VoxelLabels>| {
            format!("{:#}", painted(spec, &record, masks, &kept.archive).unwrap_err())
        };
        assert!(refused(&slice(1), None).contains("run it again"));
        assert!(refused(&slice(2), Some(&masks)).contains("no slice 2: it has 2"));
        assert!(refused(&image_idx_0(), None).contains("no such picture"));
        let other_scan = VoxelLabels { size: [columns, rows - 1, 2], bits: masks.bits[..2 * 239 * 200].to_vec() };
        assert!(refused(&slice(1), Some(&other_scan)).contains("not of these images"));
        assert!(kept.folder.path().is_dir());
    }

    #[test]
    fn heat_of_a_scan_is_shown_where_it_is_an_indication_or_asked_for() {
        let mut record = samples::ct_classified(BundleStatus::Unvalidated, &samples::ct_sources());
        let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!("measured") };
        let mut shown = Vec::new();
        for localised in [true, false] {
            let classification = analysis.classification.as_mut().unwrap();
            classification.localised = localised;
            let slice = classification.key_slices[0].slice;
            shown.extend([false, true].map(|on_demand| heat_over(analysis, slice, on_demand).is_some()));
        }
        assert_eq!(shown, [true, true, false, true]);
    }

    #[test]
    fn what_differs_in_what_is_not_seen_is_painted_once() {
        let base = PictureForm::default();
        let coded = PictureForm {
            modality: PictureModality::Source,
            compression: PictureCompression::JpegBaseline,
            ..base.clone()
        };
        let large = PictureForm { longest_side: 4096, ..base.clone() };
        let chinese = PictureForm { language: "zh".to_owned(), ..base.clone() };
        let summary = |form: &PictureForm| painted_as(&ResultSpec::CtSummary(form.clone()));
        let slice = |form: &PictureForm| painted_as(&ResultSpec::CtSlice { slice: 3, form: form.clone() });
        let heat_map = |form: &PictureForm| painted_as(&ResultSpec::HeatMap { image_idx: 1, form: form.clone() });
        for painted in [summary, slice, heat_map] as [fn(&PictureForm) -> ResultSpec; 3] {
            assert_eq!(painted(&base), painted(&coded));
            assert_ne!(painted(&base), painted(&chinese));
        }
        assert_ne!(summary(&base), summary(&large));
        assert_ne!(heat_map(&base), heat_map(&large));
        assert_eq!(slice(&base), slice(&large));
    }
}
