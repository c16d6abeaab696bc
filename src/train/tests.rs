//! From pictures to a report, with networks whose answers are known.

use std::{fmt::Write as _, path::Path};

use image::{GrayImage, Luma};

use super::{statistics::Estimate, *};
use crate::{
    imaging::{DecodeLimits, Plane, Planes},
    infer::{
        ActivationMap, CxrPipeline, MemberOutput, ModelError, Models, PipelineSettings, lung_settings,
        pipeline_settings,
    },
    nn::{Bundle, Classification, UntrainedOptions, fuse, init_untrained_bundle},
    types::{BundleIdentity, Errand},
};

/// Side of the pictures, and of the inputs.
const SIDE: u32 = 64;

/// Where the lungs are: rows, and the columns of each.
const ROWS: std::ops::Range<u32> = 20..50;
const COLUMNS: [std::ops::Range<u32>; 2] = [8..28, 36..56];

/// What all classifiers look at.
#[derive(Clone, Copy)]
enum LooksAt {
    Lungs,
    Corner,
}

struct FakeModels {
    looks_at: LooksAt,
    classification: Classification,
    mean: f32,
    std: f32,
}

fn is_lung(row: u32, column: u32) -> bool {
    ROWS.contains(&row) && COLUMNS.iter().any(|columns| columns.contains(&column))
}

impl Models for FakeModels {
    async fn segment(&self, canvas: Plane, _asker: &Errand) -> Result<Plane, ModelError> {
        let side = canvas.rows as u32;
        let mut lungs = Plane::filled(canvas.rows, canvas.columns, 0.0);
        for (idx, value) in lungs.values.iter_mut().enumerate() {
            let (row, column) = (idx as u32 / side * SIDE / side, idx as u32 % side * SIDE / side);
            *value = f32::from(u8::from(is_lung(row, column)));
        }
        Ok(lungs)
    }

    async fn classify(
        &self,
        _member_idx: usize,
        inputs: Vec<Planes>,
        _target_class_idx: usize,
        _asker: &Errand,
    ) -> Result<MemberOutput, ModelError> {
        let input = &inputs[0];
        let side = input.rows as u32;
        let place = |idx: usize| (idx as u32 / side * SIDE / side, idx as u32 % side * SIDE / side);
        let wanted = |(row, column): (u32, u32)| match self.looks_at {
            LooksAt::Lungs => is_lung(row, column),
            LooksAt::Corner => row < 6 && column < 6,
        };
        let first = &input.values[..input.rows * input.columns];
        let seen: Vec<f32> =
            first.iter().enumerate().filter(|(idx, _)| wanted(place(*idx))).map(|(_, value)| *value).collect();
        let grey = seen.iter().sum::<f32>() / seen.len() as f32 * self.std + self.mean;
        let logit = 12.0 * (grey - 0.5);
        let probability = 1.0 / (1.0 + (-logit).exp());
        Ok(MemberOutput {
            logits: vec![logit, 0.0],
            probabilities: vec![probability, 1.0 - probability],
            embedding: vec![grey, 1.0 - grey, 0.5],
            activation_map: Some(ActivationMap { rows: 1, columns: 1, values: vec![1.0], method: "cam".to_owned() }),
        })
    }

    fn fuse(&self, member_logits: &[&[f32]]) -> Option<Vec<f64>> {
        fuse(&self.classification, member_logits)
    }
}

