//! Reads rows of shards as batches, in order, from an exact position.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::conform::conform;
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::storage::Location;
use crate::storage::recorded::RangeFile;

/// Reads columns of a table shard by shard, without the query engine, for code on its own thread.
#[derive(Debug)]
pub struct ShardReader {
    /// Each with the range of rows to read.
    shards: Vec<(Location, Range<usize>)>,
    next: usize,
    columns: Vec<String>,
    /// The schema of the table; `None` if the dataset has no such table.
    schema: Option<SchemaRef>,
    batch_rows: usize,
    open: Option<OpenShard>,
}

#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    file: RangeFile,
    reader: ParquetRecordBatchReader,
}

impl ShardReader {
    /// Reads `columns` (those that a shard lacks are left out) in batches of at most `batch_rows`
    /// rows.
    pub fn new(dataset: &Dataset, table: &str, columns: &[&str], batch_rows: usize) -> Self {
        Self::range(dataset, table, 0..u64::MAX, columns, batch_rows)
    }

    /// Like [`new`](Self::new), for a range of rows, counted over the table's shards in order.
    pub fn range(
        dataset: &Dataset,
        table: &str,
        rows: Range<u64>,
        columns: &[&str],
        batch_rows: usize,
    ) -> Self {
        let mut first = 0;
        let mut shards = Vec::new();
        for shard in dataset.shards(table) {
            let (start, end) = (rows.start.max(first), rows.end.min(first + shard.rows));
            if start < end {
                let within = (start - first) as usize..(end - first) as usize;
                shards.push((dataset.file(shard), within));
            }
            first += shard.rows;
        }
        Self {
            shards,
            next: 0,
            columns: columns.iter().map(ToString::to_string).collect(),
            schema: dataset.schema(table).ok(),
            batch_rows,
            open: None,
        }
    }

    fn open_next(&mut self) -> Result<bool, DatasetError> {
        let Some((shard, rows)) = self.shards.get(self.next) else { return Ok(false) };
        self.next += 1;
        let (path, file) = (shard.display_path(), shard.open_ranges()?);
        let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone())
            .map_err(|error| file.error(&path, error))?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), self.columns.iter().map(String::as_str));
        let reader = builder
            .with_projection(mask)
            .with_batch_size(self.batch_rows)
            .with_offset(rows.start)
            .with_limit(rows.len())
            .build()
            .map_err(|error| file.error(&path, error))?;
        self.open = Some(OpenShard { path, file, reader });
        Ok(true)
    }

    /// Casts a batch to the types of the table, from which those of the file may differ.
    fn cast_to_table(&self, batch: &RecordBatch) -> Result<RecordBatch, DatasetError> {
        let schema = batch.schema();
        let fields = schema.fields().iter().map(|field| {
            let table = self.schema.as_ref().and_then(|schema| schema.field_with_name(field.name()).ok());
            table.unwrap_or(field).clone()
        });
        conform("shard", batch, &Arc::new(Schema::new(fields.collect::<Vec<_>>())))
    }

    fn read(&mut self) -> Result<Option<RecordBatch>, DatasetError> {
        loop {
            if let Some(OpenShard { path, file, reader }) = &mut self.open {
                match reader.next() {
                    Some(Ok(batch)) => return self.cast_to_table(&batch).map(Some),
                    Some(Err(error)) => return Err(file.error(path, error.into())),
                    None => self.open = None,
                }
            } else if !self.open_next()? {
                return Ok(None);
            }
        }
    }
}

impl Iterator for ShardReader {
    type Item = Result<RecordBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
