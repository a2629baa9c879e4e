//! The facts at the head of the report.

use super::super::model::Fact;
use super::super::query::{ReportData, fetch_rows, has_view, interval, number, percent};
use crate::errors::Failure;
use crate::text::{count, counted};
use twinlens_dataset::MAIN;

pub(super) async fn summary(data: &ReportData<'_>) -> Result<Vec<Fact>, Failure> {
    let mut facts = Vec::new();
    facts.extend(built(data));
    if has_view(data.session, "leaderboard")? {
        facts.extend(best(data).await?);
    }
    facts.extend(worst(data).await?);
    Ok(facts)
}

/// Pairs, stored images and trained models.
fn built(data: &ReportData<'_>) -> Option<Fact> {
    let pairs = |columns: &[&str]| -> Vec<u64> {
        let has = |dataset: &&twinlens_dataset::Dataset| {
            dataset
                .schema(MAIN)
                .is_ok_and(|schema| columns.iter().all(|column| schema.field_with_name(column).is_ok()))
        };
        data.datasets.iter().filter(has).map(|dataset| dataset.rows(MAIN)).collect()
    };
    let candidates = pairs(&["uid", "url", "caption"]);
    let (first, images) = (*candidates.first()?, pairs(&["uid", "caption", "image"]));
    let explanation = match (images.first(), data.run().trainings()) {
        (Some(images), 0) => format!("found, {} images stored", count(*images)),
        (Some(images), 1) => format!("found, {} images stored, one model trained", count(*images)),
        (Some(images), more) => format!("found, {} images stored, {more} models trained", count(*images)),
        (None, _) => "found".into(),
    };
    Some(Fact { name: "Data", value: counted(first, "pair"), explanation })
}

/// The accuracy with the highest ratio to chance.
async fn best(data: &ReportData<'_>) -> Result<Option<Fact>, Failure> {
    let rows = fetch_rows(
        data.session,
        "select * from views.leaderboard where metric in ('top1', 'mean_per_class') and chance > 0 and part = 'all'
         order by times_chance desc, set, metric, model, prompts limit 1",
    )
    .await?;
    Ok(rows.iter().next().map(|row| Fact {
        name: "Best",
        value: percent(row.number("value")),
        explanation: format!(
            "{} on {}, {} examples ({}): {} times chance",
            row.text("metric"),
            row.text("set"),
            count(row.count("n")),
            interval(row.number("ci_low"), row.number("ci_high")),
            number(row.number("times_chance"))
        ),
    }))
}

/// The set with the highest share of classes without a correct prediction.
async fn worst(data: &ReportData<'_>) -> Result<Option<Fact>, Failure> {
    let mut worst: Option<(f64, Fact)> = None;
    for (_, name) in data.tables_with(&["set", "prompts", "class_id", "class_name", "n", "correct"]) {
        let query = format!(
            "select set, prompts, sum(case when correct = 0 then 1 else 0 end) as never, count(*) as classes from {name}
             where n > 0 group by set, prompts order by set, sum(correct) desc, prompts"
        );
        let mut seen = Vec::new();
        for row in fetch_rows(data.session, &query).await?.iter() {
            // The first row of each set has the best prompts.
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
            let explanation = format!(
                "of {} have no correct prediction, with the prompts {}",
                row.text("set"),
                row.text("prompts")
            );
            worst = Some((share, Fact { name: "Worst", value, explanation }));
        }
    }
    Ok(worst.map(|(_, fact)| fact))
}
