//! Memory is bounded by configuration, not by input: ten times the rows need at most 20 % more.
//!
//! Splits are small, so that both runs have several: one split is held whole, up to 65,536 rows of
//! a list without images. Peak memory varies by 10 % with the allocator's state, so the test
//! compares the minimum over several runs.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use twinlens_testkit::web::{Site, WebServer};

use crate::support::Place;

const ROWS: usize = 4_000;

/// Peak resident memory of a run over `rows` images, in KiB.
fn peak(web: &WebServer, rows: usize) -> u64 {
    let place = Place::new();
    let host = web.addr();
    let list: String =
        (0..rows).map(|row| format!("http://images.example/{row}.png\timage number {row}\n")).collect();
    place.write("list.tsv", &format!("url\tcaption\n{list}"));
    let pipeline = format!(
        r#"
        name = "memory"
        [stages.list]
        kind = "table"
        files = ["list.tsv"]
        split_rows = 2000
        [stages.images]
        kind = "fetch"
        input = "list"
        split_rows = 250
        resize = {{ size = 64, mode = "shortest" }}
        http = {{ resolve = {{ "images.example" = "{host}" }}, robots = false }}
        "#
    );
    place.write("pipeline.toml", &pipeline);
    let mut command = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", "run"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let found = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        peak = found.unwrap_or(peak).max(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn memory_does_not_grow_with_rows() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let site = (0..ROWS * 10)
        .fold(Site::new(), |site, row| site.image(&format!("/{row}.png"), 96 + (row % 32) as u32, 96));
    let web = runtime.block_on(WebServer::start(site)).unwrap();
    let minimum = |rows: usize, runs: usize| (0..runs).map(|_| peak(&web, rows)).min().unwrap();
    let (few, many) = (minimum(ROWS, 3), minimum(ROWS * 10, 2));
    println!("{few} KiB for {ROWS} rows, {many} KiB for {} rows", ROWS * 10);
    assert!(few > 0 && many * 10 <= few * 12, "{few} KiB for {ROWS} rows, {many} KiB for {} rows", ROWS * 10);
}
