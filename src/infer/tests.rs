//! The pipeline on synthetic radiographs and deterministic networks.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use dicom_core::{PrimitiveValue, Tag, VR, value::DataSetSequence};
use dicom_dictionary_std::tags;
use dicom_object::{InMemDicomObject, mem::InMemElement};
use rstest::rstest;

use super::*;
use crate::{
    imaging::{
        DecodeLimits, Plane, Planes,
        canvas::resize,
        classifier_input::{MaskMode, Recipe, ResizeMode},
        equalise::Equalisation,
        testing::{chest_plane, chest_words, number, part10, radiograph, set_bits_stored, text},
    },
    nn::{FeatureSpace, GatePolicies, LungLimits, Matrix, PictureLimits, Policy},
    telemetry::{Label as _, RunStage},
    types::{
        BundleIdentity, BundleStatus, ClassDefinition, Code, CxrAnalysis, Decision, Errand, MemberIdentity,
        NotAnalysed, ReasonCode, RunOutcome, Sha256Digest, SourceImage, Uid,
    },
};

const SIDE: u32 = 32;
const MEMBERS: [&str; 3] = ["resnet34", "resnet50", "vgg16"];

/// What a fake classifier does.
#[derive(Clone, Copy)]
enum Member {
    /// Logits 0 and this; heat in the cell of this row and column of a 4 x 4 grid.
    Says(f32, usize, usize),
    /// The same without a map.
    SaysWithoutMap(f32),
    Fails,
    /// For so many seconds.
    IsTakenOut(u64),
    Panics,
    SaysNan,
    HasOtherClasses,
}

/// Segments two upright rectangles, or nothing; classifies as told.
struct FakeModels {
    finds_lungs: bool,
    /// First row, past the last, and first and past the last column of each lung, in 32nds of the canvas.
    lungs: [[usize; 4]; 2],
    /// Probability of lung beside the lungs.
    beside: f32,
    members: Vec<Member>,
    n_classified: AtomicUsize,
}

impl FakeModels {
    fn new(members: [Member; 3]) -> Self {
        let lungs = [[8, 24, 4, 12], [8, 24, 20, 28]];
        Self { finds_lungs: true, lungs, beside: 0.0, members: members.to_vec(), n_classified: AtomicUsize::new(0) }
    }

    fn blind() -> Self {
        Self { finds_lungs: false, ..Self::new([Member::Says(2.0, 0, 0); 3]) }
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / total).collect()
}

impl Models for FakeModels {
    async fn segment(&self, canvas: Plane, _asker: &Errand) -> Result<Plane, ModelError> {
        assert_eq!((canvas.rows, canvas.columns), (SIDE as usize, SIDE as usize));
        assert!(canvas.values.iter().all(|value| (0.0..=1.0).contains(value)));
        let side = SIDE as usize;
        let mut probabilities = Plane::filled(side, side, self.beside);
        for [top, bottom, left, right] in self.lungs.into_iter().filter(|_| self.finds_lungs) {
            for row in top..bottom {
                probabilities.values[row * side + left..row * side + right].fill(0.9);
            }
        }
        Ok(probabilities)
    }

    async fn classify(
        &self,
        member_idx: usize,
        inputs: Vec<Planes>,
        target_class_idx: usize,
        _asker: &Errand,
    ) -> Result<MemberOutput, ModelError> {
        self.n_classified.fetch_add(1, Ordering::Relaxed);
        let [input] = inputs.as_slice() else { panic!("one input, found {}", inputs.len()) };
        assert_eq!((input.channels, input.values.len()), (3, 3 * 48 * 48));
        assert_eq!(target_class_idx, 1);
        // The third channel is the mask: two values only, unlike the grey ones.
        let mask = &input.values[2 * 48 * 48..];
        assert!(mask.iter().all(|value| value.abs() > 1.999 && value.abs() < 2.001), "0 and 1 with mean 0.5, std 0.25");
        let mut output = MemberOutput {
            logits: vec![0.0, 1.0],
            probabilities: Vec::new(),
            embedding: vec![1.0],
            activation_map: None,
        };
        let mut map = ActivationMap { rows: 4, columns: 4, values: vec![-1.0; 16], method: "cam".to_owned() };
        match self.members[member_idx] {
            Member::Fails => return Err(ModelError::Failed("out of memory".to_owned())),
            Member::IsTakenOut(seconds) => {
                let words = format!("network is taken out for {seconds} more seconds");
                return Err(ModelError::TakenOut { wait: Duration::from_secs(seconds), words });
            }
            Member::Panics => panic!("as a test asks"),
            Member::SaysNan => output.logits[1] = f32::NAN,
            Member::HasOtherClasses => output.logits.push(0.0),
            Member::Says(logit, row, column) => {
                output.logits[1] = logit;
                map.values[row * 4 + column] = 3.0;
            }
            Member::SaysWithoutMap(logit) => output.logits[1] = logit,
        }
        if !matches!(self.members[member_idx], Member::SaysWithoutMap(_)) {
            output.activation_map = Some(map);
        }
        output.probabilities = softmax(&output.logits);
        Ok(output)
    }

    fn fuse(&self, member_logits: &[&[f32]]) -> Option<Vec<f64>> {
        let n_classes = member_logits.first()?.len();
        let probabilities: Vec<Vec<f32>> = member_logits.iter().map(|logits| softmax(logits)).collect();
        let mean = |class_idx: usize| {
            probabilities.iter().map(|member| f64::from(member[class_idx])).sum::<f64>() / probabilities.len() as f64
        };
        Some((0..n_classes).map(mean).collect())
    }
}

