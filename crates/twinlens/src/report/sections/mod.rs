//! The sections of a report, each from a few queries. A section without data is left out.

mod accuracy;
mod balance;
mod classes;
mod compare;
mod contents;
mod funnel;
mod gains;
mod samples;
mod scaling;
mod settings;
mod summary;
mod timing;
mod training;
mod warnings;

use super::model::{Report, Section};
use super::query::ReportData;
use crate::errors::Failure;

pub(super) async fn report(title: String, data: &ReportData<'_>) -> Result<Report, Failure> {
    let sections: Vec<Option<Section>> = vec![
        accuracy::accuracies(data).await?,
        gains::gains(data).await?,
        samples::samples(data).await?,
        classes::confusions(data).await?,
        classes::support(data).await?,
        training::trainings(data).await?,
        compare::compare(data).await?,
        contents::images(data).await?,
        contents::captions(data).await?,
        contents::hosts(data).await?,
        funnel::funnel(data).await?,
        balance::balance(data).await?,
        scaling::scaling(data).await?,
        warnings::warnings(data).await?,
        timing::section(data),
        settings::hashes(data).await?,
        settings::settings(data),
    ];
    let sections = sections.into_iter().flatten().collect();
    Ok(Report { title, summary: summary::summary(data).await?, sections })
}
