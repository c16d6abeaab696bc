//! How a network is run: as libtorch's operations one after the other, or as one optimised recording of them.

use tch::{TchError, Tensor};

use super::{
    error::{NnError, cut},
    jit::JitModule,
};

/// What a network computes of its inputs: tensors of n images each.
pub(super) type Forward = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>, TchError>>;

/// How far an optimised network may be from the plain one, relative to the largest magnitude of an output.
const TOLERANCE: f64 = 1e-4;

/// A network, ready to run on its thread.
pub(super) struct Runner {
    name: String,
    how: How,
}

enum How {
    Plain(Forward),
    Optimised(JitModule),
}

impl Runner {
    /// A network that is run as it is.
    pub(super) fn plain(name: &str, forward: Forward) -> Self {
        Self { name: name.to_owned(), how: How::Plain(forward) }
    }

    /// A network that is optimised, if that gives the same: it is compared on `examples`, input tensors of one image and
    /// of several. What cannot be optimised, or comes out differently, is run as it is, and the log says so.
    pub(super) fn optimised(name: &str, forward: Forward, examples: &[Vec<Tensor>]) -> Self {
        match optimise(&forward, examples) {
            Ok(optimised) => {
                tracing::debug!(network = name, n_winograd = optimised.n_winograd, "the network is optimised");
                Self { name: name.to_owned(), how: How::Optimised(optimised) }
            }
            Err(reason) => {
                tracing::warn!(network = name, reason, "the network is not optimised: it runs as it is, more slowly");
                Self::plain(name, forward)
            }
        }
    }

    /// The outputs for the inputs, n images each.
    pub(super) fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        match &self.how {
            How::Plain(forward) => forward(inputs).map_err(|error| NnError::torch(&self.name, &error)),
            How::Optimised(optimised) => {
                optimised.forward(inputs).map_err(|words| NnError::Torch { network: self.name.clone(), words })
            }
        }
    }

    /// As [`run`](Self::run), of a network with `N` outputs.
    pub(super) fn run_for<const N: usize>(&self, inputs: &[Tensor]) -> Result<[Tensor; N], NnError> {
        let outputs = self.run(inputs)?;
        let found = outputs.len();
        outputs.try_into().map_err(|_| NnError::Torch {
            network: self.name.clone(),
            words: format!("it gives {found} outputs instead of {N}"),
        })
    }

    /// Whether the network is optimised.
    #[cfg(test)]
    pub(super) const fn is_optimised(&self) -> bool {
        matches!(self.how, How::Optimised(_))
    }

    /// How many convolutions of the optimised network `winograd.cpp` computes.
    #[cfg(test)]
    const fn n_winograd(&self) -> i64 {
        match &self.how {
            How::Plain(_) => 0,
            How::Optimised(optimised) => optimised.n_winograd,
        }
    }
}

fn optimise(forward: &Forward, examples: &[Vec<Tensor>]) -> Result<JitModule, String> {
    let first = examples.first().ok_or("there is no example")?;
    let optimised = JitModule::record(first, |inputs| forward(inputs))?;
    for example in examples {
        let expected = forward(example).map_err(|error| cut(&error.to_string()))?;
        // The first runs of a recording may still be compiled: what is compared is what will be run.
        optimised.forward(example)?;
        let found = optimised.forward(example)?;
        if found.len() != expected.len() {
            return Err(format!("it gives {} outputs instead of {}", found.len(), expected.len()));
        }
        for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = difference(found, expected).map_err(|error| cut(&error.to_string()))?;
            if difference.is_nan() || difference > TOLERANCE {
                return Err(format!(
                    "output {idx} differs by {difference:e} of its magnitude, more than {TOLERANCE:e}"
                ));
            }
        }
    }
    Ok(optimised)
}

