//! Weights in files: safetensors under open_clip's names, and the formats of other programs.

pub(crate) mod foreign;
mod state;
mod tensors;

pub use crate::files::{directory_of, write_atomically};
pub use crate::variables::Variables;
pub use foreign::{FOLDER_FILES, FolderLayout, PREPROCESSING_FILE};
pub use state::{buffers, shapes};
pub(crate) use state::{fresh, fresh_buffers};
pub use tensors::{hash, read, to_bytes};
