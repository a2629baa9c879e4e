//! The `table` stage: reads URLs and captions from Parquet, Arrow, CSV, TSV, JSON or text files.

mod arrow_columns;
mod columns;
mod delimited;
mod encoding;
mod format;
mod ipc;
mod json;
#[cfg(test)]
mod laws;
mod list_text;
mod options;
mod parquet;
mod reader;
mod records;
mod rows;
mod text;
mod window;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_dataset::sniff::FileKind;
use twinlens_dataset::unpack;
use twinlens_pipeline::files::Files;
use twinlens_pipeline::{
    Fault, Located, Ports, RunContext, RunError, SortKey, Source, StageKind, Work, rejects,
};

use self::arrow_columns::FileColumns;
pub use self::columns::CAPTIONS as CAPTION_NAMES;
pub(super) use self::columns::URLS as URL_NAMES;
use self::columns::{ColumnSelection, Complaint};
use self::format::{Format, TableSplit};
use self::options::{CaptionRule, ColumnKind, TableOptions, TextOptions};
use self::reader::TableReader;
use self::text::TextSpec;
use super::captions;
use super::common::{file_name, is_url};
use super::files::{self, FileOpener, ListedFile, OnBadFile};
use super::local::{self, Root, TablePaths};
use super::{options as stage_options, split_reader};

/// Reject codes of rows.
pub const CODES: &[&str] = &[
    "no_url",
    "no_caption",
    "malformed_row",
    "malformed_json",
    "not_utf8",
    "row_too_long",
    "unclosed_quote",
    "wrong_type",
    "bad_file",
    "credentials_in_url",
    local::OUTSIDE,
];

/// `table` as it runs.
pub struct Table {
    files: Vec<Located<String>>,
    reader: FileReader,
    /// The types of the kept columns.
    kept: Vec<DataType>,
    split_rows: u64,
    on_bad_file: OnBadFile,
    root: Option<Located<String>>,
    opener: FileOpener,
}

/// How files are read.
#[derive(Debug, Clone)]
struct FileReader {
    format: Option<Format>,
    selection: ColumnSelection,
    /// The types of the kept columns that the options declare.
    declared: Vec<Option<ColumnKind>>,
    text: TextOptions,
    keep_invisible: bool,
}

impl StageKind for Table {
    type Options = TableOptions;
    const NAME: &'static str = "table";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = r#"
[stages.pairs]
kind = "table"
files = ["laion/part-*.parquet"]
columns = { url = "URL", caption = "TEXT" }
keep = ["similarity"]
"#;

    fn plan(options: TableOptions, ports: &mut Ports<'_>) -> Option<Work> {
        files::declare(ports, &options.files);
        stage_options::check_http(ports, &options.http);
        for file in options.files.iter() {
            // A name without an extension may be that of a directory.
            let is_open = !file_name(file).contains('.');
            if options.format.is_none() && !is_open && Format::from_extension(file).is_none() {
                let fault = Fault::at(
                    file.span(),
                    format!("the format of `{}` cannot be inferred from its extension", file.value()),
                );
                ports.fault(fault.hint(FORMAT_HINT));
            }
        }
        if let (Some(root), Some(files)) = (&options.root, ports.files())
            && let Err(error) = Root::open(&files.base.join(root.value()))
        {
            ports.fault(Fault::at(root.span(), error.to_string()));
        }
        let keep = options.keep.columns();
        let names: Vec<Located<String>> =
            keep.iter().map(|kept| Located::new(kept.name.clone(), kept.span())).collect();
        let lists = (options.captions == Some(CaptionRule::Random)).then(captions::field);
        let texts = contracts::pair_texts();
        let texts = texts.fields().iter().cloned().chain(lists.map(Arc::new)).collect::<Vec<_>>();
        stage_options::check_keep(ports, &names, &Schema::new(texts));
        for name in options.types.keys().filter(|name| keep.iter().all(|kept| kept.name != **name)) {
            let fault = Fault::at(options.types.span(), format!("`types`: `{name}` is not a kept column"));
            ports.fault(fault.hint(format!("add it: `keep = [\"{name}\"]`")));
        }
        let reader = FileReader {
            format: options.format,
            declared: keep.iter().map(|kept| options.types.get(&kept.name).copied()).collect(),
            selection: ColumnSelection {
                columns: options.columns.clone(),
                captions: options.captions,
                keep: keep.iter().map(|kept| kept.value().clone()).collect(),
            },
            text: TextOptions::new(&options, ports),
            keep_invisible: options.keep_invisible,
        };
        let kept = reader.kept_types(ports, &options);
        ports.output(kept.as_ref().map(|kept| reader.schema(kept)), SortKey::columns(ROW_ORDER));
        Some(Work::source(Table {
            files: options.files.value().clone(),
            kept: kept.unwrap_or_else(|| vec![DataType::Utf8; reader.selection.keep.len()]),
            reader,
            split_rows: options.split_rows.max(1) as u64,
            on_bad_file: options.on_bad_file,
            root: options.root,
            opener: FileOpener::new(options.http.value().clone()),
        }))
    }
}

