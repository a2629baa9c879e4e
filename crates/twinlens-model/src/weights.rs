//! Variables by name, in and out of safetensors, under the names that open_clip uses.

use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::init;
use crate::ops::block::PARAMETERS;
use candle_core::{DType, Device, Tensor, Var};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Variables in the order of their names: everything that walks over them does so in the same order on every run.
pub type Variables = BTreeMap<String, Var>;

/// Name and shape of every variable of a model.
pub fn shapes(config: &ClipConfig) -> BTreeMap<String, Vec<usize>> {
    let (v, t) = (&config.vision, &config.text);
    let tokens = (v.image_size / v.patch).pow(2) + 1;
    let mut shapes = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| shapes.insert(name, shape.to_vec());
    add("visual.class_embedding".into(), &[v.width]);
    add("visual.conv1.weight".into(), &[v.width, 3, v.patch, v.patch]);
    add("visual.positional_embedding".into(), &[tokens, v.width]);
    add("visual.proj".into(), &[v.width, config.embed]);
    add("token_embedding.weight".into(), &[t.vocab, t.width]);
    add("positional_embedding".into(), &[t.context, t.width]);
    add("text_projection".into(), &[t.width, config.embed]);
    add("logit_scale".into(), &[]);
    for (norm, width) in [("visual.ln_pre", v.width), ("visual.ln_post", v.width), ("ln_final", t.width)] {
        add(format!("{norm}.weight"), &[width]);
        add(format!("{norm}.bias"), &[width]);
    }
    for (tower, width, layers) in
        [("visual.transformer", v.width, v.layers), ("transformer", t.width, t.layers)]
    {
        for layer in 0..layers {
            for (name, rows, cols) in PARAMETERS {
                let shape = [rows * width, cols * width];
                let shape = if cols == 0 { &shape[..1] } else { &shape[..] };
                add(format!("{tower}.resblocks.{layer}.{name}"), shape);
            }
        }
    }
    shapes
}

/// Fresh variables.
pub fn fresh(config: &ClipConfig, seed: u64) -> Result<Variables> {
    let variable = |(name, shape): (String, Vec<usize>)| {
        let values = init::values(config, &name, &shape, seed);
        Ok((name, Var::from_vec(values, shape, &Device::Cpu)?))
    };
    shapes(config).into_iter().map(variable).collect()
}

/// Reads the variables of `config` from a safetensors file; half precision is widened.
pub fn read(path: &Path, config: &ClipConfig) -> Result<Variables> {
    // Read whole rather than mapped: a mapped file that another process cuts short would be a fault without an error.
    let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
    let problem = |problem: String| ModelError::Weights { path: path.to_owned(), problem };
    let mut found = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| problem(format!("not a safetensors file, or a damaged one ({e})")))?;
    let mut variables = Variables::new();
    let mut problems = Vec::new();
    for (name, shape) in shapes(config) {
        match found.remove(&name) {
            None => problems.push(format!("`{name}` is missing")),
            Some(tensor) if tensor.dims() != shape => {
                problems.push(format!("`{name}` is {:?}, not {shape:?}", tensor.dims()));
            }
            Some(tensor) => {
                let _ = variables.insert(name, Var::from_tensor(&tensor.to_dtype(DType::F32)?)?);
            }
        }
    }
    let mut unknown: Vec<_> = found.into_keys().collect();
    unknown.sort();
    problems.extend(unknown.into_iter().map(|name| format!("`{name}` does not belong to this model")));
    let hidden = problems.len().saturating_sub(5);
    problems.truncate(5);
    match (problems.is_empty(), hidden) {
        (true, _) => Ok(variables),
        (_, 0) => Err(problem(problems.join("; "))),
        _ => Err(problem(format!("{}; and {hidden} more", problems.join("; ")))),
    }
}

/// The bytes of a safetensors file with these tensors: the same tensors give the same bytes.
pub fn to_bytes(
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    safetensors::serialize(tensors, metadata)
        .map_err(|e| ModelError::Tensor(candle_core::Error::msg(format!("safetensors: {e}"))))
}

/// Writes a file so that it is seen whole or not at all, also after a power cut.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part).map_err(ModelError::io(&part))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(ModelError::io(&part))?;
    std::fs::rename(&part, path).map_err(ModelError::io(path))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(ModelError::io(folder))
}

/// SHA-256, in hexadecimal, over names, shapes and little-endian values in the order of names.
pub fn hash(variables: &Variables) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, variable) in variables {
        hasher.update(format!("{name}{:?}", variable.dims()));
        for value in variable.flatten_all()?.to_vec1::<f32>()? {
            hasher.update(value.to_le_bytes());
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
