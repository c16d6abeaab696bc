//! COVNet (Li et al., Radiology 2020;296:E65-E71): one ResNet-50 trunk for every slice of a scan, the largest value of
//! each feature over all slices, one linear layer.
//!
//! The published test program puts batch normalisation back to training mode, so that each scan is normalised by its
//! own slices. [`Statistics::Batch`] reproduces that: the whole scan then is one batch, and leaving slices out changes
//! the answer of all others. With [`Statistics::Running`] slices may go through in portions.
//!
//! Names as in the published checkpoint: `pretrained_model.0` (convolution) `.1` (its normalisation) `.4` to `.7` (the
//! stages), and `classifer` (its spelling).

use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor, nn::Path};

use super::{
    layers::{Linear, Statistics, global_average},
    resnet::{Depth, Trunk, TrunkNames},
};

/// Whose mean and variance batch normalisation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchNormMode {
    /// Those that training stored; slices may go through in portions.
    #[default]
    Running,
    /// The scan's own, as the published test program does; the whole scan at once.
    Batch,
}

/// What it computes for one scan of s slices.
#[derive(Debug)]
pub(super) struct CovnetOutput {
    /// 1 x classes.
    pub(super) logits: Tensor,
    /// 1 x features: the largest value over the slices.
    pub(super) embedding: Tensor,
    /// s numbers: what the features that a slice won add to the target's logit. With the layer's bias they add up to
    /// the logit.
    pub(super) slice_contributions: Tensor,
    /// s x rows x columns, signed: class-activation map of each slice over the features that it won. The mean of a
    /// slice's map is its contribution.
    pub(super) activation_maps: Tensor,
}

/// The network over a variable store.
#[derive(Debug)]
pub(super) struct Covnet {
    trunk: Trunk,
    classifier: Linear,
    statistics: Statistics,
}

impl Covnet {
    /// Declares the variables, all zero, under `path`.
    pub(super) fn new(path: &Path<'_>, width: f64, n_classes: i64, mode: BatchNormMode) -> Result<Self, TchError> {
        let trunk = Trunk::new(&(path / "pretrained_model"), TrunkNames::SEQUENTIAL, Depth::RESNET50, width)?;
        let classifier = Linear::new(&(path / "classifer"), trunk.last_channels(), n_classes)?;
        let statistics = match mode {
            BatchNormMode::Running => Statistics::Running,
            BatchNormMode::Batch => Statistics::Batch,
        };
        Ok(Self { trunk, classifier, statistics })
    }

    /// The last feature maps of a portion of a scan, `slices x 3 x rows x columns` in.
    pub(super) fn last_map(&self, portion: &Tensor) -> Result<Tensor, TchError> {
        self.trunk.last_map(portion, self.statistics)
    }

    /// What the last feature maps of all portions say, in the order of the slices, at least one; `target_class_idx` is what
    /// contributions and maps are about. Several portions are refused together with the scan's own statistics.
    pub(super) fn judge(&self, portions: &[Tensor], target_class_idx: i64) -> Result<CovnetOutput, TchError> {
        if portions.is_empty() {
            return Err(TchError::Torch("a scan without slices cannot be classified".to_owned()));
        }
        if self.statistics == Statistics::Batch && portions.len() > 1 {
            return Err(TchError::Torch(format!(
                "with bn_mode = \"batch\" all slices go through at once, and these came in {} portions: thin the scan out, \
                 or set bn_mode = \"running\"",
                portions.len()
            )));
        }
        let maps = Tensor::f_cat(portions, 0)?;
        if self.statistics == Statistics::Batch && maps.size().iter().product::<i64>() == self.trunk.last_channels() {
            return Err(TchError::Torch(
                "with bn_mode = \"batch\" one slice of one cell has no statistics: give more slices or larger ones"
                    .to_owned(),
            ));
        }
        // What is chosen, added up and written into zeros are 32-bit floats, whatever the trunk computes with.
        let features = global_average(&maps)?.f_to_kind(tch::Kind::Float)?;
        let (embedding, winners) = features.f_max_dim(0, true)?;
        let logits = self.classifier.apply(&embedding)?;

        // slices x features: the class weight where the slice won the feature, else 0.
        let class_weights = self.classifier.weight().f_narrow(0, target_class_idx, 1)?;
        let won_weights = features.f_zeros_like()?.f_scatter(0, &winners, &class_weights)?;
        let slice_contributions = won_weights.f_mul(&features)?.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
        let (n_slices, _, rows, columns) = maps.size4()?;
        let activation_maps =
            won_weights.f_unsqueeze(1)?.f_bmm(&maps.f_flatten(2, 3)?)?.f_view([n_slices, rows, columns])?;
        Ok(CovnetOutput { logits, embedding, slice_contributions, activation_maps })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, nn::VarStore};

