//! Executors make the splits of runs: `twinlens scheduler`, `executor` and `run --on`, as
//! processes, over a `file://` store.
//!
//! `TWINLENS_KILLS=200 cargo test -p twinlens --features cluster --test main cluster::` kills more
//! often.

mod faults;
mod fetching;
mod refusals;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::writer::StreamWriter;

use crate::support::s3::S3;
use crate::support::shared::{PAIRS, all_files, place, url};
use crate::support::{Place, stderr, stdout, training};

const KEY: &str = "0123456789abcdef0123456789abcdef";
/// So soon is a lost executor noticed: within it and two seconds.
const LOST_AFTER: &str = "3s";

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

    /// Its words, if it ends with an error.
    #[track_caller]
    fn ends_badly(mut self, code: i32) -> Vec<String> {
        let status = self.child.wait().unwrap();
        let said: Vec<String> = self.said.iter().collect();
        assert_eq!(status.code(), Some(code), "{said:?}");
        said
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

    /// Executors that are known to the scheduler.
    fn executors(&self, number: usize) -> Vec<Process> {
        let executors: Vec<_> = (0..number).map(|_| self.executor()).collect();
        self.has(&format!("{number} executor"));
        executors
    }

    /// Waits until `twinlens cluster` says so.
    #[track_caller]
    fn has(&self, text: &str) {
        let started = Instant::now();
        loop {
            let told = stdout(&self.status());
            if told.contains(text) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "not `{text}`: {told}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn run_command(&self, dir: &str, args: &[&str]) -> Command {
        self.run_command_at(&url(self.place, dir), args)
    }

    fn run_command_at(&self, url: &str, args: &[&str]) -> Command {
        let mut command = self.place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", url]);
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
    reference_with(place, &[]);
}

fn reference_with(place: &Place, args: &[&str]) {
    let dir = url(place, "alone");
    let mut alone = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", &dir]);
    let alone = alone.args(args).env("WORD", "x").output().unwrap();
    assert!(alone.status.success(), "{}", stderr(&alone));
}

#[track_caller]
fn assert_same(place: &Place, found: &str) {
    let (expected, mut found) = (all_files(&place.path("alone")), all_files(&place.path(found)));
    // An executor that was slower than the run may leave a record that nobody reads.
    found.retain(|name, _| expected.contains_key(name) || !name.contains("/commits/"));
    assert!(expected.len() > 20);
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

/// How many records of splits there are in a run.
fn recorded(place: &Place, dir: &str) -> usize {
    let mut folders = vec![place.path(dir)];
    let mut records = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let is_record = path.extension().is_some_and(|extension| extension == "json");
            records += usize::from(is_record && path.display().to_string().contains("/commits/"));
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    records
}

/// Writes a pipeline whose splits sleep.
fn write_sleeping(place: &Place, seconds: f64, splits: usize) {
    let rows = place.path("rows.arrow");
    let columns = ["uid", "url", "caption"];
    let schema = Schema::new(columns.map(|name| Field::new(name, DataType::Utf8, false)).to_vec());
    let column = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let values = vec![column("1"), column("http://a.example/1.jpg"), column("one")];
    let batch = RecordBatch::try_new(Arc::new(schema), values).unwrap();
    let mut writer = StreamWriter::try_new(fs::File::create(&rows).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let pipeline = format!(
        r#"
        name = "sleeping"
        [stages.rows]
        kind = "command"
        command = ["sh", "-c", "sleep {seconds}; cat {}"]
        columns = {{ uid = "string", url = "string", caption = "string" }}
        splits = {splits}
        "#,
        rows.display()
    );
    place.write("pipeline.toml", &pipeline);
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
    // 60 of the source, four each of the passes of `unique` and `balanced`, one of each other
    // stage; no split is made twice where no process is lost.
    assert!(told.contains("71 done, 0 lost, 0 cancelled"), "{told}");
    // SIGTERM is a clean end.
    let made = executors.map(|executor| {
        executor.signal("-TERM");
        splits_made(&executor.ends_well())
    });
    assert_eq!(made.iter().sum::<usize>(), 71, "{made:?}");
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
fn variants_and_limited_runs_are_those_of_one_process() {
    let place = place();
    let swept = format!(
        r#"{PAIRS}
        [stages.short]
        kind = "filter"
        input = "lower"
        sweep = {{ where = ["char_length(caption) < 20", "char_length(caption) < 40"] }}
        "#
    );
    place.write("pipeline.toml", &swept);
    let cluster = Cluster::new(&place);
    let _executors = cluster.executors(2);
    for args in [&["--max-rows", "700"][..], &["--until", "lower"], &[]] {
        reference_with(&place, args);
        Process::start(cluster.run_command("shared", args)).ends_well();
        assert_same(&place, "shared");
    }
}

#[test]
fn executors_share_a_run_in_s3_also_when_it_is_away_for_a_while() {
    let Some(mut s3) = S3::start() else { return };
    let place = place();
    reference(&place);
    let cluster = Cluster::new(&place);
    let with_s3 = |mut command: Command| {
        s3.give(&mut command);
        Process::start(command)
    };
    let _executors = [with_s3(cluster.executor_command()), with_s3(cluster.executor_command())];
    let run = with_s3(cluster.run_command_at("s3://bucket/run", &[]));
    std::thread::sleep(Duration::from_secs(3));
    s3.pause(Duration::from_secs(8));
    run.ends_well();
    assert!(s3.fetch(&place.path("fetched")) > 60);
    assert_same(&place, "fetched/run");
}

#[test]
fn a_training_that_follows_its_input_reads_what_executors_make() {
    let place = Place::new();
    training::write_images(&place);
    let options = "steps = 9\nfollow = true\ncheckpoint_every = 3";
    place.write("pipeline.toml", &training::pipeline("followed", options));
    reference(&place);
    let cluster = Cluster::new(&place);
    let _executors = cluster.executors(2);
    cluster.run("shared").ends_well();
    let losses = |dir: &str| place.ask(&url(&place, dir), "select step, loss from clip order by step");
    assert_eq!(losses("shared"), losses("alone"));
    assert!(losses("shared").len() > 2);
}
