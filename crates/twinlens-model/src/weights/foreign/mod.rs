//! Models of other programs, in and out: Hugging Face's CLIPModel folders, open_clip's folders,
//! checkpoints of PyTorch.

mod hugging_face;
mod open_clip;
mod pickle;

use crate::clip::{CONFIG_FILE, Clip};
use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::weights;
use candle_core::Tensor;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What a model's folder holds, whoever wrote it: of each group the first that there is.
pub const FOLDER_FILES: [&[&str]; 3] = [
    &[CONFIG_FILE, open_clip::CONFIG_FILE],
    &[
        hugging_face::WEIGHTS_FILES[0],
        hugging_face::WEIGHTS_FILES[1],
        open_clip::WEIGHTS_FILES[0],
        open_clip::WEIGHTS_FILES[1],
    ],
    &[crate::TOKENIZER_FILE],
];

/// What a safetensors file must say of itself for transformers to read it.
fn metadata() -> Option<HashMap<String, String>> {
    Some([("format".to_owned(), "pt".to_owned())].into())
}

/// A mean and a spread by channel, as every CLIP model takes its pixels.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Kept in checkpoints beside the weights, and of no use here: masks, positions and counters.
const DROPPED: [&str; 7] = [
    "attn_mask",
    "num_batches_tracked",
    "position_ids",
    "logit_scale_init",
    "input_resolution",
    "context_length",
    "vocab_size",
];

impl Clip {
    /// Reads a folder: this program's own, Hugging Face's CLIPModel, or open_clip's.
    ///
    /// # Errors
    /// `Io`, `Config`, `Format` or `Weights`, with the file's name.
    pub fn load(dir: &Path) -> Result<Self> {
        let (config, weights) = Self::describe(dir)?;
        Self::load_weights(&weights, config)
    }

    /// What [`load`](Self::load) would read: the shape, and the file of the weights, which is not
    /// opened.
    ///
    /// # Errors
    /// `Io`, `Config` or `Format`, with the file's name.
    pub fn describe(dir: &Path) -> Result<(ClipConfig, PathBuf)> {
        let ours = dir.join(CONFIG_FILE);
        let theirs = dir.join(open_clip::CONFIG_FILE);
        if !ours.exists() && theirs.exists() {
            return Ok((open_clip::config(&theirs)?, first_of(dir, &open_clip::WEIGHTS_FILES)?));
        }
        let json = read_json(&ours)?;
        if json.contains_key("text_config") || json.contains_key("model_type") {
            let config = hugging_face::config(&json, &ours)?;
            return Ok((config, first_of(dir, &hugging_face::WEIGHTS_FILES)?));
        }
        let config = ClipConfig::deserialize_from(json)
            .map_err(|problem| ModelError::Config(format!("{}: {problem}", ours.display())))?;
        Ok((config, dir.join(crate::WEIGHTS_FILE)))
    }

    /// Reads weights alone: safetensors, or a state dict or checkpoint of PyTorch (`.pt`, `.pth`,
    /// `.bin`), under the names of open_clip (and OpenAI) or Hugging Face.
    ///
    /// # Errors
    /// `Io`, `Config`, `Format` or `Weights`, with the file's name.
    pub fn load_weights(path: &Path, config: ClipConfig) -> Result<Self> {
        config.check()?;
        let pickled = path.extension().is_some_and(|e| ["pt", "pth", "bin"].iter().any(|p| e == *p));
        let found = if pickled { pickle::read(path)? } else { weights::read(path)? };
        let (variables, buffers) = weights::take(under_our_names(found, &config)?, &config, path)?;
        Ok(Self::from_variables(config, variables, buffers))
    }

    /// Writes a folder that Hugging Face's `CLIPModel.from_pretrained` reads.
    ///
    /// # Errors
    /// `Format` where transformers has no such model (ResNets, other objectives than contrastive),
    /// or `Io`.
    pub fn export_hugging_face(&self, dir: &Path) -> Result<()> {
        let config = hugging_face::to_config(self.config(), dir)?;
        write_json(&dir.join(CONFIG_FILE), &config)?;
        write_json(&dir.join("preprocessor_config.json"), &hugging_face::preprocessor(self.config()))?;
        let tensors = hugging_face::to_tensors(self.state())?;
        let path = dir.join(hugging_face::WEIGHTS_FILES[0]);
        weights::write_atomically(&path, &weights::to_bytes(&tensors, metadata())?)
    }

