//! Samples: local images with their captions. Shared by the stages `webdataset` and `folder`.

mod columns;

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use serde_json::{Map, Value};
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_dataset::samples::{Refusal, Sample};
use twinlens_image::{Encode, Encoding, Limits, ProcessedImage, Resize, ResizeMode, probe, process};
use twinlens_pipeline::{Located, Ports, RunContext, RunError, SortKey, rejects};

use self::columns::SampleBatchBuilder;
use super::common::arrow_error;
use super::options;
use super::split_reader::BatchSink;
use super::table::{CAPTION_NAMES, URL_NAMES};
use crate::net::ByteBudget;
use crate::pairs;

/// Rows per batch.
const BATCH_ROWS: usize = 128;
/// Approximate bytes of images per batch.
const BATCH_BYTES: usize = 4 << 20;

/// Reject codes of samples, besides those of [`twinlens_image::CODES`].
pub const CODES: &[&str] =
    &["no_image", "no_caption", "malformed_json", "too_many_bytes", "damaged_archive", "truncated_archive"];

/// The options that the stages share.
pub(super) struct SampleOptions {
    pub(super) limits: Located<Limits>,
    pub(super) resize: Located<Resize>,
    pub(super) encode: Located<Encode>,
    pub(super) keep: Vec<Located<String>>,
    pub(super) caption: Option<String>,
}

impl SampleOptions {
    /// Checks the options, and declares the output.
    pub(super) fn declare(&self, ports: &mut Ports<'_>) {
        options::check_images(ports, &self.resize, &self.encode, &self.limits);
        options::check_keep(ports, &self.keep, &schema(&[]));
        ports.output(self.schema(), SortKey::columns(ROW_ORDER));
    }

    fn schema(&self) -> SchemaRef {
        schema(&options::names(&self.keep))
    }

    /// The splits of a stage share one reader and its budgets.
    pub(super) fn reader(&self, cx: &RunContext, kind: &'static str) -> SampleReader {
        let half = cx.bytes_in_flight as u64 / 2;
        SampleReader {
            stage: cx.stage.clone(),
            kind,
            limits: self.limits.value().clone(),
            resize: self.resize.value().clone(),
            encode: self.encode.value().clone(),
            keep: options::names(&self.keep),
            caption: self.caption.clone(),
            schema: rejects::schema_with_reserved(&self.schema()),
            bodies: ByteBudget::new(half),
            pixels: ByteBudget::new(half),
        }
    }
}

/// The default `resize`: none.
pub(super) fn no_resize() -> Located<Resize> {
    Located::without_span(Resize { mode: ResizeMode::None, ..Resize::default() })
}
/// The default `encode`: keep the original bytes.
pub(super) fn original() -> Located<Encode> {
    Located::without_span(Encode { format: Encoding::Keep, ..Encode::default() })
}

/// Texts, kept columns, image columns.
fn schema(keep: &[String]) -> SchemaRef {
    let texts = pairs::schema(keep);
    let fields: Vec<Field> = texts
        .fields()
        .iter()
        .chain(contracts::image_columns().fields())
        .map(|field| field.as_ref().clone())
        .collect();
    Arc::new(Schema::new(fields))
}

/// Turns samples into rows.
#[derive(Debug)]
pub(super) struct SampleReader {
    stage: String,
    /// The `text_source`, unless the JSON has one.
    kind: &'static str,
    pub(super) limits: Limits,
    resize: Resize,
    encode: Encode,
    keep: Vec<String>,
    caption: Option<String>,
    pub(super) schema: SchemaRef,
    bodies: ByteBudget,
    pixels: ByteBudget,
}

struct ParsedSample {
    caption: String,
    json: Map<String, Value>,
    image: ProcessedImage,
}

