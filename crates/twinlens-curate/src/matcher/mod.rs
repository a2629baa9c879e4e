//! Finds all queries that occur in a caption as whole words, overlapping ones included.
//!
//! Queries and captions are converted to the token form of [`crate::text`], in which a query occurs
//! as whole words exactly if it is a substring; substring search is the reference implementation.
//! The search itself walks a trie token by token, so its time does not grow with the number of
//! queries.
//!
//! [`Matcher::cached`] stores the trie in a file, which loads in a tenth of the time of building.

mod cache;
mod trie;

use std::path::Path;

use sha2::{Digest, Sha256};
use twinlens_dataset::storage::local;

use crate::error::{CurateError, Result};
use crate::text::Normalizer;
use trie::Trie;

/// Searches texts for the queries of a list. Shared between threads by reference.
pub struct Matcher {
    trie: Trie,
    normalizer: Normalizer,
}

/// Buffers reused from text to text.
#[derive(Debug, Default)]
pub struct Scratch {
    text: String,
    tokens: Vec<u32>,
}

/// What happened to the cache file of a matcher.
#[derive(Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// The matcher was read from it.
    Loaded,
    /// The matcher was built and saved to it.
    Saved,
    /// The matcher was built; the file could not be written, for this reason.
    NotSaved(String),
}

impl Matcher {
    /// Builds a matcher from `(id, text)` pairs. Queries that are equal after normalisation all
    /// match; a query that normalises to white space matches nothing.
    ///
    /// # Errors
    /// [`CurateError::TooManyQueries`] if the queries need 2^31 nodes or more.
    pub fn build<'a>(
        queries: impl IntoIterator<Item = (i32, &'a str)>,
        normalizer: Normalizer,
    ) -> Result<Self> {
        let tokens = queries.into_iter().map(|(id, text)| (normalizer.tokens(text), id));
        let trie = Trie::build(tokens.filter(|(tokens, _)| !tokens.is_empty()).collect());
        Ok(Self { trie: trie.ok_or(CurateError::TooManyQueries)?, normalizer })
    }

    /// Loads the matcher from the file `path` if it is undamaged and belongs to these queries and
    /// rules; otherwise builds it and writes the file atomically. Failing to write the file is not
    /// an error.
    ///
    /// # Errors
    /// Those of [`Matcher::build`].
    pub fn cached(
        path: &Path,
        queries: &[(i32, String)],
        normalizer: Normalizer,
    ) -> Result<(Self, CacheOutcome)> {
        let key = key(queries, normalizer);
        if let Some(trie) = std::fs::read(path).ok().and_then(|bytes| cache::decode(&bytes, &key)) {
            return Ok((Self { trie, normalizer }, CacheOutcome::Loaded));
        }
        let built = Self::build(queries.iter().map(|(id, text)| (*id, text.as_str())), normalizer)?;
        let outcome = match local::write(path, &cache::encode(&built.trie, &key)) {
            Ok(()) => CacheOutcome::Saved,
            Err(error) => CacheOutcome::NotSaved(error.to_string()),
        };
        Ok((built, outcome))
    }

    /// Replaces `ids` by the ids of the queries that occur in `text`, sorted and distinct.
    pub fn matches_into(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<i32>) {
        let mut tokens = std::mem::take(&mut scratch.text);
        self.normalizer.tokens_into(text, &mut tokens);
        self.matches_in_tokens(&tokens, scratch, ids);
        scratch.text = tokens;
    }

    /// [`matches_into`](Self::matches_into) for a text that is already in token form.
    pub fn matches_in_tokens(&self, tokens: &str, scratch: &mut Scratch, ids: &mut Vec<i32>) {
        ids.clear();
        self.trie.find(tokens, &mut scratch.tokens, ids);
        ids.sort_unstable();
        ids.dedup();
    }

    /// The ids of the queries that occur in `text`, sorted and distinct.
    #[must_use]
    pub fn matches(&self, text: &str) -> Vec<i32> {
        let mut ids = Vec::new();
        self.matches_into(text, &mut Scratch::default(), &mut ids);
        ids
    }

    /// The number of queries that can match.
    #[must_use]
    pub fn len(&self) -> usize {
        self.trie.queries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trie.queries.is_empty()
    }

    /// Heap memory, in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.trie.heap_bytes()
    }
}

