//! Tells other processes what a run is doing, and logs without a terminal.
//!
//! In the folder `.live` of the run directory are a snapshot, replaced every second (`status`,
//! `watch`), and the steps of each running training as JSON lines (`sql`). The folder is deleted
//! when the run ends; what a killed run leaves is replaced by the next.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use twinlens_pipeline::run::directory::LIVE;
use twinlens_pipeline::run::events::{Counters, Event};

use super::line::{Line, Training};

/// How often the snapshot is replaced.
const TICK: Duration = Duration::from_secs(1);
/// How often a running stage has a line where stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// The snapshot, in the folder.
const SNAPSHOT: &str = "run.json";

/// What a run was doing at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) pid: u32,
    /// Seconds since 1970.
    pub(crate) updated: f64,
    /// Resident memory of the process in bytes; 0 if unknown.
    pub(crate) memory: u64,
    /// The stages of the pipeline that make datasets, in order.
    pub(crate) stages: Vec<String>,
    pub(crate) running: Vec<Running>,
}

/// A stage that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) stage: String,
    pub(crate) kind: String,
    /// Seconds since it started.
    pub(crate) seconds: f64,
    /// Its progress line.
    pub(crate) line: String,
    pub(crate) done: u64,
    /// 0 if unknown.
    pub(crate) total: u64,
    pub(crate) rejects: u64,
    pub(crate) bytes: u64,
    /// The last step, if it is a training.
    pub(crate) training: Option<Training>,
}

/// A step of a running training, as a line of its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: u64,
    pub(crate) loss: f32,
    pub(crate) lr: f32,
    pub(crate) samples_per_second: f32,
}

impl Snapshot {
    /// The snapshot in a run directory, if a run is in progress or was killed.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(LIVE).join(SNAPSHOT)).ok()?).ok()
    }

    /// How long ago it was written.
    pub(crate) fn age(&self) -> Duration {
        Duration::try_from_secs_f64(seconds_since_1970() - self.updated).unwrap_or_default()
    }
}

/// The steps so far of each running training, by stage. A line that is being written is left out.
pub(crate) fn steps(dir: &Path) -> BTreeMap<String, Vec<Step>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir.join(LIVE)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "jsonl")
            && let (Some(stage), Ok(text)) = (path.file_stem(), fs::read_to_string(&path))
        {
            let steps = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            found.insert(stage.to_string_lossy().into_owned(), steps);
        }
    }
    found
}

/// Records the events of a run.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    dir: PathBuf,
    stages: Vec<String>,
    prints_lines: bool,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Counters come before the stage starts.
    stages: BTreeMap<String, Stage>,
    has_ended: bool,
}

struct Stage {
    /// Set when it starts.
    started: Option<(Instant, String)>,
    line: Line,
    counters: Arc<Counters>,
    /// Steps that are not in the log yet.
    steps: Vec<u8>,
    log: Option<File>,
    printed: Instant,
}

impl Recorder {
    /// Records in a local run directory, once a stage starts. With `prints_lines`, each running
    /// stage has a line on stderr now and then.
    pub(crate) fn new(dir: PathBuf, stages: Vec<String>, prints_lines: bool) -> Self {
        let shared = Shared { dir, stages, prints_lines, state: Mutex::default(), ended: Condvar::new() };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    pub(super) fn watch(&self, stage: &str, counters: Arc<Counters>) {
        let now = Instant::now();
        let line = Line::new(counters.clone(), now);
        let stage_now = Stage { started: None, line, counters, steps: Vec::new(), log: None, printed: now };
        self.shared.state().stages.insert(stage.into(), stage_now);
    }

    pub(super) fn event(&self, event: &Event) {
        match event {
            Event::StageStarted { stage, kind, .. } => {
                if let Some(running) = self.shared.state().stages.get_mut(stage) {
                    running.line.event(event);
                    running.started = Some((Instant::now(), kind.clone()));
                }
                self.start();
            }
            Event::TrainStep { stage, step, loss, lr, samples_per_second, .. } => {
                if let Some(running) = self.shared.state().stages.get_mut(stage) {
                    running.line.event(event);
                    let (step, loss, lr) = (*step, *loss, *lr);
                    let row = Step { step, loss, lr, samples_per_second: *samples_per_second };
                    if serde_json::to_writer(&mut running.steps, &row).is_ok() {
                        running.steps.push(b'\n');
                    }
                }
            }
            Event::StageFinished { stage, .. } | Event::StageReused { stage, .. } => {
                self.shared.state().stages.remove(stage);
                // Its dataset has the log now.
                let _ = fs::remove_file(self.shared.log_path(stage));
            }
            _ => {}
        }
    }

    fn start(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = self.shared.clone();
            *thread = Some(std::thread::spawn(move || shared.write_until_end()));
        }
    }

