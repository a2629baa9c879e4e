//! Greedy forward selection of templates on a part of a set that its results then leave out.

use candle_core::Tensor;
use sha2::{Digest, Sha256};
use twinlens_image::Limits;
use twinlens_pipeline::{InputData, RunContext};

use super::rows::Rows;
use crate::error::EvalError;
use crate::images::{Examples, ImageSource, Prepare};
use crate::metrics::top_k;
use crate::model::Model;
use crate::prompts::{Classifier, PromptSet, Selection, Space, Texts, classifier};

/// Scores that are held at a time: images x classes x templates.
const SCORES: usize = 1 << 26;

/// The part of a set on which templates are chosen, told by the name of an example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    seed: u64,
    share: f64,
}

impl HeldOut {
    /// A share of the examples, drawn from the pipeline's seed: the same ones whatever the prompts
    /// and the other sets.
    pub fn new(cx: &RunContext, set: &str, share: f64) -> Self {
        Self { seed: cx.seed_for(&format!("held out/{set}")), share }
    }

    /// Whether an example is of that part.
    pub fn holds(&self, example: &str) -> bool {
        let hash = Sha256::digest(format!("{}/{example}", self.seed));
        let number =
            u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        (number as f64) < self.share * 2_f64.powi(64)
    }
}

/// What is needed to look at the examples of a set before its pass.
pub struct Looking<'a> {
    pub cx: &'a RunContext,
    pub model: &'a Model,
    pub input: &'a InputData,
    pub source: &'a ImageSource,
    pub limits: &'a Limits,
    pub batch: usize,
    pub rows: Rows<'a>,
}

/// The templates that are chosen, in the order in which they were.
///
/// # Errors
/// No example to choose on; the model's; those of reading.
pub fn select(
    looking: &Looking<'_>,
    texts: Texts<'_>,
    set: &str,
    classes: &[Vec<String>],
    prompts: &PromptSet,
    options: &Selection,
) -> Result<PromptSet, EvalError> {
    let templates = prompts.templates.len();
    let most = (SCORES / (templates * classes.len()).max(1)).clamp(1, options.examples);
    let held_out = HeldOut::new(looking.cx, set, options.held_out);
    let (embeddings, labels) = gather(looking, set, held_out, most)?;
    let each = PromptSet { space: Space::Probability, select: None, ..prompts.clone() };
    let each = classifier(texts, classes, &each)?;
    let order = greedy(&each, &embeddings, &labels, classes.len(), options.most)?;
    let chosen: Vec<String> =
        order.iter().map(|(template, _)| prompts.templates[*template].clone()).collect();
    let reached = order.last().map_or(0.0, |(_, right)| *right as f64 / labels.len() as f64);
    looking.cx.progress.note(format!(
        "set `{set}`, prompts `{}`: {} of {templates} templates chosen on {} examples that the results leave out ({:.1} % right there)",
        prompts.name,
        chosen.len(),
        labels.len(),
        100.0 * reached
    ));
    Ok(PromptSet { templates: chosen, select: None, ..prompts.clone() })
}

/// The embeddings and classes of the first good examples of the held-out part.
fn gather(
    looking: &Looking<'_>,
    set: &str,
    held_out: HeldOut,
    most: usize,
) -> Result<(Tensor, Vec<usize>), EvalError> {
    let InputData { dataset, table, .. } = looking.input;
    let schema = dataset.schema(table)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let budget = looking.cx.bytes_in_flight;
    let identity = looking.model.identity();
    let prepare = Prepare::new(looking.model, looking.limits, looking.cx);
    let (mut parts, mut labels) = (Vec::new(), Vec::new());
    for chunk in Examples::new(dataset, table, &columns, looking.batch, budget / 4) {
        looking.cx.check_cancelled()?;
        let chunk = chunk?;
        let examples = looking.rows.examples(&chunk.batch, chunk.first)?;
        let wanted: Vec<bool> =
            examples.iter().map(|(name, class)| class.is_some() && held_out.holds(name)).collect();
        let images = looking.source.images(&chunk.batch, &wanted, &identity, &prepare);
        let images = images.map_err(|(why, hint)| EvalError::set(set, why, hint))?;
        let (mut pixels, mut count) = (Vec::new(), 0);
        for (image, (_, class)) in images.into_iter().zip(&examples) {
            if let (Some(Ok(image)), Some(class)) = (image.pixels, class)
                && labels.len() < most
            {
                pixels.extend(image);
                labels.push(*class);
                count += 1;
            }
        }
        if count > 0 {
            parts.push(looking.source.embed(&looking.model.clip, pixels, count)?);
        }
        if labels.len() == most {
            break;
        }
    }
    if parts.is_empty() {
        return Err(EvalError::set(set, "there is no example to select templates on", None));
    }
    Ok((Tensor::cat(&parts, 0)?, labels))
}

/// Chosen templates, each with how many examples are right once it is there. It ends when no
/// template adds a right example. Of equal ones the first comes first.
fn greedy(
    each: &Classifier,
    embeddings: &Tensor,
    labels: &[usize],
    classes: usize,
    most: usize,
) -> Result<Vec<(usize, usize)>, EvalError> {
    // [embed, classes * templates], columns of length 1.
    let Some((weights, templates)) = each.per_template() else {
        return Err(EvalError::set(
            "prompts",
            "a model that embeds no texts has no templates to select",
            None,
        ));
    };
    let scores = embeddings.matmul(weights)?.to_vec2::<f32>()?;
    let weights = weights.t()?.contiguous()?.to_vec2::<f32>()?;
    let mut chosen: Vec<(usize, usize)> = Vec::new();
    let embed = weights.first().map_or(0, Vec::len);
    // Sums over the chosen templates: of the classes' embeddings, and of the examples' scores.
    let mut sums = vec![vec![0.0_f32; embed]; classes];
    let mut held = vec![vec![0.0_f32; classes]; labels.len()];
    while chosen.len() < most {
        let mut best: Option<(usize, usize)> = None;
        for template in (0..templates).filter(|template| chosen.iter().all(|(known, _)| known != template)) {
            let length = |class: usize| {
                let added = sums[class].iter().zip(&weights[class * templates + template]);
                added.map(|(a, b)| (a + b) * (a + b)).sum::<f32>().sqrt().max(f32::MIN_POSITIVE)
            };
            let lengths: Vec<f32> = (0..classes).map(length).collect();
            let right = labels.iter().enumerate().filter(|(example, label)| {
                let class = |class: usize| {
                    (held[*example][class] + scores[*example][class * templates + template]) / lengths[class]
                };
                let cosines: Vec<f32> = (0..classes).map(class).collect();
                top_k(&cosines, 1).first() == Some(label)
            });
            let right = right.count();
            if best.is_none_or(|(_, most)| right > most) {
                best = Some((template, right));
            }
        }
        let gains = |(_, right): &(usize, usize)| chosen.last().is_none_or(|(_, before)| right > before);
        let Some((template, right)) = best.filter(gains) else { break };
        for class in 0..classes {
            let column = class * templates + template;
            sums[class].iter_mut().zip(&weights[column]).for_each(|(sum, value)| *sum += value);
            held.iter_mut().zip(&scores).for_each(|(held, scores)| held[class] += scores[column]);
        }
        chosen.push((template, right));
    }
    Ok(chosen)
}
