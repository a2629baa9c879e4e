//! `kill -9` at random times: after the last run, the files are byte-identical to those of an
//! uninterrupted run.
//!
//! `TWINLENS_KILLS=500 cargo test -p twinlens --test main crash::` kills more often than CI.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Place, RandomTimes, kills, stderr};

/// From crawl to shards over the built-in site, with all kinds of splits.
pub(crate) const SHARDS: &str = r#"
name = "crash"
seed = 7
sites = ["gallery"]

[stages.pages]
kind = "crawl"
seeds = ["http://gallery.twinlens.test/", "http://gallery.twinlens.test/attic/"]
max_pages = 60

[stages.candidates]
kind = "filter"
input = "pages"
where = "char_length(caption) >= 5"

[stages.unique]
kind = "dedup"
input = "candidates"
by = ["url", "caption"]

[stages.images]
kind = "fetch"
input = "unique"
resize = { size = 32, mode = "shortest" }
split_rows = 40
"#;

/// Runs the pipeline in `dir`.
fn twinlens(place: &Place, dir: &str) -> Command {
    let mut command = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", dir]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn run_to_completion(place: &Place, dir: &str) -> Duration {
    let started = Instant::now();
    let output = twinlens(place, dir).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    started.elapsed()
}

/// Contents of every shard and artifact of a run, by path. Manifests contain times, and the work
/// directory belongs to no dataset.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // The log of a training contains measured speeds; its weights are compared.
            if path.ends_with("clip/data") {
                continue;
            }
            if path.is_dir() && name != "work" && name != ".spill" {
                folders.push(path);
            } else if name.ends_with(".parquet") || name.ends_with(".safetensors") || name == "tokenizer.json"
            {
                files.insert(path.strip_prefix(dir).unwrap().into(), fs::read(&path).unwrap());
            } else {
                assert!(!name.ends_with(".unfinished"), "{} was left behind", path.display());
            }
        }
    }
    files
}

fn assert_same(expected: &BTreeMap<PathBuf, Vec<u8>>, found: &BTreeMap<PathBuf, Vec<u8>>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (path, bytes) in expected {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
}

fn kill_after(mut child: Child, delay: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < delay {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // SIGKILL on Unix: the process cannot clean up.
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

fn killed_and_resumed(pipeline: &str, kills: usize) {
    let place = Place::new();
    place.write("pipeline.toml", pipeline);
    let whole = run_to_completion(&place, "reference");
    let expected = content(&place.path("reference"));
    assert!(!expected.is_empty());

    let mut times = RandomTimes(20_261_123);
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        let dir = format!("killed-{round}");
        // Each killed run gets a little further, until one finishes.
        let before = killed;
        loop {
            if !kill_after(twinlens(&place, &dir).spawn().unwrap(), times.next(whole)) {
                break;
            }
            killed += 1;
        }
        run_to_completion(&place, &dir);
        assert_same(&expected, &content(&place.path(&dir)));
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
        assert!(killed > before || round < 200, "the runs finish before they can be killed");
    }
}

#[test]
fn datasets_survive_kill_nine_byte_for_byte() {
    killed_and_resumed(SHARDS, kills(50));
}

#[test]
fn weights_survive_kill_nine_bit_for_bit() {
    let training = format!(
        "{SHARDS}\n{}",
        r#"
[stages.words]
kind = "tokenizer"
input = "images"
vocab_size = 400

[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
model = { embed = 32, vision = { image_size = 32, patch = 8, width = 32, layers = 1, heads = 2 }, text = { context = 16, width = 32, layers = 1, heads = 2 } }
steps = 30
batch_size = 16
micro_batch = 5
ranks = 2
ema = 0.99
keep_every = 10
checkpoint_every = 3
"#
    );
    killed_and_resumed(&training, kills(50) / 5);
}
