//! Reads a split by the format of its file.

use arrow::datatypes::SchemaRef;
use twinlens_pipeline::RunError;

use super::format::Format;
use super::open_split::OpenSplit;
use super::{ipc, parquet, text_rows};
use crate::stages::split_reader::{BatchSink, SplitReader};

impl SplitReader for OpenSplit {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        if let Some(why) = &self.split.refused {
            self.refuse_file(why, send)?;
            return Ok(());
        }
        let read = match self.format {
            Format::Parquet => parquet::read(self, send),
            Format::Arrow => ipc::read(self, send),
            _ => text_rows::read(self, send),
        };
        let is_complete = match read {
            Ok(is_complete) => is_complete,
            Err(error) => match self.on_bad_file.refuse(&error) {
                Some(why) => self.refuse_file(&why, send)?,
                None => return Err(self.file.name_source(error)),
            },
        };
        if is_complete {
            self.file.mark_read();
        }
        Ok(())
    }
}
