//! How the loss fell.

use super::super::ask::{ask, number};
use super::super::model::{Axis, Block, Chart, Lines, Plot, Section, Series, Shape, Table};
use super::Source;
use crate::errors::Failure;
use crate::text::count;

/// Trainings that are shown, and points of each.
const TRAININGS: usize = 10;
const POINTS: u64 = 200;

pub async fn losses(source: &Source<'_>) -> Result<Section, Failure> {
    let (id, title) = ("training", "How it was trained");
    let tables = source.tables_with(&["step", "samples_seen", "loss", "lr"]);
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
    for (stage, name) in tables.iter().take(TRAININGS) {
        // The mean of a few steps each: one is noise.
        let query = format!(
            "select max(samples_seen) as seen, avg(loss) as loss, max(step) as step from {name}
             group by floor((step - 1) * {POINTS} / (select greatest(max(step), {POINTS}) from {name})) order by 1"
        );
        let rows = ask(source.session, &query).await?;
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
        return Ok(Section::without(id, title, "This run has no training."));
    }
    let alt = table
        .rows
        .iter()
        .map(|row| format!("{}: from {} to {} after {} pairs.", row[0], row[3], row[4], row[2]));
    let chart = Chart {
        title: "Loss over the pairs seen".into(),
        alt: alt.collect::<Vec<_>>().join(" "),
        plot: Plot::Lines(Lines {
            x: Axis { label: "pairs seen", log: false },
            y: Axis { label: "loss", log: false },
            series,
        }),
    };
    let mut blocks = vec![Block::Chart { chart, numbers: table }];
    if tables.len() > TRAININGS {
        blocks.push(Block::Text(format!("{} more trainings are left out.", tables.len() - TRAININGS)));
    }
    Ok(Section { id, title, blocks })
}
