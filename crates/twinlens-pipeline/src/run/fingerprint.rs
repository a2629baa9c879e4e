//! Fingerprints: what a dataset was made of, as a recipe that can be compared, and its hash.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use twinlens_dataset::{manifest, storage};

use crate::config::{Pipeline, Resolved};
use crate::error::RunError;

/// The recipe of a stage's dataset, and its hash.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What it is made of.
    pub value: Value,
    /// The hash: 32 hexadecimal digits.
    pub fingerprint: String,
}

/// The recipes of all nodes, in their order. Looks at the size and time of files outside the run, and at nothing else.
pub fn recipes(pipeline: &Pipeline, max_rows: Option<u64>) -> Result<Vec<Recipe>, RunError> {
    let mut recipes: Vec<Recipe> = Vec::new();
    for node in &pipeline.nodes {
        let mut inputs = BTreeMap::new();
        for (name, resolved) in node.stage.inputs().iter().zip(&node.inputs) {
            let print = match resolved {
                Resolved::Stage { node, table } => format!("{}/{table}", recipes[*node].fingerprint),
                Resolved::System { nodes, .. } => {
                    nodes.iter().map(|node| recipes[*node].fingerprint.as_str()).collect::<Vec<_>>().join("+")
                }
                Resolved::Path(path) => path_print(path)?,
            };
            inputs.insert(name.name().to_string(), print);
        }
        let mut files = BTreeMap::new();
        for file in node.stage.files() {
            for path in expand(pipeline.base(), file.value())? {
                // As seen from the pipeline file: the same run may be started from another folder.
                let name = path.strip_prefix(pipeline.base()).unwrap_or(&path).display().to_string();
                files.insert(name, path_print(&path)?);
            }
        }
        let value = sorted(json!({
            "kind": node.kind,
            "version": node.version,
            "seed": pipeline.seed,
            "max_rows": max_rows,
            "keep_rejects": node.keep_rejects,
            "options": node.options,
            "inputs": inputs,
            "files": files,
        }));
        let fingerprint = storage::hex(&Sha256::digest(value.to_string())[..16]);
        recipes.push(Recipe { value, fingerprint });
    }
    Ok(recipes)
}

/// Objects with their keys in order, whatever order the map keeps.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries: BTreeMap<String, Value> =
                map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Size and time of change of a file; the fingerprint of a dataset's folder.
fn path_print(path: &Path) -> Result<String, RunError> {
    if path.is_dir() && path.join(manifest::FILE).exists() {
        let state = manifest::read(path)?;
        return Ok(state.map(|state| state.begin.fingerprint).unwrap_or_default());
    }
    let metadata = fs::metadata(path).map_err(|error| RunError::io(path, error))?;
    let changed =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("{} bytes, changed {}", metadata.len(), changed.as_nanos()))
}

/// The files that a path or a pattern (`*`, `?` in its last part) names, sorted.
///
/// # Errors
/// The user's, when there is none.
pub fn expand(base: &Path, written: &str) -> Result<Vec<std::path::PathBuf>, RunError> {
    let path = base.join(written);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return match path.exists() {
            true => Ok(vec![path]),
            false => Err(RunError::user_with_hint(
                format!("{} does not exist", path.display()),
                format!("`{written}` is relative to the folder of the pipeline file"),
            )),
        };
    }
    let folder = path.parent().unwrap_or(base);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| RunError::io(folder, error))? {
        let entry = entry.map_err(|error| RunError::io(folder, error))?;
        if matches(name.as_bytes(), entry.file_name().to_string_lossy().as_bytes()) {
            found.push(entry.path());
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(RunError::user(format!("no file matches {}", path.display())));
    }
    Ok(found)
}

/// Whether a file name matches a pattern of `*` (any bytes) and `?` (one byte). Linear in time for each `*`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    p = after;
                    n = from + 1;
                    star = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// What differs between the recipe of a dataset on disk and the one of now, for people.
pub fn difference(before: &Value, now: &Value) -> String {
    let mut changes = Vec::new();
    collect(before, now, String::new(), &mut changes);
    match changes.len() {
        0 => "its recipe changed".into(),
        1..=3 => changes.join("; "),
        more => format!("{}; and {} more", changes[..3].join("; "), more - 3),
    }
}

fn collect(before: &Value, now: &Value, at: String, changes: &mut Vec<String>) {
    match (before, now) {
        _ if before == now => {}
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                collect(
                    old.get(key).unwrap_or(&Value::Null),
                    new.get(key).unwrap_or(&Value::Null),
                    at,
                    changes,
                );
            }
        }
        _ => changes.push(match at.split_once('.') {
            Some(("inputs", input)) => format!("input `{input}` changed"),
            Some(("files", file)) => format!("file {file} changed"),
            Some(("options", option)) => {
                let from = common_start(before, now);
                format!("option `{option}`: {} -> {}", short(before, from), short(now, from))
            }
            _ if at == "version" => "the stage's logic changed".into(),
            _ => format!("{at}: {} -> {}", short(before, 0), short(now, 0)),
        }),
    }
}

/// Characters of a value that are shown.
const SHOWN: usize = 40;

/// A value as text; a long one from a little before the character `from` on.
fn short(value: &Value, from: usize) -> String {
    let text = if value.is_null() { "none".into() } else { value.to_string() };
    let length = text.chars().count();
    if length <= SHOWN {
        return text;
    }
    let skipped = from.saturating_sub(SHOWN / 2).min(length - SHOWN);
    let part: String = text.chars().skip(skipped).take(SHOWN).collect();
    let (before, after) = (skipped > 0, skipped + SHOWN < length);
    format!("{}{part}{}", if before { "..." } else { "" }, if after { "..." } else { "" })
}

/// How many characters two values have in common before they differ.
fn common_start(before: &Value, now: &Value) -> usize {
    before.to_string().chars().zip(now.to_string().chars()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let cases = [("*.csv", "a.csv", true), ("a?.csv", "ab.csv", true), ("a?.csv", "a.csv", false)];
        let more = [("*", "", true), ("a*b*c", "aXbYbZc", true), ("a*b", "abc", false), ("**x", "x", true)];
        for (pattern, name, expected) in cases.into_iter().chain(more) {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_difference_names_what_changed() {
        let before = json!({"options": {"cap": 20, "input": "a"}, "inputs": {"a": "1"}, "version": 1});
        let cases = [
            (
                json!({"options": {"cap": 30, "input": "a"}, "inputs": {"a": "1"}, "version": 1}),
                "option `cap`: 20 -> 30",
            ),
            (
                json!({"options": {"cap": 20, "input": "a"}, "inputs": {"a": "2"}, "version": 1}),
                "input `a` changed",
            ),
            (
                json!({"options": {"cap": 20, "input": "a"}, "inputs": {"a": "1"}, "version": 2}),
                "the stage's logic changed",
            ),
        ];
        for (now, expected) in cases {
            assert_eq!(difference(&before, &now), expected);
        }
        let query = |end: &str| json!({"options": {"query": format!("select {} order by {end}", "column, ".repeat(20))}});
        let shown = difference(&query("n"), &query("n desc"));
        assert_eq!(
            shown,
            "option `query`: ...mn, column, column, column,  order by n\" -> ...olumn, column, column,  order by n desc\""
        );
    }
}
