//! The run, as its executors see it: it sends splits, one job each, and gives what comes back.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use serde_json::value::RawValue;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::Commit;
use twinlens_dataset::split_records::SplitRecords;
use twinlens_dataset::storage::Location;
use twinlens_pipeline::RunError;
use twinlens_pipeline::run::elsewhere::{Elsewhere, UnitWork};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::run::recipe::UnitRecipe;
use twinlens_pipeline::run::splits::{SplitDone, SplitTask};
use twinlens_pipeline::run::workers::SharedRun;

use crate::address::Address;
use crate::client::Scheduler;
use crate::executor::{check_build, no_scheduler};
use crate::node::SplitExec;
use crate::request::{Report, SplitRequest};
use crate::seal::{Key, Purpose, Refusal, VARIABLE};
use crate::status::{StatusClient, StatusError};
use crate::watch::{ATTEMPTS, JobEnd, Watched};

/// How often a run looks at the cluster.
const LOOK: Duration = Duration::from_secs(1);
/// Splits that the cluster has per slot, so that no executor waits for the run.
const AHEAD: usize = 2;
/// How long a run waits before the second attempt; then twice as long, and so on.
const BACK_OFF: Duration = Duration::from_millis(500);

/// How a run reaches its executors.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The scheduler.
    pub address: Address,
    /// The key of the executors.
    pub key: Key,
    /// The run directory.
    pub dir: Location,
    /// How long the run waits for a scheduler that does not answer, and for executors.
    pub patience: Duration,
    /// Tells the user something, from any thread.
    pub tell: fn(&str),
}

/// A run whose splits executors make.
pub struct ClusterRun {
    connection: Connection,
    /// Holds the run directory against other runs.
    directory: SharedRun,
    scheduler: Scheduler,
    watched: Arc<Watched>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for ClusterRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "executors of {}", self.connection.address)
    }
}

impl ClusterRun {
    /// A run over `connection`. `directory` holds its run directory.
    ///
    /// # Errors
    /// The user's: the address is malformed.
    pub fn new(connection: Connection, directory: SharedRun) -> Result<Self, RunError> {
        let scheduler = Scheduler::new(connection.address.clone(), session_name());
        let scheduler = scheduler.map_err(|error| RunError::user(error.to_string()))?;
        let watched = Arc::new(Watched::new());
        Ok(Self { connection, directory, scheduler, watched, watcher: Mutex::default() })
    }

    /// Waits for the scheduler, and begins to watch the cluster.
    async fn connect(&self, cancel: &CancellationToken) -> Result<(), RunError> {
        let Connection { address, patience, tell, .. } = &self.connection;
        let client = StatusClient::new(address.clone()).map_err(no_scheduler)?;
        let (started, mut has_told) = (Instant::now(), false);
        let status = loop {
            match client.get().await {
                Ok(status) => break status,
                Err(StatusError::NoAnswer(..)) if started.elapsed() < *patience => {}
                Err(error) => return Err(no_scheduler(error)),
            }
            if !std::mem::replace(&mut has_told, true) {
                tell(&format!("waiting for a scheduler at {address} (start it: twinlens scheduler)"));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return Err(RunError::Interrupted),
            }
        };
        check_build(address, &status.build)?;
        self.watched.look(&status);
        let watched = self.watched.clone();
        let watch = async move {
            loop {
                tokio::time::sleep(LOOK).await;
                // While the scheduler is away, what was seen last counts.
                if let Ok(status) = client.get().await {
                    watched.look(&status);
                }
                watched.changed.notify_waiters();
            }
        };
        *guard(&self.watcher) = Some(tokio::spawn(watch));
        Ok(())
    }
}

#[async_trait]
impl Elsewhere for ClusterRun {
    async fn begin(&self, lock: &Path, cancel: &CancellationToken) -> Result<(), RunError> {
        self.connect(cancel).await?;
        self.directory.begin(lock, cancel).await
    }

