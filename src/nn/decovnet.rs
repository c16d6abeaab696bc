//! DeCoVNet (Wang, Zheng et al., IEEE TMI 2020, DOI 10.1109/TMI.2020.2995965): a three-dimensional network over a CT
//! volume and its lung mask, re-implemented from its description.
//!
//! Names as in the published checkpoint; the stages `s4` and `s5` are in it but not in the network's forward pass and
//! are [ignored](DeCoVNet::ignores).
//!
//! | layers | channels, kernel, stride (slices, rows, columns) |
//! | --- | --- |
//! | `s1.pathway0_stem.conv`, `.bn`, ReLU, max pool | 16, (5, 7, 7), (1, 2, 2); (1, 3, 3), (1, 2, 2) |
//! | `s2.pathway0_res0`: bottleneck with projection | 16 inside, 64 out |
//! | max pool | (2, 1, 1), (2, 1, 1) |
//! | `s3.pathway0_res0`: bottleneck with projection | 32 inside, 128 out, (1, 2, 2) |
//! | adaptive max pool (16, 24, 36), `head.1`, ReLU | 64, 3x3x3 |
//! | adaptive max pool (4, 12, 18), `head.4`, ReLU | 32, 3x3x3 |
//! | adaptive max pool (1, 6, 9), `head.8`, ReLU, global max pool | 32, 3x3x3 |
//! | `classifier.0`, `classifier.1` | 32, classes |

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    explain::{Convolutional, Explained, Explanation, explain_head},
    layers::{BatchNorm, Conv3d, Linear, at},
};

/// The temporal max pool needs as many slices.
pub(super) const MINIMUM_SLICES: i64 = 2;

/// Sides smaller than this leave the last stage nothing.
const MINIMUM_SIDE_PIXELS: i64 = 8;

/// Grids of the head's pools: slices, rows, columns.
const HEAD_GRIDS: [[i64; 3]; 3] = [[16, 24, 36], [4, 12, 18], [1, 6, 9]];

#[derive(Debug)]
struct Bottleneck {
    branch: Vec<(Conv3d, BatchNorm)>,
    projection: (Conv3d, BatchNorm),
}

impl Bottleneck {
    fn new(path: &Path<'_>, channels: (i64, i64), inner: i64, stride: i64) -> Result<Self, TchError> {
        let layer = |name: &str, channels: (i64, i64), kernel, stride| -> Result<(Conv3d, BatchNorm), TchError> {
            let norm = BatchNorm::new(&at(path, &format!("{name}_bn")), channels.1)?;
            Ok((Conv3d::unbiased(&at(path, name), channels, kernel, stride)?, norm))
        };
        let spatial = [1, stride, stride];
        Ok(Self {
            branch: vec![
                layer("branch2.a", (channels.0, inner), [3, 1, 1], [1; 3])?,
                layer("branch2.b", (inner, inner), [1, 3, 3], spatial)?,
                layer("branch2.c", (inner, channels.1), [1; 3], [1; 3])?,
            ],
            projection: layer("branch1", channels, [1; 3], spatial)?,
        })
    }

    fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut branch = input.shallow_clone();
        for (conv_idx, (conv, norm)) in self.branch.iter().enumerate() {
            if conv_idx > 0 {
                branch = branch.f_relu_()?;
            }
            branch = norm.apply(&conv.apply(&branch)?)?;
        }
        let (conv, norm) = &self.projection;
        branch.f_add_(&norm.apply(&conv.apply(input)?)?)?.f_relu_()
    }
}

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct DeCoVNet {
    stem: (Conv3d, BatchNorm),
    res2: Bottleneck,
    res3: Bottleneck,
    head: Vec<Conv3d>,
    classifier: [Linear; 2],
}

