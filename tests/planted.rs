//! Files, folders and links of others, in every place where a run deletes something, and stolen
//! locks: nothing of others is deleted, no link is followed, and a second writer is refused.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Place, long_captions, stderr};

/// A finished run in `run`, and files of somebody else in `outside`.
fn site(rows: usize) -> Place {
    let place = Place::new();
    let lines: String = (0..rows).map(|row| format!("http://a.test/{row}.png,caption {row:09}\n")).collect();
    place.write("captions.csv", &format!("url,caption\n{lines}"));
    let pipeline = long_captions("planted", "split_rows = 200");
    place.write("pipeline.toml", &pipeline);
    place.write("changed.toml", &pipeline.replace("> 12", "> 13"));
    place.write(
        "more.toml",
        &format!("{pipeline}\n[stages.mine]\nkind = \"sql\"\nquery = \"select 1 as one\"\n"),
    );
    // With a second reader of `list`, `long` is a dataset of its own, whose rejects can be retried.
    let second =
        "\n[stages.all]\nkind = \"filter\"\ninput = \"list\"\nwhere = \"char_length(caption) > 1\"\n";
    place.write(
        "retry.toml",
        &format!("{}{second}", pipeline.replace("char_length(caption) > 12", "right(caption, 1) <> '7'")),
    );
    for file in ["notes.txt", "000009-000.parquet", "x.unfinished", "long/notes.txt", "long/manifest.jsonl"] {
        place.write(&format!("outside/{file}"), "of somebody else");
    }
    place
}

const RUN: &[&str] = &["run", "pipeline.toml", "--dir", "run"];
const CHANGED: &[&str] = &["run", "changed.toml", "--dir", "run"];
const FRESH: &[&str] = &["run", "pipeline.toml", "--dir", "run", "--fresh"];
const MORE: &[&str] = &["run", "more.toml", "--dir", "run"];
const REPAIR: &[&str] = &["repair", "pipeline.toml", "--dir", "run"];
const RETRY: &[&str] = &["retry", "retry.toml", "long", "--dir", "retried"];
const EXPORT: &[&str] = &["export", "run/long", "out", "--to", "parquet", "--fresh"];

/// Takes the last commit of a dataset back, as if the run had been killed before it.
fn interrupt(place: &Place) {
    let path = place.path("run/long/manifest.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    fs::write(path, lines[..lines.len() - 2].concat()).unwrap();
}

fn damage(place: &Place) {
    fs::write(place.path("run/long/data/000001-000.parquet"), "damaged").unwrap();
}

fn link(place: &Place, to: &str, at: &str) {
    fs::create_dir_all(place.path(at).parent().unwrap()).unwrap();
    symlink(place.path(to), place.path(at)).unwrap();
}

fn mine(place: &Place, at: &str) {
    place.write(at, "mine");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.unwrap().success());
}

/// Moves a dataset to another disk, with a link in its place.
fn move_dataset(place: &Place) {
    fs::rename(place.path("run/long"), place.path("moved")).unwrap();
    mine(place, "moved/notes.txt");
    link(place, "moved", "run/long");
}

/// What is planted, which command runs, and how it ends.
struct Case {
    what: &'static str,
    plant: fn(&Place),
    args: &'static [&'static str],
    /// What the command says, if it refuses.
    refused: Option<&'static str>,
}

