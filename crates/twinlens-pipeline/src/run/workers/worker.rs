//! A process that makes splits of whatever run works in a directory.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use twinlens_dataset::blocking;
use twinlens_dataset::split_records::SplitRecords;
use twinlens_dataset::storage::Location;

use crate::error::RunError;
use crate::run::failure::{Blame, SplitFailure};
use crate::run::rebuild::Builder;
use crate::run::recipe::{UnitRecipe, host_name};
use crate::run::splits::Prepared;
use crate::run::workers::board::{Attempt, Board, Current, UnitBoard};
use crate::run::workers::driver::{file_name, pause, seconds};
use crate::run::workers::peers::{Peers, Repeating, beat};
use crate::run::workers::queue::{Next, Queue};

/// How often a worker without work looks for some.
const LOOK: Duration = Duration::from_millis(500);
/// After so many failures of its machine in a row, a worker gives up.
const FAILURES_IN_A_ROW: u64 = 3;
/// After so many failed looks at the directory in a row, too.
const FAILED_LOOKS: u32 = 20;

/// Something that a worker did.
#[derive(Debug, Clone)]
pub enum WorkEvent {
    /// There is no run to work for, or (`for_stage`) the run does a stage alone.
    Waiting {
        /// Whether there is a run.
        for_stage: bool,
    },
    /// It makes splits of this stage.
    Unit {
        /// The stage.
        stage: String,
        /// The splits that are left to all workers.
        splits: u64,
    },
    /// It made a split.
    Split {
        /// The stage.
        stage: String,
        /// The split.
        label: String,
        /// Seconds that it took.
        seconds: f64,
    },
    /// An attempt at a split failed; another one follows.
    Failed {
        /// The split.
        label: String,
        /// Why.
        message: String,
    },
    /// The run has ended.
    Ended,
    /// There was no work for the longest time that it waits.
    Idle,
}

/// A worker.
pub struct Worker<'a> {
    /// What it builds units with; its settings name the run directory.
    pub builder: Builder<'a>,
    /// How long it waits for work.
    pub idle: Duration,
    /// Splits that it makes at a time.
    pub slots: usize,
    /// Is told what it does.
    pub on_event: Arc<dyn Fn(&WorkEvent) + Send + Sync>,
}

impl Worker<'_> {
    /// Works until the run ends, or until there is no work for the longest time that it waits.
    /// Gives the number of splits that it made.
    ///
    /// # Errors
    /// This process would make splits otherwise than the run, or its machine fails again and again.
    pub async fn work(&self, cancel: &CancellationToken) -> Result<u64, RunError> {
        let board = Board::new(&self.builder.settings.dir);
        let mut session = Session { made: AtomicU64::new(0), shown: None, driver: 0, done: None };
        let worked = self.units(&board, &mut session, cancel).await;
        if let Some((peers, shows)) = session.shown.take() {
            drop(shows);
            blocking(move || peers.leave()).await??;
        }
        worked?;
        Ok(session.made.into_inner())
    }

    async fn units(
        &self,
        board: &Board,
        session: &mut Session,
        cancel: &CancellationToken,
    ) -> Result<(), RunError> {
        let (mut last_work, mut failed_looks, mut has_told) = (Instant::now(), 0, false);
        loop {
            if cancel.is_cancelled() {
                return Err(RunError::Interrupted);
            }
            let looking = board.clone();
            let current = match blocking(move || looking.current()).await? {
                Ok(current) => current,
                Err(error) if failed_looks >= FAILED_LOOKS => return Err(error),
                Err(error) => {
                    debug!(%error, "the run cannot be seen");
                    failed_looks += 1;
                    pause(LOOK * failed_looks, cancel).await;
                    continue;
                }
            };
            failed_looks = 0;
            if let Some(current) = &current {
                if current.is_ended && session.driver > 0 && current.driver >= session.driver {
                    (self.on_event)(&WorkEvent::Ended);
                    return Ok(());
                }
                if !current.is_ended {
                    session.driver = current.driver;
                }
                if let Some(unit) = current.unit.as_ref().filter(|unit| session.done.as_ref() != Some(unit)) {
                    self.unit(board, (current, unit), session, cancel).await?;
                    session.done = Some(unit.clone());
                    (last_work, has_told) = (Instant::now(), false);
                    continue;
                }
            }
            if !has_told && last_work.elapsed() > LOOK * 4 {
                has_told = true;
                let for_stage = current.is_some_and(|current| !current.is_ended);
                (self.on_event)(&WorkEvent::Waiting { for_stage });
            }
            if last_work.elapsed() > self.idle {
                (self.on_event)(&WorkEvent::Idle);
                return Ok(());
            }
            pause(LOOK, cancel).await;
        }
    }

    /// Makes splits of a unit until none is left or the unit is over.
    async fn unit(
        &self,
        board: &Board,
        (current, name): (&Current, &str),
        session: &mut Session,
        cancel: &CancellationToken,
    ) -> Result<(), RunError> {
        let unit_board = board.unit(name);
        let reading = unit_board.clone();
        let read = blocking(move || Ok::<_, RunError>((reading.recipe()?, reading.tasks()?)));
        let (Some(recipe), tasks) = read.await?? else { return Ok(()) };
        let prepared = self.builder.prepare(&recipe, cancel).await?;
        let peers = session.peers(board, current, self)?;
        let dataset = self.builder.settings.dir.join(recipe.folder());
        let records = SplitRecords::new(&dataset, &recipe.fingerprint);
        (self.on_event)(&WorkEvent::Unit { stage: recipe.stage().into(), splits: tasks.len() as u64 });
        let queue = Arc::new(Queue::new(unit_board.clone(), records, peers, tasks));
        let over = cancel.child_token();
        let slots = Slots {
            worker: self,
            board: unit_board,
            recipe: &recipe,
            prepared: &prepared,
            queue,
            lease: seconds(current.lease),
            over: over.clone(),
            cancel: cancel.clone(),
            made: &session.made,
            failures: AtomicU64::new(0),
        };
        let work = async {
            let done = join_all((0..self.slots.max(1)).map(|_| slots.work())).await;
            over.cancel();
            done.into_iter().collect::<Result<(), RunError>>()
        };
        let (worked, ()) = tokio::join!(work, watch(board, name, &over));
        worked
    }
}

