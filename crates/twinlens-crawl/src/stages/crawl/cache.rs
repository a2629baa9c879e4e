//! Pages of earlier crawls, with what their servers said of their age: a crawl that is repeated
//! asks for what has changed alone.
//!
//! The cache outlives runs; it is no part of a dataset, and a crawl gives the same with it and
//! without it, if servers are honest.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flate2::Compression;
use redb::{Database, ReadableDatabase, TableDefinition, TableError};
use reqwest::header::{
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use twinlens_pipeline::RunError;

/// Headers, as lines, and the compressed body, by URL.
const PAGES: TableDefinition<'_, &str, (&str, &[u8])> = TableDefinition::new("pages");
/// Bytes of the cache that are kept in memory.
const MEMORY: usize = 16 << 20;
/// Bytes that are gathered before they are written.
const GATHERED: usize = 4 << 20;

/// What is kept of a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cached {
    /// Those headers that say what the page is, how old it is, and what may be done with it.
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// Headers that are kept.
fn kept() -> [HeaderName; 5] {
    let other = HeaderName::from_static;
    [CONTENT_TYPE, ETAG, LAST_MODIFIED, other("x-robots-tag"), other("tdm-reservation")]
}

impl Cached {
    /// A page that can be asked for again with conditions: `None` for one whose server says nothing
    /// of its age.
    pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        if !headers.contains_key(ETAG) && !headers.contains_key(LAST_MODIFIED) {
            return None;
        }
        let mut few = HeaderMap::new();
        for name in kept() {
            headers.get_all(&name).iter().for_each(|value| {
                few.append(name.clone(), value.clone());
            });
        }
        Some(Self { headers: few, body: body.to_vec() })
    }

    /// "Only if it is another than this one."
    pub(super) fn conditions(&self) -> HeaderMap {
        let pairs = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
        let said = |(from, to): (HeaderName, HeaderName)| Some((to, self.headers.get(from)?.clone()));
        pairs.into_iter().filter_map(said).collect()
    }

    /// The page as it is now, when the server says that it has not changed: newer headers replace
    /// the older ones.
    pub(super) fn renewed(mut self, headers: &HeaderMap) -> Self {
        for name in kept().into_iter().filter(|name| *name != CONTENT_TYPE && headers.contains_key(name)) {
            self.headers.remove(&name);
            headers.get_all(&name).iter().for_each(|value| {
                self.headers.append(name.clone(), value.clone());
            });
        }
        self
    }
}

/// The cache's file.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    db: Database,
    /// What is not written yet: URL, headers, compressed body.
    gathered: Mutex<Vec<(String, String, Vec<u8>)>>,
}

impl Cache {
    pub(super) fn open(path: &Path) -> Result<Self, RunError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| RunError::io(folder, error))?;
        }
        let db = redb::Builder::new().set_cache_size(MEMORY).set_check_integrity_on_open(true).create(path);
        let db = db.map_err(|error| failed(path, error))?;
        Ok(Self { path: path.into(), db, gathered: Mutex::default() })
    }

    /// A page of an earlier crawl. One that cannot be read is as none.
    pub(super) fn get(&self, url: &str) -> Option<Cached> {
        let table = match self.db.begin_read().ok()?.open_table(PAGES) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return None,
            Err(_) => return None,
        };
        let found = table.get(url).ok()??;
        let (lines, packed) = found.value();
        let mut cached = Cached::default();
        for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
            cached
                .headers
                .append(HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
        }
        flate2::read::GzDecoder::new(packed).read_to_end(&mut cached.body).ok()?;
        Some(cached)
    }

    /// Keeps a page.
    pub(super) fn put(&self, url: &str, cached: &Cached) -> Result<(), RunError> {
        let mut lines = String::new();
        for (name, value) in &cached.headers {
            // A value that is no text is of no use to us.
            if let Ok(value) = value.to_str() {
                lines.push_str(&format!("{name}: {value}\n"));
            }
        }
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
        let packed = packed.write_all(&cached.body).and_then(|()| packed.finish());
        let packed = packed.map_err(|error| RunError::io(&self.path, error))?;
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.push((url.into(), lines, packed));
        match gathered.iter().map(|(_, _, packed)| packed.len()).sum::<usize>() > GATHERED {
            true => self.write(&mut gathered),
            false => Ok(()),
        }
    }

    /// Writes what is gathered.
    pub(super) fn flush(&self) -> Result<(), RunError> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if gathered.is_empty() { Ok(()) } else { self.write(&mut gathered) }
    }

    fn write(&self, gathered: &mut Vec<(String, String, Vec<u8>)>) -> Result<(), RunError> {
        let written = (|| {
            let write = self.db.begin_write()?;
            {
                let mut pages = write.open_table(PAGES)?;
                for (url, lines, packed) in gathered.drain(..) {
                    pages.insert(url.as_str(), (lines.as_str(), packed.as_slice()))?;
                }
            }
            Ok::<_, redb::Error>(write.commit()?)
        })();
        written.map_err(|error| failed(&self.path, error))
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> RunError {
    RunError::user_with_hint(
        format!("the cache {}: {error}", path.display()),
        "if there is room and the file may be written, delete it: it only saves requests",
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
    fn pages_are_kept_with_what_is_said_of_their_age() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/cache.redb");
        let said = headers(&[
            ("etag", "\"1\""),
            ("content-type", "text/html"),
            ("set-cookie", "x"),
            ("x-robots-tag", "noai"),
        ]);
        let page = Cached::of(&said, b"body").unwrap();
        let cache = Cache::open(&path).unwrap();
        assert_eq!(cache.get("http://a/"), None);
        cache.put("http://a/", &page).unwrap();
        cache.flush().unwrap();
        drop(cache);
        let again = Cache::open(&path).unwrap().get("http://a/").unwrap();
        assert_eq!(again, page);
        assert!(!again.headers.contains_key("set-cookie"));
        assert_eq!(again.conditions(), headers(&[("if-none-match", "\"1\"")]));
        let renewed =
            again.renewed(&headers(&[("etag", "\"2\""), ("last-modified", "x"), ("content-type", "no")]));
        assert_eq!(renewed.conditions(), headers(&[("if-none-match", "\"2\""), ("if-modified-since", "x")]));
        assert_eq!(
            (renewed.headers["content-type"].as_bytes(), renewed.body.as_slice()),
            (&b"text/html"[..], &b"body"[..])
        );
        assert_eq!(Cached::of(&headers(&[("content-type", "text/html")]), b"x"), None);
    }
}
