//! Trainings that are continued: `--continue clip` is `from = "clip@1"` and `optimizer = true` in
//! the stage `clip`, where `clip@1` is what its dataset of now will be called.
//!
//! A dataset that was made so stays what the stage makes as long as its other options stay: later
//! calls need not say it again.

use std::path::Path;

use serde_json::Value;
use twinlens_dataset::manifest;
use twinlens_dataset::storage::Location;
use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{Node, Pipeline};
use twinlens_pipeline::run::generations;

use crate::config;
use crate::errors::Failure;

/// What a command says of its pipeline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The pipeline file.
    pub file: &'a Path,
    /// The values of `--set`.
    pub set: &'a [String],
    /// The value of `--continue`.
    pub stage: Option<&'a str>,
}

/// Opens a pipeline, with the options of the trainings that are continued. `dir` gives its run
/// directory.
pub(crate) fn open(
    request: Request<'_>,
    registry: &Registry,
    dir: impl FnOnce(&Pipeline) -> Result<Location, Failure>,
) -> Result<Pipeline, Failure> {
    // What is wrong is reported with what is wrong in the inputs.
    let Ok(pipeline) = config::load(request.file, registry, request.set) else {
        return config::open(request.file, registry, request.set);
    };
    let dir = dir(&pipeline)?;
    let mut set = request.set.to_vec();
    for node in pipeline.nodes.iter().filter(|node| node.kind == TRAIN && node.variant.is_none()) {
        let is_meant = request.stage == Some(node.name.as_str());
        if let Some(options) = continuation(node, &dir, is_meant, request, registry)? {
            set.extend(options);
        }
    }
    if let Some(stage) = request.stage {
        check(stage, &pipeline)?;
    }
    config::open(request.file, registry, &set)
}

/// The kind of stages that can be continued.
const TRAIN: &str = "train";

fn check(stage: &str, pipeline: &Pipeline) -> Result<(), Failure> {
    let trainings = || pipeline.nodes.iter().filter(|node| node.kind == TRAIN);
    if trainings().any(|node| node.name == stage && node.variant.is_none()) {
        return Ok(());
    }
    let names: Vec<&str> = trainings().map(|node| node.name.as_str()).collect();
    let hint = match &names[..] {
        [] => "the pipeline trains no model".into(),
        names => format!("its trainings are {}; variants of a sweep cannot be continued", names.join(", ")),
    };
    Err(Failure::user(format!("--continue {stage}: there is no such training")).hint(hint))
}

/// The values of `--set` by which a training is continued, if it is.
fn continuation(
    node: &Node,
    dir: &Location,
    is_meant: bool,
    request: Request<'_>,
    registry: &Registry,
) -> Result<Option<[String; 2]>, Failure> {
    let stage = &node.name;
    let values = |of: &str| [format!("stages.{stage}.from={of}"), format!("stages.{stage}.optimizer=true")];
    let state = manifest::read(&dir.join(stage))?;
    if let Some(state) = &state
        && let made = &state.begin.recipe["options"]
        && made["optimizer"] == true
        && let Some(of) = made["from"].as_str().filter(|of| of.starts_with(&format!("{stage}@")))
        && (is_meant || node.options["from"] == Value::Null)
    {
        let set: Vec<String> = request.set.iter().cloned().chain(values(of)).collect();
        let again = config::load(request.file, registry, &set)?;
        if again.node(stage).is_some_and(|(_, node)| node.options == *made) {
            return Ok(Some(values(of)));
        }
    }
    match state {
        _ if !is_meant => Ok(None),
        Some(_) => Ok(Some(values(&generations::next_name(dir, stage)?))),
        None => Err(Failure::user(format!("--continue {stage}: there is no training of it in {dir}"))),
    }
}
