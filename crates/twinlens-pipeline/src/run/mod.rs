//! Runs a checked pipeline in a run directory.
//!
//! Stage by stage: complete and current datasets are reused, incomplete ones resumed, all others
//! built. Only one process works in a run directory at a time; a killed one loses at most the
//! splits in flight.

pub mod consent;
mod copies;
pub mod cost;
pub mod data_tests;
pub mod directory;
mod dispatch;
pub mod elsewhere;
mod empty;
pub mod events;
pub mod execute;
pub mod failure;
pub mod fingerprint;
pub mod generations;
mod grouped;
mod groups;
pub mod machine;
pub mod output;
mod pass;
mod passes;
mod picked;
pub mod plan;
pub mod provenance;
pub mod prune;
pub mod rank_jobs;
pub mod reasons;
pub mod rebuild;
pub mod recipe;
pub mod repair;
pub mod retry;
pub mod sent_inputs;
pub mod session;
pub mod settings;
pub mod splits;
pub mod step;
pub mod takeover;
mod unit_inputs;
pub mod workers;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::datatypes::SchemaRef;
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};
use twinlens_dataset::protocol::{Begin, FORMAT};
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, DatasetWriter, MAIN, catalog, contracts, manifest};

use crate::config::{Node, Pipeline};
use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use crate::run::cost::Stopwatch;
use crate::run::data_tests::TestResult;
use crate::run::directory::RunDirectory;
use crate::run::dispatch::{Helpers, Limits};
use crate::run::events::{Event, Observer, Progress};
use crate::run::execute::execute;
use crate::run::generations::{Change, Kept};
use crate::run::output::Output;
use crate::run::plan::{Decision, Unit};
use crate::run::reasons::AllRejected;
use crate::run::recipe::{RunFacts, UnitRecipe};
pub use crate::run::settings::Settings;
use crate::run::splits::Prepared;
use crate::run::step::Step;
use crate::run::takeover::TakeOver;
use crate::run::unit_inputs::UnitInputs;
use crate::stage::Work;

/// A finished run.
#[derive(Debug)]
pub struct Outcome {
    /// The datasets, in the order of their stages.
    pub datasets: Vec<Dataset>,
    /// How the `[[tests]]` went; empty with `until`.
    pub tests: Vec<TestResult>,
    /// Stages whose share of rejects passes the pipeline's limit.
    pub too_many_rejects: Vec<String>,
    /// The stage that ended the run, since all of its rows were rejected.
    pub all_rejected: Option<AllRejected>,
}

/// Runs or resumes a pipeline.
pub async fn run(
    pipeline: &Pipeline,
    registry: &Registry,
    settings: &Settings,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) -> Result<Outcome, RunError> {
    let directory = RunDirectory::open(&settings.dir, &pipeline.name, &pipeline.secrets)?;
    if let Some(ranks) = &settings.ranks {
        let stop = cancel.child_token();
        let mut run = std::pin::pin!(run_with_workers(
            &directory,
            pipeline,
            registry,
            settings,
            (observer, stop.clone())
        ));
        return tokio::select! {
            outcome = &mut run => outcome,
            error = rank_jobs::lost(ranks) => {
                stop.cancel();
                // What it says now is that it was stopped.
                let _ = run.await;
                Err(error)
            }
        };
    }
    run_with_workers(&directory, pipeline, registry, settings, (observer, cancel)).await
}

async fn run_with_workers(
    directory: &RunDirectory,
    pipeline: &Pipeline,
    registry: &Registry,
    settings: &Settings,
    (observer, cancel): (Arc<dyn Observer>, CancellationToken),
) -> Result<Outcome, RunError> {
    let Some(elsewhere) = &settings.elsewhere else {
        return run_in(directory, pipeline, registry, settings, observer, cancel).await;
    };
    elsewhere.begin(directory.lock_folder(), &cancel).await?;
    let outcome = run_in(directory, pipeline, registry, settings, observer, cancel).await;
    // What ended the run is more useful than what is wrong then.
    let ended = elsewhere.end().await;
    outcome.and_then(|outcome| ended.map(|()| outcome))
}

