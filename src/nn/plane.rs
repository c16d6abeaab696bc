//! The plain data that goes into and comes out of the networks.

use std::{fmt, str::FromStr};

/// One plane of samples, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows * columns` samples.
    pub values: Vec<f32>,
}

/// Planes of one size, the channels of a classifier's input, channel after channel, each row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Planes {
    /// Number of channels.
    pub channels: usize,
    /// Number of rows of each channel.
    pub rows: usize,
    /// Number of columns of each channel.
    pub columns: usize,
    /// `channels * rows * columns` samples.
    pub values: Vec<f32>,
}

/// Where a network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this index; only where libtorch's CUDA library is loaded. Never tried for want of one.
    Cuda(usize),
}

/// The text names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device: give `cpu` or `cuda:0`, `cuda:1` and so on")]
pub struct DeviceError(String);

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(device_idx) => write!(f, "cuda:{device_idx}"),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        text.strip_prefix("cuda:")
            .and_then(|device_idx| device_idx.parse().ok())
            .map(Self::Cuda)
            .ok_or_else(|| DeviceError(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda:1".parse(), Ok(Device::Cuda(1)));
        assert_eq!(Device::Cuda(1).to_string(), "cuda:1");
        for bad in ["", "gpu", "cuda", "cuda:", "cuda:-1", "CPU"] {
            assert!(bad.parse::<Device>().unwrap_err().to_string().contains("give `cpu`"), "{bad}");
        }
    }
}
