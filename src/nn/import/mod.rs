//! Brings weights from elsewhere into a bundle: PyTorch checkpoints (zip and legacy, safetensors) as safetensors under the
//! names that Hilum's networks have, TorchScript files as they are. Nothing in a file is executed while it is imported,
//! but for a TorchScript file, which is a program: it is loaded, and its `forward` is tried on one black image and on two.

mod checkpoint;
mod pickle;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use tch::nn::VarStore;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use self::checkpoint::{Checkpoint, StoredTensor};
use super::{
    architecture::Architecture,
    bundle::{MANIFEST_FILE_NAME, MAX_MANIFEST_BYTES, MAX_WEIGHTS_BYTES, read_bounded},
    classifier::{Classifier, ClassifierOptions},
    init::lock_neighbourhood,
    lesions,
    manifest::{Input, Manifest, MemberArchitecture, OutputKind, SegmenterArchitecture},
    r231::{self, R231},
    scan,
    scan_manifest::ScanArchitecture,
    script::{ScriptModel, ScriptVolume},
    unet::UNet,
    weights,
};
use crate::types::Sha256Digest;

/// Which network of a bundle gets the weights.
#[derive(Debug, Clone, PartialEq)]
pub enum ImportTarget {
    /// The lung segmenter.
    Segmenter,
    /// A classifier; one that the bundle does not have yet is added.
    Member {
        /// Its name.
        name: String,
        /// Its architecture; needed for a new member unless the file is TorchScript.
        architecture: Option<MemberArchitecture>,
        /// Its width factor; 1 for a new member unless given.
        width: Option<f64>,
    },
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Name of the new file in the bundle's folder.
    pub file_name: String,
    /// Its digest, as the manifest now says.
    pub sha256: Sha256Digest,
    /// Tensors in it; 0 for a TorchScript file.
    pub n_tensors: usize,
    /// Architecture of the network, as the manifest now says.
    pub architecture: String,
    /// What is allowed and may still be wrong, each with its remedy.
    pub notes: Vec<String>,
}

