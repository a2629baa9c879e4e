//! Fingerprints: the recipe of a dataset, which can be compared, and its hash.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use twinlens_dataset::storage::Location;

use crate::config::{Node, NodeInput, Pipeline, Resolved};
use crate::error::RunError;
use crate::files::{self, Files};
use crate::hub::is_hub_name;
use crate::ports::Plan;
use crate::secrets::Secrets;

/// The recipe of a stage's dataset, and its hash.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Kind, version, options, inputs and files.
    pub value: Value,
    /// The hash of what determines the content: 32 hexadecimal digits.
    pub fingerprint: String,
}

/// What earlier datasets of the run recorded.
pub trait Recorded {
    /// How often splits of a node's dataset were replaced, if the dataset has that fingerprint:
    /// datasets that depend on the earlier splits are stale.
    fn retries(&self, node: usize, fingerprint: &str) -> u64;
    /// What identifies the content of the generation `name` of the node `of`, for the stage
    /// `reader`. Of the reader itself, the next generation is the dataset that it has now.
    ///
    /// # Errors
    /// The user's: there is none.
    fn earlier(&self, reader: &str, name: &str, of: usize) -> Result<String, RunError>;
    /// The stamp of a file, by its name in the recipe.
    fn stamp(&self, name: &str) -> Option<&Value>;
}

/// The recipes of all nodes, in their order. Reads the size and time of files outside the run, and
/// the content of those whose size or time is not the recorded one.
pub fn recipes(
    pipeline: &Pipeline,
    files: &Files,
    max_rows: Option<u64>,
    recorded: &dyn Recorded,
) -> Result<Vec<Recipe>, RunError> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let stamps = Stamps { files, recorded, secrets: &pipeline.secrets };
    for node in &pipeline.nodes {
        let print = |node: usize| {
            let recipe: &Recipe = &recipes[node];
            match recorded.retries(node, &recipe.fingerprint) {
                0 => recipe.fingerprint.clone(),
                times => format!("{} retried {times}", recipe.fingerprint),
            }
        };
        let all = |nodes: &[usize]| nodes.iter().map(|node| print(*node)).collect::<Vec<_>>().join("+");
        let mut inputs = Map::new();
        for NodeInput { input, resolved } in &node.inputs {
            let name = input.name();
            let (name, print) = match resolved {
                Resolved::Stage { node, table } => (name.into(), format!("{}/{table}", print(*node)).into()),
                Resolved::Variants { nodes, table } => {
                    (name.into(), format!("{}/{table}", all(nodes)).into())
                }
                Resolved::System { nodes, .. } => (name.into(), all(nodes).into()),
                Resolved::Path(path) => match files.several(path)? {
                    None => stamps.one(&files.location(path)?)?,
                    // Files of the hub do not change while they are in the cache, whose place is
                    // another on each machine.
                    Some(several) if is_hub_name(path) => {
                        (path.clone(), format!("{} files", several.len()).into())
                    }
                    Some(several) => {
                        let all = several.iter().map(|file| stamps.one(file));
                        inputs.extend(all.collect::<Result<Vec<_>, _>>()?);
                        continue;
                    }
                },
                Resolved::Earlier { name: earlier, of } => {
                    (name.into(), recorded.earlier(&node.name, earlier, *of)?.into())
                }
            };
            inputs.insert(name, print);
        }
        let mut value = json!({
            "kind": node.kind,
            "version": node.version,
            "seed": node.seed.unwrap_or(pipeline.seed),
            "max_rows": max_rows,
            "keep_rejects": node.keep_rejects,
            "options": node.options,
            "inputs": inputs,
            "files": stamps.of(&node.plan)?,
        });
        if let (Some(variant), Some(recipe)) = (&node.variant, value.as_object_mut()) {
            // A reused manifest must name the right variant.
            recipe.insert("variant_of".into(), json!(variant));
        }
        let value = sorted(value);
        let content = content_of(value.clone(), node, &stamps);
        let fingerprint = hex::encode(&Sha256::digest(content.to_string())[..16]);
        recipes.push(Recipe { value, fingerprint });
    }
    Ok(recipes)
}

/// Keys of the stamp of a file whose content was read.
const SEEN: &str = "seen";
const CONTENT: &str = "content";

/// Stamps of files outside the run: texts that change with the content; or size and time with a
/// hash of the content, which alone counts.
struct Stamps<'a> {
    files: &'a Files,
    recorded: &'a dyn Recorded,
    secrets: &'a Secrets,
}

