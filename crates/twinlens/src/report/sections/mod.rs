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
use crate::views::Run;

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

impl Source<'_> {
    /// The tables that have these columns, with the stage that each is of; those of queries are
    /// left out.
    fn tables_with(&self, columns: &[&str]) -> Vec<(String, String)> {
        let tables = Run::new(self.datasets).with(columns).into_iter();
        tables.map(|table| (table.stage().to_string(), table.sql())).collect()
    }
}
