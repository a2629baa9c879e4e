//! Events of a run, and counters that can be read at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::product::Product;
use crate::run::reasons::RejectReason;

/// Something that happened in a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A stage is already complete.
    StageReused {
        /// The stage.
        stage: String,
        /// Rows of its main table.
        rows: u64,
    },
    /// A stage starts or resumes.
    StageStarted {
        /// The stage.
        stage: String,
        /// Its kind.
        kind: String,
        /// What that kind makes.
        #[serde(skip)]
        product: Product,
        /// What its progress counts.
        #[serde(skip)]
        unit: &'static str,
        /// The stages fused into its plan, in order.
        fused: Vec<String>,
        /// Splits committed by earlier runs.
        splits_done: u64,
    },
    /// A split is committed.
    SplitCommitted {
        /// The stage.
        stage: String,
        /// Index of the split.
        split: u64,
        /// A description for people.
        label: String,
        /// Rows of the main table.
        rows: u64,
        /// Rejected rows.
        rejects: u64,
    },
    /// A stage is complete.
    StageFinished {
        /// The stage.
        stage: String,
        /// Rows of its main table.
        rows: u64,
        /// Rejected rows.
        rejects: u64,
        /// Seconds in this run.
        seconds: f64,
        /// The most frequent reject codes.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<RejectReason>,
    },
    /// One step of a training.
    TrainStep {
        /// The stage.
        stage: String,
        /// The step, from 1.
        step: u64,
        /// All steps.
        steps: u64,
        /// The loss of the batch.
        loss: f32,
        /// The learning rate.
        lr: f32,
        /// Pairs per second.
        samples_per_second: f32,
        /// Natural logarithm of the scale of similarities.
        logit_scale: f32,
        /// Global norm of the gradients, before clipping.
        grad_norm: f32,
    },
    /// An evaluation of a running training.
    Evaluated {
        /// The stage.
        stage: String,
        /// The step that it was after.
        step: u64,
        /// The evaluation set.
        set: String,
        /// The prompt set.
        prompts: String,
        /// The metric.
        metric: String,
        /// Its value.
        value: f64,
        /// Its value by chance.
        chance: f64,
        /// Number of examples.
        n: u64,
    },
    /// A message for the user.
    Note {
        /// The stage.
        stage: String,
        /// The text.
        message: String,
    },
}

/// Observes a run: the progress display, a JSON log, a test.
pub trait Observer: Send + Sync {
    /// Receives each event, on any thread; must return quickly.
    fn event(&self, event: &Event);
    /// Receives the counters of a stage when it starts.
    fn watch(&self, _stage: &str, _counters: Arc<Counters>) {}
}

/// Ignores all events.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event) {}
}

/// Counters of a running stage.
#[derive(Debug, Default)]
pub struct Counters {
    /// Rows (or pages, or steps) that are done.
    pub done: AtomicU64,
    /// The expected total; 0 if unknown.
    pub total: AtomicU64,
    /// Rejected rows.
    pub rejects: AtomicU64,
    /// Bytes read from the network or from disk.
    pub bytes: AtomicU64,
}

/// Reports the progress of one stage.
#[derive(Clone)]
pub struct Progress {
    /// The counters.
    pub counters: Arc<Counters>,
    observer: Arc<dyn Observer>,
    stage: String,
}

impl Progress {
    /// Progress of `stage` for `observer`.
    pub fn new(stage: &str, observer: Arc<dyn Observer>) -> Self {
        let counters = Arc::new(Counters::default());
        observer.watch(stage, counters.clone());
        Self { counters, observer, stage: stage.into() }
    }

    /// The same for events, with counters that nobody sees.
    pub(crate) fn uncounted(&self) -> Self {
        Self { counters: Arc::default(), ..self.clone() }
    }

    /// Counts rows (pages, steps) that are done.
    pub fn done(&self, count: u64) {
        self.counters.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Sets the expected total.
    pub fn total(&self, count: u64) {
        self.counters.total.store(count, Ordering::Relaxed);
    }

    /// Counts rejected rows.
    pub fn rejects(&self, count: u64) {
        self.counters.rejects.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts bytes.
    pub fn bytes(&self, count: u64) {
        self.counters.bytes.fetch_add(count, Ordering::Relaxed);
    }

    /// Sends an event.
    pub fn event(&self, event: Event) {
        self.observer.event(&event);
    }

    /// Sends a message to the user.
    pub fn note(&self, message: impl Into<String>) {
        self.event(Event::Note { stage: self.stage.clone(), message: message.into() });
    }
}
