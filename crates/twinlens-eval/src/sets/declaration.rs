//! The declaration of an evaluation set: one TOML file per set, fully validated when it is parsed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::layout::Reader;
use crate::metrics::Metric;
use crate::prompts::check_templates;

/// What the model has to predict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class per image.
    #[default]
    Classification,
    /// Any number of classes per image.
    MultiLabel,
    /// Matching images and texts.
    Retrieval,
}

impl Task {
    /// The spelling in declarations.
    pub fn name(self) -> &'static str {
        match self {
            Task::Classification => "classification",
            Task::MultiLabel => "multi-label",
            Task::Retrieval => "retrieval",
        }
    }
}

/// One class: its position in the list is its label id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The name in prompts.
    pub name: String,
    /// The name in the data (a directory, a `ClassLabel`), if it differs.
    #[serde(default)]
    pub label: Option<String>,
    /// Other names: the text embedding of a class is the mean over all its names.
    #[serde(default)]
    pub synonyms: Vec<String>,
}

/// The classes of a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClassList {
    /// Only the data name the classes.
    #[default]
    FromTheData,
    /// By label id.
    Listed(Vec<Class>),
}

const FROM_THE_DATA: &str = "from the data";

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Entry;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a class name, or a table { name, label, synonyms }")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Entry, E> {
                Ok(Entry(Class { name: name.into(), label: None, synonyms: Vec::new() }))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                Class::deserialize(MapAccessDeserializer::new(map)).map(Entry)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

struct Entry(Class);

impl<'de> Deserialize<'de> for ClassList {
    // By hand: an untagged enum would report every mistake as "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ClassList;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of classes by label id, or \"{FROM_THE_DATA}\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ClassList, E> {
                match text {
                    FROM_THE_DATA => Ok(ClassList::FromTheData),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ClassList, A::Error> {
                let list = Vec::<Entry>::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(ClassList::Listed(list.into_iter().map(|Entry(class)| class).collect()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for ClassList {
    fn schema_name() -> Cow<'static, str> {
        "ClassList".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let class = generator.subschema_for::<Class>();
        json_schema!({
            "description": "The classes by label id, or that only the data name them.",
            "anyOf": [
                { "const": FROM_THE_DATA },
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, class] } },
            ],
        })
    }
}

/// The JSON Schema of files that declare an evaluation set.
pub fn declaration_schema() -> serde_json::Value {
    schema_for!(Declaration).to_value()
}

/// A declared evaluation set.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The name in options and results, and of the directory under `data`.
    pub name: String,
    /// The name in papers.
    pub title: String,
    /// What the model has to predict.
    #[serde(default)]
    pub task: Task,
    /// The main metric: one of [`Metric`], or for retrieval `recall@1`, `recall@5` or `recall@10`.
    #[serde(default = "top1")]
    pub metric: String,
    /// The value of the main metric for random guessing; checked against the value that follows
    /// from the number of classes.
    #[serde(default)]
    pub chance: Option<f64>,
    #[serde(default)]
    pub classes: ClassList,
    /// The number of classes, if only the data name them.
    #[serde(default)]
    pub class_count: Option<usize>,
    /// The set's own prompt templates.
    #[serde(default)]
    pub templates: Vec<String>,
    /// The split to evaluate.
    #[serde(default = "test")]
    pub split: String,
    /// Published number of images per split.
    #[serde(default)]
    pub splits: BTreeMap<String, u64>,
    /// Corrections for ambiguous names: from the name in the data to the name in prompts.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Other names of the directory under `data`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The layout of the files as published by the authors. Parquet files of the Hugging Face Hub
    /// and tar files of CLIP_benchmark are detected without it.
    #[serde(default)]
    pub reader: Option<Reader>,
    /// The licence of the images.
    pub licence: String,
    /// Where the images come from: a URL, or a citation.
    pub source: String,
    /// How to download the data and where to put them.
    pub how_to_get: String,
    /// Whether nobody declared the set: there are only data.
    #[serde(skip)]
    pub undeclared: bool,
}

fn top1() -> String {
    Metric::Top1.name().into()
}

fn test() -> String {
    "test".into()
}

/// The main metrics of retrieval sets, and their `k`.
const RECALLS: [(&str, u64); 3] = [("recall@1", 1), ("recall@5", 5), ("recall@10", 10)];

