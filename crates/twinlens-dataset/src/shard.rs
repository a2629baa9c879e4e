//! Parquet shards: written in bounded row groups, rolled at a size, deterministic to the byte.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, encode_arrow_schema};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::chunks::Chunks;
use crate::contracts;
use crate::error::DatasetError;
use crate::protocol::FileEntry;
use crate::storage::{self, local};

/// Sizes that bound the memory of a writer.
#[derive(Debug, Clone, Copy)]
pub struct ShardLimits {
    /// A shard is closed when it has this many bytes.
    pub shard_bytes: usize,
    /// A row group is closed when it has this many bytes in memory.
    pub row_group_bytes: usize,
    /// A row group is closed when it has this many rows.
    pub row_group_rows: usize,
}

/// Row groups of a shard: the format has no more than 32,767.
const MAX_ROW_GROUPS: usize = 10_000;

impl Default for ShardLimits {
    fn default() -> Self {
        Self { shard_bytes: 256 << 20, row_group_bytes: 32 << 20, row_group_rows: 1 << 16 }
    }
}

/// The name of a shard within its table's folder; `retry` is 0, or counts the times that its split
/// was made again.
pub fn name(split: u64, part: usize, retry: u64) -> String {
    match retry {
        0 => format!("{split:06}-{part:03}.parquet"),
        retry => format!("{split:06}-{part:03}-r{retry}.parquet"),
    }
}

fn properties(schema: &Schema, limits: &ShardLimits) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(limits.row_group_rows))
        .set_max_row_group_bytes(Some(limits.row_group_bytes))
        .set_key_value_metadata(Some(vec![arrow_schema(schema)]))
        .set_created_by("twinlens".into());
    for field in schema.fields().iter().filter(|field| is_pixels(field.data_type())) {
        // Encoded images neither compress nor repeat, and statistics of pixels would copy them into
        // the footer.
        let column = match field.data_type() {
            DataType::Struct(_) => ColumnPath::new(vec![field.name().clone(), "bytes".into()]),
            _ => ColumnPath::from(field.name().as_str()),
        };
        builder = builder
            .set_column_compression(column.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    builder.build()
}

/// What a reader is told to make of the columns, in place of the types that they were written from.
fn arrow_schema(schema: &Schema) -> KeyValue {
    KeyValue::new(ARROW_SCHEMA_META_KEY.into(), encode_arrow_schema(&contracts::in_files(schema)))
}

/// A writer of rows of `schema` into one Parquet file.
pub(crate) fn parquet_writer<W: Write + Send>(
    out: W,
    schema: &SchemaRef,
    limits: &ShardLimits,
) -> Result<ArrowWriter<W>, ParquetError> {
    let options =
        ArrowWriterOptions::new().with_properties(properties(schema, limits)).with_skip_arrow_metadata(true);
    ArrowWriter::try_new_with_options(out, schema.clone(), options)
}

/// Whether a column holds image bytes: binary, or the Hugging Face struct of bytes and path.
pub fn is_pixels(kind: &DataType) -> bool {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Struct(fields) => fields.iter().any(|field| is_pixels(field.data_type())),
        _ => false,
    }
}

/// Makes a batch fit a table's schema: columns by name, cast where the type differs, null where one
/// is missing.
pub fn conform(table: &str, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DatasetError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let fail = |source| DatasetError::Schema { table: table.into(), source };
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        columns.push(match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => cast(column, field.data_type()).map_err(fail)?,
            None => arrow::array::new_null_array(field.data_type(), batch.num_rows()),
        });
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(fail)
}

/// Writes one table of one split: as many shards as its bytes need.
#[derive(Debug)]
pub struct TableWriter {
    dataset: PathBuf,
    table: String,
    schema: SchemaRef,
    split: u64,
    retry: u64,
    limits: ShardLimits,
    chunks: Chunks,
    open: Option<ArrowWriter<File>>,
    open_rows: u64,
    finished: Vec<FileEntry>,
}

