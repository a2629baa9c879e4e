//! Executors make the splits of runs: `twinlens scheduler`, `executor` and `run --on`, as
//! processes, over a `file://` store.
//!
//! `TWINLENS_KILLS=200 cargo test -p twinlens --features cluster --test main cluster::` kills more
//! often.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::support::shared::{PAIRS, all_files, write_pairs};
use crate::support::{Place, RandomTimes, kills, stderr, stdout};

const KEY: &str = "0123456789abcdef0123456789abcdef";
/// So soon is a lost executor noticed: within it and two seconds.
const LOST_AFTER: &str = "3s";

fn place() -> Place {
    let place = Place::new();
    write_pairs(&place, 3000);
    place.write("pipeline.toml", PAIRS);
    place
}

fn url(place: &Place, dir: &str) -> String {
    format!("file://{}", place.path(dir).display())
}

/// A process that is killed at the end of the test.
struct Process {
    child: Child,
    said: Receiver<String>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        command.env("TWINLENS_CLUSTER_KEY", KEY).env("WORD", "x");
        Self::start_plain(command)
    }

    fn start_plain(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (told, said) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| told.send(line)));
        Self { child, said }
    }

    /// The first line that has `text`.
    #[track_caller]
    fn says(&self, text: &str) -> String {
        let started = Instant::now();
        let mut all = Vec::new();
        while started.elapsed() < Duration::from_secs(60) {
            if let Ok(line) = self.said.recv_timeout(Duration::from_millis(100)) {
                if line.contains(text) {
                    return line;
                }
                all.push(line);
            }
        }
        panic!("it does not say `{text}`: {all:?}");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Its last words, if it ends well.
    #[track_caller]
    fn ends_well(mut self) -> Vec<String> {
        let status = self.child.wait().unwrap();
        let said: Vec<String> = self.said.iter().collect();
        assert!(status.success(), "{said:?}");
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A scheduler at a free port, and its address.
struct Cluster<'a> {
    place: &'a Place,
    scheduler: Option<Process>,
    address: String,
}

impl<'a> Cluster<'a> {
    fn new(place: &'a Place) -> Self {
        let mut cluster = Self { place, scheduler: None, address: String::new() };
        cluster.start_scheduler("127.0.0.1:0");
        cluster
    }

    fn start_scheduler(&mut self, bind: &str) {
        let arguments = ["scheduler", "--bind", bind, "--lost-after", LOST_AFTER];
        let scheduler = Process::start(self.place.command(&arguments));
        let line = scheduler.says("listening at ");
        let bound = line.split("listening at ").nth(1).unwrap().split(';').next().unwrap();
        self.address = format!("df://{bound}");
        self.scheduler = Some(scheduler);
    }

    fn executor_command(&self) -> Command {
        self.place.command(&["executor", &self.address, "--bind", "127.0.0.1", "--slots", "1"])
    }

    fn executor(&self) -> Process {
        Process::start(self.executor_command())
    }

    fn run_command(&self, dir: &str, args: &[&str]) -> Command {
        let dir = url(self.place, dir);
        let mut command = self.place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", &dir]);
        command.args(["--on", &self.address]).args(args);
        command.env("TWINLENS_CLUSTER_KEY", KEY).env("WORD", "x");
        command
    }

    fn run(&self, dir: &str) -> Process {
        Process::start(self.run_command(dir, &[]))
    }

    /// What `twinlens cluster` says.
    fn status(&self) -> Output {
        self.place.command(&["cluster", &self.address]).output().unwrap()
    }
}

/// The run of one process.
fn reference(place: &Place) {
    let dir = url(place, "alone");
    let mut alone = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", &dir]);
    let alone = alone.env("WORD", "x").output().unwrap();
    assert!(alone.status.success(), "{}", stderr(&alone));
}

#[track_caller]
fn assert_same(place: &Place, found: &str) {
    let (expected, mut found) = (all_files(&place.path("alone")), all_files(&place.path(found)));
    // An executor that was slower than the run may leave a record that nobody reads.
    found.retain(|name, _| expected.contains_key(name) || !name.contains("/commits/"));
    assert!(expected.len() > 60);
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

/// Splits that an executor made, by its last line.
fn splits_made(said: &[String]) -> usize {
    let line = said.last().map(String::as_str).unwrap_or_default();
    let number = line.strip_prefix("made ").and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said:?}"))
}

#[test]
fn a_run_on_executors_is_that_of_one_process() {
    let place = place();
    reference(&place);
    let cluster = Cluster::new(&place);
    let none = cluster.status();
    assert_eq!(none.status.code(), Some(1), "{}", stderr(&none));
    // The run waits for executors.
    let run = cluster.run("shared");
    run.says("waiting for executors at df://127.0.0.1:");
    let executors = [cluster.executor(), cluster.executor()];
    executors.iter().for_each(|executor| drop(executor.says("makes 1 splits at a time")));
    run.ends_well();
    assert_same(&place, "shared");
    let status = cluster.status();
    let told = stdout(&status);
    assert!(status.status.success() && told.contains("2 executors with 2 slots"), "{told}");
    // 60 of the source, one of `lower`; no split is made twice where no process is lost.
    assert!(told.contains("61 done, 0 lost, 0 cancelled"), "{told}");
    // SIGTERM is a clean end.
    let made = executors.map(|executor| {
        executor.signal("-TERM");
        splits_made(&executor.ends_well())
    });
    assert_eq!(made.iter().sum::<usize>(), 61, "{made:?}");
    assert!(made.iter().all(|&made| made > 5), "{made:?}");
}

#[test]
fn inputs_of_the_runs_own_disk_are_sent_along() {
    let place = place();
    reference(&place);
    let cluster = Cluster::new(&place);
    // This executor finds nothing where the run has its files.
    let elsewhere = Place::new();
    let mut command = elsewhere.command(&["executor", &cluster.address, "--bind", "127.0.0.1"]);
    command.arg("--slots").arg("2");
    let _executor = Process::start(command);
    let run = cluster.run("shared");
    run.says("pairs");
    fs::rename(place.path("pairs.csv"), place.path("gone.csv")).unwrap();
    run.ends_well();
    assert_same(&place, "shared");
}

#[test]
fn executors_that_are_killed_or_stopped_lose_nothing() {
    let place = place();
    reference(&place);
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_201), 0, 0);
    while killed < kills(4) {
        let cluster = Cluster::new(&place);
        let dir = format!("shared-{round}");
        let mut executors = vec![cluster.executor(), cluster.executor()];
        let mut run = cluster.run(&dir);
        let mut stopped: Option<(Process, Instant)> = None;
        while !run.has_ended() {
            std::thread::sleep(Duration::from_millis(300) + times.next(Duration::from_millis(2500)));
            let lost = executors.remove(0);
            executors.push(cluster.executor());
            if round % 2 == 1 && stopped.is_none() {
                // A zombie: it goes on when others have long made its split.
                lost.signal("-STOP");
                stopped = Some((lost, Instant::now()));
            } else {
                lost.kill();
                killed += 1;
            }
            if let Some((zombie, since)) = stopped.take_if(|(_, since)| since.elapsed().as_secs() > 5) {
                assert!(since.elapsed().as_secs() < 30);
                zombie.signal("-CONT");
                executors.push(zombie);
            }
        }
        run.ends_well();
        assert_same(&place, &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn a_run_that_is_killed_resumes_with_what_executors_made() {
    let place = place();
    reference(&place);
    let cluster = Cluster::new(&place);
    let _executors = [cluster.executor(), cluster.executor()];
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_202), 0, 0);
    while killed < kills(4) {
        let dir = format!("shared-{round}");
        loop {
            let mut run = cluster.run(&dir);
            let (until, started) = (times.next(Duration::from_secs(4)), Instant::now());
            while started.elapsed() < until && !run.has_ended() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if run.has_ended() {
                run.ends_well();
                break;
            }
            run.kill();
            killed += 1;
        }
        assert_same(&place, &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn a_scheduler_that_is_killed_and_started_again_loses_nothing() {
    let place = place();
    reference(&place);
    let mut cluster = Cluster::new(&place);
    let _executors = [cluster.executor(), cluster.executor()];
    let bind = cluster.address.strip_prefix("df://").unwrap().to_string();
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_203), 0, 0);
    while killed < kills(2) {
        let dir = format!("shared-{round}");
        let mut run = cluster.run(&dir);
        std::thread::sleep(Duration::from_millis(500) + times.next(Duration::from_millis(2500)));
        if !run.has_ended() {
            cluster.scheduler.take().unwrap().kill();
            std::thread::sleep(Duration::from_secs(1));
            cluster.start_scheduler(&bind);
            killed += 1;
        }
        run.ends_well();
        assert_same(&place, &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn an_interrupted_run_stops_its_executors_and_resumes() {
    let place = Place::new();
    place.write("pipeline.toml", SLEEPING);
    let cluster = Cluster::new(&place);
    let executor = cluster.executor();
    let mut run = cluster.run("shared");
    let started = Instant::now();
    while !stdout(&cluster.status()).contains("1 split in flight") {
        assert!(started.elapsed() < Duration::from_secs(60) && !run.has_ended());
        std::thread::sleep(Duration::from_millis(100));
    }
    run.signal("-INT");
    let interrupted = Instant::now();
    assert_eq!(run.child.wait().unwrap().code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(14), "{:?}", interrupted.elapsed());
    // Nobody waits for its split, and it is dropped.
    std::thread::sleep(Duration::from_secs(2));
    let told = stdout(&cluster.status());
    assert!(told.contains("0 splits in flight, 0 waiting"), "{told}");
    executor.signal("-TERM");
    assert_eq!(splits_made(&executor.ends_well()), 0);
}

/// Splits that take longer than a test.
const SLEEPING: &str = r#"
name = "sleeping"

[stages.rows]
kind = "command"
command = ["sh", "-c", "sleep 60"]
columns = { uid = "string", url = "string", caption = "string" }
splits = 3
"#;

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let place = place();
    let cluster = Cluster::new(&place);
    // With an executor of another key.
    let mut other = cluster.executor_command();
    other.env("TWINLENS_CLUSTER_KEY", "another secret of the user").env("WORD", "x");
    let _other = Process::start_plain(other);
    let cases: [(&str, &[&str], &[(&str, &str)], &str); 6] = [
        (
            "no scheduler",
            &["--on", "df://127.0.0.1:1", "--patience", "1s"],
            &[],
            "error: nothing answers at df://127.0.0.1:1: Connection refused (os error 111)\n\
             hint: start one: twinlens scheduler",
        ),
        (
            "a local directory",
            &["--dir", "here"],
            &[],
            "error: here is a directory of this machine, which executors elsewhere do not see\n\
             hint: use an object store",
        ),
        (
            "no address",
            &["--on", "http://sched"],
            &[],
            "error: `http://sched` is not the address of a scheduler",
        ),
        (
            "another build",
            &[],
            &[("TWINLENS_PRETEND", "9.9.9")],
            " is twinlens 0.1.0 on x86_64, this is 9.9.9 on x86_64\nhint: run the same build",
        ),
        (
            "another key",
            &[],
            &[],
            ": the run has another key than this executor\n\
             hint: set TWINLENS_CLUSTER_KEY to the same secret on all machines",
        ),
        (
            "no key",
            &[],
            &[("TWINLENS_CLUSTER_KEY", "")],
            ": the run has no key, but this executor has one\nhint: set TWINLENS_CLUSTER_KEY",
        ),
    ];
    for (name, args, variables, expected) in cases {
        let dir = url(&place, &format!("refused-{}", name.replace(' ', "-")));
        let mut command = place.command(&["run", "pipeline.toml", "--progress", "never"]);
        if !args.contains(&"--dir") {
            command.args(["--dir", &dir]);
        }
        if !args.contains(&"--on") {
            command.args(["--on", &cluster.address]);
        }
        command.args(args).env("TWINLENS_CLUSTER_KEY", KEY).env("WORD", "x");
        command.envs(variables.iter().copied());
        let output = command.output().unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {error}");
        assert!(error.contains(expected), "{name}: {error}");
    }

    // Others could reach it.
    let open = place.command(&["executor", &cluster.address]).output().unwrap();
    let error = stderr(&open);
    assert!(error.contains("an executor that others reach needs a key"), "{error}");
}

#[test]
fn a_run_without_executors_gives_up_and_keeps_what_was_made() {
    let place = place();
    let cluster = Cluster::new(&place);
    let started = Instant::now();
    let alone = cluster.run_command("shared", &["--patience", "2s"]).output().unwrap();
    let error = stderr(&alone);
    assert_eq!(alone.status.code(), Some(1), "{error}");
    assert!(error.contains("error: stage `long`: there are no executors at df://127.0.0.1:"), "{error}");
    assert!(error.contains("hint: start them: twinlens executor df://"), "{error}");
    assert!(error.contains("resume with: "), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_error_on_an_executor_is_told_as_if_it_were_here() {
    let place = Place::new();
    place.write("pipeline.toml", &SLEEPING.replace("sleep 60", "exit 3"));
    let here = place.output(&["run", "pipeline.toml", "--progress", "never", "--dir", "alone"]);
    let cluster = Cluster::new(&place);
    let _executor = cluster.executor();
    let there = cluster.run_command("shared", &[]).output().unwrap();
    assert_eq!(there.status.code(), Some(1));
    let told = |output: &Output| {
        let text = stderr(output);
        let lines = text.lines().skip_while(|line| !line.starts_with("error"));
        lines.take_while(|line| !line.starts_with("resume")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(told(&there), told(&here));
    assert!(!told(&here).is_empty());
}
