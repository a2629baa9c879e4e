//! The schema and the length of Parquet and Arrow files.

use std::path::Path;

use arrow::datatypes::SchemaRef;
use twinlens_dataset::foreign::{self, ArrowBatches};
use twinlens_pipeline::RunError;

use super::format::Format;

/// The schema of a file; `format` is Parquet or Arrow.
pub(super) fn schema(path: &Path, format: Format) -> Result<SchemaRef, RunError> {
    if format == Format::Parquet {
        Ok(foreign::open_parquet(path)?.1.schema().clone())
    } else {
        Ok(ArrowBatches::open(path)?.schema())
    }
}

/// The schema and number of rows of a file, which is checked as a whole; `format` is Parquet or
/// Arrow.
pub(super) fn inspect(path: &Path, format: Format) -> Result<(SchemaRef, u64), RunError> {
    if format == Format::Parquet {
        let (file, metadata) = foreign::open_parquet(path)?;
        foreign::check_pages(path, &file, metadata.metadata())?;
        let rows = metadata.metadata().file_metadata().num_rows().unsigned_abs();
        return Ok((metadata.schema().clone(), rows));
    }
    // Neither format of Arrow has the number of rows: the batches are read.
    let batches = ArrowBatches::open(path)?;
    let (schema, mut rows) = (batches.schema(), 0);
    for batch in batches {
        rows += batch?.num_rows() as u64;
    }
    Ok((schema, rows))
}
