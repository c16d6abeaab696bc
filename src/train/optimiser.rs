//! Stochastic gradient descent, Adam and AdamW as PyTorch defines them, with a state that can be kept and taken up again;
//! gradient clipping, the schedule of the learning rate, and the moving average of weights.

use std::{collections::BTreeMap, f64::consts::PI};

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

/// How weights follow their gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// With momentum and L2 penalty, `torch.optim.SGD`.
    Sgd,
    /// Kingma and Ba (ICLR 2015), with L2 penalty, `torch.optim.Adam`.
    #[default]
    Adam,
    /// With decoupled weight decay (Loshchilov and Hutter, ICLR 2019), `torch.optim.AdamW`.
    AdamW,
}

/// The constants of an optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OptimiserOptions {
    /// Which one.
    pub(super) method: Method,
    /// Of SGD, 0 to below 1.
    pub(super) momentum: f64,
    /// L2 penalty (SGD, Adam) or decoupled decay (AdamW), 0 or more.
    pub(super) weight_decay: f64,
}

/// Adam's decay rates and constant, PyTorch's.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// An optimiser of named variables.
#[derive(Debug)]
pub(super) struct Optimiser {
    options: OptimiserOptions,
    variables: BTreeMap<String, Tensor>,
    /// Momentum, or Adam's first moments.
    first: BTreeMap<String, Tensor>,
    /// Adam's second moments.
    second: BTreeMap<String, Tensor>,
    /// How often it has stepped.
    pub(super) steps: i32,
}

