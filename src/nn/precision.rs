//! With which numbers a network computes on a GPU: 32-bit floats, or the reduced precision that its manifest asks for if
//! the outputs stay the same within a tolerance. They are compared when the network is loaded.
//!
//! On the processor every network computes with 32-bit floats.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use super::{
    ensemble::{ClassifierQuestion, MemberOutput},
    error::NnError,
    jit::{self, Autocast, HalfKind},
    owner::{GO_ON, Model, Step},
    plane::{Plane, Planes},
    scan::{ScanOutput, ScanQuestion, Slices},
    seeded,
};

/// Numbers that a network computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Float32,
    /// 32-bit floats, whose factors are rounded to 10 bits of mantissa in convolutions and products.
    Tf32,
    /// Convolutions and products with 16-bit floats of 10 bits of mantissa, the rest with 32 bits.
    Float16,
    /// Convolutions and products with 16-bit floats of 7 bits of mantissa, the rest with 32 bits.
    Bfloat16,
}

impl Precision {
    /// The name used in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// What the manifest says of one network's precision.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPrecision {
    /// On CUDA devices.
    #[serde(default)]
    pub cuda: Precision,
    /// How far the network's probabilities may be from those of `float32`, above 0 up to [`MAX_TOLERANCE`].
    #[serde(default = "NetworkPrecision::default_tolerance")]
    pub tolerance: f64,
}

/// Largest difference of a probability between reduced and full precision that a manifest may allow.
pub const MAX_TOLERANCE: f64 = 0.01;

impl Default for NetworkPrecision {
    fn default() -> Self {
        Self { cuda: Precision::Float32, tolerance: MAX_TOLERANCE }
    }
}

