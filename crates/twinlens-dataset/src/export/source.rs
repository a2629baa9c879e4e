//! Reads the rows of a dataset in the order of its shards, filtered by a predicate, starting at any
//! row.
//!
//! Rows are read by row group, so that the pieces do not depend on the starting row: a resumed
//! export writes the same bytes as an uninterrupted one. Images of rows that do not match are not
//! read.

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use parquet::arrow::ParquetRecordBatchStreamBuilder;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::file::metadata::PageIndexPolicy;
use tokio::sync::mpsc::Sender;

use crate::conform::conform;
use crate::dataset::Dataset;
use crate::error::{DatasetError, parquet_error};
use crate::protocol::FileEntry;
use crate::protocol::MAIN;
use crate::types::holds_image_bytes;

/// Rows of a piece with images: as many as a row group has.
const IMAGE_ROWS: usize = 100;
/// Rows of a piece without images.
const ROWS: usize = 8192;

/// A piece of the table.
pub(super) struct Rows {
    pub(super) batch: RecordBatch,
    /// Index of each row in the table, counted over its shards.
    pub(super) indices: Vec<u64>,
}

impl Rows {
    /// The rows after the first `taken`.
    pub(super) fn after(&self, taken: usize) -> Self {
        Self {
            batch: self.batch.slice(taken, self.batch.num_rows() - taken),
            indices: self.indices[taken..].to_vec(),
        }
    }
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// After the last row.
    Finished,
    /// Before the last row, on request.
    Stopped,
}

/// The main table of a dataset.
pub(super) struct Source<'a> {
    dataset: &'a Dataset,
    /// Has one partition, which preserves the order of rows.
    session: SessionContext,
    predicate: Option<&'a str>,
    schema: SchemaRef,
}

impl<'a> Source<'a> {
    /// The rows of `dataset` for which `predicate` is true, over the functions of `session`.
    ///
    /// # Errors
    /// A predicate that does not fit the table.
    pub(super) async fn new(
        dataset: &'a Dataset,
        session: &SessionContext,
        predicate: Option<&'a str>,
    ) -> Result<Self, DatasetError> {
        let config = session.copied_config().with_target_partitions(1);
        let state = SessionStateBuilder::new_from_existing(session.state()).with_config(config).build();
        let session = SessionContext::new_with_state(state);
        let source = Self { dataset, session, predicate, schema: dataset.schema(MAIN)? };
        if let Some(predicate) = predicate {
            let checked = source.check_predicate(predicate).await?;
            checked.map_err(|why| {
                let names = source.schema.fields().iter().map(|field| field.name().as_str());
                let hint = format!("the columns are {}", names.collect::<Vec<_>>().join(", "));
                DatasetError::refused(dataset.location(), format!("--where {predicate}: {why}"), hint)
            })?;
        }
        Ok(source)
    }

    /// Plans the predicate without reading data; the inner error says what is wrong with it.
    async fn check_predicate(&self, predicate: &str) -> Result<Result<(), String>, DatasetError> {
        let frame = self.dataset.frame(&self.session, MAIN).await?;
        let planned = || -> datafusion::error::Result<DataType> {
            let kind = frame.parse_sql_expr(predicate)?.get_type(frame.schema())?;
            if kind == DataType::Boolean {
                frame.clone().filter(condition(&frame, predicate)?)?.into_optimized_plan()?;
            }
            Ok(kind)
        };
        Ok(match planned() {
            Ok(DataType::Boolean) => Ok(()),
            Ok(kind) => Err(format!("expected a condition, but the type is {kind}")),
            Err(error) => {
                let message = error.find_root().strip_backtrace();
                let line = message.lines().next().unwrap_or_default();
                // Drops the engine's prefix and its placeholder for an unnamed table.
                Err(line.trim_start_matches("Schema error: ").replace("\"?table?\".", ""))
            }
        })
    }

    /// The matching rows as a plan; their order is unspecified.
    pub(super) async fn frame(&self) -> Result<DataFrame, DatasetError> {
        let frame = self.dataset.frame(&self.session, MAIN).await?;
        Ok(match self.predicate {
            Some(predicate) => {
                let condition = condition(&frame, predicate)?;
                frame.filter(condition)?
            }
            None => frame,
        })
    }

