//! Copies safetensors files into variable stores.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor, nn::VarStore};

/// Problems of one kind that are listed by name; the rest is counted.
const MAX_LISTED: usize = 20;

/// Fills every variable of `store` from `bytes` (safetensors; F32, or F16 and BF16, which are widened) and
/// freezes the store. Tensors that `is_ignored` knows play no part in inference and may be there.
/// The error lists every tensor that is missing, unexpected, of the wrong shape or type, or not finite.
///
/// With `one_logit_of` the network of two outputs is filled from a file of one: its last layer becomes that of this output, and
/// the other output is always 0. Softmax then gives the sigmoid of the one logit.
pub(super) fn fill(
    store: &mut VarStore,
    bytes: &[u8],
    is_ignored: impl Fn(&str) -> bool,
    one_logit_of: Option<usize>,
) -> Result<(), Vec<String>> {
    copy_all(store, bytes, is_ignored, &[], one_logit_of)?;
    store.freeze();
    Ok(())
}

/// As [`fill`], but nothing is frozen, and of the layers `replaceable` what the file has not or has in another shape stays
/// as it is in the store. Returns the names of those variables.
pub(super) fn copy_into(
    store: &VarStore,
    bytes: &[u8],
    is_ignored: impl Fn(&str) -> bool,
    replaceable: &[&str],
) -> Result<Vec<String>, Vec<String>> {
    copy_all(store, bytes, is_ignored, replaceable, None)
}

fn copy_all(
    store: &VarStore,
    bytes: &[u8],
    is_ignored: impl Fn(&str) -> bool,
    replaceable: &[&str],
    one_logit_of: Option<usize>,
) -> Result<Vec<String>, Vec<String>> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        vec![format!("not a sound safetensors file ({error}): restore it, or convert the checkpoint again")]
    })?;
    let mut variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
    let is_replaceable = |name: &str| name.rsplit_once('.').is_some_and(|(layer, _)| replaceable.contains(&layer));
    let mut kept = Vec::new();
    variables.retain(|name, variable| {
        let shape: Vec<usize> = variable.size().iter().map(|side| *side as usize).collect();
        let stays = is_replaceable(name) && file.tensor(name).map_or(true, |view| view.shape() != shape);
        if stays {
            kept.push(name.clone());
        }
        !stays
    });
    let present: BTreeSet<&str> = file.names().into_iter().filter(|name| !is_ignored(name)).collect();

    let mut missing = Vec::new();
    let mut wrong = Vec::new();
    let mut has_one_logit = false;
    for (name, variable) in variables {
        match file.tensor(&name) {
            Ok(view) => {
                let row = one_logit_of.filter(|_| is_one_of_two(view.shape(), &variable.size()));
                has_one_logit |= row.is_some();
                if let Err(problem) = row_of(variable, row).and_then(|variable| copy(&name, &view, variable)) {
                    wrong.push(problem);
                }
            }
            Err(_) => missing.push(name),
        }
    }
    let known: BTreeSet<String> = store.variables().into_keys().collect();
    let is_unexpected = |name: &&str| !known.contains(*name) && !is_replaceable(name);
    let unexpected: Vec<String> = present.into_iter().filter(is_unexpected).map(quoted).collect();

    let mut problems = Vec::new();
    if !missing.is_empty() {
        let missing: Vec<String> = missing.iter().map(|name| quoted(name)).collect();
        problems.push(format!("missing tensors: {}", listed(&missing)));
    }
    if !unexpected.is_empty() {
        problems.push(format!("unexpected tensors: {}", listed(&unexpected)));
    }
    if !wrong.is_empty() {
        problems.push(format!("unfit tensors: {}", listed(&wrong)));
    }
    if one_logit_of.is_some() && !has_one_logit {
        problems.push(
            "`output` of the member is `sigmoid`, and no layer has one output: leave it out, or give a checkpoint with one \
             output"
                .to_owned(),
        );
    }
    if problems.is_empty() {
        Ok(kept)
    } else {
        problems.push("check `architecture`, `width` and the number of classes against the checkpoint".to_owned());
        Err(problems)
    }
}

/// Whether a tensor is that of one output where the network has two.
fn is_one_of_two(found: &[usize], expected: &[i64]) -> bool {
    let (Some((1, found)), Some((2, expected))) = (found.split_first(), expected.split_first()) else { return false };
    found.iter().map(|side| *side as i64).eq(expected.iter().copied())
}

/// The row of a variable that is otherwise 0; the whole variable without one.
fn row_of(mut variable: Tensor, row: Option<usize>) -> Result<Tensor, String> {
    let Some(row) = row else { return Ok(variable) };
    let row = tch::no_grad(|| variable.f_zero_()?.f_narrow(0, row as i64, 1));
    row.map_err(|error| super::error::cut(&error.to_string()))
}

