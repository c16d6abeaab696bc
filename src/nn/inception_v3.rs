//! Inception V3 as torchvision's `inception_v3` defines it, variable names included, without the auxiliary classifier,
//! which plays no part in inference (its `AuxLogits` tensors are ignored). torchvision's `transform_input` is
//! preprocessing and not done here.

use tch::{TchError, Tensor, nn::Path};

use super::{
    explain::Convolutional,
    inception::{Mixed, Plan, Stem},
    layers::{Geometry, Linear, global_average},
};

const ONE: Geometry = Geometry::same(1, 1);
const THREE: Geometry = Geometry::same(3, 3);
const HALVING: Geometry = Geometry::valid(3, 2);
const ROW: Geometry = Geometry::same(1, 7);
const COLUMN: Geometry = Geometry::same(7, 1);
const AVERAGE: Plan = Plan::AveragePool { count_border: true };

/// The convolutions before the first branches: name, output channels, geometry, and whether a max pool follows.
const STEM: [(&str, u32, Geometry, bool); 5] = [
    ("Conv2d_1a_3x3", 32, HALVING, false),
    ("Conv2d_2a_3x3", 32, Geometry::valid(3, 1), false),
    ("Conv2d_2b_3x3", 64, THREE, true),
    ("Conv2d_3b_1x1", 80, ONE, false),
    ("Conv2d_4a_3x3", 192, Geometry::valid(3, 1), true),
];

/// Inception V3 over a variable store.
#[derive(Debug)]
pub(super) struct InceptionV3 {
    stem: Stem,
    mixed: Vec<Mixed>,
    fc: Linear,
}

impl InceptionV3 {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64) -> Result<Self, TchError> {
        let (stem, mut channels) = Stem::new(path, &STEM, width)?;
        let mut mixed = Vec::new();
        let mut add = |name: &str, plans: &[&[Plan]]| -> Result<i64, TchError> {
            let block = Mixed::new(&(path / name), channels, width, plans)?;
            channels = block.output_channels;
            mixed.push(block);
            Ok(channels)
        };
        for (name, pool_channels) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
            add(
                name,
                &[
                    &[Plan::Conv("branch1x1", 64, ONE)],
                    &[Plan::Conv("branch5x5_1", 48, ONE), Plan::Conv("branch5x5_2", 64, Geometry::same(5, 5))],
                    &[
                        Plan::Conv("branch3x3dbl_1", 64, ONE),
                        Plan::Conv("branch3x3dbl_2", 96, THREE),
                        Plan::Conv("branch3x3dbl_3", 96, THREE),
                    ],
                    &[AVERAGE, Plan::Conv("branch_pool", pool_channels, ONE)],
                ],
            )?;
        }
        add(
            "Mixed_6a",
            &[
                &[Plan::Conv("branch3x3", 384, HALVING)],
                &[
                    Plan::Conv("branch3x3dbl_1", 64, ONE),
                    Plan::Conv("branch3x3dbl_2", 96, THREE),
                    Plan::Conv("branch3x3dbl_3", 96, HALVING),
                ],
                &[Plan::MaxPool],
            ],
        )?;
        for (name, inner) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
            add(
                name,
                &[
                    &[Plan::Conv("branch1x1", 192, ONE)],
                    &[
                        Plan::Conv("branch7x7_1", inner, ONE),
                        Plan::Conv("branch7x7_2", inner, ROW),
                        Plan::Conv("branch7x7_3", 192, COLUMN),
                    ],
                    &[
                        Plan::Conv("branch7x7dbl_1", inner, ONE),
                        Plan::Conv("branch7x7dbl_2", inner, COLUMN),
                        Plan::Conv("branch7x7dbl_3", inner, ROW),
                        Plan::Conv("branch7x7dbl_4", inner, COLUMN),
                        Plan::Conv("branch7x7dbl_5", 192, ROW),
                    ],
                    &[AVERAGE, Plan::Conv("branch_pool", 192, ONE)],
                ],
            )?;
        }
        add(
            "Mixed_7a",
            &[
                &[Plan::Conv("branch3x3_1", 192, ONE), Plan::Conv("branch3x3_2", 320, HALVING)],
                &[
                    Plan::Conv("branch7x7x3_1", 192, ONE),
                    Plan::Conv("branch7x7x3_2", 192, ROW),
                    Plan::Conv("branch7x7x3_3", 192, COLUMN),
                    Plan::Conv("branch7x7x3_4", 192, HALVING),
                ],
                &[Plan::MaxPool],
            ],
        )?;
        let mut last_channels = 0;
        for name in ["Mixed_7b", "Mixed_7c"] {
            let (row, column) = (Geometry::same(1, 3), Geometry::same(3, 1));
            last_channels = add(
                name,
                &[
                    &[Plan::Conv("branch1x1", 320, ONE)],
                    &[
                        Plan::Conv("branch3x3_1", 384, ONE),
                        Plan::Fork([("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)]),
                    ],
                    &[
                        Plan::Conv("branch3x3dbl_1", 448, ONE),
                        Plan::Conv("branch3x3dbl_2", 384, THREE),
                        Plan::Fork([("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)]),
                    ],
                    &[AVERAGE, Plan::Conv("branch_pool", 192, ONE)],
                ],
            )?;
        }
        let fc = Linear::new(&(path / "fc"), last_channels, n_classes)?;
        Ok(Self { stem, mixed, fc })
    }

    /// Whether a checkpoint's tensor is one of the auxiliary classifier's.
    pub(super) fn ignores(name: &str) -> bool {
        name.starts_with("AuxLogits.")
    }
}

impl Convolutional for InceptionV3 {
    fn feature_map(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let map = self.stem.apply(input)?;
        self.mixed.iter().try_fold(map, |map, block| block.apply(&map))
    }

    fn head(&self, feature_map: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let embedding = global_average(feature_map)?;
        Ok((self.fc.apply(&embedding)?, embedding))
    }

    /// With dropout of the pooled features.
    fn training_logits(&self, feature_map: &Tensor, dropout: f64) -> Result<Tensor, TchError> {
        self.fc.apply(&global_average(feature_map)?.f_dropout(dropout, true)?)
    }

    fn pooled_linear_weight(&self) -> Option<&Tensor> {
        Some(self.fc.weight())
    }
}
