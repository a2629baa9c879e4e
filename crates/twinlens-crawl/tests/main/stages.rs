//! Whole runs: what stages keep and reject, that nothing is lost, and that runs are reproducible.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::{FinishedRun, Lab, faults, registry, stage};
use twinlens_crawl::net::FetchErrorKind;
use twinlens_crawl::stages::{LOCAL_CODES, TABLE_CODES};
use twinlens_dataset::Dataset;
use twinlens_pipeline::RunError;
use twinlens_testkit::{Answer, Site, WebServer, web::png};

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
async fn a_crawl_yields_pairs_and_rejects() {
    let web = WebServer::start(clip_site()).await.unwrap();
    let done = Lab::new().host("clip.test", &web).run(CRAWL).await;
    let pairs =
        done.rows("select url, caption, page_url, text_source from pages order by url, text_source").await;
    let expected = [
        "http://clip.test/behind.png | behind | http://clip.test/behind.html | alt",
        "http://clip.test/behind.png | from behind | http://clip.test/behind.html | title",
        "http://clip.test/cat.png | a cat | http://clip.test/cats.html | alt",
        "http://clip.test/cat.png | my cat & I | http://clip.test/cats.html | figcaption",
        "http://clip.test/dog.png | a chïen | http://clip.test/dogs.html | alt",
    ];
    assert_eq!(pairs, expected);
    let visits =
        done.rows("select url, depth, outcome, redirect, pairs from pages.visits order by depth, url").await;
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
        done.rows("select page_url, reject_stage, reject_code from pages.rejects order by page_url").await;
    assert_eq!(rejects.len(), 4, "{rejects:?}");
    assert!(rejects.contains(&"http://clip.test/private/x.html | pages | robots_disallowed".to_string()));
    let requests = web.paths().into_iter().fold(BTreeMap::<String, u32>::new(), |mut counts, path| {
        *counts.entry(path).or_default() += 1;
        counts
    });
    assert!(requests.values().all(|count| *count == 1), "each page is requested once: {requests:?}");
    assert!(!requests.contains_key("/private/x.html") && !requests.contains_key("/cat.png"));
}

#[tokio::test]
async fn an_interrupted_crawl_gives_the_same_dataset() {
    let web = WebServer::start(clip_site()).await.unwrap();
    let lab = || Lab::new().host("clip.test", &web);
    let (expected, parts) = (lab().run(CRAWL).await.files(), lab());
    for stops in 0.. {
        assert!(stops < 20, "each run commits a wave");
        if let Some(done) = parts.run_until(1, CRAWL).await {
            assert!(stops >= 4, "it was interrupted {stops} times");
            assert_eq!(done.files(), expected);
            break;
        }
    }
}

#[tokio::test]
async fn a_crawl_with_no_reachable_seed_is_an_error() {
    let web = WebServer::start(Site::new()).await.unwrap();
    let error = Lab::new().host("clip.test", &web).run_error(CRAWL).await;
    assert!(
        matches!(&error, RunError::User { message, hint: Some(_) } if message.contains("http://clip.test/: HTTP 404")),
        "{error}"
    );
}

#[tokio::test]
async fn malformed_rows_of_tables_are_rejected_one_by_one() {
    let lab = Lab::new();
    let long = format!("http://a/7,\"{}\",0\n", "long ".repeat(300_000));
    let csv = [
        b"\xef\xbb\xbfURL,TEXT,score\r\nhttp://a/1,one,0.5\r\nhttp://a/2,\"two, \"\"quoted\"\"\nover lines\",1\n".as_slice(),
        b"http://a/3,too few\n\n,no url,2\nhttp://a/5,  ,3\nhttp://a/6,bad \xff,4\n",
        long.as_bytes(),
        b"http://a/8,last,9",
    ];
    lab.write("a.csv", csv.concat());
    lab.write("b.tsv", b"caption\timage_url\tscore\nthree\thttp://b/1\t7\n");
    lab.write("c.jsonl", b"{\"url\": \"http://c/1\", \"alt\": \"four\", \"score\": 8}\n{\"url\": oops}\n\n[1]\n{\"url\": null, \"text\": \"x\"}\n\"\xff\"\n");
    let pipeline = |rows: u32| {
        let files = "files = [\"*.csv\", \"b.tsv\", \"c.jsonl\"]\nkeep = [\"score\"]";
        stage("pairs", "table", &format!("{files}\nsplit_rows = {rows}"))
    };
    let done = lab.run(&pipeline(1000)).await;
    let pairs = done.rows("select url, caption, score, text_source from pairs order by url").await;
    let expected = [
        "http://a/1 | one | 0.5 | table",
        "http://a/2 | two, \"quoted\"\nover lines | 1 | table",
        "http://a/8 | last | 9 | table",
        "http://b/1 | three | 7 | table",
        "http://c/1 | four | 8 | table",
    ];
    assert_eq!(pairs, expected);
    let rejects =
        done.rows("select reject_code, reject_detail from pairs.rejects order by reject_detail").await;
    let expected = [
        ("malformed_row", "a.csv row 2, line 5: 2 fields, but the header has 3"),
        ("no_url", "a.csv row 3, line 7: no URL"),
        ("no_caption", "a.csv row 4, line 8: no caption"),
        ("not_utf8", "a.csv row 5, line 9: field 2"),
        ("row_too_long", "a.csv row 6, line 10: longer than"),
        ("malformed_json", "c.jsonl row 1, line 2: expected value"),
        ("malformed_json", "c.jsonl row 2, line 4: invalid type"),
        ("no_url", "c.jsonl row 3, line 5: no URL"),
        ("not_utf8", "c.jsonl row 4, line 6: the value is not UTF-8"),
    ];
    assert_eq!(rejects.len(), expected.len(), "{rejects:#?}");
    for (found, (code, detail)) in rejects.iter().zip(expected) {
        assert!(found.starts_with(&format!("{code} | {detail}")), "{found}");
        assert!(TABLE_CODES.contains(&code));
    }
    // Splits of other sizes give the same rows, rejects and locations.
    for rows in [1, 2, 3] {
        let done = lab.run(&pipeline(rows)).await;
        assert_eq!(done.rows("select url, caption, score, text_source from pairs order by url").await, pairs);
        assert_eq!(
            done.rows("select reject_code, reject_detail from pairs.rejects order by reject_detail").await,
            rejects
        );
    }
}

