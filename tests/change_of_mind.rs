//! Changed options, interrupts, kills, moved folders and touched files: no weights, checkpoint or
//! image is gone before its replacement is committed, and the disk does not fill.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::support::{Place, stderr, training};

/// Options of a training that is over soon, and of some that are not.
const SHORT: &[&str] = &["--set", "clip.steps=6"];

fn long(lr: &str) -> [String; 4] {
    ["--set", "clip.steps=1000000", "--set", lr].map(String::from)
}

fn place() -> Place {
    let place = Place::new();
    training::write_images(&place);
    place.write("minds.toml", &training::pipeline("minds", "checkpoint_every = 2"));
    place
}

/// Runs until the training has a checkpoint beyond the step `from`, and ends it by a signal.
fn interrupt(place: &Place, dir: &str, options: &[String], signal: &str) {
    let mut args = vec!["run", "minds.toml", "--progress", "never", "--dir", dir];
    args.extend(options.iter().map(String::as_str));
    let before = checkpoints(&place.path(dir).join("clip"));
    let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    // Other checkpoints than at the start, of another training or of later steps.
    loop {
        let now = checkpoints(&place.path(dir).join("clip"));
        if !now.is_empty() && now != before {
            break;
        }
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    child.wait().unwrap();
}

/// The finished checkpoints of a dataset.
fn checkpoints(dataset: &Path) -> Vec<String> {
    let files = fs::read_dir(dataset.join("work/checkpoints")).into_iter().flatten();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| name.starts_with("step-") && name.ends_with(".safetensors")).collect();
    names.sort();
    names
}

/// The datasets of a stage.
fn generations(run: &Path, stage: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let is_of = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name == stage || name.starts_with(&format!("{stage}@"))) && path.join("manifest.jsonl").exists()
    };
    folders.filter(is_of).collect()
}

/// The weights of all finished trainings, by content.
fn weights(run: &Path) -> BTreeMap<Vec<u8>, PathBuf> {
    let files = generations(run, "clip").into_iter().map(|folder| folder.join("model.safetensors"));
    files.filter(|file| file.exists()).map(|file| (fs::read(&file).unwrap(), file)).collect()
}

fn shards(run: &Path) -> usize {
    let all = generations(run, "images").into_iter();
    all.map(|folder| fs::read_dir(folder.join("data")).unwrap().count()).sum()
}

#[test]
fn nothing_is_gone_before_it_is_replaced() {
    let place = place();
    let run = |dir: &str, more: &[&str]| {
        place.done(&[&["run", "minds.toml", "--progress", "never", "--dir", dir], more].concat())
    };
    run("run", SHORT);
    let dir = place.path("run");
    let model = fs::read(dir.join("clip/model.safetensors")).unwrap();
    let is_safe = |dir: &Path| {
        assert!(weights(dir).contains_key(&model), "the finished model is gone");
        assert!(shards(dir) > 0, "the images are gone");
        assert!(generations(dir, "clip").len() <= 4, "{:?}", generations(dir, "clip"));
        assert!(generations(dir, "images").len() <= 3, "{:?}", generations(dir, "images"));
    };
    // Another rate, killed; another one, interrupted: both unfinished trainings are there.
    interrupt(&place, "run", &long("clip.lr=0.002"), "-KILL");
    is_safe(&dir);
    let killed = checkpoints(&dir.join("clip"));
    interrupt(&place, "run", &long("clip.lr=0.003"), "-INT");
    is_safe(&dir);
    assert_eq!(checkpoints(&dir.join("clip@2")), killed);
    // Back: it resumes from its checkpoint, and does not start again.
    let newest = killed.last().unwrap().clone();
    interrupt(&place, "run", &long("clip.lr=0.002"), "-KILL");
    is_safe(&dir);
    assert!(checkpoints(&dir.join("clip")).last() >= Some(&newest), "it began again");

    // The folder is moved, and all files are touched: nothing is made again.
    fs::rename(&dir, place.path("moved")).unwrap();
    let dir = place.path("moved");
    for file in fs::read_dir(place.path("images")).unwrap() {
        let file = fs::File::options().append(true).open(file.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now()).unwrap();
    }
    let said = run("moved", SHORT);
    assert!(said.contains("has this recipe and takes its place again"), "{said}");
    assert!(
        said.contains("images  24 rows  (reused)") && said.contains("clip    6 rows  (reused)"),
        "{said}"
    );
    is_safe(&dir);
    assert_eq!(fs::read(dir.join("clip/model.safetensors")).unwrap(), model);

    // Minds that change for ever do not fill the disk.
    for lr in 4..9 {
        interrupt(&place, "moved", &long(&format!("clip.lr=0.00{lr}")), "-KILL");
        is_safe(&dir);
    }
    // Other images: the old ones stay until the new ones are there, and so does the model.
    let small = ["--set", "images.resize={ size = 20, mode = \"shortest\" }"];
    let output = place.output(&[&["run", "minds.toml", "--dir", "moved"], SHORT, &small[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(weights(&dir).len() <= 3 && shards(&dir) > 0);
    assert!(fs::read_dir(dir.join(".deleted")).into_iter().flatten().next().is_none());
}
