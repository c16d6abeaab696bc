//! The tensors of a checkpoint: safetensors, or what `torch.save` writes (a zip archive since PyTorch 1.6, a row of
//! pickles before).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Cursor, Read},
};

use safetensors::{Dtype, SafeTensors};
use zip::{ZipArchive, result::ZipError};

use super::{
    super::bundle::MAX_WEIGHTS_BYTES,
    pickle::{Id, Pickle, Value},
};

/// One tensor, its elements in row-major order, little endian.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredTensor {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    pub(super) bytes: Vec<u8>,
}

/// What a file is.
#[derive(Debug, PartialEq)]
pub(super) enum Checkpoint {
    /// Tensors by name.
    Tensors(BTreeMap<String, StoredTensor>),
    /// A TorchScript archive: a network with its weights.
    TorchScript,
}

/// The first number of a file that PyTorch before 1.6 wrote.
const LEGACY_MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];

/// Keys under which trainers wrap the state dict.
const WRAPPERS: [&str; 7] = ["state_dict", "model_state_dict", "model_state", "model", "net", "module", "weights"];

/// Prefixes that wrappers of the network leave before every name.
const PREFIXES: [&str; 4] = ["module.", "model.", "net.", "network."];

/// Most elements of one tensor, four times the largest layer of VGG-16.
const MAX_ELEMENTS: usize = 500_000_000;

/// Recognises the file by its content. The error says what it is not.
pub(super) fn read(bytes: &[u8]) -> Result<Checkpoint, String> {
    // A safetensors file begins with the length of its JSON header: its first bytes may be those of the others, too.
    if bytes.get(8) == Some(&b'{')
        && let Ok(file) = SafeTensors::deserialize(bytes)
    {
        let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let stored =
                StoredTensor { shape: view.shape().to_vec(), dtype: view.dtype(), bytes: view.data().to_vec() };
            (name, stored)
        };
        return Ok(Checkpoint::Tensors(without_prefix(file.tensors().into_iter().map(tensor).collect())));
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return read_zip(bytes);
    }
    if bytes.starts_with(&[0x80]) {
        return read_legacy(bytes).map(Checkpoint::Tensors);
    }
    Err("neither a safetensors file, nor a file of `torch.save`, nor a TorchScript file: give one of these".to_owned())
}

fn read_zip(bytes: &[u8]) -> Result<Checkpoint, String> {
    let unsound = |error: &dyn std::fmt::Display| format!("not a sound zip archive ({error}): download it again");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| unsound(&error))?;
    let roots: BTreeSet<String> =
        archive.file_names().filter_map(|name| name.strip_suffix("data.pkl").map(str::to_owned)).collect();
    let [root] = roots.iter().collect::<Vec<_>>()[..] else {
        let found = roots.len();
        return Err(format!("a zip archive with {found} files `data.pkl` instead of one: not a file of `torch.save`"));
    };
    if archive.file_names().any(|name| name.starts_with(&format!("{root}code/"))) {
        return Ok(Checkpoint::TorchScript);
    }
    let mut entry = |name: &str| -> Result<Vec<u8>, String> {
        let compressed = || format!("`{name}` is compressed: save the checkpoint with `torch.save` again");
        let mut file = archive.by_name(&format!("{root}{name}")).map_err(|error| match error {
            ZipError::UnsupportedArchive(_) => compressed(),
            other => format!("`{name}`: {}", unsound(&other)),
        })?;
        if file.size() > bytes.len() as u64 {
            return Err(compressed());
        }
        let mut content = Vec::with_capacity(file.size() as usize);
        file.read_to_end(&mut content).map_err(|error| format!("`{name}`: {}", unsound(&error)))?;
        Ok(content)
    };
    if let Ok(order) = entry("byteorder")
        && order != b"little"
    {
        return Err("the checkpoint was saved on a big-endian machine: save it again on a little-endian one".to_owned());
    }
    let pickle = Pickle::read(&entry("data.pkl")?).map_err(|reason| format!("`data.pkl` is not sound: {reason}"))?;
    let wanted = state_dict(&pickle)?;
    let mut storages: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut total = 0;
    for view in wanted.values() {
        if !storages.contains_key(&view.key) {
            let storage = entry(&format!("data/{}", view.key))?;
            // Entries of an archive may share their bytes.
            total += storage.len() as u64;
            if total > MAX_WEIGHTS_BYTES {
                return Err(too_much());
            }
            storages.insert(view.key.clone(), storage);
        }
    }
    gather(&wanted, &storages).map(Checkpoint::Tensors)
}

