//! A classifier of any architecture over a variable store.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::Architecture,
    attention_vgg::{AttentionOptions, AttentionVgg16},
    detrac::DetracResNet50,
    explain::{self, Convolutional, Explanation, IntegratedGradientsOptions},
    inception_resnet_v2::InceptionResNetV2,
    inception_v3::InceptionV3,
    resnet::{Depth, ResNet},
    vgg::{self, Vgg},
};

/// What a classifier computes for a batch of n images.
#[derive(Debug)]
pub(super) struct Output {
    /// n x classes.
    pub(super) logits: Tensor,
    /// n x features: what the last linear layer sees (global average pool, a hidden layer after its ReLU, or the
    /// descriptors of the attention levels).
    pub(super) embedding: Tensor,
    /// n x rows x columns, by the method asked for.
    pub(super) activation_map: Tensor,
    /// By-products, each n x rows x columns: the attention maps of an attention network, the finest first.
    #[cfg_attr(not(test), allow(dead_code, reason = "only the tests look at each level by itself"))]
    pub(super) attention: Vec<Tensor>,
}

/// What a manifest may choose of a classifier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ClassifierOptions {
    /// Of an attention network; the others have none.
    pub(super) attention: AttentionOptions,
    /// The method of its map, the architecture's first without one; not Integrated Gradients.
    pub(super) explanation: Option<Explanation>,
}

/// A classifier of any architecture.
#[derive(Debug)]
pub(super) struct Classifier {
    network: Network,
    explanation: Explanation,
}

#[derive(Debug)]
enum Network {
    Convolutional(Box<dyn Convolutional>),
    AttentionVgg16(AttentionVgg16),
}

impl Classifier {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(
        path: &Path<'_>,
        architecture: Architecture,
        width: f64,
        n_classes: i64,
        options: ClassifierOptions,
    ) -> Result<Self, TchError> {
        let resnet = |depth| -> Result<Box<dyn Convolutional>, TchError> {
            Ok(Box::new(ResNet::new(path, depth, width, n_classes)?))
        };
        let network: Box<dyn Convolutional> = match architecture {
            Architecture::ResNet18 => resnet(Depth::RESNET18)?,
            Architecture::ResNet34 => resnet(Depth::RESNET34)?,
            Architecture::ResNet50 => resnet(Depth::RESNET50)?,
            Architecture::ResNet101 => resnet(Depth::RESNET101)?,
            Architecture::ResNet152 => resnet(Depth::RESNET152)?,
            Architecture::Vgg16 => Box::new(Vgg::new(path, vgg::VGG16, width, n_classes)?),
            Architecture::Vgg19 => Box::new(Vgg::new(path, vgg::VGG19, width, n_classes)?),
            Architecture::InceptionV3 => Box::new(InceptionV3::new(path, width, n_classes)?),
            Architecture::InceptionResNetV2 => Box::new(InceptionResNetV2::new(path, width, n_classes)?),
            Architecture::DetracResNet50 => Box::new(DetracResNet50::new(path, width, n_classes)?),
            Architecture::AttentionVgg16 => {
                let network = AttentionVgg16::new(path, width, n_classes, options.attention)?;
                let network = Network::AttentionVgg16(network);
                return Ok(Self { network, explanation: Explanation::Attention });
            }
        };
        let explanation = options.explanation.unwrap_or(architecture.explanation());
        Ok(Self { network: Network::Convolutional(network), explanation })
    }

    /// Runs a batch `n x 3 x rows x columns`; `target_class_idxs` (n whole numbers) choose the class that each
    /// image's activation map is about, which is computed by the method of its options. Call inside `tch::no_grad`.
    pub(super) fn forward(&self, input: &Tensor, target_class_idxs: &Tensor) -> Result<Output, TchError> {
        self.explained(input, target_class_idxs, self.explanation)
    }

    /// The same with a method of [`Architecture::explanations`] except Integrated Gradients.
    pub(super) fn explained(
        &self,
        input: &Tensor,
        target_class_idxs: &Tensor,
        method: Explanation,
    ) -> Result<Output, TchError> {
        match &self.network {
            Network::Convolutional(network) => {
                let feature_map = network.feature_map(input)?;
                let explained = explain::explain_head(network.as_ref(), &feature_map, target_class_idxs, method)?;
                Ok(Output {
                    logits: explained.logits,
                    embedding: explained.embedding,
                    activation_map: explained.map,
                    attention: Vec::new(),
                })
            }
            Network::AttentionVgg16(network) => {
                if method != Explanation::Attention {
                    return Err(explain::not_offered(method));
                }
                let output = network.forward(input)?;
                let activation_map = explain::mean_map(&output.attention, network.attention_sums_to_one())?;
                Ok(Output {
                    logits: output.logits,
                    embedding: output.embedding,
                    activation_map,
                    attention: output.attention,
                })
            }
        }
    }

