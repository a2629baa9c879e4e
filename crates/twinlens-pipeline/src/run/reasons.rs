//! Why rows of a stage were rejected: its most frequent codes, each with an example.

use std::collections::BTreeMap;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::logical_expr::{Expr, Operator, binary_expr, cast, ident, lit};
use datafusion::prelude::SessionContext;
use serde::Serialize;
use twinlens_dataset::{Dataset, MAIN, REJECTS, catalog};

use crate::error::RunError;
use crate::rejects::{CODE, DETAIL, RESERVED, STAGE};

/// Most codes of a dataset.
const MOST: usize = 3;

/// A code with which rows were rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectReason {
    /// The stage that rejected them: that of the dataset, or one that is fused into it.
    pub stage: String,
    /// The code.
    pub code: String,
    /// How many they are.
    pub rows: u64,
    /// The detail of one of them, and the row; `None` where the stage only counts rejects.
    pub example: Option<String>,
}

/// The most frequent codes of a dataset, most frequent first.
pub(super) async fn reasons(
    dataset: &Dataset,
    session: &SessionContext,
) -> Result<Vec<RejectReason>, RunError> {
    let counts = dataset.state().rejects();
    let mut found: Vec<RejectReason> = (counts.into_iter())
        .flat_map(|(stage, codes)| codes.into_iter().map(move |(code, rows)| (stage.clone(), code, rows)))
        .map(|(stage, code, rows)| RejectReason { stage, code, rows, example: None })
        .collect();
    found.sort_by_key(|reason| std::cmp::Reverse(reason.rows));
    found.truncate(MOST);
    if !found.is_empty() && dataset.tables().any(|table| table == REJECTS) {
        let examples = examples(dataset, session, &found).await?;
        for reason in &mut found {
            reason.example = examples.get(&(reason.stage.clone(), reason.code.clone())).cloned();
        }
    }
    Ok(found)
}

/// One example of each code: the first in the order of the alphabet, so that it repeats.
async fn examples(
    dataset: &Dataset,
    session: &SessionContext,
    reasons: &[RejectReason],
) -> Result<BTreeMap<(String, String), String>, RunError> {
    let ledger = dataset.frame(session, REJECTS).await?;
    let one_of =
        |reason: &RejectReason| ident(STAGE).eq(lit(&reason.stage)).and(ident(CODE).eq(lit(&reason.code)));
    let wanted = reasons.iter().map(one_of).reduce(Expr::or).unwrap_or(lit(false));
    let example = example(ledger.schema());
    let rows = ledger.filter(wanted)?.aggregate(vec![ident(STAGE), ident(CODE)], vec![min(example)])?;
    let mut examples = BTreeMap::new();
    for batch in rows.collect().await? {
        let texts: Vec<_> = (0..3).map(|column| batch.column(column).as_string::<i32>()).collect();
        for row in 0..batch.num_rows() {
            let text = |column: usize| texts[column].value(row).trim().to_string();
            examples.insert((text(0), text(1)), text(2));
        }
    }
    Ok(examples)
}

/// `404 Not Found (http://example.org/1.png)`: the detail, and what the row is about.
fn example(ledger: &DFSchema) -> Expr {
    // Of the columns that ledgers share: the URL, the caption, the key.
    let shared = catalog::rejects_schema();
    let names = shared.fields().iter().map(|field| field.name().as_str());
    let mut names: Vec<&str> = names
        .filter(|name| !RESERVED.contains(name) && ledger.field_with_unqualified_name(name).is_ok())
        .collect();
    let key = names.len().min(1);
    names.rotate_left(key);
    let text = |value: Expr| cast(value, DataType::Utf8);
    // Null if the column is.
    let join = |left: Expr, right: Expr| binary_expr(left, Operator::StringConcat, right);
    let row = names.iter().map(|name| join(join(lit(" ("), text(ident(*name))), lit(")")));
    let row = row.chain([lit("")]).collect();
    join(coalesce(vec![ident(DETAIL), lit("")]), coalesce(row))
}

/// A stage of which every row was rejected.
#[derive(Debug)]
pub struct AllRejected {
    /// The stage.
    pub stage: String,
    /// Why.
    pub reasons: Vec<RejectReason>,
    /// What to do about the most frequent code, if its kind knows.
    pub hint: Option<&'static str>,
}

/// Whether a dataset has no row because all were rejected.
pub(super) fn all_rejected(dataset: &Dataset) -> bool {
    let rejected: u64 = dataset.state().rejects().values().flat_map(BTreeMap::values).sum();
    let rows_in = dataset.state().rows_in();
    dataset.state().complete && dataset.rows(MAIN) == 0 && rejected > 0 && rows_in == Some(rejected)
}
