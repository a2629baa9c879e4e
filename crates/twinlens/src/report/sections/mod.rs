//! The sections of a report, each from a few queries.

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

pub struct ReportData<'a> {
    /// Every dataset and view is a table in it.
    pub session: &'a SessionContext,
    pub datasets: &'a [Dataset],
}

pub async fn report(title: String, data: &ReportData<'_>) -> Result<Report, Failure> {
    let sections: Vec<Section> = vec![
        accuracy::accuracies(data).await?,
        accuracy::gains(data).await?,
        samples::samples(data).await?,
        classes::confusions(data).await?,
        classes::support(data).await?,
        training::losses(data).await?,
        data::funnel(data).await?,
        data::balance(data).await?,
        scaling::scaling(data).await?,
        accuracy::warnings(data).await?,
        settings::hashes(data).await?,
        settings::settings(data),
    ];
    Ok(Report { title, summary: summary::summary(data).await?, sections })
}

impl ReportData<'_> {
    /// Stage and SQL name of each table that has these columns, except results of `sql` stages.
    fn tables_with(&self, columns: &[&str]) -> Vec<(String, String)> {
        let tables = Run::new(self.datasets).tables_with(columns).into_iter();
        tables.map(|table| (table.stage().to_string(), table.sql())).collect()
    }
}
