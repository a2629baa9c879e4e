//! Splits over the groups in the answers of a pass.

use std::collections::BTreeMap;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::UInt32Type;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN, blocking};

use crate::error::RunError;
use crate::passes::GROUP;
use crate::run::output::Output;
use crate::run::splits::{SplitInput, SplitTask};

/// Rows that are read at a time.
const BATCH_ROWS: usize = 1 << 16;

/// The splits that are not committed yet, of so many groups. Their numbers are those of the groups;
/// one without rows has no split.
pub(super) async fn tasks(
    input: &str,
    (answers, groups): (&Dataset, u64),
    output: &Output,
) -> Result<Vec<SplitTask>, RunError> {
    let answers = answers.clone();
    let ranges = blocking(move || ranges(&answers)).await??;
    let pending = ranges.into_iter().filter(|(group, _)| !output.is_done(u64::from(*group)));
    let task = |(group, ranges): (u32, Vec<(u64, u64)>)| SplitTask {
        number: group.into(),
        label: format!("{input} group {} of {groups}", group + 1),
        input: SplitInput::Ranges(ranges),
    };
    Ok(pending.map(task).collect())
}

/// Where the rows of each group are: the first of each range, and the one after its last.
fn ranges(answers: &Dataset) -> Result<BTreeMap<u32, Vec<(u64, u64)>>, RunError> {
    let (mut ranges, mut position) = (BTreeMap::<u32, Vec<(u64, u64)>>::new(), 0);
    for batch in ShardReader::new(answers, MAIN, &[GROUP], BATCH_ROWS) {
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
