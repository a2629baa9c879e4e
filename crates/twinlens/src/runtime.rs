//! The threads that the engine works on.

use std::future::Future;

use crate::errors::Failure;

/// Deep expressions are planned and optimised by recursion.
pub const STACK_BYTES: usize = 16 << 20;

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs `work` on `threads` threads (else one a core). Blocking work that was left behind is not
/// waited for.
pub fn block_on<T>(
    threads: Option<usize>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.unwrap_or_else(cores))
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::user(format!("no threads: {error}")))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}
