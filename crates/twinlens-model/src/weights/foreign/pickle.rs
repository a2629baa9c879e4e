//! PyTorch's own files: a zip with a pickle, which holds a state dict, or a checkpoint with one
//! under `state_dict`.

use crate::error::{ModelError, Result};
use candle_core::{Tensor, pickle};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The tensors of a state dict.
///
/// # Errors
/// `Io`, or `Format` when there is none: OpenAI publishes TorchScript, which looks the same from
/// outside.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    if std::fs::metadata(path).map_err(ModelError::io(path))?.len() == 0 {
        return Err(wrong(path, "the file is empty".into(), "download it again"));
    }
    // candle's reader indexes into what it read: a damaged pickle may panic there.
    let read = |key| catch_unwind(AssertUnwindSafe(|| pickle::read_all_with_key(path, key)));
    // A checkpoint has other entries beside its state dict: look for that first.
    if let Ok(Ok(found)) = read(Some("state_dict"))
        && !found.is_empty()
    {
        return Ok(found.into_iter().collect());
    }
    match read(None) {
        Ok(Ok(found)) if !found.is_empty() => Ok(found.into_iter().collect()),
        Ok(Ok(_)) => Err(wrong(
            path,
            "it holds no state dict: TorchScript, as OpenAI publishes its models, or something else".into(),
            "use the same weights from Hugging Face or open_clip, or save `torch.jit.load(file).state_dict()`",
        )),
        Ok(Err(error)) => Err(wrong(path, format!("it cannot be read ({error})"), RESAVE)),
        Err(_) => Err(wrong(path, "it cannot be read (a damaged pickle)".into(), RESAVE)),
    }
}

const RESAVE: &str = "save the state dict as safetensors, or with PyTorch 1.6 or newer";

fn wrong(path: &Path, problem: String, instead: &str) -> ModelError {
    ModelError::Format { path: path.to_owned(), problem, instead: instead.into() }
}
