//! Reads, writes and hashes variables as safetensors.

use crate::error::{ModelError, Result};
use candle_core::{DType, Device, Storage, Tensor, Var};
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest header of a safetensors file, in bytes: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

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
    if header > (length - 8).min(MAX_HEADER) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_not_read_because_it_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for (header, length) in [(150_000_000u64, 200_000_000), (u64::MAX, 100)] {
            std::fs::write(&path, header.to_le_bytes()).unwrap();
            // The rest is a hole: it takes no space on the disk.
            File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("a header of {header} bytes in a file of {length}")), "{error}");
        }
    }
}
