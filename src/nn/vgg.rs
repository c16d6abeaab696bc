//! VGG-16 (configuration D, no batch normalisation) as torchvision defines it, variable names included.

use tch::{TchError, Tensor, nn::Path};

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
    /// times the map, summed over the channels. Only the head is differentiated.
    pub(super) fn forward(&self, input: &Tensor, target_class_idxs: &Tensor) -> Result<Output, TchError> {
        let mut feature_map = input.shallow_clone();
        for group in &self.groups {
            for conv in group {
                feature_map = conv.apply(&feature_map)?.f_relu_()?;
            }
            feature_map = feature_map.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?;
        }
        let feature_map = feature_map.f_detach()?;

        let (logits, embedding, gradient) = tch::with_grad(|| -> Result<_, TchError> {
            let leaf = feature_map.f_detach_copy()?.f_requires_grad_(true)?;
            let (logits, embedding) = self.head(&leaf)?;
            let target_logits = logits.f_gather(1, &target_class_idxs.f_unsqueeze(1)?, false)?;
            let total = target_logits.f_sum(tch::Kind::Float)?;
            let gradients = Tensor::f_run_backward(&[&total], &[&leaf], false, false)?;
            let gradient = gradients
                .into_iter()
                .next()
                .ok_or_else(|| TchError::Torch("the backward pass through the head returned no gradient".to_owned()))?;
            Ok((logits.f_detach()?, embedding.f_detach()?, gradient))
        })?;
        let activation_map =
            gradient.f_mul(&feature_map)?.f_sum_dim_intlist([1i64].as_slice(), false, tch::Kind::Float)?;
        Ok(Output { logits, embedding, activation_map })
    }

    /// Logits and embedding (fc7 after its ReLU) of a feature map of any size.
    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let grid = feature_map.f_adaptive_avg_pool2d([HEAD_GRID_SIDE; 2])?.f_flatten(1, 3)?;
        let hidden = self.fc6.apply(&grid)?.f_relu()?;
        let embedding = self.fc7.apply(&hidden)?.f_relu()?;
        Ok((self.fc8.apply(&embedding)?, embedding))
    }
}
