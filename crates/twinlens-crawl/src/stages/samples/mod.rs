//! Samples: local images with their captions. Shared by the stages `webdataset` and `folder`.

mod captions;
mod columns;

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use serde_json::{Map, Value};
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_dataset::samples::{Refusal, Role, Sample, UNREAD, Unread};
use twinlens_dataset::sniff::{FileKind, SNIFF_BYTES};
use twinlens_image::{Encode, Encoding, Limits, ProcessedImage, Resize, ResizeMode, probe, process};
use twinlens_pipeline::{Located, Ports, RunContext, RunError, SortKey, rejects};

pub(super) use self::captions::Captions;
use self::captions::{CaptionFinder, Failure};
use self::columns::SampleBatchBuilder;
use super::captions as caption_lists;
use super::column_names::URLS;
use super::common::arrow_error;
use super::options;
use super::split_reader::BatchSink;
use crate::net::ByteBudget;
use crate::pairs;

/// Rows per batch.
const BATCH_ROWS: usize = 128;
/// Approximate bytes of images per batch.
const BATCH_BYTES: usize = 4 << 20;

/// Reject codes of samples, besides those of [`twinlens_image::CODES`].
pub const CODES: &[&str] = &[
    "no_image",
    "no_caption",
    "malformed_json",
    "malformed_row",
    "too_many_bytes",
    "damaged_archive",
    "truncated_archive",
    "unread_file",
    "wrong_type",
];
/// The column of class labels.
const LABEL: &str = "label";

/// The options that the stages share.
pub(super) struct SampleOptions {
    pub(super) limits: Located<Limits>,
    pub(super) resize: Located<Resize>,
    pub(super) encode: Located<Encode>,
    pub(super) keep: Vec<Located<String>>,
    pub(super) caption: Option<String>,
    pub(super) captions: Option<Captions>,
    pub(super) keep_invisible: bool,
    pub(super) label: bool,
    pub(super) ignore: Vec<String>,
}

/// The [`SampleOptions`] among the options of a stage, which has them as fields of its own: with
/// `#[serde(flatten)]` errors would lose their places.
macro_rules! sample_options {
    ($options:ident) => {
        $crate::stages::samples::SampleOptions {
            limits: $options.limits,
            resize: $options.resize,
            encode: $options.encode,
            keep: $options.keep,
            caption: $options.caption,
            captions: $options.captions,
            keep_invisible: $options.keep_invisible,
            label: $options.label,
            ignore: $options.ignore,
        }
    };
}
pub(super) use sample_options;

impl SampleOptions {
    /// Checks the options, and declares the output.
    pub(super) fn declare(&self, ports: &mut Ports<'_>) {
        options::check_images(ports, &self.resize, &self.encode, &self.limits);
        let label = self.label.then(|| LABEL.to_string());
        options::check_keep(ports, &self.keep, &schema(label.as_slice(), self.has_lists()));
        ports.output(self.schema(), SortKey::columns(ROW_ORDER));
    }

    /// Whether all captions of an image are kept.
    fn has_lists(&self) -> bool {
        self.captions == Some(Captions::Random)
    }

    fn schema(&self) -> SchemaRef {
        schema(&self.extra_columns(), self.has_lists())
    }

