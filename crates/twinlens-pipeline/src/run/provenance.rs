//! Where a dataset comes from: the stages of its run that led to it, by the fingerprints in the
//! recipes.

use std::collections::BTreeSet;

use serde_json::Value;
use twinlens_dataset::card::Made;
use twinlens_dataset::protocol::State;
use twinlens_dataset::{Dataset, export};

/// What the stages did that led to `dataset`, first to last; `datasets` are those of its run. A
/// dataset that has been made anew since (its fingerprint is another one) is left out. An export
/// carries its own.
pub fn provenance(datasets: &[Dataset], dataset: &Dataset) -> Vec<Made> {
    if dataset.state().begin.kind == export::KIND {
        return Made::before(dataset.state());
    }
    let own = dataset.state().begin.fingerprint.as_str();
    let (mut wanted, mut open) = (BTreeSet::from([own.to_string()]), vec![dataset.state()]);
    while let Some(state) = open.pop() {
        for print in inputs(state) {
            let found = datasets.iter().find(|other| other.state().begin.fingerprint == print);
            if let (Some(found), true) = (found, wanted.insert(print)) {
                open.push(found.state());
            }
        }
    }
    let states =
        datasets.iter().map(Dataset::state).filter(|state| wanted.contains(&state.begin.fingerprint));
    let mut made: Vec<Made> = states.flat_map(Made::of).collect();
    // A dataset that lies in no run.
    if made.is_empty() && !dataset.state().begin.recipe.is_null() {
        made = Made::of(dataset.state());
    }
    made
}

/// The fingerprints that a recipe names as its inputs, and the recipes that are fused into it.
fn inputs(state: &State) -> Vec<String> {
    let recipe = &state.begin.recipe;
    let fused = recipe.get("fused").and_then(Value::as_object).into_iter().flat_map(|fused| fused.values());
    let values = fused.chain([recipe]).filter_map(|recipe| recipe.get("inputs")?.as_object());
    let texts = values.flat_map(|inputs| inputs.values()).filter_map(Value::as_str);
    // `FINGERPRINT/table`, `FINGERPRINT retried 1/table`, or several of those with `+` between.
    let prints =
        texts.flat_map(|text| text.split('+')).map(|text| text.split([' ', '/']).next().unwrap_or_default());
    prints.map(String::from).collect()
}
