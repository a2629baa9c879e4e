//! What a run shows on stderr while it goes: live lines on a terminal, a line a finished stage
//! elsewhere, or JSON.

mod line;
mod live;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use twinlens_pipeline::run::events::{Counters, Event, Observer};

use crate::allocator::Pages;
use crate::cli::{LogFormat, ProgressMode};
use crate::text::{counted, one_line, printable, seconds};

/// Watches a run for the user.
pub struct Watcher {
    display: Display,
    /// Width of the column of stage names.
    names: usize,
    work_began: AtomicBool,
    pages: Pages,
    /// For each running stage, those that are fused into its plan.
    fused: Mutex<BTreeMap<String, Vec<String>>>,
}

enum Display {
    Live(live::Live),
    Lines,
    Json,
}

impl Watcher {
    /// A watcher of a run of stages with these names.
    pub fn new<'a>(mode: ProgressMode, format: LogFormat, stages: impl Iterator<Item = &'a str>) -> Self {
        let names = stages.map(|name| name.chars().count()).max().unwrap_or(0);
        let display = match (format, mode) {
            (LogFormat::Json, _) => Display::Json,
            (_, ProgressMode::Auto) if std::io::stderr().is_terminal() => {
                Display::Live(live::Live::new(names))
            }
            _ => Display::Lines,
        };
        Self {
            display,
            names,
            work_began: AtomicBool::new(false),
            pages: Pages::default(),
            fused: Mutex::default(),
        }
    }

    /// Whether any stage began or went on: there is something to go on with.
    pub fn work_began(&self) -> bool {
        self.work_began.load(Ordering::Relaxed)
    }

    /// The stage that has started and not ended: where an error happened. None where several ran
    /// beside each other.
    pub fn running(&self) -> Option<String> {
        let running = self.fused();
        running.keys().next().filter(|_| running.len() == 1).cloned()
    }

    fn fused(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.fused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something to the user, above the live lines.
    pub fn say(&self, line: &str) {
        match &self.display {
            Display::Live(live) => live.print(line),
            Display::Lines => print(line),
            Display::Json => json(&serde_json::json!({ "event": "message", "message": line })),
        }
    }

    /// Takes the live lines away at the end of a run; a log gets `event`.
    pub fn end(&self, event: &impl Serialize) {
        match &self.display {
            Display::Live(live) => live.close(),
            Display::Lines => {}
            Display::Json => json(event),
        }
    }

    /// Says the last words of a run, which a log has had as an event already.
    pub fn print_summary(&self, sentences: &str) {
        if !matches!(self.display, Display::Json) {
            print(sentences);
        }
    }
}

impl Observer for Watcher {
    fn event(&self, event: &Event) {
        self.pages.event(event);
        if let Event::StageStarted { stage, fused, .. } = event {
            self.work_began.store(true, Ordering::Relaxed);
            self.fused().insert(stage.clone(), fused.clone());
        }
        let line = match event {
            Event::StageFinished { stage, .. } => {
                told(event, self.names, &self.fused().remove(stage).unwrap_or_default())
            }
            _ => told(event, self.names, &[]),
        };
        match &self.display {
            Display::Json => json(event),
            Display::Lines => line.iter().for_each(|line| print(line)),
            Display::Live(live) => {
                live.event(event);
                line.iter().for_each(|line| live.print(line));
            }
        }
    }

    fn watch(&self, stage: &str, counters: Arc<Counters>) {
        if let Display::Live(live) = &self.display {
            live.watch(stage, counters);
        }
    }
}

fn print(line: &str) {
    // Nobody is left to be told when stderr fails.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[derive(Serialize)]
struct Stamped<'a, T> {
    #[serde(flatten)]
    event: &'a T,
    /// Seconds since 1970.
    time: f64,
}

fn json(event: &impl Serialize) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if let Ok(line) = serde_json::to_string(&Stamped { event, time }) {
        print(&line);
    }
}

/// The line that stays of an event, where there is one; `fused` are the stages before the one that
/// it tells of.
fn told(event: &Event, names: usize, fused: &[String]) -> Option<String> {
    match event {
        Event::StageReused { stage, rows } => {
            Some(format!("{stage:names$}  {}  (reused)", counted(*rows, "row")))
        }
        Event::StageFinished { stage, rows, rejects, seconds: time } => {
            let mut line = format!("{stage:names$}  {}", counted(*rows, "row"));
            if *rejects > 0 {
                line += &format!("  {}", counted(*rejects, "reject"));
            }
            line += &format!("  {}", seconds(Duration::try_from_secs_f64(*time).unwrap_or_default()));
            if !fused.is_empty() {
                line += &format!("  (with {})", fused.join(", "));
            }
            Some(line)
        }
        Event::Note { stage, message } => Some(format!("{}: {}", one_line(stage), printable(message))),
        Event::StageStarted { .. } | Event::SplitCommitted { .. } | Event::TrainStep { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_of_an_event() {
        let stage = || "wit".to_string();
        let cases = [
            (Event::StageReused { stage: stage(), rows: 3412 }, Some("wit     3,412 rows  (reused)")),
            (
                Event::StageFinished { stage: stage(), rows: 3412, rejects: 23, seconds: 14.21 },
                Some("wit     3,412 rows  23 rejects  14.2s"),
            ),
            (
                Event::StageFinished { stage: stage(), rows: 1, rejects: 0, seconds: 90.0 },
                Some("wit     1 row  1m 30s"),
            ),
            (Event::Note { stage: stage(), message: "slow\x07".into() }, Some("wit: slow\\u{7}")),
            (Event::StageStarted { stage: stage(), kind: "k".into(), fused: vec![], splits_done: 0 }, None),
        ];
        for (event, expected) in cases {
            assert_eq!(told(&event, 6, &[]).as_deref(), expected, "{event:?}");
        }
        let event = Event::StageFinished { stage: stage(), rows: 0, rejects: 0, seconds: 0.0 };
        let line = told(&event, 3, &["pairs".into(), "long".into()]);
        assert_eq!(line.as_deref(), Some("wit  0 rows  0.0s  (with pairs, long)"));
    }
}
