//! Samples: images with their captions, metadata and labels, from tar files (WebDataset) and
//! directories, by one rule: files with the same name up to the last dot form a sample, and what a
//! file is follows from its extension alone ([`Role`]).

mod folder;
mod group;
mod metadata;
mod tar;

pub use self::folder::{FolderEntry, FolderSamples, RUN_DIRECTORY, is_run_directory, list_images_and_others};
pub use self::group::{
    Entry, Part, Refusal, Role, Sample, Span, TOO_MANY_BYTES, UNREAD, Unread, is_image, read_part,
};
pub use self::tar::{Index, TarSamples};
pub use crate::tar::{DAMAGED, TRUNCATED};
