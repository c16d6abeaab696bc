//! The classifier architectures and the width factor.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A classifier, layer by layer as torchvision defines it (checked against torchvision's outputs and parameter
/// counts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// ResNet-34: basic blocks 3, 4, 6, 3.
    ResNet34,
    /// ResNet-50 v1.5: bottleneck blocks 3, 4, 6, 3, stride on the 3x3 convolution.
    ResNet50,
    /// ResNet-152 v1.5: bottleneck blocks 3, 8, 36, 3, stride on the 3x3 convolution.
    ResNet152,
    /// VGG-16, configuration D without batch normalisation, adaptive average pool to 7x7.
    Vgg16,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ResNet34, Self::ResNet50, Self::ResNet152, Self::Vgg16];

    /// The name used in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResNet34 => "resnet34",
            Self::ResNet50 => "resnet50",
            Self::ResNet152 => "resnet152",
            Self::Vgg16 => "vgg16",
        }
    }

    /// How the class-activation map is computed: `cam` (closed form, global average pool and one linear layer
    /// follow the last feature map) or `hirescam` (gradient of the head times the feature map).
    #[must_use]
    pub const fn activation_map_method(self) -> &'static str {
        match self {
            Self::ResNet34 | Self::ResNet50 | Self::ResNet152 => "cam",
            Self::Vgg16 => "hirescam",
        }
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
    fn channel_counts_round_to_nearest_and_never_vanish() {
        assert_eq!(scaled_channels(64, 1.0), 64);
        assert_eq!(scaled_channels(4096, 0.125), 512);
        assert_eq!(scaled_channels(64, 0.1), 6);
        assert_eq!(scaled_channels(100, 0.125), 13);
        assert_eq!(scaled_channels(64, 0.001), 1);
    }
}
