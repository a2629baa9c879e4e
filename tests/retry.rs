//! After failures of a server and a `retry`, the shards are the same as those of a run without
//! failures.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use twinlens_testkit::web::{Answer, Faults, Site, WebServer, png};

use crate::support::Place;

/// Rows of the run, which can be set by an environment variable.
fn rows() -> usize {
    std::env::var("TWINLENS_HOSTILE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(600)
}

/// The main shards of a dataset by split and part.
fn shards(folder: PathBuf) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder.join("data")).unwrap().map(|entry| entry.unwrap());
    let name = |file: &fs::DirEntry| file.file_name().to_string_lossy()[..10].to_string();
    files.map(|file| (name(&file), fs::read(file.path()).unwrap())).collect()
}

#[test]
fn only_failed_rows_are_retried() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (rows, faults) = (rows(), Faults { one_in: 5, seed: 3 });
    // Almost every split waits for a timeout, so there are few splits even with many rows.
    let split_rows = 100.max(rows / 50);
    let image = png(24, 16);
    let site = Site::new()
        .at("/robots.txt", Answer::status(404))
        .fallback(move |_| Answer::body("image/png", image.clone()))
        .with_faults(faults)
        .keep_alive()
        .without_headers();
    let web = runtime.block_on(WebServer::start(site)).unwrap();
    let place = Place::new();
    let list: String =
        (0..rows).map(|row| format!("http://img.test/{row}.png\timage number {row}\n")).collect();
    place.write("list.tsv", &format!("url\tcaption\n{list}"));
    let pipeline = format!(
        r#"
        name = "again"
        seed = 5
        [stages.list]
        kind = "table"
        files = ["list.tsv"]
        [stages.short]
        kind = "filter"
        input = "list"
        where = "caption <> 'image number 7'"
        [stages.images]
        kind = "fetch"
        input = "short"
        split_rows = {split_rows}
        concurrency = 100
        limits = {{ max_bytes = 200000 }}
        http = {{ resolve = {{ "img.test" = "{}" }}, retries = 0, per_host = 100, headers_timeout = 3.0, body_timeout = 3.0 }}
        [stages.count]
        kind = "sql"
        query = "select count(*) as images from images"
        "#,
        web.addr()
    );
    place.write("again.toml", &pipeline);
    place.done(&["run", "again.toml", "--dir", "failing"]);
    let failed =
        (0..rows).filter(|row| faults.for_path(&format!("/{row}.png")).is_some() && *row != 7).count();
    assert!(failed > rows / 10);
    assert_eq!(
        place.ask("failing", "select count(*) from images.rejects where reject_stage = 'images'"),
        [failed.to_string()]
    );

    // Retry one kind of failure while the server still fails: the attempts are counted, and no
    // other row is requested.
    let missing =
        place.ask("failing", "select count(*) from images.rejects where reject_code = 'http_not_found'");
    let before = web.paths().len();
    place.done(&[
        "retry",
        "again.toml",
        "images",
        "--dir",
        "failing",
        "--where",
        "reject_code = 'http_not_found'",
    ]);
    let requested = web.paths().split_off(before);
    assert_eq!(requested.iter().filter(|path| path.ends_with(".png")).count().to_string(), missing[0]);
    let attempts =
        "select attempts, count(*) from images.rejects where reject_code = 'http_not_found' group by 1";
    assert_eq!(place.ask("failing", attempts), [format!("2,{}", missing[0])]);

    web.disable_faults();
    // Without thousands separators.
    let output = place.done(&["retry", "again.toml", "images", "--dir", "failing"]).replace(',', "");
    assert!(
        output.contains(&format!(
            "{failed} rejects retried; images: {} -> {} rows",
            rows - 1 - failed,
            rows - 1
        )),
        "{output}"
    );
    assert_eq!(
        place.ask("failing", "select reject_stage, count(*) from images.rejects group by 1"),
        ["short,1"]
    );
    let nothing = place.done(&["retry", "again.toml", "images", "--dir", "failing"]);
    assert!(nothing.contains("no reject of `images` matches true"), "{nothing}");

    // The stages after the dataset are out of date, and `plan` shows it.
    let plan = place.done(&["plan", "again.toml", "--dir", "failing"]);
    assert!(plan.contains("input `images` changed"), "{plan}");
    place.done(&["run", "again.toml", "--dir", "failing"]);
    assert_eq!(place.ask("failing", "select images from count"), [(rows - 1).to_string()]);

    place.done(&["run", "again.toml", "--dir", "healthy"]);
    let images = |dir: &str| shards(place.path(dir).join("images"));
    assert!(images("failing") == images("healthy"), "the shards differ");
    let status = place.done(&["status", "failing"]);
    assert!(!status.contains("NOT ok"), "{status}");
}

#[test]
fn user_errors_have_hints() {
    let place = Place::new();
    place.write("list.csv", "url,caption\nhttp://img.test/a.png,an image\n,no address\n");
    let pipeline = "name = 'small'\nmax_reject_share = 1\n[stages.list]\nkind = 'table'\nfiles = ['list.csv']\n\
                    [stages.long]\nkind = 'filter'\ninput = 'list'\nwhere = 'char_length(caption) > 20'\n";
    place.write("small.toml", pipeline);
    let error_of = |args: &[&str]| {
        let output = place.output(args);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let early = error_of(&["retry", "small.toml", "long"]);
    assert!(
        early.contains("is not complete and current") && early.contains("run the pipeline first"),
        "{early}"
    );
    place.done(&["run", "small.toml"]);
    let unknown = error_of(&["retry", "small.toml", "lang"]);
    assert!(unknown.contains("no stage `lang`") && unknown.contains("list, long"), "{unknown}");
    let source = error_of(&["retry", "small.toml", "list"]);
    assert!(source.contains("makes its rows itself"), "{source}");
}
