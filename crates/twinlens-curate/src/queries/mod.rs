//! The query list: what the captions of a dataset are matched against.
//!
//! The recipe is CLIP's (Radford et al. 2021, section 2.2): frequent words of an encyclopaedia,
//! word pairs with high pointwise mutual information, titles of frequently viewed articles, and the
//! names of WordNet synsets that are not among them, in this order; MetaCLIP (Xu et al. 2023) puts
//! number strings and synsets first. Of entries with the same token form (see [`crate::text`]) the
//! first is kept. Entries without a letter or digit are dropped. An entry's id is its index, so the
//! same sources give the same ids.

mod counter;
mod dump;
mod listed;
mod open;
mod pageviews;
mod sources;
mod wikitext;
mod words;

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use counter::{Counter, Merge};
pub use dump::{Page, read_dump};
pub use listed::{is_list_file, read_list_file};
pub use pageviews::{Views, only_articles, read_views};
pub use sources::{read_bigrams, read_counts, read_titles, read_wordnet};
pub use wikitext::{Namespaces, plain_text};
pub use words::{FrequentTerms, Thresholds, WordCounter, mutual_information};

use crate::text::Normalizer;

/// The kind of source of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// One of the strings "0", "1", ...
    Number,
    /// The first lemma of a WordNet synset.
    Synset,
    /// A word, scored by its count.
    Unigram,
    /// Two words, scored by their pointwise mutual information in bits.
    Bigram,
    /// The title of an article.
    Title,
}

impl Origin {
    /// All origins in the order of the paper; numbers, which it does not mention, come first.
    pub const ALL: [Self; 5] = [Self::Number, Self::Unigram, Self::Bigram, Self::Title, Self::Synset];

    /// The name in the `origin` column.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Synset => "synset",
            Self::Unigram => "unigram",
            Self::Bigram => "bigram",
            Self::Title => "title",
        }
    }
}

/// One entry; its id is its index in [`QueryList::entries`].
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// In the form of [`Normalizer::display`].
    pub text: String,
    /// The first source that has it.
    pub origin: Origin,
    /// Count (unigram), mutual information in bits (bigram) or views (title, if known); none for
    /// other origins.
    pub score: Option<f32>,
}

/// Counts of the entries that one origin offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Added to the list.
    pub added: u64,
    /// Already in the list.
    pub known: u64,
    /// Dropped: no letter or digit.
    pub without_words: u64,
    /// Dropped: the list was full.
    pub over_limit: u64,
}

/// A list under construction. Entries get ids in the order of adding.
#[derive(Debug)]
pub struct QueryList {
    normalizer: Normalizer,
    limit: usize,
    entries: Vec<Entry>,
    seen: HashSet<String>,
    tallies: [Tally; 5],
}

impl QueryList {
    /// An empty list that takes at most `limit` entries.
    #[must_use]
    pub fn new(normalizer: Normalizer, limit: usize) -> Self {
        Self { normalizer, limit, entries: Vec::new(), seen: HashSet::new(), tallies: Default::default() }
    }

    /// Adds an entry, unless it is already in the list, has no letter or digit, or the list is
    /// full.
    pub fn add(&mut self, origin: Origin, text: &str, score: Option<f32>) {
        let tally = &mut self.tallies[origin as usize];
        let display = self.normalizer.display(text);
        if !display.chars().any(char::is_alphanumeric) {
            tally.without_words += 1;
            return;
        }
        let tokens = self.normalizer.tokens(&display);
        if self.seen.contains(&tokens) {
            tally.known += 1;
        } else if self.entries.len() >= self.limit {
            tally.over_limit += 1;
        } else {
            self.seen.insert(tokens);
            self.entries.push(Entry { text: display, origin, score });
            tally.added += 1;
        }
    }

    /// Adds scored entries, best first (ties by text), so that a full list lacks the worst of them.
    pub fn add_scored(&mut self, origin: Origin, mut entries: Vec<(String, f32)>) {
        entries.sort_by(|(a_text, a), (b_text, b)| b.total_cmp(a).then_with(|| a_text.cmp(b_text)));
        for (text, score) in entries {
            self.add(origin, &text, Some(score));
        }
    }

    /// Adds the number strings "0", "1", ... below `end`.
    pub fn add_numbers(&mut self, end: u32) {
        for number in 0..end {
            self.add(Origin::Number, &number.to_string(), None);
        }
    }

    /// The entries; the id of each is its index.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The counts of one origin.
    #[must_use]
    pub fn tally(&self, origin: Origin) -> Tally {
        self.tallies[origin as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_entries_is_kept_and_ids_follow_the_order() {
        let mut list = QueryList::new(Normalizer::default(), 7);
        list.add_numbers(2);
        for name in ["St. Louis", "dog", "***"] {
            list.add(Origin::Synset, name, None);
        }
        list.add_scored(
            Origin::Unigram,
            vec![("a".into(), 1.0), ("b".into(), 1.0), ("DOG".into(), 9.0), ("c".into(), 2.0)],
        );
        list.add(Origin::Title, "st . louis", None);
        list.add(Origin::Title, "over the limit", None);
        let texts: Vec<_> =
            list.entries().iter().map(|e| (e.text.as_str(), e.origin.name(), e.score)).collect();
        assert_eq!(
            texts,
            [
                ("0", "number", None),
                ("1", "number", None),
                ("st. louis", "synset", None),
                ("dog", "synset", None),
                ("c", "unigram", Some(2.0)),
                ("a", "unigram", Some(1.0)),
                ("b", "unigram", Some(1.0)),
            ]
        );
        assert_eq!(list.tally(Origin::Synset), Tally { added: 2, without_words: 1, ..Tally::default() });
        assert_eq!(list.tally(Origin::Title), Tally { known: 1, over_limit: 1, ..Tally::default() });
    }
}
