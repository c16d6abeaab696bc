//! Which regions of an image a network's answer rests on.
//!
//! For a network whose last feature map `A` (K channels of N cells) is followed by a head, everything is computed
//! from `A` and the gradient `g` of the target's logit with respect to `A`; nothing before `A` is ever
//! differentiated. Where the head is a global average pool and one linear layer with weights `w`, `g` is `w / N` in
//! every cell and no automatic differentiation is needed at all.
//!
//! | method | map | source |
//! | --- | --- | --- |
//! | CAM | `sum_k w_k A_k`, signed; only for a pooled linear head | Zhou et al., CVPR 2016 |
//! | Grad-CAM | `relu(sum_k mean(g_k) A_k)` | Selvaraju et al., ICCV 2017 |
//! | HiResCAM | `sum_k g_k * A_k`, signed | Draelos, Carin, arXiv:2011.08891 |
//! | Grad-CAM++ | `relu(sum_k sum(relu(g_k) * a_k) A_k)`, `a = g^2 / (2 g^2 + sum(A_k) g^3)` | Chattopadhay et al., WACV 2018, as in pytorch-grad-cam |
//! | attention | the network's own attention maps, brought to one grid and averaged | by-product of the forward pass |
//! | class maps | the network's own map of each class | by-product of the forward pass |
//! | Integrated Gradients | mean gradient along a straight line from a baseline, times the way | Sundararajan et al., ICML 2017 |
//!
//! With a pooled linear head CAM, Grad-CAM and HiResCAM are one picture but for scale and sign: `N` HiResCAM = CAM,
//! and Grad-CAM is the positive part of HiResCAM.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

/// How a map of regions is computed. Each architecture has its own list, the default first: see
/// [`Architecture::explanations`](super::Architecture::explanations).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Explanation {
    /// Class-activation map, in closed form.
    #[serde(rename = "cam")]
    Cam,
    /// Grad-CAM, positive part.
    #[serde(rename = "gradcam")]
    GradCam,
    /// HiResCAM: shows only what the head used.
    #[serde(rename = "hirescam")]
    HiResCam,
    /// Grad-CAM++, positive part.
    #[serde(rename = "gradcam_plus_plus")]
    GradCamPlusPlus,
    /// Attention maps of the network itself; the same for every class.
    #[serde(rename = "attention")]
    Attention,
    /// Class maps of the network itself.
    #[serde(rename = "class_maps")]
    ClassMaps,
    /// Integrated Gradients, at the resolution of the input; dozens of forward and backward passes.
    #[serde(rename = "integrated_gradients")]
    IntegratedGradients,
}

impl Explanation {
    /// The name used in manifests and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cam => "cam",
            Self::GradCam => "gradcam",
            Self::HiResCam => "hirescam",
            Self::GradCamPlusPlus => "gradcam_plus_plus",
            Self::Attention => "attention",
            Self::ClassMaps => "class_maps",
            Self::IntegratedGradients => "integrated_gradients",
        }
    }
}

impl Explanation {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Cam,
        Self::GradCam,
        Self::HiResCam,
        Self::GradCamPlusPlus,
        Self::Attention,
        Self::ClassMaps,
        Self::IntegratedGradients,
    ];

    /// Whether it is quick enough to be made of every image; the others are made on demand.
    #[must_use]
    pub const fn is_routine(self) -> bool {
        !matches!(self, Self::IntegratedGradients)
    }

    /// The method of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A network with a last feature map and a head behind it.
pub(super) trait Convolutional: fmt::Debug + Send {
    /// `n x channels x rows x columns` in; the last feature map out, `n x K x rows x columns` (or with a third
    /// spatial dimension).
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError>;

    /// Logits (n x classes) and embedding (n x features) of a feature map. No operation in place on its argument: it
    /// is differentiated.
    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError>;

    /// The logits while the network is trained: dropout, where the publication has it, leaves out this share of the
    /// features.
    fn training_logits(&self, feature_map: &Tensor, _dropout: f64) -> Result<Tensor, TchError> {
        Ok(self.head(feature_map)?.0)
    }

