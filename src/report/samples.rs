//! Synthetic sources and run records for tests. No patient exists behind any of them.

use time::macros::datetime;
use uuid::Uuid;

use super::{Catalogue, FileMetaIds, RenderOptions, RgbPixels, SourceHeader};
use crate::types::{
    BundleIdentity, BundleStatus, ClassDefinition, Code, CtAnalysis, CtClassification, CtDensities, CtKeySlice,
    CtLesionMember, CtLesionRun, CtLesions, CtLung, CtLungLesions, CtMethod, CtPlane, CtQuadrant, CtSection, CtSeries,
    CxrAnalysis, Decision, ExcludedImage, ExcludedSeries, Frame, GateResult, HeatMap, ImageAnalysis, Installation,
    LungMask, MemberIdentity, MemberScore, NotAnalysed, Placement, ReasonCode, RunOutcome, RunRecord, Sha256Digest,
    Side, SourceImage, Uid,
};

/// Study of all samples.
pub const STUDY: &str = "1.2.826.0.1.3680043.8.498.1";

/// SOP classes of the samples: Digital X-Ray for presentation, Computed Radiography.
pub const DX: &str = "1.2.840.10008.5.1.4.1.1.1.1";
/// Computed Radiography Image Storage.
pub const CR: &str = "1.2.840.10008.5.1.4.1.1.1";

/// CT Image Storage.
pub const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

fn sop_class_of(modality: &str) -> &'static str {
    match modality {
        "DX" => DX,
        "CT" => CT,
        _ => CR,
    }
}

fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

/// How a sample data set is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// 1.2.840.10008.1.2.1
    ExplicitLittle,
    /// 1.2.840.10008.1.2
    ImplicitLittle,
    /// 1.2.840.10008.1.2.2
    ExplicitBig,
    /// 1.2.840.10008.1.2.1.99
    Deflated,
}

/// A value of a sample element.
#[derive(Debug, Clone)]
pub enum Sample {
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// One unsigned 16-bit number.
    Number(u16),
    /// Items of elements.
    Items(Vec<Vec<(u16, u16, &'static str, Self)>>),
}

/// One element: group, element, value representation, value.
pub type SampleElement = (u16, u16, &'static str, Sample);

/// A text element, padded to an even length.
pub fn text(group: u16, element: u16, vr: &'static str, value: &[u8]) -> SampleElement {
    let mut bytes = value.to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if vr == "UI" { 0 } else { b' ' });
    }
    (group, element, vr, Sample::Bytes(bytes))
}

/// A synthetic radiograph's header.
#[derive(Debug, Clone)]
pub struct SampleSource {
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// (0020,000E)
    pub series_instance_uid: String,
    /// (0008,0060), `DX` or `CR`.
    pub modality: &'static str,
    /// (0008,0005)
    pub character_set: Option<&'static str>,
    /// (0010,0010)
    pub patient_name: Vec<u8>,
    /// Leave out what a result must have all the same, but empty.
    pub without_type_2: bool,
    /// (0028,0030)
    pub pixel_spacing: Option<&'static str>,
    /// (0008,0201)
    pub timezone: Option<&'static str>,
    /// More elements, replacing those of the same tag.
    pub more: Vec<SampleElement>,
}

impl SampleSource {
    /// A DX image with ASCII texts.
    pub fn new(sop_instance_uid: &str) -> Self {
        Self {
            sop_instance_uid: sop_instance_uid.to_owned(),
            series_instance_uid: "1.2.826.0.1.3680043.8.498.2".to_owned(),
            modality: "DX",
            character_set: None,
            patient_name: b"Sample^Synthetic".to_vec(),
            without_type_2: false,
            pixel_spacing: Some("0.143\\0.143"),
            timezone: None,
            more: Vec::new(),
        }
    }

