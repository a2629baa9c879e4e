//! The decision by groups: all rows that are equal are in one.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array};
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, JoinType, cast, ident, lit};
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::passes::GROUP;
use twinlens_pipeline::{InputData, NextPass, Pass, PassWork, RunContext, RunError, SplitRows};

use super::columns::{KEPT, PLACE, POSITION, group_of_texts};
use super::decide::{Rule, complete, rejected, sorted};
use super::near::{Followers, HASH, WHY, distinct};
use crate::functions::{call, strings};

/// The pass that finds the group of each row.
const KEYS: &str = "keys";
/// The pass over groups that finds distinct hashes.
const DISTINCT: &str = "distinct";
/// The pass over groups that decides.
const DECIDE: &str = "decide";
/// The column of what the first pass is told.
const GROUPS: &str = "groups";

/// The next pass of a decision in so many groups.
pub(super) async fn next(
    rule: &Rule,
    cx: &RunContext,
    (input, groups): (&InputData, u64),
    done: &[Pass],
) -> Result<NextPass, RunError> {
    let told = || {
        let number: ArrayRef = Arc::new(UInt64Array::from(vec![groups]));
        let told = RecordBatch::try_from_iter([(GROUPS, number)]).map_err(DataFusionError::from)?;
        Ok::<_, RunError>(cx.session.read_batch(told)?)
    };
    let columns = |frame: &DataFrame| Arc::new(frame.schema().as_arrow().clone());
    let keyed = keyed(rule, cx, input.rows_between(0, 0), groups)?;
    Ok(match (done, rule.distance) {
        ([], _) => NextPass::Look { name: KEYS, told: told()?, answers: columns(&keyed) },
        ([_], Some(_)) => {
            let answers = columns(&distinct_hashes(rule, keyed)?);
            NextPass::Groups { name: DISTINCT, of: 0, groups, told: told()?, answers }
        }
        ([_], None) => {
            let answers = columns(&rejected(keyed, rule, None)?);
            NextPass::Groups { name: DECIDE, of: 0, groups, told: told()?, answers }
        }
        ([_, hashes], Some(distance)) => {
            let hashes = hashes.answers.frame(&cx.session, MAIN).await?;
            let told = Followers::find(cx, &hashes, distance).await?.table(cx, groups)?;
            let near = Some(lit(ScalarValue::Utf8(None)));
            let answers = columns(&rejected(keyed, rule, near)?);
            NextPass::Groups { name: DECIDE, of: 0, groups, told, answers }
        }
        ([.., decided], _) => {
            let told = sorted(decided.answers.frame(&cx.session, MAIN).await?)?;
            NextPass::Rows { told, side: Vec::new() }
        }
    })
}

/// The rows that may have equals, with their group and position, sorted by these.
fn keyed(rule: &Rule, cx: &RunContext, rows: SplitRows<'_>, groups: u64) -> Result<DataFrame, RunError> {
    let keys = rule.keys();
    let frame = rows.numbered(&cx.session, Some(&rule.columns()), POSITION)?.filter(complete(&keys))?;
    let texts: Vec<Expr> = keys.into_iter().map(|key| cast(key, DataType::Utf8)).collect();
    let group = call("dedup_group", texts, DataType::UInt32, move |columns: &[ArrayRef]| {
        let columns = columns.iter().map(strings).collect::<Result<Vec<_>, _>>()?;
        let rows = columns.first().map_or(0, |column| column.len());
        let group = |row| group_of_texts(columns.iter().map(|column| column.value(row)), groups);
        Ok(Arc::new((0..rows).map(group).collect::<UInt32Array>()))
    });
    let frame = frame.with_column(GROUP, group)?;
    Ok(frame.sort(vec![ident(GROUP).sort(true, true), ident(POSITION).sort(true, true)])?)
}

/// The distinct hashes of a group, sorted.
fn distinct_hashes(rule: &Rule, rows: DataFrame) -> Result<DataFrame, RunError> {
    let [key] = &rule.keys()[..] else {
        return Err(RunError::Internal("hashes of several columns".into()));
    };
    let order = vec![ident(KEPT).sort(true, true), ident(PLACE).sort(true, true)];
    Ok(distinct(rows, key)?.sort(order)?)
}

/// A pass of the decision.
pub(super) enum GroupPass {
    /// Finds the group of each row.
    Keys(Rule, u64),
    /// Finds the distinct hashes of a group.
    Distinct(Rule),
    /// Decides about a group; with the hashes that are near a kept one.
    Decide(Rule, Option<Dataset>),
}

impl GroupPass {
    /// The pass `name`, which is told something.
    pub(super) async fn open(
        rule: &Rule,
        cx: &RunContext,
        (name, told): (&str, &Dataset),
    ) -> Result<Self, RunError> {
        Ok(match name {
            KEYS => {
                let told = told.frame(&cx.session, MAIN).await?.collect().await?;
                let groups =
                    told.first().map_or(1, |told| told.column(0).as_primitive::<UInt64Type>().value(0));
                Self::Keys(rule.clone(), groups)
            }
            DISTINCT => Self::Distinct(rule.clone()),
            _ => {
                let near = rule.distance.is_some().then(|| told.clone());
                Self::Decide(rule.clone(), near)
            }
        })
    }
}

#[async_trait]
impl PassWork for GroupPass {
    async fn split(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError> {
        match self {
            Self::Keys(rule, groups) => keyed(rule, cx, rows, *groups),
            _ => Err(RunError::Internal("a split of a pass over groups".into())),
        }
    }

    async fn group(&self, cx: &RunContext, group: u64, rows: DataFrame) -> Result<DataFrame, RunError> {
        let (rule, near) = match self {
            Self::Decide(rule, near) => (rule, near),
            Self::Distinct(rule) => return distinct_hashes(rule, rows),
            Self::Keys(..) => return Err(RunError::Internal("a group of a pass over rows".into())),
        };
        let keys = rule.keys();
        let (Some(near), [key]) = (near, &keys[..]) else {
            return rejected(rows, rule, None);
        };
        let own = near.frame(&cx.session, MAIN).await?.filter(ident(GROUP).eq(lit(group as u32)))?;
        let own = own.select_columns(&[HASH, WHY])?;
        let rows = rows.join_on(own, JoinType::Left, [key.clone().eq(ident(HASH))])?;
        rejected(rows, rule, Some(ident(WHY)))
    }
}
