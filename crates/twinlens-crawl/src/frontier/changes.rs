//! What waves have changed since the store was last written.

use std::collections::{BTreeSet, HashMap};
use std::iter::Peekable;

use super::Visit;

/// A page that waits: depth and URL.
pub(super) type Key = (u32, String);

/// Changes, in memory. Pages leave the queue at its two ends alone: those that are visited are
/// always its first, and those that are forgotten its last. So of the pages in the store it is
/// enough to know from where to where they still wait.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Pages that wait and are not in the store.
    pub(super) pages: BTreeSet<Key>,
    /// The pages of the store up to this one were visited.
    pub(super) visited_to: Option<Key>,
    /// The pages of the store from this one on are forgotten.
    pub(super) forgotten_from: Option<Key>,
    /// Hashes of URLs that became known, or (`false`) are no more.
    pub(super) known: HashMap<u128, bool>,
    /// All other files that wait, in the store or not: they are few.
    pub(super) files: BTreeSet<Visit>,
    /// All places to which seeds redirected: hosts in scope, which are in memory anyway.
    pub(super) seeds: BTreeSet<String>,
    /// Bytes of memory, about.
    pub(super) bytes: usize,
}

/// What an entry of `known` takes, in bytes, about.
const HASH: usize = 64;
/// What an entry of `pages` takes beside its URL.
const PAGE: usize = 64;

impl Changes {
    /// A URL is known.
    pub(super) fn know(&mut self, hash: u128) {
        if self.known.insert(hash, true).is_none() {
            self.bytes += HASH;
        }
    }

    /// A page waits; returns whether it did not before.
    pub(super) fn wait(&mut self, page: Key) -> bool {
        let bytes = PAGE + page.1.len();
        let new = self.pages.insert(page);
        self.bytes += if new { bytes } else { 0 };
        new
    }

    fn remove(&mut self, page: &Key) -> bool {
        let there = self.pages.remove(page);
        self.bytes -= if there { PAGE + page.1.len() } else { 0 };
        there
    }

    /// The first page that waits was visited; returns whether it waited.
    pub(super) fn visited(&mut self, page: Key) -> bool {
        if self.remove(&page) {
            return true;
        }
        let after = self.visited_to.as_ref().is_none_or(|last| *last < page);
        if after {
            self.visited_to = Some(page);
        }
        after
    }

    /// The last page that waits is forgotten: it is as if it had never been found.
    pub(super) fn forget(&mut self, hash: u128, page: Key) {
        if self.known.insert(hash, false).is_none() {
            self.bytes += HASH;
        }
        if !self.remove(&page) {
            self.forgotten_from = Some(page);
        }
    }

    /// All this is in the store now.
    pub(super) fn written(&mut self) {
        let (files, seeds) = (std::mem::take(&mut self.files), std::mem::take(&mut self.seeds));
        *self = Self { files, seeds, ..Self::default() };
    }
}

/// Two ordered lists as one; `before` says which of two items comes first.
pub(super) fn merged<T, E>(
    one: impl Iterator<Item = Result<T, E>>,
    other: impl Iterator<Item = T>,
    before: impl Fn(&T, &T) -> bool,
) -> impl Iterator<Item = Result<T, E>> {
    Merged { one: one.peekable(), other: other.peekable(), before }
}

struct Merged<A: Iterator, B: Iterator, F> {
    one: Peekable<A>,
    other: Peekable<B>,
    before: F,
}

impl<T, E, A, B, F> Iterator for Merged<A, B, F>
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