    /// The kept columns, and the label.
    fn extra_columns(&self) -> Vec<String> {
        let mut columns = options::names(&self.keep);
        columns.extend(self.label.then(|| LABEL.to_string()));
        columns
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
            captions: CaptionFinder {
                name: self.caption.clone(),
                several: self.captions,
                keep_invisible: self.keep_invisible,
            },
            has_lists: self.has_lists(),
            has_label: self.label,
            ignore: self
                .ignore
                .iter()
                .map(|extension| format!(".{}", extension.trim_start_matches('.')))
                .collect(),
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

/// Texts, kept columns, perhaps lists of captions, image columns.
fn schema(keep: &[String], has_lists: bool) -> SchemaRef {
    let texts = pairs::schema(keep);
    let lists = has_lists.then(|| Arc::new(caption_lists::field()));
    let fields = texts.fields().iter().cloned().chain(lists);
    Arc::new(Schema::new(
        fields.chain(contracts::image_columns().fields().iter().cloned()).collect::<Vec<_>>(),
    ))
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
    captions: CaptionFinder,
    has_lists: bool,
    has_label: bool,
    /// Extensions with their dots.
    ignore: Vec<String>,
    pub(super) schema: SchemaRef,
    bodies: ByteBudget,
    pixels: ByteBudget,
}

/// A sample as rows, which differ in their texts.
struct ParsedSample {
    location: String,
    path: String,
    /// What is known about the image; several if metadata files have several rows about it.
    json: Vec<Map<String, Value>>,
    /// For each row its JSON and its caption.
    captions: Vec<(usize, Option<String>)>,
    label: Option<String>,
    image: ProcessedImage,
}

/// A file that is not part of a sample, as a sample to reject.
pub(super) fn unread_sample(name: &str, unread: Unread) -> Sample {
    let location = format!("{name}{}", unread.place);
    Sample { location, image: Some(Err(unread.refusal)), ..Sample::default() }
}

impl SampleReader {
    /// The members of a tar file that are used.
    pub(super) fn roles(&self) -> &'static [Role] {
        if self.has_label { &[Role::Image, Role::Text, Role::Json, Role::Class] } else { Role::PAIR }
    }

    /// Whether a file that is not part of a sample is left out on request.
    pub(super) fn ignores(&self, unread: &Unread) -> bool {
        let ends = |extension: &String| unread.place.to_lowercase().ends_with(&extension.to_lowercase());
        unread.refusal.0 == UNREAD && self.ignore.iter().any(ends)
    }

    /// Turns samples into batches; returns whether all were consumed. `bytes` gives the total
    /// length of a sample's parts. Blocks.
    pub(super) fn read<T>(
        &self,
        samples: impl Iterator<Item = T>,
        bytes: impl Fn(&T) -> u64,
        mut load: impl FnMut(T) -> Result<Sample, RunError>,
        send: BatchSink<'_>,
    ) -> Result<bool, RunError> {
        let extra = self.keep.len() + usize::from(self.has_label);
        let mut columns = SampleBatchBuilder::new(&self.schema, extra, self.has_lists);
        for sample in samples {
            let _reserved = self.bodies.reserve_blocking(bytes(&sample));
            let sample = load(sample)?;
            let location = sample.location.clone();
            match self.parse(sample) {
                Ok(parsed) => {
                    let rows = if self.has_lists { 1 } else { parsed.captions.len() };
                    for (json, caption) in &parsed.captions[..rows] {
                        self.push(&mut columns, &parsed, &parsed.json[*json], caption.as_deref());
                        // Captions may be many, and each row has the image.
                        if is_full(&columns) && !send(columns.finish().map_err(arrow_error)?) {
                            return Ok(false);
                        }
                    }
                }
                Err(Failure::Reject((code, why))) => {
                    let detail = format!("{location}: {why}");
                    columns.text(0, Some(&pairs::uid(&location, &detail)));
                    columns.reject(&self.stage, code, &detail);
                }
                Err(Failure::Stop(error)) => return Err(error),
            }
            if is_full(&columns) && !send(columns.finish().map_err(arrow_error)?) {
                return Ok(false);
            }
        }
        Ok(columns.rows == 0 || send(columns.finish().map_err(arrow_error)?))
    }

    fn push(
        &self,
        columns: &mut SampleBatchBuilder,
        sample: &ParsedSample,
        json: &Map<String, Value>,
        caption: Option<&str>,
    ) {
        let text = |name: &str| json.get(name).and_then(value_text);
        let url = URLS.iter().find_map(|name| json.get(*name)?.as_str().filter(|url| !url.trim().is_empty()));
        let uid = pairs::uid(url.unwrap_or(&sample.location), caption.unwrap_or_default());
        columns.text(0, Some(&uid));
        columns.text(1, url);
        columns.text(2, caption);
        columns.text(3, text("page_url").as_deref());
        columns.text(4, Some(text("text_source").as_deref().unwrap_or(self.kind)));
        for (index, name) in self.keep.iter().enumerate() {
            columns.text(5 + index, text(name).as_deref());
        }
        if self.has_label {
            columns.text(5 + self.keep.len(), sample.label.as_deref());
        }
        columns.captions(sample.captions.iter().filter_map(|(_, caption)| caption.as_deref()));
        // What the writer of the archive recorded about the image before resizing it.
        let side =
            |name: &str| json.get(name).and_then(Value::as_i64).and_then(|side| i32::try_from(side).ok());
        let original = side("original_width").zip(side("original_height")).filter(|sides| *sides > (0, 0));
        let sha256 =
            text("sha256").filter(|hash| hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit()));
        let exif = (sample.image.exif.clone())
            .or_else(|| text("exif").filter(|exif| exif.starts_with('{') && exif.len() > 2));
        columns.image(&sample.path, &sample.image, original, sha256.as_deref(), exif.as_deref());
    }

