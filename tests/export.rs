//! Exports: messages, refusals, reading exports again, and kills.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use twinlens_testkit::web::png;

use crate::support::{Place, stderr};

/// Photos with captions; one file is not an image, and some captions are short.
const PIPELINE: &str = r#"name = "photos"
seed = 3

[stages.photos]
kind = "folder"
folders = ["photos"]
keep = ["license", "rating"]
split_rows = 40

[stages.long]
kind = "filter"
input = "photos"
rules = [{ code = "too_short", where = "char_length(caption) >= 10" }]

[stages.few]
kind = "filter"
input = "long"
where = "rating <> '3'"

[stages.texts]
kind = "select"
input = "long"
drop = ["image"]
"#;

const PHOTOS: usize = 120;

/// A directory in which the pipeline has run.
fn finished_run() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("photos")).unwrap();
    for photo in 0..PHOTOS {
        let file = |ending: &str| place.path(&format!("photos/{photo:03}.{ending}"));
        // Decoders ignore trailing bytes; these make the files as large as photos.
        let mut image = png(16 + photo as u32 % 9, 16);
        image.extend((0..60_000 + photo * 500).map(|at| (at * at / 7 + photo) as u8));
        fs::write(file("png"), if photo == 7 { b"no image".to_vec() } else { image }).unwrap();
        let caption =
            if photo % 10 == 1 { "short".to_string() } else { format!("photo – number \"{photo}\"") };
        let mut json = serde_json::json!({
            "url": format!("http://img.test/{photo}.png"),
            "caption": caption,
            "page_url": format!("http://host{}.test/{photo}.html", photo % 3),
            "rating": photo % 5,
        });
        if photo % 4 == 0 {
            json["license"] = "CC-BY-4.0".into();
        }
        fs::write(file("json"), json.to_string()).unwrap();
    }
    place.write("photos.toml", PIPELINE);
    place.done(&["run", "photos.toml"]);
    place
}

/// Exit code and stderr of a call that prints nothing to stdout.
fn call(place: &Place, args: &[&str]) -> String {
    let output = place.output(args);
    assert!(output.stdout.is_empty());
    let code = output.status.code().unwrap();
    format!("exit {code}\n{}", stderr(&output)).replace(&place.folder().display().to_string(), "[here]")
}

/// Contents of all files of a directory, by path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(within) = folders.pop() {
        // A process that was killed early has not created the directory.
        for entry in fs::read_dir(within).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path)
            } else {
                drop(found.insert(name, fs::read(&path).unwrap()))
            }
        }
    }
    found
}

macro_rules! assert_message {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            filters => vec![
                (r"(/[^ ':]*)?/twinlens(\.exe)?(?P<after> export)", "twinlens$after"),
                (r"\d+\.\d+s\b", "[time]"),
                (r"\d+(\.\d+)? (B|KiB|MiB)\b", "[size]"),
                (r"\b[0-9a-f]{32,64}\b", "[hash]"),
                (r"\| [0-9,]+ \| `\[hash\]`", "| [bytes] | `[hash]`"),
                (r"files of [0-9,]+ bytes", "files of [bytes] bytes"),
            ],
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) });
    };
}

#[test]
fn exports_are_reported_or_refused_with_hints() {
    let place = finished_run();
    let to = |format: &str, more: &[&str]| {
        call(
            &place,
            &[&["export", "runs/photos/few", "out", "--to", format, "--shard-size", "2MB"], more].concat(),
        )
    };
    assert_message!("said", to("webdataset", &[]));
    assert_message!("said_again", to("webdataset", &[]));
    assert_message!("said_other_options", to("webdataset", &["--where", "width > 20"]));
    assert_message!("said_fresh", to("webdataset", &["--where", "width > 20", "--fresh"]));
    assert_message!("card", fs::read_to_string(place.path("out/README.md")).unwrap());
    fs::write(place.path("out/notes.txt"), "mine").unwrap();
    assert_message!("said_foreign", to("webdataset", &["--fresh"]));
    assert_eq!(fs::read_to_string(place.path("out/notes.txt")).unwrap(), "mine");

    let export = |source: &str, dir: &str, more: &[&str]| {
        call(&place, &[&["export", source, dir, "--to"], more].concat())
    };
    assert_message!("said_which", export("runs/photos", "new", &["parquet"]));
    assert_message!("said_no_images", export("runs/photos/texts", "new", &["webdataset"]));
    assert_message!("said_no_dataset", export("photos", "new", &["parquet"]));
    assert_message!("said_column", export("runs/photos/few", "new", &["parquet", "--where", "widht > 20"]));
    assert_message!("said_within", export("runs/photos/few", "runs/photos/out", &["parquet"]));
    assert!(!place.path("new").exists() && !place.path("runs/photos/out").exists());
    let help = place.output(&["export", "--help"]);
    assert_message!("help", String::from_utf8(help.stdout).unwrap());
}

