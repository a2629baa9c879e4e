//! Evaluation sets: images, and labels that are bound to class names in the data itself.
//!
//! A class id is a place in the sorted list of names that the data holds (or in a list that the pipeline gives);
//! it never comes from the order of files or folders. Labels that silently mean another class are the commonest
//! way to a wrong accuracy.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, Schema};
use arrow::error::ArrowError;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use twinlens_pipeline::suggest::{did_you_mean, listed};
use twinlens_pipeline::{Input, Located};

use crate::metrics::Metric;
use crate::prompts::list_hash;

/// One entry of the option `sets`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum SetEntry {
    /// The name of a set that is declared (`twinlens sets` lists them), or the path of a file that declares one, which ends in `.toml`. Its
    /// data are looked for in the folder `data`; a set that is not there is skipped, with a warning.
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
    /// The examples: a stage, or the path of a Parquet file or dataset, with an image column in the Hugging Face
    /// layout (`struct<bytes, path>`).
    pub input: Input,
    /// The column that holds each example's class: its name, or an integer that `class_names` names. Or a list of them: an example may
    /// then have several classes or none, and is scored by ranking (`map`, `map_11_point`).
    pub label: Located<String>,
    /// What the results call the part that is evaluated. [default: the input's name]
    #[serde(default)]
    pub split: Option<String>,
    /// The column that holds the images. [default: image]
    #[serde(default)]
    pub image: Option<Located<String>>,
    /// The classes among which is chosen: a list of names, whose order gives the class ids, or a stage or file
    /// whose distinct values in a column of the label's name are taken, sorted. [default: the distinct labels of
    /// the input, sorted]
    #[serde(default)]
    pub classes: Option<Located<ClassOptions>>,
    /// For integer labels: the name of label 0, of label 1, and so on. [default: the `ClassLabel` names that
    /// Hugging Face's `datasets` writes into a Parquet file]
    #[serde(default)]
    pub class_names: Option<Located<Vec<String>>>,
    /// Other words for some classes in prompts and results: `{ "smileys-emotion" = "smileys & emotion" }`.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Further names of some classes: a class's text embedding is the mean over all of its names. `{ "happy" = ["smiling"] }`.
    #[serde(default)]
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// The set's own templates, which `ensemble` and `own` then stand for.
    #[serde(default)]
    pub templates: Option<Located<Vec<String>>>,
    /// A stage or file whose images were trained on, with `sha256`, `phash` or both, as `fetch` writes them: the results then say besides how
    /// the images do that it holds too (`overlap`), and the others (`clean`).
    #[serde(default)]
    pub overlap_with: Option<Input>,
    /// The metric that sums the set up: it comes first in the results, and is told when the set is done. [default: top1, or map]
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

/// What is wrong with a list of classes, naming the class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassFault {
    /// The sentence.
    pub why: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// The classes of a set: ids, the labels in the data that mean them, and the names that go into prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    ids: HashMap<String, usize>,
    names: Vec<String>,
    synonyms: Vec<Vec<String>>,
}

impl Classes {
    /// Classes whose ids are the places in `labels`; `renames` gives some of them other names.
    ///
    /// # Errors
    /// No class at all; an empty name; two classes of one name (compared after white space at the ends is
    /// removed, as a tokenizer does not see it); a rename of a class that is not there.
    pub fn new(labels: Vec<String>, renames: &BTreeMap<String, String>) -> Result<Self, ClassFault> {
        let fault = |why: String, hint: Option<String>| Err(ClassFault { why, hint });
        if labels.is_empty() {
            return fault("there are no classes: it has no labelled row".into(), None);
        }
        if let Some(name) = renames.keys().find(|name| !labels.contains(*name)) {
            let hint = did_you_mean(name, labels.iter().map(String::as_str));
            return fault(format!("`names` renames the class `{name}`, which is not there"), hint);
        }
        let mut seen: HashMap<String, &str> = HashMap::new();
        let mut names = Vec::with_capacity(labels.len());
        for (id, label) in labels.iter().enumerate() {
            let name = renames.get(label).unwrap_or(label).trim().to_string();
            if name.is_empty() {
                let hint = "filter such rows out, or give the class a name in `names`";
                return fault(
                    format!("the name of class {id} (label {label:?}) is empty"),
                    Some(hint.into()),
                );
            }
            if let Some(twin) = seen.insert(name.clone(), label) {
                let hint = "a prompt must tell the senses apart: `names = { \"crane\" = \"crane (bird)\" }`";
                return fault(
                    format!("the class name `{name}` is there twice (labels {twin:?} and {label:?})"),
                    Some(hint.into()),
                );
            }
            names.push(name);
        }
        let synonyms = vec![Vec::new(); names.len()];
        let ids = labels.into_iter().enumerate().map(|(id, label)| (label, id)).collect();
        Ok(Self { ids, names, synonyms })
    }