impl Stamps<'_> {
    /// The files that a stage declared, by name.
    fn of(&self, plan: &Plan) -> Result<Map<String, Value>, RunError> {
        let mut read = Map::new();
        for file in &plan.files {
            if file.ends_with('/') {
                read.extend([self.folder(&self.files.location(file.trim_end_matches('/'))?)?]);
                continue;
            }
            for location in self.files.expand(file.value())? {
                read.extend([self.one(&location)?]);
            }
        }
        for name in &plan.optional_files {
            let location = self.files.location(name.trim_end_matches('/'))?;
            let (is_folder, found) = (name.ends_with('/'), location.stat()?.is_some());
            read.extend([match location.as_local() {
                Some(path) if is_folder && path.is_dir() => self.folder(&location)?,
                _ if !is_folder && found => self.one(&location)?,
                _ => {
                    let end = if is_folder { "/" } else { "" };
                    let name = format!("{}{end}", self.files.name(&location));
                    (self.secrets.hide_stored(&name), "not there".into())
                }
            }]);
        }
        Ok(read)
    }

    fn one(&self, location: &Location) -> Result<(String, Value), RunError> {
        self.with_content(self.files.name(location), files::stamp(location)?, location)
    }

    fn folder(&self, location: &Location) -> Result<(String, Value), RunError> {
        let name = format!("{}/", self.files.name(location));
        self.with_content(name, files::folder_stamp(location)?, location)
    }

    fn with_content(
        &self,
        name: String,
        seen: String,
        location: &Location,
    ) -> Result<(String, Value), RunError> {
        let name = self.secrets.hide_stored(&name);
        if let Some(stamp) = self.recorded.stamp(&name).filter(|stamp| stamp[SEEN] == seen.as_str()) {
            return Ok((name, stamp.clone()));
        }
        // The stamp of a dataset is its fingerprint.
        let is_dataset = location.as_local().is_some_and(Path::is_dir) && !name.ends_with('/');
        let content = if is_dataset { None } else { files::content_hash(location)? };
        let stamp = match content {
            Some(content) => json!({ SEEN: seen, CONTENT: content }),
            None => seen.into(),
        };
        Ok((name, stamp))
    }
}

/// The stamps in a recipe, and in those fused into it, by the names of files.
pub fn stamps(recipe: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fused = recipe[FUSED].as_object().into_iter().flat_map(Map::values);
    let parts = fused.chain([recipe]).flat_map(|recipe| [&recipe["files"], &recipe["inputs"]]);
    parts.filter_map(Value::as_object).flatten().filter(|(_, stamp)| stamp.get(CONTENT).is_some())
}

/// What determines the content: of files that were read their hash without their times, and paths
/// of the options under the names of recipes, however they are written.
fn content_of(mut recipe: Value, node: &Node, stamps: &Stamps<'_>) -> Value {
    for part in ["files", "inputs"] {
        for stamp in recipe[part].as_object_mut().into_iter().flat_map(Map::values_mut) {
            if let Some(content) = stamp.get(CONTENT) {
                *stamp = content.clone();
            }
        }
    }
    let declared = node.plan.files.iter().map(|file| file.value().as_str());
    let declared = declared.chain(node.plan.optional_files.iter().map(String::as_str));
    let inputs = node.inputs.iter().filter(|input| matches!(input.resolved, Resolved::Path(_)));
    let paths = declared.chain(inputs.map(|input| input.input.name()));
    // As they are in the options.
    let paths: Vec<String> = paths.map(|path| stamps.secrets.hide_stored(path)).collect();
    rename_paths(&mut recipe["options"], &paths, stamps.files);
    recipe
}

/// Renames the texts that are one of the paths, or a folder above one.
fn rename_paths(value: &mut Value, paths: &[String], files: &Files) {
    match value {
        Value::String(text) => {
            let folder = text.trim_end_matches('/');
            let is_path = |path: &String| {
                path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if !folder.is_empty() && paths.iter().any(is_path) {
                *text = files.written_name(text);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename_paths(item, paths, files)),
        Value::Object(entries) => {
            entries.values_mut().for_each(|value| rename_paths(value, paths, files));
        }
        _ => {}
    }
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

/// What of a recipe determines a row that the stages `nodes` make of a row of their input: all but
/// that input, how many of its rows are read, and the times of files.
pub(super) fn without_rows_input(recipe: &Value, nodes: &[Arc<Node>], files: &Files) -> Value {
    let mut recipe = recipe.clone();
    let Some((last, fused)) = nodes.split_last() else { return recipe };
    for node in fused {
        if let Some(part) = recipe.get_mut(FUSED).and_then(|fused| fused.get_mut(&node.name)) {
            strip_rows_input(part, node, files);
        }
    }
    strip_rows_input(&mut recipe, last, files);
    recipe
}

fn strip_rows_input(recipe: &mut Value, node: &Node, files: &Files) {
    if let Value::Object(parts) = recipe {
        parts.remove("max_rows");
    }
    for part in ["files", "inputs"] {
        let Some(stamps) = recipe.get_mut(part).and_then(Value::as_object_mut) else { continue };
        if let Some(input) = node.growing_input().filter(|_| part == "inputs") {
            // A file has the name that `Stamps` gives it. Those of a pattern stay: nothing is taken
            // over then.
            stamps.remove(input.input.name());
            stamps.remove(&files.written_name(input.input.name()));
        }
        for stamp in stamps.values_mut() {
            if let Some(content) = stamp.get(CONTENT) {
                *stamp = content.clone();
            }
        }
    }
}

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
        _ if before == now || same_content(before, now) => {}
        (Value::Object(old), Value::Object(new)) if new.get(CONTENT).is_none() => {
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

/// Whether two stamps of a file are of the same content.
fn same_content(before: &Value, now: &Value) -> bool {
    now.get(CONTENT).is_some_and(|content| before.get(CONTENT) == Some(content))
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
