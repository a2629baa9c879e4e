//! Pages of earlier crawls with their validators (ETag, Last-Modified), so that a repeated crawl
//! only downloads what has changed.
//!
//! The cache outlives runs and is not part of a dataset. Unless servers lie, a crawl gives the same
//! result with and without it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flate2::Compression;
use redb::{Database, ReadableDatabase, TableDefinition};
use reqwest::header::{
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use twinlens_pipeline::RunError;

/// By URL: headers as lines, and the compressed body.
const PAGES: TableDefinition<'_, &str, (&str, &[u8])> = TableDefinition::new("pages");
/// Bytes of the database that are kept in memory.
const CACHE_BYTES: usize = 16 << 20;
/// Bytes that are buffered before they are written.
const MAX_PENDING: usize = 4 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CachedPage {
    /// The content type, validators and opt-outs.
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

fn kept_headers() -> [HeaderName; 5] {
    let other = HeaderName::from_static;
    [CONTENT_TYPE, ETAG, LAST_MODIFIED, other("x-robots-tag"), other("tdm-reservation")]
}

impl CachedPage {
    /// `None` for a page without validators.
    pub(super) fn new(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        if !headers.contains_key(ETAG) && !headers.contains_key(LAST_MODIFIED) {
            return None;
        }
        let mut kept = HeaderMap::new();
        for name in kept_headers() {
            headers.get_all(&name).iter().for_each(|value| {
                kept.append(name.clone(), value.clone());
            });
        }
        Some(Self { headers: kept, body: body.to_vec() })
    }

    /// Headers for a request that only wants a changed page.
    pub(super) fn conditions(&self) -> HeaderMap {
        let pairs = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
        let condition = |(from, to): (HeaderName, HeaderName)| Some((to, self.headers.get(from)?.clone()));
        pairs.into_iter().filter_map(condition).collect()
    }

    /// The page after a 304 response, whose headers replace the cached ones.
    pub(super) fn revalidated(mut self, headers: &HeaderMap) -> Self {
        for name in
            kept_headers().into_iter().filter(|name| *name != CONTENT_TYPE && headers.contains_key(name))
        {
            self.headers.remove(&name);
            headers.get_all(&name).iter().for_each(|value| {
                self.headers.append(name.clone(), value.clone());
            });
        }
        self
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    db: Database,
    /// Not written yet: URL, headers, compressed body.
    pending: Mutex<Vec<(String, String, Vec<u8>)>>,
}

impl Cache {
    pub(super) fn open(path: &Path) -> Result<Self, RunError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| RunError::io(folder, error))?;
        }
        let db =
            redb::Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path);
        let db = db.map_err(|error| cache_error(path, error))?;
        Ok(Self { path: path.into(), db, pending: Mutex::default() })
    }

    /// A page of an earlier crawl; `None` also if it cannot be read.
    pub(super) fn get(&self, url: &str) -> Option<CachedPage> {
        let table = self.db.begin_read().ok()?.open_table(PAGES).ok()?;
        let found = table.get(url).ok()??;
        let (lines, compressed) = found.value();
        let mut cached = CachedPage::default();
        for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
            cached
                .headers
                .append(HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
        }
        flate2::read::GzDecoder::new(compressed).read_to_end(&mut cached.body).ok()?;
        Some(cached)
    }

    pub(super) fn put(&self, url: &str, cached: &CachedPage) -> Result<(), RunError> {
        let mut lines = String::new();
        for (name, value) in &cached.headers {
            // Values that are not text are not needed.
            if let Ok(value) = value.to_str() {
                lines.push_str(&format!("{name}: {value}\n"));
            }
        }
        let mut compressed = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
        let compressed = compressed.write_all(&cached.body).and_then(|()| compressed.finish());
        let compressed = compressed.map_err(|error| RunError::io(&self.path, error))?;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.push((url.into(), lines, compressed));
        let bytes: usize = pending.iter().map(|(_, _, compressed)| compressed.len()).sum();
        if bytes > MAX_PENDING { self.write(&mut pending) } else { Ok(()) }
    }

    /// Writes pending pages.
    pub(super) fn flush(&self) -> Result<(), RunError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.is_empty() { Ok(()) } else { self.write(&mut pending) }
    }

    fn write(&self, pending: &mut Vec<(String, String, Vec<u8>)>) -> Result<(), RunError> {
        let written = (|| {
            let write = self.db.begin_write()?;
            {
                let mut pages = write.open_table(PAGES)?;
                for (url, lines, compressed) in pending.drain(..) {
                    pages.insert(url.as_str(), (lines.as_str(), compressed.as_slice()))?;
                }
            }
            Ok::<_, redb::Error>(write.commit()?)
        })();
        written.map_err(|error| cache_error(&self.path, error))
    }
}

fn cache_error(path: &Path, error: impl std::fmt::Display) -> RunError {
    RunError::user_with_hint(
        format!("the cache {}: {error}", path.display()),
        "check disk space and permissions, or delete the file: it only saves requests",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(header).collect()
    }

    #[test]
    fn pages_are_kept_with_their_validators() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/cache.redb");
        let said = headers(&[
            ("etag", "\"1\""),
            ("content-type", "text/html"),
            ("set-cookie", "x"),
            ("x-robots-tag", "noai"),
        ]);
        let page = CachedPage::new(&said, b"body").unwrap();
        let cache = Cache::open(&path).unwrap();
        assert_eq!(cache.get("http://a/"), None);
        cache.put("http://a/", &page).unwrap();
        cache.flush().unwrap();
        drop(cache);
        let again = Cache::open(&path).unwrap().get("http://a/").unwrap();
        assert_eq!(again, page);
        assert!(!again.headers.contains_key("set-cookie"));
        assert_eq!(again.conditions(), headers(&[("if-none-match", "\"1\"")]));
        let revalidated =
            again.revalidated(&headers(&[("etag", "\"2\""), ("last-modified", "x"), ("content-type", "no")]));
        assert_eq!(
            revalidated.conditions(),
            headers(&[("if-none-match", "\"2\""), ("if-modified-since", "x")])
        );
        assert_eq!(
            (revalidated.headers["content-type"].as_bytes(), revalidated.body.as_slice()),
            (&b"text/html"[..], &b"body"[..])
        );
        assert_eq!(CachedPage::new(&headers(&[("content-type", "text/html")]), b"x"), None);
    }
}
