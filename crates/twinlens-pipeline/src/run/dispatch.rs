//! Makes the splits of a unit, here or elsewhere, and records them in the order of their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use futures::{Stream, StreamExt};
use twinlens_dataset::Commit;

use crate::context::{InputData, RunContext};
use crate::error::RunError;
use crate::run::elsewhere::{Elsewhere, UnitWork, splits_here};
use crate::run::output::Output;
use crate::run::pass::PassRecipe;
use crate::run::plan::Unit;
use crate::run::recipe::{RunFacts, UnitRecipe};
use crate::run::sent_inputs;
use crate::run::settings::Settings;
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::unit_inputs::UnitInputs;
use crate::stage::Work;

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

/// The splits of `size` of the first `total` rows of an input that are not committed yet.
pub(super) fn range_tasks(input: &InputData, (size, total): (u64, u64), output: &Output) -> Vec<SplitTask> {
    let task = |number: u64| {
        let (start, end) = (number * size, total.min((number + 1) * size));
        let label = format!("{} rows {start}..{end}", input.name);
        SplitTask { number, label, input: SplitInput::Rows { start, end } }
    };
    (0..total.div_ceil(size)).filter(|&split| !output.is_done(split)).map(task).collect()
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
