//! The U-Net of lungmask's R231 (Hofmanninger et al., Eur Radiol Exp 2020;4:50), lungs in CT slices, re-implemented:
//! five levels of 64 to 1024 channels, 3x3 convolutions with bias, **ReLU before batch normalisation**, average pools,
//! enlarged bilinearly x2 through a 1x1 convolution.
//!
//! Names as in the published checkpoints; their `residual_*` tensors play no part and are [ignored](R231::ignores).
//!
//! | layers | names |
//! | --- | --- |
//! | level i going down: convolution, ReLU, normalisation, twice | `down_path.<i>.block.0`, `.2`, `.3`, `.5` |
//! | going up: enlarge, 1x1 convolution; concatenate (enlarged, skipped); the same block | `up_path.<i>.up.1`, `up_path.<i>.conv_block.block.*` |
//! | 1x1 convolution to the classes: background, right lung, left lung | `last` |

use tch::{Kind, TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    layers::{BatchNorm, Conv, Geometry, upsample_bilinear_x2},
};

/// The sides of the input must be multiples of this: four average pools.
pub(super) const SIDE_MULTIPLE: i64 = 16;

/// Side of its square input in the publication, in pixels.
pub(super) const INPUT_SIDE_PIXELS: u32 = 256;

/// Background, right lung, left lung.
pub(super) const N_CLASSES: i64 = 3;

const CHANNELS: [u32; 5] = [64, 128, 256, 512, 1024];

#[derive(Debug)]
struct Block {
    layers: [(Conv, BatchNorm); 2],
}

impl Block {
    fn new(path: &Path<'_>, input_channels: i64, channels: i64) -> Result<Self, TchError> {
        let path = path / "block";
        let layer = |conv_idx: i64, inputs: i64| -> Result<(Conv, BatchNorm), TchError> {
            let conv = Conv::same_3x3(&(&path / conv_idx), (inputs, channels))?;
            Ok((conv, BatchNorm::new(&(&path / (conv_idx + 2)), channels)?))
        };
        Ok(Self { layers: [layer(0, input_channels)?, layer(3, channels)?] })
    }

    fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.layers
            .iter()
            .try_fold(input.shallow_clone(), |map, (conv, norm)| norm.apply(&conv.apply(&map)?.f_relu_()?))
    }
}

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct R231 {
    down: Vec<Block>,
    up: Vec<(Conv, Block)>,
    last: Conv,
}

impl R231 {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64) -> Result<Self, TchError> {
        let channels = CHANNELS.map(|channels| scaled_channels(channels, width));
        let mut input_channels = 1;
        let mut down = Vec::new();
        for (level, output_channels) in channels.into_iter().enumerate() {
            down.push(Block::new(&(path / "down_path" / level), input_channels, output_channels)?);
            input_channels = output_channels;
        }
        let mut up = Vec::new();
        for (step, output_channels) in channels.into_iter().rev().skip(1).enumerate() {
            let path = path / "up_path" / step;
            let shrink = Conv::biased(&(&path / "up" / 1), (input_channels, output_channels), Geometry::same(1, 1))?;
            up.push((shrink, Block::new(&(&path / "conv_block"), 2 * output_channels, output_channels)?));
            input_channels = output_channels;
        }
        let last = Conv::biased(&(path / "last"), (input_channels, N_CLASSES), Geometry::same(1, 1))?;
        Ok(Self { down, up, last })
    }

    /// Whether a checkpoint's tensor belongs to a residual connection that the network does not have.
    pub(super) fn ignores(name: &str) -> bool {
        name.split('.').any(|step| step.starts_with("residual_"))
    }

    /// `n x 1 x rows x columns` in, both sides multiples of [`SIDE_MULTIPLE`] (256 x 256 in the publication), samples
    /// `(HU + 1024) / 1624` of HU between -1024 and 600; logarithms of the classes' probabilities out, `n x 3 x rows x
    /// columns`.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let (_, _, rows, columns) = input.size4()?;
        if rows % SIDE_MULTIPLE != 0 || columns % SIDE_MULTIPLE != 0 || rows == 0 || columns == 0 {
            return Err(TchError::Torch(format!(
                "the slice is {rows} x {columns} pixels: both sides must be multiples of {SIDE_MULTIPLE}"
            )));
        }
        let mut map = input.shallow_clone();
        let mut skipped = Vec::new();
        for (level, block) in self.down.iter().enumerate() {
            if level > 0 {
                map = map.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)?;
            }
            map = block.apply(&map)?;
            skipped.push(map.shallow_clone());
        }
        for ((shrink, block), skip) in self.up.iter().zip(skipped.iter().rev().skip(1)) {
            let enlarged = shrink.apply(&upsample_bilinear_x2(&map)?)?;
            map = block.apply(&Tensor::f_cat(&[&enlarged, skip], 1)?)?;
        }
        self.last.apply(&map)?.f_log_softmax(1, Kind::Float)
    }
}

