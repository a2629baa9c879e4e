//! Accuracies beside chance and published values, gain from prompts, and warnings.

use std::collections::BTreeMap;

use super::super::model::{Bar, Bars, Block, Chart, Plot, Section, Table};
use super::super::query::{ReportData, fetch_rows, has_view, interval, number, percent};
use crate::errors::Failure;

/// At most this many bars per chart.
const MAX_BARS: usize = 40;

pub(super) async fn accuracies(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("accuracy", "Accuracy");
    if !has_view(data.session, "leaderboard")? {
        return Ok(Section::empty(id, title, "This run has no evaluation."));
    }
    let rows = fetch_rows(
        data.session,
        "select l.set || case when l.part = 'all' then '' else ' (' || l.part || ')' end as shown, l.task, l.metric, l.model, l.prompts, l.value, l.ci_low, l.ci_high, l.chance, l.times_chance, l.n,
                p.value as published, p.model || ' (' || p.weights || ', ' || p.source || ')' as publisher
         from views.leaderboard l
         left join (
             select *, row_number() over (partition by set, metric order by value desc, model) as place
             from views.published where weights = 'openai'
         ) p on p.place = 1 and l.set = p.set and l.metric = p.metric
         order by l.set, l.part, l.task, l.metric, l.value desc, l.model, l.prompts",
    )
    .await?;
    let mut table = Table {
        caption: "Accuracies with 95 % confidence intervals, beside chance and the best published value of OpenAI's models".into(),
        head: vec![
            ("set", false), ("metric", false), ("model", false), ("prompts", false), ("value", true), ("95 % interval", true),
            ("chance", true), ("times chance", true), ("n", true), ("published", true), ("by", false),
        ],
        ..Table::default()
    };
    let mut bars = Vec::new();
    for row in rows.iter() {
        let (low, high) = (row.number("ci_low"), row.number("ci_high"));
        table.rows.push(vec![
            row.text("shown"),
            row.text("metric"),
            row.text("model"),
            row.text("prompts"),
            percent(row.number("value")),
            interval(low, high),
            percent(row.number("chance")),
            number(row.number("times_chance")),
            crate::text::count(row.count("n")),
            percent(row.number("published")),
            row.text("publisher"),
        ]);
        let Some(value) = row.number("value") else { continue };
        let bar = Bar {
            label: format!(
                "{} {}: {} {}",
                row.text("shown"),
                row.text("metric"),
                row.text("model"),
                row.text("prompts")
            ),
            value,
            interval: low.zip(high),
            marks: vec![row.number("chance"), row.number("published")],
            text: percent(Some(value)),
        };
        bars.push((row.text("shown"), row.text("metric"), bar));
    }
    let all = bars.len();
    let mut bars = main_metrics(bars);
    let best = bars.iter().max_by(|a, b| a.value.total_cmp(&b.value));
    let alt = match best {
        Some(best) => {
            format!("{all} accuracies; the highest in the chart is {} ({}).", best.text, best.label)
        }
        None => "No accuracy.".into(),
    };
    let published = bars.iter().any(|bar| bar.marks[1].is_some());
    let marks = if published { vec!["chance", "published"] } else { vec!["chance"] };
    bars.truncate(MAX_BARS);
    let omitted = all - bars.len();
    let mut blocks = vec![Block::Chart {
        chart: Chart {
            title: "Accuracy by set, metric, model and prompts".into(),
            alt,
            plot: Plot::Bars(Bars { unit: "accuracy", bars, marks }),
        },
        numbers: table,
    }];
    if omitted > 0 {
        blocks.push(Block::Text(format!("The chart omits {omitted} accuracies; the table has all.")));
    }
    if !published {
        blocks.push(Block::Text("There are no published values for these sets.".into()));
    }
    Ok(Section { id, title, blocks })
}

