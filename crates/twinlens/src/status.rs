//! `twinlens status`: what a run directory holds, and whether every row is accounted for.

use std::io::Write;

use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_pipeline::run::{self, directory};

use crate::cli::StatusArgs;
use crate::errors::Failure;
use crate::table::TableWriter;
use crate::text::{bytes, count};

/// The pipeline that a run directory belongs to.
///
/// # Errors
/// The user's: it is no run directory.
pub fn pipeline_of(dir: &Location) -> Result<String, Failure> {
    directory::identity(dir)?.ok_or_else(|| {
        let missing = dir.as_local().is_some_and(|path| !path.exists());
        let what = if missing { "does not exist" } else { "is no run directory" };
        Failure::user(format!("{dir} {what}"))
            .hint("`twinlens run` makes one, in runs/<name of the pipeline> or where --dir says")
    })
}

/// Prints datasets, rejects by code, and the sum of each dataset.
pub fn execute(args: &StatusArgs) -> Result<(), Failure> {
    let dir = crate::run::parse_location(&args.dir)?;
    let pipeline = pipeline_of(&dir)?;
    let datasets = run::datasets(&dir)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "pipeline {pipeline} in {dir}\n")?;
    if datasets.is_empty() {
        writeln!(out, "no datasets yet")?;
        return Ok(out.flush()?);
    }
    print_datasets(&mut out, &datasets)?;
    print_rejects(&mut out, &datasets)?;
    out.flush()?;
    let broken: Vec<&str> = datasets.iter().filter(|dataset| !sum(dataset).holds()).map(name).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Failure::internal(format!("rows in are not rows kept and rejected: {}", broken.join(", "))))
}

fn name(dataset: &Dataset) -> &str {
    &dataset.state().begin.stage
}

/// Rows in = rows kept + rows rejected.
enum Sum {
    Holds,
    Broken,
    /// The stage does not turn rows into rows (a query, a training), or does not count what comes
    /// in.
    NotMeant,
}

impl Sum {
    fn holds(&self) -> bool {
        !matches!(self, Sum::Broken)
    }

    fn word(&self) -> &'static str {
        match self {
            Sum::Holds => "ok",
            Sum::Broken => "NOT ok",
            Sum::NotMeant => "-",
        }
    }
}

fn rejected(dataset: &Dataset) -> u64 {
    dataset.state().commits.values().map(|commit| commit.rejected()).sum()
}

/// Rows that came in; `None` where the stage does not turn rows into rows, or does not count them.
fn rows_in(dataset: &Dataset) -> Option<u64> {
    let state = dataset.state();
    // A stage that must account for its rows has a ledger, unless it only counts its rejects; a
    // query has none.
    let only_counts =
        state.begin.recipe.get("keep_rejects") == Some(&false.into()) && state.begin.kind != "sql";
    let accounts = state.begin.tables.contains_key(REJECTS) || only_counts;
    state.rows_in().filter(|_| accounts && !state.commits.is_empty())
}

fn sum(dataset: &Dataset) -> Sum {
    match rows_in(dataset) {
        Some(rows) if rows == dataset.rows(MAIN) + rejected(dataset) => Sum::Holds,
        Some(_) => Sum::Broken,
        None => Sum::NotMeant,
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
            sum(dataset).word().into(),
            bytes(state.files().map(|file| file.bytes).sum()),
        ])?;
    }
    table.finish()?;
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
    let mut table =
        TableWriter::with_columns(out, &["stage", "rejected because", "rows"], &[false, false, true]);
    for row in rows {
        table.row(row)?;
    }
    table.finish()?;
    Ok(())
}
