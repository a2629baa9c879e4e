//! Greedy forward selection of templates on a held-out part of a set.

use candle_core::Tensor;
use sha2::{Digest, Sha256};
use twinlens_image::Limits;
use twinlens_pipeline::{InputData, RunContext};

use super::rows::SetReader;
use crate::error::EvalError;
use crate::images::{DecodeOptions, Examples, ImageSource};
use crate::metrics::top_k;
use crate::model::Model;
use crate::prompts::{Classifier, PromptSet, Selection, Space, TextEncoder, build_classifier};

/// Scores in memory: images x classes x templates.
const MAX_SCORES: usize = 1 << 26;

/// The held-out part of a set, determined by the names of examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    seed: u64,
    share: f64,
}

impl HeldOut {
    /// A share of the examples, drawn by the pipeline's seed, independent of prompts and other
    /// sets.
    pub fn new(cx: &RunContext, set: &str, share: f64) -> Self {
        Self { seed: cx.seed_for(&format!("held out/{set}")), share }
    }

    pub fn contains(&self, example: &str) -> bool {
        let hash = Sha256::digest(format!("{}/{example}", self.seed));
        let number =
            u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        (number as f64) < self.share * 2_f64.powi(64)
    }
}

pub struct SelectionInput<'a> {
    pub cx: &'a RunContext,
    pub model: &'a Model,
    pub data: &'a InputData,
    pub source: &'a ImageSource,
    pub limits: &'a Limits,
    pub batch: usize,
    pub reader: SetReader<'a>,
}

/// The selected templates, in order of selection.
pub fn select(
    input: &SelectionInput<'_>,
    texts: TextEncoder<'_>,
    set: &str,
    classes: &[Vec<String>],
    prompts: &PromptSet,
    options: &Selection,
) -> Result<PromptSet, EvalError> {
    let templates = prompts.templates.len();
    let max_examples = (MAX_SCORES / (templates * classes.len()).max(1)).clamp(1, options.examples);
    let held_out = HeldOut::new(input.cx, set, options.held_out);
    let (embeddings, labels) = held_out_embeddings(input, set, held_out, max_examples)?;
    let each = PromptSet { space: Space::Probability, select: None, ..prompts.clone() };
    let each = build_classifier(texts, classes, &each)?;
    let order = greedy(&each, &embeddings, &labels, classes.len(), options.most)?;
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
    set: &str,
    held_out: HeldOut,
    max_examples: usize,
) -> Result<(Tensor, Vec<usize>), EvalError> {
    let InputData { dataset, table, .. } = input.data;
    let schema = dataset.schema(table)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let budget = input.cx.bytes_in_flight;
    let identity = input.model.identity();
    let decode = DecodeOptions::new(input.model, input.limits, input.cx);
    let (mut parts, mut labels) = (Vec::new(), Vec::new());
    for chunk in Examples::new(dataset, table, &columns, input.batch, budget / 4) {
        input.cx.check_cancelled()?;
        let chunk = chunk?;
        let examples = input.reader.examples(&chunk.batch, chunk.first)?;
        let wanted: Vec<bool> =
            examples.iter().map(|(name, class)| class.is_some() && held_out.contains(name)).collect();
        let images = input.source.images(&chunk.batch, &wanted, &identity, &decode);
        let images = images.map_err(|(why, hint)| EvalError::set(set, why, hint))?;
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
            parts.push(input.source.embed(&input.model.clip, pixels, count)?);
        }
        if labels.len() == max_examples {
            break;
        }
    }
    if parts.is_empty() {
        return Err(EvalError::set(set, "there are no examples to select templates on", None));
    }
    Ok((Tensor::cat(&parts, 0)?, labels))
}

/// Selected templates, each with the number of correct examples after adding it. Stops when no
/// template increases that number. Ties go to the first template.
fn greedy(
    each: &Classifier,
    embeddings: &Tensor,
    labels: &[usize],
    classes: usize,
    max_templates: usize,
) -> Result<Vec<(usize, usize)>, EvalError> {
    let Some((weights, templates)) = each.per_template() else {
        return Err(EvalError::set(
            "prompts",
            "templates can only be selected for a model that embeds texts",
            None,
        ));
    };
    let scores = embeddings.matmul(weights)?.to_vec2::<f32>()?;
    let weights = weights.t()?.contiguous()?.to_vec2::<f32>()?;
    let mut selected: Vec<(usize, usize)> = Vec::new();
    let embed = weights.first().map_or(0, Vec::len);
    // Sums over the selected templates: embeddings of the classes, and scores of the examples.
    let mut sums = vec![vec![0.0_f32; embed]; classes];
    let mut totals = vec![vec![0.0_f32; classes]; labels.len()];
    while selected.len() < max_templates {
        let mut best: Option<(usize, usize)> = None;
        for template in (0..templates).filter(|template| selected.iter().all(|(other, _)| other != template))
        {
            let length = |class: usize| {
                let added = sums[class].iter().zip(&weights[class * templates + template]);
                added.map(|(a, b)| (a + b) * (a + b)).sum::<f32>().sqrt().max(f32::MIN_POSITIVE)
            };
            let lengths: Vec<f32> = (0..classes).map(length).collect();
            let correct = labels.iter().enumerate().filter(|(example, label)| {
                let class = |class: usize| {
                    (totals[*example][class] + scores[*example][class * templates + template])
                        / lengths[class]
                };
                let cosines: Vec<f32> = (0..classes).map(class).collect();
                top_k(&cosines, 1).first() == Some(label)
            });
            let correct = correct.count();
            if best.is_none_or(|(_, most)| correct > most) {
                best = Some((template, correct));
            }
        }
        let gains =
            |(_, correct): &(usize, usize)| selected.last().is_none_or(|(_, before)| correct > before);
        let Some((template, correct)) = best.filter(gains) else { break };
        for class in 0..classes {
            let column = class * templates + template;
            sums[class].iter_mut().zip(&weights[column]).for_each(|(sum, value)| *sum += value);
            totals.iter_mut().zip(&scores).for_each(|(total, scores)| total[class] += scores[column]);
        }
        selected.push((template, correct));
    }
    Ok(selected)
}
