//! `match`: finds the queries that occur in each caption.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, Int32Builder, ListBuilder};
use datafusion::arrow::datatypes::Field;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, col, ident, lit, when};
use datafusion::scalar::ScalarValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_pipeline::rejects::{CODE, reject_where};
use twinlens_pipeline::{
    Input, Inputs, Located, Ports, Required, Rows, RunContext, RunError, SortKey, StageKind, TakesOver, Work,
};

use super::columns::with_field;
use super::query_list::{QueryListInput, beside};
use crate::functions::{call, strings};
use crate::matcher::{CacheOutcome, Matcher, Scratch};
use crate::text::Normalizer;

/// The code of rows without any query.
const NO_QUERY: &str = "no_query";
const QUERY_IDS: &str = "query_ids";

/// Finds all queries that occur in each caption as whole words; captions without any become
/// rejects.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchOptions {
    /// The rows to search; `query_ids` is added to them.
    input: Input,
    /// The query list: a table with the columns `id` (whole numbers) and `text`; a `.txt` file of
    /// one query a line; or a `.json` file, as MetaCLIP publishes lists: an array of texts, or an
    /// object of counts. In a file, the id of a query is its line or place, from 0.
    queries: Input,
    /// The column to search.
    #[serde(default = "caption")]
    column: Located<String>,
    /// Whether case is ignored: "Dog" matches the query "dog".
    #[serde(default = "yes")]
    fold_case: bool,
}

/// `match` as it runs.
pub struct Match {
    queries: QueryListInput,
    column: String,
    fold_case: bool,
    /// The matcher and the identity of its list: built once, not for every split.
    ready: Mutex<Option<(String, Arc<Matcher>)>>,
}

fn caption() -> Located<String> {
    Located::without_span("caption".into())
}

fn yes() -> bool {
    true
}

impl StageKind for Match {
    type Options = MatchOptions;
    const NAME: &'static str = "match";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"[stages.matched]
kind = "match"
input = "pages"
queries = "queries/queries.parquet"
"#;

    fn plan(options: MatchOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        let queries = QueryListInput::declare(&options.queries, ports);
        let ids = Field::new(QUERY_IDS, contracts::int_list(), true);
        let schema = ports.schema(&input).map(|schema| with_field(&schema, ids));
        ports.output(schema, SortKey::columns(ROW_ORDER));
        ports.computes(QUERY_IDS);
        ports.takes_over(TakesOver::Costly(&[]));
        ports.text(&input, &options.column, Required::Yes);
        Some(Work::rows(Match {
            queries,
            column: options.column.value().clone(),
            fold_case: options.fold_case,
            ready: Mutex::default(),
        }))
    }
}

#[async_trait]
impl Rows for Match {
    async fn transform(
        &self,
        cx: &RunContext,
        rows: DataFrame,
        inputs: &Inputs,
    ) -> Result<DataFrame, RunError> {
        let matcher = self.matcher(cx, inputs).await?;
        let known = rows.schema().has_column_with_unqualified_name(QUERY_IDS);
        let before =
            if known { ident(QUERY_IDS) } else { lit(ScalarValue::try_new_null(&contracts::int_list())?) };
        let found =
            when(col(CODE).is_null(), matches(matcher, ident(self.column.as_str()))).otherwise(before)?;
        let frame = rows.with_column(QUERY_IDS, found)?;
        let column = &self.column;
        let detail = when(ident(column).is_null(), lit(format!("`{column}` is null")))
            .otherwise(lit(format!("no query of {} occurs in `{column}`", self.queries.name(inputs))))?;
        reject_where(frame, &cx.stage, ident(QUERY_IDS).is_null(), NO_QUERY, detail)
    }
}

impl Match {
    async fn matcher(&self, cx: &RunContext, inputs: &Inputs) -> Result<Arc<Matcher>, RunError> {
        let identity = self.queries.identity(cx, inputs)?;
        // Locked until the matcher is ready: one split builds it while the others wait.
        let mut ready = self.ready.lock().await;
        if let Some((of, matcher)) = ready.as_ref()
            && *of == identity
        {
            return Ok(matcher.clone());
        }
        let queries = self.queries.read(cx, inputs).await?;
        let queries: Vec<_> = queries.into_iter().map(|query| (query.id, query.text)).collect();
        let rules = if self.fold_case { "folded" } else { "cased" };
        let path = beside(&self.queries.local_path(cx, inputs)?, &format!(".{rules}.matcher"));
        let normalizer = Normalizer { fold_case: self.fold_case };
        let make = move || Matcher::cached(&path, &queries, normalizer);
        let made = twinlens_pipeline::blocking(make).await?;
        let name = self.queries.name(inputs);
        let (matcher, outcome) = made.map_err(|error| RunError::user(format!("{name}: {error}")))?;
        if let CacheOutcome::NotSaved(why) = outcome {
            cx.progress.note(format!("the matcher of {name} cannot be saved for the next run: {why}"));
        }
        let matcher = Arc::new(matcher);
        *ready = Some((identity, matcher.clone()));
        Ok(matcher)
    }
}

/// An expression: the ids of the queries in a text as a list; null if there are none.
fn matches(matcher: Arc<Matcher>, text: Expr) -> Expr {
    call("match_queries", vec![text], contracts::int_list(), move |columns| {
        let texts = strings(&columns[0])?;
        let mut lists = ListBuilder::with_capacity(Int32Builder::new(), texts.len());
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        for text in &texts {
            matcher.matches_into(text.unwrap_or_default(), &mut scratch, &mut ids);
            lists.values().append_slice(&ids);
            lists.append(!ids.is_empty());
        }
        Ok(Arc::new(lists.finish()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use datafusion::arrow::array::RecordBatch;
    use twinlens_dataset::contracts;

    #[tokio::test]
    async fn rows_get_their_queries_or_are_rejected() {
        let list = queries(&[(7, "St. Louis"), (3, "arch"), (5, "the arch")]);
        let pairs = pairs(&[("a", "The Arch, St. Louis"), ("b", "archery"), ("c", "\0"), ("d", "ARCH!")]);
        let stage = stage("match", "input = \"pages.parquet\"\nqueries = \"queries.parquet\"");
        let stage = stage.table("pages", &pairs).table("queries", &list);
        let made = stage.run().await.unwrap();
        assert_eq!(
            made.rows(&["uid", "query_ids", "reject_code"]),
            ["a|[3, 5, 7]|", "b||no_query", "c||no_query", "d|[3]|"]
        );
        assert!(stage.path("queries.parquet.folded.matcher").exists(), "it is kept for the next run");
    }

    #[test]
    fn inputs_are_checked() {
        let options = "input = \"pages.parquet\"\nqueries = \"lists.parquet\"\ncolumn = \"alt\"";
        let lists = RecordBatch::new_empty(contracts::per_class());
        let stage = stage("match", options).table("pages", &pairs(&[])).table("lists", &lists);
        assert_eq!(
            stage.faults(),
            [
                "\"lists.parquet\": `lists.parquet` has no column `id` (a query list has the columns `id` and `text`)",
                "\"lists.parquet\": `lists.parquet` has no column `text` (a query list has the columns `id` and `text`)",
                "\"alt\": `pages.parquet` has no column `alt`",
            ]
        );
    }
}
