//! From a file of a bundle to a network on its thread, and from plain data to tensors and back.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tch::{TchError, Tensor, nn::VarStore};

use super::{
    bundle::{self, Bundle, MAX_WEIGHTS_BYTES},
    ensemble::EnsembleOptions,
    error::NnError,
    jit,
    manifest::NetworkEntry,
    owner::{Model, Owner, OwnerLimits},
    precision::{Comparable, InFull, MadeUp, NetworkPrecision, Precision, Settled},
    replicas::Replicas,
    runner::{Forward, Runner},
    seeded, weights,
};
use crate::types::{Device, Sha256Digest};

/// A loaded network.
pub(super) struct Network<Q, A> {
    pub(super) name: String,
    /// Channels, rows and columns of each input.
    input_shapes: Vec<[usize; 3]>,
    /// What each copy computes with.
    computing: Vec<Computing>,
    pub(super) copies: Replicas<Q, A>,
}

/// What one copy of a network computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Computing {
    device: Device,
    /// What its manifest asks for on this device.
    wanted: Precision,
    used: Precision,
}

/// A network that was loaded; `None`, and its problems, when its file does not fit.
pub(super) fn gather<N>(loaded: Result<N, NnError>, problems: &mut Vec<String>) -> Result<Option<N>, NnError> {
    match loaded {
        Ok(network) => Ok(Some(network)),
        Err(NnError::Load { problems: more, .. }) => {
            problems.extend(more);
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

impl<Q, A> Network<Q, A> {
    /// Devices and precision, such as `cuda:0 float16, cuda:1 float16`.
    pub(super) fn computing(&self) -> String {
        let mut text = String::new();
        for Computing { device, wanted, used } in &self.computing {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a text does not fail.
            let _ = write!(text, "{comma}{device} {}", used.name());
            if wanted != used {
                let _ = write!(text, " instead of {}", wanted.name());
            }
        }
        text
    }

    pub(super) fn check_inputs(&self, inputs: &[([usize; 3], &[f32])]) -> Result<(), NnError> {
        let fits = |(expected, (found, values)): (&[usize; 3], &([usize; 3], &[f32]))| {
            expected == found && values.len() == found.iter().product::<usize>()
        };
        if inputs.len() != self.input_shapes.len() || !self.input_shapes.iter().zip(inputs).all(fits) {
            let words = |[channels, rows, columns]: [usize; 3]| format!("{channels} x {rows} x {columns}");
            let expected: Vec<String> = self.input_shapes.iter().copied().map(words).collect();
            let found: Vec<String> =
                inputs.iter().map(|(shape, values)| format!("{} for {}", values.len(), words(*shape))).collect();
            return Err(NnError::InputSize {
                network: self.name.clone(),
                expected: expected.join(" and "),
                found: found.join(" and "),
            });
        }
        for (_, values) in inputs {
            if let Some(sample_idx) = values.iter().position(|sample| sample.is_nan() || sample.abs() > MAX_INPUT) {
                return Err(NnError::InputNotFinite { network: self.name.clone(), sample_idx });
            }
        }
        Ok(())
    }
}

/// Largest magnitude of an input sample. Normalised pictures stay below ten.
pub(super) const MAX_INPUT: f32 = 1_000_000.0;

/// The precision that a copy computes with, and its thread.
type LoadedCopy<M> = (Precision, Owner<<M as Model>::Question, <M as Model>::Answer>);

/// What a network's thread needs to load it.
#[derive(Clone)]
pub(super) struct LoadPlan {
    bundle: String,
    pub(super) name: String,
    file_name: String,
    file: PathBuf,
    sha256: Sha256Digest,
    pub(super) precision: NetworkPrecision,
    /// That of the copy to load.
    pub(super) device: tch::Device,
    /// Whether it is loaded as GPUs take it: channels of weights innermost, with the manifest's precision. Tests do so on
    /// the processor.
    pub(super) as_on_gpu: bool,
    /// Shared by the copies.
    in_full: InFull,
    /// The class that its only logit is of; `None` where there is one for each output.
    pub(super) one_logit_of: Option<usize>,
    /// Without activation maps where the manifest wants none.
    pub(super) options: EnsembleOptions,
}

impl LoadPlan {
    /// A plan for a copy on the processor; [`start`](Self::start) makes of it one for each device of the options.
    pub(super) fn new(bundle: &Bundle, entry: &NetworkEntry<'_>, options: EnsembleOptions) -> Self {
        Self {
            bundle: bundle.manifest().name.clone(),
            name: String::new(),
            file_name: entry.weights.to_owned(),
            file: bundle.folder().join(entry.weights),
            sha256: entry.sha256,
            precision: entry.precision,
            device: tch::Device::Cpu,
            as_on_gpu: false,
            in_full: InFull::default(),
            one_logit_of: entry.one_logit_of,
            options: EnsembleOptions { explain: options.explain && entry.is_explained, ..options },
        }
    }

    /// Loads a copy of the network onto each device, one after the other, each on a thread of its own. All compute with the
    /// same precision.
    pub(super) fn start<M>(
        mut self,
        name: &str,
        input_shapes: Vec<[usize; 3]>,
        load: impl FnOnce(&Self) -> Result<M, NnError> + Clone + Send + 'static,
    ) -> Result<Network<M::Question, M::Answer>, NnError>
    where
        M: Model<Question: MadeUp, Answer: Comparable>,
    {
        name.clone_into(&mut self.name);
        let devices = match self.options.devices.as_slice() {
            [] => vec![Device::Cpu],
            some => some.to_vec(),
        };
        let (mut computing, mut owners) = (Vec::new(), Vec::new());
        for device in &devices {
            let mut plan = self.clone();
            plan.use_device(*device);
            if devices.len() > 1 {
                plan.name = format!("{name} on {device}");
            }
            let wanted = plan.wanted_precision();
            let (used, owner) = plan.start_copy(&input_shapes, load.clone())?;
            computing.push(Computing { device: *device, wanted, used });
            owners.push(owner);
        }
        let settled: Vec<Precision> = computing.iter().map(|copy| copy.used).collect();
        self.in_full.agree(name, &settled);
        for copy in &mut computing {
            copy.used = self.in_full.of(copy.used);
        }
        Ok(Network { name: name.to_owned(), input_shapes, computing, copies: Replicas::new(owners) })
    }

    fn use_device(&mut self, device: Device) {
        if let Device::Cuda(device_idx) = device {
            self.device = tch::Device::Cuda(device_idx);
            self.as_on_gpu = true;
        }
    }

    const fn wanted_precision(&self) -> Precision {
        if self.as_on_gpu { self.precision.cuda } else { Precision::Float32 }
    }

    /// Loads the network onto the thread that will run it. Returns the precision that it computes with.
    fn start_copy<M>(
        self,
        input_shapes: &[[usize; 3]],
        load: impl FnOnce(&Self) -> Result<M, NnError> + Send + 'static,
    ) -> Result<LoadedCopy<M>, NnError>
    where
        M: Model<Question: MadeUp, Answer: Comparable>,
    {
        let limits = OwnerLimits {
            max_batch: self.options.max_batch,
            gather: self.options.gather,
            // A batch must find its company.
            queue_length: self.options.queue_length.max(2 * self.options.max_batch),
        };
        let (settled, input_shapes) = (Arc::new(OnceLock::new()), input_shapes.to_vec());
        let name = self.name.clone();
        let owner = Owner::start(&name, limits, {
            let settled = Arc::clone(&settled);
            move || {
                // libtorch remembers the number for the process, OpenMP for the thread: every network's thread sets it.
                tch::set_num_threads(i32::try_from(self.options.intra_op_threads.max(1)).unwrap_or(i32::MAX));
                if let tch::Device::Cuda(device_idx) = self.device {
                    jit::cuda_own_stream(device_idx)
                        .map_err(|words| NnError::Torch { network: self.name.clone(), words })?;
                }
                let model = Settled::new(&self.name, load(&self)?, self.device).among(self.in_full.clone());
                let model = model.settle(self.wanted_precision(), self.precision.tolerance, &input_shapes);
                settled.get_or_init(|| model.precision());
                Ok(model)
            }
        })?;
        Ok((settled.get().copied().unwrap_or_default(), owner))
    }

    pub(super) fn problems(&self, problems: &[String]) -> NnError {
        NnError::Load {
            bundle: self.bundle.clone(),
            problems: problems.iter().map(|problem| format!("{} ({}): {problem}", self.name, self.file_name)).collect(),
        }
    }

    /// The bytes of the weights file; their digest is checked on the very bytes that are used.
    pub(super) fn read(&self) -> Result<Vec<u8>, NnError> {
        let bytes = bundle::read_bounded(&self.file, MAX_WEIGHTS_BYTES).map_err(|reason| self.problems(&[reason]))?;
        match bundle::digest_problem(&self.file_name, self.sha256, Sha256Digest::of(&bytes)) {
            Some(mismatch) => Err(self.problems(&[mismatch])),
            None => Ok(bytes),
        }
    }

    /// How the network will run: recorded and optimised on the processor if that is wanted. Elsewhere as it is: libtorch's
    /// optimisation is for processors, and a recording knows one precision only. `shape` is that of one image, `n_outputs` how
    /// many outputs its maps can be about.
    pub(super) fn runner(&self, forward: Forward, shape: [i64; 3], n_outputs: usize) -> Result<Runner, NnError> {
        if !self.options.optimise || self.as_on_gpu {
            return Ok(Runner::plain(&self.name, forward));
        }
        let [channels, rows, columns] = shape;
        let example = |n: i64| -> Result<Vec<Tensor>, TchError> {
            let n_values = (n * channels * rows * columns) as usize;
            let images = Tensor::f_from_slice(&seeded::uniform(7, "example", n_values, -2.0, 2.0))?;
            // Classifiers take the target of each image as their second input, segmenters have no use for it. Of several
            // images each is about another output, or a recording that knows one output only would not be found out.
            let targets: Vec<i64> = (0..n).map(|image| (image + n - 1) % n_outputs.max(1) as i64).collect();
            let targets = Tensor::f_from_slice(&targets)?;
            Ok(vec![images.f_view([n, channels, rows, columns])?, targets])
        };
        let examples = [example(1), example(2)].into_iter().collect::<Result<Vec<_>, _>>();
        let examples = examples.map_err(|error| NnError::torch(&self.name, &error))?;
        Ok(Runner::optimised(&self.name, forward, &examples))
    }

    /// Declares a network and fills it from the weights file.
    pub(super) fn load<N>(
        &self,
        declare: impl FnOnce(&tch::nn::Path<'_>) -> Result<N, TchError>,
        is_ignored: impl Fn(&str) -> bool,
    ) -> Result<(N, VarStore), NnError> {
        let bytes = self.read()?;
        let mut store = VarStore::new(self.device);
        let network = declare(&store.root()).map_err(|error| NnError::torch(&self.name, &error))?;
        weights::fill(&mut store, &bytes, is_ignored, self.one_logit_of)
            .map_err(|problems| self.problems(&problems))?;
        if self.as_on_gpu {
            for mut variable in store.variables().into_values() {
                jit::channels_last(&mut variable)
                    .map_err(|words| NnError::Torch { network: self.name.clone(), words })?;
            }
        }
        Ok((network, store))
    }
}

pub(super) fn only(inputs: &[Tensor]) -> Result<&Tensor, TchError> {
    inputs.first().ok_or_else(|| TchError::Shape("there is no input".to_owned()))
}

/// One tensor `n x channels x rows x columns` of n images.
pub(super) fn batch<'a>(
    images: impl Iterator<Item = &'a [f32]>,
    shape: [usize; 3],
    device: tch::Device,
) -> Result<Tensor, TchError> {
    let mut samples = Vec::new();
    images.for_each(|image| samples.extend_from_slice(image));
    let [channels, rows, columns] = shape.map(|side| side as i64);
    upload(&Tensor::f_from_slice(&samples)?.f_view([-1, channels, rows, columns])?, device)
}

/// A tensor of the processor on the device.
pub(super) fn upload(tensor: &Tensor, device: tch::Device) -> Result<Tensor, TchError> {
    match device {
        tch::Device::Cuda(device_idx) => jit::cuda_upload(tensor, device_idx).map_err(TchError::Torch),
        _ => Ok(tensor.shallow_clone()),
    }
}

/// The elements of each entry of the first dimension; an error when one is not finite.
pub(super) fn rows_of(network: &str, tensor: &Tensor) -> Result<Vec<Vec<f32>>, NnError> {
    let torch = |error: TchError| NnError::torch(network, &error);
    let n_rows = tensor.size().first().copied().unwrap_or(0) as usize;
    let tensor = tensor.f_to_kind(tch::Kind::Float).and_then(|tensor| tensor.f_contiguous()).map_err(torch)?;
    // Waits until the device has computed it.
    let tensor = tensor.f_to(tch::Device::Cpu).map_err(torch)?;
    let mut values = vec![0f32; tensor.numel()];
    let n_values = values.len();
    tensor.f_copy_data(&mut values, n_values).map_err(torch)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(NnError::OutputNotFinite { network: network.to_owned() });
    }
    Ok(values.chunks_exact((n_values / n_rows.max(1)).max(1)).map(<[f32]>::to_vec).collect())
}
