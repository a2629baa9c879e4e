//! What a stage is given when it runs: the engine's session, its inputs, a seed, a clock, a way to
//! be stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datafusion::catalog::TableProvider;
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::Dataset;

use crate::error::RunError;
use crate::files::Files;
use crate::handles::TableInput;
use crate::ranks::Ranks;
use crate::run::events::Progress;
use crate::secrets::Secrets;

/// The time of day, passed in so that a run can be repeated byte for byte.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The system's.
    System,
    /// Always the same moment (`SOURCE_DATE_EPOCH`).
    Fixed(SystemTime),
}

impl Clock {
    /// Always the same moment, in microseconds since 1970, UTC.
    pub fn at_micros(micros: i64) -> Self {
        Clock::Fixed(UNIX_EPOCH + Duration::from_micros(micros.max(0) as u64))
    }

    /// Microseconds since 1970, UTC.
    pub fn micros(&self) -> i64 {
        let now = match self {
            Clock::System => SystemTime::now(),
            Clock::Fixed(moment) => *moment,
        };
        now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as i64
    }

    /// A clock that always says what this one says now.
    pub fn stopped(&self) -> Self {
        match self {
            Clock::System => Clock::Fixed(SystemTime::now()),
            Clock::Fixed(moment) => Clock::Fixed(*moment),
        }
    }

    /// Seconds since `start`, which is in microseconds since 1970.
    pub fn seconds_since(&self, start: i64) -> f64 {
        (self.micros() - start) as f64 / 1e6
    }
}

/// The context of one stage in one run.
#[derive(Clone)]
pub struct RunContext {
    /// The stage's name.
    pub stage: String,
    /// The name of its random streams: that in the file, so that the variants of a sweep see the
    /// same data in the same order.
    pub stream: String,
    /// The engine: bounded memory, spill folder, every SQL function. No tables are registered in
    /// it.
    pub session: SessionContext,
    /// Where the files that options name are found.
    pub files: Files,
    /// The stage's seed: the pipeline's, unless it has its own. Draw from [`RunContext::rng`], not
    /// from this.
    pub seed: u64,
    /// The time of day.
    pub clock: Clock,
    /// Fires when the run should stop.
    pub cancel: CancellationToken,
    /// Counters that the progress display reads, and events.
    pub progress: Progress,
    /// Hosts that this run serves itself, on loopback: name to address. The network code connects
    /// there and allows it although it is a private address.
    pub hosts: Arc<BTreeMap<String, SocketAddr>>,
    /// The most bytes that a stage may hold in flight outside the engine's own memory pool.
    pub bytes_in_flight: usize,
    /// The processes that do this stage's job together, if there are several.
    pub ranks: Option<Arc<Ranks>>,
    /// How many processes make splits of this run: what a host may be asked is divided by it.
    pub sharers: Arc<AtomicUsize>,
    /// What must be in no file and no message.
    pub secrets: Arc<Secrets>,
}

impl RunContext {
    /// The named random stream `seed / stage / purpose`.
    pub fn rng(&self, purpose: &str) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.seed_bytes(purpose))
    }

    /// The seed of the named stream `seed / stage / purpose`, for code that draws for itself.
    pub fn seed_for(&self, purpose: &str) -> u64 {
        let bytes = self.seed_bytes(purpose);
        u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
    }

    fn seed_bytes(&self, purpose: &str) -> [u8; 32] {
        Sha256::digest(format!("{}/{}/{}", self.seed, self.stream, purpose)).into()
    }

    /// A local path of the options: relative to the pipeline file.
    pub fn path(&self, written: &str) -> PathBuf {
        self.files.base.join(written)
    }

    /// Local files with the content of those that a path, URL or pattern of the options names,
    /// sorted: remote ones are copied first.
    ///
    /// # Errors
    /// The user's, when there is none.
    pub fn local_files(&self, written: &str) -> Result<Vec<PathBuf>, RunError> {
        let found = self.files.expand(written)?;
        Ok(found.iter().map(|location| location.local_copy()).collect::<Result<_, _>>()?)
    }

    /// [`RunError::Interrupted`] once the run should stop.
    pub fn check_cancelled(&self) -> Result<(), RunError> {
        if self.cancel.is_cancelled() { Err(RunError::Interrupted) } else { Ok(()) }
    }
}

/// The tables that a running stage reads, by the handles that it got when it was planned.
#[derive(Clone)]
pub struct Inputs(Arc<[InputData]>);

impl Inputs {
    /// The tables in the order of their declaration: for tests of a running stage.
    pub fn new(tables: Vec<InputData>) -> Self {
        Self(tables.into())
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[InputData] {
        &self.0
    }

    /// The table of a handle.
    ///
    /// # Panics
    /// The handle is that of another stage: the runner opens every table that a stage declares.
    pub fn get(&self, input: &TableInput) -> &InputData {
        &self.0[input.table]
    }
}

/// One finished input of a stage.
#[derive(Clone)]
pub struct InputData {
    /// As named in the pipeline file.
    pub name: String,
    /// The table that is meant: `data` for the main one.
    pub table: String,
    /// The dataset: its shards in order, its artifacts.
    pub dataset: Dataset,
    /// Instead of a table of the dataset: one that the run computes (`funnel`, `rejects`, all
    /// variants of a swept stage).
    pub view: Option<Arc<dyn TableProvider>>,
    /// The datasets of the variants that `view` holds together; `dataset` is the first. Empty for
    /// all other inputs.
    pub variants: Vec<Dataset>,
}

impl InputData {
    /// The table that the option names, as a plan.
    pub async fn frame(&self, session: &SessionContext) -> Result<DataFrame, RunError> {
        if let Some(view) = &self.view {
            return Ok(session.read_table(view.clone())?);
        }
        Ok(self.dataset.frame(session, &self.table).await?)
    }

    /// The datasets that it is: those of all variants, or the one.
    pub fn datasets(&self) -> &[Dataset] {
        if self.variants.is_empty() { std::slice::from_ref(&self.dataset) } else { &self.variants }
    }

    /// Rows of that table.
    pub fn rows(&self) -> u64 {
        self.datasets().iter().map(|dataset| dataset.rows(&self.table)).sum()
    }

    /// A file of the dataset that is not a table: `model.safetensors`.
    pub fn artifact(&self, name: &str) -> Result<PathBuf, RunError> {
        Ok(self.dataset.artifact(name)?)
    }
}
