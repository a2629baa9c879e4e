//! Writes the rows of an export to shards of one of the formats.

use std::fs::File;
use std::io::{BufWriter, Seek};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::FileWriter;

use super::format::Format;
use super::webdataset::{ImageExtension, WebDataset};
use crate::conform::conform;
use crate::contracts;
use crate::error::DatasetError;
use crate::protocol::MAIN;
use crate::storage::{Location, local};
use crate::writer::SplitWriter;

/// Writes rows to the open shard of a split, and says when that is full.
pub(super) struct Sink {
    to: Location,
    shard_bytes: u64,
    shards: Shards,
}

/// An open file and its path.
type OpenArrow = (PathBuf, Box<FileWriter<BufWriter<File>>>);

enum Shards {
    /// Shards of the main table of the exported dataset.
    Parquet,
    Arrow {
        schema: SchemaRef,
        open: Option<OpenArrow>,
    },
    WebDataset(Box<WebDataset>),
}

impl Sink {
    /// A sink for rows of `schema`.
    ///
    /// # Errors
    /// Why the format does not support such rows, and what to do.
    pub(super) fn new(
        format: Format,
        to: &Location,
        schema: &SchemaRef,
        shard_bytes: u64,
        image_extension: ImageExtension,
    ) -> Result<Self, (String, String)> {
        let shards = match format {
            Format::Parquet => Shards::Parquet,
            Format::Arrow => Shards::Arrow { schema: contracts::file_schema(schema), open: None },
            Format::WebDataset => {
                Shards::WebDataset(Box::new(WebDataset::new(schema, shard_bytes, image_extension)?))
            }
        };
        Ok(Self { to: to.clone(), shard_bytes, shards })
    }

    /// Writes rows, at least one, until the shard is full; returns how many.
    pub(super) fn write(
        &mut self,
        split: &mut SplitWriter,
        rows: &RecordBatch,
    ) -> Result<usize, DatasetError> {
        match &mut self.shards {
            Shards::Parquet => split.write(MAIN, rows)?,
            Shards::Arrow { schema, open } => {
                let (path, writer) = match open {
                    Some(open) => open,
                    None => open.insert(begin_arrow(split, &self.to, schema)?),
                };
                writer.write(&conform(MAIN, rows, schema)?).map_err(|error| ipc_error(path, error))?;
            }
            Shards::WebDataset(tars) => return tars.write(split, &self.to, rows),
        }
        Ok(rows.num_rows())
    }

    /// Whether the open shard has reached its size.
    pub(super) fn is_full(&mut self, split: &SplitWriter) -> Result<bool, DatasetError> {
        Ok(match &mut self.shards {
            Shards::Parquet => split.open_bytes(MAIN) as u64 >= self.shard_bytes,
            Shards::Arrow { open: None, .. } => false,
            Shards::Arrow { open: Some((path, writer)), .. } => {
                let bytes = writer.get_mut().stream_position();
                bytes.map_err(|error| DatasetError::io(path.as_path(), error))? >= self.shard_bytes
            }
            Shards::WebDataset(tars) => tars.is_full(),
        })
    }

    /// Closes the open shard, so that the split can be published.
    pub(super) fn finish(&mut self) -> Result<(), DatasetError> {
        match &mut self.shards {
            Shards::Parquet => Ok(()),
            Shards::Arrow { open, .. } => match open.take() {
                Some((path, mut writer)) => writer.finish().map_err(|error| ipc_error(&path, error)),
                None => Ok(()),
            },
            Shards::WebDataset(tars) => tars.finish(),
        }
    }
}

/// Opens an uncompressed Arrow IPC file, which readers can map into memory.
fn begin_arrow(
    split: &mut SplitWriter,
    to: &Location,
    schema: &SchemaRef,
) -> Result<OpenArrow, DatasetError> {
    local::create_dir(&to.local_path().join(MAIN))?;
    let path = split.artifact(&format!("{MAIN}/{:05}.arrow", split.counts().split));
    let file = File::create(&path).map_err(|error| DatasetError::io(&path, error))?;
    let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), schema);
    let writer = writer.map_err(|error| ipc_error(&path, error))?;
    Ok((path, Box::new(writer)))
}

/// Unwraps I/O errors, so that a full disk is reported as such.
fn ipc_error(path: &std::path::Path, error: arrow::error::ArrowError) -> DatasetError {
    match error {
        arrow::error::ArrowError::IoError(_, source) => DatasetError::io(path, source),
        source => DatasetError::Schema { table: path.display().to_string(), source },
    }
}