fn copy(name: &str, view: &safetensors::tensor::TensorView<'_>, mut variable: Tensor) -> Result<(), String> {
    let expected_shape = variable.size();
    let shape: Vec<i64> = view.shape().iter().map(|side| *side as i64).collect();
    if shape != expected_shape {
        return Err(format!("{} has shape {shape:?}, expected {expected_shape:?}", quoted(name)));
    }
    // A number whose exponent bits are all ones is an infinity or not a number.
    let (kind, is_finite) = match view.dtype() {
        Dtype::F32 => (Kind::Float, all_finite_f32(view.data())),
        Dtype::F16 => (Kind::Half, all_finite_16(view.data(), 0x7C00)),
        Dtype::BF16 => (Kind::BFloat16, all_finite_16(view.data(), 0x7F80)),
        other => return Err(format!("{} has type {other:?}, expected F32, F16 or BF16", quoted(name))),
    };
    if !is_finite {
        return Err(format!("{} holds numbers that are not finite", quoted(name)));
    }
    let torch = |error: tch::TchError| format!("{}: {}", quoted(name), super::error::cut(&error.to_string()));
    let source = Tensor::f_from_data_size(view.data(), &shape, kind).map_err(torch)?;
    tch::no_grad(|| variable.f_copy_(&source)).map_err(torch)
}

fn all_finite_f32(bytes: &[u8]) -> bool {
    const EXPONENT: u32 = 0x7F80_0000;
    bytes.as_chunks::<4>().0.iter().all(|bytes| u32::from_le_bytes(*bytes) & EXPONENT != EXPONENT)
}

fn all_finite_16(bytes: &[u8], exponent: u16) -> bool {
    bytes.as_chunks::<2>().0.iter().all(|bytes| u16::from_le_bytes(*bytes) & exponent != exponent)
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.chars().take(120).collect::<String>().escape_debug())
}

