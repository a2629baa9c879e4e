//! `balance`: keeps a limited number of pairs of each query.
//!
//! First passes over `uid` and `query_ids` compute a few numbers per query: its number of matches
//! and, with a cap, its hash bound. Then each row is decided independently. Nothing is joined or
//! grouped by row, so memory does not grow with the input; the only sort, by `uid` as rows are
//! written, spills.

mod passes;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, Float32Array, Int32Array, Int64Array, RecordBatch,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::HashMap;
use datafusion::dataframe::DataFrame;
use datafusion::error::Result as EngineResult;
use datafusion::logical_expr::{Expr, JoinType, cast, ident, lit};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_pipeline::rejects::{reject_where, with_reserved};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, RunContext, RunError, Stage, StageKind,
    Tables, Whole, Work,
};

use crate::balance::{Balancer, CurvePoint, Limit, QueryCounts, curve};
use crate::columns::{is_int_list, is_text, require};
use crate::functions::{call, strings};
use passes::each_set;

/// The code of pairs that no query contributes.
const OVER_CAP: &str = "over_cap";
/// The code of pairs that have no query.
const NO_QUERY: &str = "no_query";
const CURVE: &str = "balance_curve";
/// An internal column: whether the row is kept.
const KEPT: &str = "__balance_kept";

/// Keeps at most `cap` pairs of each query (or `sample` on average); the others become rejects.
/// Also writes `query_stats` (one row per query: matched, contributed, kept) and `balance_curve`
/// (queries by decreasing number of matches: the cumulative matches and contributions of the first
/// 1, 2, ... of them).
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// The matched pairs: `uid` and `query_ids` are read.
    input: Input,
    /// The most pairs that a query contributes, exactly: those with the smallest seeded hash. A
    /// pair is kept if any of its queries contributes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cap: Option<Located<u64>>,
    /// Instead of `cap`: the number of pairs that a query contributes on average, each by an
    /// independent coin flip (MetaCLIP's t).
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<Located<u64>>,
    /// Queries that matched fewer pairs than this contribute none.
    #[serde(default)]
    min_matched: u64,
    /// The query list, for `query_stats` to show each query's text and origin.
    #[serde(skip_serializing_if = "Option::is_none")]
    queries: Option<Input>,
}

impl Balance {
    fn limit(&self) -> Option<Limit> {
        match (&self.cap, &self.sample) {
            (Some(cap), None) => Some(Limit::Cap(*cap.value())),
            (None, Some(sample)) => Some(Limit::Sample(*sample.value())),
            _ => None,
        }
    }
}

impl StageKind for Balance {
    const KIND: &'static str = "balance";
    const ABOUT: &'static str = "Keeps a limited number of pairs of each query; the others become rejects";
    const EXAMPLE: &'static str = r#"[stages.wit]
kind = "balance"
input = "matched"
cap = 20000
queries = "queries/queries.parquet"
"#;
    const VERSION: u32 = 2;
}

impl Stage for Balance {
    fn inputs(&self) -> Vec<Input> {
        [&self.input].into_iter().chain(&self.queries).cloned().collect()
    }

