//! Zero-shot evaluation inside a training: the same sets, prompts and metrics as the stage's, and nothing but the metrics kept.

use std::path::Path;

use arrow::array::RecordBatch;
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::{Limits, Preprocess};
use twinlens_model::{Clip, Tokenizer};
use twinlens_pipeline::evaluation::{Evaluation, Evaluator, Measured};
use twinlens_pipeline::{Fault, Input, InputData, InputTables, Located, RunContext, RunError};

use super::set_pass::{classes, engine, refuse};
use super::{ZeroShot, check, default_batch_size, groups, input};
use crate::error::EvalError;
use crate::images::{Examples, decode};
use crate::metrics::{Metric, Tally, top_k};
use crate::prompts::{Classifier, PromptOptions, PromptSet, classifier};
use crate::set::{Classes, Labels, SetOptions};

/// Evaluation sets that are classified every so many steps of a training, and after its last one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InTraining {
    /// Steps between evaluations.
    every: Located<u64>,
    /// The evaluation sets, as a `zero-shot` stage takes them. The main metric of the first, with the first prompts, says
    /// which step is the best.
    sets: Located<Vec<SetOptions>>,
    /// Prompts, as a `zero-shot` stage takes them.
    #[serde(default = "class_names")]
    prompts: Located<Vec<Located<PromptOptions>>>,
    /// Images, or prompts, in one forward pass.
    #[serde(default = "default_batch_size")]
    batch_size: Located<usize>,
}

fn class_names() -> Located<Vec<Located<PromptOptions>>> {
    Located::nowhere(vec![Located::nowhere(PromptOptions::Text("{}".into()))])
}

impl InTraining {
    /// The stage that evaluates the same.
    fn stage(&self) -> ZeroShot {
        ZeroShot {
            model: Input(Located::nowhere("./".into())),
            sets: self.sets.clone(),
            prompts: self.prompts.clone(),
            batch_size: self.batch_size.clone(),
            limits: None,
        }
    }
}

impl Evaluation<Clip> for InTraining {
    fn every(&self) -> u64 {
        *self.every.value()
    }

    fn inputs(&self) -> Vec<Input> {
        self.stage().wiring()
    }

    fn faults(&self, inputs: &[InputTables]) -> Vec<Fault> {
        let mut faults = check::faults(&self.stage(), inputs);
        if *self.every.value() == 0 {
            faults.push(Fault::at(self.every.span(), "`every` is 0").label("at least 1"));
        }
        faults
    }

    fn open(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
        tokenizer: &Path,
    ) -> Result<Box<dyn Evaluator<Clip>>, RunError> {
        let tokenizer = Tokenizer::load(tokenizer).map_err(EvalError::from)?;
        let prepared = self.sets.iter().map(|set| Prepared::new(self, cx, inputs, set));
        let sets = prepared.collect::<Result<Vec<_>, _>>()?;
        let groups = groups(&self.sets, |_| true);
        Ok(Box::new(Prepare {
            cx: cx.clone(),
            tokenizer,
            sets,
            groups,
            batch_size: *self.batch_size.value(),
        }))
    }
}

/// One set whose classes and prompts are known.
struct Prepared {
    options: SetOptions,
    input: InputData,
    labels: Labels,
    classes: Classes,
    prompts: Vec<PromptSet>,
}

impl Prepared {
    fn new(
        options: &InTraining,
        cx: &RunContext,
        inputs: &[InputData],
        set: &SetOptions,
    ) -> Result<Self, EvalError> {
        let own = input(inputs, &set.input)?;
        let schema = own.dataset.schema(&own.table)?;
        let class_names = set.class_names.as_ref().map(|names| names.as_slice());
        let labels = Labels::new(&schema, set.label.value(), class_names).map_err(refuse(set))?;
        crate::set::check_image(&schema, set.image_column()).map_err(refuse(set))?;
        let classes = classes(cx, set, inputs, own, &labels)?;
        let of_set = set.templates.as_ref().map(|templates| templates.as_slice());
        let prompts = options.prompts.iter().map(|prompts| prompts.resolve(of_set));
        let prompts = prompts.collect::<Result<_, _>>();
        let prompts = prompts.map_err(|(why, hint)| EvalError::set(&set.name, why, hint))?;
        Ok(Self { options: set.clone(), input: own.clone(), labels, classes, prompts })
    }

    /// The class of each row; `None` for a row without one.
    fn labels(&self, batch: &RecordBatch) -> Result<Vec<Option<usize>>, EvalError> {
        let Some(column) = batch.column_by_name(self.labels.column()) else {
            let why = format!("a shard lacks the column `{}`", self.labels.column());
            return Err(EvalError::set(&self.options.name, why, None));
        };
        let column = self.labels.read(column).map_err(engine)?;
        let class = |row| column.get(row).ok().flatten().and_then(|label| self.classes.id(label));
        Ok((0..batch.num_rows()).map(class).collect())
    }
}

