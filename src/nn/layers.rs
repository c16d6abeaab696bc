//! Convolution, batch normalisation and linear layers over named variables. Unlike `tch::nn`'s layers they
//! return torch errors instead of panicking.

use tch::{TchError, Tensor, nn::Path};

/// The numeric constant of torchvision's batch normalisation.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// A square two-dimensional convolution.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv {
    /// Without bias, as ResNets have it: batch normalisation follows.
    pub(super) fn without_bias(
        path: &Path<'_>,
        channels: (i64, i64),
        kernel_side: i64,
        stride: i64,
    ) -> Result<Self, TchError> {
        let weight = path.f_zeros("weight", &[channels.1, channels.0, kernel_side, kernel_side])?;
        Ok(Self { weight, bias: None, stride, padding: kernel_side / 2 })
    }

    /// 3x3 with bias, stride 1, output as large as the input.
    pub(super) fn same_3x3(path: &Path<'_>, channels: (i64, i64)) -> Result<Self, TchError> {
        let weight = path.f_zeros("weight", &[channels.1, channels.0, 3, 3])?;
        let bias = path.f_zeros("bias", &[channels.1])?;
        Ok(Self { weight, bias: Some(bias), stride: 1, padding: 1 })
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_conv2d(&self.weight, self.bias.as_ref(), [self.stride; 2], [self.padding; 2], [1, 1], 1)
    }
}

/// Batch normalisation with stored statistics.
#[derive(Debug)]
pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    pub(super) fn new(path: &Path<'_>, channels: i64) -> Result<Self, TchError> {
        Ok(Self {
            weight: path.f_zeros("weight", &[channels])?,
            bias: path.f_zeros("bias", &[channels])?,
            running_mean: path.f_zeros_no_train("running_mean", &[channels])?,
            running_var: path.f_zeros_no_train("running_var", &[channels])?,
        })
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            false,
            0.1,
            BATCH_NORM_EPSILON,
            true,
        )
    }
}

/// A fully connected layer.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(super) fn new(path: &Path<'_>, inputs: i64, outputs: i64) -> Result<Self, TchError> {
        Ok(Self { weight: path.f_zeros("weight", &[outputs, inputs])?, bias: path.f_zeros("bias", &[outputs])? })
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_linear(&self.weight, Some(&self.bias))
    }

    /// `outputs x inputs`.
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }
}
