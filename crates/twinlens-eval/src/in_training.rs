//! Zero-shot evaluation during training: sets, prompts and metrics as in the stage, but only the
//! metrics are kept.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::Limits;
use twinlens_model::{Clip, Tokenizer};
use twinlens_pipeline::evaluation::{Evaluation, Evaluator, Measured, PlannedEvaluation};
use twinlens_pipeline::{Fault, InputData, Inputs, Located, Ports, RunContext, RunError};

use crate::classify::{
    Counts, Pass, SetPass, Sink, Variant, check_prompts, check_set, group_by_images, measure, set_inputs,
};
use crate::error::EvalError;
use crate::images::{DecodeOptions, ImageEncoder, ImageSource};
use crate::inputs::{NamedInputs, Schemas, input};
use crate::options::check_positive;
use crate::prompts::{PromptOptions, PromptSet, TextEncoder};
use crate::set::{SetOptions, check_image, check_set_names};
use crate::set_reader::{SetReader, set_error};

/// Zero-shot evaluation every `every` steps of a training, and after the last one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InTrainingEvaluation {
    /// Steps between evaluations.
    every: Located<u64>,
    /// The evaluation sets, as tables like those of a `zero-shot` stage. The main metric of the
    /// first, with the first prompts, determines the best step.
    sets: Located<Vec<SetOptions>>,
    /// Prompts, as in a `zero-shot` stage.
    #[serde(default = "class_names")]
    prompts: Located<Vec<Located<PromptOptions>>>,
    /// Images, or prompts, per forward pass.
    #[serde(default = "batch_size")]
    batch_size: Located<usize>,
}

fn class_names() -> Located<Vec<Located<PromptOptions>>> {
    Located::without_span(vec![Located::without_span(PromptOptions::Text("{}".into()))])
}

fn batch_size() -> Located<usize> {
    Located::without_span(128)
}

impl Evaluation<Clip> for InTrainingEvaluation {
    fn plan(self, ports: &mut Ports<'_>) -> Option<Box<dyn PlannedEvaluation<Clip>>> {
        let inputs = NamedInputs::declare(ports, set_inputs(self.sets.iter()));
        let faults = self.faults(&inputs.schemas(ports));
        faults.into_iter().for_each(|fault| ports.fault(fault));
        Some(Box::new(PlannedSets { options: self, inputs }))
    }
}

/// The evaluation, its inputs declared.
struct PlannedSets {
    options: InTrainingEvaluation,
    inputs: NamedInputs,
}

impl InTrainingEvaluation {
    fn faults(&self, schemas: &Schemas) -> Vec<Fault> {
        let mut faults: Vec<Fault> = check_positive("batch_size", &self.batch_size).into_iter().collect();
        faults.extend(check_prompts(&self.prompts));
        let names = self.sets.iter().map(|set| (set.name.as_str(), set.name.span()));
        faults.extend(check_set_names(self.sets.span(), names));
        faults.extend(self.sets.iter().flat_map(|set| check_set(set, schemas)));
        faults.extend(check_positive("every", &self.every));
        let hint = "use a `zero-shot` stage after the training";
        for other in self.sets.iter().filter_map(|set| set.overlap_with.as_ref()) {
            let message = "`overlap_with` is not supported during training";
            faults.push(Fault::at(other.0.span(), message).hint(hint));
        }
        let selects = |prompts: &&Located<PromptOptions>| {
            prompts.resolve(None).is_ok_and(|prompts| prompts.select.is_some())
        };
        for prompts in self.prompts.iter().filter(selects) {
            let message = "`select` is not supported during training";
            faults.push(Fault::at(prompts.span(), message).hint(hint));
        }
        faults
    }
}

impl PlannedEvaluation<Clip> for PlannedSets {
    fn every(&self) -> u64 {
        *self.options.every.value()
    }

    fn open(
        &self,
        cx: &RunContext,
        inputs: &Inputs,
        tokenizer: &Path,
    ) -> Result<Box<dyn Evaluator<Clip>>, RunError> {
        let (options, inputs) = (&self.options, self.inputs.open(inputs));
        let tokenizer = Tokenizer::load(tokenizer).map_err(EvalError::from)?;
        let sets = options.sets.iter().enumerate();
        let sets = sets.map(|(index, set)| options.prepare(cx, &inputs, index, set));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        let groups = group_by_images(sets, |set| &set.reader.options);
        let (cx, count, batch_size) = (cx.clone(), options.sets.len(), *options.batch_size.value());
        Ok(Box::new(SetEvaluator { cx, tokenizer, groups, count, batch_size }))
    }
}

