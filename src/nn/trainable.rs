//! A network of radiographs whose weights can change: what `train/` sees of the networks.
//!
//! The network is the very one that infers. It trains while its variables want gradients (batch normalisation then uses
//! the batch's own statistics) and infers once they are [frozen](Trainable::freeze): a trainer keeps one of each kind and
//! copies the weights over. Tensors leave the room through here only, and only to `train/`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, TchError, Tensor, nn::VarStore};

use super::{
    architecture::Architecture,
    attention_vgg::AttentionOptions,
    bundle::Bundle,
    classifier::{Classifier, ClassifierOptions},
    ensemble::z_score,
    error::{NnError, cut},
    import::tensors_of,
    manifest::{MemberArchitecture, SegmenterArchitecture},
    seeded,
    unet::UNet,
    weights,
};
use crate::types::Device;

/// Which network, and how large.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NetworkPlan {
    /// The U-Net that finds the lungs.
    Segmenter {
        /// Factor on every channel count, above 0 up to 2.
        width: f64,
    },
    /// A classifier.
    Classifier {
        /// Which.
        architecture: Architecture,
        /// Factor on every channel count, above 0 up to 2.
        width: f64,
        /// How many logits it gives.
        n_outputs: usize,
        /// Of an attention network; the others have none.
        attention: AttentionOptions,
    },
}

/// With how many bits weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// IEEE half precision; a number beyond 65504 becomes an infinity, which loading refuses.
    Float16,
    /// IEEE single precision.
    Float32,
}

/// A network with its variables on one device.
#[derive(Debug)]
pub struct Trainable {
    plan: NetworkPlan,
    network: Network,
    store: VarStore,
}

#[derive(Debug)]
enum Network {
    Segmenter(UNet),
    Classifier(Classifier),
}

impl NetworkPlan {
    /// The stages that can be frozen, from the input to the head, which is the last.
    #[must_use]
    pub fn stages(self) -> Vec<&'static str> {
        match self {
            Self::Segmenter { .. } => {
                vec!["down1", "down2", "down3", "down4", "down5", "up4", "up3", "up2", "up1", "out"]
            }
            Self::Classifier { architecture, .. } => match architecture {
                Architecture::ResNet18
                | Architecture::ResNet34
                | Architecture::ResNet50
                | Architecture::ResNet101
                | Architecture::ResNet152
                | Architecture::DetracResNet50 => vec!["stem", "layer1", "layer2", "layer3", "layer4", "head"],
                Architecture::Vgg16 | Architecture::Vgg19 | Architecture::AttentionVgg16 => {
                    vec!["group1", "group2", "group3", "group4", "group5", "head"]
                }
                Architecture::InceptionV3 | Architecture::InceptionResNetV2 => {
                    vec!["stem", "mixed5", "mixed6", "mixed7", "head"]
                }
            },
        }
    }

    /// The stage that a variable belongs to.
    #[must_use]
    pub fn stage_of(self, name: &str) -> &'static str {
        let first = name.split('.').next().unwrap_or(name);
        let known = self.stages();
        let head = known.last().copied().unwrap_or("head");
        let architecture = match self {
            Self::Segmenter { .. } => return known.into_iter().find(|stage| *stage == first).unwrap_or(head),
            Self::Classifier { architecture, .. } => architecture,
        };
        let stage = match architecture {
            Architecture::Vgg16 | Architecture::Vgg19 | Architecture::AttentionVgg16 => {
                let layer = name.strip_prefix("features.").and_then(|rest| rest.split('.').next());
                // The first layer of each group in torchvision's numbering.
                let starts: [u32; 5] =
                    if architecture == Architecture::Vgg19 { [0, 5, 10, 19, 28] } else { [0, 5, 10, 17, 24] };
                let layer: Option<u32> = layer.and_then(|number| number.parse().ok());
                layer
                    .and_then(|layer| known.get(starts.iter().filter(|start| **start <= layer).count().wrapping_sub(1)))
            }
            Architecture::InceptionV3 | Architecture::InceptionResNetV2 => {
                let prefixes: [(&str, usize); 11] = [
                    ("Conv2d_", 0),
                    ("Mixed_5", 1),
                    ("Mixed_6", 2),
                    ("Mixed_7", 3),
                    ("conv2d_7b", 3),
                    ("conv2d_", 0),
                    ("mixed_5b", 1),
                    ("mixed_6a", 2),
                    ("mixed_7a", 3),
                    ("repeat_1", 2),
                    ("repeat_2", 3),
                ];
                let other = match first {
                    "repeat" => Some(1),
                    "block8" => Some(3),
                    _ => None,
                };
                let found = prefixes.iter().find(|(prefix, _)| first.starts_with(prefix)).map(|(_, stage)| *stage);
                found.or(other).and_then(|stage| known.get(stage))
            }
            _ if matches!(first, "conv1" | "bn1") => known.first(),
            _ => known.iter().find(|stage| **stage == first),
        };
        stage.copied().unwrap_or(head)
    }

    /// The layers that make the logits.
    fn last_layers(self) -> &'static [&'static str] {
        match self {
            Self::Segmenter { .. } => &[],
            Self::Classifier { architecture, .. } => architecture.last_layers(),
        }
    }

    /// Whether a checkpoint's tensor of this name plays no part.
    fn ignores(self, name: &str) -> bool {
        match self {
            Self::Segmenter { .. } => SegmenterArchitecture::Unet.ignores_tensor(name),
            Self::Classifier { architecture, .. } => architecture.ignores_tensor(name),
        }
    }

    /// Name in messages.
    const fn name(self) -> &'static str {
        match self {
            Self::Segmenter { .. } => "unet",
            Self::Classifier { architecture, .. } => architecture.name(),
        }
    }
}

