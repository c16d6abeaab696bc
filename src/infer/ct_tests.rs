//! The CT pipeline on a phantom in DICOM.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use dicom_core::{PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{InMemDicomObject, mem::InMemElement};

use super::{worker::all_sources_of, *};
use crate::{
    imaging::{
        DecodeLimits,
        ct::{
            LEFT_LUNG, RIGHT_LUNG, Volume,
            phantom::{Phantom, dice},
        },
        testing::{number, part10, text},
    },
    nn::{
        Architecture, CtGates, EnsembleOptions, ImportTarget, MemberArchitecture, ScanArchitecture, ScanOptions,
        import, init_ct_bundle, init_untrained_scan_bundle, script_of, script_of_shape, threshold_weights,
    },
    types::{
        BundleIdentity, BundleStatus, CtAnalysis, CtLesionRun, CtLesions, CtPlane, CtQuadrant, Decision, Errand,
        NotAnalysed, ReasonCode, RunOutcome, Sha256Digest, Side, SourceImage, Uid, Urgency, VoxelLabels,
    },
};

fn bundle() -> BundleIdentity {
    BundleIdentity {
        name: "ct".to_owned(),
        version: "1".to_owned(),
        status: BundleStatus::Unvalidated,
        digest: Sha256Digest::of(b"ct"),
        classes: Vec::new(),
        target_class_idx: 0,
        threshold: 0.0,
        pixel_threshold: None,
        grey_zone: None,
        fusion: "none".to_owned(),
        calibration: None,
        reference_performance: String::new(),
        segmenter: None,
        members: Vec::new(),
    }
}

/// A study in memory: objects by archive key.
#[derive(Default)]
struct Study {
    sources: Vec<SourceImage>,
    files: HashMap<String, Vec<u8>>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// How a volume is written as images.
#[derive(Clone, Copy)]
struct Writing {
    series: &'static str,
    /// Stored columns run to the patient's right, as when the patient lies prone or feet first.
    columns_reversed: bool,
    rows_reversed: bool,
    /// Sideways shift for each slice in millimetres.
    shear_mm: f64,
}

const PLAIN: Writing = Writing { series: "2.25.100", columns_reversed: false, rows_reversed: false, shear_mm: 0.0 };

impl Study {
    fn of(volume: &Volume, writing: Writing) -> Self {
        let mut study = Self::default();
        // From the head to the feet, as many scanners number them.
        (0..volume.size[2]).rev().for_each(|slice| study.add(volume, slice, writing));
        study
    }

    fn add(&mut self, volume: &Volume, slice: usize, writing: Writing) {
        let object = image(volume, slice, writing);
        self.add_object(object, writing.series);
    }

    fn add_object(&mut self, mut object: InMemDicomObject, series: &str) {
        let key = format!("object {}", self.sources.len());
        let instance = format!("2.25.{}", 1000 + self.sources.len());
        object.put(text(tags::SOP_INSTANCE_UID, VR::UI, &instance));
        self.sources.push(SourceImage {
            sop_class_uid: Uid::new(uids::CT_IMAGE_STORAGE).unwrap(),
            sop_instance_uid: Uid::new(&instance).unwrap(),
            series_instance_uid: Uid::new(series).unwrap(),
            modality: "CT".to_owned(),
            archive_key: key.clone(),
            sha256: Sha256Digest::of(key.as_bytes()),
        });
        self.files.insert(key, part10(object));
    }

    fn analyse(&self) -> Analysis {
        self.analyse_sources(self.sources.clone())
    }

    fn analyse_sources(&self, sources: Vec<SourceImage>) -> Analysis {
        self.analyse_with(
            &CtPipeline::new(bundle(), CtGates::default(), None, DecodeLimits::default()).unwrap(),
            sources,
        )
    }

    fn analyse_with(&self, pipeline: &CtPipeline, sources: Vec<SourceImage>) -> Analysis {
        let read = |source: SourceImage| {
            let bytes = self.files[&source.archive_key].clone();
            async move { Ok(LoadedImage { source, bytes }) }
        };
        runtime().block_on(pipeline.analyse(sources, &Errand::default(), read)).unwrap()
    }

