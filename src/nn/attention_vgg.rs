//! An attention VGG-16 in the manner of ML-SAM (Wei, Yan, Shi, CT Theory and Applications 2021;30:477-486): three
//! levels of the convolutions are each looked at through a spatial attention map that the global features steer, as
//! in "Learn to Pay Attention" (Jetley et al., ICLR 2018). It is **not** the paper's network: only the paper's abstract
//! is confirmed, so three of its choices are [options](AttentionOptions).
//!
//! For a level `L` (projected to as many channels as the last level has) and the global average `g` of the last pool:
//! compatibility `c = conv1x1(L + g)`, attention `a = softmax(c)` over the cells (or `sigmoid(c)`), level descriptor
//! `sum(a * L)` (or its mean).
//!
//! Names: `features.*` as torchvision's VGG-16; `projector` (level 1 to the last level's channels, no bias),
//! `attention1` to `attention3` (1x1 to one channel, no bias), then `classifier` on the three descriptors together
//! (`fusion = "concat"`) or `classifier1` to `classifier3` on one each (`"mean_logit"`).

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor, nn::Path};

use super::{
    layers::{Conv, Geometry, Linear, global_average},
    vgg::{Trunk, VGG16},
};

/// How compatibilities become attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionNorm {
    /// Softmax over all cells of a level: its attention sums to 1.
    #[default]
    Softmax,
    /// Sigmoid of each cell by itself.
    Sigmoid,
}

/// How the three levels become one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionFusion {
    /// One linear layer on the three descriptors.
    #[default]
    Concat,
    /// A linear layer for each descriptor, and the mean of their logits.
    MeanLogit,
}

/// Where the levels are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionTap {
    /// After the last ReLU of the groups 3, 4 and 5: a quarter, an eighth and a sixteenth of the input's side.
    #[default]
    BeforePool,
    /// After their max pools: half of that.
    AfterPool,
}

/// What the paper leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionOptions {
    /// How compatibilities become attention.
    pub attn_norm: AttentionNorm,
    /// How the levels become one answer.
    pub fusion: AttentionFusion,
    /// Where the levels are taken.
    pub tap: AttentionTap,
}

/// What it computes for n images.
#[derive(Debug)]
pub(super) struct AttentionOutput {
    /// n x classes.
    pub(super) logits: Tensor,
    /// n x 3 times the last level's channels: the three descriptors.
    pub(super) embedding: Tensor,
    /// One for each level, n x rows x columns, the finest first.
    pub(super) attention: Vec<Tensor>,
}

#[derive(Debug)]
enum Head {
    Concat(Linear),
    MeanLogit(Vec<Linear>),
}

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct AttentionVgg16 {
    trunk: Trunk,
    projector: Conv,
    attention: Vec<Conv>,
    head: Head,
    options: AttentionOptions,
}

impl AttentionVgg16 {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(
        path: &Path<'_>,
        width: f64,
        n_classes: i64,
        options: AttentionOptions,
    ) -> Result<Self, TchError> {
        let trunk = Trunk::new(path, VGG16, width)?;
        let channels = trunk.last_channels();
        let first_channels = trunk.channels.get(2).copied().unwrap_or(channels);
        let one = Geometry::same(1, 1);
        let projector = Conv::unbiased(&(path / "projector"), (first_channels, channels), one)?;
        let attention = (1..=3)
            .map(|level| Conv::unbiased(&(path / format!("attention{level}")), (channels, 1), one))
            .collect::<Result<_, _>>()?;
        let head = match options.fusion {
            AttentionFusion::Concat => Head::Concat(Linear::new(&(path / "classifier"), 3 * channels, n_classes)?),
            AttentionFusion::MeanLogit => Head::MeanLogit(
                (1..=3)
                    .map(|level| Linear::new(&(path / format!("classifier{level}")), channels, n_classes))
                    .collect::<Result<_, _>>()?,
            ),
        };
        Ok(Self { trunk, projector, attention, head, options })
    }

    /// Whether each attention map sums to 1.
    pub(super) fn attention_sums_to_one(&self) -> bool {
        self.options.attn_norm == AttentionNorm::Softmax
    }

    /// `n x 3 x rows x columns` in; both sides at least 32.
    pub(super) fn forward(&self, input: &Tensor) -> Result<AttentionOutput, TchError> {
        let pyramid = self.trunk.pyramid(input)?;
        let (_, last) =
            pyramid.last().ok_or_else(|| TchError::Torch("the trunk of the attention network is empty".to_owned()))?;
        let global = global_average(last)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
        let mut descriptors = Vec::new();
        let mut attention = Vec::new();
        for (level_idx, ((before, after), compatibility)) in pyramid.iter().skip(2).zip(&self.attention).enumerate() {
            let tapped = match self.options.tap {
                AttentionTap::BeforePool => before,
                AttentionTap::AfterPool => after,
            };
            let level = if level_idx == 0 { self.projector.apply(tapped)? } else { tapped.shallow_clone() };
            let (_, _, rows, columns) = level.size4()?;
            let scores = compatibility.apply(&level.f_add(&global)?)?.f_flatten(1, -1)?;
            let weights = match self.options.attn_norm {
                AttentionNorm::Softmax => scores.f_softmax(1, Kind::Float)?,
                AttentionNorm::Sigmoid => scores.f_sigmoid()?,
            };
            let summed = level.f_flatten(2, -1)?.f_bmm(&weights.f_unsqueeze(2)?)?.f_squeeze_dim(2)?;
            descriptors.push(match self.options.attn_norm {
                AttentionNorm::Softmax => summed,
                AttentionNorm::Sigmoid => summed.f_div_scalar(rows * columns)?,
            });
            attention.push(weights.f_view([-1, rows, columns])?);
        }
        let embedding = Tensor::f_cat(&descriptors, 1)?;
        let logits = match &self.head {
            Head::Concat(linear) => linear.apply(&embedding)?,
            Head::MeanLogit(linears) => {
                let each = linears
                    .iter()
                    .zip(&descriptors)
                    .map(|(linear, descriptor)| linear.apply(descriptor))
                    .collect::<Result<Vec<_>, _>>()?;
                Tensor::f_stack(&each, 0)?.f_mean_dim([0i64].as_slice(), false, None)?
            }
        };
        Ok(AttentionOutput { logits, embedding, attention })
    }
}
