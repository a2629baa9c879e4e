//! When the datasets were made, how long each took, and by what the page was written.
//!
//! A manifest is created when its stage begins, and appended to for the last time when it ends; a
//! stage that was interrupted has the time between in a file of its own.

use std::path::Path;
use std::time::{Duration, SystemTime};

use twinlens_dataset::protocol::TOOK;
use twinlens_dataset::{Dataset, MAIN, manifest};
use twinlens_pipeline::run::machine;

use super::super::model::{Block, Fact, Section, Table};
use super::super::query::ReportData;
use crate::text::{bytes, count, counted, date, seconds};

/// A stage that takes longer has its time in the file [`TOOK`].
const MINUTE: Duration = Duration::from_secs(60);

struct Timing<'a> {
    dataset: &'a Dataset,
    ended: SystemTime,
    took: Option<Duration>,
}

fn timing(dataset: &Dataset) -> Option<Timing<'_>> {
    let folder = dataset.location().as_local()?;
    let log = std::fs::metadata(folder.join(manifest::FILE)).ok()?;
    let ended = log.modified().ok()?;
    let between = log.created().ok().and_then(|began| ended.duration_since(began).ok());
    let took = recorded(folder).or(between.filter(|took| *took < MINUTE));
    Some(Timing { dataset, ended, took })
}

fn recorded(folder: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(folder.join(TOOK)).ok()?;
    Duration::try_from_secs_f64(text.trim().parse().ok()?).ok()
}

fn timings<'a>(data: &'a ReportData<'_>) -> Vec<Timing<'a>> {
    data.datasets.iter().filter_map(timing).collect()
}

/// The time of all stages, and when the last one ended.
pub(super) fn fact(data: &ReportData<'_>) -> Option<Fact> {
    let timings = timings(data);
    let last = timings.iter().map(|timing| timing.ended).max()?;
    let known: Vec<Duration> = timings.iter().filter_map(|timing| timing.took).collect();
    let stages = counted(timings.len() as u64, "dataset");
    // A copy of a run has lost its times.
    if known.is_empty() {
        let explanation = format!("the last of {stages} was made then");
        return Some(Fact { name: "Time", value: date(last), explanation });
    }
    let took: Duration = known.iter().sum();
    let unknown = timings.len() - known.len();
    let more = if unknown == 0 { String::new() } else { format!("; that of {unknown} is not known") };
    Some(Fact {
        name: "Time",
        value: seconds(took),
        explanation: format!("for {stages}{more}; the last was made on {}", date(last)),
    })
}

pub(super) fn section(data: &ReportData<'_>) -> Option<Section> {
    let timings = timings(data);
    if timings.is_empty() {
        return None;
    }
    let head = [
        ("stage", false),
        ("kind", false),
        ("made on", false),
        ("time", true),
        ("rows", true),
        ("size", true),
    ];
    let mut table = Table::new("When each dataset was made, and how long it took", &head);
    for Timing { dataset, ended, took } in &timings {
        let begin = &dataset.state().begin;
        let size = dataset.state().files().map(|file| file.bytes).sum();
        table.rows.push(vec![
            begin.stage.clone(),
            begin.kind.clone(),
            date(*ended),
            took.map_or("-".into(), seconds),
            count(dataset.rows(MAIN)),
            bytes(size),
        ]);
    }
    let version = env!("CARGO_PKG_VERSION");
    let run = data.datasets.iter().find_map(|dataset| dataset.location().as_local()?.parent());
    let machine = match run.and_then(|run| machine::recorded(&run.into())) {
        Some(machine) => {
            format!("The last dataset was made by {machine}. This page was written by twinlens {version}.")
        }
        None => format!("This page was written by twinlens {version}."),
    };
    Section::new("timing", "Times", vec![Block::Text(machine), table.at_most(100).folded()])
}
