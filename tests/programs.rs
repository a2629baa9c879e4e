//! `command` stages in the program: the example pipeline, and `kill -9` in the middle of one.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use twinlens_testkit::process::ends_within;
use twinlens_testkit::python::python;

use crate::support::{Place, stderr};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/command").join(name)
}

/// A run of the place's pipeline into `dir`, from another working directory.
fn twinlens(place: &Place, dir: &str) -> Command {
    let (file, dir) = (place.path("pipeline.toml"), place.path(dir));
    let mut command = place.command(&[
        "run",
        file.to_str().unwrap(),
        "--progress",
        "never",
        "--dir",
        dir.to_str().unwrap(),
    ]);
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The shards of a run, by name.
fn shards(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "parquet") {
                files.insert(path.strip_prefix(dir).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn the_example_pipeline_runs() {
    let Some(python) = python("pyarrow, cv2, numpy") else { return };
    let place = Place::new();
    for name in ["twinlens_command.py", "score.py", "recaption.py", "blur_faces.py"] {
        fs::copy(example(name), place.path(name)).unwrap();
    }
    let pipeline = fs::read_to_string(example("pipeline.toml")).unwrap();
    place
        .write("pipeline.toml", &pipeline.replace("\"python3\"", &format!("{:?}", python.to_str().unwrap())));
    let output = twinlens(&place, "run").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let found = place.ask("run", "select count(*) > 20, min(sharpness) > 0, min(faces) >= 0 from faceless");
    assert_eq!(found, ["true,true,true"]);
}

/// The program is killed while splits are in flight; its children end, and the next run finishes
/// with the shards of an undisturbed one.
#[test]
fn a_killed_run_ends_its_children_and_is_resumed() {
    let Some(python) = python("pyarrow") else { return };
    let place = Place::new();
    fs::copy(example("twinlens_command.py"), place.path("twinlens_command.py")).unwrap();
    let script = r#"
import os, time, pyarrow as pa
from twinlens_command import serve
open("pids", "a").write(f"{os.getpid()}\n")
def size(batch):
    time.sleep(0.02)
    return {"size": pa.array([len(image) for image in batch["image"].field("bytes").to_pylist()], pa.int64())}
serve(size)
"#;
    place.write("size.py", script);
    let source = r#"
import os, pyarrow as pa
from twinlens_command import serve_source
def images(split, splits):
    for start in range(split * 1000, split * 1000 + 1000, 250):
        numbers = range(start, start + 250)
        bytes = pa.array([number.to_bytes(4, "little") * 250 for number in numbers], pa.binary())
        yield {"uid": pa.array([f"{number:032x}" for number in numbers]), "image": bytes}
serve_source(images)
"#;
    place.write("images.py", source);
    let python = python.to_str().unwrap().to_string();
    place.write(
        "pipeline.toml",
        &format!(
            r#"
name = "killed"
seed = 1

[stages.images]
kind = "command"
command = [{python:?}, "images.py"]
columns = {{ uid = "string", image = "image" }}
splits = 10

[stages.sizes]
kind = "command"
input = "images"
command = [{python:?}, "size.py"]
columns = {{ size = "int64" }}
send = ["image"]
batch_rows = 100
workers = 2
"#
        ),
    );
    let calm = twinlens(&place, "calm").output().unwrap();
    assert!(calm.status.success(), "{}", stderr(&calm));
    let expected = shards(&place.path("calm"));
    assert_eq!(place.ask("calm", "select count(*), min(size), max(size) from sizes"), ["10000,1000,1000"]);

    let mut kills = 0;
    fs::remove_file(place.path("pids")).unwrap();
    loop {
        let mut run = twinlens(&place, "stormy").spawn().unwrap();
        let moment = Instant::now() + Duration::from_millis(900 + 400 * kills);
        while Instant::now() < moment && run.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if run.try_wait().unwrap().is_some() || kills == 8 {
            run.wait().unwrap();
            break;
        }
        run.kill().unwrap();
        run.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0, "the run ended before it could be killed");
    for pid in fs::read_to_string(place.path("pids")).unwrap_or_default().lines() {
        assert!(ends_within(pid, Duration::from_secs(10)), "the child {pid} outlived the program");
    }
    let resumed = twinlens(&place, "stormy").output().unwrap();
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert!(shards(&place.path("stormy")) == expected, "the shards differ");
}
