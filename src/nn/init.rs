//! Writes the untrained bundle: seeded weights that let every part of the path run before trained ones exist.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use tch::nn::VarStore;

use super::{
    architecture::Architecture,
    bundle::{Bundle, BundleError, MANIFEST_FILE_NAME},
    classifier::{Classifier, ClassifierOptions},
    covnet::BatchNormMode,
    gates::{CtGates, GatePolicies, Gates, LungLimits, PictureLimits},
    manifest::{
        Calibration, ChannelNormalisation, ChannelOrder, Classification, Equalisation, Fusion, Input, Manifest,
        MaskMode, Member, MemberArchitecture, OutputKind, Preprocessing, ResizeMode, Segmenter, SegmenterArchitecture,
        SegmenterNormalisation, UNTRAINED_VERSION, VoiMode, is_plain_name,
    },
    precision::NetworkPrecision,
    quadrants::CONSECUTIVE_SLICES,
    scan,
    scan_manifest::{Aggregation, LesionRule, LesionRuleMethod, ScanArchitecture, ScanChannel, ScanPreprocessing},
    seeded::seeded_values,
    unet::UNet,
};
use crate::types::{BundleIdentity, BundleStatus, ClassDefinition, Code, Sha256Digest, UNTRAINED_NOTICE};

/// Name of the bundle that [`init_untrained_bundle`] writes.
pub const UNTRAINED_BUNDLE_NAME: &str = "cxr-untrained";

/// Name of the bundle that [`init_ct_bundle`] writes.
pub const CT_BUNDLE_NAME: &str = "ct-lung-measurement";

/// Choices for an untrained bundle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UntrainedOptions {
    /// Chooses the weights.
    pub seed: u64,
    /// Side of the classifiers' square input in pixels.
    pub image_side_pixels: u32,
    /// Width factor of the ResNets.
    pub resnet_width: f64,
    /// Width factor of VGG-16, whose fully connected layers are most of the bundle.
    pub vgg_width: f64,
    /// Side of the segmenter's square input in pixels.
    pub segmenter_side_pixels: u32,
    /// Width factor of the segmenter.
    pub segmenter_width: f64,
}

impl UntrainedOptions {
    /// The published networks: 950 MB.
    pub const FULL_WIDTH: Self = Self {
        seed: 1,
        image_side_pixels: 224,
        resnet_width: 1.0,
        vgg_width: 1.0,
        segmenter_side_pixels: 256,
        segmenter_width: 1.0,
    };
}

impl Default for UntrainedOptions {
    /// About 9 MB.
    fn default() -> Self {
        Self {
            seed: 1,
            image_side_pixels: 224,
            resnet_width: 0.125,
            vgg_width: 0.0625,
            segmenter_side_pixels: 256,
            segmenter_width: 0.125,
        }
    }
}

/// Why the untrained bundle was not written.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Options outside the limits of a manifest.
    #[error("no bundle can be made with these options:\n{}", .0.join("\n"))]
    Options(Vec<String>),
    /// The folder holds something else.
    #[error(
        "folder `{0}` exists and holds something other than this untrained bundle: choose another folder, or move it \
         away if it is no longer needed"
    )]
    Occupied(String),
    /// Reading or writing fails.
    #[error("the untrained bundle cannot be written: {0}; check space and permissions")]
    Io(#[from] std::io::Error),
    /// Making the weights fails.
    #[error("the weights of the untrained bundle cannot be made: {0}")]
    Weights(String),
    /// What was written does not open.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Writes the untrained bundle into `folder` (such as `models/cxr-untrained`) and returns its identity. The same
/// options give the same bytes on every machine. If the bundle is already there nothing is written; files of it
/// that were damaged are replaced. It is complete or absent at any moment: it is made beside `folder` and renamed.
pub fn init_untrained_bundle(folder: &Path, options: UntrainedOptions) -> Result<BundleIdentity, InitError> {
    let name = bundle_name(folder, UNTRAINED_BUNDLE_NAME);
    write_bundle(folder, &bundle_files(&name, options)?)
}

/// Choices for an untrained bundle for chest CT.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScanOptions {
    /// Chooses the weights.
    pub seed: u64,
    /// The network; of [`MemberArchitecture::TorchScript`] there is none.
    pub architecture: MemberArchitecture,
    /// Factor on every channel count.
    pub width: f64,
    /// Instead of the publication's rows and columns of the input.
    pub size_pixels: Option<[u32; 2]>,
}

