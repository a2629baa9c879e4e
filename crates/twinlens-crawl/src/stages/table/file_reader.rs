//! How the files of a stage are read, and what they say of themselves.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use twinlens_dataset::{contracts, unpack};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::{Fault, Ports, RunError};

use super::arrow_columns::FileColumns;
use super::columnar;
use super::columns::{ColumnSelection, Complaint};
use super::errors::{complain, damaged, not_of_format};
use super::format::{Format, TableSplit};
use super::options::{CaptionRule, ColumnKind, TableOptions, TextOptions};
use super::text::{self, TextSpec};
use crate::stages::captions;
use crate::stages::common::is_url;
use crate::stages::files::OnBadFile;

pub(super) const FORMAT_HINT: &str = "set `format = \"csv\"` (or parquet, arrow, tsv, jsonl, json, txt)";

/// How files are read.
#[derive(Debug, Clone)]
pub(super) struct FileReader {
    pub(super) format: Option<Format>,
    pub(super) selection: ColumnSelection,
    /// The types of the kept columns that the options declare.
    pub(super) declared: Vec<Option<ColumnKind>>,
    pub(super) text: TextOptions,
    pub(super) keep_invisible: bool,
}

impl FileReader {
    pub(super) fn schema(&self, kept: &[DataType]) -> SchemaRef {
        let texts = contracts::pair_texts();
        let kept = (self.selection.keep.iter().zip(kept))
            .map(|(kept, kind)| Arc::new(Field::new(&kept.name, kind.clone(), true)));
        let lists = (self.selection.captions == Some(CaptionRule::Random)).then(captions::field);
        let fields = texts.fields().iter().cloned().chain(kept).chain(lists.map(Arc::new));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The types of the kept columns; `None` if they are those of files that are not opened yet.
    /// Where files may be opened, the first one is checked.
    pub(super) fn kept_types(&self, ports: &mut Ports<'_>, options: &TableOptions) -> Option<Vec<DataType>> {
        let declared = || self.declared.iter().map(|kind| kind.map(ColumnKind::data_type));
        let text_or = |kind: Option<DataType>| kind.unwrap_or(DataType::Utf8);
        let Some(files) = ports.files().cloned() else {
            // Delimited text has no types.
            let is_untyped = options
                .files
                .iter()
                .all(|file| matches!(self.format_of(file), Ok(Format::Csv | Format::Tsv | Format::Txt)));
            return if is_untyped { Some(declared().map(text_or).collect()) } else { declared().collect() };
        };
        match self.inspect_first(&files, options) {
            Ok(Some(found)) => {
                Some(declared().zip(found).map(|(declared, found)| declared.unwrap_or(found)).collect())
            }
            // Files on web servers are opened when they are read.
            Ok(None) => Some(declared().map(text_or).collect()),
            Err(error) => {
                let (message, hint) = match error {
                    RunError::User { message, hint } => (message, hint),
                    other => (other.to_string(), None),
                };
                let fault = Fault::at(options.files.span(), message);
                ports.fault(hint.into_iter().fold(fault, Fault::hint));
                None
            }
        }
    }

    /// The types of the kept columns in the first file; `None` if all files are on web servers.
    fn inspect_first(
        &self,
        files: &Files,
        options: &TableOptions,
    ) -> Result<Option<Vec<DataType>>, RunError> {
        let mut refused = None;
        for written in options.files.iter().filter(|file| !is_url(file)) {
            // A missing file is reported with those of the other stages.
            for location in files.expand(written).unwrap_or_default() {
                let path = location.local_copy()?;
                match self.inspect(&path) {
                    Ok(kinds) => return Ok(Some(kinds)),
                    Err(error) if options.on_bad_file == OnBadFile::Stop => return Err(error),
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Checks the columns of a file, and gives the types of those that are kept.
    fn inspect(&self, path: &Path) -> Result<Vec<DataType>, RunError> {
        let schema = match self.format_of(&path.display().to_string())? {
            format @ (Format::Parquet | Format::Arrow) => {
                self.check_kind(path, format)?;
                columnar::schema(path, format)?
            }
            format => {
                let shape = text::inspect(path, self.text_spec(format))?;
                return Ok(shape.kinds.into_iter().map(ColumnKind::data_type).collect());
            }
        };
        let complain = |why: Complaint| complain(path, why);
        let columns = FileColumns::new(&self.selection, &schema).map_err(complain)?;
        if self.declared.iter().all(Option::is_some) {
            return Ok(self.declared.iter().flatten().map(|kind| kind.data_type()).collect());
        }
        columns.kept_types().map_err(complain)
    }

    /// The selected columns of a file with this schema, which must have the types of the others.
    pub(super) fn file_columns(
        &self,
        path: &Path,
        schema: &Schema,
        kept: &[DataType],
    ) -> Result<FileColumns, RunError> {
        let columns = FileColumns::new(&self.selection, schema).map_err(|why| complain(path, why))?;
        let is_declared: Vec<bool> = self.declared.iter().map(Option::is_some).collect();
        columns.check_kept(kept, &is_declared).map_err(|why| complain(path, why))?;
        Ok(columns)
    }

    /// Checks that a file is what its name or the option says.
    pub(super) fn check_kind(&self, path: &Path, format: Format) -> Result<(), RunError> {
        let unpacked = unpack::open(path).map_err(|error| damaged(&error))?;
        if !unpacked.layers.is_empty() && format.fits(unpacked.kind) {
            let message = format!("{} is compressed: {format} files are read in pieces", path.display());
            return Err(RunError::user_with_hint(message, "decompress it: the format compresses by itself"));
        }
        if format.fits(unpacked.kind) { Ok(()) } else { Err(not_of_format(path, format, unpacked.kind)) }
    }

    pub(super) fn text_spec(&self, format: Format) -> TextSpec<'_> {
        TextSpec { format, options: &self.text, selection: &self.selection }
    }

    pub(super) fn format_of(&self, file: &str) -> Result<Format, RunError> {
        self.format.or_else(|| Format::from_extension(file)).ok_or_else(|| {
            RunError::user_with_hint(
                format!("the format of {file} cannot be inferred from its extension"),
                FORMAT_HINT,
            )
        })
    }

    /// The splits of the file `name`, which is here at `path`.
    pub(super) fn splits(
        &self,
        (name, path): (&str, &Path),
        kept: &[DataType],
        every: u64,
    ) -> Result<Vec<TableSplit>, RunError> {
        let format = self.format_of(&path.display().to_string())?;
        let split = || TableSplit { file: name.into(), ..TableSplit::default() };
        let total = match format {
            Format::Parquet | Format::Arrow => {
                self.check_kind(path, format)?;
                let (schema, rows) = columnar::inspect(path, format)?;
                self.file_columns(path, &schema, kept)?;
                rows
            }
            _ => {
                let spec = self.text_spec(format);
                let shape = text::inspect(path, spec)?;
                if !shape.is_seekable {
                    return Ok(vec![split()]);
                }
                let pieces = text::index(path, spec, &shape, every)?.into_iter();
                return Ok(pieces
                    .map(|(rows, position)| TableSplit {
                        rows: Some(rows),
                        position: Some(position),
                        ..split()
                    })
                    .collect());
            }
        };
        let ranges = (0..total.div_ceil(every)).map(|number| number * every..total.min((number + 1) * every));
        Ok(ranges.map(|rows| TableSplit { rows: Some(rows), ..split() }).collect())
    }
}
