//! `dedup`: keeps one of the rows that are equal in the given columns, or rejects values that occur
//! too often.
//!
//! The process of the run decides, over these columns and `uid` alone: a window over the columns (a
//! sort, which spills) finds equal rows. For near-equal perceptual hashes, the distinct hashes are
//! visited in the order of the smallest uid that has each; a hash is rejected if a hash kept
//! earlier lies within the distance. So every rejected row is near a kept one, and no two kept ones
//! are near each other. The positions of the rejected rows are what the pass over the rows is told.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, StringArray};
use datafusion::arrow::datatypes::{DataType, Int64Type, UInt64Type};
use datafusion::common::{HashMap, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::functions::expr_fn::concat;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::functions_window::expr_fn::{first_value, row_number};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Expr, ExprFunctionExt, cast, ident, lit, when};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::rejects::{reject_with, with_reserved};
use twinlens_pipeline::stage::is_sortable;
use twinlens_pipeline::{
    ColumnType, Fault, Input, InputData, Inputs, Located, NextPass, Pass, PassWork, Passes, Ports, Required,
    RunContext, RunError, SortKey, SplitRows, StageKind, Work,
};

use super::columns::UID_HINT;
use crate::functions::{call, strings};
use crate::near::{MAX_DISTANCE, NearIndex};

/// The code of rows that equal a kept one.
const DUPLICATE: &str = "duplicate";
/// The code of rows whose hash is near that of a kept one.
const NEAR_DUPLICATE: &str = "near_duplicate";
/// The code of rows whose value occurs too often.
const TOO_FREQUENT: &str = "too_frequent";

/// Keeps, of the rows that are equal in the given columns, the one with the smallest uid; the
/// others become rejects. With `more_than`, rejects all rows of a value that occurs too often; with
/// `distance`, near-equal images too.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupOptions {
    /// The rows to compare.
    input: Input,
    /// The columns that make two rows duplicates when they are all equal: `["url"]`, `["url",
    /// "caption"]`, `["sha256"]`. A row with a null among them is never a duplicate.
    by: Vec<Located<String>>,
    /// Instead of keeping one of each: rejects every row whose values occur in more than this many
    /// rows, and keeps all others (`by = ["caption"]`, `more_than = 10`: generic captions).
    #[serde(skip_serializing_if = "Option::is_none")]
    more_than: Option<Located<u64>>,
    /// With `by = ["phash"]`: rows are also duplicates if at most this many bits of the hash differ
    /// (0 to 12). 4 finds the same picture rescaled and recompressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    distance: Option<Located<u32>>,
}

/// `dedup` as it runs.
pub struct Dedup {
    by: Vec<String>,
    more_than: Option<u64>,
    distance: Option<u32>,
}

impl StageKind for Dedup {
    type Options = DedupOptions;
    const NAME: &'static str = "dedup";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r#"[stages.unique]
kind = "dedup"
input = "pages"
by = ["url", "caption"]
"#;

    fn plan(options: DedupOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        ports.output(ports.schema(&input), SortKey::columns(ROW_ORDER));
        ports.text(&input, "uid", UID_HINT);
        let comparable = ColumnType::Other("text, a number, a timestamp or a boolean", is_sortable);
        let kinds: Vec<_> =
            options.by.iter().map(|by| ports.column(&input, by, comparable, Required::Yes)).collect();
        if options.by.is_empty() {
            let fault = options.input.fault("`by` names no columns to compare");
            ports.fault(fault.hint("add `by = [\"url\"]`"));
        }
        if let Some(more_than) = options.more_than.as_ref().filter(|more_than| *more_than.value() == 0) {
            let fault = Fault::at(more_than.span(), "every row would be rejected");
            ports.fault(fault.label("expected at least 1"));
        }
        if let Some(distance) = &options.distance {
            let by = match &kinds[..] {
                [by] => by.as_ref(),
                _ => None,
            };
            let other = options.by.len() != 1 || by.is_some_and(|by| by != &DataType::Int64);
            check_distance(distance, options.more_than.as_ref(), other, ports);
        }
        Some(Work::passes(Dedup {
            by: options.by.iter().map(|by| by.value().clone()).collect(),
            more_than: options.more_than.map(|more_than| *more_than.value()),
            distance: options.distance.map(|distance| *distance.value()),
        }))
    }
}

