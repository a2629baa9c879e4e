//! The column of all captions of an image, from which trainings draw.

use std::sync::Arc;

use arrow::array::{ListBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field};

/// The column's name, which trainings know.
const CAPTIONS: &str = "captions";

/// The column.
pub(super) fn field() -> Field {
    Field::new(CAPTIONS, DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), true)
}

/// Builds its values.
pub(super) fn builder() -> ListBuilder<StringBuilder> {
    ListBuilder::new(StringBuilder::new())
}
