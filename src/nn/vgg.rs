//! VGG-16 (configuration D, no batch normalisation) as torchvision defines it, variable names included.

use tch::{Kind, TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    classifier::Output,
    layers::{Conv, Linear},
};

/// Output channels of the convolutions; a max pool follows each group.
const GROUPS: [&[u32]; 5] = [&[64, 64], &[128, 128], &[256, 256, 256], &[512, 512, 512], &[512, 512, 512]];

/// Side of the grid that the head sees.
const HEAD_GRID_SIDE: i64 = 7;

/// VGG-16 over a variable store.
#[derive(Debug)]
pub(super) struct Vgg16 {
    groups: Vec<Vec<Conv>>,
    fc6: Linear,
    fc7: Linear,
    fc8: Linear,
}

impl Vgg16 {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let features = path / "features";
        let mut channels = 3;
        // torchvision numbers every layer of the sequence: convolution, ReLU, ..., max pool.
        let mut layer_idx = 0;
        let mut groups = Vec::new();
        for group in GROUPS {
            let mut convs = Vec::new();
            for &base_channels in group {
                let output_channels = scaled_channels(base_channels, width);
                convs.push(Conv::same_3x3(&(&features / layer_idx), (channels, output_channels))?);
                channels = output_channels;
                layer_idx += 2;
            }
            layer_idx += 1;
            groups.push(convs);
        }
        let classifier = path / "classifier";
        let hidden = scaled_channels(4096, width);
        Ok(Self {
            groups,
            fc6: Linear::new(&(&classifier / 0), channels * HEAD_GRID_SIDE * HEAD_GRID_SIDE, hidden)?,
            fc7: Linear::new(&(&classifier / 3), hidden, hidden)?,
            fc8: Linear::new(&(&classifier / 6), hidden, n_classes)?,
        })
    }

    /// Runs a batch. The map is HiResCAM: gradient of the target's logit with respect to the last feature map,
    /// times the map, summed over the channels. The head's gradient is written out (each ReLU lets through what was
    /// positive), so that the whole can be recorded and optimised.
    pub(super) fn forward(&self, input: &Tensor, target_class_idxs: &Tensor) -> Result<Output, TchError> {
        let mut feature_map = input.shallow_clone();
        for group in &self.groups {
            for conv in group {
                feature_map = conv.apply(&feature_map)?.f_relu_()?;
            }
            feature_map = feature_map.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?;
        }
        let grid = feature_map.f_adaptive_avg_pool2d([HEAD_GRID_SIDE; 2])?;
        let hidden = self.fc6.apply(&grid.f_flatten(1, 3)?)?.f_relu()?;
        let embedding = self.fc7.apply(&hidden)?.f_relu()?;
        let logits = self.fc8.apply(&embedding)?;

        let passed = |activation: &Tensor| activation.f_gt(0.0)?.f_to_kind(Kind::Float);
        let of_embedding = self.fc8.weight().f_index_select(0, target_class_idxs)?.f_mul(&passed(&embedding)?)?;
        let of_hidden = of_embedding.f_matmul(self.fc7.weight())?.f_mul(&passed(&hidden)?)?;
        let of_grid = of_hidden.f_matmul(self.fc6.weight())?.f_view_as(&grid)?;
        let gradient = feature_map.f_internal_adaptive_avg_pool2d_backward(&of_grid)?;
        let activation_map = gradient.f_mul(&feature_map)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
        Ok(Output { logits, embedding, activation_map })
    }
}