    /// The logits while the network is trained, `n x classes`; `dropout` is the share of features that is left out where
    /// the publication has dropout.
    pub(super) fn training_logits(&self, input: &Tensor, dropout: f64) -> Result<Tensor, TchError> {
        match &self.network {
            Network::Convolutional(network) => network.training_logits(&network.feature_map(input)?, dropout),
            Network::AttentionVgg16(network) => Ok(network.forward(input)?.logits),
        }
    }

    /// Logits (n x classes) and embedding (n x features), without any map.
    pub(super) fn head(&self, input: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        match &self.network {
            Network::Convolutional(network) => network.head(&network.feature_map(input)?),
            Network::AttentionVgg16(network) => network.forward(input).map(|output| (output.logits, output.embedding)),
        }
    }

    /// Integrated Gradients of one image (`1 x 3 x rows x columns`) for a class: the attribution, of the image's
    /// shape. Seconds on a processor: on demand only.
    pub(super) fn integrated_gradients(
        &self,
        image: &Tensor,
        target_class_idx: i64,
        options: IntegratedGradientsOptions,
    ) -> Result<Tensor, TchError> {
        let forward = |points: &Tensor| -> Result<Vec<Tensor>, TchError> {
            match &self.network {
                Network::Convolutional(network) => Ok(vec![network.head(&network.feature_map(points)?)?.0]),
                Network::AttentionVgg16(network) => Ok(vec![network.forward(points)?.logits]),
            }
        };
        explain::integrated_gradients(forward, image, target_class_idx, options)?
            .pop()
            .ok_or_else(|| TchError::Torch("the network gave no attribution".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tch::{Device, nn::VarStore};

    use super::{super::unet::UNet, *};

    fn parameter_count(store: &VarStore) -> usize {
        store.trainable_variables().iter().map(Tensor::numel).sum()
    }

    #[test]
    fn full_width_has_the_parameter_counts_of_torchvision_and_timm() {
        for (architecture, n_classes, n_parameters) in [
            (Architecture::ResNet18, 1000, 11_689_512),
            (Architecture::ResNet34, 1000, 21_797_672),
            (Architecture::ResNet34, 2, 21_285_698),
            (Architecture::ResNet50, 1000, 25_557_032),
            (Architecture::ResNet50, 2, 23_512_130),
            (Architecture::ResNet101, 1000, 44_549_160),
            (Architecture::ResNet152, 1000, 60_192_808),
            (Architecture::ResNet152, 2, 58_147_906),
            (Architecture::Vgg16, 1000, 138_357_544),
            (Architecture::Vgg16, 2, 134_268_738),
            (Architecture::Vgg19, 1000, 143_667_240),
            // torchvision's 27,161,264 less the auxiliary classifier's 3,326,696.
            (Architecture::InceptionV3, 1000, 23_834_568),
            (Architecture::InceptionResNetV2, 1000, 55_843_464),
        ] {
            let store = VarStore::new(Device::Cpu);
            Classifier::new(&store.root(), architecture, 1.0, n_classes, ClassifierOptions::default()).unwrap();
            assert_eq!(parameter_count(&store), n_parameters, "{architecture} with {n_classes} classes");
        }
    }

    /// 5.47 million, as the published layer plan adds up to.
    #[test]
    fn full_width_segmenter_has_the_parameter_count_of_its_plan() {
        let store = VarStore::new(Device::Cpu);
        UNet::new(&store.root(), 1.0).unwrap();
        assert_eq!(parameter_count(&store), 5_468_897);
    }

    #[test]
    fn variables_are_named_as_in_torchvision() {
        let names = |architecture| {
            let store = VarStore::new(Device::Cpu);
            Classifier::new(&store.root(), architecture, 0.0625, 2, ClassifierOptions::default()).unwrap();
            store.variables().into_keys().collect::<BTreeSet<_>>()
        };
        let resnet34 = names(Architecture::ResNet34);
        for name in [
            "conv1.weight",
            "bn1.running_mean",
            "layer1.2.conv2.weight",
            "layer2.0.downsample.0.weight",
            "layer4.2.bn2.bias",
            "fc.weight",
            "fc.bias",
        ] {
            assert!(resnet34.contains(name), "{name}");
        }
        assert!(!resnet34.contains("layer1.0.downsample.0.weight"));
        let resnet152 = names(Architecture::ResNet152);
        for name in ["layer1.0.downsample.1.running_var", "layer3.35.conv3.weight", "layer4.2.bn3.weight"] {
            assert!(resnet152.contains(name), "{name}");
        }
        let vgg16 = names(Architecture::Vgg16);
        let expected: BTreeSet<String> = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
            .map(|layer_idx| format!("features.{layer_idx}"))
            .into_iter()
            .chain([0, 3, 6].map(|layer_idx| format!("classifier.{layer_idx}")))
            .flat_map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")])
            .collect();
        assert_eq!(vgg16, expected);
    }
}