/// `other` is whether rows are compared by anything but one column of 64-bit integers.
fn check_distance(
    distance: &Located<u32>,
    more_than: Option<&Located<u64>>,
    other: bool,
    ports: &mut Ports<'_>,
) {
    if let Some(more_than) = more_than {
        ports.fault(Fault::at(more_than.span(), "`more_than` and `distance` cannot be combined"));
    }
    if *distance.value() > MAX_DISTANCE {
        let message = format!("a distance of {} bits is too large", distance.value());
        ports.fault(Fault::at(distance.span(), message).label(format!("expected 0 to {MAX_DISTANCE}")));
    }
    if other {
        let message = "`distance` needs `by` to name one column of 64-bit integers";
        ports.fault(Fault::at(distance.span(), message).hint("write `by = [\"phash\"]`"));
    }
}

impl Dedup {
    /// The position of each row that is rejected, sorted, with code and detail.
    async fn decide(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError> {
        let keys: Vec<Expr> = self.by.iter().map(ident).collect();
        let columns: Vec<&str> = ["uid"].into_iter().chain(self.by.iter().map(String::as_str)).collect();
        let frame = rows.numbered(&cx.session, Some(&columns), POSITION)?;
        let decided = match (&self.more_than, &self.distance, &keys[..]) {
            (Some(most), ..) => frequent(frame, &keys, *most)?,
            (None, Some(distance), [key]) => {
                let near = near_duplicates(cx, &frame, key, *distance).await?;
                equal(frame, &keys, Some(near))?
            }
            _ => equal(frame, &keys, None)?,
        };
        let rejected = decided.filter(ident(CODE).is_not_null())?;
        Ok(rejected
            .select_columns(&[POSITION, CODE, DETAIL])?
            .sort(vec![ident(POSITION).sort(true, true)])?)
    }
}

/// Decides about rows that are equal in `keys`: all but the first are rejected.
fn equal(frame: DataFrame, keys: &[Expr], near: Option<Expr>) -> Result<DataFrame, RunError> {
    // Rows with the same uid (a pair that two pages show) are ordered by their position, so that
    // which of them is kept does not depend on the order of reading.
    let order = ["uid", POSITION].map(|name| ident(name).sort(true, true)).to_vec();
    let over = |function: Expr| function.partition_by(keys.to_vec()).order_by(order.clone()).build();
    let ranked =
        frame.window(vec![over(row_number())?.alias(PLACE), over(first_value(ident("uid")))?.alias(KEPT)])?;
    let ranked = ranked.with_column(NEAR, near.unwrap_or_else(|| lit(ScalarValue::Utf8(None))))?;
    let (is_near, is_duplicate) = (ident(NEAR).is_not_null(), complete(keys).and(ident(PLACE).gt(lit(1u64))));
    let detail = concat(vec![lit("duplicate of "), cast(ident(KEPT), DataType::Utf8)]);
    let code = when(is_near.clone(), lit(NEAR_DUPLICATE)).when(is_duplicate, lit(DUPLICATE)).end()?;
    let detail = when(is_near, ident(NEAR)).otherwise(detail)?;
    Ok(ranked.with_column(CODE, code)?.with_column(DETAIL, detail)?)
}

/// Decides about rows whose `keys` occur in more than `most` rows: they are rejected.
fn frequent(frame: DataFrame, keys: &[Expr], most: u64) -> Result<DataFrame, RunError> {
    let count = Expr::from(WindowFunction::new(count_udaf(), vec![lit(1)]));
    let counted = frame.window(vec![count.partition_by(keys.to_vec()).build()?.alias(PLACE)])?;
    let frequent = complete(keys).and(ident(PLACE).gt(lit(i64::try_from(most).unwrap_or(i64::MAX))));
    let detail = concat(vec![cast(ident(PLACE), DataType::Utf8), lit(" rows have it")]);
    let code = when(frequent, lit(TOO_FREQUENT)).end()?;
    Ok(counted.with_column(CODE, code)?.with_column(DETAIL, detail)?)
}

/// Whether none of the keys is null.
fn complete(keys: &[Expr]) -> Expr {
    keys.iter().map(|key| key.clone().is_not_null()).reduce(Expr::and).unwrap_or(lit(true))
}

/// An expression: why a row is a near duplicate; null for all other rows.
async fn near_duplicates(
    cx: &RunContext,
    frame: &DataFrame,
    key: &Expr,
    distance: u32,
) -> Result<Expr, RunError> {
    let distinct = || {
        let known = frame.clone().filter(key.clone().is_not_null())?;
        known.aggregate(vec![key.clone().alias(PLACE)], vec![min(ident("uid")).alias(KEPT)])
    };
    let ordered = distinct()?.sort(vec![ident(KEPT).sort(true, true), ident(PLACE).sort(true, true)])?;
    let pool = cx.session.runtime_env().memory_pool.clone();
    let memory = MemoryConsumer::new("hashes of distinct images").register(&pool);
    let mut index = NearIndex::new(distance);
    let mut followers: HashMap<i64, (i64, u32)> = HashMap::new();
    let mut stream = ordered.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        for hash in batch.column(0).as_primitive::<Int64Type>().values() {
            match index.nearest(*hash as u64) {
                Some((leader, bits)) => drop(followers.insert(*hash, (leader as i64, bits))),
                None => index.insert(*hash as u64),
            }
        }
        memory.try_resize(index.bytes() + 32 * followers.len())?;
        cx.check_cancelled()?;
    }
    drop(index);

