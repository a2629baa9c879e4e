//! Blocking work in async code.

use std::future::Future;

/// Blocking work that panicked.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Panicked(tokio::task::JoinError);

/// Starts blocking work at once, outside the async threads. The future gives its result.
pub fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Panicked>> {
    let running = tokio::task::spawn_blocking(work);
    async { running.await.map_err(Panicked) }
}
