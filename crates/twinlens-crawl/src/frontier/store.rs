//! The frontier on disk: an embedded store that orders waiting pages and looks up known URLs, so
//! that memory does not grow with the number of URLs.
//!
//! It is an index over the records of committed waves, and knows how many of them it contains:
//! after a kill it lacks the last ones, and a damaged store is rebuilt from all of them. So it need
//! not be written after each wave: URLs arrive in random order, and each would cost the write of a
//! tree page. [`Changes`] are buffered in bounded memory and written in tree order.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};
use sha2::{Digest, Sha256};

use super::changes::{Changes, PageKey, merge};
use super::visit::{Visit, VisitKind, WaveRecord};

/// Waiting pages: depth and URL, in crawl order.
const PAGES: TableDefinition<'_, (u32, &str), ()> = TableDefinition::new("pages");
/// Other waiting files: kind, depth and URL.
const FILES: TableDefinition<'_, (u8, u32, &str), ()> = TableDefinition::new("files");
/// Known URLs, waiting or visited: 128 bits of their hash.
const KNOWN: TableDefinition<'_, u128, ()> = TableDefinition::new("known");
/// Seeds and their redirect targets, which extend the scope.
const SEEDS: TableDefinition<'_, &str, ()> = TableDefinition::new("seeds");
/// The [`Counts`].
const COUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("counts");

/// Cache of the store, in bytes.
const CACHE: usize = 64 << 20;
/// Bytes of changes that are buffered before they are written.
const MAX_PENDING: usize = 32 << 20;

/// The store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct StoreError {
    path: PathBuf,
    source: Box<redb::Error>,
}

/// Progress of a crawl.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waves applied; `None` before the seeds were added.
    pub waves: Option<u64>,
    /// Visited pages.
    pub visited: u64,
    /// Known sitemaps.
    pub sitemaps: u64,
    /// Waiting pages.
    pub waiting: u64,
}

/// The store and the changes not written to it yet.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    db: Database,
    written: StoredTables,
    changes: Changes,
    /// Bytes of changes that are buffered before they are written.
    max_pending: usize,
    counts: Counts,
}

/// Snapshots of the tables as last written.
struct StoredTables {
    pages: ReadOnlyTable<(u32, &'static str), ()>,
    known: ReadOnlyTable<u128, ()>,
}

impl std::fmt::Debug for StoredTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredTables")
    }
}

impl StoredTables {
    fn open(db: &Database) -> Result<Self, redb::Error> {
        let read = db.begin_read()?;
        Ok(Self { pages: read.open_table(PAGES)?, known: read.open_table(KNOWN)? })
    }
}

