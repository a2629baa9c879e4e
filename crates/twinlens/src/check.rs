//! `twinlens check`: whether a pipeline file is right, without any I/O but reading it; or whether a
//! dataset is what it claims to be.

use std::io::Write;

use twinlens_dataset::storage::is_url;
use twinlens_dataset::{Dataset, export};

use crate::cli::CheckArgs;
use crate::config;
use crate::errors::Failure;
use crate::registry;
use crate::run;
use crate::text::{bytes, counted};

/// Prints `ok`, or fails with the report.
pub fn command(args: &CheckArgs) -> Result<(), Failure> {
    let written = args.pipeline.to_string_lossy();
    let place = run::location(&written)?;
    if is_url(&written) || args.pipeline.is_dir() {
        return dataset(&Dataset::open(place)?);
    }
    let pipeline = config::load(&args.pipeline, &registry::all(), &args.set.values)?;
    let mut text = format!("ok: {}", counted(pipeline.nodes.len() as u64, "stage"));
    if !pipeline.tests.is_empty() {
        text += &format!(", {}", counted(pipeline.tests.len() as u64, "test"));
    }
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Prints `ok`, or fails with all that is not as recorded.
fn dataset(dataset: &Dataset) -> Result<(), Failure> {
    let wrong = export::check(dataset)?;
    let state = dataset.state();
    if !wrong.is_empty() {
        return Err(
            Failure::user(wrong.join("\n")).hint("restore what is damaged from a copy, or make it again")
        );
    }
    let size = state.files().map(|file| file.bytes).sum();
    let (files, size) = (counted(state.files().count() as u64, "file"), bytes(size));
    let unfinished = if state.complete { "" } else { "; it is not complete" };
    Ok(writeln!(std::io::stdout(), "ok: {files}, {size}{unfinished}")?)
}
