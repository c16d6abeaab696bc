//! A bundle: a folder `models/<name>/` with `manifest.toml` and the weights files that it names.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::manifest::{Fusion, Input, Manifest};
use crate::types::{BundleIdentity, MemberIdentity, Sha256Digest};

/// Name of the manifest in the bundle's folder.
pub const MANIFEST_FILE_NAME: &str = "manifest.toml";

/// Largest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

/// Largest weights file, in bytes: four times VGG-16 in f32.
pub const MAX_WEIGHTS_BYTES: u64 = 2_300_000_000;

/// Operating threshold of a rule: its output is 1 where it is satisfied and 0 elsewhere.
const RULE_SATISFIED: f64 = 1.0;

/// Why a folder is not a sound bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The manifest cannot be read.
    #[error(
        "the manifest of the bundle in `{folder}` cannot be read: {reason}; give the folder that holds \
         `manifest.toml`, or make an untrained bundle with `hilum model init`"
    )]
    Unreadable {
        /// The bundle's folder.
        folder: String,
        /// Why not.
        reason: String,
    },
    /// The manifest is wrong.
    #[error("the manifest of the bundle in `{folder}` is not valid:\n{}", problems.join("\n"))]
    Manifest {
        /// The bundle's folder.
        folder: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
    /// Weights files are missing, too large, or not the ones that the manifest means.
    #[error("the weights of the bundle in `{folder}` are not as its manifest says:\n{}", problems.join("\n"))]
    Weights {
        /// The bundle's folder.
        folder: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
}

/// A bundle whose manifest is valid and whose weights files have the digests that the manifest gives.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
    digest: Sha256Digest,
}

impl Bundle {
    /// Reads the manifest in `folder` and checks the digest of every weights file (about a second per gigabyte).
    /// The weights themselves are read, and checked once more, by [`Ensemble::load`](super::Ensemble::load).
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let folder_text = folder.display().to_string();
        let unreadable = |reason: String| BundleError::Unreadable { folder: folder_text.clone(), reason };
        let manifest_bytes = read_bounded(&folder.join(MANIFEST_FILE_NAME), MAX_MANIFEST_BYTES).map_err(unreadable)?;
        let text = std::str::from_utf8(&manifest_bytes)
            .map_err(|error| unreadable(format!("`{MANIFEST_FILE_NAME}` is not UTF-8 text ({error})")))?;
        let manifest = Manifest::parse(text)
            .map_err(|problems| BundleError::Manifest { folder: folder_text.clone(), problems })?;

        let feature_space = match &manifest.input {
            Input::Image2d { gates, .. } => gates.features.as_ref().map(|gate| (gate.file.as_str(), gate.sha256)),
            _ => None,
        };
        let networks = manifest.networks().map(|network| (network.weights, network.sha256));
        let problems: Vec<String> = networks
            .chain(feature_space)
            .filter_map(|(file_name, sha256)| weights_problem(folder, file_name, sha256))
            .collect();
        if !problems.is_empty() {
            return Err(BundleError::Weights { folder: folder_text, problems });
        }

