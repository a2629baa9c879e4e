//! Reads and writes variables as safetensors, under open_clip's names.

mod foreign;

pub use foreign::FOLDER_FILES;

use crate::config::{ClipConfig, ResNetConfig, TextConfig, VisionConfig, VitConfig};
use crate::error::{ModelError, Result};
use crate::init;
use crate::objective::Objective;
use crate::ops::block::PARAMETERS;
use crate::towers::resnet::Convolution;
use candle_core::{DType, Device, Storage, Tensor, Var};
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Variables ordered by name, so that iteration has the same order in every run.
pub type Variables = BTreeMap<String, Var>;

/// Name and shape of every variable of a model.
pub fn shapes(config: &ClipConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = Shapes(BTreeMap::new());
    match &config.vision {
        VisionConfig::Vit(v) => shapes.vit(v, config.embed),
        VisionConfig::ResNet(r) => shapes.resnet(r, config.embed),
    }
    let (embed, t) = (config.embed, &config.text);
    match config.objective {
        Objective::Contrastive | Objective::Sigmoid => {
            shapes.text(t);
            shapes.add("text_projection", &[t.width, embed]);
            shapes.add("logit_scale", &[]);
            if config.objective == Objective::Sigmoid {
                shapes.add("logit_bias", &[]);
            }
        }
        Objective::BagOfWords => {
            shapes.add("words.weight", &[t.vocab, embed]);
            shapes.add("words.bias", &[t.vocab]);
        }
        Objective::Caption => {
            shapes.text(t);
            shapes.add("caption.image_projection", &[embed, t.width]);
        }
    }
    shapes.0
}

struct Shapes(BTreeMap<String, Vec<usize>>);

impl Shapes {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.insert(name.into(), shape.to_vec());
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }

    fn blocks(&mut self, tower: &str, width: usize, layers: usize) {
        for layer in 0..layers {
            for (name, rows, cols) in PARAMETERS {
                let shape = [rows * width, cols * width];
                let shape = if cols == 0 { &shape[..1] } else { &shape[..] };
                self.add(format!("{tower}.resblocks.{layer}.{name}"), shape);
            }
        }
    }

    fn vit(&mut self, v: &VitConfig, embed: usize) {
        let tokens = (v.image_size / v.patch).pow(2) + 1;
        self.add("visual.class_embedding", &[v.width]);
        self.add("visual.conv1.weight", &[v.width, 3, v.patch, v.patch]);
        self.add("visual.positional_embedding", &[tokens, v.width]);
        self.add("visual.proj", &[v.width, embed]);
        self.norm("visual.ln_pre", v.width);
        self.norm("visual.ln_post", v.width);
        self.blocks("visual.transformer", v.width, v.layers);
    }

    fn resnet(&mut self, r: &ResNetConfig, embed: usize) {
        for c in r.convolutions() {
            self.add(format!("{}.weight", c.name), &[c.output, c.input, c.kernel, c.kernel]);
            self.norm(&c.norm, c.output);
        }
        let width = r.features();
        self.add("visual.attnpool.positional_embedding", &[r.grid().pow(2) + 1, width]);
        for (name, out) in [("q_proj", width), ("k_proj", width), ("v_proj", width), ("c_proj", embed)] {
            self.add(format!("visual.attnpool.{name}.weight"), &[out, width]);
            self.add(format!("visual.attnpool.{name}.bias"), &[out]);
        }
    }

    fn text(&mut self, t: &TextConfig) {
        self.add("token_embedding.weight", &[t.vocab, t.width]);
        self.add("positional_embedding", &[t.context, t.width]);
        self.norm("ln_final", t.width);
        self.blocks("transformer", t.width, t.layers);
    }
}

/// Name and length of every buffer of a model: the running statistics of its batch norms. They are
/// not trained, and are saved with the weights.
pub fn buffers(config: &ClipConfig) -> BTreeMap<String, usize> {
    let VisionConfig::ResNet(r) = &config.vision else { return BTreeMap::new() };
    let both = |c: Convolution| {
        ["running_mean", "running_var"].map(move |part| (format!("{}.{part}", c.norm), c.output))
    };
    r.convolutions().into_iter().flat_map(both).collect()
}

/// Fresh variables.
pub fn fresh(config: &ClipConfig, seed: u64) -> Result<Variables> {
    let variable = |(name, shape): (String, Vec<usize>)| {
        let values = init::values(config, &name, &shape, seed);
        Ok((name, Var::from_vec(values, shape, &Device::Cpu)?))
    };
    shapes(config).into_iter().map(variable).collect()
}

