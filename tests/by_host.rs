//! `split_by = "host"`: all images of a host are in one split, whoever makes it.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use twinlens::dataset::storage::Location;
use twinlens::dataset::{Dataset, MAIN, REJECTS};
use twinlens::pipeline::run::session;
use twinlens_testkit::web::{Answer, Site, WebServer, png};

use crate::support::shared::{all_files, url};
use crate::support::{Place, RandomTimes, stderr};

const HOSTS: usize = 13;

struct Fixture {
    place: Place,
    web: WebServer,
    runtime: tokio::runtime::Runtime,
}

impl Fixture {
    /// 200 images of 13 hosts, one of which has half of them; some are missing.
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let image = png(24, 16);
        let site = Site::new().fallback(move |path| match path {
            _ if path.ends_with("7.png") => Answer::status(404),
            _ if path.ends_with(".png") => Answer::body("image/png", image.clone()),
            _ => Answer::status(404),
        });
        let web = runtime.block_on(WebServer::start(site.keep_alive())).unwrap();
        let place = Place::new();
        let host = |row: usize| if row.is_multiple_of(2) { 0 } else { row % HOSTS };
        let line = |row: usize| format!("http://host{}.test/{row}.png,image number {row}\n", host(row));
        let broken = "not a url at all,image of nothing\n".to_string();
        let list: String = (0..200).map(line).chain([broken]).collect();
        place.write("list.csv", &format!("url,caption\n{list}"));
        let resolve: Vec<String> =
            (0..HOSTS).map(|host| format!("\"host{host}.test\" = \"{}\"", web.addr())).collect();
        let pipeline = format!(
            r#"
            name = "hosts"
            [vars]
            by = "host"
            [stages.list]
            kind = "table"
            files = ["list.csv"]
            [stages.long]
            kind = "filter"
            input = "list"
            where = "caption <> 'image number 11'"
            [stages.images]
            kind = "fetch"
            input = "long"
            split_rows = 20
            split_by = "${{by}}"
            http = {{ resolve = {{ {} }}, retries = 0, per_host = 50, robots = false }}
            "#,
            resolve.join(", ")
        );
        place.write("pipeline.toml", &pipeline);
        Self { place, web, runtime }
    }

    fn run(&self, dir: &str, more: &[&str]) {
        let dir = url(&self.place, dir);
        self.place
            .done(&[&["run", "pipeline.toml", "--progress", "never", "--dir", &dir][..], more].concat());
    }

    /// The hosts of each split, with their rows.
    fn hosts(&self, dir: &str) -> BTreeMap<u64, BTreeMap<String, usize>> {
        let folder =
            Location::parse(&url(&self.place, dir), "".as_ref(), &self.place.path("scratch")).unwrap();
        let dataset = Dataset::open(folder.join("images")).unwrap();
        let session = session::plain(&twinlens::registry(), 1);
        let mut found: BTreeMap<u64, BTreeMap<String, usize>> = BTreeMap::new();
        for split in dataset.state().commits.keys() {
            for table in [MAIN, REJECTS] {
                let rows = dataset.by_split(&session, table, Some(&["url"]), ("split", &[*split])).unwrap();
                for batch in self.runtime.block_on(rows.collect()).unwrap() {
                    let urls = datafusion::arrow::compute::cast(
                        batch.column(0),
                        &datafusion::arrow::datatypes::DataType::Utf8,
                    );
                    let urls = urls.unwrap();
                    for address in datafusion::arrow::array::AsArray::as_string::<i32>(&urls).iter().flatten()
                    {
                        let host = address.split('/').nth(2).unwrap_or("none").to_string();
                        *found.entry(*split).or_default().entry(host).or_default() += 1;
                    }
                }
            }
        }
        found
    }

    #[track_caller]
    fn assert_same(&self, expected: &str, found: &str) {
        let (expected, mut found) =
            (all_files(&self.place.path(expected)), all_files(&self.place.path(found)));
        found.retain(|name, _| expected.contains_key(name) || !name.contains("/commits/"));
        assert!(expected.len() > 10 && !expected.keys().any(|name| name.starts_with(".passes")));
        assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{name} differs");
        }
    }
}

#[test]
fn a_host_is_in_one_split() {
    let fixture = Fixture::new();
    fixture.run("alone", &[]);
    let hosts = fixture.hosts("alone");
    assert_eq!(hosts.values().flat_map(BTreeMap::values).sum::<usize>(), 200);
    let mut all: Vec<&String> = hosts.values().flat_map(BTreeMap::keys).collect();
    let (found, ()) = (all.len(), all.sort());
    all.dedup();
    // And one group of what is no URL.
    assert_eq!((found, all.len()), (HOSTS + 1, HOSTS + 1), "a host is in two splits: {hosts:?}");
    assert!(hosts.len() > 4, "{hosts:?}");

    // The same rows as in splits of rows, and the same rejects.
    fixture.run("rows", &["--set", "by=rows"]);
    for query in [
        "select uid, url, sha256 from images order by uid",
        "select uid, reject_code from images.rejects where reject_code <> 'filtered' order by uid",
    ] {
        let ask = |dir: &str| fixture.place.ask(&url(&fixture.place, dir), query);
        assert_eq!(ask("alone"), ask("rows"));
    }

    // One more URL costs one image, in the split of its host.
    let list = std::fs::read_to_string(fixture.place.path("list.csv")).unwrap();
    fixture.place.write("list.csv", &format!("{list}http://host3.test/1000.png,a new image\n"));
    let asked = || fixture.web.paths().iter().filter(|path| path.ends_with(".png")).count();
    let before = asked();
    fixture.run("alone", &[]);
    assert_eq!(asked() - before, 1);
    fixture.run("nothing", &[]);
    let shards = |dir: &str| {
        let mut files = all_files(&fixture.place.path(dir));
        files.retain(|name, _| name.starts_with("images/") && name.ends_with(".parquet"));
        files
    };
    assert!(shards("alone") == shards("nothing"), "not as from nothing");

    // What is tried again stays where it is.
    let dir = url(&fixture.place, "alone");
    fixture.place.done(&[
        "retry",
        "pipeline.toml",
        "images",
        "--where",
        "reject_code like 'http%'",
        "--dir",
        &dir,
    ]);
    assert_eq!(
        fixture.place.ask(
            &dir,
            "select attempts, count(*) from \"images\".rejects where reject_code like 'http%' group by 1"
        ),
        ["2,20"]
    );
}

#[test]
fn splits_by_host_are_those_of_one_process() {
    let fixture = Fixture::new();
    fixture.run("alone", &[]);
    let shared = url(&fixture.place, "shared");
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let mut worker = fixture.place.command(&["work", &shared, "--idle", "30s"]);
            worker.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    fixture.run("shared", &["--workers-only"]);
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    fixture.assert_same("alone", "shared");

    let mut times = RandomTimes(20_261_211);
    for round in 0..3 {
        let dir = url(&fixture.place, &format!("killed-{round}"));
        loop {
            let mut run =
                fixture.place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", &dir]);
            let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(times.next(Duration::from_millis(1500)));
            if let Some(status) = run.try_wait().unwrap() {
                assert!(status.success());
                break;
            }
            run.kill().unwrap();
            run.wait().unwrap();
        }
        fixture.assert_same("alone", &format!("killed-{round}"));
    }
}
