//! DRE-Net (Song et al., IEEE/ACM TCBB 2021;18:2775-2780), re-implemented from its description: a ResNet-50 looks at
//! the whole slice, a small network on its last map scores squares of three sizes, the best of them are cut out and
//! looked at again, and a linear layer judges all features together. What is cut out depends on the image.
//!
//! Names as in the published code: `pretrained_model.*` (torchvision's ResNet-50, `fc` included), `proposal_net.down1`
//! to `down3` and `tidy1` to `tidy3`, `concat_net`. `partcls_net` is for training only and [ignored](DreNet::ignores).
//!
//! | step | shape |
//! | --- | --- |
//! | trunk on the slice of 448 x 448: last map and features | 2048 x 14 x 14; 2048 |
//! | `down1`, `down2`, `down3` (3x3, stride 1, 2, 2), ReLU; `tidy1` to `tidy3` score squares of 48, 96 and 192 pixels around the centres of cells of 32, 64 and 128 pixels | 128 x 14 x 14, x 7 x 7, x 4 x 4 |
//! | best 3 small (48, 96) and best 3 large squares, without overlap of more than 0.1 (intersection over union), from the slice with a border of 224 zeros, enlarged to 224 x 224, features of the trunk | 6 x 2048 |
//! | the best large square, clipped to the slice, from the finer picture of 600 x 600, enlarged to 448 x 448, features | 2048 |
//! | `concat_net` on (6 crops, slice, finer picture) | 16384 to classes |

use tch::{TchError, Tensor, nn::Path};

use super::{
    architecture::scaled_channels,
    layers::{Conv, Geometry, Linear, Statistics, global_average},
    resnet::{Depth, Trunk, TrunkNames},
};

/// Side of the slice in pixels.
pub(super) const INPUT_SIDE_PIXELS: i64 = 448;

/// Side of the finer picture of the same slice in pixels.
pub(super) const FINE_SIDE_PIXELS: i64 = 600;

/// Side of a crop in pixels, and width of the border of zeros.
const CROP_SIDE_PIXELS: i64 = 224;

/// Cell and square in pixels.
const SMALL_SQUARES: [(i64, i64); 2] = [(32, 48), (64, 96)];
const LARGE_SQUARES: [(i64, i64); 1] = [(128, 192)];

/// Crops of each of the two sizes.
const CROPS_EACH: usize = 3;

/// Intersection over union above which a square gives way to a better one.
const MAXIMUM_OVERLAP: f64 = 0.1;

/// A square of the slice in pixels; may reach over its border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Square {
    /// Of the upper left corner.
    pub(super) row: i64,
    /// Of the upper left corner.
    pub(super) column: i64,
    /// Length.
    pub(super) side: i64,
}

impl Square {
    /// Intersection over union.
    fn overlap(self, other: Self) -> f64 {
        let shared = |a: i64, b: i64| ((a + self.side).min(b + other.side) - a.max(b)).max(0);
        let intersection = shared(self.row, other.row) * shared(self.column, other.column);
        intersection as f64 / (self.side * self.side + other.side * other.side - intersection) as f64
    }
}

/// What it computes for one slice.
#[derive(Debug)]
pub(super) struct DreNetOutput {
    /// 1 x classes.
    pub(super) logits: Tensor,
    /// 1 x 8 times the trunk's features: six crops, slice, finer picture.
    pub(super) embedding: Tensor,
    /// Three small and three large squares, the best of each first.
    pub(super) squares: Vec<Square>,
    /// 6 x classes: what the trunk's own linear layer says of each crop.
    pub(super) square_logits: Tensor,
}

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct DreNet {
    trunk: Trunk,
    fc: Linear,
    down: Vec<Conv>,
    score: Vec<Conv>,
    concat: Linear,
}

