//! The commit protocol: what a list of manifest entries means. No I/O.
//!
//! A manifest is one [`Begin`], one [`Commit`] per split in any order, then one `Complete`. A split
//! is committed once. After `Complete`, [`Entry::Retry`] replaces a split whose rejects were
//! retried, and [`Entry::Damaged`] takes back splits whose files were damaged: the dataset is
//! incomplete again.

use std::collections::BTreeMap;

use arrow::datatypes::{Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::error::DatasetError;
use crate::storage::BlockSums;
use crate::storage::local::Digest;

/// The main table of a dataset: its folder, and its name in manifests.
pub const MAIN: &str = "data";
/// The ledger of rejects: its folder, and its name in manifests.
pub const REJECTS: &str = "rejects";
/// The folder of a stage's own state (checkpoints) in a dataset. It survives a kill and is deleted
/// with the dataset.
pub const WORK: &str = "work";
/// A file in a dataset that says how long it took to make, in seconds. It is not part of the
/// dataset: two runs that make the same dataset take different times.
pub const TOOK: &str = ".took";
/// The version of the manifest's format.
pub const FORMAT: u32 = 1;

/// The first entry: what the dataset is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Version of the format.
    pub format: u32,
    /// Index of the stage in its pipeline: the datasets of a run are listed in this order.
    #[serde(default)]
    pub position: u64,
    /// The stage's name.
    pub stage: String,
    /// The stage's kind.
    pub kind: String,
    /// Hash of the recipe.
    pub fingerprint: String,
    /// What the dataset was made from: configuration, logic version, seed, fingerprints of the
    /// inputs. `plan` compares it to say what changed, and a reader can trace every number.
    #[serde(default)]
    pub recipe: serde_json::Value,
    /// The stages that are fused into the plan of this dataset, first to last, and their output
    /// schemas.
    #[serde(default)]
    pub fused: Vec<(String, Schema)>,
    /// The variant of a swept stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<Variant>,
    /// The dataset's tables by name, with their schemas.
    pub tables: BTreeMap<String, SchemaRef>,
}

impl Begin {
    /// The name of the stage in the pipeline file.
    pub fn family(&self) -> &str {
        self.variant.as_ref().map_or(&self.stage, |variant| &variant.of)
    }
}

/// A variant of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The stage's name in the pipeline file.
    pub of: String,
    /// The swept options that it depends on, upstream first, and their values.
    pub settings: Vec<Setting>,
}

/// The value of a swept option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The swept stage, by its name in the pipeline file.
    pub stage: String,
    /// The option.
    pub option: String,
    /// The value in this variant.
    pub value: serde_json::Value,
}

impl Setting {
    /// Whether both belong to the same option of the same stage.
    pub fn same_axis(&self, other: &Setting) -> bool {
        (&self.stage, &self.option) == (&other.stage, &other.option)
    }
}

impl Variant {
    /// The value of a swept option.
    pub(crate) fn value(&self, axis: &Setting) -> Option<&serde_json::Value> {
        self.settings.iter().find(|setting| setting.same_axis(axis)).map(|setting| &setting.value)
    }
}

/// One file of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The table; `None` for an artifact.
    pub table: Option<String>,
    /// Relative to the dataset's folder.
    pub path: String,
    /// Rows (0 for an artifact).
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Hash of the content, hexadecimal.
    pub sha256: String,
    /// Checksums of its blocks, by which readers verify what they read. Empty in a manifest from
    /// before there were any, and for a file that no manifest records.
    #[serde(default, skip_serializing_if = "BlockSums::is_empty")]
    pub crc32: BlockSums,
}

impl FileEntry {
    /// The entry of a file that has just been written.
    pub(crate) fn new(table: Option<String>, path: String, rows: u64, digest: Digest) -> Self {
        let Digest { bytes, sha256, crc32 } = digest;
        Self { table, path, rows, bytes, sha256, crc32 }
    }
}

/// One committed split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Index of the split.
    pub split: u64,
    /// A description for people.
    pub label: String,
    /// Input rows, if the stage counts them.
    pub rows_in: Option<u64>,
    /// Its files, in order.
    pub files: Vec<FileEntry>,
    /// Rejected rows by stage and code.
    pub rejects: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Commit {
    /// Rows of a table in this split.
    pub fn rows(&self, table: &str) -> u64 {
        self.files.iter().filter(|file| file.table.as_deref() == Some(table)).map(|file| file.rows).sum()
    }

    /// Rejected rows over all stages and codes.
    pub fn rejected(&self) -> u64 {
        self.rejects.values().flat_map(BTreeMap::values).sum()
    }
}

