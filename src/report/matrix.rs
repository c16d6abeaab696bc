//! The objects that `make validate-results` has other people's tools read back: every result of a matrix of sources,
//! outcomes and destinations. Beside them stands what they must say: the run record itself, as JSON, which the tools
//! compare with what they read. A second part writes sets in which one object is wrong in a way that a mistake in a
//! builder would make it; the comparison must find each of them.
//!
//! `tests/validate_results/check.py` is the other half.

#![allow(
    clippy::unnecessary_wraps,
    clippy::needless_pass_by_value,
    clippy::needless_for_each,
    reason = "mutations have one shape: an element in, an element or none out"
)]

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    process::Command,
};

use base64::Engine as _;
use dicom_core::{
    DataElement, PrimitiveValue, Tag, VR,
    header::Header,
    value::{DataSetSequence, Value as DicomValue},
};
use dicom_dictionary_std::tags;
use dicom_object::{InMemDicomObject, mem::InMemElement};
use fs_err as fs;
use serde_json::{Value, json};
use time::{UtcOffset, macros::offset};

use super::{
    PictureForm, RenderOptions, RenderedObject, ReportForm, ResultSpec, RgbPixels, Shown, SourceHeader, Sources, owed,
    samples::{self, Sample, SampleElement, SampleSource, Syntax, text},
};
use crate::types::{
    BundleStatus, CaseLibraryVersion, CtAnalysis, CtDensities, CtLung, CtLungLesions, CtPlane, CtSection,
    CtSlicePictures, CxrAnalysis, Decision, ImageAnalysis, LungMask, MemberScore, NotAnalysed, NotJudged,
    PictureCompression, PictureModality, Placement, PredecessorDocument, Predecessors, PriorImage, ReasonCode,
    ReportClass, ResultProfile, RunOutcome, RunRecord, SegmentationFor, Sha256Digest, Side, SimilarCase, SimilarCases,
    SourceImage, Uid, VoxelLabels,
};

/// Renders what a destination is owed; the one place that knows the renderers.
fn render(
    spec: &ResultSpec,
    record: &RunRecord,
    sources: Sources<'_>,
    labels: Option<&VoxelLabels>,
    pixels: &RgbPixels,
    options: &RenderOptions,
) -> RenderedObject {
    let rendered = match spec {
        ResultSpec::Segmentation(shown) => super::render_segmentation(record, *shown, labels, sources, options),
        ResultSpec::PresentationState { image_idx, language } => {
            super::render_presentation_state(record, *image_idx, language, sources, options)
        }
        ResultSpec::HeatMap { image_idx, form } => {
            super::render_heat_map(record, *image_idx, form, sources, pixels, options)
        }
        ResultSpec::CtSummary(form) => super::render_ct_summary(record, form, sources, pixels, options),
        ResultSpec::CtSlice { slice, form } => super::render_ct_slice(record, *slice, form, sources, pixels, options),
        ResultSpec::Report(form) => super::render_report(record, sources, form, options),
        ResultSpec::TextCompanion(form) => super::render_text_companion(record, sources, form, options),
        ResultSpec::KeyObjects { language } => super::render_key_objects(record, language, sources, options),
    };
    rendered.unwrap()
}

// --- the matrix ----------------------------------------------------------------------------------------------------

const MODALITIES: [&str; 3] = ["CR", "DX", "CT"];

/// Name, (0008,0005), (0010,0010).
const SETS: [(&str, Option<&str>, &[u8]); 4] = [
    ("ascii", Some("ISO_IR 100"), b"Sample^Synthetic"),
    // The second byte of the family name is 5CH, a backslash to who does not know the set.
    ("gb18030", Some("GB18030"), b"Cheng^Xin=\xd5\x5c^\xd0\xc0="),
    (
        "iso2022",
        Some("\\ISO 2022 IR 87"),
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    ("none", None, b"M\xfcller^J\xf6rg"),
];

/// What is particular about the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Plain,
    /// Without patient and study attributes of type 2.
    Bare,
    Monochrome1,
    Bits8,
    Bits12,
    Bits16,
    Lossy,
    Unspaced,
    /// Attributes of several values and items.
    Multiple,
}

const VARIANTS: [(&str, Variant); 9] = [
    ("plain", Variant::Plain),
    ("bare", Variant::Bare),
    ("monochrome1", Variant::Monochrome1),
    ("8bit", Variant::Bits8),
    ("12bit", Variant::Bits12),
    ("16bit", Variant::Bits16),
    ("lossy", Variant::Lossy),
    ("unspaced", Variant::Unspaced),
    ("multiple", Variant::Multiple),
];

/// Everything that one study needs to be rendered for its destinations.
#[derive(Clone)]
struct Case {
    name: String,
    sources: Vec<SampleSource>,
    /// Of the study's revisions, oldest first.
    runs: Vec<RunRecord>,
    labels: Option<VoxelLabels>,
    destinations: Vec<(&'static str, ResultProfile)>,
    site_utc_offset: Option<UtcOffset>,
    /// Pictures have another size than their sources.
    is_resized: bool,
}

/// Columns and rows of the images: with 1353 and 1221 pixels a frame of single bits ends within a byte.
const RADIOGRAPH: [u16; 2] = [33, 41];
const SLICE: [u16; 2] = [37, 33];
const SLICES: usize = 8;
const SPACING_MILLIMETRES: [f64; 3] = [0.7, 0.75, 2.5];

fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

/// The whole matrix: what is particular about a study goes round with its number, so that every value of everything
/// meets every modality and character set.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for modality in MODALITIES {
        for (set_idx, set) in SETS.iter().enumerate() {
            for (variant_idx, variant) in VARIANTS.iter().enumerate() {
                cases.push(case(cases.len(), modality, set, variant, set_idx + variant_idx));
            }
        }
    }
    cases
}

