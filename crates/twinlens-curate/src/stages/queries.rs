//! `queries`: builds a query list from word counts, WordNet and titles.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray};
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, RunContext, RunError, Stage, StageKind,
    Tables, Whole, Work,
};

use crate::error::{CurateError, Result as CurateResult};
use crate::queries::{
    Origin, QueryList, mutual_information, read_bigrams, read_counts, read_titles, read_wordnet,
};
use crate::text::Normalizer;

/// A query list from number strings, WordNet, word counts, word pairs and titles, in this order, each entry once.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queries {
    /// The most entries. When the list is full, what comes last in the order is left out, and of words and pairs those
    /// with the lowest score.
    #[serde(default = "half_a_million")]
    limit: Located<u32>,
    /// The numbers from 0 to below this are entries.
    #[serde(default = "hundred")]
    numbers: u32,
    /// A folder with WordNet's `data.noun`, `data.verb`, `data.adj`, `data.adv`: the first lemma of each synset is an entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    wordnet: Option<Located<String>>,
    /// Files of words with their counts; those that occur often are entries, scored by their count. A word that several
    /// files have is taken from the first.
    #[serde(default)]
    unigrams: Vec<Unigrams>,
    /// Files of word pairs with their counts; those that belong together are entries, scored by their mutual information.
    #[serde(default)]
    bigrams: Vec<Bigrams>,
    /// Files of titles, one a line: all are entries.
    #[serde(default)]
    titles: Vec<Located<String>>,
    /// Whether "Dog" and "dog" are one entry.
    #[serde(default = "yes")]
    fold_case: bool,
}

/// Words and how often they occur.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unigrams {
    /// A text file of lines `word<TAB>count` or `word count`.
    path: Located<String>,
    /// The count from which on a word is an entry.
    #[serde(default = "hundred_times")]
    min_count: u64,
}

/// Pairs of words, how often they occur, and how often each word does.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bigrams {
    /// A text file of lines `first second<TAB>count` or `first second count`.
    path: Located<String>,
    /// A text file of lines `word count` from the same texts. Pairs with a word that it lacks are left out.
    words: Located<String>,
    /// The pointwise mutual information, in bits, from which on a pair is an entry: log2(c(a,b) N / (c(a) c(b))), N being
    /// the sum of the word counts.
    min_pmi: f64,
}

fn half_a_million() -> Located<u32> {
    Located::nowhere(500_000)
}

fn hundred() -> u32 {
    100
}

fn hundred_times() -> u64 {
    100
}

fn yes() -> bool {
    true
}

const WORDNET_FILES: [&str; 4] = ["data.noun", "data.verb", "data.adj", "data.adv"];

impl Queries {
    /// Builds the list; relative paths start at `base`.
    fn build(&self, base: &Path) -> CurateResult<QueryList> {
        let mut list = QueryList::new(Normalizer { fold_case: self.fold_case }, *self.limit.value() as usize);
        let path = |written: &Located<String>| -> PathBuf { base.join(written.as_str()) };
        list.add_numbers(self.numbers);
        if let Some(folder) = &self.wordnet {
            for name in read_wordnet(&path(folder))? {
                list.add(Origin::Synset, &name, None);
            }
        }
        for source in &self.unigrams {
            let words =
                read_counts(&path(&source.path))?.into_iter().filter(|(_, count)| *count >= source.min_count);
            list.add_scored(Origin::Unigram, words.map(|(word, count)| (word, count as f32)).collect());
        }
        for source in &self.bigrams {
            list.add_scored(
                Origin::Bigram,
                scored_pairs(&path(&source.path), &path(&source.words), source.min_pmi)?,
            );
        }
        for file in &self.titles {
            for title in read_titles(&path(file))? {
                list.add(Origin::Title, &title, None);
            }
        }
        Ok(list)
    }
}

/// The pairs of a file whose mutual information is at least `min_pmi`.
fn scored_pairs(pairs: &Path, words: &Path, min_pmi: f64) -> CurateResult<Vec<(String, f32)>> {
    let counts = read_counts(words)?;
    let total = counts.values().try_fold(0u64, |sum, count| sum.checked_add(*count));
    let total = total.ok_or_else(|| CurateError::Line {
        path: words.to_path_buf(),
        line: 1,
        message: "the sum of all counts exceeds 2^64; divide them".into(),
    })?;
    let count = |word: &str| counts.get(word).copied().unwrap_or(0);
    let pairs = read_bigrams(pairs)?.into_iter().filter_map(|(first, second, together)| {
        let pmi = mutual_information(together, count(&first), count(&second), total)?;
        (pmi >= min_pmi).then(|| (format!("{first} {second}"), pmi as f32))
    });
    Ok(pairs.collect())
}

