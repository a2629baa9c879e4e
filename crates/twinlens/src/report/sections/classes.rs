//! Where it fails: what is taken for what, and whether the classes that training saw little of are
//! those.

use super::super::ask::{Rows, ask, has, interval, percent};
use super::super::model::{Axis, Bar, Bars, Block, Chart, Lines, Plot, Point, Section, Series, Shape, Table};
use super::Source;
use crate::errors::Failure;
use crate::text::count;
use crate::views::literal;

/// Pairs of classes that are shown of a set.
const PAIRS: usize = 15;
/// Sets that are shown.
const SETS: usize = 4;

/// Evaluations of sets: of each the prompts with the best accuracy that has classes.
async fn evaluations(source: &Source<'_>) -> Result<Rows, Failure> {
    let query = "select stage, model, set, prompts from (
            select stage, model, set, prompts, row_number() over (partition by set order by value desc, model, prompts) as place
            from views.leaderboard where metric = 'top1' and part = 'all'
        ) where place = 1 order by set";
    ask(source.session, query).await
}

pub async fn confusions(source: &Source<'_>) -> Result<Section, Failure> {
    let (id, title) = ("confusions", "What it takes for what");
    if !has(source.session, "confusions")? || !has(source.session, "leaderboard")? {
        return Ok(Section::without(id, title, "This run keeps no single predictions."));
    }
    let mut blocks = Vec::new();
    for evaluation in evaluations(source).await?.iter().take(SETS) {
        let (set, prompts) = (evaluation.text("set"), evaluation.text("prompts"));
        let query = format!(
            "select class_name, predicted_name, times, of_examples from views.confusions where stage = {} and set = {} and prompts = {}
             order by times desc, class_name, predicted_name limit {PAIRS}",
            literal(&evaluation.text("stage")),
            literal(&set),
            literal(&prompts)
        );
        let mut table = Table {
            caption: format!("The most frequent mistakes on {set} with the prompts {prompts}"),
            head: vec![("is", false), ("taken for", false), ("times", true), ("of examples", true)],
            ..Table::default()
        };
        let mut bars = Vec::new();
        for row in ask(source.session, &query).await?.iter() {
            let (times, of) = (row.count("times"), row.count("of_examples"));
            table.rows.push(vec![
                row.text("class_name"),
                row.text("predicted_name"),
                count(times),
                count(of),
            ]);
            bars.push(Bar {
                label: format!("{} as {}", row.text("class_name"), row.text("predicted_name")),
                value: times as f64,
                interval: None,
                marks: vec![],
                text: format!("{times} of {of}"),
            });
        }
        let Some(first) = bars.first() else { continue };
        let alt = format!("The most frequent mistake is {}: {}.", first.label, first.text);
        let chart = Chart {
            title: table.caption.clone(),
            alt,
            plot: Plot::Bars(Bars { unit: "examples", bars, marks: vec![] }),
        };
        blocks.push(Block::Chart { chart, numbers: table });
    }
    if blocks.is_empty() {
        return Ok(Section::without(id, title, "No example was taken for something else."));
    }
    Ok(Section { id, title, blocks })
}

pub async fn support(source: &Source<'_>) -> Result<Section, Failure> {
    let (id, title) = ("support", "What training saw of each class");
    if !has(source.session, "class_support")? || !has(source.session, "leaderboard")? {
        let why =
            "This needs an evaluation of a training of this run on pairs that were matched with queries.";
        return Ok(Section::without(id, title, why));
    }
    let mut blocks = vec![Block::Text(
        "A training pair supports a class when it matched a query that is some words of the class's name; the whole name counts besides.".into(),
    )];
    for evaluation in evaluations(source).await?.iter().take(SETS) {
        let (set, prompts) = (evaluation.text("set"), evaluation.text("prompts"));
        let query = format!(
            "select class_name, n, correct, accuracy, ci_low, ci_high, training_pairs, related_pairs from views.class_support
             where stage = {} and set = {} and prompts = {} and n > 0 order by related_pairs desc, class_name",
            literal(&evaluation.text("stage")),
            literal(&set),
            literal(&prompts)
        );
        let rows = ask(source.session, &query).await?;
        if rows.is_empty() {
            continue;
        }
        let mut table = Table {
            caption: format!(
                "The classes of {set} by the training pairs that name them, with the prompts {prompts}"
            ),
            head: vec![
                ("class", false),
                ("pairs that share a word", true),
                ("with the whole name", true),
                ("n", true),
                ("right", true),
                ("accuracy", true),
                ("95 % interval", true),
            ],
            ..Table::default()
        };
        let mut points = Vec::new();
        let (mut unseen, mut unseen_right) = (0, 0);
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
                unseen_right += u64::from(row.count("correct") > 0);
            }
            let Some(accuracy) = row.number("accuracy") else { continue };
            // A class without pairs has no logarithm: it stands at a half.
            points.push(Point::at((related as f64).max(0.5), accuracy));
        }
        let alt = format!(
            "{} classes of {set}. Of the {unseen} without a pair, {unseen_right} have an example that was right.",
            table.rows.len()
        );
        let plot = Plot::Lines(Lines {
            x: Axis {
                label: "training pairs that share a word with the class (none: at the left)",
                log: true,
            },
            y: Axis { label: "accuracy", log: false },
            series: vec![Series {
                name: "a class".into(),
                shape: Shape::Points { at: points, hollow: false },
            }],
        });
        let chart = Chart { title: format!("Accuracy over support: {set}, prompts {prompts}"), alt, plot };
        blocks.push(Block::Chart { chart, numbers: table.at_most(300) });
    }
    if blocks.len() == 1 {
        return Ok(Section::without(id, title, "No class has examples."));
    }
    Ok(Section { id, title, blocks })
}