    // Only the uids of kept rows that others are near to: they may be few among very many.
    let leaders: HashMap<i64, ()> = followers.values().map(|(leader, _)| (*leader, ())).collect();
    let is_leader = call("is_near_duplicated", vec![ident(PLACE)], DataType::Boolean, move |columns| {
        let hashes = columns[0].as_primitive::<Int64Type>();
        Ok(Arc::new(hashes.iter().map(|hash| Some(leaders.contains_key(&hash?))).collect::<BooleanArray>()))
    });
    let mut uids: HashMap<i64, String> = HashMap::new();
    let mut stream = distinct()?.filter(is_leader)?.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let (hashes, first) = (batch.column(0).as_primitive::<Int64Type>(), strings(batch.column(1))?);
        uids.extend(hashes.values().iter().zip(&first).map(|(h, uid)| (*h, uid.unwrap_or("").to_string())));
    }
    Ok(call("near_duplicate", vec![key.clone()], DataType::Utf8, move |columns: &[ArrayRef]| {
        let detail = |hash: i64| {
            let (leader, bits) = followers.get(&hash)?;
            Some(format!("{bits} bits from {}", uids.get(leader).map_or("", String::as_str)))
        };
        let hashes = columns[0].as_primitive::<Int64Type>();
        Ok(Arc::new(hashes.iter().map(|hash| detail(hash?)).collect::<StringArray>()))
    }))
}

#[async_trait]
impl Passes for Dedup {
    async fn next(
        &self,
        cx: &RunContext,
        input: &InputData,
        _: &Inputs,
        _: &[Pass],
    ) -> Result<NextPass, RunError> {
        Ok(NextPass::Rows { told: self.decide(cx, input.all_rows()).await?, side: Vec::new() })
    }

    async fn open(&self, _: &RunContext, _: &str, told: &Dataset) -> Result<Box<dyn PassWork>, RunError> {
        Ok(Box::new(Decided { rejected: told.clone() }))
    }
}

/// The pass over the rows.
struct Decided {
    /// The positions of the rejected rows, sorted.
    rejected: Dataset,
}

#[async_trait]
impl PassWork for Decided {
    async fn split(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError> {
        let all = self.rejected.frame(&cx.session, MAIN).await?;
        let position = || ident(POSITION);
        let own = all.filter(position().gt_eq(lit(rows.start)).and(position().lt(lit(rows.end))))?;
        let mut rejected: HashMap<u64, (String, String)> = HashMap::new();
        for batch in own.collect().await? {
            let positions = batch.column(0).as_primitive::<UInt64Type>();
            let (codes, details) = (strings(batch.column(1))?, strings(batch.column(2))?);
            for (row, position) in positions.values().iter().enumerate() {
                rejected.insert(*position, (codes.value(row).into(), details.value(row).into()));
            }
        }
        let rejected = Arc::new(rejected);
        let text = |name: &'static str, of: fn(&(String, String)) -> &str| {
            let rejected = rejected.clone();
            call(name, vec![position()], DataType::Utf8, move |columns: &[ArrayRef]| {
                let positions = columns[0].as_primitive::<UInt64Type>().values().iter();
                Ok(Arc::new(positions.map(|at| rejected.get(at).map(of)).collect::<StringArray>()))
            })
        };
        let frame = with_reserved(rows.numbered(&cx.session, None, POSITION)?)?;
        let (code, detail) =
            (text("dedup_code", |(code, _)| code), text("dedup_detail", |(_, detail)| detail));
        Ok(reject_with(frame, &cx.stage, code, detail)?.drop_columns(&[POSITION])?)
    }
}