impl Trainable {
    /// A network whose variables are all zero and want gradients.
    ///
    /// # Errors
    /// [`NnError`] when the device is absent or libtorch refuses.
    pub fn declare(plan: NetworkPlan, device: Device) -> Result<Self, NnError> {
        super::require_devices(&[device])?;
        let store = VarStore::new(device_of(device));
        let network = match plan {
            NetworkPlan::Segmenter { width } => UNet::new(&store.root(), width).map(Network::Segmenter),
            NetworkPlan::Classifier { architecture, width, n_outputs, attention } => {
                let options = ClassifierOptions { attention, explanation: None };
                Classifier::new(&store.root(), architecture, width, n_outputs as i64, options).map(Network::Classifier)
            }
        };
        let network = network.map_err(|error| NnError::torch(plan.name(), &error))?;
        Ok(Self { plan, network, store })
    }

    /// The segmenter of a bundle, frozen.
    ///
    /// # Errors
    /// [`NnError`] when the bundle has no U-Net or its weights do not fit.
    pub fn segmenter_of(bundle: &Bundle, device: Device) -> Result<(Self, usize), NnError> {
        let problem = |words: String| NnError::Load { bundle: bundle.manifest().name.clone(), problems: vec![words] };
        let segmenter = bundle.manifest().segmenter.as_ref();
        let Some(segmenter) = segmenter.filter(|of| of.architecture == SegmenterArchitecture::Unet) else {
            return Err(problem("it has no lung segmenter for radiographs: give a bundle that has one".to_owned()));
        };
        let network = Self::declare(NetworkPlan::Segmenter { width: segmenter.width }, device)?;
        network.start_from(&bundle.folder().join(&segmenter.weights)).map_err(|words| problem(words.join("\n")))?;
        network.freeze(&network.plan.stages());
        Ok((network, segmenter.input_side_pixels as usize))
    }

    /// Which network it is.
    #[must_use]
    pub const fn plan(&self) -> NetworkPlan {
        self.plan
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> tch::Device {
        self.store.device()
    }

    /// Every variable by its name, those that batch normalisation keeps for itself included.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, Tensor> {
        self.store.variables().into_iter().collect()
    }

    /// Seeded starting values, distributed as torchvision (for Inception-ResNet-v2 timm) distributes them; the U-Net by
    /// He et al. (ICCV 2015).
    ///
    /// # Errors
    /// [`NnError`] when libtorch refuses.
    pub fn initialise(&self, seed: u64) -> Result<(), NnError> {
        let variables = self.variables();
        for (name, variable) in &variables {
            let weight = name.rsplit_once('.').and_then(|(layer, _)| variables.get(&format!("{layer}.weight")));
            let values = initial_values(self.plan, seed, name, variable, weight);
            set(variable, &values).map_err(|error| NnError::torch(self.plan.name(), &error))?;
        }
        Ok(())
    }

    /// Takes over the weights of a file (safetensors, or a checkpoint of `torch.save` with torchvision's names). A last
    /// layer of another number of classes stays as it is; its variables are returned.
    ///
    /// # Errors
    /// Every tensor that is missing, unexpected or of the wrong shape.
    pub fn start_from(&self, file: &Path) -> Result<Vec<String>, Vec<String>> {
        let of_file = |problem: String| format!("`{}`: {problem}", file.display());
        let bytes = tensors_of(file, |name| self.plan.ignores(name)).map_err(|problem| vec![of_file(problem)])?;
        weights::copy_into(&self.store, &bytes, |name| self.plan.ignores(name), self.plan.last_layers())
            .map_err(|problems| problems.into_iter().map(of_file).collect())
    }