/// Forty films of twenty patients at two sites. Films with the target class have bright lungs, and a bright corner. Every
/// fourth film has a mask.
fn films(folder: &Path) -> DataSet {
    let mut list = "file,label,patient,site,sex,age,mask,split\n".to_owned();
    let mask = GrayImage::from_fn(SIDE, SIDE, |x, y| Luma([if is_lung(y, x) { 255 } else { 0 }]));
    mask.save(folder.join("mask.png")).unwrap();
    for number in 0..40_u32 {
        let patient = number / 2;
        let positive = patient.is_multiple_of(2);
        let noise = crate::nn::seeded::uniform(4, &format!("film {number}"), (SIDE * SIDE) as usize, -6.0, 6.0);
        let film = GrayImage::from_fn(SIDE, SIDE, |x, y| {
            let grey = match (is_lung(y, x), x < 6 && y < 6, positive) {
                (true, _, true) | (_, true, true) => 190.0,
                (true, _, false) => 70.0,
                (_, true, false) => 40.0,
                _ => 10.0 + 3.6 * x as f32,
            };
            Luma([(grey + noise[(y * SIDE + x) as usize]) as u8])
        });
        let file = format!("{number}.png");
        film.save(folder.join(&file)).unwrap();
        writeln!(
            list,
            "{file},{},p{patient},{},{},{},{},{}",
            if positive { "covid19" } else { "normal" },
            ["north", "south"][patient as usize / 2 % 2],
            ["F", "M"][patient as usize / 3 % 2],
            30 + patient,
            if number.is_multiple_of(4) { "mask.png" } else { "" },
            if patient < 10 { "validation" } else { "test" },
        )
        .unwrap();
    }
    fs_err::write(folder.join("list.csv"), list).unwrap();
    DataSet::read(folder).unwrap()
}

/// The smallest bundle that there is, with other networks.
fn bundle(folder: &Path, looks_at: LooksAt) -> CxrPipeline<FakeModels> {
    let path = folder.join("bundle");
    if !path.exists() {
        let small = UntrainedOptions {
            image_side_pixels: SIDE,
            segmenter_side_pixels: SIDE,
            resnet_width: 0.0625,
            vgg_width: 0.0625,
            segmenter_width: 0.0625,
            ..UntrainedOptions::default()
        };
        init_untrained_bundle(&path, small).unwrap();
    }
    let bundle = Bundle::open(&path).unwrap();
    let (settings, classification) = pipeline_settings(&bundle, DecodeLimits::default()).unwrap();
    let PipelineSettings { member_inputs, .. } = &settings;
    let (mean, std) = (member_inputs[0][0].mean[0], member_inputs[0][0].std[0]);
    CxrPipeline::new(FakeModels { looks_at, classification, mean, std }, bundle.identity(), settings).unwrap()
}

async fn predicted<'a>(pipeline: &CxrPipeline<FakeModels>, data: &'a DataSet) -> Vec<Prediction<'a>> {
    let wishes = [("normal".to_owned(), pipeline.bundle().classes[1].label.clone())];
    let classes = ClassMap::new(&pipeline.bundle().classes, &data.labels(), &wishes).unwrap();
    let asked: Vec<(&Sample, Option<usize>)> =
        data.samples.iter().map(|sample| (sample, classes.class_of(sample.label.as_deref()))).collect();
    let questions = Questions { enforce_gates: false, alterations: true };
    let mut looked_at = 0;
    let predictions = predict(pipeline, &asked, questions, |_| looked_at += 1).await.unwrap();
    assert_eq!(looked_at, data.samples.len());
    predictions
}

fn plan(bundle: &BundleIdentity, data: &DataSet) -> Plan {
    Plan {
        bundle: bundle.clone(),
        list: "list.csv".to_owned(),
        data_sha256: data.sha256.clone(),
        split: None,
        labels: vec!["label `covid19` counts as class `COVID-19`".to_owned()],
        folds: None,
        chose_the_epoch: false,
        trained_on: TrainedOn::Others,
        gates_enforced: false,
        prevalences: vec![0.05],
        resamples: 100,
        seed: 1,
        date: "2026-11-29".to_owned(),
    }
}

fn value(figure: &Figure) -> f64 {
    figure.known().unwrap_or_else(|| panic!("{figure:?}")).value
}