fn bundle(status: BundleStatus) -> BundleIdentity {
    let digest = Sha256Digest::of(b"weights");
    let code = |value: &str| Code { value: value.to_owned(), scheme: "SCT".to_owned(), meaning: value.to_owned() };
    let member = |name: &str| MemberIdentity {
        name: name.to_owned(),
        architecture: name.to_owned(),
        version: "1".to_owned(),
        weights_sha256: digest,
    };
    BundleIdentity {
        name: "test".to_owned(),
        version: "1".to_owned(),
        status,
        digest,
        classes: vec![
            ClassDefinition { label: "other".to_owned(), code: code("1") },
            ClassDefinition { label: "COVID-19".to_owned(), code: code("840539006") },
        ],
        target_class_idx: 1,
        threshold: 0.5,
        pixel_threshold: None,
        fusion: "mean_prob".to_owned(),
        calibration: None,
        reference_performance: String::new(),
        grey_zone: None,
        segmenter: Some(member("unet")),
        members: MEMBERS.map(member).to_vec(),
    }
}

fn recipe() -> Recipe {
    Recipe {
        equalisation: Equalisation::None,
        top_crop_fraction: 0.0,
        mask_mode: MaskMode::Channel3,
        crop_margin_fraction: 0.05,
        resize: ResizeMode::Pad,
        side_pixels: 48,
        z_score: false,
        range: None,
        mean: [0.5; 3],
        std: [0.25; 3],
        reverse_channels: false,
        single_channel: false,
    }
}

fn settings() -> PipelineSettings {
    PipelineSettings {
        member_inputs: vec![vec![recipe()]; 3],
        segmenter_side_pixels: SIDE,
        percentile_low: 0.5,
        percentile_high: 99.5,
        use_voi_window: true,
        gates: GateSettings {
            minimum_age_years: 18,
            accepted_views: vec!["PA".to_owned(), "AP".to_owned(), String::new()],
            lung_area_fraction: 0.1..=0.6,
            lung_area_ratio: 0.4..=2.5,
            minimum_rows: 40,
            minimum_columns: 40,
            policies: GatePolicies::default(),
            picture: PictureLimits::default(),
            lungs: LungLimits::default(),
            maximum_member_spread: 1.0,
            features: None,
        },
        decode_limits: DecodeLimits::default(),
        similar_cases: SimilarCaseSettings::default(),
    }
}

fn pipeline(status: BundleStatus, models: FakeModels) -> CxrPipeline<FakeModels> {
    CxrPipeline::new(models, bundle(status), settings()).unwrap()
}

/// A chest of 60 x 50 pixels.
fn chest() -> InMemDicomObject {
    radiograph(60, 50, &chest_words(60, 50))
}

/// A chest whose grey values, 0 to 4095 by row and column, were changed.
fn changed_chest(change: impl Fn(usize, usize, u16) -> u16) -> InMemDicomObject {
    let words = chest_words(60, 50);
    let changed: Vec<u16> = words.iter().enumerate().map(|(idx, word)| change(idx / 50, idx % 50, *word)).collect();
    radiograph(60, 50, &changed)
}

fn with(mut object: InMemDicomObject, tag: Tag, vr: VR, value: &str) -> InMemDicomObject {
    object.put(text(tag, vr, value));
    object
}

fn loaded(object: InMemDicomObject) -> LoadedImage {
    LoadedImage { source: source(), bytes: part10(object) }
}

fn source() -> SourceImage {
    SourceImage {
        sop_class_uid: Uid::new("1.2.840.10008.5.1.4.1.1.1.1").unwrap(),
        sop_instance_uid: Uid::new("2.25.1").unwrap(),
        series_instance_uid: Uid::new("2.25.2").unwrap(),
        modality: "DX".to_owned(),
        archive_key: "key".to_owned(),
        sha256: Sha256Digest::of(b"image"),
    }
}

async fn analyse(pipeline: &CxrPipeline<FakeModels>, images: Vec<LoadedImage>) -> Result<Analysis, InferError> {
    let sources = images.iter().map(|image| image.source.clone()).collect();
    let mut images = images.into_iter();
    pipeline.analyse(sources, &Errand::default(), |_| std::future::ready(Ok(images.next().unwrap()))).await
}

async fn analysed(pipeline: &CxrPipeline<FakeModels>, images: Vec<LoadedImage>) -> CxrAnalysis {
    match analyse(pipeline, images).await.unwrap().outcome {
        RunOutcome::Analysed(analysis) => analysis,
        other => panic!("not analysed: {other:?}"),
    }
}

async fn refused(pipeline: &CxrPipeline<FakeModels>, images: Vec<LoadedImage>) -> NotAnalysed {
    match analyse(pipeline, images).await.unwrap().outcome {
        RunOutcome::NotAnalysed(not) => not,
        other => panic!("analysed: {other:?}"),
    }
}

fn failed_gates(analysis: &CxrAnalysis) -> Vec<&str> {
    let gates = analysis.images.iter().flat_map(|image| &image.gates);
    gates.filter(|gate| !gate.passed).map(|gate| gate.id.as_str()).collect()
}