    fn side_tables(&self) -> &'static [&'static str] {
        &["query_stats", CURVE]
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let schema = super::known_schema(&inputs[0]);
        let mut faults = Vec::new();
        match (&self.cap, &self.sample) {
            (None, None) => {
                faults.push(inputs[0].fault("neither `cap` nor `sample` is given").hint("add `cap = 20000`"))
            }
            (Some(_), Some(sample)) => faults.push(
                Fault::at(sample.span(), "`cap` and `sample` are both given").label("expected one of them"),
            ),
            (Some(limit), None) | (None, Some(limit)) if *limit.value() == 0 => {
                faults.push(Fault::at(limit.span(), "nothing would be kept").label("expected at least 1"));
            }
            _ => {}
        }
        let at = || self.input.0.span();
        let lists = require(&schema, "query_ids", "lists of 32-bit integers", is_int_list, at());
        faults.extend(require(&schema, "uid", "text", is_text, at()).err());
        faults.extend(lists.map_err(|fault| fault.hint("put a `match` stage before this one")).err());
        if let Some(list) = inputs.get(1) {
            let schema = list.schema.clone().unwrap_or_else(contracts::queries);
            let at = || list.input.0.span();
            faults.extend(
                require(&schema, "id", "32-bit integers", |kind| kind == &DataType::Int32, at()).err(),
            );
            faults.extend(require(&schema, "text", "text", is_text, at()).err());
            faults.extend(require(&schema, "origin", "text", is_text, at()).err());
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let main = super::with_field(&schema, Field::new("keep_prob", DataType::Float32, true));
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        let stats = super::with_field(&contracts::query_stats(), text("query"));
        let tables = Tables::main(main).with("query_stats", super::with_field(&stats, text("origin")));
        Ok(tables.with(CURVE, curve_schema()))
    }

    fn work(&self) -> Work<'_> {
        Work::Whole(self)
    }
}

#[async_trait]
impl Whole for Balance {
    async fn plan(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
    ) -> Result<Vec<(&'static str, DataFrame)>, RunError> {
        let input = inputs.first().ok_or_else(|| RunError::Internal("balance without input".into()))?;
        let limit = self.limit().ok_or_else(|| RunError::Internal("balance without a limit".into()))?;
        let seed = cx.seed_for("balance");
        let frame = input.frame(&cx.session).await?;
        let counts = passes::counts(&frame).await?;
        let bounds = match limit {
            Limit::Cap(cap) => passes::bounds(&frame, seed, cap, &counts, cx.bytes_in_flight / 2).await?,
            Limit::Sample(_) => HashMap::new(),
        };
        let balancer = Arc::new(Balancer::new(seed, limit, self.min_matched, &counts, &bounds));
        let outcomes = passes::outcomes(&frame, &balancer).await?;
        let list = match inputs.get(1) {
            Some(list) => Some(list.frame(&cx.session).await?),
            None => None,
        };
        Ok(vec![
            ("data", self.with_rejects(cx, frame, &balancer, limit)?),
            (CURVE, cx.session.read_batch(curve_batch(&curve(outcomes.values().copied().collect()))?)?),
            ("query_stats", stats(&cx.session, outcomes, list)?),
        ])
    }
}

impl Balance {
    /// All rows with `keep_prob`; those that no query contributes are rejected.
    fn with_rejects(
        &self,
        cx: &RunContext,
        frame: DataFrame,
        balancer: &Arc<Balancer>,
        limit: Limit,
    ) -> Result<DataFrame, RunError> {
        let kept = || ident(KEPT);
        let frame =
            frame.with_column("keep_prob", keep_probability(balancer))?.with_column(KEPT, keeps(balancer))?;
        let frame = with_reserved(frame)?;
        let frame = reject_where(frame, &cx.stage, kept().is_null(), NO_QUERY, lit(ScalarValue::Utf8(None)))?;
        let detail = format!("none of its queries contributes it within {}", limit.pairs());
        Ok(reject_where(frame, &cx.stage, kept().is_false(), OVER_CAP, lit(detail))?.drop_columns(&[KEPT])?)
    }
}

/// Whether a pair is kept; null if it has no query.
fn keeps(balancer: &Arc<Balancer>) -> Expr {
    let balancer = balancer.clone();
    call("balance_keeps", vec![ident("uid"), ident("query_ids")], DataType::Boolean, move |columns| {
        let uids = strings(&columns[0])?;
        let mut kept = Vec::with_capacity(uids.len());
        each_set(&columns[1], |row, queries| {
            let decide = || balancer.keeps(balancer.pair(uids.value(row)), queries);
            kept.push((!queries.is_empty()).then(decide));
        })?;
        Ok(Arc::new(BooleanArray::from(kept)))
    })
}

