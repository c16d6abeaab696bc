//! The weakly supervised multi-scale classifier of CT slices of Hu et al. (IEEE Access 2020;8:118869-118883), layer by
//! layer as released: half a VGG-16 with batch normalisation and, on the pools of its groups 3, 4 and 5, a 1x1
//! convolution to one map for each class, whose largest value is that class's logit.
//!
//! The class maps are the localisation: no backward pass is needed. Because of the ReLU all logits are at least 0;
//! where all maps are empty every class has the same probability, which means that the network does not know.
//!
//! | here | TensorFlow scope of the release |
//! | --- | --- |
//! | `conv1_1.weight`, `.bias` | `conv1_1/w` (rows, columns, in, out: to be permuted), `/biases` |
//! | `bn_conv1_1.weight`, `.bias`, `.running_mean`, `.running_var` | `bn_conv1_1/gamma`, `/beta`, `/moving_mean`, `/moving_variance` |
//! | `classifier3.conv`, `classifier3.bn` | `Classifier3adaption`, `Classifier3bn_adaption` |

use tch::{Kind, TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    explain::{self, IntegratedGradientsOptions},
    layers::{BatchNorm, Conv, Geometry, global_average},
};

/// TensorFlow's.
const BATCH_NORM_EPSILON: f64 = 1e-3;

/// Output channels of the convolutions; a max pool follows each group.
const GROUPS: [&[u32]; 5] = [&[32; 2], &[64; 2], &[128; 3], &[256; 3], &[256; 3]];

/// The first group that has a classifier; numbered from 1.
const FIRST_CLASSIFIER: usize = 3;

/// What it computes for n slices.
#[derive(Debug)]
pub(super) struct MultiScaleOutput {
    /// n x classes: the mean of the classifiers' logits.
    pub(super) logits: Tensor,
    /// n x classes each, of the pools 3, 4 and 5.
    #[cfg_attr(not(test), allow(dead_code, reason = "compared with the publication's by the tests"))]
    pub(super) level_logits: Vec<Tensor>,
    /// n x classes x rows x columns each, 0 or more, of the pools 3, 4 and 5: an eighth, a sixteenth and a
    /// thirty-second of the input's side.
    pub(super) class_maps: Vec<Tensor>,
    /// n x channels: mean of the last pool. Not in the paper; for the search for similar images.
    pub(super) embedding: Tensor,
}

impl MultiScaleOutput {
    /// The class maps of one class for each slice (n whole numbers), enlarged to the grid of the finest level and
    /// averaged: n x rows x columns, 0 or more.
    pub(super) fn class_map(&self, target_class_idxs: &Tensor) -> Result<Tensor, TchError> {
        let of_class = |maps: &Tensor| {
            let (_, _, rows, columns) = maps.size4()?;
            let idxs = target_class_idxs.f_view([-1, 1, 1, 1])?.f_expand([-1, 1, rows, columns], false)?;
            maps.f_gather(1, &idxs, false)?.f_squeeze_dim(1)
        };
        let maps = self.class_maps.iter().map(of_class).collect::<Result<Vec<_>, TchError>>()?;
        explain::mean_map(&maps, false)
    }
}

type Layer = (Conv, BatchNorm);

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct MultiScale {
    groups: Vec<Vec<Layer>>,
    classifiers: Vec<Layer>,
}

impl MultiScale {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let mut channels = 1;
        let mut groups = Vec::new();
        let mut classifiers = Vec::new();
        for (group_number, base_channels) in (1..).zip(GROUPS) {
            let mut layers = Vec::new();
            for (conv_number, base_channels) in (1..).zip(base_channels) {
                let output_channels = scaled_channels(*base_channels, width);
                let name = format!("conv{group_number}_{conv_number}");
                let norm_path = path / format!("bn_{name}");
                layers.push((
                    Conv::same_3x3(&(path / name), (channels, output_channels))?,
                    BatchNorm::with_epsilon(&norm_path, output_channels, BATCH_NORM_EPSILON)?,
                ));
                channels = output_channels;
            }
            groups.push(layers);
            if group_number >= FIRST_CLASSIFIER {
                let path = path / format!("classifier{group_number}");
                classifiers.push((
                    Conv::biased(&(&path / "conv"), (channels, n_classes), Geometry::same(1, 1))?,
                    BatchNorm::with_epsilon(&(&path / "bn"), n_classes, BATCH_NORM_EPSILON)?,
                ));
            }
        }
        Ok(Self { groups, classifiers })
    }

    /// `n x 1 x rows x columns` in, each slice with mean 0 and standard deviation 1; the release has 224 x 224.
    pub(super) fn forward(&self, input: &Tensor) -> Result<MultiScaleOutput, TchError> {
        let mut map = input.shallow_clone();
        let mut pools = Vec::new();
        for group in &self.groups {
            for (conv, norm) in group {
                map = norm.apply(&conv.apply(&map)?)?.f_relu_()?;
            }
            // TensorFlow's SAME: an odd last row or column is pooled by itself.
            map = map.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], true)?;
            pools.push(map.shallow_clone());
        }
        let class_maps = pools
            .iter()
            .skip(FIRST_CLASSIFIER - 1)
            .zip(&self.classifiers)
            .map(|(pool, (conv, norm))| norm.apply(&conv.apply(pool)?)?.f_relu_())
            .collect::<Result<Vec<_>, _>>()?;
        let level_logits =
            class_maps.iter().map(|maps| maps.f_amax([2i64, 3].as_slice(), false)).collect::<Result<Vec<_>, _>>()?;
        let logits = Tensor::f_stack(&level_logits, 0)?.f_mean_dim([0i64].as_slice(), false, Kind::Float)?;
        Ok(MultiScaleOutput { logits, level_logits, class_maps, embedding: global_average(&map)? })
    }

    /// Integrated Gradients of one slice (`1 x 1 x rows x columns`) for a class, from each classifier's logit: the
    /// joint map of the release, `rows x columns` from 0 to 1.
    pub(super) fn joint_saliency(
        &self,
        slice: &Tensor,
        target_class_idx: i64,
        options: IntegratedGradientsOptions,
    ) -> Result<Tensor, TchError> {
        let attributions = explain::integrated_gradients(
            |points| Ok(self.forward(points)?.level_logits),
            slice,
            target_class_idx,
            options,
        )?;
        let greys = attributions.iter().map(explain::grey_of_attribution).collect::<Result<Vec<_>, _>>()?;
        explain::joint_saliency(&greys)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, nn::VarStore};

    use super::*;

    /// 3.69 million, as the published layers add up to.
    #[test]
    fn full_width_has_the_parameter_count_of_its_plan() {
        let store = VarStore::new(Device::Cpu);
        MultiScale::new(&store.root(), 1.0, 3).unwrap();
        assert_eq!(store.trainable_variables().iter().map(Tensor::numel).sum::<usize>(), 3_685_755);
    }
}
