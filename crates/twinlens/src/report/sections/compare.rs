//! Two runs side by side: accuracies, rows, and the options that differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use twinlens_dataset::Dataset;

use super::super::model::{Bar, Bars, Block, Chart, Plot, Section, Table};
use super::super::query::{ReportData, fetch_rows, interval, percent};
use crate::errors::Failure;
use crate::text::{count, truncated};

/// At most this many bars, and rows of options.
const MAX_BARS: usize = 40;
const MAX_OPTIONS: usize = 100;
/// Values of options are cut to this many characters.
const VALUE_CHARS: usize = 80;

pub(super) async fn compare(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let Some(other) = &data.other else { return Ok(None) };
    let names = format!("A is this run ({}), B is {} ({}).", data.dir, other.name, other.dir);
    let mut blocks = vec![Block::Text(names)];
    blocks.extend(accuracies(data).await?);
    blocks.extend(rows(data, &other.datasets).await?);
    blocks.push(options(data.datasets, &other.datasets));
    Ok(Section::new("compare", "Compared with another run", blocks))
}

/// One side of an accuracy: value and interval.
#[derive(Clone, Copy, Default)]
struct Side {
    value: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
}

/// The accuracies that both runs have: the best model of each for a set, metric and prompts.
async fn accuracies(data: &ReportData<'_>) -> Result<Option<Block>, Failure> {
    if !data.session.table_exist("runs.leaderboard")? {
        return Ok(None);
    }
    let query = "select run, set, metric, prompts, value, ci_low, ci_high, chance from (
            select *, row_number() over (partition by run, set, metric, prompts order by value desc, model, stage) as place
            from runs.leaderboard where part = 'all'
        ) where place = 1 order by set, metric, prompts";
    let other = data.other.as_ref().map(|other| other.name.as_str());
    let mut pairs: BTreeMap<[String; 3], ([Side; 2], Option<f64>)> = BTreeMap::new();
    for row in fetch_rows(data.session, query).await?.iter() {
        let key = ["set", "metric", "prompts"].map(|column| row.text(column));
        let side = usize::from(Some(row.text("run").as_str()) == other);
        let (sides, chance) = pairs.entry(key).or_default();
        sides[side] =
            Side { value: row.number("value"), low: row.number("ci_low"), high: row.number("ci_high") };
        *chance = row.number("chance");
    }
    let mut table = Table::new(
        "Accuracies of both runs; intervals that do not overlap are a clear difference",
        &[
            ("set", false),
            ("metric", false),
            ("prompts", false),
            ("A", true),
            ("95 % interval of A", true),
            ("B", true),
            ("95 % interval of B", true),
            ("A - B", true),
            ("clear", false),
        ],
    );
    let mut bars = Vec::new();
    for ([set, metric, prompts], ([a, b], chance)) in pairs {
        let (Some(value), Some(of_b)) = (a.value, b.value) else { continue };
        let apart = matches!((a.low, a.high, b.low, b.high), (Some(al), Some(ah), Some(bl), Some(bh)) if al > bh || bl > ah);
        let difference = format!("{:+.1}", 100.0 * (value - of_b));
        bars.push(Bar {
            group: format!("{set} {metric}"),
            interval: a.low.zip(a.high),
            marks: vec![chance, Some(of_b)],
            ..Bar::plain(prompts.clone(), value, difference.clone())
        });
        table.rows.push(vec![
            set,
            metric,
            prompts,
            percent(a.value),
            interval(a.low, a.high),
            percent(b.value),
            interval(b.low, b.high),
            difference,
            if apart { "yes" } else { "no" }.into(),
        ]);
    }
    let better = table.rows.iter().filter(|row| row[8] == "yes").count();
    if bars.is_empty() {
        return Ok(None);
    }
    let alt = format!("{} accuracies that both runs have; {better} differ clearly.", bars.len());
    bars.truncate(MAX_BARS);
    let plot = Plot::Bars(Bars { marks: vec!["chance", "run B"], ..Bars::new("accuracy of A", bars) });
    let title = "Accuracy of A, with the difference to B in percentage points".into();
    Ok(Some(Block::Chart { chart: Chart { title, alt, plot }, numbers: table }))
}

/// Rows of each stage in both runs, where they differ.
async fn rows(data: &ReportData<'_>, other: &[Dataset]) -> Result<Option<Block>, Failure> {
    let query = "select stage, rows from views.funnel where outcome = 'kept' order by position";
    let own = fetch_rows(data.session, query).await?;
    let of_b: BTreeMap<String, u64> = (other.iter().flat_map(|dataset| dataset.state().stages()))
        .filter_map(|stage| Some((stage.stage.to_string(), stage.kept?)))
        .collect();
    let mut table =
        Table::new("Rows kept by stages that differ", &[("stage", false), ("A", true), ("B", true)]);
    let mut seen = BTreeSet::new();
    for row in own.iter() {
        let (stage, rows) = (row.text("stage"), row.count("rows"));
        let other = of_b.get(&stage).copied();
        if other != Some(rows) {
            table.rows.push(vec![stage.clone(), count(rows), other.map_or("-".into(), count)]);
        }
        seen.insert(stage);
    }
    for (stage, rows) in of_b.iter().filter(|(stage, _)| !seen.contains(*stage)) {
        table.rows.push(vec![stage.clone(), "-".into(), count(*rows)]);
    }
    Ok((!table.rows.is_empty()).then(|| table.open()))
}

/// The options of stages that differ.
fn options(own: &[Dataset], other: &[Dataset]) -> Block {
    let all = |datasets: &[Dataset]| -> BTreeMap<(String, String), String> {
        datasets.iter().flat_map(recipe_options).collect()
    };
    let (a, b) = (all(own), all(other));
    let keys: BTreeSet<&(String, String)> = a.keys().chain(b.keys()).collect();
    let mut table =
        Table::new("Options that differ", &[("stage", false), ("option", false), ("A", false), ("B", false)]);
    let shown = |value: Option<&String>| value.map_or("-".into(), |value| truncated(value, VALUE_CHARS));
    for key in keys.into_iter().filter(|key| a.get(*key) != b.get(*key)) {
        table.rows.push(vec![key.0.clone(), key.1.clone(), shown(a.get(key)), shown(b.get(key))]);
    }
    if table.rows.is_empty() {
        return Block::Text("The options of both runs are the same.".into());
    }
    table.at_most(MAX_OPTIONS).open()
}

/// The options of the stages that a dataset was made by: stage, option and value.
fn recipe_options(dataset: &Dataset) -> Vec<((String, String), String)> {
    let begin = &dataset.state().begin;
    let fused = begin.recipe.get("fused").and_then(Value::as_object);
    let recipes = fused.into_iter().flatten().map(|(name, recipe)| (name.clone(), recipe));
    let recipes = recipes.chain([(begin.stage.clone(), &begin.recipe)]);
    let options = recipes.flat_map(|(stage, recipe)| {
        let options = recipe.get("options").and_then(Value::as_object);
        let seed = recipe.get("seed").map(|seed| ((stage.clone(), "seed".into()), seed.to_string()));
        let given = options.into_iter().flatten().filter(|(_, value)| !value.is_null());
        given.map(move |(name, value)| ((stage.clone(), name.clone()), value.to_string())).chain(seed)
    });
    options.collect()
}
