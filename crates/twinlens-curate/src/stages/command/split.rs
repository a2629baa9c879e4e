//! One split: rows in sorted order, cut into batches, answered by the workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, is_null};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::SortExpr;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream::Fuse;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc::Sender;
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_pipeline::rejects::CODE;
use twinlens_pipeline::{RunError, SortKey};

use super::contract::{Answer, RowContract};
use super::pool::Lease;

/// A batch is cut before it has more bytes than this.
const BATCH_BYTES: usize = 64 << 20;

/// The order in which rows are sent and written: as the runner sorts.
pub(super) fn sort_keys(schema: &Schema) -> Vec<SortExpr> {
    SortKey::columns(ROW_ORDER).keys(schema)
}

/// Rows in that order. A table without a column to sort by stays as it is.
pub(super) fn sorted(rows: DataFrame, keys: &[SortExpr]) -> EngineResult<DataFrame> {
    if keys.is_empty() { Ok(rows) } else { rows.sort(keys.to_vec()) }
}

/// The columns of `rows` that are sent.
pub(super) fn project(rows: &RecordBatch, schema: &SchemaRef) -> EngineResult<RecordBatch> {
    let columns = schema.fields().iter().map(|field| rows[field.name().as_str()].clone()).collect();
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

#[derive(Debug)]
pub(super) struct Split {
    /// Sorted.
    pub(super) rows: DataFrame,
    pub(super) batch_rows: usize,
    pub(super) contract: Arc<RowContract>,
    pub(super) lease: Arc<Lease>,
}

impl PartitionStream for Split {
    fn schema(&self) -> &SchemaRef {
        &self.contract.output
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.contract.output.clone(), 1);
        let (output, rows) = (builder.tx(), self.rows.clone());
        let exchange = Exchange {
            batch_rows: self.batch_rows,
            contract: self.contract.clone(),
            lease: self.lease.clone(),
            restarts: AtomicU32::new(0),
        };
        builder.spawn(async move { exchange.run(rows, &output).await });
        builder.build()
    }
}

struct Exchange {
    batch_rows: usize,
    contract: Arc<RowContract>,
    lease: Arc<Lease>,
    /// Of this split.
    restarts: AtomicU32,
}

impl Exchange {
    /// Several batches are with the workers at a time; their answers are passed on in order.
    async fn run(&self, rows: DataFrame, output: &Sender<EngineResult<RecordBatch>>) -> EngineResult<()> {
        let batches =
            Batches { rows: rows.execute_stream().await?.fuse(), rest: None, limit: self.batch_rows };
        let batches = futures::stream::try_unfold(batches, async |mut batches| {
            Ok::<_, DataFusionError>(batches.next().await?.map(|batch| (batch, batches)))
        });
        let answered = batches.map(async |batch| self.answered(batch?).await);
        let mut answered = std::pin::pin!(answered.buffered(self.lease.pool().size));
        while let Some(batch) = answered.try_next().await? {
            if output.send(Ok(batch)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn answered(&self, rows: RecordBatch) -> EngineResult<RecordBatch> {
        let live = live(&rows)?;
        let answer = if live.true_count() == 0 {
            Answer::nulls(&self.contract, rows.num_rows())
        } else {
            let sent = project(&rows, &self.lease.pool().schema)?;
            let sent = if live.false_count() == 0 { sent } else { filter_record_batch(&sent, &live)? };
            self.answer(&sent).await?
        };
        Ok(self.contract.output(&rows, &live, &answer)?)
    }

    /// A batch that was not answered is sent again, once in a split, to a new process.
    async fn answer(&self, sent: &RecordBatch) -> Result<Answer, RunError> {
        let pool = self.lease.pool();
        loop {
            let failure = match pool.exchange(sent, &self.contract).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if failure.is_final {
                return Err(failure.into_error(&pool.program, false));
            }
            if self.restarts.fetch_add(1, Ordering::Relaxed) > 0 {
                return Err(failure.into_error(&pool.program, true));
            }
            pool.progress.note(format!("`{}` is restarted: {}", pool.program.shown, failure.reason));
        }
    }
}

/// Which rows are not rejected.
fn live(rows: &RecordBatch) -> EngineResult<BooleanArray> {
    match rows.column_by_name(CODE) {
        Some(codes) => Ok(is_null(codes)?),
        None => Ok(vec![true; rows.num_rows()].into()),
    }
}

/// Cuts sorted rows into batches of `limit` rows that are not rejected, or fewer if they are large.
/// The cuts depend on the rows alone.
struct Batches {
    rows: Fuse<SendableRecordBatchStream>,
    rest: Option<RecordBatch>,
    limit: usize,
}

impl Batches {
    async fn next(&mut self) -> EngineResult<Option<RecordBatch>> {
        let (mut parts, mut count, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let rows = match self.rest.take() {
                Some(rows) => rows,
                None => match self.rows.next().await {
                    Some(rows) => rows?,
                    None => break,
                },
            };
            let live = live(&rows)?;
            let end = (0..rows.num_rows()).find(|&row| {
                let size: usize = rows.columns().iter().map(|column| value_bytes(column, row)).sum();
                let is_full = count == self.limit || bytes > 0 && bytes + size > BATCH_BYTES;
                count += usize::from(live.value(row));
                bytes += size;
                is_full
            });
            if let Some(end) = end {
                parts.push(rows.slice(0, end));
                self.rest = Some(rows.slice(end, rows.num_rows() - end));
                break;
            }
            parts.push(rows);
        }
        match parts.first() {
            Some(first) => Ok(Some(concat_batches(&first.schema(), &parts)?)),
            None => Ok(None),
        }
    }
}

/// About how many bytes a value has.
fn value_bytes(column: &ArrayRef, row: usize) -> usize {
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value_length(row) as usize,
        DataType::LargeUtf8 => column.as_string::<i64>().value_length(row) as usize,
        DataType::Binary => column.as_binary::<i32>().value_length(row) as usize,
        DataType::LargeBinary => column.as_binary::<i64>().value_length(row) as usize,
        DataType::List(_) => 8 * column.as_list::<i32>().value_length(row) as usize,
        DataType::Struct(_) => column.as_struct().columns().iter().map(|part| value_bytes(part, row)).sum(),
        _ => 8,
    }
}
