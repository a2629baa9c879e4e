//! Where the rows went, and what the cap did to the queries.

use super::super::ask::ask;
use super::super::model::{Axis, Bar, Bars, Block, Chart, Lines, Plot, Section, Series, Shape, Table};
use super::Source;
use crate::errors::Failure;
use crate::text::count;

pub async fn funnel(source: &Source<'_>) -> Result<Section, Failure> {
    let (id, title) = ("funnel", "Where the rows went");
    let rows = ask(source.session, "select stage, outcome, rows from views.funnel order by position").await?;
    let mut refused = Table {
        caption: "Rows refused by a stage, and why".into(),
        head: vec![("stage", false), ("reason", false), ("rows", true)],
        ..Table::default()
    };
    let mut kept = Table {
        caption: "Rows that each stage kept".into(),
        head: vec![("stage", false), ("rows in", true), ("rows kept", true)],
        ..Table::default()
    };
    let (mut bars, mut given) = (Vec::new(), None);
    for row in rows.iter() {
        let (stage, outcome, rows) = (row.text("stage"), row.text("outcome"), row.count("rows"));
        match outcome.as_str() {
            "in" => given = Some(rows),
            "kept" => {
                kept.rows.push(vec![stage.clone(), given.take().map_or("-".into(), count), count(rows)]);
                bars.push(Bar {
                    label: stage,
                    value: rows as f64,
                    interval: None,
                    marks: vec![],
                    text: count(rows),
                });
            }
            _ => refused.rows.push(vec![stage, outcome, count(rows)]),
        }
    }
    if bars.is_empty() {
        return Ok(Section::without(id, title, "No stage has made rows yet."));
    }
    let alt = format!(
        "From {} rows of {} to {} of {}.",
        bars[0].text,
        bars[0].label,
        bars[bars.len() - 1].text,
        bars[bars.len() - 1].label
    );
    let chart = Chart {
        title: "Rows that each stage kept, in the order of the stages".into(),
        alt,
        plot: Plot::Bars(Bars { unit: "rows", bars, marks: vec![] }),
    };
    let mut blocks = vec![Block::Chart { chart, numbers: kept }];
    match refused.rows.is_empty() {
        true => blocks.push(Block::Text("No row was refused.".into())),
        false => blocks.push(refused.open()),
    }
    Ok(Section { id, title, blocks })
}

pub async fn balance(source: &Source<'_>) -> Result<Section, Failure> {
    let (id, title) = ("balance", "How queries were balanced");
    let mut blocks = Vec::new();
    for (stage, name) in source.tables_with(&["rank", "matched", "matched_upto", "contributed_upto"]) {
        let rows = ask(source.session, &format!("select * from {name} order by rank")).await?;
        let mut table = Table {
            caption: format!("What the most frequent queries match and contribute together ({stage})"),
            head: vec![
                ("queries", true),
                ("matches of the last", true),
                ("matches of all", true),
                ("contributed by all", true),
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
            "{} queries match {} times; the {} most frequent have half of it. Within the cap all contribute {}.",
            count(last.0 as u64),
            count(last.1 as u64),
            count(half as u64),
            count(kept.1 as u64)
        );
        let line = |name: &str, points| Series { name: name.into(), shape: Shape::Line(points) };
        let plot = Plot::Lines(Lines {
            x: Axis { label: "queries, the most frequent first", log: true },
            y: Axis { label: "pairs of all queries so far", log: false },
            series: vec![line("matched", matched), line("contributed", contributed)],
        });
        blocks.push(Block::Chart {
            chart: Chart { title: format!("Head and tail of the queries: {stage}"), alt, plot },
            numbers: table,
        });
    }
    let cut = source.tables_with(&["query", "matched", "contributed"]);
    for (stage, name) in cut {
        let query = format!(
            "select query, matched, contributed from {name} where matched > contributed order by matched desc, query limit 10"
        );
        let rows = ask(source.session, &query).await?;
        let table = Table {
            caption: format!("The queries that the cap cut most ({stage})"),
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
        return Ok(Section::without(id, title, "No stage of this run balances queries."));
    }
    Ok(Section { id, title, blocks })
}
