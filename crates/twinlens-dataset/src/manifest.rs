//! The manifest: a log of JSON lines with checksums, one per entry. (In an object store, the lines
//! that were appended together are an object.)
//!
//! A line is `{"check":"<first 16 hex digits of the SHA-256 of the entry's text>","entry":{..}}`. A
//! kill during an append leaves a last line without a line feed: it was never acknowledged and is
//! cut off. Any other mismatch is damage and stops the run with the number of the line.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::DatasetError;
use crate::protocol::{Begin, Entry, State};
use crate::storage::{Location, Log, LogEnd};

/// Name of the manifest in a dataset's folder.
pub const FILE: &str = "manifest.jsonl";

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    check: String,
    #[serde(borrow)]
    entry: &'a RawValue,
}

fn checksum(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..8])
}

/// Encodes an entry as a line, with the line feed.
pub fn encode(entry: &Entry) -> Result<String, DatasetError> {
    let internal =
        |error: serde_json::Error| DatasetError::Protocol(format!("an entry cannot be written: {error}"));
    let raw = serde_json::value::to_raw_value(entry).map_err(internal)?;
    let line = Line { check: checksum(raw.get()), entry: &raw };
    Ok(serde_json::to_string(&line).map_err(internal)? + "\n")
}

/// Decodes a line, given without its line feed.
///
/// # Errors
/// Why the line is invalid.
pub fn decode(line: &str) -> Result<Entry, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if line.check != checksum(line.entry.get()) {
        return Err("the checksum does not match".into());
    }
    serde_json::from_str(line.entry.get()).map_err(|error| error.to_string())
}

/// Parses a manifest: its state, and the length in bytes of its complete lines (a torn last line
/// may follow).
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<(Option<State>, usize), DatasetError> {
    let damaged = |line: usize, why: String| DatasetError::DamagedManifest { path: path.into(), line, why };
    let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines: Vec<&[u8]> = bytes[..complete].split_inclusive(|&byte| byte == b'\n').collect();
    let entries = decode_all(&lines).map_err(|(index, why)| damaged(index + 1, why))?;
    let state = State::replay(entries).map_err(|(index, why)| damaged(index + 1, why))?;
    Ok((state, complete))
}

/// Lines that are decoded by one thread: fewer are not worth a second one.
const LINES_PER_THREAD: usize = 4096;

/// Decodes lines with their line feeds, many of them on all cores.
///
/// # Errors
/// The index of the first invalid line, and why.
fn decode_all(lines: &[&[u8]]) -> Result<Vec<Entry>, (usize, String)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let size = lines.len().div_ceil(threads).max(LINES_PER_THREAD);
    if lines.len() <= size {
        return decode_lines(lines, 0);
    }
    std::thread::scope(|scope| {
        let parts = lines.chunks(size).enumerate();
        let running: Vec<_> =
            parts.map(|(part, lines)| scope.spawn(move || decode_lines(lines, part * size))).collect();
        let mut entries = Vec::with_capacity(lines.len());
        for thread in running {
            // `decode` does not panic; if it did, so must its caller.
            entries.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(entries)
    })
}

/// Decodes lines of which the first has the index `first`.
fn decode_lines(lines: &[&[u8]], first: usize) -> Result<Vec<Entry>, (usize, String)> {
    let decode_line = |(index, line): (usize, &&[u8])| {
        let text = std::str::from_utf8(&line[..line.len() - 1]).map_err(|error| error.to_string());
        text.and_then(decode).map_err(|why| (first + index, why))
    };
    lines.iter().enumerate().map(decode_line).collect()
}

/// Reads the manifest of a dataset; `None` if there is none.
pub fn read(dataset: &Location) -> Result<Option<State>, DatasetError> {
    let log = dataset.join(FILE);
    match log.read_log()? {
        Some(log_read) => Ok(parse(&log.display_path(), &log_read.bytes)?.0),
        None => Ok(None),
    }
}

/// Whether there is a dataset, complete or not.
pub fn exists(dataset: &Location) -> Result<bool, DatasetError> {
    dataset.join(FILE).has_log()
}

/// A manifest open for writing.
#[derive(Debug)]
pub(crate) struct Manifest {
    log: Location,
    end: LogEnd,
    state: State,
}