    fn parse(&self, sample: Sample) -> Result<ParsedSample, Failure> {
        let json = join_metadata(sample.json.transpose()?, sample.metadata)?;
        json.iter().try_for_each(check_texts)?;
        let text = sample.text.transpose()?.map(|bytes| twinlens_text::decode_text(&bytes).into_owned());
        let bytes = sample.image.transpose()?.ok_or_else(|| ("no_image", "no image".to_string()))?;
        let label = if self.has_label { sample.class.transpose()? } else { None };
        let label = label.map(|label| twinlens_text::decode_text(&label).trim().to_string());
        let label = label.filter(|label| !label.is_empty());
        let found = self.captions.captions(&sample.location, text.as_deref(), &json)?;
        let needs_caption = label.is_none() && self.captions.several != Some(Captions::None);
        if found.is_empty() && needs_caption {
            return Err(("no_caption", "no caption".to_string()).into());
        }
        let mut captions: Vec<_> = found.into_iter().map(|(json, caption)| (json, Some(caption))).collect();
        if captions.is_empty() {
            captions.push((0, None));
        }
        let image = self.process(&bytes)?;
        Ok(ParsedSample { location: sample.location, path: sample.path, json, captions, label, image })
    }

    fn process(&self, bytes: &[u8]) -> Result<ProcessedImage, Refusal> {
        let refused = |error: twinlens_image::ImageError| {
            let detail = match FileKind::of(&bytes[..bytes.len().min(SNIFF_BYTES)]) {
                kind @ FileKind::LfsPointer => format!("{kind}: {}", kind.hint().unwrap_or_default()),
                _ => error.to_string(),
            };
            (error.code(), detail)
        };
        let header = probe(bytes, &self.limits).map_err(refused)?;
        let _reserved = self.pixels.reserve_blocking(header.decode_bytes);
        process(bytes, &self.limits, &self.resize, &self.encode).map_err(refused)
    }
}

fn is_full(columns: &SampleBatchBuilder) -> bool {
    columns.rows >= BATCH_ROWS || columns.bytes >= BATCH_BYTES
}

/// The JSON of a sample: of its own file, with the values of each metadata row that it lacks.
fn join_metadata(
    json: Option<Vec<u8>>,
    metadata: Vec<Result<Map<String, Value>, Refusal>>,
) -> Result<Vec<Map<String, Value>>, Refusal> {
    let own = json.map_or(Ok(Map::new()), |bytes| parse_json(&bytes))?;
    if metadata.is_empty() {
        return Ok(vec![own]);
    }
    let join = |row: Result<Map<String, Value>, Refusal>| {
        let mut row = row?;
        row.extend(own.clone());
        Ok(row)
    };
    metadata.into_iter().map(join).collect()
}

/// Parses a JSON object; bytes that are not UTF-8 are decoded as windows-1252, and what other
/// programs write beside JSON is repaired, as in tables.
fn parse_json(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let text = twinlens_text::decode_text(bytes);
    serde_json::from_str(&text).or_else(|error| {
        let repaired = twinlens_text::repair_json(text.as_bytes());
        serde_json::from_str(&repaired).map_err(|_| ("malformed_json", error.to_string()))
    })
}

/// Checks that the URLs are texts. (`image` may be anything: not all call a URL that.)
fn check_texts(json: &Map<String, Value>) -> Result<(), Refusal> {
    let names = URLS.iter().filter(|name| **name != "image").chain(&["page_url", "text_source"]);
    for name in names {
        if json.get(*name).is_some_and(|value| !value.is_string() && !value.is_null()) {
            return Err(("wrong_type", format!("`{name}` is not a text")));
        }
    }
    Ok(())
}

/// A value as text; `None` for null and empty strings.
fn value_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.trim().is_empty()).then(|| text.clone()),
        other => Some(other.to_string()),
    }
}
