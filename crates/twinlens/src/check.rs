//! `twinlens check`: validates a pipeline file without reading its inputs, or a dataset against its
//! manifest.

use std::io::Write;

use twinlens_dataset::storage::{Location, is_url};
use twinlens_dataset::{Dataset, export};
use twinlens_pipeline::Registry;
use twinlens_pipeline::run::{self, directory, repair};

use crate::cli::CheckArgs;
use crate::config;
use crate::errors::Failure;
use crate::text::{bytes, counted};

pub(crate) fn execute(args: &CheckArgs, registry: &Registry) -> Result<(), Failure> {
    let path = args.pipeline.to_string_lossy();
    let location = crate::location::parse_location(&path)?;
    if is_url(&path) || args.pipeline.is_dir() {
        if directory::identity(&location)?.is_some() {
            return check_run(&location);
        }
        return check_dataset(&Dataset::open(location)?);
    }
    let pipeline = config::load(&args.pipeline, registry, &args.set.values)?;
    let mut text = format!("ok: {}", counted(pipeline.nodes.len() as u64, "stage"));
    if !pipeline.tests.is_empty() {
        text += &format!(", {}", counted(pipeline.tests.len() as u64, "test"));
    }
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Fails with every file of a run that differs from its manifest.
fn check_run(dir: &Location) -> Result<(), Failure> {
    let damaged = repair::find(dir)?;
    if damaged.is_empty() {
        let datasets = run::datasets(dir)?.len() as u64;
        return Ok(writeln!(std::io::stdout(), "ok: {}", counted(datasets, "dataset"))?);
    }
    let faults = damaged.iter().flat_map(|damage| &damage.faults);
    let lines: Vec<String> = faults.map(ToString::to_string).collect();
    Err(Failure::user(lines.join("\n"))
        .hint("make them again with `twinlens repair`, which takes the arguments of `twinlens run`"))
}

/// Fails with everything that differs from the manifest or the card.
fn check_dataset(dataset: &Dataset) -> Result<(), Failure> {
    let faults = export::check(dataset)?;
    let state = dataset.state();
    if !faults.is_empty() {
        return Err(
            Failure::user(faults.join("\n")).hint("restore the damaged files from a copy, or export again")
        );
    }
    let size = state.files().map(|file| file.bytes).sum();
    let (files, size) = (counted(state.files().count() as u64, "file"), bytes(size));
    let unfinished = if state.complete { "" } else { "; it is not complete" };
    Ok(writeln!(std::io::stdout(), "ok: {files}, {size}{unfinished}")?)
}