        let mut hasher = Sha256::new();
        hasher.update(&manifest_bytes);
        for network in manifest.networks() {
            hasher.update(network.sha256.0);
        }
        let digest = Sha256Digest(hasher.finalize().into());
        Ok(Self { folder: folder.to_owned(), manifest, digest })
    }

    /// What the bundle says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What results record of the bundle. The digest is SHA-256 over the manifest's bytes followed by the
    /// digests of the weights (32 bytes each; segmenter, then members in order).
    #[must_use]
    pub fn identity(&self) -> BundleIdentity {
        let manifest = &self.manifest;
        let classification = manifest.classification.as_ref();
        let outlined = match &manifest.input {
            Input::Seg2d { rule, lesion, .. } => Some((rule, lesion)),
            _ => None,
        };
        BundleIdentity {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            status: manifest.status,
            digest: self.digest,
            classes: classification.map_or_else(
                || outlined.iter().map(|(_, lesion)| (*lesion).clone()).collect(),
                |of| of.classes.clone(),
            ),
            target_class_idx: classification.map_or(0, |of| of.target_class_idx),
            threshold: classification.map(|of| of.threshold).or(outlined.map(|_| RULE_SATISFIED)).unwrap_or(0.0),
            pixel_threshold: outlined.map(|(rule, _)| rule.probability),
            grey_zone: classification.and_then(|of| of.grey_zone),
            fusion: classification
                .map(|of| of.fusion)
                .or(outlined.map(|_| Fusion::MeanProb))
                .map_or("none", Fusion::name)
                .to_owned(),
            calibration: classification.and_then(|of| of.calibration.id()).map(str::to_owned),
            reference_performance: manifest.reference_performance.clone(),
            segmenter: manifest.segmenter.as_ref().map(|segmenter| MemberIdentity {
                name: "lung segmenter".to_owned(),
                architecture: segmenter.architecture.name().to_owned(),
                version: segmenter.version.clone(),
                weights_sha256: segmenter.sha256,
            }),
            members: manifest
                .members
                .iter()
                .map(|member| MemberIdentity {
                    name: member.name.clone(),
                    architecture: member.architecture.name().to_owned(),
                    version: member.version.clone(),
                    weights_sha256: member.sha256,
                })
                .collect(),
        }
    }
}

/// Reads a regular file of at most `max_bytes`.
pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let (file, size_bytes) = open_bounded(path, max_bytes)?;
    let mut bytes = Vec::with_capacity(size_bytes as usize);
    // One byte more than allowed shows a file that grew meanwhile.
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(path, bytes.len() as u64, max_bytes));
    }
    Ok(bytes)
}

fn open_bounded(path: &Path, max_bytes: u64) -> Result<(fs_err::File, u64), String> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let metadata = fs_err::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err(format!("`{}` is not a regular file", path.display()));
    }
    if metadata.len() > max_bytes {
        return Err(too_large(path, metadata.len(), max_bytes));
    }
    let file = fs_err::File::open(path).map_err(|error| error.to_string())?;
    Ok((file, metadata.len()))
}

fn too_large(path: &Path, size_bytes: u64, max_bytes: u64) -> String {
    format!("`{}` has {size_bytes} bytes, more than the allowed {max_bytes}", path.display())
}

fn weights_problem(folder: &Path, file_name: &str, expected: Sha256Digest) -> Option<String> {
    match file_digest(&folder.join(file_name)) {
        Ok(found) => digest_problem(file_name, expected, found),
        Err(reason) => Some(format!("`{file_name}` cannot be read: {reason}; copy the file into the bundle's folder")),
    }
}

/// What to say when a file is not the one that the manifest means.
pub(super) fn digest_problem(file_name: &str, expected: Sha256Digest, found: Sha256Digest) -> Option<String> {
    (expected != found).then(|| {
        format!(
            "`{file_name}` has SHA-256 {found}, the manifest expects {expected}: restore the file, or correct the \
             manifest if the new weights are meant"
        )
    })
}

