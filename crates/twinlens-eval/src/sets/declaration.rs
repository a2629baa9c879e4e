//! What a set's file says. One TOML file a set; everything that can be wrong with it is found when
//! it is read.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::read::Reader;
use crate::metrics::Metric;
use crate::prompts::check_templates;

/// What is asked of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class an image.
    #[default]
    Classification,
    /// Any number of classes an image.
    MultiLabel,
    /// Images and texts that belong together.
    Retrieval,
}

impl Task {
    /// As it is written in a set's file.
    pub fn name(self) -> &'static str {
        match self {
            Task::Classification => "classification",
            Task::MultiLabel => "multi-label",
            Task::Retrieval => "retrieval",
        }
    }
}

/// One class: its place in the list is its label id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// As prompts name it.
    pub name: String,
    /// What the data call it (a folder, a `ClassLabel`), where that is not the name.
    #[serde(default)]
    pub label: Option<String>,
    /// Other names: a class's text embedding is the mean over all of its names.
    #[serde(default)]
    pub synonyms: Vec<String>,
}

/// The classes of a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClassList {
    /// The data name them, and nothing else does.
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
    // By hand: an untagged enum would answer every mistake with "did not match any variant".
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

/// A declared evaluation set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// Its name in options and results; also that of its folder under `data`.
    pub name: String,
    /// As papers call it.
    pub title: String,
    /// What is asked of a model.
    #[serde(default)]
    pub task: Task,
    /// The metric that sums it up: one of [`Metric`], or of a retrieval set `recall@1`, `recall@5`,
    /// `recall@10`.
    #[serde(default = "top1")]
    pub metric: String,
    /// What guessing reaches in that metric; checked against what follows from the number of
    /// classes.
    #[serde(default)]
    pub chance: Option<f64>,
    /// The classes by label id.
    #[serde(default)]
    pub classes: ClassList,
    /// How many classes there are, where the data name them.
    #[serde(default)]
    pub class_count: Option<usize>,
    /// The set's own templates.
    #[serde(default)]
    pub templates: Vec<String>,
    /// The part that is evaluated.
    #[serde(default = "test")]
    pub split: String,
    /// Images of each part, as published.
    #[serde(default)]
    pub splits: BTreeMap<String, u64>,
    /// Sense fixes: what prompts call a class that the data name otherwise.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Other names that its folder may have.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// How the files lie as their authors give them out. Parquet of the Hugging Face hub and tar
    /// files of CLIP_benchmark are told by themselves.
    #[serde(default)]
    pub reader: Option<Reader>,
    /// Under which terms the images may be used.
    pub licence: String,
    /// Where it comes from.
    pub source: String,
    /// What to do to have it.
    pub how_to_get: String,
}

fn top1() -> String {
    Metric::Top1.name().into()
}

fn test() -> String {
    "test".into()
}

/// The metrics of retrieval, and their `k`.
const RECALLS: [(&str, u64); 3] = [("recall@1", 1), ("recall@5", 5), ("recall@10", 10)];

impl Declaration {
    /// Reads a set's file.
    ///
    /// # Errors
    /// What is wrong with it, with its place where it is the syntax.
    pub fn parse(text: &str) -> Result<Self, String> {
        let set: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let faults = set.faults();
        if faults.is_empty() { Ok(set) } else { Err(faults.join("; ")) }
    }

    /// The listed classes; none where the data name them.
    pub fn listed(&self) -> Option<&[Class]> {
        match &self.classes {
            ClassList::Listed(list) => Some(list),
            ClassList::FromTheData => None,
        }
    }

    /// How many classes there are, as far as the declaration knows.
    pub fn class_count(&self) -> Option<usize> {
        self.listed().map(<[Class]>::len).or(self.class_count)
    }

    /// The metric, where it is one of a classification.
    pub fn main_metric(&self) -> Option<Metric> {
        Metric::ALL.into_iter().find(|metric| metric.name() == self.metric)
    }

    /// What guessing reaches in the main metric, as far as it follows from the declaration; of a
    /// multi-label set it depends on the data. Retrieval: the share of `k` candidates among all,
    /// for a text that has one image.
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
                "`name` is {:?}: small letters, digits, `-`, `_` and `.` are expected",
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
                "`metric` is `{}`, which is none of a {} set",
                self.metric,
                self.task.name()
            ));
        }
        if let (Some(written), Some(derived)) = (self.chance, self.chance())
            && (written - derived).abs() > 5e-4 * derived.max(1e-3)
        {
            faults.push(format!("`chance` is {written}, but {} of guessing is {derived:.6}", self.metric));
        }
        if !self.templates.is_empty()
            && let Err(why) = check_templates(&self.templates)
        {
            faults.push(format!("`templates`: {why}"));
        }
        if let Some(list) = self.listed() {
            faults.extend(class_faults(list));
            if self.class_count.is_some() {
                faults.push("`class_count` is for classes that the data name".into());
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

/// Duplicate and empty names. That two names read alike is a warning, and comes with the results.
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
            faults.push(format!("the class name `{}` is there twice (the second is class {id})", class.name));
        } else if !labels.insert(label.as_str()) {
            faults.push(format!("two classes have the label `{label}` (the second is class {id})"));
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
    fn a_file_is_read_or_says_what_is_wrong() {
        let set = Declaration::parse(GOOD).unwrap();
        assert_eq!((set.class_count(), set.chance(), set.split.as_str()), (Some(2), Some(0.5), "test"));
        let cases = [
            ("chance = 0.5", "chance = 0.1", "but top1 of guessing is 0.5"),
            ("\"zero\"", "\"one\"", "`one` is there twice (the second is class 1)"),
            ("\"zero\"", "\" \"", "the name of class 0 is empty"),
            ("\"zero\"", "7", "a class name, or a table"),
            ("name = \"digits\"", "name = \"../digits\"", "`name` is"),
            ("licence = \"MIT\"", "licence = \"\"", "`licence` is empty"),
            (
                "licence = \"MIT\"",
                "licence = \"MIT\"\nmetric = \"map\"",
                "`map`, which is none of a classification set",
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