#[tokio::test]
async fn a_classifier_of_lungs_passes_and_one_of_corners_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let data = films(folder.path());
    let of_lungs = bundle(folder.path(), LooksAt::Lungs);
    let predictions = predicted(&of_lungs, &data).await;
    let plan = plan(of_lungs.bundle(), &data);
    let of_corner = bundle(folder.path(), LooksAt::Corner);
    let others = predicted(&of_corner, &data).await;
    let found = Evaluation::of(&plan, &predictions, Some((of_corner.bundle(), &others)));

    assert_eq!((found.images, found.patients, found.not_scored.len()), (40, 20, 0), "{:?}", found.not_scored);
    let Figure::Known(Estimate { value: area, interval, n, method }) = &found.pooled.roc_area else { panic!() };
    assert!((area - 1.0).abs() < 1e-12 && interval[0] < 0.9 && *n == 20, "{interval:?}: certainty is not claimed");
    assert!(method.contains("Wilson"), "{method}");
    assert!(
        matches!(&found.pooled.roc_area_delong, Figure::Unknown { not_computed } if not_computed.contains("no width"))
    );
    assert!((value(&found.pooled.sensitivity) - 1.0).abs() < 1e-12);
    assert_eq!(found.within_site.iter().map(|group| group.value.as_str()).collect::<Vec<_>>(), ["north", "south"]);
    assert!(found.cautions.is_empty() && found.sites_of_one_class.is_empty(), "{:?}", found.cautions);
    let lungs = found.lungs.as_ref().unwrap();
    assert!(value(&lungs.mean_dice) > 0.99 && lungs.mean_dice.known().unwrap().n == 10, "{lungs:?}");
    let shortcuts = found.shortcuts.as_ref().unwrap();
    let altered = |shortcuts: &evaluation::Shortcuts, of: Alteration| {
        let altered = shortcuts.altered.iter().find(|altered| altered.name == of.name()).unwrap();
        (value(&altered.roc_area), value(&altered.mean_change))
    };
    assert!((altered(shortcuts, Alteration::BackgroundOnly).0 - 0.5).abs() < 1e-9, "{shortcuts:?}");
    assert!((altered(shortcuts, Alteration::MaskOnly).0 - 0.5).abs() < 1e-9);
    assert!(altered(shortcuts, Alteration::CornersHidden).1 < 1e-9);
    assert!(altered(shortcuts, Alteration::Flipped).1 < 0.01);
    assert!(!shortcuts.warnings.iter().any(|words| words.contains("background only") || words.contains("corners")));
    // The lungs are less than a third of the picture, and the map is the same everywhere.
    assert!(shortcuts.warnings.iter().any(|words| words.contains("of the heat lies in the lungs")), "{shortcuts:?}");

    let cornered = Evaluation::of(&plan, &others, None);
    let shortcuts = cornered.shortcuts.as_ref().unwrap();
    assert!(altered(shortcuts, Alteration::BackgroundOnly).0 > 0.99);
    assert!(shortcuts.warnings.iter().any(|words| words.contains("background only")), "{:?}", shortcuts.warnings);
    assert!(shortcuts.warnings.iter().any(|words| words.contains("corners blackened")), "{:?}", shortcuts.warnings);
    let comparison = found.comparison.as_ref().unwrap();
    assert_eq!((comparison.images, comparison.pooled), (40, None));
    assert!(comparison.not_computed.as_ref().unwrap().contains("alike"), "both order all films rightly");

    let page = found.html().unwrap();
    for words in ["UNTRAINED TEST WEIGHTS", "Within each site", "<svg", "north", "lungs blackened", "1.000 ("] {
        assert!(page.contains(words), "{words}");
    }
    for words in ["NaN", "http:", "https:", "<script", "<link"] {
        assert!(!page.contains(words), "{words}");
    }
    let json: serde_json::Value = serde_json::to_value(&found).unwrap();
    assert!(json["pooled"]["roc_area"]["interval"][0].as_f64().unwrap() < 0.9);
    let csv = String::from_utf8(predictions_csv(&predictions, &found.classes, 0).unwrap()).unwrap();
    assert_eq!(csv.lines().count(), 41);
    assert!(csv.lines().nth(1).unwrap().contains("0.png,p0,covid19,validation,north,COVID-19,0.9"), "{csv}");
}

