//! Random access to rows of a Parquet file by row group, for readers with their own order.

use std::fs::File;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use crate::error::DatasetError;
use crate::foreign;
use crate::guard::catch_panic;
use crate::storage::Location;
use crate::storage::recorded::RangeFile;

/// A Parquet file whose footer has been read. A file of an object store is copied first.
#[derive(Debug)]
pub struct RowGroups {
    path: PathBuf,
    file: RangeFile,
    metadata: ArrowReaderMetadata,
    /// Written by this program, and verified as it is read.
    is_recorded: bool,
}

impl RowGroups {
    /// Opens a file.
    ///
    /// # Errors
    /// `Io`, `Store`, `WrongKind`, `DamagedInput` or `Parquet`, with the file's name.
    pub fn open(shard: &Location) -> Result<Self, DatasetError> {
        let (path, file) = (shard.local_copy()?, shard.open_ranges()?);
        let is_recorded = shard.is_recorded();
        let metadata = if is_recorded {
            ArrowReaderMetadata::load(&file, Default::default()).map_err(|error| file.error(&path, error))?
        } else {
            foreign::open_parquet(&path)?.1
        };
        Ok(Self { path, file, metadata, is_recorded })
    }

    /// Checks that the pages can be read in memory that the file's size explains.
    ///
    /// # Errors
    /// `DamagedInput`, with the file's name.
    pub fn check(&self) -> Result<(), DatasetError> {
        if self.is_recorded {
            return Ok(());
        }
        let file = File::open(&self.path).map_err(|error| DatasetError::io(&self.path, error))?;
        foreign::check_pages(&self.path, &file, self.metadata.metadata())
    }

    /// The schema stored in the file.
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// Rows and decompressed bytes of each row group.
    pub fn sizes(&self) -> impl Iterator<Item = (u64, u64)> {
        let groups = self.metadata.metadata().row_groups().iter();
        groups.map(|group| (group.num_rows().max(0) as u64, group.total_byte_size().max(0) as u64))
    }

    /// Reads `rows` rows of row group `group` from its row `first` on. `columns` are names or paths
    /// (`image.bytes`); those that the file lacks are left out.
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
        let failed = |error| self.file.error(&self.path, error);
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone());
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
        let batches = catch_panic(self.path.display(), || {
            reader.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.into()))
        })?;
        match &batches[..] {
            [one] => Ok(one.clone()),
            several => concat_batches(&schema, several).map_err(|error| failed(error.into())),
        }
    }
}