/// Writes an untrained bundle for chest CT into `folder` and returns its identity: one network with seeded weights, what it
/// sees of a scan as its publication describes it, the lungs by threshold. As with [`init_untrained_bundle`], the same
/// options give the same bytes, and the bundle is complete or absent.
///
/// # Errors
/// [`InitError`] for an architecture that looks at no CT, when the folder holds something else or cannot be written.
pub fn init_untrained_scan_bundle(folder: &Path, options: ScanOptions) -> Result<BundleIdentity, InitError> {
    let name = bundle_name(folder, options.architecture.name());
    let draft = scan_manifest(&name, options, Sha256Digest([0; 32]));
    let text = toml::to_string(&draft).map_err(|error| InitError::Weights(error.to_string()))?;
    Manifest::parse(&text).map_err(InitError::Options)?;
    let n_outputs = draft.class_of_output().len() as i64;
    let network = options.architecture.name();
    let weights = match options.architecture {
        MemberArchitecture::Known(architecture) => seeded_weights(options.seed, network, Some(architecture), |path| {
            Classifier::new(path, architecture, options.width, n_outputs, ClassifierOptions::default()).map(drop)
        })?,
        MemberArchitecture::Scan(architecture) => seeded_weights(options.seed, network, None, |path| {
            scan::declare(path, architecture, options.width, n_outputs)
        })?,
        MemberArchitecture::TorchScript => {
            let words =
                "a TorchScript file brings its own weights: make a bundle of another architecture and import it";
            return Err(InitError::Options(vec![words.to_owned()]));
        }
    };
    let manifest = scan_manifest(&name, options, Sha256Digest::of(&weights));
    let files = [(weights_name(network), weights), (MANIFEST_FILE_NAME.to_owned(), manifest_text(&manifest)?)];
    write_bundle(folder, &files)
}

fn weights_name(network: &str) -> String {
    format!("{network}.safetensors")
}

/// The name of the folder, where it can be that of a bundle.
fn bundle_name(folder: &Path, otherwise: &str) -> String {
    let name = folder.file_name().and_then(|name| name.to_str()).filter(|name| is_plain_name(name));
    name.unwrap_or(otherwise).to_owned()
}

/// Writes the bundle that measures the lungs in a chest CT without any network into `folder` (such as
/// `models/ct-lung-measurement`) and returns its identity. As with [`init_untrained_bundle`], the bytes are the same on
/// every machine, and the bundle is complete or absent.
///
/// # Errors
/// [`InitError`] when the folder holds something else or cannot be written.
pub fn init_ct_bundle(folder: &Path) -> Result<BundleIdentity, InitError> {
    let manifest = Manifest {
        name: CT_BUNDLE_NAME.to_owned(),
        version: "1.0.0".to_owned(),
        status: BundleStatus::Unvalidated,
        description:
            "Volume and densities of each lung in a chest CT, by threshold and connected components. No network, \
                      no trained weights, no diagnosis."
                .to_owned(),
        licence: "Apache-2.0".to_owned(),
        training_data: "none: nothing is trained".to_owned(),
        reference_performance: String::new(),
        performance: Vec::new(),
        input: Input::CtMeasurement { gates: CtGates::default() },
        classification: None,
        similar_cases: None,
        segmenter: None,
        members: Vec::new(),
    };
    let text = toml::to_string(&manifest).map_err(|error| InitError::Weights(error.to_string()))?;
    write_bundle(folder, &[(MANIFEST_FILE_NAME.to_owned(), text.into_bytes())])
}