/// Weights (safetensors) of a network of this width, with four channels or more at its finest level, that finds lungs by
/// their density: neither tissue nor outside air. Of slices of 64 x 64 pixels what lies in the left half is right lung, in
/// the other half left lung; the coarsest level, 4 x 4, knows the halves by what its padding of zeros lets in.
#[cfg(test)]
pub(crate) fn threshold_weights(width: f64) -> Vec<u8> {
    use tch::{Device, nn::VarStore};

    const TISSUE: i64 = 0;
    const SIDE: i64 = 1;
    const AIR: i64 = 2;
    let _guard = tch::no_grad_guard();
    let store = VarStore::new(Device::Cpu);
    R231::new(&store.root(), width).unwrap();
    let variables = store.variables();
    let set = |name: &str, at: &[i64], value: f64| {
        let of_network = variables.get(name).unwrap_or_else(|| panic!("{name}"));
        let _ = at.iter().fold(of_network.shallow_clone(), |part, idx| part.get(*idx)).fill_(value);
    };
    let is_of_norm = |name: &str| name.ends_with("block.2.weight") || name.ends_with("block.5.weight");
    for name in variables.keys().filter(|name| name.ends_with("running_var") || is_of_norm(name)) {
        set(name, &[], 1.0);
    }
    let pass = |conv: &str, from: i64, to: i64| set(&format!("{conv}.weight"), &[to, from, 1, 1], 1.0);
    // Samples are 0.107 in a lung of -850 HU, 0.655 in tissue of 40 HU, 0.015 in air of -1000 HU.
    set("down_path.0.block.0.weight", &[TISSUE, 0, 1, 1], 1.0);
    set("down_path.0.block.0.bias", &[TISSUE], -0.4);
    set("down_path.0.block.0.bias", &[SIDE], 1.0);
    set("down_path.0.block.0.weight", &[AIR, 0, 1, 1], -1.0);
    set("down_path.0.block.0.bias", &[AIR], 0.06);
    for channel in [TISSUE, SIDE, AIR] {
        pass("down_path.0.block.3", channel, channel);
        pass("up_path.3.conv_block.block.3", channel, channel);
    }
    for level in 1..4 {
        pass(&format!("down_path.{level}.block.0"), SIDE, SIDE);
        pass(&format!("down_path.{level}.block.3"), SIDE, SIDE);
    }
    // Each takes the column at the left: the first two of four get nothing.
    for conv in ["down_path.4.block.0", "down_path.4.block.3"] {
        set(&format!("{conv}.weight"), &[SIDE, SIDE, 1, 0], 1.0);
    }
    for step in 0..4 {
        set(&format!("up_path.{step}.up.1.weight"), &[SIDE, SIDE, 0, 0], 1.0);
        pass(&format!("up_path.{step}.conv_block.block.0"), SIDE, SIDE);
        if step < 3 {
            pass(&format!("up_path.{step}.conv_block.block.3"), SIDE, SIDE);
        }
    }
    // What was skipped comes behind what was enlarged.
    let enlarged = scaled_channels(CHANNELS[0], width);
    for channel in [TISSUE, AIR] {
        pass("up_path.3.conv_block.block.0", enlarged + channel, channel);
        set("last.weight", &[0, channel, 0, 0], 1000.0);
    }
    for (lung, weight, bias) in [(1, -20.0, 11.0), (2, 20.0, -9.0)] {
        set("last.weight", &[lung, SIDE, 0, 0], weight);
        set("last.bias", &[lung], bias);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    store.save(&file).unwrap();
    fs_err::read(file).unwrap()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, nn::VarStore};

    use super::*;

    /// 28.95 million without the residual tensors, as published.
    #[test]
    fn full_width_has_the_published_parameter_count() {
        let store = VarStore::new(Device::Cpu);
        R231::new(&store.root(), 1.0).unwrap();
        let n_parameters: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(n_parameters, 28_953_539);
    }

    #[test]
    fn residual_tensors_are_ignored_and_nothing_else() {
        for name in ["down_path.0.residual_input_conv.weight", "up_path.3.conv_block.residual_batchnorm.running_var"] {
            assert!(R231::ignores(name), "{name}");
        }
        let store = VarStore::new(Device::Cpu);
        R231::new(&store.root(), 0.0625).unwrap();
        assert!(store.variables().keys().all(|name| !R231::ignores(name)));
    }

    #[test]
    fn sides_that_cannot_be_halved_are_refused() {
        let store = VarStore::new(Device::Cpu);
        let network = R231::new(&store.root(), 0.0625).unwrap();
        let error = network.forward(&Tensor::zeros([1, 1, 40, 32], (Kind::Float, Device::Cpu))).unwrap_err();
        assert!(error.to_string().contains("40 x 32 pixels: both sides must be multiples of 16"), "{error}");
    }
}
