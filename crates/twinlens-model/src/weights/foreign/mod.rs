//! Models of other programs: Hugging Face's CLIPModel folders, open_clip's folders, and PyTorch
//! checkpoints.

mod hugging_face;
mod image_processor;
mod open_clip;
mod pickle;
mod table;

use super::state;
use super::tensors;
use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::files::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, directory_of, write_atomically};
use crate::ops::reference::Tensors;
use crate::variables::Variables;
use candle_core::Tensor;
use serde_json::{Value, from_value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use table::read_json;
use twinlens_image::Preprocess;

pub use image_processor::FILE as PREPROCESSING_FILE;

/// The files of a model directory in one layout: of each group of the first list the first that
/// exists must be there, and those of the second are read too if they exist.
pub type FolderLayout = (&'static [&'static [&'static str]], &'static [&'static str]);

/// The layouts of model directories: a directory has the first whose files it holds. open_clip's is
/// first, since the `config.json` beside it may be that of any other program.
pub const FOLDER_FILES: [FolderLayout; 2] = [
    (&[&[open_clip::CONFIG_FILE], &open_clip::WEIGHTS_FILES, &[TOKENIZER_FILE]], &[]),
    (&[&[CONFIG_FILE], &hugging_face::WEIGHTS_FILES, &[TOKENIZER_FILE]], &image_processor::FILES),
];

/// What checkpoints hold besides weights: masks, positions and counters.
const IGNORED: [&str; 7] = [
    "attn_mask",
    "num_batches_tracked",
    "position_ids",
    "logit_scale_init",
    "input_resolution",
    "context_length",
    "vocab_size",
];

/// What a model directory says about its model.
pub(crate) struct Description {
    pub(crate) config: ClipConfig,
    pub(crate) preprocess: Preprocess,
    /// The file with the weights.
    pub(crate) weights: PathBuf,
}

/// The configuration in a model directory, by the program that wrote it.
enum Configuration {
    OpenClip(ClipConfig, Preprocess),
    HuggingFace(ClipConfig),
    Own(ClipConfig),
}

fn configuration(dir: &Path) -> Result<Configuration> {
    let path = dir.join(open_clip::CONFIG_FILE);
    if path.exists() && (first_of(dir, &open_clip::WEIGHTS_FILES).is_ok() || !dir.join(CONFIG_FILE).exists())
    {
        let (config, preprocess) = open_clip::config(&path)?;
        return Ok(Configuration::OpenClip(config, preprocess));
    }
    let path = dir.join(CONFIG_FILE);
    let json = read_json(&path)?;
    if is_hugging_face(&json) {
        return Ok(Configuration::HuggingFace(hugging_face::config(json, &path)?));
    }
    let config = from_value(Value::Object(json));
    let config = config.map_err(|error| ModelError::Config(format!("{}: {error}", path.display())))?;
    Ok(Configuration::Own(config))
}

/// Reads the configuration in a model directory, which may lack its weights.
pub(crate) fn config(dir: &Path) -> Result<ClipConfig> {
    Ok(match configuration(directory_of(dir))? {
        Configuration::OpenClip(config, _)
        | Configuration::HuggingFace(config)
        | Configuration::Own(config) => config,
    })
}

/// Reads the configuration in a model directory, and finds its weights. A file of weights stands
/// for its directory with these weights.
pub(crate) fn describe(path: &Path) -> Result<Description> {
    let description = describe_dir(directory_of(path))?;
    Ok(if path.is_file() { Description { weights: path.into(), ..description } } else { description })
}

fn describe_dir(dir: &Path) -> Result<Description> {
    let (config, weights, default): (ClipConfig, _, fn(u32) -> Preprocess) = match configuration(dir)? {
        Configuration::OpenClip(config, preprocess) => {
            return Ok(Description {
                config,
                preprocess,
                weights: first_of(dir, &open_clip::WEIGHTS_FILES)?,
            });
        }
        Configuration::HuggingFace(config) => {
            (config, first_of(dir, &hugging_face::WEIGHTS_FILES)?, hugging_face::default_preprocess)
        }
        Configuration::Own(config) => (config, dir.join(WEIGHTS_FILE), Preprocess::clip),
    };
    let size = config.vision.image_size() as u32;
    let preprocess = image_processor::read(dir, size, default(size))?;
    Ok(Description { config, preprocess, weights })
}

fn is_hugging_face(json: &serde_json::Map<String, Value>) -> bool {
    ["text_config", "text_config_dict", "model_type"].iter().any(|key| json.contains_key(*key))
}

/// Writes how images are prepared beside a model.
pub(crate) fn write_preprocess(dir: &Path, preprocess: &Preprocess) -> Result<()> {
    write_json(&dir.join(PREPROCESSING_FILE), &image_processor::to_json(preprocess))
}

/// Reads the variables and buffers of `config` from a weights file.
pub(crate) fn read(path: &Path, config: &ClipConfig) -> Result<(Variables, Variables)> {
    config.check()?;
    let is_pickle = path.extension().is_some_and(|e| ["pt", "pth", "bin"].iter().any(|p| e == *p));
    let tensors = if is_pickle { pickle::read(path)? } else { tensors::read(path)? };
    state::take(rename(tensors, config, path)?, config, path)
}

/// Writes a directory that Hugging Face's `CLIPModel.from_pretrained` reads.
pub(crate) fn export_hugging_face(
    dir: &Path,
    config: &ClipConfig,
    preprocess: &Preprocess,
    state: Tensors,
) -> Result<()> {
    let json = hugging_face::to_config(config, dir)?;
    write_json(&dir.join(CONFIG_FILE), &json)?;
    write_preprocess(dir, preprocess)?;
    write_weights(&dir.join(hugging_face::WEIGHTS_FILES[0]), &hugging_face::to_tensors(state)?)
}

/// Writes a directory that open_clip reads as `local-dir:DIR`; `has_own_tokenizer` says that it
/// will hold one, which open_clip reads instead of CLIP's.
pub(crate) fn export_open_clip(
    dir: &Path,
    config: &ClipConfig,
    preprocess: &Preprocess,
    state: Tensors,
    has_own_tokenizer: bool,
) -> Result<()> {
    let mut json = open_clip::to_config(config, preprocess, dir)?;
    if has_own_tokenizer {
        json["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = open_clip::OWN_TOKENIZER.into();
    }
    write_json(&dir.join(open_clip::CONFIG_FILE), &json)?;
    write_weights(&dir.join(open_clip::WEIGHTS_FILES[0]), &open_clip::to_tensors(state)?)
}

/// Prefixes of names that wrappers of modules add: data-parallel training, compilation, and
/// training frameworks that hold the model as a member. They may be nested.
const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "model."];

/// Removes the prefixes that every name has, and those of modules that were compiled alone.
fn unwrap(tensors: HashMap<String, Tensor>, path: &Path) -> Result<HashMap<String, Tensor>> {
    let count = tensors.len();
    let mut unwrapped: HashMap<String, Tensor> =
        tensors.into_iter().map(|(name, tensor)| (name.replace("._orig_mod.", "."), tensor)).collect();
    while let Some(wrapper) = WRAPPERS
        .iter()
        .find(|wrapper| !unwrapped.is_empty() && unwrapped.keys().all(|name| name.starts_with(**wrapper)))
    {
        unwrapped = unwrapped.into_iter().map(|(name, t)| (name[wrapper.len()..].to_owned(), t)).collect();
    }
    if unwrapped.len() < count {
        let problem = "two of its names differ only by `_orig_mod.`".into();
        return Err(ModelError::Weights { path: path.to_owned(), problem });
    }
    Ok(unwrapped)
}

/// Of a checkpoint of this program's trainings, the model: the average of the weights, if there is
/// one.
fn of_checkpoint(tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    const MODELS: [&str; 2] = ["ema/", "weights/"];
    let Some(model) = MODELS.iter().find(|model| tensors.keys().any(|name| name.starts_with(**model))) else {
        return tensors;
    };
    let named = tensors.into_iter();
    named.filter_map(|(name, tensor)| Some((name.strip_prefix(model)?.to_owned(), tensor))).collect()
}

/// Renames tensors to open_clip's names, whether they come from a wrapped model, a model with a
/// separate text tower (`text.`), or Hugging Face.
fn rename(
    tensors: HashMap<String, Tensor>,
    config: &ClipConfig,
    path: &Path,
) -> Result<HashMap<String, Tensor>> {
    let mut tensors = unwrap(of_checkpoint(tensors), path)?;
    tensors.retain(|name, _| !IGNORED.iter().any(|end| name.ends_with(end)));
    if tensors.contains_key("vision_model.embeddings.class_embedding") {
        tensors = hugging_face::from_tensors(tensors, config)?;
    } else if tensors.contains_key("text.token_embedding.weight") {
        let strip = |name: String| name.strip_prefix("text.").map(str::to_owned).unwrap_or(name);
        tensors = tensors.into_iter().map(|(name, t)| (strip(name), t)).collect();
    }
    for scalar in ["logit_scale", "logit_bias"] {
        if let Some(tensor) = tensors.get_mut(scalar).filter(|t| t.elem_count() == 1) {
            *tensor = tensor.reshape(())?;
        }
    }
    Ok(tensors)
}

fn first_of(dir: &Path, names: &[&str]) -> Result<PathBuf> {
    names.iter().map(|name| dir.join(name)).find(|path| path.exists()).ok_or_else(|| ModelError::Format {
        path: dir.to_owned(),
        problem: format!("none of {} exists", names.join(", ")),
        instead: "weights in several files must be merged into one first".into(),
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomically(path, format!("{value:#}\n").as_bytes())
}

fn write_weights(path: &Path, named: &Tensors) -> Result<()> {
    // transformers reads only safetensors files with this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_atomically(path, &tensors::to_bytes(named, Some(metadata))?)
}