#[test]
fn exports_can_be_checked() {
    let place = finished_run();
    place.done(&["export", "runs/photos/few", "out", "--to", "webdataset", "--shard-size", "2MB"]);
    let checked = place.done(&["check", "out"]);
    assert!(checked.starts_with("ok: 12 files, "), "{checked}");
    assert!(place.done(&["check", "runs/photos/few"]).starts_with("ok: "));

    // A flipped bit in an image, and an edited card.
    let tar = place.path("out/00001.tar");
    let mut bytes = fs::read(&tar).unwrap();
    bytes[700] ^= 1;
    fs::write(&tar, bytes).unwrap();
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    fs::write(place.path("out/README.md"), card.replace("| 83 |", "| 8,300 |")).unwrap();
    assert_message!("check_damaged", call(&place, &["check", "out"]));
    fs::remove_file(tar).unwrap();
    assert_message!("check_missing", call(&place, &["check", "out"]));
    assert_message!("check_no_dataset", call(&place, &["check", "photos"]));
}

#[test]
fn tar_exports_round_trip() {
    let place = finished_run();
    place.done(&["export", "runs/photos/long", "tars", "--to", "webdataset", "--shard-size", "1MB"]);
    assert!(place.path("tars/00005.tar").exists());
    place.write("again.toml", "name = \"again\"\n[stages.again]\nkind = \"webdataset\"\nfiles = [\"tars/*.tar\"]\nkeep = [\"license\", \"rating\"]\n");
    place.done(&["run", "again.toml"]);
    let rows = |run: &str, table: &str| {
        let columns = "uid, url, caption, page_url, text_source, license, rating, image['bytes'] as bytes, width, \
                       height, original_width, original_height, sha256, phash, exif";
        let query = format!("select {columns} from {table} order by uid");
        place.done(&["sql", run, "--format", "json", &query])
    };
    let before = rows("runs/photos", "long");
    assert_eq!(before.lines().count(), PHOTOS - PHOTOS / 10 - 1);
    assert!(before == rows("runs/again", "again"), "the rows differ");
    assert_eq!(
        place.done(&["sql", "runs/again", "--format", "csv", "select count(*) from rejects"]),
        "count(*)\n0\n"
    );
}

#[test]
fn parquet_exports_are_inputs_of_pipelines_and_exports() {
    let place = finished_run();
    place.done(&["export", "runs/photos/long", "parquet", "--to", "parquet", "--where", "width > 20"]);
    place.done(&["export", "parquet", "tars", "--to", "webdataset"]);
    place.done(&["export", "runs/photos/long", "direct", "--to", "webdataset", "--where", "width > 20"]);
    let (tars, direct) = (files(&place.path("tars")), files(&place.path("direct")));
    assert!(tars["00000.tar"] == direct["00000.tar"] && tars["00000.parquet"] == direct["00000.parquet"]);
    // The card of the second export names the stages before the first.
    let card = String::from_utf8(tars["README.md"].clone()).unwrap();
    assert!(card.contains("12 `too_short`") && card.matches("| export |").count() == 2, "{card}");

    place.write(
        "reads.toml",
        "name = \"reads\"\n[stages.kept]\nkind = \"filter\"\ninput = \"./parquet\"\nwhere = \"width > 21\"\n",
    );
    place.done(&["run", "reads.toml"]);
    let count = |run: &str, query: &str| place.done(&["sql", run, "--format", "csv", query]);
    assert_eq!(
        count("runs/reads", "select count(*) as n from kept where image['bytes'] is not null"),
        count("runs/photos", "select count(*) as n from long where width > 21")
    );
}

#[test]
fn killed_exports_resume_byte_for_byte() {
    let place = finished_run();
    for format in ["webdataset", "parquet", "arrow"] {
        let reference = format!("reference-{format}");
        fn args<'a>(dir: &'a str, format: &'a str) -> [&'a str; 7] {
            ["export", "runs/photos/long", dir, "--to", format, "--shard-size", "1MB"]
        }
        let started = Instant::now();
        place.done(&args(&reference, format));
        let whole = started.elapsed();
        let expected = files(&place.path(&reference));
        let (mut killed, mut round) = (0, 0u32);
        while killed < 6 {
            assert!(round < 100, "exports finish before they can be killed");
            let dir = format!("killed-{format}-{round}");
            // Times spread over the duration of an export.
            for part in [3, 5, 7] {
                let mut child = place.command(&args(&dir, format)).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(
                    whole.mul_f64(f64::from((part * (round + 3)) % 16) / 16.0).max(Duration::from_millis(1)),
                );
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                    killed += 1;
                }
                child.wait().unwrap();
                let present = files(&place.path(&dir));
                for (name, bytes) in present
                    .iter()
                    .filter(|(name, _)| !name.ends_with(".unfinished") && !name.ends_with(".jsonl"))
                {
                    assert!(expected[name] == *bytes, "{name} is half-written");
                }
            }
            place.done(&args(&dir, format));
            let found = files(&place.path(&dir));
            assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
            assert!(expected.iter().all(|(name, bytes)| found[name] == *bytes), "{format}: bytes differ");
            round += 1;
        }
    }
}
