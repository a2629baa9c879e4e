//! The provenance of a dataset: the stages that led to it, by the fingerprints in the recipes.

use std::collections::BTreeSet;

use serde_json::Value;
use twinlens_dataset::export::StageSummary;
use twinlens_dataset::protocol::State;
use twinlens_dataset::{Dataset, export};

/// Summaries of the stages that led to `dataset`, first to last; `datasets` are those of its run. A
/// dataset that was rebuilt since, with another fingerprint, is left out. An export records its own
/// provenance.
pub fn provenance(datasets: &[Dataset], dataset: &Dataset) -> Vec<StageSummary> {
    if dataset.state().begin.kind == export::KIND {
        return StageSummary::up_to_export(dataset.state());
    }
    let own = dataset.state().begin.fingerprint.as_str();
    let (mut ancestors, mut open) = (BTreeSet::from([own.to_string()]), vec![dataset.state()]);
    while let Some(state) = open.pop() {
        for fingerprint in input_fingerprints(state) {
            let input = datasets.iter().find(|other| other.state().begin.fingerprint == fingerprint);
            if let (Some(input), true) = (input, ancestors.insert(fingerprint)) {
                open.push(input.state());
            }
        }
    }
    let states =
        datasets.iter().map(Dataset::state).filter(|state| ancestors.contains(&state.begin.fingerprint));
    let mut stages: Vec<StageSummary> = states.flat_map(StageSummary::of_dataset).collect();
    // A dataset outside a run.
    if stages.is_empty() && !dataset.state().begin.recipe.is_null() {
        stages = StageSummary::of_dataset(dataset.state());
    }
    stages
}

/// The fingerprints of the inputs of a recipe and of the recipes fused into it.
fn input_fingerprints(state: &State) -> Vec<String> {
    let recipe = &state.begin.recipe;
    let fused = recipe.get("fused").and_then(Value::as_object).into_iter().flat_map(|fused| fused.values());
    let values = fused.chain([recipe]).filter_map(|recipe| recipe.get("inputs")?.as_object());
    let texts = values.flat_map(|inputs| inputs.values()).filter_map(Value::as_str);
    // `FINGERPRINT/table`, `FINGERPRINT retried 1/table`, or several of those joined by `+`.
    let fingerprints =
        texts.flat_map(|text| text.split('+')).map(|text| text.split([' ', '/']).next().unwrap_or_default());
    fingerprints.map(String::from).collect()
}