/// Writes a bundle of trained weights: the manifest, whose digests are set here, and the weights of its networks by their
/// names in the manifest. As with [`init_untrained_bundle`], the bundle is complete or absent; a folder that holds
/// something else is left alone.
///
/// # Errors
/// [`InitError`] when the manifest is not valid, weights are missing, the folder is taken, or writing fails.
pub fn write_trained_bundle(
    folder: &Path,
    mut manifest: Manifest,
    weights: Vec<(String, Vec<u8>)>,
) -> Result<BundleIdentity, InitError> {
    let digest_of = |name: &str| {
        let found = weights.iter().find(|(file_name, _)| file_name == name);
        found
            .map(|(_, bytes)| Sha256Digest::of(bytes))
            .ok_or_else(|| InitError::Weights(format!("`{name}` is missing")))
    };
    if let Some(segmenter) = &mut manifest.segmenter {
        segmenter.sha256 = digest_of(&segmenter.weights)?;
    }
    for member in &mut manifest.members {
        member.sha256 = digest_of(&member.weights)?;
    }
    let text = toml::to_string(&manifest).map_err(|error| InitError::Weights(error.to_string()))?;
    Manifest::parse(&text).map_err(InitError::Options)?;
    let text = format!("# Every key is described in models/README.md.\n\n{text}");
    let files: Vec<(String, Vec<u8>)> =
        weights.into_iter().chain([(MANIFEST_FILE_NAME.to_owned(), text.into_bytes())]).collect();
    write_bundle(folder, &files)
}

/// Copies a bundle, with whatever lies beside its manifest, into `folder`, which is free or holds this very bundle, damaged.
///
/// # Errors
/// [`InitError`] when a file cannot be read or written, or `folder` holds something else.
pub fn copy_bundle(from: &Path, folder: &Path) -> Result<BundleIdentity, InitError> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
            files.push((name, fs_err::read(entry.path())?));
        }
    }
    write_bundle(folder, &files)
}

fn write_bundle(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<BundleIdentity, InitError> {
    let (parent, temporary) = neighbours(folder).ok_or_else(|| InitError::Occupied(folder.display().to_string()))?;
    fs_err::create_dir_all(&parent)?;
    // Two processes that start together take turns; the lock ends with the file handle.
    let parent = lock_neighbourhood(folder)?;

    let is_free = match fs_err::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error.into()),
    };
    if is_free {
        // Left over from an interrupted run.
        if fs_err::exists(&temporary)? {
            fs_err::remove_dir_all(&temporary)?;
        }
        fs_err::create_dir(&temporary)?;
        for (file_name, bytes) in files {
            write_durably(&temporary.join(file_name), bytes)?;
        }
        fs_err::File::open(&temporary)?.sync_all()?;
        fs_err::rename(&temporary, folder)?;
        parent.sync_all()?;
    } else {
        repair(folder, files)?;
    }
    Ok(Bundle::open(folder)?.identity())
}

/// Replaces the files of this very bundle that are missing or damaged.
fn repair(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<(), InitError> {
    let is_this_bundle = files.iter().any(|(file_name, bytes)| {
        file_name == MANIFEST_FILE_NAME && fs_err::read(folder.join(file_name)).is_ok_and(|found| found == *bytes)
    });
    if !is_this_bundle {
        return Err(InitError::Occupied(folder.display().to_string()));
    }
    for (file_name, bytes) in files {
        let path = folder.join(file_name);
        if fs_err::read(&path).is_ok_and(|found| found == *bytes) {
            continue;
        }
        let temporary = folder.join(format!(".{file_name}.part"));
        write_durably(&temporary, bytes)?;
        fs_err::rename(&temporary, &path)?;
    }
    fs_err::File::open(folder)?.sync_all()?;
    Ok(())
}

fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs_err::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The folder that holds `folder`, and where the bundle is made before it is renamed to `folder`.
fn neighbours(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let name = folder.file_name()?;
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".part");
    let temporary = parent.join(temporary);
    Some((parent, temporary))
}

