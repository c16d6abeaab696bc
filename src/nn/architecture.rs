//! The classifier architectures and the width factor.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{detrac, explain::Explanation, inception, inception_v3::InceptionV3};

/// A classifier of three-channel images. Layer by layer as torchvision or timm define it, checked against their
/// outputs and parameter counts, but for the two that are ours to define ([`Self::DetracResNet50`],
/// [`Self::AttentionVgg16`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// ResNet-18: basic blocks 2, 2, 2, 2.
    #[serde(rename = "resnet18")]
    ResNet18,
    /// ResNet-34: basic blocks 3, 4, 6, 3.
    #[serde(rename = "resnet34")]
    ResNet34,
    /// ResNet-50 v1.5: bottleneck blocks 3, 4, 6, 3, stride on the 3x3 convolution.
    #[serde(rename = "resnet50")]
    ResNet50,
    /// ResNet-101 v1.5: bottleneck blocks 3, 4, 23, 3, stride on the 3x3 convolution.
    #[serde(rename = "resnet101")]
    ResNet101,
    /// ResNet-152 v1.5: bottleneck blocks 3, 8, 36, 3, stride on the 3x3 convolution.
    #[serde(rename = "resnet152")]
    ResNet152,
    /// VGG-16, configuration D without batch normalisation, adaptive average pool to 7x7.
    #[serde(rename = "vgg16")]
    Vgg16,
    /// VGG-19, configuration E without batch normalisation, adaptive average pool to 7x7.
    #[serde(rename = "vgg19")]
    Vgg19,
    /// Inception V3 without the auxiliary classifier.
    #[serde(rename = "inception_v3")]
    InceptionV3,
    /// Inception-ResNet-v2, timm's.
    #[serde(rename = "inception_resnet_v2")]
    InceptionResNetV2,
    /// DeTraC's ResNet-50 with a flattened grid and a hidden layer.
    #[serde(rename = "detrac_resnet50")]
    DetracResNet50,
    /// VGG-16 with spatial attention at three levels, in the manner of ML-SAM.
    #[serde(rename = "attention_vgg16")]
    AttentionVgg16,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::ResNet18,
        Self::ResNet34,
        Self::ResNet50,
        Self::ResNet101,
        Self::ResNet152,
        Self::Vgg16,
        Self::Vgg19,
        Self::InceptionV3,
        Self::InceptionResNetV2,
        Self::DetracResNet50,
        Self::AttentionVgg16,
    ];

    /// The members of Keidar et al.'s radiograph ensemble (Eur Radiol 2021;31:9654-9663).
    pub const KEIDAR_ENSEMBLE: [Self; 4] = [Self::ResNet34, Self::ResNet50, Self::ResNet152, Self::Vgg16];

    /// The name used in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResNet18 => "resnet18",
            Self::ResNet34 => "resnet34",
            Self::ResNet50 => "resnet50",
            Self::ResNet101 => "resnet101",
            Self::ResNet152 => "resnet152",
            Self::Vgg16 => "vgg16",
            Self::Vgg19 => "vgg19",
            Self::InceptionV3 => "inception_v3",
            Self::InceptionResNetV2 => "inception_resnet_v2",
            Self::DetracResNet50 => "detrac_resnet50",
            Self::AttentionVgg16 => "attention_vgg16",
        }
    }

    /// The maps of regions that it offers, the default first.
    #[must_use]
    pub const fn explanations(self) -> &'static [Explanation] {
        use Explanation::{Attention, Cam, GradCam, GradCamPlusPlus, HiResCam, IntegratedGradients};
        match self {
            Self::ResNet18
            | Self::ResNet34
            | Self::ResNet50
            | Self::ResNet101
            | Self::ResNet152
            | Self::InceptionV3
            | Self::InceptionResNetV2 => &[Cam, GradCam, HiResCam, GradCamPlusPlus, IntegratedGradients],
            Self::Vgg16 | Self::Vgg19 | Self::DetracResNet50 => {
                &[HiResCam, GradCam, GradCamPlusPlus, IntegratedGradients]
            }
            Self::AttentionVgg16 => &[Attention, IntegratedGradients],
        }
    }

    /// The default map: `cam` (closed form, global average pool and one linear layer follow the last feature map),
    /// `hirescam` (gradient of the head times the feature map) or `attention`.
    #[must_use]
    pub const fn explanation(self) -> Explanation {
        match self.explanations() {
            [default, ..] => *default,
            [] => Explanation::HiResCam,
        }
    }

    /// The least side of an image in pixels that it can look at.
    #[must_use]
    pub const fn minimum_side_pixels(self) -> u32 {
        match self {
            Self::InceptionV3 | Self::InceptionResNetV2 => inception::MINIMUM_SIDE_PIXELS,
            Self::DetracResNet50 => detrac::INPUT_SIDE_PIXELS,
            _ => 32,
        }
    }

    /// The only side of an image in pixels that it can look at, where there is only one.
    #[must_use]
    pub const fn fixed_side_pixels(self) -> Option<u32> {
        match self {
            Self::DetracResNet50 => Some(detrac::INPUT_SIDE_PIXELS),
            _ => None,
        }
    }

    /// The layers that make the logits: they are made anew when the classes are others.
    pub(super) const fn last_layers(self) -> &'static [&'static str] {
        match self {
            Self::ResNet18
            | Self::ResNet34
            | Self::ResNet50
            | Self::ResNet101
            | Self::ResNet152
            | Self::InceptionV3 => &["fc"],
            Self::Vgg16 | Self::Vgg19 => &["classifier.6"],
            Self::InceptionResNetV2 => &["classif"],
            Self::DetracResNet50 => &["fc2"],
            Self::AttentionVgg16 => &["classifier", "classifier1", "classifier2", "classifier3"],
        }
    }

    /// Whether a checkpoint's tensor of this name plays no part in inference and may be there or not.
    #[must_use]
    pub fn ignores_tensor(self, name: &str) -> bool {
        name.ends_with(".num_batches_tracked") || (self == Self::InceptionV3 && InceptionV3::ignores(name))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `channels` times `width`, rounded to the nearest whole number (halves upwards), at least 1. A bottleneck's
/// output is four times its *scaled* channel count. Width 1.0 changes nothing.
#[must_use]
pub fn scaled_channels(channels: u32, width: f64) -> i64 {
    ((f64::from(channels) * width + 0.5).floor() as i64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_manifests() {
        for architecture in Architecture::ALL {
            assert_eq!(serde_json::to_string(&architecture).unwrap(), format!("\"{architecture}\""));
            assert_eq!(architecture.explanations()[0], architecture.explanation());
        }
    }

    #[test]
    fn the_auxiliary_classifier_is_ignored_and_nothing_else() {
        assert!(Architecture::InceptionV3.ignores_tensor("AuxLogits.conv0.bn.running_var"));
        assert!(Architecture::ResNet18.ignores_tensor("bn1.num_batches_tracked"));
        assert!(!Architecture::InceptionV3.ignores_tensor("fc.weight"));
        assert!(!Architecture::ResNet18.ignores_tensor("AuxLogits.fc.weight"));
    }

    #[test]
    fn channel_counts_round_to_nearest_and_never_vanish() {
        assert_eq!(scaled_channels(64, 1.0), 64);
        assert_eq!(scaled_channels(4096, 0.125), 512);
        assert_eq!(scaled_channels(64, 0.1), 6);
        assert_eq!(scaled_channels(100, 0.125), 13);
        assert_eq!(scaled_channels(64, 0.001), 1);
    }
}
