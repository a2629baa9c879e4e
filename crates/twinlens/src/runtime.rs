//! The Tokio runtime.

use std::future::Future;

use crate::errors::Failure;

/// DataFusion plans and optimises deep expressions by recursion.
pub(crate) const STACK_BYTES: usize = 16 << 20;

/// The number of cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs `work` on `threads` threads (default: one per core). Does not wait for blocking tasks that
/// are still running.
pub(crate) fn block_on<T>(
    threads: Option<usize>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.unwrap_or_else(cores))
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::user(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
