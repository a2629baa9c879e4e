//! Evaluation sets: images, and labels that are bound to class names in the data itself.
//!
//! A class id is a place in the sorted list of names that the data holds (or in a list that the
//! pipeline gives); it never comes from the order of files or folders. Labels that silently mean
//! another class are the commonest way to a wrong accuracy.

mod classes;
mod labels;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use twinlens_pipeline::{Fault, Input, Located};

use crate::metrics::Metric;
pub use classes::{ClassFault, Classes};
pub(crate) use labels::hub_class_names;
pub use labels::{LabelColumn, LabelKind, Labels, check_image, check_label, items_of};

/// One entry of the option `sets`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum SetEntry {
    /// The name of a set that is declared (`twinlens sets` lists them), or the path of a file that
    /// declares one, which ends in `.toml`. Its data are looked for in the folder `data`; a set
    /// that is not there is skipped, with a warning.
    Declared(String),
    /// A set described here.
    Described(Box<SetOptions>),
}

impl<'de> Deserialize<'de> for SetEntry {
    // By hand: an untagged enum would answer every mistake with "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
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
        deserializer.deserialize_any(Either)
    }
}

impl SetEntry {
    /// The set that is described here.
    pub fn described(&self) -> Option<&SetOptions> {
        match self {
            Self::Described(set) => Some(set),
            Self::Declared(_) => None,
        }
    }

    /// As the option names it.
    pub fn name(&self) -> &str {
        match self {
            Self::Described(set) => set.name.value(),
            Self::Declared(name) => name,
        }
    }
}

/// One evaluation set, as the pipeline file describes it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetOptions {
    /// Its name in the results.
    pub name: Located<String>,
    /// The examples: a stage, or the path of a Parquet file or dataset, with an image column in the
    /// Hugging Face layout (`struct<bytes, path>`).
    pub input: Input,
    /// The column that holds each example's class: its name, or an integer that `class_names`
    /// names. Or a list of them: an example may then have several classes or none, and is scored by
    /// ranking (`map`, `map_11_point`).
    pub label: Located<String>,
    /// What the results call the part that is evaluated. [default: the input's name]
    #[serde(default)]
    pub split: Option<String>,
    /// The column that holds the images. [default: image]
    #[serde(default)]
    pub image: Option<Located<String>>,
    /// The classes among which is chosen: a list of names, whose order gives the class ids, or a
    /// stage or file whose distinct values in a column of the label's name are taken, sorted.
    /// [default: the distinct labels of the input, sorted]
    #[serde(default)]
    pub classes: Option<Located<ClassOptions>>,
    /// For integer labels: the name of label 0, of label 1, and so on. [default: the `ClassLabel`
    /// names that Hugging Face's `datasets` writes into a Parquet file]
    #[serde(default)]
    pub class_names: Option<Located<Vec<String>>>,
    /// Other words for some classes in prompts and results: `{ "smileys-emotion" = "smileys &
    /// emotion" }`.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Further names of some classes: a class's text embedding is the mean over all of its names.
    /// `{ "happy" = ["smiling"] }`.
    #[serde(default)]
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// The set's own templates, which `ensemble` and `own` then stand for.
    #[serde(default)]
    pub templates: Option<Located<Vec<String>>>,
    /// A stage or file whose images were trained on, with `sha256`, `phash` or both, as `fetch`
    /// writes them: the results then say besides how the images do that it holds too (`overlap`),
    /// and the others (`clean`).
    #[serde(default)]
    pub overlap_with: Option<Input>,
    /// The metric that sums the set up: it comes first in the results, and is told when the set is
    /// done. [default: top1, or map]
    #[serde(default)]
    pub main_metric: Option<Metric>,
}

impl SetOptions {
    /// A set without more than is needed to read its labels.
    pub(crate) fn plain(
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

    /// The name of the image column.
    pub fn image_column(&self) -> &str {
        self.image.as_ref().map_or("image", |column| column.value())
    }

    /// The input that holds the classes, where it is another one.
    pub fn classes_input(&self) -> Option<Input> {
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
pub enum ClassOptions {
    /// A stage or file.
    From(String),
    /// Their names, in the order of their ids.
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for ClassOptions {
    // By hand: an untagged enum would answer every mistake with "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
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
        deserializer.deserialize_any(Either)
    }
}

/// What is wrong with the names of an option's sets, each with its place: one is empty, or there
/// twice; or there are none.
pub(crate) fn name_faults<'a>(
    option: Range<usize>,
    names: impl Iterator<Item = (&'a str, Range<usize>)>,
) -> Vec<Fault> {
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (name, place) in names {
        if name.trim().is_empty() {
            faults.push(Fault::at(place, "the evaluation set has an empty name"));
        } else if !seen.insert(name) {
            faults.push(Fault::at(place, format!("there are two evaluation sets `{name}`")));
        }
    }
    if seen.is_empty() && faults.is_empty() {
        faults.push(Fault::at(option, "there is no evaluation set").label("at least one set"));
    }
    faults
}
