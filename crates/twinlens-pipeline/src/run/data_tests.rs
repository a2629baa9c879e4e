//! Runs the `[[tests]]` of a pipeline: queries over the finished run with an expected result.

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;

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
        let answer = Answer::of(session.sql(&test.sql).await?.execute_stream().await?).await?;
        results.push(TestResult {
            that: test.that.clone(),
            failure: failure(test.expect, &answer)?,
            line: test.line,
        });
    }
    Ok(results)
}

/// Rows of an answer that are shown.
const SHOWN: usize = 10;

/// What is kept of an answer, which may be larger than memory.
struct Answer {
    rows: usize,
    /// The first rows, of one batch.
    first: Option<RecordBatch>,
}

impl Answer {
    async fn of(mut stream: SendableRecordBatchStream) -> Result<Self, RunError> {
        let mut answer = Self { rows: 0, first: None };
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            answer.rows += batch.num_rows();
            if answer.first.is_none() && batch.num_rows() > 0 {
                answer.first = Some(batch.slice(0, batch.num_rows().min(SHOWN)));
            }
        }
        Ok(answer)
    }

    fn is_true(&self) -> bool {
        let Some(batch) = self.first.as_ref().filter(|batch| batch.num_columns() == 1) else { return false };
        let column = batch.column(0);
        self.rows == 1
            && column.data_type() == &DataType::Boolean
            && column.as_boolean().value(0)
            && column.is_valid(0)
    }

    fn shown(&self) -> Result<String, RunError> {
        let Some(first) = &self.first else { return Ok("no row".into()) };
        let text = pretty_format_batches(std::slice::from_ref(first));
        Ok(text.map_err(|error| RunError::Engine(error.into()))?.to_string())
    }
}

fn failure(expect: Expect, answer: &Answer) -> Result<Option<String>, RunError> {
    let rows = answer.rows;
    Ok(match expect {
        Expect::Empty if rows == 0 => None,
        Expect::Empty => Some(format!("expected no row, got {rows}:\n{}", answer.shown()?)),
        Expect::NonEmpty if rows > 0 => None,
        Expect::NonEmpty => Some("expected a row, got none".into()),
        Expect::True if answer.is_true() => None,
        Expect::True => Some(format!("expected one row that is true, got:\n{}", answer.shown()?)),
    })
}
