//! `twinlens check`: whether a pipeline file is right, without any I/O but reading it.

use std::io::Write;

use crate::cli::CheckArgs;
use crate::config;
use crate::errors::Failure;
use crate::registry;
use crate::text::counted;

/// Prints `ok`, or fails with the report.
pub fn command(args: &CheckArgs) -> Result<(), Failure> {
    let pipeline = config::load(&args.pipeline, &registry::all(), &args.set.values)?;
    let mut text = format!("ok: {}", counted(pipeline.nodes.len() as u64, "stage"));
    if !pipeline.tests.is_empty() {
        text += &format!(", {}", counted(pipeline.tests.len() as u64, "test"));
    }
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