/// Magic number, version, facts of the machine, the object, the keys of its storages; then each storage as its number of
/// elements and the elements.
fn read_legacy(bytes: &[u8]) -> Result<BTreeMap<String, StoredTensor>, String> {
    let mut rest = bytes;
    let mut next = || -> Result<Pickle, String> {
        let pickle = Pickle::read(rest).map_err(|reason| format!("not a sound file of `torch.save`: {reason}"))?;
        rest = rest.get(pickle.length..).unwrap_or_default();
        Ok(pickle)
    };
    let magic = next()?;
    if !matches!(magic.value(magic.root), Value::Bytes(number) if *number == LEGACY_MAGIC) {
        return Err("a pickle, but not one of `torch.save`: save `model.state_dict()` with `torch.save`".to_owned());
    }
    let (_version, machine, object, keys) = (next()?, next()?, next()?, next()?);
    let facts = machine.dict(machine.root).unwrap_or_default();
    let is_big_endian = facts.iter().any(|(key, value)| {
        machine.text(*key) == Some("little_endian") && *machine.value(*value) == Value::Bool(false)
    });
    if is_big_endian {
        return Err("the checkpoint was saved on a big-endian machine: save it again on a little-endian one".to_owned());
    }
    let wanted = state_dict(&object)?;
    let sizes: BTreeMap<&str, usize> =
        wanted.values().map(|view| (view.key.as_str(), element_bytes(view.dtype))).collect();
    let mut storages = BTreeMap::new();
    for id in keys.sequence(keys.root).unwrap_or_default() {
        let key = keys.text(*id).ok_or("the key of a storage is not text")?;
        let early = || format!("it ends early, in storage `{}`", shown(key));
        let (count, after) = rest.split_first_chunk::<8>().ok_or_else(early)?;
        // Storages that no wanted tensor uses have an unknown element size: they can only come last.
        let Some(size) = sizes.get(key) else {
            return Err(format!(
                "storage `{}` belongs to no tensor of the state dict: save `model.state_dict()`",
                shown(key)
            ));
        };
        let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(*size));
        let (content, after) = length.and_then(|length| after.split_at_checked(length)).ok_or_else(early)?;
        storages.insert(key.to_owned(), content.to_vec());
        rest = after;
    }
    gather(&wanted, &storages)
}

/// A tensor as a view of a storage, in elements.
#[derive(Debug)]
struct View {
    key: String,
    dtype: Dtype,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// The tensors of the pickled object, which must be a state dict or hold one.
fn state_dict(pickle: &Pickle) -> Result<BTreeMap<String, View>, String> {
    let Some(mut entries) = pickle.dict(pickle.root) else {
        let words = match pickle.call(pickle.root) {
            Some((class, _)) => format!("the pickled object `{}`", shown(class)),
            None => "something other than a dictionary".to_owned(),
        };
        return Err(format!("it holds {words} instead of tensors by name: save `model.state_dict()`"));
    };
    let wrapped = entries.iter().find_map(|(key, value)| {
        let is_wrapper = pickle.text(*key).is_some_and(|key| WRAPPERS.contains(&key));
        pickle.dict(*value).filter(|_| is_wrapper)
    });
    if let Some(wrapped) = wrapped {
        entries = wrapped;
    }
    let mut views = BTreeMap::new();
    for (key, value) in entries {
        let Some(name) = pickle.text(*key) else { continue };
        match view(pickle, *value) {
            Ok(Some(view)) => drop(views.insert(name.to_owned(), view)),
            Ok(None) => {}
            Err(reason) => return Err(format!("tensor `{}`: {reason}", shown(name))),
        }
    }
    if views.is_empty() {
        return Err("it holds no tensors by name: save `model.state_dict()`".to_owned());
    }
    Ok(views)
}

/// `None` when the value is neither a tensor nor a parameter made of one.
fn view(pickle: &Pickle, id: Id) -> Result<Option<View>, String> {
    match pickle.call(id) {
        // A parameter of a parameter is none that PyTorch saves, and may be one of itself.
        Some(("torch._utils._rebuild_parameter", [tensor, ..])) => tensor_view(pickle, *tensor),
        _ => tensor_view(pickle, id),
    }
}

fn tensor_view(pickle: &Pickle, id: Id) -> Result<Option<View>, String> {
    let Some((function, arguments)) = pickle.call(id) else { return Ok(None) };
    match function {
        "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
            let [storage, offset, shape, strides, ..] = arguments else {
                return Err("its description is short".to_owned());
            };
            let Value::Persistent(storage) = pickle.value(*storage) else { return Err("it has no storage".to_owned()) };
            let Some([_, class, key, ..]) = pickle.sequence(*storage) else {
                return Err("its storage is unknown".to_owned());
            };
            let Value::Global(class) = pickle.value(*class) else { return Err("its type is unknown".to_owned()) };
            let numbers = |id: Id| -> Option<Vec<usize>> {
                pickle.sequence(id)?.iter().map(|id| usize::try_from(pickle.int(*id)?).ok()).collect()
            };
            let read = (|| {
                Some(View {
                    key: pickle.text(*key)?.to_owned(),
                    dtype: dtype(class)?,
                    offset: usize::try_from(pickle.int(*offset)?).ok()?,
                    shape: numbers(*shape)?,
                    strides: numbers(*strides)?,
                })
            })();
            match read {
                Some(view) if view.shape.len() == view.strides.len() && view.shape.len() <= 8 => Ok(Some(view)),
                Some(_) => Err("its shape and strides do not fit".to_owned()),
                None => Err(format!("elements of the type `{}` are not supported", shown(class))),
            }
        }
        _ => Ok(None),
    }
}

