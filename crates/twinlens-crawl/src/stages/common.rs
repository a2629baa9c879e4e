//! Helpers of several stages.

use twinlens_pipeline::RunError;

pub(super) fn is_url(file: &str) -> bool {
    file.starts_with("http://") || file.starts_with("https://")
}

pub(super) fn arrow_error(error: arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}

/// The last part of a path, or of a URL without its query.
pub(super) fn file_name(path: &str) -> &str {
    let path = if is_url(path) { path.split(['?', '#']).next().unwrap_or(path) } else { path };
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
