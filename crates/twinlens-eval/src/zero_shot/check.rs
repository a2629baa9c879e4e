//! Checks of the options, without I/O.

use std::collections::BTreeSet;

use twinlens_pipeline::{Fault, InputTables, Located};

use super::ZeroShot;
use crate::images::ImageSource;
use crate::prompts::check_templates;
use crate::set::{ClassOptions, Classes, Labels, SetEntry, SetFault, SetOptions, check_set_names};
use crate::sets::unknown;

pub fn faults(stage: &ZeroShot, inputs: &[InputTables]) -> Vec<Fault> {
    let mut faults = crate::model::check_model(&stage.model, inputs);
    faults.extend(crate::model::check_compute(&stage.device, &stage.precision));
    if *stage.batch_size.value() == 0 {
        faults.push(Fault::at(stage.batch_size.span(), "`batch_size` is 0").label("expected at least 1"));
    }
    if let Some(limits) = &stage.limits
        && let Err(error) = limits.check()
    {
        faults.push(Fault::at(limits.span(), error.to_string()));
    }
    faults.extend(check_prompts(stage));
    let named = stage.sets.iter().map(|entry| match entry.value() {
        SetEntry::Described(set) => (set.name.as_str(), set.name.span()),
        SetEntry::Declared(name) => (name.as_str(), entry.span()),
    });
    faults.extend(check_set_names(stage.sets.span(), named));
    for entry in stage.sets.iter() {
        match entry.value() {
            SetEntry::Described(set) => faults.extend(check_set(set, inputs)),
            SetEntry::Declared(name) => faults.extend(check_declared(stage, name, entry)),
        }
    }
    faults
}

/// A declared set must be known, and `data` must be given.
fn check_declared(stage: &ZeroShot, name: &str, entry: &Located<SetEntry>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some((why, hint)) = unknown(name) {
        faults.push(fault(entry, SetFault { why, hint: Some(hint) }));
    }
    if stage.data.is_none() {
        let hint = "write `data = \"sets\"`: the data of `cifar10` are then expected in sets/cifar10.parquet or sets/cifar10/";
        faults.push(Fault::at(entry.span(), format!("`{name}` needs the option `data`")).hint(hint));
    }
    faults
}

fn fault(option: &Located<impl Sized>, SetFault { why, hint }: SetFault) -> Fault {
    let fault = Fault::at(option.span(), why);
    match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}

fn check_prompts(stage: &ZeroShot) -> Vec<Fault> {
    let mut faults = Vec::new();
    if stage.prompts.is_empty() {
        faults.push(
            Fault::at(stage.prompts.span(), "there are no prompts")
                .label("expected at least one template or template set"),
        );
    }
    let mut names = BTreeSet::new();
    for prompts in stage.prompts.iter() {
        match prompts.resolve(None) {
            Err((why, hint)) => faults.push(fault(prompts, SetFault { why, hint })),
            Ok(set) if names.contains(&set.name) => {
                faults.push(Fault::at(prompts.span(), format!("there are two prompts `{}`", set.name)));
            }
            Ok(set) => drop(names.insert(set.name)),
        }
    }
    faults
}

fn check_set(set: &SetOptions, inputs: &[InputTables]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let schema = |name: &str| {
        inputs.iter().find(|input| input.input.name() == name).and_then(|input| input.schema.clone())
    };
    let class_names = set.class_names.as_ref().map(|names| names.as_slice());
    if let Some(schema) = schema(set.input.name()) {
        if let Err(error) = Labels::new(&schema, set.label.value(), class_names) {
            faults.push(fault(&set.label, error));
        }
        let named = set.image.as_ref().map(|column| column.as_str());
        if let Err(error) = ImageSource::resolve(&schema, named) {
            match &set.image {
                Some(column) => faults.push(fault(column, error)),
                None => faults.push(fault(&set.input.0, error)),
            }
        }
    }
    match &set.classes {
        Some(list) => match list.value() {
            ClassOptions::From(name) => {
                let labels = schema(name).map(|schema| Labels::new(&schema, set.label.value(), class_names));
                if let Some(Err(error)) = labels {
                    let why = format!("`{name}` cannot provide the classes: {}", error.why);
                    faults.push(fault(list, SetFault { why, ..error }));
                }
            }
            ClassOptions::List(names) => faults.extend(check_classes(set, list, names)),
        },
        None => {
            if let Some(names) = &set.class_names {
                faults.extend(check_classes(set, names, names.value()));
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

fn check_classes(set: &SetOptions, option: &Located<impl Sized>, names: &[String]) -> Option<Fault> {
    let error = Classes::new(names.to_vec(), &set.names).err()?;
    let why = format!("evaluation set `{}`: {}", set.name.value(), error.why);
    Some(fault(option, SetFault { why, ..error }))
}