/// Why nothing was imported. The bundle is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bundle's manifest cannot be used.
    #[error("the manifest of the bundle in `{folder}` cannot be used:\n{}", problems.join("\n"))]
    Manifest {
        /// The bundle's folder.
        folder: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
    /// The file cannot be used.
    #[error("`{file}` cannot be imported:\n{}", problems.join("\n"))]
    File {
        /// The file.
        file: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
    /// What was asked for contradicts the bundle or the file.
    #[error("{0}")]
    Request(String),
    /// Writing fails.
    #[error("the bundle cannot be written: {0}; check space and permissions")]
    Io(#[from] std::io::Error),
}

/// Imports `file` as the weights of `target` into the bundle in `folder` and changes its manifest: file name, digest,
/// `version`. The comments of the manifest stay. The bundle is sound at every moment: the new file has a name of its own,
/// the manifest is replaced in one step, and the file that nothing names any more goes last.
///
/// # Errors
/// [`ImportError`], which names every tensor that is missing, unexpected, or of the wrong shape.
pub fn import(folder: &Path, file: &Path, target: &ImportTarget, version: &str) -> Result<Imported, ImportError> {
    let manifest_path = folder.join(MANIFEST_FILE_NAME);
    let manifest_error = |problems| ImportError::Manifest { folder: folder.display().to_string(), problems };
    let file_error = |problems| ImportError::File { file: file.display().to_string(), problems };
    // Two imports take turns; the lock ends with the file handle.
    let _lock = lock_neighbourhood(folder)?;
    let text = read_bounded(&manifest_path, MAX_MANIFEST_BYTES)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
        .map_err(|reason| manifest_error(vec![format!("{reason}; `hilum model init` makes a bundle to start from")]))?;
    let manifest = Manifest::parse(&text).map_err(manifest_error)?;
    let bytes = read_bounded(file, MAX_WEIGHTS_BYTES).map_err(|reason| file_error(vec![reason]))?;
    let checkpoint = checkpoint::read(&bytes).map_err(|reason| file_error(vec![reason]))?;
    let network = Network::choose(&manifest, target, &checkpoint)?;
    let (weights, n_tensors) = match checkpoint {
        Checkpoint::TorchScript => {
            network.try_script(&bytes).map_err(|problem| file_error(vec![problem]))?;
            (bytes, 0)
        }
        Checkpoint::Tensors(tensors) => {
            let (weights, n_tensors) =
                to_safetensors(&tensors, |name| network.ignores(name)).map_err(|problem| file_error(vec![problem]))?;
            network.try_weights(&weights).map_err(file_error)?;
            (weights, n_tensors)
        }
    };

    let sha256 = Sha256Digest::of(&weights);
    let digest = sha256.to_string();
    let extension = if network.architecture == TORCH_SCRIPT { "pt" } else { "safetensors" };
    let short_name: String = network.name.chars().take(MAX_NAME_IN_FILE_NAME).collect();
    let file_name = format!("{short_name}-{}.{extension}", digest.get(..12).unwrap_or(&digest));
    let (changed, replaced) = network.write_to(&text, &file_name, &digest, version).map_err(manifest_error)?;
    let checked = Manifest::parse(&changed).map_err(manifest_error)?;
    replace(&folder.join(&file_name), &weights)?;
    replace(&manifest_path, changed.as_bytes())?;
    if let Some(replaced) = replaced.filter(|name| checked.networks().all(|network| network.weights != name)) {
        match fs_err::remove_file(folder.join(replaced)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the weights that were replaced cannot be removed: nothing names them any more");
            }
            _ => {}
        }
    }
    let notes = network.member_idx.and_then(|member_idx| inception_note(&checked, member_idx)).into_iter().collect();
    Ok(Imported { file_name, sha256, n_tensors, architecture: network.architecture.to_owned(), notes })
}

/// Of a member that is Inception V3 and gets its input as torchvision's other networks do: torchvision's own takes another.
fn inception_note(manifest: &Manifest, member_idx: usize) -> Option<String> {
    let imagenet: [(f32, f32); 3] = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];
    let is_imagenet = |mean: &[f32], std: &[f32]| {
        let near = |a: f32, b: f32| (a - b).abs() < 1e-3;
        let channels = mean.iter().zip(std).zip(imagenet);
        mean.len() == imagenet.len()
            && channels.into_iter().all(|((mean, std), of)| near(*mean, of.0) && near(*std, of.1))
    };
    let member = manifest.members.get(member_idx)?;
    let of_pictures = || manifest.inputs_of(member).into_iter().any(|input| is_imagenet(&input.mean, &input.std));
    let of_scans = || manifest.input.scan().is_some_and(|scan| is_imagenet(&scan.mean, &scan.std));
    let is_inception = member.architecture == MemberArchitecture::Known(Architecture::InceptionV3);
    (is_inception && (of_pictures() || of_scans())).then(|| {
        "`mean` and `std` are ImageNet's, and torchvision's pretrained Inception V3 has `transform_input`, which makes of such \
         an input what `mean` and `std` of 0.5 give: Hilum does not, so set both to [0.5, 0.5, 0.5] if the checkpoint was \
         trained with it"
            .to_owned()
    })
}

/// The tensors of a checkpoint (safetensors, or a file of `torch.save`) as safetensors, without those that `is_ignored`
/// knows. The error says what the file is not.
pub(super) fn tensors_of(file: &Path, is_ignored: impl Fn(&str) -> bool) -> Result<Vec<u8>, String> {
    match checkpoint::read(&read_bounded(file, MAX_WEIGHTS_BYTES)?)? {
        Checkpoint::Tensors(tensors) => to_safetensors(&tensors, is_ignored).map(|(bytes, _)| bytes),
        Checkpoint::TorchScript => {
            Err("a TorchScript file is a program and cannot be trained: give the checkpoint of a network".to_owned())
        }
    }
}

const TORCH_SCRIPT: &str = MemberArchitecture::TorchScript.name();

