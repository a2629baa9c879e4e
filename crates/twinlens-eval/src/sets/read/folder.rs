//! One directory of images per class: the sorted names of the directories are the names of the
//! classes in the data. If they are not words (WordNet ids, the numbers of ImageNet-V2),
//! `classnames.txt` beside them has the names, one per line by label id. Directories are bound to
//! them by number if their names are integers, by name if the file lists these names, and by
//! position only if there are as many of both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use twinlens_dataset::samples::{UNREAD, Unread, is_image, list_images_and_others};
use twinlens_image::Limits;
use twinlens_pipeline::RunError;

use super::example::{Example, SetFiles, Take, Truth};
use super::files::{bytes_of, io, lines_of, short, slashed};
use crate::error::EvalError;
use crate::images::Reject;
use crate::set::side_by_side;
use crate::trust::normalised;

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
    /// Files that are not read, as rejects.
    others: Vec<Unread>,
    /// Files that are not read, relative to `root`, if they are only told.
    unread: Vec<String>,
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
pub(crate) fn has_classes(path: &Path) -> bool {
    let Ok(names) = folders(path) else { return false };
    names.iter().any(|name| {
        let mut entries = fs::read_dir(path.join(name)).into_iter().flatten().flatten();
        entries.any(|entry| is_image(&entry.path()))
    })
}

/// The label id of each directory, whose names are sorted; `None` if it is not certain.
fn bind(folders: &[String], names: &[String]) -> Option<Vec<usize>> {
    let numbers: Option<Vec<usize>> = folders.iter().map(|name| name.parse().ok()).collect();
    if let Some(numbers) = numbers {
        // Without the first number, they may count from 1.
        let fits = numbers.iter().all(|number| *number < names.len()) && numbers.contains(&0);
        return fits.then_some(numbers);
    }
    let position = |folder: &String| {
        let same = |name: &&String| normalised(name) == normalised(folder);
        let mut found = names.iter().enumerate().filter(|(_, name)| same(name));
        found.next().filter(|_| found.next().is_none()).map(|(id, _)| id)
    };
    let named: Vec<Option<usize>> = folders.iter().map(position).collect();
    if let Some(ids) = named.iter().copied().collect::<Option<Vec<usize>>>() {
        let distinct: BTreeSet<usize> = ids.iter().copied().collect();
        return (distinct.len() == ids.len()).then_some(ids);
    }
    let agrees = named.iter().enumerate().all(|(place, id)| id.is_none_or(|id| id == place));
    (folders.len() == names.len() && agrees).then(|| (0..folders.len()).collect())
}

/// The error that directories cannot be bound, with both lists.
fn unbound(path: &Path, root: &Path, folders: &[String], names: &[String]) -> EvalError {
    let message = format!(
        "{}: {} names for the {} directories of {}, which it does not name:\n{}",
        path.display(),
        names.len(),
        folders.len(),
        root.display(),
        side_by_side(("directory", folders), (&short(path), names))
    );
    let hint = "name the directories as the file does, number them from 0, or list as many names as there are directories";
    RunError::user_with_hint(message, hint).into()
}

impl Folder {
    /// Lists the images and the other files, which are rejects on request.
    pub(super) fn open(root: &Path, with_others: bool) -> Result<Self, EvalError> {
        let folders = folders(root).map_err(io(root))?;
        let listed = match lines_of(&root.join(NAMES))? {
            Some(names) => Some((root.join(NAMES), names)),
            None => {
                let path = root.parent().unwrap_or(root).join(NAMES);
                lines_of(&path)?.map(|names| (path, names))
            }
        };
        let (names, ids) = match listed {
            Some((path, names)) => {
                let ids = bind(&folders, &names).ok_or_else(|| unbound(&path, root, &folders, &names))?;
                (names, ids)
            }
            None => (folders.clone(), (0..folders.len()).collect()),
        };
        let (mut images, mut others) = (Vec::new(), files_without_class(root)?);
        for (class, name) in ids.into_iter().zip(&folders) {
            let (found, unread) = list_images_and_others(&root.join(name))?;
            let relative = |path: &PathBuf| path.strip_prefix(root).unwrap_or(path).to_path_buf();
            images.extend(found.iter().map(|path| (class, relative(path))));
            let below = |other: Unread| Unread { place: format!("{name}/{}", other.place), ..other };
            others.extend(unread.into_iter().map(below));
        }
        let (others, unread) = if with_others {
            (others, Vec::new())
        } else {
            (Vec::new(), others.into_iter().map(|other| other.place).collect())
        };
        Ok(Self { root: root.to_path_buf(), names, images, others, unread })
    }
}

