//! Blocking readers of batches as tables of the engine.

use std::fmt::Debug;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;

use crate::error::RunError;

/// Takes a batch; returns `false` when no more are needed.
pub type BatchSink<'a> = &'a mut dyn FnMut(RecordBatch) -> bool;

/// Reads batches.
pub trait BatchReader: Debug + Send + Sync + 'static {
    /// Their schema.
    fn schema(&self) -> &SchemaRef;

    /// Reads all of them. It may block: it runs on its own thread, a batch or two ahead of the
    /// consumer.
    ///
    /// # Errors
    /// Of the reader: they end the stream.
    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError>;
}

/// The batches of a reader as a table. It is read again whenever the table is.
///
/// # Errors
/// Of the engine.
pub fn data_frame(session: &SessionContext, reader: impl BatchReader) -> Result<DataFrame, RunError> {
    let schema = reader.schema().clone();
    let partition = Arc::new(Partition(Arc::new(reader)));
    Ok(session.read_table(Arc::new(StreamingTable::try_new(schema, vec![partition])?))?)
}

#[derive(Debug)]
struct Partition(Arc<dyn BatchReader>);

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        self.0.schema()
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.0.schema().clone(), 1);
        let (batches, reader) = (builder.tx(), self.0.clone());
        builder.spawn_blocking(move || {
            reader.read(&mut |batch| batches.blocking_send(Ok(batch)).is_ok())?;
            Ok(())
        });
        builder.build()
    }
}