/// What the command does without regard to what was planted.
fn works(what: &'static str, args: &'static [&'static str], plant: fn(&Place)) -> Case {
    Case { what, plant, args, refused: None }
}

fn refused(what: &'static str, args: &'static [&'static str], says: &'static str, plant: fn(&Place)) -> Case {
    Case { what, plant, args, refused: Some(says) }
}

fn cases() -> Vec<Case> {
    vec![
        works("a linked folder in a dataset that is resumed", RUN, |place| {
            interrupt(place);
            link(place, "outside", "run/long/extra");
        }),
        works("a linked folder in the place of a table", RUN, |place| {
            interrupt(place);
            link(place, "outside", "run/long/rejects");
        }),
        works("links to files in a dataset that is resumed", RUN, |place| {
            interrupt(place);
            link(place, "outside/notes.txt", "run/long/notes.txt");
            link(place, "outside/notes.txt", "run/long/data/notes.txt");
        }),
        works("files in a dataset that is resumed", RUN, |place| {
            interrupt(place);
            mine(place, "run/long/notes.txt");
            mine(place, "run/long/data/notes.parquet");
            mine(place, "run/long/mine/000001-000.parquet");
        }),
        works("files in a dataset that is repaired", REPAIR, |place| {
            damage(place);
            mine(place, "run/long/notes.txt");
            link(place, "outside", "run/long/extra");
        }),
        works("files in a dataset that is retried", RETRY, |place| {
            place.done(&["run", "retry.toml", "--dir", "retried"]);
            mine(place, "retried/long/notes.txt");
            mine(place, "retried/long/data/notes.parquet");
            link(place, "outside", "retried/long/extra");
        }),
        works("a moved dataset that is replaced", CHANGED, move_dataset),
        works("a moved dataset that is made again", FRESH, move_dataset),
        works("a file in a dataset that is replaced", CHANGED, |place| mine(place, "run/long/notes.txt")),
        works("a linked folder in a dataset that is replaced", CHANGED, |place| {
            link(place, "outside", "run/long/extra");
        }),
        works("a linked folder of work", CHANGED, |place| link(place, "outside", "run/long/work")),
        works("folders of others in the run directory", FRESH, |place| {
            mine(place, "run/mine/notes.txt");
            mine(place, "run/notes.txt");
            link(place, "outside", "run/linked");
        }),
        works("a dataset of another run", FRESH, |place| {
            copy(&place.path("run/long"), &place.path("run/backup"));
            mine(place, "run/backup/notes.txt");
        }),
        works("a file in a dataset that is made again", FRESH, |place| mine(place, "run/long/notes.txt")),
        refused("a file in a dataset whose replacement was interrupted", FRESH, "`notes.txt`", |place| {
            fs::create_dir(place.path("run/.old")).unwrap();
            copy(&place.path("run/long"), &place.path("run/.old"));
            mine(place, "run/long/notes.txt");
        }),
        refused("a folder with the name of a new stage", MORE, "run/mine", |place| {
            mine(place, "run/mine/notes.txt");
        }),
        refused("a link with the name of a new stage", MORE, "run/mine", |place| {
            link(place, "outside", "run/mine");
        }),
        refused("a link for what is deleted", RUN, "run/.deleted is a link", |place| {
            link(place, "outside", "run/.deleted");
        }),
        refused("a link for what is replaced", FRESH, "run/.old is a link", |place| {
            link(place, "outside", "run/.old");
        }),
        refused("a link for what is spilled", RUN, "run/.spill is a link", |place| {
            fs::remove_dir_all(place.path("run/.spill")).unwrap();
            link(place, "outside", "run/.spill");
        }),
        refused("a folder that only looks like a run's", RUN, "not a run directory", |place| {
            fs::remove_dir_all(place.path("run")).unwrap();
            mine(place, "run/.spill/notes.txt");
        }),
        refused("a linked folder in an export", EXPORT, "`data`", |place| {
            place.done(&["export", "run/long", "out", "--to", "parquet"]);
            fs::remove_dir_all(place.path("out/data")).unwrap();
            link(place, "outside", "out/data");
        }),
        refused("a folder of somebody in an export", EXPORT, "`mine/", |place| {
            place.done(&["export", "run/long", "out", "--to", "parquet"]);
            mine(place, "out/mine/000001-000.parquet");
        }),
    ]
}

/// Name and content of every file, and where every link points.
fn everything(folder: &Path) -> BTreeSet<(String, String)> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_path_buf()]);
    while let Some(within) = folders.pop() {
        for entry in fs::read_dir(within).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                found.insert((name, format!("-> {}", fs::read_link(path).unwrap().display())));
            } else {
                found.insert((name, String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()));
            }
        }
    }
    found
}

