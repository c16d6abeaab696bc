//! libtorch's own programs: networks that are recorded once, frozen and optimised for inference on the processor (batch
//! normalisation folded into the convolutions, their weights in oneDNN's own layout, activations fused), and TorchScript
//! files. Below them, what `cuda.rs` and `precision.rs` need of libtorch for GPUs. `jit.cpp` holds the few calls that `tch`
//! does not wrap; this is the one place with `unsafe` code, and what it exports is safe.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, OsStr, c_char},
    marker::PhantomData,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr::{NonNull, null_mut},
};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::error::cut;

/// `torch::jit::Module`, owned by a pointer.
#[repr(C)]
struct RawModule {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn hilum_jit_load(bytes: *const u8, n_bytes: usize, device_idx: i32, loaded: *mut *mut RawModule) -> *mut c_char;
    fn hilum_jit_begin(inputs: *const *const C_tensor, n_inputs: usize, recorded: *mut *mut RawModule) -> *mut c_char;
    fn hilum_jit_end(recorded: *mut RawModule, outputs: *const *const C_tensor, n_outputs: usize) -> *mut c_char;
    fn hilum_jit_abandon();
    fn hilum_jit_optimise(
        module: *const RawModule,
        optimised: *mut *mut RawModule,
        n_winograd: *mut i64,
    ) -> *mut c_char;
    fn hilum_jit_forward(
        module: *mut RawModule,
        inputs: *const *const C_tensor,
        n_inputs: usize,
        outputs: *mut *mut C_tensor,
        capacity: usize,
        n_outputs: *mut usize,
    ) -> *mut c_char;
    fn hilum_jit_free(module: *mut RawModule);
    fn hilum_jit_free_words(words: *mut c_char);
    fn hilum_open_library(path: *const c_char) -> *mut c_char;
    fn hilum_libtorch_file() -> *const c_char;
    fn hilum_cuda_devices(count: *mut i32, is_seen: *mut bool) -> *mut c_char;
    fn hilum_cuda_repeatable() -> *mut c_char;
    fn hilum_cuda_allow_tf32(is_allowed: bool) -> *mut c_char;
    fn hilum_cuda_own_stream(device_idx: i32) -> *mut c_char;
    fn hilum_cuda_upload(tensor: *const C_tensor, device_idx: i32, uploaded: *mut *mut C_tensor) -> *mut c_char;
    fn hilum_channels_last(tensor: *mut C_tensor) -> *mut c_char;
    fn hilum_autocast(on_cuda: bool, kind: i32) -> *mut c_char;
}

/// Most outputs of a network.
const MAX_OUTPUTS: usize = 16;

/// A recorded or loaded network. It belongs to one thread.
#[derive(Debug)]
pub(super) struct JitModule {
    module: Module,
    /// How many of its convolutions `winograd.cpp` computes.
    pub(super) n_winograd: i64,
}

/// Frees the module with itself.
#[derive(Debug)]
struct Module(NonNull<RawModule>);

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a function of jit.cpp that makes one, is freed here only, and nothing else
        // keeps it.
        unsafe { hilum_jit_free(self.0.as_ptr()) }
    }
}