/// What a worker remembers between units.
struct Session {
    made: AtomicU64,
    shown: Option<(Arc<Peers>, Repeating)>,
    /// The number of the last run that it saw at work; 0 before.
    driver: u64,
    /// The last unit that it worked for.
    done: Option<String>,
}

impl Session {
    /// Shows others that this process is alive, from its first unit on.
    fn peers(
        &mut self,
        board: &Board,
        current: &Current,
        worker: &Worker<'_>,
    ) -> Result<Arc<Peers>, RunError> {
        let lease = seconds(current.lease);
        if let Some((peers, _)) = self.shown.as_ref().filter(|(peers, _)| peers.lease() == lease) {
            return Ok(peers.clone());
        }
        self.shown = None;
        let random = hex::encode(rand::random::<[u8; 4]>());
        let name = format!("{}-{}-{random}", file_name(&host_name()), std::process::id());
        let peers = Peers::new(board.alive(), name, lease, worker.builder.settings.sharers.clone());
        let shows = peers.show()?;
        self.shown = Some((peers.clone(), shows));
        Ok(peers)
    }
}

/// Ends when the unit is over: then no more of its splits are begun.
async fn watch(board: &Board, unit: &str, over: &CancellationToken) {
    while !over.is_cancelled() {
        let board = board.clone();
        let current = blocking(move || board.current()).await;
        // While the store is away, the unit goes on.
        if let Ok(Ok(current)) = current
            && current.is_none_or(|current| current.unit.as_deref() != Some(unit))
        {
            over.cancel();
        }
        pause(LOOK, over).await;
    }
}

/// The slots of a worker at one unit.
struct Slots<'a> {
    worker: &'a Worker<'a>,
    board: UnitBoard,
    recipe: &'a UnitRecipe,
    prepared: &'a Prepared,
    queue: Arc<Queue>,
    lease: Duration,
    over: CancellationToken,
    cancel: CancellationToken,
    made: &'a AtomicU64,
    /// Failures of this machine in a row.
    failures: AtomicU64,
}

impl Slots<'_> {
    /// Makes one split after another.
    async fn work(&self) -> Result<(), RunError> {
        while !self.over.is_cancelled() && !self.cancel.is_cancelled() {
            let queue = self.queue.clone();
            match blocking(move || queue.next()).await?? {
                Next::Done => break,
                // A claim is not lost sooner; when the unit is over, this ends.
                Next::Wait => pause(beat(self.lease), &self.over).await,
                Next::Split(attempt, task) => match self.within_grace(self.prepared.split(&task)).await {
                    Ok(done) => {
                        self.made.fetch_add(1, Ordering::Relaxed);
                        self.failures.store(0, Ordering::Relaxed);
                        (self.worker.on_event)(&WorkEvent::Split {
                            stage: self.recipe.stage().into(),
                            label: task.label,
                            seconds: done.seconds.unwrap_or(0.0),
                        });
                    }
                    Err(RunError::Interrupted) => return Err(RunError::Interrupted),
                    Err(error) => self.failed(attempt, task.label, error).await?,
                },
            }
        }
        if self.cancel.is_cancelled() { Err(RunError::Interrupted) } else { Ok(()) }
    }

    /// After an interrupt, a split in flight has the grace period to finish.
    async fn within_grace<T>(&self, split: impl Future<Output = Result<T, RunError>>) -> Result<T, RunError> {
        let expired = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(self.worker.builder.settings.grace).await;
        };
        tokio::select! {
            biased;
            done = split => done,
            () = expired => Err(RunError::Interrupted),
        }
    }

    /// Tells the run of a failure. The fault of the user or of this program ends the run; this
    /// machine's is not worth more than a few attempts.
    async fn failed(&self, attempt: Attempt, label: String, error: RunError) -> Result<(), RunError> {
        let secrets = &self.prepared.head()?.cx.secrets;
        let failure = SplitFailure::new(&error, &host_name()).hiding(secrets);
        let blame = failure.blame;
        (self.worker.on_event)(&WorkEvent::Failed { label, message: failure.message.clone() });
        let board = self.board.clone();
        blocking(move || board.fail(attempt, &failure)).await??;
        if blame != Blame::Machine {
            self.over.cancel();
            return Ok(());
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES_IN_A_ROW { Err(error) } else { Ok(()) }
    }
}

/// Whether a run directory can be shared: it is in a store, of which `file://` is one.
pub fn is_shared(dir: &Location) -> bool {
    dir.as_local().is_none()
}
