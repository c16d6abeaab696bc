//! Reads Python pickles (protocols 2 to 5) as data. Nothing that a pickle names is ever looked up or called: a class is a
//! name, a call is the name with its arguments.
//!
//! Values lie in one list and refer to each other by index, so that neither nesting nor cycles can exhaust the stack.
//! Opcodes: CPython's `Lib/pickletools.py`.

use std::collections::HashMap;

/// Most steps of a pickle. The state dict of a network with a thousand tensors has about 40,000; each step can cost about
/// as much memory as the longest name.
const MAX_STEPS: usize = 4_000_000;

/// Longest name of a class or function, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Index of a value in its [`Pickle`].
pub(super) type Id = usize;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Tuples, lists and sets.
    Sequence(Vec<Id>),
    /// Dictionaries, ordered ones included.
    Dict(Vec<(Id, Id)>),
    /// A class or function: `module.name`.
    Global(String),
    /// What `callable` gave for `arguments`, if it were called.
    Call {
        callable: Id,
        arguments: Id,
    },
    /// Something kept outside the pickle.
    Persistent(Id),
}

/// A pickle's values.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle stands for.
    pub(super) root: Id,
    /// Length of the pickle in bytes: more may follow it in a file.
    pub(super) length: usize,
}

impl Pickle {
    /// Reads the pickle at the beginning of `bytes`. The error says what is unsound or not supported.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        Machine::new(bytes).run()
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.value(id) {
            Value::Int(int) => Some(*int),
            _ => None,
        }
    }

    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.value(id) {
            Value::Sequence(ids) => Some(ids),
            _ => None,
        }
    }

    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.value(id) {
            Value::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The name of a callable and its arguments.
    pub(super) fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        let Value::Call { callable, arguments } = self.value(id) else { return None };
        let Value::Global(name) = self.value(*callable) else { return None };
        Some((name, self.sequence(*arguments)?))
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }
    }

    fn run(mut self) -> Result<Pickle, String> {
        for _ in 0..MAX_STEPS {
            let at = self.position;
            let [opcode] = self.array()?;
            match opcode {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { values: self.values, root, length: self.position });
                }
                0x80 => drop(self.array::<1>()?),          // PROTO
                0x95 => drop(self.array::<8>()?),          // FRAME
                b'(' => self.marks.push(self.stack.len()), // MARK
                // POP, and BUILD: attributes of an object, which nobody asks for.
                b'0' | b'b' => drop(self.pop()?),
                b'1' => drop(self.take_to_mark()?),    // POP_MARK
                b'2' => self.stack.push(self.top()?),  // DUP
                b'N' => self.push(Value::None),        // NONE
                0x88 => self.push(Value::Bool(true)),  // NEWTRUE
                0x89 => self.push(Value::Bool(false)), // NEWFALSE
                b'K' => {
                    let [byte] = self.array()?;
                    self.push(Value::Int(i64::from(byte))); // BININT1
                }
                b'M' => {
                    let int = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(i64::from(int))); // BININT2
                }
                b'J' => {
                    let int = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(i64::from(int))); // BININT
                }
                0x8A => {
                    let length = self.length::<1>()?;
                    self.long(length)?; // LONG1
                }
                0x8B => {
                    let length = self.length::<4>()?;
                    self.long(length)?; // LONG4
                }
                b'G' => {
                    let float = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(float)); // BINFLOAT
                }
                0x8C | b'U' => self.text::<1>()?, // SHORT_BINUNICODE, SHORT_BINSTRING
                b'X' | b'T' => self.text::<4>()?, // BINUNICODE, BINSTRING
                0x8D => self.text::<8>()?,        // BINUNICODE8
                b'C' => self.raw::<1>()?,         // SHORT_BINBYTES
                b'B' => self.raw::<4>()?,         // BINBYTES
                0x8E | 0x96 => self.raw::<8>()?,  // BINBYTES8, BYTEARRAY8
                b')' | b']' | 0x8F => self.push(Value::Sequence(Vec::new())), // EMPTY_TUPLE, EMPTY_LIST, EMPTY_SET
                b't' | b'l' | 0x91 => {
                    let items = self.take_to_mark()?;
                    self.push(Value::Sequence(items)); // TUPLE, LIST, FROZENSET
                }
                0x85..=0x87 => {
                    let n_items = usize::from(opcode - 0x84);
                    let start = self.stack.len().checked_sub(n_items).ok_or("it takes more values than there are")?;
                    let items = self.stack.split_off(start);
                    self.push(Value::Sequence(items)); // TUPLE1, TUPLE2, TUPLE3
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?; // APPEND
                }
                b'e' | 0x90 => {
                    let items = self.take_to_mark()?;
                    self.extend(items)?; // APPENDS, ADDITEMS
                }
                b'}' => self.push(Value::Dict(Vec::new())), // EMPTY_DICT
                b'd' => {
                    let items = self.take_to_mark()?;
                    self.push(Value::Dict(Vec::new()));
                    self.insert(&items)?; // DICT
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(&[key, value])?; // SETITEM
                }
                b'u' => {
                    let items = self.take_to_mark()?;
                    self.insert(&items)?; // SETITEMS
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?; // GLOBAL
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.global(&module, &name)?; // STACK_GLOBAL
                }
                b'R' | 0x81 => self.reduce()?, // REDUCE, NEWOBJ
                b'q' => {
                    let [key] = self.array()?;
                    self.memo.insert(u64::from(key), self.top()?); // BINPUT
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.memo.insert(u64::from(key), self.top()?); // LONG_BINPUT
                }
                0x94 => {
                    let key = self.memo.len() as u64;
                    self.memo.insert(key, self.top()?); // MEMOIZE
                }
                b'h' => {
                    let [key] = self.array()?;
                    self.recall(u64::from(key))?; // BINGET
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(u64::from(key))?; // LONG_BINGET
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id)); // BINPERSID
                }
                other => return Err(format!("opcode 0x{other:02X} at byte {at} is not supported")),
            }
        }
        Err(format!("it has more than {MAX_STEPS} steps: save the state dict alone"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.get(..length).ok_or_else(|| format!("it ends early, at byte {}", self.bytes.len()))?;
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A length of `N` bytes, little endian.
    fn length<const N: usize>(&mut self) -> Result<usize, String> {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(self.array::<N>()?).for_each(|(byte, read)| *byte = read);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|error| error.to_string())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a name has no end")?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|error| format!("a name is not text ({error})"))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let name = format!("{module}.{name}");
        self.push(Value::Global(short(name)?));
        Ok(())
    }

    fn text<const N: usize>(&mut self) -> Result<(), String> {
        let length = self.length::<N>()?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn raw<const N: usize>(&mut self) -> Result<(), String> {
        let length = self.length::<N>()?;
        let bytes = self.take(length)?.to_vec();
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    /// A whole number of any length; what 64 bits cannot hold (PyTorch's own magic number) is kept as its bytes.
    fn long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        let value = if length <= 8 {
            let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 };
            let mut wide = [sign; 8];
            wide[..length].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Bytes(bytes.to_vec())
        };
        self.push(value);
        Ok(())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "it takes a value where there is none".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.top()?;
        self.stack.pop();
        if self.marks.last().is_some_and(|height| *height > self.stack.len()) {
            return Err("it takes a value from below a mark".to_owned());
        }
        Ok(id)
    }

    fn pop_text(&mut self) -> Result<String, String> {
        let id = self.pop()?;
        match self.values.get(id) {
            Some(Value::Text(text)) if text.len() <= MAX_NAME_BYTES => Ok(text.clone()),
            Some(Value::Text(text)) => Err(too_long(text.len())),
            _ => Err("a name is not text".to_owned()),
        }
    }

    fn take_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let height = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let id = self.memo.get(&key).copied().ok_or_else(|| format!("it recalls value {key}, which it never kept"))?;
        self.stack.push(id);
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), String> {
        let id = self.top()?;
        match self.values.get_mut(id) {
            Some(Value::Sequence(ids)) => ids.extend(items),
            // An object of a class that is a list.
            Some(Value::Call { .. }) => {}
            _ => return Err("it appends to something that is not a list".to_owned()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let id = self.top()?;
        match self.values.get_mut(id) {
            Some(Value::Dict(entries)) => {
                entries.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)));
            }
            // An object of a class that is a dictionary.
            Some(Value::Call { .. }) => {}
            _ => return Err("it sets an item of something that is not a dictionary".to_owned()),
        }
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let is_dict =
            matches!(self.values.get(callable), Some(Value::Global(name)) if name == "collections.OrderedDict");
        let is_empty = matches!(self.values.get(arguments), Some(Value::Sequence(items)) if items.is_empty());
        self.push(if is_dict && is_empty { Value::Dict(Vec::new()) } else { Value::Call { callable, arguments } });
        Ok(())
    }
}