/// Characters of a member's name in the name of its file, which may have 64.
const MAX_NAME_IN_FILE_NAME: usize = 38;

/// The network that gets the weights.
struct Network {
    /// Index into the members; `None` for the segmenter, one past the end for a new member.
    member_idx: Option<usize>,
    name: String,
    architecture: &'static str,
    declares: Declares,
    options: ClassifierOptions,
    width: f64,
    class_of_output: Vec<usize>,
    /// The class that its only logit is of; `None` where there is one for each output.
    one_logit_of: Option<usize>,
    input_shapes: Vec<[usize; 3]>,
}

/// Whose variables a file must hold.
#[derive(Clone, Copy)]
enum Declares {
    Segmenter(SegmenterArchitecture),
    Known(Architecture),
    Scan(ScanArchitecture),
    /// A program brings its own.
    Script,
    /// The same of one that sees a scan as a volume.
    VolumeScript,
    /// The same of one that outlines lesions.
    LesionScript,
}

impl Network {
    fn choose(manifest: &Manifest, target: &ImportTarget, checkpoint: &Checkpoint) -> Result<Self, ImportError> {
        let is_script = *checkpoint == Checkpoint::TorchScript;
        let kind = manifest.input.kind();
        match target {
            ImportTarget::Segmenter => {
                if is_script {
                    let words = "a lung segmenter cannot be a TorchScript file: give the network's checkpoint";
                    return Err(ImportError::Request(words.to_owned()));
                }
                // A bundle for CT that finds the lungs without weights gets a network for them.
                let of_kind =
                    if manifest.input.is_ct() { SegmenterArchitecture::R231 } else { SegmenterArchitecture::Unet };
                let present = manifest.segmenter.as_ref();
                let architecture = present.map_or(of_kind, |segmenter| segmenter.architecture);
                Ok(Self {
                    member_idx: None,
                    name: "segmenter".to_owned(),
                    architecture: architecture.name(),
                    declares: Declares::Segmenter(architecture),
                    options: ClassifierOptions::default(),
                    width: present.map_or(1.0, |segmenter| segmenter.width),
                    class_of_output: Vec::new(),
                    one_logit_of: None,
                    input_shapes: Vec::new(),
                })
            }
            ImportTarget::Member { name, architecture, width } => {
                let class_of_output = manifest.class_of_output();
                if class_of_output.is_empty() {
                    return Err(ImportError::Request(format!("a bundle of the kind `{kind}` has no classifiers")));
                }
                let member_idx = manifest.members.iter().position(|member| member.name == *name);
                let present = member_idx.and_then(|idx| manifest.members.get(idx));
                if is_script
                    && (width.is_some() || architecture.is_some_and(|of| of != MemberArchitecture::TorchScript))
                {
                    let words = "a TorchScript file brings its own architecture and width: give neither";
                    return Err(ImportError::Request(words.to_owned()));
                }
                let of_present = present.map(|member| member.architecture);
                let chosen =
                    if is_script { Some(MemberArchitecture::TorchScript) } else { architecture.or(of_present) };
                let (architecture, declares) = match chosen {
                    Some(of @ MemberArchitecture::Known(known)) => (of, Declares::Known(known)),
                    Some(of @ MemberArchitecture::Scan(scan)) => (of, Declares::Scan(scan)),
                    Some(of @ MemberArchitecture::TorchScript) if is_script => match manifest.input {
                        Input::Volume3d { .. } => (of, Declares::VolumeScript),
                        Input::Seg2d { .. } => (of, Declares::LesionScript),
                        _ => (of, Declares::Script),
                    },
                    Some(MemberArchitecture::TorchScript) | None => {
                        return Err(ImportError::Request(format!(
                            "the bundle has no member `{name}` of a known architecture: name the architecture of the \
                             checkpoint, one of {}",
                            MemberArchitecture::names().collect::<Vec<_>>().join(", ")
                        )));
                    }
                };
                let of_pictures = match present {
                    Some(member) => manifest.inputs_of(member),
                    None => manifest.preprocessing().into_iter().collect(),
                };
                let has_one_logit = present.is_some_and(|member| member.output == OutputKind::Sigmoid);
                let target_class_idx = manifest.classification.as_ref().map(|of| of.target_class_idx);
                let of_scans = manifest.input.scan().map(super::ScanPreprocessing::shape);
                Ok(Self {
                    member_idx: Some(member_idx.unwrap_or(manifest.members.len())),
                    name: name.clone(),
                    architecture: architecture.name(),
                    declares,
                    options: present.map(super::manifest::Member::classifier_options).unwrap_or_default(),
                    width: if is_script { 1.0 } else { width.or(present.map(|member| member.width)).unwrap_or(1.0) },
                    class_of_output,
                    one_logit_of: target_class_idx.filter(|_| has_one_logit),
                    input_shapes: of_pictures
                        .into_iter()
                        .map(super::manifest::Preprocessing::shape)
                        .chain(of_scans)
                        .collect(),
                })
            }
        }
    }

