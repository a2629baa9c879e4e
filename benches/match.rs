//! `match`: the speed of query matching on one core.
//!
//!     cargo bench -p twinlens-curate --bench match [-- compare]
//!
//! With `compare` it prints a table of the matcher beside the automata of daachorse.
//!
//! The list is `pipelines/queries/queries.parquet` (500,000 queries). The captions are the lines of
//! the file that `TWINLENS_CAPTIONS` names; without it, 50,000 are drawn from the list's words by
//! their frequency in English. With `TWINLENS_MATCH_EXPORT=FOLDER` nothing is printed: the texts,
//! the hits and the times go to files there, for the comparison in `match_peer.py`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Float32Type, Int32Type};
use datafusion::prelude::SessionContext;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use rand::distr::{Distribution, weighted::WeightedIndex};
use rand::{Rng, SeedableRng};
use twinlens_curate::matcher::{CacheOutcome, Matcher, Scratch};
use twinlens_curate::text::Normalizer;
use twinlens_dataset::{Dataset, MAIN};

type Failure = Box<dyn std::error::Error>;

/// A query list, and the indices of words for captions with their frequencies.
struct List {
    queries: Vec<(i32, String)>,
    words: Vec<(usize, f32)>,
}

fn list() -> Result<List, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/queries/queries.parquet");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let batches = runtime.block_on(async {
        let frame = Dataset::from_parquet(&path)?.frame(&SessionContext::new(), MAIN).await?;
        Ok::<_, Failure>(frame.collect().await?)
    })?;
    let mut list = List { queries: Vec::new(), words: Vec::new() };
    for batch in batches {
        let (ids, scores) =
            (batch["id"].as_primitive::<Int32Type>(), batch["score"].as_primitive::<Float32Type>());
        let (texts, origins) = (batch["text"].as_string::<i32>(), batch["origin"].as_string::<i32>());
        for row in 0..batch.num_rows() {
            match origins.value(row) {
                "unigram" => list.words.push((list.queries.len(), scores.value(row))),
                "title" => list.words.push((list.queries.len(), 1_000.0)),
                _ => {}
            }
            list.queries.push((ids.value(row), texts.value(row).to_string()));
        }
    }
    Ok(list)
}

fn captions(list: &List) -> Result<Vec<String>, Failure> {
    if let Some(file) = std::env::var_os("TWINLENS_CAPTIONS") {
        return Ok(std::fs::read_to_string(file)?.lines().map(String::from).collect());
    }
    let weights = WeightedIndex::new(list.words.iter().map(|(_, used)| *used))?;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(17);
    let mut caption = || {
        let words = random.random_range(3..16);
        let mut word = || list.queries[list.words[weights.sample(&mut random)].0].1.as_str();
        let mut words: Vec<&str> = (0..words).map(|_| word()).collect();
        words.push(".");
        words.join(" ")
    };
    Ok((0..50_000).map(|_| caption()).collect())
}

/// The input of all benchmarks, read once.
static GIVEN: LazyLock<(List, Vec<String>)> = LazyLock::new(|| {
    let given = list().and_then(|list| captions(&list).map(|captions| (list, captions)));
    given.unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1)
    })
});

fn build() -> Matcher {
    let queries = GIVEN.0.queries.iter().map(|(id, text)| (*id, text.as_str()));
    Matcher::build(queries, Normalizer::default()).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1)
    })
}

static MATCHER: LazyLock<Matcher> = LazyLock::new(build);

