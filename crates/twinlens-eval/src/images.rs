//! Reads the examples of a set from its shards in order, and decodes their images in parallel
//! within a byte budget.

use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{Dataset, DatasetError, ImageColumn};
use twinlens_image::{Limits, Preprocess, phash, probe};
use twinlens_model::Clip;
use twinlens_pipeline::RunContext;

use crate::error::EvalError;
use crate::model::Model;
use crate::set::{SetFault, check_image};
use crate::vectors::{EMBEDDING, IMAGE_HASH, Vectors, check_embedding_model, has_embeddings, width};

/// Reject codes of examples, besides those of [`twinlens_image::CODES`].
pub const REJECT_CODES: [&str; 4] = [NO_LABEL, UNKNOWN_LABEL, NO_IMAGE, NO_EMBEDDING];
/// The label is null.
pub(crate) const NO_LABEL: &str = "no_label";
/// The label is not one of the set's classes.
pub(crate) const UNKNOWN_LABEL: &str = "unknown_label";
/// The image column is null, or holds a path without bytes.
pub(crate) const NO_IMAGE: &str = "no_image";
/// The embedding is null.
pub(crate) const NO_EMBEDDING: &str = "no_embedding";

/// Why an example cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub code: &'static str,
    pub detail: String,
}

/// Consecutive rows of a table.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub batch: RecordBatch,
    /// Index of the first row in the table.
    pub first: u64,
}

/// Iterates over the rows of a table in shard order.
#[derive(Debug)]
pub(crate) struct Examples<'a> {
    dataset: &'a Dataset,
    table: &'a str,
    reader: ShardReader,
    next: u64,
}

impl<'a> Examples<'a> {
    /// Reads `columns` in chunks of at most `max_rows` rows and about `budget` bytes.
    pub(crate) fn new(
        dataset: &'a Dataset,
        table: &'a str,
        columns: &[&str],
        max_rows: usize,
        budget: usize,
    ) -> Self {
        Self::range(dataset, table, 0..u64::MAX, columns, max_rows, budget)
    }

    /// As [`new`](Self::new), for a range of rows.
    pub(crate) fn range(
        dataset: &'a Dataset,
        table: &'a str,
        rows: Range<u64>,
        columns: &[&str],
        max_rows: usize,
        budget: usize,
    ) -> Self {
        let next = rows.start;
        let (bytes, all) =
            dataset.shards(table).fold((0, 0), |(bytes, rows), file| (bytes + file.bytes, rows + file.rows));
        let row_bytes = bytes / all.max(1) + 1;
        let within_budget = usize::try_from(budget as u64 / row_bytes).unwrap_or(max_rows);
        let reader = ShardReader::range(dataset, table, rows, columns, within_budget.clamp(1, max_rows));
        Self { dataset, table, reader, next }
    }

    /// Shard and row in it: `data/000003-000.parquet row 12`, counted from 0.
    pub(crate) fn location(&self, row: u64) -> String {
        let mut first = 0;
        for shard in self.dataset.shards(self.table) {
            if row < first + shard.rows {
                return format!("{} row {}", shard.path, row - first);
            }
            first += shard.rows;
        }
        format!("row {row}")
    }
}

impl Iterator for Examples<'_> {
    type Item = Result<Chunk, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.reader.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let first = self.next;
        self.next += batch.num_rows() as u64;
        Some(Ok(Chunk { batch, first }))
    }
}

/// The image of one row.
#[derive(Debug)]
pub(crate) struct Image {
    /// SHA-256 of the encoded bytes; of the empty string if there is no image.
    pub digest: [u8; 32],
    /// Normalised pixels `[3, size, size]`, or the stored embedding; `None` if the row is not
    /// wanted.
    pub pixels: Option<Result<Vec<f32>, Reject>>,
    /// Perceptual hash, if requested and the image can be decoded.
    pub phash: Option<u64>,
}

/// Where the images of a table come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageSource {
    /// A column of encoded images, which is decoded and encoded.
    Images(String),
    /// The embedding columns that an `embed` stage wrote.
    Embeddings,
}

