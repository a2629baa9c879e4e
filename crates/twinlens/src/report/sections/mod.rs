//! The sections of a report, each from a few queries.

mod accuracy;
mod classes;
mod data;
mod samples;
mod scaling;
mod settings;
mod summary;
mod training;

use super::model::{Report, Section};
use super::query::ReportData;
use crate::errors::Failure;

pub(super) async fn report(title: String, data: &ReportData<'_>) -> Result<Report, Failure> {
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
