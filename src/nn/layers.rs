//! Convolution, batch normalisation and linear layers over named variables. Unlike `tch::nn`'s layers they
//! return torch errors instead of panicking.

use tch::{TchError, Tensor, nn::Path};

/// The numeric constant of PyTorch's batch normalisation. TensorFlow's, hence the Inceptions', is 1e-3.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// The variables' path below `path` for a dotted name such as `branch1.0`; tch wants one step at a time.
pub(super) fn at<'a>(path: &Path<'a>, dotted: &str) -> Path<'a> {
    dotted.split('.').fold(path.clone(), |path, step| &path / step)
}

/// Kernel, stride and padding of a two-dimensional convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    kernel: [i64; 2],
    stride: i64,
    padding: [i64; 2],
}

impl Geometry {
    /// A kernel of this many rows and columns (odd), stride 1, output as large as the input.
    pub(super) const fn same(rows: i64, columns: i64) -> Self {
        Self { kernel: [rows, columns], stride: 1, padding: [rows / 2, columns / 2] }
    }

    /// A square kernel without padding.
    pub(super) const fn valid(side: i64, stride: i64) -> Self {
        Self { kernel: [side; 2], stride, padding: [0; 2] }
    }

    /// The same with another stride.
    pub(super) const fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }
}

/// A two-dimensional convolution.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    geometry: Geometry,
}

impl Conv {
    /// Without bias: batch normalisation follows. `channels` are those of input and output.
    pub(super) fn unbiased(path: &Path<'_>, channels: (i64, i64), geometry: Geometry) -> Result<Self, TchError> {
        let weight = path.f_zeros("weight", &[channels.1, channels.0, geometry.kernel[0], geometry.kernel[1]])?;
        Ok(Self { weight, bias: None, geometry })
    }

    /// With bias.
    pub(super) fn biased(path: &Path<'_>, channels: (i64, i64), geometry: Geometry) -> Result<Self, TchError> {
        let conv = Self::unbiased(path, channels, geometry)?;
        Ok(Self { bias: Some(path.f_zeros("bias", &[channels.1])?), ..conv })
    }

    /// 3x3 with bias, stride 1, output as large as the input.
    pub(super) fn same_3x3(path: &Path<'_>, channels: (i64, i64)) -> Result<Self, TchError> {
        Self::biased(path, channels, Geometry::same(3, 3))
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let Geometry { stride, padding, .. } = self.geometry;
        input.f_conv2d(&self.weight, self.bias.as_ref(), [stride; 2], padding, [1, 1], 1)
    }
}

/// A three-dimensional convolution: slices, rows, columns.
#[derive(Debug)]
pub(super) struct Conv3d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: [i64; 3],
    padding: [i64; 3],
}

impl Conv3d {
    /// Without bias; the kernel's sides are odd and the padding is half of them.
    pub(super) fn unbiased(
        path: &Path<'_>,
        channels: (i64, i64),
        kernel: [i64; 3],
        stride: [i64; 3],
    ) -> Result<Self, TchError> {
        let weight = path.f_zeros("weight", &[channels.1, channels.0, kernel[0], kernel[1], kernel[2]])?;
        Ok(Self { weight, bias: None, stride, padding: kernel.map(|side| side / 2) })
    }

    /// 3x3x3 with bias, stride 1, output as large as the input.
    pub(super) fn same_3x3x3(path: &Path<'_>, channels: (i64, i64)) -> Result<Self, TchError> {
        let conv = Self::unbiased(path, channels, [3; 3], [1; 3])?;
        Ok(Self { bias: Some(path.f_zeros("bias", &[channels.1])?), ..conv })
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_conv3d(&self.weight, self.bias.as_ref(), self.stride, self.padding, [1; 3], 1)
    }
}

/// Which mean and variance batch normalisation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistics {
    /// Those that training stored.
    Running,
    /// Those of this very input, over everything but the channels: the answer for one image then depends on the
    /// images beside it.
    Batch,
}

/// Batch normalisation of two- or three-dimensional maps.
#[derive(Debug)]
pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    epsilon: f64,
}

impl BatchNorm {
    pub(super) fn new(path: &Path<'_>, channels: i64) -> Result<Self, TchError> {
        Self::with_epsilon(path, channels, BATCH_NORM_EPSILON)
    }

    pub(super) fn with_epsilon(path: &Path<'_>, channels: i64, epsilon: f64) -> Result<Self, TchError> {
        Ok(Self {
            weight: path.f_zeros("weight", &[channels])?,
            bias: path.f_zeros("bias", &[channels])?,
            running_mean: path.f_zeros_no_train("running_mean", &[channels])?,
            running_var: path.f_zeros_no_train("running_var", &[channels])?,
            epsilon,
        })
    }

