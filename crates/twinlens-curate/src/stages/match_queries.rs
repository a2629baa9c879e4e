//! `match`: finds the queries that occur in each caption.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, AsArray, Int32Builder, ListBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, col, ident, lit, when};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use twinlens_dataset::contracts;
use twinlens_pipeline::rejects::{CODE, reject_where};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, Rows, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use crate::columns::{is_text, require};
use crate::functions::{call, strings};
use crate::matcher::{CacheOutcome, Matcher, Scratch};
use crate::text::Normalizer;

/// The code of rows without any query.
const NO_QUERY: &str = "no_query";
const QUERY_IDS: &str = "query_ids";

/// Finds all queries that occur in each caption as whole words; captions without any become
/// rejects.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The rows to search; `query_ids` is added to them.
    input: Input,
    /// The query list: a table with the columns `id` and `text`.
    queries: Input,
    /// The column to search.
    #[serde(default = "caption")]
    column: Located<String>,
    /// Whether case is ignored: "Dog" matches the query "dog".
    #[serde(default = "yes")]
    fold_case: bool,
    /// The matcher and the identity of its list: built once, not for every split.
    #[serde(skip)]
    #[schemars(skip)]
    ready: Mutex<Option<(String, Arc<Matcher>)>>,
}

fn caption() -> Located<String> {
    Located::without_span("caption".into())
}

fn yes() -> bool {
    true
}

impl StageKind for Match {
    const KIND: &'static str = "match";
    const ABOUT: &'static str =
        "Finds the queries that occur in each caption; captions without any become rejects";
    const EXAMPLE: &'static str = r#"[stages.matched]
kind = "match"
input = "pages"
queries = "queries/queries.parquet"
"#;
    const VERSION: u32 = 1;
}

impl Stage for Match {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone(), self.queries.clone()]
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let schema = super::known_schema(&inputs[0]);
        let at = if self.column.span().is_empty() { self.input.0.span() } else { self.column.span() };
        let list = inputs[1].schema.clone().unwrap_or_else(contracts::queries);
        let checks = [
            require(&schema, &self.column, "text", is_text, at),
            require(&list, "id", "32-bit integers", |kind| kind == &DataType::Int32, self.queries.0.span()),
            require(&list, "text", "text", is_text, self.queries.0.span()),
        ];
        let faults: Vec<Fault> = checks.into_iter().filter_map(Result::err).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Tables::main(super::with_field(&schema, Field::new(QUERY_IDS, contracts::int_list(), true))))
    }

    fn work(&self) -> Work<'_> {
        Work::Rows(self)
    }
}

#[async_trait]
impl Rows for Match {
    fn computes(&self) -> Vec<String> {
        vec![QUERY_IDS.into()]
    }

    async fn plan(
        &self,
        cx: &RunContext,
        input: DataFrame,
        others: &[InputData],
    ) -> Result<DataFrame, RunError> {
        let list = others.first().ok_or_else(|| RunError::Internal("match without its query list".into()))?;
        let matcher = self.matcher(cx, list).await?;
        let known = input.schema().has_column_with_unqualified_name(QUERY_IDS);
        let before =
            if known { ident(QUERY_IDS) } else { lit(ScalarValue::try_new_null(&contracts::int_list())?) };
        let found =
            when(col(CODE).is_null(), matches(matcher, ident(self.column.as_str()))).otherwise(before)?;
        let frame = input.with_column(QUERY_IDS, found)?;
        reject_where(frame, &cx.stage, ident(QUERY_IDS).is_null(), NO_QUERY, lit(ScalarValue::Utf8(None)))
    }
}

