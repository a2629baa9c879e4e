//! What is disturbed: a command in a folder, and what makes the folder whole afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, manifest};
use twinlens_testkit::web::png;

use super::shim::{self, Call, Fault};
use crate::support::{Place, stderr};

const PIPELINE: &str = r#"name = "faults"
seed = 7

[stages.photos]
kind = "folder"
folders = ["photos"]
split_rows = 10

[stages.long]
kind = "filter"
input = "photos"
rules = [{ code = "too_short", where = "char_length(caption) >= 10" }]

[stages.few]
kind = "dedup"
input = "long"
by = ["caption"]

[stages.words]
kind = "tokenizer"
input = "few"
vocab_size = 300

[stages.counts]
kind = "sql"
query = "select count(*) as rows from few"
"#;

const TRAINING: &str = r#"
[stages.clip]
kind = "train"
input = "few"
tokenizer = "words"
model = { embed = 16, vision = { image_size = 16, patch = 8, width = 16, layers = 1, heads = 2 }, text = { context = 8, width = 16, layers = 1, heads = 2 } }
steps = 4
batch_size = 8
ema = 0.99
keep_every = 2
checkpoint_every = 1
"#;

const PHOTOS: usize = 24;

/// The folder in which the command works, below the place. Faults happen in there alone.
pub(super) const WORK: &str = "work";
/// How it was before the command.
const BEFORE: &str = "before";
/// Somebody's file, in folders where a run must not touch it.
const FOREIGN: &str = "notes.txt";

/// Files by name.
pub(super) type Content = BTreeMap<String, Vec<u8>>;

/// A command, and the folder in which it works.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    args: &'static [&'static str],
    /// What is called after the command has succeeded, so that all is as it should be.
    then: &'static [&'static [&'static str]],
    /// Makes the folder from one that holds a finished run, if it is not to be empty.
    prepare: Option<fn(&Place)>,
    /// Whether files may be damaged before the command has succeeded.
    starts_damaged: bool,
    /// Whether it takes no committed split away.
    pub(super) only_adds: bool,
    /// What is compared, by the start of the name in the working folder.
    compared: fn(&str) -> bool,
}

const RUN: &[&str] = &["run", "pipeline.toml", "--progress", "never", "--dir", "work/run"];

pub(super) fn all() -> Vec<Scenario> {
    let plain = Scenario {
        name: "run",
        args: RUN,
        then: &[],
        prepare: None,
        starts_damaged: false,
        only_adds: true,
        compared: |_| true,
    };
    vec![
        Scenario { name: "resume", prepare: Some(interrupted), ..plain },
        Scenario { ..plain },
        Scenario {
            name: "repair",
            args: &["repair", "pipeline.toml", "--progress", "never", "--dir", "work/run"],
            prepare: Some(damaged),
            starts_damaged: true,
            only_adds: false,
            ..plain
        },
        Scenario {
            name: "changed",
            args: &["run", "changed.toml", "--progress", "never", "--dir", "work/run"],
            prepare: Some(finished),
            only_adds: false,
            ..plain
        },
        Scenario {
            name: "fresh",
            args: &["run", "pipeline.toml", "--progress", "never", "--dir", "work/run", "--fresh"],
            prepare: Some(finished),
            only_adds: false,
            ..plain
        },
        Scenario {
            name: "training",
            args: &["run", "training.toml", "--progress", "never", "--dir", "work/run"],
            prepare: Some(finished),
            // A log contains measured speeds.
            compared: |name| !name.starts_with("run/clip/data"),
            ..plain
        },
        Scenario {
            name: "export_parquet",
            args: &["export", "done/few", "work/out", "--to", "parquet", "--shard-size", "1MB"],
            ..plain
        },
        Scenario {
            name: "export_tar",
            args: &["export", "done/few", "work/out", "--to", "webdataset", "--shard-size", "1MB"],
            ..plain
        },
        Scenario {
            name: "retry",
            args: &["retry", "pipeline.toml", "long", "--progress", "never", "--dir", "work/run"],
            then: &[RUN],
            prepare: Some(finished),
            only_adds: false,
            // Rejects count how often they were tried.
            compared: |name| !name.contains("rejects/"),
            ..plain
        },
    ]
}

