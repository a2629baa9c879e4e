//! Retries the rejected rows of one stage that a SQL predicate selects, and no others.
//!
//! The rows go through the whole plan of the stage, from the committed input on. A split with
//! selected rows is built again from its other rows and the new results, and replaces the old one
//! as a whole: a killed process leaves one or the other. Datasets that depend on it are then stale,
//! and the next run rebuilds them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::split_records::fingerprint_of_retry;
use twinlens_dataset::{Dataset, DatasetWriter, MAIN};

use crate::config::Pipeline;
use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use crate::run::directory::RunDirectory;
use crate::run::dispatch::{Helpers, Limits, make_splits};
use crate::run::events::{Event, Observer, Progress};
use crate::run::output::Output;
use crate::run::picked::{Picked, RetryRecipe};
use crate::run::plan::{self, Decision, Unit};
use crate::run::reasons::reasons;
use crate::run::session;
use crate::run::settings::Settings;
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::step::{Step, rows_input, split_rows};
use crate::run::unit_inputs::UnitInputs;
use crate::stage::Work;

/// The result of a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    /// The stage whose dataset holds them.
    pub dataset: String,
    /// Rows that were picked.
    pub picked: u64,
    /// Rows of the dataset before.
    pub before: u64,
    /// Rows of the dataset now.
    pub after: u64,
}

/// Retries the rejects of `stage` for which `predicate` is true.
///
/// # Errors
/// The user's: an unknown stage, one that makes rows itself, a predicate that does not fit the
/// ledger, a dataset that is not complete and current.
pub async fn retry(
    pipeline: &Pipeline,
    registry: &Registry,
    settings: &Settings,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
    (stage, predicate): (&str, &str),
) -> Result<Retried, RunError> {
    let directory = RunDirectory::open(&settings.dir, &pipeline.name, &pipeline.secrets)?;
    let runtime = session::runtime(settings.memory_bytes, &directory.spill()?)?;
    let files =
        Files { base: pipeline.base.clone(), scratch: settings.scratch.clone(), hub: settings.hub.clone() };
    let began = settings.clock.stopped();
    let inputs = UnitInputs { pipeline, registry, settings, files, runtime, began };
    let run = RetryRun { pipeline, settings, inputs, observer };
    let Some(elsewhere) = &settings.elsewhere else {
        return run.retry(stage, predicate, &cancel).await;
    };
    elsewhere.begin(directory.lock_folder(), &cancel).await?;
    let retried = run.retry(stage, predicate, &cancel).await;
    // What ended the retry is more useful than what is wrong then.
    let ended = elsewhere.end().await;
    retried.and_then(|retried| ended.map(|()| retried))
}

struct RetryRun<'a> {
    pipeline: &'a Pipeline,
    settings: &'a Settings,
    inputs: UnitInputs<'a>,
    observer: Arc<dyn Observer>,
}

