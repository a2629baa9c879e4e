//! Records of splits that were made, before the manifest has them.
//!
//! Several processes may make splits of a dataset in an object store, some of them twice, but one
//! process appends to the manifest. `commits/FINGERPRINT/00000012.json` says how split 12 was made.
//! It is put only if there is none: of two attempts the first is the split, and the second learns
//! so. The record is a line like those of the manifest, with its checksum. When the dataset is
//! complete, its records are deleted.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

use crate::error::DatasetError;
use crate::manifest::{decode, encode};
use crate::protocol::{Commit, Entry};
use crate::storage::Location;

/// The folder of the records in that of a dataset.
const FOLDER: &str = "commits";

/// Whether a file of a dataset is a record.
pub(crate) fn is_record(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    matches!(parts[..], [FOLDER, _, file] if file.ends_with(".json"))
}

/// The fingerprint under which the splits of a retry are recorded. A `retry` of 0 means none: the
/// fingerprint stays the same.
pub fn fingerprint_of_retry(fingerprint: &str, retry: u64) -> String {
    match retry {
        0 => fingerprint.into(),
        retry => hex::encode(Sha256::digest(format!("{fingerprint}/retry/{retry}"))),
    }
}

/// The records of one dataset.
#[derive(Debug, Clone)]
pub struct SplitRecords {
    dataset: Location,
    folder: Location,
}

impl SplitRecords {
    /// Those of the dataset with this fingerprint: a process that still makes splits of an earlier
    /// dataset of the same name has other records.
    pub fn new(dataset: &Location, fingerprint: &str) -> Self {
        let short: String = fingerprint.chars().take(16).collect();
        Self { dataset: dataset.clone(), folder: dataset.join(&format!("{FOLDER}/{short}")) }
    }

    fn record(&self, split: u64) -> Location {
        self.folder.join(&record_name(split))
    }

    /// Records a split whose files are durable; gives the record that counts, which is that of the
    /// first attempt.
    pub fn put(&self, commit: Commit) -> Result<Commit, DatasetError> {
        let (record, split) = (self.record(commit.split), commit.split);
        if record.create(encode(&Entry::Commit(commit.clone()))?.as_bytes())? {
            return Ok(commit);
        }
        self.get(split)?.ok_or_else(|| DatasetError::DamagedFile {
            path: record.display_path(),
            why: "it disappeared".into(),
        })
    }

    /// The record of a split.
    pub fn get(&self, split: u64) -> Result<Option<Commit>, DatasetError> {
        let bytes = self.record(split).read()?;
        bytes.map(|bytes| self.parse(split, &bytes)).transpose()
    }

    /// The records of some splits, all of which have one, read together.
    pub fn get_all(&self, splits: &[u64]) -> Result<Vec<Commit>, DatasetError> {
        let read = self.folder.read_all(splits.iter().copied().map(record_name).collect())?;
        splits.iter().zip(&read).map(|(split, bytes)| self.parse(*split, bytes)).collect()
    }

    fn parse(&self, split: u64, bytes: &[u8]) -> Result<Commit, DatasetError> {
        let damaged =
            |why: String| DatasetError::DamagedFile { path: self.record(split).display_path(), why };
        let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        match decode(text.trim_end()).map_err(damaged)? {
            Entry::Commit(commit) if commit.split == split => Ok(commit),
            _ => Err(damaged(format!("it is not the record of split {split}"))),
        }
    }

    /// The splits from `first` on that have a record, in order.
    pub fn splits_from(&self, first: u64) -> Result<Vec<u64>, DatasetError> {
        let before = first.checked_sub(1).map(record_name).unwrap_or_default();
        let names = self.folder.list_after(&before)?;
        let mut splits: Vec<u64> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        splits.sort_unstable();
        Ok(splits)
    }

    /// The records of splits that are not `recorded` in the manifest and whose files are all there.
    /// A record without its files is deleted, so that its split is made again.
    pub fn usable(&self, recorded: impl Fn(u64) -> bool) -> Result<BTreeMap<u64, Commit>, DatasetError> {
        let splits: Vec<u64> = self.splits_from(0)?.into_iter().filter(|split| !recorded(*split)).collect();
        if splits.is_empty() {
            return Ok(BTreeMap::new());
        }
        let commits = self.get_all(&splits)?;
        let files = commits.iter().flat_map(|commit| &commit.files).map(|file| file.path.as_str());
        let lengths = self.dataset.lengths_around(files)?;
        let is_there =
            |commit: &Commit| commit.files.iter().all(|file| lengths.get(&file.path) == Some(&file.bytes));
        let (usable, lost): (Vec<_>, Vec<_>) = commits.into_iter().partition(is_there);
        self.delete(&lost.iter().map(|commit| commit.split).collect::<Vec<_>>())?;
        Ok(usable.into_iter().map(|commit| (commit.split, commit)).collect())
    }

    /// Deletes the records of some splits.
    pub(crate) fn delete(&self, splits: &[u64]) -> Result<(), DatasetError> {
        splits.iter().try_for_each(|split| self.record(*split).delete())
    }
}

/// Names sort like the numbers of their splits.
fn record_name(split: u64) -> String {
    format!("{split:08}.json")
}
