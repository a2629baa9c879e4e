//! Evaluation sets: images, and labels that the data binds to class names.
//!
//! A class id is a position in the sorted names in the data, or in a list in the pipeline file; it
//! never depends on the order of files or directories. Labels that silently mean another class are
//! the most common cause of a wrong accuracy.

mod classes;
mod labels;
mod lists;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use twinlens_pipeline::{Fault, Input, Located};

use crate::metrics::Metric;
pub(crate) use classes::{Classes, SetFault};
pub(crate) use labels::hub_class_names;
pub(crate) use labels::{LabelColumn, Labels, check_image, list_items};
pub(crate) use lists::side_by_side;

/// One entry of the option `sets`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum SetEntry {
    /// The name of a declared set (`twinlens sets` lists them), or the path of a `.toml` file that
    /// declares one. Its data are expected in the directory `data`; a set without data is skipped
    /// with a warning. Or data without a declaration (a value with a `/`): a directory with a
    /// directory of images per class, whose names are the classes, or a Parquet file of images and
    /// labels.
    Declared(String),
    /// A set described here.
    Described(Box<SetOptions>),
}

impl<'de> Deserialize<'de> for SetEntry {
    // By hand: an untagged enum would report every mistake as "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = SetEntry;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a declared set, or a table { name, input, label, ... }")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<SetEntry, E> {
                Ok(SetEntry::Declared(name.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SetEntry, A::Error> {
                let set = SetOptions::deserialize(MapAccessDeserializer::new(map))?;
                Ok(SetEntry::Described(Box::new(set)))
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}

impl SetEntry {
    pub(crate) fn described(&self) -> Option<&SetOptions> {
        match self {
            Self::Described(set) => Some(set),
            Self::Declared(_) => None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Described(set) => set.name.value(),
            Self::Declared(name) => name,
        }
    }
}

/// An evaluation set that the pipeline file describes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetOptions {
    /// The name of the set in the results.
    pub name: Located<String>,
    /// The examples: a stage, or the path of a Parquet file or dataset, with a column of images:
    /// `struct<bytes, path>` (Hugging Face `Image`) or binary.
    pub input: Input,
    /// The column with each example's class: a name, or an index into `class_names`. A list of them
    /// makes the set multi-label: an example may have several classes or none, and is scored by
    /// ranking (`map`, `map_11_point`).
    pub label: Located<String>,
    /// The name of the split in the results. [default: the input's name]
    #[serde(default)]
    pub split: Option<String>,
    /// The image column. [default: image]
    #[serde(default)]
    pub image: Option<Located<String>>,
    /// The candidate classes: a list of names, whose order gives the class ids, or a stage or file
    /// whose label column has them (distinct values, sorted). [default: the distinct labels of the
    /// input, sorted]
    #[serde(default)]
    pub classes: Option<Located<ClassOptions>>,
    /// For integer labels: the names of labels 0, 1, and so on. [default: the `ClassLabel` names
    /// that Hugging Face's `datasets` writes into a Parquet file]
    #[serde(default)]
    pub class_names: Option<Located<Vec<String>>>,
    /// Renames classes in prompts and results: `{ "smileys-emotion" = "smileys & emotion" }`.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Synonyms of classes: `{ "happy" = ["smiling"] }`. The text embedding of a class is the mean
    /// over all of its names.
    #[serde(default)]
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// The set's own templates, used for `ensemble` and `own`.
    #[serde(default)]
    pub templates: Option<Located<Vec<String>>>,
    /// A stage or file with the training images, with `sha256`, `phash` or both, as `fetch` writes
    /// them: the results then also have rows for the images among them (`overlap`) and for the
    /// others (`clean`).
    #[serde(default)]
    pub overlap_with: Option<Input>,
    /// The main metric: it comes first in the results and in the log. [default: top1, or map]
    #[serde(default)]
    pub main_metric: Option<Metric>,
}

impl SetOptions {
    /// A set with the options needed to read its labels.
    pub(crate) fn labels_only(
        name: Located<String>,
        input: Input,
        label: Located<String>,
        class_names: Option<Located<Vec<String>>>,
    ) -> Self {
        Self {
            name,
            input,
            label,
            split: None,
            image: None,
            classes: None,
            class_names,
            names: BTreeMap::new(),
            synonyms: BTreeMap::new(),
            templates: None,
            overlap_with: None,
            main_metric: None,
        }
    }

    pub(crate) fn image_column(&self) -> &str {
        self.image.as_ref().map_or("image", |column| column.value())
    }

    /// The input with the classes, if it is another one.
    pub(crate) fn classes_input(&self) -> Option<Input> {
        let classes = self.classes.as_ref()?;
        match classes.value() {
            ClassOptions::From(name) => Some(Input(Located::new(name.clone(), classes.span()))),
            ClassOptions::List(_) => None,
        }
    }
}

/// Where the classes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ClassOptions {
    /// A stage or file.
    From(String),
    /// Their names, in the order of their ids.
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for ClassOptions {
    // By hand: an untagged enum would report every mistake as "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ClassesVisitor;
        impl<'de> Visitor<'de> for ClassesVisitor {
            type Value = ClassOptions;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of class names, or the name of a stage or file")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<ClassOptions, E> {
                Ok(ClassOptions::From(name.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<ClassOptions, A::Error> {
                let mut list = Vec::new();
                while let Some(name) = names.next_element()? {
                    list.push(name);
                }
                Ok(ClassOptions::List(list))
            }
        }
        deserializer.deserialize_any(ClassesVisitor)
    }
}

/// Checks that the sets of an option have distinct, nonempty names, and that there are any.
pub(crate) fn check_set_names<'a>(
    option: Range<usize>,
    names: impl Iterator<Item = (&'a str, Range<usize>)>,
) -> Vec<Fault> {
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (name, span) in names {
        if name.trim().is_empty() {
            faults.push(Fault::at(span, "the evaluation set has an empty name"));
        } else if !seen.insert(name) {
            faults.push(Fault::at(span, format!("there are two evaluation sets `{name}`")));
        }
    }
    if seen.is_empty() && faults.is_empty() {
        faults.push(Fault::at(option, "there are no evaluation sets").label("expected at least one"));
    }
    faults
}
