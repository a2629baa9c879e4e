//! Downloads files from web servers in pieces, each with its own retries and byte reservation.
//!
//! An interrupted download resumes: a file next to it has its length and the version of the remote
//! file (a strong ETag), and is written after the bytes are durable. A download is only used if the
//! server confirms that version. Files are downloaded whole, even in formats that allow range
//! reads: all formats work alike, each byte is requested once however many splits or runs need it,
//! and reading does not depend on the network.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use twinlens_pipeline::RunError;
use url::Url;

use super::common::file_name;
use crate::net::{Client, ContentCoding, FetchError, FetchErrorKind, Request, Response};

/// Bytes per request.
const PIECE_BYTES: u64 = 8 << 20;

/// Progress of a download, stored next to it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// Strong ETag of the remote file.
    version: Option<String>,
    /// Bytes downloaded.
    bytes: u64,
    /// Length of the remote file; `None` if not known yet.
    total: Option<u64>,
    /// CRC-32 of the bytes.
    crc32: u32,
}

/// A local copy. It is deleted on drop if it was [read](Download::mark_read); otherwise the next
/// run uses or resumes it.
#[derive(Debug)]
pub(super) struct Download {
    path: PathBuf,
    /// Locked while the download is in use: a second user of the same file makes its own copy.
    file: File,
    progress: Progress,
    is_read: AtomicBool,
}

impl Download {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Marks it as read to its end, so that it is deleted on drop.
    pub(super) fn mark_read(&self) {
        self.is_read.store(true, Ordering::Relaxed);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Without a version it could never be resumed.
        if *self.is_read.get_mut() || self.progress.version.is_none() {
            // Leftovers are in the scratch directory.
            let _gone = fs::remove_file(progress_path(&self.path));
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Downloads a file into a directory, or resumes its download.
///
/// # Errors
/// The file cannot be fetched, or changed during the download. The run stops and can be resumed.
pub(super) async fn download(client: &Client, written: &str, folder: &Path) -> Result<Download, RunError> {
    let failed = |why: String| {
        let hint = "run the same command again: it resumes the download and skips committed splits";
        RunError::user_with_hint(format!("{written}: {why}"), hint)
    };
    let url = Url::parse(written).map_err(|error| failed(error.to_string()))?;
    let mut download = Download::open(written, folder)?;
    loop {
        // A complete download is only revalidated.
        let at = if download.is_whole() { 0 } else { download.progress.bytes };
        let response = match request_piece(client, &url, at, &download.progress).await {
            Ok(response) => response,
            // The remote file has changed: it is sent whole, or is shorter.
            Err(error)
                if at > 0
                    && matches!(
                        error.kind,
                        FetchErrorKind::TooManyBytes | FetchErrorKind::HttpClientError
                    ) =>
            {
                download.progress = Progress::default();
                continue;
            }
            Err(error) => {
                if !error.kind.is_transient() {
                    download.progress = Progress::default();
                }
                return Err(failed(match error.kind {
                    FetchErrorKind::TooManyBytes => {
                        format!(
                            "it is longer than {PIECE_BYTES} bytes, and the server does not support ranges"
                        )
                    }
                    _ => error.to_string(),
                }));
            }
        };
        if response.not_modified {
            return Ok(download);
        }
        let Some(piece) = Piece::new(response, at, &download.progress) else {
            download.progress = Progress::default();
            return Err(failed(format!("the file changed, or the server sent a wrong range, at byte {at}")));
        };
        download = twinlens_pipeline::blocking(move || download.write_piece(piece)).await??;
        if download.is_whole() {
            return Ok(download);
        }
    }
}

/// A piece of a file.
struct Piece {
    start: u64,
    bytes: Vec<u8>,
    version: Option<String>,
    /// Length of the whole file.
    total: u64,
}

impl Piece {
    /// `None` unless the response is the piece at byte `at` of the file in `progress`, or starts a
    /// file.
    fn new(response: Response, at: u64, progress: &Progress) -> Option<Self> {
        let version = response.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
        let version = version.filter(|tag| tag.starts_with('"')).map(String::from);
        let range = response.headers.get(CONTENT_RANGE).map(|value| value.to_str().unwrap_or_default());
        let (start, total) = match range.map(parse_content_range) {
            // The server does not support ranges, or the file has changed: this is the whole file.
            None => (0, response.body.len() as u64),
            Some(range) => range.filter(|(start, _)| *start == at && !response.body.is_empty())?,
        };
        let continues = version == progress.version && progress.total == Some(total);
        (start == 0 || continues).then_some(Self { start, bytes: response.body, version, total })
    }
}

/// Requests a piece starting at byte `at`.
async fn request_piece(
    client: &Client,
    url: &Url,
    at: u64,
    progress: &Progress,
) -> Result<Response, FetchError> {
    let value = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|error| FetchError::new(FetchErrorKind::BadResponse, error.to_string()))
    };
    let mut conditions = HeaderMap::new();
    conditions.insert(RANGE, value(&format!("bytes={at}-{}", at + PIECE_BYTES - 1))?);
    if let Some(version) = &progress.version {
        conditions.insert(if at == 0 { IF_NONE_MATCH } else { IF_RANGE }, value(version)?);
    }
    let request = Request {
        // The user named this file.
        obey_robots: false,
        coding: ContentCoding::Keep,
        extra_headers: Some(&conditions),
        ..Request::new(url, "*/*", PIECE_BYTES)
    };
    client.get(request).await
}

impl Download {
    /// Opens an unused download of the file, or starts a new one.
    fn open(written: &str, folder: &Path) -> Result<Self, RunError> {
        fs::create_dir_all(folder).map_err(|error| RunError::io(folder, error))?;
        let hash = hex::encode(&Sha256::digest(written)[..8]);
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("{hash}-{number}-{}", file_name(written)));
            match open_locked(&path)? {
                Some(file) => break (path, file),
                None => number += 1,
            }
        };
        let length = file.metadata().map_err(|error| RunError::io(&path, error))?.len();
        let recorded =
            fs::read(progress_path(&path)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let good = |progress: &Progress| progress.version.is_some() && progress.bytes <= length;
        let mut progress: Progress = recorded.filter(good).unwrap_or_default();
        let crc32 = crc32(&file, progress.bytes).map_err(|error| RunError::io(&path, error))?;
        if crc32 != progress.crc32 {
            // Damaged on the disk: it is downloaded again.
            progress = Progress::default();
        }
        Ok(Self { path, file, progress, is_read: AtomicBool::new(false) })
    }

