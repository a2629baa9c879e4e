//! Changes since the store was last written.

use std::collections::{BTreeSet, HashMap};
use std::iter::Peekable;

use super::visit::Visit;

/// A waiting page: depth and URL.
pub(super) type PageKey = (u32, String);

/// Changes in memory. Pages leave the queue only at its ends: visited pages are always the first,
/// and dropped pages the last. So two keys describe which pages of the store still wait.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Waiting pages that are not in the store.
    pub(super) pages: BTreeSet<PageKey>,
    /// Pages of the store up to this one were visited.
    pub(super) visited_to: Option<PageKey>,
    /// Pages of the store from this one on were dropped.
    pub(super) dropped_from: Option<PageKey>,
    /// Hashes of URLs that became known (`true`) or unknown.
    pub(super) known: HashMap<u128, bool>,
    /// All waiting files other than pages, including those in the store: they are few.
    pub(super) files: BTreeSet<Visit>,
    /// All seeds and their redirect targets; their hosts are in memory anyway.
    pub(super) seeds: BTreeSet<String>,
    /// Approximate memory, in bytes.
    pub(super) bytes: usize,
}

/// Approximate bytes of an entry of `known`.
const HASH_BYTES: usize = 64;
/// Approximate bytes of an entry of `pages` without its URL.
const PAGE_BYTES: usize = 64;

impl Changes {
    pub(super) fn mark_known(&mut self, hash: u128) {
        if self.known.insert(hash, true).is_none() {
            self.bytes += HASH_BYTES;
        }
    }

    /// Adds a waiting page; returns whether it is new.
    pub(super) fn add_waiting(&mut self, page: PageKey) -> bool {
        let bytes = PAGE_BYTES + page.1.len();
        let new = self.pages.insert(page);
        self.bytes += if new { bytes } else { 0 };
        new
    }

    fn remove(&mut self, page: &PageKey) -> bool {
        let found = self.pages.remove(page);
        self.bytes -= if found { PAGE_BYTES + page.1.len() } else { 0 };
        found
    }

    /// Removes the first waiting page; returns whether it was waiting.
    pub(super) fn mark_visited(&mut self, page: PageKey) -> bool {
        if self.remove(&page) {
            return true;
        }
        let after = self.visited_to.as_ref().is_none_or(|last| *last < page);
        if after {
            self.visited_to = Some(page);
        }
        after
    }

    /// Drops the last waiting page, as if it had never been found.
    pub(super) fn drop_last(&mut self, hash: u128, page: PageKey) {
        if self.known.insert(hash, false).is_none() {
            self.bytes += HASH_BYTES;
        }
        if !self.remove(&page) {
            self.dropped_from = Some(page);
        }
    }

    /// Clears what is now in the store.
    pub(super) fn clear_written(&mut self) {
        let (files, seeds) = (std::mem::take(&mut self.files), std::mem::take(&mut self.seeds));
        *self = Self { files, seeds, ..Self::default() };
    }
}

/// Merges two ordered iterators; `before` says which of two items comes first.
pub(super) fn merge<T, E>(
    one: impl Iterator<Item = Result<T, E>>,
    other: impl Iterator<Item = T>,
    before: impl Fn(&T, &T) -> bool,
) -> impl Iterator<Item = Result<T, E>> {
    Merge { one: one.peekable(), other: other.peekable(), before }
}

struct Merge<A: Iterator, B: Iterator, F> {
    one: Peekable<A>,
    other: Peekable<B>,
    before: F,
}

impl<T, E, A, B, F> Iterator for Merge<A, B, F>
where
    A: Iterator<Item = Result<T, E>>,
    B: Iterator<Item = T>,
    F: Fn(&T, &T) -> bool,
{
    type Item = Result<T, E>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.one.peek(), self.other.peek()) {
            (Some(Ok(one)), Some(other)) if (self.before)(other, one) => self.other.next().map(Ok),
            (None, _) => self.other.next().map(Ok),
            _ => self.one.next(),
        }
    }
}
