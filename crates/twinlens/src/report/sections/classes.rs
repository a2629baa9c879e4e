//! Confusions between classes, and accuracy by training support per class.

use super::super::model::{Axis, Bar, Bars, Block, Chart, Lines, Plot, Point, Section, Series, Shape, Table};
use super::super::query::{ReportData, Rows, fetch_rows, has_view, interval, percent};
use crate::errors::Failure;
use crate::syntax::literal;
use crate::text::count;

/// At most this many confusions per set.
const MAX_CONFUSIONS: usize = 15;
const MAX_SETS: usize = 4;

/// For each set, the stage and prompts with the best top-1 accuracy.
async fn best_evaluations(data: &ReportData<'_>) -> Result<Rows, Failure> {
    let query = "select stage, model, set, prompts from (
            select stage, model, set, prompts, row_number() over (partition by set order by value desc, model, prompts) as place
            from views.leaderboard where metric = 'top1' and part = 'all'
        ) where place = 1 order by set";
    fetch_rows(data.session, query).await
}

pub(super) async fn confusions(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    if !has_view(data.session, "confusions")? || !has_view(data.session, "leaderboard")? {
        return Ok(None);
    }
    let mut blocks = Vec::new();
    for evaluation in best_evaluations(data).await?.iter().take(MAX_SETS) {
        let (set, prompts) = (evaluation.text("set"), evaluation.text("prompts"));
        let query = format!(
            "select class_name, predicted_name, times, of_examples from views.confusions where stage = {} and set = {} and prompts = {}
             order by times desc, class_name, predicted_name limit {MAX_CONFUSIONS}",
            literal(&evaluation.text("stage")),
            literal(&set),
            literal(&prompts)
        );
        let mut table = Table {
            caption: format!("Most frequent confusions on {set} with the prompts {prompts}"),
            head: vec![("class", false), ("predicted", false), ("times", true), ("examples", true)],
            ..Table::default()
        };
        let mut bars = Vec::new();
        for row in fetch_rows(data.session, &query).await?.iter() {
            let (times, of) = (row.count("times"), row.count("of_examples"));
            table.rows.push(vec![
                row.text("class_name"),
                row.text("predicted_name"),
                count(times),
                count(of),
            ]);
            let label = format!("{} as {}", row.text("class_name"), row.text("predicted_name"));
            bars.push(Bar::plain(label, times as f64, format!("{times} of {of}")));
        }
        let Some(first) = bars.first() else { continue };
        let alt = format!("The most frequent confusion is {}: {}.", first.label, first.text);
        let chart =
            Chart { title: table.caption.clone(), alt, plot: Plot::Bars(Bars::new("examples", bars)) };
        blocks.push(Block::Chart { chart, numbers: table });
    }
    Ok(Section::new("confusions", "Most confused classes", blocks))
}

pub(super) async fn support(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    if !has_view(data.session, "class_support")? || !has_view(data.session, "leaderboard")? {
        return Ok(None);
    }
    let mut blocks = vec![Block::Text(
        "A training pair supports a class if it matched a query that is part of the class name. Matches of the whole name are also counted separately.".into(),
    )];
    for evaluation in best_evaluations(data).await?.iter().take(MAX_SETS) {
        let (set, prompts) = (evaluation.text("set"), evaluation.text("prompts"));
        let query = format!(
            "select class_name, n, correct, accuracy, ci_low, ci_high, training_pairs, related_pairs from views.class_support
             where stage = {} and set = {} and prompts = {} and n > 0 order by related_pairs desc, class_name",
            literal(&evaluation.text("stage")),
            literal(&set),
            literal(&prompts)
        );
        let rows = fetch_rows(data.session, &query).await?;
        if rows.is_empty() {
            continue;
        }
        let mut table = Table {
            caption: format!("Classes of {set} by training pairs that name them, with the prompts {prompts}"),
            head: vec![
                ("class", false),
                ("pairs with part of the name", true),
                ("pairs with the whole name", true),
                ("n", true),
                ("correct", true),
                ("accuracy", true),
                ("95 % interval", true),
            ],
            ..Table::default()
        };
        let mut points = Vec::new();
        let (mut unseen, mut unseen_correct) = (0, 0);
        for row in rows.iter() {
            let related = row.count("related_pairs");
            table.rows.push(vec![
                row.text("class_name"),
                count(related),
                count(row.count("training_pairs")),
                count(row.count("n")),
                count(row.count("correct")),
                percent(row.number("accuracy")),
                interval(row.number("ci_low"), row.number("ci_high")),
            ]);
            if related == 0 {
                unseen += 1;
                unseen_correct += u64::from(row.count("correct") > 0);
            }
            let Some(accuracy) = row.number("accuracy") else { continue };
            // The axis is logarithmic: classes without pairs are drawn at 0.5.
            points.push(Point::at((related as f64).max(0.5), accuracy));
        }
        let alt = format!(
            "{} classes of {set}. Of the {unseen} without a training pair, {unseen_correct} have a correct prediction.",
            table.rows.len()
        );
        let plot = Plot::Lines(Lines {
            x: Axis {
                label: "training pairs with part of the class name (no pairs: far left)",
                is_log: true,
            },
            y: Axis { label: "accuracy", is_log: false },
            series: vec![Series { name: "classes".into(), shape: Shape::Points { points, hollow: false } }],
        });
        let chart =
            Chart { title: format!("Accuracy by training support: {set}, prompts {prompts}"), alt, plot };
        blocks.push(Block::Chart { chart, numbers: table.at_most(300) });
    }
    // The first one explains the others.
    let blocks = if blocks.len() == 1 { Vec::new() } else { blocks };
    Ok(Section::new("support", "Accuracy by number of training pairs", blocks))
}
