//! Why a stage gets no rows: the stage or file that gave none, and its reject codes.

use twinlens_dataset::MAIN;
use twinlens_dataset::protocol::State;

use crate::context::InputData;
use crate::error::RunError;
use crate::rejects::top_codes;
use crate::run::step::Step;

/// For each input of a unit that has no rows: which, and why.
pub(super) fn inputs_without_rows(steps: &[Step]) -> Vec<String> {
    let mut reasons = Vec::new();
    for step in steps {
        for input in step.rows.iter().chain(step.inputs.all()) {
            // A table that the run computes, and one that is still being made, tell nothing yet.
            if input.view.is_none() && input.dataset.state().complete && input.rows() == 0 {
                reasons.push(without_rows(input));
            }
        }
    }
    reasons.dedup();
    reasons
}

fn without_rows(input: &InputData) -> String {
    let state = input.dataset.state();
    let why = if input.table == MAIN { reject_counts(state) } else { None };
    match why {
        Some(why) => format!("`{}` has no rows: {why}", input.name),
        None => format!("`{}` has no rows", input.name),
    }
}

/// `6 rejected (list: no_url 6)`; `None` if nothing was rejected.
fn reject_counts(state: &State) -> Option<String> {
    let rejects = state.rejects();
    let count: u64 = rejects.values().flat_map(|codes| codes.values()).sum();
    let stages = rejects.iter().filter(|(_, codes)| !codes.is_empty()).map(|(stage, codes)| {
        format!("{stage}: {}", top_codes(codes.iter().map(|(code, rows)| (code.as_str(), *rows))))
    });
    (count > 0).then(|| format!("{count} rejected ({})", stages.collect::<Vec<_>>().join("; ")))
}

/// An error of a stage whose inputs have no rows: that is probably its cause.
pub(super) fn explained(error: RunError, reasons: &[String]) -> RunError {
    match error {
        RunError::User { message, hint: None } if !reasons.is_empty() => {
            RunError::user_with_hint(message, reasons.join("; "))
        }
        other => other,
    }
}