    /// Writes a folder that open_clip reads as `local-dir:FOLDER`.
    ///
    /// # Errors
    /// `Format` where open_clip has no such model (objectives that predict words), or `Io`.
    pub fn export_open_clip(&self, dir: &Path) -> Result<()> {
        let config = open_clip::to_config(self.config(), dir)?;
        write_json(&dir.join(open_clip::CONFIG_FILE), &config)?;
        let tensors = open_clip::to_tensors(self.state())?;
        let path = dir.join(open_clip::WEIGHTS_FILES[0]);
        weights::write_atomically(&path, &weights::to_bytes(&tensors, metadata())?)
    }
}

/// Tensors under open_clip's names, whatever wrapped them: data-parallel training (`module.`), a
/// text tower of its own (`text.`), or Hugging Face.
fn under_our_names(found: HashMap<String, Tensor>, config: &ClipConfig) -> Result<HashMap<String, Tensor>> {
    let inner = |name: String| match name.strip_prefix("module.") {
        Some(inner) => inner.to_owned(),
        None => name,
    };
    let mut tensors: HashMap<String, Tensor> = found.into_iter().map(|(name, t)| (inner(name), t)).collect();
    tensors.retain(|name, _| !DROPPED.iter().any(|end| name.ends_with(end)));
    if tensors.contains_key("vision_model.embeddings.class_embedding") {
        tensors = hugging_face::from_tensors(tensors, config)?;
    } else if tensors.contains_key("text.token_embedding.weight") {
        let outer = |name: String| name.strip_prefix("text.").map(str::to_owned).unwrap_or(name);
        tensors = tensors.into_iter().map(|(name, t)| (outer(name), t)).collect();
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
        problem: format!("it holds none of {}", names.join(", ")),
        instead: "a model in several files has to be put into one first".into(),
    })
}

fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let json = std::fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&json).map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    weights::write_atomically(path, format!("{value:#}\n").as_bytes())
}

/// A JSON table whose every key is asked for, so that none is passed over that means another model.
struct Table<'a> {
    path: &'a Path,
    name: &'static str,
    map: Map<String, Value>,
}

impl<'a> Table<'a> {
    fn wrong(&self, key: &str, problem: &str) -> ModelError {
        let dot = if self.name.is_empty() { "" } else { "." };
        ModelError::Config(format!("{}: {}{dot}{key} {problem}", self.path.display(), self.name))
    }

    /// A table within.
    fn table(&mut self, name: &'static str) -> Result<Table<'a>> {
        match self.map.remove(name) {
            Some(Value::Object(map)) => Ok(Table { path: self.path, name, map }),
            _ => Err(self.wrong(name, "is missing, or no table")),
        }
    }

    /// A whole number, or what it is where it is left out.
    fn number(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        let found = match self.map.remove(key) {
            None | Some(Value::Null) => default,
            Some(value) => value.as_u64().map(|n| n as usize),
        };
        found.ok_or_else(|| self.wrong(key, "is missing, or no whole number"))
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    /// A value that must be what this program computes with; left out, it is.
    fn only(&mut self, key: &str, value: &Value) -> Result<()> {
        let same = |found: &Value| match (found.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
            _ => found == value,
        };
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(()),
            Some(found) if same(&found) => Ok(()),
            Some(found) => Err(self.wrong(key, &format!("is {found}; there is only {value} here"))),
        }
    }

    /// Keys that change nothing that is computed.
    fn pass_over(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| _ = self.map.remove(*key));
    }

    /// Nothing may be left.
    fn end(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => {
                Err(self.wrong(key, &format!("({value}) is of a model that is not built here")))
            }
        }
    }
}

/// The names in the order in which a map of tensors goes into a file.
type Named = BTreeMap<String, Tensor>;
