//! Columns of encoded images: in the layout of Hugging Face (`struct<bytes, path>`), or binary.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, GenericByteArray, LargeBinaryArray, StringArray, StructArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{ByteArrayType, DataType};
use arrow::error::ArrowError;

use crate::contracts;
use crate::types::{self, is_binary};

/// The field with the bytes of an image file.
pub(crate) const BYTES: &str = "bytes";
/// The field with its path, which is null where nobody knows it.
const PATH: &str = "path";

/// A column of a type that does not hold encoded images. The message follows "is".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("of type {kind}, not struct<bytes, path> or binary")]
pub struct NotImages {
    /// Its type.
    pub kind: String,
}

impl NotImages {
    /// Where such columns come from.
    pub const HINT: &'static str = "`fetch` stages and Hugging Face's `datasets` write such a column";

    fn new(kind: &DataType) -> Self {
        Self { kind: types::name(kind) }
    }
}

/// The encoded images of a column, whatever its type.
#[derive(Debug, Clone)]
pub struct ImageColumn {
    /// Null where the row has no image, or only its path.
    bytes: LargeBinaryArray,
    /// `None` if the type has no paths.
    paths: Option<StringArray>,
}

impl ImageColumn {
    /// Whether columns of a type hold encoded images.
    pub fn accepts(kind: &DataType) -> bool {
        match kind {
            DataType::Struct(fields) => {
                fields.find(BYTES).is_some_and(|(_, bytes)| is_binary(bytes.data_type()))
            }
            other => is_binary(other),
        }
    }

    /// Checks that columns of a type hold encoded images.
    ///
    /// # Errors
    /// They do not.
    pub fn check(kind: &DataType) -> Result<(), NotImages> {
        if Self::accepts(kind) { Ok(()) } else { Err(NotImages::new(kind)) }
    }

    /// What to read of a column `name` of Parquet for the bytes alone: `image.bytes`, or `image`.
    ///
    /// # Errors
    /// The type does not hold encoded images.
    pub fn bytes_path(name: &str, kind: &DataType) -> Result<String, NotImages> {
        Self::check(kind)?;
        Ok(if matches!(kind, DataType::Struct(_)) { format!("{name}.{BYTES}") } else { name.into() })
    }

    /// The images of a column. One whose bytes are all null, without a type, has none.
    ///
    /// # Errors
    /// Its type does not hold encoded images.
    pub fn new(column: &ArrayRef) -> Result<Self, NotImages> {
        let refuse = || NotImages::new(column.data_type());
        let Some(parts) = column.as_struct_opt() else {
            return Ok(Self { bytes: binary(column).ok_or_else(refuse)?, paths: None });
        };
        let bytes = parts.column_by_name(BYTES).and_then(binary).ok_or_else(refuse)?;
        let paths = parts.column_by_name(PATH).filter(|paths| types::is_text(paths.data_type()));
        let paths = paths.and_then(|paths| cast(paths, &DataType::Utf8).ok());
        let paths: Option<StringArray> = paths.and_then(|paths| paths.as_string_opt().cloned());
        Ok(Self {
            bytes: masked(bytes, parts.nulls()).ok_or_else(refuse)?,
            paths: paths.and_then(|paths| masked(paths, parts.nulls())),
        })
    }

    /// The bytes of each row; null in rows without an image.
    pub fn bytes(&self) -> &LargeBinaryArray {
        &self.bytes
    }

    /// The bytes of a row; `None` if it has no image, or only its path.
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        self.bytes.is_valid(row).then(|| self.bytes.value(row))
    }

    /// The path of a row's image, if it is known.
    pub fn path(&self, row: usize) -> Option<&str> {
        self.paths.as_ref().filter(|paths| paths.is_valid(row)).map(|paths| paths.value(row))
    }
}

/// An array of the type [`contracts::image`]; a row without bytes is null.
///
/// # Errors
/// `bytes` and `paths` are not of the same length.
pub fn image_array(bytes: LargeBinaryArray, paths: StringArray) -> Result<StructArray, ArrowError> {
    let valid = bytes.nulls().cloned();
    StructArray::try_new(contracts::image_fields(), vec![Arc::new(bytes), Arc::new(paths)], valid)
}

