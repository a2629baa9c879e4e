//! Rows of Arrow batches: from Parquet and Arrow files.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, ListArray, RecordBatch, StringArray, StructArray, UInt32Array,
    make_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ArrowSchemaConverter;
use twinlens_dataset::{contracts, types};

use super::columns::{ColumnSelection, Complaint};
use super::options::{CaptionRule, ColumnKind, LIST_HINT};
use super::rows::{Row, RowCaptions, RowPusher};

/// A column of a file, or a field of one of struct type.
#[derive(Debug, Clone)]
struct ColumnPath {
    name: String,
    /// Index of the column.
    root: usize,
    /// Name of the column, and of the fields in it.
    path: Vec<String>,
    kind: DataType,
}

impl ColumnPath {
    /// Finds `name` in a schema: a column, or a path like `image.url`.
    fn find(name: &str, schema: &Schema) -> Option<Self> {
        for (end, _) in
            name.match_indices('.').chain([(name.len(), "")]).collect::<Vec<_>>().into_iter().rev()
        {
            let Ok(root) = schema.index_of(&name[..end]) else { continue };
            let (mut path, mut kind) = (vec![name[..end].to_string()], schema.field(root).data_type());
            for part in name[end..].split('.').skip(1) {
                let DataType::Struct(fields) = kind else { return None };
                kind = fields.find(part)?.1.data_type();
                path.push(part.into());
            }
            return Some(Self { name: name.into(), root, path, kind: kind.clone() });
        }
        None
    }

    fn array(&self, batch: &RecordBatch) -> Result<ArrayRef, ArrowError> {
        let missing = || ArrowError::SchemaError(format!("a batch lacks the column `{}`", self.name));
        let mut array = batch.column_by_name(&self.path[0]).ok_or_else(missing)?.clone();
        for part in &self.path[1..] {
            let parent: &StructArray = array.as_struct_opt().ok_or_else(missing)?;
            let field = parent.column_by_name(part).ok_or_else(missing)?;
            let nulls = NullBuffer::union(parent.nulls(), field.nulls());
            array = make_array(field.to_data().into_builder().nulls(nulls).build()?);
        }
        Ok(array)
    }
}

/// The selected columns of a file.
#[derive(Debug)]
pub(super) struct FileColumns {
    url: Vec<ColumnPath>,
    captions: Vec<ColumnPath>,
    page_url: Vec<ColumnPath>,
    text_source: Vec<ColumnPath>,
    kept: Vec<ColumnPath>,
}

fn is_text(kind: &DataType) -> bool {
    types::is_text(kind) || kind == &DataType::Null
}

fn is_text_list(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_text(item.data_type())
        }
        _ => false,
    }
}

impl FileColumns {
    /// # Errors
    /// A column is missing, or of another type.
    pub(super) fn new(selection: &ColumnSelection, schema: &Schema) -> Result<Self, Complaint> {
        let mut all: Vec<ColumnPath> =
            (schema.fields().iter()).filter_map(|field| ColumnPath::find(field.name(), schema)).collect();
        let mut wanted: Vec<&str> = selection.candidates().concat();
        wanted.extend(selection.keep.iter().map(|kept| kept.source.as_str()));
        for name in wanted {
            if !all.iter().any(|column| column.name == name) {
                all.extend(ColumnPath::find(name, schema));
            }
        }
        let names: Vec<String> = all.iter().map(|column| column.name.clone()).collect();
        let found = selection.resolve(&names, "rename one of them in the file")?;
        let columns = |indices: &[usize]| indices.iter().map(|&index| all[index].clone()).collect::<Vec<_>>();
        let takes_lists =
            matches!(selection.captions, Some(CaptionRule::Each | CaptionRule::First | CaptionRule::Random));
        let captions = columns(&found.caption);
        if let Some(first) = captions.first().filter(|first| is_text_list(&first.kind) && !takes_lists) {
            let message = format!("the column `{}` is of type {}", first.name, types::name(&first.kind));
            return Err((format!("{message}, not text"), LIST_HINT.into()));
        }
        let is_caption = |kind: &DataType| is_text(kind) || takes_lists && is_text_list(kind);
        Ok(Self {
            url: of_type(columns(&found.url), "url", is_text)?,
            captions: of_type(captions, "caption", is_caption)?,
            page_url: of_type(columns(&found.page_url), "page_url", is_text)?,
            text_source: of_type(columns(&found.text_source), "text_source", is_text)?,
            kept: columns(&found.kept),
        })
    }