/// The inputs, the pipelines, and a finished run in `done`.
pub(super) fn site() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("photos")).unwrap();
    for photo in 0..PHOTOS {
        let file = |ending: &str| place.path(&format!("photos/{photo:03}.{ending}"));
        fs::write(file("png"), png(16 + photo as u32 % 5, 16)).unwrap();
        let caption = match photo % 6 {
            1 => "short".to_string(),
            2 => "a photo of the same thing".to_string(),
            _ => format!("a photo with the number {photo}"),
        };
        let url = format!("http://img.test/{photo}.png");
        let json = serde_json::json!({ "url": url, "caption": caption });
        fs::write(file("json"), json.to_string()).unwrap();
    }
    place.write("pipeline.toml", PIPELINE);
    place.write("changed.toml", &PIPELINE.replace(">= 10", ">= 26"));
    place.write("training.toml", &format!("{PIPELINE}{TRAINING}"));
    place.done(&["run", "pipeline.toml", "--dir", "done"]);
    place
}

/// Runs with everything that a run writes and reads again: in `sound`.
pub(super) fn flipped() -> Place {
    let site = site();
    let place = Place::new();
    let sound = place.path("sound");
    fs::create_dir(&sound).unwrap();
    for name in ["photos", "training.toml"] {
        copy(&site.path(name), &sound.join(name));
    }
    let write = |name: &str, text: &str| fs::write(sound.join(name), text).unwrap();
    write("queries.txt", "photo\nnumber\nsame thing\n");
    let matched = "[stages.matched]\nkind = \"match\"\ninput = \"photos\"\nqueries = \"queries.txt\"\n";
    let (photos, _) = PIPELINE.split_once("[stages.long]").unwrap();
    write("matching.toml", &format!("{photos}{matched}"));
    write("flips.toml", &format!("{PIPELINE}{TRAINING}"));
    let embed = "[stages.vectors]\nkind = \"embed\"\nmodel = \"./run/clip\"\ninput = \"./run/few\"\ncaptions = \"caption\"\nwidth = 16\n";
    write("embed.toml", &format!("name = \"embed\"\n{embed}"));
    let zero = "[stages.zero]\nkind = \"zero-shot\"\nmodel = \"./run/clip\"\nprompts = [\"a {}\"]\n\
        sets = [{ name = \"s\", input = \"./run/few\", label = \"caption\" }]\n";
    write("zero.toml", &format!("name = \"zero\"\n{zero}"));
    let run = |args: &[&str], fault: Option<(Fault, usize)>| {
        let mut command = place.command(args);
        command.current_dir(&sound).env("HOME", &sound);
        if let Some(fault) = fault {
            shim::inject(&mut command, &sound.join("interrupted"), fault, &place.path("note"));
        }
        let output = command.output().unwrap();
        assert!(output.status.success() || fault.is_some(), "{args:?}: {}", stderr(&output));
    };
    // An earlier generation, an export, and the caches.
    run(&["run", "flips.toml", "--dir", "run", "--set", "stages.clip.steps=2"], None);
    run(&["run", "flips.toml", "--dir", "run"], None);
    run(&["export", "run/few", "out", "--to", "webdataset", "--shard-size", "1MB"], None);
    for pipeline in ["matching.toml", "zero.toml"] {
        run(&["run", pipeline, "--dir", "other"], None);
        fs::remove_dir_all(sound.join("other")).unwrap();
    }
    // A training that was killed when it had some checkpoints.
    run(&["run", "training.toml", "--dir", "interrupted", "--until", "words"], None);
    copy(&sound.join("interrupted"), &place.path("copy"));
    run(&["run", "training.toml", "--dir", "interrupted"], Some((Fault::KillAfter, 0)));
    let note = fs::read_to_string(place.path("note")).unwrap();
    let changes: usize = note.trim().strip_prefix("counted\t").unwrap().parse().unwrap();
    fs::remove_dir_all(sound.join("interrupted")).unwrap();
    copy(&place.path("copy"), &sound.join("interrupted"));
    run(&["run", "training.toml", "--dir", "interrupted"], Some((Fault::KillAfter, changes * 2 / 3)));
    place
}

