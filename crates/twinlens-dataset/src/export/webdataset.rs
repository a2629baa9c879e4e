//! Writes tar files in the layout of img2dataset: `00000.tar` with the members `{key}.jpg`,
//! `{key}.json` and `{key}.txt`, `00000.parquet` with all columns except the image, and
//! `00000_stats.json`.
//!
//! A key is the number of the shard and of the row in it. Images are copied unchanged; the
//! extension follows their content. As in img2dataset, a row without an image is only in the
//! Parquet file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use parquet::arrow::ArrowWriter;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use super::tar::Tar;
use crate::contracts;
use crate::error::{DatasetError, parquet_error};
use crate::image_column::ImageColumn;
use crate::shard::{ShardLimits, parquet_writer};
use crate::storage::Location;
use crate::writer::SplitWriter;

/// Most rows of a shard: keys have four digits for the row.
pub(super) const ROWS: usize = 10_000;
/// The columns that img2dataset adds, in its order, including those of the contract.
const ADDED: [&str; 9] = [
    "key",
    "status",
    "error_message",
    "width",
    "height",
    "original_width",
    "original_height",
    "exif",
    "sha256",
];
/// Those that describe the export and are not columns of pairs.
const RESERVED: [&str; 3] = ["key", "status", "error_message"];

const SUCCESS: &str = "success";
const FAILED: &str = "failed_to_download";
const NO_IMAGE: &str = "no image";

/// Returns the file extension of an encoded image.
pub type ImageExtension = fn(&[u8]) -> &'static str;

pub(super) struct WebDataset {
    image_extension: ImageExtension,
    shard_bytes: u64,
    /// Schema of the Parquet files.
    columns: SchemaRef,
    open: Option<Open>,
}

/// The open shard.
struct Open {
    number: u64,
    tar_path: PathBuf,
    tar: Tar<BufWriter<File>>,
    parquet_path: PathBuf,
    parquet: ArrowWriter<File>,
    stats_path: PathBuf,
    stats: Stats,
}

/// The statistics that img2dataset writes per shard. The times span the fetching of its images, if
/// known.
#[derive(Default, Serialize)]
struct Stats {
    count: u64,
    successes: u64,
    failed_to_download: u64,
    failed_to_resize: u64,
    /// Seconds.
    duration: f64,
    /// Seconds since 1970.
    start_time: f64,
    end_time: f64,
    status_dict: BTreeMap<&'static str, u64>,
}

impl WebDataset {
    /// A writer for rows of `schema`.
    ///
    /// # Errors
    /// Why the format does not support such rows, and what to do.
    pub(super) fn new(
        schema: &Schema,
        shard_bytes: u64,
        image_extension: ImageExtension,
    ) -> Result<Self, (String, String)> {
        if !contracts::has_images(schema) {
            return Err((
                "it has no images, which tar files need".into(),
                "export a dataset after a `fetch` stage, or use --to parquet".into(),
            ));
        }
        if let Some(name) = RESERVED.iter().find(|name| schema.field_with_name(name).is_ok()) {
            return Err((
                format!("its column `{name}` conflicts with a column that the export adds"),
                "rename or drop it with a `select` stage".into(),
            ));
        }
        Ok(Self { image_extension, shard_bytes, columns: columns(schema), open: None })
    }