#[test]
fn nothing_of_others_is_deleted() {
    let source = site(1000);
    source.done(RUN);
    for Case { what, plant, args, refused } in cases() {
        let place = Place::new();
        copy(&source.path("."), place.folder());
        let own = everything(&place.path("run"));
        plant(&place);
        let planted: BTreeSet<_> = everything(place.folder()).difference(&own).cloned().collect();
        // Manifests grow, and a damaged file is made again.
        let is_mine = |(name, text): &&(String, String)| {
            text == "mine" || text == "of somebody else" || text.starts_with("->") || name.ends_with(".txt")
        };
        let output = place.output(args);
        let text = stderr(&output);
        match refused {
            None => assert!(output.status.success(), "{what}: {text}"),
            Some(says) => {
                assert_eq!(output.status.code(), Some(1), "{what}: {text}");
                assert!(text.contains(says), "{what}: {text}");
            }
        }
        let left = everything(place.folder());
        // A link in the place of a dataset goes with the dataset that is replaced; what it leads to
        // stays.
        let is_left = |file: &(String, String)| left.contains(file) || file.0 == "long";
        let gone: Vec<_> =
            planted.iter().filter(is_mine).filter(|file| !is_left(file)).map(|file| &file.0).collect();
        assert!(gone.is_empty(), "{what}: {gone:?} of somebody else are gone: {text}");
    }
}

/// A run that is stopped in the middle, by a signal, with some splits committed.
struct Stopped(Child);

impl Stopped {
    fn new(place: &Place) -> Self {
        let child = place.command(RUN).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let commits = || {
            let text = fs::read_to_string(place.path("run/long/manifest.jsonl")).unwrap_or_default();
            text.matches("\"entry\":\"commit\"").count()
        };
        while commits() < 3 {
            assert!(Instant::now() < deadline, "no split is committed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let stopped = Self(child);
        stopped.signal("-STOP");
        stopped
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Lets it go on to its end.
    fn resume(self) -> Output {
        self.signal("-CONT");
        self.0.wait_with_output().unwrap()
    }
}

#[track_caller]
fn assert_refused(output: &Output, says: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(says), "{text}");
}

#[test]
fn a_stolen_lock_lets_no_second_writer_in() {
    type Theft = (&'static str, fn(&Path));
    let steal: [Theft; 4] = [
        ("nothing", |_| {}),
        ("the file is removed", |lock| fs::remove_file(lock).unwrap()),
        ("another file is put in its place", |lock| {
            // A process that is refused does not make the file again.
            let _ = fs::remove_file(lock);
            fs::write(lock, "pid 1").unwrap();
        }),
        ("the file is empty", |lock| fs::write(lock, "").unwrap()),
    ];
    let place = site(20_000);
    let first = Stopped::new(&place);
    for (what, steal) in steal {
        steal(&place.path("run/lock"));
        let second = place.output(RUN);
        let text = stderr(&second);
        assert!(second.status.code() == Some(1) && text.contains("another process ("), "{what}: {text}");
        assert_refused(&place.output(REPAIR), "another process (");
    }
    assert!(first.resume().status.success());
    assert_eq!(place.ask("run", "select rows from counts"), ["20000"]);
}

/// The first of two writers of one path, whose folder is not there any more, writes nothing.
#[test]
fn a_run_whose_folder_was_replaced_ends() {
    let place = site(20_000);
    let first = Stopped::new(&place);
    fs::rename(place.path("run"), place.path("aside")).unwrap();
    place.done(RUN);
    let before = everything(&place.path("run"));
    assert_refused(&first.resume(), "moved away or replaced");
    let after = everything(&place.path("run"));
    // The split in flight may leave an unfinished file, which nobody reads.
    let changed: Vec<_> = (before.symmetric_difference(&after).map(|(name, _)| name))
        .filter(|name| !name.ends_with(".unfinished"))
        .collect();
    assert!(changed.is_empty(), "the second run was changed: {changed:?}");
    assert!(place.done(&["check", "run"]).starts_with("ok"));

    // Another writer that got past the lock.
    fs::remove_dir_all(place.path("run")).unwrap();
    let first = Stopped::new(&place);
    let manifest = place.path("run/long/manifest.jsonl");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, format!("{text}{}", text.lines().last().unwrap())).unwrap();
    assert_refused(&first.resume(), "another process is writing this dataset");
}