impl RetryRun<'_> {
    async fn retry(
        &self,
        stage: &str,
        predicate: &str,
        cancel: &CancellationToken,
    ) -> Result<Retried, RunError> {
        let Self { pipeline, settings, inputs, observer } = self;
        let units = plan::plan(pipeline, &settings.dir, &inputs.files, None, None)?;
        let unit = unit_of(pipeline, &units, stage)?;
        let node = &pipeline.nodes[unit.last()];
        let started = Instant::now();
        let progress = Progress::new(&node.name, observer.clone());
        let steps = inputs.steps(&unit.nodes, &progress, cancel).await?;
        if !matches!(steps[0].node.work, Work::Rows(_)) {
            return Err(RunError::user_with_hint(
                format!("`{stage}` makes its rows itself: what it refused cannot be tried again row by row"),
                format!("make it again whole: delete {}, then run", settings.dir.join(&node.name)),
            ));
        }
        let writer = DatasetWriter::open_to_retry(settings.dir.join(&node.name), ShardLimits::default())?;
        let before = writer.dataset();
        let recipe = RetryRecipe { stage: stage.into(), predicate: predicate.into(), number: writer.retry() };
        let picked = Picked::new(before.clone(), node, &recipe)?;
        let splits = picked.splits(&steps[0]).await?;
        progress.event(Event::StageStarted {
            stage: node.name.clone(),
            kind: node.kind.into(),
            product: node.product,
            unit: node.unit,
            fused: Vec::new(),
            splits_done: 0,
        });
        progress
            .total(splits.iter().filter_map(|(split, _)| before.state().commits.get(split)?.rows_in).sum());
        let helpers = self.helpers(unit, &before, recipe)?;
        let mut output = Output::new(&node.name, writer, progress.clone());
        let tasks = tasks(&before, &steps, splits.iter().map(|(split, _)| *split))?;
        let prepared = Prepared::new(steps, output.starter(), output.records()).in_retry(picked);
        let limits = Limits { splits_in_flight: 2, grace: settings.grace, max_rows: None };
        make_splits(&prepared, tasks, &mut output, &limits, helpers.as_ref()).await?;
        output.delete_unrecorded()?;
        let reasons = reasons(&output.dataset(), &session::plain(inputs.registry, 1)).await?;
        let state = output.state();
        progress.event(Event::StageFinished {
            stage: node.name.clone(),
            rows: state.rows(MAIN),
            rejects: state.rejects().values().flat_map(BTreeMap::values).sum(),
            seconds: started.elapsed().as_secs_f64(),
            reasons,
        });
        Ok(Retried {
            dataset: node.name.clone(),
            picked: splits.iter().map(|(_, rows)| rows).sum(),
            before: before.rows(MAIN),
            after: state.rows(MAIN),
        })
    }

    /// What other processes are told, if there are any.
    fn helpers(
        &self,
        unit: &Unit,
        dataset: &Dataset,
        retry: RetryRecipe,
    ) -> Result<Option<Helpers>, RunError> {
        let begin = &dataset.state().begin;
        let helpers = Helpers::of_unit(&self.inputs, unit, begin.tables.clone(), None)?;
        Ok(helpers.map(|mut helpers| {
            helpers.recipe.fingerprint = fingerprint_of_retry(&begin.fingerprint, retry.number);
            helpers.recipe.retry = Some(retry);
            helpers
        }))
    }
}

/// The unit that a stage is part of, if it is complete and current.
fn unit_of<'a>(pipeline: &Pipeline, units: &'a [Unit], stage: &str) -> Result<&'a Unit, RunError> {
    let Some((index, _)) = pipeline.node(stage) else {
        let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(RunError::user_with_hint(
            format!("there is no stage `{stage}`"),
            format!("the stages are {}", names.join(", ")),
        ));
    };
    let unit = units.iter().find(|unit| unit.nodes.contains(&index));
    let unit = unit.ok_or_else(|| RunError::Internal(format!("stage `{stage}` is part of no unit")))?;
    match unit.decision {
        Decision::Reuse { .. } => Ok(unit),
        _ => Err(RunError::user_with_hint(
            format!("the dataset of `{}` is not complete and current", pipeline.nodes[unit.last()].name),
            "run the pipeline first; `twinlens plan` says what is missing",
        )),
    }
}

/// What there is to do for some splits.
fn tasks(
    dataset: &Dataset,
    steps: &[Step],
    splits: impl Iterator<Item = u64>,
) -> Result<Vec<SplitTask>, RunError> {
    let (total, size) = (rows_input(&steps[0])?.rows(), split_rows(steps));
    let commits = &dataset.state().commits;
    let task = |number: u64| SplitTask {
        number,
        label: commits.get(&number).map(|commit| commit.label.clone()).unwrap_or_default(),
        // A group has rows from anywhere; those that are picked are found by their keys.
        input: match steps[0].node.plan.split_by {
            Some(_) => SplitInput::Rows { start: 0, end: total },
            None => SplitInput::Rows { start: number * size, end: total.min((number + 1) * size) },
        },
    };
    Ok(splits.map(task).collect())
}