    /// Writes rows until the shard is full; returns how many.
    pub(super) fn write(
        &mut self,
        split: &mut SplitWriter,
        folder: &Location,
        batch: &RecordBatch,
    ) -> Result<usize, DatasetError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::new(split, folder, &self.columns)?,
        };
        let room = ROWS - open.stats.count as usize;
        let batch = batch.slice(0, batch.num_rows().min(room));
        let schema = |source| DatasetError::Schema { table: "webdataset".into(), source };
        let table = self.table(&open, &batch).map_err(schema)?;
        let images = ImageColumn::new(&batch["image"])
            .map_err(|error| schema(ArrowError::SchemaError(format!("the column `image` is {error}"))))?;
        let captions = batch.column_by_name("caption").and_then(|column| column.as_string_opt::<i32>());
        let options = EncoderOptions::default();
        let mut json = Json::new(&table, &options).map_err(schema)?;
        let keys = table["key"].as_string::<i32>();
        let mut taken = 0;
        while taken < batch.num_rows() && open.tar.bytes() < self.shard_bytes {
            if let Some(image) = images.get(taken) {
                let caption =
                    captions.filter(|column| column.is_valid(taken)).map_or("", |column| column.value(taken));
                let extension = (self.image_extension)(image);
                let mut members =
                    [(extension, image), ("json", json.object(taken)), ("txt", caption.as_bytes())];
                members.sort_by_key(|(extension, _)| *extension);
                for (extension, data) in members {
                    let name = format!("{}.{extension}", keys.value(taken));
                    open.tar.append(&name, data).map_err(|error| DatasetError::io(&open.tar_path, error))?;
                }
            }
            taken += 1;
        }
        let written = table.slice(0, taken);
        open.parquet.write(&written).map_err(|error| parquet_error(&open.parquet_path, error))?;
        open.stats.add(&written);
        self.open = Some(open);
        Ok(taken)
    }

    /// Whether the open shard has reached its size.
    pub(super) fn is_full(&self) -> bool {
        let full = |open: &Open| open.tar.bytes() >= self.shard_bytes || open.stats.count >= ROWS as u64;
        self.open.as_ref().is_some_and(full)
    }

    /// Closes the open shard.
    pub(super) fn finish(&mut self) -> Result<(), DatasetError> {
        self.open.take().map_or(Ok(()), Open::finish)
    }

    /// The rows in the layout of img2dataset: without the image, with a key and a status.
    fn table(&self, open: &Open, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let valid = |row: usize| batch["image"].is_valid(row);
        let rows = 0..batch.num_rows();
        let first = open.number * ROWS as u64 + open.stats.count;
        let column = |field: &Arc<Field>| -> Result<ArrayRef, ArrowError> {
            let of = |text: &dyn Fn(usize) -> Option<&'static str>| -> ArrayRef {
                Arc::new(rows.clone().map(text).collect::<StringArray>())
            };
            Ok(match (field.name().as_str(), batch.column_by_name(field.name())) {
                ("key", _) => {
                    let keys = rows.clone().map(|row| format!("{:09}", first + row as u64));
                    Arc::new(StringArray::from_iter_values(keys))
                }
                ("status", _) => of(&|row| Some(if valid(row) { SUCCESS } else { FAILED })),
                ("error_message", _) => of(&|row| (!valid(row)).then_some(NO_IMAGE)),
                (_, Some(column)) => cast(column, field.data_type())?,
                (_, None) => new_null_array(field.data_type(), batch.num_rows()),
            })
        };
        let columns = self.columns.fields().iter().map(column).collect::<Result<_, _>>()?;
        RecordBatch::try_new(self.columns.clone(), columns)
    }
}

/// The columns in the order of img2dataset: additional ones, caption and url, then those that it
/// adds.
fn columns(schema: &Schema) -> SchemaRef {
    let pairs = contracts::pairs();
    let last = |name: &str| name == "caption" || name == "url";
    let rest = |name: &str| !last(name) && name != "image" && !ADDED.contains(&name);
    let mut fields: Vec<Field> = schema
        .fields()
        .iter()
        .filter(|field| rest(field.name()))
        .map(|field| field.as_ref().clone())
        .collect();
    fields.extend(["caption", "url"].iter().filter_map(|name| schema.field_with_name(name).ok().cloned()));
    fields.extend(ADDED.iter().map(|name| match pairs.field_with_name(name) {
        Ok(field) => field.clone(),
        Err(_) => Field::new(*name, DataType::Utf8, true),
    }));
    Arc::new(Schema::new(fields))
}

