//! `twinlens status`: the datasets of a run directory, and whether every row is accounted for.

use std::io::Write;

use serde::Serialize;
use twinlens_dataset::samples::is_run_directory;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_pipeline::run::{self, directory};

use crate::cli::StatusArgs;
use crate::errors::Failure;
use crate::progress::recorder::Snapshot;
use crate::table::TableWriter;
use crate::text::{bytes, count, one_line, seconds};

/// The pipeline that a run directory belongs to.
///
/// # Errors
/// It is not a run directory.
pub(crate) fn pipeline_of(dir: &Location) -> Result<String, Failure> {
    directory::identity(dir)?.ok_or_else(|| {
        let missing = dir.as_local().is_some_and(|path| !path.exists());
        let what = if missing { "does not exist" } else { "is not a run directory" };
        let hint = match runs_in(dir).as_slice() {
            [] => "`twinlens run` creates one: runs/<name of the pipeline>, or the value of --dir".into(),
            runs => format!("it holds runs: {}", listed(runs)),
        };
        Failure::user(format!("{dir} {what}")).hint(hint)
    })
}

/// The run directories in a local directory and in its `runs`, by name.
fn runs_in(dir: &Location) -> Vec<String> {
    let Some(root) = dir.as_local() else { return Vec::new() };
    let mut runs = Vec::new();
    for folder in [root.to_path_buf(), root.join("runs")] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path()).filter(|path| is_run_directory(path));
        runs.extend(paths.map(|path| path.display().to_string()));
    }
    runs.sort();
    runs
}

/// The first names of a list.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(|name| crate::text::shell_quote(name)).collect::<Vec<_>>();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{}, and {more} more", shown.join(", ")),
    }
}

pub(crate) fn execute(args: &StatusArgs) -> Result<(), Failure> {
    let status = Status::read(&args.dir)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "pipeline {} in {}\n", one_line(&status.pipeline), one_line(&status.dir))?;
    if status.datasets.is_empty() && status.running.is_none() {
        writeln!(out, "no datasets yet")?;
        return Ok(out.flush()?);
    }
    print_datasets(&mut out, &status.datasets)?;
    print_rejects(&mut out, &status.rejects)?;
    if let Some(running) = status.running {
        print_running(&mut out, &running)?;
    }
    out.flush()?;
    let is_broken = |dataset: &&DatasetStatus| matches!(dataset.balance, Balance::Broken);
    let broken: Vec<&str> = status.datasets.iter().filter(is_broken).map(|it| it.dataset.as_str()).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Failure::internal(format!("rows in differ from rows kept plus rejected: {}", broken.join(", "))))
}

/// What a run directory holds.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pipeline: String,
    dir: String,
    datasets: Vec<DatasetStatus>,
    rejects: Vec<RejectCount>,
    /// The run in progress, or what a killed one left.
    running: Option<Snapshot>,
}

#[derive(Debug, Serialize)]
struct DatasetStatus {
    dataset: String,
    kind: String,
    complete: bool,
    /// Committed splits.
    splits: usize,
    /// `None` if the stage does not map rows to rows, or does not count them.
    rows_in: Option<u64>,
    kept: u64,
    rejected: u64,
    balance: Balance,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct RejectCount {
    stage: String,
    code: String,
    rows: u64,
}

impl Status {
    pub(crate) fn read(dir: &str) -> Result<Self, Failure> {
        let dir = crate::location::parse_location(dir)?;
        let pipeline = pipeline_of(&dir)?;
        let datasets = run::datasets(&dir)?;
        let running = Snapshot::read(&dir.local_path());
        let rejects = datasets.iter().flat_map(reject_counts).collect();
        let datasets = datasets.iter().map(DatasetStatus::new).collect();
        Ok(Self { pipeline, dir: dir.to_string(), datasets, rejects, running })
    }
}

impl DatasetStatus {
    fn new(dataset: &Dataset) -> Self {
        let state = dataset.state();
        Self {
            dataset: state.begin.stage.clone(),
            kind: state.begin.kind.clone(),
            complete: state.complete,
            splits: state.commits.len(),
            rows_in: rows_in(dataset),
            kept: dataset.rows(MAIN),
            rejected: rejected(dataset),
            balance: balance(dataset),
            bytes: state.files().map(|file| file.bytes).sum(),
        }
    }
}

/// Whether rows in = rows kept + rows rejected.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Balance {
    Ok,
    Broken,
    /// The stage does not map rows to rows (a query, a training), or does not count its input.
    NotApplicable,
}

