//! The frontier on disk: an embedded store in which what waits is ordered and what is known is looked up, so that memory does not
//! grow with the URLs that were seen.
//!
//! It is an index over what the committed waves recorded, and says how many of them it has taken in: after a kill it lacks at most
//! the last, and one that is damaged is made anew from all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    TableError,
};
use sha2::{Digest, Sha256};

use super::{Kind, Recorded, Visit};

/// Pages that wait: depth and URL, in the order of the crawl.
const PAGES: TableDefinition<'_, (u32, &str), ()> = TableDefinition::new("pages");
/// Other files that wait: kind, depth and URL.
const FILES: TableDefinition<'_, (u8, u32, &str), ()> = TableDefinition::new("files");
/// URLs that are known, whether they wait or were visited: 128 bits of their hash.
const KNOWN: TableDefinition<'_, u128, ()> = TableDefinition::new("known");
/// Where seeds redirected to: they widen the scope.
const SEEDS: TableDefinition<'_, &str, ()> = TableDefinition::new("seeds");
/// Numbers: [`Counts`].
const COUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("counts");

/// Bytes of the store that are kept in memory.
const CACHE: usize = 64 << 20;

/// The store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct StoreError {
    path: PathBuf,
    source: Box<redb::Error>,
}

/// How far a crawl is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waves that were taken in; `None` for a store without its seeds.
    pub waves: Option<u64>,
    /// Pages that were visited.
    pub visited: u64,
    /// Sitemaps that are known.
    pub sitemaps: u64,
    /// Pages that wait.
    pub waiting: u64,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    db: Database,
}