    /// Whether a tensor plays no part in inference.
    fn ignores(&self, name: &str) -> bool {
        match self.declares {
            Declares::Known(architecture) => architecture.ignores_tensor(name),
            Declares::Scan(architecture) => architecture.ignores_tensor(name),
            Declares::Segmenter(architecture) => architecture.ignores_tensor(name),
            Declares::Script | Declares::VolumeScript | Declares::LesionScript => false,
        }
    }

    /// Whether the tensors are those of the network.
    fn try_weights(&self, safetensors: &[u8]) -> Result<(), Vec<String>> {
        let mut store = VarStore::new(tch::Device::Cpu);
        let (root, n_outputs) = (store.root(), self.class_of_output.len() as i64);
        let declared = match self.declares {
            Declares::Known(architecture) => {
                Classifier::new(&root, architecture, self.width, n_outputs, self.options).map(drop)
            }
            Declares::Scan(architecture) => scan::declare(&root, architecture, self.width, n_outputs),
            Declares::Segmenter(SegmenterArchitecture::Unet) => UNet::new(&root, self.width).map(drop),
            Declares::Segmenter(SegmenterArchitecture::R231) => R231::new(&root, self.width).map(drop),
            Declares::Script | Declares::VolumeScript | Declares::LesionScript => Ok(()),
        };
        declared.map_err(|error| vec![super::error::cut(&error.to_string())])?;
        weights::fill(&mut store, safetensors, |name| self.ignores(name), self.one_logit_of)
    }

