//! A TOML table to a type, by the JSON Schema of that type: everything that is wrong at once.
//!
//! The table is walked beside the schema: unknown, missing and mistyped options, and values that
//! are not allowed, each with its place. `serde` builds the type once, when nothing is wrong; what
//! it then refuses (an implementation of `Deserialize` by hand) is reported as it says it.

use std::ops::Range;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::config::source::Strings;
use crate::error::Fault;
use crate::suggest::{did_you_mean, list_names, nearest};

/// What is known of a table beside its entries.
pub(crate) struct Shape<'a> {
    /// For messages: ``the stage `clip` ``.
    pub(crate) what: &'a str,
    /// The place to blame for what is missing.
    pub(crate) header: Range<usize>,
    /// The JSON Schema of the type, with its definitions.
    pub(crate) schema: &'a Value,
    /// Options that are set elsewhere: they are not missing.
    pub(crate) swept: &'a [String],
    /// Keys that have been taken out of the table, and are known nevertheless.
    pub(crate) taken: &'a [&'a str],
}

/// Deserialises a table, or reports everything that is wrong with it.
pub(crate) fn build<'i, T>(
    mut table: DeTable<'i>,
    shape: &Shape<'_>,
    strings: &Strings,
    make: impl Fn(ValueDeserializer<'i>) -> Result<T, toml::de::Error>,
) -> Result<T, Vec<Fault>> {
    let mut walker = Walker { schema: shape.schema, strings, faults: Vec::new() };
    let (schema, header) = (walker.resolve(shape.schema), shape.header.clone());
    let guessed = walker.entries(&mut table, schema, "", shape.taken);
    let missing =
        missing(&table, schema, &guessed).filter(|name| !shape.swept.iter().any(|swept| swept == name));
    walker.faults.extend(missing_fault(missing.collect(), shape.what, header.clone()));
    if !walker.faults.is_empty() {
        return Err(walker.faults);
    }
    make(Spanned::new(header.clone(), DeValue::Table(table.clone())).into()).map_err(|error| {
        let span = error.span().unwrap_or(header);
        let message = match path_of(&table, &span) {
            Some(path) => format!("`{path}`: {}", error.message()),
            None => format!("{}: {}", shape.what, error.message()),
        };
        vec![Fault::at(span, message)]
    })
}

/// Walks values beside their schemas.
struct Walker<'a> {
    /// The root, whose definitions others refer to.
    schema: &'a Value,
    strings: &'a Strings,
    faults: Vec<Fault>,
}

