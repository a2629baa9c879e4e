//! Splits that hold whole groups of rows (all of a host), for stages that declare
//! [`crate::Ports::split_by`].
//!
//! A first pass copies the rows, sorted by group within each of its own splits. A split of the
//! stage is then made of ranges of these copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf, ident};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN, blocking};

use crate::context::RunContext;
use crate::error::RunError;
use crate::passes::{ROWS, SplitRows};
use crate::ports::SplitBy;
use crate::run::execute::make_splits;
use crate::run::output::Output;
use crate::run::passes::{OpenPass, PassRecipe, PassRun};
use crate::run::splits::{Prepared, SplitInput, SplitTask};
use crate::run::step::{Step, rows_input, split_rows};

/// Rows of a split of the first pass.
const COPIED_ROWS: u64 = 1 << 20;
/// The name of the first pass.
pub(super) const GROUPS: &str = "groups";
/// Columns of the copies and of their plans.
const GROUP: &str = "__twinlens_group";
const POSITION: &str = "__twinlens_position";
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

/// The columns of the copies.
fn with_group(schema: &Schema) -> SchemaRef {
    let group = Arc::new(Field::new(GROUP, DataType::UInt32, true));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([group]).collect::<Vec<_>>()))
}

/// The copies of a split of the first pass.
pub(super) fn copies(
    step: &Step,
    rows: SplitRows<'_>,
    by: &SplitBy,
    groups: u64,
) -> Result<DataFrame, RunError> {
    let frame = rows.numbered(&step.cx.session, None, POSITION)?;
    let column = frame.schema().field_with_unqualified_name(&by.column)?.data_type().clone();
    let of = by.group;
    let group = move |arguments: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let texts = cast(&arrays[0], &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let numbers = (0..texts.len()).map(|row| {
            // A null reads as the empty text.
            let text = if texts.is_valid(row) { texts.value(row) } else { "" };
            group_of(&of(text), groups)
        });
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(numbers));
        Ok(ColumnarValue::Array(numbers))
    };
    let group =
        create_udf("group_of", vec![column], DataType::UInt32, Volatility::Immutable, Arc::new(group));
    let frame = frame.with_column(GROUP, group.call(vec![ident(&by.column)]))?;
    let frame = frame.sort(vec![ident(GROUP).sort(true, true), ident(POSITION).sort(true, true)])?;
    Ok(frame.drop_columns(&[POSITION])?)
}

/// The number of the split for the rows of a group, evenly distributed.
fn group_of(name: &str, groups: u64) -> u32 {
    // Below `groups`, which fits: there are that many splits of at least one row.
    (u64::from(crc32fast::hash(name.as_bytes())) * groups >> 32) as u32
}

/// The rows of a split.
pub(super) fn rows(cx: &RunContext, copies: &Dataset, ranges: &[(u64, u64)]) -> Result<DataFrame, RunError> {
    Ok(copies.ranges(&cx.session, MAIN, ranges)?.drop_columns(&[GROUP])?)
}
