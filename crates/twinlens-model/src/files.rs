//! Files of a model directory, and how they are written.

use crate::error::{ModelError, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// File name of the configuration in a model directory.
pub const CONFIG_FILE: &str = "config.json";
/// File name of the weights in a model directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// File name of the tokenizer in a model directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The directory of a model, which may be named by a file of weights in it.
pub fn directory_of(model: &Path) -> &Path {
    if model.is_file() { model.parent().unwrap_or(Path::new("")) } else { model }
}

/// Writes a file atomically: readers see all of it or none, even after a power failure. Until then
/// it has a name by which runs know files that a killed process left.
///
/// # Errors
/// `Io`, with the path.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".unfinished");
    let part = std::path::PathBuf::from(part);
    let mut file = File::create(&part).map_err(ModelError::io(&part))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(ModelError::io(&part))?;
    std::fs::rename(&part, path).map_err(ModelError::io(path))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(ModelError::io(folder))
}