#[tokio::test]
async fn a_sound_image_gets_scores_maps_and_a_mask() {
    let models = FakeModels::new([Member::Says(2.0, 2, 3), Member::Says(1.0, 2, 3), Member::Says(3.0, 2, 0)]);
    let pipeline = pipeline(BundleStatus::Validated, models);
    let analysis = analyse(&pipeline, vec![loaded(chest())]).await.unwrap();
    let stages: Vec<&str> = analysis.stage_milliseconds.iter().map(|(stage, _)| stage.as_str()).collect();
    assert_eq!(stages, ["read", "decode", "segment", "classify", "explain"]);
    assert!(stages.iter().all(|stage| RunStage::ALL.iter().any(|known| known.as_str() == *stage)), "metrics know them");
    let RunOutcome::Analysed(CxrAnalysis { images, excluded }) = analysis.outcome else { panic!() };
    assert!(excluded.is_empty());
    let [image] = images.as_slice() else { panic!() };

    let sigmoid = |logit: f64| 1.0 / (1.0 + (-logit).exp());
    let expected = (sigmoid(2.0) + sigmoid(1.0) + sigmoid(3.0)) / 3.0;
    assert!((image.fused[1] - expected).abs() < 1e-6 && (image.fused[0] + image.fused[1] - 1.0).abs() < 1e-6);
    assert!((image.member_spread - (sigmoid(3.0) - sigmoid(1.0))).abs() < 1e-6);
    assert_eq!(image.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), MEMBERS);
    assert_eq!((image.decision, image.localised), (Decision::Present, true));
    assert!(image.gates.iter().all(|gate| gate.passed && gate.enforced), "{:?}", image.gates);

    // Two members point at column 3, the left lung, one at column 0.
    assert_eq!(image.member_heat_maps.len(), 3);
    assert!((image.heat_map.values[2 * 4 + 3] - 1.0).abs() < f32::EPSILON);
    let third = (sigmoid(3.0) / (sigmoid(1.0) + sigmoid(2.0))) as f32;
    assert!((image.heat_map.values[2 * 4] - third).abs() < 1e-5);
    assert!(image.left_lung_heat_fraction.unwrap() > 0.0);
    assert_eq!((image.placement.side, image.placement.pad_left), (60, 5));
    assert_eq!(image.lung_mask.side_pixels, SIDE);
    let png = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &image.lung_mask.png_base64).unwrap();
    let mask = image::load_from_memory(&png).unwrap().into_luma8();
    assert_eq!((mask.get_pixel(8, 16).0[0], mask.get_pixel(24, 16).0[0], mask.get_pixel(16, 16).0[0]), (1, 2, 0));
}

#[tokio::test]
async fn the_share_of_the_heat_in_the_lungs_is_measured() {
    let share = async |row, column| {
        let mut models = FakeModels::new([Member::Says(2.0, row, column); 3]);
        models.lungs = [[8, 24, 4, 14], [8, 24, 18, 28]];
        let analysis = analysed(&pipeline(BundleStatus::Untrained, models), vec![loaded(chest())]).await;
        analysis.images[0].lung_heat_fraction.unwrap()
    };
    let (in_a_lung, in_a_corner) = (share(1, 1).await, share(0, 0).await);
    assert!((0.6..0.7).contains(&in_a_lung) && (0.0..0.2).contains(&in_a_corner), "{in_a_lung} {in_a_corner}");
    let cold = FakeModels::new([Member::SaysWithoutMap(2.0); 3]);
    let analysis = analysed(&pipeline(BundleStatus::Untrained, cold), vec![loaded(chest())]).await;
    assert_eq!(analysis.images[0].lung_heat_fraction, None);
}

#[rstest]
#[case(BundleStatus::Validated, 2.0, Decision::Present, true)]
#[case(BundleStatus::Validated, 0.1, Decision::Present, true)]
// Every class is as likely as the others: the networks do not know.
#[case(BundleStatus::Validated, 0.0, Decision::Undetermined, false)]
#[case(BundleStatus::Validated, -0.1, Decision::Absent, false)]
#[case(BundleStatus::Unvalidated, 2.0, Decision::Undetermined, true)]
#[case(BundleStatus::Unvalidated, -2.0, Decision::Undetermined, false)]
#[case(BundleStatus::Untrained, 2.0, Decision::Undetermined, true)]
#[tokio::test]
async fn only_validated_bundles_decide(
    #[case] status: BundleStatus,
    #[case] logit: f32,
    #[case] decision: Decision,
    #[case] localised: bool,
) {
    let pipeline = pipeline(status, FakeModels::new([Member::Says(logit, 0, 0); 3]));
    let analysis = analysed(&pipeline, vec![loaded(chest())]).await;
    assert_eq!((analysis.images[0].decision, analysis.images[0].localised), (decision, localised));
}

fn flat() -> InMemDicomObject {
    radiograph(60, 50, &[700; 60 * 50])
}

fn small() -> InMemDicomObject {
    radiograph(39, 39, &chest_words(39, 39))
}

fn wide() -> InMemDicomObject {
    radiograph(40, 100, &chest_words(40, 100))
}

/// Without anything sharp.
fn blurred() -> InMemDicomObject {
    let small = resize(&chest_plane(60, 50), 6, 5).unwrap();
    let words: Vec<u16> = resize(&small, 60, 50).unwrap().values.iter().map(|value| (value * 4095.0) as u16).collect();
    radiograph(60, 50, &words)
}

/// As bytes that were put together wrongly.
fn scrambled() -> InMemDicomObject {
    let words = chest_words(60, 50);
    let scrambled: Vec<u16> = (0..words.len()).map(|idx| words[idx * 1049 % words.len()]).collect();
    radiograph(60, 50, &scrambled)
}

fn with_region(mut object: InMemDicomObject, code: &str, meaning: &str) -> InMemDicomObject {
    let item = InMemDicomObject::from_element_iter([
        text(tags::CODE_VALUE, VR::SH, code),
        text(tags::CODE_MEANING, VR::LO, meaning),
    ]);
    object.put(InMemElement::new(tags::ANATOMIC_REGION_SEQUENCE, VR::SQ, DataSetSequence::from(vec![item])));
    object
}

/// Colour of which all three channels are the chest.
fn colour() -> InMemDicomObject {
    let mut object = chest();
    let bytes: Vec<u8> = chest_words(60, 50).iter().flat_map(|word| [(word >> 4) as u8; 3]).collect();
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 3),
        (tags::PLANAR_CONFIGURATION, 0),
        (tags::BITS_ALLOCATED, 8),
        (tags::BITS_STORED, 8),
        (tags::HIGH_BIT, 7),
    ] {
        object.put(number(tag, value));
    }
    object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB"));
    object.put(InMemElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(bytes.into())));
    object
}

