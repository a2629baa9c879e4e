//! The examples of a set: read from shards in order, decoded in parallel, within a budget of bytes.

use std::ops::Range;

use arrow::array::{Array, AsArray, LargeBinaryArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::shard::holds_image_bytes;
use twinlens_dataset::{Dataset, DatasetError};
use twinlens_image::{Limits, Preprocess, phash, probe};
use twinlens_model::Clip;
use twinlens_pipeline::{Located, RunContext};

use crate::error::EvalError;
use crate::model::Model;
use crate::set::{ClassFault, check_image};
use crate::vectors::{EMBEDDING, IMAGE_HASH, Vectors, check_made_by, has_embeddings, width};

/// Why an example was refused. The codes that are not of this list are those of
/// [`twinlens_image::CODES`].
pub const REJECT_CODES: [&str; 4] = [NO_LABEL, UNKNOWN_LABEL, NO_IMAGE, NO_EMBEDDING];
/// The label is null.
pub const NO_LABEL: &str = "no_label";
/// The label is none of the set's classes.
pub const UNKNOWN_LABEL: &str = "unknown_label";
/// The image column is null, or holds a path without bytes.
pub const NO_IMAGE: &str = "no_image";
/// The embedding is null.
pub const NO_EMBEDDING: &str = "no_embedding";

/// An example that cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// From a closed list.
    pub code: &'static str,
    /// The particulars.
    pub detail: String,
}

/// Rows that follow one another in a table.
#[derive(Debug)]
pub struct Chunk {
    /// The rows.
    pub batch: RecordBatch,
    /// The number of the first one in the table, from 0.
    pub first: u64,
}

/// The rows of a table in the order of its shards.
#[derive(Debug)]
pub struct Examples<'a> {
    dataset: &'a Dataset,
    table: &'a str,
    reader: ShardReader,
    next: u64,
}

impl<'a> Examples<'a> {
    /// Rows of `columns`, at most `most` at a time, and fewer where the rows are so large that a
    /// chunk would pass `budget` bytes.
    pub fn new(dataset: &'a Dataset, table: &'a str, columns: &[&str], most: usize, budget: usize) -> Self {
        Self::range(dataset, table, 0..u64::MAX, columns, most, budget)
    }

    /// As [`new`](Self::new), of some rows alone.
    pub fn range(
        dataset: &'a Dataset,
        table: &'a str,
        rows: Range<u64>,
        columns: &[&str],
        most: usize,
        budget: usize,
    ) -> Self {
        let next = rows.start;
        let (bytes, all) =
            dataset.shards(table).fold((0, 0), |(bytes, rows), file| (bytes + file.bytes, rows + file.rows));
        let row_bytes = bytes / all.max(1) + 1;
        let fitting = usize::try_from(budget as u64 / row_bytes).unwrap_or(most);
        let reader = ShardReader::range(dataset, table, rows, columns, fitting.clamp(1, most));
        Self { dataset, table, reader, next }
    }

    /// Where a row of the table stands: `data/000003-000.parquet row 12`, counted from 0.
    pub fn place(&self, row: u64) -> String {
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

/// What the image column of one row holds.
#[derive(Debug)]
pub struct Image {
    /// SHA-256 of the bytes; of no bytes for a missing image.
    pub digest: [u8; 32],
    /// `[3, size, size]`, normalised, or the embedding where that is what the table holds; `None`
    /// where nobody asked for it.
    pub pixels: Option<Result<Vec<f32>, Refusal>>,
    /// The perceptual hash, where it was asked for and the image can be decoded.
    pub look: Option<u64>,
}

/// Where the images of a table are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// In a column in the Hugging Face layout: they are decoded and encoded.
    Images(String),
    /// In an `embed` stage's columns: they have been encoded.
    Embeddings,
}

impl ImageSource {
    /// The source in a table: the image column that is named, else the column `image`, else
    /// embeddings.
    ///
    /// # Errors
    /// What is wrong with the column, when there are no embeddings either.
    pub fn of(schema: &Schema, named: Option<&str>) -> Result<Self, ClassFault> {
        let column = named.unwrap_or("image");
        match check_image(schema, column) {
            Ok(()) => Ok(Self::Images(column.into())),
            Err(_) if named.is_none() && has_embeddings(schema) => Ok(Self::Embeddings),
            Err(fault) => Err(fault),
        }
    }

    /// The images of some rows, those that are `wanted`: decoded, or as they were embedded by the
    /// model `identity`.
    ///
    /// # Errors
    /// What is wrong with the rows, and what to do: another model made the embeddings, or a shard
    /// lacks the column.
    pub fn images(
        &self,
        batch: &RecordBatch,
        wanted: &[bool],
        identity: &str,
        prepare: &Prepare<'_>,
    ) -> Result<Vec<Image>, (String, Option<String>)> {
        match self {
            Self::Embeddings => stored(batch, wanted, identity),
            Self::Images(column) => decode(batch, column, wanted, prepare)
                .ok_or_else(|| (format!("a shard lacks the image column `{column}`"), None)),
        }
    }

