//! Readers: stream the files of a set, in any supported layout, as [`Example`]s.
//!
//! A damaged example has a reject instead of its image or ground truth, and reading continues. A
//! reader holds one example at a time (for Parquet, a batch within a budget) and lists of names.

mod cifar;
mod csv;
mod example;
mod files;
mod folder;
mod idx;
mod npy;
mod parquet;
mod raw;
mod voc;
mod webdataset;

use std::path::Path;

use super::declaration::Declaration;
use super::layout::Reader;
use crate::error::EvalError;

pub(super) use folder::has_classes;
pub(super) use parquet::{files as parquet_files, task as parquet_task};

pub use example::{Example, MALFORMED, SetFiles, TOO_MANY_BYTES, TRUNCATED, Take, Truth};

/// Whether a split is tar files of CLIP_benchmark.
pub(super) fn has_tar_files(root: &Path, split: &str) -> bool {
    root.join(split).join(webdataset::SHARDS).is_file()
}

/// Opens the data of a set at `root`: in the declared layout if its files exist, otherwise in the
/// detected one (a dataset of a run, tar files of CLIP_benchmark, Parquet files of the Hugging Face
/// Hub, one directory per class).
///
/// # Errors
/// The layout is unknown (the hint says what was expected), or the files cannot be opened.
pub fn open(set: &Declaration, split: &str, root: &Path) -> Result<Box<dyn SetFiles>, EvalError> {
    if root.is_file() {
        let columns = parquet::Columns::of(set);
        return Ok(Box::new(parquet::Tables::open(&[root.to_path_buf()], &columns, &set.name)?));
    }
    if root.join(twinlens_dataset::manifest::FILE).is_file() {
        return Ok(Box::new(parquet::Tables::of_dataset(root, &parquet::Columns::of(set), &set.name)?));
    }
    let at = |path: &str| root.join(path.replace("{split}", split));
    let there = |path: &str| at(path).exists();
    match &set.reader {
        Some(Reader::Folder { path }) if there(path) => {
            return Ok(Box::new(folder::Folder::open(&at(path), false)?));
        }
        Some(Reader::Idx { images, labels }) if there(images) => {
            return Ok(Box::new(idx::Idx { images: at(images), labels: at(labels) }));
        }
        Some(Reader::Planes { files, label_bytes, label, labels, first_label, side, by_column })
            if files.iter().all(|file| there(file)) =>
        {
            return Ok(Box::new(cifar::Planes {
                files: files.iter().map(|file| at(file)).collect(),
                label_bytes: *label_bytes,
                label: *label,
                labels: labels.as_ref().map(|file| at(file)),
                first_label: *first_label,
                side: *side,
                by_column: *by_column,
            }));
        }
        Some(Reader::Csv(options)) if there(&options.file) => {
            return Ok(Box::new(csv::Csv::new(options, split, root)));
        }
        Some(Reader::Voc { path }) if there(path) => {
            return Ok(Box::new(voc::Voc::open(&at(path), split, set)?));
        }
        _ => {}
    }
    // CLIP_benchmark calls the evaluated split `test`, whatever the authors call it.
    let evaluated = (split == set.split).then_some("test");
    let tar_files = |split: &&str| has_tar_files(root, split);
    if let Some(split) = std::iter::once(split).chain(evaluated).find(tar_files) {
        return Ok(Box::new(webdataset::WebDataset::open(root, split)?));
    }
    let files = parquet::files(root, split)?;
    if !files.is_empty() {
        return Ok(Box::new(parquet::Tables::open(&files, &parquet::Columns::of(set), &set.name)?));
    }
    for path in [root.join(split), root.to_path_buf()] {
        if folder::has_classes(&path) {
            return Ok(Box::new(folder::Folder::open(&path, set.undeclared)?));
        }
    }
    let why = format!("no readable files of the split `{split}` in {}", root.display());
    let hint = format!(
        "expected Parquet files, {split}/nshards.txt with tar files, or one directory of images per class. {}",
        set.how_to_get
    );
    Err(EvalError::set(&set.name, why, Some(hint)))
}
