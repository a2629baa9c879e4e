//! The JSON Schema of a pipeline file, for editors, and the options of a kind, for `twinlens
//! stages`: both from the structs.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::file::Head;
use crate::config::stages::RESERVED;
use crate::config::tables::TestTable;
use crate::registry::{Kind, Registry};

/// One option of a kind of stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OptionDoc {
    /// Its name in the TOML table.
    pub name: String,
    /// Its type, in words.
    pub r#type: String,
    /// The default; `None` if there is none.
    pub default: Option<Value>,
    /// Whether it is required.
    pub required: bool,
    /// What it is for.
    pub description: String,
}

/// The JSON Schema (draft 2020-12) of a pipeline file with the kinds of a registry.
pub fn json_schema(registry: &Registry) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut kinds = Map::new();
    for kind in registry.kinds() {
        kinds.insert(format!("stage-{}", kind.name), stage_schema(kind, &mut generator));
    }
    let head = object(Head::json_schema(&mut generator));
    let test = object(TestTable::json_schema(&mut generator));
    let choices: Vec<Value> = kinds.keys().map(|name| json!({ "$ref": format!("#/$defs/{name}") })).collect();
    let mut definitions = generator.take_definitions(true);
    definitions.extend(kinds);
    definitions.insert("stage".into(), json!({ "oneOf": choices }));
    definitions.insert("test".into(), test);
    let mut properties = match head.get("properties") {
        Some(Value::Object(properties)) => properties.clone(),
        _ => Map::new(),
    };
    if !registry.sites().is_empty() {
        properties["sites"]["items"] = json!({ "enum": registry.sites() });
    }
    properties.insert("vars".into(), json!({
        "description": "Values that `${name}` in strings is filled with, unless `--set name=value` gives another.",
        "type": "object",
        "propertyNames": { "pattern": VARIABLE },
        "additionalProperties": { "type": ["string", "number", "boolean"] },
    }));
    properties.insert(
        "env".into(),
        json!({
            "description": "Environment variables that `${NAME}` may name.",
            "type": "array",
            "items": { "type": "string", "pattern": VARIABLE },
        }),
    );
    properties.insert(
        "stages".into(),
        json!({
            "description": "The stages by name: each is a table of that name in SQL over the run.",
            "type": "object",
            "minProperties": 1,
            "propertyNames": { "pattern": "^[a-z][a-z0-9_]*$", "not": { "enum": RESERVED } },
            "additionalProperties": { "$ref": "#/$defs/stage" },
        }),
    );
    properties.insert(
        "tests".into(),
        json!({
            "description": "What must hold on the finished run: for every row, not for some row.",
            "type": "array",
            "items": { "$ref": "#/$defs/test" },
        }),
    );
    let whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A twinlens pipeline",
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "stages"],
        "properties": properties,
        "$defs": definitions,
    });
    let mut whole = Schema::try_from(whole).unwrap_or_default();
    RecursiveTransform(|schema: &mut Schema| or_variable(schema)).transform(&mut whole);
    whole.to_value()
}

const VARIABLE: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

