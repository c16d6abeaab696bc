//! ResNet-18, -34, -50, -101 and -152 as torchvision defines them, variable names included, and their trunk, which
//! other networks build on.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    explain::Convolutional,
    layers::{BatchNorm, Conv, Geometry, Linear, Statistics, global_average},
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

/// Depth of a ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Depth {
    kind: BlockKind,
    blocks_per_stage: [usize; 4],
}

impl Depth {
    pub(super) const RESNET18: Self = Self { kind: BlockKind::Basic, blocks_per_stage: [2, 2, 2, 2] };
    pub(super) const RESNET34: Self = Self { kind: BlockKind::Basic, blocks_per_stage: [3, 4, 6, 3] };
    pub(super) const RESNET50: Self = Self { kind: BlockKind::Bottleneck, blocks_per_stage: [3, 4, 6, 3] };
    pub(super) const RESNET101: Self = Self { kind: BlockKind::Bottleneck, blocks_per_stage: [3, 4, 23, 3] };
    pub(super) const RESNET152: Self = Self { kind: BlockKind::Bottleneck, blocks_per_stage: [3, 8, 36, 3] };
}

/// How a checkpoint names the stem's convolution, its normalisation and the four stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrunkNames {
    conv: &'static str,
    norm: &'static str,
    stages: [&'static str; 4],
}

impl TrunkNames {
    /// torchvision's.
    pub(super) const TORCHVISION: Self =
        Self { conv: "conv1", norm: "bn1", stages: ["layer1", "layer2", "layer3", "layer4"] };
    /// Of torchvision's children put into an `nn.Sequential`: 2 is the ReLU and 3 the max pool.
    pub(super) const SEQUENTIAL: Self = Self { conv: "0", norm: "1", stages: ["4", "5", "6", "7"] };
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
                vec![
                    ((input_channels, inner_channels), Geometry::same(3, 3).stride(stride)),
                    ((inner_channels, inner_channels), Geometry::same(3, 3)),
                ],
            ),
            BlockKind::Bottleneck => {
                let output_channels = inner_channels * BOTTLENECK_EXPANSION;
                let shapes = vec![
                    ((input_channels, inner_channels), Geometry::same(1, 1)),
                    ((inner_channels, inner_channels), Geometry::same(3, 3).stride(stride)),
                    ((inner_channels, output_channels), Geometry::same(1, 1)),
                ];
                (output_channels, shapes)
            }
        };
        let convolutions = shapes
            .into_iter()
            .zip(1..)
            .map(|((channels, geometry), number)| {
                let conv = Conv::unbiased(&(path / format!("conv{number}")), channels, geometry)?;
                Ok((conv, BatchNorm::new(&(path / format!("bn{number}")), channels.1)?))
            })
            .collect::<Result<_, TchError>>()?;
        let downsample = if stride != 1 || input_channels != output_channels {
            let path = path / "downsample";
            let geometry = Geometry::same(1, 1).stride(stride);
            let conv = Conv::unbiased(&(&path / 0), (input_channels, output_channels), geometry)?;
            Some((conv, BatchNorm::new(&(&path / 1), output_channels)?))
        } else {
            None
        };
        Ok(Self { convolutions, downsample })
    }

    fn apply(&self, input: &Tensor, statistics: Statistics) -> Result<Tensor, TchError> {
        let mut branch = input.shallow_clone();
        for (conv_idx, (conv, norm)) in self.convolutions.iter().enumerate() {
            if conv_idx > 0 {
                branch = branch.f_relu_()?;
            }
            branch = norm.apply_with(&conv.apply(&branch)?, statistics)?;
        }
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.apply_with(&conv.apply(input)?, statistics)?,
            None => input.shallow_clone(),
        };
        branch.f_add_(&shortcut)?.f_relu_()
    }
}

/// A ResNet without its pool and its linear layer.
#[derive(Debug)]
pub(super) struct Trunk {
    conv: Conv,
    norm: BatchNorm,
    stages: Vec<Vec<Block>>,
    /// Channels of the stem and of the four stages.
    pub(super) channels: [i64; 5],
}

impl Trunk {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, names: TrunkNames, depth: Depth, width: f64) -> Result<Self, TchError> {
        let stem_channels = scaled_channels(64, width);
        let conv = Conv::unbiased(&(path / names.conv), (3, stem_channels), Geometry::same(7, 7).stride(2))?;
        let norm = BatchNorm::new(&(path / names.norm), stem_channels)?;
        let mut channels = [stem_channels; 5];
        let mut input_channels = stem_channels;
        let mut stages = Vec::new();
        for (stage_idx, ((name, n_blocks), output_channels)) in
            names.stages.into_iter().zip(depth.blocks_per_stage).zip(channels.iter_mut().skip(1)).enumerate()
        {
            let inner_channels = scaled_channels(64 << stage_idx, width);
            *output_channels = match depth.kind {
                BlockKind::Basic => inner_channels,
                BlockKind::Bottleneck => inner_channels * BOTTLENECK_EXPANSION,
            };
            let mut blocks = Vec::new();
            for block_idx in 0..n_blocks {
                let stride = if stage_idx > 0 && block_idx == 0 { 2 } else { 1 };
                blocks.push(Block::new(
                    &(path / name / block_idx),
                    depth.kind,
                    input_channels,
                    inner_channels,
                    stride,
                )?);
                input_channels = *output_channels;
            }
            stages.push(blocks);
        }
        Ok(Self { conv, norm, stages, channels })
    }

    /// Channels of the last map.
    pub(super) fn last_channels(&self) -> i64 {
        self.channels[4]
    }

    /// `n x 3 x rows x columns` in; out the maps of the stem after its ReLU (half the side) and of the four stages
    /// (a quarter to a thirty-second).
    pub(super) fn pyramid(&self, input: &Tensor, statistics: Statistics) -> Result<Vec<Tensor>, TchError> {
        let stem = self.norm.apply_with(&self.conv.apply(input)?, statistics)?.f_relu_()?;
        let mut map = stem.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        let mut maps = vec![stem];
        for stage in &self.stages {
            for block in stage {
                map = block.apply(&map, statistics)?;
            }
            maps.push(map.shallow_clone());
        }
        Ok(maps)
    }

    /// `n x 3 x rows x columns` in, the last map out.
    pub(super) fn last_map(&self, input: &Tensor, statistics: Statistics) -> Result<Tensor, TchError> {
        let stem = self.norm.apply_with(&self.conv.apply(input)?, statistics)?.f_relu_()?;
        let first = stem.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        self.stages.iter().flatten().try_fold(first, |map, block| block.apply(&map, statistics))
    }
}

/// A ResNet over a variable store.
#[derive(Debug)]
pub(super) struct ResNet {
    trunk: Trunk,
    fc: Linear,
}

impl ResNet {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, depth: Depth, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let trunk = Trunk::new(path, TrunkNames::TORCHVISION, depth, width)?;
        let fc = Linear::new(&(path / "fc"), trunk.last_channels(), n_classes)?;
        Ok(Self { trunk, fc })
    }
}

impl Convolutional for ResNet {
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.trunk.last_map(input, Statistics::Running)
    }

    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let embedding = global_average(feature_map)?;
        Ok((self.fc.apply(&embedding)?, embedding))
    }

    fn pooled_linear_weight(&self) -> Option<&Tensor> {
        Some(self.fc.weight())
    }
}
