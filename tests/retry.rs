//! What a failing server cost is got back: after `retry` a run equals one without faults, shard for shard.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use twinlens_testkit::web::{Answer, Faults, Site, Web, png};

/// Rows of the run; as many as one likes where the environment says so.
fn rows() -> usize {
    std::env::var("TWINLENS_HOSTILE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(600)
}

fn call(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinlens"));
    command.args(args).current_dir(folder).env("SOURCE_DATE_EPOCH", "1700000000").stdin(Stdio::null());
    command.output().unwrap()
}

/// What a call that succeeds prints, to stdout and stderr.
fn done(folder: &Path, args: &[&str]) -> String {
    let output = call(folder, args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}\n{said}");
    String::from_utf8(output.stdout).unwrap() + &said
}

/// Rows of a query, as CSV.
fn ask(folder: &Path, dir: &str, query: &str) -> Vec<String> {
    let output = call(folder, &["sql", dir, "--format", "csv", query]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().skip(1).map(ToString::to_string).collect()
}

/// The main shards of a dataset by split and part, whatever they are called.
fn shards(folder: PathBuf) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder.join("data")).unwrap().map(|entry| entry.unwrap());
    let name = |file: &fs::DirEntry| file.file_name().to_string_lossy()[..10].to_string();
    files.map(|file| (name(&file), fs::read(file.path()).unwrap())).collect()
}

#[test]
fn what_failed_is_tried_again_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (rows, faults) = (rows(), Faults { one_in: 5, seed: 3 });
    // Almost every split waits for a server that does not answer: of many rows, few of them.
    let split_rows = 100.max(rows / 50);
    let image = png(24, 16);
    let site = Site::new()
        .at("/robots.txt", Answer::status(404))
        .otherwise(move |_| Answer::body("image/png", image.clone()))
        .failing(faults)
        .keep_alive()
        .quiet();
    let web = runtime.block_on(Web::start(site)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let list: String =
        (0..rows).map(|row| format!("http://img.test/{row}.png\timage number {row}\n")).collect();
    fs::write(here.join("list.tsv"), format!("url\tcaption\n{list}")).unwrap();
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
    fs::write(here.join("again.toml"), pipeline).unwrap();
    done(here, &["run", "again.toml", "--dir", "failing"]);
    let failed = (0..rows).filter(|row| faults.of(&format!("/{row}.png")).is_some() && *row != 7).count();
    assert!(failed > rows / 10);
    assert_eq!(
        ask(here, "failing", "select count(*) from images.rejects where reject_stage = 'images'"),
        [failed.to_string()]
    );

    // One kind of failure while the server still fails: the attempts are counted, and no other row is asked for.
    let missing =
        ask(here, "failing", "select count(*) from images.rejects where reject_code = 'http_not_found'");
    let before = web.paths().len();
    done(
        here,
        &["retry", "again.toml", "images", "--dir", "failing", "--where", "reject_code = 'http_not_found'"],
    );
    let asked = web.paths().split_off(before);
    assert_eq!(asked.iter().filter(|path| *path != "/robots.txt").count().to_string(), missing[0]);
    let attempts =
        "select attempts, count(*) from images.rejects where reject_code = 'http_not_found' group by 1";
    assert_eq!(ask(here, "failing", attempts), [format!("2,{}", missing[0])]);

    web.heal();
    let said = done(here, &["retry", "again.toml", "images", "--dir", "failing"]);
    assert!(
        said.contains(&format!(
            "{failed} rejects tried again; images: {} -> {} rows",
            rows - 1 - failed,
            rows - 1
        )),
        "{said}"
    );
    assert_eq!(
        ask(here, "failing", "select reject_stage, count(*) from images.rejects group by 1"),
        ["short,1"]
    );
    let nothing = done(here, &["retry", "again.toml", "images", "--dir", "failing"]);
    assert!(nothing.contains("no reject of `images` is picked by true"), "{nothing}");

    // What was made of the dataset before is stale, and `plan` says so.
    let plan = done(here, &["plan", "again.toml", "--dir", "failing"]);
    assert!(plan.contains("input `images` changed"), "{plan}");
    done(here, &["run", "again.toml", "--dir", "failing"]);
    assert_eq!(ask(here, "failing", "select images from count"), [(rows - 1).to_string()]);

    done(here, &["run", "again.toml", "--dir", "healthy"]);
    let images = |dir: &str| shards(here.join(dir).join("images"));
    assert!(images("failing") == images("healthy"), "the shards are the same");
    let status = done(here, &["status", "failing"]);
    assert!(!status.contains("broken"), "{status}");
}

#[test]
fn mistakes_of_a_retry_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("list.csv"), "url,caption\nhttp://img.test/a.png,an image\n,no address\n").unwrap();
    let pipeline = "name = 'small'\n[stages.list]\nkind = 'table'\nfiles = ['list.csv']\n\
                    [stages.long]\nkind = 'filter'\ninput = 'list'\nwhere = 'char_length(caption) > 20'\n";
    fs::write(here.join("small.toml"), pipeline).unwrap();
    let mistake = |args: &[&str]| {
        let output = call(here, args);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let early = mistake(&["retry", "small.toml", "long"]);
    assert!(
        early.contains("is not complete and current") && early.contains("run the pipeline first"),
        "{early}"
    );
    done(here, &["run", "small.toml"]);
    let unknown = mistake(&["retry", "small.toml", "lang"]);
    assert!(unknown.contains("no stage `lang`") && unknown.contains("list, long"), "{unknown}");
    let source = mistake(&["retry", "small.toml", "list"]);
    assert!(source.contains("makes its rows itself"), "{source}");
}
