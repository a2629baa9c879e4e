//! The captions of an image: a list of texts, or the lines of one text as in CLIP_benchmark.

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

/// Whether a column of this type can hold captions.
pub(super) fn holds(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) => is_text(item.data_type()),
        kind => is_text(kind),
    }
}

/// The captions of a batch.
#[derive(Debug)]
pub(super) enum Captions {
    Lines(StringArray),
    Lists(Vec<Option<StringArray>>),
}

impl Captions {
    /// Reads a column whose type [`holds`] captions.
    pub(super) fn of(column: &ArrayRef) -> Result<Self, ArrowError> {
        let text = |column: &ArrayRef| Ok(cast(column, &DataType::Utf8)?.as_string::<i32>().clone());
        let list = match column.data_type() {
            DataType::List(_) => column.as_list::<i32>().iter().collect::<Vec<_>>(),
            DataType::LargeList(_) => column.as_list::<i64>().iter().collect(),
            _ => return Ok(Self::Lines(text(column)?)),
        };
        Ok(Self::Lists(
            list.iter().map(|list| list.as_ref().map(text).transpose()).collect::<Result<_, ArrowError>>()?,
        ))
    }

    /// The captions of a row, trimmed, without empty ones.
    pub(super) fn get(&self, row: usize) -> Vec<&str> {
        let all: Vec<&str> = match self {
            Self::Lines(texts) if texts.is_valid(row) => texts.value(row).lines().collect(),
            Self::Lists(lists) => lists[row].iter().flat_map(|list| list.iter().flatten()).collect(),
            Self::Lines(_) => Vec::new(),
        };
        all.into_iter().map(str::trim).filter(|caption| !caption.is_empty()).collect()
    }
}

/// Whether a type is text.
fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ListBuilder, StringBuilder};

    use super::*;

    #[test]
    fn captions_are_lines_or_items() {
        let lines: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a cat\n\n  on a mat \n"), None, Some(" ")]));
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("a cat"), None, Some("on a mat")]);
        lists.append_null();
        lists.append_value([None::<&str>; 0]);
        let lists: ArrayRef = Arc::new(lists.finish());
        for column in [lines, lists] {
            assert!(holds(column.data_type()));
            let captions = Captions::of(&column).unwrap();
            assert_eq!([0, 1, 2].map(|row| captions.get(row)), [vec!["a cat", "on a mat"], vec![], vec![]]);
        }
        assert!(!holds(&DataType::Int32));
    }
}