/// Identifies a list and its rules.
fn key(queries: &[(i32, String)], normalizer: Normalizer) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(normalizer.version());
    for (id, text) in queries {
        hash.update(id.to_le_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matcher({} queries)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reference implementation: one substring search per query.
    fn naive(queries: &[String], text: &str, normalizer: Normalizer) -> Vec<i32> {
        let text = normalizer.tokens(text);
        let found = queries.iter().enumerate().filter(|(_, query)| {
            let query = normalizer.tokens(query);
            !query.is_empty() && text.contains(&query)
        });
        found.map(|(id, _)| id as i32).collect()
    }

    fn numbered(queries: &[String]) -> Vec<(i32, String)> {
        queries.iter().enumerate().map(|(id, query)| (id as i32, query.clone())).collect()
    }

    fn built(queries: &[String], normalizer: Normalizer) -> Matcher {
        Matcher::build(queries.iter().enumerate().map(|(id, q)| (id as i32, q.as_str())), normalizer).unwrap()
    }

    #[test]
    fn overlapping_and_equal_queries_all_match_once() {
        let list =
            ["new york", "york", "New York City", "the", "city", "City", "柴犬", " ", "犬"].map(String::from);
        let matcher = built(&list, Normalizer::default());
        assert_eq!(matcher.len(), 8);
        assert_eq!(matcher.matches("The city, the CITY: New York City"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(matcher.matches("柴犬"), [6, 8]);
        assert_eq!(matcher.matches("nothing here"), [0; 0]);
        let negative = Matcher::build([(-3, "dog"), (i32::MAX, "dog")], Normalizer::default()).unwrap();
        assert_eq!(negative.matches("a dog"), [-3, i32::MAX]);
    }

    #[test]
    fn punctuation_and_case_do_not_prevent_matches() {
        let list = ["St. Louis", "Yahoo!", "puppy", "dog", "hot dog"].map(String::from);
        let matcher = built(&list, Normalizer::default());
        for (caption, ids) in [
            ("The Arch in St. Louis", &[0][..]),
            ("(puppy)", &[2]),
            ("Dog", &[3]),
            ("Hot  dog at Yahoo!", &[1, 3, 4]),
        ] {
            assert_eq!(matcher.matches(caption), ids, "{caption}");
        }
        let cased = built(&list, Normalizer { fold_case: false });
        assert_eq!(cased.matches("Dog, st. louis, puppy"), [2]);
    }

    #[test]
    fn an_empty_list_matches_nothing() {
        let matcher = built(&[], Normalizer::default());
        assert!(matcher.is_empty());
        assert_eq!(matcher.matches("anything"), [0; 0]);
    }

    #[test]
    fn a_cache_file_serves_only_its_own_list_and_rules() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.matcher");
        let list = numbered(&["dog", "hot dog", "st. louis"].map(String::from));
        let cached = |list: &[_], fold_case| {
            let (matcher, outcome) = Matcher::cached(&path, list, Normalizer { fold_case }).unwrap();
            assert_eq!(matcher.matches("a hot dog").len(), 2, "{outcome:?}");
            outcome
        };
        assert_eq!(cached(&list, true), CacheOutcome::Saved);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(cached(&list, true), CacheOutcome::Loaded);
        assert_eq!(cached(&list, false), CacheOutcome::Saved);
        assert_eq!(cached(&list[..2], false), CacheOutcome::Saved);
        assert_eq!(cached(&list, true), CacheOutcome::Saved);
        assert!(std::fs::read(&path).unwrap() == bytes, "the same list gives the same file");
        // If the file cannot be written, the matcher is still built.
        let below_a_file = path.join("cache");
        let (matcher, outcome) = Matcher::cached(&below_a_file, &list, Normalizer::default()).unwrap();
        assert!(matches!(outcome, CacheOutcome::NotSaved(_)) && matcher.len() == 3);
    }

    #[test]
    fn damaged_files_are_refused() {
        let list = numbered(&["a", "a b", "c d e", "柴犬"].map(String::from));
        let (key, built) = (key(&list, Normalizer::default()), Trie::build(patterns(&list)).unwrap());
        let bytes = cache::encode(&built, &key);
        assert_eq!(cache::decode(&bytes, &key), Some(built));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_eq!(cache::decode(&damaged, &key), None, "byte {at}");
            assert_eq!(cache::decode(&bytes[..at], &key), None, "cut at {at}");
        }
        assert_eq!(cache::decode(&[], &key), None);
    }

    fn patterns(list: &[(i32, String)]) -> Vec<(String, i32)> {
        list.iter().map(|(id, text)| (Normalizer::default().tokens(text), *id)).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_substring_search(
            list in prop::collection::vec("[abAé犬ก.! ]{0,5}", 0..24),
            text in "[abAé犬กำ.! ]{0,40}",
            fold_case: bool,
        ) {
            let normalizer = Normalizer { fold_case };
            let matcher = built(&list, normalizer);
            prop_assert_eq!(matcher.matches(&text), naive(&list, &text, normalizer));
            let key = [7; 32];
            prop_assert_eq!(cache::decode(&cache::encode(&matcher.trie, &key), &key), Some(matcher.trie));
        }

        /// Arrays that pass the check can be searched without panicking or looping, even if wrong
        /// (a checksum can be forged).
        #[test]
        fn checked_arrays_can_be_searched(array in 0usize..5, at: usize, value in prop_oneof![0u32..40, any::<u32>()]) {
            let list = numbered(&["a", "a b", "b a a", "c"].map(String::from));
            let mut trie = Trie::build(patterns(&list)).unwrap();
            let words = [&mut trie.starts, &mut trie.slots, &mut trie.nodes, &mut trie.queries, &mut trie.edges];
            let array = words.into_iter().nth(array).unwrap();
            let at = at % array.len();
            array[at] = value;
            if trie.check() {
                trie.find(" a b a a c b d ", &mut Vec::new(), &mut Vec::new());
            }
        }
    }
}