    use super::{
        super::seeded::{seeded_values, uniform},
        *,
    };

    fn network(mode: BatchNormMode) -> (Covnet, VarStore) {
        let mut store = VarStore::new(Device::Cpu);
        let network = Covnet::new(&store.root(), 0.0625, 3, mode).unwrap();
        for (name, mut variable) in store.variables() {
            let shape: Vec<usize> = variable.size().iter().map(|side| *side as usize).collect();
            let values = Tensor::from_slice(&seeded_values(1, "covnet", None, &name, &shape));
            tch::no_grad(|| variable.copy_(&values.view(variable.size().as_slice())));
        }
        store.freeze(); // as loaded weights are: others are trained
        (network, store)
    }

    fn scan(n_slices: i64, side: i64) -> Tensor {
        Tensor::from_slice(&uniform(1, "scan", (n_slices * 3 * side * side) as usize, 0.0, 1.0))
            .view([n_slices, 3, side, side])
    }

    impl Covnet {
        /// At most `max_slices_at_once` run together, all of them where it is `None`.
        pub(in super::super) fn forward(
            &self,
            slices: &Tensor,
            target_class_idx: i64,
            max_slices_at_once: Option<i64>,
        ) -> Result<CovnetOutput, TchError> {
            let n_slices = slices.size4()?.0;
            let portions =
                if n_slices == 0 { Vec::new() } else { slices.f_split(max_slices_at_once.unwrap_or(n_slices), 0)? };
            let maps = portions.iter().map(|portion| self.last_map(portion)).collect::<Result<Vec<_>, _>>()?;
            self.judge(&maps, target_class_idx)
        }
    }

    #[test]
    fn portions_change_nothing_with_stored_statistics_and_are_refused_with_the_scans_own() {
        let (running, _store) = network(BatchNormMode::Running);
        let whole = tch::no_grad(|| running.forward(&scan(5, 64), 1, None)).unwrap();
        let portions = tch::no_grad(|| running.forward(&scan(5, 64), 1, Some(2))).unwrap();
        let difference = (&whole.logits - &portions.logits).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
        assert_eq!(portions.activation_maps.size(), [5, 2, 2]);

        let (batch, _store) = network(BatchNormMode::Batch);
        let own = tch::no_grad(|| batch.forward(&scan(5, 64), 1, Some(5))).unwrap();
        assert!((&whole.logits - &own.logits).abs().max().double_value(&[]) > 1e-3);
        for (input, limit, words) in [
            (scan(5, 64), Some(2), "all slices go through at once, and these came in 3 portions"),
            (scan(1, 32), None, "has no statistics"),
            (scan(0, 32), None, "a scan without slices"),
        ] {
            let error = tch::no_grad(|| batch.forward(&input, 1, limit)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn contributions_and_maps_add_up_to_the_logit() {
        let (network, store) = network(BatchNormMode::Running);
        let output = tch::no_grad(|| network.forward(&scan(4, 64), 2, None)).unwrap();
        let bias = store.variables()["classifer.bias"].double_value(&[2]);
        let logit = output.logits.double_value(&[0, 2]);
        let of_slices = output.slice_contributions.sum(Kind::Double).double_value(&[]);
        assert!((of_slices + bias - logit).abs() < 1e-4, "{of_slices} + {bias}, {logit}");
        let of_maps = output.activation_maps.mean_dim([1i64, 2].as_slice(), false, None);
        assert!((of_maps - output.slice_contributions).abs().max().double_value(&[]) < 1e-4);
    }
}