impl Store {
    /// Opens or creates a store. A store that cannot be opened is replaced by an empty one.
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
        Self::from_database(path, db, MAX_PENDING)
    }

    /// A store in memory.
    #[cfg(test)]
    pub(super) fn in_memory(max_pending: usize) -> Result<Self, StoreError> {
        let path = Path::new("memory");
        match redb::Builder::new().create_with_backend(redb::backends::InMemoryBackend::new()) {
            Ok(db) => Self::from_database(path, db, max_pending),
            Err(error) => Err(StoreError { path: path.into(), source: Box::new(error.into()) }),
        }
    }

    fn from_database(path: &Path, db: Database, max_pending: usize) -> Result<Self, StoreError> {
        let opened = (|| {
            let write = db.begin_write()?;
            let (mut changes, mut counts) = (Changes::default(), Counts::default());
            {
                write.open_table(KNOWN)?;
                let numbers = write.open_table(COUNTS)?;
                let number =
                    |name: &str| Ok::<_, redb::Error>(numbers.get(name)?.map(|number| number.value()));
                counts.waves = number("waves")?;
                counts.visited = number("visited")?.unwrap_or(0);
                counts.sitemaps = number("sitemaps")?.unwrap_or(0);
                counts.waiting = write.open_table(PAGES)?.len()?;
                for entry in write.open_table(FILES)?.iter()? {
                    let (key, _) = entry?;
                    let (kind, depth, url) = key.value();
                    changes.files.insert(Visit {
                        kind: VisitKind::from_number(kind),
                        depth,
                        url: url.into(),
                    });
                }
                for entry in write.open_table(SEEDS)?.iter()? {
                    changes.seeds.insert(entry?.0.value().into());
                }
            }
            write.commit()?;
            Ok::<_, redb::Error>((StoredTables::open(&db)?, changes, counts))
        })();
        match opened {
            Ok((written, changes, counts)) => {
                Ok(Self { path: path.into(), db, written, changes, max_pending, counts })
            }
            Err(source) => Err(StoreError { path: path.into(), source: Box::new(source) }),
        }
    }

    fn with_path<T>(&self, result: Result<T, redb::Error>) -> Result<T, StoreError> {
        result.map_err(|source| StoreError { path: self.path.clone(), source: Box::new(source) })
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn seeds(&self) -> impl Iterator<Item = &String> {
        self.changes.seeds.iter()
    }

    /// The first waiting files, all of one kind, at most `count(kind)`.
    pub(super) fn first_files(&self, count: impl Fn(VisitKind) -> usize) -> Vec<Visit> {
        let Some(kind) = self.changes.files.first().map(|visit| visit.kind) else { return Vec::new() };
        let same = self.changes.files.iter().take_while(|visit| visit.kind == kind);
        same.take(count(kind)).cloned().collect()
    }

    /// The first waiting pages.
    pub(super) fn first_pages(&self, count: usize) -> Result<Vec<Visit>, StoreError> {
        let first = self.pages().and_then(|written| {
            let new = self.changes.pages.iter().cloned();
            merge(written, new, |one, other| one < other).take(count).collect::<Result<Vec<_>, _>>()
        });
        Ok(self
            .with_path(first)?
            .into_iter()
            .map(|(depth, url)| Visit { kind: VisitKind::Page, depth, url })
            .collect())
    }

    /// The waiting pages, the last first.
    fn last_pages(&self) -> Result<impl Iterator<Item = Result<PageKey, redb::Error>>, redb::Error> {
        let new = self.changes.pages.iter().rev().cloned();
        Ok(merge(self.pages()?.rev(), new, |one, other| one > other))
    }

    /// The pages in the store that still wait.
    fn pages(
        &self,
    ) -> Result<impl DoubleEndedIterator<Item = Result<PageKey, redb::Error>> + use<>, redb::Error> {
        fn outside(key: &Option<PageKey>) -> Bound<(u32, &str)> {
            key.as_ref().map_or(Bound::Unbounded, |(depth, url)| Bound::Excluded((*depth, url.as_str())))
        }
        let range = (outside(&self.changes.visited_to), outside(&self.changes.dropped_from));
        Ok(self.written.pages.range::<(u32, &str)>(range)?.map(|entry| {
            let (key, _) = entry?;
            let (depth, url) = key.value();
            Ok((depth, url.to_string()))
        }))
    }

    /// Whether a URL is waiting or was visited.
    pub(super) fn knows(&self, url: &str) -> Result<bool, StoreError> {
        let hash = hash(url);
        match self.changes.known.get(&hash) {
            Some(known) => Ok(*known),
            None => {
                self.with_path(self.written.known.get(hash).map(|found| found.is_some()).map_err(Into::into))
            }
        }
    }

    /// Removes from `new` the pages that are among the last `beyond` of `new` and the waiting
    /// pages, where the first `taken` waiting pages do not count.
    pub(super) fn trim_new(
        &self,
        new: &mut BTreeSet<Visit>,
        beyond: u64,
        taken: u64,
    ) -> Result<(), StoreError> {
        let trimmed = (|| {
            let old = usize::try_from(self.counts.waiting.saturating_sub(taken)).unwrap_or(usize::MAX);
            let mut old = self.last_pages()?.take(old);
            let mut last_old = None;
            for _ in 0..beyond {
                if last_old.is_none() {
                    let next = old.next().transpose()?;
                    last_old = next.map(|(depth, url)| Visit { kind: VisitKind::Page, depth, url });
                }
                let last_new = new.last().filter(|visit| visit.kind == VisitKind::Page);
                if last_new.is_some() && last_new > last_old.as_ref() {
                    new.pop_last();
                } else if last_old.take().is_none() {
                    break;
                }
            }
            Ok(())
        })();
        self.with_path(trimmed)
    }

    /// Applies a wave: removes what was visited, adds what was found, and then drops the last pages
    /// until `left(visited)` remain.
    pub(super) fn apply(
        &mut self,
        wave: &WaveRecord,
        waves: u64,
        left: impl Fn(u64) -> u64,
    ) -> Result<(), StoreError> {
        let mut counts = self.counts;
        for (visit, claimed) in &wave.visits {
            self.changes.mark_known(hash(&visit.url));
            if let Some(url) = claimed {
                self.changes.mark_known(hash(url));
            }
            if visit.kind == VisitKind::Page {
                counts.waiting -= u64::from(self.changes.mark_visited((visit.depth, visit.url.clone())));
                counts.visited += 1;
            } else {
                self.changes.files.remove(visit);
            }
        }
        for visit in &wave.found {
            self.changes.mark_known(hash(&visit.url));
            if visit.kind == VisitKind::Page {
                counts.waiting += u64::from(self.changes.add_waiting((visit.depth, visit.url.clone())));
                if visit.depth == 0 {
                    self.changes.seeds.insert(visit.url.clone());
                }
            } else {
                self.changes.files.insert(visit.clone());
                counts.sitemaps += u64::from(visit.kind == VisitKind::Sitemap);
            }
        }
        let beyond = usize::try_from(counts.waiting.saturating_sub(left(counts.visited)));
        let last = self.last_pages().and_then(|last| last.take(beyond.unwrap_or(usize::MAX)).collect());
        let last: Vec<PageKey> = self.with_path(last)?;
        counts.waiting -= last.len() as u64;
        for key in last {
            self.changes.drop_last(hash(&key.1), key);
        }
        counts.waves = Some(waves);
        self.counts = counts;
        if self.changes.bytes > self.max_pending { self.save() } else { Ok(()) }
    }

    /// Writes the buffered changes durably.
    pub(super) fn save(&mut self) -> Result<(), StoreError> {
        let saved = self.write().and_then(|()| StoredTables::open(&self.db));
        self.written = self.with_path(saved)?;
        self.changes.clear_written();
        Ok(())
    }

    fn write(&self) -> Result<(), redb::Error> {
        let write = self.db.begin_write()?;
        {
            let (changes, mut pages) = (&self.changes, write.open_table(PAGES)?);
            if let Some((depth, url)) = &changes.visited_to {
                pages.retain_in(..=(*depth, url.as_str()), |_, ()| false)?;
            }
            if let Some((depth, url)) = &changes.dropped_from {
                pages.retain_in((*depth, url.as_str()).., |_, ()| false)?;
            }
            for (depth, url) in &changes.pages {
                pages.insert((*depth, url.as_str()), ())?;
            }
            let mut hashes: Vec<_> = changes.known.iter().collect();
            hashes.sort_unstable();
            let mut known = write.open_table(KNOWN)?;
            for (hash, is_known) in hashes {
                if *is_known {
                    known.insert(hash, ())?;
                } else {
                    known.remove(hash)?;
                }
            }
            let mut files = write.open_table(FILES)?;
            files.retain(|_, ()| false)?;
            for Visit { kind, depth, url } in &changes.files {
                files.insert((*kind as u8, *depth, url.as_str()), ())?;
            }
            let mut seeds = write.open_table(SEEDS)?;
            for seed in &changes.seeds {
                seeds.insert(seed.as_str(), ())?;
            }
            let mut numbers = write.open_table(COUNTS)?;
            numbers.insert("visited", self.counts.visited)?;
            numbers.insert("sitemaps", self.counts.sitemaps)?;
            numbers.insert("waves", self.counts.waves.unwrap_or(0))?;
        }
        Ok(write.commit()?)
    }
}

/// 128 bits of SHA-256: two URLs of a crawl of 10^9 share them with a probability of 10^-21.
fn hash(url: &str) -> u128 {
    let digest = Sha256::digest(url);
    digest[..16].iter().fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}
