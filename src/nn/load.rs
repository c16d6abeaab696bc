//! From a file of a bundle to a network on its thread, and from plain data to tensors and back.

use std::path::PathBuf;

use tch::{TchError, Tensor, nn::VarStore};

use super::{
    bundle::{self, Bundle, MAX_WEIGHTS_BYTES},
    ensemble::EnsembleOptions,
    error::NnError,
    manifest::NetworkEntry,
    owner::{Model, Owner, OwnerLimits},
    plane::Device,
    runner::{Forward, Runner},
    seeded, weights,
};
use crate::types::Sha256Digest;

/// A loaded network.
pub(super) struct Network<Q, A> {
    pub(super) name: String,
    /// Channels, rows and columns of each input.
    input_shapes: Vec<[usize; 3]>,
    pub(super) owner: Owner<Q, A>,
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
const MAX_INPUT: f32 = 1_000_000.0;

/// What a network's thread needs to load it.
pub(super) struct LoadPlan {
    bundle: String,
    pub(super) name: String,
    file_name: String,
    file: PathBuf,
    sha256: Sha256Digest,
    pub(super) device: tch::Device,
    pub(super) options: EnsembleOptions,
}

impl LoadPlan {
    pub(super) fn new(
        bundle: &Bundle,
        entry: &NetworkEntry<'_>,
        device: tch::Device,
        options: EnsembleOptions,
    ) -> Self {
        Self {
            bundle: bundle.manifest().name.clone(),
            name: String::new(),
            file_name: entry.weights.to_owned(),
            file: bundle.folder().join(entry.weights),
            sha256: entry.sha256,
            device,
            options,
        }
    }

    pub(super) fn start<M>(
        mut self,
        name: &str,
        input_shapes: Vec<[usize; 3]>,
        load: impl FnOnce(&Self) -> Result<M, NnError> + Send + 'static,
    ) -> Result<Network<M::Question, M::Answer>, NnError>
    where
        M: Model,
    {
        name.clone_into(&mut self.name);
        let limits = OwnerLimits {
            max_batch: self.options.max_batch,
            gather: self.options.gather,
            // A batch must find its company.
            queue_length: self.options.queue_length.max(2 * self.options.max_batch),
        };
        let owner = Owner::start(name, limits, move || {
            // libtorch remembers the number for the process, OpenMP for the thread: every network's thread sets it.
            tch::set_num_threads(i32::try_from(self.options.intra_op_threads.max(1)).unwrap_or(i32::MAX));
            load(&self)
        })?;
        Ok(Network { name: name.to_owned(), input_shapes, owner })
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

    /// How the network will run: optimised on the processor if that is wanted. `shape` is that of one image, `n_outputs` how
    /// many outputs its maps can be about.
    pub(super) fn runner(&self, forward: Forward, shape: [i64; 3], n_outputs: usize) -> Result<Runner, NnError> {
        if !self.options.optimise || self.device != tch::Device::Cpu {
            return Ok(Runner::plain(&self.name, forward));
        }
        let [channels, rows, columns] = shape;
        let example = |n: i64| -> Result<Vec<Tensor>, TchError> {
            let n_values = (n * channels * rows * columns) as usize;
            let images = Tensor::f_from_slice(&seeded::uniform(7, "example", n_values, -2.0, 2.0))?;
            // Classifiers take the target of each image as their second input, segmenters have no use for it. Of several
            // images each is about another output, or a recording that knows one output only would not be found out.
            let targets: Vec<i64> = (0..n).map(|image| (image + n - 1) % n_outputs.max(1) as i64).collect();
            let targets = Tensor::f_from_slice(&targets)?.f_to(self.device)?;
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
        weights::fill(&mut store, &bytes, is_ignored).map_err(|problems| self.problems(&problems))?;
        Ok((network, store))
    }
}

pub(super) fn torch_device(device: Device) -> Result<tch::Device, NnError> {
    match device {
        Device::Cpu => Ok(tch::Device::Cpu),
        Device::Cuda(device_idx) => {
            let n_devices = tch::Cuda::device_count();
            if (device_idx as i64) < n_devices {
                return Ok(tch::Device::Cuda(device_idx));
            }
            let reason = if n_devices > 0 {
                format!("this machine has {n_devices} CUDA devices, counted from 0")
            } else {
                "libtorch finds no CUDA device (none is there, or its CUDA library is not loaded)".to_owned()
            };
            Err(NnError::Device { device: device.to_string(), reason })
        }
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
    Tensor::f_from_slice(&samples)?.f_view([-1, channels, rows, columns])?.f_to(device)
}

/// The elements of each entry of the first dimension; an error when one is not finite.
pub(super) fn rows_of(network: &str, tensor: &Tensor) -> Result<Vec<Vec<f32>>, NnError> {
    let torch = |error: TchError| NnError::torch(network, &error);
    let n_rows = tensor.size().first().copied().unwrap_or(0) as usize;
    let tensor = tensor.f_contiguous().and_then(|tensor| tensor.f_to(tch::Device::Cpu)).map_err(torch)?;
    let mut values = vec![0f32; tensor.numel()];
    let n_values = values.len();
    tensor.f_copy_data(&mut values, n_values).map_err(torch)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(NnError::OutputNotFinite { network: network.to_owned() });
    }
    Ok(values.chunks_exact((n_values / n_rows.max(1)).max(1)).map(<[f32]>::to_vec).collect())
}
