//! Scaling fits: error by compute, and predictions for held-out models.

use super::super::model::{Axis, Block, Chart, Lines, Plot, Point, Section, Series, Shape, Table};
use super::super::query::{ReportData, Row, Rows, fetch_rows, interval, number, percent};
use crate::errors::Failure;
use crate::syntax::literal;

const MAX_CHARTS: usize = 6;

pub(super) async fn scaling(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let mut blocks = Vec::new();
    let mut omitted = 0;
    for (stage, name) in data.tables_with(&["compute", "role", "error", "predicted", "predicted_low"]) {
        let groups =
            format!("select distinct set, prompts, metric from {name} order by set, metric, prompts");
        for group in fetch_rows(data.session, &groups).await?.iter() {
            if blocks.len() >= MAX_CHARTS {
                omitted += 1;
                continue;
            }
            let key = ["set", "prompts", "metric"].map(|column| group.text(column));
            let query = format!(
                "select * from {name} where set = {} and prompts = {} and metric = {} order by compute, model",
                literal(&key[0]),
                literal(&key[1]),
                literal(&key[2])
            );
            let rows = fetch_rows(data.session, &query).await?;
            blocks.push(chart(&stage, &key, &rows));
        }
    }
    if omitted > 0 {
        blocks
            .push(Block::Text(format!("{omitted} more fits are in the tables `scaling` and `scaling_fit`.")));
    }
    Ok(Section::new("scaling", "Error by compute", blocks))
}

fn chart(stage: &str, [set, prompts, metric]: &[String; 3], rows: &Rows) -> Block {
    let mut table = Table {
        caption: format!("{stage}: error on {set} ({metric}, prompts {prompts}) and fit"),
        head: vec![
            ("model", false),
            ("compute (GFLOP)", true),
            ("role", false),
            ("error", true),
            ("predicted", true),
            ("95 % interval", true),
            ("within interval", false),
        ],
        ..Table::default()
    };
    let (mut line, mut band, mut predictions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fitted, mut other) = (Vec::new(), Vec::new());
    for row in rows.iter() {
        let role = row.text("role");
        let (low, high) = (row.number("predicted_low"), row.number("predicted_high"));
        let interval = interval(low, high);
        let within = match row.text("within").as_str() {
            "true" => "yes",
            "false" => "no",
            _ => "-",
        };
        table.rows.push(vec![
            row.text("model"),
            number(row.number("compute")),
            role.replace('_', " "),
            percent(row.number("error")),
            percent(row.number("predicted")),
            interval.clone(),
            within.into(),
        ]);
        let Some(compute) = row.number("compute") else { continue };
        line.extend(row.number("predicted").map(|predicted| (compute, predicted)));
        band.extend(low.zip(high).map(|(low, high)| (compute, low, high)));
        let point = point(&row, compute);
        if role == "fit" {
            fitted.extend(point);
        } else {
            other.extend(point);
            predictions.push(format!(
                "{} has a predicted error of {} ({interval}) and {}.",
                row.text("model"),
                percent(row.number("predicted")),
                row.number("error").map_or("is not trained yet".into(), |error| format!(
                    "an error of {}",
                    percent(Some(error))
                ))
            ));
        }
    }
    let mut series = Vec::new();
    if !band.is_empty() {
        series.push(Series { name: "95 % prediction interval".into(), shape: Shape::Band(band) });
    }
    series.push(Series { name: "fit".into(), shape: Shape::Line(line) });
    series.push(Series {
        name: "fitted models".into(),
        shape: Shape::Points { points: fitted, hollow: false },
    });
    if !other.is_empty() {
        series.push(Series { name: "held out".into(), shape: Shape::Points { points: other, hollow: true } });
    }
    let plot = Plot::Lines(Lines {
        x: Axis { label: "compute (GFLOP)", is_log: true },
        y: Axis { label: "error", is_log: true },
        series,
    });
    let alt = if predictions.is_empty() {
        format!("Error of {} models by compute.", table.rows.len())
    } else {
        predictions.join(" ")
    };
    Block::Chart { chart: Chart { title: table.caption.clone(), alt, plot }, numbers: table }
}

fn point(row: &Row<'_>, compute: f64) -> Option<Point> {
    let interval = row.number("error_low").zip(row.number("error_high"));
    Some(Point { x: compute, y: row.number("error")?, interval })
}
