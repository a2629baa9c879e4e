//! Samples: images that are here already, with their texts beside them. What the stages
//! `webdataset` and `folder` share.

mod columns;

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use serde_json::{Map, Value};
use twinlens_dataset::contracts;
pub(super) use twinlens_dataset::samples::{IMAGES, MAX_TEXT, Refusal};
use twinlens_image::{Encode, Encoding, Limits, ProcessedImage, Resize, ResizeMode, probe, process};
use twinlens_pipeline::{Fault, Located, RunContext, RunError, rejects};

use self::columns::Columns;
use super::checks;
use super::files::engine;
use super::reading::Send;
use super::table::{CAPTION_NAMES, URL_NAMES};
use crate::html;
use crate::net::ByteBudget;
use crate::pairs;

/// Rows of a batch.
const ROWS: usize = 128;
/// Bytes of images of a batch, about.
const BYTES: usize = 4 << 20;

/// The codes of samples that are no pairs, beside those of [`twinlens_image::CODES`].
pub const CODES: &[&str] =
    &["no_image", "no_caption", "malformed_json", "too_many_bytes", "damaged_archive", "truncated_archive"];

/// A part of a sample: there, not there, or refused.
pub(super) type Part = Option<Result<Vec<u8>, Refusal>>;

/// One sample, as it stands in its archive or folder.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// Where it is, for people, and in place of a URL: `00000.tar/000000012`.
    pub(super) place: String,
    /// The name of the image: the `path` of the image column.
    pub(super) path: String,
    pub(super) image: Part,
    pub(super) text: Part,
    pub(super) json: Part,
}

/// The options that the stages share.
pub(super) struct Options<'a> {
    pub(super) limits: &'a Located<Limits>,
    pub(super) resize: &'a Located<Resize>,
    pub(super) encode: &'a Located<Encode>,
    pub(super) keep: &'a [Located<String>],
    pub(super) caption: Option<&'a str>,
}

impl Options<'_> {
    /// What is wrong with them.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = checks::images(self.resize, self.encode, self.limits);
        faults.extend(checks::kept(self.keep, &schema(&[])));
        faults
    }

    /// The schema of the stage's rows.
    pub(super) fn schema(&self) -> SchemaRef {
        schema(&self.kept())
    }

    fn kept(&self) -> Vec<String> {
        self.keep.iter().map(|name| name.value().clone()).collect()
    }

    /// What turns samples into rows; the splits of a stage share its budgets.
    pub(super) fn reader(&self, cx: &RunContext, kind: &'static str) -> Reader {
        let half = cx.bytes_in_flight as u64 / 2;
        Reader {
            stage: cx.stage.clone(),
            kind,
            limits: self.limits.value().clone(),
            resize: self.resize.value().clone(),
            encode: self.encode.value().clone(),
            keep: self.kept(),
            caption: self.caption.map(String::from),
            schema: rejects::schema_with_reserved(&self.schema()),
            bodies: ByteBudget::new(half),
            pixels: ByteBudget::new(half),
        }
    }
}

/// Images are left as they are.
pub(super) fn no_resize() -> Located<Resize> {
    Located::nowhere(Resize { mode: ResizeMode::None, ..Resize::default() })
}
/// The original bytes are stored.
pub(super) fn original() -> Located<Encode> {
    Located::nowhere(Encode { format: Encoding::Keep, ..Encode::default() })
}

/// Texts, columns that are kept, images.
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

/// From samples to rows. What all splits of a stage share.
#[derive(Debug)]
pub(super) struct Reader {
    stage: String,
    /// The value of `text_source` where the JSON names none.
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

/// What a row holds.
struct Pair {
    caption: String,
    json: Map<String, Value>,
    image: ProcessedImage,
}

impl Reader {
    /// Turns samples into batches; returns whether all were wanted. `bytes` says how long a
    /// sample's parts are. Blocks: runs on a thread of its own.
    pub(super) fn read<T>(
        &self,
        samples: impl Iterator<Item = T>,
        bytes: impl Fn(&T) -> u64,
        mut load: impl FnMut(T) -> Result<Sample, RunError>,
        send: Send<'_>,
    ) -> Result<bool, RunError> {
        let mut columns = Columns::new(&self.schema, self.keep.len());
        for sample in samples {
            let _reserved = futures::executor::block_on(self.bodies.reserve(bytes(&sample)));
            self.push(&mut columns, load(sample)?);
            if (columns.rows >= ROWS || columns.bytes >= BYTES) && !send(columns.finish().map_err(engine)?) {
                return Ok(false);
            }
        }
        Ok(columns.rows == 0 || send(columns.finish().map_err(engine)?))
    }

    fn push(&self, columns: &mut Columns, sample: Sample) {
        let (place, path) = (sample.place.clone(), sample.path.clone());
        match self.pair(sample) {
            Ok(pair) => self.push_pair(columns, &place, &path, &pair),
            Err((code, why)) => {
                let detail = format!("{place}: {why}");
                columns.text(0, Some(&pairs::uid(&place, &detail)));
                columns.reject(&self.stage, code, &detail);
            }
        }
    }

    fn push_pair(&self, columns: &mut Columns, place: &str, path: &str, pair: &Pair) {
        let text = |name: &str| pair.json.get(name).and_then(text_of);
        let first = |names: &[&str]| names.iter().find_map(|name| text(name));
        let url = first(URL_NAMES);
        let uid = pairs::uid(url.as_deref().unwrap_or(place), &pair.caption);
        columns.text(0, Some(&uid));
        columns.text(1, url.as_deref());
        columns.text(2, Some(&pair.caption));
        columns.text(3, text("page_url").as_deref());
        columns.text(4, Some(text("text_source").as_deref().unwrap_or(self.kind)));
        for (place, name) in self.keep.iter().enumerate() {
            columns.text(5 + place, text(name).as_deref());
        }
        // What the writer of the archive recorded of the image as it was fetched, before it was
        // resized.
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

    /// The pair of a sample, or why there is none.
    fn pair(&self, sample: Sample) -> Result<Pair, Refusal> {
        let json = match sample.json.transpose()? {
            Some(bytes) => object(&bytes)?,
            None => Map::new(),
        };
        let text = sample.text.transpose()?.map(|bytes| html::decode_plain(&bytes).trim().to_string());
        let bytes = sample.image.transpose()?.ok_or_else(|| ("no_image", "no image".to_string()))?;
        let named = |name: &str| json.get(name).and_then(text_of);
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
        let _reserved = futures::executor::block_on(self.pixels.reserve(header.decode_bytes));
        let image = process(&bytes, &self.limits, &self.resize, &self.encode).map_err(refused)?;
        Ok(Pair { caption, json, image })
    }
}

/// A JSON object; bytes that are not UTF-8 are taken as windows-1252.
fn object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let malformed = |error: serde_json::Error| ("malformed_json", error.to_string());
    serde_json::from_str(&html::decode_plain(bytes)).map_err(malformed)
}

/// A value as text; null, and an empty text, are none.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.trim().is_empty()).then(|| text.clone()),
        other => Some(other.to_string()),
    }
}