/// The words of an error, freed; `Ok` without one.
fn checked(words: *mut c_char) -> Result<(), String> {
    let Some(words) = NonNull::new(words) else { return Ok(()) };
    // SAFETY: the functions of jit.cpp return a string of `strdup` that is ours to free, once, here.
    let text = unsafe {
        let text = CStr::from_ptr(words.as_ptr()).to_string_lossy().into_owned();
        hilum_jit_free_words(words.as_ptr());
        text
    };
    Err(cut(&text))
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

impl JitModule {
    /// Records `forward` on example inputs and optimises what was recorded. `forward` must do the same whatever the values
    /// and the number of images are; no variable may ask for gradients.
    ///
    /// # Errors
    /// libtorch's words, or those of `forward`.
    pub(super) fn record(
        inputs: &[Tensor],
        forward: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>, tch::TchError>,
    ) -> Result<Self, String> {
        let mut recorded = null_mut();
        let input_pointers = pointers(inputs);
        // SAFETY: the pointers are those of `n_inputs` tensors that outlive the call; `recorded` is written before it
        // returns without words.
        checked(unsafe { hilum_jit_begin(input_pointers.as_ptr(), input_pointers.len(), &raw mut recorded) })?;
        let recorded = Module(NonNull::new(recorded).ok_or("no module was made")?);
        let ended = forward(inputs).map_err(|error| cut(&error.to_string())).and_then(|outputs| {
            let output_pointers = pointers(&outputs);
            // SAFETY: as above; `recorded` is the module of this recording.
            checked(unsafe { hilum_jit_end(recorded.0.as_ptr(), output_pointers.as_ptr(), output_pointers.len()) })
        });
        if let Err(words) = ended {
            // SAFETY: takes no arguments; without a recording it does nothing.
            unsafe { hilum_jit_abandon() }
            return Err(words);
        }
        let (mut optimised, mut n_winograd) = (null_mut(), 0);
        // SAFETY: `recorded` is a whole module; `optimised` and `n_winograd` are written before the call returns without
        // words.
        checked(unsafe { hilum_jit_optimise(recorded.0.as_ptr(), &raw mut optimised, &raw mut n_winograd) })?;
        Ok(Self { module: Module(NonNull::new(optimised).ok_or("no module was made")?), n_winograd })
    }

    /// Reads a TorchScript file; floating-point numbers of another precision become `f32`, others stay as they are.
    ///
    /// # Errors
    /// libtorch's words, or the name of a tensor with numbers that are not finite.
    pub(super) fn load(bytes: &[u8], device: Device) -> Result<Self, String> {
        let device_idx = match device {
            Device::Cuda(idx) => i32::try_from(idx).map_err(|error| error.to_string())?,
            _ => -1,
        };
        let mut loaded = null_mut();
        // SAFETY: the bytes outlive the call; `loaded` is written before it returns without words.
        checked(unsafe { hilum_jit_load(bytes.as_ptr(), bytes.len(), device_idx, &raw mut loaded) })?;
        Ok(Self { module: Module(NonNull::new(loaded).ok_or("no module was made")?), n_winograd: 0 })
    }

    /// The outputs that `forward` gives, in its order: of a recording those that were recorded, of a file its tensor or the
    /// tensors of its tuple.
    ///
    /// # Errors
    /// libtorch's words.
    pub(super) fn forward(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let input_pointers = pointers(inputs);
        let mut outputs = [null_mut(); MAX_OUTPUTS];
        let mut n_outputs = 0;
        // SAFETY: the pointers are those of `n_inputs` tensors that outlive the call; there is room for `MAX_OUTPUTS`
        // outputs; the module is only used by the thread that owns `self`.
        checked(unsafe {
            hilum_jit_forward(
                self.module.0.as_ptr(),
                input_pointers.as_ptr(),
                input_pointers.len(),
                outputs.as_mut_ptr(),
                MAX_OUTPUTS,
                &raw mut n_outputs,
            )
        })?;
        // SAFETY: without words the first `n_outputs` pointers are new tensors that are ours.
        Ok(outputs.iter().take(n_outputs).map(|output| unsafe { Tensor::from_ptr(*output) }).collect())
    }
}

/// Opens a shared library for good, with its symbols for every other one.
///
/// # Errors
/// The loader's words.
pub(super) fn open_library(path: &Path) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the path is a text that ends with 0 and outlives the call. The library's own initialisation runs: it is
    // libtorch's, which the process runs anyway.
    checked(unsafe { hilum_open_library(path.as_ptr()) })
}