/// Every gate: a failing input is analysed and reported by an untrained bundle, and stopped by the others.
#[rstest]
#[case::lateral("header.view", ReasonCode::ViewNotFrontal, with(chest(), tags::VIEW_POSITION, VR::CS, "LL"))]
#[case::mirrored(
    "header.orientation",
    ReasonCode::ViewNotFrontal,
    with(chest(), tags::PATIENT_ORIENTATION, VR::CS, "R\\F")
)]
#[case::child("header.age", ReasonCode::AgeOutOfScope, with(chest(), tags::PATIENT_AGE, VR::AS, "007Y"))]
#[case::knee("header.body_part", ReasonCode::NoSuitableImage, with(chest(), tags::BODY_PART_EXAMINED, VR::CS, "KNEE"))]
#[case::mammogram("header.modality", ReasonCode::UnsupportedImage, with(chest(), tags::MODALITY, VR::CS, "MG"))]
#[case::abdomen("header.anatomic_region", ReasonCode::NoSuitableImage, with_region(chest(), "818981001", "Abdomen"))]
#[case::lateral_by_orientation(
    "header.orientation",
    ReasonCode::ViewNotFrontal,
    with(chest(), tags::PATIENT_ORIENTATION, VR::CS, "A\\F")
)]
#[case::localizer(
    "header.image_type",
    ReasonCode::Localizer,
    with(chest(), tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\LOCALIZER")
)]
#[case::screenshot(
    "header.image_type",
    ReasonCode::UnsupportedImage,
    with(chest(), tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY")
)]
#[case::colour("header.colour", ReasonCode::UnsupportedImage, colour())]
#[case::flat("quality.dynamic_range", ReasonCode::ImageQuality, flat())]
#[case::small("quality.size", ReasonCode::ImageQuality, small())]
#[case::wide("quality.aspect_ratio", ReasonCode::ImageQuality, wide())]
#[case::collimated(
    "quality.border",
    ReasonCode::ImageQuality,
    changed_chest(|row, column, word| if row < 12 || column < 20 { 700 } else { word })
)]
#[case::black(
    "quality.black",
    ReasonCode::ImageQuality,
    changed_chest(|row, column, word| if (row + column) % 5 < 3 { 0 } else { word })
)]
#[case::overexposed("quality.white", ReasonCode::ImageQuality, changed_chest(|_, _, word| word.min(2300)))]
#[case::few_shades(
    "quality.entropy",
    ReasonCode::ImageQuality,
    changed_chest(|row, column, word| word / 640 * 640 + ((row * 50 + column) % 7) as u16)
)]
#[case::blurred("quality.sharpness", ReasonCode::ImageQuality, blurred())]
#[case::scrambled("quality.sharpness", ReasonCode::ImageQuality, scrambled())]
#[case::negative("quality.polarity", ReasonCode::ImageQuality, changed_chest(|_, _, word| 4095 - word))]
#[tokio::test]
async fn header_and_quality_gates_are_enforced_unless_untrained(
    #[case] gate_id: &str,
    #[case] reason: ReasonCode,
    #[case] object: InMemDicomObject,
) {
    for status in [BundleStatus::Validated, BundleStatus::Unvalidated] {
        let pipeline = pipeline(status, FakeModels::new([Member::Says(2.0, 0, 0); 3]));
        let not = refused(&pipeline, vec![loaded(object.clone())]).await;
        assert_eq!(not.reason, reason, "{status:?}: {}", not.words);
        assert_eq!(not.sources, [source()]);
        assert!(!not.words.contains('7') || gate_id != "header.age", "an exact age: {}", not.words);
    }
    let pipeline = pipeline(BundleStatus::Untrained, FakeModels::new([Member::Says(2.0, 0, 0); 3]));
    let analysis = analysed(&pipeline, vec![loaded(object)]).await;
    // What is wrong with a picture often shows in more than one number.
    assert_eq!(failed_gates(&analysis)[0], gate_id);
    assert!(gate_id.starts_with("quality") || failed_gates(&analysis).len() == 1, "{:?}", failed_gates(&analysis));
    assert!(analysis.images[0].gates.iter().all(|gate| !gate.enforced));
}

#[tokio::test]
async fn the_lung_gate_is_enforced_unless_untrained() {
    for status in [BundleStatus::Validated, BundleStatus::Unvalidated] {
        let pipeline = pipeline(status, FakeModels::blind());
        let not = refused(&pipeline, vec![loaded(chest())]).await;
        assert_eq!(not.reason, ReasonCode::LungMask, "{}", not.words);
        assert_eq!(pipeline.models().n_classified.load(Ordering::Relaxed), 0, "no score may exist for it");
    }
    let pipeline = pipeline(BundleStatus::Untrained, FakeModels::blind());
    let analysis = analysed(&pipeline, vec![loaded(chest())]).await;
    assert_eq!(
        failed_gates(&analysis),
        [
            "lung_mask.components",
            "lung_mask.area",
            "lung_mask.ratio",
            "lung_mask.position",
            "lung_mask.contrast",
            "view.lungs"
        ]
    );
    assert_eq!(analysis.images[0].right_lung_heat_fraction, None);
}

/// Masks that no frontal chest has, each stopped by the gate that is made for it.
#[rstest]
#[case::low("view.height", ReasonCode::ViewNotFrontal, [[12, 20, 4, 12], [12, 21, 19, 28]], 0.0)]
#[case::on_different_levels("view.level", ReasonCode::ViewNotFrontal, [[4, 15, 4, 12], [10, 24, 20, 28]], 0.0)]
#[case::lying("view.upright", ReasonCode::ViewNotFrontal, [[10, 20, 3, 16], [10, 20, 17, 28]], 0.0)]
#[case::beyond_the_picture("view.border", ReasonCode::ViewNotFrontal, [[0, 32, 3, 9], [0, 32, 23, 29]], 0.0)]
#[case::in_doubt("lung_mask.doubt", ReasonCode::LungMask, [[8, 24, 4, 12], [8, 24, 20, 28]], 0.4)]
#[tokio::test]
async fn masks_of_other_views_are_stopped(
    #[case] gate_id: &str,
    #[case] reason: ReasonCode,
    #[case] lungs: [[usize; 4]; 2],
    #[case] beside: f32,
) {
    let models = || FakeModels { lungs, beside, ..FakeModels::new([Member::Says(2.0, 0, 0); 3]) };
    let analysis = analysed(&pipeline(BundleStatus::Untrained, models()), vec![loaded(chest())]).await;
    assert_eq!(failed_gates(&analysis), [gate_id]);
    let enforcing = pipeline(BundleStatus::Validated, models());
    let not = refused(&enforcing, vec![loaded(chest())]).await;
    assert_eq!(not.reason, reason, "{}", not.words);
    assert!(not.words.contains("expected"), "{}", not.words);
    assert_eq!(enforcing.models().n_classified.load(Ordering::Relaxed), 0, "no score may exist for it");
}

