//! Models of other programs: Hugging Face's CLIPModel folders, open_clip's folders, and PyTorch
//! checkpoints.

mod hugging_face;
mod open_clip;
mod pickle;
mod table;

use super::state;
use super::tensors;
use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::files::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, write_atomically};
use crate::ops::reference::Tensors;
use crate::variables::Variables;
use candle_core::Tensor;
use serde_json::{Value, from_value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use table::read_json;

/// The files of a model directory of any program: the first existing one of each group.
pub const FOLDER_FILES: [&[&str]; 3] = [
    &[CONFIG_FILE, open_clip::CONFIG_FILE],
    &[
        hugging_face::WEIGHTS_FILES[0],
        hugging_face::WEIGHTS_FILES[1],
        open_clip::WEIGHTS_FILES[0],
        open_clip::WEIGHTS_FILES[1],
    ],
    &[TOKENIZER_FILE],
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

/// Reads the configuration in a model directory; returns it and the path of the weights.
pub(crate) fn describe(dir: &Path) -> Result<(ClipConfig, PathBuf)> {
    let path = dir.join(CONFIG_FILE);
    let open_clip_path = dir.join(open_clip::CONFIG_FILE);
    if !path.exists() && open_clip_path.exists() {
        return Ok((open_clip::config(&open_clip_path)?, first_of(dir, &open_clip::WEIGHTS_FILES)?));
    }
    let json = read_json(&path)?;
    if json.contains_key("text_config") || json.contains_key("model_type") {
        let config = hugging_face::config(json, &path)?;
        return Ok((config, first_of(dir, &hugging_face::WEIGHTS_FILES)?));
    }
    let config = from_value(Value::Object(json))
        .map_err(|error| ModelError::Config(format!("{}: {error}", path.display())))?;
    Ok((config, dir.join(WEIGHTS_FILE)))
}

/// Reads the variables and buffers of `config` from a weights file.
pub(crate) fn read(path: &Path, config: &ClipConfig) -> Result<(Variables, Variables)> {
    config.check()?;
    let is_pickle = path.extension().is_some_and(|e| ["pt", "pth", "bin"].iter().any(|p| e == *p));
    let tensors = if is_pickle { pickle::read(path)? } else { tensors::read(path)? };
    state::take(rename(tensors, config)?, config, path)
}

/// Writes a directory that Hugging Face's `CLIPModel.from_pretrained` reads.
pub(crate) fn export_hugging_face(dir: &Path, config: &ClipConfig, state: Tensors) -> Result<()> {
    let json = hugging_face::to_config(config, dir)?;
    write_json(&dir.join(CONFIG_FILE), &json)?;
    write_json(&dir.join("preprocessor_config.json"), &hugging_face::preprocessor(config))?;
    write_weights(&dir.join(hugging_face::WEIGHTS_FILES[0]), &hugging_face::to_tensors(state)?)
}

/// Writes a directory that open_clip reads as `local-dir:DIR`.
pub(crate) fn export_open_clip(dir: &Path, config: &ClipConfig, state: Tensors) -> Result<()> {
    write_json(&dir.join(open_clip::CONFIG_FILE), &open_clip::to_config(config, dir)?)?;
    write_weights(&dir.join(open_clip::WEIGHTS_FILES[0]), &open_clip::to_tensors(state)?)
}

/// Renames tensors to open_clip's names, whether they come from data-parallel training (`module.`),
/// a model with a separate text tower (`text.`), or Hugging Face.
fn rename(tensors: HashMap<String, Tensor>, config: &ClipConfig) -> Result<HashMap<String, Tensor>> {
    let strip = |name: String, prefix: &str| name.strip_prefix(prefix).map(str::to_owned).unwrap_or(name);
    let mut tensors: HashMap<String, Tensor> =
        tensors.into_iter().map(|(name, t)| (strip(name, "module."), t)).collect();
    tensors.retain(|name, _| !IGNORED.iter().any(|end| name.ends_with(end)));
    if tensors.contains_key("vision_model.embeddings.class_embedding") {
        tensors = hugging_face::from_tensors(tensors, config)?;
    } else if tensors.contains_key("text.token_embedding.weight") {
        tensors = tensors.into_iter().map(|(name, t)| (strip(name, "text."), t)).collect();
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
