//! Embeddings and classes of texts and images that are in memory, not in a dataset.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;
use twinlens_image::{ImageError, Limits, Preprocess, Rgb};
use twinlens_pipeline::RunError;

use crate::error::EvalError;
use crate::model::Model;
use crate::prompts::{PromptSet, TextEncoder, build_classifier};

/// Images or texts per forward pass.
const BATCH: usize = 64;

/// Numbers by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Row by row.
    pub values: Vec<f32>,
    /// Numbers per row.
    pub width: usize,
}

/// An image.
#[derive(Debug, Clone)]
pub enum ImageInput {
    /// The bytes of a file.
    Encoded(Vec<u8>),
    /// Pixels.
    Rgb(Rgb),
}

impl ImageInput {
    /// The input of the image tower: `[3, size, size]`.
    fn pixels(&self, preprocess: &Preprocess) -> Result<Vec<f32>, ImageError> {
        match self {
            Self::Encoded(bytes) => preprocess.tensor(bytes, &Limits::default()),
            Self::Rgb(rgb) => preprocess.normalize(&preprocess.pixels(rgb)?),
        }
    }
}

/// The input of the image tower: `[images, 3, size, size]`.
///
/// # Errors
/// User error: an image cannot be decoded; it is named by its number.
pub fn pixels(images: &[ImageInput], preprocess: &Preprocess) -> Result<Vec<f32>, RunError> {
    numbered_pixels(images, 0, preprocess)
}

fn numbered_pixels(
    images: &[ImageInput],
    first: usize,
    preprocess: &Preprocess,
) -> Result<Vec<f32>, RunError> {
    let pixels = images.par_iter().enumerate().map(|(number, image)| {
        let number = first + number;
        image.pixels(preprocess).map_err(|error| RunError::user(format!("image {number}: {error}")))
    });
    Ok(pixels.collect::<Result<Vec<_>, _>>()?.concat())
}

/// The embeddings of images: `[images, embed]`.
///
/// # Errors
/// User error: an image cannot be decoded; it is named by its number.
pub fn images(model: &Model, images: &[ImageInput]) -> Result<Matrix, EvalError> {
    matrix(&embed_images(model, images)?)
}

fn embed_images(model: &Model, images: &[ImageInput]) -> Result<Tensor, EvalError> {
    let size = model.preprocess.size as usize;
    let embed = |(batch, images): (usize, &[ImageInput])| {
        let pixels = numbered_pixels(images, batch * BATCH, &model.preprocess)?;
        let pixels = Tensor::from_vec(pixels, (images.len(), 3, size, size), &Device::Cpu)?;
        Ok(model.clip.encode_image(&pixels)?)
    };
    stacked(images.chunks(BATCH).enumerate().map(embed), model)
}

/// The embeddings of texts: `[texts, embed]`.
///
/// # Errors
/// `ModelError::Input` if the model does not embed texts.
pub fn texts(model: &Model, texts: &[String]) -> Result<Matrix, EvalError> {
    let context = model.clip.config().text.context;
    let embed = |texts: &[String]| {
        let ids: Vec<u32> = texts.iter().flat_map(|text| model.tokenizer.encode(text, context)).collect();
        Ok(model.clip.encode_text(&Tensor::from_vec(ids, (texts.len(), context), &Device::Cpu)?)?)
    };
    matrix(&stacked(texts.chunks(BATCH).map(embed), model)?)
}

fn matrix(tensor: &Tensor) -> Result<Matrix, EvalError> {
    Ok(Matrix { values: tensor.flatten_all()?.to_vec1()?, width: tensor.dim(1)? })
}

fn stacked(
    pieces: impl Iterator<Item = Result<Tensor, EvalError>>,
    model: &Model,
) -> Result<Tensor, EvalError> {
    let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
    if pieces.is_empty() {
        return Ok(Tensor::zeros((0, model.clip.config().embed), DType::F32, &Device::Cpu)?);
    }
    Ok(Tensor::cat(&pieces, 0)?)
}

/// Probabilities of classes: `[images, classes]`, with unit sums. Each class has one or several
/// names.
///
/// # Errors
/// Those of [`images`]; a class without a finite embedding.
pub fn zero_shot(
    model: &Model,
    inputs: &[ImageInput],
    classes: &[Vec<String>],
    prompts: &PromptSet,
) -> Result<Matrix, EvalError> {
    let Model { clip, tokenizer, weights_hash, .. } = model;
    let encoder = TextEncoder { clip, tokenizer, weights_hash, batch: BATCH, cache: None };
    let classifier = build_classifier(encoder, classes, prompts)?;
    let embeddings = embed_images(model, inputs)?;
    if inputs.is_empty() {
        return Ok(Matrix { values: Vec::new(), width: classes.len() });
    }
    let scores = classifier.scores(clip, &embeddings)?;
    if classifier.gives_probabilities() {
        return matrix(&scores);
    }
    // A model that scores texts gives log-probabilities; others give cosines.
    let scale = if clip.config().objective.embeds_texts() { clip.logit_scale().exp() } else { 1.0 };
    let logits = (scores * f64::from(scale))?;
    let powers = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    matrix(&powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?)
}
