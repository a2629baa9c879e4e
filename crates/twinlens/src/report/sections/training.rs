//! Trainings: the loss, and the evaluations on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::model::{Axis, Block, Chart, Lines, Plot, Point, Section, Series, Shape, Table};
use super::super::query::{ReportData, fetch_rows, interval, number, percent};
use crate::errors::Failure;
use crate::text::{count, seconds};

/// Limits of the chart: trainings, and points of each.
const MAX_TRAININGS: usize = 10;
const POINTS: u64 = 200;
/// At most this many metrics and lines of evaluations.
const MAX_METRICS: usize = 4;
const MAX_LINES: usize = 8;

pub(super) async fn trainings(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let mut blocks = losses(data).await?;
    blocks.extend(evaluations(data).await?);
    Ok(Section::new("training", "Training", blocks))
}

async fn losses(data: &ReportData<'_>) -> Result<Vec<Block>, Failure> {
    let tables = data.tables_with(&["step", "samples_seen", "loss", "lr", "wall"]);
    let mut table = Table::new(
        "Trainings",
        &[
            ("training", false),
            ("steps", true),
            ("pairs seen", true),
            ("first loss", true),
            ("last loss", true),
            ("time", true),
            ("pairs/s", true),
        ],
    );
    let mut series = Vec::new();
    for (stage, name) in tables.iter().take(MAX_TRAININGS) {
        // Averages over a few steps, because the loss of a single step is noisy.
        let query = format!(
            "select max(samples_seen) as seen, avg(loss) as loss, max(step) as step, sum(seconds) as seconds from (
                select *, (samples_seen - coalesce(lag(samples_seen) over (order by step), 0)) / nullif(samples_per_second, 0) as seconds
                from {name}
             ) group by floor((step - 1) * {POINTS} / (select greatest(max(step), {POINTS}) from {name})) order by 1"
        );
        let rows = fetch_rows(data.session, &query).await?;
        let points: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((row.number("seen")?, row.number("loss")?))).collect();
        let Some((first, last)) = points.first().zip(points.last()) else { continue };
        let steps = rows.iter().map(|row| row.count("step")).max().unwrap_or(0);
        let time: f64 = rows.iter().filter_map(|row| row.number("seconds")).sum();
        table.rows.push(vec![
            stage.clone(),
            count(steps),
            count(last.0 as u64),
            number(Some(first.1)),
            number(Some(last.1)),
            if time > 0.0 { seconds(Duration::from_secs_f64(time)) } else { "-".into() },
            number((time > 0.0).then(|| last.0 / time)),
        ]);
        series.push(Series { name: stage.clone(), shape: Shape::Line(points) });
    }
    if series.is_empty() {
        return Ok(Vec::new());
    }
    let (mut marks, mut changed) = (Vec::new(), Vec::new());
    for (stage, name) in data.tables_with(&["step", "samples_seen", "loss", "change"]) {
        let query = format!("select * from {name} where change is not null order by step");
        for row in fetch_rows(data.session, &query).await?.iter() {
            let step = row.count("step");
            changed.push(format!("{stage}, from step {}: {}.", count(step), row.text("change")));
            marks.extend(row.number("samples_seen").zip(row.number("loss")).map(|(x, y)| Point::at(x, y)));
        }
    }
    if !marks.is_empty() {
        let shape = Shape::Points { points: marks, hollow: true };
        series.push(Series { name: "options changed".into(), shape });
    }
    let alt = table
        .rows
        .iter()
        .map(|row| format!("{}: from {} to {} after {} pairs.", row[0], row[3], row[4], row[2]));
    let chart = Chart {
        title: "Loss by pairs seen".into(),
        alt: alt.collect::<Vec<_>>().join(" "),
        plot: Plot::Lines(Lines {
            x: Axis { label: "pairs seen", is_log: false },
            y: Axis { label: "loss", is_log: false },
            series,
        }),
    };
    let mut blocks = vec![Block::Chart { chart, numbers: table }];
    blocks.extend(changed.into_iter().map(Block::Text));
    if tables.len() > MAX_TRAININGS {
        blocks.push(Block::Text(format!("{} more trainings are omitted.", tables.len() - MAX_TRAININGS)));
    }
    Ok(blocks)
}

/// Accuracies during trainings: a chart per metric.
async fn evaluations(data: &ReportData<'_>) -> Result<Vec<Block>, Failure> {
    // Tables and lines by metric, and a line by training, set and prompts.
    let mut metrics: BTreeMap<String, (Table, BTreeMap<String, Vec<Point>>)> = BTreeMap::new();
    for (stage, name) in data.tables_with(&["step", "samples_seen", "set", "prompts", "metric", "value"]) {
        let query = format!("select * from {name} order by step, set, prompts, metric");
        for row in fetch_rows(data.session, &query).await?.iter() {
            let Some(y) = row.number("value") else { continue };
            let (set, prompts, metric) = (row.text("set"), row.text("prompts"), row.text("metric"));
            let (low, high) = (row.number("ci_low"), row.number("ci_high"));
            let (table, lines) = metrics.entry(metric.clone()).or_insert_with(|| {
                let head = [
                    ("training", false),
                    ("step", true),
                    ("set", false),
                    ("prompts", false),
                    ("value", true),
                    ("95 % interval", true),
                    ("chance", true),
                ];
                (Table::new(format!("{metric} during the training"), &head), BTreeMap::new())
            });
            table.rows.push(vec![
                stage.clone(),
                count(row.count("step")),
                set.clone(),
                prompts.clone(),
                percent(Some(y)),
                interval(low, high),
                percent(row.number("chance")),
            ]);
            let x = row.count("samples_seen") as f64;
            let points = lines.entry(format!("{stage}: {set}, {prompts}")).or_default();
            points.push(Point { x, y, interval: low.zip(high) });
        }
    }
    let block = |(metric, (numbers, lines)): (String, (Table, BTreeMap<String, Vec<Point>>))| {
        let last = |(name, points): (&String, &Vec<Point>)| {
            Some(format!("{name}: {} at the end.", percent(Some(points.last()?.y))))
        };
        let alt = lines.iter().filter_map(last).collect::<Vec<_>>().join(" ");
        let series = lines.into_iter().take(MAX_LINES).map(|(name, points)| {
            let line = points.iter().map(|point| (point.x, point.y)).collect();
            Series { name, shape: Shape::Line(line) }
        });
        let plot = Plot::Lines(Lines {
            x: Axis { label: "pairs seen", is_log: false },
            y: Axis { label: "accuracy", is_log: false },
            series: series.collect(),
        });
        let chart = Chart { title: format!("{metric} by pairs seen"), alt, plot };
        Block::Chart { chart, numbers: numbers.at_most(300) }
    };
    Ok(metrics.into_iter().take(MAX_METRICS).map(block).collect())
}
