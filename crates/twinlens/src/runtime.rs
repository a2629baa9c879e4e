//! The Tokio runtime.

use std::future::Future;

use tokio::runtime::Runtime;

use crate::errors::Failure;

/// DataFusion plans and optimises deep expressions by recursion.
pub(crate) const STACK_BYTES: usize = 16 << 20;

/// The number of cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A runtime of `threads` threads (default: one per core).
pub(crate) fn multi_thread(threads: Option<usize>) -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.unwrap_or_else(cores))
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::user(format!("cannot start threads: {error}")))
}

/// Runs `work` on `threads` threads (default: one per core). Does not wait for blocking tasks that
/// are still running.
pub(crate) fn block_on<T>(
    threads: Option<usize>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime = multi_thread(threads)?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