    fn elements(&self) -> Vec<SampleElement> {
        let sop_class = sop_class_of(self.modality);
        let mut elements = vec![
            text(0x0008, 0x0016, "UI", sop_class.as_bytes()),
            text(0x0008, 0x0018, "UI", self.sop_instance_uid.as_bytes()),
            text(0x0008, 0x0060, "CS", self.modality.as_bytes()),
            text(0x0008, 0x0070, "LO", b"Synthetic"),
            text(0x0008, 0x1030, "LO", b"Chest"),
            text(0x0008, 0x1090, "LO", b"Simulator"),
            text(0x0018, 0x0015, "CS", b"CHEST"),
            text(0x0018, 0x1164, "DS", b"0.139\\0.139"),
            text(0x0020, 0x000d, "UI", STUDY.as_bytes()),
            text(0x0020, 0x000e, "UI", self.series_instance_uid.as_bytes()),
            text(0x0020, 0x0013, "IS", b"1"),
            text(0x0020, 0x0020, "CS", b"L\\F"),
            (0x0028, 0x0010, "US", Sample::Number(40)),
            (0x0028, 0x0011, "US", Sample::Number(32)),
            text(0x0028, 0x0301, "CS", b"NO"),
            (0x7fe0, 0x0010, "OW", Sample::Bytes(vec![0; 2 * 40 * 32])),
        ];
        if !self.without_type_2 {
            elements.extend([
                text(0x0008, 0x0020, "DA", b"20200315"),
                text(0x0008, 0x0030, "TM", b"093000"),
                text(0x0008, 0x0050, "SH", b"ACC-1"),
                text(0x0008, 0x0090, "PN", b""),
                text(0x0010, 0x0010, "PN", &self.patient_name),
                text(0x0010, 0x0020, "LO", b"SYN-1"),
                text(0x0010, 0x0021, "LO", b"SYNTHETIC"),
                text(0x0010, 0x0030, "DA", b"19700101"),
                text(0x0010, 0x0040, "CS", b"O"),
                text(0x0020, 0x0010, "SH", b"1"),
            ]);
        }
        elements.extend(self.character_set.map(|set| text(0x0008, 0x0005, "CS", set.as_bytes())));
        elements.extend(self.timezone.map(|offset| text(0x0008, 0x0201, "SH", offset.as_bytes())));
        elements.extend(self.pixel_spacing.map(|spacing| text(0x0028, 0x0030, "DS", spacing.as_bytes())));
        elements.retain(|(group, element, ..)| {
            !self.more.iter().any(|(more_group, more_element, ..)| (group, element) == (more_group, more_element))
        });
        elements.extend(self.more.clone());
        elements.sort_by_key(|(group, element, ..)| (*group, *element));
        elements
    }

    /// The whole file.
    pub fn part10(&self, syntax: Syntax) -> Vec<u8> {
        let syntax_uid = match syntax {
            Syntax::ExplicitLittle => "1.2.840.10008.1.2.1",
            Syntax::ImplicitLittle => "1.2.840.10008.1.2",
            Syntax::ExplicitBig => "1.2.840.10008.1.2.2",
            Syntax::Deflated => "1.2.840.10008.1.2.1.99",
        };
        let meta = [
            (0x0002, 0x0001, "OB", Sample::Bytes(vec![0, 1])),
            text(0x0002, 0x0002, "UI", DX.as_bytes()),
            text(0x0002, 0x0003, "UI", self.sop_instance_uid.as_bytes()),
            text(0x0002, 0x0010, "UI", syntax_uid.as_bytes()),
            text(0x0002, 0x0012, "UI", b"1.2.3"),
        ];
        let meta: Vec<u8> = meta.iter().flat_map(|element| encode(element, Syntax::ExplicitLittle)).collect();
        let mut file = vec![0; 128];
        file.extend(b"DICM");
        let length = u32::try_from(meta.len()).unwrap().to_le_bytes().to_vec();
        file.extend(encode(&(0x0002, 0x0000, "UL", Sample::Bytes(length)), Syntax::ExplicitLittle));
        file.extend(meta);
        let data_set: Vec<u8> = self.elements().iter().flat_map(|element| encode(element, syntax)).collect();
        if syntax == Syntax::Deflated {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut encoder, &data_set).unwrap();
            file.extend(encoder.finish().unwrap());
        } else {
            file.extend(data_set);
        }
        file
    }

    /// The header, read from an Explicit VR Little Endian file.
    pub fn header(&self) -> SourceHeader {
        SourceHeader::from_part10(&self.part10(Syntax::ExplicitLittle)).unwrap()
    }

