//! The run, as its workers see it: it publishes units, records what was made, and makes splits too.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use twinlens_dataset::blocking;
use twinlens_dataset::split_records::SplitRecords;
use twinlens_dataset::storage::{Location, local};

use crate::error::RunError;
use crate::run::elsewhere::{Elsewhere, UnitWork};
use crate::run::recipe::host_name;
use crate::run::splits::SplitDone;
use crate::run::workers::board::{Board, Current, Driver};
use crate::run::workers::peers::{Peers, Repeating, beat};
use crate::run::workers::queue::{GivenUp, Next, Queue};

/// Beside the lock of a run: the token of the last run that held it.
const TOKEN: &str = "driver";
/// How often the run looks for splits that others made.
const LOOK: Duration = Duration::from_millis(250);
/// How long it waits for a worker before it tells the user how to start one.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a run shares its splits.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// The run directory.
    pub dir: Location,
    /// A process that shows no sign of life for so long is taken for dead.
    pub lease: Duration,
    /// Whether the run makes splits, too.
    pub makes_splits: bool,
    /// How many processes make splits: kept up to date for limits that they share.
    pub sharers: Arc<AtomicUsize>,
    /// Tells the user something, from any thread.
    pub tell: fn(&str),
}

/// A run whose splits workers make.
pub struct SharedRun {
    sharing: Sharing,
    board: Board,
    /// While the run goes on.
    open: Mutex<Option<Open>>,
}

impl fmt::Debug for SharedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "workers of {}", self.sharing.dir)
    }
}

/// A run that has begun.
struct Open {
    current: Arc<Mutex<Current>>,
    peers: Arc<Peers>,
    units: u64,
    /// Writes [`Current`].
    tells: Repeating,
    _observes: Repeating,
}

impl SharedRun {
    /// A run that shares its splits.
    pub fn new(sharing: Sharing) -> Self {
        Self { board: Board::new(&sharing.dir), sharing, open: Mutex::default() }
    }

    /// Enters the run in the directory, unless another one works there. Blocking.
    fn enter(&self, lock: &Path, cancel: &CancellationToken) -> Result<u64, RunError> {
        let (token_file, last) = (lock.join(TOKEN), self.board.last_driver()?);
        let number = match last {
            None => 1,
            Some((number, driver)) => {
                // It held the lock that this process holds now.
                let is_dead = local::read(&token_file)?.as_deref() == Some(driver.token.as_bytes());
                if !is_dead {
                    self.wait_for_end(number, &driver, cancel)?;
                }
                number + 1
            }
        };
        let token = hex::encode(rand::random::<[u8; 16]>());
        local::write(&token_file, token.as_bytes())?;
        let driver = Driver { host: host_name(), pid: std::process::id(), token };
        if !self.board.enter_driver(number, &driver)? {
            let other = self.board.last_driver()?.map(|(_, driver)| driver);
            return Err(self.taken(other.as_ref().unwrap_or(&driver)));
        }
        Ok(number)
    }