    /// With further names of some classes, by label.
    ///
    /// # Errors
    /// Names of a class that is not there, or an empty one.
    pub fn with_synonyms(mut self, synonyms: &BTreeMap<String, Vec<String>>) -> Result<Self, ClassFault> {
        for (label, names) in synonyms {
            let Some(id) = self.id(label) else {
                let hint = did_you_mean(label, self.ids.keys().map(String::as_str));
                return Err(ClassFault {
                    why: format!("`synonyms` name the class `{label}`, which is not there"),
                    hint,
                });
            };
            if names.iter().any(|name| name.trim().is_empty()) {
                return Err(ClassFault {
                    why: format!("a synonym of the class `{label}` is empty"),
                    hint: None,
                });
            }
            self.synonyms[id] = names.iter().map(|name| name.trim().to_string()).collect();
        }
        Ok(self)
    }

    /// All names of each class, by id: that of the results comes first.
    pub fn all_names(&self) -> Vec<Vec<String>> {
        let all =
            |(name, others): (&String, &Vec<String>)| std::iter::once(name).chain(others).cloned().collect();
        self.names.iter().zip(&self.synonyms).map(all).collect()
    }

    /// The id of a label.
    pub fn id(&self, label: &str) -> Option<usize> {
        self.ids.get(label).copied()
    }

    /// Names by id, as in prompts and results.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// SHA-256 of the names in the order of their ids; where there are synonyms, of those too.
    pub fn hash(&self) -> String {
        if self.synonyms.iter().all(Vec::is_empty) {
            return list_hash(&self.names);
        }
        list_hash(&self.all_names().iter().map(|names| list_hash(names)).collect::<Vec<_>>())
    }
}

/// Reads the label column of a table: strings as they are, integers through the names of the classes.
#[derive(Debug, Clone)]
pub struct Labels {
    column: String,
    class_names: Option<Vec<String>>,
    several: bool,
}

impl Labels {
    /// A reader for a table of `schema`. `class_names` are those of the pipeline file; integer labels without any
    /// take the ones that Hugging Face's `datasets` keeps in the schema.
    ///
    /// # Errors
    /// The column is missing, is neither string nor integer, or is of integers that nothing names.
    pub fn new(schema: &Schema, column: &str, class_names: Option<&[String]>) -> Result<Self, ClassFault> {
        let LabelKind { integer, several } = check_label(schema, column)?;
        if !integer {
            return match class_names {
                None => Ok(Self { column: column.into(), class_names: None, several }),
                Some(_) => Err(ClassFault {
                    why: format!(
                        "`class_names` name integer labels, but the column `{column}` holds strings"
                    ),
                    hint: Some("leave `class_names` out, or rename classes with `names`".into()),
                }),
            };
        }
        match class_names.map(<[String]>::to_vec).or_else(|| hub_class_names(schema, column)) {
            Some(names) => Ok(Self { column: column.into(), class_names: Some(names), several }),
            None => Err(ClassFault {
                why: format!(
                    "the labels in the column `{column}` are integers, and nothing says which classes they mean"
                ),
                hint: Some("give `class_names = [\"name of label 0\", \"name of label 1\", ...]`".into()),
            }),
        }
    }

    /// The class names of integer labels, by label.
    pub fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    /// Whether an example may have several classes.
    pub fn several(&self) -> bool {
        self.several
    }

    /// The label of each row of a column that [`Labels::new`] accepted; of lists, that of each of their items.
    pub fn read(&self, column: &ArrayRef) -> Result<LabelColumn<'_>, ArrowError> {
        let items = match column.data_type() {
            DataType::List(_) => Some(column.as_list::<i32>().values()),
            DataType::LargeList(_) => Some(column.as_list::<i64>().values()),
            _ => None,
        };
        let column = items.unwrap_or(column);
        Ok(match &self.class_names {
            None => LabelColumn::Names(cast(column, &DataType::Utf8)?.as_string::<i32>().clone()),
            Some(names) => LabelColumn::Numbers(
                cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone(),
                names,
            ),
        })
    }

    /// The column's name.
    pub fn column(&self) -> &str {
        &self.column
    }
}