/// The probability, over seeds, that a pair is kept; null if it has no query.
fn keep_probability(balancer: &Arc<Balancer>) -> Expr {
    let balancer = balancer.clone();
    call("keep_probability", vec![ident("query_ids")], DataType::Float32, move |columns| {
        let mut probabilities = Vec::with_capacity(columns[0].len());
        each_set(&columns[0], |_, queries| {
            let probability = || balancer.keep_probability(queries) as f32;
            probabilities.push((!queries.is_empty()).then(probability));
        })?;
        Ok(Arc::new(Float32Array::from(probabilities)))
    })
}

/// One row per query that matched: `query_id`, `matched`, `contributed`, `kept`, and its text and
/// origin.
fn stats(
    session: &SessionContext,
    outcomes: HashMap<i32, QueryCounts>,
    list: Option<DataFrame>,
) -> EngineResult<DataFrame> {
    let mut outcomes: Vec<_> = outcomes.into_iter().collect();
    outcomes.sort_unstable_by_key(|(query, _)| *query);
    let number = |of: fn(&QueryCounts) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(outcomes.iter().map(|(_, counts)| of(counts) as i64)))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(outcomes.iter().map(|(query, _)| *query))),
        number(|counts| counts.matched),
        number(|counts| counts.contributed),
        number(|counts| counts.kept),
    ];
    let stats = session.read_batch(RecordBatch::try_new(contracts::query_stats(), columns)?)?;
    let Some(list) = list else {
        let null = || lit(ScalarValue::Utf8(None));
        return stats.with_column("query", null())?.with_column("origin", null());
    };
    let text = |value: Expr, name: &str| cast(value, DataType::Utf8).alias(name);
    let list =
        list.select(vec![ident("id"), text(ident("text"), "query"), text(ident("origin"), "origin")])?;
    stats.join(list, JoinType::Left, &["query_id"], &["id"], None)
}

/// Queries by decreasing number of matches: at `rank`, the matches of that query, and the sums up
/// to it.
fn curve_schema() -> SchemaRef {
    let number = |name| Field::new(name, DataType::Int64, true);
    Arc::new(Schema::new(["rank", "matched", "matched_upto", "contributed_upto"].map(number).to_vec()))
}