#[tokio::test]
async fn lungs_that_are_brighter_than_what_lies_between_them_are_stopped() {
    let mut settings = settings();
    settings.gates.picture.minimum_polarity = -2.0;
    let models = FakeModels::new([Member::Says(2.0, 0, 0); 3]);
    let pipeline = CxrPipeline::new(models, bundle(BundleStatus::Validated), settings).unwrap();
    let not = refused(&pipeline, vec![loaded(changed_chest(|_, _, word| 4095 - word))]).await;
    assert!(not.words.starts_with("between the lungs it is brighter than in them by -"), "{}", not.words);
    assert_eq!(not.reason, ReasonCode::ImageQuality);
}

#[tokio::test]
async fn policies_decide_on_what_may_be_meant() {
    let burned_in = with(chest(), tags::BURNED_IN_ANNOTATION, VR::CS, "YES");
    let derived = with(chest(), tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY");
    let secondary = with(chest(), tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\SECONDARY");
    let says = Member::Says(2.0, 0, 0);
    for (object, gate_id, accepted_by_default) in [
        (burned_in, "header.burned_in_annotation", true),
        (derived, "header.image_type", true),
        (secondary, "header.image_type", false),
        (colour(), "header.colour", false),
    ] {
        let policy = if accepted_by_default { Policy::Refuse } else { Policy::Accept };
        let mut other = settings();
        other.gates.policies =
            GatePolicies { derived: policy, secondary: policy, colour: policy, burned_in_annotation: policy };
        let other = CxrPipeline::new(FakeModels::new([says; 3]), bundle(BundleStatus::Validated), other).unwrap();
        let default = pipeline(BundleStatus::Validated, FakeModels::new([says; 3]));
        let (accepts, refuses) = if accepted_by_default { (&default, &other) } else { (&other, &default) };
        let accepted = analysed(accepts, vec![loaded(object.clone())]).await;
        assert!(accepted.images[0].gates.iter().any(|gate| gate.id == gate_id && gate.passed), "{gate_id}");
        assert_eq!(refused(refuses, vec![loaded(object)]).await.reason, ReasonCode::UnsupportedImage, "{gate_id}");
    }
}

/// The fake members all have the embedding 1: this space has it at a distance of 2 and 0.5.
fn far_features() -> FeatureGateSettings {
    let matrix = |values: &[f64]| Matrix { columns: 1, values: values.to_vec() };
    FeatureGateSettings {
        member: "resnet50".to_owned(),
        space: std::sync::Arc::new(FeatureSpace {
            centre: vec![0.0],
            components: matrix(&[1.0]),
            class_means: matrix(&[0.0, -9.0]),
            precision: matrix(&[4.0]),
            vectors: matrix(&[0.5, 0.0]),
        }),
        neighbours: 1,
        maximum_mahalanobis_distance: 2.5,
        maximum_neighbour_distance: 0.6,
    }
}

#[rstest]
#[case::like_the_training(2.5, 0.6, &[])]
#[case::far_by_mahalanobis(1.9, 0.6, &["features.mahalanobis"])]
#[case::far_from_every_image(2.5, 0.4, &["features.neighbour"])]
#[tokio::test]
async fn images_unlike_the_training_are_stopped(
    #[case] mahalanobis: f64,
    #[case] neighbour: f64,
    #[case] expected: &[&str],
) {
    let mut settings = settings();
    settings.gates.features = Some(FeatureGateSettings {
        maximum_mahalanobis_distance: mahalanobis,
        maximum_neighbour_distance: neighbour,
        ..far_features()
    });
    let models = || FakeModels::new([Member::Says(2.0, 0, 0); 3]);
    let untrained = CxrPipeline::new(models(), bundle(BundleStatus::Untrained), settings.clone()).unwrap();
    let analysis = analysed(&untrained, vec![loaded(chest())]).await;
    assert_eq!(failed_gates(&analysis), expected);
    let words: Vec<&str> = analysis.images[0].gates.iter().map(|gate| gate.words.as_str()).collect();
    assert!(
        words
            .iter()
            .any(|words| words.starts_with("the Mahalanobis distance from the training images is 2.00, at most"))
    );

    let enforcing = CxrPipeline::new(models(), bundle(BundleStatus::Unvalidated), settings).unwrap();
    match analyse(&enforcing, vec![loaded(chest())]).await.unwrap().outcome {
        RunOutcome::Analysed(_) => assert!(expected.is_empty()),
        RunOutcome::NotAnalysed(not) => assert_eq!((not.reason, expected.len()), (ReasonCode::OutOfDistribution, 1)),
        RunOutcome::CtMeasured(_) => panic!("a CT"),
    }
}

#[tokio::test]
async fn without_the_member_that_is_compared_no_score_is_shown() {
    let mut settings = settings();
    settings.gates.features = Some(far_features());
    let says = Member::Says(2.0, 0, 0);
    let models = FakeModels::new([says, Member::Fails, says]);
    let pipeline = CxrPipeline::new(models, bundle(BundleStatus::Validated), settings.clone()).unwrap();
    let not = refused(&pipeline, vec![loaded(chest())]).await;
    assert_eq!(not.reason, ReasonCode::OutOfDistribution);
    assert!(not.words.contains("is not known: member resnet50"), "{}", not.words);

    // Of another network: the embedding has another length.
    if let Some(features) = &mut settings.gates.features {
        let mut space = (*features.space).clone();
        space.centre = vec![0.0; 2];
        features.space = std::sync::Arc::new(space);
    }
    let pipeline = CxrPipeline::new(FakeModels::new([says; 3]), bundle(BundleStatus::Validated), settings).unwrap();
    let not = refused(&pipeline, vec![loaded(chest())]).await;
    assert!(not.words.contains("1 numbers, 2 expected"), "{}", not.words);
}

#[tokio::test]
async fn members_that_contradict_one_another_give_no_score() {
    let mut settings = settings();
    settings.gates.maximum_member_spread = 0.4;
    let members =
        |last: f32| FakeModels::new([Member::Says(0.0, 0, 0), Member::Says(0.0, 0, 0), Member::Says(last, 0, 0)]);
    let open = |models, status| CxrPipeline::new(models, bundle(status), settings.clone()).unwrap();
    let not = refused(&open(members(4.0), BundleStatus::Validated), vec![loaded(chest())]).await;
    assert_eq!(not.reason, ReasonCode::MemberDisagreement);
    assert_eq!(not.words, "the members' outputs differ by 0.48, at most 0.40 expected");
    let agreed = analysed(&open(members(1.0), BundleStatus::Validated), vec![loaded(chest())]).await;
    assert!(agreed.images[0].gates.iter().any(|gate| gate.id == "ensemble.disagreement" && gate.passed));
    let told = analysed(&open(members(4.0), BundleStatus::Untrained), vec![loaded(chest())]).await;
    assert_eq!(failed_gates(&told), ["ensemble.disagreement"]);
    // Where the limit is 1 there is nothing to say.
    let models = FakeModels::new([Member::Says(2.0, 0, 0); 3]);
    let silent = analysed(&pipeline(BundleStatus::Validated, models), vec![loaded(chest())]).await;
    assert!(silent.images[0].gates.iter().all(|gate| gate.id != "ensemble.disagreement"));
}

#[tokio::test]
async fn an_examination_tells_every_gate_and_the_embeddings_or_where_it_ended() {
    let says = Member::Says(2.0, 0, 0);
    let whole = pipeline(BundleStatus::Validated, FakeModels::new([says, Member::Fails, says]));
    let examined = whole.check_gates(part10(chest()), &Errand::default()).await.unwrap();
    assert_eq!(examined.refused, None);
    assert!(examined.gates.iter().all(|gate| gate.passed));
    assert_eq!((examined.embeddings.len(), &examined.embeddings[0]), (3, &Ok(vec![1.0])));
    assert!(examined.embeddings[1].is_err());

    let negative = part10(changed_chest(|_, _, word| 4095 - word));
    let examined = whole.check_gates(negative.clone(), &Errand::default()).await.unwrap();
    let refused = examined.refused.clone().unwrap();
    assert_eq!((refused.gate.as_str(), refused.reason), ("quality.polarity", ReasonCode::ImageQuality));
    assert!(examined.embeddings.is_empty());
    let alone = check_gates_before_networks(&negative, BundleStatus::Validated, &settings()).unwrap();
    assert_eq!(alone, examined);

    let of = |bytes: &[u8]| check_gates_before_networks(bytes, BundleStatus::Untrained, &settings()).unwrap();
    assert_eq!(of(b"no DICOM").refused.unwrap().gate, Refused::FILE);
    let ct = part10(with(chest(), tags::SOP_CLASS_UID, VR::UI, "1.2.840.10008.5.1.4.1.1.2"));
    assert_eq!(of(&ct).refused.unwrap().gate, Refused::SOP_CLASS);
    assert!(
        of(&part10(chest())).gates.iter().all(|gate| gate.id.starts_with("header") || gate.id.starts_with("quality"))
    );
}

#[tokio::test]
async fn what_the_header_does_not_state_passes_with_words() {
    let mut object = chest();
    for tag in [tags::VIEW_POSITION, tags::PATIENT_AGE, tags::BODY_PART_EXAMINED] {
        object.remove_element(tag);
    }
    let pipeline = pipeline(BundleStatus::Validated, FakeModels::new([Member::Says(2.0, 0, 0); 3]));
    let analysis = analysed(&pipeline, vec![loaded(object.clone())]).await;
    let words: Vec<&str> = analysis.images[0].gates.iter().map(|gate| gate.words.as_str()).collect();
    assert!(words.contains(&"view not stated") && words.contains(&"age not stated"), "{words:?}");

    // Unless the bundle insists on a stated view.
    let mut strict = settings();
    strict.gates.accepted_views = vec!["PA".to_owned()];
    let models = FakeModels::new([Member::Says(2.0, 0, 0); 3]);
    let strict = CxrPipeline::new(models, bundle(BundleStatus::Validated), strict).unwrap();
    assert_eq!(refused(&strict, vec![loaded(object)]).await.reason, ReasonCode::ViewNotFrontal);
}

/// What no bundle can analyse is left out whatever its status.
#[rstest]
#[case::colour(ReasonCode::UnsupportedImage, with(chest(), tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB"))]
#[case::processing(
    ReasonCode::UnsupportedImage,
    with(chest(), tags::PRESENTATION_INTENT_TYPE, VR::CS, "FOR PROCESSING")
)]
#[case::ct(ReasonCode::UnsupportedImage, with(chest(), tags::SOP_CLASS_UID, VR::UI, "1.2.840.10008.5.1.4.1.1.2"))]
#[case::short(ReasonCode::Undecodable, radiograph(60, 50, &[1; 60]))]
#[tokio::test]
async fn technical_impossibilities_exclude_always(#[case] reason: ReasonCode, #[case] object: InMemDicomObject) {
    for status in [BundleStatus::Untrained, BundleStatus::Unvalidated, BundleStatus::Validated] {
        let pipeline = pipeline(status, FakeModels::new([Member::Says(2.0, 0, 0); 3]));
        let not = refused(&pipeline, vec![loaded(object.clone())]).await;
        assert_eq!(not.reason, reason, "{status:?}: {}", not.words);
    }
}

