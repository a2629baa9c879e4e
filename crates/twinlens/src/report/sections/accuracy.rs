//! Accuracies beside chance and published values: one chart per metric, or one per metric and set
//! where there are many sets.

use std::collections::BTreeSet;

use super::super::model::{Bar, Bars, Block, Chart, Plot, Section, Table};
use super::super::query::{ReportData, Row, fetch_rows, has_view, interval, number, percent};
use crate::errors::Failure;
use crate::text::count;

/// Metrics with more sets than this have a small chart for each set.
const SETS_IN_ONE_CHART: usize = 6;
/// At most this many bars in a chart of one set, and in a chart of several.
const BARS_OF_A_SET: usize = 8;
const MAX_BARS: usize = 40;
/// At most this many small charts per metric; the table has all sets.
const MAX_SETS: usize = 80;
/// At most this many sets are listed in a sentence.
const MAX_NAMES: usize = 12;

/// An accuracy of the whole set or of a part of it.
struct Accuracy {
    set: String,
    metric: String,
    model: String,
    prompts: String,
    /// Of the whole set.
    is_whole: bool,
    value: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    chance: Option<f64>,
    times_chance: Option<f64>,
    n: u64,
    published: Option<f64>,
    publisher: String,
}

impl Accuracy {
    fn new(row: &Row<'_>) -> Self {
        let part = row.text("part");
        let is_whole = part == "all";
        Self {
            set: if is_whole { row.text("set") } else { format!("{} ({part})", row.text("set")) },
            metric: row.text("metric"),
            model: row.text("model"),
            prompts: row.text("prompts"),
            is_whole,
            value: row.number("value"),
            low: row.number("ci_low"),
            high: row.number("ci_high"),
            chance: row.number("chance"),
            times_chance: row.number("times_chance"),
            n: row.count("n"),
            published: row.number("published"),
            publisher: row.text("publisher"),
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.set.clone(),
            self.model.clone(),
            self.prompts.clone(),
            percent(self.value),
            interval(self.low, self.high),
            percent(self.chance),
            number(self.times_chance),
            count(self.n),
            percent(self.published),
            self.publisher.clone(),
        ]
    }

    fn bar(&self, with_model: bool) -> Option<Bar> {
        let label =
            if with_model { format!("{}: {}", self.model, self.prompts) } else { self.prompts.clone() };
        Some(Bar {
            interval: self.low.zip(self.high),
            marks: vec![self.chance, self.published],
            ..Bar::plain(label, self.value?, percent(self.value))
        })
    }
}

pub(super) async fn accuracies(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    if !has_view(data.session, "leaderboard")? {
        return Ok(None);
    }
    let rows = fetch_rows(
        data.session,
        "select l.set, l.part, l.metric, l.model, l.prompts, l.value, l.ci_low, l.ci_high, l.chance, l.times_chance, l.n,
                p.value as published, p.model || ' (' || p.weights || ', ' || p.source || ')' as publisher
         from views.leaderboard l
         left join (
             select *, row_number() over (partition by set, metric order by value desc, model) as place
             from views.published where weights = 'openai'
         ) p on p.place = 1 and l.set = p.set and l.metric = p.metric
         order by l.set, l.part, l.task, l.metric, l.value desc, l.model, l.prompts",
    )
    .await?;
    let all: Vec<Accuracy> = rows.iter().map(|row| Accuracy::new(&row)).collect();
    let mut metrics: Vec<&str> = Vec::new();
    for first in ["top1", "mean_per_class"] {
        metrics.extend(all.iter().any(|one| one.metric == first).then_some(first));
    }
    let others: BTreeSet<&str> = all.iter().map(|one| one.metric.as_str()).collect();
    metrics.extend(others.into_iter().filter(|metric| !["top1", "mean_per_class"].contains(metric)));
    let mut blocks: Vec<Block> = not_above_chance(&all).into_iter().map(Block::Text).collect();
    for metric in metrics {
        let of_metric: Vec<&Accuracy> = all.iter().filter(|one| one.metric == metric).collect();
        blocks.extend(metric_charts(metric, &of_metric));
    }
    Ok(Section::new("accuracy", "Accuracy", blocks))
}

