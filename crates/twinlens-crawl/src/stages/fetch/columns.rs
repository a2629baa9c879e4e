//! The columns of the output.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use twinlens_dataset::contracts;

/// Of a lenient stage: what was wrong with an image that was accepted nevertheless.
pub(super) const DAMAGE: &str = "damage";

/// The columns that the stage adds.
pub(super) fn added_columns(lenient: bool) -> SchemaRef {
    let images = contracts::image_columns();
    let damage = lenient.then(|| Arc::new(Field::new(DAMAGE, DataType::Utf8, true)));
    Arc::new(Schema::new(images.fields().iter().cloned().chain(damage).collect::<Vec<_>>()))
}

/// The columns of the input that the stage does not add, then those that it adds.
pub(super) fn with_images(schema: &Schema, added: &Schema) -> SchemaRef {
    let kept = schema.fields().iter().filter(|field| added.field_with_name(field.name()).is_err());
    let fields: Vec<_> = kept.chain(added.fields()).cloned().collect();
    Arc::new(Schema::new(fields))
}
