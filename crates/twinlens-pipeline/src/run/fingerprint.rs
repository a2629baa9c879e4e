//! Fingerprints: the recipe of a dataset, which can be compared, and its hash.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::{NodeInput, Pipeline, Resolved};
use crate::error::RunError;
use crate::files::{self, Files};

/// The recipe of a stage's dataset, and its hash.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Kind, version, options, inputs and files.
    pub value: Value,
    /// The hash: 32 hexadecimal digits.
    pub fingerprint: String,
}

/// The recipes of all nodes, in their order. Reads only the size and time of files outside the run.
///
/// `retries` is how often splits of a node's dataset were replaced, if the dataset has that
/// fingerprint: datasets that depend on the earlier splits are stale.
pub fn recipes(
    pipeline: &Pipeline,
    files: &Files,
    max_rows: Option<u64>,
    retries: &dyn Fn(usize, &str) -> u64,
) -> Result<Vec<Recipe>, RunError> {
    let mut recipes: Vec<Recipe> = Vec::new();
    for node in &pipeline.nodes {
        let print = |node: usize| {
            let recipe: &Recipe = &recipes[node];
            match retries(node, &recipe.fingerprint) {
                0 => recipe.fingerprint.clone(),
                times => format!("{} retried {times}", recipe.fingerprint),
            }
        };
        let all = |nodes: &[usize]| nodes.iter().map(|node| print(*node)).collect::<Vec<_>>().join("+");
        let mut inputs = BTreeMap::new();
        for NodeInput { input, resolved } in &node.inputs {
            let print = match resolved {
                Resolved::Stage { node, table } => format!("{}/{table}", print(*node)),
                Resolved::Variants { nodes, table } => format!("{}/{table}", all(nodes)),
                Resolved::System { nodes, .. } => all(nodes),
                Resolved::Path(path) => files::stamp(&files.location(path)?)?,
            };
            inputs.insert(input.name().to_string(), print);
        }
        let mut read = BTreeMap::new();
        for file in &node.plan.files {
            if file.ends_with('/') {
                let folder = files.location(file.trim_end_matches('/'))?;
                read.insert(format!("{}/", files.name(&folder)), files::folder_stamp(&folder)?);
                continue;
            }
            for location in files.expand(file.value())? {
                read.insert(files.name(&location), files::stamp(&location)?);
            }
        }
        for name in &node.plan.optional_files {
            let location = files.location(name.trim_end_matches('/'))?;
            let stamp = match (name.ends_with('/'), location.as_local()) {
                (true, Some(path)) if path.is_dir() => files::folder_stamp(&location)?,
                (false, _) if location.stat()?.is_some() => files::stamp(&location)?,
                _ => "not there".into(),
            };
            let end = if name.ends_with('/') { "/" } else { "" };
            read.insert(format!("{}{end}", files.name(&location)), stamp);
        }
        let mut value = json!({
            "kind": node.kind,
            "version": node.version,
            "seed": node.seed.unwrap_or(pipeline.seed),
            "max_rows": max_rows,
            "keep_rejects": node.keep_rejects,
            "options": node.options,
            "inputs": inputs,
            "files": read,
        });
        if let (Some(variant), Some(recipe)) = (&node.variant, value.as_object_mut()) {
            // A reused manifest must name the right variant.
            recipe.insert("variant_of".into(), json!(variant));
        }
        let value = sorted(value);
        let fingerprint = hex::encode(&Sha256::digest(value.to_string())[..16]);
        recipes.push(Recipe { value, fingerprint });
    }
    Ok(recipes)
}

/// Sorts the keys of objects.
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

/// The recipe that a dataset stores: its own, and under `fused` those of the stages in its plan.
pub fn kept<'a>(own: &Recipe, fused: impl Iterator<Item = (&'a str, &'a Recipe)>) -> Value {
    let mut value = own.value.clone();
    let fused: BTreeMap<&str, &Value> = fused.map(|(name, recipe)| (name, &recipe.value)).collect();
    if let (Value::Object(map), false) = (&mut value, fused.is_empty()) {
        map.insert(FUSED.into(), json!(fused));
    }
    value
}

const FUSED: &str = "fused";

/// What differs between a stored recipe and the current one, in words.
pub fn difference(before: &Value, now: &Value) -> String {
    let mut changes = Vec::new();
    let empty = Value::Object(Default::default());
    let part = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_else(|| empty.clone());
    let (old, new) = (part(before, FUSED), part(now, FUSED));
    for (name, now) in new.as_object().into_iter().flatten() {
        let mut own = Vec::new();
        if let Some(before) = old.get(name) {
            collect(before, now, String::new(), &mut own);
        }
        // A change of a fused input is reported by that stage.
        own.retain(|change| {
            !new.as_object().is_some_and(|all| all.keys().any(|key| *change == input_changed(key)))
        });
        changes.extend(own.into_iter().map(|change| format!("{name}: {change}")));
    }
    let mut own = Vec::new();
    collect(&without(before, FUSED), &without(now, FUSED), String::new(), &mut own);
    if !changes.is_empty() {
        own.retain(|change| {
            !new.as_object().is_some_and(|all| all.keys().any(|key| *change == input_changed(key)))
        });
    }
    changes.extend(own);
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
            Some(("inputs", input)) => input_changed(input),
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

fn input_changed(input: &str) -> String {
    format!("input `{input}` changed")
}

fn without(value: &Value, key: &str) -> Value {
    let mut value = value.clone();
    if let Value::Object(map) = &mut value {
        map.remove(key);
    }
    value
}

/// The most characters of a value to show.
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
        let fused = |least: u32, print: &str| {
            json!({"inputs": {"long": print}, "fused": {
                "long": {"inputs": {"pairs": print}, "options": {"least": least}}, "pairs": {"options": {}},
            }})
        };
        assert_eq!(difference(&fused(3, "1"), &fused(4, "2")), "long: option `least`: 3 -> 4");
        let query = |end: &str| json!({"options": {"query": format!("select {} order by {end}", "column, ".repeat(20))}});
        let shown = difference(&query("n"), &query("n desc"));
        assert_eq!(
            shown,
            "option `query`: ...mn, column, column, column,  order by n\" -> ...olumn, column, column,  order by n desc\""
        );
    }
}
