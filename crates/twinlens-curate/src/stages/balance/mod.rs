//! `balance`: keeps a limited number of pairs of each query.
//!
//! First passes over `uid` and `query_ids` compute a few numbers per query: its number of matches;
//! with a cap, its hash bound; what became of its pairs. Then each row is decided independently.
//! Nothing is joined or grouped by row, so memory does not grow with the input. Each split of a
//! pass answers with numbers per query, so that the splits may be made anywhere.

mod passes;
mod tables;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::HashMap;
use datafusion::dataframe::DataFrame;
use datafusion::error::Result as EngineResult;
use datafusion::logical_expr::{Expr, ident, lit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::Dataset;
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_pipeline::rejects::{reject_where, with_reserved};
use twinlens_pipeline::{
    ColumnType, Fault, Input, InputData, Inputs, Located, NextPass, Pass, PassWork, Passes, Ports, Required,
    RunContext, RunError, SortKey, SplitRows, StageKind, Work,
};

use super::columns::{UID_HINT, with_field};
use super::query_list::{ListedQuery, QueryListInput};
use crate::balance::{Balancer, Bounds, CurvePoint, Limit, QueryCounts, Round, curve};
use crate::functions::{call, strings};
use passes::each_set;

/// The code of pairs that no query contributes.
const OVER_CAP: &str = "over_cap";
/// The code of pairs that have no query.
const NO_QUERY: &str = "no_query";
/// The side table of queries.
const STATS: &str = "query_stats";
/// The side table of head and tail.
const CURVE: &str = "balance_curve";
/// The passes: how many pairs each query matched; hashes near the bounds; what became of its pairs.
const MATCHES: &str = "matches";
const HASHES: &str = "hashes";
const OUTCOMES: &str = "outcomes";
/// Most bytes of the hashes of a pass, about. Not an option: a resumed run makes the same passes.
const ROUND_BYTES: usize = 128 << 20;
/// An internal column: whether the row is kept.
const KEPT: &str = "__twinlens_balance_kept";

/// Keeps at most `cap` pairs of each query (or `sample` on average); the others become rejects.
/// Also writes `query_stats` (one row per query: matched, contributed, kept) and `balance_curve`
/// (queries by decreasing number of matches: the cumulative matches and contributions of the first
/// 1, 2, ... of them).
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalanceOptions {
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
    /// The query list, for `query_stats` to show each query's text and, if the list has it, origin:
    /// as `match` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    queries: Option<Input>,
}

/// `balance` as it runs.
pub struct Balance {
    limit: Limit,
    min_matched: u64,
    queries: Option<QueryListInput>,
}

impl BalanceOptions {
    /// The limit; `None` after a fault.
    fn limit(&self, ports: &mut Ports<'_>) -> Option<Limit> {
        let (limit, written) = match (&self.cap, &self.sample) {
            (None, None) => {
                let fault = self.input.fault("neither `cap` nor `sample` is given");
                ports.fault(fault.hint("add `cap = 20000`"));
                return None;
            }
            (Some(_), Some(sample)) => {
                let fault = Fault::at(sample.span(), "`cap` and `sample` are both given");
                ports.fault(fault.label("expected one of them"));
                return None;
            }
            (Some(cap), None) => (Limit::Cap(*cap.value()), cap),
            (None, Some(sample)) => (Limit::Sample(*sample.value()), sample),
        };
        if *written.value() == 0 {
            let fault = Fault::at(written.span(), "nothing would be kept");
            ports.fault(fault.label("expected at least 1"));
        }
        Some(limit)
    }
}

impl StageKind for Balance {
    type Options = BalanceOptions;
    const NAME: &'static str = "balance";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = r#"[stages.wit]
kind = "balance"
input = "matched"
cap = 20000
queries = "queries/queries.parquet"
"#;

    fn plan(options: BalanceOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        let queries = options.queries.as_ref().map(|queries| QueryListInput::declare(queries, ports));
        let hint = Required::Hint("put a `match` stage before this one");
        ports.column(&input, "query_ids", ColumnType::IntList, hint);
        ports.text(&input, "uid", UID_HINT);
        let probability = Field::new("keep_prob", DataType::Float32, true);
        let schema = ports.schema(&input).map(|schema| with_field(&schema, probability));
        ports.output(schema, SortKey::columns(ROW_ORDER));
        ports.side_table(STATS, stats_schema());
        ports.side_table(CURVE, curve_schema());
        let limit = options.limit(ports)?;
        Some(Work::passes(Balance { limit, min_matched: options.min_matched, queries }))
    }
}

#[async_trait]
impl Passes for Balance {
    async fn next(
        &self,
        cx: &RunContext,
        _: &InputData,
        inputs: &Inputs,
        done: &[Pass],
    ) -> Result<NextPass, RunError> {
        let session = &cx.session;
        let look = |name, told: RecordBatch, answers| {
            Ok(NextPass::Look { name, told: session.read_batch(told)?, answers })
        };
        let mut done = done.iter();
        let Some(matches) = done.next() else {
            // What is wrong with the list is said before the first pass.
            self.list(cx, inputs).await?;
            return look(MATCHES, tables::windows_batch(&[])?, tables::counts_schema());
        };
        let counts = tables::read_counts(session, &matches.answers).await?;
        let mut bounds = HashMap::new();
        if let Limit::Cap(cap) = self.limit {
            let mut search = Bounds::new(cap, &counts);
            while let Some(mut round) = search.next_round(ROUND_BYTES) {
                let Some(hashes) = done.next() else {
                    return look(HASHES, tables::windows_batch(&round.windows())?, tables::seen_schema());
                };
                tables::add_seen(session, &hashes.answers, &mut round).await?;
                search.settle(round);
            }
            bounds = search.into_bounds();
        }
        let balancer = Balancer::new(seed(cx), self.limit, self.min_matched, &counts, &bounds);
        let shares = tables::shares_batch(&balancer)?;
        let Some(outcomes) = done.next() else {
            return look(OUTCOMES, shares, tables::outcomes_schema());
        };
        let outcomes = tables::read_outcomes(session, &outcomes.answers).await?;
        let curve = curve_batch(&curve(outcomes.values().copied().collect()))?;
        let stats = stats(outcomes, &self.list(cx, inputs).await?)?;
        let side = vec![(CURVE, session.read_batch(curve)?), (STATS, session.read_batch(stats)?)];
        Ok(NextPass::Rows { told: session.read_batch(shares)?, side })
    }

    async fn open(&self, cx: &RunContext, pass: &str, told: &Dataset) -> Result<Box<dyn PassWork>, RunError> {
        let (session, seed) = (&cx.session, seed(cx));
        let balancer =
            || async { Ok::<_, RunError>(Arc::new(tables::read_shares(session, told, seed).await?)) };
        Ok(Box::new(match (pass, self.limit) {
            (MATCHES, _) => BalancePass::Matches,
            (HASHES, Limit::Cap(cap)) => {
                let round = Round::searching(cap, tables::read_windows(session, told).await?);
                BalancePass::Hashes { seed, round }
            }
            (OUTCOMES, _) => BalancePass::Outcomes(balancer().await?),
            _ => BalancePass::Rows { balancer: balancer().await?, pairs: self.limit.pairs() },
        }))
    }
}

impl Balance {
    /// The queries of the list by their ids.
    async fn list(&self, cx: &RunContext, inputs: &Inputs) -> Result<HashMap<i32, ListedQuery>, RunError> {
        match &self.queries {
            Some(list) => by_id(list.read(cx, inputs).await?, list.name(inputs)),
            None => Ok(HashMap::new()),
        }
    }
}

fn seed(cx: &RunContext) -> u64 {
    cx.seed_for("balance")
}

/// A pass over the pairs.
enum BalancePass {
    Matches,
    Hashes { seed: u64, round: Round },
    Outcomes(Arc<Balancer>),
    Rows { balancer: Arc<Balancer>, pairs: u64 },
}

#[async_trait]
impl PassWork for BalancePass {
    async fn split(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError> {
        let session = &cx.session;
        let read = || rows.columns(session, &["uid", "query_ids"]);
        let answer = match self {
            Self::Matches => tables::counts_batch(passes::counts(&read()?).await?)?,
            Self::Hashes { seed, round } => {
                tables::seen_batch(passes::search(&read()?, *seed, round.clone()).await?)?
            }
            Self::Outcomes(balancer) => tables::outcomes_batch(passes::outcomes(&read()?, balancer).await?)?,
            Self::Rows { balancer, pairs } => {
                return with_rejects(cx, rows.frame(session)?, balancer, *pairs);
            }
        };
        Ok(session.read_batch(answer)?)
    }
}

/// All rows with `keep_prob`; those that no query contributes are rejected.
fn with_rejects(
    cx: &RunContext,
    frame: DataFrame,
    balancer: &Arc<Balancer>,
    pairs: u64,
) -> Result<DataFrame, RunError> {
    let kept = || ident(KEPT);
    let frame =
        frame.with_column("keep_prob", keep_probability(balancer))?.with_column(KEPT, keeps(balancer))?;
    let frame = with_reserved(frame)?;
    let frame = reject_where(frame, &cx.stage, kept().is_null(), NO_QUERY, lit("`query_ids` is empty"))?;
    let detail = format!("none of its queries contributes it within {pairs}");
    Ok(reject_where(frame, &cx.stage, kept().is_false(), OVER_CAP, lit(detail))?.drop_columns(&[KEPT])?)
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

/// The queries of a list by their ids.
fn by_id(list: Vec<ListedQuery>, name: &str) -> Result<HashMap<i32, ListedQuery>, RunError> {
    let mut queries = HashMap::with_capacity(list.len());
    for query in list {
        let (id, text) = (query.id, query.text.clone());
        if let Some(first) = queries.insert(id, query) {
            let message = format!("{name}: the id {id} is that of {:?} and of {text:?}", first.text);
            return Err(RunError::user_with_hint(message, "give each query an id of its own"));
        }
    }
    Ok(queries)
}

fn stats_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    with_field(&with_field(&contracts::query_stats(), text("query")), text("origin"))
}

/// One row per query that matched: `query_id`, `matched`, `contributed`, `kept`, and its text and
/// origin.
fn stats(outcomes: HashMap<i32, QueryCounts>, list: &HashMap<i32, ListedQuery>) -> EngineResult<RecordBatch> {
    let mut outcomes: Vec<_> = outcomes.into_iter().collect();
    outcomes.sort_unstable_by_key(|(query, _)| *query);
    let number = |of: fn(&QueryCounts) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(outcomes.iter().map(|(_, counts)| of(counts) as i64)))
    };
    let text = |of: fn(&ListedQuery) -> Option<&str>| -> ArrayRef {
        Arc::new(outcomes.iter().map(|(query, _)| of(list.get(query)?)).collect::<StringArray>())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(outcomes.iter().map(|(query, _)| *query))),
        number(|counts| counts.matched),
        number(|counts| counts.contributed),
        number(|counts| counts.kept),
        text(|query| Some(&query.text)),
        text(|query| query.origin.as_deref()),
    ];
    Ok(RecordBatch::try_new(stats_schema(), columns)?)
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
        let list = queries(&[(1, "dog"), (2, "cat"), (3, "owl")]);
        let stage = stage("balance", &format!("input = \"matched.parquet\"\n{toml}"));
        let made = stage.table("matched", &matched_pairs(pairs)).table("queries", &list).run().await.unwrap();
        BTreeMap::from([
            ("data", made.rows(&["uid", "keep_prob", "reject_code"])),
            (STATS, made.table(STATS, &["query_id", "matched", "contributed", "kept", "query"])),
            (CURVE, made.table(CURVE, &["rank", "matched", "matched_upto", "contributed_upto"])),
        ])
    }

    fn kept(lines: &[String]) -> Vec<&str> {
        lines.iter().filter(|line| line.ends_with('|')).map(|line| line.split('|').next().unwrap()).collect()
    }

    #[tokio::test]
    async fn no_query_contributes_more_than_its_cap_and_every_row_is_accounted_for() {
        let mut pairs = matched();
        let found = balanced("cap = 10\nqueries = \"queries.parquet\"", &pairs).await;
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
        let again = balanced("cap = 10\nqueries = \"queries.parquet\"", &pairs).await;
        assert_eq!(found, again);
    }

    #[tokio::test]
    async fn sampling_has_the_stated_probabilities() {
        let found = balanced("sample = 30", &matched()).await;
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
        let found = balanced("cap = 1000\nmin_matched = 200", &matched()).await;
        assert_eq!(kept(&found["data"]).len(), 300);
        assert_eq!(found["query_stats"], ["1|300|300|300|", "2|100|0|100|", "3|3|0|3|"]);
    }

    #[test]
    fn options_are_checked() {
        let faults = |options: &str, schema| {
            let stage = stage("balance", &format!("input = \"matched.parquet\"\n{options}"));
            stage.table("matched", &RecordBatch::new_empty(schema)).faults().join("; ")
        };
        let pairs = contracts::pairs;
        assert!(faults("", pairs()).contains("neither"));
        assert!(faults("cap = 1\nsample = 2", pairs()).contains("both"));
        assert!(faults("cap = 0", pairs()).contains("nothing would be kept"));
        assert!(faults("cap = 1", contracts::pair_texts()).contains("no column `query_ids`"));
    }
}
