//! The column types that `columns` may declare, and the Arrow encodings accepted for each.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringArray, StructArray, new_null_array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field};
use twinlens_dataset::contracts;
use twinlens_dataset::image_column::image_array;
use twinlens_dataset::types::is_binary;

/// The names of types but for `list<...>`, which takes one of the names before `image`.
pub(super) const NAMES: [&str; 16] = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
    "string",
    "binary",
    "date",
    "timestamp",
    "image",
];

/// The type with that name: `float32`, `list<string>`, `image`.
pub(super) fn parse(name: &str) -> Option<DataType> {
    if name == "image" { Some(contracts::image()) } else { parse_nested(name.trim()) }
}

fn parse_nested(name: &str) -> Option<DataType> {
    Some(match name {
        "bool" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float32" => DataType::Float32,
        "float64" => DataType::Float64,
        "string" => DataType::Utf8,
        "binary" => DataType::LargeBinary,
        "date" => DataType::Date32,
        "timestamp" => contracts::timestamp(),
        list => {
            let item = parse_nested(list.strip_prefix("list<")?.strip_suffix('>')?.trim())?;
            DataType::List(Arc::new(Field::new("item", item, true)))
        }
    })
}

/// `column` as `expected`, if it has this type in any of Arrow's encodings (32-bit or 64-bit
/// offsets, views); a column of nulls fits all types, and plain bytes are an `image` without a
/// path.
pub(super) fn conform(column: &ArrayRef, expected: &DataType) -> Option<ArrayRef> {
    let actual = column.data_type();
    if actual == expected {
        return Some(column.clone());
    }
    if actual == &DataType::Null {
        return Some(new_null_array(expected, column.len()));
    }
    if let (DataType::Struct(fields), true) = (expected, expected == &contracts::image()) {
        return conform_image(column, fields);
    }
    if !same_type(actual, expected) {
        return None;
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, expected, &strict).ok()
}

fn conform_image(column: &ArrayRef, fields: &datafusion::arrow::datatypes::Fields) -> Option<ArrayRef> {
    if is_binary(column.data_type()) {
        let bytes = conform(column, &DataType::LargeBinary)?;
        let paths = StringArray::new_null(column.len());
        return Some(Arc::new(image_array(bytes.as_binary::<i64>().clone(), paths).ok()?));
    }
    let images = column.as_struct_opt()?;
    if images.num_columns() != fields.len() {
        return None;
    }
    let parts = fields.iter().map(|field| conform(images.column_by_name(field.name())?, field.data_type()));
    let parts = parts.collect::<Option<Vec<_>>>()?;
    Some(Arc::new(StructArray::try_new(fields.clone(), parts, images.nulls().cloned()).ok()?))
}

/// Whether two types differ only in their encoding.
fn same_type(actual: &DataType, expected: &DataType) -> bool {
    use DataType::{LargeList, LargeUtf8, List, Null, Utf8, Utf8View};
    match (actual, expected) {
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (List(actual) | LargeList(actual), List(expected) | LargeList(expected)) => {
            actual.data_type() == &Null || same_type(actual.data_type(), expected.data_type())
        }
        _ => actual == expected || is_binary(actual) && is_binary(expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{
        BinaryArray, Float64Array, LargeListArray, LargeStringArray, NullArray, StringViewArray,
    };
    use datafusion::arrow::datatypes::Int32Type;

    #[test]
    fn names_are_a_closed_list() {
        for name in NAMES {
            assert!(parse(name).is_some(), "{name}");
        }
        assert_eq!(parse("list<int32>"), Some(contracts::int_list()));
        for name in ["float", "list<image>", "list<", "list<float32", "Float32", ""] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn encodings_are_accepted_and_other_types_refused() {
        let text: [ArrayRef; 2] =
            [Arc::new(LargeStringArray::from(vec!["a"])), Arc::new(StringViewArray::from(vec!["a"]))];
        for column in text {
            assert_eq!(conform(&column, &DataType::Utf8).unwrap().as_string::<i32>().value(0), "a");
        }
        let lists: ArrayRef =
            Arc::new(LargeListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]));
        assert!(conform(&lists, &contracts::int_list()).is_some());
        let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![b"x".as_slice()]));
        assert_eq!(conform(&bytes, &contracts::image()).unwrap().data_type(), &contracts::image());
        let nulls: ArrayRef = Arc::new(NullArray::new(2));
        assert_eq!(conform(&nulls, &DataType::Float32).unwrap().null_count(), 2);
        let doubles: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
        for expected in [DataType::Float32, DataType::Utf8, contracts::image(), contracts::int_list()] {
            assert!(conform(&doubles, &expected).is_none(), "{expected}");
        }
    }
}
