//! `dedup`: keeps one of the rows that are equal in the given columns, or rejects values that occur
//! too often.
//!
//! The decision is over these columns and `uid` alone: a window over the columns (a sort, which
//! spills) finds equal rows. The process of the run decides about a small input. A large one goes
//! by groups, each with all rows that are equal, which are splits like others: other processes make
//! them, and a run that is killed resumes among them.
//!
//! For near-equal perceptual hashes, the distinct hashes are visited in the order of the smallest
//! uid that has each, by the process of the run; a hash is rejected if a hash kept earlier lies
//! within the distance. So every rejected row is near a kept one, and no two kept ones are near
//! each other. The positions of the rejected rows are what the pass over the rows is told.

mod columns;
mod decide;
mod groups;
mod near;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, StringArray};
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::common::HashMap;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{ident, lit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::passes::ROWS;
use twinlens_pipeline::rejects::{reject_with, with_reserved};
use twinlens_pipeline::stage::is_sortable;
use twinlens_pipeline::{
    ColumnType, Fault, Input, InputData, Inputs, Located, NextPass, Pass, PassWork, Passes, Ports, Required,
    RunContext, RunError, SortKey, SplitRows, StageKind, Work,
};

use self::columns::POSITION;
use self::decide::{Rule, rejected};
use self::groups::GroupPass;
use self::near::{Followers, distinct};
use super::columns::UID_HINT;
use crate::functions::{call, strings};
use crate::near::MAX_DISTANCE;

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
    /// An input of more rows is decided about in groups of about so many: all equal rows are in
    /// one. Changes nothing in the result: smaller groups need less memory, and other processes
    /// that share the run decide about them.
    #[serde(default = "group_rows", skip_serializing_if = "is_default")]
    group_rows: Located<u64>,
}

/// Rows of a group by default.
const GROUP_ROWS: u64 = 1 << 22;

fn group_rows() -> Located<u64> {
    Located::without_span(GROUP_ROWS)
}

fn is_default(rows: &Located<u64>) -> bool {
    *rows.value() == GROUP_ROWS
}

/// `dedup` as it runs.
pub struct Dedup {
    rule: Rule,
    group_rows: u64,
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
        if *options.group_rows.value() == 0 {
            let fault = Fault::at(options.group_rows.span(), "groups without rows");
            ports.fault(fault.label("expected at least 1"));
        }
        let rule = Rule {
            by: options.by.iter().map(|by| by.value().clone()).collect(),
            more_than: options.more_than.map(|more_than| *more_than.value()),
            distance: options.distance.map(|distance| *distance.value()),
        };
        Some(Work::passes(Dedup { rule, group_rows: *options.group_rows.value() }))
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
        let frame = rows.numbered(&cx.session, Some(&self.rule.columns()), POSITION)?;
        let near = match (self.rule.distance, &self.rule.keys()[..]) {
            (Some(distance), [key]) => {
                let hashes = distinct(frame.clone(), key)?;
                Some(Followers::find(cx, &hashes, distance).await?.expression(key))
            }
            _ => None,
        };
        rejected(frame, &self.rule, near)
    }
}

#[async_trait]
impl Passes for Dedup {
    async fn next(
        &self,
        cx: &RunContext,
        input: &InputData,
        _: &Inputs,
        done: &[Pass],
    ) -> Result<NextPass, RunError> {
        let groups = input.rows().div_ceil(self.group_rows);
        if groups > 1 {
            return groups::next(&self.rule, cx, (input, groups), done).await;
        }
        Ok(NextPass::Rows { told: self.decide(cx, input.all_rows()).await?, side: Vec::new() })
    }

    async fn open(&self, cx: &RunContext, pass: &str, told: &Dataset) -> Result<Box<dyn PassWork>, RunError> {
        if pass == ROWS {
            return Ok(Box::new(Decided { rejected: told.clone() }));
        }
        Ok(Box::new(GroupPass::open(&self.rule, cx, (pass, told)).await?))
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