    /// Whether the file has no captions.
    pub(super) fn is_image_only(&self) -> bool {
        self.captions.is_empty()
    }

    /// The indices of the columns to read.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        let texts = [&self.url, &self.captions, &self.page_url, &self.text_source];
        texts.into_iter().flatten().chain(&self.kept).map(|column| column.root)
    }

    /// The types that the kept columns have in the output.
    ///
    /// # Errors
    /// A type cannot be stored.
    pub(super) fn kept_types(&self) -> Result<Vec<DataType>, Complaint> {
        self.kept
            .iter()
            .map(|column| {
                let kind = stored_type(&column.kind);
                let schema = Schema::new(vec![Field::new(&column.name, kind.clone(), true)]);
                ArrowSchemaConverter::new().convert(&schema).map(|_| kind).map_err(|error| {
                    let kind = types::name(&column.kind);
                    let message =
                        format!("the column `{}` of type {kind} cannot be kept: {error}", column.name);
                    (message, "leave it out of `keep`, or set its type: `types`".into())
                })
            })
            .collect()
    }

    /// Checks that the kept columns can become columns of these types; those of declared types may
    /// be converted.
    pub(super) fn check_kept(&self, kinds: &[DataType], is_declared: &[bool]) -> Result<(), Complaint> {
        for ((column, kind), is_declared) in self.kept.iter().zip(kinds).zip(is_declared) {
            if !converts(&column.kind, kind, *is_declared) {
                let (name, found, kind) = (&column.name, types::name(&column.kind), types::name(kind));
                let (message, hint) = if *is_declared {
                    (
                        format!("the column `{name}` is of type {found}, which does not become {kind}"),
                        "change `types`",
                    )
                } else {
                    (
                        format!("the column `{name}` is of type {found}, not {kind} as expected"),
                        "set its type: `types`",
                    )
                };
                return Err((message, hint.into()));
            }
        }
        Ok(())
    }

    /// Adds the rows of a batch, of which `number` is the number of the first. Gives the kept
    /// columns.
    pub(super) fn push_batch(
        &self,
        rows: &mut RowPusher,
        batch: &RecordBatch,
        location: &dyn Fn(usize) -> String,
        kinds: &[DataType],
    ) -> Result<Vec<ArrayRef>, ArrowError> {
        let texts = |columns: &[ColumnPath]| {
            columns.iter().map(|column| TextColumn::new(&column.array(batch)?)).collect::<Result<Vec<_>, _>>()
        };
        let (url, page_url) = (texts(&self.url)?, texts(&self.page_url)?);
        let (captions, text_source) = (texts(&self.captions)?, texts(&self.text_source)?);
        let kept = self.kept.iter().map(|column| column.array(batch)).collect::<Result<Vec<_>, _>>()?;
        let cast = kept.iter().zip(kinds).map(|(array, kind)| cast(array, kind));
        let cast = cast.collect::<Result<Vec<_>, _>>()?;
        let nulls: Vec<Option<NullBuffer>> = kept.iter().map(|array| array.logical_nulls()).collect();
        let changed =
            kept.iter().zip(&cast).map(|(from, to)| changed(from, to)).collect::<Result<Vec<_>, _>>()?;
        let is_changed = |column: usize, row| changed[column].as_ref().is_some_and(|all| all.value(row));
        let is_null = |column: usize, row| nulls[column].as_ref().is_some_and(|nulls| nulls.is_null(row));
        let mut indices = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            // A value that the cast could not convert.
            let is_bad = |&column: &usize| {
                is_changed(column, row) || cast[column].is_null(row) && !is_null(column, row)
            };
            let bad = (0..kept.len()).find(is_bad);
            let added = if let Some(column) = bad {
                let (name, kind) = (&self.kept[column].name, types::name(&kinds[column]));
                let why = format!("{}: the value of `{name}` is not {kind}", location(row));
                rows.reject("wrong_type", &why);
                1
            } else {
                let values = Row {
                    url: first_text(&url, row),
                    captions: first_captions(&captions, row, rows.rule),
                    page_url: first_text(&page_url, row),
                    text_source: first_text(&text_source, row),
                    kept: Vec::new(),
                };
                rows.push(&values, &|| location(row))
            };
            indices.extend(std::iter::repeat_n(row as u32, added));
        }
        if indices.len() == batch.num_rows() {
            return Ok(cast);
        }
        let indices = UInt32Array::from(indices);
        cast.iter().map(|array| take(array, &indices, None)).collect()
    }
}

