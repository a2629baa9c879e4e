//! The processes that do a job together, as ranks that a launcher started.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, TryLockError};
use twinlens_ranks::{Collective, Transport};

use crate::error::RunError;

/// What a stage says of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedJob {
    /// What they are, if its options say so.
    pub transport: Option<Transport>,
}

/// The ranks of a run, of which this process is one.
#[derive(Debug)]
pub struct Ranks {
    /// How they reach each other.
    pub collective: Arc<dyn Collective>,
    /// The number among the ranks of this machine: that of its GPU.
    pub local_rank: usize,
    /// Threads that each rank computes on.
    pub threads: usize,
    /// Held while the ranks are in a job.
    busy: Mutex<()>,
}

impl Ranks {
    /// Ranks that have met.
    pub fn new(collective: Arc<dyn Collective>, local_rank: usize, threads: usize) -> Self {
        Self { collective, local_rank, threads, busy: Mutex::new(()) }
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Tells the other ranks that this one cannot finish its part of a job. Blocking.
    pub fn abort(&self, error: &RunError) {
        self.collective.abort(error.exit_code(), &error.to_string());
    }

    /// Waits until the ranks are in no job. They are in one until the guard is dropped.
    pub(crate) async fn begin_job(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().await
    }

    /// As [`begin_job`](Self::begin_job), without waiting.
    pub(crate) fn try_begin_job(&self) -> Result<MutexGuard<'_, ()>, TryLockError> {
        self.busy.try_lock()
    }
}