    /// The head's answer and the gradient of the logits of `target_class_idxs` (n whole numbers) with respect to the
    /// feature map. Differentiated automatically here; a head that writes its gradient out can be recorded and
    /// optimised.
    fn head_gradient(&self, feature_map: &Tensor, target_class_idxs: &Tensor) -> Result<HeadGradient, TchError> {
        tch::with_grad(|| {
            let leaf = feature_map.f_detach_copy()?.f_requires_grad_(true)?;
            let (logits, embedding) = self.head(&leaf)?;
            let target_logits = logits.f_gather(1, &target_class_idxs.f_unsqueeze(1)?, false)?;
            let gradient = gradient_of(&target_logits.f_sum(Kind::Float)?, &leaf, false)?;
            Ok(HeadGradient { logits: logits.f_detach()?, embedding: embedding.f_detach()?, gradient })
        })
    }

    /// The weights (classes x K) where a global average pool and this one linear layer are all of the head.
    fn pooled_linear_weight(&self) -> Option<&Tensor> {
        None
    }
}

/// What a head says of a feature map, and why.
#[derive(Debug)]
pub(super) struct HeadGradient {
    /// n x classes.
    pub(super) logits: Tensor,
    /// n x features.
    pub(super) embedding: Tensor,
    /// Of the targets' logits; the feature map's shape.
    pub(super) gradient: Tensor,
}

/// An answer and its map.
#[derive(Debug)]
pub(super) struct Explained {
    /// n x classes.
    pub(super) logits: Tensor,
    /// n x features.
    pub(super) embedding: Tensor,
    /// n x the spatial dimensions of the feature map.
    pub(super) map: Tensor,
}

/// Runs the head on a feature map and explains the logits of `target_class_idxs` (n whole numbers).
pub(super) fn explain_head(
    network: &dyn Convolutional,
    feature_map: &Tensor,
    target_class_idxs: &Tensor,
    method: Explanation,
) -> Result<Explained, TchError> {
    if let Some(weight) = network.pooled_linear_weight() {
        let (logits, embedding) = network.head(feature_map)?;
        let class_weights = weight.f_index_select(0, target_class_idxs)?;
        let map = if method == Explanation::Cam {
            weighted_sum(&class_weights, feature_map)?
        } else {
            let cells: i64 = feature_map.size().iter().skip(2).product();
            let gradient = as_channels(&class_weights, feature_map)?.f_div_scalar(cells)?.f_expand_as(feature_map)?;
            map_of_gradient(method, feature_map, &gradient)?
        };
        return Ok(Explained { logits, embedding, map });
    }
    let HeadGradient { logits, embedding, gradient } = network.head_gradient(feature_map, target_class_idxs)?;
    let map = map_of_gradient(method, feature_map, &gradient)?;
    Ok(Explained { logits, embedding, map })
}

/// 1 where an activation is positive, hence let a gradient through its ReLU, else 0.
pub(super) fn let_through(activation: &Tensor) -> Result<Tensor, TchError> {
    activation.f_gt(0.0)?.f_to_kind(Kind::Float)
}

/// The map that `method` makes of a feature map and the gradient of a logit with respect to it.
fn map_of_gradient(method: Explanation, feature_map: &Tensor, gradient: &Tensor) -> Result<Tensor, TchError> {
    let spatial: Vec<i64> = (2..feature_map.dim() as i64).collect();
    match method {
        Explanation::HiResCam => gradient.f_mul(feature_map)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float),
        Explanation::GradCam => {
            weighted_sum(&gradient.f_mean_dim(spatial.as_slice(), false, None)?, feature_map)?.f_relu()
        }
        Explanation::GradCamPlusPlus => {
            let square = gradient.f_square()?;
            let channel_sums = feature_map.f_sum_dim_intlist(spatial.as_slice(), true, Kind::Float)?;
            let denominator = square.f_mul_scalar(2.0)?.f_add(&square.f_mul(gradient)?.f_mul(&channel_sums)?)?;
            // The constant is pytorch-grad-cam's; where a gradient is 0 its weight is 0.
            let coefficients = square.f_div(&denominator.f_add_scalar(1e-6)?)?;
            let weights =
                gradient.f_relu()?.f_mul(&coefficients)?.f_sum_dim_intlist(spatial.as_slice(), false, Kind::Float)?;
            weighted_sum(&weights, feature_map)?.f_relu()
        }
        Explanation::Cam | Explanation::Attention | Explanation::ClassMaps | Explanation::IntegratedGradients => {
            Err(not_offered(method))
        }
    }
}

/// The error of a network that is asked for a map it does not have.
pub(super) fn not_offered(method: Explanation) -> TchError {
    TchError::Torch(format!("this network has no {method} map: choose one that its architecture offers"))
}

