//! Checks of the options, without I/O.

use twinlens_pipeline::{Fault, Located};

use super::options::ZeroShot;
use crate::classify::{check_prompts, check_set};
use crate::inputs::Schemas;
use crate::options::{check_limits, check_positive};
use crate::set::{SetEntry, SetFault, check_set_names};
use crate::sets::{is_data, needs_data, set_name, unknown, without_data};

/// Most thumbnails of a set.
const MAX_EXAMPLES: usize = 1000;

pub(super) fn faults(stage: &ZeroShot, schemas: &Schemas) -> Vec<Fault> {
    let mut faults: Vec<Fault> =
        crate::model::check_compute(&stage.device, &stage.precision).into_iter().collect();
    faults.extend(check_positive("batch_size", &stage.batch_size));
    if *stage.examples > MAX_EXAMPLES {
        let fault = Fault::at(stage.examples.span(), format!("`examples` is more than {MAX_EXAMPLES}"));
        faults.push(fault.label("thumbnails are held in memory while a set is evaluated"));
    }
    faults.extend(check_limits(stage.limits.as_ref()));
    faults.extend(check_prompts(&stage.prompts));
    let named = stage.sets.iter().map(|entry| match entry.value() {
        SetEntry::Described(set) => (set.name.value().clone(), set.name.span()),
        SetEntry::Declared(name) if is_data(name) => (set_name(name), entry.span()),
        SetEntry::Declared(name) => (name.clone(), entry.span()),
    });
    let named: Vec<_> = named.collect();
    let named = named.iter().map(|(name, span)| (name.as_str(), span.clone()));
    faults.extend(check_set_names(stage.sets.span(), named));
    for entry in stage.sets.iter() {
        match entry.value() {
            SetEntry::Described(set) => faults.extend(check_set(set, schemas)),
            SetEntry::Declared(name) => faults.extend(check_declared(stage, name, entry)),
        }
    }
    faults
}

/// A declared set must be known, and `data` must be given.
fn check_declared(stage: &ZeroShot, name: &str, entry: &Located<SetEntry>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some((why, hint)) = unknown(name) {
        faults.push(SetFault { why, hint: Some(hint) }.at(entry.span()));
    }
    if stage.data.is_none() && needs_data(name) {
        faults.push(without_data(name, entry.span()));
    }
    faults
}
