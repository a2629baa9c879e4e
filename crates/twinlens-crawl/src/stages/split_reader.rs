//! Runs blocking readers of splits as streams of the engine.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use twinlens_pipeline::{RunContext, RunError};

/// Takes a batch; returns `false` when no more are needed.
pub(super) type BatchSink<'a> = &'a mut dyn FnMut(RecordBatch) -> bool;

pub(super) trait SplitReader: Debug + Send + Sync + 'static {
    fn schema(&self) -> &SchemaRef;

    /// Reads the split. It may block: it runs on its own thread, a batch or two ahead of the
    /// consumer.
    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError>;
}

/// The rows of a split as a data frame.
pub(super) fn data_frame(cx: &RunContext, split: impl SplitReader) -> Result<DataFrame, RunError> {
    let schema = split.schema().clone();
    let partition = Arc::new(Partition(Arc::new(split)));
    Ok(cx.session.read_table(Arc::new(StreamingTable::try_new(schema, vec![partition])?))?)
}

#[derive(Debug)]
struct Partition(Arc<dyn SplitReader>);

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        self.0.schema()
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.0.schema().clone(), 1);
        let (batches, split) = (builder.tx(), self.0.clone());
        builder.spawn_blocking(move || {
            split.read(&mut |batch| batches.blocking_send(Ok(batch)).is_ok())?;
            Ok(())
        });
        builder.build()
    }
}