    #[track_caller]
    fn measured(&self) -> CtAnalysis {
        match self.analyse().outcome {
            RunOutcome::CtMeasured(analysis) => *analysis,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(&self) -> NotAnalysed {
        match self.analyse().outcome {
            RunOutcome::NotAnalysed(not_analysed) => not_analysed,
            other => panic!("{other:?}"),
        }
    }
}

fn image(volume: &Volume, slice: usize, writing: Writing) -> InMemDicomObject {
    let [columns, rows, _] = volume.size;
    let [sx, sy, sz] = volume.spacing_mm;
    let pick = |index: usize, count: usize, reversed: bool| if reversed { count - 1 - index } else { index };
    let hu = volume.slice(slice);
    let words: Vec<u16> = (0..rows * columns)
        .map(|pixel| {
            let row = pick(pixel / columns, rows, writing.rows_reversed);
            let column = pick(pixel % columns, columns, writing.columns_reversed);
            (i32::from(hu[row * columns + column]) + 1024).max(0) as u16
        })
        .collect();
    let edge =
        |count: usize, step: f64, reversed: bool| (count - 1) as f64 * step / 2.0 * if reversed { 1.0 } else { -1.0 };
    let x = edge(columns, sx, writing.columns_reversed);
    let y = edge(rows, sy, writing.rows_reversed) + writing.shear_mm * slice as f64;
    let sign = |reversed: bool| if reversed { -1 } else { 1 };
    let orientation = format!("{}\\0\\0\\0\\{}\\0", sign(writing.columns_reversed), sign(writing.rows_reversed));
    InMemDicomObject::from_element_iter([
        text(tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE),
        text(tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\AXIAL"),
        text(tags::MODALITY, VR::CS, "CT"),
        text(tags::PATIENT_AGE, VR::AS, "060Y"),
        text(tags::SERIES_INSTANCE_UID, VR::UI, writing.series),
        text(tags::FRAME_OF_REFERENCE_UID, VR::UI, "2.25.7"),
        text(tags::IMAGE_POSITION_PATIENT, VR::DS, &format!("{x:.3}\\{y:.3}\\{:.3}", slice as f64 * sz - 400.0)),
        text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, &orientation),
        text(tags::PIXEL_SPACING, VR::DS, &format!("{sy}\\{sx}")),
        number(tags::SAMPLES_PER_PIXEL, 1),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        number(tags::ROWS, rows as u16),
        number(tags::COLUMNS, columns as u16),
        number(tags::BITS_ALLOCATED, 16),
        number(tags::BITS_STORED, 16),
        number(tags::HIGH_BIT, 15),
        number(tags::PIXEL_REPRESENTATION, 0),
        text(tags::RESCALE_SLOPE, VR::DS, "1"),
        text(tags::RESCALE_INTERCEPT, VR::DS, "-1024"),
        InMemElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(words.into())),
    ])
}

fn image_without_pixels(volume: &Volume, slice: usize, writing: Writing) -> InMemDicomObject {
    let mut damaged = image(volume, slice, writing);
    damaged.put(InMemElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16([0_u16; 8][..].into())));
    damaged
}

/// A phantom whose left lung is a little denser and has a lesion fewer, so that the sides can be told apart.
fn phantom() -> (Volume, Vec<u8>) {
    let (mut volume, truth) = Phantom { pleural_lesion_mm: None, ..Phantom::default() }.make();
    for (hu, label) in volume.hu.iter_mut().zip(&truth) {
        if *label == LEFT_LUNG && *hu < -700 {
            *hu += 60;
        }
    }
    (volume, truth)
}

#[test]
fn both_lungs_are_measured_and_the_stages_are_timed() {
    let (volume, truth) = phantom();
    let analysis = Study::of(&volume, PLAIN).analyse();
    let stages: Vec<&str> = analysis.stage_milliseconds.iter().map(|(stage, _)| stage.as_str()).collect();
    assert_eq!(stages, ["read", "headers", "decode", "segment", "measure"]);
    let RunOutcome::CtMeasured(measured) = analysis.outcome else { panic!("{:?}", analysis.outcome) };
    assert_eq!(measured.series.size, volume.size);
    assert!(measured.gates.iter().all(|gate| gate.passed), "{:?}", measured.gates);
    for (lung, label) in measured.lungs.iter().zip([RIGHT_LUNG, LEFT_LUNG]) {
        let truth_ml = truth.iter().map(|found| f64::from(*found == label)).sum::<f64>() * volume.voxel_ml();
        assert!((lung.whole.volume_ml / truth_ml - 1.0).abs() < 0.05, "{lung:?}, {truth_ml} ml");
    }
    assert_eq!(measured.sections.len(), 4);
    let heights: Vec<usize> = (0..volume.size[2]).rev().collect();
    let order: Vec<String> = heights.iter().map(|idx| format!("object {idx}")).collect();
    let keys: Vec<String> = measured.series.images.iter().map(|image| image.archive_key.clone()).collect();
    assert_eq!(keys, order, "the images are named from the feet up");
}

/// What each voxel is agrees with what was measured, and does not depend on how the images are turned.
#[test]
fn every_voxel_is_labelled_as_it_was_measured() {
    let (volume, truth) = phantom();
    let voxel_ml = volume.voxel_ml();
    let mut first: Option<VoxelLabels> = None;
    for (columns_reversed, rows_reversed) in [(false, false), (true, true)] {
        let analysis = Study::of(&volume, Writing { columns_reversed, rows_reversed, ..PLAIN }).analyse();
        let RunOutcome::CtMeasured(measured) = analysis.outcome else { panic!("{:?}", analysis.outcome) };
        let masks = analysis.masks.unwrap();
        assert_eq!(masks.size, volume.size);
        let ml = |bits: u8| masks.bits.iter().filter(|label| **label & bits == bits).count() as f64 * voxel_ml;
        let is_near = |found: f64, expected: f64| (found - expected).abs() < 1e-6 * expected.max(1.0);
        for (lung, side, label) in [
            (&measured.lungs[0], VoxelLabels::RIGHT_LUNG, RIGHT_LUNG),
            (&measured.lungs[1], VoxelLabels::LEFT_LUNG, LEFT_LUNG),
        ] {
            let whole = &lung.whole;
            assert!(is_near(ml(side), whole.volume_ml));
            assert!(is_near(ml(side | VoxelLabels::OPACITY), whole.opacity_fraction() * whole.volume_ml));
            assert!(is_near(ml(side | VoxelLabels::CONSOLIDATION), whole.consolidation_fraction() * whole.volume_ml));
            let found: Vec<u8> = masks.bits.iter().map(|bits| u8::from(bits & side != 0) * label).collect();
            assert!(dice(&found, &truth, label) > 0.95, "the {} lung is where it is", lung.side.name());
        }
        assert!(masks.slices_with(VoxelLabels::LESION).is_empty());
        assert!(first.get_or_insert_with(|| masks.clone()) == &masks);
    }
    assert_eq!(Study::default().analyse().masks, None);
}

/// The pipeline of an untrained bundle with one network.
fn pipeline_of(architecture: MemberArchitecture, change: impl FnOnce(String) -> String) -> CtPipeline {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan");
    let options = ScanOptions { seed: 1, architecture, width: 0.0625, size_pixels: Some([64, 64]) };
    init_untrained_scan_bundle(&path, options).unwrap();
    let manifest = path.join("manifest.toml");
    fs_err::write(&manifest, change(fs_err::read_to_string(&manifest).unwrap())).unwrap();
    match Pipeline::open(&path, EnsembleOptions::default(), DecodeLimits::default()).unwrap() {
        Pipeline::Ct(pipeline) => pipeline,
        Pipeline::Cxr(_) => panic!("a bundle for CT"),
    }
}

#[test]
fn networks_judge_a_scan_and_name_the_slices_that_speak_for_it() {
    let (volume, _) = phantom();
    let study = Study::of(&volume, PLAIN);
    for architecture in [
        MemberArchitecture::Scan(ScanArchitecture::Covnet),
        MemberArchitecture::Scan(ScanArchitecture::MultiScale),
        MemberArchitecture::Scan(ScanArchitecture::DeCoVNet),
        MemberArchitecture::Known(Architecture::ResNet18),
    ] {
        let name = architecture.name();
        let pipeline = pipeline_of(architecture, |text| text);
        let analysis = study.analyse_with(&pipeline, study.sources.clone());
        assert_eq!(analysis.stage_milliseconds.last().unwrap().0, "classify", "{name}");
        let RunOutcome::CtMeasured(measured) = analysis.outcome else { panic!("{name}: {:?}", analysis.outcome) };
        let scan = measured.classification.as_ref().expect(name);
        assert_eq!((scan.members.len(), scan.fused.len(), scan.decision), (1, 2, Decision::Undetermined), "{name}");
        assert!((scan.fused.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{name}: {:?}", scan.fused);
        assert!((scan.fused[0] - scan.members[0].probabilities[0]).abs() < 1e-5, "{name}: one member is the ensemble");
        assert!(scan.slices.is_sorted() && scan.slices.iter().all(|slice| *slice < volume.size[2]), "{name}");
        assert!(scan.key_slices.len() <= 3, "{name}");
        for key in &scan.key_slices {
            assert!(scan.slices.contains(&key.slice), "{name}");
            assert!(key.lung_heat_fraction.is_none_or(|share| (0.0..=1.0).contains(&share)), "{name}: {key:?}");
            assert!(measured.sections.iter().any(|section| section.index == key.slice), "{name}: it is shown");
        }
        assert!(measured.method.threshold_hu.is_some(), "the lungs are found without a network");
        let again = study.analyse_with(&pipeline, study.sources.clone());
        assert_eq!(again.outcome, RunOutcome::CtMeasured(measured), "{name}: the same every time");
    }
}

#[test]
fn slices_with_less_lung_than_the_networks_ask_for_are_left_out() {
    let (volume, _) = phantom();
    let study = Study::of(&volume, PLAIN);
    let slices = |minimum: &str| {
        let pipeline = pipeline_of(MemberArchitecture::Scan(ScanArchitecture::MultiScale), |text| {
            assert!(text.contains("minimum_lung_cm2 = 2.5"), "{text}");
            text.replace("minimum_lung_cm2 = 2.5", &format!("minimum_lung_cm2 = {minimum}"))
                .replace("maximum_slices = 64", "maximum_slices = 1000")
        });
        let RunOutcome::CtMeasured(measured) = study.analyse_with(&pipeline, study.sources.clone()).outcome else {
            panic!("measured")
        };
        measured.classification.unwrap().slices
    };
    let (few, many) = (slices("100.0"), slices("2.5"));
    assert!(!few.is_empty() && few.len() < many.len(), "{} and {}", few.len(), many.len());
    assert!(few.iter().all(|slice| many.contains(slice)));
}

const UNET_PLUS_PLUS: MemberArchitecture = MemberArchitecture::Scan(ScanArchitecture::UNetPlusPlus);

#[track_caller]
fn lesions_of(analysis: Analysis) -> (CtAnalysis, CtLesions) {
    let RunOutcome::CtMeasured(measured) = analysis.outcome else { panic!("{:?}", analysis.outcome) };
    let lesions = measured.lesions.clone().expect("a bundle that outlines lesions");
    (*measured, lesions)
}

#[test]
fn a_network_that_outlines_everything_outlines_the_lungs_and_one_that_sees_nothing_finds_nothing() {
    let (volume, _) = phantom();
    let study = Study::of(&volume, PLAIN);
    let with = |probability: &str, lungs_only: &str| {
        let pipeline = pipeline_of(UNET_PLUS_PLUS, |text| {
            assert!(text.contains("probability = 0.5") && text.contains("lungs_only = false"), "{text}");
            text.replace("probability = 0.5", &format!("probability = {probability}"))
                .replace("lungs_only = false", &format!("lungs_only = {lungs_only}"))
        });
        study.analyse_with(&pipeline, study.sources.clone())
    };
    let analysis = with("0.000001", "true");
    assert_eq!(analysis.stage_milliseconds.last().unwrap().0, "lesions");
    let again = with("0.000001", "true").outcome;
    assert_eq!(analysis.outcome, again, "the same every time");
    assert_eq!(compare::compare(&analysis.outcome, &again), compare::Comparison::Identical);
    let (measured, all) = lesions_of(analysis);
    assert_eq!(all.decision, Decision::Undetermined, "an untrained bundle decides nothing");
    assert!(measured.classification.is_none());
    for (of_lung, lung) in all.lungs.iter().zip(&measured.lungs) {
        assert_eq!((of_lung.side, of_lung.fraction), (lung.side, Some(1.0)));
        assert!((of_lung.volume_ml - lung.whole.volume_ml).abs() < 1e-6);
    }
    let sum: f64 = all.lungs.iter().map(|lung| lung.volume_ml).sum();
    assert!((all.volume_ml - sum).abs() < 1e-6, "nothing beyond the lungs");
    let run = all.run.expect("every slice has lesion");
    assert_eq!((run.slices, run.first_slice), (all.longest_run, all.slices[0]));
    assert!(all.slices.windows(2).all(|pair| pair[1] == pair[0] + 1), "no slice is left out: {:?}", all.slices);
    assert!(measured.sections.iter().all(|section| section.lesions_png_base64.is_some()));

    let (_, beyond) = lesions_of(with("0.000001", "false"));
    assert!(beyond.volume_ml > 2.0 * all.volume_ml, "{} and {} ml", beyond.volume_ml, all.volume_ml);
    let (_, none) = lesions_of(with("0.999999", "true"));
    assert_eq!((none.run, none.longest_run, none.slices_with_lesion, none.largest_slice), (None, 0, 0, None));
    assert!(none.volume_ml.abs() < 1e-9);

    // Records of bundles without such networks are what they were before there were any.
    let plain = serde_json::to_string(&study.analyse().outcome).unwrap();
    assert!(!plain.contains("lesions"), "{plain}");
    assert!(serde_json::from_str::<RunOutcome>(&plain).is_ok());
}

/// A bright block in the right lung, at the back: columns 45 to 74, rows 75 to 94, slices 30 to 34.
fn phantom_with_block() -> Volume {
    let (mut volume, _) = phantom();
    let [columns, rows, _] = volume.size;
    for slice in 30..35 {
        for row in 75..95 {
            let line = (slice * rows + row) * columns;
            volume.hu[line + 45..line + 75].fill(900);
        }
    }
    volume
}

/// A site's own network of volumes: the mean brightness of the lungs by its channels, without maps.
#[test]
fn a_program_that_sees_the_volume_gives_scores_and_no_maps() {
    let (volume, _) = phantom();
    let study = Study::of(&volume, PLAIN);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan");
    let architecture = MemberArchitecture::Scan(ScanArchitecture::DeCoVNet);
    let options = ScanOptions { seed: 1, architecture, width: 0.0625, size_pixels: Some([64, 64]) };
    init_untrained_scan_bundle(&path, options).unwrap();
    let manifest = path.join("manifest.toml");
    let text = fs_err::read_to_string(&manifest).unwrap();
    let text = text.replace(
        "architecture = \"decovnet\"\nwidth = 0.0625\n",
        "architecture = \"torch_script\"\noutput = \"sigmoid\"\n",
    );
    fs_err::write(&manifest, text.replace("decovnet.safetensors", "decovnet.pt")).unwrap();
    let file = folder.path().join("own.pt");
    let script = script_of_shape(&[1, 2, 4, 64, 64], |volume| {
        volume.mean_dim([2i64, 3, 4].as_slice(), false, None).narrow(1, 1, 1)
    });
    fs_err::write(&file, script).unwrap();
    let target = ImportTarget::Member { name: "decovnet".to_owned(), architecture: None, width: None };
    import(&path, &file, &target, "1").unwrap();
    let Pipeline::Ct(pipeline) = Pipeline::open(&path, EnsembleOptions::default(), DecodeLimits::default()).unwrap()
    else {
        panic!("a bundle for CT")
    };
    let RunOutcome::CtMeasured(measured) = study.analyse_with(&pipeline, study.sources.clone()).outcome else {
        panic!("measured")
    };
    let scan = measured.classification.unwrap();
    // The share of the cut that is lung is some number between 0 and 1; its sigmoid lies above one half.
    assert!((0.55..0.74).contains(&scan.fused[0]), "{:?}", scan.fused);
    assert!((scan.fused[0] + scan.fused[1] - 1.0).abs() < 1e-6);
    assert!(scan.without_maps && scan.key_slices.is_empty(), "{:?}", scan.key_slices);
    assert!(!measured.sections.is_empty(), "the lungs are shown all the same");
}

/// What a member computes of brightness, pixel by pixel.
type Program<'a> = &'a dyn Fn(&tch::Tensor) -> tch::Tensor;

/// A pipeline whose members are programs of the normalised brightness (0 is -1200 HU, 1 is 1200 HU) of each pixel; slices
/// are padded to 180 x 180 pixels, so that none is resampled.
fn pipeline_of_scripts(members: &[(&str, Program<'_>)], change: impl FnOnce(String) -> String) -> CtPipeline {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan");
    let options = ScanOptions { seed: 1, architecture: UNET_PLUS_PLUS, width: 0.0625, size_pixels: Some([192, 192]) };
    init_untrained_scan_bundle(&path, options).unwrap();
    let manifest = path.join("manifest.toml");
    for (name, forward) in members {
        let file = folder.path().join("script.pt");
        let script = script_of([3, 192, 192], |slices| forward(&(slices.narrow(1, 0, 1) * 0.229 + 0.485)));
        fs_err::write(&file, script).unwrap();
        let target = ImportTarget::Member { name: (*name).to_owned(), architecture: None, width: None };
        import(&path, &file, &target, "site-1").unwrap();
    }
    let text = fs_err::read_to_string(&manifest).unwrap();
    for expected in ["window_hu = [-1200.0, 500.0]", "rows = 192", "columns = 192", "lungs_only = false"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let text = text
        .replace("window_hu = [-1200.0, 500.0]", "window_hu = [-1200.0, 1200.0]")
        .replace("rows = 192", "rows = 180")
        .replace("columns = 192", "columns = 180");
    fs_err::write(&manifest, change(text)).unwrap();
    match Pipeline::open(&path, EnsembleOptions::default(), DecodeLimits::default()).unwrap() {
        Pipeline::Ct(pipeline) => pipeline,
        Pipeline::Cxr(_) => panic!("a bundle for CT"),
    }
}

/// 900 HU are 0.875, bone of 300 HU is 0.625.
fn bright(brightness: &tch::Tensor) -> tch::Tensor {
    (brightness - 0.8) * 1000.0
}

#[test]
fn a_lesion_comes_back_to_its_voxels_and_the_rule_finds_its_slices() {
    use base64::Engine as _;
    let volume = phantom_with_block();
    let pipeline = pipeline_of_scripts(&[("unet_plus_plus", &bright)], |text| text);
    let expected = CtLesionRun { first_slice: 30, last_slice: 34, slices: 5, quadrant: CtQuadrant::RightBack };
    // However the images are turned.
    for (columns_reversed, rows_reversed) in [(false, false), (true, false), (false, true)] {
        let study = Study::of(&volume, Writing { columns_reversed, rows_reversed, ..PLAIN });
        let analysis = study.analyse_with(&pipeline, study.sources.clone());
        let masks = analysis.masks.clone().unwrap();
        assert_eq!(masks.slices_with(VoxelLabels::LESION), [30, 31, 32, 33, 34]);
        for (pixel, bits) in masks.slice(32).iter().enumerate() {
            let is_block = (45..75).contains(&(pixel % volume.size[0])) && (75..95).contains(&(pixel / volume.size[0]));
            assert_eq!(bits & VoxelLabels::LESION != 0, is_block);
        }
        let (measured, lesions) = lesions_of(analysis);
        assert_eq!(lesions.run, Some(expected));
        assert_eq!((lesions.slices_with_lesion, lesions.longest_run, lesions.largest_slice), (5, 5, Some(30)));
        let block_ml = 30.0 * 20.0 * 5.0 * volume.voxel_ml();
        assert!((lesions.volume_ml - block_ml).abs() < 1e-9, "{} ml, {block_ml} expected", lesions.volume_ml);
        assert!((lesions.lungs[1].volume_ml).abs() < 1e-9, "nothing in the left lung");
        // The middle of the run is shown, with the very pixels.
        let axial = |index: usize| {
            measured.sections.iter().find(|section| section.plane == CtPlane::Axial && section.index == index)
        };
        let png = axial(32).unwrap().lesions_png_base64.as_ref().unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
        let picture = image::load_from_memory(&png).unwrap().into_luma8();
        for (x, y, pixel) in picture.enumerate_pixels() {
            let is_block = (45..75).contains(&x) && (75..95).contains(&y);
            assert_eq!(pixel.0[0], u8::from(is_block), "at {x}, {y}");
        }
        assert!(axial(30).is_some(), "the slice with the most lesion is shown");
    }
}

#[test]
fn a_gap_breaks_the_run_and_small_lesions_do_not_count() {
    let mut volume = phantom_with_block();
    let with = |volume: &Volume, change: fn(String) -> String| {
        let study = Study::of(volume, PLAIN);
        let pipeline = pipeline_of_scripts(&[("unet_plus_plus", &bright)], change);
        lesions_of(study.analyse_with(&pipeline, study.sources.clone())).1
    };
    // 600 pixels of 4 square millimetres in each slice.
    let large = with(&volume, |text| text.replace("minimum_area_mm2 = 10.0", "minimum_area_mm2 = 2400.0"));
    assert_eq!((large.longest_run, large.run.is_some()), (5, true));
    let small = with(&volume, |text| text.replace("minimum_area_mm2 = 10.0", "minimum_area_mm2 = 2400.5"));
    assert_eq!((small.longest_run, small.run), (0, None));
    // 20 mm of lesion are three slices 8 mm apart, or two, and never five.
    let thick =
        with(&volume, |text| text.replace("maximum_slices = 1000", "slice_spacing_mm = 8.0\nmaximum_slices = 1000"));
    assert!((2..=3).contains(&thick.longest_run), "{thick:?}");
    assert!(thick.rule.contains("resampled to 8 mm"), "{}", thick.rule);

    let slice = 32 * volume.slice_pixels()..33 * volume.slice_pixels();
    volume.hu[slice].iter_mut().filter(|hu| **hu == 900).for_each(|hu| *hu = -850);
    let broken = with(&volume, |text| text);
    assert_eq!((broken.slices_with_lesion, broken.longest_run, broken.run), (4, 2, None));
}

#[test]
fn what_would_leave_slices_out_is_measured_and_not_judged() {
    let (volume, _) = phantom();
    let study = Study::of(&volume, PLAIN);
    let pipeline = pipeline_of(UNET_PLUS_PLUS, |text| text.replace("maximum_slices = 1000", "maximum_slices = 10"));
    let RunOutcome::CtMeasured(found) = study.analyse_with(&pipeline, study.sources.clone()).outcome else {
        panic!("measured")
    };
    let not_judged = found.not_judged.clone().unwrap();
    assert_eq!(not_judged.reason, ReasonCode::UnsupportedImage);
    assert!(not_judged.words.contains("the bundle takes 10: slices between them would be left out"), "{not_judged:?}");
    let measured = study.measured();
    assert_eq!((&found.lungs, found.sections.len()), (&measured.lungs, measured.sections.len()));
    assert_eq!((found.lesions.clone(), measured.not_judged), (None, None));

    // A series of fewer slices that the networks can judge is preferred to one that is only measured.
    let thick = Phantom { size: [72, 56, 40], spacing_mm: [5.0, 5.0, 8.0], ..Phantom::default() }.make().0;
    let mut both = Study::of(&volume, PLAIN);
    for slice in 0..thick.size[2] {
        both.add(&thick, slice, Writing { series: "2.25.200", ..PLAIN });
    }
    let pipeline = pipeline_of(UNET_PLUS_PLUS, |text| text.replace("maximum_slices = 1000", "maximum_slices = 40"));
    let (judged, _) = lesions_of(both.analyse_with(&pipeline, both.sources.clone()));
    assert_eq!((judged.series.series_instance_uid.as_str(), judged.not_judged), ("2.25.200", None));
    let other = judged.excluded_series.iter().find(|series| series.series_instance_uid.as_str() == PLAIN.series);
    assert!(other.unwrap().words.contains("slices between them would be left out"), "{other:?}");
    // Where none can be judged, the best one is measured.
    let pipeline = pipeline_of(UNET_PLUS_PLUS, |text| text.replace("maximum_slices = 1000", "maximum_slices = 3"));
    let RunOutcome::CtMeasured(found) = both.analyse_with(&pipeline, both.sources.clone()).outcome else {
        panic!("measured")
    };
    assert_eq!((found.series.series_instance_uid.as_str(), found.lungs), (PLAIN.series, measured.lungs));
    assert!(found.not_judged.is_some());
}

/// One member fails where the block is, some slices on: the other one outlines the scan from its first slice on by itself.
#[test]
fn a_member_that_fails_on_the_way_is_left_out_of_every_slice() {
    let volume = phantom_with_block();
    let study = Study::of(&volume, PLAIN);
    let everything = |brightness: &tch::Tensor| brightness * 0.0 + 50.0;
    let torn = |brightness: &tch::Tensor| (brightness * -1.0 + 0.8).log() * 0.0 + 50.0;
    let validated = |text: String| text.replace("status = \"untrained\"", "status = \"validated\"");
    let with = |second: (&str, Program<'_>)| {
        let pipeline = pipeline_of_scripts(&[("unet_plus_plus", &bright), second], validated);
        lesions_of(study.analyse_with(&pipeline, study.sources.clone())).1
    };
    // Both run: the mean of 0 and 1 is at the probability of the rule everywhere, in the very first slice, too.
    let whole = with(("sees-all", &everything));
    assert_eq!(whole.decision, Decision::Present);
    assert_eq!(whole.run.unwrap().first_slice, whole.slices[0]);
    let partial = with(("torn", &torn));
    assert_eq!(partial.decision, Decision::Undetermined, "what is left of an ensemble decides nothing");
    assert!(partial.members[0].failure.is_none());
    assert!(partial.members[1].failure.as_ref().unwrap().contains("not finite"), "{:?}", partial.members);
    assert_eq!(partial.run.map(|run| (run.first_slice, run.slices)), Some((30, 5)));
    let block_ml = 30.0 * 20.0 * 5.0 * volume.voxel_ml();
    assert!((partial.volume_ml - block_ml).abs() < 1e-9, "nothing of the member that failed is left");
}

/// R231 with weights that make it a threshold: what it says of 64 x 64 pixels of the body comes back to the voxels.
#[test]
fn the_lungs_of_a_network_come_back_to_their_voxels() {
    use base64::Engine as _;
    // Not a whole number of portions.
    let (volume, truth) = Phantom { size: [180, 140, 77], ..Phantom::default() }.make();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lungs");
    init_ct_bundle(&path).unwrap();
    let weights = threshold_weights(0.0625);
    fs_err::write(path.join("lungs.safetensors"), &weights).unwrap();
    let manifest = path.join("manifest.toml");
    let text = fs_err::read_to_string(&manifest).unwrap();
    let segmenter = format!(
        "\n[segmenter]\narchitecture = \"r231\"\nwidth = 0.0625\ninput_side_pixels = 64\nnormalisation = \"hu_range\"\n\
         weights = \"lungs.safetensors\"\nsha256 = \"{}\"\nversion = \"threshold\"\n",
        Sha256Digest::of(&weights)
    );
    fs_err::write(&manifest, text + &segmenter).unwrap();
    let Pipeline::Ct(pipeline) = Pipeline::open(&path, EnsembleOptions::default(), DecodeLimits::default()).unwrap()
    else {
        panic!("a bundle for CT")
    };
    let study = Study::of(&volume, PLAIN);
    let outcome = study.analyse_with(&pipeline, study.sources.clone()).outcome;
    let RunOutcome::CtMeasured(measured) = outcome else { panic!("{outcome:?}") };
    assert_eq!((measured.method.segmentation.as_str(), measured.method.threshold_hu), ("hilum-lung-r231 1", None));
    for (lung, label) in measured.lungs.iter().zip([RIGHT_LUNG, LEFT_LUNG]) {
        let truth_ml = truth.iter().map(|found| f64::from(*found == label)).sum::<f64>() * volume.voxel_ml();
        assert!((lung.whole.volume_ml / truth_ml - 1.0).abs() < 0.1, "{:?}, {truth_ml} ml", lung.whole);
    }
    // Pixels of the network are 5 mm wide, those of the scan 2 mm.
    let [columns, rows, slices] = volume.size;
    for section in &measured.sections {
        let png = base64::engine::general_purpose::STANDARD.decode(&section.labels_png_base64).unwrap();
        let found = image::load_from_memory(&png).unwrap().into_luma8().into_raw();
        let at = |slice: usize, row: usize| &truth[(slice * rows + row) * columns..(slice * rows + row + 1) * columns];
        let expected: Vec<u8> = match section.plane {
            CtPlane::Axial => (0..rows).flat_map(|row| at(section.index, row).to_vec()).collect(),
            CtPlane::Coronal => (0..slices).rev().flat_map(|slice| at(slice, section.index).to_vec()).collect(),
        };
        for label in [RIGHT_LUNG, LEFT_LUNG] {
            let dice = dice(&found, &expected, label);
            assert!(dice > 0.9, "{:?} {}: Dice {dice}", section.plane, section.index);
        }
    }
}

#[test]
fn left_stays_left_however_the_images_are_turned() {
    let (volume, _) = phantom();
    for (columns_reversed, rows_reversed) in [(false, false), (true, false), (false, true), (true, true)] {
        let measured = Study::of(&volume, Writing { columns_reversed, rows_reversed, ..PLAIN }).measured();
        let mean = |side: Side| measured.lungs.iter().find(|lung| lung.side == side).unwrap().whole.mean_hu.unwrap();
        let (right, left) = (mean(Side::Right), mean(Side::Left));
        assert!(left - right > 30.0, "left {left}, right {right} with {columns_reversed}, {rows_reversed}");
    }
}

#[test]
fn a_gap_a_sheared_stack_and_a_water_phantom_are_refused_with_their_reasons() {
    let (volume, _) = phantom();
    let mut gap = Study::of(&volume, PLAIN);
    gap.sources.remove(30);
    assert_eq!(gap.refused().reason, ReasonCode::SliceGap);
    let sheared = Study::of(&volume, Writing { shear_mm: 0.8, ..PLAIN }).refused();
    assert_eq!(sheared.reason, ReasonCode::GantryTilt);
    assert_eq!(sheared.sources.len(), 80, "everything that was looked at is named");
    let (water, _) = Phantom { without_lungs: true, bowel_gas: false, ..Phantom::default() }.make();
    let refused = Study::of(&water, PLAIN).refused();
    assert_eq!(refused.reason, ReasonCode::LungMask);
    assert!(refused.words.contains("the right lung has 0 ml"), "{refused:?}");
}

#[test]
fn a_scan_that_ends_within_the_lungs_is_refused() {
    let (mut volume, _) = phantom();
    volume.hu.drain(..volume.slice_pixels() * 40);
    volume.size[2] -= 40;
    let refused = Study::of(&volume, PLAIN).refused();
    assert_eq!(refused.reason, ReasonCode::LungMask);
    assert!(refused.words.contains("of lung in the lowest slice"), "{refused:?}");
}

#[test]
fn the_same_slice_twice_is_left_out_and_two_different_ones_are_refused() {
    let (volume, _) = phantom();
    let mut twice = Study::of(&volume, PLAIN);
    twice.add(&volume, 20, PLAIN);
    let measured = twice.measured();
    let left_out: Vec<ReasonCode> = measured.excluded.iter().map(|image| image.reason).collect();
    assert_eq!(left_out, [ReasonCode::IdenticalImage]);
    assert_eq!(measured.series.images.len(), 80);
    let mut differing = Study::of(&volume, PLAIN);
    let mut other = volume.clone();
    let first = 20 * other.slice_pixels();
    other.hu[first] += 1;
    differing.add(&other, 20, PLAIN);
    let refused = differing.refused();
    assert_eq!(refused.reason, ReasonCode::DuplicatePosition);
    assert!(refused.words.contains("slice 21 of 80"), "{refused:?}");
    assert_eq!(refused.sources, differing.sources, "the double is needed to repeat the run");
}

#[test]
fn a_damaged_slice_stops_the_volume_and_other_series_are_told() {
    let (volume, _) = phantom();
    let mut study = Study::of(&volume, PLAIN);
    let other = Writing { series: "2.25.200", ..PLAIN };
    (0..30).for_each(|slice| study.add(&volume, slice, other));
    let mut localizer = image(&volume, 0, PLAIN);
    localizer.put(text(tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\LOCALIZER"));
    study.add_object(localizer, PLAIN.series);
    let measured = study.measured();
    assert_eq!(measured.excluded_series.len(), 1);
    let excluded = &measured.excluded_series[0];
    assert_eq!((excluded.images, excluded.reason), (30, ReasonCode::OtherSeriesChosen));
    assert_eq!(measured.excluded.iter().map(|image| image.reason).collect::<Vec<_>>(), [ReasonCode::Localizer]);

    let key = study.sources[volume.size[2] - 1 - 5].archive_key.clone();
    study.files.insert(key, part10(image_without_pixels(&volume, 5, PLAIN)));
    let refused = study.refused();
    assert_eq!(refused.reason, ReasonCode::Undecodable);
    let words = "none of 2 series can be measured; the best: slice 6 of 80 has no pixels";
    assert!(refused.words.starts_with(words), "{refused:?}");
    assert_eq!(refused.sources, study.sources);
}

#[test]
fn the_next_series_is_measured_when_the_pixels_or_the_lungs_of_the_first_are_no_good() {
    let (volume, _) = phantom();
    let (belly, _) = Phantom {
        without_lungs: true,
        bowel_gas: false,
        size: [72, 56, 100],
        spacing_mm: [5.0, 5.0, 4.0],
        ..Phantom::default()
    }
    .make();
    let mut study = Study::of(&belly, Writing { series: "2.25.300", ..PLAIN });
    let damaged = Writing { series: "2.25.200", ..PLAIN };
    (0..90).for_each(|slice| study.add(&belly, slice, damaged));
    let without_pixels = study.sources[150].archive_key.clone();
    study.files.insert(without_pixels, part10(image_without_pixels(&belly, 50, damaged)));
    (0..volume.size[2]).for_each(|slice| study.add(&volume, slice, PLAIN));
    let measured = study.measured();
    assert_eq!(measured.series.series_instance_uid.as_str(), PLAIN.series);
    assert!(measured.series.why_chosen.contains("of 3 series"), "{}", measured.series.why_chosen);
    assert!(measured.series.why_chosen.ends_with("2 that came before it could not be measured or judged"));
    let excluded: Vec<(&str, ReasonCode, usize)> = measured
        .excluded_series
        .iter()
        .map(|series| (series.series_instance_uid.as_str(), series.reason, series.sources.len()))
        .collect();
    assert_eq!(excluded, [("2.25.300", ReasonCode::LungMask, 100), ("2.25.200", ReasonCode::Undecodable, 90)]);
}

#[test]
fn no_more_than_four_series_are_tried() {
    let (belly, _) = Phantom {
        without_lungs: true,
        bowel_gas: false,
        size: [30, 24, 80],
        spacing_mm: [5.0, 5.0, 4.0],
        ..Phantom::default()
    }
    .make();
    let mut study = Study::default();
    for series in ["2.25.1", "2.25.2", "2.25.3", "2.25.4"] {
        (0..belly.size[2]).for_each(|slice| study.add(&belly, slice, Writing { series, ..PLAIN }));
    }
    let (volume, _) = phantom();
    (0..40).for_each(|slice| study.add(&volume, slice, PLAIN));
    let refused = study.refused();
    assert_eq!(refused.reason, ReasonCode::LungMask);
    let words = "none of 5 series can be measured (1 more that make a volume were not tried); the best: the right lung";
    assert!(refused.words.starts_with(words), "{refused:?}");
}

#[test]
fn a_series_with_an_unreadable_image_is_refused_and_others_keep_theirs() {
    let (volume, _) = phantom();
    let mut study = Study::of(&volume, PLAIN);
    let other = Writing { series: "2.25.200", ..PLAIN };
    (0..30).for_each(|slice| study.add(&volume, slice, other));
    let unreadable = study.sources[90].archive_key.clone();
    study.files.insert(unreadable, b"no DICOM".to_vec());
    let measured = study.measured();
    assert_eq!(measured.excluded, []);
    let excluded = &measured.excluded_series[0];
    assert_eq!((excluded.reason, excluded.images, excluded.sources.len()), (ReasonCode::Undecodable, 30, 30));
    assert!(excluded.words.starts_with("1 of 30 image(s) of the series cannot be read"), "{excluded:?}");

    // At the end of the stack nothing else would tell that it is not whole.
    let mut study = Study::of(&volume, PLAIN);
    let unreadable = study.sources[0].archive_key.clone();
    study.files.insert(unreadable, b"no DICOM".to_vec());
    let refused = study.refused();
    assert_eq!(refused.reason, ReasonCode::Undecodable);
    assert!(refused.words.starts_with("1 of 80 image(s) of the series cannot be read"), "{refused:?}");
}

#[test]
fn a_run_is_repeated_from_what_it_kept() {
    let (volume, _) = phantom();
    let mut study = Study::of(&volume, PLAIN);
    study.add(&volume, 20, PLAIN);
    let other = Writing { series: "2.25.200", ..PLAIN };
    (0..40).for_each(|slice| study.add(&volume, slice, other));
    let unreadable = study.sources[100].archive_key.clone();
    study.files.insert(unreadable, b"no DICOM".to_vec());
    let outcome = study.analyse().outcome;
    let mut kept = all_sources_of(&outcome);
    assert_eq!(kept.len(), study.sources.len());
    assert_eq!(study.analyse_sources(kept.clone()).outcome, outcome);
    kept.reverse();
    assert_eq!(study.analyse_sources(kept).outcome, outcome, "the order changes nothing");
    // Records of before have no images of other series.
    let mut old = serde_json::to_value(&outcome).unwrap();
    old["excluded_series"][0].as_object_mut().unwrap().remove("sources");
    let old: RunOutcome = serde_json::from_value(old).unwrap();
    assert_eq!(all_sources_of(&old).len(), 81);
}

#[test]
fn one_volume_is_in_memory_at_a_time() {
    let small = Phantom { size: [72, 56, 40], spacing_mm: [5.0, 5.0, 8.0], ..Phantom::default() };
    let study = Study::of(&small.make().0, PLAIN);
    let pipeline = CtPipeline::new(bundle(), CtGates::default(), None, DecodeLimits::default()).unwrap();
    let log: RefCell<Vec<usize>> = RefCell::default();
    let errand = Errand::default();
    let analyse = |run: usize| {
        let (study, log) = (&study, &log);
        pipeline.analyse(study.sources.clone(), &errand, move |source: SourceImage| {
            log.borrow_mut().push(run);
            let bytes = study.files[&source.archive_key].clone();
            async move {
                tokio::task::yield_now().await;
                Ok(LoadedImage { source, bytes })
            }
        })
    };
    let (one, other) = runtime().block_on(async { tokio::join!(analyse(0), analyse(1)) });
    assert_eq!(one.unwrap().outcome, other.unwrap().outcome);
    let log = log.into_inner();
    // Each reads its 40 headers, then its 40 slices.
    let slices_of = |run: usize| -> Vec<usize> {
        let reads = log.iter().enumerate().filter(|(_, by)| **by == run).map(|(at, _)| at);
        reads.skip(40).collect()
    };
    let (one, other) = (slices_of(0), slices_of(1));
    assert_eq!((one.len(), other.len()), (40, 40));
    assert!(one[39] < other[0] || other[39] < one[0], "{log:?}");
}

/// A shadow holds the volume when a study comes that somebody waits for.
#[test]
fn a_shadow_gives_the_volume_up_for_live_work_whatever_it_is_at() {
    let small = Phantom { size: [72, 56, 40], spacing_mm: [5.0, 5.0, 8.0], ..Phantom::default() };
    let study = Study::of(&small.make().0, PLAIN);
    let pipeline = CtPipeline::new(bundle(), CtGates::default(), None, DecodeLimits::default()).unwrap();
    let reads = [Cell::new(0_usize), Cell::new(0), Cell::new(0)];
    let (begin, begun) = tokio::sync::oneshot::channel();
    let begin = Cell::new(Some(begin));
    let analyse = async |run: usize, urgency: Urgency| {
        let errand = Errand { urgency, ..Errand::default() };
        let (study, reads, begin) = (&study, &reads, &begin);
        let read = move |source: SourceImage| {
            reads[run].set(reads[run].get() + 1);
            // In the middle of the pixels, which come after 40 headers, the shadow stops reading.
            let is_middle = run == 0 && reads[run].get() == 50;
            let begin = if is_middle { begin.take() } else { None };
            let bytes = study.files[&source.archive_key].clone();
            async move {
                if let Some(begin) = begin {
                    begin.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                Ok(LoadedImage { source, bytes })
            }
        };
        pipeline.analyse(study.sources.clone(), &errand, read).await
    };
    let live_after_a_while = async {
        begun.await.unwrap();
        analyse(1, Urgency::Routine).await
    };
    let (shadow, live) = runtime().block_on(async { tokio::join!(analyse(0, Urgency::Shadow), live_after_a_while) });
    let given_way = shadow.unwrap_err();
    assert!(matches!(given_way, InferError::GivesWay) && given_way.wait().is_some(), "{given_way}");
    assert!(matches!(live.unwrap().outcome, RunOutcome::CtMeasured(_)));
    assert_eq!((reads[0].get(), reads[1].get()), (50, 80));
    // Nobody waits any more.
    let alone = runtime().block_on(analyse(2, Urgency::Shadow));
    assert!(matches!(alone.unwrap().outcome, RunOutcome::CtMeasured(_)));
}

/// What a run's time limit goes by.
#[test]
fn every_slice_is_a_step_of_a_run_and_a_network_that_is_stuck_makes_none() {
    let (volume, _) = phantom();
    let study = Study::of(&volume, PLAIN);
    let pipeline = pipeline_of_scripts(&[("unet_plus_plus", &bright)], |text| text);
    let errand = Errand::default();
    let read = |source: SourceImage| {
        let bytes = study.files[&source.archive_key].clone();
        async move { Ok(LoadedImage { source, bytes }) }
    };
    runtime().block_on(pipeline.analyse(study.sources.clone(), &errand, read)).unwrap();
    // Headers and pixels are read and decoded; the network looks at the slices with lung in portions.
    assert!(errand.progress.steps() > 4 * study.sources.len() as u64, "{}", errand.progress.steps());

    let stuck = Errand::default();
    let never = |_: SourceImage| std::future::pending();
    let limit = std::time::Duration::from_millis(20);
    let analysis = pipeline.analyse(study.sources.clone(), &stuck, never);
    assert!(runtime().block_on(async { tokio::time::timeout(limit, analysis).await }).is_err());
    assert_eq!(stuck.progress.steps(), 0);
    assert!(stuck.progress.idle() >= limit);
}

#[test]
fn lungs_that_are_not_whole_are_refused() {
    // Cut by the field of view.
    let (mut volume, truth) = phantom();
    let cropped = {
        let columns = volume.size[0];
        let hu = volume.hu.chunks_exact(columns).flat_map(|line| line[..columns - 29].to_vec()).collect();
        Volume { size: [columns - 29, volume.size[1], volume.size[2]], spacing_mm: volume.spacing_mm, hu }
    };
    let refused = Study::of(&cropped, PLAIN).refused();
    assert_eq!(refused.reason, ReasonCode::LungMask);
    assert!(refused.words.contains("ml of lung at the border of the images"), "{refused:?}");
    // Cut off by a band without air, below the middle.
    let band = 25 * volume.slice_pixels()..26 * volume.slice_pixels();
    for (hu, label) in volume.hu[band.clone()].iter_mut().zip(&truth[band]) {
        if *label == RIGHT_LUNG {
            *hu = 40;
        }
    }
    let refused = Study::of(&volume, PLAIN).refused();
    assert_eq!(refused.reason, ReasonCode::LungMask);
    assert!(refused.words.contains("ml of what looks like lung lie apart from the lungs"), "{refused:?}");
}

/// The phantom in slices of 5 mm, every image of which says this of its patient and body part.
fn phantom_of(age: &str, body_part: &str) -> Study {
    let (volume, _) = phantom();
    let mut study = Study::default();
    for slice in 0..volume.size[2] {
        let mut object = image(&volume, slice, PLAIN);
        object.put(text(tags::PATIENT_AGE, VR::AS, age));
        object.put(text(tags::BODY_PART_EXAMINED, VR::CS, body_part));
        object.put(text(tags::SLICE_THICKNESS, VR::DS, "5"));
        study.add_object(object, PLAIN.series);
    }
    study
}

#[test]
fn children_are_not_measured() {
    let refused = phantom_of("009Y", "CHEST").refused();
    assert_eq!(refused.reason, ReasonCode::AgeOutOfScope);
    assert!(!refused.words.contains('9'), "no exact age: {refused:?}");
}

/// A manifest on disk, whose `[input.gates]` widen or narrow what is fixed without them.
#[test]
fn a_bundle_says_whom_and_what_it_measures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ct");
    init_ct_bundle(&path).unwrap();
    let manifest = path.join("manifest.toml");
    let plain = fs_err::read_to_string(&manifest).unwrap();
    assert!(!plain.contains("gates"), "what is not said stays as it was: {plain}");
    let analyse = |gates: &str, study: &Study| {
        fs_err::write(&manifest, format!("{plain}\n[input.gates]\n{gates}\n")).unwrap();
        match Pipeline::open(&path, EnsembleOptions::default(), DecodeLimits::default()).unwrap() {
            Pipeline::Ct(pipeline) => study.analyse_with(&pipeline, study.sources.clone()).outcome,
            Pipeline::Cxr(_) => panic!("a bundle for CT"),
        }
    };
    let (child, adult) = (phantom_of("009Y", "CHEST"), phantom_of("050Y", "ABDOMEN"));
    let outcome = analyse("minimum_age_years = 0", &child);
    let RunOutcome::CtMeasured(measured) = outcome else { panic!("{outcome:?}") };
    let words: Vec<&str> = measured.gates.iter().map(|gate| gate.words.as_str()).collect();
    assert!(words.contains(&"the patient is at least 0 years old"), "{words:?}");
    for (gates, study, reason, words) in [
        ("", &child, ReasonCode::AgeOutOfScope, "younger than 18 years"),
        ("minimum_age_years = 10", &child, ReasonCode::AgeOutOfScope, "younger than 10 years"),
        ("", &adult, ReasonCode::NoSuitableImage, "the body part is ABDOMEN, one with the chest expected"),
        (
            "minimum_age_years = 0\naccepted_body_parts = [\"ABDOMEN\", \"PELVIS\"]",
            &child,
            ReasonCode::NoSuitableImage,
            "the body part is CHEST, one with ABDOMEN or PELVIS expected",
        ),
        ("minimum_age_years = 0\nmaximum_lung_ml = 301.0", &child, ReasonCode::LungMask, "300 to 301 ml expected"),
        (
            "minimum_age_years = 0\nmaximum_slice_thickness_mm = 0.5",
            &child,
            ReasonCode::ImageQuality,
            "the slices are 5.00 mm thick, at most 0.5 mm expected",
        ),
    ] {
        let outcome = analyse(gates, study);
        let RunOutcome::NotAnalysed(refused) = outcome else { panic!("{gates}: {outcome:?}") };
        assert!(refused.reason == reason && refused.words.contains(words), "{gates}: {refused:?}");
    }
    let outcome = analyse("accepted_body_parts = [\"ABDOMEN\"]", &adult);
    assert!(matches!(outcome, RunOutcome::CtMeasured(_)), "{outcome:?}");
    let outcome = analyse("accepted_body_parts = [\"CHEST\"]", &Study::of(&phantom().0, PLAIN));
    let RunOutcome::NotAnalysed(refused) = outcome else { panic!("{outcome:?}") };
    assert!(refused.words.contains("body part not stated, one with CHEST expected"), "{refused:?}");
}