    fn is_whole(&self) -> bool {
        self.progress.total == Some(self.progress.bytes)
    }

    /// Writes a piece durably, and then the progress.
    fn write_piece(mut self, piece: Piece) -> Result<Self, RunError> {
        let mut file = &self.file;
        let written = (file.set_len(piece.start))
            .and_then(|()| file.seek(SeekFrom::Start(piece.start)))
            .and_then(|_| file.write_all(&piece.bytes))
            .and_then(|()| file.sync_data());
        written.map_err(|error| RunError::io(&self.path, error))?;
        let mut crc32 = match piece.start {
            0 => crc32fast::Hasher::new(),
            _ => crc32fast::Hasher::new_with_initial(self.progress.crc32),
        };
        crc32.update(&piece.bytes);
        self.progress = Progress {
            version: piece.version,
            bytes: piece.start + piece.bytes.len() as u64,
            total: Some(piece.total),
            crc32: crc32.finalize(),
        };
        let (text, path) = (serde_json::to_vec(&self.progress), progress_path(&self.path));
        let text = text.map_err(|error| RunError::Internal(error.to_string()))?;
        fs::write(&path, text).map_err(|error| RunError::io(&path, error))?;
        Ok(self)
    }
}

/// The CRC-32 of the first `bytes` bytes of a file.
fn crc32(file: &File, bytes: u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut rest = file.take(bytes);
    let mut piece = vec![0; 1 << 16];
    loop {
        match rest.read(&mut piece)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&piece[..read]),
        }
    }
}

/// Opens and locks a file unless it is in use. The system releases the lock when the process ends.
fn open_locked(path: &Path) -> Result<Option<File>, RunError> {
    let io = |error| RunError::io(path, error);
    let file =
        OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path).map_err(io)?;
    match file.try_lock() {
        // Otherwise the previous user has just deleted it.
        Ok(()) if path.exists() => Ok(Some(file)),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// Where the progress of a download is stored.
fn progress_path(download: &Path) -> PathBuf {
    let mut name = download.as_os_str().to_owned();
    name.push(".progress");
    name.into()
}

/// First byte and total of a Content-Range like `bytes 0-99/1234`.
fn parse_content_range(range: &str) -> Option<(u64, u64)> {
    let (parse_content_range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((parse_content_range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()?))
}
