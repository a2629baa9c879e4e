//! PyTorch files: a zip with a pickle that holds a state dict, or a checkpoint with one under
//! `state_dict`.

use crate::error::{ModelError, Result};
use candle_core::{Tensor, pickle};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The tensors of a state dict.
///
/// # Errors
/// `Io`, or `Format` if there is none: OpenAI publishes TorchScript, which has the same file
/// suffix.
pub(super) fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    if std::fs::metadata(path).map_err(ModelError::io(path))?.len() == 0 {
        return Err(unreadable(path, "the file is empty".into(), "download it again"));
    }
    // candle's reader may panic on a damaged pickle.
    let read = |key| catch_unwind(AssertUnwindSafe(|| pickle::read_all_with_key(path, key)));
    // A checkpoint has other entries too, so look for its state dict first.
    if let Ok(Ok(tensors)) = read(Some("state_dict"))
        && !tensors.is_empty()
    {
        return Ok(tensors.into_iter().collect());
    }
    match read(None) {
        Ok(Ok(tensors)) if !tensors.is_empty() => Ok(tensors.into_iter().collect()),
        Ok(Ok(_)) => Err(unreadable(
            path,
            "it holds no state dict; it may be TorchScript, which OpenAI publishes".into(),
            "use the same weights from Hugging Face or open_clip, or save `torch.jit.load(file).state_dict()`",
        )),
        Ok(Err(error)) => Err(unreadable(path, format!("it cannot be read ({error})"), RESAVE)),
        Err(_) => Err(unreadable(path, "it cannot be read (a damaged pickle)".into(), RESAVE)),
    }
}

const RESAVE: &str = "save the state dict as safetensors, or with PyTorch 1.6 or newer";

fn unreadable(path: &Path, problem: String, instead: &str) -> ModelError {
    ModelError::Format { path: path.to_owned(), problem, instead: instead.into() }
}
