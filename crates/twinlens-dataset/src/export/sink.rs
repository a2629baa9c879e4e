//! Where the rows of an export go: the shard that is being written, in one of the formats.

use std::fs::File;
use std::io::{BufWriter, Seek};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::FileWriter;

use super::Format;
use super::webdataset::{Ending, WebDataset};
use crate::error::DatasetError;
use crate::shard::conform;
use crate::storage::{Location, local};
use crate::writer::SplitWriter;
use crate::{MAIN, contracts};

/// Writes rows to the open shard of a split, and says when that is full.
pub(super) struct Sink {
    to: Location,
    shard_bytes: u64,
    shards: Shards,
}

/// A file that is being written, by its path.
type OpenArrow = (PathBuf, Box<FileWriter<BufWriter<File>>>);

enum Shards {
    /// A table of the dataset that the export is.
    Parquet,
    Arrow {
        schema: SchemaRef,
        open: Option<OpenArrow>,
    },
    WebDataset(Box<WebDataset>),
}

impl Sink {
    /// For rows of `schema`.
    ///
    /// # Errors
    /// The user's: why such rows cannot be written so, and what to do.
    pub(super) fn new(
        format: Format,
        to: &Location,
        schema: &SchemaRef,
        shard_bytes: u64,
        ending: Ending,
    ) -> Result<Self, (String, String)> {
        let shards = match format {
            Format::Parquet => Shards::Parquet,
            Format::Arrow => Shards::Arrow { schema: contracts::in_files(schema), open: None },
            Format::WebDataset => Shards::WebDataset(Box::new(WebDataset::new(schema, shard_bytes, ending)?)),
        };
        Ok(Self { to: to.clone(), shard_bytes, shards })
    }

    /// Writes rows, at least one of them, until the shard is full; how many.
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

    /// Whether the open shard has as much as it should.
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

    /// Ends the open shard; the split may be published then.
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

/// The file format of Arrow IPC, not compressed: what it holds can be mapped into memory.
fn begin_arrow(
    split: &mut SplitWriter,
    to: &Location,
    schema: &SchemaRef,
) -> Result<OpenArrow, DatasetError> {
    local::create_dir(&to.folder().join(MAIN))?;
    let path = split.artifact(&format!("{MAIN}/{:05}.arrow", split.counts().split));
    let file = File::create(&path).map_err(|error| DatasetError::io(&path, error))?;
    let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), schema);
    let writer = writer.map_err(|error| ipc_error(&path, error))?;
    Ok((path, Box::new(writer)))
}

/// An Arrow error as what it is underneath: a full disk must be told as a full disk.
fn ipc_error(path: &std::path::Path, error: arrow::error::ArrowError) -> DatasetError {
    match error {
        arrow::error::ArrowError::IoError(_, source) => DatasetError::io(path, source),
        source => DatasetError::Schema { table: path.display().to_string(), source },
    }
}