#[tokio::test]
async fn what_cannot_be_computed_is_said_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = films(folder.path());
    data.samples.retain(|sample| sample.label.as_deref() == Some("covid19"));
    fs_err::write(&data.samples[0].file, "broken").unwrap();
    let pipeline = bundle(folder.path(), LooksAt::Lungs);
    let asked: Vec<(&Sample, Option<usize>)> = data.samples.iter().map(|sample| (sample, Some(0))).collect();
    let questions = Questions { enforce_gates: false, alterations: false };
    let predictions = predict(&pipeline, &asked, questions, |_| {}).await.unwrap();
    let found = Evaluation::of(&plan(pipeline.bundle(), &data), &predictions, None);
    assert_eq!((found.images, found.not_scored.len(), found.pooled.images), (20, 1, 19));
    assert!(found.not_scored[0].reason.contains("neither DICOM nor"), "{:?}", found.not_scored);
    assert_eq!(found.pooled.roc_area.text(), "not computed: there are no images without the target class");
    assert_eq!(found.pooled.specificity.text(), "not computed: there are no images without the target class");
    assert_eq!((found.roc, found.within_site.len(), found.sites_of_one_class.len()), (None, 0, 2));
    assert!(found.shortcuts.is_none());
    // Enforced, the gate on the age or the size stops what the bundle does not accept.
    let strict = Questions { enforce_gates: true, alterations: false };
    let child = Sample { age_years: Some(5.0), ..data.samples[1].clone() };
    let refused = predict(&pipeline, &[(&child, Some(0))], strict, |_| {}).await.unwrap();
    assert!(refused[0].scored.as_ref().unwrap_err().contains("younger than"), "{refused:?}");
    let looked_at = predict(&pipeline, &[(&child, Some(0))], questions, |_| {}).await.unwrap();
    assert!(looked_at[0].scored.is_ok() && looked_at[0].failed_gates.contains(&"header.age".to_owned()));
}

#[tokio::test]
async fn a_bundle_that_only_finds_lungs_is_compared_with_masks() {
    let folder = tempfile::tempdir().unwrap();
    let data = films(folder.path());
    let path = folder.path().join("bundle");
    let classifier = bundle(folder.path(), LooksAt::Lungs);
    drop(classifier);
    // Without what the outputs mean and without members.
    let manifest = path.join(crate::nn::MANIFEST_FILE_NAME);
    let text = fs_err::read_to_string(&manifest).unwrap();
    let mut document: toml::Table = text.parse().unwrap();
    document.remove("members");
    fs_err::write(&manifest, document.to_string()).unwrap();
    let error = Bundle::open(&path).unwrap_err().to_string();
    assert!(error.contains("`members` has 0 entries"), "{error}");
    let classification: Classification = document.remove("classification").unwrap().try_into().unwrap();
    fs_err::write(&manifest, document.to_string()).unwrap();
    let opened = Bundle::open(&path).unwrap();
    let error = pipeline_settings(&opened, DecodeLimits::default()).unwrap_err().to_string();
    assert!(error.contains("this bundle only finds lungs"), "{error}");

    let settings = lung_settings(&opened, DecodeLimits::default()).unwrap();
    let models = FakeModels { looks_at: LooksAt::Lungs, classification, mean: 0.0, std: 1.0 };
    let pipeline = CxrPipeline::of_lungs(models, opened.identity(), settings).unwrap();
    let classes = ClassMap::new(&pipeline.bundle().classes, &data.labels(), &[]).unwrap();
    let asked: Vec<(&Sample, Option<usize>)> =
        data.samples.iter().map(|sample| (sample, classes.class_of(sample.label.as_deref()))).collect();
    let questions = Questions { enforce_gates: false, alterations: true };
    let predictions = predict(&pipeline, &asked, questions, |_| {}).await.unwrap();
    let found = Evaluation::of(&plan(pipeline.bundle(), &data), &predictions, None);
    let lungs = found.lungs.as_ref().unwrap();
    assert!(value(&lungs.mean_dice) > 0.99, "{lungs:?}");
    assert!(lungs.groups.iter().any(|(column, value, _)| (*column, value.as_str()) == ("site", "south")));
    assert_eq!(
        (found.images, found.not_scored.len(), found.pooled.images, found.shortcuts.is_none()),
        (40, 0, 0, true)
    );
    let page = found.html().unwrap();
    assert!(page.contains("Mean Dice by group") && !page.contains("Within each site"), "{page}");
}