impl<'a> Walker<'a> {
    /// The schema that a reference names; any other as it is.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/"));
        match name.and_then(|name| self.schema["$defs"].get(name)) {
            Some(target) => self.resolve(target),
            None => schema,
        }
    }

    /// What a value may be: the alternatives of the schema, `null` left out.
    fn alternatives(&self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolve(schema);
        match schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
            Some(all) => all.iter().flat_map(|one| self.alternatives(one)).collect(),
            None if schema["type"] == "null" => Vec::new(),
            None => vec![schema],
        }
    }

    /// The value as the schema takes it, if nothing is wrong with it.
    fn accepted<'i>(&self, value: &Spanned<DeValue<'i>>, schema: &'a Value) -> Option<Spanned<DeValue<'i>>> {
        let mut walker = Walker { schema: self.schema, strings: self.strings, faults: Vec::new() };
        let mut value = value.clone();
        walker.value(&mut value, schema, "");
        walker.faults.is_empty().then_some(value)
    }

    /// Checks a value. `path` names it.
    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, schema: &'a Value, path: &str) {
        let alternatives = self.alternatives(schema);
        if let [only] = alternatives[..] {
            if !fits(only, value.get_ref()) && self.take_as_text(value, only) {
                return;
            }
            return self.single(value, only, path);
        }
        if let Some(accepted) = alternatives.iter().find_map(|one| self.accepted(value, one)) {
            *value = accepted;
            return;
        }
        if alternatives.iter().any(|one| self.take_as_text(value, one)) {
            return;
        }
        let fitting: Vec<&Value> =
            alternatives.iter().copied().filter(|one| fits(one, value.get_ref())).collect();
        match fitting[..] {
            [] => self.faults.push(wrong_type(&alternatives, value, path)),
            [only] => self.single(value, only, path),
            _ => {
                // Of several tables, the one with the fewest faults was probably meant.
                let faults = fitting.iter().map(|one| {
                    let mut walker =
                        Walker { schema: self.schema, strings: self.strings, faults: Vec::new() };
                    walker.single(&mut value.clone(), one, path);
                    walker.faults
                });
                let constants: Vec<&Value> = fitting.iter().flat_map(|one| constants(one)).collect();
                let fault = match (faults.min_by_key(Vec::len), constants.is_empty()) {
                    (Some(fewest), true) => fewest,
                    _ => vec![unknown_value(&constants, value, path)],
                };
                self.faults.extend(fault);
            }
        }
    }

    /// Makes a number or boolean that came from a variable or from `--set` the text it was written
    /// as, if the schema takes that; false if it does not.
    fn take_as_text(&self, value: &mut Spanned<DeValue<'_>>, schema: &'a Value) -> bool {
        let Some(text) = self.strings.texts.get(&value.span().start).filter(|_| !value.get_ref().is_str())
        else {
            return false;
        };
        let as_text = Spanned::new(value.span(), DeValue::String(text.clone().into()));
        let accepted = self.accepted(&as_text, schema).is_some();
        if accepted {
            *value = as_text;
        }
        accepted
    }

    /// Checks a value against a schema without alternatives.
    fn single(&mut self, value: &mut Spanned<DeValue<'_>>, schema: &'a Value, path: &str) {
        if !fits(schema, value.get_ref()) {
            self.faults.push(wrong_type(&[schema], value, path));
            return;
        }
        let constants = constants(schema);
        if !constants.is_empty() {
            if !constants.iter().any(|constant| is(value.get_ref(), constant)) {
                self.faults.push(unknown_value(&constants, value, path));
            }
            return;
        }
        let span = value.span();
        match value.get_mut() {
            DeValue::Integer(number) => {
                let parsed = i128::from_str_radix(number.as_str(), number.radix()).ok();
                let (least, most) = bounds(schema);
                let within = |number: i128| least <= number && number <= most;
                if schema["type"] != "number" && !parsed.is_some_and(within) {
                    let too_large = parsed.is_none_or(|number| number > most);
                    let label = format!("expected {}, found `{number}`", integer(schema, too_large));
                    self.faults.push(
                        Fault::at(span, format!("`{path}` has a value that is not allowed")).label(label),
                    );
                }
            }
            DeValue::Array(items) => {
                let length = |key: &str| schema[key].as_u64();
                let (least, most) = (length("minItems"), length("maxItems"));
                if least.is_some() && least == most && least != Some(items.len() as u64) {
                    let label = format!("expected {}, found {}", least.unwrap_or_default(), items.len());
                    self.faults
                        .push(Fault::at(span, format!("`{path}` has a wrong number of values")).label(label));
                }
                let first = schema["prefixItems"].as_array();
                for (at, item) in items.iter_mut().enumerate() {
                    if let Some(schema) =
                        first.and_then(|first| first.get(at)).or_else(|| schema.get("items"))
                    {
                        self.value(item, schema, &format!("{path}[{at}]"));
                    }
                }
            }
            DeValue::Table(table) => {
                let guessed = self.entries(table, schema, path, &[]);
                let missing = missing(table, schema, &guessed).collect();
                self.faults.extend(missing_fault(missing, &format!("`{path}`"), span));
            }
            _ => {}
        }
    }

    /// Checks the entries of a table. Gives the options that its unknown ones were probably meant
    /// to be.
    fn entries(
        &mut self,
        table: &mut DeTable<'_>,
        schema: &'a Value,
        path: &str,
        taken: &[&str],
    ) -> Vec<&'a str> {
        let properties = schema["properties"].as_object();
        let others = schema.get("additionalProperties").filter(|others| **others != Value::Bool(false));
        let anything = properties.is_none() && others.is_none() || schema.get("patternProperties").is_some();
        let known: Vec<&'a str> = properties.into_iter().flat_map(Map::keys).map(String::as_str).collect();
        let mut guessed = Vec::new();
        for (key, value) in table.iter_mut() {
            let name = key.get_ref().as_ref();
            let inner = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            if let Some(schema) = properties.and_then(|properties| properties.get(name)).or(others) {
                self.value(value, schema, &inner);
            } else if !anything {
                let all = || known.iter().chain(taken).copied();
                let fault = Fault::at(key.span(), format!("unknown option `{name}`"))
                    .label(format!("known: {}", list_names(all())));
                self.faults.push(did_you_mean(name, all()).into_iter().fold(fault, Fault::hint));
                guessed.extend(nearest(name, known.iter().copied()));
            }
        }
        guessed
    }
}

/// The options that a table lacks.
fn missing<'a>(table: &DeTable<'_>, schema: &'a Value, guessed: &[&str]) -> impl Iterator<Item = &'a str> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    required.filter(|name| !table.contains_key(*name) && !guessed.contains(name))
}

fn missing_fault(missing: Vec<&str>, what: &str, place: Range<usize>) -> Option<Fault> {
    let names: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
    let label = match names.len() {
        0 => return None,
        1 => "this option is required",
        _ => "these options are required",
    };
    Some(Fault::at(place, format!("{what} has no {}", names.join(" and no "))).label(label))
}

/// The values that a schema lists; none if it describes them.
fn constants(schema: &Value) -> Vec<&Value> {
    let listed = schema["enum"].as_array().into_iter().flatten().filter(|value| !value.is_null());
    schema.get("const").into_iter().chain(listed).collect()
}

