//! Zero-shot evaluation during training: sets, prompts and metrics as in the stage, but only the
//! metrics are kept.

use std::path::Path;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::{Limits, Preprocess};
use twinlens_model::{Clip, Tokenizer};
use twinlens_pipeline::evaluation::{Evaluation, Evaluator, Measured};
use twinlens_pipeline::{Fault, Input, InputData, InputTables, Located, RunContext, RunError};

use super::rows::{IGNORED, SetReader, Truth, read_classes, set_error};
use super::variant::{Counts, Variant, measure};
use super::{SetTask, ZeroShot, check, default_batch_size, groups, input};
use crate::error::EvalError;
use crate::images::{DecodeOptions, Examples, ImageSource};
use crate::metrics::top_k;
use crate::prompts::{PromptOptions, PromptSet, TextEncoder, build_classifier};
use crate::set::{Classes, Labels, SetEntry, SetOptions, check_image};
use crate::vectors::check_finite;

const TOP: usize = 5;

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
    #[serde(default = "default_batch_size")]
    batch_size: Located<usize>,
}

fn class_names() -> Located<Vec<Located<PromptOptions>>> {
    Located::without_span(vec![Located::without_span(PromptOptions::Text("{}".into()))])
}

impl InTrainingEvaluation {
    /// The equivalent stage.
    fn stage(&self) -> ZeroShot {
        let entry =
            |set: &SetOptions| Located::new(SetEntry::Described(Box::new(set.clone())), set.name.span());
        ZeroShot {
            model: Input(Located::without_span("./".into())),
            sets: Located::new(self.sets.iter().map(entry).collect(), self.sets.span()),
            data: None,
            prompts: self.prompts.clone(),
            batch_size: self.batch_size.clone(),
            limits: None,
            device: Located::default(),
            precision: Located::default(),
        }
    }
}

impl Evaluation<Clip> for InTrainingEvaluation {
    fn every(&self) -> u64 {
        *self.every.value()
    }

    fn inputs(&self) -> Vec<Input> {
        self.stage().input_options()
    }

    fn faults(&self, inputs: &[InputTables]) -> Vec<Fault> {
        let mut faults = check::faults(&self.stage(), inputs);
        if *self.every.value() == 0 {
            faults.push(Fault::at(self.every.span(), "`every` is 0").label("expected at least 1"));
        }
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

    fn open(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
        tokenizer: &Path,
    ) -> Result<Box<dyn Evaluator<Clip>>, RunError> {
        let tokenizer = Tokenizer::load(tokenizer).map_err(EvalError::from)?;
        let prepared = self.sets.iter().map(|set| PreparedSet::new(self, cx, inputs, set));
        let sets = prepared.collect::<Result<Vec<_>, _>>()?;
        let task = |(index, set): (u64, &SetOptions)| SetTask {
            split: index,
            options: set.clone(),
            declared: false,
            warnings: Vec::new(),
        };
        let groups = groups((0..).zip(self.sets.iter()).map(task).collect());
        let indices = |group: &Vec<SetTask>| group.iter().map(|task| task.split as usize).collect();
        let groups = groups.iter().map(indices).collect();
        Ok(Box::new(SetEvaluator {
            cx: cx.clone(),
            tokenizer,
            sets,
            groups,
            batch_size: *self.batch_size.value(),
        }))
    }
}

/// A set with its classes and prompts.
struct PreparedSet {
    options: SetOptions,
    input: InputData,
    labels: Labels,
    classes: Classes,
    prompts: Vec<PromptSet>,
}

impl PreparedSet {
    fn new(
        options: &InTrainingEvaluation,
        cx: &RunContext,
        inputs: &[InputData],
        set: &SetOptions,
    ) -> Result<Self, EvalError> {
        let own = input(inputs, &set.input)?;
        let schema = own.dataset.schema(&own.table)?;
        let class_names = set.class_names.as_ref().map(|names| names.as_slice());
        let labels = Labels::new(&schema, set.label.value(), class_names).map_err(set_error(set))?;
        check_image(&schema, set.image_column()).map_err(set_error(set))?;
        let classes = read_classes(cx, set, inputs, own, &labels)?;
        let of_set = set.templates.as_ref().map(|templates| templates.as_slice());
        let prompts = options.prompts.iter().map(|prompts| prompts.resolve(of_set));
        let prompts = prompts.collect::<Result<_, _>>();
        let prompts = prompts.map_err(|(why, hint)| EvalError::set(&set.name, why, hint))?;
        Ok(Self { options: set.clone(), input: own.clone(), labels, classes, prompts })
    }

    fn reader(&self) -> SetReader<'_> {
        SetReader { labels: &self.labels, classes: &self.classes, set: &self.options }
    }
}

/// Evaluates all sets, in one pass per shared input.
struct SetEvaluator {
    cx: RunContext,
    tokenizer: Tokenizer,
    sets: Vec<PreparedSet>,
    groups: Vec<Vec<usize>>,
    batch_size: usize,
}

/// Counts for each set of a pass and each of its prompt sets.
type Counted = Vec<Vec<Variant>>;

