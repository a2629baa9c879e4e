//! Splits that hold whole groups of rows (all of a host), for stages that declare
//! [`crate::Ports::split_by`].
//!
//! A first pass copies the rows, sorted by group within each of its own splits. A split of the
//! stage is then made of ranges of these copies.

use std::collections::BTreeMap;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::UInt32Type;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN, blocking};

use crate::error::RunError;
use crate::passes::ROWS;
use crate::run::copies::{GROUP, with_group};
use crate::run::dispatch::make_splits;
use crate::run::output::Output;
use crate::run::pass::{OpenPass, PassRecipe};
use crate::run::passes::PassRun;
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::step::{rows_input, split_rows};

/// Rows of a split of the first pass.
const COPIED_ROWS: u64 = 1 << 20;
/// The name of the first pass.
pub(super) const GROUPS: &str = "groups";
/// Rows that are read at a time.
const BATCH_ROWS: usize = 1 << 16;

/// Makes the splits of a chain of row stages whose first declares groups.
pub(super) async fn execute(unit: &Prepared, output: &mut Output, run: &PassRun<'_>) -> Result<(), RunError> {
    let head = unit.head()?;
    let input = rows_input(head)?;
    let total = run.limits.max_rows.map_or(input.rows(), |most| input.rows().min(most));
    head.cx.progress.total(total);
    let folder = run.folder(head, GROUPS)?;
    let groups = total.div_ceil(split_rows(unit.steps()));
    let first = PassRecipe { name: GROUPS.into(), told: None, answers: Some(folder.clone()), groups };
    let columns = with_group(input.dataset.schema(&input.table)?.as_ref());
    let copies = run.answers(unit, first, columns, (COPIED_ROWS, total)).await?;
    let ranges = blocking({
        let copies = copies.clone();
        move || ranges(&copies)
    });
    let tasks = tasks(&input.name, ranges.await??, groups, output);
    head.cx.progress.done(total - tasks.iter().map(|task| task.input.rows()).sum::<u64>());
    let pass = PassRecipe { name: ROWS.into(), told: Some(folder), answers: None, groups };
    let made = unit.of_pass(OpenPass::new(run.dir, &pass), output);
    let helpers = run.helpers.map(|helpers| helpers.of_pass(pass));
    make_splits(&made, tasks, output, &run.limits, helpers.as_ref()).await
}

/// The splits that are not committed yet. Their numbers are those of the groups; one without rows
/// has no split.
fn tasks(
    input: &str,
    ranges: BTreeMap<u32, Vec<(u64, u64)>>,
    groups: u64,
    output: &Output,
) -> Vec<SplitTask> {
    let pending = ranges.into_iter().filter(|(group, _)| !output.is_done(u64::from(*group)));
    let task = |(group, ranges): (u32, Vec<(u64, u64)>)| SplitTask {
        number: group.into(),
        label: format!("{input} group {} of {groups}", group + 1),
        input: SplitInput::Ranges(ranges),
    };
    pending.map(task).collect()
}

/// Where the rows of each group are.
fn ranges(copies: &Dataset) -> Result<BTreeMap<u32, Vec<(u64, u64)>>, RunError> {
    let (mut ranges, mut position) = (BTreeMap::<u32, Vec<(u64, u64)>>::new(), 0);
    for batch in ShardReader::new(copies, MAIN, &[GROUP], BATCH_ROWS) {
        for group in batch?.column(0).as_primitive::<UInt32Type>().values() {
            let ranges = ranges.entry(*group).or_default();
            match ranges.last_mut() {
                Some((_, end)) if *end == position => *end += 1,
                _ => ranges.push((position, position + 1)),
            }
            position += 1;
        }
    }
    Ok(ranges)
}
