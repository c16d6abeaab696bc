//! VGG-16 and VGG-19 (configurations D and E, no batch normalisation) as torchvision defines them, variable names
//! included, and their convolutions, which attention networks build on.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    explain::{Convolutional, HeadGradient, let_through},
    layers::{AveragePool, Conv, Linear, max_pool_2x2},
};

/// Output channels of the convolutions; a max pool follows each group.
pub(super) type Groups = [&'static [u32]; 5];

/// Configuration D.
pub(super) const VGG16: Groups = [&[64; 2], &[128; 2], &[256; 3], &[512; 3], &[512; 3]];

/// Configuration E.
pub(super) const VGG19: Groups = [&[64; 2], &[128; 2], &[256; 4], &[512; 4], &[512; 4]];

/// Side of the grid that the head sees.
const HEAD_GRID_SIDE: i64 = 7;

/// The convolutions of a VGG.
#[derive(Debug)]
pub(super) struct Trunk {
    groups: Vec<Vec<Conv>>,
    /// Output channels of each group.
    pub(super) channels: Vec<i64>,
}

impl Trunk {
    /// Declares `features.0` and so on, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, groups: Groups, width: f64) -> Result<Self, TchError> {
        let features = path / "features";
        let mut input_channels = 3;
        // torchvision numbers every layer of the sequence: convolution, ReLU, ..., max pool.
        let mut layer_idx = 0;
        let mut trunk = Self { groups: Vec::new(), channels: Vec::new() };
        for group in groups {
            let mut convs = Vec::new();
            for &base_channels in group {
                let output_channels = scaled_channels(base_channels, width);
                convs.push(Conv::same_3x3(&(&features / layer_idx), (input_channels, output_channels))?);
                input_channels = output_channels;
                layer_idx += 2;
            }
            layer_idx += 1;
            trunk.groups.push(convs);
            trunk.channels.push(input_channels);
        }
        Ok(trunk)
    }

    /// Channels of the last map.
    pub(super) fn last_channels(&self) -> i64 {
        self.channels.last().copied().unwrap_or(3)
    }

    /// The maps of each group before its max pool and after it.
    pub(super) fn pyramid(&self, input: &Tensor) -> Result<Vec<(Tensor, Tensor)>, TchError> {
        let mut map = input.shallow_clone();
        let mut maps = Vec::new();
        for group in &self.groups {
            for conv in group {
                map = conv.apply(&map)?.f_relu_()?;
            }
            let pooled = max_pool_2x2(&map)?;
            maps.push((map, pooled.shallow_clone()));
            map = pooled;
        }
        Ok(maps)
    }

    /// The map after the last max pool.
    pub(super) fn last_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut map = input.shallow_clone();
        for group in &self.groups {
            for conv in group {
                map = conv.apply(&map)?.f_relu_()?;
            }
            map = max_pool_2x2(&map)?;
        }
        Ok(map)
    }
}

/// A VGG over a variable store.
#[derive(Debug)]
pub(super) struct Vgg {
    trunk: Trunk,
    fc6: Linear,
    fc7: Linear,
    fc8: Linear,
}

impl Vgg {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, groups: Groups, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let trunk = Trunk::new(path, groups, width)?;
        let classifier = path / "classifier";
        let hidden = scaled_channels(4096, width);
        let inputs = trunk.last_channels() * HEAD_GRID_SIDE * HEAD_GRID_SIDE;
        Ok(Self {
            trunk,
            fc6: Linear::new(&(&classifier / 0), inputs, hidden)?,
            fc7: Linear::new(&(&classifier / 3), hidden, hidden)?,
            fc8: Linear::new(&(&classifier / 6), hidden, n_classes)?,
        })
    }
}

impl Convolutional for Vgg {
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.trunk.last_map(input)
    }

    /// The embedding is fc7 after its ReLU.
    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let grid = AveragePool::to_square(feature_map, HEAD_GRID_SIDE)?.apply(feature_map)?;
        let hidden = self.fc6.apply(&grid.f_flatten(1, -1)?)?.f_relu()?;
        let embedding = self.fc7.apply(&hidden)?.f_relu()?;
        Ok((self.fc8.apply(&embedding)?, embedding))
    }

    /// With dropout after each hidden layer.
    fn training_logits(&self, feature_map: &Tensor, dropout: f64) -> Result<Tensor, TchError> {
        let grid = AveragePool::to_square(feature_map, HEAD_GRID_SIDE)?.apply(feature_map)?;
        let hidden = self.fc6.apply(&grid.f_flatten(1, -1)?)?.f_relu()?.f_dropout(dropout, true)?;
        let embedding = self.fc7.apply(&hidden)?.f_relu()?.f_dropout(dropout, true)?;
        self.fc8.apply(&embedding)
    }

    fn head_gradient(&self, feature_map: &Tensor, target_class_idxs: &Tensor) -> Result<HeadGradient, TchError> {
        let pool = AveragePool::to_square(feature_map, HEAD_GRID_SIDE)?;
        let grid = pool.apply(feature_map)?;
        let hidden = self.fc6.apply(&grid.f_flatten(1, -1)?)?.f_relu()?;
        let embedding = self.fc7.apply(&hidden)?.f_relu()?;
        let logits = self.fc8.apply(&embedding)?;
        let of_embedding = self.fc8.weight().f_index_select(0, target_class_idxs)?.f_mul(&let_through(&embedding)?)?;
        let of_hidden = of_embedding.f_matmul(self.fc7.weight())?.f_mul(&let_through(&hidden)?)?;
        let of_grid = of_hidden.f_matmul(self.fc6.weight())?.f_view_as(&grid)?;
        let gradient = pool.gradient(&of_grid, feature_map)?;
        Ok(HeadGradient { logits, embedding, gradient })
    }
}
