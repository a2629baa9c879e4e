//! Archives on web servers: copied to a local file in pieces, each with its own retries, and taken away when it has been read.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use sha2::{Digest, Sha256};
use twinlens_pipeline::RunError;
use url::Url;

use crate::net::{Ask, Client};

/// Bytes that are asked for at a time.
const PIECE: u64 = 8 << 20;

/// Whether a file is one on a web server.
pub(super) fn is_web(written: &str) -> bool {
    written.starts_with("http://") || written.starts_with("https://")
}

/// A local copy; taken away when it is dropped.
#[derive(Debug)]
pub(super) struct Copy(pub(super) PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        // What is left over is in the scratch folder.
        let _gone = fs::remove_file(&self.0);
    }
}

/// Copies a file into a folder.
///
/// # Errors
/// The world's: it cannot be had, or changed while it was copied. A file that is missing is no reject: the run stops, and goes on later.
pub(super) async fn copy(client: &Client, written: &str, folder: &Path) -> Result<Copy, RunError> {
    let failed = |why: String| {
        let hint = "run the same command again: what is committed stays";
        RunError::user_with_hint(format!("{written}: {why}"), hint)
    };
    let url = Url::parse(written).map_err(|error| failed(error.to_string()))?;
    fs::create_dir_all(folder).map_err(|error| RunError::io(folder, error))?;
    let name: String = Sha256::digest(written)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("{name}-{}", super::super::files::short(url.path())));
    let io = |error| RunError::io(&path, error);
    let mut file = File::create(&path).map_err(io)?;
    let copied = Copy(path.clone());
    let (mut at, mut version) = (0, None::<HeaderValue>);
    loop {
        let mut conditions = HeaderMap::new();
        let range = format!("bytes={at}-{}", at + PIECE - 1);
        conditions.insert(RANGE, HeaderValue::from_str(&range).map_err(|error| failed(error.to_string()))?);
        if let Some(version) = &version {
            conditions.insert(IF_RANGE, version.clone());
        }
        let ask = Ask {
            url: &url,
            accept: "*/*",
            max_bytes: PIECE,
            cut: false,
            follow: true,
            // Named by the user, file by file.
            robots: false,
            conditions: Some(&conditions),
            check: &|_| Ok(()),
        };
        let reply = client.get(ask).await.map_err(|error| failed(error.to_string()))?;
        let part = reply.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(part);
        file.write_all(&reply.body).map_err(io)?;
        match part {
            // A server that knows no parts sends the whole.
            None if at == 0 && !reply.headers.contains_key(CONTENT_RANGE) => return Ok(copied),
            Some((start, total)) if start == at && !reply.body.is_empty() => {
                at += reply.body.len() as u64;
                if at >= total {
                    return Ok(copied);
                }
                version = reply.headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
            }
            _ => return Err(failed(format!("it changed, or its server errs, at byte {at}"))),
        }
    }
}

/// First byte and total of `bytes 0-99/1234`.
fn part(range: &str) -> Option<(u64, u64)> {
    let (part, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((part.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()?))
}