/// Numbers and booleans may also be the string `"${name}"`.
fn or_variable(schema: &mut Schema) {
    let Some(types) = schema.get("type") else { return };
    let mut types: Vec<Value> = types.as_array().cloned().unwrap_or_else(|| vec![types.clone()]);
    let filled = |name: &Value| matches!(name.as_str(), Some("integer" | "number" | "boolean"));
    let strings = types.iter().any(|name| name == "string");
    if strings || !types.iter().any(filled) || schema.get("const").is_some() || schema.get("enum").is_some() {
        return;
    }
    types.push("string".into());
    schema.insert("type".into(), types.into());
    schema.insert("pattern".into(), r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$".into());
}

fn object(schema: Schema) -> Value {
    schema.to_value()
}

/// The table of a kind: its own options, and those of every stage.
fn stage_schema(kind: &Kind, generator: &mut SchemaGenerator) -> Value {
    let mut schema = object((kind.schema)(generator));
    let own = kind.option_names();
    let seed = "seed".to_string();
    let Some(table) = schema.as_object_mut() else { return schema };
    // The definitions of all kinds stand together, at the end of the whole schema.
    table.remove("$schema");
    table.remove("$defs");
    table.insert("title".into(), kind.name.into());
    table.insert("description".into(), kind.about().into());
    table.insert("type".into(), "object".into());
    table.insert("additionalProperties".into(), false.into());
    let properties = table.entry("properties").or_insert_with(|| json!({}));
    properties["kind"] = json!({ "description": kind.summary(), "const": kind.name });
    properties["rejects"] = json!({
        "description": "What becomes of the rows that the stage refuses: kept in its ledger, or only counted.",
        "enum": ["keep", "count"],
        "default": "keep",
    });
    properties["seed"] = json!({
        "description": "Where what the stage draws at random comes from, instead of the pipeline's seed.",
        "type": "integer",
        "minimum": 0,
    });
    let options: Vec<&String> = own.iter().chain([&seed]).collect();
    properties["sweep"] = json!({
        "description": "Makes the stage once for each combination of these values; so is what reads it.",
        "type": "object",
        "minProperties": 1,
        "propertyNames": { "enum": options },
        "additionalProperties": { "type": "array", "minItems": 1 },
    });
    // A swept option is not given in the table itself.
    let needed = table.remove("required").unwrap_or_else(|| json!([]));
    table.insert("required".into(), json!(["kind"]));
    if needed.as_array().is_some_and(|names| !names.is_empty()) {
        table.insert("anyOf".into(), json!([{ "required": needed }, { "required": ["sweep"] }]));
    }
    schema
}

fn names(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// The options of a kind: those that are needed first, then by name; after a table those inside it,
/// as `resize.size` or, in an array of tables, `rules[].code`.
pub fn options_doc(kind: &Kind) -> Vec<OptionDoc> {
    let schema = kind.own_schema();
    let definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    options_of(&schema, "", &definitions)
}

fn options_of(table: &Value, prefix: &str, definitions: &Map<String, Value>) -> Vec<OptionDoc> {
    let required = names(&table["required"]);
    let mut options: Vec<(&String, &Value)> = table["properties"].as_object().into_iter().flatten().collect();
    options.sort_by_key(|(name, _)| (!required.contains(name), *name));
    let mut all = Vec::new();
    for (name, option) in options {
        let path = format!("{prefix}{name}");
        all.push(OptionDoc {
            name: path.clone(),
            r#type: type_name(option, definitions),
            default: option.get("default").filter(|value| !value.is_null()).cloned(),
            required: required.contains(name),
            description: description(option, definitions),
        });
        let value = resolved(option, definitions);
        let (inner, dots) = match value.get("items") {
            Some(items) => (resolved(items, definitions), "[]."),
            None => (value, "."),
        };
        all.extend(options_of(inner, &format!("{path}{dots}"), definitions));
    }
    all
}

/// What a value is that is there: references followed, and `null` looked through.
fn resolved<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> &'a Value {
    if let Some(target) = target(schema, definitions) {
        return resolved(target, definitions);
    }
    let choices = schema["anyOf"].as_array().into_iter().flatten().filter(|choice| choice["type"] != "null");
    match choices.collect::<Vec<_>>()[..] {
        [only] => resolved(only, definitions),
        _ => schema,
    }
}

fn description(option: &Value, definitions: &Map<String, Value>) -> String {
    let own = option["description"].as_str().or_else(|| target(option, definitions)?["description"].as_str());
    own.unwrap_or_default().to_string()
}

fn target<'a>(schema: &Value, definitions: &'a Map<String, Value>) -> Option<&'a Value> {
    definitions.get(schema["$ref"].as_str()?.strip_prefix("#/$defs/")?)
}

fn type_name(schema: &Value, definitions: &Map<String, Value>) -> String {
    if let Some(target) = target(schema, definitions) {
        return type_name(target, definitions);
    }
    if let Some(value) = schema.get("const") {
        return value.to_string();
    }
    if let Some(values) = schema["enum"].as_array() {
        return values
            .iter()
            .filter(|value| !value.is_null())
            .map(Value::to_string)
            .collect::<Vec<_>>()
            .join(" | ");
    }
    if let Some(choices) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        let choices = choices.iter().filter(|choice| choice["type"] != "null");
        return choices.map(|choice| type_name(choice, definitions)).collect::<Vec<_>>().join(" | ");
    }
    let types = match &schema["type"] {
        Value::String(name) => vec![name.clone()],
        several => names(several),
    };
    let types = types.iter().filter(|name| *name != "null").map(|name| match name.as_str() {
        "array" => format!("array of {}", type_name(&schema["items"], definitions)),
        "object" => "table".into(),
        other => other.into(),
    });
    let types = types.collect::<Vec<_>>().join(" | ");
    if types.is_empty() { "any".into() } else { types }
}
