//! Query balancing: matches and contributions, from the most frequent query to the rarest.

use super::super::model::{Axis, Block, Chart, Lines, Plot, Section, Series, Shape, Table};
use super::super::query::{ReportData, fetch_rows};
use crate::errors::Failure;
use crate::text::count;

pub(super) async fn balance(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
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
    Ok(Section::new("balance", "Query balancing", blocks))
}
