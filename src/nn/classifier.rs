//! A classifier of any architecture over a variable store.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::Architecture,
    resnet::{BlockKind, ResNet},
    vgg::Vgg16,
};

/// What a classifier computes for a batch of n images.
#[derive(Debug)]
pub(super) struct Output {
    /// n x classes.
    pub(super) logits: Tensor,
    /// n x features: global average pool of the last feature map (ResNets), fc7 after ReLU (VGG-16).
    pub(super) embedding: Tensor,
    /// n x rows x columns, signed.
    pub(super) activation_map: Tensor,
}

/// A classifier of any architecture.
#[derive(Debug)]
pub(super) enum Classifier {
    ResNet(ResNet),
    Vgg16(Vgg16),
}

impl Classifier {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(
        path: &Path<'_>,
        architecture: Architecture,
        width: f64,
        n_classes: i64,
    ) -> Result<Self, TchError> {
        let resnet = |kind, blocks| ResNet::new(path, kind, blocks, width, n_classes).map(Self::ResNet);
        match architecture {
            Architecture::ResNet34 => resnet(BlockKind::Basic, [3, 4, 6, 3]),
            Architecture::ResNet50 => resnet(BlockKind::Bottleneck, [3, 4, 6, 3]),
            Architecture::ResNet152 => resnet(BlockKind::Bottleneck, [3, 8, 36, 3]),
            Architecture::Vgg16 => Vgg16::new(path, width, n_classes).map(Self::Vgg16),
        }
    }

    /// Runs a batch `n x 3 x rows x columns`; `target_class_idxs` (n whole numbers) choose the class that each
    /// image's activation map is about. Call inside `tch::no_grad`.
    pub(super) fn forward(&self, input: &Tensor, target_class_idxs: &Tensor) -> Result<Output, TchError> {
        match self {
            Self::ResNet(network) => network.forward(input, target_class_idxs),
            Self::Vgg16(network) => network.forward(input, target_class_idxs),
        }
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
    fn full_width_has_the_parameter_counts_of_torchvision() {
        for (architecture, n_classes, n_parameters) in [
            (Architecture::ResNet34, 1000, 21_797_672),
            (Architecture::ResNet34, 2, 21_285_698),
            (Architecture::ResNet50, 1000, 25_557_032),
            (Architecture::ResNet50, 2, 23_512_130),
            (Architecture::ResNet152, 1000, 60_192_808),
            (Architecture::ResNet152, 2, 58_147_906),
            (Architecture::Vgg16, 1000, 138_357_544),
            (Architecture::Vgg16, 2, 134_268_738),
        ] {
            let store = VarStore::new(Device::Cpu);
            Classifier::new(&store.root(), architecture, 1.0, n_classes).unwrap();
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
            Classifier::new(&store.root(), architecture, 0.0625, 2).unwrap();
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