impl Balance {
    fn label(self) -> &'static str {
        match self {
            Balance::Ok => "ok",
            Balance::Broken => "NOT ok",
            Balance::NotApplicable => "-",
        }
    }
}

fn rejected(dataset: &Dataset) -> u64 {
    dataset.state().commits.values().map(|commit| commit.rejected()).sum()
}

/// Input rows; `None` if the stage does not map rows to rows, or does not count them.
fn rows_in(dataset: &Dataset) -> Option<u64> {
    let state = dataset.state();
    // Row stages have a ledger unless they only count rejects. Queries have none, and count no
    // rows.
    let only_counts = state.begin.recipe.get("keep_rejects") == Some(&false.into());
    let is_row_stage = state.begin.tables.contains_key(REJECTS) || only_counts;
    state.rows_in().filter(|_| is_row_stage && !state.commits.is_empty())
}

fn balance(dataset: &Dataset) -> Balance {
    match rows_in(dataset) {
        Some(rows) if rows == dataset.rows(MAIN) + rejected(dataset) => Balance::Ok,
        Some(_) => Balance::Broken,
        None => Balance::NotApplicable,
    }
}

fn print_datasets(out: &mut impl Write, datasets: &[DatasetStatus]) -> Result<(), Failure> {
    let names = ["dataset", "kind", "state", "rows in", "kept", "rejected", "sum", "size"];
    let mut table =
        TableWriter::with_columns(out, &names, &[false, false, false, true, true, true, false, true]);
    for dataset in datasets {
        let splits = dataset.splits;
        let progress = if dataset.complete { "complete".into() } else { format!("{splits} splits so far") };
        table.row(vec![
            dataset.dataset.clone(),
            dataset.kind.clone(),
            progress,
            dataset.rows_in.map_or("-".into(), count),
            count(dataset.kept),
            count(dataset.rejected),
            dataset.balance.label().into(),
            bytes(dataset.bytes),
        ])?;
    }
    table.finish()?;
    Ok(())
}

/// What a run in progress does. What a killed run left says how old it is.
fn print_running(out: &mut impl Write, snapshot: &Snapshot) -> Result<(), Failure> {
    let age = snapshot.age();
    let when = if age.as_secs() < 5 { String::new() } else { format!(" (as of {} ago)", seconds(age)) };
    writeln!(out, "\nrunning in process {}{when}", snapshot.pid)?;
    for running in &snapshot.running {
        let shown = [&running.stage, &running.kind, &running.line].map(|text| one_line(text));
        writeln!(out, "  {}", shown.join("  "))?;
    }
    Ok(())
}

/// The rejects of a dataset's stages by code.
fn reject_counts(dataset: &Dataset) -> Vec<RejectCount> {
    let state = dataset.state();
    let rejects = state.rejects();
    let stages = state.begin.fused.iter().map(|(stage, _)| stage).chain([&state.begin.stage]);
    let counts = stages.flat_map(|stage| {
        let codes = rejects.get(stage).into_iter().flatten();
        codes.map(|(code, rows)| RejectCount { stage: stage.clone(), code: code.clone(), rows: *rows })
    });
    counts.collect()
}

fn print_rejects(out: &mut impl Write, rejects: &[RejectCount]) -> Result<(), Failure> {
    if rejects.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = TableWriter::with_columns(out, &["stage", "reject code", "rows"], &[false, false, true]);
    for RejectCount { stage, code, rows } in rejects {
        table.row(vec![stage.clone(), code.clone(), count(*rows)])?;
    }
    table.finish()?;
    Ok(())
}
