//! Datasets out, as a user meets them: what is said and refused, what can be read again, and what a
//! kill leaves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

mod support;

use support::{Place, stderr};
use twinlens_testkit::web::png;

/// Photos with their texts, of which one is no image and some captions are short.
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

/// A folder in which the pipeline has run.
fn photographed() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("photos")).unwrap();
    for photo in 0..PHOTOS {
        let file = |ending: &str| place.path(&format!("photos/{photo:03}.{ending}"));
        // A decoder stops at the end mark: what follows makes files of the size of photographs.
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

/// The exit code of a call that prints nothing to stdout, and what it says.
fn call(place: &Place, args: &[&str]) -> String {
    let output = place.output(args);
    assert!(output.stdout.is_empty());
    let code = output.status.code().unwrap();
    format!("exit {code}\n{}", stderr(&output)).replace(&place.folder().display().to_string(), "[here]")
}

/// All files of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(within) = folders.pop() {
        // What was killed at once has made no folder.
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

macro_rules! assert_said {
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
fn an_export_says_what_it_did_and_what_it_will_not_do() {
    let place = photographed();
    let to = |format: &str, more: &[&str]| {
        call(
            &place,
            &[&["export", "runs/photos/few", "out", "--to", format, "--shard-size", "2MB"], more].concat(),
        )
    };
    assert_said!("said", to("webdataset", &[]));
    assert_said!("said_again", to("webdataset", &[]));
    assert_said!("said_other_options", to("webdataset", &["--where", "width > 20"]));
    assert_said!("said_fresh", to("webdataset", &["--where", "width > 20", "--fresh"]));
    assert_said!("card", fs::read_to_string(place.path("out/README.md")).unwrap());
    fs::write(place.path("out/notes.txt"), "mine").unwrap();
    assert_said!("said_foreign", to("webdataset", &["--fresh"]));
    assert_eq!(fs::read_to_string(place.path("out/notes.txt")).unwrap(), "mine");

    let export = |source: &str, dir: &str, more: &[&str]| {
        call(&place, &[&["export", source, dir, "--to"], more].concat())
    };
    assert_said!("said_which", export("runs/photos", "new", &["parquet"]));
    assert_said!("said_no_images", export("runs/photos/texts", "new", &["webdataset"]));
    assert_said!("said_no_dataset", export("photos", "new", &["parquet"]));
    assert_said!("said_column", export("runs/photos/few", "new", &["parquet", "--where", "widht > 20"]));
    assert_said!("said_within", export("runs/photos/few", "runs/photos/out", &["parquet"]));
    assert!(!place.path("new").exists() && !place.path("runs/photos/out").exists());
    let help = place.output(&["export", "--help"]);
    assert_said!("help", String::from_utf8(help.stdout).unwrap());
}

#[test]
fn an_export_can_be_checked_against_what_it_claims() {
    let place = photographed();
    place.done(&["export", "runs/photos/few", "out", "--to", "webdataset", "--shard-size", "2MB"]);
    let checked = place.done(&["check", "out"]);
    assert!(checked.starts_with("ok: 12 files, "), "{checked}");
    assert!(place.done(&["check", "runs/photos/few"]).starts_with("ok: "));

    // One byte of an image, which no length tells; and a card that somebody improved.
    let tar = place.path("out/00001.tar");
    let mut bytes = fs::read(&tar).unwrap();
    bytes[700] ^= 1;
    fs::write(&tar, bytes).unwrap();
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    fs::write(place.path("out/README.md"), card.replace("| 83 |", "| 8,300 |")).unwrap();
    assert_said!("check_damaged", call(&place, &["check", "out"]));
    fs::remove_file(tar).unwrap();
    assert_said!("check_missing", call(&place, &["check", "out"]));
    assert_said!("check_no_dataset", call(&place, &["check", "photos"]));
}

#[test]
fn tar_files_are_read_again_as_what_they_were() {
    let place = photographed();
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
fn a_parquet_export_is_an_input_of_pipelines_and_of_exports() {
    let place = photographed();
    place.done(&["export", "runs/photos/long", "parquet", "--to", "parquet", "--where", "width > 20"]);
    place.done(&["export", "parquet", "tars", "--to", "webdataset"]);
    place.done(&["export", "runs/photos/long", "direct", "--to", "webdataset", "--where", "width > 20"]);
    let (tars, direct) = (files(&place.path("tars")), files(&place.path("direct")));
    assert!(tars["00000.tar"] == direct["00000.tar"] && tars["00000.parquet"] == direct["00000.parquet"]);
    // The card of the second names the stages before the first.
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
fn an_export_survives_kill_nine_byte_for_byte() {
    let place = photographed();
    for format in ["webdataset", "parquet", "arrow"] {
        let calm = format!("calm-{format}");
        fn args<'a>(dir: &'a str, format: &'a str) -> [&'a str; 7] {
            ["export", "runs/photos/long", dir, "--to", format, "--shard-size", "1MB"]
        }
        let started = Instant::now();
        place.done(&args(&calm, format));
        let whole = started.elapsed();
        let expected = files(&place.path(&calm));
        let (mut killed, mut round) = (0, 0u32);
        while killed < 6 {
            assert!(round < 100, "exports end before they can be killed");
            let stormy = format!("stormy-{format}-{round}");
            // Moments that are spread over the time that it takes.
            for part in [3, 5, 7] {
                let mut child = place.command(&args(&stormy, format)).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(
                    whole.mul_f64(f64::from((part * (round + 3)) % 16) / 16.0).max(Duration::from_millis(1)),
                );
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                    killed += 1;
                }
                child.wait().unwrap();
                let there = files(&place.path(&stormy));
                for (name, bytes) in there
                    .iter()
                    .filter(|(name, _)| !name.ends_with(".unfinished") && !name.ends_with(".jsonl"))
                {
                    assert!(expected[name] == *bytes, "{name} is half-written");
                }
            }
            place.done(&args(&stormy, format));
            let found = files(&place.path(&stormy));
            assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
            assert!(expected.iter().all(|(name, bytes)| found[name] == *bytes), "{format}: bytes differ");
            round += 1;
        }
    }
}
