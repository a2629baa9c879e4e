//! Runs the `[[tests]]` of a pipeline: queries over the finished run with an expected result.

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;

use crate::config::{Expect, Test};
use crate::error::RunError;

/// The result of a test.
#[derive(Debug, Clone)]
pub struct TestResult {
    /// The statement that the test checks.
    pub that: String,
    /// `None` if it holds; else the actual result.
    pub failure: Option<String>,
    /// The line of the test in the pipeline file.
    pub line: usize,
}

/// Runs the tests over a session in which the run's datasets are tables.
pub async fn run(session: &SessionContext, tests: &[Test]) -> Result<Vec<TestResult>, RunError> {
    let mut results = Vec::new();
    for test in tests {
        let batches = session.sql(&test.sql).await?.collect().await?;
        results.push(TestResult {
            that: test.that.clone(),
            failure: failure(test.expect, &batches)?,
            line: test.line,
        });
    }
    Ok(results)
}

fn failure(expect: Expect, batches: &[RecordBatch]) -> Result<Option<String>, RunError> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    Ok(match expect {
        Expect::Empty if rows == 0 => None,
        Expect::Empty => Some(format!("expected no row, got {rows}:\n{}", first_rows(batches)?)),
        Expect::NonEmpty if rows > 0 => None,
        Expect::NonEmpty => Some("expected a row, got none".into()),
        Expect::True if rows == 1 && is_true(batches) => None,
        Expect::True => Some(format!("expected one row that is true, got:\n{}", first_rows(batches)?)),
    })
}

fn is_true(batches: &[RecordBatch]) -> bool {
    batches.iter().filter(|batch| batch.num_rows() == 1).any(|batch| {
        let column = batch.column(0);
        batch.num_columns() == 1
            && column.data_type() == &DataType::Boolean
            && column.as_boolean().value(0)
            && column.is_valid(0)
    })
}

fn first_rows(batches: &[RecordBatch]) -> Result<String, RunError> {
    let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok("no row".into()) };
    let few = batch.slice(0, batch.num_rows().min(10));
    Ok(pretty_format_batches(&[few]).map_err(|error| RunError::Engine(error.into()))?.to_string())
}