/// One line of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// What the dataset is.
    Begin(Begin),
    /// A split is committed.
    Commit(Commit),
    /// Every split is committed.
    Complete {
        /// Number of splits.
        splits: u64,
    },
    /// Rejects of a split were retried: replaces its commit.
    Retry(Commit),
    /// The files of these splits were damaged: they are not committed any more.
    Damaged {
        /// Their indices.
        splits: Vec<u64>,
    },
}

/// Row counts of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageRows<'a> {
    /// The stage.
    pub stage: &'a str,
    /// Input rows; `None` if not counted.
    pub rows_in: Option<u64>,
    /// Output rows.
    pub kept: Option<u64>,
    /// Rejected rows by code.
    pub rejects: BTreeMap<String, u64>,
}

/// The state of a dataset by its manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What the dataset is.
    pub begin: Begin,
    /// Committed splits by index.
    pub commits: BTreeMap<u64, Commit>,
    /// Whether every split is committed.
    pub complete: bool,
    /// Number of replaced splits, each replacement counted.
    pub retries: u64,
}

/// What the next run does with a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// There is no dataset, or only the remains of a deleted one.
    Start,
    /// It was made with another configuration or other inputs: delete, then start.
    Replace,
    /// Some splits are committed.
    Resume,
    /// The dataset is complete.
    Reuse,
}

impl State {
    /// Replays the entries; `Ok(None)` if there are none.
    ///
    /// # Errors
    /// The index of the entry that breaks the protocol, and the reason.
    pub fn replay(entries: Vec<Entry>) -> Result<Option<State>, (usize, String)> {
        let mut state: Option<State> = None;
        for (index, entry) in entries.into_iter().enumerate() {
            match (&mut state, entry) {
                (None, Entry::Begin(begin)) if begin.format != FORMAT => {
                    return Err((
                        index,
                        format!("format {} is not {FORMAT}: written by another version", begin.format),
                    ));
                }
                (None, Entry::Begin(begin)) => {
                    state = Some(State { begin, commits: BTreeMap::new(), complete: false, retries: 0 });
                }
                (None, _) => return Err((index, "the first entry is not `begin`".into())),
                (Some(_), Entry::Begin(_)) => return Err((index, "a second `begin`".into())),
                (Some(state), entry) => state.apply(entry).map_err(|why| (index, why))?,
            }
        }
        Ok(state)
    }

    /// Applies one entry after `begin`.
    ///
    /// # Errors
    /// How the entry breaks the protocol.
    pub fn apply(&mut self, entry: Entry) -> Result<(), String> {
        match entry {
            Entry::Retry(_) if !self.complete => Err("a `retry` before `complete`".into()),
            Entry::Retry(commit) if !self.commits.contains_key(&commit.split) => {
                Err(format!("a `retry` of split {}, which is not committed", commit.split))
            }
            Entry::Retry(commit) => {
                self.commits.insert(commit.split, commit);
                self.retries += 1;
                Ok(())
            }
            Entry::Damaged { splits } => {
                if let Some(unknown) = splits.iter().find(|split| !self.commits.contains_key(split)) {
                    return Err(format!("split {unknown} is damaged, but it is not committed"));
                }
                self.commits.retain(|split, _| !splits.contains(split));
                self.complete = false;
                Ok(())
            }
            _ if self.complete => Err("an entry after `complete`".into()),
            Entry::Begin(_) => Err("a second `begin`".into()),
            Entry::Commit(commit) if self.commits.contains_key(&commit.split) => {
                Err(format!("split {} is committed twice", commit.split))
            }
            Entry::Commit(commit) => {
                self.commits.insert(commit.split, commit);
                Ok(())
            }
            Entry::Complete { splits } if splits != self.commits.len() as u64 => {
                Err(format!("`complete` with {splits} splits, but {} are committed", self.commits.len()))
            }
            Entry::Complete { .. } => {
                self.complete = true;
                Ok(())
            }
        }
    }

    /// What to do, given the current fingerprint of the stage.
    pub fn recovery(state: Option<&State>, fingerprint: &str) -> Recovery {
        match state {
            None => Recovery::Start,
            Some(state) if state.begin.fingerprint != fingerprint => Recovery::Replace,
            Some(state) if state.complete => Recovery::Reuse,
            Some(_) => Recovery::Resume,
        }
    }

    /// Rows of a table over all splits.
    pub fn rows(&self, table: &str) -> u64 {
        self.commits.values().map(|commit| commit.rows(table)).sum()
    }

    /// Input rows; `None` if a split did not count them.
    pub fn rows_in(&self) -> Option<u64> {
        self.commits.values().map(|commit| commit.rows_in).sum()
    }

    /// Rejected rows by stage and code, over all splits.
    pub fn rejects(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut sum: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (stage, codes) in self.commits.values().flat_map(|commit| &commit.rejects) {
            for (code, rows) in codes {
                *sum.entry(stage.clone()).or_default().entry(code.clone()).or_default() += rows;
            }
        }
        sum
    }