    /// Takes over the weights of a bundle's classifier or, for a segmenter, of its segmenter, as
    /// [`start_from`](Self::start_from). Without `member` the first of the same architecture is taken.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn start_from_bundle(&self, bundle: &Bundle, member: Option<&str>) -> Result<Vec<String>, Vec<String>> {
        let manifest = bundle.manifest();
        let file = match self.plan {
            NetworkPlan::Segmenter { .. } => manifest.segmenter.as_ref().map(|segmenter| &segmenter.weights),
            NetworkPlan::Classifier { architecture, .. } => manifest
                .members
                .iter()
                .filter(|of| of.architecture == MemberArchitecture::Known(architecture))
                .find(|of| member.is_none_or(|name| of.name == name))
                .map(|of| &of.weights),
        };
        let Some(file) = file else {
            let which = member.map(|name| format!(" named `{name}`")).unwrap_or_default();
            let (bundle, network) = (&manifest.name, self.plan.name());
            return Err(vec![format!(
                "bundle `{bundle}` has no {network}{which}: give a bundle and member of this architecture"
            )]);
        };
        self.start_from(&bundle.folder().join(file))
    }

    /// The variables of these stages want no gradients any more, and their batch normalisation uses the stored
    /// statistics; with all of its [stages](NetworkPlan::stages) frozen the network infers.
    pub fn freeze(&self, stages: &[&str]) {
        for (name, variable) in self.store.variables() {
            if variable.requires_grad() && stages.contains(&self.plan.stage_of(&name)) {
                let _ = variable.set_requires_grad(false);
            }
        }
    }

    /// Logits while training: `n x outputs` of `n x 3 x rows x columns`, or `n x rows x columns` of `n x 1 x rows x
    /// columns`. `dropout` is the share of features that is left out where the publication has dropout.
    ///
    /// # Errors
    /// [`NnError`] when libtorch refuses.
    pub fn training_logits(&self, input: &Tensor, dropout: f64) -> Result<Tensor, NnError> {
        let logits = match &self.network {
            Network::Segmenter(network) => network.logits(input),
            Network::Classifier(network) => network.training_logits(input, dropout),
        };
        logits.map_err(|error| NnError::torch(self.plan.name(), &error))
    }

    /// Logits as they are at work, and the embedding of each image; a segmenter has none.
    ///
    /// # Errors
    /// [`NnError`] when libtorch refuses.
    pub fn logits_and_embedding(&self, input: &Tensor) -> Result<(Tensor, Option<Tensor>), NnError> {
        let answer = tch::no_grad(|| match &self.network {
            Network::Segmenter(network) => network.logits(input).map(|logits| (logits, None)),
            Network::Classifier(network) => network.head(input).map(|(logits, embedding)| (logits, Some(embedding))),
        });
        answer.map_err(|error| NnError::torch(self.plan.name(), &error))
    }

    /// Copies values into the variables of the same names.
    ///
    /// # Errors
    /// [`NnError`] when a variable is missing or of another shape.
    pub fn copy_from(&self, values: &BTreeMap<String, Tensor>) -> Result<(), NnError> {
        for (name, mut variable) in self.store.variables() {
            let Some(value) = values.get(&name) else {
                let words = format!("`{name}` is missing in the weights to take over");
                return Err(NnError::Torch { network: self.plan.name().to_owned(), words });
            };
            tch::no_grad(|| variable.f_copy_(value)).map_err(|error| NnError::torch(self.plan.name(), &error))?;
        }
        Ok(())
    }

    /// The weights as a safetensors file.
    ///
    /// # Errors
    /// [`NnError`] when libtorch refuses.
    pub fn to_safetensors(&self, storage: Storage) -> Result<Vec<u8>, NnError> {
        write_tensors(&self.variables(), storage, None).map_err(|error| NnError::torch(self.plan.name(), &error))
    }
}

/// Tensors as a safetensors file, with a text beside them.
///
/// # Errors
/// When libtorch refuses.
pub fn write_tensors(
    tensors: &BTreeMap<String, Tensor>,
    storage: Storage,
    text: Option<String>,
) -> Result<Vec<u8>, TchError> {
    let mut written = Vec::new();
    for (name, tensor) in tensors {
        written.push((name, bytes_of(tensor, storage)?));
    }
    let views = written.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let text = text.map(|text| HashMap::from([(TEXT.to_owned(), text)]));
    safetensors::serialize(views, text).map_err(|error| TchError::Torch(cut(&error.to_string())))
}

