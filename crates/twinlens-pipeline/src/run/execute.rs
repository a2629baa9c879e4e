//! Makes one dataset: the work of a unit, split by split, under the commit protocol.

use twinlens_dataset::storage::Location;
use twinlens_dataset::{MAIN, SplitWriter};

use crate::error::RunError;
use crate::run::dispatch::{Helpers, Limits, make_splits, range_tasks, unless_cancelled};
use crate::run::grouped;
use crate::run::output::{Output, write_table};
use crate::run::passes::{self, PassRun};
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::step::{Step, conserved, rows_input, sorted, split_rows, write_sorted};
use crate::secrets::Secrets;
use crate::stage::{ErasedSource, Frames, Query, SourceSplit, Whole, Work};

/// Does the work of a unit of the run in `dir`, and completes its dataset. With `helpers`, other
/// processes make splits of it, too.
pub async fn execute(
    unit: &Prepared,
    output: &mut Output,
    (dir, limits): (&Location, &Limits),
    helpers: Option<&Helpers>,
) -> Result<(), RunError> {
    let head = unit.head()?;
    let fingerprint = output.state().begin.fingerprint.clone();
    let run = PassRun { dir, limits: *limits, helpers, fingerprint };
    match &head.node.work {
        Work::Rows(_) if head.node.plan.split_by.is_some() => {
            grouped::execute(unit, output, &run).await?;
        }
        Work::Rows(_) => {
            let tasks = row_tasks(unit, output, limits)?;
            make_splits(unit, tasks, output, limits, helpers).await?;
        }
        Work::Source(source) => {
            let splits = source.splits(&head.cx).await?;
            if output.limited(limits.max_rows).rows_wanted().is_some() {
                limited_source(unit, source, splits, output).await?;
            } else {
                let tasks = source_tasks(splits, output, &head.cx.secrets);
                make_splits(unit, tasks, output, limits, helpers).await?;
                check_used(&head.node.name, output)?;
            }
        }
        Work::Splits(_) => {
            let tasks = row_tasks(unit, output, limits)?;
            // One uses all cores.
            let limits = Limits { splits_in_flight: 1, ..*limits };
            make_splits(unit, tasks, output, &limits, helpers).await?;
        }
        Work::Passes(passes) => passes::execute(unit, passes.as_ref(), output, &run).await?,
        Work::Whole(whole) => self::whole(head, whole.as_ref(), output).await?,
        Work::Query(query) => self::query(head, query.as_ref(), output).await?,
        Work::Job(job) => job.run(&head.cx, &head.inputs, output.limited(limits.max_rows)).await?,
    }
    output.complete()
}

/// The splits of a chain of row stages over a committed dataset that are not committed yet.
fn row_tasks(unit: &Prepared, output: &Output, limits: &Limits) -> Result<Vec<SplitTask>, RunError> {
    let head = unit.head()?;
    let input = rows_input(head)?;
    let total = limits.max_rows.map_or(input.rows(), |most| input.rows().min(most));
    let pending = range_tasks(input, (split_rows(unit.steps()), total), output);
    head.cx.progress.total(total);
    head.cx.progress.done(total.saturating_sub(pending.iter().map(|task| task.input.rows()).sum()));
    Ok(pending)
}

/// The splits of a source that are not committed yet. They are told to other processes and
/// recorded, so they name no secret.
fn source_tasks(splits: Vec<SourceSplit>, output: &Output, secrets: &Secrets) -> Vec<SplitTask> {
    let numbered = (0..).zip(splits).filter(|(number, _)| !output.is_done(*number));
    let task = |(number, split): (u64, SourceSplit)| SplitTask {
        number,
        label: secrets.hide(&split.label).into_owned(),
        input: SplitInput::Source(secrets.hide_value(split.value)),
    };
    numbered.map(task).collect()
}

/// A source of which only so many rows are wanted: a split must know what those before it used up,
/// so they are made one after another.
async fn limited_source(
    unit: &Prepared,
    source: &ErasedSource,
    splits: Vec<SourceSplit>,
    output: &mut Output,
) -> Result<(), RunError> {
    let (head, starter) = (unit.head()?, output.starter());
    let mut left = output.rows_wanted();
    for (number, split) in (0..).zip(splits) {
        if left == Some(0) || output.is_done(number) {
            continue;
        }
        head.cx.check_cancelled()?;
        let frame = source.read(&head.cx, &split).await?.limit(0, left.map(|rows| rows as usize))?;
        let label = head.cx.secrets.hide(&split.label).into_owned();
        let writer = unit.write_source(starter.start(number, label), frame).await?;
        left = left.map(|rows| rows.saturating_sub(writer.counts().rows_in.unwrap_or(0)));
        output.commit(writer).await?;
    }
    Ok(())
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

/// A stage over all rows of its input: one split.
async fn whole(step: &Step, whole: &dyn Whole, output: &mut Output) -> Result<(), RunError> {
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
    let writer = unless_cancelled(&step.cx, make).await?;
    output.commit(writer).await
}

/// A query: one split.
async fn query(step: &Step, query: &dyn Query, output: &mut Output) -> Result<(), RunError> {
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
    let writer = unless_cancelled(&step.cx, make).await?;
    output.commit(writer).await
}

async fn write_frames(writer: SplitWriter, frames: Frames, step: &Step) -> Result<SplitWriter, RunError> {
    let mut writer = write_sorted(writer, frames.main, std::slice::from_ref(step)).await?;
    for (table, frame) in frames.side {
        writer = write_table(writer, table, frame, &step.cx.progress).await?;
    }
    Ok(writer)
}
