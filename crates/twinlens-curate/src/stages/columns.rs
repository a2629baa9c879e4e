//! Columns of the tables that stages read and make.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use serde::Serialize;
use twinlens_pipeline::{Ports, Required, TakesOver};

/// Declares that rows may be taken over, unless SQL in the options asks for the time of the run.
pub(super) fn takes_over(ports: &mut Ports<'_>, options: &impl Serialize) {
    let text = serde_json::to_string(options).unwrap_or_default();
    if !text.to_lowercase().contains("run_time") {
        ports.takes_over(TakesOver::Cheap);
    }
}

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
