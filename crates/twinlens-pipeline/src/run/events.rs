//! What a run tells whoever watches it: events as they happen, and counters that may be read at any
//! time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Something that happened in a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A stage is complete already.
    StageReused {
        /// The stage.
        stage: String,
        /// Rows of its main table.
        rows: u64,
    },
    /// A stage begins or goes on.
    StageStarted {
        /// The stage.
        stage: String,
        /// Its kind.
        kind: String,
        /// The stages that are fused into its plan, before it.
        fused: Vec<String>,
        /// Splits that earlier runs committed.
        splits_done: u64,
    },
    /// A split is committed.
    SplitCommitted {
        /// The stage.
        stage: String,
        /// Which split.
        split: u64,
        /// What it was.
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
    },
    /// One step of a training.
    TrainStep {
        /// The stage.
        stage: String,
        /// The step, from 1.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// The loss of the batch.
        loss: f32,
        /// The learning rate.
        lr: f32,
        /// Pairs per second.
        samples_per_second: f32,
    },
    /// Something that the user should read, once.
    Note {
        /// The stage.
        stage: String,
        /// The sentence.
        message: String,
    },
}

/// Whoever watches a run: the progress display, a JSON log, a test.
pub trait Observer: Send + Sync {
    /// Is told of each event, from any thread; must be quick.
    fn event(&self, event: &Event);
    /// Is given the counters of a stage when it starts.
    fn watch(&self, _stage: &str, _counters: Arc<Counters>) {}
}

/// Watches nothing.
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
    /// How many there will be; 0 when it is not known.
    pub total: AtomicU64,
    /// Rows that were rejected.
    pub rejects: AtomicU64,
    /// Bytes that were read from the network or from disk.
    pub bytes: AtomicU64,
}

/// A stage's end of the counters and events.
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

    /// Counts rows (pages, steps) that are done.
    pub fn done(&self, count: u64) {
        self.counters.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Says how many there will be.
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

    /// Tells of an event.
    pub fn event(&self, event: Event) {
        self.observer.event(&event);
    }

    /// Tells the user something, once.
    pub fn note(&self, message: impl Into<String>) {
        self.event(Event::Note { stage: self.stage.clone(), message: message.into() });
    }
}
