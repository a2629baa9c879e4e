//! Rows that turned out to be no pairs when they were to be trained on.
//!
//! They are written to a file at once, so that a training that was killed and goes on behind them
//! still knows them.

use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    lane: usize,
    row: u64,
    code: String,
    detail: String,
}

/// Code and detail by input and row.
type Rows = BTreeMap<(usize, u64), (String, String)>;

/// The rows, each once.
pub(crate) struct Refused {
    path: PathBuf,
    rows: Mutex<(File, Rows)>,
}

impl Refused {
    /// Those that the file `path` names, if there is one.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(TrainError::io(path)(error)),
        };
        // What a kill left of a last line was not acknowledged: it is cut, and its row is met
        // again.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut rows = Rows::new();
        for line in text[..whole].lines() {
            let damaged = |e: serde_json::Error| TrainError::Checkpoint {
                path: path.into(),
                problem: format!("damaged ({e})"),
            };
            let line: Line = serde_json::from_str(line).map_err(damaged)?;
            rows.insert((line.lane, line.row), (line.code, line.detail));
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(TrainError::io(path))?;
        file.set_len(whole as u64).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), rows: Mutex::new((file, rows)) })
    }

    /// Whether a row is known to be none.
    pub(crate) fn has(&self, lane: usize, row: u64) -> bool {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).1.contains_key(&(lane, row))
    }

    /// Adds a row, durably; one that is known stays as it is.
    pub(crate) fn add(&self, lane: usize, row: u64, code: &str, detail: &str) -> Result<()> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.1.contains_key(&(lane, row)) {
            return Ok(());
        }
        let line = Line { lane, row, code: code.into(), detail: detail.into() };
        let text = serde_json::to_string(&line).map_err(|e| TrainError::Options(e.to_string()))? + "\n";
        let written = rows.0.write_all(text.as_bytes()).and_then(|()| rows.0.sync_data());
        written.map_err(TrainError::io(&self.path))?;
        rows.1.insert((lane, row), (line.code, line.detail));
        Ok(())
    }

    /// Code and detail of every row.
    pub(crate) fn rows(&self) -> Rows {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}
