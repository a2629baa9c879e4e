//! The head of the report: what was built, how good it is, where it fails.

use super::super::ask::{ask, has, interval, number, percent};
use super::super::model::Fact;
use super::Source;
use crate::errors::Failure;
use crate::text::{count, counted};
use twinlens_dataset::MAIN;

pub async fn summary(source: &Source<'_>) -> Result<Vec<Fact>, Failure> {
    let mut facts = Vec::new();
    facts.extend(built(source));
    if has(source.session, "leaderboard")? {
        facts.extend(best(source).await?);
    }
    facts.extend(worst(source).await?);
    Ok(facts)
}

/// The first pairs, the last that were trained on, and the trainings.
fn built(source: &Source<'_>) -> Option<Fact> {
    let pairs = |columns: &[&str]| -> Vec<u64> {
        let has = |dataset: &&twinlens_dataset::Dataset| {
            dataset
                .schema(MAIN)
                .is_ok_and(|schema| columns.iter().all(|column| schema.field_with_name(column).is_ok()))
        };
        source.datasets.iter().filter(has).map(|dataset| dataset.rows(MAIN)).collect()
    };
    let found = pairs(&["uid", "url", "caption"]);
    let (first, images) = (*found.first()?, pairs(&["uid", "caption", "image"]));
    let trainings = source.datasets.iter().filter(|dataset| dataset.state().begin.kind == "train").count();
    let about = match (images.first(), trainings) {
        (Some(images), 0) => format!("found, and {} images of them stored", count(*images)),
        (Some(images), 1) => format!("found; {} images stored, one model trained", count(*images)),
        (Some(images), more) => format!("found; {} images stored, {more} models trained", count(*images)),
        (None, _) => "found".into(),
    };
    Some(Fact { name: "Built", value: counted(first, "pair"), about })
}

/// The accuracy that is the most times chance.
async fn best(source: &Source<'_>) -> Result<Option<Fact>, Failure> {
    let rows = ask(
        source.session,
        "select * from views.leaderboard where metric in ('top1', 'mean_per_class') and chance > 0 and part = 'all'
         order by times_chance desc, set, metric, model, prompts limit 1",
    )
    .await?;
    Ok(rows.iter().next().map(|row| Fact {
        name: "Good",
        value: percent(row.number("value")),
        about: format!(
            "{} on {} among {} examples ({}): {} times chance",
            row.text("metric"),
            row.text("set"),
            count(row.count("n")),
            interval(row.number("ci_low"), row.number("ci_high")),
            number(row.number("times_chance"))
        ),
    }))
}

/// The classes of which nothing was right.
async fn worst(source: &Source<'_>) -> Result<Option<Fact>, Failure> {
    let mut worst: Option<(f64, Fact)> = None;
    for (_, name) in source.tables_with(&["set", "prompts", "class_id", "class_name", "n", "correct"]) {
        let query = format!(
            "select set, prompts, sum(case when correct = 0 then 1 else 0 end) as never, count(*) as classes from {name}
             where n > 0 group by set, prompts order by set, sum(correct) desc, prompts"
        );
        let mut seen = Vec::new();
        for row in ask(source.session, &query).await?.iter() {
            // With the prompts that do best.
            if seen.contains(&row.text("set")) {
                continue;
            }
            seen.push(row.text("set"));
            let (never, classes) = (row.count("never"), row.count("classes"));
            let share = never as f64 / classes.max(1) as f64;
            if worst.as_ref().is_some_and(|(before, _)| *before >= share) {
                continue;
            }
            let value = format!("{} of {} classes", count(never), count(classes));
            let about = format!(
                "of {} have no right example, with the prompts {}",
                row.text("set"),
                row.text("prompts")
            );
            worst = Some((share, Fact { name: "Fails", value, about }));
        }
    }
    Ok(worst.map(|(_, fact)| fact))
}
