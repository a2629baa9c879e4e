//! Hashes of the evaluations, and the options of every stage.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::model::{Block, Section, Table};
use super::super::query::{ReportData, fetch_rows};
use crate::errors::Failure;
use crate::text::count;
use twinlens_dataset::{Dataset, MAIN};

/// Hashes are truncated to this many characters.
const HASH: usize = 12;

pub(super) async fn hashes(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let columns = ["set_hash", "classes_hash", "prompts_hash", "weights_hash"];
    let needed = [&["model", "set", "prompts", "metric", "n", "value"], &columns[..]].concat();
    let mut table = Table {
        caption: format!(
            "The first {HASH} digits of each hash: two accuracies are comparable if set, classes and prompts have the same hashes"
        ),
        head: vec![
            ("model", false),
            ("set", false),
            ("prompts", false),
            ("n", true),
            ("set hash", false),
            ("classes", false),
            ("prompts hash", false),
            ("weights", false),
        ],
        ..Table::default()
    };
    for (_, name) in data.tables_with(&needed) {
        let query = format!(
            "select distinct model, set, prompts, n, {} from {name} order by 1, 2, 3",
            columns.join(", ")
        );
        for row in fetch_rows(data.session, &query).await?.iter() {
            let mut cells =
                vec![row.text("model"), row.text("set"), row.text("prompts"), count(row.count("n"))];
            cells.extend(columns.map(|column| row.text(column).chars().take(HASH).collect()));
            table.rows.push(cells);
        }
    }
    if table.rows.is_empty() {
        return Ok(None);
    }
    Ok(Section::new("hashes", "Hashes of the evaluations", vec![table.at_most(200).folded()]))
}

pub(super) fn settings(data: &ReportData<'_>) -> Option<Section> {
    let mut table = Table {
        caption: "Options of every stage, and fingerprints of the datasets".into(),
        head: vec![
            ("stage", false),
            ("kind", false),
            ("rows", true),
            ("options", false),
            ("fingerprint", false),
        ],
        ..Table::default()
    };
    for dataset in data.datasets {
        let begin = &dataset.state().begin;
        let fused = begin.recipe.get("fused").and_then(Value::as_object);
        for (name, recipe) in fused.into_iter().flatten() {
            let kind = recipe.get("kind").and_then(Value::as_str).unwrap_or_default();
            let with = format!("fused into {}", begin.stage);
            table.rows.push(vec![name.clone(), kind.into(), "-".into(), options(recipe), with]);
        }
        table.rows.push(vec![
            begin.stage.clone(),
            begin.kind.clone(),
            count(dataset.rows(MAIN)),
            options(&begin.recipe),
            begin.fingerprint.chars().take(HASH).collect(),
        ]);
    }
    if table.rows.is_empty() {
        return None;
    }
    // A stage may have its own seed.
    let seed = |dataset: &Dataset| dataset.state().begin.recipe.get("seed")?.as_u64();
    let seeds: BTreeSet<u64> = data.datasets.iter().filter_map(seed).collect();
    let listed: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let listed = listed.join(" and ");
    let seed = match seeds.len() {
        0 => None,
        1 => Some(Block::Text(format!("Seed: {listed}."))),
        _ => Some(Block::Text(format!("Seeds: {listed}."))),
    };
    Section::new("settings", "Settings", seed.into_iter().chain([table.folded()]).collect())
}

/// Options on one line, except null ones.
fn options(recipe: &Value) -> String {
    let options = recipe.get("options").and_then(Value::as_object);
    let given = options.into_iter().flatten().filter(|(_, value)| !value.is_null());
    given.map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join("; ")
}
