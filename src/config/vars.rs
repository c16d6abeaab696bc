//! Where the environment overlay comes from.

use std::{collections::BTreeMap, ffi::OsString};

/// A source of environment variables. Configuration is tested with a map, never with `set_var`.
pub trait Vars {
    /// All variables, in any order. Those that do not begin with `HILUM__` are ignored by the caller.
    fn vars(&self) -> Vec<(OsString, OsString)>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Vars for ProcessEnvironment {
    fn vars(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> Vars for BTreeMap<K, V> {
    fn vars(&self) -> Vec<(OsString, OsString)> {
        self.iter().map(|(name, value)| (name.as_ref().into(), value.as_ref().into())).collect()
    }
}