fn dtype(storage: &str) -> Option<Dtype> {
    Some(match storage {
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::BF16,
        "torch.DoubleStorage" => Dtype::F64,
        "torch.LongStorage" => Dtype::I64,
        "torch.IntStorage" => Dtype::I32,
        "torch.ByteStorage" => Dtype::U8,
        "torch.BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

fn element_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 | Dtype::I64 => 8,
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::F16 | Dtype::BF16 => 2,
        _ => 1,
    }
}

fn gather(
    views: &BTreeMap<String, View>,
    storages: &BTreeMap<String, Vec<u8>>,
) -> Result<BTreeMap<String, StoredTensor>, String> {
    let mut tensors = BTreeMap::new();
    // Tensors may share a storage.
    let mut total = 0_u64;
    for (name, view) in views {
        let count = view.shape.iter().try_fold(1_u64, |count, side| count.checked_mul(*side as u64));
        let length = count.and_then(|count| count.checked_mul(element_bytes(view.dtype) as u64));
        total = length
            .and_then(|length| total.checked_add(length))
            .filter(|sum| *sum <= MAX_WEIGHTS_BYTES)
            .ok_or_else(too_much)?;
        let storage = storages.get(&view.key).map_or(&[][..], Vec::as_slice);
        let bytes =
            elements(view, storage).ok_or_else(|| format!("tensor `{}` reaches beyond its storage", shown(name)))?;
        tensors.insert(name.clone(), StoredTensor { shape: view.shape.clone(), dtype: view.dtype, bytes });
    }
    Ok(without_prefix(tensors))
}

/// The elements in row-major order, whatever their strides.
fn elements(view: &View, storage: &[u8]) -> Option<Vec<u8>> {
    let size = element_bytes(view.dtype);
    let count = view.shape.iter().try_fold(1_usize, |count, side| count.checked_mul(*side))?;
    if count > MAX_ELEMENTS {
        return None;
    }
    if count == 0 {
        return Some(Vec::new());
    }
    let mut is_contiguous = true;
    let mut stride_of_contiguous = 1;
    for (side, stride) in view.shape.iter().zip(&view.strides).rev() {
        is_contiguous &= *side == 1 || *stride == stride_of_contiguous;
        stride_of_contiguous *= side.max(&1);
    }
    if is_contiguous {
        let start = view.offset.checked_mul(size)?;
        return storage.get(start..start.checked_add(count * size)?).map(<[u8]>::to_vec);
    }
    let mut bytes = Vec::with_capacity(count * size);
    let mut place = vec![0; view.shape.len()];
    for _ in 0..count {
        let steps =
            place.iter().zip(&view.strides).try_fold(view.offset, |sum: usize, (idx, stride): (&usize, _)| {
                sum.checked_add(idx.checked_mul(*stride)?)
            })?;
        let start = steps.checked_mul(size)?;
        bytes.extend_from_slice(storage.get(start..start.checked_add(size)?)?);
        for (idx, side) in place.iter_mut().zip(&view.shape).rev() {
            *idx += 1;
            if *idx < *side {
                break;
            }
            *idx = 0;
        }
    }
    Some(bytes)
}

/// Takes away what a wrapper put before every name.
fn without_prefix(mut tensors: BTreeMap<String, StoredTensor>) -> BTreeMap<String, StoredTensor> {
    while let Some(prefix) = PREFIXES.into_iter().find(|prefix| tensors.keys().all(|name| name.starts_with(prefix))) {
        if tensors.is_empty() {
            break;
        }
        tensors = tensors.into_iter().map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor)).collect();
    }
    tensors
}