    /// The image, as a run record names it.
    pub fn image(&self) -> SourceImage {
        SourceImage {
            series_instance_uid: uid(&self.series_instance_uid),
            ..image(&self.sop_instance_uid, self.modality)
        }
    }
}

/// PS3.5 chapter 7, written independently of dicom-rs.
fn encode(element: &SampleElement, syntax: Syntax) -> Vec<u8> {
    let (group, number, vr, value) = element;
    let big = syntax == Syntax::ExplicitBig;
    let u16_bytes = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let u32_bytes = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let value = match value {
        Sample::Bytes(bytes) => bytes.clone(),
        Sample::Number(number) => u16_bytes(*number).to_vec(),
        Sample::Items(items) => items
            .iter()
            .flat_map(|item| {
                let content: Vec<u8> = item.iter().flat_map(|element| encode(element, syntax)).collect();
                let length = u32_bytes(u32::try_from(content.len()).unwrap());
                [&u16_bytes(0xfffe)[..], &u16_bytes(0xe000), &length, &content].concat()
            })
            .collect(),
    };
    let length = u32::try_from(value.len()).unwrap();
    let mut bytes = [u16_bytes(*group), u16_bytes(*number)].concat();
    if syntax == Syntax::ImplicitLittle {
        bytes.extend(u32_bytes(length));
    } else {
        bytes.extend(vr.as_bytes());
        if matches!(*vr, "OB" | "OW" | "SQ" | "UN" | "UT" | "UC") {
            bytes.extend([0, 0]);
            bytes.extend(u32_bytes(length));
        } else {
            bytes.extend(u16_bytes(u16::try_from(length).unwrap()));
        }
    }
    bytes.extend(value);
    bytes
}

/// An image of the sample study.
pub fn image(sop_instance_uid: &str, modality: &str) -> SourceImage {
    SourceImage {
        sop_class_uid: uid(sop_class_of(modality)),
        sop_instance_uid: uid(sop_instance_uid),
        series_instance_uid: uid("1.2.826.0.1.3680043.8.498.2"),
        modality: modality.to_owned(),
        archive_key: "2020/03/15/09/sample".to_owned(),
        sha256: Sha256Digest::of(sop_instance_uid.as_bytes()),
    }
}

fn class(label: &str, value: &str, meaning: &str) -> ClassDefinition {
    let code = Code { value: value.to_owned(), scheme: "SCT".to_owned(), meaning: meaning.to_owned() };
    ClassDefinition { label: label.to_owned(), code }
}

fn network(name: &str, architecture: &str) -> MemberIdentity {
    MemberIdentity {
        name: name.to_owned(),
        architecture: architecture.to_owned(),
        version: "1.0.0".to_owned(),
        weights_sha256: Sha256Digest::of(name.as_bytes()),
    }
}

/// A bundle of two classifiers and two classes.
pub fn bundle(status: BundleStatus) -> BundleIdentity {
    BundleIdentity {
        name: "cxr-ensemble".to_owned(),
        version: "1.2.0".to_owned(),
        status,
        digest: Sha256Digest::of(b"bundle"),
        classes: vec![
            class("COVID-19", "882784691000119100", "COVID-19 pneumonia"),
            class("Normal", "17621005", "Normal"),
        ],
        target_class_idx: 0,
        threshold: 0.5,
        pixel_threshold: None,
        fusion: "mean_prob".to_owned(),
        calibration: None,
        reference_performance: "sensitivity 90.5 % [85-94], specificity 90.0 % [84.3-94], n = 350".to_owned(),
        grey_zone: None,
        segmenter: Some(network("lungs", "unet")),
        members: vec![network("resnet50", "resnet50"), network("vgg16", "vgg16")],
    }
}

fn heat_map(method: &str) -> HeatMap {
    HeatMap {
        rows: 7,
        columns: 7,
        values: (0..49).map(|cell| cell as f32 / 48.0).collect(),
        maximum_activation: 3.25,
        method: method.to_owned(),
        frame: Frame::WHOLE,
    }
}

fn member(name: &str, output: f64) -> MemberScore {
    MemberScore { name: name.to_owned(), probabilities: vec![output, 1.0 - output], failure: None }
}

