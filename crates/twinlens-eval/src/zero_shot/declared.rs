//! Declared sets: their files are converted to a dataset in the stage's work directory, and are
//! then evaluated like any other set.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{Begin, DatasetWriter, MAIN, REJECTS, SplitWriter, contracts, protocol};
use twinlens_image::Limits;
use twinlens_pipeline::files::{folder_stamp, stamp};
use twinlens_pipeline::run::output::write_rejects;
use twinlens_pipeline::{Input, InputData, Located, Output, RunContext, RunError};

use crate::ledger::first_reject;
use crate::results::WARNINGS;
use crate::set::{ClassOptions, SetOptions};
use crate::sets::{self, BoundClass, CLASSES, Declaration, LocatedSet, Task};
use crate::trust::{SET_MISSING, Warning};

/// The directory of converted sets in the stage's work directory.
pub(super) const FOLDER: &str = "sets";

pub(super) enum DeclaredSet {
    Ready(Box<ConvertedSet>),
    /// The data are missing.
    Missing(Warning),
}

/// The options and the dataset of a declared set.
pub(super) struct ConvertedSet {
    pub options: SetOptions,
    pub input: InputData,
    pub warnings: Vec<Warning>,
}

/// Finds and converts the data of the set that an option names.
///
/// # Errors
/// [`RunError::User`] if the set cannot be used as it is.
pub(super) async fn prepare(
    cx: &RunContext,
    name: &str,
    data: Option<&str>,
    limits: &Limits,
    work: PathBuf,
) -> Result<DeclaredSet, RunError> {
    let data = data.map(|data| cx.path(data));
    let LocatedSet { set, root } = sets::locate(&cx.files, name, data.as_deref(), None)?;
    if set.task == Task::Retrieval {
        let why = format!("`{}` is a retrieval set: it has no classes", set.name);
        return Err(RunError::user_with_hint(why, "evaluate it with a `retrieval` stage"));
    }
    let Some(root) = root else {
        let folder = data.unwrap_or_default();
        let detail = format!("its data are not in {}: {}", folder.display(), set.how_to_get);
        return Ok(DeclaredSet::Missing(Warning { code: SET_MISSING, detail, value: 0.0 }));
    };
    let opened = {
        let (set, root) = (set.clone(), root.clone());
        let open = twinlens_pipeline::blocking(move || sets::open(&set, &set.split, &root));
        open.await??
    };
    if set.undeclared {
        cx.progress.note(format!("set `{}`: the split `{}` is read", set.name, set.split));
    }
    let location = root.clone().into();
    let stamp = if root.is_dir() { folder_stamp(&location)? } else { stamp(&location)? };
    let fingerprint = hex::encode(&Sha256::digest(format!("{set:?} {limits:?} {stamp}"))[..16]);
    let folder = work.join(FOLDER).join(&set.name);
    let mut output = dataset(cx, &set, folder, fingerprint)?;
    if !output.state().complete {
        sets::write(cx, &opened, limits, &mut output).await?;
        output.complete()?;
    }
    if output.state().rows(MAIN) == 0
        && let Some(reason) = first_reject(&output.dataset())?
    {
        let message =
            format!("evaluation set `{}`: all of its examples were rejected; the first: {reason}", set.name);
        return Err(RunError::user(message));
    }
    let written = opened.written();
    let name = format!("{FOLDER}/{}", set.name);
    let input = InputData {
        name: name.clone(),
        table: MAIN.into(),
        dataset: output.dataset(),
        view: None,
        variants: vec![],
    };
    let options =
        options(&set, Input(Located::without_span(name)), &written.bound.classes, written.templates);
    Ok(DeclaredSet::Ready(Box::new(ConvertedSet { options, input, warnings: written.bound.warnings })))
}

/// Creates the dataset of a set, or opens it to resume.
fn dataset(
    cx: &RunContext,
    set: &Declaration,
    folder: PathBuf,
    fingerprint: String,
) -> Result<Output, RunError> {
    let main = contracts::with_hub_features(sets::schema());
    let kept = main.fields().iter().filter(|field| !holds_image_bytes(field.data_type())).cloned();
    let ledger: Vec<_> = kept.chain(contracts::rejects().fields().iter().cloned()).collect();
    let ledger = std::sync::Arc::new(datafusion::arrow::datatypes::Schema::new(ledger));
    let begin = Begin {
        format: protocol::FORMAT,
        position: 0,
        stage: cx.stage.clone(),
        kind: "evaluation-set".into(),
        fingerprint,
        recipe: serde_json::json!({ "set": set.name }),
        fused: Vec::new(),
        variant: None,
        tables: [
            (MAIN.to_string(), main),
            (REJECTS.to_string(), ledger),
            (CLASSES.to_string(), sets::classes_schema()),
            (WARNINGS.to_string(), contracts::warnings()),
        ]
        .into(),
    };
    let writer = DatasetWriter::open(folder, begin, ShardLimits::default())?;
    Ok(Output::new(&cx.stage, writer, cx.progress.clone()))
}

fn options(set: &Declaration, input: Input, classes: &[BoundClass], templates: Vec<String>) -> SetOptions {
    let option = |text: &str| Located::without_span(text.to_string());
    let multi_label = set.task == Task::MultiLabel;
    let names: Vec<String> = classes.iter().map(|class| class.name.clone()).collect();
    let with_synonyms = classes.iter().filter(|class| !class.synonyms.is_empty());
    SetOptions {
        name: option(&set.name),
        input,
        label: option(if multi_label { "labels" } else { "class_name" }),
        split: Some(set.split.clone()),
        image: None,
        classes: (!multi_label).then(|| Located::without_span(ClassOptions::List(names.clone()))),
        class_names: multi_label.then(|| Located::without_span(names)),
        names: Default::default(),
        synonyms: with_synonyms.map(|class| (class.name.clone(), class.synonyms.clone())).collect(),
        templates: (!templates.is_empty()).then(|| Located::without_span(templates)),
        main_metric: set.main_metric(),
        overlap_with: None,
    }
}

/// Copies the rejects of the conversion to the ledger of the results.
pub(super) fn copy_rejects(input: &InputData, split: &mut SplitWriter) -> Result<(), RunError> {
    let schema = input.dataset.schema(REJECTS)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    for batch in ShardReader::new(&input.dataset, REJECTS, &columns, 1024) {
        write_rejects(split, &batch?)?;
    }
    Ok(())
}
