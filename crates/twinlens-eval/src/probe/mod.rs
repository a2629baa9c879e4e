//! The stage `probe`: evaluates embeddings by linear probes, nearest neighbours and few-shot
//! curves.
//!
//! Each task on each set is one split: a killed run resumes with the missing ones. At most
//! `max_examples` training examples are held in memory; test examples are read in chunks.

mod few_shot;
mod lbfgs;
mod logistic;
mod neighbours;
mod options;
mod pass;
mod source;
mod sweep;

use std::collections::BTreeSet;

use async_trait::async_trait;
use twinlens_dataset::{contracts, types};
use twinlens_pipeline::{Fault, Inputs, Job, Output, Ports, RunContext, RunError, SortKey, StageKind, Work};

use crate::inputs::{NamedInputs, Schemas};
use crate::results::{PER_CLASS, PREDICTIONS};
use crate::set::{Labels, check_set_names};
use crate::vectors::{EMBEDDING, has_embeddings};
use options::SEVERAL;

pub use options::Probe;
pub(crate) use options::{ProbeSet, Task};

impl StageKind for Probe {
    type Options = Self;
    const NAME: &'static str = "probe";
    const EXAMPLE: &'static str = r#"[stages.probes]
kind = "probe"
sets = [{ name = "pets", train = "pets_train", test = "pets_test", label = "label" }]
tasks = ["linear-probe", "knn", "few-shot"]
"#;
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let parts =
            |set: &ProbeSet| [Some(set.train.clone()), Some(set.test.clone()), set.validation.clone()];
        let inputs = NamedInputs::declare(ports, options.sets.iter().flat_map(parts).flatten());
        let schemas = inputs.schemas(ports);
        let mut faults = options.number_faults();
        let names = options.sets.iter().map(|set| (set.name.as_str(), set.name.span()));
        faults.extend(check_set_names(options.sets.span(), names));
        faults.extend(options.sets.iter().flat_map(|set| Self::set_faults(set, &schemas)));
        faults.into_iter().for_each(|fault| ports.fault(fault));
        ports.output(contracts::accuracy(), SortKey::AsGiven);
        ports.side_table(PER_CLASS, contracts::per_class());
        ports.side_table(PREDICTIONS, contracts::predictions());
        ports.rejects(contracts::pair_texts());
        Some(Work::job(ProbeJob { options, inputs }))
    }
}

/// The job of a `probe` stage.
struct ProbeJob {
    options: Probe,
    inputs: NamedInputs,
}

impl Probe {
    fn number_faults(&self) -> Vec<Fault> {
        let zero = |value: usize, span: std::ops::Range<usize>, name: &str| {
            (value == 0).then(|| Fault::at(span, format!("`{name}` is 0")).label("at least 1"))
        };
        let share = *self.validation_share;
        let share = (!(share > 0.0 && share < 1.0)).then(|| {
            Fault::at(self.validation_share.span(), "`validation_share` must be between 0 and 1")
                .label("for example 0.2")
        });
        [
            zero(*self.neighbours, self.neighbours.span(), "neighbours"),
            zero(*self.repeats, self.repeats.span(), "repeats"),
            zero(*self.max_examples, self.max_examples.span(), "max_examples"),
            zero(self.shots.iter().copied().min().unwrap_or(0), self.shots.span(), "shots"),
            share,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn set_faults(set: &ProbeSet, schemas: &Schemas) -> Vec<Fault> {
        let mut faults = Vec::new();
        for part in [Some(&set.train), Some(&set.test), set.validation.as_ref()].into_iter().flatten() {
            let Some(schema) = schemas.get(part.name()) else { continue };
            if !has_embeddings(schema) {
                let what = match schema.field_with_name(EMBEDDING) {
                    Ok(field) => format!(
                        "the column `{EMBEDDING}` of `{}` is of type {}",
                        part.name(),
                        types::name(field.data_type())
                    ),
                    Err(_) => format!("`{}` has no column `{EMBEDDING}`", part.name()),
                };
                let fault = Fault::at(part.0.span(), what);
                faults.push(fault.hint("put an `embed` stage before this one"));
            }
            let names = set.class_names.as_ref().map(|names| names.as_slice());
            match Labels::new(schema, &set.label, names) {
                Ok(labels) if labels.is_multi_label() => {
                    faults.push(Fault::at(set.label.span(), format!("`{}`: {SEVERAL}", part.name())));
                }
                Ok(_) => {}
                Err(found) => {
                    let fault = Fault::at(set.label.span(), format!("`{}`: {}", part.name(), found.why));
                    faults.push(found.hint.into_iter().fold(fault, Fault::hint));
                }
            }
        }
        if let Some(metric) = &set.main_metric
            && metric.value().is_ranking()
        {
            let fault = Fault::at(metric.span(), format!("probes do not report `{}`", metric.name()));
            faults.push(fault.label("one of top1, top5, mean_per_class"));
        }
        faults
    }
}

#[async_trait]
impl Job for ProbeJob {
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError> {
        let (options, inputs) = (&self.options, self.inputs.open(inputs));
        let tasks: BTreeSet<Task> = options.tasks.iter().copied().collect();
        let all = (0..options.sets.len()).flat_map(|set| tasks.iter().map(move |task| (set, *task)));
        // Split numbers do not depend on the other tasks, so that adding a task keeps committed
        // ones.
        let number = |set: usize, task: Task| 3 * set as u64 + task as u64;
        let pending: Vec<(usize, Task)> =
            all.filter(|(set, task)| !output.is_done(number(*set, *task))).collect();
        cx.progress.total(pending.len() as u64);
        for (set, task) in pending {
            cx.check_cancelled()?;
            let label = format!("{} {}", options.sets[set].name.value(), task.name());
            let split = output.split(number(set, task), label);
            let (options, cx2, inputs) = (options.clone(), cx.clone(), inputs.clone());
            let work = move || pass::run(&options, &cx2, &inputs, &options.sets[set], task, split);
            let work = twinlens_pipeline::blocking(work).await;
            let split = work??;
            output.commit(split).await?;
            cx.progress.done(1);
        }
        Ok(())
    }
}
