//! The stage `zero-shot`: how well a model names what it was never trained to name.
//!
//! Sets that share an input are evaluated in one pass over it, so that each image is decoded and encoded once
//! whatever the number of sets and prompts; a set is one split, and a killed evaluation goes on with the sets
//! that are not committed.

mod check;
mod pass;
pub(crate) mod set_pass;
pub(crate) mod tables;

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::{SplitWriter, contracts};
use twinlens_image::Limits;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use crate::model::{self, Model, input};
use crate::prompts::PromptOptions;
use crate::set::SetOptions;
use pass::Pass;

/// Classifies images by the nearest of their classes' names, put into prompts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroShot {
    /// A `train` stage, or the path of a folder (`./models/b32`) with config.json, model.safetensors and
    /// tokenizer.json.
    model: Input,
    /// The evaluation sets.
    sets: Located<Vec<SetOptions>>,
    /// Each is evaluated by itself: a template with `{}` or `{c}` where the class name goes; `ensemble` for the
    /// mean over a set of general templates (or the evaluation set's own); or a table `{ name, templates }`.
    #[serde(default = "default_prompts")]
    prompts: Located<Vec<Located<PromptOptions>>>,
    /// Images, or prompts, in one forward pass.
    #[serde(default = "default_batch_size")]
    batch_size: Located<usize>,
    /// Bounds on the images: what breaks them is rejected undecoded.
    #[serde(default)]
    limits: Option<Located<Limits>>,
}

fn default_prompts() -> Located<Vec<Located<PromptOptions>>> {
    let all = ["{}", "a photo of a {}.", crate::prompts::ENSEMBLE];
    Located::nowhere(all.map(|text| Located::nowhere(PromptOptions::Text(text.into()))).to_vec())
}

fn default_batch_size() -> Located<usize> {
    Located::nowhere(128)
}

const PER_CLASS: &str = "per_class";
const PREDICTIONS: &str = "predictions";
const CALIBRATION: &str = "calibration";
const WARNINGS: &str = "warnings";

impl ZeroShot {
    /// The inputs of sets, then those of their classes, then the model where it is a stage: the ledger has the
    /// columns of the first.
    fn wiring(&self) -> Vec<Input> {
        let examples = self.sets.iter().map(|set| set.input.clone());
        let classes = self.sets.iter().filter_map(SetOptions::classes_input);
        let model = (!self.model.is_path()).then(|| self.model.clone());
        let mut seen = BTreeSet::new();
        examples.chain(classes).chain(model).filter(|input| seen.insert(input.name().to_string())).collect()
    }

    fn limits(&self) -> Limits {
        self.limits.as_ref().map(|limits| limits.value().clone()).unwrap_or_default()
    }
}

impl Stage for ZeroShot {
    fn inputs(&self) -> Vec<Input> {
        self.wiring()
    }

    fn files(&self) -> Vec<Located<String>> {
        model::files(&self.model)
    }

    fn side_tables(&self) -> &'static [&'static str] {
        &[PER_CLASS, PREDICTIONS, CALIBRATION, WARNINGS]
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let faults = check::faults(self, inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let tables = Tables::main(contracts::accuracy());
        let tables =
            tables.with(PER_CLASS, contracts::per_class()).with(PREDICTIONS, contracts::predictions());
        Ok(tables.with(CALIBRATION, contracts::calibration()).with(WARNINGS, contracts::warnings()))
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

impl StageKind for ZeroShot {
    const KIND: &'static str = "zero-shot";
    const ABOUT: &'static str = "Classifies the images of evaluation sets among class names put into prompts, and reports accuracies.";
    const EXAMPLE: &'static str = r#"[stages.zero_shot]
kind = "zero-shot"
model = "clip"
sets = [
    { name = "groups", input = "held_out", label = "group", main_metric = "mean_per_class" },
    { name = "digits", input = "digits/test.parquet", label = "label", templates = ["a photo of the number: \"{}\"."] },
]
prompts = ["{}", "a photo of a {}.", "ensemble"]
"#;
    const VERSION: u32 = 2;
}

/// Sets that are evaluated in one pass: they read the same column of the same input.
fn groups(sets: &[SetOptions], todo: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let key = |index: usize| (sets[index].input.name(), sets[index].image_column());
    for index in (0..sets.len()).filter(|index| todo(*index)) {
        match groups.iter_mut().find(|group| key(group[0]) == key(index)) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    groups
}

#[async_trait]
impl Job for ZeroShot {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let groups = groups(&self.sets, |set| !output.is_done(set as u64));
        if groups.is_empty() {
            return Ok(());
        }
        let mut rows = 0;
        for group in &groups {
            rows += input(inputs, &self.sets[group[0]].input)?.rows();
        }
        cx.progress.total(rows);
        let mut model = Model::open(&self.model, cx, inputs).await?;
        for group in groups {
            let splits: Vec<SplitWriter> =
                group.iter().map(|set| output.split(*set as u64, self.sets[*set].name.value())).collect();
            let (options, cx, inputs) = (self.clone(), cx.clone(), inputs.to_vec());
            // Hours of arithmetic do not belong on the threads that answer Ctrl-C.
            let work = tokio::task::spawn_blocking(move || {
                let splits = Pass::new(&options, &cx, &inputs, &model, group, splits)?.run()?;
                Ok::<_, RunError>((model, splits))
            });
            let (back, splits) = work.await.map_err(|error| RunError::Internal(error.to_string()))??;
            model = back;
            for split in splits {
                output.commit(split).await?;
            }
        }
        Ok(())
    }
}
