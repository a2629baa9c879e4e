//! Models: embeddings, classes, and models for other programs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use twinlens_eval::encode;
pub use twinlens_eval::encode::{ImageInput, Matrix};
use twinlens_eval::error::EvalError;
use twinlens_eval::model::Model;
use twinlens_eval::prompts::{PromptOptions, PromptSet, Space, TemplateSet};
use twinlens_image::Preprocess;
pub use twinlens_image::Rgb;
pub use twinlens_model::ForeignFormat;
use twinlens_pipeline::RunError;

use super::error::{Error, catch};

/// A model with its tokenizer and preprocessing.
pub struct Clip {
    model: Model,
}

impl Clip {
    /// Loads a model: the directory of a finished training, of Hugging Face's or open_clip's model,
    /// or a model of the Hub (`hf://openai/clip-vit-base-patch32`).
    ///
    /// # Errors
    /// There is no such model, or it is not supported.
    pub fn load(name: &str) -> Result<Self, Error> {
        catch(|| Ok(Self { model: crate::model::open(name)? }))
    }

    /// Its configuration, preprocessing and hashes, as JSON.
    pub fn description(&self) -> Value {
        let Model { name, clip, weights_hash, preprocess, preprocess_hash, .. } = &self.model;
        let config = clip.config();
        json!({
            "name": name, "embed": config.embed, "image_size": config.vision.image_size(),
            "context": config.text.context, "vocab": self.model.tokenizer.vocab_size(),
            "logit_scale": clip.logit_scale(), "config": config, "weights_hash": weights_hash,
            "preprocess": preprocess.to_string(), "preprocess_hash": preprocess_hash,
        })
    }

    /// The embeddings of images, with unit lengths.
    ///
    /// # Errors
    /// An image cannot be decoded.
    pub fn encode_images(&self, images: &[ImageInput]) -> Result<Matrix, Error> {
        catch(|| encode::images(&self.model, images).map_err(error))
    }

    /// The embeddings of texts, with unit lengths.
    ///
    /// # Errors
    /// The model does not embed texts.
    pub fn encode_texts(&self, texts: &[String]) -> Result<Matrix, Error> {
        catch(|| encode::texts(&self.model, texts).map_err(error))
    }

    /// The probability of each class for each image; templates contain `{}` for the class, or name
    /// a template set.
    ///
    /// # Errors
    /// An image cannot be decoded; a template has no `{}`; there are no classes.
    pub fn zero_shot(
        &self,
        images: &[ImageInput],
        classes: &[String],
        templates: Vec<String>,
    ) -> Result<Matrix, Error> {
        catch(|| {
            if classes.is_empty() {
                return Err(Error::user("there are no classes"));
            }
            let classes: Vec<Vec<String>> = classes.iter().map(|class| vec![class.clone()]).collect();
            let prompts = prompts(templates)?;
            encode::zero_shot(&self.model, images, &classes, &prompts).map_err(error)
        })
    }

    /// Writes the model for another program into a new directory.
    ///
    /// # Errors
    /// The directory exists; the program has no such model.
    pub fn save(&self, dir: &Path, to: ForeignFormat) -> Result<(), Error> {
        catch(|| Ok(crate::model::write(&self.model, dir, to)?))
    }
}

/// Images as CLIP's image tower sees them: `[images, 3 * size * size]`, with CLIP's mean and
/// standard deviation of the channels, or others.
///
/// # Errors
/// An image cannot be decoded; it is named by its number.
pub fn pixels(
    images: &[ImageInput],
    size: u32,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
) -> Result<Matrix, Error> {
    catch(|| {
        let clip = Preprocess::clip(size);
        let (mean, std) = (mean.unwrap_or(clip.mean), std.unwrap_or(clip.std));
        // On threads of its own: a process that is forked has none of the global pool's.
        let pool = rayon::ThreadPoolBuilder::new().build().map_err(Error::internal)?;
        let preprocess = Preprocess { mean, std, ..clip };
        let values = pool.install(|| encode::pixels(images, &preprocess))?;
        Ok(Matrix { values, width: 3 * (size as usize).pow(2) })
    })
}

/// Reads image files.
///
/// # Errors
/// A file cannot be read.
pub fn read_image(path: &PathBuf) -> Result<ImageInput, Error> {
    let bytes = std::fs::read(path).map_err(|error| Error::user(format!("{}: {error}", path.display())))?;
    Ok(ImageInput::Encoded(bytes))
}

fn prompts(templates: Vec<String>) -> Result<PromptSet, Error> {
    let (name, space, select) = ("templates".into(), Space::default(), None);
    let options = PromptOptions::Own(TemplateSet { name, templates, space, select });
    options.resolve(None).map_err(|(message, hint)| Error { hint, ..Error::user(message) })
}

fn error(error: EvalError) -> Error {
    RunError::from(error).into()
}
