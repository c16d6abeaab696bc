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
            Ok(optimised) => Self { name: name.to_owned(), how: How::Optimised(optimised) },
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

    use super::*;

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

    #[test]
    fn errors_name_the_network() {
        let _guard = tch::no_grad_guard();
        let runner = Runner::plain("torn", Box::new(|inputs| Ok(vec![inputs[0].f_view([7])?])));
        assert!(runner.run(&example(1)).unwrap_err().to_string().starts_with("network `torn` fails"));
    }
}