impl ImageSource {
    /// The image column `named`, else the column `image`, else the embeddings.
    ///
    /// # Errors
    /// What is wrong with the image column, if there are no embeddings either.
    pub(crate) fn resolve(schema: &Schema, named: Option<&str>) -> Result<Self, SetFault> {
        let column = named.unwrap_or("image");
        match check_image(schema, column) {
            Ok(()) => Ok(Self::Images(column.into())),
            Err(_) if named.is_none() && has_embeddings(schema) => Ok(Self::Embeddings),
            Err(fault) => Err(fault),
        }
    }

    /// The images of the `wanted` rows: decoded, or embedded earlier by the model `identity`.
    ///
    /// # Errors
    /// Message and hint: another model made the embeddings, or a shard lacks the column.
    pub(crate) fn images(
        &self,
        batch: &RecordBatch,
        wanted: &[bool],
        identity: &str,
        options: &DecodeOptions<'_>,
    ) -> Result<Vec<Image>, (String, Option<String>)> {
        match self {
            Self::Embeddings => read_embeddings(batch, wanted, identity),
            Self::Images(column) => {
                decode_images(batch, column, wanted, options).map_err(|message| (message, None))
            }
        }
    }

    /// Embeddings `[n, embed]` of `n` images; `values` are those of [`Image::pixels`],
    /// concatenated.
    pub(crate) fn embed(&self, clip: &Clip, values: Vec<f32>, n: usize) -> Result<Tensor, EvalError> {
        let config = clip.config();
        Ok(match self {
            Self::Embeddings => Tensor::from_vec(values, (n, config.embed), &Device::Cpu)?,
            Self::Images(_) => {
                let size = config.vision.image_size();
                clip.encode_image(&Tensor::from_vec(values, (n, 3, size, size), &Device::Cpu)?)?
            }
        })
    }

    /// Whether a column must be read: all but the pixels and vectors that are not used.
    pub(crate) fn needs_column(&self, field: &Field) -> bool {
        let large = holds_image_bytes(field.data_type()) || width(field.data_type()).is_some();
        !large || field.name() == self.column()
    }

    /// The column with pixels or vectors.
    pub(crate) fn column(&self) -> &str {
        match self {
            Self::Images(column) => column,
            Self::Embeddings => EMBEDDING,
        }
    }
}

/// How images are decoded.
#[derive(Clone, Copy)]
pub(crate) struct DecodeOptions<'a> {
    pub preprocess: &'a Preprocess,
    /// An image beyond them is rejected before it is decoded.
    pub limits: &'a Limits,
    /// Bytes in memory: a quarter for encoded images, the rest for decoding. (A single image may
    /// exceed it; `limits` bound that.)
    pub budget: usize,
    /// Whether to compute perceptual hashes.
    pub with_phash: bool,
}

impl<'a> DecodeOptions<'a> {
    /// For a model, within the stage's memory budget, without perceptual hashes.
    pub(crate) fn new(model: &'a Model, limits: &'a Limits, cx: &RunContext) -> Self {
        Self { preprocess: &model.preprocess, limits, budget: cx.bytes_in_flight, with_phash: false }
    }
}

/// Turns the images of a table into embeddings.
pub(crate) struct ImageEncoder<'a> {
    pub clip: &'a Clip,
    pub source: &'a ImageSource,
    /// The identity that stored embeddings must have.
    pub identity: String,
    pub decode: DecodeOptions<'a>,
}

impl<'a> ImageEncoder<'a> {
    pub(crate) fn new(
        model: &'a Model,
        source: &'a ImageSource,
        limits: &'a Limits,
        cx: &RunContext,
    ) -> Self {
        let decode = DecodeOptions::new(model, limits, cx);
        Self { clip: &model.clip, source, identity: model.identity(), decode }
    }