/// Fresh buffers: mean 0, variance 1.
pub fn fresh_buffers(config: &ClipConfig) -> Result<Variables> {
    let buffer = |(name, len): (String, usize)| {
        let value = if name.ends_with("running_var") { 1f32 } else { 0.0 };
        Ok((name, Var::from_vec(vec![value; len], len, &Device::Cpu)?))
    };
    buffers(config).into_iter().map(buffer).collect()
}

/// Variables and buffers of `config` out of tensors by name, which came from `path`; half precision
/// is widened.
///
/// # Errors
/// `Weights`, with the names that are missing, unknown, or of another shape.
pub fn take(
    mut found: HashMap<String, Tensor>,
    config: &ClipConfig,
    path: &Path,
) -> Result<(Variables, Variables)> {
    let mut problems = Vec::new();
    let mut take = |name: String, shape: &[usize]| -> Result<Option<(String, Var)>> {
        match found.remove(&name) {
            None => problems.push(format!("`{name}` is missing")),
            Some(tensor) if tensor.dims() != shape => {
                problems.push(format!("`{name}` is {:?}, not {shape:?}", tensor.dims()));
            }
            Some(tensor) => {
                return Ok(Some((name, Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?)));
            }
        }
        Ok(None)
    };
    let (mut variables, mut running) = (Variables::new(), Variables::new());
    for (name, shape) in shapes(config) {
        variables.extend(take(name, &shape)?);
    }
    for (name, len) in buffers(config) {
        running.extend(take(name, &[len])?);
    }
    let mut unknown: Vec<_> = found.into_keys().collect();
    unknown.sort();
    problems.extend(unknown.into_iter().map(|name| format!("`{name}` does not belong to this model")));
    let hidden = problems.len().saturating_sub(5);
    problems.truncate(5);
    let problem = match (problems.is_empty(), hidden) {
        (true, _) => return Ok((variables, running)),
        (_, 0) => problems.join("; "),
        _ => format!("{}; and {hidden} more", problems.join("; ")),
    };
    Err(ModelError::Weights { path: path.to_owned(), problem })
}

/// Reads the tensors of a safetensors file.
///
/// # Errors
/// `Io` or `Weights`, with the file's name.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let damaged = |cause: &dyn Display| ModelError::Weights {
        path: path.to_owned(),
        problem: format!("not a safetensors file, or damaged ({cause})"),
    };
    // Tensor by tensor: reading the whole file first would take twice the memory. Not mapped: if
    // another process truncates a mapped file, access faults instead of returning an error.
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    let length = file.metadata().map_err(ModelError::io(path))?.len();
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).map_err(|error| damaged(&error))?;
    let header = bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    if header > length - 8 {
        return Err(damaged(&format!("a header of {header} bytes in a file of {length}")));
    }
    bytes.resize(header as usize, 0);
    file.read_exact(&mut bytes).map_err(|error| damaged(&error))?;
    // Tensors follow the header without gaps, each as long as its shape says.
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
    if metadata.data_len() as u64 != length - 8 - header {
        return Err(damaged(&format!("{} bytes of tensors in a file of {length}", metadata.data_len())));
    }
    let mut tensors = HashMap::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        file.read_exact(&mut bytes).map_err(ModelError::io(path))?;
        let dtype = DType::try_from(info.dtype).map_err(|error| damaged(&error))?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu);
        tensors.insert(name, tensor.map_err(|error| damaged(&error))?);
    }
    Ok(tensors)
}

/// Serialises tensors as a safetensors file. The same tensors give the same bytes.
pub fn to_bytes(
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    safetensors::serialize(tensors, metadata)
        .map_err(|e| ModelError::Tensor(candle_core::Error::msg(format!("safetensors: {e}"))))
}

/// Writes a file atomically: readers see all of it or none, even after a power failure.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part).map_err(ModelError::io(&part))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(ModelError::io(&part))?;
    std::fs::rename(&part, path).map_err(ModelError::io(path))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(ModelError::io(folder))
}

/// Hashes little-endian values in blocks, which is much faster than one call for each value.
fn update(hasher: &mut Sha256, values: &[f32]) {
    let mut bytes = Vec::with_capacity(4 * 4096);
    for values in values.chunks(4096) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
}

/// SHA-256, in hexadecimal, of names, shapes and little-endian values in the given order.
pub fn hash<'a>(variables: impl IntoIterator<Item = (&'a String, &'a Var)>) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, variable) in variables {
        hasher.update(format!("{name}{:?}", variable.dims()));
        let flat = variable.flatten_all()?;
        let (storage, layout) = flat.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(values), Some((from, to))) => update(&mut hasher, &values.as_slice()?[from..to]),
            _ => update(&mut hasher, &flat.to_vec1::<f32>()?),
        }
    }
    Ok(hex::encode(hasher.finalize()))
}
