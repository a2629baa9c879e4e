//! One directory of images per class: the sorted names of the directories are the names of the
//! classes in the data. If they are not words (WordNet ids, the numbers of ImageNet-V2),
//! `classnames.txt` beside them has the names, one per line by label id. The id of a directory is
//! its name if all names are integers, otherwise its position in sorted order.

use std::fs;
use std::path::{Path, PathBuf};

use twinlens_dataset::samples::{is_image, list_images};
use twinlens_image::Limits;

use super::{Example, SetFiles, Take, Truth, bytes_of, io, short};
use crate::error::EvalError;

/// The file that names the classes, by label id.
const NAMES: &str = "classnames.txt";
/// Images per part.
const PART: usize = 1000;

/// The images in the directories of a set.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    names: Vec<String>,
    /// Label id, and the path relative to `root`.
    images: Vec<(usize, PathBuf)>,
}

/// The directories in a directory, sorted by name; includes links, excludes hidden directories.
fn folders(path: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a directory contains directories of images.
pub(super) fn has_classes(path: &Path) -> bool {
    let Ok(names) = folders(path) else { return false };
    names.iter().any(|name| {
        let mut entries = fs::read_dir(path.join(name)).into_iter().flatten().flatten();
        entries.any(|entry| is_image(&entry.path()))
    })
}

impl Folder {
    /// Lists the images.
    pub(super) fn open(root: &Path) -> Result<Self, EvalError> {
        let folders = folders(root).map_err(io(root))?;
        let listed =
            fs::read_to_string(root.join(NAMES)).or_else(|_| fs::read_to_string(root.join("..").join(NAMES)));
        let numbers: Option<Vec<usize>> = folders.iter().map(|name| name.parse().ok()).collect();
        let (names, ids) = match listed {
            Ok(text) => {
                let names: Vec<String> =
                    text.trim_end().lines().map(|line| line.trim().to_string()).collect();
                let ids = numbers.unwrap_or_else(|| (0..folders.len()).collect());
                if ids.iter().any(|id| *id >= names.len()) || (ids.len() > names.len()) {
                    let why = format!("{NAMES} has {} names for {} directories", names.len(), folders.len());
                    return Err(EvalError::set(&short(root), why, None));
                }
                (names, ids)
            }
            Err(_) => (folders.clone(), (0..folders.len()).collect()),
        };
        let mut images = Vec::new();
        for (class, name) in ids.into_iter().zip(&folders) {
            for path in list_images(&root.join(name))? {
                images.push((class, path.strip_prefix(root).unwrap_or(&path).to_path_buf()));
            }
        }
        Ok(Self { root: root.to_path_buf(), names, images })
    }
}

impl SetFiles for Folder {
    fn parts(&self) -> Vec<String> {
        let total = self.images.len();
        let part =
            |start: usize| format!("{} images {start}..{}", short(&self.root), total.min(start + PART));
        (0..total).step_by(PART).map(part).collect()
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.names.clone())
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        for (class, path) in self.images.iter().skip(part * PART).take(PART) {
            let place = path.to_string_lossy().replace('\\', "/");
            let image = bytes_of(&self.root.join(path), limits)?;
            take(Example { path: place.clone(), place, image, truth: Ok(Truth::Id(*class as i64)) })?;
        }
        Ok(())
    }
}