/// What was found on one image: 87.3 % for the target class.
pub fn analysis(source: SourceImage) -> ImageAnalysis {
    ImageAnalysis {
        source,
        placement: Placement { source_rows: 40, source_columns: 32, side: 40, pad_top: 0, pad_left: 4 },
        gates: vec![
            GateResult {
                id: "lung_mask.area".to_owned(),
                passed: true,
                enforced: true,
                reason: ReasonCode::LungMask,
                words: "lungs are 31.0 % of the image, 10 to 60 % expected".to_owned(),
            },
            GateResult {
                id: "header.view".to_owned(),
                passed: false,
                enforced: false,
                reason: ReasonCode::ViewNotFrontal,
                words: "no view position in the header, PA or AP expected".to_owned(),
            },
        ],
        members: vec![member("resnet50", 0.881), member("vgg16", 0.865)],
        fused: vec![0.873, 0.127],
        member_spread: 0.016,
        decision: Decision::Undetermined,
        localised: true,
        heat_map: heat_map("mean of members"),
        member_heat_maps: vec![("resnet50".to_owned(), heat_map("cam")), ("vgg16".to_owned(), heat_map("hirescam"))],
        lung_mask: LungMask { side_pixels: 256, png_base64: String::new(), area_fraction: 0.31 },
        right_lung_heat_fraction: Some(0.032),
        left_lung_heat_fraction: Some(0.2475),
        lung_heat_fraction: Some(0.625),
        similar_cases: None,
    }
}

/// A run record with this outcome.
pub fn record(status: BundleStatus, outcome: RunOutcome) -> RunRecord {
    RunRecord {
        run_id: Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
        study_instance_uid: uid(STUDY),
        revision: 1,
        result_key: Sha256Digest::of(b"result"),
        configuration_sha256: Sha256Digest::of(b"configuration"),
        installation: Installation {
            id: Uuid::from_u128(0x0190_0000_0000_4000_8000_0000_0000_0002),
            device_uid: uid("2.25.1"),
            station_name: "HILUM-1".to_owned(),
            institution_name: "Sample Hospital".to_owned(),
        },
        started_at: datetime!(2020-03-15 10:15:30.123456 UTC),
        bundle: bundle(status),
        computed_with: Vec::new(),
        outcome,
    }
}

/// One image analysed.
pub fn analysed(status: BundleStatus, source: &SampleSource) -> RunRecord {
    let analysis = CxrAnalysis { images: vec![analysis(source.image())], excluded: Vec::new() };
    record(status, RunOutcome::Analysed(analysis))
}

/// Two images analysed, on the second a member failed and most heat lies beside the lungs, a third image excluded;
/// replaces an older report.
pub fn partial(sources: &[SampleSource; 3]) -> RunRecord {
    let mut second = analysis(sources[1].image());
    second.members[1] =
        MemberScore { name: "vgg16".to_owned(), probabilities: Vec::new(), failure: Some("out of memory".to_owned()) };
    second.fused = vec![0.12, 0.88];
    second.localised = false;
    second.left_lung_heat_fraction = None;
    second.lung_heat_fraction = Some(0.375);
    let excluded = ExcludedImage {
        source: sources[2].image(),
        reason: ReasonCode::ViewNotFrontal,
        words: "the header says LL, PA or AP expected".to_owned(),
    };
    let analysis = CxrAnalysis { images: vec![analysis(sources[0].image()), second], excluded: vec![excluded] };
    let mut record = record(BundleStatus::Unvalidated, RunOutcome::Analysed(analysis));
    record.revision = 2;
    record
}