#[divan::bench(sample_count = 5, sample_size = 1)]
fn built_from_the_list(bencher: Bencher<'_, '_>) {
    LazyLock::force(&GIVEN);
    bencher.counter(ItemsCount::new(GIVEN.0.queries.len())).bench(build);
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn loaded_from_its_file(bencher: Bencher<'_, '_>) {
    let file = std::env::temp_dir().join(format!("twinlens-bench-{}.matcher", std::process::id()));
    let load = || Matcher::cached(&file, &GIVEN.0.queries, Normalizer::default());
    let _ = load();
    bencher.bench(load);
    let _ = std::fs::remove_file(file);
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn captions_normalised_and_searched(bencher: Bencher<'_, '_>) {
    let (texts, matcher) = (&GIVEN.1, &*MATCHER);
    let bytes: usize = texts.iter().map(String::len).sum();
    let counted = bencher.counter(ItemsCount::new(texts.len())).counter(BytesCount::new(bytes));
    counted.bench(|| {
        let (mut scratch, mut ids, mut hits) = (Scratch::default(), Vec::new(), 0);
        for text in texts {
            matcher.matches_into(text, &mut scratch, &mut ids);
            hits += ids.len();
        }
        hits
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn captions_searched(bencher: Bencher<'_, '_>) {
    let matcher = &*MATCHER;
    let texts: Vec<String> = GIVEN.1.iter().map(|text| Normalizer::default().tokens(text)).collect();
    bencher.counter(ItemsCount::new(texts.len())).bench(|| search(matcher, &texts));
}

fn search(matcher: &Matcher, tokens: &[String]) -> usize {
    let (mut scratch, mut ids, mut hits) = (Scratch::default(), Vec::new(), 0);
    for text in tokens {
        matcher.matches_in_tokens(text, &mut scratch, &mut ids);
        hits += ids.len();
    }
    hits
}

/// The minimum of five times, in seconds.
fn least(mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..5).map(time).fold(f64::INFINITY, f64::min)
}

/// Writes texts in token form, hits and times as text files.
fn export(folder: &Path) -> Result<(), Failure> {
    let (list, texts) = &*GIVEN;
    let rules = Normalizer::default();
    let tokens: Vec<String> = texts.iter().map(|text| rules.tokens(text)).collect();
    let matcher = &*MATCHER;
    std::fs::create_dir_all(folder)?;
    let (mut queries, mut hits) = (String::new(), String::new());
    for (id, text) in &list.queries {
        writeln!(queries, "{id}\t{}", rules.tokens(text))?;
    }
    for text in texts {
        let found: Vec<String> = matcher.matches(text).iter().map(i32::to_string).collect();
        writeln!(hits, "{}", found.join(","))?;
    }
    std::fs::write(folder.join("queries.txt"), queries)?;
    std::fs::write(folder.join("captions.txt"), tokens.join("\n"))?;
    std::fs::write(folder.join("hits.txt"), hits)?;

    let file = folder.join("list.matcher");
    let _ = std::fs::remove_file(&file);
    let make = || Matcher::cached(&file, &list.queries, rules);
    let start = Instant::now();
    assert_eq!(make()?.1, CacheOutcome::Saved);
    let build_and_keep = start.elapsed().as_secs_f64();
    assert_eq!(make()?.1, CacheOutcome::Loaded);
    let load = least(|| drop(make()));
    let whole = least(|| {
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        texts.iter().for_each(|text| matcher.matches_into(text, &mut scratch, &mut ids));
    });
    let searched = least(|| {
        divan::black_box(search(matcher, &tokens));
    });
    let bytes: usize = texts.iter().map(String::len).sum();
    let times = format!(
        "captions\t{}\nbytes\t{bytes}\nheap_bytes\t{}\nbuild_and_keep_s\t{build_and_keep}\nload_s\t{load}\n\
         normalise_and_search_s\t{whole}\nsearch_s\t{searched}\n",
        texts.len(),
        matcher.heap_bytes(),
    );
    Ok(std::fs::write(folder.join("times.txt"), times)?)
}

/// What a way of searching costs, for one row of the table.
struct Costs {
    build: f64,
    load: f64,
    file: usize,
    heap: usize,
    search: f64,
    hits: usize,
}

/// Texts in token form, and the ids of the queries of each distinct one.
fn patterns() -> (Vec<String>, Vec<Vec<i32>>) {
    let mut patterns: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (id, text) in &GIVEN.0.queries {
        patterns.entry(Normalizer::default().tokens(text)).or_default().push(*id);
    }
    patterns.remove("");
    patterns.into_iter().unzip()
}

/// The matcher beside the automata of daachorse. All search the same tokens, and give the ids of a
/// caption sorted and once each.
fn compare() -> Result<(), Failure> {
    let texts: Vec<String> = GIVEN.1.iter().map(|text| Normalizer::default().tokens(text)).collect();
    let (patterns, ids) = patterns();
    let start = Instant::now();
    let matcher = build();
    let build_seconds = start.elapsed().as_secs_f64();
    let file = std::env::temp_dir().join(format!("twinlens-compare-{}.matcher", std::process::id()));
    let cached = || Matcher::cached(&file, &GIVEN.0.queries, Normalizer::default());
    drop(cached()?);
    let trie = Costs {
        build: build_seconds,
        load: least(|| drop(cached())),
        file: std::fs::metadata(&file)?.len() as usize,
        heap: matcher.heap_bytes(),
        search: least(|| {
            divan::black_box(search(&matcher, &texts));
        }),
        hits: search(&matcher, &texts),
    };
    std::fs::remove_file(&file)?;
    macro_rules! automaton {
        ($kind:ident) => {{
            let start = Instant::now();
            let automaton = daachorse::$kind::<u32>::new(&patterns).map_err(|error| error.to_string())?;
            let build = start.elapsed().as_secs_f64();
            let bytes = automaton.serialize();
            let found = || {
                let (mut found, mut hits) = (Vec::new(), 0);
                for text in &texts {
                    found.clear();
                    let matches = automaton.find_overlapping_iter(text);
                    matches.for_each(|hit| found.extend_from_slice(&ids[hit.value() as usize]));
                    found.sort_unstable();
                    found.dedup();
                    hits += found.len();
                }
                hits
            };
            Costs {
                build,
                load: least(|| drop(daachorse::$kind::<u32>::deserialize(&bytes))),
                file: bytes.len(),
                heap: automaton.heap_bytes() + ids.iter().map(|ids| 24 + 4 * ids.capacity()).sum::<usize>(),
                search: least(|| {
                    divan::black_box(found());
                }),
                hits: found(),
            }
        }};
    }
    let all = [
        ("matcher", trie),
        ("daachorse bytewise", automaton!(DoubleArrayAhoCorasick)),
        ("daachorse charwise", automaton!(CharwiseDoubleArrayAhoCorasick)),
    ];
    println!("| | build s | load s | file MiB | heap MiB | search us/caption | hits |");
    println!("|---|---|---|---|---|---|---|");
    for (name, costs) in all {
        let (file, heap) = (costs.file as f64 / 1048576.0, costs.heap as f64 / 1048576.0);
        let search = costs.search * 1e6 / texts.len() as f64;
        println!(
            "| {name} | {:.2} | {:.3} | {file:.1} | {heap:.1} | {search:.2} | {} |",
            costs.build, costs.load, costs.hits
        );
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    if std::env::args().any(|argument| argument == "compare") {
        return compare();
    }
    match std::env::var_os("TWINLENS_MATCH_EXPORT") {
        Some(folder) => export(&PathBuf::from(folder)),
        None => {
            divan::main();
            Ok(())
        }
    }
}
