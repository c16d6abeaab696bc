//! GPUs: libtorch's CUDA library, which is opened when a configuration asks for a CUDA device, and the devices that it
//! finds.
//!
//! The program links libtorch for processors only, so that it starts on machines without CUDA. `libtorch_cuda.so` beside it
//! registers itself with libtorch while it is opened. libtorch looks for it once, when it is first asked for anything of
//! CUDA; hence it is opened before the first network is loaded.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{
    error::NnError,
    jit::{self, CudaDevices},
};
use crate::types::Device;

/// The file to open.
const LIBRARY: &str = "libtorch_cuda.so";

/// Makes sure that every device can be used. Opens libtorch's CUDA library if one of them needs it, once for the process,
/// which takes seconds; call it before any network is loaded.
///
/// # Errors
/// [`NnError::Device`] with the reason and the remedy.
pub fn require_devices(devices: &[Device]) -> Result<(), NnError> {
    for device in devices {
        if let Device::Cuda(device_idx) = device {
            require_cuda(*device_idx).map_err(|reason| NnError::Device { device: device.to_string(), reason })?;
        }
    }
    Ok(())
}

fn require_cuda(device_idx: usize) -> Result<(), String> {
    // libtorch is one for the process, and so is what is opened beside it.
    static OPENED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        let paths = candidates(std::env::var_os("LIBTORCH"), jit::libtorch_file());
        let opened = open_first(&paths, jit::open_library)?;
        jit::cuda_repeatable()?;
        tracing::info!(file = %opened.display(), "libtorch's CUDA library is opened");
        Ok(opened)
    });
    let library = opened.as_ref().map_err(Clone::clone)?;
    judge(device_idx, jit::cuda_devices()?, library)
}

/// Where the library may be, the likeliest first: below the environment's `LIBTORCH`, beside the libtorch in use, wherever
/// the loader looks by itself.
fn candidates(libtorch: Option<OsString>, libtorch_file: Option<PathBuf>) -> Vec<PathBuf> {
    let of_environment =
        libtorch.filter(|folder| !folder.is_empty()).map(|folder| Path::new(&folder).join("lib").join(LIBRARY));
    let beside = libtorch_file.map(|file| file.with_file_name(LIBRARY));
    let mut paths: Vec<PathBuf> = of_environment.into_iter().chain(beside).chain([LIBRARY.into()]).collect();
    paths.dedup();
    paths
}

/// Opens the first that can be opened; the error says of each why not.
fn open_first(paths: &[PathBuf], open: impl Fn(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let mut tried = Vec::new();
    for path in paths {
        match open(path) {
            Ok(()) => return Ok(path.clone()),
            Err(words) => tried.push(format!("`{}` ({words})", path.display())),
        }
    }
    Err(format!(
        "libtorch's CUDA library cannot be opened; tried {}. Install PyTorch's wheel of the version in \
         deploy/libtorch-requirements.txt together with all packages that it depends on, and let LIBTORCH name its `torch` \
         folder",
        tried.join(", ")
    ))
}

/// Whether the device of this index is there.
fn judge(device_idx: usize, devices: CudaDevices, library: &Path) -> Result<(), String> {
    match devices {
        CudaDevices { count: 0, .. } => Err(format!(
            "libtorch's CUDA library `{}` is opened and finds no device: `nvidia-smi` must list one to this user, with a \
             driver that is new enough for the library's version of CUDA",
            library.display()
        )),
        CudaDevices { count, .. } if device_idx >= count => {
            Err(format!("this machine has {count} CUDA devices, counted from 0"))
        }
        CudaDevices { is_seen: false, .. } => Err(
            "libtorch was asked for CUDA before its CUDA library was opened and does not look again: restart the process"
                .to_owned(),
        ),
        CudaDevices { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_looked_for_beside_the_libtorch_in_use() {
        let (set, beside) = (OsString::from("wheel/torch"), PathBuf::from("other/lib/libtorch_cpu.so"));
        let paths = |libtorch, file| {
            let paths = candidates(libtorch, file);
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            paths(Some(set.clone()), Some(beside)),
            ["wheel/torch/lib/libtorch_cuda.so", "other/lib/libtorch_cuda.so", "libtorch_cuda.so"]
        );
        let same = PathBuf::from("wheel/torch/lib/libtorch_cpu.so");
        assert_eq!(paths(Some(set), Some(same)), ["wheel/torch/lib/libtorch_cuda.so", "libtorch_cuda.so"]);
        assert_eq!(paths(Some(OsString::new()), None), ["libtorch_cuda.so"]);
    }

    #[test]
    fn the_libtorch_in_use_is_known() {
        let file = jit::libtorch_file().unwrap();
        assert!(file.to_string_lossy().contains("libtorch_cpu.so"), "{}", file.display());
    }

    #[test]
    fn the_first_that_opens_is_taken_and_otherwise_all_are_named() {
        let paths = [PathBuf::from("a.so"), PathBuf::from("b.so")];
        let opened = open_first(&paths, |path| if path == Path::new("b.so") { Ok(()) } else { Err("no".to_owned()) });
        assert_eq!(opened, Ok(PathBuf::from("b.so")));
        let error = open_first(&paths, |path| Err(format!("no {}", path.display()))).unwrap_err();
        assert!(error.contains("`a.so` (no a.so), `b.so` (no b.so). Install PyTorch's wheel"), "{error}");
        let error = open_first(&["no-such-library.so".into()], jit::open_library).unwrap_err();
        assert!(error.contains("cannot open shared object file"), "the loader's own words: {error}");
    }

    #[test]
    fn devices_are_counted() {
        let judge = |device_idx, count, is_seen| judge(device_idx, CudaDevices { count, is_seen }, Path::new("l.so"));
        assert_eq!(judge(1, 2, true), Ok(()));
        assert!(judge(0, 0, false).unwrap_err().contains("`l.so` is opened and finds no device: `nvidia-smi`"));
        assert!(judge(2, 2, true).unwrap_err().contains("has 2 CUDA devices, counted from 0"));
        assert!(judge(0, 1, false).unwrap_err().contains("restart the process"));
    }

    #[test]
    fn the_processor_needs_no_library() {
        assert_eq!(require_devices(&[Device::Cpu]), Ok(()));
        assert_eq!(require_devices(&[]), Ok(()));
    }
}
