//! Columns of the tables that stages read and make.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use twinlens_pipeline::Required;

/// `schema` with the column of the same name replaced by `field`, or with `field` at the end.
pub(super) fn with_field(schema: &Schema, field: Field) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    match fields.iter().position(|known| known.name() == field.name()) {
        Some(at) => fields[at] = Arc::new(field),
        None => fields.push(Arc::new(field)),
    }
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// How a table gets the column that tells its pairs apart.
pub(super) const UID_HINT: Required<'_> =
    Required::Hint("make one with a `select` stage: columns = { uid = \"pair_uid(url, caption)\" }");