/// Whether a TOML value is a constant of a schema.
fn is(value: &DeValue<'_>, constant: &Value) -> bool {
    match value {
        DeValue::String(text) => constant.as_str() == Some(text.as_ref()),
        DeValue::Boolean(value) => constant.as_bool() == Some(*value),
        DeValue::Integer(number) => constant
            .as_i64()
            .is_some_and(|constant| i64::from_str_radix(number.as_str(), number.radix()) == Ok(constant)),
        _ => false,
    }
}

/// The names of the types that a schema allows; none for every type.
fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
        }
        // An enum of a single sort.
        _ if constants(schema).iter().any(|value| value.is_string()) => vec!["string"],
        _ => Vec::new(),
    }
}

/// Whether a value is of a type that the schema allows.
fn fits(schema: &Value, value: &DeValue<'_>) -> bool {
    let types = types(schema);
    let is = |name: &&str| match value {
        DeValue::String(_) => *name == "string",
        DeValue::Integer(_) => matches!(*name, "integer" | "number"),
        DeValue::Float(_) => *name == "number",
        DeValue::Boolean(_) => *name == "boolean",
        DeValue::Array(_) => *name == "array",
        DeValue::Table(_) => *name == "object",
        DeValue::Datetime(_) => false,
    };
    types.is_empty() || types.iter().any(is)
}

/// The smallest and largest integer of a schema.
fn bounds(schema: &Value) -> (i128, i128) {
    let (least, most) = match schema["format"].as_str() {
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("uint64" | "uint") => (0, u64::MAX.into()),
        Some("int8") => (i8::MIN.into(), i8::MAX.into()),
        Some("int16") => (i16::MIN.into(), i16::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    };
    let given = |key: &str| schema[key].as_i64().map(i128::from);
    (
        given("minimum").map_or(least, |given| given.max(least)),
        given("maximum").map_or(most, |given| given.min(most)),
    )
}

/// An integer of a schema, in words. Large bounds are named only to those who passed them.
fn integer(schema: &Value, too_large: bool) -> String {
    let (least, most) = bounds(schema);
    let small = |bound: i128| bound.abs() <= i128::from(u16::MAX);
    match (small(least), small(most) || too_large) {
        (true, true) => format!("a whole number from {least} to {most}"),
        (true, false) => format!("a whole number of at least {least}"),
        (false, true) if too_large => format!("a whole number of at most {most}"),
        _ => "a whole number".into(),
    }
}

/// What a schema takes, in words.
fn expected(schema: &Value) -> String {
    let constants = constants(schema);
    if !constants.is_empty() {
        return list_names(constants.iter().map(|value| value.as_str().unwrap_or_default()));
    }
    let named = types(schema).into_iter().map(|name| match name {
        "integer" => integer(schema, false),
        "number" => "a number".into(),
        "boolean" => "`true` or `false`".into(),
        "string" => "a string".into(),
        "array" => "an array".into(),
        _ => "a table".into(),
    });
    named.collect::<Vec<_>>().join(" or ")
}

fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {:?}", text.as_ref()),
        DeValue::Integer(number) => format!("`{number}`"),
        DeValue::Float(number) => format!("`{number}`"),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(_) => "a date or time".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn wrong_type(alternatives: &[&Value], value: &Spanned<DeValue<'_>>, path: &str) -> Fault {
    let mut all: Vec<String> = Vec::new();
    for schema in alternatives.iter().map(|schema| expected(schema)) {
        if !all.contains(&schema) {
            all.push(schema);
        }
    }
    let label = format!("expected {}, found {}", all.join(" or "), found(value.get_ref()));
    Fault::at(value.span(), format!("`{path}` has the wrong type")).label(label)
}

fn unknown_value(constants: &[&Value], value: &Spanned<DeValue<'_>>, path: &str) -> Fault {
    let names = || constants.iter().filter_map(|constant| constant.as_str());
    let DeValue::String(written) = value.get_ref() else {
        let all: Vec<String> = constants.iter().map(ToString::to_string).collect();
        let fault = Fault::at(value.span(), format!("`{path}` has a value that is not allowed"));
        return fault.label(format!("expected {}, found {}", all.join(" or "), found(value.get_ref())));
    };
    let fault = Fault::at(value.span(), format!("unknown value `{written}` for `{path}`"))
        .label(format!("expected {}", list_names(names())));
    did_you_mean(written, names()).into_iter().fold(fault, Fault::hint)
}

/// The name of the entry at a place, as a person writes it: `resize.size`, `rules[2].code`.
fn path_of(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    fn inside(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
        match value.get_ref() {
            DeValue::Table(inner) => path_of(inner, span).map(|path| format!(".{path}")),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(at, item)| {
                let rest = if item.span() == *span { Some(String::new()) } else { inside(item, span) };
                rest.map(|rest| format!("[{at}]{rest}"))
            }),
            _ => None,
        }
    }
    let mut entries = table.iter();
    let own = entries.find(|(key, value)| key.span() == *span || value.span() == *span);
    own.map(|(key, _)| key.get_ref().to_string()).or_else(|| {
        let mut entries = table.iter();
        entries.find_map(|(key, value)| inside(value, span).map(|rest| format!("{}{rest}", key.get_ref())))
    })
}