#[tokio::test]
async fn parquet_tables_and_their_errors() {
    use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
    let lab = Lab::new();
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
    let file = std::fs::File::create(lab.path("part-0.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let table = |more: &str| {
        stage("pairs", "table", &format!("files = [\"part-*.parquet\"]\nsplit_rows = 2\n{more}"))
    };
    let done = lab.run(&table("keep = [\"similarity\"]")).await;
    assert_eq!(done.rows("select url, caption, similarity from pairs").await, ["http://a/1 | one | 0.25"]);
    let rejects =
        done.rows("select reject_code, reject_detail from pairs.rejects order by reject_detail").await;
    assert_eq!(
        rejects,
        ["no_url | part-0.parquet row 1: no URL", "no_caption | part-0.parquet row 2: no caption"]
    );

    let error = lab.run_error(&table("columns = { caption = \"ALT\" }")).await.to_string();
    assert!(error.contains("part-0.parquet: no column `ALT`; there are: URL, TEXT"), "{error}");
    lab.write("part-1.parquet", b"PAR1 not really");
    let error = lab.run_error(&table("")).await.to_string();
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

/// Path and expected code; `None` for images that are kept.
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

/// A lab with a table of those images and their host.
fn image_lab(web: &WebServer) -> Lab {
    let mut lines = String::new();
    for (path, _) in IMAGES {
        lines.push_str(&format!("{{\"url\": \"http://img.test{path}\", \"caption\": \"image {path}\"}}\n"));
    }
    // The same image under another caption: fetched once, kept twice.
    lines.push_str("{\"url\": \"http://img.test/b.png\", \"caption\": \"again\"}\n");
    lines.push_str("{\"url\": \"nonsense\", \"caption\": \"no URL\"}\n{\"url\": \"ftp://img.test/a.png\", \"caption\": \"a file\"}\n");
    lines.push_str("{\"url\": \"http://10.0.0.1/x.png\", \"caption\": \"private\"}\n");
    let lab = Lab::new().host("img.test", web);
    lab.write("pairs.jsonl", lines);
    lab
}

/// Format and length of the stored images.
fn stored_sizes(done: &FinishedRun) -> Vec<(String, usize)> {
    use arrow::array::AsArray;
    let images = done.dataset("images");
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
async fn fetch_keeps_images_and_rejects_the_others_with_codes() {
    let web = WebServer::start(image_site()).await.unwrap();
    let pipeline = FETCH.replace("split_rows = 7", "split_rows = 100");
    let done = image_lab(&web).run(&pipeline).await;
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
    assert_eq!(done.rows(sql).await, expected);
    let stored = stored_sizes(&done);
    assert_eq!(stored.len(), 6);
    assert!(stored.iter().all(|(format, _)| format == "png"), "{stored:?}");
    let rejects = done.rows("select url, reject_code, reject_stage from images.rejects").await;
    let mut expected: Vec<(String, &str)> = Vec::new();
    expected.extend(
        IMAGES.iter().filter_map(|(path, code)| code.map(|code| (format!("http://img.test{path}"), code))),
    );
    expected.push(("nonsense".into(), "file_not_found"));
    expected.push(("ftp://img.test/a.png".into(), "scheme"));
    expected.push(("http://10.0.0.1/x.png".into(), "private_address"));
    assert_eq!(rejects.len(), expected.len(), "{rejects:#?}");
    for (url, code) in expected {
        assert!(rejects.contains(&format!("{url} | {code} | images")), "{url} {code}: {rejects:#?}");
        assert!(
            FetchErrorKind::ALL.iter().any(|kind| kind.code() == code)
                || twinlens_image::CODES.contains(&code)
                || LOCAL_CODES.contains(&code),
            "{code}"
        );
    }
    let details =
        done.rows("select count(*) from images.rejects where reject_detail not like '%' || url || '%'").await;
    assert_eq!(details, ["0"], "each detail names its URL");
    assert_eq!((web.count("/b.png"), web.count("/robots.txt"), web.count("/private.png")), (1, 1, 0));
}

#[tokio::test]
async fn tdm_reservations_are_honoured() {
    let rules = r#"[{"location": "/open/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}]"#;
    let site = || {
        Site::new()
            .at("/.well-known/tdmrep.json", Answer::body("application/json", rules))
            .at("/", Answer::page("<a href=/open/a.html>a</a><img src=/x.png alt=x>").header("etag", "\"1\""))
            .at("/", Answer::status(304))
            .page("/open/a.html", "<img src=/open/b.png alt=b><img src=/c.png alt=c>")
            .image("/open/b.png", 64, 64)
            .image("/c.png", 64, 64)
    };
    let web = WebServer::start(site()).await.unwrap();
    let seeds = "seeds = [\"http://clip.test/\"]\ncache = \"cache/pages\"";
    let pipeline = |opt_outs: bool| {
        let http = format!("http = {{ retries = 0, opt_outs = {opt_outs} }}");
        stage("pages", "crawl", &format!("{seeds}\n{http}"))
            + &stage("images", "fetch", &format!("input = \"pages\"\n{http}"))
    };
    let lab = Lab::new().host("clip.test", &web);
    // In the second crawl the page is cached, and the reservation still applies.
    for _ in 0..2 {
        let done = lab.run(&pipeline(true)).await;
        assert_eq!(done.rows("select caption from images").await, ["b"]);
        let rejects = "select reject_stage, reject_code, coalesce(url, page_url), reject_detail like '%tdmrep.json of clip.test%' \
                       from pages.rejects union all \
                       select reject_stage, reject_code, url, reject_detail like '%tdmrep.json of clip.test%' from images.rejects";
        let mut rejects = done.rows(rejects).await;
        rejects.sort();
        let expected = [
            "images | opted_out | http://clip.test/c.png | true",
            "pages | opted_out | http://clip.test/ | true",
        ];
        assert_eq!(rejects, expected);
        std::fs::remove_dir_all(lab.path("run")).unwrap();
    }
    let all = lab.run(&pipeline(false)).await.rows("select caption from images order by caption").await;
    assert_eq!(all, ["b", "c"]);
}

#[tokio::test]
async fn two_runs_give_the_same_bytes() {
    let web = WebServer::start(image_site()).await.unwrap();
    let mut both = Vec::new();
    for _ in 0..2 {
        both.push(image_lab(&web).run(FETCH).await.files());
    }
    assert!(both[0].len() >= 5, "{both:?}");
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn a_dead_network_stops_the_run_instead_of_rejecting_rows() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let names: Vec<String> = (0..40).map(|n| format!("h{n}.test")).collect();
    let lines: String =
        names.iter().map(|name| format!("{{\"url\": \"http://{name}/\", \"caption\": \"x\"}}\n")).collect();
    let lab = names.iter().fold(Lab::new(), |lab, name| lab.host_at(name, free));
    lab.write("pairs.jsonl", lines);
    let pipeline = FETCH.replace("split_rows = 7", "split_rows = 100");
    let error = lab.run_error(&pipeline).await.to_string();
    assert!(error.contains("the network seems to be down"), "{error}");
    assert_eq!(Dataset::open(lab.path("run/images")).unwrap().state().commits.len(), 0);
}

#[test]
fn bad_options_are_reported() {
    let cases = [
        (
            "[stages.a]\nkind = \"crawl\"\nseeds = [\"ftp://x/\", \"http://ok/\", \"nonsense\"]",
            vec!["`ftp://x/` is not an http(s) URL", "`nonsense`"],
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
            vec!["x.dat", "already a column `url`"],
        ),
        (
            "[stages.a]\nkind = \"table\"\nfiles = [\"x.csv\"]\n[stages.b]\nkind = \"fetch\"\ninput = \"a\"\nresize = { size = 0 }",
            vec!["`size` must be"],
        ),
    ];
    for (stages, expected) in cases {
        let report = faults(stages).unwrap();
        for part in expected {
            assert!(report.contains(part), "{part} in:\n{report}");
        }
    }
}

#[test]
fn the_examples_are_valid() {
    for kind in registry().kinds() {
        let inputs = "[stages.pairs]\nkind = \"table\"\nfiles = [\"x.csv\"]\n";
        let inputs = if kind.example.contains("input = \"pairs\"") { inputs } else { "" };
        if let Some(report) = faults(&format!("{inputs}{}", kind.example)) {
            panic!("{report}");
        }
    }
}
