//! The U-Net lung segmenter: the layer plan of imlab-uiip/lung-segmentation-2d, re-implemented.
//!
//! One channel in, one logit out; the side of the input must be a multiple of 16. All convolutions are 3x3 with
//! bias, followed by ReLU except the last. Variable names are ours:
//!
//! | layers | channels |
//! | --- | --- |
//! | `down1.conv1`, `down1.conv2`, max pool | 32, 32 |
//! | `down2.conv1`, `down2.conv2`, max pool | 64, 64 |
//! | `down3.conv1`, `down3.conv2`, max pool | 64, 64 |
//! | `down4.conv1`, `down4.conv2`, max pool | 128, 128 |
//! | `down5.conv1` | 256 |
//! | nearest x2, `up4.conv1`, `up4.conv2`, concatenate with `down4`, `up4.merge` | 256, 256, 256 |
//! | nearest x2, `up3.conv1`, `up3.conv2`, concatenate with `down3`, `up3.merge` | 256, 256, 256 |
//! | nearest x2, `up2.conv1`, `up2.conv2`, concatenate with `down2`, `up2.merge` | 128, 128, 128 |
//! | nearest x2, `up1.conv1`, `up1.conv2`, concatenate with `down1`, `up1.merge` | 64, 64, 64 |
//! | `out` | 1 |
//!
//! The concatenation is (upsampled, skipped), in this order.

use tch::{TchError, Tensor, nn::Path};

use super::{architecture::scaled_channels, layers::Conv};

/// The side of the input must be a multiple of this: four max pools.
pub(super) const SIDE_MULTIPLE: usize = 16;

#[derive(Debug)]
struct Up {
    conv1: Conv,
    conv2: Conv,
    merge: Conv,
}

/// The segmenter over a variable store.
#[derive(Debug)]
pub(super) struct UNet {
    down: Vec<(Conv, Conv)>,
    bottom: Conv,
    up: Vec<Up>,
    out: Conv,
}

impl UNet {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64) -> Result<Self, TchError> {
        let scaled = |channels| scaled_channels(channels, width);
        let mut channels = 1;
        let mut down = Vec::new();
        let mut skip_channels = Vec::new();
        for (number, base_channels) in (1..).zip([32, 64, 64, 128]) {
            let path = path / format!("down{number}");
            let output_channels = scaled(base_channels);
            let conv1 = Conv::same_3x3(&(&path / "conv1"), (channels, output_channels))?;
            let conv2 = Conv::same_3x3(&(&path / "conv2"), (output_channels, output_channels))?;
            down.push((conv1, conv2));
            skip_channels.push(output_channels);
            channels = output_channels;
        }
        let bottom = Conv::same_3x3(&(path / "down5" / "conv1"), (channels, scaled(256)))?;
        channels = scaled(256);
        let mut up = Vec::new();
        for ((number, base_channels), skipped) in
            [4, 3, 2, 1].into_iter().zip([256, 256, 128, 64]).zip(skip_channels.into_iter().rev())
        {
            let path = path / format!("up{number}");
            let output_channels = scaled(base_channels);
            up.push(Up {
                conv1: Conv::same_3x3(&(&path / "conv1"), (channels, output_channels))?,
                conv2: Conv::same_3x3(&(&path / "conv2"), (output_channels, output_channels))?,
                merge: Conv::same_3x3(&(&path / "merge"), (output_channels + skipped, output_channels))?,
            });
            channels = output_channels;
        }
        let out = Conv::same_3x3(&(path / "out"), (channels, 1))?;
        Ok(Self { down, bottom, up, out })
    }

    /// `n x 1 x side x side` in, `n x side x side` probabilities out.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.logits(input)?.f_sigmoid()
    }

    /// `n x 1 x side x side` in, `n x side x side` logits out.
    pub(super) fn logits(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut map = input.shallow_clone();
        let mut skipped = Vec::new();
        for (conv1, conv2) in &self.down {
            map = conv2.apply(&conv1.apply(&map)?.f_relu_()?)?.f_relu_()?;
            skipped.push(map.shallow_clone());
            map = map.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?;
        }
        map = self.bottom.apply(&map)?.f_relu_()?;
        for (up, skip) in self.up.iter().zip(skipped.iter().rev()) {
            let (_, _, rows, columns) = skip.size4()?;
            let enlarged = map.f_upsample_nearest2d([rows, columns], None, None)?;
            map = up.conv2.apply(&up.conv1.apply(&enlarged)?.f_relu_()?)?.f_relu_()?;
            map = up.merge.apply(&Tensor::f_cat(&[&map, skip], 1)?)?.f_relu_()?;
        }
        self.out.apply(&map)?.f_squeeze_dim(1)
    }
}
