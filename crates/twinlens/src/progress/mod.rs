//! Progress of a run on stderr: progress lines on a terminal, otherwise one line per finished
//! stage, or JSON.

mod line;
mod live;
pub(crate) mod metrics;
pub(crate) mod recorder;
pub(crate) mod tensorboard;

pub(crate) use live::bars;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use twinlens_pipeline::run::events::{Counters, Event, Observer};
use twinlens_pipeline::run::reasons::RejectReason;

use crate::allocator::PurgeDelay;
use crate::cli::{LogFormat, ProgressMode};
use recorder::Recorder;
use tensorboard::TensorBoard;

use crate::secrets;
use crate::text::{count, counted, one_line, printable, seconds, truncated};

/// The longest example of a rejected row, in characters.
const EXAMPLE_CHARS: usize = 120;

/// Shows the events of a run to the user.
pub(crate) struct Watcher {
    display: Display,
    name_width: usize,
    has_started: AtomicBool,
    purge_delay: PurgeDelay,
    /// The running stages, each with those that are fused into it.
    fused: Mutex<BTreeMap<String, Vec<String>>>,
    recorder: Option<Arc<Recorder>>,
    tensorboard: Option<TensorBoard>,
}

enum Display {
    Live(live::Live),
    Lines,
    Json,
    Silent,
}

impl Watcher {
    pub(crate) fn new<'a>(
        mode: ProgressMode,
        format: LogFormat,
        stages: impl Iterator<Item = &'a str>,
    ) -> Self {
        let name_width = stages.map(|name| name.chars().count()).max().unwrap_or(0);
        let display = match (format, mode) {
            (LogFormat::Json, _) => Display::Json,
            (_, ProgressMode::Silent) => Display::Silent,
            (_, ProgressMode::Auto) if std::io::stderr().is_terminal() => {
                Display::Live(live::Live::new(name_width))
            }
            _ => Display::Lines,
        };
        Self {
            display,
            name_width,
            has_started: AtomicBool::new(false),
            purge_delay: PurgeDelay::default(),
            fused: Mutex::default(),
            recorder: None,
            tensorboard: None,
        }
    }

    /// Tells other processes about the run in a local directory; on a log file, running stages have
    /// a line now and then.
    pub(crate) fn recording(self, dir: PathBuf, stages: Vec<String>, mode: ProgressMode) -> Self {
        let prints_lines = matches!((&self.display, mode), (Display::Lines, ProgressMode::Auto));
        Self { recorder: Some(Arc::new(Recorder::new(dir, stages, prints_lines))), ..self }
    }

    /// Serves the metrics of the run at an address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) fn serving_metrics(self, address: SocketAddr) -> std::io::Result<Self> {
        if let Some(recorder) = &self.recorder {
            let address = metrics::serve(address, recorder.clone())?;
            self.message(&format!("metrics at http://{address}/metrics"));
        }
        Ok(self)
    }

    /// Writes event files for TensorBoard.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn writing_tensorboard(self, folder: PathBuf) -> std::io::Result<Self> {
        Ok(Self { tensorboard: Some(TensorBoard::new(folder)?), ..self })
    }

    /// Whether any stage started, so that there is something to resume.
    pub(crate) fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Relaxed)
    }

    /// The running stage, for error messages. `None` if several are running.
    pub(crate) fn running(&self) -> Option<String> {
        let running = self.fused();
        running.keys().next().filter(|_| running.len() == 1).cloned()
    }

    fn fused(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.fused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a line above the progress lines.
    pub(crate) fn message(&self, line: &str) {
        match &self.display {
            Display::Live(live) => live.print(line),
            Display::Lines => print(line),
            Display::Json => json(&serde_json::json!({ "event": "message", "message": line })),
            Display::Silent => {}
        }
    }

    /// Removes the progress lines; a JSON log gets `event`.
    pub(crate) fn end(&self, event: &impl Serialize) {
        self.recorder.iter().for_each(|recorder| recorder.close());
        self.tensorboard.iter().for_each(TensorBoard::flush);
        match &self.display {
            Display::Live(live) => live.close(),
            Display::Lines | Display::Silent => {}
            Display::Json => json(event),
        }
    }

    /// Prints the summary of a run, unless the log is JSON, which had it as an event.
    pub(crate) fn print_summary(&self, text: &str) {
        if !matches!(self.display, Display::Json | Display::Silent) {
            print(text);
        }
    }
}

impl Observer for Watcher {
    fn event(&self, event: &Event) {
        self.purge_delay.event(event);
        self.recorder.iter().for_each(|recorder| recorder.event(event));
        self.tensorboard.iter().for_each(|tensorboard| tensorboard.event(event));
        if let Event::StageStarted { stage, fused, .. } = event {
            self.has_started.store(true, Ordering::Relaxed);
            self.fused().insert(stage.clone(), fused.clone());
        }
        let line = match event {
            Event::StageFinished { stage, .. } => {
                event_line(event, self.name_width, &self.fused().remove(stage).unwrap_or_default())
            }
            _ => event_line(event, self.name_width, &[]),
        };
        match &self.display {
            Display::Json => json(event),
            Display::Lines => line.iter().for_each(|line| print(line)),
            Display::Live(live) => {
                live.event(event);
                line.iter().for_each(|line| live.print(line));
            }
            Display::Silent => {}
        }
    }

