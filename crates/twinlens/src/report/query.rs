//! Queries with few result rows, and formatting of their values.

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::prelude::SessionContext;
use twinlens_dataset::Dataset;
use twinlens_pipeline::Registry;

use crate::errors::Failure;
use crate::syntax::literal;
use crate::views;

pub(super) struct ReportData<'a> {
    /// Every dataset and view is a table in it.
    pub session: &'a SessionContext,
    pub datasets: &'a [Dataset],
    pub registry: &'a Registry,
    /// The run directory.
    pub dir: String,
    /// The run that this one is compared with.
    pub other: Option<OtherRun>,
}

/// A run to compare with, whose views are in `runs` too.
pub(super) struct OtherRun {
    pub name: String,
    pub dir: String,
    pub datasets: Vec<Dataset>,
}

impl ReportData<'_> {
    pub(super) fn run(&self) -> views::Run<'_> {
        views::Run::new(self.datasets, self.registry)
    }

    /// Stage and SQL name of each table that has these columns, except the results of queries.
    pub(super) fn tables_with(&self, columns: &[&str]) -> Vec<(String, String)> {
        let tables = self.run().tables_with(columns).into_iter();
        tables.map(|table| (table.stage().to_string(), table.sql())).collect()
    }
}

#[derive(Default)]
pub(super) struct Rows {
    batches: Vec<RecordBatch>,
}

pub(super) struct Row<'a> {
    batch: &'a RecordBatch,
    row: usize,
}

pub(super) async fn fetch_rows(session: &SessionContext, query: &str) -> Result<Rows, Failure> {
    Ok(Rows { batches: session.sql(query).await?.collect().await? })
}

/// The uids of random rows with images, as a list for SQL: uids are hashes, so the first ones are a
/// random sample. The images are not read.
pub(super) async fn random_uids(data: &ReportData<'_>, table: &str, most: usize) -> Result<String, Failure> {
    let query = format!("select uid from {table} where image is not null order by uid limit {most}");
    let rows = fetch_rows(data.session, &query).await?;
    let uids: Vec<String> = rows.iter().map(|row| literal(&row.text("uid"))).collect();
    // An empty list is a syntax error.
    Ok(if uids.is_empty() { "''".into() } else { uids.join(", ") })
}

/// Whether the run has the tables that a view needs.
pub(super) fn has_view(session: &SessionContext, view: &str) -> Result<bool, Failure> {
    Ok(session.table_exist(format!("{}.{view}", views::SCHEMA))?)
}

impl Rows {
    pub(super) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| Row { batch, row }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.iter().all(|batch| batch.num_rows() == 0)
    }
}

impl Row<'_> {
    fn value(&self, column: &str, kind: &DataType) -> Option<std::sync::Arc<dyn Array>> {
        let value = self.batch.column_by_name(column)?.slice(self.row, 1);
        cast(&value, kind).ok().filter(|value| !value.is_null(0))
    }

    /// A value as text; empty if it is null.
    pub(super) fn text(&self, column: &str) -> String {
        let value = self.value(column, &DataType::Utf8);
        value.map(|value| value.as_string::<i32>().value(0).to_string()).unwrap_or_default()
    }

    /// A finite number.
    pub(super) fn number(&self, column: &str) -> Option<f64> {
        let value = self.value(column, &DataType::Float64)?;
        Some(value.as_primitive::<Float64Type>().value(0)).filter(|value| value.is_finite())
    }

    /// A count; 0 if it is null.
    pub(super) fn count(&self, column: &str) -> u64 {
        self.number(column).map_or(0, |value| value.max(0.0) as u64)
    }

    pub(super) fn bytes(&self, column: &str) -> Option<Vec<u8>> {
        let value = self.value(column, &DataType::LargeBinary)?;
        Some(value.as_binary::<i64>().value(0).to_vec())
    }
}

/// A number with three significant digits, or `-`.
pub(super) fn number(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".into() };
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 1000.0 => crate::text::count(size.round() as u64),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// A fraction as a percentage, or `-`.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{:.1}%", 100.0 * value))
}

/// An interval of fractions as percentages, or `-`.
pub(super) fn interval(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{:.1} to {:.1}%", 100.0 * low, 100.0 * high),
        _ => "-".into(),
    }
}
