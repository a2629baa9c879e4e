//! JSON objects as rows.

use std::borrow::Cow;

use serde_json::{Map, Value};
use twinlens_dataset::samples::Refusal;
use twinlens_text::repair_json;

use super::columns::ColumnSelection;
use super::options::ColumnKind;
use super::rows::{Row, RowCaptions};

pub(super) type Object = Map<String, Value>;

/// Parses an object. What other programs write beside JSON is repaired: `NaN` and `Infinity`
/// become null, halves of surrogate pairs U+FFFD.
pub(super) fn parse(text: &[u8]) -> Result<Object, Refusal> {
    let error = match serde_json::from_slice(text) {
        Ok(object) => return Ok(object),
        Err(error) => error,
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return Err(("not_utf8", "the value is not UTF-8: set `encoding`".into()));
    };
    let repaired = repair_json(text.as_bytes());
    serde_json::from_str(&repaired).map_err(|_| ("malformed_json", reason(&error)))
}

/// Why a text is not an object. The place in a text of one line is a byte.
fn reason(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    match text.strip_suffix(&format!(" at line {line} column {column}")) {
        Some(cause) if line == 1 => format!("{cause} at byte {column}"),
        _ => text,
    }
}

/// The value of a name: that of a key, or of a path like `image.url`.
fn lookup<'v>(object: &'v Object, name: &str) -> Option<&'v Value> {
    if let Some(value) = object.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    lookup(object.get(first)?.as_object()?, rest)
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        _ => false,
    }
}

/// The first value that is not blank, and its name.
fn first<'v, 'n>(object: &'v Object, names: &[&'n str]) -> Option<(&'n str, &'v Value)> {
    let mut values = names.iter().filter_map(|name| Some((*name, lookup(object, name)?)));
    values.find(|(_, value)| !is_blank(value))
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn text<'v>(object: &'v Object, names: &[&str]) -> Result<Option<Cow<'v, str>>, Refusal> {
    match first(object, names) {
        None => Ok(None),
        Some((_, Value::String(text))) => Ok(Some(Cow::Borrowed(text))),
        Some((name, value)) => Err(wrong_type(name, value)),
    }
}

fn wrong_type(name: &str, value: &Value) -> Refusal {
    ("wrong_type", format!("`{name}` is {}, not text", kind(value)))
}

/// The row of an object. `kinds` are the types of the kept columns.
pub(super) fn row<'v>(
    object: &'v Object,
    selection: &ColumnSelection,
    kinds: &[ColumnKind],
) -> Result<Row<'v>, Refusal> {
    let [url, caption, page_url, text_source] = selection.candidates();
    let captions = match first(object, &caption) {
        None => RowCaptions::None,
        Some((_, Value::String(text))) => RowCaptions::of_text(text, selection.captions),
        Some((name, Value::Array(items))) if selection.captions.is_some() => {
            let texts = items.iter().filter(|item| !is_blank(item)).map(|item| match item {
                Value::String(text) => Ok(Cow::Borrowed(text.as_str())),
                other => Err(wrong_type(name, other)),
            });
            RowCaptions::List(texts.collect::<Result<_, _>>()?)
        }
        Some((name, Value::Array(_))) => {
            return Err(("wrong_type", format!("`{name}` is a list: set `captions`")));
        }
        Some((name, value)) => return Err(wrong_type(name, value)),
    };
    let kept = selection.keep.iter().zip(kinds).map(|(kept, kind)| {
        let value = lookup(object, &kept.source).filter(|value| !value.is_null());
        value.map(|value| kept_value(value, *kind)).transpose().map_err(|()| {
            let value = value.map_or_else(String::new, Value::to_string);
            kind.refuse(&kept.source, &value)
        })
    });
    Ok(Row {
        url: text(object, &url)?,
        captions,
        page_url: text(object, &page_url)?,
        text_source: text(object, &text_source)?,
        kept: kept.collect::<Result<_, _>>()?,
    })
}

/// A kept value as text that its type can be read from; nested values are JSON.
fn kept_value(value: &Value, kind: ColumnKind) -> Result<Cow<'_, str>, ()> {
    let text = match value {
        Value::String(text) => Cow::Borrowed(text.as_str()),
        other => Cow::Owned(other.to_string()),
    };
    kind.canonical(text).ok_or(())
}

/// Most keys that are remembered of the objects of a file.
const MAX_KEYS: usize = 100;

/// What the first objects of a file say about their values.
#[derive(Debug, Default)]
pub(super) struct Sample {
    keys: Vec<String>,
    url: Seen,
    caption: Seen,
    kept: Vec<Option<ColumnKind>>,
}