impl TableWriter {
    /// A writer that makes no file until the first row comes.
    pub fn new(dataset: &Path, table: &str, schema: SchemaRef, split: u64, limits: ShardLimits) -> Self {
        Self {
            dataset: dataset.into(),
            table: table.into(),
            chunks: Chunks::new(schema.clone()),
            schema,
            split,
            retry: 0,
            limits,
            open: None,
            open_rows: 0,
            finished: Vec::new(),
        }
    }

    /// The files of a split that is made again get names of their own: a recorded file is never
    /// changed.
    pub fn retry(self, retry: u64) -> Self {
        Self { retry, ..self }
    }

    fn relative(&self) -> String {
        format!("{}/{}", self.table, name(self.split, self.finished.len(), self.retry))
    }

    /// Writes rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), DatasetError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let batch = conform(&self.table, batch, &self.schema)?;
        for chunk in self.chunks.push(&batch).map_err(|source| self.mismatch(source))? {
            self.write_chunk(&chunk.rows, chunk.ends_group)?;
        }
        Ok(())
    }

    fn mismatch(&self, source: ArrowError) -> DatasetError {
        DatasetError::Schema { table: self.table.clone(), source }
    }

    fn write_chunk(&mut self, batch: &RecordBatch, ends_group: bool) -> Result<(), DatasetError> {
        let path = self.dataset.join(self.relative());
        let writer = match &mut self.open {
            Some(writer) => writer,
            None => {
                local::create_dir(&self.dataset.join(&self.table))?;
                let temporary = storage::unfinished(&path);
                let file = File::create(&temporary).map_err(|error| DatasetError::io(&temporary, error))?;
                let writer = parquet_writer(file, &self.schema, &self.limits)
                    .map_err(|error| parquet_error(&path, error))?;
                self.open.insert(writer)
            }
        };
        let written = writer.write(batch).and_then(|()| if ends_group { writer.flush() } else { Ok(()) });
        written.map_err(|error| parquet_error(&path, error))?;
        self.open_rows += batch.num_rows() as u64;
        let bytes = writer.bytes_written() + writer.in_progress_size();
        if bytes >= self.limits.shard_bytes || writer.flushed_row_groups().len() >= MAX_ROW_GROUPS {
            self.close()?;
        }
        Ok(())
    }

    /// Bytes of the open shard, those that are still in memory estimated.
    pub fn open_bytes(&self) -> usize {
        let written =
            self.open.as_ref().map_or(0, |writer| writer.bytes_written() + writer.in_progress_size());
        written + self.chunks.bytes()
    }

    fn close(&mut self) -> Result<(), DatasetError> {
        let Some(writer) = self.open.take() else { return Ok(()) };
        let relative = self.relative();
        let path = self.dataset.join(&relative);
        writer.close().map_err(|error| parquet_error(&path, error))?;
        let (bytes, sha256) = local::digest(&storage::unfinished(&path))?;
        let rows = std::mem::take(&mut self.open_rows);
        self.finished.push(FileEntry {
            table: Some(self.table.clone()),
            path: relative,
            rows,
            bytes,
            sha256,
        });
        Ok(())
    }

    /// Closes the last shard. The files still have their unfinished names.
    pub fn finish(mut self) -> Result<Vec<FileEntry>, DatasetError> {
        if let Some(chunk) = self.chunks.rest().map_err(|source| self.mismatch(source))? {
            self.write_chunk(&chunk, false)?;
        }
        self.close()?;
        Ok(self.finished)
    }
}

/// A Parquet error as what it is underneath: a full disk must be told as a full disk, not as a bad
/// shard.
pub fn parquet_error(path: &Path, error: ParquetError) -> DatasetError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => DatasetError::io(path, *io),
            Err(inner) => DatasetError::Parquet { path: path.into(), source: ParquetError::External(inner) },
        },
        source => DatasetError::Parquet { path: path.into(), source },
    }
}
