//! Reads Arrow files (including Feather 2) and streams, which Hugging Face `datasets` writes.

use twinlens_dataset::foreign::ArrowBatches;
use twinlens_pipeline::RunError;

use super::open_split::OpenSplit;
use crate::stages::split_reader::BatchSink;

/// Rows that are turned into pairs at a time: a batch in a file may have any length.
const BATCH: usize = 4096;

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &OpenSplit, send: BatchSink<'_>) -> Result<bool, RunError> {
    let rows = &table.rows;
    let batches = ArrowBatches::open(table.file.path())?;
    let columns = table.file_columns(&batches.schema())?;
    let mut pusher = table.pusher(columns.is_image_only());
    let mut first = 0;
    for batch in batches {
        let batch = batch?;
        let end = first + batch.num_rows() as u64;
        let mut row = rows.start.max(first);
        while row < rows.end.min(end) {
            let length = (rows.end.min(end) - row).min(BATCH as u64);
            let part = batch.slice((row - first) as usize, length as usize);
            let pairs = table.push_batch(&columns, &mut pusher, &part, row)?;
            row += length;
            if !send(pairs) {
                return Ok(false);
            }
        }
        first = end;
        if first >= rows.end {
            break;
        }
    }
    Ok(true)
}
