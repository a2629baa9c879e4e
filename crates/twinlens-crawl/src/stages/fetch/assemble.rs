//! Assembles rows and their images into batches.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int32Builder, Int64Builder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondBuilder, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use twinlens_dataset::image_column::image_array;
use twinlens_image::ProcessedImage;
use twinlens_pipeline::{RunError, Secrets, rejects};

use super::body::Rejection;
use super::columns::DAMAGE;
use super::stored::FetchedImage;
use crate::net::Reservation;
use crate::stages::common::arrow_error;

/// Columns of URLs.
const URL: &str = "url";
const PAGE_URL: &str = "page_url";
/// Rows per batch.
const BATCH_ROWS: usize = 128;
/// Approximate bytes of images per batch.
const BATCH_BYTES: usize = 4 << 20;

/// Rows with the same URL, and the result of fetching it.
pub(super) struct FinishedRows {
    pub(super) rows: Vec<u32>,
    pub(super) image: Result<FetchedImage, Rejection>,
}

/// Collects finished rows into batches of bounded size.
pub(super) struct Assembler {
    stage: String,
    schema: SchemaRef,
    secrets: Arc<Secrets>,
    rows: Option<RecordBatch>,
    /// Finished rows, and the image of each.
    pending: Vec<(u32, Arc<Result<FetchedImage, Rejection>>)>,
    bytes: usize,
}

impl Assembler {
    /// `schema` has the columns of the rows, the image columns and the reserved columns.
    pub(super) fn new(stage: &str, schema: SchemaRef, secrets: Arc<Secrets>) -> Self {
        Self { stage: stage.into(), schema, secrets, rows: None, pending: Vec::new(), bytes: 0 }
    }

    /// Sets the rows of the split. Their URLs, which were fetched as they are, are stored without
    /// what is secret in them.
    pub(super) fn with_rows(self, rows: RecordBatch) -> Result<Self, RunError> {
        let mut columns = rows.columns().to_vec();
        for (column, field) in columns.iter_mut().zip(rows.schema().fields()) {
            if let (URL | PAGE_URL, Some(urls)) = (field.name().as_str(), column.as_string_opt::<i32>()) {
                let cut = urls.iter().map(|url| url.map(|url| self.secrets.cut(url)));
                *column = Arc::new(cut.collect::<StringArray>());
            }
        }
        let rows = RecordBatch::try_new(rows.schema(), columns).map_err(arrow_error)?;
        Ok(Self { rows: Some(rows), ..self })
    }

