//! Rows that were rejected during training, because their images could not be decoded.
//!
//! They are written to a file at once, so that a killed training still has them after it resumes.

use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use twinlens_ranks::RankError;

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(rename = "lane")]
    input: usize,
    row: u64,
    code: String,
    detail: String,
}

/// Code and detail by input and row.
type Rows = BTreeMap<(usize, u64), (String, String)>;

/// Counts of rejected rows by code, each with the first of them.
#[derive(Default)]
pub(crate) struct RejectSummary(BTreeMap<String, (u64, String)>);

impl RejectSummary {
    /// Adds a row; `describe` is called for the first of a code.
    pub(crate) fn add(&mut self, code: &str, describe: impl FnOnce() -> String) {
        match self.0.get_mut(code) {
            Some((count, _)) => *count += 1,
            None => _ = self.0.insert(code.into(), (1, describe())),
        }
    }
}

impl fmt::Display for RejectSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = |(code, (count, first)): (&String, &(u64, String))| {
            format!("{count} rejected with {code}, the first: {first}")
        };
        f.write_str(&self.0.iter().map(code).collect::<Vec<_>>().join("; "))
    }
}

pub(crate) struct RejectLog {
    path: PathBuf,
    rows: Mutex<(File, Rows)>,
    /// Lines that no other rank has been told.
    new: Mutex<String>,
}

impl RejectLog {
    /// Opens the log in the file `path`, or creates it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(TrainError::io(path)(error)),
        };
        // A partial last line was left by a kill. Its row will be rejected again.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        let mut rows = Rows::new();
        for line in text[..complete].lines() {
            let damaged = |e: serde_json::Error| TrainError::Checkpoint {
                path: path.into(),
                problem: format!("damaged ({e})"),
            };
            let line: Line = serde_json::from_str(line).map_err(damaged)?;
            rows.insert((line.input, line.row), (line.code, line.detail));
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(TrainError::io(path))?;
        file.set_len(complete as u64).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), rows: Mutex::new((file, rows)), new: Mutex::default() })
    }

    pub(crate) fn contains(&self, input: usize, row: u64) -> bool {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).1.contains_key(&(input, row))
    }

    /// Adds a row durably, unless it is already in the log.
    pub(crate) fn add(&self, input: usize, row: u64, code: &str, detail: &str) -> Result<()> {
        let line = Line { input, row, code: code.into(), detail: detail.into() };
        let text = serde_json::to_string(&line).map_err(|e| TrainError::Options(e.to_string()))? + "\n";
        if self.record(line, &text)? {
            self.new.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
        Ok(())
    }

    /// Whether the row was not yet in the log.
    fn record(&self, line: Line, text: &str) -> Result<bool> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.1.contains_key(&(line.input, line.row)) {
            return Ok(false);
        }
        let written = rows.0.write_all(text.as_bytes()).and_then(|()| rows.0.sync_data());
        written.map_err(TrainError::io(&self.path))?;
        rows.1.insert((line.input, line.row), (line.code, line.detail));
        Ok(true)
    }

    /// The lines that were added since the last call.
    pub(crate) fn take_new(&self) -> Vec<u8> {
        std::mem::take(&mut *self.new.lock().unwrap_or_else(PoisonError::into_inner)).into_bytes()
    }

    /// Adds the lines of another rank.
    pub(crate) fn merge(&self, lines: &[u8]) -> Result<()> {
        for text in String::from_utf8_lossy(lines).lines() {
            let line = serde_json::from_str(text)
                .map_err(|error| RankError::OutOfStep(format!("the rejects of another rank: {error}")))?;
            self.record(line, &format!("{text}\n"))?;
        }
        Ok(())
    }

    /// Code and detail of each row.
    pub(crate) fn rows(&self) -> Rows {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}
