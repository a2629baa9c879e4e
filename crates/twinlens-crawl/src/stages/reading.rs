//! Splits that are read by code that blocks, as streams of the engine.

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

/// Takes a batch; `false` when nobody wants more: what is left is then not read.
pub(super) type Send<'a> = &'a mut dyn FnMut(RecordBatch) -> bool;

/// One split, as it is read.
pub(super) trait Reading: Debug + std::marker::Send + Sync + 'static {
    /// The columns of the batches.
    fn schema(&self) -> &SchemaRef;

    /// Reads the split. Blocks: it runs on a thread of its own, a batch or two ahead of who wants
    /// them.
    fn read(&self, send: Send<'_>) -> Result<(), RunError>;
}

/// The rows of a split as a plan.
pub(super) fn frame(cx: &RunContext, split: impl Reading) -> Result<DataFrame, RunError> {
    let schema = split.schema().clone();
    let partition = Arc::new(Partition(Arc::new(split)));
    Ok(cx.session.read_table(Arc::new(StreamingTable::try_new(schema, vec![partition])?))?)
}

#[derive(Debug)]
struct Partition(Arc<dyn Reading>);

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
