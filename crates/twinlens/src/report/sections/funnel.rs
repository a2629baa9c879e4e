//! Rows of each stage by what they are, and why rows were rejected, with examples.

use std::collections::BTreeMap;

use twinlens_dataset::{MAIN, contracts};

use super::super::model::{Bar, Bars, Block, Chart, Plot, Section, Table};
use super::super::query::{ReportData, fetch_rows};
use crate::errors::Failure;
use crate::text::count;

/// At most this many reject codes.
const MAX_CODES: usize = 50;
/// Examples are cut to this many characters.
const EXAMPLE_CHARS: usize = 160;

/// What the rows of a stage are: the column that tells it, and the unit.
const UNITS: [(&str, &str); 6] = [
    ("uid", "pairs"),
    ("loss", "steps"),
    ("ci_low", "results"),
    ("origin", "queries"),
    ("error", "results"),
    ("page_url", "pairs"),
];

pub(super) async fn funnel(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let query = "select stage, outcome, rows from views.funnel order by position";
    let rows = fetch_rows(data.session, query).await?;
    let units = units(data);
    let mut kept = Table::new(
        "Rows of each stage",
        &[("stage", false), ("unit", false), ("rows in", true), ("rows kept", true)],
    );
    let mut rejected = Vec::new();
    let (mut bars, mut rows_in) = (Vec::new(), None);
    for row in rows.iter() {
        let (stage, outcome, rows) = (row.text("stage"), row.text("outcome"), row.count("rows"));
        match outcome.as_str() {
            "in" => rows_in = Some(rows),
            "kept" => {
                // Fused stages have the unit of the dataset that holds them.
                let unit = units.get(&stage).copied().unwrap_or("pairs");
                kept.rows.push(vec![
                    stage.clone(),
                    unit.into(),
                    rows_in.take().map_or("-".into(), count),
                    count(rows),
                ]);
                if ["pairs", "images"].contains(&unit) {
                    let label = if unit == "images" { format!("{stage} (images)") } else { stage };
                    bars.push(Bar::plain(label, rows as f64, count(rows)));
                }
            }
            _ => rejected.push((stage, outcome, rows)),
        }
    }
    let mut blocks = Vec::new();
    if let Some((first, last)) = bars.first().zip(bars.last()) {
        let alt =
            format!("From {} rows of {} to {} rows of {}.", first.text, first.label, last.text, last.label);
        let title = "Pairs and images kept by each stage, in pipeline order".into();
        let plot = Plot::Bars(Bars::new("rows", bars));
        blocks.push(Block::Chart { chart: Chart { title, alt, plot }, numbers: kept });
    } else if !kept.rows.is_empty() {
        blocks.push(kept.open());
    }
    blocks.extend(reasons(data, &rejected).await?);
    Ok(Section::new("funnel", "Rows per stage", blocks))
}

/// The unit of each dataset's rows.
fn units(data: &ReportData<'_>) -> BTreeMap<String, &'static str> {
    let unit = |dataset: &twinlens_dataset::Dataset| {
        let schema = dataset.schema(MAIN).ok()?;
        if contracts::has_images(&schema) {
            return Some("images");
        }
        let known = UNITS.iter().find(|(column, _)| schema.field_with_name(column).is_ok());
        Some(known.map_or("rows", |(_, unit)| unit))
    };
    let named =
        |dataset: &twinlens_dataset::Dataset| Some((dataset.state().begin.stage.clone(), unit(dataset)?));
    data.datasets.iter().filter_map(named).collect()
}

/// The reject codes with an example each.
async fn reasons(data: &ReportData<'_>, codes: &[(String, String, u64)]) -> Result<Option<Block>, Failure> {
    if codes.is_empty() {
        return Ok(None);
    }
    let query = "select reject_stage, reject_code, min(case when url is null then '' else url || ': ' end || coalesce(reject_detail, '')) as example
         from rejects group by 1, 2";
    let mut examples = BTreeMap::new();
    for row in fetch_rows(data.session, query).await?.iter() {
        examples.insert((row.text("reject_stage"), row.text("reject_code")), row.text("example"));
    }
    let mut table = Table::new(
        "Rejected rows, with one example of each code",
        &[("stage", false), ("reject code", false), ("rows", true), ("example", false)],
    );
    for (stage, code, rows) in codes {
        let example = examples.get(&(stage.clone(), code.clone())).cloned().unwrap_or_default();
        let example = example.trim_end_matches(": ").chars().take(EXAMPLE_CHARS).collect();
        table.rows.push(vec![stage.clone(), code.clone(), count(*rows), example]);
    }
    Ok(Some(table.at_most(MAX_CODES).open()))
}