    /// Whether the file takes the bundle's input and gives its outputs, for one image and for two, or for a volume of two
    /// slices and of three.
    fn try_script(&self, bytes: &[u8]) -> Result<(), String> {
        if let (Declares::LesionScript, Some(shape)) = (self.declares, self.input_shapes.first()) {
            return lesions::try_script(&self.name, bytes, *shape);
        }
        let outputs = (self.class_of_output.clone(), self.one_logit_of);
        let model = ScriptModel::load(&self.name, bytes, outputs, tch::Device::Cpu)?;
        if let (Declares::VolumeScript, Some(shape)) = (self.declares, self.input_shapes.first()) {
            let model = ScriptVolume::of(model);
            return [2, 3].into_iter().try_for_each(|n_slices| {
                model.try_out(*shape, n_slices).map_err(|error| format!("of {n_slices} slices: {error}"))
            });
        }
        for n_images in [1, 2] {
            model.try_out(&self.input_shapes, n_images).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The manifest's text with the new weights, and the name of the file that they replace.
    fn write_to(
        &self,
        text: &str,
        file_name: &str,
        digest: &str,
        version: &str,
    ) -> Result<(String, Option<String>), Vec<String>> {
        let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| vec![error.to_string()])?;
        let wrong =
            || vec!["`members` is written in a form that cannot be changed: write `[[members]]` tables".to_owned()];
        let table = match self.member_idx {
            None => {
                let segmenter = document.entry("segmenter").or_insert_with(|| Item::Table(new_segmenter()));
                segmenter.as_table_mut().ok_or_else(wrong)?
            }
            Some(member_idx) => {
                let members = document.entry("members").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
                let members = members.as_array_of_tables_mut().ok_or_else(wrong)?;
                if member_idx == members.len() {
                    let mut table = Table::new();
                    table.insert("name", value(self.name.as_str()));
                    members.push(table);
                }
                members.get_mut(member_idx).ok_or_else(wrong)?
            }
        };
        let replaced = table.get("weights").and_then(Item::as_str).map(str::to_owned);
        table.insert("architecture", value(self.architecture));
        if self.architecture == TORCH_SCRIPT {
            table.remove("width");
        } else {
            table.insert("width", value(self.width));
        }
        table.insert("weights", value(file_name));
        table.insert("sha256", value(digest));
        table.insert("version", value(version));
        Ok((document.to_string(), replaced.filter(|name| name != file_name)))
    }
}

/// The section of lungmask's R231 in a bundle for CT that has no segmenter yet.
fn new_segmenter() -> Table {
    let mut table = Table::new();
    table.insert("input_side_pixels", value(i64::from(r231::INPUT_SIDE_PIXELS)));
    table.insert("normalisation", value("hu_range"));
    table
}

/// What plays no part in inference stays behind, double precision is narrowed, the rest keeps its type. Bytes of the file
/// and number of its tensors.
fn to_safetensors(
    tensors: &BTreeMap<String, StoredTensor>,
    is_ignored: impl Fn(&str) -> bool,
) -> Result<(Vec<u8>, usize), String> {
    let mut kept: Vec<(&str, Dtype, &[usize], Vec<u8>)> = Vec::new();
    for (name, tensor) in tensors.iter().filter(|(name, _)| !is_ignored(name)) {
        let (dtype, bytes) = match tensor.dtype {
            Dtype::F64 => {
                let narrowed = tensor.bytes.as_chunks::<8>().0.iter().flat_map(|bytes| {
                    let narrow = f64::from_le_bytes(*bytes) as f32;
                    narrow.to_le_bytes()
                });
                (Dtype::F32, narrowed.collect())
            }
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => (tensor.dtype, tensor.bytes.clone()),
            other => (other, tensor.bytes.clone()),
        };
        kept.push((name, dtype, &tensor.shape, bytes));
    }
    let views = kept
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| error.to_string())?;
    let bytes = safetensors::serialize(views, None).map_err(|error| error.to_string())?;
    Ok((bytes, kept.len()))
}