fn curve_batch(points: &[CurvePoint]) -> EngineResult<RecordBatch> {
    let number = |of: fn(&CurvePoint) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(points.iter().map(|point| of(point) as i64)))
    };
    let columns = vec![
        number(|point| point.rank),
        number(|point| point.matched),
        number(|point| point.matched_upto),
        number(|point| point.contributed_upto),
    ];
    Ok(RecordBatch::try_new(curve_schema(), columns)?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::collections::BTreeMap;

    /// 300 pairs that match query 1; every third also query 2, every hundredth query 3; and one
    /// pair without a query.
    fn matched() -> Vec<(String, Option<Vec<i32>>)> {
        let queries =
            |i: usize| [Some(1), i.is_multiple_of(3).then_some(2), i.is_multiple_of(100).then_some(3)];
        let mut pairs: Vec<_> = (0..300)
            .map(|i| (format!("{i:032x}"), Some(queries(i).into_iter().flatten().collect())))
            .collect();
        pairs.push((format!("{:032x}", 300), None));
        pairs
    }

    async fn balanced(
        toml: &str,
        pairs: &[(String, Option<Vec<i32>>)],
    ) -> BTreeMap<&'static str, Vec<String>> {
        let stage: Balance = parse(toml);
        let list = queries(&[(1, "dog"), (2, "cat"), (3, "owl")]);
        let inputs = [("matched", matched_pairs(pairs)), ("queries", list)];
        let inputs = if toml.contains("queries") { &inputs[..] } else { &inputs[..1] };
        let columns = BTreeMap::from([
            ("data", vec!["uid", "keep_prob", "reject_code"]),
            ("query_stats", vec!["query_id", "matched", "contributed", "kept", "query"]),
            (CURVE, vec!["rank", "matched", "matched_upto", "contributed_upto"]),
        ]);
        whole(&stage, inputs, &columns).await
    }

    fn kept(lines: &[String]) -> Vec<&str> {
        lines.iter().filter(|line| line.ends_with('|')).map(|line| line.split('|').next().unwrap()).collect()
    }

    #[tokio::test]
    async fn no_query_contributes_more_than_its_cap_and_every_row_is_accounted_for() {
        let mut pairs = matched();
        let found = balanced("input = \"matched\"\ncap = 10\nqueries = \"queries\"", &pairs).await;
        assert_eq!(found["data"].len(), 301);
        assert_eq!(found["data"].iter().filter(|line| line.ends_with("|no_query")).count(), 1);
        let kept_count = kept(&found["data"]).len();
        let over = found["data"].iter().filter(|line| line.ends_with("|over_cap")).count();
        assert_eq!(kept_count + over, 300);
        // Ten of query 1, ten of query 2, three of query 3, with overlaps.
        assert!((20..=23).contains(&kept_count), "{kept_count}");
        let stats: Vec<&str> = found["query_stats"].iter().map(String::as_str).collect();
        assert_eq!(stats[0], format!("1|300|10|{kept_count}|dog"));
        assert!(stats[1].starts_with("2|100|10|") && stats[2].starts_with("3|3|3|3|owl"), "{stats:?}");
        assert_eq!(found[CURVE], ["1|300|300|10", "2|100|400|20", "3|3|403|23"]);
        // The order of rows and repeats within a list change nothing.
        pairs.reverse();
        pairs.iter_mut().filter_map(|(_, queries)| queries.as_mut()).for_each(|queries| queries.push(1));
        let again = balanced("input = \"matched\"\ncap = 10\nqueries = \"queries\"", &pairs).await;
        assert_eq!(found, again);
    }

    #[tokio::test]
    async fn sampling_has_the_stated_probabilities() {
        let found = balanced("input = \"matched\"\nsample = 30", &matched()).await;
        let probability = |uid: usize| found["data"][uid].split('|').nth(1).unwrap().parse::<f32>().unwrap();
        assert!((probability(1) - 0.1).abs() < 1e-6);
        assert!((probability(3) - (1.0 - 0.9 * 0.7)).abs() < 1e-6);
        assert!((probability(100) - 1.0).abs() < 1e-6);
        let kept = kept(&found["data"]).len();
        // 199 at 0.1, 99 at 0.37 and 2 more at 1: 58.5, standard deviation 6.4.
        assert!((33..=84).contains(&kept), "{kept}");
    }

    #[tokio::test]
    async fn queries_below_the_minimum_contribute_nothing() {
        let found = balanced("input = \"matched\"\ncap = 1000\nmin_matched = 200", &matched()).await;
        assert_eq!(kept(&found["data"]).len(), 300);
        assert_eq!(found["query_stats"], ["1|300|300|300|", "2|100|0|100|", "3|3|0|3|"]);
    }

    #[test]
    fn options_are_checked() {
        let faults = |toml: &str, schema| {
            let faults = parse::<Balance>(toml).tables(&check(), &[input("matched", schema)]).unwrap_err();
            faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("; ")
        };
        let pairs = contracts::pairs;
        assert!(faults("input = \"matched\"", pairs()).contains("neither"));
        assert!(faults("input = \"matched\"\ncap = 1\nsample = 2", pairs()).contains("both"));
        assert!(faults("input = \"matched\"\ncap = 0", pairs()).contains("nothing would be kept"));
        assert!(
            faults("input = \"matched\"\ncap = 1", contracts::pair_texts())
                .contains("unknown column `query_ids`")
        );
    }
}
