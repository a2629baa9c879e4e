//! The parts of a report, each from a few queries.

mod accuracy;
mod classes;
mod data;
mod samples;
mod scaling;
mod settings;
mod summary;
mod training;

use datafusion::prelude::SessionContext;
use twinlens_dataset::Dataset;

use super::model::{Report, Section};
use crate::errors::Failure;

/// What the parts are made from.
pub struct Source<'a> {
    /// Every dataset and view as a table.
    pub session: &'a SessionContext,
    /// The datasets of the run.
    pub datasets: &'a [Dataset],
}

/// The report of a run.
pub async fn report(title: String, source: &Source<'_>) -> Result<Report, Failure> {
    let sections: Vec<Section> = vec![
        accuracy::accuracies(source).await?,
        accuracy::gains(source).await?,
        samples::samples(source).await?,
        classes::confusions(source).await?,
        classes::support(source).await?,
        training::losses(source).await?,
        data::funnel(source).await?,
        data::balance(source).await?,
        scaling::scaling(source).await?,
        accuracy::warnings(source).await?,
        settings::hashes(source).await?,
        settings::settings(source),
    ];
    Ok(Report { title, summary: summary::summary(source).await?, sections })
}

/// A name in quotes, for SQL.
fn quoted(stage: &str, table: &str) -> String {
    let (stage, side) = (crate::views::quoted(stage), crate::views::quoted(table));
    if table == twinlens_dataset::MAIN { stage } else { format!("{stage}.{side}") }
}

impl Source<'_> {
    /// The tables that have these columns, with the stage that each is of; those of queries are left out.
    fn tables_with(&self, columns: &[&str]) -> Vec<(String, String)> {
        let made = self.datasets.iter().filter(|dataset| dataset.state().begin.kind != "sql");
        let has = |dataset: &Dataset, table: &str| {
            let schema = dataset.schema(table);
            schema.is_ok_and(|schema| columns.iter().all(|column| schema.field_with_name(column).is_ok()))
        };
        made.flat_map(|dataset| {
            let stage = &dataset.state().begin.stage;
            let tables = dataset.tables().filter(|table| has(dataset, table));
            tables.map(|table| (stage.clone(), quoted(stage, table))).collect::<Vec<_>>()
        })
        .collect()
    }
}
