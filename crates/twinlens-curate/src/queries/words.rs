//! Counts words and pairs of adjacent words in running text.
//!
//! A word is a token of [`crate::text`] with a letter or digit, including a contraction ("don't");
//! an English possessive is cut off ("dog's" counts as "dog"). Two words are a pair if only white
//! space separates them.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use super::counter::Counter;
use crate::text::Normalizer;

/// Counts the words and pairs of a corpus.
#[derive(Debug)]
pub struct WordCounter {
    normalizer: Normalizer,
    words: Counter,
    pairs: Counter,
    total: u64,
    tokens: String,
    pair: String,
}

/// The frequent words and pairs of a corpus.
#[derive(Debug, Default, PartialEq)]
pub struct FrequentTerms {
    /// With counts.
    pub words: Vec<(String, u64)>,
    /// With pointwise mutual information in bits.
    pub pairs: Vec<(String, f64)>,
    /// Words in the corpus.
    pub total: u64,
}

/// Minimums for words and pairs to become entries.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Count of a word.
    pub min_count: u64,
    /// Count of a pair.
    pub min_pair_count: u64,
    /// Pointwise mutual information of a pair, in bits.
    pub min_pmi: f64,
}

impl WordCounter {
    /// Counts in about `memory` bytes, spilling to files in `folder`.
    #[must_use]
    pub fn new(normalizer: Normalizer, memory: usize, folder: PathBuf) -> Self {
        Self {
            normalizer,
            words: Counter::new(memory / 4, folder.clone()),
            pairs: Counter::new(memory / 4 * 3, folder),
            total: 0,
            tokens: String::new(),
            pair: String::new(),
        }
    }

    /// Counts the words of a text; pairs do not span lines.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn add(&mut self, text: &str) -> io::Result<()> {
        text.lines().try_for_each(|line| self.add_line(line))
    }

    fn add_line(&mut self, line: &str) -> io::Result<()> {
        let mut text = std::mem::take(&mut self.tokens);
        self.normalizer.tokens_into(line, &mut text);
        let mut tokens = text.split_ascii_whitespace().peekable();
        // The previous word, and a buffer for contractions.
        let (mut before, mut joined): (Option<String>, String) = (None, String::new());
        while let Some(token) = tokens.next() {
            if !token.contains(char::is_alphanumeric) {
                before = None;
                continue;
            }
            joined.clear();
            joined.push_str(token);
            let mut possessive = false;
            if tokens.peek() == Some(&"'") {
                let mut ahead = tokens.clone();
                ahead.next();
                match ahead.next() {
                    Some("s") => possessive = true,
                    Some(end @ ("t" | "re" | "ve" | "ll" | "d" | "m")) => {
                        joined.push('\'');
                        joined.push_str(end);
                    }
                    _ => ahead = tokens.clone(),
                }
                tokens = ahead;
            }
            self.words.add(&joined, 1)?;
            self.total += 1;
            if let Some(before) = &before {
                self.pair.clear();
                self.pair.push_str(before);
                self.pair.push(' ');
                self.pair.push_str(&joined);
                self.pairs.add(&self.pair, 1)?;
            }
            before = (!possessive).then(|| joined.clone());
        }
        self.tokens = text;
        Ok(())
    }

    /// The words and pairs above the thresholds.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn finish(self, least: Thresholds) -> io::Result<FrequentTerms> {
        // A word of a frequent pair is at least as frequent.
        let kept = least.min_count.min(least.min_pair_count);
        let words = self.words.finish()?.filter(|word| !matches!(word, Ok((_, count)) if *count < kept));
        let words: HashMap<String, u64> = words.collect::<io::Result<_>>()?;
        let mut pairs = Vec::new();
        for pair in self.pairs.finish()? {
            let (pair, count) = pair?;
            if count < least.min_pair_count {
                continue;
            }
            let Some((first, second)) = pair.split_once(' ') else { continue };
            let count_of = |word: &str| words.get(word).copied().unwrap_or(0);
            let pmi = mutual_information(count, count_of(first), count_of(second), self.total);
            if let Some(pmi) = pmi.filter(|pmi| *pmi >= least.min_pmi) {
                pairs.push((pair, pmi));
            }
        }
        let mut words: Vec<_> = words.into_iter().filter(|(_, count)| *count >= least.min_count).collect();
        words.sort_unstable();
        Ok(FrequentTerms { words, pairs, total: self.total })
    }
}

/// The pointwise mutual information of a pair of words, in bits: log2(c(a,b) * N / (c(a) * c(b))),
/// with N the sum of all word counts. `None` if one of the words has no count.
#[must_use]
pub fn mutual_information(pair: u64, first: u64, second: u64, total: u64) -> Option<f64> {
    let counted = pair > 0 && first > 0 && second > 0;
    counted.then(|| {
        (pair as f64).log2() + (total as f64).log2() - (first as f64).log2() - (second as f64).log2()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequent(text: &str, memory: usize, least: Thresholds) -> FrequentTerms {
        let folder = tempfile::tempdir().unwrap();
        let mut counter = WordCounter::new(Normalizer::default(), memory, folder.path().into());
        counter.add(text).unwrap();
        counter.finish(least).unwrap()
    }

    #[test]
    fn words_and_pairs_are_counted() {
        let all = Thresholds { min_count: 1, min_pair_count: 1, min_pmi: -99.0 };
        let found = frequent("The dog's bone. Don't the DOG\nsleep (now)? It's 柴犬", 1 << 20, all);
        let words: Vec<_> = found.words.iter().map(|(word, count)| format!("{word} {count}")).collect();
        assert_eq!(
            words,
            ["bone 1", "dog 2", "don't 1", "it 1", "now 1", "sleep 1", "the 2", "柴 1", "犬 1"]
        );
        let pairs: Vec<_> = found.pairs.iter().map(|(pair, _)| pair.as_str()).collect();
        assert_eq!(pairs, ["don't the", "the dog", "柴 犬"]);
        assert_eq!(found.total, 11);
    }

    #[test]
    fn thresholds_apply_and_memory_does_not_change_the_result() {
        let text = "new york is new york. the new the york the the\n".repeat(20);
        let least = Thresholds { min_count: 60, min_pair_count: 21, min_pmi: 1.0 };
        let found = frequent(&text, 1 << 20, least);
        // Of 220 words 60 are "new" and 60 are "york", 40 pairs: log2(40 * 220 / (60 * 60)) = 1.29.
        assert_eq!(found.words, [("new".into(), 60), ("the".into(), 80), ("york".into(), 60)]);
        assert_eq!(found.pairs.len(), 1);
        assert_eq!(found.pairs[0].0, "new york");
        assert!((found.pairs[0].1 - (40.0f64 * 220.0 / 3600.0).log2()).abs() < 1e-9, "{found:?}");
        assert_eq!(frequent(&text, 100, least), found);
    }

    #[test]
    fn mutual_information_is_the_formula() {
        // c(a,b) N / (c(a) c(b)) = 8 * 1024 / (16 * 32) = 16.
        assert!((mutual_information(8, 16, 32, 1024).unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(mutual_information(8, 0, 32, 1024), None);
        assert!(mutual_information(u64::MAX, u64::MAX, u64::MAX, u64::MAX).unwrap().abs() < 1e-9);
    }
}