/// The folder that holds `folder`, locked for whoever writes bundles, until the handle is dropped.
pub(super) fn lock_neighbourhood(folder: &Path) -> std::io::Result<fs_err::File> {
    let (parent, _) = neighbours(folder).ok_or(std::io::ErrorKind::InvalidFilename)?;
    let parent = fs_err::File::open(&parent)?;
    parent.file().lock()?;
    Ok(parent)
}

/// Every file of the bundle: name and bytes, the manifest last.
fn bundle_files(name: &str, options: UntrainedOptions) -> Result<Vec<(String, Vec<u8>)>, InitError> {
    // The options are validated with the manifest before any weights are made.
    let draft = manifest(name, options, &[Sha256Digest([0; 32]); 5]);
    toml::to_string(&draft)
        .map_err(|error| vec![error.to_string()])
        .and_then(|text| Manifest::parse(&text))
        .map_err(InitError::Options)?;

    let mut files = Vec::new();
    let segmenter =
        seeded_weights(options.seed, "segmenter", None, |path| UNet::new(path, options.segmenter_width).map(drop))?;
    files.push(("segmenter.safetensors".to_owned(), segmenter));
    let n_outputs = draft.classification.as_ref().map_or(0, Classification::n_outputs) as i64;
    for member in &draft.members {
        let MemberArchitecture::Known(architecture) = member.architecture else { continue };
        let weights = seeded_weights(options.seed, &member.name, Some(architecture), |path| {
            Classifier::new(path, architecture, member.width, n_outputs, member.classifier_options()).map(drop)
        })?;
        files.push((member.weights.clone(), weights));
    }
    let digests: Vec<Sha256Digest> = files.iter().map(|(_, bytes)| Sha256Digest::of(bytes)).collect();
    files.push((MANIFEST_FILE_NAME.to_owned(), manifest_text(&manifest(name, options, &digests))?));
    Ok(files)
}

/// The manifest of an untrained bundle as a file.
fn manifest_text(manifest: &Manifest) -> Result<Vec<u8>, InitError> {
    let text = toml::to_string(manifest).map_err(|error| InitError::Weights(error.to_string()))?;
    Ok(format!("# {UNTRAINED_NOTICE}\n# Every key is described in models/README.md.\n\n{text}").into_bytes())
}

