//! Some rows of one row group of a Parquet file: what a reader asks for that goes through the rows
//! in an order of its own.

use std::fs::File;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use crate::error::DatasetError;
use crate::shard::parquet_error;
use crate::storage::Location;

/// One Parquet file, its footer read. A file of an object store is copied first.
#[derive(Debug)]
pub struct RowGroups {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
}

impl RowGroups {
    /// Opens a file.
    ///
    /// # Errors
    /// `Io`, `Store` or `Parquet`, with the file's name.
    pub fn open(shard: &Location) -> Result<Self, DatasetError> {
        let path = shard.local_copy()?;
        let file = File::open(&path).map_err(|error| DatasetError::io(&path, error))?;
        let metadata = ArrowReaderMetadata::load(&file, Default::default())
            .map_err(|error| parquet_error(&path, error))?;
        Ok(Self { path, metadata })
    }

    /// The columns, as the file says.
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// Rows and bytes (decompressed) of each row group.
    pub fn sizes(&self) -> impl Iterator<Item = (u64, u64)> {
        let groups = self.metadata.metadata().row_groups().iter();
        groups.map(|group| (group.num_rows().max(0) as u64, group.total_byte_size().max(0) as u64))
    }

    /// `rows` rows of row group `group` from its row `first` on. `columns` are names, or those of a
    /// part of a struct (`image.bytes`); those that the file lacks are left out.
    ///
    /// # Errors
    /// `Parquet`, with the file's name.
    pub fn read(
        &self,
        group: usize,
        first: usize,
        rows: usize,
        columns: &[&str],
    ) -> Result<RecordBatch, DatasetError> {
        let failed = |error| parquet_error(&self.path, error);
        // Opened again: a cloned handle has its position in common with those that other threads
        // read by.
        let file = File::open(&self.path).map_err(|error| DatasetError::io(&self.path, error))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        let reader = builder
            .with_projection(mask)
            .with_row_groups(vec![group])
            .with_offset(first)
            .with_limit(rows)
            .with_batch_size(rows.max(1))
            .build()
            .map_err(failed)?;
        let schema = arrow::array::RecordBatchReader::schema(&reader);
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.into()))?;
        match &batches[..] {
            [one] => Ok(one.clone()),
            several => concat_batches(&schema, several).map_err(|error| failed(error.into())),
        }
    }
}