/// The labels of some rows.
#[derive(Debug)]
pub enum LabelColumn<'a> {
    /// Class names.
    Names(StringArray),
    /// Integers, and the names that they mean.
    Numbers(Int64Array, &'a [String]),
}

impl LabelColumn<'_> {
    /// The class name of a row, or what is there in its place: `Ok(None)` for null.
    ///
    /// # Errors
    /// An integer outside the class names, as text.
    pub fn get(&self, row: usize) -> Result<Option<&str>, String> {
        match self {
            Self::Names(names) => Ok(names.is_valid(row).then(|| names.value(row))),
            Self::Numbers(numbers, _) if numbers.is_null(row) => Ok(None),
            Self::Numbers(numbers, names) => {
                let name = usize::try_from(numbers.value(row)).ok().and_then(|label| names.get(label));
                name.map(|name| Some(name.as_str())).ok_or_else(|| {
                    format!("label {} is outside the {} class names", numbers.value(row), names.len())
                })
            }
        }
    }
}

/// The items of a row of a list column, as a range of those that [`Labels::read`] reads; `None` for null.
pub fn items_of(column: &ArrayRef, row: usize) -> Option<std::ops::Range<usize>> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::List(_) => {
            let offsets = column.as_list::<i32>().value_offsets();
            offsets[row] as usize..offsets[row + 1] as usize
        }
        DataType::LargeList(_) => {
            let offsets = column.as_list::<i64>().value_offsets();
            offsets[row] as usize..offsets[row + 1] as usize
        }
        _ => row..row + 1,
    })
}

/// What a label column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelKind {
    /// Integers, not names.
    pub integer: bool,
    /// A list of them.
    pub several: bool,
}

/// Checks that a table has a label column; says what it holds.
///
/// # Errors
/// It is missing (did you mean ...?), or neither string nor integer, nor a list of one of them.
pub fn check_label(schema: &Schema, column: &str) -> Result<LabelKind, ClassFault> {
    let field = find(schema, column)?;
    let (kind, several) = match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) => (item.data_type(), true),
        kind => (kind, false),
    };
    let kind = match kind {
        DataType::Dictionary(_, values) => values.as_ref(),
        kind => kind,
    };
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Ok(LabelKind { integer: false, several })
        }
        kind if kind.is_integer() => Ok(LabelKind { integer: true, several }),
        kind => Err(ClassFault {
            why: format!("the label column `{column}` holds {kind}, not strings or integers"),
            hint: Some("a label is the name of a class, or an integer that `class_names` names".into()),
        }),
    }
}

/// Checks that a table has an image column in the Hugging Face layout.
///
/// # Errors
/// It is missing (did you mean ...?), or no struct of bytes and path.
pub fn check_image(schema: &Schema, column: &str) -> Result<(), ClassFault> {
    let field = find(schema, column)?;
    let has_bytes = match field.data_type() {
        DataType::Struct(parts) => parts.iter().any(|part| {
            let kind = part.data_type();
            part.name() == "bytes"
                && matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
        }),
        _ => false,
    };
    if has_bytes {
        return Ok(());
    }
    Err(ClassFault {
        why: format!(
            "the image column `{column}` holds {}, not struct<bytes: binary, path: string>",
            field.data_type()
        ),
        hint: Some("a `fetch` stage and Hugging Face's `datasets` both write such a column".into()),
    })
}

fn find<'a>(schema: &'a Schema, column: &str) -> Result<&'a arrow::datatypes::FieldRef, ClassFault> {
    let found = schema.fields().iter().find(|field| field.name() == column);
    found.ok_or_else(|| {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let hint = did_you_mean(column, names.iter().copied());
        let hint = hint.unwrap_or_else(|| format!("its columns are {}", listed(names)));
        ClassFault { why: format!("its input has no column `{column}`"), hint: Some(hint) }
    })
}

