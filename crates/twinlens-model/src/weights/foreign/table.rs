//! JSON configurations of other programs, read key by key.

use crate::error::{ModelError, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Mean of each channel that every CLIP model subtracts from its pixels.
pub(super) const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel that every CLIP model divides its pixels by.
pub(super) const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Reads a JSON object.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let json = std::fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&json).map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))
}

/// A JSON object whose every key must be read, so that no key of an unsupported model goes
/// unnoticed.
pub(super) struct Table<'a> {
    path: &'a Path,
    name: &'static str,
    map: Map<String, Value>,
}

impl<'a> Table<'a> {
    /// The whole file.
    pub(super) fn new(path: &'a Path, map: Map<String, Value>) -> Self {
        Self { path, name: "", map }
    }

    /// An error about a key.
    pub(super) fn wrong(&self, key: &str, problem: &str) -> ModelError {
        let dot = if self.name.is_empty() { "" } else { "." };
        ModelError::Config(format!("{}: {}{dot}{key} {problem}", self.path.display(), self.name))
    }

    /// Takes a nested object.
    pub(super) fn table(&mut self, name: &'static str) -> Result<Table<'a>> {
        match self.map.remove(name) {
            Some(Value::Object(map)) => Ok(Table { path: self.path, name, map }),
            _ => Err(self.wrong(name, "is missing, or not an object")),
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Takes a value without checking it.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    /// Takes a whole number, with its default if it may be left out.
    pub(super) fn number(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        let number = match self.map.remove(key) {
            None | Some(Value::Null) => default,
            Some(value) => value.as_u64().map(|n| n as usize),
        };
        number.ok_or_else(|| self.wrong(key, "is missing, or not a whole number"))
    }

    /// Takes a boolean, false by default.
    pub(super) fn flag(&mut self, key: &str) -> Result<bool> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    /// Takes a value that, if given, must be the only one supported here.
    pub(super) fn only(&mut self, key: &str, value: &Value) -> Result<()> {
        let is_same = |given: &Value| match (given.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
            _ => given == value,
        };
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(()),
            Some(given) if is_same(&given) => Ok(()),
            Some(given) => Err(self.wrong(key, &format!("is {given}; only {value} is supported"))),
        }
    }

    /// Ignores keys without effect on the features.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| _ = self.map.remove(*key));
    }

    /// Refuses keys that were not read.
    pub(super) fn end(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(self.wrong(key, &format!("({value}) belongs to an unsupported model"))),
        }
    }
}
