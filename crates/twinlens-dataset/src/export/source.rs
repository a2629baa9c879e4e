//! The rows of a dataset in the order of its shards, those that a predicate picks, from any row on.
//!
//! They are read row group by row group, so that the pieces in which they come depend on where they
//! stand and not on where reading began: an export that goes on after a kill writes the bytes that
//! it would have written. Pixels of rows that are not picked are not read.

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

use super::refused;
use crate::MAIN;
use crate::dataset::{Dataset, open};
use crate::error::DatasetError;
use crate::protocol::FileEntry;
use crate::shard::{conform, is_pixels, parquet_error};

/// Rows of a piece: as many as a row group of images has, and what the engine likes elsewhere.
const PIXEL_ROWS: usize = 100;
const ROWS: usize = 8192;

/// A piece of the table.
pub(super) struct Rows {
    /// The rows.
    pub(super) batch: RecordBatch,
    /// Where each stands in the table, counted from 0 over its shards.
    pub(super) places: Vec<u64>,
}

impl Rows {
    /// The rows after the first `taken`.
    pub(super) fn after(&self, taken: usize) -> Self {
        Self {
            batch: self.batch.slice(taken, self.batch.num_rows() - taken),
            places: self.places[taken..].to_vec(),
        }
    }
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// At the last row.
    Whole,
    /// Before it: nobody wants more.
    Stopped,
}

/// The main table of a dataset.
pub(super) struct Source<'a> {
    dataset: &'a Dataset,
    /// One partition: rows come in their order.
    session: SessionContext,
    predicate: Option<&'a str>,
    schema: SchemaRef,
}

impl<'a> Source<'a> {
    /// The rows of `dataset` for which `predicate` is true, over the functions of `session`.
    ///
    /// # Errors
    /// The user's: a predicate that does not fit the table.
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
            let checked = source.check(predicate).await?;
            checked.map_err(|why| {
                let names = source.schema.fields().iter().map(|field| field.name().as_str());
                let hint = format!("the columns are {}", names.collect::<Vec<_>>().join(", "));
                refused(dataset.location(), format!("--where {predicate}: {why}"), hint)
            })?;
        }
        Ok(source)
    }

    /// Plans the predicate, so far as that needs no reading; what is wrong with it.
    async fn check(&self, predicate: &str) -> Result<Result<(), String>, DatasetError> {
        let frame = self.dataset.frame(&self.session, MAIN).await?;
        let planned = || -> datafusion::error::Result<DataType> {
            let kind = frame.parse_sql_expr(predicate)?.get_type(frame.schema())?;
            if kind == DataType::Boolean {
                frame.clone().filter(picks(&frame, predicate)?)?.into_optimized_plan()?;
            }
            Ok(kind)
        };
        Ok(match planned() {
            Ok(DataType::Boolean) => Ok(()),
            Ok(kind) => Err(format!("expected true or false, and it gives {kind}")),
            Err(error) => {
                let message = error.find_root().strip_backtrace();
                let line = message.lines().next().unwrap_or_default();
                // The engine's name for the sort of error, and for a table that has none.
                Err(line.trim_start_matches("Schema error: ").replace("\"?table?\".", ""))
            }
        })
    }

    /// The picked rows, as a plan, in no particular order.
    pub(super) async fn frame(&self) -> Result<DataFrame, DatasetError> {
        let frame = self.dataset.frame(&self.session, MAIN).await?;
        Ok(match self.predicate {
            Some(predicate) => {
                let picks = picks(&frame, predicate)?;
                frame.filter(picks)?
            }
            None => frame,
        })
    }

    /// Sends the rows from `start` on, until there are no more, `to` is closed, or `stop` says so.
    pub(super) async fn read(
        &self,
        start: u64,
        to: &Sender<Rows>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Read, DatasetError> {
        let mut first = 0;
        for shard in self.dataset.shards(MAIN) {
            if first + shard.rows > start && self.shard(shard, first, start, to, stop).await? == Read::Stopped
            {
                return Ok(Read::Stopped);
            }
            first += shard.rows;
        }
        Ok(Read::Whole)
    }

    /// A shard whose first row is `first` of the table.
    async fn shard(
        &self,
        shard: &FileEntry,
        first: u64,
        start: u64,
        to: &Sender<Rows>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Read, DatasetError> {
        let location = self.dataset.location().join(&shard.path);
        let path = location.shown();
        let fail = |error| parquet_error(&path, error);
        let picked = self.picked(shard).await?;
        let mut file = open(&location, shard.bytes).await?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load_async(&mut file, options).await.map_err(fail)?;
        let pixels = self.schema.fields().iter().any(|field| is_pixels(field.data_type()));
        let mut next = 0;
        for group in 0..metadata.metadata().num_row_groups() {
            let rows = metadata.metadata().row_group(group).num_rows() as usize;
            let group_start = next;
            next += rows;
            let picked = picked.as_ref().map(|picked| picked.slice(group_start, rows));
            let is_picked = |row: &usize| picked.as_ref().is_none_or(|picked| picked.value(*row));
            let places: Vec<u64> =
                (0..rows).filter(is_picked).map(|row| first + (group_start + row) as u64).collect();
            if places.last().is_none_or(|last| *last < start) {
                continue;
            }
            let file = open(&location, shard.bytes).await?;
            let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file, metadata.clone())
                .with_row_groups(vec![group])
                .with_batch_size(if pixels { PIXEL_ROWS } else { ROWS });
            if let Some(picked) = picked {
                builder = builder.with_row_selection(RowSelection::from_filters(&[picked]));
            }
            let mut batches = builder.build().map_err(fail)?;
            let mut places = &places[..];
            while let Some(batch) = batches.try_next().await.map_err(fail)? {
                let (here, rest) = places.split_at_checked(batch.num_rows()).ok_or_else(|| {
                    DatasetError::Protocol(format!("{}: more rows than were picked", path.display()))
                })?;
                places = rest;
                let rows = Rows { batch: conform("shard", &batch, &self.schema)?, places: here.to_vec() };
                let known = here.partition_point(|place| *place < start);
                if stop() || (known < here.len() && to.send(rows.after(known)).await.is_err()) {
                    return Ok(Read::Stopped);
                }
            }
        }
        Ok(Read::Whole)
    }

    /// Which rows of a shard the predicate picks; `None` for all. Reads the columns that it names,
    /// and no others.
    async fn picked(&self, shard: &FileEntry) -> Result<Option<BooleanArray>, DatasetError> {
        let Some(predicate) = self.predicate else { return Ok(None) };
        let frame = self.dataset.of_shard(shard).frame(&self.session, MAIN).await?;
        let picks = picks(&frame, predicate)?;
        let batches = frame.select(vec![picks.alias("picked")])?.collect().await?;
        let columns: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(0).as_ref()).collect();
        let picked =
            concat(&columns).map_err(|source| DatasetError::Schema { table: MAIN.into(), source })?;
        if picked.len() as u64 != shard.rows {
            let why = format!("{} rows, but the manifest records {}", picked.len(), shard.rows);
            let path = self.dataset.location().join(&shard.path).shown();
            return Err(DatasetError::DamagedFile { path, why });
        }
        Ok(Some(picked.as_boolean().clone()))
    }
}

/// The predicate as an expression that is true or false.
fn picks(frame: &DataFrame, predicate: &str) -> datafusion::error::Result<Expr> {
    Ok(frame.parse_sql_expr(predicate)?.is_true())
}
