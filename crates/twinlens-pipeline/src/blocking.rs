//! Blocking work in async code.

use crate::error::RunError;

/// Runs blocking work outside the async threads; a panic becomes an error.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RunError::Internal(error.to_string()))
}
