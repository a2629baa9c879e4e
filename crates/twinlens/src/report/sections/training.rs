//! Training losses.

use super::super::model::{Axis, Block, Chart, Lines, Plot, Section, Series, Shape, Table};
use super::super::query::{ReportData, fetch_rows, number};
use crate::errors::Failure;
use crate::text::count;

/// Limits of the chart: trainings, and points of each.
const MAX_TRAININGS: usize = 10;
const POINTS: u64 = 200;

pub(super) async fn losses(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("training", "Training");
    let tables = data.tables_with(&["step", "samples_seen", "loss", "lr"]);
    let mut table = Table {
        caption: "Trainings".into(),
        head: vec![
            ("training", false),
            ("steps", true),
            ("pairs seen", true),
            ("first loss", true),
            ("last loss", true),
        ],
        ..Table::default()
    };
    let mut series = Vec::new();
    for (stage, name) in tables.iter().take(MAX_TRAININGS) {
        // Averages over a few steps, because the loss of a single step is noisy.
        let query = format!(
            "select max(samples_seen) as seen, avg(loss) as loss, max(step) as step from {name}
             group by floor((step - 1) * {POINTS} / (select greatest(max(step), {POINTS}) from {name})) order by 1"
        );
        let rows = fetch_rows(data.session, &query).await?;
        let points: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((row.number("seen")?, row.number("loss")?))).collect();
        let Some((first, last)) = points.first().zip(points.last()) else { continue };
        let steps = rows.iter().map(|row| row.count("step")).max().unwrap_or(0);
        table.rows.push(vec![
            stage.clone(),
            count(steps),
            count(last.0 as u64),
            number(Some(first.1)),
            number(Some(last.1)),
        ]);
        series.push(Series { name: stage.clone(), shape: Shape::Line(points) });
    }
    if series.is_empty() {
        return Ok(Section::empty(id, title, "This run has no training."));
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
    if tables.len() > MAX_TRAININGS {
        blocks.push(Block::Text(format!("{} more trainings are omitted.", tables.len() - MAX_TRAININGS)));
    }
    Ok(Section { id, title, blocks })
}
