//! `queries`: builds a query list from a Wikipedia dump, page views and WordNet, or from lists of
//! words and counts.

mod build;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray};
use datafusion::error::DataFusionError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_pipeline::{
    Fault, Frames, Inputs, Located, Ports, Query, RunContext, RunError, SortKey, StageKind, Work,
};

use crate::queries::{Origin, QueryList};

/// A query list of number strings, words, word pairs, titles and WordNet synsets, in this order and
/// without duplicates.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueriesOptions {
    /// The maximum number of entries. A full list lacks the last entries in the order; of words,
    /// pairs and viewed titles those with the lowest score.
    #[serde(default = "half_a_million")]
    limit: Located<u32>,
    /// The order in which the list is filled, with every origin once. The default is CLIP's;
    /// MetaCLIP puts synsets after numbers.
    #[serde(default = "papers_order")]
    order: Located<Vec<Origin>>,
    /// The numbers from 0 to this, exclusive, are entries.
    #[serde(default = "hundred")]
    numbers: u32,
    /// A Wikipedia dump, whose words and word pairs are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    dump: Option<Dump>,
    /// Page-view files, which select titles.
    #[serde(skip_serializing_if = "Option::is_none")]
    views: Option<PageViews>,
    /// A folder with WordNet's `data.noun`, `data.verb`, `data.adj`, `data.adv`: the first lemma of
    /// each synset is an entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    wordnet: Option<Located<String>>,
    /// Files of words with counts; frequent words are entries, scored by their count. A word in
    /// several sources is taken from the dump, or else from the first file.
    #[serde(default)]
    unigrams: Vec<Unigrams>,
    /// Files of word pairs with counts; pairs with enough mutual information are entries, scored by
    /// it.
    #[serde(default)]
    bigrams: Vec<Bigrams>,
    /// Files of titles, one per line; all are entries.
    #[serde(default)]
    titles: Vec<Located<String>>,
    /// Whether case is ignored: "Dog" and "dog" are one entry.
    #[serde(default = "yes")]
    fold_case: bool,
}

/// A dump of articles, and thresholds for the words of its running text.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dump {
    /// `pages-articles.xml`, plain or compressed (`.bz2`, `.gz`); it is read once.
    path: Located<String>,
    /// The minimum count of a word.
    #[serde(default = "hundred_times")]
    min_count: u64,
    /// The minimum count of a word pair: rare pairs have high mutual information by chance.
    #[serde(default = "hundred_times")]
    min_pair_count: u64,
    /// The minimum pointwise mutual information of a pair in bits: log2(c(a,b) N / (c(a) c(b))), N
    /// being the number of words.
    #[serde(default = "eight_bits")]
    min_pmi: f64,
}

/// Titles of frequently viewed articles.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PageViews {
    /// Hourly files (`pageviews-20260101-000000.gz`) to add up; patterns are allowed.
    files: Vec<Located<String>>,
    /// The wiki, as in the first field of a line.
    #[serde(default = "english")]
    project: String,
    /// The minimum views of a title in an hour for the hour to count.
    #[serde(default = "fifty")]
    min_hourly: u64,
    /// The minimum total views of a title.
    #[serde(default = "seventy")]
    min_views: u64,
    /// The wiki's list of articles (`all-titles-in-ns0.gz`): other titles (typos, old redirects)
    /// are left out. By default the titles of the dump, if given.
    #[serde(default)]
    articles: Vec<Located<String>>,
}

/// Words with counts.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unigrams {
    /// A text file of lines `word<TAB>count` or `word count`.
    path: Located<String>,
    /// The minimum count of a word.
    #[serde(default = "hundred_times")]
    min_count: u64,
}

/// Word pairs with counts, and the counts of their words.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Bigrams {
    /// A text file of lines `first second<TAB>count` or `first second count`.
    path: Located<String>,
    /// A text file of lines `word count` from the same corpus. Pairs with a word that it lacks are
    /// left out.
    words: Located<String>,
    /// The minimum pointwise mutual information of a pair in bits: log2(c(a,b) N / (c(a) c(b))), N
    /// being the sum of the word counts.
    min_pmi: f64,
}

fn half_a_million() -> Located<u32> {
    Located::without_span(500_000)
}

fn papers_order() -> Located<Vec<Origin>> {
    Located::without_span(Origin::ALL.to_vec())
}

fn hundred() -> u32 {
    100
}

fn hundred_times() -> u64 {
    100
}

fn eight_bits() -> f64 {
    8.0
}

fn english() -> String {
    "en".into()
}

