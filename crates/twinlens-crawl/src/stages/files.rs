//! Shared by the sources that read files: listing the files, and opening or downloading them.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;
use twinlens_pipeline::stage::SourceSplit;
use twinlens_pipeline::{Fault, Located, RunContext, RunError};

use super::common::{file_name, is_url};
use super::remote::{self, Download};
use crate::net::{ByteBudget, Client, HttpOptions};

/// Maximum number of simultaneous requests for downloads.
const MAX_OPEN: usize = 16;

/// The files that can be checked for changes before a run: those that are not URLs.
pub(super) fn local_files(files: &[Located<String>]) -> Vec<Located<String>> {
    files.iter().filter(|file| !is_url(file)).cloned().collect()
}

/// Faults of the option `files`.
pub(super) fn files_faults(files: &Located<Vec<Located<String>>>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if files.is_empty() {
        faults.push(Fault::at(files.span(), "`files` is empty: there is nothing to read"));
    }
    for file in files.iter().filter(|file| is_url(file) && file.contains('*')) {
        let fault = Fault::at(file.span(), "URLs cannot contain wildcards");
        faults.push(fault.hint("list each URL (write a literal star as %2A)"));
    }
    faults
}

/// One split per file, in the order of the option; the matches of a pattern are sorted.
pub(super) fn file_splits(cx: &RunContext, files: &[Located<String>]) -> Result<Vec<SourceSplit>, RunError> {
    let mut splits = Vec::new();
    for file in files {
        let found = if is_url(file) {
            vec![file.value().clone()]
        } else {
            cx.local_files(file)?.iter().map(|path| path.display().to_string()).collect()
        };
        let whole =
            |file: String| SourceSplit { label: file_name(&file).into(), file, start: 0, end: u64::MAX };
        splits.extend(found.into_iter().map(whole));
    }
    Ok(splits)
}

/// Opens files, which may be URLs; shared by all splits of a stage.
#[derive(Debug, Default)]
pub(super) struct FileOpener {
    client: OnceCell<Client>,
}

impl FileOpener {
    /// Opens the file of a split. A URL is downloaded first.
    pub(super) async fn open(
        &self,
        cx: &RunContext,
        http: &HttpOptions,
        split: &SourceSplit,
    ) -> Result<InputFile, RunError> {
        let name = file_name(&split.file).to_string();
        if !is_url(&split.file) {
            return Ok(InputFile { name, path: PathBuf::from(&split.file), download: None });
        }
        let budget = || ByteBudget::new(cx.bytes_in_flight as u64);
        let client = self
            .client
            .get_or_try_init(|| async { super::network::client(cx, http, budget(), MAX_OPEN) })
            .await?;
        let download = remote::download(client, &split.file, &cx.files.scratch).await?;
        Ok(InputFile { name, path: download.path().into(), download: Some(download) })
    }
}

#[derive(Debug)]
pub(super) struct InputFile {
    /// The last part of the path or URL, for messages.
    pub(super) name: String,
    path: PathBuf,
    download: Option<Download>,
}

impl InputFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Call this after reading it to its end: a download is then deleted.
    pub(super) fn mark_read(&self) {
        if let Some(download) = &self.download {
            download.mark_read();
        }
    }
}
