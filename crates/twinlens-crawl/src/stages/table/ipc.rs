//! Reads Arrow files (including Feather 2) and streams, which Hugging Face `datasets` writes.

use std::path::Path;

use twinlens_dataset::foreign::ArrowBatches;
use twinlens_pipeline::RunError;

use super::rows::FileColumns;
use super::split::TableReader;
use crate::pairs::PairBatchBuilder;
use crate::stages::common::arrow_error;
use crate::stages::split_reader::BatchSink;

/// Rows that are turned into pairs at a time: a batch in a file may have any length.
const BATCH: usize = 4096;

/// Counts the rows of a file by reading its batches, as neither format has the number.
pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    let mut rows = 0;
    for batch in ArrowBatches::open(path)? {
        rows += batch?.num_rows() as u64;
    }
    Ok(rows)
}

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &TableReader, send: BatchSink<'_>) -> Result<bool, RunError> {
    let rows = &table.rows;
    let batches = ArrowBatches::open(table.file.path())?;
    let columns = FileColumns::new(&table.file.name, &table.selection, &batches.schema())
        .map_err(|why| table.error(why))?;
    let mut pairs = PairBatchBuilder::new(&table.stage, &table.selection.keep);
    let mut first = 0;
    for batch in batches {
        let batch = batch?;
        let end = first + batch.num_rows() as u64;
        let mut row = rows.start.max(first);
        while row < rows.end.min(end) {
            let length = (rows.end.min(end) - row).min(BATCH as u64);
            let part = batch.slice((row - first) as usize, length as usize);
            columns.push_batch(&mut pairs, &part, &mut row);
            if !send(pairs.finish().map_err(arrow_error)?) {
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