impl Manifest {
    /// Starts a dataset's manifest, durably.
    pub(crate) fn begin(dataset: &Location, begin: Begin) -> Result<Self, DatasetError> {
        let (log, mut end) = (dataset.join(FILE), LogEnd::default());
        log.append_log(&mut end, encode(&Entry::Begin(begin.clone()))?.as_bytes())?;
        let state = State { begin, commits: Default::default(), complete: false, retries: 0 };
        Ok(Self { log, end, state })
    }

    /// Opens the manifest of a dataset and cuts off a torn last line.
    pub(crate) fn resume(dataset: &Location) -> Result<Self, DatasetError> {
        Self::resume_if(dataset, |_| true)?.ok_or_else(|| DatasetError::NotReady {
            path: dataset.join(FILE).display_path(),
            why: "empty manifest".into(),
        })
    }

    /// Like [`resume`](Self::resume), of a manifest whose state is `wanted`; `None` if it is not or
    /// there is none.
    pub(crate) fn resume_if(
        dataset: &Location,
        wanted: impl FnOnce(&State) -> bool,
    ) -> Result<Option<Self>, DatasetError> {
        let log = dataset.join(FILE);
        let Some(read) = log.read_log()? else { return Ok(None) };
        let (state, complete) = parse(&log.display_path(), &read.bytes)?;
        let Some(state) = state.filter(wanted) else { return Ok(None) };
        if complete < read.bytes.len() {
            log.truncate_log(complete as u64)?;
        }
        let Log { bytes: _, mut end } = read;
        end.bytes = complete as u64;
        Ok(Some(Self { log, end, state }))
    }

    /// The recorded state.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Records an entry durably. After an error the manifest must be reopened: its state may be
    /// ahead of the file.
    pub(crate) fn append(&mut self, entry: Entry) -> Result<(), DatasetError> {
        self.append_all([entry])
    }

    /// Records entries durably and together, as [`append`](Self::append) does one.
    pub(crate) fn append_all(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<(), DatasetError> {
        let mut lines = String::new();
        for entry in entries {
            lines += &encode(&entry)?;
            self.state.apply(entry).map_err(DatasetError::Protocol)?;
        }
        if lines.is_empty() { Ok(()) } else { self.log.append_log(&mut self.end, lines.as_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Commit, FORMAT};
    use proptest::prelude::*;
    use std::fs;

    fn begin() -> Begin {
        Begin {
            format: FORMAT,
            position: 0,
            stage: "s".into(),
            kind: "k".into(),
            fingerprint: "f".into(),
            recipe: serde_json::Value::Null,
            fused: vec![],
            variant: None,
            tables: Default::default(),
        }
    }

    fn manifest(dir: &Path) -> Manifest {
        let mut manifest = Manifest::begin(&dir.into(), begin()).unwrap();
        for split in 0..3 {
            manifest
                .append(Entry::Commit(Commit { split, rows_in: Some(split), ..Commit::default() }))
                .unwrap();
        }
        manifest
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_writing_resumes() {
        let dir = tempfile::tempdir().unwrap();
        manifest(dir.path());
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        let third = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in [third + 1, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut resumed = Manifest::resume(&dir.path().into()).unwrap();
            assert_eq!(resumed.state().commits.len(), 2);
            resumed
                .append(Entry::Commit(Commit { split: 2, rows_in: Some(2), ..Commit::default() }))
                .unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_damaged_line_is_reported_by_number() {
        let dir = tempfile::tempdir().unwrap();
        manifest(dir.path());
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap().replacen("\"rows_in\":1", "\"rows_in\":7", 1);
        fs::write(&path, text).unwrap();
        let error = read(&dir.path().into()).unwrap_err().to_string();
        assert!(
            error.ends_with("manifest.jsonl:3: damaged manifest line: the checksum does not match"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(Path::new("manifest.jsonl"), &bytes);
        }

        #[test]
        fn one_changed_byte_is_always_detected(at in 0usize..10_000, to in any::<u8>()) {
            let dir = tempfile::tempdir().unwrap();
            let state = manifest(dir.path()).state().clone();
            let path = dir.path().join(FILE);
            let mut bytes = fs::read(&path).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            // It is refused unless the byte was the last line feed or insignificant white space.
            if let Ok((Some(read), whole)) = parse(&path, &bytes) {
                prop_assert!(read == state || whole < bytes.len(), "byte {} -> {}", at, to);
            }
        }
    }
}