    /// Embeddings `[n, embed]` of `n` of these images, whose values follow one another.
    ///
    /// # Errors
    /// The model's.
    pub fn embed(&self, clip: &Clip, values: Vec<f32>, n: usize) -> Result<Tensor, EvalError> {
        let config = clip.config();
        Ok(match self {
            Self::Embeddings => Tensor::from_vec(values, (n, config.embed), &Device::Cpu)?,
            Self::Images(_) => {
                let size = config.vision.image_size();
                clip.encode_image(&Tensor::from_vec(values, (n, 3, size, size), &Device::Cpu)?)?
            }
        })
    }

    /// Whether a column has to be read: of those with pixels or vectors only the one that is looked
    /// at.
    pub fn reads(&self, field: &Field) -> bool {
        let looked_at = match self {
            Self::Images(column) => column.as_str(),
            Self::Embeddings => EMBEDDING,
        };
        let large = holds_image_bytes(field.data_type()) || width(field.data_type()).is_some();
        !large || field.name() == looked_at
    }
}

/// How images are made what the tower takes.
pub struct Prepare<'a> {
    /// Size and normalisation.
    pub preprocess: &'a Preprocess,
    /// What breaks them is refused undecoded.
    pub limits: &'a Limits,
    /// Bytes of a pass: a quarter for encoded images, the rest for decoding them. (A single image
    /// may pass it: the pixel limit bounds that.)
    pub budget: usize,
    /// Whether their perceptual hashes are wanted too.
    pub look: bool,
}

impl<'a> Prepare<'a> {
    /// As a model takes them, within what a stage may hold; without their perceptual hashes.
    pub fn new(model: &'a Model, limits: &'a Limits, cx: &RunContext) -> Self {
        Self { preprocess: &model.preprocess, limits, budget: cx.bytes_in_flight, look: false }
    }
}

/// The limits that a stage was given, or the default ones.
pub fn limits_of(given: Option<&Located<Limits>>) -> Limits {
    given.map(|limits| limits.value().clone()).unwrap_or_default()
}

/// The embeddings of some rows, those that are `wanted`, as [`decode`] gives pixels.
fn stored(
    batch: &RecordBatch,
    wanted: &[bool],
    identity: &str,
) -> Result<Vec<Image>, (String, Option<String>)> {
    check_made_by(batch, identity)?;
    let vectors = Vectors::of(batch, EMBEDDING)
        .ok_or_else(|| (format!("a shard lacks the column `{EMBEDDING}`"), None))?;
    let hashes = batch.column_by_name(IMAGE_HASH).and_then(|column| cast(column, &DataType::Utf8).ok());
    let hash = |row: usize| {
        let text = hashes.as_ref().map(|hashes| hashes.as_string::<i32>());
        text.filter(|text| text.is_valid(row)).and_then(|text| unhex(text.value(row)))
    };
    let none = || Refusal { code: NO_EMBEDDING, detail: "the embedding is null".into() };
    let one = |row: usize| Image {
        digest: hash(row).unwrap_or_default(),
        pixels: wanted[row].then(|| vectors.get(row).map(<[f32]>::to_vec).ok_or_else(none)),
        look: None,
    };
    Ok((0..batch.num_rows()).map(one).collect())
}

/// The bytes of a SHA-256 in hexadecimal digits.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    (text.len() == 64).then_some(bytes)
}

/// Hashes the images of some rows and decodes those that are `wanted`, in parallel as far as memory
/// allows. `None` for a column that is not in the Hugging Face layout.
fn decode(
    batch: &RecordBatch,
    column: &str,
    wanted: &[bool],
    &Prepare { preprocess, limits, budget, look }: &Prepare<'_>,
) -> Option<Vec<Image>> {
    let budget = budget - budget / 4;
    let structs = batch.column_by_name(column)?.as_struct_opt()?;
    let bytes = cast(structs.column_by_name("bytes")?, &DataType::LargeBinary).ok()?;
    let bytes: &LargeBinaryArray = bytes.as_binary_opt()?;
    let of_row = |row: usize| (structs.is_valid(row) && bytes.is_valid(row)).then(|| bytes.value(row));
    let cost = |row: usize| match of_row(row).filter(|_| wanted[row]).map(|bytes| probe(bytes, limits)) {
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
            let bytes = of_row(row);
            Image {
                digest: Sha256::digest(bytes.unwrap_or_default()).into(),
                pixels: wanted[row].then(|| pixels(bytes, preprocess, limits)),
                look: bytes.filter(|_| look && wanted[row]).and_then(|bytes| look_of(bytes, limits)),
            }
        }));
    }
    Some(images)
}

fn look_of(bytes: &[u8], limits: &Limits) -> Option<u64> {
    let decoded = twinlens_image::decode(bytes, limits).ok()?;
    phash(&decoded.rgb).ok().map(|hash| hash as u64)
}

fn pixels(bytes: Option<&[u8]>, preprocess: &Preprocess, limits: &Limits) -> Result<Vec<f32>, Refusal> {
    let Some(bytes) = bytes else {
        return Err(Refusal { code: NO_IMAGE, detail: "the row holds no image bytes".into() });
    };
    preprocess
        .tensor(bytes, limits)
        .map_err(|error| Refusal { code: error.code(), detail: error.to_string() })
}
