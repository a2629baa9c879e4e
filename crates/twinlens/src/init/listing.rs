//! The files of a directory, by their extensions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use twinlens_dataset::samples::{RUN_DIRECTORY, Unread, list_images_and_others};

use crate::errors::Failure;

/// Names of metadata that belong to the images beside them.
const METADATA: [&str; 3] = ["metadata.csv", "metadata.jsonl", "metadata.parquet"];

/// The files of a directory.
pub(super) struct Listing {
    pub root: PathBuf,
    pub images: Vec<PathBuf>,
    /// The other files, relative to `root`.
    pub others: Vec<String>,
    /// Run directories, relative to `root`, whose files are not listed.
    pub runs: Vec<String>,
}

impl Listing {
    pub(super) fn open(root: &Path) -> Result<Self, Failure> {
        let (images, others) = list_images_and_others(root)?;
        let name = |other: &Unread| other.place.trim_start_matches('/').to_string();
        let is_visible = |name: &String| !name.split('/').any(|part| part.starts_with('.'));
        let (runs, others): (Vec<_>, Vec<_>) =
            others.iter().partition(|other| other.refusal.1 == RUN_DIRECTORY);
        let names = |of: Vec<&Unread>| of.into_iter().map(name).filter(is_visible).collect();
        Ok(Self { root: root.into(), images, others: names(others), runs: names(runs) })
    }

    /// The other files whose extension (below that of a compression) is one of these.
    pub(super) fn with_extension<'a>(&'a self, wanted: &'a [&str]) -> impl Iterator<Item = &'a String> {
        self.others.iter().filter(|name| wanted.contains(&extension(name).as_str()))
    }

    pub(super) fn has_metadata(&self) -> bool {
        self.others.iter().any(|name| is_metadata(name))
    }

    /// `120 .jpg, 3 .csv`.
    pub(super) fn in_words(&self) -> String {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let images = self.images.iter().map(|path| path.to_string_lossy().into_owned());
        for name in images.chain(self.others.iter().cloned()) {
            *counts.entry(extension(&name)).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let shown = counts.iter().take(6).map(|(extension, count)| format!("{count} .{extension}"));
        if counts.is_empty() { "no files".into() } else { shown.collect::<Vec<_>>().join(", ") }
    }

    /// What is said of the run directories, if there are any.
    pub(super) fn note_on_runs(&self) -> Option<String> {
        let first = self.runs.first()?;
        Some(match self.runs.len() {
            1 => format!("not read: the run directory {first}"),
            more => format!("not read: {more} run directories, such as {first}"),
        })
    }
}

pub(super) fn is_metadata(name: &str) -> bool {
    METADATA.contains(&name.rsplit('/').next().unwrap_or_default())
}

/// The extension in lower case, without that of a compression.
pub(super) fn extension(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let name = [".gz", ".zst", ".bz2"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    name.rsplit_once('.').map(|(_, extension)| extension.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_found_below_compression() {
        let cases = [("a/b.CSV.gz", "csv"), ("b.tar", "tar"), ("README", ""), ("x/metadata.jsonl", "jsonl")];
        for (name, expected) in cases {
            assert_eq!(extension(name), expected, "{name}");
        }
        assert!(is_metadata("train/metadata.csv") && !is_metadata("my-metadata.csv"));
    }
}