/// The weights of a network as safetensors: every tensor from [`seeded_values`], named `<network>/<tensor>` in
/// the generator.
pub(super) fn seeded_weights(
    seed: u64,
    network: &str,
    architecture: Option<Architecture>,
    declare: impl FnOnce(&tch::nn::Path<'_>) -> Result<(), tch::TchError>,
) -> Result<Vec<u8>, InitError> {
    let store = VarStore::new(tch::Device::Cpu);
    declare(&store.root()).map_err(|error| InitError::Weights(super::error::cut(&error.to_string())))?;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = store
        .variables()
        .into_iter()
        .map(|(name, tensor)| {
            let shape: Vec<usize> = tensor.size().iter().map(|side| *side as usize).collect();
            let values = seeded_values(seed, network, architecture, &name, &shape);
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| InitError::Weights(error.to_string()))?;
    safetensors::serialize(views, None).map_err(|error| InitError::Weights(error.to_string()))
}

/// The manifest, with the digests of the segmenter's and the members' weights.
fn manifest(name: &str, options: UntrainedOptions, digests: &[Sha256Digest]) -> Manifest {
    let digest = |network_idx: usize| digests.get(network_idx).copied().unwrap_or(Sha256Digest([0; 32]));
    let version = version(options.seed);
    Manifest {
        name: name.to_owned(),
        version: "1".to_owned(),
        status: BundleStatus::Untrained,
        description: format!(
            "{UNTRAINED_NOTICE}. Seeded random numbers in the shape of a chest radiograph ensemble, to exercise the \
             whole path before trained weights exist."
        ),
        licence: "Apache-2.0".to_owned(),
        training_data: "None: these weights have seen no image.".to_owned(),
        reference_performance: "Keidar et al., Eur Radiol 2021;31:9654-9663, another set of weights of these \
             architectures: sensitivity 90.5 % (95 % CI 85-94), specificity 90.0 % (84.3-94), \
             n = 350 radiographs of four hospitals. These weights: untrained, no performance."
            .to_owned(),
        performance: Vec::new(),
        input: Input::Image2d {
            preprocessing: Preprocessing { image_side_pixels: options.image_side_pixels, ..radiograph_preprocessing() },
            gates: radiograph_gates(),
        },
        classification: Some(classification()),
        similar_cases: None,
        segmenter: Some(Segmenter {
            architecture: SegmenterArchitecture::Unet,
            width: options.segmenter_width,
            input_side_pixels: options.segmenter_side_pixels,
            normalisation: SegmenterNormalisation::ImageZScore,
            weights: "segmenter.safetensors".to_owned(),
            sha256: digest(0),
            version: version.clone(),
            precision: NetworkPrecision::default(),
        }),
        members: (1..)
            .zip(Architecture::KEIDAR_ENSEMBLE)
            .map(|(network_idx, architecture)| Member {
                name: architecture.name().to_owned(),
                architecture: MemberArchitecture::Known(architecture),
                inputs: Vec::new(),
                width: match architecture {
                    Architecture::Vgg16 => options.vgg_width,
                    _ => options.resnet_width,
                },
                weights: format!("{architecture}.safetensors"),
                sha256: digest(network_idx),
                version: version.clone(),
                batch_norm: BatchNormMode::Running,
                output: OutputKind::Softmax,
                explanation: None,
                attention: None,
                precision: NetworkPrecision::default(),
            })
            .collect(),
    }
}

/// The preprocessing of radiographs of the untrained bundle, which trained ones start from: 224 pixels, grey, grey and lung
/// mask, ImageNet's mean and standard deviation.
#[must_use]
pub fn radiograph_preprocessing() -> Preprocessing {
    Preprocessing {
        voi: VoiMode::Window,
        percentile_low: 0.5,
        percentile_high: 99.5,
        equalisation: Equalisation::None,
        top_crop_fraction: 0.0,
        resize: ResizeMode::Pad,
        image_side_pixels: 224,
        mask_mode: MaskMode::Channel3,
        crop_margin_fraction: 0.05,
        normalisation: ChannelNormalisation::MeanStd,
        range: None,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        channel_order: ChannelOrder::Rgb,
        single_channel: false,
    }
}

/// The gates of the same bundle.
#[must_use]
pub fn radiograph_gates() -> Gates {
    Gates {
        minimum_age_years: 18,
        accepted_views: vec!["PA".to_owned(), "AP".to_owned(), String::new()],
        minimum_lung_area_fraction: 0.10,
        maximum_lung_area_fraction: 0.60,
        minimum_lung_area_ratio: 0.4,
        maximum_lung_area_ratio: 2.5,
        minimum_rows: 512,
        minimum_columns: 512,
        maximum_member_spread: 1.0,
        policies: GatePolicies::default(),
        picture: PictureLimits::default(),
        lungs: LungLimits::default(),
        features: None,
    }
}

fn version(seed: u64) -> String {
    format!("{UNTRAINED_VERSION}seed{seed}")
}

/// Two classes, nothing calibrated.
fn classification() -> Classification {
    Classification {
        target_class_idx: 0,
        threshold: 0.5,
        grey_zone: None,
        fusion: Fusion::MeanProb,
        label_map: None,
        calibration: Calibration::None {},
        prior: None,
        classes: vec![
            class("COVID-19", "882784691000119100", "COVID-19 pneumonia"),
            class("No COVID-19 pattern", "17621005", "Normal"),
        ],
    }
}

/// The manifest of an untrained bundle for chest CT.
fn scan_manifest(name: &str, options: ScanOptions, sha256: Sha256Digest) -> Manifest {
    let network = options.architecture.name();
    let outlines = options.architecture == MemberArchitecture::Scan(ScanArchitecture::UNetPlusPlus);
    let remark = if outlines { UNET_PLUS_PLUS_REMARK } else { "" };
    Manifest {
        name: name.to_owned(),
        version: "1".to_owned(),
        status: BundleStatus::Untrained,
        description: format!(
            "{UNTRAINED_NOTICE}. Seeded random numbers in the shape of the network {network}, to exercise the whole path \
             before trained weights exist.{remark}"
        ),
        licence: "Apache-2.0".to_owned(),
        training_data: "None: these weights have seen no image.".to_owned(),
        reference_performance: String::new(),
        performance: Vec::new(),
        input: scan_input(options),
        classification: (!outlines).then(classification),
        similar_cases: None,
        segmenter: None,
        members: vec![Member {
            name: network.to_owned(),
            architecture: options.architecture,
            width: options.width,
            inputs: Vec::new(),
            weights: weights_name(network),
            sha256,
            version: version(options.seed),
            batch_norm: BatchNormMode::Running,
            output: OutputKind::Softmax,
            explanation: None,
            attention: None,
            precision: NetworkPrecision::default(),
        }],
    }
}

/// What is known of the input that UNet++ saw.
const UNET_PLUS_PLUS_REMARK: &str = " Of Chen et al. (Sci Rep 2020;10:19196) the rule of one quadrant on three consecutive slices and the input of 512 x 512 \
     pixels are from memory; window, smallest area and probability are ours.";

/// What a network sees of a scan, as its publication describes it (the sources are named in docs/networks.md).
fn scan_input(options: ScanOptions) -> Input {
    use ScanChannel::{LungMask, MaskedSlice, Slice};
    let plain = |window_hu: [f64; 2], [rows, columns]: [u32; 2], channels: &[ScanChannel]| ScanPreprocessing {
        window_hu,
        outside_lungs_black: false,
        crop_to_lungs: false,
        crop_margin_mm: 0.0,
        resize: ResizeMode::Stretch,
        rows: options.size_pixels.map_or(rows, |[rows, _]| rows),
        columns: options.size_pixels.map_or(columns, |[_, columns]| columns),
        channels: channels.to_vec(),
        normalisation: ChannelNormalisation::MeanStd,
        range: None,
        mean: vec![0.0; channels.len()],
        std: vec![1.0; channels.len()],
        minimum_lung_cm2: 2.5,
        slice_spacing_mm: None,
        maximum_slices: 64,
    };
    let (aggregation, gates) = (Aggregation::TopKMean { k: 3 }, CtGates::default());
    match options.architecture {
        // Its pictures were 8-bit and cut to the lungs: the window is ours.
        MemberArchitecture::Scan(ScanArchitecture::MultiScale) => Input::Slices2d {
            preprocessing: ScanPreprocessing {
                outside_lungs_black: true,
                normalisation: ChannelNormalisation::ImageZScore,
                ..plain([-1000.0, 400.0], [224, 224], &[Slice])
            },
            aggregation,
            gates,
        },
        MemberArchitecture::Scan(ScanArchitecture::Covnet) => Input::Slices2d {
            preprocessing: ScanPreprocessing {
                outside_lungs_black: true,
                ..plain([-1250.0, 250.0], [512, 512], &[Slice; 3])
            },
            aggregation,
            gates,
        },
        // Its slices were JPEG pictures of unknown windows: the window is ours.
        MemberArchitecture::Scan(ScanArchitecture::DreNet) => Input::Slices2d {
            preprocessing: ScanPreprocessing {
                outside_lungs_black: true,
                crop_to_lungs: true,
                mean: vec![0.485, 0.456, 0.406],
                std: vec![0.229, 0.224, 0.225],
                ..plain([-1200.0, 500.0], [600, 600], &[Slice; 3])
            },
            aggregation: Aggregation::Mean {},
            gates,
        },
        MemberArchitecture::Scan(ScanArchitecture::DeCoVNet) => Input::Volume3d {
            preprocessing: ScanPreprocessing {
                crop_to_lungs: true,
                minimum_lung_cm2: 0.0,
                slice_spacing_mm: Some(1.0),
                maximum_slices: 400,
                ..plain([-1200.0, 600.0], [224, 336], &[Slice, LungMask])
            },
            gates,
        },
        // Every slice with lung in its own matrix: what is left out would break a run of consecutive slices.
        MemberArchitecture::Scan(ScanArchitecture::UNetPlusPlus) => Input::Seg2d {
            preprocessing: ScanPreprocessing {
                resize: ResizeMode::Pad,
                mean: vec![0.485, 0.456, 0.406],
                std: vec![0.229, 0.224, 0.225],
                minimum_lung_cm2: 0.0,
                maximum_slices: 1000,
                ..plain([-1200.0, 500.0], [512, 512], &[Slice; 3])
            },
            rule: LesionRule {
                method: LesionRuleMethod::ConsecutiveSlices,
                slices: CONSECUTIVE_SLICES as u32,
                minimum_area_mm2: 10.0,
                probability: 0.5,
                // Lungs that are found by threshold leave out what holds no air: the densest lesions.
                lungs_only: false,
            },
            lesion: class("Lesion", "52988006", "Lesion"),
            gates,
        },
        // As Jin et al. do.
        MemberArchitecture::Known(_) | MemberArchitecture::TorchScript => Input::Slices2d {
            preprocessing: ScanPreprocessing {
                crop_to_lungs: true,
                maximum_slices: 35,
                ..plain([-1200.0, 500.0], [224, 224], &[LungMask, MaskedSlice, Slice])
            },
            aggregation,
            gates,
        },
    }
}

fn class(label: &str, code_value: &str, code_meaning: &str) -> ClassDefinition {
    ClassDefinition {
        label: label.to_owned(),
        code: Code { value: code_value.to_owned(), scheme: "SCT".to_owned(), meaning: code_meaning.to_owned() },
    }
}

/// A small untrained bundle in a folder of its own.
#[cfg(test)]
pub(super) fn test_bundle() -> tempfile::TempDir {
    let folder = tempfile::TempDir::new().unwrap();
    init_untrained_bundle(folder.path(), TEST_OPTIONS).unwrap();
    folder
}

/// A bundle of half a megabyte that runs in milliseconds.
#[cfg(test)]
const TEST_OPTIONS: UntrainedOptions = UntrainedOptions {
    seed: 1,
    image_side_pixels: 64,
    resnet_width: 0.0625,
    vgg_width: 0.03125,
    segmenter_side_pixels: 64,
    segmenter_width: 0.125,
};

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::MetadataExt};

    use tempfile::TempDir;

    use super::*;

    /// Name, inode and bytes of every entry of a folder.
    fn contents(folder: &Path) -> BTreeMap<OsString, (u64, Vec<u8>)> {
        fs_err::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), (entry.metadata().unwrap().ino(), fs_err::read(entry.path()).unwrap()))
            })
            .collect()
    }

    fn bytes(folder: &Path) -> BTreeMap<OsString, Vec<u8>> {
        contents(folder).into_iter().map(|(name, (_, bytes))| (name, bytes)).collect()
    }

    /// The digests of the bundle that `hilum model init` writes by default: whoever changes them changes the
    /// identity of every result made with it.
    #[test]
    fn the_default_bundle_is_the_same_on_every_machine() {
        let models = TempDir::new().unwrap();
        let folder = models.path().join("cxr-untrained");
        let identity = init_untrained_bundle(&folder, UntrainedOptions::default()).unwrap();
        let n_bytes: usize = bytes(&folder).values().map(Vec::len).sum();
        assert!(n_bytes < 10_000_000, "{n_bytes} bytes");
        insta::assert_debug_snapshot!(identity);
    }

    #[test]
    fn a_second_run_writes_nothing_and_other_seeds_give_other_weights() {
        let models = TempDir::new().unwrap();
        let folder = models.path().join("deep/cxr-untrained");
        let first = init_untrained_bundle(&folder, TEST_OPTIONS).unwrap();
        let before = contents(&folder);
        assert_eq!(init_untrained_bundle(&folder, TEST_OPTIONS).unwrap(), first);
        assert_eq!(contents(&folder), before);

        let other = models.path().join("other");
        let second = init_untrained_bundle(&other, UntrainedOptions { seed: 2, ..TEST_OPTIONS }).unwrap();
        assert_ne!(second.members[0].weights_sha256, first.members[0].weights_sha256);
        assert_ne!(second.digest, first.digest);
    }

    #[test]
    fn what_an_interrupted_run_left_is_cleared_away() {
        let models = TempDir::new().unwrap();
        let folder = models.path().join("cxr-untrained");
        let temporary = models.path().join(".cxr-untrained.part");
        fs_err::create_dir(&temporary).unwrap();
        fs_err::write(temporary.join("vgg16.safetensors"), b"half").unwrap();
        init_untrained_bundle(&folder, TEST_OPTIONS).unwrap();
        assert!(!temporary.exists());
        assert_eq!(bytes(&folder), bytes(test_bundle().path()));
    }

    #[test]
    fn damaged_files_are_replaced() {
        let folder = test_bundle();
        let sound = bytes(folder.path());
        fs_err::write(folder.path().join("vgg16.safetensors"), b"half").unwrap();
        fs_err::remove_file(folder.path().join("segmenter.safetensors")).unwrap();
        init_untrained_bundle(folder.path(), TEST_OPTIONS).unwrap();
        assert_eq!(bytes(folder.path()), sound);
    }

    #[test]
    fn a_folder_with_something_else_is_left_alone() {
        let folder = TempDir::new().unwrap();
        fs_err::write(folder.path().join("manifest.toml"), "name = \"trained for months\"").unwrap();
        let before = contents(folder.path());
        let error = init_untrained_bundle(folder.path(), TEST_OPTIONS).unwrap_err();
        assert!(matches!(&error, InitError::Occupied(_)), "{error}");
        assert!(error.to_string().contains("choose another folder"), "{error}");
        assert_eq!(contents(folder.path()), before);
    }

    #[test]
    fn runs_at_the_same_time_take_turns() {
        let models = TempDir::new().unwrap();
        let folder = models.path().join("cxr-untrained");
        let identities: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| init_untrained_bundle(&folder, TEST_OPTIONS).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(identities.iter().all(|identity| *identity == identities[0]));
        assert_eq!(fs_err::read_dir(models.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_ct_bundle_has_no_networks_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join(CT_BUNDLE_NAME);
        let identity = init_ct_bundle(&folder).unwrap();
        assert_eq!(identity.networks().count(), 0);
        assert_eq!(identity.status, BundleStatus::Unvalidated);
        assert_eq!(init_ct_bundle(&folder).unwrap(), identity);
        let manifest = Bundle::open(&folder).unwrap().manifest().clone();
        assert_eq!(manifest.input.kind(), "ct_measurement");
    }

    #[test]
    fn impossible_options_are_explained() {
        let models = TempDir::new().unwrap();
        let options = UntrainedOptions { image_side_pixels: 0, resnet_width: f64::NAN, ..TEST_OPTIONS };
        let error = init_untrained_bundle(&models.path().join("x"), options).unwrap_err().to_string();
        assert!(error.contains("image_side_pixels") && error.contains("members[0].width"), "{error}");
        assert_eq!(fs_err::read_dir(models.path()).unwrap().count(), 0);
    }
}
