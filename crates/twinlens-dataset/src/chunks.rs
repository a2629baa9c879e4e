//! Cuts rows into chunks that do not depend on the batches in which the rows arrive.
//!
//! The boundaries of pages, row groups and shards depend on the individual calls of the Parquet
//! writer. A split that `retry` rebuilds has the same rows in different batches and must still give
//! the same bytes.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

use crate::types::holds_image_bytes;

/// Most rows of a chunk.
const ROWS: usize = 8192;
/// Image bytes after which a chunk ends.
const IMAGE_BYTES: usize = 1 << 20;
/// Rows with images per row group: readers that page through images (the hub's viewer) expect about
/// a hundred.
const GROUP_IMAGES: usize = 100;

/// Rows that are written by one call of the Parquet writer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) rows: RecordBatch,
    /// Whether the row group is full.
    pub(crate) ends_group: bool,
}

/// Cuts the rows of one table into chunks; a chunk ends with the row that fills it.
#[derive(Debug)]
pub(crate) struct Chunks {
    schema: SchemaRef,
    has_images: bool,
    pending: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    /// Rows with images since the last row group ended.
    images: usize,
}

impl Chunks {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        let has_images = schema.fields().iter().any(|field| holds_image_bytes(field.data_type()));
        Self { schema, has_images, pending: Vec::new(), rows: 0, bytes: 0, images: 0 }
    }

    /// Image bytes of the unfinished chunk.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds rows; returns the chunks that are now full.
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<Vec<Chunk>, ArrowError> {
        let mut sizes = vec![0; if self.has_images { batch.num_rows() } else { 0 }];
        batch.columns().iter().for_each(|column| add_image_bytes(column, &mut sizes));
        let (mut full, mut start) = (Vec::new(), 0);
        for row in 0..batch.num_rows() {
            let size = sizes.get(row).copied().unwrap_or(0);
            self.rows += 1;
            self.bytes += size;
            self.images += usize::from(size > 0);
            let ends_group = self.images >= GROUP_IMAGES;
            if ends_group || self.rows >= ROWS || self.bytes >= IMAGE_BYTES {
                self.pending.push(batch.slice(start, row + 1 - start));
                start = row + 1;
                full.extend(self.take_rest()?.map(|rows| Chunk { rows, ends_group }));
                if ends_group {
                    self.images = 0;
                }
            }
        }
        if start < batch.num_rows() {
            self.pending.push(batch.slice(start, batch.num_rows() - start));
        }
        Ok(full)
    }

    /// Returns the remaining rows as the last chunk.
    pub(crate) fn take_rest(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        (self.rows, self.bytes) = (0, 0);
        match std::mem::take(&mut self.pending).as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            several => concat_batches(&self.schema, several).map(Some),
        }
    }
}

/// Adds the image bytes of each row of `column` to `sizes`.
fn add_image_bytes(column: &dyn Array, sizes: &mut [usize]) {
    let mut add = |length: &dyn Fn(usize) -> usize| {
        for (row, size) in sizes.iter_mut().enumerate().filter(|(row, _)| column.is_valid(*row)) {
            *size += length(row);
        }
    };
    match column.data_type() {
        DataType::Binary => add(&|row| column.as_binary::<i32>().value(row).len()),
        DataType::LargeBinary => add(&|row| column.as_binary::<i64>().value(row).len()),
        DataType::BinaryView => add(&|row| column.as_binary_view().value(row).len()),
        DataType::Struct(_) => {
            column.as_struct().columns().iter().for_each(|column| add_image_bytes(column, sizes));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, LargeBinaryArray};
    use arrow::datatypes::{Field, Schema};
    use proptest::prelude::*;

    use super::*;

    fn rows(numbers: std::ops::Range<usize>, sizes: &[usize]) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("number", DataType::Int64, false),
            Field::new("pixels", DataType::LargeBinary, true),
        ]);
        let pixels: LargeBinaryArray =
            numbers.clone().map(|row| (sizes[row] > 0).then(|| vec![row as u8; sizes[row]])).collect();
        let ids = Int64Array::from_iter_values(numbers.map(|row| row as i64));
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ids), Arc::new(pixels)]).unwrap()
    }

    /// The chunks of all rows, pushed in batches that end at `ends`.
    fn chunks(sizes: &[usize], ends: &[usize]) -> Vec<Chunk> {
        let mut chunks = Chunks::new(rows(0..0, sizes).schema());
        let (mut cut, mut start) = (Vec::new(), 0);
        for end in ends.iter().copied().filter(|end| *end < sizes.len()).chain([sizes.len()]) {
            if start < end {
                cut.extend(chunks.push(&rows(start..end, sizes)).unwrap());
                start = end;
            }
        }
        cut.extend(chunks.take_rest().unwrap().map(|rows| Chunk { rows, ends_group: false }));
        cut
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn chunks_do_not_depend_on_batches(
            sizes in prop::collection::vec(prop_oneof![4 => Just(0usize), 8 => 1usize..2_000, 1 => 300_000usize..1_500_000], 1..250),
            mut ends in prop::collection::vec(1usize..250, 0..12),
        ) {
            ends.sort_unstable();
            let cut = chunks(&sizes, &ends);
            prop_assert_eq!(&cut, &chunks(&sizes, &[]));
            let (mut start, mut images) = (0, 0);
            for chunk in &cut {
                let end = start + chunk.rows.num_rows();
                images += sizes[start..end].iter().filter(|size| **size > 0).count();
                prop_assert_eq!(chunk.ends_group, images == GROUP_IMAGES);
                images %= GROUP_IMAGES;
                start = end;
            }
            prop_assert_eq!(start, sizes.len());
        }
    }
}
