//! Reads images from local files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tracing::debug;
use twinlens_dataset::samples::Refusal;
use twinlens_image::ImageError;
use twinlens_pipeline::{Located, RunContext, RunError};

use super::body::{Body, Rejection};
use crate::net::ByteBudget;
use crate::stages::local::{self, NOT_A_FILE, NOT_FOUND, OUTSIDE, Root, UNREADABLE};

/// Most files that are open or wait for a decoder.
const MAX_OPEN: usize = 64;

/// Reads files below some folders.
#[derive(Debug)]
pub(super) struct LocalFiles {
    /// The folder of the pipeline file, where relative paths start.
    base: PathBuf,
    roots: Vec<Root>,
    budget: ByteBudget,
    open: Arc<Semaphore>,
}

impl LocalFiles {
    /// Files below these folders, whose bytes count in `budget`.
    ///
    /// # Errors
    /// A user error if one is not a directory.
    pub(super) fn open(
        cx: &RunContext,
        folders: &[Located<String>],
        budget: ByteBudget,
    ) -> Result<Self, RunError> {
        let roots = folders.iter().map(|folder| Root::open(&cx.path(folder)));
        let open = Arc::new(Semaphore::new(MAX_OPEN));
        Ok(Self { base: cx.files.base.clone(), roots: roots.collect::<Result<_, _>>()?, budget, open })
    }

    /// The content of the file that a row names; `None` if it names none, but perhaps a URL.
    pub(super) async fn read(&self, written: &str, max_bytes: u64) -> Option<Result<Body, Rejection>> {
        let path = match local::path_of(written)? {
            Ok(path) => self.base.join(path),
            Err((code, detail)) => return Some(Err(Rejection { code, detail })),
        };
        let read = self.read_file(path, max_bytes).await;
        match &read {
            Ok(body) => debug!(path = written, bytes = body.bytes.len(), "read"),
            Err((code, why)) => debug!(path = written, code, why, "failed"),
        }
        Some(read.map_err(|(code, why)| Rejection { code, detail: format!("{written}: {why}") }))
    }

    async fn read_file(&self, path: PathBuf, max_bytes: u64) -> Result<Body, Refusal> {
        // The semaphore is never closed.
        let permit = self.open.clone().acquire_owned().await.ok();
        let roots = self.roots.clone();
        let (path, bytes) = blocking(move || measure(&path, &roots)).await?;
        if bytes > max_bytes {
            let error = ImageError::TooManyBytes { bytes, limit: max_bytes };
            return Err((error.code(), error.to_string()));
        }
        let reservation = self.budget.reserve(bytes).await;
        let bytes = blocking(move || content(&path, bytes)).await?;
        Ok(Body { bytes, reservation, permit })
    }
}

/// The content of a file of this length.
fn content(path: &Path, length: u64) -> Result<Vec<u8>, Refusal> {
    let mut content = Vec::new();
    // A byte more, to see whether it grew.
    let read = File::open(path).and_then(|file| file.take(length + 1).read_to_end(&mut content));
    match read {
        Ok(read) if read as u64 == length => Ok(content),
        Ok(_) => Err((UNREADABLE, "changes while it is read".into())),
        Err(error) => Err(refuse(error)),
    }
}

/// The path of a file without links, and its length.
fn measure(path: &Path, roots: &[Root]) -> Result<(PathBuf, u64), Refusal> {
    let path = path.canonicalize().map_err(refuse)?;
    if !roots.iter().any(|root| root.holds(&path)) {
        return Err((OUTSIDE, "is not in a folder that `local` lists".into()));
    }
    let metadata = path.metadata().map_err(refuse)?;
    if metadata.is_file() { Ok((path, metadata.len())) } else { Err((NOT_A_FILE, "is not a file".into())) }
}

fn refuse(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            (NOT_FOUND, "neither a URL nor the path of a file".into())
        }
        _ => (UNREADABLE, error.to_string()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    twinlens_pipeline::blocking(work).await.map_err(|panic| (UNREADABLE, panic.to_string()))?
}