async fn run_in(
    directory: &RunDirectory,
    pipeline: &Pipeline,
    registry: &Registry,
    settings: &Settings,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) -> Result<Outcome, RunError> {
    let files =
        Files { base: pipeline.base.clone(), scratch: settings.scratch.clone(), hub: settings.hub.clone() };
    if settings.fresh {
        let stages = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
        generations::set_all_aside(&settings.dir, &stages)?;
        passes::delete_all(&settings.dir)?.into_iter().for_each(|note| info!("{note}"));
    }
    let units = plan::plan(pipeline, &settings.dir, &files, settings.until.as_deref(), settings.max_rows)?;
    consent::ask(settings.replace, pipeline, &units)?;
    let runtime = session::runtime(settings.memory_bytes, &directory.spill()?)?;
    let began = settings.clock.stopped();
    let inputs = UnitInputs { pipeline, registry, settings, files, runtime: runtime.clone(), began };
    let read = generations::read_by(pipeline);
    let run = Run { pipeline, registry, settings, inputs, read, observer, cancel };
    let span = info_span!("run", pipeline = %pipeline.name, dir = %settings.dir);
    let all_rejected = run.units(&units).instrument(span).await?;
    let datasets = open_all(&settings.dir, &units, pipeline, all_rejected.as_ref())?;
    let tests = match (&settings.until, &all_rejected) {
        (Some(_), _) | (_, Some(_)) => Vec::new(),
        (None, None) => {
            let config = session::config(settings.threads, 8192);
            let session = session::open(registry, config, runtime, began);
            catalog::register(&session, &datasets).await?;
            data_tests::run(&session, &pipeline.tests, &run.cancel).await?
        }
    };
    let too_many_rejects = too_many_rejects(&datasets, pipeline.max_reject_share);
    Ok(Outcome { datasets, tests, too_many_rejects, all_rejected })
}

fn too_many_rejects(datasets: &[Dataset], share: Option<f64>) -> Vec<String> {
    let Some(share) = share else { return Vec::new() };
    let over = |dataset: &&Dataset| {
        let state = dataset.state();
        let rejected: u64 = state.rejects().values().flat_map(BTreeMap::values).sum();
        state.rows_in().is_some_and(|rows| rows > 0 && rejected as f64 > share * rows as f64)
    };
    datasets.iter().filter(over).map(|dataset| dataset.state().begin.stage.clone()).collect()
}

/// The datasets of a run; if it ended early, those up to the stage that ended it.
fn open_all(
    dir: &Location,
    units: &[Unit],
    pipeline: &Pipeline,
    ended_by: Option<&AllRejected>,
) -> Result<Vec<Dataset>, RunError> {
    let names = units.iter().map(|unit| &pipeline.nodes[unit.last()].name);
    let last = ended_by.and_then(|ended| names.clone().position(|name| *name == ended.stage));
    let mut datasets = Vec::new();
    for name in names.take(last.map_or(units.len(), |last| last + 1)) {
        datasets.push(Dataset::open(dir.join(name))?);
    }
    Ok(datasets)
}

/// The datasets in a run directory, complete or not, in the order of their stages.
pub fn datasets(dir: &Location) -> Result<Vec<Dataset>, RunError> {
    let mut found = Vec::new();
    for name in dir.list()?.folders {
        let location = dir.join(&name);
        if generations::parts(&name).is_none() && manifest::exists(&location)? {
            found.push(Dataset::open(location)?);
        }
    }
    found.sort_by_key(|dataset| (position(dataset), dataset.state().begin.stage.clone()));
    Ok(found)
}

/// The position of a dataset's stage in its pipeline.
fn position(dataset: &Dataset) -> u64 {
    dataset.state().begin.position
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    registry: &'a Registry,
    settings: &'a Settings,
    inputs: UnitInputs<'a>,
    /// The generations that stages read.
    read: HashSet<String>,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
}