fn binary(column: &ArrayRef) -> Option<LargeBinaryArray> {
    let large = match column.data_type() {
        DataType::Null => new_null_array(&DataType::LargeBinary, column.len()),
        kind if is_binary(kind) => cast(column, &DataType::LargeBinary).ok()?,
        _ => return None,
    };
    large.as_binary_opt().cloned()
}

/// A field of a struct, null where the struct is: behind a null, a field may hold anything.
fn masked<T: ByteArrayType>(
    field: GenericByteArray<T>,
    nulls: Option<&NullBuffer>,
) -> Option<GenericByteArray<T>> {
    let (offsets, values, own) = field.into_parts();
    GenericByteArray::try_new(offsets, values, NullBuffer::union(own.as_ref(), nulls)).ok()
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, BinaryViewArray, DictionaryArray, Int32Array, NullArray};
    use arrow::datatypes::{Field, Int8Type};

    use super::*;

    fn structs(fields: Vec<(&str, ArrayRef)>, valid: Option<Vec<bool>>) -> ArrayRef {
        let kinds = fields.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
        let (kinds, arrays) = (kinds.collect::<Vec<_>>(), fields.iter().map(|(_, array)| array.clone()));
        Arc::new(StructArray::new(kinds.into(), arrays.collect(), valid.map(NullBuffer::from)))
    }

    #[test]
    fn images_are_read_from_every_type_that_holds_them() {
        let some = [Some(&b"ab"[..]), None, Some(b"c")];
        let plain: [ArrayRef; 3] = [
            Arc::new(BinaryArray::from_iter(some)),
            Arc::new(LargeBinaryArray::from_iter(some)),
            Arc::new(BinaryViewArray::from_iter(some)),
        ];
        for bytes in plain {
            // Behind the null of the third row are bytes, which are not an image of it.
            let texts = DictionaryArray::<Int8Type>::from_iter(["a.png", "b.png", "c.png"]);
            let fields = vec![("path", Arc::new(texts) as ArrayRef), ("bytes", bytes.clone())];
            let images = structs(fields, Some(vec![true, true, false]));
            for (column, third, path) in [(bytes, some[2], None), (images, None, Some("b.png"))] {
                let kind = column.data_type();
                let read = ImageColumn::new(&column).unwrap();
                assert_eq!([read.get(0), read.get(1), read.get(2)], [some[0], None, third], "{kind}");
                assert_eq!((read.path(1), read.path(2)), (path, None), "{kind}");
                let sliced = ImageColumn::new(&column.slice(2, 1)).unwrap();
                assert_eq!((sliced.get(0), sliced.path(0)), (third, None), "{kind}");
                assert_eq!(ImageColumn::check(kind), Ok(()));
            }
        }
    }

    #[test]
    fn other_types_are_refused_by_their_names() {
        let integers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(["a"]));
        let cases = [
            (integers.clone(), "of type int32, not struct<bytes, path> or binary"),
            (structs(vec![("bytes", integers)], None), "of type struct<bytes: int32>, not"),
            (structs(vec![("data", bytes)], None), "of type struct<data: binary>, not"),
        ];
        for (column, expected) in cases {
            let refused = ImageColumn::new(&column).map(|_| ()).unwrap_err();
            assert!(refused.to_string().starts_with(expected), "{refused}");
            assert_eq!(ImageColumn::bytes_path("image", column.data_type()), Err(refused));
        }
    }

    #[test]
    fn nulls_without_a_type_are_no_images() {
        let nulls: ArrayRef = Arc::new(NullArray::new(2));
        for column in [nulls.clone(), structs(vec![("bytes", nulls)], Some(vec![true, false]))] {
            let read = ImageColumn::new(&column).unwrap();
            assert_eq!((read.bytes().len(), read.get(0), read.get(1)), (2, None, None));
            assert!(!ImageColumn::accepts(column.data_type()), "it is not known to hold images");
        }
    }

    #[test]
    fn an_array_of_images_has_the_type_of_the_contract() {
        let bytes = LargeBinaryArray::from_iter([Some("a"), None]);
        let array: ArrayRef =
            Arc::new(image_array(bytes, StringArray::from(vec![Some("a.png"), None])).unwrap());
        assert_eq!(array.data_type(), &contracts::image());
        assert!(array.is_valid(0) && array.is_null(1));
        let read = ImageColumn::new(&array).unwrap();
        assert_eq!((read.get(0), read.path(0), read.get(1)), (Some(&b"a"[..]), Some("a.png"), None));
    }
}