const FORMAT_HINT: &str = "set `format = \"csv\"` (or parquet, arrow, tsv, jsonl, json, txt)";

/// The error of a file that is not of the format that it is read as.
fn not_of_format(path: &Path, format: Format, kind: FileKind) -> RunError {
    let message = format!("{} is {kind}, not {format}", path.display());
    let format = match kind {
        FileKind::Parquet => Some("parquet"),
        FileKind::ArrowFile | FileKind::ArrowStream => Some("arrow"),
        _ => None,
    };
    let hint = match (kind.hint(), format) {
        (Some(hint), _) => hint.to_string(),
        (None, Some(format)) => format!("set `format = \"{format}\"`"),
        (None, None) => "remove it from `files`, or set `format`".into(),
    };
    RunError::user_with_hint(message, hint)
}

/// The error of a damaged file, which `error` names.
fn damaged(error: &dyn Display) -> RunError {
    let hint = "restore the file, remove it from `files`, or set `on_bad_file = \"reject\"`";
    RunError::user_with_hint(error.to_string(), hint)
}

/// An error of a file.
fn complain(path: &Path, (message, hint): Complaint) -> RunError {
    RunError::user_with_hint(format!("{}: {message}", path.display()), hint)
}

impl Table {
    /// What the paths of a file mean.
    fn paths(&self, cx: &RunContext, split: &TableSplit) -> Result<TablePaths, RunError> {
        let folder = match &self.root {
            Some(root) => Some(cx.path(root)),
            None if is_url(&split.file) => None,
            None => {
                let location = cx.files.location(&split.file)?;
                location.as_local().and_then(Path::parent).map(Path::to_path_buf)
            }
        };
        TablePaths::open(&cx.files, folder.as_deref())
    }
}