fn fifty() -> u64 {
    50
}

fn seventy() -> u64 {
    70
}

fn yes() -> bool {
    true
}

const WORDNET_FILES: [&str; 4] = ["data.noun", "data.verb", "data.adj", "data.adv"];

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

/// The counts of the list, in a sentence.
fn summary(list: &QueryList) -> String {
    let origin = |origin: Origin| {
        let tally = list.tally(origin);
        let mut words = format!("{} {}s ({} duplicates", tally.added, origin.name(), tally.known);
        for (count, why) in
            [(tally.without_words, "without a letter or digit"), (tally.over_limit, "over the limit")]
        {
            if count > 0 {
                words += &format!(", {count} {why}");
            }
        }
        words + ")"
    };
    format!("{} queries: {}", list.entries().len(), Origin::ALL.map(origin).join(", "))
}

/// `queries` as it runs.
pub struct Queries(QueriesOptions);

impl StageKind for Queries {
    type Options = QueriesOptions;
    const NAME: &'static str = "queries";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r#"[stages.queries]
kind = "queries"
limit = 500000
dump = { path = "sources/enwiki-pages-articles.xml.bz2", min_count = 100, min_pmi = 8.0 }
views = { files = ["sources/pageviews-*.gz"], min_views = 70, articles = ["sources/all-titles-in-ns0.gz"] }
wordnet = "sources/wordnet"
"#;

    fn plan(options: QueriesOptions, ports: &mut Ports<'_>) -> Option<Work> {
        options.files().iter().for_each(|file| ports.file(file));
        ports.output(contracts::queries(), SortKey::AsGiven);
        let limit = *options.limit.value();
        if limit == 0 || i32::try_from(limit).is_err() {
            let message = format!("`limit` cannot be {limit}");
            let fault = Fault::at(options.limit.span(), message);
            ports.fault(fault.label(format!("expected 1 to {}", i32::MAX)));
        }
        let mut order = options.order.value().clone();
        order.sort_unstable();
        let mut all = Origin::ALL;
        all.sort_unstable();
        if order != all {
            let fault = Fault::at(options.order.span(), "`order` must name every origin once");
            ports.fault(fault.label(format!("expected {}", Origin::ALL.map(Origin::name).join(", "))));
        }
        Some(Work::query(Queries(options)))
    }
}

impl QueriesOptions {
    fn files(&self) -> Vec<Located<String>> {
        let wordnet = self.wordnet.iter().flat_map(|folder| {
            WORDNET_FILES.map(|part| Located::new(format!("{}/{part}", folder.value()), folder.span()))
        });
        let words = self.unigrams.iter().map(|source| &source.path);
        let pairs = self.bigrams.iter().flat_map(|source| [&source.path, &source.words]);
        let dump = self.dump.iter().map(|dump| &dump.path);
        let views = self.views.iter().flat_map(|views| views.files.iter().chain(&views.articles));
        wordnet.chain(dump.chain(views).chain(words).chain(pairs).chain(&self.titles).cloned()).collect()
    }
}