impl Declaration {
    /// Parses and validates a declaration.
    ///
    /// # Errors
    /// What is wrong; for a syntax error with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let set: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let faults = set.faults();
        if faults.is_empty() { Ok(set) } else { Err(faults.join("; ")) }
    }

    /// The listed classes; `None` if only the data name them.
    pub fn listed(&self) -> Option<&[Class]> {
        match &self.classes {
            ClassList::Listed(list) => Some(list),
            ClassList::FromTheData => None,
        }
    }

    /// The number of classes, if declared.
    pub fn class_count(&self) -> Option<usize> {
        self.listed().map(<[Class]>::len).or(self.class_count)
    }

    /// The main metric; `None` for retrieval.
    pub fn main_metric(&self) -> Option<Metric> {
        Metric::ALL.into_iter().find(|metric| metric.name() == self.metric)
    }

    /// The value of the main metric for random guessing, if it follows from the declaration; for a
    /// multi-label set it depends on the data. For retrieval: `k` divided by the number of
    /// candidates, for a text with one matching image.
    pub fn chance(&self) -> Option<f64> {
        if self.task == Task::Retrieval {
            let (_, k) = RECALLS.iter().find(|(name, _)| *name == self.metric)?;
            return Some(*k as f64 / *self.splits.get(&self.split)? as f64);
        }
        self.main_metric()?.chance(self.class_count()?)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(good) || self.name.starts_with('.') {
            faults.push(format!(
                "`name` is {:?}: use lowercase letters, digits, `-`, `_` and `.`, and no `.` at the start",
                self.name
            ));
        }
        let known = match self.task {
            Task::Retrieval => RECALLS.iter().any(|(name, _)| *name == self.metric),
            Task::Classification => self.main_metric().is_some_and(|metric| !metric.is_multi_label()),
            Task::MultiLabel => self.main_metric().is_some_and(Metric::is_multi_label),
        };
        if !known {
            faults.push(format!(
                "`metric` is `{}`, which is not a metric of {} sets",
                self.metric,
                self.task.name()
            ));
        }
        if let (Some(written), Some(derived)) = (self.chance, self.chance())
            && (written - derived).abs() > 5e-4 * derived.max(1e-3)
        {
            faults.push(format!(
                "`chance` is {written}, but guessing reaches a {} of {derived:.6}",
                self.metric
            ));
        }
        if !self.templates.is_empty()
            && let Err(why) = check_templates(&self.templates)
        {
            faults.push(format!("`templates`: {why}"));
        }
        if let Some(list) = self.listed() {
            faults.extend(class_faults(list));
            if self.class_count.is_some() {
                faults.push("`class_count` is only allowed if the classes come from the data".into());
            }
        }
        for (what, text) in [
            ("licence", &self.licence),
            ("source", &self.source),
            ("how_to_get", &self.how_to_get),
            ("title", &self.title),
        ] {
            if text.trim().is_empty() {
                faults.push(format!("`{what}` is empty"));
            }
        }
        faults
    }
}

/// Reports duplicate and empty names. Similar names only cause a warning in the results.
fn class_faults(list: &[Class]) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
    if list.is_empty() {
        faults.push("`classes` is empty".into());
    }
    for (id, class) in list.iter().enumerate() {
        let label = class.label.as_ref().unwrap_or(&class.name);
        if class.name.trim().is_empty() || class.synonyms.iter().any(|name| name.trim().is_empty()) {
            faults.push(format!("the name of class {id} is empty"));
        }
        if !names.insert(class.name.trim()) {
            faults.push(format!("duplicate class name `{}` (class {id})", class.name));
        } else if !labels.insert(label.as_str()) {
            faults.push(format!("duplicate label `{label}` (class {id})"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "digits"
title = "Digits"
classes = ["zero", { name = "one", label = "1", synonyms = ["a one"] }]
chance = 0.5
licence = "MIT"
source = "https://example.org"
how_to_get = "prepare"
"#;

    #[test]
    fn declarations_are_parsed_and_validated() {
        let set = Declaration::parse(GOOD).unwrap();
        assert_eq!((set.class_count(), set.chance(), set.split.as_str()), (Some(2), Some(0.5), "test"));
        let cases = [
            ("chance = 0.5", "chance = 0.1", "but guessing reaches a top1 of 0.5"),
            ("\"zero\"", "\"one\"", "duplicate class name `one` (class 1)"),
            ("\"zero\"", "\" \"", "the name of class 0 is empty"),
            ("\"zero\"", "7", "a class name, or a table"),
            ("name = \"digits\"", "name = \"../digits\"", "`name` is"),
            ("licence = \"MIT\"", "licence = \"\"", "`licence` is empty"),
            (
                "licence = \"MIT\"",
                "licence = \"MIT\"\nmetric = \"map\"",
                "`map`, which is not a metric of classification sets",
            ),
            ("licence = \"MIT\"", "licence = \"MIT\"\ntemplates = [\"a photo\"]", "`templates`"),
            ("title", "tilte", "unknown field `tilte`"),
        ];
        for (from, to, expected) in cases {
            let error = Declaration::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let retrieval = "task = \"retrieval\"\nmetric = \"recall@5\"\nsplits = { test = 1000 }\nlicence";
        let set = GOOD.replacen("licence", retrieval, 1).replacen("chance = 0.5", "chance = 0.005", 1);
        assert_eq!(Declaration::parse(&set).unwrap().chance(), Some(0.005));
    }
}