    fn splits<'a>(&'a self, unit: UnitWork<'a>) -> BoxStream<'a, Result<SplitDone, RunError>> {
        let UnitWork { recipe, tasks, progress, cancel, .. } = unit;
        let unit = match Unit::new(self, recipe, progress) {
            Ok(unit) => Arc::new(unit),
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        // The time without executors counts from when they are needed.
        self.watched.need_executors();
        let in_flight = FuturesUnordered::new();
        let dispatch = Dispatch { unit, waiting: tasks.into(), in_flight, cancel, has_told: false };
        stream::unfold(Some(dispatch), |dispatch| async {
            let mut dispatch = dispatch?;
            let next = dispatch.next().await?;
            let rest = next.is_ok().then_some(dispatch);
            Some((next, rest))
        })
        .boxed()
    }

    async fn end(&self) -> Result<(), RunError> {
        if let Some(watcher) = guard(&self.watcher).take() {
            watcher.abort();
        }
        self.scheduler.cancel_all().await;
        self.directory.end().await
    }
}

/// A unit whose splits executors make.
struct Unit<'a> {
    run: &'a ClusterRun,
    recipe: Box<RawValue>,
    records: SplitRecords,
    progress: Progress,
}

impl<'a> Unit<'a> {
    fn new(run: &'a ClusterRun, recipe: &UnitRecipe, progress: Progress) -> Result<Self, RunError> {
        let dataset = run.connection.dir.join(recipe.folder());
        let records = SplitRecords::new(&dataset, &recipe.fingerprint);
        let recipe = serde_json::value::to_raw_value(recipe);
        let recipe = recipe.map_err(|error| RunError::Internal(error.to_string()))?;
        Ok(Self { run, recipe, records, progress })
    }

    fn plan(&self, task: &SplitTask) -> Result<Vec<u8>, RunError> {
        let request = SplitRequest {
            dir: self.run.connection.dir.to_string(),
            recipe: self.recipe.clone(),
            task: task.clone(),
            executors: self.run.watched.executors(),
        };
        let body = serde_json::to_vec(&request).map_err(|error| RunError::Internal(error.to_string()))?;
        let sealed = self.run.connection.key.seal(Purpose::Request, &body);
        Ok(SplitExec::new(&sealed)?.encode()?)
    }

    /// Has a split made, again and again where that may help.
    async fn split(&self, task: &SplitTask) -> Result<SplitDone, RunError> {
        let split = format!("split {} ({})", task.number, task.label);
        let (mut attempts, mut unanswered) = (0, None::<Instant>);
        loop {
            let mut watch = self.run.watched.split(&self.records, task.number);
            let why = match self.run.scheduler.run(self.plan(task)?, &task.label, &mut watch).await {
                JobEnd::Report(sealed) => match self.read(&sealed)? {
                    Some(Report::Done { commit, seconds }) => {
                        if commit.split != task.number {
                            let what = format!("{split}: the answer is about split {}", commit.split);
                            return Err(RunError::Internal(what));
                        }
                        return Ok(SplitDone { commit, seconds: Some(seconds), is_own: false });
                    }
                    Some(Report::Failed(failure)) => {
                        attempts += 1;
                        if failure.is_final() || attempts >= ATTEMPTS {
                            return Err(failure.into_error(&split, attempts));
                        }
                        format!("it failed on {}: {}", failure.host, failure.message)
                    }
                    None => "it was cancelled".into(),
                },
                JobEnd::Recorded(commit) => return Ok(self.recorded(commit)),
                JobEnd::Refused(why) => {
                    let message = format!("the scheduler refuses {split}: {why}");
                    return Err(RunError::user_with_hint(message, "run the same build on all machines"));
                }
                JobEnd::Lost { why, attempts: lost } => {
                    attempts += lost;
                    why
                }
                JobEnd::Unreachable(why) => {
                    let since = *unanswered.get_or_insert_with(Instant::now);
                    let Connection { address, patience, .. } = &self.run.connection;
                    if since.elapsed() > *patience {
                        return Err(no_scheduler(StatusError::NoAnswer(address.clone(), why)));
                    }
                    why
                }
            };
            if let Some(commit) = watch.record().await? {
                return Ok(self.recorded(commit));
            }
            if attempts >= ATTEMPTS {
                return Err(RunError::user_with_hint(
                    format!("{split} was lost {attempts} times: {why}"),
                    "if executors ran out of memory: give each more, lower its --memory, --bytes-in-flight or \
                     --slots, or make splits smaller (`split_rows`); all other splits are kept",
                ));
            }
            self.progress.note(format!("{split} is sent again: {why}"));
            tokio::time::sleep(BACK_OFF * 2u32.pow(attempts.min(4))).await;
        }
    }