fn too_much() -> String {
    format!("its tensors have more than {MAX_WEIGHTS_BYTES} bytes: save the state dict of one network")
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of PyTorch 2.13 itself (`deploy/golden/make_checkpoints.py`): one set of tensors in several containers.
    const FILES: [(&str, &[u8]); 5] = [
        ("zip", include_bytes!("../../../tests/golden/checkpoints/zip.pth")),
        ("legacy", include_bytes!("../../../tests/golden/checkpoints/legacy.pth")),
        ("wrapped", include_bytes!("../../../tests/golden/checkpoints/wrapped.pth")),
        ("parameters", include_bytes!("../../../tests/golden/checkpoints/parameters.pth")),
        ("safetensors", include_bytes!("../../../tests/golden/checkpoints/plain.safetensors")),
    ];

    fn tensors(bytes: &[u8]) -> BTreeMap<String, StoredTensor> {
        match read(bytes).unwrap() {
            Checkpoint::Tensors(tensors) => tensors,
            Checkpoint::TorchScript => panic!("a TorchScript file"),
        }
    }

    fn floats(tensor: &StoredTensor) -> Vec<f32> {
        tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// One header length in 32 begins with the byte that begins a pickle.
    #[test]
    fn a_safetensors_file_may_begin_as_a_pickle_does() {
        let file = |length: usize| {
            let name = "a".repeat(length);
            let data = 1.5_f32.to_le_bytes();
            let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &data).unwrap();
            safetensors::serialize([(name.as_str(), view)], None).unwrap()
        };
        let bytes = (1..400).map(file).find(|bytes| bytes[0] == 0x80).expect("such a length");
        assert_eq!(floats(tensors(&bytes).values().next().unwrap()), [1.5]);
    }

    #[test]
    fn every_container_holds_the_same_tensors() {
        for (container, bytes) in FILES {
            let found = tensors(bytes);
            let names: Vec<&str> = found.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                ["bn.num_batches_tracked", "bn.running_mean", "half", "transposed", "weight"],
                "{container}"
            );
            assert_eq!(floats(&found["weight"]), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5], "{container}");
            assert_eq!((found["weight"].dtype, found["weight"].shape.as_slice()), (Dtype::F32, &[2, 3][..]));
            // A view with strides: the transpose of [[0, 1, 2], [3, 4, 5]] without its first row.
            assert_eq!(floats(&found["transposed"]), [1.0, 4.0, 2.0, 5.0], "{container}");
            assert_eq!(found["transposed"].shape, [2, 2]);
            assert_eq!(found["half"].dtype, Dtype::F16);
            assert_eq!(found["half"].bytes, [0x00, 0x3C, 0x00, 0xC0], "{container}: 1 and -2");
            assert_eq!(found["bn.num_batches_tracked"].dtype, Dtype::I64);
        }
    }

    #[test]
    fn torch_script_is_recognised() {
        let script = include_bytes!("../../../tests/golden/checkpoints/script.pt");
        assert_eq!(read(script).unwrap(), Checkpoint::TorchScript);
    }

    #[test]
    fn whole_modules_and_other_files_are_refused_with_the_remedy() {
        let module = include_bytes!("../../../tests/golden/checkpoints/module.pth");
        let error = read(module).unwrap_err();
        assert!(error.contains("Linear") && error.contains("state_dict"), "{error}");
        for (bytes, words) in [
            (&b"GIF89a"[..], "neither a safetensors file"),
            (b"", "neither"),
            (b"PK\x03\x04 nothing", "zip archive"),
            (b"\x80\x02N.", "torch.save"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn parameters_within_parameters_cost_no_stack() {
        let of = |value: &[u8]| {
            [b"\x80\x02ctorch._utils\n_rebuild_parameter\nq\x000}X\x01\x00\x00\x00a", value, b"s."].concat()
        };
        let deep = [&b"h\x00(".repeat(200_000)[..], b"N", &b"tR".repeat(200_000)].concat();
        // Its only argument is itself.
        let cycle = b"]q\x01h\x00h\x01Rq\x020h\x01h\x02a00h\x02".to_vec();
        for value in [deep, cycle] {
            let pickle = Pickle::read(&of(&value)).unwrap();
            assert!(state_dict(&pickle).unwrap_err().contains("no tensors by name"));
        }
    }

    #[test]
    fn files_that_are_cut_or_changed_end_in_words() {
        for (container, bytes) in FILES {
            for length in (0..bytes.len()).step_by(7) {
                assert!(read(&bytes[..length]).is_err(), "{container} of {length} bytes");
            }
            for at in (0..bytes.len()).step_by(3) {
                let mut changed = bytes.to_vec();
                changed[at] ^= 0xFF;
                let _ = read(&changed);
            }
        }
    }
}
