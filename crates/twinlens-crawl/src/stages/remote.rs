//! Files on web servers: copied to a local file, in pieces, each with its own retries and its place
//! in the byte budget.
//!
//! A copy that is cut off goes on: what it holds, and of which version of the file (a strong ETag),
//! stands beside it, and is recorded after its bytes are durable. A copy is never taken for the
//! file unless the server says that it is still that version. Whole files, and no single ranges of
//! the formats that could be read so: all formats are had in the same way, each byte is asked for
//! once however many splits or runs want it, and reading is independent of the network.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use twinlens_pipeline::RunError;
use url::Url;

use super::files::{blocking, short};
use crate::net::{Ask, Client, FetchError, Reply, Why};

/// Bytes that are asked for at a time.
const PIECE: u64 = 8 << 20;

/// How far a copy is; stands beside it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// The version of the file.
    version: Option<String>,
    /// Bytes that are here.
    bytes: u64,
    /// Bytes of the whole; `None` before the server has told.
    total: Option<u64>,
}

/// A local copy. It is taken away when it is dropped after it has [served](Download::served); else
/// it stays, to be used or gone on with by the next run.
#[derive(Debug)]
pub(super) struct Download {
    path: PathBuf,
    /// Held while the copy is used: of two that want the same file at a time, the second makes a
    /// copy of its own.
    file: File,
    progress: Progress,
    served: AtomicBool,
}

impl Download {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It was read to its end, and is of no more use.
    pub(super) fn served(&self) {
        self.served.store(true, Ordering::Relaxed);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // What could never be gone on with is of no use either.
        if *self.served.get_mut() || self.progress.version.is_none() {
            // What is left over is in the scratch folder.
            let _gone = fs::remove_file(record(&self.path));
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Copies a file into a folder, or goes on with a copy that was begun.
///
/// # Errors
/// The world's: it cannot be had, or changed while it was copied. A file that is missing is no
/// reject: the run stops, and goes on later.
pub(super) async fn copy(client: &Client, written: &str, folder: &Path) -> Result<Download, RunError> {
    let failed = |why: String| {
        let hint = "run the same command again: what is committed, and what is copied, stays";
        RunError::user_with_hint(format!("{written}: {why}"), hint)
    };
    let url = Url::parse(written).map_err(|error| failed(error.to_string()))?;
    let mut copy = Download::open(written, folder)?;
    loop {
        // Of a whole copy it is asked whether it is still the file.
        let at = if copy.is_whole() { 0 } else { copy.progress.bytes };
        let reply = match ask(client, &url, at, &copy.progress).await {
            Ok(reply) => reply,
            // The file is another one now, and is sent whole, or ends before.
            Err(error) if at > 0 && matches!(error.why, Why::TooManyBytes | Why::HttpClientError) => {
                copy.progress = Progress::default();
                continue;
            }
            Err(error) => {
                if !error.why.may_pass() {
                    copy.progress = Progress::default();
                }
                return Err(failed(match error.why {
                    Why::TooManyBytes => {
                        format!("it is longer than {PIECE} bytes, and its server sends no parts")
                    }
                    _ => error.to_string(),
                }));
            }
        };
        if reply.unchanged {
            return Ok(copy);
        }
        let version = reply.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
        let version = version.filter(|tag| tag.starts_with('"')).map(String::from);
        let range = reply.headers.get(CONTENT_RANGE).map(|value| value.to_str().unwrap_or_default());
        let (start, total) = match range.map(part) {
            // A server that knows no parts, or whose file is another one now, sends the whole.
            None => (0, reply.body.len() as u64),
            Some(Some((start, total))) if start == at && !reply.body.is_empty() => (start, total),
            Some(_) => (u64::MAX, 0),
        };
        let before = &copy.progress;
        let same = version == before.version && before.total == Some(total);
        if start != 0 && (start != at || !same) {
            copy.progress = Progress::default();
            return Err(failed(format!("it changed, or its server errs, at byte {at}")));
        }
        let piece = move || copy.take(start, &reply.body, version, total);
        copy = blocking(piece).await??;
        if copy.is_whole() {
            return Ok(copy);
        }
    }
}

/// Asks for a piece from the byte `at` on.
async fn ask(client: &Client, url: &Url, at: u64, progress: &Progress) -> Result<Reply, FetchError> {
    let value = |text: &str| {
        HeaderValue::from_str(text).map_err(|error| FetchError::new(Why::BadResponse, error.to_string()))
    };
    let mut conditions = HeaderMap::new();
    conditions.insert(RANGE, value(&format!("bytes={at}-{}", at + PIECE - 1))?);
    if let Some(version) = &progress.version {
        conditions.insert(if at == 0 { IF_NONE_MATCH } else { IF_RANGE }, value(version)?);
    }
    let ask = Ask {
        url,
        accept: "*/*",
        max_bytes: PIECE,
        cut: false,
        follow: true,
        // Named by the user, file by file.
        robots: false,
        conditions: Some(&conditions),
        check: &|_| Ok(()),
    };
    client.get(ask).await
}

impl Download {
    /// The copy of a file that was begun, or a new one.
    fn open(written: &str, folder: &Path) -> Result<Self, RunError> {
        fs::create_dir_all(folder).map_err(|error| RunError::io(folder, error))?;
        let hash: String = Sha256::digest(written)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("{hash}-{number}-{}", short(written)));
            match locked(&path)? {
                Some(file) => break (path, file),
                None => number += 1,
            }
        };
        let length = file.metadata().map_err(|error| RunError::io(&path, error))?.len();
        let recorded = fs::read(record(&path)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let good = |progress: &Progress| progress.version.is_some() && progress.bytes <= length;
        let progress = recorded.filter(good).unwrap_or_default();
        Ok(Self { path, file, progress, served: AtomicBool::new(false) })
    }

    fn is_whole(&self) -> bool {
        self.progress.total == Some(self.progress.bytes)
    }

    /// Writes a piece at its place, durably, and then records it.
    fn take(
        mut self,
        start: u64,
        piece: &[u8],
        version: Option<String>,
        total: u64,
    ) -> Result<Self, RunError> {
        let mut file = &self.file;
        let written = (file.set_len(start))
            .and_then(|()| file.seek(SeekFrom::Start(start)))
            .and_then(|_| file.write_all(piece))
            .and_then(|()| file.sync_data());
        written.map_err(|error| RunError::io(&self.path, error))?;
        self.progress = Progress { version, bytes: start + piece.len() as u64, total: Some(total) };
        let (text, path) = (serde_json::to_vec(&self.progress), record(&self.path));
        let text = text.map_err(|error| RunError::Internal(error.to_string()))?;
        fs::write(&path, text).map_err(|error| RunError::io(&path, error))?;
        Ok(self)
    }
}

/// The file at a path, if no one else has it. The lock is the system's: it ends with the process.
fn locked(path: &Path) -> Result<Option<File>, RunError> {
    let io = |error| RunError::io(path, error);
    let file =
        OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path).map_err(io)?;
    match file.try_lock() {
        // Else who had it has taken it away in between.
        Ok(()) if path.exists() => Ok(Some(file)),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// Where it is recorded how far a copy is.
fn record(copy: &Path) -> PathBuf {
    let mut name = copy.as_os_str().to_owned();
    name.push(".progress");
    name.into()
}

/// First byte and total of `bytes 0-99/1234`.
fn part(range: &str) -> Option<(u64, u64)> {
    let (part, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((part.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()?))
}