/// All sets, evaluated in passes over what they share.
struct Prepare {
    cx: RunContext,
    tokenizer: Tokenizer,
    sets: Vec<Prepared>,
    groups: Vec<Vec<usize>>,
    batch_size: usize,
}

/// What has been counted for each set of a pass: by its prompts the classifier and the tally.
type Counts = Vec<Vec<(Classifier, Tally)>>;

impl Prepare {
    /// The tallies of the sets of a group.
    fn pass(&self, clip: &Clip, group: &[usize]) -> Result<Counts, EvalError> {
        let sets: Vec<&Prepared> = group.iter().map(|set| &self.sets[*set]).collect();
        let count = |set: &&Prepared| -> Result<Vec<(Classifier, Tally)>, EvalError> {
            let names = set.classes.names();
            let made = set.prompts.iter().map(|prompts| {
                let classifier = classifier(clip, &self.tokenizer, names, prompts, self.batch_size)?;
                Ok((classifier, Tally::new(set.classes.len())))
            });
            made.collect()
        };
        let mut counts = sets.iter().map(count).collect::<Result<Counts, _>>()?;
        let (first, budget) = (sets[0], self.cx.bytes_in_flight);
        let column = first.options.image_column();
        let mut columns = vec![column];
        columns.extend(sets.iter().map(|set| set.labels.column()));
        columns.sort_unstable();
        columns.dedup();
        let preprocess = Preprocess::clip(clip.config().vision.image_size() as u32);
        let (dataset, table) = (&first.input.dataset, &first.input.table);
        for chunk in Examples::new(dataset, table, &columns, self.batch_size, budget / 4) {
            self.cx.check_cancelled()?;
            let batch = chunk?.batch;
            let labels = sets.iter().map(|set| set.labels(&batch)).collect::<Result<Vec<_>, _>>()?;
            let wanted: Vec<bool> =
                (0..batch.num_rows()).map(|row| labels.iter().any(|set| set[row].is_some())).collect();
            let limits = Limits::default();
            let images = decode(&batch, column, &wanted, &preprocess, &limits, budget - budget / 4);
            let rows = images.into_iter().flatten().enumerate();
            let (mut pixels, mut known) = (Vec::new(), Vec::new());
            for (row, image) in rows {
                if let Some(Ok(image)) = image.pixels {
                    pixels.extend(image);
                    known.push(row);
                }
            }
            if known.is_empty() {
                continue;
            }
            let size = preprocess.size as usize;
            let pixels = Tensor::from_vec(pixels, (known.len(), 3, size, size), &Device::Cpu)?;
            let embeddings = clip.encode_image(&pixels)?;
            for (counts, labels) in counts.iter_mut().zip(&labels) {
                for (classifier, tally) in counts {
                    let scores = classifier.scores(clip, &embeddings)?.to_vec2::<f32>()?;
                    for (row, scores) in known.iter().zip(&scores) {
                        if let Some(label) = labels[*row] {
                            tally.add(label, &top_k(scores, 5));
                        }
                    }
                }
            }
        }
        Ok(counts)
    }

    /// Every metric of a set and its prompts, the main one first.
    fn measured(&self, set: &Prepared, prompts: &str, tally: &Tally, step: u64) -> Vec<Measured> {
        let (main, name, classes) = (set.options.main_metric, set.options.name.value(), set.classes.len());
        let others = Metric::ALL.into_iter().filter(|metric| *metric != main);
        let metrics = std::iter::once(main).chain(others).filter(|metric| metric.applies(classes));
        let mut rng = self.cx.rng(&format!("evaluation/{step}/{name}/{prompts}"));
        let measured = metrics.filter_map(|metric| {
            let (value, interval) = (tally.value(metric)?, tally.interval(metric, &mut rng)?);
            Some(Measured {
                set: name.clone(),
                prompts: prompts.into(),
                metric: metric.name().into(),
                value,
                ci_low: interval.low,
                ci_high: interval.high,
                chance: metric.chance(classes),
                n: tally.total(),
            })
        });
        measured.collect()
    }

    fn all(&self, clip: &Clip, step: u64) -> Result<Vec<Measured>, EvalError> {
        let mut by_set: Vec<Vec<Measured>> = vec![Vec::new(); self.sets.len()];
        for group in &self.groups {
            for (index, counts) in group.iter().zip(self.pass(clip, group)?) {
                let set = &self.sets[*index];
                for (prompts, (_, tally)) in set.prompts.iter().zip(&counts) {
                    by_set[*index].extend(self.measured(set, &prompts.name, tally, step));
                }
                if by_set[*index].is_empty() {
                    let why = "none of its rows has an image and a label that can be read";
                    return Err(EvalError::set(&set.options.name, why, None));
                }
            }
        }
        Ok(by_set.concat())
    }
}

impl Evaluator<Clip> for Prepare {
    fn evaluate(&mut self, clip: &Clip, step: u64) -> Result<Vec<Measured>, RunError> {
        Ok(self.all(clip, step)?)
    }
}
