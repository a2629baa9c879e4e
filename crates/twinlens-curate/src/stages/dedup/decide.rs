//! Which rows are rejected.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::functions::expr_fn::concat;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_window::expr_fn::{first_value, row_number};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Expr, ExprFunctionExt, cast, ident, lit, when};
use twinlens_pipeline::RunError;

use super::columns::{CODE, DETAIL, KEPT, PLACE, POSITION};

/// The code of rows that equal a kept one.
const DUPLICATE: &str = "duplicate";
/// The code of rows whose hash is near that of a kept one.
const NEAR_DUPLICATE: &str = "near_duplicate";
/// The code of rows whose value occurs too often.
const TOO_FREQUENT: &str = "too_frequent";
/// A column of plans: why a row is a near duplicate.
const NEAR: &str = "__twinlens_dedup_near";

/// What makes rows duplicates of each other.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// The columns in which they are equal.
    pub(super) by: Vec<String>,
    /// How often a value may occur.
    pub(super) more_than: Option<u64>,
    /// How many bits of a hash may differ.
    pub(super) distance: Option<u32>,
}

impl Rule {
    /// The columns that are compared.
    pub(super) fn keys(&self) -> Vec<Expr> {
        self.by.iter().map(ident).collect()
    }

    /// The columns that are read.
    pub(super) fn columns(&self) -> Vec<&str> {
        ["uid"].into_iter().chain(self.by.iter().map(String::as_str)).collect()
    }
}

/// The position of each row that is rejected, sorted, with code and detail, of rows that have all
/// equal ones among them. `near` says why a row is a near duplicate, and is null for all others.
pub(super) fn rejected(frame: DataFrame, rule: &Rule, near: Option<Expr>) -> Result<DataFrame, RunError> {
    let decided = match rule.more_than {
        Some(most) => frequent(frame, &rule.keys(), most)?,
        None => equal(frame, &rule.keys(), near)?,
    };
    sorted(decided.filter(ident(CODE).is_not_null())?)
}

/// Position, code and detail of rejected rows, sorted.
pub(super) fn sorted(rejected: DataFrame) -> Result<DataFrame, RunError> {
    let rejected = rejected.select_columns(&[POSITION, CODE, DETAIL])?;
    Ok(rejected.sort(vec![ident(POSITION).sort(true, true)])?)
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
pub(super) fn complete(keys: &[Expr]) -> Expr {
    keys.iter().map(|key| key.clone().is_not_null()).reduce(Expr::and).unwrap_or(lit(true))
}