/// What [`write_tensors`] wrote in single precision: the tensors, on the processor, and the text.
///
/// # Errors
/// What is unsound about the file, in words.
pub fn read_tensors(bytes: &[u8]) -> Result<(BTreeMap<String, Tensor>, Option<String>), String> {
    let unsound = |error: &dyn std::fmt::Display| format!("not a sound safetensors file ({error})");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| unsound(&error))?;
    let text = header.metadata().as_ref().and_then(|texts| texts.get(TEXT).cloned());
    let file = SafeTensors::deserialize(bytes).map_err(|error| unsound(&error))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(format!("`{name}` has type {:?}, expected F32", view.dtype()));
        }
        let shape: Vec<i64> = view.shape().iter().map(|side| *side as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, Kind::Float).map_err(|error| unsound(&error))?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, text))
}

/// The key of the text in a safetensors file.
const TEXT: &str = "text";

/// The input of a lung segmenter of a square canvas with samples 0 to 1, as inference normalises it.
#[must_use]
pub fn segmenter_input(canvas: &[f32]) -> Vec<f32> {
    z_score(canvas)
}

/// libtorch's name of a device.
#[must_use]
pub fn device_of(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(device_idx) => tch::Device::Cuda(device_idx),
    }
}

/// Type, shape and bytes of a tensor, as safetensors wants them.
struct Written {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for &Written {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn bytes_of(tensor: &Tensor, storage: Storage) -> Result<Written, TchError> {
    let (kind, dtype) = match storage {
        Storage::Float16 => (Kind::Half, Dtype::F16),
        Storage::Float32 => (Kind::Float, Dtype::F32),
    };
    let tensor = tensor.f_detach()?.f_to(tch::Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
    let n_elements = tensor.numel();
    let mut bytes = vec![0; n_elements * kind.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, n_elements)?;
    Ok(Written { dtype, shape: tensor.size().iter().map(|side| *side as usize).collect(), bytes })
}

/// Starting values of one variable; `weight` is that of its layer.
fn initial_values(plan: NetworkPlan, seed: u64, name: &str, variable: &Tensor, weight: Option<&Tensor>) -> Vec<f32> {
    let size = variable.size();
    let n_elements = variable.numel();
    let leaf = name.rsplit_once('.').map_or(name, |(_, leaf)| leaf);
    let weight_size = weight.map(Tensor::size).unwrap_or_default();
    let fan_in = weight_size.iter().skip(1).product::<i64>().max(1) as f64;
    let uniform = |bound: f64| seeded::uniform(seed, name, n_elements, -bound as f32, bound as f32);
    let normal = |std: f64| seeded::normal(seed, name, n_elements, std as f32);
    let architecture = match plan {
        NetworkPlan::Segmenter { .. } => None,
        NetworkPlan::Classifier { architecture, .. } => Some(architecture),
    };
    match (leaf, weight_size.len()) {
        ("running_var", _) | ("weight", 1) => vec![1.0; n_elements],
        ("running_mean", _) | ("bias", 1) => vec![0.0; n_elements],
        ("weight", n_dimensions) => {
            let is_linear = n_dimensions == 2;
            // He's, by the outputs: the kernel's cells times the output channels.
            let fan_out = (size.first().copied().unwrap_or(1) * size.iter().skip(2).product::<i64>()).max(1) as f64;
            match architecture {
                None => normal((2.0 / fan_in).sqrt()),
                Some(Architecture::InceptionV3) => normal(0.1),
                Some(Architecture::InceptionResNetV2) => uniform(1.0 / fan_in.sqrt()),
                Some(Architecture::Vgg16 | Architecture::Vgg19 | Architecture::AttentionVgg16) if is_linear => {
                    normal(0.01)
                }
                Some(_) if is_linear => uniform(1.0 / fan_in.sqrt()),
                Some(_) => normal((2.0 / fan_out).sqrt()),
            }
        }
        _ => match architecture {
            None | Some(Architecture::Vgg16 | Architecture::Vgg19 | Architecture::AttentionVgg16) => {
                vec![0.0; n_elements]
            }
            Some(_) => uniform(1.0 / fan_in.sqrt()),
        },
    }
}

fn set(variable: &Tensor, values: &[f32]) -> Result<(), TchError> {
    let values = Tensor::f_from_slice(values)?.f_view(variable.size().as_slice())?;
    tch::no_grad(|| variable.shallow_clone().f_copy_(&values))
}
