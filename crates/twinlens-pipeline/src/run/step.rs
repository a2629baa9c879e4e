//! A stage of a unit with all that it reads, and what its rows go through.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, cast, ident, lit};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{MAIN, SplitWriter};

use crate::config::Node;
use crate::context::{InputData, Inputs, RunContext};
use crate::error::RunError;
use crate::rejects;
use crate::run::output::write_divided;
use crate::stage::{SortKey, Work};

/// Rows of a split where no stage of the plan wants fewer.
const SPLIT_ROWS: usize = 1 << 16;

/// One stage of a fused plan, with its context.
#[derive(Clone)]
pub struct Step {
    /// The stage.
    pub node: Arc<Node>,
    /// Its context: seeds depend on the stage's own name.
    pub cx: RunContext,
    /// The input whose rows it transforms, at the head of a plan.
    pub rows: Option<InputData>,
    /// Its other inputs.
    pub inputs: Inputs,
}

/// The rows that the head of a plan transforms.
pub(super) fn rows_input(step: &Step) -> Result<&InputData, RunError> {
    let missing = || RunError::Internal(format!("the rows of `{}` were not opened", step.node.name));
    step.rows.as_ref().ok_or_else(missing)
}

/// The most stages whose rows go through one plan of the engine.
const PLANNED_TOGETHER: usize = 16;

/// Applies row stages one after another. The engine plans a few at a time: what planning costs
/// grows with the square of a plan's depth, and a deep one overflows the stack.
pub(super) async fn chain(mut frame: DataFrame, steps: &[Step]) -> Result<DataFrame, RunError> {
    for (place, step) in steps.iter().enumerate() {
        if place > 0 && place % PLANNED_TOGETHER == 0 {
            frame = plan_boundary(&step.cx.session, frame)?;
        }
        let Work::Rows(rows) = &step.node.work else {
            let what = format!("the stage `{}` is fused, but is not a row stage", step.node.name);
            return Err(RunError::Internal(what));
        };
        frame = rows.transform(&step.cx, frame, &step.inputs).await?;
    }
    Ok(frame)
}

/// The rows of a plan as a table, on which another plan stands.
fn plan_boundary(session: &SessionContext, frame: DataFrame) -> Result<DataFrame, RunError> {
    let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
    let rows = PlannedRows { schema: schema.clone(), frame };
    Ok(session.read_table(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(rows)])?))?)
}

#[derive(Debug)]
struct PlannedRows {
    schema: SchemaRef,
    frame: DataFrame,
}

impl PartitionStream for PlannedRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        // A task of its own: one poll through a thousand stages would need a deep stack, too.
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), 1);
        let (to, frame) = (builder.tx(), self.frame.clone());
        builder.spawn(async move {
            let mut rows = frame.execute_stream().await?;
            while let Some(batch) = rows.next().await {
                if to.send(batch).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        builder.build()
    }
}

/// Writes the main table in the order that the last stage of the plan declared.
pub(super) async fn write_sorted(
    writer: SplitWriter,
    frame: DataFrame,
    steps: &[Step],
) -> Result<SplitWriter, RunError> {
    let order = steps.last().map_or(&SortKey::AsGiven, |step| &step.node.plan.order);
    write_divided(writer, sorted(frame, order)?, &steps[0].cx).await
}

/// Rows in an order that does not depend on threads, so that the bytes of shards do not.
pub(super) fn sorted(frame: DataFrame, order: &SortKey) -> Result<DataFrame, RunError> {
    let keys = order.keys(frame.schema().as_arrow());
    Ok(if keys.is_empty() { frame } else { frame.sort(keys)? })
}

/// Checks that rows in = rows out + rejects.
pub(super) fn conserved(writer: &SplitWriter, rows_in: u64) -> Result<(), RunError> {
    let (kept, rejected) = (writer.rows(MAIN), writer.counts().rejected());
    if kept + rejected == rows_in {
        return Ok(());
    }
    Err(RunError::Internal(format!(
        "{}: {rows_in} rows in, but {kept} kept and {rejected} rejected",
        writer.counts().label
    )))
}

/// Rows of a split of a chain.
pub(super) fn split_rows(steps: &[Step]) -> u64 {
    let wanted = steps.iter().filter_map(|step| step.node.plan.split_rows);
    wanted.min().unwrap_or(SPLIT_ROWS) as u64
}

/// Whether a table has image bytes: its batches must be small.
pub fn holds_pixels(schema: &Schema) -> bool {
    schema.fields().iter().any(|field| holds_image_bytes(field.data_type()))
}

/// The columns of the rows of a plan before they are divided between the main table and the ledger.
pub(super) fn divided_fields(last: &Step) -> Result<Vec<Field>, RunError> {
    let main = last.node.main()?.fields().iter().map(|field| field.as_ref().clone());
    let attempts = Field::new(rejects::ATTEMPTS, DataType::Int32, true);
    Ok(main.chain(rejects::fields()).chain([attempts]).collect())
}

/// These columns of a frame, null where it has none.
pub(super) fn aligned(frame: DataFrame, fields: &[Field]) -> Result<DataFrame, RunError> {
    let mut columns: Vec<Expr> = Vec::with_capacity(fields.len());
    for field in fields {
        let value = match frame.schema().field_with_unqualified_name(field.name()) {
            Ok(_) => ident(field.name()),
            Err(_) => lit(ScalarValue::try_new_null(field.data_type())?),
        };
        columns.push(cast(value, field.data_type().clone()).alias(field.name()));
    }
    Ok(frame.select(columns)?)
}
