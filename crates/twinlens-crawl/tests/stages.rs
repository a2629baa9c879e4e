//! The stages in whole runs: what they keep, what they reject and why, that nothing is lost, and that it is the same each time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use tokio_util::sync::CancellationToken;
use twinlens_crawl::net::Why;
use twinlens_crawl::register;
use twinlens_crawl::stages::TABLE_CODES;
use twinlens_dataset::{Dataset, catalog};
use twinlens_pipeline::config::{self, Overrides};
use twinlens_pipeline::run::events::{Event, Observer, Silent};
use twinlens_pipeline::run::{Outcome, Settings, run, session};
use twinlens_pipeline::{Clock, Registry, RunError};
use twinlens_testkit::{Answer, Site, Web, web::png};

fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry);
    registry
}

/// Runs `pipeline` (its stages) in `dir/run`.
async fn run_with(
    dir: &Path,
    pipeline: &str,
    hosts: &[(&str, SocketAddr)],
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) -> Result<Outcome, RunError> {
    let path = dir.join("pipeline.toml");
    std::fs::write(&path, format!("name = \"test\"\nseed = 7\n{pipeline}")).unwrap();
    let registry = registry();
    let pipeline =
        config::load(&path, &registry, &Overrides::default()).unwrap_or_else(|error| panic!("{error:#?}"));
    let settings = Settings {
        dir: dir.join("run").into(),
        scratch: dir.join("scratch"),
        fresh: false,
        until: None,
        max_rows: None,
        threads: 2,
        memory_bytes: 256 << 20,
        bytes_in_flight: 16 << 20,
        grace: Duration::from_secs(5),
        clock: Clock::Fixed(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        hosts: Arc::new(hosts.iter().map(|(name, addr)| (name.to_string(), *addr)).collect()),
    };
    run(&pipeline, &registry, &settings, observer, cancel).await
}

async fn run_in(dir: &Path, pipeline: &str, hosts: &[(&str, SocketAddr)]) -> Result<Outcome, RunError> {
    run_with(dir, pipeline, hosts, Arc::new(Silent), CancellationToken::new()).await
}

/// The rows of a query, their values joined by ` | `.
async fn query(outcome: &Outcome, sql: &str) -> Vec<String> {
    let session = session::plain(&registry(), 2);
    catalog::register(&session, &outcome.datasets).await.unwrap();
    let mut rows = Vec::new();
    for batch in session.sql(sql).await.unwrap().collect().await.unwrap() {
        let options = FormatOptions::default().with_null("-");
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        rows.extend((0..batch.num_rows()).map(|row| {
            columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")
        }));
    }
    rows
}

/// Names and hashes of all files of the datasets.
fn files(outcome: &Outcome) -> Vec<(String, String)> {
    let of = |dataset: &Dataset| {
        dataset.state().files().map(|file| (file.path.clone(), file.sha256.clone())).collect::<Vec<_>>()
    };
    outcome.datasets.iter().flat_map(of).collect()
}

/// Rows in = rows out + rejects.
fn assert_conserved(outcome: &Outcome) {
    for dataset in &outcome.datasets {
        let rejects: u64 = dataset.state().rejects().values().flat_map(BTreeMap::values).sum();
        let stage = &dataset.state().begin.stage;
        assert_eq!(dataset.state().rows_in(), Some(dataset.rows("data") + rejects), "{stage}");
        assert_eq!(dataset.rows("rejects"), rejects, "{stage}");
    }
}

fn clip_site() -> Site {
    let home = "<a href=/cats.html>cats</a> <a href=/dogs.html#x>dogs</a> <a href=/gone.html>gone</a> <a href=/moved>moved</a>\
        <a href=/private/x.html>private</a> <a href=http://elsewhere.test/>elsewhere</a> <a href=/cat.png>large</a>\
        <a href=/opted-out.html>out</a> <a href=/data.bin>data</a> <a href=/dead-end.html>dead end</a> <img src=/logo.png alt=''>";
    let cats = "<figure><img src=cat.png alt='a cat'><figcaption>my cat &amp;amp; I</figcaption></figure><a href=/deep.html>deep</a>";
    Site::new()
        .at("/robots.txt", Answer::body("text/plain", "User-agent: *\nDisallow: /private/"))
        .page("/", home)
        .page("/cats.html", cats)
        .at(
            "/dogs.html",
            Answer::body("text/html; charset=iso-8859-1", b"<img src=/dog.png alt='a ch\xefen'>".to_vec()),
        )
        .at("/moved", Answer::redirect("/cats.html"))
        .page("/private/x.html", "<img src=/private.png alt=private>")
        .at(
            "/opted-out.html",
            Answer::page("<img src=/out.png alt=out><a href=/behind.html>x</a>")
                .header("x-robots-tag", "noai"),
        )
        .page("/behind.html", "<img src=/behind.png alt=behind title='from behind'>")
        .at(
            "/dead-end.html",
            Answer::page("<meta name=robots content=nofollow><a href=/not-followed.html>x</a>"),
        )
        .page("/not-followed.html", "<img src=/x.png alt=x>")
        .at("/data.bin", Answer::body("application/octet-stream", "x"))
        .page("/deep.html", "<a href=/>home</a>")
}

const CRAWL: &str = r#"
[stages.pages]
kind = "crawl"
seeds = ["http://clip.test/"]
wave_pages = 2
http = { retries = 0 }
"#;

#[tokio::test]
async fn a_crawl_takes_pairs_and_says_what_it_refused() {
    let (dir, web) = (tempfile::tempdir().unwrap(), Web::start(clip_site()).await.unwrap());
    let outcome = run_in(dir.path(), CRAWL, &[("clip.test", web.addr())]).await.unwrap();
    let pairs =
        query(&outcome, "select url, caption, page_url, text_source from pages order by url, text_source")
            .await;
    let expected = [
        "http://clip.test/behind.png | behind | http://clip.test/behind.html | alt",
        "http://clip.test/behind.png | from behind | http://clip.test/behind.html | title",
        "http://clip.test/cat.png | a cat | http://clip.test/cats.html | alt",
        "http://clip.test/cat.png | my cat & I | http://clip.test/cats.html | figcaption",
        "http://clip.test/dog.png | a chïen | http://clip.test/dogs.html | alt",
    ];
    assert_eq!(pairs, expected);
    let visits =
        query(&outcome, "select url, depth, outcome, redirect, pairs from pages.visits order by depth, url")
            .await;
    let expected = [
        "http://clip.test/ | 0 | page | - | 0",
        "http://clip.test/cats.html | 1 | page | - | 2",
        "http://clip.test/data.bin | 1 | content_type | - | 0",
        "http://clip.test/dead-end.html | 1 | page | - | 0",
        "http://clip.test/dogs.html | 1 | page | - | 1",
        "http://clip.test/gone.html | 1 | http_not_found | - | 0",
        "http://clip.test/moved | 1 | redirect | http://clip.test/cats.html | 0",
        "http://clip.test/opted-out.html | 1 | opted_out | - | 0",
        "http://clip.test/private/x.html | 1 | robots_disallowed | - | 0",
        "http://clip.test/behind.html | 2 | page | - | 2",
        "http://clip.test/deep.html | 2 | page | - | 0",
    ];
    assert_eq!(visits, expected);
    let rejects =
        query(&outcome, "select page_url, reject_stage, reject_code from pages.rejects order by page_url")
            .await;
    assert_eq!(rejects.len(), 4, "{rejects:?}");
    assert!(rejects.contains(&"http://clip.test/private/x.html | pages | robots_disallowed".to_string()));
    let twice = web.paths().into_iter().fold(BTreeMap::<String, u32>::new(), |mut counts, path| {
        *counts.entry(path).or_default() += 1;
        counts
    });
    assert!(twice.values().all(|count| *count == 1), "each page is asked for once: {twice:?}");
    assert!(!twice.contains_key("/private/x.html") && !twice.contains_key("/cat.png"));
    assert_conserved(&outcome);
}

/// Asks the run to stop after so many splits.
struct StopAfter(AtomicU64, CancellationToken);

impl Observer for StopAfter {
    fn event(&self, event: &Event) {
        if matches!(event, Event::SplitCommitted { .. }) && self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1.cancel();
        }
    }
}

