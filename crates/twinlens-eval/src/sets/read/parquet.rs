//! Parquet files in the layout of Hugging Face's `datasets` (images as `struct<bytes, path>`,
//! labels as `ClassLabel`), and datasets of a run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use twinlens_dataset::image_column::NotImages;
use twinlens_dataset::samples::DAMAGED;
use twinlens_dataset::types::is_text;
use twinlens_dataset::{Dataset, DatasetError, ImageColumn, MAIN};
use twinlens_image::Limits;
use twinlens_pipeline::RunError;
use twinlens_pipeline::suggest::list_names;

use super::example::{Example, MALFORMED, SetFiles, TOO_MANY_BYTES, Take, Truth};
use super::files::{io, short};
use crate::error::EvalError;
use crate::images::{Examples, NO_IMAGE, NO_LABEL, Reject};
use crate::set::hub_class_names;
use crate::sets::declaration::{Declaration, Task};
use crate::sets::layout::Reader;

/// Maximum rows per batch, and its approximate maximum size in bytes.
const ROWS: usize = 128;
const BYTES: usize = 32 << 20;

/// The usual names of columns, in order of preference.
const CAPTION_COLUMNS: &[&str] = &["caption", "captions", "sentences", "text", "txt"];
const LABEL_LIST_COLUMNS: &[&str] = &["labels", "classes", "label", "objects"];
const CLASS_COLUMNS: &[&str] = &["label", "fine_label", "labels", "class", "cls", "class_name"];

/// The candidate columns, in order of preference.
#[derive(Debug)]
pub(super) struct Columns {
    image: Vec<String>,
    truth: Vec<String>,
    captions: bool,
}

impl Columns {
    /// The columns of the set's reader, then the usual names.
    pub(super) fn of(set: &Declaration) -> Self {
        let usual = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let captions = set.task == Task::Retrieval;
        let mut columns = Self {
            image: usual(&["image", "img", "webp", "jpg", "png"]),
            truth: match set.task {
                Task::Retrieval => usual(CAPTION_COLUMNS),
                Task::MultiLabel => usual(LABEL_LIST_COLUMNS),
                Task::Classification => usual(CLASS_COLUMNS),
            },
            captions,
        };
        if let Some(Reader::Parquet { image, label, caption }) = &set.reader {
            let truth = if captions { caption } else { label };
            columns.image.splice(0..0, image.clone());
            columns.truth.splice(0..0, truth.clone());
        }
        columns
    }
}

/// Tables with one schema.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<(String, Dataset)>,
    image: String,
    truth: String,
    captions: bool,
    names: Option<Vec<String>>,
}

