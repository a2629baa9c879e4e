//! Evaluation of a model that another program computes: its sets, and the texts to embed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};
use twinlens_eval::prompts::{PromptOptions, fill};
use twinlens_eval::sets::{Declaration, Task, Written};
use twinlens_eval::{Retrieval, ZeroShot};
use twinlens_pipeline::StageKind;

use super::error::{Error, catch};
use crate::errors::Failure;
use crate::eval::{AvailableSet, classification, current_dir, find_sets, prompts, retrieval};

/// The sets that are named, as JSON: for each its `name`, its `stage`, the `options` of a stage
/// that reads it, the `kind` of the stage that scores it, `set` as an option of that stage, and the
/// `texts` of the prompts (of a set for retrieval these are the captions, which its rows have);
/// then the `missing` ones, each with how to get it.
///
/// # Errors
/// No set is named, a set is unknown, or a prompt is not a template.
pub fn evaluation(sets: &[String], data: Option<&str>, templates: &[String]) -> Result<Value, Error> {
    catch(|| Ok(plan(sets, data, templates)?))
}

fn plan(sets: &[String], data: Option<&str>, templates: &[String]) -> Result<Value, Failure> {
    let prompts = prompts(templates)?;
    let (available, missing) = find_sets(sets, data)?;
    let how = |set: &Declaration| json!({ "name": set.name, "how_to_get": set.how_to_get });
    let missing: Vec<Value> = missing.iter().map(how).collect();
    let sets = available.iter().map(|set| one(set, data, &prompts)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "sets": sets, "missing": missing }))
}

fn one(available: &AvailableSet, data: Option<&str>, prompts: &[PromptOptions]) -> Result<Value, Failure> {
    let AvailableSet { name, set, stage, .. } = available;
    let mut options = json!({ "kind": "evaluation-set", "set": name });
    if name.ends_with(".toml") {
        options["set"] = json!(current_dir()?.join(name));
    }
    if let Some(data) = data.filter(|_| !twinlens_eval::sets::is_data(name)) {
        options["data"] = json!(format!("{}/", data.trim_end_matches('/')));
    }
    if set.task == Task::Retrieval {
        let set = retrieval(available);
        return Ok(
            json!({ "name": name, "stage": stage, "options": options, "kind": Retrieval::NAME, "set": set, "texts": [] }),
        );
    }
    let written = available.written()?;
    let set = classification(available, &written);
    let texts = texts(&written, prompts)?;
    Ok(
        json!({ "name": name, "stage": stage, "options": options, "kind": ZeroShot::NAME, "set": set, "texts": texts }),
    )
}

/// Every name of every class in every template.
fn texts(written: &Written, prompts: &[PromptOptions]) -> Result<BTreeSet<String>, Failure> {
    let own = Some(&written.templates[..]).filter(|templates| !templates.is_empty());
    let mut texts = BTreeSet::new();
    for prompts in prompts {
        let resolved = prompts.resolve(own).map_err(|(why, hint)| Failure { hint, ..Failure::user(why) })?;
        for class in &written.bound.classes {
            for name in [&class.name].into_iter().chain(&class.synonyms) {
                texts.extend(resolved.templates.iter().map(|template| fill(template, name)));
            }
        }
    }
    Ok(texts)
}

/// The directory of a model that is named as for [`Clip::load`](super::Clip::load).
///
/// # Errors
/// The model does not exist.
pub fn model_folder(name: &str) -> Result<PathBuf, Error> {
    catch(|| Ok(crate::models::folder(name)?))
}