    /// As [`ImageSource::images`].
    pub(crate) fn read(
        &self,
        batch: &RecordBatch,
        wanted: &[bool],
        with_phash: bool,
    ) -> Result<Vec<Image>, (String, Option<String>)> {
        let decode = DecodeOptions { with_phash, ..self.decode };
        self.source.images(batch, wanted, &self.identity, &decode)
    }

    /// As [`ImageSource::embed`].
    pub(crate) fn embed(&self, values: Vec<f32>, n: usize) -> Result<Tensor, EvalError> {
        self.source.embed(self.clip, values, n)
    }
}

/// The stored embeddings of the `wanted` rows.
fn read_embeddings(
    batch: &RecordBatch,
    wanted: &[bool],
    identity: &str,
) -> Result<Vec<Image>, (String, Option<String>)> {
    check_embedding_model(batch, identity)?;
    let vectors = Vectors::from_column(batch, EMBEDDING)
        .ok_or_else(|| (format!("a shard lacks the column `{EMBEDDING}`"), None))?;
    let hashes = batch.column_by_name(IMAGE_HASH).and_then(|column| cast(column, &DataType::Utf8).ok());
    let hash = |row: usize| {
        let text = hashes.as_ref().map(|hashes| hashes.as_string::<i32>());
        text.filter(|text| text.is_valid(row)).and_then(|text| unhex(text.value(row)))
    };
    let none = || Reject { code: NO_EMBEDDING, detail: "the embedding is null".into() };
    let one = |row: usize| Image {
        digest: hash(row).unwrap_or_default(),
        pixels: wanted[row].then(|| vectors.get(row).map(<[f32]>::to_vec).ok_or_else(none)),
        phash: None,
    };
    Ok((0..batch.num_rows()).map(one).collect())
}

/// Parses a SHA-256 in hexadecimal.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// Hashes all images and decodes the `wanted` ones, in parallel as far as the budget allows.
///
/// # Errors
/// The column is missing, or does not hold images.
fn decode_images(
    batch: &RecordBatch,
    column: &str,
    wanted: &[bool],
    &DecodeOptions { preprocess, limits, budget, with_phash }: &DecodeOptions<'_>,
) -> Result<Vec<Image>, String> {
    let budget = budget - budget / 4;
    let missing = || format!("a shard lacks the image column `{column}`");
    let encoded = ImageColumn::new(batch.column_by_name(column).ok_or_else(missing)?)
        .map_err(|error| format!("the image column `{column}` is {error}"))?;
    let cost = |row: usize| match encoded.get(row).filter(|_| wanted[row]).map(|bytes| probe(bytes, limits)) {
        Some(Ok(header)) => header.decode_bytes,
        _ => 0,
    };
    let mut images = Vec::with_capacity(batch.num_rows());
    while images.len() < batch.num_rows() {
        let first = images.len();
        let (mut end, mut bytes) = (first + 1, cost(first));
        while end < batch.num_rows() && bytes + cost(end) <= budget as u64 {
            bytes += cost(end);
            end += 1;
        }
        images.par_extend((first..end).into_par_iter().map(|row| {
            let bytes = encoded.get(row);
            Image {
                digest: Sha256::digest(bytes.unwrap_or_default()).into(),
                pixels: wanted[row].then(|| pixels(bytes, preprocess, limits)),
                phash: bytes.filter(|_| with_phash && wanted[row]).and_then(|bytes| hash(bytes, limits)),
            }
        }));
    }
    Ok(images)
}

fn hash(bytes: &[u8], limits: &Limits) -> Option<u64> {
    let decoded = twinlens_image::decode(bytes, limits).ok()?;
    phash(&decoded.rgb).ok().map(|hash| hash as u64)
}

fn pixels(bytes: Option<&[u8]>, preprocess: &Preprocess, limits: &Limits) -> Result<Vec<f32>, Reject> {
    let Some(bytes) = bytes else {
        return Err(Reject { code: NO_IMAGE, detail: "the row holds no image bytes".into() });
    };
    preprocess.tensor(bytes, limits).map_err(|error| Reject { code: error.code(), detail: error.to_string() })
}
