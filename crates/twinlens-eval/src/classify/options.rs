//! The options that zero-shot classification shares: checks without I/O, and what they read.

use std::collections::BTreeSet;

use twinlens_pipeline::{Fault, Input, Located};

use crate::images::ImageSource;
use crate::inputs::Schemas;
use crate::prompts::{PromptOptions, check_templates};
use crate::set::{ClassOptions, Classes, Labels, SetFault, SetOptions};

/// The inputs of sets.
pub(crate) fn set_inputs<'a>(
    sets: impl Iterator<Item = &'a SetOptions> + Clone,
) -> impl Iterator<Item = Input> {
    let examples = sets.clone().map(|set| set.input.clone());
    let classes = sets.clone().filter_map(SetOptions::classes_input);
    let training = sets.filter_map(|set| set.overlap_with.clone());
    examples.chain(classes).chain(training)
}

/// Groups sets that read the same column of the same input, to classify each group in one pass.
pub(crate) fn group_by_images<T>(sets: Vec<T>, options: impl Fn(&T) -> &SetOptions) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    for set in sets {
        let images = |set: &T| {
            let options = options(set);
            (options.input.name().to_string(), options.image_column().to_string())
        };
        match groups.iter_mut().find(|group| images(&group[0]) == images(&set)) {
            Some(group) => group.push(set),
            None => groups.push(vec![set]),
        }
    }
    groups
}

/// Checks the option `prompts`.
pub(crate) fn check_prompts(options: &Located<Vec<Located<PromptOptions>>>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if options.is_empty() {
        faults.push(
            Fault::at(options.span(), "there are no prompts")
                .label("expected at least one template or template set"),
        );
    }
    let mut names = BTreeSet::new();
    for prompts in options.iter() {
        match prompts.resolve(None) {
            Err((why, hint)) => faults.push(SetFault { why, hint }.at(prompts.span())),
            Ok(set) if names.contains(&set.name) => {
                faults.push(Fault::at(prompts.span(), format!("there are two prompts `{}`", set.name)));
            }
            Ok(set) => drop(names.insert(set.name)),
        }
    }
    faults
}

/// Checks a set that the pipeline file describes.
pub(crate) fn check_set(set: &SetOptions, schemas: &Schemas) -> Vec<Fault> {
    let mut faults = Vec::new();
    let class_names = set.class_names.as_ref().map(|names| names.as_slice());
    if let Some(schema) = schemas.get(set.input.name()) {
        if let Err(error) = Labels::new(schema, set.label.value(), class_names) {
            faults.push(error.at(set.label.span()));
        }
        let named = set.image.as_ref().map(|column| column.as_str());
        if let Err(error) = ImageSource::resolve(schema, named) {
            let span = set.image.as_ref().map_or(set.input.0.span(), Located::span);
            faults.push(error.at(span));
        }
    }
    match &set.classes {
        Some(list) => match list.value() {
            ClassOptions::From(name) => {
                let schema = schemas.get(name);
                let labels = schema.map(|schema| Labels::new(schema, set.label.value(), class_names));
                if let Some(Err(error)) = labels {
                    let why = format!("`{name}` cannot provide the classes: {}", error.why);
                    faults.push(SetFault { why, ..error }.at(list.span()));
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
    Some(SetFault { why, ..error }.at(option.span()))
}
