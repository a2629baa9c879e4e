//! Rows and rejects per stage, and query balancing.

use super::super::model::{Axis, Bar, Bars, Block, Chart, Lines, Plot, Section, Series, Shape, Table};
use super::super::query::{ReportData, fetch_rows};
use crate::errors::Failure;
use crate::text::count;

pub(super) async fn funnel(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("funnel", "Rows per stage");
    let rows =
        fetch_rows(data.session, "select stage, outcome, rows from views.funnel order by position").await?;
    let mut rejected = Table {
        caption: "Rejected rows".into(),
        head: vec![("stage", false), ("reject code", false), ("rows", true)],
        ..Table::default()
    };
    let mut kept = Table {
        caption: "Rows kept by each stage".into(),
        head: vec![("stage", false), ("rows in", true), ("rows kept", true)],
        ..Table::default()
    };
    let (mut bars, mut rows_in) = (Vec::new(), None);
    for row in rows.iter() {
        let (stage, outcome, rows) = (row.text("stage"), row.text("outcome"), row.count("rows"));
        match outcome.as_str() {
            "in" => rows_in = Some(rows),
            "kept" => {
                kept.rows.push(vec![stage.clone(), rows_in.take().map_or("-".into(), count), count(rows)]);
                bars.push(Bar {
                    label: stage,
                    value: rows as f64,
                    interval: None,
                    marks: vec![],
                    text: count(rows),
                });
            }
            _ => rejected.rows.push(vec![stage, outcome, count(rows)]),
        }
    }
    if bars.is_empty() {
        return Ok(Section::empty(id, title, "No stage has finished yet."));
    }
    let alt = format!(
        "From {} rows of {} to {} rows of {}.",
        bars[0].text,
        bars[0].label,
        bars[bars.len() - 1].text,
        bars[bars.len() - 1].label
    );
    let chart = Chart {
        title: "Rows kept by each stage, in pipeline order".into(),
        alt,
        plot: Plot::Bars(Bars { unit: "rows", bars, marks: vec![] }),
    };
    let mut blocks = vec![Block::Chart { chart, numbers: kept }];
    blocks.push(if rejected.rows.is_empty() {
        Block::Text("No row was rejected.".into())
    } else {
        rejected.open()
    });
    Ok(Section { id, title, blocks })
}

pub(super) async fn balance(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("balance", "Query balancing");
    let mut blocks = Vec::new();
    for (stage, name) in data.tables_with(&["rank", "matched", "matched_upto", "contributed_upto"]) {
        let rows = fetch_rows(data.session, &format!("select * from {name} order by rank")).await?;
        let mut table = Table {
            caption: format!("Cumulative matches and contributions of the most frequent queries ({stage})"),
            head: vec![
                ("queries", true),
                ("matches of the last query", true),
                ("cumulative matches", true),
                ("cumulative contributions", true),
            ],
            ..Table::default()
        };
        let (mut matched, mut contributed) = (Vec::new(), Vec::new());
        for row in rows.iter() {
            let values =
                ["rank", "matched", "matched_upto", "contributed_upto"].map(|column| row.count(column));
            table.rows.push(values.iter().map(|value| count(*value)).collect());
            matched.push((values[0] as f64, values[2] as f64));
            contributed.push((values[0] as f64, values[3] as f64));
        }
        let (Some(last), Some(kept)) = (matched.last().copied(), contributed.last().copied()) else {
            continue;
        };
        let half = matched.iter().find(|(_, upto)| *upto >= last.1 / 2.0).map_or(last.0, |(rank, _)| *rank);
        let alt = format!(
            "{} queries have {} matches; the {} most frequent queries have half of them. Capped, they contribute {}.",
            count(last.0 as u64),
            count(last.1 as u64),
            count(half as u64),
            count(kept.1 as u64)
        );
        let line = |name: &str, points| Series { name: name.into(), shape: Shape::Line(points) };
        let plot = Plot::Lines(Lines {
            x: Axis { label: "queries, most frequent first", is_log: true },
            y: Axis { label: "cumulative pairs", is_log: false },
            series: vec![line("matched", matched), line("contributed", contributed)],
        });
        blocks.push(Block::Chart {
            chart: Chart { title: format!("Head and tail queries: {stage}"), alt, plot },
            numbers: table,
        });
    }
    let capped = data.tables_with(&["query", "matched", "contributed"]);
    for (stage, name) in capped {
        let query = format!(
            "select query, matched, contributed from {name} where matched > contributed order by matched desc, query limit 10"
        );
        let rows = fetch_rows(data.session, &query).await?;
        let table = Table {
            caption: format!("Queries most reduced by the cap ({stage})"),
            head: vec![("query", false), ("matched", true), ("contributed", true)],
            rows: rows
                .iter()
                .map(|row| {
                    vec![row.text("query"), count(row.count("matched")), count(row.count("contributed"))]
                })
                .collect(),
            more: 0,
        };
        if !table.rows.is_empty() {
            blocks.push(table.open());
        }
    }
    if blocks.is_empty() {
        return Ok(Section::empty(id, title, "This run has no `balance` stage."));
    }
    Ok(Section { id, title, blocks })
}
