//! The label and image columns of a set's table.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, Schema};
use arrow::error::ArrowError;
use twinlens_dataset::ImageColumn;
use twinlens_dataset::image_column::NotImages;
use twinlens_pipeline::suggest::{did_you_mean, list_names};

use super::classes::SetFault;
use super::lists::side_by_side;

/// Reads a label column: strings as they are, integers as indices into the class names.
#[derive(Debug, Clone)]
pub(crate) struct Labels {
    column: String,
    class_names: Option<Vec<String>>,
    multi_label: bool,
}

impl Labels {
    /// A reader for a table of `schema`. `class_names` come from the pipeline file; for integer
    /// labels they default to those that Hugging Face's `datasets` stores in the schema.
    ///
    /// # Errors
    /// The column is missing, is neither string nor integer, or has integers without class names.
    pub(crate) fn new(
        schema: &Schema,
        column: &str,
        class_names: Option<&[String]>,
    ) -> Result<Self, SetFault> {
        let LabelKind { integer, multi_label } = check_label(schema, column)?;
        if !integer {
            return match class_names {
                None => Ok(Self { column: column.into(), class_names: None, multi_label }),
                Some(_) => Err(SetFault {
                    why: format!(
                        "`class_names` name integer labels, but the column `{column}` holds strings"
                    ),
                    hint: Some("leave `class_names` out, or rename classes with `names`".into()),
                }),
            };
        }
        let declared = hub_class_names(schema, column);
        if let (Some(given), Some(declared)) = (class_names, &declared)
            && given.len() != declared.len()
        {
            let table = side_by_side(("class_names", given), ("in the data", declared));
            return Err(SetFault {
                why: format!(
                    "`class_names` has {} names, but the data name {} for the column `{column}`:\n{table}",
                    given.len(),
                    declared.len()
                ),
                hint: Some("leave `class_names` out, or give one name for each".into()),
            });
        }
        match class_names.map(<[String]>::to_vec).or(declared) {
            Some(names) => Ok(Self { column: column.into(), class_names: Some(names), multi_label }),
            None => Err(SetFault {
                why: format!(
                    "the labels in the column `{column}` are integers, and their class names are unknown"
                ),
                hint: Some("give `class_names = [\"name of label 0\", \"name of label 1\", ...]`".into()),
            }),
        }
    }

    /// The class names of integer labels.
    pub(crate) fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    /// Whether an example may have several classes.
    pub(crate) fn is_multi_label(&self) -> bool {
        self.multi_label
    }

    /// The labels of a column that [`Labels::new`] accepted; for a list column, those of all items.
    pub(crate) fn read(&self, column: &ArrayRef) -> Result<LabelColumn<'_>, ArrowError> {
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

    pub(crate) fn column(&self) -> &str {
        &self.column
    }
}

/// The labels of a batch.
#[derive(Debug)]
pub(crate) enum LabelColumn<'a> {
    Names(StringArray),
    /// Indices into the class names.
    Numbers(Int64Array, &'a [String]),
}

impl LabelColumn<'_> {
    /// The class name of a row; `None` if null.
    ///
    /// # Errors
    /// The integer is outside the class names.
    pub(crate) fn get(&self, row: usize) -> Result<Option<&str>, String> {
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

/// The items of a row of a list column, as a range into [`Labels::read`]; `None` if null.
pub(crate) fn list_items(column: &ArrayRef, row: usize) -> Option<std::ops::Range<usize>> {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LabelKind {
    pub integer: bool,
    /// A list column.
    pub multi_label: bool,
}

/// Checks that a table has a label column: strings, integers, or lists of either.
pub(crate) fn check_label(schema: &Schema, column: &str) -> Result<LabelKind, SetFault> {
    let field = find(schema, column)?;
    let (kind, multi_label) = match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) => (item.data_type(), true),
        kind => (kind, false),
    };
    let kind = match kind {
        DataType::Dictionary(_, values) => values.as_ref(),
        kind => kind,
    };
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Ok(LabelKind { integer: false, multi_label })
        }
        kind if kind.is_integer() => Ok(LabelKind { integer: true, multi_label }),
        kind => Err(SetFault {
            why: format!("the label column `{column}` holds {kind}, not strings or integers"),
            hint: Some("a label is a class name, or an index into `class_names`".into()),
        }),
    }
}

/// Checks that a table has a column of encoded images: in the Hugging Face layout, or binary.
pub(crate) fn check_image(schema: &Schema, column: &str) -> Result<(), SetFault> {
    ImageColumn::check(find(schema, column)?.data_type()).map_err(|error| SetFault {
        why: format!("the image column `{column}` is {error}"),
        hint: Some(NotImages::HINT.into()),
    })
}

fn find<'a>(schema: &'a Schema, column: &str) -> Result<&'a arrow::datatypes::FieldRef, SetFault> {
    let found = schema.fields().iter().find(|field| field.name() == column);
    found.ok_or_else(|| {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let hint = did_you_mean(column, names.iter().copied());
        let hint = hint.unwrap_or_else(|| format!("its columns are {}", list_names(names)));
        SetFault { why: format!("its input has no column `{column}`"), hint: Some(hint) }
    })
}

/// The names of a `ClassLabel` feature, or of a list of them, in the schema metadata that Hugging
/// Face's `datasets` writes.
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

    fn schema(fields: Vec<(&str, DataType)>) -> Schema {
        Schema::new(fields.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect::<Vec<_>>())
    }

    #[test]
    fn integer_labels_take_names_from_the_file_or_the_pipeline() {
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
        let given = Labels::new(&plain, "label", Some(&strings(&["a", "b", "c"]))).unwrap();
        assert_eq!(given.read(&column).unwrap().get(2), Ok(Some("c")));
        let renamed = Labels::new(&tagged, "label", Some(&strings(&["a", "b"]))).unwrap();
        assert_eq!(renamed.read(&column).unwrap().get(0), Ok(Some("b")));
        let faults = [
            (Labels::new(&plain, "label", None).unwrap_err(), "class names are unknown"),
            (
                Labels::new(&tagged, "label", Some(&strings(&["a", "b", "c"]))).unwrap_err(),
                "has 3 names, but the data name 2",
            ),
            (Labels::new(&plain, "note", None).unwrap_err(), "Float64"),
            (Labels::new(&plain, "txt", None).unwrap_err(), "no column `txt`"),
            (Labels::new(&plain, "text", Some(&strings(&["a"]))).unwrap_err(), "holds strings"),
        ];
        for (fault, expected) in faults {
            assert!(fault.why.contains(expected) && fault.hint.is_some(), "{fault:?}");
        }
    }

    #[test]
    fn an_image_column_is_a_struct_with_bytes() {
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
