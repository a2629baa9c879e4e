//! Several processes make the splits of one run: `twinlens run --workers` and `twinlens work`, over
//! a `file://` store.
//!
//! `TWINLENS_KILLS=200 cargo test -p twinlens --test main workers::` kills more often than CI.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::shared::{all_files, place, url};
use crate::support::{Place, RandomTimes, kills, stderr, stdout};

fn run(place: &Place, dir: &str, args: &[&str]) -> Command {
    let url = url(place, dir);
    let mut command = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", &url]);
    command.args(args);
    command.env("WORD", "x").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn worker(place: &Place, dir: &str, args: &[&str]) -> Command {
    let url = url(place, dir);
    // One that comes after the end of the run must not hold the test for ten minutes.
    let mut command = place.command(&["work", &url, "--idle", "30s"]);
    command.args(args);
    command.env("WORD", "x").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The output of a process that ends well.
#[track_caller]
fn ends_well(process: Child) -> String {
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stderr(&output)
}

/// Splits that a worker made, by its last line.
fn splits_made(said: &str) -> usize {
    let line = said.lines().last().unwrap_or_default();
    let number = line.strip_prefix("made ").and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[track_caller]
fn assert_same(place: &Place, expected: &str, found: &str) {
    let (expected, mut found) = (all_files(&place.path(expected)), all_files(&place.path(found)));
    // A worker that was slower than the run may leave the record of a split that nobody reads.
    found.retain(|name, _| expected.contains_key(name) || !name.contains("/commits/"));
    assert!(expected.len() > 60);
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

fn files_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

fn reference(place: &Place) {
    ends_well(run(place, "alone", &[]).spawn().unwrap());
}

#[test]
fn a_run_with_workers_is_that_of_one_process() {
    let place = place();
    reference(&place);
    // Two that wait for the run, and one that comes while it goes on. The run makes no splits.
    let mut workers: Vec<Child> = (0..2).map(|_| worker(&place, "shared", &[]).spawn().unwrap()).collect();
    let driver = run(&place, "shared", &["--workers-only"]).spawn().unwrap();
    workers.push(worker(&place, "shared", &["--splits", "1"]).spawn().unwrap());
    ends_well(driver);
    let made: Vec<usize> = workers.into_iter().map(|worker| splits_made(&ends_well(worker))).collect();
    assert_same(&place, "alone", "shared");
    // 60 of the source, four each of the passes of `unique` and `balanced`, one of each other
    // stage; no split is made twice where no process is lost.
    assert_eq!(made.iter().sum::<usize>(), 71, "{made:?}");

    // A run that makes splits itself needs no worker. All is there already but what depends on the
    // option.
    let changed = ["--workers", "--set", "least=20"];
    ends_well(run(&place, "shared", &changed).spawn().unwrap());
    ends_well(run(&place, "alone", &changed[1..]).spawn().unwrap());
    assert_same(&place, "alone", "shared");
    assert_eq!(
        files_below(&place.path("shared/.workers/units")),
        0,
        "what processes told each other is deleted"
    );
}

fn stop(process: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn workers_that_are_killed_or_stopped_lose_nothing() {
    let place = place();
    reference(&place);
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_130), 0, 0);
    while killed < kills(6) {
        let dir = format!("shared-{round}");
        let start = || worker(&place, &dir, &["--splits", "1"]).spawn().unwrap();
        let mut workers = vec![start(), start()];
        let mut driver = run(&place, &dir, &["--workers-only", "--lease", "1s"]).spawn().unwrap();
        let mut stopped: Vec<(Child, Instant)> = Vec::new();
        let before = killed;
        while driver.try_wait().unwrap().is_none() {
            std::thread::sleep(times.next(Duration::from_millis(1500)));
            let mut lost = workers.remove(0);
            workers.push(start());
            if round % 3 == 2 && stopped.is_empty() {
                // A zombie: it goes on when others have long made its split.
                stop(&lost, "-STOP");
                stopped.push((lost, Instant::now()));
            } else {
                lost.kill().unwrap();
                lost.wait().unwrap();
                killed += 1;
            }
            if let Some((zombie, since)) = stopped.first()
                && since.elapsed() > Duration::from_secs(3)
            {
                stop(zombie, "-CONT");
                workers.extend(stopped.pop().map(|(zombie, _)| zombie));
            }
            assert!(killed - before < 100, "the run does not end");
        }
        ends_well(driver);
        stopped.iter().for_each(|(zombie, _)| stop(zombie, "-CONT"));
        for mut left in workers.into_iter().chain(stopped.into_iter().map(|(zombie, _)| zombie)) {
            // Those that saw the run end; the last ones came too late for that.
            let _ = left.kill();
            left.wait().unwrap();
        }
        assert_same(&place, "alone", &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn a_run_that_is_killed_goes_on_with_what_its_workers_made() {
    let place = place();
    reference(&place);
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_131), 0, 0);
    while killed < kills(6) {
        let dir = format!("shared-{round}");
        let workers: Vec<Child> =
            (0..2).map(|_| worker(&place, &dir, &["--splits", "1"]).spawn().unwrap()).collect();
        let start = || run(&place, &dir, &["--workers", "--lease", "5s"]).spawn().unwrap();
        loop {
            let mut driver = start();
            let (until, started) = (times.next(Duration::from_secs(4)), Instant::now());
            while started.elapsed() < until && driver.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if driver.try_wait().unwrap().is_some() {
                ends_well(driver);
                break;
            }
            // The next one need not wait for a lease: it holds the lock that this one held.
            driver.kill().unwrap();
            driver.wait().unwrap();
            killed += 1;
        }
        workers.into_iter().for_each(|worker| drop(ends_well(worker)));
        assert_same(&place, "alone", &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let place = place();
    let mut local = place.command(&["run", "pipeline.toml", "--dir", "here", "--workers"]);
    let local = local.env("WORD", "x").output().unwrap();
    let error = stderr(&local);
    let expected = "error: here is a directory of this machine, which workers elsewhere do not see\n\
                    hint: use an object store (s3://bucket/run), or file://";
    assert!(local.status.code() == Some(1) && error.starts_with(expected), "{error}");

    // The run waits for a worker that can make its splits.
    let mut driver = run(&place, "shared", &["--workers-only"]).spawn().unwrap();
    let cases: [(&str, &str, &str); 3] = [
        (
            "TWINLENS_PRETEND",
            "9.9.9",
            "error: the run is by twinlens 0.1.0, this is 9.9.9\nhint: run the same build",
        ),
        (
            "WORD",
            "other",
            "error: the pipeline reads the environment variable WORD, which has another value here\nhint: set it",
        ),
        ("SOURCE_DATE_EPOCH", "1", "made "),
    ];
    for (name, value, expected) in cases {
        let output = worker(&place, "shared", &["--splits", "1"]).env(name, value).output().unwrap();
        let error = stderr(&output);
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(output.status.success(), expected == "made ", "{name}: {error}");
    }
    assert!(driver.wait().unwrap().success());

    // Two runs in one directory; the second one is on another machine, which has another cache.
    let mut first = run(&place, "two", &["--workers-only", "--lease", "2s"]).spawn().unwrap();
    let started = Instant::now();
    while !place.path("two/.workers/run.json").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = run(&place, "two", &["--workers"]).env("HOME", place.path("elsewhere")).output().unwrap();
    let error = stderr(&second);
    assert!(second.status.code() == Some(1) && error.contains("another run (process "), "{error}");
    assert!(error.contains(") is working in file://") && error.contains("twinlens work"), "{error}");
    // Killed there, it is taken for dead after the lease.
    first.kill().unwrap();
    first.wait().unwrap();
    let third = run(&place, "two", &["--workers"]).env("HOME", place.path("elsewhere")).spawn().unwrap();
    ends_well(third);
}

#[test]
fn an_error_on_a_worker_is_told_as_if_it_were_here() {
    let place = Place::new();
    let pipeline = r#"
name = "failing"

[stages.rows]
kind = "command"
command = ["sh", "-c", "exit 3"]
columns = { uid = "string", url = "string", caption = "string" }
splits = 3
"#;
    place.write("pipeline.toml", pipeline);
    let here = stderr(&run(&place, "alone", &[]).output().unwrap());
    assert!(here.contains("error: stage `rows`: "), "{here}");
    let helping = worker(&place, "shared", &[]).spawn().unwrap();
    let there = run(&place, "shared", &["--workers-only", "--lease", "1s"]).output().unwrap();
    assert_eq!(there.status.code(), Some(1));
    // Notes of a worker stay on its own terminal.
    let told = |text: &str| {
        let lines = text.lines().skip_while(|line| !line.starts_with("error"));
        lines.take_while(|line| !line.starts_with("resume")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(told(&stderr(&there)), told(&here));
    assert!(ends_well(helping).contains("the run has ended"));
}
