//! Asks before a run deletes what was expensive to make.

use crate::config::Pipeline;
use crate::error::RunError;
use crate::run::plan::{Decision, Deleted, Unit};

/// Whether a run may delete datasets that took long to make or are large.
#[derive(Debug, Clone, Copy)]
pub enum Replace {
    /// It may.
    Yes,
    /// It is an error.
    No,
    /// If the answer to this text is yes.
    Ask(fn(&str) -> bool),
}

/// Goes on if no unit deletes a dataset of high cost, or if that is allowed.
///
/// # Errors
/// The user's: it is not.
pub(super) fn ask(replace: Replace, pipeline: &Pipeline, units: &[Unit]) -> Result<(), RunError> {
    let lines: Vec<String> = units.iter().flat_map(|unit| lines(pipeline, unit)).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let text = format!("this run deletes what was expensive to make:{}", lines.concat());
    match replace {
        Replace::Yes => Ok(()),
        Replace::Ask(answer) if answer(&text) => Ok(()),
        Replace::Ask(_) => Err(RunError::user("not confirmed: nothing was changed")),
        Replace::No => {
            let hint = "`--replace` allows it; `twinlens plan` says what is kept and what is not";
            Err(RunError::user_with_hint(text, hint))
        }
    }
}

/// The datasets of high cost that a unit deletes, and why.
fn lines(pipeline: &Pipeline, unit: &Unit) -> Vec<String> {
    let name = &pipeline.nodes[unit.last()].name;
    let when = match &unit.decision {
        Decision::Run { why } => format!("when `{name}` is made again ({why})"),
        _ => format!("when `{name}` is complete"),
    };
    let high = unit.deletes.iter().filter(|deleted| deleted.cost.is_high());
    high.map(|Deleted { name, cost }| format!("\n  `{name}` ({cost}) {when}")).collect()
}