    /// With the stored statistics.
    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.apply_with(input, Statistics::Running)
    }

    /// With the stored statistics or the input's own. A layer whose weights want gradients is being trained: it uses the
    /// input's own, and the stored ones follow them (by a tenth, with the unbiased variance, as PyTorch's do). Of a frozen
    /// layer the stored ones never change.
    pub(super) fn apply_with(&self, input: &Tensor, statistics: Statistics) -> Result<Tensor, TchError> {
        let is_trained = self.weight.requires_grad();
        let (running_mean, running_var) = match statistics {
            Statistics::Running => (Some(&self.running_mean), Some(&self.running_var)),
            Statistics::Batch => (None, None),
        };
        input.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            running_mean,
            running_var,
            is_trained || statistics == Statistics::Batch,
            0.1,
            self.epsilon,
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

/// 2x2 max pool with stride 2; an odd last row or column is dropped.
pub(super) fn max_pool_2x2(input: &Tensor) -> Result<Tensor, TchError> {
    input.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
}

/// Mean over rows and columns: n x channels.
pub(super) fn global_average(input: &Tensor) -> Result<Tensor, TchError> {
    input.f_mean_dim([2i64, 3].as_slice(), false, None)
}

/// Twice as many rows and columns, bilinear, pixel areas aligned (PyTorch's `align_corners=False`).
pub(super) fn upsample_bilinear_x2(input: &Tensor) -> Result<Tensor, TchError> {
    let (_, _, rows, columns) = input.size4()?;
    input.f_upsample_bilinear2d([2 * rows, 2 * columns], false, None, None)
}

/// Adaptive average pooling (PyTorch's `AdaptiveAvgPool2d`) to a square grid, written as a matrix product: oneDNN pools
/// only grids that divide the map, and recorded networks must run at every image side.
#[derive(Debug)]
pub(super) struct AveragePool {
    /// `rows * columns` of the map by `side * side`; `None` when the map has the grid's size already.
    weights: Option<Tensor>,
}

impl AveragePool {
    /// For maps `n x channels x rows x columns` as large as `map`.
    pub(super) fn to_square(map: &Tensor, side: i64) -> Result<Self, TchError> {
        let (_, _, rows, columns) = map.size4()?;
        if (rows, columns) == (side, side) {
            return Ok(Self { weights: None });
        }
        let of_rows = averages(rows, side, map.device())?.f_view([side, 1, rows, 1])?;
        let of_columns = averages(columns, side, map.device())?.f_view([1, side, 1, columns])?;
        let of_both = of_rows.f_mul(&of_columns)?.f_reshape([side * side, rows * columns])?;
        Ok(Self { weights: Some(of_both.f_transpose(0, 1)?) })
    }

    /// The grid, with one dimension for its cells or with two.
    pub(super) fn apply(&self, map: &Tensor) -> Result<Tensor, TchError> {
        match &self.weights {
            None => Ok(map.shallow_clone()),
            Some(weights) => map.f_flatten(2, 3)?.f_matmul(weights),
        }
    }

    /// The gradient with respect to the map, of that with respect to the grid (in the shape of [`apply`](Self::apply)).
    pub(super) fn gradient(&self, of_grid: &Tensor, map: &Tensor) -> Result<Tensor, TchError> {
        match &self.weights {
            None => Ok(of_grid.shallow_clone()),
            Some(weights) => of_grid.f_matmul(&weights.f_transpose(0, 1)?)?.f_view_as(map),
        }
    }
}

/// `side x length`: row i averages the samples from floor(i length / side) to before ceil((i + 1) length / side). Made by
/// operations on tensors: of numbers that are copied into a tensor a recording knows nothing.
fn averages(length: i64, side: i64, device: tch::Device) -> Result<Tensor, TchError> {
    let whole = (tch::Kind::Int64, device);
    let scaled = Tensor::f_arange(side, whole)?.f_mul_scalar(length)?.f_unsqueeze(1)?;
    let first = scaled.f_floor_divide_scalar(side)?;
    let end = scaled.f_add_scalar(length + side - 1)?.f_floor_divide_scalar(side)?;
    let samples = Tensor::f_arange(length, whole)?;
    let is_inside = samples.f_ge_tensor(&first)?.f_logical_and(&samples.f_lt_tensor(&end)?)?;
    let is_inside = is_inside.f_to_kind(tch::Kind::Float)?;
    is_inside.f_div(&is_inside.f_sum_dim_intlist([1i64].as_slice(), true, None::<tch::Kind>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_by_matrices_is_pytorchs() {
        for (rows, columns) in [(2, 2), (7, 7), (14, 14), (16, 16), (5, 12)] {
            let map = Tensor::arange(2 * 3 * rows * columns, (tch::Kind::Float, tch::Device::Cpu));
            let map = map.view([2, 3, rows, columns]).sin().set_requires_grad(true);
            let expected = map.adaptive_avg_pool2d([7, 7]);
            let pool = AveragePool::to_square(&map, 7).unwrap();
            let close = |a: &Tensor, b: &Tensor| f64::try_from((a - b).abs().max()).unwrap() < 1e-5;
            let grid = pool.apply(&map).unwrap();
            assert!(close(&grid.view_as(&expected), &expected), "{rows} x {columns}");
            let of_grid = expected.detach().cos();
            (&expected * &of_grid).sum(tch::Kind::Float).backward();
            let gradient = pool.gradient(&of_grid.view_as(&grid), &map).unwrap();
            assert!(close(&gradient, &map.grad()), "{rows} x {columns}");
        }
    }
}
