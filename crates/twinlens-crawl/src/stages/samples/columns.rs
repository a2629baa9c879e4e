//! Builds batches of samples row by row.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Builder, Int64Builder, LargeBinaryBuilder, ListBuilder, RecordBatch, StringBuilder,
    new_null_array,
};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use twinlens_dataset::contracts;
use twinlens_dataset::image_column::image_array;
use twinlens_image::ProcessedImage;

use crate::stages::captions;

/// Columns: texts, kept columns, perhaps lists of captions, image columns, reserved columns.
pub(super) struct SampleBatchBuilder {
    schema: SchemaRef,
    pub(super) rows: usize,
    /// Bytes of images so far.
    pub(super) bytes: usize,
    texts: Vec<StringBuilder>,
    /// The column of all captions, if there is one.
    lists: Option<ListBuilder<StringBuilder>>,
    data: LargeBinaryBuilder,
    path: StringBuilder,
    /// Width, height, original width, original height.
    sides: [Int32Builder; 4],
    sha256: StringBuilder,
    phash: Int64Builder,
    exif: StringBuilder,
    /// Stage, code, detail.
    reject: [StringBuilder; 3],
}

impl SampleBatchBuilder {
    /// `kept` is the number of columns besides the contract's; `has_lists` says whether there is
    /// that of all captions.
    pub(super) fn new(schema: &SchemaRef, kept: usize, has_lists: bool) -> Self {
        Self {
            schema: schema.clone(),
            rows: 0,
            bytes: 0,
            texts: (0..contracts::pair_texts().fields().len() + kept).map(|_| StringBuilder::new()).collect(),
            lists: has_lists.then(captions::builder),
            data: LargeBinaryBuilder::new(),
            path: StringBuilder::new(),
            sides: std::array::from_fn(|_| Int32Builder::new()),
            sha256: StringBuilder::new(),
            phash: Int64Builder::new(),
            exif: StringBuilder::new(),
            reject: std::array::from_fn(|_| StringBuilder::new()),
        }
    }

    /// Sets a text of the current row, which [`SampleBatchBuilder::image`] or
    /// [`SampleBatchBuilder::reject`] ends.
    pub(super) fn text(&mut self, column: usize, value: Option<&str>) {
        self.texts[column].append_option(value);
    }

    /// Sets all captions of the current row.
    pub(super) fn captions<'c>(&mut self, captions: impl Iterator<Item = &'c str>) {
        if let Some(lists) = &mut self.lists {
            lists.append_value(captions.map(Some));
        }
    }

    /// Ends a row with its image. `original` is its size before resizing, if the JSON has it.
    pub(super) fn image(
        &mut self,
        path: &str,
        image: &ProcessedImage,
        original: Option<(i32, i32)>,
        sha256: Option<&str>,
        exif: Option<&str>,
    ) {
        // The limit on pixels keeps sides far below 2^31.
        let side = |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX);
        let (width, height) = original.unwrap_or((side(image.original_width), side(image.original_height)));
        let sides = [side(image.width), side(image.height), width, height];
        self.data.append_value(&image.bytes);
        self.path.append_value(path);
        self.sides.iter_mut().zip(sides).for_each(|(column, side)| column.append_value(side));
        self.sha256.append_value(sha256.unwrap_or(&image.sha256));
        self.phash.append_value(image.phash);
        self.exif.append_option(exif);
        self.reject.iter_mut().for_each(StringBuilder::append_null);
        self.bytes += image.bytes.len();
        self.rows += 1;
    }

    /// Ends a row as a reject, of which only the uid must be set.
    pub(super) fn reject(&mut self, stage: &str, code: &str, detail: &str) {
        self.texts[1..].iter_mut().for_each(StringBuilder::append_null);
        self.lists.iter_mut().for_each(ListBuilder::append_null);
        self.data.append_null();
        self.path.append_null();
        self.sides.iter_mut().for_each(Int32Builder::append_null);
        self.sha256.append_null();
        self.phash.append_null();
        self.exif.append_null();
        let values = [stage, code, detail];
        self.reject.iter_mut().zip(values).for_each(|(column, value)| column.append_value(value));
        self.rows += 1;
    }

    /// Takes the rows so far as a batch.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let mut columns: Vec<ArrayRef> =
            self.texts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        columns.extend(self.lists.as_mut().map(|lists| Arc::new(lists.finish()) as ArrayRef));
        columns.push(Arc::new(image_array(self.data.finish(), self.path.finish())?));
        columns.extend(self.sides.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(self.sha256.finish()));
        columns.push(Arc::new(self.phash.finish()));
        columns.push(Arc::new(self.exif.finish()));
        // Nothing was fetched.
        columns.push(new_null_array(&contracts::timestamp(), rows));
        columns.extend(self.reject.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}
