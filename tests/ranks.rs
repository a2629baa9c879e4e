//! Trainings of several processes: `twinlens run --ranks tcp`, started by hand as a launcher would.
//!
//! `TWINLENS_KILLS=50 cargo test -p twinlens --test main ranks::` kills more often than CI.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Place, RandomTimes, kills, stderr, stdout};

/// A folder of images is made, and a model trained on it.
const TRAINING: &str = r#"
name = "ranks"
seed = 7
sites = ["gallery"]

[stages.pages]
kind = "crawl"
seeds = ["http://gallery.twinlens.test/"]
max_pages = 40

[stages.pairs]
kind = "filter"
input = "pages"
where = "char_length(caption) >= 5"

[stages.images]
kind = "fetch"
input = "pairs"
resize = { size = 32, mode = "center_crop" }

[stages.words]
kind = "tokenizer"
input = "images"
vocab_size = 600

[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
batch_size = 16
micro_batch = 4
steps = 30
checkpoint_every = 5
ema = 0.9
model = { embed = 16, vision = { image_size = 32, patch = 16, width = 32, layers = 2, heads = 2 }, text = { context = 12, width = 32, layers = 2, heads = 2 } }
"#;

fn place() -> Place {
    let place = Place::new();
    place.write("pipeline.toml", TRAINING);
    place
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A call of `run` as it would be without a launcher.
fn alone(place: &Place, dir: &str, args: &[&str]) -> Command {
    let mut command = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", dir]);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// One of `size` ranks.
fn rank(place: &Place, (dir, args): (&str, &[&str]), port: u16, rank: usize, size: usize) -> Command {
    let mut command = alone(place, dir, &["--ranks", "tcp", "--threads", "1"]);
    command.args(args).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
    command
}

fn start(place: &Place, run: (&str, &[&str]), size: usize) -> Vec<Child> {
    let port = free_port();
    (0..size).map(|number| rank(place, run, port, number, size).spawn().unwrap()).collect()
}

fn outputs(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

#[track_caller]
fn all_succeed(ranks: Vec<Child>) {
    for (rank, output) in outputs(ranks).iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}", stderr(output));
    }
}

/// What a training leaves: the bytes of its weights, and the log without speeds.
fn trained(place: &Place, dir: &str) -> (BTreeMap<String, Vec<u8>>, Vec<String>) {
    let files = std::fs::read_dir(place.path(dir).join("clip")).unwrap().map(|entry| entry.unwrap().path());
    let weights = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let weights: BTreeMap<String, Vec<u8>> = weights
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    let kinds = "the model, the weights of the last step, and the state to continue from";
    assert_eq!(weights.len(), 3, "{kinds}: {:?}", weights.keys());
    let query =
        "select step, samples_seen, epoch, loss, lr, logit_scale, grad_norm, wall from clip order by step";
    (weights, place.ask(dir, query))
}

/// The same training by threads.
fn by_threads(place: &Place, dir: &str, ranks: usize) -> (BTreeMap<String, Vec<u8>>, Vec<String>) {
    let set = format!("stages.clip.ranks={ranks}");
    let output = alone(place, dir, &["--set", &set]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    trained(place, dir)
}

#[test]
fn processes_leave_the_files_of_threads() {
    let place = place();
    for size in [1, 2, 4] {
        let expected = by_threads(&place, "threads", size);
        assert_eq!(expected.1.len(), 30);
        // The number of ranks may stand in the file, or not.
        let (dir, set) = (format!("processes-{size}"), format!("stages.clip.ranks={size}"));
        let args: &[&str] = match size {
            2 => &["--set", &set],
            4 => &["--set", "stages.clip.shard_optimizer=true"],
            _ => &[],
        };
        all_succeed(start(&place, (&dir, args), size));
        assert!(trained(&place, &dir) == expected, "{size} processes");
    }
    // Nothing is left of the ranks' own folders.
    let left = std::fs::read_dir(place.path(".cache/twinlens/ranks")).unwrap().count();
    assert_eq!(left, 0);
    // A run that is complete needs no training, and ends all ranks well.
    all_succeed(start(&place, ("processes-4", &[]), 2));
}

/// Two parts of a training by processes are the whole by threads.
#[test]
fn processes_continue_a_training() {
    let place = place();
    let with = |steps: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        let set =
            ["stages.clip.schedule=constant", "stages.clip.warmup=2", steps].map(|value| ["--set", value]);
        [&set.concat()[..], more].concat()
    };
    let whole = with("stages.clip.steps=20", &["--set", "stages.clip.ranks=2"]);
    let output = alone(&place, "whole", &whole).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    all_succeed(start(&place, ("parts", &with("stages.clip.steps=10", &[])), 2));
    all_succeed(start(&place, ("parts", &with("stages.clip.steps=20", &["--continue", "clip"])), 2));
    assert!(trained(&place, "parts") == trained(&place, "whole"));
}

/// Any rank is killed at any time; all others end soon and name it. The same command, with as many
/// ranks or not, goes on.
#[test]
fn a_killed_rank_ends_all_and_the_training_resumes() {
    let place = place();
    let expected = by_threads(&place, "threads", 2);
    let mut times = RandomTimes(20_261_201);
    let whole = Instant::now();
    all_succeed(start(&place, ("data", &[]), 2));
    let (whole, mut killed, mut round) = (whole.elapsed(), 0, 0);
    while killed < kills(6) {
        let dir = format!("killed-{round}");
        let others = round % 3 == 2;
        let before = killed;
        loop {
            let size = if others { [4, 1, 2][killed % 3] } else { 2 };
            let mut ranks = start(&place, (&dir, &[]), size);
            std::thread::sleep(times.next(whole));
            let lost = killed % size;
            if ranks.iter_mut().any(|rank| rank.try_wait().unwrap().is_some()) {
                all_succeed(ranks);
                break;
            }
            ranks[lost].kill().unwrap();
            let began = Instant::now();
            killed += 1;
            let ended = outputs(ranks);
            // One that was killed before they met is waited for, as long as `--ranks-wait` says.
            let is_missed = ended.iter().any(|output| stderr(output).contains(" within 60 s"));
            assert!(is_missed || began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
            for (rank, output) in ended.iter().enumerate().filter(|(rank, _)| *rank != lost) {
                // It may have been killed at the very end.
                let said = stderr(output);
                let named = is_missed || said.contains(&format!("rank {lost} ("));
                assert!(named || output.status.success(), "rank {rank} without {lost}: {said}");
            }
            if round > 50 {
                break;
            }
        }
        all_succeed(start(&place, (&dir, &[]), 2));
        let found = trained(&place, &dir);
        assert_eq!(found.1.len(), 30);
        assert!(others || found == expected, "{dir} is not as uninterrupted");
        round += 1;
        assert!(killed > before || round < 50, "the runs finish before they can be killed");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_of_any_rank_is_a_checkpoint() {
    let place = place();
    all_succeed(start(&place, ("data", &["--until", "words"]), 1));
    let steps = ["--set", "stages.clip.steps=100000"];
    for interrupted in [1, 0] {
        let mut ranks = start(&place, ("data", &steps), 2);
        let began = Instant::now();
        // There is no such table before the training begins.
        let query = ["sql", "data", "--format", "csv", "select step from live_steps limit 1"];
        while stdout(&place.output(&query)).lines().count() < 2 {
            assert!(began.elapsed() < Duration::from_secs(60), "no step was made");
            assert!(ranks.iter_mut().all(|rank| rank.try_wait().unwrap().is_none()));
            std::thread::sleep(Duration::from_millis(100));
        }
        let pid = ranks[interrupted].id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let began = Instant::now();
        for (rank, output) in outputs(ranks).iter().enumerate() {
            assert_eq!(output.status.code(), Some(130), "rank {rank}: {}", stderr(output));
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let checkpoints = place.path("data").join("clip").join("work").join("checkpoints");
        assert!(std::fs::read_dir(checkpoints).unwrap().count() > 0);
    }
}

/// The first error line of a rank, without the name of the machine.
fn error_of(output: &Output) -> String {
    let said = stderr(output);
    let line = said.lines().find(|line| line.starts_with("error:")).unwrap_or(&said).to_string();
    match (line.find(" ("), line.find("): ")) {
        (Some(start), Some(end)) if start < end => format!("{}{}", &line[..start], &line[end + 1..]),
        _ => line,
    }
}

#[test]
fn ranks_that_cannot_work_together_say_why() {
    let place = place();
    let wait = ["--ranks-wait", "2s"];
    let run = ("refused", &wait[..]);

    let output = alone(&place, "refused", &["--ranks", "tcp"]).output().unwrap();
    assert_eq!(error_of(&output), "error: this process was not started as one of several ranks");
    assert!(stderr(&output).contains("mpirun, srun or torchrun"));

    // The option of a stage asks for them, too, and the command takes precedence.
    let by_option = ["--set", "stages.clip.ranks=tcp", "--until", "pages"];
    let output = alone(&place, "refused", &by_option).output().unwrap();
    assert_eq!(error_of(&output), "error: this process was not started as one of several ranks");
    let output =
        alone(&place, "refused", &[&by_option[..], &["--ranks", "threads"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));

    let output = rank(&place, run, free_port(), 0, 3).output().unwrap();
    assert_eq!(error_of(&output), "error: ranks 1, 2 of 3 did not come within 2 s");

    let pair = |dir: &str, change: &dyn Fn(&mut Command)| {
        let port = free_port();
        let first = rank(&place, ("refused", &["--ranks-wait", "20s"]), port, 0, 2).spawn().unwrap();
        let mut second = rank(&place, (dir, &["--ranks-wait", "20s"]), port, 1, 2);
        change(&mut second);
        let began = Instant::now();
        let ended = outputs(vec![first, second.spawn().unwrap()]);
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        ended.iter().for_each(|output| assert_eq!(output.status.code(), Some(1), "{}", stderr(output)));
        error_of(&ended[0])
    };
    let other_build = pair("refused", &|second| _ = second.env("TWINLENS_PRETEND", "9.9.9"));
    assert!(
        other_build.starts_with("error: rank 1") && other_build.contains("is another build: twinlens 9.9.9"),
        "{other_build}"
    );
    let elsewhere = pair("elsewhere", &|_| ());
    assert!(elsewhere.contains("rank 1: ") && elsewhere.contains("elsewhere"), "{elsewhere}");
    // A number in the file that is not that of the processes.
    let mut ranks = start(&place, ("refused", &["--set", "stages.clip.ranks=4"]), 2);
    let first = ranks.remove(0).wait_with_output().unwrap();
    outputs(ranks);
    assert_eq!(error_of(&first), "error: stage `clip`: `ranks = 4`, but 2 processes were started");
}

/// `mpirun` starts the processes, and its library connects them.
#[cfg(feature = "mpi")]
#[test]
fn mpi_processes_leave_the_files_of_threads() {
    let place = place();
    for size in [1, 2, 4] {
        let expected = by_threads(&place, "threads", size);
        let (dir, size) = (format!("mpi-{size}"), size.to_string());
        let twinlens = alone(&place, &dir, &["--ranks", "mpi", "--threads", "1"]);
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe", "-np", &size]);
        mpirun.arg(twinlens.get_program()).args(twinlens.get_args()).current_dir(place.folder());
        mpirun.env("SOURCE_DATE_EPOCH", "1700000000").env("HOME", place.folder());
        let output = mpirun.output().unwrap();
        assert!(output.status.success(), "{size} processes: {}", stderr(&output));
        assert!(trained(&place, &dir) == expected, "{size} processes");
    }
    // A rank that fails ends all of them, and says why.
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "-np", "2"]);
    let twinlens = alone(&place, "failed", &["--ranks", "mpi", "--set", "stages.clip.ranks=4"]);
    mpirun.arg(twinlens.get_program()).args(twinlens.get_args()).current_dir(place.folder());
    let output = mpirun.env("HOME", place.folder()).output().unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("`ranks = 4`, but 2 processes were started"), "{}", stderr(&output));
}
