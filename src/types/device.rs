//! What computes: the processor, or one or several GPUs.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where a network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this index, counted from 0.
    Cuda(usize),
}

/// Largest index of a CUDA device: libtorch counts them in a signed byte.
const MAX_CUDA_IDX: usize = 127;

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
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .filter(|device_idx| *device_idx <= MAX_CUDA_IDX)
            .map(Self::Cuda)
            .ok_or_else(|| DeviceError(text.chars().take(80).collect()))
    }
}

/// The devices of a node, in the order in which they are preferred: the processor, or one or several GPUs. Each network
/// is loaded once for each of them.
///
/// The processor is not mixed with GPUs: it would get the same share of the questions and answer them many times more
/// slowly, and the numbers of a result would depend on which copy happened to be free (networks may run with reduced
/// precision on GPUs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

/// The devices cannot be used together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DevicesError {
    /// The list is empty.
    #[error("the list of devices is empty: give `cpu` or at least one GPU")]
    None,
    /// One is there twice.
    #[error("`{0}` is listed twice: give each device once")]
    Repeated(Device),
    /// Processor and GPUs.
    #[error("`cpu` stands beside GPUs: give either, results must not depend on which of them was free")]
    Mixed,
}

impl Default for Devices {
    fn default() -> Self {
        Self(vec![Device::Cpu])
    }
}

impl Devices {
    /// The devices of a list.
    ///
    /// # Errors
    /// [`DevicesError`], with the remedy.
    pub fn new(devices: Vec<Device>) -> Result<Self, DevicesError> {
        if devices.is_empty() {
            return Err(DevicesError::None);
        }
        let mut seen = BTreeSet::new();
        if let Some(repeated) = devices.iter().find(|device| !seen.insert(**device)) {
            return Err(DevicesError::Repeated(*repeated));
        }
        if devices.len() > 1 && devices.contains(&Device::Cpu) {
            return Err(DevicesError::Mixed);
        }
        Ok(Self(devices))
    }

    /// All of them, at least one.
    #[must_use]
    pub fn as_slice(&self) -> &[Device] {
        &self.0
    }

    /// `cpu` or `cuda`: as much of them as results depend on.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.0.contains(&Device::Cpu) { "cpu" } else { "cuda" }
    }
}

/// One device as its name, several as a list of names.
impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [only] => serializer.collect_str(only),
            several => serializer.collect_seq(several.iter().map(ToString::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNames;
        impl<'de> de::Visitor<'de> for NameOrNames {
            type Value = Devices;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`cpu`, a GPU such as `cuda:0`, or a list of GPUs")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Devices, E> {
                let device = name.parse().map_err(E::custom)?;
                Devices::new(vec![device]).map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut names: A) -> Result<Devices, A::Error> {
                let mut devices = Vec::new();
                while let Some(name) = names.next_element::<String>()? {
                    devices.push(name.parse().map_err(de::Error::custom)?);
                }
                Devices::new(devices).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(NameOrNames)
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
        for bad in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:128", "CPU"] {
            assert!(bad.parse::<Device>().unwrap_err().to_string().contains("give `cpu`"), "{bad}");
        }
    }

    #[test]
    fn one_device_is_a_name_and_several_are_a_list() {
        for (written, expected) in [
            ("\"cpu\"", vec![Device::Cpu]),
            ("\"cuda:0\"", vec![Device::Cuda(0)]),
            ("[\"cuda:1\",\"cuda:0\"]", vec![Device::Cuda(1), Device::Cuda(0)]),
        ] {
            let devices: Devices = serde_json::from_str(written).unwrap();
            assert_eq!(devices.as_slice(), expected);
            assert_eq!(serde_json::to_string(&devices).unwrap(), written);
        }
        assert_eq!(serde_json::from_str::<Devices>("[\"cpu\"]").unwrap(), Devices::default());
    }

    #[test]
    fn devices_that_do_not_go_together_are_refused() {
        for (written, reason) in [
            ("[]", "the list of devices is empty"),
            ("[\"cuda:0\", \"cuda:1\", \"cuda:0\"]", "`cuda:0` is listed twice"),
            ("[\"cuda:0\", \"cpu\"]", "`cpu` stands beside GPUs"),
            ("[\"gpu\"]", "`gpu` is not a device"),
            ("1", "expected `cpu`, a GPU such as `cuda:0`, or a list of GPUs"),
        ] {
            let error = serde_json::from_str::<Devices>(written).unwrap_err().to_string();
            assert!(error.contains(reason), "{written}: {error}");
        }
    }

    #[test]
    fn results_depend_on_the_kind_of_device_only() {
        assert_eq!(Devices::default().kind(), "cpu");
        assert_eq!(Devices::new(vec![Device::Cuda(3)]).unwrap().kind(), "cuda");
    }
}
