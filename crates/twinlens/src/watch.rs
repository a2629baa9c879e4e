//! `twinlens watch`: a live view of a run, from any terminal.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::run;

use crate::cli::WatchArgs;
use crate::errors::Failure;
use crate::progress::recorder::{self, Running, Snapshot};
use crate::status;
use crate::text::{Paint, bytes, counted, one_line, seconds};

/// How often the view is drawn.
const TICK: Duration = Duration::from_secs(1);
/// A snapshot of this age is of a run that was killed or stopped.
const STALE: Duration = Duration::from_secs(15);
/// Columns of the chart of a loss.
const CHART: usize = 40;
/// Reject codes shown of each stage.
const CODES: usize = 3;

pub(crate) fn execute(args: &WatchArgs) -> Result<(), Failure> {
    let dir = crate::location::parse_location(&args.dir)?;
    let pipeline = status::pipeline_of(&dir)?;
    let local = dir.local_path();
    let mut out = std::io::stdout().lock();
    let paint = Paint::stdout();
    let is_live = std::io::stdout().is_terminal();
    let mut drawn = 0;
    loop {
        let snapshot = Snapshot::read(&local).filter(|snapshot| snapshot.age() < STALE);
        let view = view(&pipeline, &dir, &local, snapshot.as_ref(), paint)?;
        if drawn > 0 {
            // Up to the first line of the last view, and clear what is below.
            write!(out, "\x1b[{drawn}A\x1b[J")?;
        }
        out.write_all(view.as_bytes())?;
        out.flush()?;
        if !is_live || snapshot.is_none() {
            return Ok(());
        }
        drawn = view.lines().count();
        std::thread::sleep(TICK);
    }
}

fn view(
    pipeline: &str,
    dir: &Location,
    local: &Path,
    snapshot: Option<&Snapshot>,
    paint: Paint,
) -> Result<String, Failure> {
    let datasets = run::datasets(dir)?;
    let mut text = format!("{} in {}", paint.bold(&one_line(pipeline)), one_line(&dir.to_string()));
    match snapshot {
        Some(snapshot) if snapshot.memory > 0 => {
            text += &format!("  process {}, {}\n", snapshot.pid, bytes(snapshot.memory));
        }
        Some(snapshot) => text += &format!("  process {}\n", snapshot.pid),
        None => text += "  not running\n",
    }
    let made: BTreeMap<&str, &Dataset> =
        datasets.iter().map(|dataset| (dataset.state().begin.stage.as_str(), dataset)).collect();
    let running: BTreeMap<&str, &Running> =
        snapshot.iter().flat_map(|s| &s.running).map(|running| (running.stage.as_str(), running)).collect();
    let fused = fused(&datasets);
    let names = match snapshot {
        Some(snapshot) => snapshot.stages.clone(),
        None => datasets.iter().map(|dataset| dataset.state().begin.stage.clone()).collect(),
    };
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let steps = recorder::steps(local);
    for name in &names {
        let shown = one_line(name);
        let line = match (running.get(name.as_str()), made.get(name.as_str()), fused.get(name)) {
            (Some(running), _, _) => format!("> {shown:width$}  {}", paint.bold(&one_line(&running.line))),
            (None, Some(dataset), _) if dataset.state().complete => {
                format!("+ {shown:width$}  {}", counted(dataset.rows(MAIN), "row"))
            }
            (None, Some(dataset), _) => {
                let splits = dataset.state().commits.len() as u64;
                format!("- {shown:width$}  {} so far", counted(splits, "split"))
            }
            (None, None, Some(into)) => format!("  {shown:width$}  (within {})", one_line(into)),
            (None, None, None) => format!("  {shown:width$}  waiting"),
        };
        text += &format!("{line}\n");
        if let Some(losses) = steps.get(name).filter(|steps| steps.len() > 1) {
            let losses: Vec<f32> = losses.iter().map(|step| step.loss).collect();
            text += &format!("  {:width$}  loss {}\n", "", chart(&losses));
        }
        if let Some(running) = running.get(name.as_str()) {
            let started = seconds(Duration::try_from_secs_f64(running.seconds).unwrap_or_default());
            text += &format!("  {:width$}  {} for {started}\n", "", one_line(&running.kind));
        }
        if let Some(codes) = made.get(name.as_str()).and_then(|dataset| codes(dataset)) {
            text += &format!("  {:width$}  {}\n", "", one_line(&codes));
        }
    }
    Ok(text)
}

/// The stages that are part of another's dataset.
fn fused(datasets: &[Dataset]) -> BTreeMap<String, String> {
    let of = |dataset: &Dataset| {
        let begin = &dataset.state().begin;
        let names: Vec<_> = begin.fused.iter().map(|(name, _)| (name.clone(), begin.stage.clone())).collect();
        names
    };
    datasets.iter().flat_map(of).collect()
}

/// The most frequent reject codes of a dataset.
fn codes(dataset: &Dataset) -> Option<String> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (code, rows) in dataset.state().rejects().into_values().flatten() {
        *counts.entry(code).or_default() += rows;
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(code, rows)| (std::cmp::Reverse(*rows), code.clone()));
    let all: u64 = counts.iter().map(|(_, rows)| rows).sum();
    let first = counts.iter().take(CODES).map(|(code, rows)| format!("{code} {rows}"));
    let shown = first.collect::<Vec<_>>().join(", ");
    let more = if counts.len() > CODES { ", ..." } else { "" };
    (all > 0).then(|| format!("{}: {shown}{more}", counted(all, "reject")))
}

/// A line of blocks: the mean of each part of the values, from the smallest to the largest mean.
fn chart(values: &[f32]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = values.len().min(CHART);
    let mean = |column: usize| {
        let part = &values[column * values.len() / columns..(column + 1) * values.len() / columns];
        part.iter().sum::<f32>() / part.len() as f32
    };
    let means: Vec<f32> = (0..columns).map(mean).collect();
    let (low, high) =
        means.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &m| (low.min(m), high.max(m)));
    let block = |mean: &f32| {
        let share = if high > low { (mean - low) / (high - low) } else { 0.0 };
        BLOCKS[(share * 7.0).round().clamp(0.0, 7.0) as usize]
    };
    let blocks: String = means.iter().map(block).collect();
    match (means.first(), means.last()) {
        (Some(first), Some(last)) => format!("{first:.3} {blocks} {last:.3}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_is_drawn_falling() {
        let falling: Vec<f32> = (0..400).map(|step| 4.0 - step as f32 / 200.0).collect();
        let drawn = chart(&falling);
        assert!(drawn.starts_with("3.97") && drawn.contains(" █") && drawn.ends_with("▁ 2.028"), "{drawn}");
        assert_eq!(drawn.chars().filter(|c| ('▁'..='█').contains(c)).count(), CHART);
        assert_eq!(chart(&[1.0, 1.0]), "1.000 ▁▁ 1.000");
        assert!(chart(&[f32::NAN, 1.0]).contains("1.000"));
    }
}
