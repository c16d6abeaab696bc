//! What Inception V3 and Inception-ResNet-v2 are made of: convolutions with batch normalisation and ReLU, in parallel
//! branches whose outputs are concatenated.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    layers::{BatchNorm, Conv, Geometry, at},
};

/// Of batch normalisation, as in TensorFlow, where these networks come from.
const BATCH_NORM_EPSILON: f64 = 1e-3;

/// Sides smaller than this leave nothing to pool.
pub(super) const MINIMUM_SIDE_PIXELS: u32 = 75;

/// Convolution without bias, batch normalisation, ReLU; named `<name>.conv` and `<name>.bn`.
#[derive(Debug)]
pub(super) struct ConvNorm {
    conv: Conv,
    norm: BatchNorm,
}

impl ConvNorm {
    pub(super) fn new(path: &Path<'_>, name: &str, channels: (i64, i64), geometry: Geometry) -> Result<Self, TchError> {
        let path = at(path, name);
        Ok(Self {
            conv: Conv::unbiased(&(&path / "conv"), channels, geometry)?,
            norm: BatchNorm::with_epsilon(&(&path / "bn"), channels.1, BATCH_NORM_EPSILON)?,
        })
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.norm.apply(&self.conv.apply(input)?)?.f_relu_()
    }
}

/// The convolutions before the first branches, each with whether a max pool follows.
#[derive(Debug)]
pub(super) struct Stem(Vec<(ConvNorm, bool)>);

impl Stem {
    /// Declares them for pictures of three channels, as a table says it: name, output channels at full width, geometry, and
    /// whether a max pool follows. Returns the number of channels that come out as well.
    pub(super) fn new(
        path: &Path<'_>,
        convolutions: &[(&str, u32, Geometry, bool)],
        width: f64,
    ) -> Result<(Self, i64), TchError> {
        let mut channels = 3;
        let mut stem = Vec::with_capacity(convolutions.len());
        for &(name, base_channels, geometry, is_pooled) in convolutions {
            let output_channels = scaled_channels(base_channels, width);
            stem.push((ConvNorm::new(path, name, (channels, output_channels), geometry)?, is_pooled));
            channels = output_channels;
        }
        Ok((Self(stem), channels))
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut map = input.shallow_clone();
        for (conv, is_pooled) in &self.0 {
            map = conv.apply(&map)?;
            if *is_pooled {
                map = max_pool_3x3(&map)?;
            }
        }
        Ok(map)
    }
}

/// A step of a branch, as the tables of the networks say it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plan {
    /// Name, output channels at full width, geometry.
    Conv(&'static str, u32, Geometry),
    /// Convolutions of the same input, concatenated.
    Fork([(&'static str, u32, Geometry); 2]),
    /// 3x3 with stride 2.
    MaxPool,
    /// 3x3, as large as the input; whether the border of zeros counts in the mean.
    AveragePool { count_border: bool },
}

#[derive(Debug)]
enum Step {
    Conv(ConvNorm),
    Fork(Vec<ConvNorm>),
    MaxPool,
    AveragePool { count_border: bool },
}

impl Step {
    fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Conv(conv) => conv.apply(input),
            Self::Fork(convs) => {
                let outputs = convs.iter().map(|conv| conv.apply(input)).collect::<Result<Vec<_>, _>>()?;
                Tensor::f_cat(&outputs, 1)
            }
            Self::MaxPool => max_pool_3x3(input),
            Self::AveragePool { count_border } => {
                input.f_avg_pool2d([3, 3], [1, 1], [1, 1], false, *count_border, None::<i64>)
            }
        }
    }
}

/// 3x3 max pool with stride 2, without padding.
fn max_pool_3x3(input: &Tensor) -> Result<Tensor, TchError> {
    input.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}

/// Parallel branches of one input, concatenated in their order.
#[derive(Debug)]
pub(super) struct Mixed {
    branches: Vec<Vec<Step>>,
    /// Of the concatenation.
    pub(super) output_channels: i64,
}

impl Mixed {
    /// Declares the variables, all zero, under `path`. Output channels are scaled by `width`.
    pub(super) fn new(path: &Path<'_>, input_channels: i64, width: f64, plans: &[&[Plan]]) -> Result<Self, TchError> {
        let mut mixed = Self { branches: Vec::new(), output_channels: 0 };
        for plan in plans {
            let mut channels = input_channels;
            let mut branch = Vec::new();
            for step in *plan {
                branch.push(match *step {
                    Plan::Conv(name, base_channels, geometry) => {
                        let output_channels = scaled_channels(base_channels, width);
                        let conv = ConvNorm::new(path, name, (channels, output_channels), geometry)?;
                        channels = output_channels;
                        Step::Conv(conv)
                    }
                    Plan::Fork(convs) => {
                        let mut outputs = Vec::new();
                        let mut total_channels = 0;
                        for (name, base_channels, geometry) in convs {
                            let output_channels = scaled_channels(base_channels, width);
                            outputs.push(ConvNorm::new(path, name, (channels, output_channels), geometry)?);
                            total_channels += output_channels;
                        }
                        channels = total_channels;
                        Step::Fork(outputs)
                    }
                    Plan::MaxPool => Step::MaxPool,
                    Plan::AveragePool { count_border } => Step::AveragePool { count_border },
                });
            }
            mixed.output_channels += channels;
            mixed.branches.push(branch);
        }
        Ok(mixed)
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let outputs = self
            .branches
            .iter()
            .map(|branch| branch.iter().try_fold(input.shallow_clone(), |map, step| step.apply(&map)))
            .collect::<Result<Vec<_>, _>>()?;
        Tensor::f_cat(&outputs, 1)
    }
}
