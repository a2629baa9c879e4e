//! Special tokens, and errors of tokenizers.

use crate::error::ModelError;

pub const START: &str = "<|startoftext|>";
pub const END: &str = "<|endoftext|>";

pub fn tokenizer_error(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}
