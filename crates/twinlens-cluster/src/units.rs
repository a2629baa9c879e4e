//! The units of an executor: built once, kept while their splits come.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use datafusion::execution::runtime_env::RuntimeEnv;
use futures::FutureExt;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::storage::Location;
use twinlens_pipeline::run::Settings;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::failure::{Blame, SplitFailure};
use twinlens_pipeline::run::rebuild::Builder;
use twinlens_pipeline::run::recipe::{UnitRecipe, host_name};
use twinlens_pipeline::run::splits::Prepared;
use twinlens_pipeline::run::workers::{self, WorkEvent};
use twinlens_pipeline::secrets::Secrets;
use twinlens_pipeline::{Registry, RunError};

use crate::request::{Report, SplitRequest};
use crate::seal::{Key, Purpose, Refusal, VARIABLE};

/// Units that are kept: a run makes one or two at a time.
const KEPT: usize = 4;
/// After so many failures of its machine in a row, an executor ends: it would fail one split after
/// another.
const FAILURES_IN_A_ROW: u32 = 3;

/// What an executor builds units with.
pub struct Workshop {
    /// Its kinds of stages.
    pub registry: Registry,
    /// Limits and folders of this process. Run directory, clock and hosts are the run's.
    pub settings: Settings,
    /// The environment variables of this process.
    pub env: BTreeMap<String, String>,
    /// The memory and spill folder of all its splits.
    pub runtime: Arc<RuntimeEnv>,
    /// The key of the runs that it works for.
    pub key: Key,
    /// Is told the secrets of each pipeline.
    pub learn: fn(&Arc<Secrets>),
    /// Hides the secrets that were learnt in a text that others read.
    pub hide: fn(&str) -> String,
    /// Is told what it does.
    pub on_event: Box<dyn Fn(&WorkEvent) + Send + Sync>,
}

type Hash = [u8; 32];
type Unit = (String, Prepared);

/// Makes splits.
pub(crate) struct Units {
    workshop: Workshop,
    /// By the hash of the recipe, the last used at the end.
    kept: Mutex<VecDeque<(Hash, Arc<OnceCell<Unit>>)>>,
    /// Failures of this machine in a row.
    failures: AtomicU32,
    made: AtomicU64,
    /// Fires when this machine fails again and again.
    pub(crate) broken: CancellationToken,
}

impl Units {
    pub(crate) fn new(workshop: Workshop) -> Self {
        Self {
            workshop,
            kept: Mutex::default(),
            failures: AtomicU32::new(0),
            made: AtomicU64::new(0),
            broken: CancellationToken::new(),
        }
    }

    /// Splits that were made.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Drops what was built: its connections belong to a runtime that has ended.
    pub(crate) fn forget(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Makes the split of a sealed request and gives a sealed report.
    pub(crate) async fn report(&self, sealed: &[u8]) -> Vec<u8> {
        let made = AssertUnwindSafe(self.split(sealed)).catch_unwind().await;
        let report = match made {
            Ok(Ok(done)) => done,
            Ok(Err((label, error))) => self.failed(label, &error),
            Err(panic) => self.failed(String::new(), &RunError::Internal(panic_message(panic.as_ref()))),
        };
        // Records are made of texts and numbers.
        let body = serde_json::to_vec(&report).unwrap_or_default();
        self.workshop.key.seal(Purpose::Report, &body)
    }

    async fn split(&self, sealed: &[u8]) -> Result<Report, (String, RunError)> {
        let request = self.open(sealed).map_err(|error| (String::new(), here(error)))?;
        let label = request.task.label.clone();
        let started = Instant::now();
        let unit = self.unit(&request);
        let unit = unit.await.map_err(|error| (label.clone(), here(error)))?;
        let (stage, prepared) = unit.get().ok_or_else(|| {
            (label.clone(), RunError::Internal("a unit was built, but is not there".into()))
        })?;
        let done = prepared.split(&request.task).await.map_err(|error| (label.clone(), error))?;
        self.failures.store(0, Ordering::Relaxed);
        self.made.fetch_add(1, Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        (self.workshop.on_event)(&WorkEvent::Split { stage: stage.clone(), label, seconds });
        Ok(Report::Done { commit: done.commit, seconds })
    }

    fn open(&self, sealed: &[u8]) -> Result<SplitRequest, RunError> {
        let body = self.workshop.key.open(Purpose::Request, sealed).map_err(|refusal| {
            let what = match refusal {
                Refusal::NotSealed => "the run has no key, but this executor has one",
                Refusal::NoKey => "the run has a key, but this executor has none",
                Refusal::OtherKey => "the run has another key than this executor",
            };
            RunError::user_with_hint(what, format!("set {VARIABLE} to the same secret on all machines"))
        })?;
        serde_json::from_slice(body).map_err(|error| not_understood(&error))
    }

    /// The unit of a request, built if it is not kept.
    async fn unit(&self, request: &SplitRequest) -> Result<Arc<OnceCell<Unit>>, RunError> {
        let Workshop { registry, settings, env, runtime, learn, .. } = &self.workshop;
        settings.sharers.store(request.executors.max(1), Ordering::Relaxed);
        let unit = self.kept(Sha256::digest(request.recipe.get()).into());
        let build = async {
            let recipe: UnitRecipe =
                serde_json::from_str(request.recipe.get()).map_err(|error| not_understood(&error))?;
            let dir = Location::parse(&request.dir, Path::new(""), &settings.scratch)?;
            if !workers::is_shared(&dir) {
                return Err(RunError::Internal(format!("{dir} is not in a store")));
            }
            let settings = Settings { dir, ..settings.clone() };
            let (observer, runtime) = (Arc::new(Silent), runtime.clone());
            let builder = Builder { registry, settings: &settings, env, runtime, observer, learn: *learn };
            // A split is stopped by dropping it.
            let prepared = builder.prepare(&recipe, &CancellationToken::new()).await?;
            Ok((recipe.stage().to_string(), prepared))
        };
        unit.get_or_try_init(|| build).await?;
        Ok(unit)
    }

    fn kept(&self, hash: Hash) -> Arc<OnceCell<Unit>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().position(|(other, _)| *other == hash);
        let entry = known.and_then(|place| kept.remove(place)).unwrap_or_else(|| (hash, Arc::default()));
        let unit = entry.1.clone();
        kept.push_back(entry);
        if kept.len() > KEPT {
            kept.pop_front();
        }
        unit
    }

    fn failed(&self, label: String, error: &RunError) -> Report {
        let hide = self.workshop.hide;
        let failure = SplitFailure::new(error, &host_name());
        let (message, hint) = (hide(&failure.message), failure.hint.as_deref().map(hide));
        let failure = SplitFailure { message, hint, ..failure };
        (self.workshop.on_event)(&WorkEvent::Failed { label, message: failure.message.clone() });
        if failure.blame == Blame::Machine {
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures >= FAILURES_IN_A_ROW {
                self.broken.cancel();
            }
        }
        Report::Failed(failure)
    }
}

/// An error that is one of this machine: it is named.
fn here(error: RunError) -> RunError {
    match error {
        RunError::User { message, hint } => {
            RunError::User { message: format!("executor {}: {message}", host_name()), hint }
        }
        other => other,
    }
}

fn not_understood(error: &serde_json::Error) -> RunError {
    RunError::user_with_hint(
        format!("what the run asks is not understood: {error}"),
        "run the same build of twinlens on all machines",
    )
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").into()
}
