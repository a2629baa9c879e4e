//! Greedy forward selection of templates on a held-out part of a set.

use candle_core::Tensor;
use twinlens_pipeline::{InputData, RunContext};

use crate::classify::HeldOut;
use crate::error::EvalError;
use crate::images::{Examples, ImageEncoder};
use crate::metrics::top_k;
use crate::prompts::{PromptSet, Selection, Space, TextEncoder, build_classifier};
use crate::set_reader::SetReader;

/// Scores in memory: images x classes x templates.
const MAX_SCORES: usize = 1 << 26;

pub(super) struct SelectionInput<'a> {
    pub cx: &'a RunContext,
    pub data: &'a InputData,
    pub encoder: &'a ImageEncoder<'a>,
    pub batch: usize,
    pub reader: &'a SetReader,
}

/// The selected templates, in order of selection.
pub(super) fn select(
    input: &SelectionInput<'_>,
    texts: TextEncoder<'_>,
    prompts: &PromptSet,
    options: &Selection,
) -> Result<PromptSet, EvalError> {
    let (set, classes, templates) =
        (input.reader.name(), input.reader.classes.len(), prompts.templates.len());
    let max_examples = (MAX_SCORES / (templates * classes).max(1)).clamp(1, options.examples);
    let held_out = HeldOut::new(input.cx, set, options.held_out);
    let (embeddings, labels) = held_out_embeddings(input, held_out, max_examples)?;
    let each = PromptSet { space: Space::Probability, select: None, ..prompts.clone() };
    let each = build_classifier(texts, &input.reader.classes.all_names(), &each)?;
    let Some((weights, _)) = each.per_template() else {
        let why = "templates can only be selected for a model that embeds texts";
        return Err(EvalError::set(set, why, None));
    };
    let order = Candidates::new(weights, &embeddings, labels.clone(), templates)?.select(options.most);
    let selected: Vec<String> =
        order.iter().map(|(template, _)| prompts.templates[*template].clone()).collect();
    let accuracy = order.last().map_or(0.0, |(_, correct)| *correct as f64 / labels.len() as f64);
    input.cx.progress.note(format!(
        "set `{set}`, prompts `{}`: selected {} of {templates} templates on {} held-out examples (accuracy {:.1} %)",
        prompts.name,
        selected.len(),
        labels.len(),
        100.0 * accuracy
    ));
    Ok(PromptSet { templates: selected, select: None, ..prompts.clone() })
}

/// The embeddings and classes of the first usable held-out examples.
fn held_out_embeddings(
    input: &SelectionInput<'_>,
    held_out: HeldOut,
    max_examples: usize,
) -> Result<(Tensor, Vec<usize>), EvalError> {
    let InputData { dataset, table, .. } = input.data;
    let schema = dataset.schema(table)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let (mut parts, mut labels) = (Vec::new(), Vec::new());
    for chunk in Examples::new(dataset, table, &columns, input.batch, input.cx.bytes_in_flight / 4) {
        input.cx.check_cancelled()?;
        let chunk = chunk?;
        let examples = input.reader.examples(&chunk.batch, chunk.first)?;
        let wanted: Vec<bool> =
            examples.iter().map(|(name, class)| class.is_some() && held_out.contains(name)).collect();
        let images = input.encoder.read(&chunk.batch, &wanted, false);
        let images = images.map_err(|(why, hint)| EvalError::set(input.reader.name(), why, hint))?;
        let (mut pixels, mut count) = (Vec::new(), 0);
        for (image, (_, class)) in images.into_iter().zip(&examples) {
            if let (Some(Ok(image)), Some(class)) = (image.pixels, class)
                && labels.len() < max_examples
            {
                pixels.extend(image);
                labels.push(*class);
                count += 1;
            }
        }
        if count > 0 {
            parts.push(input.encoder.embed(pixels, count)?);
        }
        if labels.len() == max_examples {
            break;
        }
    }
    if parts.is_empty() {
        let why = "there are no examples to select templates on";
        return Err(EvalError::set(input.reader.name(), why, None));
    }
    Ok((Tensor::cat(&parts, 0)?, labels))
}

/// The templates to select from. Class embeddings and scores are indexed by
/// `class * templates + template`.
struct Candidates {
    labels: Vec<usize>,
    templates: usize,
    /// `[classes * templates, embed]`.
    weights: Vec<Vec<f32>>,
    /// `[examples, classes * templates]`.
    scores: Vec<Vec<f32>>,
    /// Sums of the class embeddings over the selected templates.
    sums: Vec<Vec<f32>>,
    /// Sums of the scores over the selected templates: `[examples, classes]`.
    totals: Vec<Vec<f32>>,
}

impl Candidates {
    /// `weights`: `[embed, classes * templates]`, unit columns.
    fn new(
        weights: &Tensor,
        embeddings: &Tensor,
        labels: Vec<usize>,
        templates: usize,
    ) -> Result<Self, EvalError> {
        let scores = embeddings.matmul(weights)?.to_vec2::<f32>()?;
        let weights = weights.t()?.contiguous()?.to_vec2::<f32>()?;
        let (embed, classes) = (weights.first().map_or(0, Vec::len), weights.len() / templates.max(1));
        let sums = vec![vec![0.0; embed]; classes];
        let totals = vec![vec![0.0; classes]; labels.len()];
        Ok(Self { labels, templates, weights, scores, sums, totals })
    }

    /// Selected templates, each with the number of correct examples after adding it. Stops when no
    /// template increases that number. Ties go to the first template.
    fn select(mut self, max_templates: usize) -> Vec<(usize, usize)> {
        let mut selected: Vec<(usize, usize)> = Vec::new();
        while selected.len() < max_templates {
            let is_new = |template: &usize| selected.iter().all(|(other, _)| other != template);
            let mut best: Option<(usize, usize)> = None;
            for template in (0..self.templates).filter(is_new) {
                let correct = self.correct_with(template);
                if best.is_none_or(|(_, most)| correct > most) {
                    best = Some((template, correct));
                }
            }
            let gains =
                |(_, correct): &(usize, usize)| selected.last().is_none_or(|(_, before)| correct > before);
            let Some((template, correct)) = best.filter(gains) else { break };
            self.add(template);
            selected.push((template, correct));
        }
        selected
    }

    /// The number of correct examples if `template` were added.
    fn correct_with(&self, template: usize) -> usize {
        let classes = self.sums.len();
        let length = |class: usize| {
            let added = self.sums[class].iter().zip(&self.weights[class * self.templates + template]);
            added.map(|(a, b)| (a + b) * (a + b)).sum::<f32>().sqrt().max(f32::MIN_POSITIVE)
        };
        let lengths: Vec<f32> = (0..classes).map(length).collect();
        let is_correct = |(example, label): &(usize, &usize)| {
            let (totals, scores) = (&self.totals[*example], &self.scores[*example]);
            let cosine =
                |class: usize| (totals[class] + scores[class * self.templates + template]) / lengths[class];
            let cosines: Vec<f32> = (0..classes).map(cosine).collect();
            top_k(&cosines, 1).first() == Some(*label)
        };
        self.labels.iter().enumerate().filter(is_correct).count()
    }

    fn add(&mut self, template: usize) {
        for class in 0..self.sums.len() {
            let column = class * self.templates + template;
            self.sums[class].iter_mut().zip(&self.weights[column]).for_each(|(sum, value)| *sum += value);
            self.totals
                .iter_mut()
                .zip(&self.scores)
                .for_each(|(total, scores)| total[class] += scores[column]);
        }
    }
}