/// The file of the libtorch in use, as far as the loader knows it.
pub(super) fn libtorch_file() -> Option<PathBuf> {
    // SAFETY: takes no arguments; the answer is null or a text of the loader that lives as long as the library.
    let name = unsafe {
        let name = hilum_libtorch_file();
        (!name.is_null()).then(|| CStr::from_ptr(name))
    };
    name.map(|name| PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// How many CUDA devices there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CudaDevices {
    pub(super) count: usize,
    /// Whether libtorch sees the CUDA library; it looks for it once, when it is first asked for anything of CUDA.
    pub(super) is_seen: bool,
}

/// Asks the CUDA library for its devices.
///
/// # Errors
/// libtorch's words where no CUDA library is opened.
pub(super) fn cuda_devices() -> Result<CudaDevices, String> {
    let (mut count, mut is_seen) = (0, false);
    // SAFETY: both are written before the call returns without words.
    checked(unsafe { hilum_cuda_devices(&raw mut count, &raw mut is_seen) })?;
    Ok(CudaDevices { count: usize::try_from(count).unwrap_or(0), is_seen })
}

/// From now on the same input gives the same output on GPUs, in this process.
///
/// # Errors
/// libtorch's words.
pub(super) fn cuda_repeatable() -> Result<(), String> {
    // SAFETY: takes no arguments.
    checked(unsafe { hilum_cuda_repeatable() })
}

/// Whether products of 32-bit floats on GPUs may use TF32, in this process.
///
/// # Errors
/// libtorch's words.
pub(super) fn cuda_allow_tf32(is_allowed: bool) -> Result<(), String> {
    // SAFETY: takes no pointers.
    checked(unsafe { hilum_cuda_allow_tf32(is_allowed) })
}

/// Gives this thread a stream of its own on the CUDA device of this index.
///
/// # Errors
/// libtorch's words.
pub(super) fn cuda_own_stream(device_idx: usize) -> Result<(), String> {
    let device_idx = i32::try_from(device_idx).map_err(|error| error.to_string())?;
    // SAFETY: takes no pointers.
    checked(unsafe { hilum_cuda_own_stream(device_idx) })
}

/// A copy of a tensor of the processor on the CUDA device of this index, images with the channels innermost. The transfer
/// may still run: what this thread does next on the device waits for it.
///
/// # Errors
/// libtorch's words.
pub(super) fn cuda_upload(tensor: &Tensor, device_idx: usize) -> Result<Tensor, String> {
    let device_idx = i32::try_from(device_idx).map_err(|error| error.to_string())?;
    let mut uploaded = null_mut();
    // SAFETY: the tensor outlives the call; `uploaded` is written before it returns without words, and is ours.
    checked(unsafe { hilum_cuda_upload(tensor.as_ptr(), device_idx, &raw mut uploaded) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(uploaded) })
}

/// Puts the channels of images, or of a convolution's weights, innermost: the same numbers in another order of memory, for
/// everybody who holds the tensor.
///
/// # Errors
/// libtorch's words.
pub(super) fn channels_last(tensor: &mut Tensor) -> Result<(), String> {
    // SAFETY: the tensor outlives the call.
    checked(unsafe { hilum_channels_last(tensor.as_mut_ptr()) })
}

/// 16-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HalfKind {
    /// 5 bits of exponent, 10 of mantissa.
    Float16 = 1,
    /// 8 bits of exponent, 7 of mantissa.
    Bfloat16 = 2,
}

