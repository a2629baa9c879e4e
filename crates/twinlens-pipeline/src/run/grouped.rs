//! Splits that hold whole groups of rows (all of a host), for stages that declare
//! [`crate::Ports::split_by`].
//!
//! A first pass copies the rows, sorted by group within each of its own splits. A split of the
//! stage is then made of ranges of these copies.

use crate::error::RunError;
use crate::passes::ROWS;
use crate::run::copies::with_group;
use crate::run::dispatch::{make_splits, range_tasks};
use crate::run::groups;
use crate::run::output::Output;
use crate::run::pass::{OpenPass, PassRecipe};
use crate::run::passes::PassRun;
use crate::run::splits::Prepared;
use crate::run::step::{rows_input, split_rows};

/// Rows of a split of the first pass.
const COPIED_ROWS: u64 = 1 << 20;
/// The name of the first pass.
pub(super) const GROUPS: &str = "groups";

/// Makes the splits of a chain of row stages whose first declares groups.
pub(super) async fn execute(unit: &Prepared, output: &mut Output, run: &PassRun<'_>) -> Result<(), RunError> {
    let head = unit.head()?;
    let input = rows_input(head)?;
    let total = run.limits.max_rows.map_or(input.rows(), |most| input.rows().min(most));
    head.cx.progress.total(total);
    let folder = run.folder(head, GROUPS)?;
    let number = total.div_ceil(split_rows(unit.steps()));
    let first = PassRecipe {
        name: GROUPS.into(),
        told: None,
        answers: Some(folder.clone()),
        rows_of: None,
        groups: number,
    };
    let columns = with_group(input.dataset.schema(&input.table)?.as_ref());
    let splits = async |output: &Output| Ok(range_tasks(input, (COPIED_ROWS, total), output));
    let copies = run.answers(unit, first, columns, splits).await?;
    let tasks = groups::tasks(&input.name, (&copies, number), output).await?;
    head.cx.progress.done(total - tasks.iter().map(|task| task.input.rows()).sum::<u64>());
    let pass = PassRecipe { name: ROWS.into(), told: None, answers: None, rows_of: Some(folder), groups: 0 };
    let made = unit.of_pass(OpenPass::new(run.dir, &pass), output);
    let helpers = run.helpers.map(|helpers| helpers.of_pass(pass));
    make_splits(&made, tasks, output, &run.limits, helpers.as_ref()).await
}
