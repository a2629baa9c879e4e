//! Shared by the sources that read files: listing the files, and opening or downloading them.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_pipeline::{Fault, Located, Ports, RunContext, RunError};

use super::common::{file_name, is_url};
use super::remote::{self, Download};
use crate::net::{ByteBudget, Client, HttpOptions};

/// Maximum number of simultaneous requests for downloads.
const MAX_OPEN: usize = 16;

/// Checks the option `files`, and declares those that can be checked for changes before a run: all
/// but URLs.
pub(super) fn declare(ports: &mut Ports<'_>, files: &Located<Vec<Located<String>>>) {
    if files.is_empty() {
        ports.fault(Fault::at(files.span(), "`files` is empty: there is nothing to read"));
    }
    for file in files.iter() {
        if !is_url(file) {
            ports.file(file);
        } else if file.contains('*') {
            let fault = Fault::at(file.span(), "URLs cannot contain wildcards");
            ports.fault(fault.hint("list each URL (write a literal star as %2A)"));
        }
    }
}

/// What to do with a file that cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnBadFile {
    /// Stop the run.
    #[default]
    Stop,
    /// Reject the file, and read the others. If none can be read, the run stops.
    Reject,
}

impl OnBadFile {
    /// Why a file is rejected; `None` if the error stops the run.
    pub(super) fn refuse(self, error: &RunError) -> Option<String> {
        let is_of_file = matches!(error, RunError::User { .. } | RunError::Dataset(_));
        (self == Self::Reject && is_of_file).then(|| error.to_string())
    }
}

/// A file that is one split.
#[derive(Debug, Serialize, Deserialize)]
pub struct FileSplit {
    /// Its name, as [`ListedFile::name`].
    pub(super) file: String,
}

impl Display for FileSplit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(file_name(&self.file))
    }
}

/// A file that the options name.
#[derive(Debug, Clone)]
pub(super) struct ListedFile {
    /// A URL, or a path relative to the folder of the pipeline file: what every machine that makes
    /// a split of it understands.
    pub(super) name: String,
    /// Where it is on this machine; `None` if it is on a web server.
    pub(super) path: Option<PathBuf>,
}

/// The files in the order of the option; the matches of a pattern are sorted.
pub(super) fn list(cx: &RunContext, files: &[Located<String>]) -> Result<Vec<ListedFile>, RunError> {
    let mut list = Vec::new();
    for file in files {
        if is_url(file) {
            let names = twinlens_pipeline::expand_braces(file)?.into_iter();
            list.extend(names.map(|name| ListedFile { name, path: None }));
            continue;
        }
        for location in cx.files.expand(file)? {
            let path = Some(location.local_copy()?);
            list.push(ListedFile { name: cx.files.name(&location), path });
        }
    }
    Ok(list)
}

/// Opens files, which may be URLs; shared by all splits of a stage.
pub(super) struct FileOpener {
    http: HttpOptions,
    client: OnceCell<Client>,
}

impl FileOpener {
    pub(super) fn new(http: HttpOptions) -> Self {
        Self { http, client: OnceCell::new() }
    }

    /// Opens a file by its [`ListedFile::name`]. A file on a server is downloaded first.
    pub(super) async fn open(&self, cx: &RunContext, file: &str) -> Result<InputFile, RunError> {
        if !is_url(file) {
            let location = cx.files.location(file)?;
            return Ok(InputFile::local(twinlens_pipeline::blocking(move || location.local_copy()).await??));
        }
        let name = file_name(file).to_string();
        let budget = || ByteBudget::new(cx.bytes_in_flight as u64);
        let client = self
            .client
            .get_or_try_init(|| async { super::network::client(cx, &self.http, budget(), MAX_OPEN, false) })
            .await?;
        let download = remote::download(client, file, &cx.files.scratch).await?;
        Ok(InputFile { name, written: file.into(), path: download.path().into(), download: Some(download) })
    }
}

#[derive(Debug)]
pub(super) struct InputFile {
    /// The last part of the path or URL, for messages.
    pub(super) name: String,
    /// The path or URL as it was given.
    written: String,
    path: PathBuf,
    download: Option<Download>,
}

impl InputFile {
    /// The path or URL, for errors: the path of a download says nothing to the user.
    pub(super) fn written(&self) -> &str {
        &self.written
    }

    /// An error that names the URL of a download instead of its copy.
    pub(super) fn name_source(&self, error: RunError) -> RunError {
        let copy = self.path.display().to_string();
        let renamed = |text: String| text.replace(&copy, &self.written);
        match error {
            RunError::Io { path, source } if path == self.path => RunError::io(&self.written, source),
            RunError::User { message, hint } => RunError::User { message: renamed(message), hint },
            RunError::Dataset(error) if self.download.is_some() => {
                RunError::User { hint: error.hint(), message: renamed(error.to_string()) }
            }
            other => other,
        }
    }

    /// A file that is here.
    pub(super) fn local(path: PathBuf) -> Self {
        let name = file_name(&path.display().to_string()).to_string();
        let written = path.display().to_string();
        Self { name, written, path, download: None }
    }

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