impl FileReader {
    fn schema(&self, kept: &[DataType]) -> SchemaRef {
        let texts = contracts::pair_texts();
        let kept = (self.selection.keep.iter().zip(kept))
            .map(|(kept, kind)| Arc::new(Field::new(&kept.name, kind.clone(), true)));
        let lists = (self.selection.captions == Some(CaptionRule::Random)).then(captions::field);
        let fields = texts.fields().iter().cloned().chain(kept).chain(lists.map(Arc::new));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The types of the kept columns; `None` if they are those of files that are not opened yet.
    /// Where files may be opened, the first one is checked.
    fn kept_types(&self, ports: &mut Ports<'_>, options: &TableOptions) -> Option<Vec<DataType>> {
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
            Format::Parquet => {
                self.check_kind(path, Format::Parquet)?;
                parquet::schema(path)?
            }
            Format::Arrow => {
                self.check_kind(path, Format::Arrow)?;
                ipc::schema(path)?
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
    fn file_columns(&self, path: &Path, schema: &Schema, kept: &[DataType]) -> Result<FileColumns, RunError> {
        let columns = FileColumns::new(&self.selection, schema).map_err(|why| complain(path, why))?;
        let is_declared: Vec<bool> = self.declared.iter().map(Option::is_some).collect();
        columns.check_kept(kept, &is_declared).map_err(|why| complain(path, why))?;
        Ok(columns)
    }

    /// Checks that a file is what its name or the option says.
    fn check_kind(&self, path: &Path, format: Format) -> Result<(), RunError> {
        let unpacked = unpack::open(path).map_err(|error| damaged(&error))?;
        if !unpacked.layers.is_empty() && format.fits(unpacked.kind) {
            let message = format!("{} is compressed: {format} files are read in pieces", path.display());
            return Err(RunError::user_with_hint(message, "decompress it: the format compresses by itself"));
        }
        if format.fits(unpacked.kind) { Ok(()) } else { Err(not_of_format(path, format, unpacked.kind)) }
    }

    fn text_spec(&self, format: Format) -> TextSpec<'_> {
        TextSpec { format, options: &self.text, selection: &self.selection }
    }

    fn format_of(&self, file: &str) -> Result<Format, RunError> {
        self.format.or_else(|| Format::from_extension(file)).ok_or_else(|| {
            RunError::user_with_hint(
                format!("the format of {file} cannot be inferred from its extension"),
                FORMAT_HINT,
            )
        })
    }

    /// The splits of the file `name`, which is here at `path`.
    fn splits(
        &self,
        (name, path): (&str, &Path),
        kept: &[DataType],
        every: u64,
    ) -> Result<Vec<TableSplit>, RunError> {
        let format = self.format_of(&path.display().to_string())?;
        let split = || TableSplit { file: name.into(), ..TableSplit::default() };
        let total = match format {
            Format::Parquet => {
                self.check_kind(path, format)?;
                let (schema, rows) = parquet::inspect(path)?;
                self.file_columns(path, &schema, kept)?;
                rows
            }
            Format::Arrow => {
                self.check_kind(path, format)?;
                let (schema, rows) = ipc::inspect(path)?;
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

#[async_trait]
impl Source for Table {
    type Split = TableSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<TableSplit>, RunError> {
        let (mut splits, mut refused, mut usable) = (Vec::new(), None, 0);
        for ListedFile { name, path } in files::list(cx, &self.files)? {
            cx.check_cancelled()?;
            let Some(path) = path else {
                splits.push(TableSplit { file: name, ..TableSplit::default() });
                usable += 1;
                continue;
            };
            let (reader, every, kept) = (self.reader.clone(), self.split_rows, self.kept.clone());
            let file = (name.clone(), path.clone());
            let found = move || reader.splits((&file.0, &file.1), &kept, every);
            match twinlens_pipeline::blocking(found).await? {
                Ok(found) => {
                    usable += found.len();
                    splits.extend(found);
                }
                Err(RunError::User { message, hint }) if self.on_bad_file == OnBadFile::Reject => {
                    // Where the file lies does not matter.
                    let why = message.replace(&path.display().to_string(), file_name(&name));
                    splits.push(TableSplit { file: name, refused: Some(why), ..TableSplit::default() });
                    refused.get_or_insert(RunError::User { message, hint });
                }
                Err(error) => return Err(error),
            }
        }
        if usable == 0 {
            let why = "there are no rows in the files that `files` names";
            return Err(refused.unwrap_or_else(|| RunError::user_with_hint(why, "check the files")));
        }
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &TableSplit) -> Result<DataFrame, RunError> {
        let file = match &split.refused {
            Some(_) => files::InputFile::local(PathBuf::from(&split.file)),
            None => self.opener.open(cx, &split.file).await?,
        };
        let format = self.reader.format_of(&split.file).unwrap_or(Format::Csv);
        if split.refused.is_none() && !format.is_text() {
            let (reader, path) = (self.reader.clone(), file.path().to_path_buf());
            twinlens_pipeline::blocking(move || reader.check_kind(&path, format)).await??;
        }
        let reader = TableReader {
            schema: rejects::schema_with_reserved(&self.reader.schema(&self.kept)),
            stage: cx.stage.clone(),
            format,
            file,
            rows: split.rows.clone().unwrap_or(0..u64::MAX),
            split: split.clone(),
            reader: self.reader.clone(),
            kept: self.kept.clone(),
            on_bad_file: self.on_bad_file,
            paths: Arc::new(self.paths(cx, split)?),
        };
        split_reader::data_frame(cx, reader)
    }
}
