//! What a run sees of its cluster, and what follows for jobs of which the scheduler says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::warn;
use twinlens_dataset::Commit;
use twinlens_dataset::split_records::SplitRecords;
use twinlens_pipeline::{RunError, blocking};

use crate::status::ClusterStatus;

/// Attempts at a split that a machine failed, or whose executors were lost.
pub(crate) const ATTEMPTS: u32 = 8;
/// How often a run looks for the record of a split in flight.
const UNTOLD: Duration = Duration::from_secs(30);
/// The same while an answer may have been lost with an executor, and for how long after its loss.
const LOST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// How a job ended.
#[derive(Debug)]
pub(crate) enum JobEnd {
    /// With a sealed report.
    Report(Vec<u8>),
    /// With a record of the split, whose report was lost.
    Recorded(Commit),
    /// Without one: executors were lost, or the result with one of them.
    Lost {
        /// Why.
        why: String,
        /// So many attempts.
        attempts: u32,
    },
    /// The scheduler does not answer, or was started again since.
    Unreachable(String),
    /// The scheduler refuses the job.
    Refused(String),
}

impl JobEnd {
    pub(crate) fn lost(why: impl Into<String>) -> Self {
        Self::Lost { why: why.into(), attempts: 1 }
    }
}

/// What a run knows of its cluster.
#[derive(Debug)]
pub(crate) struct Watched {
    seen: Mutex<Seen>,
    /// Told after each look at the cluster.
    pub(crate) changed: Notify,
}

#[derive(Debug)]
struct Seen {
    /// The scheduler that answered last.
    scheduler: Option<String>,
    /// How often another one answered.
    restarts: u64,
    /// The names of executors.
    executors: BTreeSet<String>,
    slots: usize,
    /// The attempts of jobs whose executors were lost.
    attempts: BTreeMap<String, u32>,
    /// When there was an executor last.
    had_executors: Instant,
    /// When an executor was gone.
    lost_executor: Option<Instant>,
}

impl Watched {
    pub(crate) fn new() -> Self {
        let seen = Seen {
            scheduler: None,
            restarts: 0,
            executors: BTreeSet::new(),
            slots: 0,
            attempts: BTreeMap::new(),
            had_executors: Instant::now(),
            lost_executor: None,
        };
        Self { seen: Mutex::new(seen), changed: Notify::new() }
    }

    /// Looks at a status of the cluster.
    pub(crate) fn look(&self, status: &ClusterStatus) {
        let mut seen = self.seen();
        if seen.scheduler.as_ref() != Some(&status.scheduler) {
            seen.restarts += u64::from(seen.scheduler.is_some());
            seen.scheduler = Some(status.scheduler.clone());
        }
        let names: BTreeSet<String> = status.executors.iter().map(|one| one.name.clone()).collect();
        if !seen.executors.is_subset(&names) {
            seen.lost_executor = Some(Instant::now());
        }
        if !names.is_empty() {
            seen.had_executors = Instant::now();
        }
        (seen.executors, seen.slots) = (names, status.slots());
        let again = status.in_flight.iter().filter(|split| split.attempt > 1);
        seen.attempts = again.map(|split| (split.job.clone(), split.attempt)).collect();
    }

    pub(crate) fn executors(&self) -> usize {
        self.seen().executors.len()
    }

    pub(crate) fn slots(&self) -> usize {
        self.seen().slots
    }

    /// From now on, executors are needed.
    pub(crate) fn need_executors(&self) {
        self.seen().had_executors = Instant::now();
    }

    /// For how long they are needed and there is none.
    pub(crate) fn without_executors(&self) -> Option<Duration> {
        let seen = self.seen();
        seen.executors.is_empty().then(|| seen.had_executors.elapsed())
    }

    /// Watches a split whose record would be in `records`.
    pub(crate) fn split<'a>(&'a self, records: &'a SplitRecords, number: u64) -> SplitWatch<'a> {
        let (restarts, looked) = (self.seen().restarts, Instant::now());
        SplitWatch { watched: self, records, number, restarts, looked, is_recorded: false }
    }