fn batch(list: &QueryList) -> Result<RecordBatch, DataFusionError> {
    let entries = list.entries();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(0..entries.len() as i32)),
        Arc::new(StringArray::from_iter_values(entries.iter().map(|entry| &entry.text))),
        Arc::new(StringArray::from_iter_values(entries.iter().map(|entry| entry.origin.name()))),
        Arc::new(entries.iter().map(|entry| entry.score).collect::<Float32Array>()),
    ];
    Ok(RecordBatch::try_new(contracts::queries(), columns)?)
}

/// What went into the list and what did not, in a sentence.
fn account(list: &QueryList) -> String {
    let origin = |origin: Origin| {
        let tally = list.tally(origin);
        let mut words = format!("{} {}s ({} known already", tally.added, origin.name(), tally.known);
        for (count, why) in
            [(tally.without_words, "without a letter or digit"), (tally.over_limit, "beyond the limit")]
        {
            if count > 0 {
                words += &format!(", {count} {why}");
            }
        }
        words + ")"
    };
    format!("{} queries: {}", list.entries().len(), Origin::ALL.map(origin).join(", "))
}

impl StageKind for Queries {
    const KIND: &'static str = "queries";
    const ABOUT: &'static str =
        "Builds a query list from numbers, WordNet, word counts, word pairs and titles";
    const EXAMPLE: &'static str = r#"[stages.queries]
kind = "queries"
limit = 500000
wordnet = "sources/wordnet"
unigrams = [{ path = "sources/words.txt", min_count = 100 }]
bigrams = [{ path = "sources/pairs.txt", words = "sources/words.txt", min_pmi = 8.0 }]
titles = ["sources/titles.txt"]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Queries {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn files(&self) -> Vec<Located<String>> {
        let wordnet = self.wordnet.iter().flat_map(|folder| {
            WORDNET_FILES.map(|part| Located::new(format!("{}/{part}", folder.value()), folder.span()))
        });
        let words = self.unigrams.iter().map(|source| &source.path);
        let pairs = self.bigrams.iter().flat_map(|source| [&source.path, &source.words]);
        wordnet.chain(words.chain(pairs).chain(&self.titles).cloned()).collect()
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let limit = *self.limit.value();
        if limit == 0 || i32::try_from(limit).is_err() {
            let fault =
                Fault::at(self.limit.span(), format!("a list cannot have a limit of {limit} entries"));
            return Err(vec![fault.label(format!("expected 1 to {}", i32::MAX))]);
        }
        Ok(Tables::main(contracts::queries()))
    }

    fn work(&self) -> Work<'_> {
        Work::Whole(self)
    }
}

#[async_trait]
impl Whole for Queries {
    fn conserves(&self) -> bool {
        false
    }

    async fn plan(
        &self,
        cx: &RunContext,
        _: &[InputData],
    ) -> Result<Vec<(&'static str, DataFrame)>, RunError> {
        let list = self.build(&cx.files.base).map_err(|error| RunError::user(error.to_string()))?;
        cx.progress.note(account(&list));
        Ok(vec![("data", cx.session.read_batch(batch(&list)?)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::collections::BTreeMap;
    use twinlens_pipeline::files::Files;

    #[tokio::test]
    async fn the_list_follows_order_and_thresholds() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("wn")).unwrap();
        for part in WORDNET_FILES {
            std::fs::write(folder.path().join("wn").join(part), "00001740 03 n 01 Domestic_Dog 0 000 | x\n")
                .unwrap();
        }
        // N = 1024. new york: log2(8 * 1024 / (16 * 16)) = 5; of the: log2(16 * 1024 / (512 * 480)) < 0.
        let words = "of 512\nthe 480\nnew 16\nyork 16\n";
        for (file, text) in [
            ("words", words),
            ("pairs", "new york 8\nof the 16\nnew unknown 9\n"),
            ("titles", "New_York\nThe Dog\nMore\n"),
        ] {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let toml = r#"limit = 8
            numbers = 2
            wordnet = "wn"
            unigrams = [{ path = "words", min_count = 17 }]
            bigrams = [{ path = "pairs", words = "words", min_pmi = 1.0 }]
            titles = ["titles"]"#;
        let stage: Queries = parse(toml);
        assert_eq!(stage.files().len(), 8);
        let cx =
            RunContext { files: Files { base: folder.path().into(), scratch: PathBuf::new() }, ..context() };
        let columns = BTreeMap::from([("data", vec!["id", "text", "origin", "score"])]);
        let tables = tables_of(Whole::plan(&stage, &cx, &[]).await.unwrap(), &columns).await;
        assert_eq!(
            tables["data"],
            [
                "0|0|number|",
                "1|1|number|",
                "2|domestic dog|synset|",
                "3|of|unigram|512.0",
                "4|the|unigram|480.0",
                "5|new york|bigram|5.0",
                "6|the dog|title|",
                "7|more|title|",
            ]
        );
        std::fs::write(folder.path().join("pairs"), "new york\n").unwrap();
        let error = Whole::plan(&stage, &cx, &[]).await.err().unwrap().to_string();
        assert!(error.contains("pairs:1: expected a count"), "{error}");
    }
}
