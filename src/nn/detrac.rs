//! DeTraC's classifier of sub-classes as its Python notebook has it (Abbas et al., Applied Intelligence 2021;51:854-864):
//! ResNet-50 without its pool, the 7x7 grid flattened, a linear layer of 1024 with ReLU, a linear layer to the
//! sub-classes. The sub-classes' probabilities are added up to classes by a label map afterwards.
//!
//! Names: the trunk as torchvision's; `fc1` and `fc2`. The grid is flattened channel by channel, each row by row:
//! a kernel from Keras, which flattens cell by cell, has its inputs permuted accordingly.

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    explain::{Convolutional, HeadGradient, let_through},
    layers::{Linear, Statistics},
    resnet::{Depth, Trunk, TrunkNames},
};

/// Side of the grid that the head takes.
const GRID_SIDE: i64 = 7;

/// The input's side that makes the grid: the only one possible.
pub(super) const INPUT_SIDE_PIXELS: u32 = 224;

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct DetracResNet50 {
    trunk: Trunk,
    fc1: Linear,
    fc2: Linear,
}

impl DetracResNet50 {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let trunk = Trunk::new(path, TrunkNames::TORCHVISION, Depth::RESNET50, width)?;
        let hidden = scaled_channels(1024, width);
        let fc1 = Linear::new(&(path / "fc1"), trunk.last_channels() * GRID_SIDE * GRID_SIDE, hidden)?;
        let fc2 = Linear::new(&(path / "fc2"), hidden, n_classes)?;
        Ok(Self { trunk, fc1, fc2 })
    }
}

impl Convolutional for DetracResNet50 {
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.trunk.last_map(input, Statistics::Running)
    }

    /// The embedding is the layer of 1024 after its ReLU.
    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let (_, _, rows, columns) = feature_map.size4()?;
        if (rows, columns) != (GRID_SIDE, GRID_SIDE) {
            return Err(TchError::Torch(format!(
                "the head takes a grid of {GRID_SIDE} x {GRID_SIDE} cells and this image makes {rows} x {columns}: set \
                 the image side to {INPUT_SIDE_PIXELS} pixels"
            )));
        }
        let embedding = self.fc1.apply(&feature_map.f_flatten(1, 3)?)?.f_relu()?;
        Ok((self.fc2.apply(&embedding)?, embedding))
    }

    fn head_gradient(&self, feature_map: &Tensor, target_class_idxs: &Tensor) -> Result<HeadGradient, TchError> {
        let (logits, embedding) = self.head(feature_map)?;
        let of_embedding = self.fc2.weight().f_index_select(0, target_class_idxs)?.f_mul(&let_through(&embedding)?)?;
        let gradient = of_embedding.f_matmul(self.fc1.weight())?.f_view_as(feature_map)?;
        Ok(HeadGradient { logits, embedding, gradient })
    }
}
