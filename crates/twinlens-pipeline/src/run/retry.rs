//! Retries the rejected rows of one stage that a SQL predicate selects, and no others.
//!
//! The rows go through the whole plan of the stage, from the committed input on. A split with
//! selected rows is built again from its other rows and the new results, and replaces the old one
//! as a whole: a killed process leaves one or the other. Datasets that depend on it are then stale,
//! and the next run rebuilds them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Int64Type, UInt64Type};
use datafusion::common::JoinType;
use datafusion::dataframe::DataFrame;
use datafusion::functions_aggregate::expr_fn::{count, max};
use datafusion::logical_expr::{col, ident, lit};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::split_records::fingerprint_of_retry;
use twinlens_dataset::{Dataset, DatasetWriter, MAIN, REJECTS, SplitWriter};

use crate::config::{Node, Pipeline};
use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use crate::rejects::{self, ATTEMPTS};
use crate::run::directory::RunDirectory;
use crate::run::events::{Event, Observer, Progress};
use crate::run::execute::{Helpers, Limits, make_splits};
use crate::run::output::Output;
use crate::run::plan::{self, Decision, Unit};
use crate::run::reasons::reasons;
use crate::run::session;
use crate::run::settings::Settings;
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::step::{
    Step, aligned, chain, conserved, divided_fields, rows_input, split_rows, write_sorted,
};
use crate::run::unit_inputs::UnitInputs;
use crate::stage::{SortKey, Work};

/// A column of a plan: the number of the split that a row is in.
const SPLIT: &str = "__twinlens_split";
/// Names of columns of one side of a join.
const KEPT_KEY: &str = "kept_key";
const RETRY_KEY: &str = "retry_key";
const RETRY_ATTEMPTS: &str = "retry_attempts";
const KEPT_SPLIT: &str = "kept_split";

/// What a process is told of a retry, beside the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryRecipe {
    /// The stage that rejected the rows.
    pub stage: String,
    /// Which of its rejects.
    pub predicate: String,
    /// Its number: the names of its shards differ from those of other attempts.
    pub number: u64,
}

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
        let tasks = picked.tasks(&steps, splits.iter().map(|(split, _)| *split))?;
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

/// The column that identifies a row of a dataset: the first by which the rows are sorted.
fn row_key(node: &Node) -> Result<&str, RunError> {
    let SortKey::Columns(columns) = &node.plan.order else { return Err(no_row_key(node)) };
    columns.first().map(String::as_str).ok_or_else(|| no_row_key(node))
}

fn no_row_key(node: &Node) -> RunError {
    RunError::user(format!("the rows of `{}` have no order, and so no key to find them by", node.name))
}

/// Which rejects of a dataset are meant.
pub(super) struct Picked {
    dataset: Dataset,
    stage: String,
    predicate: String,
    /// The column that identifies a row.
    key: String,
}

impl Picked {
    /// Rejects of the dataset of `node`.
    pub(super) fn new(dataset: Dataset, node: &Node, recipe: &RetryRecipe) -> Result<Self, RunError> {
        let (stage, predicate) = (recipe.stage.clone(), recipe.predicate.clone());
        Ok(Self { dataset, stage, predicate, key: row_key(node)?.into() })
    }