/// The Parquet files of a split, in the first of `root/SPLIT`, `root/data` and `root` that has any:
/// those whose name starts with the split, or if there are none, all.
pub(crate) fn files(root: &Path, split: &str) -> Result<Vec<PathBuf>, EvalError> {
    for folder in [root.join(split), root.join("data"), root.to_path_buf()] {
        if !folder.is_dir() {
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io(&folder))? {
            let path = entry.map_err(io(&folder))?.path();
            if path.extension().is_some_and(|ending| ending == "parquet") {
                found.push(path);
            }
        }
        found.sort();
        let own: Vec<PathBuf> = found.iter().filter(|path| short(path).starts_with(split)).cloned().collect();
        let found = if own.is_empty() { found } else { own };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The task that the columns of a Parquet file are for: labels come before captions.
pub(crate) fn task(file: &Path) -> Result<Task, RunError> {
    let schema = Dataset::parquet_schema(&file.into())?;
    let find = |names: &[&str]| names.iter().find_map(|name| schema.field_with_name(name).ok());
    Ok(match find(CLASS_COLUMNS).or_else(|| find(LABEL_LIST_COLUMNS)) {
        Some(field) if is_list(field.data_type()) => Task::MultiLabel,
        None if find(CAPTION_COLUMNS).is_some() => Task::Retrieval,
        _ => Task::Classification,
    })
}

fn is_list(kind: &DataType) -> bool {
    matches!(kind, DataType::List(_) | DataType::LargeList(_))
}

impl Tables {
    /// Opens Parquet files.
    pub(super) fn open(files: &[PathBuf], columns: &Columns, set: &str) -> Result<Self, EvalError> {
        let damaged = |error: DatasetError| EvalError::set(set, error.to_string(), None);
        let open = |path: &PathBuf| Ok((short(path), Dataset::from_parquet(path).map_err(damaged)?));
        Self::of(files.iter().map(open).collect::<Result<_, EvalError>>()?, columns, set)
    }

    /// Opens the directory of a dataset.
    pub(super) fn of_dataset(folder: &Path, columns: &Columns, set: &str) -> Result<Self, EvalError> {
        let dataset = Dataset::open(folder).map_err(|error| EvalError::set(set, error.to_string(), None))?;
        let shards =
            dataset.shards(MAIN).map(|shard| (shard.path.clone(), dataset.only_shard(shard))).collect();
        Self::of(shards, columns, set)
    }

    fn of(tables: Vec<(String, Dataset)>, columns: &Columns, set: &str) -> Result<Self, EvalError> {
        let Some((file, first)) = tables.first() else {
            return Err(EvalError::set(set, "its dataset has no rows", None));
        };
        let schema = first.schema(MAIN)?;
        let find = |names: &[String], what: &str| {
            let found = names.iter().find(|name| schema.field_with_name(name).is_ok());
            found.cloned().ok_or_else(|| {
                let has = list_names(schema.fields().iter().map(|field| field.name().as_str()));
                let why = format!("{file} has no column of {what}; its columns are {has}");
                EvalError::set(
                    set,
                    why,
                    Some(format!("expected one of {}", list_names(names.iter().map(String::as_str)))),
                )
            })
        };
        let (image, truth) = (find(&columns.image, "images")?, find(&columns.truth, "labels or captions")?);
        for (table, dataset) in &tables {
            let schema = dataset.schema(MAIN)?;
            check_types(&schema, [&image, &truth], columns.captions)
                .map_err(|(why, hint)| EvalError::set(set, format!("{table}: {why}"), Some(hint)))?;
        }
        let names = match hub_class_names(&schema, &truth) {
            None if !columns.captions
                && schema.field_with_name(&truth).is_ok_and(|field| is_text(field.data_type())) =>
            {
                Some(distinct(&tables, &truth)?)
            }
            names => names,
        };
        Ok(Self { tables, image, truth, captions: columns.captions, names })
    }
}

/// Checks that the columns of images and of labels or captions can be read; a missing one is a
/// reject for each row.
///
/// # Errors
/// Message and hint.
fn check_types(schema: &Schema, [image, truth]: [&str; 2], captions: bool) -> Result<(), (String, String)> {
    let kind = |name: &str| schema.field_with_name(name).ok().map(Field::data_type);
    kind(image)
        .map_or(Ok(()), ImageColumn::check)
        .map_err(|error| (format!("the image column `{image}` is {error}"), NotImages::HINT.into()))?;
    let item = match kind(truth) {
        Some(DataType::List(item) | DataType::LargeList(item)) => Some(item.data_type()),
        kind => kind,
    };
    match item {
        None => Ok(()),
        Some(kind) if is_text(kind) || (!captions && kind.is_integer()) => Ok(()),
        Some(kind) if captions => {
            let hint = "expected strings, or lists of strings";
            Err((format!("the caption column `{truth}` is of type {kind}"), hint.into()))
        }
        Some(kind) => {
            let hint = "expected integers (label ids) or strings (class names): convert the column, such as with `sql`";
            Err((format!("the label column `{truth}` is of type {kind}"), hint.into()))
        }
    }
}

/// The distinct texts of a column, sorted: the class names of data without integer labels.
fn distinct(tables: &[(String, Dataset)], column: &str) -> Result<Vec<String>, EvalError> {
    let mut seen = BTreeSet::new();
    for (_, dataset) in tables {
        for chunk in Examples::new(dataset, MAIN, &[column], 8192, BYTES) {
            let found = chunk?.batch.column_by_name(column).and_then(texts).unwrap_or_default();
            seen.extend(found);
        }
    }
    Ok(seen.into_iter().collect())
}

impl SetFiles for Tables {
    fn parts(&self) -> Vec<String> {
        self.tables.iter().map(|(name, _)| name.clone()).collect()
    }

    fn names(&self) -> Option<Vec<String>> {
        self.names.clone()
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        let Some((name, dataset)) = self.tables.get(part) else { return Ok(()) };
        let examples = Examples::new(dataset, MAIN, &[&self.image, &self.truth], ROWS, BYTES);
        for chunk in examples {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    let refusal = Reject { code: DAMAGED, detail: error.to_string() };
                    let (image, truth) = (Err(refusal.clone()), Err(refusal));
                    return take(Example { place: name.clone(), path: name.clone(), image, truth });
                }
            };
            let images = self.images(&chunk.batch);
            for row in 0..chunk.batch.num_rows() {
                let place = format!("{name} row {}", chunk.first + row as u64);
                let image = images.as_ref().map_err(Reject::clone);
                let path = image.as_ref().ok().and_then(|images| images.path(row)).map(String::from);
                let image = image.and_then(|images| image_bytes(images, row, limits));
                let truth = self.truth(&chunk.batch, row);
                take(Example { path: path.unwrap_or_else(|| place.clone()), place, image, truth })?;
            }
        }
        Ok(())
    }
}