    /// Waits until a run that worked in the directory has surely ended.
    fn wait_for_end(&self, number: u64, driver: &Driver, cancel: &CancellationToken) -> Result<(), RunError> {
        let started = Instant::now();
        let first = self.board.current()?;
        let mut told = false;
        loop {
            let current = self.board.current()?;
            if current.as_ref().is_some_and(|current| current.driver == number && current.is_ended) {
                return Ok(());
            }
            if current != first {
                return Err(self.taken(driver));
            }
            let lease = current.map_or(self.sharing.lease, |current| seconds(current.lease));
            if started.elapsed() > lease {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(RunError::Interrupted);
            }
            if !std::mem::replace(&mut told, true) {
                let (dir, host, lease) = (&self.sharing.dir, &driver.host, lease.as_secs_f64());
                (self.sharing.tell)(&format!(
                    "a run on {host} did not end well in {dir}; waiting {lease} s, in case it lives"
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn taken(&self, driver: &Driver) -> RunError {
        let Driver { host, pid, .. } = driver;
        RunError::user_with_hint(
            format!("another run (process {pid} on {host}) is working in {}", self.sharing.dir),
            "wait for it, stop it, or choose another directory with --dir; to help it: twinlens work",
        )
    }

    /// Begins to tell workers what the run does. Blocking.
    fn open(&self, driver: u64, cancel: &CancellationToken) -> Result<Open, RunError> {
        let Sharing { lease, makes_splits, sharers, tell, .. } = &self.sharing;
        let tell = *tell;
        self.board.delete_units()?;
        let first = Current { driver, beat: 0, is_ended: false, unit: None, lease: lease.as_secs_f64() };
        let current = Arc::new(Mutex::new(first));
        let (board, told, cancel) = (self.board.clone(), current.clone(), cancel.clone());
        let tells = Repeating::start(beat(*lease), move || {
            let now = {
                let mut current = guard(&told);
                current.beat += 1;
                current.clone()
            };
            match board.has_driver(driver + 1) {
                // This process was taken for dead. What it would record now is refused anyway.
                Ok(true) => {
                    tell("another run has taken over the directory: this one ends");
                    cancel.cancel();
                }
                Ok(false) => {
                    if let Err(error) = board.set_current(&now) {
                        warn!(%error, "the workers cannot be told");
                    }
                }
                Err(error) => warn!(%error, "the workers cannot be told"),
            }
        })?;
        let name = format!("run-{driver}-{}-{}", file_name(&host_name()), std::process::id());
        let peers = Peers::new(self.board.alive(), name, *lease, sharers.clone());
        let _observes = if *makes_splits { peers.show()? } else { peers.watch()? };
        Ok(Open { current, peers, units: 0, tells, _observes })
    }

    /// Publishes a unit. Blocking.
    fn publish(&self, unit: &UnitWork<'_>) -> Result<Arc<SharedUnit>, RunError> {
        let mut open = guard(&self.open);
        let open = open.as_mut().ok_or_else(|| RunError::Internal("the run has not begun".into()))?;
        open.units += 1;
        let name = format!("{:04}-{:04}", guard(&open.current).driver, open.units);
        let board = self.board.unit(&name);
        board.publish(unit.recipe, &unit.tasks)?;
        let dataset = self.sharing.dir.join(unit.recipe.folder());
        let records = SplitRecords::new(&dataset, &unit.recipe.fingerprint);
        let queue = Queue::new(board, records.clone(), open.peers.clone(), unit.tasks.clone());
        guard(&open.current).unit = Some(name.clone());
        open.tells.act_now();
        let left = unit.tasks.iter().map(|task| task.number).collect();
        Ok(Arc::new(SharedUnit {
            queue,
            records,
            peers: open.peers.clone(),
            left: Mutex::new(left),
            given: CancellationToken::new(),
            current: open.current.clone(),
            dir: self.sharing.dir.to_string(),
        }))
    }

    fn close(open: Open, board: &Board) -> Result<(), RunError> {
        let Open { current, peers, tells, _observes, .. } = open;
        drop((tells, _observes));
        let mut last = guard(&current).clone();
        (last.is_ended, last.unit, last.beat) = (true, None, last.beat + 1);
        peers.leave()?;
        // Not over the word of a run that took over.
        if !board.has_driver(last.driver + 1)? {
            board.set_current(&last)?;
            board.delete_units()?;
        }
        Ok(())
    }
}

#[async_trait]
impl Elsewhere for SharedRun {
    async fn begin(&self, lock: &Path, cancel: &CancellationToken) -> Result<(), RunError> {
        // Waits without giving way; nothing else runs yet.
        let driver = self.enter(lock, cancel)?;
        let open = self.open(driver, cancel)?;
        *guard(&self.open) = Some(open);
        Ok(())
    }

    fn splits<'a>(&'a self, unit: UnitWork<'a>) -> BoxStream<'a, Result<SplitDone, RunError>> {
        let shared = match self.publish(&unit) {
            Ok(shared) => shared,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let slots = if self.sharing.makes_splits { unit.in_flight } else { 0 };
        let unit = Arc::new(unit);
        let mut all = vec![others_splits(shared.clone(), unit.clone()).boxed()];
        all.extend((0..slots).map(|_| own_splits(shared.clone(), unit.clone()).boxed()));
        stream::select_all(all).boxed()
    }

    async fn end(&self) -> Result<(), RunError> {
        let Some(open) = guard(&self.open).take() else { return Ok(()) };
        let board = self.board.clone();
        blocking(move || Self::close(open, &board)).await?
    }
}

/// A unit that workers can see.
struct SharedUnit {
    queue: Queue,
    records: SplitRecords,
    peers: Arc<Peers>,
    /// Splits that are not given to the run yet.
    left: Mutex<BTreeSet<u64>>,
    /// Fires when all are.
    given: CancellationToken,
    current: Arc<Mutex<Current>>,
    dir: String,
}

impl Drop for SharedUnit {
    fn drop(&mut self) {
        // Workers begin no more of its splits.
        guard(&self.current).unit = None;
    }
}

impl SharedUnit {
    fn is_over(&self, unit: &UnitWork<'_>) -> bool {
        unit.cancel.is_cancelled() || guard(&self.left).is_empty()
    }

    /// Whether this is the first that is given of a split.
    fn take(&self, split: u64) -> bool {
        let mut left = guard(&self.left);
        let is_first = left.remove(&split);
        if left.is_empty() {
            self.given.cancel();
        }
        is_first
    }

    /// Splits that others made and that were not given yet. Blocking.
    fn made_by_others(&self) -> Result<Vec<SplitDone>, RunError> {
        let Some(first) = guard(&self.left).first().copied() else { return Ok(Vec::new()) };
        let mut fresh = self.records.splits_from(first)?;
        fresh.retain(|split| guard(&self.left).contains(split));
        let mut commits = self.records.get_all(&fresh)?;
        // This process may have given one of its own meanwhile.
        commits.retain(|commit| self.take(commit.split));
        Ok(commits.into_iter().map(|commit| SplitDone { commit, seconds: None, is_own: false }).collect())
    }

    /// The error of a split that was tried too often. Blocking.
    fn given_up(&self) -> Result<(), RunError> {
        let Some(GivenUp { task, holder, failure }) = self.queue.given_up()? else { return Ok(()) };
        let split = format!("split {} ({})", task.number, task.label);
        Err(match failure {
            Some(failure) => failure.into_error(&split, super::queue::ATTEMPTS),
            None => RunError::user_with_hint(
                format!(
                    "{split} was tried {} times, and each time the process that made it was lost, last {holder}",
                    super::queue::ATTEMPTS
                ),
                "if they ran out of memory: give each machine more, lower --memory and --bytes-in-flight, \
                 or make splits smaller (`split_rows`); all other splits are kept",
            ),
        })
    }
}

/// The splits that this process makes in one of its slots.
fn own_splits<'a>(
    shared: Arc<SharedUnit>,
    unit: Arc<UnitWork<'a>>,
) -> impl futures::Stream<Item = Result<SplitDone, RunError>> + Send + 'a {
    stream::unfold(Some((shared, unit)), |state| async {
        let (shared, unit) = state?;
        loop {
            if shared.is_over(&unit) {
                return None;
            }
            let asking = shared.clone();
            let next = match blocking(move || asking.queue.next()).await {
                Ok(Ok(next)) => next,
                Ok(Err(error)) => return Some((Err(error), None)),
                Err(panic) => return Some((Err(panic.into()), None)),
            };
            match next {
                Next::Done => return None,
                // A claim is not lost sooner.
                Next::Wait => tokio::select! {
                    () = pause(beat(shared.peers.lease()), &unit.cancel) => {}
                    () = shared.given.cancelled() => {}
                },
                Next::Split(_, task) => match unit.here.split(&task).await {
                    Ok(done) if shared.take(done.commit.split) => {
                        return Some((Ok(done), Some((shared, unit))));
                    }
                    Ok(_) => {}
                    Err(error) => return Some((Err(error), None)),
                },
            }
        }
    })
}

/// What the run knows of its workers between two looks.
struct Looking<'a> {
    shared: Arc<SharedUnit>,
    unit: Arc<UnitWork<'a>>,
    found: VecDeque<SplitDone>,
    started: Instant,
    has_told: bool,
    looked_for_lost: Instant,
}

/// The splits that others make.
fn others_splits<'a>(
    shared: Arc<SharedUnit>,
    unit: Arc<UnitWork<'a>>,
) -> impl futures::Stream<Item = Result<SplitDone, RunError>> + Send + 'a {
    let now = Instant::now();
    let looking =
        Looking { shared, unit, found: VecDeque::new(), started: now, has_told: false, looked_for_lost: now };
    stream::unfold(Some(looking), |state| async {
        let mut looking = state?;
        loop {
            if let Some(done) = looking.found.pop_front() {
                return Some((Ok(done), Some(looking)));
            }
            if looking.shared.is_over(&looking.unit) {
                return None;
            }
            pause(LOOK, &looking.unit.cancel).await;
            if let Err(error) = looking.look().await {
                return Some((Err(error), None));
            }
        }
    })
}

impl Looking<'_> {
    async fn look(&mut self) -> Result<(), RunError> {
        let shared = self.shared.clone();
        self.found.extend(blocking(move || shared.made_by_others()).await??);
        if self.looked_for_lost.elapsed() > beat(self.shared.peers.lease()) {
            let shared = self.shared.clone();
            blocking(move || shared.given_up()).await??;
            self.looked_for_lost = Instant::now();
        }
        let is_alone = self.shared.peers.others() == 0;
        if is_alone && !self.has_told && self.started.elapsed() > PATIENCE {
            self.has_told = true;
            self.unit
                .progress
                .note(format!("no workers yet; start them with: twinlens work {}", self.shared.dir));
        }
        Ok(())
    }
}

/// Waits, but no longer than until `cancel` fires.
pub(super) async fn pause(time: Duration, cancel: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = cancel.cancelled() => {}
    }
}

/// A text as part of a file name.
pub(super) fn file_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// A duration of a file that others wrote.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(30))
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
