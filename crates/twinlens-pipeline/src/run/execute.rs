//! Makes one dataset: the work of a unit, split by split, under the commit protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use futures::{Stream, StreamExt};
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Commit, MAIN, SplitWriter};

use crate::context::RunContext;
use crate::error::RunError;
use crate::run::elsewhere::{Elsewhere, UnitWork, splits_here};
use crate::run::grouped;
use crate::run::output::{Output, write_table};
use crate::run::passes::{self, PassRecipe, PassRun};
use crate::run::plan::Unit;
use crate::run::recipe::{RunFacts, UnitRecipe};
use crate::run::sent_inputs;
use crate::run::settings::Settings;
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::step::{Step, conserved, rows_input, sorted, split_rows, write_sorted};
use crate::run::unit_inputs::UnitInputs;
use crate::secrets::Secrets;
use crate::stage::{ErasedSource, Frames, Query, SourceSplit, Whole, Work};

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

/// The processes elsewhere that make splits of a unit, and what they are told of it.
#[derive(Clone)]
pub struct Helpers {
    /// The processes.
    pub elsewhere: Arc<dyn Elsewhere>,
    /// The unit.
    pub recipe: UnitRecipe,
}

impl Helpers {
    /// Those for a unit, if there are any.
    pub(super) fn of_unit(
        inputs: &UnitInputs<'_>,
        unit: &Unit,
        tables: BTreeMap<String, SchemaRef>,
        earlier: Option<String>,
    ) -> Result<Option<Self>, RunError> {
        let UnitInputs { pipeline, settings, files, began, .. } = inputs;
        let Settings { clock, hosts, dir, elsewhere: Some(elsewhere), .. } = settings else {
            return Ok(None);
        };
        // Other stages run in this process alone.
        let work = &pipeline.nodes[unit.nodes[0]].work;
        if !matches!(work, Work::Rows(_) | Work::Source(_) | Work::Splits(_) | Work::Passes(_)) {
            return Ok(None);
        }
        let nodes = || unit.nodes.iter().map(|&node| &*pipeline.nodes[node]);
        if nodes().any(|node| pipeline.cluster.here.iter().any(|stage| stage == node.family())) {
            return Ok(None);
        }
        let sent = sent_inputs::send(nodes(), files, dir, &pipeline.secrets)?;
        let facts = RunFacts { pipeline, tables, earlier, began: *began, clock: *clock, hosts, sent };
        Ok(Some(Self { elsewhere: elsewhere.clone(), recipe: UnitRecipe::new(unit, facts)? }))
    }

    /// The same for a pass over the rows of the unit.
    pub(super) fn of_pass(&self, pass: PassRecipe) -> Self {
        let mut helpers = self.clone();
        helpers.recipe.pass = Some(pass);
        helpers
    }
}

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
    let size = split_rows(unit.steps());
    let task = |number: u64| {
        let (start, end) = (number * size, total.min((number + 1) * size));
        let label = format!("{} rows {start}..{end}", input.name);
        SplitTask { number, label, input: SplitInput::Rows { start, end } }
    };
    let pending: Vec<_> =
        (0..total.div_ceil(size)).filter(|&split| !output.is_done(split)).map(task).collect();
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

/// Most splits that are recorded together.
const RECORDED_TOGETHER: usize = 256;

/// Makes splits, here or elsewhere, and records them in the order of their numbers. After an
/// interrupt no new split starts, and those in flight have the grace period to finish.
pub(super) async fn make_splits(
    unit: &Prepared,
    mut tasks: Vec<SplitTask>,
    output: &mut Output,
    limits: &Limits,
    helpers: Option<&Helpers>,
) -> Result<(), RunError> {
    let cx = &unit.head()?.cx;
    let mut in_order = InOrder::new(&tasks, output.made_unrecorded()?);
    tasks.retain(|task| !in_order.ready.contains_key(&task.number));
    in_order.record(output)?;
    let (in_flight, cancel) = (limits.splits_in_flight, cx.cancel.clone());
    let made = match helpers {
        _ if tasks.is_empty() => futures::stream::empty().boxed(),
        None => splits_here(tasks, unit, in_flight, cancel),
        Some(Helpers { elsewhere, recipe }) => {
            let progress = cx.progress.clone();
            elsewhere.splits(UnitWork { recipe, tasks, here: unit, in_flight, progress, cancel })
        }
    };
    let mut made = made.ready_chunks(RECORDED_TOGETHER);
    while let Some(splits) = next_within(&mut made, cx, limits.grace).await? {
        let mut failed = None;
        for split in splits {
            match split {
                Ok(split) => {
                    if !split.is_own {
                        cx.progress.done(split.commit.rows_in.unwrap_or(0));
                    }
                    in_order.ready.insert(split.commit.split, split.commit);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        in_order.record(output)?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    cx.check_cancelled()?;
    in_order.check_complete()
}

/// Splits that were made, until those before them are recorded: a manifest lists them in order,
/// whoever made them.
struct InOrder {
    /// The splits to record.
    pending: BTreeSet<u64>,
    ready: BTreeMap<u64, Commit>,
}

impl InOrder {
    fn new(tasks: &[SplitTask], mut made: BTreeMap<u64, Commit>) -> Self {
        let pending: BTreeSet<u64> = tasks.iter().map(|task| task.number).collect();
        made.retain(|split, _| pending.contains(split));
        Self { pending, ready: made }
    }

    fn record(&mut self, output: &mut Output) -> Result<(), RunError> {
        let mut commits = Vec::new();
        while let Some(first) = self.pending.first().copied()
            && let Some(commit) = self.ready.remove(&first)
        {
            self.pending.remove(&first);
            commits.push(commit);
        }
        for together in commits.chunks(RECORDED_TOGETHER) {
            output.record_all(together)?;
        }
        Ok(())
    }

    fn check_complete(&self) -> Result<(), RunError> {
        match self.pending.first() {
            None => Ok(()),
            Some(split) => Err(RunError::Internal(format!("split {split} was never made"))),
        }
    }
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

/// One plan over everything cannot be finished quickly: it is abandoned, and the next run starts it
/// again.
pub(super) async fn unless_cancelled<T>(
    cx: &RunContext,
    make: impl Future<Output = Result<T, RunError>>,
) -> Result<T, RunError> {
    tokio::select! {
        made = make => made,
        () = cx.cancel.cancelled() => Err(RunError::Interrupted),
    }
}

async fn write_frames(writer: SplitWriter, frames: Frames, step: &Step) -> Result<SplitWriter, RunError> {
    let mut writer = write_sorted(writer, frames.main, std::slice::from_ref(step)).await?;
    for (table, frame) in frames.side {
        writer = write_table(writer, table, frame, &step.cx.progress).await?;
    }
    Ok(writer)
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