impl Optimiser {
    /// For those of the variables that want gradients.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(super) fn new(variables: BTreeMap<String, Tensor>, options: OptimiserOptions) -> Result<Self, TchError> {
        let variables: BTreeMap<String, Tensor> =
            variables.into_iter().filter(|(_, variable)| variable.requires_grad()).collect();
        let zeros = || -> Result<BTreeMap<String, Tensor>, TchError> {
            variables.iter().map(|(name, of)| Ok((name.clone(), of.f_detach()?.f_zeros_like()?))).collect()
        };
        let (first, second) = match options.method {
            Method::Sgd => (if options.momentum > 0.0 { zeros()? } else { BTreeMap::new() }, BTreeMap::new()),
            Method::Adam | Method::AdamW => (zeros()?, zeros()?),
        };
        Ok(Self { options, variables, first, second, steps: 0 })
    }

    /// Forgets the gradients.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(super) fn zero_gradients(&self) -> Result<(), TchError> {
        for variable in self.variables.values() {
            let mut gradient = variable.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_detach_()?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Multiplies the gradients by `factor`, then makes their common length at most `most` (as
    /// `torch.nn.utils.clip_grad_norm_`). Returns the length before clipping; when it is not finite nothing is clipped.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(super) fn scale_and_clip(&self, factor: f64, most: Option<f64>) -> Result<f64, TchError> {
        tch::no_grad(|| {
            let mut gradients = Vec::new();
            for variable in self.variables.values() {
                let mut gradient = variable.f_grad()?;
                if gradient.defined() {
                    if (factor - 1.0).abs() > 0.0 {
                        let _ = gradient.f_mul_scalar_(factor)?;
                    }
                    gradients.push(gradient);
                }
            }
            let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
            if norms.is_empty() {
                return Ok(0.0);
            }
            let length = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
            if let Some(most) = most.filter(|_| length.is_finite()) {
                let share = (most / (length + 1e-6)).min(1.0);
                if share < 1.0 {
                    for gradient in &mut gradients {
                        let _ = gradient.f_mul_scalar_(share)?;
                    }
                }
            }
            Ok(length)
        })
    }

    /// Changes the variables by their gradients.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(super) fn step(&mut self, learning_rate: f64) -> Result<(), TchError> {
        self.steps += 1;
        let (options, steps) = (self.options, self.steps);
        tch::no_grad(|| {
            for (name, variable) in &mut self.variables {
                let gradient = variable.f_grad()?;
                if !gradient.defined() {
                    continue;
                }
                let gradient = if options.weight_decay > 0.0 && options.method != Method::AdamW {
                    gradient.f_add(&variable.f_mul_scalar(options.weight_decay)?)?
                } else {
                    gradient
                };
                let direction = match (options.method, self.first.get_mut(name), self.second.get_mut(name)) {
                    (Method::Sgd, Some(momentum), _) => {
                        // PyTorch's first momentum is the gradient itself, as it is with zeros.
                        let _ = momentum.f_mul_scalar_(options.momentum)?.f_add_(&gradient)?;
                        momentum.f_mul_scalar(learning_rate)?
                    }
                    (Method::Adam | Method::AdamW, Some(first), Some(second)) => {
                        if options.method == Method::AdamW && options.weight_decay > 0.0 {
                            let _ = variable.f_mul_scalar_(1.0 - learning_rate * options.weight_decay)?;
                        }
                        let _ = first.f_mul_scalar_(BETAS.0)?.f_add_(&gradient.f_mul_scalar(1.0 - BETAS.0)?)?;
                        let square = gradient.f_mul(&gradient)?.f_mul_scalar_(1.0 - BETAS.1)?;
                        let _ = second.f_mul_scalar_(BETAS.1)?.f_add_(&square)?;
                        let correction = (1.0 - BETAS.1.powi(steps)).sqrt();
                        let denominator = second.f_sqrt()?.f_mul_scalar_(1.0 / correction)?.f_add_scalar_(EPSILON)?;
                        first.f_div(&denominator)?.f_mul_scalar_(learning_rate / (1.0 - BETAS.0.powi(steps)))?
                    }
                    _ => gradient.f_mul_scalar(learning_rate)?,
                };
                let _ = variable.f_sub_(&direction)?;
            }
            Ok(())
        })
    }

    /// The moments by name: `first/…` and `second/…`.
    #[must_use]
    pub(super) fn state(&self) -> BTreeMap<String, Tensor> {
        let named = |moments: &BTreeMap<String, Tensor>, prefix: &str| -> Vec<(String, Tensor)> {
            moments.iter().map(|(name, of)| (format!("{prefix}/{name}"), of.shallow_clone())).collect()
        };
        named(&self.first, "first").into_iter().chain(named(&self.second, "second")).collect()
    }

    /// Takes up the moments that [`state`](Self::state) gave.
    ///
    /// # Errors
    /// When a moment is missing or of another shape.
    pub(super) fn restore(&mut self, state: &BTreeMap<String, Tensor>, steps: i32) -> Result<(), TchError> {
        self.steps = steps;
        for (moments, prefix) in [(&mut self.first, "first"), (&mut self.second, "second")] {
            for (name, moment) in moments {
                let name = format!("{prefix}/{name}");
                let kept = state.get(&name).ok_or_else(|| TchError::Torch(format!("`{name}` is missing")))?;
                tch::no_grad(|| moment.f_copy_(kept))?;
            }
        }
        Ok(())
    }
}

/// How the learning rate changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Not at all.
    Constant {},
    /// Multiplied by a factor every so many epochs.
    Step {
        /// Epochs from one change to the next, at least 1.
        every_epochs: u32,
        /// Above 0 up to 1.
        factor: f64,
    },
    /// Half a cosine from the full rate to `last_fraction` of it at the end (Loshchilov and Hutter, ICLR 2017).
    #[default]
    Cosine,
}

impl Schedule {
    /// The factor on the learning rate for the step `step` (counted from 0) of `steps_per_epoch * epochs`. During the first
    /// `warm_up_steps` it rises in a straight line.
    #[must_use]
    pub(super) fn factor(self, step: u64, steps_per_epoch: u64, epochs: u32, warm_up_steps: u64) -> f64 {
        if step < warm_up_steps {
            return (step + 1) as f64 / warm_up_steps as f64;
        }
        match self {
            Self::Constant {} => 1.0,
            Self::Step { every_epochs, factor } => {
                let epoch = step / steps_per_epoch.max(1);
                factor.powf((epoch / u64::from(every_epochs.max(1))) as f64)
            }
            Self::Cosine => {
                let all = (steps_per_epoch * u64::from(epochs)).saturating_sub(warm_up_steps).max(1);
                let done = ((step - warm_up_steps) as f64 / all as f64).min(1.0);
                0.5 * (1.0 + (PI * done).cos())
            }
        }
    }
}