/// The names of a `ClassLabel` feature, or of a list of such labels, from the schema metadata that Hugging Face's `datasets` writes.
pub(crate) fn hub_class_names(schema: &Schema, column: &str) -> Option<Vec<String>> {
    let metadata: serde_json::Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let feature = metadata.get("info")?.get("features")?.get(column)?;
    let feature = feature.get("feature").unwrap_or(feature);
    serde_json::from_value(feature.get("names")?.clone()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Field;

    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn renames(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect()
    }

    fn schema(fields: Vec<(&str, DataType)>) -> Schema {
        Schema::new(fields.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect::<Vec<_>>())
    }

    #[test]
    fn ids_are_places_and_names_may_differ_from_labels() {
        let classes = Classes::new(
            strings(&["flags", "smileys-emotion"]),
            &renames(&[("smileys-emotion", "smileys & emotion")]),
        );
        let classes = classes.unwrap();
        assert_eq!((classes.id("smileys-emotion"), classes.id("smileys & emotion")), (Some(1), None));
        assert_eq!(classes.names(), ["flags", "smileys & emotion"]);
        assert_ne!(
            classes.hash(),
            Classes::new(strings(&["flags", "smileys"]), &renames(&[])).unwrap().hash()
        );
    }

    #[test]
    fn classes_that_cannot_be_told_apart_are_refused() {
        let cases = [
            ("none", strings(&[]), renames(&[]), "no classes"),
            ("twice", strings(&["crane", "dog", "crane"]), renames(&[]), "`crane` is there twice"),
            (
                "twice but for white space",
                strings(&["crane", "crane "]),
                renames(&[]),
                "`crane` is there twice",
            ),
            (
                "renamed onto another",
                strings(&["crane", "bird"]),
                renames(&[("bird", "crane")]),
                "`crane` is there twice",
            ),
            ("empty", strings(&["dog", " "]), renames(&[]), "class 1 (label \" \") is empty"),
            (
                "rename of nothing",
                strings(&["dog"]),
                renames(&[("dgo", "hound")]),
                "`dgo`, which is not there",
            ),
        ];
        for (name, labels, renames, expected) in cases {
            let fault = Classes::new(labels, &renames).unwrap_err();
            assert!(fault.why.contains(expected), "{name}: {fault:?}");
        }
        let told_apart = Classes::new(strings(&["crane", "crane "]), &renames(&[("crane ", "crane (bird)")]));
        assert_eq!(told_apart.unwrap().len(), 2);
    }

    #[test]
    fn integer_labels_are_named_by_the_file_or_by_the_pipeline() {
        let plain =
            schema(vec![("label", DataType::Int64), ("note", DataType::Float64), ("text", DataType::Utf8)]);
        let hub = r#"{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;
        let tagged = plain.clone().with_metadata([("huggingface".to_string(), hub.to_string())].into());
        let column: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(2), Some(-1)]));
        let labels = Labels::new(&tagged, "label", None).unwrap();
        let read = labels.read(&column).unwrap();
        assert_eq!((read.get(0), read.get(1)), (Ok(Some("dog")), Ok(None)));
        assert!(
            read.get(2).unwrap_err().contains("label 2") && read.get(3).unwrap_err().contains("label -1")
        );
        let given = Labels::new(&tagged, "label", Some(&strings(&["a", "b", "c"]))).unwrap();
        assert_eq!(given.read(&column).unwrap().get(2), Ok(Some("c")));
        let faults = [
            (Labels::new(&plain, "label", None).unwrap_err(), "nothing says"),
            (Labels::new(&plain, "note", None).unwrap_err(), "Float64"),
            (Labels::new(&plain, "txt", None).unwrap_err(), "no column `txt`"),
            (Labels::new(&plain, "text", Some(&strings(&["a"]))).unwrap_err(), "holds strings"),
        ];
        for (fault, expected) in faults {
            assert!(fault.why.contains(expected) && fault.hint.is_some(), "{fault:?}");
        }
    }

    #[test]
    fn an_image_column_is_a_struct_of_bytes() {
        let struct_of =
            |name: &str, kind: DataType| DataType::Struct(vec![Field::new(name, kind, true)].into());
        let schema = schema(vec![
            ("image", struct_of("bytes", DataType::Binary)),
            ("path", struct_of("path", DataType::Utf8)),
            ("url", DataType::Utf8),
        ]);
        assert_eq!(check_image(&schema, "image"), Ok(()));
        assert!(check_image(&schema, "path").is_err() && check_image(&schema, "url").is_err());
        assert_eq!(
            check_image(&schema, "images").unwrap_err().hint.as_deref(),
            Some("did you mean `image`?")
        );
    }
}
