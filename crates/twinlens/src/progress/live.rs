//! Progress lines on a terminal: one per running stage, drawn ten times per second.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use twinlens_pipeline::run::events::{Counters, Event};

use super::line::Line;
use crate::secrets;

const TICK: Duration = Duration::from_millis(100);

/// The progress lines of this process, of which there is at most one terminal.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
    &BARS
}

/// Progress lines.
pub(super) struct Live {
    name_width: usize,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
}

struct Running {
    line: Line,
    /// Set when the stage starts.
    bar: Option<ProgressBar>,
}

fn locked(running: &Mutex<BTreeMap<String, Running>>) -> MutexGuard<'_, BTreeMap<String, Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub(super) fn new(name_width: usize) -> Self {
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let weak = Arc::downgrade(&running);
        // Ends when `running` is dropped.
        std::thread::spawn(move || draw(&weak));
        Self { name_width, running }
    }

    pub(super) fn watch(&self, stage: &str, counters: Arc<Counters>) {
        let line = Line::new(counters, Instant::now());
        locked(&self.running).insert(stage.into(), Running { line, bar: None });
    }

    pub(super) fn event(&self, event: &Event) {
        match event {
            Event::StageStarted { stage, .. } => {
                if let Some(running) = locked(&self.running).get_mut(stage) {
                    running.line.event(event);
                    running.bar = Some(bars().add(self.bar(stage)));
                }
            }
            Event::TrainStep { stage, .. } => {
                if let Some(running) = locked(&self.running).get_mut(stage) {
                    running.line.event(event);
                }
            }
            Event::StageFinished { stage, .. } | Event::StageReused { stage, .. } => {
                let ended = locked(&self.running).remove(stage);
                if let Some(bar) = ended.and_then(|running| running.bar) {
                    bar.finish_and_clear();
                }
            }
            Event::SplitCommitted { .. } | Event::Evaluated { .. } | Event::Note { .. } => {}
        }
    }

    /// Prints a line above the progress lines.
    pub(super) fn print(&self, line: &str) {
        // If the terminal is gone, there is nowhere left to report it.
        let _ = bars().println(secrets::hide(line));
    }

    /// Removes all progress lines.
    pub(super) fn close(&self) {
        for (_, running) in std::mem::take(&mut *locked(&self.running)) {
            if let Some(bar) = running.bar {
                bar.finish_and_clear();
            }
        }
    }

    fn bar(&self, stage: &str) -> ProgressBar {
        let bar = ProgressBar::no_length().with_prefix(format!("{stage:width$}", width = self.name_width));
        // The template is a valid constant; if it were not, the default style would do.
        match ProgressStyle::with_template("{prefix}  {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

fn draw(running: &Weak<Mutex<BTreeMap<String, Running>>>) {
    while let Some(running) = running.upgrade() {
        for running in locked(&running).values_mut() {
            if let Some(bar) = &running.bar {
                bar.set_message(running.line.text(Instant::now()));
            }
        }
        drop(running);
        std::thread::sleep(TICK);
    }
}