fn finished(place: &Place) {
    fs::create_dir(place.path(BEFORE)).unwrap();
    copy(&place.path("done"), &place.path("before/run"));
}

/// A run that was killed in the middle.
fn interrupted(place: &Place) {
    fs::create_dir(place.path(WORK)).unwrap();
    let whole = Attempt::new(place, RUN, Some((Fault::KillAfter, 0))).counted;
    fs::remove_dir_all(place.path(WORK)).unwrap();
    fs::create_dir(place.path(WORK)).unwrap();
    let attempt = Attempt::new(place, RUN, Some((Fault::KillAfter, whole / 2)));
    assert_eq!(attempt.met.len(), 1, "the run was not killed");
    fs::rename(place.path(WORK), place.path(BEFORE)).unwrap();
}

/// A finished run with a truncated and a missing file.
fn damaged(place: &Place) {
    finished(place);
    let shard = place.path("before/run/long/data/000001-000.parquet");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(place.path("before/run/words/tokenizer.json")).unwrap();
}

impl Scenario {
    /// Makes the folder as it is before the command, once.
    pub(super) fn prepare(&self, place: &Place) {
        let before = place.path(BEFORE);
        for folder in [BEFORE, WORK] {
            let _ = fs::remove_dir_all(place.path(folder));
        }
        match self.prepare {
            Some(prepare) => prepare(place),
            None => fs::create_dir(&before).unwrap(),
        }
        let run = before.join("run");
        for folder in [before.clone(), before.join("mine"), run.clone(), run.join("mine")] {
            if folder.parent().is_some_and(Path::exists) && (run.exists() || !folder.starts_with(&run)) {
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(FOREIGN), "mine").unwrap();
            }
        }
    }

    /// Calls the command with a fault, in the folder as it was before.
    pub(super) fn attempt(&self, place: &Place, fault: Option<(Fault, usize)>) -> Attempt {
        let _ = fs::remove_dir_all(place.path(WORK));
        copy(&place.path(BEFORE), &place.path(WORK));
        Attempt::new(place, self.args, fault)
    }

    /// What the command makes when nothing disturbs it, and what there is in the end.
    #[track_caller]
    pub(super) fn undisturbed(&self, place: &Place) -> (Content, Content) {
        let attempt = self.attempt(place, None);
        assert!(attempt.output.status.success(), "{}: {}", self.name, stderr(&attempt.output));
        let made = self.content(place);
        self.complete(place).unwrap();
        (made, self.content(place))
    }

    /// Calls the command without a fault in the folder as it was before, and records its calls.
    /// `watch` sees the folder before the call.
    pub(super) fn recorded<T>(&self, place: &Place, watch: impl Fn(&Path) -> T) -> (T, Vec<Call>) {
        let (work, record) = (place.path(WORK), place.path("record"));
        let _ = fs::remove_dir_all(&work);
        let _ = fs::remove_file(&record);
        copy(&place.path(BEFORE), &work);
        let watched = watch(&work);
        let mut command = place.command(self.args);
        // The lines by which it says that a split is committed.
        command.env("TWINLENS_LOG", "twinlens_pipeline=debug");
        shim::record(&mut command, &work, &record);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (watched, shim::calls(&record))
    }

    /// Calls the command again, and what makes the folder whole. Says what went wrong.
    pub(super) fn complete(&self, place: &Place) -> Result<(), String> {
        for args in [self.args].iter().chain(self.then) {
            let output = place.output(args);
            if !output.status.success() {
                return Err(format!("then {args:?} fails: {}", stderr(&output)));
            }
        }
        Ok(())
    }

    /// What the folder must hold in the end, by name. Names of retried splits have a number.
    pub(super) fn content(&self, place: &Place) -> Content {
        let work = place.path(WORK);
        let mut found = Content::new();
        for name in files(&work) {
            if Self::is_content(&name) && (self.compared)(&name) {
                let plain = match name.rsplit_once("-r") {
                    Some((start, _)) if name.ends_with(".parquet") => format!("{start}.parquet"),
                    _ => name.clone(),
                };
                found.insert(plain, fs::read(work.join(name)).unwrap());
            }
        }
        found
    }

    /// Whether a file in the working folder belongs to what a run makes. Manifests have the order
    /// of the commits, others tell what happens now, and an earlier generation may stay until the
    /// next change.
    pub(super) fn is_content(name: &str) -> bool {
        let is_own = ["/manifest.jsonl", "/run.json", "/lock"].iter().any(|end| name.ends_with(end));
        let is_kept = |part: &str| part != WORK && !part.starts_with('.') && !part.contains('@');
        !is_own && name.split('/').skip(1).all(is_kept)
    }

    /// What a reader would see in the folder now: only whole files, and everything of others.
    pub(super) fn faults_visible(&self, place: &Place, before: &BTreeSet<String>) -> Vec<String> {
        let mut faults = Vec::new();
        let work = place.path(WORK);
        for name in before.iter().filter(|name| !work.join(name).exists()) {
            faults.push(format!("{name} of somebody else is gone"));
        }
        for name in files(&work) {
            let Some(folder) = name.strip_suffix("/manifest.jsonl") else { continue };
            let location = Location::from(work.join(folder));
            let damaged = match manifest::read(&location) {
                Ok(None) => continue,
                Ok(Some(state)) => Dataset::from_state(location, state).damaged_splits(),
                Err(error) => Err(error),
            };
            match damaged {
                Err(error) => faults.push(error.to_string()),
                Ok(damaged) if !self.starts_damaged => {
                    faults.extend(damaged.into_values().flatten().map(|fault| fault.to_string()));
                }
                Ok(_) => {}
            }
        }
        faults
    }

    /// What commands that read the folder say, if they fail.
    pub(super) fn unreadable(&self, place: &Place) -> Vec<String> {
        let run = place.path("work/run");
        if self.starts_damaged || !run.join("run.json").exists() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut call = |args: &[&str]| {
            let output = place.output(args);
            if !output.status.success() {
                found.push(format!("{args:?}: {}", stderr(&output)));
            }
        };
        call(&["status", "work/run"]);
        call(&["check", "work/run"]);
        for dataset in ["long", "few", "counts"] {
            if run.join(dataset).join("manifest.jsonl").exists() {
                call(&["sql", "work/run", &format!("select * from {dataset}")]);
            }
        }
        found
    }

    /// The files of others in the folder before the command.
    pub(super) fn foreign(&self, place: &Place) -> BTreeSet<String> {
        files(&place.path(BEFORE)).into_iter().filter(|name| name.ends_with(FOREIGN)).collect()
    }
}

