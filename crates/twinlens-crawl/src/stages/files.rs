//! What the sources that read files share.

use twinlens_pipeline::stage::SourceSplit;
use twinlens_pipeline::{Located, RunContext, RunError};

/// One split a file.
pub(super) fn file_splits(cx: &RunContext, files: &[Located<String>]) -> Result<Vec<SourceSplit>, RunError> {
    let mut splits = Vec::new();
    for written in files {
        for path in cx.local_files(written)? {
            let label = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            splits.push(SourceSplit { label, file: path.display().to_string(), start: 0, end: u64::MAX });
        }
    }
    Ok(splits)
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

/// The file's name without its folders.
pub(super) fn short(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
