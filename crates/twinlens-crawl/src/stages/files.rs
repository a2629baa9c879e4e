//! What the sources that read files share: which files there are, and where their bytes are to be
//! had.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;
use twinlens_pipeline::stage::SourceSplit;
use twinlens_pipeline::{Fault, Located, RunContext, RunError};

use super::remote::{self, Download};
use crate::net::{ByteBudget, Client, HttpOptions};

/// Requests that are open at a time, for the pieces of files on web servers.
const OPEN: usize = 16;

/// Whether a file is one on a web server.
pub(super) fn is_web(written: &str) -> bool {
    written.starts_with("http://") || written.starts_with("https://")
}

/// Those files of an option whose time of change can be looked at: a web server is not asked before
/// the run.
pub(super) fn watched(files: &[Located<String>]) -> Vec<Located<String>> {
    files.iter().filter(|file| !is_web(file)).cloned().collect()
}

/// What is wrong with the option `files`.
pub(super) fn faults(files: &Located<Vec<Located<String>>>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if files.is_empty() {
        faults.push(Fault::at(files.span(), "`files` is empty: there is nothing to read"));
    }
    for file in files.iter().filter(|file| is_web(file) && file.contains('*')) {
        let fault = Fault::at(file.span(), "a web server does not list its files: `*` is no pattern there");
        faults.push(fault.hint("name each URL (a star in a URL is written %2A)"));
    }
    faults
}

/// One split a file, in the order in which they are written; those of a pattern sorted.
pub(super) fn splits(cx: &RunContext, files: &[Located<String>]) -> Result<Vec<SourceSplit>, RunError> {
    let mut splits = Vec::new();
    for written in files {
        let found = match is_web(written) {
            true => vec![written.value().clone()],
            false => cx.local_files(written)?.iter().map(|path| path.display().to_string()).collect(),
        };
        let whole = |file: String| SourceSplit { label: short(&file).into(), file, start: 0, end: u64::MAX };
        splits.extend(found.into_iter().map(whole));
    }
    Ok(splits)
}

/// The bytes of files, wherever they are. What all splits of a stage share.
#[derive(Debug, Default)]
pub(super) struct Files {
    client: OnceCell<Client>,
}

impl Files {
    /// Makes the file of a split readable. One on a web server is copied first.
    pub(super) async fn open(
        &self,
        cx: &RunContext,
        http: &HttpOptions,
        split: &SourceSplit,
    ) -> Result<Readable, RunError> {
        let name = short(&split.file).to_string();
        if !is_web(&split.file) {
            return Ok(Readable { name, path: PathBuf::from(&split.file), download: None });
        }
        let budget = || ByteBudget::new(cx.bytes_in_flight as u64);
        let client =
            self.client.get_or_try_init(|| async { super::client(cx, http, budget(), OPEN) }).await?;
        let download = remote::copy(client, &split.file, &cx.files.scratch).await?;
        Ok(Readable { name, path: download.path().into(), download: Some(download) })
    }
}

/// A file that can be read.
#[derive(Debug)]
pub(super) struct Readable {
    /// For people: the last part of the path or URL that the user wrote.
    pub(super) name: String,
    path: PathBuf,
    download: Option<Download>,
}

impl Readable {
    /// Where it is on this machine.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It was read to its end: a copy has served.
    pub(super) fn served(&self) {
        if let Some(download) = &self.download {
            download.served();
        }
    }
}

/// A batch that could not be put together.
pub(super) fn engine(error: arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}

/// Runs file work away from the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RunError::Internal(error.to_string()))
}

/// The file's name without its folders, and of a URL without its query.
pub(super) fn short(path: &str) -> &str {
    let path = if is_web(path) { path.split(['?', '#']).next().unwrap_or(path) } else { path };
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