/// Durable before it has its name.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    let temporary = folder.join(format!(".{name}.part"));
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs_err::rename(&temporary, path)?;
    fs_err::File::open(&folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{super::init::test_bundle, *};
    use crate::nn::Bundle;

    fn member(name: &str, architecture: Option<Architecture>, width: Option<f64>) -> ImportTarget {
        ImportTarget::Member { name: name.to_owned(), architecture: architecture.map(MemberArchitecture::Known), width }
    }

    fn folder_with(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn weights_replace_those_of_a_member_and_the_bundle_stays_sound() {
        let (bundle, other) = (test_bundle(), test_bundle());
        let manifest = bundle.path().join(MANIFEST_FILE_NAME);
        let before = Bundle::open(bundle.path()).unwrap().identity();
        // The same network with another bias, as a trainer would leave it.
        let source = other.path().join("resnet50.safetensors");
        let mut bytes = fs_err::read(&source).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&0.125_f32.to_le_bytes());
        fs_err::write(&source, &bytes).unwrap();

        let imported = import(bundle.path(), &source, &member("resnet50", None, None), "site-2").unwrap();
        assert!(imported.file_name.starts_with("resnet50-") && imported.n_tensors > 100, "{imported:?}");
        let after = Bundle::open(bundle.path()).unwrap().identity();
        assert_eq!(after.members[1].version, "site-2");
        assert_eq!(after.members[1].weights_sha256, imported.sha256);
        assert_ne!(after.digest, before.digest);
        assert!(!bundle.path().join("resnet50.safetensors").exists(), "the old file is still there");
        assert!(fs_err::read_to_string(&manifest).unwrap().starts_with("# UNTRAINED"), "comments are lost");

        let again = import(bundle.path(), &source, &member("resnet50", None, None), "site-2").unwrap();
        assert_eq!((again, Bundle::open(bundle.path()).unwrap().identity()), (imported, after));
    }

    #[test]
    fn a_member_is_added_and_the_segmenter_replaced() {
        let bundle = test_bundle();
        let source = bundle.path().join("resnet34.safetensors");
        let new = member("second-opinion", Some(Architecture::ResNet34), Some(0.0625));
        import(bundle.path(), &source, &new, "1").unwrap();
        import(bundle.path(), &bundle.path().join("segmenter.safetensors"), &ImportTarget::Segmenter, "2").unwrap();
        let identity = Bundle::open(bundle.path()).unwrap().identity();
        assert_eq!(identity.members.len(), 5);
        assert_eq!(identity.members[4].name, "second-opinion");
        assert_eq!(identity.segmenter.unwrap().version, "2");
    }

    #[test]
    fn everything_that_does_not_fit_is_named_and_nothing_changes() {
        let bundle = test_bundle();
        let manifest = bundle.path().join(MANIFEST_FILE_NAME);
        let before = fs_err::read(&manifest).unwrap();
        let refused =
            |file: &Path, target: ImportTarget| import(bundle.path(), file, &target, "1").unwrap_err().to_string();
        let resnet50 = bundle.path().join("resnet50.safetensors");
        let error = refused(&resnet50, member("resnet34", None, None));
        assert!(error.contains("`layer1.0.conv1.weight`") && error.contains("layer1.0.conv3.weight"), "{error}");
        let error = refused(&resnet50, member("resnet50", None, Some(0.125)));
        assert!(error.contains("`conv1.weight` has shape [4, 3, 7, 7], expected [8, 3, 7, 7]"), "{error}");
        let error = refused(&resnet50, member("new", None, None));
        assert!(error.contains("name the architecture") && error.contains("resnet152"), "{error}");
        let error = refused(&bundle.path().join("absent.pth"), member("resnet50", None, None));
        assert!(error.contains("absent.pth"), "{error}");
        let (_folder, picture) = folder_with("picture.pth", b"GIF89a");
        let error = refused(&picture, member("resnet50", None, None));
        assert!(error.contains("torch.save"), "{error}");
        assert_eq!(fs_err::read(&manifest).unwrap(), before);
        assert!(Bundle::open(bundle.path()).is_ok());
    }

    /// As torchvision's recipe for two classes with `BCEWithLogitsLoss` leaves it.
    #[tokio::test]
    async fn a_checkpoint_of_one_output_answers_as_the_same_network_of_two() {
        let (bundle, other) = (test_bundle(), test_bundle());
        let source = bundle.path().join("resnet50.safetensors");
        let bytes = fs_err::read(&source).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        // Of two outputs: 0 of the second class; of one: the row of the first alone.
        let write = |path: &Path, n_outputs: usize| {
            let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
                .tensors()
                .into_iter()
                .map(|(name, view)| {
                    let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
                    assert_eq!(view.dtype(), Dtype::F32);
                    if name.starts_with("fc.") {
                        let row = data.len() / 2;
                        data.truncate(row);
                        data.resize(row * n_outputs, 0);
                        shape[0] = n_outputs;
                    }
                    (name, shape, data)
                })
                .collect();
            let views = tensors
                .iter()
                .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
            fs_err::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
        };
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(|n_outputs| {
            let path = folder.path().join(format!("{n_outputs}.safetensors"));
            write(&path, n_outputs);
            path
        });
        import(other.path(), &two, &member("resnet50", None, None), "1").unwrap();
        let refused = import(bundle.path(), &one, &member("resnet50", None, None), "1").unwrap_err().to_string();
        assert!(refused.contains("`fc.weight` has shape [1, 128], expected [2, 128]"), "{refused}");

        let manifest = bundle.path().join(MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&manifest).unwrap();
        let named = "architecture = \"resnet50\"\n";
        fs_err::write(&manifest, text.replace(named, &format!("{named}output = \"sigmoid\"\n"))).unwrap();
        let refused = import(bundle.path(), &two, &member("resnet50", None, None), "1").unwrap_err().to_string();
        assert!(refused.contains("`output` of the member is `sigmoid`, and no layer has one output"), "{refused}");
        import(bundle.path(), &one, &member("resnet50", None, None), "1").unwrap();

        let options = || crate::nn::EnsembleOptions { members: true, ..crate::nn::EnsembleOptions::default() };
        let mut answers = Vec::new();
        for folder in [&bundle, &other] {
            let ensemble = crate::nn::Ensemble::load(&Bundle::open(folder.path()).unwrap(), options()).unwrap();
            let values = crate::nn::seeded::uniform(5, "a", 3 * 64 * 64, -2.0, 2.0);
            let input = crate::nn::Planes { channels: 3, rows: 64, columns: 64, values };
            let errand = crate::types::Errand::default();
            answers.push(ensemble.classify(1, vec![input], 0, &errand).await.unwrap());
        }
        assert_eq!(answers[0], answers[1]);
        let (logits, sigmoid) = (&answers[0].logits, 1.0 / (1.0 + (-answers[0].logits[0]).exp()));
        assert!(logits[0] != 0.0 && logits[1] == 0.0, "{logits:?}");
        assert!((answers[0].probabilities[0] - sigmoid).abs() < 1e-6);
        assert!(answers[0].activation_map.as_ref().unwrap().values.iter().any(|value| *value != 0.0));
    }

    #[test]
    fn what_inception_was_pretrained_with_is_noted() {
        let bundle = test_bundle();
        let source = bundle.path().join("resnet34.safetensors");
        let manifest =
            Manifest::parse(&fs_err::read_to_string(bundle.path().join(MANIFEST_FILE_NAME)).unwrap()).unwrap();
        let with = |architecture, mean: [f32; 3], std: [f32; 3]| {
            let mut changed = manifest.clone();
            let Input::Image2d { preprocessing, .. } = &mut changed.input else { panic!("of radiographs") };
            (preprocessing.mean, preprocessing.std) = (mean, std);
            changed.members[0].architecture = MemberArchitecture::Known(architecture);
            inception_note(&changed, 0)
        };
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let note = with(Architecture::InceptionV3, mean, std).unwrap();
        assert!(note.contains("`transform_input`") && note.contains("[0.5, 0.5, 0.5]"), "{note}");
        assert_eq!(with(Architecture::InceptionV3, [0.5; 3], [0.5; 3]), None);
        assert_eq!(with(Architecture::ResNet34, mean, std), None);
        let imported = import(bundle.path(), &source, &member("resnet34", None, None), "2").unwrap();
        assert_eq!(imported.notes, Vec::<String>::new());
    }

    #[test]
    fn a_torch_script_file_becomes_a_member_when_its_outputs_fit() {
        let bundle = test_bundle();
        // A linear layer of two numbers: it takes no images.
        let script = include_bytes!("../../../tests/golden/checkpoints/script.pt");
        let (_folder, file) = folder_with("script.pt", script);
        let error = import(bundle.path(), &file, &member("own", None, None), "1").unwrap_err().to_string();
        assert!(error.contains("own"), "{error}");

        let corner = include_bytes!("../../../tests/golden/checkpoints/corner.pt");
        fs_err::write(&file, corner).unwrap();
        let imported = import(bundle.path(), &file, &member("own", None, None), "1").unwrap();
        assert_eq!((imported.architecture.as_str(), imported.n_tensors), ("torch_script", 0));
        let identity = Bundle::open(bundle.path()).unwrap().identity();
        assert_eq!(identity.members[4].architecture, "torch_script");
    }
}