/// Internal columns of the plans.
const POSITION: &str = "__twinlens_dedup_position";
const PLACE: &str = "__twinlens_dedup_place";
const KEPT: &str = "__twinlens_dedup_kept";
const NEAR: &str = "__twinlens_dedup_near";
const CODE: &str = "__twinlens_dedup_code";
const DETAIL: &str = "__twinlens_dedup_detail";

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use datafusion::arrow::array::RecordBatch;
    use twinlens_dataset::contracts;

    fn dedup(options: &str, rows: &RecordBatch) -> StageTest {
        stage("dedup", &format!("input = \"rows.parquet\"\n{options}")).table("rows", rows)
    }

    #[tokio::test]
    async fn the_smallest_uid_is_kept() {
        // "\0" stands for null, which is never a duplicate.
        let mut rows = vec![
            ("c", "dog"),
            ("a", "cat"),
            ("b", "dog"),
            ("d", "dog"),
            ("e", "\0"),
            ("f", "\0"),
            ("a", "cat"),
        ];
        let expected = [
            "a|cat|duplicate|duplicate of a",
            "a|cat||",
            "b|dog||",
            "c|dog|duplicate|duplicate of b",
            "d|dog|duplicate|duplicate of b",
            "e|||",
            "f|||",
        ];
        for _ in 0..rows.len() {
            rows.rotate_left(1);
            let made = dedup("by = [\"caption\"]", &pairs(&rows)).run().await.unwrap();
            assert_eq!(made.rows(&["uid", "caption", "reject_code", "reject_detail"]), expected);
        }
    }

    #[tokio::test]
    async fn frequent_captions_are_rejected() {
        let rows = [
            ("a", "x"),
            ("b", "x"),
            ("c", "y"),
            ("d", "y"),
            ("e", "y"),
            ("f", "\0"),
            ("g", "\0"),
            ("h", "\0"),
        ];
        let made = dedup("by = [\"caption\"]\nmore_than = 2", &pairs(&rows)).run().await.unwrap();
        let frequent = |uid: &str| format!("{uid}|too_frequent|3 rows have it");
        assert_eq!(
            made.rows(&["uid", "reject_code", "reject_detail"]),
            [
                "a||".into(),
                "b||".into(),
                frequent("c"),
                frequent("d"),
                frequent("e"),
                "f||".into(),
                "g||".into(),
                "h||".into()
            ]
        );
    }

    #[tokio::test]
    async fn near_duplicates_leave_the_first() {
        // b is near a; c is near b, which is rejected, but not near a; d equals b; e is far; f
        // equals e; g has no hash.
        let mut rows = vec![
            ("a", Some(0b0)),
            ("b", Some(0b11)),
            ("c", Some(0b1111)),
            ("d", Some(0b11)),
            ("e", Some(-1)),
            ("f", Some(-1)),
            ("g", None),
        ];
        let expected = [
            "a||",
            "b|near_duplicate|2 bits from a",
            "c||",
            "d|near_duplicate|2 bits from a",
            "e||",
            "f|duplicate|duplicate of e",
            "g||",
        ];
        for _ in 0..rows.len() {
            rows.rotate_left(1);
            let made = dedup("by = [\"phash\"]\ndistance = 2", &hashed(&rows)).run().await.unwrap();
            assert_eq!(made.rows(&["uid", "reject_code", "reject_detail"]), expected);
        }
    }

    #[test]
    fn options_are_checked() {
        let rows = RecordBatch::new_empty(contracts::pairs());
        let faults = |options: &str| dedup(options, &rows).faults().join("; ");
        assert!(faults("by = []").contains("names no columns"));
        let found = faults("by = [\"image\", \"ulr\"]");
        assert!(found.contains("the column `image`") && found.contains("no column `ulr`"), "{found}");
        assert!(faults("by = [\"url\"]\nmore_than = 0").contains("every row"));
        let found = faults("by = [\"url\"]\ndistance = 13\nmore_than = 1");
        for part in ["cannot be combined", "too large", "64-bit integers"] {
            assert!(found.contains(part), "{found}");
        }
    }
}