    /// Sends the rows from `start` on until the last one, until `to` is closed, or until `stop` is
    /// true.
    pub(super) async fn read(
        &self,
        start: u64,
        to: &Sender<Rows>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<ReadEnd, DatasetError> {
        let mut first = 0;
        for shard in self.dataset.shards(MAIN) {
            if first + shard.rows > start
                && self.shard(shard, first, start, to, stop).await? == ReadEnd::Stopped
            {
                return Ok(ReadEnd::Stopped);
            }
            first += shard.rows;
        }
        Ok(ReadEnd::Finished)
    }

    /// A shard whose first row is `first` of the table.
    async fn shard(
        &self,
        shard: &FileEntry,
        first: u64,
        start: u64,
        to: &Sender<Rows>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<ReadEnd, DatasetError> {
        let location = self.dataset.file(shard);
        let path = location.display_path();
        let fail = |error| parquet_error(&path, error);
        let matching = self.matching(shard).await?;
        let mut file = location.open_parquet(shard.bytes).await?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load_async(&mut file, options).await.map_err(fail)?;
        let has_images = self.schema.fields().iter().any(|field| holds_image_bytes(field.data_type()));
        let mut next = 0;
        for group in 0..metadata.metadata().num_row_groups() {
            let rows = metadata.metadata().row_group(group).num_rows() as usize;
            let group_start = next;
            next += rows;
            let matching = matching.as_ref().map(|matching| matching.slice(group_start, rows));
            let is_match = |row: &usize| matching.as_ref().is_none_or(|matching| matching.value(*row));
            let indices: Vec<u64> =
                (0..rows).filter(is_match).map(|row| first + (group_start + row) as u64).collect();
            if indices.last().is_none_or(|last| *last < start) {
                continue;
            }
            let file = location.open_parquet(shard.bytes).await?;
            let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file, metadata.clone())
                .with_row_groups(vec![group])
                .with_batch_size(if has_images { IMAGE_ROWS } else { ROWS });
            if let Some(matching) = matching {
                builder = builder.with_row_selection(RowSelection::from_filters(&[matching]));
            }
            let mut batches = builder.build().map_err(fail)?;
            let mut indices = &indices[..];
            while let Some(batch) = batches.try_next().await.map_err(fail)? {
                let (batch_indices, rest) = indices.split_at_checked(batch.num_rows()).ok_or_else(|| {
                    DatasetError::Protocol(format!("{}: more rows than match the predicate", path.display()))
                })?;
                indices = rest;
                let batch = conform("shard", &batch, &self.schema)?;
                let rows = Rows { batch, indices: batch_indices.to_vec() };
                let known = batch_indices.partition_point(|index| *index < start);
                if stop() || (known < batch_indices.len() && to.send(rows.after(known)).await.is_err()) {
                    return Ok(ReadEnd::Stopped);
                }
            }
        }
        Ok(ReadEnd::Finished)
    }

    /// Which rows of a shard match the predicate; `None` for all. Reads only the columns that it
    /// names.
    async fn matching(&self, shard: &FileEntry) -> Result<Option<BooleanArray>, DatasetError> {
        let Some(predicate) = self.predicate else { return Ok(None) };
        let frame = self.dataset.only_shard(shard).frame(&self.session, MAIN).await?;
        let condition = condition(&frame, predicate)?;
        let batches = frame.select(vec![condition.alias("matches")])?.collect().await?;
        let columns: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(0).as_ref()).collect();
        let matching =
            concat(&columns).map_err(|source| DatasetError::Schema { table: MAIN.into(), source })?;
        if matching.len() as u64 != shard.rows {
            let why = format!("{} rows, but the manifest records {}", matching.len(), shard.rows);
            let path = self.dataset.location().join(&shard.path).display_path();
            return Err(DatasetError::DamagedFile { path, why });
        }
        Ok(Some(matching.as_boolean().clone()))
    }
}

/// The predicate as an expression that is never null.
fn condition(frame: &DataFrame, predicate: &str) -> datafusion::error::Result<Expr> {
    Ok(frame.parse_sql_expr(predicate)?.is_true())
}