fn listed(entries: &[String]) -> String {
    let text = entries.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match entries.len().checked_sub(MAX_LISTED) {
        Some(n_more) if n_more > 0 => format!("{text} and {n_more} more"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;
    use tch::Device;

    use super::*;

    fn is_counter(name: &str) -> bool {
        name.ends_with("num_batches_tracked")
    }

    fn store() -> VarStore {
        let store = VarStore::new(Device::Cpu);
        let root = store.root();
        let _ = root.f_zeros("a", &[2, 2]).unwrap();
        let _ = (&root / "bn").f_zeros_no_train("running_mean", &[3]).unwrap();
        store
    }

    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn values(store: &VarStore, name: &str) -> Vec<f32> {
        Vec::try_from(store.variables()[name].detach().flatten(0, -1)).unwrap()
    }

    #[test]
    fn half_precision_is_widened_and_counters_are_ignored() {
        let mut store = store();
        // 1.0, -2.0, 0.5 and 65504 in IEEE half precision; 1.0, 2.0, -0.5 in bfloat16.
        let halves = [0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38, 0xFF, 0x7B];
        let bfloats = [0x80, 0x3F, 0x00, 0x40, 0x00, 0xBF];
        let bytes = file(&[
            ("a", Dtype::F16, &[2, 2], &halves),
            ("bn.running_mean", Dtype::BF16, &[3], &bfloats),
            ("bn.num_batches_tracked", Dtype::I64, &[], &[1, 0, 0, 0, 0, 0, 0, 0]),
        ]);
        fill(&mut store, &bytes, is_counter, None).unwrap();
        assert_eq!(values(&store, "a"), [1.0, -2.0, 0.5, 65504.0]);
        assert_eq!(values(&store, "bn.running_mean"), [1.0, 2.0, -0.5]);
        assert!(store.variables().values().all(|tensor| tensor.kind() == Kind::Float && !tensor.requires_grad()));
    }

    #[test]
    fn every_unfit_tensor_is_named_at_once() {
        let bytes = file(&[
            ("a", Dtype::F32, &[4], &f32_bytes(&[0.0; 4])),
            ("fc.weight", Dtype::F32, &[1], &f32_bytes(&[0.0])),
        ]);
        let problems = fill(&mut store(), &bytes, is_counter, None).unwrap_err().join("\n");
        assert_eq!(
            problems,
            "missing tensors: `bn.running_mean`\nunexpected tensors: `fc.weight`\nunfit tensors: `a` has shape [4], \
             expected [2, 2]\ncheck `architecture`, `width` and the number of classes against the checkpoint"
        );
    }

    #[test]
    fn infinities_are_found_in_every_type() {
        for (dtype, numbers) in [
            (Dtype::F32, vec![f32_bytes(&[f32::INFINITY; 3]), f32_bytes(&[f32::MAX, f32::NAN, 0.0])]),
            (Dtype::F16, vec![vec![0, 0x7C, 0, 0, 0, 0], vec![0, 0, 0, 0, 1, 0xFC]]),
            (Dtype::BF16, vec![vec![0x80, 0x7F, 0, 0, 0, 0], vec![0, 0, 0, 0, 0xC0, 0xFF]]),
        ] {
            for bytes in numbers {
                let bytes = file(&[
                    ("a", Dtype::F32, &[2, 2], &f32_bytes(&[f32::MAX; 4])),
                    ("bn.running_mean", dtype, &[3], &bytes),
                ]);
                let problems = fill(&mut store(), &bytes, is_counter, None).unwrap_err();
                assert_eq!(problems[0], "unfit tensors: `bn.running_mean` holds numbers that are not finite");
            }
        }
    }

    proptest::proptest! {
        /// Whatever a damaged disk or a stranger makes of a file: an answer, never a panic.
        #[test]
        fn damaged_files_never_panic(changes in proptest::collection::vec((0usize..400, 0u8..=255), 1..8)) {
            let mut bytes = file(&[
                ("a", Dtype::F32, &[2, 2], &f32_bytes(&[1.0; 4])),
                ("bn.running_mean", Dtype::F32, &[3], &f32_bytes(&[1.0; 3])),
            ]);
            for (byte_idx, byte) in changes {
                let byte_idx = byte_idx % bytes.len();
                bytes[byte_idx] = byte;
            }
            if let Err(problems) = fill(&mut store(), &bytes, is_counter, None) {
                proptest::prop_assert!(!problems.is_empty());
            }
        }
    }

    #[test]
    fn wrong_types_and_infinite_weights_are_refused() {
        let bytes = file(&[
            ("a", Dtype::F32, &[2, 2], &f32_bytes(&[0.0, f32::NAN, 0.0, 0.0])),
            ("bn.running_mean", Dtype::I32, &[3], &[0; 12]),
        ]);
        let problems = fill(&mut store(), &bytes, is_counter, None).unwrap_err().join("\n");
        assert!(problems.contains("`a` holds numbers that are not finite"), "{problems}");
        assert!(problems.contains("`bn.running_mean` has type I32, expected F32, F16 or BF16"), "{problems}");
    }

    #[test]
    fn truncated_files_are_refused_at_any_length() {
        let whole = file(&[
            ("a", Dtype::F32, &[2, 2], &f32_bytes(&[1.0; 4])),
            ("bn.running_mean", Dtype::F32, &[3], &f32_bytes(&[1.0; 3])),
        ]);
        fill(&mut store(), &whole, is_counter, None).unwrap();
        for n_bytes in 0..whole.len() {
            let problems = fill(&mut store(), &whole[..n_bytes], is_counter, None).unwrap_err();
            assert!(problems[0].starts_with("not a sound safetensors file"), "{n_bytes}: {problems:?}");
        }
    }

    #[test]
    fn one_output_fills_the_row_of_its_class() {
        let network = || {
            let store = VarStore::new(Device::Cpu);
            let _ = store.root().f_ones("body", &[3]).unwrap();
            let fc = &store.root() / "fc";
            let _ = (fc.f_ones("weight", &[2, 2]).unwrap(), fc.f_ones("bias", &[2]).unwrap());
            store
        };
        let file_of = |weight: &[f32], n_outputs: usize| {
            file(&[
                ("body", Dtype::F32, &[3], &f32_bytes(&[1.0; 3])),
                ("fc.weight", Dtype::F32, &[n_outputs, 2], &f32_bytes(weight)),
                ("fc.bias", Dtype::F32, &[n_outputs], &f32_bytes(&vec![0.5; n_outputs])),
            ])
        };
        for (class_idx, weight, bias) in
            [(0, [3.0, -4.0, 0.0, 0.0], [0.5, 0.0]), (1, [0.0, 0.0, 3.0, -4.0], [0.0, 0.5])]
        {
            let mut store = network();
            fill(&mut store, &file_of(&[3.0, -4.0], 1), is_counter, Some(class_idx)).unwrap();
            assert_eq!((values(&store, "fc.weight"), values(&store, "fc.bias")), (weight.to_vec(), bias.to_vec()));
            assert_eq!(values(&store, "body"), [1.0; 3]);
            assert!(store.variables().values().all(|tensor| !tensor.requires_grad()));
        }
        let two = file_of(&[3.0, -4.0, 1.0, 2.0], 2);
        let problems = fill(&mut network(), &two, is_counter, Some(0)).unwrap_err().join("\n");
        assert!(
            problems.contains("`output` of the member is `sigmoid`, and no layer has one output: leave"),
            "{problems}"
        );
        let problems = fill(&mut network(), &file_of(&[3.0, -4.0], 1), is_counter, None).unwrap_err().join("\n");
        assert!(problems.contains("`fc.weight` has shape [1, 2], expected [2, 2]"), "{problems}");
    }

    #[test]
    fn long_lists_are_counted() {
        let entries: Vec<String> = (0..25).map(|idx| format!("t{idx}")).collect();
        assert!(listed(&entries).ends_with("t19 and 5 more"));
        assert!(listed(&entries[..20]).ends_with("t19"));
    }
}