#[async_trait]
impl Query for Queries {
    async fn tables(&self, cx: &RunContext, _: &Inputs) -> Result<Frames, RunError> {
        let (options, context) = (self.0.clone(), cx.clone());
        let built = twinlens_pipeline::blocking(move || options.build(&context)).await;
        let (list, notes) = built??;
        notes.into_iter().for_each(|note| cx.progress.note(note));
        cx.progress.note(summary(&list));
        Ok(Frames::main(cx.session.read_batch(batch(&list)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use twinlens_pipeline::Registry;

    #[tokio::test]
    async fn the_list_follows_order_and_thresholds() {
        // N = 1024. new york: log2(8 * 1024 / (16 * 16)) = 5; of the: log2(16 * 1024 / (512 * 480))
        // < 0.
        let words = "of 512\nthe 480\nnew 16\nyork 16\n";
        let files = [
            ("words", words),
            ("pairs", "new york 8\nof the 16\nnew unknown 9\n"),
            ("titles", "New_York\nThe Dog\nMore\n"),
        ];
        let toml = r#"limit = 8
            numbers = 2
            order = ["number", "synset", "unigram", "bigram", "title"]
            wordnet = "wn"
            unigrams = [{ path = "words", min_count = 17 }]
            bigrams = [{ path = "pairs", words = "words", min_pmi = 1.0 }]
            titles = ["titles"]"#;
        let stage =
            files.into_iter().fold(stage("queries", toml), |stage, (name, text)| stage.file(name, text));
        let synset = "00001740 03 n 01 Domestic_Dog 0 000 | x\n";
        let stage =
            WORDNET_FILES.into_iter().fold(stage, |stage, part| stage.file(&format!("wn/{part}"), synset));
        assert_eq!(stage.check().unwrap().nodes[0].plan.files.len(), 8);
        assert_eq!(
            stage.run().await.unwrap().table("data", &["id", "text", "origin", "score"]),
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
        let error = stage.file("pairs", "new york\n").run().await.err().unwrap().to_string();
        assert!(error.contains("pairs:1: expected a count"), "{error}");
    }

    /// Ten articles with templates, tables, references, links and several scripts; pages of another
    /// namespace and redirects.
    fn dump() -> String {
        let article = |number: usize| {
            let text = "{{Infobox|name=Infobox Word|x={{nested}}}} &#039;&#039;&#039;Golden Gate&#039;&#039;&#039; spans [[San Francisco|the bay]] \
                &lt;ref&gt;hidden reference&lt;/ref&gt; golden gate. 柴犬 [[File:A.jpg|thumb|hidden file]]\n{| table\n| hidden cell\n|}\n[[Kategorie:Hidden]]";
            format!(
                "<page><title>Title {number}</title><ns>0</ns><revision><text>{text}</text></revision></page>\n"
            )
        };
        let others = "<page><title>Talk:X</title><ns>1</ns><revision><text>talk talk</text></revision></page>\
            <page><title>Gone</title><ns>0</ns><redirect title=\"Title 1\"/><revision><text>redirected</text></revision></page>";
        let namespaces =
            "<siteinfo><namespaces><namespace key=\"14\">Kategorie</namespace></namespaces></siteinfo>";
        format!("<mediawiki>{namespaces}{}{others}</mediawiki>", (1..=10).map(article).collect::<String>())
    }

    #[tokio::test]
    async fn wikipedia_and_wordnet_give_a_list_in_the_papers_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("wn")).unwrap();
        for part in WORDNET_FILES {
            let synsets = "00001740 03 n 01 golden_gate 0 000 | x\n00001741 03 n 01 dog 0 000 | x\n";
            write(&format!("wn/{part}"), synsets);
        }
        write("dump.xml", &dump());
        write(
            "pageviews-1",
            "en Title_2 60 0\nen.m Title_2 90 0\nen Gone 900 0\nen Title_3 99 0\nde Title_4 99 0\n",
        );
        let toml = r#"numbers = 1
            dump = { path = "dump.xml", min_count = 10, min_pair_count = 10, min_pmi = 2.5 }
            views = { files = ["pageviews-*"], min_views = 70 }
            wordnet = "wn""#;
        let queries = Queries(toml::from_str(toml).unwrap());
        let cx = twinlens_testkit::stage::context(&Registry::default(), folder.path());
        let made = async || queries.tables(&cx, &Inputs::new(vec![])).await;
        let list = made().await.unwrap().main_table().await.unwrap();
        // Of 90 words, 20 each are "golden" and "gate", together: log2(20 * 90 / 400) = 2.17; the
        // others occur ten times, log2(10 * 90 / 100) = 3.17 with each other and log2(10 * 90 /
        // 200) = 2.17 with those.
        let score = (9.0f64).log2() as f32;
        assert_eq!(
            lines(&list, &["id", "text", "origin", "score"]),
            [
                "0|0|number|".to_string(),
                "1|gate|unigram|20.0".into(),
                "2|golden|unigram|20.0".into(),
                "3|bay|unigram|10.0".into(),
                "4|spans|unigram|10.0".into(),
                "5|the|unigram|10.0".into(),
                "6|柴|unigram|10.0".into(),
                "7|犬|unigram|10.0".into(),
                format!("8|spans the|bigram|{score}"),
                format!("9|the bay|bigram|{score}"),
                format!("10|柴 犬|bigram|{score}"),
                "11|title 2|title|150.0".into(),
                "12|title 3|title|99.0".into(),
                "13|golden gate|synset|".into(),
                "14|dog|synset|".into(),
            ]
        );
        assert!(stage("queries", "order = [\"title\"]").faults()[0].contains("every origin once"));
        let whole = dump();
        write("dump.xml", &whole[..whole.find("<page><title>Title 3").unwrap()]);
        let error = made().await.err().unwrap().to_string();
        assert!(error.contains("dump.xml") && error.contains("truncated or not a dump"), "{error}");
        cx.cancel.cancel();
        write("dump.xml", &dump());
        assert!(matches!(made().await.err().unwrap(), RunError::Interrupted));
    }
}