/// Reduces bars, given with their set and metric, to one metric per set if there are too many:
/// `top1`, if it exists.
fn main_metrics(bars: Vec<(String, String, Bar)>) -> Vec<Bar> {
    let too_many = bars.len() > MAX_BARS;
    let mut main: BTreeMap<String, String> = BTreeMap::new();
    for (set, metric, _) in &bars {
        let of_set = main.entry(set.clone()).or_insert_with(|| metric.clone());
        if metric == "top1" {
            of_set.clone_from(metric);
        }
    }
    let shown = bars.into_iter().filter(|(set, metric, _)| !too_many || main.get(set) == Some(metric));
    shown.map(|(_, _, bar)| bar).collect()
}

pub(super) async fn gains(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("prompts", "Gain from prompts");
    let why = "No set was evaluated with the bare class name (`{}`) and other prompts.";
    if !has_view(data.session, "prompt_gain")? {
        return Ok(Section::empty(id, title, why));
    }
    let rows = fetch_rows(
        data.session,
        "select set, metric, model, prompts, value, bare, gain, gain_low, gain_high, p, n from views.prompt_gain where part = 'all'
         order by set, metric, model, gain desc, prompts",
    )
    .await?;
    if rows.is_empty() {
        return Ok(Section::empty(id, title, why));
    }
    let points = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:+.1}", 100.0 * value));
    let mut table = Table {
        caption:
            "Gain over the bare class name in percentage points; intervals are paired over the same examples"
                .into(),
        head: vec![
            ("set", false),
            ("metric", false),
            ("model", false),
            ("prompts", false),
            ("bare", true),
            ("value", true),
            ("gain", true),
            ("from", true),
            ("to", true),
            ("p", true),
        ],
        ..Table::default()
    };
    let mut bars = Vec::new();
    for row in rows.iter() {
        let (low, high) = (row.number("gain_low"), row.number("gain_high"));
        table.rows.push(vec![
            row.text("set"),
            row.text("metric"),
            row.text("model"),
            row.text("prompts"),
            percent(row.number("bare")),
            percent(row.number("value")),
            points(row.number("gain")),
            points(low),
            points(high),
            number(row.number("p")),
        ]);
        let Some(gain) = row.number("gain") else { continue };
        let bar = Bar {
            label: format!(
                "{} {}: {} {}",
                row.text("set"),
                row.text("metric"),
                row.text("model"),
                row.text("prompts")
            ),
            value: 100.0 * gain,
            interval: low.zip(high).map(|(low, high)| (100.0 * low, 100.0 * high)),
            marks: vec![],
            text: points(Some(gain)),
        };
        bars.push((row.text("set"), row.text("metric"), bar));
    }
    let mut bars = main_metrics(bars);
    let higher = bars.iter().filter(|bar| bar.interval.is_some_and(|(low, _)| low > 0.0)).count();
    let lower = bars.iter().filter(|bar| bar.interval.is_some_and(|(_, high)| high < 0.0)).count();
    let alt = format!(
        "{} gains in percentage points; {higher} are significantly above 0, {lower} below.",
        bars.len()
    );
    bars.truncate(MAX_BARS);
    let plot = Plot::Bars(Bars { unit: "percentage points over the bare class name", bars, marks: vec![] });
    let chart = Chart { title: "Gain over the bare class name".into(), alt, plot };
    Ok(Section { id, title, blocks: vec![Block::Chart { chart, numbers: table }] })
}

pub(super) async fn warnings(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("warnings", "Warnings");
    let mut table = Table {
        caption: "Warnings of the evaluations".into(),
        head: vec![
            ("stage", false),
            ("set", false),
            ("prompts", false),
            ("code", false),
            ("detail", false),
            ("value", true),
        ],
        ..Table::default()
    };
    let tables = data.tables_with(&["set", "code", "detail", "value"]);
    for (stage, name) in &tables {
        for row in fetch_rows(data.session, &format!("select * from {name} order by set, code, detail"))
            .await?
            .iter()
        {
            table.rows.push(vec![
                stage.clone(),
                row.text("set"),
                row.text("prompts"),
                row.text("code"),
                row.text("detail"),
                number(row.number("value")),
            ]);
        }
    }
    if table.rows.is_empty() {
        let why = if tables.is_empty() {
            "No stage of this run checks its sets."
        } else {
            "There are no warnings."
        };
        return Ok(Section::empty(id, title, why));
    }
    Ok(Section { id, title, blocks: vec![table.at_most(100).open()] })
}