impl InTrainingEvaluation {
    fn prepare(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
        index: usize,
        set: &SetOptions,
    ) -> Result<PreparedSet, EvalError> {
        let input = input(inputs, &set.input)?.clone();
        let reader = SetReader::open(cx, inputs, set)?;
        check_image(input.dataset.schema(&input.table)?.as_ref(), set.image_column())
            .map_err(set_error(set))?;
        let prompts = self.prompts.iter().map(|prompts| reader.resolve(prompts));
        let prompts = prompts.collect::<Result<_, _>>()?;
        Ok(PreparedSet { index, input, reader, prompts })
    }
}

/// A set with its classes and prompts.
struct PreparedSet {
    /// Position in the option `sets`.
    index: usize,
    input: InputData,
    reader: SetReader,
    prompts: Vec<PromptSet>,
}

/// Evaluates all sets, in one pass per shared input.
struct SetEvaluator {
    cx: RunContext,
    tokenizer: Tokenizer,
    groups: Vec<Vec<PreparedSet>>,
    /// Number of sets.
    count: usize,
    batch_size: usize,
}

/// Only metrics are kept.
struct MetricsOnly;

impl Sink for MetricsOnly {}

impl SetEvaluator {
    /// A set with classifiers for the current weights.
    fn set_pass<'a>(&self, clip: &Clip, set: &'a PreparedSet) -> Result<SetPass<'a, MetricsOnly>, EvalError> {
        // No cache: the weights change with every step.
        let texts = TextEncoder {
            clip,
            tokenizer: &self.tokenizer,
            weights_hash: "",
            batch: self.batch_size,
            cache: None,
        };
        let variants = set.prompts.iter().map(|prompts| Variant::new(&set.reader, prompts.clone(), texts));
        let variants = variants.collect::<Result<_, _>>()?;
        Ok(SetPass { reader: &set.reader, variants, scale: None, sink: MetricsOnly })
    }

    fn classify<'a>(
        &'a self,
        clip: &Clip,
        group: &'a [PreparedSet],
    ) -> Result<Vec<SetPass<'a, MetricsOnly>>, EvalError> {
        let sets = group.iter().map(|set| self.set_pass(clip, set)).collect::<Result<Vec<_>, _>>()?;
        let (limits, budget) = (Limits::default(), self.cx.bytes_in_flight);
        let decode =
            DecodeOptions { preprocess: clip.preprocess(), limits: &limits, budget, with_phash: false };
        let source = ImageSource::Images(group[0].reader.options.image_column().into());
        let encoder = ImageEncoder { clip, source: &source, identity: String::new(), decode };
        let pass = Pass::new(&self.cx, &group[0].input, encoder, self.batch_size, sets);
        Ok(pass.run(|_| ())?.0)
    }

    /// All metrics of a set with one prompt set, the main one first.
    fn measured(&self, reader: &SetReader, variant: &Variant, step: u64) -> Vec<Measured> {
        let counts = Counts { tally: &variant.tally, scores: variant.scores.as_ref() };
        // The intervals of each step have a separate stream.
        let stream = format!("{step}/{}", reader.name());
        let rows = measure(&self.cx, &stream, &reader.options, variant, counts).into_iter();
        rows.map(|row| Measured {
            set: reader.name().into(),
            prompts: variant.prompts.name.clone(),
            metric: row.metric,
            value: row.value,
            ci_low: row.interval.low,
            ci_high: row.interval.high,
            chance: row.chance,
            n: variant.examples(),
        })
        .collect()
    }

    fn evaluate_all(&self, clip: &Clip, step: u64) -> Result<Vec<Measured>, EvalError> {
        let mut by_set: Vec<Vec<Measured>> = vec![Vec::new(); self.count];
        for group in &self.groups {
            for (prepared, set) in group.iter().zip(self.classify(clip, group)?) {
                let rows = set.variants.iter().flat_map(|variant| self.measured(set.reader, variant, step));
                let rows: Vec<Measured> = rows.collect();
                if rows.is_empty() {
                    let why = "no row has a readable image and a label";
                    return Err(EvalError::set(set.reader.name(), why, None));
                }
                by_set[prepared.index] = rows;
            }
        }
        Ok(by_set.concat())
    }
}

impl Evaluator<Clip> for SetEvaluator {
    fn evaluate(&mut self, clip: &Clip, step: u64) -> Result<Vec<Measured>, RunError> {
        Ok(self.evaluate_all(clip, step)?)
    }
}
