//! The stage kinds of this crate.

mod balance;
mod command;
mod decontaminate;
mod dedup;
mod filter;
mod match_queries;
mod presets;
mod queries;
mod query_list;
mod select;
mod sql;
#[cfg(test)]
mod testing;

pub use balance::Balance;
pub use command::Command;
pub use decontaminate::Decontaminate;
pub use dedup::Dedup;
pub use filter::Filter;
pub use match_queries::Match;
pub use queries::Queries;
pub use select::Select;
pub use sql::Sql;

use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use twinlens_pipeline::{Registry, Required};

/// Registers this crate's stage kinds and SQL functions.
pub fn register(registry: &mut Registry) {
    registry.add::<Balance>();
    registry.add::<Command>();
    registry.add::<Decontaminate>();
    registry.add::<Dedup>();
    registry.add::<Filter>();
    registry.add::<Match>();
    registry.add::<Queries>();
    registry.add::<Select>();
    registry.add::<Sql>();
    crate::functions::public().into_iter().for_each(|function| registry.add_function(function));
}

/// `schema` with the column of the same name replaced by `field`, or with `field` at the end.
fn with_field(schema: &Schema, field: Field) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    match fields.iter().position(|known| known.name() == field.name()) {
        Some(at) => fields[at] = Arc::new(field),
        None => fields.push(Arc::new(field)),
    }
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// How a table gets the column that tells its pairs apart.
const UID_HINT: Required<'_> =
    Required::Hint("make one with a `select` stage: columns = { uid = \"pair_uid(url, caption)\" }");
