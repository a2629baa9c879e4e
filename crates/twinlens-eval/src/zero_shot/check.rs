//! Everything that can be wrong with the options, without I/O.

use std::collections::BTreeSet;

use twinlens_pipeline::{Fault, InputTables, Located};

use super::ZeroShot;
use crate::images::ImageSource;
use crate::prompts::check_templates;
use crate::set::{ClassFault, ClassOptions, Classes, Labels, SetEntry, SetOptions, name_faults};
use crate::sets::unknown;

/// All faults at once.
pub fn faults(stage: &ZeroShot, inputs: &[InputTables]) -> Vec<Fault> {
    let mut faults = crate::model::faults(&stage.model, inputs);
    faults.extend(crate::model::compute_fault(&stage.device, &stage.precision));
    if *stage.batch_size.value() == 0 {
        faults.push(Fault::at(stage.batch_size.span(), "`batch_size` is 0").label("at least 1"));
    }
    if let Some(limits) = &stage.limits
        && let Err(error) = limits.check()
    {
        faults.push(Fault::at(limits.span(), error.to_string()));
    }
    faults.extend(prompts(stage));
    let named = stage.sets.iter().map(|entry| match entry.value() {
        SetEntry::Described(set) => (set.name.as_str(), set.name.span()),
        SetEntry::Declared(name) => (name.as_str(), entry.span()),
    });
    faults.extend(name_faults(stage.sets.span(), named));
    for entry in stage.sets.iter() {
        match entry.value() {
            SetEntry::Described(set) => faults.extend(self::set(set, inputs)),
            SetEntry::Declared(name) => faults.extend(declared(stage, name, entry)),
        }
    }
    faults
}

/// A declared set must be known, and its data be looked for somewhere.
fn declared(stage: &ZeroShot, name: &str, place: &Located<SetEntry>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some((why, hint)) = unknown(name) {
        faults.push(fault(place, ClassFault { why, hint: Some(hint) }));
    }
    if stage.data.is_none() {
        let hint = "write `data = \"sets\"`: the data of `cifar10` are looked for in sets/cifar10.parquet and sets/cifar10/";
        faults
            .push(Fault::at(place.span(), format!("nothing says where the data of `{name}` are")).hint(hint));
    }
    faults
}

fn fault(place: &Located<impl Sized>, found: ClassFault) -> Fault {
    let fault = Fault::at(place.span(), found.why);
    match found.hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}

fn prompts(stage: &ZeroShot) -> Vec<Fault> {
    let mut faults = Vec::new();
    if stage.prompts.is_empty() {
        faults.push(
            Fault::at(stage.prompts.span(), "there are no prompts")
                .label("at least one template or template set"),
        );
    }
    let mut names = BTreeSet::new();
    for prompts in stage.prompts.iter() {
        match prompts.resolve(None) {
            Err((why, hint)) => faults.push(fault(prompts, ClassFault { why, hint })),
            Ok(set) if names.contains(&set.name) => {
                faults.push(Fault::at(prompts.span(), format!("there are two prompts `{}`", set.name)));
            }
            Ok(set) => drop(names.insert(set.name)),
        }
    }
    faults
}

fn set(set: &SetOptions, inputs: &[InputTables]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let schema = |name: &str| {
        inputs.iter().find(|input| input.input.name() == name).and_then(|input| input.schema.clone())
    };
    let class_names = set.class_names.as_ref().map(|names| names.as_slice());
    if let Some(schema) = schema(set.input.name()) {
        if let Err(found) = Labels::new(&schema, set.label.value(), class_names) {
            faults.push(fault(&set.label, found));
        }
        let named = set.image.as_ref().map(|column| column.as_str());
        if let Err(found) = ImageSource::of(&schema, named) {
            match &set.image {
                Some(column) => faults.push(fault(column, found)),
                None => faults.push(fault(&set.input.0, found)),
            }
        }
    }
    match &set.classes {
        Some(list) => match list.value() {
            ClassOptions::From(name) => {
                let labels = schema(name).map(|schema| Labels::new(&schema, set.label.value(), class_names));
                if let Some(Err(found)) = labels {
                    let why = format!("`{name}` cannot give the classes: {}", found.why);
                    faults.push(fault(list, ClassFault { why, ..found }));
                }
            }
            ClassOptions::List(names) => faults.extend(classes(set, list, names)),
        },
        None => {
            if let Some(names) = &set.class_names {
                faults.extend(classes(set, names, names.value()));
            }
        }
    }
    if let Some(templates) = &set.templates
        && let Err(why) = check_templates(templates)
    {
        faults.push(Fault::at(templates.span(), why));
    }
    faults
}

fn classes(set: &SetOptions, place: &Located<impl Sized>, names: &[String]) -> Option<Fault> {
    let found = Classes::new(names.to_vec(), &set.names).err()?;
    let why = format!("evaluation set `{}`: {}", set.name.value(), found.why);
    Some(fault(place, ClassFault { why, ..found }))
}