impl DeCoVNet {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let scaled = |channels| scaled_channels(channels, width);
        let stem_path = at(path, "s1.pathway0_stem");
        let stem = (
            Conv3d::unbiased(&(&stem_path / "conv"), (2, scaled(16)), [5, 7, 7], [1, 2, 2])?,
            BatchNorm::new(&(&stem_path / "bn"), scaled(16))?,
        );
        let res2 = Bottleneck::new(&at(path, "s2.pathway0_res0"), (scaled(16), scaled(64)), scaled(16), 1)?;
        let res3 = Bottleneck::new(&at(path, "s3.pathway0_res0"), (scaled(64), scaled(128)), scaled(32), 2)?;
        let head = [(1, 128, 64), (4, 64, 32), (8, 32, 32)]
            .into_iter()
            .map(|(layer_idx, inputs, outputs)| {
                Conv3d::same_3x3x3(&(path / "head" / layer_idx), (scaled(inputs), scaled(outputs)))
            })
            .collect::<Result<_, _>>()?;
        let classifier = path / "classifier";
        let classifier = [
            Linear::new(&(&classifier / 0), scaled(32), scaled(32))?,
            Linear::new(&(&classifier / 1), scaled(32), n_classes)?,
        ];
        Ok(Self { stem, res2, res3, head, classifier })
    }

    /// Whether a checkpoint's tensor belongs to the stages that the network does not use.
    pub(super) fn ignores(name: &str) -> bool {
        name.starts_with("s4.") || name.starts_with("s5.")
    }

    /// `1 x 2 x slices x rows x columns` in: CT from 0 to 1 and lung mask 0 or 1, 224 x 336 in the publication. The
    /// map (1 x slices x rows x columns) explains the target's logit by a method for gradients of the last feature
    /// map: HiResCAM, Grad-CAM or Grad-CAM++.
    pub(super) fn forward(
        &self,
        volume: &Tensor,
        target_class_idxs: &Tensor,
        method: Explanation,
    ) -> Result<Explained, TchError> {
        explain_head(self, &self.feature_map(volume)?, target_class_idxs, method)
    }
}

impl Convolutional for DeCoVNet {
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let (_, channels, slices, rows, columns) = input.size5()?;
        if channels != 2 {
            return Err(TchError::Torch(format!(
                "the volume has {channels} channels, and the network takes 2: the CT and its lung mask"
            )));
        }
        if slices < MINIMUM_SLICES {
            return Err(TchError::Torch(format!(
                "the volume has {slices} slices and the network needs at least {MINIMUM_SLICES}: use a scan with more \
                 slices, or resample it more finely"
            )));
        }
        if rows.min(columns) < MINIMUM_SIDE_PIXELS {
            return Err(TchError::Torch(format!(
                "the volume's slices are {rows} x {columns} pixels and must be at least {MINIMUM_SIDE_PIXELS} each way"
            )));
        }
        let (conv, norm) = &self.stem;
        let map = norm.apply(&conv.apply(input)?)?.f_relu_()?;
        let map = map.f_max_pool3d([1, 3, 3], [1, 2, 2], [0, 1, 1], [1, 1, 1], false)?;
        let map = self.res2.apply(&map)?;
        let map = map.f_max_pool3d([2, 1, 1], [2, 1, 1], [0, 0, 0], [1, 1, 1], false)?;
        self.res3.apply(&map)
    }

    /// The embedding is what the last max pool leaves.
    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let mut map = feature_map.shallow_clone();
        for (grid, conv) in HEAD_GRIDS.into_iter().zip(&self.head) {
            map = conv.apply(&map.f_adaptive_max_pool3d(grid)?.0)?.f_relu()?;
        }
        let embedding = map.f_amax([2i64, 3, 4].as_slice(), false)?;
        let [first, second] = &self.classifier;
        Ok((second.apply(&first.apply(&embedding)?)?, embedding))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, nn::VarStore};

    use super::*;

    #[test]
    fn unfit_volumes_are_refused_in_words() {
        let store = VarStore::new(Device::Cpu);
        let network = DeCoVNet::new(&store.root(), 0.5, 2).unwrap();
        for (size, words) in [
            ([1, 2, 1, 32, 32], "has 1 slices and the network needs at least 2"),
            ([1, 1, 4, 32, 32], "has 1 channels"),
            ([1, 2, 4, 32, 4], "32 x 4 pixels"),
        ] {
            let volume = Tensor::zeros(size, (Kind::Float, Device::Cpu));
            let targets = Tensor::from_slice(&[1i64]);
            let error = network.forward(&volume, &targets, Explanation::HiResCam).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn stages_without_a_part_in_the_answer_are_ignored() {
        assert!(DeCoVNet::ignores("s4.pathway0_res0.branch1.weight") && DeCoVNet::ignores("s5.x"));
        assert!(!DeCoVNet::ignores("s3.pathway0_res0.branch1.weight"));
    }
}
