//! Reads the sources and fills the list. Blocking.

use std::collections::BTreeMap;
use std::path::PathBuf;

use twinlens_pipeline::{Located, RunContext, RunError};

use super::{Bigrams, QueriesOptions};
use crate::error::{CurateError, Result as CurateResult};
use crate::queries::{
    FrequentTerms, Origin, QueryList, Thresholds, Views, WordCounter, mutual_information, only_articles,
    plain_text, read_bigrams, read_counts, read_dump, read_titles, read_views, read_wordnet,
};
use crate::text::Normalizer;

/// The contents of the large sources, read before the list is filled.
#[derive(Debug, Default)]
struct LargeSources {
    frequent: FrequentTerms,
    /// Titles with their views.
    viewed: Vec<(String, u64)>,
    /// What was read, for the user.
    notes: Vec<String>,
}

impl QueriesOptions {
    fn normalizer(&self) -> Normalizer {
        Normalizer { fold_case: self.fold_case }
    }

    /// Builds the list; also returns notes for the user.
    pub(super) fn build(&self, cx: &RunContext) -> Result<(QueryList, Vec<String>), RunError> {
        let mut large = self.read_large(cx)?;
        let mut list = QueryList::new(self.normalizer(), *self.limit.value() as usize);
        for origin in self.order.value() {
            match origin {
                Origin::Number => list.add_numbers(self.numbers),
                Origin::Synset => self.add_synsets(cx, &mut list)?,
                Origin::Unigram => {
                    self.add_words(cx, &mut list, std::mem::take(&mut large.frequent.words))?
                }
                Origin::Bigram => self.add_pairs(cx, &mut list, std::mem::take(&mut large.frequent.pairs))?,
                Origin::Title => self.add_titles(cx, &mut list, std::mem::take(&mut large.viewed))?,
            }
        }
        Ok((list, large.notes))
    }

    /// Reads page views first, so that titles of the dump need not be kept.
    fn read_large(&self, cx: &RunContext) -> Result<LargeSources, RunError> {
        let (memory, folder) = (cx.bytes_in_flight / 2, cx.files.scratch.clone());
        let mut found = LargeSources::default();
        let mut articles = Vec::new();
        if let Some(views) = &self.views {
            let all = |named: &[Located<String>]| {
                let files = named.iter().map(|file| cx.local_files(file)).collect::<Result<Vec<_>, _>>()?;
                Ok::<Vec<PathBuf>, RunError>(files.concat())
            };
            let rules = Views {
                project: views.project.clone(),
                min_hourly: views.min_hourly,
                min_views: views.min_views,
            };
            let files = all(&views.files)?;
            let malformed;
            (found.viewed, malformed) = read_views(&files, &rules, memory, folder.clone())?;
            articles = all(&views.articles)?;
            found.notes.push(format!(
                "{} titles with enough views in {} files ({malformed} malformed lines)",
                found.viewed.len(),
                files.len()
            ));
        }
        if !articles.is_empty() {
            found.viewed = only_articles(std::mem::take(&mut found.viewed), &articles)?;
        }
        if let Some(dump) = &self.dump {
            let path = first_file(cx, &dump.path)?;
            let choose = articles.is_empty() && self.views.is_some();
            let left = if choose { std::mem::take(&mut found.viewed) } else { Vec::new() };
            let mut left: BTreeMap<String, u64> = left.into_iter().collect();
            let mut words = WordCounter::new(self.normalizer(), memory, folder);
            let mut pages = 0u64;
            let read = read_dump(&path, |page, namespaces| {
                if cx.cancel.is_cancelled() {
                    return Err(CurateError::Interrupted);
                }
                pages += 1;
                found.viewed.extend(left.remove_entry(&page.title));
                let text = plain_text(&page.text, namespaces);
                words.add(&text).map_err(|source| CurateError::Read { path: path.clone(), source })
            });
            read?;
            let least = Thresholds {
                min_count: dump.min_count,
                min_pair_count: dump.min_pair_count,
                min_pmi: dump.min_pmi,
            };
            let counted = words.finish(least).map_err(|source| CurateError::Read { path, source });
            found.frequent = counted?;
            found.notes.push(format!("{pages} articles, {} words", found.frequent.total));
        }
        Ok(found)
    }

    fn add_synsets(&self, cx: &RunContext, list: &mut QueryList) -> Result<(), RunError> {
        if let Some(folder) = &self.wordnet {
            for name in read_wordnet(&cx.path(folder))? {
                list.add(Origin::Synset, &name, None);
            }
        }
        Ok(())
    }

    fn add_words(
        &self,
        cx: &RunContext,
        list: &mut QueryList,
        counted: Vec<(String, u64)>,
    ) -> Result<(), RunError> {
        let scored =
            |words: Vec<(String, u64)>| words.into_iter().map(|(word, count)| (word, count as f32)).collect();
        list.add_scored(Origin::Unigram, scored(counted));
        for source in &self.unigrams {
            let words = read_counts(&cx.path(&source.path))?;
            let words = words.into_iter().filter(|(_, count)| *count >= source.min_count);
            list.add_scored(Origin::Unigram, scored(words.collect()));
        }
        Ok(())
    }

    fn add_pairs(
        &self,
        cx: &RunContext,
        list: &mut QueryList,
        counted: Vec<(String, f64)>,
    ) -> Result<(), RunError> {
        list.add_scored(Origin::Bigram, counted.into_iter().map(|(pair, pmi)| (pair, pmi as f32)).collect());
        for source in &self.bigrams {
            list.add_scored(Origin::Bigram, scored_pairs(cx, source)?);
        }
        Ok(())
    }

    fn add_titles(
        &self,
        cx: &RunContext,
        list: &mut QueryList,
        viewed: Vec<(String, u64)>,
    ) -> Result<(), RunError> {
        list.add_scored(
            Origin::Title,
            viewed.into_iter().map(|(title, views)| (title, views as f32)).collect(),
        );
        for file in &self.titles {
            for title in read_titles(&cx.path(file))? {
                list.add(Origin::Title, &title, None);
            }
        }
        Ok(())
    }
}

fn first_file(cx: &RunContext, written: &Located<String>) -> Result<PathBuf, RunError> {
    match <[PathBuf; 1]>::try_from(cx.local_files(written)?) {
        Ok([path]) => Ok(path),
        Err(several) => Err(RunError::user(format!(
            "`{}` matches {} files, expected one",
            written.value(),
            several.len()
        ))),
    }
}

/// The pairs of a file with enough mutual information.
fn scored_pairs(cx: &RunContext, source: &Bigrams) -> CurateResult<Vec<(String, f32)>> {
    let (pairs, words) = (cx.path(&source.path), cx.path(&source.words));
    let counts = read_counts(&words)?;
    let total = counts.values().try_fold(0u64, |sum, count| sum.checked_add(*count));
    let total = total.ok_or_else(|| CurateError::Line {
        path: words,
        line: 1,
        message: "the sum of all counts exceeds 2^64; divide them".into(),
    })?;
    let count = |word: &str| counts.get(word).copied().unwrap_or(0);
    let pairs = read_bigrams(&pairs)?.into_iter().filter_map(|(first, second, together)| {
        let pmi = mutual_information(together, count(&first), count(&second), total)?;
        (pmi >= source.min_pmi).then(|| (format!("{first} {second}"), pmi as f32))
    });
    Ok(pairs.collect())
}