impl Tables {
    fn images(&self, batch: &RecordBatch) -> Result<ImageColumn, Reject> {
        let refuse = |detail: String| Reject { code: NO_IMAGE, detail };
        let column = batch.column_by_name(&self.image);
        let column = column.ok_or_else(|| refuse("the shard lacks the image column".into()))?;
        ImageColumn::new(column).map_err(|error| refuse(format!("the image column is {error}")))
    }

    fn truth(&self, batch: &RecordBatch, row: usize) -> Result<Truth, Reject> {
        let none = |detail: &str| Reject { code: NO_LABEL, detail: detail.into() };
        let column =
            batch.column_by_name(&self.truth).ok_or_else(|| none("the shard lacks the label column"))?;
        if column.is_null(row) {
            return Err(none("the label is null"));
        }
        let cell = column.slice(row, 1);
        let inner = match cell.data_type() {
            DataType::List(_) => Some(cell.as_list::<i32>().value(0)),
            DataType::LargeList(_) => Some(cell.as_list::<i64>().value(0)),
            _ => None,
        };
        let malformed = || Reject {
            code: MALFORMED,
            detail: format!("a label of the type {} cannot be read", cell.data_type()),
        };
        let several = inner.is_some();
        let values = inner.unwrap_or_else(|| cell.clone());
        if self.captions {
            return texts(&values).map(Truth::Captions).ok_or_else(malformed);
        }
        if values.data_type().is_integer() {
            let values = cast(&values, &DataType::Int64).map_err(|_| malformed())?;
            let ids = values.as_primitive::<Int64Type>().values().to_vec();
            return match (several, &ids[..]) {
                (false, [id]) => Ok(Truth::Id(*id)),
                _ => Ok(Truth::Ids { present: ids, ignored: Vec::new(), of: None }),
            };
        }
        let mut names = texts(&values).ok_or_else(malformed)?;
        match (several, names.pop(), names.is_empty()) {
            (false, Some(name), true) => Ok(Truth::Name(name)),
            _ => Err(malformed()),
        }
    }
}

/// The image file of a row.
fn image_bytes(images: &ImageColumn, row: usize, limits: &Limits) -> Result<Vec<u8>, Reject> {
    match images.get(row) {
        None => Err(Reject { code: NO_IMAGE, detail: "the row holds no image bytes".into() }),
        Some(bytes) if bytes.len() as u64 > limits.max_bytes => {
            Err(Reject { code: TOO_MANY_BYTES, detail: format!("{} bytes", bytes.len()) })
        }
        Some(bytes) => Ok(bytes.to_vec()),
    }
}

/// The texts of a column without nulls; `None` if it is of another type.
fn texts(column: &ArrayRef) -> Option<Vec<String>> {
    if !is_text(column.data_type()) {
        return None;
    }
    let texts = cast(column, &DataType::Utf8).ok()?;
    Some(texts.as_string::<i32>().iter().flatten().map(String::from).collect())
}
