//! `twinlens status`: the datasets of a run directory, and whether every row is accounted for.

use std::io::Write;

use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_pipeline::run::{self, directory};

use crate::cli::StatusArgs;
use crate::errors::Failure;
use crate::progress::recorder::Snapshot;
use crate::table::TableWriter;
use crate::text::{bytes, count, seconds};

/// The pipeline that a run directory belongs to.
///
/// # Errors
/// It is not a run directory.
pub(crate) fn pipeline_of(dir: &Location) -> Result<String, Failure> {
    directory::identity(dir)?.ok_or_else(|| {
        let missing = dir.as_local().is_some_and(|path| !path.exists());
        let what = if missing { "does not exist" } else { "is not a run directory" };
        Failure::user(format!("{dir} {what}"))
            .hint("`twinlens run` creates one: runs/<name of the pipeline>, or the value of --dir")
    })
}

pub(crate) fn execute(args: &StatusArgs) -> Result<(), Failure> {
    let dir = crate::run::parse_location(&args.dir)?;
    let pipeline = pipeline_of(&dir)?;
    let datasets = run::datasets(&dir)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "pipeline {pipeline} in {dir}\n")?;
    let running = Snapshot::read(&dir.local_path());
    if datasets.is_empty() && running.is_none() {
        writeln!(out, "no datasets yet")?;
        return Ok(out.flush()?);
    }
    print_datasets(&mut out, &datasets)?;
    print_rejects(&mut out, &datasets)?;
    if let Some(running) = running {
        print_running(&mut out, &running)?;
    }
    out.flush()?;
    let is_broken = |dataset: &&Dataset| matches!(balance(dataset), Balance::Broken);
    let broken: Vec<&str> = datasets.iter().filter(is_broken).map(name).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Failure::internal(format!("rows in differ from rows kept plus rejected: {}", broken.join(", "))))
}

fn name(dataset: &Dataset) -> &str {
    &dataset.state().begin.stage
}

/// Whether rows in = rows kept + rows rejected.
enum Balance {
    Ok,
    Broken,
    /// The stage does not map rows to rows (a query, a training), or does not count its input.
    NotApplicable,
}

impl Balance {
    fn label(&self) -> &'static str {
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

fn print_datasets(out: &mut impl Write, datasets: &[Dataset]) -> Result<(), Failure> {
    let names = ["dataset", "kind", "state", "rows in", "kept", "rejected", "sum", "size"];
    let mut table =
        TableWriter::with_columns(out, &names, &[false, false, false, true, true, true, false, true]);
    for dataset in datasets {
        let state = dataset.state();
        let splits = state.commits.len();
        let progress = if state.complete { "complete".into() } else { format!("{splits} splits so far") };
        table.row(vec![
            name(dataset).into(),
            state.begin.kind.clone(),
            progress,
            rows_in(dataset).map_or("-".into(), count),
            count(dataset.rows(MAIN)),
            count(rejected(dataset)),
            balance(dataset).label().into(),
            bytes(state.files().map(|file| file.bytes).sum()),
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
        writeln!(out, "  {}  {}  {}", running.stage, running.kind, running.line)?;
    }
    Ok(())
}

fn print_rejects(out: &mut impl Write, datasets: &[Dataset]) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for dataset in datasets {
        let state = dataset.state();
        let rejects = state.rejects();
        let stages = state.begin.fused.iter().map(|(stage, _)| stage).chain([&state.begin.stage]);
        for stage in stages {
            let codes = rejects.get(stage).into_iter().flatten();
            rows.extend(codes.map(|(code, rejects)| vec![stage.clone(), code.clone(), count(*rejects)]));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = TableWriter::with_columns(out, &["stage", "reject code", "rows"], &[false, false, true]);
    for row in rows {
        table.row(row)?;
    }
    table.finish()?;
    Ok(())
}