/// The files beside the directories of the classes.
fn files_without_class(root: &Path) -> Result<Vec<Unread>, EvalError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root).map_err(io(root))? {
        let path = entry.map_err(io(root))?.path();
        let place = short(&path);
        if path.is_file() && place != NAMES {
            let is = if is_image(&path) {
                "an image outside the directories of the classes"
            } else {
                "not an image"
            };
            files.push(Unread { place, refusal: (UNREAD, is.into()) });
        }
    }
    files.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(files)
}

impl SetFiles for Folder {
    fn parts(&self) -> Vec<String> {
        let total = self.images.len();
        let part =
            |start: usize| format!("{} images {start}..{}", short(&self.root), total.min(start + PART));
        let others = (!self.others.is_empty()).then(|| format!("{} other files", short(&self.root)));
        (0..total).step_by(PART).map(part).chain(others).collect()
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.names.clone())
    }

    fn unread(&self) -> Vec<String> {
        self.unread.clone()
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        for (class, path) in self.images.iter().skip(part * PART).take(PART) {
            let place = slashed(path);
            let image = bytes_of(&self.root.join(path), limits)?;
            take(Example { path: place.clone(), place, image, truth: Ok(Truth::Id(*class as i64)) })?;
        }
        if part == self.images.len().div_ceil(PART) {
            for Unread { place, refusal: (code, detail) } in self.others.iter().cloned() {
                let refusal = Reject { code, detail };
                let (image, truth) = (Err(refusal.clone()), Err(refusal));
                take(Example { path: place.clone(), place, image, truth })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_bound_by_number_name_or_exact_count() {
        type Case =
            (&'static str, &'static [&'static str], &'static [&'static str], Option<&'static [usize]>);
        let cases: [Case; 13] = [
            ("by number", &["0", "1", "10", "2"], &["a"; 11], Some(&[0, 1, 10, 2])),
            ("some numbers", &["0", "2"], &["a", "b", "c"], Some(&[0, 2])),
            ("numbers from 1", &["1", "2"], &["a", "b", "c"], None),
            ("numbers beyond", &["0", "3"], &["a", "b", "c"], None),
            ("by name", &["blue_whale", "Red Fox"], &["red fox", "grey owl", "blue whale"], Some(&[2, 0])),
            ("by position", &["n001", "n002"], &["red fox", "grey owl"], Some(&[0, 1])),
            ("one is missing", &["n001", "n003"], &["red fox", "grey owl", "blue whale"], None),
            ("one too many", &["n001", "n002", "n003"], &["red fox", "grey owl"], None),
            ("named otherwise", &["n001", "red fox"], &["red fox", "grey owl"], None),
            ("partly named", &["n001", "red fox"], &["grey owl", "red fox"], Some(&[0, 1])),
            ("twice", &["a", "n1", "n2"], &["a", "a", "b"], Some(&[0, 1, 2])),
            ("two of one name", &["a b", "a_b"], &["a b", "c"], None),
            ("an ambiguous name", &["a"], &["a", "a"], None),
        ];
        for (case, folders, names, expected) in cases {
            let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
            let bound = bind(&strings(folders), &strings(names));
            assert_eq!(bound.as_deref(), expected, "{case}");
        }
    }
}
