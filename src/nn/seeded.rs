//! Numbers from a counter-based generator: the same in Rust here and in Python in
//! `deploy/golden/make_golden.py`, bit for bit, so that networks can be compared without shipping weights.
//!
//! A tensor's name and a seed choose a stream; element `i` of the stream is the SplitMix64 finaliser of
//! `stream + (i + 1) * 0x9E3779B97F4A7C15`. Its upper 24 bits become a number in [0, 1), which is then scaled to
//! the range: one subtraction, one multiplication and one addition in f32, without fused operations.

use super::architecture::Architecture;

/// The weights that make the logits, network by network.
const LAST_LAYERS: [&str; 10] = [
    "fc.weight",
    "classifier.6.weight",
    "classif.weight",
    "fc2.weight",
    "classifier.weight",
    "classifier1.weight",
    "classifier2.weight",
    "classifier3.weight",
    "classifier.1.weight",
    "last.weight",
];

/// Elements of the stream of `name` under `seed`, uniform from `low` up to `high`.
#[must_use]
pub fn uniform(seed: u64, name: &str, n_elements: usize, low: f32, high: f32) -> Vec<f32> {
    let stream = mix(seed ^ fnv1a(name.as_bytes()));
    let span = high - low;
    (1..=n_elements as u64)
        .map(|counter| {
            let bits = mix(stream.wrapping_add(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 40;
            let unit = bits as f32 / 16_777_216.0;
            unit * span + low
        })
        .collect()
}

/// Elements of the stream of `name` under `seed`, normal with mean 0 and this standard deviation (Box and Muller 1958, of
/// two uniform streams).
#[must_use]
pub fn normal(seed: u64, name: &str, n_elements: usize, std: f32) -> Vec<f32> {
    let radii = uniform(seed, &format!("{name}/radius"), n_elements, 0.0, 1.0);
    let angles = uniform(seed, &format!("{name}/angle"), n_elements, 0.0, std::f32::consts::TAU);
    // The streams end below 1: the logarithm is finite.
    radii.iter().zip(angles).map(|(radius, angle)| std * (-2.0 * (1.0 - radius).ln()).sqrt() * angle.cos()).collect()
}

/// Seeded values of one tensor. The ranges keep activations of like size from layer to layer:
///
/// | tensor | range |
/// | --- | --- |
/// | weights of convolutions and linear layers | He: +-sqrt(6 / fan-in) |
/// | weights of the last linear layer | a tenth of that, or one class would always have all the probability |
/// | biases | -0.05 to 0.05 |
/// | batch normalisation: weight | 0.8 to 1.2; at the end of a residual branch 0.1 to 0.3 |
/// | batch normalisation: running mean | -0.1 to 0.1 |
/// | batch normalisation: running variance | 0.75 to 1.25 |
pub(crate) fn seeded_values(
    seed: u64,
    network: &str,
    architecture: Option<Architecture>,
    name: &str,
    shape: &[usize],
) -> Vec<f32> {
    let (layer, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let end_of_branch = match architecture {
        Some(Architecture::ResNet18 | Architecture::ResNet34) => layer.starts_with("layer") && layer.ends_with("bn2"),
        _ => layer.ends_with("bn3"),
    };
    let (low, high) = match (leaf, shape) {
        ("running_mean", _) => (-0.1, 0.1),
        ("running_var", _) => (0.75, 1.25),
        ("bias", _) => (-0.05, 0.05),
        (_, [_]) if end_of_branch => (0.1, 0.3),
        (_, [_]) => (0.8, 1.2),
        (_, [_, fan_in @ ..]) => {
            let fan_in: usize = fan_in.iter().product();
            let gain = if LAST_LAYERS.contains(&name) { 0.1 } else { 1.0 };
            let bound = ((6.0 / fan_in as f64).sqrt() * gain) as f32;
            (-bound, bound)
        }
        (_, []) => (0.0, 0.0),
    };
    uniform(seed, &format!("{network}/{name}"), shape.iter().product(), low, high)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
#[must_use]
pub const fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// 64-bit FNV-1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_of_the_building_blocks() {
        assert_eq!(fnv1a(b"a"), 0xAF63_DC4C_8601_EC8C);
        // The first output of SplitMix64 seeded with 0.
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn streams_differ_by_seed_and_name_and_stay_in_range() {
        let values = uniform(1, "conv1.weight", 10_000, -0.5, 1.5);
        assert!(values.iter().all(|value| (-0.5..1.5).contains(value)));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert_eq!(values[..100], uniform(1, "conv1.weight", 100, -0.5, 1.5));
        assert_ne!(values[..100], uniform(2, "conv1.weight", 100, -0.5, 1.5));
        assert_ne!(values[..100], uniform(1, "conv2.weight", 100, -0.5, 1.5));
    }
}