    /// A split that was made, but whose report was lost.
    fn recorded(&self, commit: Commit) -> SplitDone {
        SplitDone { commit, seconds: None, is_own: false }
    }

    /// The report of an executor; `None` if it was told to stop.
    fn read(&self, sealed: &[u8]) -> Result<Option<Report>, RunError> {
        if sealed.is_empty() {
            return Ok(None);
        }
        let body = self.run.connection.key.open(Purpose::Report, sealed).map_err(|refusal| {
            let what = match refusal {
                Refusal::NotSealed => "this run has a key, but an executor has none",
                Refusal::NoKey => "this run has no key, but an executor has one",
                Refusal::OtherKey => "this run has another key than an executor",
            };
            RunError::user_with_hint(what, format!("set {VARIABLE} to the same secret on all machines"))
        })?;
        let report = serde_json::from_slice(body).map_err(|error| {
            RunError::user_with_hint(
                format!("the answer of an executor is not understood: {error}"),
                "run the same build of twinlens on all machines",
            )
        })?;
        Ok(Some(report))
    }
}

/// Sends the splits of a unit, as many at a time as the cluster has room for.
struct Dispatch<'a> {
    unit: Arc<Unit<'a>>,
    waiting: VecDeque<SplitTask>,
    in_flight: FuturesUnordered<BoxFuture<'a, Result<SplitDone, RunError>>>,
    cancel: CancellationToken,
    /// Whether the user was told that there are no executors.
    has_told: bool,
}

impl Dispatch<'_> {
    /// The next split that is done; `None` if there is none to wait for.
    async fn next(&mut self) -> Option<Result<SplitDone, RunError>> {
        let watched = self.unit.run.watched.clone();
        loop {
            if self.cancel.is_cancelled() {
                self.waiting.clear();
            }
            while self.in_flight.len() < watched.slots() * AHEAD
                && let Some(task) = self.waiting.pop_front()
            {
                let unit = self.unit.clone();
                self.in_flight.push(async move { unit.split(&task).await }.boxed());
            }
            if self.waiting.is_empty() && self.in_flight.is_empty() {
                return None;
            }
            if let Err(error) = self.check_executors() {
                return Some(Err(error));
            }
            tokio::select! {
                biased;
                Some(done) = self.in_flight.next() => return Some(done),
                () = watched.changed.notified() => {}
                () = self.cancel.cancelled(), if !self.waiting.is_empty() => {}
            }
        }
    }

    /// Tells the user that there are no executors, and gives up when none comes.
    fn check_executors(&mut self) -> Result<(), RunError> {
        let run = self.unit.run;
        let Some(time) = run.watched.without_executors() else {
            self.has_told = false;
            return Ok(());
        };
        let Connection { address, patience, .. } = &run.connection;
        if time > *patience {
            return Err(RunError::user_with_hint(
                format!("there are no executors at {address}"),
                format!("start them: twinlens executor {address}; all splits that were made are kept"),
            ));
        }
        if !std::mem::replace(&mut self.has_told, true) {
            let note =
                format!("waiting for executors at {address} (start them: twinlens executor {address})");
            self.unit.progress.note(note);
        }
        Ok(())
    }
}

/// A name that no other run has.
fn session_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    let (one, two) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    format!("twinlens-{}-{one:016x}{two:016x}", std::process::id())
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