impl Open {
    fn new(split: &mut SplitWriter, folder: &Location, columns: &SchemaRef) -> Result<Self, DatasetError> {
        let number = split.counts().split;
        let [tar_path, parquet_path, stats_path] =
            [".tar", ".parquet", "_stats.json"].map(|ending| split.artifact(&format!("{number:05}{ending}")));
        crate::storage::local::create_dir(&folder.local_path())?;
        let create = |path: &Path| File::create(path).map_err(|error| DatasetError::io(path, error));
        let tar = Tar::new(BufWriter::with_capacity(1 << 20, create(&tar_path)?));
        let parquet = parquet_writer(create(&parquet_path)?, columns, &ShardLimits::default())
            .map_err(|error| parquet_error(&parquet_path, error))?;
        Ok(Self { number, tar_path, tar, parquet_path, parquet, stats_path, stats: Stats::default() })
    }

    fn finish(self) -> Result<(), DatasetError> {
        self.tar.finish().map_err(|error| DatasetError::io(&self.tar_path, error))?;
        self.parquet.close().map_err(|error| parquet_error(&self.parquet_path, error))?;
        std::fs::write(&self.stats_path, pretty(&self.stats))
            .map_err(|error| DatasetError::io(&self.stats_path, error))
    }
}

impl Stats {
    fn add(&mut self, rows: &RecordBatch) {
        let statuses = rows["status"].as_string::<i32>();
        let successes = statuses.iter().filter(|status| *status == Some(SUCCESS)).count() as u64;
        let failed = rows.num_rows() as u64 - successes;
        for (status, rows) in
            [(SUCCESS, successes), (NO_IMAGE, failed)].into_iter().filter(|(_, rows)| *rows > 0)
        {
            *self.status_dict.entry(status).or_default() += rows;
        }
        self.successes += successes;
        self.failed_to_download += failed;
        self.count += rows.num_rows() as u64;
        let fetched = rows.column_by_name("fetched_at");
        let fetched = fetched.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        for moment in fetched.into_iter().flatten().flatten().map(|micros| micros as f64 / 1e6) {
            self.start_time = if self.start_time == 0.0 { moment } else { self.start_time.min(moment) };
            self.end_time = self.end_time.max(moment);
        }
        self.duration = self.end_time - self.start_time;
    }
}

/// JSON in the layout of Python's `json.dumps(.., indent=4)`.
fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    match value.serialize(&mut serializer) {
        Ok(()) => text,
        // Cannot happen: numbers and names, written to memory.
        Err(_) => Vec::new(),
    }
}

/// Encodes rows of a table as JSON objects.
struct Json<'a> {
    columns: Vec<(String, NullableEncoder<'a>)>,
    text: Vec<u8>,
}

impl<'a> Json<'a> {
    fn new(table: &'a RecordBatch, options: &'a EncoderOptions) -> Result<Self, ArrowError> {
        let fields = table.schema_ref().fields();
        let columns = fields.iter().zip(table.columns()).map(|(field, column)| {
            let name = serde_json::Value::from(field.name().as_str()).to_string();
            Ok((name, make_encoder(field, column, options)?))
        });
        Ok(Self { columns: columns.collect::<Result<_, ArrowError>>()?, text: Vec::new() })
    }

    /// All columns of a row, including those that are null.
    fn object(&mut self, row: usize) -> &[u8] {
        self.text.clear();
        let mut start = "{";
        for (name, values) in &mut self.columns {
            self.text.extend_from_slice(start.as_bytes());
            self.text.extend_from_slice(b"\n    ");
            self.text.extend_from_slice(name.as_bytes());
            self.text.extend_from_slice(b": ");
            if values.is_null(row) {
                self.text.extend_from_slice(b"null");
            } else {
                values.encode(row, &mut self.text);
            }
            start = ",";
        }
        self.text.extend_from_slice(b"\n}");
        &self.text
    }
}