/// While it lives, this thread computes convolutions and products with 16-bit floats (libtorch's autocast) and the rest with
/// 32 bits.
#[derive(Debug)]
pub(super) struct Autocast {
    on_cuda: bool,
    /// It belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl Autocast {
    /// Begins it, for tensors on this kind of device.
    ///
    /// # Errors
    /// libtorch's words.
    pub(super) fn begin(device: Device, kind: HalfKind) -> Result<Self, String> {
        let on_cuda = device.is_cuda();
        // SAFETY: takes no pointers.
        checked(unsafe { hilum_autocast(on_cuda, kind as i32) })?;
        Ok(Self { on_cuda, _thread: PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: takes no pointers. It fails only where beginning failed.
        if let Err(words) = checked(unsafe { hilum_autocast(self.on_cuda, 0) }) {
            tracing::error!(words, "reduced precision cannot be ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn images(n: i64) -> Tensor {
        Tensor::arange(n * 3 * 16 * 16, (Kind::Float, Device::Cpu)).view([n, 3, 16, 16]).sin()
    }

    #[test]
    fn what_was_recorded_gives_the_same_for_any_number_of_images() {
        let _guard = tch::no_grad_guard();
        let weight = Tensor::arange(8 * 3 * 3 * 3, (Kind::Float, Device::Cpu)).view([8, 3, 3, 3]).cos();
        let (ones, zeros) =
            (Tensor::ones([8], (Kind::Float, Device::Cpu)), Tensor::zeros([8], (Kind::Float, Device::Cpu)));
        let forward = |inputs: &[Tensor]| {
            let map = inputs[0].f_conv2d::<Tensor>(&weight, None, [1, 1], [1, 1], [1, 1], 1)?;
            let map = map
                .f_batch_norm(Some(&ones), Some(&zeros), Some(&zeros), Some(&(&ones * 2.0)), false, 0.1, 1e-5, true)?
                .f_relu()?;
            Ok(vec![map.f_mean_dim([2i64, 3].as_slice(), false, None)?, map])
        };
        let optimised = JitModule::record(&[images(1)], forward).unwrap();
        for n in [1, 3, 1] {
            let found = optimised.forward(&[images(n)]).unwrap();
            let expected = forward(&[images(n)]).unwrap();
            assert_eq!(found.len(), 2);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.size(), expected.size());
                let difference = f64::try_from((found - expected).abs().max()).unwrap();
                assert!(difference < 1e-4, "{difference}");
            }
        }
    }

    #[test]
    fn channels_innermost_are_the_same_numbers_for_everybody_who_holds_the_tensor() {
        let _guard = tch::no_grad_guard();
        for size in [vec![2, 3, 4, 5], vec![2, 3, 2, 4, 5], vec![6, 7]] {
            let numbers =
                Tensor::arange(size.iter().product::<i64>(), (Kind::Float, Device::Cpu)).view(size.as_slice());
            let (mut tensor, expected) = (numbers.copy(), numbers);
            let other = tensor.shallow_clone();
            channels_last(&mut tensor).unwrap();
            assert_eq!(other.stride(), tensor.stride());
            assert_eq!(other.stride()[1], 1, "the second dimension is the innermost");
            assert_eq!(other, expected);
        }
    }

    #[test]
    fn reduced_precision_ends_with_its_guard() {
        let _guard = tch::no_grad_guard();
        let product =
            || Tensor::ones([4, 4], (Kind::Float, Device::Cpu)).f_mm(&Tensor::ones([4, 4], (Kind::Float, Device::Cpu)));
        let reduced = {
            let _half = Autocast::begin(Device::Cpu, HalfKind::Bfloat16).unwrap();
            product().unwrap().kind()
        };
        assert_eq!((reduced, product().unwrap().kind()), (Kind::BFloat16, Kind::Float));
    }

    #[test]
    fn without_a_cuda_library_everything_of_it_is_an_error() {
        let images = images(1);
        for words in [cuda_devices().map(drop), cuda_own_stream(0), cuda_upload(&images, 0).map(drop)] {
            assert!(!words.unwrap_err().is_empty());
        }
        assert_eq!(cuda_allow_tf32(false), Ok(()), "the flag itself is libtorch's");
        assert_eq!(cuda_repeatable(), Ok(()));
    }

    #[test]
    fn a_recording_that_fails_leaves_room_for_the_next() {
        let _guard = tch::no_grad_guard();
        let error = JitModule::record(&[images(1)], |inputs| Ok(vec![inputs[0].f_view([7, 7])?])).unwrap_err();
        assert!(error.contains("shape"), "{error}");
        let optimised = JitModule::record(&[images(1)], |inputs| Ok(vec![inputs[0].f_relu()?])).unwrap();
        let error = optimised.forward(&[]).unwrap_err();
        assert!(!error.is_empty() && error.len() < 1200, "{error}");
        assert_eq!(optimised.forward(&[images(2)]).unwrap()[0].size(), [2, 3, 16, 16]);
    }
}