/// How often a value was of which type.
#[derive(Debug, Default)]
struct Seen {
    texts: u64,
    lists: u64,
    /// The first value of another type: name and type.
    other: Option<(String, &'static str)>,
}

impl Seen {
    fn add(&mut self, found: Option<(&str, &Value)>) {
        match found {
            None => {}
            Some((_, Value::String(_))) => self.texts += 1,
            Some((_, Value::Array(_))) => self.lists += 1,
            Some((name, value)) => {
                self.other.get_or_insert_with(|| (name.into(), kind(value)));
            }
        }
    }
}

impl Sample {
    pub(super) fn add(&mut self, object: &Object, selection: &ColumnSelection) {
        let [url, caption, ..] = selection.candidates();
        self.url.add(first(object, &url));
        self.caption.add(first(object, &caption));
        for key in object.keys() {
            if self.keys.len() < MAX_KEYS && !self.keys.contains(key) {
                self.keys.push(key.clone());
            }
        }
        self.kept.resize(selection.keep.len(), None);
        for (seen, kept) in self.kept.iter_mut().zip(&selection.keep) {
            if let Some(value) = lookup(object, &kept.source).filter(|value| !value.is_null()) {
                *seen = Some(merge(*seen, value));
            }
        }
    }

    /// The types of the kept values; text if there was none.
    pub(super) fn kinds(&self, selection: &ColumnSelection) -> Vec<ColumnKind> {
        let kind = |index: usize| self.kept.get(index).copied().flatten().unwrap_or(ColumnKind::String);
        (0..selection.keep.len()).map(kind).collect()
    }

    /// Whether the objects are images without captions.
    pub(super) fn is_image_only(&self) -> bool {
        self.keys.len() == 1
    }

    /// What is wrong with all of them.
    pub(super) fn check(&self, selection: &ColumnSelection) -> Result<(), (String, String)> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let other = |seen: &Seen| seen.other.as_ref().filter(|_| seen.texts == 0).cloned();
        if let Some((name, kind)) = other(&self.url) {
            let hint = format!("name a value in it: `columns = {{ url = \"{name}.url\" }}`");
            return Err((format!("`{name}` is {kind}, not text"), hint));
        }
        if let Some((name, kind)) = other(&self.caption) {
            let hint = "name another one: `columns = { caption = \"...\" }`";
            return Err((format!("`{name}` is {kind}, not text"), hint.into()));
        }
        if self.caption.lists > 0 && selection.captions.is_none() {
            return Err(("the captions are lists".into(), super::options::LIST_HINT.into()));
        }
        let [url, caption, ..] = selection.candidates();
        if self.url.texts == 0 && self.url.lists > 0 {
            return Err((format!("`{}` is a list, not text", url[0]), "name another one: `columns`".into()));
        }
        let has = |names: &[&str]| {
            names
                .iter()
                .any(|name| self.keys.iter().any(|key| key == name || name.starts_with(&format!("{key}."))))
        };
        if !has(&url) {
            return Err(selection.missing(&url, &self.keys));
        }
        if !has(&caption) && !self.is_image_only() && selection.needs_captions() {
            return Err(selection.missing(&caption, &self.keys));
        }
        Ok(())
    }
}

/// The type that holds values of `seen` and this one.
fn merge(seen: Option<ColumnKind>, value: &Value) -> ColumnKind {
    let kind = match value {
        Value::Bool(_) => ColumnKind::Bool,
        Value::Number(number) if number.is_i64() => ColumnKind::Int64,
        Value::Number(number) if number.is_f64() => ColumnKind::Float64,
        _ => ColumnKind::String,
    };
    match (seen, kind) {
        (None, kind) => kind,
        (Some(seen), kind) if seen == kind => kind,
        (Some(ColumnKind::Int64 | ColumnKind::Float64), ColumnKind::Int64 | ColumnKind::Float64) => {
            ColumnKind::Float64
        }
        _ => ColumnKind::String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_numbers() {
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let cases = [
            (vec!["1", "2"], ColumnKind::Int64),
            (vec!["1", "0.5"], ColumnKind::Float64),
            (vec!["0.5", "1", "\"x\""], ColumnKind::String),
            (vec!["18446744073709551615"], ColumnKind::String),
            (vec!["true", "false"], ColumnKind::Bool),
            (vec!["true", "1"], ColumnKind::String),
            (vec!["[1]"], ColumnKind::String),
        ];
        for (values, expected) in cases {
            let kind = values.iter().fold(None, |seen, value| Some(merge(seen, &parse(value))));
            assert_eq!(kind, Some(expected), "{values:?}");
        }
    }
}