    /// A batch of rows that an earlier stage rejected, unchanged.
    pub(super) fn pass_through(&self, rows: &[u32]) -> Result<Option<RecordBatch>, RunError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let indices = UInt32Array::from(rows.to_vec());
        let taken = self.take(&indices)?;
        let column = |name: &str, kind: &DataType| match taken.column_by_name(name) {
            Some(column) => Ok(column.clone()),
            None => Ok(arrow::array::new_null_array(kind, rows.len())),
        };
        self.batch(column).map(Some)
    }

    /// Adds rows; returns a batch once it is full. The bytes no longer count as in flight, as the
    /// size of a batch is bounded.
    pub(super) fn add(&mut self, mut finished: FinishedRows) -> Result<Option<RecordBatch>, RunError> {
        if let Ok(fetched) = &mut finished.image {
            fetched.reservation = Reservation::default();
        }
        let image = Arc::new(finished.image);
        let bytes = image.as_ref().as_ref().map_or(0, |fetched| fetched.stored.bytes().len());
        for row in finished.rows {
            self.pending.push((row, image.clone()));
            self.bytes += bytes;
        }
        if self.pending.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES { self.finish() } else { Ok(None) }
    }

    /// The batch of the remaining rows.
    pub(super) fn finish(&mut self) -> Result<Option<RecordBatch>, RunError> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        let pending = std::mem::take(&mut self.pending);
        self.bytes = 0;
        let taken = self.take(&pending.iter().map(|(row, _)| *row).collect())?;
        let images: Vec<Option<&FetchedImage>> =
            pending.iter().map(|(_, image)| image.as_ref().as_ref().ok()).collect();
        let rejection = |(_, image): &(u32, Arc<Result<FetchedImage, Rejection>>)| {
            image.as_ref().as_ref().err().map(|rejection| (rejection.code, rejection.detail.clone()))
        };
        let rejections: Vec<_> = pending.iter().map(rejection).collect();
        let column = |name: &str, _: &DataType| {
            if let Some(column) = image_column(name, &images).map_err(arrow_error)? {
                return Ok(column);
            }
            let text = |value: for<'a> fn(&'a (&'static str, String)) -> &'a str| -> ArrayRef {
                Arc::new(
                    rejections.iter().map(|rejection| rejection.as_ref().map(value)).collect::<StringArray>(),
                )
            };
            match name {
                rejects::STAGE => {
                    let stage = |rejection: &Option<_>| rejection.is_some().then_some(self.stage.as_str());
                    Ok(Arc::new(rejections.iter().map(stage).collect::<StringArray>()))
                }
                rejects::CODE => Ok(text(|(code, _)| code)),
                rejects::DETAIL => Ok(text(|(_, detail)| detail)),
                other => existing_column(&taken, other),
            }
        };
        self.batch(column).map(Some)
    }

    fn take(&self, indices: &UInt32Array) -> Result<RecordBatch, RunError> {
        let rows = self.rows.as_ref().ok_or_else(|| RunError::Internal("no rows to take from".into()))?;
        take_record_batch(rows, indices).map_err(arrow_error)
    }

    fn batch(
        &self,
        column: impl Fn(&str, &DataType) -> Result<ArrayRef, RunError>,
    ) -> Result<RecordBatch, RunError> {
        let columns = self.schema.fields().iter().map(|field| column(field.name(), field.data_type()));
        RecordBatch::try_new(self.schema.clone(), columns.collect::<Result<_, _>>()?).map_err(arrow_error)
    }
}

fn existing_column(rows: &RecordBatch, name: &str) -> Result<ArrayRef, RunError> {
    rows.column_by_name(name)
        .cloned()
        .ok_or_else(|| RunError::Internal(format!("the rows have no column {name}")))
}

/// One of the contract's image columns; `None` for another name.
fn image_column(name: &str, images: &[Option<&FetchedImage>]) -> Result<Option<ArrayRef>, ArrowError> {
    let pixels = |value_of: fn(&ProcessedImage) -> u32| -> ArrayRef {
        let mut builder = Int32Builder::new();
        // The limit on pixels keeps sides far below 2^31.
        images.iter().for_each(|image| {
            let image = image.and_then(|fetched| fetched.stored.image());
            builder.append_option(image.and_then(|image| i32::try_from(value_of(image)).ok()))
        });
        Arc::new(builder.finish())
    };
    let text = |value_of: fn(&FetchedImage) -> Option<&str>| -> ArrayRef {
        let mut builder = StringBuilder::new();
        images.iter().for_each(|image| builder.append_option(image.and_then(value_of)));
        Arc::new(builder.finish())
    };
    Ok(Some(match name {
        "image" => {
            let bytes = images.iter().map(|image| image.map(|image| image.stored.bytes()));
            // The path is null, because the bytes are present.
            Arc::new(image_array(bytes.collect(), StringArray::new_null(images.len()))?)
        }
        "width" => pixels(|image| image.width),
        "height" => pixels(|image| image.height),
        "original_width" => pixels(|image| image.original_width),
        "original_height" => pixels(|image| image.original_height),
        "sha256" => text(|fetched| Some(fetched.stored.sha256())),
        "exif" => text(|fetched| fetched.stored.image()?.exif.as_deref()),
        DAMAGE => text(|fetched| fetched.stored.damage()),
        "phash" => {
            let mut builder = Int64Builder::new();
            let phash = |fetched: &FetchedImage| Some(fetched.stored.image()?.phash);
            images.iter().for_each(|image| builder.append_option(image.and_then(phash)));
            Arc::new(builder.finish())
        }
        "fetched_at" => {
            let mut builder = TimestampMicrosecondBuilder::new().with_timezone("UTC");
            images.iter().for_each(|image| builder.append_option(image.map(|image| image.fetched_at)));
            Arc::new(builder.finish())
        }
        _ => return Ok(None),
    }))
}
