//! Runs the `[[tests]]` of a pipeline: queries over the finished run with an expected result.

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

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
pub async fn run(
    session: &SessionContext,
    tests: &[Test],
    cancel: &CancellationToken,
) -> Result<Vec<TestResult>, RunError> {
    let mut results = Vec::new();
    for test in tests {
        let failure = match answer(session, test, cancel).await {
            Ok(Some(answer)) => failure(test.expect, &answer)?,
            Ok(None) => {
                let seconds = test.timeout.as_secs_f64();
                Some(format!("no answer within {seconds} seconds; `timeout` allows more"))
            }
            // Too little memory, a division by zero: the other tests can still be run.
            Err(RunError::Engine(error)) if is_about_the_query(&error) => {
                Some(format!("the query failed: {}", error.strip_backtrace()))
            }
            Err(error) => return Err(error),
        };
        results.push(TestResult { that: test.that.clone(), failure, line: test.line });
    }
    Ok(results)
}

/// What the query of a test gives, if it ends in time.
async fn answer(
    session: &SessionContext,
    test: &Test,
    cancel: &CancellationToken,
) -> Result<Option<Answer>, RunError> {
    let (session, query) = (session.clone(), test.sql.clone());
    // A task of its own, since a plan may compute for long without yielding.
    let mut running = tokio::spawn(async move {
        let stream = session.sql(&query).await?.execute_stream().await?;
        Answer::of(stream).await
    });
    let ended = tokio::select! {
        () = cancel.cancelled() => Err(RunError::Interrupted),
        done = tokio::time::timeout(test.timeout, &mut running) => Ok(done.ok()),
    };
    running.abort();
    match ended? {
        Some(done) => done.map_err(|panic| RunError::Internal(panic.to_string()))?.map(Some),
        None => Ok(None),
    }
}

fn is_about_the_query(error: &DataFusionError) -> bool {
    use DataFusionError::{ArrowError, Execution, ResourcesExhausted};
    matches!(error.find_root(), ResourcesExhausted(_) | Execution(_) | ArrowError(..))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn test(sql: &str, expect: Expect, timeout: f64) -> Test {
        let timeout = Duration::from_secs_f64(timeout);
        Test { that: "it holds".into(), sql: sql.into(), expect, timeout, line: 1 }
    }

    /// Hours of work, in pieces between which it can be ended.
    const ENDLESS: &str = "select count(*) > 0 from generate_series(1, 4000000000000) a(x) where x % 7 = 8";

    fn failures(tests: &[Test]) -> Vec<Option<String>> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let session = SessionContext::new();
        let results = runtime.block_on(run(&session, tests, &CancellationToken::new())).unwrap();
        runtime.shutdown_background();
        results.into_iter().map(|result| result.failure).collect()
    }

    #[test]
    fn a_test_without_an_answer_fails_and_the_others_are_run() {
        let failures = failures(&[
            test(ENDLESS, Expect::True, 0.2),
            test("select 1 / (1 - count(*)) = 1 from (values (1))", Expect::True, 60.0),
            test("select true", Expect::True, 60.0),
            test("select false", Expect::True, 60.0),
        ]);
        let says = |index: usize, part: &str| {
            let found = failures[index].as_deref().unwrap_or("it holds");
            assert!(found.contains(part), "test {index}: {found}");
        };
        says(0, "no answer within 0.2 seconds; `timeout` allows more");
        says(1, "the query failed: ");
        says(1, "ivide by zero");
        says(2, "it holds");
        says(3, "expected one row that is true");
    }

    #[test]
    fn an_interrupt_ends_a_test() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (session, cancel) = (SessionContext::new(), CancellationToken::new());
        let tests = [test(ENDLESS, Expect::True, 3600.0)];
        let ended = runtime.block_on(async {
            let stop = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                cancel.cancel();
            };
            tokio::join!(run(&session, &tests, &cancel), stop).0
        });
        runtime.shutdown_background();
        assert!(matches!(ended, Err(RunError::Interrupted)), "{ended:?}");
    }
}