    /// What the running stages do now.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.shared.snapshot()
    }

    /// Stops recording and deletes the folder.
    pub(super) fn close(&self) {
        self.shared.state().has_ended = true;
        self.shared.ended.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
            let _ = fs::remove_dir_all(self.shared.dir.join(LIVE));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self, stage: &str) -> PathBuf {
        self.dir.join(LIVE).join(format!("{stage}.jsonl"))
    }

    /// Errors are ignored: a run does not fail because nobody can watch it.
    fn write_until_end(&self) {
        let folder = self.dir.join(LIVE);
        let _ = fs::remove_dir_all(&folder);
        let _ = fs::create_dir_all(&folder);
        loop {
            let snapshot = self.snapshot();
            let temporary = folder.join("run.json.new");
            if let Ok(text) = serde_json::to_vec(&snapshot)
                && fs::write(&temporary, text).is_ok()
            {
                let _ = fs::rename(&temporary, folder.join(SNAPSHOT));
            }
            self.write_steps();
            if self.prints_lines {
                self.print_lines(&snapshot);
            }
            let state = self.state();
            let waited = self.ended.wait_timeout_while(state, TICK, |state| !state.has_ended);
            if waited.is_ok_and(|(state, _)| state.has_ended) {
                return;
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        let mut state = self.state();
        let running = state.stages.iter_mut().filter_map(|(stage, running)| {
            let (started, kind) = running.started.as_ref()?;
            let counters = &running.counters;
            Some(Running {
                stage: stage.clone(),
                kind: kind.clone(),
                seconds: now.duration_since(*started).as_secs_f64(),
                line: running.line.text(now),
                done: load(&counters.done),
                total: load(&counters.total),
                rejects: load(&counters.rejects),
                bytes: load(&counters.bytes),
                training: running.line.training(),
            })
        });
        Snapshot {
            running: running.collect(),
            pid: std::process::id(),
            updated: seconds_since_1970(),
            memory: resident_bytes().unwrap_or(0),
            stages: self.stages.clone(),
        }
    }

    fn write_steps(&self) {
        for (stage, running) in &mut self.state().stages {
            if running.steps.is_empty() {
                continue;
            }
            if running.log.is_none() {
                running.log = File::create(self.log_path(stage)).ok();
            }
            if let Some(log) = &mut running.log {
                let _ = log.write_all(&std::mem::take(&mut running.steps));
            }
        }
    }

    fn print_lines(&self, snapshot: &Snapshot) {
        for running in &snapshot.running {
            if let Some(stage) = self.state().stages.get_mut(&running.stage)
                && stage.printed.elapsed() >= LINE_EVERY
            {
                stage.printed = Instant::now();
                // If stderr fails, there is nowhere left to report it.
                let _ = writeln!(std::io::stderr().lock(), "{}  {}", running.stage, running.line);
            }
        }
    }
}

fn seconds_since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Resident memory of this process. Linux alone tells it without a library.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_see_the_steps_of_a_running_training() {
        let place = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(place.path().into(), vec!["images".into(), "clip".into()], false);
        recorder.watch("clip", Arc::default());
        recorder.event(&Event::StageStarted {
            stage: "clip".into(),
            kind: "train".into(),
            product: twinlens_pipeline::Product::Model,
            unit: "step",
            fused: vec![],
            splits_done: 0,
        });
        for step in 1..=3 {
            recorder.event(&Event::TrainStep {
                stage: "clip".into(),
                step,
                steps: 10,
                loss: 2.5,
                lr: 1e-3,
                samples_per_second: 100.0,
                logit_scale: 14.0,
                grad_norm: 0.5,
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while steps(place.path()).get("clip").is_none_or(|steps| steps.len() < 3) {
            assert!(Instant::now() < deadline, "no steps");
            std::thread::sleep(Duration::from_millis(20));
        }
        let snapshot = Snapshot::read(place.path()).unwrap();
        assert_eq!((snapshot.stages.len(), snapshot.running[0].stage.as_str()), (2, "clip"));
        assert!(snapshot.running[0].line.starts_with("step "), "{}", snapshot.running[0].line);
        recorder.close();
        assert!(Snapshot::read(place.path()).is_none() && steps(place.path()).is_empty());
    }
}