/// `sum_k w_nk A_nk`: weights n x K, map n x K x spatial, result n x spatial.
fn weighted_sum(weights: &Tensor, feature_map: &Tensor) -> Result<Tensor, TchError> {
    let size = feature_map.size();
    let mut shape: Vec<i64> = vec![-1];
    shape.extend(size.iter().skip(2));
    weights.f_unsqueeze(1)?.f_bmm(&feature_map.f_flatten(2, -1)?)?.f_view(shape.as_slice())
}

/// n x K as n x K x 1 x 1 (or with as many ones as the map has spatial dimensions).
fn as_channels(weights: &Tensor, feature_map: &Tensor) -> Result<Tensor, TchError> {
    let mut shape = vec![-1, weights.size2()?.1];
    shape.resize(feature_map.dim(), 1);
    weights.f_view(shape.as_slice())
}

fn gradient_of(scalar: &Tensor, leaf: &Tensor, keep_graph: bool) -> Result<Tensor, TchError> {
    Tensor::f_run_backward(&[scalar], &[leaf], keep_graph, false)?
        .into_iter()
        .next()
        .ok_or_else(|| TchError::Torch("the backward pass returned no gradient".to_owned()))
}

/// The way of Integrated Gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IntegratedGradientsOptions {
    /// Points on the line from the baseline to the image, both ends included; at least 2.
    pub steps: u32,
    /// Value of every sample of the baseline image, in the units of the normalised input.
    pub baseline: f32,
    /// Points that run through the network at once; 0 counts as 1. Changes memory and time only.
    pub max_batch: u32,
}

impl Default for IntegratedGradientsOptions {
    /// As Hu et al. released it: 25 points from an image of -1.
    fn default() -> Self {
        Self { steps: 25, baseline: -1.0, max_batch: 5 }
    }
}

/// Integrated Gradients of one image (`1 x channels x rows x columns`) for the class `target_class_idx` of every
/// tensor of logits (`n x classes` each) that `forward` returns; one attribution of the image's shape for each. The
/// forward passes are shared by all of them.
///
/// The gradient is averaged over evenly spaced points with equal weights, both ends included, as in PAIR's saliency
/// library, and multiplied with the way from the baseline.
pub(super) fn integrated_gradients(
    forward: impl Fn(&Tensor) -> Result<Vec<Tensor>, TchError>,
    image: &Tensor,
    target_class_idx: i64,
    options: IntegratedGradientsOptions,
) -> Result<Vec<Tensor>, TchError> {
    if options.steps < 2 {
        return Err(TchError::Torch(format!("Integrated Gradients needs at least 2 steps, not {}", options.steps)));
    }
    let image = image.f_detach()?;
    let way = image.f_sub_scalar(f64::from(options.baseline))?;
    let mut sums: Vec<Tensor> = Vec::new();
    let points: Vec<u32> = (0..options.steps).collect();
    for chunk in points.chunks(options.max_batch.max(1) as usize) {
        let fractions: Vec<f32> =
            chunk.iter().map(|point| (f64::from(*point) / f64::from(options.steps - 1)) as f32).collect();
        let fractions = Tensor::f_from_slice(&fractions)?.f_to(image.device())?.f_view([-1, 1, 1, 1])?;
        let path = way.f_mul(&fractions)?.f_add_scalar(f64::from(options.baseline))?;
        let gradients = tch::with_grad(|| -> Result<Vec<Tensor>, TchError> {
            let leaf = path.f_detach()?.f_requires_grad_(true)?;
            let outputs = forward(&leaf)?;
            let last_idx = outputs.len().saturating_sub(1);
            outputs
                .iter()
                .enumerate()
                .map(|(output_idx, logits)| {
                    let total = logits.f_select(1, target_class_idx)?.f_sum(Kind::Float)?;
                    gradient_of(&total, &leaf, output_idx < last_idx)?.f_sum_dim_intlist(
                        [0i64].as_slice(),
                        true,
                        Kind::Float,
                    )
                })
                .collect()
        })?;
        sums = if sums.is_empty() {
            gradients
        } else {
            sums.iter().zip(&gradients).map(|(sum, more)| sum.f_add(more)).collect::<Result<_, _>>()?
        };
    }
    sums.iter().map(|sum| sum.f_div_scalar(i64::from(options.steps))?.f_mul(&way)).collect()
}

/// An attribution (`1 x channels x rows x columns`) as a grey picture (`rows x columns`): magnitudes summed over the
/// channels, the least 0, the 99th percentile 1, what is above clipped. An attribution of one value becomes all 0.
pub(super) fn grey_of_attribution(attribution: &Tensor) -> Result<Tensor, TchError> {
    let magnitude = attribution.f_abs()?.f_sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Float)?;
    let highest = magnitude.f_flatten(0, -1)?.f_quantile_scalar(0.99, None::<i64>, false, "linear")?;
    stretched(&magnitude, &magnitude.f_min()?, &highest)?.f_clamp(0.0, 1.0)
}

