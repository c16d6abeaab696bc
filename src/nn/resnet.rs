//! ResNet-34, -50 and -152 as torchvision defines them, variable names included.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    classifier::Output,
    layers::{BatchNorm, Conv, Linear},
};

/// Output channels of a bottleneck block, as a multiple of its inner channels.
const BOTTLENECK_EXPANSION: i64 = 4;

/// What a stage is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Two 3x3 convolutions, the first with the stride.
    Basic,
    /// 1x1, 3x3 with the stride (version 1.5), 1x1.
    Bottleneck,
}

#[derive(Debug)]
struct Block {
    convolutions: Vec<(Conv, BatchNorm)>,
    downsample: Option<(Conv, BatchNorm)>,
}

impl Block {
    fn new(
        path: &Path<'_>,
        kind: BlockKind,
        input_channels: i64,
        inner_channels: i64,
        stride: i64,
    ) -> Result<Self, TchError> {
        let (output_channels, shapes) = match kind {
            BlockKind::Basic => (
                inner_channels,
                vec![((input_channels, inner_channels), 3, stride), ((inner_channels, inner_channels), 3, 1)],
            ),
            BlockKind::Bottleneck => {
                let output_channels = inner_channels * BOTTLENECK_EXPANSION;
                let shapes = vec![
                    ((input_channels, inner_channels), 1, 1),
                    ((inner_channels, inner_channels), 3, stride),
                    ((inner_channels, output_channels), 1, 1),
                ];
                (output_channels, shapes)
            }
        };
        let convolutions = shapes
            .into_iter()
            .zip(1..)
            .map(|((channels, kernel_side, stride), number)| {
                let conv = Conv::without_bias(&(path / format!("conv{number}")), channels, kernel_side, stride)?;
                Ok((conv, BatchNorm::new(&(path / format!("bn{number}")), channels.1)?))
            })
            .collect::<Result<_, TchError>>()?;
        let downsample = if stride != 1 || input_channels != output_channels {
            let path = path / "downsample";
            let conv = Conv::without_bias(&(&path / 0), (input_channels, output_channels), 1, stride)?;
            Some((conv, BatchNorm::new(&(&path / 1), output_channels)?))
        } else {
            None
        };
        Ok(Self { convolutions, downsample })
    }

    fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut branch = input.shallow_clone();
        for (conv_idx, (conv, norm)) in self.convolutions.iter().enumerate() {
            if conv_idx > 0 {
                branch = branch.f_relu_()?;
            }
            branch = norm.apply(&conv.apply(&branch)?)?;
        }
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.apply(&conv.apply(input)?)?,
            None => input.shallow_clone(),
        };
        branch.f_add_(&shortcut)?.f_relu_()
    }
}

/// A ResNet over a variable store.
#[derive(Debug)]
pub(super) struct ResNet {
    conv1: Conv,
    bn1: BatchNorm,
    blocks: Vec<Block>,
    fc: Linear,
}

impl ResNet {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(
        path: &Path<'_>,
        kind: BlockKind,
        blocks_per_stage: [usize; 4],
        width: f64,
        n_classes: i64,
    ) -> Result<Self, TchError> {
        let mut channels = scaled_channels(64, width);
        let conv1 = Conv::without_bias(&(path / "conv1"), (3, channels), 7, 2)?;
        let bn1 = BatchNorm::new(&(path / "bn1"), channels)?;
        let mut blocks = Vec::new();
        for (stage, (n_blocks, base_channels)) in (1..).zip(blocks_per_stage.into_iter().zip([64, 128, 256, 512])) {
            let inner_channels = scaled_channels(base_channels, width);
            for block_idx in 0..n_blocks {
                let stride = if stage > 1 && block_idx == 0 { 2 } else { 1 };
                let path = path / format!("layer{stage}") / block_idx;
                blocks.push(Block::new(&path, kind, channels, inner_channels, stride)?);
                channels = match kind {
                    BlockKind::Basic => inner_channels,
                    BlockKind::Bottleneck => inner_channels * BOTTLENECK_EXPANSION,
                };
            }
        }
        let fc = Linear::new(&(path / "fc"), channels, n_classes)?;
        Ok(Self { conv1, bn1, blocks, fc })
    }

    /// Runs a batch. The map is CAM in closed form: `sum over k of w[c][k] * A[k]`, which the global average
    /// pool and the single linear layer make equal to HiResCAM times the number of cells.
    pub(super) fn forward(&self, input: &Tensor, target_class_idxs: &Tensor) -> Result<Output, TchError> {
        let stem = self.bn1.apply(&self.conv1.apply(input)?)?.f_relu_()?;
        let mut feature_map = stem.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        for block in &self.blocks {
            feature_map = block.apply(&feature_map)?;
        }
        let embedding = feature_map.f_mean_dim([2i64, 3].as_slice(), false, None)?;
        let logits = self.fc.apply(&embedding)?;

        let class_weights = self.fc.weight().f_index_select(0, target_class_idxs)?.f_unsqueeze(1)?;
        let cells = feature_map.f_flatten(2, 3)?;
        let (rows, columns) = (feature_map.size4()?.2, feature_map.size4()?.3);
        let activation_map = class_weights.f_bmm(&cells)?.f_view([-1, rows, columns])?;
        Ok(Output { logits, embedding, activation_map })
    }
}
