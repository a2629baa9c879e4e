//! The rejects of a dataset that are tried again, and the splits that are made of them.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Int64Type, UInt64Type};
use datafusion::common::JoinType;
use datafusion::dataframe::DataFrame;
use datafusion::functions_aggregate::expr_fn::{count, max};
use datafusion::logical_expr::{col, ident, lit};
use serde::{Deserialize, Serialize};
use twinlens_dataset::{Dataset, MAIN, REJECTS, SplitWriter};

use crate::config::Node;
use crate::error::RunError;
use crate::rejects::{self, ATTEMPTS};
use crate::run::step::{Step, aligned, chain, conserved, divided_fields, rows_input, write_sorted};
use crate::stage::SortKey;

/// A column of a plan: the number of the split that a row is in.
const SPLIT: &str = "__twinlens_split";
/// Names of columns of one side of a join.
const KEPT_KEY: &str = "kept_key";
const RETRY_KEY: &str = "retry_key";
const RETRY_ATTEMPTS: &str = "retry_attempts";
const KEPT_SPLIT: &str = "kept_split";

/// What a process is told of a retry, beside the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryRecipe {
    /// The stage that rejected the rows.
    pub stage: String,
    /// Which of its rejects.
    pub predicate: String,
    /// Its number: the names of its shards differ from those of other attempts.
    pub number: u64,
}

/// Which rejects of a dataset are meant.
pub(super) struct Picked {
    dataset: Dataset,
    stage: String,
    predicate: String,
    /// The column that identifies a row.
    key: String,
}

impl Picked {
    /// Rejects of the dataset of `node`.
    pub(super) fn new(dataset: Dataset, node: &Node, recipe: &RetryRecipe) -> Result<Self, RunError> {
        let (stage, predicate) = (recipe.stage.clone(), recipe.predicate.clone());
        Ok(Self { dataset, stage, predicate, key: row_key(node)?.into() })
    }

    /// The splits in whose ledgers there are such rejects, and how many. One query over all of
    /// them.
    pub(super) async fn splits(&self, step: &Step) -> Result<Vec<(u64, u64)>, RunError> {
        self.check_columns(step).await?;
        let commits = self.dataset.state().commits.iter();
        let refused = commits.filter(|(_, commit)| commit.rejects.contains_key(&self.stage));
        let splits: Vec<u64> = refused.map(|(split, _)| *split).collect();
        let picked = self.rows(step, &splits)?;
        let counts = picked.aggregate(vec![ident(SPLIT)], vec![count(lit(1)).alias("picked")])?;
        let counts = counts.sort(vec![ident(SPLIT).sort(true, true)])?.collect().await?;
        let mut found = Vec::new();
        for batch in &counts {
            let splits = batch.column(0).as_primitive::<UInt64Type>();
            let rows = batch.column(1).as_primitive::<Int64Type>();
            found.extend(
                splits.values().iter().zip(rows.values()).map(|(split, rows)| (*split, *rows as u64)),
            );
        }
        Ok(found)
    }

    /// Rows are found by their keys.
    async fn check_columns(&self, step: &Step) -> Result<(), RunError> {
        let input = rows_input(step)?.frame(&step.cx.session).await?;
        for (table, found) in [
            ("its ledger", self.dataset.schema(REJECTS)?.index_of(&self.key).is_ok()),
            ("its input", input.schema().has_column_with_unqualified_name(&self.key)),
        ] {
            if !found {
                return Err(RunError::user(format!(
                    "`{}`: {table} has no column `{}` to find rows by",
                    self.stage, self.key
                )));
            }
        }
        Ok(())
    }

    /// The picked rows of some splits: the split, `uid`, and `attempts` so far. A row of which a
    /// twin was kept in the same split stays what it is.
    fn rows(&self, step: &Step, splits: &[u64]) -> Result<DataFrame, RunError> {
        let session = &step.cx.session;
        let ledger = self.dataset.by_split(session, REJECTS, None, (SPLIT, splits))?;
        let predicate = ledger.parse_sql_expr(&self.predicate).map_err(|error| {
            RunError::user_with_hint(
                format!("--where {}: {}", self.predicate, error.strip_backtrace()),
                format!(
                    "`twinlens sql` shows the columns: \\d \"{}\".rejects",
                    self.dataset.state().begin.stage
                ),
            )
        })?;
        let ours = col(rejects::STAGE).eq(lit(&self.stage)).and(predicate);
        let picked = ledger.filter(ours)?;
        let attempts = vec![max(ident(ATTEMPTS)).alias(ATTEMPTS)];
        let picked = picked.aggregate(vec![ident(SPLIT), ident(&self.key)], attempts)?;
        let kept = self.dataset.by_split(session, MAIN, Some(&[&self.key]), (SPLIT, splits))?;
        let kept = kept.select(vec![ident(SPLIT).alias(KEPT_SPLIT), ident(&self.key).alias(KEPT_KEY)])?;
        Ok(picked.join(kept, JoinType::LeftAnti, &[SPLIT, &self.key], &[KEPT_SPLIT, KEPT_KEY], None)?)
    }

    /// Makes a split again: what it holds, without the picked rows, and what comes of these.
    pub(super) async fn again(
        &self,
        steps: &[Step],
        (split, start, end): (u64, u64, u64),
        writer: SplitWriter,
    ) -> Result<SplitWriter, RunError> {
        let (head, last) = (&steps[0], &steps[steps.len() - 1]);
        let session = &head.cx.session;
        // Read once: the rows of the plan must be those that leave the ledger.
        let picked = session.read_batches(self.rows(head, &[split])?.collect().await?)?;
        let as_key = || {
            picked
                .clone()
                .select(vec![ident(&self.key).alias(RETRY_KEY), ident(ATTEMPTS).alias(RETRY_ATTEMPTS)])
        };
        let input = rows_input(head)?;
        let rows = input.dataset.range(session, &input.table, start, end)?;
        let rows = rows.join(as_key()?, JoinType::LeftSemi, &[&self.key], &[RETRY_KEY], None)?;
        let made = chain(rejects::with_reserved(rows)?, steps).await?;

        let fields = divided_fields(last)?;
        let made = made.join(as_key()?, JoinType::Inner, &[&self.key], &[RETRY_KEY], None)?;
        let made = made.with_column(ATTEMPTS, ident(RETRY_ATTEMPTS) + lit(1))?;
        let part = self.dataset.only_split(split);
        let kept = part.frame(session, MAIN).await?;
        let refused = part.frame(session, REJECTS).await?;
        let refused = refused.join(as_key()?, JoinType::LeftAnti, &[&self.key], &[RETRY_KEY], None)?;
        let all =
            aligned(kept, &fields)?.union(aligned(refused, &fields)?)?.union(aligned(made, &fields)?)?;
        let mut writer = write_sorted(writer, all, steps).await?;
        let rows_in = self.dataset.state().commits.get(&split).and_then(|commit| commit.rows_in);
        let rows_in = rows_in.unwrap_or(end - start);
        conserved(&writer, rows_in)?;
        writer.count_rows_in(rows_in);
        Ok(writer)
    }
}

/// The column that identifies a row of a dataset: the first by which the rows are sorted.
fn row_key(node: &Node) -> Result<&str, RunError> {
    let SortKey::Columns(columns) = &node.plan.order else { return Err(no_row_key(node)) };
    columns.first().map(String::as_str).ok_or_else(|| no_row_key(node))
}

fn no_row_key(node: &Node) -> RunError {
    RunError::user(format!("the rows of `{}` have no order, and so no key to find them by", node.name))
}
