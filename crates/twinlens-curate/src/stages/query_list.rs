//! The query list that `match` and `balance` name: a table, or a file of texts.

use std::path::{Path, PathBuf};

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Int32Type};
use datafusion::logical_expr::ident;
use futures::StreamExt;
use twinlens_pipeline::files::stamp;
use twinlens_pipeline::{
    ColumnType, Input, InputData, Inputs, Located, Ports, Required, RunContext, RunError, TableInput,
};

use crate::functions::strings;
use crate::queries::{is_list_file, read_list_file};

const ID: &str = "id";
const TEXT: &str = "text";
const ORIGIN: &str = "origin";

/// A query list as an option names it.
#[derive(Debug, Clone)]
pub(super) enum QueryListInput {
    Table(TableInput),
    File(Located<String>),
}

/// One query of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedQuery {
    pub(super) id: i32,
    pub(super) text: String,
    pub(super) origin: Option<String>,
}

impl QueryListInput {
    /// Declares the list, and checks what is known of it.
    pub(super) fn declare(input: &Input, ports: &mut Ports<'_>) -> Self {
        if is_list_file(input.name()) {
            ports.checked_file(&input.0, |file| Ok(read_list_file(file).map(drop)?));
            return Self::File(input.0.clone());
        }
        let table = ports.table(input);
        let hint = Required::Hint("a query list has the columns `id` and `text`");
        ports.column(&table, ID, ColumnType::Integer, hint);
        ports.text(&table, TEXT, hint);
        ports.text(&table, ORIGIN, Required::No);
        Self::Table(table)
    }

    /// What the list is called in messages.
    pub(super) fn name<'a>(&'a self, inputs: &'a Inputs) -> &'a str {
        match self {
            Self::Table(table) => &inputs.get(table).name,
            Self::File(file) => file.value(),
        }
    }

    /// A text that changes with the contents.
    pub(super) fn identity(&self, cx: &RunContext, inputs: &Inputs) -> Result<String, RunError> {
        match self {
            Self::Table(table) => {
                let list = inputs.get(table);
                let shards = list.dataset.shards(&list.table).map(|s| format!("{} {}", s.path, s.bytes));
                let shards = shards.collect::<Vec<_>>().join(" ");
                let fingerprint = &list.dataset.state().begin.fingerprint;
                Ok(format!("{} {fingerprint} {shards}", list.dataset.dir().display()))
            }
            Self::File(file) => {
                let found = cx.files.expand(file)?;
                let stamps = found.iter().map(|location| Ok(format!("{location} {}", stamp(location)?)));
                Ok(stamps.collect::<Result<Vec<_>, RunError>>()?.join(" "))
            }
        }
    }

    /// A local path beside the list, to which an ending is added for files made of it.
    pub(super) fn local_path(&self, cx: &RunContext, inputs: &Inputs) -> Result<PathBuf, RunError> {
        match self {
            Self::Table(table) => {
                let list = inputs.get(table);
                let mut shards = list.dataset.shards(&list.table);
                let name = match (shards.next(), list.dataset.state().begin.fingerprint.is_empty()) {
                    // A Parquet file lies among other files: the name must be its own.
                    (Some(file), true) => &file.path,
                    _ => &list.table,
                };
                Ok(list.dataset.dir().join(name))
            }
            Self::File(file) => only_file(cx, file),
        }
    }

    /// All queries, in the order of the list.
    ///
    /// # Errors
    /// The user's: a query without an id or a text, an id that is not a 32-bit integer.
    pub(super) async fn read(&self, cx: &RunContext, inputs: &Inputs) -> Result<Vec<ListedQuery>, RunError> {
        match self {
            Self::Table(table) => read_table(cx, inputs.get(table)).await,
            Self::File(file) => {
                let path = only_file(cx, file)?;
                let read = move || read_list_file(&path);
                let queries = twinlens_pipeline::blocking(read).await??;
                Ok(queries.into_iter().map(|(id, text)| ListedQuery { id, text, origin: None }).collect())
            }
        }
    }
}

fn only_file(cx: &RunContext, written: &str) -> Result<PathBuf, RunError> {
    let files = cx.local_files(written)?;
    match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => Err(RunError::user_with_hint(
            format!("{written}: {} files match, and a query list is one", files.len()),
            "name the file",
        )),
    }
}

async fn read_table(cx: &RunContext, list: &InputData) -> Result<Vec<ListedQuery>, RunError> {
    let frame = list.frame(&cx.session).await?;
    let has_origin = frame.schema().has_column_with_unqualified_name(ORIGIN);
    let columns = [ID, TEXT].into_iter().chain(has_origin.then_some(ORIGIN)).map(ident);
    let mut stream = frame.select(columns.collect::<Vec<_>>())?.execute_stream().await?;
    let mut queries = Vec::new();
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let ids = ids(batch.column(0), &list.name)?;
        let ids = ids.as_primitive::<Int32Type>();
        let texts = strings(batch.column(1))?;
        let origins = if has_origin { Some(strings(batch.column(2))?) } else { None };
        for row in 0..batch.num_rows() {
            let (true, true) = (ids.is_valid(row), texts.is_valid(row)) else {
                let (absent, other) = if ids.is_valid(row) { (TEXT, ID) } else { (ID, TEXT) };
                let value = if absent == ID {
                    texts.is_valid(row).then(|| format!("{:?}", texts.value(row)))
                } else {
                    Some(ids.value(row).to_string())
                };
                let which = value.map(|value| format!(" (its `{other}` is {value})")).unwrap_or_default();
                return Err(RunError::user_with_hint(
                    format!("{}: a query has no `{absent}`{which}", list.name),
                    "every row of a query list needs both `id` and `text`",
                ));
            };
            let origin = origins.as_ref().filter(|origins| origins.is_valid(row));
            let origin = origin.map(|origins| origins.value(row).to_string());
            queries.push(ListedQuery { id: ids.value(row), text: texts.value(row).into(), origin });
        }
    }
    Ok(queries)
}

/// Ids of any integer type as those that `query_ids` holds.
fn ids(column: &ArrayRef, list: &str) -> Result<ArrayRef, RunError> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, &DataType::Int32, &strict).map_err(|error| {
        RunError::user_with_hint(
            format!("{list}: the column `{ID}`: {error}"),
            "ids are from -2147483648 to 2147483647",
        )
    })
}

/// The file of a matcher beside a list.
pub(super) fn beside(list: &Path, ending: &str) -> PathBuf {
    let mut name = list.file_name().unwrap_or_default().to_os_string();
    name.push(ending);
    list.with_file_name(name)
}
