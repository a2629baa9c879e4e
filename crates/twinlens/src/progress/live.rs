//! Live lines on a terminal: one for each running stage, drawn ten times a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use twinlens_pipeline::run::events::{Counters, Event};

use super::line::Line;

const TICK: Duration = Duration::from_millis(100);

/// The live lines.
pub struct Live {
    bars: MultiProgress,
    names: usize,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
}

struct Running {
    line: Line,
    /// Drawn once the stage has started.
    bar: Option<ProgressBar>,
}

fn locked(running: &Mutex<BTreeMap<String, Running>>) -> MutexGuard<'_, BTreeMap<String, Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// No lines yet; names are padded to `names` columns.
    pub fn new(names: usize) -> Self {
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let weak = Arc::downgrade(&running);
        // Ends with the display.
        std::thread::spawn(move || draw(&weak));
        Self { bars: MultiProgress::new(), names, running }
    }

    /// Knows the counters of a stage from now on.
    pub fn watch(&self, stage: &str, counters: Arc<Counters>) {
        let line = Line::new(counters, Instant::now());
        locked(&self.running).insert(stage.into(), Running { line, bar: None });
    }

    /// Follows a stage from its start to its end.
    pub fn event(&self, event: &Event) {
        match event {
            Event::StageStarted { stage, .. } => {
                if let Some(running) = locked(&self.running).get_mut(stage) {
                    running.line.event(event);
                    running.bar = Some(self.bars.add(self.bar(stage)));
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
            Event::SplitCommitted { .. } | Event::Note { .. } => {}
        }
    }

    /// Prints a line above the live ones.
    pub fn print(&self, line: &str) {
        // Nobody is left to be told when the terminal is gone.
        let _ = self.bars.println(line);
    }

    /// Takes the live lines away.
    pub fn close(&self) {
        for (_, running) in std::mem::take(&mut *locked(&self.running)) {
            if let Some(bar) = running.bar {
                bar.finish_and_clear();
            }
        }
    }

    fn bar(&self, stage: &str) -> ProgressBar {
        let bar = ProgressBar::no_length().with_prefix(format!("{stage:width$}", width = self.names));
        // The template is a constant that is right; the default serves if it ever is not.
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