impl NetworkPrecision {
    const fn default_tolerance() -> f64 {
        MAX_TOLERANCE
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A model that computes with the precision that was settled for it.
pub(super) struct Settled<M> {
    name: String,
    model: M,
    device: tch::Device,
    precision: Precision,
    in_full: InFull,
}

/// Whether the copies of one network compute with 32-bit floats, all of them, since one of them has to: a study must not
/// get another answer because of the device that had time for it.
#[derive(Debug, Clone, Default)]
pub(super) struct InFull(Arc<AtomicBool>);

impl InFull {
    /// Settles what all copies compute with by what each has settled on: the same, or 32-bit floats.
    pub(super) fn agree(&self, network: &str, copies: &[Precision]) {
        if copies.contains(&Precision::Float32) && copies.iter().any(|of_copy| *of_copy != Precision::Float32) {
            self.0.store(true, Ordering::Release);
            tracing::warn!(network, "one copy of the network has to compute with float32: all of them do");
        }
    }

    fn is_asked_for(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// What a copy computes with that has settled on `settled`.
    pub(super) fn of(&self, settled: Precision) -> Precision {
        if self.is_asked_for() { Precision::Float32 } else { settled }
    }
}

/// Pictures and scans that the precisions are compared on.
const N_PROBES: u64 = 4;

impl<M: Model<Question: MadeUp, Answer: Comparable>> Settled<M> {
    /// Settles the precision for inputs of these shapes (channels, rows, columns): the wanted one, if it gives the same
    /// answers within the tolerance; 32-bit floats else, and the log says why.
    pub(super) fn settle(mut self, wanted: Precision, tolerance: f64, input_shapes: &[[usize; 3]]) -> Self {
        if wanted == Precision::Float32 {
            return self;
        }
        let (network, precision) = (&self.name, wanted.name());
        match self.difference_of(wanted, input_shapes) {
            Ok(difference) if difference <= tolerance => {
                tracing::info!(network, precision, difference, tolerance, "the network computes with it");
                self.precision = wanted;
            }
            compared => {
                let reason = match compared {
                    Ok(difference) => format!("a probability differs by {difference}, more than {tolerance}"),
                    Err(error) => error.to_string(),
                };
                tracing::warn!(network, precision, reason, "the network computes with float32 instead, more slowly");
            }
        }
        self
    }

    /// The largest difference of an answer with this precision from that with 32-bit floats. Not a number where an answer
    /// holds one that is none.
    fn difference_of(&self, precision: Precision, input_shapes: &[[usize; 3]]) -> Result<f64, NnError> {
        let mut largest = 0.0;
        for seed in 0..N_PROBES {
            let question = M::Question::made_up(seed, input_shapes);
            let answer = |precision| {
                let answers = self.within(precision, || self.model.answer(&[&question], GO_ON))?;
                let words = || format!("it gives no answer with {}", precision.name());
                answers.into_iter().next().ok_or_else(|| NnError::Torch { network: self.name.clone(), words: words() })
            };
            let difference = answer(precision)?.difference(&answer(Precision::Float32)?);
            if difference.is_nan() {
                return Ok(difference);
            }
            largest = difference.max(largest);
        }
        Ok(largest)
    }
}

impl<M> Settled<M> {
    /// A model that computes with 32-bit floats.
    pub(super) fn new(name: &str, model: M, device: tch::Device) -> Self {
        Self { name: name.to_owned(), model, device, precision: Precision::Float32, in_full: InFull::default() }
    }

    /// One of several copies.
    pub(super) fn among(self, in_full: InFull) -> Self {
        Self { in_full, ..self }
    }

    /// What it computes with.
    pub(super) const fn precision(&self) -> Precision {
        self.precision
    }

    fn within<T>(&self, precision: Precision, work: impl FnOnce() -> Result<T, NnError>) -> Result<T, NnError> {
        let refused = |words: String| NnError::Torch { network: self.name.clone(), words };
        let tf32 = || TF32.hold(precision == Precision::Tf32, jit::cuda_allow_tf32);
        let _tf32 = self.device.is_cuda().then(tf32).transpose().map_err(refused)?;
        let half = match precision {
            Precision::Float32 | Precision::Tf32 => None,
            Precision::Float16 => Some(HalfKind::Float16),
            Precision::Bfloat16 => Some(HalfKind::Bfloat16),
        };
        let _half = half.map(|kind| Autocast::begin(self.device, kind)).transpose().map_err(refused)?;
        work()
    }
}

impl<M: Model> Model for Settled<M> {
    type Question = M::Question;
    type Answer = M::Answer;

    /// What is too large for reduced precision is computed once more with 32-bit floats.
    fn answer(&self, questions: &[&Self::Question], step: Step<'_>) -> Result<Vec<Self::Answer>, NnError> {
        let precision = self.in_full.of(self.precision);
        match self.within(precision, || self.model.answer(questions, step)) {
            Err(NnError::OutputNotFinite { network }) if precision != Precision::Float32 => {
                tracing::warn!(network, precision = precision.name(), "not finite: computed again with float32");
                self.within(Precision::Float32, || self.model.answer(questions, step))
            }
            answered => answered,
        }
    }
}

// --- what is compared ----------------------------------------------------------------------------------------------

/// A question with made-up pictures.
pub(super) trait MadeUp {
    /// One with inputs of these shapes (channels, rows, columns).
    fn made_up(seed: u64, input_shapes: &[[usize; 3]]) -> Self;
}

/// An answer that can be compared with another one.
pub(super) trait Comparable {
    /// The largest difference of a probability; of labels the share of pixels with another label.
    fn difference(&self, other: &Self) -> f64;
}

/// Side of the squares of one value in every other made-up picture.
const BLOCK_PIXELS: usize = 16;

/// Noise: for even seeds of single samples, for odd ones of squares, so that there is something to see at every scale.
fn noise(seed: u64, [channels, rows, columns]: [usize; 3], (low, high): (f32, f32)) -> Vec<f32> {
    if seed.is_multiple_of(2) {
        return seeded::uniform(seed, "precision", channels * rows * columns, low, high);
    }
    let (block_rows, block_columns) = (rows.div_ceil(BLOCK_PIXELS), columns.div_ceil(BLOCK_PIXELS));
    let blocks = seeded::uniform(seed, "precision", channels * block_rows * block_columns, low, high);
    let value = |(channel, row, column): (usize, usize, usize)| {
        let block = (channel * block_rows + row / BLOCK_PIXELS) * block_columns + column / BLOCK_PIXELS;
        blocks.get(block).copied().unwrap_or(low)
    };
    let rows_of = |channel| (0..rows).flat_map(move |row| (0..columns).map(move |column| (channel, row, column)));
    (0..channels).flat_map(rows_of).map(value).collect()
}

/// Samples of normalised pictures.
const NORMALISED: (f32, f32) = (-2.0, 2.0);

/// Slices of a made-up scan.
const N_SLICES: usize = 4;

fn made_up_slices(seed: u64, input_shapes: &[[usize; 3]], range: (f32, f32)) -> Slices {
    let [channels, rows, columns] = input_shapes.first().copied().unwrap_or([0; 3]);
    // Half of the slices of either kind of noise.
    let of_slice = |slice: usize| noise(N_SLICES as u64 * seed + slice as u64, [channels, rows, columns], range);
    Slices { count: N_SLICES, channels, rows, columns, values: (0..N_SLICES).flat_map(of_slice).collect() }
}

impl MadeUp for Plane {
    fn made_up(seed: u64, input_shapes: &[[usize; 3]]) -> Self {
        let [_, rows, columns] = input_shapes.first().copied().unwrap_or([0; 3]);
        Self { rows, columns, values: noise(seed, [1, rows, columns], NORMALISED) }
    }
}

impl MadeUp for ClassifierQuestion {
    fn made_up(seed: u64, input_shapes: &[[usize; 3]]) -> Self {
        let input = |&[channels, rows, columns]: &[usize; 3]| {
            let values = noise(seed, [channels, rows, columns], NORMALISED);
            Planes { channels, rows, columns, values }
        };
        Self { inputs: input_shapes.iter().map(input).collect(), target_class_idx: 0 }
    }
}

impl MadeUp for ScanQuestion {
    fn made_up(seed: u64, input_shapes: &[[usize; 3]]) -> Self {
        Self { slices: made_up_slices(seed, input_shapes, NORMALISED).into(), target_class_idx: 0 }
    }
}

impl MadeUp for Slices {
    fn made_up(seed: u64, input_shapes: &[[usize; 3]]) -> Self {
        made_up_slices(seed, input_shapes, (0.0, 1.0))
    }
}

impl MadeUp for Arc<Slices> {
    fn made_up(seed: u64, input_shapes: &[[usize; 3]]) -> Self {
        made_up_slices(seed, input_shapes, NORMALISED).into()
    }
}

impl Comparable for Plane {
    fn difference(&self, other: &Self) -> f64 {
        largest_difference(&self.values, &other.values)
    }
}

impl Comparable for MemberOutput {
    fn difference(&self, other: &Self) -> f64 {
        largest_difference(&self.probabilities, &other.probabilities)
    }
}

impl Comparable for Vec<MemberOutput> {
    fn difference(&self, other: &Self) -> f64 {
        if self.len() != other.len() {
            return f64::INFINITY;
        }
        self.iter().zip(other).map(|(one, other)| one.difference(other)).fold(0.0, larger)
    }
}

impl Comparable for ScanOutput {
    fn difference(&self, other: &Self) -> f64 {
        let of_slices = self.slices.iter().zip(&other.slices);
        let of_slices = of_slices.map(|(one, other)| largest_difference(&one.probabilities, &other.probabilities));
        of_slices.fold(largest_difference(&self.probabilities, &other.probabilities), larger)
    }
}

impl Comparable for Vec<f32> {
    fn difference(&self, other: &Self) -> f64 {
        largest_difference(self, other)
    }
}

impl Comparable for Vec<u8> {
    fn difference(&self, other: &Self) -> f64 {
        if self.len() != other.len() {
            return f64::INFINITY;
        }
        let n_others = self.iter().zip(other).filter(|(one, other)| one != other).count();
        n_others as f64 / self.len().max(1) as f64
    }
}

fn largest_difference(ones: &[f32], others: &[f32]) -> f64 {
    if ones.len() != others.len() {
        return f64::INFINITY;
    }
    ones.iter().zip(others).map(|(one, other)| (f64::from(*one) - f64::from(*other)).abs()).fold(0.0, larger)
}

/// The larger one; not a number if either is none.
fn larger(one: f64, other: f64) -> f64 {
    if one.is_nan() || one > other { one } else { other }
}

// --- TF32 ----------------------------------------------------------------------------------------------------------

/// libtorch's switch for TF32, which is one for the process.
static TF32: Switch = Switch::new();

/// A switch that many threads hold in one position, while those that want the other one wait for their turn.
struct Switch {
    state: Mutex<SwitchState>,
    released: Condvar,
}

struct SwitchState {
    /// `None` until it is known.
    is_on: Option<bool>,
    holders: usize,
    waiting_for_off: usize,
    waiting_for_on: usize,
}

impl SwitchState {
    fn waiting_for(&mut self, on: bool) -> &mut usize {
        if on { &mut self.waiting_for_on } else { &mut self.waiting_for_off }
    }
}

/// Lets go of a switch when it is dropped.
struct Held<'a>(&'a Switch);

impl Switch {
    const fn new() -> Self {
        let state = SwitchState { is_on: None, holders: 0, waiting_for_off: 0, waiting_for_on: 0 };
        Self { state: Mutex::new(state), released: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, SwitchState> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody holds the other position or waits for it, and holds this one; `turn` is called if it changes.
    fn hold(&self, on: bool, turn: impl FnOnce(bool) -> Result<(), String>) -> Result<Held<'_>, String> {
        let mut state = self.state();
        *state.waiting_for(on) += 1;
        while state.holders > 0 && (state.is_on != Some(on) || *state.waiting_for(!on) > 0) {
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state.waiting_for(on) -= 1;
        if state.is_on != Some(on) {
            state.is_on = None;
            turn(on)?;
            state.is_on = Some(on);
        }
        state.holders += 1;
        Ok(Held(self))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holders -= 1;
        drop(state);
        self.0.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc::channel};

    use super::{
        super::{
            Bundle, MemberArchitecture, ensemble::ClassifierModel, ensemble::EnsembleOptions, init::test_bundle,
            load::LoadPlan,
        },
        *,
    };

    const SHAPE: [usize; 3] = [3, 64, 64];

    /// A classifier of the test bundle on this thread.
    fn classifier(member_idx: usize) -> Settled<ClassifierModel> {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let entry = bundle.manifest().networks().nth(member_idx + 1).unwrap();
        let member = &bundle.manifest().members[member_idx];
        let MemberArchitecture::Known(architecture) = member.architecture else { panic!("of ours") };
        let plan = LoadPlan::new(&bundle, &entry, EnsembleOptions { optimise: false, ..EnsembleOptions::default() });
        let model =
            ClassifierModel::load(&plan, architecture, (member.width, member.classifier_options()), SHAPE, vec![0, 1])
                .unwrap();
        Settled::new(&member.name, model, tch::Device::Cpu)
    }

    #[test]
    fn reduced_precision_is_used_if_the_answers_stay_the_same() {
        let _guard = tch::no_grad_guard();
        for member_idx in 0..4 {
            let question = ClassifierQuestion::made_up(7, &[SHAPE]);
            let float32 = classifier(member_idx);
            let expected = float32.answer(&[&question], GO_ON).unwrap().remove(0);

            for precision in [Precision::Bfloat16, Precision::Float16] {
                let network = classifier(member_idx).settle(precision, MAX_TOLERANCE, &[SHAPE]);
                assert_eq!(network.precision(), precision, "{}", network.name);
                let found = network.answer(&[&question], GO_ON).unwrap().remove(0);
                assert!(found.difference(&expected) <= MAX_TOLERANCE);
                assert_ne!(found.logits, expected.logits, "the numbers are other ones, or nothing was reduced");
            }

            let network = classifier(member_idx).settle(Precision::Bfloat16, 1e-9, &[SHAPE]);
            assert_eq!(network.precision(), Precision::Float32, "{}: beyond the tolerance", network.name);
            assert_eq!(
                network.answer(&[&question], GO_ON).unwrap().remove(0),
                expected,
                "nothing of it is left behind"
            );
        }
    }

    /// Gives what it is told to give, whatever it is asked: first in reduced precision, then in full.
    struct Told(std::cell::RefCell<Vec<Result<Vec<f32>, NnError>>>);

    impl Model for Told {
        type Question = Plane;
        type Answer = Plane;

        fn answer(&self, _: &[&Plane], _: Step<'_>) -> Result<Vec<Plane>, NnError> {
            let values = self.0.borrow_mut().remove(0)?;
            Ok(vec![Plane { rows: 1, columns: values.len(), values }])
        }
    }

    #[test]
    fn a_network_that_cannot_do_without_32_bits_gets_them() {
        let refused = || Err(NnError::OutputNotFinite { network: "told".to_owned() });
        for answers in [
            vec![refused()],
            vec![Ok(vec![0.5]), refused()],
            vec![Ok(vec![f32::NAN]), Ok(vec![0.5])],
            vec![Ok(vec![0.5]), Ok(vec![f32::NAN])],
            vec![Ok(vec![0.5, 0.5]), Ok(vec![0.5])],
            vec![Ok(vec![0.5]), Ok(vec![0.5]), Ok(vec![0.5]), Ok(vec![0.6]), Ok(vec![0.5]), Ok(vec![0.5])],
        ] {
            // What follows would be alike.
            let rest = std::iter::repeat_n(Ok(vec![0.5]), 2 * N_PROBES as usize);
            let told = Told(answers.clone().into_iter().chain(rest).collect::<Vec<_>>().into());
            let settled = Settled::new("told", told, tch::Device::Cpu);
            let settled = settled.settle(Precision::Bfloat16, MAX_TOLERANCE, &[[1, 4, 4]]);
            assert_eq!(settled.precision(), Precision::Float32, "{answers:?}");
        }
        // What a picture does to reduced precision later is mended by computing it again.
        let probes = std::iter::repeat_n(Ok(vec![0.5]), 2 * N_PROBES as usize);
        let told = Told(probes.chain([refused(), Ok(vec![0.25]), refused(), refused()]).collect::<Vec<_>>().into());
        let settled = Settled::new("told", told, tch::Device::Cpu);
        let settled = settled.settle(Precision::Bfloat16, MAX_TOLERANCE, &[[1, 4, 4]]);
        let question = Plane { rows: 1, columns: 1, values: vec![0.0] };
        assert_eq!(settled.answer(&[&question], GO_ON).unwrap()[0].values, [0.25]);
        assert_eq!(settled.answer(&[&question], GO_ON).err(), refused().err(), "float32 is refused as well");

        let alike = Told(std::iter::repeat_n(Ok(vec![0.5]), 2 * N_PROBES as usize).collect::<Vec<_>>().into());
        let settled = Settled::new("told", alike, tch::Device::Cpu);
        let settled = settled.settle(Precision::Bfloat16, MAX_TOLERANCE, &[[1, 4, 4]]);
        assert_eq!(settled.precision(), Precision::Bfloat16);
    }

    #[test]
    fn copies_of_a_network_agree_on_the_precision_that_one_of_them_needs() {
        let _guard = tch::no_grad_guard();
        let (reduced, full) = (Precision::Bfloat16, Precision::Float32);
        let question = ClassifierQuestion::made_up(7, &[SHAPE]);
        let alone = classifier(0).settle(reduced, MAX_TOLERANCE, &[SHAPE]);
        let [of_reduced, of_full] =
            [&alone, &classifier(0)].map(|of| of.answer(&[&question], GO_ON).unwrap().remove(0));
        for (others, used, expected) in [(reduced, reduced, &of_reduced), (full, full, &of_full)] {
            let in_full = InFull::default();
            let copy = classifier(0).settle(reduced, MAX_TOLERANCE, &[SHAPE]).among(in_full.clone());
            in_full.agree("copies", &[copy.precision(), others]);
            assert_eq!(in_full.of(copy.precision()), used);
            assert_eq!(&copy.answer(&[&question], GO_ON).unwrap().remove(0), expected);
        }
        assert_ne!(of_reduced.logits, of_full.logits);
    }

    #[test]
    fn answers_differ_by_their_worst_number() {
        assert!((largest_difference(&[0.1, 0.5], &[0.2, 0.5]) - 0.1).abs() < 1e-6);
        assert!(largest_difference(&[f32::NAN, 0.5], &[0.1, 0.5]).is_nan());
        assert!(largest_difference(&[0.5, f32::NAN], &[0.1, 0.5]).is_nan());
        assert!((vec![0_u8, 1, 2, 2].difference(&vec![0, 1, 2, 1]) - 0.25).abs() < 1e-12);
        let slice = |p| super::super::SliceOutput { probabilities: vec![p], weight: 0.0, activation_map: None };
        let scan =
            |p| ScanOutput { probabilities: vec![0.5], embedding: Vec::new(), slices: vec![slice(0.5), slice(p)] };
        assert!((scan(0.25).difference(&scan(0.5)) - 0.25).abs() < 1e-12, "slices count as well");
    }

    #[test]
    fn made_up_pictures_are_of_two_kinds() {
        let fine = noise(0, [2, 40, 24], NORMALISED);
        let coarse = noise(1, [2, 40, 24], NORMALISED);
        assert_eq!((fine.len(), coarse.len()), (2 * 40 * 24, 2 * 40 * 24));
        let distinct = |values: &[f32]| {
            let bits: std::collections::BTreeSet<u32> = values.iter().map(|value| value.to_bits()).collect();
            bits.len()
        };
        assert!(distinct(&fine) > 1900);
        assert_eq!(distinct(&coarse), 2 * 3 * 2);
        assert_eq!(Slices::made_up(0, &[[3, 8, 8]]).values.len(), N_SLICES * 3 * 64);
    }

    #[test]
    fn a_switch_is_never_held_in_both_positions_and_everybody_gets_a_turn() {
        let switch = Arc::new(Switch::new());
        let turns = Arc::new(Mutex::new(Vec::new()));
        let hold = |on: bool| {
            let turns = Arc::clone(&turns);
            switch.hold(on, move |on| {
                turns.lock().unwrap().push(on);
                Ok(())
            })
        };
        let first = hold(true).unwrap();
        let second = hold(true).unwrap();
        assert_eq!(*turns.lock().unwrap(), [true], "the same position needs no turn");

        let (done, finished) = channel();
        let waiting = |on: bool| {
            let (of_thread, turns, done) = (Arc::clone(&switch), Arc::clone(&turns), done.clone());
            let thread = std::thread::spawn(move || {
                let held = of_thread.hold(on, |on| {
                    turns.lock().unwrap().push(on);
                    Ok(())
                });
                assert_eq!(of_thread.state().is_on, Some(on));
                drop(held.unwrap());
                done.send(on).unwrap();
            });
            while *switch.state().waiting_for(on) == 0 {
                std::thread::yield_now();
            }
            thread
        };
        let off = waiting(false);
        // Somebody waits for the other position: it is not kept from it for ever by newcomers.
        let on = waiting(true);
        drop(first);
        assert!(finished.try_recv().is_err(), "the second still holds it");
        drop(second);
        off.join().unwrap();
        on.join().unwrap();
        assert_eq!(finished.try_iter().count(), 2);
        assert!(turns.lock().unwrap().contains(&false));
    }

    #[test]
    fn a_switch_that_cannot_be_turned_is_an_error_and_may_be_tried_again() {
        let switch = Switch::new();
        assert_eq!(switch.hold(true, |_| Err("stuck".to_owned())).err(), Some("stuck".to_owned()));
        assert!(switch.hold(false, |_| Ok(())).is_ok());
    }
}