/// A bundle that measures CT: no networks, no classes.
pub fn ct_bundle(status: BundleStatus) -> BundleIdentity {
    BundleIdentity {
        name: "ct-lung-measurement".to_owned(),
        version: "1.0.0".to_owned(),
        status,
        digest: Sha256Digest::of(b"ct bundle"),
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

/// Three slices of a CT.
pub fn ct_sources() -> [SampleSource; 3] {
    ["1.2.826.0.1.3680043.8.498.21", "1.2.826.0.1.3680043.8.498.22", "1.2.826.0.1.3680043.8.498.23"].map(|instance| {
        let series_instance_uid = "1.2.826.0.1.3680043.8.498.20".to_owned();
        SampleSource { modality: "CT", series_instance_uid, ..SampleSource::new(instance) }
    })
}

fn densities(volume_ml: f64) -> CtDensities {
    CtDensities {
        volume_ml,
        mean_hu: Some(-812.25),
        percentile_15_hu: Some(-921.0),
        band_fractions: [0.031, 0.869, 0.04, 0.035, 0.025],
    }
}

/// A CT of three slices, measured; the lower third of the left lung is empty, a localizer and a series left out.
pub fn ct_measured(status: BundleStatus, sources: &[SampleSource; 3]) -> RunRecord {
    let lung = |side, volume_ml: f64| CtLung {
        side,
        whole: densities(volume_ml),
        thirds: [densities(volume_ml / 4.0), densities(volume_ml / 2.0), densities(volume_ml / 4.0)],
    };
    let mut left = lung(Side::Left, 2400.5);
    left.thirds[2] = CtDensities { volume_ml: 0.0, mean_hu: None, percentile_15_hu: None, band_fractions: [0.0; 5] };
    let gate = |id: &str, passed: bool, words: &str| GateResult {
        id: id.to_owned(),
        passed,
        enforced: passed,
        reason: ReasonCode::LungMask,
        words: words.to_owned(),
    };
    let analysis = CtAnalysis {
        series: CtSeries {
            series_instance_uid: uid(&sources[0].series_instance_uid),
            acquisition_number: None,
            images: sources[..2].iter().map(SampleSource::image).collect(),
            why_chosen: "the only series that makes a volume: 2 slices 2.50 mm apart".to_owned(),
            size: [32, 40, 2],
            spacing_mm: [0.7, 0.7, 2.5],
            slice_thickness_mm: Some(2.5),
            convolution_kernel: Some("B30f".to_owned()),
            columns_reversed: false,
            rows_reversed: false,
        },
        gates: vec![
            gate("ct_lung.ratio", true, "the left lung is 0.89 times the right, 0.4 to 1.6 expected"),
            gate("ct_lung.airway", false, "no trachea found: the large airways may be part of the lungs"),
        ],
        method: CtMethod {
            segmentation: "hilum-lung-threshold 1".to_owned(),
            densitometry: "hilum-lung-densitometry 1".to_owned(),
            threshold_hu: Some(-487),
            band_limits_hu: [-950, -700, -500, -100],
        },
        lungs: vec![lung(Side::Right, 2700.0), left],
        sections: vec![CtSection {
            plane: CtPlane::Axial,
            index: 1,
            labels_png_base64: String::new(),
            lesions_png_base64: None,
        }],
        classification: None,
        lesions: None,
        not_judged: None,
        excluded_series: vec![ExcludedSeries {
            series_instance_uid: uid("1.2.826.0.1.3680043.8.498.24"),
            modality: "CT".to_owned(),
            images: 60,
            reason: ReasonCode::NotAxial,
            words: "the images are coronal, 90 degrees from axial; at most 10 expected".to_owned(),
            sources: Vec::new(),
        }],
        excluded: vec![ExcludedImage {
            source: sources[2].image(),
            reason: ReasonCode::Localizer,
            words: "the image is a localizer".to_owned(),
        }],
    };
    RunRecord { bundle: ct_bundle(status), ..record(status, RunOutcome::CtMeasured(Box::new(analysis))) }
}

/// The same with two networks, one of which failed.
pub fn ct_classified(status: BundleStatus, sources: &[SampleSource; 3]) -> RunRecord {
    let mut record = ct_measured(status, sources);
    let of_radiographs = analysed(status, &sources[0]).bundle;
    record.bundle = BundleIdentity {
        name: "ct-covnet".to_owned(),
        members: of_radiographs.members.iter().take(2).cloned().collect(),
        segmenter: None,
        ..of_radiographs
    };
    let names: Vec<String> = record.bundle.members.iter().map(|member| member.name.clone()).collect();
    if let RunOutcome::CtMeasured(analysis) = &mut record.outcome {
        analysis.classification = Some(CtClassification {
            without_maps: false,
            aggregation: "mean of the 3 highest slices of each class".to_owned(),
            slices: vec![0, 1],
            members: vec![
                MemberScore { name: names[0].clone(), probabilities: vec![0.625, 0.375], failure: None },
                MemberScore {
                    name: names[1].clone(),
                    probabilities: Vec::new(),
                    failure: Some("out of memory".to_owned()),
                },
            ],
            fused: vec![0.625, 0.375],
            member_spread: 0.0,
            decision: Decision::Undetermined,
            localised: true,
            key_slices: vec![CtKeySlice {
                slice: 1,
                output: Some(0.75),
                heat_map: HeatMap {
                    rows: 1,
                    columns: 2,
                    values: vec![1.0, 0.25],
                    maximum_activation: 0.5,
                    method: "mean of members".to_owned(),
                    frame: Frame::WHOLE,
                },
                lung_heat_fraction: Some(0.875),
            }],
        });
    }
    record
}

/// The same with two networks that outline lesions, one of which failed, and a rule that is satisfied.
pub fn ct_outlined(status: BundleStatus, sources: &[SampleSource; 3]) -> RunRecord {
    let mut record = ct_measured(status, sources);
    record.bundle = BundleIdentity {
        name: "ct-unet_plus_plus".to_owned(),
        classes: vec![class("Lesion", "882784691000119100", "COVID-19 pneumonia")],
        threshold: 1.0,
        pixel_threshold: Some(0.5),
        fusion: "mean_prob".to_owned(),
        members: vec![network("unet_plus_plus", "unet_plus_plus"), network("own", "torch_script")],
        ..record.bundle
    };
    if let RunOutcome::CtMeasured(analysis) = &mut record.outcome {
        analysis.lesions = Some(CtLesions {
            rule:
                "at least 10 mm2 of lesion in one quadrant of the image on 2 consecutive slices of the scan; a pixel \
                   is lesion from an output of 0.5 on, in the lungs only"
                    .to_owned(),
            members: vec![
                CtLesionMember { name: "unet_plus_plus".to_owned(), failure: None },
                CtLesionMember { name: "own".to_owned(), failure: Some("out of memory".to_owned()) },
            ],
            slices: vec![0, 1],
            slices_with_lesion: 2,
            longest_run: 2,
            run: Some(CtLesionRun { first_slice: 0, last_slice: 1, slices: 2, quadrant: CtQuadrant::LeftBack }),
            decision: Decision::Undetermined,
            // Of both lungs: the rule counts nothing beyond them.
            volume_ml: 30.25,
            lungs: vec![
                CtLungLesions { side: Side::Right, volume_ml: 0.0, fraction: Some(0.0) },
                CtLungLesions { side: Side::Left, volume_ml: 30.25, fraction: Some(0.0126) },
            ],
            largest_slice: Some(1),
        });
    }
    record
}

/// No score for this image.
pub fn not_analysed(source: &SampleSource, reason: ReasonCode) -> RunRecord {
    let words = "the header says LL, PA or AP expected".to_owned();
    let not_analysed = NotAnalysed { reason, words, sources: vec![source.image()] };
    record(BundleStatus::Unvalidated, RunOutcome::NotAnalysed(not_analysed))
}

/// Three images in two series.
pub fn three_sources() -> [SampleSource; 3] {
    let lateral_series = "1.2.826.0.1.3680043.8.498.3".to_owned();
    [
        SampleSource::new("1.2.826.0.1.3680043.8.498.11"),
        SampleSource::new("1.2.826.0.1.3680043.8.498.12"),
        SampleSource { series_instance_uid: lateral_series, ..SampleSource::new("1.2.826.0.1.3680043.8.498.13") },
    ]
}

/// An overlay of this size.
pub fn overlay(width: u32, height: u32) -> RgbPixels {
    RgbPixels { width, height, bytes: (0..3 * width * height).map(|n| (n % 251) as u8).collect() }
}

/// Options of the tests.
pub fn options() -> RenderOptions {
    let file_meta =
        FileMetaIds { implementation_class_uid: uid("2.25.99"), implementation_version_name: "HILUM_TEST".to_owned() };
    let mut options = RenderOptions::new(file_meta, Catalogue::new(&[]).unwrap());
    // Snapshots do not change with the version of the crate.
    options.software_version = "0.0.0".to_owned();
    options
}
