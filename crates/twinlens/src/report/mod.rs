//! `twinlens report`: a report of a run as an HTML page or in the terminal.
//!
//! [`sections`] queries the run and its views for the content; [`html`] and [`terminal`] render it.
//! The same datasets give the same bytes.

mod gallery;
mod html;
mod model;
mod query;
mod sections;
mod svg;
mod terminal;
mod thumbnail;

use std::io::Write;
use std::path::{Path, PathBuf};

use twinlens_dataset::storage::Location;
use twinlens_pipeline::{Registry, run};

use crate::cli::ReportArgs;
use crate::errors::Failure;
use crate::sql::runs::Runs;
use crate::text::{bytes, one_line};
use crate::{output, runtime, status};
pub(crate) use gallery::{pictures_of, pictures_page};
use model::Report;
use query::{OtherRun, ReportData};
pub(crate) use thumbnail::thumbnail;

/// The file name of the page in the run directory.
const PAGE: &str = "report.html";

pub(crate) fn execute(args: &ReportArgs, registry: &Registry) -> Result<(), Failure> {
    let with: Vec<(String, String)> = args.with.iter().cloned().collect();
    let runs = Runs::new(registry, &args.dir, &with)?;
    let report = build(&runs, registry)?;
    if args.terminal {
        return terminal::print(&report, &mut std::io::stdout().lock());
    }
    let page = html::page(&report)?;
    if args.output.as_deref() == Some(Path::new("-")) {
        let mut out = std::io::stdout().lock();
        out.write_all(page.as_bytes())?;
        return Ok(out.flush()?);
    }
    let path = output_path(args, &runs.dir)?;
    output::write(&path, page.as_bytes())?;
    // A failure to print this is not a failure of the command.
    let _ = writeln!(
        std::io::stderr(),
        "{} ({})",
        one_line(&path.display().to_string()),
        bytes(page.len() as u64)
    );
    Ok(())
}

/// The page of a run.
pub(crate) fn page(registry: &Registry, dir: &str, with: &[(String, String)]) -> Result<String, Failure> {
    html::page(&build(&Runs::new(registry, dir, with)?, registry)?)
}

fn build(runs: &Runs<'_>, registry: &Registry) -> Result<Report, Failure> {
    runtime::block_on(None, async {
        let title = status::pipeline_of(&runs.dir)?;
        let session = runs.open().await?;
        let datasets = run::datasets(&runs.dir)?;
        let other = runs.with.first().map(|(name, dir)| {
            Ok::<_, Failure>(OtherRun {
                name: name.clone(),
                dir: dir.to_string(),
                datasets: run::datasets(dir)?,
            })
        });
        let (dir, other) = (runs.dir.to_string(), other.transpose()?);
        let data = ReportData { session: &session, datasets: &datasets, registry, dir, other };
        sections::report(title, &data).await
    })
}

/// `--output`, or a file in the run directory.
fn output_path(args: &ReportArgs, dir: &Location) -> Result<PathBuf, Failure> {
    match (&args.output, dir.as_local()) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(dir)) => Ok(dir.join(PAGE)),
        (None, None) => Err(Failure::user("cannot write the page to an object store").hint("add `-o FILE`")),
    }
}