impl Match {
    async fn matcher(&self, cx: &RunContext, list: &InputData) -> Result<Arc<Matcher>, RunError> {
        let shards: Vec<String> =
            list.dataset.shards(&list.table).map(|s| format!("{} {}", s.path, s.bytes)).collect();
        let identity =
            format!("{} {} {shards:?}", list.dataset.dir().display(), list.dataset.state().begin.fingerprint);
        // Locked until the matcher is ready: one split builds it while the others wait.
        let mut ready = self.ready.lock().await;
        if let Some((of, matcher)) = ready.as_ref()
            && *of == identity
        {
            return Ok(matcher.clone());
        }
        let queries = read_list(&cx.session, list).await?;
        let (path, normalizer) = (self.cache_path(list), Normalizer { fold_case: self.fold_case });
        let make = move || Matcher::cached(&path, &queries, normalizer);
        let made = twinlens_pipeline::blocking(make).await?;
        let (matcher, outcome) = made.map_err(|error| RunError::user(format!("{}: {error}", list.name)))?;
        if let CacheOutcome::NotSaved(why) = outcome {
            cx.progress.note(format!("the matcher of {} cannot be saved for the next run: {why}", list.name));
        }
        let matcher = Arc::new(matcher);
        *ready = Some((identity, matcher.clone()));
        Ok(matcher)
    }

    /// The cache file of the matcher, beside the list.
    fn cache_path(&self, list: &InputData) -> PathBuf {
        let mut shards = list.dataset.shards(&list.table);
        let name = match (shards.next(), list.dataset.state().begin.fingerprint.is_empty()) {
            // A Parquet file lies among other files: the name must be its own.
            (Some(file), true) => &file.path,
            _ => &list.table,
        };
        let rules = if self.fold_case { "folded" } else { "cased" };
        list.dataset.dir().join(format!("{name}.{rules}.matcher"))
    }
}

async fn read_list(session: &SessionContext, list: &InputData) -> Result<Vec<(i32, String)>, RunError> {
    let frame = list.frame(session).await?.select_columns(&["id", "text"])?;
    let mut queries = Vec::new();
    for batch in frame.collect().await? {
        let ids = batch.column(0).as_primitive_opt::<Int32Type>();
        let ids = ids
            .ok_or_else(|| RunError::user(format!("{}: the column `id` is not of type int32", list.name)))?;
        let texts = strings(batch.column(1))?;
        for (id, text) in ids.iter().zip(texts.iter()) {
            let (Some(id), Some(text)) = (id, text) else {
                return Err(RunError::user_with_hint(
                    format!("{}: a query has no id or no text", list.name),
                    "every row of a query list needs both",
                ));
            };
            queries.push((id, text.to_string()));
        }
    }
    Ok(queries)
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
    use super::*;

    #[tokio::test]
    async fn rows_get_their_queries_or_are_rejected() {
        let stage: Match = parse("input = \"pages\"\nqueries = \"queries\"");
        let list = queries(&[(7, "St. Louis"), (3, "arch"), (5, "the arch")]);
        let pairs = pairs(&[("a", "The Arch, St. Louis"), ("b", "archery"), ("c", "\0"), ("d", "ARCH!")]);
        assert_eq!(
            rows_of(&stage, &pairs, &[("queries", list)], &["uid", "query_ids", "reject_code"]).await,
            ["a|[3, 5, 7]|", "b||no_query", "c||no_query", "d|[3]|",]
        );
        // The matcher is reused for the next split.
        assert!(stage.ready.lock().await.is_some());
    }

    #[test]
    fn inputs_are_checked() {
        let stage: Match = parse("input = \"pages\"\nqueries = \"lists\"\ncolumn = \"alt\"");
        let inputs = [input("pages", contracts::pair_texts()), input("lists", contracts::per_class())];
        let faults = stage.tables(&check(), &inputs).unwrap_err();
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(messages, ["unknown column `alt`", "unknown column `id`", "unknown column `text`"]);
        let stage: Match = parse("input = \"pages\"\nqueries = \"list.parquet\"");
        let inputs =
            [input("pages", contracts::pair_texts()), InputTables { schema: None, ..inputs[1].clone() }];
        assert!(stage.tables(&check(), &inputs).unwrap().main.field_with_name("query_ids").is_ok());
    }
}