impl SetEvaluator {
    fn variants(&self, clip: &Clip, set: &PreparedSet) -> Result<Vec<Variant>, EvalError> {
        let (names, classes, multi_label) =
            (set.classes.all_names(), set.classes.len(), set.labels.is_multi_label());
        // No cache: the weights change with every step.
        let texts = TextEncoder {
            clip,
            tokenizer: &self.tokenizer,
            weights_hash: "",
            batch: self.batch_size,
            cache: None,
        };
        let variant = |prompts: &PromptSet| {
            let classifier = build_classifier(texts, &names, prompts)?;
            Ok(Variant::new(prompts.clone(), classifier, classes, multi_label, 0.0))
        };
        set.prompts.iter().map(variant).collect()
    }

    fn pass(&self, clip: &Clip, group: &[usize]) -> Result<Counted, EvalError> {
        let sets: Vec<&PreparedSet> = group.iter().map(|set| &self.sets[*set]).collect();
        let mut counted = sets.iter().map(|set| self.variants(clip, set)).collect::<Result<Counted, _>>()?;
        let (first, budget) = (sets[0], self.cx.bytes_in_flight);
        let InputData { dataset, table, .. } = &first.input;
        let column = first.options.image_column();
        let is_needed = |name: &str| {
            [column, IGNORED].contains(&name) || sets.iter().any(|set| set.labels.column() == name)
        };
        let schema = dataset.schema(table)?;
        let columns = schema.fields().iter().map(|field| field.name().as_str());
        let columns: Vec<&str> = columns.filter(|name| is_needed(name)).collect();
        let preprocess = Preprocess::clip(clip.config().vision.image_size() as u32);
        let source = ImageSource::Images(column.into());
        let decode =
            DecodeOptions { preprocess: &preprocess, limits: &Limits::default(), budget, with_phash: false };
        for chunk in Examples::new(dataset, table, &columns, self.batch_size, budget / 4) {
            self.cx.check_cancelled()?;
            let batch = chunk?.batch;
            let truths = |set: &&PreparedSet| -> Result<Vec<Option<Truth>>, EvalError> {
                Ok(set.reader().labels(&batch)?.into_iter().map(|row| row.class.ok()).collect())
            };
            let truths = sets.iter().map(truths).collect::<Result<Vec<_>, _>>()?;
            let wanted: Vec<bool> =
                (0..batch.num_rows()).map(|row| truths.iter().any(|set| set[row].is_some())).collect();
            let images = source.images(&batch, &wanted, "", &decode);
            let images = images.map_err(|(why, hint)| EvalError::set(&first.options.name, why, hint))?;
            let (mut pixels, mut known) = (Vec::new(), Vec::new());
            for (row, image) in images.into_iter().enumerate() {
                if let Some(Ok(image)) = image.pixels {
                    pixels.extend(image);
                    known.push(row);
                }
            }
            if known.is_empty() {
                continue;
            }
            let embeddings = source.embed(clip, pixels, known.len())?;
            for (variants, truths) in counted.iter_mut().zip(&truths) {
                for variant in variants {
                    count(variant, clip, &embeddings, known.iter().map(|row| truths[*row].as_ref()))?;
                }
            }
        }
        Ok(counted)
    }

    /// All metrics of a set with one prompt set, the main one first.
    fn measured(&self, set: &PreparedSet, variant: &Variant, step: u64) -> Vec<Measured> {
        let counts = Counts { tally: &variant.tally, scores: variant.scores.as_ref() };
        // The intervals of each step have a separate stream.
        let stream = format!("{step}/{}", set.options.name.value());
        let rows = measure(&self.cx, &stream, &set.options, variant, counts).into_iter();
        rows.map(|row| Measured {
            set: set.options.name.value().clone(),
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
        let mut by_set: Vec<Vec<Measured>> = vec![Vec::new(); self.sets.len()];
        for group in &self.groups {
            for (index, variants) in group.iter().zip(self.pass(clip, group)?) {
                let set = &self.sets[*index];
                for variant in &variants {
                    by_set[*index].extend(self.measured(set, variant, step));
                }
                if by_set[*index].is_empty() {
                    let why = "no row has a readable image and a label";
                    return Err(EvalError::set(&set.options.name, why, None));
                }
            }
        }
        Ok(by_set.concat())
    }
}

/// Counts a batch of images for one prompt set. `embeddings`: `[images, embed]`.
fn count<'a>(
    variant: &mut Variant,
    clip: &Clip,
    embeddings: &Tensor,
    truths: impl Iterator<Item = Option<&'a Truth>>,
) -> Result<(), EvalError> {
    let scores = variant.classifier.scores(clip, embeddings)?.to_vec2::<f32>()?;
    for (scores, truth) in scores.iter().zip(truths) {
        check_finite(scores, || "the embedding of an image".into())?;
        match truth {
            Some(Truth::Single(label)) => variant.count(*label, scores, &top_k(scores, TOP), None),
            Some(Truth::Multi { present, ignored }) => variant.count_multi_label(present, ignored, scores),
            None => {}
        }
    }
    Ok(())
}

impl Evaluator<Clip> for SetEvaluator {
    fn evaluate(&mut self, clip: &Clip, step: u64) -> Result<Vec<Measured>, RunError> {
        Ok(self.evaluate_all(clip, step)?)
    }
}