    /// Row counts of each stage: those fused into the dataset's plan, first to last, then its own.
    pub fn stages(&self) -> Vec<StageRows<'_>> {
        let mut rejects = self.rejects();
        let mut left = self.rows_in();
        let chain = self.begin.fused.iter().map(|(stage, _)| stage).chain([&self.begin.stage]);
        let rows = chain.map(|stage| {
            let (rows_in, rejects) = (left, rejects.remove(stage).unwrap_or_default());
            left = left.map(|rows| rows.saturating_sub(rejects.values().sum()));
            let last = stage == &self.begin.stage && self.begin.tables.contains_key(MAIN);
            StageRows { stage, rows_in, kept: if last { Some(self.rows(MAIN)) } else { left }, rejects }
        });
        rows.collect()
    }

    /// All recorded files, by split, then in the order of writing.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.commits.values().flat_map(|commit| &commit.files)
    }
}

impl From<(usize, String)> for DatasetError {
    fn from((entry, why): (usize, String)) -> Self {
        DatasetError::Protocol(format!("entry {entry}: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(fingerprint: &str) -> Entry {
        Entry::Begin(Begin {
            format: FORMAT,
            position: 0,
            stage: "s".into(),
            kind: "k".into(),
            fingerprint: fingerprint.into(),
            recipe: serde_json::Value::Null,
            fused: vec![],
            variant: None,
            tables: BTreeMap::new(),
        })
    }

    fn commit(split: u64) -> Entry {
        Entry::Commit(Commit { split, rows_in: Some(2), ..Commit::default() })
    }

    fn retry(split: u64) -> Entry {
        Entry::Retry(Commit { split, rows_in: Some(7), ..Commit::default() })
    }

    #[test]
    fn a_retry_replaces_its_split() {
        let entries =
            vec![begin("f"), commit(0), commit(1), Entry::Complete { splits: 2 }, retry(1), retry(1)];
        let state = State::replay(entries).unwrap().unwrap();
        assert_eq!((state.rows_in(), state.retries), (Some(9), 2));
        assert_eq!(State::recovery(Some(&state), "f"), Recovery::Reuse);
    }

    #[test]
    fn damaged_splits_are_committed_again() {
        let complete = Entry::Complete { splits: 2 };
        let mut entries = vec![begin("f"), commit(0), commit(1), complete.clone()];
        entries.push(Entry::Damaged { splits: vec![1] });
        let state = State::replay(entries.clone()).unwrap().unwrap();
        assert_eq!(State::recovery(Some(&state), "f"), Recovery::Resume);
        assert_eq!(state.commits.len(), 1);
        entries.extend([commit(1), complete]);
        let state = State::replay(entries).unwrap().unwrap();
        assert_eq!(State::recovery(Some(&state), "f"), Recovery::Reuse);
        assert_eq!(state.rows_in(), Some(4));
        let twice = [begin("f"), commit(0), Entry::Damaged { splits: vec![7] }];
        assert!(State::replay(twice.to_vec()).is_err());
    }

    #[test]
    fn recovery_depends_on_entries_and_fingerprint() {
        let complete = Entry::Complete { splits: 2 };
        let cases = [
            ("nothing", vec![], Recovery::Start),
            ("begun", vec![begin("f")], Recovery::Resume),
            ("one split", vec![begin("f"), commit(1)], Recovery::Resume),
            ("complete", vec![begin("f"), commit(1), commit(0), complete.clone()], Recovery::Reuse),
            ("another fingerprint", vec![begin("g"), commit(0), commit(1), complete], Recovery::Replace),
        ];
        for (name, entries, expected) in cases {
            let state = State::replay(entries).unwrap();
            assert_eq!(State::recovery(state.as_ref(), "f"), expected, "{name}");
        }
    }

    #[test]
    fn protocol_violations_name_the_entry() {
        let cases = [
            ("no begin", vec![commit(0)], 0),
            ("two begins", vec![begin("f"), begin("f")], 1),
            ("committed twice", vec![begin("f"), commit(3), commit(3)], 2),
            ("complete too early", vec![begin("f"), commit(0), Entry::Complete { splits: 2 }], 2),
            ("after complete", vec![begin("f"), Entry::Complete { splits: 0 }, commit(0)], 2),
            ("retry too early", vec![begin("f"), commit(0), retry(0)], 2),
            ("retry of nothing", vec![begin("f"), Entry::Complete { splits: 0 }, retry(0)], 2),
        ];
        for (name, entries, at) in cases {
            assert_eq!(State::replay(entries).unwrap_err().0, at, "{name}");
        }
    }
}