#[tokio::test]
async fn an_interrupted_crawl_ends_as_the_same_dataset() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let web = Web::start(clip_site()).await.unwrap();
    let hosts = [("clip.test", web.addr())];
    let expected = run_in(whole.path(), CRAWL, &hosts).await.unwrap();
    for stops in 0.. {
        assert!(stops < 20, "each run commits a wave");
        let cancel = CancellationToken::new();
        let observer = Arc::new(StopAfter(AtomicU64::new(1), cancel.clone()));
        match run_with(parts.path(), CRAWL, &hosts, observer, cancel).await {
            Err(RunError::Interrupted) => {}
            Err(error) => panic!("{error}"),
            Ok(outcome) => {
                assert!(stops >= 4, "it was interrupted {stops} times");
                assert_eq!(files(&outcome), files(&expected));
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_crawl_without_a_seed_that_answers_is_an_error() {
    let (dir, web) = (tempfile::tempdir().unwrap(), Web::start(Site::new()).await.unwrap());
    let error = run_in(dir.path(), CRAWL, &[("clip.test", web.addr())]).await.unwrap_err();
    assert!(
        matches!(&error, RunError::User { message, hint: Some(_) } if message.contains("http://clip.test/: HTTP 404")),
        "{error}"
    );
}

#[tokio::test]
async fn tables_are_read_row_by_row_whatever_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    let long = format!("http://a/7,\"{}\",0\n", "long ".repeat(300_000));
    let csv = [
        b"\xef\xbb\xbfURL,TEXT,score\r\nhttp://a/1,one,0.5\r\nhttp://a/2,\"two, \"\"quoted\"\"\nover lines\",1\n".as_slice(),
        b"http://a/3,too few\n\n,no url,2\nhttp://a/5,  ,3\nhttp://a/6,bad \xff,4\n",
        long.as_bytes(),
        b"http://a/8,last,9",
    ];
    write("a.csv", &csv.concat());
    write("b.tsv", b"caption\timage_url\tscore\nthree\thttp://b/1\t7\n");
    write("c.jsonl", b"{\"url\": \"http://c/1\", \"alt\": \"four\", \"score\": 8}\n{\"url\": oops}\n\n[1]\n{\"url\": null, \"text\": \"x\"}\n\"\xff\"\n");
    let pipeline = |rows: u32| {
        format!(
            "[stages.pairs]\nkind = \"table\"\nfiles = [\"*.csv\", \"b.tsv\", \"c.jsonl\"]\nkeep = [\"score\"]\nsplit_rows = {rows}\n"
        )
    };
    let outcome = run_in(dir.path(), &pipeline(1000), &[]).await.unwrap();
    assert_conserved(&outcome);
    let pairs = query(&outcome, "select url, caption, score, text_source from pairs order by url").await;
    let expected = [
        "http://a/1 | one | 0.5 | table",
        "http://a/2 | two, \"quoted\"\nover lines | 1 | table",
        "http://a/8 | last | 9 | table",
        "http://b/1 | three | 7 | table",
        "http://c/1 | four | 8 | table",
    ];
    assert_eq!(pairs, expected);
    let rejects =
        query(&outcome, "select reject_code, reject_detail from pairs.rejects order by reject_detail").await;
    let expected = [
        ("malformed_row", "a.csv row 2, line 5: 2 fields, but the header has 3"),
        ("no_url", "a.csv row 3, line 7: no URL"),
        ("no_caption", "a.csv row 4, line 8: no caption"),
        ("not_utf8", "a.csv row 5, line 9: field 2"),
        ("row_too_long", "a.csv row 6, line 10: longer than"),
        ("malformed_json", "c.jsonl row 1, line 2: expected value"),
        ("malformed_json", "c.jsonl row 2, line 4: invalid type"),
        ("no_url", "c.jsonl row 3, line 5: no URL"),
        ("not_utf8", "c.jsonl row 4, line 6: the line is not UTF-8"),
    ];
    assert_eq!(rejects.len(), expected.len(), "{rejects:#?}");
    for (found, (code, detail)) in rejects.iter().zip(expected) {
        assert!(found.starts_with(&format!("{code} | {detail}")), "{found}");
        assert!(TABLE_CODES.contains(&code));
    }
    // Splits of other sizes hold the same rows and rejects, at the same places.
    for rows in [1, 2, 3] {
        let outcome = run_in(dir.path(), &pipeline(rows), &[]).await.unwrap();
        assert_eq!(
            query(&outcome, "select url, caption, score, text_source from pairs order by url").await,
            pairs
        );
        assert_eq!(
            query(&outcome, "select reject_code, reject_detail from pairs.rejects order by reject_detail")
                .await,
            rejects
        );
    }
}

#[tokio::test]
async fn a_table_of_parquet_and_its_mistakes() {
    use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
    let dir = tempfile::tempdir().unwrap();
    let batch = RecordBatch::try_from_iter([
        (
            "URL",
            Arc::new(StringArray::from(vec![Some("http://a/1"), None, Some("http://a/3")]))
                as arrow::array::ArrayRef,
        ),
        ("TEXT", Arc::new(StringArray::from(vec![Some("one"), Some("two"), None]))),
        ("similarity", Arc::new(Float64Array::from(vec![0.25, 0.5, 1.0]))),
        ("WIDTH", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ])
    .unwrap();
    let file = std::fs::File::create(dir.path().join("part-0.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let table = |more: &str| {
        format!("[stages.pairs]\nkind = \"table\"\nfiles = [\"part-*.parquet\"]\nsplit_rows = 2\n{more}")
    };
    let outcome = run_in(dir.path(), &table("keep = [\"similarity\"]"), &[]).await.unwrap();
    assert_conserved(&outcome);
    assert_eq!(
        query(&outcome, "select url, caption, similarity from pairs").await,
        ["http://a/1 | one | 0.25"]
    );
    let rejects =
        query(&outcome, "select reject_code, reject_detail from pairs.rejects order by reject_detail").await;
    assert_eq!(
        rejects,
        ["no_url | part-0.parquet row 1: no URL", "no_caption | part-0.parquet row 2: no caption"]
    );

    let error =
        run_in(dir.path(), &table("columns = { caption = \"ALT\" }"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("part-0.parquet: no column `ALT`; there are: URL, TEXT"), "{error}");
    std::fs::write(dir.path().join("part-1.parquet"), b"PAR1 not really").unwrap();
    let error = run_in(dir.path(), &table(""), &[]).await.unwrap_err().to_string();
    assert!(error.contains("part-1.parquet"), "{error}");
}

fn image_site() -> Site {
    let image = |width| Answer::body("image/png", png(width, 32));
    let mut truncated = png(64, 64);
    truncated.truncate(truncated.len() / 2);
    Site::new()
        .at("/robots.txt", Answer::body("text/plain", "User-agent: *\nDisallow: /private"))
        .at("/a.png", image(64))
        .at("/b.png", image(96))
        .at("/untyped", Answer::body("text/html", png(40, 40)))
        .at("/moved.png", Answer::redirect("/a.png"))
        .at("/cut.png", Answer::TruncatedBody { length: 5000, body: png(9, 9) })
        .at("/damaged.png", Answer::body("image/png", truncated))
        .at("/page.png", Answer::body("image/png", "<html><p>not found</p></html>"))
        .at("/endless.png", Answer::EndlessBody)
        .at("/out.png", image(33).header("x-robots-tag", "noimageai"))
        .at("/reserved.png", image(33).header("tdm-reservation", "1"))
        .at("/small.png", Answer::body("image/png", png(8, 8)))
        .at("/private.png", image(33))
}

/// Path and expected code; `None` for those that are kept.
const IMAGES: &[(&str, Option<&str>)] = &[
    ("/a.png", None),
    ("/a.png#fragment", None),
    ("/b.png", None),
    ("/untyped", None),
    ("/moved.png", None),
    ("/gone.png", Some("http_not_found")),
    ("/cut.png", Some("truncated")),
    ("/damaged.png", Some("truncated")),
    ("/page.png", Some("not_an_image")),
    ("/endless.png", Some("too_many_bytes")),
    ("/out.png", Some("opted_out")),
    ("/reserved.png", Some("opted_out")),
    ("/small.png", Some("too_small")),
    ("/private.png", Some("robots_disallowed")),
];

const FETCH: &str = r#"
[stages.pairs]
kind = "table"
files = ["pairs.jsonl"]

[stages.images]
kind = "fetch"
input = "pairs"
resize = { size = 24, mode = "shortest" }
encode = { format = "png" }
limits = { min_side = 16, max_bytes = 200000 }
split_rows = 7
http = { retries = 0 }
"#;

fn write_list(dir: &Path) {
    let mut lines = String::new();
    for (path, _) in IMAGES {
        lines.push_str(&format!("{{\"url\": \"http://img.test{path}\", \"caption\": \"image {path}\"}}\n"));
    }
    // The same image under another caption: fetched once, kept twice.
    lines.push_str("{\"url\": \"http://img.test/b.png\", \"caption\": \"again\"}\n");
    lines.push_str("{\"url\": \"nonsense\", \"caption\": \"no URL\"}\n{\"url\": \"file:///etc/passwd\", \"caption\": \"a file\"}\n");
    lines.push_str("{\"url\": \"http://10.0.0.1/x.png\", \"caption\": \"private\"}\n");
    std::fs::write(dir.join("pairs.jsonl"), lines).unwrap();
}

/// Format and length of the stored images.
fn stored_sizes(outcome: &Outcome) -> Vec<(String, usize)> {
    use arrow::array::AsArray;
    let images = outcome.datasets.iter().find(|dataset| dataset.state().begin.stage == "images").unwrap();
    let mut stored = Vec::new();
    for batch in twinlens_dataset::reader::ShardReader::new(images, "data", &["image"], 100) {
        let batch = batch.unwrap();
        let bytes = batch.column(0).as_struct().column_by_name("bytes").unwrap().as_binary::<i64>().clone();
        stored.extend(bytes.iter().map(|bytes| {
            let bytes = bytes.unwrap();
            (twinlens_image::sniff(bytes).unwrap().name().to_string(), bytes.len())
        }));
    }
    stored
}

#[tokio::test]
async fn fetching_keeps_images_and_says_why_the_others_are_none() {
    let (dir, web) = (tempfile::tempdir().unwrap(), Web::start(image_site()).await.unwrap());
    write_list(dir.path());
    let pipeline = FETCH.replace("split_rows = 7", "split_rows = 100");
    let outcome = run_in(dir.path(), &pipeline, &[("img.test", web.addr())]).await.unwrap();
    assert_conserved(&outcome);
    let sql = "select url, width, height, original_width, original_height, length(sha256), phash is not null, \
               fetched_at = to_timestamp_micros(1700000000000000), arrow_typeof(image['bytes']) from images order by url, caption";
    let expected = [
        "http://img.test/a.png | 48 | 24 | 64 | 32 | 64 | true | true | LargeBinary",
        "http://img.test/a.png#fragment | 48 | 24 | 64 | 32 | 64 | true | true | LargeBinary",
        "http://img.test/b.png | 72 | 24 | 96 | 32 | 64 | true | true | LargeBinary",
        "http://img.test/b.png | 72 | 24 | 96 | 32 | 64 | true | true | LargeBinary",
        "http://img.test/moved.png | 48 | 24 | 64 | 32 | 64 | true | true | LargeBinary",
        "http://img.test/untyped | 24 | 24 | 40 | 40 | 64 | true | true | LargeBinary",
    ];
    assert_eq!(query(&outcome, sql).await, expected);
    let stored = stored_sizes(&outcome);
    assert_eq!(stored.len(), 6);
    assert!(stored.iter().all(|(format, _)| format == "png"), "{stored:?}");
    let rejects = query(&outcome, "select url, reject_code, reject_stage from images.rejects").await;
    let mut expected: Vec<(String, &str)> = Vec::new();
    expected.extend(
        IMAGES.iter().filter_map(|(path, code)| code.map(|code| (format!("http://img.test{path}"), code))),
    );
    expected.push(("nonsense".into(), "bad_url"));
    expected.push(("file:///etc/passwd".into(), "scheme"));
    expected.push(("http://10.0.0.1/x.png".into(), "private_address"));
    assert_eq!(rejects.len(), expected.len(), "{rejects:#?}");
    for (url, code) in expected {
        assert!(rejects.contains(&format!("{url} | {code} | images")), "{url} {code}: {rejects:#?}");
        assert!(
            Why::ALL.iter().any(|why| why.code() == code) || twinlens_image::CODES.contains(&code),
            "{code}"
        );
    }
    let details =
        query(&outcome, "select count(*) from images.rejects where reject_detail not like '%' || url || '%'")
            .await;
    assert_eq!(details, ["0"], "each detail names its URL");
    assert_eq!((web.count("/b.png"), web.count("/robots.txt"), web.count("/private.png")), (1, 1, 0));
}

#[tokio::test]
async fn two_runs_give_the_same_bytes() {
    let web = Web::start(image_site()).await.unwrap();
    let mut both = Vec::new();
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        write_list(dir.path());
        both.push(files(&run_in(dir.path(), FETCH, &[("img.test", web.addr())]).await.unwrap()));
    }
    assert!(both[0].len() >= 5, "{both:?}");
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn a_dead_network_stops_the_run_instead_of_filling_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let names: Vec<String> = (0..40).map(|n| format!("h{n}.test")).collect();
    let lines: String =
        names.iter().map(|name| format!("{{\"url\": \"http://{name}/\", \"caption\": \"x\"}}\n")).collect();
    std::fs::write(dir.path().join("pairs.jsonl"), lines).unwrap();
    let hosts: Vec<(&str, SocketAddr)> = names.iter().map(|name| (name.as_str(), free)).collect();
    let pipeline = FETCH.replace("split_rows = 7", "split_rows = 100");
    let error = run_in(dir.path(), &pipeline, &hosts).await.unwrap_err().to_string();
    assert!(error.contains("the network seems to be down"), "{error}");
    assert_eq!(Dataset::open(dir.path().join("run/images")).unwrap().state().commits.len(), 0);
}

#[test]
fn faults_of_the_options_are_told_at_their_place() {
    let cases = [
        (
            "[stages.a]\nkind = \"crawl\"\nseeds = [\"ftp://x/\", \"http://ok/\", \"nonsense\"]",
            vec!["`ftp://x/` is no web address", "`nonsense`"],
        ),
        (
            "[stages.a]\nkind = \"crawl\"\nseeds = []\n[stages.b]\nkind = \"table\"\nfiles = []",
            vec!["`seeds` is empty", "`files` is empty"],
        ),
        (
            "[stages.a]\nkind = \"crawl\"\nseeds = [\"http://ok/\"]\nhttp = { per_host = 0 }",
            vec!["`per_host` must be"],
        ),
        ("[stages.a]\nkind = \"crawl\"\nseeds = [\"http://ok/\"]\nhttp = { timeout = 0 }", vec!["timeout"]),
        (
            "[stages.a]\nkind = \"table\"\nfiles = [\"x.dat\"]\nkeep = [\"url\"]",
            vec!["x.dat", "`url` already"],
        ),
        (
            "[stages.a]\nkind = \"table\"\nfiles = [\"x.csv\"]\n[stages.b]\nkind = \"fetch\"\ninput = \"a\"\nresize = { size = 0 }",
            vec!["`size` must be"],
        ),
    ];
    for (stages, expected) in cases {
        let text = format!("name = \"t\"\nseed = 1\n{stages}\n");
        let report = config::check(Path::new("p.toml"), &text, &registry(), &Overrides::default())
            .unwrap_err()
            .render(false);
        for part in expected {
            assert!(report.contains(part), "{part} in:\n{report}");
        }
    }
}

#[test]
fn the_examples_are_pipelines() {
    for kind in registry().kinds() {
        let inputs = "[stages.pairs]\nkind = \"table\"\nfiles = [\"x.csv\"]\n";
        let inputs = if kind.example.contains("input = \"pairs\"") { inputs } else { "" };
        let text = format!("name = \"t\"\nseed = 1\n{inputs}{}", kind.example);
        if let Err(report) = config::check(Path::new("p.toml"), &text, &registry(), &Overrides::default()) {
            panic!("{}", report.render(false));
        }
    }
}