impl DreNet {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let trunk_path = path / "pretrained_model";
        let trunk = Trunk::new(&trunk_path, TrunkNames::TORCHVISION, Depth::RESNET50, width)?;
        let features = trunk.last_channels();
        let fc = Linear::new(&(&trunk_path / "fc"), features, n_classes)?;
        let proposal = path / "proposal_net";
        let inner = scaled_channels(128, width);
        let mut down = Vec::new();
        let mut score = Vec::new();
        for (number, inputs, stride) in [(1, features, 1), (2, inner, 2), (3, inner, 2)] {
            let geometry = Geometry::same(3, 3).stride(stride);
            down.push(Conv::biased(&(&proposal / format!("down{number}")), (inputs, inner), geometry)?);
            score.push(Conv::biased(&(&proposal / format!("tidy{number}")), (inner, 1), Geometry::same(1, 1))?);
        }
        let n_views = 2 * CROPS_EACH as i64 + 2;
        let concat = Linear::new(&(path / "concat_net"), n_views * features, n_classes)?;
        Ok(Self { trunk, fc, down, score, concat })
    }

    /// Whether a checkpoint's tensor is for training only.
    pub(super) fn ignores(name: &str) -> bool {
        name.starts_with("partcls_net.")
    }

    /// One slice, `1 x 3 x 448 x 448`, and the same slice as `1 x 3 x 600 x 600`, both normalised alike.
    pub(super) fn forward(&self, slice: &Tensor, fine: &Tensor) -> Result<DreNetOutput, TchError> {
        for (what, tensor, side) in [("slice", slice, INPUT_SIDE_PIXELS), ("finer picture", fine, FINE_SIDE_PIXELS)] {
            if tensor.size() != [1, 3, side, side] {
                let size = tensor.size();
                return Err(TchError::Torch(format!("the {what} is {size:?} and must be [1, 3, {side}, {side}]")));
            }
        }
        let map = self.trunk.last_map(slice, Statistics::Running)?;
        let slice_features = global_average(&map)?;
        let squares = self.squares(&map)?;

        let padded = slice.f_constant_pad_nd([CROP_SIDE_PIXELS; 4])?;
        let crops = squares
            .iter()
            .map(|square| {
                let (row, column) = (square.row + CROP_SIDE_PIXELS, square.column + CROP_SIDE_PIXELS);
                crop(&padded, (row, square.side), (column, square.side), CROP_SIDE_PIXELS)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let crop_features = self.features(&Tensor::f_cat(&crops, 0)?)?;

        let best_large =
            squares.get(CROPS_EACH).ok_or_else(|| TchError::Torch("no large square was proposed".to_owned()))?;
        let (row, n_rows) = on_fine_picture(best_large.row, best_large.side);
        let (column, n_columns) = on_fine_picture(best_large.column, best_large.side);
        let zoomed = crop(fine, (row, n_rows), (column, n_columns), INPUT_SIDE_PIXELS)?;
        let zoomed_features = self.features(&zoomed)?;

        let embedding = Tensor::f_cat(&[&crop_features.f_reshape([1, -1])?, &slice_features, &zoomed_features], 1)?;
        let logits = self.concat.apply(&embedding)?;
        Ok(DreNetOutput { logits, embedding, squares, square_logits: self.fc.apply(&crop_features)? })
    }

    fn features(&self, input: &Tensor) -> Result<Tensor, TchError> {
        global_average(&self.trunk.last_map(input, Statistics::Running)?)
    }

    /// The best squares of the trunk's last map: the small ones, then the large ones.
    fn squares(&self, map: &Tensor) -> Result<Vec<Square>, TchError> {
        let mut map = map.shallow_clone();
        let mut scored = Vec::new();
        for ((down, score), (cell, side)) in
            self.down.iter().zip(&self.score).zip(SMALL_SQUARES.into_iter().chain(LARGE_SQUARES))
        {
            map = down.apply(&map)?.f_relu_()?;
            let scores = score.apply(&map)?.f_flatten(0, -1)?.f_to(tch::Device::Cpu)?.f_to_kind(tch::Kind::Float)?;
            let scores = Vec::<f32>::try_from(&scores)?;
            scored.push(scores.into_iter().zip(squares_of_cells(cell, side)).collect::<Vec<_>>());
        }
        let large = scored.split_off(SMALL_SQUARES.len()).concat();
        let small = scored.concat();
        let mut squares = best_apart(small, CROPS_EACH);
        squares.extend(best_apart(large, CROPS_EACH));
        if squares.len() < 2 * CROPS_EACH {
            return Err(TchError::Torch(format!(
                "only {} squares of the slice could be proposed and {} are needed",
                squares.len(),
                2 * CROPS_EACH
            )));
        }
        Ok(squares)
    }
}

/// Squares around the centres of the cells of the slice, row by row.
fn squares_of_cells(cell: i64, side: i64) -> impl Iterator<Item = Square> {
    let n_cells = (INPUT_SIDE_PIXELS + cell - 1) / cell;
    let corner = move |cell_idx: i64| cell / 2 + cell_idx * cell - side / 2;
    (0..n_cells * n_cells).map(move |idx| Square { row: corner(idx / n_cells), column: corner(idx % n_cells), side })
}

/// The best squares, the best first, none of which overlaps a better one by more than [`MAXIMUM_OVERLAP`]; of equal
/// scores the later square.
fn best_apart(mut scored: Vec<(f32, Square)>, n_squares: usize) -> Vec<Square> {
    scored.reverse();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut best: Vec<Square> = Vec::new();
    for (_, square) in scored {
        if best.len() == n_squares {
            break;
        }
        if best.iter().all(|better| better.overlap(square) <= MAXIMUM_OVERLAP) {
            best.push(square);
        }
    }
    best
}

/// One side of a square of the slice, clipped to it, on the finer picture: first pixel and length, whole pixels.
fn on_fine_picture(first: i64, side: i64) -> (i64, i64) {
    let on_fine = |pixel: i64| pixel.clamp(0, INPUT_SIDE_PIXELS) * FINE_SIDE_PIXELS / INPUT_SIDE_PIXELS;
    let start = on_fine(first);
    (start, on_fine(first + side) - start)
}

/// A part of an image (first and length of rows, then of columns), enlarged bilinearly to a square, corners aligned.
fn crop(image: &Tensor, rows: (i64, i64), columns: (i64, i64), side: i64) -> Result<Tensor, TchError> {
    image.f_narrow(2, rows.0, rows.1)?.f_narrow(3, columns.0, columns.1)?.f_upsample_bilinear2d(
        [side, side],
        true,
        None,
        None,
    )
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, nn::VarStore};

    use super::*;

    #[test]
    fn squares_cover_the_slice() {
        let small: Vec<Square> = squares_of_cells(32, 48).collect();
        assert_eq!((small.len(), small[0], small[1].column), (196, Square { row: -8, column: -8, side: 48 }, 24));
        let large: Vec<Square> = squares_of_cells(128, 192).collect();
        assert_eq!((large.len(), large[15]), (16, Square { row: 352, column: 352, side: 192 }));
        assert_eq!(on_fine_picture(352, 192), (471, 129));
        assert_eq!(on_fine_picture(-32, 192), (0, 214));
    }

    #[test]
    fn overlapping_squares_give_way_to_better_ones() {
        let at = |row, column| Square { row, column, side: 10 };
        let scored = vec![(0.4, at(0, 1)), (0.5, at(0, 0)), (0.3, at(0, 9)), (0.5, at(50, 50)), (0.1, at(90, 0))];
        // 0,1 overlaps 0,0 by 9/11; 0,9 by 1/19, which is little enough; of the equal scores the later comes first.
        assert_eq!(best_apart(scored.clone(), 3), [at(50, 50), at(0, 0), at(0, 9)]);
        assert_eq!(best_apart(scored, 9), [at(50, 50), at(0, 0), at(0, 9), at(90, 0)]);
    }

    #[test]
    fn the_training_head_is_ignored_and_nothing_else() {
        assert!(DreNet::ignores("partcls_net.weight"));
        let store = VarStore::new(Device::Cpu);
        DreNet::new(&store.root(), 0.0625, 2).unwrap();
        assert!(store.variables().keys().all(|name| !DreNet::ignores(name)));
    }

    #[test]
    fn other_sizes_are_refused() {
        let store = VarStore::new(Device::Cpu);
        let network = DreNet::new(&store.root(), 0.0625, 2).unwrap();
        let zeros = |side| Tensor::zeros([1, 3, side, side], (Kind::Float, Device::Cpu));
        let error = network.forward(&zeros(448), &zeros(448)).unwrap_err().to_string();
        assert!(error.contains("the finer picture is [1, 3, 448, 448] and must be [1, 3, 600, 600]"), "{error}");
    }
}
