//! Makes one dataset: the work of a unit, split by split, under the commit protocol.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use futures::{Stream, StreamExt};
use tracing::{Instrument, debug_span};
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{MAIN, SplitWriter};

use crate::config::Node;
use crate::context::{InputData, Inputs, RunContext};
use crate::error::RunError;
use crate::rejects;
use crate::run::output::{Output, write_divided, write_table};
use crate::stage::{ErasedSource, Frames, Query, SortKey, SourceSplit, Whole, Work};

/// Rows of a split where no stage of the plan wants fewer.
const SPLIT_ROWS: usize = 1 << 16;

/// One stage of a fused plan, with its context.
pub struct Step<'a> {
    /// The stage.
    pub node: &'a Node,
    /// Its context: seeds depend on the stage's own name.
    pub cx: RunContext,
    /// The input whose rows it transforms, at the head of a plan.
    pub rows: Option<InputData>,
    /// Its other inputs.
    pub inputs: Inputs,
}

/// Limits of the execution.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Splits of one plan that are in flight at a time.
    pub splits_in_flight: usize,
    /// How long splits in flight may take after an interrupt.
    pub grace: Duration,
    /// The most rows that a plan reads.
    pub max_rows: Option<u64>,
}

/// Does the work of a unit and completes its dataset.
pub async fn execute(steps: &[Step<'_>], output: &mut Output, limits: &Limits) -> Result<(), RunError> {
    let head = steps.first().ok_or_else(|| RunError::Internal("a unit without stages".into()))?;
    match &head.node.work {
        Work::Rows(_) => rows(steps, output, limits).await?,
        Work::Source(source) => sourced(steps, source, output, limits).await?,
        Work::Whole(whole) => self::whole(head, whole.as_ref(), output).await?,
        Work::Query(query) => self::query(head, query.as_ref(), output).await?,
        Work::Job(job) => job.run(&head.cx, &head.inputs, output.limited(limits.max_rows)).await?,
    }
    output.complete()
}

/// A chain of row stages over a committed dataset.
async fn rows(steps: &[Step<'_>], output: &mut Output, limits: &Limits) -> Result<(), RunError> {
    let head = &steps[0];
    let input = rows_input(head)?;
    let total = limits.max_rows.map_or(input.rows(), |most| input.rows().min(most));
    let size = split_rows(steps);
    head.cx.progress.total(total);
    let pending: Vec<u64> = (0..total.div_ceil(size)).filter(|&split| !output.is_done(split)).collect();
    head.cx
        .progress
        .done(total.saturating_sub(pending.iter().map(|split| size.min(total - split * size)).sum()));
    let starter = output.starter();
    let run = |split: u64| {
        let (start, end) = (split * size, total.min((split + 1) * size));
        let label = format!("{} rows {start}..{end}", input.name);
        let span = debug_span!("split", number = split, %label);
        let writer = starter.start(split, label);
        let work = async move {
            let frame = input.dataset.range(&head.cx.session, &input.table, start, end)?;
            let frame = chain(rejects::with_reserved(frame)?, steps).await?;
            let writer = write_sorted(writer, frame, steps).await?;
            conserved(&writer, end - start)?;
            Ok(writer)
        };
        work.instrument(span)
    };
    in_flight(pending.into_iter().map(run), output, &head.cx, limits).await
}

/// A source, and the row stages that are fused to it.
async fn sourced(
    steps: &[Step<'_>],
    source: &ErasedSource,
    output: &mut Output,
    limits: &Limits,
) -> Result<(), RunError> {
    let head = &steps[0];
    let splits: Vec<SourceSplit> = source.splits(&head.cx).await?;
    let starter = output.starter();
    let mut left = output.limited(limits.max_rows).rows_wanted();
    if left.is_some() {
        // Where the rows are counted, a split must know what those before it used up: one after
        // another.
        for (number, split) in splits.iter().enumerate() {
            if left == Some(0) || output.is_done(number as u64) {
                continue;
            }
            head.cx.check_cancelled()?;
            let frame = source.read(&head.cx, split).await?.limit(0, left.map(|rows| rows as usize))?;
            let writer = starter.start(number as u64, split.label.clone());
            let writer = source_split(writer, frame, steps).await?;
            left = left.map(|rows| rows.saturating_sub(writer.counts().rows_in.unwrap_or(0)));
            output.commit(writer).await?;
        }
        return Ok(());
    }
    let pending: Vec<usize> = (0..splits.len()).filter(|&split| !output.is_done(split as u64)).collect();
    let run = |number: usize| {
        let split = &splits[number];
        let span = debug_span!("split", number, label = %split.label);
        let writer = starter.start(number as u64, split.label.clone());
        let work = async move {
            let frame = source.read(&head.cx, split).await?;
            source_split(writer, frame, steps).await
        };
        work.instrument(span)
    };
    in_flight(pending.into_iter().map(run), output, &head.cx, limits).await?;
    check_used(&head.node.name, output)
}

/// An input of which the source refused every row is an error, not an empty table. The splits stay
/// committed, so that their rejects can be read.
fn check_used(source: &str, output: &Output) -> Result<(), RunError> {
    let rejects = output.state().rejects();
    let Some(codes) = rejects.get(source) else { return Ok(()) };
    if output.state().rows_in() != Some(codes.values().sum()) {
        return Ok(());
    }
    let counts: Vec<String> = codes.iter().map(|(code, rows)| format!("{rows} {code}")).collect();
    let message = format!("nothing that `{source}` reads could be used: {}", counts.join(", "));
    let hint = format!("query `{source}.rejects` for the places, and check the files and options");
    Err(RunError::user_with_hint(message, hint))
}

async fn source_split(
    writer: SplitWriter,
    frame: DataFrame,
    steps: &[Step<'_>],
) -> Result<SplitWriter, RunError> {
    let frame = chain(frame, &steps[1..]).await?;
    let mut writer = write_sorted(writer, frame, steps).await?;
    let rows = writer.rows(MAIN) + writer.counts().rejected();
    writer.count_rows_in(rows);
    Ok(writer)
}

/// A stage over all rows of its input: one split.
async fn whole(step: &Step<'_>, whole: &dyn Whole, output: &mut Output) -> Result<(), RunError> {
    if output.is_done(0) {
        return Ok(());
    }
    let input = rows_input(step)?;
    step.cx.progress.total(input.rows());
    let make = async {
        let frames = whole.tables(&step.cx, input, &step.inputs).await?;
        let mut writer = write_frames(output.split(0, "all"), frames, step).await?;
        conserved(&writer, input.rows())?;
        writer.count_rows_in(input.rows());
        Ok(writer)
    };
    let writer = unless_cancelled(step, make).await?;
    output.commit(writer).await
}

/// A query: one split.
async fn query(step: &Step<'_>, query: &dyn Query, output: &mut Output) -> Result<(), RunError> {
    if output.is_done(0) {
        return Ok(());
    }
    let make = async {
        let Frames { main, side } = query.tables(&step.cx, &step.inputs).await?;
        let main = sorted(main, &step.node.plan.order)?;
        // None of its rows is a reject, whatever its columns are called.
        let mut writer = output.split(0, "all");
        for (table, frame) in [(MAIN, main)].into_iter().chain(side) {
            writer = write_table(writer, table, frame, &step.cx.progress).await?;
        }
        Ok(writer)
    };
    let writer = unless_cancelled(step, make).await?;
    output.commit(writer).await
}

/// One plan over everything cannot be finished quickly: it is abandoned, and the next run starts it
/// again.
async fn unless_cancelled(
    step: &Step<'_>,
    make: impl Future<Output = Result<SplitWriter, RunError>>,
) -> Result<SplitWriter, RunError> {
    tokio::select! {
        made = make => made,
        () = step.cx.cancel.cancelled() => Err(RunError::Interrupted),
    }
}

async fn write_frames(writer: SplitWriter, frames: Frames, step: &Step<'_>) -> Result<SplitWriter, RunError> {
    let mut writer = write_sorted(writer, frames.main, std::slice::from_ref(step)).await?;
    for (table, frame) in frames.side {
        writer = write_table(writer, table, frame, &step.cx.progress).await?;
    }
    Ok(writer)
}

/// The rows that the head of a plan transforms.
pub(super) fn rows_input<'a>(step: &'a Step<'_>) -> Result<&'a InputData, RunError> {
    let missing = || RunError::Internal(format!("the rows of `{}` were not opened", step.node.name));
    step.rows.as_ref().ok_or_else(missing)
}

/// The most stages whose rows go through one plan of the engine.
const PLANNED_TOGETHER: usize = 16;

/// Applies row stages one after another. The engine plans a few at a time: what planning costs
/// grows with the square of a plan's depth, and a deep one overflows the stack.
pub(super) async fn chain(mut frame: DataFrame, steps: &[Step<'_>]) -> Result<DataFrame, RunError> {
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
    steps: &[Step<'_>],
) -> Result<SplitWriter, RunError> {
    let order = steps.last().map_or(&SortKey::AsGiven, |step| &step.node.plan.order);
    write_divided(writer, sorted(frame, order)?, &steps[0].cx.progress).await
}

/// Rows in an order that does not depend on threads, so that the bytes of shards do not.
fn sorted(frame: DataFrame, order: &SortKey) -> Result<DataFrame, RunError> {
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

pub(super) fn split_rows(steps: &[Step<'_>]) -> u64 {
    let wanted = steps.iter().filter_map(|step| step.node.plan.split_rows);
    wanted.min().unwrap_or(SPLIT_ROWS) as u64
}

/// Runs splits, a few at a time, and records them in order. After an interrupt no new split starts,
/// and those in flight have the grace period to finish.
pub(super) async fn in_flight<F>(
    splits: impl Iterator<Item = F>,
    output: &mut Output,
    cx: &RunContext,
    limits: &Limits,
) -> Result<(), RunError>
where
    F: Future<Output = Result<SplitWriter, RunError>>,
{
    let started = futures::stream::iter(splits).take_until(cx.cancel.cancelled());
    let made = started.buffered(limits.splits_in_flight);
    futures::pin_mut!(made);
    while let Some(writer) = next_within(&mut made, cx, limits.grace).await? {
        let mut writer = writer?;
        let rows = writer.rows(MAIN) + writer.counts().rejected();
        if writer.counts().rows_in.is_none() {
            writer.count_rows_in(rows);
        }
        output.commit(writer).await?;
    }
    cx.check_cancelled()
}

async fn next_within<T>(
    stream: &mut (impl Stream<Item = T> + Unpin),
    cx: &RunContext,
    grace: Duration,
) -> Result<Option<T>, RunError> {
    let expired = async {
        cx.cancel.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        item = stream.next() => Ok(item),
        () = expired => Err(RunError::Interrupted),
    }
}

/// Whether a table has image bytes: its batches must be small.
pub fn holds_pixels(schema: &datafusion::arrow::datatypes::Schema) -> bool {
    schema.fields().iter().any(|field| holds_image_bytes(field.data_type()))
}