impl SampleReader {
    /// Turns samples into batches; returns whether all were consumed. `bytes` gives the total
    /// length of a sample's parts. Blocks.
    pub(super) fn read<T>(
        &self,
        samples: impl Iterator<Item = T>,
        bytes: impl Fn(&T) -> u64,
        mut load: impl FnMut(T) -> Result<Sample, RunError>,
        send: BatchSink<'_>,
    ) -> Result<bool, RunError> {
        let mut columns = SampleBatchBuilder::new(&self.schema, self.keep.len());
        for sample in samples {
            let _reserved = self.bodies.reserve_blocking(bytes(&sample));
            self.push(&mut columns, load(sample)?);
            if (columns.rows >= BATCH_ROWS || columns.bytes >= BATCH_BYTES)
                && !send(columns.finish().map_err(arrow_error)?)
            {
                return Ok(false);
            }
        }
        Ok(columns.rows == 0 || send(columns.finish().map_err(arrow_error)?))
    }

    fn push(&self, columns: &mut SampleBatchBuilder, sample: Sample) {
        let (location, path) = (sample.location.clone(), sample.path.clone());
        match self.pair(sample) {
            Ok(pair) => self.push_pair(columns, &location, &path, &pair),
            Err((code, why)) => {
                let detail = format!("{location}: {why}");
                columns.text(0, Some(&pairs::uid(&location, &detail)));
                columns.reject(&self.stage, code, &detail);
            }
        }
    }

    fn push_pair(&self, columns: &mut SampleBatchBuilder, location: &str, path: &str, pair: &ParsedSample) {
        let text = |name: &str| pair.json.get(name).and_then(value_text);
        let first = |names: &[&str]| names.iter().find_map(|name| text(name));
        let url = first(URL_NAMES);
        let uid = pairs::uid(url.as_deref().unwrap_or(location), &pair.caption);
        columns.text(0, Some(&uid));
        columns.text(1, url.as_deref());
        columns.text(2, Some(&pair.caption));
        columns.text(3, text("page_url").as_deref());
        columns.text(4, Some(text("text_source").as_deref().unwrap_or(self.kind)));
        for (index, name) in self.keep.iter().enumerate() {
            columns.text(5 + index, text(name).as_deref());
        }
        // What the writer of the archive recorded about the image before resizing it.
        let side = |name: &str| {
            pair.json.get(name).and_then(Value::as_i64).and_then(|side| i32::try_from(side).ok())
        };
        let original = side("original_width").zip(side("original_height")).filter(|sides| *sides > (0, 0));
        let sha256 =
            text("sha256").filter(|hash| hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit()));
        let exif = pair
            .image
            .exif
            .clone()
            .or_else(|| text("exif").filter(|exif| exif.starts_with('{') && exif.len() > 2));
        columns.image(path, &pair.image, original, sha256.as_deref(), exif.as_deref());
    }

    fn pair(&self, sample: Sample) -> Result<ParsedSample, Refusal> {
        let json = match sample.json.transpose()? {
            Some(bytes) => parse_json(&bytes)?,
            None => Map::new(),
        };
        let text =
            sample.text.transpose()?.map(|bytes| twinlens_text::decode_text(&bytes).trim().to_string());
        let bytes = sample.image.transpose()?.ok_or_else(|| ("no_image", "no image".to_string()))?;
        let named = |name: &str| json.get(name).and_then(value_text);
        let caption = match &self.caption {
            Some(name) => named(name),
            None => text
                .filter(|text| !text.is_empty())
                .or_else(|| CAPTION_NAMES.iter().find_map(|name| named(name))),
        };
        let caption = caption.filter(|caption| !caption.trim().is_empty());
        let caption = caption.ok_or_else(|| ("no_caption", "no caption".to_string()))?;
        let refused = |error: twinlens_image::ImageError| (error.code(), error.to_string());
        let header = probe(&bytes, &self.limits).map_err(refused)?;
        let _reserved = self.pixels.reserve_blocking(header.decode_bytes);
        let image = process(&bytes, &self.limits, &self.resize, &self.encode).map_err(refused)?;
        Ok(ParsedSample { caption, json, image })
    }
}

/// Parses a JSON object; bytes that are not UTF-8 are decoded as windows-1252.
fn parse_json(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let malformed = |error: serde_json::Error| ("malformed_json", error.to_string());
    serde_json::from_str(&twinlens_text::decode_text(bytes)).map_err(malformed)
}

/// A value as text; `None` for null and empty strings.
fn value_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.trim().is_empty()).then(|| text.clone()),
        other => Some(other.to_string()),
    }
}
