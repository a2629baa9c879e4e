//! The `table` stage: reads URLs and captions from Parquet, Arrow, CSV, TSV, JSON or text files.

mod arrow_columns;
mod columnar;
mod columns;
mod delimited;
mod encoding;
mod errors;
mod file_reader;
mod format;
mod ipc;
mod json;
mod json_scanner;
#[cfg(test)]
mod laws;
mod list_text;
mod open_split;
mod options;
mod parquet;
mod reader;
mod records;
mod rows;
mod text;
mod text_rows;
mod window;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_pipeline::{
    Fault, Located, Ports, RunContext, RunError, SortKey, Source, StageKind, Work, rejects,
};

use self::columns::ColumnSelection;
use self::file_reader::{FORMAT_HINT, FileReader};
use self::format::{Format, TableSplit};
use self::open_split::OpenSplit;
use self::options::{CaptionRule, TableOptions, TextOptions};
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
        let reader = OpenSplit {
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