    /// Why a job has ended of which the scheduler says nothing.
    fn ended(&self, restarts: u64, job: &str) -> Option<JobEnd> {
        let seen = self.seen();
        if seen.restarts != restarts {
            return Some(JobEnd::Unreachable("the scheduler was started again".into()));
        }
        // Ballista gives a split whose executor was lost to another one, again and again.
        let attempt = seen.attempts.get(job).copied().unwrap_or(1);
        (attempt > ATTEMPTS).then(|| JobEnd::Lost {
            why: "each time the executor that made it was lost".into(),
            attempts: attempt - 1,
        })
    }

    fn lost_lately(&self) -> bool {
        self.seen().lost_executor.is_some_and(|at| at.elapsed() < LOST.1)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches a split while its job is in flight.
pub(crate) struct SplitWatch<'a> {
    watched: &'a Watched,
    records: &'a SplitRecords,
    number: u64,
    restarts: u64,
    looked: Instant,
    is_recorded: bool,
}

impl SplitWatch<'_> {
    /// How the job of the split has ended, though the scheduler does not say so.
    pub(crate) async fn ended(&mut self, job: &str) -> Option<JobEnd> {
        if let Some(end) = self.watched.ended(self.restarts, job) {
            return Some(end);
        }
        let pause = if self.is_recorded || self.watched.lost_lately() { LOST.0 } else { UNTOLD };
        if self.looked.elapsed() < pause {
            return None;
        }
        self.looked = Instant::now();
        match self.record().await {
            // A report that is on its way comes before the next look. Ballista's executors say once
            // that a split is made, and those that end may not say it at all.
            Ok(Some(commit)) => {
                std::mem::replace(&mut self.is_recorded, true).then_some(JobEnd::Recorded(commit))
            }
            Ok(None) => None,
            Err(error) => {
                warn!(%error, "the record of a split cannot be read");
                None
            }
        }
    }

    /// The record of the split, if it was made.
    pub(crate) async fn record(&self) -> Result<Option<Commit>, RunError> {
        let (records, number) = (self.records.clone(), self.number);
        Ok(blocking(move || records.get(number)).await??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Ended, Executor, SplitInFlight};
    use twinlens_pipeline::run::recipe::Build;

    fn status(scheduler: &str, executors: &[&str], attempt: u32) -> ClusterStatus {
        let executor = |name: &&str| Executor {
            name: (*name).into(),
            address: "10.0.0.1".into(),
            slots: 2,
            seen: 0.0,
            memory: None,
        };
        let split = SplitInFlight {
            job: "job".into(),
            label: "pairs rows 0..50".into(),
            executor: "one".into(),
            attempt,
        };
        ClusterStatus {
            scheduler: scheduler.into(),
            build: Build::this(),
            lost_after: 30.0,
            executors: executors.iter().map(executor).collect(),
            in_flight: vec![split],
            waiting: 0,
            ended: Ended::default(),
        }
    }

    #[test]
    fn lost_executors_and_new_schedulers_are_noticed() {
        let watched = Watched::new();
        assert!(watched.without_executors().is_some());
        watched.look(&status("first", &["one", "two"], 1));
        assert_eq!((watched.executors(), watched.slots()), (2, 4));
        assert!(watched.without_executors().is_none() && !watched.lost_lately());
        watched.look(&status("first", &["two", "three"], ATTEMPTS));
        assert!(watched.lost_lately());
        assert!(watched.ended(0, "job").is_none());
        watched.look(&status("first", &["two", "three"], ATTEMPTS + 1));
        assert!(matches!(watched.ended(0, "job"), Some(JobEnd::Lost { attempts: ATTEMPTS, .. })));
        // The job of another run that has the same label.
        assert!(watched.ended(0, "other").is_none());
        watched.look(&status("second", &[], 1));
        assert!(matches!(watched.ended(0, "job"), Some(JobEnd::Unreachable(_))));
        assert!(watched.ended(1, "job").is_none() && watched.without_executors().is_some());
    }
}
