//! Writes Parquet shards of bounded size with bounded row groups; the bytes are deterministic.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
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
use crate::conform::{conform, conform_ledger, refuse_unknown};
use crate::contracts;
use crate::error::{DatasetError, parquet_error};
use crate::image_column::BYTES;
use crate::protocol::{FileEntry, REJECTS};
use crate::storage::{local, unfinished};
use crate::types::holds_image_bytes;

/// Sizes that bound shards, row groups and the memory of a writer.
#[derive(Debug, Clone, Copy)]
pub struct ShardLimits {
    /// A shard is closed when it has this many bytes.
    pub shard_bytes: usize,
    /// A row group is closed when it has this many bytes in memory.
    pub row_group_bytes: usize,
    /// A row group is closed when it has this many rows.
    pub row_group_rows: usize,
}

/// Most row groups of a shard: the format allows 32,767.
const MAX_ROW_GROUPS: usize = 10_000;

impl Default for ShardLimits {
    fn default() -> Self {
        Self { shard_bytes: 256 << 20, row_group_bytes: 32 << 20, row_group_rows: 1 << 16 }
    }
}

/// What is part of the file names of shards beside split and part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardNames {
    /// The number of the retry that rebuilds splits, or 0: a recorded file is never changed.
    pub retry: u64,
    /// Whether a name has eight digits of the SHA-256 of the content. Where several processes may
    /// make the same split, two attempts with different bytes must not have one name.
    pub has_hash: bool,
}

impl ShardNames {
    /// The file name of a shard. `sha256` is the hash of its content, once it is known.
    fn file_name(self, split: u64, part: usize, sha256: Option<&str>) -> String {
        let retry = if self.retry == 0 { String::new() } else { format!("-r{}", self.retry) };
        let hash = sha256.filter(|_| self.has_hash).and_then(|hash| hash.get(..8));
        let hash = hash.map(|hash| format!("-{hash}")).unwrap_or_default();
        format!("{split:06}-{part:03}{retry}{hash}.parquet")
    }
}

/// Whether a file of a dataset has the name of a shard of one of its tables.
pub(crate) fn is_shard<'a>(name: &str, mut tables: impl Iterator<Item = &'a String>) -> bool {
    let Some((table, file)) = name.rsplit_once('/') else { return false };
    let parts: Vec<&str> = file.strip_suffix(".parquet").unwrap_or_default().split('-').collect();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_retry = |part: &str| part.strip_prefix('r').is_some_and(is_number);
    let is_hash = |part: &str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_shard = match parts[..] {
        [split, part, ref rest @ ..] if is_number(split) && is_number(part) => match rest {
            [] => true,
            [one] => is_retry(one) || is_hash(one),
            [retry, hash] => is_retry(retry) && is_hash(hash),
            _ => false,
        },
        _ => false,
    };
    is_shard && tables.any(|known| known == table)
}

