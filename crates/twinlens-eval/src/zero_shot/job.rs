//! Runs the stage: prepares the sets, evaluates them in groups, and commits their splits.

use async_trait::async_trait;
use twinlens_dataset::SplitWriter;
use twinlens_pipeline::{ArtifactInput, InputData, Inputs, Job, Output, RunContext, RunError};

use super::declared::{self, ConvertedSet, DeclaredSet};
use super::group::{Group, SetResult};
use super::options::ZeroShot;
use super::task::SetTask;
use crate::classify::group_by_images;
use crate::inputs::{NamedInputs, input};
use crate::model::Model;
use crate::results::ResultWriter;
use crate::set::SetEntry;
use crate::trust::{SET_REFUSED, Warning};

/// `zero-shot` as it runs.
pub(super) struct ZeroShotJob {
    pub options: ZeroShot,
    pub inputs: NamedInputs,
    pub model: ArtifactInput,
}

struct SkippedSet {
    split: u64,
    name: String,
    warning: Warning,
    hint: Option<String>,
}

impl SkippedSet {
    /// A set that cannot be evaluated. Errors other than the user's stop the evaluation.
    fn new(split: u64, name: &str, error: RunError) -> Result<Self, RunError> {
        let RunError::User { message: detail, hint } = error else { return Err(error) };
        let warning = Warning { code: SET_REFUSED, detail, value: 0.0 };
        Ok(Self { split, name: name.into(), warning, hint })
    }
}

impl ZeroShot {
    /// The sets that are not committed yet: those to evaluate, and those to skip. Adds the datasets
    /// of declared sets to `inputs`.
    async fn prepare(
        &self,
        cx: &RunContext,
        inputs: &mut Vec<InputData>,
        output: &Output,
    ) -> Result<(Vec<SetTask>, Vec<SkippedSet>), RunError> {
        let (mut tasks, mut skipped) = (Vec::new(), Vec::new());
        for (split, entry) in (0..).zip(self.sets.iter()).filter(|(split, _)| !output.is_done(*split)) {
            let name = match entry.value() {
                SetEntry::Described(set) => {
                    let (options, warnings) = (set.as_ref().clone(), Vec::new());
                    tasks.push(SetTask { split, options, declared: false, warnings });
                    continue;
                }
                SetEntry::Declared(name) => name,
            };
            let data = self.data.as_ref().map(|data| data.as_str());
            match declared::prepare(cx, name, data, &self.limits(), output.work_dir()?).await {
                Ok(DeclaredSet::Ready(set)) => {
                    let ConvertedSet { options, input, warnings } = *set;
                    inputs.push(input);
                    tasks.push(SetTask { split, options, declared: true, warnings });
                }
                Ok(DeclaredSet::Missing(warning)) => {
                    skipped.push(SkippedSet { split, name: name.clone(), warning, hint: None });
                }
                Err(error) => skipped.push(SkippedSet::new(split, name, error)?),
            }
        }
        Ok((tasks, skipped))
    }
}

/// Commits skipped sets, each as a split with a warning.
///
/// # Errors
/// No set was evaluated: nothing is committed, and the error is that of the first set.
async fn record_skipped(
    cx: &RunContext,
    skipped: Vec<SkippedSet>,
    output: &mut Output,
) -> Result<(), RunError> {
    for set in &skipped {
        cx.progress.note(format!("set `{}` is skipped: {}", set.name, set.warning.detail));
    }
    if output.state().rows(twinlens_dataset::MAIN) == 0
        && let Some(first) = skipped.first()
    {
        let message = if first.warning.detail.contains(&format!("`{}`", first.name)) {
            first.warning.detail.clone()
        } else {
            format!("evaluation set `{}`: {}", first.name, first.warning.detail)
        };
        return Err(RunError::User { message, hint: first.hint.clone() });
    }
    for set in skipped {
        let mut results = ResultWriter::new(&set.name, output.split(set.split, &set.name));
        results.warnings(None, &[set.warning])?;
        output.commit(results.into_split()).await?;
    }
    Ok(())
}

impl ZeroShot {
    /// Evaluates a group of sets on a blocking thread; returns the model for the next one.
    async fn evaluate(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
        model: Model,
        sets: Vec<(SetTask, SplitWriter)>,
    ) -> Result<(Model, Vec<SetResult>), RunError> {
        let (options, cx, inputs) = (self.clone(), cx.clone(), inputs.to_vec());
        // Hours of computation must not block the threads that handle Ctrl-C.
        let work = twinlens_pipeline::blocking(move || {
            let group = Group { options: &options, cx: &cx, inputs: &inputs, model: &model };
            let results = group.run(sets)?;
            Ok::<_, RunError>((model, results))
        });
        work.await?
    }
}

#[async_trait]
impl Job for ZeroShotJob {
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError> {
        let options = &self.options;
        let mut opened = self.inputs.open(inputs);
        let (tasks, mut skipped) = options.prepare(cx, &mut opened, output).await?;
        let mut rows = 0;
        for task in &tasks {
            rows += input(&opened, &task.options.input)?.rows();
        }
        cx.progress.total(rows);
        let mut model = None;
        for group in group_by_images(tasks, |task| &task.options) {
            let open = match model.take() {
                Some(model) => model,
                None => {
                    let compute = (*options.device, *options.precision);
                    Model::open(&self.model, compute, cx, inputs).await?
                }
            };
            let with_split = |task: SetTask| {
                let split = output.split(task.split, task.options.name.value());
                (task, split)
            };
            let sets = group.into_iter().map(with_split).collect();
            let (open, results) = options.evaluate(cx, &opened, open, sets).await?;
            model = Some(open);
            for (task, result) in results {
                match result {
                    Ok(mut split) => {
                        if task.declared {
                            declared::copy_rejects(input(&opened, &task.options.input)?, &mut split)?;
                        }
                        output.commit(split).await?;
                    }
                    Err(error) => {
                        skipped.push(SkippedSet::new(task.split, &task.options.name, error.into())?);
                    }
                }
            }
        }
        record_skipped(cx, skipped, output).await?;
        let work = output.work_dir()?.join(declared::FOLDER);
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(&work, error)),
            _ => Ok(()),
        }
    }
}