/// Hu et al.'s joint map of the heads' grey pictures: the product of each plus 2, then from 0 to 1.
pub(super) fn joint_saliency(greys: &[Tensor]) -> Result<Tensor, TchError> {
    let (first, rest) =
        greys.split_first().ok_or_else(|| TchError::Torch("a joint map needs at least one attribution".to_owned()))?;
    let product =
        rest.iter().try_fold(first.f_add_scalar(2.0)?, |product, grey| product.f_mul(&grey.f_add_scalar(2.0)?))?;
    stretched(&product, &product.f_min()?, &product.f_max()?)
}

/// `(values - low) / (high - low)`, or all 0 where high is not above low.
fn stretched(values: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor, TchError> {
    let span = high.f_double_value(&[])? - low.f_double_value(&[])?;
    if span > 0.0 { values.f_sub(low)?.f_div_scalar(span) } else { values.f_zeros_like() }
}

/// Maps of several levels (each n x rows x columns, of any sizes) on the grid of the largest, averaged. Attention that
/// sums to 1 is multiplied with its number of cells first, so that 1 is even attention at every level.
pub(super) fn mean_map(maps: &[Tensor], sum_to_one: bool) -> Result<Tensor, TchError> {
    let sizes = maps.iter().map(Tensor::size3).collect::<Result<Vec<_>, _>>()?;
    let (_, rows, columns) = sizes
        .iter()
        .copied()
        .max_by_key(|(_, rows, columns)| rows * columns)
        .ok_or_else(|| TchError::Torch("there is no map to average".to_owned()))?;
    let enlarged = maps
        .iter()
        .zip(&sizes)
        .map(|(map, size)| {
            let scale = if sum_to_one { size.1 * size.2 } else { 1 };
            map.f_mul_scalar(scale)?.f_unsqueeze(1)?.f_upsample_bilinear2d([rows, columns], false, None, None)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Tensor::f_cat(&enlarged, 1)?.f_mean_dim([1i64].as_slice(), false, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn integrated_gradients_are_complete_and_do_not_depend_on_the_batch() {
        // For f(x) = sum of x^2 the attributions add up to f(image) - f(baseline), as fine as the steps are.
        let forward = |x: &Tensor| {
            Ok(vec![x.f_square()?.f_sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)?.f_unsqueeze(1)?])
        };
        let image = Tensor::from_slice(&[0.5f32, -0.25, 2.0, 1.0]).view([1, 1, 2, 2]);
        let of = |max_batch| {
            let options = IntegratedGradientsOptions { steps: 101, baseline: 0.0, max_batch };
            values(&integrated_gradients(forward, &image, 0, options).unwrap()[0])
        };
        let attribution = of(7);
        let total: f32 = attribution.iter().sum();
        assert!((total - 5.3125).abs() < 1e-3, "{total}");
        for (a, b) in attribution.iter().zip(of(0)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn grey_pictures_run_from_0_to_1_and_blank_ones_stay_blank() {
        let attribution = Tensor::arange(200, (Kind::Float, tch::Device::Cpu)).view([1, 2, 10, 10]);
        let grey = values(&grey_of_attribution(&attribution).unwrap());
        assert_eq!((grey[0], grey[99]), (0.0, 1.0));
        // Summed over two channels: 100, 102, ... 298; the 99th percentile lies at 296.02.
        assert!((grey[50] - 100.0 / 196.02).abs() < 1e-6, "{}", grey[50]);
        let blank = Tensor::zeros([1, 2, 10, 10], (Kind::Float, tch::Device::Cpu));
        assert_eq!(values(&grey_of_attribution(&blank).unwrap()), vec![0.0; 100]);
    }

    #[test]
    fn even_attention_is_1_everywhere() {
        let maps = [4i64, 2]
            .map(|side| Tensor::full([1, side, side], 1.0 / (side * side) as f64, (Kind::Float, tch::Device::Cpu)));
        assert_eq!(values(&mean_map(&maps, true).unwrap()), vec![1.0; 16]);
    }

    #[test]
    fn names_are_those_of_manifests() {
        for method in Explanation::ALL {
            assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{method}\""));
            assert_eq!(Explanation::named(method.name()), Some(method));
        }
    }
}