#[tokio::test]
async fn garbage_and_nothing_are_outcomes_and_not_errors() {
    let pipeline = pipeline(BundleStatus::Untrained, FakeModels::new([Member::Says(2.0, 0, 0); 3]));
    let garbage = LoadedImage { source: source(), bytes: b"no DICOM".to_vec() };
    assert_eq!(refused(&pipeline, vec![garbage]).await.reason, ReasonCode::Undecodable);
    assert_eq!(refused(&pipeline, Vec::new()).await.reason, ReasonCode::NoSuitableImage);
}

#[tokio::test]
async fn a_study_is_analysed_when_one_of_its_images_can_be() {
    let pipeline = pipeline(BundleStatus::Validated, FakeModels::new([Member::Says(2.0, 0, 0); 3]));
    let lateral = with(chest(), tags::VIEW_POSITION, VR::CS, "LL");
    let child = with(chest(), tags::PATIENT_AGE, VR::AS, "007Y");
    let analysis = analysed(&pipeline, vec![loaded(lateral.clone()), loaded(chest())]).await;
    assert_eq!((analysis.images.len(), analysis.excluded.len()), (1, 1));
    assert_eq!(analysis.excluded[0].reason, ReasonCode::ViewNotFrontal);

    let not = refused(&pipeline, vec![loaded(lateral.clone()), loaded(lateral.clone())]).await;
    assert_eq!(not.reason, ReasonCode::ViewNotFrontal);
    let not = refused(&pipeline, vec![loaded(lateral), loaded(child)]).await;
    assert_eq!(not.reason, ReasonCode::NoSuitableImage);
    assert_eq!(not.words, "the view is LL, expected a frontal one; the patient is younger than 18 years");
}