fn case(
    number: usize,
    modality: &'static str,
    set: &(&str, Option<&'static str>, &[u8]),
    variant: &(&str, Variant),
    turn: usize,
) -> Case {
    let others = other_profiles();
    let mut destinations = vec![("default", ResultProfile::default())];
    if variant.1 == Variant::Plain {
        destinations.extend(others);
    } else {
        destinations.push(others[turn % others.len()].clone());
    }
    let is_ct = modality == "CT";
    let mut sources = Vec::new();
    for image in 0..if is_ct { SLICES } else { 3 } {
        sources.push(source(number, modality, *set, variant.1, image));
    }
    let status = [BundleStatus::Unvalidated, BundleStatus::Validated, BundleStatus::Untrained][turn % 3];
    let mut case = Case {
        name: format!("{}-{}-{}", modality.to_lowercase(), set.0, variant.0),
        sources,
        runs: Vec::new(),
        labels: None,
        destinations,
        site_utc_offset: [None, Some(offset!(-3:30)), Some(offset!(+8))][number % 3],
        is_resized: number % 2 == 1,
    };
    case.runs =
        if is_ct { ct_runs(&mut case, status, turn, variant.1) } else { radiograph_runs(&mut case, status, turn) };
    for (idx, run) in case.runs.iter_mut().enumerate() {
        run.revision = i32::try_from(idx + 1).unwrap();
        run.study_instance_uid = study_of(number);
        run.result_key = Sha256Digest::of(format!("{} {idx}", case.name).as_bytes());
    }
    case
}

/// What destinations other than those with default settings get.
fn other_profiles() -> Vec<(&'static str, ResultProfile)> {
    let everything = ResultProfile {
        ct_slices: CtSlicePictures::All,
        picture_modality: PictureModality::Source,
        picture_longest_side: 2048,
        segmentation: SegmentationFor::All,
        presentation_state: true,
        key_objects: true,
        ..ResultProfile::default()
    };
    vec![
        ("everything", everything.clone()),
        ("chinese", ResultProfile { language: "zh".to_owned(), ..everything }),
        (
            "enhanced-rle",
            ResultProfile {
                report_classes: vec![ReportClass::Enhanced, ReportClass::Comprehensive],
                picture_compression: PictureCompression::RleLossless,
                text_companion: false,
                ..ResultProfile::default()
            },
        ),
        (
            "3d-jpeg",
            ResultProfile {
                report_classes: vec![ReportClass::Comprehensive3d, ReportClass::Comprehensive],
                picture_compression: PictureCompression::JpegBaseline,
                segmentation: SegmentationFor::None,
                key_objects: true,
                ..ResultProfile::default()
            },
        ),
        (
            "text-only",
            ResultProfile {
                report_classes: vec![ReportClass::BasicText],
                text_companion: false,
                pictures: false,
                segmentation: SegmentationFor::None,
                ..ResultProfile::default()
            },
        ),
    ]
}

// --- sources -------------------------------------------------------------------------------------------------------

/// The UIDs and the patient of a study belong to no other study of the matrix.
fn root_of(number: usize) -> String {
    format!("1.2.826.0.1.3680043.8.498.{}", 1000 + number)
}

fn study_of(number: usize) -> Uid {
    uid(&format!("{}.1", root_of(number)))
}

fn source(
    number: usize,
    modality: &'static str,
    (_, character_set, patient_name): (&str, Option<&'static str>, &[u8]),
    variant: Variant,
    image: usize,
) -> SampleSource {
    let root = root_of(number);
    let is_ct = modality == "CT";
    // The third radiograph is of a series of its own.
    let series = if !is_ct && image == 2 { 3 } else { 2 };
    let [columns, rows] = if is_ct { SLICE } else { RADIOGRAPH };
    let (allocated, stored) = match variant {
        Variant::Bits8 => (8, 8),
        Variant::Bits12 => (16, 12),
        Variant::Bits16 => (16, 16),
        _ => (16, 10),
    };
    let photometric: &[u8] = if variant == Variant::Monochrome1 { b"MONOCHROME1" } else { b"MONOCHROME2" };
    let pixels = usize::from(columns) * usize::from(rows) * usize::from(allocated) / 8;
    let mut more = vec![
        text(0x0008, 0x0022, "DA", b"20200315"),
        text(0x0020, 0x000d, "UI", study_of(number).as_str().as_bytes()),
        text(0x0020, 0x0011, "IS", series.to_string().as_bytes()),
        text(0x0020, 0x0013, "IS", (image + 1).to_string().as_bytes()),
        (0x0028, 0x0002, "US", Sample::Number(1)),
        text(0x0028, 0x0004, "CS", photometric),
        (0x0028, 0x0010, "US", Sample::Number(rows)),
        (0x0028, 0x0011, "US", Sample::Number(columns)),
        (0x0028, 0x0100, "US", Sample::Number(allocated)),
        (0x0028, 0x0101, "US", Sample::Number(stored)),
        (0x0028, 0x0102, "US", Sample::Number(stored - 1)),
        (0x0028, 0x0103, "US", Sample::Number(0)),
        (0x7fe0, 0x0010, "OW", Sample::Bytes(vec![1; pixels + pixels % 2])),
    ];
    if variant != Variant::Bare {
        more.push(text(0x0010, 0x0020, "LO", format!("SYN-{number}").as_bytes()));
    }
    if is_ct {
        let [_, _, between_slices] = SPACING_MILLIMETRES;
        let height = (image as f64).mul_add(between_slices, -100.0);
        more.extend([
            text(0x0018, 0x0050, "DS", b"2.5"),
            text(0x0020, 0x0032, "DS", format!("-12.6\\-12\\{height}").as_bytes()),
            text(0x0020, 0x0037, "DS", b"1\\0\\0\\0\\1\\0"),
            text(0x0020, 0x0052, "UI", format!("{root}.9").as_bytes()),
            text(0x0028, 0x1052, "DS", b"-1024"),
            text(0x0028, 0x1053, "DS", b"1"),
        ]);
    }
    match variant {
        Variant::Lossy => more.extend([
            text(0x0028, 0x2110, "CS", b"01"),
            text(0x0028, 0x2112, "DS", b"10.5\\2"),
            text(0x0028, 0x2114, "CS", b"ISO_10918_1\\ISO_10918_1"),
        ]),
        Variant::Multiple => more.extend(several_values()),
        _ => {}
    }
    SampleSource {
        series_instance_uid: format!("{root}.{series}"),
        modality,
        character_set,
        patient_name: patient_name.to_vec(),
        without_type_2: variant == Variant::Bare,
        pixel_spacing: match variant {
            Variant::Unspaced => None,
            _ if is_ct => Some("0.75\\0.7"),
            _ => Some("0.143\\0.143"),
        },
        timezone: number.is_multiple_of(4).then_some("+0530"),
        more,
        ..SampleSource::new(&format!("{root}.{}", 10 + image))
    }
}

/// Attributes with several values, and sequences with several items.
fn several_values() -> Vec<SampleElement> {
    let code = |value: &[u8], meaning: &[u8]| {
        vec![
            text(0x0008, 0x0100, "SH", value),
            text(0x0008, 0x0102, "SH", b"99LOCAL"),
            text(0x0008, 0x0104, "LO", meaning),
        ]
    };
    let other_id = |id: &[u8]| vec![text(0x0010, 0x0020, "LO", id), text(0x0010, 0x0022, "CS", b"TEXT")];
    let request = vec![
        text(0x0040, 0x0007, "LO", b"Chest frontal"),
        text(0x0040, 0x0009, "SH", b"SPS-7"),
        text(0x0040, 0x1001, "SH", b"RP-7"),
    ];
    vec![
        text(0x0008, 0x0008, "CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
        (
            0x0008,
            0x1032,
            "SQ",
            Sample::Items(vec![code(b"XCHEST", b"Chest examination"), code(b"XTRA", b"Extra view")]),
        ),
        text(0x0008, 0x1048, "PN", b"Reader^First\\Reader^Second"),
        text(0x0010, 0x1001, "PN", b"Other^Name\\Another^Name"),
        (0x0010, 0x1002, "SQ", Sample::Items(vec![other_id(b"OTHER-1"), other_id(b"OTHER-2")])),
        text(0x0010, 0x2110, "LO", b"Latex\\Penicillin"),
        text(0x0018, 0x1020, "LO", b"1.0.3\\Firmware 7\\Detector 2"),
        (0x0040, 0x0275, "SQ", Sample::Items(vec![request])),
    ]
}

// --- runs over radiographs -----------------------------------------------------------------------------------------

/// A number between 0.05 and 0.95 that differs for every `seed`.
fn share(seed: usize) -> f64 {
    0.05 + 0.9 * (seed as f64 * 0.618_033_988_749_895).fract()
}

/// What happens to the radiographs of a study goes round with `turn`.
fn radiograph_runs(case: &mut Case, status: BundleStatus, turn: usize) -> Vec<RunRecord> {
    let seed = 10 * turn;
    let analysed = |images: Vec<ImageAnalysis>| {
        let outcome = RunOutcome::Analysed(CxrAnalysis { images, excluded: Vec::new() });
        samples::record(status, outcome)
    };
    match turn % 6 {
        0 => {
            case.sources.truncate(1);
            vec![analysed(vec![image_analysis(&case.sources[0], status, seed, 0.9)])]
        }
        // Two images, of which one member judged the second only; a third image excluded.
        1 => {
            let three: [SampleSource; 3] = case.sources.clone().try_into().unwrap();
            let mut record = samples::partial(&three);
            record.bundle = samples::bundle(status);
            if let RunOutcome::Analysed(analysis) = &mut record.outcome {
                for (idx, image) in analysis.images.iter_mut().enumerate() {
                    let mut other = image_analysis(&case.sources[idx], status, seed + idx, 0.2);
                    if idx == 1 {
                        other.members[1] = image.members[1].clone();
                        other.lung_mask = lung_mask(other.placement.side, false);
                        other.left_lung_heat_fraction = None;
                        other.decision = Decision::Undetermined;
                    }
                    *image = other;
                }
            }
            vec![record]
        }
        // Similar cases, and images of the same patient.
        2 => {
            case.sources.truncate(1);
            let mut image = image_analysis(&case.sources[0], status, seed, 0.8);
            image.similar_cases = Some(similar_cases(seed));
            vec![analysed(vec![image])]
        }
        // Not analysed.
        3 => {
            case.sources.truncate(1);
            let reasons = [ReasonCode::ViewNotFrontal, ReasonCode::ImageQuality, ReasonCode::ProcessingFailure];
            let record = samples::not_analysed(&case.sources[0], reasons[turn / 6 % reasons.len()]);
            vec![RunRecord { bundle: samples::bundle(status), ..record }]
        }
        // Run again with another result.
        4 => {
            case.sources.truncate(2);
            let first = analysed(vec![image_analysis(&case.sources[0], status, seed, 0.3)]);
            let second = case.sources.iter().enumerate();
            let second =
                analysed(second.map(|(idx, source)| image_analysis(source, status, seed + 1 + idx, 0.7)).collect());
            vec![first, second]
        }
        _ => {
            case.sources.truncate(1);
            vec![analysed(vec![image_analysis(&case.sources[0], status, seed, 0.1)])]
        }
    }
}

/// An output near `level`, every number another one.
fn image_analysis(source: &SampleSource, status: BundleStatus, seed: usize, level: f64) -> ImageAnalysis {
    let [columns, rows] = RADIOGRAPH;
    let (low, high) = (level + 0.01 * share(seed), level + 0.05 + 0.01 * share(seed + 1));
    let fused = f64::midpoint(low, high);
    let member = |name: &str, output: f64| MemberScore {
        name: name.to_owned(),
        probabilities: vec![output, 1.0 - output],
        failure: None,
    };
    let side = u32::from(rows.max(columns));
    let placement = Placement {
        source_rows: u32::from(rows),
        source_columns: u32::from(columns),
        side,
        pad_top: 0,
        pad_left: (side - u32::from(columns)) / 2,
    };
    ImageAnalysis {
        placement,
        members: vec![member("resnet50", high), member("vgg16", low)],
        fused: vec![fused, 1.0 - fused],
        member_spread: high - low,
        decision: match status {
            BundleStatus::Validated if fused >= 0.5 => Decision::Present,
            BundleStatus::Validated => Decision::Absent,
            BundleStatus::Unvalidated | BundleStatus::Untrained => Decision::Undetermined,
        },
        localised: fused >= 0.5,
        lung_mask: lung_mask(side, true),
        right_lung_heat_fraction: Some(share(seed + 2)),
        left_lung_heat_fraction: Some(share(seed + 3)),
        lung_heat_fraction: Some(share(seed + 4)),
        ..samples::analysis(source.image())
    }
}

/// Two lungs of different size on a canvas with three pixels for each of the image, so that the middle of every pixel
/// of the image lies within one of the canvas.
fn lung_mask(side: u32, has_left: bool) -> LungMask {
    let side = 3 * side;
    let is_in = |x: u32, y: u32, [left, top, width, height]: [u32; 4]| {
        (left..left + width).contains(&x) && (top..top + height).contains(&y)
    };
    let (right, left) = ([21, 18, 30, 81], [75, 24, 24, 66]);
    let labels: Vec<u8> = (0..side * side)
        .map(|pixel| (pixel % side, pixel / side))
        .map(|(x, y)| match () {
            // A corner is missing: the lungs are no rectangles that look the same in any order.
            () if is_in(x, y, right) && x + y >= 60 => 1,
            () if has_left && is_in(x, y, left) && x + y <= 165 => 2,
            () => 0,
        })
        .collect();
    let area = labels.iter().filter(|label| **label > 0).count() as f64;
    let mut png = std::io::Cursor::new(Vec::new());
    image::write_buffer_with_format(
        &mut png,
        &labels,
        side,
        side,
        image::ExtendedColorType::L8,
        image::ImageFormat::Png,
    )
    .unwrap();
    LungMask {
        side_pixels: side,
        png_base64: base64::engine::general_purpose::STANDARD.encode(png.into_inner()),
        area_fraction: area / f64::from(side * side),
    }
}

fn similar_cases(seed: usize) -> SimilarCases {
    let case = |idx: usize, label: &str| SimilarCase {
        case_id: format!("LIB-{:016X}", 0xA000 + 16 * seed + idx),
        distance: share(seed + 20 + idx),
        label: label.to_owned(),
        cohort: "reference".to_owned(),
    };
    SimilarCases {
        method: "all-members".to_owned(),
        library: Some(CaseLibraryVersion { n_cases: 640, sha256: Sha256Digest::of(b"library") }),
        cases: vec![case(0, "COVID-19"), case(1, "Normal"), case(2, "of no class")],
        priors: vec![PriorImage {
            study_instance_uid: uid(&format!("2.25.7000{seed}")),
            sop_instance_uid: uid(&format!("2.25.7001{seed}")),
            study_date: Some("20191130".to_owned()),
            distance: share(seed + 30),
        }],
        reason: None,
    }
}

// --- runs over CT --------------------------------------------------------------------------------------------------

/// What happens to a CT goes round with `turn`; without spacing nothing is measured.
fn ct_runs(case: &mut Case, status: BundleStatus, turn: usize, variant: Variant) -> Vec<RunRecord> {
    let three: [SampleSource; 3] = [0, 1, 2].map(|image| case.sources[image].clone());
    if variant == Variant::Unspaced {
        let images: Vec<SourceImage> = case.sources.iter().map(SampleSource::image).collect();
        let not_analysed = NotAnalysed {
            reason: ReasonCode::GeometryMissing,
            words: "the images state no pixel spacing".to_owned(),
            sources: images,
        };
        let record = samples::record(status, RunOutcome::NotAnalysed(not_analysed));
        return vec![RunRecord { bundle: samples::ct_bundle(status), ..record }];
    }
    let seed = 100 + 10 * turn;
    let (columns_reversed, rows_reversed) = (turn % 4 == 1, turn % 4 == 2);
    if columns_reversed || rows_reversed {
        let direction = if columns_reversed { "-1\\0\\0\\0\\1\\0" } else { "1\\0\\0\\0\\-1\\0" };
        for source in &mut case.sources {
            source.more.retain(|(group, element, ..)| (*group, *element) != (0x0020, 0x0037));
            source.more.push(text(0x0020, 0x0037, "DS", direction.as_bytes()));
        }
    }
    let is_outlined = turn % 5 == 2;
    let labels = voxel_labels(is_outlined);
    let mut runs = match turn % 5 {
        0 | 3 => vec![samples::ct_measured(status, &three)],
        1 => vec![samples::ct_classified(status, &three)],
        2 => vec![samples::ct_outlined(status, &three)],
        _ => {
            let mut not_judged = samples::ct_outlined(status, &three);
            if let RunOutcome::CtMeasured(analysis) = &mut not_judged.outcome {
                analysis.lesions = None;
                analysis.not_judged = Some(NotJudged {
                    reason: ReasonCode::UnsupportedImage,
                    words: "the lungs lie in 900 slices and the bundle takes 500".to_owned(),
                });
            }
            vec![not_judged]
        }
    };
    // Measured again by another version.
    if turn % 5 == 3 {
        runs.push(runs[0].clone());
    }
    for (idx, run) in runs.iter_mut().enumerate() {
        if let RunOutcome::CtMeasured(analysis) = &mut run.outcome {
            analysis.series.columns_reversed = columns_reversed;
            analysis.series.rows_reversed = rows_reversed;
            measure(analysis, &case.sources, &labels, seed + idx, status);
        }
    }
    case.labels = Some(labels);
    runs
}

/// Two ellipsoids, the right one larger; the first slice has no lung.
fn voxel_labels(is_outlined: bool) -> VoxelLabels {
    let [columns, rows] = SLICE.map(usize::from);
    let mut bits = Vec::with_capacity(columns * rows * SLICES);
    for slice in 0..SLICES {
        for row in 0..rows {
            for column in 0..columns {
                let is_in = |[x, y, z]: [f64; 3], [a, b, c]: [f64; 3]| {
                    ((column as f64 - x) / a).powi(2)
                        + ((row as f64 - y) / b).powi(2)
                        + ((slice as f64 - z) / c).powi(2)
                        < 1.0
                };
                let lung = if is_in([10.0, 15.0, 4.5], [6.5, 11.0, 4.0]) {
                    VoxelLabels::RIGHT_LUNG
                } else if is_in([27.0, 17.0, 4.0], [5.0, 9.0, 3.0]) {
                    VoxelLabels::LEFT_LUNG
                } else {
                    bits.push(0);
                    continue;
                };
                let mut label = lung;
                if (column + 2 * row + 3 * slice) % 5 == 0 {
                    label |= VoxelLabels::OPACITY;
                    if row % 3 == 0 {
                        label |= VoxelLabels::CONSOLIDATION;
                    }
                }
                if is_outlined && lung == VoxelLabels::LEFT_LUNG && row > 18 && (3..6).contains(&slice) {
                    label |= VoxelLabels::LESION;
                }
                bits.push(label);
            }
        }
    }
    VoxelLabels { size: [columns, rows, SLICES], bits }
}

/// Puts the whole series and numbers of its own into the record, every number another one.
fn measure(
    analysis: &mut CtAnalysis,
    sources: &[SampleSource],
    labels: &VoxelLabels,
    seed: usize,
    status: BundleStatus,
) {
    let voxel_ml = SPACING_MILLIMETRES.iter().product::<f64>() / 1000.0;
    let volume = |bits: u8| labels.bits.iter().filter(|label| **label & bits == bits).count() as f64 * voxel_ml;
    analysis.series.images = sources.iter().map(SampleSource::image).collect();
    analysis.series.size = labels.size;
    analysis.series.spacing_mm = SPACING_MILLIMETRES;
    // A series may be read whole: a localizer that was left out is of no study here.
    analysis.excluded.clear();
    let section = |plane, index| CtSection { plane, index, ..analysis.sections[0].clone() };
    analysis.sections = vec![section(CtPlane::Axial, 5), section(CtPlane::Axial, 3), section(CtPlane::Coronal, 16)];
    let densities = |number: usize, volume_ml: f64| {
        let small = |part: usize| 0.1 * share(7 * seed + 5 * number + part);
        let [emphysema, ground_glass, poorly, consolidated] = [small(0), small(1), small(2), small(3)];
        let aerated = 1.0 - emphysema - ground_glass - poorly - consolidated;
        CtDensities {
            volume_ml,
            mean_hu: Some(-850.0 + 100.0 * share(seed + number)),
            percentile_15_hu: Some(-960.0 + 50.0 * share(seed + 40 + number)),
            band_fractions: [emphysema, aerated, ground_glass, poorly, consolidated],
        }
    };
    let lung = |number: usize, side, bits| {
        let whole = volume(bits);
        CtLung {
            side,
            whole: densities(number, whole),
            thirds: [0.25, 0.5, 0.25].map(|part| densities(number + 1 + (part * 4.0) as usize, part * whole)),
        }
    };
    analysis.lungs = vec![lung(0, Side::Right, VoxelLabels::RIGHT_LUNG), lung(10, Side::Left, VoxelLabels::LEFT_LUNG)];
    for (part, third) in analysis.lungs.iter_mut().flat_map(|lung| lung.thirds.iter_mut().enumerate()) {
        third.volume_ml *= 1.0 + 0.01 * part as f64;
    }
    // Nothing of the lower third was found.
    analysis.lungs[1].thirds[2] =
        CtDensities { volume_ml: 0.0, mean_hu: None, percentile_15_hu: None, band_fractions: [0.0; 5] };
    if let Some(scan) = &mut analysis.classification {
        let output = 0.6 + 0.1 * share(seed);
        scan.slices = (1..SLICES).collect();
        scan.members[0].probabilities = vec![output, 1.0 - output];
        scan.fused = vec![output, 1.0 - output];
        scan.key_slices[0].slice = 4;
        scan.key_slices[0].output = Some(0.7 + 0.1 * share(seed + 1));
        scan.key_slices[0].lung_heat_fraction = Some(share(seed + 2));
    }
    if let Some(lesions) = &mut analysis.lesions {
        let of_left = volume(VoxelLabels::LESION | VoxelLabels::LEFT_LUNG);
        lesions.slices = (1..SLICES).collect();
        lesions.slices_with_lesion = 3;
        lesions.longest_run = 3;
        if let Some(run) = &mut lesions.run {
            (run.first_slice, run.last_slice, run.slices) = (3, 5, 3);
        }
        lesions.volume_ml = of_left;
        let fraction = Some(of_left / volume(VoxelLabels::LEFT_LUNG));
        lesions.lungs = vec![
            CtLungLesions { side: Side::Right, volume_ml: 0.0, fraction: Some(0.0) },
            CtLungLesions { side: Side::Left, volume_ml: of_left, fraction },
        ];
        lesions.largest_slice = Some(4);
        if status == BundleStatus::Validated {
            lesions.members[1].failure = None;
            lesions.decision = Decision::Present;
        }
    }
}

// --- writing -------------------------------------------------------------------------------------------------------

/// What a mistake in a builder would change.
struct Mutation {
    name: &'static str,
    /// The study that it is shown on.
    case: &'static str,
    change: Change,
}

enum Change {
    /// The builder sees other values than those of the run.
    Record(fn(&mut RunRecord)),
    /// Elements of finished objects of these kinds: the function sees each of them with its items done, and says what
    /// becomes of it.
    Elements(&'static [&'static str], fn(InMemElement, &[String]) -> Option<InMemElement>),
    /// Bytes of every finished object.
    Bytes(fn(&[u8]) -> Vec<u8>),
}

/// Renders a study for its destinations and writes sources, results and `case.json`. Returns how many results there are
/// and how many of them the mutation changed.
fn write_case(folder: &Path, case: &Case, mutation: Option<&Mutation>, foreign: &[String]) -> (usize, usize) {
    fs::create_dir_all(folder).unwrap();
    let pairs: Vec<(SourceImage, SourceHeader)> =
        case.sources.iter().map(|source| (source.image(), source.header())).collect();
    let mut source_files = Vec::new();
    for (idx, source) in case.sources.iter().enumerate() {
        let file = format!("src-{idx:02}.dcm");
        fs::write(folder.join(&file), source.part10(Syntax::ExplicitLittle)).unwrap();
        source_files.push(file);
    }
    let options = RenderOptions { site_utc_offset: case.site_utc_offset, ..samples::options() };
    let slices_with_lung: Vec<usize> = case
        .labels
        .as_ref()
        .map(|labels| labels.slices_with(VoxelLabels::RIGHT_LUNG | VoxelLabels::LEFT_LUNG))
        .unwrap_or_default();

    let mut objects = Vec::new();
    let mut destinations = Vec::new();
    let mut n_changed = 0;
    // A result is rendered once for all destinations that it goes to in the same form.
    let mut files: HashMap<(usize, ResultSpec), (String, PredecessorDocument)> = HashMap::new();
    for (name, profile) in &case.destinations {
        let mut sent = Vec::new();
        let mut predecessors = Predecessors::default();
        for (run_idx, run) in case.runs.iter().enumerate() {
            let mut record = run.clone();
            let plan = owed(&record, profile, &slices_with_lung, &predecessors);
            if let Some(Mutation { change: Change::Record(change), .. }) = mutation {
                change(&mut record);
            }
            let mut sent_now = Predecessors::default();
            for spec in plan.iter().flat_map(|owed| &owed.alternatives) {
                let (file, document) = files.entry((run_idx, spec.clone())).or_insert_with(|| {
                    let pixels = picture(case, spec);
                    let rendered = |record| render(spec, record, &pairs, case.labels.as_ref(), &pixels, &options);
                    let object = rendered(&record);
                    let kind = object.kind.as_str();
                    let file = format!("{:03}-{kind}.dcm", objects.len());
                    if let Some(mutation) = mutation {
                        let part10 = mutated(mutation, kind, &object.part10, foreign);
                        n_changed += usize::from(rendered(run).part10 != part10);
                        fs::write(folder.join(&file), part10).unwrap();
                    } else {
                        fs::write(folder.join(&file), &object.part10).unwrap();
                    }
                    let mut described = describe(spec);
                    if is_picture(spec) {
                        let raw = file.replace(".dcm", ".rgb");
                        fs::write(folder.join(&raw), &pixels.bytes).unwrap();
                        described["pixels"] = json!({"file": raw, "columns": pixels.width, "rows": pixels.height});
                    }
                    described["file"] = json!(file);
                    described["run"] = json!(run_idx);
                    described["kind"] = json!(kind);
                    objects.push(described);
                    let document = PredecessorDocument {
                        sop_class_uid: object.sop_class_uid,
                        sop_instance_uid: object.sop_instance_uid,
                        series_instance_uid: object.series_instance_uid,
                    };
                    (file, document)
                });
                sent.push(file.clone());
                let of_kind = match spec {
                    ResultSpec::Report(_) => &mut sent_now.report,
                    ResultSpec::TextCompanion(_) => &mut sent_now.text_companion,
                    _ => continue,
                };
                of_kind.get_or_insert_with(|| document.clone());
            }
            predecessors = Predecessors {
                report: sent_now.report.or(predecessors.report),
                text_companion: sent_now.text_companion.or(predecessors.text_companion),
            };
        }
        destinations.push(json!({"name": name, "profile": profile, "files": sent}));
    }
    let labels = case.labels.as_ref().map(|labels| {
        fs::write(folder.join("labels.raw"), &labels.bits).unwrap();
        json!({"file": "labels.raw", "size": labels.size})
    });
    let written = json!({
        "name": case.name,
        "sources": source_files,
        "runs": case.runs,
        "labels": labels,
        "site_utc_offset_minutes": case.site_utc_offset.map(UtcOffset::whole_minutes),
        "assumed_character_set": options.assumed_character_set,
        "manufacturer": options.manufacturer,
        "software_version": options.software_version,
        "objects": objects,
        "destinations": destinations,
    });
    fs::write(folder.join("case.json"), serde_json::to_vec_pretty(&written).unwrap()).unwrap();
    (objects.len(), n_changed)
}

fn is_picture(spec: &ResultSpec) -> bool {
    matches!(spec, ResultSpec::HeatMap { .. } | ResultSpec::CtSummary(_) | ResultSpec::CtSlice { .. })
}

/// What the object is, for those who check it.
fn describe(spec: &ResultSpec) -> Value {
    let form = |form: &PictureForm| json!({"modality": form.modality, "compression": form.compression, "longest_side": form.longest_side});
    let report = |what: &str, form: &ReportForm| {
        json!({
            "what": what, "class": form.class, "language": form.language,
            "with_segmentation": form.with_segmentation, "predecessor": form.predecessor,
        })
    };
    match spec {
        ResultSpec::Segmentation(Shown::Ct) => json!({"what": "segmentation"}),
        ResultSpec::Segmentation(Shown::Radiograph(image_idx)) => json!({"what": "segmentation", "image": image_idx}),
        ResultSpec::PresentationState { image_idx, language } => {
            json!({"what": "presentation_state", "image": image_idx, "language": language})
        }
        ResultSpec::HeatMap { image_idx, form: picture } => {
            json!({"what": "heat_map", "image": image_idx, "language": picture.language, "form": form(picture)})
        }
        ResultSpec::CtSummary(picture) => {
            json!({"what": "ct_summary", "language": picture.language, "form": form(picture)})
        }
        ResultSpec::CtSlice { slice, form: picture } => {
            json!({"what": "ct_slice", "slice": slice, "language": picture.language, "form": form(picture)})
        }
        ResultSpec::Report(form) => report("report", form),
        ResultSpec::TextCompanion(form) => report("text_companion", form),
        ResultSpec::KeyObjects { language } => json!({"what": "key_objects", "language": language}),
    }
}

/// Smooth colours, so that a lossy encoding stays near them; no two channels alike, nothing symmetric.
fn picture(case: &Case, spec: &ResultSpec) -> RgbPixels {
    let [columns, rows] = if case.labels.is_some() { SLICE } else { RADIOGRAPH }.map(u32::from);
    let [width, height] = match spec {
        ResultSpec::CtSummary(_) => [97, 64],
        ResultSpec::HeatMap { .. } if case.is_resized => [2 * columns, 2 * rows],
        _ => [columns, rows],
    };
    let shift = if let ResultSpec::CtSlice { slice, .. } = spec { *slice as u32 } else { 0 };
    let bytes = (0..width * height)
        .map(|pixel| (pixel % width, pixel / width))
        .flat_map(|(x, y)| [200 * x / width + 5 * shift, 220 * y / height, 40 + 100 * (x + y) / (width + height)])
        .map(|value| u8::try_from(value.min(255)).unwrap())
        .collect();
    RgbPixels { width, height, bytes }
}

// --- mistakes ------------------------------------------------------------------------------------------------------

/// A finished object with the mistake in it.
fn mutated(mutation: &Mutation, kind: &str, part10: &[u8], foreign: &[String]) -> Vec<u8> {
    match mutation.change {
        Change::Elements(kinds, change) if kinds.contains(&kind) => {
            let object = dicom_object::from_reader(&part10[128..]).unwrap();
            let meta = object.meta().clone();
            let data_set = rewritten(object.into_inner(), &mut |element| change(element, foreign));
            let mut bytes = Vec::new();
            data_set.with_exact_meta(meta).write_all(&mut bytes).unwrap();
            bytes
        }
        Change::Bytes(change) => change(part10),
        Change::Record(_) | Change::Elements(..) => part10.to_vec(),
    }
}

/// Every element of every item, the innermost first, as the function leaves it.
fn rewritten(
    data_set: InMemDicomObject,
    change: &mut impl FnMut(InMemElement) -> Option<InMemElement>,
) -> InMemDicomObject {
    let elements: Vec<InMemElement> = data_set
        .into_iter()
        .filter_map(|element| {
            let (tag, vr) = (element.tag(), element.vr());
            let element = match element.into_value() {
                DicomValue::Sequence(sequence) => {
                    let items = sequence.into_items().into_iter().map(|item| rewritten(item, change));
                    DataElement::new(tag, vr, DataSetSequence::from(items.collect::<Vec<_>>()))
                }
                value => DataElement::new(tag, vr, value),
            };
            change(element)
        })
        .collect();
    InMemDicomObject::from_element_iter(elements)
}

fn string(object: &InMemDicomObject, tag: Tag) -> String {
    let value = object.get(tag).and_then(|element| element.to_str().ok()).unwrap_or_default();
    value.trim_end_matches(['\0', ' ']).to_owned()
}

fn first_code(item: &InMemDicomObject, tag: Tag) -> String {
    let code = item.get(tag).and_then(|codes| codes.items()).and_then(|codes| codes.first());
    code.map(|code| string(code, tags::CODE_VALUE)).unwrap_or_default()
}

fn with_text(element: &InMemElement, value: &str) -> Option<InMemElement> {
    Some(DataElement::new(element.tag(), element.vr(), PrimitiveValue::from(value)))
}

/// The element with its items as the function leaves them.
fn with_items(element: InMemElement, change: impl FnOnce(&mut Vec<InMemDicomObject>)) -> Option<InMemElement> {
    let (tag, vr) = (element.tag(), element.vr());
    let mut items = element.items().map(<[InMemDicomObject]>::to_vec).unwrap_or_default();
    change(&mut items);
    Some(DataElement::new(tag, vr, DataSetSequence::from(items)))
}

fn code_item(value: &str, scheme: &str, meaning: &str) -> InMemDicomObject {
    InMemDicomObject::from_element_iter([
        DataElement::new(tags::CODE_VALUE, VR::SH, PrimitiveValue::from(value)),
        DataElement::new(tags::CODING_SCHEME_DESIGNATOR, VR::SH, PrimitiveValue::from(scheme)),
        DataElement::new(tags::CODE_MEANING, VR::LO, PrimitiveValue::from(meaning)),
    ])
}

/// The value of the first element of this tag and value representation in the bytes of an object, replaced; without the
/// element when there is no new value.
fn with_value(part10: &[u8], tag: Tag, vr: [u8; 2], change: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let header = [&tag.group().to_le_bytes()[..], &tag.element().to_le_bytes(), &vr].concat();
    let Some(start) = part10.windows(header.len()).position(|window| window == header) else { return part10.to_vec() };
    let value = start + header.len() + 2;
    let end = value + usize::from(u16::from_le_bytes([part10[value - 2], part10[value - 1]]));
    let replacement = change(&part10[value..end]).map(|new| {
        let length = u16::try_from(new.len()).unwrap().to_le_bytes();
        [&header[..], &length, &new].concat()
    });
    [&part10[..start], &replacement.unwrap_or_default(), &part10[end..]].concat()
}

/// The pixels of a segmentation, a byte each, as the function orders and packs them.
fn with_frames(element: &InMemElement, change: impl FnOnce(Vec<Vec<bool>>) -> Vec<Vec<bool>>) -> Option<InMemElement> {
    let bytes = element.to_bytes().unwrap();
    let bits = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    let pixels = usize::from(SLICE[0]) * usize::from(SLICE[1]);
    let bits: Vec<bool> = bits.collect();
    let frames = change(bits.chunks_exact(pixels).map(<[bool]>::to_vec).collect());
    let bits: Vec<bool> = frames.concat();
    let mut packed: Vec<u8> = bits
        .chunks(8)
        .map(|bits| bits.iter().enumerate().fold(0, |byte, (bit, is_set)| byte | u8::from(*is_set) << bit))
        .collect();
    if packed.len() % 2 == 1 {
        packed.push(0);
    }
    Some(DataElement::new(element.tag(), element.vr(), PrimitiveValue::from(packed)))
}

/// The radiograph of which all that is found is in English, ASCII and one image.
const RADIOGRAPH_CASE: &str = "dx-ascii-plain";
/// The same of two images and a third.
const IMAGES_CASE: &str = "dx-ascii-bare";
/// A radiograph with similar cases.
const SIMILAR_CASE: &str = "dx-ascii-monochrome1";
const CT_CASE: &str = "ct-ascii-plain";

fn scores(record: &mut RunRecord, change: impl Fn(&mut ImageAnalysis)) {
    if let RunOutcome::Analysed(analysis) = &mut record.outcome {
        analysis.images.iter_mut().for_each(change);
    }
}

const REPORTS: &[&str] = &["sr"];

const MUTATIONS: [Mutation; 20] = [
    Mutation {
        name: "percent_not_multiplied",
        case: RADIOGRAPH_CASE,
        change: Change::Record(|record| {
            scores(record, |image| {
                image.fused.iter_mut().for_each(|output| *output /= 100.0);
                image
                    .members
                    .iter_mut()
                    .flat_map(|member| &mut member.probabilities)
                    .for_each(|output| *output /= 100.0);
            });
        }),
    },
    Mutation {
        name: "lungs_swapped",
        case: RADIOGRAPH_CASE,
        change: Change::Record(|record| {
            scores(record, |image| {
                std::mem::swap(&mut image.right_lung_heat_fraction, &mut image.left_lung_heat_fraction);
            });
        }),
    },
    Mutation {
        name: "members_swapped",
        case: RADIOGRAPH_CASE,
        change: Change::Record(|record| {
            scores(record, |image| {
                let [first, second] = &mut image.members[..] else { panic!("two members") };
                std::mem::swap(&mut first.probabilities, &mut second.probabilities);
            });
        }),
    },
    Mutation {
        name: "threshold_of_another_class",
        case: RADIOGRAPH_CASE,
        change: Change::Record(|record| record.bundle.threshold = 0.35),
    },
    Mutation {
        name: "sides_of_ct_swapped",
        case: CT_CASE,
        change: Change::Record(|record| {
            if let RunOutcome::CtMeasured(analysis) = &mut record.outcome {
                let [right, left] = &mut analysis.lungs[..] else { panic!("two lungs") };
                std::mem::swap(&mut right.whole, &mut left.whole);
            }
        }),
    },
    Mutation {
        name: "wrong_coding_scheme",
        case: RADIOGRAPH_CASE,
        change: Change::Elements(REPORTS, |element, _| {
            if element.tag() != tags::CONCEPT_CODE_SEQUENCE {
                return Some(element);
            }
            with_items(element, |codes| {
                for code in codes.iter_mut().filter(|code| string(code, tags::CODE_VALUE) == "39607008") {
                    *code = code_item("39607008", "DCM", "Lung");
                }
            })
        }),
    },
    Mutation {
        name: "present_though_not_validated",
        case: RADIOGRAPH_CASE,
        change: Change::Elements(REPORTS, |element, _| {
            if element.tag() != tags::CONTENT_SEQUENCE {
                return Some(element);
            }
            with_items(element, |items| {
                for item in
                    items.iter_mut().filter(|item| first_code(item, tags::CONCEPT_NAME_CODE_SEQUENCE) == "705057003")
                {
                    let present = DataSetSequence::from(vec![code_item("52101004", "SCT", "Present")]);
                    item.put(DataElement::new(tags::CONCEPT_CODE_SEQUENCE, VR::SQ, present));
                }
            })
        }),
    },
    Mutation {
        name: "required_attribute_missing",
        case: RADIOGRAPH_CASE,
        change: Change::Elements(REPORTS, |element, _| (element.tag() != tags::CONTENT_DATE).then_some(element)),
    },
    Mutation {
        name: "evidence_misses_an_image",
        case: IMAGES_CASE,
        change: Change::Elements(REPORTS, |element, _| {
            if element.tag() != tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE {
                return Some(element);
            }
            with_items(element, |studies| {
                *studies = studies
                    .iter()
                    .map(|study| {
                        rewritten(study.clone(), &mut |element| match element.tag() {
                            tags::REFERENCED_SOP_SEQUENCE => with_items(element, |images| images.truncate(1)),
                            _ => Some(element),
                        })
                    })
                    .collect();
            })
        }),
    },
    Mutation {
        name: "evidence_names_an_image_twice",
        case: RADIOGRAPH_CASE,
        change: Change::Elements(REPORTS, |element, _| {
            if element.tag() != tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE {
                return Some(element);
            }
            with_items(element, |studies| {
                *studies = studies
                    .iter()
                    .map(|study| {
                        rewritten(study.clone(), &mut |element| match element.tag() {
                            tags::REFERENCED_SOP_SEQUENCE => {
                                with_items(element, |images| images.push(images[0].clone()))
                            }
                            _ => Some(element),
                        })
                    })
                    .collect();
            })
        }),
    },
    Mutation {
        name: "foreign_patient_referred_to",
        case: SIMILAR_CASE,
        change: Change::Elements(REPORTS, |element, foreign| {
            if element.tag() != tags::CONTENT_SEQUENCE {
                return Some(element);
            }
            with_items(element, |items| {
                if items.iter().any(|item| first_code(item, tags::CONCEPT_NAME_CODE_SEQUENCE) == "KNN-COSINE") {
                    let [sop_class, instance] = foreign else { panic!("class and instance") };
                    let text = |tag, vr, value: &str| DataElement::new(tag, vr, PrimitiveValue::from(value));
                    let sequence = |tag, item| DataElement::new(tag, VR::SQ, DataSetSequence::from(vec![item]));
                    let reference = InMemDicomObject::from_element_iter([
                        text(tags::REFERENCED_SOP_CLASS_UID, VR::UI, sop_class),
                        text(tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, instance),
                    ]);
                    items.push(InMemDicomObject::from_element_iter([
                        text(tags::RELATIONSHIP_TYPE, VR::CS, "CONTAINS"),
                        text(tags::VALUE_TYPE, VR::CS, "IMAGE"),
                        sequence(tags::CONCEPT_NAME_CODE_SEQUENCE, code_item("260753009", "SCT", "Source")),
                        sequence(tags::REFERENCED_SOP_SEQUENCE, reference),
                    ]));
                }
            })
        }),
    },
    Mutation {
        name: "disclaimer_missing",
        case: RADIOGRAPH_CASE,
        change: Change::Elements(REPORTS, |element, _| {
            if element.tag() != tags::CONTENT_SEQUENCE {
                return Some(element);
            }
            with_items(element, |items| {
                items.retain(|item| !string(item, tags::TEXT_VALUE).to_lowercase().contains("not for diagnostic use"));
            })
        }),
    },
    Mutation {
        name: "verified",
        case: RADIOGRAPH_CASE,
        change: Change::Elements(REPORTS, |element, _| match element.tag() {
            tags::VERIFICATION_FLAG => with_text(&element, "VERIFIED"),
            _ => Some(element),
        }),
    },
    Mutation {
        name: "wrong_time_zone",
        case: RADIOGRAPH_CASE,
        change: Change::Bytes(|part10| {
            with_value(part10, tags::TIMEZONE_OFFSET_FROM_UTC, *b"SH", |_| Some(b"+0000 ".to_vec()))
        }),
    },
    Mutation {
        name: "name_encoded_anew",
        case: "dx-gb18030-plain",
        change: Change::Bytes(|part10| {
            // What becomes of it when values are split at 5CH before they are decoded.
            with_value(part10, tags::PATIENT_NAME, *b"PN", |name| {
                let replaced = |byte: &u8| if *byte == b'\\' { b'?' } else { *byte };
                Some(name.iter().map(replaced).collect())
            })
        }),
    },
    Mutation {
        name: "character_set_missing",
        case: "dx-gb18030-plain",
        change: Change::Bytes(|part10| with_value(part10, tags::SPECIFIC_CHARACTER_SET, *b"CS", |_| None)),
    },
    Mutation {
        name: "segment_numbers_off_by_one",
        case: CT_CASE,
        change: Change::Elements(&["seg"], |element, _| {
            if element.tag() != tags::REFERENCED_SEGMENT_NUMBER {
                return Some(element);
            }
            let number = element.to_int::<u16>().unwrap() + 1;
            Some(DataElement::new(element.tag(), element.vr(), PrimitiveValue::from(number)))
        }),
    },
    Mutation {
        name: "frames_reversed",
        case: CT_CASE,
        change: Change::Elements(&["seg"], |element, _| match element.tag() {
            tags::PIXEL_DATA => with_frames(&element, |frames| frames.into_iter().rev().collect()),
            _ => Some(element),
        }),
    },
    Mutation {
        name: "frames_begin_at_bytes",
        case: CT_CASE,
        change: Change::Elements(&["seg"], |element, _| match element.tag() {
            tags::PIXEL_DATA => with_frames(&element, |mut frames| {
                frames.iter_mut().for_each(|frame| frame.resize(frame.len().next_multiple_of(8), false));
                frames
            }),
            _ => Some(element),
        }),
    },
    Mutation {
        name: "locations_of_a_resized_picture",
        case: "dx-ascii-16bit",
        change: Change::Elements(&["sc"], |element, _| match element.tag() {
            tags::SPATIAL_LOCATIONS_PRESERVED => with_text(&element, "YES"),
            _ => Some(element),
        }),
    },
];

/// Written anew without a mistake: whoever finds something here finds the writing, not the mistake.
const NO_MISTAKE: Mutation = Mutation {
    name: "none",
    case: RADIOGRAPH_CASE,
    change: Change::Elements(&["sr", "sc"], |element, _| Some(element)),
};

/// Class and instance of an image of a patient who has nothing to do with a case.
fn foreign_to(case: &Case, cases: &[Case]) -> Vec<String> {
    let other = cases.iter().find(|other| other.name != case.name).unwrap();
    let image = other.sources[0].image();
    vec![image.sop_class_uid.to_string(), image.sop_instance_uid.to_string()]
}

fn write_mutation(folder: &Path, mutation: &Mutation, cases: &[Case]) -> usize {
    let mut case = cases.iter().find(|case| case.name == mutation.case).unwrap().clone();
    // Default settings, and everything there is.
    case.destinations.truncate(2);
    let (_, n_changed) = write_case(&folder.join(mutation.name), &case, Some(mutation), &foreign_to(&case, cases));
    n_changed
}

#[test]
#[ignore = "`make validate-results` runs it: it writes thousands of files to the folder HILUM_RESULTS_MATRIX"]
fn every_result_of_the_matrix() {
    let folder = PathBuf::from(std::env::var_os("HILUM_RESULTS_MATRIX").expect("HILUM_RESULTS_MATRIX names a folder"));
    let cases = cases();
    let mut by_kind: BTreeMap<String, usize> = BTreeMap::new();
    for case in &cases {
        let (n_objects, _) = write_case(&folder.join("matrix").join(&case.name), case, None, &[]);
        assert!(n_objects > 0, "{} has no results", case.name);
        *by_kind.entry(case.sources[0].modality.to_owned()).or_default() += n_objects;
    }
    for mutation in &MUTATIONS {
        let n_changed = write_mutation(&folder.join("mutations"), mutation, &cases);
        assert!(n_changed > 0, "mutation {} changes nothing", mutation.name);
    }
    write_mutation(&folder.join("unchanged"), &NO_MISTAKE, &cases);
    println!("{by_kind:?}");
}

/// A few of them, read back by what the tests have installed.
#[test]
fn some_results_of_the_matrix_are_read_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    for name in ["cr-none-12bit", "dx-gb18030-monochrome1", "ct-iso2022-bare"] {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        write_case(&folder.path().join("matrix").join(name), case, None, &[]);
    }
    for name in ["lungs_swapped", "foreign_patient_referred_to", "name_encoded_anew"] {
        let mutation = MUTATIONS.iter().find(|mutation| mutation.name == name).unwrap();
        assert!(write_mutation(&folder.path().join("mutations"), mutation, &cases) > 0, "{name} changes nothing");
    }
    let checker = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate_results/check.py");
    let python = super::tests::validators::peers_python();
    let output = Command::new(python).arg(checker).arg(folder.path()).arg("--short").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("errors=0 unexpected_warnings=0") && said.contains("mutations_caught=3/3"), "{said}");
}