fn properties(schema: &Schema, limits: &ShardLimits) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(limits.row_group_rows))
        .set_max_row_group_bytes(Some(limits.row_group_bytes))
        .set_key_value_metadata(Some(vec![arrow_schema(schema)]))
        .set_created_by("twinlens".into());
    for field in schema.fields().iter().filter(|field| holds_image_bytes(field.data_type())) {
        // Encoded images neither compress nor repeat, and statistics would copy them into the
        // footer.
        let column = match field.data_type() {
            DataType::Struct(_) => ColumnPath::new(vec![field.name().clone(), BYTES.into()]),
            _ => ColumnPath::from(field.name().as_str()),
        };
        builder = builder
            .set_column_compression(column.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    // Statistics leave NaN out: a reader would take a column of one number and NaN for that number
    // alone, and skip groups that hold NaN. Floats are not sorted, so they would skip little else.
    for field in schema.fields().iter().filter(|field| field.data_type().is_floating()) {
        let column = ColumnPath::from(field.name().as_str());
        builder = builder.set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    builder.build()
}

/// The Arrow schema that readers see, instead of the types in memory.
fn arrow_schema(schema: &Schema) -> KeyValue {
    KeyValue::new(ARROW_SCHEMA_META_KEY.into(), encode_arrow_schema(&contracts::file_schema(schema)))
}

/// Opens a writer of one Parquet file.
pub(crate) fn parquet_writer<W: Write + Send>(
    out: W,
    schema: &SchemaRef,
    limits: &ShardLimits,
) -> Result<ArrowWriter<W>, ParquetError> {
    let options =
        ArrowWriterOptions::new().with_properties(properties(schema, limits)).with_skip_arrow_metadata(true);
    ArrowWriter::try_new_with_options(out, schema.clone(), options)
}

/// Writes one table of one split, in as many shards as its size requires.
#[derive(Debug)]
pub struct TableWriter {
    dataset: PathBuf,
    table: String,
    schema: SchemaRef,
    split: u64,
    names: ShardNames,
    limits: ShardLimits,
    chunks: Chunks,
    open: Option<ArrowWriter<File>>,
    open_rows: u64,
    finished: Vec<FileEntry>,
}

impl TableWriter {
    /// A writer that creates no file before the first row.
    pub fn new(dataset: &Path, table: &str, schema: SchemaRef, split: u64, limits: ShardLimits) -> Self {
        Self {
            dataset: dataset.into(),
            table: table.into(),
            chunks: Chunks::new(schema.clone()),
            schema,
            split,
            names: ShardNames::default(),
            limits,
            open: None,
            open_rows: 0,
            finished: Vec::new(),
        }
    }

    /// Sets what is part of the file names.
    pub(crate) fn with_names(self, names: ShardNames) -> Self {
        Self { names, ..self }
    }

    /// The path of the open shard, relative to the dataset; `sha256` is its hash, once it is known.
    fn relative_path(&self, sha256: Option<&str>) -> String {
        format!("{}/{}", self.table, self.names.file_name(self.split, self.finished.len(), sha256))
    }

    /// Writes rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), DatasetError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let batch = if self.table == REJECTS {
            conform_ledger(batch, &self.schema)?
        } else {
            refuse_unknown(&self.table, batch, &self.schema)?;
            conform(&self.table, batch, &self.schema)?
        };
        for chunk in self.chunks.push(&batch).map_err(|source| self.schema_error(source))? {
            self.write_chunk(&chunk.rows, chunk.ends_group)?;
        }
        Ok(())
    }

    fn schema_error(&self, source: ArrowError) -> DatasetError {
        DatasetError::Schema { table: self.table.clone(), source }
    }

    fn write_chunk(&mut self, batch: &RecordBatch, ends_group: bool) -> Result<(), DatasetError> {
        let path = self.dataset.join(self.relative_path(None));
        let writer = match &mut self.open {
            Some(writer) => writer,
            None => {
                local::create_dir(&self.dataset.join(&self.table))?;
                let temporary = unfinished(&path);
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

    /// Bytes of the open shard; those still in memory are estimated.
    pub(crate) fn open_bytes(&self) -> usize {
        let written =
            self.open.as_ref().map_or(0, |writer| writer.bytes_written() + writer.in_progress_size());
        written + self.chunks.pending_bytes()
    }

    fn close(&mut self) -> Result<(), DatasetError> {
        let Some(writer) = self.open.take() else { return Ok(()) };
        let path = self.dataset.join(self.relative_path(None));
        writer.close().map_err(|error| parquet_error(&path, error))?;
        let written = unfinished(&path);
        let digest = local::digest(&written)?;
        let relative = self.relative_path(Some(&digest.sha256));
        let named = unfinished(&self.dataset.join(&relative));
        if named != written {
            std::fs::rename(&written, &named).map_err(|error| DatasetError::io(&written, error))?;
        }
        let rows = std::mem::take(&mut self.open_rows);
        self.finished.push(FileEntry::new(Some(self.table.clone()), relative, rows, digest));
        Ok(())
    }

    /// Closes the last shard. The files keep their unfinished names.
    pub fn finish(mut self) -> Result<Vec<FileEntry>, DatasetError> {
        if let Some(chunk) = self.chunks.take_rest().map_err(|source| self.schema_error(source))? {
            self.write_chunk(&chunk, false)?;
        }
        self.close()?;
        Ok(self.finished)
    }
}