#[rstest]
#[case(Member::Fails, "out of memory")]
#[case(Member::Panics, "it stopped without an answer")]
#[case(Member::SaysNan, "it gave numbers that are not finite")]
#[case(Member::HasOtherClasses, "it gave 3 outputs for 2 classes")]
#[tokio::test]
async fn a_failing_member_is_recorded_and_the_rest_are_fused(#[case] member: Member, #[case] words: &str) {
    let models = FakeModels::new([Member::Says(0.0, 0, 0), member, Member::Says(0.0, 0, 0)]);
    let analysis = analysed(&pipeline(BundleStatus::Validated, models), vec![loaded(chest())]).await;
    let image = &analysis.images[0];
    assert!((image.fused[1] - 0.5).abs() < 1e-6);
    assert_eq!(image.members[1].failure.as_deref(), Some(words));
    assert!(image.members[1].probabilities.is_empty() && image.members[0].failure.is_none());
    assert_eq!(image.member_heat_maps.len(), 2);
    assert_eq!(image.decision, Decision::Undetermined, "the ensemble that was validated is not whole");
    assert!(image.member_spread.abs() < 1e-9);
}

#[tokio::test]
async fn each_image_is_read_when_its_turn_comes() {
    let pipeline = pipeline(BundleStatus::Validated, FakeModels::new([Member::Says(2.0, 2, 3); 3]));
    let image = loaded(chest());
    let mut asked = 0;
    let sources = vec![image.source.clone(), image.source.clone()];
    let error = pipeline
        .analyse(sources, &Errand::default(), |_| {
            asked += 1;
            let again = asked == 2;
            let image = image.clone();
            async move { if again { Err(InferError::Read("the second is gone".to_owned())) } else { Ok(image) } }
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the second is gone");
    assert!(error.is_retryable());
    // The first had gone all the way before the second was asked for.
    assert_eq!(pipeline.models().n_classified.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn without_any_member_the_run_fails_and_may_be_tried_again() {
    let pipeline = pipeline(BundleStatus::Validated, FakeModels::new([Member::Fails; 3]));
    let error = analyse(&pipeline, vec![loaded(chest())]).await.unwrap_err();
    assert!(matches!(&error, InferError::AllMembersFailed { failures, .. } if failures.len() == 3), "{error}");
    assert!(error.is_retryable());
}

/// Whoever meets networks that are out has no part in it: the run waits, unless one of them was asked and failed.
#[rstest]
#[case([Member::IsTakenOut(290), Member::IsTakenOut(120), Member::IsTakenOut(300)], Some(Duration::from_mins(2)))]
#[case([Member::IsTakenOut(290), Member::Fails, Member::IsTakenOut(300)], None)]
#[tokio::test]
async fn networks_that_are_taken_out_are_waited_for(#[case] members: [Member; 3], #[case] wait: Option<Duration>) {
    let pipeline = pipeline(BundleStatus::Validated, FakeModels::new(members));
    let error = analyse(&pipeline, vec![loaded(chest())]).await.unwrap_err();
    assert_eq!(error.wait(), wait, "{error}");

    let segmenter = InferError::Segmenter(ModelError::TakenOut { wait: Duration::from_secs(9), words: String::new() });
    assert_eq!(segmenter.wait(), Some(Duration::from_secs(9)));
    assert_eq!(InferError::Segmenter(ModelError::Failed("no memory".to_owned())).wait(), None);
}

/// Overlay bits above 12 stored bits and MONOCHROME1 must make no difference to what the networks see.
#[tokio::test]
async fn the_same_picture_gives_the_same_scores_in_every_encoding() {
    let models = || FakeModels::new([Member::Says(1.5, 1, 1), Member::Says(0.5, 2, 2), Member::Says(0.1, 3, 3)]);
    let plain = chest_words(60, 50);
    let inverted: Vec<u16> = plain.iter().map(|word| (4095 - word) | 0xA000).collect();
    let mut monochrome1 = radiograph(60, 50, &inverted);
    set_bits_stored(&mut monochrome1, 12, false);
    monochrome1.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1"));
    let first = super::cxr::prepared_canvas(&part10(radiograph(60, 50, &plain)), &settings()).unwrap();
    let second = super::cxr::prepared_canvas(&part10(monochrome1.clone()), &settings()).unwrap();
    assert!(first.values.iter().zip(&second.values).all(|(a, b)| (a - b).abs() < 1e-5));
    let outcome = analysed(&pipeline(BundleStatus::Validated, models()), vec![loaded(monochrome1)]).await;
    assert_eq!(outcome, analysed(&pipeline(BundleStatus::Validated, models()), vec![loaded(chest())]).await);
}

#[test]
fn bundles_that_cannot_work_are_refused_at_once() {
    let refuse = |bundle: BundleIdentity, settings: PipelineSettings| {
        let models = FakeModels::new([Member::Fails; 3]);
        CxrPipeline::new(models, bundle, settings).err().map(|problem| problem.setting)
    };
    let good = || bundle(BundleStatus::Validated);
    assert_eq!(refuse(good(), settings()), None);
    assert_eq!(refuse(BundleIdentity { target_class_idx: 2, ..good() }, settings()), Some("target_class_idx"));
    assert_eq!(refuse(BundleIdentity { members: Vec::new(), ..good() }, settings()), Some("members"));
    assert_eq!(refuse(BundleIdentity { threshold: f64::NAN, ..good() }, settings()), Some("threshold"));
    let with = |recipe: Recipe| PipelineSettings { member_inputs: vec![vec![recipe]; 3], ..settings() };
    assert_eq!(refuse(good(), with(Recipe { side_pixels: 0, ..recipe() })), Some("image_side_pixels"));
    assert_eq!(refuse(good(), with(Recipe { std: [1.0, 0.0, 1.0], ..recipe() })), Some("mean, std"));
    let without_input = PipelineSettings { member_inputs: vec![vec![recipe()], Vec::new(), Vec::new()], ..settings() };
    assert_eq!(refuse(good(), without_input), Some("members"));
    let percentiles = PipelineSettings { percentile_low: 99.9, ..settings() };
    assert_eq!(refuse(good(), percentiles), Some("percentile_low to percentile_high"));
}

#[tokio::test]
async fn members_without_a_map_count_and_are_left_out_of_the_picture() {
    let models = FakeModels::new([Member::Says(2.0, 1, 1), Member::SaysWithoutMap(2.0), Member::SaysWithoutMap(2.0)]);
    let found = analysed(&pipeline(BundleStatus::Validated, models), vec![loaded(chest())]).await;
    let image = &found.images[0];
    assert!(image.members.iter().all(|member| member.failure.is_none()));
    assert_eq!(image.member_heat_maps.len(), 1);
    assert!(image.heat_map.maximum_activation > 0.0);

    let models = FakeModels::new([Member::SaysWithoutMap(2.0); 3]);
    let found = analysed(&pipeline(BundleStatus::Validated, models), vec![loaded(chest())]).await;
    assert!(found.images[0].heat_map.values.iter().all(|heat| *heat == 0.0));
    assert_eq!(found.images[0].decision, Decision::Present);
}

#[rstest]
#[case::below(-2.0, Decision::Absent)]
#[case::grey_below_the_threshold(-0.2, Decision::Undetermined)]
#[case::grey_above_the_threshold(0.2, Decision::Undetermined)]
#[case::above(2.0, Decision::Present)]
#[tokio::test]
async fn the_grey_zone_decides_nothing(#[case] logit: f32, #[case] expected: Decision) {
    let bundle = BundleIdentity { grey_zone: Some([0.4, 0.6]), ..bundle(BundleStatus::Validated) };
    let models = FakeModels::new([Member::Says(logit, 0, 0); 3]);
    let pipeline = CxrPipeline::new(models, bundle, settings()).unwrap();
    let found = analysed(&pipeline, vec![loaded(chest())]).await;
    assert_eq!(found.images[0].decision, expected, "{:?}", found.images[0].fused);
}

#[tokio::test]
async fn every_analysed_image_leaves_an_embedding_of_length_1_unless_a_member_failed() {
    let says = Member::Says(2.0, 0, 0);
    let whole = pipeline(BundleStatus::Unvalidated, FakeModels::new([says; 3]));
    let analysis = analyse(&whole, vec![loaded(chest())]).await.unwrap();
    let embedding = analysis.embeddings[0].clone().unwrap();
    assert_eq!(embedding.len(), 3);
    assert!((embedding.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-6);

    let partial = pipeline(BundleStatus::Unvalidated, FakeModels::new([says, Member::Fails, says]));
    let analysis = analyse(&partial, vec![loaded(chest())]).await.unwrap();
    let words = analysis.embeddings[0].clone().unwrap_err();
    assert!(words.contains("resnet50 failed"), "{words}");

    let mut one = settings();
    one.similar_cases.method = EmbeddingMethod::Member("vgg16".to_owned());
    let models = FakeModels::new([says, Member::Fails, says]);
    let of_one = CxrPipeline::new(models, bundle(BundleStatus::Unvalidated), one.clone()).unwrap();
    let analysis = analyse(&of_one, vec![loaded(chest())]).await.unwrap();
    assert_eq!(analysis.embeddings, [Ok(vec![1.0])]);

    one.similar_cases.method = EmbeddingMethod::Member("nobody".to_owned());
    let refused = CxrPipeline::new(FakeModels::new([says; 3]), bundle(BundleStatus::Unvalidated), one).err().unwrap();
    assert_eq!(refused.setting, "similar_cases.method");
}