/// An exponential moving average of all variables, those of batch normalisation included.
#[derive(Debug)]
pub(super) struct MovingAverage {
    decay: f64,
    /// By name.
    pub(super) values: BTreeMap<String, Tensor>,
}

impl MovingAverage {
    /// Starts at the present values.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(super) fn new(variables: &BTreeMap<String, Tensor>, decay: f64) -> Result<Self, TchError> {
        let values = variables
            .iter()
            .map(|(name, of)| Ok((name.clone(), of.f_detach_copy()?)))
            .collect::<Result<_, TchError>>()?;
        Ok(Self { decay, values })
    }

    /// Moves towards the present values; faster in the first steps, when there is little to average.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(super) fn follow(&mut self, variables: &BTreeMap<String, Tensor>, steps: i32) -> Result<(), TchError> {
        let steps = f64::from(steps);
        let decay = self.decay.min((1.0 + steps) / (10.0 + steps));
        tch::no_grad(|| {
            for (name, value) in &mut self.values {
                let Some(variable) = variables.get(name) else { continue };
                let _ = value.f_mul_scalar_(decay)?.f_add_(&variable.f_mul_scalar(1.0 - decay)?)?;
            }
            Ok(())
        })
    }
}

/// The scale of the loss in mixed precision: gradients in half precision must neither vanish nor overflow. Halved when
/// they do overflow (that step is left out), doubled after 2000 steps without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct LossScale {
    /// Multiplies the loss.
    pub(super) scale: f64,
    good_steps: u32,
}

impl LossScale {
    /// For single precision: 1, for ever. For half precision: 65536 at first.
    #[must_use]
    pub(super) const fn new(is_mixed: bool) -> Self {
        Self { scale: if is_mixed { 65_536.0 } else { 1.0 }, good_steps: 0 }
    }

    /// Whether the step counts, by the length of its gradients.
    pub(super) fn accept(&mut self, is_mixed: bool, gradient_length: f64) -> bool {
        if !is_mixed {
            return true;
        }
        let is_finite = gradient_length.is_finite();
        if is_finite {
            self.good_steps += 1;
            if self.good_steps == 2000 {
                *self = Self { scale: self.scale * 2.0, good_steps: 0 };
            }
        } else {
            *self = Self { scale: (self.scale / 2.0).max(1.0), good_steps: 0 };
        }
        is_finite
    }
}

