//! The facts at the head of the report.

use twinlens_dataset::MAIN;

use super::super::model::Fact;
use super::super::query::{ReportData, fetch_rows, has_view, interval, number, percent};
use super::timing;
use crate::errors::Failure;
use crate::text::{bytes, count, counted};

pub(super) async fn summary(data: &ReportData<'_>) -> Result<Vec<Fact>, Failure> {
    let mut facts = Vec::new();
    facts.extend(built(data));
    facts.extend(model(data));
    if has_view(data.session, "leaderboard")? {
        facts.extend(best(data).await?);
    }
    facts.extend(worst(data).await?);
    facts.extend(timing::fact(data));
    Ok(facts)
}

/// Pairs and stored images.
fn built(data: &ReportData<'_>) -> Option<Fact> {
    let pairs = |columns: &[&str]| -> Vec<u64> {
        let has = |dataset: &&twinlens_dataset::Dataset| {
            dataset
                .schema(MAIN)
                .is_ok_and(|schema| columns.iter().all(|column| schema.field_with_name(column).is_ok()))
        };
        data.datasets.iter().filter(has).map(|dataset| dataset.rows(MAIN)).collect()
    };
    let (candidates, images) = (pairs(&["uid", "url", "caption"]), pairs(&["uid", "caption", "image"]));
    let first = *candidates.first()?;
    let explanation = match images.first() {
        Some(images) => format!("found, {} images stored", count(*images)),
        None => "found".into(),
    };
    Some(Fact { name: "Data", value: counted(first, "pair"), explanation })
}

/// The models that the run trained: their parameters and the size of their files.
fn model(data: &ReportData<'_>) -> Option<Fact> {
    let trainings = data.run().trainings();
    let last = trainings.last()?;
    let files = last.state().files().filter(|file| file.table.is_none());
    let size: u64 = files.map(|file| file.bytes).sum();
    let name = &last.state().begin.stage;
    let config = last.artifact("config.json").ok().and_then(|path| std::fs::read(path).ok());
    let config = config.and_then(|bytes| serde_json::from_slice::<twinlens_model::ClipConfig>(&bytes).ok());
    let profile = config.map(|config| config.profile());
    let value = match &profile {
        Some(profile) => format!("{} M parameters", number(Some(profile.parameters() as f64 / 1e6))),
        None => name.clone(),
    };
    let flops = profile.map_or(String::new(), |profile| {
        format!(", {} GFLOPs for an image and a text", number(Some(profile.flops() as f64 / 1e9)))
    });
    let more = match trainings.len() {
        1 => String::new(),
        more => format!(", the last of {more} trainings"),
    };
    Some(Fact { name: "Model", value, explanation: format!("{name}, {}{flops}{more}", bytes(size)) })
}

/// The accuracy with the highest ratio to chance.
async fn best(data: &ReportData<'_>) -> Result<Option<Fact>, Failure> {
    let rows = fetch_rows(
        data.session,
        "select * from views.leaderboard where metric in ('top1', 'mean_per_class') and chance > 0 and part = 'all'
         order by times_chance desc, set, metric, model, prompts limit 1",
    )
    .await?;
    Ok(rows.iter().next().map(|row| {
        let (low, chance) = (row.number("ci_low"), row.number("chance"));
        let is_guessing = low.zip(chance).is_some_and(|(low, chance)| low <= chance);
        let value = percent(row.number("value"));
        Fact {
            name: "Best",
            explanation: format!(
                "{}{} on {}, {} examples ({}): {} times chance",
                if is_guessing { format!("{value} ") } else { String::new() },
                row.text("metric"),
                row.text("set"),
                count(row.count("n")),
                interval(low, row.number("ci_high")),
                number(row.number("times_chance"))
            ),
            value: if is_guessing { "Not above chance".into() } else { value },
        }
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