/// The columns of a type; the first must be of it, others are left out.
fn of_type(
    mut columns: Vec<ColumnPath>,
    option: &str,
    accepts: impl Fn(&DataType) -> bool,
) -> Result<Vec<ColumnPath>, Complaint> {
    if let Some(first) = columns.first().filter(|first| !accepts(&first.kind)) {
        let message =
            format!("the column `{}` is of type {}, not text", first.name, types::name(&first.kind));
        let field = match &first.kind {
            DataType::Struct(fields) => {
                let texts = fields.iter().filter(|field| is_text(field.data_type()));
                texts.map(|field| format!("{}.{}", first.name, field.name())).next()
            }
            _ => None,
        };
        let name = field.unwrap_or_else(|| "...".into());
        return Err((message, format!("name another one: `columns = {{ {option} = \"{name}\" }}`")));
    }
    columns.retain(|column| accepts(&column.kind));
    Ok(columns)
}

/// Texts, or lists of them.
enum TextColumn {
    Texts(StringArray),
    Lists(ListArray),
}

impl TextColumn {
    fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        if is_text_list(array.data_type()) {
            let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
            return Ok(Self::Lists(cast(array, &list)?.as_list::<i32>().clone()));
        }
        Ok(Self::Texts(cast(array, &DataType::Utf8)?.as_string::<i32>().clone()))
    }
}

/// The first text that is not blank.
fn first_text(columns: &[TextColumn], row: usize) -> Option<Cow<'_, str>> {
    let texts = columns.iter().filter_map(|column| match column {
        TextColumn::Texts(texts) if texts.is_valid(row) => Some(texts.value(row)),
        _ => None,
    });
    texts.map(Cow::Borrowed).find(|text| !text.trim().is_empty())
}

/// The first captions that are not blank.
fn first_captions(columns: &[TextColumn], row: usize, rule: Option<CaptionRule>) -> RowCaptions<'_> {
    for column in columns {
        match column {
            TextColumn::Texts(texts) if texts.is_valid(row) && !texts.value(row).trim().is_empty() => {
                return RowCaptions::of_text(texts.value(row), rule);
            }
            TextColumn::Lists(lists) if lists.is_valid(row) => {
                let offsets = lists.value_offsets();
                let items = lists.values().as_string::<i32>();
                let items = (offsets[row] as usize..offsets[row + 1] as usize)
                    .filter(|&item| items.is_valid(item) && !items.value(item).trim().is_empty())
                    .map(|item| Cow::Borrowed(items.value(item)));
                let items: Vec<_> = items.collect();
                if !items.is_empty() {
                    return RowCaptions::List(items);
                }
            }
            _ => {}
        }
    }
    RowCaptions::None
}

/// The type in which values are stored: one of several that hold the same.
fn stored_type(kind: &DataType) -> DataType {
    let field = |field: &Arc<Field>| -> Arc<Field> {
        Arc::new(field.as_ref().clone().with_data_type(stored_type(field.data_type())))
    };
    let stored = match kind {
        kind if is_text(kind) => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => stored_type(value),
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect::<Fields>()),
        other => other.clone(),
    };
    let schema = contracts::memory_schema(&Schema::new(vec![Field::new("x", stored, true)]));
    schema.field(0).data_type().clone()
}

/// Which whole numbers became others because a floating-point type cannot hold them.
fn changed(from: &ArrayRef, to: &ArrayRef) -> Result<Option<BooleanArray>, ArrowError> {
    if from.data_type().is_integer() && to.data_type().is_floating() {
        let back = cast(to, from.data_type())?;
        return distinct(&back, from).map(Some);
    }
    Ok(None)
}

/// Whether values of one type become another, and those that do not fit are noticed.
fn converts(from: &DataType, to: &DataType, is_declared: bool) -> bool {
    let is_scalar = |kind: &DataType| is_text(kind) || kind.is_numeric() || kind == &DataType::Boolean;
    match (from, to) {
        _ if stored_type(from) == *to || from == &DataType::Null => true,
        (from, to) if from.is_integer() && to.is_integer() => true,
        (DataType::Float32, DataType::Float64) => true,
        // What a cast would round is not converted.
        (from, to) if from.is_floating() && to.is_integer() => false,
        // Arrow takes every number but 0 for true.
        (from, DataType::Boolean) if from.is_numeric() => false,
        (from, to) => is_declared && is_scalar(from) && ColumnKind::of(to).is_some(),
    }
}
