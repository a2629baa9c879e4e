//! `twinlens report`: a run as one page, or in the terminal: what was built, how good it is, and
//! where it fails.
//!
//! What a report says ([`sections`], from queries over the run and its views) stands apart from how
//! it is shown ([`html`], [`terminal`]). A part for which the run has no data is a sentence. The
//! same datasets give the same bytes.

mod ask;
mod html;
mod model;
mod sections;
mod svg;
mod terminal;

use std::io::Write;
use std::path::{Path, PathBuf};

use twinlens_dataset::storage::{Location, local};
use twinlens_pipeline::run;

use crate::cli::ReportArgs;
use crate::errors::Failure;
use crate::sql::runs::Runs;
use crate::text::bytes;
use crate::{runtime, status};

/// The page's name in the run directory.
const PAGE: &str = "report.html";

/// Writes the report of a run.
pub fn command(args: &ReportArgs) -> Result<(), Failure> {
    let runs = Runs::new(&args.dir, &[])?;
    let report = runtime::block_on(None, async {
        let title = status::belongs_to(&runs.dir)?;
        let session = runs.open().await?;
        let datasets = run::datasets(&runs.dir)?;
        sections::report(title, &sections::Source { session: &session, datasets: &datasets }).await
    })?;
    if args.terminal {
        return terminal::print(&report, &mut std::io::stdout().lock());
    }
    let page = html::page(&report)?;
    if args.output.as_deref() == Some(Path::new("-")) {
        let mut out = std::io::stdout().lock();
        out.write_all(page.as_bytes())?;
        return Ok(out.flush()?);
    }
    let path = path(args, &runs.dir)?;
    local::write(&path, page.as_bytes())?;
    // Only told: what is asked for is the file.
    let _ = writeln!(std::io::stderr(), "{} ({})", path.display(), bytes(page.len() as u64));
    Ok(())
}

/// Where the page goes: into the run directory, unless told otherwise.
fn path(args: &ReportArgs, dir: &Location) -> Result<PathBuf, Failure> {
    match (&args.output, dir.as_local()) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(dir)) => Ok(dir.join(PAGE)),
        (None, None) => {
            Err(Failure::user("the page of a run in an object store needs a place").hint("add `-o FILE`"))
        }
    }
}