    /// What there is to do for some splits.
    fn tasks(&self, steps: &[Step], splits: impl Iterator<Item = u64>) -> Result<Vec<SplitTask>, RunError> {
        let (total, size) = (rows_input(&steps[0])?.rows(), split_rows(steps));
        let commits = &self.dataset.state().commits;
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

    /// The splits in whose ledgers there are such rejects, and how many. One query over all of
    /// them.
    async fn splits(&self, step: &Step) -> Result<Vec<(u64, u64)>, RunError> {
        self.check_columns(step).await?;
        let commits = self.dataset.state().commits.iter();
        let refused = commits.filter(|(_, commit)| commit.rejects.contains_key(&self.stage));
        let splits: Vec<u64> = refused.map(|(split, _)| *split).collect();
        let picked = self.rows(step, &splits)?;
        let counts = picked.aggregate(vec![ident(SPLIT)], vec![count(lit(1)).alias("picked")])?;
        let counts = counts.sort(vec![ident(SPLIT).sort(true, true)])?.collect().await?;
        let mut found = Vec::new();
        for batch in &counts {
            let splits = batch.column(0).as_primitive::<UInt64Type>();
            let rows = batch.column(1).as_primitive::<Int64Type>();
            found.extend(
                splits.values().iter().zip(rows.values()).map(|(split, rows)| (*split, *rows as u64)),
            );
        }
        Ok(found)
    }

    /// Rows are found by their keys.
    async fn check_columns(&self, step: &Step) -> Result<(), RunError> {
        let input = rows_input(step)?.frame(&step.cx.session).await?;
        for (table, found) in [
            ("its ledger", self.dataset.schema(REJECTS)?.index_of(&self.key).is_ok()),
            ("its input", input.schema().has_column_with_unqualified_name(&self.key)),
        ] {
            if !found {
                return Err(RunError::user(format!(
                    "`{}`: {table} has no column `{}` to find rows by",
                    self.stage, self.key
                )));
            }
        }
        Ok(())
    }

    /// The picked rows of some splits: the split, `uid`, and `attempts` so far. A row of which a
    /// twin was kept in the same split stays what it is.
    fn rows(&self, step: &Step, splits: &[u64]) -> Result<DataFrame, RunError> {
        let session = &step.cx.session;
        let ledger = self.dataset.by_split(session, REJECTS, None, (SPLIT, splits))?;
        let predicate = ledger.parse_sql_expr(&self.predicate).map_err(|error| {
            RunError::user_with_hint(
                format!("--where {}: {}", self.predicate, error.strip_backtrace()),
                format!(
                    "`twinlens sql` shows the columns: \\d \"{}\".rejects",
                    self.dataset.state().begin.stage
                ),
            )
        })?;
        let ours = col(rejects::STAGE).eq(lit(&self.stage)).and(predicate);
        let picked = ledger.filter(ours)?;
        let attempts = vec![max(ident(ATTEMPTS)).alias(ATTEMPTS)];
        let picked = picked.aggregate(vec![ident(SPLIT), ident(&self.key)], attempts)?;
        let kept = self.dataset.by_split(session, MAIN, Some(&[&self.key]), (SPLIT, splits))?;
        let kept = kept.select(vec![ident(SPLIT).alias(KEPT_SPLIT), ident(&self.key).alias(KEPT_KEY)])?;
        Ok(picked.join(kept, JoinType::LeftAnti, &[SPLIT, &self.key], &[KEPT_SPLIT, KEPT_KEY], None)?)
    }

    /// Makes a split again: what it holds, without the picked rows, and what comes of these.
    pub(super) async fn again(
        &self,
        steps: &[Step],
        (split, start, end): (u64, u64, u64),
        writer: SplitWriter,
    ) -> Result<SplitWriter, RunError> {
        let (head, last) = (&steps[0], &steps[steps.len() - 1]);
        let session = &head.cx.session;
        // Read once: the rows of the plan must be those that leave the ledger.
        let picked = session.read_batches(self.rows(head, &[split])?.collect().await?)?;
        let as_key = || {
            picked
                .clone()
                .select(vec![ident(&self.key).alias(RETRY_KEY), ident(ATTEMPTS).alias(RETRY_ATTEMPTS)])
        };
        let input = rows_input(head)?;
        let rows = input.dataset.range(session, &input.table, start, end)?;
        let rows = rows.join(as_key()?, JoinType::LeftSemi, &[&self.key], &[RETRY_KEY], None)?;
        let made = chain(rejects::with_reserved(rows)?, steps).await?;

        let fields = divided_fields(last)?;
        let made = made.join(as_key()?, JoinType::Inner, &[&self.key], &[RETRY_KEY], None)?;
        let made = made.with_column(ATTEMPTS, ident(RETRY_ATTEMPTS) + lit(1))?;
        let part = self.dataset.only_split(split);
        let kept = part.frame(session, MAIN).await?;
        let refused = part.frame(session, REJECTS).await?;
        let refused = refused.join(as_key()?, JoinType::LeftAnti, &[&self.key], &[RETRY_KEY], None)?;
        let all =
            aligned(kept, &fields)?.union(aligned(refused, &fields)?)?.union(aligned(made, &fields)?)?;
        let mut writer = write_sorted(writer, all, steps).await?;
        let rows_in = self.dataset.state().commits.get(&split).and_then(|commit| commit.rows_in);
        let rows_in = rows_in.unwrap_or(end - start);
        conserved(&writer, rows_in)?;
        writer.count_rows_in(rows_in);
        Ok(writer)
    }
}