    fn watch(&self, stage: &str, counters: Arc<Counters>) {
        self.recorder.iter().for_each(|recorder| recorder.watch(stage, counters.clone()));
        if let Display::Live(live) = &self.display {
            live.watch(stage, counters);
        }
    }
}

fn print(line: &str) {
    // If stderr fails, there is nowhere left to report it.
    let _ = writeln!(std::io::stderr().lock(), "{}", secrets::hide(line));
}

#[derive(Serialize)]
struct Timestamped<'a, T> {
    #[serde(flatten)]
    event: &'a T,
    /// Seconds since 1970.
    time: f64,
}

fn json(event: &impl Serialize) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if let Ok(line) = serde_json::to_string(&Timestamped { event, time }) {
        print(&line);
    }
}

/// The permanent line of an event, if it has one; `fused` are the stages fused into the event's.
fn event_line(event: &Event, name_width: usize, fused: &[String]) -> Option<String> {
    match event {
        Event::StageReused { stage, rows } => {
            Some(format!("{stage:name_width$}  {}  (reused)", counted(*rows, "row")))
        }
        Event::StageFinished { stage, rows, rejects, seconds: time, reasons } => {
            let mut line = format!("{stage:name_width$}  {}", counted(*rows, "row"));
            if *rejects > 0 {
                line += &format!("  {}", counted(*rejects, "reject"));
            }
            line += &format!("  {}", seconds(Duration::try_from_secs_f64(*time).unwrap_or_default()));
            if !fused.is_empty() {
                line += &format!("  (with {})", fused.join(", "));
            }
            for reason in reasons {
                line += &format!("\n{:name_width$}    {}", "", reason_line(reason, stage));
            }
            Some(line)
        }
        Event::Note { stage, message } => Some(format!("{}: {}", one_line(stage), printable(message))),
        Event::StageStarted { .. }
        | Event::SplitCommitted { .. }
        | Event::TrainStep { .. }
        | Event::Evaluated { .. } => None,
    }
}

/// `12 not_found: 404 Not Found (http://example.org/1.png)`.
pub(crate) fn reason_line(reason: &RejectReason, stage: &str) -> String {
    let mut line = format!("{} {}", count(reason.rows), one_line(&reason.code));
    if reason.stage != stage {
        line += &format!(" ({})", one_line(&reason.stage));
    }
    if let Some(example) = reason.example.as_ref().filter(|example| !example.is_empty()) {
        line += &format!(", such as: {}", truncated(&one_line(example), EXAMPLE_CHARS));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_stages_and_notes_have_lines() {
        let stage = || "wit".to_string();
        let cases = [
            (Event::StageReused { stage: stage(), rows: 3412 }, Some("wit     3,412 rows  (reused)")),
            (
                Event::StageFinished {
                    stage: stage(),
                    rows: 3412,
                    rejects: 23,
                    seconds: 14.21,
                    reasons: Vec::new(),
                },
                Some("wit     3,412 rows  23 rejects  14.2s"),
            ),
            (
                Event::StageFinished {
                    stage: stage(),
                    rows: 1,
                    rejects: 0,
                    seconds: 90.0,
                    reasons: Vec::new(),
                },
                Some("wit     1 row  1m 30s"),
            ),
            (Event::Note { stage: stage(), message: "slow\x07".into() }, Some("wit: slow\\u{7}")),
            (
                Event::StageStarted {
                    stage: stage(),
                    kind: "k".into(),
                    product: twinlens_pipeline::Product::Table,
                    unit: "row",
                    fused: vec![],
                    splits_done: 0,
                },
                None,
            ),
        ];
        for (event, expected) in cases {
            assert_eq!(event_line(&event, 6, &[]).as_deref(), expected, "{event:?}");
        }
        let event =
            Event::StageFinished { stage: stage(), rows: 0, rejects: 0, seconds: 0.0, reasons: vec![] };
        let line = event_line(&event, 3, &["pairs".into(), "long".into()]);
        assert_eq!(line.as_deref(), Some("wit  0 rows  0.0s  (with pairs, long)"));
        let reason = |stage: &str, rows, example: Option<&str>| RejectReason {
            stage: stage.into(),
            code: "gone".into(),
            rows,
            example: example.map(String::from),
        };
        let reasons = vec![reason("wit", 1200, Some("404 (http://a.example/)")), reason("long", 3, None)];
        let event = Event::StageFinished { stage: stage(), rows: 0, rejects: 1203, seconds: 0.0, reasons };
        let lines = event_line(&event, 4, &[]).unwrap();
        let expected = "wit   0 rows  1,203 rejects  0.0s\n        1,200 gone, such as: 404 (http://a.example/)\n        3 gone (long)";
        assert_eq!(lines, expected);
    }
}