/// SHA-256 of a regular file of at most [`MAX_WEIGHTS_BYTES`].
fn file_digest(path: &Path) -> Result<Sha256Digest, String> {
    let (file, _) = open_bounded(path, MAX_WEIGHTS_BYTES)?;
    let mut file = file.take(MAX_WEIGHTS_BYTES + 1);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    let mut n_bytes = 0;
    loop {
        let n_read = file.read(&mut buffer).map_err(|error| error.to_string())?;
        if n_read == 0 {
            break;
        }
        n_bytes += n_read as u64;
        hasher.update(&buffer[..n_read]);
    }
    if n_bytes > MAX_WEIGHTS_BYTES {
        return Err(too_large(path, n_bytes, MAX_WEIGHTS_BYTES));
    }
    Ok(Sha256Digest(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::{super::init::test_bundle, *};
    use crate::types::BundleStatus;

    /// Opens the test bundle after one change of its manifest's text.
    fn open_changed(from: &str, to: &str) -> Result<Bundle, BundleError> {
        let folder = test_bundle();
        change_manifest(folder.path(), from, to);
        Bundle::open(folder.path())
    }

    fn change_manifest(folder: &Path, from: &str, to: &str) {
        let path = folder.join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.contains(from), "`{from}` is not in the manifest:\n{text}");
        fs_err::write(path, text.replace(from, to)).unwrap();
    }

    const UNCALIBRATED: &str = "[classification.calibration]\nmethod = \"none\"\n";

    fn flip_last_byte(path: &Path) -> (Sha256Digest, Sha256Digest) {
        let mut bytes = fs_err::read(path).unwrap();
        let before = Sha256Digest::of(&bytes);
        *bytes.last_mut().unwrap() ^= 1;
        fs_err::write(path, &bytes).unwrap();
        (before, Sha256Digest::of(&bytes))
    }

    #[test]
    fn identity_names_networks_and_changes_with_the_manifest() {
        let folder = test_bundle();
        let identity = Bundle::open(folder.path()).unwrap().identity();
        assert_eq!(identity.name, "cxr-untrained");
        assert_eq!(identity.status, BundleStatus::Untrained);
        assert_eq!(identity.fusion, "mean_prob");
        assert_eq!(identity.calibration, None);
        assert_eq!(identity.classes[identity.target_class_idx].code.value, "882784691000119100");
        let architectures: Vec<_> = identity.members.iter().map(|member| member.architecture.as_str()).collect();
        assert_eq!(architectures, ["resnet34", "resnet50", "resnet152", "vgg16"]);
        assert_eq!(identity.segmenter.as_ref().unwrap().architecture, "unet");
        let weights = fs_err::read(folder.path().join("vgg16.safetensors")).unwrap();
        assert_eq!(identity.members[3].weights_sha256, Sha256Digest::of(&weights));

        assert_eq!(Bundle::open(folder.path()).unwrap().identity(), identity);
        change_manifest(folder.path(), "threshold = 0.5", "threshold = 0.6");
        assert_ne!(Bundle::open(folder.path()).unwrap().identity().digest, identity.digest);
    }

    #[test]
    fn a_calibrated_bundle_says_so() {
        let bundle = open_changed(
            UNCALIBRATED,
            "[classification.calibration]\nmethod = \"temperature\"\ntemperature = 1.5\nid = \"site-a\"\nn = 9\n\
             date = \"2026-11-28\"\n",
        );
        assert_eq!(bundle.unwrap().identity().calibration.as_deref(), Some("site-a"));
    }

    #[test]
    fn changed_and_missing_weights_are_named_together() {
        let folder = test_bundle();
        let (expected, found) = flip_last_byte(&folder.path().join("resnet50.safetensors"));
        fs_err::remove_file(folder.path().join("vgg16.safetensors")).unwrap();
        let BundleError::Weights { problems, .. } = Bundle::open(folder.path()).unwrap_err() else {
            panic!("another error was expected")
        };
        assert_eq!(problems.len(), 2);
        for part in ["`resnet50.safetensors`", &found.to_string(), &expected.to_string(), "restore the file"] {
            assert!(problems[0].contains(part), "{part}: {}", problems[0]);
        }
        assert!(problems[1].starts_with("`vgg16.safetensors` cannot be read:"), "{}", problems[1]);
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_refused_with_their_line() {
        for (from, to, expected) in [
            ("threshold = 0.5", "threshold = 0.5\ntreshold = 0.5", "treshold"),
            ("image_side_pixels = 64", "image_side_pixels = 64\nclahe = true", "clahe"),
            (UNCALIBRATED, "[classification.calibration]\nmethod = \"none\"\nid = \"x\"\n", "id"),
            ("fusion = \"mean_prob\"", "fusion = \"loudest\"", "mean_logit"),
            ("architecture = \"resnet34\"", "architecture = \"lenet5\"", "resnet152"),
            ("architecture = \"resnet34\"", "architecture = \"lenet5\"", "torch_script"),
            ("kind = \"image2d\"", "kind = \"image4d\"", "ct_measurement"),
            ("method = \"none\"\n\n[input.gates]", "method = \"clahe\"\nclip = 2\n\n[input.gates]", "clip_limit"),
            ("threshold = 0.5", "threshold = \"half\"", "half"),
            ("status = \"untrained\"", "", "status"),
        ] {
            let error = open_changed(from, to).unwrap_err();
            assert!(matches!(error, BundleError::Manifest { .. }), "{error}");
            assert!(error.to_string().contains(expected) && error.to_string().contains("line "), "{error}");
        }
    }

    #[test]
    fn how_members_are_explained_and_cases_found_is_checked() {
        let of_vgg = |key: &str| ("weights = \"vgg16.safetensors\"", format!("{key}\nweights = \"vgg16.safetensors\""));
        let cases = |keys: &str| ("[segmenter]", format!("[similar_cases]\n{keys}\n\n[segmenter]"));
        for ((from, to), expected) in [
            (
                of_vgg("explanation = \"cam\""),
                "has no `explanation` `cam` for every image: give one of hirescam, gradcam",
            ),
            (of_vgg("explanation = \"integrated_gradients\""), "give one of hirescam, gradcam, gradcam_plus_plus, or"),
            (of_vgg("explanation = \"gradcam\""), ""),
            (
                of_vgg("attention = { attn_norm = \"softmax\", fusion = \"concat\", tap = \"before_pool\" }"),
                "only `attention_vgg16` has `attention`",
            ),
            (cases("count = 21"), "`similar_cases.count` is 21: give 1 to 20"),
            (cases("member = \"resnet9\""), "`similar_cases.member` is `resnet9`: give one of resnet34, resnet50"),
            (cases("member = \"resnet50\"\ncount = 7"), ""),
        ] {
            match open_changed(from, &to) {
                Ok(_) => assert_eq!(expected, "", "{to}"),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
            }
        }
    }

    #[test]
    fn ranges_outputs_and_maps_that_cannot_be_are_refused() {
        let of_vgg = |key: &str| ("weights = \"vgg16.safetensors\"", format!("{key}\nweights = \"vgg16.safetensors\""));
        let range = |words: &str| {
            ("normalisation = \"mean_std\"\n", format!("normalisation = \"mean_std\"\nrange = {words}\n"))
        };
        let z_score =
            ("normalisation = \"mean_std\"\n", "normalisation = \"image_z_score\"\nrange = [-1, 1]\n".to_owned());
        let third = "\n[[classification.classes]]\nlabel = \"Other\"\n\
                     [classification.classes.code]\nvalue = \"74964007\"\nscheme = \"SCT\"\nmeaning = \"Other\"\n";
        let sigmoid = "output = \"sigmoid\"\n";
        for ((from, to), expected) in [
            (of_vgg(sigmoid), ""),
            (of_vgg("output = \"softmax\""), ""),
            (of_vgg("output = \"tanh\""), "unknown variant `tanh`, expected `softmax` or `sigmoid`"),
            (of_vgg("explanation = \"none\""), ""),
            (of_vgg("explanation = \"nothing\""), "unknown explanation `nothing`: give `none` or one of cam, gradcam"),
            (range("[-1024, 1024]"), ""),
            (
                range("[1024, -1024]"),
                "`input.preprocessing.range` is 1024 to -1024: give two rising numbers from -100000 to",
            ),
            (range("[0, 1e6]"), "give two rising numbers from -100000 to 100000"),
            (range("[0]"), "expected an array of length 2"),
            (z_score, "`normalisation` is `image_z_score`, which gives every picture its own range: leave one"),
        ] {
            match open_changed(from, &to) {
                Ok(_) => assert_eq!(expected, "", "{to}"),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{to}: {error}"),
            }
        }
        let folder = test_bundle();
        let path = folder.path().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&path).unwrap();
        let problems = |text: &str| Manifest::parse(text).unwrap_err().join("\n");
        let (from, to) = of_vgg(sigmoid);
        let one_output = text.replace(from, &to);
        assert_eq!(
            problems(&(one_output.clone() + third)),
            "`members[3].output` is `sigmoid` and `classification.classes` has 3 entries: one output tells two classes apart; \
             give two classes, or `softmax` and a network with an output for each"
        );
        let mapped = one_output.replace("threshold = 0.5\n", "threshold = 0.5\nlabel_map = [0, 0, 1]\n");
        assert_eq!(
            problems(&mapped),
            "`members[3].output` is `sigmoid` and `classification.label_map` is there: one output is the target class's; \
             leave one of the two out"
        );
        let (from, to) = range("[-90000, 90000]");
        let small = |line: &str| if line.starts_with("std = ") { "std = [0.001, 1, 1]" } else { line }.to_owned();
        let found = problems(&text.replace(from, &to).lines().map(small).collect::<Vec<_>>().join("\n"));
        assert!(
            found.contains("make values of 9") && found.contains("networks are given 1000000 at most: narrow"),
            "{found}"
        );
    }

    #[test]
    fn weights_file_names_cannot_leave_the_folder() {
        for name in ["../vgg16.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".safetensors", "vgg16.pt", ""] {
            let error = open_changed("weights = \"vgg16.safetensors\"", &format!("weights = {name:?}")).unwrap_err();
            let BundleError::Manifest { problems, .. } = &error else { panic!("{error}") };
            assert!(problems[0].starts_with("`members[3].weights` is "), "{name}: {error}");
            assert!(problems[0].contains("plain name of a file"), "{error}");
        }
    }

    #[test]
    fn all_bad_values_are_reported_at_once_with_their_remedy() {
        let folder = test_bundle();
        for (from, to) in [
            ("threshold = 0.5", "threshold = 1.5"),
            ("target_class_idx = 0", "target_class_idx = 2"),
            ("label = \"No COVID-19 pattern\"", "label = \"COVID-19\""),
            ("percentile_low = 0.5", "percentile_low = 99.9"),
            ("input_side_pixels = 64", "input_side_pixels = 100"),
            ("name = \"resnet50\"", "name = \"resnet34\""),
            ("width = 0.03125", "width = -1.0"),
            ("weights = \"vgg16.safetensors\"", "weights = \"resnet34.safetensors\""),
            ("minimum_lung_area_fraction = 0.1", "minimum_lung_area_fraction = 0.7"),
            ("accepted_views = [\"PA\", \"AP\", \"\"]", "accepted_views = [\"pa\"]"),
            (
                UNCALIBRATED,
                "[classification.calibration]\nmethod = \"temperature\"\ntemperature = 0.0\nid = \"\"\nn = 0\n\
                 date = \"yesterday\"\n",
            ),
            ("threshold = 1.5", "threshold = 1.5\ngrey_zone = [0.6, 0.4]\nlabel_map = [0, 2]"),
            ("top_crop_fraction = 0.0", "top_crop_fraction = 0.9"),
        ] {
            change_manifest(folder.path(), from, to);
        }
        let error = Bundle::open(folder.path()).unwrap_err();
        let BundleError::Manifest { problems, .. } = &error else { panic!("{error}") };
        for key in [
            "classification.threshold",
            "classification.grey_zone",
            "classification.label_map",
            "classification.target_class_idx",
            "classification.classes[1].label",
            "input.preprocessing.percentile_low",
            "input.preprocessing.top_crop_fraction",
            "segmenter.input_side_pixels",
            "members[1].name",
            "members[3].width",
            "members[3].weights",
            "input.gates.minimum_lung_area_fraction",
            "input.gates.accepted_views",
            "classification.calibration.temperature",
            "classification.calibration.id",
            "classification.calibration.n",
            "classification.calibration.date",
        ] {
            let problem = problems.iter().find(|problem| problem.starts_with(&format!("`{key}`")));
            assert!(problem.is_some_and(|problem| problem.contains("give")), "{key}: {error}");
        }
        assert_eq!(problems.len(), 17, "{error}");
    }

    #[test]
    fn precision_is_a_matter_of_each_network() {
        use super::super::{NetworkPrecision, Precision};
        let with = |tolerance: &str| {
            let weights = "weights = \"vgg16.safetensors\"\n";
            open_changed(weights, &format!("{weights}precision = {{ cuda = \"float16\"{tolerance} }}\n"))
        };
        let of = |bundle: &Bundle| bundle.manifest().members.iter().map(|member| member.precision).collect::<Vec<_>>();
        let unsaid = NetworkPrecision::default();
        assert_eq!((unsaid.cuda, unsaid.tolerance), (Precision::Float32, 0.01));
        let half = NetworkPrecision { cuda: Precision::Float16, tolerance: 0.01 };
        assert_eq!(of(&with("").unwrap()), [unsaid, unsaid, unsaid, half]);
        let narrow = NetworkPrecision { tolerance: 0.002, ..half };
        assert_eq!(of(&with(", tolerance = 0.002").unwrap())[3], narrow);
        for tolerance in ["0.02", "0.0", "-0.001", "nan"] {
            let error = with(&format!(", tolerance = {tolerance}")).unwrap_err().to_string();
            assert!(error.contains("`members[3].precision.tolerance` is") && error.contains("up to 0.01"), "{error}");
        }
        let error = with(", cpu = \"float16\"").unwrap_err().to_string();
        assert!(error.contains("unknown field `cpu`"), "{error}");
        // Of the segmenter, and not of a program.
        let weights = "weights = \"segmenter.safetensors\"\n";
        let bundle = open_changed(weights, &format!("{weights}precision.cuda = \"bfloat16\"\n")).unwrap();
        assert_eq!(bundle.manifest().segmenter.as_ref().unwrap().precision.cuda, Precision::Bfloat16);
        for (cuda, is_refused) in [("float16", true), ("bfloat16", true), ("tf32", false), ("float32", false)] {
            let program = format!("architecture = \"torch_script\"\nprecision.cuda = \"{cuda}\"\n");
            let error = open_changed("architecture = \"resnet34\"\n", &program).unwrap_err().to_string();
            assert_eq!(error.contains("`members[0].precision.cuda` is"), is_refused, "{error}");
        }
    }

    #[test]
    fn folders_without_a_readable_manifest_are_refused() {
        let empty = TempDir::new().unwrap();
        let error = Bundle::open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("hilum model init"), "{error}");

        let manifest = empty.path().join(MANIFEST_FILE_NAME);
        fs_err::create_dir(&manifest).unwrap();
        let error = Bundle::open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        fs_err::remove_dir(&manifest).unwrap();

        fs_err::File::create(&manifest).unwrap().set_len(MAX_MANIFEST_BYTES + 1).unwrap();
        let error = Bundle::open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("more than the allowed"), "{error}");

        fs_err::write(&manifest, b"name = \"\xFF\"").unwrap();
        let error = Bundle::open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("not UTF-8"), "{error}");
    }

    #[test]
    fn oversized_weights_are_refused_before_they_are_read() {
        let folder = test_bundle();
        let weights = fs_err::OpenOptions::new().write(true).open(folder.path().join("vgg16.safetensors")).unwrap();
        // A sparse file: it takes no space.
        weights.set_len(MAX_WEIGHTS_BYTES + 1).unwrap();
        let error = Bundle::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("more than the allowed"), "{error}");
    }
}