/// The largest difference relative to the largest magnitude.
fn difference(found: &Tensor, expected: &Tensor) -> Result<f64, TchError> {
    if found.size() != expected.size() {
        return Ok(f64::INFINITY);
    }
    let largest = f64::try_from(found.f_sub(expected)?.f_abs()?.f_max()?)?;
    let magnitude = f64::try_from(expected.f_abs()?.f_max()?)?;
    Ok(largest / magnitude.max(1e-6))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::{Device, Kind};

    use super::{super::seeded, *};

    fn example(n: i64) -> Vec<Tensor> {
        vec![Tensor::arange(n * 3 * 8 * 8, (Kind::Float, Device::Cpu)).view([n, 3, 8, 8]).sin()]
    }

    fn mean_plus(addend: impl Fn() -> f64 + 'static) -> Forward {
        Box::new(move |inputs| {
            Ok(vec![inputs[0].f_mean_dim([2i64, 3].as_slice(), false, None)?.f_add_scalar(addend())?])
        })
    }

    #[test]
    fn a_network_that_comes_out_differently_is_run_as_it_is() {
        let _guard = tch::no_grad_guard();
        let same = Runner::optimised("same", mean_plus(|| 1.0), &[example(1), example(3)]);
        assert!(same.is_optimised());
        let expected = mean_plus(|| 1.0)(&example(2)).unwrap();
        assert!(difference(&same.run(&example(2)).unwrap()[0], &expected[0]).unwrap() < 1e-6);

        // Adds one more with every call, which no recording can know.
        let calls = Cell::new(0.0);
        let counting = move || {
            calls.set(calls.get() + 1.0);
            calls.get()
        };
        let counting = Runner::optimised("counting", mean_plus(counting), &[example(1)]);
        assert!(!counting.is_optimised());
        let (first, second) = (counting.run(&example(1)).unwrap(), counting.run(&example(1)).unwrap());
        assert!(difference(&first[0], &second[0]).unwrap() > 0.1);
    }

    /// A 3x3 convolution of seeded weights, an equal number of channels in and out.
    fn convolution(channels: i64, with_bias: bool, stride: i64) -> impl Fn(&Tensor) -> Tensor {
        let n_weights = channels * channels * 9;
        let weights = Tensor::from_slice(&seeded::uniform(3, "weight", n_weights as usize, -0.1, 0.1));
        let weights = weights.view([channels, channels, 3, 3]);
        let bias = with_bias.then(|| Tensor::from_slice(&seeded::uniform(3, "bias", channels as usize, -1.0, 1.0)));
        move |map| map.conv2d(&weights, bias.as_ref(), [stride; 2], [1; 2], [1; 2], 1)
    }

    fn maps(n: i64, channels: i64, rows: i64, columns: i64) -> Tensor {
        let n_samples = (n * channels * rows * columns) as usize;
        Tensor::from_slice(&seeded::uniform(5, "map", n_samples, -1.0, 1.0)).view([n, channels, rows, columns])
    }

    #[test]
    fn three_by_three_convolutions_are_computed_by_winograds_way_and_come_out_the_same() {
        let _guard = tch::no_grad_guard();
        // Whole tiles, and rows and columns that fill none; a map that others use as well is kept.
        for (rows, columns) in [(28, 28), (29, 30), (27, 35), (64, 33)] {
            let (first, second, third) =
                (convolution(32, true, 1), convolution(32, false, 1), convolution(32, true, 1));
            let forward: Forward = Box::new(move |inputs| {
                let map = first(&inputs[0]).f_relu_()?;
                let beside = second(&map);
                Ok(vec![third(&beside.f_relu()?), beside])
            });
            let expected = forward(&[maps(3, 32, rows, columns)]).unwrap();
            let examples = [vec![maps(1, 32, rows, columns)], vec![maps(2, 32, rows, columns)]];
            let runner = Runner::optimised("convolutions", forward, &examples);
            assert_eq!(runner.n_winograd(), 3, "{rows} x {columns}");
            let found = runner.run(&[maps(3, 32, rows, columns)]).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                let difference = difference(found, expected).unwrap();
                assert!(difference < 2e-5, "{rows} x {columns}: {difference:e}");
            }
        }
    }

    #[test]
    fn convolutions_that_gain_nothing_stay_with_onednn() {
        let _guard = tch::no_grad_guard();
        let n_winograd = |channels: i64, side: i64, stride: i64| {
            let conv = convolution(channels, true, stride);
            let forward: Forward = Box::new(move |inputs| Ok(vec![conv(&inputs[0])]));
            let runner = Runner::optimised("one", forward, &[vec![maps(1, channels, side, side)]]);
            assert!(runner.is_optimised(), "{channels} channels, {side} x {side}, stride {stride}");
            runner.n_winograd()
        };
        assert_eq!(n_winograd(32, 28, 1), 1);
        // Small maps, strides, and channels that do not fill the processor's registers.
        assert_eq!([n_winograd(32, 14, 1), n_winograd(32, 64, 2), n_winograd(24, 28, 1)], [0; 3]);
    }

    #[test]
    fn errors_name_the_network() {
        let _guard = tch::no_grad_guard();
        let runner = Runner::plain("torn", Box::new(|inputs| Ok(vec![inputs[0].f_view([7])?])));
        assert!(runner.run(&example(1)).unwrap_err().to_string().starts_with("network `torn` fails"));
    }
}