/// Mean of a batch's elements as a number.
pub(super) fn number(tensor: &Tensor) -> Result<f64, TchError> {
    tensor.f_to_kind(Kind::Double)?.f_double_value(&[])
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Gradient of 0.5 * sum(a * (x - b)^2).
    fn run(options: OptimiserOptions, n_steps: usize) -> (Vec<f64>, Optimiser) {
        let x = Tensor::from_slice(&[1.0f32, -2.0, 0.5]).set_requires_grad(true);
        let variables = BTreeMap::from([("x".to_owned(), x.shallow_clone())]);
        let mut optimiser = Optimiser::new(variables, options).unwrap();
        for _ in 0..n_steps {
            optimiser.zero_gradients().unwrap();
            loss(&x).backward();
            optimiser.step(0.1).unwrap();
        }
        (values(&x), optimiser)
    }

    fn loss(x: &Tensor) -> Tensor {
        let a = Tensor::from_slice(&[1.0f32, 2.0, 0.25]);
        let b = Tensor::from_slice(&[0.0f32, 1.0, -1.0]);
        let off = x - b;
        (a * &off * &off).sum(Kind::Float) * 0.5
    }

    fn values(x: &Tensor) -> Vec<f64> {
        Vec::try_from(x.detach().to_kind(Kind::Double)).unwrap()
    }

    /// The values that `torch.optim` of PyTorch gives after five steps; see tests/golden/nn/optimisers.json.
    #[test]
    fn five_steps_are_pytorchs() {
        #[derive(Deserialize)]
        struct Case {
            method: Method,
            momentum: f64,
            weight_decay: f64,
            values: Vec<f64>,
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/nn/optimisers.json");
        let cases: Vec<Case> = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        assert_eq!(cases.len(), 6);
        for Case { method, momentum, weight_decay, values } in cases {
            let (found, _) = run(OptimiserOptions { method, momentum, weight_decay }, 5);
            let difference = found.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(difference < 1e-6, "{method:?} {momentum} {weight_decay}: {found:?} {values:?}");
        }
    }

    #[test]
    fn a_restored_optimiser_goes_on_bit_for_bit() {
        for method in [Method::Sgd, Method::Adam, Method::AdamW] {
            let options = OptimiserOptions { method, momentum: 0.9, weight_decay: 0.01 };
            let (whole, _) = run(options, 6);
            let (half, first) = run(options, 3);
            let x = Tensor::from_slice(&half.iter().map(|value| *value as f32).collect::<Vec<_>>());
            let x = x.set_requires_grad(true);
            let mut second = Optimiser::new(BTreeMap::from([("x".to_owned(), x.shallow_clone())]), options).unwrap();
            second.restore(&first.state(), first.steps).unwrap();
            for _ in 0..3 {
                second.zero_gradients().unwrap();
                loss(&x).backward();
                second.step(0.1).unwrap();
            }
            assert_eq!(values(&x), whole, "{method:?}");
        }
    }

    #[test]
    fn gradients_are_clipped_to_their_common_length() {
        let x = Tensor::from_slice(&[0.0f32, 0.0]).set_requires_grad(true);
        let optimiser = Optimiser::new(
            BTreeMap::from([("x".to_owned(), x.shallow_clone())]),
            OptimiserOptions { method: Method::Sgd, momentum: 0.0, weight_decay: 0.0 },
        )
        .unwrap();
        (&x * Tensor::from_slice(&[3.0f32, 4.0])).sum(Kind::Float).backward();
        let length = optimiser.scale_and_clip(2.0, Some(1.0)).unwrap();
        assert!((length - 10.0).abs() < 1e-6);
        let clipped = values(&x.grad());
        assert!((clipped[0] - 0.6).abs() < 1e-6 && (clipped[1] - 0.8).abs() < 1e-6, "{clipped:?}");
    }

    #[test]
    fn schedules_rise_and_fall() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(Schedule::Cosine.factor(0, 10, 3, 5), 0.2);
        close(Schedule::Cosine.factor(4, 10, 3, 5), 1.0);
        close(Schedule::Cosine.factor(5, 10, 3, 5), 1.0);
        close(Schedule::Cosine.factor(30, 10, 3, 5), 0.0);
        let step = Schedule::Step { every_epochs: 2, factor: 0.1 };
        close(step.factor(19, 10, 9, 0), 1.0);
        close(step.factor(20, 10, 9, 0), 0.1);
        close(Schedule::Constant {}.factor(1000, 10, 9, 0), 1.0);
    }

    #[test]
    fn the_average_lags_behind() {
        let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let variables = BTreeMap::from([("x".to_owned(), x.shallow_clone())]);
        let mut average = MovingAverage::new(&variables, 0.5).unwrap();
        let _ = x.shallow_clone().fill_(1.0);
        average.follow(&variables, 1000).unwrap();
        average.follow(&variables, 1001).unwrap();
        assert!((number(&average.values["x"].squeeze()).unwrap() - 0.75).abs() < 1e-6);
    }

    #[test]
    fn a_loss_scale_gives_way_and_recovers() {
        let mut scale = LossScale::new(true);
        assert!(!scale.accept(true, f64::INFINITY));
        assert!((scale.scale - 32_768.0).abs() < 1e-9);
        for _ in 0..2000 {
            assert!(scale.accept(true, 1.0));
        }
        assert!((scale.scale - 65_536.0).abs() < 1e-9);
        assert!(LossScale::new(false).accept(false, f64::NAN));
    }
}
