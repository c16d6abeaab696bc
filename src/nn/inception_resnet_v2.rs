//! Inception-ResNet-v2 as timm's `inception_resnet_v2` defines it, variable names included: residual blocks whose
//! branches are joined by a 1x1 convolution with bias and added at a fixed scale.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    explain::Convolutional,
    inception::{ConvNorm, Mixed, Plan, Stem},
    layers::{Conv, Geometry, Linear, at, global_average},
};

const ONE: Geometry = Geometry::same(1, 1);
const THREE: Geometry = Geometry::same(3, 3);
const HALVING: Geometry = Geometry::valid(3, 2);

/// The convolutions before the first branches: name, output channels, geometry, and whether a max pool follows.
const STEM: [(&str, u32, Geometry, bool); 5] = [
    ("conv2d_1a", 32, HALVING, false),
    ("conv2d_2a", 32, Geometry::valid(3, 1), false),
    ("conv2d_2b", 64, THREE, true),
    ("conv2d_3b", 80, ONE, false),
    ("conv2d_4a", 192, Geometry::valid(3, 1), true),
];

const MIXED_5B: [&[Plan]; 4] = [
    &[Plan::Conv("branch0", 96, ONE)],
    &[Plan::Conv("branch1.0", 48, ONE), Plan::Conv("branch1.1", 64, Geometry::same(5, 5))],
    &[Plan::Conv("branch2.0", 64, ONE), Plan::Conv("branch2.1", 96, THREE), Plan::Conv("branch2.2", 96, THREE)],
    &[Plan::AveragePool { count_border: false }, Plan::Conv("branch3.1", 64, ONE)],
];

const BLOCK35: [&[Plan]; 3] = [
    &[Plan::Conv("branch0", 32, ONE)],
    &[Plan::Conv("branch1.0", 32, ONE), Plan::Conv("branch1.1", 32, THREE)],
    &[Plan::Conv("branch2.0", 32, ONE), Plan::Conv("branch2.1", 48, THREE), Plan::Conv("branch2.2", 64, THREE)],
];

const MIXED_6A: [&[Plan]; 3] = [
    &[Plan::Conv("branch0", 384, HALVING)],
    &[Plan::Conv("branch1.0", 256, ONE), Plan::Conv("branch1.1", 256, THREE), Plan::Conv("branch1.2", 384, HALVING)],
    &[Plan::MaxPool],
];

const BLOCK17: [&[Plan]; 2] = [
    &[Plan::Conv("branch0", 192, ONE)],
    &[
        Plan::Conv("branch1.0", 128, ONE),
        Plan::Conv("branch1.1", 160, Geometry::same(1, 7)),
        Plan::Conv("branch1.2", 192, Geometry::same(7, 1)),
    ],
];

const MIXED_7A: [&[Plan]; 4] = [
    &[Plan::Conv("branch0.0", 256, ONE), Plan::Conv("branch0.1", 384, HALVING)],
    &[Plan::Conv("branch1.0", 256, ONE), Plan::Conv("branch1.1", 288, HALVING)],
    &[Plan::Conv("branch2.0", 256, ONE), Plan::Conv("branch2.1", 288, THREE), Plan::Conv("branch2.2", 320, HALVING)],
    &[Plan::MaxPool],
];

const BLOCK8: [&[Plan]; 2] = [
    &[Plan::Conv("branch0", 192, ONE)],
    &[
        Plan::Conv("branch1.0", 192, ONE),
        Plan::Conv("branch1.1", 224, Geometry::same(1, 3)),
        Plan::Conv("branch1.2", 256, Geometry::same(3, 1)),
    ],
];

/// `input + scale * join(branches(input))`, then ReLU but for the very last one.
#[derive(Debug)]
struct Residual {
    branches: Mixed,
    join: Conv,
    scale: f64,
    has_relu: bool,
}

impl Residual {
    fn new(
        path: &Path<'_>,
        channels: i64,
        width: f64,
        plans: &[&[Plan]],
        scale: f64,
        has_relu: bool,
    ) -> Result<Self, TchError> {
        let branches = Mixed::new(path, channels, width, plans)?;
        let join = Conv::biased(&(path / "conv2d"), (branches.output_channels, channels), ONE)?;
        Ok(Self { branches, join, scale, has_relu })
    }

    fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let joined = self.join.apply(&self.branches.apply(input)?)?;
        let mut sum = joined.f_mul_scalar(self.scale)?.f_add(input)?;
        if self.has_relu { sum.f_relu_() } else { Ok(sum) }
    }
}

#[derive(Debug)]
enum Block {
    Mixed(Mixed),
    Residual(Residual),
}

/// Inception-ResNet-v2 over a variable store.
#[derive(Debug)]
pub(super) struct InceptionResNetV2 {
    stem: Stem,
    blocks: Vec<Block>,
    last: ConvNorm,
    classif: Linear,
}

impl InceptionResNetV2 {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let (stem, mut channels) = Stem::new(path, &STEM, width)?;
        let mut blocks = Vec::new();
        for (mixed_name, mixed_plans, stage_name, n_blocks, plans, scale) in [
            ("mixed_5b", MIXED_5B.as_slice(), "repeat", 10, BLOCK35.as_slice(), 0.17),
            ("mixed_6a", MIXED_6A.as_slice(), "repeat_1", 20, BLOCK17.as_slice(), 0.10),
            ("mixed_7a", MIXED_7A.as_slice(), "repeat_2", 9, BLOCK8.as_slice(), 0.20),
        ] {
            let mixed = Mixed::new(&(path / mixed_name), channels, width, mixed_plans)?;
            channels = mixed.output_channels;
            blocks.push(Block::Mixed(mixed));
            for block_idx in 0..n_blocks {
                let path = at(path, stage_name) / block_idx;
                blocks.push(Block::Residual(Residual::new(&path, channels, width, plans, scale, true)?));
            }
        }
        blocks.push(Block::Residual(Residual::new(&(path / "block8"), channels, width, &BLOCK8, 1.0, false)?));
        let last_channels = scaled_channels(1536, width);
        let last = ConvNorm::new(path, "conv2d_7b", (channels, last_channels), ONE)?;
        let classif = Linear::new(&(path / "classif"), last_channels, n_classes)?;
        Ok(Self { stem, blocks, last, classif })
    }
}

impl Convolutional for InceptionResNetV2 {
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut map = self.stem.apply(input)?;
        for block in &self.blocks {
            map = match block {
                Block::Mixed(mixed) => mixed.apply(&map)?,
                Block::Residual(residual) => residual.apply(&map)?,
            };
        }
        self.last.apply(&map)
    }

    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let embedding = global_average(feature_map)?;
        Ok((self.classif.apply(&embedding)?, embedding))
    }

    /// With dropout of the pooled features.
    fn training_logits(&self, feature_map: &Tensor, dropout: f64) -> Result<Tensor, TchError> {
        self.classif.apply(&global_average(feature_map)?.f_dropout(dropout, true)?)
    }

    fn pooled_linear_weight(&self) -> Option<&Tensor> {
        Some(self.classif.weight())
    }
}
