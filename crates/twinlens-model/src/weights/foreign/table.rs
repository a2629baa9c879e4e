//! JSON configurations of other programs, read key by key.

use crate::error::{ModelError, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads a JSON object; a byte order mark is skipped.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let json = std::fs::read_to_string(path).map_err(ModelError::io(path))?;
    let json = json.strip_prefix('\u{feff}').unwrap_or(&json);
    serde_json::from_str(json).map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))
}

/// A JSON object whose every key must be read, so that no key of an unsupported model goes
/// unnoticed.
pub(super) struct Table<'a> {
    path: &'a Path,
    /// The key of this object in the file, with a dot after it; empty for the whole file.
    prefix: String,
    map: Map<String, Value>,
}

impl<'a> Table<'a> {
    /// The whole file.
    pub(super) fn new(path: &'a Path, map: Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), map }
    }

    /// An error about a key.
    pub(super) fn wrong(&self, key: &str, problem: &str) -> ModelError {
        ModelError::Config(format!("{}: {}{key} {problem}", self.path.display(), self.prefix))
    }

    /// Takes a nested object; `None` if it is missing or null.
    pub(super) fn optional_table(&mut self, key: &str) -> Result<Option<Table<'a>>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Table { path: self.path, prefix: format!("{}{key}.", self.prefix), map }))
            }
            Some(other) => Err(self.wrong(key, &format!("is {other}, not an object"))),
        }
    }

    /// Takes a nested object.
    pub(super) fn table(&mut self, key: &str) -> Result<Table<'a>> {
        self.optional_table(key)?.ok_or_else(|| self.wrong(key, "is missing, or not an object"))
    }

    /// Whether a key has a value other than null.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Takes a value without checking it; `None` if it is missing or null.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    /// Takes a whole number, with its default if it may be left out.
    pub(super) fn number(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        let number = match self.take(key) {
            None => default,
            Some(value) => value.as_u64().map(|n| n as usize),
        };
        number.ok_or_else(|| self.wrong(key, "is missing, or not a whole number"))
    }

    /// Takes the side of a square, which may be written as a list of two equal numbers.
    pub(super) fn side(&mut self, key: &str, default: usize) -> Result<usize> {
        match self.map.get(key) {
            Some(Value::Array(sides)) if sides.len() == 2 => {
                if sides[0] != sides[1] {
                    return Err(self.wrong(key, &format!("is [{}, {}], not a square", sides[0], sides[1])));
                }
                let side = sides[0].as_u64().map(|n| n as usize);
                self.map.remove(key);
                side.ok_or_else(|| self.wrong(key, "is not a list of whole numbers"))
            }
            _ => self.number(key, Some(default)),
        }
    }

    /// Takes a number for each of three channels, or one for all; `None` if it is missing or null.
    pub(super) fn channels(&mut self, key: &str) -> Result<Option<[f64; 3]>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let numbers = match &value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect::<Option<Vec<_>>>(),
            value => value.as_f64().map(|value| vec![value; 3]),
        };
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.map(Some).ok_or_else(|| self.wrong(key, &format!("is {value}, not three numbers")))
    }

    /// Takes a number; `None` if it is missing or null.
    pub(super) fn float(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, &format!("is {value}, not a number")))
    }

    /// Takes a boolean.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    /// Takes one of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &str, default: T, words: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.take(key) else { return Ok(default) };
        let meaning = words.iter().find(|(word, _)| value == *word).map(|(_, meaning)| *meaning);
        meaning.ok_or_else(|| {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.wrong(key, &format!("is {value}; only {} is supported", words.join(" or ")))
        })
    }

    /// Takes a value that, if given, must be the only one supported here.
    pub(super) fn only(&mut self, key: &str, value: &Value) -> Result<()> {
        let is_same = |given: &Value| match (given.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
            _ => given == value,
        };
        match self.take(key) {
            None => Ok(()),
            Some(given) if is_same(&given) => Ok(()),
            Some(given) if value.is_null() => {
                Err(self.wrong(key, &format!("is {given}, which is not supported")))
            }
            Some(given) => Err(self.wrong(key, &format!("is {given}; only {value} is supported"))),
        }
    }

    /// Takes a value that, if given, must be empty: `""`, `[]`, `{}`.
    pub(super) fn empty(&mut self, key: &str) -> Result<()> {
        let is_empty = |given: &Value| match given {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        match self.take(key) {
            Some(given) if !is_empty(&given) => {
                Err(self.wrong(key, &format!("is {given}, which is not supported")))
            }
            _ => Ok(()),
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
            Some((key, value)) => {
                Err(self
                    .wrong(key, &format!("is {value}, but this key is unknown and may change the features")))
            }
        }
    }
}