/// A sentence about the sets whose best accuracy is not distinguishable from guessing.
fn not_above_chance(all: &[Accuracy]) -> Option<String> {
    // The first accuracy of each set and metric is the best one.
    let mut seen = BTreeSet::new();
    let best = all.iter().filter(|one| one.is_whole && seen.insert((&one.set, &one.metric)));
    let at_chance = |one: &&Accuracy| matches!((one.low, one.chance), (Some(low), Some(chance)) if chance > 0.0 && low <= chance);
    let names: Vec<String> =
        best.filter(at_chance).map(|one| format!("{} ({})", one.set, one.metric)).collect();
    if names.is_empty() {
        return None;
    }
    let more = names.len().saturating_sub(MAX_NAMES);
    let listed = names.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "Not above chance: {listed}{more}. The 95 % interval of the best prompts includes guessing."
    ))
}

/// The charts of a metric, with one table for all of them.
fn metric_charts(metric: &str, all: &[&Accuracy]) -> Vec<Block> {
    let mut table = Table::new(
        format!(
            "{metric} with 95 % confidence intervals, beside chance and the best published value of OpenAI's models"
        ),
        &[
            ("set", false),
            ("model", false),
            ("prompts", false),
            ("value", true),
            ("95 % interval", true),
            ("chance", true),
            ("times chance", true),
            ("n", true),
            ("published", true),
            ("by", false),
        ],
    );
    table.rows = all.iter().map(|one| one.cells()).collect();
    let mut sets: Vec<&str> = Vec::new();
    for one in all {
        if sets.last() != Some(&one.set.as_str()) {
            sets.push(&one.set);
        }
    }
    let with_model = all.iter().map(|one| &one.model).collect::<BTreeSet<_>>().len() > 1;
    let with_published = all.iter().any(|one| one.published.is_some());
    let marks = if with_published { vec!["chance", "published"] } else { vec!["chance"] };
    let highest = all.iter().filter_map(|one| one.high.or(one.value)).fold(0.0, f64::max);
    let bars_of = |set: &str| -> Vec<Bar> {
        all.iter()
            .filter(|one| one.set == set)
            .filter_map(|one| one.bar(with_model))
            .take(BARS_OF_A_SET)
            .collect()
    };
    if sets.len() > SETS_IN_ONE_CHART {
        let charts = sets.iter().take(MAX_SETS).map(|set| {
            let bars = bars_of(set);
            let alt = bars
                .first()
                .map_or("No accuracy.".into(), |best| format!("The best is {} ({}).", best.text, best.label));
            let plot = Plot::Bars(Bars { unit: "", bars, marks: marks.clone(), scale: Some(highest) });
            Chart { title: format!("{set}: {metric}"), alt, plot }
        });
        return vec![Block::Multiples { charts: charts.collect(), numbers: table }];
    }
    let grouped = |set: &&str| {
        let group = (*set).to_string();
        bars_of(set).into_iter().map(move |bar| Bar { group: group.clone(), ..bar })
    };
    let mut bars: Vec<Bar> = sets.iter().flat_map(grouped).collect();
    bars.truncate(MAX_BARS);
    let shown = bars.len();
    let alt = match bars.iter().max_by(|a, b| a.value.total_cmp(&b.value)) {
        Some(best) => format!(
            "The highest of {} accuracies is {} ({}, {}).",
            all.len(),
            best.text,
            best.group,
            best.label
        ),
        None => "No accuracy.".into(),
    };
    let plot = Plot::Bars(Bars { marks, ..Bars::new("accuracy", bars) });
    let title = format!("{metric} by set and prompts");
    let mut blocks = vec![Block::Chart { chart: Chart { title, alt, plot }, numbers: table }];
    if shown < all.len() {
        blocks.push(Block::Text(format!(
            "The chart omits {} accuracies; the table has all.",
            all.len() - shown
        )));
    }
    blocks
}