/// A call of the program that may have met a fault.
pub(super) struct Attempt {
    pub(super) output: Output,
    /// The calls that met it, and their paths.
    pub(super) met: Vec<(String, String)>,
    /// How many calls there were that could have met it. 0 if the process was killed.
    pub(super) counted: usize,
}

impl Attempt {
    fn new(place: &Place, args: &[&str], fault: Option<(Fault, usize)>) -> Self {
        let note = place.path("note");
        let _ = fs::remove_file(&note);
        let mut command = place.command(args);
        if let Some(fault) = fault {
            shim::inject(&mut command, &place.path(WORK), fault, &note);
        }
        let output = command.output().unwrap();
        let text = fs::read_to_string(&note).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        let (ends, met): (Vec<_>, Vec<_>) = lines.partition(|(call, _)| *call == "counted");
        let counted = ends.first().map_or(0, |(_, number)| number.parse().unwrap());
        let met = met.into_iter().map(|(call, path)| (call.to_string(), path.to_string())).collect();
        Self { output, met, counted }
    }
}

/// The names of all files below a folder, relative to it. Links are not followed.
pub(super) fn files(folder: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_path_buf()]);
    while let Some(within) = folders.pop() {
        for entry in fs::read_dir(within).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    found
}

/// Copies a folder.
pub(super) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.unwrap().success(), "cannot copy {}", from.display());
}
