//! A split whose file is open, and how its rows become pairs.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use twinlens_dataset::types;
use twinlens_pipeline::RunError;

use super::arrow_columns::FileColumns;
use super::file_reader::FileReader;
use super::format::{Format, TableSplit};
use super::options::{CaptionRule, ColumnKind};
use super::rows::RowPusher;
use super::text::TextSpec;
use crate::pairs::PairBatchBuilder;
use crate::stages::captions;
use crate::stages::common::{arrow_error, file_name};
use crate::stages::files::{InputFile, OnBadFile};
use crate::stages::local::TablePaths;
use crate::stages::split_reader::BatchSink;

#[derive(Debug)]
pub(super) struct OpenSplit {
    /// With the reserved columns of rejects.
    pub(super) schema: SchemaRef,
    pub(super) stage: String,
    pub(super) format: Format,
    pub(super) file: InputFile,
    pub(super) split: TableSplit,
    pub(super) rows: Range<u64>,
    pub(super) reader: FileReader,
    /// The types of the kept columns.
    pub(super) kept: Vec<DataType>,
    pub(super) on_bad_file: OnBadFile,
    /// What the paths of images mean.
    pub(super) paths: Arc<TablePaths>,
}

impl OpenSplit {
    pub(super) fn text_spec(&self) -> TextSpec<'_> {
        self.reader.text_spec(self.format)
    }

    /// The types of the kept columns, for files of text.
    ///
    /// # Errors
    /// Another file gives a column a type that text does not have.
    pub(super) fn kept_kinds(&self) -> Result<Vec<ColumnKind>, RunError> {
        let kinds = self.kept.iter().zip(&self.reader.selection.keep).map(|(kind, kept)| {
            ColumnKind::of(kind).ok_or_else(|| {
                let (file, kind) = (self.file.written(), types::name(kind));
                let message =
                    format!("{file}: the column `{}` is text, but {kind} in another file", kept.source);
                RunError::user_with_hint(message, "set its type: `types`")
            })
        });
        kinds.collect()
    }

    /// The selected columns of a file with this schema.
    pub(super) fn file_columns(&self, schema: &Schema) -> Result<FileColumns, RunError> {
        self.reader.file_columns(Path::new(self.file.written()), schema, &self.kept)
    }

    /// Builds the rows of a file, which may lack captions.
    pub(super) fn pusher(&self, is_image_only: bool) -> RowPusher {
        RowPusher {
            pairs: PairBatchBuilder::with_schema(&self.stage, &self.schema),
            rule: self.reader.selection.captions,
            is_image_only,
            paths: self.paths.clone(),
            keep_invisible: self.reader.keep_invisible,
            lists: (self.reader.selection.captions == Some(CaptionRule::Random)).then(captions::builder),
        }
    }

    /// The pairs of a batch, of which `row` is the number of the first row.
    pub(super) fn push_batch(
        &self,
        columns: &FileColumns,
        pusher: &mut RowPusher,
        batch: &RecordBatch,
        row: u64,
    ) -> Result<RecordBatch, RunError> {
        let location = |index: usize| format!("{} row {}", self.file.name, row + index as u64);
        let kept = columns.push_batch(pusher, batch, &location, &self.kept).map_err(arrow_error)?;
        pusher.finish(kept).map_err(arrow_error)
    }

    /// One reject for the whole file, or its rest.
    pub(super) fn refuse_file(&self, why: &str, send: BatchSink<'_>) -> Result<bool, RunError> {
        let mut rows = self.pusher(false);
        // Where the file lies does not matter.
        let name = file_name(&self.split.file);
        let path = self.file.path().display().to_string();
        let why = why.replace(&path, name).replace(self.file.written(), name);
        let detail = if why.starts_with(name) { why } else { format!("{name}: {why}") };
        rows.reject("bad_file", &detail);
        let kept = self.kept.iter().map(|kind| arrow::array::new_null_array(kind, 1)).collect();
        Ok(send(rows.finish(kept).map_err(arrow_error)?))
    }
}