impl Store {
    /// Opens a store, or makes one. One that cannot be opened is made anew.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open =
            || redb::Builder::new().set_cache_size(CACHE).set_check_integrity_on_open(true).create(path);
        let failed =
            |error: redb::DatabaseError| StoreError { path: path.into(), source: Box::new(error.into()) };
        let db = match open() {
            Ok(db) => db,
            Err(error @ redb::DatabaseError::DatabaseAlreadyOpen) => return Err(failed(error)),
            Err(_) if std::fs::remove_file(path).is_ok() => open().map_err(failed)?,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path: path.into(), db })
    }

    /// A store that is in memory alone.
    pub fn in_memory() -> Result<Self, StoreError> {
        let path = PathBuf::from("memory");
        let db = redb::Builder::new().create_with_backend(redb::backends::InMemoryBackend::new());
        match db {
            Ok(db) => Ok(Self { path, db }),
            Err(error) => Err(StoreError { path, source: Box::new(error.into()) }),
        }
    }

    fn told<T>(&self, result: Result<T, redb::Error>) -> Result<T, StoreError> {
        result.map_err(|source| StoreError { path: self.path.clone(), source: Box::new(source) })
    }

    /// How far the crawl is.
    pub(super) fn counts(&self) -> Result<Counts, StoreError> {
        self.told((|| {
            let read = self.db.begin_read()?;
            let counts = match read.open_table(COUNTS) {
                Ok(counts) => counts,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Counts::default()),
                Err(error) => return Err(error.into()),
            };
            let count = |name: &str| Ok::<_, redb::Error>(counts.get(name)?.map(|count| count.value()));
            Ok(Counts {
                waves: count("waves")?,
                visited: count("visited")?.unwrap_or(0),
                sitemaps: count("sitemaps")?.unwrap_or(0),
                waiting: read.open_table(PAGES)?.len()?,
            })
        })())
    }

    /// What seeds redirected to.
    pub(super) fn seeds(&self) -> Result<Vec<String>, StoreError> {
        self.told((|| {
            let seeds = self.db.begin_read()?.open_table(SEEDS)?;
            let mut urls = Vec::new();
            for entry in seeds.iter()? {
                urls.push(entry?.0.value().to_string());
            }
            Ok(urls)
        })())
    }

    /// The first files that wait, all of one kind: `count(kind)` of them at most.
    pub(super) fn first_files(&self, count: impl Fn(Kind) -> usize) -> Result<Vec<Visit>, StoreError> {
        self.told((|| {
            let mut files: Vec<Visit> = Vec::new();
            for entry in self.db.begin_read()?.open_table(FILES)?.iter()? {
                let entry = entry?.0;
                let (kind, depth, url) = entry.value();
                let kind = Kind::of_number(kind);
                if files.first().is_some_and(|first| first.kind != kind) || files.len() >= count(kind) {
                    break;
                }
                files.push(Visit { kind, depth, url: url.into() });
            }
            Ok(files)
        })())
    }

    /// The first pages that wait.
    pub(super) fn first_pages(&self, count: usize) -> Result<Vec<Visit>, StoreError> {
        self.told((|| {
            let pages = self.db.begin_read()?.open_table(PAGES)?;
            let mut visits = Vec::new();
            for entry in pages.iter()?.take(count) {
                let entry = entry?.0;
                let (depth, url) = entry.value();
                visits.push(Visit { kind: Kind::Page, depth, url: url.into() });
            }
            Ok(visits)
        })())
    }

    /// What is known now, to look up.
    pub(super) fn known(&self) -> Result<Known, StoreError> {
        self.told(
            (|| Ok(Known { path: self.path.clone(), table: self.db.begin_read()?.open_table(KNOWN)? }))(),
        )
    }

    /// Takes out of `new` the pages that would be among the last `beyond` of those that wait, but for the first `taken`, and of `new`.
    pub(super) fn trim_new(
        &self,
        new: &mut BTreeSet<Visit>,
        beyond: u64,
        taken: u64,
    ) -> Result<(), StoreError> {
        self.told((|| {
            let pages = self.db.begin_read()?.open_table(PAGES)?;
            let mut old_left = pages.len()?.saturating_sub(taken);
            let mut old = pages.iter()?.rev();
            let mut last_old = None;
            for _ in 0..beyond {
                if last_old.is_none() && old_left > 0 {
                    last_old = match old.next() {
                        Some(entry) => {
                            let entry = entry?.0;
                            let (depth, url) = entry.value();
                            Some(Visit { kind: Kind::Page, depth, url: url.into() })
                        }
                        None => None,
                    };
                }
                let last_new = new.last().filter(|visit| visit.kind == Kind::Page);
                if last_new.is_some() && last_new > last_old.as_ref() {
                    new.pop_last();
                } else if last_old.take().is_some() {
                    old_left -= 1;
                } else {
                    break;
                }
            }
            Ok(())
        })())
    }

    /// Takes in a wave: forgets what was visited, adds what was found, and then forgets the last pages until `left(visited)` are left.
    pub(super) fn apply(
        &self,
        wave: &Recorded,
        waves: u64,
        left: impl Fn(u64) -> u64,
    ) -> Result<(), StoreError> {
        self.told((|| {
            let write = self.db.begin_write()?;
            {
                let (mut pages, mut files) = (write.open_table(PAGES)?, write.open_table(FILES)?);
                let (mut known, mut seeds) = (write.open_table(KNOWN)?, write.open_table(SEEDS)?);
                let mut counts = write.open_table(COUNTS)?;
                let count = |counts: &redb::Table<'_, &str, u64>, name: &str| {
                    Ok::<_, redb::Error>(counts.get(name)?.map_or(0, |count| count.value()))
                };
                let (mut visited, mut sitemaps) = (count(&counts, "visited")?, count(&counts, "sitemaps")?);
                for (visit, claimed) in &wave.visits {
                    known.insert(hash(&visit.url), ())?;
                    if let Some(url) = claimed {
                        known.insert(hash(url), ())?;
                    }
                    if visit.kind == Kind::Page {
                        pages.remove((visit.depth, visit.url.as_str()))?;
                        visited += 1;
                    } else {
                        files.remove((visit.kind as u8, visit.depth, visit.url.as_str()))?;
                    }
                }
                for visit in &wave.found {
                    known.insert(hash(&visit.url), ())?;
                    match visit.kind {
                        Kind::Page => {
                            pages.insert((visit.depth, visit.url.as_str()), ())?;
                            if visit.depth == 0 {
                                seeds.insert(visit.url.as_str(), ())?;
                            }
                        }
                        kind => {
                            files.insert((kind as u8, visit.depth, visit.url.as_str()), ())?;
                            sitemaps += u64::from(kind == Kind::Sitemap);
                        }
                    }
                }
                while pages.len()? > left(visited) {
                    let Some((key, _)) = pages.pop_last()? else { break };
                    known.remove(hash(key.value().1))?;
                }
                counts.insert("visited", visited)?;
                counts.insert("sitemaps", sitemaps)?;
                counts.insert("waves", waves)?;
            }
            write.commit()?;
            Ok(())
        })())
    }
}

/// What is known at one moment.
pub(super) struct Known {
    path: PathBuf,
    table: ReadOnlyTable<u128, ()>,
}

impl Known {
    pub(super) fn has(&self, url: &str) -> Result<bool, StoreError> {
        match self.table.get(hash(url)) {
            Ok(found) => Ok(found.is_some()),
            Err(error) => Err(StoreError { path: self.path.clone(), source: Box::new(error.into()) }),
        }
    }
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known")
    }
}

/// 128 bits of SHA-256: two URLs of a crawl of 10^9 share them with a probability of 10^-21.
fn hash(url: &str) -> u128 {
    let digest = Sha256::digest(url);
    digest[..16].iter().fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}
