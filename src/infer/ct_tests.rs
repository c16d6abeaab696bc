//! The CT pipeline on a phantom in DICOM.

use std::collections::HashMap;

use dicom_core::{PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{InMemDicomObject, mem::InMemElement};

use super::*;
use crate::{
    imaging::{
        DecodeLimits,
        ct::{LEFT_LUNG, RIGHT_LUNG, Volume, phantom::Phantom},
        testing::{number, part10, text},
    },
    types::{
        BundleIdentity, BundleStatus, CtAnalysis, NotAnalysed, ReasonCode, RunOutcome, Sha256Digest, Side, SourceImage,
        Uid,
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
        let pipeline = CtPipeline::new(bundle(), DecodeLimits::default()).unwrap();
        let read = |source: SourceImage| {
            let bytes = self.files[&source.archive_key].clone();
            async move { Ok(LoadedImage { source, bytes }) }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(pipeline.analyse(self.sources.clone(), read)).unwrap()
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

    let mut damaged = image(&volume, 5, PLAIN);
    damaged.put(InMemElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16([0_u16; 8][..].into())));
    let key = study.sources[volume.size[2] - 1 - 5].archive_key.clone();
    study.files.insert(key, part10(damaged));
    let refused = study.refused();
    assert_eq!(refused.reason, ReasonCode::Undecodable);
    assert!(refused.words.starts_with("slice 6 of 80 has no pixels"), "{refused:?}");
}

#[test]
fn children_are_not_measured() {
    let (volume, _) = phantom();
    let mut study = Study::default();
    for slice in 0..volume.size[2] {
        let mut object = image(&volume, slice, PLAIN);
        object.put(text(tags::PATIENT_AGE, VR::AS, "009Y"));
        study.add_object(object, PLAIN.series);
    }
    let refused = study.refused();
    assert_eq!(refused.reason, ReasonCode::AgeOutOfScope);
    assert!(!refused.words.contains('9'), "no exact age: {refused:?}");
}