impl Run<'_> {
    /// Runs units one after another; one that streams its input runs beside it. Gives the stage
    /// that ended the run early.
    async fn units(&self, units: &[Unit]) -> Result<Option<AllRejected>, RunError> {
        for group in plan::groups(self.pipeline, units) {
            match group[..] {
                [one] => self.traced_unit(&units[one], &self.cancel).await?,
                _ => self.together(group.iter().map(|&unit| &units[unit])).await?,
            }
            for unit in group {
                if let Some(ended) = self.all_rejected(&units[unit]).await? {
                    return Ok(Some(ended));
                }
            }
        }
        Ok(None)
    }

    /// Whether all rows of a unit were rejected, and why.
    async fn all_rejected(&self, unit: &Unit) -> Result<Option<AllRejected>, RunError> {
        let dataset = self.inputs.made(unit.last())?;
        if self.pipeline.max_reject_share.is_some() || !reasons::all_rejected(&dataset) {
            return Ok(None);
        }
        let session = session::plain(self.registry, self.settings.threads);
        let reasons = reasons::reasons(&dataset, &session).await?;
        let first = reasons.first().and_then(|reason| Some((reason, self.pipeline.node(&reason.stage)?.1)));
        let kind = first.and_then(|(reason, node)| Some((reason, self.registry.kind(node.kind)?)));
        let hint = kind.and_then(|(reason, kind)| {
            kind.reject_hints.iter().find(|(code, _)| *code == reason.code).map(|(_, hint)| *hint)
        });
        let stage = self.pipeline.nodes[unit.last()].name.clone();
        Ok(Some(AllRejected { stage, reasons, hint }))
    }

    /// Runs units concurrently. If one fails, the others are interrupted.
    async fn together(&self, units: impl Iterator<Item = &Unit>) -> Result<(), RunError> {
        let cancel = self.cancel.child_token();
        let runs = units.map(async |unit| {
            let done = self.traced_unit(unit, &cancel).await;
            if done.is_err() {
                cancel.cancel();
            }
            done
        });
        let done = futures::future::join_all(runs).await;
        // The failure is more useful than the interrupts that it caused.
        let (stopped, failed): (Vec<_>, Vec<_>) = (done.into_iter().filter_map(Result::err))
            .partition(|error| matches!(error, RunError::Interrupted));
        failed.into_iter().chain(stopped).next().map_or(Ok(()), Err)
    }

    async fn traced_unit(&self, unit: &Unit, cancel: &CancellationToken) -> Result<(), RunError> {
        let node = &self.pipeline.nodes[unit.last()];
        self.unit(unit, cancel).instrument(info_span!("stage", name = %node.name, kind = node.kind)).await
    }

    async fn unit(&self, unit: &Unit, cancel: &CancellationToken) -> Result<(), RunError> {
        let node = &self.pipeline.nodes[unit.last()];
        let dir = self.settings.dir.join(&node.name);
        self.make_room(unit)?;
        if let Decision::Reuse { rows } = unit.decision {
            Dataset::open(dir)?;
            // A kill may have come after the dataset was complete.
            let mut notes = generations::delete_old(&self.settings.dir, &node.name)?;
            notes.extend(self.delete_passes(unit)?);
            notes.into_iter().for_each(|note| Progress::new(&node.name, self.observer.clone()).note(note));
            info!(rows, "reused");
            self.observer.event(&Event::StageReused { stage: node.name.clone(), rows });
            return Ok(());
        }
        if cancel.is_cancelled() {
            return Err(RunError::Interrupted);
        }
        let started = Instant::now();
        let progress = Progress::new(&node.name, self.observer.clone());
        let begin = self.begin(unit)?;
        let tables = begin.tables.clone();
        let writer = DatasetWriter::open_of_run(dir.clone(), begin, ShardLimits::default())?;
        let stopwatch = Stopwatch::start(dir);
        machine::record(&self.settings.dir);
        debug!(splits_done = writer.state().commits.len(), "started");
        self.observer.event(&Event::StageStarted {
            stage: node.name.clone(),
            kind: node.kind.into(),
            product: node.product,
            unit: node.unit,
            fused: unit.nodes[..unit.nodes.len() - 1]
                .iter()
                .map(|&node| self.pipeline.nodes[node].name.clone())
                .collect(),
            splits_done: writer.state().commits.len() as u64,
        });
        let mut output = Output::new(&node.name, writer, progress.clone());
        let steps = self.inputs.steps(&unit.nodes, &progress, cancel).await?;
        let reasons = empty::inputs_without_rows(&steps);
        reasons.iter().for_each(|reason| progress.note(reason));
        let limits =
            Limits { splits_in_flight: 2, grace: self.settings.grace, max_rows: self.settings.max_rows };
        let earlier = self.earlier(unit)?;
        let ranks = self.begin_with_ranks(unit, &tables, &steps, &output).await?;
        let helpers = Helpers::of_unit(&self.inputs, unit, tables, earlier.clone())?;
        let mut prepared = Prepared::new(steps, output.starter(), output.records());
        if let Some(folder) = earlier.as_ref().map(|folder| self.settings.dir.join(folder))
            && let Err(error) = prepared.take_over(folder)
        {
            progress.note(format!("nothing is taken over: {error}"));
        }
        let work = execute(&prepared, &mut output, (&self.settings.dir, &limits), helpers.as_ref());
        stopwatch.during(work).await.map_err(|error| empty::explained(error, &reasons))?;
        drop(ranks);
        if let Some((rows, from)) = prepared.taken_over() {
            progress.note(format!("{rows} rows are taken over from `{from}`"));
        }
        let dir = &self.settings.dir;
        let mut notes = generations::prune(dir, &node.name, &self.kept(node), false)?;
        notes.extend(generations::delete_old(dir, &node.name)?);
        notes.extend(self.delete_passes(unit)?);
        notes.into_iter().for_each(|note| progress.note(note));
        let state = output.state();
        let (rows, seconds) = (state.rows(MAIN), started.elapsed().as_secs_f64());
        let rejects = state.rejects().values().flat_map(BTreeMap::values).sum();
        info!(rows, rejects, seconds, "finished");
        let reasons = reasons::reasons(&output.dataset(), &session::plain(self.registry, 1)).await?;
        let stage = node.name.clone();
        self.observer.event(&Event::StageFinished { stage, rows, rejects, seconds, reasons });
        Ok(())
    }

    /// Deletes what the passes of a complete unit left. Gives what to say about what stays.
    fn delete_passes(&self, unit: &Unit) -> Result<Vec<String>, RunError> {
        // Passes are kept under the name of the stage that has them: the first of its unit.
        let head = &self.pipeline.nodes[unit.nodes[0]];
        match head.work {
            Work::Passes(_) => passes::delete(&self.settings.dir, &head.name),
            Work::Rows(_) if head.plan.split_by.is_some() => passes::delete(&self.settings.dir, &head.name),
            _ => Ok(Vec::new()),
        }
    }

    /// Moves the dataset of another recipe out of the way, and that of this one back.
    fn make_room(&self, unit: &Unit) -> Result<(), RunError> {
        let (dir, node) = (&self.settings.dir, &self.pipeline.nodes[unit.last()]);
        match &unit.change {
            Change::None => return generations::refuse_foreign(dir, &node.name),
            Change::SetAside { next, .. } => generations::set_aside(dir, &node.name, *next)?,
            Change::BringBack { number, next } => generations::bring_back(dir, &node.name, *number, *next)?,
        }
        let progress = Progress::new(&node.name, self.observer.clone());
        if let Some(what) = unit.change_in_words(self.pipeline) {
            progress.note(what);
        }
        // Changed again and again, the disk must not fill.
        let notes = generations::prune(dir, &node.name, &self.kept(node), true)?;
        notes.into_iter().for_each(|note| progress.note(note));
        Ok(())
    }

    fn kept(&self, node: &Node) -> Kept<'_> {
        Kept { generations: node.plan.generations, read: &self.read }
    }

    /// The folder of an earlier dataset of a unit that has rows to take over.
    fn earlier(&self, unit: &Unit) -> Result<Option<String>, RunError> {
        let nodes: Vec<_> = unit.nodes.iter().map(|&node| self.pipeline.nodes[node].clone()).collect();
        TakeOver::find(&self.settings.dir, &self.inputs.files, &nodes, &unit.kept(self.pipeline))
    }

    /// Has the other ranks build a job that is not done yet, if there are any.
    async fn begin_with_ranks(
        &self,
        unit: &Unit,
        tables: &BTreeMap<String, SchemaRef>,
        steps: &[Step],
        output: &Output,
    ) -> Result<Option<MutexGuard<'_, ()>>, RunError> {
        let head = steps.first().filter(|step| step.cx.ranks.is_some() && !output.is_done(0));
        let (Some(head), Some(ranks)) = (head, &self.settings.ranks) else { return Ok(None) };
        let (pipeline, clock, began) = (self.pipeline, self.settings.clock, self.inputs.began);
        // A job of ranks asks no site, and takes over no rows.
        let (hosts, tables) = (&BTreeMap::new(), tables.clone());
        let facts = RunFacts { pipeline, tables, earlier: None, began, clock, hosts, sent: None };
        Ok(Some(rank_jobs::begin(ranks, UnitRecipe::new(unit, facts)?, &head.inputs).await?))
    }

    fn begin(&self, unit: &Unit) -> Result<Begin, RunError> {
        let node = &self.pipeline.nodes[unit.last()];
        let main = contracts::with_hub_features(node.main()?.clone());
        // If the main table is known, so are the others.
        let tables = node.tables().filter_map(|(name, schema)| Some((name.to_string(), schema?)));
        let mut tables: BTreeMap<String, SchemaRef> = tables.collect();
        tables.insert(MAIN.into(), main);
        let fused = unit.nodes[..unit.nodes.len() - 1].iter().map(|&node| {
            let node = &self.pipeline.nodes[node];
            Ok((node.name.clone(), node.main()?.as_ref().clone()))
        });
        Ok(Begin {
            format: FORMAT,
            position: unit.last() as u64,
            stage: node.name.clone(),
            kind: node.kind.into(),
            fingerprint: unit.recipe.fingerprint.clone(),
            recipe: unit.kept(self.pipeline),
            fused: fused.collect::<Result<_, RunError>>()?,
            variant: node.variant.clone(),
            tables,
        })
    }
}
