//! UNet++ with a ResNet-50 encoder, for lesions in CT slices as in Chen et al. (Sci Rep 2020;10:19196): every level of
//! the encoder feeds a row of nested nodes, each of which sees all nodes before it in its row and the enlarged node
//! below (Zhou et al., DLMIA 2018). Of the paper only that much is confirmed; the decoder's widths are ours.
//!
//! Level 0 is the stem at half of the input's side, levels 1 to 4 are the stages. Node `x<level>_<number>` is two 3x3
//! convolutions (`conv1`, `conv2`, no bias) with batch normalisation (`bn1`, `bn2`) and ReLU over the concatenation of
//! (encoder level, nodes 1 to number - 1, enlarged node below), in this order. The last node of level 0 is enlarged
//! once more through the node `last`, and the 1x1 convolution `out` gives the logits. Enlarging is bilinear x2.
//! The encoder is named `encoder.*` with torchvision's names.
//!
//! | node | channels |
//! | --- | --- |
//! | `x0_1` to `x0_4` | 32 |
//! | `x1_1` to `x1_3` | 64 |
//! | `x2_1`, `x2_2` | 128 |
//! | `x3_1` | 256 |
//! | `last` | 16 |

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    layers::{BatchNorm, Conv, Geometry, Statistics, upsample_bilinear_x2},
    resnet::{Depth, Trunk, TrunkNames},
};

/// The sides of the input must be multiples of this: five halvings.
pub(super) const SIDE_MULTIPLE: i64 = 32;

/// Output channels of the nodes of each level.
const NODE_CHANNELS: [u32; 4] = [32, 64, 128, 256];

/// Output channels of the last node.
const LAST_CHANNELS: u32 = 16;

#[derive(Debug)]
struct Node {
    layers: [(Conv, BatchNorm); 2],
}

impl Node {
    fn new(path: &Path<'_>, input_channels: i64, channels: i64) -> Result<Self, TchError> {
        let layer = |number: u32, inputs: i64| -> Result<(Conv, BatchNorm), TchError> {
            let conv = Conv::unbiased(&(path / format!("conv{number}")), (inputs, channels), Geometry::same(3, 3))?;
            Ok((conv, BatchNorm::new(&(path / format!("bn{number}")), channels)?))
        };
        Ok(Self { layers: [layer(1, input_channels)?, layer(2, channels)?] })
    }

    fn apply(&self, inputs: &[Tensor]) -> Result<Tensor, TchError> {
        self.layers
            .iter()
            .try_fold(Tensor::f_cat(inputs, 1)?, |map, (conv, norm)| norm.apply(&conv.apply(&map)?)?.f_relu_())
    }
}

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct UNetPlusPlus {
    encoder: Trunk,
    /// By number, from 1; then by level, from 0.
    nodes: Vec<Vec<Node>>,
    last: Node,
    out: Conv,
}

impl UNetPlusPlus {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let encoder = Trunk::new(&(path / "encoder"), TrunkNames::TORCHVISION, Depth::RESNET50, width)?;
        let node_channels = NODE_CHANNELS.map(|channels| scaled_channels(channels, width));
        let mut below = encoder.channels.to_vec();
        let mut nodes = Vec::new();
        for number in 1..=NODE_CHANNELS.len() {
            let mut column = Vec::new();
            let mut outputs = Vec::new();
            let levels = encoder.channels.iter().zip(node_channels).zip(below.iter().skip(1));
            for (level, ((skipped, channels), enlarged)) in levels.enumerate() {
                let input_channels = skipped + (number as i64 - 1) * channels + enlarged;
                column.push(Node::new(&(path / format!("x{level}_{number}")), input_channels, channels)?);
                outputs.push(channels);
            }
            nodes.push(column);
            below = outputs;
        }
        let last_channels = scaled_channels(LAST_CHANNELS, width);
        let [first_level_channels, ..] = node_channels;
        let last = Node::new(&(path / "last"), first_level_channels, last_channels)?;
        let out = Conv::biased(&(path / "out"), (last_channels, n_classes), Geometry::same(1, 1))?;
        Ok(Self { encoder, nodes, last, out })
    }

    /// `n x 3 x rows x columns` in, both sides multiples of [`SIDE_MULTIPLE`]; logits `n x classes x rows x columns`
    /// out, one for each class by itself (sigmoid gives its probability).
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let (_, _, rows, columns) = input.size4()?;
        if rows % SIDE_MULTIPLE != 0 || columns % SIDE_MULTIPLE != 0 || rows == 0 || columns == 0 {
            return Err(TchError::Torch(format!(
                "the slice is {rows} x {columns} pixels: both sides must be multiples of {SIDE_MULTIPLE}"
            )));
        }
        let encoded = self.encoder.pyramid(input, Statistics::Running)?;
        let mut rows_of_nodes: Vec<Vec<Tensor>> = encoded.iter().map(|map| vec![map.shallow_clone()]).collect();
        let mut column: Vec<Tensor> = encoded;
        for nodes in &self.nodes {
            let mut outputs = Vec::new();
            for ((node, row), below) in nodes.iter().zip(&mut rows_of_nodes).zip(column.iter().skip(1)) {
                let mut inputs: Vec<Tensor> = row.iter().map(Tensor::shallow_clone).collect();
                inputs.push(upsample_bilinear_x2(below)?);
                let output = node.apply(&inputs)?;
                row.push(output.shallow_clone());
                outputs.push(output);
            }
            column = outputs;
        }
        let finest = column
            .first()
            .ok_or_else(|| TchError::Torch("the decoder of the segmentation network is empty".to_owned()))?;
        self.out.apply(&self.last.apply(&[upsample_bilinear_x2(finest)?])?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, nn::VarStore};

    use super::*;

    #[test]
    fn sides_that_cannot_be_halved_are_refused() {
        let store = VarStore::new(Device::Cpu);
        let network = UNetPlusPlus::new(&store.root(), 0.0625, 1).unwrap();
        let error = network.forward(&Tensor::zeros([1, 3, 64, 48], (Kind::Float, Device::Cpu))).unwrap_err();
        assert!(error.to_string().contains("64 x 48 pixels: both sides must be multiples of 32"), "{error}");
    }
}