fn short(name: String) -> Result<String, String> {
    if name.len() <= MAX_NAME_BYTES { Ok(name) } else { Err(too_long(name.len())) }
}

fn too_long(bytes: usize) -> String {
    format!("a name of {bytes} bytes: at most {MAX_NAME_BYTES} are read")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `python3 -c "import pickle; print(pickle.dumps({'a': [1, -2, 2.5, None, True], 'b': ('x', b'y')}, 2))"`
    const BY_PYTHON: &[u8] =
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG@\x04\x00\x00\x00\x00\x00\x00N\x88eX\x01\
          \x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04c_codecs\nencode\nq\x05X\x01\x00\x00\x00yq\x06X\x06\x00\x00\x00latin1\
          q\x07\x86q\x08Rq\t\x86q\nu.rest";

    #[test]
    fn what_python_wrote_is_read_and_nothing_is_called() {
        let pickle = Pickle::read(BY_PYTHON).unwrap();
        assert_eq!(&BY_PYTHON[pickle.length..], b"rest");
        let entries = pickle.dict(pickle.root).unwrap();
        assert_eq!(pickle.text(entries[0].0), Some("a"));
        let list = pickle.sequence(entries[0].1).unwrap();
        assert_eq!((pickle.int(list[0]), pickle.int(list[1])), (Some(1), Some(-2)));
        assert_eq!(*pickle.value(list[2]), Value::Float(2.5));
        assert_eq!(*pickle.value(list[4]), Value::Bool(true));
        let pair = pickle.sequence(entries[1].1).unwrap();
        let (name, arguments) = pickle.call(pair[1]).unwrap();
        assert_eq!((name, pickle.text(arguments[1])), ("_codecs.encode", Some("latin1")));
    }

    #[test]
    fn deep_nesting_and_cycles_cost_no_stack() {
        let mut deep = b"\x80\x02".to_vec();
        deep.extend(std::iter::repeat_n(b']', 1_000_000));
        deep.extend(std::iter::repeat_n(b'a', 999_999));
        deep.push(b'.');
        drop(Pickle::read(&deep).unwrap());
        drop(Pickle::read(b"\x80\x02]q\x00h\x00a.").unwrap());
    }

    #[rstest::rstest]
    #[case::cut(b"\x80\x02}q\x00(X\x01\x00", "ends early")]
    #[case::nothing_left(b"\x80\x02.", "there is none")]
    #[case::no_mark(b"\x80\x02t.", "mark is missing")]
    #[case::below_mark(b"\x80\x02N(0.", "below a mark")]
    #[case::huge(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", "ends early")]
    #[case::never_kept(b"\x80\x02h\x07.", "never kept")]
    #[case::protocol_0(b"I1\n.", "not supported")]
    #[case::long_name(&[&b"\x80\x02c"[..], &[b'a'; 300], b"\nb\n."].concat(), "at most 256")]
    #[case::long_memoised_name(&[&b"\x80\x02X\x2c\x01\x00\x00"[..], &[b'a'; 300], b"q\x00h\x00\x93."].concat(), "at most 256")]
    #[case::endless(&vec![b'N'; MAX_STEPS + 1], "steps")]
    fn unsound_pickles_are_named(#[case] bytes: &[u8], #[case] words: &str) {
        let error = Pickle::read(bytes).unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Pickle::read(&bytes);
        }

        #[test]
        fn any_change_of_a_sound_pickle_ends(at in 0..BY_PYTHON.len(), byte in any::<u8>()) {
            let mut bytes = BY_PYTHON.to_vec();
            bytes[at] = byte;
            let _ = Pickle::read(&bytes);
        }
    }
}
